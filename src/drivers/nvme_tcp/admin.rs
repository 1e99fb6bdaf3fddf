//! The admin queue: attaching to a controller, and asking it about itself and its namespaces.
//!
//! The order of commands is the one Linux uses, which every target has met.

use super::link::{Answer, Link, left, refused};
use super::url::Address;
use super::{Options, identity::Host};
use crate::block::{Buf, Error, Kind, Result};
use crate::nvme::admin::{GetFeatures, GetLogPage, Identify, SetFeatures};
use crate::nvme::copy::Format;
use crate::nvme::fabrics::{
    CNTLID_DYNAMIC, CNTLID_MAX, Connect, ConnectData, Connected, InvalidParameter, Width,
};
use crate::nvme::feature::{AsyncEvent, HostBehavior, NumberOfQueues, fid};
use crate::nvme::identify::{
    self, ControllerType, IdentifyController, IdentifyNamespace, NamespaceIds, NvmController, cns, csi,
    ctratt, oaes, oncs, parse_namespace_list,
};
use crate::nvme::property::{Cap, Cc, Csts, Shutdown, ShutdownStatus, Version, offset};
use crate::nvme::tcp::Digests;
use crate::nvme::tcp::host::Data;
use crate::nvme::{AdminCommand, Count16, Cqe, FabricsCommand, Nqn, Sqe, Status};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries of the admin queue: what every controller has (ASQSZ of the discovery log is 32 or more).
const ADMIN_ENTRIES: u32 = 32;
/// Commands in flight on an I/O queue, where the controller's queues are as long.
pub(super) const DEPTH: u16 = 128;
/// I/O queues asked for.
const QUEUES: u32 = 128;
/// Namespaces listed at most.
const NAMESPACES_MAX: usize = 1 << 16;

/// Slots of the admin queue: questions, one at a time; the keep-alive; the event request; the end, whatever else is
/// out.
pub(super) const SLOT_ASK: u16 = 0;
pub(super) const SLOT_KEEP_ALIVE: u16 = 1;
pub(super) const SLOT_EVENT: u16 = 2;
const SLOT_END: u16 = 3;

/// Whom to attach to, and as whom: what makes two controllers of this process the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Peer {
    pub(super) address: Address,
    pub(super) subsystem: Nqn,
    pub(super) host: Host,
}

/// What attaching is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// I/O queues will follow.
    Io,
    /// Only to ask.
    Look,
}

/// What a controller said of itself, for one association.
pub(super) struct Facts {
    /// Where the admin queue leads, and I/O queues have to.
    pub(super) at: SocketAddr,
    pub(super) cntlid: u16,
    pub(super) cap: Cap,
    pub(super) version: Version,
    pub(super) identify: IdentifyController,
    pub(super) nvm: Option<NvmController>,
    /// Commands in flight on an I/O queue.
    pub(super) depth: u16,
    /// I/O queues granted.
    pub(super) queues: u16,
    /// Copies reach from one namespace to another (formats 2h and 3h are enabled).
    pub(super) copies_across: bool,
}

impl Facts {
    /// Most bytes of one command's data.
    pub(super) fn data_bytes_max(&self) -> u64 {
        // Without a limit of its own: what keeps a command's time short and every length in 32 bits.
        self.identify.data_bytes_max(self.cap).unwrap_or(u64::MAX).min(UNLIMITED)
    }

    /// Most bytes of one Write Zeroes. A controller that does not say is taken to have MDTS, as Linux does.
    pub(super) fn zeroes_bytes_max(&self) -> u64 {
        match &self.nvm {
            Some(nvm) => nvm.write_zeroes_shift_max.map_or(u64::MAX, |shift| {
                let pages = 1u64.checked_shl(shift.get().into()).unwrap_or(u64::MAX);
                pages.saturating_mul(self.cap.page_bytes_min().into())
            }),
            None => self.data_bytes_max(),
        }
    }

    /// Most blocks of one range of Dataset Management.
    pub(super) fn discard_blocks_max(&self) -> u64 {
        let nvm = self.nvm.as_ref();
        let range = nvm.and_then(|n| n.dsm_range_blocks_max).map_or(u64::from(u32::MAX), |n| n.get().into());
        nvm.and_then(|n| n.dsm_blocks_max).map_or(range, |all| range.min(all.get()))
    }

    /// How long the controller wants a command that ended with `status` to wait before it is sent again; zero: it does
    /// not say.
    pub(super) fn retry_delay(&self, status: Status) -> Duration {
        let units = match status.retry_delay() {
            0 => 0,
            n => self.identify.retry_delays[n - 1],
        };
        Duration::from_millis(100 * u64::from(units))
    }

    /// True for a command that the controller lists as optional and has.
    pub(super) fn has(&self, command: u16) -> bool {
        self.identify.oncs & command != 0
    }
}

/// Most bytes of one command where the controller has no limit.
const UNLIMITED: u64 = 4 << 20;

/// The admin queue of one association.
pub(super) struct Admin {
    pub(super) link: Link,
    pub(super) facts: Arc<Facts>,
    /// Ends of commands nobody was waiting for.
    pub(super) strays: Vec<(u16, Cqe)>,
    /// The association was made with this keep-alive timeout.
    pub(super) keep_alive: Duration,
    cc: Cc,
}

/// A way to ask the controller something, one command at a time.
pub(super) trait Ask {
    /// Sends an admin command and waits for its end, whatever its status. `doing` is for errors.
    fn ask(&mut self, doing: &'static str, sqe: Sqe, data: Data) -> Result<Answer>;
}

/// An admin queue with a deadline.
pub(super) struct Asking<'a> {
    pub(super) link: &'a mut Link,
    pub(super) strays: &'a mut Vec<(u16, Cqe)>,
    pub(super) slot: u16,
    pub(super) deadline: Instant,
}

impl Ask for Asking<'_> {
    fn ask(&mut self, doing: &'static str, sqe: Sqe, data: Data) -> Result<Answer> {
        let asked = self.link.command(self.slot, sqe, data, self.deadline, self.strays);
        asked.map_err(|e| Error::new(e.kind(), doing).because(e))
    }
}

impl Answer {
    /// The data and dword 0, when the command succeeded.
    fn good(self, doing: &str) -> Result<(Buf, u64)> {
        if !self.cqe.status.is_success() {
            return Err(refused(doing, self.cqe.status));
        }
        let mut buf = self.buf;
        if (self.received as usize) < buf.len() {
            buf.set_len(self.received as usize);
        }
        Ok((buf, self.cqe.result))
    }
}

fn buffer(len: usize) -> Result<Buf> {
    Buf::alloc(len).ok_or_else(|| Error::new(Kind::NoMemory, "no memory for an admin command's data"))
}

impl Admin {
    /// Connects the admin queue, enables the controller, and asks it what it is.
    ///
    /// Errors: whatever stands in the way, in words; they name the address.
    pub(super) fn attach(
        peer: &Peer,
        options: &Options,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Self> {
        let name = format!("{} at {}", peer.subsystem, peer.address);
        let digests = options.digests();
        // One place of the queue stays empty, that a full one differs from an empty one.
        let slots = u16::try_from(ADMIN_ENTRIES - 1).expect("31");
        let mut link = Link::open(&peer.address, slots, digests, deadline)?;
        let mut strays = Vec::new();
        let enabled = Self::enable(&mut link, &mut strays, peer, options, purpose, deadline);
        let (facts, cc) = enabled.map_err(|e| e.on(&name))?;
        Ok(Self { link, facts: Arc::new(facts), strays, keep_alive: options.keep_alive, cc })
    }

    fn enable(
        link: &mut Link,
        strays: &mut Vec<(u16, Cqe)>,
        peer: &Peer,
        options: &Options,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<(Facts, Cc)> {
        let discovery = peer.subsystem.is_discovery();
        let at = link.at();
        let millis = u32::try_from(options.keep_alive.as_millis()).unwrap_or(u32::MAX);
        let queue = Connect {
            qid: 0,
            entries: Count16::new(ADMIN_ENTRIES).expect("32"),
            no_flow_control: true,
            keep_alive_ms: NonZeroU32::new(millis).filter(|_| !discovery),
        };
        let cntlid = connect(link, peer, queue, CNTLID_DYNAMIC, deadline)?;
        if !(1..=CNTLID_MAX).contains(&cntlid) {
            return Err(wrong(format!(
                "the target gave controller id {cntlid:#x}, which is not a valid one"
            )));
        }
        let mut ask = Asking { link, strays, slot: SLOT_ASK, deadline };
        let (cap, cc) = start(&mut ask)?;
        let version = Version(u32::try_from(property(&mut ask, Width::Four, offset::VS)?).unwrap_or(0));
        let (page, _) = identify(&mut ask, Identify::new(cns::CONTROLLER, 0))?.good("Identify Controller")?;
        let identify = IdentifyController::parse(&page)?;
        check(&identify, cntlid, discovery)?;
        let mut facts = Facts {
            at,
            cntlid,
            cap,
            version,
            identify,
            nvm: None,
            depth: depth(cap),
            queues: 0,
            copies_across: false,
        };
        if !discovery {
            facts.nvm = nvm_controller(&mut ask)?;
        }
        if purpose == Purpose::Io {
            let most = facts.identify.maxcmd.map_or(DEPTH, |n| n.get());
            facts.depth = facts.depth.min(most);
            facts.queues = queues(&mut ask)?;
            facts.copies_across = set_behavior(&mut ask, &facts.identify)?;
            let events = facts.identify.oaes & oaes::NAMESPACE_ATTRIBUTE;
            if events != 0 {
                let set = SetFeatures::new(fid::ASYNC_EVENTS, events);
                let doing = "Set Features (asynchronous events)";
                ask.ask(doing, AdminCommand::SetFeatures(set).to_sqe(), Data::None)?.good(doing)?;
            }
        }
        Ok((facts, cc))
    }

    /// The queue with a deadline, to ask something.
    pub(super) fn asking(&mut self, deadline: Instant) -> Asking<'_> {
        Asking { link: &mut self.link, strays: &mut self.strays, slot: SLOT_ASK, deadline }
    }

    fn ending(&mut self, deadline: Instant) -> Asking<'_> {
        Asking { slot: SLOT_END, ..self.asking(deadline) }
    }

    /// Resets the controller. Success shows that it is there, and with it what it was given. It does not show that
    /// nothing of the association is executed any more: Linux's target answers while its disk is still busy with writes
    /// from before.
    pub(super) fn disable(&mut self, deadline: Instant) -> Result<()> {
        self.cc = self.cc.with_enabled(false);
        let value = self.cc.0.into();
        let mut ask = self.ending(deadline);
        set_property(&mut ask, offset::CC, value)?;
        wait_status(&mut ask, "a reset", |csts| !csts.ready())
    }

    /// Tells the controller that we go, and waits until it is done with what it keeps.
    pub(super) fn shut_down(&mut self, deadline: Instant) -> Result<()> {
        let cc = self.cc.with_shutdown(Some(Shutdown::Normal)).0.into();
        let mut ask = self.ending(deadline);
        set_property(&mut ask, offset::CC, cc)?;
        wait_status(&mut ask, "a shutdown", |csts| csts.shutdown() == Some(ShutdownStatus::Complete))
    }

    /// How long after the loss of its connections commands of the association may still be executed; see [`grace`].
    pub(super) fn grace(&self) -> Duration {
        grace(&self.facts.identify, self.keep_alive)
    }
}

/// How long after the loss of its connections commands of an association may still be executed. The controller notices
/// by the keep-alive timeout at the latest (Base Specification 2.1, 3.9: with traffic-based keep-alive it may look one
/// timeout later), which it rounds up to its timer's steps (KAS), and then takes its time to end what runs (CQT).
fn grace(identify: &IdentifyController, keep_alive: Duration) -> Duration {
    let factor = if identify.ctratt & ctratt::TRAFFIC_KEEPS_ALIVE != 0 { 3 } else { 2 };
    let step = identify.kas.map_or(1, |kas| u128::from(kas.get()) * 100);
    let millis = keep_alive.as_millis().max(1).next_multiple_of(step);
    let rounded = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
    let quiesce = identify.quiesce_ms.map_or(0, |ms| ms.get().into());
    rounded.saturating_mul(factor).saturating_add(Duration::from_millis(quiesce))
}

/// Opens an I/O queue of the association that `facts` is about.
pub(super) fn open_queue(
    peer: &Peer,
    options: &Options,
    facts: &Facts,
    qid: u16,
    deadline: Instant,
) -> Result<Link> {
    let mut link = Link::open_at(facts.at, facts.depth, options.digests(), deadline)?;
    let queue = Connect {
        qid,
        entries: Count16::new(u32::from(facts.depth) + 1).expect("1 to 129"),
        no_flow_control: true,
        keep_alive_ms: None,
    };
    let cntlid = connect(&mut link, peer, queue, facts.cntlid, deadline)
        .map_err(|e| e.on(&format!("queue {qid} of {} at {}", peer.subsystem, peer.address)))?;
    if cntlid != facts.cntlid {
        let text = format!("queue {qid} was connected to controller {cntlid}, not {}", facts.cntlid);
        return Err(wrong(text).on(&peer.address.to_string()));
    }
    let in_capsule = u32::try_from(facts.identify.in_capsule_bytes_max()).unwrap_or(u32::MAX);
    link.machine().set_in_capsule(in_capsule);
    link.take_counters();
    Ok(link)
}

/// Sends Connect; the controller id of the answer.
fn connect(link: &mut Link, peer: &Peer, queue: Connect, cntlid: u16, deadline: Instant) -> Result<u16> {
    let data = ConnectData {
        host_id: peer.host.id,
        cntlid,
        subsystem: peer.subsystem.clone(),
        host: peer.host.nqn.clone(),
    };
    let buf = Buf::copy_of(&data.to_bytes())
        .ok_or_else(|| Error::new(Kind::NoMemory, "no memory for the data of Connect"))?;
    let sqe = FabricsCommand::Connect(queue).to_sqe();
    let mut strays = Vec::new();
    let answer = link
        .command(SLOT_ASK, sqe, Data::Out(buf), deadline, &mut strays)
        .map_err(|e| Error::new(e.kind(), "no answer to Connect").because(e))?;
    if !answer.cqe.status.is_success() {
        return Err(connect_refused(peer, &answer.cqe));
    }
    let connected = Connected::from_dword0(answer.cqe.dword0());
    if connected.authenticate || connected.authenticate_and_secure {
        return Err(wants_authentication());
    }
    Ok(connected.cntlid)
}

#[cold]
fn wants_authentication() -> Error {
    let text = "the target requires authentication, which this version does not support; let this host connect \
        without it, at the target";
    Error::new(Kind::Permission, text)
}

/// Why a Connect was refused, in words.
#[cold]
fn connect_refused(peer: &Peer, cqe: &Cqe) -> Error {
    let status = cqe.status;
    let host = &peer.host.nqn;
    let because = |kind, text: String| Error::new(kind, format!("{text} (Connect: {status})"));
    if let Some(parameter) = InvalidParameter::of(cqe) {
        let (offset, in_data) = (parameter.offset, parameter.in_data);
        return match (in_data, offset) {
            (true, ConnectData::SUBSYSTEM_AT) if peer.subsystem.is_discovery() => because(
                Kind::NotFound,
                "the target has no discovery service there; name a subsystem: nvme-tcp://host:port/NQN"
                    .to_owned(),
            ),
            (true, ConnectData::SUBSYSTEM_AT) => because(
                Kind::NotFound,
                format!(
                    "the target has no subsystem of that name there; blkcopy info nvme-tcp://{} lists what it has",
                    peer.address
                ),
            ),
            (true, ConnectData::HOST_AT) => not_admitted(host, status),
            _ => {
                let place = if in_data { "data" } else { "command" };
                because(Kind::Io, format!("the target refused byte {offset} of the Connect {place}"))
            }
        };
    }
    match status {
        s if s.is(Status::CONNECT_INVALID_HOST) => not_admitted(host, status),
        s if s.is(Status::AUTHENTICATION_REQUIRED) => wants_authentication(),
        s if s.is(Status::CONNECT_CONTROLLER_BUSY) => {
            because(Kind::Io, "the target has no free controller or queue; detach another host".to_owned())
        }
        s if s.is(Status::COPY_SIZE_LIMIT_EXCEEDED) => because(
            Kind::NotFound,
            format!(
                "the subsystem no longer exists; blkcopy info nvme-tcp://{} lists what the target has",
                peer.address
            ),
        ),
        _ => because(Kind::Io, "the target refused the connection".to_owned()),
    }
}

#[cold]
fn not_admitted(host: &Nqn, status: Status) -> Error {
    let text = format!(
        "the subsystem does not admit this host ({host}); allow it at the target, or give another hostnqn= (Connect: {status})"
    );
    Error::new(Kind::Permission, text)
}

#[cold]
fn wrong(text: String) -> Error {
    Error::new(Kind::Io, text)
}

/// Brings the controller from connected to ready.
fn start(ask: &mut Asking<'_>) -> Result<(Cap, Cc)> {
    let cap = Cap(property(ask, Width::Eight, offset::CAP)?);
    if cap.page_bytes_min() > 4096 {
        let text = format!(
            "the controller needs memory pages of at least {} bytes; 4096 is the only size supported",
            cap.page_bytes_min()
        );
        return Err(Error::new(Kind::Unsupported, text));
    }
    let css = if cap.command_sets() & Cap::CSS_CSI != 0 { Cc::CSS_CSI } else { Cc::CSS_NVM };
    let cc = Cc::for_host(css);
    set_property(ask, offset::CC, cc.0.into())?;
    wait_status(ask, "a reset", |csts| !csts.ready())?;
    // Capabilities may depend on what was configured.
    let cap = Cap(property(ask, Width::Eight, offset::CAP)?);
    let cc = cc.with_enabled(true);
    set_property(ask, offset::CC, cc.0.into())?;
    wait_status(ask, "enabling", Csts::ready)?;
    Ok((cap, cc))
}

fn property(ask: &mut dyn Ask, width: Width, offset: u32) -> Result<u64> {
    let doing = "Property Get";
    let sqe = FabricsCommand::PropertyGet { width, offset }.to_sqe();
    ask.ask(doing, sqe, Data::None)?.good(doing).map(|(_, value)| value)
}

fn set_property(ask: &mut dyn Ask, offset: u32, value: u64) -> Result<()> {
    let doing = "Property Set";
    let sqe = FabricsCommand::PropertySet { width: Width::Four, offset, value }.to_sqe();
    ask.ask(doing, sqe, Data::None)?.good(doing).map(drop)
}

/// Asks for CSTS until it is as wanted.
fn wait_status(ask: &mut Asking<'_>, what: &str, done: impl Fn(Csts) -> bool) -> Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        let value = property(ask, Width::Four, offset::CSTS)?;
        let csts = Csts(u32::try_from(value & 0xffff_ffff).expect("masked"));
        if csts.fatal() {
            return Err(wrong(format!("the controller reports a fatal error (CSTS.CFS) after {what}")));
        }
        if done(csts) {
            return Ok(());
        }
        if left(ask.deadline).is_zero() {
            return Err(wrong(format!("the controller did not finish {what} in time ({csts:?})")));
        }
        std::thread::sleep(pause.min(left(ask.deadline)));
        pause = (2 * pause).min(Duration::from_millis(100));
    }
}

fn identify(ask: &mut dyn Ask, which: Identify) -> Result<Answer> {
    let buf = buffer(identify::LEN)?;
    ask.ask("Identify", AdminCommand::Identify(which).to_sqe(), Data::In(buf))
}

/// What Linux refuses too.
fn check(identify: &IdentifyController, cntlid: u16, discovery: bool) -> Result<()> {
    let refuse = |text: String| Err(Error::new(Kind::Unsupported, text));
    if identify.cntlid != cntlid {
        return Err(wrong(format!(
            "the controller reports id {}, but Connect reported {cntlid}: its answers cannot be trusted",
            identify.cntlid
        )));
    }
    if discovery {
        return Ok(());
    }
    if identify.kas.is_none() {
        let text = "the controller has no keep-alive (KAS 0), so it would be unknown when the commands of a lost \
            connection end";
        return refuse(text.to_owned());
    }
    match identify.controller_type {
        ControllerType::Io | ControllerType::NotReported => {}
        other => {
            return refuse(format!(
                "the controller is not an I/O controller ({other:?}) and has no namespaces"
            ));
        }
    }
    if identify.ioccsz < 4 || identify.iorcsz < 1 || identify.icdoff != 0 {
        return refuse(format!(
            "capsules of IOCCSZ {}, IORCSZ {}, ICDOFF {} cannot be used over NVMe/TCP",
            identify.ioccsz, identify.iorcsz, identify.icdoff
        ));
    }
    if identify.sgls & 3 == 0 {
        return refuse(
            "the controller does not support SGLs, which NVMe over Fabrics needs to move data".to_owned(),
        );
    }
    Ok(())
}

fn depth(cap: Cap) -> u16 {
    // One entry stays empty.
    let entries = cap.entries_max().get().min(u32::from(DEPTH) + 1).max(2);
    u16::try_from(entries - 1).expect("1 to 128")
}

fn nvm_controller(ask: &mut dyn Ask) -> Result<Option<NvmController>> {
    let which = Identify { csi: csi::NVM, ..Identify::new(cns::CSI_CONTROLLER, 0) };
    let answer = identify(ask, which)?;
    // Controllers before 2.0 do not know it.
    if answer.cqe.status.is(Status::INVALID_FIELD) {
        return Ok(None);
    }
    let (page, _) = answer.good("Identify (limits of commands)")?;
    NvmController::parse(&page).map(Some)
}

/// Asks for I/O queues; how many there are.
fn queues(ask: &mut dyn Ask) -> Result<u16> {
    let doing = "Set Features (number of queues)";
    let wanted = NumberOfQueues::pairs(Count16::new(QUEUES).expect("1 to 65535"));
    let set = SetFeatures::new(fid::NUMBER_OF_QUEUES, wanted.to_dword());
    let (_, result) = ask.ask(doing, AdminCommand::SetFeatures(set).to_sqe(), Data::None)?.good(doing)?;
    let granted = NumberOfQueues::from_dword(u32::try_from(result & 0xffff_ffff).expect("masked"))
        .map_err(|_| wrong(format!("the controller grants an impossible number of queues ({result:#x})")))?;
    let pairs = granted.submission.get().min(granted.completion.get()).min(QUEUES);
    Ok(u16::try_from(pairs).expect("at most QUEUES"))
}

/// Tells the controller what this host understands (Host Behavior Support), which a reset clears: copies from one
/// namespace to another, where the controller has them (bit 2 of CDFE), and retry delays. False where it does not let
/// us copy across: copies inside one namespace go on.
fn set_behavior(ask: &mut dyn Ask, identify: &IdentifyController) -> Result<bool> {
    let across = identify.copies_in(Format::F2);
    let delays = identify.retry_delays.iter().any(|&delay| delay != 0);
    if !across && !delays {
        return Ok(false);
    }
    let doing = "Features (host behavior support)";
    let get = AdminCommand::GetFeatures(GetFeatures::new(fid::HOST_BEHAVIOR)).to_sqe();
    let Ok((page, _)) = ask.ask(doing, get, Data::In(buffer(HostBehavior::LEN)?))?.good(doing) else {
        return Ok(false);
    };
    let Ok(mut behavior) = HostBehavior::parse(&page) else { return Ok(false) };
    if across {
        behavior.copy_formats |= Format::F2.bit();
    }
    behavior.retry_delays |= delays;
    let mut buf = buffer(HostBehavior::LEN)?;
    buf.copy_from_slice(&behavior.to_bytes());
    let set = AdminCommand::SetFeatures(SetFeatures::new(fid::HOST_BEHAVIOR, 0)).to_sqe();
    let answer = ask.ask(doing, set, Data::Out(buf))?;
    if !answer.cqe.status.is_success() {
        tracing::info!(status = %answer.cqe.status, "the controller refused the host behavior settings");
    }
    Ok(across && answer.cqe.status.is_success())
}

/// Reads the first `len` bytes of a log page from `offset` on.
pub(super) fn log_page(ask: &mut dyn Ask, lid: u8, offset: u64, len: usize) -> Result<Buf> {
    let doing = "Get Log Page";
    let command = GetLogPage { offset, ..GetLogPage::new(lid, len as u64) };
    let sqe = AdminCommand::GetLogPage(command).to_sqe();
    ask.ask(doing, sqe, Data::In(buffer(len)?))?.good(doing).map(|(page, _)| page)
}

/// Reads the log page an event points to, so that the next event of its kind can come. What it says is read anew
/// anyway.
pub(super) fn clear_event(ask: &mut dyn Ask, event: AsyncEvent) -> Result<()> {
    // The changed namespace list is the only one that must be read whole.
    log_page(ask, event.lid, 0, identify::LEN).map(drop)
}

/// The active namespaces of the controller, ascending; at most 65536.
pub(super) fn active_namespaces(ask: &mut dyn Ask) -> Result<Vec<u32>> {
    let mut all: Vec<u32> = Vec::new();
    while all.len() < NAMESPACES_MAX {
        let behind = all.last().copied().unwrap_or(0);
        let (page, _) = identify(ask, Identify::new(cns::ACTIVE_NAMESPACES, behind))?
            .good("Identify active namespaces")?;
        let some = parse_namespace_list(&page, behind)?;
        let full = some.len() == identify::LEN / 4;
        all.extend(some);
        if !full {
            break;
        }
    }
    Ok(all)
}

/// What a namespace is.
#[derive(Clone, Debug)]
pub(super) struct NamespaceFacts {
    pub(super) nsid: u32,
    pub(super) identify: IdentifyNamespace,
    pub(super) ids: NamespaceIds,
}

/// Asks what namespace `nsid` is.
///
/// Errors: `NotFound` when it is not attached to the controller; the message says which are.
pub(super) fn namespace(ask: &mut dyn Ask, facts: &Facts, nsid: u32) -> Result<NamespaceFacts> {
    let active = active_namespaces(ask)?;
    if active.binary_search(&nsid).is_err() {
        let text = match &active[..] {
            [] => format!("there is no namespace {nsid}; the subsystem shows none to this host"),
            some => {
                let shown: Vec<String> = some.iter().take(16).map(u32::to_string).collect();
                let more =
                    if some.len() > 16 { format!(" and {} more", some.len() - 16) } else { String::new() };
                format!("there is no namespace {nsid}; there are {}{more}", shown.join(", "))
            }
        };
        return Err(Error::new(Kind::NotFound, text));
    }
    describe(ask, facts, nsid)
}

/// The same of a namespace known to be active.
pub(super) fn describe(ask: &mut dyn Ask, facts: &Facts, nsid: u32) -> Result<NamespaceFacts> {
    // Descriptors came with 1.3; before, the identifiers stand in the other structure.
    let ids = if facts.version >= Version::V1_3 {
        let answer = identify(ask, Identify::new(cns::NAMESPACE_DESCRIPTORS, nsid))?;
        // Some do not know it all the same.
        if answer.cqe.status.is(Status::INVALID_FIELD) {
            NamespaceIds::default()
        } else {
            NamespaceIds::parse(&answer.good("Identify namespace descriptors")?.0)?
        }
    } else {
        NamespaceIds::default()
    };
    if let Some(other) = ids.csi.filter(|&csi| csi != csi::NVM) {
        let what = if other == 2 { "is zoned".to_owned() } else { format!("has command set {other}") };
        let text = format!("namespace {nsid} {what}; only the NVM command set is supported");
        return Err(Error::new(Kind::Unsupported, text));
    }
    let (page, _) = identify(ask, Identify::new(cns::NAMESPACE, nsid))?.good("Identify Namespace")?;
    let page = IdentifyNamespace::parse(&page)?;
    let ids = NamespaceIds { nguid: ids.nguid.or(page.nguid), eui64: ids.eui64.or(page.eui64), ..ids };
    Ok(NamespaceFacts { nsid, identify: page, ids })
}

impl NamespaceFacts {
    /// Refuses what cannot be read and written as plain blocks.
    pub(super) fn check_plain(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::new(Kind::Unsupported, text));
        let (nsid, format) = (self.nsid, self.identify.lba_format());
        let block = self.identify.block_bytes();
        if self.identify.dps & 7 != 0 {
            return refuse(format!(
                "namespace {nsid} has protection information (type {}), which is not supported; format it without",
                self.identify.dps & 7
            ));
        }
        if format.metadata_bytes != 0 {
            return refuse(format!(
                "namespace {nsid} has {} bytes of metadata with each block, which is not supported; format it without",
                format.metadata_bytes
            ));
        }
        if block > 1 << 20 {
            return refuse(format!(
                "namespace {nsid} has blocks of {block} bytes; at most 1 MiB are supported"
            ));
        }
        match self.identify.size_bytes() {
            Some(size) if size <= crate::block::LEN_MAX => Ok(()),
            _ => refuse(format!(
                "namespace {nsid} says it has {} blocks of {block} bytes, more than 2^63 - 1 bytes",
                self.identify.size_blocks
            )),
        }
    }

    /// True when it has a name of its own, which no other namespace has.
    pub(super) fn has_id(&self) -> bool {
        self.ids.uuid.is_some() || self.ids.nguid.is_some() || self.ids.eui64.is_some()
    }

    /// True when both are one namespace, as far as its identifiers tell.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let ids = |f: &Self| (f.ids.uuid, f.ids.nguid, f.ids.eui64);
        ids(self) == ids(other)
    }

    /// True when the target says that the bytes are in what they were in, or says nothing of it.
    pub(super) fn has_same_bytes(&self, other: &Self) -> bool {
        self.identify.generation == other.identify.generation
    }
}

/// Digests as options ask for them.
impl Options {
    pub(super) fn digests(&self) -> Digests {
        Digests { header: self.header_digest, data: self.data_digest }
    }
}

/// True when the controller copies at all.
pub(super) fn copies(facts: &Facts) -> bool {
    facts.has(oncs::COPY) && (facts.identify.copies_in(Format::F0) || facts.copies_across)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU16;

    #[test]
    fn the_grace_covers_the_controllers_timer_its_looking_away_and_its_tidying_up() {
        let grace = |kas: u16, attributes: u32, quiesce: u16, keep_alive: u64| {
            let mut identify = IdentifyController::new(Nqn::new("nqn.x:y").expect("a name"), 1);
            (identify.kas, identify.ctratt) = (NonZeroU16::new(kas), attributes);
            identify.quiesce_ms = NonZeroU16::new(quiesce);
            super::grace(&identify, Duration::from_millis(keep_alive)).as_millis()
        };
        assert_eq!(grace(1, 0, 0, 5000), 10_000);
        assert_eq!(grace(1, ctratt::TRAFFIC_KEEPS_ALIVE, 0, 5000), 15_000);
        // Steps of ten seconds.
        assert_eq!(grace(100, 0, 0, 5000), 20_000);
        assert_eq!(grace(100, 0, 0, 10_000), 20_000);
        assert_eq!(grace(100, ctratt::TRAFFIC_KEEPS_ALIVE, 700, 10_001), 60_700);
        assert_eq!(grace(1, 0, u16::MAX, 200), 400 + 65_535);
        assert!(grace(0, 0, 0, 0) > 0);
    }
}

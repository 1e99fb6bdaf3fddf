//! A controller for tests: the controller's machine, arrays in memory, and whatever goes wrong on request.

use crate::block::Buf;
use crate::nvme::admin::Select;
use crate::nvme::copy::{Format, parse_ranges};
use crate::nvme::discovery::{Entry, Header, SubsystemType};
use crate::nvme::fabrics::{CNTLID_DYNAMIC, ConnectData, Connected, Refusal};
use crate::nvme::feature::{AsyncEvent, HostBehavior, NumberOfQueues, fid};
use crate::nvme::identify::{
    self, CopyLimits, IdentifyController, IdentifyNamespace, NamespaceIds, NvmController, cns,
    namespace_list, oaes, oncs, sgls,
};
use crate::nvme::io::parse_dsm_ranges;
use crate::nvme::log::{lid, read_page};
use crate::nvme::property::{Cap, Cc, Csts, ShutdownStatus, Version, offset};
use crate::nvme::tcp::Digests;
use crate::nvme::tcp::controller::{Config, Connection, Event, QueueFacts};
use crate::nvme::{
    AdminCommand, Ascii, Blocks, Count8, Count16, Cqe, FabricsCommand, IoCommand, Nqn, Sqe, Status,
};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(super) const NQN: &str = "nqn.2014-08.org.example:fake";

/// A command as the fake saw it, before it does anything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Which association (the controller id).
    pub(super) cntlid: u16,
    /// 0 for the admin queue.
    pub(super) qid: u16,
    pub(super) sqe: Sqe,
}

impl Seen {
    pub(super) fn io(&self) -> Option<IoCommand> {
        (self.qid > 0).then(|| IoCommand::parse(&self.sqe).ok()).flatten()
    }
    pub(super) fn admin(&self) -> Option<AdminCommand> {
        (self.qid == 0).then(|| AdminCommand::parse(&self.sqe).ok()).flatten()
    }
}

/// What becomes of a command.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// As it should.
    Serve,
    /// Nothing is done, and this is the answer: status and dword 0.
    Answer(Status, u32),
    /// Nothing is done and no answer comes.
    Swallow,
    /// The connection ends before it is served, or afterwards with no answer; with `all`, the admin queue's too.
    Cut { served: bool, all: bool },
    /// Connections end; the write happens later, unless the controller was reset or has given the host up by then.
    Ghost(Duration),
    /// I/O connections end; the write happens later, whatever becomes of the controller: a disk was busy with it.
    Late(Duration),
    /// These bytes go out instead of an answer.
    Raw(Vec<u8>),
    /// A read: that many bytes, called a success.
    Short(usize),
}

type Rule = Box<dyn FnMut(&Seen) -> Act + Send>;

/// A namespace of the fake.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) page: IdentifyNamespace,
    pub(super) ids: NamespaceIds,
    pub(super) bytes: Vec<u8>,
}

/// What the fake is; may be changed while it runs.
pub(super) struct Setup {
    pub(super) disks: BTreeMap<u32, Disk>,
    pub(super) controller: IdentifyController,
    pub(super) cap: Cap,
    pub(super) nvm: Option<NvmController>,
    pub(super) io: Config,
    /// What Connect says instead of doing it.
    pub(super) refuse: Option<Refusal>,
    /// What Connect's dword 0 says besides the controller id.
    pub(super) authenticate: bool,
    /// Added to the controller id that an I/O queue's Connect answers.
    pub(super) io_cntlid_off: u16,
    /// The controller takes no enabling of copies across namespaces.
    pub(super) refuses_behavior: bool,
    /// New connections end at once.
    pub(super) deaf: bool,
    pub(super) queues: u32,
    /// What is not flushed is gone when a host attaches anew.
    pub(super) forgets: bool,
    /// What each namespace held at its last flush.
    pub(super) stable: BTreeMap<u32, Vec<u8>>,
    pub(super) log: Vec<Entry>,
}

pub(super) fn copy_limits(range: u16, blocks: u32, ranges: u32) -> CopyLimits {
    CopyLimits {
        range_blocks_max: NonZeroU16::new(range).unwrap(),
        blocks_max: NonZeroU32::new(blocks).unwrap(),
        ranges_max: Count8::new(ranges).unwrap(),
    }
}

/// A disk of `blocks` blocks of `1 << shift` bytes.
pub(super) fn disk(nsid: u32, blocks: u64, shift: u8) -> Disk {
    let mut page = IdentifyNamespace::new(blocks, shift);
    page.copy = Some(copy_limits(64, 128, 8));
    page.dlfeat = 9;
    let mut uuid = [0x42; 16];
    uuid[12..].copy_from_slice(&nsid.to_be_bytes());
    Disk {
        page,
        ids: NamespaceIds { uuid: Some(uuid), csi: Some(0), ..NamespaceIds::default() },
        bytes: vec![0; usize::try_from(blocks << shift).unwrap()],
    }
}

impl Default for Setup {
    fn default() -> Self {
        let mut controller = IdentifyController::new(Nqn::new(NQN).unwrap(), 0);
        controller.serial = Ascii::new("FAKE").unwrap();
        controller.model = Ascii::new("fake controller").unwrap();
        controller.version = Version::V2_0;
        controller.kas = NonZeroU16::new(1);
        controller.oaes = oaes::NAMESPACE_ATTRIBUTE;
        controller.oncs = oncs::COMPARE
            | oncs::DATASET_MANAGEMENT
            | oncs::WRITE_ZEROES
            | oncs::COPY
            | oncs::COPY_SINGLE_ATOMICITY;
        controller.ocfs = Format::F0.bit() | Format::F2.bit();
        controller.write_cache = true;
        controller.sgls = sgls::SUPPORTED | sgls::OFFSET;
        controller.ioccsz = 4 + 4096 / 16;
        controller.mdts = std::num::NonZeroU8::new(5);
        controller.nn = 16;
        Self {
            disks: BTreeMap::from([(1, disk(1, 4096, 9)), (2, disk(2, 4096, 9))]),
            controller,
            cap: Cap::new(Count16::new(128).unwrap(), 1000, Cap::CSS_NVM | Cap::CSS_CSI),
            nvm: Some(NvmController {
                write_zeroes_shift_max: None,
                dsm_ranges_max: None,
                dsm_range_blocks_max: NonZeroU32::new(16),
                dsm_blocks_max: None,
            }),
            io: Config {
                entries_max: 129,
                data_bytes_max: 128 << 10,
                in_capsule_bytes_max: 4096,
                h2c_data_bytes_max: 8192,
                r2t_bytes_max: 16384,
                r2t_count_max: 1,
                digests: Digests { header: true, data: true },
                cpda: 0,
                icreq_timeout: Duration::from_secs(30),
            },
            refuse: None,
            authenticate: false,
            io_cntlid_off: 0,
            refuses_behavior: false,
            deaf: false,
            queues: 8,
            forgets: false,
            stable: BTreeMap::new(),
            log: Vec::new(),
        }
    }
}

/// One association.
struct Association {
    cc: Mutex<Cc>,
    formats: Mutex<u16>,
    behavior: Mutex<HostBehavior>,
    keep_alive: Option<Duration>,
    heard: Mutex<Instant>,
}

impl Association {
    /// True while a command of it may still be executed.
    fn lives(&self) -> bool {
        let expired = self.keep_alive.is_some_and(|kato| self.heard.lock().unwrap().elapsed() > kato);
        self.cc.lock().unwrap().enabled() && !expired
    }
}

struct Inner {
    setup: Mutex<Setup>,
    rule: Mutex<Option<Rule>>,
    seen: Mutex<Vec<Seen>>,
    associations: Mutex<BTreeMap<u16, Arc<Association>>>,
    sockets: Mutex<Vec<(u16, u16, TcpStream)>>,
    next: AtomicU16,
    open: AtomicUsize,
    stop: AtomicBool,
    ghosts: AtomicUsize,
    events: Mutex<Vec<AsyncEvent>>,
}

/// A controller on a loopback port, until it is dropped.
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    inner: Arc<Inner>,
    accept: Option<JoinHandle<()>>,
}

impl Fake {
    pub(super) fn new(edit: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::default();
        edit(&mut setup);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            setup: Mutex::new(setup),
            rule: Mutex::new(None),
            seen: Mutex::default(),
            associations: Mutex::default(),
            sockets: Mutex::default(),
            next: AtomicU16::new(1),
            open: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            ghosts: AtomicUsize::new(0),
            events: Mutex::default(),
        });
        let theirs = inner.clone();
        let accept = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if theirs.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, inner) = (stream.unwrap(), theirs.clone());
                if inner.setup().deaf {
                    continue;
                }
                std::thread::spawn(move || {
                    inner.open.fetch_add(1, Ordering::SeqCst);
                    One::new(&inner, stream).serve();
                    inner.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, inner, accept: Some(accept) }
    }

    pub(super) fn url(&self, nsid: u32) -> super::Url {
        super::Url::parse(&format!("nvme-tcp://{}/{NQN}?nsid={nsid}", self.address)).unwrap()
    }

    /// What becomes of commands from now on.
    pub(super) fn rule(&self, rule: impl FnMut(&Seen) -> Act + Send + 'static) {
        *self.inner.rule.lock().unwrap() = Some(Box::new(rule));
    }

    pub(super) fn change(&self, edit: impl FnOnce(&mut Setup)) {
        edit(&mut self.inner.setup());
    }

    /// Commands so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    /// I/O commands so far.
    pub(super) fn io_seen(&self) -> Vec<IoCommand> {
        self.seen().iter().filter_map(Seen::io).collect()
    }

    pub(super) fn bytes(&self, nsid: u32) -> Vec<u8> {
        self.inner.setup().disks[&nsid].bytes.clone()
    }

    /// Ends connections: all, or those of I/O queues.
    pub(super) fn cut(&self, admin_too: bool) {
        for (_, qid, socket) in &*self.inner.sockets.lock().unwrap() {
            if *qid > 0 || admin_too {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Sends an event on every association.
    pub(super) fn event(&self, event: AsyncEvent) {
        self.inner.events.lock().unwrap().push(event);
    }

    /// What the last host has said of itself.
    pub(super) fn behavior(&self) -> HostBehavior {
        let associations = self.inner.associations.lock().unwrap();
        let last = associations.values().next_back();
        last.map_or(HostBehavior::default(), |a| *a.behavior.lock().unwrap())
    }

    /// Connections open now.
    pub(super) fn open(&self) -> usize {
        self.inner.open.load(Ordering::SeqCst)
    }

    /// Ghost writes that were not executed after all, or were.
    pub(super) fn ghosts_left(&self) -> usize {
        self.inner.ghosts.load(Ordering::SeqCst)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.cut(true);
        let _ = self.accept.take().map(JoinHandle::join);
    }
}

impl Inner {
    fn setup(&self) -> MutexGuard<'_, Setup> {
        self.setup.lock().unwrap()
    }
}

/// One connection.
struct One<'a> {
    inner: &'a Arc<Inner>,
    stream: TcpStream,
    machine: Connection,
    queue: Option<(u16, u16, Arc<Association>)>,
    /// The slot of the event request.
    event: Option<u16>,
    back: Vec<Buf>,
    cut: bool,
}

impl<'a> One<'a> {
    fn new(inner: &'a Arc<Inner>, stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let machine = Connection::new(&inner.setup().io).unwrap();
        Self { inner, stream, machine, queue: None, event: None, back: Vec::new(), cut: false }
    }

    fn serve(&mut self) {
        while !self.cut && !self.inner.stop.load(Ordering::SeqCst) {
            while let Some(event) = self.machine.next() {
                match event {
                    Event::Command { slot, sqe, data } => self.command(slot, sqe, data),
                    Event::NeedBuffer { slot, len } => {
                        self.machine.give(slot, Buf::alloc(len as usize).unwrap());
                    }
                    Event::Broken(_) => {}
                }
                if self.cut {
                    break;
                }
            }
            if let Some(slot) = self.event
                && let Some(event) = self.inner.events.lock().unwrap().pop()
            {
                self.event = None;
                self.end(slot, Status::SUCCESS, event.to_dword().into(), None);
            }
            if !self.send() || self.machine.is_closing() {
                break;
            }
            let mut space = self.machine.space();
            match self.stream.read_vectored(&mut space) {
                Ok(0) => break,
                Ok(n) => self.machine.filled(n),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some((cntlid, qid, _)) = &self.queue {
            let mut sockets = self.inner.sockets.lock().unwrap();
            sockets.retain(|(c, q, _)| (c, q) != (cntlid, qid));
        }
    }

    fn send(&mut self) -> bool {
        loop {
            let output = self.machine.output();
            if output.is_empty() {
                return true;
            }
            match self.stream.write_vectored(&output) {
                Ok(n) => self.machine.sent(n, &mut self.back),
                Err(_) => return false,
            }
        }
    }

    fn end(&mut self, slot: u16, status: Status, result: u64, data: Option<Buf>) {
        let cqe = Cqe { result, status, ..Cqe::default() };
        let _ = self.machine.complete(slot, cqe, data);
    }

    fn command(&mut self, slot: u16, sqe: Sqe, data: Buf) {
        if sqe.opcode() == crate::nvme::command::FABRICS {
            return self.fabrics(slot, &sqe, &data);
        }
        let Some((cntlid, qid, association)) = self.queue.clone() else {
            return self.end(slot, Status::COMMAND_SEQUENCE_ERROR, 0, None);
        };
        let seen = Seen { cntlid, qid, sqe };
        self.inner.seen.lock().unwrap().push(seen);
        let act = self.inner.rule.lock().unwrap().as_mut().map_or(Act::Serve, |rule| rule(&seen));
        let serve = |one: &Self| {
            if qid == 0 { one.admin(&association, &sqe, &data) } else { one.io(&association, &sqe, &data) }
        };
        match act {
            Act::Serve
                if matches!(AdminCommand::parse(&sqe), Ok(AdminCommand::AsyncEventRequest)) && qid == 0 =>
            {
                self.event = Some(slot);
            }
            Act::Serve => {
                let (status, result, data) = serve(self);
                self.end(slot, status, result, data);
            }
            Act::Answer(status, dword0) => self.end(slot, status, dword0.into(), None),
            Act::Swallow => {}
            Act::Cut { served, all } => {
                // What was answered before goes out, as it would have.
                self.send();
                if served {
                    let _ = serve(self);
                }
                self.cut_all(all);
            }
            Act::Ghost(delay) | Act::Late(delay) => {
                let late = matches!(act, Act::Late(_));
                self.cut_all(!late);
                let inner = self.inner.clone();
                inner.ghosts.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    if late || association.lives() {
                        let one = Ghost(&inner);
                        one.io(&association, &sqe, &data);
                    }
                    inner.ghosts.fetch_sub(1, Ordering::SeqCst);
                });
            }
            Act::Raw(bytes) => {
                self.send();
                let _ = self.stream.write_all(&bytes);
            }
            Act::Short(len) => {
                let mut buf = serve(self).2.unwrap();
                buf.set_len(len);
                self.end(slot, Status::SUCCESS, 0, Some(buf));
            }
        }
    }

    fn cut_all(&mut self, admin_too: bool) {
        self.cut = true;
        if let Some((cntlid, ..)) = self.queue {
            for (c, qid, socket) in &*self.inner.sockets.lock().unwrap() {
                if *c == cntlid && (*qid > 0 || admin_too) {
                    let _ = socket.shutdown(Shutdown::Both);
                }
            }
        }
    }

    fn fabrics(&mut self, slot: u16, sqe: &Sqe, data: &[u8]) {
        let command = match FabricsCommand::parse(sqe) {
            Ok(command) => command,
            Err(refusal) => return self.end(slot, refusal.status, refusal.dword0.into(), None),
        };
        let result = match (command, &self.queue) {
            (FabricsCommand::Connect(connect), None) => {
                let connected = self.connect(&connect, data);
                if connected.is_ok() {
                    let facts = QueueFacts {
                        entries: u16::try_from(connect.entries.get()).unwrap(),
                        admin: connect.qid == 0,
                        flow_control: !connect.no_flow_control,
                    };
                    self.machine.connected(facts);
                }
                connected
            }
            (FabricsCommand::PropertyGet { offset, .. }, Some((_, 0, association))) => {
                let cc = *association.cc.lock().unwrap();
                let done =
                    if cc.shutdown().is_some() { ShutdownStatus::Complete } else { ShutdownStatus::None };
                match offset {
                    offset::CAP => Ok(self.inner.setup().cap.0),
                    offset::VS => Ok(self.inner.setup().controller.version.0.into()),
                    offset::CC => Ok(cc.0.into()),
                    offset::CSTS => Ok(Csts::default().with_ready(cc.enabled()).with_shutdown(done).0.into()),
                    _ => Err(Status::INVALID_FIELD.into()),
                }
            }
            (FabricsCommand::PropertySet { offset: offset::CC, value, .. }, Some((_, 0, association))) => {
                *association.cc.lock().unwrap() = Cc(u32::try_from(value).unwrap());
                Ok(0)
            }
            _ => Err(Status::COMMAND_SEQUENCE_ERROR.into()),
        };
        match result {
            Ok(result) => self.end(slot, Status::SUCCESS, result, None),
            Err(refusal) => self.end(slot, refusal.status, refusal.dword0.into(), None),
        }
    }

    fn connect(&mut self, connect: &crate::nvme::fabrics::Connect, data: &[u8]) -> Result<u64, Refusal> {
        let data = ConnectData::parse(data)?;
        let mut setup = self.inner.setup();
        if connect.qid == 0 && setup.forgets {
            let Setup { disks, stable, .. } = &mut *setup;
            stable.iter().for_each(|(nsid, bytes)| disks.get_mut(nsid).unwrap().bytes.clone_from(bytes));
        }
        if let Some(refusal) = setup.refuse {
            return Err(refusal);
        }
        let known =
            data.subsystem.as_str() == NQN || (data.subsystem.is_discovery() && !setup.log.is_empty());
        if !known {
            return Err(Refusal::in_data(ConnectData::SUBSYSTEM_AT));
        }
        let (cntlid, association, said) = if connect.qid == 0 {
            if data.cntlid != CNTLID_DYNAMIC {
                return Err(Refusal::in_data(ConnectData::CNTLID_AT));
            }
            let cntlid = self.inner.next.fetch_add(1, Ordering::SeqCst);
            let association = Arc::new(Association {
                cc: Mutex::default(),
                formats: Mutex::new(0),
                behavior: Mutex::default(),
                keep_alive: connect.keep_alive_ms.map(|ms| Duration::from_millis(ms.get().into())),
                heard: Mutex::new(Instant::now()),
            });
            self.inner.associations.lock().unwrap().insert(cntlid, association.clone());
            (cntlid, association, cntlid)
        } else {
            let associations = self.inner.associations.lock().unwrap();
            let association = associations.get(&data.cntlid).filter(|a| a.lives()).cloned();
            let association = association.ok_or(Refusal::in_data(ConnectData::CNTLID_AT))?;
            (data.cntlid, association, data.cntlid + setup.io_cntlid_off)
        };
        let socket = self.stream.try_clone().unwrap();
        self.inner.sockets.lock().unwrap().push((cntlid, connect.qid, socket));
        self.queue = Some((cntlid, connect.qid, association));
        let connected = Connected { authenticate: setup.authenticate, ..Connected::to(said) };
        Ok(connected.to_dword0().into())
    }

    fn admin(&self, association: &Association, sqe: &Sqe, data: &[u8]) -> (Status, u64, Option<Buf>) {
        *association.heard.lock().unwrap() = Instant::now();
        let ok = |result| (Status::SUCCESS, result, None);
        let setup = self.inner.setup();
        let page = |bytes: &[u8]| (Status::SUCCESS, 0, Some(Buf::copy_of(bytes).unwrap()));
        let (cntlid, ..) = self.queue.as_ref().unwrap();
        match AdminCommand::parse(sqe) {
            Err(status) => (status, 0, None),
            Ok(AdminCommand::Identify(identify)) => match identify.cns {
                cns::CONTROLLER => {
                    let mut controller = setup.controller.clone();
                    controller.cntlid = controller.cntlid.wrapping_add(*cntlid);
                    page(&controller.to_bytes())
                }
                cns::ACTIVE_NAMESPACES => page(&namespace_list(setup.disks.keys().copied(), identify.nsid)),
                cns::CSI_CONTROLLER => match &setup.nvm {
                    Some(nvm) => page(&nvm.to_bytes()),
                    None => (Status::INVALID_FIELD, 0, None),
                },
                cns::NAMESPACE | cns::NAMESPACE_DESCRIPTORS => match setup.disks.get(&identify.nsid) {
                    None => (Status::INVALID_NAMESPACE, 0, None),
                    Some(disk) if identify.cns == cns::NAMESPACE => page(&disk.page.to_bytes()),
                    Some(disk) => page(&disk.ids.to_bytes()),
                },
                _ => (Status::INVALID_FIELD, 0, None),
            },
            Ok(AdminCommand::SetFeatures(set)) => match set.fid {
                fid::NUMBER_OF_QUEUES => {
                    let queues = Count16::new(setup.queues).unwrap();
                    ok(NumberOfQueues::pairs(queues).to_dword().into())
                }
                fid::HOST_BEHAVIOR if setup.refuses_behavior => (Status::INVALID_FIELD, 0, None),
                fid::HOST_BEHAVIOR => {
                    let behavior = HostBehavior::parse(data).unwrap();
                    *association.formats.lock().unwrap() = behavior.copy_formats;
                    *association.behavior.lock().unwrap() = behavior;
                    ok(0)
                }
                _ => ok(0),
            },
            Ok(AdminCommand::GetFeatures(get)) if get.fid == fid::HOST_BEHAVIOR => {
                assert_eq!(get.select, Select::Current);
                page(&HostBehavior::default().to_bytes())
            }
            Ok(AdminCommand::GetLogPage(get)) => {
                let mut log = vec![0; identify::LEN];
                if get.lid == lid::DISCOVERY {
                    log = Header { generation: 7, entries: setup.log.len() as u64 }.to_bytes().to_vec();
                    setup.log.iter().for_each(|e| log.extend(e.to_bytes()));
                }
                let mut out = Buf::alloc(usize::try_from(get.len).unwrap()).unwrap();
                match read_page(&log, get.offset, &mut out) {
                    Ok(()) => (Status::SUCCESS, 0, Some(out)),
                    Err(status) => (status, 0, None),
                }
            }
            Ok(AdminCommand::KeepAlive) => ok(0),
            Ok(_) => (Status::INVALID_OPCODE, 0, None),
        }
    }

    fn io(&self, association: &Association, sqe: &Sqe, data: &[u8]) -> (Status, u64, Option<Buf>) {
        Ghost(self.inner).io(association, sqe, data)
    }
}

/// Executes I/O, with or without a connection.
struct Ghost<'a>(&'a Inner);

impl Ghost<'_> {
    fn io(&self, association: &Association, sqe: &Sqe, data: &[u8]) -> (Status, u64, Option<Buf>) {
        match self.try_io(association, sqe, data) {
            Ok(data) => (Status::SUCCESS, 0, data),
            Err((status, dword0)) => (status, dword0, None),
        }
    }

    fn try_io(
        &self,
        association: &Association,
        sqe: &Sqe,
        data: &[u8],
    ) -> Result<Option<Buf>, (Status, u64)> {
        let command = IoCommand::parse(sqe).map_err(|s| (s, 0))?;
        let mut setup = self.0.setup();
        let shift = |disk: &Disk| disk.page.lba_format().data_shift;
        let place = |disk: &Disk, slba: u64, blocks: u64| {
            let (from, to) = (slba << shift(disk), (slba + blocks) << shift(disk));
            let (from, to) = (usize::try_from(from).unwrap(), usize::try_from(to).unwrap());
            if to <= disk.bytes.len() { Ok(from..to) } else { Err((Status::LBA_OUT_OF_RANGE, 0)) }
        };
        let most = setup.io.data_bytes_max as usize;
        let disk = setup.disks.get_mut(&command.nsid()).ok_or((Status::INVALID_NAMESPACE, 0))?;
        let at = |disk: &Disk, blocks: Blocks, slba| place(disk, slba, blocks.get().into());
        match command {
            IoCommand::Flush { nsid } => {
                let bytes = disk.bytes.clone();
                setup.stable.insert(nsid, bytes);
            }
            IoCommand::Read(e) => {
                let at = at(disk, e.blocks, e.slba)?;
                assert!(at.len() <= most, "more than MDTS");
                return Ok(Some(Buf::copy_of(&disk.bytes[at]).unwrap()));
            }
            IoCommand::Write(e) => {
                let at = at(disk, e.blocks, e.slba)?;
                disk.bytes[at].copy_from_slice(data);
            }
            IoCommand::Compare(e) => {
                let at = at(disk, e.blocks, e.slba)?;
                if disk.bytes[at] != *data {
                    return Err((Status::COMPARE_FAILURE, 0));
                }
            }
            IoCommand::WriteZeroes { extent, .. } => {
                let at = at(disk, extent.blocks, extent.slba)?;
                disk.bytes[at].fill(0);
            }
            IoCommand::DatasetManagement { ranges, .. } => {
                for range in parse_dsm_ranges(ranges, data).map_err(|s| (s, 0))? {
                    let at = place(disk, range.slba, range.blocks.into())?;
                    disk.bytes[at].fill(0);
                }
            }
            IoCommand::Copy(copy) => {
                let enabled = *association.formats.lock().unwrap() | Format::F0.bit();
                if enabled & copy.format.bit() == 0 {
                    return Err((Status::INVALID_FIELD, 0));
                }
                let limits = disk.page.copy.unwrap();
                let ranges = parse_ranges(&copy, data).map_err(|s| (s, 0))?;
                let too_long = ranges.clone().any(|r| r.blocks.get() > limits.range_blocks_max.get().into());
                if copy.ranges > limits.ranges_max
                    || too_long
                    || ranges.total_blocks() > limits.blocks_max.get()
                {
                    return Err((Status::COPY_SIZE_LIMIT_EXCEEDED, 0));
                }
                let mut to = copy.sdlba;
                for (i, range) in ranges.enumerate() {
                    let bad = |(status, _)| (status, i as u64);
                    let source = &setup.disks[&range.snsid.unwrap_or(copy.nsid)];
                    let from = at(source, range.blocks, range.slba).map_err(bad)?;
                    let bytes = source.bytes[from].to_vec();
                    let dest = setup.disks.get_mut(&copy.nsid).unwrap();
                    let to_at = at(dest, range.blocks, to).map_err(bad)?;
                    dest.bytes[to_at].copy_from_slice(&bytes);
                    to += u64::from(range.blocks.get());
                }
            }
        }
        Ok(None)
    }
}

/// A log that leads to the fake itself and to a place where nothing is.
pub(super) fn log_of(address: SocketAddr) -> Vec<Entry> {
    let nqn = || Nqn::new(NQN).unwrap();
    let here = Entry::tcp(SubsystemType::Nvm, nqn(), address.ip(), address.port());
    let itself = Entry::tcp(SubsystemType::CurrentDiscovery, Nqn::discovery(), address.ip(), address.port());
    let nowhere = Entry::tcp(SubsystemType::Nvm, Nqn::new("nqn.x:gone").unwrap(), address.ip(), 1);
    vec![itself, here, nowhere]
}

//! The controller's end of a connection: capsules in, responses out, and the data of both.

use super::incoming::{Arrived, Incoming};
use super::life::Life;
use super::outgoing::Outgoing;
use super::pdu::{self, Form, IcReq, IcResp, Kind, Pdu, Place, Shape, Side, fes, field, flag};
use super::{Broken, Digests, Fatal, Output};
use crate::block::{Buf, BufPool};
use crate::nvme::command::{FABRICS, Transfer, admin};
use crate::nvme::{Cqe, Sgl, Sqe, Status};
use std::io::IoSliceMut;
use std::time::Duration;

/// What a connection is allowed; the same for every connection of a target.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most data of one command, in bytes (what MDTS says). More fails the command with Invalid Field in Command.
    pub data_bytes_max: u32,
    /// Most data inside an I/O command's capsule, in bytes (IOCCSZ * 16 - 64). Admin and fabrics commands always have
    /// 8192.
    pub in_capsule_bytes_max: u32,
    /// Most data of one H2CData PDU, in bytes (MAXH2CDATA): a multiple of 4, at least 4096.
    pub h2c_data_bytes_max: u32,
    /// Most data asked for with one R2T, in bytes.
    pub r2t_bytes_max: u32,
    /// Most R2Ts of one command at a time, if the host takes as many.
    pub r2t_count_max: u32,
    /// Digests granted to a host that asks for them.
    pub digests: Digests,
    /// Alignment of data from the host (CPDA), 0's based in dwords. Linux takes 0 only.
    pub cpda: u8,
    /// Most entries of a queue (MQES + 1): at most 4096.
    pub entries_max: u16,
    /// How long a new connection may take to send its ICReq.
    pub icreq_timeout: Duration,
}

/// What a Connect command decided about the queue of this connection.
#[derive(Clone, Copy, Debug)]
pub struct QueueFacts {
    /// Entries of the submission queue: a count (SQSIZE + 1), 2 to `entries_max`.
    pub entries: u16,
    /// The admin queue.
    pub admin: bool,
    /// SQ flow control is on: the host did not disable it in CATTR.
    pub flow_control: bool,
}

/// What the owner has to do something about.
#[derive(Debug)]
pub enum Event {
    /// A command with all its data: `data` is empty for one without data and for one that wants data.
    Command {
        /// Its place here, until [`Connection::complete`].
        slot: u16,
        /// The entry, its SGL checked.
        sqe: Sqe,
        /// What the host sent with it: exactly as long as the SGL says.
        data: Buf,
    },
    /// A command with data wants a buffer: [`Connection::give`], now or when there is one. Data by R2T is asked for
    /// then; data in a capsule is on its way, and nothing behind it is parsed before ([`Connection::capsule_waits`]).
    NeedBuffer {
        /// Its place here.
        slot: u16,
        /// Bytes: at most `data_bytes_max`, or what a capsule may hold.
        len: u32,
    },
    /// The connection has ended; no event follows.
    Broken(Broken),
}

/// Commands a connection may have in hand before its Connect.
const SLOTS_BEFORE_CONNECT: u16 = 4;

/// A slot is the lower 12 bits of a TTAG; above it, R2Ts of a command are counted.
const SLOTS_MAX: u16 = 1 << 12;

/// Longest R2T: header and digest.
const R2T_LEN_MAX: usize = 28;

/// What the end of a command stages at most, apart from copied data: C2HData's header and digest, and the response.
const RESPONSE_LEN_MAX: usize = pdu::LEAD_MAX + pdu::DIGEST_LEN + 28;

/// Fabrics command type (FCTYPE) of Connect.
const CONNECT: u8 = 0x01;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    /// The data in its capsule is on the way in.
    InCapsule,
    /// The owner was asked for a buffer.
    Buffer,
    /// R2Ts are answered.
    Receiving,
    /// The owner has it.
    Executing,
}

/// A place for a command.
struct Slot {
    state: State,
    cid: u16,
    /// Data of the SGL, in bytes.
    len: u32,
    /// Which way it goes, and whether the command is a fabrics command, and which of them Connect.
    to_host: bool,
    fabrics: bool,
    connect: bool,
    /// A request for an event, and one that its host has forgotten: its id is another command's, and its end is not
    /// told.
    event: bool,
    forgotten: bool,
    /// Bytes asked for by R2T; bytes that have come. Of data in the capsule: 0, and all there is of it.
    asked: u32,
    received: u32,
    /// It fails with this once the data asked for is here.
    failed: Option<Status>,
    /// Held while data is waited for.
    sqe: Sqe,
    buf: Buf,
}

impl Slot {
    fn free() -> Self {
        Self {
            state: State::Free,
            cid: 0,
            len: 0,
            to_host: false,
            fabrics: false,
            connect: false,
            event: false,
            forgotten: false,
            asked: 0,
            received: 0,
            failed: None,
            sqe: Sqe([0; Sqe::LEN]),
            buf: Buf::default(),
        }
    }
}

/// What the SGL of a command asks for.
enum Need {
    /// No data from the host.
    Nothing,
    /// The data in the capsule.
    Capsule,
    /// Data by R2T.
    Ask,
}

/// One connection: one submission and completion queue pair.
pub struct Connection {
    config: Config,
    life: Life,
    incoming: Incoming,
    outgoing: Outgoing<Buf>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Commands that may be in hand: entries of the queue, once known.
    entries: u16,
    /// A bit for each command id in use.
    cids: Box<[u64]>,
    /// A buffer for data in a capsule: while the owner has no other to give, a capsule waits until this one's command
    /// has ended, and for nothing that the stream behind it would bring.
    own: BufPool,
    /// The owner was asked for a buffer for the data that arrives.
    asked_owner: bool,
    admin: bool,
    flow_control: bool,
    /// Entries taken from the submission queue, modulo its size.
    sq_head: u16,
    /// What the host takes: R2Ts of one command at a time, alignment of data in bytes.
    r2t_count_max: u32,
    align: usize,
    /// Buffers of commands that failed while their data was on the way.
    spared: Vec<Buf>,
}

impl Connection {
    /// A fresh connection that waits for ICReq. `None`: no memory.
    ///
    /// # Panics
    /// When a limit of `config` is outside what its field says.
    pub fn new(config: &Config) -> Option<Self> {
        assert!(config.entries_max <= SLOTS_MAX && config.cpda <= pdu::ALIGNMENT_MAX);
        assert!(
            config.h2c_data_bytes_max >= pdu::H2C_DATA_MIN && config.h2c_data_bytes_max.is_multiple_of(4)
        );
        assert!(config.r2t_bytes_max > 0 && config.r2t_count_max > 0);
        let mut connection = Self {
            config: config.clone(),
            life: Life::new(config.icreq_timeout),
            incoming: Incoming::new(Side::Controller),
            outgoing: Outgoing::new(reserve(config)?, 64),
            slots: Vec::new(),
            free: Vec::new(),
            entries: SLOTS_BEFORE_CONNECT,
            cids: vec![0; CID_WORDS].into_boxed_slice(),
            own: capsule_pool(config)?,
            asked_owner: false,
            admin: true,
            flow_control: true,
            sq_head: 0,
            r2t_count_max: 1,
            align: 4,
            spared: Vec::new(),
        };
        connection.grow(SLOTS_BEFORE_CONNECT);
        Some(connection)
    }

    /// Most memory that one connection has for itself, in bytes: whatever its host does, it takes no more than this and
    /// the buffers that its owner gives. `None`: more than memory has.
    pub fn memory_bytes(config: &Config) -> Option<usize> {
        let table = usize::from(config.entries_max) * (size_of::<Slot>() + size_of::<Buf>());
        let fixed = Incoming::BYTES + own_bytes(config) + CID_WORDS * 8 + table;
        fixed.checked_add(Outgoing::<Buf>::bytes(reserve(config)?)?)
    }

    fn grow(&mut self, slots: u16) {
        let have = u16::try_from(self.slots.len()).expect("at most SLOTS_MAX");
        for slot in (have..slots).rev() {
            self.slots.push(Slot::free());
            self.free.push(slot);
        }
    }

    /// Where the next bytes from the socket go, in this order: the rest of a payload, if one is being received, and the
    /// staging area. Take events with [`Connection::next`] until there are none before. Both empty: do not read now;
    /// the host does not take what there is to send.
    pub fn space(&mut self) -> [IoSliceMut<'_>; 2] {
        let payload = match self.incoming.arriving().and_then(|arriving| arriving.slot) {
            Some(slot) => &mut self.slots[usize::from(slot)].buf[..],
            None => &mut [],
        };
        self.incoming.space(payload)
    }

    /// The first `n` bytes of [`Connection::space`] are there.
    pub fn filled(&mut self, n: usize) {
        self.incoming.filled(n);
    }

    /// Parses what is there up to the next event. Call until `None` after `filled`, `complete` and `sent`.
    #[allow(clippy::should_implement_trait)] // more may come after `None`: no iterator
    pub fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(broken) = self.life.news() {
                return Some(Event::Broken(broken));
            }
            if self.life.is_closing() {
                return None;
            }
            let event = if let Some(arriving) = self.incoming.arriving() {
                let arrived = match arriving.slot {
                    Some(place) => {
                        let slot = &mut self.slots[usize::from(place)];
                        if slot.state == State::InCapsule && slot.buf.is_empty() {
                            // u32 fits usize on every machine this is built for.
                            if self.asked_owner {
                                return None;
                            }
                            let Some(buf) = self.own.take(slot.received as usize) else {
                                self.asked_owner = true;
                                return Some(Event::NeedBuffer { slot: place, len: slot.received });
                            };
                            slot.buf = buf;
                        }
                        self.incoming.pull(&mut slot.buf)?
                    }
                    None => self.incoming.pull(&mut [])?,
                };
                self.arrived(arrived)
            } else if self.outgoing.is_full() || self.is_crowded() {
                return None;
            } else {
                match self.incoming.header() {
                    Ok(None) => return None,
                    Ok(Some((shape, header))) => self.header(&shape, header),
                    Err(fatal) => Err(fatal),
                }
            };
            match event {
                Ok(None) => {}
                Ok(Some(event)) => return Some(event),
                Err(fatal) => self.fail(fatal),
            }
        }
    }

    /// Commands in hand and answers whose data is still being sent are as many as the queue holds. A host that sends
    /// one more has not read what it was sent (or the owner has not told yet): that command waits, and no host has more
    /// buffers than entries.
    fn is_crowded(&self) -> bool {
        let referred = self.outgoing.referred();
        referred > 0
            && referred + self.in_hand() >= usize::from(self.entries)
            && self.incoming.brings_command()
    }

    fn in_hand(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn header(&mut self, shape: &Shape, header: Pdu) -> Result<Option<Event>, Fatal> {
        match header {
            Pdu::CapsuleCmd(sqe) => self.capsule(shape, sqe),
            Pdu::Data(place) => self.h2c_data(shape, place).map(|()| None),
            Pdu::IcReq(request) => {
                self.open(request);
                Ok(None)
            }
            Pdu::TermReq(fatal) => {
                self.finish(Broken::ByPeer(fatal));
                Ok(None)
            }
            // `shape` has refused the types that only a controller sends.
            Pdu::IcResp(_) | Pdu::CapsuleResp(_) | Pdu::R2t(_) => Err(Fatal::field(field::TYPE)),
        }
    }

    fn open(&mut self, request: IcReq) {
        let digests = Digests {
            header: request.digests.header && self.config.digests.header,
            data: request.digests.data && self.config.digests.data,
        };
        let response =
            IcResp { cpda: self.config.cpda, digests, h2c_data_bytes_max: self.config.h2c_data_bytes_max };
        response.encode(self.outgoing.stage(pdu::HEADER_MAX));
        self.incoming.open(digests, pdu::alignment_bytes(self.config.cpda));
        self.align = pdu::alignment_bytes(request.hpda);
        self.r2t_count_max = request.r2t_count_max.min(self.config.r2t_count_max);
        self.life.open();
    }

    fn capsule(&mut self, shape: &Shape, sqe: Sqe) -> Result<Option<Event>, Fatal> {
        let fabrics = sqe.opcode() == FABRICS;
        let in_capsule_max = if self.admin {
            pdu::IN_CAPSULE_ALWAYS
        } else if fabrics {
            self.config.in_capsule_bytes_max.max(pdu::IN_CAPSULE_ALWAYS)
        } else {
            self.config.in_capsule_bytes_max
        };
        if shape.data_len > in_capsule_max {
            return Err(Fatal::field(field::PLEN));
        }
        let cid = sqe.cid();
        self.sq_head = if self.sq_head + 1 >= self.entries { 0 } else { self.sq_head + 1 };
        let checked = if self.cids[usize::from(cid >> 6)] & (1 << (cid & 63)) != 0 && !self.forget_event(cid)
        {
            Err(Status::COMMAND_ID_CONFLICT)
        } else if self.in_hand() >= usize::from(self.entries) {
            return Err(Fatal { status: fes::SEQUENCE_ERROR, information: 0 });
        } else {
            self.need(&sqe, shape.data_len)
        };
        let need = match checked {
            Ok(need) => need,
            Err(status) => {
                self.discard(shape);
                self.refuse(cid, status);
                return Ok(None);
            }
        };
        let place = self.free.pop().expect("there are at least as many slots as entries");
        self.cids[usize::from(cid >> 6)] |= 1 << (cid & 63);
        let slot = &mut self.slots[usize::from(place)];
        let sgl = sqe.sgl();
        slot.cid = cid;
        slot.len = sgl.len;
        slot.to_host = sqe.transfer() == Transfer::ToHost;
        slot.fabrics = fabrics;
        slot.connect = fabrics && sqe.0[4] == CONNECT;
        slot.event = self.admin && sqe.opcode() == admin::ASYNC_EVENT_REQUEST;
        Ok(match need {
            Need::Nothing => {
                slot.state = State::Executing;
                self.discard(shape);
                Some(Event::Command { slot: place, sqe, data: Buf::default() })
            }
            Need::Capsule => {
                (slot.state, slot.sqe) = (State::InCapsule, sqe);
                (slot.asked, slot.received, slot.failed) = (0, shape.data_len, None);
                self.incoming.expect(shape, Some(place), 0);
                None
            }
            Need::Ask => {
                (slot.state, slot.sqe) = (State::Buffer, sqe);
                (slot.asked, slot.received, slot.failed) = (0, 0, None);
                Some(Event::NeedBuffer { slot: place, len: sgl.len })
            }
        })
    }

    /// The id is in use. When a request for an event has it, that is forgotten and the id free: a host that shuts the
    /// controller down may have let go of its requests without a word (SPDK's does) and use their ids for the shutdown
    /// itself.
    #[cold]
    fn forget_event(&mut self, cid: u16) -> bool {
        let asked = |s: &&mut Slot| s.state == State::Executing && s.event && !s.forgotten && s.cid == cid;
        let found = self.slots.iter_mut().find(asked);
        found.map(|slot| slot.forgotten = true).is_some()
    }

    /// Checks data direction, SGL and lengths of a command with `in_capsule` bytes of data in its capsule.
    fn need(&self, sqe: &Sqe, in_capsule: u32) -> Result<Need, Status> {
        // PSDT: on fabrics there are SGLs only, with metadata (none here) behind a pointer. Fabrics commands have no
        // such field.
        if sqe.flags() >> 6 != 1 && sqe.opcode() != FABRICS {
            return Err(Status::INVALID_FIELD);
        }
        let sgl = sqe.sgl();
        let in_order = match sqe.transfer() {
            // A command that moves data both ways is none that is known: the owner says so.
            Transfer::Both => return Ok(Need::Nothing),
            Transfer::ToController if sgl.kind == Sgl::IN_CAPSULE => {
                let Some(behind) = u64::from(in_capsule).checked_sub(sgl.address) else {
                    return Err(Status::SGL_OFFSET_INVALID);
                };
                if u64::from(sgl.len) != behind {
                    return Err(Status::SGL_LENGTH_INVALID);
                }
                return Ok(if sgl.len == 0 { Need::Nothing } else { Need::Capsule });
            }
            Transfer::None => Need::Nothing,
            // Without data the descriptor's type says nothing.
            Transfer::ToController | Transfer::ToHost if sgl.len == 0 => Need::Nothing,
            Transfer::ToController | Transfer::ToHost if sgl.kind != Sgl::TRANSPORT => {
                return Err(Status::SGL_TYPE_INVALID);
            }
            // Longer than MDTS allows is an invalid field (Base 2.1, Identify Controller, MDTS).
            Transfer::ToController | Transfer::ToHost if sgl.len > self.config.data_bytes_max => {
                return Err(Status::INVALID_FIELD);
            }
            Transfer::ToController => Need::Ask,
            Transfer::ToHost => Need::Nothing,
        };
        if in_capsule > 0 { Err(Status::SGL_LENGTH_INVALID) } else { Ok(in_order) }
    }

    /// The data of this PDU, if any, goes nowhere.
    fn discard(&mut self, shape: &Shape) {
        if shape.data_len > 0 {
            self.incoming.expect(shape, None, 0);
        }
    }

    fn h2c_data(&mut self, shape: &Shape, place: Place) -> Result<(), Fatal> {
        let number = place.ttag % SLOTS_MAX;
        let each = self.config.r2t_bytes_max;
        let slot = self.slots.get(usize::from(number));
        let Some(slot) = slot.filter(|s| s.state == State::Receiving && place.ttag == ttag(number, s, each))
        else {
            return Err(Fatal::field(field::TTAG));
        };
        if place.cid != slot.cid {
            return Err(Fatal::field(field::CCCID));
        }
        if place.len > self.config.h2c_data_bytes_max {
            return Err(Fatal { status: fes::LIMIT_EXCEEDED, information: 0 });
        }
        // The data of an R2T comes in order, and R2Ts of a command are answered in order: they reach to multiples of
        // `each`.
        let r2t_end = slot.asked.min((slot.received / each + 1).saturating_mul(each));
        if place.offset != slot.received || place.len > r2t_end - slot.received {
            return Err(Fatal { status: fes::OUT_OF_RANGE, information: 0 });
        }
        if (shape.flags & flag::LAST != 0) != (place.len == r2t_end - slot.received) {
            return Err(Fatal::field(field::FLAGS));
        }
        self.incoming.expect(shape, Some(number), place.offset);
        Ok(())
    }

    /// All data of one PDU is there.
    fn arrived(&mut self, arrived: Arrived) -> Result<Option<Event>, Fatal> {
        let Some(place) = arrived.slot else { return Ok(None) };
        let slot = &mut self.slots[usize::from(place)];
        if !arrived.intact {
            slot.failed = slot.failed.or(Some(Status::TRANSIENT_TRANSPORT_ERROR.retryable()));
        }
        if slot.state == State::Receiving {
            slot.received += arrived.len;
            if slot.failed.is_none() && slot.received < slot.len {
                self.ask(place);
                return Ok(None);
            }
            // One that has failed asks for no more, but takes what it has asked for.
            if slot.received < slot.asked {
                return Ok(None);
            }
        }
        if let Some(status) = slot.failed {
            self.fail_command(place, status);
            return Ok(None);
        }
        let mut data = std::mem::take(&mut slot.buf);
        if slot.state == State::InCapsule && slot.len < slot.received {
            let (len, all) = (slot.len as usize, slot.received as usize);
            // To the front, where memory is aligned for direct I/O: a capsule is short.
            data.copy_within(all - len..all, 0);
            data.set_len(len);
        }
        slot.state = State::Executing;
        Ok(Some(Event::Command { slot: place, sqe: slot.sqe, data }))
    }

    /// True while nothing is parsed before the buffer of the last [`Event::NeedBuffer`] is there.
    pub fn capsule_waits(&self) -> bool {
        self.asked_owner && !self.life.is_closing()
    }

    /// Gives the capsule that waits the connection's own buffer, if free: its slot, which needs no other any more.
    pub fn use_own_buffer(&mut self) -> Option<u16> {
        if !self.capsule_waits() {
            return None;
        }
        let place = self.incoming.arriving()?.slot?;
        let slot = &mut self.slots[usize::from(place)];
        slot.buf = self.own.take(slot.received as usize)?;
        self.asked_owner = false;
        Some(place)
    }

    /// The buffer for [`Event::NeedBuffer`]: shows exactly `len` bytes.
    ///
    /// # Panics
    /// When the slot did not ask for one, or for one of another length.
    pub fn give(&mut self, slot: u16, buf: Buf) {
        if self.life.is_closing() {
            return;
        }
        let place = slot;
        let slot = &mut self.slots[usize::from(place)];
        if slot.state == State::InCapsule {
            assert!(
                slot.buf.is_empty() && buf.len() == slot.received as usize,
                "a buffer as it was asked for"
            );
            slot.buf = buf;
            self.asked_owner = false;
            return;
        }
        assert!(
            slot.state == State::Buffer && buf.len() == slot.len as usize,
            "a buffer as it was asked for"
        );
        (slot.state, slot.buf) = (State::Receiving, buf);
        match slot.failed {
            Some(status) => self.fail_command(place, status),
            None => self.ask(place),
        }
    }

    /// Sends the R2Ts of a command that the host takes now.
    fn ask(&mut self, place: u16) {
        let slot = &mut self.slots[usize::from(place)];
        let each = self.config.r2t_bytes_max;
        let form = Form { kind: Kind::R2t, flags: 0, digests: self.incoming.digests(), align: 4 };
        // Both ends of the difference are multiples of `each`, or the end of the data.
        while slot.asked < slot.len && (slot.asked - slot.received).div_ceil(each) < self.r2t_count_max {
            let len = each.min(slot.len - slot.asked);
            let part =
                Place { cid: slot.cid, ttag: ttag_of(place, slot.asked / each), offset: slot.asked, len };
            let out = self.outgoing.stage(form.lead_len(0));
            part.encode(out);
            pdu::seal(out, &form, 0);
            slot.asked += len;
        }
    }

    /// The command in hand is a Connect that will succeed: the queue has these properties from now on. Call before its
    /// [`Connection::complete`].
    ///
    /// # Panics
    /// When the queue has fewer than 2 entries or more than the configuration allows.
    pub fn connected(&mut self, queue: QueueFacts) {
        assert!((2..=self.config.entries_max).contains(&queue.entries), "{queue:?}");
        self.grow(queue.entries);
        self.entries = queue.entries;
        self.admin = queue.admin;
        self.flow_control = queue.flow_control;
        self.sq_head %= queue.entries;
    }

    /// Ends a command: exactly once for each [`Event::Command`], after its data was let go of. `data` goes to the host
    /// when `cqe` says success; id, head and queue of `cqe` are filled in here. More data than the host has room for
    /// fails the command with Data SGL Length Invalid. Gives `data` back unless it is sent from where it is.
    ///
    /// # Panics
    /// When the owner does not have that command.
    pub fn complete(&mut self, slot: u16, cqe: Cqe, data: Option<Buf>) -> Option<Buf> {
        let place = slot;
        let slot = &mut self.slots[usize::from(place)];
        assert!(slot.state == State::Executing, "a command ends once");
        slot.state = State::Free;
        self.free.push(place);
        if std::mem::take(&mut slot.forgotten) {
            return data;
        }
        self.cids[usize::from(slot.cid >> 6)] &= !(1 << (slot.cid & 63));
        if self.life.is_closing() {
            return data;
        }
        let mut cqe = Cqe { cid: slot.cid, sq_id: 0, ..cqe };
        cqe.sq_head = match (self.flow_control, slot.connect) {
            (true, _) => self.sq_head,
            // FFFFh in the answer to Connect agrees that flow control is off (Base 2.1, Connect response).
            (false, true) => 0xffff,
            (false, false) => 0,
        };
        let quiet = !self.flow_control && cqe.status.bits() == 0 && cqe.result == 0 && !slot.fabrics;
        let (cid, room) = (slot.cid, if slot.to_host { slot.len } else { 0 });
        let buf = match data {
            Some(buf) if !buf.is_empty() && cqe.status.is_success() => buf,
            other => {
                self.respond(cqe);
                return other;
            }
        };
        let len = u32::try_from(buf.len()).unwrap_or(u32::MAX);
        if len > room {
            self.respond(Cqe { status: Status::SGL_LENGTH_INVALID, result: 0, ..cqe });
            return Some(buf);
        }
        let back = self.send_data(cid, len, buf, quiet);
        if !quiet {
            self.respond(cqe);
        }
        back
    }

    /// C2HData with all of `buf`.
    fn send_data(&mut self, cid: u16, len: u32, buf: Buf, success: bool) -> Option<Buf> {
        let flags = flag::LAST | if success { flag::SUCCESS } else { 0 };
        let form = Form { kind: Kind::C2hData, flags, digests: self.incoming.digests(), align: self.align };
        let (lead, trail) = (form.lead_len(len), form.trail_len(len));
        let copy = self.outgoing.copies(len);
        let out = self.outgoing.stage(if copy { lead + buf.len() + trail } else { lead });
        Place { cid, ttag: 0, offset: 0, len }.encode(out);
        pdu::seal(out, &form, len);
        if copy {
            let (data, digest) = out[lead..].split_at_mut(buf.len());
            data.copy_from_slice(&buf);
            if trail > 0 {
                digest.copy_from_slice(&pdu::crc32c(&buf).to_le_bytes());
            }
            return Some(buf);
        }
        let digest = if trail > 0 { pdu::crc32c(&buf) } else { 0 };
        let bytes = buf.len();
        self.outgoing.refer(buf, 0, bytes);
        if trail > 0 {
            self.outgoing.stage(trail).copy_from_slice(&digest.to_le_bytes());
        }
        None
    }

    fn respond(&mut self, cqe: Cqe) {
        let form = Form { kind: Kind::CapsuleResp, flags: 0, digests: self.incoming.digests(), align: 4 };
        let out = self.outgoing.stage(form.lead_len(0));
        out[pdu::COMMON_LEN..pdu::COMMON_LEN + Cqe::LEN].copy_from_slice(&cqe.to_bytes());
        pdu::seal(out, &form, 0);
    }

    /// Answers a command that gets no slot.
    fn refuse(&mut self, cid: u16, status: Status) {
        let sq_head = if self.flow_control { self.sq_head } else { 0 };
        self.respond(Cqe { result: 0, sq_head, sq_id: 0, cid, status });
    }

    /// Ends a command that has not reached the owner.
    fn fail_command(&mut self, place: u16, status: Status) {
        let slot = &mut self.slots[usize::from(place)];
        let buf = std::mem::take(&mut slot.buf);
        if std::mem::replace(&mut slot.state, State::Free) == State::Receiving {
            self.spared.push(buf);
        }
        let cid = slot.cid;
        self.cids[usize::from(cid >> 6)] &= !(1 << (cid & 63));
        self.free.push(place);
        self.refuse(cid, status);
    }

    /// What to send now; empty: nothing. The bytes stay where they are until [`Connection::sent`].
    pub fn output(&self) -> Output<'_> {
        self.outgoing.output(|buf| buf)
    }

    /// Bytes that only the host can move while buffers wait: data it was asked for, has announced, or was sent.
    pub fn owed_bytes(&self) -> u64 {
        let receiving = |slot: &Slot| match slot.state {
            State::Receiving => u64::from(slot.asked - slot.received),
            State::InCapsule if !slot.buf.is_empty() => u64::from(slot.received),
            _ => 0,
        };
        self.outgoing.referred_bytes() + self.slots.iter().map(receiving).sum::<u64>()
    }

    /// Bytes of payload that have come in, straight to their buffers or by the staging area.
    pub fn payload_bytes(&self) -> u64 {
        self.incoming.payload_bytes()
    }

    /// The socket took the first `n` bytes of [`Connection::output`]. Buffers wholly sent are appended to `back`, and
    /// those of [`Connection::give`] whose command failed before it was an event.
    pub fn sent(&mut self, n: usize, back: &mut Vec<Buf>) {
        back.append(&mut self.spared);
        self.outgoing.sent(n, |buf| back.push(buf));
    }

    /// Time has come to `now` (any clock that only goes forward): silence may end the connection.
    pub fn tick(&mut self, now: Duration) {
        if self.life.tick(now) {
            self.finish(Broken::Silent);
        }
    }

    /// When silence ends the connection, as it stands since the last [`Connection::tick`]; `None`: never.
    pub fn time_limit(&self) -> Option<Duration> {
        self.life.limit()
    }

    fn fail(&mut self, fatal: Fatal) {
        let out = self.outgoing.stage(pdu::TERM_MAX);
        let len = pdu::encode_term_req(out, Kind::C2hTermReq, fatal, self.incoming.at_fault());
        self.outgoing.unstage(pdu::TERM_MAX - len);
        self.life.end(Broken::Protocol(fatal));
        self.let_go();
    }

    fn finish(&mut self, why: Broken) {
        self.outgoing.clear();
        self.life.finish(Some(why));
        self.let_go();
    }

    /// Nothing more is taken in; buffers that waited for data are of no use.
    fn let_go(&mut self) {
        self.incoming.close();
        self.asked_owner = false;
        for slot in &mut self.slots {
            slot.buf = Buf::default();
        }
    }

    /// The connection has ended: send what there is, then shut the sending side; go on reading (bytes are thrown away)
    /// until the host closes or [`Connection::is_over`].
    pub fn is_closing(&self) -> bool {
        self.life.is_closing()
    }

    /// The socket may be closed: there is nobody to wait for.
    pub fn is_over(&self) -> bool {
        self.life.is_over()
    }

    /// The digests agreed upon; none before ICReq.
    pub fn digests(&self) -> Digests {
        self.incoming.digests()
    }
}

/// One buffer, as long as the longest data of a capsule.
fn capsule_pool(config: &Config) -> Option<BufPool> {
    let bytes = own_bytes(config);
    BufPool::new(bytes, bytes).filter(|pool| pool.chunk_bytes() >= bytes)
}

fn own_bytes(config: &Config) -> usize {
    (config.in_capsule_bytes_max.max(pdu::IN_CAPSULE_ALWAYS) as usize).next_multiple_of(4096)
}

/// Bytes that commands in hand may stage after no more work is taken.
fn reserve(config: &Config) -> Option<usize> {
    let in_hand = usize::from(config.entries_max.max(SLOTS_BEFORE_CONNECT));
    // A command that ends stages one C2HData and one response; one that gets a buffer, its R2Ts. The header looked
    // at last may be refused, and end the connection.
    let r2ts = usize::try_from(config.r2t_count_max).ok()?.checked_mul(R2T_LEN_MAX)?;
    Some(in_hand.checked_mul(RESPONSE_LEN_MAX + r2ts)? + 2 * pdu::TERM_MAX)
}

/// Command ids in words of 64 bits.
const CID_WORDS: usize = 1 << 10;

/// The tag of the R2T that is answered next.
fn ttag(place: u16, slot: &Slot, each: u32) -> u16 {
    ttag_of(place, slot.received / each)
}

/// The tag of a command's R2T number `count`: stale answers show.
#[allow(clippy::cast_possible_truncation)] // the lower 4 bits are meant
fn ttag_of(place: u16, count: u32) -> u16 {
    place | ((count as u16) & 0xf) << 12
}

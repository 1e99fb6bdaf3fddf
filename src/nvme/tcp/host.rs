//! The host's end of a connection: capsules out, responses in, and the data of both.

use super::incoming::{Arrived, Incoming};
use super::life::Life;
use super::outgoing::Outgoing;
use super::pdu::{self, Form, IcReq, IcResp, Kind, Pdu, Place, Shape, Side, fes, field, flag};
use super::{Broken, Digests, Fatal, Output};
use crate::block::Buf;
use crate::nvme::{Cqe, Sgl, Sqe, Status};
use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::time::Duration;

/// What a connection asks for and how large it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Places for commands: 1 to 4096. At most the entries of the queue.
    pub slots: u16,
    /// Digests to ask for; the controller may refuse ([`Event::Ready`] says).
    pub digests: Digests,
    /// Alignment of data from the controller (HPDA), 0's based in dwords. Linux targets take 0 only.
    pub hpda: u8,
    /// R2Ts of one command that may be outstanding: a count, 1 to 64.
    pub r2t_count_max: u32,
    /// Most data inside a capsule, in bytes, until [`Connection::set_in_capsule`]: 8192 for admin queues and Connect.
    pub in_capsule_bytes_max: u32,
    /// SQ flow control is on (the Connect will not disable it): a controller that uses SUCCESS then is in error.
    pub flow_control: bool,
    /// How long the controller may take to answer ICReq.
    pub icresp_timeout: Duration,
}

/// The data of a command.
#[derive(Debug, Default)]
pub enum Data {
    /// None.
    #[default]
    None,
    /// All the bytes shown go to the controller.
    Out(Buf),
    /// The bytes shown are filled by the controller.
    In(Buf),
}

/// What the owner has to do something about.
#[derive(Debug)]
pub enum Event {
    /// The connection is open: commands may be submitted.
    Ready {
        /// Most bytes of one H2CData PDU.
        h2c_data_bytes_max: u32,
        /// Digests in use.
        digests: Digests,
    },
    /// A command has ended.
    Done {
        /// Where it was; free again.
        slot: u16,
        /// How it ended. A success by the SUCCESS flag has result 0.
        cqe: Cqe,
        /// Its data as submitted.
        data: Data,
        /// Bytes from the controller: the first of `Data::In`. May be fewer than wanted; what that means is the
        /// command's affair.
        received: u32,
    },
    /// The connection has ended; no event follows. [`Connection::drain`] gives the commands back.
    Broken(Broken),
}

/// A command that got no answer.
#[derive(Debug)]
pub struct Unfinished {
    /// Where it was; free again.
    pub slot: u16,
    /// Its data as submitted.
    pub data: Data,
    /// A byte of it was handed to the socket: the controller may have executed it.
    pub maybe_executed: bool,
}

/// A slot is the lower 12 bits of a command id; above it, the commands that were in the slot are counted.
const SLOTS_MAX: u16 = 1 << 12;

/// What one command stages at most when no more is taken: capsule header, digest, padding and data digest.
const CAPSULE_LEN_MAX: usize = pdu::LEAD_MAX + pdu::DIGEST_LEN;

/// A place for a command.
#[derive(Default)]
struct Slot {
    busy: bool,
    cid: u16,
    data: Data,
    /// All its data is in the capsule.
    in_capsule: bool,
    /// Position in the output of its capsule's first byte; `None`: the capsule was never put there.
    capsule_at: Option<u64>,
    /// Position behind its last byte.
    capsule_end: u64,
    /// Position in the output behind the last byte that is sent from its buffer.
    refers_to: u64,
    /// Bytes the controller has asked for; R2Ts not wholly answered.
    asked: u32,
    r2ts: u32,
    /// Bytes that have come, and whether more may come.
    received: u32,
    last: bool,
    /// Success is known and no response follows.
    success: bool,
    /// Some of what has come was damaged on the way.
    damaged: bool,
    /// It has ended so, but its buffer is still being sent.
    done: Option<Cqe>,
}

impl Slot {
    /// The bytes to send.
    fn out(&self) -> &[u8] {
        if let Data::Out(buf) = &self.data { buf } else { &[] }
    }

    /// The bytes to fill.
    fn fill(&mut self) -> &mut [u8] {
        if let Data::In(buf) = &mut self.data { buf } else { &mut [] }
    }
}

/// An R2T on its way to be answered: bytes not put into the output yet.
struct Answer {
    slot: u16,
    ttag: u16,
    offset: u32,
    len: u32,
}

/// One connection: one submission and completion queue pair.
pub struct Connection {
    config: Config,
    life: Life,
    incoming: Incoming,
    /// Payloads that are not copied are named by their slot.
    outgoing: Outgoing<u16>,
    slots: Box<[Slot]>,
    /// R2Ts to be answered, the first one perhaps in part.
    answers: VecDeque<Answer>,
    /// R2Ts answered: their slots, and the position of the output behind the answer.
    answered: VecDeque<(u16, u64)>,
    /// Commands that have ended and whose buffer is still being sent.
    held: Vec<u16>,
    h2c_data_bytes_max: u32,
    align: usize,
    in_capsule_bytes_max: u32,
    drained: usize,
}

impl Connection {
    /// A fresh connection with its ICReq in the output. `None`: no memory.
    ///
    /// # Panics
    /// When a limit of `config` is outside what its field says.
    pub fn new(config: &Config) -> Option<Self> {
        assert!((1..=SLOTS_MAX).contains(&config.slots) && (1..=64).contains(&config.r2t_count_max));
        assert!(config.hpda <= pdu::ALIGNMENT_MAX);
        let slots = usize::from(config.slots);
        let mut outgoing = Outgoing::new(slots * CAPSULE_LEN_MAX + 2 * pdu::TERM_MAX, 64);
        let request =
            IcReq { hpda: config.hpda, digests: config.digests, r2t_count_max: config.r2t_count_max };
        request.encode(outgoing.stage(pdu::HEADER_MAX));
        Some(Self {
            config: config.clone(),
            life: Life::new(config.icresp_timeout),
            incoming: Incoming::new(Side::Host),
            outgoing,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            answers: VecDeque::with_capacity(slots),
            answered: VecDeque::with_capacity(slots),
            held: Vec::with_capacity(slots),
            h2c_data_bytes_max: 0,
            align: 4,
            in_capsule_bytes_max: config.in_capsule_bytes_max,
            drained: 0,
        })
    }

    /// Capsules may hold this many bytes of data from now on (IOCCSZ * 16 - 64 of the controller).
    pub fn set_in_capsule(&mut self, bytes_max: u32) {
        self.in_capsule_bytes_max = bytes_max;
    }

    /// Sends a command from a free slot, after [`Event::Ready`]. Command id, PSDT and SGL of `sqe` are filled in here.
    /// On a connection that is closing it is kept for [`Connection::drain`].
    ///
    /// # Panics
    /// When the slot is taken, or the connection not yet ready.
    pub fn submit(&mut self, slot: u16, sqe: Sqe, data: Data) {
        let number = slot;
        let slot = &mut self.slots[usize::from(number)];
        assert!(!slot.busy, "one command in a slot at a time");
        // Counts on, so that an answer to the command before is known as such.
        let cid = number | slot.cid.wrapping_add(SLOTS_MAX) & !(SLOTS_MAX - 1);
        *slot = Slot { busy: true, cid, data, ..Slot::default() };
        if self.life.is_closing() {
            self.drained = self.drained.min(usize::from(number));
            return;
        }
        assert!(self.life.is_open(), "commands come after Ready");
        let shown = match &slot.data {
            Data::None => 0,
            Data::Out(buf) | Data::In(buf) => buf.len(),
        };
        let len = u32::try_from(shown).expect("buffers are shorter than 4 GiB");
        slot.in_capsule = matches!(slot.data, Data::Out(_)) && len > 0 && len <= self.in_capsule_bytes_max;
        let mut sqe = sqe.with_sgl(if slot.in_capsule { Sgl::in_capsule(len) } else { Sgl::transport(len) });
        sqe.set_cid(cid);
        sqe.0[1] = sqe.0[1] & 0x3f | 0x40;
        slot.capsule_at = Some(self.outgoing.put());
        let form =
            Form { kind: Kind::CapsuleCmd, flags: 0, digests: self.incoming.digests(), align: self.align };
        let len = if slot.in_capsule { len } else { 0 };
        put(&mut self.outgoing, slot, number, &form, 0, len, |out| {
            out[pdu::COMMON_LEN..pdu::COMMON_LEN + Sqe::LEN].copy_from_slice(&sqe.0);
        });
        slot.capsule_end = self.outgoing.put();
    }

    /// The command id that the command in `slot` has on the wire: what an Abort names.
    pub fn cid(&self, slot: u16) -> u16 {
        self.slots[usize::from(slot)].cid
    }

    /// Where the next bytes from the socket go, in this order: the rest of a payload, if one is being received, and the
    /// staging area. Take events with [`Connection::next`] until there are none before. Both empty: do not read now;
    /// the controller does not take what there is to send.
    pub fn space(&mut self) -> [IoSliceMut<'_>; 2] {
        let payload = match self.incoming.arriving().and_then(|arriving| arriving.slot) {
            Some(slot) => self.slots[usize::from(slot)].fill(),
            None => &mut [],
        };
        self.incoming.space(payload)
    }

    /// The first `n` bytes of [`Connection::space`] are there. What was sent before they came is to be told with
    /// [`Connection::sent`] before the next [`Connection::next`]: an R2T counts as outstanding until its data is sent.
    pub fn filled(&mut self, n: usize) {
        self.incoming.filled(n);
    }

    /// Parses what is there up to the next event. Call until `None` after `filled` and after `sent`.
    #[allow(clippy::should_implement_trait)] // more may come after `None`: no iterator
    pub fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(broken) = self.life.news() {
                return Some(Event::Broken(broken));
            }
            if self.life.is_closing() {
                return None;
            }
            if let Some(event) = self.let_go() {
                return Some(event);
            }
            let event = if let Some(arriving) = self.incoming.arriving() {
                let arrived = match arriving.slot {
                    Some(slot) => self.incoming.pull(self.slots[usize::from(slot)].fill())?,
                    None => self.incoming.pull(&mut [])?,
                };
                Ok(self.arrived(arrived))
            } else {
                // Never waits for room in the output, or both ends might wait for each other to read.
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

    fn header(&mut self, shape: &Shape, header: Pdu) -> Result<Option<Event>, Fatal> {
        match header {
            Pdu::Data(place) => self.c2h_data(shape, place).map(|()| None),
            Pdu::CapsuleResp(cqe) => self.response(cqe),
            Pdu::R2t(place) => self.r2t(place).map(|()| None),
            Pdu::IcResp(response) => self.open(response).map(Some),
            Pdu::TermReq(fatal) => {
                self.finish(Some(Broken::ByPeer(fatal)));
                Ok(None)
            }
            // `shape` has refused the types that only a host sends.
            Pdu::IcReq(_) | Pdu::CapsuleCmd(_) => Err(Fatal::field(field::TYPE)),
        }
    }

    fn open(&mut self, response: IcResp) -> Result<Event, Fatal> {
        let IcResp { cpda, digests, h2c_data_bytes_max } = response;
        let asked = self.config.digests;
        if (digests.header && !asked.header) || (digests.data && !asked.data) {
            return Err(Fatal::field(field::DIGESTS));
        }
        self.incoming.open(digests, pdu::alignment_bytes(self.config.hpda));
        self.align = pdu::alignment_bytes(cpda);
        self.h2c_data_bytes_max = h2c_data_bytes_max;
        self.life.open();
        Ok(Event::Ready { h2c_data_bytes_max, digests })
    }

    /// The slot of the command `cid`, which was sent and has not ended. Nobody can answer what is not wholly sent: ids
    /// are easily guessed.
    fn running(&mut self, cid: u16, named_at: u32) -> Result<&mut Slot, Fatal> {
        let gone = self.outgoing.gone();
        self.slots
            .get_mut(usize::from(cid % SLOTS_MAX))
            .filter(|slot| slot.busy && slot.cid == cid && slot.capsule_end <= gone && slot.done.is_none())
            .ok_or(Fatal::field(named_at))
    }

    fn c2h_data(&mut self, shape: &Shape, place: Place) -> Result<(), Fatal> {
        let flow_control = self.config.flow_control;
        let slot = self.running(place.cid, field::CCCID)?;
        let last = shape.flags & flag::LAST != 0;
        if shape.flags & flag::SUCCESS != 0 && (!last || flow_control) {
            return Err(Fatal::field(field::FLAGS));
        }
        let Data::In(buf) = &slot.data else {
            return Err(Fatal { status: fes::SEQUENCE_ERROR, information: 0 });
        };
        if slot.last {
            return Err(Fatal { status: fes::SEQUENCE_ERROR, information: 0 });
        }
        if place.offset != slot.received || place.len as usize > buf.len() - slot.received as usize {
            return Err(Fatal { status: fes::OUT_OF_RANGE, information: 0 });
        }
        slot.last = last;
        slot.success = shape.flags & flag::SUCCESS != 0;
        self.incoming.expect(shape, Some(place.cid % SLOTS_MAX), place.offset);
        Ok(())
    }

    /// All data of one PDU is there.
    fn arrived(&mut self, arrived: Arrived) -> Option<Event> {
        let number = arrived.slot?;
        let slot = &mut self.slots[usize::from(number)];
        slot.received += arrived.len;
        slot.damaged |= !arrived.intact;
        if !slot.success {
            return None;
        }
        let cqe = Cqe { cid: slot.cid, ..Cqe::default() };
        self.done(number, cqe)
    }

    fn response(&mut self, cqe: Cqe) -> Result<Option<Event>, Fatal> {
        let gone = self.outgoing.gone();
        let slot = self.running(cqe.cid, field::RESPONSE_CID)?;
        let half_received = slot.received > 0 && !slot.last;
        // A success without the data: not all of it asked for, or not all that was asked for sent.
        let half_sent = !slot.in_capsule && (slot.asked as usize) < slot.out().len()
            || slot.r2ts > 0
            || slot.refers_to > gone;
        if (half_received || half_sent) && cqe.status.is_success() {
            return Err(Fatal { status: fes::SEQUENCE_ERROR, information: 0 });
        }
        Ok(self.done(cqe.cid % SLOTS_MAX, cqe))
    }

    /// A command has ended; it is told when its buffer is no longer being sent.
    fn done(&mut self, number: u16, cqe: Cqe) -> Option<Event> {
        let slot = &mut self.slots[usize::from(number)];
        if slot.r2ts > 0 || slot.refers_to > self.outgoing.gone() {
            slot.done = Some(cqe);
            self.held.push(number);
            return None;
        }
        Some(end(slot, number, cqe))
    }

    /// The first command that has ended and whose buffer is free by now.
    fn let_go(&mut self) -> Option<Event> {
        let gone = self.outgoing.gone();
        let free = |number: &u16| {
            let slot = &self.slots[usize::from(*number)];
            slot.r2ts == 0 && slot.refers_to <= gone
        };
        let at = self.held.iter().position(free)?;
        let number = self.held.swap_remove(at);
        let slot = &mut self.slots[usize::from(number)];
        let cqe = slot.done.take()?;
        Some(end(slot, number, cqe))
    }

    fn r2t(&mut self, place: Place) -> Result<(), Fatal> {
        let count_max = self.config.r2t_count_max;
        let slot = self.running(place.cid, field::CCCID)?;
        if !matches!(slot.data, Data::Out(_)) || slot.in_capsule {
            return Err(Fatal { status: fes::SEQUENCE_ERROR, information: 0 });
        }
        if place.len == 0 {
            return Err(Fatal::field(field::DATA_LEN));
        }
        if place.offset != slot.asked || place.len as usize > slot.out().len() - slot.asked as usize {
            return Err(Fatal { status: fes::OUT_OF_RANGE, information: 0 });
        }
        if slot.r2ts >= count_max {
            return Err(Fatal { status: fes::LIMIT_EXCEEDED, information: 0 });
        }
        slot.asked += place.len;
        slot.r2ts += 1;
        let Place { cid, ttag, offset, len } = place;
        self.answers.push_back(Answer { slot: cid % SLOTS_MAX, ttag, offset, len });
        self.answer();
        Ok(())
    }

    /// Puts H2CData into the output, as much as it takes.
    fn answer(&mut self) {
        while let Some(answer) = self.answers.front_mut()
            && !self.outgoing.is_full()
        {
            let len = answer.len.min(self.h2c_data_bytes_max);
            let last = len == answer.len;
            let slot = &mut self.slots[usize::from(answer.slot)];
            let part = Place { cid: slot.cid, ttag: answer.ttag, offset: answer.offset, len };
            let form = Form {
                kind: Kind::H2cData,
                flags: if last { flag::LAST } else { 0 },
                digests: self.incoming.digests(),
                align: self.align,
            };
            put(&mut self.outgoing, slot, answer.slot, &form, answer.offset, len, |out| part.encode(out));
            answer.offset += len;
            answer.len -= len;
            if last {
                self.answered.push_back((answer.slot, self.outgoing.put()));
                self.answers.pop_front();
            }
        }
    }

    /// What to send now; empty: nothing. The bytes stay where they are until [`Connection::sent`].
    pub fn output(&self) -> Output<'_> {
        self.outgoing.output(|slot| self.slots[usize::from(*slot)].out())
    }

    /// The socket took the first `n` bytes of [`Connection::output`].
    pub fn sent(&mut self, n: usize) {
        self.outgoing.sent(n, drop);
        while let Some(&(slot, end)) = self.answered.front()
            && end <= self.outgoing.gone()
        {
            self.slots[usize::from(slot)].r2ts -= 1;
            self.answered.pop_front();
        }
        self.answer();
    }

    /// Time has come to `now` (any clock that only goes forward): silence may end the connection.
    pub fn tick(&mut self, now: Duration) {
        if self.life.tick(now) {
            self.finish(Some(Broken::Silent));
        }
    }

    fn fail(&mut self, fatal: Fatal) {
        let out = self.outgoing.stage(pdu::TERM_MAX);
        let len = pdu::encode_term_req(out, Kind::H2cTermReq, fatal, self.incoming.at_fault());
        self.outgoing.unstage(pdu::TERM_MAX - len);
        self.life.end(Broken::Protocol(fatal));
        self.stop();
    }

    /// The owner ends the connection (a command timed out, the socket failed): nothing is processed any more, no
    /// TermReq is sent, and no event follows.
    pub fn close(&mut self) {
        self.finish(None);
    }

    fn finish(&mut self, why: Option<Broken>) {
        self.outgoing.clear();
        self.life.finish(why);
        self.stop();
    }

    fn stop(&mut self) {
        self.incoming.close();
        self.answers.clear();
        self.answered.clear();
        self.held.clear();
    }

    /// The connection has ended: send what there is (a TermReq), then close.
    pub fn is_closing(&self) -> bool {
        self.life.is_closing()
    }

    /// The socket may be closed: there is nobody to wait for.
    pub fn is_over(&self) -> bool {
        self.life.is_over()
    }

    /// Takes every command without an answer out of a connection that has ended, slot by slot; `None`: no more.
    ///
    /// What is left of the output is dropped where it is in such a command's buffer.
    pub fn drain(&mut self) -> Option<Unfinished> {
        if !self.life.is_closing() {
            return None;
        }
        if self.outgoing.referred() > 0 {
            self.outgoing.clear();
        }
        let at = self.drained + self.slots[self.drained..].iter().position(|slot| slot.busy)?;
        self.drained = at;
        let slot = &mut self.slots[at];
        slot.busy = false;
        let maybe_executed = slot.capsule_at.is_some_and(|at| at < self.outgoing.gone());
        let number = u16::try_from(at).expect("at most SLOTS_MAX");
        Some(Unfinished { slot: number, data: std::mem::take(&mut slot.data), maybe_executed })
    }
}

/// Frees a slot.
fn end(slot: &mut Slot, number: u16, mut cqe: Cqe) -> Event {
    if slot.damaged && cqe.status.is_success() {
        cqe.status = Status::TRANSIENT_TRANSPORT_ERROR.retryable();
    }
    slot.busy = false;
    Event::Done { slot: number, cqe, data: std::mem::take(&mut slot.data), received: slot.received }
}

/// Puts a PDU with `len` bytes from `offset` of the slot's data into the output; `body` writes its header's body.
fn put(
    outgoing: &mut Outgoing<u16>,
    slot: &mut Slot,
    number: u16,
    form: &Form,
    offset: u32,
    len: u32,
    body: impl FnOnce(&mut [u8]),
) {
    let (lead, trail) = (form.lead_len(len), form.trail_len(len));
    let (start, bytes) = (offset as usize, len as usize);
    let copy = outgoing.copies(len);
    let out = outgoing.stage(if copy { lead + bytes + trail } else { lead });
    body(out);
    pdu::seal(out, form, len);
    if len == 0 {
        return;
    }
    let data = &slot.out()[start..start + bytes];
    let digest = if trail > 0 { pdu::crc32c(data) } else { 0 };
    if copy {
        out[lead..lead + bytes].copy_from_slice(data);
        out[lead + bytes..].copy_from_slice(&digest.to_le_bytes()[..trail]);
        return;
    }
    outgoing.refer(number, start, bytes);
    slot.refers_to = outgoing.put();
    if trail > 0 {
        outgoing.stage(trail).copy_from_slice(&digest.to_le_bytes());
    }
}

//! One connection of a thread: its socket and its machine, and its share of the thread's buffers.

use crate::block::{Buf, BufPool};
use crate::net::Stream;
use crate::nvme::command::Transfer;
use crate::nvme::tcp::controller::{Connection, Event};
use crate::nvme::{Cqe, Sgl, Sqe};
use crate::nvmet::{CommandId, ConnectionId, Worker};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// Reads of one socket in one turn, so that a busy one does not hold up the others.
const READS_A_TURN: usize = 8;
/// Payload and answers that count as getting on, in bytes. Less in the time a host is given is a trickle that keeps
/// buffers from others. A buffer that came back counts too, however short its data.
const PROGRESS_BYTES: usize = 64 << 10;
/// A connection may take a buffer while it holds fewer than so many times those that are left: alone it gets three of
/// four, and however many are stalled, what is left goes to those that have none.
const SHARE: usize = 3;

/// Slots of a connection: entries of the longest queue.
const SLOTS_MAX: usize = 1 << 12;

/// A command that waits for a buffer.
pub(super) enum Want {
    /// For the data that the host is to be asked for.
    Data { slot: u16, len: u32 },
    /// For what goes to the host.
    Command { slot: u16, sqe: Sqe },
}

impl Want {
    fn len(&self) -> usize {
        // u32 fits usize on every machine this is built for.
        match self {
            Self::Data { len, .. } => *len as usize,
            Self::Command { sqe, .. } => sqe.sgl().len as usize,
        }
    }
}

/// The payload buffers of a thread, and the connections that wait for some: each in turn gets one.
pub(super) struct Buffers {
    pool: Rc<BufPool>,
    /// Places of links, each once.
    line: VecDeque<usize>,
    /// Places of links that got one since this was last emptied.
    pub(super) served: Vec<usize>,
}

impl Buffers {
    pub(super) fn new(pool: Rc<BufPool>) -> Self {
        Self { pool, line: VecDeque::new(), served: Vec::new() }
    }

    /// Serves the links that wait. True when any got one.
    pub(super) fn hand_out(
        &mut self,
        links: &mut [Option<Link>],
        worker: &mut Worker,
        now: Duration,
    ) -> bool {
        let (mut any, mut passed_over) = (false, 0);
        while passed_over < self.line.len() {
            let Some(place) = self.line.pop_front() else { break };
            let Some(link) = links.get_mut(place).and_then(Option::as_mut) else { continue };
            let Some(want) = link.wants.front() else {
                link.in_line = false;
                continue;
            };
            let free = self.pool.free();
            if free == 0 {
                self.line.push_front(place);
                break;
            }
            if may_take(link.held, free)
                && let Some(buf) = self.pool.take(want.len())
                && let Some(want) = link.wants.pop_front()
            {
                link.grant(want, buf, worker, now);
                self.served.push(place);
                (any, passed_over) = (true, 0);
            } else {
                passed_over += 1;
            }
            link.in_line = !link.wants.is_empty();
            if link.in_line {
                self.line.push_back(place);
            }
        }
        any
    }

    /// True when a link waits for one.
    pub(super) fn are_wanted(&self) -> bool {
        !self.line.is_empty()
    }

    /// The link at this place is gone.
    pub(super) fn forget(&mut self, place: usize) {
        self.line.retain(|&p| p != place);
    }
}

/// True for a connection that holds so many buffers while so many are free.
fn may_take(held: usize, free: usize) -> bool {
    free > 0 && (held == 0 || held < SHARE * free)
}

/// A socket and its machine.
pub(super) struct Link {
    pub(super) id: ConnectionId,
    /// Distinguishes it from an earlier connection in the same place.
    pub(super) serial: u32,
    place: usize,
    pub(super) peer: SocketAddr,
    pub(super) stream: Stream,
    pub(super) machine: Connection,
    /// Try to read: it may have something.
    pub(super) readable: bool,
    /// The reactor waits for it to be readable, writable.
    pub(super) watched: [bool; 2],
    /// The socket took nothing last time.
    pub(super) full: bool,
    pub(super) opened: Duration,
    /// When it last had something.
    pub(super) last: Duration,
    /// Commands that wait for a buffer; the link is in line while there are any.
    pub(super) wants: VecDeque<Want>,
    in_line: bool,
    /// When it last got one, or began to wait.
    served: Duration,
    /// Buffers of the pool it has.
    held: usize,
    /// A bit for each slot whose command, with the worker now, has one.
    has_buffer: [u64; SLOTS_MAX / 64],
    /// When its host last did its part in giving them back, and bytes towards the next time.
    got_on: Duration,
    moved: usize,
    /// The machine knows the queue's properties.
    pub(super) announced: bool,
    /// The worker has a command of it, before that: a Connect that waits, most likely.
    pub(super) connects: bool,
    /// The worker knows that it is gone.
    pub(super) left: bool,
    /// To be closed when what there is to say has been sent.
    pub(super) parting: bool,
    /// To be closed at the end of the turn.
    pub(super) over: bool,
    /// It is on the list of those with something to do.
    pub(super) is_listed: bool,
    /// When its time is checked next, if it is to be.
    pub(super) timer: Option<Duration>,
}

impl Link {
    pub(super) fn new(
        id: ConnectionId,
        serial: u32,
        place: usize,
        peer: SocketAddr,
        stream: Stream,
        machine: Connection,
        now: Duration,
    ) -> Self {
        Self {
            id,
            serial,
            place,
            peer,
            stream,
            machine,
            readable: true,
            watched: [false; 2],
            full: false,
            opened: now,
            last: now,
            wants: VecDeque::new(),
            in_line: false,
            served: now,
            held: 0,
            has_buffer: [0; SLOTS_MAX / 64],
            got_on: now,
            moved: 0,
            announced: false,
            connects: false,
            left: false,
            parting: false,
            over: false,
            is_listed: false,
            timer: None,
        }
    }

    /// Its place among the links.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// When it is closed if nothing more is heard: until its Connect, and once it has ended. `connects_in`: the time it
    /// has for its Connect.
    pub(super) fn time_limit(&self, connects_in: Duration) -> Option<Duration> {
        let opens = (!self.announced && !self.connects).then(|| self.opened.saturating_add(connects_in));
        [self.machine.time_limit(), opens].into_iter().flatten().min()
    }

    /// For how long it has waited for a buffer and got none.
    pub(super) fn waits_since(&self, now: Duration) -> Duration {
        if self.wants.is_empty() { Duration::ZERO } else { now.saturating_sub(self.served) }
    }

    /// It has buffers that only its host can free, and the host has not got on with that for so long.
    pub(super) fn is_stalled(&self, now: Duration, patience: Duration) -> bool {
        now.saturating_sub(self.got_on) >= patience && self.machine.waits_for_host()
    }

    /// Its clocks start again: this thread itself did not run.
    pub(super) fn restart_timers(&mut self, now: Duration) {
        (self.served, self.got_on) = (now, now);
    }

    pub(super) fn machine_is_full(&mut self) -> bool {
        self.machine.space().iter().all(|s| s.is_empty())
    }

    /// Reads what there is, as far as one turn goes; with `anyhow` also when nothing says that there is any.
    pub(super) fn read(
        &mut self,
        worker: &mut Worker,
        buffers: &mut Buffers,
        now: Duration,
        anyhow: bool,
    ) -> bool {
        let mut busy = false;
        for _ in 0..READS_A_TURN {
            if !(self.readable || anyhow) || self.over || self.parting {
                break;
            }
            let mut space = self.machine.space();
            let room: usize = space.iter().map(|s| s.len()).sum();
            if room == 0 {
                break;
            }
            let payload = if space[1].is_empty() { 0 } else { space[0].len() };
            match self.stream.receive(&mut space) {
                Ok(Some(0)) => {
                    self.over = true;
                    return true;
                }
                Ok(Some(n)) => {
                    busy = true;
                    self.last = now;
                    self.moved(n.min(payload), now);
                    self.machine.filled(n);
                    self.take_events(worker, buffers, now);
                    if n < room {
                        break; // most likely all there was
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "read failed");
                    self.over = true;
                    return true;
                }
            }
        }
        busy
    }

    /// Payload or answers went over the wire.
    fn moved(&mut self, bytes: usize, now: Duration) {
        self.moved += bytes;
        if self.moved >= PROGRESS_BYTES {
            (self.moved, self.got_on) = (0, now);
        }
    }

    pub(super) fn take_events(&mut self, worker: &mut Worker, buffers: &mut Buffers, now: Duration) {
        while !self.parting
            && let Some(event) = self.machine.next()
        {
            match event {
                Event::Command { slot, sqe, data } => {
                    let wants = sqe.transfer() == Transfer::ToHost && sqe.sgl().len > 0;
                    // What came in the capsule is in a buffer of the machine's own.
                    let asked = !data.is_empty() && sqe.sgl().kind != Sgl::IN_CAPSULE;
                    if asked {
                        self.got_on = now;
                    }
                    self.note_buffer(slot, wants || asked);
                    self.connects = !self.announced;
                    if wants {
                        self.want(Want::Command { slot, sqe }, worker, buffers, now);
                    } else {
                        worker.submit(CommandId { connection: self.id, slot }, &sqe, data);
                    }
                }
                Event::NeedBuffer { slot, len } => self.want(Want::Data { slot, len }, worker, buffers, now),
                Event::Broken(why) => tracing::warn!(peer = %self.peer, "{why}; the connection is closed"),
            }
        }
    }

    /// Whether the command of this slot has a buffer of the pool; gives what was said before.
    fn note_buffer(&mut self, slot: u16, has: bool) -> bool {
        let (word, bit) = (&mut self.has_buffer[usize::from(slot) / 64], 1 << (slot % 64));
        let before = *word & bit != 0;
        *word = if has { *word | bit } else { *word & !bit };
        before
    }

    fn want(&mut self, want: Want, worker: &mut Worker, buffers: &mut Buffers, now: Duration) {
        if buffers.line.is_empty()
            && may_take(self.held, buffers.pool.free())
            && let Some(buf) = buffers.pool.take(want.len())
        {
            return self.grant(want, buf, worker, now);
        }
        if !std::mem::replace(&mut self.in_line, true) {
            self.served = now;
            buffers.line.push_back(self.place);
        }
        self.wants.push_back(want);
    }

    fn grant(&mut self, want: Want, buf: Buf, worker: &mut Worker, now: Duration) {
        self.held += 1;
        self.served = now;
        match want {
            Want::Data { slot, .. } => {
                self.got_on = now; // it is asked only now
                self.machine.give(slot, buf);
            }
            Want::Command { slot, sqe } => worker.submit(CommandId { connection: self.id, slot }, &sqe, buf),
        }
    }

    /// Answers a command.
    pub(super) fn complete(&mut self, slot: u16, cqe: Cqe, data: Option<Buf>, now: Duration) {
        self.connects = false;
        let had_buffer = self.note_buffer(slot, false);
        let sends = data.is_some();
        let back = self.machine.complete(slot, cqe, data);
        if had_buffer && (!sends || back.is_some()) {
            self.held = self.held.saturating_sub(1);
        } else if sends {
            self.got_on = now; // it can take it only now
        }
    }

    pub(super) fn send(&mut self, back: &mut Vec<Buf>, now: Duration) -> bool {
        let mut busy = false;
        while !self.full && !self.over {
            let output = self.machine.output();
            if output.is_empty() {
                break;
            }
            match self.stream.send(&output) {
                Ok(Some(n)) => {
                    let before = back.len();
                    self.machine.sent(n, back);
                    if back.len() > before {
                        self.held = self.held.saturating_sub(back.len() - before);
                        self.got_on = now;
                    }
                    self.moved(n, now);
                    self.last = now;
                    busy = true;
                }
                Ok(None) => self.full = true,
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "write failed");
                    self.over = true;
                }
            }
        }
        busy
    }
}

#[cfg(test)]
mod tests {
    use super::may_take;

    /// Connections that take all they can get and give nothing back.
    fn hoard(buffers: usize, connections: usize) -> Vec<usize> {
        let (mut held, mut free) = (vec![0; connections], buffers);
        while let Some(at) = held.iter().position(|&h| may_take(h, free)) {
            (held[at], free) = (held[at] + 1, free - 1);
        }
        held
    }

    #[test]
    fn those_who_keep_what_they_get_leave_some_for_those_who_have_none() {
        assert_eq!(hoard(64, 1), [48]);
        assert_eq!(hoard(64, 2), [48, 12]);
        assert_eq!(hoard(64, 3), [48, 12, 3]);
        assert_eq!(hoard(1, 1), [1], "a single buffer is of use");
        assert!(!may_take(0, 0) && may_take(0, 1) && may_take(2, 1) && !may_take(3, 1));
    }
}

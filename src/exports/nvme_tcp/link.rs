//! One connection of a thread: its socket and its machine, and its turn for the thread's buffers.

use super::shares::{HostIndex, HostName, MemberIndex, OTHERS, Shares};
use crate::block::{Buf, LendingPool};
use crate::net::Stream;
use crate::nvme::command::Transfer;
use crate::nvme::tcp::controller::{Connection, Event};
use crate::nvme::{Cqe, Sqe};
use crate::nvmet::{CommandId, ConnectionId, Worker};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// Reads of one socket in one turn, so that a busy one does not hold up the others.
const READS_A_TURN: usize = 8;
/// Of the bytes that a host owes it gets on when it moves one in so many, or [`PROGRESS_BYTES`], in the time it is
/// given.
const PROGRESS_PART: u64 = 8;
const PROGRESS_BYTES: u64 = 64 << 10;

/// A command that waits for a buffer.
pub(super) enum Want {
    /// For data from the host: it is asked for then, or is in the capsule that arrives.
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

/// The payload buffers of a thread, and whose turn it is to get one.
pub(super) struct Buffers {
    pool: LendingPool,
    pub(super) shares: Shares,
    /// Places of links that got one since this was last emptied.
    pub(super) served: Vec<usize>,
}

impl Buffers {
    /// Buffers of these sizes, ascending: bytes and count. `None`: no memory.
    pub(super) fn new(sizes: &[(usize, usize)]) -> Option<Self> {
        Some(Self { pool: LendingPool::new(sizes)?, shares: Shares::new(sizes), served: Vec::new() })
    }

    /// A buffer showing `len` bytes, if the connection may have one now.
    fn take(&mut self, member: MemberIndex, len: usize) -> Option<Buf> {
        let class = self.shares.grant(member, len)?;
        let buf = self.pool.lend(class, len, member);
        debug_assert!(buf.is_some(), "as many buffers as the shares count");
        buf
    }

    /// Takes in what has come back.
    fn collect(&mut self) {
        let Self { pool, shares, .. } = self;
        pool.take_back(|class, member| shares.give_back(member, class));
    }

    /// Serves the links that wait, each host in turn. True when any got a buffer.
    pub(super) fn hand_out(
        &mut self,
        links: &mut [Option<Link>],
        worker: &mut Worker,
        now: Duration,
    ) -> bool {
        self.collect();
        if !self.shares.take_changed() {
            return false;
        }
        let (mut any, mut passed_over) = (false, 0);
        while passed_over < self.shares.round() {
            let Some((host, place)) = self.shares.next_turn() else { break };
            let link = links.get_mut(place).and_then(Option::as_mut);
            let Some((link, len)) = link.and_then(|l| l.wants.front().map(Want::len).map(|len| (l, len)))
            else {
                self.shares.stop_waiting(host, place);
                continue;
            };
            let Some(buf) = self.take(link.member, len) else {
                passed_over += 1;
                continue;
            };
            (any, passed_over) = (true, 0);
            link.grant_next(buf, worker, now);
            self.served.push(place);
            if link.wants.is_empty() {
                self.shares.stop_waiting(host, place);
            }
        }
        any
    }
}

/// Where a link is, and as what.
pub(super) struct Seat {
    pub(super) serial: u32,
    pub(super) place: usize,
    pub(super) member: MemberIndex,
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
    /// As what it has buffers, and the host whose share they are of.
    pub(super) member: MemberIndex,
    pub(super) host: HostIndex,
    /// Commands that wait for a buffer; the link is in line while there are any.
    pub(super) wants: VecDeque<Want>,
    /// When it last got one, or began to wait.
    served: Duration,
    /// Bytes it has sent; the sum of these and of the payload received when its host last got on, and when that was.
    sent_bytes: u64,
    moved_bytes: u64,
    got_on: Duration,
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
        seat: Seat,
        peer: SocketAddr,
        stream: Stream,
        machine: Connection,
        now: Duration,
    ) -> Self {
        let Seat { serial, place, member } = seat;
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
            member,
            host: OTHERS,
            wants: VecDeque::new(),
            served: now,
            sent_bytes: 0,
            moved_bytes: 0,
            got_on: now,
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

    /// The host of its association, once that is known, has a share of its own. False: there is none left.
    pub(super) fn belongs_to(&mut self, name: &HostName, buffers: &mut Buffers) -> bool {
        buffers.shares.stop_waiting(self.host, self.place);
        let Some(member) = buffers.shares.join(self.member, name) else { return false };
        (self.member, self.host) = (member, buffers.shares.host_of(member));
        if !self.wants.is_empty() {
            buffers.shares.wait(self.host, self.place);
        }
        true
    }

    /// It has waited for so long for a buffer that its host's share has room for.
    pub(super) fn is_starved(&self, now: Duration, patience: Duration, shares: &Shares) -> bool {
        let wants = self.wants.front().map(Want::len);
        let waits = wants.is_some_and(|len| shares.is_below_share(self.host, len));
        waits && now.saturating_sub(self.served) >= patience
    }

    /// It has buffers that only its host can free, and the host has not got on with that for so long. To be asked a
    /// few times in that time.
    pub(super) fn is_stalled(&mut self, now: Duration, patience: Duration) -> bool {
        let (owed, moved) = (self.machine.owed_bytes(), self.machine.payload_bytes() + self.sent_bytes);
        let enough = (owed / PROGRESS_PART).clamp(1, PROGRESS_BYTES);
        if owed == 0 || moved - self.moved_bytes >= enough {
            (self.moved_bytes, self.got_on) = (moved, now);
        }
        now.saturating_sub(self.got_on) >= patience
    }

    /// Its clocks stood still for so long, as this thread did.
    pub(super) fn stood_still(&mut self, time: Duration) {
        self.served += time;
        self.got_on += time;
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
            match self.stream.receive(&mut space) {
                Ok(Some(0)) => {
                    self.over = true;
                    return true;
                }
                Ok(Some(n)) => {
                    busy = true;
                    self.last = now;
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

    pub(super) fn take_events(&mut self, worker: &mut Worker, buffers: &mut Buffers, now: Duration) {
        self.use_own_buffer();
        while !self.parting
            && let Some(event) = self.machine.next()
        {
            match event {
                Event::Command { slot, sqe, data } => {
                    self.connects = !self.announced;
                    if sqe.transfer() == Transfer::ToHost && sqe.sgl().len > 0 {
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

    fn want(&mut self, want: Want, worker: &mut Worker, buffers: &mut Buffers, now: Duration) {
        // Nobody overtakes another connection of the same host.
        if self.wants.is_empty() && !buffers.shares.is_waiting(self.host) {
            let len = want.len();
            let buf = buffers.take(self.member, len).or_else(|| {
                buffers.collect();
                buffers.take(self.member, len)
            });
            if let Some(buf) = buf {
                return self.grant(want, buf, worker, now);
            }
        }
        if self.wants.is_empty() {
            self.served = now;
        }
        buffers.shares.wait(self.host, self.place);
        // What holds up the stream, and with it the data of others, goes first.
        if self.machine.capsule_waits() { self.wants.push_front(want) } else { self.wants.push_back(want) }
    }

    /// Lets a capsule that waits have the connection's own buffer, when that is free again.
    fn use_own_buffer(&mut self) {
        if let Some(place) = self.machine.use_own_buffer() {
            self.wants.retain(|want| !matches!(want, Want::Data { slot, .. } if *slot == place));
        }
    }

    /// A buffer for the command that waits longest.
    fn grant_next(&mut self, buf: Buf, worker: &mut Worker, now: Duration) {
        if let Some(want) = self.wants.pop_front() {
            self.grant(want, buf, worker, now);
        }
    }

    fn grant(&mut self, want: Want, buf: Buf, worker: &mut Worker, now: Duration) {
        self.served = now;
        match want {
            Want::Data { slot, .. } => self.machine.give(slot, buf),
            Want::Command { slot, sqe } => worker.submit(CommandId { connection: self.id, slot }, &sqe, buf),
        }
    }

    /// Answers a command.
    pub(super) fn complete(&mut self, slot: u16, cqe: Cqe, data: Option<Buf>) {
        self.connects = false;
        drop(self.machine.complete(slot, cqe, data));
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
                    self.machine.sent(n, back);
                    self.sent_bytes += n as u64;
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

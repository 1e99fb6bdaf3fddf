//! A queue whose every operation holds its range locks: what front ends open instead of a device's own queue.

use super::settle::Settler;
use super::{Begun, Claim, Claims, CopyTicket, CoreLocks, IoTicket, Mode, WaitId};
use crate::block::lazy;
use crate::block::places::{LeafRun, on_leaf, places};
use crate::block::{
    Access, ByteRange, Completion, Counters, Device, Identity, LeafId, Op, Queue, Request, Result,
};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Reads, writes, zeroes, discards and compares go straight through unless a copy is in the way; copies wait for their
/// turn. Flushes claim nothing, but where the device owes zeroes these are stored first, claimed as by a copy: the
/// device answers for what was zeroed before the flush came in. Where it owes too many, a write first stores some. Pump
/// the core's locks ([`CoreLocks::pump`]) once a turn, before [`Queue::poll`].
///
/// The tags of requests in flight must differ from each other, as those of one submitter do. Drop it when nothing is in
/// flight: what still waits for a copy gives up its wait, but I/O the device has begun keeps its claims until the core
/// is detached.
pub struct LockedQueue {
    inner: Box<dyn Queue>,
    device: Arc<dyn Device>,
    /// The device itself when it is a leaf: then nothing is resolved.
    leaf: Option<(LeafId, u64)>,
    /// Leaves opened for this queue: that one, or those of a map that were met so far.
    open: SmallVec<[LeafId; 1]>,
    locks: Rc<CoreLocks>,
    /// Reads, writes and the like that the device has begun.
    held: InFlight,
    /// Copies that the device has begun: few.
    held_copies: Vec<(u64, CopyTicket)>,
    waiting: Vec<(WaitId, Request)>,
    copies: VecDeque<(CopyTicket, Request)>,
    ready: VecDeque<Request>,
    early: Vec<Completion>,
    settler: Settler,
}

/// How often [`LockedQueue::try_submit`] looks whether a copy is granted: as long as another core takes to say that
/// nothing of its own is in the way, were it running.
const TRIES: u32 = 200;

impl LockedQueue {
    /// A queue of `device` on the calling thread, whose core `locks` is.
    pub fn open(device: Arc<dyn Device>, locks: Rc<CoreLocks>) -> Result<Self> {
        let leaf = match device.identity() {
            Identity::Leaf { leaf, base } => Some((leaf, base)),
            Identity::Map(_) => None,
        };
        let inner = device.clone().open_queue()?;
        let open: SmallVec<[LeafId; 1]> = leaf.iter().map(|&(leaf, _)| leaf).collect();
        open.iter().for_each(|&leaf| locks.open_leaf(leaf));
        Ok(Self {
            inner,
            device,
            leaf,
            open,
            locks,
            held: InFlight::default(),
            held_copies: Vec::new(),
            waiting: Vec::new(),
            copies: VecDeque::new(),
            ready: VecDeque::new(),
            early: Vec::new(),
            settler: Settler::default(),
        })
    }

    /// Begins a request if nothing is in its way now; else gives it back as it was. What is in the way of a copy is
    /// given a moment to get out of it; a flush is in its own way while zeroes are owed.
    ///
    /// Begun, it is as if submitted, its completion to be polled.
    pub fn try_submit(&mut self, request: Request) -> std::result::Result<(), Request> {
        let copies = matches!(request.op(), Op::Copy(_));
        match request.op().range() {
            None if lazy::any(&*self.device) => return Err(request),
            None => {}
            Some(_) if request.op().is_write() && lazy::too_many(&*self.device) => return Err(request),
            Some(range) if !copies && let Some((leaf, base)) = self.leaf => {
                let claim = Claim { leaf, range: shifted(range, base), mode: mode_of(request.op()) };
                if !self.try_io(request.tag(), &[claim]) {
                    return Err(request);
                }
            }
            Some(range) => {
                let claims = match self.claims_of_request(&request, range) {
                    Ok(claims) => claims,
                    Err(error) => {
                        self.early.push(request.complete_err(error));
                        return Ok(());
                    }
                };
                let begun = if copies {
                    self.try_copy(request.tag(), claims)
                } else {
                    self.try_io(request.tag(), &claims)
                };
                if !begun {
                    return Err(request);
                }
            }
        }
        self.ready.push_back(request);
        self.inner.submit(&mut self.ready);
        Ok(())
    }

    #[inline]
    fn try_io(&mut self, tag: u64, claims: &[Claim]) -> bool {
        match self.locks.begin_io(claims) {
            Begun::Held(ticket) => {
                self.held.insert(tag, ticket);
                true
            }
            Begun::Waiting(id) => {
                let ours = self.locks.cancel_wait(id);
                debug_assert!(ours, "nobody else knows of this wait");
                false
            }
        }
    }

    fn try_copy(&mut self, tag: u64, claims: Claims) -> bool {
        let ticket = self.locks.begin_copy(claims);
        for _ in 0..TRIES {
            if ticket.is_granted() {
                self.held_copies.push((tag, ticket));
                return true;
            }
            // The news of it is left to the pump of this turn: others look at their waits by it.
            self.locks.take_in();
            std::hint::spin_loop();
        }
        self.locks.end_copy(ticket);
        false
    }

    /// Where a range lies. All legs, also for a read: a mirror may serve it from any of them.
    fn claims(&mut self, range: ByteRange, mode: Mode, claims: &mut Claims) -> Result<()> {
        if let Some((leaf, base)) = self.leaf {
            claims.push(Claim { leaf, range: shifted(range, base), mode });
            return Ok(());
        }
        claims_of(&self.device, range, mode, claims)?;
        for claim in claims {
            if !self.open.contains(&claim.leaf) {
                self.locks.open_leaf(claim.leaf);
                self.open.push(claim.leaf);
            }
        }
        Ok(())
    }

    /// What a request claims, both ends of a copy.
    fn claims_of_request(&mut self, request: &Request, range: ByteRange) -> Result<Claims> {
        let mut claims = Claims::new();
        self.claims(range, mode_of(request.op()), &mut claims)?;
        if let Op::Copy(copy) = request.op() {
            for &from in &copy.sources {
                claims_of(&copy.source, from, Mode::Shared, &mut claims)?;
            }
        }
        Ok(claims)
    }

    /// Begins plain I/O on a leaf where it stands. True when all of the batch holds its claims; otherwise those that do
    /// have moved on to the device's line, and the batch begins with one that is not begun.
    #[inline]
    fn begin_in_place(&mut self, batch: &mut VecDeque<Request>) -> bool {
        let Some((leaf, base)) = self.leaf else { return false };
        for at in 0..batch.len() {
            let op = batch[at].op();
            let Some(range) = op.range() else {
                if lazy::any(&*self.device) {
                    self.ready.extend(batch.drain(..at));
                    return false;
                }
                continue;
            };
            let mode = mode_of(op);
            let claim = Claim { leaf, range: shifted(range, base), mode };
            let settles = mode == Mode::Exclusive && lazy::too_many(&*self.device);
            if !matches!(op, Op::Copy(_)) && !settles {
                match self.locks.begin_io(&[claim]) {
                    Begun::Held(ticket) => {
                        self.held.insert(batch[at].tag(), ticket);
                        continue;
                    }
                    Begun::Waiting(id) => self.waiting.extend(batch.remove(at).map(|request| (id, request))),
                }
            }
            self.ready.extend(batch.drain(..at));
            return false;
        }
        true
    }

    fn begin(&mut self, request: Request) {
        let is_flush = request.op().range().is_none();
        if (is_flush && lazy::any(&*self.device))
            || (request.op().is_write() && lazy::too_many(&*self.device))
        {
            return self.settler.add(&self.device, request);
        }
        self.begin_settled(request);
    }

    /// Begins what waits for no zeroes to be stored.
    fn begin_settled(&mut self, request: Request) {
        let Some(range) = request.op().range() else { return self.ready.push_back(request) };
        let claims = match self.claims_of_request(&request, range) {
            Ok(claims) => claims,
            Err(error) => return self.early.push(request.complete_err(error)),
        };
        if matches!(request.op(), Op::Copy(_)) {
            return self.copies.push_back((self.locks.begin_copy(claims), request));
        }
        match self.locks.begin_io(&claims) {
            Begun::Held(ticket) => {
                self.held.insert(request.tag(), ticket);
                self.ready.push_back(request);
            }
            Begun::Waiting(id) => self.waiting.push((id, request)),
        }
    }

    /// Moves what was granted meanwhile to the device.
    #[inline]
    fn advance(&mut self) {
        if !self.settler.is_idle() {
            // First: what it lets go of may be what others wait for.
            let mut settled = VecDeque::new();
            self.settler.advance(&self.locks, &mut settled, &mut self.early);
            settled.into_iter().for_each(|request| self.begin_settled(request));
        }
        if !(self.waiting.is_empty() && self.copies.is_empty()) {
            self.look_at_waits();
        }
        if !self.ready.is_empty() {
            self.inner.submit(&mut self.ready);
        }
    }

    #[cold]
    fn look_at_waits(&mut self) {
        // In the order they began to wait; what is still held up holds up only itself.
        let mut at = 0;
        while at < self.waiting.len() {
            let Some(ticket) = self.locks.take_released_one(self.waiting[at].0) else {
                at += 1;
                continue;
            };
            let (_, request) = self.waiting.remove(at);
            self.held.insert(request.tag(), ticket);
            self.ready.push_back(request);
        }
        let mut at = 0;
        while at < self.copies.len() {
            if !self.copies[at].0.is_granted() {
                at += 1;
                continue;
            }
            if let Some((ticket, request)) = self.copies.remove(at) {
                self.held_copies.push((request.tag(), ticket));
                self.ready.push_back(request);
            }
        }
    }

    /// Lets go of what a request held that has completed.
    #[inline]
    fn end(&mut self, tag: u64) {
        if let Some(ticket) = self.held.remove(tag) {
            self.locks.end_io(ticket);
        } else if let Some(at) = self.held_copies.iter().position(|(held, _)| *held == tag) {
            self.locks.end_copy(self.held_copies.swap_remove(at).1);
        }
    }
}

impl Queue for LockedQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        if self.ready.is_empty() && self.begin_in_place(batch) {
            // The usual case: nothing is in the way of any, so they go down as they came. What the device has no room
            // for holds its claims, and must not be begun again.
            self.inner.submit(batch);
            if !batch.is_empty() {
                self.ready.append(batch);
            }
            return;
        }
        while let Some(request) = batch.pop_front() {
            self.begin(request);
        }
        self.advance();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        loop {
            self.advance();
            done.append(&mut self.early);
            let first = done.len();
            self.inner.poll(done);
            for completion in &done[first..] {
                self.end(completion.tag);
            }
            // What has completed made room in the device, or let go of what waits here: nobody else would look again.
            let more = !(self.ready.is_empty()
                && self.waiting.is_empty()
                && self.copies.is_empty()
                && self.settler.is_idle());
            if done.len() == first || !more {
                return;
            }
        }
    }

    fn counters(&self) -> Counters {
        let mut sum = self.inner.counters();
        sum += self.settler.counters();
        sum
    }
}

impl Drop for LockedQueue {
    fn drop(&mut self) {
        // Parked, the table is not ours to touch; the core's end lets go of everything.
        if !self.locks.is_running() {
            return;
        }
        for &(id, _) in &self.waiting {
            let ours = self.locks.cancel_wait(id);
            debug_assert!(ours, "a wait of this queue is taken up by this queue only");
        }
        self.open.iter().for_each(|&leaf| self.locks.close_leaf(leaf));
    }
}

fn mode_of(op: &Op) -> Mode {
    if op.is_write() { Mode::Exclusive } else { Mode::Shared }
}

pub(super) fn shifted(range: ByteRange, base: u64) -> ByteRange {
    ByteRange::between(base.saturating_add(range.offset()), base.saturating_add(range.end()))
}

/// Adds the claims on a range of a device: on all legs of its leaves, also to read, as a mirror may serve it from any.
///
/// Errors: those of [`Device::resolve`].
pub fn claims_of(device: &Arc<dyn Device>, range: ByteRange, mode: Mode, claims: &mut Claims) -> Result<()> {
    if let Some((leaf, range)) = on_leaf(device, range) {
        claims.push(Claim { leaf, range, mode });
        return Ok(());
    }
    let runs = places(device, range, Access::Write)?;
    claims.extend(runs.iter().filter_map(LeafRun::on_leaf).map(|(leaf, range)| Claim { leaf, range, mode }));
    Ok(())
}

/// The tickets of requests in flight, by tag: a table in which a tag has [`NEAR`] places. Tags that count up, and
/// numbers of slots, find the first of theirs free; where all are taken the table doubles, and past that a ticket is
/// put aside.
#[derive(Default)]
pub(super) struct InFlight {
    /// A power of two of places to begin at, and `NEAR` more behind them; or empty.
    places: Vec<Option<(u64, IoTicket)>>,
    aside: Vec<(u64, IoTicket)>,
    live: usize,
}

/// Places of a tag.
const NEAR: usize = 4;

impl InFlight {
    /// The places of a tag: its low bits, stirred with the ones above 16, where front ends keep the number of a
    /// connection.
    #[inline]
    fn near(&mut self, tag: u64) -> &mut [Option<(u64, IoTicket)>] {
        let Some(begins) = self.places.len().checked_sub(NEAR) else { return &mut [] };
        let stirred = tag ^ (tag >> 16).wrapping_mul(0x9E37_79B1);
        let first = usize::try_from(stirred & (begins as u64 - 1)).expect("below the length");
        &mut self.places[first..first + NEAR]
    }

    #[inline]
    pub(super) fn insert(&mut self, tag: u64, ticket: IoTicket) {
        match self.near(tag).iter_mut().find(|place| place.is_none()) {
            Some(free) => *free = Some((tag, ticket)),
            None => return self.make_room(tag, ticket),
        }
        self.live += 1;
    }

    #[cold]
    fn make_room(&mut self, tag: u64, ticket: IoTicket) {
        if self.places.len() >= 8 * self.live.max(8) {
            self.live += 1;
            return self.aside.push((tag, ticket));
        }
        let begins = (2 * self.places.len().saturating_sub(NEAR)).max(64);
        let empty = std::iter::repeat_with(|| None).take(begins + NEAR).collect();
        let before = std::mem::replace(&mut self.places, empty);
        self.live = 0;
        for (tag, ticket) in
            before.into_iter().flatten().chain(std::mem::take(&mut self.aside)).chain([(tag, ticket)])
        {
            self.insert(tag, ticket);
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, tag: u64) -> Option<IoTicket> {
        let mut places = self.near(tag).iter_mut();
        let (_, ticket) = match places.find(|place| place.as_ref().is_some_and(|(held, _)| *held == tag)) {
            Some(place) => place.take()?,
            None => {
                let at = self.aside.iter().position(|(held, _)| *held == tag)?;
                self.aside.swap_remove(at)
            }
        };
        self.live -= 1;
        Some(ticket)
    }

    /// Tickets held, and places kept for them.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        (self.live, self.places.len() + self.aside.len())
    }
}

//! One way of I/O at a time: the gate that every request of a leaf passes before it goes direct or through the page
//! cache.
//!
//! A kernel keeps direct and buffered I/O on one file apart only as far as it must: side by side they lose writes and
//! make a later sync fail on a healthy disk. So each leaf has one [`Gate`] for all handles, queues and front ends of
//! the process. It counts what is in flight, lets one way through at a time once anything may write, and changes the
//! way only when nothing is in flight. It also keeps two writes apart that share a block, where one of them reads,
//! changes and writes that block.
//!
//! Pure: it makes no system call and never blocks. Who cannot go on keeps a [`Ticket`] and is woken.
//! `docs/notes/007-one-way.md`.

use super::ByteRange;
use crate::sys::sync::{AtomicBool, AtomicU32, Mutex, MutexGuard, Ordering, lock_modelled as lock};
use slab::Slab;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// Requests that could go direct and still go through the cache after the last one that had to: going back costs
/// writing the cache out, so it is not done for each.
pub const CACHED_RUN: u32 = 32;

/// The two ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Past the page cache (`O_DIRECT`).
    Direct,
    /// Through the page cache.
    Cached,
}

/// What a request can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Go either way.
    Either,
    /// Go through the cache only.
    Cached,
    /// Nothing of the cache is left behind by it and it waits for direct I/O itself, as a hole punched at whole pages:
    /// it goes beside either.
    Neutral,
}

/// The bytes a write touches, out to whole blocks, and which blocks at its ends it has to read and change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    whole: ByteRange,
    first: ByteRange,
    last: ByteRange,
}

impl Span {
    /// The span of a write of `range` in blocks of `block` bytes.
    pub fn of(range: ByteRange, block: u64) -> Self {
        let start = range.offset() / block * block;
        let end = range.end().div_ceil(block).saturating_mul(block);
        let edge = |ragged: bool, from: u64, to: u64| {
            if ragged { ByteRange::between(from, to) } else { ByteRange::default() }
        };
        Self {
            whole: ByteRange::between(start, end),
            first: edge(range.offset() != start, start, start.saturating_add(block)),
            last: edge(range.end() != end, end - block, end),
        }
    }

    /// The bytes out to whole blocks.
    pub fn whole(&self) -> ByteRange {
        self.whole
    }

    /// True when a block has to be read and changed.
    pub fn is_ragged(&self) -> bool {
        !self.first.is_empty() || !self.last.is_empty()
    }

    fn disturbs(&self, other: &Self) -> bool {
        [self.first, self.last].iter().any(|edge| edge.overlaps(other.whole))
    }

    /// True when the two must not be in flight together: one changes a block at its edge that the other writes too.
    fn excludes(&self, other: &Self) -> bool {
        self.disturbs(other) || other.disturbs(self)
    }
}

/// What asks to be let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What it can do.
    pub need: Need,
    /// The way it likes best, which counts only while nothing may write to the leaf.
    pub likes: Way,
    /// What it writes; `None` for a read.
    pub write: Option<Span>,
}

/// Called when it is worth asking again.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What has passed so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Passed {
    /// Requests that went direct, or beside either way.
    pub direct: u64,
    /// Requests that went through the cache.
    pub cached: u64,
    /// Times that the way changed.
    pub switches: u64,
    /// Requests that had to wait.
    pub waited: u64,
}

struct Waiting {
    id: u64,
    entry: Entry,
    wake: Wake,
}

struct State {
    way: Way,
    /// In flight: direct, cached.
    in_flight: [usize; 2],
    /// Handles that may write.
    writers: usize,
    /// The cache is being written out and dropped.
    switching: bool,
    /// Requests of either way that may still go through the cache.
    cached_left: u32,
    /// First come first.
    waiting: VecDeque<Waiting>,
    next_id: u64,
    /// Direct writes in flight.
    writes: Slab<Span>,
    /// Of those and of what waits: how many are ragged.
    ragged: usize,
    passed: Passed,
}

enum Verdict {
    Go(Way),
    Switch,
    Wait,
}

impl State {
    /// May `entry` go, which came after the first `earlier` of those that wait?
    fn judge(&self, entry: &Entry, earlier: usize) -> Verdict {
        let must_be_cached = entry.need == Need::Cached;
        if self.switching {
            return Verdict::Wait;
        }
        // A write in flight outlives its handle when its queue is dropped.
        if self.writers == 0 && self.writes.is_empty() {
            return Verdict::Go(if must_be_cached { Way::Cached } else { entry.likes });
        }
        let [direct, cached] = self.in_flight;
        if direct > 0 && cached > 0 {
            // Both from the time when nothing could write: they end by themselves.
            return Verdict::Wait;
        }
        let way = match (direct, cached) {
            (0, 0) => self.way,
            (_, 0) => Way::Direct,
            _ => Way::Cached,
        };
        match way {
            Way::Direct if must_be_cached && direct > 0 => Verdict::Wait,
            Way::Direct if must_be_cached => Verdict::Go(Way::Cached),
            Way::Direct => {
                // The way was never made clean: direct reads of a time without writers do not make it so.
                if self.way == Way::Cached {
                    return Verdict::Wait;
                }
                let mut before = self.waiting.iter().take(earlier);
                if before.any(|w| w.entry.need == Need::Cached) || self.is_excluded(entry, earlier) {
                    return Verdict::Wait;
                }
                Verdict::Go(Way::Direct)
            }
            Way::Cached if must_be_cached || entry.need == Need::Neutral || self.cached_left > 0 => {
                Verdict::Go(Way::Cached)
            }
            Way::Cached if cached == 0 => Verdict::Switch,
            Way::Cached => Verdict::Wait,
        }
    }

    fn is_excluded(&self, entry: &Entry, earlier: usize) -> bool {
        let Some(span) = &entry.write else { return false };
        if self.ragged == 0 && !span.is_ragged() {
            return false;
        }
        let waiting = self.waiting.iter().take(earlier).filter_map(|w| w.entry.write.as_ref());
        self.writes.iter().map(|(_, s)| s).chain(waiting).any(|other| other.excludes(span))
    }

    fn is_ragged(entry: &Entry) -> bool {
        entry.write.is_some_and(|s| s.is_ragged())
    }

    /// Wakers of all that wait.
    fn wakers(&self) -> Wakers {
        let mut out = Wakers::new();
        for waiting in &self.waiting {
            if !out.iter().any(|w| Arc::ptr_eq(w, &waiting.wake)) {
                out.push(waiting.wake.clone());
            }
        }
        out
    }
}

type Wakers = SmallVec<[Wake; 2]>;

fn ring(wakers: Wakers) {
    wakers.iter().for_each(|wake| wake());
}

/// The gate of a leaf.
pub struct Gate {
    state: Mutex<State>,
    /// Handles that may write, to be read without the lock.
    writers: AtomicU32,
    /// Direct I/O was refused once.
    direct_off: AtomicBool,
}

/// What came of asking.
pub enum Entered {
    /// Let through.
    Go(Pass),
    /// To wait, and to ask again with the ticket once woken. With a [`Switch`] the caller has to make the way clean
    /// first.
    Wait(Ticket, Option<Switch>),
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A gate of a leaf of which nothing is known: its cache is taken for dirty.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                way: Way::Cached,
                in_flight: [0; 2],
                writers: 0,
                switching: false,
                cached_left: 0,
                waiting: VecDeque::new(),
                next_id: 0,
                writes: Slab::new(),
                ragged: 0,
                passed: Passed::default(),
            }),
            writers: AtomicU32::new(0),
            direct_off: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// True while no handle may write: then both ways may be in flight, for reads cannot disturb each other.
    pub fn is_free(&self) -> bool {
        self.writers.load(Ordering::Acquire) == 0
    }

    /// Counts a handle that may write.
    pub fn add_writer(&self) {
        let mut state = self.state();
        state.writers += 1;
        self.writers.fetch_add(1, Ordering::Release);
    }

    /// A handle that may write has gone.
    pub fn remove_writer(&self) {
        let mut state = self.state();
        state.writers -= 1;
        self.writers.fetch_sub(1, Ordering::Release);
        let wakers = state.wakers();
        drop(state);
        ring(wakers);
    }

    /// Says that nothing of the leaf is cached, as when it was made just now. Without effect once anything has passed.
    pub fn assume_clean(&self) {
        let mut state = self.state();
        if state.in_flight == [0; 2] && state.passed == Passed::default() && !state.switching {
            state.way = Way::Direct;
        }
    }

    /// Direct I/O was refused: from now on nobody asks for it ([`Gate::may_go_direct`]).
    pub fn give_up_direct(&self) {
        self.direct_off.store(true, Ordering::Release);
    }

    /// True unless direct I/O was refused.
    pub fn may_go_direct(&self) -> bool {
        !self.direct_off.load(Ordering::Acquire)
    }

    /// What has passed so far.
    pub fn passed(&self) -> Passed {
        self.state().passed
    }

    /// Asks for a request to be let through. `ticket`: the place in line it has from asking before.
    ///
    /// A caller that holds a pass of one gate may wait for another only with [`Need::Cached`] or [`Need::Neutral`] on
    /// both: those never wait for each other.
    pub fn enter(self: &Arc<Self>, entry: Entry, ticket: Option<Ticket>, wake: &Wake) -> Entered {
        let mut entry = entry;
        if entry.need == Need::Either && !self.may_go_direct() {
            entry.need = Need::Cached;
        }
        let mut state = self.state();
        let place = ticket.as_ref().and_then(|t| state.waiting.iter().position(|w| w.id == t.id));
        let earlier = place.unwrap_or(state.waiting.len());
        let verdict = state.judge(&entry, earlier);
        let way = match verdict {
            Verdict::Go(way) => way,
            Verdict::Switch | Verdict::Wait => {
                let ticket = ticket.unwrap_or_else(|| {
                    let id = state.next_id;
                    state.next_id += 1;
                    state.ragged += usize::from(State::is_ragged(&entry));
                    state.passed.waited += 1;
                    state.waiting.push_back(Waiting { id, entry, wake: wake.clone() });
                    Ticket { gate: self.clone(), id }
                });
                let switch = matches!(verdict, Verdict::Switch).then(|| {
                    state.switching = true;
                    Switch { gate: Some(self.clone()) }
                });
                drop(state);
                return Entered::Wait(ticket, switch);
            }
        };
        if let Some(mut ticket) = ticket {
            ticket.id = u64::MAX;
            if let Some(waited) = place.and_then(|at| state.waiting.remove(at)) {
                state.ragged -= usize::from(State::is_ragged(&waited.entry));
            }
        }
        let mut wakers = Wakers::new();
        let mut write = None;
        match way {
            Way::Direct => {
                state.passed.direct += 1;
                if let Some(span) = entry.write {
                    state.ragged += usize::from(span.is_ragged());
                    write = Some(state.writes.insert(span));
                }
            }
            Way::Cached => {
                state.passed.cached += 1;
                if state.writers > 0 {
                    if state.way == Way::Direct {
                        state.way = Way::Cached;
                        state.passed.switches += 1;
                    }
                    if entry.need != Need::Either {
                        // It stays this way for a while: those that wait for the other may come along.
                        state.cached_left = CACHED_RUN;
                        wakers = state.wakers();
                    } else {
                        state.cached_left = state.cached_left.saturating_sub(1);
                    }
                }
            }
        }
        state.in_flight[way as usize] += 1;
        drop(state);
        ring(wakers);
        Entered::Go(Pass { gate: self.clone(), way, write })
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

/// The right to be in flight, given back when dropped.
#[must_use = "dropped, it ends the right to be in flight"]
pub struct Pass {
    gate: Arc<Gate>,
    way: Way,
    write: Option<usize>,
}

impl Pass {
    /// The way to go.
    pub fn way(&self) -> Way {
        self.way
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.in_flight[self.way as usize] -= 1;
        let mut freed = state.in_flight[self.way as usize] == 0;
        if let Some(key) = self.write {
            let span = state.writes.remove(key);
            state.ragged -= usize::from(span.is_ragged());
            freed |= span.is_ragged() || state.ragged > 0;
        }
        let wakers = if freed && !state.waiting.is_empty() { state.wakers() } else { Wakers::new() };
        drop(state);
        ring(wakers);
    }
}

/// A place in line. Dropped, the place is given up.
#[must_use = "dropped, the place in line is given up"]
pub struct Ticket {
    gate: Arc<Gate>,
    /// All ones: let through.
    id: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.id == u64::MAX {
            return;
        }
        let mut state = self.gate.state();
        if let Some(at) = state.waiting.iter().position(|w| w.id == self.id)
            && let Some(waited) = state.waiting.remove(at)
        {
            state.ragged -= usize::from(State::is_ragged(&waited.entry));
        }
        let wakers = state.wakers();
        drop(state);
        ring(wakers);
    }
}

/// The duty to write the cache out and drop it, while nothing is in flight and nothing is let through. Dropped without
/// [`Switch::done`] it has failed: the way stays through the cache.
#[must_use = "dropped, the switch has failed"]
pub struct Switch {
    gate: Option<Arc<Gate>>,
}

impl Switch {
    /// The cache is written out and dropped: direct I/O may go on.
    pub fn done(mut self) {
        self.end(true);
    }

    fn end(&mut self, clean: bool) {
        let Some(gate) = self.gate.take() else { return };
        let mut state = gate.state();
        state.switching = false;
        if clean {
            state.way = Way::Direct;
            state.passed.switches += 1;
        } else {
            state.cached_left = CACHED_RUN;
        }
        let wakers = state.wakers();
        drop(state);
        ring(wakers);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.end(false);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

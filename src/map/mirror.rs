//! Two devices with the same bytes: writes go to both, reads to one that is in sync.
//!
//! The device is cut into regions. Each region is whole on both legs, or current on one leg only: the other missed a
//! write, zero, discard or copy there. Reads of such a region go to the current leg, and a later failure there fails the
//! request: the stale leg never answers. A write that fails on both legs leaves every block old or new on each, maybe
//! not the same way, so one leg is made the current one (the one with more good bytes, else leg 0) and reads stay
//! the same from then on. The same rule holds for a guard dropped without commit, of which nothing is known.
//!
//! The record lives in memory: a mirror that is put together again starts in sync, so its owner must have copied the
//! current leg over the other first.

use super::fan::{self, Child, Fan, PARENTS_MAX};
use super::{
    OwnLimits, ReadGuard, Shape, commit_leg, copy_refused, mix_generations, refuse_shared_leaves, shape,
    stacked,
};
use crate::block::device::check_range;
use crate::block::{
    Access, ByteRange, Completion, Counters, Device, Error, Extent, Guard, GuardDuty, Identity, Kind, LeafId,
    Leg, LegResult, Limits, LimitsChange, Op, Piece, Queue, Request, Resolution, Result,
};
use slab::Slab;
use smallvec::SmallVec;
use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most regions: bounds the record (one byte each) to 16 MiB.
const REGIONS_MAX: u64 = 1 << 24;

/// Two devices with the same bytes.
pub struct Mirror {
    name: String,
    id: u64,
    legs: [Arc<dyn Device>; 2],
    size: u64,
    /// Of both legs; never changes.
    block_size: u32,
    region_bytes: NonZeroU64,
    regions: Mutex<Vec<Region>>,
    /// Regions that are current on one leg only: 0 lets reads pass without the lock.
    dirty: AtomicU64,
    generation: AtomicU64,
    limits: OwnLimits,
}

/// Where a region's bytes are current.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Region {
    Both,
    Only(u8),
}

impl Region {
    const fn only(leg: usize) -> Self {
        Self::Only(if leg == 0 { 0 } else { 1 })
    }

    /// The leg to read from.
    fn current(self) -> usize {
        match self {
            Self::Both => 0,
            Self::Only(leg) => usize::from(leg),
        }
    }
}

impl Mirror {
    /// A mirror of `legs`, in sync, keeping its record by regions of `region_bytes`.
    ///
    /// Errors: `InvalidInput` when the legs differ in size, when the size is no multiple of the larger block size, or when
    /// `region_bytes` is no multiple of it or gives more than 16 Mi regions; `Overlap` when the legs share blocks.
    pub fn new(
        name: impl Into<String>,
        legs: [Arc<dyn Device>; 2],
        region_bytes: NonZeroU64,
    ) -> Result<Self> {
        let name = name.into();
        let bad = |message: String| Err(Error::new(Kind::InvalidInput, message).on(&name));
        let block_size = stacked(&legs).block_size.get();
        let block = u64::from(block_size);
        let size = legs[0].size();
        if legs[1].size() != size {
            return bad(format!(
                "the legs have {size} and {} bytes; use a range of the longer one",
                legs[1].size()
            ));
        }
        if !size.is_multiple_of(block) {
            return bad(format!(
                "the legs have {size} bytes, no multiple of the map's block size ({block} bytes); use ranges that are"
            ));
        }
        if !region_bytes.get().is_multiple_of(block) {
            return bad(format!(
                "a region of {region_bytes} bytes is no multiple of the map's block size ({block} bytes)"
            ));
        }
        let count = size.div_ceil(region_bytes.get());
        let table = match usize::try_from(count) {
            Ok(n) if count <= REGIONS_MAX => vec![Region::Both; n],
            _ => return bad(format!("{count} regions are more than {REGIONS_MAX}; use longer regions")),
        };
        refuse_shared_leaves(&name, &legs)?;
        let limits = OwnLimits::new(&legs);
        Ok(Self {
            name,
            id: LeafId::fresh().id.0,
            legs,
            size,
            block_size,
            region_bytes,
            regions: Mutex::new(table),
            dirty: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            limits,
        })
    }

    /// Numbers of the regions where `leg` (0 or 1) is out of sync, in order. Region n begins at byte n times the region size.
    pub fn dirty_regions(&self, leg: usize) -> Vec<u64> {
        let other = Region::only(1 - leg.min(1));
        self.lock().iter().zip(0..).filter(|&(&r, _)| r == other).map(|(_, n)| n).collect()
    }

    /// Size of a region in bytes.
    pub fn region_bytes(&self) -> u64 {
        self.region_bytes.get()
    }

    /// Differs when a leg's in-sync state changed.
    pub(super) fn mapping_generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Region>> {
        // Regions change one at a time, each to a valid state.
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The regions under `range`: (index, the part of `range` in it), in order.
    fn regions_of(&self, range: ByteRange) -> impl Iterator<Item = (usize, ByteRange)> {
        let unit = self.region_bytes.get();
        let mut rest = range;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let index = rest.offset() / unit;
            let part = rest.prefix(unit - rest.offset() % unit);
            rest = rest.after(part.len());
            Some((usize::try_from(index).expect("below the region count, which is a usize"), part))
        })
    }

    /// The leg to read each part of `range` from, in order; neighbours on one leg are one run.
    fn read_runs(&self, range: ByteRange) -> SmallVec<[(ByteRange, usize); 1]> {
        let mut runs: SmallVec<[(ByteRange, usize); 1]> = SmallVec::new();
        if self.dirty.load(Ordering::Acquire) == 0 {
            runs.push((range, 0));
            return runs;
        }
        let regions = self.lock();
        for (index, part) in self.regions_of(range) {
            let leg = regions[index].current();
            match runs.last_mut() {
                Some((run, on)) if *on == leg => *run = ByteRange::between(run.offset(), part.end()),
                _ => runs.push((part, leg)),
            }
        }
        if runs.is_empty() {
            runs.push((range, 0));
        }
        runs
    }

    /// True when all of `range` may be read from `leg`.
    fn is_current(&self, range: ByteRange, leg: usize) -> bool {
        let stale = Region::only(1 - leg);
        let regions = self.lock();
        self.regions_of(range).all(|(index, _)| regions[index] != stale)
    }

    /// Records what a write of `range` left on each leg: lengths of the good prefixes, in bytes.
    ///
    /// Returns the good prefix of the mirror and, when that is not the whole, the leg whose failure decided it.
    fn settle(&self, range: ByteRange, good: [u64; 2]) -> (u64, Option<usize>) {
        if good[0] >= range.len() && good[1] >= range.len() {
            return (range.len(), None);
        }
        let mut regions = self.lock();
        let (mut total, mut decided_by, mut newly_dirty) = (0, None, 0);
        for (index, part) in self.regions_of(range) {
            let start = part.offset() - range.offset();
            let here = good.map(|g| g.saturating_sub(start).min(part.len()));
            let whole = here.map(|g| g == part.len());
            if regions[index] == Region::Both && whole != [true, true] {
                // The leg with more good bytes is the current one from now on; leg 0 when neither has.
                regions[index] = Region::only(usize::from(here[1] > here[0]));
                newly_dirty += 1;
            }
            let (have, leg) = match regions[index] {
                Region::Both => (part.len(), 0),
                Region::Only(leg) => (here[usize::from(leg)], usize::from(leg)),
            };
            if decided_by.is_none() {
                total += have;
                decided_by = (have < part.len()).then_some(leg);
            }
        }
        self.note_dirty(newly_dirty);
        (total, decided_by)
    }

    /// Records that `leg` could not be flushed: what was written there before may be lost, wherever it was.
    ///
    /// Returns whether the mirror is durable all the same: no region is current on that leg only.
    fn settle_flush(&self, leg: usize) -> bool {
        let mut regions = self.lock();
        let mut newly_dirty = 0;
        for region in regions.iter_mut().filter(|r| **r == Region::Both) {
            *region = Region::only(1 - leg);
            newly_dirty += 1;
        }
        self.note_dirty(newly_dirty);
        regions.iter().all(|&r| r != Region::only(leg))
    }

    /// Called under the lock. The generation is last: who sees it new sees the count new too.
    fn note_dirty(&self, newly: u64) {
        if newly > 0 {
            self.dirty.fetch_add(newly, Ordering::Release);
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    fn check(&self, range: ByteRange) -> Result<()> {
        check_range(range, self.size, self.block_size).map_err(|e| e.on(&self.name))
    }

    fn resolve_read(self: Arc<Self>, range: ByteRange) -> Result<Resolution> {
        // Read before the runs: a change in between shows as a guard that is not valid.
        let then = self.mapping_generation();
        let mut pieces = SmallVec::new();
        let mut guards: SmallVec<[Guard; 2]> = SmallVec::new();
        for (run, leg) in self.read_runs(range) {
            match self.legs[leg].clone().resolve(run, Access::Read) {
                Ok(resolution) => {
                    pieces.extend(resolution.pieces);
                    guards.push(resolution.guard);
                }
                Err(error) => {
                    guards.into_iter().for_each(Guard::release);
                    return Err(error);
                }
            }
        }
        Ok(Resolution {
            pieces,
            guard: Guard::new(ReadGuard { legs: guards, chosen_by: Some((self, then)) }),
        })
    }

    fn resolve_write(self: Arc<Self>, range: ByteRange) -> Result<Resolution> {
        let first = self.legs[0].clone().resolve(range, Access::Write)?;
        let second = match self.legs[1].clone().resolve(range, Access::Write) {
            Ok(second) => second,
            Err(error) => {
                first.guard.release();
                return Err(error);
            }
        };
        let shapes = [shape(&first), shape(&second)];
        let (pieces, from) = join(&first, &second);
        let guards = [first.guard, second.guard];
        Ok(Resolution { pieces, guard: Guard::new(WriteGuard { mirror: self, range, guards, shapes, from }) })
    }
}

impl Device for Mirror {
    fn name(&self) -> &str {
        &self.name
    }
    fn identity(&self) -> Identity {
        Identity::Map(self.id)
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn read_only(&self) -> bool {
        self.legs.iter().any(|leg| leg.read_only())
    }
    fn limits(&self) -> Limits {
        self.limits.get(&self.legs)
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.limits.change(&self.legs, change)
    }
    fn generation(&self) -> u64 {
        mix_generations(&[self.mapping_generation(), self.legs[0].generation(), self.legs[1].generation()])
    }
    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        self.check(range)?;
        let (run, leg) = self.read_runs(range)[0];
        self.legs[leg].next_extent(run)
    }
    fn copies(&self, range: ByteRange) -> Option<Vec<crate::block::CopyAt>> {
        let mut all = Vec::new();
        for (_, part) in self.regions_of(range) {
            for leg in (0..2).filter(|&leg| self.is_current(part, leg)) {
                all.extend(crate::block::device::copies_of(&self.legs[leg], part));
            }
        }
        Some(all)
    }
    fn resolve(self: Arc<Self>, range: ByteRange, access: Access) -> Result<Resolution> {
        self.check(range)?;
        match access {
            Access::Read => self.resolve_read(range),
            // Both legs whatever their state: a stale one is not made worse, and need not be looked up.
            Access::Write => self.resolve_write(range),
        }
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let fan = Fan::open(&self.legs)?;
        Ok(Box::new(MirrorQueue {
            device: self,
            fan,
            parents: Slab::new(),
            done: Vec::new(),
            ended: Vec::new(),
        }))
    }
    fn owes_zeroes(&self) -> bool {
        self.legs.iter().any(|leg| leg.owes_zeroes())
    }
    fn owes_too_much(&self) -> bool {
        self.legs.iter().any(|leg| leg.owes_too_much())
    }
    fn owing(self: Arc<Self>, leaves: &mut Vec<Arc<dyn Device>>) {
        self.legs.iter().for_each(|leg| leg.clone().owing(leaves));
    }
    fn reads_as_stored(&self, range: ByteRange) -> bool {
        self.legs.iter().all(|leg| leg.reads_as_stored(range))
    }
    /// Of the leg that takes more: a mirror is as large as one of them.
    fn allocated_bytes(&self) -> Option<u64> {
        let [first, second] = self.legs.each_ref().map(|leg| leg.allocated_bytes());
        first.zip(second).map(|(a, b)| a.max(b))
    }
    fn may_wait(&self) -> bool {
        self.legs.iter().any(|leg| leg.may_wait())
    }
    fn counters(&self) -> Counters {
        let mut sum = self.legs[0].counters();
        sum += self.legs[1].counters();
        sum
    }
    fn cache_losses(&self) -> Option<u64> {
        self.legs.iter().filter_map(|leg| leg.cache_losses()).reduce(u64::wrapping_add)
    }
    fn drop_cache(&self) {
        self.legs.iter().for_each(|leg| leg.drop_cache());
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Where a piece of the mirror's resolution comes from, on each leg.
#[derive(Clone, Copy)]
struct From {
    /// Number of the leg's own piece.
    piece: [usize; 2],
    /// Length in bytes.
    len: u64,
}

/// Lays two resolutions of one range over each other: a piece ends where a piece of either ends, and has the legs of both.
fn join(a: &Resolution, b: &Resolution) -> (SmallVec<[Piece; 1]>, Vec<From>) {
    let (mut pieces, mut from) = (SmallVec::new(), Vec::new());
    let (mut at, mut used) = ([0; 2], [0; 2]);
    while let (Some(pa), Some(pb)) = (a.pieces.get(at[0]), b.pieces.get(at[1])) {
        let len = (pa.len - used[0]).min(pb.len - used[1]);
        let moved = |leg: &Leg, used: u64| Leg { device: leg.device.clone(), offset: leg.offset + used };
        let legs = pa.legs.iter().map(|l| moved(l, used[0])).chain(pb.legs.iter().map(|l| moved(l, used[1])));
        pieces.push(Piece { len, legs: legs.collect() });
        from.push(From { piece: at, len });
        for (side, whole) in [pa.len, pb.len].into_iter().enumerate() {
            used[side] += len;
            if used[side] == whole {
                at[side] += 1;
                used[side] = 0;
            }
        }
    }
    (pieces, from)
}

/// Tells both legs what was written, in their own numbers, and marks regions as a write through the mirror would have.
struct WriteGuard {
    mirror: Arc<Mirror>,
    range: ByteRange,
    guards: [Guard; 2],
    shapes: [Shape; 2],
    from: Vec<From>,
}

impl WriteGuard {
    /// What was written on `side`, in the numbers of that leg's own resolution.
    ///
    /// A leg's piece may have been cut into several of ours: its good prefix goes on as long as they are whole.
    fn on_side(&self, side: usize, written: &HashMap<(usize, usize), u64>) -> Vec<LegResult> {
        let mut results: Vec<LegResult> = Vec::new();
        // Bytes of the leg's present piece that lie before ours.
        let mut before = 0;
        for (index, from) in self.from.iter().enumerate() {
            let piece = from.piece[side];
            if index > 0 && self.from[index - 1].piece[side] != piece {
                before = 0;
            }
            let first_leg = if side == 0 { 0 } else { self.shapes[0][from.piece[0]].1 };
            for leg in 0..self.shapes[side][piece].1 {
                let good_bytes = written.get(&(index, first_leg + leg)).map_or(0, |&g| g.min(from.len));
                if before == 0 {
                    results.push(LegResult { piece, leg, good_bytes });
                } else if let Some(held) = results.iter_mut().rev().find(|r| r.piece == piece && r.leg == leg)
                    && held.good_bytes == before
                {
                    held.good_bytes += good_bytes;
                }
            }
            before += from.len;
        }
        results
    }
}

impl GuardDuty for WriteGuard {
    fn still_valid(&self) -> bool {
        self.guards.iter().all(Guard::still_valid)
    }
    fn commit(self: Box<Self>, written: &[LegResult]) -> (u64, Result<()>) {
        let mut by_leg: HashMap<(usize, usize), u64> = HashMap::new();
        for w in written {
            by_leg.entry((w.piece, w.leg)).and_modify(|g| *g = w.good_bytes.min(*g)).or_insert(w.good_bytes);
        }
        let mine = [self.on_side(0, &by_leg), self.on_side(1, &by_leg)];
        let Self { mirror, range, guards, shapes, .. } = *self;
        let [first, second] = guards;
        let (good0, result0) = commit_leg(first, &shapes[0], &mine[0]);
        let (good1, result1) = commit_leg(second, &shapes[1], &mine[1]);
        let (good, decided_by) = mirror.settle(range, [good0, good1]);
        match decided_by {
            None => (good, Ok(())),
            Some(leg) => (good, if leg == 0 { result0 } else { result1 }),
        }
    }
    fn release(self: Box<Self>) {
        self.guards.into_iter().for_each(Guard::release);
    }
}

/// A request whose children are in flight.
struct Parent {
    request: Request,
    left: usize,
    work: Work,
}

enum Work {
    /// Both legs, the whole range: what each reported.
    Write {
        good: [u64; 2],
        errors: [Option<Error>; 2],
    },
    /// One leg for each run.
    Read {
        runs: SmallVec<[Run; 1]>,
    },
    Flush {
        errors: [Option<Error>; 2],
    },
}

/// A part of a read or compare.
struct Run {
    range: ByteRange,
    good_bytes: u64,
    error: Option<Error>,
    /// The other leg was asked too.
    retried: bool,
}

impl Run {
    fn new(range: ByteRange) -> Self {
        Self { range, good_bytes: 0, error: None, retried: false }
    }
}

struct MirrorQueue {
    device: Arc<Mirror>,
    fan: Fan,
    parents: Slab<Parent>,
    done: Vec<Completion>,
    ended: Vec<(Child, Completion)>,
}

impl MirrorQueue {
    fn start(&mut self, request: Request) {
        let Some(range) = request.op().range() else {
            let work = Work::Flush { errors: [None, None] };
            let parent = self.parents.insert(Parent { request, left: 2, work });
            for leg in [0, 1] {
                self.fan.send(Child { parent, part: leg, leg, len: 0 }, Op::Flush);
            }
            return;
        };
        let refused = match request.op() {
            Op::Copy(_) => Some(copy_refused(&self.device.name)),
            _ => self.device.check(range).err(),
        };
        if let Some(error) = refused {
            self.done.push(request.complete_err(error));
        } else if range.is_empty() {
            self.done.push(request.complete_ok());
        } else if request.op().is_write() {
            self.start_write(request, range);
        } else {
            self.start_read(request, range);
        }
    }

    fn start_write(&mut self, mut request: Request, range: ByteRange) {
        // The first leg borrows the request's buffer, the second gets a copy.
        let Some(copy) = fan::buf_for_part(request.op(), 0, range.len()) else {
            let error = fan::no_memory(&self.device.name, range);
            self.done.push(request.complete_err(error));
            return;
        };
        let lent = request.take_buf();
        let ops = [lent, copy].map(|buf| fan::op_on_leg(request.op(), range, buf));
        let work = Work::Write { good: [0; 2], errors: [None, None] };
        let parent = self.parents.insert(Parent { request, left: 2, work });
        for (leg, op) in ops.into_iter().enumerate() {
            self.fan.send(Child { parent, part: leg, leg, len: range.len() }, op);
        }
    }

    fn start_read(&mut self, mut request: Request, range: ByteRange) {
        let runs = self.device.read_runs(range);
        let mut ops: SmallVec<[Op; 1]> = SmallVec::new();
        for &(run, _) in &runs {
            let at = run.offset() - range.offset();
            let buf = if runs.len() == 1 {
                request.take_buf()
            } else if let Some(buf) = fan::buf_for_part(request.op(), at, run.len()) {
                buf
            } else {
                let error = fan::no_memory(&self.device.name, range);
                self.done.push(request.complete_err(error));
                return;
            };
            ops.push(fan::op_on_leg(request.op(), run, buf));
        }
        let work = Work::Read { runs: runs.iter().map(|&(run, _)| Run::new(run)).collect() };
        let parent = self.parents.insert(Parent { request, left: runs.len(), work });
        for (part, (&(run, leg), op)) in runs.iter().zip(ops).enumerate() {
            self.fan.send(Child { parent, part, leg, len: run.len() }, op);
        }
    }

    fn end(&mut self, child: Child, done: Completion) {
        let parent = &mut self.parents[child.parent];
        match &mut parent.work {
            Work::Write { good, errors } => {
                good[child.leg] = done.good_bytes;
                errors[child.leg] = done.result.err();
                if child.leg == 0 {
                    fan::return_buf(parent.request.op_mut(), done.buf);
                }
            }
            Work::Flush { errors } => errors[child.leg] = done.result.err(),
            Work::Read { runs } => {
                let lent = runs.len() == 1;
                let run = &mut runs[child.part];
                let other = 1 - child.leg;
                let failed = done.result.as_ref().is_err_and(|e| e.kind() != Kind::Mismatch);
                if failed && !run.retried && self.device.is_current(run.range, other) {
                    run.retried = true;
                    let op = fan::op_on_leg(parent.request.op(), run.range, done.buf);
                    self.fan.send(Child { leg: other, ..child }, op);
                    return;
                }
                run.good_bytes = done.good_bytes;
                run.error = done.result.err();
                let start = parent.request.op().range().map_or(0, ByteRange::offset);
                let at = run.range.offset() - start;
                if lent {
                    fan::return_buf(parent.request.op_mut(), done.buf);
                } else {
                    fan::return_part(parent.request.op_mut(), at, &done.buf, done.good_bytes);
                }
            }
        }
        parent.left -= 1;
        if parent.left == 0 {
            let parent = self.parents.remove(child.parent);
            let done = self.finish(parent);
            self.done.push(done);
        }
    }

    fn finish(&self, parent: Parent) -> Completion {
        let Parent { request, work, .. } = parent;
        let (good, error) = match work {
            Work::Write { good, errors } => {
                let range = request.op().range().expect("a write has a range");
                let [first, second] = errors;
                let untouched = |e: &Option<Error>| e.as_ref().is_some_and(|e| e.kind() == Kind::Unsupported);
                if good == [0, 0] && untouched(&first) && untouched(&second) {
                    // Neither leg knows the operation: nothing changed, nothing to mark.
                    (0, first)
                } else {
                    let (good, decided_by) = self.device.settle(range, good);
                    (good, decided_by.and_then(|leg| if leg == 0 { first } else { second }))
                }
            }
            Work::Read { runs } => {
                let (mut good, mut error) = (0, None);
                for run in runs {
                    good += run.good_bytes;
                    error = run.error;
                    if error.is_some() {
                        break;
                    }
                }
                (good, error)
            }
            Work::Flush { errors: [None, None] } => (0, None),
            Work::Flush { errors: [Some(first), Some(_)] } => (0, Some(first)),
            Work::Flush { errors: [first, second] } => {
                let durable = self.device.settle_flush(if first.is_some() { 0 } else { 1 });
                (0, if durable { None } else { first.or(second) })
            }
        };
        request.complete(good, error.map_or(Ok(()), Err))
    }
}

impl Queue for MirrorQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        while self.parents.len() < PARENTS_MAX
            && let Some(request) = batch.pop_front()
        {
            self.start(request);
        }
        self.fan.push();
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut ended = std::mem::take(&mut self.ended);
        self.fan.poll(&mut ended);
        for (child, completion) in ended.drain(..) {
            self.end(child, completion);
        }
        self.ended = ended;
        // Retries start at once.
        self.fan.push();
        done.append(&mut self.done);
    }
    fn counters(&self) -> Counters {
        self.fan.counters()
    }
}

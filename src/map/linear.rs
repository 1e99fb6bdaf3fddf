//! Two devices end to end: the second begins where the first ends.

use super::fan::{self, Child, Fan, PARENTS_MAX};
use super::{
    OwnLimits, ReadGuard, Shape, commit_leg, copy_refused, mix_generations, refuse_shared_leaves, shape,
    stacked,
};
use crate::block::device::check_range;
use crate::block::{
    Access, ByteRange, Completion, Counters, Device, Error, Extent, Guard, GuardDuty, Identity, Kind,
    LEN_MAX, LeafId, LegResult, Limits, LimitsChange, Op, Queue, Request, Resolution, Result,
};
use slab::Slab;
use smallvec::SmallVec;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

/// Two devices end to end.
pub struct Linear {
    name: String,
    id: u64,
    legs: [Arc<dyn Device>; 2],
    /// Bytes on the first leg: where the second begins.
    border: u64,
    size: u64,
    /// Of both legs; never changes.
    block_size: u32,
    limits: OwnLimits,
}

impl Linear {
    /// `legs[1]` behind `legs[0]`. Sizes are those of now.
    ///
    /// Errors: `InvalidInput` when a leg's size is no multiple of the larger block size, or both together pass
    /// 2^63 - 1 bytes; `Overlap` when the legs share blocks.
    pub fn new(name: impl Into<String>, legs: [Arc<dyn Device>; 2]) -> Result<Self> {
        let name = name.into();
        let block_size = stacked(&legs).block_size.get();
        let block = u64::from(block_size);
        let sizes = [legs[0].size(), legs[1].size()];
        for (leg, size) in legs.iter().zip(sizes) {
            if !size.is_multiple_of(block) {
                let message = format!(
                    "{} has {size} bytes, no multiple of the map's block size ({block} bytes); use a range of it that is",
                    leg.name()
                );
                return Err(Error::new(Kind::InvalidInput, message).on(&name));
            }
        }
        let size = sizes[0].checked_add(sizes[1]).filter(|&s| s <= LEN_MAX).ok_or_else(|| {
            let message = format!(
                "{} and {} bytes together pass the largest device size ({LEN_MAX} bytes)",
                sizes[0], sizes[1]
            );
            Error::new(Kind::InvalidInput, message).on(&name)
        })?;
        refuse_shared_leaves(&name, &legs)?;
        let limits = OwnLimits::new(&legs);
        Ok(Self { name, id: LeafId::fresh().id.0, legs, border: sizes[0], size, block_size, limits })
    }

    /// The parts of `range`: (leg, range on it), in order.
    fn parts(&self, range: ByteRange) -> SmallVec<[(usize, ByteRange); 2]> {
        let mut parts = SmallVec::new();
        if range.offset() < self.border {
            parts.push((0, ByteRange::between(range.offset(), range.end().min(self.border))));
        }
        if range.end() > self.border {
            let start = range.offset().max(self.border);
            parts.push((1, ByteRange::between(start - self.border, range.end() - self.border)));
        }
        parts
    }

    fn check(&self, range: ByteRange) -> Result<()> {
        check_range(range, self.size, self.block_size).map_err(|e| e.on(&self.name))
    }
}

impl Device for Linear {
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
        mix_generations(&[self.legs[0].generation(), self.legs[1].generation()])
    }
    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        self.check(range)?;
        match self.parts(range).first() {
            Some(&(leg, part)) => self.legs[leg].next_extent(part),
            None => self.legs[0].next_extent(ByteRange::to(0)),
        }
    }
    fn copies(&self, range: ByteRange) -> Option<Vec<crate::block::CopyAt>> {
        let mut all = Vec::new();
        for (leg, part) in self.parts(range) {
            let base = if leg == 0 { 0 } else { self.border };
            all.extend(crate::block::device::copies_of(&self.legs[leg], part).into_iter().map(|mut one| {
                one.range = ByteRange::between(base + one.range.offset(), base + one.range.end());
                one
            }));
        }
        Some(all)
    }
    fn resolve(self: Arc<Self>, range: ByteRange, access: Access) -> Result<Resolution> {
        self.check(range)?;
        let mut pieces = SmallVec::new();
        let mut legs: SmallVec<[(Guard, Shape); 2]> = SmallVec::new();
        for (leg, part) in self.parts(range) {
            match self.legs[leg].clone().resolve(part, access) {
                Ok(resolution) => {
                    legs.push((Guard::none(), shape(&resolution)));
                    pieces.extend(resolution.pieces);
                    if let Some(last) = legs.last_mut() {
                        last.0 = resolution.guard;
                    }
                }
                Err(error) => {
                    // Nothing was begun on the leg resolved before.
                    legs.into_iter().for_each(|(guard, _)| guard.release());
                    return Err(error);
                }
            }
        }
        let guard = match access {
            Access::Read => {
                let legs = legs.into_iter().map(|(guard, _)| guard).collect();
                Guard::new(ReadGuard { legs, chosen_by: None })
            }
            Access::Write => Guard::new(WriteGuard { legs }),
        };
        Ok(Resolution { pieces, guard })
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let fan = Fan::open(&self.legs)?;
        Ok(Box::new(LinearQueue {
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
        self.parts(range).iter().all(|&(leg, part)| self.legs[leg].reads_as_stored(part))
    }
    fn allocated_bytes(&self) -> Option<u64> {
        let [first, second] = self.legs.each_ref().map(|leg| (leg.allocated_bytes(), leg.size()));
        match (first.0, second.0) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(first.1).saturating_add(b.unwrap_or(second.1))),
        }
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

/// Hands each leg its part of what was written, and puts the prefixes together.
struct WriteGuard {
    legs: SmallVec<[(Guard, Shape); 2]>,
}

impl GuardDuty for WriteGuard {
    fn still_valid(&self) -> bool {
        self.legs.iter().all(|(guard, _)| guard.still_valid())
    }
    fn commit(self: Box<Self>, written: &[LegResult]) -> (u64, Result<()>) {
        let (mut good, mut result, mut first) = (0, Ok(()), 0);
        for (guard, shape) in self.legs {
            let mine: Vec<_> = written
                .iter()
                .filter(|w| (first..first + shape.len()).contains(&w.piece))
                .map(|w| LegResult { piece: w.piece - first, ..*w })
                .collect();
            first += shape.len();
            // Each leg hears of its part, also behind the first failure.
            let (part, part_result) = commit_leg(guard, &shape, &mine);
            if result.is_ok() {
                good += part;
                result = part_result;
            }
        }
        (good, result)
    }
    fn release(self: Box<Self>) {
        self.legs.into_iter().for_each(|(guard, _)| guard.release());
    }
}

/// A request whose parts are in flight.
struct Parent {
    request: Request,
    left: usize,
    /// True while the request's buffer is lent to its only part.
    lent: bool,
    parts: [Part; 2],
}

/// What became of the part on one leg.
#[derive(Default)]
struct Part {
    /// Where it begins within the request, in bytes.
    at: u64,
    good_bytes: u64,
    error: Option<Error>,
}

impl Parent {
    fn finish(self) -> Completion {
        let [first, second] = self.parts;
        let good = first.good_bytes + if first.error.is_none() { second.good_bytes } else { 0 };
        self.request.complete(good, first.error.or(second.error).map_or(Ok(()), Err))
    }
}

struct LinearQueue {
    device: Arc<Linear>,
    fan: Fan,
    parents: Slab<Parent>,
    done: Vec<Completion>,
    ended: Vec<(Child, Completion)>,
}

impl LinearQueue {
    fn start(&mut self, mut request: Request) {
        let Some(range) = request.op().range() else {
            let parent =
                self.parents.insert(Parent { request, left: 2, lent: false, parts: Default::default() });
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
            return;
        }
        let parts = self.device.parts(range);
        let lent = parts.len() == 1;
        let mut at = 0;
        let mut ops: SmallVec<[(usize, u64, Op); 2]> = SmallVec::new();
        for &(leg, part) in &parts {
            let buf = if lent {
                request.take_buf()
            } else if let Some(buf) = fan::buf_for_part(request.op(), at, part.len()) {
                buf
            } else {
                let error = fan::no_memory(&self.device.name, range);
                self.done.push(request.complete_err(error));
                return;
            };
            ops.push((leg, at, fan::op_on_leg(request.op(), part, buf)));
            at += part.len();
        }
        if ops.is_empty() {
            self.done.push(request.complete_ok());
            return;
        }
        let mut parent = Parent { request, left: ops.len(), lent, parts: Default::default() };
        for &(leg, at, _) in &ops {
            parent.parts[leg].at = at;
        }
        let parent = self.parents.insert(parent);
        for (leg, _, op) in ops {
            let len = op.range().map_or(0, ByteRange::len);
            self.fan.send(Child { parent, part: leg, leg, len }, op);
        }
    }

    fn end(&mut self, child: Child, done: Completion) {
        let parent = &mut self.parents[child.parent];
        let part = &mut parent.parts[child.part];
        part.good_bytes = done.good_bytes;
        part.error = done.result.err();
        if parent.lent {
            fan::return_buf(parent.request.op_mut(), done.buf);
        } else {
            fan::return_part(parent.request.op_mut(), part.at, &done.buf, done.good_bytes);
        }
        parent.left -= 1;
        if parent.left == 0 {
            let parent = self.parents.remove(child.parent);
            self.done.push(parent.finish());
        }
    }
}

impl Queue for LinearQueue {
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
        done.append(&mut self.done);
    }
    fn counters(&self) -> Counters {
        self.fan.counters()
    }
}

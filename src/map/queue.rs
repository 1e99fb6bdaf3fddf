//! A map's queue: each request becomes one for every leg of its parts, and ends when all of them have.

use super::fan::{self, Child, Fan, PARENTS_MAX};
use super::legs::Legs;
use super::mapping::{Mapping, Part, Parts, Written};
use crate::block::{ByteRange, Completion, Counters, Error, Kind, Op, Queue, Request, Result};
use slab::Slab;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;

/// A request whose children are in flight.
struct Parent {
    request: Request,
    left: usize,
    /// The request's buffer is lent to the first leg of the only part.
    lent: bool,
    /// Of a flush, one part without bytes.
    parts: SmallVec<[PartState; 2]>,
}

/// What became of a part.
struct PartState {
    range: ByteRange,
    legs: SmallVec<[LegState; 2]>,
}

/// What a leg answered.
struct LegState {
    leg: usize,
    good_bytes: u64,
    error: Option<Error>,
}

impl LegState {
    fn new(leg: usize) -> Self {
        Self { leg, good_bytes: 0, error: None }
    }
}

impl PartState {
    fn new(part: &Part) -> Self {
        Self { range: part.range, legs: part.legs.iter().map(|to| LegState::new(to.leg)).collect() }
    }

    /// The leg that was asked last: of a read, the one that counts.
    fn last(&mut self) -> &mut LegState {
        self.legs.last_mut().expect("a part has a leg")
    }
}

pub(super) struct LayerQueue<M> {
    map: Arc<Legs<M>>,
    fan: Fan,
    parents: Slab<Parent>,
    done: Vec<Completion>,
    ended: Vec<(Child, Completion)>,
}

impl<M: Mapping> LayerQueue<M> {
    pub(super) fn open(map: Arc<Legs<M>>) -> Result<Self> {
        let fan = Fan::open(&map.devices)?;
        Ok(Self { map, fan, parents: Slab::new(), done: Vec::new(), ended: Vec::new() })
    }

    fn start(&mut self, request: Request) {
        let Some(range) = request.op().range() else { return self.start_flush(request) };
        let refused = match request.op() {
            Op::Copy(_) => Some(self.map.copy_refused()),
            _ => self.map.check(range).err(),
        };
        if let Some(error) = refused {
            self.done.push(request.complete_err(error));
        } else if range.is_empty() {
            self.done.push(request.complete_ok());
        } else {
            let is_write = request.op().is_write();
            let mapping = &self.map.mapping;
            let parts = if is_write { mapping.parts(range) } else { mapping.sources(range) };
            self.start_parts(request, range, &parts);
        }
    }

    fn start_flush(&mut self, request: Request) {
        let legs = (0..self.map.devices.len()).map(LegState::new).collect::<SmallVec<_>>();
        let left = legs.len();
        let parts = smallvec::smallvec![PartState { range: ByteRange::default(), legs }];
        let parent = self.parents.insert(Parent { request, left, lent: false, parts });
        for leg in 0..left {
            self.fan.send(Child { parent, part: 0, leg, len: 0 }, Op::Flush);
        }
    }

    fn start_parts(&mut self, mut request: Request, range: ByteRange, parts: &Parts) {
        let lent = parts.len() == 1;
        let mut ops: SmallVec<[(usize, usize, Op); 2]> = SmallVec::new();
        for (number, part) in parts.iter().enumerate() {
            let at = part.range.offset() - range.offset();
            // The first leg of an only part borrows the request's buffer, which the others are copies of.
            for to in part.legs.iter().rev() {
                let buf = if lent && to.leg == part.legs[0].leg {
                    Some(request.take_buf())
                } else {
                    fan::buf_for_part(request.op(), at, part.range.len())
                };
                let Some(buf) = buf else {
                    let error = fan::no_memory(&self.map.name, range);
                    self.done.push(request.complete_err(error));
                    return;
                };
                ops.push((number, to.leg, fan::op_on_leg(request.op(), to.run(part.range.len()), buf)));
            }
        }
        let parts = parts.iter().map(PartState::new).collect();
        let parent = self.parents.insert(Parent { request, left: ops.len(), lent, parts });
        for (part, leg, op) in ops.into_iter().rev() {
            let len = op.range().map_or(0, ByteRange::len);
            self.fan.send(Child { parent, part, leg, len }, op);
        }
    }

    fn end(&mut self, child: Child, done: Completion) {
        let parent = &mut self.parents[child.parent];
        let is_write = parent.request.op().is_write();
        let part = &mut parent.parts[child.part];
        if parent.request.op().range().is_some() && !is_write {
            let failed = done.result.as_ref().is_err_and(|e| e.kind() != Kind::Mismatch);
            let tried: SmallVec<[usize; 2]> = part.legs.iter().map(|state| state.leg).collect();
            if failed && let Some(other) = self.map.mapping.another(part.range, &tried) {
                part.last().error = done.result.err();
                part.legs.push(LegState::new(other.leg));
                let op = fan::op_on_leg(parent.request.op(), other.run(part.range.len()), done.buf);
                self.fan.send(Child { leg: other.leg, ..child }, op);
                return;
            }
        }
        let is_first = part.legs[0].leg == child.leg;
        let state = part.legs.iter_mut().find(|state| state.leg == child.leg).expect("it was asked");
        state.good_bytes = done.good_bytes;
        state.error = done.result.err();
        let op = parent.request.op_mut();
        if parent.lent && (is_first || !is_write) {
            fan::return_buf(op, done.buf);
        } else if let Some(range) = op.range() {
            fan::return_part(op, part.range.offset() - range.offset(), &done.buf, done.good_bytes);
        }
        parent.left -= 1;
        if parent.left == 0 {
            let parent = self.parents.remove(child.parent);
            let done = self.finish(parent);
            self.done.push(done);
        }
    }

    fn finish(&self, parent: Parent) -> Completion {
        let Parent { request, parts, .. } = parent;
        let (good, error) = if request.op().range().is_none() {
            (0, self.finish_flush(parts))
        } else if request.op().is_write() {
            self.finish_write(parts)
        } else {
            finish_read(parts)
        };
        request.complete(good, error.map_or(Ok(()), Err))
    }

    fn finish_flush(&self, mut parts: SmallVec<[PartState; 2]>) -> Option<Error> {
        let legs = &mut parts[0].legs;
        let failed: SmallVec<[usize; 2]> = legs.iter().filter(|s| s.error.is_some()).map(|s| s.leg).collect();
        let first = legs.iter_mut().find_map(|state| state.error.take())?;
        let durable = failed.len() < legs.len() && self.map.mapping.settle_flush(&failed);
        (!durable).then_some(first)
    }

    fn finish_write(&self, mut parts: SmallVec<[PartState; 2]>) -> (u64, Option<Error>) {
        let untouched = |state: &LegState| {
            state.good_bytes == 0 && state.error.as_ref().is_some_and(|e| e.kind() == Kind::Unsupported)
        };
        if parts.iter().flat_map(|part| &part.legs).all(untouched) {
            // No leg knows the operation: nothing changed, nothing to take down.
            return (0, parts[0].legs[0].error.take());
        }
        let good = |part: &PartState| part.legs.iter().map(|state| (state.leg, state.good_bytes)).collect();
        let written: SmallVec<[Written; 2]> =
            parts.iter().map(|part| Written { range: part.range, good: good(part) }).collect();
        let settled = self.map.mapping.settle(&written);
        let error = settled.decided_by.and_then(|(part, leg)| {
            parts[part].legs.iter_mut().find(|state| state.leg == leg).and_then(|state| state.error.take())
        });
        (settled.good, error)
    }
}

fn finish_read(mut parts: SmallVec<[PartState; 2]>) -> (u64, Option<Error>) {
    let mut good = 0;
    for part in &mut parts {
        let state = part.last();
        good += state.good_bytes;
        if state.error.is_some() {
            return (good, state.error.take());
        }
    }
    (good, None)
}

impl<M: Mapping> Queue for LayerQueue<M> {
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
        // What another leg is asked for starts at once.
        self.fan.push();
        done.append(&mut self.done);
    }
    fn counters(&self) -> Counters {
        self.fan.counters()
    }
}

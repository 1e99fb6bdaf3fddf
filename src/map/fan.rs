//! Child requests of a map's in-flight requests: every child ends once, and its parent hears of it.

use crate::block::{
    Buf, ByteRange, Completion, Counters, Device, Error, Kind, Op, Queue, Request, Result, Submitter,
};
use slab::Slab;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most parents in flight in one map's queue; more wait in the submitter's batch.
pub(super) const PARENTS_MAX: usize = 256;

/// One request to a leg on behalf of a parent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    /// Key of the parent in its map's slab.
    pub(super) parent: usize,
    /// Which of the parent's parts this is.
    pub(super) part: usize,
    /// Which leg it goes to.
    pub(super) leg: usize,
    /// Length in bytes; 0 for a flush.
    pub(super) len: u64,
}

/// The queues of the legs.
pub(super) struct Fan {
    queues: Vec<Box<dyn Queue>>,
    waiting: Vec<VecDeque<Request>>,
    children: Slab<Child>,
    submitter: Submitter,
    done: Vec<Completion>,
}

impl Fan {
    pub(super) fn open(legs: &[Arc<dyn Device>]) -> Result<Self> {
        let queues = legs.iter().map(|leg| leg.clone().open_queue()).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            waiting: queues.iter().map(|_| VecDeque::new()).collect(),
            queues,
            children: Slab::new(),
            submitter: Submitter::default(),
            done: Vec::new(),
        })
    }

    /// Queues a child; [`Fan::push`] hands it to the leg.
    pub(super) fn send(&mut self, child: Child, op: Op) {
        let key = self.children.insert(child);
        self.waiting[child.leg].push_back(self.submitter.request(key as u64, op));
    }

    /// Hands to the legs what they have room for.
    pub(super) fn push(&mut self) {
        for (queue, waiting) in self.queues.iter_mut().zip(&mut self.waiting) {
            if !waiting.is_empty() {
                queue.submit(waiting);
            }
        }
    }

    /// Moves ended children to `out`. An `Ok` that covers less than the child asked for becomes an error.
    pub(super) fn poll(&mut self, out: &mut Vec<(Child, Completion)>) {
        self.push();
        for queue in &mut self.queues {
            queue.poll(&mut self.done);
        }
        self.submitter.take_aborted(&mut self.done);
        for mut done in self.done.drain(..) {
            let key = usize::try_from(done.tag).expect("tags are slab keys");
            let child = self.children.remove(key);
            done.good_bytes = done.good_bytes.min(child.len);
            if done.result.is_ok() && done.good_bytes < child.len {
                let short =
                    format!("the device reported success for {} of {} bytes", done.good_bytes, child.len);
                done.result = Err(Error::new(Kind::Io, short));
            }
            out.push((child, done));
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.queues.iter().fold(Counters::default(), |mut sum, queue| {
            sum += queue.counters();
            sum
        })
    }
}

/// The same operation on `range` of a leg, with `buf` as its bytes. Not for copies, which never get this far.
pub(super) fn op_on_leg(op: &Op, range: ByteRange, buf: Buf) -> Op {
    match *op {
        Op::Read { .. } => Op::Read { range, buf },
        Op::Write { fua, .. } => Op::Write { range, buf, fua },
        Op::WriteZeroes { may_unmap, lazy, .. } => Op::WriteZeroes { range, may_unmap, lazy },
        Op::Discard { .. } => Op::Discard { range },
        Op::Compare { .. } => Op::Compare { range, buf },
        Op::Flush | Op::Copy(_) => Op::Flush,
    }
}

/// A buffer of its own for `len` bytes from `at` of a request: filled for a write or compare, blank for a read.
///
/// The slow path: a request that stays on one leg lends its own buffer instead. `None`: no memory.
pub(super) fn buf_for_part(op: &Op, at: u64, len: u64) -> Option<Buf> {
    let fits = "a part lies inside the request's buffer";
    let (at, len) = (usize::try_from(at).expect(fits), usize::try_from(len).expect(fits));
    match op {
        Op::Read { .. } => Buf::alloc(len),
        Op::Write { buf, .. } | Op::Compare { buf, .. } => Buf::copy_of(&buf[at..at + len]),
        _ => Some(Buf::default()),
    }
}

/// Copies the good front of a part that was read into its place in the parent's buffer.
pub(super) fn return_part(op: &mut Op, at: u64, part: &Buf, good_bytes: u64) {
    if let Op::Read { buf, .. } = op {
        let fits = "a part lies inside the request's buffer";
        let (at, good) = (usize::try_from(at).expect(fits), usize::try_from(good_bytes).expect(fits));
        buf[at..at + good].copy_from_slice(&part[..good]);
    }
}

/// Puts a lent buffer back into its request.
pub(super) fn return_buf(op: &mut Op, lent: Buf) {
    if let Op::Read { buf, .. } | Op::Write { buf, .. } | Op::Compare { buf, .. } = op {
        *buf = lent;
    }
}

/// No memory for the buffer of a part.
pub(super) fn no_memory(name: &str, range: ByteRange) -> Error {
    let message =
        format!("no memory for a buffer of {} bytes to split the request; use shorter requests", range.len());
    Error::new(Kind::NoMemory, message).on(name).at(range)
}

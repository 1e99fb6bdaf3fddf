//! What the wrappers share: a request in, the same operation (or its front) on the inner device, the answer out.

use super::faults::{CheckWrite, DelayDevice, ErrorDevice};
use super::miscopy::MiscopyDevice;
use crate::block::{
    Buf, ByteRange, Completion, CopyReport, CopyRequest, Counters, Device, Error, Op, Queue, Request, Result,
    Submitter,
};
use slab::Slab;
use std::collections::VecDeque;
use std::sync::Arc;

/// An error to end with, after the first `good_bytes` were done.
pub(super) struct Hit {
    pub(super) good_bytes: u64,
    pub(super) error: Error,
}

/// A request whose operation on the inner device has ended; the wrapper may still change its mind.
pub(super) struct Ended<T> {
    pub(super) request: Request,
    pub(super) extra: T,
    pub(super) buf: Buf,
    pub(super) good_bytes: u64,
    pub(super) result: Result<()>,
    pub(super) copy: Option<Box<CopyReport>>,
}

impl<T> Ended<T> {
    pub(super) fn complete(self) -> Completion {
        let mut done = self.request.complete_with(self.buf, self.good_bytes, self.result);
        done.copy = self.copy;
        done
    }
}

struct Held<T> {
    request: Request,
    extra: T,
    hit: Option<Hit>,
    /// The request's own buffer while a shortened operation runs on another.
    kept: Option<Buf>,
}

/// A queue of the inner device, and the requests that wait for it.
pub(super) struct Through<T> {
    queue: Box<dyn Queue>,
    waiting: VecDeque<Request>,
    held: Slab<Held<T>>,
    submitter: Submitter,
    failed: Vec<Ended<T>>,
    done: Vec<Completion>,
}

impl<T> Through<T> {
    pub(super) fn open(inner: &Arc<dyn Device>) -> Result<Self> {
        Ok(Self {
            queue: inner.clone().open_queue()?,
            waiting: VecDeque::new(),
            held: Slab::new(),
            submitter: Submitter::default(),
            failed: Vec::new(),
            done: Vec::new(),
        })
    }

    /// Takes the operation out of a request that just came in.
    pub(super) fn take_op(request: &mut Request) -> Op {
        std::mem::replace(request.op_mut(), Op::Flush)
    }

    /// Hands `op` down for `request`; with a hit, only the front of it.
    pub(super) fn send(&mut self, request: Request, mut op: Op, hit: Option<Hit>, extra: T) {
        let mut hit = hit;
        if let Op::Copy(copy) = &mut op {
            hit = least(hit, enter_source(copy));
        }
        if let Some(hit) = hit.take_if(|h| h.good_bytes == 0) {
            let buf = take_buf(op);
            let (good_bytes, result) = (0, Err(hit.error));
            self.failed.push(Ended { request, extra, buf, good_bytes, result, copy: None });
            return;
        }
        let kept = hit.as_ref().and_then(|hit| shorten(&mut op, hit.good_bytes));
        let key = self.held.insert(Held { request, extra, hit, kept });
        self.waiting.push_back(self.submitter.request(key as u64, op));
    }

    /// Hands the inner queue what it has room for.
    pub(super) fn push(&mut self) {
        if !self.waiting.is_empty() {
            self.queue.submit(&mut self.waiting);
        }
    }

    /// Moves what has ended to `out`.
    pub(super) fn poll(&mut self, out: &mut Vec<Ended<T>>) {
        self.push();
        out.append(&mut self.failed);
        self.queue.poll(&mut self.done);
        self.submitter.take_aborted(&mut self.done);
        for done in self.done.drain(..) {
            let key = usize::try_from(done.tag).expect("tags are slab keys");
            let Held { request, extra, hit, kept } = self.held.remove(key);
            let mut buf = done.buf;
            if let Some(mut kept) = kept {
                // The same bytes as before for a write or compare, those just read for a read.
                kept[..buf.len()].copy_from_slice(&buf);
                buf = kept;
            }
            let result = match hit {
                Some(hit) if done.result.is_ok() => Err(hit.error),
                _ => done.result,
            };
            out.push(Ended { request, extra, buf, good_bytes: done.good_bytes, result, copy: done.copy });
        }
    }

    /// True while something is on its way.
    pub(super) fn is_busy(&self) -> bool {
        !self.held.is_empty() || !self.failed.is_empty()
    }

    pub(super) fn counters(&self) -> Counters {
        self.queue.counters()
    }
}

fn take_buf(op: Op) -> Buf {
    match op {
        Op::Read { buf, .. } | Op::Write { buf, .. } | Op::Compare { buf, .. } => buf,
        _ => Buf::default(),
    }
}

fn least(a: Option<Hit>, b: Option<Hit>) -> Option<Hit> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.good_bytes < a.good_bytes { b } else { a }),
        (a, b) => a.or(b),
    }
}

/// Takes the wrappers off a copy's source, counting a read on each; a hit if one of them says so, or if what is inside
/// is not what the source reads as.
pub(super) fn enter_source(copy: &mut CopyRequest) -> Option<Hit> {
    if let Err(error) = copy.check_stored() {
        return Some(Hit { good_bytes: 0, error });
    }
    let mut hit = None;
    loop {
        let source = copy.source.as_any();
        let inner = if let Some(device) = source.downcast_ref::<ErrorDevice>() {
            hit = least(hit, device.hit_as_source(copy.dest.len()));
            device.inner().clone()
        } else if let Some(device) = source.downcast_ref::<DelayDevice>() {
            device.inner().clone()
        } else if let Some(device) = source.downcast_ref::<CheckWrite>() {
            device.inner().clone()
        } else if let Some(device) = source.downcast_ref::<MiscopyDevice>() {
            device.inner().clone()
        } else {
            return hit;
        };
        copy.source = inner;
    }
}

/// Cuts an operation to its first `len` bytes; returns its own buffer, in whose place a shorter one is used.
pub(super) fn shorten(op: &mut Op, len: u64) -> Option<Buf> {
    match op {
        Op::Read { range, buf } | Op::Write { range, buf, .. } | Op::Compare { range, buf } => {
            *range = range.prefix(len);
            let front = usize::try_from(range.len()).expect("no longer than the buffer was");
            let front = Buf::copy_of(&buf[..front]).expect("a test has memory for a second buffer");
            return Some(std::mem::replace(buf, front));
        }
        Op::WriteZeroes { range, .. } | Op::Discard { range } => *range = range.prefix(len),
        Op::Copy(copy) => {
            copy.dest = copy.dest.prefix(len);
            let mut left = copy.dest.len();
            for range in &mut copy.sources {
                *range = range.prefix(left);
                left -= range.len();
            }
            copy.sources.retain(|range: &mut ByteRange| !range.is_empty());
        }
        Op::Flush => {}
    }
    None
}

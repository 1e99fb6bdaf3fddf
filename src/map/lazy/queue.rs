//! The queue of a device with lazy zeroes: they are read as zero, and what has been written is lazy no more.

use super::list::Parts;
use super::shared::{Shared, Tell};
use crate::block::{Buf, ByteRange, Completion, Counters, Error, Kind, Op, Queue, Request};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// While nothing is owed, and nobody is to be told, batches go to the queue inside as they came.
///
/// Requests keep their tags on the way down, so those in flight must differ, as those of one submitter do.
pub(super) struct LazyQueue {
    shared: Arc<Shared>,
    tell: Option<Tell>,
    inner: Box<dyn Queue>,
    /// What is to be done when a request completes, by its tag.
    tracked: HashMap<u64, Tracked>,
    /// Tracked, and not taken by the queue inside yet: what one batch left.
    backlog: VecDeque<Request>,
    /// What needed no device.
    ended: Vec<Completion>,
}

enum Tracked {
    /// These parts were owed when it was submitted: zeroes, whatever the device gives.
    Read { range: ByteRange, owed: Parts },
    /// The same, read into a buffer of our own, to be compared with this one.
    Compare { range: ByteRange, owed: Parts, expected: Buf },
    /// What it changes, and the list's time when it was submitted.
    Write { range: ByteRange, then: u64 },
    /// Nothing to do but tell.
    Discard { range: ByteRange },
}

impl LazyQueue {
    pub(super) fn new(shared: Arc<Shared>, tell: Option<Tell>, inner: Box<dyn Queue>) -> Self {
        Self { shared, tell, inner, tracked: HashMap::new(), backlog: VecDeque::new(), ended: Vec::new() }
    }

    /// True when the device inside may have the batch as it is.
    #[inline]
    fn is_plain(&self, batch: &VecDeque<Request>) -> bool {
        // A copy may come from another device that owes.
        let plain = |r: &Request| !matches!(r.op(), Op::WriteZeroes { lazy: true, .. } | Op::Copy(_));
        self.tell.is_none()
            && self.tracked.is_empty()
            && self.backlog.is_empty()
            && !self.shared.any()
            && batch.iter().all(plain)
    }

    fn tell(&self, range: ByteRange) {
        if let Some(tell) = &self.tell {
            tell(range);
        }
    }

    fn start(&mut self, mut request: Request) {
        // A request that was dropped below leaves what was to be done for it; it is nothing to one that has its tag
        // later.
        self.tracked.remove(&request.tag());
        let Some(range) = request.op().range() else { return self.backlog.push_back(request) };
        // What the device is going to refuse is for the device to refuse.
        if range.is_empty() || self.shared.check(range).is_err() {
            return self.backlog.push_back(request);
        }
        let tag = request.tag();
        match request.op_mut() {
            Op::Read { buf, .. } if buf.len() as u64 == range.len() => {
                let owed = self.shared.within(range);
                if owed[..] == [range] {
                    buf.fill(0);
                    return self.ended.push(request.complete_ok());
                }
                if !owed.is_empty() {
                    self.tracked.insert(tag, Tracked::Read { range, owed });
                }
            }
            Op::Compare { buf, .. } if buf.len() as u64 == range.len() => {
                let owed = self.shared.within(range);
                if !owed.is_empty() {
                    return self.start_compare(request, range, owed);
                }
            }
            Op::WriteZeroes { lazy, .. } => {
                let shared = &self.shared;
                let owe = *lazy && range.len() >= shared.lazy_min_bytes && !shared.inner.read_only();
                if owe && shared.defer(range) {
                    self.tell(range);
                    return self.ended.push(request.complete_ok());
                }
                *lazy = false;
                self.track_write(tag, range);
            }
            Op::Write { .. } => self.track_write(tag, range),
            Op::Copy(copy) => {
                if let Err(error) = copy.check_stored() {
                    return self.ended.push(request.complete_err(error));
                }
                self.track_write(tag, range);
            }
            Op::Discard { .. } if self.tell.is_some() => {
                self.tracked.insert(tag, Tracked::Discard { range });
            }
            _ => {}
        }
        self.backlog.push_back(request);
    }

    fn track_write(&mut self, tag: u64, range: ByteRange) {
        // What is owed from now on this write came before: nothing to end when nothing is owed now.
        if self.tell.is_some() || self.shared.any() {
            let then = self.shared.now();
            self.tracked.insert(tag, Tracked::Write { range, then });
        }
    }

    fn start_compare(&mut self, mut request: Request, range: ByteRange, owed: Parts) {
        let Some(scratch) = usize::try_from(range.len()).ok().and_then(Buf::alloc) else {
            let error = super::super::fan::no_memory(self.shared.inner.name(), range);
            return self.ended.push(request.complete_err(error));
        };
        let tag = request.tag();
        let expected = request.take_buf();
        *request.op_mut() = Op::Read { range, buf: scratch };
        self.tracked.insert(tag, Tracked::Compare { range, owed, expected });
        self.backlog.push_back(request);
    }

    /// What a completion of the device is to whoever submitted the request.
    fn end(&self, tracked: Tracked, done: &mut Completion) {
        match tracked {
            Tracked::Read { range, owed } => put_zeroes(range, &owed, done),
            Tracked::Compare { range, owed, expected } => {
                put_zeroes(range, &owed, done);
                let held = std::mem::replace(&mut done.buf, expected);
                let good = usize::try_from(done.good_bytes).unwrap_or(held.len()).min(held.len());
                let mut pairs = held[..good].iter().zip(&done.buf[..good]);
                if let Some(at) = pairs.position(|(held, expected)| held != expected) {
                    done.good_bytes = at as u64;
                    let error = Error::new(Kind::Mismatch, "the bytes differ");
                    done.result = Err(error.on(self.shared.inner.name()).at(range));
                }
            }
            Tracked::Write { range, then } => {
                if done.result.is_err() {
                    // A block that is written in part stays owed whole, so its part is not good either.
                    done.good_bytes -= done.good_bytes % u64::from(self.shared.block_size);
                }
                self.shared.written(range.prefix(done.good_bytes), then);
                self.tell(range);
            }
            Tracked::Discard { range } => self.tell(range),
        }
    }
}

/// Zeroes what was owed. Where the device failed, what is owed behind its good prefix is good all the same.
fn put_zeroes(range: ByteRange, owed: &Parts, done: &mut Completion) {
    for part in owed {
        let at = part.offset() - range.offset();
        let fits = "a part with lazy zeroes is inside the request's buffer";
        let (from, len) = (usize::try_from(at).expect(fits), usize::try_from(part.len()).expect(fits));
        let Some(bytes) = done.buf.get_mut(from..from + len) else { return };
        bytes.fill(0);
        if at <= done.good_bytes {
            done.good_bytes = done.good_bytes.max(at + part.len());
        }
    }
    if done.good_bytes == range.len() {
        done.result = Ok(());
    }
}

impl Queue for LazyQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        if self.is_plain(batch) {
            return self.inner.submit(batch);
        }
        if !self.backlog.is_empty() {
            self.inner.submit(&mut self.backlog);
            if !self.backlog.is_empty() {
                return;
            }
        }
        while let Some(request) = batch.pop_front() {
            self.start(request);
        }
        self.inner.submit(&mut self.backlog);
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.ended);
        loop {
            if !self.backlog.is_empty() {
                self.inner.submit(&mut self.backlog);
            }
            let first = done.len();
            self.inner.poll(done);
            if !self.tracked.is_empty() {
                for completion in &mut done[first..] {
                    if let Some(tracked) = self.tracked.remove(&completion.tag) {
                        self.end(tracked, completion);
                    }
                }
            }
            // What has completed made room: nobody else would look again.
            if done.len() == first || self.backlog.is_empty() {
                return;
            }
        }
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

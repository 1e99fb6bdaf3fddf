//! What a reader thread has of its own: range locks, a reactor, a queue of each volume, one buffer.
//!
//! The threads are the FUSE library's; between two requests they sleep in `read(/dev/fuse)`. So a reader is parked
//! except while it serves a request, and it serves one at a time, to its end.

use super::shared::MountShared;
use crate::block::lock::LockedQueue;
use crate::block::{Buf, Completion, Error, Kind, Op, Queue, Result, Submitter};
use crate::reactor;
use crate::workers::GuestBench;
use std::cell::{Cell, RefCell};

/// Longest single read or write, in bytes: the mount says so to the kernel at the start.
pub(super) const TRANSFER_MAX: u32 = 1 << 20;

thread_local! {
    static READER: RefCell<Option<ReaderThread>> = const { RefCell::new(None) };
    /// Not dropped when the thread ends, so it may be read before `READER` is.
    static BEGUN: Cell<bool> = const { Cell::new(false) };
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

/// A reader thread's own.
pub(super) struct ReaderThread {
    queues: Vec<Option<LockedQueue>>,
    submitter: Submitter,
    next_tag: u64,
    done: Vec<Completion>,
    buf: Buf,
    // The last to go: queues use its reactor to the end.
    bench: GuestBench,
}

/// What became of a request that was tried.
pub(super) enum Tried {
    /// It has ended.
    Done(Completion),
    /// A copy is in its way. Nothing was begun; its buffer comes back.
    InTheWay(Buf),
}

/// Runs `work` on the calling thread's reader state, which is made when it is first used.
///
/// Errors: those of the engine and of the range locks when it cannot be made.
pub(super) fn with<T>(shared: &MountShared, work: impl FnOnce(&mut ReaderThread) -> T) -> Result<T> {
    if !BEGUN.get() {
        // Thread-locals go in the reverse order of their first use, and a reader leaves the thread's reactor as it
        // goes.
        let _ = reactor::current();
        BEGUN.set(true);
    }
    READER.with(|reader| {
        let mut reader = reader.borrow_mut();
        let reader = match &mut *reader {
            Some(reader) => reader,
            None if FAILED.get() => {
                return Err(Error::new(Kind::NoMemory, "this thread has no queues of its own"));
            }
            none => match ReaderThread::new(shared) {
                Ok(reader) => none.insert(reader),
                Err(error) => {
                    // Once: each request would try again, and workers serve them all the same.
                    FAILED.set(true);
                    tracing::warn!(
                        ?error,
                        "a reader thread of the mount cannot serve requests itself; it passes all of them on"
                    );
                    return Err(error);
                }
            },
        };
        reader.bench.enter();
        let result = work(reader);
        reader.bench.leave();
        Ok(result)
    })
}

/// Takes the calling reader's buffer back, once it was answered from.
pub(super) fn give_back(buf: Buf) {
    READER.with(|reader| {
        if let Some(reader) = &mut *reader.borrow_mut()
            && buf.capacity() >= TRANSFER_MAX as usize
        {
            reader.buf = buf;
        }
    });
}

impl ReaderThread {
    fn new(shared: &MountShared) -> Result<Self> {
        let bench = GuestBench::new()?;
        let buf = Buf::alloc(TRANSFER_MAX as usize)
            .ok_or_else(|| Error::new(Kind::NoMemory, "no memory for one transfer"))?;
        Ok(Self {
            queues: shared.volumes.iter().map(|_| None).collect(),
            submitter: Submitter::default(),
            next_tag: 0,
            done: Vec::new(),
            buf,
            bench,
        })
    }

    /// The thread's buffer, showing `len` bytes; see [`give_back`].
    pub(super) fn buffer(&mut self, len: usize) -> Option<Buf> {
        let mut buf = std::mem::take(&mut self.buf);
        if buf.capacity() < len {
            // It went along with a request that was handed over, or this is a longer one than there should be.
            buf = Buf::alloc(len.max(TRANSFER_MAX as usize))?;
        }
        buf.set_len(len);
        Some(buf)
    }

    /// Serves one operation of a volume to its end, unless a copy is in its way.
    pub(super) fn run(&mut self, shared: &MountShared, volume: usize, op: Op) -> Result<Tried> {
        let queue = match &mut self.queues[volume] {
            Some(queue) => queue,
            none => none.insert(LockedQueue::open(
                shared.volumes[volume].device.clone(),
                self.bench.locks().clone(),
            )?),
        };
        self.next_tag += 1;
        if let Err(mut request) = queue.try_submit(self.submitter.request(self.next_tag, op)) {
            let buf = request.take_buf();
            let _never_begun = request.complete(0, Ok(()));
            return Ok(Tried::InTheWay(buf));
        }
        loop {
            queue.poll(&mut self.done);
            self.submitter.take_aborted(&mut self.done);
            if let Some(done) = self.done.pop() {
                return Ok(Tried::Done(done));
            }
            self.bench.wait();
        }
    }
}

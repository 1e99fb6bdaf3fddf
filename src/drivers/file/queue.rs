//! The queue of files and block devices: requests in, reactor operations, completions out.

use super::blocking;
use super::core::{Backing, Core};
use super::policy::{After, Choice};
use super::transfer::{Files, Transfer, ended_early};
use crate::block::{
    Buf, ByteRange, Call, Completion, CopyReport, CopyRequest, Counters, Error, Kind, Method, Op, Queue,
    Request, Result,
};
use crate::reactor::{self, CallDone, IoDone, IoOp, Port, Reactor};
use slab::Slab;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Requests in flight at most; the rest waits with the submitter.
const IN_FLIGHT_MAX: usize = 256;
/// A direct and a buffered write closer than this are never in flight together, in bytes: one large folio of the page
/// cache (2 MiB at most) may span both.
const FOLIO_MAX: u64 = 2 << 20;
/// Bytes newly dirtied in the page cache before their writeback is started.
const GROWTH_MAX: u64 = 64 << 20;
/// Token of the writeback that no request waits for.
const WRITEBACK: u64 = u64::MAX;

/// Finds the file or block device behind a copy's source.
pub(crate) type FindSource = fn(&CopyRequest) -> Option<&Arc<Core>>;

/// One thread's way to a file or block device.
pub(crate) struct FdQueue {
    core: Arc<Core>,
    find_source: FindSource,
    reactor: Rc<dyn Reactor>,
    port: Port,
    slots: Slab<Slot>,
    /// Buffered writes that wait for direct ones beside them.
    parked: VecDeque<Request>,
    done: Vec<Completion>,
    finished: Vec<IoDone>,
    counters: Counters,
    /// Writes in flight: direct, buffered.
    writes: [usize; 2],
    grown_bytes: u64,
    writeback: bool,
}

struct Slot {
    request: Request,
    range: ByteRange,
    step: Step,
}

enum Step {
    Read(Choice),
    Write(Choice),
    /// A buffered write is in the page cache and becomes durable.
    Durable {
        choice: Choice,
        buf: Buf,
    },
    Flush,
    /// On a helper thread; `front` bytes were done before.
    Call {
        front: u64,
        carried: Arc<Mutex<Carried>>,
        /// The write this is the rest of.
        write: Option<Choice>,
    },
}

impl Step {
    /// The way of the write that this is a step of.
    fn write(&self) -> Option<Choice> {
        match self {
            Self::Write(choice) | Self::Durable { choice, .. } | Self::Call { write: Some(choice), .. } => {
                Some(*choice)
            }
            _ => None,
        }
    }
}

/// What a helper thread hands back beside the count.
#[derive(Default)]
struct Carried {
    buf: Buf,
    error: Option<Error>,
    /// The destination could not be made durable.
    poisons: bool,
}

fn lock(carried: &Mutex<Carried>) -> MutexGuard<'_, Carried> {
    carried.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_fua(request: &Request) -> bool {
    matches!(request.op(), Op::Write { fua: true, .. })
}

/// An error by which a write was refused before anything of it reached the disk: it tells nothing of what is written already.
fn is_foreground(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::ENOMEM | libc::EPERM | libc::EINVAL | libc::EROFS
    )
}

impl FdQueue {
    /// A queue served by the calling thread's reactor.
    ///
    /// Errors: `InvalidInput` when the thread has none.
    pub(crate) fn open(core: Arc<Core>, find_source: FindSource) -> Result<Self> {
        let Some(reactor) = reactor::current() else {
            let text = "this thread has no reactor; enter one before opening a queue";
            return Err(core.error(Kind::InvalidInput, text));
        };
        let port = reactor.open_port_of(&core.helpers);
        Ok(Self {
            core,
            find_source,
            reactor,
            port,
            slots: Slab::new(),
            parked: VecDeque::new(),
            done: Vec::new(),
            finished: Vec::new(),
            counters: Counters::default(),
            writes: [0; 2],
            grown_bytes: 0,
            writeback: false,
        })
    }

    fn end(&mut self, done: Completion) {
        if done.result.is_ok() {
            self.counters.requests += 1;
        } else {
            self.counters.errors += 1;
        }
        self.done.push(done);
    }

    fn start(&mut self, request: Request, range: ByteRange, step: Step, op: IoOp) {
        if let Some(choice) = step.write() {
            self.writes[usize::from(!choice.direct)] += 1;
        }
        let token = self.slots.insert(Slot { request, range, step });
        self.reactor.submit(self.port, token as u64, op);
    }

    fn begin(&mut self, mut request: Request) {
        if let Err(error) = self.core.admit(&request) {
            return self.end(request.complete_err(error));
        }
        let range = request.op().range().unwrap_or_default();
        if range.is_empty() && !matches!(request.op(), Op::Flush | Op::Copy(_)) {
            return self.end(request.complete_ok());
        }
        match request.op() {
            Op::Read { .. } => {
                let buf = request.take_buf();
                self.read(request, range, buf);
            }
            Op::Compare { .. } => match usize::try_from(range.len()).ok().and_then(Buf::alloc) {
                Some(buf) => self.read(request, range, buf),
                None => {
                    let error = self.core.error(Kind::NoMemory, "no memory to read what is compared");
                    self.end(request.complete_err(error.at(range)));
                }
            },
            Op::Write { .. } => self.write(request, range),
            Op::Flush => {
                let op = IoOp::Sync { file: self.core.fd.clone(), data_only: true };
                self.start(request, range, Step::Flush, op);
            }
            Op::WriteZeroes { may_unmap, .. } => {
                let may_unmap = *may_unmap;
                self.call(request, range, move |core, counters| {
                    let writes = match core.backing {
                        Backing::Block => core.direct().unwrap_or(&core.fd),
                        Backing::Regular => &core.fd,
                    };
                    blocking::write_zeroes(&core.fd, writes, range, may_unmap, counters)
                });
            }
            Op::Discard { .. } => self.call(request, range, move |core, counters| {
                blocking::discard(&core.fd, core.backing, range, counters)
            }),
            Op::Copy(_) => self.copy(request),
        }
    }

    fn read(&mut self, request: Request, range: ByteRange, buf: Buf) {
        let core = self.core.clone();
        let (choice, file) = core.choose(range, false);
        let op = IoOp::Read { file: file.clone(), offset: range.offset(), buf, direct: choice.direct };
        self.start(request, range, Step::Read(choice), op);
    }

    fn write(&mut self, mut request: Request, range: ByteRange) {
        let core = self.core.clone();
        let (mut choice, mut file) = core.choose(range, true);
        if choice.direct && self.neighbour(range, false) {
            // Never both ways at once within a folio: the direct one gives in, as it can always go buffered.
            (choice, file) = (Choice { direct: false, after: After::Grew }, &core.fd);
        }
        if !choice.direct && self.neighbour(range, true) {
            return self.parked.push_back(request);
        }
        let Op::Write { fua, .. } = *request.op() else { unreachable!("called for writes") };
        let buf = request.take_buf();
        let op = IoOp::Write {
            file: file.clone(),
            offset: range.offset(),
            buf,
            direct: choice.direct,
            // Through the cache it is synced behind the write: an error of both in one could be that of other data, told here
            // and to no flush any more.
            dsync: fua && choice.direct,
        };
        self.start(request, range, Step::Write(choice), op);
    }

    /// True when a write of the other way is in flight (or, for a direct one, parked) close to `range`. Only files have
    /// both ways at once.
    fn neighbour(&self, range: ByteRange, direct: bool) -> bool {
        let wide = |r: ByteRange| {
            let start = r.offset() / FOLIO_MAX * FOLIO_MAX;
            ByteRange::between(start, r.end().div_ceil(FOLIO_MAX).saturating_mul(FOLIO_MAX))
        };
        let range = wide(range);
        let busy = self.writes[usize::from(!direct)] > 0
            && self.slots.iter().any(|(_, slot)| {
                slot.step.write().is_some_and(|c| c.direct == direct) && wide(slot.range).overlaps(range)
            });
        let waits =
            !direct && self.parked.iter().any(|r| r.op().range().is_some_and(|r| wide(r).overlaps(range)));
        busy || waits
    }

    /// Runs `work` on a helper thread; it returns the good prefix in bytes and the result.
    fn call(
        &mut self,
        request: Request,
        range: ByteRange,
        work: impl FnOnce(&Core, &mut Counters) -> (u64, Result<()>) + Send + 'static,
    ) {
        let carried = Arc::new(Mutex::new(Carried::default()));
        let (core, shared) = (self.core.clone(), carried.clone());
        let op = IoOp::Call(Box::new(move || {
            let mut counters = Counters::default();
            let (count, result) = work(&core, &mut counters);
            lock(&shared).error = result.err();
            CallDone { count, error: None, counters }
        }));
        self.start(request, range, Step::Call { front: 0, carried, write: None }, op);
    }

    fn copy(&mut self, request: Request) {
        let Op::Copy(copy) = request.op() else { unreachable!("called for copies") };
        let prepared = self.prepare_copy(copy);
        let range = copy.dest;
        let (transfer, fua) = match prepared {
            Ok(transfer) => (transfer, copy.fua),
            Err(error) => {
                let mut done = request.complete_err(error.on(&self.core.name).at(range));
                done.copy = Some(Box::default());
                return self.end(done);
            }
        };
        let carried = Arc::new(Mutex::new(Carried::default()));
        let (fd, shared) = (self.core.fd.clone(), carried.clone());
        let brief = transfer.method == Method::Reflink && !fua;
        let work = Box::new(move || {
            let mut counters = Counters::default();
            let (mut count, mut result) = transfer.run(&mut counters);
            if fua && result.is_ok() {
                counters.count(Call::Fdatasync);
                if let Err(error) = rustix::fs::fdatasync(&*fd) {
                    lock(&shared).poisons = true;
                    (count, result) = (0, Err(Error::os("the copy could not be made durable", error)));
                }
            }
            lock(&shared).error = result.err();
            CallDone { count, error: None, counters }
        });
        let op = if brief { IoOp::Brief(work) } else { IoOp::Call(work) };
        self.start(request, range, Step::Call { front: 0, carried, write: None }, op);
    }

    fn prepare_copy(&self, copy: &CopyRequest) -> Result<Transfer<Files>> {
        let Some(source) = (self.find_source)(copy) else {
            let text = format!("{} needs regular files at both ends", copy.method);
            return Err(Error::new(Kind::Unsupported, text));
        };
        copy.check(self.core.identity)?;
        let max = super::copy_max(copy.method).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("a regular file cannot copy by {}", copy.method))
        })?;
        if copy.dest.len() > max {
            let text =
                format!("{} copies at most {max} bytes in one request, not {}", copy.method, copy.dest.len());
            return Err(Error::new(Kind::TooLarge { max_bytes: max }, text));
        }
        if source.is_poisoned() {
            return Err(Error::new(Kind::Poisoned, "a flush of the source failed earlier; reopen it"));
        }
        for &range in &copy.sources {
            crate::block::device::check_range(range, source.size(), source.block_size)
                .map_err(|e| e.on(&source.name))?;
        }
        Ok(Transfer {
            kernel: Files { source: source.fd.clone(), dest: self.core.fd.clone() },
            method: copy.method,
            sources: copy.sources.clone(),
            dest: copy.dest,
            cancel: copy.cancel.clone(),
        })
    }

    fn finish(&mut self, io: IoDone) {
        self.counters += io.counters;
        if io.token == WRITEBACK {
            self.writeback = false;
            return;
        }
        let index = usize::try_from(io.token).expect("a slot's index");
        let Slot { request, range, step } = self.slots.remove(index);
        if let Some(choice) = step.write() {
            self.writes[usize::from(!choice.direct)] -= 1;
        }
        match step {
            Step::Read(choice) => self.transferred(request, range, choice, false, io),
            Step::Write(choice) => self.transferred(request, range, choice, true, io),
            Step::Durable { choice, buf } => {
                let (good, result) = match io.error {
                    None => (range.len(), Ok(())),
                    Some(error) => {
                        // What was lost may be any write's: no later flush would say so.
                        self.core.poison();
                        let error = Error::os("the write could not be made durable", error);
                        (0, Err(error.on(&self.core.name).at(range)))
                    }
                };
                self.end_write(request, choice, buf, good, result);
            }
            Step::Flush => {
                let result = match io.error {
                    None => Ok(()),
                    Some(error) => {
                        self.core.poison();
                        Err(Error::os(
                            "flush failed: what was written since the last flush may be lost",
                            error,
                        )
                        .on(&self.core.name))
                    }
                };
                if result.is_ok() && self.core.backing == Backing::Block {
                    // Whatever was read through the cache before direct writes is not to be found there again.
                    self.core.drop_pages(ByteRange::to(self.core.size()));
                }
                self.end(request.complete(0, result));
            }
            Step::Call { front, carried, write } => {
                let Carried { buf, error, poisons } = std::mem::take(&mut *lock(&carried));
                if poisons {
                    self.core.poison();
                }
                let good = if poisons { 0 } else { front + io.count };
                let raw = io.error.map(|e| Error::os("a helper thread failed", e));
                let result = error.or(raw).map_or(Ok(()), |e| Err(e.on(&self.core.name).at(range)));
                match request.op() {
                    Op::Read { .. } | Op::Compare { .. } => self.end_read(request, range, buf, good, result),
                    Op::Write { .. } => {
                        let choice = write.unwrap_or(Choice { direct: false, after: After::Nothing });
                        self.end_write(request, choice, buf, good, result);
                    }
                    Op::Copy(_) => {
                        let mut done = request.complete(good, result);
                        done.copy =
                            Some(Box::new(CopyReport { calls: io.counters, ..CopyReport::default() }));
                        self.end(done);
                    }
                    _ => self.end(request.complete(good, result)),
                }
            }
        }
    }

    /// A read or write came back from the reactor: whole, short, or failed.
    fn transferred(&mut self, request: Request, range: ByteRange, choice: Choice, write: bool, io: IoDone) {
        let good = io.count.min(range.len());
        if let Some(error) = io.error {
            match error.raw_os_error() {
                Some(libc::EINVAL) if choice.direct => {
                    // The file system promised direct I/O and refuses it: seen with network and stacked ones. Of a buffer that
                    // does not begin at a page it never promised it.
                    if io.buf.is_at_front() {
                        tracing::info!(device = %self.core.name, %range, "direct I/O refused: buffered from now on");
                        self.core.give_up_direct();
                    }
                    return self.rest(request, range, choice, write, io.buf, 0);
                }
                Some(libc::EINTR | libc::EAGAIN) => {
                    return self.rest(request, range, choice, write, io.buf, good);
                }
                _ => {}
            }
            if choice.direct && is_fua(&request) && !error.raw_os_error().is_some_and(is_foreground) {
                // It may be the flush behind the write that failed, and with it what others have written.
                self.core.poison();
            }
            let doing = if write { "write failed" } else { "read failed" };
            let error = Error::os(doing, error).on(&self.core.name).at(range);
            return if write {
                self.end_write(request, choice, io.buf, good, Err(error))
            } else {
                self.end_read(request, range, io.buf, good, Err(error))
            };
        }
        if good < range.len() {
            return self.rest(request, range, choice, write, io.buf, good);
        }
        if write {
            if is_fua(&request) && !choice.direct {
                let op = IoOp::Sync { file: self.core.fd.clone(), data_only: true };
                return self.start(request, range, Step::Durable { choice, buf: io.buf }, op);
            }
            self.end_write(request, choice, io.buf, good, Ok(()));
        } else {
            if choice.after == After::Drop {
                self.core.drop_pages(range);
            }
            self.end_read(request, range, io.buf, good, Ok(()));
        }
    }

    /// Does what a short answer left, through the page cache, until it is whole or fails.
    fn rest(
        &mut self,
        request: Request,
        range: ByteRange,
        choice: Choice,
        write: bool,
        buf: Buf,
        front: u64,
    ) {
        let fua = is_fua(&request);
        let carried = Arc::new(Mutex::new(Carried { buf, ..Carried::default() }));
        let (fd, shared): (Arc<OwnedFd>, _) = (self.core.fd.clone(), carried.clone());
        let op = IoOp::Call(Box::new(move || {
            let mut counters = Counters::default();
            let mut carried = lock(&shared);
            let at = usize::try_from(front).expect("shorter than the buffer");
            let offset = range.offset() + front;
            let (count, error) = if write {
                let (count, error) = blocking::write_all(&fd, &carried.buf[at..], offset, &mut counters);
                let error = error.map(|e| Error::os("write failed", e));
                match error {
                    None if fua => {
                        counters.count(Call::Fdatasync);
                        match rustix::fs::fdatasync(&*fd) {
                            Ok(()) => (count, None),
                            Err(e) => {
                                carried.poisons = true;
                                (count, Some(Error::os("the write could not be made durable", e)))
                            }
                        }
                    }
                    error => (count, error),
                }
            } else {
                let (count, error) = blocking::read_all(&fd, &mut carried.buf[at..], offset, &mut counters);
                let error = match error {
                    Some(e) => Some(Error::os("read failed", e)),
                    None if front + count < range.len() => Some(ended_early(offset + count, range.end())),
                    None => None,
                };
                (count, error)
            };
            carried.error = error;
            CallDone { count, error: None, counters }
        }));
        let write = write.then_some(Choice { direct: false, ..choice });
        self.start(request, range, Step::Call { front, carried, write }, op);
    }

    fn end_read(&mut self, request: Request, range: ByteRange, buf: Buf, good: u64, result: Result<()>) {
        self.counters.read_bytes += good;
        let done = match request.op() {
            Op::Compare { buf: expected, .. } => {
                let (good, result) = match (result, buf.iter().zip(expected.iter()).position(|(a, b)| a != b))
                {
                    (Ok(()), Some(at)) => {
                        let text =
                            format!("byte {} differs from what was expected", range.offset() + at as u64);
                        (at as u64, Err(self.core.error(Kind::Mismatch, text).at(range)))
                    }
                    (Ok(()), None) => (good, Ok(())),
                    // Bytes that could not be read are equal to nothing.
                    (Err(error), at) => (good.min(at.unwrap_or(buf.len()) as u64), Err(error)),
                };
                request.complete(good, result)
            }
            _ => request.complete_with(buf, good, result),
        };
        self.end(done);
    }

    fn end_write(&mut self, request: Request, choice: Choice, buf: Buf, good: u64, result: Result<()>) {
        self.counters.written_bytes += good;
        if choice.after == After::Grew {
            self.grown_bytes += good;
            if self.grown_bytes > GROWTH_MAX && !self.writeback {
                (self.grown_bytes, self.writeback) = (0, true);
                let fd = self.core.fd.clone();
                let op = IoOp::Call(Box::new(move || {
                    // Only a hint: a real error shows at the next flush.
                    let _ = crate::sys::ioctl::start_writeback(&*fd);
                    CallDone::default()
                }));
                self.reactor.submit(self.port, WRITEBACK, op);
            }
        }
        self.end(request.complete_with(buf, good, result));
    }
}

impl Queue for FdQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        while self.slots.len() + self.parked.len() < IN_FLIGHT_MAX {
            let Some(request) = batch.pop_front() else { break };
            self.begin(request);
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut finished = std::mem::take(&mut self.finished);
        self.reactor.complete(self.port, &mut finished);
        let freed = !finished.is_empty();
        for io in finished.drain(..) {
            self.finish(io);
        }
        self.finished = finished;
        if freed && !self.parked.is_empty() {
            for request in std::mem::take(&mut self.parked) {
                self.begin(request);
            }
        }
        done.append(&mut self.done);
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Drop for FdQueue {
    fn drop(&mut self) {
        self.reactor.close_port(self.port);
    }
}

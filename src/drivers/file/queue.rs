//! The queue of files and block devices: requests in, reactor operations, completions out.

use super::blocking;
use super::closes::Closing;
use super::core::{Backing, Core};
use super::evidence::Reported;
use super::policy::After;
use super::statement::Said;
use super::transfer::{Files, Transfer, ended_early};
use super::way::{self, Direct};
use crate::block::way::{Entered, Entry, Need, Pass, Switch, Ticket, Wake, Way};
use crate::block::{
    Buf, ByteRange, Call, Completion, CopyReport, CopyRequest, Counters, Error, Fates, Kind, Method, Must,
    Op, Queue, Request, Result,
};
use crate::reactor::{self, CallDone, IoDone, IoOp, Port, Reactor};
use crate::sys::sync::lock;
use slab::Slab;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Requests in flight at most; the rest waits with the submitter.
const IN_FLIGHT_MAX: usize = 256;
/// Bytes newly dirtied in the page cache before their writeback is started.
const GROWTH_MAX: u64 = 64 << 20;
/// Token of calls that no request waits for.
const ASIDE: u64 = u64::MAX;
/// Token of the call that makes the leaf's cache clean, so that direct I/O may go on.
const SWITCH: u64 = u64::MAX - 1;

/// Finds the file or block device behind a copy's source.
pub(crate) type FindSource = fn(&CopyRequest) -> Option<&Arc<Core>>;

/// One thread's way to a file or block device.
pub(crate) struct FdQueue {
    core: Arc<Core>,
    find_source: FindSource,
    reactor: Rc<dyn Reactor>,
    port: Port,
    slots: Slab<Slot>,
    /// Requests that wait at the gate, in order.
    parked: VecDeque<Parked>,
    /// Some of them may go on.
    rung: Arc<AtomicBool>,
    wake: Wake,
    /// For flushes: this queue's own open, so that the kernel tells it of each lost write.
    sync: Option<Closing>,
    done: Vec<Completion>,
    finished: Vec<IoDone>,
    counters: Counters,
    grown_bytes: u64,
    /// A writeback has been started and has not ended.
    writeback: Arc<AtomicBool>,
}

/// A request that may not go on yet.
struct Parked {
    request: Request,
    ticket: Option<Ticket>,
    /// What it has already: a copy waits for its second file with the pass of the first.
    passes: Passes,
}

/// The rights a request needs to be in flight: one for each file it touches.
#[derive(Default)]
struct Passes {
    here: Option<Pass>,
    _source: Option<Pass>,
}

/// How a request goes, once it may.
#[derive(Clone)]
struct Route {
    /// The direct way, or the cache.
    direct: Option<Direct>,
    after: After,
}

struct Slot {
    request: Request,
    range: ByteRange,
    step: Step,
    passes: Passes,
}

enum Step {
    Read(Route),
    Write(Route),
    /// A write is done and becomes durable.
    Durable {
        after: After,
        buf: Buf,
    },
    Flush,
    /// On a helper thread; `front` bytes were done before.
    Call {
        front: u64,
        after: After,
        carried: Arc<Mutex<Carried>>,
    },
}

/// What a helper thread hands back beside the count.
#[derive(Default)]
struct Carried {
    buf: Buf,
    error: Option<Error>,
    /// The destination could not be made durable.
    poisons: bool,
    /// Direct I/O was refused, and nothing was done.
    refused: bool,
    /// What became of the bytes of a copy.
    fates: Fates,
}

/// Why bytes that were copied do not count: something else became of them than must.
fn unmet(must: Option<Must>, fates: &Fates) -> Option<Error> {
    let must = must?;
    let other = fates.iter().find(|one| !must.is_met_by(one.fate))?;
    let text = format!(
        "--require {}: the file system answered the call, but what became of {} bytes is: {} ({})",
        must.name(),
        other.bytes,
        other.fate.text(),
        other.how.text()
    );
    Some(Error::new(Kind::Unsupported, text))
}

fn is_fua(request: &Request) -> bool {
    matches!(request.op(), Op::Write { fua: true, .. })
}

/// An error by which a write was refused before anything of it reached the disk: it tells nothing of what is written
/// already.
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
        let (waker, rung) = (reactor.waker(), Arc::new(AtomicBool::new(false)));
        let ours = rung.clone();
        Ok(Self {
            rung,
            wake: Arc::new(move || {
                ours.store(true, Ordering::Release);
                waker.wake();
            }),
            sync: core.open_for_flushes(),
            core,
            find_source,
            reactor,
            port,
            slots: Slab::new(),
            parked: VecDeque::new(),
            done: Vec::new(),
            finished: Vec::new(),
            counters: Counters::default(),
            grown_bytes: 0,
            writeback: Arc::default(),
        })
    }

    /// Has clean cached pages of `range` dropped, soon: no request waits for it.
    fn drop_pages(&self, range: ByteRange) {
        let core = self.core.clone();
        self.aside(IoOp::Call(Box::new(move || {
            core.drop_pages(range);
            CallDone::default()
        })));
    }

    /// The descriptor of this queue's flushes.
    fn sync_fd(&self) -> Arc<OwnedFd> {
        self.sync.as_deref().unwrap_or(&self.core.fd).clone()
    }

    /// Has a call made that no request waits for. Its completion is nobody's: left with this queue's, which may not be
    /// polled again for long, it would keep the thread from sleeping.
    fn aside(&self, op: IoOp) {
        let port = self.reactor.open_port_of(&self.core.helpers);
        self.reactor.submit(port, ASIDE, op);
        self.reactor.close_port(port);
    }

    fn end(&mut self, done: Completion) {
        if done.result.is_ok() {
            self.counters.requests += 1;
        } else {
            self.counters.errors += 1;
        }
        self.done.push(done);
    }

    fn start(&mut self, request: Request, range: ByteRange, step: Step, passes: Passes, op: IoOp) {
        let token = self.slots.insert(Slot { request, range, step, passes });
        self.reactor.submit(self.port, token as u64, op);
    }

    fn begin(&mut self, parked: Parked) {
        let Parked { mut request, ticket, passes } = parked;
        if let Err(error) = self.core.admit(&request) {
            return self.end(request.complete_err(error));
        }
        let range = request.op().range().unwrap_or_default();
        if range.is_empty() && !matches!(request.op(), Op::Flush | Op::Copy(_)) {
            return self.end(request.complete_ok());
        }
        if matches!(request.op(), Op::Flush) {
            let op = IoOp::Sync { file: self.sync_fd(), data_only: true };
            return self.start(request, range, Step::Flush, passes, op);
        }
        let (entry, after) = self.core.entry(request.op());
        let Some((request_, passes)) = self.enter(request, entry, ticket, passes) else { return };
        request = request_;
        let goes_direct = passes.here.as_ref().is_some_and(|p| p.way() == Way::Direct);
        let route = Route { direct: self.core.direct().filter(|_| goes_direct), after };
        if goes_direct && route.direct.is_none() {
            // Given up since the gate was asked.
            drop(passes);
            return self.begin(Parked { request, ticket: None, passes: Passes::default() });
        }
        match request.op() {
            Op::Read { .. } => {
                let buf = request.take_buf();
                self.read(request, range, route, buf, passes);
            }
            Op::Compare { .. } => match usize::try_from(range.len()).ok().and_then(Buf::alloc) {
                Some(buf) => self.read(request, range, route, buf, passes),
                None => {
                    let error = self.core.error(Kind::NoMemory, "no memory to read what is compared");
                    self.end(request.complete_err(error.at(range)));
                }
            },
            Op::Write { .. } => self.write(request, range, route, passes),
            Op::WriteZeroes { may_unmap, .. } => {
                let may_unmap = *may_unmap;
                self.call(request, range, passes, move |core, counters| {
                    let writes = route.direct.as_ref().map_or(&*core.fd, |direct| &direct.fd);
                    blocking::write_zeroes(&core.fd, writes, range, may_unmap, counters)
                });
            }
            Op::Discard { .. } => self.call(request, range, passes, move |core, counters| {
                blocking::discard(&core.fd, core.backing, range, counters)
            }),
            Op::Copy(_) => self.copy(request, passes),
            Op::Flush => unreachable!("begun above"),
        }
    }

    /// Asks for a request to be let through by the gate of the leaf, and of its source's leaf if it copies through the
    /// cache. `None`: it is parked.
    fn enter(
        &mut self,
        request: Request,
        entry: Entry,
        mut ticket: Option<Ticket>,
        mut passes: Passes,
    ) -> Option<(Request, Passes)> {
        if passes.here.is_none() {
            match self.core.gate.enter(entry, ticket.take(), &self.wake) {
                Entered::Go(pass) => passes.here = Some(pass),
                Entered::Wait(ticket, switch) => {
                    let core = self.core.clone();
                    return self.park(request, ticket, switch, &core, passes);
                }
            }
        }
        if entry.need == Need::Cached
            && let Op::Copy(copy) = request.op()
            && let Some(source) = (self.find_source)(copy).cloned()
            && !Arc::ptr_eq(&source.gate, &self.core.gate)
        {
            let entry = Entry { need: Need::Cached, likes: Way::Cached, write: None };
            match source.gate.enter(entry, ticket, &self.wake) {
                Entered::Go(pass) => passes._source = Some(pass),
                Entered::Wait(ticket, switch) => return self.park(request, ticket, switch, &source, passes),
            }
        }
        Some((request, passes))
    }

    fn park(
        &mut self,
        request: Request,
        ticket: Ticket,
        switch: Option<Switch>,
        core: &Arc<Core>,
        passes: Passes,
    ) -> Option<(Request, Passes)> {
        self.parked.push_back(Parked { request, ticket: Some(ticket), passes });
        if let Some(switch) = switch {
            let core = core.clone();
            let op = IoOp::Call(Box::new(move || {
                match way::make_clean(&core.fd) {
                    Ok(()) => switch.done(),
                    Err(error) => {
                        tracing::warn!(device = %core.name, %error, "cached data cannot be written out");
                        // As after a failed flush: nobody knows what was lost.
                        core.poison();
                        drop(switch);
                    }
                }
                CallDone::default()
            }));
            self.reactor.submit(self.port, SWITCH, op);
        }
        None
    }

    fn read(&mut self, request: Request, range: ByteRange, route: Route, buf: Buf, passes: Passes) {
        if let Some(direct) = &route.direct {
            if !direct.takes(range, &buf) {
                return self.rest(request, range, route, false, buf, 0, passes);
            }
            let op = IoOp::Read { file: direct.fd.clone(), offset: range.offset(), buf, direct: true };
            return self.start(request, range, Step::Read(route), passes, op);
        }
        let op = IoOp::Read { file: self.core.fd.clone(), offset: range.offset(), buf, direct: false };
        self.start(request, range, Step::Read(route), passes, op);
    }

    fn write(&mut self, mut request: Request, range: ByteRange, route: Route, passes: Passes) {
        let fua = is_fua(&request);
        let buf = request.take_buf();
        if let Some(direct) = &route.direct {
            if !direct.takes(range, &buf) {
                return self.rest(request, range, route, true, buf, 0, passes);
            }
            let file = direct.fd.clone();
            let op = IoOp::Write { file, offset: range.offset(), buf, direct: true, dsync: fua };
            return self.start(request, range, Step::Write(route), passes, op);
        }
        // Through the cache it is synced after the write: an error of both in one could be that of other data, told
        // here and to no flush any more.
        let file = self.core.fd.clone();
        let op = IoOp::Write { file, offset: range.offset(), buf, direct: false, dsync: false };
        self.start(request, range, Step::Write(route), passes, op);
    }

    /// Runs `work` on a helper thread; it returns the good prefix in bytes and the result.
    fn call(
        &mut self,
        request: Request,
        range: ByteRange,
        passes: Passes,
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
        self.start(request, range, Step::Call { front: 0, after: After::Nothing, carried }, passes, op);
    }

    fn copy(&mut self, request: Request, passes: Passes) {
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
        let (fd, shared) = (self.sync_fd(), carried.clone());
        let brief = transfer.method == Method::Reflink && !fua;
        let stores = self.core.copies_what_is_stored;
        let (dest, source, must) = (self.core.clone(), (self.find_source)(copy).cloned(), copy.must);
        let work = Box::new(move || {
            let mut counters = Counters::default();
            let stored = if stores { transfer.store_sources() } else { Ok(()) };
            // Else the daemon is asked once, about the whole copy: `Device::copy_statement`.
            let before = (dest.is_ours && must.is_some()).then(|| Said::of(&*dest.fd)).flatten();
            let begun = Instant::now();
            let (mut count, mut result) = match stored {
                Ok(()) => transfer.run(&mut counters),
                Err(error) => (0, Err(error)),
            };
            if let Some(source) = &source {
                let reported = Reported {
                    method: transfer.method,
                    source,
                    dest: &dest,
                    sources: &transfer.sources,
                    to: transfer.dest,
                    took: begun.elapsed(),
                    before,
                };
                let fates = reported.fates(count);
                if let Some(error) = unmet(must, &fates) {
                    (count, result) = (0, Err(error));
                }
                lock(&shared).fates = fates;
            }
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
        self.start(request, range, Step::Call { front: 0, after: After::Nothing, carried }, passes, op);
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
            kernel: Files {
                source: source.fd.clone(),
                dest: self.core.fd.clone(),
                offload_only: self.core.is_ours && copy.must.is_some(),
            },
            method: copy.method,
            sources: copy.sources.clone(),
            dest: copy.dest,
            cancel: copy.cancel.clone(),
        })
    }

    fn finish(&mut self, io: IoDone) {
        self.counters += io.counters;
        match io.token {
            SWITCH | ASIDE => return,
            _ => {}
        }
        let index = usize::try_from(io.token).expect("a slot's index");
        let Slot { request, range, step, passes } = self.slots.remove(index);
        match step {
            Step::Read(route) => self.transferred(request, range, route, false, io, passes),
            Step::Write(route) => self.transferred(request, range, route, true, io, passes),
            Step::Durable { after, buf } => {
                let (good, result) = match io.error {
                    None => (range.len(), Ok(())),
                    Some(error) => {
                        // What was lost may be any write's: no later flush would say so.
                        self.core.poison();
                        let error = Error::os("the write could not be made durable", error);
                        (0, Err(error.on(&self.core.name).at(range)))
                    }
                };
                self.end_write(request, after, buf, good, result);
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
                    self.drop_pages(ByteRange::to(self.core.size()));
                }
                self.end(request.complete(0, result));
            }
            Step::Call { front, after, carried } => {
                let Carried { buf, error, poisons, refused, fates } = std::mem::take(&mut *lock(&carried));
                if refused {
                    return self.again_through_the_cache(request, range, buf, passes);
                }
                if poisons {
                    self.core.poison();
                }
                let good = if poisons { 0 } else { front + io.count };
                let raw = io.error.map(|e| Error::os("a helper thread failed", e));
                let result = error.or(raw).map_or(Ok(()), |e| Err(e.on(&self.core.name).at(range)));
                match request.op() {
                    Op::Read { .. } | Op::Compare { .. } => self.end_read(request, range, buf, good, result),
                    Op::Write { .. } => self.end_write(request, after, buf, good, result),
                    Op::Copy(_) => {
                        let mut done = request.complete(good, result);
                        let calls = io.counters;
                        done.copy = Some(Box::new(CopyReport { calls, fates, ..CopyReport::default() }));
                        self.end(done);
                    }
                    _ => self.end(request.complete(good, result)),
                }
            }
        }
    }

    /// The file system promised direct I/O and refuses it: seen with network and stacked ones.
    fn again_through_the_cache(&mut self, mut request: Request, range: ByteRange, buf: Buf, passes: Passes) {
        tracing::info!(device = %self.core.name, %range, "direct I/O refused: through the page cache from now on");
        self.core.gate.give_up_direct();
        drop(passes);
        if let Op::Read { buf: place, .. } | Op::Write { buf: place, .. } = request.op_mut() {
            *place = buf;
        }
        self.begin(Parked { request, ticket: None, passes: Passes::default() });
    }

    /// A read or write came back from the reactor: whole, short, or failed.
    fn transferred(
        &mut self,
        request: Request,
        range: ByteRange,
        route: Route,
        write: bool,
        io: IoDone,
        passes: Passes,
    ) {
        let good = io.count.min(range.len());
        let direct = route.direct.is_some();
        if let Some(error) = io.error {
            match error.raw_os_error() {
                Some(libc::EINVAL) if direct => {
                    return self.again_through_the_cache(request, range, io.buf, passes);
                }
                Some(libc::EINTR | libc::EAGAIN) => {
                    return self.rest(request, range, route, write, io.buf, good, passes);
                }
                _ => {}
            }
            if direct && is_fua(&request) && !error.raw_os_error().is_some_and(is_foreground) {
                // It may be the flush after the write that failed, and with it what others have written.
                self.core.poison();
            }
            let doing = if write { "write failed" } else { "read failed" };
            let error = Error::os(doing, error).on(&self.core.name).at(range);
            return if write {
                self.end_write(request, route.after, io.buf, good, Err(error))
            } else {
                self.end_read(request, range, io.buf, good, Err(error))
            };
        }
        if good < range.len() {
            return self.rest(request, range, route, write, io.buf, good, passes);
        }
        if write {
            if is_fua(&request) && !direct {
                let op = IoOp::Sync { file: self.sync_fd(), data_only: true };
                let step = Step::Durable { after: route.after, buf: io.buf };
                return self.start(request, range, step, passes, op);
            }
            let after = if direct { After::Nothing } else { route.after };
            self.end_write(request, after, io.buf, good, Ok(()));
        } else {
            if !direct && route.after == After::Drop {
                self.drop_pages(range);
            }
            self.end_read(request, range, io.buf, good, Ok(()));
        }
    }

    /// Does what is left after `front` bytes on a helper thread, until it is whole or fails: what a short answer left,
    /// and direct I/O whose offsets or memory are not those of whole blocks. Always the way that the request was let
    /// through for.
    #[allow(clippy::too_many_arguments)] // all of one request
    fn rest(
        &mut self,
        request: Request,
        range: ByteRange,
        route: Route,
        write: bool,
        buf: Buf,
        front: u64,
        passes: Passes,
    ) {
        let fua = is_fua(&request);
        // A block begun is done again as a whole.
        let front = route.direct.as_ref().map_or(front, |direct| front / direct.align * direct.align);
        let carried = Arc::new(Mutex::new(Carried { buf, ..Carried::default() }));
        let (fd, sync, shared) = (self.core.fd.clone(), self.sync_fd(), carried.clone());
        let after = if route.direct.is_some() { After::Nothing } else { route.after };
        let op = IoOp::Call(Box::new(move || {
            let mut counters = Counters::default();
            let mut carried = lock(&shared);
            let at = usize::try_from(front).expect("shorter than the buffer");
            let offset = range.offset() + front;
            let bytes = &mut carried.buf[at..];
            let (count, error) = match (&route.direct, write) {
                (Some(direct), true) => direct.write(bytes, offset, &mut counters),
                (Some(direct), false) => direct.read(bytes, offset, &mut counters),
                (None, true) => blocking::write_all(&fd, bytes, offset, &mut counters),
                (None, false) => blocking::read_all(&fd, bytes, offset, &mut counters),
            };
            let is_refusal = |e: &std::io::Error| e.raw_os_error() == Some(libc::EINVAL);
            if route.direct.is_some() && front + count == 0 && error.as_ref().is_some_and(is_refusal) {
                carried.refused = true;
                return CallDone { count, error: None, counters };
            }
            let mut error = error.map(|e| Error::os(if write { "write failed" } else { "read failed" }, e));
            if error.is_none() && write && fua {
                counters.count(Call::Fdatasync);
                if let Err(e) = rustix::fs::fdatasync(&*sync) {
                    carried.poisons = true;
                    error = Some(Error::os("the write could not be made durable", e));
                }
            }
            if error.is_none() && !write && front + count < range.len() {
                error = Some(ended_early(offset + count, range.end()));
            }
            carried.error = error;
            CallDone { count, error: None, counters }
        }));
        self.start(request, range, Step::Call { front, after, carried }, passes, op);
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

    fn end_write(&mut self, request: Request, after: After, buf: Buf, good: u64, result: Result<()>) {
        self.counters.written_bytes += good;
        if after == After::Grew {
            self.grown_bytes += good;
            if self.grown_bytes > GROWTH_MAX && !self.writeback.swap(true, Ordering::Relaxed) {
                self.grown_bytes = 0;
                let (fd, under_way) = (self.core.fd.clone(), self.writeback.clone());
                self.aside(IoOp::Call(Box::new(move || {
                    // Only a hint: a real error shows at the next flush.
                    let _ = crate::sys::ioctl::start_writeback(&*fd);
                    under_way.store(false, Ordering::Relaxed);
                    CallDone::default()
                })));
            }
        }
        self.end(request.complete_with(buf, good, result));
    }
}

impl Queue for FdQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        while self.slots.len() + self.parked.len() < IN_FLIGHT_MAX {
            let Some(request) = batch.pop_front() else { break };
            self.begin(Parked { request, ticket: None, passes: Passes::default() });
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut finished = std::mem::take(&mut self.finished);
        self.reactor.complete(self.port, &mut finished);
        for io in finished.drain(..) {
            self.finish(io);
        }
        self.finished = finished;
        // Whatever lets one go on may let the next.
        while !self.parked.is_empty() && self.rung.swap(false, Ordering::AcqRel) {
            for parked in std::mem::take(&mut self.parked) {
                self.begin(parked);
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
        // The last close of an open file may wait for its file system.
        if let Some(sync) = self.sync.take() {
            let sync = sync.part();
            let close = move || {
                drop(sync);
                CallDone::default()
            };
            self.aside(IoOp::Brief(Box::new(close)));
        }
        // What is in flight still touches the leaf: its rights end with it, not with the queue.
        let mut passes: Vec<Passes> =
            self.slots.iter_mut().map(|(_, s)| std::mem::take(&mut s.passes)).collect();
        passes.retain(|p| p.here.is_some());
        if passes.is_empty() {
            self.reactor.close_port(self.port);
        } else {
            self.reactor.close_port_keeping(self.port, Box::new(passes));
        }
    }
}

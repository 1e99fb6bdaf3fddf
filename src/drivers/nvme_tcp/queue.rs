//! One thread's I/O queue: requests become commands on a connection of its own, and what ends comes back.
//!
//! The socket is read and written by `submit` and `poll` themselves; the reactor is only asked to wake the thread when there
//! is something to read. When the connection is lost, requests wait here for the next one.

use super::Why;
use super::admin::{DEPTH, Facts};
use super::controller::SCANS;
use super::device::Namespace;
use super::link::{Link, Received, broken, buf_of};
use super::wire::{Fresh, Wire};
use crate::block::device::check_range;
use crate::block::{
    Buf, ByteRange, Completion, CopyReport, CopyRequest, Counters, Device, Error, Kind, Method, Op, Queue,
    Request, Result,
};
use crate::nvme::copy::{Format, LIST_LEN_MAX, SourceRange, whole_ranges, write_ranges};
use crate::nvme::io::{DsmRange, Extent};
use crate::nvme::status::Doing;
use crate::nvme::tcp::host::{Data, Event};
use crate::nvme::{Blocks, CopyCommand, Count8, Cqe, IoCommand, Sqe, Status};
use crate::reactor::{self, IoDone, IoOp, Port, Reactor};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// How often a command may be on its way when a connection is lost before it is given up: a command that brings the target
/// down would do so for ever.
const LOSSES_MAX: u8 = 3;
/// How often a command is tried again because the controller says that trying again may help.
const RETRIES_MAX: u8 = 3;
/// Tokens of the two waits for the socket.
const READABLE: u64 = 0;
const WRITABLE: u64 = 1;

/// One thread's way to a namespace.
pub(super) struct NvmeQueue {
    namespace: Arc<Namespace>,
    wire: Arc<Wire>,
    reactor: Rc<dyn Reactor>,
    port: Port,
    link: Option<Link>,
    most: Most,
    /// Of `link`, or of the last one.
    association: u64,
    /// The association on which the queue was opened.
    opened: u64,
    /// Associations up to this one execute nothing any more.
    quiet: u64,
    /// By slot of the connection.
    works: Box<[Option<Work>]>,
    free: Vec<u16>,
    /// Commands on the connection.
    out: usize,
    /// Waiting for a connection, or for an old one to be quiet.
    held: VecDeque<Work>,
    armed: [bool; 2],
    /// Quarters of the command time-out seen.
    scans: u32,
    /// Buffers for lists of ranges.
    lists: Vec<Buf>,
    dead: Option<Why>,
    done: Vec<Completion>,
    finished: Vec<IoDone>,
    counters: Counters,
}

/// What one command may be, in bytes.
#[derive(Clone, Copy)]
struct Most {
    data: u64,
    zeroes: u64,
    discard: u64,
}

impl Most {
    fn of(facts: &Facts, block: u32) -> Self {
        let block = u64::from(block);
        // NLB counts up to 65536 blocks; a limit below one block would be no limit one can keep.
        let whole = |bytes: u64| (bytes - bytes % block).clamp(block, block << 16);
        Self {
            data: whole(facts.data_bytes_max()),
            zeroes: whole(facts.zeroes_bytes_max()),
            discard: facts.discard_blocks_max().max(1).saturating_mul(block),
        }
    }
}

/// A request on its way.
struct Work {
    request: Request,
    /// The request's buffer, or the list of a copy; with the connection while a command is out.
    buf: Buf,
    /// What the request's buffer showed.
    shown: (usize, usize),
    /// Bytes of the request's front that are done.
    done: u64,
    /// Bytes of the command that is out.
    part: u64,
    /// Number of a flush.
    flush: u64,
    /// `scans` when the command was sent.
    sent: u32,
    losses: u8,
    retries: u8,
    /// A command of it was sent and has not ended well: what it was to change may hold anything.
    begun: bool,
    /// The association on which the command may still be executed, and leave its mark.
    doubt: Option<u64>,
    /// The quarter of the command time-out in which it is not sent again.
    not_in: Option<u32>,
    /// Why it is not to be sent again.
    failed: Option<Error>,
}

impl NvmeQueue {
    /// Opens a queue on the calling thread.
    ///
    /// Errors: no reactor, and those of connecting.
    pub(super) fn open(namespace: Arc<Namespace>) -> Result<Self> {
        let reactor = reactor::current().ok_or_else(|| {
            Error::new(Kind::InvalidInput, "this thread has no reactor; enter one before opening a queue")
        })?;
        let (wire, Fresh { link, facts, association }) =
            namespace.controller().open_queue(&reactor.waker())?;
        let port = reactor.open_port();
        let mut queue = Self {
            most: Most::of(&facts, namespace.block()),
            wire,
            reactor,
            port,
            link: Some(link),
            association,
            opened: association,
            quiet: 0,
            works: (0..DEPTH).map(|_| None).collect(),
            free: Vec::with_capacity(DEPTH.into()),
            out: 0,
            held: VecDeque::new(),
            armed: [false; 2],
            scans: 0,
            lists: Vec::new(),
            dead: None,
            done: Vec::new(),
            finished: Vec::new(),
            counters: Counters::default(),
            namespace,
        };
        queue.free.extend((0..facts.depth.min(DEPTH)).rev());
        Ok(queue)
    }

    // --- requests ----------------------------------------------------------------------------------------------------

    /// Checks a request and starts it, or keeps it until there is a connection.
    fn begin(&mut self, mut request: Request) {
        if let Err(error) = self.check(&request) {
            return self.end_at_once(request, Err(error));
        }
        let nothing = match request.op() {
            Op::Flush => !self.namespace.cache.is_volatile(),
            op => op.range().is_some_and(ByteRange::is_empty),
        };
        if nothing {
            return self.end_at_once(request, Ok(()));
        }
        let buf = if uses_list(request.op()) {
            match self.lists.pop().or_else(|| Buf::alloc(LIST_LEN_MAX)) {
                Some(list) => list,
                None => {
                    let error = Error::new(Kind::NoMemory, "no memory for a list of ranges");
                    return self.end_at_once(request, Err(error));
                }
            }
        } else {
            request.take_buf()
        };
        let flush = match request.op() {
            Op::Flush => self.namespace.cache.flush_begins(),
            _ => 0,
        };
        let work = Work {
            shown: buf.shown(),
            request,
            buf,
            done: 0,
            part: 0,
            flush,
            sent: 0,
            losses: 0,
            retries: 0,
            begun: false,
            doubt: None,
            not_in: None,
            failed: None,
        };
        match self.free.pop() {
            Some(slot) if self.link.is_some() => self.start(slot, work),
            slot => {
                self.free.extend(slot);
                self.held.push_back(work);
            }
        }
    }

    fn check(&self, request: &Request) -> Result<()> {
        let namespace = &*self.namespace;
        if let Some(why) = &self.dead {
            return Err(why.error());
        }
        namespace.check_there()?;
        if let Some(range) = request.op().range() {
            check_range(range, namespace.size(), namespace.block())?;
        }
        let able = &namespace.abilities;
        let lacks = |command: &str| {
            Err(Error::new(Kind::Unsupported, format!("the controller has no {command} command")))
        };
        match request.op() {
            Op::Flush => namespace.cache.check(self.opened),
            Op::Compare { .. } if !able.compare => lacks("Compare"),
            Op::Discard { .. } if !able.discard => lacks("Dataset Management"),
            Op::WriteZeroes { .. } if !able.write_zeroes => lacks("Write Zeroes"),
            Op::Copy(copy) => self.check_copy(copy),
            _ => Ok(()),
        }
    }

    /// Errors: `TooLarge` with what one command takes; `Unsupported` for sources it does not reach.
    fn check_copy(&self, copy: &CopyRequest) -> Result<()> {
        let refuse = |text: String| Err(Error::new(Kind::Unsupported, text));
        let namespace = &*self.namespace;
        if copy.method != Method::NvmeCopy {
            return refuse(format!("a namespace cannot copy by {}", copy.method));
        }
        let able = &namespace.abilities;
        let Some(most) = able.copy else { return refuse("the controller has no Copy command".to_owned()) };
        let Some(source) = copy.source.as_any().downcast_ref::<Namespace>() else {
            return refuse("the source is no namespace".to_owned());
        };
        if !Arc::ptr_eq(source.controller(), namespace.controller()) {
            return refuse("the source is on another controller".to_owned());
        }
        if source.nsid() != namespace.nsid() && (!able.copies_across || source.block() != namespace.block()) {
            return refuse("the controller does not copy between these two namespaces".to_owned());
        }
        source.check_there()?;
        copy.check(namespace.identity())?;
        let block = u64::from(namespace.block());
        let mut fits = 0;
        for (i, range) in copy.sources.iter().enumerate() {
            check_range(*range, source.size(), source.block()).map_err(|e| e.on(source.name()))?;
            if range.is_empty() {
                return Err(Error::new(Kind::InvalidInput, "a source range of no bytes"));
            }
            // What a command cut behind the last range that fits, or inside the first that does not, may hold.
            let room = (most.blocks * block).saturating_sub(fits).min(most.range_blocks * block);
            let room = if i < most.ranges { room } else { 0 };
            if range.len() > room {
                let max_bytes = fits + room;
                let text = format!(
                    "one Copy takes {} ranges of {} blocks, {} blocks in all: at most {max_bytes} bytes of this",
                    most.ranges, most.range_blocks, most.blocks
                );
                return Err(Error::new(Kind::TooLarge { max_bytes }, text));
            }
            fits += range.len();
        }
        Ok(())
    }

    fn end_at_once(&mut self, request: Request, result: Result<()>) {
        let done = match result {
            Ok(()) => {
                self.counters.requests += 1;
                request.complete_ok()
            }
            Err(error) => {
                self.counters.errors += 1;
                request.complete_err(error.on(self.namespace.name()))
            }
        };
        self.done.push(done);
    }

    // --- commands ----------------------------------------------------------------------------------------------------

    /// Sends the command for the next part of a request.
    fn start(&mut self, slot: u16, mut work: Work) {
        let (sqe, data) = self.command(&mut work);
        // As it is now: this queue may not have looked for long.
        work.sent = self.wire.scans();
        work.doubt = None;
        work.not_in = None;
        let link = self.link.as_mut().expect("asked before");
        link.machine().submit(slot, sqe, data);
        self.works[usize::from(slot)] = Some(work);
        self.out += 1;
    }

    fn command(&mut self, work: &mut Work) -> (Sqe, Data) {
        let nsid = self.namespace.nsid();
        let block = u64::from(self.namespace.block());
        let most = match work.request.op() {
            Op::WriteZeroes { .. } => self.most.zeroes,
            Op::Discard { .. } => self.most.discard,
            Op::Copy(_) => u64::MAX,
            _ => self.most.data,
        };
        let rest = work.request.op().range().map_or(ByteRange::default(), |r| r.after(work.done));
        work.part = rest.len().min(most);
        let slba = rest.offset() / block;
        let blocks = work.part / block;
        let extent = |fua| {
            let blocks = u32::try_from(blocks).ok().and_then(Blocks::new);
            let blocks = blocks.expect("1 to 65536: not empty, and within `Most`");
            Extent { fua, ..Extent::new(nsid, slba, blocks) }
        };
        let command = match work.request.op() {
            Op::Read { .. } => {
                let command = IoCommand::Read(extent(false));
                return (command.to_sqe(), Data::In(work.take_part()));
            }
            Op::Write { fua, .. } => IoCommand::Write(extent(*fua)),
            Op::Compare { .. } => IoCommand::Compare(extent(false)),
            Op::WriteZeroes { may_unmap, .. } => {
                let deallocate = *may_unmap && self.namespace.abilities.zeroes_may_unmap;
                let command = IoCommand::WriteZeroes { extent: extent(false), deallocate };
                return (command.to_sqe(), Data::None);
            }
            Op::Flush => return (IoCommand::Flush { nsid }.to_sqe(), Data::None),
            Op::Discard { .. } => {
                let range = DsmRange { slba, blocks: u32::try_from(blocks).unwrap_or(u32::MAX) };
                let command = IoCommand::DatasetManagement { nsid, ranges: Count8::ONE, deallocate: true };
                let mut list = std::mem::take(&mut work.buf);
                list.set_len(DsmRange::LEN);
                list.copy_from_slice(&range.to_bytes());
                return (command.to_sqe(), Data::Out(list));
            }
            Op::Copy(copy) => {
                let source =
                    copy.source.as_any().downcast_ref::<Namespace>().expect("checked by `check_copy`");
                let inside = source.nsid() == nsid && self.namespace.abilities.copies_inside;
                let format = if inside { Format::F0 } else { Format::F2 };
                let ranges: SmallVec<[SourceRange; 8]> = copy
                    .sources
                    .iter()
                    .map(|r| SourceRange {
                        snsid: (!inside).then(|| source.nsid()),
                        slba: r.offset() / block,
                        blocks: u32::try_from(r.len() / block)
                            .ok()
                            .and_then(Blocks::new)
                            .expect("1 to MSSRL, checked by `check_copy`"),
                        fco: false,
                    })
                    .collect();
                let count = u32::try_from(ranges.len()).ok().and_then(Count8::new);
                let count = count.expect("1 to 256, checked by `check_copy`");
                let command = CopyCommand { fua: copy.fua, ..CopyCommand::new(nsid, slba, count, format) };
                let mut list = std::mem::take(&mut work.buf);
                list.set_len(command.list_len());
                write_ranges(format, &ranges, &mut list);
                return (command.to_sqe(), Data::Out(list));
            }
        };
        (command.to_sqe(), Data::Out(work.take_part()))
    }

    /// A command has ended.
    fn ended(&mut self, slot: u16, cqe: Cqe, data: Data, received: u32) {
        let Some(mut work) = self.works[usize::from(slot)].take() else { return };
        self.out -= 1;
        work.buf = buf_of(data);
        if !cqe.status.is_success() {
            return self.refused(slot, work, &cqe);
        }
        if matches!(work.request.op(), Op::Read { .. }) && u64::from(received) != work.part {
            self.free.push(slot);
            let text = format!("the target sent {received} bytes of {} and called it a success", work.part);
            return self.finish(work, Err(Error::new(Kind::Io, text)));
        }
        let op = work.request.op();
        if op.is_write() && !is_durable(op) {
            self.namespace.cache.written(self.association);
        }
        work.done += work.part;
        if op.range().is_some_and(|r| work.done < r.len()) {
            work.retries = 0;
            return self.start(slot, work);
        }
        self.free.push(slot);
        let mut result = Ok(());
        if matches!(work.request.op(), Op::Flush) {
            // Asked again: a connection may have been lost, and made anew, while the flush was under way.
            result = self.namespace.cache.check(self.opened);
            if result.is_ok() {
                self.namespace.cache.flushed(work.flush);
            }
        }
        self.finish(work, result);
    }

    /// A command has ended with a status that is no success.
    #[cold]
    fn refused(&mut self, slot: u16, mut work: Work, cqe: &Cqe) {
        let status = cqe.status;
        work.begun = true;
        // Nothing was executed: the data came to harm on the way, or the namespace is not ready yet, for which it gets time.
        let later = status.is(Status::NAMESPACE_NOT_READY);
        let again = later || status.is(Status::TRANSIENT_TRANSPORT_ERROR);
        if again && !status.do_not_retry() && work.retries < RETRIES_MAX && self.link.is_some() {
            work.retries += 1;
            if later {
                work.not_in = Some(self.wire.scans());
                self.free.push(slot);
                self.held.push_back(work);
                return;
            }
            return self.start(slot, work);
        }
        // A part of it may have been done, and may lie in the cache.
        if work.request.op().is_write() {
            self.namespace.cache.written(self.association);
        }
        self.free.push(slot);
        let doing = match work.request.op() {
            Op::Read { .. } => Doing::Read,
            Op::Write { .. } => Doing::Write,
            Op::Compare { .. } => Doing::Compare,
            Op::WriteZeroes { .. } => Doing::WriteZeroes,
            Op::Discard { .. } => Doing::Deallocate,
            Op::Flush => Doing::Flush,
            Op::Copy(_) => Doing::Copy,
        };
        // Limits that have changed since they were asked for: to what, nobody says.
        let mut shorter = None;
        if let Op::Copy(copy) = work.request.op() {
            let ranges = u32::try_from(copy.sources.len()).ok().and_then(Count8::new).unwrap_or(Count8::ONE);
            let whole = whole_ranges(ranges, cqe) as usize;
            work.done = copy.sources[..whole].iter().map(|r| r.len()).sum();
            let half = copy.dest.len() / 2;
            shorter = Some(half - half % u64::from(self.namespace.block()));
        }
        let error = status.to_error(doing, shorter);
        self.finish(work, Err(error));
    }

    /// Ends a request.
    fn finish(&mut self, work: Work, result: Result<()>) {
        let Work { request, mut buf, shown, done, begun, .. } = work;
        if uses_list(request.op()) {
            self.lists.push(std::mem::take(&mut buf));
        } else {
            buf.narrow(shown.0, shown.1);
        }
        let is_copy = matches!(request.op(), Op::Copy(_));
        let range = request.op().range();
        match request.op() {
            Op::Read { .. } | Op::Compare { .. } => self.counters.read_bytes += done,
            Op::Write { .. } => self.counters.written_bytes += done,
            _ => {}
        }
        if result.is_ok() {
            self.counters.requests += 1;
        } else {
            self.counters.errors += 1;
        }
        let rest_undefined = begun && result.is_err();
        let result = result.map_err(|e| {
            let e = e.on(self.namespace.name());
            if let Some(range) = range { e.at(range) } else { e }
        });
        let mut completion = request.complete_with(buf, done, result);
        if is_copy {
            completion.copy = Some(Box::new(CopyReport { rest_undefined, ..CopyReport::default() }));
        }
        self.done.push(completion);
    }

    // --- the connection ----------------------------------------------------------------------------------------------

    /// Takes what has ended and sends what there is, until there is neither.
    fn turn(&mut self) {
        loop {
            self.events();
            let Some(link) = &mut self.link else { return };
            if link.machine().output().is_empty() {
                return;
            }
            match link.send() {
                Ok(true) => {}
                Ok(false) => {
                    self.events();
                    return self.arm(WRITABLE);
                }
                Err(error) => return self.lost(Why::of(&error)),
            }
        }
    }

    /// Takes what has ended.
    fn events(&mut self) {
        loop {
            let Some(link) = &mut self.link else { return };
            match link.machine().next() {
                Some(Event::Done { slot, cqe, data, received }) => self.ended(slot, cqe, data, received),
                Some(Event::Broken(why)) => return self.lost(Why::of(&broken(&why))),
                Some(Event::Ready { .. }) => {}
                None => return,
            }
        }
    }

    /// Reads the socket dry.
    fn drain_socket(&mut self) {
        loop {
            let Some(link) = &mut self.link else { return };
            match link.receive() {
                Err(error) => return self.lost(Why::of(&error)),
                Ok(Received::More) => self.turn(),
                Ok(Received::Last | Received::Nothing) => return self.turn(),
            }
        }
    }

    /// Has the thread woken when the socket is ready.
    fn arm(&mut self, token: u64) {
        let at = usize::from(token == WRITABLE);
        if let (Some(link), false) = (&self.link, self.armed[at]) {
            let op = IoOp::Ready { file: link.socket().clone(), write: token == WRITABLE };
            self.reactor.submit(self.port, token, op);
            self.armed[at] = true;
        }
    }

    /// The connection is gone: what was on it waits for the next one.
    #[cold]
    fn lost(&mut self, why: Why) {
        let Some(mut link) = self.link.take() else { return };
        // Why it was ended here goes out while the machine still has it.
        if link.machine().is_closing() {
            let _ = link.send();
        } else {
            link.machine().close();
        }
        self.counters += link.take_counters();
        while let Some(unfinished) = link.machine().drain() {
            let Some(mut work) = self.works[usize::from(unfinished.slot)].take() else { continue };
            work.buf = buf_of(unfinished.data);
            if unfinished.maybe_executed {
                work.begun = true;
                work.losses += 1;
                work.doubt = work.request.op().is_write().then_some(self.association);
                if work.losses > LOSSES_MAX && work.failed.is_none() {
                    let text =
                        format!("the connection was lost {} times with this under way: {why}", work.losses);
                    work.failed = Some(Error::new(Kind::Io, text));
                }
            }
            self.held.push_back(work);
        }
        (self.out, self.free) = (0, Vec::with_capacity(DEPTH.into()));
        self.namespace.controller().report_lost(self.association, why);
    }

    /// Looks at what the controller's thread has sent.
    fn read_mail(&mut self) {
        let Some(mail) = self.wire.take_mail() else { return };
        self.quiet = mail.quiet;
        if mail.lost >= self.association && self.link.is_some() {
            self.lost(Why::new("the association was ended".to_owned()));
        }
        if let Some(Fresh { link, facts, association }) = mail.fresh {
            self.most = Most::of(&facts, self.namespace.block());
            self.association = association;
            self.free.clear();
            self.free.extend((0..facts.depth.min(DEPTH)).rev());
            self.link = Some(link);
        }
        if let Some(why) = mail.dead {
            self.lost(why.clone());
            self.dead = Some(why);
        }
        self.resume();
    }

    /// Starts what waits, as far as it may; ends what is given up.
    #[cold]
    fn resume(&mut self) {
        for _ in 0..self.held.len() {
            let Some(mut work) = self.held.pop_front() else { return };
            let sure = work.doubt.is_none_or(|association| association <= self.quiet);
            let cancelled = matches!(work.request.op(), Op::Copy(copy) if copy.cancel.is_set());
            if let Some(why) = &self.dead {
                let error = work.failed.take().unwrap_or_else(|| why.error());
                self.finish(work, Err(error));
            } else if !sure {
                // It may still be executed: neither to be sent again nor to be called failed.
                self.held.push_back(work);
            } else if let Some(error) = work.failed.take() {
                self.finish(work, Err(error));
            } else if cancelled {
                let text = "stopped on request while there was no connection";
                self.finish(work, Err(Error::new(Kind::Cancelled, text)));
            } else if let Err(error) = self.check(&work.request) {
                self.finish(work, Err(error));
            } else if self.link.is_none() || self.free.is_empty() || work.not_in == Some(self.wire.scans()) {
                self.held.push_back(work);
            } else {
                let slot = self.free.pop().expect("asked before");
                self.start(slot, work);
            }
        }
    }

    /// Looks for commands that take too long, when a quarter of that time has passed.
    fn scan(&mut self) {
        let now = self.wire.scans();
        if now == self.scans {
            return;
        }
        self.scans = now;
        let mut late = None;
        for work in self.works.iter_mut().flatten() {
            // The first quarter may have been a short one.
            if now.wrapping_sub(work.sent) > SCANS {
                let text = "the target did not answer in time; the controller is reset";
                work.failed = Some(Error::new(Kind::Io, text));
                late = Some(work.request.op().name());
            }
        }
        if let Some(name) = late {
            self.lost(Why::new(format!("a {name} was not answered in time")));
        }
    }
}

impl Work {
    /// The buffer for the present part of a read, write or compare.
    fn take_part(&mut self) -> Buf {
        let mut buf = std::mem::take(&mut self.buf);
        let fits = "within a buffer";
        let (done, part) = (usize::try_from(self.done).expect(fits), usize::try_from(self.part).expect(fits));
        // Always: it may have been narrowed to another length before its connection was lost.
        buf.narrow(self.shown.0 + done, part);
        buf
    }
}

/// The data of the command is a list of ranges.
fn uses_list(op: &Op) -> bool {
    matches!(op, Op::Copy(_) | Op::Discard { .. })
}

/// What it changes is durable when it completes.
fn is_durable(op: &Op) -> bool {
    match op {
        Op::Write { fua, .. } => *fua,
        Op::Copy(copy) => copy.fua,
        _ => false,
    }
}

impl Queue for NvmeQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        self.read_mail();
        if !self.held.is_empty() && self.link.is_some() {
            self.resume();
        }
        while !batch.is_empty() {
            let room = match &self.link {
                Some(_) => !self.free.is_empty(),
                // Also when nothing more will be sent: then they end at once.
                None => self.dead.is_some() || self.held.len() < usize::from(DEPTH),
            };
            if !room {
                break;
            }
            let Some(request) = batch.pop_front() else { break };
            self.begin(request);
        }
        self.turn();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.read_mail();
        if self.armed != [false; 2] {
            self.reactor.complete(self.port, &mut self.finished);
            for io in self.finished.drain(..) {
                self.armed[usize::from(io.token == WRITABLE)] = false;
            }
        }
        if self.out > 0 {
            self.drain_socket();
        }
        // After what has come: nobody may have looked for long.
        self.scan();
        if !self.held.is_empty() {
            self.resume();
            self.turn();
        }
        if self.out > 0 {
            self.arm(READABLE);
        }
        done.append(&mut self.done);
    }

    fn counters(&self) -> Counters {
        let mut counters = self.counters;
        if let Some(link) = &self.link {
            counters += link.counters();
        }
        counters
    }
}

impl Drop for NvmeQueue {
    fn drop(&mut self) {
        // The connection ends with its link, which also ends what waits for the socket.
        self.link = None;
        self.reactor.close_port(self.port);
    }
}

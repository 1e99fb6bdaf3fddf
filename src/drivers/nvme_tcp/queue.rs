//! One thread's I/O queue: requests become commands on a connection of its own, and what ends comes back.
//!
//! The socket is read and written by `submit` and `poll` themselves; the reactor is only asked to wake the thread when
//! there is something to read. When the connection is lost, requests wait here for the next one.

use super::Why;
use super::admin::{DEPTH, Facts};
use super::channel::{Channel, Ended};
use super::controller::SCANS;
use super::device::Namespace;
use super::link::buf_of;
use super::wire::{Fresh, Wire};
use super::work::{Most, Work, asks_for_fast, is_durable, uses_list};
use crate::block::device::check_range;
use crate::block::{
    Buf, ByteRange, Completion, CopyReport, CopyRequest, Counters, Device, Error, Evidence, Fate, Fates,
    Kind, Method, Op, Queue, Request, Result,
};
use crate::nvme::copy::{LIST_LEN_MAX, whole_ranges};
use crate::nvme::status::{Doing, Retry};
use crate::nvme::tcp::host::Data;
use crate::nvme::{Count8, Cqe};
use crate::reactor::{self, IoDone, IoOp, Port, Reactor, helpers};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a command may be on its way when a connection is lost before it is given up: a command that brings the
/// target down would do so for ever.
const LOSSES_MAX: u8 = 3;
/// How often a command that failed by what may have been an accident is tried again: as often as by Linux.
const RETRIES_MAX: u32 = 5;
/// Pauses before a command is tried again where the controller does not say how long: the first, doubled up to the
/// longest.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_LONGEST: Duration = Duration::from_secs(1);
/// Pause before the first connection is tried again that could not be made.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
/// Tokens of the two waits for the socket.
const READABLE: u64 = 0;
const WRITABLE: u64 = 1;

/// One thread's way to a namespace.
pub(super) struct NvmeQueue {
    namespace: Arc<Namespace>,
    wire: Arc<Wire>,
    reactor: Rc<dyn Reactor>,
    port: Port,
    channel: Option<Arc<Channel>>,
    most: Most,
    /// What the controller says of itself.
    facts: Arc<Facts>,
    /// Of `channel`, or of the last one.
    association: u64,
    /// The association on which the queue was opened.
    opened: u64,
    /// Associations up to this one execute nothing any more.
    quiet: u64,
    /// By slot of the connection.
    works: Box<[Option<Work>]>,
    /// Commands of this queue on the connection.
    out: usize,
    /// The quarter of the command time-out since which requests wait for a place on the connection.
    crowded: Option<u32>,
    /// Waiting for a connection, or for an old one to be quiet.
    held: VecDeque<Work>,
    armed: [bool; 2],
    /// Quarters of the command time-out seen.
    scans: u32,
    /// Buffers for lists of ranges.
    lists: Vec<Buf>,
    dead: Option<Why>,
    /// No connection for so long that requests fail.
    away: Option<Why>,
    /// Why the last connection was lost.
    lost_why: Option<Why>,
    /// Ends of commands, on their way from the connection.
    ended: Vec<Ended>,
    done: Vec<Completion>,
    finished: Vec<IoDone>,
    counters: Counters,
}

impl NvmeQueue {
    /// Opens a queue on the calling thread.
    ///
    /// Errors: no reactor, and those of connecting.
    pub(super) fn open(namespace: Arc<Namespace>) -> Result<Self> {
        let reactor = reactor::current().ok_or_else(|| {
            Error::new(Kind::InvalidInput, "this thread has no reactor; enter one before opening a queue")
        })?;
        let wire = Arc::new(Wire::new(reactor.waker()));
        let (channel, facts, association) = match namespace.controller().last() {
            // This thread serves others too: requests wait until there is a connection, and nobody else does.
            Some((association, facts)) if !reactor.may_wait() => {
                let (ours, of) = (wire.clone(), namespace.clone());
                let helpers = helpers::of(namespace.identity(), namespace.name());
                helpers.run(move || connect(&of, &ours));
                (None, facts, association)
            }
            _ => {
                let Fresh { channel, facts, association } = namespace.controller().open_queue(&wire)?;
                (Some(channel), facts, association)
            }
        };
        let port = reactor.open_port();
        Ok(Self {
            most: Most::of(&facts, namespace.block()),
            wire,
            reactor,
            port,
            channel,
            facts,
            association,
            opened: association,
            quiet: 0,
            works: (0..DEPTH).map(|_| None).collect(),
            out: 0,
            crowded: None,
            held: VecDeque::new(),
            armed: [false; 2],
            scans: 0,
            lists: Vec::new(),
            dead: None,
            away: None,
            lost_why: None,
            ended: Vec::new(),
            done: Vec::new(),
            finished: Vec::new(),
            counters: Counters::default(),
            namespace,
        })
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
        let work = Work::new(request, buf, flush);
        match self.take_slot() {
            Some(slot) => self.start(slot, work),
            None => self.held.push_back(work),
        }
    }

    /// A place for a command on the connection.
    fn take_slot(&mut self) -> Option<u16> {
        let channel = self.channel.as_ref()?;
        let slot = channel.take_slot(self.wire.number);
        match slot {
            Some(_) => self.crowded = None,
            None => _ = self.crowded.get_or_insert_with(|| self.wire.scans()),
        }
        slot
    }

    fn give_back(&self, slot: u16) {
        if let Some(channel) = &self.channel {
            channel.give_back(slot);
        }
    }

    fn check(&self, request: &Request) -> Result<()> {
        let namespace = &*self.namespace;
        if let Some(why) = self.dead.as_ref().or(self.away.as_ref()) {
            return Err(why.error());
        }
        namespace.check_there()?;
        if request.op().is_write() {
            namespace.check_doubt(self.quiet)?;
        }
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
            return refuse("the source is not a namespace".to_owned());
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
            // What a command cut after the last range that fits, or inside the first that does not, may hold.
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
        let (sqe, data) = work.command(&self.namespace, &self.most);
        // As it is now: this queue may not have looked for long.
        work.sent = self.wire.scans();
        work.doubt = None;
        work.not_before = None;
        self.works[usize::from(slot)] = Some(work);
        self.out += 1;
        let Self { channel: Some(channel), ended, .. } = self else { return };
        channel.submit(slot, sqe, data, ended);
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
            self.give_back(slot);
            let text = format!("the target sent {received} bytes of {} and reported success", work.part);
            return self.finish(work, Err(Error::new(Kind::Io, text)));
        }
        let op = work.request.op();
        if op.is_write() && !is_durable(op) {
            self.namespace.cache.written(self.association);
        }
        work.done += work.part;
        if op.range().is_some_and(|r| work.done < r.len()) {
            (work.retries, work.refused_since) = (0, None);
            if self.channel.as_ref().is_some_and(|c| !c.is_wanted(self.wire.number)) {
                return self.start(slot, work);
            }
            // Others wait for the place.
            self.give_back(slot);
            self.held.push_front(work);
            return;
        }
        self.give_back(slot);
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
        let doing = match work.request.op() {
            Op::Read { .. } => Doing::Read,
            Op::Write { .. } => Doing::Write,
            Op::Compare { .. } => Doing::Compare,
            Op::WriteZeroes { .. } => Doing::WriteZeroes,
            Op::Discard { .. } => Doing::Deallocate,
            Op::Flush => Doing::Flush,
            Op::Copy(_) => Doing::Copy,
        };
        work.begun = true;
        self.give_back(slot);
        if let Some(at) = self.again_at(&mut work, cqe, doing) {
            work.not_before = Some(at);
            self.wire.set_alarm(at);
            self.namespace.controller().look_at_alarms();
            self.held.push_back(work);
            return;
        }
        // A part of it may have been done, and may lie in the cache.
        if work.request.op().is_write() {
            self.namespace.cache.written(self.association);
        }
        // Limits that have changed since they were asked for: to what, nobody says.
        let mut shorter = None;
        if let Op::Copy(copy) = work.request.op() {
            let ranges = u32::try_from(copy.sources.len()).ok().and_then(Count8::new).unwrap_or(Count8::ONE);
            let whole = whole_ranges(ranges, cqe) as usize;
            work.done = copy.sources[..whole].iter().map(|r| r.len()).sum();
            let half = copy.dest.len() / 2;
            shorter = Some(half - half % u64::from(self.namespace.block()));
        }
        let mut error = status.to_error(doing, shorter);
        if let Some(since) = work.refused_since {
            let text = format!("{error}; tried {} times in {:.1?}", work.retries + 1, since.elapsed());
            error = Error::new(error.kind(), text).because(status);
        }
        self.finish(work, Err(error));
    }

    /// When a command is sent again that ended with a status; `None`: the status stands.
    #[cold]
    fn again_at(&self, work: &mut Work, cqe: &Cqe, doing: Doing) -> Option<Instant> {
        let retry = cqe.status.retry(doing);
        let cancelled = matches!(work.request.op(), Op::Copy(copy) if copy.cancel.is_set());
        if retry == Retry::Never || cancelled || self.channel.is_none() {
            return None;
        }
        let now = Instant::now();
        let end = *work.refused_since.get_or_insert(now) + self.namespace.controller().patience().retry;
        if now >= end || (retry == Retry::AFewTimes && work.retries >= RETRIES_MAX) {
            return None;
        }
        let pause = match self.facts.retry_delay(cqe.status) {
            Duration::ZERO => RETRY_FIRST.saturating_mul(1 << work.retries.min(10)).min(RETRY_LONGEST),
            delay => delay,
        };
        work.retries += 1;
        // The last attempt comes at the end of the time, however long the controller wants to be left alone.
        Some((now + pause).min(end))
    }

    /// Ends a request.
    fn finish(&mut self, work: Work, result: Result<()>) {
        let Work { request, mut buf, shown, done, begun, .. } = work;
        if uses_list(request.op()) {
            self.lists.push(std::mem::take(&mut buf));
        } else {
            buf.narrow(shown.0, shown.1);
        }
        let copied_by = match request.op() {
            Op::Copy(copy) if asks_for_fast(copy, &self.namespace) => Some(Evidence::FastCopyOnly),
            Op::Copy(_) => Some(Evidence::CopyCommand),
            _ => None,
        };
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
        if let Some(how) = copied_by {
            let fates = Fates::all(Fate::MovedElsewhere, how, done);
            completion.copy = Some(Box::new(CopyReport { rest_undefined, fates, ..CopyReport::default() }));
        }
        self.done.push(completion);
    }

    // --- the connection ----------------------------------------------------------------------------------------------

    /// Takes what has ended and sends what there is, until there is neither.
    fn turn(&mut self) {
        loop {
            let Some(channel) = &self.channel else { return self.take_ended() };
            match channel.turn(self.wire.number, &mut self.ended) {
                Ok(blocked) if self.ended.is_empty() => {
                    if blocked {
                        self.arm(WRITABLE);
                    }
                    return;
                }
                Ok(_) => self.take_ended(),
                Err(why) => return self.lost(why),
            }
        }
    }

    /// Reads the socket dry, and turns.
    fn drain_socket(&mut self) {
        let Some(channel) = &self.channel else { return };
        match channel.drain(self.wire.number, &mut self.ended) {
            Ok(_) => {
                self.take_ended();
                self.turn();
            }
            Err(why) => self.lost(why),
        }
    }

    /// Heeds the ends of commands.
    fn take_ended(&mut self) {
        while !self.ended.is_empty() {
            let mut ended = std::mem::take(&mut self.ended);
            for one in ended.drain(..) {
                match one {
                    Ended::Done { slot, cqe, data, received } => self.ended(slot, cqe, data, received),
                    Ended::Lost { slot, data, maybe_executed } => self.lost_one(slot, data, maybe_executed),
                }
            }
            // What was added meanwhile comes after; the room is kept.
            if self.ended.is_empty() {
                self.ended = ended;
                return;
            }
        }
    }

    /// Has the thread woken when the socket is ready.
    fn arm(&mut self, token: u64) {
        let at = usize::from(token == WRITABLE);
        if self.armed[at] {
            return;
        }
        if let Some(file) = self.channel.as_ref().and_then(|channel| channel.socket()) {
            self.reactor.submit(self.port, token, IoOp::Ready { file, write: token == WRITABLE });
            self.armed[at] = true;
        }
    }

    /// The connection is gone: what was on it waits for the next one.
    #[cold]
    fn lost(&mut self, why: Why) {
        let Some(channel) = self.channel.take() else { return };
        channel.lose(why.clone(), self.wire.number, &mut self.ended);
        self.counters += channel.counters(self.wire.number);
        self.crowded = None;
        self.lost_why = Some(why.clone());
        // What a neighbour found out before this.
        self.wire.take_inbox(&mut self.ended);
        self.take_ended();
        self.namespace.controller().report_lost(self.association, why);
    }

    /// A command's connection was lost before it ended.
    #[cold]
    fn lost_one(&mut self, slot: u16, data: Data, maybe_executed: bool) {
        let Some(mut work) = self.works[usize::from(slot)].take() else { return };
        self.out -= 1;
        work.buf = buf_of(data);
        if maybe_executed {
            work.begun = true;
            work.losses += 1;
            work.doubt = work.request.op().is_write().then_some(self.association);
            work.doubt_since = work.doubt.map(|_| Instant::now());
            if work.losses > LOSSES_MAX && work.failed.is_none() {
                let why = self.lost_why.as_ref().map_or(String::new(), |why| format!(": {why}"));
                let text = format!("the connection was lost {} times during this request{why}", work.losses);
                work.failed = Some(Error::new(Kind::Io, text));
            }
        }
        self.held.push_back(work);
    }

    /// Looks at what the controller's thread and neighbours on the connection have sent.
    fn read_mail(&mut self) {
        let Some(mail) = self.wire.take_mail(&mut self.ended) else { return };
        self.quiet = mail.quiet;
        if let Some(why) = self.channel.as_ref().and_then(|channel| channel.lost()) {
            self.lost(why);
        }
        self.take_ended();
        if mail.lost >= self.association && self.channel.is_some() {
            self.lost(Why::new("the association was ended".to_owned()));
        }
        self.away = mail.away;
        if let Some(Fresh { channel, facts, association }) = mail.fresh {
            self.most = Most::of(&facts, self.namespace.block());
            self.association = association;
            self.facts = facts;
            self.channel = Some(channel);
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
        let now = Instant::now();
        for _ in 0..self.held.len() {
            let Some(mut work) = self.held.pop_front() else { return };
            let sure = work.doubt.is_none_or(|association| association <= self.quiet);
            let cancelled = matches!(work.request.op(), Op::Copy(copy) if copy.cancel.is_set());
            if let Some(why) = &self.dead {
                let error = work.failed.take().unwrap_or_else(|| why.error());
                self.finish(work, Err(error));
            } else if !sure {
                let patience = self.namespace.controller().patience().doubt;
                if work.doubt_since.is_none_or(|since| now < since + patience) {
                    // It may still be executed: neither to be sent again nor to be called failed.
                    self.held.push_back(work);
                } else {
                    let error = self.namespace.give_up_in_doubt(work.doubt.unwrap_or(0), patience);
                    self.finish(work, Err(error));
                }
            } else if let Some(error) = work.failed.take() {
                self.finish(work, Err(error));
            } else if cancelled {
                let text = "stopped on request while there was no connection";
                self.finish(work, Err(Error::new(Kind::Cancelled, text)));
            } else if let Err(error) = self.check(&work.request) {
                self.finish(work, Err(error));
            } else if work.not_before.is_some_and(|at| now < at) {
                self.held.push_back(work);
            } else {
                match self.take_slot() {
                    Some(slot) => self.start(slot, work),
                    None => self.held.push_back(work),
                }
            }
        }
        if self.held.is_empty()
            && self.crowded.take().is_some()
            && let Some(channel) = &self.channel
        {
            channel.waits_no_more(self.wire.number);
        }
        self.take_ended();
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
        // Another queue's command may be the one that is not answered.
        if self.crowded.is_some_and(|since| now.wrapping_sub(since) > SCANS + 1) {
            late = late.or(Some("command before it"));
        }
        if let Some(name) = late {
            self.lost(Why::new(format!("a {name} was not answered in time")));
        }
    }
}

/// Makes the first connection of a queue, on a helper thread, and again until there is one or the queue is gone.
fn connect(namespace: &Namespace, wire: &Arc<Wire>) {
    loop {
        let opened = namespace.controller().open_queue(wire);
        let failed = opened.is_err();
        if let Err(gone) = wire.open_with(opened.map_err(|e| Why::of(&e))) {
            if let Some(fresh) = gone {
                fresh.channel.leave(wire.number);
            }
            return;
        }
        if !failed {
            return;
        }
        std::thread::sleep(CONNECT_PAUSE);
    }
}

impl Queue for NvmeQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        self.read_mail();
        if !self.held.is_empty() && self.channel.is_some() {
            self.resume();
        }
        while !batch.is_empty() {
            let room = match &self.channel {
                Some(channel) => channel.has_room(self.wire.number) || self.held.is_empty(),
                // Also when nothing will be sent: then they end at once.
                None => self.dead.is_some() || self.away.is_some() || self.held.len() < usize::from(DEPTH),
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
        if self.out > 0 || self.crowded.is_some() {
            self.drain_socket();
        }
        // After what has come: nobody may have looked for long.
        self.scan();
        if !self.held.is_empty() {
            self.resume();
            self.turn();
        }
        if self.out > 0 || self.crowded.is_some() {
            self.arm(READABLE);
        }
        done.append(&mut self.done);
    }

    fn counters(&self) -> Counters {
        let mut counters = self.counters;
        if let Some(channel) = &self.channel {
            counters += channel.counters(self.wire.number);
        }
        counters
    }
}

impl Drop for NvmeQueue {
    fn drop(&mut self) {
        if let Some(fresh) = self.wire.close() {
            fresh.channel.leave(self.wire.number);
        }
        // The connection ends with its last queue, which also ends what waits for the socket.
        if let Some(channel) = self.channel.take() {
            channel.leave(self.wire.number);
        }
        self.reactor.close_port(self.port);
    }
}

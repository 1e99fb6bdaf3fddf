//! The life of a Copy command: one native request where that does it, else a task; its turn, its end, its line in the log.

use super::controller::Controller;
use super::copy::Checked;
use super::core::{ConnectionId, Core, From, State};
use crate::block::receipt::HostBytes;
use crate::block::request::Cancel;
use crate::block::{ByteRange, Completion, CopyRequest, Error, Kind, Method, Op};
use crate::copy::plan::{MethodSet, Offload, Policy};
use crate::copy::run::Options;
use crate::copy::whole::{Part, WholeEnded, check_offloaded, copy_ranges};
use crate::nvme::{CopyCommand, Doing, Status};
use crate::reactor::{self, local};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Bytes copied in memory in one turn before other commands have theirs: about a millisecond.
const TURN_BYTES: u64 = 16 << 20;
/// Copies of one core that are tasks at a time: each has up to [`PAYLOAD_BYTES`] of buffers.
const TASKS_MAX: usize = 8;
/// Buffers of one task, in bytes: also for a short copy, whose many ranges are in flight together. What is not touched costs
/// address space only.
const PAYLOAD_BYTES: usize = 8 << 20;
/// Longest time of a copy that is a task or waits for its turn, from its check on. A host gives a command 30 seconds and then resets the controller: better to say how far it got.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Time after which a copy is ended, and its host told to try again, when its devices have answered nothing meanwhile. A disk that
/// retries a bad sector takes about as long.
const STALL_PATIENCE: Duration = Duration::from_secs(3);
/// How often a running copy is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// How a copy ends whose devices do not answer.
const STALLED: Status = Status::COMMAND_INTERRUPTED.retryable();
/// How a copy ends whose time is over.
const TOO_LATE: Status = Status::COPY_SIZE_LIMIT_EXCEEDED.retryable();

/// A Copy under way.
pub(super) struct Copying {
    checked: Checked,
    /// The method of one native request and its sources.
    native: Option<(Method, SmallVec<[ByteRange; 1]>)>,
    /// Methods a device has refused.
    excluded: MethodSet,
    fua: bool,
    cancel: Cancel,
    begun: Duration,
    controller: Arc<Controller>,
    qid: u16,
}

/// How a Copy ended.
#[derive(Default)]
struct End {
    good_bytes: u64,
    methods: BTreeMap<Method, u64>,
    host_bytes: HostBytes,
    deviations: u64,
    flushed: bool,
    error: Option<(Error, Status)>,
}

/// Called with each Copy that ends.
type Hook = Box<dyn Fn(&CopyLine)>;

/// A task's way of telling its end.
type Ended = Rc<RefCell<Vec<(From, WholeEnded, Stopped)>>>;

/// Why the target itself has stopped a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stopped {
    /// It has not.
    No,
    /// Its time was over.
    Late,
    /// Its devices answered nothing for [`STALL_PATIENCE`].
    Stalled,
}

/// Copies that wait for their turn, and tasks that run.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) hook: Option<Hook>,
    /// In memory, done on this thread.
    inline: VecDeque<From>,
    /// Bytes that may be copied in memory before the next turn.
    turn_bytes: u64,
    tasks: VecDeque<From>,
    running: usize,
    ended: Ended,
}

impl Lines {
    /// True when the next turn has something to do without waiting.
    pub(super) fn has_work(&self) -> bool {
        !self.inline.is_empty() || !self.ended.borrow().is_empty()
    }

    /// True when nothing waits or runs.
    pub(super) fn is_empty(&self) -> bool {
        self.inline.is_empty() && self.tasks.is_empty() && self.running == 0
    }

    /// A new turn has begun.
    pub(super) fn turn(&mut self) {
        self.turn_bytes = TURN_BYTES;
    }
}

impl Core {
    /// Checks a Copy and puts it in its line. `list`: its source ranges.
    pub(super) fn begin_copy(
        &mut self,
        from: From,
        at: u16,
        command: &CopyCommand,
        list: &[u8],
        through: bool,
    ) -> Result<(), Status> {
        let queue = &self.at(from).queue;
        let (controller, qid) = (queue.ready()?.clone(), queue.id.unwrap_or(0));
        let dest = self.served(at).namespace.clone();
        let find = |nsid| self.look_up(from, nsid).map(|at| &self.served(at).namespace);
        let checked = Checked::new(command, list, &dest, controller.copy_formats(), find)?;
        // Each copy that is left behind in a device that does not answer keeps its buffers: one at a time is enough.
        if checked.dest.is_stalled() || checked.runs.iter().any(|run| run.namespace.is_stalled()) {
            return Err(STALLED);
        }
        let cancel = Cancel::default();
        let native = checked.native();
        let method = native.as_ref().map(|(method, _)| *method);
        let slot = self.slot(from);
        controller.copy_begins(qid, slot.cid, cancel.clone(), self.bell.clone());
        let copying = Copying {
            checked,
            native,
            excluded: MethodSet::default(),
            fua: command.fua || through,
            cancel,
            begun: self.clock(),
            controller,
            qid,
        };
        let due = copying.begun + TIME_MAX;
        self.slot(from).state = State::Copy(Box::new(copying));
        match method {
            Some(Method::Memory) => self.lines.inline.push_back(from),
            Some(_) => {
                self.submit_native(from);
                return Ok(());
            }
            None => self.lines.tasks.push_back(from),
        }
        // In line, too: those ahead of it may be stuck in a device that does not answer.
        self.deadline = self.deadline.min(due);
        Ok(())
    }

    pub(super) fn clock(&self) -> Duration {
        reactor::current().map_or(self.now, |reactor| reactor.now())
    }

    fn copying(&mut self, from: From) -> Option<&mut Copying> {
        match &mut self.slot(from).state {
            State::Copy(copying) => Some(copying),
            _ => None,
        }
    }

    /// Begins copies whose turn it is.
    pub(super) fn begin_copies(&mut self) {
        while self.lines.turn_bytes > 0
            && let Some(from) = self.lines.inline.pop_front()
        {
            let len = self.copying(from).map_or(0, |c| c.checked.range.len());
            self.lines.turn_bytes = self.lines.turn_bytes.saturating_sub(len);
            self.submit_native(from);
        }
        while self.lines.running < TASKS_MAX
            && let Some(from) = self.lines.tasks.pop_front()
        {
            self.spawn_task(from);
        }
    }

    fn submit_native(&mut self, from: From) {
        let Some(copying) = self.copying(from) else { return };
        let Some((method, sources)) = &copying.native else { return };
        let Some(run) = copying.checked.runs.first() else { return };
        let dest = copying.checked.dest.clone();
        let request = CopyRequest {
            method: *method,
            source: run.namespace.device().clone(),
            sources: sources.clone(),
            dest: copying.checked.range,
            fua: copying.fua,
            cancel: copying.cancel.clone(),
        };
        match self.place_of(&dest) {
            Some(at) => self.request(from, at, Op::Copy(Box::new(request))),
            None => self.copy_gone(from),
        }
    }

    /// The destination was taken out of the subsystem before the copy's turn came.
    fn copy_gone(&mut self, from: From) {
        let error = Error::new(Kind::NotFound, "the namespace was removed");
        let end = End { error: Some((error, Status::INVALID_FIELD)), ..End::default() };
        self.end_copy(from, end);
    }

    /// The native request of a copy came back.
    pub(super) fn copy_came_back(&mut self, from: From, done: Completion) {
        let Some(copying) = self.copying(from) else { return };
        let (len, good) = (copying.checked.range.len(), done.good_bytes);
        let method = copying.native.as_ref().map(|(method, _)| *method);
        let error = match done.result {
            Ok(()) if good >= len => None,
            // Asked again: what is left may be an error, or another short answer.
            Ok(()) => Some(Error::new(Kind::Unsupported, "the device copied less than it was asked to")),
            Err(error) => Some(error),
        };
        if let Some(error) = &error
            && matches!(error.kind(), Kind::Unsupported | Kind::TooLarge { .. })
            && let Some(method) = method
        {
            // From the front: what was copied is copied again, and nobody has been told otherwise.
            tracing::debug!(%error, "planned anew");
            copying.excluded = copying.excluded.with(method);
            copying.native = None;
            let due = copying.begun + TIME_MAX;
            self.deadline = self.deadline.min(due);
            return self.lines.tasks.push_back(from);
        }
        let methods = method.into_iter().map(|method| (method, good)).collect();
        let reading = error.as_ref().is_some_and(|e| copying.is_source(e));
        let flushed = copying.fua && error.is_none();
        let error = error.map(|e| {
            let status = status_of(&e, reading);
            (e, status)
        });
        self.end_copy(from, End { good_bytes: good, methods, flushed, error, ..End::default() });
    }

    fn spawn_task(&mut self, from: From) {
        let (ended, bell, locks) = (self.lines.ended.clone(), self.bell.clone(), self.locks.clone());
        let now = self.clock();
        let Some(copying) = self.copying(from) else { return };
        let time = TIME_MAX.saturating_sub(now.saturating_sub(copying.begun));
        let task = copying.task(locks, time);
        let (pulse, dest) = (task.options.pulse.clone(), copying.checked.dest.clone());
        let sources: Vec<_> = copying.checked.runs.iter().map(|run| run.namespace.clone()).collect();
        self.lines.running += 1;
        let connection = self.at(from);
        connection.out += 1;
        connection.changing += 1;
        connection.slots[usize::from(from.slot)].changes = true;
        drop(local::spawn(async move {
            let (end, stopped) = task.run().await;
            let left = end.abandoned.then(|| if pulse.changes() > 0 { vec![dest] } else { sources });
            let left = left.unwrap_or_default();
            left.iter().for_each(|namespace| namespace.stalls());
            ended.borrow_mut().push((from, end, stopped));
            bell.ring();
            if !left.is_empty() {
                pulse.quiet().await;
                left.iter().for_each(|namespace| namespace.answers_again());
            }
        }));
    }

    /// Takes in tasks that have ended. True when there were any.
    pub(super) fn end_tasks(&mut self) -> bool {
        let ended = self.lines.ended.take();
        let any = !ended.is_empty();
        for (from, end, stopped) in ended {
            self.lines.running -= 1;
            if !self.came_back(from) {
                continue;
            }
            let error = end.error.map(|error| {
                let status = match error.kind() {
                    Kind::Cancelled if stopped == Stopped::Late => TOO_LATE,
                    Kind::Cancelled if stopped == Stopped::Stalled => STALLED,
                    _ => status_of(&error, end.source_failed),
                };
                (error, status)
            });
            let end = End {
                good_bytes: end.good_prefix_bytes,
                methods: end.methods,
                host_bytes: end.host_bytes,
                deviations: end.deviations,
                flushed: end.flushed,
                error,
            };
            self.end_copy(from, end);
        }
        any
    }

    /// Answers a copy, tells who waits for its end, and logs it.
    fn end_copy(&mut self, from: From, end: End) {
        let now = self.clock();
        let slot = self.slot(from);
        let (cid, State::Copy(copying)) = (slot.cid, std::mem::take(&mut slot.state)) else { return };
        let status = end.error.as_ref().map_or(Status::SUCCESS, |(_, status)| *status);
        let whole = copying.checked.whole_ranges(end.good_bytes);
        let dword0 = if status.is_success() { 0 } else { whole };
        if let Some(hook) = &self.lines.hook {
            hook(&copying.line(cid, status, end, now.saturating_sub(copying.begun)));
        }
        copying.controller.copy_ends(copying.qid, cid, status.is(Status::ABORT_REQUESTED));
        self.answer(from, status, dword0, None);
    }

    /// Ends copies that are to stop, or whose time is over, and have not begun. The deadline is then no later than the end of the
    /// time of those that stay in line.
    pub(super) fn give_up_copies(&mut self) {
        let now = self.now;
        let mut given_up = Vec::new();
        let Self { lines, connections, deadline, .. } = self;
        for line in [&mut lines.inline, &mut lines.tasks] {
            line.retain(|from| {
                let slot = &connections[from.connection.index()].slots[usize::from(from.slot)];
                let State::Copy(copying) = &slot.state else { return true };
                let due = copying.begun + TIME_MAX;
                let (stops, late) = (copying.cancel.is_set(), due <= now);
                if stops || late {
                    given_up.push((*from, stops));
                } else {
                    *deadline = due.min(*deadline);
                }
                !(stops || late)
            });
        }
        for (from, stops) in given_up {
            let (text, status) = match stops {
                true => ("stopped on request before it began", Status::ABORT_REQUESTED.retryable()),
                false => ("its time was over before its turn came", TOO_LATE),
            };
            let error = Error::new(Kind::Cancelled, text);
            self.end_copy(from, End { error: Some((error, status)), ..End::default() });
        }
    }

    /// A connection is closed: its copies in line are dropped.
    pub(super) fn drop_copies(&mut self, id: ConnectionId) {
        let mut dropped = Vec::new();
        for line in [&mut self.lines.inline, &mut self.lines.tasks] {
            line.retain(|from| {
                let its = from.connection == id;
                dropped.extend(its.then_some(*from));
                !its
            });
        }
        dropped.into_iter().for_each(|from| self.copy_dropped(from, true));
    }

    /// A copy of a closed connection is over. Whoever waits for that is told; there is no answer.
    pub(super) fn copy_dropped(&mut self, from: From, never_began: bool) {
        let slot = self.slot(from);
        if let (cid, State::Copy(copying)) = (slot.cid, std::mem::take(&mut slot.state)) {
            copying.controller.copy_ends(copying.qid, cid, never_began);
        }
    }
}

/// The status of a copy that failed; `reading`: it was a source that did.
fn status_of(error: &Error, reading: bool) -> Status {
    match error.kind() {
        Kind::Io if reading => Status::of(error, Doing::Read),
        Kind::Cancelled => Status::ABORT_REQUESTED.retryable(),
        _ => Status::of(error, Doing::Copy),
    }
}

impl Copying {
    /// True when an error is known to be about a source, not the destination.
    fn is_source(&self, error: &Error) -> bool {
        let Some(device) = error.device() else { return false };
        let dest = self.checked.dest.device().name();
        device != dest && self.checked.runs.iter().any(|run| run.namespace.device().name() == device)
    }

    fn task(&self, locks: Rc<crate::block::lock::CoreLocks>, time: Duration) -> Task {
        let mut sources = self.checked.sources.iter().copied();
        let parts = self.checked.runs.iter().map(|run| Part {
            source: run.namespace.device().clone(),
            ranges: sources.by_ref().take(run.ranges).collect(),
        });
        let offload = if self.checked.fast_only { Offload::Require } else { Offload::Auto };
        Task {
            parts: parts.collect(),
            dest: self.checked.dest.device().clone(),
            at: self.checked.range.offset(),
            fast_only: self.checked.fast_only,
            time,
            options: Options {
                policy: Policy { offload, excluded: self.excluded, unsynced: !self.fua, ..Policy::default() },
                flush: self.fua,
                payload_bytes: PAYLOAD_BYTES,
                cancel: self.cancel.clone(),
                // A request that a device does not answer keeps nobody waiting but the ranges it may still change.
                abandon: true,
                locks: Some(locks),
                ..Options::default()
            },
        }
    }

    fn line(&self, cid: u16, status: Status, end: End, time: Duration) -> CopyLine {
        CopyLine {
            host: self.controller.host_nqn().as_str().to_owned(),
            controller: self.controller.id(),
            queue: self.qid,
            command: cid,
            sources: self.checked.runs.iter().map(|run| run.namespace.nsid()).collect(),
            dest: self.checked.dest.nsid(),
            ranges: self.checked.sources.len(),
            bytes: self.checked.range.len(),
            good_bytes: end.good_bytes,
            methods: end.methods,
            host_bytes: end.host_bytes,
            deviations: end.deviations,
            flushed: end.flushed,
            seconds: time.as_secs_f64(),
            status: status.to_string(),
            error: end.error.map(|(error, _)| error.to_string()),
        }
    }
}

/// A copy that the planner has to cut.
struct Task {
    parts: Vec<Part>,
    dest: Arc<dyn crate::block::Device>,
    at: u64,
    fast_only: bool,
    /// What is left of [`TIME_MAX`].
    time: Duration,
    options: Options,
}

impl Task {
    /// Runs it; beside the end, why it was stopped, if it was.
    async fn run(self) -> (WholeEnded, Stopped) {
        let pulse = &self.options.pulse;
        let due = local::now() + self.time;
        let mut work = pin!(async {
            if self.fast_only
                && let Err(error) =
                    check_offloaded(&self.parts, &self.dest, self.at, &self.options.cancel).await
            {
                return WholeEnded { error: Some(error), ..WholeEnded::default() };
            }
            copy_ranges(&self.parts, &self.dest, self.at, &self.options).await
        });
        let (mut stopped, mut beats, mut since) = (Stopped::No, pulse.beats(), local::now());
        loop {
            let left = due.saturating_sub(local::now()).max(Duration::from_millis(1));
            let mut timer = pin!(local::sleep(LOOK.min(left)));
            let end = poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending => timer.as_mut().poll(cx).map(|()| None),
            });
            if let Some(end) = end.await {
                return (end, stopped);
            }
            let now = local::now();
            if pulse.beats() != beats || pulse.in_flight() == 0 {
                (beats, since) = (pulse.beats(), now);
            }
            if stopped == Stopped::No && (now >= due || now - since >= STALL_PATIENCE) {
                stopped = if now >= due { Stopped::Late } else { Stopped::Stalled };
                self.options.cancel.set();
            }
        }
    }
}

/// One Copy command that has ended, for the log.
#[derive(Clone, Debug)]
pub struct CopyLine {
    /// The host that sent it.
    pub host: String,
    /// Its controller.
    pub controller: u16,
    /// Its queue.
    pub queue: u16,
    /// Its command id.
    pub command: u16,
    /// Source namespaces: one for each run of ranges.
    pub sources: Vec<u32>,
    /// Destination namespace.
    pub dest: u32,
    /// Source ranges.
    pub ranges: usize,
    /// Bytes asked for.
    pub bytes: u64,
    /// Bytes from the front that are known to be good.
    pub good_bytes: u64,
    /// Good bytes by method.
    pub methods: BTreeMap<Method, u64>,
    /// Bytes that passed through buffers of the target.
    pub host_bytes: HostBytes,
    /// How often the run left its plan.
    pub deviations: u64,
    /// The destination was made durable.
    pub flushed: bool,
    /// From its check to its end.
    pub seconds: f64,
    /// Its status.
    pub status: String,
    /// What went wrong.
    pub error: Option<String>,
}

impl fmt::Display for CopyLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "copy by {} (controller {} queue {} command {}):",
            self.host, self.controller, self.queue, self.command
        )?;
        write!(f, " {} ranges, {} of {} bytes,", self.ranges, self.good_bytes, self.bytes)?;
        let sources: Vec<String> = self.sources.iter().map(u32::to_string).collect();
        write!(f, " namespace {} to {}", sources.join(","), self.dest)?;
        for (method, bytes) in &self.methods {
            write!(f, ", {method} {bytes}")?;
        }
        let HostBytes { read, written } = self.host_bytes;
        write!(f, ", through this host {read} read {written} written")?;
        if self.flushed {
            write!(f, ", durable")?;
        }
        write!(f, ", {:.3} ms: {}", self.seconds * 1e3, self.status)?;
        self.error.as_ref().map_or(Ok(()), |error| write!(f, " ({error})"))
    }
}

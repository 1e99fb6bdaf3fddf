//! The copies of one thread: in line, in flight as one request, or running as a task; their turn, their end, their line
//! in the log.

use super::command::checked_copy::CheckedCopy;
use super::command::clock;
use super::command::copy::STALLED;
use super::connections::{CommandId, ConnectionId};
use super::controller::{Controller, TargetHost};
use super::copy_line::{Pace, TurnLine, may_run};
use super::namespace::Namespace;
use super::pending::CopyKey;
use super::wakeup::Wakeup;
use crate::block::lock::CoreLocks;
use crate::block::receipt::HostBytes;
use crate::block::request::Cancel;
use crate::block::{ByteRange, Completion, CopyRequest, Device, Error, Fate, Fates, Kind, Method, Must};
use crate::copy::plan::{MethodSet, Offload, Policy};
use crate::copy::ranges::{Part, WholeEnded, check_offloaded, copy_ranges};
use crate::copy::run::Options;
use crate::nvme::{Doing, Status};
use crate::reactor::local;
use slab::Slab;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Bytes copied in memory in one turn before other commands have theirs: about a millisecond.
const TURN_BYTES: u64 = 16 << 20;
/// Copies of one thread that are tasks at a time, and buffers of each in bytes, unless [`CopyQueue::bound`] says
/// otherwise: also for a short copy, whose many ranges are in flight together.
const TASKS_MAX: usize = 8;
const PAYLOAD_BYTES: usize = 8 << 20;
/// Longest time of a copy that is a task or waits for its turn, from its check on, so that its answer comes within 20
/// seconds: what is in flight then is given a moment to end. A host gives a command 30 seconds and then resets the
/// controller: better to say how far it got.
const TIME_MAX: Duration = Duration::from_millis(19_400);
/// A copy that has waited for no longer than this and whose time is over is too long for its devices; one that has
/// waited longer may be short enough when there is less to do.
const WAITED_MAX: Duration = Duration::from_secs(5);

/// Time after which a copy is ended, with a status that lets its host try again, when its devices have answered nothing
/// meanwhile. A disk that retries a bad sector takes about as long.
const STALL_PATIENCE: Duration = Duration::from_secs(3);
/// How often a running copy is checked.
const CHECK_EVERY: Duration = Duration::from_millis(250);

/// How a copy ends that is too long for its devices, with the time they had.
const TOO_LONG: Status = Status::COPY_SIZE_LIMIT_EXCEEDED.retryable();
/// How a copy ends whose turn has not come in time: hosts send it again.
const NO_TURN: Status = Status::COMMAND_INTERRUPTED.retryable();

/// Whose a copy is.
pub(super) struct CopyOrigin {
    pub(super) id: CommandId,
    pub(super) controller: Arc<Controller>,
    pub(super) qid: u16,
    pub(super) cid: u16,
}

/// A Copy under way.
struct QueuedCopy {
    origin: CopyOrigin,
    checked: CheckedCopy,
    /// The method of one native request and its sources.
    native: Option<(Method, SmallVec<[ByteRange; 1]>)>,
    /// Methods a device has refused.
    excluded: MethodSet,
    fua: bool,
    cancel: Cancel,
    begun: Duration,
    /// When it became a task.
    started: Duration,
}

impl QueuedCopy {
    fn host(&self) -> &Arc<TargetHost> {
        self.origin.controller.host()
    }

    fn bytes(&self) -> u64 {
        self.checked.range.len()
    }
}

/// How a Copy ended.
#[derive(Default)]
pub(super) struct CopyEnd {
    good_bytes: u64,
    methods: BTreeMap<Method, u64>,
    fates: Fates,
    host_bytes: HostBytes,
    deviations: u64,
    flushed: bool,
    error: Option<(Error, Status)>,
}

impl CopyEnd {
    fn failed(error: Error, status: Status) -> Self {
        Self { error: Some((error, status)), ..Self::default() }
    }

    /// The destination was taken out of the subsystem before the copy's turn came.
    pub(super) fn removed() -> Self {
        Self::failed(Error::new(Kind::NotFound, "the namespace was removed"), Status::INVALID_FIELD)
    }
}

/// What a copy does next.
pub(super) enum CopyStep {
    /// It is submitted as one request, now.
    Submit,
    /// It waits for its turn, and is given up at this time.
    Queued(Duration),
    /// It has ended.
    Ended(CopyEnd),
}

/// Called with each Copy that ends.
type Hook = Box<dyn Fn(&CopyLine)>;

/// Tasks that have ended, and how.
type EndedTasks = Rc<RefCell<Vec<(CopyKey, WholeEnded, Stopped)>>>;

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

/// The copies of one thread.
pub(super) struct CopyQueue {
    locks: Rc<CoreLocks>,
    wakeup: Arc<Wakeup>,
    hook: Option<Hook>,
    copies: Slab<QueuedCopy>,
    /// In memory, done on this thread.
    inline: HostLine,
    /// Bytes that may be copied in memory before the next turn.
    turn_bytes: u64,
    tasks: HostLine,
    /// Nothing in the line may begin before something ends, comes, or is measured.
    is_waiting: bool,
    /// Copies that run as tasks.
    running: Vec<CopyKey>,
    /// Most of them, and buffers of each in bytes.
    tasks_max: usize,
    payload_bytes: usize,
    paces: Paces,
    ended: EndedTasks,
}

/// Copies that wait, by host.
type HostLine = TurnLine<Arc<TargetHost>, CopyKey>;

/// What is known of each destination that had a copy.
#[derive(Clone, Default)]
struct Paces(Rc<RefCell<Vec<DestPace>>>);

/// A destination, and what is known of it.
type DestPace = (Arc<Namespace>, Pace);

impl Paces {
    fn of(&self, dest: &Arc<Namespace>) -> Pace {
        let paces = self.0.borrow();
        paces.iter().find(|(known, _)| Arc::ptr_eq(known, dest)).map(|(_, pace)| *pace).unwrap_or_default()
    }

    fn change(&self, dest: &Arc<Namespace>, change: impl FnOnce(&mut Pace)) {
        let mut paces = self.0.borrow_mut();
        let at = paces.iter().position(|(known, _)| Arc::ptr_eq(known, dest)).unwrap_or_else(|| {
            // Those that were removed from their subsystem are held by nobody else.
            paces.retain(|(known, pace)| pace.outstanding > 0 || Arc::strong_count(known) > 1);
            paces.push((dest.clone(), Pace::default()));
            paces.len() - 1
        });
        change(&mut paces[at].1);
    }
}

impl CopyQueue {
    pub(super) fn new(locks: Rc<CoreLocks>, wakeup: Arc<Wakeup>) -> Self {
        Self {
            locks,
            wakeup,
            hook: None,
            copies: Slab::new(),
            inline: HostLine::default(),
            turn_bytes: 0,
            tasks: HostLine::default(),
            is_waiting: false,
            running: Vec::new(),
            tasks_max: TASKS_MAX,
            payload_bytes: PAYLOAD_BYTES,
            paces: Paces::default(),
            ended: EndedTasks::default(),
        }
    }

    /// Runs so many copies as tasks at a time, each with so many bytes of buffers.
    pub(super) fn bound(&mut self, tasks_max: usize, payload_bytes: usize) {
        (self.tasks_max, self.payload_bytes) = (tasks_max, payload_bytes);
    }

    fn push(line: &mut HostLine, copy: &QueuedCopy, key: CopyKey) {
        line.push(copy.host().clone(), key, Arc::ptr_eq);
    }

    /// Calls `hook` with each Copy that ends.
    pub(super) fn on_copy(&mut self, hook: Hook) {
        self.hook = Some(hook);
    }

    /// True when the next turn has something to do without waiting.
    pub(super) fn has_work(&self) -> bool {
        !self.inline.is_empty() || !self.ended.borrow().is_empty()
    }

    /// True when nothing waits or runs as a task.
    pub(super) fn is_empty(&self) -> bool {
        self.inline.is_empty() && self.tasks.is_empty() && self.running.is_empty()
    }

    /// A new turn has begun.
    pub(super) fn turn(&mut self) {
        self.turn_bytes = TURN_BYTES;
    }

    /// Takes a copy in, where an Abort finds it. With [`CopyStep::Queued`] it is in its line: those ahead of it may be
    /// stuck in a device that does not answer.
    pub(super) fn begin(
        &mut self,
        origin: CopyOrigin,
        checked: CheckedCopy,
        fua: bool,
        now: Duration,
    ) -> (CopyKey, CopyStep) {
        let cancel = Cancel::default();
        origin.controller.copy_begins(origin.qid, origin.cid, cancel.clone(), self.wakeup.clone());
        let native = checked.native();
        let method = native.as_ref().map(|(method, _)| *method);
        let excluded = MethodSet::default();
        let copy = QueuedCopy { origin, checked, native, excluded, fua, cancel, begun: now, started: now };
        let due = copy.due();
        let key = CopyKey(self.copies.insert(copy));
        let line = match method {
            Some(Method::Memory) => &mut self.inline,
            Some(_) => return (key, CopyStep::Submit),
            None => &mut self.tasks,
        };
        Self::push(line, &self.copies[key.0], key);
        self.is_waiting = false;
        (key, CopyStep::Queued(due))
    }

    /// The command of a copy.
    pub(super) fn command(&self, key: CopyKey) -> CommandId {
        self.copies[key.0].origin.id
    }

    /// The next copy in memory whose turn it is.
    pub(super) fn next_inline(&mut self) -> Option<CopyKey> {
        if self.turn_bytes == 0 {
            return None;
        }
        let key = self.inline.take(|_, _| true)?;
        self.turn_bytes = self.turn_bytes.saturating_sub(self.copies[key.0].checked.range.len());
        Some(key)
    }

    /// The request of a copy that is submitted as one, and its destination.
    pub(super) fn request(&self, key: CopyKey) -> Option<(Arc<Namespace>, CopyRequest)> {
        let copy = &self.copies[key.0];
        let (method, sources) = copy.native.as_ref()?;
        let request = CopyRequest {
            method: *method,
            source: copy.checked.runs.first()?.namespace.device().clone(),
            sources: sources.clone(),
            dest: copy.checked.range,
            fua: copy.fua,
            must: copy.checked.fast_only.then_some(Must::Fast),
            cancel: copy.cancel.clone(),
        };
        Some((copy.checked.dest.clone(), request))
    }

    /// The request of a copy came back.
    pub(super) fn on_completion(&mut self, key: CopyKey, done: Completion) -> CopyStep {
        let copy = &mut self.copies[key.0];
        let (len, good) = (copy.checked.range.len(), done.good_bytes);
        let method = copy.native.as_ref().map(|(method, _)| *method);
        let fates = method.map_or_else(Fates::default, |method| done.fates(method, good));
        let error = match done.result {
            Ok(()) if good >= len => None,
            // Asked again: what is left may be an error, or another short answer.
            Ok(()) => {
                Some(Error::new(Kind::Unsupported, "the device copied less than asked and reported no error"))
            }
            Err(error) => Some(error),
        };
        if let Some(error) = &error
            && matches!(error.kind(), Kind::Unsupported | Kind::TooLarge { .. })
            && let Some(method) = method
        {
            // From the front: what was copied is copied again, and its host knows nothing of it yet.
            tracing::debug!(%error, "planned anew");
            copy.excluded = copy.excluded.with(method);
            copy.native = None;
            let due = copy.due();
            Self::push(&mut self.tasks, copy, key);
            self.is_waiting = false;
            return CopyStep::Queued(due);
        }
        let methods = method.into_iter().map(|method| (method, good)).collect();
        let reading = error.as_ref().is_some_and(|e| copy.is_source(e));
        let flushed = copy.fua && error.is_none();
        let error = error.map(|e| {
            let status = status_of(&e, reading);
            (e, status)
        });
        CopyStep::Ended(CopyEnd { good_bytes: good, methods, fates, flushed, error, ..CopyEnd::default() })
    }

    /// Starts the next task, if there is room for one.
    pub(super) fn start_task(&mut self, now: Duration) -> Option<CommandId> {
        if self.is_waiting || self.tasks.is_empty() {
            return None;
        }
        let Self { copies, running, paces, tasks_max, .. } = self;
        let of_host = |host: &Arc<TargetHost>| {
            running.iter().filter(|key| Arc::ptr_eq(copies[key.0].host(), host)).count()
        };
        let found = self.tasks.take(|host, key| {
            let copy = &copies[key.0];
            may_run(of_host(host), running.len(), *tasks_max)
                && paces.of(&copy.checked.dest).has_room(copy.bytes())
                && copy.ends_in_time(paces.of(&copy.checked.dest), now)
        });
        let Some(key) = found else {
            self.is_waiting = true;
            return None;
        };
        let (ended, wakeup) = (self.ended.clone(), self.wakeup.clone());
        let copy = &mut self.copies[key.0];
        copy.started = clock(now);
        let time = TIME_MAX.saturating_sub(copy.started.saturating_sub(copy.begun));
        let task = copy.task(self.locks.clone(), time, self.payload_bytes, self.paces.clone());
        self.paces.change(&copy.checked.dest, |pace| pace.outstanding += copy.checked.range.len());
        let (pulse, dest) = (task.options.pulse.clone(), copy.checked.dest.clone());
        let sources: Vec<_> = copy.checked.runs.iter().map(|run| run.namespace.clone()).collect();
        self.running.push(key);
        drop(local::spawn(async move {
            let (end, stopped) = task.run().await;
            let left = end.abandoned.then(|| if pulse.changes() > 0 { vec![dest] } else { sources });
            let left = left.unwrap_or_default();
            left.iter().for_each(|namespace| namespace.stalls());
            ended.borrow_mut().push((key, end, stopped));
            wakeup.wake();
            if !left.is_empty() {
                pulse.quiet().await;
                left.iter().for_each(|namespace| namespace.answers_again());
            }
        }));
        Some(self.command(key))
    }

    /// Tasks that have ended.
    pub(super) fn take_ended(&mut self) -> Vec<(CopyKey, CopyEnd)> {
        let ended = self.ended.take();
        for (key, ..) in &ended {
            let copy = &self.copies[key.0];
            self.running.retain(|running| running != key);
            self.paces.change(&copy.checked.dest, |pace| pace.outstanding -= copy.checked.range.len());
            self.is_waiting = false;
        }
        let copies = &self.copies;
        let end_of = |(key, end, stopped): (CopyKey, WholeEnded, Stopped)| {
            let error = end.error.map(|error| {
                let status = match error.kind() {
                    Kind::Cancelled if stopped == Stopped::Late => copies[key.0].late(),
                    Kind::Cancelled if stopped == Stopped::Stalled => STALLED,
                    _ => status_of(&error, end.source_failed),
                };
                (error, status)
            });
            let end = CopyEnd {
                good_bytes: end.good_prefix_bytes,
                methods: end.methods,
                fates: end.fates,
                host_bytes: end.host_bytes,
                deviations: end.deviations,
                flushed: end.flushed,
                error,
            };
            (key, end)
        };
        ended.into_iter().map(end_of).collect()
    }

    /// Ends a copy: logs it and notifies an Abort that waits for it. Returns its command, and the status and dword 0 of
    /// its answer.
    pub(super) fn finish(&mut self, key: CopyKey, end: CopyEnd, now: Duration) -> (CommandId, Status, u64) {
        let now = clock(now);
        let copy = self.copies.remove(key.0);
        let status = end.error.as_ref().map_or(Status::SUCCESS, |(_, status)| *status);
        let whole = copy.checked.whole_ranges(end.good_bytes);
        let dword0 = if status.is_success() { 0 } else { whole };
        copy.origin.controller.copy_became(&copy.stated(&end.fates));
        if let Some(hook) = &self.hook {
            hook(&copy.line(status, end, now.saturating_sub(copy.begun)));
        }
        let CopyOrigin { id, controller, qid, cid } = copy.origin;
        controller.copy_ends(qid, cid, status.is(Status::ABORT_REQUESTED));
        (id, status, dword0)
    }

    /// Takes copies out of their lines that are to stop, or whose time is over. Beside them, when the time of the first
    /// of those that stay is over.
    pub(super) fn give_up(&mut self, now: Duration) -> (Vec<(CopyKey, CopyEnd)>, Option<Duration>) {
        let (mut given_up, mut next) = (Vec::new(), None);
        let Self { inline, tasks, copies, paces, .. } = self;
        let hosts = tasks.hosts();
        for line in [inline, tasks] {
            line.retain(|key| {
                let copy = &copies[key.0];
                let pace = paces.of(&copy.checked.dest);
                let due = copy.due();
                let end = if copy.cancel.is_set() {
                    Some(("stopped on request before it started", Status::ABORT_REQUESTED.retryable()))
                } else if due <= now {
                    Some(("its turn did not come in time", NO_TURN))
                } else if copy.native.is_none() && !copy.ends_in_time(pace.alone(), now) {
                    let status = if pace.is_too_long(copy.bytes(), hosts) { TOO_LONG } else { NO_TURN };
                    Some(("it would not end in time", status))
                } else {
                    None
                };
                match end {
                    Some((text, status)) => {
                        let error = Error::new(Kind::Cancelled, text);
                        given_up.push((*key, CopyEnd::failed(error, status)));
                    }
                    None => next = Some(next.map_or(due, |next: Duration| next.min(due))),
                }
                end.is_none()
            });
        }
        (given_up, next)
    }

    /// Why a copy is better not begun: by the speed of its destination it would not end in time, or keep others from
    /// it.
    pub(super) fn hopeless(&self, checked: &CheckedCopy) -> Option<Status> {
        let (pace, bytes) = (self.paces.of(&checked.dest), checked.range.len());
        let time = pace.alone().time_of(bytes)?;
        let in_the_way = pace.outstanding > 0 && pace.is_too_long(bytes, self.tasks.hosts());
        ((time > TIME_MAX || in_the_way) && checked.native().is_none()).then_some(TOO_LONG)
    }

    /// A connection is closed: its copies in line are dropped.
    pub(super) fn drop_of(&mut self, id: ConnectionId) {
        let mut dropped = Vec::new();
        let Self { inline, tasks, copies, .. } = self;
        for line in [inline, tasks] {
            line.retain(|key| {
                let its = copies[key.0].origin.id.connection == id;
                dropped.extend(its.then_some(*key));
                !its
            });
        }
        dropped.into_iter().for_each(|key| self.drop_one(key, true));
    }

    /// A copy of a closed connection is over. An Abort that waits for it is notified; there is no answer.
    pub(super) fn drop_one(&mut self, key: CopyKey, never_began: bool) {
        let CopyOrigin { controller, qid, cid, .. } = self.copies.remove(key.0).origin;
        controller.copy_ends(qid, cid, never_began);
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

impl QueuedCopy {
    /// When its time is over.
    fn due(&self) -> Duration {
        self.begun + TIME_MAX
    }

    /// True unless its destination is known to be too slow for the time it has left.
    fn ends_in_time(&self, pace: Pace, now: Duration) -> bool {
        pace.time_of(self.bytes()).is_none_or(|time| now + time <= self.due())
    }

    /// How it ends when its time is over while it runs.
    fn late(&self) -> Status {
        if self.started.saturating_sub(self.begun) <= WAITED_MAX { TOO_LONG } else { NO_TURN }
    }

    /// True when an error is known to be about a source, not the destination.
    fn is_source(&self, error: &Error) -> bool {
        let Some(device) = error.device() else { return false };
        let dest = self.checked.dest.device().name();
        device != dest && self.checked.runs.iter().any(|run| run.namespace.device().name() == device)
    }

    fn task(&self, locks: Rc<CoreLocks>, time: Duration, payload_bytes: usize, paces: Paces) -> CopyTask {
        let mut sources = self.checked.sources.iter().copied();
        let parts = self.checked.runs.iter().map(|run| Part {
            source: run.namespace.device().clone(),
            ranges: sources.by_ref().take(run.ranges).collect(),
        });
        let offload = if self.checked.fast_only { Offload::Require(Must::Fast) } else { Offload::Auto };
        CopyTask {
            parts: parts.collect(),
            dest: self.checked.dest.device().clone(),
            at: self.checked.range.offset(),
            fast_only: self.checked.fast_only,
            namespace: self.checked.dest.clone(),
            paces,
            time,
            options: Options {
                policy: Policy { offload, excluded: self.excluded, unsynced: !self.fua, ..Policy::default() },
                flush: self.fua,
                payload_bytes,
                cancel: self.cancel.clone(),
                // A request that a device does not answer holds up nothing but the ranges it may still change.
                abandon: true,
                locks: Some(locks),
                ..Options::default()
            },
        }
    }

    /// What is said to its host of the bytes: those copied within memory of the target were moved by the device.
    fn stated(&self, fates: &Fates) -> Fates {
        let mut stated = Fates::default();
        let is_memory = self.native.as_ref().is_some_and(|(method, _)| *method == Method::Memory);
        for one in fates.iter() {
            let fate = if is_memory && one.fate == Fate::ReadWrite { Fate::MovedElsewhere } else { one.fate };
            stated.add(fate, one.how, one.bytes);
        }
        stated
    }

    fn line(&self, status: Status, end: CopyEnd, time: Duration) -> CopyLine {
        CopyLine {
            host: self.origin.controller.host_nqn().as_str().to_owned(),
            controller: self.origin.controller.id(),
            queue: self.origin.qid,
            command: self.origin.cid,
            sources: self.checked.runs.iter().map(|run| run.namespace.nsid()).collect(),
            dest: self.checked.dest.nsid(),
            ranges: self.checked.sources.len(),
            bytes: self.checked.range.len(),
            good_bytes: end.good_bytes,
            methods: end.methods,
            fates: end.fates,
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
struct CopyTask {
    parts: Vec<Part>,
    dest: Arc<dyn Device>,
    at: u64,
    fast_only: bool,
    namespace: Arc<Namespace>,
    paces: Paces,
    /// What is left of [`TIME_MAX`].
    time: Duration,
    options: Options,
}

impl CopyTask {
    /// Runs it; beside the end, why it was stopped, if it was.
    async fn run(self) -> (WholeEnded, Stopped) {
        let pulse = &self.options.pulse;
        let begun = local::now();
        let due = begun + self.time;
        // Of a native method the bytes come at once, with the end: there is no speed before.
        let measure = || {
            let bytes = pulse.moved_bytes();
            if bytes > 0 {
                self.paces.change(&self.namespace, |pace| pace.measured(bytes, local::now() - begun));
            }
        };
        let mut work = pin!(async {
            if self.fast_only
                && let Err(error) =
                    check_offloaded(&self.parts, &self.dest, self.at, Must::Fast, &self.options.cancel).await
            {
                return WholeEnded { error: Some(error), ..WholeEnded::default() };
            }
            copy_ranges(&self.parts, &self.dest, self.at, &self.options).await
        });
        let (mut stopped, mut beats, mut since) = (Stopped::No, pulse.beats(), local::now());
        loop {
            let left = due.saturating_sub(local::now()).max(Duration::from_millis(1));
            let mut timer = pin!(local::sleep(CHECK_EVERY.min(left)));
            let end = poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending => timer.as_mut().poll(cx).map(|()| None),
            });
            let end = end.await;
            measure();
            if let Some(end) = end {
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
    /// What became of them.
    pub fates: Fates,
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
        for one in self.fates.iter() {
            write!(f, ", {} {}", one.bytes, one.fate)?;
        }
        if self.flushed {
            write!(f, ", durable")?;
        }
        write!(f, ", {:.3} ms: {}", self.seconds * 1e3, self.status)?;
        self.error.as_ref().map_or(Ok(()), |error| write!(f, " ({error})"))
    }
}

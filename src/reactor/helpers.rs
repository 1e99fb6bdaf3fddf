//! Helper threads for system calls that may wait. Each device has its own, so that one that hangs keeps nobody else
//! waiting.
//!
//! A queue opens its port with the helpers of its device ([`of`]); engines make there what they cannot make without
//! waiting. Threads start when they are needed and end when they have had nothing to do for a while.

use super::threads::{self, Home};
use super::{IoOp, Port};
use crate::block::{Counters, Identity, LeafId};
use crate::sys::sync::{held, lock};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

/// Most helper threads of one device.
pub const THREADS_MAX: usize = 8;
/// Most helper threads of a process, not counting the first of each device: that one is always to be had, however many
/// others hang.
const EXTRA_MAX: usize = 248;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);
/// A device is stuck when a call to it takes longer than this: threads that serve others make no call to it themselves.
const STUCK_AFTER: Duration = Duration::from_millis(250);
/// A device is stalled, and that is said, when a call to it takes longer than this.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// How often stalls are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The helper threads of one device, and the calls to it that are under way.
pub struct Helpers {
    name: String,
    work: Mutex<Work>,
    more: Condvar,
    /// Its files block inside `io_uring_enter`.
    keeps_off_ring: AtomicBool,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// Calls under way and when they began, oldest first.
    calls: VecDeque<(CallId, Instant)>,
    next_call: u64,
}

/// Number of a call under way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct CallId(u64);

#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are operations, and a box would be an allocation for each"
)]
enum Job {
    /// An operation of a reactor, with the calls made for it before it came here. Its end arrives at `home`.
    Op { op: IoOp, port: Port, token: u64, counters: Counters, home: Arc<Home> },
    /// Whatever: nobody is told of its end.
    Plain(Box<dyn FnOnce() + Send>),
}

/// How a device answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// Its name.
    pub device: String,
    /// Calls under way.
    pub calls: usize,
    /// Calls that wait for a free helper.
    pub waiting: usize,
    /// How long the oldest call under way has taken so far.
    pub oldest: Option<Duration>,
}

impl Health {
    /// True when a call has taken so long that the device is taken to hang.
    pub fn is_stalled(&self) -> bool {
        self.oldest.is_some_and(|age| age >= STALLED_AFTER)
    }
}

/// Whose helpers: a leaf's, or a map's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Key {
    Leaf(LeafId),
    Map(u64),
    Nobody,
}

static ALL: Mutex<Option<HashMap<Key, Weak<Helpers>>>> = Mutex::new(None);
static EXTRA: AtomicUsize = AtomicUsize::new(0);

fn all() -> MutexGuard<'static, Option<HashMap<Key, Weak<Helpers>>>> {
    // Nothing that can panic runs under the lock.
    lock(&ALL)
}

fn shared(key: Key, name: &str) -> Arc<Helpers> {
    let mut all = all();
    let all = all.get_or_insert_default();
    if let Some(known) = all.get(&key).and_then(Weak::upgrade) {
        return known;
    }
    all.retain(|_, helpers| helpers.strong_count() > 0);
    let helpers = Arc::new(Helpers::new(name));
    all.insert(key, Arc::downgrade(&helpers));
    helpers
}

/// The helpers of a device: the same for every handle and every queue of it in this process.
pub fn of(identity: Identity, name: &str) -> Arc<Helpers> {
    match identity {
        Identity::Leaf { leaf, .. } => shared(Key::Leaf(leaf), name),
        Identity::Map(id) => shared(Key::Map(id), name),
    }
}

/// Helpers for what belongs to no device.
pub fn of_nobody() -> Arc<Helpers> {
    shared(Key::Nobody, "this process")
}

/// How each device with calls under way answers, by name.
pub fn health() -> Vec<Health> {
    let held: Vec<Arc<Helpers>> =
        all().as_ref().map_or_else(Vec::new, |all| all.values().filter_map(Weak::upgrade).collect());
    let mut list: Vec<Health> = held.iter().map(|h| h.health()).filter(|h| h.calls > 0).collect();
    list.sort_by(|a, b| a.device.cmp(&b.device));
    list
}

/// Has a thread log each device that stalls, and that it answers again: for programs that run long. Starts it once.
pub fn report_stalls() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.swap(true, Ordering::Relaxed) {
        return;
    }
    let started = std::thread::Builder::new().name("blkcopy-health".into()).spawn(|| {
        let mut stalled: Vec<(String, Instant)> = Vec::new();
        loop {
            std::thread::sleep(LOOK_EVERY);
            look(&mut stalled, &health());
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "cannot start the thread that reports devices that do not answer");
    }
}

/// Logs what changed since the last look.
fn look(stalled: &mut Vec<(String, Instant)>, now: &[Health]) {
    stalled.retain(|(device, since)| {
        let still = now.iter().any(|h| h.device == *device && h.is_stalled());
        if !still {
            let seconds = since.elapsed().as_secs();
            tracing::info!("{device} answers again, after {seconds} s");
        }
        still
    });
    for health in now.iter().filter(|h| h.is_stalled()) {
        if stalled.iter().any(|(device, _)| *device == health.device) {
            continue;
        }
        let age = health.oldest.unwrap_or_default();
        tracing::warn!(
            calls = health.calls,
            waiting = health.waiting,
            "{} has not answered a system call for {} s; requests to it wait; other devices are not affected",
            health.device,
            age.as_secs()
        );
        stalled.push((health.device.clone(), Instant::now().checked_sub(age).unwrap_or_else(Instant::now)));
    }
}

impl Helpers {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            work: Mutex::default(),
            more: Condvar::new(),
            keeps_off_ring: AtomicBool::new(false),
        }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        // Nothing that can panic runs under the lock.
        lock(&self.work)
    }

    /// No operation of this device goes to a ring from here on: its files block whoever submits them.
    pub fn keep_off_ring(&self) {
        self.keeps_off_ring.store(true, Ordering::Relaxed);
    }

    /// True when a call to the device takes unusually long at this moment, or calls wait for a helper: whoever serves
    /// others makes none itself now.
    pub fn is_stuck(&self) -> bool {
        let work = self.work();
        !work.jobs.is_empty() || work.calls.front().is_some_and(|(_, begun)| begun.elapsed() >= STUCK_AFTER)
    }

    /// How the device answers now.
    pub fn health(&self) -> Health {
        let work = self.work();
        Health {
            device: self.name.clone(),
            calls: work.calls.len(),
            waiting: work.jobs.len(),
            oldest: work.calls.front().map(|(_, begun)| begun.elapsed()),
        }
    }

    /// Runs `call` on a helper thread; its panic is caught, and nobody is told of its end.
    pub fn run(self: &Arc<Self>, call: impl FnOnce() + Send + 'static) {
        self.leave(Job::Plain(Box::new(call)));
    }

    /// Makes `call` on the calling thread, which waits for nothing else meanwhile: it counts as a call under way.
    pub fn own<T>(&self, call: impl FnOnce() -> T) -> T {
        struct Under<'a>(&'a Helpers, CallId);
        impl Drop for Under<'_> {
            fn drop(&mut self) {
                self.0.ends(self.1);
            }
        }
        let _under = Under(self, self.begins());
        call()
    }

    /// Runs `op` on a helper thread; its end arrives at `home`.
    pub(super) fn run_op(
        self: &Arc<Self>,
        home: &Arc<Home>,
        port: Port,
        token: u64,
        op: IoOp,
        counters: Counters,
    ) {
        self.leave(Job::Op { op, port, token, counters, home: home.clone() });
    }

    /// Takes down that a call begins.
    pub(super) fn begins(&self) -> CallId {
        self.work().begins()
    }

    /// The same for a call that a ring makes; `None` when it is better made by a helper.
    pub(super) fn begins_in_ring(&self) -> Option<CallId> {
        if self.keeps_off_ring.load(Ordering::Relaxed) {
            return None;
        }
        let mut work = self.work();
        // The kernel has threads of its own for what a ring cannot do at once, and they are shared by all devices.
        let hangs = work.calls.front().is_some_and(|(_, begun)| begun.elapsed() >= STALLED_AFTER);
        if hangs { None } else { Some(work.begins()) }
    }

    /// Takes down that a call has ended.
    pub(super) fn ends(&self, call: CallId) {
        let mut work = self.work();
        if let Ok(at) = work.calls.binary_search_by_key(&call, |(id, _)| *id) {
            work.calls.remove(at);
        }
    }

    /// A job for a thread: one is started when all are busy, as long as there may be more; else it waits in line. Where
    /// not a single one can be started the calling thread does it.
    fn leave(self: &Arc<Self>, job: Job) {
        let mut work = self.work();
        work.jobs.push_back(job);
        if work.idle < work.jobs.len() && work.threads < THREADS_MAX && may_start(work.threads) {
            let this = self.clone();
            let started =
                std::thread::Builder::new().name("blkcopy-helper".into()).spawn(move || this.help());
            match started {
                Ok(_) => work.threads += 1,
                Err(error) => {
                    ended(work.threads + 1);
                    if work.threads == 0 {
                        tracing::warn!(%error, device = self.name, "no helper thread can be started");
                        let jobs = std::mem::take(&mut work.jobs);
                        drop(work);
                        return jobs.into_iter().for_each(|job| self.finish(job));
                    }
                }
            }
        }
        drop(work);
        self.more.notify_one();
    }

    fn help(self: Arc<Self>) {
        let mut work = self.work();
        loop {
            while let Some(job) = work.jobs.pop_front() {
                drop(work);
                self.finish(job);
                work = self.work();
            }
            work.idle += 1;
            let (waited, timeout) = held(self.more.wait_timeout(work, IDLE));
            work = waited;
            work.idle -= 1;
            if timeout.timed_out() && work.jobs.is_empty() {
                ended(work.threads);
                work.threads -= 1;
                return;
            }
        }
    }

    fn finish(&self, job: Job) {
        match job {
            Job::Op { op, port, token, counters, home } => {
                let mut done = self.own(|| threads::run(token, op));
                done.counters += counters;
                home.deliver(port, done);
            }
            Job::Plain(call) => {
                // The panic has been printed by its hook.
                let call = std::panic::AssertUnwindSafe(call);
                let _ = self.own(|| std::panic::catch_unwind(call));
            }
        }
    }
}

impl Work {
    fn begins(&mut self) -> CallId {
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.calls.push_back((id, Instant::now()));
        id
    }
}

impl fmt::Debug for Helpers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Helpers({:?})", self.health())
    }
}

/// True when a device that has `threads` helpers may start another; taken down.
fn may_start(threads: usize) -> bool {
    let more = |extra: usize| (extra < EXTRA_MAX).then_some(extra + 1);
    threads == 0 || EXTRA.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

/// One of `threads` helpers of a device ends.
fn ended(threads: usize) {
    if threads > 1 {
        EXTRA.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::pool::Pool;
    use crate::reactor::{CallDone, Reactor};
    use std::sync::mpsc;

    /// Longer than anything here takes: a hang guard.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn leaf(id: u64) -> Identity {
        let space = crate::block::device::LeafSpace::Memory;
        Identity::Leaf { leaf: LeafId { space, id: (u64::MAX, id) }, base: 0 }
    }

    /// Calls that end when the sender is dropped.
    fn hang(helpers: &Arc<Helpers>, count: usize) -> Vec<mpsc::Sender<()>> {
        let mut holds = Vec::new();
        for _ in 0..count {
            let (hold, held) = mpsc::channel::<()>();
            helpers.run(move || {
                let _ = held.recv();
            });
            holds.push(hold);
        }
        holds
    }

    #[test]
    fn handles_of_one_leaf_share_their_helpers_and_others_do_not() {
        let (a, b) = (of(leaf(1), "a"), of(leaf(2), "b"));
        let Identity::Leaf { leaf: same, .. } = leaf(1) else { unreachable!() };
        let part = Identity::Leaf { leaf: same, base: 4096 };
        assert!(Arc::ptr_eq(&a, &of(part, "a partition of a")) && !Arc::ptr_eq(&a, &b));
        drop(a);
        assert_eq!(of(leaf(1), "a again").health().device, "a again", "nobody kept the first");
    }

    #[test]
    fn a_device_that_hangs_holds_up_its_own_calls_only() {
        let (hung, healthy) = (of(leaf(3), "hung"), of(leaf(4), "healthy"));
        let holds = hang(&hung, 3 * THREADS_MAX);
        let begun = Instant::now();
        while hung.health().calls < THREADS_MAX && begun.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        let health = hung.health();
        assert_eq!((health.calls, health.waiting), (THREADS_MAX, 2 * THREADS_MAX));
        assert!(hung.is_stuck() && !healthy.is_stuck());
        let reactor = Pool::new(false).unwrap();
        let ports = [reactor.open_port_of(&hung), reactor.open_port_of(&healthy)];
        for port in ports {
            reactor.submit(port, 1, IoOp::Call(Box::new(CallDone::default)));
        }
        let mut done = Vec::new();
        while done.is_empty() {
            reactor.wait(Some(reactor.now() + PATIENCE));
            reactor.complete(ports[1], &mut done);
            assert!(begun.elapsed() < PATIENCE, "the healthy device's call waits for the hung one's");
        }
        reactor.complete(ports[0], &mut done);
        assert_eq!(done.len(), 1, "a call to the hung device cannot have ended");
        drop(holds);
        while done.len() < 2 {
            reactor.wait(None);
            reactor.complete(ports[0], &mut done);
        }
    }

    #[test]
    fn every_device_has_one_thread_however_many_hang() {
        // More devices than there can be extra threads for, each with as much as it may have.
        let hung: Vec<_> =
            (0..EXTRA_MAX / (THREADS_MAX - 1) + 4).map(|n| of(leaf(100 + n as u64), "hung")).collect();
        let holds: Vec<_> = hung.iter().map(|h| hang(h, THREADS_MAX)).collect();
        assert!(EXTRA.load(Ordering::Relaxed) <= EXTRA_MAX);
        let (told, tells) = mpsc::channel();
        of(leaf(99), "healthy").run(move || told.send(()).unwrap_or_default());
        assert!(tells.recv_timeout(PATIENCE).is_ok(), "no thread was left for a healthy device");
        drop(holds);
    }

    #[test]
    fn a_call_that_panics_leaves_its_helper_and_its_count() {
        let helpers = of(leaf(5), "panics");
        helpers.run(|| panic!("planned by a test"));
        let (told, tells) = mpsc::channel();
        helpers.run(move || told.send(()).unwrap_or_default());
        assert!(tells.recv_timeout(PATIENCE).is_ok());
        let begun = Instant::now();
        while helpers.health().calls > 0 && begun.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        assert_eq!(helpers.health().oldest, None);
    }

    #[test]
    fn a_stall_is_told_once_and_so_is_its_end() {
        let health = |oldest| Health { device: "d".to_owned(), calls: 1, waiting: 0, oldest };
        let mut stalled = Vec::new();
        look(&mut stalled, &[health(Some(STALLED_AFTER.checked_sub(Duration::from_millis(1)).unwrap()))]);
        assert!(stalled.is_empty());
        look(&mut stalled, &[health(Some(STALLED_AFTER))]);
        look(&mut stalled, &[health(Some(2 * STALLED_AFTER))]);
        assert_eq!(stalled.len(), 1);
        look(&mut stalled, &[]);
        assert!(stalled.is_empty());
    }
}

//! The small executor for slow paths: tasks of one thread, woken by completions, timers and other threads.
//!
//! One turn: run woken tasks, hand their requests to the queues, collect completions; when nothing can run, wait in the
//! reactor. Everything here belongs to one thread except wakers and [`Interrupt`].

use super::{Reactor, Waker as ReactorWaker, enter};
use crate::block::lock::CoreLocks;
use crate::block::{Completion, Counters, Device, Op, Queue, Request, Result, Submitter};
use crate::sys::sync::lock;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::ThreadId;
use std::time::Duration;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Inner>>> = const { RefCell::new(None) };
}

type Hook = Box<dyn FnMut() -> bool>;

/// The executor of a thread, from its making until it is dropped.
///
/// Dropping it drops the tasks and then waits until every request in flight has completed.
pub struct Local {
    inner: Rc<Inner>,
    // After `drop` has run: the queues use the reactor to the end.
    _entered: super::Entered,
}

struct Inner {
    reactor: Rc<dyn Reactor>,
    woken: Arc<Woken>,
    tasks: RefCell<HashMap<u64, Task>>,
    serial: Cell<u64>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    clients: RefCell<Vec<Rc<ClientInner>>>,
    on_turn: RefCell<Vec<Hook>>,
    before_wait: RefCell<Vec<Hook>>,
    after_wait: RefCell<Vec<Hook>>,
}

struct Task {
    /// Out while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
}

/// Tasks to run, told by any thread.
struct Woken {
    ids: Mutex<VecDeque<u64>>,
    home: ThreadId,
    reactor: ReactorWaker,
}

impl Woken {
    fn ids(&self) -> MutexGuard<'_, VecDeque<u64>> {
        // A push or pop cannot leave the list half changed.
        lock(&self.ids)
    }
}

struct TaskWaker {
    id: u64,
    queued: AtomicBool,
    woken: Arc<Woken>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        self.woken.ids().push_back(self.id);
        if std::thread::current().id() != self.woken.home {
            self.woken.reactor.wake();
        }
    }
}

impl Local {
    /// Makes the calling thread's executor, over `reactor`, which becomes the thread's own.
    ///
    /// # Panics
    /// When the thread has an executor or a reactor already.
    pub fn new(reactor: Rc<dyn Reactor>) -> Self {
        let entered = enter(reactor.clone());
        let woken =
            Woken { ids: Mutex::default(), home: std::thread::current().id(), reactor: reactor.waker() };
        let inner = Rc::new(Inner {
            reactor,
            woken: Arc::new(woken),
            tasks: RefCell::default(),
            serial: Cell::new(0),
            timers: RefCell::default(),
            clients: RefCell::default(),
            on_turn: RefCell::default(),
            before_wait: RefCell::default(),
            after_wait: RefCell::default(),
        });
        CURRENT.with(|c| *c.borrow_mut() = Some(inner.clone()));
        Self { inner, _entered: entered }
    }

    /// Runs `future` and the spawned tasks until `future` is done. What else is in flight goes on at the next call.
    ///
    /// # Panics
    /// With the panic of any task. Not to be called from within a task.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let inner = &*self.inner;
        let mut future = pin!(future);
        let main = inner.waker(inner.next_serial());
        let waker = Waker::from(main.clone());
        waker.wake_by_ref();
        loop {
            // Those woken now; whom they wake has the next turn, so that queues and hooks have theirs.
            let count = inner.woken.ids().len();
            for _ in 0..count {
                let Some(id) = inner.woken.ids().pop_front() else { break };
                if id != main.id {
                    inner.run_task(id);
                    continue;
                }
                main.queued.store(false, Ordering::Release);
                if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    inner.serve_clients(); // starts what was submitted and is not awaited
                    return value;
                }
            }
            let hooked = run_hooks(&inner.on_turn);
            inner.serve_clients();
            inner.fire_timers();
            if hooked || inner.any_woken() {
                inner.reactor.turn();
            } else {
                inner.wait();
            }
        }
    }

    /// Starts a task; see [`spawn`].
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        self.inner.spawn(future)
    }

    /// Adds a hook that runs every turn and says whether it got anything done (then the turn is followed by another).
    pub fn on_turn(&self, hook: impl FnMut() -> bool + 'static) {
        self.inner.on_turn.borrow_mut().push(Box::new(hook));
    }

    /// Adds a hook that runs before the thread sleeps. True: there is work after all, do not sleep.
    pub fn before_wait(&self, hook: impl FnMut() -> bool + 'static) {
        self.inner.before_wait.borrow_mut().push(Box::new(hook));
    }

    /// Adds a hook that runs after `before_wait`, whether or not the thread slept.
    pub fn after_wait(&self, mut hook: impl FnMut() + 'static) {
        self.inner.after_wait.borrow_mut().push(Box::new(move || {
            hook();
            false
        }));
    }

    /// Ends the thread's sleep, from any thread; hooks run then.
    pub fn waker(&self) -> ReactorWaker {
        self.inner.reactor.waker()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let inner = &*self.inner;
        // One by one and out of the cell: what a task drops may spawn or wake.
        loop {
            let id = inner.tasks.borrow().keys().next().copied();
            let Some(id) = id else { break };
            let task = inner.tasks.borrow_mut().remove(&id);
            drop(task);
        }
        while !std::thread::panicking() {
            run_hooks(&inner.on_turn);
            inner.serve_clients();
            if inner.clients.borrow().iter().all(|c| c.in_flight.get() == 0) {
                break;
            }
            inner.wait();
        }
        inner.clients.borrow_mut().clear();
        CURRENT.with(|c| c.borrow_mut().take());
    }
}

/// Runs hooks outside their cell, so that one may add another. True when any got something done.
fn run_hooks(cell: &RefCell<Vec<Hook>>) -> bool {
    if cell.borrow().is_empty() {
        return false;
    }
    let mut hooks = cell.take();
    let mut any = false;
    for hook in &mut hooks {
        any |= hook();
    }
    let mut held = cell.borrow_mut();
    hooks.append(&mut held);
    *held = hooks;
    any
}

impl Inner {
    fn next_serial(&self) -> u64 {
        self.serial.set(self.serial.get() + 1);
        self.serial.get()
    }

    fn waker(&self, id: u64) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { id, queued: AtomicBool::new(false), woken: self.woken.clone() })
    }

    fn any_woken(&self) -> bool {
        !self.woken.ids().is_empty()
    }

    fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let join = Rc::new(Join { value: RefCell::new(None), waiter: RefCell::new(None) });
        let handle = JoinHandle(join.clone());
        let id = self.next_serial();
        let waker = self.waker(id);
        let future = Box::pin(async move {
            let value = future.await;
            join.value.replace(Some(value));
            if let Some(waiter) = join.waiter.take() {
                waiter.wake();
            }
        });
        self.tasks.borrow_mut().insert(id, Task { future: Some(future), waker: waker.clone() });
        waker.wake();
        handle
    }

    fn run_task(&self, id: u64) {
        let taken =
            self.tasks.borrow_mut().get_mut(&id).and_then(|t| Some((t.future.take()?, t.waker.clone())));
        let Some((mut future, waker)) = taken else { return }; // it has ended
        waker.queued.store(false, Ordering::Release);
        let waker = Waker::from(waker);
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.tasks.borrow_mut().remove(&id);
        } else if let Some(task) = self.tasks.borrow_mut().get_mut(&id) {
            task.future = Some(future);
        }
    }

    fn serve_clients(&self) {
        let mut at = 0;
        loop {
            // Not borrowed while a queue runs: it may open clients of its own.
            let client = self.clients.borrow().get(at).cloned();
            let Some(client) = client else { break };
            client.serve();
            at += 1;
        }
        // Dropped by all its users and nothing in flight: close its queue, with nothing borrowed either.
        let idle = |c: &mut Rc<ClientInner>| Rc::strong_count(c) == 1 && c.in_flight.get() == 0;
        let closed: Vec<_> = self.clients.borrow_mut().extract_if(.., idle).collect();
        drop(closed);
    }

    fn fire_timers(&self) {
        if self.timers.borrow().is_empty() {
            return;
        }
        let now = self.reactor.now();
        let mut timers = self.timers.borrow_mut();
        while let Some(first) = timers.first_entry()
            && first.key().0 <= now
        {
            first.remove().wake();
        }
    }

    fn wait(&self) {
        let busy = run_hooks(&self.before_wait);
        if busy || self.any_woken() {
            self.reactor.turn();
        } else {
            let next = self.timers.borrow().first_key_value().map(|(&(at, _), _)| at);
            self.reactor.wait(next);
        }
        run_hooks(&self.after_wait);
    }
}

fn current() -> Rc<Inner> {
    CURRENT
        .with(|c| c.borrow().clone())
        .expect("this thread has a Local while async code of the library runs")
}

/// Starts a task on the calling thread's executor. Dropping the handle lets it run on.
///
/// # Panics
/// When the thread has no [`Local`]; so do the other functions of this file.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    current().spawn(future)
}

/// Time on the reactor's clock.
pub fn now() -> Duration {
    current().reactor.now()
}

/// Ready once `time` has passed on the reactor's clock.
pub async fn sleep(time: Duration) {
    struct Registered(Rc<Inner>, (Duration, u64));
    impl Drop for Registered {
        fn drop(&mut self) {
            self.0.timers.borrow_mut().remove(&self.1);
        }
    }
    let inner = current();
    let key = (inner.reactor.now().saturating_add(time), inner.next_serial());
    let entry = Registered(inner, key);
    poll_fn(|cx| {
        if entry.0.reactor.now() >= key.0 {
            return Poll::Ready(());
        }
        entry.0.timers.borrow_mut().insert(key, cx.waker().clone());
        Poll::Pending
    })
    .await;
}

/// Lets the other woken tasks and the queues have a turn.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The result of a task to come. A future; never ready when the executor is dropped before the task ends.
#[must_use = "dropping the handle lets the task run on unwatched"]
pub struct JoinHandle<T>(Rc<Join<T>>);

struct Join<T> {
    value: RefCell<Option<T>>,
    waiter: RefCell<Option<Waker>>,
}

impl<T> Future for JoinHandle<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(value) = self.0.value.take() {
            return Poll::Ready(value);
        }
        self.0.waiter.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinHandle")
    }
}

/// A user of a device on this thread: one queue, many requests in flight. Clones share it.
#[derive(Clone)]
pub struct Client(Rc<ClientInner>);

struct ClientInner {
    device: Arc<dyn Device>,
    queue: RefCell<Box<dyn Queue>>,
    submitter: Submitter,
    /// Waits for the next turn, or for room in the queue.
    backlog: RefCell<VecDeque<Request>>,
    /// By tag: never used twice, so a late completion cannot be taken for another's.
    waiting: RefCell<HashMap<u64, Waiting>>,
    in_flight: Cell<usize>,
    next_tag: Cell<u64>,
    done: RefCell<Vec<Completion>>,
}

enum Waiting {
    /// In flight; the waker once the future was polled.
    For(Option<Waker>),
    /// In flight, and nobody wants to know.
    Nobody,
    Done(Completion),
}

impl Client {
    /// Opens a queue of `device` on the calling thread.
    ///
    /// Errors: those of [`Device::open_queue`].
    pub fn open(device: Arc<dyn Device>) -> Result<Self> {
        let queue = device.clone().open_queue()?;
        Ok(Self::over(device, queue))
    }

    /// A client on a queue of `device` that the caller opened on this thread, for itself and for nobody else.
    pub fn over(device: Arc<dyn Device>, queue: Box<dyn Queue>) -> Self {
        let local = current();
        let queue = RefCell::new(queue);
        let inner = Rc::new(ClientInner {
            device,
            queue,
            submitter: Submitter::default(),
            backlog: RefCell::default(),
            waiting: RefCell::default(),
            in_flight: Cell::new(0),
            next_tag: Cell::new(0),
            done: RefCell::default(),
        });
        local.clients.borrow_mut().push(inner.clone());
        Self(inner)
    }

    /// Submits `op` (now, with all others of this turn); the future gives its completion.
    ///
    /// Dropping the future does not stop the operation: its completion is discarded, its buffer goes back to the pool.
    pub fn submit(&self, op: Op) -> Submitted {
        let tag = self.0.next_tag.get();
        self.0.next_tag.set(tag + 1);
        self.0.in_flight.set(self.0.in_flight.get() + 1);
        self.0.waiting.borrow_mut().insert(tag, Waiting::For(None));
        self.0.backlog.borrow_mut().push_back(self.0.submitter.request(tag, op));
        Submitted { client: self.0.clone(), tag }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.0.device
    }

    /// What its queue has done so far.
    pub fn counters(&self) -> Counters {
        self.0.queue.borrow().counters()
    }
}

impl ClientInner {
    /// Hands the backlog to the queue and delivers what has completed.
    ///
    /// Also when nothing of ours is in flight: a queue may have operations of its own out, and a completion that nobody
    /// takes would end every wait at once.
    fn serve(&self) {
        let mut done = self.done.borrow_mut();
        loop {
            let full = {
                let mut queue = self.queue.borrow_mut();
                let mut backlog = self.backlog.borrow_mut();
                if !backlog.is_empty() {
                    queue.submit(&mut backlog);
                }
                queue.poll(&mut done);
                !backlog.is_empty()
            };
            self.submitter.take_aborted(&mut done);
            let progress = !done.is_empty();
            for completion in done.drain(..) {
                self.deliver(completion);
            }
            // What has completed made room for more, and nothing else would wake us for it.
            if !(full && progress) {
                break;
            }
        }
    }

    fn deliver(&self, completion: Completion) {
        let tag = completion.tag;
        let before = self.waiting.borrow_mut().remove(&tag);
        match before {
            Some(Waiting::For(waker)) => {
                self.in_flight.set(self.in_flight.get() - 1);
                self.waiting.borrow_mut().insert(tag, Waiting::Done(completion));
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Some(Waiting::Nobody) => self.in_flight.set(self.in_flight.get() - 1),
            first => {
                if let Some(first) = first {
                    self.waiting.borrow_mut().insert(tag, first);
                }
                let device = self.device.name();
                tracing::error!(device, tag, "a request completed twice; the second is ignored");
                debug_assert!(false, "request {tag} of {device} completed twice");
            }
        }
    }
}

/// The completion of a request to come: what [`Client::submit`] gives.
#[must_use = "a completion carries the result"]
pub struct Submitted {
    client: Rc<ClientInner>,
    tag: u64,
}

impl Future for Submitted {
    type Output = Completion;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        let mut waiting = self.client.waiting.borrow_mut();
        match waiting.remove(&self.tag).expect("not polled after it was ready") {
            Waiting::Done(completion) => Poll::Ready(completion),
            _ => {
                waiting.insert(self.tag, Waiting::For(Some(cx.waker().clone())));
                Poll::Pending
            }
        }
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        let mut waiting = self.client.waiting.borrow_mut();
        let held = match waiting.get_mut(&self.tag) {
            Some(w @ Waiting::For(_)) => {
                *w = Waiting::Nobody;
                None
            }
            Some(Waiting::Done(_)) => waiting.remove(&self.tag),
            _ => None,
        };
        drop(waiting);
        drop(held);
    }
}

/// A queue of waiting tasks, first come, first woken. For whoever waits until something (a buffer) comes back.
///
/// Whoever finds none calls [`Notify::notified`] and looks again after it; whoever gives one back calls
/// [`Notify::notify_one`]. To be fair, a newcomer queues when [`Notify::has_waiters`].
#[derive(Clone, Default)]
pub struct Notify(Rc<RefCell<Line>>);

#[derive(Default)]
struct Line {
    next: u64,
    /// In order of arrival. `None`: in line, not polled yet.
    waiters: BTreeMap<u64, Option<Waker>>,
}

impl Notify {
    /// Lets the first in line go on. Not remembered when nobody waits.
    pub fn notify_one(&self) {
        let first = self.0.borrow_mut().waiters.pop_first();
        if let Some((_, Some(waker))) = first {
            waker.wake();
        }
    }

    /// Lets all who are in line go on.
    pub fn notify_all(&self) {
        let all = std::mem::take(&mut self.0.borrow_mut().waiters);
        all.into_values().flatten().for_each(Waker::wake);
    }

    /// True when somebody is in line.
    pub fn has_waiters(&self) -> bool {
        !self.0.borrow().waiters.is_empty()
    }

    /// Gets in line, now; ready when notified. Dropped after it was notified and before it was ready, it notifies the
    /// next.
    pub fn notified(&self) -> Notified {
        let mut line = self.0.borrow_mut();
        let ticket = line.next;
        line.next += 1;
        line.waiters.insert(ticket, None);
        Notified { notify: self.clone(), ticket: Some(ticket) }
    }
}

/// A place in the line of a [`Notify`].
#[must_use = "dropping it leaves the line"]
pub struct Notified {
    notify: Notify,
    /// `None` once it was ready.
    ticket: Option<u64>,
}

impl Future for Notified {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ticket) = self.ticket else { return Poll::Ready(()) };
        if let Some(place) = self.notify.0.borrow_mut().waiters.get_mut(&ticket) {
            *place = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.ticket = None;
        Poll::Ready(())
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let left = self.notify.0.borrow_mut().waiters.remove(&ticket);
        if left.is_none() {
            self.notify.notify_one();
        }
    }
}

/// A request to stop, made by any thread (a signal's, say) and awaited by tasks. Clones share it; once made it stays.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<(AtomicBool, Mutex<Vec<Waker>>)>);

impl Interrupt {
    /// Makes it, from any thread; sleeping executors whose tasks await it wake up.
    pub fn set(&self) {
        self.0.0.store(true, Ordering::SeqCst);
        let waiters = std::mem::take(&mut *lock(&self.0.1));
        waiters.into_iter().for_each(Waker::wake);
    }

    /// True once made.
    pub fn is_set(&self) -> bool {
        self.0.0.load(Ordering::SeqCst)
    }

    /// Ready once it was made.
    pub async fn wait(&self) {
        poll_fn(|cx| {
            if !self.is_set() {
                let mut waiters = lock(&self.0.1);
                if !waiters.iter().any(|w| w.will_wake(cx.waker())) {
                    waiters.push(cx.waker().clone());
                }
            }
            // Looked at again after the registration: `set` may have run in between.
            if self.is_set() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Local {
    /// Lets this thread take part in range locking while it runs [`Local::block_on`]: messages of other cores are taken
    /// in every turn, and while the thread sleeps others serve its table. Drop the `Local` before the thread does
    /// anything else for long: a core that runs without turning holds up other cores' copies.
    pub fn serve_locks(&self, locks: &Rc<CoreLocks>) {
        if !locks.is_running() {
            locks.enter();
        }
        let (turn, sleep, wake) = (locks.clone(), locks.clone(), locks.clone());
        self.on_turn(move || turn.pump());
        self.before_wait(move || !sleep.park());
        self.after_wait(move || {
            if !wake.is_running() {
                wake.enter();
            }
        });
    }
}

//! A controller as this process knows it: one association at a time, the queues and namespaces that live on it, and the
//! thread that keeps it alive.
//!
//! That thread owns the admin queue. It sends keep-alives, looks for commands that take too long, and when the association
//! is lost it makes a new one and hands every queue its new connection. Queues never wait for it.

use super::admin::{self, Admin, Ask, Asking, Facts, NamespaceFacts, Peer, Purpose};
use super::admin::{SLOT_ASK, SLOT_EVENT, SLOT_KEEP_ALIVE};
use super::device::Namespace;
use super::link::{Answer, Link, Received, broken, buf_of, left, timespec};
use super::wire::{Fresh, Wire};
use super::{Options, Why};
use crate::block::{Error, Kind, Result};
use crate::nvme::feature::AsyncEvent;
use crate::nvme::tcp::host::{Data, Event};
use crate::nvme::{AdminCommand, Cqe, Sqe};
use crate::reactor::Waker;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Parts a command's time-out is counted in.
pub(super) const SCANS: u32 = 4;
/// Pauses between attempts to connect again: the first, doubled up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// How long the controller may take to answer when we go.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long a queue id that was in use before may still be in use at the controller.
const QUEUE_LINGERS: Duration = Duration::from_secs(1);

/// Controllers of this process that somebody uses.
static CONTROLLERS: Mutex<Vec<Weak<Controller>>> = Mutex::new(Vec::new());
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// Locks what no panic can leave half changed: every change under these locks is one assignment or one push.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What namespaces and queues hold on to. When the last of them goes, the association ends.
pub(super) struct Controller {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    number: u64,
    peer: Peer,
    options: Options,
    state: Mutex<State>,
    changed: Condvar,
    /// Ends the thread's wait.
    bell: OwnedFd,
}

struct State {
    phase: Phase,
    /// Number of the present or last association; 0 before the first.
    association: u64,
    facts: Option<Arc<Facts>>,
    wires: Vec<Weak<Wire>>,
    /// Wires whose first connection is being made.
    opening: Vec<Weak<Wire>>,
    namespaces: Vec<Weak<Namespace>>,
    questions: VecDeque<Question>,
    /// How often the thread began to ask again what the open namespaces are.
    looks: u64,
    /// A queue says that this association is lost.
    lost: Option<(u64, Why)>,
    closing: bool,
    /// Queue ids count up and come round, so that one just given back is not used at once.
    last_qid: u16,
}

enum Phase {
    /// Making the first association.
    Opening,
    Up,
    /// Lost; making another one.
    Down,
    /// Given up for good.
    Dead(Why),
}

/// An admin command from another thread.
struct Question {
    sqe: Sqe,
    data: Data,
    answer: SyncSender<Result<Answer>>,
}

impl Controller {
    /// The controller that `peer` names: the one this process has, or a new association.
    ///
    /// Errors: those of attaching; `InvalidInput` when it is attached already with other digests.
    pub(super) fn attach(peer: Peer, options: Options) -> Result<Arc<Self>> {
        let controller = Self::find_or_start(peer, options)?;
        controller.wait_up(Instant::now() + options.connect_timeout)?;
        Ok(controller)
    }

    fn find_or_start(peer: Peer, options: Options) -> Result<Arc<Self>> {
        let mut all = lock(&CONTROLLERS);
        all.retain(|c| c.strong_count() > 0);
        let mut held: Vec<Arc<Self>> = all.iter().filter_map(Weak::upgrade).collect();
        held.retain(|c| c.shared.peer == peer && !matches!(lock(&c.shared.state).phase, Phase::Dead(_)));
        if let Some(known) = held.pop() {
            if known.shared.options.digests() != options.digests() {
                let text =
                    "is attached already with other digests; give the same hdgst and ddgst in all its names";
                return Err(Error::new(Kind::InvalidInput, text).on(&peer.subsystem.to_string()));
            }
            return Ok(known);
        }
        let os = |e: Errno| Error::os("no event to wake the controller's thread with", e);
        let shared = Arc::new(Shared {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            peer,
            options,
            state: Mutex::new(State {
                phase: Phase::Opening,
                association: 0,
                facts: None,
                wires: Vec::new(),
                opening: Vec::new(),
                namespaces: Vec::new(),
                questions: VecDeque::new(),
                looks: 0,
                lost: None,
                closing: false,
                last_qid: 0,
            }),
            changed: Condvar::new(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(os)?,
        });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("nvme-tcp".to_owned()).spawn(move || run(&theirs));
        let thread = thread.map_err(|e| Error::os("no thread for the controller", e))?;
        let controller = Arc::new(Self { shared, thread: Mutex::new(Some(thread)) });
        all.push(Arc::downgrade(&controller));
        Ok(controller)
    }

    /// A number of its own among the controllers this process ever had.
    pub(super) fn number(&self) -> u64 {
        self.shared.number
    }

    /// The facts of the present association, as soon as there is one.
    ///
    /// Errors: why there is none and will be none; none by the deadline.
    pub(super) fn wait_up(&self, deadline: Instant) -> Result<(u64, Arc<Facts>)> {
        let mut state = lock(&self.shared.state);
        loop {
            match (&state.phase, &state.facts) {
                (Phase::Dead(why), _) => return Err(why.error()),
                (Phase::Up, Some(facts)) => return Ok((state.association, facts.clone())),
                _ => {}
            }
            // The thread itself keeps to the time-outs: this one only guards against waiting for ever.
            let wait = left(deadline + GOODBYE);
            if wait.is_zero() {
                let text = format!("no connection to {} in time", self.shared.peer.address);
                return Err(Error::new(Kind::Io, text));
            }
            state = self.shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks what a namespace is, and has its changes followed: the one that is open already, as it is now, or the one that
    /// `make` makes.
    pub(super) fn namespace(
        &self,
        nsid: u32,
        make: impl FnOnce(&Facts, NamespaceFacts) -> Arc<Namespace>,
    ) -> Result<Arc<Namespace>> {
        let (_, facts) = self.wait_up(Instant::now() + self.shared.options.reconnect_timeout)?;
        let looks = lock(&self.shared.state).looks;
        let mut remote = Remote(&self.shared);
        let now = admin::namespace(&mut remote, &facts, nsid)?;
        now.check_plain()?;
        // Outside the lock: the last user of a controller may end here.
        let open = self.shared.namespaces();
        let mut state = lock(&self.shared.state);
        let known = open.iter().find(|n| n.nsid() == nsid && n.is_there());
        if let Some(known) = known {
            // Unless the thread has asked since, and knows better.
            if state.looks == looks {
                known.is_now(&facts, &now);
            }
            if known.is_there() {
                return Ok(known.clone());
            }
        }
        let made = make(&facts, now);
        state.namespaces.retain(|n| n.strong_count() > 0);
        state.namespaces.push(Arc::downgrade(&made));
        drop(state);
        Ok(made)
    }

    /// Opens an I/O queue for a thread whose reactor `waker` wakes.
    pub(super) fn open_queue(&self, waker: &Waker) -> Result<(Arc<Wire>, Fresh)> {
        let shared = &*self.shared;
        let options = &shared.options;
        let end = Instant::now() + options.connect_timeout.max(options.reconnect_timeout);
        loop {
            let (association, facts) = self.wait_up(end)?;
            let (wire, used_before) = self.add_wire(&facts, waker)?;
            let deadline = Instant::now() + options.connect_timeout;
            let patience = Instant::now() + if used_before { QUEUE_LINGERS } else { Duration::ZERO };
            let opened = loop {
                match admin::open_queue(&shared.peer, options, &facts, wire.qid(), deadline) {
                    Err(_) if !left(patience).is_zero() => std::thread::sleep(PAUSE_FIRST),
                    other => break other,
                }
            };
            let mut state = lock(&shared.state);
            let current = state.association == association && matches!(state.phase, Phase::Up);
            match opened {
                Ok(link) if current => {
                    state.opening.retain(|w| !std::ptr::eq(w.as_ptr(), &raw const *wire));
                    lock(&wire.mail).socket = Some(link.socket().clone());
                    state.wires.push(Arc::downgrade(&wire));
                    return Ok((wire, Fresh { link, facts, association }));
                }
                Err(error) if current => return Err(error),
                // The association went meanwhile: on the next one, all over again.
                _ if left(end).is_zero() => {
                    return Err(Error::new(Kind::Io, "the connection was lost again and again"));
                }
                _ => {}
            }
        }
    }

    /// A wire with a free queue id; whether that id was used before.
    fn add_wire(&self, facts: &Facts, waker: &Waker) -> Result<(Arc<Wire>, bool)> {
        let mut state = lock(&self.shared.state);
        state.wires.retain(|w| w.strong_count() > 0);
        state.opening.retain(|w| w.strong_count() > 0);
        let all = state.wires.iter().chain(&state.opening);
        let taken: Vec<u16> = all.filter_map(Weak::upgrade).map(|w| w.qid()).collect();
        let after = state.last_qid;
        let free = (after + 1..=facts.queues).chain(1..=after.min(facts.queues)).find(|q| !taken.contains(q));
        let Some(qid) = free else {
            let text = format!("the controller allows {} I/O queues, and all are in use", facts.queues);
            return Err(Error::new(Kind::InUse, text));
        };
        // Not told from an id used by an earlier association, which costs a moment's patience at most.
        let used_before = qid <= after;
        state.last_qid = qid;
        let wire = Arc::new(Wire::new(qid, waker.clone()));
        // Two threads that open at once get two ids.
        state.opening.push(Arc::downgrade(&wire));
        Ok((wire, used_before))
    }

    /// A queue has lost its connection, or gives the association up.
    pub(super) fn report_lost(&self, association: u64, why: Why) {
        let mut state = lock(&self.shared.state);
        if state.association == association && matches!(state.phase, Phase::Up) && state.lost.is_none() {
            state.lost = Some((association, why));
            drop(state);
            self.shared.ring();
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        lock(&self.shared.state).closing = true;
        self.shared.ring();
        let thread = lock(&self.thread).take();
        // The thread itself may hold the last namespace for a moment.
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

/// Asks through the controller's thread.
struct Remote<'a>(&'a Shared);

impl Ask for Remote<'_> {
    fn ask(&mut self, doing: &'static str, sqe: Sqe, data: Data) -> Result<Answer> {
        let (answer, wait): (_, Receiver<Result<Answer>>) = sync_channel(1);
        {
            let mut state = lock(&self.0.state);
            // Under the lock: nobody looks at questions any more.
            if let Phase::Dead(why) = &state.phase {
                return Err(why.error());
            }
            state.questions.push_back(Question { sqe, data, answer });
        }
        self.0.ring();
        // The thread drops the question or answers it within the command time-out.
        let answer = wait.recv().unwrap_or_else(|_| Err(Error::new(Kind::Io, "the connection was lost")));
        answer.map_err(|e| Error::new(e.kind(), doing).because(e).on(&self.0.peer.address.to_string()))
    }
}

impl Shared {
    fn ring(&self) {
        // It can only fail when it has rung 2^64 times unheard.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    fn silence(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// Every queue there is.
    fn wires(&self) -> Vec<Arc<Wire>> {
        let mut state = lock(&self.state);
        state.wires.retain(|w| w.strong_count() > 0);
        state.wires.iter().filter_map(Weak::upgrade).collect()
    }

    fn namespaces(&self) -> Vec<Arc<Namespace>> {
        lock(&self.state).namespaces.iter().filter_map(Weak::upgrade).collect()
    }

    fn is_closing(&self) -> bool {
        lock(&self.state).closing
    }

    fn set_phase(&self, phase: Phase) {
        lock(&self.state).phase = phase;
        self.changed.notify_all();
    }

    /// Gives up for good.
    fn die(&self, why: &Why) {
        tracing::warn!(address = %self.peer.address, "given up: {why}");
        {
            let mut state = lock(&self.state);
            state.phase = Phase::Dead(why.clone());
            state.questions.clear();
        }
        self.changed.notify_all();
        for wire in self.wires() {
            wire.post(|mail| mail.dead = Some(why.clone()));
        }
    }

    /// Waits for the bell, at most until `until`.
    fn doze(&self, until: Instant) {
        let mut fds = [PollFd::new(&self.bell, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&timespec(left(until))));
        self.silence();
    }
}

/// How serving an association ended.
enum End {
    Closing,
    Lost(Why),
}

/// The thread.
fn run(shared: &Shared) {
    let deadline = Instant::now() + shared.options.connect_timeout;
    let first = Admin::attach(&shared.peer, &shared.options, Purpose::Io, deadline);
    let mut thread = match first {
        Ok(admin) => Thread { shared, admin, unquiet: None, quiet: 0 },
        Err(error) => return shared.die(&Why::of(&error)),
    };
    thread.up(Vec::new());
    loop {
        match thread.serve() {
            End::Closing => {
                let _ = thread.admin.shut_down(Instant::now() + GOODBYE);
                return;
            }
            End::Lost(why) => {
                tracing::warn!(address = %shared.peer.address, "the connection is lost: {why}; connecting again");
                if let Err(why) = thread.recover(&why) {
                    return shared.die(&why);
                }
            }
        }
    }
}

/// What the thread knows by itself.
struct Thread<'a> {
    shared: &'a Shared,
    admin: Admin,
    /// When the last association is sure to execute nothing any more.
    unquiet: Option<Instant>,
    /// Associations up to this one execute nothing any more.
    quiet: u64,
}

/// What waits for an answer while an association is served.
struct Pending {
    question: Option<(SyncSender<Result<Answer>>, Instant)>,
    keep_alive_sent: Option<Instant>,
    next_beat: Instant,
    event_asked: bool,
    events: Vec<AsyncEvent>,
    lost: Option<Why>,
}

impl Thread<'_> {
    fn association(&self) -> u64 {
        lock(&self.shared.state).association
    }

    /// The association in `admin` is in force; its queues get their connections.
    fn up(&mut self, links: Vec<(Arc<Wire>, Link)>) {
        let mut state = lock(&self.shared.state);
        state.association += 1;
        let association = state.association;
        let facts = self.admin.facts.clone();
        state.facts = Some(facts.clone());
        state.lost = None;
        state.phase = Phase::Up;
        for (wire, link) in links {
            let quiet = self.quiet;
            wire.post(|mail| {
                mail.socket = Some(link.socket().clone());
                mail.fresh = Some(Fresh { link, facts: facts.clone(), association });
                mail.quiet = quiet;
            });
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Serves until the association is lost or nobody wants it any more.
    fn serve(&mut self) -> End {
        let options = &self.shared.options;
        let association = self.association();
        let quarter = options.command_timeout / SCANS;
        let start = Instant::now();
        let mut next_scan = start + quarter;
        // The first keep-alive at once: attaching took its part of the time-out.
        let mut pending = Pending::new(start);
        loop {
            {
                let mut state = lock(&self.shared.state);
                if state.closing {
                    return End::Closing;
                }
                if let Some((_, why)) = state.lost.take_if(|(number, _)| *number == association) {
                    return End::Lost(why);
                }
                if pending.question.is_none()
                    && let Some(question) = state.questions.pop_front()
                {
                    self.admin.link.machine().submit(SLOT_ASK, question.sqe, question.data);
                    pending.question = Some((question.answer, Instant::now() + options.command_timeout));
                }
            }
            for (slot, cqe) in std::mem::take(&mut self.admin.strays) {
                pending.done(slot, cqe, Data::None, 0);
            }
            let now = Instant::now();
            if self.unquiet.is_some_and(|at| at <= now) {
                self.unquiet = None;
                self.set_quiet(association - 1);
            }
            if next_scan <= now {
                next_scan = now + quarter;
                for wire in self.shared.wires() {
                    wire.count_scan();
                }
            }
            if let Some(at) = pending.question.as_ref().map(|(_, at)| *at)
                && at <= now
            {
                return End::Lost(Why::new(format!(
                    "an admin command was not answered within {:?}",
                    options.command_timeout
                )));
            }
            let timeout = self.admin.keep_alive;
            if pending.keep_alive_sent.is_some_and(|sent| now >= sent + timeout) {
                return End::Lost(Why::new(format!("a keep-alive was not answered within {timeout:?}")));
            }
            pending.beat(&mut self.admin, now);
            if !pending.event_asked && self.admin.facts.identify.oaes != 0 && pending.events.is_empty() {
                let sqe = AdminCommand::AsyncEventRequest.to_sqe();
                self.admin.link.machine().submit(SLOT_EVENT, sqe, Data::None);
                pending.event_asked = true;
            }
            if let Err(error) = self.pump(&mut pending) {
                return End::Lost(Why::of(&error));
            }
            if let Some(why) = pending.lost.take() {
                return End::Lost(why);
            }
            if pending.question.is_none() && !pending.events.is_empty() {
                if let Err(error) = self.heed(&mut pending) {
                    return End::Lost(Why::of(&error));
                }
                continue;
            }
            let ends = [
                Some(next_scan),
                Some(pending.next_beat),
                pending.keep_alive_sent.map(|sent| sent + timeout),
                pending.question.as_ref().map(|(_, at)| *at),
                self.unquiet,
            ];
            let until = ends.into_iter().flatten().filter(|&at| at > now).min().unwrap_or(next_scan);
            self.wait(until);
        }
    }

    /// Sends, receives, and takes what has ended.
    fn pump(&mut self, pending: &mut Pending) -> Result<()> {
        let link = &mut self.admin.link;
        loop {
            link.send()?;
            let received = link.receive()?;
            while let Some(event) = link.machine().next() {
                match event {
                    Event::Done { slot, cqe, data, received } => pending.done(slot, cqe, data, received),
                    Event::Broken(why) => return Err(broken(&why)),
                    Event::Ready { .. } => {}
                }
            }
            if matches!(received, Received::Nothing) {
                return Ok(());
            }
        }
    }

    /// Looks at what an event is about. Only one event request is out at a time, and it goes out again after this: events
    /// come no faster than they are heeded.
    fn heed(&mut self, pending: &mut Pending) -> Result<()> {
        for event in std::mem::take(&mut pending.events) {
            let deadline = self.before_questions(pending);
            let mut ask = self.admin.asking(deadline);
            if let Err(error) = admin::clear_event(&mut ask, event) {
                self.admin.link.check()?;
                tracing::info!(%error, "the log page of an event cannot be read");
            }
            if event == AsyncEvent::NAMESPACE_ATTRIBUTE {
                lock(&self.shared.state).looks += 1;
                for namespace in self.shared.namespaces() {
                    let deadline = self.before_questions(pending);
                    self.look_at(&namespace, deadline)?;
                }
            }
        }
        Ok(())
    }

    /// Sends a keep-alive, and says until when the questions up to the next call may take: long before it runs out.
    fn before_questions(&mut self, pending: &mut Pending) -> Instant {
        for (slot, cqe) in std::mem::take(&mut self.admin.strays) {
            pending.done(slot, cqe, Data::None, 0);
        }
        let now = Instant::now();
        pending.next_beat = now;
        pending.beat(&mut self.admin, now);
        now + self.admin.keep_alive / 2
    }

    /// Asks again what an open namespace is.
    fn look_at(&mut self, namespace: &Namespace, deadline: Instant) -> Result<()> {
        let Admin { link, facts, strays, .. } = &mut self.admin;
        let mut ask = Asking { link, strays, slot: SLOT_ASK, deadline };
        match admin::namespace(&mut ask, facts, namespace.nsid()) {
            Ok(now) => namespace.is_now(facts, &now),
            // Gone from the controller, or something else there now.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unsupported) => {
                namespace.is_gone(&Why::of(&error));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn wait(&mut self, until: Instant) {
        let interest = self.admin.link.interest();
        let socket = self.admin.link.socket().clone();
        let mut fds = [PollFd::new(&*socket, interest), PollFd::new(&self.shared.bell, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&timespec(left(until))));
        if !fds[1].revents().is_empty() {
            self.shared.silence();
        }
    }

    fn set_quiet(&mut self, association: u64) {
        self.quiet = association;
        for wire in self.shared.wires() {
            wire.post(|mail| mail.quiet = association);
        }
    }

    /// The association is lost: ends it as well as it can be ended, and makes another.
    fn recover(&mut self, why: &Why) -> Result<(), Why> {
        let shared = self.shared;
        let options = &shared.options;
        let lost = self.association();
        shared.set_phase(Phase::Down);
        lock(&shared.state).questions.clear();
        for wire in shared.wires() {
            wire.post(|mail| {
                mail.lost = lost;
                mail.fresh = None;
                if let Some(socket) = mail.socket.take() {
                    let _ = shutdown(&*socket, Shutdown::Both);
                }
            });
        }
        // While the admin queue lives, a reset shows that the controller has kept what it was given. That nothing is executed
        // any more only time can tell.
        let reset = self.admin.disable(Instant::now() + options.connect_timeout.min(options.keep_alive));
        if let Err(error) = &reset {
            tracing::info!(%error, "the old association cannot be ended in order");
            for namespace in shared.namespaces() {
                namespace.lost_association(lost, why);
            }
        }
        let at = Instant::now() + self.admin.grace();
        self.unquiet = Some(self.unquiet.map_or(at, |before| before.max(at)));
        // What was in doubt is only given up once it is sure not to happen any more.
        let end = (Instant::now() + options.reconnect_timeout).max(self.unquiet.unwrap_or_else(Instant::now));
        let mut pause = PAUSE_FIRST;
        loop {
            if shared.is_closing() {
                return Err(Why::new("nobody uses it any more".to_owned()));
            }
            // Copies that wait may have been cancelled.
            shared.wires().iter().for_each(|wire| wire.waker.wake());
            let next = Instant::now() + pause;
            let error = match self.attach_again() {
                Ok(links) => {
                    tracing::info!(address = %shared.peer.address, "connected again");
                    self.up(links);
                    return Ok(());
                }
                Err(error) => error,
            };
            if left(end).is_zero() {
                return Err(Why::new(format!(
                    "the connection was lost ({why}) and could not be made again within {:?}: {}",
                    options.reconnect_timeout,
                    Why::of(&error)
                )));
            }
            while !left(next.min(end)).is_zero() && !shared.is_closing() {
                shared.doze(next.min(end));
            }
            pause = (2 * pause).min(PAUSE_LONGEST);
        }
    }

    /// A new admin queue, the namespaces looked at, and a connection for every queue.
    fn attach_again(&mut self) -> Result<Vec<(Arc<Wire>, Link)>> {
        let shared = self.shared;
        let options = &shared.options;
        // The keep-alive of the new association runs from here: nobody serves it until all is done.
        let most = options.connect_timeout.min(options.keep_alive);
        let deadline = Instant::now() + most;
        self.admin = Admin::attach(&shared.peer, options, Purpose::Io, deadline)?;
        lock(&shared.state).looks += 1;
        for namespace in shared.namespaces() {
            self.look_at(&namespace, deadline)?;
        }
        let facts = &self.admin.facts;
        let mut links = Vec::new();
        let mut beyond = Vec::new();
        let wires = shared.wires().into_iter().filter(|wire| lock(&wire.mail).dead.is_none());
        for (wire, qid) in wires.zip(1..) {
            if qid > facts.queues {
                beyond.push(wire);
                continue;
            }
            wire.set_qid(qid);
            let link = admin::open_queue(&shared.peer, options, facts, qid, deadline)?;
            links.push((wire, link));
        }
        for wire in beyond {
            // The others go on.
            let text = format!("the controller came back with no more than {} I/O queues", facts.queues);
            wire.post(|mail| mail.dead = Some(Why::new(text)));
        }
        lock(&shared.state).last_qid = u16::try_from(links.len()).unwrap_or(u16::MAX);
        Ok(links)
    }
}

impl Pending {
    fn new(now: Instant) -> Self {
        Self {
            question: None,
            keep_alive_sent: None,
            next_beat: now,
            event_asked: false,
            events: Vec::new(),
            lost: None,
        }
    }

    /// Puts a keep-alive into the output when one is due.
    fn beat(&mut self, admin: &mut Admin, now: Instant) {
        if self.keep_alive_sent.is_none() && now >= self.next_beat {
            admin.link.machine().submit(SLOT_KEEP_ALIVE, AdminCommand::KeepAlive.to_sqe(), Data::None);
            self.keep_alive_sent = Some(now);
            self.next_beat = now + admin.keep_alive / 2;
        }
    }

    fn done(&mut self, slot: u16, cqe: Cqe, data: Data, received: u32) {
        match slot {
            SLOT_ASK => {
                if let Some((answer, _)) = self.question.take() {
                    // Nobody there to hear it: the asker was dropped.
                    let _ = answer.send(Ok(Answer { cqe, buf: buf_of(data), received }));
                }
            }
            SLOT_KEEP_ALIVE => {
                self.keep_alive_sent = None;
                if !cqe.status.is_success() {
                    self.lost =
                        Some(Why::new(format!("the controller answered a keep-alive with {}", cqe.status)));
                }
            }
            // A controller that takes no event request is not asked again.
            _ if !cqe.status.is_success() => {}
            _ => {
                self.event_asked = false;
                self.events.push(AsyncEvent::from_dword(cqe.dword0()));
            }
        }
    }
}

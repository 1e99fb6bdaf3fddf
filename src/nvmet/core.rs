//! One thread's part of the target: its connections, its queues to the namespaces, and the way back from a completion to the
//! command it answers.

use super::bell::Bell;
use super::connect::Connecting;
use super::controller::{AbortTicket, Controller};
use super::copying::{Copying, Lines};
use super::io::Deallocate;
use super::namespace::Namespace;
use super::subsystem::{Counts, NSID_MAX, Subsystem};
use super::{CopyLine, Target};
use crate::block::lock::{CoreLocks, LockedQueue};
use crate::block::{Buf, BufPool, Completion, Error, Kind, Op, Queue, Request, Result, Submitter};
use crate::nvme::command::{FABRICS, Transfer};
use crate::nvme::fabrics::Refusal;
use crate::nvme::{Cqe, Doing, Sqe, Status};
use crate::reactor::Waker;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Connections of one thread at most, those counted that are closed and not drained.
pub const CONNECTIONS_MAX: usize = 4096;

/// Rounds of one turn at most: a command of many requests must not keep all others, keep-alives least of all, from being heard.
const ROUNDS_MAX: usize = 4;

/// In a view: no such namespace is attached.
const NOWHERE: u16 = u16::MAX;
/// In a view: it is attached, and this thread cannot open its device.
const CLOSED: u16 = u16::MAX - 1;

/// Time between two attempts of a connection to open what this thread could not open.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// A connection of one core.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionId {
    pub(super) index: u16,
    pub(super) generation: u32,
}

impl ConnectionId {
    /// The connection at an index of the core's table.
    pub(super) fn new(index: usize, generation: u32) -> Self {
        Self { index: u16::try_from(index).expect("fewer than 2^16 connections"), generation }
    }

    /// A small number that no other open connection of the core has.
    pub fn index(self) -> usize {
        self.index.into()
    }
}

/// Where a command came from: what its answer is sent back by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct From {
    /// The connection.
    pub connection: ConnectionId,
    /// Its place in the transport's table of commands.
    pub slot: u16,
}

impl From {
    /// The tag of requests for this command: generation, connection and slot side by side, so that the way back is a shift,
    /// and an answer for a connection that was closed finds no one.
    fn tag(self) -> u64 {
        u64::from(self.connection.generation) << 32
            | u64::from(self.connection.index) << 16
            | u64::from(self.slot)
    }

    fn of_tag(tag: u64) -> Self {
        let [s0, s1, i0, i1, g0, g1, g2, g3] = tag.to_le_bytes();
        let generation = u32::from_le_bytes([g0, g1, g2, g3]);
        let connection = ConnectionId { index: u16::from_le_bytes([i0, i1]), generation };
        Self { connection, slot: u16::from_le_bytes([s0, s1]) }
    }
}

/// The end of a command.
#[derive(Debug)]
pub struct Answer {
    /// The command.
    pub from: From,
    /// Its completion; the transport fills in the submission queue head.
    pub cqe: Cqe,
    /// What is sent to the host before it: as long as the command's SGL says.
    pub data: Option<Buf>,
}

/// One connection as a queue pair of a controller; of none before Connect.
#[derive(Default, Debug)]
pub struct QueuePair {
    pub(super) id: Option<u16>,
    pub(super) entries: u32,
    pub(super) flow_control: bool,
    pub(super) controller: Option<Arc<Controller>>,
    /// What the controller's epoch was when an I/O queue connected.
    pub(super) epoch: u32,
}

impl QueuePair {
    /// Queue id: 0 is the admin queue; `None` before Connect.
    pub fn id(&self) -> Option<u16> {
        self.id
    }

    /// Entries of the submission queue: commands in flight at most, plus one with flow control. 0 before Connect.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// True when the host follows the submission queue head. False before Connect.
    pub fn flow_control(&self) -> bool {
        self.flow_control
    }

    /// The controller; `None` before Connect.
    pub fn controller(&self) -> Option<&Arc<Controller>> {
        self.controller.as_ref()
    }

    /// The controller of a queue that takes admin or I/O commands now.
    ///
    /// Errors: Command Sequence Error before Connect, and while the controller is not enabled; for an I/O queue also when it was
    /// reset since.
    #[inline]
    pub(super) fn ready(&self) -> Result<&Arc<Controller>, Status> {
        let controller = self.controller.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        let epoch = controller.epoch();
        let ready = epoch & 1 == 1 && (self.id == Some(0) || epoch == self.epoch);
        if ready { Ok(controller) } else { Err(Status::COMMAND_SEQUENCE_ERROR) }
    }
}

/// What a command of a slot waits for.
#[derive(Default)]
pub(super) enum State {
    /// There is none.
    #[default]
    Free,
    /// A request whose buffer goes to the host; with `flush`, behind a flush.
    Read {
        /// What was read is to be durable.
        flush: bool,
    },
    /// The flush behind a read; the buffer goes to the host.
    Durable(Buf),
    /// A request whose result is all there is to say.
    Plain(Doing),
    /// A request that knows no force unit access; with `flush`, a flush follows.
    Then {
        /// What it does.
        doing: Doing,
        /// What it has changed or compared is to be durable.
        flush: bool,
    },
    /// Flushes of several namespaces.
    Flushes {
        /// Those that have not ended.
        left: u32,
        /// The first error.
        status: Status,
        /// For a shutdown, which is then complete.
        shutdown: bool,
    },
    /// The ranges of a Dataset Management command, one after the other.
    Deallocate(Box<Deallocate>),
    /// A Copy.
    Copy(Box<Copying>),
    /// Something that no request stands for: a buffer, an event, the end of an aborted command.
    Waits,
}

/// A command of a connection.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) cid: u16,
    pub(super) opcode: u8,
    pub(super) nsid: u32,
    /// Which of the core's namespaces it works on.
    pub(super) served: u16,
    /// What is out for it changes a namespace.
    pub(super) changes: bool,
}

/// What only an admin queue has.
#[derive(Default)]
pub(super) struct Admin {
    /// Requests for events that wait, oldest first.
    pub(super) event_requests: VecDeque<u16>,
    /// Aborts that wait for the end of a copy, and until when.
    pub(super) aborts: Vec<(u16, Arc<AbortTicket>, Duration)>,
    /// Keep-alive time-out; `None`: there is none.
    pub(super) keep_alive: Option<Duration>,
    /// When the host was last heard of.
    pub(super) heard_at: Duration,
}

/// A connection of this core.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) generation: u32,
    pub(super) is_open: bool,
    /// Reported as lost.
    is_lost: bool,
    pub(super) local: Option<SocketAddr>,
    pub(super) queue: QueuePair,
    pub(super) admin: Admin,
    pub(super) slots: Vec<Slot>,
    /// For each NSID, from 1, which of the core's namespaces it is.
    view: Vec<u16>,
    view_generation: u64,
    /// When what this thread could not open is tried again.
    open_again_at: Duration,
    /// Requests and tasks that have not come back.
    pub(super) out: usize,
    /// Those of them that change a namespace.
    pub(super) changing: usize,
    /// It is closed and none of them is left, and its controller knows.
    pub(super) is_drained: bool,
}

/// A namespace on this core.
pub(super) struct Served {
    pub(super) namespace: Arc<Namespace>,
    pub(super) subsystem: Arc<Subsystem>,
    pub(super) counts: Arc<Counts>,
    queue: LockedQueue,
    batch: VecDeque<Request>,
    out: usize,
    /// Not in the subsystem any more.
    is_removed: bool,
}

/// One thread's part of the target.
///
/// Lives on a thread with an executor ([`crate::reactor::local::Local`]) that serves `locks`. Each turn: [`Core::set_time`],
/// [`Core::submit`] for what came in, [`Core::tick`], [`Core::poll`].
pub struct Core {
    pub(super) target: Arc<Target>,
    pub(super) locks: Rc<CoreLocks>,
    pub(super) pool: Rc<BufPool>,
    pub(super) bell: Arc<Bell>,
    pub(super) connections: Vec<Connection>,
    pub(super) free: Vec<u16>,
    last_generation: u32,
    pub(super) namespaces: Vec<Option<Served>>,
    /// Generation of each subsystem when its removed namespaces were last looked for.
    swept: Vec<(Arc<Subsystem>, Arc<Counts>, u64)>,
    pub(super) submitter: Submitter,
    done: Vec<Completion>,
    pub(super) answers: Vec<Answer>,
    /// Commands that wait for a buffer, in order.
    pub(super) waiting: VecDeque<(From, Sqe)>,
    /// Connects that wait until nothing of the host's earlier connections is left in the backend.
    pub(super) connecting: Vec<Connecting>,
    pub(super) lines: Lines,
    pub(super) now: Duration,
    /// When the next keep-alive time-out, or the end of a copy's time, may be due.
    pub(super) deadline: Duration,
}

impl Core {
    /// This thread's part of `target`. `pool` holds the buffers of reads and answers; `waker` ends the thread's sleep.
    ///
    /// Errors: `NoMemory` when the pool's buffers are shorter than the target's longest transfer.
    pub fn new(target: Arc<Target>, locks: Rc<CoreLocks>, pool: Rc<BufPool>, waker: Waker) -> Result<Self> {
        let need = target.settings().transfer_bytes;
        if (pool.chunk_bytes() as u64) < u64::from(need) {
            let text = format!(
                "buffers of {} bytes for transfers of up to {need}; free memory, or allow shorter transfers",
                pool.chunk_bytes()
            );
            return Err(Error::new(Kind::NoMemory, text));
        }
        Ok(Self {
            target,
            locks,
            pool,
            bell: Arc::new(Bell::new(waker)),
            connections: Vec::new(),
            free: Vec::new(),
            last_generation: 0,
            namespaces: Vec::new(),
            swept: Vec::new(),
            submitter: Submitter::default(),
            done: Vec::new(),
            answers: Vec::new(),
            waiting: VecDeque::new(),
            connecting: Vec::new(),
            lines: Lines::default(),
            now: Duration::ZERO,
            deadline: Duration::MAX,
        })
    }

    /// Calls `hook` with each Copy that ends.
    pub fn on_copy(&mut self, hook: impl Fn(&CopyLine) + 'static) {
        self.lines.hook = Some(Box::new(hook));
    }

    /// Takes a connection in; `local` is its own address, for the discovery log. `None`: there are too many, close it.
    ///
    /// It takes nothing but Connect until that has succeeded.
    pub fn open(&mut self, local: SocketAddr) -> Option<ConnectionId> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.connections.len() < CONNECTIONS_MAX => {
                self.connections.push(Connection::default());
                u16::try_from(self.connections.len() - 1).expect("fewer than 2^16 connections")
            }
            None => return None,
        };
        // Wraps after 2^32 connections, long after the last request of the one that had the number before.
        self.last_generation = self.last_generation.wrapping_add(1);
        let generation = self.last_generation;
        let connection = &mut self.connections[usize::from(index)];
        let slots = std::mem::take(&mut connection.slots);
        *connection =
            Connection { generation, is_open: true, local: Some(local), slots, ..Default::default() };
        connection.slots.clear();
        Some(ConnectionId { index, generation })
    }

    /// The connection as a queue pair.
    ///
    /// # Panics
    /// When it is closed.
    pub fn queue(&self, connection: ConnectionId) -> &QueuePair {
        &self.get(connection).expect("an open connection").queue
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        let connection = self.connections.get(id.index())?;
        (connection.is_open && connection.generation == id.generation).then_some(connection)
    }

    /// The connection of a command that is being worked on.
    #[inline]
    pub(super) fn at(&mut self, from: From) -> &mut Connection {
        &mut self.connections[from.connection.index()]
    }

    #[inline]
    pub(super) fn slot(&mut self, from: From) -> &mut Slot {
        &mut self.at(from).slots[usize::from(from.slot)]
    }

    /// Begins a command. `data`: what the host sent with it, or a buffer for what goes to it, as long as its SGL says. Without one
    /// that is needed the command waits for one of the pool, first come first served; a transport that shares them out among its
    /// connections brings it.
    ///
    /// The transport has checked the SGL. Exactly one answer follows, unless the connection is closed before.
    ///
    /// # Panics
    /// When the connection is closed, or the slot's last command is not answered yet.
    pub fn submit(&mut self, from: From, sqe: &Sqe, data: Buf) {
        let connection = &mut self.connections[from.connection.index()];
        assert!(
            connection.is_open && connection.generation == from.connection.generation,
            "commands come from open connections"
        );
        let at = usize::from(from.slot);
        if connection.slots.len() <= at {
            connection.slots.resize_with(at + 1, Slot::default);
        }
        assert!(matches!(connection.slots[at].state, State::Free), "a slot has one command at a time");
        if !connection.admin.event_requests.is_empty() {
            self.forget_event_request(from.connection, sqe.cid());
        }
        *self.slot(from) = Slot {
            state: State::Waits,
            cid: sqe.cid(),
            opcode: sqe.opcode(),
            nsid: sqe.nsid(),
            served: 0,
            changes: false,
        };
        if sqe.transfer() != Transfer::ToHost || sqe.sgl().len == 0 {
            // What the SGL promises is what the command works on: nothing shorter may get past here.
            let is_short = sqe.transfer() == Transfer::ToController && data.len() != buffer_len(sqe);
            return if is_short {
                self.fail(from, Status::SGL_LENGTH_INVALID)
            } else {
                self.dispatch(from, sqe, data)
            };
        }
        if sqe.sgl().len > self.target.settings().transfer_bytes {
            return self.fail(from, Status::INVALID_FIELD);
        }
        if !data.is_empty() {
            assert_eq!(data.len(), buffer_len(sqe), "a buffer as the command needs it");
            return self.dispatch(from, sqe, data);
        }
        if self.waiting.is_empty()
            && let Some(buf) = self.pool.take(buffer_len(sqe))
        {
            return self.dispatch(from, sqe, buf);
        }
        self.waiting.push_back((from, *sqe));
    }

    /// `data`: from the host, or the buffer for what goes to it.
    #[inline]
    fn dispatch(&mut self, from: From, sqe: &Sqe, data: Buf) {
        if sqe.opcode() == FABRICS {
            return self.fabrics(from, sqe, data);
        }
        match self.at(from).queue.id {
            Some(0) => self.admin(from, sqe, data),
            Some(_) => self.io(from, sqe, data),
            None => self.fail(from, Status::COMMAND_SEQUENCE_ERROR),
        }
    }

    /// Moves the answers that are ready to `out`. True: there is more to do at once, so do not sleep before the next turn.
    pub fn poll(&mut self, out: &mut Vec<Answer>) -> bool {
        self.locks.pump();
        self.serve_waiting();
        self.lines.turn();
        self.begin_copies();
        // A command of several requests, or a copy that made room for the next, has work for another round.
        let mut rounds = 0;
        while rounds < ROUNDS_MAX && self.poll_namespaces() | self.end_tasks() {
            self.begin_copies();
            rounds += 1;
        }
        // Buffers came back, perhaps of commands that nobody hears of any more.
        let served = self.serve_waiting();
        out.append(&mut self.answers);
        served || rounds == ROUNDS_MAX || self.lines.has_work()
    }

    /// Commands that waited for a buffer. True when any got one.
    fn serve_waiting(&mut self) -> bool {
        let mut any = false;
        while let Some((_, sqe)) = self.waiting.front()
            && let Some(buf) = self.pool.take(buffer_len(sqe))
            && let Some((from, sqe)) = self.waiting.pop_front()
        {
            self.dispatch(from, &sqe, buf);
            any = true;
        }
        any
    }

    /// Hands requests down and takes completions up, once round. True when there were any.
    fn poll_namespaces(&mut self) -> bool {
        let mut done = std::mem::take(&mut self.done);
        for at in 0..self.namespaces.len() {
            let Some(served) = &mut self.namespaces[at] else { continue };
            if served.out == 0 {
                if served.is_removed {
                    self.namespaces[at] = None;
                }
                continue;
            }
            if !served.batch.is_empty() {
                served.queue.submit(&mut served.batch);
            }
            let before = done.len();
            served.queue.poll(&mut done);
            served.out -= done.len() - before;
        }
        let before = done.len();
        self.submitter.take_aborted(&mut done);
        debug_assert_eq!(done.len(), before, "a request was dropped on its way");
        let any = !done.is_empty();
        for completion in done.drain(..) {
            self.completed(completion);
        }
        self.done = done;
        any
    }

    fn completed(&mut self, done: Completion) {
        let from = From::of_tag(done.tag);
        if self.came_back(from) {
            self.go_on(from, done);
        }
    }

    /// Hands a request for a command to a namespace.
    #[inline]
    pub(super) fn request(&mut self, from: From, served_at: u16, op: Op) {
        let changes = op.is_write();
        let request = self.submitter.request(from.tag(), op);
        let served = self.namespaces[usize::from(served_at)].as_mut().expect("kept while it is used");
        served.batch.push_back(request);
        served.out += 1;
        let connection = self.at(from);
        connection.out += 1;
        connection.changing += usize::from(changes);
        let slot = &mut connection.slots[usize::from(from.slot)];
        (slot.served, slot.changes) = (served_at, changes);
    }

    // --- answers -----------------------------------------------------------------------------------------------------

    /// Ends a command.
    #[inline]
    pub(super) fn answer(&mut self, from: From, status: Status, result: u64, data: Option<Buf>) {
        let slot = self.slot(from);
        slot.state = State::Free;
        let cid = slot.cid;
        let cqe = Cqe { result, cid, status, ..Cqe::default() };
        if !status.is_success() {
            self.note_error(from, cqe);
        }
        self.answers.push(Answer { from, cqe, data });
    }

    /// Ends a command well.
    #[inline]
    pub(super) fn succeed(&mut self, from: From) {
        self.answer(from, Status::SUCCESS, 0, None);
    }

    /// Ends a command with an error.
    #[cold]
    pub(super) fn fail(&mut self, from: From, status: Status) {
        self.answer(from, status, 0, None);
    }

    /// Ends a command with an error and what dword 0 says about it.
    #[cold]
    pub(super) fn refuse(&mut self, from: From, refusal: Refusal) {
        self.answer(from, refusal.status, refusal.dword0.into(), None);
    }

    /// Ends a command by its result.
    pub(super) fn finish(&mut self, from: From, result: Result<(), Status>) {
        match result {
            Ok(()) => self.succeed(from),
            Err(status) => self.fail(from, status),
        }
    }

    // --- namespaces --------------------------------------------------------------------------------------------------

    /// Where the core serves this namespace now.
    pub(super) fn place_of(&self, namespace: &Arc<Namespace>) -> Option<u16> {
        let same = |s: &Option<Served>| s.as_ref().is_some_and(|s| Arc::ptr_eq(&s.namespace, namespace));
        self.namespaces.iter().position(same).and_then(|at| u16::try_from(at).ok())
    }

    /// Which of the core's namespaces a command names.
    ///
    /// Errors: Invalid Namespace or Format for a number that no namespace can have; Invalid Field for one that is not attached
    /// to this host, whether it exists or not; Namespace Not Ready when this thread cannot open its device.
    #[inline]
    pub(super) fn find(&mut self, from: From, nsid: u32) -> Result<u16, Status> {
        let connection = &self.connections[from.connection.index()];
        let generation = connection.queue.controller.as_ref().map_or(0, |c| c.subsystem().generation());
        if connection.view_generation != generation {
            self.look_at_namespaces(from, generation);
        }
        let found = self.look_up(from, nsid);
        if found.is_err() && self.opens_again(from) { self.look_up(from, nsid) } else { found }
    }

    /// Tries again, once in a while, to open what this thread could not open. True when it tried.
    #[cold]
    fn opens_again(&mut self, from: From) -> bool {
        let connection = &self.connections[from.connection.index()];
        let due = connection.view.contains(&CLOSED) && self.now >= connection.open_again_at;
        if due {
            self.look_at_namespaces(from, connection.view_generation);
        }
        due
    }

    /// The same among what the last [`Core::find`] of this command saw.
    #[inline]
    pub(super) fn look_up(&self, from: From, nsid: u32) -> Result<u16, Status> {
        let view = &self.connections[from.connection.index()].view;
        match usize::try_from(nsid).ok().and_then(|n| n.checked_sub(1)).and_then(|n| view.get(n)) {
            Some(&at) if at < CLOSED => Ok(at),
            Some(&CLOSED) => Err(Status::NAMESPACE_NOT_READY.retryable()),
            _ if nsid == 0 || nsid > NSID_MAX => Err(Status::INVALID_NAMESPACE),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// The namespace at a place that [`Core::find`] gave.
    #[inline]
    pub(super) fn served(&self, at: u16) -> &Served {
        self.namespaces[usize::from(at)].as_ref().expect("kept while it is used")
    }

    /// All namespaces the command's host sees.
    ///
    /// Errors, beside those that are open: Namespace Not Ready when this thread cannot open all of them.
    pub(super) fn seen(&mut self, from: From) -> (Vec<u16>, Result<(), Status>) {
        // Any number will do: it is the look that counts.
        if self.find(from, NSID_MAX).is_ok() {
            self.opens_again(from);
        }
        let view = &self.at(from).view;
        let all = if view.contains(&CLOSED) { Err(Status::NAMESPACE_NOT_READY.retryable()) } else { Ok(()) };
        (view.iter().copied().filter(|&at| at < CLOSED).collect(), all)
    }

    #[cold]
    fn look_at_namespaces(&mut self, from: From, generation: u64) {
        let Some(controller) = self.at(from).queue.controller.clone() else { return };
        let subsystem = controller.subsystem();
        let mut view = Vec::new();
        for namespace in subsystem.attached(controller.host_nqn().as_str()) {
            let at = namespace.nsid() as usize - 1;
            view.resize(view.len().max(at + 1), NOWHERE);
            view[at] = self.serve(subsystem, &namespace);
        }
        let again = self.now.saturating_add(OPEN_AGAIN);
        let connection = self.at(from);
        (connection.view, connection.view_generation, connection.open_again_at) = (view, generation, again);
    }

    /// Where the core serves a namespace; [`CLOSED`] when its device cannot be opened on this thread.
    fn serve(&mut self, subsystem: &Arc<Subsystem>, namespace: &Arc<Namespace>) -> u16 {
        if let Some(at) = self.place_of(namespace) {
            return at;
        }
        let queue = match LockedQueue::open(namespace.device().clone(), self.locks.clone()) {
            Ok(queue) => queue,
            Err(error) => {
                tracing::error!(nsid = namespace.nsid(), %error, "this thread cannot serve the namespace");
                return CLOSED;
            }
        };
        let served = Served {
            namespace: namespace.clone(),
            subsystem: subsystem.clone(),
            counts: self.counts(subsystem),
            queue,
            batch: VecDeque::new(),
            out: 0,
            is_removed: false,
        };
        let at = self.namespaces.iter().position(Option::is_none).unwrap_or(self.namespaces.len());
        if at == self.namespaces.len() {
            self.namespaces.push(None);
        }
        self.namespaces[at] = Some(served);
        u16::try_from(at).unwrap_or(CLOSED)
    }

    /// This core's counters of a subsystem.
    fn counts(&mut self, subsystem: &Arc<Subsystem>) -> Arc<Counts> {
        if let Some((_, counts, _)) = self.swept.iter().find(|(s, ..)| Arc::ptr_eq(s, subsystem)) {
            return counts.clone();
        }
        let counts = subsystem.count();
        self.swept.push((subsystem.clone(), counts.clone(), subsystem.generation()));
        counts
    }

    /// Lets go of namespaces that were taken out of their subsystem, once nothing is in flight on them.
    fn sweep(&mut self) {
        for at in 0..self.swept.len() {
            let generation = self.swept[at].0.generation();
            if self.swept[at].2 == generation {
                continue;
            }
            self.swept[at].2 = generation;
            let now = self.swept[at].0.namespaces();
            let mine = self.namespaces.iter_mut().flatten();
            for served in mine.filter(|s| Arc::ptr_eq(&s.subsystem, &self.swept[at].0)) {
                served.is_removed = !now.iter().any(|n| Arc::ptr_eq(n, &served.namespace));
            }
        }
    }

    // --- time, and connections that end ------------------------------------------------------------------------------

    /// Takes note of the time (on the reactor's clock) and judges nobody by it: what has come in by now is to be heard first.
    pub fn set_time(&mut self, now: Duration) {
        self.now = now;
    }

    /// Takes note of the time and of what other threads have told. Connections to be closed go to
    /// `lost`, once each: their association has ended, their controller was reset, or the host was silent for too long.
    /// Returns when it wants to be called again at the latest.
    pub fn tick(&mut self, now: Duration, lost: &mut Vec<ConnectionId>) -> Option<Duration> {
        self.now = now;
        self.sweep();
        if now >= self.deadline {
            self.look_for_silent_hosts();
            self.give_up_copies();
            self.look_at_aborts();
        }
        if self.bell.take() {
            self.look_around(lost);
        }
        (self.deadline != Duration::MAX).then_some(self.deadline)
    }

    /// This thread did not run for a while, and heard nobody: the time of every host begins anew.
    pub fn forgive(&mut self) {
        self.connections.iter_mut().for_each(|c| c.admin.heard_at = self.now);
    }

    #[cold]
    fn look_for_silent_hosts(&mut self) {
        self.deadline = Duration::MAX;
        let mut silent = Vec::new();
        for connection in self.connections.iter().filter(|c| c.is_open) {
            let (Some(time), Some(controller)) = (connection.admin.keep_alive, &connection.queue.controller)
            else {
                continue;
            };
            let due = connection.admin.heard_at.saturating_add(time);
            if due > self.now {
                self.deadline = self.deadline.min(due);
            } else if !controller.is_gone() {
                silent.push(controller.clone());
            }
        }
        for controller in silent {
            tracing::warn!(?controller, "no keep-alive in time: the association is ended");
            controller.end();
        }
    }

    #[cold]
    fn look_around(&mut self, lost: &mut Vec<ConnectionId>) {
        for at in 0..self.connections.len() {
            let connection = &mut self.connections[at];
            let Some(controller) = connection.queue.controller.as_ref().filter(|_| connection.is_open) else {
                continue;
            };
            let id = ConnectionId::new(at, connection.generation);
            let is_io = connection.queue.id != Some(0);
            let is_over = controller.is_gone() || (is_io && controller.epoch() != connection.queue.epoch);
            if is_over && !std::mem::replace(&mut connection.is_lost, true) {
                lost.push(id);
            }
            if !is_io {
                self.look_at_admin(id);
            }
        }
        self.look_at_connecting();
        self.give_up_copies();
    }

    /// True when nothing is in flight here, of closed connections either.
    pub fn is_idle(&self) -> bool {
        self.answers.is_empty()
            && self.waiting.is_empty()
            && self.connections.iter().all(|c| c.out == 0)
            && self.lines.is_empty()
    }
}

/// The length of the buffer for what a command asks for; it was checked against the longest transfer.
fn buffer_len(sqe: &Sqe) -> usize {
    sqe.sgl().len as usize
}

//! One thread's part of the target: the hub between transport, connections, backends and copies.

use super::backends::Backends;
use super::command::{Context, Outcome, admin, clock, fabrics, io};
use super::connections::{CameBack, CommandId, ConnectionId, Connections, QueuePair, WaitingConnect};
use super::copy_queue::{CopyEnd, CopyLine, CopyOrigin, CopyQueue, CopyStep};
use super::events::Events;
use super::pending::{CopyKey, Pending};
use super::shares::Shares;
use super::target::Target;
use super::wakeup::Wakeup;
use crate::block::lock::CoreLocks;
use crate::block::{Buf, Completion, Op};
use crate::nvme::command::{FABRICS, Transfer};
use crate::nvme::feature::AsyncEvent;
use crate::nvme::{Cqe, Sqe, Status};
use crate::reactor::Waker;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Rounds of one turn at most: a command of many requests must not keep all others, keep-alives least of all, from
/// being served.
const ROUNDS_MAX: usize = 4;

/// The end of a command.
#[derive(Debug)]
pub struct Answer {
    /// The command.
    pub id: CommandId,
    /// Its completion; the transport fills in the submission queue head.
    pub cqe: Cqe,
    /// What is sent to the host before it: as long as the command's SGL says.
    pub data: Option<Buf>,
}

/// One thread's part of the target.
///
/// Lives on a thread with an executor ([`crate::reactor::local::Local`]) that serves `locks`. Each turn:
/// [`Worker::set_time`],
/// [`Worker::submit`] for what came in, [`Worker::tick`], [`Worker::poll`].
pub struct Worker {
    target: Arc<Target>,
    locks: Rc<CoreLocks>,
    wakeup: Arc<Wakeup>,
    connections: Connections,
    shares: Shares,
    backends: Backends,
    copies: CopyQueue,
    answers: Vec<Answer>,
    now: Duration,
    /// When the next time-out of a keep-alive, a copy or an Abort may be due.
    deadline: Duration,
}

impl Worker {
    /// This thread's part of `target`; `waker` ends the thread's sleep.
    pub fn new(target: Arc<Target>, locks: Rc<CoreLocks>, waker: Waker) -> Self {
        let wakeup = Arc::new(Wakeup::new(waker));
        Self {
            target,
            connections: Connections::default(),
            shares: Shares::default(),
            backends: Backends::new(locks.clone()),
            copies: CopyQueue::new(locks.clone(), wakeup.clone()),
            locks,
            wakeup,
            answers: Vec::new(),
            now: Duration::ZERO,
            deadline: Duration::MAX,
        }
    }

    /// Runs at most so many copies at a time that pass through buffers, each with so many bytes of them.
    pub fn bound_copies(&mut self, copies: usize, bytes_each: usize) {
        self.copies.bound(copies, bytes_each);
    }

    /// Calls `hook` with each Copy that ends.
    pub fn on_copy(&mut self, hook: impl Fn(&CopyLine) + 'static) {
        self.copies.on_copy(Box::new(hook));
    }

    /// The transport has room for so many connections: bounds how many of them one host may have as queues.
    pub fn limit_connections(&mut self, connections_max: usize) {
        self.shares.limit(connections_max);
    }

    /// Takes a connection in; `local` is its own address, for the discovery log. `None`: there are too many, close it.
    ///
    /// It takes nothing but Connect until that has succeeded.
    pub fn open(&mut self, local: SocketAddr) -> Option<ConnectionId> {
        self.connections.open(local)
    }

    /// The connection as a queue pair.
    ///
    /// # Panics
    /// When it is closed.
    pub fn queue(&self, connection: ConnectionId) -> &QueuePair {
        &self.connections.get(connection).expect("an open connection").queue
    }

    /// Begins a command. `data`: what the host sent with it, or a buffer for what goes to it, as long as its SGL says.
    ///
    /// The transport has checked the SGL. Exactly one answer follows, unless the connection is closed before.
    ///
    /// # Panics
    /// When the connection is closed, the slot's last command is not answered yet, or the buffer for what goes to the
    /// host is of another length.
    pub fn submit(&mut self, id: CommandId, sqe: &Sqe, data: Buf) {
        self.connections.begin(id, sqe);
        if !self.connections.at(id.connection).admin.event_requests.is_empty() {
            self.forget_event_request(id, sqe.cid());
        }
        let len = sqe.sgl().len;
        let is_whole = data.len() as u64 == u64::from(len);
        match sqe.transfer() {
            // What the SGL promises is what the command works on: nothing shorter may get past here.
            Transfer::ToController if !is_whole => self.fail(id, Status::SGL_LENGTH_INVALID),
            Transfer::ToHost if len > self.target.settings().transfer_bytes => {
                self.fail(id, Status::INVALID_FIELD);
            }
            transfer => {
                assert!(
                    is_whole || len == 0 || transfer != Transfer::ToHost,
                    "a buffer as the command needs it"
                );
                let outcome = self.begin(id, sqe, data);
                self.apply(id, outcome);
            }
        }
    }

    #[inline]
    fn begin(&mut self, id: CommandId, sqe: &Sqe, data: Buf) -> Outcome {
        let mut cx = self.context(id);
        if sqe.opcode() == FABRICS {
            cx.connection.admin.command_came(cx.now);
            return fabrics::begin(&mut cx, sqe, &data);
        }
        match cx.connection.queue.id {
            Some(0) => {
                cx.connection.admin.command_came(cx.now);
                admin::begin(&mut cx, sqe, data)
            }
            Some(_) => io::begin(&mut cx, sqe, data),
            None => Outcome::fail(Status::COMMAND_SEQUENCE_ERROR),
        }
    }

    /// What the handler of a command may use.
    #[inline]
    fn context(&mut self, id: CommandId) -> Context<'_> {
        Context {
            id,
            now: self.now,
            target: &self.target,
            wakeup: &self.wakeup,
            connection: self.connections.at(id.connection),
            backends: &mut self.backends,
            shares: &mut self.shares,
        }
    }

    /// Does what comes of a command.
    #[inline]
    fn apply(&mut self, id: CommandId, outcome: Outcome) {
        match outcome {
            Outcome::Answer { status, result, data } => self.answer(id, status, result, data),
            Outcome::Request { pending, backend, op } => {
                self.connections.slot(id).pending = pending;
                self.request(id, backend, op);
            }
            Outcome::Wait => {}
            rare => self.apply_rare(id, rare),
        }
    }

    fn apply_rare(&mut self, id: CommandId, outcome: Outcome) {
        match outcome {
            Outcome::FlushAll { backends, status, shutdown } => {
                let left = u32::try_from(backends.len()).expect("at most NSID_MAX");
                self.connections.slot(id).pending = Pending::Flushes { left, status, shutdown };
                backends.into_iter().for_each(|at| self.request(id, at, Op::Flush));
            }
            Outcome::Copy { checked, fua } => {
                let connection = self.connections.at(id.connection);
                let cid = connection.slots[usize::from(id.slot)].cid;
                let (Some(controller), Some(qid)) = (&connection.queue.controller, connection.queue.id)
                else {
                    return;
                };
                if let Some(status) = self.copies.hopeless(&checked) {
                    return self.fail(id, status);
                }
                let origin = CopyOrigin { id, controller: controller.clone(), qid, cid };
                let (key, step) = self.copies.begin(origin, *checked, fua, clock(self.now));
                self.connections.slot(id).pending = Pending::Copy(key);
                self.step_copy(key, step);
            }
            Outcome::Connect(connect) => {
                self.connections.connecting.push(WaitingConnect { id, connect });
            }
            Outcome::AbortEvents(slots) => {
                for slot in slots {
                    self.fail(CommandId { slot, ..id }, Status::ABORT_REQUESTED.retryable());
                }
                self.answer(id, Status::SUCCESS, 0, None);
            }
            Outcome::AwaitEvent => self.report_events(id.connection),
            Outcome::AwaitAbort { due } => {
                self.deadline = self.deadline.min(due);
                self.give_up_copies();
                self.check_admin(id.connection);
            }
            Outcome::Answer { .. } | Outcome::Request { .. } | Outcome::Wait => {}
        }
    }

    /// Moves the answers that are ready to `out`. True: there is more to do at once, so do not sleep before the next
    /// turn.
    pub fn poll(&mut self, out: &mut Vec<Answer>) -> bool {
        self.locks.pump();
        self.copies.turn();
        self.begin_copies();
        // A command of several requests, or a copy that made room for the next, has work for another round.
        let mut rounds = 0;
        while rounds < ROUNDS_MAX && self.poll_backends() | self.end_tasks() {
            self.begin_copies();
            rounds += 1;
        }
        out.append(&mut self.answers);
        rounds == ROUNDS_MAX || self.copies.has_work()
    }

    /// Hands requests down and takes completions up, once round. True when there were any.
    fn poll_backends(&mut self) -> bool {
        let mut done = self.backends.poll();
        let any = !done.is_empty();
        for completion in done.drain(..) {
            self.on_completion(completion);
        }
        self.backends.recycle(done);
        any
    }

    fn on_completion(&mut self, done: Completion) {
        let id = CommandId::of_tag(done.tag);
        if !self.came_back(id) {
            return;
        }
        if let Pending::Copy(key) = self.connections.slot(id).pending {
            let step = self.copies.on_completion(key, done);
            return self.step_copy(key, step);
        }
        let outcome = io::on_completion(&mut self.context(id), done);
        self.apply(id, outcome);
    }

    /// Counts a request or task that came back. True when its command is still wanted.
    #[inline]
    fn came_back(&mut self, id: CommandId) -> bool {
        match self.connections.came_back(id) {
            CameBack::Wanted => true,
            CameBack::Unwanted(pending) => {
                if let Pending::Copy(key) = pending {
                    self.copies.drop_one(key, false);
                }
                false
            }
        }
    }

    /// Hands a request for a command to a backend.
    #[inline]
    fn request(&mut self, id: CommandId, backend: u16, op: Op) {
        self.connections.goes_out(id, backend, op.is_write());
        self.backends.submit(backend, id.tag(), op);
    }

    /// Ends a command.
    #[inline]
    fn answer(&mut self, id: CommandId, status: Status, result: u64, data: Option<Buf>) {
        let connection = self.connections.at(id.connection);
        let slot = &mut connection.slots[usize::from(id.slot)];
        slot.pending = Pending::Free;
        let cqe = Cqe { result, cid: slot.cid, status, ..Cqe::default() };
        if !status.is_success() {
            connection.note_error(id.slot, cqe);
        }
        if let Some(due) = connection.admin.keep_alive_due() {
            self.deadline = self.deadline.min(due);
        }
        self.answers.push(Answer { id, cqe, data });
    }

    /// Ends a command with an error.
    #[cold]
    fn fail(&mut self, id: CommandId, status: Status) {
        self.answer(id, status, 0, None);
    }

    // --- copies ------------------------------------------------------------------------------------------------------

    /// Begins copies whose turn it is.
    fn begin_copies(&mut self) {
        while let Some(key) = self.copies.next_inline() {
            self.submit_copy(key);
        }
        while let Some(id) = self.copies.start_task(self.now) {
            let backend = self.connections.slot(id).backend;
            self.connections.goes_out(id, backend, true);
        }
    }

    fn step_copy(&mut self, key: CopyKey, step: CopyStep) {
        match step {
            CopyStep::Submit => self.submit_copy(key),
            CopyStep::Queued(due) => self.deadline = self.deadline.min(due),
            CopyStep::Ended(end) => self.end_copy(key, end),
        }
    }

    fn submit_copy(&mut self, key: CopyKey) {
        let Some((dest, request)) = self.copies.request(key) else { return };
        match self.backends.index_of(&dest) {
            Some(at) => self.request(self.copies.command(key), at, Op::Copy(Box::new(request))),
            None => self.end_copy(key, CopyEnd::removed()),
        }
    }

    fn end_copy(&mut self, key: CopyKey, end: CopyEnd) {
        let (id, status, dword0) = self.copies.finish(key, end, self.now);
        self.answer(id, status, dword0, None);
    }

    /// Takes in tasks that have ended. True when there were any.
    fn end_tasks(&mut self) -> bool {
        let ended = self.copies.take_ended();
        let any = !ended.is_empty();
        for (key, end) in ended {
            if self.came_back(self.copies.command(key)) {
                self.end_copy(key, end);
            }
        }
        any
    }

    /// Ends copies that are to stop, or whose time is over, and have not begun. The deadline is then no later than the
    /// end of the time of those that stay in line.
    fn give_up_copies(&mut self) {
        let (given_up, next) = self.copies.give_up(self.now);
        self.deadline = self.deadline.min(next.unwrap_or(Duration::MAX));
        given_up.into_iter().for_each(|(key, end)| self.end_copy(key, end));
    }

    // --- events and Aborts -------------------------------------------------------------------------------------------

    /// A command has come with the id of a request for an event: the host has forgotten the request, so it is to take
    /// no event from those that wait.
    #[cold]
    fn forget_event_request(&mut self, id: CommandId, cid: u16) {
        let connection = self.connections.at(id.connection);
        let found = connection.event_request(cid);
        if let Some(slot) = found.and_then(|at| connection.admin.event_requests.remove(at)) {
            self.fail(CommandId { slot, ..id }, Status::ABORT_REQUESTED.retryable());
        }
    }

    fn report_events(&mut self, id: ConnectionId) {
        let connection = self.connections.at(id);
        let Some(controller) = &connection.queue.controller else { return };
        if connection.admin.event_requests.is_empty() || !controller.with_events(Events::take) {
            return;
        }
        let Some(slot) = connection.admin.event_requests.pop_front() else { return };
        let event = AsyncEvent::NAMESPACE_ATTRIBUTE.to_dword();
        self.answer(CommandId { connection: id, slot }, Status::SUCCESS, event.into(), None);
    }

    /// Reports events, and answers the Aborts whose copies have ended or take too long.
    fn check_admin(&mut self, id: ConnectionId) {
        self.report_events(id);
        let mut at = 0;
        while let Some(abort) = self.connections.at(id).admin.aborts.get(at) {
            // What a device does not answer cannot be aborted.
            let late = abort.due <= self.now;
            let Some(aborted) = abort.ticket.aborted().or(late.then_some(false)) else {
                self.deadline = self.deadline.min(abort.due);
                at += 1;
                continue;
            };
            let id = CommandId { connection: id, slot: abort.slot };
            self.connections.at(id.connection).admin.aborts.remove(at);
            self.answer(id, Status::SUCCESS, if aborted { 0 } else { admin::NOT_ABORTED }, None);
        }
    }

    // --- time, and connections that end ------------------------------------------------------------------------------

    /// Takes note of the time (on the reactor's clock). Does not expire keep-alives yet: pending input is read first.
    pub fn set_time(&mut self, now: Duration) {
        self.now = now;
    }

    /// Takes note of the time and of what other threads have done. Connections to be closed go to `lost`, once each:
    /// their association has ended, their controller was reset, or their host has sent no keep-alive in time.
    /// Returns when it wants to be called again at the latest.
    pub fn tick(&mut self, now: Duration, lost: &mut Vec<ConnectionId>) -> Option<Duration> {
        self.now = now;
        self.backends.sweep();
        if now >= self.deadline {
            self.deadline = self.connections.expire_keep_alives(now).unwrap_or(Duration::MAX);
            self.give_up_copies();
            for id in self.connections.aborting() {
                self.check_admin(id);
            }
        }
        if self.wakeup.take() {
            self.handle_wakeup(lost);
        }
        (self.deadline != Duration::MAX).then_some(self.deadline)
    }

    /// Puts the connections on `due` that [`Worker::tick`] would end now for want of a keep-alive: what they have sent
    /// is to be read first.
    pub fn overdue(&self, now: Duration, due: &mut Vec<ConnectionId>) {
        if now >= self.deadline {
            self.connections.overdue(now, due);
        }
    }

    /// This thread did not run for a while, and read no input: the keep-alive time of every host begins again.
    pub fn restart_timers(&mut self) {
        self.connections.restart_timers(self.now);
    }

    #[cold]
    fn handle_wakeup(&mut self, lost: &mut Vec<ConnectionId>) {
        for id in self.connections.check_associations(lost) {
            self.check_admin(id);
        }
        for WaitingConnect { id, connect } in std::mem::take(&mut self.connections.connecting) {
            let outcome = fabrics::connect(&mut self.context(id), connect);
            self.apply(id, outcome);
        }
        self.give_up_copies();
    }

    /// Closes a connection: its copies are cancelled, its other commands end, and none is answered.
    ///
    /// # Panics
    /// When it is closed already.
    pub fn disconnect(&mut self, id: ConnectionId) {
        assert!(self.connections.get(id).is_some(), "a connection is closed once");
        self.answers.retain(|answer| answer.id.connection != id);
        self.copies.drop_of(id);
        let queue = &self.connections.at(id).queue;
        if let Some((controller, standing)) = queue.controller.as_ref().zip(queue.standing) {
            self.shares.give_back(controller.host_nqn(), standing);
        }
        self.connections.close(id);
    }

    /// True when nothing is in flight here, of closed connections either.
    pub fn is_idle(&self) -> bool {
        self.answers.is_empty() && self.connections.is_idle() && self.copies.is_empty()
    }
}

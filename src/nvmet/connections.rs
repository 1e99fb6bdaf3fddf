//! The connections of one thread: their queue pairs, their commands, and what of them is in the backend.

use super::controller::{AbortTicket, Controller};
use super::pending::Pending;
use super::subsystem::Subsystem;
use super::view::NamespaceView;
use crate::nvme::fabrics::{Connect, ConnectData};
use crate::nvme::log::ErrorEntry;
use crate::nvme::{Cqe, Sqe, Status};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Connections of one thread at most, those counted that are closed and not drained.
pub const CONNECTIONS_MAX: usize = 1 << 15;

/// How long a discovery controller without a keep-alive may be silent: what Linux's target gives it.
const DISCOVERY_SILENCE: Duration = Duration::from_secs(120);

/// A connection of one worker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionId {
    index: u16,
    generation: u32,
}

impl ConnectionId {
    fn new(index: usize, generation: u32) -> Self {
        Self { index: u16::try_from(index).expect("fewer than 2^16 connections"), generation }
    }

    /// A small number that no other open connection of the worker has.
    pub fn index(self) -> usize {
        self.index.into()
    }
}

/// A command, as long as it is not answered: its answer finds the way back by this.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CommandId {
    /// The connection it came by.
    pub connection: ConnectionId,
    /// Its place in the transport's table of commands.
    pub slot: u16,
}

impl CommandId {
    /// The tag of requests for this command: generation, connection and slot side by side, so that the way back is a
    /// shift, and an answer for a connection that was closed finds none.
    pub(super) fn tag(self) -> u64 {
        u64::from(self.connection.generation) << 32
            | u64::from(self.connection.index) << 16
            | u64::from(self.slot)
    }

    pub(super) fn of_tag(tag: u64) -> Self {
        let [s0, s1, i0, i1, g0, g1, g2, g3] = tag.to_le_bytes();
        let generation = u32::from_le_bytes([g0, g1, g2, g3]);
        let connection = ConnectionId { index: u16::from_le_bytes([i0, i1]), generation };
        Self { connection, slot: u16::from_le_bytes([s0, s1]) }
    }
}

/// Whose queue a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Of a host that sees namespaces, for these.
    Host,
    /// A discovery controller of a host that sees some namespace of this target.
    Discovery,
    /// A discovery controller of a host that sees none.
    Stranger,
}

/// One connection as a queue pair of a controller; of none before Connect.
#[derive(Default, Debug)]
pub struct QueuePair {
    pub(super) id: Option<u16>,
    pub(super) entries: u32,
    pub(super) flow_control: bool,
    pub(super) controller: Option<Arc<Controller>>,
    pub(super) standing: Option<Standing>,
    /// The controller's epoch when an I/O queue connected.
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

    /// Whose queue it is; `None` before Connect.
    pub fn standing(&self) -> Option<Standing> {
        self.standing
    }

    /// The controller of a queue that takes admin or I/O commands now.
    ///
    /// Errors: Command Sequence Error before Connect, and while the controller is not enabled; for an I/O queue also
    /// when it was reset since.
    #[inline]
    pub(super) fn ready(&self) -> Result<&Arc<Controller>, Status> {
        let controller = self.controller.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        let epoch = controller.epoch();
        let ready = epoch & 1 == 1 && (self.id == Some(0) || epoch == self.epoch);
        if ready { Ok(controller) } else { Err(Status::COMMAND_SEQUENCE_ERROR) }
    }
}

/// A command of a connection.
#[derive(Default)]
pub(super) struct CommandSlot {
    pub(super) pending: Pending,
    pub(super) cid: u16,
    opcode: u8,
    nsid: u32,
    /// The backend it works on.
    pub(super) backend: u16,
    /// What is in the backend for it changes a namespace.
    changes: bool,
}

/// An Abort that waits for the end of a copy.
pub(super) struct WaitingAbort {
    pub(super) slot: u16,
    pub(super) ticket: Arc<AbortTicket>,
    /// When it is answered at the latest.
    pub(super) due: Duration,
}

/// What only an admin queue has.
#[derive(Default)]
pub(super) struct AdminQueue {
    /// Requests for events that wait, oldest first.
    pub(super) event_requests: VecDeque<u16>,
    pub(super) aborts: Vec<WaitingAbort>,
    /// Keep-alive time-out; `None`: there is none.
    keep_alive: Option<Duration>,
    /// Any command is as good as a keep-alive.
    any_command: bool,
    /// When the host last sent a keep-alive, or when its time began anew; how often that was since the last one.
    kept_alive_at: Duration,
    renewals: u32,
}

/// How often the time of a host begins anew, because this thread stood still, before it has sent another keep-alive: a
/// thread that stands still again and again notices a dead host all the same.
const RENEWALS_MAX: u32 = 2;

impl AdminQueue {
    /// The host has sent a keep-alive.
    pub(super) fn keep_alive_came(&mut self, now: Duration) {
        (self.kept_alive_at, self.renewals) = (now, 0);
    }

    /// This thread stood still, and may not have read what the host has sent: its time begins anew.
    fn renew(&mut self, now: Duration) {
        if self.renewals < RENEWALS_MAX {
            (self.kept_alive_at, self.renewals) = (now, self.renewals + 1);
        }
    }

    /// The host has sent a command of any kind.
    pub(super) fn command_came(&mut self, now: Duration) {
        if self.any_command {
            self.keep_alive_came(now);
        }
    }

    /// Expects a keep-alive within this time from now on. A discovery controller for which the host asks for none is
    /// given [`DISCOVERY_SILENCE`], and any command will do.
    pub(super) fn expect_keep_alive(&mut self, time: Option<Duration>, is_discovery: bool, now: Duration) {
        self.any_command = is_discovery && time.is_none();
        self.keep_alive = if self.any_command { Some(DISCOVERY_SILENCE) } else { time };
        (self.kept_alive_at, self.renewals) = (now, 0);
    }

    /// When the host is taken for lost.
    pub(super) fn keep_alive_due(&self) -> Option<Duration> {
        self.keep_alive.map(|time| self.kept_alive_at.saturating_add(time))
    }
}

/// A connection.
#[derive(Default)]
pub(super) struct TargetConnection {
    generation: u32,
    is_open: bool,
    /// Reported as lost.
    is_lost: bool,
    /// Its own address, for the discovery log.
    pub(super) local: Option<SocketAddr>,
    pub(super) queue: QueuePair,
    /// The controller's subsystem.
    pub(super) subsystem: Option<Arc<Subsystem>>,
    /// A Connect of it waits for its host to be drained.
    pub(super) is_connecting: bool,
    pub(super) admin: AdminQueue,
    pub(super) slots: Vec<CommandSlot>,
    pub(super) view: NamespaceView,
    /// Requests and tasks that have not come back.
    in_flight: usize,
    /// Those of them that change a namespace.
    changing: usize,
    /// It is closed and none of them is left, and its controller knows.
    is_drained: bool,
}

impl TargetConnection {
    /// The place of the request for events that has this command id.
    pub(super) fn event_request(&self, cid: u16) -> Option<usize> {
        self.admin.event_requests.iter().position(|&slot| self.slots[usize::from(slot)].cid == cid)
    }

    /// Keeps a failed command for the error log of its controller.
    #[cold]
    pub(super) fn note_error(&self, slot: u16, cqe: Cqe) {
        let (Some(controller), Some(qid)) = (&self.queue.controller, self.queue.id) else { return };
        let command = &self.slots[usize::from(slot)];
        controller.note_error(|count| ErrorEntry {
            count,
            sqid: qid,
            cid: cqe.cid,
            status: cqe.status,
            location: 0xffff,
            nsid: command.nsid,
            transport: crate::nvme::discovery::Entry::TCP,
            opcode: command.opcode,
            version: 1,
            ..ErrorEntry::default()
        });
    }
}

/// A Connect that waits until nothing of its host's earlier connections is left in the backend.
pub(super) struct WaitingConnect {
    pub(super) id: CommandId,
    pub(super) connect: Box<(Connect, ConnectData)>,
}

/// What came back, and whether its command is still wanted.
pub(super) enum CameBack {
    Wanted,
    /// The connection is closed. What the command waited for.
    Unwanted(Pending),
}

/// The connections of one thread.
#[derive(Default)]
pub(super) struct Connections {
    list: Vec<TargetConnection>,
    free: Vec<u16>,
    last_generation: u32,
    /// In the order they came.
    pub(super) connecting: Vec<WaitingConnect>,
}

impl Connections {
    /// Takes a connection in; see [`super::Worker::open`].
    pub(super) fn open(&mut self, local: SocketAddr) -> Option<ConnectionId> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.list.len() < CONNECTIONS_MAX => {
                self.list.push(TargetConnection::default());
                u16::try_from(self.list.len() - 1).expect("fewer than 2^16 connections")
            }
            None => return None,
        };
        // Wraps after 2^32 connections, long after the last request of the one that had the number before.
        self.last_generation = self.last_generation.wrapping_add(1);
        let generation = self.last_generation;
        let connection = &mut self.list[usize::from(index)];
        let mut slots = std::mem::take(&mut connection.slots);
        slots.clear();
        *connection =
            TargetConnection { generation, is_open: true, local: Some(local), slots, ..Default::default() };
        Some(ConnectionId { index, generation })
    }

    /// The connection, if it is open.
    pub(super) fn get(&self, id: ConnectionId) -> Option<&TargetConnection> {
        let connection = self.list.get(id.index())?;
        (connection.is_open && connection.generation == id.generation).then_some(connection)
    }

    /// The connection of a command that is being worked on.
    #[inline]
    pub(super) fn at(&mut self, id: ConnectionId) -> &mut TargetConnection {
        &mut self.list[id.index()]
    }

    #[inline]
    pub(super) fn slot(&mut self, id: CommandId) -> &mut CommandSlot {
        &mut self.at(id.connection).slots[usize::from(id.slot)]
    }

    /// Takes a command in.
    ///
    /// # Panics
    /// When the connection is closed, or the slot's last command is not answered yet.
    pub(super) fn begin(&mut self, id: CommandId, sqe: &Sqe) {
        let connection = &mut self.list[id.connection.index()];
        assert!(
            connection.is_open && connection.generation == id.connection.generation,
            "commands come from open connections"
        );
        let at = usize::from(id.slot);
        if connection.slots.len() <= at {
            connection.slots.resize_with(at + 1, CommandSlot::default);
        }
        let slot = &mut connection.slots[at];
        assert!(matches!(slot.pending, Pending::Free), "a slot has one command at a time");
        *slot = CommandSlot {
            pending: Pending::Other,
            cid: sqe.cid(),
            opcode: sqe.opcode(),
            nsid: sqe.nsid(),
            backend: 0,
            changes: false,
        };
    }

    /// Counts a request for a command, which goes to a backend, or a task.
    #[inline]
    pub(super) fn goes_out(&mut self, id: CommandId, backend: u16, changes: bool) {
        let connection = self.at(id.connection);
        connection.in_flight += 1;
        connection.changing += usize::from(changes);
        let slot = &mut connection.slots[usize::from(id.slot)];
        (slot.backend, slot.changes) = (backend, changes);
    }

    /// Counts a request or task that came back.
    #[inline]
    pub(super) fn came_back(&mut self, id: CommandId) -> CameBack {
        let connection = self.at(id.connection);
        debug_assert_eq!(
            connection.generation, id.connection.generation,
            "an index is free when nothing is in flight"
        );
        if connection.generation != id.connection.generation {
            return CameBack::Unwanted(Pending::Free);
        }
        connection.in_flight -= 1;
        let slot = &mut connection.slots[usize::from(id.slot)];
        if std::mem::take(&mut slot.changes) {
            connection.changing -= 1;
        }
        if connection.is_open {
            return CameBack::Wanted;
        }
        // Its buffers go back to the pool, and there is no answer.
        let pending = std::mem::take(&mut slot.pending);
        self.drain(id.connection);
        CameBack::Unwanted(pending)
    }

    /// Checks whether a closed connection has nothing left that could change a namespace, as its host's next Connect
    /// wants to know, and then whether it has nothing left at all.
    fn drain(&mut self, id: ConnectionId) {
        let connection = &mut self.list[id.index()];
        let ends = connection.queue.controller.as_ref().zip(connection.queue.id);
        if connection.changing == 0
            && let Some((controller, qid)) = ends
            && !std::mem::replace(&mut connection.is_drained, true)
        {
            controller.drained(qid);
        }
        if connection.in_flight == 0 {
            (connection.queue.controller, connection.subsystem) = (None, None);
            self.free.push(id.index);
        }
    }

    /// Closes a connection: its commands end without an answer.
    pub(super) fn close(&mut self, id: ConnectionId) {
        self.connecting.retain(|waiting| waiting.id.connection != id);
        let connection = &mut self.list[id.index()];
        connection.is_open = false;
        connection.admin = AdminQueue::default();
        if let Some((controller, qid)) = connection.queue.controller.as_ref().zip(connection.queue.id) {
            controller.disconnect(qid);
        }
        self.drain(id);
    }

    /// This thread did not run for a while, and read no input: the time of every host begins again, not without end.
    pub(super) fn restart_timers(&mut self, now: Duration) {
        self.list.iter_mut().for_each(|c| c.admin.renew(now));
    }

    /// Ends the associations whose keep-alive time-out is over; when the next will be.
    #[cold]
    pub(super) fn expire_keep_alives(&self, now: Duration) -> Option<Duration> {
        let (mut next, mut expired) = (None, Vec::new());
        for connection in self.list.iter().filter(|c| c.is_open) {
            let (Some(due), Some(controller)) =
                (connection.admin.keep_alive_due(), &connection.queue.controller)
            else {
                continue;
            };
            if due > now {
                next = Some(next.map_or(due, |next: Duration| next.min(due)));
            } else if !controller.is_gone() {
                expired.push(controller.clone());
            }
        }
        for controller in expired {
            if controller.namespaces().is_discovery() {
                tracing::debug!(?controller, "silent for too long: the association is ended");
            } else {
                tracing::warn!(?controller, "no keep-alive arrived in time: the association is ended");
            }
            controller.end();
        }
        next
    }

    /// Puts the connections on `due` whose keep-alive time-out is over.
    #[cold]
    pub(super) fn overdue(&self, now: Duration, due: &mut Vec<ConnectionId>) {
        let is_due = |c: &TargetConnection| c.is_open && c.admin.keep_alive_due().is_some_and(|at| at <= now);
        let all = self.list.iter().enumerate().filter(|(_, c)| is_due(c));
        due.extend(all.map(|(at, c)| ConnectionId::new(at, c.generation)));
    }

    /// Puts the connections on `lost`, once each, whose association has ended or whose controller was reset; returns
    /// the open admin queues.
    #[cold]
    pub(super) fn check_associations(&mut self, lost: &mut Vec<ConnectionId>) -> Vec<ConnectionId> {
        let mut admin = Vec::new();
        for (at, connection) in self.list.iter_mut().enumerate().filter(|(_, c)| c.is_open) {
            let QueuePair { id: qid, epoch, controller: Some(controller), .. } = &connection.queue else {
                continue;
            };
            let id = ConnectionId::new(at, connection.generation);
            let is_io = *qid != Some(0);
            let is_over = controller.is_gone() || (is_io && controller.epoch() != *epoch);
            if is_over && !std::mem::replace(&mut connection.is_lost, true) {
                lost.push(id);
            }
            if !is_io {
                admin.push(id);
            }
        }
        admin
    }

    /// The open admin queues with an Abort that waits.
    pub(super) fn aborting(&self) -> Vec<ConnectionId> {
        let waits = |c: &TargetConnection| c.is_open && !c.admin.aborts.is_empty();
        let list = self.list.iter().enumerate().filter(|(_, c)| waits(c));
        list.map(|(at, c)| ConnectionId::new(at, c.generation)).collect()
    }

    /// True when nothing is in flight, of closed connections either.
    pub(super) fn is_idle(&self) -> bool {
        self.list.iter().all(|c| c.in_flight == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_stands_still_again_and_again_notices_a_dead_host() {
        let second = Duration::from_secs;
        let mut admin = AdminQueue::default();
        admin.expect_keep_alive(Some(second(5)), false, second(0));
        admin.renew(second(4));
        assert_eq!(admin.keep_alive_due(), Some(second(9)), "it may have sent one that was not read");
        admin.renew(second(8));
        assert_eq!(admin.keep_alive_due(), Some(second(13)));
        for now in 9..100 {
            admin.renew(second(now));
        }
        assert_eq!(admin.keep_alive_due(), Some(second(13)), "by then it has not");
        // One that has sent another begins from the start.
        admin.keep_alive_came(second(12));
        admin.renew(second(16));
        assert_eq!(admin.keep_alive_due(), Some(second(21)));
    }
}

//! Admin commands: Identify, log pages, features, events, keep-alive, Abort.

use super::core::{Connection, ConnectionId, Core, From};
use super::identify as say;
use super::namespace::Namespace;
use crate::block::Buf;
use crate::nvme::admin::{GetFeatures, GetLogPage, Identify, Select, SetFeatures};
use crate::nvme::command::NSID_ALL;
use crate::nvme::feature::{AsyncEvent, KeepAlive, fid};
use crate::nvme::identify::{LEN, cns, controller_list, csi, namespace_list};
use crate::nvme::log::{ChangedNamespaces, ErrorEntry, lid, read_page};
use crate::nvme::{AdminCommand, Cqe, Sqe, Status};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// Status, dword 0, and what goes to the host.
type Done = Result<(u32, Option<Buf>), Status>;

impl Core {
    /// `data`: from the host, or the buffer for what goes to it.
    pub(super) fn admin(&mut self, from: From, sqe: &Sqe, data: Buf) {
        let command = self.at(from).queue.ready().map(drop).and_then(|()| AdminCommand::parse(sqe));
        let is_discovery = self.controller(from).subsystem().is_discovery();
        let done = match command {
            Err(status) => Err(status),
            Ok(AdminCommand::Identify(command)) => self.identify(from, &command, data),
            Ok(AdminCommand::GetLogPage(command)) => self.log_page(from, &command, data),
            Ok(AdminCommand::SetFeatures(command)) => {
                self.set_features(from, &command, &data).map(|dword| (dword, None))
            }
            Ok(AdminCommand::GetFeatures(command)) => self.get_features(from, &command, data),
            Ok(AdminCommand::KeepAlive) => {
                let now = self.now;
                self.at(from).admin.heard_at = now;
                Ok((0, None))
            }
            Ok(AdminCommand::AsyncEventRequest) => return self.event_request(from),
            Ok(AdminCommand::Abort { .. }) if is_discovery => Err(Status::INVALID_OPCODE),
            Ok(AdminCommand::Abort { sqid, cid }) => return self.abort(from, sqid, cid),
        };
        match done {
            Ok((dword, data)) => self.answer(from, Status::SUCCESS, dword.into(), data),
            Err(status) => self.fail(from, status),
        }
    }

    fn controller(&mut self, from: From) -> &Arc<super::Controller> {
        self.at(from).queue.controller.as_ref().expect("an admin queue has a controller")
    }

    // --- Identify ----------------------------------------------------------------------------------------------------

    fn identify(&mut self, from: From, command: &Identify, mut out: Buf) -> Done {
        if out.len() != LEN {
            return Err(Status::SGL_LENGTH_INVALID);
        }
        let controller = self.controller(from).clone();
        let page = if command.cns == cns::CONTROLLER {
            say::controller(&controller, self.target.settings()).to_bytes()
        } else if controller.subsystem().is_discovery() {
            return Err(Status::INVALID_FIELD);
        } else {
            self.identify_more(from, command)?
        };
        out.copy_from_slice(&page);
        Ok((0, Some(out)))
    }

    fn identify_more(&mut self, from: From, command: &Identify) -> Result<[u8; LEN], Status> {
        let nsid = command.nsid;
        let by_csi =
            matches!(command.cns, cns::CSI_NAMESPACE | cns::CSI_CONTROLLER | cns::CSI_ACTIVE_NAMESPACES);
        if by_csi && command.csi != csi::NVM {
            return Err(Status::INVALID_FIELD);
        }
        match command.cns {
            cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => {
                self.of_active(from, nsid, |n| say::namespace(n).to_bytes())
            }
            cns::CSI_NAMESPACE => self.of_active(from, nsid, |_| say::nvm_namespace()),
            cns::INDEPENDENT_NAMESPACE => self.of_active(from, nsid, say::independent),
            cns::ACTIVE_NAMESPACES | cns::CSI_ACTIVE_NAMESPACES | cns::ALLOCATED_NAMESPACES => {
                // FFFFFFFEh and FFFFFFFFh are no number a list could begin behind.
                if nsid >= NSID_ALL - 1 {
                    return Err(Status::INVALID_NAMESPACE);
                }
                let seen = self.seen_namespaces(from);
                Ok(namespace_list(seen.iter().map(|n| n.nsid()), nsid))
            }
            cns::NAMESPACE_DESCRIPTORS => {
                let at = self.find(from, nsid)?;
                Ok(say::names(&self.served(at).namespace))
            }
            cns::CSI_CONTROLLER => Ok(say::nvm_controller()),
            cns::NAMESPACE_CONTROLLERS => {
                let at = self.find(from, nsid)?;
                let served = self.served(at);
                let ids = served.subsystem.controller_ids(Some(&served.namespace));
                Ok(controller_list(ids, command.cntid))
            }
            cns::CONTROLLERS => {
                let ids = self.controller(from).subsystem().controller_ids(None);
                Ok(controller_list(ids, command.cntid))
            }
            cns::COMMAND_SETS => Ok(say::command_sets()),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// What is to be said of a namespace; zeroes for a number that is no active namespace of this host's.
    fn of_active(
        &mut self,
        from: From,
        nsid: u32,
        page: impl FnOnce(&Namespace) -> [u8; LEN],
    ) -> Result<[u8; LEN], Status> {
        match self.find(from, nsid) {
            Ok(at) => Ok(page(&self.served(at).namespace)),
            Err(status) if status == Status::INVALID_FIELD => Ok([0; LEN]),
            Err(status) => Err(status),
        }
    }

    /// The namespaces this host sees, also those this thread cannot open.
    fn seen_namespaces(&mut self, from: From) -> Vec<Arc<Namespace>> {
        let controller = self.controller(from);
        controller.subsystem().attached(controller.host_nqn().as_str())
    }

    // --- log pages ---------------------------------------------------------------------------------------------------

    fn log_page(&mut self, from: From, command: &GetLogPage, mut out: Buf) -> Done {
        if command.len != out.len() as u64 {
            return Err(Status::SGL_LENGTH_INVALID);
        }
        let controller = self.controller(from).clone();
        let is_discovery = controller.subsystem().is_discovery();
        if !say::has_log_page(is_discovery, command.lid) {
            return Err(Status::INVALID_LOG_PAGE);
        }
        // No page has an index, and none is of a single namespace.
        if command.offset_is_index || !matches!(command.nsid, 0 | NSID_ALL) {
            return Err(Status::INVALID_FIELD);
        }
        let page = match command.lid {
            lid::SUPPORTED_LOG_PAGES => say::supported_log_pages(),
            lid::ERROR_INFORMATION => say::errors(&controller),
            lid::SMART => say::smart(&controller),
            lid::FIRMWARE_SLOTS => say::firmware_slots(),
            lid::CHANGED_NAMESPACES => {
                let nsids = controller.with_events(|events| events.read(command.rae));
                ChangedNamespaces::page(&nsids).to_vec()
            }
            lid::COMMAND_EFFECTS => say::command_effects(command.csi),
            lid::FEATURE_EFFECTS => say::feature_effects(),
            _ => {
                let local = self.at(from).local;
                self.target.discovery_log(controller.host_nqn().as_str(), local)
            }
        };
        read_page(&page, command.offset, &mut out)?;
        Ok((0, Some(out)))
    }

    /// Keeps a failed command for the error log of its controller.
    #[cold]
    pub(super) fn note_error(&mut self, from: From, cqe: Cqe) {
        let slot = self.slot(from);
        let (opcode, nsid) = (slot.opcode, slot.nsid);
        let queue = &self.at(from).queue;
        let (Some(controller), Some(qid)) = (&queue.controller, queue.id) else { return };
        controller.note_error(|count| ErrorEntry {
            count,
            sqid: qid,
            cid: cqe.cid,
            status: cqe.status,
            location: 0xffff,
            nsid,
            transport: crate::nvme::discovery::Entry::TCP,
            opcode,
            version: 1,
            ..ErrorEntry::default()
        });
    }

    // --- features ----------------------------------------------------------------------------------------------------

    fn set_features(&mut self, from: From, command: &SetFeatures, data: &[u8]) -> Result<u32, Status> {
        let controller = self.controller(from).clone();
        if controller.subsystem().is_discovery() && !is_discovery_feature(command.fid) {
            return Err(Status::INVALID_FIELD);
        }
        let has_io_queues = controller.has_io_queues();
        let (dword, keep_alive) = controller.with_features(|features| {
            let dword = features.set(command, data, has_io_queues)?;
            let get = features.get(&GetFeatures::new(fid::KEEP_ALIVE), [0; 16])?;
            Ok::<_, Status>((dword, KeepAlive::from_dword(get.dword).0))
        })?;
        if command.fid == fid::KEEP_ALIVE {
            self.keep_alive(from, keep_alive);
        }
        Ok(dword)
    }

    /// Expects the host to be heard of within this time, in milliseconds, from now on.
    pub(super) fn keep_alive(&mut self, from: From, timeout_ms: Option<NonZeroU32>) {
        let now = self.now;
        let admin = &mut self.at(from).admin;
        admin.keep_alive = timeout_ms.map(|ms| Duration::from_millis(ms.get().into()));
        admin.heard_at = now;
        if let Some(time) = admin.keep_alive {
            self.deadline = self.deadline.min(now.saturating_add(time));
        }
    }

    fn get_features(&mut self, from: From, command: &GetFeatures, mut out: Buf) -> Done {
        let controller = self.controller(from).clone();
        if controller.subsystem().is_discovery() && !is_discovery_feature(command.fid) {
            return Err(Status::INVALID_FIELD);
        }
        if command.fid == fid::ERROR_RECOVERY && command.select == Select::Current {
            self.find(from, command.nsid)?;
        }
        let value = controller.with_features(|features| features.get(command, controller.host_id()))?;
        if value.data.is_empty() {
            return Ok((value.dword, None));
        }
        if out.len() != value.data.len() {
            return Err(Status::SGL_LENGTH_INVALID);
        }
        out.copy_from_slice(&value.data);
        Ok((value.dword, Some(out)))
    }

    // --- events ------------------------------------------------------------------------------------------------------

    fn event_request(&mut self, from: From) {
        let admin = &mut self.at(from).admin;
        if admin.event_requests.len() >= say::EVENT_REQUESTS_MAX.get() as usize {
            return self.fail(from, Status::ASYNC_EVENT_LIMIT_EXCEEDED);
        }
        admin.event_requests.push_back(from.slot);
        self.tell_events(from.connection);
    }

    /// A command has come with the id of a request for an event: the host has forgotten the request, so it is to take no event
    /// from those that wait.
    #[cold]
    pub(super) fn forget_event_request(&mut self, connection: ConnectionId, cid: u16) {
        let Connection { admin, slots, .. } = &mut self.connections[connection.index()];
        let found = admin.event_requests.iter().position(|&slot| slots[usize::from(slot)].cid == cid);
        if let Some(slot) = found.and_then(|at| admin.event_requests.remove(at)) {
            self.fail(From { connection, slot }, Status::ABORT_REQUESTED.retryable());
        }
    }

    fn tell_events(&mut self, id: ConnectionId) {
        let connection = &mut self.connections[id.index()];
        let Some(controller) = connection.queue.controller.clone() else { return };
        if connection.admin.event_requests.is_empty() || !controller.with_events(super::events::Events::take)
        {
            return;
        }
        let Some(slot) = connection.admin.event_requests.pop_front() else { return };
        let event = AsyncEvent::NAMESPACE_ATTRIBUTE.to_dword();
        self.answer(From { connection: id, slot }, Status::SUCCESS, event.into(), None);
    }

    /// The controller was reset: its requests for events are over.
    pub(super) fn drop_event_requests(&mut self, id: ConnectionId) {
        while let Some(slot) = self.connections[id.index()].admin.event_requests.pop_front() {
            self.fail(From { connection: id, slot }, Status::ABORT_REQUESTED.retryable());
        }
    }

    // --- Abort -------------------------------------------------------------------------------------------------------

    /// Only a Copy and a request for events can be aborted: everything else is over before an Abort could help. Answered when
    /// it is known what became of the command: bit 0 of the result is 1 when it was not aborted.
    fn abort(&mut self, from: From, sqid: u16, cid: u16) {
        if sqid == 0 {
            return self.abort_event_request(from, cid);
        }
        if self.at(from).admin.aborts.len() >= say::ABORTS_MAX.get() as usize {
            return self.fail(from, Status::ABORT_LIMIT_EXCEEDED);
        }
        let bell = self.bell.clone();
        match self.controller(from).abort_copy(sqid, cid, &bell) {
            Some(ticket) => {
                let due = self.clock() + ABORT_TIME;
                self.at(from).admin.aborts.push((from.slot, ticket, due));
                self.deadline = self.deadline.min(due);
                self.give_up_copies();
                self.look_at_admin(from.connection);
            }
            None => self.answer(from, Status::SUCCESS, NOT_ABORTED, None),
        }
    }

    fn abort_event_request(&mut self, from: From, cid: u16) {
        let Connection { admin, slots, .. } = self.at(from);
        let found = admin.event_requests.iter().position(|&slot| slots[usize::from(slot)].cid == cid);
        let Some(slot) = found.and_then(|at| admin.event_requests.remove(at)) else {
            return self.answer(from, Status::SUCCESS, NOT_ABORTED, None);
        };
        self.fail(From { slot, ..from }, Status::ABORT_REQUESTED.retryable());
        self.succeed(from);
    }

    /// Answers the Aborts whose time is over.
    pub(super) fn look_at_aborts(&mut self) {
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            if connection.is_open && !connection.admin.aborts.is_empty() {
                self.look_at_admin(ConnectionId::new(index, connection.generation));
            }
        }
    }

    /// Events and the ends of aborted copies that an admin queue waits for.
    pub(super) fn look_at_admin(&mut self, id: ConnectionId) {
        self.tell_events(id);
        let mut at = 0;
        while let Some((slot, ticket, due)) = self.connections[id.index()].admin.aborts.get(at) {
            // What a device does not answer cannot be aborted.
            let late = *due <= self.now;
            let Some(aborted) = ticket.aborted().or(late.then_some(false)) else {
                self.deadline = self.deadline.min(*due);
                at += 1;
                continue;
            };
            let from = From { connection: id, slot: *slot };
            self.connections[id.index()].admin.aborts.remove(at);
            self.answer(from, Status::SUCCESS, if aborted { 0 } else { NOT_ABORTED }, None);
        }
    }
}

/// Longest time until an Abort is answered: whether its copy was aborted is known by then, or its device does not answer.
const ABORT_TIME: Duration = Duration::from_secs(1);

/// Result of an Abort whose command was not aborted.
const NOT_ABORTED: u64 = 1;

/// Features a discovery controller has.
fn is_discovery_feature(feature: u8) -> bool {
    matches!(feature, fid::ASYNC_EVENTS | fid::KEEP_ALIVE)
}

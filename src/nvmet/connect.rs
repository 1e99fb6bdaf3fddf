//! Fabrics commands: a connection becomes a queue, and a controller's properties are read and written.

use super::controller::{Controller, Effect};
use super::core::{Core, From};
use crate::block::Buf;
use crate::nvme::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, Connected, FabricsCommand, Refusal, Width};
use crate::nvme::{Sqe, Status};
use std::num::NonZeroU32;

/// Where SQSIZE is in a Connect, for [`Refusal::in_command`].
const SQSIZE_AT: u16 = 44;

/// A Connect that waits until nothing of the host's earlier connections is left in the backend.
pub(super) struct Connecting {
    pub(super) from: From,
    connect: Connect,
    data: ConnectData,
}

impl Core {
    pub(super) fn fabrics(&mut self, from: From, sqe: &Sqe, data: Buf) {
        let command = match FabricsCommand::parse(sqe) {
            Ok(command) => command,
            Err(refusal) => return self.refuse(from, refusal),
        };
        let qid = self.at(from).queue.id;
        match command {
            // It is a queue, or is about to be: a second controller would be nobody's, for ever.
            FabricsCommand::Connect(_) if qid.is_some() || self.is_connecting(from) => {
                self.fail(from, Status::COMMAND_SEQUENCE_ERROR);
            }
            FabricsCommand::Connect(connect) => match ConnectData::parse(&data) {
                Ok(data) => self.connect(Connecting { from, connect, data }),
                Err(refusal) => self.refuse(from, refusal),
            },
            _ if qid.is_none() => self.fail(from, Status::COMMAND_SEQUENCE_ERROR),
            FabricsCommand::PropertyGet { width, offset } if qid == Some(0) => {
                self.property_get(from, width, offset)
            }
            FabricsCommand::PropertySet { width, offset, value } if qid == Some(0) => {
                self.property_set(from, width, offset, value);
            }
            // Authentication is not asked for, queues are not deleted one by one, I/O queues have no properties.
            _ => self.fail(from, Status::INVALID_OPCODE),
        }
    }

    fn property_get(&mut self, from: From, width: Width, offset: u32) {
        let controller = self.at(from).queue.controller.as_ref();
        match controller.map_or(Err(Status::INVALID_FIELD), |c| c.property(offset, width)) {
            Ok(value) => self.answer(from, Status::SUCCESS, value, None),
            Err(status) => self.fail(from, status),
        }
    }

    fn property_set(&mut self, from: From, width: Width, offset: u32, value: u64) {
        let controller = self.at(from).queue.controller.as_ref();
        match controller.map_or(Err(Status::INVALID_FIELD), |c| c.set_property(offset, width, value)) {
            Ok(Effect::None) => self.succeed(from),
            Ok(Effect::Reset) => {
                self.drop_event_requests(from.connection);
                self.succeed(from);
            }
            // Answered when all is durable: then the shutdown is complete.
            Ok(Effect::Flush) => self.flush_seen(from, true),
            Err(status) => self.fail(from, status),
        }
    }

    // --- Connect -----------------------------------------------------------------------------------------------------

    fn connect(&mut self, asked: Connecting) {
        let from = asked.from;
        match self.try_connect(&asked) {
            Ok(Some(connected)) => self.answer(from, Status::SUCCESS, connected.to_dword0().into(), None),
            Ok(None) => self.connecting.push(asked),
            Err(refusal) => self.refuse(from, refusal),
        }
    }

    fn is_connecting(&self, from: From) -> bool {
        self.connecting.iter().any(|asked| asked.from.connection == from.connection)
    }

    /// Connects that waited may go on now.
    pub(super) fn look_at_connecting(&mut self) {
        for asked in std::mem::take(&mut self.connecting) {
            self.connect(asked);
        }
    }

    /// Makes the connection a queue. `None`: the host has operations of before in the backend, and a write of them must not
    /// land behind one that it sends now.
    fn try_connect(&mut self, asked: &Connecting) -> Result<Option<Connected>, Refusal> {
        let Connecting { from, connect, data } = asked;
        let settings = *self.target.settings();
        if connect.entries > settings.queue_entries {
            return Err(Refusal::in_command(SQSIZE_AT));
        }
        let subsystem = self.target.subsystem(&data.subsystem);
        let subsystem = subsystem.ok_or(Refusal::in_data(ConnectData::SUBSYSTEM_AT))?;
        if !subsystem.admits(data.host.as_str()) {
            return Err(Status::CONNECT_INVALID_HOST.into());
        }
        let host = subsystem.host(&data.host, data.host_id);
        if !host.is_drained(&self.bell) {
            return Ok(None);
        }
        let controller = if connect.qid == 0 {
            // Controllers are made when asked for: there is none to ask for by number.
            if data.cntlid != CNTLID_DYNAMIC {
                return Err(Refusal::in_data(ConnectData::CNTLID_AT));
            }
            subsystem.open(host, &settings)?
        } else {
            let controller = subsystem.find(data.cntlid).ok_or(Refusal::in_data(ConnectData::CNTLID_AT))?;
            check_host(&controller, data)?;
            controller
        };
        let epoch = controller.connect(connect.qid, &self.bell)?;
        let connection = self.at(*from);
        connection.queue.id = Some(connect.qid);
        connection.queue.entries = connect.entries.get();
        connection.queue.flow_control = !connect.no_flow_control;
        connection.queue.epoch = epoch;
        connection.queue.controller = Some(controller.clone());
        if connect.qid == 0 {
            let timeout: Option<NonZeroU32> =
                controller.with_features(|features| features.set_keep_alive(connect.keep_alive_ms));
            self.keep_alive(*from, timeout);
        }
        Ok(Some(Connected::to(controller.id())))
    }
}

/// An I/O queue joins the association its admin queue has made.
fn check_host(controller: &Controller, data: &ConnectData) -> Result<(), Refusal> {
    if controller.host_nqn() != &data.host {
        return Err(Refusal::in_data(ConnectData::HOST_AT));
    }
    if controller.host_id() != data.host_id {
        return Err(Refusal::in_data(ConnectData::HOST_ID_AT));
    }
    Ok(())
}

//! Fabrics commands: a connection becomes a queue, and a controller's properties are read and written.

use super::context::Context;
use super::io::flush_all;
use super::outcome::Outcome;
use crate::block::Buf;
use crate::nvme::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, Connected, FabricsCommand, Refusal, Width};
use crate::nvme::{Sqe, Status};
use crate::nvmet::connections::Standing;
use crate::nvmet::controller::{CcEffect, Controller};
use std::num::NonZeroU32;
use std::time::Duration;

/// Where SQSIZE is in a Connect, for [`Refusal::in_command`].
const SQSIZE_AT: u16 = 44;

/// Begins a fabrics command.
pub(in crate::nvmet) fn begin(cx: &mut Context<'_>, sqe: &Sqe, data: &Buf) -> Outcome {
    let command = match FabricsCommand::parse(sqe) {
        Ok(command) => command,
        Err(refusal) => return Outcome::refuse(refusal),
    };
    let qid = cx.connection.queue.id;
    match command {
        // It is a queue, or is about to be: a second controller would belong to no connection, for ever.
        FabricsCommand::Connect(_) if qid.is_some() || cx.connection.is_connecting => {
            Outcome::fail(Status::COMMAND_SEQUENCE_ERROR)
        }
        FabricsCommand::Connect(asked) => match ConnectData::parse(data) {
            Ok(data) => connect(cx, Box::new((asked, data))),
            Err(refusal) => Outcome::refuse(refusal),
        },
        _ if qid.is_none() => Outcome::fail(Status::COMMAND_SEQUENCE_ERROR),
        FabricsCommand::PropertyGet { width, offset } if qid == Some(0) => {
            cx.controller().property(offset, width).map_or_else(Outcome::fail, Outcome::value)
        }
        FabricsCommand::PropertySet { width, offset, value } if qid == Some(0) => {
            set_property(cx, width, offset, value)
        }
        // Authentication is not asked for, queues are not deleted one by one, I/O queues have no properties.
        _ => Outcome::fail(Status::INVALID_OPCODE),
    }
}

fn set_property(cx: &mut Context<'_>, width: Width, offset: u32, value: u64) -> Outcome {
    match cx.controller().set_property(offset, width, value) {
        Ok(CcEffect::None) => Outcome::done(),
        Ok(CcEffect::Reset) => Outcome::AbortEvents(cx.connection.admin.event_requests.drain(..).collect()),
        // Answered when all is durable: then the shutdown is complete.
        Ok(CcEffect::Flush) => flush_all(cx, true),
        Err(status) => Outcome::fail(status),
    }
}

/// Makes the connection a queue, now or once its host is drained.
pub(in crate::nvmet) fn connect(cx: &mut Context<'_>, asked: Box<(Connect, ConnectData)>) -> Outcome {
    let connected = try_connect(cx, &asked.0, &asked.1);
    cx.connection.is_connecting = matches!(connected, Ok(None));
    match connected {
        Ok(Some(connected)) => Outcome::value(connected.to_dword0().into()),
        Ok(None) => Outcome::Connect(asked),
        Err(refusal) => Outcome::refuse(refusal),
    }
}

/// `None`: the host has earlier operations in the backend, and a write of them must not land after one that it sends
/// now.
fn try_connect(
    cx: &mut Context<'_>,
    connect: &Connect,
    data: &ConnectData,
) -> Result<Option<Connected>, Refusal> {
    let settings = *cx.target.settings();
    if connect.entries > settings.queue_entries {
        return Err(Refusal::in_command(SQSIZE_AT));
    }
    let subsystem = cx.target.subsystem(&data.subsystem);
    let subsystem = subsystem.ok_or(Refusal::in_data(ConnectData::SUBSYSTEM_AT))?;
    if !subsystem.admits(data.host.as_str()) {
        return Err(Status::CONNECT_INVALID_HOST.into());
    }
    let standing = match (subsystem.is_discovery(), cx.target.admits(data.host.as_str())) {
        (false, _) => Standing::Host,
        (true, true) => Standing::Discovery,
        (true, false) => Standing::Stranger,
    };
    if !cx.shares.may_take(&data.host, standing) {
        tracing::warn!(host = %data.host, "this host has its share of the connections: one more is refused");
        return Err(Status::CONNECT_CONTROLLER_BUSY.retryable().into());
    }
    let host = subsystem.host(&data.host, data.host_id);
    if !host.is_drained(cx.wakeup) {
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
    let connection = &mut *cx.connection;
    connection.queue.epoch = controller.connect(connect.qid, cx.wakeup)?;
    connection.queue.id = Some(connect.qid);
    connection.queue.entries = connect.entries.get();
    connection.queue.flow_control = !connect.no_flow_control;
    connection.queue.controller = Some(controller.clone());
    connection.queue.standing = Some(standing);
    cx.shares.take(&data.host, standing);
    connection.subsystem = Some(subsystem);
    if connect.qid == 0 {
        let timeout: Option<NonZeroU32> =
            controller.with_features(|features| features.set_keep_alive(connect.keep_alive_ms));
        let timeout = timeout.map(|ms| Duration::from_millis(ms.get().into()));
        connection.admin.expect_keep_alive(timeout, standing != Standing::Host, cx.now);
    }
    Ok(Some(Connected::to(controller.id())))
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

//! Admin commands: which handler each has; events, keep-alive and Abort.

use super::context::Context;
use super::identify::{ABORTS_MAX, EVENT_REQUESTS_MAX, identify};
use super::outcome::Outcome;
use super::{features, log};
use crate::block::Buf;
use crate::nvme::{AdminCommand, Sqe, Status};
use crate::nvmet::connections::WaitingAbort;
use std::time::Duration;

/// Longest time until an Abort is answered: whether its copy was aborted is known by then, or its device does not
/// answer.
const ABORT_TIME: Duration = Duration::from_secs(1);

/// Result of an Abort whose command was not aborted.
pub(in crate::nvmet) const NOT_ABORTED: u64 = 1;

/// Begins an admin command. `data`: from the host, or the buffer for what goes to it.
pub(in crate::nvmet) fn begin(cx: &mut Context<'_>, sqe: &Sqe, data: Buf) -> Outcome {
    try_begin(cx, sqe, data).unwrap_or_else(Outcome::fail)
}

fn try_begin(cx: &mut Context<'_>, sqe: &Sqe, data: Buf) -> Result<Outcome, Status> {
    let is_discovery = cx.connection.queue.ready()?.namespaces().is_discovery();
    match AdminCommand::parse(sqe)? {
        AdminCommand::Identify(command) => identify(cx, &command, data),
        AdminCommand::GetLogPage(command) => log::log_page(cx, &command, data),
        AdminCommand::SetFeatures(command) => features::set(cx, &command, &data),
        AdminCommand::GetFeatures(command) => features::get(cx, &command, data),
        AdminCommand::KeepAlive => {
            cx.connection.admin.keep_alive_came(cx.now);
            Ok(Outcome::done())
        }
        AdminCommand::AsyncEventRequest => await_event(cx),
        AdminCommand::Abort { .. } if is_discovery => Err(Status::INVALID_OPCODE),
        AdminCommand::Abort { sqid, cid } => abort(cx, sqid, cid),
    }
}

fn await_event(cx: &mut Context<'_>) -> Result<Outcome, Status> {
    let requests = &mut cx.connection.admin.event_requests;
    if requests.len() >= EVENT_REQUESTS_MAX.get() as usize {
        return Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED);
    }
    requests.push_back(cx.id.slot);
    Ok(Outcome::AwaitEvent)
}

/// Only a Copy and a request for events can be aborted: everything else is over before an Abort could help. Answered
/// when it is known what became of the command: bit 0 of the result is 1 when it was not aborted.
fn abort(cx: &mut Context<'_>, sqid: u16, cid: u16) -> Result<Outcome, Status> {
    if sqid == 0 {
        let found = cx.connection.event_request(cid);
        let found = found.and_then(|at| cx.connection.admin.event_requests.remove(at));
        return Ok(found.map_or(Outcome::value(NOT_ABORTED), |slot| Outcome::AbortEvents(vec![slot])));
    }
    if cx.connection.admin.aborts.len() >= ABORTS_MAX.get() as usize {
        return Err(Status::ABORT_LIMIT_EXCEEDED);
    }
    let Some(ticket) = cx.controller().abort_copy(sqid, cid, cx.wakeup) else {
        return Ok(Outcome::value(NOT_ABORTED));
    };
    let due = cx.clock() + ABORT_TIME;
    cx.connection.admin.aborts.push(WaitingAbort { slot: cx.id.slot, ticket, due });
    Ok(Outcome::AwaitAbort { due })
}

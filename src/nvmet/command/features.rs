//! Set Features and Get Features.

use super::context::Context;
use super::outcome::Outcome;
use crate::block::Buf;
use crate::nvme::Status;
use crate::nvme::admin::{GetFeatures, Select, SetFeatures};
use crate::nvme::feature::{KeepAlive, fid};
use crate::nvmet::controller::Controller;
use std::time::Duration;

/// Set Features.
pub(super) fn set(cx: &mut Context<'_>, command: &SetFeatures, data: &[u8]) -> Result<Outcome, Status> {
    let controller = cx.controller();
    check_known(controller, command.fid)?;
    let has_io_queues = controller.has_io_queues();
    let (dword, keep_alive) = controller.with_features(|features| {
        let dword = features.set(command, data, has_io_queues)?;
        let get = features.get(&GetFeatures::new(fid::KEEP_ALIVE), [0; 16])?;
        Ok::<_, Status>((dword, KeepAlive::from_dword(get.dword).0))
    })?;
    if command.fid == fid::KEEP_ALIVE {
        let timeout = keep_alive.map(|ms| Duration::from_millis(ms.get().into()));
        let is_discovery = cx.controller().namespaces().is_discovery();
        cx.connection.admin.expect_keep_alive(timeout, is_discovery, cx.now);
    }
    Ok(Outcome::value(dword.into()))
}

/// Get Features.
pub(super) fn get(cx: &mut Context<'_>, command: &GetFeatures, mut out: Buf) -> Result<Outcome, Status> {
    check_known(cx.controller(), command.fid)?;
    if command.fid == fid::ERROR_RECOVERY && command.select == Select::Current {
        cx.find(command.nsid)?;
    }
    let controller = cx.controller();
    let value = controller.with_features(|features| features.get(command, controller.host_id()))?;
    if value.data.is_empty() {
        return Ok(Outcome::value(value.dword.into()));
    }
    if out.len() != value.data.len() {
        return Err(Status::SGL_LENGTH_INVALID);
    }
    out.copy_from_slice(&value.data);
    Ok(Outcome::Answer { status: Status::SUCCESS, result: value.dword.into(), data: Some(out) })
}

/// A discovery controller has few features.
fn check_known(controller: &Controller, feature: u8) -> Result<(), Status> {
    let is_known =
        !controller.namespaces().is_discovery() || matches!(feature, fid::ASYNC_EVENTS | fid::KEEP_ALIVE);
    if is_known { Ok(()) } else { Err(Status::INVALID_FIELD) }
}

//! The Copy command: checked here, run by the copy queue.

use super::checked_copy::CheckedCopy;
use super::context::Context;
use super::outcome::Outcome;
use crate::nvme::{CopyCommand, Status};

/// How a copy ends whose devices do not answer.
pub(in crate::nvmet) const STALLED: Status = Status::COMMAND_INTERRUPTED.retryable();

/// Checks a Copy onto the namespace of backend `at`. `list`: its source ranges; `through`: every write is to be
/// durable.
pub(super) fn begin(
    cx: &Context<'_>,
    at: u16,
    command: &CopyCommand,
    list: &[u8],
    through: bool,
) -> Result<Outcome, Status> {
    let dest = &cx.backends.get(at).namespace;
    let find = |nsid| cx.connection.view.look_up(nsid).map(|at| &cx.backends.get(at).namespace);
    let checked = CheckedCopy::new(command, list, dest, cx.controller().copy_formats(), find)?;
    // Each copy that is left behind in a device that does not answer keeps its buffers: one at a time is enough.
    if checked.dest.is_stalled() || checked.runs.iter().any(|run| run.namespace.is_stalled()) {
        return Err(STALLED);
    }
    Ok(Outcome::Copy { checked: Box::new(checked), fua: command.fua || through })
}

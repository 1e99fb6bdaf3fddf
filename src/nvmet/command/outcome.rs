//! What a handler returns.

use super::checked_copy::CheckedCopy;
use crate::block::{Buf, Op};
use crate::nvme::Status;
use crate::nvme::fabrics::{Connect, ConnectData, Refusal};
use crate::nvmet::pending::Pending;
use std::time::Duration;

/// What comes of a command for now.
pub(in crate::nvmet) enum Outcome {
    /// It has ended.
    Answer {
        status: Status,
        /// Dword 0 and 1.
        result: u64,
        /// What goes to the host.
        data: Option<Buf>,
    },
    /// A request of a backend; `pending` says what its completion means.
    Request { pending: Pending, backend: u16, op: Op },
    /// A flush of each backend, one or more. `status`: the first error so far.
    FlushAll { backends: Vec<u16>, status: Status, shutdown: bool },
    /// A Copy begins. `fua`: it is to be durable.
    Copy { checked: Box<CheckedCopy>, fua: bool },
    /// A Connect waits until its host is drained.
    Connect(Box<(Connect, ConnectData)>),
    /// Requests for events in these slots end as aborted, then the command ends well.
    AbortEvents(Vec<u16>),
    /// A request for events waits; there may be one already.
    AwaitEvent,
    /// An Abort waits for the end of its copy, until `due` at the latest.
    AwaitAbort { due: Duration },
    /// Something that was asked for has not come back yet.
    Wait,
}

impl Outcome {
    /// It has ended well.
    #[inline]
    pub(super) fn done() -> Self {
        Self::value(0)
    }

    /// It has ended well, with this result.
    #[inline]
    pub(super) fn value(result: u64) -> Self {
        Self::Answer { status: Status::SUCCESS, result, data: None }
    }

    /// It has ended well, and the data goes to the host.
    #[inline]
    pub(super) fn data(data: Buf) -> Self {
        Self::Answer { status: Status::SUCCESS, result: 0, data: Some(data) }
    }

    /// It has ended with an error.
    #[cold]
    pub(in crate::nvmet) fn fail(status: Status) -> Self {
        Self::Answer { status, result: 0, data: None }
    }

    /// It has ended with an error and what dword 0 says about it.
    #[cold]
    pub(super) fn refuse(refusal: Refusal) -> Self {
        Self::Answer { status: refusal.status, result: refusal.dword0.into(), data: None }
    }

    /// It has ended by its result.
    #[inline]
    pub(super) fn of(result: Result<(), Status>) -> Self {
        match result {
            Ok(()) => Self::done(),
            Err(status) => Self::fail(status),
        }
    }
}

//! What a command that is not answered yet waits for.

use crate::block::Buf;
use crate::nvme::{Count8, Doing, Status};

/// What the command of a slot waits for.
#[derive(Default)]
pub(super) enum Pending {
    /// There is no command.
    #[default]
    Free,
    /// A request whose buffer goes to the host; with `flush`, after a flush.
    Read {
        /// What was read is to be durable.
        flush: bool,
    },
    /// The flush after a read; the buffer goes to the host.
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
    Copy(CopyKey),
    /// Something that no request stands for: an event, the end of an aborted command, the drain of a host.
    Other,
}

/// A Dataset Management command under way.
pub(super) struct Deallocate {
    pub(super) list: Buf,
    pub(super) ranges: Count8,
    /// Ranges from the front that are done with.
    pub(super) done: usize,
    /// What is deallocated is to be durable.
    pub(super) flush: bool,
}

/// A copy of the worker's copy queue, from its begin until its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CopyKey(pub(super) usize);

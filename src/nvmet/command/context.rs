//! What a handler gets.

use crate::nvme::Status;
use crate::nvmet::backends::Backends;
use crate::nvmet::connections::{CommandId, TargetConnection};
use crate::nvmet::controller::Controller;
use crate::nvmet::shares::Shares;
use crate::nvmet::target::Target;
use crate::nvmet::wakeup::Wakeup;
use crate::reactor;
use std::sync::Arc;
use std::time::Duration;

/// What a handler may use.
pub(in crate::nvmet) struct Context<'a> {
    pub(in crate::nvmet) id: CommandId,
    /// The time at which this turn began.
    pub(in crate::nvmet) now: Duration,
    pub(in crate::nvmet) target: &'a Target,
    pub(in crate::nvmet) wakeup: &'a Arc<Wakeup>,
    pub(in crate::nvmet) connection: &'a mut TargetConnection,
    pub(in crate::nvmet) backends: &'a mut Backends,
    pub(in crate::nvmet) shares: &'a mut Shares,
}

impl Context<'_> {
    /// The backend of a namespace; errors as [`NamespaceView::find`](crate::nvmet::view::NamespaceView::find) has them.
    #[inline]
    pub(super) fn find(&mut self, nsid: u32) -> Result<u16, Status> {
        let TargetConnection { queue, view, .. } = &mut *self.connection;
        let controller = queue.controller.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        view.find(controller, self.backends, self.now, nsid)
    }

    /// The backends of all namespaces the host sees.
    ///
    /// Errors, beside those that are open: Namespace Not Ready when this thread cannot open all of them.
    pub(super) fn all(&mut self) -> (Vec<u16>, Result<(), Status>) {
        let TargetConnection { queue, view, .. } = &mut *self.connection;
        match &queue.controller {
            Some(controller) => view.all(controller, self.backends, self.now),
            None => (Vec::new(), Ok(())),
        }
    }

    /// The controller of a queue.
    ///
    /// # Panics
    /// Before Connect.
    pub(super) fn controller(&self) -> &Arc<Controller> {
        self.connection.queue.controller.as_ref().expect("a queue has a controller")
    }

    /// The time now.
    pub(super) fn clock(&self) -> Duration {
        clock(self.now)
    }
}

/// The time on the reactor's clock; `turn` on a thread without one.
pub(in crate::nvmet) fn clock(turn: Duration) -> Duration {
    reactor::current().map_or(turn, |reactor| reactor.now())
}

//! Which backend each namespace id means to one connection.

use super::backends::Backends;
use super::controller::Controller;
use super::namespace_set::NSID_MAX;
use crate::nvme::Status;
use std::time::Duration;

/// No such namespace is attached.
const NOWHERE: u16 = u16::MAX;
/// It is attached, and this thread cannot open its device.
const CLOSED: u16 = u16::MAX - 1;

/// Time between two attempts of a connection to open what this thread could not open.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// The namespaces that the host of one connection sees.
#[derive(Default)]
pub(super) struct NamespaceView {
    /// For each NSID, from 1, the backend.
    backends: Vec<u16>,
    /// Of the subsystem's namespaces, when the view was made.
    generation: u64,
    /// When what this thread could not open is tried again.
    open_again_at: Duration,
}

impl NamespaceView {
    /// The backend of a namespace.
    ///
    /// Errors: Invalid Namespace or Format for a number that no namespace can have; Invalid Field for one that is not
    /// attached to this host, whether it exists or not; Namespace Not Ready when this thread cannot open its device.
    #[inline]
    pub(super) fn find(
        &mut self,
        controller: &Controller,
        backends: &mut Backends,
        now: Duration,
        nsid: u32,
    ) -> Result<u16, Status> {
        let generation = controller.namespaces().generation();
        if self.generation != generation {
            self.renew(controller, backends, now, generation);
        }
        let found = self.look_up(nsid);
        if found.is_err() && self.opens_again(controller, backends, now) { self.look_up(nsid) } else { found }
    }

    /// The same in what the last [`NamespaceView::find`] saw.
    #[inline]
    pub(super) fn look_up(&self, nsid: u32) -> Result<u16, Status> {
        match usize::try_from(nsid).ok().and_then(|n| n.checked_sub(1)).and_then(|n| self.backends.get(n)) {
            Some(&at) if at < CLOSED => Ok(at),
            Some(&CLOSED) => Err(Status::NAMESPACE_NOT_READY.retryable()),
            _ if nsid == 0 || nsid > NSID_MAX => Err(Status::INVALID_NAMESPACE),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// The backends of all namespaces the host sees.
    ///
    /// Errors, beside those that are open: Namespace Not Ready when this thread cannot open all of them.
    pub(super) fn all(
        &mut self,
        controller: &Controller,
        backends: &mut Backends,
        now: Duration,
    ) -> (Vec<u16>, Result<(), Status>) {
        // Any number will do: finding it renews the view.
        if self.find(controller, backends, now, NSID_MAX).is_ok() {
            self.opens_again(controller, backends, now);
        }
        let closed = Err(Status::NAMESPACE_NOT_READY.retryable());
        let all = if self.backends.contains(&CLOSED) { closed } else { Ok(()) };
        (self.backends.iter().copied().filter(|&at| at < CLOSED).collect(), all)
    }

    /// Tries again, once in a while, to open what this thread could not open. True when it tried.
    #[cold]
    fn opens_again(&mut self, controller: &Controller, backends: &mut Backends, now: Duration) -> bool {
        let due = self.backends.contains(&CLOSED) && now >= self.open_again_at;
        if due {
            self.renew(controller, backends, now, self.generation);
        }
        due
    }

    #[cold]
    fn renew(&mut self, controller: &Controller, backends: &mut Backends, now: Duration, generation: u64) {
        let set = controller.namespaces();
        let mut view = Vec::new();
        for namespace in set.attached(controller.host_nqn().as_str()) {
            let at = namespace.nsid() as usize - 1;
            view.resize(view.len().max(at + 1), NOWHERE);
            view[at] = backends.open(set, &namespace).unwrap_or(CLOSED);
        }
        (self.backends, self.generation) = (view, generation);
        self.open_again_at = now.saturating_add(OPEN_AGAIN);
    }
}

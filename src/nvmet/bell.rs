//! How other threads tell a core that there is something to look at.

use crate::reactor::Waker;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rung from any thread; ends the sleep of the core's thread, which looks at what it keeps.
pub(super) struct Bell {
    rung: AtomicBool,
    waker: Waker,
}

impl Bell {
    pub(super) fn new(waker: Waker) -> Self {
        Self { rung: AtomicBool::new(false), waker }
    }

    /// Calls the core.
    pub(super) fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// True when it was rung since the last time; a plain load when it was not.
    #[inline]
    pub(super) fn take(&self) -> bool {
        // What was written before the ring is seen after the swap.
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::AcqRel)
    }
}

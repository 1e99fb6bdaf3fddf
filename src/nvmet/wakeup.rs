//! How other threads wake a worker that has something to handle.

use crate::reactor::Waker;
use std::sync::atomic::{AtomicBool, Ordering};

/// Used from any thread; ends the sleep of the worker's thread, which then checks what it keeps.
pub(super) struct Wakeup {
    is_set: AtomicBool,
    waker: Waker,
}

impl Wakeup {
    pub(super) fn new(waker: Waker) -> Self {
        Self { is_set: AtomicBool::new(false), waker }
    }

    /// Wakes the worker.
    pub(super) fn wake(&self) {
        self.is_set.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// True when it was used since the last call; a plain load when it was not.
    #[inline]
    pub(super) fn take(&self) -> bool {
        // What was written before `wake` is seen after the swap.
        self.is_set.load(Ordering::Relaxed) && self.is_set.swap(false, Ordering::AcqRel)
    }
}

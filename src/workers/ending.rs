//! The end that a service comes to by itself: whether, why, and who is notified.

use crate::block::Error;
use crate::reactor::Waker;
use crate::sys::sync::lock;
use std::sync::{Arc, Mutex, MutexGuard};

/// Whether a service has ended by itself. Clones share it.
#[derive(Clone, Default)]
pub struct Ending(Arc<Mutex<EndingState>>);

#[derive(Default)]
struct EndingState {
    is_over: bool,
    why: Option<Error>,
    watcher: Option<Waker>,
}

impl Ending {
    fn state(&self) -> MutexGuard<'_, EndingState> {
        // An assignment cannot leave the state half changed.
        lock(&self.0)
    }

    /// The service is over; the first reason given stays. Wakes the watcher.
    pub fn end(&self, why: Option<Error>) {
        let mut state = self.state();
        state.is_over = true;
        state.why = state.why.take().or(why);
        if let Some(watcher) = &state.watcher {
            watcher.wake();
        }
    }

    /// Calls `waker` when the service ends, or at once if it has. Replaces the watcher from before.
    pub fn watch(&self, waker: Waker) {
        let mut state = self.state();
        if state.is_over {
            waker.wake();
        }
        state.watcher = Some(waker);
    }

    /// True once the service has ended.
    pub fn is_over(&self) -> bool {
        self.state().is_over
    }

    /// True while there is a reason that was not taken.
    pub fn has_failed(&self) -> bool {
        self.state().why.is_some()
    }

    /// The reason, once.
    pub fn take_failure(&self) -> Option<Error> {
        self.state().why.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Kind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_first_reason_stays_and_a_watcher_that_comes_late_is_woken_at_once() {
        let (ending, woken) = (Ending::default(), Arc::new(AtomicUsize::new(0)));
        let watcher = || {
            let count = woken.clone();
            Waker::new(move || {
                let _ = count.fetch_add(1, Ordering::Relaxed);
            })
        };
        ending.watch(watcher());
        assert!(!ending.is_over() && woken.load(Ordering::Relaxed) == 0);
        ending.end(None);
        assert!(ending.is_over() && !ending.has_failed());
        ending.end(Some(Error::new(Kind::Io, "first")));
        ending.end(Some(Error::new(Kind::Io, "second")));
        assert_eq!(woken.load(Ordering::Relaxed), 3);
        ending.watch(watcher());
        assert_eq!(woken.load(Ordering::Relaxed), 4);
        assert!(ending.has_failed());
        assert!(ending.take_failure().unwrap().to_string().contains("first"));
        assert!(ending.is_over() && ending.take_failure().is_none());
    }
}

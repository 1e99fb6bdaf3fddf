//! The atomics, mutexes and cells of hand-over code: those of `std`, or of `loom` when every interleaving is tried.

#[cfg(loom)]
pub(crate) use loom::cell::UnsafeCell;
#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
};

/// `std`'s cell behind the closure interface of loom's.
#[cfg(not(loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// Locks; a panic of another holder is not a reason to stop, what it held is consistent between statements.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    held(mutex.lock())
}

/// [`lock`] for the mutex of hand-over code, which may be loom's.
pub(crate) fn lock_modelled<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    held(mutex.lock())
}

/// What a lock or a wait for a condition gives, whether or not another holder panicked (see [`lock`]).
pub(crate) fn held<T>(taken: std::sync::LockResult<T>) -> T {
    taken.unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One turn of a wait for another thread that is about to finish: spins, and gives the processor away when that thread
/// seems to have lost its own.
pub(crate) fn relax(turn: &mut u32) {
    #[cfg(loom)]
    {
        *turn = 0;
        loom::thread::yield_now();
    }
    #[cfg(not(loom))]
    {
        if *turn < 64 {
            *turn += 1;
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

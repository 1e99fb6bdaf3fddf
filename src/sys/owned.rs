//! A value that belongs to one thread, lent to others only while that thread sleeps.
//!
//! The owner pays one atomic exchange when it enters and one store when it parks; between the two it uses the value
//! with plain loads and stores. Another thread may borrow the value of a parked owner, never wait for it.

use super::sync::{AtomicU8, Ordering, UnsafeCell, relax};
use std::cell::Cell;
use std::sync::Arc;

/// Nobody uses the value; the owner sleeps.
const PARKED: u8 = 0;
/// The owner may use the value at any moment.
const RUNNING: u8 = 1;
/// Another thread uses the value; the owner sleeps, or waits in [`Owner::enter`].
const BORROWED: u8 = 2;

/// The value and the word that says who may use it.
pub struct Owned<T> {
    word: AtomicU8,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through `Owner::with` (word is RUNNING) or `Borrow::with` (word is BORROWED), and the
// word makes the two exclude each other, with acquire and release at each change; so sharing the cell only moves the
// value between threads, which `T: Send` allows.
unsafe impl<T: Send> Sync for Owned<T> {}

impl<T> Owned<T> {
    /// Borrows the value if its owner is parked and nobody else has borrowed it. Never waits.
    pub fn try_borrow(&self) -> Option<Borrow<'_, T>> {
        self.word
            .compare_exchange(PARKED, BORROWED, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            // Lazily: a guard made and dropped would park a running owner.
            .then(|| Borrow(self))
    }

    /// True while the owner runs: true at some moment during the call, no more.
    pub fn is_running(&self) -> bool {
        self.word.load(Ordering::Relaxed) == RUNNING
    }
}

/// Where the owner is, known to its own thread without an atomic.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Parked.
    Out,
    /// Running, outside `with`.
    In,
    /// Inside `with`.
    Using,
}

/// The one handle that may enter. May move to another thread, never be shared.
pub struct Owner<T> {
    cell: Arc<Owned<T>>,
    place: Cell<Place>,
}

impl<T> Owner<T> {
    /// Makes the value with its owner running.
    pub fn new(value: T) -> Self {
        let cell = Owned { word: AtomicU8::new(RUNNING), value: UnsafeCell::new(value) };
        Self { cell: Arc::new(cell), place: Cell::new(Place::In) }
    }

    /// The shared side, for [`Owned::try_borrow`].
    pub fn cell(&self) -> &Arc<Owned<T>> {
        &self.cell
    }

    /// True between [`Owner::enter`] and [`Owner::park`].
    pub fn is_running(&self) -> bool {
        self.place.get() != Place::Out
    }

    /// Takes the value back from the parked state; waits while it is borrowed (a borrower only does short work).
    ///
    /// # Panics
    /// When running already.
    pub fn enter(&self) {
        assert!(self.place.get() == Place::Out, "the owner runs already; park first");
        let mut turn = 0;
        while self.cell.word.compare_exchange(PARKED, RUNNING, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            relax(&mut turn);
        }
        self.place.set(Place::In);
    }

    /// Leaves the value for others to borrow.
    ///
    /// # Panics
    /// When parked already, or inside [`Owner::with`].
    pub fn park(&self) {
        assert!(self.place.get() == Place::In, "only a running owner outside `with` can park");
        self.place.set(Place::Out);
        self.cell.word.store(PARKED, Ordering::Release);
    }

    /// Uses the value.
    ///
    /// # Panics
    /// When parked, or inside another `with`.
    #[inline]
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        /// Back to `In`, also when `f` panics.
        struct Leave<'a>(&'a Cell<Place>);
        impl Drop for Leave<'_> {
            #[inline]
            fn drop(&mut self) {
                self.0.set(Place::In);
            }
        }
        assert!(self.place.get() == Place::In, "the value is used by its running owner only, once at a time");
        self.place.set(Place::Using);
        let _leave = Leave(&self.place);
        // SAFETY: the word is RUNNING (place says so, only this handle changes RUNNING, and it is not Sync), so no
        // borrow exists or can begin; `Using` excludes a second `with`. The reference ends with the closure.
        self.cell.value.with_mut(|value| f(unsafe { &mut *value }))
    }
}

impl<T> Drop for Owner<T> {
    fn drop(&mut self) {
        if self.place.get() != Place::Out {
            self.cell.word.store(PARKED, Ordering::Release);
        }
    }
}

/// The value of a parked owner, in other hands until dropped.
pub struct Borrow<'a, T>(&'a Owned<T>);

impl<T> Borrow<'_, T> {
    /// Uses the value.
    pub fn with<R>(&mut self, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: the word is BORROWED and only this guard changes that; `&mut self` excludes a second `with`.
        self.0.value.with_mut(|value| f(unsafe { &mut *value }))
    }
}

impl<T> Drop for Borrow<'_, T> {
    fn drop(&mut self) {
        self.0.word.store(PARKED, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_a_parked_value_can_be_borrowed_and_only_once() {
        let owner = Owner::new(1);
        assert!(owner.cell().try_borrow().is_none());
        assert!(owner.cell().is_running(), "a refused borrow changes nothing");
        owner.park();
        let mut first = owner.cell().try_borrow().unwrap();
        assert!(owner.cell().try_borrow().is_none());
        first.with(|v| *v += 1);
        drop(first);
        owner.enter();
        assert!(owner.cell().try_borrow().is_none());
        assert_eq!(owner.with(|v| *v), 2);
    }

    #[test]
    fn the_owner_cannot_use_the_value_twice_at_once_or_while_parked() {
        use std::panic::{AssertUnwindSafe, catch_unwind};
        let owner = Owner::new(0);
        assert!(catch_unwind(AssertUnwindSafe(|| owner.with(|_| owner.with(|v| *v)))).is_err());
        assert_eq!(owner.with(|v| *v), 0, "a panic inside gives the value back");
        owner.park();
        assert!(catch_unwind(AssertUnwindSafe(|| owner.with(|v| *v))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| owner.park())).is_err());
    }

    #[test]
    fn a_dropped_owner_leaves_the_value_borrowable() {
        let owner = Owner::new(7);
        let cell = owner.cell().clone();
        drop(owner);
        assert_eq!(cell.try_borrow().unwrap().with(|v| *v), 7);
    }
}

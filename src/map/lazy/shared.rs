//! What all views of a device with lazy zeroes share: the device inside, and the list.

use super::list::{LazyList, Parts};
use crate::block::device::check_range;
use crate::block::{ByteRange, Device, Result};
use crate::sys::sync::lock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Hears of each range that a queue has changed.
pub(super) type Tell = Arc<dyn Fn(ByteRange) + Send + Sync>;

/// What all views share.
pub(super) struct Shared {
    pub(super) inner: Arc<dyn Device>,
    pub(super) lazy_min_bytes: u64,
    pub(super) pieces_max: usize,
    /// In bytes; never changes.
    pub(super) block_size: u32,
    pub(super) owed: Mutex<LazyList>,
    /// Bytes on the list: 0 lets requests pass without the lock. Written under it.
    pub(super) lazy_bytes: AtomicU64,
    /// The list has grown too long. Written under the lock.
    pub(super) is_full: AtomicBool,
}

impl Shared {
    /// True when the list is not empty. Who was told of the completion of lazy zeroes sees them.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.lazy_bytes.load(Ordering::Acquire) > 0
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LazyList> {
        // Changed by calls that do not panic half-way.
        lock(&self.owed)
    }

    /// Owes `range`; false when the list is full.
    pub(super) fn defer(&self, range: ByteRange) -> bool {
        let mut owed = self.lock();
        // Two pieces may stay of those it covers.
        if owed.count() >= self.pieces_max && owed.touched(range) < 3 {
            return false;
        }
        owed.add(range);
        self.tell_all(&owed);
        true
    }

    /// The list's time, for [`Shared::written`].
    pub(super) fn now(&self) -> u64 {
        self.lock().now()
    }

    /// What was written at the front of a request that was submitted at `then` is owed no more.
    pub(super) fn written(&self, range: ByteRange, then: u64) {
        if self.any() {
            let mut owed = self.lock();
            owed.remove(range, then);
            self.tell_all(&owed);
        }
    }

    /// Lets all see what is on the list, which is locked.
    pub(super) fn tell_all(&self, owed: &LazyList) {
        self.lazy_bytes.store(owed.bytes(), Ordering::Release);
        self.is_full.store(owed.count() >= self.pieces_max, Ordering::Release);
    }

    pub(super) fn within(&self, range: ByteRange) -> Parts {
        if self.any() { self.lock().within(range) } else { Parts::new() }
    }

    pub(super) fn check(&self, range: ByteRange) -> Result<()> {
        check_range(range, self.inner.size(), self.block_size).map_err(|e| e.on(self.inner.name()))
    }
}

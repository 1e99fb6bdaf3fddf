//! A leaf whose zeroes may be owed: a list of ranges that read as zero until they are written, over one device.
//!
//! Truncation of a large volume would take minutes if every zero were written at once. Lazy zeroes are put on the list and
//! complete; `LockedQueue` stores what is owed before it flushes. Why: `docs/notes/006-mount.md`.
//!
//! What is owed hides what a write below did, until the write has completed; from then on the write shows. A write ends only what
//! was owed when it was submitted: what was zeroed while it was in flight came after it, since it may have been seen before.

mod owed;
mod queue;
#[cfg(test)]
mod tests;

use crate::block::device::{check_range, resolve_plain};
use crate::block::{
    Access, ByteRange, Container, Content, CopyPath, Counters, Device, Error, Extent, Identity, Kind, Limits,
    LimitsChange, Queue, Resolution, Result, Storage,
};
use owed::{Owed, Parts};
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shortest zeroes that are owed, in bytes, unless said otherwise: shorter ones are stored as fast as they are put on a list.
const LAZY_MIN_BYTES: u64 = 1 << 20;
/// Most pieces on the list unless said otherwise, some 5 MB. Past that lazy zeroes that would add one are stored at once, and a
/// write that goes through the locks stores some pieces before it may split another.
const PIECES_MAX: usize = 1 << 16;

/// The same leaf as the device inside, with zeroes that may be owed.
///
/// The device inside must not be used beside it: it does not know what it reads as.
pub struct Blank {
    shared: Arc<Shared>,
    tell: Option<Tell>,
    /// The view that tells nobody, unless this is it.
    plain: Option<Arc<Self>>,
}

type Tell = Arc<dyn Fn(ByteRange) + Send + Sync>;

/// What all views share.
struct Shared {
    inner: Arc<dyn Device>,
    lazy_min_bytes: u64,
    pieces_max: usize,
    /// In bytes; never changes.
    block_size: u32,
    owed: Mutex<Owed>,
    /// Bytes on the list: 0 lets requests pass without the lock. Written under it.
    owed_bytes: AtomicU64,
    /// The list has grown too long. Written under the lock.
    is_full: AtomicBool,
}

impl Blank {
    /// `inner`, a leaf. Lazy zeroes shorter than 1 MiB are stored at once.
    ///
    /// Errors: `InvalidInput` when `inner` is a map: what is owed is kept by its leaves.
    pub fn new(inner: Arc<dyn Device>) -> Result<Arc<Self>> {
        Self::with_lazy_min(inner, LAZY_MIN_BYTES)
    }

    /// The same, storing at once what is shorter than `lazy_min_bytes`.
    pub fn with_lazy_min(inner: Arc<dyn Device>, lazy_min_bytes: u64) -> Result<Arc<Self>> {
        Self::with_list(inner, lazy_min_bytes, PIECES_MAX)
    }

    /// The same with a list of about `pieces_max` ranges.
    pub fn with_list(inner: Arc<dyn Device>, lazy_min_bytes: u64, pieces_max: usize) -> Result<Arc<Self>> {
        if let Identity::Map(_) = inner.identity() {
            let text = "zeroes are owed by leaves, and this is a map; put each of its leaves under a list of its own";
            return Err(Error::new(Kind::InvalidInput, text).on(inner.name()));
        }
        let block_size = inner.limits().block_size.get();
        let (owed, owed_bytes, is_full) = (Mutex::default(), AtomicU64::new(0), AtomicBool::new(false));
        let shared = Shared { inner, lazy_min_bytes, pieces_max, block_size, owed, owed_bytes, is_full };
        let shared = Arc::new(shared);
        Ok(Arc::new(Self { shared, tell: None, plain: None }))
    }

    /// Another view of the same device and list, whose queues call `tell` with each range that they have changed, or may have
    /// when the request failed, before the completion is given out.
    ///
    /// It is called on the thread of the queue, with nothing locked.
    pub fn told(self: &Arc<Self>, tell: impl Fn(ByteRange) + Send + Sync + 'static) -> Arc<Self> {
        let plain = self.plain.clone().unwrap_or_else(|| self.clone());
        Arc::new(Self { shared: self.shared.clone(), tell: Some(Arc::new(tell)), plain: Some(plain) })
    }

    /// The device inside.
    pub fn inner(&self) -> &Arc<dyn Device> {
        &self.shared.inner
    }

    /// Bytes owed now.
    pub fn owed_bytes(&self) -> u64 {
        self.shared.owed_bytes.load(Ordering::Acquire)
    }

    /// Ranges on the list now.
    pub fn owed_ranges(&self) -> usize {
        self.shared.lock().count()
    }
}

impl Shared {
    /// True when the list is not empty. Who was told of the completion of lazy zeroes sees them.
    #[inline]
    fn owes(&self) -> bool {
        self.owed_bytes.load(Ordering::Acquire) > 0
    }

    fn lock(&self) -> MutexGuard<'_, Owed> {
        // Changed by calls that do not panic half-way.
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Owes `range`; false when the list is full.
    fn owe(&self, range: ByteRange) -> bool {
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
    fn now(&self) -> u64 {
        self.lock().now()
    }

    /// What was written at the front of a request that was submitted at `then` is owed no more.
    fn written(&self, range: ByteRange, then: u64) {
        if self.owes() {
            let mut owed = self.lock();
            owed.remove(range, then);
            self.tell_all(&owed);
        }
    }

    /// Lets all see what is on the list, which is locked.
    fn tell_all(&self, owed: &Owed) {
        self.owed_bytes.store(owed.bytes(), Ordering::Release);
        self.is_full.store(owed.count() >= self.pieces_max, Ordering::Release);
    }

    fn within(&self, range: ByteRange) -> Parts {
        if self.owes() { self.lock().within(range) } else { Parts::new() }
    }

    fn check(&self, range: ByteRange) -> Result<()> {
        check_range(range, self.inner.size(), self.block_size).map_err(|e| e.on(self.inner.name()))
    }
}

impl Device for Blank {
    fn name(&self) -> &str {
        self.inner().name()
    }
    fn identity(&self) -> Identity {
        self.inner().identity()
    }
    fn size(&self) -> u64 {
        self.inner().size()
    }
    fn read_only(&self) -> bool {
        self.inner().read_only()
    }
    fn limits(&self) -> Limits {
        self.inner().limits()
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.inner().change_limits(change)
    }
    fn generation(&self) -> u64 {
        // What was zeroed by the list alone the device inside does not know of. No such zeroes: its own number.
        self.inner().generation().wrapping_add(self.shared.now().wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
    fn copy_paths(&self) -> Vec<CopyPath> {
        let mut paths = self.inner().copy_paths();
        if self.shared.owes() {
            // The planner must look where the holes are that only the list knows.
            paths.iter_mut().for_each(|path| path.carries_holes = false);
        }
        paths
    }
    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        self.shared.check(range)?;
        let (owed, len) =
            if self.shared.owes() { self.shared.lock().front(range) } else { (false, range.len()) };
        if owed {
            Ok(Extent { len, content: Content::Hole })
        } else {
            self.inner().next_extent(range.prefix(len))
        }
    }
    fn open_medium(self: Arc<Self>) -> Result<crate::block::Medium> {
        // What is owed lies nowhere yet.
        if self.shared.owes() { Ok(crate::block::Medium::Cached) } else { self.inner().clone().open_medium() }
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let inner = self.inner().clone().open_queue()?;
        Ok(Box::new(queue::BlankQueue::new(self, inner)))
    }
    fn owes_zeroes(&self) -> bool {
        self.shared.owes() || self.inner().owes_zeroes()
    }
    fn owes_too_much(&self) -> bool {
        self.shared.is_full.load(Ordering::Relaxed) || self.inner().owes_too_much()
    }
    fn owed_zeroes(&self, within: ByteRange) -> Vec<ByteRange> {
        self.shared.within(within).into_vec()
    }
    fn owing(self: Arc<Self>, leaves: &mut Vec<Arc<dyn Device>>) {
        self.inner().clone().owing(leaves);
        if self.shared.owes() {
            // Storing what is owed changes nothing that anybody reads, so nobody is told.
            let plain: Arc<dyn Device> = self.plain.clone().unwrap_or(self);
            leaves.push(plain);
        }
    }
    fn reads_as_stored(&self, range: ByteRange) -> bool {
        self.shared.within(range).is_empty() && self.inner().reads_as_stored(range)
    }
    fn losses(&self) -> Vec<String> {
        self.inner().losses()
    }
    fn container(&self) -> Option<Container> {
        self.inner().container()
    }
    fn storage(&self) -> Storage {
        self.inner().storage()
    }
    fn allocated_bytes(&self) -> Option<u64> {
        self.inner().allocated_bytes()
    }
    fn may_wait(&self) -> bool {
        self.inner().may_wait()
    }
    fn cache_losses(&self) -> Option<u64> {
        self.inner().cache_losses()
    }
    fn drop_cache(&self) {
        self.inner().drop_cache();
    }
    fn counters(&self) -> Counters {
        self.inner().counters()
    }
    fn as_any(&self) -> &dyn Any {
        self.inner().as_any()
    }
}

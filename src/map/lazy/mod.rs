//! A leaf whose zeroes may be owed: a list of ranges that read as zero until they are written, over one device.
//!
//! Truncation of a large volume would take minutes if every zero were written at once. Lazy zeroes are put on the list
//! and complete; `LockedQueue` stores what is owed before it flushes. Why: `docs/notes/006-mount.md`.
//!
//! What is owed hides what a write below did, until the write has completed; from then on the write shows. A write ends
//! only what was owed when it was submitted: what was zeroed while it was in flight came after it, since it may have
//! been seen before.

mod list;
mod queue;
mod shared;
#[cfg(test)]
mod tests;

use crate::block::device::resolve_plain;
use crate::block::{
    Access, ByteRange, Container, Content, CopyPath, Counters, Device, Error, Extent, Identity, Kind,
    LazyZeroes, Limits, LimitsChange, Queue, Resolution, Result, Storage,
};
use shared::{Shared, Tell};
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Shortest zeroes that are owed, in bytes, unless said otherwise: shorter ones are stored as fast as they are put on a
/// list.
const LAZY_MIN_BYTES: u64 = 1 << 20;
/// Most pieces on the list unless said otherwise, some 5 MB. Past that lazy zeroes that would add one are stored at
/// once, and a write that goes through the locks stores some pieces before it may split another.
const PIECES_MAX: usize = 1 << 16;

/// The same leaf as the device inside, with zeroes that may be owed.
///
/// The device inside must not be used beside it: it does not know what it reads as.
pub struct LazyDevice {
    shared: Arc<Shared>,
    tell: Option<Tell>,
    /// The view that tells nobody, unless this is it.
    plain: Option<Arc<Self>>,
}

impl LazyDevice {
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
            let text =
                "lazy zeroes belong to leaves, and this is a map; give each of its leaves a list of its own";
            return Err(Error::new(Kind::InvalidInput, text).on(inner.name()));
        }
        if inner.lazy_zeroes().is_some() {
            let text = "it already has a list of lazy zeroes; give it only one";
            return Err(Error::new(Kind::InvalidInput, text).on(inner.name()));
        }
        let block_size = inner.limits().block_size.get();
        let (owed, lazy_bytes, is_full) = (Mutex::default(), AtomicU64::new(0), AtomicBool::new(false));
        let shared = Shared { inner, lazy_min_bytes, pieces_max, block_size, owed, lazy_bytes, is_full };
        let shared = Arc::new(shared);
        Ok(Arc::new(Self { shared, tell: None, plain: None }))
    }

    /// Another view of the same device and list, whose queues call `tell` with each range that they have changed, or
    /// may have when the request failed, before the completion is given out.
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
    pub fn lazy_bytes(&self) -> u64 {
        self.shared.lazy_bytes.load(Ordering::Acquire)
    }

    /// Ranges on the list now.
    pub fn lazy_ranges(&self) -> usize {
        self.shared.lock().count()
    }
}

impl LazyZeroes for LazyDevice {
    fn any(&self) -> bool {
        self.shared.any()
    }
    fn too_many(&self) -> bool {
        self.shared.is_full.load(Ordering::Relaxed)
    }
    fn within(&self, range: ByteRange) -> Vec<ByteRange> {
        self.shared.within(range).into_vec()
    }
    fn stored_through(&self) -> Option<Arc<dyn Device>> {
        self.plain.clone().map(|plain| plain as Arc<dyn Device>)
    }
}

impl Device for LazyDevice {
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
        if self.shared.any() {
            // The planner must look where the holes are that only the list knows.
            paths.iter_mut().for_each(|path| path.carries_holes = false);
        }
        paths
    }
    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        self.shared.check(range)?;
        let (owed, len) =
            if self.shared.any() { self.shared.lock().front(range) } else { (false, range.len()) };
        if owed {
            Ok(Extent { len, content: Content::Hole })
        } else {
            self.inner().next_extent(range.prefix(len))
        }
    }
    fn tells_holes(&self) -> bool {
        self.inner().tells_holes()
    }
    fn zeroes_cheaply(&self) -> bool {
        self.inner().zeroes_cheaply()
    }
    fn open_medium(self: Arc<Self>) -> Result<crate::block::Medium> {
        // What is owed lies nowhere yet.
        if self.shared.any() { Ok(crate::block::Medium::Cached) } else { self.inner().clone().open_medium() }
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let inner = self.inner().clone().open_queue()?;
        Ok(Box::new(queue::LazyQueue::new(self.shared.clone(), self.tell.clone(), inner)))
    }
    fn lazy_zeroes(&self) -> Option<&dyn LazyZeroes> {
        Some(self)
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

//! Lazy zeroes: ranges that read as zero and are not stored yet. Truncating a large volume would take minutes if each
//! zero were written at once; instead they are kept on a list, and stored before the next flush
//! ([`super::lock::LockedQueue`]).
//!
//! Only leaves keep them: a leg of a mirror may have some where the other has none.

use super::places::places;
use super::{Access, ByteRange, Device};
use std::sync::Arc;

/// The lazy zeroes of a leaf.
pub trait LazyZeroes {
    /// True when there are some: a flush stores them first. Costs one atomic load.
    fn any(&self) -> bool;

    /// True when they have become so many ranges that a write stores some before it adds to them. Costs one atomic
    /// load.
    fn too_many(&self) -> bool;

    /// The parts of `range` that are lazy, in order, apart from each other; whole blocks.
    fn within(&self, range: ByteRange) -> Vec<ByteRange>;

    /// The device through which they are stored, where it is not the one that was asked: storing changes nothing that
    /// can be read, so a view that reports changes stays out of it.
    fn stored_through(&self) -> Option<Arc<dyn Device>> {
        None
    }
}

/// True when zeroes of a device or of its legs are lazy.
pub fn any(device: &dyn Device) -> bool {
    device.lazy_zeroes().is_some_and(LazyZeroes::any) || device.legs().iter().any(|leg| any(&**leg))
}

/// True when a write to a device or to one of its legs has to store some first.
pub fn too_many(device: &dyn Device) -> bool {
    device.lazy_zeroes().is_some_and(LazyZeroes::too_many) || device.legs().iter().any(|leg| too_many(&**leg))
}

/// The parts of a leaf's range that are lazy.
pub fn within(leaf: &dyn Device, range: ByteRange) -> Vec<ByteRange> {
    leaf.lazy_zeroes().map_or_else(Vec::new, |lazy| lazy.within(range))
}

/// The leaves of a device that have lazy zeroes now, each as the device through which they are stored.
pub fn leaves(device: &Arc<dyn Device>) -> Vec<Arc<dyn Device>> {
    let mut list = Vec::new();
    add_leaves(device, &mut list);
    list
}

fn add_leaves(device: &Arc<dyn Device>, list: &mut Vec<Arc<dyn Device>>) {
    device.legs().iter().for_each(|leg| add_leaves(leg, list));
    if let Some(lazy) = device.lazy_zeroes().filter(|lazy| lazy.any()) {
        list.push(lazy.stored_through().unwrap_or_else(|| device.clone()));
    }
}

/// True when what is stored in `range` is what it reads as. Asked with the range's locks held, before a native copy
/// takes the range as its source.
pub fn reads_as_stored(device: &Arc<dyn Device>, range: ByteRange) -> bool {
    if !any(&**device) {
        return true;
    }
    let is_stored = |leaf: &Arc<dyn Device>, range| within(&**leaf, range).is_empty();
    // A range that cannot be resolved is not known to be.
    places(device, range, Access::Write)
        .is_ok_and(|runs| runs.iter().all(|run| is_stored(&run.device, run.range)))
}

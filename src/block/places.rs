//! The walk from a device down to its leaves: the one answer to "where does this range lie?", and to what two devices
//! share.

use super::device::LeafSpace;
use super::{Access, ByteRange, Device, Error, Identity, Kind, LeafId, Overlap, Result, Storage};
use std::sync::Arc;

/// A run of a device's bytes, where one leg of it lies. Of a mirror that is written, each leg has one.
pub struct LeafRun {
    /// Offset of the run on the device that was asked, in bytes.
    pub at: u64,
    /// A leaf: a device that resolves to itself.
    pub device: Arc<dyn Device>,
    /// The run on that device.
    pub range: ByteRange,
}

impl LeafRun {
    /// The run on the canonical leaf, which a partition is a part of. `None`: the device below is a map that does not
    /// show its legs.
    pub fn on_leaf(&self) -> Option<(LeafId, ByteRange)> {
        on_leaf(&self.device, self.range)
    }
}

/// Where `range` of `device` lies, in order; on a leaf that is the leaf itself. The mapping is not pinned: it is the
/// one of this moment.
///
/// Errors: those of [`Device::resolve`].
pub fn places(device: &Arc<dyn Device>, range: ByteRange, access: Access) -> Result<Vec<LeafRun>> {
    if matches!(device.identity(), Identity::Leaf { .. }) {
        return Ok(vec![LeafRun { at: range.offset(), device: device.clone(), range }]);
    }
    let resolution = device.clone().resolve(range, access)?;
    let mut list = Vec::with_capacity(resolution.pieces.len());
    let mut at = range.offset();
    for piece in &resolution.pieces {
        list.extend(piece.legs.iter().map(|leg| LeafRun {
            at,
            device: leg.device.clone(),
            range: ByteRange::between(leg.offset, leg.offset.saturating_add(piece.len)),
        }));
        at += piece.len;
    }
    resolution.guard.release();
    Ok(list)
}

/// A range of a leaf's handle on the canonical leaf; `None` for a map.
pub fn on_leaf(device: &Arc<dyn Device>, range: ByteRange) -> Option<(LeafId, ByteRange)> {
    let Identity::Leaf { leaf, base } = device.identity() else { return None };
    let place = |offset: u64| base.saturating_add(offset);
    Some((leaf, ByteRange::between(place(range.offset()), place(range.end()))))
}

/// Whether both ends of a copy are one device, so that one handle stands for both.
///
/// Errors: `Overlap` for two namespaces of equal names behind different controllers. They may be one namespace by two
/// ways or two clones, and nobody here can tell: taken for one, a clone would be copied onto itself; for two, a range
/// onto its source.
pub fn is_one_device(a: &Arc<dyn Device>, b: &Arc<dyn Device>) -> Result<bool> {
    let identity = a.identity();
    if identity != b.identity() {
        return Ok(false);
    }
    // The same controller's is one object in this process, maybe seen through two views of it.
    let by_name = matches!(identity, Identity::Leaf { leaf, .. } if leaf.space == LeafSpace::Namespace);
    if by_name && !std::ptr::addr_eq(a.as_any(), b.as_any()) {
        let text = format!(
            "{} and {} report the same namespace identifier, but so do two targets that are clones of each other; \
             use one URL on both sides if they are the same, else give one target its own NQN, serial number and UUID",
            a.name(),
            b.name()
        );
        return Err(Error::new(Kind::Overlap, text));
    }
    Ok(true)
}

/// Whether two devices hold some of the same bytes: one device, a disk and its partition, a loop device and its file.
///
/// Errors: as of [`is_one_device`]; those of the devices.
pub fn share_bytes(a: &Arc<dyn Device>, b: &Arc<dyn Device>) -> Result<Overlap> {
    if is_one_device(a, b)? {
        return Ok(Overlap::Yes("they are one device".to_owned()));
    }
    Ok(storage_of(a)?.overlap(&storage_of(b)?))
}

/// What a device is stored in; a map in what its legs are.
///
/// Errors: those of resolving a map.
pub fn storage_of(device: &Arc<dyn Device>) -> Result<Storage> {
    if !matches!(device.identity(), Identity::Map(_)) {
        return Ok(device.storage());
    }
    let mut storage = Storage::default();
    for run in places(device, ByteRange::to(device.size()), Access::Write)? {
        storage.add(run.at, run.range, &run.device.storage());
    }
    Ok(storage)
}

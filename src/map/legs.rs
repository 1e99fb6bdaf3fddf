//! The legs of a map, and the layout over them.

use super::mapping::Mapping;
use crate::block::device::check_range;
use crate::block::{ByteRange, Device, Error, Kind, Limits, Result};
use std::sync::Arc;

/// What a map, its queues and its guards share.
pub(super) struct Legs<M> {
    pub(super) name: String,
    pub(super) devices: Vec<Arc<dyn Device>>,
    pub(super) size: u64,
    /// Of all legs; never changes.
    pub(super) block_size: u32,
    pub(super) mapping: M,
}

impl<M: Mapping> Legs<M> {
    pub(super) fn check(&self, range: ByteRange) -> Result<()> {
        check_range(range, self.size, self.block_size).map_err(|e| e.on(&self.name))
    }

    /// A copy reached the map's queue instead of its leaves.
    pub(super) fn copy_refused(&self) -> Error {
        let text = "a map does not copy by itself: resolve the range and copy on its leaves";
        Error::new(Kind::Unsupported, text).on(&self.name)
    }
}

/// The smallest of the legs' limits.
pub(super) fn stacked(devices: &[Arc<dyn Device>]) -> Limits {
    let all = devices.iter().map(|leg| leg.limits());
    all.reduce(Limits::stack).expect("a map has a leg")
}

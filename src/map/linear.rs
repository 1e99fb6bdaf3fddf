//! Devices end to end: each begins where the one before it ends.

use super::layer::{Layer, Ready};
use super::mapping::{Mapping, OnLeg, Part, Parts};
use crate::block::{ByteRange, Device, LEN_MAX, Result};
use smallvec::smallvec;
use std::sync::Arc;

/// Devices end to end.
pub type Linear = Layer<EndToEnd>;

impl Layer<EndToEnd> {
    /// The legs one after the other. Sizes are those of now.
    ///
    /// Errors: `InvalidInput` without a leg, when a leg's size is not a multiple of the largest block size, or when all
    /// together pass 2^63 - 1 bytes; `Overlap` when legs share blocks.
    pub fn new(name: impl Into<String>, legs: impl Into<Vec<Arc<dyn Device>>>) -> Result<Self> {
        let ready = Ready::new(name, legs)?;
        let mut starts = Vec::with_capacity(ready.legs.len());
        let mut size = 0_u64;
        for leg in &ready.legs {
            ready.check_whole(leg.name(), leg.size())?;
            starts.push(size);
            size = size.checked_add(leg.size()).filter(|&s| s <= LEN_MAX).ok_or_else(|| {
                let sizes: Vec<String> = ready.legs.iter().map(|leg| leg.size().to_string()).collect();
                ready.invalid(format!(
                    "{} bytes together exceed the largest device size ({LEN_MAX} bytes)",
                    sizes.join(" and ")
                ))
            })?;
        }
        ready.layer(size, EndToEnd { starts, size })
    }
}

/// The layout of [`Linear`].
pub struct EndToEnd {
    /// Where each leg begins, in bytes.
    starts: Vec<u64>,
    size: u64,
}

impl Mapping for EndToEnd {
    fn parts(&self, range: ByteRange) -> Parts {
        let mut parts = Parts::new();
        // The last leg that begins at or before the range.
        let first = self.starts.partition_point(|&start| start <= range.offset()).saturating_sub(1);
        for leg in first..self.starts.len() {
            let start = self.starts[leg];
            let end = self.starts.get(leg + 1).copied().unwrap_or(self.size);
            if start >= range.end() && !parts.is_empty() {
                break;
            }
            let here = ByteRange::between(range.offset().max(start), range.end().min(end).max(start));
            if here.is_empty() && !range.is_empty() {
                continue; // a leg of no bytes
            }
            parts.push(Part { range: here, legs: smallvec![OnLeg { leg, offset: here.offset() - start }] });
        }
        parts
    }
}

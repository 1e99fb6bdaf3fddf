//! Devices side by side: chunk after chunk goes to one leg after the other.

use super::layer::{Layer, Ready};
use super::mapping::{Mapping, OnLeg, Part, Parts};
use crate::block::{ByteRange, Device, LEN_MAX, Result};
use smallvec::smallvec;
use std::num::NonZeroU64;
use std::sync::Arc;

/// Most chunks: bounds what a resolution of the whole device takes in memory.
const CHUNKS_MAX: u64 = 1 << 20;

/// Devices side by side.
pub type Stripe = Layer<SideBySide>;

impl Layer<SideBySide> {
    /// Chunks of `chunk_bytes`, the first on the first leg. What a leg holds past its last whole chunk is not used, nor
    /// what it holds more than the smallest.
    ///
    /// Errors: `InvalidInput` without a leg, when `chunk_bytes` is not a multiple of the largest block size, when no
    /// leg holds a chunk, or when there are more than 1 Mi chunks; `Overlap` when legs share blocks.
    pub fn new(
        name: impl Into<String>,
        legs: impl Into<Vec<Arc<dyn Device>>>,
        chunk_bytes: NonZeroU64,
    ) -> Result<Self> {
        let ready = Ready::new(name, legs)?;
        ready.check_whole("a chunk", chunk_bytes.get())?;
        let smallest = ready.legs.iter().map(|leg| leg.size()).min().unwrap_or(0);
        let rows = smallest / chunk_bytes.get();
        let legs = ready.legs.len() as u64;
        let size = rows.checked_mul(chunk_bytes.get()).and_then(|n| n.checked_mul(legs)).unwrap_or(u64::MAX);
        if rows == 0 {
            return Err(ready
                .invalid(format!("a chunk of {chunk_bytes} bytes is longer than a leg ({smallest} bytes)")));
        }
        if rows * legs > CHUNKS_MAX || size > LEN_MAX {
            let chunks = rows.saturating_mul(legs);
            return Err(ready.invalid(format!(
                "{chunks} chunks are more than the {CHUNKS_MAX} allowed; use longer chunks"
            )));
        }
        ready.layer(size, SideBySide { legs, chunk_bytes })
    }
}

/// The layout of [`Stripe`].
pub struct SideBySide {
    legs: u64,
    chunk_bytes: NonZeroU64,
}

impl SideBySide {
    /// Where a byte lies: chunk n is the (n / legs)th of leg n % legs.
    fn place(&self, at: u64) -> OnLeg {
        let (chunk, within) = (at / self.chunk_bytes, at % self.chunk_bytes);
        let leg = usize::try_from(chunk % self.legs).expect("below the number of legs, which is a usize");
        OnLeg { leg, offset: chunk / self.legs * self.chunk_bytes.get() + within }
    }
}

impl Mapping for SideBySide {
    fn parts(&self, range: ByteRange) -> Parts {
        let mut parts = Parts::new();
        let mut rest = range;
        loop {
            let here = rest.prefix(self.chunk_bytes.get() - rest.offset() % self.chunk_bytes);
            parts.push(Part { range: here, legs: smallvec![self.place(here.offset())] });
            rest = rest.after(here.len());
            if rest.is_empty() {
                return parts;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_go_from_leg_to_leg() {
        let three = SideBySide { legs: 3, chunk_bytes: NonZeroU64::new(8).unwrap() };
        let of = |offset: u64, end: u64| {
            let parts = three.parts(ByteRange::between(offset, end));
            parts.iter().map(|p| (p.range.len(), p.legs[0].leg, p.legs[0].offset)).collect::<Vec<_>>()
        };
        assert_eq!(of(0, 8), [(8, 0, 0)]);
        assert_eq!(of(7, 9), [(1, 0, 7), (1, 1, 0)]);
        assert_eq!(of(23, 33), [(1, 2, 7), (8, 0, 8), (1, 1, 8)]);
        assert_eq!(of(24, 24), [(0, 0, 8)]);
    }
}

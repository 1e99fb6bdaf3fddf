//! Seeded world and test devices.
//!
//! Test devices are ordinary devices; those in [`faults`] and [`miscopy`] wrap another. A wrapper around a leaf is the
//! same leaf: it has its identity (so that locks and overlap checks see one device) and resolves to itself, so that
//! copies go through it. A wrapper around a map resolves to the map's leaves: copies go round it, so to disturb copies
//! wrap the leaves.
//!
//! **Copies between wrapped devices.** The destination's queue counts the copy as a copy; before it hands it down it
//! asks each wrapper around the source, where it counts as a read and may fail, and replaces the source by what is
//! inside. A driver that is not wrapped does not know a wrapped source and answers `Unsupported`: the copy steps down
//! to read and write, and the reads go through the wrapper. So a fault on the source is never passed by.

pub mod disk;
pub mod faults;
pub mod miscopy;
mod through;

pub use disk::VolatileDisk;
pub use faults::{CheckWrite, DelayDevice, ErrorDevice, Fault, FaultPlan, Ops};
pub use miscopy::{CopyBug, MiscopyDevice};

/// Seeded numbers (SplitMix64): the same seed gives the same numbers for ever.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts at `seed`; any value will do.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }

    /// An index below `limit`, which is not 0.
    pub fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).expect("below a usize")
    }
}

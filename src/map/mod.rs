//! One device from several, or from one that may owe its zeroes.
//!
//! Plain requests (read, write, zero, discard, compare, flush) go through a map's queue, which fans them out. Copies do
//! not: they go to the leaves that `resolve` names, and what happened there comes back through the guard.

pub mod blank;
mod fan;
pub mod linear;
pub mod mirror;

pub use blank::Blank;
pub use linear::Linear;
pub use mirror::Mirror;

use crate::block::limits::{LimitsCell, Pair};
use crate::block::places::{LeafRun, places};
use crate::block::{
    Access, ByteRange, Device, Error, Guard, GuardDuty, Kind, LegResult, Limits, LimitsChange, Resolution,
    Result,
};
use smallvec::SmallVec;
use std::sync::Arc;

/// The soft limits of a map itself, on top of what its legs allow at the moment.
struct OwnLimits(LimitsCell);

impl OwnLimits {
    /// No restriction below the legs' hardware values.
    fn new(legs: &[Arc<dyn Device>; 2]) -> Self {
        let hw = stacked(legs);
        let open = |p: Option<_>| p.map_or(Pair::NONE, Pair::hw);
        Self(LimitsCell::new(Limits {
            copy_offload: hw.copy_max_bytes.get_hw().is_some(),
            copy_max_bytes: open(hw.copy_max_bytes.get_hw()),
            copy_max_range_bytes: open(hw.copy_max_range_bytes.get_hw()),
            copy_max_nr_ranges: hw.copy_max_nr_ranges.get_hw().map_or(Pair::NONE, Pair::hw),
            ..hw
        }))
    }

    /// The smallest of the map's own and its legs' present limits.
    fn get(&self, legs: &[Arc<dyn Device>; 2]) -> Limits {
        self.0.get().stack(stacked(legs))
    }

    fn change(&self, legs: &[Arc<dyn Device>; 2], change: LimitsChange) -> Result<Limits> {
        self.0.change(change)?;
        Ok(self.get(legs))
    }
}

fn stacked(legs: &[Arc<dyn Device>; 2]) -> Limits {
    legs[0].limits().stack(legs[1].limits())
}

/// One number from several: differs when any of them does, but for chance.
fn mix_generations(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |h: u64, &n| (h ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}

/// Refuses legs that share bytes of a leaf: a write to one would change the other behind the map's back.
///
/// A mirror below shows the leg it reads from only, so two maps over one mirror leg are not found here.
fn refuse_shared_leaves(name: &str, legs: &[Arc<dyn Device>; 2]) -> Result<()> {
    let mut runs = [const { Vec::new() }; 2];
    for (leg, found) in legs.iter().zip(&mut runs) {
        *found = places(leg, ByteRange::to(leg.size()), Access::Read)?;
    }
    let on_leaf = |runs: &Vec<LeafRun>| runs.iter().filter_map(LeafRun::on_leaf).collect::<Vec<_>>();
    let [one, other] = runs.each_ref().map(on_leaf);
    let shared = one.iter().any(|a| other.iter().any(|b| a.0 == b.0 && a.1.overlaps(b.1)));
    if shared {
        return Err(Error::new(
            Kind::Overlap,
            format!(
                "the legs {} and {} share blocks of one device; give each its own",
                legs[0].name(),
                legs[1].name()
            ),
        )
        .on(name));
    }
    Ok(())
}

/// A copy reached a map's queue instead of its leaves.
fn copy_refused(name: &str) -> Error {
    Error::new(Kind::Unsupported, "a map does not copy by itself: resolve the range and copy on its leaves")
        .on(name)
}

/// The shape of one leg's resolution: length and number of legs of each of its pieces.
type Shape = SmallVec<[(u64, usize); 1]>;

fn shape(resolution: &Resolution) -> Shape {
    resolution.pieces.iter().map(|p| (p.len, p.legs.len())).collect()
}

/// Tells one leg what was written, in its own numbers; the good prefix of its part of the range.
fn commit_leg(guard: Guard, shape: &Shape, written: &[LegResult]) -> (u64, Result<()>) {
    if let Some(result) = guard.commit(written) {
        return result;
    }
    // A plain device: its own results stand. Every leg of a piece must hold it.
    let mut good = 0;
    for (piece, &(len, legs)) in shape.iter().enumerate() {
        let on_leg = |leg| {
            let of_it = written.iter().filter(|w| w.piece == piece && w.leg == leg);
            of_it.map(|w| w.good_bytes.min(len)).min().unwrap_or(0)
        };
        let here = (0..legs).map(on_leg).min().unwrap_or(0);
        good += here;
        if here < len {
            let total: u64 = shape.iter().map(|&(len, _)| len).sum();
            let error = Error::new(Kind::Io, format!("{good} of {total} bytes are known to be written"));
            return (good, Err(error));
        }
    }
    (good, Ok(()))
}

/// Guard of a resolution for reading: pins, and has nothing to mark.
struct ReadGuard {
    legs: SmallVec<[Guard; 2]>,
    /// The mirror whose in-sync state chose the legs, and its generation then.
    chosen_by: Option<(Arc<Mirror>, u64)>,
}

impl GuardDuty for ReadGuard {
    fn still_valid(&self) -> bool {
        self.legs.iter().all(Guard::still_valid)
            && self.chosen_by.as_ref().is_none_or(|(m, then)| m.mapping_generation() == *then)
    }
    fn commit(self: Box<Self>, _: &[LegResult]) -> (u64, Result<()>) {
        self.release();
        (0, Ok(()))
    }
    fn release(self: Box<Self>) {
        for guard in self.legs {
            guard.release();
        }
    }
}

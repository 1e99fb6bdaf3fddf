//! The mappings of one step: pinned before its locks are taken, told at its end what was written.

use super::facts::{cover, is_leaf};
use super::plan::{LeafNo, Step};
use crate::block::{Access, ByteRange, Device, Error, Guard, Kind, LegResult, Method, Resolution, Result};
use smallvec::SmallVec;
use std::sync::Arc;

/// Good prefix and result of each leg of a step.
pub(super) type Results = SmallVec<[(u64, Result<()>); 1]>;

/// What a step amounts to, as the destination sees it.
pub(super) struct Committed {
    /// Length of its good prefix, in bytes.
    pub(super) good: u64,
    pub(super) result: Result<()>,
    /// Good bytes that the first leg does not have, and the method that moved them to another.
    pub(super) more: Option<(Method, u64)>,
}

/// The mappings of one step, held from before the locks until after the last byte.
pub(super) struct Pins {
    source: SmallVec<[Guard; 1]>,
    dest: Guard,
    /// Bytes before the step that the destination guard covers too, because its blocks are larger.
    skip: u64,
    /// Lengths of the destination guard's pieces, in bytes.
    pieces: SmallVec<[u64; 1]>,
}

impl Pins {
    /// Pins the mappings of a step on both ends; `None` when they are not what the step was planned on. `leaf` opens a
    /// number of the plan.
    pub(super) fn take(
        source: &Arc<dyn Device>,
        dest: &Arc<dyn Device>,
        step: &Step,
        leaf: impl Fn(LeafNo) -> Arc<dyn Device>,
    ) -> Result<Option<Self>> {
        let mut pins =
            Self { source: SmallVec::new(), dest: Guard::none(), skip: 0, pieces: SmallVec::new() };
        if !is_leaf(source) {
            for part in &step.sources {
                let wanted = [(leaf(step.source_leaf), part.leaf_offset)];
                let range = ByteRange::between(part.offset, part.offset + part.len);
                let Some(Pinned { guard, .. }) = pin_range(source, range, Access::Read, &wanted)? else {
                    return Ok(None);
                };
                pins.source.push(guard);
            }
        }
        if !is_leaf(dest) {
            let wanted: SmallVec<[_; 2]> =
                step.legs.iter().map(|l| (leaf(l.place.leaf), l.place.offset)).collect();
            let found = pin_range(dest, step.dest_range(), Access::Write, &wanted)?;
            let Some(found) = found else {
                pins.source.into_iter().for_each(Guard::release);
                return Ok(None);
            };
            (pins.dest, pins.skip, pins.pieces) = (found.guard, found.skip, found.pieces);
        }
        Ok(Some(pins))
    }

    pub(super) fn still_valid(&self) -> bool {
        self.dest.still_valid() && self.source.iter().all(Guard::still_valid)
    }

    /// Lets go of mappings through which nothing was written.
    pub(super) fn release(self) {
        self.source.into_iter().for_each(Guard::release);
        self.dest.release();
    }

    /// Tells the map what was written.
    pub(super) fn commit(self, step: &Step, mut results: Results, dest: &str) -> Committed {
        let best = results.iter().map(|(good, _)| *good).max().unwrap_or(0);
        let mut legs: SmallVec<[LegResult; 2]> = SmallVec::new();
        for (leg, &(good, _)) in results.iter().enumerate() {
            let mut left = if good >= step.len { u64::MAX } else { self.skip + good };
            for (piece, &len) in self.pieces.iter().enumerate() {
                let good_bytes = left.min(len);
                legs.push(LegResult { piece, leg, good_bytes });
                left = left.saturating_sub(len);
            }
        }
        let skip = self.skip;
        self.source.into_iter().for_each(Guard::release);
        let Some((good, committed)) = self.dest.commit(&legs) else {
            let (good, result) = results.swap_remove(0);
            return Committed { good, result, more: None };
        };
        let good = good.saturating_sub(skip).min(step.len);
        let first = results[0].0;
        let other = results.iter().position(|r| good > first && r.0 == best);
        let more = other.map(|leg| (step.legs[leg].method, good - first));
        if good == step.len && committed.is_ok() {
            return Committed { good, result: Ok(()), more };
        }
        // What the failed leg said is the cause; the map's own words stand in where no leg said anything.
        let cause = results.into_iter().find_map(|(_, r)| r.err());
        let lost = || Error::new(Kind::Io, "the map did not accept the whole range").on(dest);
        Committed { good, result: Err(cause.or(committed.err()).unwrap_or_else(lost)), more }
    }
}

/// A held mapping.
struct Pinned {
    guard: Guard,
    /// Bytes it covers before the range asked for.
    skip: u64,
    /// Lengths of its pieces, in bytes.
    pieces: SmallVec<[u64; 1]>,
}

/// Resolves a range and holds it when it lies on just the wanted places, in one run or in several that follow each
/// other there.
fn pin_range(
    device: &Arc<dyn Device>,
    range: ByteRange,
    access: Access,
    wanted: &[(Arc<dyn Device>, u64)],
) -> Result<Option<Pinned>> {
    let covered = cover(device, range);
    let skip = range.offset() - covered.offset();
    let Resolution { pieces, guard } = device.clone().resolve(covered, access)?;
    let mut at = 0;
    let same = pieces.iter().all(|piece| {
        let here = at;
        at += piece.len;
        piece.legs.len() == wanted.len()
            && piece.legs.iter().zip(wanted).all(|(leg, (device, offset))| {
                Arc::ptr_eq(&leg.device, device) && leg.offset + skip == offset + here
            })
    });
    if same {
        return Ok(Some(Pinned { guard, skip, pieces: pieces.iter().map(|p| p.len).collect() }));
    }
    guard.release();
    Ok(None)
}

//! Copies that are one request of a device: what a front end hands down at once, without planning.

use super::facts::is_leaf;
use crate::block::{ByteRange, CopyPath, Device, Method};
use smallvec::SmallVec;
use std::sync::Arc;

/// The method by which one request of `dest` moves all of `sources`, in order, to `range`, and the sources with
/// neighbours joined.
///
/// `None`: the planner has to cut it: maps, edges that are not aligned, more than one request takes, source and
/// destination overlapping, or holes that the method does not carry.
pub fn one_request(
    source: &Arc<dyn Device>,
    sources: &[ByteRange],
    dest: &Arc<dyn Device>,
    range: ByteRange,
) -> Option<(Method, SmallVec<[ByteRange; 1]>)> {
    if !is_leaf(source) || !is_leaf(dest) {
        return None;
    }
    let limits = source.limits().stack(dest.limits());
    if !limits.can_copy() {
        return None;
    }
    let path = shared(&source.copy_paths(), &dest.copy_paths())?;
    let mut joined: SmallVec<[ByteRange; 1]> = smallvec::smallvec![*sources.first()?];
    for &range in &sources[1..] {
        match joined.last_mut() {
            Some(last) if last.end() == range.offset() => {
                *last = ByteRange::between(last.offset(), range.end());
            }
            _ => joined.push(range),
        }
    }
    let overlaps = source.identity() == dest.identity() && joined.iter().any(|r| r.overlaps(range));
    let aligned = range.is_aligned(path.align) && joined.iter().all(|r| r.is_aligned(path.align));
    let bytes = limits.copy_max_bytes.get()?.get().min(path.max_bytes);
    let range_bytes = limits.copy_max_range_bytes.get()?.get();
    let fits = range.len() <= bytes
        && joined.len() <= usize::try_from(limits.copy_max_nr_ranges.get()?.get()).ok()?
        && joined.iter().all(|r| r.len() <= range_bytes);
    (aligned && fits && !overlaps).then_some((path.method, joined))
}

/// The best method both ends share, if it is worth using and carries holes by itself.
fn shared(source: &[CopyPath], dest: &[CopyPath]) -> Option<CopyPath> {
    let best = dest.iter().find_map(|mine| source.iter().find_map(|theirs| mine.shared(theirs)))?;
    (best.preferred && best.carries_holes).then_some(best)
}

//! What two devices say about a copy, in the form the planner wants.

use super::Job;
use super::plan::{Facts, LeafFacts, LeafNo, Place, Run};
use crate::block::places::{LeafRun, is_one_device, places};
use crate::block::{Access, ByteRange, Device, Error, Extent, Identity, Kind, LeafId, Result};
use std::sync::Arc;

/// Longest range resolved at once, in bytes: bounds the pieces held in memory on a fragmented map.
const RESOLVE_MAX: u64 = 1 << 40;

/// Facts read from two live devices. Mappings are looked up, not pinned: a run pins them again, step by step.
pub struct DeviceFacts {
    source: Arc<dyn Device>,
    dest: Arc<dyn Device>,
    leaves: Vec<Known>,
    source_run: Option<(ByteRange, Run)>,
    dest_run: Option<(ByteRange, Run)>,
}

/// A leaf, and what was asked of it so far.
struct Known {
    device: Arc<dyn Device>,
    facts: LeafFacts,
    tells_holes: Option<bool>,
    zeroes_cheaply: Option<bool>,
}

impl DeviceFacts {
    /// Facts about a copy from `source` to `dest`.
    pub fn new(source: Arc<dyn Device>, dest: Arc<dyn Device>) -> Self {
        Self { source, dest, leaves: Vec::new(), source_run: None, dest_run: None }
    }

    /// The device behind a leaf number of this plan.
    pub fn leaf_device(&self, leaf: LeafNo) -> &Arc<dyn Device> {
        &self.leaves[leaf.index()].device
    }

    fn run(&mut self, range: ByteRange, access: Access) -> Result<Run> {
        let cached = match access {
            Access::Read => &self.source_run,
            Access::Write => &self.dest_run,
        };
        if let Some((held, run)) = cached
            && held.contains(range.prefix(1))
        {
            return Ok(run.from(range.offset() - held.offset()).cut(range.len()));
        }
        let device = match access {
            Access::Read => self.source.clone(),
            Access::Write => self.dest.clone(),
        };
        if is_leaf(&device) {
            let leaf = self.leaf_no(&device);
            return Ok(Run {
                len: range.len(),
                legs: smallvec::smallvec![Place { leaf, offset: range.offset() }],
            });
        }
        // Up to the end of the device, so that many small segments share one answer.
        let rest = ByteRange::between(range.offset(), device.size().max(range.end())).prefix(RESOLVE_MAX);
        let covered = cover(&device, rest);
        let skip = range.offset() - covered.offset();
        let resolution = device.resolve(covered, access)?;
        let piece = &resolution.pieces[0];
        let legs = piece
            .legs
            .iter()
            .map(|leg| Place { leaf: self.leaf_no(&leg.device), offset: leg.offset })
            .collect();
        let run = Run { len: piece.len, legs }.from(skip);
        resolution.guard.release();
        let held = ByteRange::between(range.offset(), range.offset() + run.len);
        let answer = run.clone().cut(range.len());
        match access {
            Access::Read => self.source_run = Some((held, run)),
            Access::Write => self.dest_run = Some((held, run)),
        }
        Ok(answer)
    }

    fn leaf_no(&mut self, device: &Arc<dyn Device>) -> LeafNo {
        let at = self.leaves.iter().position(|l| Arc::ptr_eq(&l.device, device)).unwrap_or_else(|| {
            let facts = LeafFacts {
                paths: device.copy_paths(),
                limits: device.limits(),
                size: device.size(),
                identity: device.identity(),
            };
            let device = device.clone();
            self.leaves.push(Known { device, facts, tells_holes: None, zeroes_cheaply: None });
            self.leaves.len() - 1
        });
        LeafNo::new(at)
    }
}

impl Facts for DeviceFacts {
    fn source_run(&mut self, range: ByteRange) -> Result<Run> {
        self.run(range, Access::Read)
    }

    fn dest_run(&mut self, range: ByteRange) -> Result<Run> {
        self.run(range, Access::Write)
    }

    fn source_content(&mut self, range: ByteRange) -> Result<Extent> {
        content(&self.source, range)
    }

    fn leaf(&self, leaf: LeafNo) -> &LeafFacts {
        &self.leaves[leaf.index()].facts
    }

    fn tells_holes(&mut self, leaf: LeafNo) -> bool {
        let Known { device, tells_holes, .. } = &mut self.leaves[leaf.index()];
        *tells_holes.get_or_insert_with(|| device.tells_holes())
    }

    fn zeroes_cheaply(&mut self, leaf: LeafNo) -> bool {
        let Known { device, zeroes_cheaply, .. } = &mut self.leaves[leaf.index()];
        *zeroes_cheaply.get_or_insert_with(|| device.zeroes_cheaply())
    }
}

/// True for a device that is a leaf itself.
pub(super) fn is_leaf(device: &Arc<dyn Device>) -> bool {
    matches!(device.identity(), Identity::Leaf { .. })
}

/// The range out to the device's block borders.
pub(super) fn cover(device: &Arc<dyn Device>, range: ByteRange) -> ByteRange {
    let block = u64::from(device.limits().block_size.get());
    let start = range.offset() - range.offset() % block;
    ByteRange::between(start, range.end().next_multiple_of(block).min(device.size().max(range.end())))
}

/// What lies at the front of a range, on a device whose blocks may be larger than its edges.
pub(crate) fn content(device: &Arc<dyn Device>, range: ByteRange) -> Result<Extent> {
    let covered = cover(device, range);
    let skip = range.offset() - covered.offset();
    let extent = device.next_extent(covered)?;
    Ok(Extent { len: extent.len.saturating_sub(skip).min(range.len()), content: extent.content })
}

/// Makes sure that a job between two devices made of the same leaves (a disk and its partition, a map and its leg) does
/// not read bytes it also writes. One device copied to itself is the job's own concern.
///
/// Errors: `Overlap`, also for two namespaces that call themselves the same.
pub(super) fn check_apart(source: &Arc<dyn Device>, dest: &Arc<dyn Device>, job: &Job) -> Result<()> {
    if is_one_device(source, dest)? {
        return Ok(());
    }
    let (from, to) = (leaf_ids(source)?, leaf_ids(dest)?);
    if !from.iter().any(|id| to.contains(id)) {
        return Ok(());
    }
    let (mut read, mut written) = (Vec::new(), Vec::new());
    for segment in job.segments() {
        leaf_ranges(source, segment.source_range(), Access::Read, &mut read)?;
        leaf_ranges(dest, segment.dest_range(), Access::Write, &mut written)?;
    }
    written.sort_unstable();
    for (leaf, range) in read {
        // Destinations of a job lie apart, so the first that ends after the start is the only one to look at.
        let at = written.partition_point(|(l, w)| (*l, w.end()) <= (leaf, range.offset()));
        if let Some((l, w)) = written.get(at)
            && *l == leaf
            && w.overlaps(range)
        {
            let text = format!(
                "{} and {} share storage, and this copy would overwrite what it reads",
                source.name(),
                dest.name()
            );
            return Err(Error::new(Kind::Overlap, text).at(*w));
        }
    }
    Ok(())
}

/// The leaves behind a device.
fn leaf_ids(device: &Arc<dyn Device>) -> Result<Vec<LeafId>> {
    let mut ranges = Vec::new();
    leaf_ranges(device, ByteRange::to(device.size()), Access::Write, &mut ranges)?;
    let mut ids: Vec<_> = ranges.into_iter().map(|(leaf, _)| leaf).collect();
    ids.dedup();
    Ok(ids)
}

/// Where a range lies on its leaves, out to block borders.
pub(super) fn leaf_ranges(
    device: &Arc<dyn Device>,
    range: ByteRange,
    access: Access,
    out: &mut Vec<(LeafId, ByteRange)>,
) -> Result<()> {
    let covered = cover(device, range);
    if covered.is_empty() {
        return Ok(());
    }
    out.extend(places(device, covered, access)?.iter().filter_map(LeafRun::on_leaf));
    Ok(())
}

//! What a Copy command means: every check before anything is written, and whether one native request can do it.
//!
//! The checks come in a fixed order, and the first that fails decides:
//!
//! 1. the destination may be written (0h/20h)
//! 2. the format is claimed and enabled by the host (0h/02h); a reserved one is refused before all others, with the
//!    entry
//! 3. the number of ranges (1h/83h)
//! 4. the length of the list (0h/0Fh)
//! 5. every SNSID, in the order of the list: a number that cannot be (0h/0Bh), not attached to this host (0h/02h)
//! 6. every block size (1h/85h)
//! 7. every length against the smaller limit of both ends, then the sum (1h/83h)
//! 8. the destination, then every source inside its namespace (0h/80h)
//! 9. formats 2h and 3h: no source of the destination's namespace shares a block with the destination (1h/87h)
//!
//! Nothing is written when one fails, so dword 0 is 0, as the standard has it for that case, whichever range was at
//! fault.

use crate::block::{ByteRange, Method};
use crate::copy::one_request::one_request;
use crate::nvme::copy::parse_ranges;
use crate::nvme::{CopyCommand, Status};
use crate::nvmet::features::COPY_FORMATS;
use crate::nvmet::namespace::Namespace;
use smallvec::SmallVec;
use std::sync::Arc;

/// Ranges that follow each other in the list and lie on one namespace.
#[derive(Clone)]
pub(in crate::nvmet) struct SourceRun {
    pub(in crate::nvmet) namespace: Arc<Namespace>,
    /// How many.
    pub(in crate::nvmet) ranges: usize,
}

/// A Copy that passed every check.
pub(in crate::nvmet) struct CheckedCopy {
    pub(in crate::nvmet) dest: Arc<Namespace>,
    /// The whole destination, in bytes.
    pub(in crate::nvmet) range: ByteRange,
    /// Sources in list order, in bytes of their namespaces.
    pub(in crate::nvmet) sources: Vec<ByteRange>,
    /// Where they lie: lengths add up to the number of sources.
    pub(in crate::nvmet) runs: SmallVec<[SourceRun; 1]>,
    /// A range asks for a fast copy only (FCO).
    pub(in crate::nvmet) fast_only: bool,
}

impl CheckedCopy {
    /// Checks a command and its list against the namespaces its host sees. `formats`: those the host has enabled.
    ///
    /// Errors: the first that this file's head lists.
    pub(in crate::nvmet) fn new<'n>(
        command: &CopyCommand,
        list: &[u8],
        dest: &Arc<Namespace>,
        formats: u16,
        find: impl Fn(u32) -> Result<&'n Arc<Namespace>, Status>,
    ) -> Result<Self, Status> {
        if dest.read_only() {
            return Err(Status::NAMESPACE_WRITE_PROTECTED);
        }
        if COPY_FORMATS & formats & command.format.bit() == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let limits = dest.copy_limits();
        if command.ranges > limits.ranges {
            return Err(Status::COPY_SIZE_LIMIT_EXCEEDED);
        }
        let ranges = parse_ranges(command, list)?;
        let mut runs: SmallVec<[SourceRun; 1]> = SmallVec::new();
        for range in ranges.clone() {
            let nsid = range.snsid.unwrap_or(dest.nsid());
            match runs.last_mut() {
                Some(run) if run.namespace.nsid() == nsid => run.ranges += 1,
                _ if nsid == dest.nsid() => runs.push(SourceRun { namespace: dest.clone(), ranges: 1 }),
                _ => runs.push(SourceRun { namespace: find(nsid)?.clone(), ranges: 1 }),
            }
        }
        if runs.iter().any(|run| run.namespace.block_bytes() != dest.block_bytes()) {
            return Err(Status::INCOMPATIBLE_NAMESPACE);
        }
        let on = || runs.iter().flat_map(|run| std::iter::repeat_n(&run.namespace, run.ranges));
        let too_long = |(range, namespace): (crate::nvme::SourceRange, &Arc<Namespace>)| {
            let most = limits.range_blocks.min(namespace.copy_limits().range_blocks);
            range.blocks.get() > u32::from(most)
        };
        let total = ranges.total_blocks();
        if ranges.clone().zip(on()).any(too_long) || total > limits.blocks {
            return Err(Status::COPY_SIZE_LIMIT_EXCEEDED);
        }
        let whole = dest.bytes(command.sdlba, total.into())?;
        let mut sources = Vec::with_capacity(ranges.len());
        for (range, namespace) in ranges.clone().zip(on()) {
            sources.push(namespace.extent(range.slba, range.blocks)?);
        }
        let here = |namespace: &Arc<Namespace>| namespace.nsid() == dest.nsid();
        let overlap = || sources.iter().zip(on()).any(|(source, n)| here(n) && source.overlaps(whole));
        if command.format.names_namespace() && overlap() {
            return Err(Status::OVERLAPPING_IO_RANGE);
        }
        let fast_only = ranges.into_iter().any(|range| range.fco);
        Ok(Self { dest: dest.clone(), range: whole, sources, runs, fast_only })
    }

    /// How many ranges from the front lie whole within the first `good` bytes: dword 0 of a Copy that failed.
    pub(in crate::nvmet) fn whole_ranges(&self, good: u64) -> u64 {
        let mut left = good;
        let mut count = 0;
        for source in &self.sources {
            if source.len() > left {
                break;
            }
            left -= source.len();
            count += 1;
        }
        count
    }

    /// The method by which one request of the destination's device moves every range, and the ranges with neighbours
    /// joined.
    ///
    /// `None`: the planner has to cut it; several sources are one reason, the others are [`one_request`]'s.
    pub(in crate::nvmet) fn native(&self) -> Option<(Method, SmallVec<[ByteRange; 1]>)> {
        let [run] = &self.runs[..] else { return None };
        one_request(run.namespace.device(), &self.sources, self.dest.device(), self.range)
    }
}

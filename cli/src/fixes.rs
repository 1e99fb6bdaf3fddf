//! What to do about a finding: the next step, in terms of this command's flags.

use crate::fail::Fail;
use crate::output::Shown;
use blkcopy::volume::{CopyError, Finding, Obstacle, SharedStorage};
use std::borrow::Cow;

/// The next step after a finding; `None` where there is none to name.
pub(crate) fn fix(finding: &Finding) -> Option<Cow<'static, str>> {
    let fix = match finding {
        Finding::SourceSizeUnknown { .. } => "none needed: cp reads it to its end",
        Finding::SourceInUse { .. } => "unmount it or stop what uses it, or copy a snapshot",
        Finding::Overwrites { planned: true, .. } => "cp needs --yes",
        Finding::Overwrites { planned: false, .. } => "give --yes if its contents may be lost",
        Finding::LoopShortage { .. } => "free space there, or copy with --verify digest",
        Finding::DestInUse { forced: true, .. } => "none needed: --force-in-use was given",
        Finding::DestInUse { forced: false, .. } => {
            "unmount it or stop what uses it, or give --force-in-use if that is safe"
        }
        Finding::ExtentsNotPlanned { .. } => "run cp; its receipt lists the methods",
        Finding::SourceNotFound { meant, .. } => return Some(meant.clone().into()),
        Finding::NoFileName { .. } => "name the file to create in it",
        Finding::IsFolder { .. } => "name another destination",
        Finding::WritesInto { .. } => "give --in-place if that is meant, or name another destination",
        Finding::TwoWays { .. } => "use one URL on both sides, or name another destination",
        Finding::SameFile { .. } => "name another destination, or give a range @offset+length on both sides",
        Finding::SameBytes { how: SharedStorage::OneDisk, .. } => {
            "name the whole disk with ranges on both sides"
        }
        Finding::SameBytes { how: SharedStorage::Known(_), .. } => "use one name on both sides, with ranges",
        Finding::SameBytes { how: SharedStorage::Maybe(_), .. } => {
            "name another destination, or give --assume-distinct if you know that they do not"
        }
        Finding::MadeInSource { .. } => {
            "name a destination elsewhere, or give --assume-distinct if you know that it is"
        }
        Finding::SegmentOutside { .. } => "shorten it, or give a longer range",
        Finding::RangeTooSmall { range_bytes, source_offset, .. } => {
            let fix =
                format!("copy less of the source (@{source_offset}+{range_bytes}), or give a longer range");
            return Some(fix.into());
        }
        Finding::DestNotZero { .. } => {
            "leave out --dest-is-zero, or zero the destination first (blkdiscard --zeroout)"
        }
        Finding::DestTooSmall { .. } => {
            "extend the destination, or copy less with a range @offset+length on the source"
        }
        Finding::SegmentsOverlap { .. } => "give ranges that do not overlap",
        Finding::ReadOnly { planned: true, .. } => {
            "make it writable (blockdev --setrw), or name another destination"
        }
        Finding::WriteProtected { .. } => {
            "remove the write protection at the target, or name another destination"
        }
        Finding::FolderMissing { .. } => "make the directory, or leave out the trailing /",
        Finding::LinkToNothing { .. } => "remove the link, or name the file it should point to",
        Finding::NoSuchDevice { .. } => "check the name of the device, or name a file elsewhere",
        Finding::NoPlace { .. } => "make the directory, or name another destination",
        Finding::DestHeld { .. } => "wait until the other program has finished, or name another destination",
        Finding::SourceHeld { .. } => {
            "wait until the other program has finished, or leave out --exclusive-source"
        }
        Finding::DestLenChanged { .. } => "copy again when that program has finished",
        Finding::OffloadUnmet { .. } => "leave out --require, or run blkcopy plan to see why",
        Finding::NothingToPreserve { .. } => "leave out --preserve",
        Finding::NoEngine { .. } => "--io-engine auto",
        Finding::ServedRange { .. } => "leave @offset+length out",
        Finding::ServedRemote { .. } => "serve the device itself on the machine that has it",
        Finding::ServedIsReadOnly { .. } => "serve it read-only",
        Finding::ServedNotFound { .. } => "make it first: truncate -s 10G disk.img",
        Finding::ServedInUse { .. } => {
            "unmount it or stop what uses it, or serve it read-only, or give --force-in-use if that is safe"
        }
        _ => return None,
    };
    Some(fix.into())
}

impl From<&Finding> for Shown {
    fn from(finding: &Finding) -> Self {
        Self::new(finding.level(), finding.to_string(), fix(finding).as_deref())
    }
}

impl From<Obstacle> for Fail {
    fn from(obstacle: Obstacle) -> Self {
        let Obstacle::Found(finding) = obstacle else { return obstacle.into_error().into() };
        let (fix, unmet) = (fix(&finding), matches!(*finding, Finding::OffloadUnmet { .. }));
        let mut fail = Self::from(finding.into_error());
        if let Some(fix) = fix {
            fail = fail.hint(fix);
        }
        if unmet { fail.no() } else { fail }
    }
}

impl From<CopyError> for Fail {
    fn from(error: CopyError) -> Self {
        error.obstacle.into()
    }
}

//! Two names for the same bytes: found before one is written over the other.

use super::findings::{Finding, SharedStorage};
use super::name::Name;
use super::open::storage_of_folder;
use crate::block::places::storage_of;
use crate::block::{ByteRange, Device, Identity, LEN_MAX, Overlap, Result};
use crate::copy::Segment;
use std::path::Path;
use std::sync::Arc;

/// Copies between devices whose storage lies closer than this are taken to overlap, in bytes: what is cached of one
/// holds whole pages, neighbours included.
const CACHED_BYTES: u64 = 4096;

/// What is copied between two names.
pub(super) struct Sides<'a> {
    pub(super) source: &'a Arc<dyn Device>,
    pub(super) source_name: &'a Name,
    pub(super) dest_name: &'a Name,
    pub(super) segments: &'a [Segment],
    /// The caller says that what nobody can tell is no overlap.
    pub(super) distinct: bool,
}

/// Two names for the same bytes: of one disk, or of what lies below the devices. `cut`: a destination file is cut
/// first.
pub(super) fn check_aliases(sides: &Sides<'_>, dest: &Arc<dyn Device>, cut: bool) -> Result<Option<Finding>> {
    let Sides { source, segments, .. } = *sides;
    let out = |range: ByteRange| {
        let end = range.end().checked_next_multiple_of(CACHED_BYTES).unwrap_or(LEN_MAX);
        ByteRange::between(range.offset() - range.offset() % CACHED_BYTES, end)
    };
    let one_leaf = match (source.identity(), dest.identity()) {
        (Identity::Leaf { leaf: a, base: from }, Identity::Leaf { leaf: b, base: to }) => {
            if a == b && from == to {
                return Ok(None);
            }
            a == b
        }
        _ => false,
    };
    // One cache, and locks that know both: to the byte.
    let near = |range: ByteRange| if one_leaf { range } else { out(range) };
    let reads: Vec<_> = segments.iter().map(|s| near(s.source_range())).collect();
    // What is cut off of a file is gone, copied onto or not.
    let writes: Vec<_> = match cut {
        true => vec![ByteRange::to(LEN_MAX)],
        false => segments.iter().map(|s| near(s.dest_range())).collect(),
    };
    let overlap = storage_of(source)?.overlap_in(&reads, &storage_of(dest)?, &writes);
    let how = match overlap {
        Overlap::Yes(_) if one_leaf => SharedStorage::OneDisk,
        Overlap::Yes(how) => SharedStorage::Known(how),
        Overlap::Maybe(_) if sides.distinct => return Ok(None),
        Overlap::Maybe(why) => SharedStorage::Maybe(why),
        Overlap::No => return Ok(None),
    };
    let (source, dest) = (sides.source_name.text().into_owned(), sides.dest_name.text().into_owned());
    Ok(Some(Finding::SameBytes { source, dest, how }))
}

/// A file that is to be made on the file system that is copied.
pub(super) fn check_new_file(sides: &Sides<'_>, path: &Path) -> Result<Option<Finding>> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let reads: Vec<_> = sides.segments.iter().map(Segment::source_range).collect();
    let all = [ByteRange::to(LEN_MAX)];
    let overlap = storage_of(sides.source)?.overlap_in(&reads, &storage_of_folder(folder), &all);
    Ok(overlap.reason().filter(|_| !sides.distinct).map(|why| Finding::MadeInSource {
        source: sides.source_name.text().into_owned(),
        dest: path.to_owned(),
        why: why.to_string(),
    }))
}

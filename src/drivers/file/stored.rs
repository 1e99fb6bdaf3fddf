//! Where the bytes of a file lie on its file system, for comparing two files: bytes in one place are the same bytes.
//!
//! Asked of XFS and Btrfs, whose numbers are places that mean the same for all their files. Others give offsets in the
//! file, or places on one of several devices, and are not asked. Everything here may wait for the disk.

use super::File;
use super::fs::{BTRFS, EXT, RAMFS, TMPFS, XFS};
use crate::block::{ByteRange, Error, Result};
use crate::sys::fiemap::{self, FileExtent};
use crate::sys::{btrfs, ioctl};

/// `FS_XFLAG_REALTIME` (linux/fs.h): the file lies on the second device of an XFS, with places of its own.
const XFLAG_REALTIME: u32 = 1;

/// What places are counted in: those of two files can be compared when these are equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlaceSpace {
    file_system: u64,
    part: u32,
}

/// Where the first byte of a run lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spot {
    /// Where nothing else is stored: nowhere (a hole, or set aside and not written), not yet, or among the metadata.
    Alone,
    /// At this byte of the file system's storage.
    At(u64),
    /// At byte `skip` of what is unpacked from the piece at `at`.
    Packed {
        /// Where the piece begins.
        at: u64,
        /// Bytes of it, unpacked, before the run.
        skip: u64,
    },
    /// The file system does not report it, or not to this user.
    Unknown,
}

/// A run of a file that lies in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// In the file.
    pub range: ByteRange,
    /// Where it begins.
    pub spot: Spot,
    /// The file system says that something else has the same storage.
    pub is_shared: bool,
}

impl Stretch {
    fn new(range: ByteRange, spot: Spot) -> Self {
        Self { range, spot, is_shared: false }
    }

    /// The part from byte `at` of the file on, which lies inside.
    #[must_use]
    pub fn from(&self, at: u64) -> Self {
        let skipped = at.saturating_sub(self.range.offset());
        let spot = match self.spot {
            Spot::At(place) => Spot::At(place.saturating_add(skipped)),
            Spot::Packed { at, skip } => Spot::Packed { at, skip: skip.saturating_add(skipped) },
            other => other,
        };
        Self { range: self.range.after(skipped), spot, ..*self }
    }

    /// Whether both begin with the same stored byte, and so hold the same bytes as far as both reach. Places of one
    /// [`PlaceSpace`]. `None`: it cannot be told.
    pub fn is_with(&self, other: &Self) -> Option<bool> {
        match (self.spot, other.spot) {
            (Spot::Alone, _) | (_, Spot::Alone) => Some(false),
            (Spot::Unknown, _) | (_, Spot::Unknown) => None,
            // One place that the file system does not call shared: its two answers are of different moments.
            (a, b) if a == b => (self.is_shared && other.is_shared).then_some(true),
            _ => Some(false),
        }
    }
}

impl File {
    /// What its places are counted in; `None` when its file system does not report places that can be compared.
    pub fn place_space(&self) -> Option<PlaceSpace> {
        let part = match self.facts.magic {
            BTRFS => 0,
            XFS => ioctl::file_flags(self.fd()).ok()? & XFLAG_REALTIME,
            _ => return None,
        };
        Some(PlaceSpace { file_system: self.facts.file_system, part })
    }

    /// True when its bytes may be stored together with those of another file without this system being able to tell:
    /// on a server, or on a file system that shares extents or may, and does not report comparable places.
    pub fn may_share_unseen(&self) -> bool {
        !matches!(self.facts.magic, BTRFS | XFS | EXT | TMPFS | RAMFS)
    }

    /// Where the front of `range` lies: runs in order and without gaps, at least one for a range that is not empty.
    /// What is cached of the file is written out first, so that these are the places of its newest bytes.
    ///
    /// Errors: those of the system.
    pub fn stretches(&self, range: ByteRange) -> Result<Vec<Stretch>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut extents = Vec::new();
        let asked = fiemap::extents_written_out(&**self.fd(), range.offset(), range.len(), &mut extents);
        let is_all = match asked {
            Ok(is_all) => is_all,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
                return Ok(vec![Stretch::new(range, Spot::Unknown)]);
            }
            Err(error) => {
                return Err(Error::os("cannot find out where it is stored", error)
                    .on(&self.core.name)
                    .at(range));
            }
        };
        Ok(cover(range, &extents, is_all, |extent, part, list| self.unpacked(extent, part, list)))
    }

    /// The runs of a packed extent. A piece may be used in parts, and only Btrfs itself tells which.
    fn unpacked(&self, extent: &FileExtent, part: ByteRange, list: &mut Vec<Stretch>) {
        let mut runs = Vec::new();
        if self.facts.magic == BTRFS {
            let asked = btrfs::packed(&**self.fd(), self.stat.st_ino, part.offset(), part.len(), &mut runs);
            if let Err(error) = asked {
                tracing::debug!(device = %self.core.name, %error, "places of packed bytes are not known");
                runs.clear();
            }
        }
        let mut at = part.offset();
        for run in runs {
            let whole = ByteRange::between(run.logical, run.logical.saturating_add(run.len));
            let Some(here) = whole.intersection(part).filter(|here| here.offset() >= at) else { continue };
            if here.offset() > at {
                list.push(Stretch::new(ByteRange::between(at, here.offset()), Spot::Unknown));
            }
            let spot = Spot::Packed { at: run.physical, skip: run.skip };
            let run = Stretch { range: whole, spot, is_shared: extent.is_shared() }.from(here.offset());
            list.push(Stretch { range: here, ..run });
            at = here.end();
        }
        if at < part.end() {
            list.push(Stretch::new(ByteRange::between(at, part.end()), Spot::Unknown));
        }
    }
}

/// `range` in runs, by what the file system lists of it. `is_all`: nothing is stored after the last extent; else the
/// runs end there. `unpack` adds the runs of a packed extent's part.
fn cover(
    range: ByteRange,
    extents: &[FileExtent],
    is_all: bool,
    unpack: impl Fn(&FileExtent, ByteRange, &mut Vec<Stretch>),
) -> Vec<Stretch> {
    let mut list = Vec::with_capacity(extents.len() + 1);
    let mut at = range.offset();
    for extent in extents {
        let whole = ByteRange::between(extent.logical, extent.end());
        // One that begins before the end of the last is a second copy of the same bytes: a place among several.
        let Some(part) = whole.intersection(range).filter(|part| part.offset() >= at) else { continue };
        if part.offset() > at {
            list.push(Stretch::new(ByteRange::between(at, part.offset()), Spot::Alone));
        }
        at = part.end();
        if extent.is_unwritten() || extent.is_apart() {
            list.push(Stretch::new(part, Spot::Alone));
        } else if !extent.has_place() {
            list.push(Stretch::new(part, Spot::Unknown));
        } else if extent.is_encoded() {
            unpack(extent, part, &mut list);
        } else {
            let run =
                Stretch { range: whole, spot: Spot::At(extent.physical), is_shared: extent.is_shared() };
            list.push(Stretch { range: part, ..run.from(part.offset()) });
        }
    }
    if at < range.end() && (is_all || list.is_empty()) {
        let spot = if is_all { Spot::Alone } else { Spot::Unknown };
        list.push(Stretch::new(ByteRange::between(at, range.end()), spot));
    }
    list
}

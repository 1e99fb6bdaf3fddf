//! What tells whether bytes of two ends are stored once for both, without reading them.

use super::report::{KnownBy, Sameness};
use crate::block::device::LeafSpace;
use crate::block::places::{is_one_device, storage_of};
use crate::block::storage::{Decides, KnownPlace};
use crate::block::{ByteRange, Device, Identity, LeafId, Result, Storage};
use crate::drivers::File;
use crate::drivers::file::{Spot, Stretch};
use crate::drivers::stack::never_shares;
use std::collections::HashMap;
use std::sync::Arc;

/// One end: a range of a device.
#[derive(Clone)]
pub(super) struct End {
    pub(super) device: Arc<dyn Device>,
    pub(super) range: ByteRange,
}

impl End {
    /// The range of the device that is `len` bytes from byte `at` of this end.
    pub(super) fn part(&self, at: u64, len: u64) -> ByteRange {
        self.range.after(at).prefix(len)
    }

    fn file(&self) -> Option<&File> {
        self.device.as_any().downcast_ref()
    }

    fn leaf(&self) -> Option<LeafId> {
        match self.device.identity() {
            Identity::Leaf { leaf, .. } => Some(leaf),
            Identity::Map(_) => None,
        }
    }
}

/// What tells, for two ends of one length.
pub(super) enum Basis {
    /// The same range of one device.
    One,
    /// Files whose file system lists places that can be compared.
    Extents(Box<[Cursor; 2]>),
    /// Runs that are stored once, in order; all else is `rest`.
    Storage { same: Vec<ByteRange>, rest: Sameness },
}

impl Basis {
    pub(super) fn of(a: &End, b: &End) -> Result<Self> {
        // Two namespaces that call themselves the same may be one or two.
        let is_one = is_one_device(&a.device, &b.device).unwrap_or(false);
        if is_one && a.range.offset() == b.range.offset() {
            return Ok(Self::One);
        }
        if let (Some(x), Some(y)) = (a.file(), b.file())
            && let (Some(of_x), Some(of_y)) = (x.place_space(), y.place_space())
            && of_x == of_y
        {
            return Ok(Self::Extents(Box::new([Cursor::new(a), Cursor::new(b)])));
        }
        let (of_a, of_b) = (storage_of(&a.device)?, storage_of(&b.device)?);
        let (places_a, places_b) = (of_a.known_places(), of_b.known_places());
        Ok(Self::Storage {
            same: in_one_place((a.range, &places_a), (b.range, &places_b)),
            rest: if is_apart((a, &of_a, &places_a), (b, &of_b, &places_b)) {
                Sameness::Apart
            } else {
                Sameness::Unknown
            },
        })
    }

    /// What it is called.
    pub(super) fn known_by(&self) -> KnownBy {
        match self {
            Self::One => KnownBy::OneDevice,
            Self::Extents(_) => KnownBy::Extents,
            Self::Storage { .. } => KnownBy::Storage,
        }
    }

    /// What the front of `len` bytes from `at` on is, and how long that front is; never empty for what is not.
    pub(super) fn front(&mut self, at: u64, len: u64) -> Result<(Sameness, u64)> {
        match self {
            Self::One => Ok((Sameness::Shared, len)),
            Self::Extents(cursors) => {
                let [a, b] = &mut **cursors;
                let (x, y) = (a.front(at)?, b.front(at)?);
                let is = match x.is_with(&y) {
                    Some(true) => Sameness::Shared,
                    Some(false) => Sameness::Apart,
                    None => Sameness::Unknown,
                };
                Ok((is, len.min(x.range.len()).min(y.range.len())))
            }
            Self::Storage { same, rest } => {
                let after = same.partition_point(|run| run.end() <= at);
                Ok(match same.get(after) {
                    Some(run) if run.offset() <= at => (Sameness::Shared, len.min(run.end() - at)),
                    Some(run) => (*rest, len.min(run.offset() - at)),
                    None => (*rest, len),
                })
            }
        }
    }
}

/// Where a file's bytes lie, looked up as they are asked for, from the front to the end.
pub(super) struct Cursor {
    end: End,
    held: Vec<Stretch>,
}

impl Cursor {
    fn new(end: &End) -> Self {
        Self { end: end.clone(), held: Vec::new() }
    }

    /// The run that begins at byte `at` of the end, which lies inside.
    fn front(&mut self, at: u64) -> Result<Stretch> {
        let rest = self.end.range.after(at);
        let place = rest.offset();
        let held = |list: &[Stretch]| {
            let number = list.partition_point(|s| s.range.end() <= place);
            list.get(number).filter(|s| s.range.offset() <= place).map(|s| s.from(place))
        };
        if let Some(found) = held(&self.held) {
            return Ok(found);
        }
        self.held = match self.end.file() {
            Some(file) => file.stretches(rest)?,
            None => Vec::new(),
        };
        let unknown = Stretch { range: rest, spot: Spot::Unknown, is_shared: false };
        Ok(held(&self.held).unwrap_or(unknown))
    }
}

/// The runs, counted from the start of both, that lie in one place: on one thing, from one byte on.
fn in_one_place(
    (range_a, a): (ByteRange, &[KnownPlace]),
    (range_b, b): (ByteRange, &[KnownPlace]),
) -> Vec<ByteRange> {
    // Runs of one leaf meet where byte 0 of what is compared would be at the same byte of it.
    let origin = |range: ByteRange, place: &KnownPlace| {
        let run = place.range.intersection(range)?;
        let on_leaf = i128::from(place.offset) + i128::from(run.offset() - place.range.offset());
        let at = run.offset() - range.offset();
        Some(((place.leaf, on_leaf - i128::from(at)), ByteRange::between(at, at + run.len())))
    };
    let mut by_origin: HashMap<(LeafId, i128), Vec<ByteRange>> = HashMap::new();
    for (key, run) in a.iter().filter_map(|place| origin(range_a, place)) {
        by_origin.entry(key).or_default().push(run);
    }
    let mut same: Vec<ByteRange> = Vec::new();
    for (key, run) in b.iter().filter_map(|place| origin(range_b, place)) {
        let theirs = by_origin.get(&key).into_iter().flatten();
        same.extend(theirs.filter_map(|other| other.intersection(run)));
    }
    same.sort_unstable();
    same.dedup_by(|next, run| {
        let joined = next.offset() <= run.end();
        if joined {
            *run = ByteRange::between(run.offset(), run.end().max(next.end()));
        }
        joined
    });
    same
}

/// What is known of an end.
type Known<'a> = (&'a End, &'a Storage, &'a [KnownPlace]);

/// True when no byte of one can be stored together with a byte of the other, as far as this system can tell; of what is
/// not in one place.
fn is_apart((a, of_a, places_a): Known<'_>, (b, of_b, places_b): Known<'_>) -> bool {
    let is_in = |end: &End, space| end.leaf().is_some_and(|leaf| leaf.space == space);
    let either = |test: &dyn Fn(&End) -> bool| test(a) || test(b);
    if either(&|end| is_in(end, LeafSpace::Memory)) {
        return true;
    }
    let hidden = |end: &End| {
        end.leaf().is_none()
            || is_in(end, LeafSpace::Namespace)
            || end.file().is_some_and(File::may_share_unseen)
    };
    if either(&hidden) || !of_a.overlap_in(&[a.range], of_b, &[b.range]).is_no() {
        return false;
    }
    let disks = |places: &[KnownPlace]| -> Vec<LeafId> {
        places.iter().map(|place| place.leaf).filter(|leaf| leaf.space == LeafSpace::Disk).collect()
    };
    let (disks_a, disks_b) = (disks(places_a), disks(places_b));
    // Different addresses of one disk.
    if disks_a.iter().any(|disk| disks_b.contains(disk)) {
        return true;
    }
    // One file system, or one pool, may store once what it holds for both.
    of_a.deciders().intersection(&of_b.deciders()).all(|by| match by {
        Decides::FileSystem(number) => never_shares(*number),
        Decides::Device(_) => false,
    })
}

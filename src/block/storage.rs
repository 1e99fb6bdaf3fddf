//! Where the bytes of a device are stored: itself, what lies below it, and what lies below that.
//!
//! Two names of one storage (a loop device and its file, a partition and its disk, a file and the disk of its file
//! system) are not told apart by their leaves. Whoever opens them describes what they stand on (`drivers::stack` asks
//! the system); here it is compared, without asking anybody. Why it is decided so: `docs/notes/009-one-storage.md`.

use super::device::LeafSpace;
use super::{ByteRange, Identity, LeafId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most runs one comparison looks at. A table with more is not looked into: it may overlap anything.
const RUNS_MAX: usize = 1 << 16;

/// Attribute by which a file of our mounts says which leaf it shows, in the words of [`leaf_words`]. Not listed: no
/// tool carries it to another file.
pub const ATTRIBUTE: &str = "user.blkcopy.storage";

/// Attribute by which a file of our mounts tells how many bytes of storage its volume takes, in digits: its `st_blocks`
/// tells the size. Not listed either.
pub const ALLOCATED: &str = "user.blkcopy.allocated";

/// `SPACE NUMBER NUMBER BASE`: a leaf and the device's first byte on it; `None` for what exists in its process only.
pub fn leaf_words(identity: Identity) -> Option<String> {
    let Identity::Leaf { leaf, base } = identity else { return None };
    let (_, space) = SPACES.iter().find(|(space, _)| *space == leaf.space)?;
    Some(format!("{space} {} {} {base}", leaf.id.0, leaf.id.1))
}

/// Such words taken apart; `None` for others.
pub fn parse_leaf(text: &str) -> Option<(LeafId, u64)> {
    let mut words = text.split(' ');
    let word = words.next()?;
    let (space, _) = SPACES.iter().find(|(_, w)| *w == word)?;
    let mut next = || words.next()?.parse().ok();
    Some((LeafId { space: *space, id: (next()?, next()?) }, next()?))
}

/// The name of what is known by a generation.
const SERVED: &str = "what a target serves";

/// Spaces whose numbers mean the same in every process of this machine.
const SPACES: [(LeafSpace, &str); 3] =
    [(LeafSpace::File, "file"), (LeafSpace::Disk, "disk"), (LeafSpace::Namespace, "namespace")];

/// What a device's bytes are stored in: one entry for each run of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Storage(Vec<Part>);

/// A run of a device, and where it lies.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Part {
    /// On the device.
    range: ByteRange,
    lies: Lies,
    on: Arc<Stored>,
}

/// How a run lies on what is below.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lies {
    /// As one run from this offset on.
    At(u64),
    /// Dealt out in chunks to `count` stripes, of which this is number `index` and begins at `offset`. All in bytes.
    Striped { index: u64, count: u64, chunk: u64, offset: u64 },
    /// Somewhere inside this range: `by` decides where.
    Within(ByteRange, Decides),
}

/// Who decides where bytes are put.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Decides {
    /// The file system with this device number.
    FileSystem(u64),
    /// A device whose mapping is not known here.
    Device(LeafId),
}

/// A run of a device, and the place where it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownPlace {
    /// On the device.
    pub range: ByteRange,
    /// What it lies on.
    pub leaf: LeafId,
    /// The first byte of the run there.
    pub offset: u64,
}

/// Something that stores bytes, and what stores those.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    leaf: LeafId,
    name: String,
    below: Storage,
}

impl Stored {
    /// A disk, a file, a namespace. `name` is for messages.
    pub fn new(leaf: LeafId, name: impl Into<String>, below: Storage) -> Arc<Self> {
        Arc::new(Self { leaf, name: name.into(), below })
    }

    /// Its number.
    pub fn leaf(&self) -> LeafId {
        self.leaf
    }

    /// The file system that decides where its bytes lie: of a file whose file system is known.
    pub fn file_system(&self) -> Option<u64> {
        self.below.0.iter().find_map(|part| match part.lies {
            Lies::Within(_, Decides::FileSystem(number)) => Some(number),
            _ => None,
        })
    }
}

/// Whether two devices, or parts of them, are stored in the same place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Overlap {
    /// They are not, as far as the system tells.
    No,
    /// Some byte is stored once for both; where, in words.
    Yes(String),
    /// They may be, and it cannot be told; why, in words.
    Maybe(String),
}

impl Overlap {
    /// True when nothing speaks for it.
    pub fn is_no(&self) -> bool {
        *self == Self::No
    }

    /// The reason, unless there is none.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::No => None,
            Self::Yes(why) | Self::Maybe(why) => Some(why),
        }
    }
}

/// How a place was reached, when its exact offset is not known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Vague {
    /// Who decided last.
    by: Decides,
    /// The last file system on the way.
    file_system: Option<u64>,
    /// Some device on the way does not say how it maps.
    unknown: bool,
}

/// Where bytes lie on one leaf: runs in order, apart from each other.
type Places = BTreeMap<(LeafId, Option<Vague>), Vec<ByteRange>>;

impl Storage {
    /// Everything at the same offset of one thing, from `base` bytes on.
    pub fn at(on: Arc<Stored>, base: u64, len: u64) -> Self {
        Self::default().and_at(ByteRange::to(len), on, base)
    }

    /// Everything somewhere within `range` of one thing.
    pub fn within(on: Arc<Stored>, range: ByteRange, by: Decides) -> Self {
        Self::default().and_within(on, range, by)
    }

    /// And in what is known by this generation ([`super::Container`]): a target that serves the same thing says the
    /// same number. One machine that is the clone of another does so too, so it is no proof. `remote`: the leaf of what
    /// is at a target; devices of this machine are compared by better means.
    #[must_use]
    pub fn and_known_as(self, remote: Option<LeafId>, generation: [u8; 16]) -> Self {
        let number = u128::from_be_bytes(generation);
        let word = |shift: u32| u64::try_from(number >> shift & u128::from(u64::MAX)).unwrap_or(0);
        let unit = LeafId { space: LeafSpace::Unit, id: (word(64) | 1 << 63, word(0)) };
        let unit = Stored::new(unit, SERVED, Self::default());
        let local = LeafId { space: LeafSpace::Unit, id: (0, 0) };
        self.and_within(unit, ByteRange::to(u64::MAX), Decides::Device(remote.unwrap_or(local)))
    }

    /// And these bytes of the device from `offset` of `on`.
    #[must_use]
    pub fn and_at(mut self, range: ByteRange, on: Arc<Stored>, offset: u64) -> Self {
        self.0.push(Part { range, lies: Lies::At(offset), on });
        self
    }

    /// And these bytes of the device in chunks of `chunk` bytes on stripe `index` of `count`, which begins at `offset`
    /// of `on`.
    #[must_use]
    pub fn and_striped(
        mut self,
        range: ByteRange,
        on: Arc<Stored>,
        (index, count, chunk): (u64, u64, u64),
        offset: u64,
    ) -> Self {
        let lies = Lies::Striped { index, count: count.max(1), chunk: chunk.max(1), offset };
        self.0.push(Part { range, lies, on });
        self
    }

    /// And every byte of the device maybe somewhere within `range` of `on`.
    #[must_use]
    pub fn and_within(mut self, on: Arc<Stored>, range: ByteRange, by: Decides) -> Self {
        self.0.push(Part { range: ByteRange::to(u64::MAX), lies: Lies::Within(range, by), on });
        self
    }

    /// And what another device has, at `offset` of this one: how a map is made of its legs.
    pub fn add(&mut self, offset: u64, range: ByteRange, leg: &Self) {
        for part in &leg.0 {
            let Some(common) = part.range.intersection(range) else { continue };
            let skip = common.offset() - part.range.offset();
            let here = ByteRange::between(
                offset.saturating_add(common.offset() - range.offset()),
                offset.saturating_add(common.end() - range.offset()),
            );
            let (range, lies) = match part.lies {
                Lies::At(at) => (here, Lies::At(at.saturating_add(skip))),
                // Stripes count from the front of their device.
                Lies::Striped { .. } => {
                    let by = Decides::Device(part.on.leaf);
                    let runs = part.lies.of(part.range, common).unwrap_or_default();
                    (here, Lies::Within(runs, by))
                }
                within @ Lies::Within(..) => (here, within),
            };
            self.0.push(Part { range, lies, on: part.on.clone() });
        }
    }

    /// The same without what lies below file systems: what is used by using the device.
    #[must_use]
    pub fn above_file_systems(&self) -> Self {
        let kept = self.0.iter().filter(|p| !matches!(p.lies, Lies::Within(_, Decides::FileSystem(_))));
        let cut = |part: &Part| Part {
            on: Stored::new(part.on.leaf, part.on.name.clone(), part.on.below.above_file_systems()),
            ..part.clone()
        };
        Self(kept.map(cut).collect())
    }

    /// Every leaf it is stored in, itself included, as often as it is reached.
    pub fn leaves(&self) -> Vec<Arc<Stored>> {
        let mut all = Vec::new();
        for part in &self.0 {
            all.push(part.on.clone());
            all.extend(part.on.below.leaves());
        }
        all
    }

    /// Where each run of the device lies, on itself and on what is below it, down to where a file system or a device of
    /// unknown mapping decides. From the top; at most as many as a comparison looks at.
    pub fn known_places(&self) -> Vec<KnownPlace> {
        let mut all = Vec::new();
        self.collect_known(ByteRange::to(u64::MAX), 0, &mut all);
        all
    }

    /// `window`: of this storage; it begins at byte `at` of the device that is asked about.
    fn collect_known(&self, window: ByteRange, at: u64, all: &mut Vec<KnownPlace>) {
        for part in &self.0 {
            let (Lies::At(offset), Some(run)) = (part.lies, part.range.intersection(window)) else {
                continue;
            };
            if all.len() >= RUNS_MAX {
                return;
            }
            let start = at.saturating_add(run.offset() - window.offset());
            let range = ByteRange::between(start, start.saturating_add(run.len()));
            let offset = offset.saturating_add(run.offset() - part.range.offset());
            all.push(KnownPlace { range, leaf: part.on.leaf, offset });
            let below = ByteRange::between(offset, offset.saturating_add(range.len()));
            part.on.below.collect_known(below, start, all);
        }
    }

    /// Who decides where its bytes are put, on every level: file systems, and devices whose mapping is not known. What
    /// is known of a target's own storage is left out.
    pub fn deciders(&self) -> BTreeSet<Decides> {
        let mut all = BTreeSet::new();
        for part in self.0.iter().filter(|part| part.on.name != SERVED) {
            if let Lies::Within(_, by) = part.lies {
                all.insert(by);
            }
            all.extend(part.on.below.deciders());
        }
        all
    }

    /// Whether any byte of both is stored in one place.
    pub fn overlap(&self, other: &Self) -> Overlap {
        let all = [ByteRange::to(u64::MAX)];
        self.overlap_in(&all, other, &all)
    }

    /// The same for parts of both: any of `mine` and any of `theirs`.
    ///
    /// Where both ways lead through one file system, or one device of unknown mapping, what was decided above it holds:
    /// it puts different bytes in different places.
    pub fn overlap_in(&self, mine: &[ByteRange], other: &Self, theirs: &[ByteRange]) -> Overlap {
        let mut names = BTreeMap::new();
        let (Some(a), Some(b)) = (self.places(mine, &mut names), other.places(theirs, &mut names)) else {
            // Where the stretches from first byte to last are apart, so is every part of them.
            let many = mine.len() > 1 || theirs.len() > 1;
            if many && self.overlap_in(&[hull(mine)], other, &[hull(theirs)]).is_no() {
                return Overlap::No;
            }
            return Overlap::Maybe("one of them has too many parts to compare".to_owned());
        };
        let mut maybe = None;
        for ((leaf, how), runs) in &a {
            for ((_, their_how), their_runs) in
                b.range((*leaf, None)..).take_while(|((other, _), _)| other == leaf)
            {
                if !meet(runs, their_runs) {
                    continue;
                }
                let name = names.get(leaf).copied().unwrap_or("one storage");
                match (how, their_how) {
                    (None, None) => return Overlap::Yes(format!("both are stored in {name}")),
                    (Some(a), Some(b)) if a.keeps_apart(b) => {}
                    (a, b) => {
                        let why = || why(name, a.or(*b), a.is_some() && b.is_some());
                        maybe.get_or_insert_with(why);
                    }
                }
            }
        }
        maybe.map_or(Overlap::No, Overlap::Maybe)
    }

    /// `None`: more than is looked at.
    fn places<'a>(&'a self, ranges: &[ByteRange], names: &mut BTreeMap<LeafId, &'a str>) -> Option<Places> {
        let mut left = RUNS_MAX;
        let mut places = Places::new();
        for &range in ranges {
            self.collect(range, None, &mut places, names, &mut left)?;
        }
        for runs in places.values_mut() {
            runs.sort_unstable();
            runs.dedup_by(|next, run| {
                let joined = next.offset() <= run.end();
                if joined {
                    *run = ByteRange::between(run.offset(), run.end().max(next.end()));
                }
                joined
            });
        }
        Some(places)
    }

    fn collect<'a>(
        &'a self,
        range: ByteRange,
        vague: Option<Vague>,
        places: &mut Places,
        names: &mut BTreeMap<LeafId, &'a str>,
        left: &mut usize,
    ) -> Option<()> {
        for part in &self.0 {
            let Some(run) = part.range.intersection(range).and_then(|r| part.lies.of(part.range, r)) else {
                continue;
            };
            let vague = match part.lies {
                Lies::At(_) | Lies::Striped { .. } => vague,
                Lies::Within(_, by) => Some(Vague {
                    by,
                    file_system: match by {
                        Decides::FileSystem(number) => Some(number),
                        Decides::Device(_) => vague.and_then(|v| v.file_system),
                    },
                    unknown: vague.is_some_and(|v| v.unknown) || matches!(by, Decides::Device(_)),
                }),
            };
            *left = left.checked_sub(1)?;
            names.entry(part.on.leaf).or_insert(&part.on.name);
            places.entry((part.on.leaf, vague)).or_default().push(run);
            part.on.below.collect(run, vague, places, names, left)?;
        }
        Some(())
    }
}

/// From the first byte of all to the last.
fn hull(ranges: &[ByteRange]) -> ByteRange {
    let start = ranges.iter().map(|r| r.offset()).min().unwrap_or(0);
    ByteRange::between(start, ranges.iter().map(|r| r.end()).max().unwrap_or(start))
}

impl Lies {
    /// Where `range`, inside `whole`, lies below; `None`: nowhere.
    fn of(self, whole: ByteRange, range: ByteRange) -> Option<ByteRange> {
        let (from, to) = (range.offset() - whole.offset(), range.end() - whole.offset());
        match self {
            Self::At(offset) => {
                Some(ByteRange::between(offset.saturating_add(from), offset.saturating_add(to)))
            }
            Self::Within(within, _) => Some(within),
            Self::Striped { index, count, chunk, offset } => {
                // Bytes of this stripe before byte `at` of the device. With 2 stripes and chunks of 10, byte 25 has 15
                // of stripe 0 before it (0..10 and 20..25) and 10 of stripe 1.
                let before = |at: u64| {
                    let (number, inside) = (at / chunk, at % chunk);
                    let full = number / count;
                    let part = match (number % count).cmp(&index) {
                        std::cmp::Ordering::Less => 0,
                        std::cmp::Ordering::Equal => inside,
                        std::cmp::Ordering::Greater => chunk,
                    };
                    full.saturating_mul(chunk).saturating_add(part)
                };
                let (start, end) = (before(from), before(to));
                let at = |n: u64| offset.saturating_add(n);
                (start < end).then(|| ByteRange::between(at(start), at(end)))
            }
        }
    }
}

impl Vague {
    /// True when the two places are known to be different for what different bytes were above.
    fn keeps_apart(&self, other: &Self) -> bool {
        // Two mounted file systems over devices that cannot be looked into have a place of their own each.
        let two_file_systems = self.file_system.is_some() && other.file_system.is_some();
        self.by == other.by || two_file_systems && (self.unknown || other.unknown)
    }
}

#[cold]
fn why(name: &str, vague: Option<Vague>, both: bool) -> String {
    let decides = match vague.map(|v| v.by) {
        _ if name == SERVED => return "a target reports that it serves the same file or disk".to_owned(),
        Some(Decides::FileSystem(_)) => "the file system does not report where",
        _ => "the mapping of the device between them is unknown",
    };
    let which = if both { "both are stored" } else { "one is stored" };
    format!("{which} somewhere on {name}, which the other uses too, and {decides}")
}

/// Whether runs of two lists share a byte; both in order, the runs of each apart.
fn meet(a: &[ByteRange], b: &[ByteRange]) -> bool {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        if x.overlaps(**y) {
            return true;
        }
        if x.end() <= y.end() {
            a.next();
        } else {
            b.next();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(number: u64, below: Storage) -> Arc<Stored> {
        Stored::new(LeafId { space: LeafSpace::Disk, id: (number, 0) }, format!("disk {number}"), below)
    }

    fn file(number: u64, below: Storage) -> Arc<Stored> {
        Stored::new(LeafId { space: LeafSpace::File, id: (1, number) }, format!("file {number}"), below)
    }

    fn whole(on: Arc<Stored>) -> Storage {
        Storage::at(on, 0, 1 << 40)
    }

    fn range(from: u64, to: u64) -> ByteRange {
        ByteRange::between(from, to)
    }

    /// A file of the file system on `range` of a disk.
    fn file_on(number: u64, on: &Arc<Stored>, at: ByteRange, fs: u64) -> Storage {
        whole(file(number, Storage::within(on.clone(), at, Decides::FileSystem(fs))))
    }

    fn is(overlap: &Overlap) -> char {
        match overlap {
            Overlap::No => 'n',
            Overlap::Yes(_) => 'y',
            Overlap::Maybe(_) => 'm',
        }
    }

    #[track_caller]
    fn both_ways(a: &Storage, b: &Storage, expected: char) {
        assert_eq!((is(&a.overlap(b)), is(&b.overlap(a))), (expected, expected), "{:?}", a.overlap(b));
    }

    #[test]
    fn partitions_overlap_their_disk_and_not_each_other() {
        let sda = disk(8, Storage::default());
        let part = |from, to| Storage::at(sda.clone(), from, to - from);
        both_ways(&part(0, 10 * MIB), &whole(sda.clone()), 'y');
        both_ways(&part(0, 10 * MIB), &part(10 * MIB, 20 * MIB), 'n');
        both_ways(&part(0, 10 * MIB), &part(10 * MIB - 1, 20 * MIB), 'y');
        both_ways(&part(0, 10 * MIB), &whole(disk(9, Storage::default())), 'n');
        // Parts of both.
        let (a, b) = (part(MIB, 10 * MIB), whole(sda));
        assert!(a.overlap_in(&[range(0, 512)], &b, &[range(0, MIB)]).is_no());
        assert_eq!(is(&a.overlap_in(&[range(0, 512)], &b, &[range(0, MIB + 1)])), 'y');
        assert_eq!(
            is(&a.overlap_in(&[range(5, 6), range(0, 1)], &b, &[range(0, 1), range(MIB, MIB + 1)])),
            'y'
        );
        assert!(a.overlap_in(&[], &b, &[range(0, 9 * MIB)]).is_no());
    }

    #[test]
    fn ranges_too_many_to_compare_are_compared_as_a_whole() {
        let on = disk(8, Storage::default());
        let a = file_on(1, &on, range(0, 100 * MIB), 5);
        let b = file_on(2, &on, range(0, 100 * MIB), 5);
        let odd: Vec<_> = (0..RUNS_MAX as u64).map(|n| range(2 * n, 2 * n + 1)).collect();
        assert!(a.overlap_in(&odd, &b, &odd).is_no(), "two files");
        assert_eq!(is(&a.overlap_in(&odd, &a, &odd)), 'm', "one file: perhaps");
        let far = range(MIB, MIB + 1);
        assert!(a.overlap_in(&odd, &a, &[far]).is_no(), "one file, apart");
    }

    #[test]
    fn loop_devices_are_stored_in_their_file() {
        let image = file(7, Storage::default());
        let one = |n, offset| whole(disk(n, Storage::at(image.clone(), offset, 100 * MIB)));
        both_ways(&one(1, 0), &one(2, 0), 'y');
        both_ways(&one(1, 0), &whole(image.clone()), 'y');
        let (a, b) = (one(1, 0), one(2, MIB));
        assert!(a.overlap_in(&[range(0, MIB)], &b, &[range(0, MIB)]).is_no(), "apart in the file");
        assert_eq!(is(&a.overlap_in(&[range(MIB, MIB + 1)], &b, &[range(0, 1)])), 'y');
        // A loop on a loop.
        let below = disk(1, Storage::at(image.clone(), MIB, 100 * MIB));
        let above = whole(disk(3, Storage::at(below, MIB, 50 * MIB)));
        let image = whole(image);
        assert_eq!(is(&above.overlap_in(&[range(0, 1)], &image, &[range(2 * MIB, 2 * MIB + 1)])), 'y');
        assert!(above.overlap_in(&[range(0, 1)], &image, &[range(0, 2 * MIB)]).is_no());
    }

    //= promise 7
    #[test]
    fn files_of_one_file_system_are_apart_and_not_from_their_disk() {
        let sda = disk(8, Storage::default());
        let at = range(MIB, 10 * MIB);
        let (a, b) = (file_on(1, &sda, at, 5), file_on(2, &sda, at, 5));
        both_ways(&a, &b, 'n');
        both_ways(&a, &a, 'y');
        both_ways(&a, &whole(sda.clone()), 'm');
        both_ways(&a, &Storage::at(sda.clone(), MIB, MIB), 'm');
        both_ways(&a, &Storage::at(sda.clone(), 10 * MIB, MIB), 'n');
        // A loop device over one of them, its file system, and a file of that.
        let image = file(1, Storage::within(sda.clone(), at, Decides::FileSystem(5)));
        let looped = disk(70, Storage::at(image, 0, MIB));
        let inner = file_on(3, &looped, range(0, MIB), 6);
        both_ways(&inner, &file_on(4, &looped, range(0, MIB), 6), 'n');
        both_ways(&inner, &a, 'm');
        both_ways(&inner, &b, 'n');
        both_ways(&inner, &whole(sda), 'm');
        // The same image mounted twice, through two loop devices.
        let image = file(1, Storage::default());
        let mount = |n, fs| file_on(9 + fs, &disk(n, Storage::at(image.clone(), 0, MIB)), range(0, MIB), fs);
        both_ways(&mount(71, 20), &mount(72, 21), 'm');
    }

    #[test]
    fn devices_that_do_not_say_how_they_map_may_overlap() {
        let sda = disk(8, Storage::default());
        let all = range(0, 1 << 40);
        let volume = |n| {
            let leaf = LeafId { space: LeafSpace::Disk, id: (n, 0) };
            disk(n, Storage::within(sda.clone(), all, Decides::Device(leaf)))
        };
        both_ways(&whole(volume(100)), &whole(volume(101)), 'm');
        both_ways(&whole(volume(100)), &whole(sda.clone()), 'm');
        both_ways(&whole(volume(100)), &whole(volume(100)), 'y');
        // Two files on the file systems of two such volumes: a user who may not look into the tables copies them all
        // the same.
        let a = file_on(1, &volume(100), all, 5);
        let b = file_on(2, &volume(101), all, 6);
        both_ways(&a, &b, 'n');
        both_ways(&a, &whole(volume(101)), 'm');
        // Two partitions of one array: decided on the array, not on its disks.
        let array = volume(9);
        let part = |from, to| Storage::at(array.clone(), from, to - from);
        both_ways(&part(0, MIB), &part(MIB, 2 * MIB), 'n');
        both_ways(&part(0, MIB + 1), &part(MIB, 2 * MIB), 'y');
    }

    //= promise 7
    #[test]
    fn stripes_lie_where_they_are_dealt() {
        let (a, b) = (disk(1, Storage::default()), disk(2, Storage::default()));
        let striped = Storage::default().and_striped(range(0, 100), a.clone(), (0, 2, 10), 1000).and_striped(
            range(0, 100),
            b.clone(),
            (1, 2, 10),
            2000,
        );
        let on = |device: &Arc<Stored>, from, to| Storage::at(device.clone(), from, to - from);
        let part =
            |from, to, on: &Storage| is(&striped.overlap_in(&[range(from, to)], on, &[range(0, 1000)]));
        assert_eq!(part(0, 10, &on(&a, 1000, 1010)), 'y');
        assert_eq!(part(0, 10, &on(&a, 1010, 2000)), 'n');
        assert_eq!(part(0, 10, &on(&b, 0, 3000)), 'n');
        assert_eq!(part(25, 26, &on(&a, 1015, 1016)), 'y');
        assert_eq!(part(25, 26, &on(&a, 1014, 1015)), 'n');
        assert_eq!(part(25, 26, &on(&a, 1016, 1100)), 'n');
        assert_eq!(part(19, 30, &on(&b, 2009, 2010)), 'y');
        assert_eq!(part(20, 30, &on(&b, 2000, 2100)), 'n');
        // Byte by byte against the definition.
        for at in 0..100u64 {
            let (chunk, inside) = (at / 10, at % 10);
            let place = chunk / 2 * 10 + inside;
            for (index, device, offset) in [(0, &a, 1000), (1, &b, 2000)] {
                let expected = if chunk % 2 == index { 'y' } else { 'n' };
                let there = on(device, offset + place, offset + place + 1);
                assert_eq!(part(at, at + 1, &there), expected, "{at} {index}");
            }
        }
    }

    #[test]
    fn a_map_has_the_places_of_its_legs() {
        let (a, b) = (disk(1, Storage::default()), disk(2, Storage::default()));
        let mut map = Storage::default();
        map.add(0, range(MIB, 2 * MIB), &Storage::at(a.clone(), 4 * MIB, 10 * MIB));
        map.add(MIB, range(0, MIB), &whole(b.clone()));
        assert_eq!(
            is(&map.overlap_in(&[range(0, 1)], &whole(a.clone()), &[range(5 * MIB, 5 * MIB + 1)])),
            'y'
        );
        assert!(map.overlap_in(&[range(0, 1)], &whole(a), &[range(0, 5 * MIB)]).is_no());
        assert_eq!(is(&map.overlap_in(&[range(MIB, MIB + 1)], &whole(b.clone()), &[range(0, 1)])), 'y');
        assert!(map.overlap_in(&[range(0, MIB)], &whole(b), &[range(0, MIB)]).is_no());
    }

    //= promise 7
    #[test]
    fn what_a_target_serves_may_be_what_is_here() {
        let far = |n| LeafId { space: LeafSpace::Namespace, id: (n, n) };
        let remote = |n, generation| {
            whole(Stored::new(far(n), "ns", Storage::default())).and_known_as(Some(far(n)), generation)
        };
        let local = |n, generation| whole(file(n, Storage::default())).and_known_as(None, generation);
        both_ways(&remote(1, [1; 16]), &local(1, [1; 16]), 'm');
        both_ways(&remote(1, [1; 16]), &local(1, [2; 16]), 'n');
        both_ways(&remote(1, [1; 16]), &remote(2, [1; 16]), 'm');
        both_ways(&local(1, [1; 16]), &local(2, [1; 16]), 'n');
    }

    #[test]
    fn leaves_in_words() {
        let leaf = LeafId { space: LeafSpace::Disk, id: (7, 0) };
        let words = leaf_words(Identity::Leaf { leaf, base: 512 }).unwrap();
        assert_eq!(words, "disk 7 0 512");
        assert_eq!(parse_leaf(&words), Some((leaf, 512)));
        assert_eq!(leaf_words(Identity::Leaf { leaf: LeafId::fresh(), base: 0 }), None);
        for bad in ["", "disk", "disk 7 0", "memory 1 0 0", "disk -1 0 0", "file 1 2 18446744073709551616"] {
            assert_eq!(parse_leaf(bad), None, "{bad}");
        }
    }

    #[test]
    fn known_places_end_where_something_decides() {
        let place = |start, end, leaf, offset| KnownPlace { range: range(start, end), leaf, offset };
        let below = Storage::within(disk(1, Storage::default()), range(0, 9 * MIB), Decides::FileSystem(7));
        let backing = file(3, below);
        // A partition from the second MiB on of a loop device that begins one MiB into its file.
        let whole_loop = disk(2, Storage::at(backing.clone(), MIB, 4 * MIB));
        let part = Storage::at(whole_loop.clone(), 2 * MIB, 10 * MIB);
        let expected =
            [place(0, 10 * MIB, whole_loop.leaf, 2 * MIB), place(0, 2 * MIB, backing.leaf, 3 * MIB)];
        assert_eq!(part.known_places(), expected);
        assert_eq!(part.deciders(), BTreeSet::from([Decides::FileSystem(7)]));
        // A table of two lines that lie in turned order.
        let turned = Storage::default().and_at(range(0, MIB), whole_loop.clone(), 3 * MIB);
        let turned = turned.and_at(range(MIB, 2 * MIB), whole_loop.clone(), 2 * MIB);
        let places = turned.known_places();
        assert!(places.contains(&place(0, MIB, backing.leaf, 4 * MIB)), "{places:?}");
        assert!(places.contains(&place(MIB, 2 * MIB, backing.leaf, 3 * MIB)), "{places:?}");
        assert_eq!(places.len(), 4);
    }

    #[test]
    fn too_many_parts_may_be_anywhere() {
        let a = disk(1, Storage::default());
        let many = (0..=RUNS_MAX as u64)
            .fold(Storage::default(), |s, n| s.and_at(range(2 * n, 2 * n + 1), a.clone(), 4 * n));
        both_ways(&many, &whole(disk(2, Storage::default())), 'm');
    }
}

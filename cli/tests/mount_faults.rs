//! A mount over devices that fail, lose power or do not answer: every error reaches its caller, no byte is wrong,
//! nothing hangs.
//!
//! The server is this binary again; over its standard input it is told what its devices are to do (`child::World`).

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

#[path = "common/child.rs"]
mod child;
mod common;

use blkcopy::sys::blkcopy::{self as calls, Entry};
use blkcopy::sys::mapped::Mapped;
use child::{Kind, Mounted, SECTOR};
use common::{KIB, MIB, skip};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nothing here takes longer; a guard against hanging, not a promise.
const PATIENCE: Duration = Duration::from_secs(60);
/// `O_DSYNC` of Linux.
const DSYNC: i32 = 0o10000;

/// Not a test: the server process of others.
#[test]
fn mount_child() {
    child::serve_if_asked();
}

fn cannot(test: &str) -> bool {
    child::mounts_or_why().inspect_err(|why| skip(test, why)).is_err()
}

/// What a call changes in one place, and how much of it the call says is done.
struct Change {
    vol: usize,
    at: u64,
    new: Vec<u8>,
    good: u64,
}

/// One call.
#[derive(Clone, Copy, Debug)]
enum Call {
    Write {
        to: usize,
        at: u64,
        len: usize,
        sync: bool,
    },
    Copy {
        from: usize,
        at: u64,
        to: usize,
        dest: u64,
        len: u64,
        sync: bool,
    },
    /// `BLKCOPY` where both are one volume.
    Ioctl {
        from: usize,
        to: usize,
        entries: &'static [(u64, u64, u64)],
        durable: bool,
    },
    Truncate {
        vol: usize,
        size: u64,
    },
    Punch {
        vol: usize,
        at: u64,
        len: u64,
        sync: bool,
    },
    Fsync {
        vol: usize,
    },
}

/// A mount of test devices, and what its volumes hold.
struct Set {
    size: u64,
    files: Vec<File>,
    synced: Vec<File>,
    model: Vec<Vec<u8>>,
    seed: u64,
    // The last to go: the server waits for files that are open.
    mounted: Mounted,
}

impl Set {
    fn new(size: u64, devices: &[Kind]) -> Self {
        let mounted = child::own_few(size, devices);
        let open = |flags| -> Vec<File> {
            let path = |i: usize| mounted.dir.join(format!("vol{i}"));
            let one = |i| File::options().read(true).write(true).custom_flags(flags).open(path(i)).unwrap();
            (0..devices.len()).map(one).collect()
        };
        let (files, synced) = (open(0), open(DSYNC));
        let model = vec![vec![0; size as usize]; devices.len()];
        Self { size, files, synced, model, seed: 1, mounted }
    }

    fn file(&self, vol: usize, sync: bool) -> &File {
        if sync { &self.synced[vol] } else { &self.files[vol] }
    }

    fn fresh(&mut self, len: usize) -> Vec<u8> {
        self.seed += 1;
        common::bytes(len, self.seed)
    }

    /// Writes all of a volume.
    fn fill(&mut self, vol: usize) {
        let bytes = self.fresh(self.size as usize);
        self.files[vol].write_all_at(&bytes, 0).unwrap();
        self.model[vol] = bytes;
    }

    fn held(&self, vol: usize, at: u64, len: u64) -> Vec<u8> {
        self.model[vol][at as usize..][..len as usize].to_vec()
    }

    /// Makes a call; what it changes, what it says is done, and its error.
    fn call(&mut self, call: Call) -> (Vec<Change>, Option<io::Error>) {
        self.mounted.step();
        let one = |vol, at, new: Vec<u8>, done: io::Result<u64>| {
            let (good, error) = done.map_or_else(|e| (0, Some(e)), |good| (good, None));
            (vec![Change { vol, at, new, good }], error)
        };
        match call {
            Call::Write { to, at, len, sync } => {
                let new = self.fresh(len);
                let done = self.file(to, sync).write_at(&new, at).map(|n| n as u64);
                one(to, at, new, done)
            }
            Call::Copy { from, at, to, dest, len, sync } => {
                let done =
                    calls::copy_file_range(&self.files[from], self.file(to, sync), Entry::new(at, dest, len));
                assert!(!matches!(done, Ok(0)), "{call:?}: 0 before the end of the source");
                one(to, dest, self.held(from, at, len), done)
            }
            Call::Ioctl { from, to, entries, durable } => {
                let mut asked: Vec<Entry> = entries
                    .iter()
                    .map(|&(at, dest, len)| Entry { comp_len: 99, ..Entry::new(at, dest, len) })
                    .collect();
                let done = if from == to {
                    calls::blkcopy(&self.files[to], &mut asked)
                } else {
                    let token = calls::blkcopy_source(&self.files[from]).unwrap();
                    let flags = if durable { calls::DURABLE } else { 0 };
                    calls::blkcopy_from(&self.files[to], token, flags, &mut asked)
                };
                // No entry here reads what another one writes.
                let change = |e: &Entry| Change {
                    vol: to,
                    at: e.dest,
                    new: self.held(from, e.source, e.len),
                    good: e.comp_len,
                };
                (asked.iter().map(change).collect(), done.err())
            }
            Call::Truncate { vol, size } => {
                let new = vec![0; (self.size - size) as usize];
                let done = self.files[vol].set_len(size).map(|()| new.len() as u64);
                // The kernel shows the shorter size for a moment, and copies no more than that.
                let begun = Instant::now();
                while self.files[vol].metadata().unwrap().len() != self.size {
                    assert!(begun.elapsed() < PATIENCE, "a volume that was cut never gets its size back");
                }
                one(vol, size, new, done)
            }
            Call::Punch { vol, at, len, sync } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let done = fallocate(self.file(vol, sync), flags, at, len).map(|()| len);
                one(vol, at, vec![0; len as usize], done.map_err(io::Error::from))
            }
            Call::Fsync { vol } => (Vec::new(), self.files[vol].sync_all().err()),
        }
    }

    /// Looks at everything a call has changed, and takes it into the model.
    fn look(&mut self, what: &str, call: Call, changes: Vec<Change>, error: Option<&io::Error>, fired: bool) {
        let short = changes.iter().position(|c| c.good < c.new.len() as u64);
        if !fired {
            assert!(
                error.is_none() && short.is_none(),
                "{what}: nothing failed below, and yet: {error:?}, {short:?}"
            );
        }
        if fired {
            assert!(error.is_some() || short.is_some(), "{what}: the device failed and nobody is told");
        }
        if let Some(error) = error {
            assert_eq!(error.raw_os_error(), Some(5), "{what}: EIO is what the device said, not {error}");
            assert!(
                short.is_some() || matches!(call, Call::Fsync { .. }),
                "{what}: {error}, and all is good"
            );
        }
        let in_order = matches!(call, Call::Ioctl { durable: false, .. });
        for (i, change) in changes.iter().enumerate() {
            let Change { vol, at, ref new, good } = *change;
            assert!(good <= new.len() as u64, "{what}: {good} good bytes of {}", new.len());
            let behind = short.is_some_and(|short| short < i);
            assert!(
                !behind || good == 0,
                "{what}: entry {i} stands behind the failed one and is good for {good}"
            );
            let mut now = vec![0; new.len()];
            self.files[vol].read_exact_at(&mut now, at).unwrap();
            let old = &mut self.model[vol][at as usize..][..new.len()];
            for (n, ((now, new), old)) in now.iter().zip(new).zip(&*old).enumerate() {
                let is_good = (n as u64) < good;
                let may = now == new || (!is_good && now == old);
                assert!(
                    may,
                    "{what}: byte {n} of change {i} ({good} good) is {now:#04x}, not {new:#04x} (was {old:#04x})"
                );
            }
            if behind && in_order {
                assert!(now == *old, "{what}: entry {i} behind the failed one was begun");
            }
            old.copy_from_slice(&now);
        }
    }

    /// Nothing else changed anywhere.
    fn is_as_modelled(&self, what: &str) {
        for (vol, model) in self.model.iter().enumerate() {
            let mut now = vec![0; model.len()];
            self.files[vol].read_exact_at(&mut now, 0).unwrap();
            if let Some(at) = now.iter().zip(model).position(|(a, b)| a != b) {
                panic!("{what}: byte {at} of volume {vol} is {:#04x}, not {:#04x}", now[at], model[at]);
            }
        }
    }

    /// What the disks hold for good, by `how` (`durable`, `cut SEED`, `stop`).
    fn durable(&self, how: &str, disks: usize) -> Vec<Vec<u8>> {
        let file = self.mounted.dir.parent().unwrap().join("dump");
        self.mounted.ask(&format!("{how} {}", file.display()));
        let path = |i| PathBuf::from(format!("{}.{i}", file.display()));
        (0..disks).map(|i| std::fs::read(path(i)).unwrap()).collect()
    }
}

const SIZE: u64 = MIB;

/// Volumes 0 and 1 are memory, 2 and 3 disks: between the kinds no device copies.
const SCRIPT: &[Call] = &[
    Call::Write { to: 0, at: 1001, len: 100_000, sync: false },
    Call::Write { to: 2, at: 777, len: 70_001, sync: false },
    Call::Write { to: 3, at: 4096, len: 8192, sync: true },
    Call::Write { to: 3, at: 100, len: 5000, sync: true },
    // Short enough for a reader, too long for one, through this process, ragged in and out of step.
    Call::Copy { from: 0, at: 5000, to: 1, dest: 9000, len: 60_001, sync: false },
    Call::Copy { from: 0, at: 1, to: 1, dest: 100_001, len: 300_007, sync: false },
    Call::Copy { from: 0, at: 4096, to: 2, dest: 8192, len: 131_072, sync: false },
    Call::Copy { from: 0, at: 333, to: 2, dest: 300_001, len: 100_003, sync: false },
    Call::Copy { from: 2, at: 1000, to: 3, dest: 5608, len: 90_000, sync: false },
    Call::Copy { from: 2, at: 100, to: 3, dest: 400_333, len: 50_001, sync: false },
    Call::Copy { from: 2, at: 600_000, to: 3, dest: 600_000, len: 70_000, sync: true },
    Call::Ioctl {
        from: 1,
        to: 1,
        entries: &[
            (0, 600_000, 50_000),
            (700_000, 500_001, 4097),
            (60_000, 800_000, 300),
            (90_000, 900_001, 99_999),
        ],
        durable: false,
    },
    Call::Ioctl {
        from: 0,
        to: 3,
        entries: &[(0, 700_416, 50_176), (100_000, 800_001, 70_003), (300_000, 900_096, 512)],
        durable: true,
    },
    Call::Truncate { vol: 1, size: 500_001 },
    Call::Truncate { vol: 3, size: 900_001 },
    // Half of it is owed, and reads as zero.
    Call::Copy { from: 1, at: 480_000, to: 0, dest: 700_000, len: 90_000, sync: false },
    Call::Punch { vol: 2, at: 100_001, len: 200_000, sync: false },
    Call::Punch { vol: 3, at: 5_000, len: 3_000, sync: true },
    Call::Fsync { vol: 0 },
    Call::Fsync { vol: 1 },
    Call::Fsync { vol: 2 },
    Call::Fsync { vol: 3 },
];

/// Fails operation after operation of a kind until a run is clean.
fn every_nth(op: &str) {
    if cannot(&format!("every failing {op} under a mount")) {
        return;
    }
    let mut set = Set::new(SIZE, &[Kind::Failing, Kind::Failing, Kind::Disk, Kind::Disk]);
    for (forever, good) in [(false, 0), (true, 0), (false, 5000)] {
        let mut nth = 0;
        loop {
            nth += 1;
            [0, 2].into_iter().for_each(|vol| set.fill(vol));
            set.mounted.ask(&format!("arm {op} {nth} {forever} {good}"));
            let mut before = 0;
            for &call in SCRIPT {
                let (changes, error) = set.call(call);
                let fired: u64 = set.mounted.ask("pause").parse().unwrap();
                let what = format!("{op} {nth}, for ever: {forever}, {good} done before; {call:?}");
                set.look(&what, call, changes, error.as_ref(), fired > before);
                before = fired;
                set.mounted.ask("resume");
            }
            set.mounted.ask("pause");
            let what = format!("{op} {nth}, for ever: {forever}, {good} done before");
            set.is_as_modelled(&what);
            // These devices do not remember a failed flush: the next that ends well holds for everything before it.
            set.files.iter().for_each(|file| file.sync_all().unwrap());
            assert!(
                set.durable("durable", 2) == set.model[2..],
                "{what}: fsync has ended and not all is durable"
            );
            if before == 0 {
                eprintln!("{op}, for ever: {forever}, {good} done before: {} runs failed", nth - 1);
                assert!(nth > 1, "no {op} was ever made: the script tests nothing");
                break;
            }
        }
    }
    drop((std::mem::take(&mut set.files), std::mem::take(&mut set.synced)));
    let file = set.mounted.dir.parent().unwrap().join("end");
    assert_eq!(set.mounted.ask(&format!("stop {}", file.display())), "Ok(())", "it ends well after all that");
}

//= promise 5, mount
#[test]
fn every_failing_read_is_told_truthfully() {
    every_nth("READ");
}

//= promise 5, mount
#[test]
fn every_failing_write_is_told_truthfully() {
    every_nth("WRITE");
}

//= promise 5, mount
#[test]
fn every_failing_write_zeroes_is_told_truthfully() {
    every_nth("WRITE_ZEROES");
}

//= promise 6, mount, events
#[test]
fn every_failing_flush_is_told_truthfully() {
    every_nth("FLUSH");
}

//= promise 5, mount
#[test]
fn every_failing_copy_is_told_truthfully() {
    every_nth("COPY");
}

//= promise 5, mount
#[test]
fn the_good_prefix_of_a_copy_is_to_the_byte() {
    if cannot("the_good_prefix_of_a_copy_is_to_the_byte") {
        return;
    }
    let mut set = Set::new(SIZE, &[Kind::Failing, Kind::Failing]);
    set.fill(0);
    let copy = |len| Call::Copy { from: 0, at: 7, to: 1, dest: 100_003, len, sync: false };
    for (call, goods) in [
        (copy(60_000), vec![5000]),
        (copy(300_000), vec![5000]),
        (
            Call::Ioctl {
                from: 0,
                to: 1,
                entries: &[(0, 0, 1000), (70_000, 500_000, 9001), (1, 2000, 3000)],
                durable: false,
            },
            // The second copy is the one that fails.
            vec![1000, 5000, 0],
        ),
    ] {
        let nth = goods.len().min(2);
        set.mounted.ask(&format!("arm COPY {nth} false 5000"));
        let (changes, error) = set.call(call);
        let fired = set.mounted.ask("pause");
        assert_eq!(fired, "1");
        assert_eq!(changes.iter().map(|c| c.good).collect::<Vec<_>>(), goods, "{call:?}");
        assert_eq!(error.is_some(), goods.len() > 1, "{call:?}: {error:?}");
        set.look("a copy that ends after 5000 bytes", call, changes, error.as_ref(), true);
        set.is_as_modelled("a copy that ends after 5000 bytes");
    }
}

//= promise 5, mount
#[test]
fn a_copy_ends_where_the_second_leg_fails() {
    if cannot("a_copy_ends_where_the_second_leg_fails") {
        return;
    }
    let border = SIZE / 2;
    let mut set = Set::new(SIZE, &[Kind::Memory, Kind::HalfFailing]);
    [0, 1].into_iter().for_each(|vol| set.fill(vol));
    let across = |len, before| Call::Copy { from: 0, at: 11, to: 1, dest: border - before, len, sync: false };
    for op in ["WRITE", "COPY", "ALL"] {
        for (len, before) in [(100_000, 30_001), (400_000, 100_000)] {
            set.mounted.ask(&format!("arm {op} 1 true 0"));
            for (call, goods) in [
                (across(len, before), vec![before]),
                (across(len, 0), vec![0]),
                (
                    Call::Ioctl {
                        from: 0,
                        to: 1,
                        entries: &[(0, 1000, 5000), (9000, 512 * KIB - 3000, 8000), (50_000, 20_000, 100)],
                        durable: false,
                    },
                    vec![5000, 3000, 0],
                ),
                (Call::Copy { from: 0, at: 0, to: 1, dest: 200_000, len: 9999, sync: false }, vec![9999]),
            ] {
                let (changes, error) = set.call(call);
                let fired = set.mounted.ask("pause") != "0" && goods != [9999];
                let what = format!("{op}: {call:?}");
                if op != "WRITE" {
                    assert_eq!(changes.iter().map(|c| c.good).collect::<Vec<_>>(), goods, "{what}");
                    assert_eq!(fired, goods != [9999], "{what}");
                }
                set.look(&what, call, changes, error.as_ref(), fired);
                set.mounted.ask("resume");
            }
            set.mounted.ask("pause");
            set.is_as_modelled(op);
        }
    }
}

// --- power cuts ------------------------------------------------------------------------------------------------------

/// After each call the power is cut; what the second disk holds then.
fn cut_after(calls: &[Call], survives: bool) {
    for seed in 1..=3u64 {
        let mut set = Set::new(256 * KIB, &[Kind::Disk, Kind::Disk, Kind::Memory]);
        set.seed = seed << 32;
        (0..3).for_each(|vol| set.fill(vol));
        set.files.iter().for_each(|file| file.sync_all().unwrap());
        let old = set.model[1].clone();
        for &call in calls {
            let (changes, error) = set.call(call);
            set.look("nothing fails", call, changes, error.as_ref(), false);
        }
        let held = &set.durable(&format!("cut {seed}"), 2)[1];
        let (mut kept, mut lost) = (0, 0);
        let sectors = |bytes: &[u8]| bytes.chunks(SECTOR as usize).map(<[u8]>::to_vec).collect::<Vec<_>>();
        for (n, ((held, new), old)) in
            sectors(held).iter().zip(sectors(&set.model[1])).zip(sectors(&old)).enumerate()
        {
            assert!(
                *held == new || *held == old,
                "seed {seed}: sector {n} is neither old nor new after {calls:?}"
            );
            if new != old {
                *(if *held == new { &mut kept } else { &mut lost }) += 1;
            }
        }
        eprintln!("seed {seed}: {kept} sectors kept, {lost} lost after {calls:?}");
        assert!(kept + lost > 0, "something was changed");
        assert!(lost == 0 || !survives, "seed {seed}: {lost} sectors were lost after {calls:?}");
        // Else the cut shows nothing.
        assert!(lost > 0 || survives, "seed {seed}: nothing was lost");
        set.mounted.kill();
    }
}

const FSYNC: Call = Call::Fsync { vol: 1 };

/// From the other disk and from memory, ragged and not.
fn copies(sync: bool) -> [Call; 3] {
    [
        Call::Copy { from: 0, at: 512, to: 1, dest: 8192, len: 40_960, sync },
        Call::Copy { from: 2, at: 77, to: 1, dest: 60_001, len: 33_333, sync },
        Call::Copy { from: 0, at: 1000, to: 1, dest: 150_100, len: 50_001, sync },
    ]
}

const RANGES: &[(u64, u64, u64)] = &[(0, 4096, 30_000), (100_001, 50_000, 3), (60_000, 99_999, 77_777)];

fn ioctl(durable: bool) -> Call {
    Call::Ioctl { from: 2, to: 1, entries: RANGES, durable }
}

//= promise 6, mount, events
#[test]
fn copies_that_were_synced_survive_a_power_cut() {
    if cannot("copies_that_were_synced_survive_a_power_cut") {
        return;
    }
    let [a, b, c] = copies(false);
    cut_after(&[a, b, c, FSYNC], true);
    cut_after(&[ioctl(false), FSYNC], true);
}

//= promise 5, events
#[test]
fn each_block_of_an_unsynced_copy_is_old_or_new_after_a_power_cut() {
    if cannot("each_block_of_an_unsynced_copy_is_old_or_new_after_a_power_cut") {
        return;
    }
    // Sectors that two calls change may hold what was there in between: these lie apart.
    cut_after(&copies(false), false);
    cut_after(&[ioctl(false)], false);
}

//= promise mount
#[test]
fn copies_onto_a_synchronous_descriptor_survive_a_power_cut() {
    if cannot("copies_onto_a_synchronous_descriptor_survive_a_power_cut") {
        return;
    }
    copies(true).iter().for_each(|&copy| cut_after(&[copy], true));
}

//= promise mount
#[test]
fn a_durable_ioctl_survives_a_power_cut() {
    if cannot("a_durable_ioctl_survives_a_power_cut") {
        return;
    }
    cut_after(&[ioctl(true)], true);
}

//= promise mount
#[test]
fn synchronous_writes_survive_a_power_cut() {
    if cannot("synchronous_writes_survive_a_power_cut") {
        return;
    }
    cut_after(&[Call::Write { to: 1, at: 4096, len: 65_536, sync: true }], true);
    cut_after(&[Call::Write { to: 1, at: 10_001, len: 70_007, sync: true }], true);
}

//= promise mount
#[test]
fn zeroes_survive_a_power_cut_once_synced() {
    if cannot("zeroes_survive_a_power_cut_once_synced") {
        return;
    }
    // More than 64 KiB is owed, less is stored at once.
    for size in [100_001, 240_007, 0] {
        cut_after(&[Call::Truncate { vol: 1, size }, FSYNC], true);
    }
    let punch = |sync| Call::Punch { vol: 1, at: 10_001, len: 150_000, sync };
    cut_after(&[punch(false), FSYNC], true);
    cut_after(&[punch(true)], true);
}

//= promise mount
#[test]
fn a_mount_that_ends_has_flushed_its_volumes() {
    if cannot("a_mount_that_ends_has_flushed_its_volumes") {
        return;
    }
    let mut set = Set::new(256 * KIB, &[Kind::Disk, Kind::Disk, Kind::Memory]);
    (0..3).for_each(|vol| set.fill(vol));
    for call in copies(false).into_iter().chain([ioctl(false), Call::Truncate { vol: 1, size: 100_001 }]) {
        let (changes, error) = set.call(call);
        set.look("nothing fails", call, changes, error.as_ref(), false);
    }
    drop((std::mem::take(&mut set.files), std::mem::take(&mut set.synced)));
    assert!(set.durable("stop", 2) == set.model[..2], "what was written before it ended is lost");
}

// --- nobody waits for whom he need not -------------------------------------------------------------------------------

/// A call on the volume that never answers and on one that does.
type Work<'a> = Box<dyn Fn(&File, &File) -> io::Result<u64> + Send + Sync + 'a>;

//= promise 8, mount
#[test]
fn copies_and_io_that_never_end_keep_nobody_else_waiting() {
    if cannot("copies_and_io_that_never_end_keep_nobody_else_waiting") {
        return;
    }
    let half = MIB / 2;
    let memory = [Kind::Memory; 6];
    let set = Set::new(MIB, &[&[Kind::HalfStuck], &memory[..], &[Kind::HalfStuck]].concat());
    let open = |vol: usize| {
        File::options().read(true).write(true).open(set.mounted.dir.join(format!("vol{vol}"))).unwrap()
    };
    let files: Vec<File> = (0..8).map(open).collect();
    set.files[1].write_all_at(&common::bytes(MIB as usize, 1), 0).unwrap();
    let (open, done) = (&open, &std::array::from_fn::<_, 15, _>(|_| AtomicU64::new(0)));
    let so_far = || done.each_ref().map(|count| count.load(Ordering::Relaxed));
    let from = |source: &File, dest: &File, entry| {
        let token = calls::blkcopy_source(source)?;
        calls::blkcopy_from(dest, token, 0, &mut [entry]).map(|()| 1)
    };
    std::thread::scope(|threads| {
        // Copies onto what never answers, copies that wait for the first of these, reads and writes there and in their
        // way: more than there are readers and copiers.
        let mut waits: Vec<Work<'_>> = Vec::new();
        waits.push(Box::new(move |s, m| from(m, s, Entry::new(0, half, 300 * KIB))));
        waits.push(Box::new(move |s, m| from(s, m, Entry::new(half, 0, 64 * KIB))));
        waits.push(Box::new(move |s, _| from(s, &open(5), Entry::new(half, 0, 64 * KIB))));
        waits.push(Box::new(move |s, _| from(s, s, Entry::new(400 * KIB, half + 400 * KIB, 4096))));
        // The kernel lets nobody write its destination meanwhile, and waits for writes onto its source: these are its
        // own.
        waits.push(Box::new(move |_, _| {
            calls::copy_file_range(open(3), open(7), Entry::new(0, half, 64 * KIB))
        }));
        // Short, in memory alone, and in the way of a copy: no reader makes it at once.
        waits.push(Box::new(move |_, _| calls::copy_file_range(open(5), open(6), Entry::new(0, 0, 4096))));
        for n in 0..3u64 {
            // The first may hold a reader; the others are handed over, since the other reader is the last.
            let apart = half + 450 * KIB + n * 4096;
            waits.push(Box::new(move |s, _| s.read_at(&mut [0; 4096], apart).map(|n| n as u64)));
            // Not in the way of the copies: one that waits for this write would hold nobody up, and not be held to it
            // here.
            let further = half + 470 * KIB + n * 4096;
            waits.push(Box::new(move |s, _| s.write_at(&[1; 4096], further).map(|n| n as u64)));
            // In the way of the first copy, on a volume that answers.
            waits.push(Box::new(move |_, m| m.write_at(&[1; 4096], n * 4096).map(|n| n as u64)));
        }
        let stuck = waits.into_iter().enumerate().map(|(nth, work)| {
            let (s, m) = (open(0), open(1));
            threads.spawn(move || {
                // What comes before the copy that it is in the way of ends well, and is made again.
                while work(&s, &m).is_ok() {
                    done[nth].fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let stuck: Vec<_> = stuck.collect();
        let mut before = so_far();
        // The same volume, a destination, others: all answer.
        for n in 0..150u64 {
            set.mounted.step();
            if n == 100 {
                before = so_far();
            }
            let bytes = common::bytes(10_001, n + 1);
            for (vol, at) in [(0, 2000 * n), (1, half + 2000 * n), (2, 6000 * n)] {
                files[vol].write_all_at(&bytes, at).unwrap();
                let mut seen = vec![0; bytes.len()];
                files[vol].read_exact_at(&mut seen, at).unwrap();
                assert!(seen == bytes, "volume {vol}");
            }
            // Short ones and long ones, by both calls.
            let len = if n % 2 == 0 { 5000 } else { 280_000 };
            let copied =
                calls::copy_file_range(&files[2], &files[4], Entry::new(half + 9, 100, len)).unwrap();
            assert_eq!(copied, len);
            calls::blkcopy(&files[1], &mut [Entry::new(half, half + 320 * KIB, 4096)]).unwrap();
            files[2].sync_all().unwrap();
        }
        let after = so_far();
        let waiting = stuck.iter().filter(|thread| !thread.is_finished()).count();
        // Whoever waits gets an error.
        common::sh(&format!("kill -KILL {}", set.mounted.pid())).unwrap();
        let count = stuck.len();
        stuck.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!((after, waiting), (before, count), "what is in the way of a copy that never ends went on");
    });
}

//= promise mount
#[test]
fn many_ioctls_at_once_over_dirty_pages_end() {
    if cannot("many_ioctls_at_once_over_dirty_pages_end") {
        return;
    }
    const THREADS: u64 = 12;
    const PART: u64 = 48 * KIB;
    let mounted = child::own_few(2 * MIB, &[Kind::Failing, Kind::Failing]);
    let open =
        |vol| File::options().read(true).write(true).open(mounted.dir.join(format!("vol{vol}"))).unwrap();
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            let (open, mounted) = (&open, &mounted);
            threads.spawn(move || {
                // Half of them go the other way.
                let (source, dest) = (open(thread % 2), open(1 - thread % 2));
                let token = calls::blkcopy_source(&source).unwrap();
                let [mut from, mut to] =
                    [&source, &dest].map(|file| Mapped::new(file, 2 * MIB as usize).unwrap());
                let at = thread * 2 * PART;
                for round in 0..25 {
                    mounted.step();
                    let bytes = common::bytes(PART as usize, thread << 32 | (round + 1));
                    // Both ends are dirty: they come back as writes while the invalidation waits for them.
                    from.write(at as usize, &bytes);
                    to.write((at + PART) as usize, &vec![round as u8; PART as usize]);
                    let half = PART / 2 + 1;
                    let mut entries = [
                        Entry::new(at, at + PART, half),
                        Entry::new(at + half, at + PART + half, PART - half),
                    ];
                    calls::blkcopy_from(&dest, token, 0, &mut entries).unwrap();
                    let mut seen = vec![0; PART as usize];
                    dest.read_exact_at(&mut seen, at + PART).unwrap();
                    assert!(seen == bytes, "thread {thread}, round {round}: what is read");
                    to.read((at + PART) as usize, &mut seen);
                    assert!(seen == bytes, "thread {thread}, round {round}: what is mapped");
                }
            });
        }
    });
}

//= promise mount
#[test]
fn a_page_that_is_looked_at_all_the_time_is_new_once_an_ioctl_has_returned() {
    if cannot("a_page_that_is_looked_at_all_the_time_is_new_once_an_ioctl_has_returned") {
        return;
    }
    let mounted = child::own_few(8 * MIB, &[Kind::Failing, Kind::Failing]);
    let open =
        |vol| File::options().read(true).write(true).open(mounted.dir.join(format!("vol{vol}"))).unwrap();
    let (source, dest) = (open(0), open(1));
    let token = calls::blkcopy_source(&source).unwrap();
    let map = Mapped::new(&dest, 8 * MIB as usize).unwrap();
    let over = AtomicBool::new(false);
    let (at, len) = (6 * MIB, 16 * KIB);
    std::thread::scope(|threads| {
        // Brings its pages back after the first invalidation, while the first entry is copied and before the second is.
        threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                (0..len as usize).step_by(4096).for_each(|page| map.read(at as usize + page, &mut [0]));
            }
        });
        for round in 1..=100u64 {
            mounted.step();
            let bytes = common::bytes(len as usize, round);
            source.write_all_at(&bytes, at).unwrap();
            let mut entries = [Entry::new(0, 0, 6 * MIB), Entry::new(at, at, len)];
            calls::blkcopy_from(&dest, token, 0, &mut entries).unwrap();
            let mut seen = vec![0; len as usize];
            map.read(at as usize, &mut seen);
            // Threads of a scope are waited for also when this fails.
            over.store(seen != bytes || round == 100, Ordering::Relaxed);
            assert!(seen == bytes, "round {round}: old bytes are shown");
        }
    });
}

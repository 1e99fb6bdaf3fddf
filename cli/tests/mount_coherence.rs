//! What a mount promises about copies beside other access: the matrix of `docs/semantics.md`, one test a cell.
//!
//! Rows: `copy_file_range`, the ioctl, another front end (NVMe/TCP) of the same volumes. Columns: through the page
//! cache, mapped, direct. Depth: written before the copy, looked at during it, looked at after it.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

#[path = "common/child.rs"]
mod child;
mod common;

use blkcopy::sys::blkcopy::{self as calls, Entry};
use blkcopy::sys::mapped::Mapped;
use child::Mounted;
use common::{KIB, MIB, blkcopy, skip};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SIZE: u64 = 4 * MIB;
/// Ragged on purpose: the first and last page of a copy hold bytes that are not its own.
const FROM: u64 = 100_001;
const TO: u64 = 1_500_007;
const LEN: u64 = 200_003;

/// Not a test: the server process of others.
#[test]
fn mount_child() {
    child::serve_if_asked();
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    CopyFileRange,
    Ioctl,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum View {
    Cached,
    Mapped,
    Direct,
}

/// Two volumes, the ways to look at them, and the ways to copy from the first to the second.
struct Scene {
    by: By,
    view: View,
    source: File,
    dest: File,
    maps: [Mapped; 2],
    // The last to go: the server waits for files that are open.
    mounted: Mounted,
}

impl Scene {
    fn new(by: By, view: View) -> Option<Self> {
        if let Err(why) = child::mounts_or_why() {
            skip(&format!("coherence of {by:?} and {view:?}"), &why);
            return None;
        }
        let devices = ["a=mem:4MiB".to_owned(), "b=mem:4MiB".to_owned()];
        let cache = view == View::Cached;
        let mounted = match by {
            By::Other => child::by_serve(&devices, cache),
            _ => child::by_command(&devices, cache),
        };
        let open = |name| File::options().read(true).write(true).open(mounted.dir.join(name)).unwrap();
        let (source, dest) = (open("a"), open("b"));
        let maps = [&source, &dest].map(|file| Mapped::new(file, SIZE as usize).unwrap());
        Some(Self { by, view, source, dest, maps, mounted })
    }

    fn write(&mut self, dest: bool, at: u64, bytes: &[u8]) {
        match self.view {
            View::Mapped => self.maps[usize::from(dest)].write(at as usize, bytes),
            _ => self.file(dest).write_all_at(bytes, at).unwrap(),
        }
    }

    fn read(&self, dest: bool, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        match self.view {
            View::Mapped => self.maps[usize::from(dest)].read(at as usize, &mut bytes),
            _ => self.file(dest).read_exact_at(&mut bytes, at).unwrap(),
        }
        bytes
    }

    fn file(&self, dest: bool) -> &File {
        if dest { &self.dest } else { &self.source }
    }

    /// What a kernel has not sent to the server yet, no other front end can see: the program says when it is to be
    /// seen.
    fn hand_in(&self) {
        if self.by == By::Other && self.view == View::Mapped {
            self.maps.iter().for_each(|map| map.sync(0..SIZE as usize).unwrap());
        }
    }

    /// Copies `len` bytes of the first volume to the second; an ioctl in two entries, if that is asked for.
    fn copy(&self, from: u64, to: u64, len: u64, halves: bool) {
        self.mounted.step();
        match self.by {
            By::CopyFileRange => {
                let done =
                    calls::copy_file_range(&self.source, &self.dest, Entry::new(from, to, len)).unwrap();
                assert_eq!(done, len);
            }
            By::Ioctl => {
                let token = calls::blkcopy_source(&self.source).unwrap();
                let half = if halves { len / 2 } else { len };
                let mut entries = vec![Entry::new(from, to, half)];
                if halves {
                    entries.push(Entry::new(from + half, to + half, len - half));
                }
                calls::blkcopy_from(&self.dest, token, 0, &mut entries).unwrap();
                assert!(entries.iter().all(|e| e.comp_len == e.len), "{entries:?}");
            }
            By::Other => {
                let urls = &self.mounted.urls;
                let part = |url: &str, at: u64| format!("{url}@{at}+{len}");
                let ran = blkcopy(
                    &self.mounted.dir.join(".."),
                    &["cp", "--quiet", "--yes", &part(&urls[0], from), &part(&urls[1], to)],
                );
                assert_eq!(ran.code, Some(0), "{ran:?}");
            }
        }
    }

    /// The ranges of a copy; an NVMe host copies whole blocks.
    fn ranges(&self) -> (u64, u64, u64) {
        if self.by == By::Other { (96 * KIB, 1536 * KIB, 192 * KIB) } else { (FROM, TO, LEN) }
    }
}

/// Written through a view before the copy, on both sides: the copy takes it, and nothing dirty comes back over the
/// copy.
fn before(by: By, view: View) {
    let Some(mut scene) = Scene::new(by, view) else { return };
    let (from, to, len) = scene.ranges();
    for round in 0..8u8 {
        let source = common::bytes(len as usize, u64::from(round) + 1);
        let around = vec![0x40 | round; (len + 20_000) as usize];
        scene.write(true, to - 10_000, &around);
        scene.write(false, from, &source);
        scene.hand_in();
        scene.copy(from, to, len, true);
        let mut expected = around.clone();
        expected[10_000..][..len as usize].copy_from_slice(&source);
        // By every path, and once more when all dirty pages there may be have been written.
        for _ in 0..2 {
            let mut direct = vec![0; expected.len()];
            scene.dest.read_exact_at(&mut direct, to - 10_000).unwrap();
            assert!(direct == expected, "{by:?} {view:?}, round {round}: what is read");
            scene.eventually(
                |s| s.read(true, to - 10_000, expected.len() as u64) == expected,
                "what the view shows",
            );
            scene.maps.iter().for_each(|map| map.sync(0..SIZE as usize).unwrap());
            scene.dest.sync_all().unwrap();
        }
    }
}

impl Scene {
    /// Mapped pages hear of another front end a moment later; everything else is seen at once.
    fn eventually(&self, seen: impl Fn(&Self) -> bool, what: &str) {
        let patience = if self.by == By::Other && self.view == View::Mapped { 10 } else { 0 };
        let begun = Instant::now();
        while !seen(self) {
            assert!(begun.elapsed() < Duration::from_secs(patience), "{:?} {:?}: {what}", self.by, self.view);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Looked at while copies of one thing or the other go on: never half of one. Through the cache each page by itself,
/// mapped each load.
fn during(by: By, view: View) {
    let Some(mut scene) = Scene::new(by, view) else { return };
    let (_, to, len) = (0, 1536 * KIB, 64 * KIB);
    let rounds = if by == By::Other { 20 } else { 400 };
    for (at, value) in [(0, 1u8), (len, 2)] {
        scene.write(false, at, &vec![value; len as usize]);
    }
    scene.write(true, to, &vec![1; len as usize]);
    scene.hand_in();
    let over = AtomicBool::new(false);
    // What is looked at in one go: a request, a page, a load.
    let whole = match view {
        View::Direct => len as usize,
        View::Cached => 4096,
        View::Mapped => 8,
    };
    // Direct readers and the mapping have a way of their own; the copies go on beside them.
    let looks = std::thread::scope(|threads| {
        let looking = threads.spawn(|| {
            let mut looks = 0u64;
            while !over.load(Ordering::Relaxed) || looks == 0 {
                let seen = scene.read(true, to, len);
                for part in seen.chunks(whole) {
                    let first = part[0];
                    let uniform = part.iter().all(|&b| b == first);
                    assert!(
                        uniform && (first == 1 || first == 2),
                        "{by:?} {view:?}: half a copy was seen: {first} and others"
                    );
                }
                looks += 1;
            }
            looks
        });
        let writing = threads.spawn(|| {
            // Whole requests of the very bytes that copies read: a copy reads one or the other, never some of both.
            while !over.load(Ordering::Relaxed) && view == View::Direct {
                for value in [1u8, 2] {
                    scene.source.write_all_at(&vec![value; len as usize], 0).unwrap();
                }
            }
        });
        for round in 0..rounds {
            scene.copy(len * (round % 2), to, len, false);
        }
        over.store(true, Ordering::Relaxed);
        writing.join().unwrap();
        looking.join().unwrap()
    });
    assert!(looks > 0);
}

/// Seen through a view before the copy, and looked at through it after: the new bytes.
fn after(by: By, view: View) {
    let Some(mut scene) = Scene::new(by, view) else { return };
    let (from, to, len) = scene.ranges();
    for round in 0..8u8 {
        let old = scene.read(true, to - 5000, len + 10_000);
        let source = common::bytes(len as usize, u64::from(round) + 100);
        scene.write(false, from, &source);
        scene.hand_in();
        scene.copy(from, to, len, true);
        let mut expected = old;
        expected[5000..][..len as usize].copy_from_slice(&source);
        scene.eventually(
            |s| s.read(true, to - 5000, expected.len() as u64) == expected,
            "the old bytes are shown",
        );
    }
}

macro_rules! matrix {
    ($(fn $name:ident(): $cell:ident($by:ident, $view:ident);)*) => {
        $(#[test] fn $name() { $cell(By::$by, View::$view); })*
    };
}

matrix! {
    //= promise mount
    fn copy_file_range_takes_what_was_cached_before(): before(CopyFileRange, Cached);
    //= promise mount
    fn copy_file_range_takes_what_was_mapped_before(): before(CopyFileRange, Mapped);
    //= promise mount
    fn copy_file_range_takes_what_was_written_before(): before(CopyFileRange, Direct);
    //= promise mount
    fn the_ioctl_takes_what_was_cached_before(): before(Ioctl, Cached);
    //= promise mount
    fn the_ioctl_takes_what_was_mapped_before(): before(Ioctl, Mapped);
    //= promise mount
    fn the_ioctl_takes_what_was_written_before(): before(Ioctl, Direct);
    //= promise mount
    fn an_nvme_copy_takes_what_was_cached_before(): before(Other, Cached);
    //= promise mount
    fn an_nvme_copy_takes_what_was_mapped_and_synced_before(): before(Other, Mapped);
    //= promise mount
    fn an_nvme_copy_takes_what_was_written_before(): before(Other, Direct);
    //= promise mount
    fn half_a_copy_file_range_is_seen_in_no_cached_page(): during(CopyFileRange, Cached);
    //= promise mount
    fn half_a_copy_file_range_is_seen_by_no_mapped_load(): during(CopyFileRange, Mapped);
    //= promise mount
    fn half_a_copy_file_range_is_never_read(): during(CopyFileRange, Direct);
    //= promise mount
    fn half_an_ioctl_is_seen_in_no_cached_page(): during(Ioctl, Cached);
    //= promise mount
    fn half_an_ioctl_is_seen_by_no_mapped_load(): during(Ioctl, Mapped);
    //= promise mount
    fn half_an_entry_of_an_ioctl_is_never_read(): during(Ioctl, Direct);
    //= promise mount
    fn half_an_nvme_copy_is_seen_in_no_cached_page(): during(Other, Cached);
    //= promise mount
    fn half_an_nvme_copy_is_seen_by_no_mapped_load(): during(Other, Mapped);
    //= promise mount
    fn half_an_nvme_copy_is_never_read(): during(Other, Direct);
    //= promise mount
    fn cached_reads_see_a_copy_file_range_that_has_ended(): after(CopyFileRange, Cached);
    //= promise mount
    fn mapped_loads_see_a_copy_file_range_that_has_ended(): after(CopyFileRange, Mapped);
    //= promise mount
    fn reads_see_a_copy_file_range_that_has_ended(): after(CopyFileRange, Direct);
    //= promise mount
    fn cached_reads_see_an_ioctl_that_has_ended(): after(Ioctl, Cached);
    //= promise mount
    fn mapped_loads_see_an_ioctl_that_has_ended(): after(Ioctl, Mapped);
    //= promise mount
    fn reads_see_an_ioctl_that_has_ended(): after(Ioctl, Direct);
    //= promise mount
    fn cached_reads_see_an_nvme_copy_that_has_ended(): after(Other, Cached);
    //= promise mount
    fn mapped_loads_see_an_nvme_copy_soon(): after(Other, Mapped);
    //= promise mount
    fn reads_see_an_nvme_copy_that_has_ended(): after(Other, Direct);
}

//! A mount when things go wrong: its server killed, its destination full, programs interrupted, taken away under
//! copies. Nothing hangs, every error reaches the program, every block is old or new.
//!
//! Errors of devices at each position, power cuts, and devices that never answer: `mount_faults`.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // in a test a panic is the message

mod common;

use common::mounted::{Mounted, bounded, holds, is_mounted, mounts_or_why, put, run};
use common::{BIN, MIB, Ran, Undo, bytes, folder, loops_or_why, mount_tmpfs, must, skip};
use rustix::fs::copy_file_range;
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
/// Nothing here takes longer; it is a guard against hanging, not a promise.
const PATIENCE: Duration = Duration::from_secs(60);

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// One call of `copy_file_range` between places of two files.
fn copy(from: &File, at: u64, to: &File, dest: u64, len: usize) -> Result<usize, Errno> {
    let (mut at, mut dest) = (at, dest);
    copy_file_range(from, Some(&mut at), to, Some(&mut dest), len)
}

/// Images of `len` bytes in which every block is full of one number: `seed` and its place.
fn stamped(path: &Path, len: u64, seed: u64) {
    use std::io::Write;
    let mut file = std::io::BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    for block in 0..len / BLOCK as u64 {
        file.write_all(&(seed << 32 | (block + 1)).to_le_bytes().repeat(BLOCK / 8)).unwrap();
    }
    file.into_inner().unwrap();
}

/// Every block holds one of the numbers it may: of these seeds, or zero. How many are of each seed.
fn old_or_new(path: &Path, seeds: [u64; 2]) -> [u64; 3] {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let (mut counts, mut chunk) = ([0; 3], vec![0; 1 << 20]);
    for at in (0..len).step_by(1 << 20) {
        let chunk = &mut chunk[..(len - at).min(1 << 20) as usize];
        file.read_exact_at(chunk, at).unwrap();
        for (i, block) in chunk.chunks(BLOCK).enumerate() {
            let number = at / BLOCK as u64 + i as u64;
            let found = u64::from_le_bytes(block[..8].try_into().unwrap());
            let may = [seeds[0] << 32 | (number + 1), seeds[1] << 32 | (number + 1), 0];
            let which = may.iter().position(|&m| m == found);
            let which = which.unwrap_or_else(|| panic!("block {number} holds {found:#x}"));
            assert!(block.chunks(8).all(|word| word == found.to_le_bytes()), "block {number} is torn");
            counts[which] += 1;
        }
    }
    counts
}

/// A program that is started and whose end is waited for.
struct Program(Child);

impl Program {
    fn start(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("LC_ALL", "C");
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn ended(mut self) -> Ran {
        let begun = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            if begun.elapsed() > PATIENCE {
                let _ = self.0.kill();
                panic!("a program does not end");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ran::of(self.0.wait_with_output().unwrap())
    }
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Two stamped images as volumes `a` and `b`.
struct Pair {
    base: tempfile::TempDir,
    mounted: Mounted,
}

const PAIR: u64 = 128 * MIB;

impl Pair {
    fn new() -> Self {
        let base = folder();
        stamped(&base.path().join("a.img"), PAIR, 1);
        stamped(&base.path().join("b.img"), PAIR, 2);
        let mounted = Mounted::start(&Self::args(base.path()).each_ref().map(String::as_str));
        Self { base, mounted }
    }

    fn args(base: &Path) -> [String; 2] {
        ["a", "b"].map(|name| format!("{name}={}", base.join(format!("{name}.img")).display()))
    }

    fn copies(&self) -> u64 {
        self.mounted.receipt("b")["copies"].as_u64().unwrap()
    }

    /// Copies again and again, until a copy fails.
    fn copying(&self) -> Program {
        let (a, b) = (self.mounted.text("a"), self.mounted.text("b"));
        let program = Program::start(&format!("while cp {a} {b}; do :; done"));
        until("no copy is made", || self.copies() > 0);
        program
    }

    fn check(base: &Path) {
        let counts = old_or_new(&base.join("b.img"), [1, 2]);
        eprintln!("blocks: {} new, {} old, {} zero", counts[0], counts[1], counts[2]);
        let sources = old_or_new(&base.join("a.img"), [1, 2]);
        assert_eq!(sources, [PAIR / BLOCK as u64, 0, 0], "the source is as it was");
    }
}

//= promise events
#[test]
fn a_killed_server_fails_the_copy_and_can_be_mounted_again() {
    let test = "a_killed_server_fails_the_copy_and_can_be_mounted_again";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    for round in 0..3u64 {
        let mut pair = Pair::new();
        let copying = pair.copying();
        std::thread::sleep(Duration::from_millis(round * 31));
        pair.mounted.kill();
        let ran = copying.ended();
        let told =
            ["Transport endpoint is not connected", "Software caused connection abort", "Input/output error"];
        assert!(told.iter().any(|why| ran.err.contains(why)), "the program is told: {ran:?}");
        Pair::check(pair.base.path());
        // What is left is a mount that answers nobody.
        let dir = pair.mounted.dir().to_owned();
        let [a, b] = Pair::args(pair.base.path());
        let ran = common::blkcopy(pair.base.path(), &["mount", dir.to_str().unwrap(), &a, &b]);
        assert_eq!((ran.code, &*ran.out), (Some(2), ""), "{ran:?}");
        assert!(ran.err.contains("umount -l"), "{ran:?}");
        must(&format!("umount -l {0} || fusermount3 -uz {0}", dir.display()));
        let again = Mounted::start(&[&a, &b]);
        run(&format!("cp {0} {1}; cmp {0} {1}", again.text("a"), again.text("b")));
        again.stop();
    }
}

//= promise events
#[test]
fn a_full_destination_is_told_after_what_fits() {
    let test = "a_full_destination_is_told_after_what_fits";
    if let Err(why) = loops_or_why().and(mounts_or_why()) {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    let small = mount_tmpfs(&mut undo, base.path(), "small", "8M").unwrap();
    must(&format!("truncate -s 32M {}/thin.img", small.display()));
    let thin = format!("thin={}/thin.img", small.display());
    let want = bytes(32 << 20, 9);
    std::fs::write(base.path().join("file.img"), &want).unwrap();
    let file = format!("file={}", base.path().join("file.img").display());
    for source in ["file", "memory"] {
        eprintln!("from {source}");
        let mounted = Mounted::start(&[&thin, &file, "memory=mem:32MiB"]);
        put(&mounted.at_name("memory"), 0, &want);
        run(&format!("fallocate -p -l 32M {}", mounted.text("thin")));
        let (from, to) = (open(&mounted.at_name(source)), open(&mounted.at_name("thin")));
        let mut good = 0;
        let end = loop {
            match copy(&from, good, &to, good, (32 << 20) - good as usize) {
                Ok(0) => panic!("0 before the end of the source"),
                Ok(n) => good += n as u64,
                Err(error) => break error,
            }
            assert!(good < 32 * MIB, "more fits than there is room");
        };
        assert_eq!(end, Errno::NOSPC);
        assert!(good > MIB, "what fits is copied and counted: {good}");
        let mut got = vec![0; good as usize];
        to.read_exact_at(&mut got, 0).unwrap();
        assert!(got == want[..good as usize], "the {good} bytes that were called good are");
        drop((from, to));
        let ran = bounded(&format!("LC_ALL=C cp {} {}", mounted.text(source), mounted.text("thin")));
        assert!(ran.code == Some(1) && ran.err.contains("No space left on device"), "{ran:?}");
        let last = mounted.receipt("thin")["last"].as_array().unwrap().last().unwrap().clone();
        assert!(
            last["good_bytes"].as_u64() < last["requested_bytes"].as_u64() && last["error"].is_string(),
            "{last:#}"
        );
        mounted.stop();
    }
}

#[test]
fn an_interrupted_program_ends_soon() {
    let test = "an_interrupted_program_ends_soon";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let pair = Pair::new();
    let (a, b) = (pair.mounted.text("a"), pair.mounted.text("b"));
    for signal in ["INT", "TERM", "KILL"] {
        let before = pair.copies();
        let program = Program::start(&format!(
            "exec python3 -c '\nimport os\nwhile True: os.copy_file_range(os.open(\"{a}\", 0), os.open(\"{b}\", 1), 1 << 30)'"
        ));
        until("no copy is made", || pair.copies() > before + 1);
        let asked = Instant::now();
        must(&format!("kill -{signal} {}", program.0.id()));
        let ran = program.ended();
        eprintln!("SIG{signal}: ended after {:?}", asked.elapsed());
        // One answer at most is waited for, and answers are cut so that they are short.
        assert!(ran.code != Some(0) && asked.elapsed() < Duration::from_secs(20), "{ran:?}");
    }
    run(&format!("cp {a} {b}; cmp {a} {b}"));
    let Pair { base, mounted } = pair;
    mounted.stop();
    Pair::check(base.path());
}

#[test]
fn it_is_unmounted_under_copies() {
    let test = "it_is_unmounted_under_copies";
    if let Err(why) = loops_or_why().and(mounts_or_why()) {
        return skip(test, &why);
    }
    let mut pair = Pair::new();
    let dir = pair.mounted.dir().to_owned();
    let (from, to) = (open(&pair.mounted.at_name("a")), open(&pair.mounted.at_name("b")));
    let first = copy(&from, 0, &to, 0, 1 << 20).unwrap() as u64;
    let ran = bounded(&format!("LC_ALL=C umount {}", dir.display()));
    assert!(ran.code != Some(0) && ran.err.contains("busy"), "{ran:?}");
    must(&format!("umount -l {}", dir.display()));
    assert!(!is_mounted(&dir));
    // Whoever has files open goes on to the end.
    let mut good = first;
    while good < PAIR {
        good += copy(&from, good, &to, good, 1 << 30).unwrap() as u64;
    }
    assert_eq!(copy(&from, good, &to, good, 1).unwrap(), 0);
    drop((from, to));
    // The last file is closed: there is nothing left to serve.
    assert_eq!(pair.mounted.wait(), Some(0));
    must(&format!("cmp {0}/a.img {0}/b.img", pair.base.path().display()));
    Pair::check(pair.base.path());
}

#[test]
fn a_stopped_server_ends_under_copies() {
    let test = "a_stopped_server_ends_under_copies";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    // Programs that end soon after the mount is gone, and one that never closes its files.
    for keeps in [false, true] {
        let Pair { base, mounted } = Pair::new();
        let (a, b) = (mounted.text("a"), mounted.text("b"));
        let keeper = keeps.then(|| Program::start(&format!("exec sleep 50 <{a} 3<>{b}")));
        let pair = Pair { base, mounted };
        let copying = pair.copying();
        if keeps {
            until("the keeper opens nothing", || {
                let pid = keeper.as_ref().unwrap().0.id();
                std::fs::read_link(format!("/proc/{pid}/fd/3")).is_ok_and(|to| to.ends_with("b"))
            });
        }
        let Pair { base, mounted } = pair;
        let took = mounted.stop();
        eprintln!("files kept open: {keeps}: ended after {took:?}");
        assert!(copying.ended().err.contains("cp: "));
        if let Some(mut keeper) = keeper {
            assert!(
                keeper.0.try_wait().unwrap().is_none(),
                "the server ends before the program that keeps files open"
            );
            let _ = keeper.0.kill();
            keeper.ended();
        }
        old_or_new(&base.path().join("b.img"), [1, 2]);
    }
}

#[test]
fn only_its_own_mount_is_taken_away() {
    let test = "only_its_own_mount_is_taken_away";
    if let Err(why) = loops_or_why().and(mounts_or_why()) {
        return skip(test, &why);
    }
    // Somebody else's mount is below ours, and a file of ours stays open; once it is we who detach it, once somebody
    // did before.
    for detached in [false, true] {
        let scratch = folder();
        let mut undo = Undo::default();
        let dir = mount_tmpfs(&mut undo, scratch.path(), "below", "1M").unwrap();
        std::fs::write(dir.join("theirs"), "theirs").unwrap();
        let front = ["mount".to_owned(), dir.display().to_string()];
        let mounted = Mounted::at(folder(), dir.clone(), &front, &["a=mem:1MiB"]);
        let kept = open(&mounted.at_name("a"));
        if detached {
            must(&format!("umount -l {}", dir.display()));
        }
        let pid = mounted.pid();
        must(&format!("kill -TERM {pid}"));
        let mut mounted = mounted;
        assert_eq!(mounted.wait(), Some(0));
        assert!(is_mounted(&dir), "what was mounted below is gone (detached before: {detached})");
        assert_eq!(std::fs::read(dir.join("theirs")).unwrap(), b"theirs");
        let failed = kept.read_exact_at(&mut [0; 8], 0).unwrap_err();
        eprintln!("a file kept open: {failed}");
        // Dropped, it would take away what is there: it is the test's to do.
        undo.0.retain(|script| !script.starts_with("umount"));
        drop(mounted);
        assert!(!is_mounted(&dir));
    }
}

#[test]
fn many_write_while_copies_run() {
    let test = "many_write_while_copies_run";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let images = ["x", "y"].map(|name| base.path().join(format!("{name}.img")));
    images.iter().for_each(|image| std::fs::write(image, vec![0; 8 << 20]).unwrap());
    let files =
        ["x", "y"].map(|name| format!("{name}={}", base.path().join(format!("{name}.img")).display()));
    for (pair, flags) in [
        (["m=mem:8MiB", "n=mem:8MiB"], &[][..]),
        ([&files[0], &files[1]], &[]),
        ([&files[0], "n=mem:8MiB"], &["--cache"]),
    ] {
        let mounted = Mounted::start(&[flags, &pair[..]].concat());
        let [from, to] = pair.map(|device| mounted.at_name(device.split('=').next().unwrap()));
        let want = bytes(8 << 20, 5);
        put(&from, 0, &want);
        put(&to, 0, &vec![0; 8 << 20]);
        let (stop, copies) = (AtomicBool::new(false), AtomicU64::new(0));
        // Threads write their own stripes in the upper half; copies run in the lower.
        let stripe = MIB as usize;
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (to, stop) = (&to, &stop);
                scope.spawn(move || {
                    let file = open(to);
                    let at = 4 * MIB + thread * MIB;
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) || round < 3 {
                        round += 1;
                        // Odd edges too: they are read, changed and written.
                        let what = bytes(100_001, thread << 32 | round);
                        let place = at + round * 4099 % (MIB - 100_001);
                        file.write_all_at(&what, place).unwrap();
                        let mut got = vec![0; what.len()];
                        file.read_exact_at(&mut got, place).unwrap();
                        assert!(got == what, "a thread reads what it wrote");
                    }
                    file.write_all_at(&bytes(stripe, 1000 + thread), at).unwrap();
                });
            }
            for thread in 0..2u64 {
                let (from, to, stop, copies) = (&from, &to, &stop, &copies);
                scope.spawn(move || {
                    let (from, to) = (open(from), open(to));
                    for round in 0..60 {
                        let at = thread * 2 * MIB + round * 1009;
                        let mut done = 0;
                        while done < MIB {
                            done +=
                                copy(&from, at + done, &to, at + done, (MIB - done) as usize).unwrap() as u64;
                        }
                        copies.fetch_add(1, Ordering::Relaxed);
                    }
                    if copies.load(Ordering::Relaxed) == 120 {
                        stop.store(true, Ordering::Relaxed);
                    }
                });
            }
        });
        let mut all = vec![0; 8 << 20];
        for at in [0, 2 << 20] {
            let end = at + (1 << 20) + 59 * 1009;
            all[at..end].copy_from_slice(&want[at..end]);
        }
        for thread in 0..4 {
            let at = (4 + thread) << 20;
            all[at..at + stripe].copy_from_slice(&bytes(stripe, 1000 + thread as u64));
        }
        holds(&to, &all);
        holds(&from, &want);
        mounted.stop();
    }
}

//= promise mount
#[test]
fn ends_and_overlaps_of_copy_file_range() {
    let test = "ends_and_overlaps_of_copy_file_range";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    for flags in [&[][..], &["--cache"]] {
        let mounted = Mounted::start(&[flags, &["a=mem:4MiB", "b=mem:2MiB"]].concat());
        let (a, b) = (open(&mounted.at_name("a")), open(&mounted.at_name("b")));
        let (want, old) = (bytes(4 << 20, 1), bytes(2 << 20, 2));
        put(&mounted.at_name("a"), 0, &want);
        put(&mounted.at_name("b"), 0, &old);
        // Past the end of the source: 0. Across it: what is there.
        assert_eq!(copy(&a, 4 * MIB, &b, 0, 10), Ok(0));
        assert_eq!(copy(&a, 5 * MIB, &b, 0, 10), Ok(0));
        assert_eq!(copy(&a, 4 * MIB - 7, &b, 100, 4096), Ok(7));
        // Across the end of the destination: what fits, then ENOSPC.
        assert_eq!(copy(&a, 11, &b, 2 * MIB - 5, 4096), Ok(5));
        assert_eq!(copy(&a, 11, &b, 2 * MIB, 4096), Err(Errno::NOSPC));
        assert_eq!(copy(&a, 11, &b, 1 << 40, 4096), Err(Errno::NOSPC));
        assert_eq!(copy(&a, 11, &b, 50, 0), Ok(0));
        let mut now = old.clone();
        now[100..107].copy_from_slice(&want[(4 << 20) - 7..]);
        now[(2 << 20) - 5..].copy_from_slice(&want[11..16]);
        holds(&mounted.at_name("b"), &now);
        // Onto itself: apart or touching it is a copy, one byte into each other it is none.
        assert_eq!(copy(&a, 0, &a, 4095, 4096), Err(Errno::INVAL));
        assert_eq!(copy(&a, 4095, &a, 0, 4096), Err(Errno::INVAL));
        assert_eq!(copy(&a, 0, &a, 0, 1), Err(Errno::INVAL));
        holds(&mounted.at_name("a"), &want);
        assert_eq!(copy(&a, 0, &a, 4096, 4096), Ok(4096));
        let mut now = want.clone();
        now.copy_within(0..4096, 4096);
        holds(&mounted.at_name("a"), &now);
        // Descriptors that may not.
        let (reads, appends) = (
            File::open(mounted.at_name("b")).unwrap(),
            File::options().append(true).open(mounted.at_name("b")).unwrap(),
        );
        assert_eq!(copy(&a, 0, &reads, 0, 10), Err(Errno::BADF));
        assert_eq!(copy(&a, 0, &appends, 0, 10), Err(Errno::BADF));
        drop((reads, appends));
        // Right after it was cut the kernel may believe a size of 0; a moment later it knows better, with nobody
        // looking.
        for _ in 0..50 {
            b.set_len(0).unwrap();
            assert_eq!(copy(&a, 0, &b, 0, 4096), Ok(4096));
            until("a volume that was cut never gets its size back for copies", || {
                copy(&b, MIB, &a, 0, 10) == Ok(10)
            });
        }
        drop((a, b));
        mounted.stop();
    }
}

#[test]
fn it_starts_only_once_on_a_folder_and_ends_by_itself() {
    let test = "it_starts_only_once_on_a_folder_and_ends_by_itself";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let mut mounted = Mounted::start(&["a=mem:1MiB"]);
    let dir = mounted.dir().display().to_string();
    must(&format!("umount {dir} || fusermount3 -u {dir}"));
    assert_eq!(mounted.wait(), Some(0), "whoever unmounts it ends it");
    // A second one on the same volume's file.
    let base = folder();
    std::fs::write(base.path().join("x"), vec![0; 4096]).unwrap();
    let x = format!("x={}", base.path().join("x").display());
    let first = Mounted::start(&[&x]);
    std::fs::create_dir(base.path().join("mnt")).unwrap();
    let ran =
        Ran::of(Command::new(BIN).args(["mount"]).arg(base.path().join("mnt")).arg(&x).output().unwrap());
    assert_eq!((ran.code, &*ran.out), (Some(2), ""), "{ran:?}");
    assert!(!is_mounted(&base.path().join("mnt")));
    first.stop();
}

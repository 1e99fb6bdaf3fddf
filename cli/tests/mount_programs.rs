//! Real programs on a mount: coreutils, qemu-img, rsync, Python, Rust, SQLite on a file system. Bytes are compared, and
//! what was offloaded is counted by the server.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // in a test a panic is the message

mod common;

use common::mounted::{Mounted, attribute, bounded, holds, mounts_or_why, moved, put, run, through_host};
use common::{MIB, Undo, bytes, folder, loops_or_why, mount_loop, must, sh, skip};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const SIZE: u64 = 16 * MIB;
const LARGER: u64 = 20 * MIB;

/// What volumes are made of, and the method by which they copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Memory,
    File,
    Reflink,
}

/// Volumes `a` and `b` of `SIZE` and `larger`, all full of old bytes, and two sources on a plain file system.
struct World {
    mounted: Mounted,
    kind: Kind,
    base: TempDir,
    full: Vec<u8>,
    sparse: Vec<u8>,
    _undo: Undo,
}

/// Every kind that can be had; the others are skipped aloud.
fn worlds(test: &str, flags: &[&str], each: impl Fn(&World)) {
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    for kind in [Kind::Memory, Kind::File, Kind::Reflink] {
        match World::new(kind, flags) {
            Ok(world) => {
                eprintln!("{test}: {kind:?} {flags:?}");
                each(&world);
                world.mounted.stop();
            }
            Err(why) => skip(&format!("{test}: {kind:?}"), &why),
        }
    }
}

impl World {
    fn new(kind: Kind, flags: &[&str]) -> Result<Self, String> {
        let base = folder();
        let mut undo = Undo::default();
        let images = match kind {
            Kind::Reflink => {
                loops_or_why()?;
                mount_loop(&mut undo, base.path(), "xfs", "mkfs.xfs -q -m reflink=1", "400M")?
            }
            _ => base.path().to_owned(),
        };
        let mut args: Vec<String> = flags.iter().map(|&f| f.to_owned()).collect();
        for (name, size) in [("a", SIZE), ("b", SIZE), ("larger", LARGER)] {
            let image = images.join(format!("{name}.img"));
            if kind == Kind::Memory {
                args.push(format!("{name}=mem:{size}"));
            } else {
                std::fs::write(&image, vec![0; size as usize]).unwrap();
                args.push(format!("{name}={}", image.display()));
            }
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mounted = Mounted::start(&args);
        let full = bytes(SIZE as usize, 1);
        // Data, holes, zeroes that were written, odd edges, and a hole at the end.
        let mut sparse = vec![0; SIZE as usize];
        let data = bytes(3 << 20, 2);
        let path = base.path().join("sparse");
        std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        for (at, len) in [(0, 5000), (2 << 20, 1 << 20), ((7 << 20) + 123, 70_001), (12 << 20, 1)] {
            sparse[at..at + len].copy_from_slice(&data[..len]);
            put(&path, at as u64, &data[..len]);
        }
        put(&path, 10 << 20, &[0; 1 << 20]);
        std::fs::write(base.path().join("full"), &full).unwrap();
        let world = Self { mounted, kind, base, full, sparse, _undo: undo };
        ["a", "b", "larger"].iter().for_each(|name| world.dirty(name));
        Ok(world)
    }

    /// Fills a volume with old bytes.
    fn dirty(&self, name: &str) {
        let size = if name == "larger" { LARGER } else { SIZE };
        put(&self.at(name), 0, &bytes(size as usize, 77));
    }

    fn at(&self, name: &str) -> PathBuf {
        self.mounted.at_name(name)
    }

    /// Runs a script in which `$A`, `$B` and `$L` are the volumes and `$D` is a folder beside them.
    fn script(&self, script: &str) -> String {
        run(&self.with_names(script))
    }

    fn with_names(&self, script: &str) -> String {
        let text = |name| self.mounted.text(name);
        let (a, b, larger) = (text("a"), text("b"), text("larger"));
        format!("A={a}; B={b}; L={larger}; D={}; {script}", self.base.path().display())
    }

    /// `larger` begins with these bytes and is zero behind them.
    fn larger_holds(&self, front: &[u8]) {
        let mut want = front.to_vec();
        want.resize(LARGER as usize, 0);
        holds(&self.at("larger"), &want);
    }

    /// Runs a script that copies `a` onto `to`, `at_least` bytes of it by the method of this kind and none through the
    /// server.
    fn offloads(&self, script: &str, to: &str, at_least: u64) {
        let method = match self.kind {
            Kind::Memory => "memory",
            Kind::File => "copy-file-range",
            Kind::Reflink => "reflink",
        };
        let before = self.mounted.receipt(to);
        self.script(script);
        let after = self.mounted.receipt(to);
        let by = moved(&after, method) - moved(&before, method);
        assert!(by >= at_least, "{script}: {by} bytes by {method}: {after:#}");
        assert_eq!(through_host(&before), through_host(&after), "{script}: {after:#}");
        let last = after["last"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["source"], &last["error"]), (&"a".into(), &serde_json::Value::Null), "{script}");
    }
}

/// A program that is not there: skipped aloud.
fn missing(test: &str, program: &str) -> bool {
    let is_missing = sh(&format!("command -v {program}")).is_err();
    if is_missing {
        skip(test, &format!("{program} is missing"));
    }
    is_missing
}

fn cp(test: &str, flags: &[&str]) {
    worlds(test, flags, |w| {
        for (name, want) in [("full", &w.full), ("sparse", &w.sparse)] {
            w.dirty("b");
            w.dirty("larger");
            w.script(&format!("cp $D/{name} $B; cp $D/{name} $L"));
            holds(&w.at("b"), want);
            w.larger_holds(want);
            for how in ["auto", "always", "never"] {
                w.dirty("b");
                w.script(&format!("cp --sparse={how} $D/{name} $A; cp --sparse={how} $A $B"));
                holds(&w.at("b"), want);
                w.script(&format!("cp --sparse={how} $B $D/back"));
                holds(&w.base.path().join("back"), want);
            }
        }
        // An odd length, and then a shorter one: what the longer one left is gone.
        w.script("head -c 1048653 $D/full >$D/odd; cp --preserve=timestamps $D/odd $L");
        w.larger_holds(&w.full[..1_048_653]);
        assert_eq!(w.script("stat -c %Y $L"), w.script("stat -c %Y $D/odd"));
        w.script("printf x >$L");
        w.larger_holds(b"x");
        // Volume to volume is the device's own copy.
        w.script("cp $D/full $A");
        for to in ["b", "larger"] {
            w.dirty(to);
            w.offloads(&format!("cp $A {}", w.mounted.text(to)), to, SIZE);
        }
        holds(&w.at("b"), &w.full);
        w.larger_holds(&w.full);
        // Too long: as onto a full device, or where it ends with a hole, as no file can be. What fits is good.
        let ran = bounded(&w.with_names("LC_ALL=C cp $L $B"));
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let told = ["No space left on device", "File too large"].iter().any(|why| ran.err.contains(why));
        assert!(told, "{ran:?}");
        holds(&w.at("b"), &w.full);
        // A clone cannot be asked for through FUSE: refused, and never silently another copy.
        w.dirty("b");
        let ran = bounded(&w.with_names("LC_ALL=C cp --reflink=always $A $B"));
        assert!(ran.code == Some(1) && ran.err.contains("not supported"), "{ran:?}");
    });
}

#[test]
fn cp_between_volumes_and_files() {
    cp("cp_between_volumes_and_files", &[]);
}

#[test]
fn cp_through_the_page_cache() {
    cp("cp_through_the_page_cache", &["--cache"]);
}

#[test]
fn qemu_img_converts_onto_between_and_into_volumes() {
    let test = "qemu_img_converts_onto_between_and_into_volumes";
    if missing(test, "qemu-img") {
        return;
    }
    worlds(test, &[], |w| {
        for (name, want) in [("full", &w.full), ("sparse", &w.sparse)] {
            w.script(&format!("dd if=$D/{name} of=$A bs=1M conv=notrunc status=none"));
            // Holes that the device knows of, where it knows any.
            w.script("fallocate --dig-holes $A || true");
            for how in ["", "-n", "-C", "-C -n", "-n -W -m 8", "-S 0", "-t none -T none"] {
                w.dirty("b");
                w.script(&format!("qemu-img convert -f raw -O raw {how} $A $B"));
                holds(&w.at("b"), want);
                // Nobody was told that the larger one is zero behind: with -n only the front is qemu's.
                w.dirty("larger");
                w.script(&format!("qemu-img convert -f raw -O raw {how} $D/{name} $L"));
                if how.contains("-n") {
                    let mut all = bytes(LARGER as usize, 77);
                    all[..want.len()].copy_from_slice(want);
                    holds(&w.at("larger"), &all);
                } else {
                    w.larger_holds(want);
                }
            }
            w.script("qemu-img compare -f raw -F raw $A $B");
        }
        w.script("dd if=$D/full of=$A bs=1M conv=notrunc status=none");
        for how in ["-C", "-C -n", "-C -n -W"] {
            w.offloads(&format!("qemu-img convert -f raw -O raw {how} $A $B"), "b", SIZE);
        }
        // An image with its own tables inside a volume that was dirty.
        for name in ["sparse", "full"] {
            w.dirty("larger");
            w.script(&format!(
                "qemu-img convert -f raw -O qcow2 $D/{name} $L; qemu-img check -q -f qcow2 $L"
            ));
            w.script(&format!(
                "qemu-img convert -f qcow2 -O raw $L $D/back; cmp $D/{name} $D/back; \
                 qemu-img convert -n -f qcow2 -O raw $L $A; cmp $D/{name} $A"
            ));
        }
    });
}

#[test]
fn rsync_dd_and_python() {
    let test = "rsync_dd_and_python";
    worlds(test, &[], |w| {
        if !missing(test, "rsync") {
            // Else it takes files of one size and one time for the same.
            for how in ["--ignore-times --whole-file", "--ignore-times --no-whole-file"] {
                for (name, want) in [("full", &w.full), ("sparse", &w.sparse)] {
                    w.dirty("b");
                    w.script(&format!("rsync --inplace {how} $D/{name} $B"));
                    holds(&w.at("b"), want);
                    w.script(&format!("rsync --inplace {how} $D/{name} $L"));
                    w.larger_holds(want);
                }
            }
            w.script("rsync --inplace --ignore-times --no-whole-file $B $A; cmp $A $B");
        }
        for how in
            ["bs=1M conv=fsync", "bs=1M oflag=direct iflag=direct", "bs=7k", "bs=64k oflag=dsync,direct"]
        {
            w.dirty("b");
            w.script(&format!("cp $D/full $A; dd if=$A of=$B {how} status=none"));
            holds(&w.at("b"), &w.full);
        }
        // A piece in the middle: odd, and nothing around it changes.
        w.dirty("b");
        w.script("dd if=$D/full of=$B bs=1000 skip=5 seek=1111 count=77 conv=notrunc status=none");
        let mut want = bytes(SIZE as usize, 77);
        want[1_111_000..1_188_000].copy_from_slice(&w.full[5000..82_000]);
        holds(&w.at("b"), &want);
        // dd cuts what it does not keep.
        w.script("dd if=$D/full of=$B bs=1000 seek=1111 count=1 status=none");
        want[1_111_000..1_112_000].copy_from_slice(&w.full[..1000]);
        want[1_112_000..].fill(0);
        holds(&w.at("b"), &want);
        // A write past the end is what a full device says.
        let ran = bounded(&w.with_names("LC_ALL=C dd if=$D/full of=$B bs=1M seek=15 count=2 status=none"));
        assert!(ran.code == Some(1) && ran.err.contains("No space left"), "{ran:?}");
        if missing(test, "python3") {
            return;
        }
        let script = |body: &str| {
            format!("python3 - $A $B <<'X'\nimport os, shutil, sys\na, b = sys.argv[1:]\n{body}\nX")
        };
        w.dirty("b");
        let copy = "i, o = os.open(a, os.O_RDONLY), os.open(b, os.O_WRONLY)\n\
                    while os.copy_file_range(i, o, 1 << 30): pass";
        w.offloads(&script(copy), "b", SIZE);
        holds(&w.at("b"), &w.full);
        for copy in ["shutil.copyfile(a, b)", "shutil.copyfileobj(open(a, 'rb'), open(b, 'wb'))"] {
            w.dirty("b");
            w.script(&script(copy));
            holds(&w.at("b"), &w.full);
        }
    });
}

#[test]
fn the_standard_library_copies_by_the_device() {
    worlds("the_standard_library_copies_by_the_device", &[], |w| {
        w.script("cp $D/full $A");
        w.dirty("b");
        let before = through_host(&w.mounted.receipt("b"));
        assert_eq!(std::fs::copy(w.at("a"), w.at("b")).unwrap(), SIZE);
        holds(&w.at("b"), &w.full);
        let after = w.mounted.receipt("b");
        assert_eq!((after["copies"].as_u64() >= Some(1), through_host(&after)), (true, before), "{after:#}");
    });
}

fn sqlite(test: &str, flags: &[&str]) {
    for program in ["sqlite3", "mkfs.ext4"] {
        if missing(test, program) {
            return;
        }
    }
    if let Err(why) = loops_or_why().and(mounts_or_why()) {
        return skip(test, &why);
    }
    let base = folder();
    let image = base.path().join("disk.img");
    must(&format!("truncate -s 128M {}", image.display()));
    let file = format!("disk={}", image.display());
    for device in ["disk=mem:128MiB", &file] {
        eprintln!("{test}: {device} {flags:?}");
        let mounted = Mounted::start(&[flags, &[device, "other=mem:128MiB"]].concat());
        let (disk, at) = (mounted.text("disk"), base.path().join("fs"));
        let here = at.display();
        run(&format!("mkfs.ext4 -q -F {disk}; mkdir -p {here}; mount -o loop {disk} {here}"));
        let mut undo = Undo::default();
        undo.later(format!("! mountpoint -q {here} || umount -l {here}"));
        run(&format!("sqlite3 {here}/db 'PRAGMA journal_mode=WAL; CREATE TABLE t(a, b);'"));
        let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) \
                    INSERT INTO t SELECT i, randomblob(500) FROM n;";
        for _ in 0..3 {
            run(&format!("sqlite3 {here}/db \"BEGIN; {rows} COMMIT; DELETE FROM t WHERE a % 7 = 0;\""));
        }
        let ask = "PRAGMA integrity_check; SELECT count(*) FROM t; SELECT sum(length(b)) FROM t;";
        let first = run(&format!("sqlite3 {here}/db '{ask}'"));
        assert!(first.starts_with("ok\n5145\n"), "{first}");
        // Unmounted and mounted anew, and so read from the volume.
        run(&format!("umount {here}; e2fsck -fn {disk}; mount -o loop {disk} {here}"));
        assert_eq!(run(&format!("sqlite3 {here}/db '{ask}'; umount {here}")), first);
        // A copy of the volume is a copy of the file system.
        let other = mounted.text("other");
        run(&format!("cp {disk} {other}; cmp {disk} {other}; e2fsck -fn {other}"));
        drop(undo);
        mounted.stop();
    }
    // What was served is in the file.
    must(&format!("e2fsck -fn {}", image.display()));
}

#[test]
fn a_database_on_a_file_system_on_a_volume() {
    sqlite("a_database_on_a_file_system_on_a_volume", &[]);
}

#[test]
fn a_database_on_a_file_system_on_a_cached_volume() {
    sqlite("a_database_on_a_file_system_on_a_cached_volume", &["--cache"]);
}

#[test]
fn a_served_and_mounted_volume_copies_too() {
    let test = "a_served_and_mounted_volume_copies_too";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    for name in ["a.img", "b.img"] {
        std::fs::write(base.path().join(name), bytes(4 << 20, 3)).unwrap();
    }
    let image = |name| base.path().join(name).display().to_string();
    let mounted = Mounted::serve(&[&image("a.img"), &image("b.img")]);
    let want = bytes(4 << 20, 4);
    put(&mounted.at_name("a.img"), 0, &want);
    run(&format!("cp {} {}", mounted.text("a.img"), mounted.text("b.img")));
    holds(&mounted.at_name("b.img"), &want);
    assert_eq!(mounted.receipt("b.img")["copies"], 1);
    mounted.stop();
    holds(&base.path().join("b.img"), &want);
}

#[test]
fn holes_are_kept() {
    let test = "holes_are_kept";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let world = World::new(Kind::Memory, &[]).unwrap();
    let at = |name: &str| base.path().join(name);
    must(&format!(
        "cp --sparse=always {} {}",
        world.base.path().join("sparse").display(),
        at("disk").display()
    ));
    let full = at("solid");
    std::fs::write(&full, &world.full).unwrap();
    let disk = format!("disk={}", at("disk").display());
    let solid = format!("solid={}", full.display());
    for flags in [&[][..], &["--show-allocated"]] {
        let mounted = Mounted::start(&[flags, &[&*disk, &*solid]].concat());
        let number = |script: String| run(&script).parse::<u64>().unwrap();
        let blocks = |name: &str| number(format!("stat -c %b {}", mounted.text(name)));
        let allocated = |name: &str| attribute(&mounted.at_name(name), "user.blkcopy.allocated").as_u64();
        // By its blocks no volume is sparse, unless asked for: cp 9.1 reads and writes what is.
        let shown = if flags.is_empty() { SIZE } else { allocated("disk").unwrap() };
        assert_eq!((blocks("disk"), blocks("solid")), (shown.div_ceil(512), SIZE / 512));
        assert!(allocated("disk") < Some(SIZE / 2), "{:?}", allocated("disk"));
        assert_eq!(allocated("solid"), Some(SIZE));
        let info = |name: &str| {
            let ran = common::blkcopy(base.path(), &["info", "--json", &mounted.text(name)]);
            serde_json::from_str::<serde_json::Value>(&ran.out).unwrap()["allocated_bytes"].as_u64()
        };
        assert_eq!((info("disk"), info("solid")), (allocated("disk"), Some(SIZE)));
        // Space is promised where there is all of it, and only there.
        let ran = bounded(&format!("LC_ALL=C fallocate -n -l 1M {}", mounted.text("disk")));
        assert!(ran.code == Some(1) && ran.err.contains("unsupported"), "{ran:?}");
        run(&format!("fallocate -n -l 1M {}", mounted.text("solid")));
        // Holes are where they were, whatever the blocks say.
        let copy = at("copy");
        let how: &[&str] = if flags.is_empty() { &["--sparse=always"] } else { &["--sparse=always", ""] };
        for how in how {
            run(&format!("cp {how} {} {}", mounted.text("disk"), copy.display()));
            holds(&copy, &world.sparse);
            let kept: u64 = must(&format!("stat -c %b {}", copy.display())).parse().unwrap();
            assert!(kept < SIZE / 512 / 2, "holes were filled: {kept} blocks");
        }
        // Free and whole are plausible.
        let free = number(format!("stat -f -c %f {}", mounted.dir().display()));
        let all = number(format!("stat -f -c %b {}", mounted.dir().display()));
        assert_eq!(all, 2 * SIZE / 4096);
        assert!(free > all / 4 && free <= all / 2, "{free} of {all} blocks are free");
        mounted.stop();
    }
    world.mounted.stop();
}

#[test]
fn a_read_only_volume_stays_as_it_is() {
    let test = "a_read_only_volume_stays_as_it_is";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let image = base.path().join("golden.img");
    let want = bytes(4 << 20, 5);
    std::fs::write(&image, &want).unwrap();
    let (golden, image) = (format!("golden={}", image.display()), image);
    let mounted = Mounted::start(&["rw=mem:4MiB", "--ro", &golden]);
    let (golden, rw) = (mounted.text("golden"), mounted.text("rw"));
    for script in [
        format!("cp {rw} {golden}"),
        format!("dd if={rw} of={golden} conv=notrunc count=1"),
        format!("truncate -s 0 {golden}"),
        format!("fallocate -p -l 4096 {golden}"),
        format!(": >>{golden}"),
    ] {
        let ran = bounded(&format!("export LC_ALL=C; {script}"));
        let refused = ["Read-only file system", "Permission denied"].iter().any(|why| ran.err.contains(why));
        assert!(ran.code != Some(0) && refused, "{script}: {ran:?}");
    }
    run(&format!("cp {golden} {rw}"));
    holds(&mounted.at_name("rw"), &want);
    assert_eq!(run(&format!("stat -c %a {golden}")), "400");
    mounted.stop();
    holds(&image, &want);
}

/// How often `fdatasync` and the like were called by the server while a script ran.
fn flushes(mounted: &Mounted, log: &Path, script: &str) -> usize {
    use std::io::{BufRead, BufReader};
    let mut strace = std::process::Command::new("strace")
        .args(["-f", "-e", "trace=fsync,fdatasync,sync_file_range,pwritev2,io_uring_enter", "-o"])
        .arg(log)
        .args(["-p", &mounted.pid().to_string()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(strace.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("attached"), "{line}");
    run(script);
    must(&format!("kill -INT {}", strace.id()));
    strace.wait().unwrap();
    let text = std::fs::read_to_string(log).unwrap();
    let durable = |l: &&str| l.contains("sync(") || l.contains("RWF_DSYNC") || l.contains("RWF_SYNC");
    text.lines().filter(durable).count()
}

#[test]
fn synchronous_files_are_flushed() {
    let test = "synchronous_files_are_flushed";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    if missing(test, "python3") {
        return;
    }
    let base = folder();
    for name in ["a.img", "b.img"] {
        std::fs::write(base.path().join(name), bytes(4 << 20, 6)).unwrap();
    }
    let image = |name| base.path().join(name).display().to_string();
    // Threads and no ring, so that every flush is a system call.
    let mounted = Mounted::start(&["--io-engine", "pool", &image("a.img"), &image("b.img")]);
    let (a, b) = (mounted.text("a.img"), mounted.text("b.img"));
    let copy = |flags: &str| {
        format!(
            "python3 -c 'import os; i, o = os.open(\"{a}\", os.O_RDONLY), os.open(\"{b}\", os.O_WRONLY | {flags}); \
             assert os.copy_file_range(i, o, 1 << 20) > 0'"
        )
    };
    let last = || mounted.receipt("b.img")["last"].as_array().unwrap().last().unwrap()["flushed"].clone();
    for (flags, flushed) in [("0", false), ("os.O_DSYNC", true), ("os.O_SYNC", true), ("0", false)] {
        run(&copy(flags));
        assert_eq!(last(), flushed, "{flags}");
    }
    if sh("strace -o /dev/null true").is_err() {
        return skip(test, "strace is missing or may not trace");
    }
    let log = base.path().join("log");
    let count = |script: &str| flushes(&mounted, &log, script);
    let dd = |how: &str| format!("dd if={a} of={b} bs=64k count=4 status=none {how}");
    assert_eq!(count(&dd("conv=notrunc")), 0, "nobody asked for a flush");
    assert!(count(&dd("conv=notrunc oflag=dsync")) >= 4);
    assert!(count(&dd("conv=notrunc oflag=sync")) >= 4);
    assert_eq!(count(&dd("conv=notrunc,fsync")), 1);
    assert_eq!(count(&dd("conv=notrunc,fdatasync")), 1);
    assert_eq!(count(&copy("0")), 0);
    assert!(count(&copy("os.O_SYNC")) >= 1);
    assert!(count(&format!("sync {b}")) >= 1, "fsync by name");
    // The kernel keeps these to itself: no server but virtiofs is told.
    let all = count(&format!("{}; sync -f {b}; sync", dd("conv=notrunc")));
    eprintln!("sync -f and sync: {all} flushes at the server");
    mounted.stop();
}

#[test]
fn what_cannot_be_mounted_is_refused_in_one_clear_error() {
    let test = "what_cannot_be_mounted_is_refused_in_one_clear_error";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    must(&format!(
        "cd {}; mkdir mnt other; truncate -s 1M x.img other/x.img; ln x.img hard; ln -s x.img soft",
        base.path().display()
    ));
    for (args, want) in [
        (vec!["mnt"], "no volume is given"),
        (vec!["mnt", "x.img", "other/x.img"], "two volumes are called x.img"),
        (vec!["mnt", "n=x.img", "n=other/x.img"], "two volumes are called n"),
        (vec!["mnt", "a=x.img", "b=x.img"], "b and a hold the same bytes"),
        (vec!["mnt", "x.img", "hard"], "hard and x.img hold the same bytes"),
        (vec!["mnt", "x.img", "--ro", "soft"], "soft and x.img hold the same bytes"),
        (vec!["mnt", "missing.img"], "missing.img: does not exist"),
        (vec!["mnt", "n=missing.img"], "missing.img: does not exist"),
        (vec!["nowhere", "x.img"], "nowhere: is not a folder, so it cannot be mounted on"),
        (vec!["x.img", "other/x.img"], "x.img: is not a folder, so it cannot be mounted on"),
        (vec!["mnt", "--threads", "1", "x.img"], "1 reading threads"),
        (vec!["mnt", "--threads", "17", "x.img"], "17 reading threads"),
        (vec!["mnt", "..=x.img"], "cannot be the name of a file"),
        (vec!["mnt", "x.img@0+4096"], "a whole device is served"),
        (vec!["mnt", "other"], "other"),
    ] {
        let ran = common::blkcopy(base.path(), &[&["mount"], &*args].concat());
        assert_eq!((ran.code, &*ran.out), (Some(2), ""), "{args:?}: {ran:?}");
        assert!(ran.err.contains(want), "{args:?}: {ran:?}");
        let firsts = ran.err.lines().filter(|line| line.starts_with("blkcopy: ")).count();
        assert_eq!(firsts, 1, "{args:?}: one error: {ran:?}");
        assert!(!common::mounted::is_mounted(&base.path().join("mnt")), "{args:?}");
    }
    // Names of all sorts.
    must(&format!("cd {}; cp x.img e=q.img", base.path().display()));
    let at = |name: &str| base.path().join(name).display().to_string();
    let odd = format!("ä b={}", at("x.img"));
    let mounted = Mounted::start(&[&odd, &at("e=q.img"), "mem:1MiB"]);
    assert_eq!(common::mounted::names(mounted.dir()), ["e=q.img", "vol3", "ä b"]);
    mounted.stop();
}

#[test]
fn a_user_mounts_through_fusermount3() {
    let test = "a_user_mounts_through_fusermount3";
    if let Err(why) = loops_or_why().and(mounts_or_why()) {
        return skip(test, &why);
    }
    for program in ["fusermount3", "setpriv", "unshare"] {
        if missing(test, program) {
            return;
        }
    }
    // A mount namespace of its own, with a /dev/fuse and a command that everybody may use.
    let base = TempDir::new_in("/tmp").unwrap();
    let dir = base.path().display();
    let script = format!(
        "set -e; mount -t tmpfs -o mode=755 t {dir}; cd {dir}; mknod fuse c 10 229; chmod 666 fuse; \
         mount --bind fuse /dev/fuse; cp {} blkcopy; mkdir mnt; truncate -s 8M a.img b.img; \
         chown nobody mnt a.img b.img; U='setpriv --reuid=nobody --clear-groups --inh-caps=-all'; \
         $U ./blkcopy mount mnt a.img b.img >out 2>err & P=$!; cd {dir}; \
         for i in $(seq 400); do ! grep -qs '^mounted on' out || break; kill -0 $P; sleep .05; done; \
         grep -q '^mounted on' out; U='setpriv --reuid=nobody --clear-groups'; \
         head -c 8M /dev/urandom | $U dd of=mnt/a.img bs=1M iflag=fullblock conv=notrunc status=none; \
         $U cp mnt/a.img mnt/b.img; $U cmp mnt/a.img mnt/b.img; ! ls mnt 2>/dev/null; \
         kill $P; wait $P; ! grep -q ' {dir}/mnt ' /proc/self/mountinfo; cmp a.img b.img",
        common::BIN
    );
    let script = base_script(&script);
    let ran = bounded(&format!("unshare -m sh -c '{script}'"));
    let why = sh(&format!("cat {dir}/err 2>/dev/null")).unwrap_or_default();
    assert_eq!(ran.code, Some(0), "{ran:?} {why}");
}

/// A script to stand inside single quotes.
fn base_script(script: &str) -> String {
    script.replace('\'', "'\\''")
}

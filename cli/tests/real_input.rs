//! Real input through the real command: disk images, sparse and odd files, on every file system this machine can make,
//! over loop devices, into the middle of files and onto themselves. Bytes are compared by `cmp`, calls counted by
//! strace.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod common;

use common::{BIN, GIB, MIB, Undo, attach, folder, loops_or_why, mount_loop, mount_tmpfs, must, sh, skip};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn blkcopy(args: &[&str]) -> Output {
    Command::new(BIN).args(args).output().expect("the command runs")
}

/// Copies, and has the bytes compared.
fn copy_and_compare(source: &Path, dest: &Path) {
    copy(source, dest);
    must(&format!("cmp {} {}", source.display(), dest.display()));
}

fn copy(source: &Path, dest: &Path) {
    let ends = [source.to_str().unwrap(), dest.to_str().unwrap()];
    let out = blkcopy(&["cp", "--quiet", "--yes", ends[0], ends[1]]);
    assert!(out.status.success(), "{ends:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// The file systems to copy on; those that cannot be had are skipped aloud.
fn file_systems(undo: &mut Undo, base: &Path) -> Vec<(&'static str, PathBuf)> {
    let mut list = vec![("here", base.to_owned())];
    if let Err(why) = loops_or_why() {
        ["ext4", "xfs", "btrfs", "tmpfs", "overlay"]
            .iter()
            .for_each(|fs| skip(&format!("real_input on {fs}"), &why));
        return list;
    }
    let mut add = |name, made: Result<PathBuf, String>| match made {
        Ok(path) => list.push((name, path)),
        Err(why) => skip(&format!("real_input on {name}"), &why),
    };
    add("ext4", mount_loop(undo, base, "ext4", "mkfs.ext4 -q", "4G"));
    add("xfs", mount_loop(undo, base, "xfs", "mkfs.xfs -q -m reflink=1", "4G"));
    add("btrfs", mount_loop(undo, base, "btrfs", "mkfs.btrfs -q", "4G"));
    add("tmpfs", mount_tmpfs(undo, base, "tmpfs", "1G"));
    let over = format!(
        "cd {0}; mkdir overlay; mkdir tmpfs/low tmpfs/up tmpfs/work; \
         mount -t overlay -o lowerdir=tmpfs/low,upperdir=tmpfs/up,workdir=tmpfs/work overlay overlay",
        base.display()
    );
    match sh(&over) {
        Ok(_) => {
            undo.later(format!("umount {}/overlay", base.display()));
            list.push(("overlay", base.join("overlay")));
        }
        Err(why) => skip("real_input on overlay", &why),
    }
    list
}

/// A disk image made with ordinary tools: partition table, a file system with real files in it, holes around them.
fn disk_image(base: &Path) -> Result<PathBuf, String> {
    let image = base.join("disk.img");
    sh(&format!(
        "cd {}; truncate -s 96M disk.img; printf 'label: gpt\\nstart=2048, size=131072\\n' | sfdisk --quiet disk.img; \
         mkdir -p files; cp /bin/sh /bin/ls files/; truncate -s 64M part.img; mkfs.ext4 -q -d files part.img; \
         dd if=part.img of=disk.img bs=1M seek=1 conv=notrunc,sparse status=none; rm part.img",
        base.display()
    ))?;
    Ok(image)
}

fn random(path: &Path, size: u64, seek: u64) {
    must(&format!(
        "dd if=/dev/urandom of={} bs=1M iflag=fullblock,count_bytes oflag=seek_bytes conv=notrunc count={size} seek={seek} status=none",
        path.display()
    ));
}

fn check_file_system(name: &str, dir: &Path, image: Option<&Path>) {
    eprintln!("on {name}");
    let (source, dest) = (dir.join("source"), dir.join("dest"));
    let fresh = || must(&format!("rm -f {} {}", source.display(), dest.display()));
    if let Some(image) = image {
        must(&format!("cp --sparse=always {} {}", image.display(), source.display()));
        copy_and_compare(&source, &dest);
    }
    for size in [0, 1, 511, 512, 4095, 4096, 4097, MIB + 1] {
        fresh();
        must(&format!("truncate -s 0 {}", source.display()));
        random(&source, size, 0);
        copy_and_compare(&source, &dest);
        // Over a longer and over a shorter file: cut and extended as cp does.
        must(&format!("truncate -s 3000 {}", dest.display()));
        copy_and_compare(&source, &dest);
    }
    fresh();
    check_places(dir, &[MIB + 511], &[(0, 4096), (100_000, 3), (3 * MIB, 0)]);
    must(&format!("truncate -s 5G {}", source.display()));
    for at in [0, 2 * GIB - 1000, 4 * GIB - 5, 5 * GIB - 4097] {
        random(&source, 4097, at);
    }
    copy_and_compare(&source, &dest);
    let kept: u64 = must(&format!("du --block-size=1 {} | cut -f1", dest.display())).parse().unwrap();
    assert!(kept < 64 * MIB, "{name}: holes were filled: {kept} bytes allocated");
    fresh();
    let data = if std::env::var_os("BLKCOPY_SOAK").is_some() { GIB } else { 64 * MIB };
    must(&format!("truncate -s 100G {}", source.display()));
    let places: Vec<u64> = (0..16).map(|i| i * 6 * GIB + 12_345).collect();
    places.iter().for_each(|&at| random(&source, data / 16, at));
    copy(&source, &dest);
    for at in places {
        let window = data / 16 + 8192;
        must(&format!(
            "cmp -i {} -n {window} {} {}",
            at.saturating_sub(4096),
            source.display(),
            dest.display()
        ));
    }
    let size = must(&format!("stat -c %s {}", dest.display()));
    assert_eq!(size, (100 * GIB).to_string());
    fresh();
}

//= promise 1
#[test]
fn real_files_on_every_file_system() {
    let base = folder();
    let mut undo = Undo::default();
    let image = disk_image(base.path());
    if let Err(why) = &image {
        skip("real_input: disk image", why);
    }
    let image = image.ok();
    let list = file_systems(&mut undo, base.path());
    for (name, dir) in &list {
        check_file_system(name, dir, image.as_deref());
    }
    // Across two file systems, each to the next.
    for pair in list.windows(2) {
        eprintln!("{} to {}", pair[0].0, pair[1].0);
        let (source, dest) = (pair[0].1.join("cross"), pair[1].1.join("crossed"));
        must(&format!("truncate -s 20M {}", source.display()));
        random(&source, 3 * MIB + 77, 5 * MIB + 3);
        copy_and_compare(&source, &dest);
    }
}

//= promise 1
#[test]
fn files_and_loop_devices_in_every_direction() {
    if let Err(why) = loops_or_why() {
        return skip("files_and_loop_devices_in_every_direction", &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    let at = |name: &str| base.path().join(name);
    for name in ["a.img", "b.img", "file"] {
        must(&format!("truncate -s 64M {}", at(name).display()));
    }
    random(&at("file"), 20 * MIB, 7 * MIB);
    let (a, b) = (attach(&mut undo, &at("a.img")).unwrap(), attach(&mut undo, &at("b.img")).unwrap());
    // Old bytes on the device: holes of the file must be zeroed there.
    random(&a, 64 * MIB, 0);
    copy_and_compare(&at("file"), &a);
    copy_and_compare(&a, &b);
    copy_and_compare(&b, &at("back"));
    must(&format!("cmp {} {}", at("file").display(), at("back").display()));
    let out = blkcopy(&["cp", at("file").to_str().unwrap(), a.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2), "a device is overwritten only with --yes");
}

/// Into the middle of a larger file, and overlapping inside one: the same as dd through a buffer.
fn check_places(dir: &Path, offsets: &[u64], overlaps: &[(u64, u64)]) {
    let at = |name: &str| dir.join(name).display().to_string();
    let (source, dest, want) = (at("middle"), at("larger"), at("want"));
    random(Path::new(&source), 3 * MIB + 5, 0);
    random(Path::new(&dest), 9 * MIB, 0);
    for offset in offsets {
        must(&format!(
            "cp {dest} {want}; dd if={source} of={want} bs=1M oflag=seek_bytes seek={offset} conv=notrunc status=none"
        ));
        let out =
            blkcopy(&["cp", "--quiet", "--in-place", &source, &format!("{dest}@{offset}+{}", 3 * MIB + 5)]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        must(&format!("cmp {want} {dest}"));
    }
    // Both directions, near and far: refused and untouched, or as through a buffer.
    for (from, to) in overlaps {
        let len = 5 * MIB;
        must(&format!(
            "cp {dest} {want}; dd if={dest} of={want} bs=1M iflag=skip_bytes,count_bytes oflag=seek_bytes skip={from} seek={to} count={len} conv=notrunc status=none"
        ));
        let before = at("before");
        must(&format!("cp {dest} {before}"));
        let out = blkcopy(&[
            "cp",
            "--quiet",
            "--in-place",
            &format!("{dest}@{from}+{len}"),
            &format!("{dest}@{to}+{len}"),
        ]);
        let expected = if out.status.success() { &want } else { &before };
        must(&format!("cmp {expected} {dest}"));
    }
    must(&format!("rm -f {source} {dest} {want} {}", at("before")));
}

//= promise 5, 7
#[test]
fn into_the_middle_and_onto_itself() {
    let base = folder();
    let overlaps = [(0, 1), (1, 0), (0, 4096), (100_000, 3), (0, MIB), (2 * MIB, 0)];
    check_places(base.path(), &[0, 1, 4096, MIB, MIB + 511], &overlaps);
}

/// What strace saw of one call: how often, and the bytes it returned in all.
fn traced(log: &str, call: &str) -> (u64, u64) {
    let mut seen = (0, 0);
    for line in log.lines().filter(|l| l.contains(call)) {
        seen.0 += u64::from(!line.contains(" resumed>"));
        let returned = line.rsplit_once(" = ").and_then(|(_, n)| n.split(' ').next()?.parse::<u64>().ok());
        seen.1 += returned.unwrap_or(0);
    }
    seen
}

/// Copies under strace, threads instead of a ring so that every read and write is a system call; compares what the
/// receipt says with what was seen. Returns the receipt.
fn counted(dir: &Path, offload: &str) -> serde_json::Value {
    let at = |name: &str| dir.join(name).display().to_string();
    let (source, dest, log) = (at("source"), at(offload), at("log"));
    let calls = "trace=copy_file_range,ioctl,preadv2,pread64,pwritev2,pwrite64,fallocate";
    let out = Command::new("strace")
        .args(["-f", "-qq", "-o", &log, "-e", calls, BIN])
        .args(["cp", "--json", "--io-engine", "pool", offload, &source, &dest])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    must(&format!("cmp {source} {dest}"));
    let receipt: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    // Where cloning may be possible it is tried on a scratch file first, and that is no part of the copy.
    let tried = text.lines().position(|l| l.contains("src_length=")).filter(|_| offload != "--offload=never");
    let kept = text.lines().enumerate().filter(|(at, _)| Some(*at) != tried);
    let text: String = kept.map(|(_, line)| format!("{line}\n")).collect();
    let text = text.as_str();
    for (key, call) in [
        ("copy_file_range", "copy_file_range"),
        ("ioctl_ficlonerange", "CLONE_RANGE"),
        ("preadv2", "preadv2"),
        ("pwritev2", "pwritev2"),
        ("pwrite64", "pwrite64"),
        ("fallocate", "fallocate"),
    ] {
        let call = if call == "CLONE_RANGE" && text.contains("FICLONERANGE") { "FICLONERANGE" } else { call };
        let said = receipt["calls"][key].as_u64().unwrap_or(0);
        assert_eq!(said, traced(text, call).0, "{offload}: calls of {key}\n{receipt:#}\n{text}");
    }
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    let methods = &receipt["methods"];
    assert_eq!(traced(text, "copy_file_range").1, number(&methods["copy-file-range"]), "{receipt:#}\n{text}");
    let cloned = text
        .lines()
        .filter_map(|l| l.split_once("src_length=")?.1.split([',', '}']).next()?.parse::<u64>().ok());
    assert_eq!(cloned.sum::<u64>(), number(&methods["reflink"]), "{receipt:#}\n{text}");
    let written = traced(text, "pwritev2").1 + traced(text, "pwrite64").1;
    assert_eq!(written, number(&receipt["host_bytes"]["written"]), "{receipt:#}\n{text}");
    // What the page cache no longer has is read by a thread, with pread64. The loader reads heads of libraries with it
    // too: not whole pages.
    let whole_pages =
        |line: &&str| !line.contains("pread64") || traced(line, "pread64").1.is_multiple_of(4096);
    let text: String = text.lines().filter(whole_pages).map(|line| format!("{line}\n")).collect();
    let read = traced(&text, "preadv2").1 + traced(&text, "pread64").1;
    assert_eq!(read, number(&receipt["host_bytes"]["read"]), "{receipt:#}\n{text}");
    let moved: u64 = methods.as_object().unwrap().values().map(number).sum();
    assert_eq!((moved, &receipt["good_bytes"]), (40 * MIB, &(40 * MIB).into()));
    receipt
}

//= promise 2
#[test]
fn the_receipt_counts_what_strace_counts() {
    let test = "the_receipt_counts_what_strace_counts";
    if sh("strace -V").is_err() || sh("strace -o /dev/null true").is_err() {
        return skip(test, "strace is missing or may not trace");
    }
    let base = folder();
    let mut undo = Undo::default();
    let mut places = vec![("here", "", base.path().to_owned())];
    let mut add = |name, method, made: Result<PathBuf, String>| match made {
        Ok(at) => places.push((name, method, at)),
        Err(why) => skip(&format!("{test} on {name}"), &why),
    };
    match loops_or_why() {
        Ok(()) => {
            add(
                "ext4",
                "copy-file-range",
                mount_loop(&mut undo, base.path(), "ext4", "mkfs.ext4 -q", "400M"),
            );
            add(
                "xfs",
                "reflink",
                mount_loop(&mut undo, base.path(), "xfs", "mkfs.xfs -q -m reflink=1", "400M"),
            );
            add("btrfs", "reflink", mount_loop(&mut undo, base.path(), "btrfs", "mkfs.btrfs -q", "400M"));
        }
        Err(why) => skip(test, &why),
    }
    for (name, best, dir) in places {
        eprintln!("on {name}");
        must(&format!("truncate -s 40M {}/source", dir.display()));
        random(&dir.join("source"), 20 * MIB, MIB);
        for offload in ["--offload=auto", "--offload=never", "--no-sync"] {
            let receipt = counted(&dir, offload);
            let by = |method: &str| receipt["methods"][method].as_u64().unwrap_or(0);
            // A clone takes the holes along.
            assert!(
                by("skip") > 15 * MIB || by("reflink") == 40 * MIB,
                "{name}: a hole was copied: {receipt:#}"
            );
            match (best, offload) {
                ("", _) => {}
                ("reflink", "--offload=auto" | "--no-sync") | (_, "--no-sync") => {
                    assert!(by(best) >= 20 * MIB, "{name}: {receipt:#}")
                }
                _ => assert!(by("emulated") >= 20 * MIB, "{name}: {receipt:#}"),
            }
        }
    }
}

//! `--verify` reads the medium: what other programs keep in the page cache hides nothing from it, and what could be
//! read through the cache only is said.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod common;

use blkcopy::sys::mapped::Mapped;
use common::mounted::{Mounted, mounts_or_why};
use common::{
    BIN, MIB, Ran, Undo, attach, blkcopy, bytes, command, folder, loops_or_why, mount_loop, mount_tmpfs,
    must, sh, skip,
};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

const LEN: u64 = 8 * MIB;

fn dest_read(ran: &Ran) -> [u64; 3] {
    let read = &ran.json()["verification"]["dest_read"];
    ["direct", "device", "cache"].map(|key| read[key].as_u64().unwrap())
}

/// A file system on a loop device, and where in its image the destination's second MiB lies.
struct Spoiled {
    undo: Undo,
    image: PathBuf,
    dest: PathBuf,
    at: u64,
}

impl Spoiled {
    /// Errors: why it cannot be had.
    fn new(base: &Path) -> Result<Self, String> {
        loops_or_why()?;
        sh("command -v filefrag")?;
        let mut undo = Undo::default();
        let dir = mount_loop(&mut undo, base, "e", "mkfs.ext4 -q -F -b 4096", "300M")?;
        let dest = dir.join("d");
        std::fs::write(&dest, bytes(LEN as usize, 2)).unwrap();
        must("sync");
        // Lines of extents: "  0:        0..    2047:      34816..     36863:   2048: ..."
        let told = must(&format!("filefrag -v -b4096 {}", dest.display()));
        let first = told.lines().find(|l| l.trim_start().starts_with("0:")).unwrap();
        let physical = first.split(':').nth(2).unwrap().split("..").next().unwrap().trim();
        let at = physical.parse::<u64>().unwrap() * 4096 + MIB;
        Ok(Self { undo, image: base.join("e.fs"), dest, at })
    }

    /// Copies onto the destination while its medium is spoiled all the time.
    fn copy(&self, dir: &Path, mode: &str) -> Ran {
        let (image, stop) = (File::options().write(true).open(&self.image).unwrap(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    image.write_all_at(&[0xEE; 4096], self.at).unwrap();
                }
            });
            let dest = format!("{}@0+{LEN}", self.dest.display());
            let ran = blkcopy(dir, &["cp", "--in-place", "--quiet", "--json", "--verify", mode, "a", &dest]);
            stop.store(true, Ordering::Relaxed);
            ran
        })
    }
}

//= promise 10
#[test]
fn a_wrong_medium_is_found_below_pages_that_another_program_has_mapped() {
    let folder = folder();
    let spoiled = match Spoiled::new(folder.path()) {
        Ok(spoiled) => spoiled,
        Err(why) => {
            return skip("a_wrong_medium_is_found_below_pages_that_another_program_has_mapped", &why);
        }
    };
    std::fs::write(folder.path().join("a"), bytes(LEN as usize, 1)).unwrap();
    for mapped in [false, true] {
        let file = File::options().read(true).write(true).open(&spoiled.dest).unwrap();
        let map = mapped.then(|| Mapped::new(&file, LEN as usize).unwrap());
        let stop = AtomicBool::new(false);
        let mut found = [None, None];
        std::thread::scope(|scope| {
            if let Some(map) = &map {
                // Looks at every page all the time, so that none is let go.
                scope.spawn(|| {
                    let mut byte = [0];
                    while !stop.load(Ordering::Relaxed) {
                        (0..LEN as usize).step_by(4096).for_each(|at| map.read(at, &mut byte));
                    }
                });
            }
            // Whoever spoils it may stand still while it is verified, but not each time.
            let run =
                |mode| (0..40).map(|_| spoiled.copy(folder.path(), mode)).find(|ran| ran.code != Some(0));
            found = ["digest", "bytes"].map(run);
            stop.store(true, Ordering::Relaxed);
        });
        for found in found {
            let ran = found
                .unwrap_or_else(|| panic!("mapped: {mapped}: the medium is wrong, and nothing is found"));
            let receipt = ran.json();
            assert_eq!((ran.code, &receipt["outcome"]), (Some(1), &"mismatch".into()), "{ran:?}");
            let bad = &receipt["verification"]["first_bad"];
            assert_eq!((&bad["offset"], &bad["len"]), (&MIB.into(), &4096.into()), "{receipt}");
            assert!(dest_read(&ran)[2] == 0, "{receipt}");
        }
    }
    drop(spoiled.undo);
}

//= promise 10
#[test]
fn what_was_read_through_the_cache_only_is_said() {
    let folder = folder();
    let dir = folder.path();
    std::fs::write(dir.join("a"), bytes(LEN as usize + 77, 1)).unwrap();
    let all = LEN + 77;
    let verified = |dest: &str| {
        let args = ["cp", "--verify", "digest", "--offload", "never", "--receipt", "r", "a", dest];
        let ran = blkcopy(dir, &args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let receipt: Value = serde_json::from_slice(&std::fs::read(dir.join("r")).unwrap()).unwrap();
        let read = &receipt["verification"]["dest_read"];
        (["direct", "device", "cache"].map(|key| read[key].as_u64().unwrap()), ran.out)
    };
    let (read, text) = verified(&format!("mem:{all}"));
    assert_eq!(read, [0, all, 0]);
    assert!(text.ends_with(", verified by digest\n"), "{text}");
    if let Err(why) = loops_or_why() {
        return skip("what_was_read_through_the_cache_only_is_said", &why);
    }
    let mut undo = Undo::default();
    for (name, mkfs) in [("ext4", "mkfs.ext4 -q -F"), ("xfs", "mkfs.xfs -q"), ("btrfs", "mkfs.btrfs -q")] {
        let at = match mount_loop(&mut undo, dir, name, mkfs, "400M") {
            Ok(at) => at,
            Err(why) => {
                skip(&format!("verification on {name}"), &why);
                continue;
            }
        };
        let (read, text) = verified(at.join("b").to_str().unwrap());
        // What stays in the cache of Btrfs counts as read through it: its direct reads may be answered from there.
        assert_eq!((read[0] + read[2], read[1]), (all, 0), "{name}");
        assert!(name == "btrfs" || read[2] == 0, "{name}");
        let end =
            if read[2] == 0 { ", verified by digest\n" } else { " of it through the page cache only)\n" };
        assert!(text.ends_with(end), "{text}");
    }
    let tmpfs = mount_tmpfs(&mut undo, dir, "t", "64M").unwrap();
    let (read, text) = verified(tmpfs.join("b").to_str().unwrap());
    assert_eq!(read, [0, 0, all]);
    assert!(text.ends_with(", verified by digest (8.0 MiB of it through the page cache only)\n"), "{text}");
    // A block device, whose length is a whole number of blocks.
    std::fs::write(dir.join("disk"), vec![0; LEN as usize]).unwrap();
    std::fs::write(dir.join("a"), bytes(LEN as usize, 3)).unwrap();
    let disk = attach(&mut undo, &dir.join("disk")).unwrap();
    let disk = disk.to_str().unwrap();
    let ran = blkcopy(dir, &["cp", "--yes", "--json", "--verify", "bytes", "a", disk]);
    assert_eq!((ran.code, dest_read(&ran)), (Some(0), [LEN, 0, 0]), "{ran:?}");
}

/// Its server may have cached what it answers, and so may the kernel for it.
//= promise 10
#[test]
fn a_file_of_a_mount_is_verified_through_the_cache() {
    if let Err(why) = mounts_or_why() {
        return skip("a_file_of_a_mount_is_verified_through_the_cache", &why);
    }
    let folder = folder();
    std::fs::write(folder.path().join("a"), bytes(MIB as usize, 1)).unwrap();
    let mount = Mounted::start(&["v=mem:1MiB"]);
    let dest = format!("{}@0+1MiB", mount.text("v"));
    let child = command(folder.path(), &["cp", "--in-place", "--json", "--verify", "bytes", "a", &dest])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!((ran.code, dest_read(&ran)), (Some(0), [0, 0, MIB]), "{BIN}: {ran:?}");
    mount.stop();
}

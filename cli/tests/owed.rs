//! Zeroes that a mounted volume owes: however large it is they are stored in bounded time and memory, and soon after a
//! truncation nothing is owed any more, so that a server that is killed takes nothing with it.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod common;

use common::mounted::{Mounted, bounded, mounts_or_why};
use common::{MIB, Undo, bytes, folder, mount_loop, must, skip};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Address space of a server, in bytes: what it needs for an ordinary volume, with room.
const MEMORY: &str = "8000000000";

//= promise mount
#[test]
fn a_truncation_of_a_huge_volume_ends_in_bounded_time_and_memory() {
    if let Err(why) = mounts_or_why().and_then(|()| common::loops_or_why()) {
        return skip("a_truncation_of_a_huge_volume_ends_in_bounded_time_and_memory", &why);
    }
    let (mut undo, folder) = (Undo::default(), folder());
    let xfs = match mount_loop(&mut undo, folder.path(), "x", "mkfs.xfs -q", "400M") {
        Ok(xfs) => xfs,
        Err(why) => {
            return skip("a_truncation_of_a_huge_volume_ends_in_bounded_time_and_memory", &why);
        }
    };
    for size in ["1P", "7E"] {
        let image = xfs.join(size);
        must(&format!(
            "truncate -s {size} {0}; printf old | dd of={0} bs=1 seek=1T conv=notrunc status=none",
            image.display()
        ));
        let mount = Mounted::start(&[&format!("h={}", image.display())]);
        must(&format!("prlimit --pid {} --as={MEMORY}", mount.pid()));
        let volume = mount.text("h");
        // Cut, written in the middle, and made durable; then cut again, which the end of the mount stores.
        let ran = bounded(&format!(
            ": > {volume}; printf new | dd of={volume} bs=512 seek=2000000000 conv=notrunc,fsync,sync status=none"
        ));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{size}");
        let front = |at: u64| {
            let mut front = [1; 3];
            File::open(&image).unwrap().read_exact_at(&mut front, at).unwrap();
            front
        };
        assert_eq!((front(1 << 40), &front(512 * 2_000_000_000)), ([0; 3], b"new"), "{size}");
        let ran = bounded(&format!(": > {volume}"));
        assert_eq!(ran.code, Some(0), "{size}: {}", ran.err);
        mount.stop();
        assert_eq!(front(512 * 2_000_000_000), [0; 3], "{size}");
        std::fs::remove_file(&image).unwrap();
    }
}

//= promise mount, events
#[test]
fn soon_after_a_truncation_a_killed_mount_takes_no_zeroes_with_it() {
    if let Err(why) = mounts_or_why() {
        return skip("soon_after_a_truncation_a_killed_mount_takes_no_zeroes_with_it", &why);
    }
    let folder = folder();
    let image = folder.path().join("image");
    let old = bytes(16 * MIB as usize, 3);
    std::fs::write(&image, &old).unwrap();
    let mut mount = Mounted::start(&[&format!("v={}", image.display())]);
    File::create(mount.at_name("v")).unwrap().write_all_at(b"new", 4096).unwrap();
    // The window is five seconds; the bound is for machines that stand still.
    let (begun, mut held) = (Instant::now(), Vec::new());
    while begun.elapsed() < Duration::from_secs(90) {
        std::thread::sleep(Duration::from_millis(100));
        held = std::fs::read(&image).unwrap();
        if held[8192..].iter().all(|&byte| byte == 0) {
            break;
        }
    }
    mount.kill();
    held.clone_from(&std::fs::read(&image).unwrap());
    let mut due = vec![0; old.len()];
    due[4096..4099].copy_from_slice(b"new");
    assert!(held == due, "what was cut is stored, and nothing asked for it but the truncation");
}

/// What a kill within the window leaves: each block old or new, never anything else, and what was synced is there.
//= promise mount, events
#[test]
fn a_mount_that_is_killed_right_after_a_truncation_leaves_old_or_new_blocks() {
    if let Err(why) = mounts_or_why() {
        return skip("a_mount_that_is_killed_right_after_a_truncation_leaves_old_or_new_blocks", &why);
    }
    for synced in [false, true] {
        let folder = folder();
        let image = folder.path().join("image");
        let old = bytes(16 * MIB as usize, 4);
        std::fs::write(&image, &old).unwrap();
        let mut mount = Mounted::start(&[&format!("v={}", image.display())]);
        let volume = File::create(mount.at_name("v")).unwrap();
        let new = bytes(MIB as usize, 5);
        volume.write_all_at(&new, MIB).unwrap();
        if synced {
            volume.sync_all().unwrap();
        }
        mount.kill();
        let held = std::fs::read(&image).unwrap();
        assert_eq!(held.len(), old.len());
        for (n, block) in held.chunks(4096).enumerate() {
            let at = n * 4096;
            let mib = MIB as usize;
            let now = if (mib..2 * mib).contains(&at) { &new[at - mib..][..4096] } else { &[0; 4096][..] };
            assert!(block == now || (!synced && block == &old[at..at + 4096]), "synced {synced}, byte {at}");
        }
        // A write that returned has reached the file: only zeroes can be lost by a kill.
        assert!(held[MIB as usize..2 * MIB as usize] == new[..], "synced {synced}");
    }
}

//! `blkcopy cp` and a loop device: the safety words. Needs the right to make loop devices; skips aloud without it.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{blkcopy, bytes};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// A loop device, taken down when dropped.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Option<Self> {
        let out = Command::new("losetup").args(["-f", "--show"]).arg(file).output().ok()?;
        out.status.success().then(|| Self(String::from_utf8(out.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

//= promise 3
#[test]
fn a_block_device_is_overwritten_only_when_it_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let (back, old) = (dir.path().join("back"), bytes(1 << 20, 1));
    std::fs::write(&back, &old).unwrap();
    let Some(device) = Loop::over(&back) else {
        eprintln!("SKIPPED a_block_device_is_overwritten_only_when_it_is_said_so: no loop device to be had");
        return;
    };
    let name = device.0.as_str();
    let (small, big) = (bytes(4097, 2), bytes((1 << 20) + 1, 3));
    std::fs::write(dir.path().join("a"), &small).unwrap();
    std::fs::write(dir.path().join("big"), &big).unwrap();
    let now = || {
        let mut bytes = vec![0; 1 << 20];
        std::fs::File::open(name).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    for (args, part) in [
        (&["cp", "a", name][..], "would be overwritten\n  try: give --yes if its contents may be lost\n"),
        (
            &["cp", "--yes", "big", name],
            "too small: 1048577 bytes of big would end at byte 1048577, but the destination has 1048576 bytes\n",
        ),
        (&["cp", "--yes", "back", name], "hold the same bytes"),
        (&["cp", name, "back"], "hold the same bytes"),
        (&["cp", "a", "back"], "in use: backs /dev/loop"),
    ] {
        let ran = blkcopy(dir.path(), args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}: {ran:?}");
        assert!(ran.err.contains(part), "{args:?}: {}", ran.err);
        assert!(now() == old, "{args:?} changed the device");
    }
    assert_eq!(blkcopy(dir.path(), &["plan", "big", name]).code, Some(1));
    assert!(now() == old, "plan changed the device");
    // An odd offset and length: the blocks at both edges keep their other bytes.
    let ran = blkcopy(dir.path(), &["cp", "--yes", "--verify", "bytes", "a", &format!("{name}@1000B")]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let mut want = old;
    want[1000..1000 + small.len()].copy_from_slice(&small);
    assert!(now() == want);
}

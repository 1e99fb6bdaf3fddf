//! `blkcopy cp` in sandboxes: each system call that is not needed is refused in turn, and the bytes arrive as with
//! `cp`.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use ::blkcopy::sys::seccomp::{Argument, Refusal, refuse};
use common::{Ran, Undo, bytes, command, folder, loops_or_why, mount_loop, must, skip};
use rustix::io::Errno;
use std::io::Seek as _;
use std::path::Path;
use std::process::Command;

/// Runs it on a thread on which these calls are refused: the child inherits that. Its output goes to files, since the
/// thread reads no pipe without the calls that are refused.
fn refused(refusals: &[Refusal], mut command: Command) -> Ran {
    let refusals = refusals.to_vec();
    let [mut out, mut err] = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    command.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
    let status = std::thread::spawn(move || {
        for refusal in refusals {
            refuse(refusal).unwrap();
        }
        command.status().unwrap()
    });
    let code = status.join().unwrap().code();
    let text = |file: &mut std::fs::File| {
        file.rewind().unwrap();
        std::io::read_to_string(file).unwrap()
    };
    Ran { code, out: text(&mut out), err: text(&mut err) }
}

fn call(number: libc::c_long, errno: Errno) -> Refusal {
    Refusal { call: u32::try_from(number).unwrap(), argument: None, errno: errno.raw_os_error() }
}

/// The call with these bits, all of `mask`, in an argument.
fn with(number: libc::c_long, index: usize, mask: u32, value: u32, errno: Errno) -> Refusal {
    Refusal { argument: Some(Argument { index, mask, value }), ..call(number, errno) }
}

/// What containers and old filters answer.
const ANSWERS: [Errno; 3] = [Errno::PERM, Errno::NOSYS, Errno::ACCESS];
/// `FICLONERANGE` (linux/fs.h).
const FICLONERANGE: u32 = 0x4020_940d;
/// `__O_TMPFILE` (asm-generic/fcntl.h).
const TMPFILE: u32 = 0o20_000_000;
/// `cachestat` (Linux 6.5).
const CACHESTAT: libc::c_long = 451;

/// Every call that there is another way without, by its name.
fn calls() -> Vec<(&'static str, Vec<Refusal>)> {
    let direct = u32::try_from(libc::O_DIRECT).unwrap();
    let lease = u32::try_from(libc::F_SETLEASE).unwrap();
    let mut all = Vec::new();
    for errno in ANSWERS {
        all.extend([
            ("io_uring_setup", vec![call(libc::SYS_io_uring_setup, errno)]),
            ("copy_file_range", vec![call(libc::SYS_copy_file_range, errno)]),
            ("ioctl(FICLONERANGE)", vec![with(libc::SYS_ioctl, 1, u32::MAX, FICLONERANGE, errno)]),
            ("ioctl", vec![call(libc::SYS_ioctl, errno)]),
            ("fallocate", vec![call(libc::SYS_fallocate, errno)]),
            ("openat(O_TMPFILE)", vec![with(libc::SYS_openat, 2, TMPFILE, TMPFILE, errno)]),
            ("openat(O_DIRECT)", vec![with(libc::SYS_openat, 2, direct, direct, errno)]),
            ("linkat", vec![call(libc::SYS_linkat, errno)]),
            ("renameat2", vec![call(libc::SYS_renameat2, errno), call(libc::SYS_linkat, errno)]),
            ("statx", vec![call(libc::SYS_statx, errno)]),
            ("cachestat", vec![call(CACHESTAT, errno)]),
            ("fcntl(F_SETLEASE)", vec![with(libc::SYS_fcntl, 1, u32::MAX, lease, errno)]),
            ("flock", vec![call(libc::SYS_flock, errno)]),
            ("fadvise64", vec![call(libc::SYS_fadvise64, errno)]),
            ("ftruncate", vec![call(libc::SYS_ftruncate, errno)]),
            ("preadv2 and pwritev2", vec![call(libc::SYS_preadv2, errno), call(libc::SYS_pwritev2, errno)]),
        ]);
    }
    for errno in [Errno::INVAL, Errno::OPNOTSUPP, Errno::XDEV, Errno::TXTBSY] {
        all.extend([
            ("copy_file_range", vec![call(libc::SYS_copy_file_range, errno)]),
            ("ioctl(FICLONERANGE)", vec![with(libc::SYS_ioctl, 1, u32::MAX, FICLONERANGE, errno)]),
        ]);
    }
    for errno in [Errno::INVAL, Errno::OPNOTSUPP] {
        all.extend([
            ("fallocate", vec![call(libc::SYS_fallocate, errno)]),
            ("openat(O_TMPFILE)", vec![with(libc::SYS_openat, 2, TMPFILE, TMPFILE, errno)]),
            ("openat(O_DIRECT)", vec![with(libc::SYS_openat, 2, direct, direct, errno)]),
            ("ftruncate", vec![call(libc::SYS_ftruncate, errno)]),
            ("statx", vec![call(libc::SYS_statx, errno)]),
        ]);
    }
    all
}

/// Three MiB with a hole in the middle and an odd end.
fn source(dir: &Path) -> Vec<u8> {
    let mut data = bytes((3 << 20) + 77, 5);
    std::fs::write(dir.join("a"), &data).unwrap();
    let punched = common::sh(&format!("fallocate -p -o 1048576 -l 1048576 {}/a", dir.display()));
    if punched.is_ok() {
        data[1 << 20..2 << 20].fill(0);
    }
    data
}

fn copies_in(dir: &Path) {
    let data = source(dir);
    let old = bytes(5 << 20, 6);
    let in_place = [&data[..], &old[data.len()..]].concat();
    for (name, refusals) in calls() {
        let errno = Errno::from_raw_os_error(refusals[0].errno);
        for (flags, dest, want) in [
            (&[][..], "new", &data),
            (&["--no-sync"], "unsynced", &data),
            (&["--in-place"], "old", &in_place),
            (&["--offload", "never", "--sparse", "always"], "sparse", &data),
        ] {
            let at = dir.join(dest);
            let _ = std::fs::remove_file(&at);
            if dest == "old" {
                std::fs::write(&at, &old).unwrap();
            }
            let args = [&["cp", "--quiet"], flags, &["a", dest]].concat();
            let ran = refused(&refusals, command(dir, &args));
            assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{name} answers {errno}: {args:?}");
            assert!(
                std::fs::read(&at).unwrap() == *want,
                "{name} answers {errno}: {args:?}: a byte is wrong"
            );
        }
    }
    let left = must(&format!("ls -A {}", dir.display()));
    assert_eq!(left, "a\nnew\nold\nsparse\nunsynced", "nothing is left behind");
}

#[test]
fn each_refused_call_is_done_without() {
    copies_in(folder().path());
}

#[test]
fn each_refused_call_is_done_without_where_extents_are_shared() {
    let test = "each_refused_call_is_done_without_where_extents_are_shared";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    match mount_loop(&mut undo, base.path(), "xfs", "mkfs.xfs -q -m reflink=1", "400M") {
        Ok(at) => {
            let dir = at.join("d");
            std::fs::create_dir(&dir).unwrap();
            copies_in(&dir);
        }
        Err(why) => skip(test, &why),
    }
}

#[test]
fn what_cannot_be_done_without_is_an_error() {
    let dir = folder();
    let data = source(dir.path());
    // A copy that cannot be made durable is not called done, and one that need not be is.
    let sync = [call(libc::SYS_fdatasync, Errno::PERM), call(libc::SYS_io_uring_setup, Errno::PERM)];
    let ran = refused(&sync, command(dir.path(), &["cp", "a", "b"]));
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("flush failed") && !dir.path().join("b").exists(), "{ran:?}");
    let ran = refused(&sync, command(dir.path(), &["cp", "--no-sync", "a", "b"]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(std::fs::read(dir.path().join("b")).unwrap() == data);
    // Each error of a call that ends a copy is told, and nothing is called done that is not.
    for (name, refusal) in [
        ("ftruncate", call(libc::SYS_ftruncate, Errno::NOSPC)),
        ("fdatasync", call(libc::SYS_fdatasync, Errno::IO)),
        ("fsync", call(libc::SYS_fsync, Errno::IO)),
        ("pwrite64", call(libc::SYS_pwrite64, Errno::IO)),
    ] {
        let _ = std::fs::remove_file(dir.path().join("c"));
        let no_ring = call(libc::SYS_io_uring_setup, Errno::PERM);
        let no_vectors = [call(libc::SYS_preadv2, Errno::NOSYS), call(libc::SYS_pwritev2, Errno::NOSYS)];
        let all = [&[refusal, no_ring][..], &no_vectors].concat();
        let ran = refused(&all, command(dir.path(), &["cp", "--offload", "never", "a", "c"]));
        assert_eq!(ran.code, Some(2), "{name}: {ran:?}");
        assert!(ran.out.starts_with("failed") || ran.out.is_empty(), "{name}: {ran:?}");
        let there = dir.path().join("c").exists();
        // The name is given before it is made durable; all else is found out before.
        assert_eq!(there, name == "fsync", "{name}: {ran:?}");
    }
    // Of close by another program's hand: a test without it could not end its own pipes.
    std::fs::write(dir.path().join("e"), b"old").unwrap();
    let path = dir.path().canonicalize().unwrap().join("e");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "log", "-e", "trace=close", "-e", "inject=close:error=EDQUOT", "-P"]);
    strace.arg(&path).args([common::BIN, "cp", "--no-sync", "a", "e"]).current_dir(dir.path());
    match strace.output().map(Ran::of) {
        Ok(ran) if ran.code == Some(2) || ran.out.starts_with("copied") => {
            assert_eq!(ran.code, Some(2), "{ran:?}");
            assert!(ran.err.contains("e: what was written may be lost: closing the file failed"), "{ran:?}");
            assert!(ran.out.starts_with("failed after 0 B"), "{ran:?}");
        }
        other => skip("what_cannot_be_done_without_is_an_error", &format!("no strace: {other:?}")),
    }
    // A folder that cannot be synced is a warning: the bytes are durable.
    let ran = refused(&[call(libc::SYS_fsync, Errno::INVAL)], command(dir.path(), &["cp", "-q", "a", "d"]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("warning: d: ") && ran.err.contains("cannot be synced"), "{ran:?}");
    assert!(std::fs::read(dir.path().join("d")).unwrap() == data);
}

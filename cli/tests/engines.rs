//! `blkcopy cp` where io_uring is forbidden, as in many containers: the same bytes, one line that says why.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use ::blkcopy::sys::seccomp::forbid_io_uring;
use common::{BIN, Ran, blkcopy, bytes, command, sh, skip};
use rustix::io::Errno;
use std::path::Path;
use std::process::Command;

/// Runs it on a thread where io_uring answers `errno`: the child inherits the filter.
fn forbidden(errno: Errno, mut command: Command) -> Ran {
    std::thread::spawn(move || {
        forbid_io_uring(errno.raw_os_error()).unwrap();
        Ran::of(command.output().unwrap())
    })
    .join()
    .unwrap()
}

const FILTERS: [(Errno, &str, &str); 2] = [
    (Errno::PERM, "EPERM", "blkcopy: I/O engine: threads, because io_uring is forbidden here (EPERM)\n"),
    (Errno::NOSYS, "ENOSYS", "blkcopy: I/O engine: threads, because the kernel has no io_uring (ENOSYS)\n"),
];

fn source(dir: &Path) -> Vec<u8> {
    // More than fits in flight, an odd end, and a hole.
    let mut data = bytes((40 << 20) + 4097, 9);
    std::fs::write(dir.join("a"), &data).unwrap();
    let hole = std::process::Command::new("fallocate")
        .args(["--punch-hole", "--offset", "8388608", "--length", "4194304", "a"])
        .current_dir(dir)
        .status();
    if hole.is_ok_and(|s| s.success()) {
        data[8 << 20..12 << 20].fill(0);
    }
    data
}

//= promise 1
#[test]
fn without_io_uring_the_same_bytes_and_one_line_why() {
    let dir = common::folder();
    let data = source(dir.path());
    for offload in ["auto", "never"] {
        let args = ["cp", "--json", "--offload", offload, "--verify", "digest", "a", "b"];
        let free = blkcopy(dir.path(), &args);
        assert_eq!(free.code, Some(0), "{free:?}");
        for (errno, _, line) in FILTERS {
            std::fs::remove_file(dir.path().join("b")).unwrap();
            let ran = forbidden(errno, command(dir.path(), &args));
            assert_eq!((ran.code, ran.err.as_str()), (Some(0), line));
            assert!(
                std::fs::read(dir.path().join("b")).unwrap() == data,
                "{errno} {offload}: a byte is wrong"
            );
            let (with, without) = (free.json(), ran.json());
            for key in
                ["outcome", "good_bytes", "methods", "reasons", "plan_digest", "host_bytes", "verification"]
            {
                assert_eq!(with[key], without[key], "{errno} {offload}: {key}");
            }
            assert!(without["io_engine"].as_str().unwrap().starts_with("threads, because"), "{without:#}");
        }
    }
    // Silent when asked to be; an error when io_uring is what was asked for, and nothing is made.
    let ran = forbidden(Errno::PERM, command(dir.path(), &["cp", "-q", "a", "quiet"]));
    assert_eq!(ran, Ran { code: Some(0), out: String::new(), err: String::new() });
    let ran = forbidden(Errno::PERM, command(dir.path(), &["cp", "--io-engine", "uring", "a", "none"]));
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.err.contains("io_uring cannot be used here") && ran.err.contains("--io-engine auto"),
        "{}",
        ran.err
    );
    assert!(!dir.path().join("none").exists());
}

#[test]
fn strace_sees_no_io_uring_that_worked() {
    if let Err(why) = sh("strace -o /dev/null true") {
        return skip("strace_sees_no_io_uring_that_worked", &why);
    }
    let dir = common::folder();
    let data = source(dir.path());
    for (errno, word, _) in FILTERS {
        let mut strace = Command::new("strace");
        let calls = "trace=io_uring_setup,io_uring_enter,io_uring_register";
        strace.args(["-f", "-qq", "-o", "log", "-e", calls, BIN, "cp", "--offload", "never", "a", "b"]);
        let ran = forbidden(errno, {
            strace.current_dir(dir.path());
            strace
        });
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(std::fs::read(dir.path().join("b")).unwrap() == data);
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        let calls: Vec<&str> = log.lines().filter(|l| l.contains("io_uring_")).collect();
        assert!(!calls.is_empty(), "io_uring was tried first");
        assert!(calls.iter().all(|l| l.contains(&format!("= -1 {word}"))), "{log}");
    }
}

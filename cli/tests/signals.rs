//! How `blkcopy cp` is stopped, and what it says on the way: signals, progress lines, closed pipes.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{MIB, Ran, blkcopy, bytes, command, front_is_equal, must, sh, under_way};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn start(dir: &Path, args: &[&str]) -> Child {
    command(dir, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, names: &[&str]) {
    for name in names {
        must(&format!("kill -{name} {}", child.id()));
    }
}

/// Sends SIGINT and waits; how it ended, and after how long.
fn interrupt(child: Child, name: &str) -> (Ran, Duration) {
    let asked = Instant::now();
    signal(&child, &[name]);
    let ran = Ran::of(child.wait_with_output().unwrap());
    (ran, asked.elapsed())
}

//= promise 8, events
#[test]
fn an_interrupt_ends_a_limited_copy_at_once_with_a_true_receipt() {
    let dir = common::folder();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&a, bytes(64 << 20, 5)).unwrap();
    for (name, offload) in [("INT", "--offload=never"), ("TERM", "--offload=never"), ("INT", "--no-sync")] {
        let args = ["cp", "--json", "--receipt", "r", offload, "--limit-rate", "4MiB", "a", "b"];
        let child = start(dir.path(), &args);
        under_way(&b);
        let (ran, took) = interrupt(child, name);
        eprintln!("SIG{name}, {offload}, --limit-rate: ended after {took:?}");
        assert_eq!(ran.code, Some(130), "{ran:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(std::fs::read_to_string(dir.path().join("r")).unwrap(), ran.out);
        let receipt = ran.json();
        assert_eq!(
            (&receipt["outcome"], &receipt["error"]["kind"]),
            (&"cancelled".into(), &"cancelled".into())
        );
        let good = receipt["good_prefix_bytes"].as_u64().unwrap();
        assert!(good < 64 * MIB, "{receipt:#}");
        assert_eq!(receipt["good_bytes"], good, "what was cut off is not called good: {receipt:#}");
        if good == 0 {
            assert!(!b.exists(), "nothing in it is good");
            continue;
        }
        assert_eq!(b.metadata().unwrap().len(), good, "what is not good is cut off");
        front_is_equal(&a, &b, good);
        assert!(ran.err.contains("b: truncated to "), "{}", ran.err);
        std::fs::remove_file(&b).unwrap();
    }
}

//= promise events
#[test]
fn what_is_cut_off_is_not_called_good() {
    let dir = common::folder();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&a, bytes(16 << 20, 5)).unwrap();
    // The hole is done at once, long before the data in front of it.
    std::fs::File::options().write(true).open(&a).unwrap().set_len(100 << 20).unwrap();
    let child = start(dir.path(), &["cp", "--json", "--offload", "never", "--limit-rate", "1MiB", "a", "b"]);
    under_way(&b);
    let (ran, _) = interrupt(child, "INT");
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let receipt = ran.json();
    let number = |key: &str| receipt[key].as_u64().unwrap();
    assert_eq!(b.metadata().map_or(0, |m| m.len()), number("good_bytes"), "{receipt:#}");
    let methods = receipt["methods"].as_object().unwrap();
    let moved: u64 = methods.values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(number("good_bytes") + number("cut_off_bytes"), moved, "{receipt:#}");
    assert!(number("cut_off_bytes") >= 84 * MIB, "{receipt:#}");
}

//= promise 8
#[test]
fn an_interrupt_ends_a_big_copy_at_once_with_a_true_receipt() {
    let dir = common::folder();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&a, bytes(64 << 20, 6)).unwrap();
    // The same 64 MiB a thousand times: far too much to be finished, though the source is quick to make.
    let segments: Vec<String> =
        (0..1000).map(|i| format!("--segment=0:{}:{}", i * 64 * MIB, 64 * MIB)).collect();
    let mut args = vec!["cp", "--json", "--offload", "never", "a", "b"];
    args.extend(segments.iter().map(String::as_str));
    let child = start(dir.path(), &args);
    under_way(&b);
    std::thread::sleep(Duration::from_millis(300));
    let (ran, took) = interrupt(child, "INT");
    eprintln!("SIGINT, as fast as it goes: ended after {took:?}");
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let receipt = ran.json();
    let good = receipt["good_prefix_bytes"].as_u64().unwrap();
    assert!(good <= receipt["good_bytes"].as_u64().unwrap() && good < 1000 * 64 * MIB);
    assert_eq!(receipt["flushed"], true, "what is called good is on storage");
    for at in (0..good).step_by(64 << 20) {
        let len = (good - at).min(64 * MIB);
        must(&format!("cmp -n {len} -i 0:{at} {} {}", a.display(), b.display()));
    }
}

//= promise 8, signals, events
#[test]
fn a_second_signal_says_what_is_waited_for_and_loses_nothing() {
    let dir = common::folder();
    std::fs::write(dir.path().join("a"), bytes(16 << 20, 7)).unwrap();
    let child = start(dir.path(), &["cp", "--json", "--offload", "never", "--limit-rate", "1MiB", "a", "b"]);
    under_way(&dir.path().join("b"));
    // Stopped, it takes both at the same moment.
    signal(&child, &["STOP", "INT", "TERM", "CONT"]);
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.err.contains(": already stopping; copying: "), "{ran:?}");
    assert_eq!(ran.json()["outcome"], "cancelled");
}

//= promise signals, events
#[test]
fn a_signal_that_asks_for_progress_ends_nothing() {
    let dir = common::folder();
    std::fs::write(dir.path().join("a"), bytes(6 << 20, 7)).unwrap();
    let child = start(dir.path(), &["cp", "--offload", "never", "--limit-rate", "4MiB", "a", "b"]);
    under_way(&dir.path().join("b"));
    signal(&child, &["USR2", "ALRM", "VTALRM", "PROF", "XFSZ", "URG", "PIPE", "USR1"]);
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.starts_with("blkcopy: copying: ") && ran.err.contains(" of 6.0 MiB ("), "{ran:?}");
}

//= promise signals
#[test]
fn a_closed_terminal_ends_a_copy_well_unless_it_was_started_with_nohup() {
    let dir = common::folder();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&a, bytes(6 << 20, 7)).unwrap();
    let args = ["cp", "--json", "--offload", "never", "--limit-rate", "3MiB", "a", "b"];
    for name in ["HUP", "QUIT"] {
        let child = start(dir.path(), &args);
        under_way(&b);
        let (ran, _) = interrupt(child, name);
        assert_eq!((ran.code, &ran.json()["outcome"]), (Some(130), &"cancelled".into()), "{ran:?}");
        let _ = std::fs::remove_file(&b);
    }
    let mut nohup = std::process::Command::new("nohup");
    nohup.arg(common::BIN).args(args).current_dir(dir.path());
    nohup.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = nohup.spawn().unwrap();
    under_way(&b);
    let (ran, _) = interrupt(child, "HUP");
    assert_eq!((ran.code, &ran.json()["outcome"]), (Some(0), &"done".into()), "{ran:?}");
}

#[test]
fn without_a_terminal_a_plain_line_every_few_seconds() {
    let dir = common::folder();
    std::fs::write(dir.path().join("a"), bytes(13 << 20, 8)).unwrap();
    let ran = blkcopy(dir.path(), &["cp", "--offload", "never", "--limit-rate", "2MiB", "a", "b"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines: Vec<&str> = ran.err.lines().collect();
    assert!(!lines.is_empty() && lines.len() <= 3, "{ran:?}");
    for line in lines {
        let known =
            line.starts_with("blkcopy: ") && line.contains(" MiB of 13.0 MiB (") && line.contains("%), ");
        assert!(known && !line.contains(['\r', '\x1b']), "{line:?}");
    }
}

//= promise printed
#[test]
fn a_closed_pipe_is_no_error() {
    let dir = common::folder();
    std::fs::write(dir.path().join("a"), bytes(100_000, 1)).unwrap();
    let bin = common::BIN;
    let pieces: Vec<String> = (0..2000).map(|i| format!("--segment {0}:{0}:7", i * 16)).collect();
    for command in [
        format!("{bin} cp a b"),
        format!("{bin} cp --json a b"),
        format!("{bin} cp --offload never --limit-rate 1MiB a b"),
        format!("{bin} plan a b"),
        format!("{bin} plan --all --json --offload never {} a b", pieces.join(" ")),
        format!("{bin} info a"),
        format!("{bin} info --json a"),
        format!("{bin} --help"),
    ] {
        for reader in ["true", "head -1"] {
            // Both pipes are closed by `reader`; the code is the command's.
            let script = format!(
                "cd {}; {{ {command}; echo $? >code; }} 2>&1 | {reader} >/dev/null; cat code",
                dir.path().display()
            );
            assert_eq!(sh(&script).as_deref(), Ok("0"), "{command} | {reader}");
        }
    }
}

//! A failure of each close, sync, write, rename and change of length that `blkcopy cp` makes, one at a time (by
//! strace): none is passed over in silence, and what is called done is there.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{BIN, bytes, folder, sh, skip};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

/// Calls and the error each gets.
const KINDS: [(&str, &str); 11] = [
    ("close", "ENOSPC"),
    // All from then on: a file system that has lost bytes says so at each close of their file, until it was heard.
    ("close+", "ENOSPC"),
    ("fsync", "EIO"),
    ("fdatasync", "EIO"),
    ("write", "ENOSPC"),
    ("pwrite64", "ENOSPC"),
    ("ftruncate", "ENOSPC"),
    ("rename", "EIO"),
    ("renameat", "EIO"),
    ("renameat2", "EIO"),
    ("copy_file_range", "EIO"),
];
/// Calls that leave something to be told by a close.
const WRITES: [&str; 5] = ["write", "pwrite64", "copy_file_range", "ftruncate", "fallocate"];
/// More calls of one kind than a thread makes.
const CALLS_MAX: u32 = 200;

/// Fewest failures of calls that matter that each way to copy has.
const TOLD_MIN: u32 = 10;

/// What a failure of a call may lead to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum May {
    /// An exit code that is not 0, and words.
    Error,
    /// A warning: the copy is good, and its name may not survive a power cut.
    Warning,
    /// Anything but a wrong copy: the descriptor holds nothing that was written.
    Anything,
}

/// By the call and what its descriptor leads to.
fn may(kind: &str, what: &str, dir: &str) -> May {
    let inside = what.strip_prefix(dir).map(|rest| rest.trim_start_matches('/'));
    match (kind.trim_end_matches('+'), inside) {
        // The loader's files, /proc, /sys, rings, pipes; a source is only read.
        (_, None) | (_, Some("a")) => May::Anything,
        // A file that cannot have its length first gets it with its bytes.
        ("ftruncate", Some(file)) if file != "r" => May::Anything,
        // A folder is only synced; where that fails the copy stands.
        ("close", Some("")) => May::Anything,
        (_, Some(file)) if file.ends_with(" (nothing written)") => May::Anything,
        ("fsync", Some("")) => May::Warning,
        // Where status cannot be written nobody can be told.
        ("write" | "close", Some("err")) => May::Anything,
        _ => May::Error,
    }
}

/// Runs a copy with the N-th such call of each thread failing (with a `+`, all from then on): exit code, stderr, and
/// (call, file) of what failed.
fn run(dir: &Path, args: &[&str], kind: &str, error: &str, nth: u32) -> (Option<i32>, String, Vec<String>) {
    let file = |name: &str| std::fs::File::create(dir.join(name)).unwrap();
    let mut strace = Command::new("timeout");
    strace.args(["-k", "5", "60", "strace", "-f", "-y", "-qq", "-o", "trace"]);
    let (kind, on) = kind.strip_suffix('+').map_or((kind, ""), |kind| (kind, "+"));
    let traced = format!("trace={kind},close,fsync,fdatasync,{}", WRITES.join(","));
    strace.args(["-e", &traced, "-e", &format!("inject={kind}:error={error}:when={nth}{on}")]);
    strace.arg(BIN).args(args).current_dir(dir).env_remove("BLKCOPY_LOG").stdin(Stdio::null());
    let status = strace.stdout(file("out")).stderr(file("err")).status().unwrap();
    let trace = std::fs::read_to_string(dir.join("trace")).unwrap();
    let place = |line: &str| {
        let (_, rest) = line.split_once('(')?;
        // A name without a descriptor stands in quotes.
        let (open, close) = if rest.contains('<') { ('<', '>') } else { ('"', '"') };
        let (_, rest) = rest.split_once(open)?;
        Some(rest.split_once(close)?.0.to_owned())
    };
    let mut failed = Vec::new();
    // Files with bytes whose fate neither a sync nor a close has told yet.
    let mut written = BTreeSet::new();
    for line in trace.lines() {
        let what = place(line).unwrap_or_default();
        let call = line.split_once(' ').map_or(line, |(_, rest)| rest.trim_start());
        let is_close = call.starts_with("close(");
        if line.ends_with("(INJECTED)") {
            let empty = is_close && !written.contains(&what);
            failed.push(if empty { format!("{what} (nothing written)") } else { what });
        } else if is_close || call.starts_with("fsync(") || call.starts_with("fdatasync(") {
            written.remove(&what);
        } else if WRITES.iter().any(|w| call.starts_with(w)) {
            written.insert(what);
        }
    }
    (status.code(), std::fs::read_to_string(dir.join("err")).unwrap(), failed)
}

/// Ways to copy. The status file and the folder's entries differ, and so do the calls that are made.
const NEVER: [&str; 9] = ["cp", "--io-engine", "pool", "--receipt", "r", "--offload", "never", "a", "b"];
const LOOSE: [&str; 8] = ["cp", "--io-engine", "pool", "--no-sync", "--offload", "never", "a", "b"];
const AUTO: [&str; 7] = ["cp", "--io-engine", "pool", "--json", "--preserve", "a", "b"];

/// Fails each call of each kind, one run a failure, of a copy onto a new file, or one that holds `old`.
fn none_is_passed_over(args: &[&str], old: Option<&str>) {
    if sh("strace -qq -e inject=getppid:error=EIO -o /dev/null true").is_err() {
        return skip(
            &format!("failed calls of {}, {old:?}", args.join(" ")),
            "no strace that injects failures",
        );
    }
    let scratch = folder();
    let dir = scratch.path().canonicalize().unwrap();
    std::fs::write(dir.join("a"), bytes(300_000, 1)).unwrap();
    let shown = dir.to_str().unwrap();
    let mut wrong = Vec::new();
    let mut told = 0;
    for (kind, error) in KINDS {
        for nth in 1..CALLS_MAX {
            let _ = std::fs::remove_file(dir.join("b"));
            if let Some(old) = old {
                std::fs::write(dir.join("b"), old).unwrap();
            }
            let (code, err, failed) = run(&dir, args, kind, error, nth);
            if failed.is_empty() {
                break;
            }
            assert!(nth + 1 < CALLS_MAX, "{kind}: a thread makes too many");
            let case =
                format!("{} {old:?}: {kind} number {nth} of {failed:?}: {code:?} {err:?}", args.join(" "));
            // The loader's own failures are no run of the command.
            if err.contains("error while loading shared libraries") {
                continue;
            }
            let most = failed.iter().map(|what| may(kind, what, shown)).min_by_key(|may| *may as u8).unwrap();
            let good = match most {
                // Where stderr failed too, the code has to do.
                May::Error => {
                    let mute = failed.iter().any(|what| what.ends_with("/err"));
                    code.is_some_and(|c| c != 0) && (mute || !err.is_empty())
                }
                May::Warning => err.contains("warning: "),
                May::Anything => true,
            };
            told += u32::from(most != May::Anything);
            // The standard library panics when a folder that it lists cannot be closed.
            let panicked = code == Some(101) && !err.contains("closedir");
            if !good || panicked || matches!(code, Some(124 | 137)) {
                wrong.push(case.clone());
            }
            if code == Some(0) && std::fs::read(dir.join("b")).ok() != std::fs::read(dir.join("a")).ok() {
                wrong.push(format!("called done and is not: {case}"));
            }
            for left in std::fs::read_dir(&dir).unwrap() {
                let name = left.unwrap().file_name().into_string().unwrap();
                if !["a", "b", "r", "out", "err", "trace"].contains(&name.as_str()) {
                    std::fs::remove_file(dir.join(&name)).unwrap();
                }
            }
        }
    }
    assert!(told >= TOLD_MIN, "{told} failures of calls that matter");
    assert!(wrong.is_empty(), "{} of {told}:\n{}", wrong.len(), wrong.join("\n"));
}

//= promise printed
#[test]
fn no_failed_call_is_passed_over_in_silence() {
    none_is_passed_over(&NEVER, None);
}

#[test]
fn no_failed_call_is_passed_over_in_silence_on_an_old_file() {
    none_is_passed_over(&NEVER, Some("old"));
}

//= promise printed
#[test]
fn no_failed_call_is_passed_over_in_silence_with_offload() {
    none_is_passed_over(&AUTO, None);
}

#[test]
fn no_failed_call_is_passed_over_in_silence_with_offload_on_an_old_file() {
    none_is_passed_over(&AUTO, Some("old"));
}

//= promise printed
#[test]
fn no_failed_call_is_passed_over_in_silence_without_sync() {
    none_is_passed_over(&LOOSE, None);
}

#[test]
fn no_failed_call_is_passed_over_in_silence_without_sync_on_an_old_file() {
    none_is_passed_over(&LOOSE, Some("old"));
}

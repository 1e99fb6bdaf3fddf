//! The front door, as a program uses it.

use super::copying::copy;
use super::findings::{Finding, Left, Obstacle};
use super::watch::{CancelHandle, CopyWatch};
use crate::block::Kind;
use crate::block::receipt::{Outcome, SourceState};
use crate::copy::Segment;
use crate::copy::run::Verify;
use std::cell::RefCell;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

fn image(dir: &tempfile::TempDir, name: &str, len: usize) -> PathBuf {
    let path = dir.path().join(name);
    let bytes: Vec<u8> = (0..len).map(|i| (i / 7 + 1) as u8 | 1).collect();
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn one_call_makes_a_verified_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (image(&dir, "a", 300_001), dir.path().join("b"));
    let watch = Arc::new(CopyWatch::default());
    let told = RefCell::new(Vec::new());
    let receipt = copy(&from, &to)
        .verify(Verify::Bytes)
        .preserve(true)
        .progress(&watch)
        .on_finding(|finding| told.borrow_mut().push(finding.code()))
        .run()
        .unwrap();
    assert_eq!((receipt.outcome, receipt.good_bytes), (Outcome::Done, 300_001));
    assert_eq!(receipt.source.name, from.display().to_string());
    assert_ne!(receipt.source_state, SourceState::Unwatched);
    assert!(receipt.verification.unwrap().equal);
    assert_eq!(std::fs::read(&to).unwrap(), std::fs::read(&from).unwrap());
    assert!(watch.how_far().is_none());
    assert!(told.borrow().iter().all(|code| *code == "engine-stepped-down"), "{told:?}");
}

#[test]
fn a_copy_runs_once() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (image(&dir, "a", 10), dir.path().join("b"));
    let mut ready = copy(&from, &to).look().unwrap();
    assert!(ready.ends().dest_is_file() && !to.exists());
    ready.run().unwrap();
    let error = ready.run().unwrap_err();
    assert_eq!((error.kind(), error.receipt.is_none()), (Kind::InvalidInput, true));
    drop(ready);
    assert_eq!(std::fs::read(&to).unwrap().len(), 10);
}

#[test]
fn another_thread_follows_and_cancels() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (image(&dir, "a", 64 << 20), dir.path().join("b"));
    let (watch, cancel) = (Arc::new(CopyWatch::default()), CancelHandle::default());
    let (theirs, handle) = (watch.clone(), cancel.clone());
    let other = thread::spawn(move || {
        let patience = Instant::now() + Duration::from_secs(60);
        while Instant::now() < patience {
            if let Some(at) = theirs.how_far().filter(|at| at.good_prefix_bytes > 0) {
                handle.cancel();
                return at;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("no progress was seen");
    });
    let left = RefCell::new(None);
    let failed = copy(&from, &to)
        .offload(crate::copy::Offload::Never)
        .limit_rate(NonZeroU64::new(4 << 20))
        .cancel(&cancel)
        .progress(&watch)
        .on_finding(|finding| {
            if let Finding::DestLeft { left: Left::CutTo(len), .. } = finding {
                left.replace(Some(*len));
            }
        })
        .run();
    let seen = other.join().unwrap();
    let failed = failed.unwrap_err();
    assert_eq!((failed.kind(), seen.total_bytes), (Kind::Cancelled, 64 << 20));
    let receipt = failed.receipt.unwrap();
    assert_eq!(receipt.outcome, Outcome::Cancelled);
    assert!((1..64 << 20).contains(&receipt.good_prefix_bytes) && !failed.abandoned);
    assert_eq!(left.into_inner(), Some(receipt.good_prefix_bytes));
    assert_eq!(to.metadata().unwrap().len(), receipt.good_prefix_bytes);
}

/// What is in the way of a copy between `source` and `dest`, and the sentence about it.
fn found(source: impl AsRef<std::ffi::OsStr>, dest: impl AsRef<std::ffi::OsStr>) -> (&'static str, String) {
    let error = copy(source, dest).run().unwrap_err();
    assert!(error.receipt.is_none());
    let text = error.to_string();
    match error.obstacle {
        Obstacle::Found(finding) => (finding.code(), text),
        Obstacle::Failed(error) => panic!("{error:?}"),
    }
}

#[test]
fn what_is_in_the_way_is_data_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let a = image(&dir, "a", 100);
    let at = |path: &PathBuf, range: &str| format!("{}@{range}", path.display());
    let (code, text) = found(&a, &a);
    assert_eq!((code, text), ("same-file", format!("{0} and {0} are the same file", a.display())));
    assert_eq!(found(&a, dir.path().join("no/b")).0, "no-place");
    assert_eq!(found(&a, dir.path().join("no/")).0, "folder-missing");
    assert_eq!(found("mem:100", dir.path()).0, "no-file-name");
    assert_eq!(found("mem:100", at(&a, "5B")).0, "writes-into");
    assert_eq!(found(&a, "mem:10").0, "dest-too-small");
    assert_eq!(found(&a, "mem:100@0+10").0, "range-too-small");
    let parts = [Segment { source: 90, dest: 0, len: 11 }];
    let error = copy(&a, "mem:100").segments(parts).run().unwrap_err();
    assert!(matches!(error.obstacle, Obstacle::Found(f) if f.code() == "segment-outside"));
    let error = copy("mem:100", dir.path().join("b")).preserve(true).run().unwrap_err();
    assert!(matches!(error.obstacle, Obstacle::Found(f) if f.code() == "nothing-to-preserve"));
    assert_eq!(std::fs::read(&a).unwrap().len(), 100);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Programs match on them.
#[test]
fn codes_are_kebab_case_and_never_shared() {
    let text = include_str!("findings.rs");
    let (_, body) = text.split_once("pub fn code(&self)").unwrap();
    let (body, _) = body.split_once("\n    }\n").unwrap();
    let mut codes: Vec<&str> =
        body.lines().filter_map(|l| l.split_once("=> \"")?.1.strip_suffix("\",")).collect();
    assert!(codes.len() > 30);
    for code in &codes {
        assert!(code.chars().all(|c| c == '-' || c.is_ascii_lowercase()), "{code}");
    }
    codes.sort_unstable();
    let all = codes.len();
    codes.dedup();
    assert_eq!(codes.len(), all);
}

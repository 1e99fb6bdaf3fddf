//! A file whose server stops answering holds up what needs it, and nothing else of the same process.
//!
//! The server is a mount of our own, stopped by a signal: its file is one volume of a second daemon, beside others that
//! answer.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod common;

use common::{BIN, KIB, MIB, bytes, folder, sh, skip};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A hang guard: nothing that is waited for here takes long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon; its mount is taken away with it.
struct Daemon {
    child: Child,
    dir: PathBuf,
    /// What it printed last.
    said: String,
}

impl Daemon {
    fn start(dir: &Path, arguments: &[String], ready: &str) -> Self {
        std::fs::create_dir(dir).unwrap();
        let mut command = Command::new(BIN);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).env_remove("BLKCOPY_LOG");
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let said = lines.find(|line| line.starts_with(ready));
        let daemon = Self { child, dir: dir.to_owned(), said: said.unwrap_or_default() };
        assert!(!daemon.said.is_empty(), "it ended before it said {ready:?}");
        daemon
    }

    fn send(&self, signal: Signal) {
        let _ = kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.send(Signal::CONT);
        self.send(Signal::KILL);
        let _ = self.child.wait();
        let _ = sh(&format!("umount -l {} 2>/dev/null || true", self.dir.display()));
    }
}

/// Lets a stopped daemon go on, however the test ends.
struct Stopped<'a>(&'a Daemon);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.send(Signal::CONT);
    }
}

/// Runs `work` on a thread of its own; false when it has not ended in time.
fn ends(work: impl FnOnce() + Send + 'static) -> bool {
    let (told, tells) = mpsc::channel();
    std::thread::spawn(move || {
        work();
        let _ = told.send(());
    });
    tells.recv_timeout(PATIENCE).is_ok()
}

fn open(dir: &Path, name: &str) -> File {
    File::options().read(true).write(true).open(dir.join(name)).unwrap()
}

type Use = fn(&File, &File);

/// What is asked of the volume that does not answer: each by more threads than there are readers, helpers and places
/// for copies.
const USES: [(&str, usize, Use); 6] = [
    ("reads", 12, |far, _| drop(far.read_at(&mut [0; 4096], 8192))),
    ("writes", 12, |far, _| drop(far.write_at(&[1; 4096], 8192))),
    ("stats", 4, |far, _| drop(far.metadata())),
    ("syncs", 4, |far, _| drop(far.sync_all())),
    ("punches", 12, |far, _| {
        let _ = fallocate(far, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, MIB);
    }),
    // Onto a volume that nobody else uses: the kernel keeps all others off the destination meanwhile.
    ("copies", 20, |far, spare| {
        let (mut from, mut to) = (0, 4 * MIB);
        let _ = rustix::fs::copy_file_range(far, Some(&mut from), spare, Some(&mut to), 64 << 10);
    }),
];

/// All that a volume can do, on those that answer.
fn use_all(dir: &Path) {
    for (one, other) in [("near", "near2"), ("mem", "mem2")] {
        let (a, b) = (open(dir, one), open(dir, other));
        let new = bytes(64 << 10, 7);
        a.write_all_at(&new, 0).unwrap();
        let mut seen = vec![0; new.len()];
        a.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == new);
        let (mut from, mut to) = (0, MIB);
        rustix::fs::copy_file_range(&a, Some(&mut from), &b, Some(&mut to), new.len()).unwrap();
        b.read_exact_at(&mut seen, MIB).unwrap();
        assert!(seen == new);
        fallocate(&b, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, MIB, 4 * KIB).unwrap();
        a.metadata().unwrap();
        b.sync_all().unwrap();
    }
    rustix::fs::statvfs(dir).unwrap();
}

fn cannot(test: &str) -> bool {
    let fuse =
        File::options().read(true).write(true).open("/dev/fuse").map_err(|e| format!("/dev/fuse: {e}"));
    let root =
        sh("id -u").and_then(|id| if id == "0" { Ok(()) } else { Err("not root: no mounts".to_owned()) });
    fuse.map(drop).and(root).inspect_err(|why| skip(test, why)).is_err()
}

/// The file that will not answer, and files that do.
fn files(here: &Path) -> (Daemon, Vec<String>) {
    let far = here.join("far");
    let words = ["mount".to_owned(), far.display().to_string(), "x=mem:16MiB".to_owned()];
    let server = Daemon::start(&far, &words, "mounted on ");
    for name in ["near", "near2"] {
        File::create(here.join(name)).unwrap().set_len(16 * MIB).unwrap();
    }
    let devices = vec![
        format!("far={}", far.join("x").display()),
        format!("near={}", here.join("near").display()),
        format!("near2={}", here.join("near2").display()),
        "mem=mem:16MiB".to_owned(),
        "mem2=mem:16MiB".to_owned(),
        "spare=mem:16MiB".to_owned(),
    ];
    (server, devices)
}

#[test]
fn a_volume_that_does_not_answer_holds_up_no_other_of_its_mount() {
    if cannot("a_volume_that_does_not_answer_holds_up_no_other_of_its_mount") {
        return;
    }
    for engine in ["auto", "pool"] {
        let folder = folder();
        let (server, devices) = files(folder.path());
        let dir = folder.path().join("m");
        let mut words: Vec<String> =
            ["mount", "--force-in-use", "--threads", "2", "--io-engine", engine].map(str::to_owned).into();
        words.push(dir.display().to_string());
        words.extend(devices);
        let daemon = Daemon::start(&dir, &words, "mounted on ");
        open(&dir, "far").write_all_at(&bytes(64 << 10, 1), 0).unwrap();
        use_all(&dir);
        for (what, count, work) in USES {
            // Opened before it stops: opening asks for attributes.
            let handles: Vec<_> = (0..count).map(|_| (open(&dir, "far"), open(&dir, "spare"))).collect();
            server.send(Signal::STOP);
            let stopped = Stopped(&server);
            let held: Vec<_> = handles
                .into_iter()
                .map(|(far, spare)| std::thread::spawn(move || work(&far, &spare)))
                .collect();
            std::thread::sleep(Duration::from_millis(300));
            let there = dir.clone();
            let well = ends(move || use_all(&there));
            drop(stopped);
            assert!(well, "{engine}: other volumes hang beside {count} {what} of one that does not answer");
            held.into_iter().for_each(|thread| thread.join().unwrap());
        }
        drop(daemon);
    }
}

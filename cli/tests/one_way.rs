//! One way of I/O at a time, as clients see it: neighbouring writes of every size, zeroing, copies and flushes by
//! threads on a mount and, over NVMe/TCP, on the target of the same process with two cores; every acknowledged byte is
//! read back.
//!
//! A short run on one file system always; `BLKCOPY_SOAK=60` takes 60 seconds for each kind of storage and fill.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // in a test a panic is the message

mod common;

use common::{BIN, MIB, Undo, attach_with, folder, mount_loop, must, sh, skip};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that a row of zones takes; the volume is rows of it, and a ragged tail.
const ROW: u64 = 256 << 10;
const ROWS: u64 = 48;
const TAIL: u64 = 300;
const NQN: &str = "nqn.2014-08.org.example:one-way";

/// A `blkcopy` that serves, ended and unmounted whatever comes.
struct Daemon {
    child: Child,
    dir: PathBuf,
    said: Option<JoinHandle<String>>,
}

impl Daemon {
    fn start(args: &[&str], dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let mut command = Command::new(BIN);
        command.args(args).env("BLKCOPY_LOG", "warn,blkcopy::drivers::file::core=debug");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut errors = child.stderr.take().unwrap();
        let said = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut daemon = Self { child, dir: dir.to_owned(), said: Some(said) };
        loop {
            let mut line = String::new();
            if out.read_line(&mut line).unwrap() == 0 {
                panic!("{args:?} does not mount: {}", daemon.end());
            }
            if line.starts_with("mounted on ") {
                break;
            }
        }
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        daemon
    }

    /// Ends it; what it said.
    fn end(&mut self) -> String {
        let _ = sh(&format!("kill -TERM {}", self.child.id()));
        let _ = self.child.wait();
        self.said.take().map(|said| said.join().unwrap()).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = sh(&format!("umount -l {} 2>/dev/null || true", self.dir.display()));
    }
}

/// What a thread does in its zone of each row.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// Writes pieces of 4 KiB and more, at pages.
    Pages,
    /// Writes any bytes.
    Ragged,
    /// Zeroes any bytes.
    Zeroes,
    /// Copies any bytes inside its zone.
    Copies,
}

/// Where a thread works: bytes of each row, by which client.
struct Zone {
    kind: Kind,
    from: u64,
    to: u64,
    over_nvme: bool,
}

/// Neighbours of every kind; borders between the two clients, which are two programs, lie at 4 KiB.
fn zones() -> Vec<Zone> {
    let zone = |kind, from: u64, to: u64, over_nvme| Zone { kind, from, to, over_nvme };
    vec![
        zone(Kind::Pages, 0, 60 << 10, false),
        zone(Kind::Ragged, 60 << 10, (64 << 10) + 333, false),
        zone(Kind::Zeroes, (64 << 10) + 333, (90 << 10) + 1, false),
        zone(Kind::Copies, (90 << 10) + 1, 128 << 10, false),
        zone(Kind::Pages, 128 << 10, 188 << 10, true),
        zone(Kind::Ragged, 188 << 10, 192 << 10, true),
        zone(Kind::Pages, 192 << 10, 196 << 10, false),
        zone(Kind::Ragged, 196 << 10, 256 << 10, true),
    ]
}

#[derive(Default)]
struct Counts {
    writes: AtomicU64,
    reads: AtomicU64,
    flushes: AtomicU64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n.max(1)
    }
}

/// A thread: changes its zone and reads it back until told to stop. Its bytes, row by row.
fn work(zone: &Zone, file: &File, seed: u64, size: u64, stop: &AtomicBool, counts: &Counts) -> Vec<Vec<u8>> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let len = zone.to - zone.from;
    let mut model = vec![vec![0u8; len as usize]; ROWS as usize];
    // The thread at the end of a row has the ragged tail too.
    let tail = size - ROW * ROWS;
    if zone.to == ROW {
        model[ROWS as usize - 1].resize((len + tail) as usize, 0);
    }
    while !stop.load(Ordering::Relaxed) {
        let row = random.below(ROWS) as usize;
        let (begin, bytes) = (row as u64 * ROW + zone.from, &mut model[row]);
        let all = bytes.len() as u64;
        let unit = if zone.kind == Kind::Pages { 4096 } else { 1 };
        let at = random.below(all) / unit * unit;
        let n = if random.below(3) == 0 { all - at } else { 1 + random.below(all - at) };
        let n = (n / unit * unit).clamp(unit.min(all - at), all - at);
        let here = at as usize..(at + n) as usize;
        match zone.kind {
            Kind::Zeroes if random.below(32) == 0 => {
                let how = if random.below(2) == 0 { 0x10 | 0x01 } else { 0x03 };
                let how = rustix::fs::FallocateFlags::from_bits_retain(how);
                rustix::fs::fallocate(file, how, begin + at, n).unwrap();
                bytes[here.clone()].fill(0);
            }
            Kind::Copies if random.below(3) == 0 && all - at > 2 => {
                let half = (all - at) / 2;
                let (mut from, mut to) = (begin + at, begin + at + half);
                let mut left = 1 + random.below(half);
                while left > 0 {
                    let (a, b) = ((from - begin) as usize, (to - begin) as usize);
                    let done = rustix::fs::copy_file_range(
                        file,
                        Some(&mut from),
                        file,
                        Some(&mut to),
                        left as usize,
                    )
                    .unwrap();
                    assert!(done > 0);
                    bytes.copy_within(a..a + done, b);
                    left -= done as u64;
                }
            }
            _ => {
                let word = random.below(u64::MAX).to_le_bytes();
                bytes[here.clone()]
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, b)| *b = word[i % 8] ^ (i >> 3) as u8);
                file.write_all_at(&bytes[here.clone()], begin + at).unwrap();
            }
        }
        counts.writes.fetch_add(1, Ordering::Relaxed);
        // What is read back: the same, or more around it.
        let from = random.below(at + 1) as usize;
        let to = (at + n + random.below(all - at - n + 1)) as usize;
        let mut seen = vec![0; to - from];
        file.read_exact_at(&mut seen, begin + from as u64).unwrap();
        counts.reads.fetch_add(1, Ordering::Relaxed);
        if let Some(wrong) = seen.iter().zip(&bytes[from..to]).position(|(a, b)| a != b) {
            stop.store(true, Ordering::Relaxed);
            panic!(
                "{:?} (over NVMe: {}), row {row}: byte {} of {from}..{to} differs after a change of {at}+{n}",
                zone.kind,
                zone.over_nvme,
                from + wrong
            );
        }
        if random.below(64) == 0 {
            file.sync_data().unwrap();
            counts.flushes.fetch_add(1, Ordering::Relaxed);
        }
    }
    model
}

/// One run over the storage at `path`.
fn run(name: &str, path: &Path, size: u64, engine: &str, time: Duration) {
    let scratch = folder();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (listen, volume) = (format!("127.0.0.1:{port}"), format!("v={}", path.display()));
    let (front, over) = (scratch.path().join("front"), scratch.path().join("over"));
    let mut served = Daemon::start(
        &[
            "serve",
            "--cores",
            "2",
            "--io-engine",
            engine,
            "--nqn",
            NQN,
            "--listen",
            &listen,
            "--mount",
            front.to_str().unwrap(),
            &volume,
        ],
        &front,
    );
    let url = format!("v=nvme-tcp://{listen}/{NQN}?nsid=1");
    let mut remote = Daemon::start(&["mount", over.to_str().unwrap(), &url], &over);
    let open = |dir: &Path| Arc::new(File::options().read(true).write(true).open(dir.join("v")).unwrap());
    let (near, far) = (open(&front), open(&over));
    let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
    let zones = Arc::new(zones());
    let threads: Vec<_> = (0..zones.len())
        .map(|i| {
            let (zones, stop, counts) = (zones.clone(), stop.clone(), counts.clone());
            let file = if zones[i].over_nvme { far.clone() } else { near.clone() };
            // The far one ends at a whole block.
            let size = if zones[i].over_nvme { size / 4096 * 4096 } else { size };
            std::thread::spawn(move || work(&zones[i], &file, i as u64 + 1, size, &stop, &counts))
        })
        .collect();
    // One that reads all of it, one large write into the ragged tail now and then, and the time.
    let (begun, mut passes) = (Instant::now(), 0);
    let mut buf = vec![0; MIB as usize];
    let mut tail = vec![0u8; (size - size / 4096 * 4096) as usize];
    while begun.elapsed() < time && !stop.load(Ordering::Relaxed) {
        for at in (0..size - MIB).step_by(MIB as usize) {
            near.read_exact_at(&mut buf, at).unwrap();
        }
        passes += 1;
        if !tail.is_empty() && passes % 4 == 0 {
            tail.iter_mut().for_each(|b| *b = b.wrapping_add(77));
            near.write_all_at(&tail, size - tail.len() as u64).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let models: Vec<_> = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| panic!("{name}"))).collect();
    far.sync_all().unwrap();
    near.sync_all().unwrap();
    drop((near, far));
    remote.end();
    let said = served.end();
    let held = std::fs::read(path).unwrap();
    for (zone, model) in zones.iter().zip(&models) {
        for (row, bytes) in model.iter().enumerate() {
            let at = (row as u64 * ROW + zone.from) as usize;
            let whole = if zone.over_nvme { size / 4096 * 4096 } else { size } as usize;
            let end = (at + bytes.len()).min(whole);
            assert!(
                held[at..end] == bytes[..end - at],
                "{name}: row {row} of {:?} on the storage",
                zone.kind
            );
        }
    }
    assert!(held[(size - tail.len() as u64) as usize..size as usize] == tail[..], "{name}: the tail");
    let ways =
        said.lines().find(|l| l.contains("requests through the page cache and direct")).unwrap_or_default();
    let ways = ways.split_once("direct=").map_or("", |(_, rest)| rest);
    let _ = writeln!(
        std::io::stderr(),
        "{name}: {} changes, {} read-backs, {} flushes, none wrong; below: direct={ways}",
        counts.writes.load(Ordering::Relaxed),
        counts.reads.load(Ordering::Relaxed),
        counts.flushes.load(Ordering::Relaxed)
    );
}

//= promise files
#[test]
fn neighbours_of_every_size_keep_their_bytes_on_the_mount_and_the_target() {
    let test = "neighbours_of_every_size_keep_their_bytes_on_the_mount_and_the_target";
    if !Path::new("/dev/fuse").exists() {
        return skip(test, "no /dev/fuse");
    }
    if let Err(why) = common::loops_or_why() {
        return skip(test, &why);
    }
    let soak = std::env::var("BLKCOPY_SOAK").ok().and_then(|s| s.parse().ok());
    let time = Duration::from_secs(soak.unwrap_or(3));
    let base = folder();
    let mut undo = Undo::default();
    let mut rows: Vec<(String, PathBuf, u64)> = Vec::new();
    for (name, mkfs) in [("ext4", "mkfs.ext4 -q"), ("xfs", "mkfs.xfs -q"), ("btrfs", "mkfs.btrfs -q")] {
        if soak.is_none() && name != "ext4" {
            continue;
        }
        match mount_loop(&mut undo, base.path(), name, mkfs, "400M") {
            Ok(at) => rows.extend(["sparse", "full"].map(|fill| {
                let file = at.join(fill);
                let size = ROW * ROWS + TAIL;
                if fill == "full" {
                    must(&format!("head -c {size} /dev/zero >{}; sync {0}", file.display()));
                } else {
                    must(&format!("truncate -s {size} {}", file.display()));
                }
                (format!("{name} {fill}"), file, size)
            })),
            Err(why) => skip(&format!("{test} on {name}"), &why),
        }
    }
    for block in [512, 4096].into_iter().filter(|_| soak.is_some()) {
        for fill in ["sparse", "full"] {
            let file = base.path().join(format!("loop{block}{fill}"));
            must(&format!("truncate -s {} {}", ROW * ROWS, file.display()));
            if fill == "full" {
                must(&format!("head -c {} /dev/zero >{}", ROW * ROWS, file.display()));
            }
            match attach_with(&mut undo, &file, &format!("--sector-size {block}")) {
                Ok(device) => rows.push((format!("loop {block} {fill}"), device, ROW * ROWS)),
                Err(why) => skip(&format!("{test} on loop {block}"), &why),
            }
        }
    }
    for (i, (name, path, size)) in rows.iter().enumerate() {
        let engines: &[&str] = if soak.is_some() { &["auto", "pool"] } else { &[["auto", "pool"][i % 2]] };
        for engine in engines {
            // Each run begins with zeroes.
            if engine == &"pool" && path.starts_with("/dev") {
                must(&format!("dd if=/dev/zero of={} bs=1M count=12 conv=fsync 2>/dev/null", path.display()));
            } else if engine == &"pool" && soak.is_some() {
                must(&format!("head -c {size} /dev/zero >{}; sync {0}", path.display()));
            }
            run(&format!("{name}, engine {engine}"), path, *size, engine, time);
        }
    }
}

//! The target killed outright under writes, copies and flushes, again and again: every block is old or new, nothing
//! that was acknowledged is lost, and the host goes on where it was. Kill proves process crashes; power cuts are
//! `tests/faults.rs` and the lab's.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // in a test a panic is the message

mod common;

use blkcopy::block::request::Cancel;
use blkcopy::block::{Buf, ByteRange, CopyRequest, Device, Method, Op};
use blkcopy::reactor::local::{Client, Interrupt, Local, spawn};
use blkcopy::reactor::{EngineChoice, choose};
use blkcopy::sim::Rng;
use blkcopy::volume::{Name, open_dest};
use common::{BIN, folder};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

const BLOCK: u64 = 4096;
/// Blocks that are written, and as many behind them that are copied to; sources of copies are behind both.
const BLOCKS: u64 = 256;
const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-00006b696c6c";

/// What a block may hold: its stamp (a number all over it), and those of an operation in flight.
#[derive(Default)]
struct Model {
    acknowledged: Vec<u64>,
    in_flight: Vec<Option<u64>>,
    writes: u64,
    copies: u64,
    flushes: u64,
}

type Shared = Arc<Mutex<Model>>;

fn lock(model: &Shared) -> MutexGuard<'_, Model> {
    model.lock().unwrap()
}

fn stamped(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

fn at(block: u64) -> ByteRange {
    ByteRange::new(block * BLOCK, BLOCK).unwrap()
}

struct Served {
    child: Child,
}

impl Served {
    fn start(image: &Path, port: u16) -> Self {
        let mut child = Command::new(BIN)
            .args(["serve", "--nqn", NQN, "--listen", &format!("127.0.0.1:{port}")])
            .arg(image)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("listening on")), "the target does not start");
        Self { child }
    }
}

impl Drop for Served {
    /// SIGKILL: the process has no say in it.
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A free port from `first` on that the system gives to nobody by itself while the target is down.
fn quiet_port(first: u16) -> u16 {
    (first..30000).find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).unwrap()
}

/// Marks blocks as being changed to `stamp`. False: one of them is busy.
fn begin(model: &Shared, block: u64, stamp: u64) -> bool {
    let mut model = lock(model);
    let place = &mut model.in_flight[block as usize];
    let free = place.is_none();
    if free {
        *place = Some(stamp);
    }
    free
}

fn end(model: &Shared, block: u64) {
    let mut model = lock(model);
    let stamp = model.in_flight[block as usize].take().unwrap();
    model.acknowledged[block as usize] = stamp;
}

/// Writes, copies and flushes until it is stopped.
async fn load(client: Client, model: Shared, stop: Interrupt, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut serial = seed << 32;
    while !stop.is_set() {
        serial += 1;
        match rng.below(10) {
            0 => {
                // After a kill nobody can say whether what was written before is kept: the driver says so at the flush.
                // Here it is, since only the process died.
                match client.submit(Op::Flush).await.result {
                    Ok(()) => lock(&model).flushes += 1,
                    Err(error) => assert!(error.to_string().contains("not yet flushed"), "{error:?}"),
                }
            }
            1..=3 => {
                let (from, to) = (2 * BLOCKS + rng.below(BLOCKS), BLOCKS + rng.below(BLOCKS));
                if !begin(&model, to, from + 1) {
                    continue;
                }
                let copy = CopyRequest {
                    method: Method::NvmeCopy,
                    source: client.device().clone(),
                    sources: [at(from)].into_iter().collect(),
                    dest: at(to),
                    fua: false,
                    must: None,
                    cancel: Cancel::default(),
                };
                client.submit(Op::Copy(Box::new(copy))).await.result.unwrap();
                end(&model, to);
                lock(&model).copies += 1;
            }
            _ => {
                let to = rng.below(BLOCKS);
                if !begin(&model, to, serial) {
                    continue;
                }
                let buf = Buf::copy_of(&stamped(serial)).unwrap();
                client.submit(Op::Write { range: at(to), buf, fua: rng.below(8) == 0 }).await.result.unwrap();
                end(&model, to);
                lock(&model).writes += 1;
            }
        }
    }
}

/// Every block of the image is what it was or what is being made of it, whole.
fn check(image: &Path, model: &Shared) {
    let file = File::open(image).unwrap();
    let model = lock(model);
    let mut bytes = vec![0; BLOCK as usize];
    for block in 0..3 * BLOCKS {
        file.read_exact_at(&mut bytes, block * BLOCK).unwrap();
        let (old, new) = (model.acknowledged[block as usize], model.in_flight[block as usize]);
        let may = [Some(old), new];
        let found = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(may.contains(&Some(found)), "block {block} holds {found}; it may hold {may:?}");
        assert!(bytes == stamped(found), "block {block} is torn");
    }
}

/// Targets that are killed, side by side: a host waits many seconds before it takes a target back that died.
const TARGETS: u16 = 4;

//= promise 5, 6, events
#[test]
fn a_killed_target_leaves_every_block_old_or_new() {
    let kills = if std::env::var_os("BLKCOPY_SOAK").is_some() { 13 } else { 3 };
    let worlds: Vec<_> = (0..TARGETS).map(|n| std::thread::spawn(move || killed(n, kills))).collect();
    let (mut copies, mut flushes) = (0, 0);
    for world in worlds {
        let model = world.join().unwrap();
        let model = lock(&model);
        copies += model.copies;
        flushes += model.flushes;
    }
    assert!(copies > 0 && flushes > 0);
}

/// One target under load, killed `kills` times: what was done.
fn killed(target: u16, kills: u32) -> Shared {
    const TASKS: u64 = 12;
    let dir = folder();
    let image = dir.path().join("disk.img");
    // Every block begins with a stamp of its own.
    let file = File::create(&image).unwrap();
    for block in 0..3 * BLOCKS {
        file.write_all_at(&stamped(block + 1), block * BLOCK).unwrap();
    }
    drop(file);
    let model = Shared::default();
    lock(&model).acknowledged = (1..=3 * BLOCKS).collect();
    lock(&model).in_flight = vec![None; 3 * BLOCKS as usize];
    // Each searches among ports of its own.
    let port = quiet_port(20000 + 2000 * target);
    let mut served = Served::start(&image, port);
    let stop = Interrupt::default();
    let (theirs, stopped) = (model.clone(), stop.clone());
    let host = std::thread::spawn(move || {
        let name = Name::parse(format!("nvme-tcp://127.0.0.1:{port}/{NQN}?nsid=1")).unwrap();
        let device: Arc<dyn Device> = open_dest(&name, false).unwrap();
        let local = Local::new(choose(EngineChoice::Auto, false).unwrap().0);
        local.block_on(async {
            let client = Client::open(device).unwrap();
            let first = 1 + TASKS * u64::from(target);
            let tasks: Vec<_> = (first..first + TASKS)
                .map(|seed| spawn(load(client.clone(), theirs.clone(), stopped.clone(), seed)))
                .collect();
            for task in tasks {
                task.await;
            }
            let flushed = client.submit(Op::Flush).await.result;
            assert!(flushed.is_err_and(|e| e.to_string().contains("not yet flushed")));
        });
    });
    let mut rng = Rng::new(1 + u64::from(target));
    let mut before = 0;
    for kill in 0..kills {
        // Not before the host got something done with this target.
        while lock(&model).writes < before + 20 {
            assert!(!host.is_finished(), "the host gave up");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(rng.below(40)));
        drop(served);
        check(&image, &model);
        before = lock(&model).writes;
        eprintln!("target {target}, kill {kill}: {before} writes so far");
        served = Served::start(&image, port);
    }
    stop.set();
    host.join().unwrap();
    check(&image, &model);
    let end = lock(&model);
    assert!(end.in_flight.iter().all(Option::is_none), "everything was answered");
    eprintln!("{} writes, {} copies, {} flushes, {kills} kills", end.writes, end.copies, end.flushes);
    drop(end);
    model
}

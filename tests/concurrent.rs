//! Writers, readers, discards and copies on several cores over the same ranges: every outcome is explained by a serial
//! order.
//!
//! Devices are cut into rows of several blocks; every write, zero, discard and copy changes whole rows, so a row whose
//! blocks differ is a torn copy. Every write has a stamp of its own, and each operation notes when it began and ended:
//! the history of each row must be that of a register that changes at one instant within each operation.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // small numbers; a failed unwrap is a failed test

mod common;

use blkcopy::block::lock::{CoreLocks, LockDomain, LockedQueue};
use blkcopy::block::{
    Access, Buf, ByteRange, CopyPath, Counters, Device, Extent, Identity, Limits, LimitsChange, Op, Queue,
    Resolution, Result,
};
use blkcopy::copy::run::{Consistency, Options, Progress, copy};
use blkcopy::copy::{Job, Offload, Policy, Segment};
use blkcopy::map::{LazyDevice, Linear, Mirror};
use blkcopy::reactor::local::{Client, Local, spawn};
use blkcopy::reactor::{EngineChoice, choose};
use blkcopy::sim::{DelayDevice, Rng};
use common::{BLOCK, Dev, REGION, mem, read};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Blocks in a row: 20 KiB, five pieces of an emulated copy that has one page of memory.
const ROW: u64 = 40;
/// Rows that anything may change in one request; plain requests are whole on them.
const OPEN: u64 = 4;
/// Rows changed by copies only; the first of them lies across the border of a linear.
const COPIED: u64 = 3;
/// Rows that are copied to and fro, several at once: looked at for torn rows only.
const SINKS: u64 = 6;
/// Rows of one task each.
const OWN: u64 = 8;
const ROWS: u64 = OPEN + COPIED + SINKS + OWN;

thread_local! {
    static LOCKS: RefCell<Option<Rc<CoreLocks>>> = const { RefCell::new(None) };
}

/// A device whose queues hold range locks of the thread that opens them: what a front end uses.
struct Front(Dev);

impl Device for Front {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn identity(&self) -> Identity {
        self.0.identity()
    }
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.0.change_limits(change)
    }
    fn copy_paths(&self) -> Vec<CopyPath> {
        self.0.copy_paths()
    }
    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        self.0.next_extent(range)
    }
    fn resolve(self: Arc<Self>, range: ByteRange, access: Access) -> Result<Resolution> {
        self.0.clone().resolve(range, access)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let locks = LOCKS.with(|l| l.borrow().clone()).expect("this thread is a core");
        Ok(Box::new(LockedQueue::open(self.0.clone(), locks)?))
    }
    fn counters(&self) -> Counters {
        self.0.counters()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// One access to a row: it read or wrote `stamp` at some instant between `begin` and `end`.
#[derive(Clone, Copy, Debug)]
struct Event {
    device: usize,
    row: u64,
    stamp: u64,
    wrote: bool,
    begin: u64,
    end: u64,
}

/// What all threads share.
struct World {
    devices: [Dev; 4],
    clock: AtomicU64,
    stamps: AtomicU64,
}

impl World {
    fn new(seed: u64) -> Self {
        let slow = |blocks: u64, salt: u64| {
            let leaf = Arc::new(DelayDevice::new(mem(blocks), seed ^ salt, 3)) as Dev;
            // Half of the worlds have leaves whose zeroes may be owed.
            if seed.is_multiple_of(2) { leaf } else { LazyDevice::with_lazy_min(leaf, 1).unwrap() as Dev }
        };
        let blocks = ROWS * ROW;
        // The border falls inside the first row that only copies change.
        let border = OPEN * ROW + ROW / 2;
        let linear = Linear::new("linear", [slow(border, 1), slow(blocks - border, 2)]).unwrap();
        let mirror = Mirror::new("mirror", [slow(blocks, 3), slow(blocks, 4)], REGION).unwrap();
        let devices = [slow(blocks, 5), slow(blocks, 6), Arc::new(linear) as Dev, Arc::new(mirror)];
        Self { devices, clock: AtomicU64::new(1), stamps: AtomicU64::new(1) }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn stamp(&self) -> u64 {
        self.stamps.fetch_add(1, Ordering::Relaxed)
    }
}

fn rows(first: u64, count: u64) -> ByteRange {
    ByteRange::new(first * ROW * BLOCK, count * ROW * BLOCK).unwrap()
}

/// The stamp of a row, all of it.
fn stamp_of(bytes: &[u8], what: &str) -> u64 {
    let words: Vec<u64> = bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).collect();
    let torn = words.iter().position(|w| *w != words[0]);
    let text = || {
        format!(
            "{what} is torn: {} from byte {}, {} before",
            words[torn.unwrap()],
            torn.unwrap() * 8,
            words[0]
        )
    };
    assert!(torn.is_none(), "{}", text());
    words[0]
}

/// One user of the devices: a sequence of operations, each awaited.
struct Task {
    world: Arc<World>,
    fronts: Vec<Client>,
    locks: Rc<CoreLocks>,
    rng: Rng,
    /// The row on each device that only this task changes.
    own: u64,
    events: Rc<RefCell<Vec<Event>>>,
    copies: Rc<Cell<u64>>,
}

impl Task {
    async fn write(&self, device: usize, row: u64) -> u64 {
        let stamp = self.world.stamp();
        let range = rows(row, 1);
        let mut buf = Buf::alloc(range.len() as usize).unwrap();
        buf.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&stamp.to_le_bytes()));
        self.fronts[device].submit(Op::Write { range, buf, fua: false }).await.result.unwrap();
        stamp
    }

    async fn read(&self, device: usize, row: u64) -> u64 {
        let range = rows(row, 1);
        let buf = Buf::alloc(range.len() as usize).unwrap();
        let done = self.fronts[device].submit(Op::Read { range, buf }).await;
        done.result.unwrap();
        stamp_of(&done.buf, &format!("row {row} of device {device}"))
    }

    async fn copy(&mut self, from: (usize, u64), to: (usize, u64), count: u64) {
        let [source, dest] = [from.0, to.0].map(|d| self.world.devices[d].clone());
        let segment = Segment {
            source: rows(from.1, count).offset(),
            dest: rows(to.1, count).offset(),
            len: rows(0, count).len(),
        };
        let job = Job::new(&[segment], source.size(), dest.size(), from.0 == to.0).unwrap();
        let emulated = self.rng.below(3) > 0;
        let offload = if emulated { Offload::Never } else { Offload::Auto };
        // A row across a border is two requests, whole only as a job; an overlap is cut where it likes.
        let border = [from, to].iter().any(|&(device, row)| device == 2 && row <= OPEN && OPEN < row + count);
        let whole = border || from.0 == to.0 || self.rng.below(2) == 0;
        let options = Options {
            policy: Policy { offload, ..Policy::default() },
            consistency: if whole { Consistency::Whole } else { Consistency::Request },
            flush: false,
            payload_bytes: 4096,
            locks: Some(self.locks.clone()),
            ..Options::default()
        };
        let progress = Rc::new(Progress::default());
        let ended = copy(source, dest, &job, &options, &progress).await;
        assert!(ended.error.is_none(), "{:?}", ended.error);
        self.copies.set(self.copies.get() + 1);
    }

    fn note(&self, at: (usize, u64), stamp: u64, wrote: bool, begin: u64, end: u64) {
        let (device, row) = at;
        self.events.borrow_mut().push(Event { device, row, stamp, wrote, begin, end });
    }

    /// A row whose history is kept.
    fn kept(&mut self, any: bool) -> (usize, u64) {
        let most = if any { OPEN + COPIED } else { OPEN };
        (self.rng.index(4), self.rng.below(most))
    }

    async fn step(&mut self) {
        let own = (self.rng.index(4), self.own);
        match self.rng.below(12) {
            0..=2 => {
                let at = self.kept(false);
                let begin = self.world.tick();
                let stamp = self.write(at.0, at.1).await;
                self.note(at, stamp, true, begin, self.world.tick());
            }
            3 | 4 => {
                let at = self.kept(true);
                let begin = self.world.tick();
                let stamp = self.read(at.0, at.1).await;
                self.note(at, stamp, false, begin, self.world.tick());
            }
            5 => {
                let at = self.kept(false);
                let range = rows(at.1, 1);
                let dice = self.rng.below(4);
                let zero = Op::WriteZeroes { range, may_unmap: false, lazy: dice > 1 };
                let op = if dice == 0 { Op::Discard { range } } else { zero };
                self.fronts[at.0].submit(op).await.result.unwrap();
                if dice == 3 {
                    self.fronts[at.0].submit(Op::Flush).await.result.unwrap();
                }
            }
            6 | 7 => {
                // A copy to a row of one's own reads the row it comes from.
                let from = self.kept(true);
                let begin = self.world.tick();
                self.copy(from, own, 1).await;
                let end = self.world.tick();
                let stamp = self.read(own.0, own.1).await;
                self.note(from, stamp, false, begin, end);
            }
            8 | 9 => {
                // A copy from a row of one's own writes the row it goes to.
                let to = self.kept(true);
                let stamp = self.write(own.0, own.1).await;
                let begin = self.world.tick();
                self.copy(own, to, 1).await;
                self.note(to, stamp, true, begin, self.world.tick());
            }
            _ => {
                let first = OPEN + COPIED;
                let count = 1 + self.rng.below(2);
                let from = (self.rng.index(4), self.rng.below(first + SINKS - count));
                let to = (self.rng.index(4), first + self.rng.below(SINKS - count + 1));
                if from != to {
                    self.copy(from, to, count).await;
                }
                self.read(to.0, to.1).await;
            }
        }
    }
}

/// One core: a thread with its executor, its locks, and two tasks.
fn core(world: &Arc<World>, domain: &LockDomain, seed: u64, nth: u64, steps: u32) -> (Vec<Event>, u64) {
    let local = Local::new(choose(EngineChoice::Pool, true).unwrap().0);
    let waker = local.waker();
    let locks = Rc::new(domain.attach(move || waker.wake()).unwrap());
    local.serve_locks(&locks);
    LOCKS.with(|l| *l.borrow_mut() = Some(locks.clone()));
    let events = Rc::new(RefCell::new(Vec::new()));
    let copies = Rc::new(Cell::new(0));
    local.block_on(async {
        let tasks: Vec<_> = (0..2)
            .map(|i| {
                let open = |d: &Dev| Client::open(Arc::new(Front(d.clone()))).unwrap();
                let mut task = Task {
                    world: world.clone(),
                    fronts: world.devices.iter().map(open).collect(),
                    locks: locks.clone(),
                    rng: Rng::new(seed ^ (nth * 2 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                    own: OPEN + COPIED + SINKS + nth * 2 + i,
                    events: events.clone(),
                    copies: copies.clone(),
                };
                spawn(async move {
                    for _ in 0..steps {
                        task.step().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
    });
    LOCKS.with(|l| l.borrow_mut().take());
    (events.take(), copies.get())
}

/// Whether the accesses to one row are those of a register (Gibbons and Korach): each stamp was there from some instant
/// to another, and no two stamps at once. Zeroes are not stamps: they are left out, which only forgives.
fn assert_serial(history: &[Event], what: &str) {
    let mut zones: HashMap<u64, (u64, u64)> = HashMap::new();
    for e in history.iter().filter(|e| e.stamp != 0) {
        let (first_end, last_begin) = zones.entry(e.stamp).or_insert((u64::MAX, 0));
        *first_end = e.end.min(*first_end);
        *last_begin = e.begin.max(*last_begin);
    }
    for e in history.iter().filter(|e| !e.wrote && e.stamp != 0) {
        let write = history.iter().find(|w| w.wrote && w.stamp == e.stamp);
        let write = write.unwrap_or_else(|| panic!("{what}: {e:?} read what nobody wrote there"));
        assert!(write.begin < e.end, "{what}: {e:?} read what was written later, {write:?}");
    }
    // A stamp whose first access ended before its last began was there in between; the others were there at some
    // instant between their last begin and their first end.
    let mut held: Vec<(u64, u64, u64)> =
        zones.iter().filter(|(_, z)| z.0 < z.1).map(|(&s, &(from, to))| (from, to, s)).collect();
    held.sort_unstable();
    for pair in held.windows(2) {
        assert!(pair[0].1 < pair[1].0, "{what}: two stamps at once, {pair:?} (from, to, stamp)");
    }
    for (&stamp, &(first_end, last_begin)) in zones.iter().filter(|(_, z)| z.0 > z.1) {
        let inside = held.iter().find(|h| h.0 < last_begin && first_end < h.1);
        assert!(inside.is_none(), "{what}: stamp {stamp} was there while {inside:?} (from, to, stamp) was");
    }
}

//= promise 4, events
#[test]
fn every_outcome_on_several_cores_has_a_serial_order() {
    let rounds = if std::env::var_os("BLKCOPY_SOAK").is_some() { 200 } else { 8 };
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        for seed in 0..rounds {
            let cores = 2 + seed % 3;
            let (world, domain) = (Arc::new(World::new(seed)), LockDomain::new());
            let threads: Vec<_> = (0..cores)
                .map(|nth| {
                    let (world, domain) = (world.clone(), domain.clone());
                    std::thread::spawn(move || core(&world, &domain, seed, nth, 120))
                })
                .collect();
            let mut rows: HashMap<(usize, u64), Vec<Event>> = HashMap::new();
            let mut copies = 0;
            for thread in threads {
                let (events, count) = thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
                copies += count;
                for e in events {
                    rows.entry((e.device, e.row)).or_default().push(e);
                }
            }
            assert!(copies > 60 * cores, "only {copies} copies");
            assert_eq!(format!("{domain:?}"), "LockDomain(0 cores, 0 copies)");
            for (&(device, row), history) in &rows {
                assert_serial(history, &format!("seed {seed}, device {device}, row {row}"));
            }
            at_rest(&world);
        }
        done.send(()).unwrap();
    });
    // No deadline on the work: a hang is told from a failure so that it ends at all.
    match wait.recv_timeout(Duration::from_secs(600)) {
        Ok(()) => {}
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("a core failed, see above"),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the cores hang"),
    }
}

/// Afterwards each row is of one stamp on every leg, and rows that only copies change are the same on both legs of the
/// mirror.
fn at_rest(world: &World) {
    for (number, device) in world.devices.iter().enumerate() {
        for row in 0..ROWS {
            let range = rows(row, 1);
            let seen = stamp_of(&read(device, range), &format!("device {number}, row {row} at rest"));
            let resolution = device.clone().resolve(range, Access::Write).unwrap();
            for leg in &resolution.pieces[0].legs {
                let range = ByteRange::new(leg.offset, resolution.pieces[0].len).unwrap();
                let here =
                    stamp_of(&read(&leg.device, range), &format!("a leg of device {number}, row {row}"));
                if (OPEN..OPEN + COPIED + SINKS).contains(&row) {
                    assert_eq!(here, seen, "the legs of device {number} differ in row {row}");
                }
            }
            resolution.guard.release();
        }
    }
}

#[test]
fn the_judge_knows_what_has_no_serial_order() {
    let event = |stamp, wrote, begin, end| Event { device: 0, row: 0, stamp, wrote, begin, end };
    let refused = |history: &[Event]| {
        let history = history.to_vec();
        std::panic::catch_unwind(move || assert_serial(&history, "planted")).is_err()
    };
    let (w1, w2) = (event(1, true, 1, 4), event(2, true, 5, 8));
    assert!(!refused(&[w1, w2, event(1, false, 3, 6), event(2, false, 7, 9)]));
    assert!(refused(&[w1, w2, event(1, false, 9, 10)]), "a stale read");
    assert!(refused(&[w1, w2, event(2, false, 2, 4)]), "a read before the write");
    assert!(refused(&[w1, event(3, false, 2, 4)]), "a stamp nobody wrote");
    let both = event(2, true, 2, 12); // beside 1: either may be last, but not by turns
    assert!(!refused(&[w1, both, event(1, false, 5, 6), event(2, false, 7, 8)]));
    assert!(refused(&[w1, both, event(2, false, 5, 6), event(1, false, 7, 8), event(2, false, 9, 10)]));
}

//! Zeroes that are owed: any mix on stacks of blank leaves equals flat arrays, faults and power cuts included, threads
//! beside each other lose nothing, and no copy takes what is only stored.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod common;

use blkcopy::block::lock::{Claim, CoreLocks, LockDomain, LockedQueue};
use blkcopy::block::{Buf, ByteRange, Identity, Kind, Method, Op, Queue as _, Submitter};
use blkcopy::copy::run::{Options, Progress, copy};
use blkcopy::copy::{Job, Segment};
use blkcopy::map::LazyDevice;
use blkcopy::reactor::local::{Client, Local, spawn, yield_now};
use blkcopy::reactor::sim::Sim;
use blkcopy::reactor::{EngineChoice, choose};
use blkcopy::sim::{DelayDevice, Rng};
use common::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn blank(inner: Dev) -> Dev {
    LazyDevice::with_lazy_min(inner, 1).unwrap()
}

/// Half of the zeroes are lazy. Discards make blocks undefined, and so prove nothing here.
fn lazily(steps: Vec<Step>) -> Vec<Step> {
    let kind = |s: Step| match s.kind {
        What::Discard => What::ZeroLazy,
        What::Zero if s.other.is_multiple_of(2) => What::ZeroLazy,
        kind => kind,
    };
    steps.into_iter().map(|s| Step { kind: kind(s), ..s }).collect()
}

fn stack(n: usize) -> Shape {
    Shape::parse(["m", "L(m,m)", "M(m,m)", "L(M(m,m),d(m))"][n])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    //= promise 1
    #[test]
    fn any_mix_on_stacks_of_blanks_equals_a_flat_array(
        stacks in [0usize..4, 0usize..4],
        blocks in [1u64..40, 1u64..40],
        same in any::<bool>(),
        delayed in any::<bool>(),
        locked in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut leaf = |blocks| {
            let leaf = mem(blocks) as Dev;
            blank(if delayed { Arc::new(DelayDevice::new(leaf, 3, 4)) } else { leaf })
        };
        let first = stack(stacks[0]).build(blocks[0], &mut leaf);
        let second = if same { first.clone() } else { stack(stacks[1]).build(blocks[1], &mut leaf) };
        let devices = [first, second];
        let mut rig = if locked { Rig::locked(devices, same) } else { Rig::new(devices, same) };
        rig.run(&lazily(steps));
        rig.finish();
        rig.all_legs_equal();
    }

    /// What was zeroed and flushed is zero afterwards, on the disk itself; not flushed, old or zero.
    //= promise 6
    #[test]
    fn what_is_owed_is_durable_once_flushed(
        stacks in [0usize..3, 0usize..3],
        blocks in [1u64..24, 1u64..24],
        steps in prop::collection::vec(step(), 1..14),
        seed in any::<u64>(),
    ) {
        let steps = lazily(steps);
        for edge in 0..=steps.len() {
            let mut disks: Vec<Dev> = Vec::new();
            let mut cuts = Vec::new();
            let mut leaf = |blocks| {
                let disk = volatile(blocks);
                disks.push(disk.clone());
                cuts.push(disk.clone());
                blank(disk)
            };
            let devices = [0, 1].map(|i| stack(stacks[i]).build(blocks[i], &mut leaf));
            let mut rig = Rig::locked(devices, false);
            for step in &steps[..edge] {
                rig.run(std::slice::from_ref(step));
            }
            for (i, disk) in cuts.iter().enumerate() {
                disk.power_cut(seed ^ i as u64);
            }
            // The lists are gone with the process.
            let mut left = disks.into_iter();
            let mut again = |_| left.next().unwrap();
            let devices = [0, 1].map(|i| stack(stacks[i]).build(blocks[i], &mut again));
            rig.restart(devices);
        }
    }
}

/// Every I/O fails in turn below the lists: flushes that cannot settle say so, and reads stay right.
//= promise 5
#[test]
fn every_nth_fault_below_a_list_is_reported_truthfully() {
    let mut runs = 0;
    for (number, shape) in (0..3).map(stack).enumerate() {
        let shapes = [shape, stack(0)];
        // A flush after each few steps, so that much is settled.
        let mut steps = lazily(script(40 + number as u64, 24));
        for at in [20, 14, 9, 5] {
            steps.insert(at, Step { kind: What::Flush, ..steps[at] });
        }
        for (forever, good_bytes) in [(false, 0), (false, BLOCK), (true, 0), (true, BLOCK)] {
            for nth in 1.. {
                let plan = plan(nth, forever, good_bytes);
                let mut leaf = |blocks| blank(faulty(mem(blocks), &plan));
                let devices = [shapes[0].build(16, &mut leaf), shapes[1].build(16, &mut leaf)];
                let mut rig = Rig::locked(devices, false);
                rig.faults = true;
                rig.run(&steps);
                runs += 1;
                let clean = plan.fired() == 0;
                plan.disarm();
                rig.finish();
                if clean {
                    break;
                }
                assert!(nth < 2000, "faults do not get fewer");
            }
        }
    }
    assert!(runs > 200, "only {runs} runs: the script does next to nothing");
}

fn blocks(at: u64, len: u64) -> ByteRange {
    ByteRange::new(at * BLOCK, len * BLOCK).unwrap()
}

fn filled(range: ByteRange, byte: u8) -> Op {
    let mut buf = Buf::alloc(range.len() as usize).unwrap();
    buf.fill(byte);
    Op::Write { range, buf, fua: false }
}

fn lazy(range: ByteRange) -> Op {
    Op::WriteZeroes { range, may_unmap: true, lazy: true }
}

/// What one thread waits for, another's locks or its own: an executor whose core is attached.
fn attached(domain: &LockDomain, local: &Local) -> Rc<CoreLocks> {
    let waker = local.waker();
    let locks = Rc::new(domain.attach(move || waker.wake()).unwrap());
    local.serve_locks(&locks);
    locks
}

//= promise 1, 2
#[test]
fn a_copy_from_what_is_owed_gives_zeroes_whenever_it_was_zeroed() {
    for (zeroed_first, part) in
        [(true, blocks(0, 16)), (true, blocks(3, 5)), (false, blocks(0, 16)), (false, blocks(3, 5))]
    {
        let local = Local::new(Rc::new(Sim::new(1)));
        let domain = LockDomain::new();
        let locks = attached(&domain, &local);
        let (source, dest) = (blank(mem(16)), blank(mem(16)));
        run_op(&source, filled(blocks(0, 16), 7)).result.unwrap();
        run_op(&dest, filled(blocks(0, 16), 9)).result.unwrap();
        if zeroed_first {
            run_op(&source, lazy(part)).result.unwrap();
        }
        let Identity::Leaf { leaf, .. } = source.identity() else { panic!("a leaf") };
        let ended = local.block_on(async {
            // The copy is planned, and waits for its source.
            let ticket = locks.begin_copy([Claim::exclusive(leaf, blocks(0, 16))].into_iter().collect());
            let (from, to, hold) = (source.clone(), dest.clone(), locks.clone());
            let running = spawn(async move {
                let segment = Segment { source: 0, dest: 0, len: 16 * BLOCK };
                let job = Job::new(&[segment], 16 * BLOCK, 16 * BLOCK, false).unwrap();
                let options = Options { locks: Some(hold), ..Options::default() };
                copy(from, to, &job, &options, &Rc::new(Progress::default())).await
            });
            for _ in 0..10 {
                yield_now().await;
            }
            assert_ne!(format!("{domain:?}"), "LockDomain(1 cores, 1 copies)", "the copy is in line");
            if !zeroed_first {
                run_op(&source, lazy(part)).result.unwrap();
            }
            locks.end_copy(ticket);
            running.await
        });
        assert!(ended.error.is_none(), "{:?}", ended.error);
        let mut expected = vec![7; 16 * BLOCK as usize];
        expected[part.offset() as usize..part.end() as usize].fill(0);
        assert!(read(&dest, blocks(0, 16)) == expected, "zeroed first: {zeroed_first}, {part}");
        assert_eq!(
            ended.receipt.deviations.is_empty(),
            zeroed_first,
            "what was planned before is refused, and told"
        );
        if zeroed_first {
            assert_eq!(ended.receipt.methods.get(&Method::WriteZeroes), Some(&part.len()));
            let by_memory = 16 * BLOCK - part.len();
            assert_eq!(ended.receipt.methods.get(&Method::Memory).copied().unwrap_or(0), by_memory);
        }
    }
}

/// A flush is cut off anywhere: what was zeroed is old or zero, what was written over it since is old or new, and is
/// never undone by zeroes that were owed before it.
//= promise mount, events
#[test]
fn the_power_may_go_while_zeroes_are_being_stored() {
    let (mut lost, mut kept, mut flushed) = (0, 0, 0);
    for turns in 0..24 {
        for seed in 0..8 {
            let disk = volatile(64);
            let device = blank(Arc::new(DelayDevice::new(disk.clone(), seed, 3)));
            let locks = Rc::new(LockDomain::new().attach(|| ()).unwrap());
            let mut queue = LockedQueue::open(device.clone(), locks.clone()).unwrap();
            let (submitter, mut done) = (Submitter::default(), Vec::new());
            let written = blocks(8, 8);
            let steps =
                [filled(blocks(0, 64), 7), Op::Flush, lazy(blocks(0, 64)), filled(written, 9), Op::Flush];
            for (tag, op) in (0..).zip(steps) {
                queue.submit(&mut VecDeque::from([submitter.request(tag, op)]));
                let most = if tag == 4 { turns } else { 1000 };
                for _ in 0..most {
                    if done.len() as u64 > tag {
                        break;
                    }
                    locks.pump();
                    queue.poll(&mut done);
                }
            }
            assert!(done.iter().all(|d| d.result.is_ok()));
            let is_flushed = done.len() == 5;
            disk.power_cut(seed);
            while done.len() < 5 {
                locks.pump();
                queue.poll(&mut done);
            }
            flushed += usize::from(is_flushed);
            for (n, block) in (0..).zip(disk.contents().chunks(BLOCK as usize)) {
                let new = if written.contains(blocks(n, 1)) { 9 } else { 0 };
                assert!(block.iter().all(|&byte| byte == block[0]), "block {n} is torn");
                assert!(block[0] == new || (block[0] == 7 && !is_flushed), "block {n}: {}", block[0]);
                *(if block[0] == new { &mut kept } else { &mut lost }) += 1;
            }
        }
    }
    assert!(lost > 100 && kept > 100 && flushed > 10, "{lost} lost, {kept} kept, {flushed} flushed");
}

/// Rows of one thread's own, which it knows the bytes of.
const ROWS: u64 = 6;
/// Blocks in a row.
const ROW: u64 = 4;

fn row(thread: u64, n: u64) -> ByteRange {
    blocks((thread * ROWS + n) * ROW, ROW)
}

fn stamped(range: ByteRange, stamp: u64) -> Op {
    let mut buf = Buf::alloc(range.len() as usize).unwrap();
    buf.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&stamp.to_le_bytes()));
    Op::Write { range, buf, fua: false }
}

/// The stamp of a row, all of it.
fn stamp(bytes: &[u8]) -> u64 {
    let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes.chunks_exact(8).all(|word| word == first.to_le_bytes()), "a torn row, begun as {first}");
    first
}

struct World {
    devices: [Dev; 3],
    stamps: AtomicU64,
    stop: AtomicBool,
}

impl World {
    fn client(&self, device: usize, locks: &Rc<CoreLocks>) -> Client {
        let device = &self.devices[device];
        let queue = LockedQueue::open(device.clone(), locks.clone()).unwrap();
        Client::over(device.clone(), Box::new(queue))
    }

    /// Writes, zeroes and copies rows of its own, and finds in them what it put there.
    async fn own(&self, clients: &[Client], locks: &Rc<CoreLocks>, thread: u64, threads: u64, rng: &mut Rng) {
        let mut held = [[0u64; ROWS as usize]; 3];
        for _ in 0..400 {
            let (d, n) = (rng.index(3), rng.below(ROWS));
            let (range, client) = (row(thread, n), &clients[d]);
            match rng.below(8) {
                0..=2 => {
                    let stamp = self.stamps.fetch_add(1, Ordering::Relaxed);
                    client.submit(stamped(range, stamp)).await.result.unwrap();
                    held[d][n as usize] = stamp;
                }
                3 | 4 => {
                    // One to all rows behind this one.
                    let to = n + rng.below(ROWS - n);
                    let all = ByteRange::between(range.offset(), row(thread, to).end());
                    client.submit(lazy(all)).await.result.unwrap();
                    held[d][n as usize..=to as usize].fill(0);
                }
                5 => client.submit(Op::Flush).await.result.unwrap(),
                6 => {
                    // From a row of anybody, which holds a stamp of its own or zeroes.
                    let from = (rng.index(3), row(rng.below(threads), rng.below(ROWS)));
                    if from == (d, range) {
                        continue;
                    }
                    let ended = {
                        let segment =
                            Segment { source: from.1.offset(), dest: range.offset(), len: range.len() };
                        let [source, dest] = [from.0, d].map(|d| self.devices[d].clone());
                        let job = Job::new(&[segment], source.size(), dest.size(), from.0 == d).unwrap();
                        let options =
                            Options { locks: Some(locks.clone()), flush: false, ..Options::default() };
                        copy(source, dest, &job, &options, &Rc::new(Progress::default())).await
                    };
                    assert!(ended.error.is_none(), "{:?}", ended.error);
                    let buf = Buf::alloc(range.len() as usize).unwrap();
                    let got = stamp(&client.submit(Op::Read { range, buf }).await.buf);
                    assert!(got < self.stamps.load(Ordering::Relaxed), "{got} was never written");
                    held[d][n as usize] = got;
                }
                _ => {
                    let (d, other) = (rng.index(3), row(rng.below(threads), rng.below(ROWS)));
                    let buf = Buf::alloc(other.len() as usize).unwrap();
                    let done = clients[d].submit(Op::Read { range: other, buf }).await;
                    let got = stamp(&done.buf);
                    assert!(got < self.stamps.load(Ordering::Relaxed), "{got} was never written");
                }
            }
            for n in 0..ROWS {
                let (d, range) = (rng.index(3), row(thread, n));
                let buf = Buf::alloc(range.len() as usize).unwrap();
                let done = clients[d].submit(Op::Read { range, buf }).await;
                done.result.unwrap();
                assert_eq!(stamp(&done.buf), held[d][n as usize], "row {n} of thread {thread} on device {d}");
            }
        }
    }
}

/// Threads that write, zero lazily, copy and flush beside each other: each finds what it did, all of it, and nothing
/// else.
//= promise 1
#[test]
fn no_thread_loses_what_it_was_told_is_done() {
    for seed in 0..4 {
        let threads = 2 + seed % 2;
        let size = threads * ROWS * ROW;
        let mut leaf = |blocks| blank(Arc::new(DelayDevice::new(mem(blocks), seed, 2)));
        let devices = ["m", "L(m,m)", "M(m,m)"].map(|text| {
            // The border of the linear lies between two rows.
            match Shape::parse(text) {
                Shape::Linear(_, legs) => Shape::Linear(2 * ROW - 1, legs),
                other => other,
            }
            .build(size, &mut leaf)
        });
        let (stamps, stop) = (AtomicU64::new(1), AtomicBool::new(false));
        let world = Arc::new(World { devices, stamps, stop });
        let domain = LockDomain::new();
        let enter = |domain: &LockDomain| {
            let local = Local::new(choose(EngineChoice::Pool, true).unwrap().0);
            let locks = attached(domain, &local);
            (local, locks)
        };
        let flusher = {
            let (world, domain) = (world.clone(), domain.clone());
            std::thread::spawn(move || {
                let (local, locks) = enter(&domain);
                local.block_on(async {
                    let clients = [0, 1, 2].map(|d| world.client(d, &locks));
                    while !world.stop.load(Ordering::Relaxed) {
                        for client in &clients {
                            client.submit(Op::Flush).await.result.unwrap();
                        }
                    }
                });
            })
        };
        let owners: Vec<_> = (0..threads)
            .map(|thread| {
                let (world, domain) = (world.clone(), domain.clone());
                std::thread::spawn(move || {
                    let (local, locks) = enter(&domain);
                    local.block_on(async {
                        let clients = [0, 1, 2].map(|d| world.client(d, &locks));
                        let mut rng = Rng::new(seed * 7 + thread);
                        world.own(&clients, &locks, thread, threads, &mut rng).await;
                    });
                })
            })
            .collect();
        let ends: Vec<_> = owners.into_iter().map(std::thread::JoinHandle::join).collect();
        world.stop.store(true, Ordering::Relaxed);
        flusher.join().unwrap();
        ends.into_iter().for_each(|end| end.unwrap());
        assert_eq!(format!("{domain:?}"), "LockDomain(0 cores, 0 copies)");
    }
}

#[test]
fn a_map_has_no_list_of_its_own() {
    let linear = stack(1).build(8, &mut |blocks| mem(blocks) as Dev);
    assert_eq!(LazyDevice::new(linear).err().unwrap().kind(), Kind::InvalidInput);
}

#[test]
fn storage_is_counted_where_it_is_taken() {
    let shape = Shape::parse("L(m,M(m,m))");
    let device = shape.build(16, &mut |blocks| blank(mem(blocks)));
    assert_eq!(device.allocated_bytes(), Some(0));
    run_op(&device, filled(blocks(0, 16), 7)).result.unwrap();
    assert_eq!(device.allocated_bytes(), Some(16 * BLOCK));
    run_op(&device, Op::WriteZeroes { range: blocks(0, 16), may_unmap: true, lazy: false }).result.unwrap();
    let unknown = Shape::Leaf.build(16, &mut |blocks| blank(volatile(blocks)));
    assert_eq!(unknown.allocated_bytes(), None);
}

//! What the range locks cost. `cargo bench -p blkcopy --bench lock_cost` prints times; with `io N` it only begins
//! and ends N reads of 4 KiB, with `copy N` N copies on one core, for an instruction counter (subtract the counts
//! of N and 2N).

mod common;

use blkcopy::block::lock::{Begun, Claim, CoreLocks, LockDomain};
use blkcopy::block::{ByteRange, LeafId};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const ROUNDS: u32 = 100_000;
const RUNS: usize = 9;

fn block(n: u64) -> ByteRange {
    ByteRange::between(n * 4096, (n + 1) * 4096)
}

fn io(locks: &CoreLocks, leaf: LeafId, count: u64) {
    for n in 0..count {
        let claim = Claim::shared(leaf, block(n % 1024));
        let Begun::Held(ticket) = locks.begin_io(black_box(&[claim])) else { panic!("no copy is active") };
        locks.end_io(black_box(ticket));
    }
}

/// One copy from begin to end; turns the loop until it is granted.
fn copy(locks: &CoreLocks, leaf: LeafId) {
    let claims = [Claim::shared(leaf, block(0)), Claim::exclusive(leaf, block(1))];
    let ticket = locks.begin_copy(black_box(claims.into_iter().collect()));
    while !ticket.is_granted() {
        locks.pump();
        std::hint::spin_loop();
    }
    locks.end_copy(ticket);
}

/// Median, least and most nanoseconds for one of `ROUNDS` rounds, of `RUNS` runs.
fn measure(name: &str, mut round: impl FnMut()) {
    let mut runs: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                round();
            }
            start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    println!("{name:52} {:8.0} ns  ({:.0} to {:.0})", runs[RUNS / 2], runs[0], runs[RUNS - 1]);
}

fn main() {
    let domain = LockDomain::new();
    let leaf = LeafId::fresh();
    let locks = domain.attach(|| ()).expect("the first core");
    let mut args = common::args();
    if let Some(what) = args.next() {
        let count = args.next().and_then(|n| n.parse().ok());
        return match (what.as_str(), count) {
            ("io", Some(count)) => io(&locks, leaf, count),
            ("copy", Some(count)) => (0..count).for_each(|_| copy(&locks, leaf)),
            _ => eprintln!("usage: lock_cost [io COUNT | copy COUNT]"),
        };
    }

    measure("read, begin and end, no copy", || io(&locks, leaf, 1));
    let elsewhere = locks
        .begin_copy([Claim::exclusive(leaf, ByteRange::between(1 << 40, 1 << 41))].into_iter().collect());
    measure("read, begin and end, beside one copy", || io(&locks, leaf, 1));
    locks.end_copy(elsewhere);
    measure("copy, begin to end, one core", || copy(&locks, leaf));

    let sleeper = domain.attach(|| ()).expect("the second core");
    assert!(sleeper.park());
    measure("copy, begin to end, another core parked", || copy(&locks, leaf));
    let more: Vec<_> = (2..64).map(|_| domain.attach(|| ()).expect("up to 64 cores")).collect();
    assert!(more.iter().all(CoreLocks::park));
    measure("copy, begin to end, 63 other cores parked", || copy(&locks, leaf));
    drop((more, sleeper));

    let (stop, up) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let other = domain.attach(|| ()).expect("the second core");
            up.store(true, Ordering::Release);
            while !stop.load(Ordering::Relaxed) {
                other.pump();
            }
        });
        while !up.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
        measure("copy, begin to end, another core running and pumping", || copy(&locks, leaf));
        stop.store(true, Ordering::Relaxed);
    });
    println!("{:?}", locks.counters());
}

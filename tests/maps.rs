//! Linear, stripe and mirror: where they cut, what they mark, and what their guards say.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod common;

use blkcopy::block::{Access, Buf, ByteRange, Device, Kind, LegResult, Op};
use blkcopy::copy::Job;
use blkcopy::copy::Segment;
use blkcopy::copy::run::{Options, Progress, copy};
use blkcopy::map::{Linear, Mirror, Stripe};
use blkcopy::reactor::local::Local;
use blkcopy::reactor::sim::Sim;
use blkcopy::sim::{CheckWrite, ErrorDevice, Fault, FaultPlan, Ops};
use common::*;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::Arc;

fn blocks(at: u64, len: u64) -> ByteRange {
    ByteRange::new(at * BLOCK, len * BLOCK).unwrap()
}

fn write(device: &Dev, range: ByteRange, byte: u8) {
    let mut buf = Buf::alloc(usize::try_from(range.len()).unwrap()).unwrap();
    buf.fill(byte);
    run_op(device, Op::Write { range, buf, fua: false }).result.unwrap();
}

/// A mirror of 8 blocks (4 regions) whose second leg fails by plan.
fn mirror() -> (Arc<Mirror>, Arc<FaultPlan>) {
    let plan = FaultPlan::none();
    let legs: [Dev; 2] = [mem(8), Arc::new(ErrorDevice::new(mem(8), plan.clone()))];
    (Arc::new(Mirror::new("mirror", legs, REGION).unwrap()), plan)
}

#[test]
fn a_linear_has_one_piece_on_each_side_of_its_border() {
    let device: Dev = Arc::new(Linear::new("linear", [mem(3) as Dev, mem(5)]).unwrap());
    let lens = |range| {
        let r = device.clone().resolve(range, Access::Write).unwrap();
        let lens: Vec<_> = r.pieces.iter().map(|p| (p.len / BLOCK, p.legs[0].offset / BLOCK)).collect();
        r.guard.release();
        lens
    };
    assert_eq!(lens(blocks(0, 8)), [(3, 0), (5, 0)]);
    assert_eq!(lens(blocks(2, 2)), [(1, 2), (1, 0)]);
    assert_eq!(lens(blocks(2, 1)), [(1, 2)]);
    assert_eq!(lens(blocks(3, 1)), [(1, 0)]);
    let r = device.clone().resolve(blocks(0, 8), Access::Write).unwrap();
    let results = [(0, 3), (1, 2)].map(|(piece, n)| LegResult { piece, leg: 0, good_bytes: n * BLOCK });
    let (good, result) = r.guard.commit(&results).unwrap();
    assert!(good == 5 * BLOCK && result.is_err());
    assert_eq!(device.clone().resolve(blocks(7, 2), Access::Read).unwrap_err().kind(), Kind::OutOfRange);
    let same = mem(4) as Dev;
    assert_eq!(Linear::new("twice", [same.clone(), same]).err().unwrap().kind(), Kind::Overlap);
}

#[test]
fn a_stripe_goes_from_leg_to_leg_and_a_copy_ends_at_its_first_bad_chunk() {
    let chunk = NonZeroU64::new(2 * BLOCK).unwrap();
    let legs: [Dev; 3] = [mem(5), mem(4), mem(6)];
    let device: Dev = Arc::new(Stripe::new("stripe", legs.clone(), chunk).unwrap());
    assert_eq!(device.size(), 12 * BLOCK, "two chunks of each leg");
    let r = device.clone().resolve(blocks(1, 8), Access::Write).unwrap();
    let places: Vec<_> = r
        .pieces
        .iter()
        .map(|p| (p.len / BLOCK, p.legs[0].offset / BLOCK, p.legs[0].device.size() / BLOCK))
        .collect();
    assert_eq!(places, [(1, 1, 5), (2, 0, 4), (2, 0, 6), (2, 2, 5), (1, 2, 4)]);
    let whole = [1, 2, 1, 2, 1];
    let results = (0..5).map(|piece| LegResult { piece, leg: 0, good_bytes: whole[piece] * BLOCK });
    let (good, result) = r.guard.commit(&results.collect::<Vec<_>>()).unwrap();
    assert!(good == 4 * BLOCK && result.is_err());
    for (byte, at) in (1..).zip(0..12) {
        write(&device, blocks(at, 1), byte);
    }
    let leg: Vec<u8> = (0..4).map(|at| read(&legs[1], blocks(at, 1))[0]).collect();
    assert_eq!(leg, [3, 4, 9, 10]);
    let refused = |legs: Vec<Dev>, chunk: u64| {
        Stripe::new("s", legs, NonZeroU64::new(chunk).unwrap()).err().unwrap().to_string()
    };
    assert!(refused(legs.to_vec(), 100).contains("not a multiple of the map's block size"));
    assert!(refused(legs.to_vec(), 8 * BLOCK).contains("longer than a leg"));
    assert!(refused(vec![], BLOCK).contains("needs a device"));
    assert!(refused(vec![legs[0].clone(), legs[1].clone(), legs[0].clone()], BLOCK).contains("share blocks"));
}

#[test]
fn of_three_legs_those_that_have_all_of_a_write_go_on() {
    let plans = [FaultPlan::none(), FaultPlan::none(), FaultPlan::none()];
    let legs: Vec<Dev> = plans.iter().map(|p| faulty(mem(8), p)).collect();
    let mirror = Arc::new(Mirror::new("mirror", legs, REGION).unwrap());
    let device = mirror.clone() as Dev;
    let fail = |leg: usize, ops| plans[leg].arm(Fault { ops, ..Fault::nth(1) });
    let dirty = || [0, 1, 2].map(|leg| mirror.dirty_regions(leg));
    fail(0, Ops::WRITE);
    write(&device, blocks(0, 2), 1);
    assert_eq!(dirty(), [vec![0], vec![], vec![]]);
    // The second leg cannot be read, and the first is stale there: the third answers.
    fail(1, Ops::READ);
    assert_eq!(read(&device, blocks(0, 1)), [1; 512]);
    fail(1, Ops::WRITE);
    write(&device, blocks(0, 4), 2);
    assert_eq!(dirty(), [vec![0], vec![0, 1], vec![]]);
    // The last one that is current decides: its failure is the mirror's.
    fail(2, Ops::WRITE);
    let buf = Buf::copy_of(&[3; 512]).unwrap();
    let done = run_op(&device, Op::Write { range: blocks(0, 1), buf, fua: false });
    assert!(done.result.is_err() && done.good_bytes == 0);
    assert_eq!(read(&device, blocks(0, 1)), [2; 512]);
    // Region 1 is current on the first and the third; a flush that fails on the third leaves the first there.
    fail(2, Ops::FLUSH);
    assert!(run_op(&device, Op::Flush).result.is_err(), "region 0 is current on the third only");
    assert_eq!(dirty(), [vec![0], vec![0, 1], vec![1, 2, 3]]);
    let places = mirror.copies(blocks(0, 4)).unwrap();
    assert_eq!(places.len(), 2, "one leg each");
}

//= promise 5
#[test]
fn a_leg_that_fails_mid_copy_is_marked_and_not_read() {
    let (device, plan) = mirror();
    let source = mem(8) as Dev;
    write(&source, blocks(0, 8), 7);
    plan.arm(Fault { ops: Ops::COPY | Ops::WRITE, good_bytes: 3 * BLOCK, ..Fault::nth(1) });
    let segment = Segment { source: 0, dest: 0, len: 8 * BLOCK };
    let job = Job::new(&[segment], 8 * BLOCK, 8 * BLOCK, false).unwrap();
    let options = Options { flush: false, ..Options::default() };
    let local = Local::new(Rc::new(Sim::new(1)));
    let ended = local.block_on(copy(source, device.clone(), &job, &options, &Rc::new(Progress::default())));
    assert!(plan.fired() == 1 && ended.error.is_none(), "{:?}", ended.error);
    assert_eq!(device.dirty_regions(0), [0u64; 0]);
    assert_eq!(device.dirty_regions(1), [1, 2, 3], "the good prefix ends inside region 1");
    assert!(read(&(device as Dev), blocks(0, 8)).iter().all(|&b| b == 7));
}

#[test]
fn a_change_of_sync_ends_the_pin_and_splits_what_is_read() {
    let (device, plan) = mirror();
    let pinned = device.clone().resolve(blocks(0, 8), Access::Read).unwrap();
    assert!(pinned.guard.still_valid() && pinned.pieces.len() == 1);
    let before = device.generation();
    // The first leg fails: swap the roles by failing through a mirror the other way round.
    let legs: [Dev; 2] = [Arc::new(ErrorDevice::new(mem(8), plan.clone())), mem(8)];
    let other = Arc::new(Mirror::new("other", legs, REGION).unwrap());
    let pinned_other = other.clone().resolve(blocks(0, 8), Access::Read).unwrap();
    for m in [&device, &other] {
        plan.arm(Fault { ops: Ops::WRITE, ..Fault::nth(1) });
        write(&(m.clone() as Dev), blocks(2, 2), 9);
    }
    assert!(!pinned.guard.still_valid() && !pinned_other.guard.still_valid());
    assert_ne!(device.generation(), before);
    assert_eq!((device.dirty_regions(1), other.dirty_regions(0)), (vec![1], vec![1]));
    let split = other.clone().resolve(blocks(0, 8), Access::Read).unwrap();
    assert_eq!(split.pieces.iter().map(|p| p.len / BLOCK).collect::<Vec<_>>(), [2, 2, 4]);
    assert_eq!(read(&(other as Dev), blocks(2, 2)), [9; 1024]);
}

#[test]
fn a_guard_dropped_without_commit_marks_and_a_released_one_does_not() {
    let (device, _) = mirror();
    device.clone().resolve(blocks(2, 2), Access::Write).unwrap().guard.release();
    drop(device.clone().resolve(blocks(0, 8), Access::Read).unwrap());
    assert!(device.dirty_regions(1).is_empty());
    drop(device.clone().resolve(blocks(2, 2), Access::Write).unwrap());
    assert_eq!((device.dirty_regions(0), device.dirty_regions(1)), (vec![], vec![1]));
}

#[test]
fn a_checked_device_refuses_other_bytes() {
    let expected: Arc<[u8]> = vec![7; usize::try_from(8 * BLOCK).unwrap()].into();
    let checked = Arc::new(CheckWrite::new(mem(8), expected));
    let device = checked.clone() as Dev;
    write(&device, blocks(1, 2), 7);
    assert_eq!(checked.checked_bytes(), 2 * BLOCK);
    let wrong = run_op(&device, Op::WriteZeroes { range: blocks(1, 1), may_unmap: false, lazy: false });
    assert_eq!(wrong.result.unwrap_err().kind(), Kind::Mismatch);
    assert_eq!(read(&device, blocks(1, 2)), [7; 1024]);
}

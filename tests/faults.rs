//! Copies that meet faults: what the receipt says is exact, only "not supported" steps down, limits may change under a
//! copy, a mirror loses a leg, the power goes.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // small numbers; a failed unwrap is a failed test

mod common;

use blkcopy::block::Must;
use blkcopy::block::device::resolve_plain;
use blkcopy::block::receipt::{Outcome, Reason};
use blkcopy::block::{
    Access, Buf, ByteRange, Completion, CopyPath, Counters, Device, Identity, Kind, Limits, LimitsChange,
    Method, Op, Queue, Request, Resolution, Result, Submitter,
};
use blkcopy::copy::run::{Ended, Options, Progress, copy};
use blkcopy::copy::{Job, Offload, Policy, Segment};
use blkcopy::drivers::mem::Mem;
use blkcopy::map::{Linear, Mirror};
use blkcopy::reactor::local::Local;
use blkcopy::reactor::sim::Sim;
use blkcopy::sim::{DelayDevice, Fault, FaultPlan, Ops, Rng};
use common::{BLOCK, Dev, REGION, faulty, mem, read, run_op, volatile};
use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Blocks of the destination before and behind the range that is copied to.
const MARGIN: u64 = 8;

fn range(block: u64, blocks: u64) -> ByteRange {
    ByteRange::new(block * BLOCK, blocks * BLOCK).unwrap()
}

/// Bytes that differ from block to block, from source to destination, and from zero.
fn pattern(blocks: u64, salt: u8) -> Vec<u8> {
    let word = |i: u64| (i / 8 + 1) << 16 | u64::from(salt) << 8 | (i % 8);
    (0..blocks * BLOCK / 8).flat_map(|i| word(i * 8 / BLOCK * 8 + i % 8).to_le_bytes()).collect()
}

fn fill(device: &Dev, bytes: &[u8]) {
    let buf = Buf::copy_of(bytes).unwrap();
    let range = ByteRange::to(bytes.len() as u64);
    run_op(device, Op::Write { range, buf, fua: true }).result.unwrap();
}

fn limit(device: &dyn Device, blocks: u64) {
    let change = LimitsChange { copy_max_bytes: Some(blocks * BLOCK), ..LimitsChange::default() };
    device.change_limits(change).unwrap();
}

fn options(offload: Offload) -> Options {
    Options { policy: Policy { offload, ..Policy::default() }, ..Options::default() }
}

/// Copies all of `source` to behind the margin of `dest`.
fn run(local: &Local, source: &Dev, dest: &Dev, options: &Options) -> Ended {
    let segment = Segment { source: 0, dest: MARGIN * BLOCK, len: source.size() };
    let job = Job::new(&[segment], source.size(), dest.size(), false).unwrap();
    local.block_on(copy(source.clone(), dest.clone(), &job, options, &Rc::new(Progress::default())))
}

fn local() -> Local {
    Local::new(Rc::new(Sim::new(1)))
}

/// A source and a destination with their contents.
struct Pair {
    source: Dev,
    dest: Dev,
    new: Vec<u8>,
    old: Vec<u8>,
}

impl Pair {
    fn new(source: Dev, dest: Dev) -> Self {
        let (new, old) = (pattern(source.size() / BLOCK, 1), pattern(dest.size() / BLOCK, 2));
        fill(&source, &new);
        fill(&dest, &old);
        Self { source, dest, new, old }
    }

    fn of(blocks: u64) -> Self {
        Self::new(mem(blocks), mem(blocks + 2 * MARGIN))
    }

    /// Every block of the destination is old or new, those outside are old, and of the front exactly `good` bytes are
    /// new.
    fn check(&self, good: u64, what: &str) {
        let now = read(&self.dest, ByteRange::to(self.dest.size()));
        let at = (MARGIN * BLOCK) as usize;
        assert!(now[..at] == self.old[..at], "{what}: changed before the range");
        let end = at + self.new.len();
        assert!(now[end..] == self.old[end..], "{what}: changed behind the range");
        let mut is_new = Vec::new();
        let blocks = now[at..end].chunks(BLOCK as usize).zip(self.old[at..end].chunks(BLOCK as usize));
        for (i, ((now, old), new)) in blocks.zip(self.new.chunks(BLOCK as usize)).enumerate() {
            assert!(now == old || now == new, "{what}: block {i} is neither old nor new");
            is_new.push(now == new);
        }
        let front = is_new.iter().take_while(|&&n| n).count() as u64 * BLOCK;
        assert_eq!(front, good, "{what}: new bytes at the front, and what the receipt calls good");
    }

    fn check_done(&self, ended: &Ended, what: &str) {
        assert!(ended.error.is_none(), "{what}: {:?}", ended.error);
        let receipt = &ended.receipt;
        assert_eq!((receipt.good_bytes, receipt.good_prefix_bytes), (self.len(), self.len()), "{what}");
        assert_eq!(receipt.methods.values().sum::<u64>(), self.len(), "{what}: {:?}", receipt.methods);
        self.check(self.len(), what);
    }

    fn len(&self) -> u64 {
        self.new.len() as u64
    }
}

//= promise 5
#[test]
fn the_good_prefix_is_exact_at_every_fault() {
    let local = local();
    let mut runs = 0;
    for (blocks, step, payload) in [(64, 4, 4096), (3000, 512, 1 << 20)] {
        for offload in [Offload::Auto, Offload::Never] {
            for (forever, good_bytes) in [(false, 0), (false, 3 * BLOCK), (true, 0), (true, 3 * BLOCK)] {
                for nth in 1.. {
                    let plan = common::plan(nth, forever, good_bytes);
                    let pair = Pair::of(blocks);
                    let slow = |d: &Dev, seed| Arc::new(DelayDevice::new(d.clone(), seed, 3)) as Dev;
                    let (source, dest) =
                        (faulty(slow(&pair.source, nth), &plan), faulty(slow(&pair.dest, nth + 1), &plan));
                    limit(&*dest, step);
                    // For ever: the flush would fail too, and take back what it was to make durable.
                    let flush = !forever;
                    let options = Options { payload_bytes: payload, flush, ..options(offload) };
                    let ended = run(&local, &source, &dest, &options);
                    let what = format!("{blocks} blocks, {offload:?}, fault {nth}, {forever}, {good_bytes}");
                    runs += 1;
                    if plan.fired() == 0 {
                        pair.check_done(&ended, &what);
                        assert_eq!(ended.receipt.flushed, flush);
                        break;
                    }
                    let receipt = &ended.receipt;
                    assert_eq!(ended.error.as_ref().unwrap().kind(), Kind::Io, "{what}");
                    assert_eq!(receipt.outcome, Outcome::Failed, "{what}");
                    assert_eq!(receipt.deviations_total, 0, "{what}: an I/O error is final");
                    assert!(receipt.good_prefix_bytes <= receipt.good_bytes, "{what}");
                    if flush && !receipt.flushed {
                        assert_eq!(receipt.good_bytes, 0, "{what}: nothing is known to be durable");
                        pair.check(pair.len(), &what);
                    } else {
                        pair.check(receipt.good_prefix_bytes, &what);
                    }
                    assert!(nth < 500, "faults do not get fewer");
                }
            }
        }
    }
    assert!(runs > 150, "only {runs} runs");
}

//= promise 2
#[test]
fn only_not_supported_steps_down() {
    let local = local();
    for (kind, nth) in [Kind::Io, Kind::NoSpace, Kind::NoMemory, Kind::Poisoned, Kind::Permission]
        .into_iter()
        .flat_map(|kind| (1..5).map(move |nth| (kind, nth)))
    {
        let plan = FaultPlan::new(Fault { ops: Ops::COPY, kind, good_bytes: BLOCK, ..Fault::nth(nth) });
        let pair = Pair::of(16);
        let dest = faulty(pair.dest.clone(), &plan);
        limit(&*dest, 4);
        let ended = run(&local, &pair.source, &dest, &options(Offload::Auto));
        let what = format!("{kind:?} at {nth}");
        assert_eq!(ended.error.unwrap().kind(), kind, "{what}");
        let receipt = ended.receipt;
        assert_eq!((receipt.deviations_total, receipt.host_bytes.read), (0, 0), "{what}: stepped down");
        assert_eq!(receipt.methods.get(&Method::Emulated), None, "{what}");
        pair.check(receipt.good_prefix_bytes, &what);
    }
}

//= promise 2
#[test]
fn a_method_refused_midway_is_emulated_from_there_and_the_receipt_says_so() {
    let local = local();
    for (forever, good_bytes) in [(false, 0), (false, 2 * BLOCK), (true, 0), (true, 2 * BLOCK)] {
        for nth in 1..=4 {
            let fault =
                Fault { ops: Ops::COPY, kind: Kind::Unsupported, good_bytes, forever, ..Fault::nth(nth) };
            let pair = Pair::of(16);
            for offload in [Offload::Require(Must::Fast), Offload::Auto] {
                let plan = FaultPlan::new(fault);
                let dest = faulty(pair.dest.clone(), &plan);
                limit(&*dest, 4);
                let ended = run(&local, &pair.source, &dest, &options(offload));
                let what = format!("{offload:?}, refused at {nth}, for ever: {forever}, {good_bytes} good");
                if offload == Offload::Require(Must::Fast) {
                    assert_eq!(ended.error.as_ref().unwrap().kind(), Kind::Unsupported, "{what}");
                    assert_eq!(ended.receipt.host_bytes.read, 0, "{what}");
                    pair.check(ended.receipt.good_prefix_bytes, &what);
                    fill(&pair.dest, &pair.old);
                    continue;
                }
                pair.check_done(&ended, &what);
                let receipt = ended.receipt;
                let refused = if forever { 5 - nth } else { 1 };
                assert_eq!(receipt.deviations_total, refused, "{what}");
                let emulated = refused * (4 * BLOCK - good_bytes);
                assert_eq!(receipt.methods[&Method::Emulated], emulated, "{what}");
                assert_eq!(receipt.host_bytes.read, emulated, "{what}");
                for d in &receipt.deviations {
                    assert_eq!(
                        (d.planned, d.used, d.reason),
                        (Method::Memory, Method::Emulated, Reason::Refused),
                        "{what}"
                    );
                    assert_eq!(d.len, 4 * BLOCK - good_bytes, "{what}");
                }
            }
        }
    }
}

//= promise 2
#[test]
fn too_large_is_planned_again_once() {
    let local = local();
    for (forever, max_blocks) in [(false, 1), (false, 3), (true, 1), (false, 0)] {
        let kind = Kind::TooLarge { max_bytes: max_blocks * BLOCK };
        let plan =
            FaultPlan::new(Fault { ops: Ops::COPY, kind, good_bytes: BLOCK, forever, ..Fault::nth(2) });
        let pair = Pair::of(16);
        let dest = faulty(pair.dest.clone(), &plan);
        limit(&*dest, 4);
        let ended = run(&local, &pair.source, &dest, &options(Offload::Auto));
        let what = format!("at most {max_blocks} blocks, for ever: {forever}");
        if max_blocks == 0 {
            // No size is small enough: as good as refused.
            pair.check_done(&ended, &what);
            assert_eq!(ended.receipt.methods[&Method::Emulated], 3 * BLOCK, "{what}");
            assert!(ended.receipt.deviations.iter().all(|d| d.reason == Reason::TooLarge), "{what}");
            continue;
        }
        if forever {
            assert_eq!(ended.error.as_ref().unwrap().kind(), kind, "{what}");
            pair.check(ended.receipt.good_prefix_bytes, &what);
            assert!(ended.receipt.deviations_total >= 1, "{what}"); // each step in flight had one try
        } else {
            pair.check_done(&ended, &what);
            let d = &ended.receipt.deviations;
            assert!(d.len() == 1 && d[0].reason == Reason::TooLarge && d[0].used == Method::Memory, "{d:?}");
            // Three blocks were left of the step: that many pieces of the new size instead of one.
            assert_eq!(plan.seen(), 4 + 3u64.div_ceil(max_blocks), "{what}");
        }
        assert_eq!(ended.receipt.host_bytes.read, 0, "{what}");
    }
}

//= promise 1
#[test]
fn limits_may_change_while_a_copy_runs_and_its_plan_keeps_its_own() {
    for seed in 0..20 {
        let local = local();
        let slow = |d: Dev| Arc::new(DelayDevice::new(d, seed, 3)) as Dev;
        let pair = Pair::of(512);
        let (source, dest) = (slow(pair.source.clone()), slow(pair.dest.clone()));
        limit(&*dest, 8);
        let changes = Rc::new(Cell::new(0u64));
        let (count, devices) = (changes.clone(), [source.clone(), dest.clone()]);
        let mut rng = Rng::new(seed);
        let change = move |rng: &mut Rng, device: &Dev| {
            let change = LimitsChange {
                copy_offload: Some(rng.below(2) == 0),
                copy_max_bytes: Some((1 + rng.below(64)) * BLOCK),
                copy_max_range_bytes: Some((1 + rng.below(64)) * BLOCK),
                copy_max_nr_ranges: Some(1 + rng.below(9) as u32),
            };
            device.change_limits(change).unwrap();
        };
        let turns = Cell::new(0u64);
        local.on_turn(move || {
            turns.set(turns.get() + 1);
            // From the third turn on: the plan has been begun.
            if turns.get() > 2 {
                change(&mut rng, &devices[rng_index(turns.get())]);
                count.set(count.get() + 1);
            }
            false
        });
        let ended = run(&local, &source, &dest, &options(Offload::Auto));
        pair.check_done(&ended, &format!("seed {seed}"));
        assert!(changes.get() > 50, "{} changes", changes.get());
        let r = ended.receipt;
        assert_eq!((r.plan_steps, r.deviations_total), (512 / 8, 0), "the plan was made by the first limits");
        assert_eq!(r.methods[&Method::Memory], pair.len());
    }
}

fn rng_index(turn: u64) -> usize {
    usize::from(turn.is_multiple_of(2))
}

//= promise 1
#[test]
fn limits_changed_by_another_thread_harm_no_copy() {
    let pair = Pair::of(64);
    let stop = AtomicBool::new(false);
    let changes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(3);
            while !stop.load(Ordering::Relaxed) {
                for device in [&pair.source, &pair.dest] {
                    limit(&**device, 1 + rng.below(64));
                    let on = LimitsChange { copy_offload: Some(rng.below(3) > 0), ..LimitsChange::default() };
                    device.change_limits(on).unwrap();
                }
                changes.fetch_add(1, Ordering::Relaxed);
            }
        });
        let local = local();
        for _ in 0..300 {
            fill(&pair.dest, &pair.old);
            let ended = run(&local, &pair.source, &pair.dest, &options(Offload::Auto));
            pair.check_done(&ended, "changing limits");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(changes.load(Ordering::Relaxed) > 0);
}

/// A device that copies less than it is asked to and calls it done.
struct Short(Arc<Mem>);

impl Device for Short {
    fn name(&self) -> &str {
        "short"
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
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let inner = self.0.clone().open_queue()?;
        Ok(Box::new(ShortQueue { inner, submitter: Submitter::default(), cut: Vec::new() }))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct ShortQueue {
    inner: Box<dyn Queue>,
    submitter: Submitter,
    /// Requests in place of which a shorter one is under way, whose tag is the index.
    cut: Vec<Option<Request>>,
}

impl Queue for ShortQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        while let Some(mut request) = batch.pop_front() {
            let mut op = std::mem::replace(request.op_mut(), Op::Flush);
            if let Op::Copy(copy) = &mut op
                && copy.dest.len() > BLOCK
            {
                copy.dest = copy.dest.prefix(BLOCK);
                copy.sources = [copy.sources[0].prefix(BLOCK)].into_iter().collect();
            }
            let tag = self.cut.len() as u64;
            self.cut.push(Some(request));
            self.inner.submit(&mut [self.submitter.request(tag, op)].into_iter().collect());
        }
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut ended = Vec::new();
        self.inner.poll(&mut ended);
        for e in ended {
            let request = self.cut[e.tag as usize].take().unwrap();
            done.push(request.complete_with(e.buf, e.good_bytes, e.result));
        }
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

//= promise 2
#[test]
fn a_short_answer_is_not_taken_for_the_whole() {
    let pair = Pair::of(16);
    // The same memory behind another face.
    let mem = Arc::new(Mem::new("mem", (16 + 2 * MARGIN) * BLOCK, NonZeroU32::new(512).unwrap()).unwrap());
    fill(&(mem.clone() as Dev), &pair.old);
    let (dest, pair) = (Arc::new(Short(mem.clone())) as Dev, Pair { dest: mem as Dev, ..pair });
    let ended = run(&local(), &pair.source, &dest, &options(Offload::Require(Must::Fast)));
    pair.check_done(&ended, "a block at a time");
}

/// Whichever leg fails from whichever operation on: the copy is done, and what the leg missed is marked.
//= promise 5
#[test]
fn a_mirror_takes_a_copy_on_one_leg_and_marks_the_other() {
    let local = local();
    for (failing, offload) in
        [(0, Offload::Auto), (1, Offload::Auto), (0, Offload::Never), (1, Offload::Never)]
    {
        for (forever, good_bytes) in [(true, 0), (true, 3 * BLOCK), (false, BLOCK)] {
            for nth in 1.. {
                let blocks = 64 + 2 * MARGIN;
                let plan = FaultPlan::none();
                let inner = [mem(blocks), mem(blocks)];
                let legs = [0, 1].map(|i| {
                    let leg = inner[i].clone() as Dev;
                    if i == failing { faulty(leg, &plan) } else { leg }
                });
                legs.iter().for_each(|leg| limit(&**leg, 12));
                let mirror = Arc::new(Mirror::new("mirror", legs, REGION).unwrap());
                let pair = Pair::new(mem(64), mirror.clone());
                // Reads of a leg that failed once are the mirror's business, and are tested in oracle.
                plan.arm(Fault { ops: Ops::COPY | Ops::WRITE, forever, good_bytes, ..Fault::nth(nth) });
                let options = Options { payload_bytes: 4096, ..options(offload) };
                let ended = run(&local, &pair.source, &pair.dest, &options);
                let fired = plan.fired();
                plan.disarm();
                let what = format!("leg {failing}, {offload:?}, fault {nth}, for ever: {forever}");
                assert!(ended.error.is_none(), "{what}: {:?}", ended.error);
                pair.check(pair.len(), &what);
                let wrong: Vec<u64> = stale_regions(&inner[failing], &pair);
                let marked = mirror.dirty_regions(failing);
                assert!(wrong.iter().all(|r| marked.contains(r)), "{what}: {wrong:?} not all in {marked:?}");
                assert_eq!(mirror.dirty_regions(1 - failing), [0u64; 0], "{what}");
                assert_eq!(fired > 0, !wrong.is_empty(), "{what}: {wrong:?}");
                if fired == 0 {
                    assert_eq!(marked, [0u64; 0], "{what}");
                    break;
                }
            }
        }
    }
}

/// The regions in which a leg differs from what was copied.
fn stale_regions(leg: &Arc<Mem>, pair: &Pair) -> Vec<u64> {
    let now = read(&(leg.clone() as Dev), range(MARGIN, pair.len() / BLOCK));
    let unit = REGION.get() as usize;
    let differ = now.chunks(unit).zip(pair.new.chunks(unit)).zip(MARGIN * BLOCK / REGION..);
    differ.filter(|((a, b), _)| a != b).map(|(_, region)| region).collect()
}

//= promise 5
#[test]
fn a_copy_across_the_border_of_a_linear_is_two_steps() {
    let local = local();
    let legs = [mem(20 + MARGIN), mem(44 + MARGIN)];
    let linear = Linear::new("linear", [legs[0].clone() as Dev, legs[1].clone()]).unwrap();
    let pair = Pair::new(mem(64), Arc::new(linear));
    let ended = run(&local, &pair.source, &pair.dest, &options(Offload::Require(Must::Fast)));
    pair.check_done(&ended, "onto a linear");
    assert_eq!((ended.receipt.plan_steps, ended.receipt.methods[&Method::Memory]), (2, pair.len()));
    let front = read(&(legs[0].clone() as Dev), range(MARGIN, 20));
    assert!(front == pair.new[..front.len()]);
    let pieces = pair.dest.clone().resolve(range(MARGIN, 64), Access::Write).unwrap();
    assert_eq!(pieces.pieces.len(), 2);
    pieces.guard.release();
}

//= promise 6
#[test]
fn a_flushed_copy_survives_a_power_cut_and_an_unflushed_one_is_old_or_new() {
    let local = local();
    for (seed, offload, flush) in
        (0..60u64).map(|s| (s, if s % 2 == 0 { Offload::Auto } else { Offload::Never }, s % 3 > 0))
    {
        let disks = [volatile(64), volatile(64 + 2 * MARGIN)];
        let pair = Pair::new(disks[0].clone(), disks[1].clone());
        limit(&*pair.dest, 4);
        let ended = run(&local, &pair.source, &pair.dest, &Options { flush, ..options(offload) });
        pair.check_done(&ended, "before the cut");
        assert_eq!(ended.receipt.flushed, flush);
        assert_eq!(disks[1].unflushed_blocks() == 0, flush);
        disks[1].power_cut(seed);
        let now = read(&pair.dest, range(MARGIN, 64));
        let same = |(a, b): &(&[u8], &[u8])| a == b;
        let kept = now.chunks(512).zip(pair.new.chunks(512)).take_while(same).count() as u64 * BLOCK;
        pair.check(if flush { pair.len() } else { kept }, &format!("seed {seed}, flushed: {flush}"));
    }
}

/// The power goes in any turn of the copy, also between its last byte and the flush: a receipt that says durable is
/// right.
//= promise 5, 6, events
#[test]
fn the_power_may_go_in_the_middle_of_a_copy() {
    for (offload, seed) in [(Offload::Auto, 1), (Offload::Auto, 2), (Offload::Never, 1), (Offload::Never, 2)]
    {
        let (mut failed, mut done) = (0, 0);
        for turn in 1.. {
            let local = local();
            let disk = volatile(64 + 2 * MARGIN);
            let pair = Pair::new(mem(64), disk.clone());
            limit(&*pair.dest, 4);
            let slow = Arc::new(DelayDevice::new(pair.dest.clone(), seed, 2)) as Dev;
            let (turns, cut) = (Rc::new(Cell::new(0)), disk.clone());
            let count = turns.clone();
            local.on_turn(move || {
                count.set(count.get() + 1);
                if count.get() == turn {
                    cut.power_cut(turn);
                }
                false
            });
            let options = Options { payload_bytes: 4096, ..options(offload) };
            let ended = run(&local, &pair.source, &slow, &options);
            let over = turns.get() < turn;
            let what = format!("{offload:?}, power cut in turn {turn}");
            let now = read(&pair.dest, range(MARGIN, 64));
            let same = |(a, b): &(&[u8], &[u8])| a == b;
            let kept = now.chunks(512).zip(pair.new.chunks(512)).take_while(same).count() as u64 * BLOCK;
            pair.check(kept, &what);
            if ended.error.is_none() {
                assert!(
                    ended.receipt.flushed && kept == pair.len(),
                    "{what}: said to be durable, {kept} kept"
                );
                done += 1;
            } else {
                assert!(!over, "{what}: {:?}", ended.error);
                assert_eq!(ended.receipt.outcome, Outcome::Failed);
                failed += 1;
            }
            if over {
                break;
            }
        }
        assert!(failed > 5 && done > 0, "{offload:?}: {failed} failed, {done} done");
    }
}

/// Offsets past 2 and 4 GiB, on both sides, by each method: nothing is cut to 32 bits.
//= promise 1
#[test]
fn data_past_2_and_4_gib_goes_where_it_belongs() {
    let local = local();
    let big = || Arc::new(Mem::new("big", 7 << 30, NonZeroU32::new(512).unwrap()).unwrap()) as Dev;
    let bytes = pattern(512, 1);
    for offload in [Offload::Require(Must::Fast), Offload::Never] {
        for (from, to) in [(1u64 << 31, 5u64 << 30), ((1 << 32) - 4096, 1 << 31), (6 << 30, (1 << 32) + 512)]
        {
            let (source, dest) = (big(), big());
            let write = |device: &Dev, at: u64, byte: Option<u8>| {
                let mut buf = Buf::copy_of(&bytes).unwrap();
                byte.into_iter().for_each(|b| buf.fill(b));
                let range = ByteRange::new(at, bytes.len() as u64).unwrap();
                run_op(device, Op::Write { range, buf, fua: false }).result.unwrap();
            };
            let low = u64::from(u32::MAX);
            // What would be read were the offset cut.
            write(&source, from & low & (low >> 1), Some(7));
            write(&source, from & low, Some(8));
            write(&source, from, None);
            let segment = Segment { source: from, dest: to, len: bytes.len() as u64 };
            let job = Job::new(&[segment], source.size(), dest.size(), false).unwrap();
            let progress = Rc::new(Progress::default());
            let ended = local.block_on(copy(source, dest.clone(), &job, &options(offload), &progress));
            assert!(ended.error.is_none(), "{:?}", ended.error);
            let got = read(&dest, ByteRange::new(to, bytes.len() as u64).unwrap());
            assert!(got == bytes, "{offload:?} {from} -> {to}");
            let mut rest = ByteRange::to(dest.size());
            let mut data = 0;
            while !rest.is_empty() {
                let extent = dest.next_extent(rest).unwrap();
                data += if extent.content == blkcopy::block::Content::Data { extent.len } else { 0 };
                rest = rest.after(extent.len);
            }
            assert!(data <= 2 << 20, "{data} bytes were touched elsewhere");
        }
    }
}

//! The queue that holds range locks: who waits for whom, and that nothing is held for ever.

use super::queue::InFlight;
use super::*;
use crate::block::device::resolve_plain;
use crate::block::request::Cancel;
use crate::block::{
    Access, Buf, ByteRange, Completion, CopyRequest, Counters, Device, Identity, Kind, LeafId, Limits,
    LimitsChange, Method, Op, Queue, Request, Resolution, Result, Submitter,
};
use crate::drivers::mem::Mem;
use crate::map::{Linear, Mirror};
use crate::sim::{DelayDevice, ErrorDevice, Fault, FaultPlan, Ops, Rng};
use smallvec::smallvec;
use std::any::Any;
use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroU64};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const BLOCK: u64 = 512;
type Dev = Arc<dyn Device>;

fn mem() -> Arc<Mem> {
    Arc::new(Mem::new("mem", 64 * BLOCK, NonZeroU32::new(512).unwrap()).unwrap())
}

/// Lets one request through for each permit, and takes at most `room` at once.
struct Gate {
    inner: Arc<Mem>,
    permits: AtomicUsize,
    begun: AtomicUsize,
    room: usize,
}

impl Gate {
    fn new(permits: usize, room: usize) -> Arc<Self> {
        Arc::new(Self { inner: mem(), permits: permits.into(), begun: AtomicUsize::new(0), room })
    }

    fn permit(&self, more: usize) {
        self.permits.fetch_add(more, Ordering::Relaxed);
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }
}

impl Device for Gate {
    fn name(&self) -> &str {
        "gate"
    }
    fn identity(&self) -> Identity {
        self.inner.identity()
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.inner.change_limits(change)
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let inner = self.inner.clone().open_queue()?;
        Ok(Box::new(GateQueue { device: self, inner, held: VecDeque::new() }))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct GateQueue {
    device: Arc<Gate>,
    inner: Box<dyn Queue>,
    held: VecDeque<Request>,
}

impl Queue for GateQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        while self.held.len() < self.device.room
            && let Some(request) = batch.pop_front()
        {
            self.device.begun.fetch_add(1, Ordering::Relaxed);
            self.held.push_back(request);
        }
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        while !self.held.is_empty() && self.device.permits.load(Ordering::Relaxed) > 0 {
            self.device.permits.fetch_sub(1, Ordering::Relaxed);
            let mut one: VecDeque<_> = self.held.pop_front().into_iter().collect();
            self.inner.submit(&mut one);
        }
        self.inner.poll(done);
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

/// A queue and what came out of it.
struct User {
    queue: LockedQueue,
    submitter: Submitter,
    done: Vec<Completion>,
}

impl User {
    fn new(device: &Dev, locks: &Rc<CoreLocks>) -> Self {
        let queue = LockedQueue::open(device.clone(), locks.clone()).unwrap();
        Self { queue, submitter: Submitter::default(), done: Vec::new() }
    }

    fn submit(&mut self, tag: u64, op: Op) {
        self.queue.submit(&mut VecDeque::from([self.submitter.request(tag, op)]));
    }

    /// One turn; tags of what has completed, in order.
    fn turn(&mut self, locks: &CoreLocks) -> Vec<u64> {
        locks.pump();
        let first = self.done.len();
        self.queue.poll(&mut self.done);
        self.done[first..].iter().map(|d| d.tag).collect()
    }
}

fn core() -> (LockDomain, Rc<CoreLocks>) {
    let domain = LockDomain::new();
    let locks = Rc::new(domain.attach(|| ()).unwrap());
    (domain, locks)
}

fn at(block: u64, blocks: u64) -> ByteRange {
    ByteRange::new(block * BLOCK, blocks * BLOCK).unwrap()
}

fn read(block: u64, blocks: u64) -> Op {
    let range = at(block, blocks);
    Op::Read { range, buf: Buf::alloc(usize::try_from(range.len()).unwrap()).unwrap() }
}

fn write(block: u64, blocks: u64, byte: u8) -> Op {
    let range = at(block, blocks);
    let mut buf = Buf::alloc(usize::try_from(range.len()).unwrap()).unwrap();
    buf.fill(byte);
    Op::Write { range, buf, fua: false }
}

fn copy(source: Dev, from: u64, to: u64, blocks: u64) -> Op {
    Op::Copy(Box::new(CopyRequest {
        method: Method::Memory,
        source,
        sources: smallvec![at(from, blocks)],
        dest: at(to, blocks),
        fua: false,
        must: None,
        cancel: Cancel::default(),
    }))
}

/// Nothing is claimed on the leaf: a copy of all of it is granted at once.
fn assert_free(locks: &CoreLocks, leaf: LeafId) {
    locks.pump();
    let all = locks.begin_copy([Claim::exclusive(leaf, at(0, 64))].into_iter().collect());
    assert!(all.is_granted(), "something is still claimed: {:?} {locks:?}", locks.domain());
    locks.end_copy(all);
    assert!(format!("{:?}", locks.domain()).contains(" 0 copies"), "{:?}", locks.domain());
}

fn leaf_of(device: &dyn Device) -> LeafId {
    let Identity::Leaf { leaf, .. } = device.identity() else { panic!("a leaf") };
    leaf
}

//= promise 4
#[test]
fn a_read_waits_for_the_copy_before_it_and_sees_all_of_it() {
    let (_, locks) = core();
    let gate = Gate::new(1, 9);
    let mut user = User::new(&(gate.clone() as Dev), &locks);
    user.submit(1, write(0, 4, 7));
    assert_eq!(user.turn(&locks), [1]);
    user.submit(2, copy(gate.inner.clone(), 0, 8, 4));
    user.submit(3, read(10, 4)); // half of it is the destination
    user.submit(4, write(3, 1, 9)); // the source
    user.submit(5, read(0, 4)); // the source may be read
    user.submit(6, write(20, 1, 9)); // elsewhere
    assert_eq!(user.turn(&locks), [0u64; 0]);
    assert_eq!(gate.begun(), 1 + 3, "the copy, the read of its source, and the write elsewhere");
    gate.permit(99);
    let done = user.turn(&locks);
    assert_eq!(done[..3], [2, 5, 6]);
    assert_eq!(done[3..], [3, 4], "what waited goes on in the turn that ends the copy");
    assert!(user.done[4].buf[..1024].iter().all(|&b| b == 7), "the read saw the copied bytes");
    assert_eq!(locks.counters().io_waits, 2);
    assert_free(&locks, leaf_of(&*gate));
}

//= promise 4
#[test]
fn a_copy_waits_for_the_io_before_it_and_goes_before_the_io_after_it() {
    let (_, locks) = core();
    let gate = Gate::new(0, 9);
    let mut user = User::new(&(gate.clone() as Dev), &locks);
    user.submit(1, write(0, 4, 7));
    user.submit(2, copy(gate.inner.clone(), 0, 8, 4));
    user.submit(3, write(0, 4, 8));
    assert_eq!((user.turn(&locks).len(), gate.begun()), (0, 1), "only the write has begun");
    gate.permit(99);
    assert_eq!(user.turn(&locks), [1, 2, 3]);
    user.submit(4, read(8, 4));
    user.turn(&locks);
    assert!(user.done[3].buf.iter().all(|&b| b == 7), "the copy took what was written before it");
    assert_free(&locks, leaf_of(&*gate));
}

#[test]
fn two_queues_of_one_core_keep_away_from_each_others_copies() {
    let (_, locks) = core();
    let (a, b) = (Gate::new(0, 9), Gate::new(99, 9));
    let (mut first, mut second) =
        (User::new(&(a.clone() as Dev), &locks), User::new(&(b.clone() as Dev), &locks));
    // From `b`, through the queue of `a`: claims on both.
    first.submit(1, copy(b.inner.clone(), 0, 0, 8));
    second.submit(1, write(7, 1, 1));
    second.submit(2, write(8, 1, 1));
    second.submit(3, read(0, 8));
    assert_eq!(first.turn(&locks), [0u64; 0]);
    assert_eq!(second.turn(&locks), [2, 3], "the source is read beside the copy, and not written");
    a.permit(1);
    assert_eq!(first.turn(&locks), [1]);
    assert_eq!(second.turn(&locks), [1]);
    for gate in [&a, &b] {
        assert_free(&locks, leaf_of(&**gate));
    }
}

#[test]
fn a_copy_waits_for_another_cores_io_and_holds_it_up() {
    let (domain, locks) = core();
    let other = Rc::new(domain.attach(|| ()).unwrap());
    let gate = Gate::new(0, 9);
    let (mut here, mut there) =
        (User::new(&(gate.clone() as Dev), &locks), User::new(&(gate.clone() as Dev), &other));
    there.submit(1, write(0, 4, 3));
    here.submit(1, copy(gate.inner.clone(), 0, 8, 4));
    there.turn(&other);
    assert_eq!((here.turn(&locks).len(), gate.begun()), (0, 1));
    there.submit(2, read(8, 4)); // after the copy in the one order
    gate.permit(1);
    assert_eq!(there.turn(&other), [1]);
    assert_eq!((here.turn(&locks).len(), gate.begun()), (0, 2), "the copy has begun, the read has not");
    gate.permit(1);
    assert_eq!(here.turn(&locks), [1]);
    gate.permit(1);
    assert_eq!(there.turn(&other), [2]);
    assert!(there.done[1].buf.iter().all(|&b| b == 3));
    drop((there, other));
    assert_free(&locks, leaf_of(&*gate));
}

#[test]
fn an_error_lets_go_as_success_does() {
    let (_, locks) = core();
    let plan = FaultPlan::none();
    let inner = mem();
    let device: Dev = Arc::new(ErrorDevice::new(inner.clone(), plan.clone()));
    let mut user = User::new(&device, &locks);
    for ops in [Ops::READ, Ops::WRITE, Ops::COPY, Ops::WRITE_ZEROES, Ops::DISCARD] {
        plan.arm(Fault { ops, ..Fault::nth(1) });
        let op = match ops {
            Ops::READ => read(0, 8),
            Ops::WRITE => write(0, 8, 1),
            Ops::COPY => copy(inner.clone(), 0, 8, 8),
            Ops::WRITE_ZEROES => Op::WriteZeroes { range: at(0, 8), may_unmap: false, lazy: false },
            _ => Op::Discard { range: at(0, 8) },
        };
        user.submit(1, op);
        assert_eq!(user.turn(&locks), [1]);
        assert_eq!(user.done.pop().unwrap().result.unwrap_err().kind(), Kind::Io, "{ops:?}");
        assert_free(&locks, leaf_of(&*inner));
    }
}

#[test]
fn a_range_that_is_nowhere_is_refused_and_claims_nothing() {
    let (_, locks) = core();
    let legs = [mem(), mem()];
    let map: Dev = Arc::new(Linear::new("linear", [legs[0].clone() as Dev, legs[1].clone()]).unwrap());
    for (device, last) in [(map, 128), (legs[0].clone() as Dev, 64)] {
        let mut user = User::new(&device, &locks);
        user.submit(1, read(last - 1, 2));
        user.submit(2, write(last, 1, 1));
        user.submit(3, read(last - 1, 1));
        let mut done = user.turn(&locks);
        done.sort_unstable();
        assert_eq!(done, [1, 2, 3]);
        for done in user.done.drain(..) {
            let kind = done.result.err().map(|e| e.kind());
            assert_eq!(kind, (done.tag < 3).then_some(Kind::OutOfRange), "request {}", done.tag);
        }
        legs.iter().for_each(|leg| assert_free(&locks, leaf_of(&**leg)));
    }
    // A copy whose source is outside: the claims of its destination are not kept.
    let mut user = User::new(&(legs[0].clone() as Dev), &locks);
    user.submit(1, copy(legs[1].clone(), 63, 0, 2));
    assert_eq!(user.turn(&locks), [1]);
    assert_eq!(user.done[0].result.as_ref().unwrap_err().kind(), Kind::OutOfRange);
    assert_free(&locks, leaf_of(&*legs[0]));
}

#[test]
fn a_device_without_room_gets_the_rest_when_it_has() {
    let (_, locks) = core();
    let gate = Gate::new(99, 1);
    let mut user = User::new(&(gate.clone() as Dev), &locks);
    for tag in 0..8 {
        user.submit(tag, write(tag, 1, 1));
    }
    // One poll: nothing else would wake a user whose requests all wait behind a completed one.
    assert_eq!(user.turn(&locks), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_free(&locks, leaf_of(&*gate));
}

//= promise 4
#[test]
fn a_map_is_locked_on_all_its_leaves() {
    let (_, locks) = core();
    let legs = [mem(), mem()];
    let region = NonZeroU64::new(2 * BLOCK).unwrap();
    let mirror: Dev =
        Arc::new(Mirror::new("mirror", [legs[0].clone() as Dev, legs[1].clone()], region).unwrap());
    for leg in &legs {
        let held = locks.begin_copy([Claim::exclusive(leaf_of(&**leg), at(4, 4))].into_iter().collect());
        let mut user = User::new(&mirror, &locks);
        user.submit(1, write(3, 2, 1));
        user.submit(2, read(7, 2));
        user.submit(3, write(8, 2, 1));
        assert_eq!(user.turn(&locks), [3], "whichever leg it is");
        locks.end_copy(held);
        let mut done = user.turn(&locks);
        done.sort_unstable();
        assert_eq!(done, [1, 2]);
    }
    legs.iter().for_each(|leg| assert_free(&locks, leaf_of(&**leg)));
}

#[test]
fn a_queue_that_goes_gives_up_its_waits() {
    let (_, locks) = core();
    let inner = mem();
    let held = locks.begin_copy([Claim::exclusive(leaf_of(&*inner), at(0, 64))].into_iter().collect());
    let mut user = User::new(&(inner.clone() as Dev), &locks);
    user.submit(1, write(0, 1, 1));
    user.submit(2, copy(inner.clone(), 8, 16, 4));
    let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(user)));
    assert!(gone.is_err(), "requests dropped without an answer are a panic in tests");
    locks.end_copy(held);
    assert_free(&locks, leaf_of(&*inner));
}

#[test]
fn one_slow_request_among_many_and_tags_in_any_order() {
    let (_, locks) = core();
    let (gate, quick) = (Gate::new(0, 9), Gate::new(usize::MAX / 2, 64));
    let mut slow = User::new(&(gate.clone() as Dev), &locks);
    slow.submit(u64::MAX, write(0, 1, 1));
    slow.turn(&locks);
    let mut user = User::new(&(quick.clone() as Dev), &locks);
    let mut rng = Rng::new(1);
    for turn in 0..500u64 {
        // The same numbers again and again, as those of places in a table.
        let mut tags: Vec<u64> = (0..8).map(|n| n * (1 + turn % 3)).collect();
        (1..8).rev().for_each(|i| tags.swap(i, rng.index(i + 1)));
        tags.iter().for_each(|&tag| user.submit(tag, write(tag, 1, 1)));
        assert_eq!(user.turn(&locks), tags);
        user.done.clear();
    }
    assert_free(&locks, leaf_of(&*quick));
    gate.permit(1);
    assert_eq!(slow.turn(&locks), [u64::MAX]);
    assert_free(&locks, leaf_of(&*gate));
}

#[test]
fn places_are_found_in_any_order_and_not_kept() {
    let locks = core().1;
    let mut held = InFlight::default();
    let ticket = || match locks.begin_io(&[]) {
        Begun::Held(ticket) => ticket,
        Begun::Waiting(_) => panic!("nothing is in the way"),
    };
    held.insert(1, ticket());
    for tag in 2..10_000 {
        held.insert(tag, ticket());
        locks.end_io(held.remove(tag).unwrap());
        assert!(held.remove(tag).is_none() && held.size().1 <= 132, "{:?}", held.size());
    }
    for tag in [7, 3, 100, 2] {
        held.insert(tag, ticket());
    }
    for tag in [100, 2, 7, 1, 3] {
        locks.end_io(held.remove(tag).unwrap());
    }
    assert!(held.size().0 == 0 && held.remove(1).is_none());
    // Tags whose low bits are all the same: found all the same, and without a table as large as their numbers.
    let alike = |n: u64| n << 60;
    for n in 0..16 {
        held.insert(alike(n), ticket());
    }
    assert!(held.size().1 <= 300, "{:?}", held.size());
    for n in (0..16).rev() {
        locks.end_io(held.remove(alike(n)).unwrap());
        assert!(held.remove(alike(n)).is_none());
    }
    assert_eq!(held.size().0, 0);
}

/// Any mix through two queues, slow and failing: everything completes once, and at the end nothing is held.
//= promise 8
#[test]
fn any_mix_completes_and_leaves_nothing_behind() {
    for seed in 0..200 {
        let (domain, locks) = core();
        let mut rng = Rng::new(seed);
        let plan = FaultPlan::none();
        let inner = [mem(), mem()];
        let devices = inner.clone().map(|m| {
            let faulty = Arc::new(ErrorDevice::new(m, plan.clone()));
            Arc::new(DelayDevice::new(faulty, seed, 4)) as Dev
        });
        plan.arm(Fault { forever: seed % 3 == 0, ..Fault::nth(5 + seed % 40) });
        let mut users = [0, 1].map(|i| User::new(&devices[i], &locks));
        for tag in 0..60 {
            let (here, there) = (rng.index(2), rng.index(2));
            let (from, to, len) = (rng.below(50), rng.below(50), 1 + rng.below(10));
            let op = match rng.below(5) {
                0 => read(from, len),
                1 => write(from, len, 1),
                2 => Op::Discard { range: at(from, len) },
                _ => copy(devices[there].clone(), from, to, len),
            };
            users[here].submit(tag, op);
            if rng.below(2) == 0 {
                users[here].turn(&locks);
            }
        }
        for _ in 0..5000 {
            users.iter_mut().for_each(|u| drop(u.turn(&locks)));
        }
        let mut tags: Vec<u64> = users.iter().flat_map(|u| u.done.iter().map(|d| d.tag)).collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..60).collect::<Vec<_>>(), "seed {seed}: {domain:?}");
        inner.iter().for_each(|m| assert_free(&locks, leaf_of(&**m)));
    }
}

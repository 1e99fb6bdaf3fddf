//! A flush stores what is owed and overwrites nothing that came later; a request that is only tried leaves nothing
//! behind.

use super::*;
use crate::block::lazy;
use crate::block::request::Cancel;
use crate::block::{Buf, ByteRange, Completion, CopyRequest, Device, Kind, Method, Op, Queue, Submitter};
use crate::drivers::mem::Mem;
use crate::map::{LazyDevice, Linear, Mirror};
use crate::sim::{DelayDevice, ErrorDevice, Fault, FaultPlan, Ops};
use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroU64};
use std::rc::Rc;
use std::sync::Arc;

const BLOCK: u64 = 512;
type Dev = Arc<dyn Device>;

fn mem_of(bytes: u64) -> Dev {
    Arc::new(Mem::new("mem", bytes, NonZeroU32::new(512).unwrap()).unwrap())
}

fn mem() -> Dev {
    mem_of(64 * BLOCK)
}

fn blank(inner: Dev) -> Dev {
    LazyDevice::with_lazy_min(inner, 1).unwrap()
}

fn at(block: u64, blocks: u64) -> ByteRange {
    ByteRange::new(block * BLOCK, blocks * BLOCK).unwrap()
}

fn core() -> Rc<CoreLocks> {
    Rc::new(LockDomain::new().attach(|| ()).unwrap())
}

/// A locked queue and its user.
struct User {
    locks: Rc<CoreLocks>,
    queue: LockedQueue,
    submitter: Submitter,
    done: Vec<Completion>,
}

impl User {
    fn new(device: &Dev, locks: &Rc<CoreLocks>) -> Self {
        let queue = LockedQueue::open(device.clone(), locks.clone()).unwrap();
        Self { locks: locks.clone(), queue, submitter: Submitter::default(), done: Vec::new() }
    }

    fn submit(&mut self, tag: u64, op: Op) {
        let mut batch = VecDeque::from([self.submitter.request(tag, op)]);
        self.queue.submit(&mut batch);
        assert!(batch.is_empty());
    }

    /// True when it was begun; else what came back is as it was.
    fn tries(&mut self, tag: u64, op: Op) -> bool {
        let text = format!("#{tag} {op:?}");
        let Err(back) = self.queue.try_submit(self.submitter.request(tag, op)) else { return true };
        assert_eq!(format!("{back:?}"), text);
        let _ = back.complete_ok();
        false
    }

    fn turn(&mut self) {
        self.locks.pump();
        self.queue.poll(&mut self.done);
    }

    fn wait(&mut self, tag: u64) -> Completion {
        for _ in 0..10_000 {
            self.turn();
            if let Some(at) = self.done.iter().position(|d| d.tag == tag) {
                return self.done.remove(at);
            }
        }
        panic!("{tag} hangs");
    }

    fn run(&mut self, op: Op) -> Completion {
        self.submit(u64::MAX, op);
        self.wait(u64::MAX)
    }
}

fn write(range: ByteRange, byte: u8) -> Op {
    let mut buf = Buf::alloc(range.len() as usize).unwrap();
    buf.fill(byte);
    Op::Write { range, buf, fua: false }
}

fn lazy(range: ByteRange) -> Op {
    Op::WriteZeroes { range, may_unmap: true, lazy: true }
}

/// The first byte of each block, by a queue without locks.
fn look(device: &Dev, range: ByteRange) -> Vec<u8> {
    let (submitter, mut queue) = (Submitter::default(), device.clone().open_queue().unwrap());
    let buf = Buf::alloc(range.len() as usize).unwrap();
    queue.submit(&mut VecDeque::from([submitter.request(1, Op::Read { range, buf })]));
    let mut done = Vec::new();
    for _ in 0..1000 {
        queue.poll(&mut done);
    }
    let done = done.pop().unwrap();
    done.result.unwrap();
    done.buf.chunks(BLOCK as usize).map(|block| block[0]).collect()
}

//= promise 6
#[test]
fn a_flush_stores_what_is_owed_on_every_leaf() {
    let bottoms = [mem(), mem(), mem(), mem()];
    let leaves = bottoms.each_ref().map(|b| blank(b.clone()));
    let [a, b, c, d] = leaves.clone();
    let mirror = Mirror::new("mirror", [c, d], NonZeroU64::new(2 * BLOCK).unwrap()).unwrap();
    let linear: Dev = Arc::new(Linear::new("linear", [a, b]).unwrap());
    let device: Dev = Arc::new(Linear::new("all", [linear, Arc::new(mirror)]).unwrap());
    let locks = core();
    let mut user = User::new(&device, &locks);
    user.run(write(at(0, 192), 7)).result.unwrap();
    assert!(!lazy::any(&*device));
    user.run(lazy(at(60, 128))).result.unwrap();
    user.run(write(at(62, 4), 9)).result.unwrap();
    assert!(lazy::any(&*device) && leaves.iter().all(|leaf| lazy::any(&**leaf)));
    user.run(Op::Flush).result.unwrap();
    assert!(!lazy::any(&*device));
    let expected: Vec<u8> = (0..192)
        .map(|n| {
            if (62..66).contains(&n) {
                9
            } else if (60..188).contains(&n) {
                0
            } else {
                7
            }
        })
        .collect();
    assert_eq!(look(&device, at(0, 192)), expected);
    for (bottom, first) in bottoms.iter().zip([0, 64, 128, 128]) {
        assert_eq!(look(bottom, at(0, 64)), expected[first..first + 64]);
    }
}

//= promise 1
#[test]
fn what_only_one_leg_of_a_mirror_owes_is_not_zeroed_on_the_other() {
    let (plan, bottoms) = (FaultPlan::none(), [mem(), mem()]);
    let legs =
        [blank(Arc::new(ErrorDevice::new(bottoms[0].clone(), plan.clone()))), blank(bottoms[1].clone())];
    let device: Dev = Arc::new(Mirror::new("mirror", legs, NonZeroU64::new(2 * BLOCK).unwrap()).unwrap());
    let locks = core();
    let mut user = User::new(&device, &locks);
    user.run(lazy(at(0, 64))).result.unwrap();
    plan.arm(Fault { ops: Ops::WRITE, ..Fault::nth(1) });
    user.run(write(at(8, 8), 9)).result.unwrap();
    user.run(Op::Flush).result.unwrap();
    assert!(!lazy::any(&*device));
    assert_eq!(look(&device, at(6, 4)), [0, 0, 9, 9]);
    assert_eq!((look(&bottoms[0], at(8, 1)), look(&bottoms[1], at(8, 1))), (vec![0], vec![9]));
}

//= promise 4
#[test]
fn a_write_in_flight_is_waited_for_and_not_overwritten() {
    let device = blank(Arc::new(DelayDevice::new(mem(), 3, 4)));
    let locks = core();
    let (mut user, mut other) = (User::new(&device, &locks), User::new(&device, &locks));
    for round in 0..50 {
        user.run(write(at(0, 64), 7)).result.unwrap();
        user.run(lazy(at(0, 64))).result.unwrap();
        other.submit(1, write(at(4, 4), 9));
        user.submit(2, Op::Flush);
        other.submit(3, write(at(6, 4), 8));
        // Some are done in between, whoever is looked at first.
        for _ in 0..round % 7 {
            user.turn();
        }
        other.wait(1).result.unwrap();
        user.wait(2).result.unwrap();
        other.wait(3).result.unwrap();
        assert_eq!(look(&device, at(3, 8)), [0, 9, 9, 8, 8, 8, 8, 0]);
        assert!(!lazy::any(&*device));
        assert_eq!(format!("{:?}", locks.domain()), "LockDomain(1 cores, 0 copies)");
    }
}

//= promise 6
#[test]
fn several_flushes_at_once_end_when_what_was_owed_is_stored() {
    let device = blank(Arc::new(DelayDevice::new(mem(), 5, 3)));
    let locks = core();
    let mut users = [User::new(&device, &locks), User::new(&device, &locks)];
    for n in 0..16 {
        users[0].run(lazy(at(4 * n, 2))).result.unwrap();
    }
    for tag in 1..4 {
        users.iter_mut().for_each(|user| user.submit(tag, Op::Flush));
    }
    // What is zeroed later is nobody's business.
    users[1].submit(9, lazy(at(63, 1)));
    for tag in 1..4 {
        for n in 0..2 {
            for _ in 0..20 {
                users[1 - n].turn();
            }
            users[n].wait(tag).result.unwrap();
            assert!(lazy::within(&*device, at(0, 63)).is_empty());
        }
    }
    users[1].wait(9).result.unwrap();
    assert_eq!(lazy::within(&*device, at(0, 64)), [at(63, 1)]);
}

//= promise 6, events
#[test]
fn what_cannot_be_stored_stays_owed_and_fails_the_flush() {
    for forever in [false, true] {
        for ops in [Ops::WRITE_ZEROES, Ops::FLUSH] {
            let plan = FaultPlan::none();
            let bottom = mem();
            let device = blank(Arc::new(ErrorDevice::new(bottom.clone(), plan.clone())));
            let locks = core();
            let mut user = User::new(&device, &locks);
            user.run(write(at(0, 64), 7)).result.unwrap();
            user.run(lazy(at(0, 8))).result.unwrap();
            user.run(lazy(at(16, 8))).result.unwrap();
            plan.arm(Fault { ops, forever, good_bytes: 2 * BLOCK, ..Fault::nth(1) });
            user.submit(1, Op::Flush);
            user.submit(2, Op::Flush);
            assert_eq!(user.wait(1).result.unwrap_err().kind(), Kind::Io);
            assert_eq!(user.wait(2).result.is_err(), forever);
            assert_eq!(look(&device, at(0, 25))[6..18], [0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0]);
            plan.disarm();
            user.run(Op::Flush).result.unwrap();
            assert!(!lazy::any(&*device));
            assert_eq!(look(&bottom, at(0, 25))[6..18], [0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0]);
            assert_eq!(format!("{:?}", locks.domain()), "LockDomain(1 cores, 0 copies)");
        }
    }
}

//= promise 6
#[test]
fn zeroes_are_written_where_the_device_has_no_zeroing() {
    let refuses = Fault { ops: Ops::WRITE_ZEROES, forever: true, kind: Kind::Unsupported, ..Fault::nth(1) };
    let bottom = mem_of(4 << 20);
    let device = blank(Arc::new(ErrorDevice::new(bottom.clone(), FaultPlan::new(refuses))));
    let locks = core();
    let mut user = User::new(&device, &locks);
    user.run(write(ByteRange::to(4 << 20), 7)).result.unwrap();
    user.run(lazy(ByteRange::between(512, (3 << 20) - 512))).result.unwrap();
    user.run(lazy(ByteRange::between((3 << 20) + 512, (3 << 20) + 1024))).result.unwrap();
    user.run(Op::Flush).result.unwrap();
    assert!(!lazy::any(&*device));
    let held = look(&bottom, ByteRange::to(4 << 20));
    let blocks = |mib: usize| mib << 11;
    let owed = |n: usize| (1..blocks(3) - 1).contains(&n) || n == blocks(3) + 1;
    assert!(held.iter().enumerate().all(|(n, &byte)| byte == if owed(n) { 0 } else { 7 }));
}

#[test]
fn a_request_is_only_begun_when_nothing_is_in_its_way() {
    let (device, other) = (mem(), mem());
    let mirror: Dev =
        Arc::new(Mirror::new("mirror", [mem(), mem()], NonZeroU64::new(BLOCK).unwrap()).unwrap());
    let locks = core();
    for device in [&device, &mirror] {
        let mut user = User::new(device, &locks);
        let resolution = device.clone().resolve(at(8, 8), crate::block::Access::Write).unwrap();
        let claims = resolution.pieces[0].legs.iter().map(|leg| {
            let crate::block::Identity::Leaf { leaf, .. } = leg.device.identity() else { unreachable!() };
            Claim::exclusive(leaf, at(8, 8))
        });
        let copy = locks.begin_copy(claims.collect());
        resolution.guard.release();
        assert!(copy.is_granted());
        assert!(user.tries(1, write(at(0, 8), 7)) && user.tries(2, write(at(16, 1), 8)));
        for _ in 0..3 {
            assert!(!user.tries(3, write(at(15, 2), 9)));
            assert!(!user.tries(3, Op::Read { range: at(8, 1), buf: Buf::alloc(512).unwrap() }));
        }
        assert!(user.tries(4, Op::Flush));
        [1, 2, 4].into_iter().for_each(|tag| user.wait(tag).result.unwrap());
        locks.end_copy(copy);
        assert!(user.tries(3, write(at(15, 2), 9)));
        // Nowhere: an answer, not a wait.
        assert!(user.tries(5, write(at(63, 2), 9)));
        user.wait(3).result.unwrap();
        assert_eq!(user.wait(5).result.unwrap_err().kind(), Kind::OutOfRange);
        assert!(user.done.is_empty());
        assert_eq!(look(device, at(14, 4)), [0, 9, 9, 0]);
    }
    assert_eq!(format!("{:?}", locks.domain()), "LockDomain(1 cores, 0 copies)");

    // A copy: not while its source is written, nor while a copy that began before holds it.
    let slow: Dev = Arc::new(DelayDevice::new(device, 1, 9));
    let (mut writer, mut user) = (User::new(&slow, &locks), User::new(&other, &locks));
    let copy = || {
        let sources = smallvec::smallvec![at(0, 4)];
        let (method, cancel) = (Method::Memory, Cancel::default());
        let source = slow.clone();
        Op::Copy(Box::new(CopyRequest {
            method,
            source,
            sources,
            dest: at(4, 4),
            fua: false,
            must: None,
            cancel,
        }))
    };
    writer.submit(1, write(at(3, 1), 5));
    assert!(!user.tries(1, copy()));
    writer.wait(1).result.unwrap();
    assert!(user.tries(1, copy()));
    // Behind the delay there is no memory device: it was begun, and refused.
    assert_eq!(user.wait(1).result.unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(format!("{:?}", locks.domain()), "LockDomain(1 cores, 0 copies)");
}

#[test]
fn a_flush_that_must_store_first_is_not_begun_by_trying() {
    let device = blank(mem());
    let locks = core();
    let mut user = User::new(&device, &locks);
    assert!(user.tries(1, lazy(at(0, 4))));
    user.wait(1).result.unwrap();
    assert!(!user.tries(2, Op::Flush));
    assert!(user.tries(3, write(at(1, 1), 4)));
    user.run(Op::Flush).result.unwrap();
    assert!(user.tries(2, Op::Flush));
    user.wait(2).result.unwrap();
    user.wait(3).result.unwrap();
    assert_eq!(look(&device, at(0, 4)), [0, 4, 0, 0]);
}

/// A core that has something in the way and answers: a copy is given the moment that takes.
#[test]
fn a_copy_that_is_tried_swallows_no_news_of_others() {
    let device = mem();
    let domain = LockDomain::new();
    let locks = Rc::new(domain.attach(|| ()).unwrap());
    let (mut user, mut waits) = (User::new(&device, &locks), User::new(&device, &locks));
    let crate::block::Identity::Leaf { leaf, .. } = device.identity() else { unreachable!() };
    let copy = |from, to| {
        let sources = smallvec::smallvec![at(from, 1)];
        let (method, cancel) = (Method::Memory, Cancel::default());
        let source = device.clone();
        Op::Copy(Box::new(CopyRequest {
            method,
            source,
            sources,
            dest: at(to, 1),
            fua: false,
            must: None,
            cancel,
        }))
    };
    let before = locks.begin_copy([Claim::exclusive(leaf, at(9, 1))].into_iter().collect());
    waits.submit(1, copy(9, 10));
    drop(before);
    // The drop told this core that the copy of `waits` is granted; trying another takes the mail in.
    assert!(!user.tries(2, copy(10, 11)));
    assert!(locks.pump(), "the news is still there for the turn");
    waits.wait(1).result.unwrap();
}

/// 64 TiB are a quarter of a million steps of the usual length.
#[test]
fn a_huge_device_is_settled_in_few_steps() {
    let size = 1 << 46;
    let null = crate::drivers::null::Null::new("null", size, NonZeroU32::new(512).unwrap()).unwrap();
    let device = blank(Arc::new(null));
    let mut user = User::new(&device, &core());
    user.run(lazy(ByteRange::to(size))).result.unwrap();
    for block in [0, 1 << 30, 1 << 36] {
        user.run(write(at(block, 1), 1)).result.unwrap();
    }
    let before = user.queue.counters().requests;
    user.run(Op::Flush).result.unwrap();
    let steps = user.queue.counters().requests - before;
    assert!((4..400).contains(&steps), "{steps} steps");
    // What is stored has been written, so nothing is left to owe.
    assert!(!lazy::any(&*device));
}

//= promise mount
#[test]
fn writes_into_a_list_that_is_full_store_some_of_it_first() {
    let bottom = mem();
    let list = LazyDevice::with_list(bottom.clone(), 1, 8).unwrap();
    let device: Dev = list.clone();
    let mut user = User::new(&device, &core());
    let due: Vec<u8> = (0..64).map(|block| if block % 2 == 1 { 9 } else { 0 }).collect();
    for round in 0..3 {
        user.run(write(at(0, 64), 7)).result.unwrap();
        user.run(lazy(at(0, 64))).result.unwrap();
        let mut relieved = 0;
        for block in (1..64).step_by(2) {
            let full = lazy::too_many(&*device);
            assert_eq!(full, list.lazy_ranges() >= 8);
            if full && round == 1 {
                assert!(!user.tries(1, write(at(block, 1), 9)), "it would have to wait for zeroes");
            }
            user.run(write(at(block, 1), 9)).result.unwrap();
            relieved += usize::from(full);
            assert!(list.lazy_ranges() <= 8, "{} ranges", list.lazy_ranges());
        }
        assert!(relieved > 0, "it was never full");
        assert_eq!(look(&device, at(0, 64)), due);
        user.run(Op::Flush).result.unwrap();
        assert_eq!((look(&bottom, at(0, 64)), list.lazy_ranges()), (due.clone(), 0));
    }
}

#[test]
fn a_write_that_cannot_relieve_a_full_list_says_so_and_changes_nothing() {
    let plan = FaultPlan::none();
    let list = LazyDevice::with_list(Arc::new(ErrorDevice::new(mem(), plan.clone())), 1, 4).unwrap();
    let device: Dev = list.clone();
    let mut user = User::new(&device, &core());
    user.run(lazy(at(0, 64))).result.unwrap();
    for block in [1, 3, 5] {
        user.run(write(at(block, 1), 9)).result.unwrap();
    }
    assert!(lazy::too_many(&*device));
    plan.arm(Fault { ops: Ops::WRITE_ZEROES, forever: true, ..Fault::nth(1) });
    assert!(user.run(write(at(7, 1), 9)).result.is_err());
    plan.disarm();
    assert_eq!(look(&device, at(0, 9)), [0, 9, 0, 9, 0, 9, 0, 0, 0]);
    user.run(write(at(7, 1), 9)).result.unwrap();
    assert_eq!(look(&device, at(6, 3)), [0, 9, 0]);
}

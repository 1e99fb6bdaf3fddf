//! The budget of a small I/O on the hot path, held by counters: no allocation for a 4 KiB read or write through a null
//! device, its queue's counters and the range locks, nor for the NVMe command it comes from. Instructions:
//! `benches/hot_path.rs`.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a failed unwrap is a failed test

#[path = "common/counting.rs"]
mod counting;

use blkcopy::block::lock::{Claim, CoreLocks, LockDomain, LockedQueue};
use blkcopy::block::{Buf, BufPool, ByteRange, Device, Identity, Op, Queue, Submitter};
use blkcopy::drivers::null::Null;
use blkcopy::map::LazyDevice;
use blkcopy::nvme::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, FabricsCommand, Width};
use blkcopy::nvme::io::Extent;
use blkcopy::nvme::property::{Cc, offset};
use blkcopy::nvme::{Blocks, Count16, IoCommand, Nqn, Sgl, Sqe};
use blkcopy::nvmet::{
    Answer, CommandId, ConnectionId, NamespaceOptions, Settings, Subsystem, SubsystemOptions, Target, Worker,
};
use blkcopy::reactor::Waker;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;

const LEN: u64 = 4096;
const SIZE: u64 = 1 << 30;

/// A user of a locked null device that keeps everything it uses.
struct Front {
    locks: Rc<CoreLocks>,
    queue: LockedQueue,
    submitter: Submitter,
    batch: VecDeque<blkcopy::block::Request>,
    done: Vec<blkcopy::block::Completion>,
    free: Vec<Buf>,
    tag: u64,
}

impl Front {
    fn new(device: Arc<dyn Device>) -> Self {
        let locks = Rc::new(LockDomain::new().attach(|| ()).unwrap());
        Self {
            queue: LockedQueue::open(device, locks.clone()).unwrap(),
            locks,
            submitter: Submitter::default(),
            batch: VecDeque::new(),
            done: Vec::new(),
            free: (0..32).map(|_| Buf::alloc(LEN as usize).unwrap()).collect(),
            tag: 0,
        }
    }

    /// `count` reads (every eighth a write) at once.
    fn turn(&mut self, count: usize) {
        self.turn_by(count, false);
    }

    /// The same, one by one, each begun only if nothing is in its way, when `tried`.
    fn turn_by(&mut self, count: usize, tried: bool) {
        for _ in 0..count {
            let range = ByteRange::new(self.tag * LEN % SIZE, LEN).unwrap();
            let buf = self.free.pop().unwrap();
            let write = self.tag.is_multiple_of(8);
            let op = if write { Op::Write { range, buf, fua: false } } else { Op::Read { range, buf } };
            self.batch.push_back(self.submitter.request(self.tag, op));
            self.tag += 1;
        }
        self.locks.pump();
        while tried && let Some(request) = self.batch.pop_front() {
            self.queue.try_submit(request).unwrap();
        }
        self.queue.submit(&mut self.batch);
        self.queue.poll(&mut self.done);
        assert!(count == 0 || self.done.len() == count);
        for done in self.done.drain(..) {
            done.result.unwrap();
            if !done.buf.is_empty() {
                self.free.push(done.buf);
            }
        }
    }
}

#[test]
fn a_small_io_allocates_nothing() {
    let device = Arc::new(Null::new("null", SIZE, NonZeroU32::new(512).unwrap()).unwrap());
    let Identity::Leaf { leaf, .. } = device.identity() else { panic!("a leaf") };
    let mut front = Front::new(device);
    for beside_a_copy in [false, true] {
        let elsewhere = ByteRange::between(SIZE, SIZE * 2);
        let copy = beside_a_copy
            .then(|| front.locks.begin_copy([Claim::exclusive(leaf, elsewhere)].into_iter().collect()));
        for depth in [32, 1, 7] {
            (0..100).for_each(|_| front.turn(depth));
            let (before, io_before) = (counting::of_this_thread(), front.queue.counters().requests);
            (0..2000).for_each(|_| front.turn(depth));
            let ios = front.queue.counters().requests - io_before;
            assert_eq!(ios, 2000 * depth as u64, "each is counted");
            assert_eq!(
                counting::of_this_thread() - before,
                0,
                "at depth {depth}, beside a copy: {beside_a_copy}"
            );
        }
        if let Some(copy) = copy {
            front.locks.end_copy(copy);
        }
    }
    assert!(counting::of_this_thread() > 0, "the allocator counts");
}

/// A list of owed zeroes costs nothing while nothing is on it, also after something was, and trying costs nothing
/// either.
#[test]
fn a_small_io_allocates_nothing_where_nothing_is_owed() {
    let null = Arc::new(Null::new("null", SIZE, NonZeroU32::new(512).unwrap()).unwrap());
    let device = LazyDevice::new(null).unwrap();
    let mut front = Front::new(device.clone());
    for owed_before in [false, true] {
        if owed_before {
            let range = ByteRange::between(SIZE / 2, SIZE);
            let lazy = Op::WriteZeroes { range, may_unmap: true, lazy: true };
            for op in [lazy, Op::Flush] {
                front.batch.push_back(front.submitter.request(u64::MAX, op));
                front.turn_by(0, false);
                assert!(device.lazy_bytes() == SIZE / 2 || device.lazy_bytes() == 0);
            }
            assert_eq!(device.lazy_bytes(), 0);
        }
        for (depth, tried) in [(32, false), (1, false), (7, true)] {
            (0..100).for_each(|_| front.turn_by(depth, tried));
            let before = counting::of_this_thread();
            (0..2000).for_each(|_| front.turn_by(depth, tried));
            assert_eq!(counting::of_this_thread() - before, 0, "at depth {depth}, tried: {tried}");
        }
    }
}

/// A host on one core of a target that serves the null device.
struct Host {
    worker: Worker,
    pool: Rc<BufPool>,
    answers: Vec<Answer>,
}

impl Host {
    fn new() -> Self {
        let target = Target::new(Settings::default()).unwrap();
        let nqn = Nqn::new("nqn.2024-01.test:budget").unwrap();
        let subsystem = Subsystem::new(SubsystemOptions { nqn, serial: None });
        let device = Null::new("null", SIZE, NonZeroU32::new(512).unwrap()).unwrap();
        subsystem.add(Arc::new(device), NamespaceOptions::default()).unwrap();
        target.serve(subsystem).unwrap();
        let locks = Rc::new(LockDomain::new().attach(|| ()).unwrap());
        let pool = Rc::new(BufPool::new(64 << 20, 1 << 20).unwrap());
        let worker = Worker::new(target, locks, Waker::new(|| ()));
        Self { worker, pool, answers: Vec::new() }
    }

    fn run(&mut self, connection: ConnectionId, sqe: &Sqe, data: &[u8]) -> u64 {
        let sqe = sqe.with_sgl(Sgl::transport(data.len() as u32));
        self.worker.submit(CommandId { connection, slot: 0 }, &sqe, Buf::copy_of(data).unwrap());
        self.worker.poll(&mut self.answers);
        let answer = self.answers.pop().unwrap();
        assert!(answer.cqe.status.is_success(), "{}", answer.cqe.status);
        answer.cqe.result
    }

    /// An I/O queue.
    fn connect(&mut self) -> ConnectionId {
        let local = "127.0.0.1:4420".parse().unwrap();
        let (admin, io) = (self.worker.open(local).unwrap(), self.worker.open(local).unwrap());
        let entries = Count16::from_wire(127);
        let connect = |qid| {
            FabricsCommand::Connect(Connect { qid, entries, no_flow_control: true, keep_alive_ms: None })
        };
        let mut data = ConnectData {
            host_id: [1; 16],
            cntlid: CNTLID_DYNAMIC,
            subsystem: Nqn::new("nqn.2024-01.test:budget").unwrap(),
            host: Nqn::new("nqn.host").unwrap(),
        };
        let cntlid = self.run(admin, &connect(0).to_sqe(), &data.to_bytes());
        let value = Cc::for_host(Cc::CSS_NVM).with_enabled(true).0.into();
        let enable = FabricsCommand::PropertySet { width: Width::Four, offset: offset::CC, value };
        self.run(admin, &enable.to_sqe(), &[]);
        data.cntlid = cntlid as u16;
        self.run(io, &connect(1).to_sqe(), &data.to_bytes());
        io
    }

    /// `count` reads (every eighth a write) in one turn.
    fn turn(&mut self, connection: ConnectionId, count: u16) {
        self.worker.tick(std::time::Duration::ZERO, &mut Vec::new());
        for slot in 0..count {
            let extent = Extent::new(1, u64::from(slot) * 8, Blocks::new(8).unwrap());
            let write = slot.is_multiple_of(8);
            let command = if write { IoCommand::Write(extent) } else { IoCommand::Read(extent) };
            let sqe = command.to_sqe().with_sgl(Sgl::transport(LEN as u32));
            let data = self.pool.take(LEN as usize).unwrap();
            self.worker.submit(CommandId { connection, slot }, &sqe, data);
        }
        self.worker.poll(&mut self.answers);
        assert_eq!(self.answers.len(), usize::from(count));
        for answer in self.answers.drain(..) {
            assert!(answer.cqe.status.is_success());
            assert_eq!(answer.data.is_some(), !answer.id.slot.is_multiple_of(8));
        }
    }
}

#[test]
fn a_small_command_allocates_nothing() {
    let mut host = Host::new();
    let connection = host.connect();
    for depth in [32, 1, 7] {
        (0..100).for_each(|_| host.turn(connection, depth));
        let before = counting::of_this_thread();
        (0..2000).for_each(|_| host.turn(connection, depth));
        assert_eq!(counting::of_this_thread() - before, 0, "at depth {depth}");
    }
}

//! The budget of a small I/O on the hot path, held by counters: no allocation for a 4 KiB read or write through a null
//! device, its queue's counters and the range locks, nor for one sent to an NVMe/TCP target. Instructions: `examples/hot_path.rs`.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a failed unwrap is a failed test

use blkcopy::block::lock::{Claim, CoreLocks, LockDomain, LockedQueue};
use blkcopy::block::{Buf, ByteRange, Device, Identity, Op, Queue, Submitter};
use blkcopy::drivers::null::Null;
use blkcopy::drivers::nvme_tcp::{Namespace, Url};
use blkcopy::exports::nvme_tcp::{Options as ServerOptions, Server};
use blkcopy::nvme::Nqn;
use blkcopy::reactor::{EngineChoice, choose, enter};
use blkcopy::target::{NamespaceOptions, Settings, Subsystem, SubsystemOptions, Target};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;

const LEN: u64 = 4096;
const SIZE: u64 = 1 << 30;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting what this thread asks of it.
struct Counting;

// SAFETY: every call is handed to the system's allocator as it came; the counter is a plain number without a destructor,
// so touching it allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from `System` with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the memory came from `System` with this layout.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

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
        for _ in 0..count {
            let range = ByteRange::new(self.tag * LEN % SIZE, LEN).unwrap();
            let buf = self.free.pop().unwrap();
            let write = self.tag.is_multiple_of(8);
            let op = if write { Op::Write { range, buf, fua: false } } else { Op::Read { range, buf } };
            self.batch.push_back(self.submitter.request(self.tag, op));
            self.tag += 1;
        }
        self.locks.pump();
        self.queue.submit(&mut self.batch);
        self.queue.poll(&mut self.done);
        assert_eq!(self.done.len(), count);
        for done in self.done.drain(..) {
            done.result.unwrap();
            self.free.push(done.buf);
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
            let (before, io_before) = (allocations(), front.queue.counters().requests);
            (0..2000).for_each(|_| front.turn(depth));
            let ios = front.queue.counters().requests - io_before;
            assert_eq!(ios, 2000 * depth as u64, "each is counted");
            assert_eq!(allocations() - before, 0, "at depth {depth}, beside a copy: {beside_a_copy}");
        }
        if let Some(copy) = copy {
            front.locks.end_copy(copy);
        }
    }
    assert!(allocations() > 0, "the allocator counts");
}

/// Keeps `depth` reads (every eighth a write) in flight, spinning, until `count` have ended.
fn spin(queue: &mut dyn Queue, submitter: &Submitter, free: &mut Vec<Buf>, size: u64, count: u64) {
    let (mut batch, mut done) = (VecDeque::with_capacity(64), Vec::with_capacity(64));
    let (mut begun, mut ended, before) = (0, 0, allocations()); // behind the two lists

    while ended < count {
        while begun < count
            && let Some(buf) = free.pop()
        {
            let range = ByteRange::new(begun * LEN % size, LEN).unwrap();
            let write = begun % 8 == 0;
            let op = if write { Op::Write { range, buf, fua: false } } else { Op::Read { range, buf } };
            batch.push_back(submitter.request(begun, op));
            begun += 1;
        }
        queue.submit(&mut batch);
        queue.poll(&mut done);
        for one in done.drain(..) {
            one.result.unwrap();
            free.push(one.buf);
            ended += 1;
        }
    }
    if count > 1000 {
        assert_eq!(allocations() - before, 0, "in {count} operations");
    }
}

#[test]
fn a_small_io_over_nvme_tcp_allocates_nothing_at_the_host() {
    let backing = Arc::new(Null::new("null", SIZE, NonZeroU32::new(512).unwrap()).unwrap());
    let nqn = "nqn.2014-08.org.example:budget";
    let target = Target::new(Settings::default()).unwrap();
    let subsystem = Subsystem::new(SubsystemOptions { nqn: Nqn::new(nqn).unwrap(), serial: None });
    subsystem.add(backing, NamespaceOptions::default()).unwrap();
    target.serve(subsystem).unwrap();
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let server = Server::start(target, ServerOptions { listen, ..ServerOptions::default() }).unwrap();
    let url = format!("nvme-tcp://{}/{nqn}?nsid=1", server.addresses()[0]);
    for options in ["", "&hdgst&ddgst"] {
        let device = Namespace::open(&Url::parse(&format!("{url}{options}")).unwrap()).unwrap();
        let _entered = enter(choose(EngineChoice::Auto, true).unwrap().0);
        let mut queue = device.clone().open_queue().unwrap();
        let submitter = Submitter::default();
        for depth in [32, 1, 7] {
            let mut free: Vec<Buf> = (0..depth).map(|_| Buf::alloc(LEN as usize).unwrap()).collect();
            spin(&mut *queue, &submitter, &mut free, device.size(), 300);
            spin(&mut *queue, &submitter, &mut free, device.size(), 3000);
        }
    }
    server.stop();
}

//! What is owed reads as zero, what has been written shows, and nobody copies what is not stored.

use super::*;
use crate::block::device::LeafSpace;
use crate::block::lazy;
use crate::block::places::is_one_device;
use crate::block::request::Cancel;
use crate::block::{Buf, Completion, CopyRequest, LeafId, Method, Op, Submitter};
use crate::drivers::mem::Mem;
use crate::drivers::null::Null;
use crate::map::Linear;
use crate::sim::{CheckWrite, DelayDevice, ErrorDevice, Fault, FaultPlan, Ops, VolatileDisk};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::num::NonZeroU32;

const BLOCK: u64 = 512;
type Dev = Arc<dyn Device>;
type Wrap = (&'static str, fn(Dev) -> Dev);

fn mem_of(blocks: u64, block_size: u32) -> Arc<Mem> {
    let size = blocks * u64::from(block_size);
    Arc::new(Mem::new("mem", size, NonZeroU32::new(block_size).unwrap()).unwrap())
}

fn mem() -> Dev {
    mem_of(16, 512)
}

fn blank(inner: Dev) -> Arc<LazyDevice> {
    LazyDevice::with_lazy_min(inner, 1).unwrap()
}

fn at(block: u64, blocks: u64) -> ByteRange {
    ByteRange::new(block * BLOCK, blocks * BLOCK).unwrap()
}

/// A queue and its user.
struct User {
    queue: Box<dyn Queue>,
    submitter: Submitter,
    tag: u64,
    done: Vec<Completion>,
}

impl User {
    fn new(device: &Dev) -> Self {
        let queue = device.clone().open_queue().unwrap();
        Self { queue, submitter: Submitter::default(), tag: 0, done: Vec::new() }
    }

    fn submit(&mut self, op: Op) {
        self.tag += 1;
        let mut batch = VecDeque::from([self.submitter.request(self.tag, op)]);
        self.queue.submit(&mut batch);
        assert!(batch.is_empty());
    }

    fn wait(&mut self) -> Completion {
        for _ in 0..1000 {
            self.queue.poll(&mut self.done);
            if let Some(done) = self.done.pop() {
                assert!(self.done.is_empty());
                return done;
            }
        }
        panic!("it hangs");
    }

    fn run(&mut self, op: Op) -> Completion {
        self.submit(op);
        self.wait()
    }

    fn read(&mut self, range: ByteRange) -> Vec<u8> {
        let buf = Buf::alloc(range.len() as usize).unwrap();
        let done = self.run(Op::Read { range, buf });
        done.result.unwrap();
        done.buf.to_vec()
    }
}

fn write(range: ByteRange, byte: u8) -> Op {
    let mut buf = Buf::alloc(range.len() as usize).unwrap();
    buf.fill(byte);
    Op::Write { range, buf, fua: false }
}

fn zero(range: ByteRange, lazy: bool) -> Op {
    Op::WriteZeroes { range, may_unmap: true, lazy }
}

fn copy(source: Dev, from: ByteRange, dest: ByteRange, method: Method) -> Op {
    let sources = smallvec::smallvec![from];
    Op::Copy(Box::new(CopyRequest {
        method,
        source,
        sources,
        dest,
        fua: false,
        must: None,
        cancel: Cancel::default(),
    }))
}

/// The first byte of each block.
fn look(user: &mut User, range: ByteRange) -> Vec<u8> {
    user.read(range).chunks(BLOCK as usize).map(|block| block[0]).collect()
}

/// A device full of 7, its list, and users of both.
fn full() -> (Arc<LazyDevice>, User, User) {
    let inner = mem();
    let list = blank(inner.clone());
    let mut below = User::new(&inner);
    below.run(write(at(0, 16), 7)).result.unwrap();
    let user = User::new(&(list.clone() as Dev));
    (list, user, below)
}

#[test]
fn lazy_zeroes_are_owed_and_read_as_zero() {
    let (list, mut user, mut below) = full();
    assert!(!lazy::any(&*list) && list.copy_paths()[0].carries_holes);
    let generation = list.generation();
    assert_eq!(generation, list.inner().generation());
    user.run(zero(at(4, 8), true)).result.unwrap();
    assert_eq!(list.lazy_bytes(), 8 * BLOCK);
    assert_ne!(list.generation(), generation);
    assert_eq!(look(&mut below, at(0, 16)), [7; 16], "nothing is stored yet");
    assert_eq!(look(&mut user, at(3, 10)), [7, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(look(&mut user, at(4, 8)), [0; 8]);
    let extents = [(3, 10, 1, Content::Data), (4, 10, 8, Content::Hole), (12, 4, 4, Content::Data)];
    for (first, blocks, run, content) in extents {
        let extent = list.next_extent(at(first, blocks)).unwrap();
        assert_eq!(extent, Extent { len: run * BLOCK, content }, "at {first}");
    }
    assert!(lazy::any(&*list) && !list.copy_paths()[0].carries_holes);
    assert_eq!(lazy::within(&*list, at(6, 10)), [at(6, 6)]);
    assert!(
        lazy::reads_as_stored(&(list.clone() as Arc<dyn Device>), at(0, 4))
            && !lazy::reads_as_stored(&(list.clone() as Arc<dyn Device>), at(3, 2))
    );
    assert_eq!(list.next_extent(at(12, 5)).unwrap_err().kind(), Kind::OutOfRange);
    // A flush of the bare queue stores nothing.
    user.run(Op::Flush).result.unwrap();
    assert_eq!(list.lazy_bytes(), 8 * BLOCK);
}

#[test]
fn short_and_wrong_lazy_zeroes_go_to_the_device() {
    let inner = mem();
    let list = LazyDevice::with_lazy_min(inner.clone(), 4 * BLOCK).unwrap();
    let mut user = User::new(&(list.clone() as Dev));
    user.run(write(at(0, 16), 7)).result.unwrap();
    user.run(zero(at(0, 3), true)).result.unwrap();
    assert_eq!((list.lazy_bytes(), look(&mut User::new(&inner), at(0, 4))), (0, vec![0, 0, 0, 7]));
    for wrong in [at(13, 4), ByteRange::between(1, 4 * BLOCK + 1)] {
        assert!(user.run(zero(wrong, true)).result.is_err());
    }
    assert_eq!(list.lazy_bytes(), 0);
    user.run(zero(at(0, 4), true)).result.unwrap();
    assert_eq!(list.lazy_bytes(), 4 * BLOCK);
    // Also where something is owed a wrong request is answered by the device.
    let buf = Buf::alloc(100).unwrap();
    assert!(user.run(Op::Read { range: ByteRange::to(100), buf }).result.is_err());
    let legs: [Dev; 2] = [mem(), mem()];
    let map = Arc::new(Linear::new("linear", legs).unwrap());
    assert_eq!(LazyDevice::new(map).err().unwrap().kind(), Kind::InvalidInput);
}

#[test]
fn what_was_written_is_owed_no_more_and_what_was_discarded_is() {
    let (list, mut user, mut below) = full();
    user.run(zero(at(0, 16), true)).result.unwrap();
    user.run(write(at(1, 1), 9)).result.unwrap();
    user.run(zero(at(3, 1), false)).result.unwrap();
    let other = mem();
    User::new(&other).run(write(at(0, 16), 5)).result.unwrap();
    user.run(copy(other, at(0, 1), at(5, 1), Method::Memory)).result.unwrap();
    user.run(Op::Discard { range: at(7, 1) }).result.unwrap();
    assert_eq!(look(&mut user, at(0, 8)), [0, 9, 0, 0, 0, 5, 0, 0]);
    let owed: Vec<_> =
        lazy::within(&*list, at(0, 8)).iter().map(|r| (r.offset() / BLOCK, r.end() / BLOCK)).collect();
    assert_eq!(owed, [(0, 1), (2, 3), (4, 5), (6, 8)]);
    assert_eq!(look(&mut below, at(0, 8)), [7, 9, 7, 0, 7, 5, 7, 0]);
}

//= promise 5
#[test]
fn of_a_failed_write_the_good_prefix_shows() {
    let plan = FaultPlan::none();
    let list = blank(Arc::new(ErrorDevice::new(mem(), plan.clone())));
    let mut user = User::new(&(list.clone() as Dev));
    user.run(zero(at(0, 16), true)).result.unwrap();
    for op in [write(at(0, 8), 9), copy(mem(), at(0, 8), at(0, 8), Method::Memory), zero(at(0, 8), false)] {
        plan.arm(Fault { good_bytes: 3 * BLOCK, ..Fault::nth(1) });
        let done = user.run(op);
        assert_eq!((done.result.unwrap_err().kind(), done.good_bytes), (Kind::Io, 3 * BLOCK));
        plan.disarm();
        assert_eq!(lazy::within(&*list, at(0, 16)), [at(3, 13)]);
        user.run(zero(at(0, 16), true)).result.unwrap();
    }
    // A read that fails where nothing of its bytes comes from is none.
    user.run(write(at(0, 2), 9)).result.unwrap();
    plan.arm(Fault { good_bytes: 2 * BLOCK, ..Fault::nth(1) });
    assert_eq!(look(&mut user, at(0, 4)), [9, 9, 0, 0]);
    plan.arm(Fault { good_bytes: BLOCK, ..Fault::nth(1) });
    let done = user.run(Op::Read { range: at(0, 4), buf: Buf::alloc(2048).unwrap() });
    assert_eq!((done.result.is_err(), done.good_bytes), (true, BLOCK));
}

#[test]
fn compares_see_what_reads_see() {
    let (_, mut user, _) = full();
    user.run(zero(at(4, 4), true)).result.unwrap();
    let mut bytes = user.read(at(0, 16));
    let expect = |bytes: &[u8]| Op::Compare { range: at(0, 16), buf: Buf::copy_of(bytes).unwrap() };
    let done = user.run(expect(&bytes));
    assert!(done.result.is_ok() && done.buf[..] == bytes[..] && done.good_bytes == 16 * BLOCK);
    for wrong in [0, 4 * 512, 4 * 512 + 5, 8 * 512 - 1, 8 * 512, 16 * 512 - 1] {
        bytes[wrong] ^= 1;
        let done = user.run(expect(&bytes));
        assert_eq!((done.result.unwrap_err().kind(), done.good_bytes), (Kind::Mismatch, wrong as u64));
        assert!(done.buf[..] == bytes[..], "the buffer comes back as it was");
        bytes[wrong] ^= 1;
    }
    let inside = |byte| Op::Compare { range: at(5, 1), buf: Buf::copy_of(&[byte; 512]).unwrap() };
    assert!(user.run(inside(0)).result.is_ok() && user.run(inside(7)).result.is_err());
}

/// The memory device writes when a request comes in; its completion comes when it is polled.
//= promise 1
#[test]
fn a_write_in_flight_shows_at_once_or_when_it_ends_but_never_comes_back() {
    let (list, mut user, _) = full();
    let mut other = User::new(&(list.clone() as Dev));
    // LazyList before: it shows when it ends, all at once.
    other.run(zero(at(0, 4), true)).result.unwrap();
    user.submit(write(at(2, 4), 9));
    assert_eq!(look(&mut other, at(0, 4)), [0; 4]);
    user.wait().result.unwrap();
    assert_eq!(look(&mut other, at(0, 6)), [0, 0, 9, 9, 9, 9]);
    // LazyList while it was in flight: it may have been seen, so the zeroes came after it. LazyList again: the same.
    for before in [false, true] {
        if before {
            other.run(zero(at(8, 4), true)).result.unwrap();
        }
        user.submit(write(at(8, 4), 9));
        other.run(zero(at(8, 2), true)).result.unwrap();
        user.wait().result.unwrap();
        assert_eq!(look(&mut other, at(8, 4)), [0, 0, 9, 9], "zeroes before: {before}");
        user.run(write(at(8, 4), 7)).result.unwrap();
    }
}

#[test]
fn a_view_hears_of_what_its_queues_changed_before_the_completion() {
    let plan = FaultPlan::none();
    let list = blank(Arc::new(ErrorDevice::new(mem(), plan.clone())));
    let heard: Arc<Mutex<Vec<ByteRange>>> = Arc::default();
    let (into, seen) = (heard.clone(), Arc::downgrade(&list));
    let view = list.told(move |range| {
        // What it hears of is there: reads of others see it.
        assert!(seen.upgrade().is_some());
        into.lock().unwrap().push(range);
    });
    let mut user = User::new(&(view.clone() as Dev));
    let take = || std::mem::take(&mut *heard.lock().unwrap());
    user.run(zero(at(0, 8), true)).result.unwrap();
    assert_eq!(take(), [at(0, 8)]);
    user.submit(write(at(1, 1), 9));
    assert_eq!(look(&mut User::new(&(list.clone() as Dev)), at(1, 1)), [0]);
    user.wait().result.unwrap();
    assert_eq!((take(), list.lazy_bytes()), (vec![at(1, 1)], 7 * BLOCK));
    user.run(zero(at(2, 1), false)).result.unwrap();
    user.run(Op::Discard { range: at(3, 1) }).result.unwrap();
    user.run(copy(mem(), at(0, 1), at(4, 1), Method::Memory)).result.unwrap();
    user.run(Op::Read { range: at(0, 1), buf: Buf::alloc(512).unwrap() }).result.unwrap();
    user.run(Op::Flush).result.unwrap();
    assert_eq!(take(), [at(2, 1), at(3, 1), at(4, 1)]);
    plan.arm(Fault { ops: Ops::WRITE, good_bytes: BLOCK, ..Fault::nth(1) });
    assert!(user.run(write(at(8, 4), 9)).result.is_err());
    assert!(user.run(write(at(14, 4), 9)).result.is_err(), "past the end");
    assert_eq!(take(), [at(8, 4)]);
    User::new(&(list.clone() as Dev)).run(write(at(0, 1), 1)).result.unwrap();
    assert!(take().is_empty());
    let mut leaves = Vec::new();
    leaves.extend(lazy::leaves(&(view.clone() as Arc<dyn Device>)));
    assert!(std::ptr::addr_eq(Arc::as_ptr(&leaves[0]), Arc::as_ptr(&list)), "settling changes nothing");
}

/// A memory device that names itself as namespaces do.
struct Named(Arc<Mem>);

impl Device for Named {
    fn name(&self) -> &str {
        "named"
    }
    fn identity(&self) -> Identity {
        Identity::Leaf { leaf: LeafId { space: LeafSpace::Namespace, id: (1, 2) }, base: 0 }
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
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        self.0.clone().open_queue()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

//= promise 5
#[test]
fn two_views_are_one_device_and_two_clones_are_not() {
    let one = blank(Arc::new(Named(mem_of(16, 512))));
    let view = one.told(|_| ());
    assert!(is_one_device(&(one.clone() as Dev), &(view.clone() as Dev)).unwrap());
    assert!(is_one_device(&(view as Dev), one.inner()).unwrap());
    let clone = blank(Arc::new(Named(mem_of(16, 512))));
    assert_eq!(is_one_device(&(one as Dev), &(clone as Dev)).unwrap_err().kind(), Kind::Overlap);
    let (a, b) = (blank(mem()), blank(mem()));
    assert!(!is_one_device(&(a.clone() as Dev), &(b as Dev)).unwrap());
    assert!(is_one_device(&(a.clone() as Dev), &(a.told(|_| ()) as Dev)).unwrap());
}

#[test]
fn one_list_is_enough() {
    let list: Dev = blank(mem());
    assert_eq!(LazyDevice::new(list.clone()).err().unwrap().kind(), Kind::InvalidInput);
    let view: Dev = Arc::new(ErrorDevice::new(list, FaultPlan::none()));
    assert_eq!(LazyDevice::new(view).err().unwrap().kind(), Kind::InvalidInput);
}

//= promise 1
#[test]
fn no_device_copies_from_what_is_owed() {
    let volatile =
        || Arc::new(VolatileDisk::new("disk", 16 * BLOCK, NonZeroU32::new(512).unwrap()).unwrap()) as Dev;
    let null = || Arc::new(Null::new("null", 16 * BLOCK, NonZeroU32::new(512).unwrap()).unwrap()) as Dev;
    let wraps: [Wrap; 6] = [
        ("plain", |d| d),
        ("blank", |d| blank(d)),
        ("error", |d| Arc::new(ErrorDevice::new(d, FaultPlan::none()))),
        ("delay", |d| Arc::new(DelayDevice::new(d, 1, 2))),
        ("check", |d| Arc::new(CheckWrite::with(d, |_, out| out.fill(7)))),
        ("blank over error", |d| blank(Arc::new(ErrorDevice::new(d, FaultPlan::none())))),
    ];
    for (method, make) in
        [(Method::Memory, mem as fn() -> Dev), (Method::Memory, volatile), (Method::Null, null)]
    {
        for (inner_name, inner) in wraps.into_iter().filter(|(name, _)| !name.starts_with("blank")) {
            for (dest_name, wrap) in wraps {
                let inside = make();
                User::new(&inside).run(write(at(0, 16), 7)).result.unwrap();
                let source: Dev = blank(inner(inside));
                User::new(&source).run(zero(at(4, 4), true)).result.unwrap();
                let mut dest = User::new(&wrap(make()));
                for (from, owed) in [(at(0, 4), false), (at(3, 2), true), (at(4, 1), true), (at(7, 2), true)]
                {
                    let done = dest.run(copy(source.clone(), from, at(0, from.len() / BLOCK), method));
                    let what = format!("{inner_name} to {dest_name} by {method}, {from}");
                    if owed {
                        assert_eq!(done.result.unwrap_err().kind(), Kind::Unsupported, "{what}");
                        assert_eq!(done.good_bytes, 0, "{what}");
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// The bare queue, several requests in flight that do not touch each other, on blocks of one byte and of 512.
    //= promise 1
    #[test]
    fn any_mix_equals_a_flat_array(
        block in prop_oneof![Just(1u32), Just(512)],
        delayed in any::<bool>(),
        told in any::<bool>(),
        steps in prop::collection::vec((0u8..8, 0u64..16, 0u64..9, 0u64..16, any::<u8>()), 1..50),
    ) {
        let inner = mem_of(16, block);
        let plain = inner.clone() as Dev;
        let slow = if delayed { Arc::new(DelayDevice::new(plain.clone(), 5, 3)) as Dev } else { plain };
        let list = blank(slow);
        let device = if told { list.told(|_| ()) } else { list.clone() } as Dev;
        let other = mem_of(16, block) as Dev;
        let (mut user, mut beside) = (User::new(&device), User::new(&other));
        let unit = u64::from(block);
        let place = |at: u64, len: u64| ByteRange::new(at * unit, len.min(16 - at) * unit).unwrap();
        let slice = |r: ByteRange| r.offset() as usize..r.end() as usize;
        let (mut flat, mut flat_other) = (vec![0u8; 16 * unit as usize], vec![0u8; 16 * unit as usize]);
        for (kind, first, len, to, byte) in steps {
            let range = place(first, len);
            match kind {
                0 => {
                    user.run(write(range, byte)).result.unwrap();
                    flat[slice(range)].fill(byte);
                }
                1 | 2 => {
                    user.run(zero(range, kind == 1)).result.unwrap();
                    flat[slice(range)].fill(0);
                }
                3 => {
                    let bytes = &flat[slice(range)];
                    let done = user.run(Op::Compare { range, buf: Buf::copy_of(bytes).unwrap() });
                    done.result.unwrap();
                }
                4 => user.run(Op::Flush).result.unwrap(),
                5 => {
                    beside.run(write(range, byte)).result.unwrap();
                    flat_other[slice(range)].fill(byte);
                    user.run(copy(other.clone(), range, range, Method::Memory)).result.unwrap();
                    flat[slice(range)].fill(byte);
                }
                _ => {
                    // Out, or within where that does not overlap; what is refused is owed.
                    let n = range.len().min((16 - to) * unit);
                    let (from, dest) = (range.prefix(n), ByteRange::new(to * unit, n).unwrap());
                    let within = kind == 6 && !from.overlaps(dest);
                    let op = copy(device.clone(), from, dest, Method::Memory);
                    let stored = lazy::reads_as_stored(&(list.clone() as Arc<dyn Device>), from);
                    let done = if within { user.run(op) } else { beside.run(op) };
                    // Behind the delay there is no memory device to be found.
                    let done_well = done.result.is_ok();
                    prop_assert!(!done_well || stored || n == 0, "copied what is owed");
                    prop_assert!(done_well || !stored || delayed);
                    if done_well {
                        let bytes = flat[slice(from)].to_vec();
                        let into = if within { &mut flat } else { &mut flat_other };
                        into[slice(dest)].copy_from_slice(&bytes);
                    }
                }
            }
            prop_assert!(user.read(ByteRange::to(16 * unit)) == flat);
        }
        prop_assert!(beside.read(ByteRange::to(16 * unit)) == flat_other);
    }
}

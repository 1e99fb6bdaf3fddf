//! Stacks of devices, and a model of them: for each block, what it may hold.

#![allow(dead_code)] // each test binary uses its part
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // small numbers; a failed unwrap is a failed test

use blkcopy::block::lock::{CoreLocks, LockDomain, LockedQueue};
use blkcopy::block::{
    Access, Buf, BufPool, ByteRange, Completion, Device, Kind, Op, Queue, Request, Submitter,
};
use blkcopy::copy::run::{Options, Progress, copy};
use blkcopy::copy::{Job, Offload, Policy, Segment};
use blkcopy::drivers::mem::Mem;
use blkcopy::map::{Linear, Mirror, Stripe};
use blkcopy::reactor::local::Local;
use blkcopy::reactor::sim::Sim;
use blkcopy::sim::{DelayDevice, ErrorDevice, Fault, FaultPlan, Ops, Rng, VolatileDisk};
use proptest::prelude::*;
use std::collections::{HashMap, VecDeque};
use std::num::{NonZeroU32, NonZeroU64};
use std::rc::Rc;
use std::sync::Arc;

pub(crate) const BLOCK: u64 = 512;
/// Two blocks: regions have insides and edges.
pub(crate) const REGION: NonZeroU64 = NonZeroU64::new(2 * BLOCK).unwrap();
const BLOCK_SIZE: NonZeroU32 = NonZeroU32::new(512).unwrap();
/// Polls after which something hangs.
const PATIENCE: usize = 100_000;

pub(crate) type Dev = Arc<dyn Device>;

pub(crate) fn mem(blocks: u64) -> Arc<Mem> {
    Arc::new(Mem::new("mem", blocks * BLOCK, BLOCK_SIZE).unwrap())
}

pub(crate) fn volatile(blocks: u64) -> Arc<VolatileDisk> {
    Arc::new(VolatileDisk::new("disk", blocks * BLOCK, BLOCK_SIZE).unwrap())
}

pub(crate) fn plan(nth: u64, forever: bool, good_bytes: u64) -> Arc<FaultPlan> {
    FaultPlan::new(Fault { ops: Ops::ALL, nth, forever, kind: Kind::Io, good_bytes })
}

pub(crate) fn faulty(inner: Dev, plan: &Arc<FaultPlan>) -> Dev {
    Arc::new(ErrorDevice::new(inner, plan.clone()))
}

/// How a device is made of others.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Leaf,
    /// The number says where the borders are.
    Linear(u64, Vec<Shape>),
    Mirror(Vec<Shape>),
    /// The number says how long a chunk is.
    Stripe(u64, Vec<Shape>),
    Delay(u64, Box<Shape>),
}

/// The largest number up to `most` that divides `n`.
fn divisor(n: u64, most: u64) -> u64 {
    (1..=most.min(n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1)
}

impl Shape {
    /// `m`: a leaf, `L(a,b,..)`: linear, `M(a,..)`: mirror, `S(a,..)`: stripe, `d(a)`: delayed.
    pub(crate) fn parse(text: &str) -> Self {
        fn one(text: &mut &[u8]) -> Shape {
            let kind = text[0];
            *text = &text[1..];
            if kind == b'm' {
                return Shape::Leaf;
            }
            let mut legs = Vec::new();
            while text[0] != b')' {
                *text = &text[1..];
                legs.push(one(text));
            }
            *text = &text[1..];
            match kind {
                b'd' => Shape::Delay(7, legs.remove(0).into()),
                b'L' => Shape::Linear(4, legs),
                b'S' => Shape::Stripe(3, legs),
                _ => Shape::Mirror(legs),
            }
        }
        one(&mut text.as_bytes())
    }

    pub(crate) fn build(&self, blocks: u64, leaf: &mut dyn FnMut(u64) -> Dev) -> Dev {
        match self {
            Self::Leaf => leaf(blocks),
            Self::Linear(cut, legs) => {
                // Each leg has a block at least.
                let count = blocks.min(legs.len() as u64);
                let mut left = blocks;
                let mut built = Vec::new();
                for (leg, after) in legs.iter().zip((0..count).rev()) {
                    let here = if after == 0 { left } else { 1 + cut % (left - after) };
                    built.push(leg.build(here, leaf));
                    left -= here;
                }
                Arc::new(Linear::new("linear", built).unwrap())
            }
            Self::Mirror(legs) => {
                let legs: Vec<Dev> = legs.iter().map(|leg| leg.build(blocks, leaf)).collect();
                Arc::new(Mirror::new("mirror", legs, REGION).unwrap())
            }
            Self::Stripe(chunk, legs) => {
                // As many legs and as long chunks as fill the device.
                let count = divisor(blocks, legs.len() as u64);
                let chunk = divisor(blocks / count, 1 + chunk % 5);
                let used = legs.iter().take(usize::try_from(count).unwrap());
                let legs: Vec<Dev> = used.map(|leg| leg.build(blocks / count, leaf)).collect();
                Arc::new(Stripe::new("stripe", legs, NonZeroU64::new(chunk * BLOCK).unwrap()).unwrap())
            }
            Self::Delay(seed, a) => Arc::new(DelayDevice::new(a.build(blocks, leaf), *seed, 5)),
        }
    }
}

pub(crate) fn shape() -> impl Strategy<Value = Shape> {
    Just(Shape::Leaf).prop_recursive(3, 12, 4, |inner| {
        let legs = |most: usize| proptest::collection::vec(inner.clone(), 1..=most);
        prop_oneof![
            (any::<u16>(), legs(4)).prop_map(|(cut, legs)| Shape::Linear(cut.into(), legs)),
            legs(3).prop_map(Shape::Mirror),
            (any::<u16>(), legs(4)).prop_map(|(chunk, legs)| Shape::Stripe(chunk.into(), legs)),
            (any::<u64>(), inner).prop_map(|(seed, a)| Shape::Delay(seed, a.into())),
        ]
    })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Read,
    Write,
    WriteFua,
    Zero,
    /// Zeroes that may be owed.
    ZeroLazy,
    Discard,
    Compare,
    Flush,
    Copy,
}

/// One operation of a script, its numbers cut to fit whatever device it meets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) kind: What,
    pub(crate) device: usize,
    pub(crate) at: u64,
    pub(crate) len: u64,
    /// For a copy: where it goes on the other device; for a compare: whether to differ.
    pub(crate) other: u64,
}

fn kind(n: u64) -> What {
    use What::*;
    [Read, Read, Write, Write, Write, WriteFua, Zero, Discard, Compare, Flush, Copy, Copy][(n % 12) as usize]
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    (0u64..12, 0usize..2, 0u64..40, 0u64..12, 0u64..40).prop_map(|(k, device, at, len, other)| Step {
        kind: kind(k),
        device,
        at,
        len,
        other,
    })
}

pub(crate) fn script(seed: u64, steps: usize) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    (0..steps)
        .map(|_| Step {
            kind: kind(rng.below(12)),
            device: rng.index(2),
            at: rng.below(16),
            len: 1 + rng.below(8),
            other: rng.below(16),
        })
        .collect()
}

/// Bytes of a block numbered `id`: every word says which block and where in it; 0 is all zero.
fn fill(id: u64, out: &mut [u8]) {
    for (i, word) in out.chunks_exact_mut(8).enumerate() {
        let value = if id == 0 { 0 } else { id ^ ((i as u64) << 48) };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

fn id_of(block: &[u8]) -> u64 {
    let id = u64::from_le_bytes(block[..8].try_into().unwrap());
    let mut whole = vec![0; block.len()];
    fill(id, &mut whole);
    assert!(whole == block, "a torn block, begun as {id}");
    id
}

/// What each block may hold: one id when certain, several after a failed write, `None` after a discard.
#[derive(Clone)]
pub(crate) struct Model {
    now: Vec<Option<Vec<u64>>>,
    /// The same, were the power cut now.
    cut: Vec<Vec<u64>>,
}

impl Model {
    fn new(blocks: u64) -> Self {
        Self { now: vec![Some(vec![0]); blocks as usize], cut: vec![vec![0]; blocks as usize] }
    }

    fn wrote(&mut self, at: usize, id: Option<u64>, durable: bool) {
        self.now[at] = id.map(|id| vec![id]);
        if durable {
            self.cut[at].clear();
        }
        self.cut[at].extend(id);
    }

    fn maybe(&mut self, at: usize, id: Option<u64>) {
        let held = self.now[at].take();
        self.now[at] = held.zip(id).map(|(mut held, id)| {
            held.push(id);
            held
        });
        self.cut[at].extend(id);
    }

    /// A block was read: what it may hold and did not is ruled out from now on.
    fn saw(&mut self, at: usize, block: &[u8]) {
        if let Some(may) = &mut self.now[at] {
            let id = id_of(block);
            assert!(may.contains(&id), "block {at} holds {id}, expected one of {may:?}");
            *may = vec![id];
        }
    }

    fn certain(&self, at: usize) -> Option<u64> {
        self.now[at].as_ref().filter(|may| may.len() == 1).map(|may| may[0])
    }
}

/// Two devices (or one twice), their models, and the buffers all of which must come back.
pub(crate) struct Rig {
    devices: [Dev; 2],
    models: Vec<Model>,
    queues: [Box<dyn Queue>; 2],
    submitter: Submitter,
    pool: BufPool,
    local: Local,
    next_id: u64,
    next_tag: u64,
    /// Errors are to be expected.
    pub(crate) faults: bool,
    /// Its queues hold range locks of this core, and store what is owed before they flush.
    locks: Option<Rc<CoreLocks>>,
}

/// An operation in flight.
struct Flying {
    what: What,
    device: usize,
    first: usize,
    blocks: usize,
    /// Ids written, from this one up.
    id: u64,
    /// A compare that must fail at this byte.
    differs_at: Option<u64>,
}

impl Rig {
    pub(crate) fn new(devices: [Dev; 2], same: bool) -> Self {
        let models = devices.iter().take(if same { 1 } else { 2 }).map(|d| Model::new(d.size() / BLOCK));
        Self {
            models: models.collect(),
            local: Local::new(Rc::new(Sim::new(1))),
            queues: [devices[0].clone().open_queue().unwrap(), devices[1].clone().open_queue().unwrap()],
            devices,
            submitter: Submitter::default(),
            pool: BufPool::new(1 << 20, 32 << 10).unwrap(),
            next_id: 1,
            next_tag: 0,
            faults: false,
            locks: None,
        }
    }

    /// The same on queues that hold range locks, as front ends have them.
    pub(crate) fn locked(devices: [Dev; 2], same: bool) -> Self {
        let mut rig = Self::new(devices, same);
        rig.locks = Some(Rc::new(LockDomain::new().attach(|| ()).unwrap()));
        rig.open();
        rig
    }

    fn open(&mut self) {
        self.queues = [0, 1].map(|i| {
            let device = self.devices[i].clone();
            match &self.locks {
                Some(locks) => Box::new(LockedQueue::open(device, locks.clone()).unwrap()) as Box<dyn Queue>,
                None => device.open_queue().unwrap(),
            }
        });
    }

    /// After a power cut: the same storage made into devices anew, which remember nothing.
    pub(crate) fn restart(&mut self, devices: [Dev; 2]) {
        self.devices = devices;
        self.open();
        self.after_power_cut();
    }

    fn model_no(&self, device: usize) -> usize {
        device.min(self.models.len() - 1)
    }

    /// Runs the steps, several at once where they do not touch what another writes.
    pub(crate) fn run(&mut self, steps: &[Step]) {
        let mut batch: Vec<(Flying, Op)> = Vec::new();
        for step in steps {
            if matches!(step.kind, What::Copy | What::Flush) {
                self.fly(std::mem::take(&mut batch));
                if step.kind == What::Copy {
                    self.copy(step);
                } else {
                    self.plain(step, &mut batch);
                    self.fly(std::mem::take(&mut batch));
                }
                continue;
            }
            let (model, range) = (self.model_no(step.device), self.range(step));
            let conflict = batch.iter().any(|(flying, op)| {
                self.model_no(flying.device) == model && op.range().is_some_and(|r| r.overlaps(range))
            });
            if conflict || batch.len() == 6 {
                self.fly(std::mem::take(&mut batch));
            }
            self.plain(step, &mut batch);
        }
        self.fly(batch);
    }

    fn range(&self, step: &Step) -> ByteRange {
        let blocks = self.devices[step.device].size() / BLOCK;
        let at = step.at % blocks;
        ByteRange::new(at * BLOCK, step.len.min(blocks - at) * BLOCK).unwrap()
    }

    fn buf(&self, len: u64) -> Buf {
        if len == 0 { Buf::default() } else { self.pool.take(len as usize).expect("a buffer was leaked") }
    }

    fn plain(&mut self, step: &Step, batch: &mut Vec<(Flying, Op)>) {
        let range = self.range(step);
        let (first, blocks) = ((range.offset() / BLOCK) as usize, (range.len() / BLOCK) as usize);
        let mut flying = Flying {
            what: step.kind,
            device: step.device,
            first,
            blocks,
            id: self.next_id,
            differs_at: None,
        };
        let model = &self.models[self.model_no(step.device)];
        let op = match step.kind {
            What::Read => Op::Read { range, buf: self.buf(range.len()) },
            What::Write | What::WriteFua => {
                let mut buf = self.buf(range.len());
                for (i, block) in buf.chunks_exact_mut(BLOCK as usize).enumerate() {
                    fill(flying.id + i as u64, block);
                }
                self.next_id += blocks as u64;
                Op::Write { range, buf, fua: step.kind == What::WriteFua }
            }
            What::Zero | What::ZeroLazy => {
                let lazy = step.kind == What::ZeroLazy;
                Op::WriteZeroes { range, may_unmap: step.other.is_multiple_of(2), lazy }
            }
            What::Discard => Op::Discard { range },
            What::Compare => {
                let held: Option<Vec<u64>> = (first..first + blocks).map(|b| model.certain(b)).collect();
                let mut buf = self.buf(range.len());
                if let Some(ids) = held {
                    for (id, block) in ids.iter().zip(buf.chunks_exact_mut(BLOCK as usize)) {
                        fill(*id, block);
                    }
                    if step.other % 2 == 1 && !buf.is_empty() {
                        let at = (step.other * 331) % range.len();
                        buf[at as usize] ^= 1;
                        flying.differs_at = Some(at);
                    }
                    Op::Compare { range, buf }
                } else {
                    flying.what = What::Read;
                    Op::Read { range, buf }
                }
            }
            What::Flush => Op::Flush,
            What::Copy => unreachable!("not a plain operation"),
        };
        batch.push((flying, op));
    }

    /// Submits all at once and waits for each to complete exactly once.
    fn fly(&mut self, batch: Vec<(Flying, Op)>) {
        let mut in_flight: HashMap<u64, Flying> = HashMap::new();
        let mut to_submit: [VecDeque<Request>; 2] = Default::default();
        for (flying, op) in batch {
            let tag = self.next_tag;
            self.next_tag += 1;
            to_submit[flying.device].push_back(self.submitter.request(tag, op));
            in_flight.insert(tag, flying);
        }
        let mut done = Vec::new();
        let mut polls_after = 0;
        for turn in 0.. {
            assert!(turn < PATIENCE, "{} operations hang", in_flight.len());
            if let Some(locks) = &self.locks {
                locks.pump();
            }
            for (queue, batch) in self.queues.iter_mut().zip(&mut to_submit) {
                queue.submit(batch);
                queue.poll(&mut done);
            }
            for completion in done.drain(..) {
                let flying = in_flight.remove(&completion.tag).expect("a request completed twice");
                self.check(&flying, completion);
            }
            if in_flight.is_empty() {
                polls_after += 1;
                if polls_after > 12 {
                    break;
                }
            }
        }
        let mut aborted = Vec::new();
        self.submitter.take_aborted(&mut aborted);
        assert!(aborted.is_empty(), "dropped: {aborted:?}");
    }

    fn check(&mut self, flying: &Flying, done: Completion) {
        let len = flying.blocks as u64 * BLOCK;
        let carries = matches!(flying.what, What::Read | What::Write | What::WriteFua | What::Compare);
        assert_eq!(done.buf.len() as u64, if carries { len } else { 0 }, "the buffer did not come back");
        if flying.what == What::Compare
            && let Some(at) = flying.differs_at
            && let Err(error) = &done.result
            && error.kind() == Kind::Mismatch
        {
            assert_eq!(done.good_bytes, at, "the bytes differ elsewhere");
            return;
        }
        let good = match &done.result {
            Ok(()) => {
                assert!(flying.differs_at.is_none(), "different bytes compared equal");
                let all = if flying.what == What::Flush { 0 } else { len };
                assert_eq!(done.good_bytes, all, "done, but not all of it");
                flying.blocks
            }
            Err(error) => {
                assert!(self.faults && error.kind() == Kind::Io, "{:?}: {error:?}", flying.what);
                assert!(done.good_bytes.is_multiple_of(BLOCK));
                (done.good_bytes / BLOCK) as usize
            }
        };
        assert!(good <= flying.blocks);
        let model_no = self.model_no(flying.device);
        let model = &mut self.models[model_no];
        for i in 0..flying.blocks {
            let at = flying.first + i;
            let new = match flying.what {
                What::Write | What::WriteFua => Some(flying.id + i as u64),
                What::Zero | What::ZeroLazy => Some(0),
                What::Discard => None,
                What::Read if i < good => {
                    model.saw(at, &done.buf[i * BLOCK as usize..][..BLOCK as usize]);
                    continue;
                }
                _ => continue,
            };
            if i < good {
                model.wrote(at, new, flying.what == What::WriteFua && done.result.is_ok());
            } else {
                model.maybe(at, new);
            }
        }
        if flying.what == What::Flush && done.result.is_ok() {
            // Both names are one device when there is one model.
            for (cut, now) in model.cut.iter_mut().zip(&model.now) {
                *cut = now.clone().unwrap_or_default();
            }
        }
    }

    fn copy(&mut self, step: &Step) {
        let (from, to) = (step.device, 1 - step.device);
        let sizes = [self.devices[from].size() / BLOCK, self.devices[to].size() / BLOCK];
        let (at, dest) = (step.at % sizes[0], step.other % sizes[1]);
        let len = step.len.min(sizes[0] - at).min(sizes[1] - dest);
        let source_model = self.model_no(from);
        let uncertain = |rig: &Self| {
            (at..at + len)
                .any(|b| rig.models[source_model].now[b as usize].as_ref().is_some_and(|m| m.len() > 1))
        };
        if uncertain(self) {
            // Read first: then it is known what is copied, unless the read fails.
            self.run(&[Step { kind: What::Read, len, ..*step }]);
            if uncertain(self) {
                return;
            }
        }
        let same = self.models.len() == 1;
        let segment = Segment { source: at * BLOCK, dest: dest * BLOCK, len: len * BLOCK };
        let job = match Job::new(&[segment], sizes[0] * BLOCK, sizes[1] * BLOCK, same) {
            Ok(job) => job,
            Err(error) => {
                let onto_itself = same && at == dest && len > 0;
                assert!(onto_itself && error.kind() == Kind::Overlap, "{error:?}");
                return;
            }
        };
        let offload = if step.other.is_multiple_of(3) { Offload::Never } else { Offload::Auto };
        let policy = Policy { offload, ..Policy::default() };
        let options = Options { policy, flush: false, payload_bytes: 1 << 20, ..Options::default() };
        let [source, target] = [from, to].map(|i| self.devices[i].clone());
        let progress = Rc::new(Progress::default());
        let ended = self.local.block_on(copy(source, target, &job, &options, &progress));
        let good = match ended.error {
            None => {
                assert_eq!(ended.receipt.good_bytes, len * BLOCK, "a copy is done, but not all of it");
                len
            }
            Some(error) => {
                assert!(self.faults && error.kind() == Kind::Io, "copy: {error:?}");
                assert!(ended.receipt.good_prefix_bytes.is_multiple_of(BLOCK));
                assert!(ended.receipt.good_prefix_bytes < len * BLOCK);
                ended.receipt.good_prefix_bytes / BLOCK
            }
        };
        let new: Vec<Option<u64>> =
            (at..at + len).map(|b| self.models[source_model].certain(b as usize)).collect();
        let model_no = self.model_no(to);
        for (i, id) in new.into_iter().enumerate() {
            let block = dest as usize + i;
            if (i as u64) < good {
                self.models[model_no].wrote(block, id, false);
            } else {
                self.models[model_no].maybe(block, id);
            }
        }
    }

    /// Reads everything, and counts the buffers.
    pub(crate) fn finish(&mut self) {
        let faults = std::mem::replace(&mut self.faults, false);
        for device in 0..2 {
            let blocks = self.devices[device].size() / BLOCK;
            self.run(&[Step { kind: What::Read, device, at: 0, len: blocks, other: 0 }]);
        }
        self.faults = faults;
        let all: Vec<_> = (0..self.pool.count()).map(|_| self.pool.take(1)).collect();
        assert!(all.iter().all(Option::is_some), "a buffer was leaked");
    }

    /// After a run without faults each leg of each mirror holds the same.
    pub(crate) fn all_legs_equal(&self) {
        self.each_leg(|model, at, block| {
            if let Some(id) = self.models[model].certain(at) {
                assert_eq!(id_of(block), id, "block {at} of a leg");
            }
        });
    }

    /// What survived is what was durable or written since, on every leg and through the stack.
    pub(crate) fn after_power_cut(&mut self) {
        self.each_leg(|model, at, block| {
            let (id, may) = (id_of(block), &self.models[model].cut[at]);
            assert!(
                may.contains(&id),
                "after the power cut block {at} of a leg holds {id}, expected one of {may:?}"
            );
        });
        for model in &mut self.models {
            model.now = model.cut.iter().cloned().map(Some).collect();
        }
        self.open();
        self.finish();
    }

    fn each_leg(&self, mut look: impl FnMut(usize, usize, &[u8])) {
        for model in 0..self.models.len() {
            let device = self.devices[model].clone();
            let resolution = device.clone().resolve(ByteRange::to(device.size()), Access::Write).unwrap();
            let mut at = 0;
            for piece in &resolution.pieces {
                for leg in &piece.legs {
                    let bytes = read(&leg.device, ByteRange::new(leg.offset, piece.len).unwrap());
                    for (i, block) in bytes.chunks_exact(BLOCK as usize).enumerate() {
                        look(model, at + i, block);
                    }
                }
                at += (piece.len / BLOCK) as usize;
            }
            assert_eq!(at as u64 * BLOCK, device.size(), "the pieces cover the device");
            resolution.guard.release();
        }
    }
}

/// One operation on a queue of its own.
pub(crate) fn run_op(device: &Dev, op: Op) -> Completion {
    let submitter = Submitter::default();
    let mut queue = device.clone().open_queue().unwrap();
    let mut batch = VecDeque::from([submitter.request(1, op)]);
    let mut done = Vec::new();
    for _ in 0..PATIENCE {
        queue.submit(&mut batch);
        queue.poll(&mut done);
        if let Some(done) = done.pop() {
            return done;
        }
    }
    panic!("the operation hangs");
}

pub(crate) fn read(device: &Dev, range: ByteRange) -> Vec<u8> {
    let buf = Buf::alloc(range.len() as usize).unwrap();
    let done = run_op(device, Op::Read { range, buf });
    done.result.unwrap();
    done.buf.to_vec()
}

//! Devices that fail, delay, reorder, or check what is written to another.

use super::Rng;
use super::through::{Ended, Hit, Through};
use crate::block::device::resolve_plain;
use crate::block::{
    Access, Buf, ByteRange, Completion, CopyPath, CopyReport, Counters, Device, Error, Extent, Identity,
    Kind, Limits, LimitsChange, Op, Queue, Request, Resolution, Result,
};
use crate::reactor;
use crate::sys::sync::lock;
use std::any::Any;
use std::collections::VecDeque;
use std::ops::BitOr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// A set of operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ops(u8);

impl Ops {
    /// Reads; on the source of a copy, the copy.
    pub const READ: Self = Self(1);
    /// Writes.
    pub const WRITE: Self = Self(2);
    /// Write-zeroes.
    pub const WRITE_ZEROES: Self = Self(4);
    /// Discards.
    pub const DISCARD: Self = Self(8);
    /// Compares.
    pub const COMPARE: Self = Self(16);
    /// Flushes.
    pub const FLUSH: Self = Self(32);
    /// Copies, on their destination.
    pub const COPY: Self = Self(64);
    /// All of them.
    pub const ALL: Self = Self(127);

    fn of(op: &Op) -> Self {
        match op {
            Op::Read { .. } => Self::READ,
            Op::Write { .. } => Self::WRITE,
            Op::WriteZeroes { .. } => Self::WRITE_ZEROES,
            Op::Discard { .. } => Self::DISCARD,
            Op::Compare { .. } => Self::COMPARE,
            Op::Flush => Self::FLUSH,
            Op::Copy(_) => Self::COPY,
        }
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Ops {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Which I/O fails, and how.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The operations counted.
    pub ops: Ops,
    /// Which of them fails: 1 is the first.
    pub nth: u64,
    /// True: it and all after it.
    pub forever: bool,
    /// Kind of the error.
    pub kind: Kind,
    /// Bytes that are done before the error, cut to whole blocks and to less than the request.
    pub good_bytes: u64,
}

impl Fault {
    /// The `nth` operation of any sort fails once with an I/O error, nothing done.
    pub const fn nth(nth: u64) -> Self {
        Self { ops: Ops::ALL, nth, forever: false, kind: Kind::Io, good_bytes: 0 }
    }
}

/// When to fail. Several devices may share one and are counted together.
#[derive(Debug, Default)]
pub struct FaultPlan(Mutex<Plan>);

#[derive(Debug, Default)]
struct Plan {
    fault: Option<Fault>,
    seen: u64,
    fired: u64,
}

impl FaultPlan {
    /// Fails nothing until armed.
    pub fn none() -> Arc<Self> {
        Arc::default()
    }

    /// Armed with `fault`.
    pub fn new(fault: Fault) -> Arc<Self> {
        let plan = Self::none();
        plan.arm(fault);
        plan
    }

    /// Starts counting anew, for `fault`.
    pub fn arm(&self, fault: Fault) {
        *self.lock() = Plan { fault: Some(fault), seen: 0, fired: 0 };
    }

    /// Fails nothing from now on; the numbers stay.
    pub fn disarm(&self) {
        self.lock().fault = None;
    }

    /// Operations counted since it was armed.
    pub fn seen(&self) -> u64 {
        self.lock().seen
    }

    /// Operations failed since it was armed. 0 after a run: the run was clean.
    pub fn fired(&self) -> u64 {
        self.lock().fired
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        lock(&self.0)
    }

    fn hit(&self, ops: Ops, len: u64, device: &dyn Device) -> Option<Hit> {
        let mut plan = self.lock();
        let fault = plan.fault.filter(|f| f.ops.has(ops))?;
        plan.seen += 1;
        if plan.seen < fault.nth || (plan.seen > fault.nth && !fault.forever) {
            return None;
        }
        plan.fired += 1;
        let block = u64::from(device.limits().block_size.get());
        let most = len.saturating_sub(block);
        let good_bytes = fault.good_bytes.min(most);
        let message = format!("injected fault at operation {}", plan.seen);
        Some(Hit {
            good_bytes: good_bytes - good_bytes % block,
            error: Error::new(fault.kind, message).on(device.name()),
        })
    }
}

/// What a wrapper is by itself: everything of the device inside but its queue.
macro_rules! wrap_device {
    () => {
        fn name(&self) -> &str {
            self.inner.name()
        }
        fn identity(&self) -> Identity {
            self.inner.identity()
        }
        fn size(&self) -> u64 {
            self.inner.size()
        }
        fn read_only(&self) -> bool {
            self.inner.read_only()
        }
        fn limits(&self) -> Limits {
            self.inner.limits()
        }
        fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
            self.inner.change_limits(change)
        }
        fn generation(&self) -> u64 {
            self.inner.generation()
        }
        fn copy_paths(&self) -> Vec<CopyPath> {
            self.inner.copy_paths()
        }
        fn next_extent(&self, range: ByteRange) -> Result<Extent> {
            self.inner.next_extent(range)
        }
        fn tells_holes(&self) -> bool {
            self.inner.tells_holes()
        }
        fn zeroes_cheaply(&self) -> bool {
            self.inner.zeroes_cheaply()
        }
        fn resolve(self: Arc<Self>, range: ByteRange, access: Access) -> Result<Resolution> {
            match self.identity() {
                Identity::Leaf { .. } => resolve_plain(self, range),
                Identity::Map(_) => self.inner.clone().resolve(range, access),
            }
        }
        fn legs(&self) -> &[Arc<dyn Device>] {
            self.inner.legs()
        }
        fn lazy_zeroes(&self) -> Option<&dyn $crate::block::LazyZeroes> {
            self.inner.lazy_zeroes()
        }
        fn allocated_bytes(&self) -> Option<u64> {
            self.inner.allocated_bytes()
        }
        fn may_wait(&self) -> bool {
            self.inner.may_wait()
        }
        fn counters(&self) -> Counters {
            self.inner.counters()
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
    };
}
pub(super) use wrap_device;

/// A device that fails by plan.
pub struct ErrorDevice {
    inner: Arc<dyn Device>,
    plan: Arc<FaultPlan>,
}

impl ErrorDevice {
    /// `inner`, failing as `plan` says.
    pub fn new(inner: Arc<dyn Device>, plan: Arc<FaultPlan>) -> Self {
        Self { inner, plan }
    }

    pub(super) fn inner(&self) -> &Arc<dyn Device> {
        &self.inner
    }

    pub(super) fn hit_as_source(&self, len: u64) -> Option<Hit> {
        self.plan.hit(Ops::READ, len, self)
    }
}

impl Device for ErrorDevice {
    wrap_device!();
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let through = Through::open(&self.inner)?;
        Ok(Box::new(ErrorQueue { device: self, through, ended: Vec::new() }))
    }
}

struct ErrorQueue {
    device: Arc<ErrorDevice>,
    through: Through<()>,
    ended: Vec<Ended<()>>,
}

impl Queue for ErrorQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        for mut request in batch.drain(..) {
            let op = Through::<()>::take_op(&mut request);
            let len = op.range().map_or(0, ByteRange::len);
            let hit = self.device.plan.hit(Ops::of(&op), len, &*self.device);
            self.through.send(request, op, hit, ());
        }
        self.through.push();
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.through.poll(&mut self.ended);
        done.extend(self.ended.drain(..).map(Ended::complete));
    }
    fn counters(&self) -> Counters {
        self.through.counters()
    }
}

/// A device that starts and ends requests late and out of order, counted in polls: no clock.
///
/// While it holds something back it wakes the thread's reactor, if there is one, so that nobody sleeps on it.
pub struct DelayDevice {
    inner: Arc<dyn Device>,
    seed: u64,
    polls_max: u64,
    queues: AtomicU64,
}

impl DelayDevice {
    /// `inner`, with each request started up to `polls_max` polls late and its completion given up to `polls_max` polls
    /// late.
    pub fn new(inner: Arc<dyn Device>, seed: u64, polls_max: u64) -> Self {
        Self { inner, seed, polls_max, queues: AtomicU64::new(0) }
    }

    pub(super) fn inner(&self) -> &Arc<dyn Device> {
        &self.inner
    }
}

impl Device for DelayDevice {
    wrap_device!();
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let through = Through::open(&self.inner)?;
        let nth = self.queues.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(DelayQueue {
            rng: Rng::new(self.seed ^ nth.wrapping_mul(0x9e37_79b9)),
            device: self,
            through,
            now: 0,
            before: Vec::new(),
            after: Vec::new(),
            ended: Vec::new(),
        }))
    }
}

struct DelayQueue {
    device: Arc<DelayDevice>,
    through: Through<()>,
    rng: Rng,
    /// Polls so far.
    now: u64,
    /// Requests not yet started, with the poll they are due at.
    before: Vec<(u64, Request)>,
    /// Completions not yet given out, likewise.
    after: Vec<(u64, Completion)>,
    ended: Vec<Ended<()>>,
}

impl DelayQueue {
    fn due(&mut self) -> u64 {
        self.now + self.rng.below(self.device.polls_max + 1)
    }

    /// Takes what is due out of `held`, in seeded order.
    fn take_due<T>(rng: &mut Rng, now: u64, held: &mut Vec<(u64, T)>) -> Vec<T> {
        let mut due: Vec<T> = held.extract_if(.., |(at, _)| *at <= now).map(|(_, item)| item).collect();
        for i in (1..due.len()).rev() {
            due.swap(i, rng.index(i + 1));
        }
        due
    }
}

impl Queue for DelayQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        while let Some(request) = batch.pop_front() {
            let due = self.due();
            self.before.push((due, request));
        }
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        for mut request in Self::take_due(&mut self.rng, self.now, &mut self.before) {
            let op = Through::<()>::take_op(&mut request);
            self.through.send(request, op, None, ());
        }
        let mut ended = std::mem::take(&mut self.ended);
        self.through.poll(&mut ended);
        for ended in ended.drain(..) {
            let due = self.due();
            self.after.push((due, ended.complete()));
        }
        self.ended = ended;
        done.extend(Self::take_due(&mut self.rng, self.now, &mut self.after));
        self.now += 1;
        if (!self.before.is_empty() || !self.after.is_empty() || self.through.is_busy())
            && let Some(reactor) = reactor::current()
        {
            reactor.waker().wake();
        }
    }
    fn counters(&self) -> Counters {
        self.through.counters()
    }
}

/// A device that holds the bytes it must end up with, and fails every write of others with `Mismatch`.
///
/// Zeroes and discards are checked against zeroes. Writes that differ change nothing; a copy is read back after it was
/// done and fails then, its good prefix ending at the first byte that differs.
pub struct CheckWrite {
    inner: Arc<dyn Device>,
    expected: Expected,
    checked_bytes: AtomicU64,
}

type Expected = Box<dyn Fn(u64, &mut [u8]) + Send + Sync>;

impl CheckWrite {
    /// `inner`, expected to become `bytes`, which are as long as the device.
    pub fn new(inner: Arc<dyn Device>, bytes: Arc<[u8]>) -> Self {
        Self::with(inner, move |offset, out| {
            let at = usize::try_from(offset).expect("an offset inside bytes in memory");
            out.copy_from_slice(&bytes[at..at + out.len()]);
        })
    }

    /// `inner`, expected to become what `expected(offset, out)` fills in.
    pub fn with(inner: Arc<dyn Device>, expected: impl Fn(u64, &mut [u8]) + Send + Sync + 'static) -> Self {
        Self { inner, expected: Box::new(expected), checked_bytes: AtomicU64::new(0) }
    }

    /// Bytes written and found right so far, each time they were written.
    pub fn checked_bytes(&self) -> u64 {
        self.checked_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn inner(&self) -> &Arc<dyn Device> {
        &self.inner
    }

    /// Position of the first byte in `range` that differs from `given` (zeroes when `None`).
    fn first_wrong(&self, range: ByteRange, given: Option<&[u8]>) -> Option<u64> {
        // A MiB at a time: a device may be large and all zero.
        let mut expected = vec![0; usize::try_from(range.len().min(1 << 20)).expect("at most 1 MiB")];
        let (mut rest, mut at) = (range, 0);
        while !rest.is_empty() {
            let part = rest.prefix(expected.len() as u64);
            let out = &mut expected[..usize::try_from(part.len()).expect("at most 1 MiB")];
            (self.expected)(part.offset(), out);
            let wrong = match given {
                Some(bytes) => out.iter().zip(&bytes[at..at + out.len()]).position(|(a, b)| a != b),
                None => out.iter().position(|&b| b != 0),
            };
            if let Some(wrong) = wrong {
                return Some((at + wrong) as u64);
            }
            at += out.len();
            rest = rest.after(part.len());
        }
        None
    }

    fn mismatch(&self, range: ByteRange, at: u64) -> Error {
        let message = format!("byte {at} of the range is not the byte expected there");
        Error::new(Kind::Mismatch, message).on(self.name()).at(range)
    }
}

impl Device for CheckWrite {
    wrap_device!();
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let through = Through::open(&self.inner)?;
        Ok(Box::new(CheckQueue { device: self, through, ended: Vec::new() }))
    }
}

enum Stage {
    /// Nothing to do afterwards.
    Plain,
    /// A copy is under way to this range.
    Copy(ByteRange),
    /// The good part of a copy, this range, is being read back; how the copy itself ended.
    ReadBack(ByteRange, Result<()>, Option<Box<CopyReport>>),
}

struct CheckQueue {
    device: Arc<CheckWrite>,
    through: Through<Stage>,
    ended: Vec<Ended<Stage>>,
}

impl CheckQueue {
    fn start(&mut self, mut request: Request) {
        let op = Through::<Stage>::take_op(&mut request);
        let (hit, stage) = match &op {
            Op::Write { range, buf, .. } => (self.refuse(*range, Some(&buf[..])), Stage::Plain),
            Op::WriteZeroes { range, .. } | Op::Discard { range } => {
                (self.refuse(*range, None), Stage::Plain)
            }
            Op::Copy(copy) => (None, Stage::Copy(copy.dest)),
            _ => (None, Stage::Plain),
        };
        self.through.send(request, op, hit, stage);
    }

    fn refuse(&self, range: ByteRange, given: Option<&[u8]>) -> Option<Hit> {
        // A range the device will refuse is for the device to refuse.
        if (&*self.device as &dyn Device).check_range(range).is_err() {
            return None;
        }
        let Some(at) = self.device.first_wrong(range, given) else {
            self.device.checked_bytes.fetch_add(range.len(), Ordering::Relaxed);
            return None;
        };
        Some(Hit { good_bytes: 0, error: self.device.mismatch(range, at) })
    }

    fn end(&mut self, mut ended: Ended<Stage>, done: &mut Vec<Completion>) {
        match std::mem::replace(&mut ended.extra, Stage::Plain) {
            Stage::Copy(dest) if ended.good_bytes > 0 => {
                let range = dest.prefix(ended.good_bytes);
                let len = usize::try_from(range.len()).expect("a copy in a test fits memory");
                let Some(buf) = Buf::alloc(len) else {
                    ended.good_bytes = 0;
                    ended.result = Err(Error::new(Kind::NoMemory, "no memory to read a copy back"));
                    done.push(ended.complete());
                    return;
                };
                let stage = Stage::ReadBack(range, ended.result, ended.copy);
                self.through.send(ended.request, Op::Read { range, buf }, None, stage);
            }
            Stage::ReadBack(range, result, copy) => {
                let buf = std::mem::take(&mut ended.buf);
                ended.copy = copy;
                if ended.result.is_err() {
                    ended.good_bytes = 0;
                } else if let Some(at) = self.device.first_wrong(range, Some(&buf[..])) {
                    ended.good_bytes = at;
                    ended.result = Err(self.device.mismatch(range, at));
                } else {
                    self.device.checked_bytes.fetch_add(range.len(), Ordering::Relaxed);
                    ended.result = result;
                }
                done.push(ended.complete());
            }
            Stage::Plain | Stage::Copy(_) => done.push(ended.complete()),
        }
    }
}

impl Queue for CheckQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        for request in batch.drain(..) {
            self.start(request);
        }
        self.through.push();
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut ended = std::mem::take(&mut self.ended);
        self.through.poll(&mut ended);
        for one in ended.drain(..) {
            self.end(one, done);
        }
        self.ended = ended;
        self.through.push();
    }
    fn counters(&self) -> Counters {
        self.through.counters()
    }
}

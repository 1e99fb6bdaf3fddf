//! What all steps of one running copy share: devices opened on this thread, buffers, locks, pace, and the tally.

use super::Job;
use super::facts::{DeviceFacts, content, cover, is_leaf};
use super::lasting::Lasting;
use super::options::{Options, Progress};
use super::plan::{LeafNo, Planner, Step};
use super::tally::Tally;
use super::wait::{LOOK_AGAIN, hold, unless};
use crate::block::lock::{Claim, Claims, CopyTicket};
use crate::block::receipt::{DEVIATIONS_MAX, Deviation, Reason, Span};
use crate::block::{
    Access, Buf, BufPool, ByteRange, Content, Counters, Device, Error, Fates, Identity, Kind, LeafId, Method,
    Op, Result,
};
use crate::reactor::away::look;
use crate::reactor::local::{self, Client, Notify};
use smallvec::SmallVec;
use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Size of a piece in bytes: buffered writes of 128 to 512 KiB were measured fastest, and direct I/O gains nothing
/// above.
pub(super) const PIECE: u64 = 512 << 10;
/// Pieces in flight over all steps: enough for a fast disk, few enough that their buffers stay in the processor's
/// cache.
const DEPTH: usize = 16;
/// How often a cancelled copy looks whether its flush is done before it gives up.
const FLUSH_LOOKS: u32 = 3;
/// The same for its steps in flight: with the flush, less than the second that is promised.
const STEP_LOOKS: u32 = 2;

/// State of one running copy.
pub(super) struct Shared {
    pub(super) source: Arc<dyn Device>,
    pub(super) dest: Arc<dyn Device>,
    pub(super) options: Options,
    pub(super) progress: Rc<Progress>,
    pub(super) tally: RefCell<Tally>,
    /// What was written and may still be lost.
    pub(super) lasting: RefCell<Lasting>,
    /// The queue that flushes, once it is not the one that writes.
    flusher: RefCell<Option<Client>>,
    /// The first error of any step.
    pub(super) failure: RefCell<Option<Error>>,
    /// One for each device, opened when first used.
    clients: RefCell<Vec<Client>>,
    leaves: RefCell<Vec<Leaf>>,
    /// Made when the first buffer is asked for: most copies need none.
    pool: OnceCell<BufPool>,
    buffer_freed: Notify,
    /// True while a block that holds the edges of two pieces may be half done; who waits for that.
    ragged: Cell<bool>,
    ragged_done: Notify,
    steps: Cell<usize>,
    in_flight: RefCell<SmallVec<[Running; 4]>>,
    /// What still runs is waited for no more, and counts for nothing.
    abandoned: Cell<bool>,
    step_ended: Notify,
    /// When the next byte may move, under a rate limit.
    next_at: Cell<Duration>,
}

/// A step that has begun and not ended.
struct Running {
    /// Where it writes.
    range: ByteRange,
    /// Where its bytes stand in the job.
    position: u64,
    /// Bytes of its front that are good so far, where that can be told before it ends.
    good: u64,
}

struct Leaf {
    device: Arc<dyn Device>,
    client: Client,
    block_size: u64,
}

impl Shared {
    pub(super) fn new(
        source: Arc<dyn Device>,
        dest: Arc<dyn Device>,
        options: Options,
        progress: Rc<Progress>,
    ) -> Self {
        Self {
            lasting: RefCell::new(Lasting::new(dest.cache_losses())),
            flusher: RefCell::default(),
            source,
            dest,
            options,
            progress,
            tally: RefCell::default(),
            failure: RefCell::default(),
            clients: RefCell::default(),
            leaves: RefCell::default(),
            pool: OnceCell::new(),
            buffer_freed: Notify::default(),
            ragged: Cell::new(false),
            ragged_done: Notify::default(),
            steps: Cell::new(0),
            in_flight: RefCell::default(),
            abandoned: Cell::new(false),
            step_ended: Notify::default(),
            next_at: Cell::new(Duration::ZERO),
        }
    }

    /// A step of any planner of this copy in this copy's own leaf numbers, with its leaves open on this thread.
    pub(super) fn adopt(&self, facts: &DeviceFacts, mut step: Step) -> Result<Step> {
        step.source_leaf = self.leaf_no(facts.leaf_device(step.source_leaf))?;
        for leg in &mut step.legs {
            leg.place.leaf = self.leaf_no(facts.leaf_device(leg.place.leaf))?;
        }
        Ok(step)
    }

    fn leaf_no(&self, device: &Arc<dyn Device>) -> Result<LeafNo> {
        let known = self.leaves.borrow().iter().position(|l| Arc::ptr_eq(&l.device, device));
        if let Some(at) = known {
            return Ok(LeafNo::new(at));
        }
        let client = self.open(device)?;
        let block_size = u64::from(device.limits().block_size.get());
        let mut leaves = self.leaves.borrow_mut();
        leaves.push(Leaf { device: device.clone(), client, block_size });
        Ok(LeafNo::new(leaves.len() - 1))
    }

    /// The queue this copy has of a device, or a new one: targets grant few.
    pub(super) fn open(&self, device: &Arc<dyn Device>) -> Result<Client> {
        let known = self.clients.borrow().iter().find(|c| Arc::ptr_eq(c.device(), device)).cloned();
        if let Some(client) = known {
            return Ok(client);
        }
        let client = Client::open(device.clone())?;
        self.clients.borrow_mut().push(client.clone());
        Ok(client)
    }

    /// The leaf's queue on this thread.
    pub(super) fn client(&self, leaf: LeafNo) -> Client {
        self.leaves.borrow()[leaf.index()].client.clone()
    }

    /// The leaf's device.
    pub(super) fn leaf(&self, leaf: LeafNo) -> Arc<dyn Device> {
        self.leaves.borrow()[leaf.index()].device.clone()
    }

    /// The leaf's block size in bytes.
    pub(super) fn block_size(&self, leaf: LeafNo) -> u64 {
        self.leaves.borrow()[leaf.index()].block_size
    }

    /// A queue of the whole source.
    pub(super) fn source_client(&self) -> Result<Client> {
        self.open(&self.source)
    }

    /// A queue of the whole destination.
    pub(super) fn dest_client(&self) -> Result<Client> {
        self.open(&self.dest)
    }

    /// Flushes through a queue opened now.
    pub(super) fn renew_flusher(&self) -> Result<()> {
        let client = Client::open(self.dest.clone())?;
        *self.flusher.borrow_mut() = Some(client);
        Ok(())
    }

    /// Only what was flushed is known to be good.
    pub(super) fn forget_unsure(&self) {
        let durable = self.lasting.borrow().durable();
        self.progress.good_bytes.set(durable.good);
        self.progress.good_prefix_bytes.set(durable.prefix);
        self.tally.borrow_mut().back_to(durable);
    }

    /// Makes what was copied durable. Once the copy is cancelled it is given up soon: a device may take long.
    ///
    /// Errors: the device's; `Cancelled` when given up, and then it is not known to be durable.
    pub(super) async fn flush(&self) -> Result<()> {
        let newer = self.flusher.borrow().clone();
        let client = newer.map_or_else(|| self.dest_client(), Ok)?;
        let flush = local::spawn(async move { client.submit(Op::Flush).await.result });
        self.unless_cancelled(flush, FLUSH_LOOKS).await.unwrap_or_else(|| {
            self.abandoned.set(true);
            let text = "stopped on request while the destination was flushed; it may not be durable";
            Err(Error::new(Kind::Cancelled, text))
        })
    }

    /// What `work` gives; `None` when the copy is cancelled and it has still not ended after so many looks.
    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>, looks_max: u32) -> Option<T> {
        let mut work = pin!(work);
        let mut looks = 0;
        loop {
            let mut look_again = pin!(local::sleep(LOOK_AGAIN));
            let done = poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Ready(result) => Poll::Ready(Some(result)),
                Poll::Pending => look_again.as_mut().poll(cx).map(|()| None),
            });
            if let Some(result) = done.await {
                return Some(result);
            }
            if self.options.cancel.is_set() {
                looks += 1;
                if looks > looks_max {
                    return None;
                }
            }
        }
    }

    /// What `work` gives; `None` when the copy is cancelled, may be abandoned, and `work` does not end soon.
    pub(super) async fn or_abandon<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        if !self.options.abandon {
            return Some(work.await);
        }
        self.unless_cancelled(work, STEP_LOOKS).await
    }

    /// Leaves the steps in flight to themselves: where they write may still change. Why, as an error.
    pub(super) fn abandon(&self) -> Error {
        self.abandoned.set(true);
        let mut tally = self.tally.borrow_mut();
        let mut left = Vec::new();
        for Running { range, position, good } in self.in_flight.borrow().iter() {
            tally.good_at(*position, *good);
            left.push(range.after(*good));
        }
        left.sort_by_key(|range| range.offset());
        tally.undefined.extend(left.into_iter().filter(|range| !range.is_empty()).map(Span::from));
        // Emulated bytes are counted when their stretch ends.
        let uncounted = tally.good.saturating_sub(tally.methods.values().sum());
        tally.by(Method::Emulated, uncounted, &Fates::of_method(Method::Emulated, uncounted));
        self.progress.good_bytes.set(tally.good);
        self.progress.good_prefix_bytes.set(tally.prefix);
        drop(tally);
        let text = "stopped on request, without waiting for requests that the devices have not answered";
        Error::new(Kind::Cancelled, text)
    }

    /// True when something was left in flight.
    pub(super) fn abandoned(&self) -> bool {
        self.abandoned.get()
    }

    /// True when no byte may pass through this process.
    pub(super) fn requires_offload(&self) -> bool {
        self.options.policy.offload.must().is_some()
    }

    /// System calls on both ends so far.
    pub(super) fn calls(&self) -> Counters {
        let mut all = self.source.counters();
        if !Arc::ptr_eq(&self.source, &self.dest) {
            all += self.dest.counters();
        }
        for client in self.clients.borrow().iter().chain(self.flusher.borrow().iter()) {
            all += client.counters();
        }
        all
    }

    /// True when the source of a step still reads as zero; asked under its locks.
    ///
    /// Errors: those of the source; `Cancelled` when the copy was stopped while the source did not answer.
    pub(super) async fn is_still_zero(&self, step: &Step) -> Result<bool> {
        let parts: SmallVec<[ByteRange; 1]> =
            step.sources.iter().map(|part| ByteRange::between(part.offset, part.offset + part.len)).collect();
        // A source that does not answer is seen to stand still here too.
        let _in_flight = self.options.pulse.reads();
        let looked = look(&self.source, move |source| all_zero(source, &parts));
        self.unless_stopped(looked).await.ok_or_else(|| self.stop_reason())??
    }

    /// The next step of a plan. Looking for holes may take long, or for ever, so it is done where it keeps nobody else
    /// waiting. `None`: the plan is at its end, or the copy was stopped while the source did not answer, and the
    /// planner is gone.
    pub(super) async fn next_step(&self, planner: &mut Option<Planner<DeviceFacts>>) -> Option<Result<Step>> {
        let mut taken = planner.take()?;
        let _in_flight = self.options.pulse.reads();
        let looked = look(&self.source, move |_| {
            let step = taken.next();
            (taken, step)
        });
        match self.unless_stopped(looked).await? {
            Ok((back, step)) => {
                *planner = Some(back);
                step
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Waits for `work`, or until the copy is stopped and it is still not done.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        unless(|| self.stopped(), work).await
    }

    // --- buffers -----------------------------------------------------------------------------------------------------

    /// A buffer, as soon as one is free.
    ///
    /// Errors: `NoMemory` when not even one page can be had.
    pub(super) async fn buffer(&self) -> Result<Buf> {
        let pool = match self.pool.get() {
            Some(pool) => pool,
            None => {
                let piece = usize::try_from(PIECE).expect("half a MiB");
                let budget = self.options.payload_bytes.min(DEPTH * piece);
                let pool = BufPool::new(budget, piece.min(budget));
                let none =
                    || Error::new(Kind::NoMemory, "not even one page of memory is left for data in flight");
                let pool = pool.ok_or_else(none)?;
                self.pool.get_or_init(|| pool)
            }
        };
        loop {
            if let Some(buf) = pool.take(pool.chunk_bytes()) {
                return Ok(buf);
            }
            self.buffer_freed.notified().await;
        }
    }

    /// Says that a buffer went back.
    pub(super) fn buffer_freed(&self) {
        self.buffer_freed.notify_one();
    }

    /// A turn to read, change and write back a block.
    pub(super) async fn ragged_turn(&self) -> RaggedTurn<'_> {
        while self.ragged.replace(true) {
            self.ragged_done.notified().await;
        }
        RaggedTurn(self)
    }

    // --- stopping ----------------------------------------------------------------------------------------------------

    /// True when no new work is to be begun.
    pub(super) fn stopped(&self) -> bool {
        self.options.cancel.is_set() || self.failure.borrow().is_some()
    }

    /// Why work was not begun.
    pub(super) fn stop_reason(&self) -> Error {
        let text = if self.options.cancel.is_set() {
            "stopped on request; what was copied so far is kept"
        } else {
            "not done, because another part of the copy failed"
        };
        Error::new(Kind::Cancelled, text)
    }

    // --- steps -------------------------------------------------------------------------------------------------------

    /// Counts a step that begins: where it writes, and where that stands in the job.
    pub(super) fn step_begins(&self, range: ByteRange, position: u64) {
        self.in_flight.borrow_mut().push(Running { range, position, good: 0 });
        self.steps.set(self.steps.get() + 1);
    }

    /// Takes down that the destination's bytes from `from` to `to` are good, so that a step which is left behind keeps
    /// its front.
    pub(super) fn good_so_far(&self, from: u64, to: u64) {
        // A map says what is good when all its legs have ended, and a lost cache only after a flush.
        if self.abandoned() || !is_leaf(&self.dest) || self.lasting.borrow().is_watched() {
            return;
        }
        for running in self.in_flight.borrow_mut().iter_mut() {
            let start = running.range.offset();
            if start <= from && from <= start + running.good && to <= running.range.end() {
                running.good = running.good.max(to - start);
            }
        }
    }

    /// Counts a step that ended.
    pub(super) fn step_ended(&self, range: ByteRange, result: Result<()>) {
        let mut in_flight = self.in_flight.borrow_mut();
        if let Some(at) = in_flight.iter().position(|r| r.range == range) {
            in_flight.swap_remove(at);
        }
        drop(in_flight);
        if let Err(e) = result {
            self.failure.borrow_mut().get_or_insert(e);
        }
        self.steps.set(self.steps.get() - 1);
        self.step_ended.notify_one();
    }

    /// Waits until fewer than `limit` steps are running.
    pub(super) async fn steps_below(&self, limit: usize) {
        while self.steps.get() >= limit {
            self.step_ended.notified().await;
        }
    }

    // --- mapping and locks -------------------------------------------------------------------------------------------

    /// Locks a step's sources and destination, all at once; `None` where no locks are kept.
    pub(super) async fn lock(&self, step: &Step) -> Result<Option<CopyTicket>> {
        let mut claims = Claims::new();
        for part in &step.sources {
            claims.extend(self.claim(step.source_leaf, part.leaf_offset, part.len, Claim::shared));
        }
        for leg in &step.legs {
            claims.extend(self.claim(leg.place.leaf, leg.place.offset, step.len, Claim::exclusive));
        }
        self.hold(claims).await
    }

    /// Locks the whole job at once.
    pub(super) async fn lock_job(&self, job: &Job) -> Result<Option<CopyTicket>> {
        let mut claims = Claims::new();
        let mut add = |device: &Arc<dyn Device>, range, access, make: MakeClaim| {
            let resolution = device.clone().resolve(cover(device, range), access)?;
            for piece in &resolution.pieces {
                for leg in &piece.legs {
                    let no = self.leaf_no(&leg.device)?;
                    claims.extend(self.claim(no, leg.offset, piece.len, make));
                }
            }
            resolution.guard.release();
            Ok::<(), Error>(())
        };
        for segment in job.segments() {
            add(&self.source, segment.source_range(), Access::Read, Claim::shared)?;
            add(&self.dest, segment.dest_range(), Access::Write, Claim::exclusive)?;
        }
        self.hold(claims).await
    }

    /// A claim on a leaf, out to its block borders.
    fn claim(&self, leaf: LeafNo, offset: u64, len: u64, make: MakeClaim) -> Option<Claim> {
        let leaves = self.leaves.borrow();
        let held = &leaves[leaf.index()];
        let Identity::Leaf { leaf, base } = held.device.identity() else { return None };
        let block = held.block_size;
        let start = offset - offset % block;
        let end = (offset + len).next_multiple_of(block);
        Some(make(leaf, ByteRange::between(base + start, base + end)))
    }

    async fn hold(&self, claims: Claims) -> Result<Option<CopyTicket>> {
        let Some(locks) = &self.options.locks else { return Ok(None) };
        hold(locks, claims, || self.stopped().then(|| self.stop_reason())).await.map(Some)
    }

    // --- pace --------------------------------------------------------------------------------------------------------

    /// Longest single request by this method under the rate limit, in bytes: about an eighth of a second's worth.
    pub(super) fn paced_len(&self, method: Method) -> u64 {
        match self.options.limit_rate {
            Some(rate) if method.moves_bytes() => (rate.get() / 8).next_multiple_of(1 << 20),
            _ => u64::MAX,
        }
    }

    /// Waits until the rate limit allows `len` bytes more, or the copy is stopped.
    pub(super) async fn pace(&self, method: Method, len: u64) {
        let Some(rate) = self.options.limit_rate.filter(|_| method.moves_bytes()) else { return };
        let start = self.next_at.get().max(local::now());
        // Exact in 128 bits: bytes below 2^63 times 10^9.
        let nanos = u128::from(len) * 1_000_000_000 / u128::from(rate.get());
        self.next_at.set(start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        while !self.stopped() {
            let left = start.saturating_sub(local::now());
            if left.is_zero() {
                return;
            }
            local::sleep(left.min(LOOK_AGAIN)).await;
        }
    }

    // --- tally -------------------------------------------------------------------------------------------------------

    /// Counts bytes read into our buffers to be copied.
    pub(super) fn count_read(&self, bytes: u64) {
        self.tally.borrow_mut().host.read += bytes;
    }

    /// Counts bytes written from our buffers.
    pub(super) fn count_written(&self, bytes: u64) {
        self.tally.borrow_mut().host.written += bytes;
    }

    /// Counts bytes moved to a leg; a byte that goes to several legs counts once, for the first.
    pub(super) fn moved(&self, leg: usize, method: Method, bytes: u64) {
        self.moved_as(leg, method, bytes, &Fates::of_method(method, bytes));
    }

    /// The same, where the device has said what became of them.
    pub(super) fn moved_as(&self, leg: usize, method: Method, bytes: u64, fates: &Fates) {
        if leg == 0 && !self.abandoned() {
            self.tally.borrow_mut().by(method, bytes, fates);
            // Emulated bytes were shown piece by piece.
            if !method.is_emulated() {
                self.moving(bytes);
                if method.moves_bytes() {
                    self.data(bytes);
                }
            }
        }
    }

    /// Counts bytes that were read and came to a leg: written, or found to be zero. They were shown piece by piece.
    pub(super) fn read_and_moved(&self, leg: usize, methods: &[(Method, u64)]) {
        if leg == 0 && !self.abandoned() {
            let mut tally = self.tally.borrow_mut();
            methods
                .iter()
                .for_each(|&(method, bytes)| tally.by(method, bytes, &Fates::of_method(method, bytes)));
        }
    }

    /// Shows the method of a step.
    pub(super) fn shows(&self, method: Method) {
        if method != Method::Skip || self.progress.method.get().is_none() {
            self.progress.method.set(Some(method));
        }
    }

    /// Shows bytes that a running step has moved.
    pub(super) fn moving(&self, bytes: u64) {
        self.options.pulse.moved(bytes);
        let moving = &self.progress.moving_bytes;
        moving.set(moving.get().saturating_add(bytes));
    }

    /// Shows bytes that took moving.
    pub(super) fn data(&self, bytes: u64) {
        let data = &self.progress.data_bytes;
        data.set(data.get().saturating_add(bytes));
    }

    /// Takes down that a step ended with `good` bytes of its front good; `position` is where it stands in the job.
    pub(super) fn step_done(&self, position: u64, good: u64, step: &Step) {
        let moving = &self.progress.moving_bytes;
        moving.set(moving.get().saturating_sub(step.len));
        if self.abandoned() {
            // It was not flushed with the others, and is called what it was then.
            return;
        }
        // Planned anew, a step ends part by part, and each part is counted here.
        for running in self.in_flight.borrow_mut().iter_mut() {
            if running.range.offset() <= step.dest && step.dest < running.range.end() {
                running.good = 0;
            }
        }
        let mut tally = self.tally.borrow_mut();
        tally.good_at(position, good);
        self.lasting.borrow_mut().written(position, good, step);
        self.progress.good_bytes.set(tally.good);
        self.progress.good_prefix_bytes.set(tally.prefix);
        self.shows(step.method());
    }

    /// Takes down that the run left the plan.
    pub(super) fn deviation(&self, step: &Step, planned: Method, used: Method, reason: Reason, why: &Error) {
        let mut tally = self.tally.borrow_mut();
        tally.deviations_total += 1;
        if tally.deviations.len() < DEVIATIONS_MAX {
            tally.deviations.push(Deviation {
                dest_offset: step.dest,
                len: step.len,
                planned,
                used,
                reason,
                detail: why.to_string(),
            });
        }
    }
}

/// True when ranges of a device are known to read as zero.
fn all_zero(source: &Arc<dyn Device>, ranges: &[ByteRange]) -> Result<bool> {
    for range in ranges {
        let mut rest = *range;
        while !rest.is_empty() {
            let extent = content(source, rest)?;
            if extent.content == Content::Data || extent.len == 0 {
                return Ok(false);
            }
            rest = rest.after(extent.len);
        }
    }
    Ok(true)
}

/// Ends a turn when dropped.
pub(super) struct RaggedTurn<'a>(&'a Shared);

impl Drop for RaggedTurn<'_> {
    fn drop(&mut self) {
        self.0.ragged.set(false);
        self.0.ragged_done.notify_one();
    }
}

/// Makes a claim to read or to change.
type MakeClaim = fn(LeafId, ByteRange) -> Claim;

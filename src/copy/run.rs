//! Carries a plan out: locks, submits, steps down, commits, and writes the receipt.
//!
//! Each step of the plan is one request: its source ranges locked shared and its destination exclusive, then moved by
//! the method the plan names. Where a device answers "not supported" the part not done is planned again without that
//! method, and the receipt says so.

use super::emulate::{self, Bytes};
use super::facts::{DeviceFacts, check_apart, is_leaf};
use super::lasting;
use super::plan::{Offload, Order, Planner, Policy, Step};
use super::shared::Shared;
use super::verify;
use super::zero::zero_leg;
use super::{Job, Pulse, Segment};
use crate::block::lock::CoreLocks;
use crate::block::receipt::{
    End, HostBytes, Loss, Outcome, Reason, Receipt, SCHEMA, SourceState, Timings, WireBytes,
};
use crate::block::request::Cancel;
use crate::block::{ByteRange, CopyRequest, Device, Error, Guard, Kind, LegResult, Method, Op, Result};
use crate::reactor::local;
use smallvec::SmallVec;
use std::cell::Cell;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::Arc;

/// Steps in flight at once: enough that the seam between two steps costs nothing.
const STEPS_IN_FLIGHT: usize = 4;
/// How often a step is planned anew because its mapping changed under it before the copy gives up.
const REMAPS_MAX: u32 = 8;

/// What is locked together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Consistency {
    /// Each request of the plan by itself: no reader sees half a request.
    #[default]
    Request,
    /// The whole job: no reader sees half a copy, no writer gets in between.
    Whole,
}

impl Consistency {
    /// The word in receipts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Whole => "whole",
        }
    }
}

/// How the result is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// Not at all.
    #[default]
    None,
    /// BLAKE3 of both ends, the destination read back after the flush.
    Digest,
    /// Byte by byte, the destination read back after the flush.
    Bytes,
}

/// How a copy is to be run.
#[derive(Clone)]
pub struct Options {
    /// What the planner is told.
    pub policy: Policy,
    /// What is locked together.
    pub consistency: Consistency,
    /// Check at the end.
    pub verify: Verify,
    /// Most bytes per second, all methods together; `None`: no limit.
    pub limit_rate: Option<NonZeroU64>,
    /// Flush the destination at the end.
    pub flush: bool,
    /// Most memory for payload in flight, in bytes.
    pub payload_bytes: usize,
    /// Ends the copy early; what was done stands.
    pub cancel: Cancel,
    /// Once cancelled, requests that do not end soon are left in flight: for a caller whose process ends next, since they may
    /// still write to the destination, and the executor that is dropped waits for them.
    pub abandon: bool,
    /// Counts what is in flight.
    pub pulse: Rc<Pulse>,
    /// How the receipt names the engine.
    pub io_engine: String,
    /// This thread's range locks; `None`: nobody else uses these devices through this process.
    pub locks: Option<Rc<CoreLocks>>,
    /// Every byte is written, one piece after the other from the front: for a file that cannot be made longer before.
    pub in_order: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            consistency: Consistency::default(),
            verify: Verify::default(),
            limit_rate: None,
            flush: true,
            payload_bytes: 64 << 20,
            cancel: Cancel::default(),
            abandon: false,
            pulse: Rc::default(),
            io_engine: String::new(),
            locks: None,
            in_order: false,
        }
    }
}

/// What a copy is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    /// Copying.
    #[default]
    Copy,
    /// Flushing the destination.
    Flush,
    /// Reading both ends back.
    Verify,
}

/// How far a copy is, for whoever watches on the same thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Present phase.
    pub phase: Cell<Phase>,
    /// Bytes of the job known to be good.
    pub good_bytes: Cell<u64>,
    /// Those of them that lie in front of the job's first byte that is not.
    pub good_prefix_bytes: Cell<u64>,
    /// Bytes that steps still running have moved so far.
    pub moving_bytes: Cell<u64>,
    /// Bytes verified on both ends.
    pub verified_bytes: Cell<u64>,
    /// True once a read of the source has failed: an error of the device does not say which end it was about.
    pub source_failed: Cell<bool>,
    /// Method of the last step that began or ended; skipping is not worth a mention while others move bytes.
    pub method: Cell<Option<Method>>,
}

/// The end of a copy: the receipt always, the error when there was one.
#[derive(Debug)]
pub struct Ended {
    /// What happened. Its `source_state` is `unwatched` until whoever opened the source knows better.
    pub receipt: Receipt,
    /// Why it ended early or badly.
    pub error: Option<Error>,
    /// Requests were left in flight ([`Options::abandon`]).
    pub abandoned: bool,
}

/// Copies `job` from `source` to `dest` on the calling thread's executor ([`crate::reactor::local`]).
///
/// Returns when every step has ended, the destination is flushed (when asked, also after an error, so that the receipt's
/// good bytes are durable; there are none when that fails) and verified. Bytes outside the job's destination ranges are never changed.
pub async fn copy(
    source: Arc<dyn Device>,
    dest: Arc<dyn Device>,
    job: &Job,
    options: &Options,
    progress: &Rc<Progress>,
) -> Ended {
    let start = local::now();
    let ends: [(&'static str, _, _); 2] =
        [("source", &source, source.losses().len()), ("dest", &dest, dest.losses().len())];
    let facts = DeviceFacts::new(source.clone(), dest.clone());
    let mut planner = Some(Planner::new(job, facts, options.policy));
    let shared = Rc::new(Shared::new(source.clone(), dest.clone(), options.clone(), progress.clone()));
    // The queue that will flush is opened before the first write: a device that lost its cache and came back meanwhile
    // answers queues of before with an error, and would answer a new one's flush as if nothing had happened.
    let checked = check_apart(&source, &dest, job)
        .and_then(|()| check_verify(job, options.verify))
        .and_then(|()| shared.dest_client().map(drop));
    let begun = checked.is_ok();
    let mut error = match checked {
        Ok(()) => match shared.or_abandon(run_plan(&shared, &mut planner, job)).await {
            Some(done) => done.err(),
            None => Some(shared.abandon()),
        },
        Err(e) => Some(e),
    };
    let copied = local::now();

    progress.phase.set(Phase::Flush);
    let mut flushed = false;
    // What is to be read back must be where it is to be read from.
    if begun && (options.flush || options.verify != Verify::None) {
        let settles = error.is_none() && options.flush && lasting::is_watched(&shared);
        let flush = async || match settles && !options.cancel.is_set() {
            true => {
                let settled = shared.or_abandon(lasting::settle(&shared, job, false)).await;
                settled.unwrap_or_else(|| Err(shared.abandon()))
            }
            false => shared.flush().await,
        };
        match flush().await {
            Ok(()) => flushed = true,
            Err(e) => {
                if e.kind() != Kind::Cancelled {
                    // What the kernel could not write is gone from its cache too: only what was flushed before is known to be good.
                    shared.forget_unsure();
                    error = error.filter(|before| before.kind() != Kind::Cancelled);
                }
                error = error.or(Some(e));
            }
        }
    }
    let flush_end = local::now();
    let wire_bytes = WireBytes::of(&shared.calls());

    let mut verification = None;
    let mut mismatch = false;
    if error.is_none() && options.verify != Verify::None {
        progress.phase.set(Phase::Verify);
        match shared.or_abandon(verify::verify(&shared, job, options.verify)).await {
            Some(Ok(v)) => {
                mismatch = !v.equal;
                verification = Some(v);
            }
            Some(Err(e)) => error = Some(e),
            None => error = Some(shared.abandon()),
        }
    }
    let end = local::now();

    let tally = shared.tally.borrow();
    let outcome = match &error {
        None if mismatch => Outcome::Mismatch,
        None => Outcome::Done,
        Some(e) if e.kind() == Kind::Cancelled && options.cancel.is_set() => Outcome::Cancelled,
        Some(e) if is_refusal(e, options) && tally.good == 0 => Outcome::Refused,
        Some(_) => Outcome::Failed,
    };
    let summary = planner.as_ref().map(Planner::summary).unwrap_or_default();
    let mut receipt = blank(&source, &dest, job, options);
    receipt.outcome = outcome;
    receipt.good_bytes = tally.good;
    receipt.good_prefix_bytes = tally.prefix;
    receipt.methods = tally.methods.clone();
    receipt.reasons = summary.reasons;
    receipt.plan_digest = summary.digest;
    receipt.plan_steps = summary.steps;
    receipt.deviations = tally.deviations.clone();
    receipt.deviations_total = tally.deviations_total;
    receipt.calls = shared.calls();
    receipt.host_bytes = tally.host;
    receipt.wire_bytes = wire_bytes;
    for (end, device, before) in ends {
        let lost = device.losses().into_iter().skip(before);
        receipt.connections_lost.extend(lost.map(|why| Loss { end, why }));
    }
    receipt.flushed = flushed;
    receipt.verification = verification;
    receipt.undefined = tally.undefined.clone();
    receipt.copied_again_bytes = tally.copied_again;
    receipt.timings = Timings {
        copy_s: (copied - start).as_secs_f64(),
        flush_s: (flush_end - copied).as_secs_f64(),
        verify_s: (end - flush_end).as_secs_f64(),
        total_s: (end - start).as_secs_f64(),
    };
    receipt.error = error.as_ref().map(Into::into);
    let abandoned = shared.abandoned();
    drop(tally);
    Ended { receipt, error, abandoned }
}

/// An overlapping copy overwrites part of its source: afterwards there is nothing to compare with.
fn check_verify(job: &Job, verify: Verify) -> Result<()> {
    if job.overlaps() && verify != Verify::None {
        let text =
            "source and destination overlap, so the source is gone afterwards and --verify cannot compare";
        return Err(Error::new(Kind::InvalidInput, text));
    }
    Ok(())
}

fn is_refusal(error: &Error, options: &Options) -> bool {
    error.kind() == Kind::Unsupported && options.policy.offload == Offload::Require
}

/// A receipt of a copy of which nothing is done yet.
fn blank(source: &Arc<dyn Device>, dest: &Arc<dyn Device>, job: &Job, options: &Options) -> Receipt {
    let end_of = |device: &Arc<dyn Device>, span: Option<ByteRange>| {
        let span = span.unwrap_or_default();
        End {
            name: device.name().to_owned(),
            size_bytes: device.size(),
            offset: span.offset(),
            len: span.len(),
        }
    };
    Receipt {
        schema: SCHEMA,
        outcome: Outcome::Failed,
        source: end_of(source, job.source_span()),
        dest: end_of(dest, job.dest_span()),
        requested_bytes: job.total(),
        good_bytes: 0,
        cut_off_bytes: 0,
        good_prefix_bytes: 0,
        methods: std::collections::BTreeMap::new(),
        reasons: Vec::new(),
        plan_digest: String::new(),
        plan_steps: 0,
        deviations: Vec::new(),
        deviations_total: 0,
        calls: crate::block::Counters::default(),
        host_bytes: HostBytes::default(),
        wire_bytes: WireBytes::default(),
        connections_lost: Vec::new(),
        source_state: SourceState::Unwatched,
        consistency: options.consistency.name(),
        flushed: false,
        verification: None,
        undefined: Vec::new(),
        copied_again_bytes: 0,
        io_engine: options.io_engine.clone(),
        timings: Timings::default(),
        error: None,
    }
}

/// Runs every step of the plan; several at once where their order does not matter.
async fn run_plan(shared: &Rc<Shared>, planner: &mut Option<Planner<DeviceFacts>>, job: &Job) -> Result<()> {
    let whole = match shared.options.consistency {
        Consistency::Whole => shared.lock_job(job).await?,
        Consistency::Request => None,
    };
    let mut issued = 0;
    let mut planned = Ok(());
    loop {
        if shared.stopped() {
            break;
        }
        if lasting::is_due(shared) {
            shared.steps_below(1).await;
            if !shared.stopped()
                && let Err(e) = lasting::settle(shared, job, whole.is_some()).await
            {
                planned = Err(e);
                break;
            }
        }
        let Some(step) = shared.next_step(planner).await else { break };
        let step = match step {
            Ok(step) => step,
            Err(e) => {
                planned = Err(e);
                break;
            }
        };
        let Some(facts) = planner.as_ref().map(Planner::facts) else { break };
        let step = match shared.adopt(facts, step) {
            Ok(step) => Rc::new(step),
            Err(e) => {
                planned = Err(e);
                break;
            }
        };
        let position = if job.overlaps() { step.dest - job.segments()[0].dest } else { issued };
        issued += step.len;
        // File systems let one copy_file_range into a file at a time: a second one would only spin on the inode's lock.
        // Zeroes that a device has to write out are as long as a second may be.
        let alone = step.barrier
            || shared.options.in_order
            || matches!(step.method(), Method::CopyFileRange | Method::WriteZeroes);
        let room = if alone { 1 } else { STEPS_IN_FLIGHT };
        shared.steps_below(room).await;
        if shared.stopped() {
            break;
        }
        shared.step_begins(step.dest_range(), position);
        let locked = whole.is_some();
        let shared = shared.clone();
        drop(local::spawn(async move {
            let range = step.dest_range();
            let result = run_step(&shared, step, position, locked, 0).await;
            shared.step_ended(range, result);
        }));
    }
    shared.steps_below(1).await;
    // While the job is locked, or where no flush will look.
    let look = whole.is_some() || lasting::is_lost(shared);
    if planned.is_ok() && look && !shared.stopped() {
        planned = lasting::settle(shared, job, whole.is_some()).await;
    }
    drop(whole);
    if let Some(e) = shared.failure.take() {
        return Err(e);
    }
    planned?;
    if shared.options.cancel.is_set() && issued < job.total() { Err(shared.stop_reason()) } else { Ok(()) }
}

/// Locks, moves and commits one step. `position`: where its bytes stand in the job.
pub(super) async fn run_step(
    shared: &Rc<Shared>,
    step: Rc<Step>,
    position: u64,
    locked: bool,
    remaps: u32,
) -> Result<()> {
    // What it wrote through a map is told the map when it ends: until then nobody else is to have the range.
    let _mapped = (!is_leaf(&shared.dest)).then(|| shared.options.pulse.holds());
    let pins = shared.pin(&step)?;
    let ticket = match if locked { Ok(None) } else { shared.lock(&step).await } {
        Ok(ticket) => ticket,
        Err(e) => {
            pins.into_iter().for_each(Pins::release);
            return Err(e);
        }
    };
    let pins = match pins {
        Some(pins) if pins.still_valid() => pins,
        changed => {
            // The map changed since the plan was made: plan these bytes again on what is true now.
            changed.into_iter().for_each(Pins::release);
            drop(ticket);
            if remaps == REMAPS_MAX {
                let text =
                    "the mapping changed again and again while this range was copied; stop what changes it";
                return Err(Error::new(Kind::Io, text).on(shared.dest.name()).at(step.dest_range()));
            }
            return Box::pin(replan(shared, &step, position, locked, remaps + 1)).await;
        }
    };
    shared.shows(step.method());
    let mut results: Results = step.legs.iter().map(|_| (0, Ok(()))).collect();
    move_step(shared, &step, &mut results).await;
    let (good, result) = pins.commit(shared, &step, results);
    drop(ticket);
    shared.step_done(position, good, &step);
    result
}

/// Plans a step again and runs what comes of it in order.
async fn replan(
    shared: &Rc<Shared>,
    step: &Rc<Step>,
    position: u64,
    locked: bool,
    remaps: u32,
) -> Result<()> {
    let job = job_of(step, 0);
    let facts = DeviceFacts::new(shared.source.clone(), shared.dest.clone());
    let mut planner = Some(Planner::new(&job, facts, shared.options.policy));
    while let Some(sub) = shared.next_step(&mut planner).await {
        let sub = sub?;
        let Some(facts) = planner.as_ref().map(Planner::facts) else { break };
        let sub = Rc::new(shared.adopt(facts, sub)?);
        let at = position + (sub.dest - step.dest);
        run_step(shared, sub, at, locked, remaps).await?;
    }
    // Stopped while it was looked what comes next.
    planner.map(drop).ok_or_else(|| shared.stop_reason())
}

/// The mappings of one step, held from before the locks until after the last byte.
pub(super) struct Pins {
    pub(super) source: SmallVec<[Guard; 1]>,
    pub(super) dest: Guard,
    /// Bytes before the step that the destination guard covers too, because its blocks are larger.
    pub(super) skip: u64,
    /// Lengths of the destination guard's pieces, in bytes.
    pub(super) pieces: SmallVec<[u64; 1]>,
}

impl Pins {
    fn still_valid(&self) -> bool {
        self.dest.still_valid() && self.source.iter().all(Guard::still_valid)
    }

    /// Lets go of mappings through which nothing was written.
    fn release(self) {
        self.source.into_iter().for_each(Guard::release);
        self.dest.release();
    }

    /// Tells the map what was written; the good prefix of the step and its result as the map sees it.
    fn commit(self, shared: &Shared, step: &Step, mut results: Results) -> (u64, Result<()>) {
        let best = results.iter().map(|(good, _)| *good).max().unwrap_or(0);
        let mut legs: SmallVec<[LegResult; 2]> = SmallVec::new();
        for (leg, &(good, _)) in results.iter().enumerate() {
            let mut left = if good >= step.len { u64::MAX } else { self.skip + good };
            for (piece, &len) in self.pieces.iter().enumerate() {
                let good_bytes = left.min(len);
                legs.push(LegResult { piece, leg, good_bytes });
                left = left.saturating_sub(len);
            }
        }
        let skip = self.skip;
        self.source.into_iter().for_each(Guard::release);
        let Some((good, committed)) = self.dest.commit(&legs) else { return results.swap_remove(0) };
        let good = good.saturating_sub(skip).min(step.len);
        let first = results[0].0;
        if good > first
            && let Some(leg) = results.iter().position(|r| r.0 == best)
        {
            shared.tally.borrow_mut().by(step.legs[leg].method, good - first);
        }
        if good == step.len && committed.is_ok() {
            return (good, Ok(()));
        }
        // What the failed leg said is the cause; the map's own words stand in where no leg said anything.
        let cause = results.into_iter().find_map(|(_, r)| r.err());
        let lost = || Error::new(Kind::Io, "the map could not take the whole range").on(shared.dest.name());
        (good, Err(cause.or(committed.err()).unwrap_or_else(lost)))
    }
}

/// When the content of a step's source was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looked {
    BeforeTheLock,
    UnderTheLock,
}

/// Good prefix and result of each leg of a step.
type Results = SmallVec<[(u64, Result<()>); 1]>;

/// Moves the bytes of a locked step to each of its legs; one result a leg.
async fn move_step(shared: &Rc<Shared>, step: &Rc<Step>, results: &mut Results) {
    let mut emulated: SmallVec<[usize; 2]> = SmallVec::new();
    for (i, leg) in step.legs.iter().enumerate() {
        if leg.method.is_emulated() {
            emulated.push(i);
        } else {
            results[i] = move_leg(shared, step, i, shared.options.policy, Looked::BeforeTheLock).await;
        }
    }
    if !emulated.is_empty() {
        // One read serves all of them, so that they cannot differ.
        emulate_legs(shared, step, &emulated, results).await;
    }
}

/// Moves the bytes of a step to one leg by the method planned for it.
async fn move_leg(
    shared: &Rc<Shared>,
    step: &Rc<Step>,
    leg: usize,
    policy: Policy,
    looked: Looked,
) -> (u64, Result<()>) {
    let method = step.legs[leg].method;
    if matches!(method, Method::Skip | Method::WriteZeroes) && looked == Looked::BeforeTheLock {
        match shared.is_still_zero(step).await {
            Ok(true) => {}
            Ok(false) => {
                // Somebody wrote into the hole after the plan looked at it.
                let now = Error::new(Kind::SourceChanged, "the source is no longer a hole there");
                return step_down(shared, step, leg, 0, policy, Reason::HoleFilled, &now).await;
            }
            Err(e) => return (0, Err(e)),
        }
    }
    match method {
        Method::Emulated => {
            let mut results: Results = step.legs.iter().map(|_| (0, Ok(()))).collect();
            emulate_legs(shared, step, &[leg], &mut results).await;
            results.swap_remove(leg)
        }
        Method::Skip => {
            shared.moved(leg, Method::Skip, step.len);
            (step.len, Ok(()))
        }
        Method::WriteZeroes => zero_leg(shared, step, leg).await,
        method => native_leg(shared, step, leg, method, policy).await,
    }
}

async fn emulate_legs(shared: &Rc<Shared>, step: &Rc<Step>, legs: &[usize], results: &mut Results) {
    let mut done = emulate::emulate(shared, step, legs, 0..step.len, Bytes::Source).await;
    for (&leg, one) in legs.iter().zip(done.legs) {
        let result = match one.error {
            Some(e) => Err(e),
            None if one.good < step.len => Err(done.error.take().unwrap_or_else(|| shared.stop_reason())),
            None => Ok(()),
        };
        shared.moved(leg, Method::Emulated, one.good);
        results[leg] = (one.good, result);
    }
}

/// Hands one leg's copy to the device; what it refuses is planned again without that method.
async fn native_leg(
    shared: &Rc<Shared>,
    step: &Rc<Step>,
    leg: usize,
    method: Method,
    policy: Policy,
) -> (u64, Result<()>) {
    let place = step.legs[leg].place;
    let mut good = 0;
    // How far bytes may have been changed by a request that failed; tried again, they are defined again.
    let mut touched = 0;
    let mut most = u64::MAX;
    let leave_at = |good: u64, touched: u64| {
        if good < touched {
            let rest = ByteRange::between(step.dest + good, step.dest + touched);
            shared.tally.borrow_mut().undefined.push(rest.into());
        }
    };
    let paths = shared.leaf(place.leaf).copy_paths();
    let align = paths.iter().find(|p| p.method == method).map_or(1, |p| p.align).max(1);
    while good < step.len {
        if shared.stopped() {
            leave_at(good, touched);
            return (good, Err(shared.stop_reason()));
        }
        let len = (step.len - good).min(most).min(shared.paced_len(method));
        shared.pace(method, len).await;
        let request = CopyRequest {
            method,
            source: shared.leaf(step.source_leaf),
            sources: sources_of(step, good, len),
            dest: ByteRange::between(place.offset + good, place.offset + good + len),
            fua: false,
            cancel: shared.options.cancel.clone(),
        };
        // The rate may have made it wait.
        if shared.abandoned() {
            return (good, Err(shared.stop_reason()));
        }
        let in_flight = shared.options.pulse.writes();
        let done = shared.client(place.leaf).submit(Op::Copy(Box::new(request))).await;
        drop(in_flight);
        let moved = done.good_bytes.min(len);
        if let Some(report) = done.copy
            && report.rest_undefined
            && done.result.is_err()
        {
            touched = touched.max(good + len);
        }
        shared.moved(leg, method, moved);
        shared.good_so_far(step.dest + good, step.dest + good + moved);
        good += moved;
        let error = match done.result {
            Ok(()) if moved == len => continue,
            // A short answer without an error is no lie: ask for the rest, unless nothing moves any more.
            Ok(()) if moved > 0 => continue,
            Ok(()) => {
                Error::new(Kind::Io, "the device copied nothing and reported no error").on(shared.dest.name())
            }
            Err(e) => e,
        };
        match error.kind() {
            Kind::TooLarge { max_bytes } if max_bytes < len => {
                // Each time less, so this ends; at nothing the method is as good as refused.
                most = max_bytes - max_bytes % align;
                shared.deviation(step, method, method, Reason::TooLarge, &error);
                if most == 0 {
                    let policy = Policy { excluded: policy.excluded.with(method), ..policy };
                    let reason = Reason::TooLarge;
                    let (good, result) = step_down(shared, step, leg, good, policy, reason, &error).await;
                    leave_at(good, touched);
                    return (good, result);
                }
            }
            // Where offload is required the next method is tried too; the planner refuses only the last, this host.
            Kind::Unsupported => {
                let policy = Policy { excluded: policy.excluded.with(method), ..policy };
                let reason = Reason::Refused;
                let (good, result) = step_down(shared, step, leg, good, policy, reason, &error).await;
                leave_at(good, touched);
                return (good, result);
            }
            _ => {
                leave_at(good, touched);
                return (good, Err(error));
            }
        }
    }
    (good, Ok(()))
}

/// The part of a refused step from `from` on, by the next methods down the ladder. The step's locks cover it.
async fn step_down(
    shared: &Rc<Shared>,
    step: &Rc<Step>,
    leg: usize,
    from: u64,
    policy: Policy,
    reason: Reason,
    error: &Error,
) -> (u64, Result<()>) {
    let job = job_of(step, from);
    let facts = DeviceFacts::new(shared.source.clone(), shared.dest.clone());
    let mut planner = Some(Planner::new(&job, facts, policy));
    let mut good = from;
    let mut last = None;
    while let Some(sub) = shared.next_step(&mut planner).await {
        let Some(facts) = planner.as_ref().map(Planner::facts) else { break };
        let sub = match sub.and_then(|sub| shared.adopt(facts, sub)) {
            Ok(sub) => Rc::new(sub),
            Err(e) => return (good, Err(e)),
        };
        let now = sub.legs[leg].method;
        if last.replace(now) != Some(now) {
            shared.deviation(&sub, step.legs[leg].method, now, reason, error);
        }
        let (sub_good, result) = Box::pin(move_leg(shared, &sub, leg, policy, Looked::UnderTheLock)).await;
        if result.is_err() {
            // Back to front, what was moved is no prefix.
            return (if step.order == Order::Backward { from } else { good + sub_good }, result);
        }
        good += sub_good;
    }
    // Stopped while it was looked what comes next.
    (good, planner.map(drop).ok_or_else(|| shared.stop_reason()))
}

/// The job of the bytes of a step from `from` on.
fn job_of(step: &Step, from: u64) -> Job {
    let mut at = 0;
    let mut segments = Vec::new();
    for part in &step.sources {
        let skip = from.saturating_sub(at).min(part.len);
        if skip < part.len {
            segments.push(Segment {
                source: part.offset + skip,
                dest: step.dest + at + skip,
                len: part.len - skip,
            });
        }
        at += part.len;
    }
    Job::of_step(segments, step.order != Order::Any)
}

/// The source ranges behind `len` bytes of a step from `from` on.
fn sources_of(step: &Step, from: u64, len: u64) -> SmallVec<[ByteRange; 1]> {
    let mut at = 0;
    let mut ranges = SmallVec::new();
    for part in &step.sources {
        let (start, end) = (at.max(from), (at + part.len).min(from + len));
        if start < end {
            let offset = part.leaf_offset + (start - at);
            ranges.push(ByteRange::between(offset, offset + (end - start)));
        }
        at += part.len;
    }
    ranges
}

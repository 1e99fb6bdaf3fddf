//! Carries a plan out step by step, flushes and verifies, and writes the receipt.

use super::facts::{DeviceFacts, check_apart};
pub use super::options::{Consistency, Options, Phase, Progress, Verify};
use super::plan::Planner;
use super::settle;
use super::shared::Shared;
use super::step::run_step;
use super::{Job, verify};
use crate::block::receipt::{
    End, HostBytes, Loss, Machine, Outcome, Receipt, SCHEMA, SourceState, Timings, WireBytes,
};
use crate::block::{ByteRange, Device, Error, Fates, Kind, Method, Result};
use crate::reactor::local;
use std::rc::Rc;
use std::sync::Arc;

/// Steps in flight at once: enough that the seam between two steps costs nothing.
const STEPS_IN_FLIGHT: usize = 4;
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
/// Returns when every step has ended, the destination is flushed (when asked, also after an error, so that the
/// receipt's good bytes are durable; there are none when that fails) and verified. Bytes outside the job's destination
/// ranges are never changed.
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
    // answers queues from before with an error, and would answer a new one's flush as if nothing had happened.
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
        let settles = error.is_none() && options.flush && settle::is_watched(&shared);
        let flush = async || match settles && !options.cancel.is_set() {
            true => {
                let settled = shared.or_abandon(settle::settle(&shared, job, false)).await;
                settled.unwrap_or_else(|| Err(shared.abandon()))
            }
            false => shared.flush().await,
        };
        match flush().await {
            Ok(()) => flushed = true,
            Err(e) => {
                if e.kind() != Kind::Cancelled {
                    // What the kernel could not write is gone from its cache too: only what was flushed before is known
                    // to be good.
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
    receipt.bytes = tally.fates.by_fate();
    receipt.evidence = tally.fates.clone();
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
        receipt.connections_lost.extend(lost.map(|why| Loss { end: end.into(), why }));
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
        let text = "source and destination overlap, so the copy overwrites the source and --verify has nothing to \
            compare with";
        return Err(Error::new(Kind::InvalidInput, text));
    }
    Ok(())
}

fn is_refusal(error: &Error, options: &Options) -> bool {
    error.kind() == Kind::Unsupported && options.policy.offload.must().is_some()
}

/// A receipt of a copy of which nothing is done yet. When and where is for the caller: threads that serve others ask
/// the system nothing for it.
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
        schema: SCHEMA.into(),
        version: concat!("blkcopy ", env!("CARGO_PKG_VERSION")).into(),
        begun_at: String::new(),
        machine: Machine::default(),
        outcome: Outcome::Failed,
        source: end_of(source, job.source_span()),
        dest: end_of(dest, job.dest_span()),
        requested_bytes: job.total(),
        good_bytes: 0,
        cut_off_bytes: 0,
        good_prefix_bytes: 0,
        bytes: Fates::default().by_fate(),
        evidence: Fates::default(),
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
        consistency: options.consistency.name().into(),
        flushed: false,
        verification: None,
        undefined: Vec::new(),
        copied_again_bytes: 0,
        io_engine: options.io_engine.clone(),
        timings: Timings::default(),
        findings: Vec::new(),
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
        if settle::is_due(shared) {
            shared.steps_below(1).await;
            if !shared.stopped()
                && let Err(e) = settle::settle(shared, job, whole.is_some()).await
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
            let result = run_step(&shared, step, position, locked).await;
            shared.step_ended(range, result);
        }));
    }
    shared.steps_below(1).await;
    // While the job is locked, or where no flush will look.
    let look = whole.is_some() || settle::is_lost(shared);
    if planned.is_ok() && look && !shared.stopped() {
        planned = settle::settle(shared, job, whole.is_some()).await;
    }
    drop(whole);
    if let Some(e) = shared.failure.take() {
        return Err(e);
    }
    planned?;
    if shared.options.cancel.is_set() && issued < job.total() { Err(shared.stop_reason()) } else { Ok(()) }
}

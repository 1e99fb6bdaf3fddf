//! What becomes of bytes that a target with a volatile cache may have lost: when it comes back, they are copied again.
//!
//! Only for destinations that can lose bytes so ([`Device::cache_losses`](crate::block::Device::cache_losses)). A flush
//! every
//! [`FLUSH_EVERY`] keeps short what has to be copied again, and the list of it.

use super::Job;
use super::facts::DeviceFacts;
use super::lasting::Unsure;
use super::plan::{Planner, Policy};
use super::shared::Shared;
use super::step::run_step;
use crate::block::{Error, Kind, Result};
use std::rc::Rc;

/// Bytes after which the destination is flushed in the middle of a copy.
const FLUSH_EVERY: u64 = if cfg!(test) { 1 << 20 } else { 512 << 20 };
/// Ranges after which it is flushed likewise.
const RANGES_MAX: usize = 4096;
/// How often the same bytes are copied again before the copy gives up.
const TIMES_MAX: u32 = 8;

/// True when it is time to look after what was written: it may be lost, or there is much of it.
pub(super) fn is_due(shared: &Shared) -> bool {
    let lasting = shared.lasting.borrow();
    let Some(seen) = lasting.seen else { return false };
    let much = lasting.bytes >= FLUSH_EVERY || lasting.ranges.len() >= RANGES_MAX;
    !lasting.ranges.is_empty() && (shared.dest.cache_losses() != Some(seen) || (much && shared.options.flush))
}

/// True when what was written may be lost without an error of the device.
pub(super) fn is_watched(shared: &Shared) -> bool {
    shared.lasting.borrow().is_watched()
}

/// True when something was lost since anybody looked.
pub(super) fn is_lost(shared: &Shared) -> bool {
    shared.lasting.borrow().seen.is_some_and(|seen| shared.dest.cache_losses() != Some(seen))
}

/// Makes what was written last: flushes it where the copy is to be flushed, and copies again what was lost until
/// nothing is.
///
/// No step may be running. Errors: of the flush or of a step; the tally then tells what lasts. `Io` for a copy onto
/// itself, whose source may be overwritten, when bytes are lost; and when bytes are lost again and again.
pub(super) async fn settle(shared: &Rc<Shared>, job: &Job, locked: bool) -> Result<()> {
    if shared.lasting.borrow().seen.is_none() {
        return Ok(());
    }
    for _ in 0..TIMES_MAX {
        if shared.options.cancel.is_set() {
            return Err(shared.stop_reason());
        }
        let now = shared.dest.cache_losses();
        if now == shared.lasting.borrow().seen {
            if !shared.options.flush || shared.lasting.borrow().ranges.is_empty() {
                return Ok(());
            }
            let flushed = shared.flush().await;
            // A connection that was lost meanwhile is why it failed, or why it says less than it seems to.
            if shared.dest.cache_losses() == now {
                flushed?;
                shared.lasting.borrow_mut().settled(&shared.tally.borrow());
                return Ok(());
            }
            continue;
        }
        copy_again(shared, job, now, locked).await?;
    }
    let text = "the connection to the target was lost repeatedly while bytes were not yet flushed";
    shared.forget_unsure();
    Err(Error::new(Kind::Io, text).on(shared.dest.name()))
}

/// Copies again what may be lost.
async fn copy_again(shared: &Rc<Shared>, job: &Job, losses: Option<u64>, locked: bool) -> Result<()> {
    let lost = {
        let mut lasting = shared.lasting.borrow_mut();
        lasting.seen = losses;
        lasting.bytes = 0;
        std::mem::take(&mut lasting.ranges)
    };
    shared.forget_unsure();
    // A queue from before the loss would have every later flush fail.
    shared.renew_flusher()?;
    let bytes: u64 = lost.iter().map(|one| one.segment.len).sum();
    if bytes == 0 {
        return Ok(());
    }
    if job.overlaps() {
        let text = format!(
            "the connection to the target was lost with {bytes} bytes not yet flushed, and this copy may have \
             overwritten its own source, so those bytes cannot be copied again"
        );
        return Err(Error::new(Kind::Io, text).on(shared.dest.name()));
    }
    let dest = shared.dest.name();
    tracing::warn!(dest, bytes, "the connection was lost with bytes not yet flushed; they are copied again");
    shared.tally.borrow_mut().copied_again += bytes;
    // Some of it may be there: what was zero is so no more.
    let policy = Policy { dest_zero_from: u64::MAX, ..shared.options.policy };
    for Unsure { position, segment } in lost {
        let part = Job::of_step(vec![segment], false);
        let facts = DeviceFacts::new(shared.source.clone(), shared.dest.clone());
        let mut planner = Some(Planner::new(&part, facts, policy));
        while let Some(step) = shared.next_step(&mut planner).await {
            if shared.stopped() {
                return Err(shared.stop_reason());
            }
            let step = step?;
            let Some(facts) = planner.as_ref().map(Planner::facts) else { break };
            let step = Rc::new(shared.adopt(facts, step)?);
            let at = position + (step.dest - segment.dest);
            run_step(shared, step, at, locked).await?;
        }
        if planner.is_none() {
            // Stopped while it was looked what comes next.
            return Err(shared.stop_reason());
        }
    }
    Ok(())
}

//! What a copy has written since the last flush that succeeded, and what becomes of it when a target with a volatile cache is lost
//! and comes back: it is copied again.
//!
//! Only for destinations that can lose bytes so ([`Device::cache_losses`](crate::block::Device::cache_losses)). A flush every
//! [`FLUSH_EVERY`] keeps short what has to be copied again, and the list of it.

use super::facts::DeviceFacts;
use super::plan::{Planner, Step};
use super::run::run_step;
use super::shared::{Shared, Tally};
use super::{Job, Segment};
use crate::block::{Error, Kind, Result};
use std::rc::Rc;

/// Bytes after which the destination is flushed in the middle of a copy.
const FLUSH_EVERY: u64 = if cfg!(test) { 1 << 20 } else { 512 << 20 };
/// Ranges after which it is flushed likewise.
const RANGES_MAX: usize = 4096;
/// How often the same bytes are copied again before the copy gives up.
const TIMES_MAX: u32 = 8;

/// Bytes that may be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Unsure {
    /// Where they stand in the job.
    position: u64,
    segment: Segment,
}

/// What is not known to last.
#[derive(Default)]
pub(super) struct Lasting {
    /// [`Device::cache_losses`](crate::block::Device::cache_losses) when `ranges` was empty; `None`: nothing is lost so.
    seen: Option<u64>,
    ranges: Vec<Unsure>,
    bytes: u64,
    /// The tally at that time.
    before: Tally,
}

impl Lasting {
    /// Nothing written yet.
    pub(super) fn new(losses: Option<u64>) -> Self {
        Self { seen: losses, ..Self::default() }
    }

    /// Takes down the front of a step that was written: `good` bytes.
    pub(super) fn written(&mut self, position: u64, good: u64, step: &Step) {
        if self.seen.is_none() {
            return;
        }
        let mut at = 0;
        for part in &step.sources {
            let len = part.len.min(good - at);
            if len == 0 {
                break;
            }
            let segment = Segment { source: part.offset, dest: step.dest + at, len };
            self.bytes += len;
            match self.ranges.last_mut() {
                Some(last) if follows(last, position + at, segment) => last.segment.len += len,
                _ => self.ranges.push(Unsure { position: position + at, segment }),
            }
            at += len;
        }
    }

    /// All that was written lasts.
    fn settled(&mut self, tally: &Tally) {
        self.ranges.clear();
        self.bytes = 0;
        self.before = tally.progress();
    }

    /// True when what was written may be lost without an error of the device.
    pub(super) fn is_watched(&self) -> bool {
        self.seen.is_some()
    }

    /// What is known to last.
    pub(super) fn durable(&self) -> Tally {
        self.before.progress()
    }
}

/// True when a stretch goes on where another ends, in the job and on both ends.
fn follows(last: &Unsure, position: u64, segment: Segment) -> bool {
    let Segment { source, dest, len } = last.segment;
    last.position + len == position && source + len == segment.source && dest + len == segment.dest
}

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

/// Makes what was written last: flushes it where the copy is to be flushed, and copies again what was lost until nothing is.
///
/// No step may be running. Errors: of the flush or of a step; the tally then tells what lasts. `Io` for a copy onto itself, whose
/// source may be overwritten, when bytes are lost; and when bytes are lost again and again.
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
    let text = "the connection to the target was lost again and again while bytes were not yet flushed";
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
    // A queue of before the loss would have every later flush fail.
    shared.renew_flusher()?;
    let bytes: u64 = lost.iter().map(|one| one.segment.len).sum();
    if bytes == 0 {
        return Ok(());
    }
    if job.overlaps() {
        let text = format!(
            "the connection to the target was lost with {bytes} bytes not yet flushed, and the source of this copy onto itself may be \
             overwritten: it cannot be copied again"
        );
        return Err(Error::new(Kind::Io, text).on(shared.dest.name()));
    }
    let dest = shared.dest.name();
    tracing::warn!(dest, bytes, "the connection was lost with bytes not yet flushed; they are copied again");
    shared.tally.borrow_mut().copied_again += bytes;
    for Unsure { position, segment } in lost {
        let part = Job::of_step(vec![segment], false);
        let facts = DeviceFacts::new(shared.source.clone(), shared.dest.clone());
        let mut planner = Some(Planner::new(&part, facts, shared.options.policy));
        while let Some(step) = shared.next_step(&mut planner).await {
            if shared.stopped() {
                return Err(shared.stop_reason());
            }
            let step = step?;
            let Some(facts) = planner.as_ref().map(Planner::facts) else { break };
            let step = Rc::new(shared.adopt(facts, step)?);
            let at = position + (step.dest - segment.dest);
            run_step(shared, step, at, locked, 0).await?;
        }
        if planner.is_none() {
            // Stopped while it was looked what comes next.
            return Err(shared.stop_reason());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_where_the_last_ended_is_one_stretch() {
        let one = Unsure { position: 10, segment: Segment { source: 100, dest: 1000, len: 5 } };
        let next = |source, dest| Segment { source, dest, len: 1 };
        assert!(follows(&one, 15, next(105, 1005)));
        assert!(!follows(&one, 16, next(105, 1005)), "a step between them is still running");
        assert!(!follows(&one, 15, next(106, 1005)) && !follows(&one, 15, next(105, 1006)));
    }
}

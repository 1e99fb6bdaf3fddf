//! How other threads follow a copy and end it.

use crate::block::request::Cancel;
use crate::block::{Device, Method};
use crate::copy::Job;
use crate::copy::run::{Phase, Progress};
use crate::drivers::File;
use crate::reactor::Waker;
use crate::reactor::local::{Local, sleep};
use crate::sys::sync::lock;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often the copying thread says where it is.
const SAID_EVERY: Duration = Duration::from_millis(100);

/// Ends a copy early, from any thread; clones are one handle. What was copied until then stands.
#[derive(Clone, Default, Debug)]
pub struct CancelHandle {
    asked: Cancel,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl CancelHandle {
    /// Asks the copy to end; it then fails with the kind `Cancelled`.
    pub fn cancel(&self) {
        self.asked.set();
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake();
        }
    }

    /// True once asked.
    pub fn is_set(&self) -> bool {
        self.asked.is_set()
    }

    /// Wakes this, and nothing else, when the copy is asked to end.
    pub fn wakes(&self, waker: Waker) {
        *lock(&self.waker) = Some(waker);
    }

    /// The flag that a copy looks at.
    pub(super) fn flag(&self) -> &Cancel {
        &self.asked
    }
}

/// How far a copy is.
#[derive(Clone, Debug)]
pub struct HowFar {
    /// When it began.
    pub begun: Instant,
    /// Bytes to copy.
    pub total_bytes: u64,
    /// Bytes known to be good.
    pub good_bytes: u64,
    /// Those of them in front of the first byte that is not.
    pub good_prefix_bytes: u64,
    /// Bytes that steps still running have moved so far.
    pub moving_bytes: u64,
    /// Bytes that were moved so far: [`Progress::data_bytes`].
    pub data_bytes: u64,
    /// Bytes that are to be moved in all, as far as can be told before; `None`: it cannot.
    pub data_total_bytes: Option<u64>,
    /// Bytes verified on both ends.
    pub verified_bytes: u64,
    /// What it is doing.
    pub phase: Phase,
    /// Method of the last step that began or ended.
    pub method: Option<Method>,
}

impl HowFar {
    /// Bytes moved in a second, on average; `None` while none is being moved: holes are passed over, extents shared.
    pub fn rate(&self, time: Duration) -> Option<u64> {
        if self.phase != Phase::Copy || !self.method.is_some_and(Method::moves_bytes) {
            return None;
        }
        let rate = (u128::from(self.data_bytes) * 1_000_000_000).checked_div(time.as_nanos())?;
        u64::try_from(rate).ok().filter(|&rate| rate > 0)
    }

    /// Seconds until the copy is done, at the rate so far; `None` when what is left to move is not known.
    pub fn seconds_left(&self, time: Duration) -> Option<u64> {
        let rate = self.rate(time)?;
        let left = self.data_total_bytes?.checked_sub(self.data_bytes)?;
        // Of what is left, holes may be the more.
        let left = left.min(self.total_bytes.saturating_sub(self.moved_bytes()));
        Some(left.div_ceil(rate))
    }

    /// Bytes moved so far, those of steps still running too.
    pub fn moved_bytes(&self) -> u64 {
        self.good_bytes.saturating_add(self.moving_bytes)
    }
}

/// Shows any thread how far a copy is. One value under a lock, not many counters: what is read together was true
/// together.
#[derive(Default, Debug)]
pub struct CopyWatch(Mutex<Option<HowFar>>);

impl CopyWatch {
    /// How far it is, as its thread last said (ten times a second); `None` when no copy runs.
    pub fn how_far(&self) -> Option<HowFar> {
        lock(&self.0).clone()
    }

    /// Shows this from now on.
    pub fn put(&self, now: Option<HowFar>) {
        *lock(&self.0) = now;
    }
}

/// Keeps a watch up to date until it is dropped; no copy runs then.
pub(super) struct Showing {
    watch: Arc<CopyWatch>,
    is_over: Rc<Cell<bool>>,
}

/// What a copy will have done at its end.
#[derive(Clone, Copy)]
pub(super) struct Totals {
    /// Bytes of the job.
    pub(super) bytes: u64,
    /// See [`HowFar::data_total_bytes`].
    pub(super) data_bytes: Option<u64>,
}

impl Totals {
    /// Those of a job that reads `source`: what is stored of it is known when it was opened, if all of it is copied.
    pub(super) fn of(job: &Job, source: &Arc<dyn Device>) -> Self {
        let (bytes, size) = (job.total(), source.size());
        let (stored, tells_holes) = match source.as_any().downcast_ref::<File>() {
            Some(file) => {
                let blocks = u64::try_from(file.stat_at_open().st_blocks).ok();
                // Nothing is asked of a server here: it may not answer.
                (blocks.and_then(|n| n.checked_mul(512)), file.is_where_holes_are())
            }
            None => (source.allocated_bytes(), source.tells_holes()),
        };
        let stored = stored.unwrap_or(size).min(size);
        let data_bytes = match stored == size {
            true => Some(bytes),
            false => (bytes == size && tells_holes).then_some(stored),
        };
        Self { bytes, data_bytes }
    }
}

/// Shows `progress` out of `totals` on `watch`.
pub(super) fn show(
    local: &Local,
    watch: &Arc<CopyWatch>,
    progress: &Rc<Progress>,
    totals: Totals,
) -> Showing {
    let begun = Instant::now();
    let is_over = Rc::new(Cell::new(false));
    watch.put(Some(now(begun, totals, progress)));
    let (ended, watched, progress) = (is_over.clone(), watch.clone(), progress.clone());
    let _runs_on = local.spawn(async move {
        while !ended.get() {
            watched.put(Some(now(begun, totals, &progress)));
            sleep(SAID_EVERY).await;
        }
    });
    Showing { watch: watch.clone(), is_over }
}

fn now(begun: Instant, totals: Totals, progress: &Progress) -> HowFar {
    HowFar {
        begun,
        total_bytes: totals.bytes,
        data_total_bytes: totals.data_bytes,
        data_bytes: progress.data_bytes.get(),
        good_bytes: progress.good_bytes.get(),
        good_prefix_bytes: progress.good_prefix_bytes.get(),
        moving_bytes: progress.moving_bytes.get(),
        verified_bytes: progress.verified_bytes.get(),
        phase: progress.phase.get(),
        method: progress.method.get(),
    }
}

impl Drop for Showing {
    fn drop(&mut self) {
        self.is_over.set(true);
        self.watch.put(None);
    }
}

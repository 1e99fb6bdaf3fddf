//! How other threads follow a copy and end it.

use crate::block::Method;
use crate::block::request::Cancel;
use crate::copy::run::{Phase, Progress};
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
    /// Bytes verified on both ends.
    pub verified_bytes: u64,
    /// What it is doing.
    pub phase: Phase,
    /// Method of the last step that began or ended.
    pub method: Option<Method>,
}

impl HowFar {
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

/// Shows `progress` out of `total_bytes` on `watch`.
pub(super) fn show(
    local: &Local,
    watch: &Arc<CopyWatch>,
    progress: &Rc<Progress>,
    total_bytes: u64,
) -> Showing {
    let begun = Instant::now();
    let is_over = Rc::new(Cell::new(false));
    watch.put(Some(now(begun, total_bytes, progress)));
    let (ended, watched, progress) = (is_over.clone(), watch.clone(), progress.clone());
    let _runs_on = local.spawn(async move {
        while !ended.get() {
            watched.put(Some(now(begun, total_bytes, &progress)));
            sleep(SAID_EVERY).await;
        }
    });
    Showing { watch: watch.clone(), is_over }
}

fn now(begun: Instant, total_bytes: u64, progress: &Progress) -> HowFar {
    HowFar {
        begun,
        total_bytes,
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

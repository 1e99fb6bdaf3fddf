//! How long one answer of `copy_file_range` may be.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest answer of `copy_file_range`, in bytes.
const ANSWER_MAX: u64 = 64 << 20;
/// Longest answer that copies a hole, in bytes: the most that fits the 32 bits of an answer, in whole `ANSWER_MIN`.
const HOLE_MAX: u64 = (1 << 32) - ANSWER_MIN;
/// Longest answer while nothing is known of how fast copies are, in bytes.
const ANSWER_FIRST: u64 = 8 << 20;
/// The least that answers are shortened to, in bytes.
const ANSWER_MIN: u64 = 1 << 20;
/// How long an answer may take: an interrupted program waits for the one in flight.
const ANSWER_TIME: Duration = Duration::from_millis(250);

/// How long answers may be, by how fast copies onto a volume have been.
pub(super) struct Pace {
    now: AtomicU64,
    max: u64,
}

impl Pace {
    /// For copies of anything.
    pub(super) fn of_copies() -> Self {
        Self { now: AtomicU64::new(ANSWER_FIRST), max: ANSWER_MAX }
    }

    /// For copies of holes, which most devices take in one call however long they are.
    pub(super) fn of_holes() -> Self {
        Self { now: AtomicU64::new(ANSWER_MAX), max: HOLE_MAX }
    }

    /// Longest answer now, in bytes.
    pub(super) fn answer_max(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// A copy of so many bytes took this time.
    pub(super) fn learn(&self, bytes: u64, time: Duration) {
        if bytes < ANSWER_MIN {
            return;
        }
        let fits = u128::from(bytes) * ANSWER_TIME.as_nanos() / time.as_nanos().max(1);
        let fits = u64::try_from(fits).unwrap_or(u64::MAX);
        // Half the way there: one slow answer says little.
        let next = u64::midpoint(self.answer_max(), fits.clamp(ANSWER_MIN, self.max));
        self.now.store(next - next % ANSWER_MIN, Ordering::Relaxed);
    }
}

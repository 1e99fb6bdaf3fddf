//! What a mover answers. It moves bytes by one method and never looks further: what comes of the rest is for the step
//! to decide.

use crate::block::Error;

/// What a mover did.
pub(super) struct Moved {
    /// Good bytes from the front of the step, those that were good before included.
    pub(super) good: u64,
    /// How far into the step bytes may have been changed by a request that failed; past `good`, they are undefined.
    pub(super) touched: u64,
    /// What is to come of the rest.
    pub(super) then: Then,
}

/// What is to come of the bytes that were not moved.
pub(super) enum Then {
    /// There are none.
    Done,
    /// The same again in requests of at most so many bytes; 0: the method is as good as refused.
    Cut { most: u64, error: Error },
    /// The next method: the device does not know this one. Where offload is required that is tried too; the planner
    /// refuses only the last, this process.
    Refused(Error),
    /// The next method: the source is not a hole there any more.
    HoleFilled(Error),
    /// The copy ends here.
    Failed(Error),
}

impl Moved {
    /// All of a step.
    pub(super) fn all(len: u64) -> Self {
        Self { good: len, touched: 0, then: Then::Done }
    }

    /// Good up to here, and no further.
    pub(super) fn failed(good: u64, error: Error) -> Self {
        Self { good, touched: 0, then: Then::Failed(error) }
    }
}

//! The executor that a copy runs on: a reactor, its range locks, and the name of its I/O engine.

use super::findings::{Finding, Obstacle};
use crate::block::Error;
use crate::block::lock::{CoreLocks, LockDomain};
use crate::reactor::local::Local;
use crate::reactor::{EngineChoice, choose};
use std::rc::Rc;

/// Buffered writes are made by the submitting thread: cheapest, and this thread serves nobody else.
const INLINE_WRITES: bool = true;

/// The executor of this thread and what its engine is called.
pub(super) struct Engine {
    pub(super) local: Local,
    /// This thread's range locks.
    pub(super) locks: Rc<CoreLocks>,
    pub(super) name: String,
}

impl Engine {
    /// Starts it; tells when it is not the one that was hoped for.
    ///
    /// Errors: [`Finding::NoEngine`].
    pub(super) fn start(choice: EngineChoice, tell: &mut dyn FnMut(&Finding)) -> Result<Self, Obstacle> {
        let (reactor, why) = choose(choice, INLINE_WRITES)
            .map_err(|e| Finding::NoEngine { error: Error::os("the I/O engine cannot be started", e) })?;
        if choice == EngineChoice::Auto && why.contains("because") {
            tell(&Finding::EngineSteppedDown { why: why.clone() });
        }
        let name = why.strip_prefix("io engine: ").unwrap_or(&why).to_owned();
        let local = Local::new(reactor);
        let waker = local.waker();
        let locks = Rc::new(LockDomain::process().attach(move || waker.wake())?);
        local.serve_locks(&locks);
        Ok(Self { local, locks, name })
    }
}

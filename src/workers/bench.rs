//! What a thread does I/O with: its reactor, its executor and its range locks.

use crate::block::lock::{CoreLocks, LockDomain};
use crate::block::{Error, Result};
use crate::reactor::inline::Inline;
use crate::reactor::local::Local;
use crate::reactor::{self, EngineChoice, Entered, Reactor};
use std::rc::Rc;

/// The tools of a thread that runs tasks.
pub struct Workbench {
    /// The executor.
    pub local: Local,
    /// The range locks, in the domain of this process; the executor serves them.
    pub locks: Rc<CoreLocks>,
    /// The reactor, which is also the thread's current one.
    pub reactor: Rc<dyn Reactor>,
    /// What the engine is called, and why it is this one: "threads (as asked)".
    pub engine: String,
}

impl Workbench {
    /// Sets up the calling thread. `inline_writes`: as in [`reactor::pool::Pool::new`].
    ///
    /// Errors: those of the engine; `InUse` when too many threads take part in range locking.
    ///
    /// # Panics
    /// When the thread has an executor or a reactor already.
    pub fn new(choice: EngineChoice, inline_writes: bool) -> Result<Self> {
        let (reactor, why) = reactor::choose(choice, inline_writes).map_err(cannot_start)?;
        let engine = why.strip_prefix("I/O engine: ").unwrap_or(&why).to_owned();
        let local = Local::new(reactor.clone());
        let locks = attach(&*reactor)?;
        local.serve_locks(&locks);
        Ok(Self { local, locks, reactor, engine })
    }
}

/// The tools of a thread that belongs to another library: it serves one request at a time, makes every call itself, and
/// sleeps where we do not see it. Its range locks are parked except between [`GuestBench::enter`] and
/// [`GuestBench::leave`].
pub struct GuestBench {
    locks: Rc<CoreLocks>,
    reactor: Rc<dyn Reactor>,
    // The last to go: queues use the reactor to the end.
    _entered: Entered,
}

impl GuestBench {
    /// Sets up the calling thread, parked.
    ///
    /// Errors: those of the engine; `InUse` when too many threads take part in range locking.
    ///
    /// # Panics
    /// When the thread has a reactor already.
    pub fn new() -> Result<Self> {
        // Its calls are made by this thread, once its locks are parked: a hop to another thread costs more.
        let reactor: Rc<dyn Reactor> = Rc::new(Inline::new().map_err(cannot_start)?);
        let entered = reactor::enter(reactor.clone());
        let bench = Self { locks: attach(&*reactor)?, reactor, _entered: entered };
        bench.leave();
        Ok(bench)
    }

    /// The range locks.
    pub fn locks(&self) -> &Rc<CoreLocks> {
        &self.locks
    }

    /// Begins to serve a request.
    pub fn enter(&self) {
        self.locks.enter();
        self.locks.pump();
    }

    /// A request has been served: none of its I/O is in flight.
    pub fn leave(&self) {
        while !self.locks.park() {}
    }

    /// Waits until something in flight may have ended. Other threads serve this one's table of locks meanwhile.
    pub fn wait(&self) {
        if self.locks.park() {
            self.reactor.wait(None);
            self.locks.enter();
        }
        self.locks.pump();
    }
}

fn attach(reactor: &dyn Reactor) -> Result<Rc<CoreLocks>> {
    let waker = reactor.waker();
    Ok(Rc::new(LockDomain::process().attach(move || waker.wake())?))
}

fn cannot_start(error: std::io::Error) -> Error {
    Error::os("the I/O engine cannot be started", error)
}

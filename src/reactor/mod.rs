//! Completions, timers and wake-ups of one thread, behind one trait at the level of operations.
//!
//! Each thread that does I/O owns one reactor, entered with [`enter`] and found with [`current`]. A queue takes a
//! [`Port`] and submits [`IoOp`]s under it; [`Reactor::complete`] gives back what has finished. Engines: `uring`,
//! `pool` (threads, where io_uring is forbidden), `inline` (the thread itself) and `sim` (seeded, virtual time). What
//! may wait runs on the `helpers` of its device. `docs/notes/002-reactor.md`.

pub mod away;
pub mod helpers;
pub mod inline;
pub mod local;
#[cfg(test)]
mod local_tests;
pub mod pool;
mod ports;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
#[cfg(test)]
mod tests;
mod threads;
pub mod uring;

use crate::block::{Buf, Call, Counters};
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// An operation on a file descriptor, or a call to make on another thread. Owns all it needs until it completes.
pub enum IoOp {
    /// Read into `buf` (its length) at `offset`. May be short.
    Read {
        /// Kept open until completion.
        file: Arc<OwnedFd>,
        /// Bytes from the start of the file.
        offset: u64,
        /// Comes back with the completion.
        buf: Buf,
        /// True when the descriptor is O_DIRECT: never tried inline.
        direct: bool,
    },
    /// Write `buf` at `offset`. May be short.
    Write {
        /// Kept open until completion.
        file: Arc<OwnedFd>,
        /// Bytes from the start of the file.
        offset: u64,
        /// Comes back with the completion.
        buf: Buf,
        /// True when the descriptor is O_DIRECT.
        direct: bool,
        /// `RWF_DSYNC`: durable before completion.
        dsync: bool,
    },
    /// `fdatasync` (or `fsync`) of the file.
    Sync {
        /// Kept open until completion.
        file: Arc<OwnedFd>,
        /// True: `fdatasync`.
        data_only: bool,
    },
    /// Anything that may block and has no ring operation: runs on a helper thread of the port's device.
    Call(Box<dyn FnOnce() -> CallDone + Send>),
    /// The same, but expected to end within about a millisecond (a clone of extents): made by the submitting thread
    /// where the engine may block it (`inline_writes`), which spares starting and waking a helper.
    Brief(Box<dyn FnOnce() -> CallDone + Send>),
    /// Completes once `file` (a socket) can be read, or with `write` be written, has ended or failed; maybe early, so
    /// try and ask again. It is there to end a sleep: a thread that turns without waiting looks at its sockets itself,
    /// and may see this some turns late. Shut a socket down to be rid of one in flight.
    Ready {
        /// Kept open until completion.
        file: Arc<OwnedFd>,
        /// True: wait until it can be written.
        write: bool,
    },
}

/// What an [`IoOp::Call`] returns.
#[derive(Debug, Default)]
pub struct CallDone {
    /// Bytes (or another count) done; meaningful also beside an error.
    pub count: u64,
    /// The error, if it ended with one.
    pub error: Option<std::io::Error>,
    /// System calls it made.
    pub counters: Counters,
}

/// The end of an operation.
#[derive(Debug)]
pub struct IoDone {
    /// The submitter's number.
    pub token: u64,
    /// Bytes read or written (0 for a sync; the count of a call).
    pub count: u64,
    /// The error, if any: a raw operating system error.
    pub error: Option<std::io::Error>,
    /// The operation's buffer (empty when it had none).
    pub buf: Buf,
    /// How it was carried out, for the receipt.
    pub counters: Counters,
}

/// A user of a reactor: completions are kept apart by port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Port(pub u32);

/// The engines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Engine {
    /// io_uring.
    Uring,
    /// Threads.
    Pool,
    /// The submitting thread, while it waits.
    Inline,
    /// Seeded, virtual time.
    Sim,
}

/// Completions, timers and wake-ups of one thread.
pub trait Reactor {
    /// Which engine this is.
    fn engine(&self) -> Engine;

    /// A new port, of no device: for sockets.
    fn open_port(&self) -> Port;

    /// A new port whose operations are of one device: what may wait runs on that device's helpers.
    fn open_port_of(&self, _helpers: &Arc<helpers::Helpers>) -> Port {
        self.open_port()
    }

    /// True when this thread serves one task and nobody else, so that calls which may wait are made here and now.
    fn may_wait(&self) -> bool {
        true
    }

    /// Gives a port back. Operations still in flight under it finish; their completions are dropped.
    fn close_port(&self, port: Port);

    /// The same; `kept` is dropped once nothing is in flight under the port (or the reactor is dropped, if that is
    /// earlier).
    fn close_port_keeping(&self, port: Port, kept: Box<dyn std::any::Any>) {
        self.close_port(port);
        drop(kept);
    }

    /// Starts an operation. Never blocks for long: what cannot be done now is done later. Operations may complete in
    /// any order.
    fn submit(&self, port: Port, token: u64, op: IoOp);

    /// Moves this port's finished operations to `out`, without waiting.
    fn complete(&self, port: Port, out: &mut Vec<IoDone>);

    /// Time since some fixed start; virtual under `sim`.
    fn now(&self) -> Duration;

    /// Starts what was submitted, then waits until an operation finishes, the waker is used or `deadline` (on the
    /// clock of [`Reactor::now`]) is reached. Returns at once when completions are ready to be taken.
    ///
    /// May return early; ask again. Dropping a reactor loses the completions of what is in flight, not the buffers: the
    /// operations finish (under `sim` they are never made).
    fn wait(&self, deadline: Option<Duration>);

    /// Starts what was submitted and notices what has finished, without waiting.
    fn turn(&self);

    /// A handle by which any thread ends a [`Reactor::wait`].
    fn waker(&self) -> Waker;
}

/// Ends a wait of the reactor it came from, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Waker(pub(crate) Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// A waker that runs `wake`.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(wake))
    }

    /// Ends the present wait, or the next one if none is going on.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn Reactor>>> = const { RefCell::new(None) };
}

/// Which engine a user asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum EngineChoice {
    /// io_uring where the system allows it, else threads.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Threads.
    Pool,
}

/// A reactor for the calling thread, and one line for the log that says which engine it is and why.
///
/// `inline_writes`: as in [`pool::Pool::new`]. Errors: [`EngineChoice::Uring`] where io_uring cannot be had; no file
/// descriptors left. Whatever error setting up a ring ends in makes [`EngineChoice::Auto`] take threads.
pub fn choose(choice: EngineChoice, inline_writes: bool) -> io::Result<(Rc<dyn Reactor>, String)> {
    let (reactor, why): (Rc<dyn Reactor>, String) = match choice {
        EngineChoice::Pool => {
            (Rc::new(pool::Pool::new(inline_writes)?), "I/O engine: threads (as asked)".into())
        }
        EngineChoice::Uring => {
            let reactor = uring::Uring::new(inline_writes).map_err(|e| {
                let hint = "io_uring cannot be used here; use --io-engine pool";
                io::Error::new(e.kind(), format!("{hint} ({e})"))
            })?;
            (Rc::new(reactor), "I/O engine: io_uring (as asked)".into())
        }
        EngineChoice::Auto => match uring::Uring::new(inline_writes) {
            Ok(reactor) => (Rc::new(reactor), "I/O engine: io_uring".into()),
            Err(e) => {
                let why = match e.raw_os_error() {
                    Some(libc::EPERM) => "io_uring is forbidden here (EPERM)".to_owned(),
                    Some(libc::EACCES) => "io_uring is forbidden here (EACCES)".to_owned(),
                    Some(libc::ENOSYS) => "the kernel has no io_uring (ENOSYS)".to_owned(),
                    Some(libc::EINVAL) => "the kernel's io_uring is too old (EINVAL)".to_owned(),
                    Some(libc::ENOMEM) => "no memory for an io_uring (ENOMEM)".to_owned(),
                    // Sandboxes answer as they like, and threads need nothing of it.
                    _ => format!("io_uring cannot be set up here ({e})"),
                };
                (Rc::new(pool::Pool::new(inline_writes)?), format!("I/O engine: threads, because {why}"))
            }
        },
    };
    tracing::info!("{why}");
    Ok((reactor, why))
}

/// Makes `reactor` the calling thread's until the guard is dropped.
///
/// # Panics
/// When the thread has one already.
pub fn enter(reactor: Rc<dyn Reactor>) -> Entered {
    CURRENT.with(|c| {
        let mut c = c.borrow_mut();
        assert!(c.is_none(), "this thread has a reactor already");
        *c = Some(reactor);
    });
    Entered(std::marker::PhantomData)
}

/// Keeps a thread's reactor in place.
#[must_use = "the reactor is left when this is dropped"]
pub struct Entered(std::marker::PhantomData<*const ()>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|c| c.borrow_mut().take());
    }
}

/// The calling thread's reactor; `None` when none was entered.
pub fn current() -> Option<Rc<dyn Reactor>> {
    CURRENT.with(|c| c.borrow().clone())
}

/// Counters with one call in them.
pub(crate) fn one(call: Call) -> Counters {
    let mut counters = Counters::default();
    counters.count(call);
    counters
}

//! The engine of threads: works wherever there are system calls, and where io_uring is forbidden.

use super::helpers::{self, Helpers};
use super::ports::Ports;
use super::threads::{self, Home, Watches};
use super::{Engine, IoDone, IoOp, Port, Reactor, Waker, one};
use crate::block::{Call, Counters};
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Completions by helper threads; page-cache hits and (when asked) buffered writes on the calling thread.
pub struct Pool {
    ports: RefCell<Ports>,
    watches: RefCell<Watches>,
    home: Arc<Home>,
    inline_writes: bool,
    start: Instant,
}

impl Pool {
    /// A reactor for the calling thread; starts no thread until one is needed.
    ///
    /// `inline_writes`: buffered writes that need not be durable, and brief calls, are made by the submitting thread,
    /// which is cheapest but may block it while the kernel throttles writers, and for ever where a device hangs: for a
    /// thread that serves one copy and nobody else. Errors: those of `eventfd`.
    pub fn new(inline_writes: bool) -> io::Result<Self> {
        Ok(Self {
            ports: RefCell::default(),
            watches: RefCell::default(),
            home: Home::new()?,
            inline_writes,
            start: Instant::now(),
        })
    }
}

/// What came of an attempt to do an operation without waiting.
pub(super) enum Attempt {
    Done(IoDone),
    /// It needs more; the calls made so far.
    Left(IoOp, Counters),
}

/// Does without waiting what can be done so: hits in the page cache and, when asked, buffered writes.
pub(super) fn at_once(token: u64, mut op: IoOp, inline_writes: bool) -> Attempt {
    if let Some(refused) = threads::refuse(token, &mut op) {
        return Attempt::Done(refused);
    }
    match op {
        IoOp::Read { file, offset, buf, direct: false } => {
            match threads::read_cached(token, &file, offset, buf) {
                Ok(done) => Attempt::Done(done),
                Err(buf) => {
                    Attempt::Left(IoOp::Read { file, offset, buf, direct: false }, one(Call::Preadv2))
                }
            }
        }
        IoOp::Write { file, offset, buf, direct: false, dsync: false } if inline_writes => {
            Attempt::Done(threads::write(token, &file, offset, buf, false))
        }
        IoOp::Brief(call) if inline_writes => Attempt::Done(threads::run(token, IoOp::Call(call))),
        other => Attempt::Left(other, Counters::default()),
    }
}

impl Reactor for Pool {
    fn engine(&self) -> Engine {
        Engine::Pool
    }

    fn open_port(&self) -> Port {
        self.open_port_of(&helpers::of_nobody())
    }

    fn open_port_of(&self, helpers: &Arc<Helpers>) -> Port {
        self.ports.borrow_mut().open(helpers)
    }

    fn may_wait(&self) -> bool {
        self.inline_writes
    }

    fn close_port(&self, port: Port) {
        self.ports.borrow_mut().close(port);
    }

    fn close_port_keeping(&self, port: Port, kept: Box<dyn std::any::Any>) {
        let done_with = self.ports.borrow_mut().close_keeping(port, kept);
        drop(done_with);
    }

    fn submit(&self, port: Port, token: u64, op: IoOp) {
        match at_once(token, op, self.inline_writes) {
            Attempt::Done(done) => self.ports.borrow_mut().finish_at_once(port, done),
            Attempt::Left(op, counters) => {
                self.ports.borrow_mut().begin(port);
                if let IoOp::Ready { file, write } = op {
                    return self.watches.borrow_mut().add(port, token, file, write);
                }
                let helpers = self.ports.borrow().helpers(port).clone();
                helpers.run_op(&self.home, port, token, op, counters);
            }
        }
    }

    fn complete(&self, port: Port, out: &mut Vec<IoDone>) {
        self.ports.borrow_mut().take(port, out);
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wait(&self, deadline: Option<Duration>) {
        loop {
            self.turn();
            let left = deadline.map(|d| d.saturating_sub(self.now()));
            if self.ports.borrow().any_ready() || self.home.take_woken() || left == Some(Duration::ZERO) {
                return;
            }
            self.watches.borrow_mut().wait(&self.home, left, &mut self.ports.borrow_mut());
            self.home.silence();
        }
    }

    fn turn(&self) {
        let finished = self.home.take();
        let mut ports = self.ports.borrow_mut();
        for (port, done) in finished {
            ports.finish(port, done);
        }
        let mut watches = self.watches.borrow_mut();
        if !watches.is_empty() {
            watches.wait(&self.home, Some(Duration::ZERO), &mut ports);
        }
    }

    fn waker(&self) -> Waker {
        self.home.waker()
    }
}

//! The engine of a thread that may wait for one device: it makes its operations itself, inside [`Reactor::wait`].
//!
//! For threads that serve one request at a time to its end, as readers of the mount do: a hop to a helper would cost
//! more than most operations. Only `wait` takes long, and a thread parks its range locks before it waits.

use super::helpers::{self, Helpers};
use super::pool::{Attempt, at_once};
use super::ports::Ports;
use super::threads::{self, Home, Watches};
use super::{Engine, IoDone, IoOp, Port, Reactor, Waker};
use crate::block::Counters;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Completions by the calling thread, in the order of submission.
pub struct Inline {
    ports: RefCell<Ports>,
    todo: RefCell<VecDeque<(Port, u64, IoOp, Counters)>>,
    watches: RefCell<Watches>,
    home: Arc<Home>,
    start: Instant,
}

impl Inline {
    /// A reactor for the calling thread. Errors: those of `eventfd`.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ports: RefCell::default(),
            todo: RefCell::default(),
            watches: RefCell::default(),
            home: Home::new()?,
            start: Instant::now(),
        })
    }

    /// Makes the oldest operation that is left.
    fn make_one(&self) -> bool {
        let Some((port, token, op, counters)) = self.todo.borrow_mut().pop_front() else { return false };
        let helpers = self.ports.borrow().helpers(port).clone();
        let mut done: IoDone = helpers.own(|| threads::run(token, op));
        done.counters += counters;
        self.ports.borrow_mut().finish(port, done);
        true
    }
}

impl Reactor for Inline {
    fn engine(&self) -> Engine {
        Engine::Inline
    }

    fn open_port(&self) -> Port {
        self.open_port_of(&helpers::of_nobody())
    }

    fn open_port_of(&self, helpers: &Arc<Helpers>) -> Port {
        self.ports.borrow_mut().open(helpers)
    }

    fn close_port(&self, port: Port) {
        self.ports.borrow_mut().close(port);
    }

    fn submit(&self, port: Port, token: u64, op: IoOp) {
        match at_once(token, op, false) {
            Attempt::Done(done) => self.ports.borrow_mut().finish_at_once(port, done),
            Attempt::Left(op, counters) => {
                self.ports.borrow_mut().begin(port);
                if let IoOp::Ready { file, write } = op {
                    return self.watches.borrow_mut().add(port, token, file, write);
                }
                self.todo.borrow_mut().push_back((port, token, op, counters));
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
            if self.make_one() {
                continue;
            }
            self.watches.borrow_mut().wait(&self.home, left, &mut self.ports.borrow_mut());
            self.home.silence();
        }
    }

    fn turn(&self) {
        let mut watches = self.watches.borrow_mut();
        if !watches.is_empty() {
            watches.wait(&self.home, Some(Duration::ZERO), &mut self.ports.borrow_mut());
        }
    }

    fn waker(&self) -> Waker {
        self.home.waker()
    }
}

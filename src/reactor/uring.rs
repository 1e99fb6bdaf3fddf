//! The io_uring engine. Its ring is made when an operation first needs one.

use super::helpers::{self, CallId, Helpers};
use super::pool::{Attempt, at_once};
use super::ports::Ports;
use super::threads::{Home, Watches};
use super::{Engine, IoDone, IoOp, Port, Reactor, Waker};
use crate::block::{Buf, Call, Counters};
use crate::sys::ring::{self, Entry, Ring};
use slab::Slab;
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Completions by io_uring; page-cache hits and (when asked) buffered writes on the calling thread; calls on helpers.
pub struct Uring {
    inner: RefCell<Inner>,
    home: Arc<Home>,
    inline_writes: bool,
    start: Instant,
}

#[derive(Default)]
struct Inner {
    ports: Ports,
    ring: Lazy,
    ops: Slab<InRing>,
    /// Used only when there is no ring after all.
    watches: Watches,
    /// Watches for readiness that the kernel has not been told of: only a sleep needs them, and one that is not wanted
    /// any more by then costs nothing.
    later: Vec<(u64, Entry)>,
    /// Turns since they were last started.
    turns: u32,
    /// The ring watches the event of `home`.
    armed: bool,
    reaped: Vec<ring::Done>,
}

#[derive(Default)]
enum Lazy {
    #[default]
    Unmade,
    Made(Box<Ring>),
    /// The kernel would not make one after all; helper threads do its work.
    Refused,
}

/// An operation in the ring; its memory is there, its buffer's shell here.
struct InRing {
    port: Port,
    token: u64,
    shell: Buf,
    counters: Counters,
    /// A call to the port's device; a watch on a socket is none.
    call: Option<CallId>,
}

/// A thread that never sleeps has its watches started after so many turns.
const TURNS_MAX: u32 = 32;

/// Ring token of the watch on the event.
const WATCH: u64 = u64::MAX;

impl Uring {
    /// A reactor for the calling thread. Cheap: asks whether io_uring is allowed, makes no ring, starts no thread.
    ///
    /// `inline_writes`: as in [`super::pool::Pool::new`]. Errors: `EPERM` or `ENOSYS` where io_uring is forbidden or
    /// unknown; those of `eventfd`.
    pub fn new(inline_writes: bool) -> io::Result<Self> {
        ring::probe()?;
        Ok(Self { inner: RefCell::default(), home: Home::new()?, inline_writes, start: Instant::now() })
    }
}

impl Inner {
    fn ring(&mut self) -> Option<&mut Ring> {
        if let Lazy::Unmade = self.ring {
            self.ring = match Ring::new() {
                Ok(ring) => Lazy::Made(Box::new(ring)),
                Err(error) => {
                    tracing::warn!(%error, "cannot create an io_uring; uses helper threads instead");
                    Lazy::Refused
                }
            };
        }
        match &mut self.ring {
            Lazy::Made(ring) => Some(ring),
            _ => None,
        }
    }

    /// Puts `op` into the ring; gives it back when it is none for a ring.
    fn push(&mut self, port: Port, token: u64, op: IoOp, mut counters: Counters) -> Option<(IoOp, Counters)> {
        let wants_ring = match &op {
            IoOp::Read { buf, .. } | IoOp::Write { buf, direct: true, .. } => {
                !buf.is_empty() && buf.is_at_front()
            }
            IoOp::Ready { .. } => true,
            // A ring hands these to threads of the kernel, which all devices share.
            IoOp::Write { .. } | IoOp::Sync { .. } | IoOp::Call(_) | IoOp::Brief(_) => false,
        };
        if !wants_ring || self.ring().is_none() {
            return Some((op, counters));
        }
        let under_way = match op {
            IoOp::Ready { .. } => None,
            _ => match self.ports.helpers(port).begins_in_ring() {
                None => return Some((op, counters)),
                call => call,
            },
        };
        let memory = "a buffer that shows bytes has memory";
        let (entry, shell, call) = match op {
            IoOp::Read { file, offset, mut buf, .. } => {
                let len = buf.len();
                let chunk = buf.take_chunk().expect(memory);
                (Entry::Read { file, offset, chunk, len }, buf, Some(Call::RingRead))
            }
            IoOp::Write { file, offset, mut buf, dsync, .. } => {
                let len = buf.len();
                let chunk = buf.take_chunk().expect(memory);
                (Entry::Write { file, offset, chunk, len, dsync }, buf, Some(Call::RingWrite))
            }
            IoOp::Ready { file, write } => (Entry::Ready { file, write }, Buf::default(), None),
            other => return Some((other, counters)),
        };
        if let Some(call) = call {
            counters.count(call);
        }
        self.ports.begin(port);
        let key = self.ops.insert(InRing { port, token, shell, counters, call: under_way }) as u64;
        match (&mut self.ring, &entry) {
            (Lazy::Made(_), Entry::Ready { .. }) => self.later.push((key, entry)),
            (Lazy::Made(ring), _) => ring.push(key, entry),
            _ => {}
        }
        None
    }

    /// Hands the watches to the kernel with the next `enter`.
    fn start_watches(&mut self) {
        self.turns = 0;
        if let Lazy::Made(ring) = &mut self.ring {
            self.later.drain(..).for_each(|(key, entry)| ring.push(key, entry));
        }
    }

    /// Starts what was pushed, waits if asked, and hands out what has completed. True when the event rang.
    fn enter(&mut self, wait: bool, timeout: Option<Duration>) -> bool {
        let Lazy::Made(ring) = &mut self.ring else { return false };
        if let Err(error) = ring.enter(wait, timeout) {
            // Nothing is lost: the operations stay in the ring and the next turn tries again.
            tracing::error!(%error, "io_uring_enter failed");
            if wait {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.hand_out()
    }

    fn hand_out(&mut self) -> bool {
        let Lazy::Made(ring) = &mut self.ring else { return false };
        ring.reap(&mut self.reaped);
        let mut rang = false;
        for done in self.reaped.drain(..) {
            if done.token == WATCH {
                self.armed = false;
                rang = true;
                continue;
            }
            let key = usize::try_from(done.token).expect("a key of `ops`");
            let InRing { port, token, shell: mut buf, counters, call } = self.ops.remove(key);
            if let Some(call) = call {
                self.ports.helpers(port).ends(call);
            }
            if let Some(chunk) = done.chunk {
                buf.put_chunk(chunk);
            }
            let (count, error) = match done.result {
                Ok(n) => (n as u64, None),
                Err(e) => (0, Some(e)),
            };
            self.ports.finish(port, IoDone { token, count, error, buf, counters });
        }
        rang
    }

    fn take_from_helpers(&mut self, home: &Home) {
        for (port, done) in home.take() {
            self.ports.finish(port, done);
        }
    }
}

impl Drop for Inner {
    /// Lets the ring finish, so that every buffer goes back to its pool.
    fn drop(&mut self) {
        for (key, _) in self.later.drain(..) {
            self.ops.remove(usize::try_from(key).expect("a key of `ops`"));
        }
        if let Lazy::Made(ring) = &mut self.ring {
            ring.cancel_polls();
        }
        while !self.ops.is_empty()
            && let Lazy::Made(ring) = &mut self.ring
            && ring.enter(true, None).is_ok()
        {
            self.hand_out();
        }
    }
}

impl Reactor for Uring {
    fn engine(&self) -> Engine {
        Engine::Uring
    }

    fn open_port(&self) -> Port {
        self.open_port_of(&helpers::of_nobody())
    }

    fn open_port_of(&self, helpers: &Arc<Helpers>) -> Port {
        self.inner.borrow_mut().ports.open(helpers)
    }

    fn may_wait(&self) -> bool {
        self.inline_writes
    }

    fn close_port(&self, port: Port) {
        self.inner.borrow_mut().ports.close(port);
    }

    fn close_port_keeping(&self, port: Port, kept: Box<dyn std::any::Any>) {
        let done_with = self.inner.borrow_mut().ports.close_keeping(port, kept);
        drop(done_with);
    }

    fn submit(&self, port: Port, token: u64, op: IoOp) {
        let mut inner = self.inner.borrow_mut();
        let (op, counters) = match at_once(token, op, self.inline_writes) {
            Attempt::Done(done) => return inner.ports.finish_at_once(port, done),
            Attempt::Left(op, counters) => (op, counters),
        };
        if let Some((op, counters)) = inner.push(port, token, op, counters) {
            inner.ports.begin(port);
            if let IoOp::Ready { file, write } = op {
                return inner.watches.add(port, token, file, write);
            }
            let helpers = inner.ports.helpers(port).clone();
            helpers.run_op(&self.home, port, token, op, counters);
        }
    }

    fn complete(&self, port: Port, out: &mut Vec<IoDone>) {
        self.inner.borrow_mut().ports.take(port, out);
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wait(&self, deadline: Option<Duration>) {
        let mut inner = self.inner.borrow_mut();
        loop {
            inner.take_from_helpers(&self.home);
            let left = deadline.map(|d| d.saturating_sub(self.now()));
            if inner.ports.any_ready() || self.home.take_woken() || left == Some(Duration::ZERO) {
                // As good as a turn: sockets are watched all the same while completions are left lying.
                inner.turns += 1;
                if inner.turns >= TURNS_MAX {
                    inner.start_watches();
                }
                if inner.enter(false, None) {
                    self.home.silence();
                }
                return;
            }
            if !matches!(inner.ring, Lazy::Made(_)) {
                let Inner { watches, ports, .. } = &mut *inner;
                watches.wait(&self.home, left, ports);
                self.home.silence();
                continue;
            }
            if !inner.armed {
                let file = self.home.event().clone();
                if let Lazy::Made(ring) = &mut inner.ring {
                    ring.push(WATCH, Entry::Ready { file, write: false });
                }
                inner.armed = true;
            }
            inner.start_watches();
            if inner.enter(true, left) {
                self.home.silence();
            }
        }
    }

    fn turn(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.turns += 1;
        if inner.turns >= TURNS_MAX {
            inner.start_watches();
        }
        if inner.enter(false, None) {
            self.home.silence();
        }
        inner.take_from_helpers(&self.home);
        let Inner { watches, ports, .. } = &mut *inner;
        if !watches.is_empty() {
            watches.wait(&self.home, Some(Duration::ZERO), ports);
        }
    }

    fn waker(&self) -> Waker {
        self.home.waker()
    }
}

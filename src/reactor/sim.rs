//! The simulated engine: seeded order and delays on a virtual clock. Same seed, same run.

use super::ports::Ports;
use super::threads;
use super::{Engine, IoDone, IoOp, Port, Reactor, Waker};
use crate::sys::sync::{held, lock};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Longest delay of an operation, in microseconds of virtual time.
const DELAY_MAX_US: u64 = 1000;
/// One transfer in this many is short.
const SHORT_ONE_IN: u64 = 8;
/// Unit of short direct transfers, in bytes: what a device with 4096-byte blocks would do.
const DIRECT_UNIT: usize = 4096;

/// Operations are carried out for real, one by one, when the virtual clock reaches the moment drawn for them.
pub struct Sim {
    inner: RefCell<Inner>,
    bell: Arc<(Mutex<bool>, Condvar)>,
}

struct Inner {
    ports: Ports,
    /// By due time, then order of submission.
    pending: BTreeMap<(Duration, u64), (Port, u64, IoOp)>,
    submitted: u64,
    now: Duration,
    random: u64,
}

impl Sim {
    /// A world in which `seed` decides everything.
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            ports: Ports::default(),
            pending: BTreeMap::new(),
            submitted: 0,
            now: Duration::ZERO,
            random: seed,
        };
        Self { inner: RefCell::new(inner), bell: Arc::default() }
    }

    fn take_woken(&self) -> bool {
        std::mem::take(&mut *lock(&self.bell.0))
    }
}

impl Inner {
    /// SplitMix64: small, and good enough to shuffle with.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn run_due(&mut self) {
        while let Some(first) = self.pending.first_entry()
            && first.key().0 <= self.now
        {
            let (port, token, mut op) = first.remove();
            let done = match threads::refuse(token, &mut op) {
                Some(refused) => refused,
                None => self.run(token, op),
            };
            self.ports.finish(port, done);
        }
    }

    fn run(&mut self, token: u64, mut op: IoOp) -> IoDone {
        let draw = (self.random(), self.random());
        let (IoOp::Read { buf, direct, .. } | IoOp::Write { buf, direct, .. }) = &mut op else {
            return threads::run(token, op);
        };
        let whole = buf.len();
        let unit = if *direct { DIRECT_UNIT } else { 1 };
        if draw.0.is_multiple_of(SHORT_ONE_IN) && whole > unit {
            let units = (whole / unit) as u64;
            let kept = 1 + draw.1 % (units - u64::from(units > 1));
            buf.set_len(usize::try_from(kept).expect("at most the length") * unit);
        }
        let mut done = threads::run(token, op);
        done.buf.set_len(whole);
        done
    }
}

impl Reactor for Sim {
    fn engine(&self) -> Engine {
        Engine::Sim
    }

    fn open_port(&self) -> Port {
        self.inner.borrow_mut().ports.open(&super::helpers::of_nobody())
    }

    fn close_port(&self, port: Port) {
        self.inner.borrow_mut().ports.close(port);
    }

    fn submit(&self, port: Port, token: u64, op: IoOp) {
        let mut inner = self.inner.borrow_mut();
        inner.ports.begin(port);
        let due = inner.now + Duration::from_micros(1 + inner.random() % DELAY_MAX_US);
        let order = inner.submitted;
        inner.submitted += 1;
        inner.pending.insert((due, order), (port, token, op));
    }

    fn complete(&self, port: Port, out: &mut Vec<IoDone>) {
        self.inner.borrow_mut().ports.take(port, out);
    }

    fn now(&self) -> Duration {
        self.inner.borrow().now
    }

    /// Moves the clock to the next moment at which something happens. Waits for real only when nothing ever would but
    /// for the waker.
    fn wait(&self, deadline: Option<Duration>) {
        let mut inner = self.inner.borrow_mut();
        if inner.ports.any_ready() || self.take_woken() {
            return;
        }
        let next = inner.pending.first_key_value().map(|(&(due, _), _)| due);
        match next.into_iter().chain(deadline).min() {
            Some(moment) => {
                inner.now = inner.now.max(moment);
                inner.run_due();
            }
            None => {
                let (woken, bell) = &*self.bell;
                let is_woken = lock(woken);
                *held(bell.wait_while(is_woken, |w| !*w)) = false;
            }
        }
    }

    fn turn(&self) {
        self.inner.borrow_mut().run_due();
    }

    fn waker(&self) -> Waker {
        let bell = self.bell.clone();
        Waker::new(move || {
            *lock(&bell.0) = true;
            bell.1.notify_all();
        })
    }
}

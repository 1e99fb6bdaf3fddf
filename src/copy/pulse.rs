//! What a copy has in flight, for whoever watches whether its devices still answer.

use crate::reactor::local::Notify;
use std::cell::Cell;
use std::rc::Rc;

/// Counts of the requests of one copy, or of the copies that are one command.
#[derive(Default)]
pub struct Pulse {
    beats: Cell<u64>,
    reads: Cell<usize>,
    changes: Cell<usize>,
    holds: Cell<usize>,
    moved_bytes: Cell<u64>,
    ended: Notify,
}

impl Pulse {
    /// Requests that have ended so far.
    pub fn beats(&self) -> u64 {
        self.beats.get()
    }

    /// Bytes moved so far.
    pub fn moved_bytes(&self) -> u64 {
        self.moved_bytes.get()
    }

    /// So many bytes more were moved.
    pub(super) fn moved(&self, bytes: u64) {
        self.moved_bytes.set(self.moved_bytes.get().saturating_add(bytes));
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.reads.get() + self.changes.get()
    }

    /// Requests in flight that change a destination.
    pub fn changes(&self) -> usize {
        self.changes.get()
    }

    /// Waits until nothing can change a destination any more: requests in flight, or what is to be told a map about
    /// them.
    pub async fn no_changes(&self) {
        while self.changes.get() + self.holds.get() > 0 {
            self.ended.notified().await;
        }
    }

    /// Waits until nothing is in flight.
    pub async fn quiet(&self) {
        while self.in_flight() > 0 {
            self.ended.notified().await;
        }
    }

    /// A request that only reads is in flight until the guard is dropped.
    pub(super) fn reads(self: &Rc<Self>) -> InFlight {
        self.begins(What::Read)
    }

    /// A request that changes a destination is in flight until the guard is dropped.
    pub(super) fn writes(self: &Rc<Self>) -> InFlight {
        self.begins(What::Change)
    }

    /// Something is to be done about a destination, by this process alone, before the guard is dropped.
    pub(super) fn holds(self: &Rc<Self>) -> InFlight {
        self.begins(What::Hold)
    }

    fn begins(self: &Rc<Self>, what: What) -> InFlight {
        let count = self.count(what);
        count.set(count.get() + 1);
        InFlight { pulse: self.clone(), what }
    }

    fn count(&self, what: What) -> &Cell<usize> {
        match what {
            What::Read => &self.reads,
            What::Change => &self.changes,
            What::Hold => &self.holds,
        }
    }
}

/// What is in flight.
#[derive(Clone, Copy)]
enum What {
    Read,
    Change,
    Hold,
}

/// It is in flight.
pub(super) struct InFlight {
    pulse: Rc<Pulse>,
    what: What,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let count = self.pulse.count(self.what);
        count.set(count.get() - 1);
        self.pulse.beats.set(self.pulse.beats.get() + 1);
        self.pulse.ended.notify_all();
    }
}

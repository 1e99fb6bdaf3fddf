//! What every engine keeps per port: finished operations, and how many are still out.

use super::helpers::Helpers;
use super::{IoDone, Port};
use slab::Slab;
use std::any::Any;
use std::sync::Arc;

struct State {
    /// Whose calls are made under it.
    helpers: Arc<Helpers>,
    finished: Vec<IoDone>,
    in_flight: usize,
    closed: bool,
    /// Dropped with the place.
    kept: Option<Box<dyn Any>>,
}

/// The ports of a reactor. A number is used again only when nothing is in flight under it.
#[derive(Default)]
pub(super) struct Ports {
    slots: Slab<State>,
    /// Finished operations not taken yet, over all ports.
    ready: usize,
}

impl Ports {
    pub(super) fn open(&mut self, helpers: &Arc<Helpers>) -> Port {
        let state =
            State { helpers: helpers.clone(), finished: Vec::new(), in_flight: 0, closed: false, kept: None };
        Port(u32::try_from(self.slots.insert(state)).expect("far fewer than 2^32 queues fit in memory"))
    }

    /// Those that make the calls of `port`, also while operations of a closed one are in flight.
    pub(super) fn helpers(&self, port: Port) -> &Arc<Helpers> {
        &self.slots.get(port.0 as usize).expect("a port with operations is kept").helpers
    }

    /// Closes it and keeps something until nothing is in flight under it; what need not be kept is given back.
    pub(super) fn close_keeping(&mut self, port: Port, kept: Box<dyn Any>) -> Option<Box<dyn Any>> {
        let unused =
            if self.get(port).in_flight == 0 { Some(kept) } else { self.get(port).kept.replace(kept) };
        self.close(port);
        unused
    }

    pub(super) fn close(&mut self, port: Port) {
        let state = self.get(port);
        state.closed = true;
        let (dropped, idle) = (std::mem::take(&mut state.finished), state.in_flight == 0);
        self.ready -= dropped.len();
        if idle {
            self.slots.remove(port.0 as usize);
        }
    }

    /// An operation starts under `port`.
    pub(super) fn begin(&mut self, port: Port) {
        self.get(port).in_flight += 1;
    }

    /// An operation begun under `port` has finished; dropped when the port was closed meanwhile.
    pub(super) fn finish(&mut self, port: Port, done: IoDone) {
        let state = self.get(port);
        state.in_flight -= 1;
        if !state.closed {
            state.finished.push(done);
            self.ready += 1;
        } else if state.in_flight == 0 {
            self.slots.remove(port.0 as usize);
        }
    }

    /// An operation that was finished at once.
    pub(super) fn finish_at_once(&mut self, port: Port, done: IoDone) {
        self.get(port).finished.push(done);
        self.ready += 1;
    }

    pub(super) fn take(&mut self, port: Port, out: &mut Vec<IoDone>) {
        let state = self.get(port);
        let count = state.finished.len();
        out.append(&mut state.finished);
        self.ready -= count;
    }

    /// True when there is something to take.
    pub(super) fn any_ready(&self) -> bool {
        self.ready > 0
    }

    fn get(&mut self, port: Port) -> &mut State {
        self.slots.get_mut(port.0 as usize).expect("a port is used between open_port and close_port")
    }
}

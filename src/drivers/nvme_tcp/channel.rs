//! One connection for I/O commands and the places on it. It belongs to one queue of this process, or, where the
//! controller grants fewer connections than there are queues, to several, which may live on several threads.
//!
//! Whoever has something to send or to receive drives the connection, for all of them: what ends for another queue goes
//! into its wire's inbox. Places are given out in the order in which queues began to wait for one.

use super::Why;
use super::admin::{DEPTH, Facts};
use super::link::{Link, Received, broken};
use super::wire::Wire;
use crate::block::Counters;
use crate::nvme::tcp::host::{Data, Event};
use crate::nvme::{Cqe, Sqe};
use crate::sys::sync::lock;
use rustix::net::{Shutdown, shutdown};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

/// What became of a command.
pub(super) enum Ended {
    /// The controller has ended it.
    Done { slot: u16, cqe: Cqe, data: Data, received: u32 },
    /// The connection was lost first.
    Lost { data: Data, slot: u16, maybe_executed: bool },
}

/// A connection.
pub(super) struct Channel {
    /// Its id at the controller.
    pub(super) qid: u16,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` before it is open, and once it is lost.
    link: Option<Link>,
    /// Why it was lost.
    lost: Option<Why>,
    free: Vec<u16>,
    /// By place: the queue whose command is there. `None` for a free place, and where the queue has gone.
    owners: Vec<Option<u64>>,
    users: Vec<Weak<Wire>>,
    /// What went over the connection that is lost.
    spent: Counters,
    /// Numbers of the queues that wait for a place, first come first.
    waiting: VecDeque<u64>,
}

impl State {
    fn user(&self, number: u64) -> Option<Arc<Wire>> {
        self.users.iter().filter_map(Weak::upgrade).find(|wire| wire.number == number)
    }

    /// Hands a command's end to the queue it belongs to; false when that has gone.
    fn deal(&mut self, slot: u16, ended: Ended, me: u64, mine: &mut Vec<Ended>) {
        match self.owners[usize::from(slot)] {
            Some(owner) if owner == me => mine.push(ended),
            Some(owner) => match self.user(owner) {
                Some(wire) => wire.deliver(ended),
                None => self.freed(slot),
            },
            None => self.freed(slot),
        }
    }

    /// A place is free: the first that waits for one is told.
    fn freed(&mut self, slot: u16) {
        self.owners[usize::from(slot)] = None;
        self.free.push(slot);
        while let Some(&first) = self.waiting.front() {
            match self.user(first) {
                Some(wire) => return wire.waker.wake(),
                None => self.waiting.pop_front(),
            };
        }
    }

    /// Takes what has ended.
    fn events(&mut self, me: u64, mine: &mut Vec<Ended>) -> Result<(), Why> {
        loop {
            let Some(link) = &mut self.link else { return Ok(()) };
            match link.machine().next() {
                Some(Event::Done { slot, cqe, data, received }) => {
                    self.deal(slot, Ended::Done { slot, cqe, data, received }, me, mine);
                }
                Some(Event::Broken(why)) => return Err(Why::of(&broken(&why))),
                Some(Event::Ready { .. }) => {}
                None => return Ok(()),
            }
        }
    }

    /// Takes what has ended and sends what there is, until there is neither. True: the socket takes no more now.
    fn turn(&mut self, me: u64, mine: &mut Vec<Ended>) -> Result<bool, Why> {
        loop {
            self.events(me, mine)?;
            let Some(link) = &mut self.link else { return Ok(false) };
            if link.machine().output().is_empty() {
                return Ok(false);
            }
            if !link.send().map_err(|e| Why::of(&e))? {
                self.events(me, mine)?;
                return Ok(true);
            }
        }
    }

    /// The connection is gone: every queue learns what became of its commands.
    #[cold]
    fn lose(&mut self, why: Why, me: u64, mine: &mut Vec<Ended>) {
        let Some(mut link) = self.link.take() else { return };
        // Why it was ended here goes out while the machine still has it.
        if link.machine().is_closing() {
            let _ = link.send();
        } else {
            link.machine().close();
        }
        while let Some(unfinished) = link.machine().drain() {
            let (slot, data, maybe_executed) = (unfinished.slot, unfinished.data, unfinished.maybe_executed);
            self.deal(slot, Ended::Lost { data, slot, maybe_executed }, me, mine);
        }
        self.spent = link.take_counters();
        self.lost = Some(why);
        self.waiting.clear();
        for wire in self.users.iter().filter_map(Weak::upgrade).filter(|w| w.number != me) {
            wire.hear();
        }
    }
}

impl Channel {
    /// A connection that is still to be opened.
    pub(super) fn new(qid: u16) -> Arc<Self> {
        Arc::new(Self { qid, state: Mutex::default() })
    }

    /// It is open.
    pub(super) fn open(&self, link: Link, facts: &Facts) {
        let mut state = lock(&self.state);
        let depth = facts.depth.min(DEPTH);
        state.free = (0..depth).rev().collect();
        state.owners = vec![None; usize::from(DEPTH)];
        state.link = Some(link);
    }

    /// The number of queues it serves; `None` when it is not open.
    pub(super) fn load(&self) -> Option<usize> {
        let state = lock(&self.state);
        state.link.is_some().then(|| state.users.iter().filter(|w| w.strong_count() > 0).count())
    }

    /// Takes a queue.
    pub(super) fn join(&self, wire: &Arc<Wire>) {
        lock(&self.state).users.push(Arc::downgrade(wire));
    }

    /// A queue goes; what it has on the connection ends unheard.
    pub(super) fn leave(&self, number: u64) {
        let mut state = lock(&self.state);
        state.users.retain(|w| w.upgrade().is_some_and(|w| w.number != number));
        state.owners.iter_mut().filter(|o| **o == Some(number)).for_each(|o| *o = None);
        state.waiting.retain(|&w| w != number);
    }

    /// The socket, while there is a connection.
    pub(super) fn socket(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.state).link.as_ref().map(|link| link.socket().clone())
    }

    /// Ends the connection from another thread: its queues find it lost.
    pub(super) fn shut_down(&self) {
        if let Some(socket) = self.socket() {
            let _ = shutdown(&*socket, Shutdown::Both);
        }
    }

    /// Why it was lost, if it was.
    pub(super) fn lost(&self) -> Option<Why> {
        lock(&self.state).lost.clone()
    }

    /// A place for a command of the queue `number`; without one the queue stands in line, and is woken.
    pub(super) fn take_slot(&self, number: u64) -> Option<u16> {
        let mut state = lock(&self.state);
        state.link.as_ref()?;
        let first = state.waiting.front().is_none_or(|&w| w == number);
        match if first { state.free.pop() } else { None } {
            Some(slot) => {
                if !state.waiting.is_empty() {
                    state.waiting.pop_front();
                }
                state.owners[usize::from(slot)] = Some(number);
                Some(slot)
            }
            None => {
                if !state.waiting.contains(&number) {
                    state.waiting.push_back(number);
                }
                None
            }
        }
    }

    /// True when a place can be had at once.
    pub(super) fn has_room(&self, number: u64) -> bool {
        let state = lock(&self.state);
        !state.free.is_empty() && state.waiting.front().is_none_or(|&w| w == number)
    }

    /// The queue waits for no place any more.
    pub(super) fn waits_no_more(&self, number: u64) {
        let mut state = lock(&self.state);
        state.waiting.retain(|&w| w != number);
        if let Some(slot) = state.free.pop() {
            state.freed(slot);
        }
    }

    /// True when another queue waits for a place.
    pub(super) fn is_wanted(&self, number: u64) -> bool {
        lock(&self.state).waiting.iter().any(|&w| w != number)
    }

    /// Gives a place back.
    pub(super) fn give_back(&self, slot: u16) {
        let mut state = lock(&self.state);
        if state.link.is_some() {
            state.freed(slot);
        }
    }

    /// Puts a command into its place. On a lost connection it comes back as lost and never sent.
    pub(super) fn submit(&self, slot: u16, sqe: Sqe, data: Data, mine: &mut Vec<Ended>) {
        match &mut lock(&self.state).link {
            Some(link) => link.machine().submit(slot, sqe, data),
            None => mine.push(Ended::Lost { data, slot, maybe_executed: false }),
        }
    }

    /// Sends what there is, and takes what has ended. True: the socket takes no more now.
    ///
    /// Errors: the connection is lost, by this call or before.
    pub(super) fn turn(&self, number: u64, mine: &mut Vec<Ended>) -> Result<bool, Why> {
        let mut state = lock(&self.state);
        match state.turn(number, mine) {
            Ok(blocked) => match &state.lost {
                Some(why) => Err(why.clone()),
                None => Ok(blocked),
            },
            Err(why) => {
                state.lose(why.clone(), number, mine);
                Err(why)
            }
        }
    }

    /// Reads the socket dry, and takes what has ended; otherwise as [`Self::turn`]. Answers of the queue itself that
    /// lead to more commands are left in `mine`.
    pub(super) fn drain(&self, number: u64, mine: &mut Vec<Ended>) -> Result<bool, Why> {
        let mut state = lock(&self.state);
        let mut blocked = false;
        let drained = loop {
            let Some(link) = &mut state.link else { break Ok(()) };
            let received = match link.receive() {
                Ok(received) => received,
                Err(error) => break Err(Why::of(&error)),
            };
            match state.turn(number, mine) {
                Ok(b) => blocked = b,
                Err(why) => break Err(why),
            }
            if !matches!(received, Received::More) {
                break Ok(());
            }
        };
        if let Err(why) = drained {
            state.lose(why, number, mine);
        }
        match &state.lost {
            Some(why) => Err(why.clone()),
            None => Ok(blocked),
        }
    }

    /// Gives the connection up.
    pub(super) fn lose(&self, why: Why, number: u64, mine: &mut Vec<Ended>) {
        lock(&self.state).lose(why, number, mine);
    }

    /// What went over the socket, told to the first of its queues.
    pub(super) fn counters(&self, number: u64) -> Counters {
        let state = lock(&self.state);
        let first = state.users.iter().find_map(Weak::upgrade).is_some_and(|wire| wire.number == number);
        match &state.link {
            _ if !first => Counters::default(),
            Some(link) => link.counters(),
            None => state.spent,
        }
    }
}

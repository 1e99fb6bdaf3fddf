//! One core: its table of plain I/O and installed copies, and the mailbox through which it hears of copies.

use super::claims::{Claim, Claims};
use super::domain::{CopyState, CopyTicket, Granted, LockDomain, announce};
use crate::block::LeafId;
use crate::sys::owned::{Owned, Owner};
use crate::sys::sync::{AtomicBool, Mutex, Ordering, lock_modelled as lock};
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// News of one copy, in the domain's order.
pub(super) enum Message {
    /// A copy is granted among copies: let nothing new overlap it, and acknowledge once what overlaps has drained.
    Install(Arc<CopyState>),
    /// A copy that runs already touches a leaf that this core has opened just now: let nothing overlap it.
    Keep(Arc<CopyState>),
    /// The copy of this number has ended.
    Remove(u64),
}

/// The side of a core that other threads see.
pub(super) struct Core {
    table: Arc<Owned<Table>>,
    /// True when the mailbox is worth a lock. Written under the mailbox's lock only.
    mail: AtomicBool,
    mailbox: Mutex<Mailbox>,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Mailbox {
    messages: VecDeque<Message>,
    /// A copy begun on this core was granted.
    told: bool,
}

impl Core {
    /// Puts messages into the mailbox. The caller holds the domain's lock, which gives them their order.
    pub(super) fn post(&self, messages: impl IntoIterator<Item = Message>) {
        let mut mailbox = lock(&self.mailbox);
        mailbox.messages.extend(messages);
        self.mail.store(true, Ordering::Relaxed);
    }

    /// Lets the owner know that a copy it began was granted; wakes it if it is parked.
    pub(super) fn tell(&self) {
        let mut mailbox = lock(&self.mailbox);
        mailbox.told = true;
        self.mail.store(true, Ordering::Relaxed);
        drop(mailbox);
        // An owner that parks looks into the mailbox after its word says parked. Either it locked the mailbox after us
        // and found this, or before us, and then we see the word it had written.
        if !self.table.is_running() {
            (self.wake)();
        }
    }

    /// Serves the mailbox on behalf of a parked owner, and wakes it if that brought something it waits for.
    ///
    /// A running owner serves itself; another borrower looks again after giving back, as this one does, so that a
    /// message posted meanwhile is not left to a sleeping owner.
    pub(super) fn serve_if_parked(&self, granted: &mut Granted) {
        while let Some(mut borrow) = self.table.try_borrow() {
            let news = borrow.with(|table| {
                table.counters.borrows += 1;
                let before = table.released.len();
                self.serve(table, granted);
                table.told || table.released.len() > before
            });
            drop(borrow);
            if news {
                (self.wake)();
            }
            if self.is_quiet() {
                return;
            }
        }
    }

    /// Applies what is in the mailbox.
    fn serve(&self, table: &mut Table, granted: &mut Granted) {
        let mut inbox = std::mem::take(&mut table.inbox);
        {
            let mut mailbox = lock(&self.mailbox);
            std::mem::swap(&mut mailbox.messages, &mut inbox);
            table.told |= std::mem::take(&mut mailbox.told);
            self.mail.store(false, Ordering::Relaxed);
        }
        for message in inbox.drain(..) {
            table.counters.messages += 1;
            match message {
                Message::Install(copy) => table.install(copy, granted),
                Message::Keep(copy) => table.keep(copy),
                Message::Remove(id) => table.remove(id),
            }
        }
        table.inbox = inbox;
    }

    /// True when the mailbox is empty.
    fn is_quiet(&self) -> bool {
        let mailbox = lock(&self.mailbox);
        mailbox.messages.is_empty() && !mailbox.told
    }
}

/// What the locks of one core did so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LockCounters {
    /// Reads and writes that had to wait for a copy.
    pub io_waits: u64,
    /// Copies begun here that were not granted at once.
    pub copy_waits: u64,
    /// Messages about copies that this core's table took in.
    pub messages: u64,
    /// Times another thread served this core's mailbox because it was parked.
    pub borrows: u64,
}

/// A read or write that holds its claims. Give it back with [`CoreLocks::end_io`] on the core it came from.
///
/// Lost, it holds them until the core is detached.
#[must_use = "the claims are held until the ticket is given to `end_io`"]
#[derive(PartialEq, Eq, Debug)]
pub struct IoTicket(u32);

/// A read or write that waits: the name under which [`CoreLocks::take_released`] returns it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WaitId {
    slot: u32,
    serial: u64,
}

/// The answer of [`CoreLocks::begin_io`].
#[must_use = "claims that are held must be ended, a wait must be taken up again"]
#[derive(PartialEq, Eq, Debug)]
pub enum Begun {
    /// All claims are held.
    Held(IoTicket),
    /// No claim is held; a copy is in the way.
    Waiting(WaitId),
}

/// A read or write that waited and now holds its claims.
#[derive(PartialEq, Eq, Debug)]
pub struct Released {
    /// What `begin_io` answered.
    pub id: WaitId,
    /// To end it.
    pub ticket: IoTicket,
}

/// No slot: end of the free list.
const NONE: u32 = u32::MAX;

/// One read or write, or (without claims) a free place for one.
struct Slot {
    claims: Claims,
    /// The table's clock when it began: it goes before copies installed later, which wait for it.
    arrival: u64,
    /// Number of the wait, if it waited; else 0.
    serial: u64,
    /// Copies it waits for.
    blocked: usize,
    next_free: u32,
}

/// A copy that this core keeps new I/O away from.
struct Installed {
    copy: Arc<CopyState>,
    /// The table's clock after it was installed.
    since: u64,
    /// Reads and writes of this core that began before and overlap. Acknowledged when it gets to 0.
    undrained: usize,
}

/// What belongs to the core alone.
struct Table {
    /// Leaves that copies ask this core about, in order, and how many opened each.
    open: Vec<(LeafId, u32)>,
    /// The leaf of the last claim: most I/O is on one.
    last: Option<LeafId>,
    slots: Vec<Slot>,
    free: u32,
    copies: Vec<Installed>,
    /// Counts installed copies.
    clock: u64,
    /// Waiting reads and writes, oldest first.
    waiting: VecDeque<u32>,
    last_serial: u64,
    released: Vec<Released>,
    /// A copy begun here was granted since the owner last asked.
    told: bool,
    /// Empty between calls; keeps its memory.
    inbox: VecDeque<Message>,
    counters: LockCounters,
}

impl Table {
    /// True when copies on the leaf ask this core.
    #[inline]
    fn has_open(&mut self, leaf: LeafId) -> bool {
        if self.last == Some(leaf) {
            return true;
        }
        let known = self.open.binary_search_by_key(&leaf, |&(leaf, _)| leaf).is_ok();
        if known {
            self.last = Some(leaf);
        }
        known
    }

    /// Counts an opening; true for the first.
    fn opens(&mut self, leaf: LeafId) -> bool {
        match self.open.binary_search_by_key(&leaf, |&(leaf, _)| leaf) {
            Ok(at) => {
                self.open[at].1 = self.open[at].1.saturating_add(1);
                false
            }
            Err(at) => {
                self.open.insert(at, (leaf, 1));
                true
            }
        }
    }

    /// Counts a closing; true for the last, unless I/O on the leaf is in flight: then it stays open.
    fn closes(&mut self, leaf: LeafId) -> bool {
        let Ok(at) = self.open.binary_search_by_key(&leaf, |&(leaf, _)| leaf) else { return false };
        let is_used =
            self.open[at].1 > 1 || self.slots.iter().any(|s| s.claims.iter().any(|c| c.leaf == leaf));
        if is_used {
            self.open[at].1 = self.open[at].1.saturating_sub(1).max(1);
            return false;
        }
        self.open.remove(at);
        self.last = None;
        true
    }

    #[inline]
    fn begin(&mut self, claims: &[Claim]) -> Begun {
        debug_assert!(claims.iter().all(|c| self.has_open(c.leaf)), "I/O on a leaf that no copy asks about");
        if self.free == NONE {
            self.grow();
        }
        let key = self.free;
        let slot = &mut self.slots[key as usize];
        self.free = slot.next_free;
        for claim in claims {
            slot.claims.push(*claim);
        }
        slot.arrival = self.clock;
        if self.copies.is_empty() { Begun::Held(IoTicket(key)) } else { self.begin_beside_copies(key) }
    }

    #[cold]
    fn grow(&mut self) {
        let key = u32::try_from(self.slots.len()).ok().filter(|&k| k != NONE);
        self.free = key.expect("fewer than 2^32 reads and writes in flight on one core");
        let claims = Claims::new();
        self.slots.push(Slot { claims, arrival: 0, serial: 0, blocked: 0, next_free: NONE });
    }

    #[cold]
    fn begin_beside_copies(&mut self, key: u32) -> Begun {
        let slot = &mut self.slots[key as usize];
        slot.blocked =
            self.copies.iter().filter(|c| c.copy.claims().conflicts_with_any(&slot.claims)).count();
        if slot.blocked == 0 {
            return Begun::Held(IoTicket(key));
        }
        self.last_serial += 1;
        slot.serial = self.last_serial;
        self.waiting.push_back(key);
        self.counters.io_waits += 1;
        Begun::Waiting(WaitId { slot: key, serial: slot.serial })
    }

    /// Makes the place of an I/O free again.
    #[inline]
    fn give_back(&mut self, key: u32) {
        let slot = &mut self.slots[key as usize];
        slot.claims.clear();
        slot.serial = 0;
        slot.next_free = self.free;
        self.free = key;
    }

    /// Ends an I/O, and takes it from the counts of the copies that wait for it.
    #[cold]
    fn drain(&mut self, key: u32, granted: &mut Granted) {
        let slot = &self.slots[key as usize];
        for installed in self.copies.iter_mut().filter(|c| c.since > slot.arrival) {
            if installed.copy.claims().conflicts_with_any(&slot.claims) {
                installed.undrained -= 1;
                if installed.undrained == 0 && installed.copy.acknowledge() {
                    granted.push(installed.copy.clone());
                }
            }
        }
        self.give_back(key);
    }

    fn install(&mut self, copy: Arc<CopyState>, granted: &mut Granted) {
        // Waiting I/O counts too: it came first, and goes first when the copies before it have ended. No deadlock: it
        // waits only for copies installed before this one.
        let undrained = self.slots.iter().filter(|s| copy.claims().conflicts_with_any(&s.claims)).count();
        if undrained == 0 && copy.acknowledge() {
            granted.push(copy.clone());
        }
        self.clock += 1;
        self.copies.push(Installed { copy, since: self.clock, undrained });
    }

    /// Installs a copy that runs already. This core has no I/O on any of its leaves, so there is nothing to wait for.
    fn keep(&mut self, copy: Arc<CopyState>) {
        debug_assert!(!self.slots.iter().any(|s| copy.claims().conflicts_with_any(&s.claims)));
        self.clock += 1;
        self.copies.push(Installed { copy, since: self.clock, undrained: 0 });
    }

    fn remove(&mut self, id: u64) {
        let at = self.copies.iter().position(|c| c.copy.id() == id);
        let ended = self.copies.remove(at.expect("a copy is removed once, after it was installed"));
        let Self { slots, waiting, released, .. } = self;
        waiting.retain(|&key| {
            let slot = &mut slots[key as usize];
            if slot.arrival >= ended.since && ended.copy.claims().conflicts_with_any(&slot.claims) {
                slot.blocked -= 1;
                if slot.blocked == 0 {
                    let id = WaitId { slot: key, serial: slot.serial };
                    released.push(Released { id, ticket: IoTicket(key) });
                    return false;
                }
            }
            true
        });
    }

    fn cancel(&mut self, id: WaitId, granted: &mut Granted) -> bool {
        if self.slots.get(id.slot as usize).is_none_or(|s| s.serial != id.serial) {
            return false;
        }
        let (waiting, released) = (self.waiting.len(), self.released.len());
        self.waiting.retain(|&key| key != id.slot);
        self.released.retain(|r| r.id != id);
        let found = (self.waiting.len(), self.released.len()) != (waiting, released);
        if found {
            self.drain(id.slot, granted);
        }
        found
    }

    fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.told) || !self.released.is_empty()
    }

    /// Everything this core still owed to copies, when it goes.
    fn abandon(&mut self, granted: &mut Granted) {
        for installed in self.copies.drain(..) {
            if installed.undrained > 0 && installed.copy.acknowledge() {
                granted.push(installed.copy);
            }
        }
        self.slots.clear();
        self.waiting.clear();
        self.released.clear();
        self.free = NONE;
    }
}

/// One thread's range locks: plain reads and writes, and the copies it begins.
///
/// Running ([`CoreLocks::enter`]), the thread calls [`CoreLocks::pump`] once a turn of its loop; before it sleeps it
/// parks ([`CoreLocks::park`]) so that others can serve its table meanwhile. A running core that does neither holds up
/// copies that other cores begin on leaves it has open, whatever they overlap. Dropped, the core is detached: end what
/// is in flight before.
pub struct CoreLocks {
    domain: LockDomain,
    owner: Owner<Table>,
    core: Arc<Core>,
    /// The table belongs to the thread whose sleep `wake` ends.
    not_send: PhantomData<*const ()>,
}

impl CoreLocks {
    /// A running core that has no leaf open.
    pub(super) fn new(domain: LockDomain, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        let owner = Owner::new(Table {
            open: Vec::new(),
            last: None,
            slots: Vec::new(),
            free: NONE,
            copies: Vec::new(),
            clock: 0,
            waiting: VecDeque::new(),
            last_serial: 0,
            released: Vec::new(),
            told: false,
            inbox: VecDeque::new(),
            counters: LockCounters::default(),
        });
        let core = Arc::new(Core {
            table: owner.cell().clone(),
            mail: AtomicBool::new(false),
            mailbox: Mutex::new(Mailbox { messages: VecDeque::new(), told: false }),
            wake,
        });
        Self { domain, owner, core, not_send: PhantomData }
    }

    pub(super) const fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The domain this core is attached to.
    pub const fn domain(&self) -> &LockDomain {
        &self.domain
    }

    /// Begins to run, after a sleep. Pump before the next I/O is begun.
    ///
    /// # Panics
    /// When running already.
    pub fn enter(&self) {
        self.owner.enter();
    }

    /// Lets others serve this core while its thread sleeps. True: parked, and whatever comes now calls the waker.
    ///
    /// False: not parked, because there is something to look at first: released I/O to take, or a copy begun here that
    /// was granted. Look, then park again.
    ///
    /// # Panics
    /// When parked already.
    #[must_use = "the thread must not sleep when this is false"]
    pub fn park(&self) -> bool {
        loop {
            if self.pump() {
                return false;
            }
            self.owner.park();
            // A message posted after the pump, by somebody who saw this core running, would be seen by nobody.
            if self.core.is_quiet() {
                return true;
            }
            self.owner.enter();
        }
    }

    /// True between [`CoreLocks::enter`] and [`CoreLocks::park`].
    pub fn is_running(&self) -> bool {
        self.owner.is_running()
    }

    /// Takes in what other cores posted: one plain load when that is nothing. True: there is released I/O to take, or
    /// a copy begun here was granted since the last time.
    pub fn pump(&self) -> bool {
        self.take_in();
        self.owner.with(Table::take_news)
    }

    /// Takes in what other cores posted, and leaves the news to the next [`CoreLocks::pump`].
    pub(super) fn take_in(&self) {
        // Again when serving granted a copy begun here: that is posted to this core too.
        while self.core.mail.load(Ordering::Relaxed) {
            self.serve();
        }
    }

    #[cold]
    fn serve(&self) {
        let mut granted = Granted::new();
        self.owner.with(|table| self.core.serve(table, &mut granted));
        announce(granted);
    }

    /// Claims for one read (shared) or one write, zero or discard (exclusive), all at once or not at all. A read waits
    /// for copies that change its bytes, a write for copies that read or change them; neither waits for reads or
    /// writes.
    ///
    /// No lock, no atomic read-modify-write, and (once as many were in flight before) no allocation for up to two
    /// claims.
    ///
    /// # Panics
    /// When parked.
    #[inline]
    pub fn begin_io(&self, claims: &[Claim]) -> Begun {
        let begun = self
            .owner
            .with(|table| claims.iter().all(|claim| table.has_open(claim.leaf)).then(|| table.begin(claims)));
        begun.unwrap_or_else(|| self.begin_io_anew(claims))
    }

    /// The same where a leaf is not open: it stays so until this core is detached.
    #[cold]
    fn begin_io_anew(&self, claims: &[Claim]) -> Begun {
        for claim in claims {
            if !self.owner.with(|table| table.has_open(claim.leaf)) {
                self.open_leaf(claim.leaf);
            }
        }
        self.owner.with(|table| table.begin(claims))
    }

    /// Has copies that touch the leaf ask this core, as long as it is open: a copy asks nobody else. I/O on a leaf
    /// opens it by itself, for good; whoever opens it for a time closes it again, as often.
    ///
    /// # Panics
    /// When parked.
    pub fn open_leaf(&self, leaf: LeafId) {
        if self.owner.with(|table| table.opens(leaf)) {
            self.domain.open(&self.core, leaf);
            // Copies that run there were posted; the news is left to the next pump.
            self.take_in();
        }
    }

    /// Undoes one [`CoreLocks::open_leaf`].
    ///
    /// # Panics
    /// When parked.
    pub fn close_leaf(&self, leaf: LeafId) {
        if self.owner.with(|table| table.closes(leaf)) {
            self.domain.close(&self.core, leaf);
        }
    }

    /// Ends a read or write.
    ///
    /// # Panics
    /// When parked; or when the ticket is another core's and means nothing here.
    #[inline]
    pub fn end_io(&self, ticket: IoTicket) {
        let plain = self.owner.with(|table| {
            let plain = table.copies.is_empty();
            if plain {
                table.give_back(ticket.0);
            }
            plain
        });
        if !plain {
            self.end_beside_copies(ticket);
        }
    }

    #[cold]
    fn end_beside_copies(&self, ticket: IoTicket) {
        let mut granted = Granted::new();
        self.owner.with(|table| table.drain(ticket.0, &mut granted));
        announce(granted);
    }

    /// Appends the reads and writes that waited and now hold their claims, in the order they began to wait.
    pub fn take_released(&self, out: &mut Vec<Released>) {
        self.owner.with(|table| out.append(&mut table.released));
    }

    /// The ticket of one wait, once it is over: for several queues of one core, each with waits of its own.
    pub fn take_released_one(&self, id: WaitId) -> Option<IoTicket> {
        self.owner.with(|table| {
            let at = table.released.iter().position(|r| r.id == id)?;
            Some(table.released.remove(at).ticket)
        })
    }

    /// Gives up a wait; true unless [`CoreLocks::take_released`] returned it already, and then its ticket is to be
    /// ended.
    #[must_use = "a wait that was released before must be ended by its ticket"]
    pub fn cancel_wait(&self, id: WaitId) -> bool {
        let mut granted = Granted::new();
        let found = self.owner.with(|table| table.cancel(id, &mut granted));
        announce(granted);
        found
    }

    /// Queues a copy: shared claims on its sources, exclusive ones on its destination; they do not exclude each other.
    ///
    /// Conflicting copies are granted in the order they begin. The ticket may be granted at once; else ask it after
    /// each pump, or let it wake a task. Whoever begins it must not hold back I/O of its own that overlaps: the copy
    /// waits for that.
    ///
    /// # Panics
    /// When parked.
    pub fn begin_copy(&self, claims: Claims) -> CopyTicket {
        assert!(self.owner.is_running(), "a copy is begun by a running core; enter first");
        let mut granted = Granted::new();
        let ticket = self.domain.begin(claims, self.core.clone(), &mut granted);
        self.owner.with(|table| self.core.serve(table, &mut granted));
        ticket.state().acknowledge();
        if !ticket.is_granted() {
            self.owner.with(|table| table.counters.copy_waits += 1);
        }
        announce(granted);
        ticket
    }

    /// Ends a copy, granted or not, and lets this core's I/O that waited for it go on. Dropping the ticket does the
    /// same but for this core, which then goes on with its next pump or park.
    pub fn end_copy(&self, ticket: CopyTicket) {
        drop(ticket);
        if self.owner.is_running() {
            self.serve();
        }
    }

    /// What happened here so far.
    pub fn counters(&self) -> LockCounters {
        self.owner.with(|table| table.counters)
    }
}

impl Drop for CoreLocks {
    fn drop(&mut self) {
        if !self.owner.is_running() {
            self.owner.enter();
        }
        self.domain.detach(&self.core);
        // Nothing is posted any more. What was, and what was not drained, is acknowledged: nobody else could.
        let mut granted = Granted::new();
        self.owner.with(|table| {
            self.core.serve(table, &mut granted);
            table.abandon(&mut granted);
        });
        announce(granted);
    }
}

impl fmt::Debug for CoreLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_running() { "CoreLocks(running)" } else { "CoreLocks(parked)" })
    }
}

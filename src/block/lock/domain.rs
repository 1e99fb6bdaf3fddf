//! The copies of a process in one order, and what is sent to the cores about them.

use super::claims::{ClaimSet, Claims};
use super::core::{Core, CoreLocks, Message};
use crate::block::{Error, Kind, Result};
use crate::sys::sync::{AtomicBool, AtomicU32, Mutex, Ordering, lock};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

/// Most cores (threads that do I/O) attached to one domain at once.
pub const CORES_MAX: usize = 64;

/// Everything whose requests exclude each other: normally the whole process.
#[derive(Clone)]
pub struct LockDomain(Arc<Mutex<State>>);

struct State {
    next_id: u64,
    /// Live copies, oldest first: the one total order.
    queue: VecDeque<Entry>,
    /// Replaced whole when a core comes or goes, so that a snapshot is one pointer.
    cores: Arc<[Arc<Core>]>,
}

struct Entry {
    copy: Arc<CopyState>,
    /// Earlier copies in the queue that conflict. At 0 the copy is granted among copies and installed on every core.
    blocked: usize,
}

impl LockDomain {
    /// A domain of its own: for tests, and for worlds that share no leaf.
    #[expect(
        clippy::new_without_default,
        reason = "a domain is chosen, never defaulted into: `process` is the usual one"
    )]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { next_id: 0, queue: VecDeque::new(), cores: Arc::new([]) })))
    }

    /// The domain of this process.
    pub fn process() -> Self {
        static PROCESS: OnceLock<LockDomain> = OnceLock::new();
        PROCESS.get_or_init(Self::new).clone()
    }

    /// Attaches the calling thread as a core; it is running, as if after [`CoreLocks::enter`].
    ///
    /// `wake` is called from any thread when a parked core has something to look at; it must end the present sleep or,
    /// when none is going on, the next one. It holds no lock of the domain, and must not call back into it.
    /// Errors: `InUse` when [`CORES_MAX`] cores are attached.
    pub fn attach(&self, wake: impl Fn() + Send + Sync + 'static) -> Result<CoreLocks> {
        let mut state = lock(&self.0);
        if state.cores.len() >= CORES_MAX {
            return Err(Error::new(
                Kind::InUse,
                format!(
                    "{CORES_MAX} threads are attached to the range locks already, the most there can be; start fewer"
                ),
            ));
        }
        // Copies granted before this core existed need no acknowledgement from it: it has no I/O in flight.
        let active = state.queue.iter().filter(|e| e.blocked == 0).map(|e| e.copy.clone());
        let locks = CoreLocks::new(self.clone(), active, Box::new(wake));
        state.cores = state.cores.iter().chain([locks.core()]).cloned().collect();
        Ok(locks)
    }

    /// Takes a core off the list: nothing is posted to it from here on.
    pub(super) fn detach(&self, core: &Arc<Core>) {
        let mut state = lock(&self.0);
        state.cores = state.cores.iter().filter(|c| !Arc::ptr_eq(c, core)).cloned().collect();
    }

    /// Queues a copy and, when no earlier one conflicts, installs it. The caller serves its own mailbox, then calls
    /// [`CopyState::acknowledge`] once for the hold the copy is returned with.
    pub(super) fn begin(&self, claims: Claims, home: Arc<Core>, granted: &mut Granted) -> CopyTicket {
        let claims = ClaimSet::new(claims);
        let mut state = lock(&self.0);
        let id = state.next_id;
        state.next_id += 1;
        let blocked = state.queue.iter().filter(|e| e.copy.claims.conflicts(&claims)).count();
        let copy = Arc::new(CopyState {
            id,
            claims,
            unacknowledged: AtomicU32::new(1),
            granted: AtomicBool::new(false),
            waiter: Mutex::new(None),
            home,
        });
        state.queue.push_back(Entry { copy: copy.clone(), blocked });
        if blocked == 0 {
            copy.expect(state.cores.len());
            for core in &*state.cores {
                core.post([Message::Install(copy.clone())]);
            }
            let cores = state.cores.clone();
            drop(state);
            kick(&cores, Some(&copy.home), granted);
        } else {
            // Not installed: the hold that the caller lets go of must not grant it.
            copy.expect(1);
        }
        CopyTicket { copy, domain: self.clone() }
    }

    fn end(&self, copy: &Arc<CopyState>) {
        let mut next: SmallVec<[Arc<CopyState>; 4]> = SmallVec::new();
        let mut state = lock(&self.0);
        let at = state
            .queue
            .binary_search_by_key(&copy.id, |e| e.copy.id)
            .expect("a copy is in the queue until its only ticket is dropped");
        let ended = state.queue.remove(at).expect("found above");
        for later in state.queue.range_mut(at..) {
            if later.copy.claims.conflicts(&copy.claims) {
                later.blocked -= 1;
                if later.blocked == 0 {
                    // The `+ 1` is a hold of this call: nobody may be granted before every message is posted.
                    next.push(later.copy.clone());
                }
            }
        }
        if ended.blocked > 0 && next.is_empty() {
            return;
        }
        let cores = state.cores.clone();
        for copy in &next {
            copy.expect(cores.len());
        }
        // Under the lock, so that every core hears of copies in the domain's order.
        let removed = (ended.blocked == 0).then_some(copy.id);
        for core in &*cores {
            let installs = next.iter().map(|c| Message::Install(c.clone()));
            core.post(removed.map(Message::Remove).into_iter().chain(installs));
        }
        drop(state);
        let mut granted = Granted::new();
        kick(&cores, None, &mut granted);
        granted.extend(next.into_iter().filter(|c| c.acknowledge()));
        announce(granted);
    }
}

/// Copies whose last acknowledgement came in; their homes are told when nothing is locked or borrowed any more.
pub(super) type Granted = SmallVec<[Arc<CopyState>; 2]>;

/// Tells the homes of granted copies.
pub(super) fn announce(granted: Granted) {
    for copy in granted {
        let waiter = lock(&copy.waiter).take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
        copy.home.tell();
    }
}

/// Serves the mailboxes of parked cores on their behalf; running ones look themselves.
fn kick(cores: &[Arc<Core>], own: Option<&Arc<Core>>, granted: &mut Granted) {
    for core in cores {
        if own.is_none_or(|own| !Arc::ptr_eq(core, own)) {
            core.serve_if_parked(granted);
        }
    }
}

/// One copy, from its begin until its ticket is dropped.
pub(super) struct CopyState {
    id: u64,
    claims: ClaimSet,
    /// Cores that have not drained yet, and one hold of whoever posts the messages (or, before that, of the queue).
    unacknowledged: AtomicU32,
    granted: AtomicBool,
    waiter: Mutex<Option<Waker>>,
    home: Arc<Core>,
}

impl CopyState {
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    pub(super) const fn claims(&self) -> &ClaimSet {
        &self.claims
    }

    /// Adds acknowledgements to wait for. Called under the domain's lock, before the messages that lead to them.
    fn expect(&self, count: usize) {
        let count = u32::try_from(count).expect("at most CORES_MAX");
        self.unacknowledged.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts one acknowledgement; true for the last, which grants the copy: the caller announces it.
    ///
    /// Release: what the acknowledging core did before (its drained I/O) happens before the copy; acquire: the last one
    /// sees that of all others, and passes it on through `granted`.
    pub(super) fn acknowledge(&self) -> bool {
        let last = self.unacknowledged.fetch_sub(1, Ordering::AcqRel) == 1;
        if last {
            self.granted.store(true, Ordering::Release);
        }
        last
    }
}

/// A copy's place in the queue and, once granted, its claims. Dropping it ends the copy.
#[must_use = "the copy is ended when this is dropped"]
pub struct CopyTicket {
    copy: Arc<CopyState>,
    domain: LockDomain,
}

impl CopyTicket {
    /// True once the claims are held; stays true.
    pub fn is_granted(&self) -> bool {
        self.copy.granted.load(Ordering::Acquire)
    }

    /// Ready once the claims are held. The waker of the latest call is woken when they are, from any thread.
    ///
    /// The core that began the copy, and every other, must go on pumping or parking for it to happen.
    pub fn poll_granted(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiter = lock(&self.copy.waiter);
        if self.is_granted() {
            return Poll::Ready(());
        }
        match &mut *waiter {
            Some(known) => known.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    pub(super) fn state(&self) -> &CopyState {
        &self.copy
    }
}

impl Drop for CopyTicket {
    fn drop(&mut self) {
        // A task that gave up must not live on in messages about its copy.
        let waiter = lock(&self.copy.waiter).take();
        drop(waiter);
        self.domain.end(&self.copy);
    }
}

impl fmt::Debug for CopyTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_granted() { "granted" } else { "waiting" };
        write!(f, "copy #{} ({state}) {:?}", self.copy.id, self.copy.claims)
    }
}

impl fmt::Debug for LockDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.0);
        write!(f, "LockDomain({} cores, {} copies)", state.cores.len(), state.queue.len())
    }
}

//! The copies of a process in one order, and what is sent to the cores about them.

use super::claims::{ClaimSet, Claims};
use super::core::{Core, CoreLocks, Message};
use crate::block::{Error, Kind, LeafId, Result};
use crate::sys::sync::{AtomicBool, AtomicU32, Mutex, Ordering, lock_modelled as lock};
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
    cores: Vec<Attached>,
}

/// A core, and the leaves that its I/O may reach, in order.
struct Attached {
    core: Arc<Core>,
    open: Vec<LeafId>,
}

/// The cores that heard of a copy, and hear of its end.
type Told = SmallVec<[Arc<Core>; 4]>;

struct Entry {
    copy: Arc<CopyState>,
    /// Earlier copies in the queue that conflict. At 0 the copy is granted among copies and installed on every core.
    blocked: usize,
    /// Where it is installed: nobody else is asked.
    told: Told,
}

impl State {
    /// The cores that have one of the leaves open.
    fn concerned(&self, claims: &ClaimSet) -> Told {
        let cores = self.cores.iter().filter(|attached| claims.touches_any(&attached.open));
        cores.map(|attached| attached.core.clone()).collect()
    }
}

impl LockDomain {
    /// A domain of its own: for tests, and for worlds that share no leaf.
    #[expect(
        clippy::new_without_default,
        reason = "a domain is chosen, never defaulted into: `process` is the usual one"
    )]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { next_id: 0, queue: VecDeque::new(), cores: Vec::new() })))
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
                format!("{CORES_MAX} threads already use the range locks, the most possible; start fewer"),
            ));
        }
        let locks = CoreLocks::new(self.clone(), Box::new(wake));
        state.cores.push(Attached { core: locks.core().clone(), open: Vec::new() });
        Ok(locks)
    }

    /// Takes a core off the list: nothing is posted to it from here on.
    pub(super) fn detach(&self, core: &Arc<Core>) {
        let mut state = lock(&self.0);
        state.cores.retain(|attached| !Arc::ptr_eq(&attached.core, core));
        for entry in &mut state.queue {
            entry.told.retain(|told| !Arc::ptr_eq(told, core));
        }
    }

    /// From here on the core is asked by every copy that touches the leaf. Copies that run already are posted to it;
    /// the caller takes them in before the first I/O on the leaf, of which it has none in flight: they need no
    /// acknowledgement.
    ///
    /// A copy that begins at the same time either finds the leaf open or is found here: both hold the domain's lock.
    pub(super) fn open(&self, core: &Arc<Core>, leaf: LeafId) {
        let mut state = lock(&self.0);
        let State { queue, cores, .. } = &mut *state;
        let Some(attached) = cores.iter_mut().find(|attached| Arc::ptr_eq(&attached.core, core)) else {
            return;
        };
        let Err(at) = attached.open.binary_search(&leaf) else { return };
        attached.open.insert(at, leaf);
        let running = queue.iter_mut().filter(|e| e.blocked == 0 && e.copy.claims.touches_any(&[leaf]));
        for entry in running {
            if !entry.told.iter().any(|told| Arc::ptr_eq(told, core)) {
                entry.told.push(core.clone());
                core.post([Message::Keep(entry.copy.clone())]);
            }
        }
    }

    /// The core has no I/O on the leaf and is asked no more; of copies it heard of it still hears the end.
    pub(super) fn close(&self, core: &Arc<Core>, leaf: LeafId) {
        let mut state = lock(&self.0);
        let attached = state.cores.iter_mut().find(|attached| Arc::ptr_eq(&attached.core, core));
        if let Some(attached) = attached
            && let Ok(at) = attached.open.binary_search(&leaf)
        {
            attached.open.remove(at);
        }
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
        if blocked == 0 {
            let told = state.concerned(&copy.claims);
            copy.expect(told.len());
            for core in &told {
                core.post([Message::Install(copy.clone())]);
            }
            state.queue.push_back(Entry { copy: copy.clone(), blocked, told: told.clone() });
            drop(state);
            kick(&told, Some(&copy.home), granted);
        } else {
            // Not installed: the hold that the caller lets go of must not grant it.
            copy.expect(1);
            state.queue.push_back(Entry { copy: copy.clone(), blocked, told: Told::new() });
        }
        CopyTicket { copy, domain: self.clone() }
    }

    fn end(&self, copy: &Arc<CopyState>) {
        let mut next: SmallVec<[(Arc<CopyState>, usize); 4]> = SmallVec::new();
        let mut state = lock(&self.0);
        let at = state
            .queue
            .binary_search_by_key(&copy.id, |e| e.copy.id)
            .expect("a copy is in the queue until its only ticket is dropped");
        let ended = state.queue.remove(at).expect("found above");
        for (later, place) in state.queue.range_mut(at..).zip(at..) {
            if later.copy.claims.conflicts(&copy.claims) {
                later.blocked -= 1;
                if later.blocked == 0 {
                    next.push((later.copy.clone(), place));
                }
            }
        }
        if ended.blocked > 0 && next.is_empty() {
            return;
        }
        // Under the lock, so that every core hears of copies in the domain's order.
        let mut cores = ended.told;
        for core in &cores {
            core.post([Message::Remove(copy.id)]);
        }
        for (later, place) in &next {
            let told = state.concerned(&later.claims);
            // Not granted before every message is posted: the queue's hold is still there, and let go of below.
            later.expect(told.len());
            for core in &told {
                core.post([Message::Install(later.clone())]);
            }
            cores.extend(told.iter().cloned());
            state.queue[*place].told = told;
        }
        drop(state);
        let mut granted = Granted::new();
        kick(&cores, None, &mut granted);
        granted.extend(next.into_iter().map(|(later, _)| later).filter(|c| c.acknowledge()));
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

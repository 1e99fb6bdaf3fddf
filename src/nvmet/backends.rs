//! One thread's queues to the namespaces, and the requests in flight on them.

use super::namespace::Namespace;
use super::namespace_set::{IoCounts, NamespaceSet};
use crate::block::lock::{CoreLocks, LockedQueue};
use crate::block::{Completion, Op, Queue, Request, Submitter};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// A namespace that this thread has open.
pub(super) struct Backend {
    pub(super) namespace: Arc<Namespace>,
    pub(super) set: Arc<NamespaceSet>,
    pub(super) counts: Arc<IoCounts>,
    queue: LockedQueue,
    batch: VecDeque<Request>,
    in_flight: usize,
    /// Not in the subsystem any more.
    is_removed: bool,
}

/// A subsystem of which this thread has namespaces open.
struct Swept {
    set: Arc<NamespaceSet>,
    counts: Arc<IoCounts>,
    /// Generation of the set when its removed namespaces were last found.
    generation: u64,
}

/// The namespaces that one thread has open.
pub(super) struct Backends {
    locks: Rc<CoreLocks>,
    list: Vec<Option<Backend>>,
    swept: Vec<Swept>,
    submitter: Submitter,
    done: Vec<Completion>,
}

impl Backends {
    pub(super) fn new(locks: Rc<CoreLocks>) -> Self {
        Self { locks, list: Vec::new(), swept: Vec::new(), submitter: Submitter::default(), done: Vec::new() }
    }

    /// The backend at an index that [`Backends::open`] gave.
    #[inline]
    pub(super) fn get(&self, at: u16) -> &Backend {
        self.list[usize::from(at)].as_ref().expect("kept while it is used")
    }

    /// Where this namespace is open.
    pub(super) fn index_of(&self, namespace: &Arc<Namespace>) -> Option<u16> {
        let same = |b: &Option<Backend>| b.as_ref().is_some_and(|b| Arc::ptr_eq(&b.namespace, namespace));
        self.list.iter().position(same).and_then(|at| u16::try_from(at).ok())
    }

    /// Opens a namespace of `set`, unless it is open. `None`: its device cannot be opened on this thread.
    pub(super) fn open(&mut self, set: &Arc<NamespaceSet>, namespace: &Arc<Namespace>) -> Option<u16> {
        if let Some(at) = self.index_of(namespace) {
            return Some(at);
        }
        let opened = LockedQueue::open(namespace.device().clone(), self.locks.clone());
        let report = |error| tracing::error!(nsid = namespace.nsid(), %error, "this thread cannot serve the namespace");
        let queue = opened.map_err(report).ok()?;
        let backend = Backend {
            namespace: namespace.clone(),
            set: set.clone(),
            counts: self.counts(set),
            queue,
            batch: VecDeque::new(),
            in_flight: 0,
            is_removed: false,
        };
        let at = self.list.iter().position(Option::is_none).unwrap_or(self.list.len());
        if at == self.list.len() {
            self.list.push(None);
        }
        self.list[at] = Some(backend);
        u16::try_from(at).ok()
    }

    /// This thread's counters of a subsystem.
    fn counts(&mut self, set: &Arc<NamespaceSet>) -> Arc<IoCounts> {
        if let Some(known) = self.swept.iter().find(|s| Arc::ptr_eq(&s.set, set)) {
            return known.counts.clone();
        }
        let counts = set.count();
        self.swept.push(Swept { set: set.clone(), counts: counts.clone(), generation: set.generation() });
        counts
    }

    /// Lets go of namespaces that were taken out of their subsystem, once nothing is in flight on them.
    pub(super) fn sweep(&mut self) {
        for swept in &mut self.swept {
            let generation = swept.set.generation();
            if swept.generation == generation {
                continue;
            }
            swept.generation = generation;
            let now = swept.set.list();
            for backend in self.list.iter_mut().flatten().filter(|b| Arc::ptr_eq(&b.set, &swept.set)) {
                backend.is_removed = !now.iter().any(|n| Arc::ptr_eq(n, &backend.namespace));
            }
        }
    }

    /// Puts a request in the next batch of a backend.
    #[inline]
    pub(super) fn submit(&mut self, at: u16, tag: u64, op: Op) {
        let request = self.submitter.request(tag, op);
        let backend = self.list[usize::from(at)].as_mut().expect("kept while it is used");
        backend.batch.push_back(request);
        backend.in_flight += 1;
    }

    /// Hands requests down and takes completions up, once round. Give the list back to [`Backends::recycle`].
    pub(super) fn poll(&mut self) -> Vec<Completion> {
        let mut done = std::mem::take(&mut self.done);
        for slot in &mut self.list {
            let Some(backend) = slot else { continue };
            if backend.in_flight == 0 {
                if backend.is_removed {
                    *slot = None;
                }
                continue;
            }
            if !backend.batch.is_empty() {
                backend.queue.submit(&mut backend.batch);
            }
            let before = done.len();
            backend.queue.poll(&mut done);
            backend.in_flight -= done.len() - before;
        }
        let before = done.len();
        self.submitter.take_aborted(&mut done);
        debug_assert_eq!(done.len(), before, "a request was dropped on its way");
        done
    }

    /// Takes an empty list back, so that the next turn allocates none.
    pub(super) fn recycle(&mut self, done: Vec<Completion>) {
        debug_assert!(done.is_empty());
        self.done = done;
    }
}

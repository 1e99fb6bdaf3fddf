//! A controller: one association with one host. Shared by the queues of the association, on whatever threads they are.
//!
//! The hot path reads atomics only; everything behind a lock is for admin commands, connects and copies.

use super::events::Events;
use super::features::Features;
use super::namespace_set::NamespaceSet;
use super::wakeup::Wakeup;
use crate::block::request::Cancel;
use crate::block::{Fate, Fates};
use crate::nvme::fabrics::{Refusal, Width};
use crate::nvme::log::{CopyOutcomes, ErrorEntry};
use crate::nvme::property::{self, Cap, Cc, Csts, Shutdown, ShutdownStatus, Version};
use crate::nvme::{Nqn, Status};
use crate::sys::sync::lock;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The version of the base specification that controllers report.
pub(super) const VERSION: Version = Version::V2_0;

/// Longest time a controller takes to get ready, in milliseconds: it is ready at once, hosts want at least a second.
const READY_MS: u32 = 7500;

/// Where QID is in a Connect, for [`Refusal::in_command`].
const QID_AT: u16 = 42;

/// Entries kept of the error log.
pub(super) const ERRORS_MAX: usize = 64;

/// A host, as the connections of all its associations with one subsystem share it.
pub(super) struct TargetHost {
    pub(super) nqn: Nqn,
    pub(super) id: [u8; 16],
    /// Connections of this host that are closed, or whose association has ended, and that may have operations in the
    /// backend.
    late: AtomicUsize,
    /// Threads with a Connect of this host that waits for those.
    waiters: Mutex<Vec<Arc<Wakeup>>>,
}

impl TargetHost {
    pub(super) fn new(nqn: Nqn, id: [u8; 16]) -> Self {
        Self { nqn, id, late: AtomicUsize::new(0), waiters: Mutex::default() }
    }

    /// A connection was closed, or is to be, and operations of it may be in the backend.
    fn late_begins(&self) {
        self.late.fetch_add(1, Ordering::AcqRel);
    }

    /// Nothing of it is left there.
    fn late_ends(&self) {
        if self.late.fetch_sub(1, Ordering::AcqRel) == 1 {
            lock(&self.waiters).drain(..).for_each(|wakeup| wakeup.wake());
        }
    }

    /// True when nothing of an earlier connection can reach the backend's blocks any more. Else `wakeup` is used once
    /// that is so.
    pub(super) fn is_drained(&self, wakeup: &Arc<Wakeup>) -> bool {
        if self.late.load(Ordering::Acquire) == 0 {
            return true;
        }
        let mut waiters = lock(&self.waiters);
        // Connects that wait are tried again and again: one wake-up serves all of a thread's.
        if !waiters.iter().any(|b| Arc::ptr_eq(b, wakeup)) {
            waiters.push(wakeup.clone());
        }
        drop(waiters);
        // Checked again after the registration: it may have ended in between.
        self.late.load(Ordering::Acquire) == 0
    }
}

/// A copy that has begun and not ended, where an Abort finds it.
struct RunningCopy {
    qid: u16,
    cid: u16,
    cancel: Cancel,
    /// Wakes the thread that runs this copy: one that waits for its turn is given up at once.
    wakeup: Arc<Wakeup>,
    abort: Option<Arc<AbortTicket>>,
}

/// What became of a copy that was to be aborted. The Abort is answered when it is known.
pub(super) struct AbortTicket {
    state: AtomicU8,
    /// Wakes the thread with the admin queue.
    wakeup: Arc<Wakeup>,
}

const UNDECIDED: u8 = 0;
const ABORTED: u8 = 1;
const NOT_ABORTED: u8 = 2;

impl AbortTicket {
    /// Whether the command was aborted; `None` while it still runs.
    pub(super) fn aborted(&self) -> Option<bool> {
        match self.state.load(Ordering::Acquire) {
            UNDECIDED => None,
            state => Some(state == ABORTED),
        }
    }
}

/// An I/O or admin queue that is connected.
struct ConnectedQueue {
    qid: u16,
    wakeup: Arc<Wakeup>,
}

struct Registers {
    cc: Cc,
    csts: Csts,
    /// It was disabled, and its earlier I/O queues have operations in the backend: ready goes to 0 when they have
    /// ended.
    resetting: bool,
    features: Features,
    events: Events,
    queues: Vec<ConnectedQueue>,
    /// I/O queues that were connected and may have operations in the backend, closed or not.
    undrained: usize,
    errors: VecDeque<ErrorEntry>,
    errors_seen: u64,
}

/// What a Property Set asks its caller to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CcEffect {
    /// Nothing.
    None,
    /// The controller was reset: what runs on its queues is over.
    Reset,
    /// Make everything durable, then say [`Controller::shutdown_complete`].
    Flush,
}

/// One association with one host.
pub struct Controller {
    id: u16,
    namespaces: Arc<NamespaceSet>,
    host: Arc<TargetHost>,
    cap: Cap,
    /// Odd while enabled; counts on with every change, so that a queue from before a reset is known.
    epoch: AtomicU32,
    /// The association has ended: its connections are to be closed.
    gone: AtomicBool,
    /// Copy formats the host has enabled (CDFE), read by each Copy.
    cdfe: AtomicU16,
    /// The host has switched the volatile write cache off.
    write_through: AtomicBool,
    inner: Mutex<Registers>,
    running: Mutex<Vec<RunningCopy>>,
    /// What became of the bytes of its copies, in the order of [`Fate::ALL`].
    copied: [AtomicU64; Fate::ALL.len()],
}

impl Controller {
    /// Takes down what became of the bytes of a copy.
    pub(super) fn copy_became(&self, fates: &Fates) {
        for (count, fate) in self.copied.iter().zip(Fate::ALL) {
            count.fetch_add(fates.bytes(fate), Ordering::Relaxed);
        }
    }

    /// What became of the bytes of all its copies so far.
    pub(super) fn copy_outcomes(&self) -> CopyOutcomes {
        let bytes = self.copied.each_ref().map(|count| count.load(Ordering::Relaxed));
        CopyOutcomes { machine: crate::sys::process::boot_digest(), bytes }
    }

    pub(super) fn new(id: u16, namespaces: Arc<NamespaceSet>, host: Arc<TargetHost>, cap: CapParts) -> Self {
        let features = Features::new(cap.io_queues, cap.copy_formats);
        Self {
            id,
            namespaces,
            host,
            cap: Cap::new(cap.entries, READY_MS, Cap::CSS_NVM | Cap::CSS_CSI),
            epoch: AtomicU32::new(0),
            gone: AtomicBool::new(false),
            cdfe: AtomicU16::new(features.copy_formats()),
            write_through: AtomicBool::new(false),
            inner: Mutex::new(Registers {
                cc: Cc::default(),
                csts: Csts::default(),
                resetting: false,
                features,
                events: Events::default(),
                queues: Vec::new(),
                undrained: 0,
                errors: VecDeque::new(),
                errors_seen: 0,
            }),
            running: Mutex::default(),
            copied: Default::default(),
        }
    }

    /// Its number within the subsystem (CNTLID).
    pub fn id(&self) -> u16 {
        self.id
    }

    /// The namespaces of its subsystem.
    pub(super) fn namespaces(&self) -> &Arc<NamespaceSet> {
        &self.namespaces
    }

    /// The host, as all its associations with the subsystem share it.
    pub(super) fn host(&self) -> &Arc<TargetHost> {
        &self.host
    }

    /// True for a controller of the discovery subsystem.
    pub fn is_discovery(&self) -> bool {
        self.namespaces.is_discovery()
    }

    /// The host's name.
    pub fn host_nqn(&self) -> &Nqn {
        &self.host.nqn
    }

    /// The host's identifier.
    pub fn host_id(&self) -> [u8; 16] {
        self.host.id
    }

    fn inner(&self) -> MutexGuard<'_, Registers> {
        lock(&self.inner)
    }

    // --- registers ---------------------------------------------------------------------------------------------------

    /// A number that changes whenever the controller is enabled or reset; odd while it is enabled.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// True while it takes commands.
    pub fn is_enabled(&self) -> bool {
        self.epoch() & 1 == 1
    }

    /// Reads a property.
    ///
    /// Errors: Invalid Field for a property that is not there, and for the wrong width.
    pub(super) fn property(&self, offset: u32, width: Width) -> Result<u64, Status> {
        let inner = self.inner();
        let (value, its) = match offset {
            property::offset::CAP => (self.cap.0, Width::Eight),
            property::offset::VS => (VERSION.0.into(), Width::Four),
            property::offset::CC => (inner.cc.0.into(), Width::Four),
            property::offset::CSTS => (inner.csts.0.into(), Width::Four),
            _ => return Err(Status::INVALID_FIELD),
        };
        if width == its { Ok(value) } else { Err(Status::INVALID_FIELD) }
    }

    /// Writes a property: only CC can be.
    ///
    /// Errors: Invalid Field for any other, and for the wrong width.
    pub(super) fn set_property(&self, offset: u32, width: Width, value: u64) -> Result<CcEffect, Status> {
        if offset != property::offset::CC || width != Width::Four {
            return Err(Status::INVALID_FIELD);
        }
        let cc = Cc(u32::try_from(value).map_err(|_| Status::INVALID_FIELD)?);
        let mut inner = self.inner();
        let before = std::mem::replace(&mut inner.cc, cc);
        match (before.enabled(), cc.enabled()) {
            (false, true) => {
                self.enable(&mut inner);
                Ok(CcEffect::None)
            }
            (true, false) => {
                self.reset(&mut inner);
                Ok(CcEffect::Reset)
            }
            _ => Ok(self.shut_down(&mut inner, before)),
        }
    }

    fn enable(&self, inner: &mut Registers) {
        let cc = inner.cc;
        let is_ours = cc.page_bytes() == 4096
            && cc.arbitration() == 0
            && matches!(cc.command_set(), Cc::CSS_NVM | Cc::CSS_CSI)
            && (self.namespaces.is_discovery() || (cc.sqe_shift() == 6 && cc.cqe_shift() == 4));
        if !is_ours {
            // What the standard has for a configuration a controller cannot run with: fatal until it is disabled.
            inner.csts = inner.csts.with_fatal(true);
            return;
        }
        inner.csts = Csts::default().with_ready(true);
        inner.resetting = false;
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Controller Level Reset: features, events and enabled copy formats are as after Connect. The keep-alive time-out
    /// stays: it belongs to the association. The controller says that it is not ready any more when nothing of its I/O
    /// queues is left in the backend, so that a host may take that for the end of every write of before.
    fn reset(&self, inner: &mut Registers) {
        if self.is_enabled() {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        inner.resetting = inner.undrained > 0;
        inner.csts = Csts::default().with_ready(inner.resetting);
        inner.features = inner.features.after_reset();
        inner.events = Events::default();
        self.publish(&inner.features);
        self.cancel_copies(|_| true);
        inner.queues.iter().for_each(|q| q.wakeup.wake());
    }

    fn shut_down(&self, inner: &mut Registers, before: Cc) -> CcEffect {
        match inner.cc.shutdown() {
            None => {
                inner.csts = inner.csts.with_shutdown(ShutdownStatus::None);
                CcEffect::None
            }
            same if same == before.shutdown() => CcEffect::None,
            Some(Shutdown::Normal) => {
                inner.csts = inner.csts.with_shutdown(ShutdownStatus::Occurring);
                CcEffect::Flush
            }
            Some(Shutdown::Abrupt) => {
                inner.csts = inner.csts.with_shutdown(ShutdownStatus::Complete);
                CcEffect::None
            }
        }
    }

    /// Everything is durable that can be: the shutdown asked for is over.
    pub(super) fn shutdown_complete(&self) {
        let mut inner = self.inner();
        if inner.cc.shutdown().is_some() {
            inner.csts = inner.csts.with_shutdown(ShutdownStatus::Complete);
        }
    }

    // --- queues ------------------------------------------------------------------------------------------------------

    /// Takes a queue in; returns the epoch it belongs to, so that it belongs to the time before or after a reset, never
    /// both.
    ///
    /// Errors: of an I/O queue Command Sequence Error while the controller is not enabled, Connect Invalid Parameters
    /// for a number that the host was not granted; of any queue Command Sequence Error when it is there already.
    pub(super) fn connect(&self, qid: u16, wakeup: &Arc<Wakeup>) -> Result<u32, Refusal> {
        let mut inner = self.inner();
        // Enabling and resetting hold this lock too.
        let epoch = self.epoch();
        if qid != 0 {
            if epoch & 1 == 0 {
                return Err(Status::COMMAND_SEQUENCE_ERROR.into());
            }
            if qid > inner.features.io_queues() || self.namespaces.is_discovery() {
                return Err(Refusal::in_command(QID_AT));
            }
        }
        if inner.queues.iter().any(|q| q.qid == qid) || self.is_gone() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        inner.queues.push(ConnectedQueue { qid, wakeup: wakeup.clone() });
        inner.undrained += usize::from(qid != 0);
        Ok(epoch)
    }

    /// A queue's connection is closed. The admin queue takes the association with it. [`Controller::drained`] follows.
    pub(super) fn disconnect(&self, qid: u16) {
        let mut inner = self.inner();
        inner.queues.retain(|q| q.qid != qid);
        if !self.is_gone() {
            self.host.late_begins();
        }
        drop(inner);
        self.cancel_copies(|q| q == qid);
        if qid == 0 {
            self.end();
        }
    }

    /// A queue whose connection was closed has nothing left in the backend.
    pub(super) fn drained(&self, qid: u16) {
        let mut inner = self.inner();
        inner.undrained -= usize::from(qid != 0);
        if inner.resetting && inner.undrained == 0 {
            inner.resetting = false;
            inner.csts = Csts::default();
        }
        drop(inner);
        self.host.late_ends();
    }

    /// Ends the association: its connections are reported as lost by their threads. From here on its host connects
    /// again only when they are drained, also those whose threads do not know of it yet.
    pub(super) fn end(&self) {
        let inner = self.inner();
        if !self.gone.swap(true, Ordering::AcqRel) {
            inner.queues.iter().for_each(|_| self.host.late_begins());
        }
        inner.queues.iter().for_each(|q| q.wakeup.wake());
    }

    /// True once the association has ended.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// True when an I/O queue is connected.
    pub(super) fn has_io_queues(&self) -> bool {
        self.inner().queues.iter().any(|q| q.qid != 0)
    }

    // --- features and events -----------------------------------------------------------------------------------------

    /// Works on the features.
    pub(super) fn with_features<T>(&self, work: impl FnOnce(&mut Features) -> T) -> T {
        let mut inner = self.inner();
        let result = work(&mut inner.features);
        self.publish(&inner.features);
        result
    }

    /// Publishes what I/O commands read without a lock.
    fn publish(&self, features: &Features) {
        self.cdfe.store(features.copy_formats(), Ordering::Release);
        self.write_through.store(!features.write_cache(), Ordering::Release);
    }

    /// Copy formats the host has enabled, a bit each.
    pub(super) fn copy_formats(&self) -> u16 {
        self.cdfe.load(Ordering::Acquire)
    }

    /// True when every write is to be durable before it completes.
    pub(super) fn writes_through(&self) -> bool {
        self.write_through.load(Ordering::Acquire)
    }

    /// Works on the events.
    pub(super) fn with_events<T>(&self, work: impl FnOnce(&mut Events) -> T) -> T {
        work(&mut self.inner().events)
    }

    /// A namespace that this host sees has come, gone or changed.
    pub(super) fn namespace_changed(&self, nsid: u32) {
        let mut inner = self.inner();
        let wanted = inner.features.wants_namespace_events();
        inner.events.namespace_changed(nsid, wanted);
        inner.queues.iter().filter(|q| q.qid == 0).for_each(|q| q.wakeup.wake());
    }

    /// Keeps an error for the error log.
    pub(super) fn note_error(&self, entry: impl FnOnce(u64) -> ErrorEntry) {
        let mut inner = self.inner();
        inner.errors_seen += 1;
        let entry = entry(inner.errors_seen);
        inner.errors.truncate(ERRORS_MAX - 1);
        inner.errors.push_front(entry);
    }

    /// The error log, newest first, and how many errors there ever were.
    pub(super) fn errors(&self) -> (Vec<ErrorEntry>, u64) {
        let inner = self.inner();
        (inner.errors.iter().cloned().collect(), inner.errors_seen)
    }

    // --- copies that can be aborted ----------------------------------------------------------------------------------

    /// Lets an Abort find this copy.
    pub(super) fn copy_begins(&self, qid: u16, cid: u16, cancel: Cancel, wakeup: Arc<Wakeup>) {
        lock(&self.running).push(RunningCopy { qid, cid, cancel, wakeup, abort: None });
    }

    /// The copy has ended; an Abort that waits for it learns whether it was aborted.
    pub(super) fn copy_ends(&self, qid: u16, cid: u16, aborted: bool) {
        let mut running = lock(&self.running);
        let Some(at) = running.iter().position(|r| (r.qid, r.cid) == (qid, cid)) else { return };
        let ended = running.swap_remove(at);
        drop(running);
        if let Some(ticket) = ended.abort {
            ticket.state.store(if aborted { ABORTED } else { NOT_ABORTED }, Ordering::Release);
            ticket.wakeup.wake();
        }
    }

    /// Asks a copy to stop. `None`: there is no such copy (any more).
    pub(super) fn abort_copy(&self, qid: u16, cid: u16, wakeup: &Arc<Wakeup>) -> Option<Arc<AbortTicket>> {
        let mut running = lock(&self.running);
        let found = running.iter_mut().find(|r| (r.qid, r.cid) == (qid, cid))?;
        found.cancel.set();
        found.wakeup.wake();
        let fresh = || Arc::new(AbortTicket { state: AtomicU8::new(UNDECIDED), wakeup: wakeup.clone() });
        Some(found.abort.get_or_insert_with(fresh).clone())
    }

    fn cancel_copies(&self, of: impl Fn(u16) -> bool) {
        lock(&self.running).iter().filter(|r| of(r.qid)).for_each(|r| r.cancel.set());
    }
}

/// What a controller's capabilities and features are made of.
#[derive(Clone, Copy)]
pub(super) struct CapParts {
    /// Entries of the largest queue.
    pub(super) entries: crate::nvme::Count16,
    /// Most I/O queues.
    pub(super) io_queues: u16,
    /// Copy formats that are always on.
    pub(super) copy_formats: u16,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "controller {} of {} for {}", self.id, self.namespaces.nqn(), self.host.nqn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::Waker;

    #[test]
    fn a_thread_waits_once_however_often_it_asks() {
        let host = TargetHost::new(Nqn::new("nqn.h").unwrap(), [1; 16]);
        let wakeup = |_| Arc::new(Wakeup::new(Waker::new(|| {})));
        let wakeups: Vec<_> = (0..2).map(wakeup).collect();
        host.late_begins();
        for _ in 0..100 {
            assert!(wakeups.iter().all(|wakeup| !host.is_drained(wakeup)));
        }
        assert_eq!(lock(&host.waiters).len(), 2);
        host.late_ends();
        assert!(wakeups.iter().all(|wakeup| wakeup.take() && host.is_drained(wakeup)));
    }
}

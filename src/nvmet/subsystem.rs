//! A subsystem: the namespaces under one name, and the controllers through which hosts reach them.

use super::Settings;
use super::controller::{CapParts, Controller, Host};
use super::namespace::{Namespace, NamespaceOptions, Place, bound_to};
use crate::block::places::share_bytes;
use crate::block::{Device, Error, Kind, Result};
use crate::nvme::fabrics::{CNTLID_MAX, Refusal};
use crate::nvme::{Ascii, Nqn, Status};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Highest NSID there can be (NN): bounds the table each queue has.
pub const NSID_MAX: u32 = 1024;
/// Most controllers at once: bounds what hosts that connect again and again can make of memory.
pub const CONTROLLERS_MAX: usize = 4096;

/// How a subsystem is made.
#[derive(Clone, Debug)]
pub struct SubsystemOptions {
    /// Its name.
    pub nqn: Nqn,
    /// Serial number; `None`: made of the name, the same after a restart.
    pub serial: Option<Ascii<20>>,
}

/// What one thread did for a subsystem. Written by that thread only, read by any.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
}

/// Adds without a locked instruction: the caller is the only writer.
#[inline]
pub(super) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// The same of all threads together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Totals {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
}

struct State {
    /// By NSID.
    namespaces: Arc<[Arc<Namespace>]>,
    controllers: Vec<Arc<Controller>>,
    hosts: Vec<Weak<Host>>,
    last_id: u16,
    counts: Vec<Arc<Counts>>,
}

/// Namespaces under one name.
pub struct Subsystem {
    nqn: Nqn,
    serial: Ascii<20>,
    /// Changes with the set of namespaces.
    generation: AtomicU64,
    state: Mutex<State>,
}

impl Subsystem {
    /// A subsystem without namespaces.
    pub fn new(options: SubsystemOptions) -> Arc<Self> {
        let made = || {
            let hash = blake3::derive_key("blkcopy serial number 1", options.nqn.as_str().as_bytes());
            let mut serial = [0; 20];
            for (digit, byte) in serial.iter_mut().zip(hash) {
                *digit = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[usize::from(byte & 31)];
            }
            Ascii(serial)
        };
        let serial = options.serial.unwrap_or_else(made);
        let state = State {
            namespaces: Arc::new([]),
            controllers: Vec::new(),
            hosts: Vec::new(),
            last_id: 0,
            counts: Vec::new(),
        };
        Arc::new(Self { nqn: options.nqn, serial, generation: AtomicU64::new(1), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name.
    pub fn nqn(&self) -> &Nqn {
        &self.nqn
    }

    /// True for the discovery subsystem.
    pub fn is_discovery(&self) -> bool {
        self.nqn.is_discovery()
    }

    /// Its serial number.
    pub fn serial(&self) -> Ascii<20> {
        self.serial
    }

    // --- namespaces --------------------------------------------------------------------------------------------------

    /// Makes a device a namespace; its NSID. Hosts that see it are told.
    ///
    /// Errors: `InvalidInput` for an NSID that cannot be, and as the options say; `InUse` for an NSID that is taken, and for a
    /// device that shares bytes with one that is exported already: range locks and overlap rules are by namespace.
    pub fn add(&self, device: Arc<dyn Device>, options: NamespaceOptions) -> Result<u32> {
        let mut state = self.state();
        let nsid = free_nsid(&state.namespaces, options.nsid).map_err(|e| e.on(device.name()))?;
        for other in state.namespaces.iter() {
            let overlap = share_bytes(other.device(), &device)?;
            if let Some(why) = overlap.reason() {
                let (nsid, name) = (other.nsid(), other.device().name());
                let text = format!("shares bytes with namespace {nsid} ({name}): {why}; leave one out");
                return Err(Error::new(Kind::InUse, text).on(device.name()));
            }
        }
        let name = options.stable_name.clone().unwrap_or_else(|| bound_to(&device));
        let namesakes = state.namespaces.iter().filter(|n| *n.stable_name() == *name).count();
        let place = Place { nsid, subsystem_nqn: self.nqn.as_str(), namesakes };
        let added = Arc::new(Namespace::new(device, options, &place)?);
        let mut all = state.namespaces.to_vec();
        all.insert(all.partition_point(|n| n.nsid() < nsid), added.clone());
        self.changed(&mut state, all, &added);
        Ok(nsid)
    }

    /// Takes a namespace away: what is in flight on it ends, nothing new is begun. Hosts that saw it are told.
    ///
    /// Errors: `NotFound`.
    pub fn remove(&self, nsid: u32) -> Result<()> {
        let mut state = self.state();
        let mut all = state.namespaces.to_vec();
        let at = all.iter().position(|n| n.nsid() == nsid);
        let text = || Error::new(Kind::NotFound, format!("{}: no namespace {nsid}", self.nqn));
        let removed = all.remove(at.ok_or_else(text)?);
        self.changed(&mut state, all, &removed);
        Ok(())
    }

    fn changed(&self, state: &mut State, all: Vec<Arc<Namespace>>, which: &Namespace) {
        state.namespaces = all.into();
        self.generation.fetch_add(1, Ordering::Release);
        for controller in &state.controllers {
            if which.hosts().has(controller.host_nqn().as_str()) {
                controller.namespace_changed(which.nsid());
            }
        }
    }

    /// A number that differs whenever the set of namespaces has changed.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// All namespaces, by NSID.
    pub fn namespaces(&self) -> Arc<[Arc<Namespace>]> {
        self.state().namespaces.clone()
    }

    /// The namespaces attached to the controllers of a host, by NSID.
    pub(super) fn attached(&self, host_nqn: &str) -> Vec<Arc<Namespace>> {
        self.namespaces().iter().filter(|n| n.hosts().has(host_nqn)).cloned().collect()
    }

    /// True when a host may connect: it sees a namespace, or there is none yet that it could not see.
    pub(super) fn admits(&self, host_nqn: &str) -> bool {
        let all = self.namespaces();
        all.is_empty() || all.iter().any(|n| n.hosts().has(host_nqn))
    }

    // --- controllers -------------------------------------------------------------------------------------------------

    /// The record of a host: one for all its associations.
    pub(super) fn host(&self, nqn: &Nqn, id: [u8; 16]) -> Arc<Host> {
        let mut state = self.state();
        state.hosts.retain(|h| h.strong_count() > 0);
        let known = state.hosts.iter().filter_map(Weak::upgrade).find(|h| h.nqn == *nqn && h.id == id);
        known.unwrap_or_else(|| {
            let fresh = Arc::new(Host::new(nqn.clone(), id));
            state.hosts.push(Arc::downgrade(&fresh));
            fresh
        })
    }

    /// A new controller for a host.
    ///
    /// Errors: Connect Controller Busy when there are too many.
    pub(super) fn open(
        self: &Arc<Self>,
        host: Arc<Host>,
        settings: &Settings,
    ) -> Result<Arc<Controller>, Refusal> {
        let mut state = self.state();
        if state.controllers.len() >= CONTROLLERS_MAX {
            return Err(Status::CONNECT_CONTROLLER_BUSY.retryable().into());
        }
        // Numbers go round, so that one is not soon used again; fewer controllers than numbers, so one is free.
        let id = loop {
            state.last_id = if state.last_id == CNTLID_MAX { 1 } else { state.last_id + 1 };
            if state.controllers.iter().all(|c| c.id() != state.last_id) {
                break state.last_id;
            }
        };
        let parts = CapParts { entries: settings.queue_entries, io_queues: settings.io_queues };
        let controller = Arc::new(Controller::new(id, self.clone(), host, parts));
        state.controllers.push(controller.clone());
        Ok(controller)
    }

    /// The controller of this number.
    pub(super) fn find(&self, id: u16) -> Option<Arc<Controller>> {
        self.state().controllers.iter().find(|c| c.id() == id).cloned()
    }

    /// Numbers of all controllers, in order; with `attached_to`, of those that see this namespace.
    pub(super) fn controller_ids(&self, attached_to: Option<&Namespace>) -> Vec<u16> {
        let sees = |c: &&Arc<Controller>| attached_to.is_none_or(|n| n.hosts().has(c.host_nqn().as_str()));
        let mut ids: Vec<u16> = self.state().controllers.iter().filter(sees).map(|c| c.id()).collect();
        ids.sort_unstable();
        ids
    }

    /// A controller has ended.
    pub(super) fn forget(&self, id: u16) {
        self.state().controllers.retain(|c| c.id() != id);
    }

    /// Controllers there are now.
    pub fn controllers(&self) -> usize {
        self.state().controllers.len()
    }

    // --- counts ------------------------------------------------------------------------------------------------------

    /// Counters for one thread.
    pub(super) fn count(&self) -> Arc<Counts> {
        let counts = Arc::<Counts>::default();
        self.state().counts.push(counts.clone());
        counts
    }

    /// What all threads did.
    pub(super) fn totals(&self) -> Totals {
        let state = self.state();
        let sum = |of: fn(&Counts) -> &AtomicU64| {
            state.counts.iter().fold(0u64, |all, c| all.wrapping_add(of(c).load(Ordering::Relaxed)))
        };
        Totals {
            reads: sum(|c| &c.reads),
            writes: sum(|c| &c.writes),
            read_bytes: sum(|c| &c.read_bytes),
            written_bytes: sum(|c| &c.written_bytes),
        }
    }
}

impl fmt::Debug for Subsystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subsystem {} with {} namespaces", self.nqn, self.namespaces().len())
    }
}

/// The NSID asked for if it is free, or the lowest free one.
fn free_nsid(taken: &[Arc<Namespace>], asked: Option<u32>) -> Result<u32> {
    let is_free = |nsid: u32| taken.iter().all(|n| n.nsid() != nsid);
    match asked {
        Some(nsid) if !(1..=NSID_MAX).contains(&nsid) => {
            let text = format!("namespace id {nsid} cannot be; it is 1 to {NSID_MAX}");
            Err(Error::new(Kind::InvalidInput, text))
        }
        Some(nsid) if is_free(nsid) => Ok(nsid),
        Some(nsid) => Err(Error::new(Kind::InUse, format!("namespace id {nsid} is taken; choose another"))),
        None => (1..=NSID_MAX)
            .find(|&nsid| is_free(nsid))
            .ok_or_else(|| Error::new(Kind::InUse, format!("all {NSID_MAX} namespace ids are taken"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::{mem::Mem, null::Null};
    use crate::map::Linear;
    use crate::nvmet::Hosts;
    use std::num::NonZeroU32;

    fn mem(name: &str) -> Arc<dyn Device> {
        Arc::new(Mem::new(name, 1 << 20, NonZeroU32::MIN).unwrap())
    }

    fn subsystem() -> Arc<Subsystem> {
        Subsystem::new(SubsystemOptions { nqn: Nqn::new("nqn.2024-01.x:a").unwrap(), serial: None })
    }

    fn with_nsid(nsid: u32) -> NamespaceOptions {
        NamespaceOptions { nsid: Some(nsid), ..Default::default() }
    }

    #[test]
    fn numbers_are_the_lowest_free_or_as_asked() {
        let s = subsystem();
        assert_eq!(s.add(mem("a"), with_nsid(2)).unwrap(), 2);
        assert_eq!(s.add(mem("b"), NamespaceOptions::default()).unwrap(), 1);
        assert_eq!(s.add(mem("c"), NamespaceOptions::default()).unwrap(), 3);
        for (nsid, kind) in [(2, Kind::InUse), (0, Kind::InvalidInput), (NSID_MAX + 1, Kind::InvalidInput)] {
            assert_eq!(s.add(mem("d"), with_nsid(nsid)).unwrap_err().kind(), kind);
        }
        assert_eq!(s.add(mem("d"), with_nsid(NSID_MAX)).unwrap(), NSID_MAX);
        let listed: Vec<u32> = s.namespaces().iter().map(|n| n.nsid()).collect();
        assert_eq!(listed, [1, 2, 3, NSID_MAX]);
    }

    #[test]
    fn bytes_are_exported_once() {
        let s = subsystem();
        let device = mem("a");
        s.add(device.clone(), NamespaceOptions::default()).unwrap();
        assert_eq!(s.add(device.clone(), NamespaceOptions::default()).unwrap_err().kind(), Kind::InUse);
        s.remove(1).unwrap();
        assert_eq!(s.remove(1).unwrap_err().kind(), Kind::NotFound);
        s.add(device, NamespaceOptions::default()).unwrap();
    }

    //= promise 1
    #[test]
    fn a_map_and_its_leg_are_not_two_namespaces() {
        let legs = [mem("a"), mem("b")];
        let map: Arc<dyn Device> = Arc::new(Linear::new("m", legs.clone()).unwrap());
        for (first, second) in [(map.clone(), legs[1].clone()), (legs[1].clone(), map)] {
            let s = subsystem();
            s.add(first, NamespaceOptions::default()).unwrap();
            let error = s.add(second, NamespaceOptions::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::InUse, "{error}");
            s.add(mem("c"), NamespaceOptions::default()).unwrap();
        }
    }

    #[test]
    fn the_generation_tells_every_change_of_the_set() {
        let s = subsystem();
        let before = s.generation();
        s.add(mem("a"), NamespaceOptions::default()).unwrap();
        let added = s.generation();
        s.remove(1).unwrap();
        assert!(before < added && added < s.generation());
    }

    //= promise 3
    #[test]
    fn a_host_is_admitted_where_it_sees_something_or_nothing_is_hidden_from_it() {
        let s = subsystem();
        assert!(s.admits("nqn.h"));
        let hosts = Hosts::These(vec!["nqn.h".into()]);
        s.add(mem("a"), NamespaceOptions { hosts, ..Default::default() }).unwrap();
        assert!(s.admits("nqn.h") && !s.admits("nqn.i"));
        assert_eq!((s.attached("nqn.h").len(), s.attached("nqn.i").len()), (1, 0));
        s.add(mem("b"), NamespaceOptions::default()).unwrap();
        assert!(s.admits("nqn.i"));
    }

    #[test]
    fn the_serial_number_stays_and_two_devices_of_one_name_differ() {
        // Nothing holds their bytes, so that their names are what is written on them.
        let null = || Arc::new(Null::new("null:1MiB", 1 << 20, NonZeroU32::MIN).unwrap());
        let make = || {
            let s = subsystem();
            s.add(null(), NamespaceOptions::default()).unwrap();
            s.add(null(), NamespaceOptions::default()).unwrap();
            let ids: Vec<_> = s.namespaces().iter().map(|n| (n.nguid(), n.uuid())).collect();
            (s.serial(), ids)
        };
        let (serial, ids) = make();
        assert_eq!((serial, &ids), (make().0, &make().1), "the same after a restart");
        assert!(ids[0].0 != ids[1].0 && ids[0].1 != ids[1].1);
        assert!(serial.0.iter().all(u8::is_ascii_alphanumeric));
    }
}

//! A subsystem: the namespaces under one name, and the controllers through which hosts reach them.

use super::controller::{CapParts, Controller, TargetHost};
use super::namespace::{Namespace, NamespaceOptions};
use super::namespace_set::NamespaceSet;
use super::settings::Settings;
use crate::block::{Device, Result};
use crate::nvme::fabrics::{CNTLID_MAX, Refusal};
use crate::nvme::{Ascii, Nqn, Status};
use crate::sys::sync::lock;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// Most controllers at once: bounds what hosts that connect again and again can make of memory.
pub const CONTROLLERS_MAX: usize = 1 << 15;

/// Fewest records that are looked through for those whose association has ended: each once for each that came.
const SWEEP_MIN: usize = 64;

/// How a subsystem is made.
#[derive(Clone, Debug)]
pub struct SubsystemOptions {
    /// Its name.
    pub nqn: Nqn,
    /// Serial number; `None`: made of the name, the same after a restart.
    pub serial: Option<Ascii<20>>,
}

#[derive(Default)]
struct Associations {
    /// By number. Those that have ended are removed once they may be half of all.
    controllers: BTreeMap<u16, Arc<Controller>>,
    hosts: HashMap<(Nqn, [u8; 16]), Weak<TargetHost>>,
    /// When there are so many, those that have ended are removed.
    sweep_at: [usize; 2],
    last_id: u16,
}

/// Namespaces under one name.
pub struct Subsystem {
    namespaces: Arc<NamespaceSet>,
    associations: Mutex<Associations>,
}

impl Subsystem {
    /// A subsystem without namespaces.
    pub fn new(options: SubsystemOptions) -> Arc<Self> {
        let namespaces = Arc::new(NamespaceSet::new(options.nqn, options.serial));
        Arc::new(Self { namespaces, associations: Mutex::default() })
    }

    /// The associations, also some that have ended.
    fn associations(&self) -> MutexGuard<'_, Associations> {
        lock(&self.associations)
    }

    /// Its name.
    pub fn nqn(&self) -> &Nqn {
        self.namespaces.nqn()
    }

    /// True for the discovery subsystem.
    pub fn is_discovery(&self) -> bool {
        self.namespaces.is_discovery()
    }

    /// Its serial number.
    pub fn serial(&self) -> Ascii<20> {
        self.namespaces.serial()
    }

    // --- namespaces --------------------------------------------------------------------------------------------------

    /// Makes a device a namespace; its NSID. Hosts that see it are notified.
    ///
    /// Errors: `InvalidInput` for an NSID that cannot be, and as the options say; `InUse` for an NSID that is taken,
    /// and for a device that shares bytes with one that is exported already: range locks and overlap rules are by
    /// namespace.
    pub fn add(&self, device: Arc<dyn Device>, options: NamespaceOptions) -> Result<u32> {
        let associations = self.associations();
        let added = self.namespaces.add(device, options)?;
        associations.notify(&added);
        Ok(added.nsid())
    }

    /// Takes a namespace away: what is in flight on it ends, nothing new is begun. Hosts that saw it are notified.
    ///
    /// Errors: `NotFound`.
    pub fn remove(&self, nsid: u32) -> Result<()> {
        let associations = self.associations();
        let removed = self.namespaces.remove(nsid)?;
        associations.notify(&removed);
        Ok(())
    }

    /// A number that differs whenever the set of namespaces has changed.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.namespaces.generation()
    }

    /// All namespaces, by NSID.
    pub fn namespaces(&self) -> Arc<[Arc<Namespace>]> {
        self.namespaces.list()
    }

    /// True when a host may connect: it sees a namespace, or there is none yet that it could not see.
    pub(super) fn admits(&self, host_nqn: &str) -> bool {
        let all = self.namespaces();
        all.is_empty() || all.iter().any(|n| n.hosts().has(host_nqn))
    }

    // --- controllers -------------------------------------------------------------------------------------------------

    /// The record of a host: one for all its associations.
    pub(super) fn host(&self, nqn: &Nqn, id: [u8; 16]) -> Arc<TargetHost> {
        let mut associations = self.associations();
        let Associations { hosts, sweep_at: [at, _], .. } = &mut *associations;
        if hosts.len() >= *at {
            hosts.retain(|_, h| h.strong_count() > 0);
            *at = SWEEP_MIN.max(2 * hosts.len());
        }
        let known = hosts.entry((nqn.clone(), id)).or_default();
        known.upgrade().unwrap_or_else(|| {
            let fresh = Arc::new(TargetHost::new(nqn.clone(), id));
            *known = Arc::downgrade(&fresh);
            fresh
        })
    }

    /// A new controller for a host.
    ///
    /// Errors: Connect Controller Busy when there are too many.
    pub(super) fn open(
        &self,
        host: Arc<TargetHost>,
        settings: &Settings,
    ) -> Result<Arc<Controller>, Refusal> {
        let mut associations = self.associations();
        let Associations { controllers, sweep_at: [_, at], last_id, .. } = &mut *associations;
        if controllers.len() >= (*at).min(CONTROLLERS_MAX) {
            controllers.retain(|_, c| !c.is_gone());
            *at = SWEEP_MIN.max(2 * controllers.len());
        }
        if controllers.len() >= CONTROLLERS_MAX {
            return Err(Status::CONNECT_CONTROLLER_BUSY.retryable().into());
        }
        // Numbers go round, so that one is not soon used again; fewer controllers than numbers, so one is free.
        let id = loop {
            *last_id = if *last_id == CNTLID_MAX { 1 } else { *last_id + 1 };
            if !controllers.contains_key(last_id) {
                break *last_id;
            }
        };
        let parts = CapParts {
            entries: settings.queue_entries,
            io_queues: settings.io_queues,
            copy_formats: settings.copy_formats,
        };
        let controller = Arc::new(Controller::new(id, self.namespaces.clone(), host, parts));
        controllers.insert(id, controller.clone());
        Ok(controller)
    }

    /// The controller of this number.
    pub(super) fn find(&self, id: u16) -> Option<Arc<Controller>> {
        self.associations().controllers.get(&id).filter(|c| !c.is_gone()).cloned()
    }

    /// Numbers of all controllers, in order; with `attached_to`, of those that see this namespace.
    pub(super) fn controller_ids(&self, attached_to: Option<&Namespace>) -> Vec<u16> {
        let sees = |c: &&Arc<Controller>| attached_to.is_none_or(|n| n.hosts().has(c.host_nqn().as_str()));
        self.associations().live().filter(sees).map(|c| c.id()).collect()
    }

    /// Controllers there are now.
    pub fn controllers(&self) -> usize {
        self.associations().live().count()
    }
}

impl Associations {
    /// The controllers whose association has not ended, by number.
    fn live(&self) -> impl Iterator<Item = &Arc<Controller>> {
        self.controllers.values().filter(|c| !c.is_gone())
    }

    /// Notifies the hosts that see a namespace that it has come or gone.
    fn notify(&self, which: &Namespace) {
        for controller in self.live() {
            if which.hosts().has(controller.host_nqn().as_str()) {
                controller.namespace_changed(which.nsid());
            }
        }
    }
}

impl fmt::Debug for Subsystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subsystem {} with {} namespaces", self.nqn(), self.namespaces().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Kind;
    use crate::drivers::{mem::Mem, null::Null};
    use crate::map::Linear;
    use crate::nvmet::namespace::Hosts;
    use crate::nvmet::namespace_set::NSID_MAX;
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
        assert_eq!((s.namespaces.attached("nqn.h").len(), s.namespaces.attached("nqn.i").len()), (1, 0));
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

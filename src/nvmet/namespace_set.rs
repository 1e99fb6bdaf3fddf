//! The namespaces under one name, and what was done with them: all that a controller needs to know of its subsystem.

use super::namespace::{Namespace, NamespaceOptions, NamespacePlace, bound_to};
use crate::block::places::share_bytes;
use crate::block::{Device, Error, Kind, Result};
use crate::nvme::{Ascii, Nqn};
use crate::sys::sync::lock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Highest NSID there can be (NN): bounds the table each queue has.
pub const NSID_MAX: u32 = 1024;

/// What one thread did for a subsystem. Written by that thread only, read by any.
#[derive(Default)]
pub(super) struct IoCounts {
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
pub(super) struct IoTotals {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
}

/// The namespaces of a subsystem.
pub(super) struct NamespaceSet {
    nqn: Nqn,
    serial: Ascii<20>,
    /// Changes with the list.
    generation: AtomicU64,
    /// By NSID.
    list: Mutex<Arc<[Arc<Namespace>]>>,
    counts: Mutex<Vec<Arc<IoCounts>>>,
}

impl NamespaceSet {
    /// No namespaces yet. A serial number that is not given is made of the name.
    pub(super) fn new(nqn: Nqn, serial: Option<Ascii<20>>) -> Self {
        let made = || {
            let hash = blake3::derive_key("blkcopy serial number 1", nqn.as_str().as_bytes());
            let mut serial = [0; 20];
            for (digit, byte) in serial.iter_mut().zip(hash) {
                *digit = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[usize::from(byte & 31)];
            }
            Ascii(serial)
        };
        let serial = serial.unwrap_or_else(made);
        Self {
            nqn,
            serial,
            generation: AtomicU64::new(1),
            list: Mutex::new(Arc::new([])),
            counts: Mutex::default(),
        }
    }

    pub(super) fn nqn(&self) -> &Nqn {
        &self.nqn
    }

    /// True for the discovery subsystem.
    pub(super) fn is_discovery(&self) -> bool {
        self.nqn.is_discovery()
    }

    pub(super) fn serial(&self) -> Ascii<20> {
        self.serial
    }

    /// Makes a device a namespace; errors as [`super::Subsystem::add`] has them.
    pub(super) fn add(&self, device: Arc<dyn Device>, options: NamespaceOptions) -> Result<Arc<Namespace>> {
        let mut list = lock(&self.list);
        let nsid = free_nsid(&list, options.nsid).map_err(|e| e.on(device.name()))?;
        for other in list.iter() {
            let overlap = share_bytes(other.device(), &device)?;
            if let Some(why) = overlap.reason() {
                let (nsid, name) = (other.nsid(), other.device().name());
                let text = format!("shares bytes with namespace {nsid} ({name}): {why}; leave one out");
                return Err(Error::new(Kind::InUse, text).on(device.name()));
            }
        }
        let name = options.stable_name.clone().unwrap_or_else(|| bound_to(&device));
        let namesakes = list.iter().filter(|n| *n.stable_name() == *name).count();
        let place = NamespacePlace { nsid, subsystem_nqn: self.nqn.as_str(), namesakes };
        let added = Arc::new(Namespace::new(device, options, &place)?);
        let mut all = list.to_vec();
        all.insert(all.partition_point(|n| n.nsid() < nsid), added.clone());
        *list = all.into();
        self.generation.fetch_add(1, Ordering::Release);
        Ok(added)
    }

    /// Takes a namespace away. Errors: `NotFound`.
    pub(super) fn remove(&self, nsid: u32) -> Result<Arc<Namespace>> {
        let mut list = lock(&self.list);
        let mut all = list.to_vec();
        let at = all.iter().position(|n| n.nsid() == nsid);
        let text = || Error::new(Kind::NotFound, format!("{}: no namespace {nsid}", self.nqn));
        let removed = all.remove(at.ok_or_else(text)?);
        *list = all.into();
        self.generation.fetch_add(1, Ordering::Release);
        Ok(removed)
    }

    /// A number that differs whenever the list has changed.
    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// All of them, by NSID.
    pub(super) fn list(&self) -> Arc<[Arc<Namespace>]> {
        lock(&self.list).clone()
    }

    /// The namespaces attached to the controllers of a host, by NSID.
    pub(super) fn attached(&self, host_nqn: &str) -> Vec<Arc<Namespace>> {
        self.list().iter().filter(|n| n.hosts().has(host_nqn)).cloned().collect()
    }

    /// Counters for one thread.
    pub(super) fn count(&self) -> Arc<IoCounts> {
        let counts = Arc::<IoCounts>::default();
        lock(&self.counts).push(counts.clone());
        counts
    }

    /// What all threads did.
    pub(super) fn totals(&self) -> IoTotals {
        let counts = lock(&self.counts);
        let sum = |of: fn(&IoCounts) -> &AtomicU64| {
            counts.iter().fold(0u64, |all, c| all.wrapping_add(of(c).load(Ordering::Relaxed)))
        };
        IoTotals {
            reads: sum(|c| &c.reads),
            writes: sum(|c| &c.writes),
            read_bytes: sum(|c| &c.read_bytes),
            written_bytes: sum(|c| &c.written_bytes),
        }
    }
}

/// The NSID asked for if it is free, or the lowest free one.
fn free_nsid(taken: &[Arc<Namespace>], asked: Option<u32>) -> Result<u32> {
    let is_free = |nsid: u32| taken.iter().all(|n| n.nsid() != nsid);
    match asked {
        Some(nsid) if !(1..=NSID_MAX).contains(&nsid) => {
            let text = format!("namespace id {nsid} is not possible; give 1 to {NSID_MAX}");
            Err(Error::new(Kind::InvalidInput, text))
        }
        Some(nsid) if is_free(nsid) => Ok(nsid),
        Some(nsid) => Err(Error::new(Kind::InUse, format!("namespace id {nsid} is in use; give another"))),
        None => (1..=NSID_MAX)
            .find(|&nsid| is_free(nsid))
            .ok_or_else(|| Error::new(Kind::InUse, format!("all {NSID_MAX} namespace ids are in use"))),
    }
}

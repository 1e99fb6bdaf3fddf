//! The whole target: its subsystems, where it listens, and the discovery log that says so.

use super::subsystem::{Subsystem, SubsystemOptions};
use crate::block::{Error, Kind, Result};
use crate::nvme::discovery::{Entry, Header, SubsystemType};
use crate::nvme::{Count16, Nqn};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Limits that hold for every subsystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Entries of the largest queue (MQES): 32 to 4096, so that a host's usual admin queue fits.
    pub queue_entries: Count16,
    /// Most I/O queues of one controller: 1 to 1024.
    pub io_queues: u16,
    /// Longest data of one command in bytes: a power of two, 4096 to 2^30 (MDTS).
    pub transfer_bytes: u32,
    /// Most data in a capsule of an I/O queue in bytes: a multiple of 16 (IOCCSZ). From 10240 on every Copy's list fits.
    pub in_capsule_bytes: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_entries: Count16::from_wire(127),
            io_queues: 64,
            transfer_bytes: 1 << 20,
            in_capsule_bytes: 10240,
        }
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::new(Kind::InvalidInput, text));
        if !(32..=4096).contains(&self.queue_entries.get()) {
            return wrong(format!("queues of {} entries; 32 to 4096 can be", self.queue_entries));
        }
        if !(1..=1024).contains(&self.io_queues) {
            return wrong(format!("{} I/O queues of a controller; 1 to 1024 can be", self.io_queues));
        }
        if !self.transfer_bytes.is_power_of_two() || !(4096..=1 << 30).contains(&self.transfer_bytes) {
            let text =
                format!("transfers of {} bytes; a power of two, 4096 to 2^30, can be", self.transfer_bytes);
            return wrong(text);
        }
        if !self.in_capsule_bytes.is_multiple_of(16) || self.in_capsule_bytes > self.transfer_bytes {
            let text = format!(
                "{} bytes in a capsule; a multiple of 16 up to {} can be",
                self.in_capsule_bytes, self.transfer_bytes
            );
            return wrong(text);
        }
        Ok(())
    }
}

struct State {
    subsystems: Vec<Arc<Subsystem>>,
    addresses: Vec<SocketAddr>,
    generation: u64,
}

/// All that one process serves.
pub struct Target {
    settings: Settings,
    discovery: Arc<Subsystem>,
    state: Mutex<State>,
}

impl Target {
    /// A target that serves nothing but discovery yet.
    ///
    /// Errors: `InvalidInput` for settings outside their bounds.
    pub fn new(settings: Settings) -> Result<Arc<Self>> {
        settings.check()?;
        let discovery = Subsystem::new(SubsystemOptions { nqn: Nqn::discovery(), serial: None });
        let state = State { subsystems: Vec::new(), addresses: Vec::new(), generation: 1 };
        Ok(Arc::new(Self { settings, discovery, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limits.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Serves a subsystem.
    ///
    /// Errors: `InUse` when one of this name is served already, or the name is the discovery subsystem's.
    pub fn serve(&self, subsystem: Arc<Subsystem>) -> Result<()> {
        let mut state = self.state();
        let nqn = subsystem.nqn();
        if subsystem.is_discovery() || state.subsystems.iter().any(|s| s.nqn() == nqn) {
            return Err(Error::new(Kind::InUse, format!("{nqn} is served already; give another name")));
        }
        state.subsystems.push(subsystem);
        state.generation += 1;
        Ok(())
    }

    /// Says where it listens: the addresses of the discovery log, in this order, in place of those given before.
    pub fn listen(&self, addresses: &[SocketAddr]) {
        let mut state = self.state();
        state.addresses = addresses.to_vec();
        state.generation += 1;
    }

    /// The subsystem of this name, the discovery subsystem too.
    pub fn subsystem(&self, nqn: &Nqn) -> Option<Arc<Subsystem>> {
        if nqn.is_discovery() {
            return Some(self.discovery.clone());
        }
        self.state().subsystems.iter().find(|s| s.nqn() == nqn).cloned()
    }

    /// The discovery log as one host sees it that asks through the address `local`: subsystems it may connect to. No referrals.
    pub(super) fn discovery_log(&self, host_nqn: &str, local: Option<SocketAddr>) -> Vec<u8> {
        let state = self.state();
        let mut entries = Vec::new();
        for subsystem in state.subsystems.iter().filter(|s| s.admits(host_nqn)) {
            for (port_id, address) in (0u16..).zip(&state.addresses) {
                // "Any address" is none a host could connect to: the one it came by is.
                let ip = match local {
                    Some(local) if address.ip().is_unspecified() => local.ip(),
                    _ => address.ip(),
                };
                let nqn = subsystem.nqn().clone();
                let mut entry = Entry::tcp(SubsystemType::Nvm, nqn, ip.to_canonical(), address.port());
                entry.port_id = port_id;
                entry.admin_entries_max =
                    u16::try_from(self.settings.queue_entries.get()).unwrap_or(u16::MAX);
                entries.extend_from_slice(&entry.to_bytes());
            }
        }
        let count = (entries.len() / Entry::LEN) as u64;
        let mut log = Header { generation: state.generation, entries: count }.to_bytes().to_vec();
        log.append(&mut entries);
        log
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.state().subsystems.iter()).finish()
    }
}

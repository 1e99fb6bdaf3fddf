//! The whole target: its subsystems, where it listens, and the discovery log that says so.

use super::settings::Settings;
use super::subsystem::{Subsystem, SubsystemOptions};
use crate::block::{Error, Kind, Result};
use crate::nvme::Nqn;
use crate::nvme::discovery::{Entry, Header, SubsystemType};
use crate::sys::process::boot_digest;
use crate::sys::sync::lock;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

struct Served {
    subsystems: Vec<Arc<Subsystem>>,
    addresses: Vec<SocketAddr>,
    generation: u64,
}

/// All that one process serves.
pub struct Target {
    settings: Settings,
    discovery: Arc<Subsystem>,
    state: Mutex<Served>,
}

impl Target {
    /// A target that serves nothing but discovery yet.
    ///
    /// Errors: `InvalidInput` for settings outside their bounds.
    pub fn new(settings: Settings) -> Result<Arc<Self>> {
        settings.check()?;
        // Read once, here: no thread that serves may wait for a file.
        let _known = boot_digest();
        let discovery = Subsystem::new(SubsystemOptions { nqn: Nqn::discovery(), serial: None });
        let state = Served { subsystems: Vec::new(), addresses: Vec::new(), generation: 1 };
        Ok(Arc::new(Self { settings, discovery, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, Served> {
        lock(&self.state)
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
            return Err(Error::new(Kind::InUse, format!("{nqn} is already served; give another name")));
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

    /// True when a host may connect to some subsystem.
    pub(super) fn admits(&self, host_nqn: &str) -> bool {
        self.state().subsystems.iter().any(|s| s.admits(host_nqn))
    }

    /// The discovery log as one host sees it that asks through the address `local`: subsystems it may connect to. No
    /// referrals.
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

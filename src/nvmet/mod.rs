//! The target: NVMe commands become requests, completions become answers. No sockets and no PDUs here.
//!
//! A [`Target`] has [`Subsystem`]s with [`Namespace`]s; a host's association is a [`Controller`]. Each thread has a [`Core`],
//! which takes commands of its connections and gives answers. `docs/notes/005-nvme-tcp.md` has the interface,
//! `docs/conformance.md` what is claimed.

mod admin;
#[cfg(test)]
mod admin_tests;
mod bell;
mod closing;
mod connect;
#[cfg(test)]
mod connect_tests;
mod controller;
mod copy;
#[cfg(test)]
mod copy_end_tests;
#[cfg(test)]
mod copy_tests;
mod copying;
mod core;
mod discovery;
mod events;
mod features;
mod identify;
mod io;
#[cfg(test)]
mod io_tests;
#[cfg(test)]
mod model_tests;
mod namespace;
mod subsystem;
#[cfg(test)]
mod testing;

pub use self::core::{Answer, CONNECTIONS_MAX, ConnectionId, Core, From, QueuePair};
pub use controller::Controller;
pub use copying::CopyLine;
pub use discovery::{Settings, Target};
pub use namespace::{CopyLimits, Hosts, Namespace, NamespaceOptions};
pub use subsystem::{CONTROLLERS_MAX, NSID_MAX, Subsystem, SubsystemOptions};

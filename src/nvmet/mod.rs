//! The target: NVMe commands become requests, completions become answers. No sockets and no PDUs here.
//!
//! A [`Target`] has [`Subsystem`]s with [`Namespace`]s; a host's association is a [`Controller`]. Each thread has a
//! [`Worker`], which takes commands of its connections and gives answers: `command` has the handlers, `connections`,
//! `backends` and `copy_queue` what a worker keeps. `docs/notes/005-nvme-tcp.md` has the interface,
//! `docs/conformance.md` what is claimed.

#[cfg(test)]
mod admin_tests;
mod backends;
mod command;
#[cfg(test)]
mod connect_tests;
mod connections;
mod controller;
#[cfg(test)]
mod copy_end_tests;
mod copy_line;
mod copy_queue;
#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod copy_turn_tests;
mod events;
mod features;
#[cfg(test)]
mod io_tests;
#[cfg(test)]
mod model_tests;
mod namespace;
mod namespace_set;
mod pending;
mod settings;
mod shares;
mod subsystem;
mod target;
#[cfg(test)]
mod testing;
mod view;
mod wakeup;
mod worker;

pub use connections::{CONNECTIONS_MAX, CommandId, ConnectionId, QueuePair, Standing};
pub use controller::Controller;
pub use copy_queue::CopyLine;
pub use namespace::{CopyCommandLimits, Hosts, Namespace, NamespaceOptions};
pub use namespace_set::NSID_MAX;
pub use settings::Settings;
pub use subsystem::{CONTROLLERS_MAX, Subsystem, SubsystemOptions};
pub use target::Target;
pub use worker::{Answer, Worker};

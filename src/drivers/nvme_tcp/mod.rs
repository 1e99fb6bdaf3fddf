//! NVMe/TCP namespaces as devices: `nvme-tcp://host:port/NQN?nsid=N`. The host's side, with nothing in the kernel.
//!
//! One controller for each subsystem at an address, shared by its namespaces, so that the controller can copy
//! from one to another. What is sent again after a lost connection, and what is not: `docs/notes/005-nvme-tcp.md`.

mod admin;
mod channel;
mod controller;
mod device;
mod discovery;
mod identity;
mod keeper;
mod link;
mod queue;
mod url;
mod wire;
mod work;

pub use device::Namespace;
pub use discovery::{NamespaceInfo, Subsystem, discover, subsystem};
pub use url::{Address, Url};

use crate::block::{Error, Kind};
use std::error::Error as _;
use std::fmt;
use std::time::Duration;

/// How a controller is attached to and watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Header digests are asked for.
    pub header_digest: bool,
    /// Data digests are asked for.
    pub data_digest: bool,
    /// Longest time to attach, and to open a queue.
    pub connect_timeout: Duration,
    /// How long one command may take before the controller is reset.
    pub command_timeout: Duration,
    /// Longest time without a connection before requests fail, and for which a command is tried again when the
    /// controller says that this may help. The attempts to connect go on afterwards, as long as the namespace is open.
    pub reconnect_timeout: Duration,
    /// Time without a sign of life after which the controller gives us up, and we it (KATO).
    pub keep_alive: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            connect_timeout: Duration::from_secs(10),
            command_timeout: Duration::from_secs(30),
            reconnect_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(5),
        }
    }
}

impl Options {
    /// The defaults, with the digests that a URL asks for.
    pub fn of(url: &Url) -> Self {
        Self { header_digest: url.header_digest, data_digest: url.data_digest, ..Self::default() }
    }
}

/// An error to be told more than once.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Why {
    kind: Kind,
    text: String,
}

impl Why {
    #[cold]
    fn new(text: String) -> Self {
        Self { kind: Kind::Io, text }
    }

    /// An error with its causes, in one line.
    #[cold]
    fn of(error: &Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(c) = cause {
            text = format!("{text}: {c}");
            cause = c.source();
        }
        Self { kind: error.kind(), text }
    }

    #[cold]
    fn error(&self) -> Error {
        Error::new(self.kind, self.text.clone())
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod attach_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod return_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

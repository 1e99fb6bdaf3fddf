//! What the threads of a server share, and how a server runs.

use super::memory::MemorySlice;
use crate::nvme::tcp::controller::Config;
use crate::nvmet::{CopyLine, Target};
use crate::reactor::EngineChoice;
use crate::reactor::local::Interrupt;
use crate::workers::{Ending, Inbox};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

/// Called with each Copy that ended, on the thread that ran it.
pub type OnCopy = Arc<dyn Fn(&CopyLine) + Send + Sync>;

/// How a server runs.
#[derive(Clone)]
pub struct ServerOptions {
    /// Addresses to listen on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Threads: 1 to [`CORES_MAX`](super::CORES_MAX).
    pub cores: usize,
    /// Time for which a thread polls before it sleeps.
    pub spin: Duration,
    /// Engine for files and block devices.
    pub engine: EngineChoice,
    /// Most connections at once, on all threads together: 1 to
    /// [`CONNECTIONS_MAX`](crate::nvmet::CONNECTIONS_MAX). Fewer where this process may not have as many files open;
    /// [`Server::connections_max`](super::Server::connections_max) says how many.
    pub connections_max: usize,
    /// Most memory for connections, payload in flight and copies, for all threads together, in bytes.
    pub memory_bytes: usize,
    /// Called with each Copy.
    pub on_copy: Option<OnCopy>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 4420))],
            cores: 1,
            spin: Duration::from_micros(50),
            engine: EngineChoice::Auto,
            connections_max: 1 << 14,
            memory_bytes: 640 << 20,
            on_copy: None,
        }
    }
}

/// What the threads of a server share.
pub(super) struct ServerShared {
    pub(super) target: Arc<Target>,
    pub(super) options: ServerOptions,
    pub(super) machine: Config,
    /// What each thread has of the memory.
    pub(super) memory: MemorySlice,
    pub(super) stop: Interrupt,
    /// Most connections of one thread.
    pub(super) places: usize,
    /// For each thread, the connections dealt to it.
    pub(super) inboxes: Vec<Inbox<(TcpStream, SocketAddr)>>,
    /// For each thread, how many there are: those dealt to it, and those it has.
    pub(super) counts: Vec<AtomicUsize>,
    /// Links that turns have walked so far.
    pub(super) walked: AtomicU64,
    /// Also set when a thread panics.
    pub(super) ending: Ending,
}

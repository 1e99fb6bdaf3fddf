//! NVMe/TCP: listeners, sockets and threads around [`crate::nvme::tcp::controller`] and [`crate::nvmet`].
//!
//! One thread per core, each with reactor, executor, range locks and a [`Worker`](crate::nvmet::Worker). The first
//! accepts and deals the connections round; a connection stays where it was dealt. `server` starts and ends the
//! threads, `server_thread` is what each does, `link` one of its connections, `places` who may have how many. `memory`
//! divides the bound on memory, `shares` keeps each host's part of a thread's buffers.

mod link;
mod memory;
mod places;
mod server;
mod server_thread;
mod shared;
mod shares;

pub use server::{CORES_MAX, Server};
pub use shared::{OnCopy, ServerOptions};

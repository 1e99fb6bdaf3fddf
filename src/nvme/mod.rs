//! NVMe without I/O: commands, data structures, statuses, and the TCP transport as byte machines.
//!
//! Parsers check what a peer says and never allocate by a peer's number. 0's-based wire fields become counts here.
//! `docs/conformance.md` lists what is claimed.

pub mod admin;
pub mod command;
pub mod copy;
pub mod count;
pub mod discovery;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod io;
pub mod log;
pub mod nqn;
pub mod property;
pub mod status;
pub mod tcp;
mod wire;

pub use admin::AdminCommand;
pub use command::{Cqe, Sgl, Sqe};
pub use copy::{CopyCommand, SourceRange};
pub use count::{Blocks, Count8, Count16};
pub use fabrics::FabricsCommand;
pub use io::IoCommand;
pub use nqn::{Ascii, Nqn};
pub use status::{Doing, Status};

#[cfg(test)]
mod tests;

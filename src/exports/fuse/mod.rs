//! The mount: volumes as files of one FUSE mount, whose `copy_file_range` and ioctls are block copies.
//!
//! `docs/notes/006-mount.md` has threads, calls and reasons. `fs` takes requests on reader threads, `reader` is what
//! such a thread has of its own, `worker` serves the jobs that are handed over, `copying` is copies on either, `notify`
//! speaks to the kernel, `mount` starts and ends it all.

mod abi;
mod attach;
mod copying;
mod errno;
mod fs;
mod job;
mod mount;
mod notify;
mod options;
mod pace;
mod reader;
mod refresh;
mod shared;
mod volume;
mod worker;

pub use mount::{Changed, Mount};
pub use options::{MountOptions, READERS_MAX, Serve, Volume, WORKERS_MAX};

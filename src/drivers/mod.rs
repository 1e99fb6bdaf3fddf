//! Devices: memory, null, regular file, block device.
//!
//! `mem` is the one written to be copied.

pub mod bdev;
mod container;
pub mod file;
pub mod hold;
mod image_locks;
pub mod in_use;
mod locks;
mod marks;
pub mod mem;
mod mounts;
pub mod null;
pub mod nvme_tcp;
pub mod stack;

pub use bdev::{Bdev, BdevOptions};
pub use file::{File, FileOptions, Fresh};
pub use hold::{Hold, HoldAs, hold};
pub use in_use::{Holder, HolderKind, Shortage, backing_shortage, in_use, writers};
pub use stack::of_path as storage_at;

#[cfg(test)]
mod testing;

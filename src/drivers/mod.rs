//! Devices: memory, null, regular file, block device.
//!
//! `mem` is the one written to be copied.

pub mod bdev;
pub mod file;
pub mod hold;
pub mod in_use;
pub mod mem;
mod mounts;
pub mod null;
pub mod nvme_tcp;

pub use bdev::{Bdev, BdevOptions};
pub use file::{File, FileOptions};
pub use hold::{Hold, hold};
pub use in_use::{Holder, HolderKind, Shortage, backing_shortage, in_use};

#[cfg(test)]
mod testing;

//! System calls and raw memory: the only room with unsafe code.

pub mod aligned;
pub mod blkcopy;
pub mod btrfs;
pub mod close;
pub mod dm;
pub mod fiemap;
pub mod ioctl;
pub mod lease;
pub mod mapped;
pub mod owned;
pub mod process;
pub mod ring;
#[cfg(any(test, feature = "sim"))]
pub mod seccomp;
pub(crate) mod sync;

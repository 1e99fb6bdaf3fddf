//! The ways out: what listens, and moves bytes between its sockets and the target.

#[cfg(feature = "fuse")]
pub mod fuse;
pub mod nvme_tcp;

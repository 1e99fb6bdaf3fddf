//! The ways out: what listens, and moves bytes between its sockets and the target.

pub mod nvme_tcp;

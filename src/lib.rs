//! Copy offload for block storage, in user space.
//!
//! A device comes in through [`drivers`], may be reshaped in [`map`], and is reached through a [`block::Queue`].
//! One value walks the whole way: a [`block::Request`] goes down, its [`block::Completion`] comes back up, exactly
//! once. Copy is an operation like read and write.
//!
//! | room | what it is for |
//! |---|---|
//! | [`sys`] | system calls and raw memory: the only unsafe code |
//! | [`block`] | the vocabulary and the `Device` trait |
//! | [`reactor`] | completions, timers, wake-ups, and the small executor for slow paths |
//! | [`copy`] | plan and run a copy |
//! | [`net`] | streams under both ends of NVMe/TCP |
//! | [`nvme`] | NVMe types and protocol machines, without I/O |
//! | [`nvmet`] | NVMe commands to requests: subsystems, namespaces, controllers |
//! | [`workers`] | threads that do I/O: reactor and range locks, inbox, start and end |
//! | [`exports`] | the ways out: sockets and threads around the target |
//! | [`drivers`] | devices: memory, null, regular file, block device, NVMe/TCP namespace |
//! | [`map`] | one device from several: linear, stripe, mirror |
//! | [`open`] | a name or URL becomes a device |
//! | `sim` | seeded world and test devices (feature `sim`) |
//!
//! The picture and the rules are in `docs/design.md`; what is promised, in `docs/semantics.md`.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation))] // a test may

pub mod block;
pub mod copy;
pub mod drivers;
pub mod exports;
pub mod map;
pub mod net;
pub mod nvme;
pub mod nvmet;
pub mod open;
pub mod reactor;
#[cfg(feature = "sim")]
pub mod sim;
#[allow(unsafe_code)]
pub mod sys;
pub mod workers;

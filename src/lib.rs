//! Copy offload for block storage, in user space.
//!
//! One call copies a file, a block device or an NVMe namespace, or ranges of them. The bytes go the shortest way both
//! ends share, such as a reflink or an NVMe Copy command, and the [receipt](block::receipt::Receipt) says which way
//! each of them went.
//!
//! ```
//! use blkcopy::copy::run::Verify;
//!
//! # let folder = std::env::temp_dir().join(format!("blkcopy-front-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let (golden, clone) = (folder.join("golden.img"), folder.join("clone.img"));
//! std::fs::write(&golden, vec![7; 1 << 20])?;
//!
//! let receipt = blkcopy::copy(&golden, &clone).verify(Verify::Digest).run()?;
//!
//! assert_eq!(receipt.good_bytes, 1 << 20);
//! for (method, bytes) in &receipt.methods {
//!     println!("{bytes} bytes by {}", method.name());
//! }
//! # assert_eq!(std::fs::read(&clone)?, std::fs::read(&golden)?);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`copy()`] is the way in; [`volume::CopyBuilder`] lists what can be asked for: holes, offload, rate, verification,
//! consent to overwrite. Another thread follows a copy with a [`volume::CopyWatch`] and ends it with a
//! [`volume::CancelHandle`]; what is found on the way is data, a [`volume::Finding`]. When there is no whole and good
//! copy, the [`volume::CopyError`] has the reason, and the receipt of what was done.
//!
//! # The rooms
//!
//! A device comes in through [`drivers`], may be reshaped in [`map`], and is reached through a [`block::Queue`].
//! One value walks the whole way: a [`block::Request`] goes down, its [`block::Completion`] comes back up, exactly
//! once. Copy is an operation like read and write.
//!
//! | room | what it is for |
//! |---|---|
//! | [`volume`] | names to devices, opened safely; files made, cut and extended; the one call that copies |
//! | [`exports`] | the ways out: sockets around the target, the mount |
//! | [`nvmet`] | NVMe commands to requests: subsystems, namespaces, controllers |
//! | [`map`] | one device from several: linear, stripe, mirror |
//! | [`workers`] | threads that do I/O: reactor and range locks, inbox, start and end |
//! | [`drivers`] | devices: memory, null, regular file, block device, NVMe/TCP namespace |
//! | [`copy`](mod@copy) | plan and run a copy |
//! | [`net`] | streams under both ends of NVMe/TCP |
//! | [`nvme`] | NVMe types and protocol machines, without I/O |
//! | [`reactor`] | completions, timers, wake-ups, and the small executor for slow paths |
//! | [`block`] | the vocabulary and the `Device` trait |
//! | [`sys`] | system calls and raw memory: the only unsafe code |
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
pub mod reactor;
#[cfg(feature = "sim")]
pub mod sim;
#[allow(unsafe_code)]
pub mod sys;
pub mod volume;
pub mod workers;

pub use volume::copying::copy;

//! Range locks: every copy is one whole against reads, writes, discards and other copies of the process.
//!
//! A thread that does I/O attaches to a [`LockDomain`] and keeps its own table ([`CoreLocks`]). Reads and writes look
//! at that table only and never exclude each other. A copy takes its place in the domain's queue, is announced to every
//! core, and is granted when conflicting earlier copies have ended and every core has drained what overlaps.
//!
//! ```
//! use blkcopy::block::lock::{Begun, Claim, LockDomain};
//! use blkcopy::block::{ByteRange, LeafId};
//!
//! let core = LockDomain::new().attach(|| ()).expect("the first core of the domain");
//! let (leaf, block) = (LeafId::fresh(), |n: u64| ByteRange::between(n * 4096, (n + 1) * 4096));
//!
//! let copy = core.begin_copy([Claim::shared(leaf, block(0)), Claim::exclusive(leaf, block(1))].into_iter().collect());
//! assert!(copy.is_granted());
//! let Begun::Held(read) = core.begin_io(&[Claim::shared(leaf, block(0))]) else { panic!("the source can be read") };
//! let Begun::Waiting(_) = core.begin_io(&[Claim::exclusive(leaf, block(0))]) else { panic!("but not written") };
//! core.end_copy(copy);
//! let mut released = Vec::new();
//! core.take_released(&mut released); // the write holds its claim now
//! core.end_io(released.remove(0).ticket);
//! core.end_io(read);
//! ```
//!
//! Why it works, and what it costs: `docs/notes/001-range-locks.md`.

mod claims;
mod core;
mod domain;
#[cfg(all(test, not(loom)))]
mod model;
mod queue;
#[cfg(all(test, not(loom)))]
mod queue_tests;
mod settle;
#[cfg(all(test, not(loom)))]
mod settle_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use self::core::{Begun, CoreLocks, IoTicket, LockCounters, Released, WaitId};
pub use claims::{Claim, Claims, Mode};
pub use domain::{CORES_MAX, CopyTicket, LockDomain};
pub use queue::{LockedQueue, claims_of};

//! Threads that do I/O: what each needs of its own, how it gets work, how it starts and how it ends.
//!
//! A [`Workbench`] is what a thread works with: reactor, executor and range locks. Others send it messages through an
//! [`Inbox`]. A [`Crew`] is the threads of one service; its [`Ending`] says whether the service ended by itself, and
//! why.

mod bench;
mod crew;
mod ending;
mod inbox;

pub use bench::{GuestBench, Workbench};
pub use crew::{Crew, PanicGuard, Started, panicked};
pub use ending::Ending;
pub use inbox::Inbox;

//! Plan and run a copy.
//!
//! A [`Job`] is what the user asks for: segments from one device to another. [`plan::Planner`] cuts it into [`Step`]s
//! by what both devices say; [`run`] carries the steps out and writes the receipt; `verify` reads both ends back,
//! `back` past the system's cache where there is a way past it.

pub(crate) mod back;
mod emulate;
pub mod facts;
pub mod job;
mod lasting;
mod moved;
mod offload;
pub mod one_request;
mod options;
mod pins;
pub mod plan;
mod pulse;
pub mod ranges;
pub mod run;
mod settle;
mod shared;
mod step;
mod tally;
mod verify;
pub(crate) mod wait;
mod zero;

pub use facts::DeviceFacts;
pub use job::{Job, Segment};
pub use plan::{Offload, PlanSummary, Planner, Policy, Sparse, Step};
pub use pulse::Pulse;

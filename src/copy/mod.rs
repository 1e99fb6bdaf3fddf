//! Plan and run a copy.
//!
//! A [`Job`] is what the user asks for: segments from one device to another. [`plan::Planner`] cuts it into [`Step`]s by
//! what both devices say; [`run`] carries the steps out and writes the receipt; `verify` reads both ends back.

mod emulate;
pub mod facts;
pub mod job;
mod lasting;
pub mod native;
pub mod plan;
mod pulse;
pub mod run;
mod shared;
mod verify;
pub mod whole;
mod zero;

pub use facts::DeviceFacts;
pub use job::{Job, Segment};
pub use plan::{Offload, PlanSummary, Planner, Policy, Sparse, Step};
pub use pulse::Pulse;

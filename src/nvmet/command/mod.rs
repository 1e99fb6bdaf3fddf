//! Commands: one file for each family. A handler gets what it may use and the command, and returns what comes of it;
//! the worker does that.

pub(super) mod admin;
pub(super) mod checked_copy;
mod context;
pub(super) mod copy;
pub(super) mod fabrics;
mod features;
mod identify;
pub(super) mod io;
mod log;
mod outcome;

pub(super) use context::{Context, clock};
pub(super) use outcome::Outcome;

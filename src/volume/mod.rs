//! Names become devices, opened safely; and the one call that does all that `blkcopy cp` does.
//!
//! [`name`] takes a name apart, [`open`](mod@open) opens what it names, [`ends`] checks two ends against each other and
//! makes, cuts or extends a destination file; what is found out on the way is data ([`findings`]). [`copying`] has the
//! front door ([`crate::copy()`]), [`watch`] how other threads follow and cancel a copy. [`explain`]
//! compares two ends, whoever copied them.

mod aliases;
pub mod copying;
#[cfg(test)]
mod copying_tests;
pub mod ends;
pub mod explain;
mod file_dest;
pub mod findings;
pub mod name;
pub mod open;
mod preserve;
mod served;
pub mod size;
mod spool;
pub mod trial;
pub mod watch;
mod watched;
mod zero_word;

pub use copying::{CopyBuilder, CopyError, ReadyCopy};
pub use ends::{Ends, EndsOptions, Purpose, Rehearsal, look};
pub use explain::Explain;
pub use file_dest::hold_dest;
pub use findings::{Finding, Left, Level, Obstacle, SharedStorage};
pub use name::{Name, Part, Place};
pub use open::{Found, find, model_of, open_dest, open_source, read_only, storage_of_folder};
pub use served::{ServeOptions, Served, ServedName};
pub use size::{parse_size, size, size_exact};
pub use trial::{Trial, TrialResult, Trials, try_beside};
pub use watch::{CancelHandle, CopyWatch, HowFar};

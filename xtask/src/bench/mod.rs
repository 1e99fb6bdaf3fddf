//! `cargo xtask bench`: measurements beside other programs, methods in turn within one run.

mod copy;
mod flags;
mod mount;
mod mounted;
mod programs;
mod stats;
mod table;
mod target;

use crate::tool::Done;
use clap::Subcommand;

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// `blkcopy cp` beside cp, dd, qemu-img and nbdcopy.
    Copy(copy::Flags),
    /// The NVMe/TCP target and host driver over loopback, one core each side.
    #[command(mut_arg("seconds", |seconds| seconds.default_value("2")))]
    Target(flags::Timed),
    /// The mount beside an empty and a minimal FUSE server, and nbdfuse.
    Mount(flags::Timed),
}

impl Bench {
    /// Runs the rows that are wanted.
    pub(crate) fn run(self) -> Done {
        match self {
            Self::Copy(flags) => copy::copy(&flags),
            Self::Target(flags) => target::target(&flags),
            Self::Mount(flags) => mount::mount(&flags),
        }
    }
}

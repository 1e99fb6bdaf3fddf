//! How a mount runs, and what it shows.

use crate::block::places::share_bytes;
use crate::block::{Device, Error, Kind, Result};
use crate::reactor::EngineChoice;
use std::sync::Arc;
use std::thread;

/// Most threads that read requests.
pub const READERS_MAX: usize = 16;
/// Most threads that make copies.
pub const WORKERS_MAX: usize = 8;

/// One volume to show.
pub struct Volume {
    /// Its file's name.
    pub name: String,
    /// What it shows.
    pub device: Arc<dyn Device>,
    /// Refuse every write.
    pub read_only: bool,
    /// Who serves its reads and writes.
    pub serve: Serve,
}

/// Who serves reads and writes of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Serve {
    /// The device answers at once (memory): the thread that reads the request serves it.
    AtOnce,
    /// It may block (files, disks): the thread that reads the request, while another reader is free.
    MayBlock,
    /// It waits for others (networks), and its queues are few: always one worker.
    Elsewhere,
}

/// How a mount runs.
#[derive(Clone)]
pub struct MountOptions {
    /// Threads that read requests: 2 to [`READERS_MAX`].
    pub readers: usize,
    /// Threads that make copies: 1 to [`WORKERS_MAX`].
    pub workers: usize,
    /// Through the page cache. Else each read and write comes here.
    pub cache: bool,
    /// Others than this process use the devices: what the kernel knows of files is asked for each time.
    pub shared: bool,
    /// Who has the files, and sees the mount beside this process: (user, group). `None`: this user alone.
    pub owner: Option<(u32, u32)>,
    /// `st_blocks` of a volume tells the storage it takes, not its size.
    pub show_allocated: bool,
    /// Engine for files and block devices.
    pub engine: EngineChoice,
    /// Volumes are as long as they are made, up to their capacity, and empty at first: for testing tools that need
    /// that.
    #[cfg(feature = "sim")]
    pub resizable: bool,
    /// The kernel keeps writes back: for tests.
    #[cfg(feature = "sim")]
    pub writeback: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            readers: cores.clamp(2, READERS_MAX),
            workers: cores.clamp(1, WORKERS_MAX),
            cache: false,
            shared: false,
            owner: None,
            show_allocated: false,
            engine: EngineChoice::Auto,
            #[cfg(feature = "sim")]
            resizable: false,
            #[cfg(feature = "sim")]
            writeback: false,
        }
    }
}

impl MountOptions {
    pub(super) fn is_resizable(&self) -> bool {
        #[cfg(feature = "sim")]
        return self.resizable;
        #[cfg(not(feature = "sim"))]
        false
    }

    pub(super) fn is_writeback(&self) -> bool {
        #[cfg(feature = "sim")]
        return self.writeback;
        #[cfg(not(feature = "sim"))]
        false
    }
}

/// Checks volumes and options against each other.
pub(super) fn check(volumes: &[Volume], options: &MountOptions) -> Result<()> {
    let invalid = |text: String| Err(Error::new(Kind::InvalidInput, text));
    if !(2..=READERS_MAX).contains(&options.readers) {
        return invalid(format!("{} reading threads: a mount needs 2 to {READERS_MAX}", options.readers));
    }
    if !(1..=WORKERS_MAX).contains(&options.workers) {
        return invalid(format!("{} copying threads: a mount needs 1 to {WORKERS_MAX}", options.workers));
    }
    for (at, volume) in volumes.iter().enumerate() {
        let name = &volume.name;
        if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) || name == "." || name == ".." {
            return invalid(format!("{name:?} cannot be the name of a file; give another one: NAME=DEV"));
        }
        for other in &volumes[..at] {
            if other.name == *name {
                return invalid(format!(
                    "two volumes are called {name}; give one of them another name: NAME=DEV"
                ));
            }
            // Each volume has a list of its own of what reads as zero, so no byte may be shown twice.
            if let Some(why) = share_bytes(&volume.device, &other.device)?.reason() {
                let text = format!("{name} and {} show the same bytes ({why}); leave one out", other.name);
                return Err(Error::new(Kind::InUse, text).on(volume.device.name()));
            }
        }
    }
    Ok(())
}

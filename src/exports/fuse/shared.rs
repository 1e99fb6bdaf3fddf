//! What the threads of a mount share.

use super::job::JobInbox;
use super::notify::Notices;
use super::options::MountOptions;
use super::refresh::Cut;
use super::volume::{Files, Vol};
use crate::reactor::local::Interrupt;
use crate::workers::Ending;
use fuser::{Generation, INodeNo};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Time for which the kernel may keep the attributes of a file.
pub(super) const TTL: Duration = Duration::from_secs(1);
/// Not at all.
pub(super) const TTL_NONE: Duration = Duration::ZERO;
/// What the threads serve, as messages name it.
pub(super) const SERVICE: &str = "mount";
/// The worker of reads, writes and flushes.
pub(super) const IO_WORKER: usize = 0;

/// What the threads of a mount share.
pub(super) struct MountShared {
    pub(super) dir: PathBuf,
    pub(super) volumes: Vec<Vol>,
    pub(super) options: MountOptions,
    pub(super) files: Files,
    /// Readers that wait for a request.
    pub(super) free: AtomicUsize,
    /// The first is the I/O worker's, the others are those of the copiers.
    pub(super) jobs: Vec<JobInbox>,
    pub(super) notices: Notices,
    pub(super) stop: Interrupt,
    /// The kernel has asked for a copy.
    pub(super) copy_asked: AtomicBool,
    pub(super) begun: SystemTime,
    /// Of all inodes: another mount gives their numbers to other volumes, and an old file handle must not lead there.
    pub(super) generation: Generation,
    pub(super) ending: Ending,
    /// Where files that were cut are left; none when the mount ends.
    pub(super) refresh: Mutex<Option<Sender<Cut>>>,
}

/// The inode of a volume.
pub(super) fn ino_of(volume: usize) -> INodeNo {
    INodeNo(volume as u64 + 2)
}

impl MountShared {
    pub(super) fn io(&self) -> &JobInbox {
        &self.jobs[IO_WORKER]
    }

    /// The copier with least to do.
    pub(super) fn copier(&self) -> &JobInbox {
        self.jobs[1..].iter().min_by_key(|jobs| jobs.load()).expect("there is at least one worker")
    }

    pub(super) fn ttl(&self) -> Duration {
        if self.options.shared { TTL_NONE } else { TTL }
    }

    /// Has the kernel take the size of a file that was cut anew, soon.
    pub(super) fn refresh(&self, vol: &Vol) {
        if let Some(refresh) = &*self.refresher() {
            // It ends with the mount only.
            let _ = refresh.send(Cut { name: vol.name.to_string(), mode: vol.mode() });
        }
    }

    pub(super) fn refresher(&self) -> MutexGuard<'_, Option<Sender<Cut>>> {
        // An assignment cannot leave it half changed.
        self.refresh.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

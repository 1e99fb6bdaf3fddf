//! Notifications to the kernel, on a thread of their own.
//!
//! An invalidation waits until the dirty pages it finds were written, which are requests to this very server. So whoever serves
//! requests never sends one, and nobody holds a lock while waiting for one: `docs/notes/006-mount.md`.

use crate::block::ByteRange;
use crate::reactor::local::Interrupt;
use fuser::{INodeNo, Notifier};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// What the kernel is to be told, or asked.
enum Notice {
    /// Forget these pages of these files; then `done`.
    Forget { pages: Vec<(INodeNo, ByteRange)>, done: Interrupt },
    /// Have the kernel take the attributes of this file, which can be written, anew.
    Refresh { path: PathBuf, mode: u16 },
}

#[derive(Default)]
struct Line {
    notices: Vec<Notice>,
    /// What others have changed since the last look, by file: one range around all of it.
    changed: BTreeMap<u64, ByteRange>,
    ends: bool,
}

/// Where notices are left. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Notices(Arc<(Mutex<Line>, Condvar)>);

impl Notices {
    fn line(&self) -> MutexGuard<'_, Line> {
        // A push cannot leave the line half changed.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, notice: Notice) {
        self.line().notices.push(notice);
        self.0.1.notify_one();
    }

    /// Has the kernel write back and forget pages; made when that is done.
    pub(super) fn forget(&self, pages: Vec<(INodeNo, ByteRange)>) -> Interrupt {
        let done = Interrupt::default();
        self.leave(Notice::Forget { pages, done: done.clone() });
        done
    }

    /// Has the kernel take a writable file's attributes anew, soon.
    pub(super) fn refresh(&self, path: PathBuf, mode: u16) {
        self.leave(Notice::Refresh { path, mode });
    }

    /// Somebody else has changed a range: pages of it are to be forgotten, soon.
    pub(super) fn changed(&self, ino: INodeNo, range: ByteRange) {
        let mut line = self.line();
        let all = line.changed.entry(ino.0).or_insert(range);
        *all = ByteRange::between(all.offset().min(range.offset()), all.end().max(range.end()));
        drop(line);
        self.0.1.notify_one();
    }

    /// Serves no more once what is left has been served.
    pub(super) fn end(&self) {
        self.line().ends = true;
        self.0.1.notify_one();
    }

    /// Starts the thread.
    pub(super) fn serve(&self, notifier: Notifier) -> std::io::Result<JoinHandle<()>> {
        let this = self.clone();
        thread::Builder::new().name("blkcopy-notify".into()).spawn(move || this.run(&notifier))
    }

    fn run(&self, notifier: &Notifier) {
        loop {
            let mut line = self.line();
            while line.notices.is_empty() && line.changed.is_empty() && !line.ends {
                line = self.0.1.wait(line).unwrap_or_else(PoisonError::into_inner);
            }
            let (notices, changed) = (std::mem::take(&mut line.notices), std::mem::take(&mut line.changed));
            if notices.is_empty() && changed.is_empty() {
                return;
            }
            drop(line);
            for (ino, range) in changed {
                forget(notifier, INodeNo(ino), range);
            }
            for notice in notices {
                match notice {
                    Notice::Forget { pages, done } => {
                        pages.into_iter().for_each(|(ino, range)| forget(notifier, ino, range));
                        done.set();
                    }
                    Notice::Refresh { path, mode } => refresh(&path, mode),
                }
            }
        }
    }
}

fn forget(notifier: &Notifier, ino: INodeNo, range: ByteRange) {
    // Ranges end below 2^63. A length of 0 would mean all of the file.
    let (offset, len) = (range.offset().cast_signed(), range.len().max(1).cast_signed());
    if let Err(error) = notifier.inval_inode(ino, offset, len) {
        // The mount is gone, and its pages with it.
        tracing::debug!(%error, ino = ino.0, "an invalidation was not taken");
    }
}

/// Sets the mode to what it is: the answer holds the size, and the kernel takes it.
///
/// Asking for attributes would not do. The kernel keeps no size it hears of while a truncation of the file is under way, and
/// that is over only some time after we have answered it; a change of mode waits for it.
fn refresh(path: &Path, mode: u16) {
    use rustix::fs::{AtFlags, CWD, Mode};
    let mode = Mode::from_raw_mode(mode.into());
    if let Err(error) = rustix::fs::chmodat(CWD, path, mode, AtFlags::empty()) {
        tracing::debug!(%error, path = %path.display(), "attributes could not be asked for again");
    }
}

//! Notifications to the kernel, on a thread of their own.
//!
//! An invalidation waits until the dirty pages it finds were written, which are requests to this very server. So a
//! thread that serves requests never sends one, and none holds a lock while waiting for one: `docs/notes/006-mount.md`.

use crate::block::ByteRange;
use crate::reactor::local::Interrupt;
use crate::sys::sync::{held, lock};
use fuser::{INodeNo, Notifier};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

/// Pages of files that the kernel is to write back and forget, and who waits for that.
struct Notice {
    pages: Vec<(INodeNo, ByteRange)>,
    done: Interrupt,
}

#[derive(Default)]
struct NoticeQueue {
    notices: Vec<Notice>,
    /// What others have changed since the last look, by file: one range around all of it.
    changed: BTreeMap<u64, ByteRange>,
    ends: bool,
}

/// Where notices are left. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Notices(Arc<(Mutex<NoticeQueue>, Condvar)>);

impl Notices {
    fn queue(&self) -> MutexGuard<'_, NoticeQueue> {
        // A push cannot leave the queue half changed.
        lock(&self.0.0)
    }

    /// Has the kernel write back and forget pages; set when that is done, or when the mount is gone.
    pub(super) fn forget(&self, pages: Vec<(INodeNo, ByteRange)>) -> Interrupt {
        let done = Interrupt::default();
        let mut queue = self.queue();
        if queue.ends {
            // The mount is gone, and its pages with it.
            done.set();
        } else {
            queue.notices.push(Notice { pages, done: done.clone() });
            self.0.1.notify_one();
        }
        done
    }

    /// Somebody else has changed a range: pages of it are to be forgotten, soon.
    pub(super) fn changed(&self, ino: INodeNo, range: ByteRange) {
        let mut queue = self.queue();
        let all = queue.changed.entry(ino.0).or_insert(range);
        *all = ByteRange::between(all.offset().min(range.offset()), all.end().max(range.end()));
        drop(queue);
        self.0.1.notify_one();
    }

    /// Serves no more once what is left has been served.
    pub(super) fn end(&self) {
        self.queue().ends = true;
        self.0.1.notify_one();
    }

    /// Starts the thread.
    pub(super) fn serve(&self, notifier: Notifier) -> std::io::Result<JoinHandle<()>> {
        let this = self.clone();
        thread::Builder::new().name("blkcopy-notify".into()).spawn(move || this.run(&notifier))
    }

    fn run(&self, notifier: &Notifier) {
        loop {
            let mut queue = self.queue();
            while queue.notices.is_empty() && queue.changed.is_empty() && !queue.ends {
                queue = held(self.0.1.wait(queue));
            }
            let (notices, changed) = (std::mem::take(&mut queue.notices), std::mem::take(&mut queue.changed));
            if notices.is_empty() && changed.is_empty() {
                return;
            }
            drop(queue);
            for (ino, range) in changed {
                forget(notifier, INodeNo(ino), range);
            }
            for Notice { pages, done } in notices {
                pages.into_iter().for_each(|(ino, range)| forget(notifier, ino, range));
                done.set();
            }
        }
    }
}

fn forget(notifier: &Notifier, ino: INodeNo, range: ByteRange) {
    // Ranges end below 2^63. A length of 0 would mean all of the file.
    let (offset, len) = (range.offset().cast_signed(), range.len().max(1).cast_signed());
    if let Err(error) = notifier.inval_inode(ino, offset, len) {
        // The mount is gone, and its pages with it.
        tracing::debug!(%error, ino = ino.0, "the kernel refused an invalidation");
    }
}

//! What lies between a queue and the thread of its controller: mail one way, a count of time.

use super::Why;
use super::admin::Facts;
use super::controller::lock;
use super::link::Link;
use crate::reactor::Waker;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// A queue, as the thread of its controller sees it.
pub(super) struct Wire {
    /// Changes with the association, where that grants fewer queues.
    qid: AtomicU16,
    pub(super) waker: Waker,
    /// There is something in `mail`.
    news: AtomicBool,
    pub(super) mail: Mutex<Mail>,
    /// Counts quarters of the command time-out.
    scans: AtomicU32,
}

/// What a queue has to know, since it last looked.
#[derive(Default)]
pub(super) struct Mail {
    /// Associations up to this one are lost: their connections are no use any more.
    pub(super) lost: u64,
    /// Associations up to this one execute nothing any more.
    pub(super) quiet: u64,
    /// A new connection.
    pub(super) fresh: Option<Fresh>,
    /// There will be no other.
    pub(super) dead: Option<Why>,
    /// The connection in use, to be shut down when the association is lost.
    pub(super) socket: Option<Arc<OwnedFd>>,
}

/// A connection for a queue, and the association it belongs to.
pub(super) struct Fresh {
    pub(super) link: Link,
    pub(super) facts: Arc<Facts>,
    pub(super) association: u64,
}

impl Wire {
    /// The wire of a queue whose thread's reactor `waker` wakes.
    pub(super) fn new(qid: u16, waker: Waker) -> Self {
        Self {
            qid: AtomicU16::new(qid),
            waker,
            news: AtomicBool::new(false),
            mail: Mutex::default(),
            scans: AtomicU32::new(0),
        }
    }

    /// Another id, on the next association.
    pub(super) fn set_qid(&self, qid: u16) {
        self.qid.store(qid, Ordering::Relaxed);
    }

    /// Another quarter of the command time-out has passed.
    pub(super) fn count_scan(&self) {
        self.scans.fetch_add(1, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Its id at the controller.
    pub(super) fn qid(&self) -> u16 {
        self.qid.load(Ordering::Relaxed)
    }

    /// Mail, when there is some: everything that is not the socket.
    pub(super) fn take_mail(&self) -> Option<Mail> {
        if !self.news.load(Ordering::Acquire) {
            return None;
        }
        self.news.store(false, Ordering::Relaxed);
        let mut mail = lock(&self.mail);
        let fresh = mail.fresh.take();
        Some(Mail { lost: mail.lost, quiet: mail.quiet, fresh, dead: mail.dead.clone(), socket: None })
    }

    /// Quarters of the command time-out so far.
    pub(super) fn scans(&self) -> u32 {
        self.scans.load(Ordering::Relaxed)
    }

    pub(super) fn post(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut lock(&self.mail));
        self.news.store(true, Ordering::Release);
        self.waker.wake();
    }
}

//! What lies between a queue and the thread of its controller: mail one way, a count of time; and what other queues on
//! the same connection found there for it.

use super::Why;
use super::admin::Facts;
use super::channel::{Channel, Ended};
use crate::reactor::Waker;
use crate::sys::sync::lock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// A queue, as the thread of its controller and its neighbours on a connection see it.
pub(super) struct Wire {
    /// A number of its own among the queues this process ever had.
    pub(super) number: u64,
    pub(super) waker: Waker,
    /// There is something in `mail` or `inbox`.
    news: AtomicBool,
    mail: Mutex<Mail>,
    inbox: Mutex<Vec<Ended>>,
    /// Counts quarters of the command time-out.
    scans: AtomicU32,
    /// When the queue wants to be woken.
    alarm: Mutex<Option<Instant>>,
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
    /// Why there is none for now; requests fail until there is.
    pub(super) away: Option<Why>,
    /// There will be no other.
    pub(super) dead: Option<Why>,
    /// The queue is gone.
    closed: bool,
}

/// A connection for a queue, and the association it belongs to.
pub(super) struct Fresh {
    pub(super) channel: Arc<Channel>,
    pub(super) facts: Arc<Facts>,
    pub(super) association: u64,
}

impl Wire {
    /// The wire of a queue whose thread's reactor `waker` wakes.
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            waker,
            news: AtomicBool::new(false),
            mail: Mutex::default(),
            inbox: Mutex::default(),
            scans: AtomicU32::new(0),
            alarm: Mutex::new(None),
        }
    }

    /// Another quarter of the command time-out has passed.
    pub(super) fn count_scan(&self) {
        self.scans.fetch_add(1, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Mail, when there is some: everything that is not the socket. What neighbours found goes to `ended`.
    pub(super) fn take_mail(&self, ended: &mut Vec<Ended>) -> Option<Mail> {
        if !self.news.load(Ordering::Acquire) {
            return None;
        }
        self.news.store(false, Ordering::Relaxed);
        ended.append(&mut lock(&self.inbox));
        let mut mail = lock(&self.mail);
        let fresh = mail.fresh.take();
        let (away, dead) = (mail.away.clone(), mail.dead.clone());
        Some(Mail { lost: mail.lost, quiet: mail.quiet, fresh, away, dead, closed: false })
    }

    /// What neighbours found.
    pub(super) fn take_inbox(&self, ended: &mut Vec<Ended>) {
        ended.append(&mut lock(&self.inbox));
    }

    /// Quarters of the command time-out so far.
    pub(super) fn scans(&self) -> u32 {
        self.scans.load(Ordering::Relaxed)
    }

    pub(super) fn post(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut lock(&self.mail));
        self.hear();
    }

    /// Hands over the first connection, or says why there is none yet. `Err`, with the connection: the queue is gone.
    pub(super) fn open_with(&self, opened: Result<Fresh, Why>) -> Result<(), Option<Fresh>> {
        let mut mail = lock(&self.mail);
        if mail.closed {
            return Err(opened.ok());
        }
        match opened {
            // Lost meanwhile: the controller's thread makes the next.
            Ok(fresh) if fresh.association <= mail.lost || mail.fresh.is_some() => {}
            Ok(fresh) => (mail.fresh, mail.away) = (Some(fresh), None),
            Err(why) => mail.away = Some(why),
        }
        drop(mail);
        self.hear();
        Ok(())
    }

    /// The queue goes; a connection that it has not taken up yet.
    pub(super) fn close(&self) -> Option<Fresh> {
        let mut mail = lock(&self.mail);
        mail.closed = true;
        mail.fresh.take()
    }

    /// Has it look at its mail and its connection.
    pub(super) fn hear(&self) {
        self.news.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// True once no more connections come.
    pub(super) fn is_dead(&self) -> bool {
        lock(&self.mail).dead.is_some()
    }

    /// The end of a command of its.
    pub(super) fn deliver(&self, ended: Ended) {
        lock(&self.inbox).push(ended);
        self.hear();
    }

    /// When it wants to be woken, at the earliest of what was asked for.
    pub(super) fn set_alarm(&self, at: Instant) {
        let mut alarm = lock(&self.alarm);
        *alarm = Some(alarm.map_or(at, |before| before.min(at)));
    }

    /// Wakes it when it is time; else when that will be.
    pub(super) fn ring_alarm(&self, now: Instant) -> Option<Instant> {
        let mut alarm = lock(&self.alarm);
        let due = alarm.take_if(|at| *at <= now);
        if due.is_some() {
            self.hear();
        }
        *alarm
    }
}

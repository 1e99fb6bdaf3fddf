//! Messages to one thread, which they wake.

use crate::reactor::Waker;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Where other threads leave messages for one thread.
pub struct Inbox<T> {
    messages: Mutex<Messages<T>>,
    waker: OnceLock<Waker>,
}

struct Messages<T> {
    queue: VecDeque<T>,
    is_closed: bool,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        let messages = Messages { queue: VecDeque::new(), is_closed: false };
        Self { messages: Mutex::new(messages), waker: OnceLock::new() }
    }
}

impl<T> Inbox<T> {
    fn messages(&self) -> MutexGuard<'_, Messages<T>> {
        // A push or a removal cannot leave the queue half changed.
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on messages wake their reader. Those sent before wait for its first `take`.
    ///
    /// # Panics
    /// When the inbox has a reader already.
    pub fn open(&self, waker: Waker) {
        assert!(self.waker.set(waker).is_ok(), "an inbox has one reader");
    }

    /// Leaves a message. False when the inbox is closed: the message was dropped.
    pub fn send(&self, message: T) -> bool {
        let mut messages = self.messages();
        if messages.is_closed {
            drop(messages);
            return false;
        }
        messages.queue.push_back(message);
        drop(messages);
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
        true
    }

    /// Takes the first message that `fits`; those it does not fit stay in order.
    pub fn take(&self, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut messages = self.messages();
        let at = messages.queue.iter().position(fits)?;
        messages.queue.remove(at)
    }

    /// Drops the messages that are left, and all that come later.
    pub fn close(&self) {
        let mut messages = self.messages();
        messages.is_closed = true;
        let left = std::mem::take(&mut messages.queue);
        // Not under the lock: what a message drops may send another.
        drop(messages);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn messages_come_in_order_wake_the_reader_and_end_with_the_inbox() {
        let (inbox, woken) = (Inbox::default(), Arc::new(AtomicUsize::new(0)));
        assert!(inbox.send(1), "before the reader has come");
        let count = woken.clone();
        inbox.open(Waker::new(move || {
            let _ = count.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(inbox.send(2) && inbox.send(3));
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        assert_eq!(inbox.take(|n| n % 2 == 0), Some(2), "past one that does not fit");
        assert_eq!((inbox.take(|_| true), inbox.take(|n| *n > 3)), (Some(1), None));
        inbox.close();
        assert_eq!(inbox.take(|_| true), None, "what was left is dropped");
        assert!(!inbox.send(4));
        assert_eq!(inbox.take(|_| true), None);
    }
}

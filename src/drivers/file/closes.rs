//! What the closes of a written file answer: some file systems say only there that what was written is lost.

use crate::block::{Error, Result};
use crate::sys::sync::{held, lock};
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// The closes of one opening of a file, in whichever thread they are made.
#[derive(Debug, Default)]
pub struct Closes {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Descriptors that are on their way to their close.
    under_way: usize,
    /// The first failure.
    failed: Option<io::Error>,
}

impl Closes {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes down what a close answered.
    pub(super) fn note(&self, answer: io::Result<()>) {
        if let Err(error) = answer {
            self.state().failed.get_or_insert(error);
        }
    }

    /// Waits for the closes that are under way.
    ///
    /// Errors: one failed, now or earlier; nothing written through the opening is known to be good then.
    pub fn check(&self, name: &str) -> Result<()> {
        let mut state = self.state();
        while state.under_way > 0 {
            state = held(self.ended.wait(state));
        }
        let Some(error) = &state.failed else { return Ok(()) };
        // The kernel tells it once; whoever asks later is told the same.
        let error = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
        Err(Error::os("what was written may be lost: closing the file failed", error).on(name))
    }
}

/// A descriptor whose close is looked at.
pub(crate) struct Closing {
    /// `None` only while it is dropped.
    fd: Option<Arc<OwnedFd>>,
    closes: Arc<Closes>,
}

impl Closing {
    pub(super) fn new(fd: OwnedFd, closes: &Arc<Closes>) -> Self {
        Self { fd: Some(Arc::new(fd)), closes: closes.clone() }
    }

    /// To be dropped soon, perhaps by another thread: [`Closes::check`] waits for it from now on.
    pub(super) fn part(self) -> Parting {
        self.closes.state().under_way += 1;
        Parting(Some(self))
    }
}

impl Deref for Closing {
    type Target = Arc<OwnedFd>;

    fn deref(&self) -> &Arc<OwnedFd> {
        self.fd.as_ref().expect("it is taken out by drop alone")
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        // Where a request that was left in flight holds it too, that closes it, and nobody waits for the answer.
        if let Some(fd) = self.fd.take().and_then(Arc::into_inner) {
            self.closes.note(crate::sys::close::close(fd));
        }
    }
}

/// A descriptor on its way to its close.
pub(super) struct Parting(Option<Closing>);

impl Drop for Parting {
    fn drop(&mut self) {
        let Some(closing) = self.0.take() else { return };
        let closes = closing.closes.clone();
        drop(closing);
        closes.state().under_way -= 1;
        closes.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A descriptor whose close fails cannot be made at will: the failure is noted as a close would.
    #[test]
    fn a_failed_close_is_told_to_each_who_asks() {
        let closes = Arc::new(Closes::default());
        closes.check("a").unwrap();
        closes.note(Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        closes.note(Ok(()));
        for _ in 0..2 {
            let error = closes.check("a").unwrap_err();
            assert!(error.to_string().contains("closing the file failed"), "{error}");
        }
    }

    #[test]
    fn who_asks_waits_for_what_is_on_its_way() {
        let closes = Arc::new(Closes::default());
        let closing = Closing::new(tempfile::tempfile().unwrap().into(), &closes);
        let parting = closing.part();
        let other = closes.clone();
        let waits = std::thread::spawn(move || other.check("a").is_ok());
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waits.is_finished());
        drop(parting);
        assert!(waits.join().unwrap());
    }
}

//! Operations carried out by the calling thread, and what a reactor waits for where there is no ring.

use super::ports::Ports;
use super::{CallDone, IoDone, IoOp, Port, Waker, one};
use crate::block::{Buf, Call, Counters};
use crate::sys::sync::lock;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{fdatasync, fsync};
use rustix::io::{Errno, ReadWriteFlags};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Carries an operation out on the calling thread.
pub(super) fn run(token: u64, op: IoOp) -> IoDone {
    match op {
        IoOp::Read { file, offset, mut buf, .. } => {
            let read = again(|| rustix::io::pread(&file, &mut buf[..], offset));
            done(token, read, buf, one(Call::Pread64))
        }
        IoOp::Write { file, offset, buf, dsync, .. } => write(token, &file, offset, buf, dsync),
        IoOp::Sync { file, data_only: true } => {
            done(token, again(|| fdatasync(&file)).map(|()| 0), Buf::default(), one(Call::Fdatasync))
        }
        IoOp::Sync { file, data_only: false } => {
            done(token, again(|| fsync(&file)).map(|()| 0), Buf::default(), one(Call::Fsync))
        }
        IoOp::Call(call) | IoOp::Brief(call) => {
            let CallDone { count, error, counters } =
                catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| CallDone {
                    // The panic has been printed by its hook; the operation still ends, once, with an error.
                    error: Some(io::Error::other("the call panicked; please report this as a bug")),
                    ..CallDone::default()
                });
            IoDone { token, count, error, buf: Buf::default(), counters }
        }
        // Early is allowed, and engines that wait for it never come here.
        IoOp::Ready { .. } => done(token, Ok(0), Buf::default(), Counters::default()),
    }
}

/// Writes on the calling thread.
pub(super) fn write(token: u64, file: &OwnedFd, offset: u64, buf: Buf, dsync: bool) -> IoDone {
    let (written, call) = if dsync {
        let pieces = [IoSlice::new(&buf)];
        (again(|| rustix::io::pwritev2(file, &pieces, offset, ReadWriteFlags::DSYNC)), Call::Pwritev2)
    } else {
        (again(|| rustix::io::pwrite(file, &buf, offset)), Call::Pwrite64)
    };
    done(token, written, buf, one(call))
}

/// Reads from the page cache, if the bytes are there: `Ok` with at least one byte, else the buffer back.
///
/// The answer 0 is not believed (a miss must never look like the end of the file); whoever reads for real will say it.
pub(super) fn read_cached(token: u64, file: &OwnedFd, offset: u64, mut buf: Buf) -> Result<IoDone, Buf> {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut buf)], offset, ReadWriteFlags::NOWAIT) {
        Ok(n) if n > 0 => Ok(done(token, Ok(n), buf, one(Call::Preadv2))),
        _ => Err(buf),
    }
}

/// Ends `op` at once when its offset cannot be one of a file: the kernel takes all ones for "where the file stands".
pub(super) fn refuse(token: u64, op: &mut IoOp) -> Option<IoDone> {
    let (IoOp::Read { offset, buf, .. } | IoOp::Write { offset, buf, .. }) = op else { return None };
    if i64::try_from(*offset).is_ok() {
        return None;
    }
    Some(done(token, Err(Errno::INVAL), std::mem::take(buf), Counters::default()))
}

fn again<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn done(token: u64, result: rustix::io::Result<usize>, buf: Buf, counters: Counters) -> IoDone {
    let (count, error) = match result {
        Ok(n) => (n as u64, None),
        Err(e) => (0, Some(e.into())),
    };
    IoDone { token, count, error, buf, counters }
}

/// Sockets that are waited for by `poll`, where there is no ring to do it.
#[derive(Default)]
pub(super) struct Watches(Vec<(Port, u64, Arc<OwnedFd>, bool)>);

impl Watches {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, port: Port, token: u64, file: Arc<OwnedFd>, write: bool) {
        self.0.push((port, token, file, write));
    }

    /// Waits until `home` rings, a socket is ready, a signal comes or `timeout` has passed; what is ready has
    /// completed.
    pub(super) fn wait(&mut self, home: &Home, timeout: Option<Duration>, ports: &mut Ports) {
        let limit = timeout.and_then(|t| Timespec::try_from(t).ok());
        let mut fds = vec![PollFd::new(&*home.event, PollFlags::IN)];
        fds.extend(self.0.iter().map(|(_, _, file, write)| {
            PollFd::new(&**file, if *write { PollFlags::OUT } else { PollFlags::IN })
        }));
        if !poll(&mut fds, limit.as_ref()).is_ok_and(|n| n > 0) {
            return;
        }
        let ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        for (port, token, ..) in self.0.extract_if(.., |_| ready.next() == Some(true)) {
            ports.finish(port, done(token, Ok(0), Buf::default(), Counters::default()));
        }
    }
}

/// Where helper threads bring what they finished, and what ends a wait. One per reactor.
pub(super) struct Home {
    finished: Mutex<Vec<(Port, IoDone)>>,
    /// Somebody used the waker since the last wait ended.
    woken: AtomicBool,
    event: Arc<OwnedFd>,
}

impl Home {
    /// Errors: those of `eventfd`.
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Arc::new(Self { finished: Mutex::default(), woken: AtomicBool::new(false), event }))
    }

    /// Readable when a helper has finished something or the waker was used.
    pub(super) fn event(&self) -> &Arc<OwnedFd> {
        &self.event
    }

    pub(super) fn deliver(&self, port: Port, done: IoDone) {
        let mut finished = lock(&self.finished);
        finished.push((port, done));
        let first = finished.len() == 1;
        drop(finished);
        if first {
            self.ring_bell();
        }
    }

    /// Takes what helpers have finished.
    pub(super) fn take(&self) -> Vec<(Port, IoDone)> {
        std::mem::take(&mut *lock(&self.finished))
    }

    pub(super) fn waker(self: &Arc<Self>) -> Waker {
        let home = self.clone();
        Waker::new(move || {
            if !home.woken.swap(true, Ordering::SeqCst) {
                home.ring_bell();
            }
        })
    }

    /// True once per use of the waker.
    pub(super) fn take_woken(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }

    /// Makes the event unreadable again. What rang it must be looked at after this, not before.
    pub(super) fn silence(&self) {
        let _ = rustix::io::read(&*self.event, &mut [0u8; 8]); // EAGAIN: it was silent
    }

    fn ring_bell(&self) {
        let _ = rustix::io::write(&*self.event, &1u64.to_ne_bytes()); // EAGAIN: 2^64 rings unheard, still readable
    }
}

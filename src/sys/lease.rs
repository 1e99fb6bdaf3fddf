//! Read leases on files: the kernel asks for one back when another program wants to write.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

/// `F_SETSIG` (asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;
/// `F_SETOWN_EX` (asm-generic/fcntl.h).
const F_SETOWN_EX: libc::c_int = 15;
/// `F_OWNER_TID` (asm-generic/fcntl.h).
const F_OWNER_TID: libc::c_int = 0;
/// How the kernel tells that a lease is asked for. Nothing happens to a process that does not wait for it (the usual
/// `SIGIO` would end it).
const TOLD_BY: libc::c_int = libc::SIGURG;
/// How long a signal is waited for before the lease is looked at without one.
const LOOK_EVERY: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 200_000_000 };

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `struct f_owner_ex` (asm-generic/fcntl.h).
#[repr(C)]
struct Owner {
    kind: libc::c_int,
    id: libc::pid_t,
}

fn set_lease(fd: &OwnedFd, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: fcntl with integer arguments only.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

/// True while the read lease is whole: not broken, not being broken.
fn is_whole(fd: &OwnedFd) -> bool {
    // SAFETY: fcntl with integer arguments only.
    unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
}

/// Whether another program has a file open for writing, or mapped so: found out by a lease that is given back at once,
/// so that it stops nobody.
///
/// `Ok(true)`: one has. Errors: it cannot be told, as for a file of another owner (`EACCES`).
pub fn is_open_for_writing(fd: &OwnedFd) -> io::Result<bool> {
    // SAFETY: fcntl with integer arguments only.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, TOLD_BY) })?;
    match set_lease(fd, libc::F_RDLCK) {
        Ok(()) => set_lease(fd, libc::F_UNLCK).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

/// A read lease on a file opened read-only, which a thread of its own gives back as soon as another program asks for
/// it by opening the file for writing or by truncating it. One that opens without waiting (`O_NONBLOCK`) is refused
/// once.
#[derive(Debug)]
pub struct ReadLease {
    fd: Arc<OwnedFd>,
    is_over: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl ReadLease {
    /// Takes it. `EAGAIN`: another program has the file open for writing. `EACCES`: it has another owner.
    pub fn take(fd: &Arc<OwnedFd>) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::channel();
        let (of_keeper, over) = (fd.clone(), is_over.clone());
        let keeper = std::thread::Builder::new().name("lease".into()).spawn(move || {
            let taken = take_here(&of_keeper);
            let is_taken = taken.is_ok();
            let _ = tell.send(taken);
            if is_taken {
                keep(&of_keeper, &over);
                let _ = set_lease(&of_keeper, libc::F_UNLCK);
            }
        })?;
        let taken = told.recv().unwrap_or_else(|_| {
            Err(io::Error::other("the thread that keeps the lease has ended; please report this as a bug"))
        });
        let lease = Self { fd: fd.clone(), is_over, keeper: Some(keeper) };
        taken.map(|()| lease)
    }

    /// True as long as no other program could write: false from the moment that one asks to.
    pub fn is_whole(&self) -> bool {
        !self.is_over.load(Ordering::Acquire) && is_whole(&self.fd)
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        if let Some(keeper) = self.keeper.take() {
            // SAFETY: the thread has not been joined, so its handle is valid; one that has ended is not signalled.
            unsafe { libc::pthread_kill(keeper.as_pthread_t(), TOLD_BY) };
            let _ = keeper.join();
        }
    }
}

/// The signal that tells, as a set.
fn told_by() -> libc::sigset_t {
    // SAFETY: `sigset_t` is plain integers; both calls write to a set that lives across them.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, TOLD_BY);
        set
    }
}

/// Takes the lease so that this thread is told.
fn take_here(fd: &OwnedFd) -> io::Result<()> {
    let set = told_by();
    // A signal that is blocked waits until it is taken, though it is ignored.
    // SAFETY: reads one set, which lives across the call; the old mask is not asked for.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: fcntl with integer arguments only.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, TOLD_BY) })?;
    // SAFETY: takes nothing.
    let owner = Owner { kind: F_OWNER_TID, id: unsafe { libc::gettid() } };
    // SAFETY: F_SETOWN_EX reads one struct f_owner_ex, which lives across the call.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const owner) })?;
    set_lease(fd, libc::F_RDLCK)
}

/// Returns when the lease is asked for, or is not wanted any more.
fn keep(fd: &OwnedFd, is_over: &AtomicBool) {
    let (set, time) = (told_by(), LOOK_EVERY);
    while !is_over.load(Ordering::Acquire) && is_whole(fd) {
        // SAFETY: reads a set and a time, which live across the call; what was told is not asked for.
        unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const time) };
    }
    is_over.store(true, Ordering::Release);
}

//! After a truncation: has the kernel take the size of the file anew.
//!
//! On a thread that no other waits for: it takes the file's inode lock, which a client may hold for as long as it
//! likes.

use super::attach::device_at;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// A file whose size changed, and its permission bits.
pub(super) struct Cut {
    pub(super) name: String,
    pub(super) mode: u16,
}

/// Starts the thread, for a mount at `dir` whose device number is `place`; it ends when the sender is dropped.
pub(super) fn serve(dir: PathBuf, place: (u32, u32)) -> std::io::Result<Sender<Cut>> {
    let (left, taken) = channel::<Cut>();
    let run = move || {
        for cut in taken {
            match refresh(&dir, place, &cut) {
                Ok(()) => {}
                Err(error) if device_at(&dir) != Some(place) => {
                    tracing::debug!(%error, file = cut.name, "the mount no longer exists");
                }
                Err(error) => {
                    tracing::warn!(%error, file = cut.name, "the size it was cut to is shown until its attributes are asked for again")
                }
            }
        }
    };
    thread::Builder::new().name("blkcopy-size".into()).spawn(run)?;
    Ok(left)
}

/// Sets the mode to what it is: the answer holds the size, and the kernel takes it.
///
/// Asking for attributes would not do. The kernel ignores a size that it gets while a truncation of the file is under
/// way, and that is over only some time after we have answered it; a change of mode waits for it.
fn refresh(dir: &PathBuf, place: (u32, u32), cut: &Cut) -> rustix::io::Result<()> {
    // Step by step, never through a link: by now the folder's name may lead elsewhere, and what is there is not ours to
    // change.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = ours(rustix::fs::openat(CWD, dir, flags | OFlags::DIRECTORY, Mode::empty())?, place)?;
    let file = ours(rustix::fs::openat(&folder, &cut.name, flags, Mode::empty())?, place)?;
    let mode = Mode::from_raw_mode(cut.mode.into());
    rustix::fs::chmodat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), mode, AtFlags::empty())
}

/// The descriptor, if it is of the mount.
fn ours(fd: OwnedFd, place: (u32, u32)) -> rustix::io::Result<OwnedFd> {
    let seen = rustix::fs::fstat(&fd)?;
    let dev = (rustix::fs::major(seen.st_dev), rustix::fs::minor(seen.st_dev));
    if dev == place { Ok(fd) } else { Err(Errno::STALE) }
}

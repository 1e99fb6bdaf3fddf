//! After a truncation: has the kernel take the size of the file anew.
//!
//! By a process of its own: it takes the file's inode lock, which a client may hold for as long as it likes. And a
//! thread of this process that waits for the mount would keep a daemon that is killed from ending: its /dev/fuse stays
//! open until the thread has its answer, which nobody is left to give.

use super::attach::device_at;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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
fn refresh(dir: &Path, place: (u32, u32), cut: &Cut) -> io::Result<()> {
    // Not through a link: by now the folder's name may lead elsewhere, and what is there is not ours to change.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), folder.as_raw_fd());
    if device_at(Path::new(&format!("{path}/."))) != Some(place) {
        return Err(Errno::STALE.into());
    }
    let mut chmod = Command::new("chmod");
    chmod.arg(format!("{:o}", cut.mode)).arg(format!("{path}/{}", cut.name)).stdin(Stdio::null());
    let done = chmod.output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
}

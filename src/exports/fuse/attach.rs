//! Mounting as root without the FUSE library, which at the end of a session takes away whatever is at the folder by
//! then.
//!
//! fuser 0.18 means to ask first whether its mount is still there, and asks it the wrong way round (`mnt/mod.rs`,
//! `is_mounted`). A session over a descriptor takes nothing away; `Mount` does, after a check.

use super::options::MountOptions;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Mounts on `dir`; the descriptor to serve it by. `None`: this process may not mount, the library has a helper for
/// that.
pub(super) fn attach(dir: &Path, options: &MountOptions) -> io::Result<Option<OwnedFd>> {
    // What cannot be opened (a dead mount) is not mounted over.
    drop(std::fs::File::open(dir)?);
    let fd = match rustix::fs::openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let all = if options.owner.is_some() { ",allow_other" } else { "" };
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{all}",
        fd.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    // Numbers and words hold no zero byte.
    let data = CString::new(data).map_err(io::Error::other)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    match rustix::mount::mount("blkcopy", dir, "fuse.blkcopy", flags, data.as_c_str()) {
        Ok(()) => Ok(Some(fd)),
        Err(Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes away a mount that nobody ever served.
pub(super) fn detach(dir: &Path) {
    let _ = rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
}

/// Device number of what is mounted at a path. Asks no file system, so none can hang.
pub(super) fn device_at(dir: &Path) -> Option<(u32, u32)> {
    use rustix::fs::{AtFlags, CWD, StatxFlags};
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let seen = rustix::fs::statx(CWD, dir, flags, StatxFlags::empty()).ok()?;
    Some((seen.stx_dev_major, seen.stx_dev_minor))
}

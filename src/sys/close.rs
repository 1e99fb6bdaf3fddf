//! `close` with its answer: some file systems say only there that what was written is lost.

use std::io;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};

/// Closes a descriptor. Whatever the answer, it is closed.
pub fn close(fd: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor was owned, and nobody else closes it.
    let done = unsafe { libc::close(fd.into_raw_fd()) };
    let error = io::Error::last_os_error();
    // Linux closes it before a signal can interrupt anything (close(2)).
    if done == 0 || error.raw_os_error() == Some(libc::EINTR) { Ok(()) } else { Err(error) }
}

/// Has the file system do what it does when `fd` is closed, which stays open: by closing a second descriptor of the
/// same opening.
pub fn close_a_copy(fd: impl AsFd) -> io::Result<()> {
    close(fd.as_fd().try_clone_to_owned()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_copy_is_closed_and_the_file_stays_open() {
        let mut file = tempfile::tempfile().unwrap();
        close_a_copy(&file).unwrap();
        file.write_all(b"x").unwrap();
        close(file.into()).unwrap();
    }
}

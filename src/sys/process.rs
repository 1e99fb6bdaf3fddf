//! The process itself: how it ends, and what signals it does not hear. No safe wrapper offers these.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::OnceLock;

/// Ends the process at once: no destructor runs, no thread is waited for, nothing that another thread holds can keep
/// it.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes a number, touches no memory, never returns.
    unsafe { libc::_exit(code) }
}

/// True when this process was started with the signal ignored, as `nohup` does, or ignores it by now.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: `sigaction` is plain integers and a pointer, for which all zeroes is a valid value.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action changes nothing; `old` lives across the call.
    let done = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut old) };
    done == 0 && old.sa_sigaction == libc::SIG_IGN
}

/// Ignores a signal from now on.
pub fn ignore(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_IGN is no function of ours; nothing runs when the signal comes.
    let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes a descriptor and says what the file system said: some tell only now that what was written has no space.
pub fn close(fd: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor was owned, so nobody else uses its number; after the call, well or not, it is closed.
    let done = unsafe { libc::close(fd.into_raw_fd()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A digest of this boot of this machine: two processes have the same only if they run on one machine. All zero where
/// the kernel does not say. The boot's own number is not for others to see.
pub fn boot_digest() -> [u8; 16] {
    static DIGEST: OnceLock<[u8; 16]> = OnceLock::new();
    *DIGEST.get_or_init(|| {
        let mut digest = [0; 16];
        if let Ok(boot) = std::fs::read("/proc/sys/kernel/random/boot_id") {
            let hash = blake3::derive_key("blkcopy boot of a machine", &boot);
            digest.copy_from_slice(&hash[..16]);
        }
        digest
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_known() {
        assert!(!is_ignored(libc::SIGWINCH));
        ignore(libc::SIGWINCH).unwrap();
        assert!(is_ignored(libc::SIGWINCH));
        assert!(ignore(libc::SIGKILL).is_err() && !is_ignored(libc::SIGKILL));
    }
}

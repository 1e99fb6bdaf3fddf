//! Makes io_uring fail on the calling thread, as containers do. For tests only.

use std::io;
use std::mem::offset_of;

/// The architecture word of `struct seccomp_data` (linux/audit.h): machine number, 64 bit, little endian.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// `io_uring_setup`, `_enter` and `_register`: the same numbers on every architecture of Linux.
const FIRST: u32 = 425;
const LAST: u32 = 427;

/// From now on the three io_uring calls answer `errno` on this thread and on threads it starts. Cannot be undone.
///
/// Errors: those of `prctl`; `Unsupported` on an architecture this filter does not know.
pub fn forbid_io_uring(errno: i32) -> io::Result<()> {
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Err(io::ErrorKind::Unsupported.into());
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    install(errno)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn install(errno: i32) -> io::Result<()> {
    let errno = u32::try_from(errno).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))? & 0xFFFF;
    let load =
        |at: usize| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, u32::try_from(at).unwrap_or(0));
    let jump = |how, k, yes, no| step(libc::BPF_JMP | how | libc::BPF_K, yes, no, k);
    let answer = |k| step(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    let mut program = [
        load(offset_of!(libc::seccomp_data, arch)),
        jump(libc::BPF_JEQ, ARCH, 0, 4), // another architecture's numbers mean other calls: allow
        load(offset_of!(libc::seccomp_data, nr)),
        jump(libc::BPF_JGE, FIRST, 0, 2),
        jump(libc::BPF_JGT, LAST, 1, 0),
        answer(libc::SECCOMP_RET_ERRNO | errno),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let filter =
        libc::sock_fprog { len: u16::try_from(program.len()).unwrap_or(0), filter: program.as_mut_ptr() };
    // SAFETY: takes no pointers. Needed to install a filter without CAP_SYS_ADMIN.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `filter` and the program it points to live across the call; the kernel copies and checks them.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    // The opcodes are small constants of one byte each.
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k }
}

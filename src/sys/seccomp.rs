//! Makes system calls fail on the calling thread, as containers do. For tests only.

use std::io;
use std::mem::offset_of;

/// The architecture word of `struct seccomp_data` (linux/audit.h): machine number, 64 bit, little endian.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// `io_uring_setup`, `_enter` and `_register`: the same numbers on every architecture of Linux.
const IO_URING: std::ops::RangeInclusive<u32> = 425..=427;

/// A call that is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Its number.
    pub call: u32,
    /// Refuse it only with this argument.
    pub argument: Option<Argument>,
    /// What it answers.
    pub errno: i32,
}

/// An argument of a call: its lower 32 bits under `mask` are `value`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Argument {
    /// Which one, from 0.
    pub index: usize,
    /// The bits that are looked at.
    pub mask: u32,
    /// What they must be.
    pub value: u32,
}

/// From now on the three io_uring calls answer `errno` on this thread and on threads and processes it starts. Cannot be
/// undone.
///
/// Errors: those of `prctl`; `Unsupported` on an architecture this filter does not know.
pub fn forbid_io_uring(errno: i32) -> io::Result<()> {
    IO_URING.into_iter().try_for_each(|call| refuse(Refusal { call, argument: None, errno }))
}

/// From now on a call fails on this thread and on threads and processes it starts. Cannot be undone; several add up.
///
/// Errors: as of [`forbid_io_uring`].
pub fn refuse(refusal: Refusal) -> io::Result<()> {
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = refusal;
        Err(io::ErrorKind::Unsupported.into())
    }
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    install(refusal)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn install(refusal: Refusal) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let errno = u32::try_from(refusal.errno).map_err(|_| invalid())? & 0xFFFF;
    let load =
        |at: usize| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, u32::try_from(at).unwrap_or(0));
    // Goes on where it is equal, else skips so many steps.
    let only = |k, skipped| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skipped, k);
    let answer = |k| step(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    let mut program = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        only(ARCH, if refusal.argument.is_some() { 6 } else { 3 }), // another architecture's numbers mean other calls: allow
        load(offset_of!(libc::seccomp_data, nr)),
        only(refusal.call, if refusal.argument.is_some() { 4 } else { 1 }),
    ];
    if let Some(argument) = refusal.argument {
        if argument.index > 5 {
            return Err(invalid());
        }
        program.extend([
            // The lower half comes first: both architectures are little-endian.
            load(offset_of!(libc::seccomp_data, args) + 8 * argument.index),
            step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, argument.mask),
            only(argument.value, 1),
        ]);
    }
    program.extend([answer(libc::SECCOMP_RET_ERRNO | errno), answer(libc::SECCOMP_RET_ALLOW)]);
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

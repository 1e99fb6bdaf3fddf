//! Errors as the numbers that system calls return.

use crate::block::{Error, Kind};
use fuser::Errno;

/// The number of an error.
pub(super) fn errno(error: &Error) -> Errno {
    match error.kind() {
        Kind::Unsupported => Errno::EOPNOTSUPP,
        Kind::InvalidInput | Kind::Misaligned | Kind::OutOfRange | Kind::Overlap => Errno::EINVAL,
        Kind::ReadOnly => Errno::EROFS,
        Kind::InUse => Errno::EBUSY,
        Kind::NotFound => Errno::ENXIO,
        Kind::Permission => Errno::EACCES,
        Kind::NoSpace => Errno::ENOSPC,
        Kind::NoMemory => Errno::ENOMEM,
        Kind::Cancelled => Errno::EINTR,
        _ => Errno::EIO,
    }
}

/// The same for `copy_file_range`: never a number by which the kernel would copy by itself, through its own cache and
/// past our locks and receipts, or ask no more for as long as the mount lives.
pub(super) fn copy_errno(error: &Error) -> Errno {
    match error.kind() {
        Kind::Unsupported => Errno::EIO,
        _ => errno(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::IntoEnumIterator as _;

    #[test]
    fn a_copy_never_answers_what_makes_the_kernel_copy_by_itself() {
        for kind in Kind::iter() {
            let number = copy_errno(&Error::new(kind, "x")).code();
            assert!(![libc::ENOSYS, libc::EOPNOTSUPP, libc::EXDEV].contains(&number), "{kind:?}");
        }
    }
}

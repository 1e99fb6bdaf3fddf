//! Calls that may block and have no ring operation: zeroing, discarding, and the rest of a short read or write. They
//! run on a helper thread.

use super::core::Backing;
use crate::block::{Buf, ByteRange, Call, Counters, Error, Kind, Result};
use rustix::fs::{FallocateFlags, SeekFrom};
use std::io;
use std::os::fd::OwnedFd;

/// Longest single `fallocate` or discard, in bytes, holes in front of it not counted.
const CALL_MAX: u64 = 1 << 30;
/// Zeroes written at once where nothing else zeroes, in bytes.
const ZEROES: u64 = 512 << 10;

/// True for answers that mean "not by this call here": file systems that know the call and not the mode or the range
/// (EINVAL), and sandboxes (EPERM, EACCES). Writing zeroes is always right, and says what is wrong with the file
/// itself.
fn is_unsupported(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(
        error,
        Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::INVAL
            | Errno::PERM
            | Errno::ACCESS
            | Errno::NODEV
            | Errno::NOTTY
            | Errno::TXTBSY
    )
}

/// The error of a call on `range`. What lies past the end that a device has now is out of range; the kernel calls it an
/// invalid argument.
fn failed(doing: &'static str, fd: &OwnedFd, range: ByteRange, error: io::Error) -> Error {
    match rustix::fs::seek(fd, SeekFrom::End(0)) {
        Ok(end) if end < range.end() && error.raw_os_error() == Some(libc::EINVAL) => {
            let text =
                format!("{doing}: the device now ends at byte {end}; it has shrunk since it was opened");
            Error::new(Kind::OutOfRange, text).because(error).at(range)
        }
        _ => Error::os(doing, error).at(range),
    }
}

/// Makes `range` read as zero: a hole where that is allowed, else an allocated zero range, else zeroes written through
/// `writes`. Returns the good prefix in bytes.
pub(super) fn write_zeroes(
    fd: &OwnedFd,
    writes: &OwnedFd,
    range: ByteRange,
    may_unmap: bool,
    counters: &mut Counters,
) -> (u64, Result<()>) {
    let keep = FallocateFlags::KEEP_SIZE;
    let mut rest = range;
    for mode in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
        if mode == FallocateFlags::PUNCH_HOLE && !may_unmap {
            continue;
        }
        while !rest.is_empty() {
            let holes = if mode == FallocateFlags::PUNCH_HOLE { hole(fd, rest, counters) } else { 0 };
            let piece = rest.prefix(holes.saturating_add(CALL_MAX));
            counters.count(Call::Fallocate);
            match rustix::fs::fallocate(fd, mode | keep, piece.offset(), piece.len()) {
                Ok(()) => rest = rest.after(piece.len()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) if is_unsupported(error) => break,
                Err(error) => {
                    return (range.len() - rest.len(), Err(failed("zeroing failed", fd, rest, error.into())));
                }
            }
        }
    }
    if rest.is_empty() {
        return (range.len(), Ok(()));
    }
    let Some(zeroes) = usize::try_from(rest.len().min(ZEROES)).ok().and_then(Buf::alloc) else {
        return (range.len() - rest.len(), Err(Error::new(Kind::NoMemory, "no memory for zeroes to write")));
    };
    while !rest.is_empty() {
        let len = usize::try_from(rest.len()).map_or(zeroes.len(), |l| l.min(zeroes.len()));
        let (n, error) = write_all(writes, &zeroes[..len], rest.offset(), counters);
        rest = rest.after(n);
        if let Some(error) = error {
            return (range.len() - rest.len(), Err(failed("zeroing failed", fd, rest, error)));
        }
    }
    (range.len(), Ok(()))
}

/// Bytes in front of `range` that are said to be a hole. They are punched all the same: it only says that this costs
/// nothing.
fn hole(fd: &OwnedFd, range: ByteRange, counters: &mut Counters) -> u64 {
    if range.len() <= CALL_MAX {
        return 0;
    }
    counters.count(Call::Lseek);
    match rustix::fs::seek(fd, SeekFrom::Data(range.offset())) {
        Ok(data) => data.saturating_sub(range.offset()).min(range.len()),
        Err(rustix::io::Errno::NXIO) => range.len(),
        Err(_) => 0,
    }
}

/// Gives back the space of `range`. `Unsupported` where that cannot be done.
pub(super) fn discard(
    fd: &OwnedFd,
    backing: Backing,
    range: ByteRange,
    counters: &mut Counters,
) -> (u64, Result<()>) {
    let mut rest = range;
    while !rest.is_empty() {
        let piece = rest.prefix(CALL_MAX);
        let result = match backing {
            Backing::Regular => {
                counters.count(Call::Fallocate);
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(fd, mode, piece.offset(), piece.len()).map_err(io::Error::from)
            }
            Backing::Block => crate::sys::ioctl::block_discard(fd, piece.offset(), piece.len()),
        };
        match result {
            Ok(()) => rest = rest.after(piece.len()),
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => {
                return (range.len() - rest.len(), Err(failed("discard failed", fd, rest, error)));
            }
        }
    }
    (range.len(), Ok(()))
}

/// Reads until `out` is full or the file ends; the bytes read, and the error that stopped it.
pub(super) fn read_all(
    fd: &OwnedFd,
    out: &mut [u8],
    offset: u64,
    counters: &mut Counters,
) -> (u64, Option<io::Error>) {
    let mut done = 0;
    while done < out.len() {
        counters.count(Call::Pread64);
        match rustix::io::pread(fd, &mut out[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return (done as u64, Some(error.into())),
        }
    }
    (done as u64, None)
}

/// Writes all of `bytes`; the bytes written, and the error that stopped it.
pub(super) fn write_all(
    fd: &OwnedFd,
    bytes: &[u8],
    offset: u64,
    counters: &mut Counters,
) -> (u64, Option<io::Error>) {
    let mut done = 0;
    while done < bytes.len() {
        counters.count(Call::Pwrite64);
        match rustix::io::pwrite(fd, &bytes[done..], offset + done as u64) {
            Ok(0) => return (done as u64, Some(io::ErrorKind::WriteZero.into())),
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return (done as u64, Some(error.into())),
        }
    }
    (done as u64, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_hole_is_punched_in_one_call_however_long_it_is() {
        let file = tempfile::tempfile().unwrap();
        let len = 1 << 40;
        file.set_len(len).unwrap();
        for at in [0, 3 << 30, (1 << 40) - 4096] {
            file.write_all_at(&[7; 4096], at).unwrap();
        }
        let (fd, mut counters) = (OwnedFd::from(file.try_clone().unwrap()), Counters::default());
        let (good, result) = write_zeroes(&fd, &fd, ByteRange::to(len), true, &mut counters);
        assert!(result.is_ok() && good == len);
        let calls = counters.calls[Call::Fallocate as usize];
        assert!(calls <= 6, "{calls} calls for 3 blocks in a TiB");
        for at in [0, 3 << 30, (1 << 40) - 4096] {
            let mut held = [1; 4096];
            file.read_exact_at(&mut held, at).unwrap();
            assert!(held == [0; 4096], "{at}");
        }
        assert_eq!(file.metadata().unwrap().size(), len);
    }
}

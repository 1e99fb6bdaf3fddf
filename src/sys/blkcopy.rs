//! The copy calls of a mounted volume, for programs that use them: `BLKCOPY`, its twin for two files, and
//! `copy_file_range`.
//!
//! The numbers and layouts are those of `docs/notes/006-mount.md`. Several ranges go in one system call, and each comes
//! back with the bytes of it that are known good, also when the call fails.

use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Most entries of one [`blkcopy`]: 16 + 32 * 511 = 16368 bytes, and the size bits of the number end at 16383.
pub const ENTRIES_MAX: usize = 511;
/// Most entries of one [`blkcopy_from`]: 32 + 32 * 510 = 16352 bytes.
pub const FROM_ENTRIES_MAX: usize = 510;
/// Flag of [`blkcopy_from`]: durable before the call returns.
pub const DURABLE: u32 = 1;
/// Flag of [`blkcopy_from`]: `EOPNOTSUPP` rather than bytes through the server's memory.
pub const OFFLOAD_ONLY: u32 = 2;

/// Longest argument the size bits can tell, in bytes.
pub const ARG_MAX: usize = (1 << 14) - 1;
/// Bytes before the entries of a [`blkcopy`].
pub const HEADER: usize = 16;
/// Bytes before the entries of a [`blkcopy_from`].
pub const FROM_HEADER: usize = 32;
/// Bytes of an entry.
pub const ENTRY: usize = 32;
/// Direction bits of `_IOC` (asm-generic/ioctl.h).
const READ: u32 = 2;
const READ_WRITE: u32 = 3;

/// One range of a copy, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// First byte of the source.
    pub source: u64,
    /// First byte of the destination.
    pub dest: u64,
    /// Length.
    pub len: u64,
    /// Out: length of the prefix of `dest` that is known good. What stands here before the call is not looked at.
    pub comp_len: u64,
}

impl Entry {
    /// `len` bytes from `source` to `dest`, nothing of it done.
    pub const fn new(source: u64, dest: u64, len: u64) -> Self {
        Self { source, dest, len, comp_len: 0 }
    }
}

/// Stands for one open file, to be read through [`blkcopy_from`] by whoever holds it, until the file is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; 16]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It gives a right: not for logs.
        f.write_str("Token(..)")
    }
}

/// Which of the calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// `BLKCOPY`: within one volume.
    Copy,
    /// `BLKCOPY_SOURCE`: a token for an open file.
    Source,
    /// `BLKCOPY_FROM`: from the file of a token.
    From,
}

impl Call {
    const fn direction_and_number(self) -> (u32, u32) {
        match self {
            Self::Copy => (READ_WRITE, 129),
            Self::Source => (READ, 200),
            Self::From => (READ_WRITE, 201),
        }
    }

    /// The request number with an argument of `len` bytes: `_IOC(direction, 0x12, number, len)`. `None`: too long to
    /// tell.
    pub fn request(self, len: usize) -> Option<u32> {
        let (direction, number) = self.direction_and_number();
        let len = u32::try_from(len).ok().filter(|_| len <= ARG_MAX)?;
        Some(direction << 30 | len << 16 | 0x12 << 8 | number)
    }
}

/// Copies ranges within one volume, in order, each one whole; the descriptor is open for reading and writing.
///
/// Errors: `EINVAL`, before anything is done, for no entry or more than [`ENTRIES_MAX`] (here already) and for what the
/// server refuses; others may come after some entries are done. [`Entry::comp_len`] tells how far it got in each case.
pub fn blkcopy(fd: impl AsFd, entries: &mut [Entry]) -> io::Result<()> {
    if entries.is_empty() || entries.len() > ENTRIES_MAX {
        return refuse(entries);
    }
    let mut arg = Vec::with_capacity(HEADER + ENTRY * entries.len());
    arg.extend((entries.len() as u64).to_ne_bytes());
    arg.extend([0; 8]);
    put(&mut arg, entries);
    let result = call(fd, Call::Copy, &mut arg);
    take(&arg[HEADER..], entries);
    result
}

/// A token for this open file, which is open for reading: whoever holds it may read the file through [`blkcopy_from`].
pub fn blkcopy_source(fd: impl AsFd) -> io::Result<Token> {
    let mut token = [0; 16];
    call(fd, Call::Source, &mut token)?;
    Ok(Token(token))
}

/// Copies ranges from the file of `source`, on the same mount, to this volume, which is open for writing. `flags`:
/// [`DURABLE`],
/// [`OFFLOAD_ONLY`].
///
/// Errors: as of [`blkcopy`], and `ESTALE` for a token whose file was closed or that never was one.
pub fn blkcopy_from(fd: impl AsFd, source: Token, flags: u32, entries: &mut [Entry]) -> io::Result<()> {
    if entries.is_empty() || entries.len() > FROM_ENTRIES_MAX {
        return refuse(entries);
    }
    let mut arg = Vec::with_capacity(FROM_HEADER + ENTRY * entries.len());
    arg.extend((entries.len() as u64).to_ne_bytes());
    arg.extend(flags.to_ne_bytes());
    arg.extend([0; 4]);
    arg.extend(source.0);
    put(&mut arg, entries);
    let result = call(fd, Call::From, &mut arg);
    take(&arg[FROM_HEADER..], entries);
    result
}

/// Makes one of the calls with an argument of one's own making, which comes back as the server left it, also with an
/// error.
///
/// Errors: `EINVAL`, without a call, for an argument that is too long, or that is all header.
pub fn call(fd: impl AsFd, which: Call, arg: &mut [u8]) -> io::Result<()> {
    // A kernel with the posted series takes 129 with a bare header for its own call and reads on behind it; no other
    // length means anything to it.
    let least = if which == Call::Copy { HEADER + 1 } else { 1 };
    let request = which.request(arg.len()).filter(|_| arg.len() >= least).ok_or(Errno::INVAL)?;
    // SAFETY: the size bits of the number are the length of `arg`, so whoever serves it copies at most that much in and
    // out; `arg` lives across the call. The descriptor is open for it.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::Ioctl::from(request), arg.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One `copy_file_range`: the bytes copied, maybe fewer than asked; 0 only at the end of the source. Both ends may be
/// one file.
pub fn copy_file_range(source: impl AsFd, dest: impl AsFd, range: Entry) -> io::Result<u64> {
    let (mut from, mut to) = (range.source, range.dest);
    let len = usize::try_from(range.len).unwrap_or(usize::MAX);
    Ok(rustix::fs::copy_file_range(source, Some(&mut from), dest, Some(&mut to), len)? as u64)
}

fn refuse(entries: &mut [Entry]) -> io::Result<()> {
    entries.iter_mut().for_each(|e| e.comp_len = 0);
    Err(Errno::INVAL.into())
}

fn put(arg: &mut Vec<u8>, entries: &[Entry]) {
    for entry in entries {
        for number in [entry.source, entry.dest, entry.len, 0] {
            arg.extend(number.to_ne_bytes());
        }
    }
}

fn take(arg: &[u8], entries: &mut [Entry]) {
    for (entry, bytes) in entries.iter_mut().zip(arg.as_chunks::<ENTRY>().0) {
        let [.., a, b, c, d, e, f, g, h] = *bytes;
        entry.comp_len = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn numbers_are_those_of_the_note() {
        // _IOWR(0x12, 129, 48 bytes), the longest one, _IOR(0x12, 200, 16), _IOWR(0x12, 201, 64).
        assert_eq!(Call::Copy.request(16 + 32), Some(0xC030_1281));
        assert_eq!(Call::Copy.request(16 + 32 * ENTRIES_MAX), Some(0xFFF0_1281));
        assert_eq!(Call::Source.request(16), Some(0x8010_12C8));
        assert_eq!(Call::From.request(32 + 32), Some(0xC040_12C9));
        assert_eq!(Call::From.request(32 + 32 * FROM_ENTRIES_MAX), Some(0xFFE0_12C9));
        assert_eq!(Call::Copy.request(ARG_MAX + 1), None);
    }

    #[test]
    fn too_many_and_none_are_refused_without_a_call() {
        let file = tempfile::tempfile().unwrap();
        let errno = |r: io::Result<()>| r.unwrap_err().raw_os_error().unwrap();
        let mut many = [Entry { comp_len: 9, ..Entry::new(0, 0, 1) }; 512];
        assert_eq!(errno(blkcopy(&file, &mut many)), libc::EINVAL);
        assert!(many.iter().all(|e| e.comp_len == 0));
        assert_eq!(errno(blkcopy(&file, &mut [])), libc::EINVAL);
        assert_eq!(errno(blkcopy_from(&file, Token([0; 16]), 0, &mut many[..511])), libc::EINVAL);
        // These reach the file, which knows no such call, and say nothing of what was done.
        many.fill(Entry { comp_len: 9, ..Entry::new(0, 0, 1) });
        assert_eq!(errno(blkcopy(&file, &mut many[..511])), libc::ENOTTY);
        assert_eq!(errno(blkcopy_from(&file, Token([0; 16]), 0, &mut many[511..])), libc::ENOTTY);
        assert!(many.iter().all(|e| e.comp_len == 0));
        assert_eq!(blkcopy_source(&file).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(errno(call(&file, Call::Copy, &mut [0; 16])), libc::EINVAL);
        assert_eq!(errno(call(&file, Call::From, &mut vec![0; 16_384])), libc::EINVAL);
    }

    #[test]
    fn entries_lie_as_the_note_says_and_come_back() {
        let mut entries = [Entry::new(1, 2, 3), Entry { comp_len: 7, ..Entry::new(4, 5, 6) }];
        let mut arg = Vec::new();
        put(&mut arg, &entries);
        let numbers: Vec<u64> = arg.as_chunks().0.iter().map(|b| u64::from_ne_bytes(*b)).collect();
        assert_eq!(numbers, [1, 2, 3, 0, 4, 5, 6, 0]);
        arg[24] = 3;
        arg[56] = 2;
        take(&arg, &mut entries);
        assert_eq!(entries.map(|e| e.comp_len), [3, 2]);
    }

    #[test]
    fn a_range_is_copied_between_files() {
        let (mut a, mut b) = (tempfile::tempfile().unwrap(), tempfile::NamedTempFile::new().unwrap());
        a.write_all(b"0123456789").unwrap();
        b.write_all(b"abc").unwrap();
        assert_eq!(copy_file_range(&a, b.as_file(), Entry::new(8, 1, 100)).unwrap(), 2);
        assert_eq!(copy_file_range(&a, b.as_file(), Entry::new(10, 1, 100)).unwrap(), 0);
        let mut text = String::new();
        b.reopen().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "a89");
    }
}

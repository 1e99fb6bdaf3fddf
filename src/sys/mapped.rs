//! A file mapped into memory, shared: what is stored shows in the file, for tests and tools that go round read and
//! write.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

/// The first bytes of a file, mapped for reading and writing, unmapped when dropped.
///
/// Bytes are copied in and out; no reference into the mapping leaves this file, because the kernel, other mappings and
/// other processes change them at any time. Two mappings of one file see each other's stores.
///
/// **`SIGBUS`.** Touching a page past the end of the file, or one whose storage fails, ends the process. Whoever maps a
/// file that others may shrink accepts that; nothing here can turn it into an error.
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is tied to no thread.
unsafe impl Send for Mapped {}
// SAFETY: `&Mapped` only reads (stores want `&mut`), and what others store goes through other addresses or processes.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `len` bytes of a file that is open for reading and writing. `EINVAL` when `len` is 0.
    pub fn new(file: impl AsFd, len: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so nothing that exists is replaced; the other arguments are checked
        // by it.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, len })
    }

    /// Length in bytes, as mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a mapping of no bytes (there is none).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the bytes from `at` on to `out`.
    ///
    /// # Panics
    /// When they do not lie inside.
    pub fn read(&self, at: usize, out: &mut [u8]) {
        self.check(at, out.len());
        // SAFETY: `check` holds the range inside the mapping, which lives as long as `self`; `out` is memory of this
        // process that no mapping made here overlaps. Bytes that others change meanwhile are read as old or new: any is
        // a valid u8.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(at), out.as_mut_ptr(), out.len()) };
    }

    /// Stores `bytes` from `at` on.
    ///
    /// # Panics
    /// When they do not lie inside.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        // SAFETY: as in `read`, the other way round; `&mut self` excludes a read of the same mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(at), bytes.len()) };
    }

    /// Stores zeroes.
    ///
    /// # Panics
    /// When the range does not lie inside.
    pub fn zero(&mut self, range: Range<usize>) {
        self.check(range.start, range.len());
        // SAFETY: as in `write`.
        unsafe { std::ptr::write_bytes(self.start.as_ptr().add(range.start), 0, range.len()) };
    }

    /// Writes the stored bytes of the range (and the rest of its pages) to the file and waits for it: `msync(MS_SYNC)`.
    ///
    /// # Panics
    /// When the range does not lie inside.
    pub fn sync(&self, range: Range<usize>) -> io::Result<()> {
        self.check(range.start, range.len());
        // The address must be a page's first; the length may end anywhere.
        let from = range.start - range.start % super::aligned::PAGE;
        // SAFETY: `from` lies inside the mapping, and so does the end of the range; the call changes no memory.
        let result = unsafe {
            libc::msync(self.start.as_ptr().add(from).cast(), range.start + range.len() - from, libc::MS_SYNC)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn check(&self, at: usize, len: usize) {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} bytes at {at} do not lie inside a mapping of {} bytes", self.len);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping made in `new`; no reference into it exists.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn stores_show_in_the_file_and_writes_show_in_the_mapping() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10_000).unwrap();
        let mut map = Mapped::new(&file, 10_000).unwrap();
        map.write(4090, b"across a page");
        map.sync(4090..4103).unwrap();
        let mut seen = [0; 13];
        file.read_exact_at(&mut seen, 4090).unwrap();
        assert_eq!(&seen, b"across a page");
        file.write_all_at(b"ABC", 9_997).unwrap();
        let mut seen = [0; 3];
        map.read(9_997, &mut seen);
        assert_eq!(&seen, b"ABC");
        map.zero(4091..4102);
        map.read(4090, &mut seen);
        assert_eq!(seen, [b'a', 0, 0]);
        map.read(4100, &mut seen);
        assert_eq!(seen, [0, 0, b'e']);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        assert_eq!(Mapped::new(&file, 0).err().unwrap().raw_os_error(), Some(libc::EINVAL));
        // The page after the 100 bytes is there, but not part of what was asked for.
        let mut map = Mapped::new(&file, 100).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| map.read(98, &mut [0; 3]))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| map.read(usize::MAX, &mut [0; 3]))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| map.write(100, &[1]))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| map.zero(99..101))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| map.sync(99..101))).is_err());
        map.read(98, &mut [0; 2]);
        map.write(100, &[]);
    }
}

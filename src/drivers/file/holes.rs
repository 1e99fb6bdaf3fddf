//! Which ranges of a file are holes, and which only look like it.
//!
//! `SEEK_DATA` may be wrong about what is not stored yet: on file systems in the format of ext2 and ext3 Linux calls a
//! fresh write a hole until it is written out, and others had the same fault for years. So its word for "hole" counts
//! only where no page is cached, or nothing cached is dirty when it is asked again, or after the range was written out.
//! Else the range is read.
//!
//! Everything here may wait for the disk.

use super::core::Core;
use super::transfer::ended_early;
use super::{size_of, way};
use crate::block::{ByteRange, Content, Error, LEN_MAX, Result};
use crate::sys::ioctl;
use crate::sys::sync::lock;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// `cachestat` has failed once: its answer will not change.
static CACHESTAT_OFF: AtomicBool = AtomicBool::new(false);

/// What the page cache holds of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cached {
    /// Not a page.
    Nothing,
    /// Pages that are stored as they are.
    Clean,
    /// Pages that are not stored yet, or nobody knows.
    Dirty,
}

/// Asks what the page cache holds of a range. `ENOSYS` (before Linux 6.5) and `EPERM` mean "not known".
pub(super) fn cached(fd: &OwnedFd, range: ByteRange) -> Cached {
    if CACHESTAT_OFF.load(Ordering::Relaxed) {
        return Cached::Dirty;
    }
    match ioctl::cachestat(fd, range.offset(), range.len()) {
        Ok(stat) if stat.cached == 0 => Cached::Nothing,
        Ok(stat) if stat.dirty == 0 && stat.writeback == 0 => Cached::Clean,
        Ok(_) => Cached::Dirty,
        Err(error) => {
            if error.raw_os_error() == Some(libc::ENOSYS) {
                CACHESTAT_OFF.store(true, Ordering::Relaxed);
            }
            Cached::Dirty
        }
    }
}

/// Stores what is cached of a range and not stored yet, so that its holes are holes: for a kernel copy that carries
/// them over.
pub(super) fn store(fd: &OwnedFd, range: ByteRange) -> std::io::Result<()> {
    if range.is_empty() || cached(fd, range) != Cached::Dirty {
        return Ok(());
    }
    way::write_out(fd, range)
}

/// What is asked of a file, so that tests can answer in the kernel's place.
pub(super) trait Asked {
    /// `lseek(SEEK_DATA)`.
    fn data(&self, at: u64) -> Result<u64, Errno>;
    /// `lseek(SEEK_HOLE)`.
    fn hole(&self, at: u64) -> Result<u64, Errno>;
    /// What is cached of a range that is not empty.
    fn cached(&self, range: ByteRange) -> Cached;
    /// Writes a range out; false: that cannot be done.
    fn write_out(&self, range: ByteRange) -> bool;
    /// The file's length now.
    fn len(&self) -> Result<u64>;
    /// True when a read at `at`, inside the file, finds its end: a server may say that a file is longer than it is.
    fn ends_before(&self, _at: u64) -> bool {
        false
    }
}

/// The extents of an open file.
#[derive(Default)]
pub(super) struct Holes {
    seeks: AtomicU64,
    /// Data found last: from its start to its end, both known, or the same when only the start is. Only ever data:
    /// taken for data when it has become a hole costs time, the other way round would cost bytes.
    data: Mutex<ByteRange>,
}

/// What lies at the front of a range.
enum Front {
    /// Data, up to where a hole begins.
    Data,
    /// A hole; `then_data`: it ends because data begins there.
    Hole { end: u64, then_data: bool },
    /// To be read up to `end`.
    Unknown { end: u64 },
}

/// The real file.
struct Real<'a> {
    core: &'a Core,
    seeks: &'a AtomicU64,
}

impl Real<'_> {
    fn seek(&self, to: SeekFrom) -> Result<u64, Errno> {
        self.seeks.fetch_add(1, Ordering::Relaxed);
        // Nothing else uses the descriptor's position: all reads and writes name their offset.
        rustix::fs::seek(&*self.core.fd, to)
    }
}

impl Asked for Real<'_> {
    fn data(&self, at: u64) -> Result<u64, Errno> {
        self.seek(SeekFrom::Data(at))
    }
    fn hole(&self, at: u64) -> Result<u64, Errno> {
        self.seek(SeekFrom::Hole(at))
    }
    fn cached(&self, range: ByteRange) -> Cached {
        cached(&self.core.fd, range)
    }
    fn write_out(&self, range: ByteRange) -> bool {
        match way::write_out(&self.core.fd, range) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(device = %self.core.name, %error, %range, "cached data cannot be written out, so the \
                    range is read instead of searched for holes");
                false
            }
        }
    }
    fn len(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&*self.core.fd).map_err(|e| Error::os("cannot stat", e))?;
        Ok(size_of(&stat))
    }
    fn ends_before(&self, at: u64) -> bool {
        // On other file systems the size is the kernel's own.
        !self.core.is_local && rustix::io::pread(&*self.core.fd, &mut [0u8; 1][..], at) == Ok(0)
    }
}

impl Holes {
    /// Seeks made so far.
    pub(super) fn seeks(&self) -> u64 {
        self.seeks.load(Ordering::Relaxed)
    }

    /// Forgets what was data.
    pub(super) fn forget(&self) {
        self.remember(0, 0);
    }

    /// True when a hole is reported in front of the end of a file that is not empty.
    pub(super) fn any(&self, core: &Core) -> bool {
        let real = Real { core, seeks: &self.seeks };
        real.hole(0).is_ok_and(|at| at < core.size())
    }

    /// What lies at the front of `range`, which is not empty and inside the file: a hole up to an offset in the range,
    /// or data up to an offset, maybe past its end.
    pub(super) fn at(&self, core: &Core, range: ByteRange) -> Result<(Content, u64)> {
        self.look(&Real { core, seeks: &self.seeks }, range, core.size())
    }

    fn look(&self, file: &impl Asked, range: ByteRange, size: u64) -> Result<(Content, u64)> {
        let at = range.offset();
        let known = *lock(&self.data);
        if known.offset() <= at && at < known.end() {
            return Ok((Content::Data, known.end()));
        }
        if !(known.is_empty() && at == known.offset() && at != 0) {
            match Self::front(file, range, size)? {
                Front::Hole { end, then_data } => {
                    if then_data {
                        self.remember(end, end);
                    }
                    return Ok((Content::Hole, end));
                }
                Front::Unknown { end } => return Ok((Content::Data, end)),
                Front::Data => {}
            }
        }
        match file.hole(at) {
            Ok(hole) if hole > at => {
                self.remember(at, hole);
                Ok((Content::Data, hole))
            }
            // Became a hole between the two calls: reading it is always right.
            Ok(_) | Err(Errno::NXIO) => Ok((Content::Data, at + 1)),
            Err(error) => Err(Error::os("cannot search for holes", error)),
        }
    }

    fn front(file: &impl Asked, range: ByteRange, size: u64) -> Result<Front> {
        let at = range.offset();
        let ask = || match file.data(at) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => {
                // No data from here on: a hole, unless that is because the file is shorter now.
                let now = file.len()?;
                if now < size {
                    Err(ended_early(now, size))
                } else if file.ends_before(at) {
                    Err(ended_early(at, size))
                } else {
                    Ok(Some(size))
                }
            }
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
            Err(error) => Err(Error::os("cannot search for holes", error)),
        };
        let Some(data) = ask()? else { return Ok(Front::Unknown { end: LEN_MAX }) };
        if data <= at {
            return Ok(Front::Data);
        }
        // Believed for what was asked about, and no further than it was looked at.
        let end = data.min(range.end());
        let hole = ByteRange::between(at, end);
        let data = match file.cached(hole) {
            Cached::Nothing => Some(data),
            // It may have been written out since the question: asked again.
            Cached::Clean => ask()?,
            Cached::Dirty if file.write_out(hole) => ask()?,
            Cached::Dirty => None,
        };
        match data {
            None => Ok(Front::Unknown { end }),
            Some(data) if data <= at => Ok(Front::Data),
            Some(data) => Ok(Front::Hole { end: data.min(end), then_data: data <= end && data < size }),
        }
    }

    fn remember(&self, start: u64, end: u64) {
        *lock(&self.data) = ByteRange::between(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    /// A file of one block of data at 8192..12288 in a hole, whose file system says `lies` so many times that all is a
    /// hole.
    struct Lying {
        lies: Cell<u32>,
        cached: Cached,
        can_write_out: bool,
        calls: RefCell<Vec<&'static str>>,
        size: u64,
    }

    impl Lying {
        fn new(lies: u32, cached: Cached, can_write_out: bool) -> Self {
            Self { lies: Cell::new(lies), cached, can_write_out, calls: RefCell::default(), size: 1 << 20 }
        }
        fn called(&self, call: &'static str) {
            self.calls.borrow_mut().push(call);
        }
    }

    impl Asked for Lying {
        fn data(&self, at: u64) -> Result<u64, Errno> {
            self.called("data");
            if self.lies.get() > 0 || at >= 12288 {
                self.lies.set(self.lies.get().saturating_sub(1));
                return Err(Errno::NXIO);
            }
            Ok(at.max(8192))
        }
        fn hole(&self, at: u64) -> Result<u64, Errno> {
            self.called("hole");
            Ok(if (8192..12288).contains(&at) { 12288 } else { at })
        }
        fn cached(&self, range: ByteRange) -> Cached {
            self.called("cached");
            if range.overlaps(ByteRange::between(8192, 12288)) { self.cached } else { Cached::Nothing }
        }
        fn write_out(&self, _: ByteRange) -> bool {
            self.called("write out");
            self.lies.set(0);
            self.can_write_out
        }
        fn len(&self) -> Result<u64> {
            Ok(self.size)
        }
    }

    fn walk(file: &Lying) -> Vec<(Content, u64)> {
        let (holes, mut at, mut out) = (Holes::default(), 0, Vec::new());
        while at < 1 << 20 {
            let (content, end) = holes.look(file, ByteRange::between(at, 1 << 20), 1 << 20).unwrap();
            assert!(end > at);
            at = end.min(1 << 20);
            out.push((content, at));
        }
        out
    }

    //= promise files
    #[test]
    fn a_hole_is_believed_only_when_nothing_cached_may_be_missing() {
        use Content::{Data, Hole};
        let right = vec![(Hole, 8192), (Data, 12288), (Hole, 1 << 20)];
        for (lies, cached, can_write_out, expected) in [
            (0, Cached::Nothing, true, right.clone()),
            // Dirty: written out and asked again.
            (1, Cached::Dirty, true, right.clone()),
            // Written out by the kernel between the question and the look.
            (1, Cached::Clean, true, right.clone()),
            // Neither known nor to be written out: all of it is read.
            (1, Cached::Dirty, false, vec![(Data, 1 << 20)]),
        ] {
            let file = Lying::new(lies, cached, can_write_out);
            assert_eq!(walk(&file), expected, "{cached:?} {:?}", file.calls.borrow());
        }
        let file = Lying::new(0, Cached::Nothing, true);
        walk(&file);
        assert_eq!(*file.calls.borrow(), ["data", "cached", "hole", "data", "cached"]);
    }

    #[test]
    fn what_was_not_looked_at_is_not_called_a_hole() {
        let file = Lying::new(1, Cached::Dirty, true);
        let holes = Holes::default();
        // Only the front is asked about: nothing is cached there, and nothing is said about the rest.
        let found = holes.look(&file, ByteRange::between(0, 4096), 1 << 20).unwrap();
        assert_eq!(found, (Content::Hole, 4096));
        let (content, end) = holes.look(&file, ByteRange::between(4096, 1 << 20), 1 << 20).unwrap();
        assert_eq!((content, end), (Content::Hole, 8192));
    }

    #[test]
    fn a_file_that_is_shorter_now_has_no_hole_at_its_end() {
        let mut file = Lying::new(0, Cached::Nothing, true);
        file.size = 100_000;
        let error = Holes::default().look(&file, ByteRange::between(50_000, 1 << 20), 1 << 20).unwrap_err();
        assert_eq!(error.kind(), crate::block::Kind::SourceChanged);
    }

    //= promise files
    #[test]
    fn what_was_written_just_now_is_no_hole_on_a_file_system_in_ext3_format() {
        use crate::block::{CopyRequest, Device, Method, Op};
        use crate::drivers::file::{File, FileOptions};
        use crate::drivers::testing::{Driven, Mounted, pattern};
        use std::os::unix::fs::FileExt;
        let test = "what_was_written_just_now_is_no_hole_on_a_file_system_in_ext3_format";
        let Some(fs) = Mounted::new(test, &["mkfs.ext3", "-q"], 32 << 20) else { return };
        let write = FileOptions { write: true, create: true };
        let other = std::fs::File::create(fs.path("f")).unwrap();
        other.set_len(8 << 20).unwrap();
        let file = File::open(fs.path("f"), write).unwrap();
        for at in [1u64 << 20, 3 << 20, 6 << 20] {
            other.write_all_at(&pattern(at, 8192), at).unwrap();
        }
        let (mut at, mut data) = (0, 0);
        while at < 8 << 20 {
            let extent = file.next_extent(ByteRange::between(at, 8 << 20)).unwrap();
            data += if extent.content == Content::Data { extent.len } else { 0 };
            at += extent.len;
        }
        assert_eq!(data, 3 * 8192);
        // Such files go through the cache: their direct writes do so inside the kernel.
        assert!(file.limits().direct_io_align.is_none());
        // And a copy takes what is only cached.
        let dest = File::open(fs.path("g"), write).unwrap();
        dest.set_len(8 << 20).unwrap();
        other.write_all_at(&pattern(9, 4096), 5 << 20).unwrap();
        let copy = CopyRequest {
            method: Method::CopyFileRange,
            source: file,
            sources: smallvec::smallvec![ByteRange::to(8 << 20)],
            dest: ByteRange::to(8 << 20),
            fua: false,
            must: None,
            cancel: crate::block::request::Cancel::default(),
        };
        assert!(Driven::new(dest).run(Op::Copy(Box::new(copy))).result.is_ok());
        assert!(std::fs::read(fs.path("g")).unwrap() == std::fs::read(fs.path("f")).unwrap());
    }
}

//! Locks on images in QEMU's places: taken as QEMU takes them, and looked for.
//!
//! Each program that uses an image has shared locks on single bytes: 100 + n says "I do n", 200 + n says "nobody else
//! may do n". The locks themselves never collide; whoever takes some looks afterwards whether others have the opposite
//! ones. QEMU's table, and which bytes are taken here for what: `docs/notes/011-locks-of-others.md`.

use super::locks;
use crate::sys::ioctl;
use crate::sys::sync::lock;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

/// Where the bytes "I do" begin (`RAW_LOCK_PERM_BASE` in QEMU's block/file-posix.c).
pub(super) const DOES: i64 = 100;
/// Where the bytes "nobody else may" begin (`RAW_LOCK_SHARED_BASE`).
pub(super) const DENIES: i64 = 200;
/// How many there are of each, with one that QEMU 6.1 and earlier had (`BLK_PERM_GRAPH_MOD`).
pub(super) const ACTS: u8 = 5;

/// `BLK_PERM_CONSISTENT_READ`: what is read is the contents of one moment.
const READ: u8 = 1;
/// `BLK_PERM_WRITE`.
const WRITE: u8 = 1 << 1;
/// `BLK_PERM_WRITE_UNCHANGED`: writing what is there already.
const REWRITE: u8 = 1 << 2;
/// `BLK_PERM_RESIZE`.
const RESIZE: u8 = 1 << 3;

/// What one does with an image, and what others may not do meanwhile: a bit for each of QEMU's permissions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct ImageUse {
    does: u8,
    denies: u8,
}

impl ImageUse {
    /// Reads, and keeps nobody from anything: what a virtual machine does to the image goes on.
    pub(super) const SOURCE: Self = Self { does: READ, denies: 0 };
    /// Reads, and nobody may write.
    pub(super) const SOURCE_ALONE: Self = Self { does: READ, denies: WRITE | RESIZE };
    /// Reads and writes, and nobody else may write: as a virtual machine does.
    pub(super) const DEST: Self = Self { does: READ | WRITE | RESIZE, denies: WRITE | REWRITE | RESIZE };

    /// True when nothing is done and nothing denied.
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }

    /// True for one that writes, or is changing what must not be read meanwhile.
    pub(super) fn may_write(self) -> bool {
        self.does & !READ != 0 || self.denies & READ != 0
    }

    /// True when both cannot be had at once.
    pub(super) fn collides(self, other: Self) -> bool {
        self.does & other.denies != 0 || self.denies & other.does != 0
    }

    /// The bytes it locks.
    fn bytes(self) -> impl Iterator<Item = i64> {
        let of = |base: i64, bits: u8| {
            (0..ACTS).filter(move |n| bits & 1 << n != 0).map(move |n| base + i64::from(n))
        };
        of(DOES, self.does).chain(of(DENIES, self.denies))
    }

    /// What locks on the bytes for which `is_locked` is true mean.
    pub(super) fn of(mut is_locked: impl FnMut(i64) -> bool) -> Self {
        let mut bits = |base: i64| {
            (0..ACTS).filter(|&n| is_locked(base + i64::from(n))).fold(0, |bits, n| bits | 1 << n)
        };
        Self { does: bits(DOES), denies: bits(DENIES) }
    }
}

/// A file as the kernel's lock table knows it: the device number of its file system, and its inode.
type FileKey = (u64, u64);

/// The locks of this process on one file, on one open file description: it does not collide with itself.
struct Held {
    file: FileKey,
    fd: OwnedFd,
    users: Vec<ImageUse>,
}

impl Held {
    fn is_needed(&self, byte: i64) -> bool {
        self.users.iter().any(|user| user.bytes().any(|b| b == byte))
    }

    /// Lets go of what no user needs any more.
    fn release(&self, what: ImageUse) {
        for byte in what.bytes().filter(|&byte| !self.is_needed(byte)) {
            let _ = ioctl::release_byte(&self.fd, byte);
        }
    }
}

static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

/// Locks of one user in this process; let go when dropped.
#[derive(Debug)]
pub(super) struct ImageLock {
    file: FileKey,
    what: ImageUse,
}

/// Why an image was not locked.
pub(super) enum NotLocked {
    /// Another program does what was to be denied, or denies what was to be done.
    Others(ImageUse),
    /// There are no such locks here: a file system or server without them, a descriptor that cannot read.
    NoLocks(io::Error),
}

impl ImageLock {
    /// Takes the locks on the file of `fd`; with `force`, beside whoever has them.
    pub(super) fn take(fd: impl AsFd, what: ImageUse, force: bool) -> Result<Self, NotLocked> {
        let fd = fd.as_fd();
        let file = key_of(fd).map_err(NotLocked::NoLocks)?;
        let mut all = lock(&HELD);
        let at_file = match all.iter().position(|held| held.file == file) {
            Some(found) => found,
            None => {
                let fd = fd.try_clone_to_owned().map_err(NotLocked::NoLocks)?;
                all.push(Held { file, fd, users: Vec::new() });
                all.len() - 1
            }
        };
        let taken = all.get_mut(at_file).map_or(Ok(()), |held| held.add(what, force));
        all.retain(|held| !held.users.is_empty());
        taken.map(|()| Self { file, what })
    }
}

impl Held {
    /// As QEMU does it: first all locks, then a look at those of others, so that of two that begin at once each sees
    /// the other.
    fn add(&mut self, what: ImageUse, force: bool) -> Result<(), NotLocked> {
        for byte in what.bytes() {
            if let Err(error) = ioctl::share_byte(&self.fd, byte) {
                self.release(what);
                let is_held = matches!(Errno::from_io_error(&error), Some(Errno::AGAIN | Errno::ACCESS));
                return Err(if is_held { NotLocked::Others(what) } else { NotLocked::NoLocks(error) });
            }
        }
        let others = others_by(self.fd.as_fd());
        if !force && what.collides(others) {
            self.release(what);
            return Err(NotLocked::Others(others));
        }
        self.users.push(what);
        Ok(())
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        let mut all = lock(&HELD);
        if let Some(held) = all.iter_mut().find(|held| held.file == self.file) {
            if let Some(user) = held.users.iter().position(|user| *user == self.what) {
                held.users.swap_remove(user);
            }
            held.release(self.what);
        }
        all.retain(|held| !held.users.is_empty());
    }
}

/// What other programs do with the file of `fd`, and deny; this process does not count.
pub(super) fn of_others(fd: impl AsFd) -> ImageUse {
    let fd = fd.as_fd();
    let Ok(file) = key_of(fd) else { return ImageUse::default() };
    match lock(&HELD).iter().find(|held| held.file == file) {
        Some(held) => others_by(held.fd.as_fd()),
        None => others_by(fd),
    }
}

/// True when this process has locks on a file.
pub(super) fn is_ours(file: FileKey) -> bool {
    lock(&HELD).iter().any(|held| held.file == file)
}

/// The program that has image locks on the file of `fd`, as "qemu-nbd, process 77"; the first of several. `None` where
/// its descriptors may not be looked at.
pub(super) fn holder(fd: impl AsFd) -> Option<String> {
    locks::holder(key_of(fd.as_fd()).ok()?)
}

fn others_by(fd: BorrowedFd<'_>) -> ImageUse {
    let is_locked = |byte, len| ioctl::byte_lock_by_others(fd, byte, len).unwrap_or(false);
    // One question for the usual case: none at all.
    if !is_locked(DOES, DENIES - DOES + i64::from(ACTS)) {
        return ImageUse::default();
    }
    ImageUse::of(|byte| is_locked(byte, 1))
}

fn key_of(fd: BorrowedFd<'_>) -> io::Result<FileKey> {
    rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second program, as far as locks go: another open file description.
    fn other(file: &tempfile::NamedTempFile, bytes: &[i64]) -> std::fs::File {
        let fd = file.reopen().unwrap();
        bytes.iter().for_each(|&byte| ioctl::share_byte(&fd, byte).unwrap());
        fd
    }

    fn take(file: &tempfile::NamedTempFile, what: ImageUse) -> Result<ImageLock, ImageUse> {
        ImageLock::take(file, what, false).map_err(|not| match not {
            NotLocked::Others(others) => others,
            NotLocked::NoLocks(error) => panic!("{error}"),
        })
    }

    fn seen(file: &tempfile::NamedTempFile) -> Vec<i64> {
        let fd = file.reopen().unwrap();
        (90..310).filter(|&byte| ioctl::byte_lock_by_others(&fd, byte, 1).unwrap()).collect()
    }

    #[test]
    fn the_bytes_are_qemus() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (what, bytes) in [
            (ImageUse::SOURCE, &[100][..]),
            (ImageUse::SOURCE_ALONE, &[100, 201, 203]),
            (ImageUse::DEST, &[100, 101, 103, 201, 202, 203]),
        ] {
            let held = take(&file, what).unwrap();
            assert_eq!(seen(&file), bytes);
            drop(held);
            assert_eq!(seen(&file), [0; 0]);
        }
    }

    #[test]
    fn who_keeps_whom_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // What was seen of QEMU 10.0 (docs/notes/011-locks-of-others.md).
        let (guest, nbd, nbd_reads, convert) =
            (&[100, 101, 201, 203][..], &[100, 101, 203], &[100, 203], &[100, 201, 203]);
        let (source, alone, dest) = (ImageUse::SOURCE, ImageUse::SOURCE_ALONE, ImageUse::DEST);
        for (bytes, free) in [
            (guest, &[source][..]),
            (nbd, &[source]),
            (nbd_reads, &[source, alone]),
            (convert, &[source, alone]),
            (&[100], &[source, alone, dest]),
            // The node below a commit: nothing there is of one moment.
            (&[200], &[]),
        ] {
            let _held = other(&file, bytes);
            for what in [source, alone, dest] {
                assert_eq!(take(&file, what).is_ok(), free.contains(&what), "{bytes:?} {what:?}");
                assert!(ImageLock::take(&file, what, true).is_ok(), "forced: {bytes:?} {what:?}");
                assert_eq!(seen(&file), bytes, "nothing of ours is left");
            }
        }
    }

    #[test]
    fn one_process_does_not_keep_itself_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let second = file.reopen().unwrap();
        let alone = take(&file, ImageUse::SOURCE_ALONE).unwrap();
        let dest = ImageLock::take(&second, ImageUse::DEST, false).ok().unwrap();
        assert!(of_others(&second).is_none() && of_others(&file).is_none());
        let again = take(&file, ImageUse::DEST).unwrap();
        drop(dest);
        assert_eq!(seen(&file), [100, 101, 103, 201, 202, 203], "one of two destinations is left");
        drop(again);
        assert_eq!(seen(&file), [100, 201, 203], "the source is left");
        drop(alone);
        assert_eq!(seen(&file), [0; 0]);
    }

    #[test]
    fn a_descriptor_that_cannot_read_is_not_locked_and_that_is_no_collision() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writes = std::fs::File::options().write(true).open(file.path()).unwrap();
        let not = ImageLock::take(&writes, ImageUse::DEST, false).err();
        assert!(matches!(not, Some(NotLocked::NoLocks(_))));
        assert_eq!(seen(&file), [0; 0]);
    }
}

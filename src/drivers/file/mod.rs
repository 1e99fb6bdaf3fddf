//! A regular file as a device: any offset, any length, copies by the file system.
//!
//! Which requests go direct, which copy methods are listed and how holes are found is told, with the measurements, in
//! `docs/notes/003-file-and-block-drivers.md`.

mod blocking;
mod closes;
pub(crate) mod core;
mod evidence;
mod fresh;
mod fs;
mod holes;
pub(crate) mod medium;
mod policy;
pub(crate) mod queue;
mod statement;
mod stored;
mod transfer;
mod trial;
mod way;

pub use self::closes::Closes;
pub use self::fresh::Fresh;
pub use self::stored::{PlaceSpace, Spot, Stretch};

use self::core::{Backing, Core, Opened};
use self::fs::{Facts, Sharing};
use self::holes::Holes;
use self::queue::FdQueue;
use self::statement::Said;
use self::transfer::{CLONE_CALL_MAX, RANGE_CALL_MAX};
use super::{container, stack};
use crate::block::device::{CopyStatement, LeafSpace, resolve_plain};
use crate::block::{
    Access, ByteRange, Call, Container, Content, CopyPath, CopyRequest, Counters, Device, Error, Extent,
    Fate, Identity, Kind, LEN_MAX, LeafId, Limits, LimitsChange, Method, Queue, Resolution, Result, Scope,
    Storage,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;
use std::any::Any;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Longest copy in one request, all methods, in bytes.
const COPY_MAX: NonZeroU64 = NonZeroU64::new(1 << 30).expect("not zero");

/// Longest copy in one request by `method`, in bytes; `None`: not a method of files.
fn copy_max(method: Method) -> Option<u64> {
    match method {
        Method::Reflink => Some(CLONE_CALL_MAX),
        Method::CopyFileRange => Some(RANGE_CALL_MAX),
        _ => None,
    }
}

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileOptions {
    /// For writing as well as reading.
    pub write: bool,
    /// Made, empty, when there is none. Needs `write`.
    pub create: bool,
}

/// A regular file.
pub struct File {
    core: Arc<Core>,
    path: PathBuf,
    created: bool,
    /// What it was before anything was read from it.
    stat: Stat,
    facts: Facts,
    holes: Holes,
    storage: OnceLock<Storage>,
    container: OnceLock<Container>,
}

impl File {
    /// Opens the regular file at `path`. Its size is the one it has now; see [`File::set_len`].
    ///
    /// Never waits for a FIFO's other end and never touches what is not a regular file. Errors: `InvalidInput` for
    /// anything
    /// else than a regular file, and those of the system.
    pub fn open(path: impl AsRef<Path>, options: FileOptions) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let name = path.display().to_string();
        Self::open_named(path, name.clone(), options).map(Arc::new).map_err(|e| e.on(&name))
    }

    fn open_named(path: &Path, name: String, options: FileOptions) -> Result<Self> {
        let access = if options.write { OFlags::RDWR } else { OFlags::RDONLY };
        match look(path) {
            Ok(seen) => {
                let (fd, stat) = open_same(path, access, &seen)?;
                Ok(Self::with_stat(fd, &stat, path, name, (options.write, false)))
            }
            Err(Errno::NOENT) if options.create && options.write => {
                let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o666)).map_err(|e| {
                    if e == Errno::EXIST {
                        let text = "is a dangling symbolic link, or another program has just made it; remove it, or \
                            name the file it leads to";
                        Error::new(Kind::InvalidInput, text).because(std::io::Error::from(e))
                    } else {
                        Error::os("cannot be created", e)
                    }
                })?;
                Self::just_made(fd, path, name)
            }
            Err(error) => Err(Error::os("cannot be opened", error)),
        }
    }

    /// The regular file behind a descriptor that is open already, as what was opened at `path`.
    ///
    /// Errors: `InvalidInput` for anything else than a regular file, and those of the system.
    pub fn over(fd: OwnedFd, path: &Path, name: String, writable: bool) -> Result<Self> {
        let stat = rustix::fs::fstat(&fd).map_err(|e| Error::os("cannot stat", e))?;
        refuse_others(&stat)?;
        Ok(Self::with_stat(fd, &stat, path, name, (writable, false)))
    }

    /// A file that was made by opening it.
    fn just_made(fd: OwnedFd, path: &Path, name: String) -> Result<Self> {
        let stat = rustix::fs::fstat(&fd).map_err(|e| Error::os("cannot stat", e))?;
        Ok(Self::with_stat(fd, &stat, path, name, (true, true)))
    }

    fn with_stat(fd: OwnedFd, stat: &Stat, path: &Path, name: String, how: (bool, bool)) -> Self {
        let (writable, created) = how;
        let facts = Facts::of(&fd, stat);
        let leaf = LeafId { space: LeafSpace::File, id: (stat.st_dev, stat.st_ino) };
        let ranges = NonZeroU32::MIN;
        let mut limits = Limits::plain(NonZeroU32::MIN).with_copy(COPY_MAX, COPY_MAX, ranges);
        limits.direct_io_align = facts.direct_align;
        let core = Core::new(Opened {
            name,
            identity: Identity::Leaf { leaf, base: 0 },
            fd,
            backing: Backing::Regular,
            writable,
            limits,
            size: size_of(stat),
            fs_block_bytes: facts.block_bytes,
            is_local: facts.is_local,
            knows_no_wait: facts.knows_no_wait,
            file_system: facts.file_system,
            copies_here: facts.copies_here,
            is_ours: facts.is_ours,
            copies_what_is_stored: facts.sharing == Sharing::Yes || facts.copied_by_server,
            is_new: created,
        });
        Self {
            core: Arc::new(core),
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            created,
            stat: *stat,
            facts,
            holes: Holes::default(),
            storage: OnceLock::new(),
            container: OnceLock::new(),
        }
    }

    /// Where it was opened, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the system said of it when it was opened, before anything was read: reading changes the time of the last
    /// access.
    pub fn stat_at_open(&self) -> &Stat {
        &self.stat
    }

    /// True on a file system that is known to tell its holes and to punch them.
    pub fn is_where_holes_are(&self) -> bool {
        self.facts.has_holes
    }

    /// True when opening made it.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Makes the file `len` bytes long, on storage too, and the device with it. What is added reads as zero.
    ///
    /// Errors: `ReadOnly`, `InvalidInput` above the largest file offset, and those of the system.
    pub fn set_len(&self, len: u64) -> Result<()> {
        self.need_write()?;
        if len > LEN_MAX {
            let text = format!("{len} bytes is longer than a file can be ({LEN_MAX} bytes)");
            return Err(self.core.error(Kind::InvalidInput, text));
        }
        rustix::fs::ftruncate(&*self.core.fd, len)
            .map_err(|e| Error::os(format!("cannot be made {len} bytes long"), e).on(&self.core.name))?;
        self.core.set_size(len);
        self.holes.forget();
        Ok(())
    }

    /// Makes the file and the device longer, as [`File::set_len`] does. False: this file system makes no file longer
    /// that is not written to its new end; the device has the new length, and the file will have it once its last byte
    /// is written.
    ///
    /// Errors: as of `set_len`, such as `NoSpace`.
    pub fn grow(&self, len: u64) -> Result<bool> {
        match rustix::fs::ftruncate(&*self.core.fd, len) {
            Err(Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS)
                if self.core.writable && len <= LEN_MAX =>
            {
                self.core.set_size(len);
                Ok(false)
            }
            // Once more, for the words.
            _ => self.set_len(len).map(|()| true),
        }
    }

    /// Has the file system do what it does when the file is closed: some say only then that what was written is lost.
    ///
    /// Errors: those of `close`; nothing written through this handle is known to be good then.
    pub fn close_checked(&self) -> Result<()> {
        let direct = self.core.direct_if_open();
        for fd in [Some(&self.core.fd), direct].into_iter().flatten() {
            self.core.closes.note(crate::sys::close::close_a_copy(&***fd));
        }
        self.core.closes.check(&self.core.name).inspect_err(|_| self.core.poison())
    }

    /// What the closes of this opening answer, to be asked when the last user of it is gone.
    pub fn closes(&self) -> Arc<Closes> {
        self.core.closes.clone()
    }

    /// Its length now, which another program may have changed since it was opened.
    pub fn len_now(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&*self.core.fd);
        stat.map(|s| size_of(&s)).map_err(|e| Error::os("cannot stat", e).on(&self.core.name))
    }

    /// Sets its permission bits: of the file that was opened, whatever its name means by now.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        rustix::fs::fchmod(&*self.core.fd, Mode::from_raw_mode(mode & 0o7777))
            .map_err(|e| Error::os("its mode cannot be set", e).on(&self.core.name))
    }

    /// Sets its times of last access and last change of contents.
    pub fn set_times(&self, times: &rustix::fs::Timestamps) -> Result<()> {
        rustix::fs::futimens(&*self.core.fd, times)
            .map_err(|e| Error::os("its times cannot be set", e).on(&self.core.name))
    }

    /// Makes the file's mode and times durable.
    pub fn sync_all(&self) -> Result<()> {
        rustix::fs::fsync(&*self.core.fd).map_err(|e| Error::os("cannot be synced", e).on(&self.core.name))
    }

    /// Makes the file's name durable: `fsync` of the folder it lies in.
    pub fn sync_parent(&self) -> Result<()> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(parent, flags, Mode::empty()).and_then(rustix::fs::fsync).map_err(|e| {
            Error::os(format!("folder {} cannot be synced", parent.display()), e).on(&self.core.name)
        })
    }

    /// Kept by this kernel alone, not by a server or another program.
    pub(crate) fn is_local(&self) -> bool {
        self.facts.is_local
    }

    /// Its file system has no medium below the page cache: no page of it ever gets clean.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.facts.in_memory
    }

    /// A lease on it tells of every writer there can be: no server, and no other file system over or below it.
    pub(crate) fn leases_tell(&self) -> bool {
        self.facts.leases_tell
    }

    /// The descriptor through the page cache.
    pub(crate) fn fd(&self) -> &Arc<OwnedFd> {
        &self.core.fd
    }

    fn need_write(&self) -> Result<()> {
        if self.core.writable {
            return Ok(());
        }
        Err(self.core.error(Kind::ReadOnly, "opened for reading only"))
    }
}

impl AsFd for File {
    /// The descriptor through the page cache, for what is asked of the file itself and not of its bytes.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.fd.as_fd()
    }
}

impl Device for File {
    fn name(&self) -> &str {
        &self.core.name
    }
    fn identity(&self) -> Identity {
        self.core.identity
    }
    fn size(&self) -> u64 {
        self.core.size()
    }
    fn read_only(&self) -> bool {
        !self.core.writable
    }
    fn limits(&self) -> Limits {
        self.core.limits.get()
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.core.limits.change(change).map_err(|e| e.on(&self.core.name))
    }

    /// Size, modification and change time, read anew and hashed: the same in every process.
    fn generation(&self) -> u64 {
        if !self.facts.is_local
            && let Some(number) = generation_at_server(&self.core.fd)
        {
            return number;
        }
        match rustix::fs::fstat(&*self.core.fd) {
            Ok(stat) => generation_of(&stat),
            Err(_) => {
                // Nothing is known, so it must differ from every number seen before.
                static UNKNOWN: AtomicU64 = AtomicU64::new(0);
                UNKNOWN.fetch_add(1, Ordering::Relaxed)
            }
        }
    }

    fn copy_paths(&self) -> Vec<CopyPath> {
        let scope = Scope::FileSystem(self.facts.file_system);
        let reflink = CopyPath {
            method: Method::Reflink,
            scope,
            align: self.facts.block_bytes,
            tail_at_eof: true,
            max_bytes: CLONE_CALL_MAX,
            carries_holes: true,
            preferred: true,
            fate: Fate::Shared,
        };
        let range = CopyPath {
            method: Method::CopyFileRange,
            scope,
            align: 1,
            tail_at_eof: false,
            max_bytes: RANGE_CALL_MAX,
            carries_holes: false,
            // Where nobody but this kernel moves the bytes it is an in-kernel splice: measured no faster than reading
            // and writing, and it leaves both files in the page cache.
            preferred: self.facts.copied_by_server,
            fate: if self.facts.copies_here { Fate::ThroughKernel } else { Fate::Unknown },
        };
        match self.facts.sharing {
            Sharing::Yes => vec![reflink, range],
            Sharing::No => vec![range],
        }
    }

    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        let dyn_self: &dyn Device = self;
        dyn_self.check_range(range)?;
        if range.is_empty() {
            return Ok(Extent { len: 0, content: Content::Data });
        }
        let (content, end) = self.holes.at(&self.core, range).map_err(|e| e.on(&self.core.name).at(range))?;
        Ok(Extent { len: end.min(range.end()) - range.offset(), content })
    }

    /// Where its file system is not known to: when it has told of one.
    fn tells_holes(&self) -> bool {
        self.facts.has_holes || self.size() == 0 || self.holes.any(&self.core)
    }

    fn zeroes_cheaply(&self) -> bool {
        self.facts.has_holes
    }

    fn open_medium(self: Arc<Self>) -> Result<crate::block::Medium> {
        medium::open(&self.core)
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        Ok(Box::new(FdQueue::open(self.core.clone(), source_of)?))
    }
    fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        counters.calls[Call::Lseek as usize] = self.holes.seeks();
        counters
    }
    fn allocated_bytes(&self) -> Option<u64> {
        stack::allocated_bytes(&*self.core.fd)
    }
    fn copy_statement(&self) -> Option<CopyStatement> {
        let said = if self.facts.is_ours { Said::of(&*self.core.fd) } else { None };
        said.map(|said| CopyStatement { fates: said.fates(), is_here: true })
    }
    fn container(&self) -> Option<Container> {
        Some(self.container.get_or_init(|| container::of_file(&*self.core.fd)).clone())
    }
    fn storage(&self) -> Storage {
        let ask = || match rustix::fs::fstat(&*self.core.fd) {
            Ok(stat) => stack::of_file(&*self.core.fd, &stat, &self.path),
            Err(_) => Storage::default(),
        };
        let known = |storage: Storage| match self.container() {
            Some(container) => storage.and_known_as(None, container.generation()),
            None => storage,
        };
        self.storage.get_or_init(|| known(ask())).clone()
    }
    fn drop_cache(&self) {
        self.core.drop_pages(ByteRange::to(self.core.size()));
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn source_of(copy: &CopyRequest) -> Option<&Arc<Core>> {
    copy.source.as_any().downcast_ref::<File>().map(|file| &file.core)
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// The generation of a file with these times and this size.
pub(crate) fn generation_of(stat: &Stat) -> u64 {
    generation_from([
        i128::from(stat.st_size),
        i128::from(stat.st_mtime),
        i128::from(stat.st_mtime_nsec),
        i128::from(stat.st_ctime),
        i128::from(stat.st_ctime_nsec),
    ])
}

/// The same as its server has it now, past what this kernel remembers of it; `None` where it cannot be asked so.
fn generation_at_server(fd: &OwnedFd) -> Option<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let stat = rustix::fs::statx(fd, c"", flags, StatxFlags::BASIC_STATS).ok()?;
    Some(generation_from([
        i128::from(stat.stx_size),
        i128::from(stat.stx_mtime.tv_sec),
        i128::from(stat.stx_mtime.tv_nsec),
        i128::from(stat.stx_ctime.tv_sec),
        i128::from(stat.stx_ctime.tv_nsec),
    ]))
}

fn generation_from(numbers: [i128; 5]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    let mut front = [0; 8];
    front.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(front)
}

/// Looks at what `path` names without opening it for I/O: no FIFO waits, no device notices.
pub(crate) fn look(path: &Path) -> Result<Stat, Errno> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fstat(&fd)
}

/// Opens the regular file that was seen at `path`.
fn open_same(path: &Path, mut access: OFlags, seen: &Stat) -> Result<(OwnedFd, Stat)> {
    refuse_others(seen)?;
    // Another thing may have taken the name since: not waiting keeps even a FIFO harmless until it is looked at again.
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        // A file that may be written and not read: a copy to it only writes.
        Err(Errno::ACCESS | Errno::PERM) if access == OFlags::RDWR => {
            access = OFlags::WRONLY;
            rustix::fs::open(path, flags & !OFlags::RWMODE | access, Mode::empty())
        }
        opened => opened,
    };
    let fd = fd.map_err(|error| match error {
        Errno::AGAIN => Error::new(
            Kind::InUse,
            "another program holds a lease on the file; end that program, or open it for reading only",
        )
        .because(std::io::Error::from(error)),
        error => Error::os("cannot be opened", error),
    })?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| Error::os("cannot stat", e))?;
    refuse_others(&stat)?;
    rustix::fs::fcntl_setfl(&fd, access).map_err(|e| Error::os("cannot be set up", e))?;
    Ok((fd, stat))
}

/// Refuses everything but regular files, in words.
fn refuse_others(stat: &Stat) -> Result<()> {
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "is a folder",
        FileType::Fifo => "is a FIFO (a pipe)",
        FileType::Socket => "is a socket",
        FileType::CharacterDevice => "is a character device (e.g. a terminal or /dev/zero)",
        FileType::BlockDevice => return Err(Error::new(Kind::InvalidInput, "is a block device, not a file")),
        _ => "is neither a file nor a block device",
    };
    Err(Error::new(Kind::InvalidInput, format!("{what}; blkcopy copies regular files and block devices")))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod way_tests;

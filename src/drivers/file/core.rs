//! What file and block-device queues share: the descriptors, the size, and what is known to work on them.

use super::closes::{Closes, Closing};
use super::evidence::Looks;
use super::policy::{self, After, Ask, Choice, Residency};
use super::way::{self, Direct};
use crate::block::device::{LeafSpace, check_range};
use crate::block::limits::LimitsCell;
use crate::block::way::{Entry, Gate, Need, Passed, Span, Way};
use crate::block::{ByteRange, Error, Identity, Kind, LEN_MAX, LeafId, Limits, Method, Op, Request, Result};
use crate::reactor::helpers::{self, Helpers};
use crate::sys::{aligned::PAGE, ioctl};
use rustix::fs::OFlags;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Page size in bytes, for the page cache's arithmetic.
const PAGE_BYTES: u64 = PAGE as u64;

/// What is behind the descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backing {
    /// A regular file; requests may have any offset and length.
    Regular,
    /// A block device; requests are whole logical blocks and go direct whenever that works.
    Block,
}

/// An open file or block device: shared by its device and all queues on it.
pub(crate) struct Core {
    /// The name a user would recognise.
    pub(crate) name: String,
    pub(crate) identity: Identity,
    /// The descriptor through the page cache; the only one ever used for copies, allocation and unaligned requests.
    pub(crate) fd: Closing,
    /// What their closes answered.
    pub(super) closes: Arc<Closes>,
    pub(crate) backing: Backing,
    pub(crate) writable: bool,
    pub(crate) limits: LimitsCell,
    /// Who makes the calls to it that may wait.
    pub(crate) helpers: Arc<Helpers>,
    /// Logical block in bytes.
    pub(crate) block_size: u32,
    /// Alignment of direct I/O in bytes; `None`: not offered.
    pub(crate) direct_align: Option<u32>,
    /// One for all handles of the leaf.
    pub(super) gate: Arc<Gate>,
    /// Alignment from which on zeroing touches whole cached pages and blocks only, in bytes.
    zero_align: u64,
    /// Kept by this kernel alone, so that another open of it costs little and sees each lost write.
    pub(super) is_local: bool,
    /// Copies by the kernel take what is stored.
    pub(super) copies_what_is_stored: bool,
    /// Number of the mounted file system: places of two files can be compared where it is the same.
    pub(super) file_system: u64,
    /// What the kernel copies between two such files and does not share passes through it.
    pub(super) copies_here: bool,
    /// A file of a mount of ours.
    pub(super) is_ours: bool,
    /// What was seen of copies onto it.
    pub(super) looks: Looks,
    size: AtomicU64,
    direct: OnceLock<Option<Closing>>,
    cachestat_off: AtomicBool,
    poisoned: AtomicBool,
}

/// What a driver found out when it opened.
pub(crate) struct Opened {
    pub(crate) name: String,
    pub(crate) identity: Identity,
    pub(crate) fd: OwnedFd,
    pub(crate) backing: Backing,
    pub(crate) writable: bool,
    pub(crate) limits: Limits,
    /// In bytes.
    pub(crate) size: u64,
    /// Block of the file system in bytes (of a device: the logical block).
    pub(crate) fs_block_bytes: u64,
    /// Kept by this kernel alone, not by a server or another program.
    pub(crate) is_local: bool,
    /// Reads and writes can be asked not to wait; `None`: to be found out.
    pub(crate) knows_no_wait: Option<bool>,
    /// Copies by the kernel take what is stored, holes as holes: extents are shared, or a server copies.
    pub(crate) copies_what_is_stored: bool,
    /// Number of the mounted file system.
    pub(crate) file_system: u64,
    /// What the kernel copies between two such files and does not share passes through it.
    pub(crate) copies_here: bool,
    /// A file of a mount of ours.
    pub(crate) is_ours: bool,
    /// Made just now: nothing of it is cached.
    pub(crate) is_new: bool,
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.writable {
            self.gate.remove_writer();
            let Passed { direct, cached, switches, waited } = self.gate.passed();
            tracing::debug!(device = %self.name, direct, cached, switches, waited, "requests through the page cache \
                and direct");
        }
    }
}

/// False for a file whose reads and writes cannot be asked not to wait: a ring would ask its server (FUSE) or make the
/// thread that submits wait.
fn knows_no_wait(fd: &OwnedFd) -> bool {
    let mut byte = [0; 1];
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    // Past the end of any file: nothing is read, and the server of a FUSE file is not asked.
    let read = rustix::io::preadv2(fd, &mut [std::io::IoSliceMut::new(&mut byte)], LEN_MAX - 1, flags);
    read != Err(rustix::io::Errno::OPNOTSUPP)
}

impl Core {
    pub(crate) fn new(opened: Opened) -> Self {
        let helpers = helpers::of(opened.identity, &opened.name);
        if !opened.knows_no_wait.unwrap_or_else(|| knows_no_wait(&opened.fd)) {
            helpers.keep_off_ring();
        }
        let leaf = match opened.identity {
            Identity::Leaf { leaf, .. } => leaf,
            // Not of this driver.
            _ => LeafId { space: LeafSpace::File, id: (u64::MAX, u64::MAX) },
        };
        let gate = way::gate_of(leaf);
        if opened.writable {
            gate.add_writer();
            if opened.is_new {
                gate.assume_clean();
            }
        }
        let align = opened.limits.direct_io_align.map_or(1, |a| u64::from(a.get()));
        let closes = Arc::default();
        let core = Self {
            helpers,
            gate,
            zero_align: match opened.backing {
                Backing::Regular => align.max(PAGE_BYTES).max(opened.fs_block_bytes),
                Backing::Block => 1,
            },
            is_local: opened.is_local,
            copies_what_is_stored: opened.copies_what_is_stored,
            file_system: opened.file_system,
            copies_here: opened.copies_here,
            is_ours: opened.is_ours,
            looks: Looks::default(),
            name: opened.name,
            identity: opened.identity,
            fd: Closing::new(opened.fd, &closes),
            closes,
            backing: opened.backing,
            writable: opened.writable,
            block_size: opened.limits.block_size.get(),
            direct_align: opened.limits.direct_io_align.map(std::num::NonZeroU32::get),
            limits: LimitsCell::new(opened.limits),
            size: AtomicU64::new(opened.size),
            direct: OnceLock::new(),
            cachestat_off: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
        };
        // Now, when its server has answered just before, and not by a queue, whose thread may not wait for it.
        core.direct();
        core
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// After a failed flush the kernel has marked the lost pages clean: nothing written here can be trusted any more.
    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Refuses what cannot be served here at all.
    pub(crate) fn admit(&self, request: &Request) -> Result<()> {
        if self.is_poisoned() {
            let text =
                "a flush failed earlier, so written data may be lost; reopen the device and write it again";
            return Err(self.error(Kind::Poisoned, text));
        }
        let op = request.op();
        if let Some(range) = op.range() {
            check_range(range, self.size(), self.block_size).map_err(|e| e.on(&self.name))?;
            if let Op::Read { buf, .. } | Op::Write { buf, .. } | Op::Compare { buf, .. } = op
                && buf.len() as u64 != range.len()
            {
                let text = format!("the buffer holds {} bytes, the range {}", buf.len(), range.len());
                return Err(self.error(Kind::InvalidInput, text).at(range));
            }
        }
        if op.is_write() && !self.writable {
            return Err(self.error(Kind::ReadOnly, "opened for reading only"));
        }
        Ok(())
    }

    /// An error on this device.
    pub(crate) fn error(&self, kind: Kind, message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(kind, message).on(&self.name)
    }

    /// The O_DIRECT descriptor, opened at first use. `None`: there is no direct I/O here.
    fn direct_fd(&self) -> Option<&Closing> {
        self.direct_align?;
        if !self.gate.may_go_direct() {
            return None;
        }
        self.direct.get_or_init(|| self.open_direct()).as_ref()
    }

    /// Direct I/O here. `None`: there is none.
    pub(super) fn direct(&self) -> Option<Direct> {
        let fd = Arc::clone(self.direct_fd()?);
        Some(Direct { fd, align: self.direct_align?.into() })
    }

    /// The O_DIRECT descriptor, if anything was done through it.
    pub(crate) fn direct_if_open(&self) -> Option<&Closing> {
        self.direct.get().and_then(Option::as_ref)
    }

    fn open_direct(&self) -> Option<Closing> {
        match self.open_again(OFlags::DIRECT) {
            Ok(fd) => Some(Closing::new(fd, &self.closes)),
            Err(error) => {
                tracing::info!(device = %self.name, %error, "no direct I/O: through the page cache instead");
                None
            }
        }
    }

    fn open_again(&self, more: OFlags) -> rustix::io::Result<OwnedFd> {
        let access = if self.writable { OFlags::RDWR } else { OFlags::RDONLY };
        // The magic link opens the very same inode, whatever has become of the path.
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        rustix::fs::open(path, access | more | OFlags::CLOEXEC, rustix::fs::Mode::empty())
    }

    /// A descriptor for one queue's flushes. The kernel tells of a lost write once through each open of a file, so of
    /// two flushes through one the second may be told that all is well.
    ///
    /// `None`: the shared descriptor has to do.
    pub(super) fn open_for_flushes(&self) -> Option<Closing> {
        if !(self.writable && self.is_local) {
            return None;
        }
        let fd = self.open_again(OFlags::empty());
        let told = |error| tracing::debug!(device = %self.name, %error, "cannot be opened again");
        fd.map_err(told).ok().map(|fd| Closing::new(fd, &self.closes))
    }

    /// What a request asks of the gate, and what is left to do with the cache if it goes through that.
    pub(super) fn entry(&self, op: &Op) -> (Entry, After) {
        let range = op.range().unwrap_or_default();
        let direct = self.direct_fd().is_some();
        let mut after = After::Nothing;
        let mut entry = Entry { need: Need::Cached, likes: Way::Cached, write: None };
        match op {
            Op::Read { .. } | Op::Compare { .. } => {
                if direct {
                    entry.need = Need::Either;
                    entry.likes = Way::Direct;
                }
                // While nothing here writes the leaf, the cache decides.
                if self.backing == Backing::Regular && (!direct || self.gate.is_free()) {
                    let choice = self.choose(range, direct);
                    after = choice.after;
                    entry.likes = if choice.direct { Way::Direct } else { Way::Cached };
                }
            }
            Op::Write { .. } => {
                let align = self.direct_align.map_or(1, u64::from);
                let span = Span::of(range, align);
                // The last bytes of a file that ends inside a block go through the cache: a whole block would make it
                // longer.
                if direct && span.whole().end() <= self.size() {
                    entry.need = Need::Either;
                }
                entry.write = Some(span);
                if self.backing == Backing::Regular && policy::wants_residency(range.len()) {
                    after = After::Grew;
                }
            }
            Op::WriteZeroes { .. } | Op::Discard { .. } => {
                if direct && range.is_aligned(self.zero_align) {
                    entry.need = Need::Neutral;
                }
                entry.write = Some(Span::of(range, 1));
            }
            Op::Copy(copy) => {
                // Sharing extents writes the cache out and drops it by itself.
                if direct && copy.method == Method::Reflink {
                    entry.need = Need::Neutral;
                }
                entry.write = Some(Span::of(range, 1));
            }
            Op::Flush => {}
        }
        (entry, after)
    }

    /// Chooses the way of a read by what is cached of it.
    fn choose(&self, range: ByteRange, direct: bool) -> Choice {
        // Whole pages, so that no page is cached by halves.
        let unit = self.direct_align.map_or(1, u64::from).max(PAGE_BYTES);
        let residency =
            if policy::wants_residency(range.len()) { self.residency(range) } else { Residency::Unknown };
        let direct_fits = direct && range.is_aligned(unit);
        policy::choose(Ask { len: range.len(), direct_fits, residency })
    }

    fn residency(&self, range: ByteRange) -> Residency {
        if self.cachestat_off.load(Ordering::Relaxed) {
            return Residency::Unknown;
        }
        match ioctl::cachestat(&*self.fd, range.offset(), range.len()) {
            Ok(stat) => {
                let pages = range.end().div_ceil(PAGE_BYTES) - range.offset() / PAGE_BYTES;
                Residency::of(stat.cached, pages)
            }
            Err(_) => {
                // ENOSYS before Linux 6.5, EPERM for a reader without rights: the answer will not change.
                self.cachestat_off.store(true, Ordering::Relaxed);
                Residency::Unknown
            }
        }
    }

    /// Drops clean cached pages of `range`: best effort, whole pages only.
    pub(crate) fn drop_pages(&self, range: ByteRange) {
        let Some(len) = std::num::NonZeroU64::new(range.len()) else { return };
        let advice = rustix::fs::Advice::DontNeed;
        if let Err(error) = rustix::fs::fadvise(self.fd.as_fd(), range.offset(), Some(len), advice) {
            tracing::debug!(device = %self.name, %error, "pages not dropped");
        }
    }
}

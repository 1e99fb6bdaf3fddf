//! What file and block-device queues share: the descriptors, the size, and what is known to work on them.

use super::policy::{self, Ask, Choice, Residency};
use crate::block::device::check_range;
use crate::block::limits::LimitsCell;
use crate::block::{ByteRange, Error, Identity, Kind, Limits, Op, Request, Result};
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
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) backing: Backing,
    pub(crate) writable: bool,
    pub(crate) limits: LimitsCell,
    /// Who makes the calls to it that may wait.
    pub(crate) helpers: Arc<Helpers>,
    /// Logical block in bytes.
    pub(crate) block_size: u32,
    /// Alignment of direct I/O in bytes; `None`: not offered.
    pub(crate) direct_align: Option<u32>,
    size: AtomicU64,
    direct: OnceLock<Option<Arc<OwnedFd>>>,
    direct_off: AtomicBool,
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
}

/// False for a file whose reads and writes cannot be asked not to wait: a ring would ask its server (FUSE) or make the thread
/// that submits wait.
fn knows_no_wait(fd: &OwnedFd) -> bool {
    let mut byte = [0; 1];
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    let read = rustix::io::preadv2(fd, &mut [std::io::IoSliceMut::new(&mut byte)], 0, flags);
    read != Err(rustix::io::Errno::OPNOTSUPP)
}

impl Core {
    pub(crate) fn new(opened: Opened) -> Self {
        let helpers = helpers::of(opened.identity, &opened.name);
        if !knows_no_wait(&opened.fd) {
            helpers.keep_off_ring();
        }
        Self {
            helpers,
            name: opened.name,
            identity: opened.identity,
            fd: Arc::new(opened.fd),
            backing: opened.backing,
            writable: opened.writable,
            block_size: opened.limits.block_size.get(),
            direct_align: opened.limits.direct_io_align.map(std::num::NonZeroU32::get),
            limits: LimitsCell::new(opened.limits),
            size: AtomicU64::new(opened.size),
            direct: OnceLock::new(),
            direct_off: AtomicBool::new(false),
            cachestat_off: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
        }
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

    /// Direct I/O failed where it should not have: everything is buffered from now on.
    pub(crate) fn give_up_direct(&self) {
        self.direct_off.store(true, Ordering::Relaxed);
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
    pub(crate) fn direct(&self) -> Option<&Arc<OwnedFd>> {
        self.direct_align?;
        if self.direct_off.load(Ordering::Relaxed) {
            return None;
        }
        self.direct.get_or_init(|| self.open_direct()).as_ref()
    }

    fn open_direct(&self) -> Option<Arc<OwnedFd>> {
        let access = if self.writable { OFlags::RDWR } else { OFlags::RDONLY };
        // The magic link opens the very same inode, whatever has become of the path.
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let fd = rustix::fs::open(path, access | OFlags::DIRECT | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        match fd {
            Ok(fd) => Some(Arc::new(fd)),
            Err(error) => {
                tracing::info!(device = %self.name, %error, "no direct I/O: through the page cache instead");
                None
            }
        }
    }

    /// Chooses the way of a read or write, and hands out the descriptor that goes with it.
    pub(crate) fn choose(&self, range: ByteRange, write: bool) -> (Choice, &Arc<OwnedFd>) {
        let unit = match self.backing {
            // Whole pages: no page is ever written both ways at once.
            Backing::Regular => u64::from(self.direct_align.unwrap_or(1)).max(PAGE_BYTES),
            Backing::Block => u64::from(self.direct_align.unwrap_or(1)),
        };
        let direct = if range.is_aligned(unit) { self.direct() } else { None };
        if self.backing == Backing::Block {
            let after = policy::After::Nothing;
            return match direct {
                Some(fd) => (Choice { direct: true, after }, fd),
                None => (Choice { direct: false, after }, &self.fd),
            };
        }
        let residency =
            if policy::wants_residency(range.len()) { self.residency(range) } else { Residency::Unknown };
        let choice =
            policy::choose(Ask { write, len: range.len(), direct_fits: direct.is_some(), residency });
        match direct {
            Some(fd) if choice.direct => (choice, fd),
            _ => (choice, &self.fd),
        }
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

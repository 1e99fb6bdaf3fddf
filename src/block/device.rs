//! The `Device` and `Queue` traits: what every driver, map, fault injector and tracer is.

use super::lazy::LazyZeroes;
use super::storage::{Storage, Stored};
use super::{
    Access, ByteRange, Completion, Container, Counters, Error, Evidence, Fate, Fates, Guard, Kind, Leg,
    Limits, LimitsChange, Piece, Request, Resolution, Result,
};
use num_integer::Integer as _;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// Something that holds blocks. Shared between threads; I/O goes through a [`Queue`] per thread.
pub trait Device: Send + Sync + 'static {
    /// The name a user would recognise: path, URL or role.
    fn name(&self) -> &str;

    /// Who it is, the same through every name and every handle.
    fn identity(&self) -> Identity;

    /// Size in bytes now; at most [`super::LEN_MAX`], a multiple of the block size.
    fn size(&self) -> u64;

    /// True when every write is refused.
    fn read_only(&self) -> bool {
        false
    }

    /// Limits in force: one consistent set.
    fn limits(&self) -> Limits;

    /// Changes soft limits. Copies already planned keep the limits they were planned with.
    fn change_limits(&self, change: LimitsChange) -> Result<Limits>;

    /// A number that differs whenever contents or mapping may have changed by other hands since it was read (size and
    /// times for a file, table generation for a map). Equal numbers are a hint, not a proof.
    fn generation(&self) -> u64 {
        0
    }

    /// The ways this device can take part in a copy, best first. Two leaves can use a method when both list it with
    /// the same [`Scope`].
    fn copy_paths(&self) -> Vec<CopyPath> {
        Vec::new()
    }

    /// What lies at the front of `range`: the longest run from its offset known to be of one kind, never empty for a
    /// non-empty range and never longer than it. Costs at most a few system calls.
    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        Ok(Extent { len: range.len(), content: Content::Data })
    }

    /// True when [`Device::next_extent`] tells what was never stored from what was: what it calls data was stored as
    /// data. False: it calls nearly all of it data, and zeroes that nothing stores may be among it.
    ///
    /// Of a leaf. Costs at most a few system calls.
    fn tells_holes(&self) -> bool {
        false
    }

    /// True when zeroing a range ([`super::Op::WriteZeroes`] that may unmap) sends no bytes: it lets go of storage, or
    /// the device writes the zeroes by itself.
    ///
    /// Of a leaf. Costs at most a few system calls.
    fn zeroes_cheaply(&self) -> bool {
        false
    }

    /// Where `range` lives: leaves, and a guard that pins the mapping. A plain device resolves to itself.
    ///
    /// With [`Access::Write`] every leg of a piece must be written; with [`Access::Read`] there is one leg. The caller
    /// takes range locks on the leaves, then asks [`Guard::still_valid`], and after a write calls [`Guard::commit`].
    fn resolve(self: Arc<Self>, range: ByteRange, access: Access) -> Result<Resolution>;

    /// A queue for the calling thread, served by that thread's reactor.
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>>;

    /// The devices it is made of; none for a leaf.
    fn legs(&self) -> &[Arc<dyn Device>] {
        &[]
    }

    /// A leaf's zeroes that are not stored yet. `None`: it stores each at once. Of a map, ask [`super::lazy`].
    fn lazy_zeroes(&self) -> Option<&dyn LazyZeroes> {
        None
    }

    /// What its bytes are stored in, down to the disks as far as the system tells: for comparing devices whose leaves
    /// differ.
    ///
    /// May ask the system, the first time; not for the path of a request.
    fn storage(&self) -> Storage {
        match self.identity() {
            Identity::Leaf { leaf, base } => {
                Storage::at(Stored::new(leaf, self.name(), Storage::default()), base, self.size())
            }
            Identity::Map(_) => Storage::default(),
        }
    }

    /// What its bytes are bound to: what names that survive a restart are made of. `None`: its own name must do,
    /// because its bytes are the same in every process.
    fn container(&self) -> Option<Container> {
        None
    }

    /// Why the way to it was lost, each time since it was opened: of a device on another machine. At most
    /// [`LOSSES_MAX`].
    fn losses(&self) -> Vec<String> {
        Vec::new()
    }

    /// What the machine behind it says became of the bytes of all copies that were made through this handle's
    /// connection: of a device that is served by another process. May wait for about a second. `None`: it does not say.
    fn copy_statement(&self) -> Option<CopyStatement> {
        None
    }

    /// How often what was written here and not flushed may have been lost without any request having failed: a target
    /// that lost power with its volatile cache, say, and was connected to again. The number only grows. `None`: it
    /// cannot be lost so, for what this machine keeps goes only with this process.
    fn cache_losses(&self) -> Option<u64> {
        None
    }

    /// Bytes of storage it takes; `None`: as many as its size.
    fn allocated_bytes(&self) -> Option<u64> {
        None
    }

    /// True when looking at it ([`Device::next_extent`], [`Device::allocated_bytes`]) may wait for storage, a file
    /// server or a network: then a thread that serves others has it looked at elsewhere (`reactor::away`).
    fn may_wait(&self) -> bool {
        true
    }

    /// Where all copies of `range` lie that a read of it may be served from: on a mirror each leg that is up to date.
    /// `None`: here. Asked by [`copies_of`], when nothing is written any more.
    fn copies(&self, _range: ByteRange) -> Option<Vec<super::CopyAt>> {
        None
    }

    /// How what lies on a leaf can be read back, whatever the system caches of it. Not for a map: ask where its bytes
    /// are stored.
    fn open_medium(self: Arc<Self>) -> Result<Medium> {
        Ok(Medium::Own)
    }

    /// Lets go of what the system caches of it, so that the next reads come from the device. Best effort.
    fn drop_cache(&self) {}

    /// What slow paths outside any queue did (seeks, opens).
    fn counters(&self) -> Counters {
        Counters::default()
    }

    /// For a driver to find its own kind behind [`super::CopyRequest::source`]. A device that is another one, seen
    /// through (not a map), may give that one's.
    fn as_any(&self) -> &dyn Any;
}

/// What a server says of the copies it made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyStatement {
    /// What became of all bytes so far, as seen from the server.
    pub fates: Fates,
    /// The server runs on this machine.
    pub is_here: bool,
}

impl CopyStatement {
    /// What became of `bytes` bytes that were copied between `before` and this, as seen from this machine. `None`: it
    /// cannot be told, such as when other copies were made in the meantime.
    pub fn since(&self, before: &Self, bytes: u64) -> Option<Fates> {
        let mut fates = Fates::default();
        for fate in Fate::ALL {
            let more = self.fates.bytes(fate).checked_sub(before.fates.bytes(fate))?;
            // What another machine did with them did not cross this one.
            let seen = if self.is_here || matches!(fate, Fate::Shared | Fate::NoData) {
                fate
            } else {
                Fate::MovedElsewhere
            };
            fates.add(seen, Evidence::Statement, more);
        }
        (fates.total() == bytes).then_some(fates)
    }
}

/// Most losses of a connection kept one by one.
pub const LOSSES_MAX: usize = 1000;

impl dyn Device {
    /// Checks that a request's range is legal here: aligned to the block size and inside the device.
    pub fn check_range(&self, range: ByteRange) -> Result<()> {
        check_range(range, self.size(), self.limits().block_size.get())
            .map_err(|e| e.on(self.name()).at(range))
    }
}

/// How the bytes on a leaf are read back.
pub enum Medium {
    /// By its own queue: no cache of this system lies in between (memory; a namespace, for which its target answers).
    Own,
    /// By this queue, which reads past the cache and does nothing else.
    Direct {
        /// Serves reads only.
        queue: Box<dyn Queue>,
        /// Bytes of its reads that the cache may have answered all the same.
        cached: Arc<std::sync::atomic::AtomicU64>,
    },
    /// Through the system's cache only.
    Cached,
}

/// Where all copies of a range of `device` lie, on its leaves.
pub fn copies_of(device: &Arc<dyn Device>, range: ByteRange) -> Vec<super::CopyAt> {
    let here = || vec![super::CopyAt { range, leg: Leg { device: device.clone(), offset: range.offset() } }];
    device.copies(range).unwrap_or_else(here)
}

/// Checks a range against a size in bytes and a block size in bytes.
pub fn check_range(range: ByteRange, size: u64, block_size: u32) -> Result<()> {
    if !range.is_aligned(u64::from(block_size)) {
        return Err(Error::new(
            Kind::Misaligned,
            format!("offset and length must be multiples of the block size ({block_size} bytes)"),
        )
        .at(range));
    }
    if range.end() > size {
        return Err(Error::new(
            Kind::OutOfRange,
            format!("the range ends at byte {}, past the end of the device ({size} bytes)", range.end()),
        )
        .at(range));
    }
    Ok(())
}

/// The resolution of a plain device: itself, no duties.
pub fn resolve_plain(device: Arc<dyn Device>, range: ByteRange) -> Result<Resolution> {
    device.check_range(range)?;
    let leg = Leg { device, offset: range.offset() };
    Ok(Resolution { pieces: smallvec::smallvec![Piece::new(range.len(), leg)], guard: Guard::none() })
}

/// One thread's way to a device. Belongs to that thread and is served by its reactor.
pub trait Queue {
    /// Takes requests from the front of `batch`; what it has no room for stays there.
    fn submit(&mut self, batch: &mut VecDeque<Request>);

    /// Moves what has completed to `done`, without waiting. Each submitted request completes exactly once, in any
    /// order.
    fn poll(&mut self, done: &mut Vec<Completion>);

    /// What this queue has done so far.
    fn counters(&self) -> Counters;
}

/// Number of a canonical leaf: what range locks and overlap checks compare.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LeafId {
    /// Which space `id` is a number of.
    pub space: LeafSpace,
    /// Number within the space.
    pub id: (u64, u64),
}

/// The spaces leaf numbers come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum LeafSpace {
    /// (device number of the file system, inode).
    File,
    /// (device number of the whole disk, 0).
    Disk,
    /// (process-wide serial, 0): memory and test devices.
    Memory,
    /// NVMe namespaces: a digest of what the namespace calls itself, the same through every address and controller.
    /// Equal numbers prove nothing by themselves: a cloned box says what the first one does. see
    /// [`super::places::is_one_device`].
    Namespace,
    /// What is behind disks that say so: the unit with a name (WWID), a volume of a thin pool. No device is such a leaf
    /// itself.
    Unit,
}

/// Who a device is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Identity {
    /// A leaf: byte 0 of the device is byte `base` of the leaf (not 0 for a partition).
    Leaf {
        /// Canonical leaf.
        leaf: LeafId,
        /// Offset of the device's first byte within it, in bytes.
        base: u64,
    },
    /// A map over others: resolve it to find the leaves.
    Map(u64),
}

impl LeafId {
    /// A fresh leaf number for a device that exists in this process only.
    pub fn fresh() -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { space: LeafSpace::Memory, id: (NEXT.fetch_add(1, Ordering::Relaxed), 0) }
    }
}

/// How bytes get from source to destination. Their numbers stand in plan digests: a new one comes last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Method {
    /// Nothing to do: both sides are known to read as zero.
    Skip,
    /// The source is a hole: the destination is zeroed.
    WriteZeroes,
    /// `ioctl(FICLONERANGE)`: the file system shares the extents.
    Reflink,
    /// `copy_file_range`: the kernel or a file server copies.
    CopyFileRange,
    /// Memory to memory inside the device.
    Memory,
    /// The null device: nothing moves.
    Null,
    /// Read and write through this process.
    Emulated,
    /// NVMe Copy: the controller copies.
    NvmeCopy,
}

impl Method {
    /// The name in plans and receipts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::WriteZeroes => "write-zeroes",
            Self::Reflink => "reflink",
            Self::CopyFileRange => "copy-file-range",
            Self::NvmeCopy => "nvme-copy",
            Self::Memory => "memory",
            Self::Null => "null",
            Self::Emulated => "emulated",
        }
    }

    /// True when each byte is moved, by whom ever: a rate tells something. Not of holes and shared extents.
    pub const fn moves_bytes(self) -> bool {
        matches!(self, Self::CopyFileRange | Self::NvmeCopy | Self::Memory | Self::Emulated)
    }

    /// True when the bytes pass through buffers of this process.
    pub const fn is_emulated(self) -> bool {
        matches!(self, Self::Emulated)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Within what a method reaches: two devices share it only when these are equal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// Files of one mounted file system (its device number).
    FileSystem(u64),
    /// Any two regular files of this machine.
    Files,
    /// Namespaces that one NVMe controller copies between (a number that the driver makes): those of one block size
    /// where it takes copies across namespaces, else one namespace alone.
    Controller(u64),
    /// Memory devices of this process.
    Process,
    /// Null devices.
    Null,
    /// Volatile-cache test devices of this process.
    Volatile,
}

/// One way a device can take part in a copy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CopyPath {
    /// The method.
    pub method: Method,
    /// Who it reaches.
    pub scope: Scope,
    /// Offsets on both sides and lengths must be multiples of this many bytes; a length may also end at the end of the
    /// source when `tail_at_eof`.
    pub align: u64,
    /// An unaligned length is fine when source and destination ranges both end at the end of their files.
    pub tail_at_eof: bool,
    /// Longest single request, in bytes, however large the limits.
    pub max_bytes: u64,
    /// False: slower than reading and writing by measurement once the bytes are durable, so used only when offload is
    /// required or nobody waits for that.
    pub preferred: bool,
    /// What is expected to become of the bytes. [`Fate::Unknown`]: only trying tells.
    pub fate: Fate,
    /// True when holes of the source become holes of the destination by themselves, so that the planner need not look.
    pub carries_holes: bool,
}

impl CopyPath {
    /// What two devices can do together: none unless both list the method in the same scope. The alignment suits both
    /// (it is a power of two on most devices, but not on all: real-time extents of XFS, stripes), the length is the
    /// smaller.
    pub fn shared(&self, theirs: &Self) -> Option<Self> {
        if (self.method, self.scope) != (theirs.method, theirs.scope) {
            return None;
        }
        Some(Self {
            align: common_multiple(self.align.max(1), theirs.align.max(1))?,
            max_bytes: self.max_bytes.min(theirs.max_bytes),
            tail_at_eof: self.tail_at_eof && theirs.tail_at_eof,
            carries_holes: self.carries_holes && theirs.carries_holes,
            preferred: self.preferred && theirs.preferred,
            fate: self.fate.max(theirs.fate),
            ..*self
        })
    }
}

/// The least common multiple of two numbers above 0; none below 2^64.
fn common_multiple(a: u64, b: u64) -> Option<u64> {
    (a / a.gcd(&b)).checked_mul(b)
}

/// What a run of bytes is known to hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Content {
    /// Maybe anything.
    Data,
    /// No space allocated: reads as zero.
    Hole,
    /// Reads as zero, space allocated.
    Zero,
}

/// A run of one content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// What it holds.
    pub content: Content,
}

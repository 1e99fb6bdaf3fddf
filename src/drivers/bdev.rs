//! A block device: whole logical blocks, direct I/O, opened exclusively to write. Shares its queue with regular files.

use super::file::core::{Backing, Core, Opened};
use super::file::{look, queue::FdQueue};
use super::in_use::{self, Asked, Disk};
use super::{container, stack};
use crate::block::device::{LeafSpace, resolve_plain};
use crate::block::{
    Access, ByteRange, Container, CopyRequest, Device, Error, Identity, Kind, LeafId, Limits, LimitsChange,
    Queue, Resolution, Result, Storage,
};
use crate::sys::sync::lock;
use crate::sys::{aligned::PAGE, ioctl};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::any::Any;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

/// How a block device is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BdevOptions {
    /// For writing as well as reading.
    pub write: bool,
    /// Also when it is mounted, held or locked by others: they may write, and what they hold may be destroyed.
    pub force_in_use: bool,
    /// Opened exclusively though it is only read: meanwhile nobody mounts it. Others that do not ask for it alone may
    /// open it, and write, all the same.
    pub alone: bool,
}

/// A block device.
pub struct Bdev {
    core: Arc<Core>,
    /// The exclusive open, while it could be had.
    claim: Option<Arc<OwnedFd>>,
    rdev: u64,
    storage: OnceLock<Storage>,
    container: OnceLock<Container>,
    zeroes_cheaply: OnceLock<bool>,
}

impl Bdev {
    /// Opens the block device at `path`; its size is the one it has now.
    ///
    /// What others wrote through the page cache is written out first. One that is only read is not claimed: it can be
    /// mounted, or copied by others, meanwhile.
    ///
    /// Errors: `InUse` for writing what somebody uses (unless forced), and for what cannot be had
    /// [`alone`](BdevOptions::alone); `ReadOnly`; `InvalidInput` for anything but a block device; and those of the
    /// system.
    pub fn open(path: impl AsRef<Path>, options: BdevOptions) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let name = path.display().to_string();
        Self::open_named(path, name.clone(), options).map(Arc::new).map_err(|e| e.on(&name))
    }

    fn open_named(path: &Path, name: String, options: BdevOptions) -> Result<Self> {
        let os = |e: Errno| Error::os("cannot be opened", e);
        let rdev = rdev_of(&look(path).map_err(os)?)?;
        let claim = if options.write || options.alone { claim(path, rdev)? } else { None };
        if options.write && !options.force_in_use {
            refuse_in_use(path, rdev, claim.as_ref())?;
        }
        if options.alone && claim.is_none() {
            let text =
                "is mounted, held, or opened exclusively by another program, so it cannot be had alone";
            return Err(Error::new(Kind::InUse, text));
        }
        let access = if options.write { OFlags::RDWR } else { OFlags::RDONLY };
        let fd = rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty()).map_err(os)?;
        let stat = rustix::fs::fstat(&fd).map_err(os)?;
        if rdev_of(&stat)? != rdev {
            return Err(Error::new(Kind::InvalidInput, "was replaced while it was opened; try again"));
        }
        if options.write && ioctl::block_read_only(&fd).unwrap_or(false) {
            return Err(Error::new(Kind::ReadOnly, "is set read-only; blockdev --setrw makes it writable"));
        }
        if options.write && Disk::of(rdev).is_host_managed() {
            let text = "is a host-managed zoned device, whose zones accept sequential writes only; blkcopy cannot \
                        write to it yet; name a device without zones";
            return Err(Error::new(Kind::Unsupported, text));
        }
        let geometry = |e: std::io::Error| Error::os("cannot read its size or block size", e);
        let block = rustix::fs::ioctl_blksszget(&fd).map_err(|e| geometry(e.into()))?;
        let block = NonZeroU32::new(block).ok_or_else(|| {
            Error::new(Kind::Io, "reports a logical block of 0 bytes, so it cannot be used")
        })?;
        let size = ioctl::block_size_bytes(&fd).map_err(geometry)?;
        let size = ByteRange::to(size / u64::from(block.get()) * u64::from(block.get())).len();
        rustix::fs::fsync(&fd)
            .map_err(|e| Error::os("data that other programs wrote to it earlier could not be flushed", e))?;
        let disk = Disk::of(rdev);
        let mut limits = Limits::plain(block);
        // Buffers begin on a page: larger blocks go through the page cache.
        limits.direct_io_align = Some(block).filter(|b| b.get() as usize <= PAGE);
        let leaf = LeafId { space: LeafSpace::Disk, id: (disk.whole, 0) };
        let core = Core::new(Opened {
            name,
            identity: Identity::Leaf { leaf, base: disk.base },
            fd,
            backing: Backing::Block,
            writable: options.write,
            limits,
            size,
            fs_block_bytes: block.get().into(),
            is_local: true,
            knows_no_wait: Some(true),
            copies_what_is_stored: false,
            file_system: 0,
            copies_here: false,
            is_ours: false,
            is_new: false,
        });
        Ok(Self {
            core: Arc::new(core),
            claim,
            rdev,
            storage: OnceLock::new(),
            container: OnceLock::new(),
            zeroes_cheaply: OnceLock::new(),
        })
    }

    /// True while no other program can mount it or open it exclusively.
    pub fn is_claimed(&self) -> bool {
        self.claim.is_some()
    }

    /// Its device number.
    pub(crate) fn rdev(&self) -> u64 {
        self.rdev
    }

    /// The descriptor through the page cache.
    pub(crate) fn fd(&self) -> &Arc<OwnedFd> {
        &self.core.fd
    }
}

fn rdev_of(stat: &rustix::fs::Stat) -> Result<u64> {
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        return Ok(stat.st_rdev);
    }
    Err(Error::new(Kind::InvalidInput, "is not a block device"))
}

/// Exclusive opens of this process by device number. Shared, so that both ends of one copy may lie on one device.
static CLAIMS: Mutex<Vec<(u64, Weak<OwnedFd>)>> = Mutex::new(Vec::new());

/// True when this process holds the exclusive open of a device.
pub(crate) fn is_claimed_here(rdev: u64) -> bool {
    let claims = lock(&CLAIMS);
    claims.iter().any(|(dev, fd)| *dev == rdev && fd.strong_count() > 0)
}

/// The exclusive open of a device: its own, or of the whole disk when this process has that already. `None` when
/// somebody else has it, or this process has a partition of it.
fn claim(path: &Path, rdev: u64) -> Result<Option<Arc<OwnedFd>>> {
    let mut claims = lock(&CLAIMS);
    claims.retain(|(_, fd)| fd.strong_count() > 0);
    if let Some(fd) = claims.iter().find(|(dev, _)| *dev == rdev).and_then(|(_, fd)| fd.upgrade()) {
        return Ok(Some(fd));
    }
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => {
            // The name may mean another device by now; then nothing is claimed.
            if !rustix::fs::fstat(&fd).is_ok_and(|s| s.st_rdev == rdev) {
                return Ok(None);
            }
            // For programs that ask by lock instead, as udev does. Not had: others read too.
            let _ = rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared);
            let fd = Arc::new(fd);
            claims.push((rdev, Arc::downgrade(&fd)));
            Ok(Some(fd))
        }
        Err(Errno::BUSY) => {
            let whole = Disk::of(rdev).whole;
            Ok(claims.iter().find(|(dev, _)| *dev == whole).and_then(|(_, fd)| fd.upgrade()))
        }
        Err(error) => Err(Error::os("cannot be opened", error)),
    }
}

fn refuse_in_use(path: &Path, rdev: u64, claim: Option<&Arc<OwnedFd>>) -> Result<()> {
    let busy = |why: String| {
        Err(Error::new(Kind::InUse, format!("is in use: {why}; --force-in-use overwrites it anyway")))
    };
    let holders = in_use::of_block_device(path, rdev, Asked::Write);
    if !holders.is_empty() {
        return busy(in_use::list(&holders));
    }
    let Some(claim) = claim else {
        if !in_use::exclusive_elsewhere(path, rdev) {
            return Ok(());
        }
        return busy("opened exclusively by another program".into());
    };
    // udev looks at devices under a shared lock for a moment after each change: waited for, one second at most.
    for _ in 0..20 {
        match rustix::fs::flock(&**claim, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(50)),
            // No locks on device nodes here: the exclusive open must do.
            Err(_) => return Ok(()),
        }
    }
    busy("locked by another program (flock)".into())
}

impl Device for Bdev {
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
    fn open_medium(self: Arc<Self>) -> Result<crate::block::Medium> {
        super::file::medium::open(&self.core)
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        Ok(Box::new(FdQueue::open(self.core.clone(), no_source)?))
    }
    fn container(&self) -> Option<Container> {
        Some(self.container.get_or_init(|| container::of_block(self.rdev, self.core.size())).clone())
    }
    fn storage(&self) -> Storage {
        let ask = || {
            let below = stack::of_block(self.rdev);
            match self.container() {
                Some(container) => below.and_known_as(None, container.generation()),
                None => below,
            }
        };
        self.storage.get_or_init(ask).clone()
    }
    fn zeroes_cheaply(&self) -> bool {
        *self.zeroes_cheaply.get_or_init(|| Disk::of(self.rdev).zeroes_by_itself())
    }
    fn drop_cache(&self) {
        self.core.drop_pages(ByteRange::to(self.core.size()));
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// No copy methods: the kernel refuses to copy to and from block devices in every combination.
fn no_source(_: &CopyRequest) -> Option<&Arc<Core>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Buf, Method, Op};
    use crate::drivers::testing::{Driven, Loop, Mounted, command, pattern};
    use std::os::unix::fs::FileExt;

    const WRITE: BdevOptions = BdevOptions { write: true, force_in_use: false, alone: false };
    const ALONE: BdevOptions = BdevOptions { write: false, force_in_use: false, alone: true };
    const MIB: usize = 1 << 20;

    fn fresh(test: &str, len: u64) -> Option<(Loop, Arc<Bdev>)> {
        let on = Loop::new(test, &std::env::temp_dir(), len, &[])?;
        let bdev = Bdev::open(&on.device, WRITE).unwrap();
        Some((on, bdev))
    }

    fn range(offset: u64, len: u64) -> ByteRange {
        ByteRange::new(offset, len).unwrap()
    }

    #[test]
    fn blocks_go_direct_and_equal_a_flat_array() {
        let Some((on, bdev)) = fresh("blocks_go_direct_and_equal_a_flat_array", 4 << 20) else { return };
        assert_eq!((bdev.size(), bdev.limits().block_size.get()), (4 << 20, 512));
        assert!(bdev.is_claimed() && bdev.copy_paths().is_empty());
        let mut q = Driven::new(bdev.clone());
        let mut model = vec![0; 4 * MIB];
        for (i, (offset, len)) in
            [(0, MIB), (512, 512), (MIB + 512, 300 * 512), (4 * MIB - 512, 512)].iter().enumerate()
        {
            let bytes = pattern(i as u64, *len);
            let buf = Buf::copy_of(&bytes).unwrap();
            let r = range(*offset as u64, *len as u64);
            assert!(q.run(Op::Write { range: r, buf, fua: i == 1 }).result.is_ok());
            model[*offset..offset + len].copy_from_slice(&bytes);
        }
        let log = q.reactor.log();
        assert_eq!(log[0], "call", "what was cached of it is dropped first");
        assert!(log[1..].iter().all(|l| l.starts_with("write direct")));
        for (may_unmap, at) in [(true, 4096), (false, 65536usize)] {
            let op = Op::WriteZeroes { range: range(at as u64, 8192), may_unmap, lazy: false };
            assert_eq!(q.run(op).result.err().map(|e| e.kind()), None);
            model[at..][..8192].fill(0);
        }
        assert!(q.run(Op::Flush).result.is_ok());
        let done = q.read(0, 4 * MIB);
        assert!(done.result.is_ok() && done.buf[..] == model);
        assert!(std::fs::read(&on.file).unwrap() == model);
        let done = q.run(Op::Discard { range: range(0, MIB as u64) });
        assert!(matches!(done.result.map_err(|e| e.kind()), Ok(()) | Err(Kind::Unsupported)));
        assert_eq!(q.read(100, 512).result.unwrap_err().kind(), Kind::Misaligned);
        assert_eq!(q.read(4 << 20, 512).result.unwrap_err().kind(), Kind::OutOfRange);
        let done = q.copy(Method::CopyFileRange, bdev, 0, 4096, 512);
        assert_eq!(done.result.unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn what_lies_past_the_end_of_a_device_that_shrank_is_out_of_range() {
        let test = "what_lies_past_the_end_of_a_device_that_shrank_is_out_of_range";
        let Some((on, bdev)) = fresh(test, 4 << 20) else { return };
        let device = on.device.to_str().unwrap();
        std::fs::File::options().write(true).open(&on.file).unwrap().set_len(1 << 20).unwrap();
        if command(&["losetup", "-c", device]).is_none() {
            return eprintln!("SKIPPED {test}: the loop device cannot be made smaller");
        }
        let mut q = Driven::new(bdev);
        let done = q.run(Op::Discard { range: range(2 << 20, 4096) });
        assert_eq!(done.result.unwrap_err().kind(), Kind::OutOfRange);
        assert!(q.read(0, 4096).result.is_ok(), "what is left is served");
    }

    //= promise 1
    #[test]
    fn other_programs_cached_writes_and_reads_are_coherent() {
        let Some((on, _)) = fresh("other_programs_cached_writes_and_reads_are_coherent", 1 << 20) else {
            return;
        };
        let other = std::fs::File::options().read(true).write(true).open(&on.device).unwrap();
        other.write_all_at(&pattern(1, 8192), 0).unwrap();
        let bdev = Bdev::open(&on.device, WRITE).unwrap();
        let mut q = Driven::new(bdev);
        assert!(q.read(0, 8192).buf[..] == pattern(1, 8192));
        assert!(q.write(0, &pattern(2, 4096)).result.is_ok());
        assert!(q.run(Op::Flush).result.is_ok());
        let mut seen = vec![0; 4096];
        other.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == pattern(2, 4096));
    }

    //= promise 3
    #[test]
    fn a_device_in_use_is_refused_for_writing_unless_forced() {
        let Some(fs) = Mounted::new("a_device_in_use...", &["mkfs.ext4", "-q"], 16 << 20) else { return };
        let error = Bdev::open(&fs.on.device, WRITE).err().unwrap();
        assert_eq!(error.kind(), Kind::InUse);
        let expected = format!(
            "{}: is in use: mounted at {}; --force-in-use overwrites it anyway",
            fs.on.device.display(),
            fs.dir.display()
        );
        assert_eq!(error.to_string(), expected);
        let forced = Bdev::open(&fs.on.device, BdevOptions { force_in_use: true, ..WRITE }).unwrap();
        assert!(!forced.is_claimed());
        let reading = Bdev::open(&fs.on.device, BdevOptions::default()).unwrap();
        assert!(reading.read_only() && !reading.is_claimed());
        let error = Bdev::open(&fs.on.device, ALONE).err().unwrap();
        assert_eq!(error.kind(), Kind::InUse, "{error}");
    }

    #[test]
    fn locks_and_exclusive_opens_of_others_are_respected() {
        let test = "locks_and_exclusive_opens_of_others_are_respected";
        let Some(on) = Loop::new(test, &std::env::temp_dir(), 1 << 20, &[]) else { return };
        let other = std::fs::File::open(&on.device).unwrap();
        rustix::fs::flock(&other, FlockOperation::LockExclusive).unwrap();
        let error = Bdev::open(&on.device, WRITE).err().unwrap();
        assert!(error.to_string().contains("locked by another program (flock)"), "{error}");
        drop(other);
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        let held = rustix::fs::open(&on.device, flags, Mode::empty()).unwrap();
        let error = Bdev::open(&on.device, WRITE).err().unwrap();
        assert!(error.to_string().contains("opened exclusively by another program"), "{error}");
        drop(held);
        // One that is only read keeps nobody out.
        let source = Bdev::open(&on.device, BdevOptions::default()).unwrap();
        assert!(!source.is_claimed() && rustix::fs::open(&on.device, flags, Mode::empty()).is_ok());
        // Both ends on one device: one claim, shared, and given back with the last of them.
        let source = Bdev::open(&on.device, ALONE).unwrap();
        let dest = Bdev::open(&on.device, WRITE).unwrap();
        assert!(source.is_claimed() && dest.is_claimed());
        assert_eq!(source.identity(), dest.identity());
        drop(source);
        assert_eq!(rustix::fs::open(&on.device, flags, Mode::empty()).err(), Some(Errno::BUSY));
        drop(dest);
        assert!(rustix::fs::open(&on.device, flags, Mode::empty()).is_ok());
    }

    //= promise 3
    #[test]
    fn a_read_only_device_is_refused_for_writing() {
        let test = "a_read_only_device_is_refused_for_writing";
        let Some(on) = Loop::new(test, &std::env::temp_dir(), 1 << 20, &["-r"]) else { return };
        assert_eq!(Bdev::open(&on.device, WRITE).err().unwrap().kind(), Kind::ReadOnly);
        assert!(Bdev::open(&on.device, BdevOptions::default()).is_ok());
        assert_eq!(Bdev::open(&on.file, WRITE).err().unwrap().kind(), Kind::InvalidInput);
    }

    //= promise 5
    #[test]
    fn failures_of_the_device_are_told_with_the_good_prefix() {
        let Some((on, bdev)) = fresh("failures_of_the_device_are_told_with_the_good_prefix", 4 << 20) else {
            return;
        };
        // The backing file loses its second half: a device error there, no zeroes.
        let backing = std::fs::File::options().write(true).open(&on.file).unwrap();
        backing.set_len(2 << 20).unwrap();
        let mut q = Driven::new(bdev);
        assert!(q.read(0, MIB).result.is_ok());
        let done = q.read(3 << 20, 65536);
        match done.result {
            Err(error) => assert!(error.kind() == Kind::Io && done.good_bytes == 0, "{error:?}"),
            Ok(()) => eprintln!("SKIPPED the truncated half: this loop driver reads zeroes there"),
        }
    }

    #[test]
    fn a_full_file_system_under_a_loop_device_is_an_error_never_silence() {
        let test = "a_full_file_system_under_a_loop_device_is_an_error_never_silence";
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        if !rustix::process::geteuid().is_root()
            || command(&["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", at]).is_none()
        {
            eprintln!("SKIPPED {test}: mounting needs root");
            return;
        }
        if let Some(on) = Loop::new(test, dir.path(), 16 << 20, &[]) {
            let bdev = Bdev::open(&on.device, WRITE).unwrap();
            let mut q = Driven::new(bdev);
            let failed = (0..16u64).find_map(|i| {
                let done = q.write(i * MIB as u64, &pattern(i, MIB));
                done.result.err().map(|e| (e.kind(), done.good_bytes < MIB as u64))
            });
            let flushed = q.run(Op::Flush).result.is_ok();
            assert!(
                matches!(failed, Some((Kind::NoSpace | Kind::Io, true))) || !flushed,
                "{failed:?}, flush {flushed}"
            );
        }
        let _ = command(&["umount", at]);
    }
}

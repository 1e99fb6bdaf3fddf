//! Keeps others from writing to the ends of a copy where the system lets us, and knows how far that went.
//!
//! What is taken for which end, and what it is worth: `docs/notes/011-locks-of-others.md`.

use super::image_locks::{ImageLock, ImageUse, NotLocked};
use super::marks::{Marks, wait_for_the_tick, wait_for_writes};
use super::{Bdev, File, image_locks};
use crate::block::device::LeafSpace;
use crate::block::places::places;
use crate::block::receipt::SourceState;
use crate::block::{Access, ByteRange, Device, Error, Identity, Kind, Result};
use crate::sys::ioctl;
use crate::sys::lease::{self, ReadLease};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is held on one end of a copy; let go when dropped.
pub struct Hold(Vec<One>);

/// As what something is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldAs {
    /// It is read. Others may do what they did before, and what they do is looked for.
    Source,
    /// It is read, and nobody else is to write to it.
    SourceAlone,
    /// It is written, and nobody else is to write to it; `force_in_use`: even if others do.
    Dest {
        /// Beside whoever has it.
        force_in_use: bool,
    },
}

struct One {
    device: Arc<dyn Device>,
    state: SourceState,
    /// As they were when it was taken hold of. `None`: not compared, as this copy may write to it itself.
    marks: Option<Marks>,
    /// Seen longer than it was when it was opened.
    grew: bool,
    /// Seen changed, and not by growing only: cut and written anew it looks like one that grew.
    changed: bool,
    lease: Option<ReadLease>,
    /// Of a file.
    fd: Option<Arc<OwnedFd>>,
    /// Taken with `flock`, to be given back.
    locked: bool,
    image: Option<ImageLock>,
}

/// How long another program's lock is waited for: one that was killed lets go of its files a little after its end, when
/// the kernel has taken its ring down.
const LINGER: Duration = Duration::from_millis(500);

/// Takes the exclusive lock of a file, now or within [`LINGER`]. Errors: `WOULDBLOCK`, and those of `flock`.
pub(super) fn flock_soon(fd: &OwnedFd) -> rustix::io::Result<()> {
    let end = Instant::now() + LINGER;
    loop {
        match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(LINGER / 50),
            other => return other,
        }
    }
}

/// Holds `device` as well as it can be: as the source of a copy, or as its destination. A map is held as all its leaves
/// are.
///
/// Files and block devices get image locks in QEMU's places; a source's keep nobody from anything. A destination file
/// is locked with `flock` too, a block device by its exclusive open. A source that is to be alone gets a read lease
/// where it is a file and the lease tells of every writer. What was written to a source is looked for: [`Hold::check`].
///
/// Errors: `InUse` for a destination that another program uses, and for a source that is to be alone and may be written
/// to.
pub fn hold(device: &Arc<dyn Device>, held: HoldAs) -> Result<Hold> {
    let mut all = Vec::new();
    let access = if held.is_source() { Access::Read } else { Access::Write };
    let mut leaves: Vec<Arc<dyn Device>> = Vec::new();
    for run in places(device, ByteRange::to(device.size()), access)? {
        if !leaves.iter().any(|d| d.identity() == run.device.identity()) {
            leaves.push(run.device);
        }
    }
    for leaf in leaves {
        all.push(One::hold(leaf, held)?);
    }
    Ok(Hold(all))
}

impl HoldAs {
    fn is_source(self) -> bool {
        !matches!(self, Self::Dest { .. })
    }

    fn image_use(self) -> ImageUse {
        match self {
            Self::Source => ImageUse::SOURCE,
            Self::SourceAlone => ImageUse::SOURCE_ALONE,
            Self::Dest { .. } => ImageUse::DEST,
        }
    }

    /// Takes the locks of an image. `None`: there are none to be had here.
    fn lock_image(self, fd: &OwnedFd, name: &str) -> Result<Option<ImageLock>> {
        let force = matches!(self, Self::Source | Self::Dest { force_in_use: true });
        match ImageLock::take(fd, self.image_use(), force) {
            Ok(taken) => Ok(Some(taken)),
            Err(NotLocked::NoLocks(error)) => {
                tracing::info!(device = name, %error, "no image locks here: QEMU is not told that it is in use");
                Ok(None)
            }
            Err(NotLocked::Others(others)) => {
                let who = image_locks::holder(fd).map_or_else(String::new, |who| format!(", held by {who}"));
                let what =
                    if others.may_write() { "writes to it" } else { "keeps others from writing to it" };
                let text = format!(
                    "another program uses the image and {what} (QEMU-style byte locks{who}); end it, or wait for it"
                );
                Err(Error::new(Kind::InUse, text).on(name))
            }
        }
    }
}

impl Hold {
    /// How stable the bytes are, as known now: the weakest of all leaves.
    pub fn state(&self) -> SourceState {
        self.0.iter().map(|one| one.state).max().unwrap_or(SourceState::Unwatched)
    }

    /// Looks whether anything has changed since. A lease that another program asked for was given back at once; the
    /// state falls to `Watched`.
    ///
    /// A source file that has become longer is not an error: it is copied to the size it had when it was opened.
    /// Nobody can say what else was written, so the state is `Changed`; [`Hold::grew`] tells.
    ///
    /// To be asked now and then. Errors: `SourceChanged`, once and for all; the state is `Changed`.
    pub fn check(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|one| one.check(false))
    }

    /// The last check, after everything was read. Errors: as of [`Hold::check`].
    pub fn check_at_end(&mut self) -> Result<()> {
        let checks: Vec<Result<()>> = self.0.iter_mut().map(|one| one.check(true)).collect();
        checks.into_iter().collect()
    }

    /// True when a check found a source file longer than it was when it was opened.
    pub fn grew(&self) -> bool {
        self.0.iter().any(|one| one.grew)
    }

    /// True when a whole block device is watched: what the copy itself writes to the same disk counts too.
    pub fn counts_writes(&self) -> bool {
        self.0.iter().any(|one| one.marks.is_some() && one.device.as_any().is::<Bdev>())
    }

    /// Tells that the copy itself writes to what is held here (source and destination are one file or disk): a change
    /// then says nothing about others, so the state falls to `Unwatched` unless our locks keep them out.
    pub fn written_by_us(&mut self) {
        for one in &mut self.0 {
            one.marks = None;
            one.changed = false;
            if one.state != SourceState::Locked {
                one.state = SourceState::Unwatched;
            }
        }
    }
}

impl One {
    fn hold(device: Arc<dyn Device>, held: HoldAs) -> Result<Self> {
        let mut one = Self {
            state: SourceState::Unwatched,
            marks: None,
            grew: false,
            changed: false,
            lease: None,
            fd: None,
            locked: false,
            image: None,
            device,
        };
        let device = one.device.clone();
        if let Some(file) = device.as_any().downcast_ref::<File>() {
            one.hold_file(file, held)?;
        } else if let Some(bdev) = device.as_any().downcast_ref::<Bdev>() {
            one.image = held.lock_image(bdev.fd(), bdev.name())?;
            one.state = SourceState::Watched;
        } else if matches!(one.device.identity(), Identity::Leaf { leaf, .. } if leaf.space == LeafSpace::Memory)
        {
            // Lives in this process only: our own locks are all there is.
            one.state = SourceState::Locked;
        }
        if held.is_source() {
            one.marks = Some(Marks::of(&*one.device));
        } else if one.state != SourceState::Locked {
            one.state = SourceState::Unwatched;
        }
        Ok(one)
    }

    fn hold_file(&mut self, file: &File, held: HoldAs) -> Result<()> {
        let fd = file.fd().clone();
        self.image = held.lock_image(&fd, file.name())?;
        if !held.is_source() {
            match flock_soon(&fd) {
                Ok(()) => self.locked = true,
                Err(Errno::WOULDBLOCK) => {
                    let text = "another program has locked the file (flock); end it, or wait for it";
                    return Err(Error::new(Kind::InUse, text).on(file.name()));
                }
                // No such locks on this file system.
                Err(_) => {}
            }
            self.fd = Some(fd);
            return Ok(());
        }
        self.state = SourceState::Watched;
        if held == HoldAs::SourceAlone && file.leases_tell() {
            match ReadLease::take(&fd) {
                Ok(lease) => {
                    self.lease = Some(lease);
                    self.state = SourceState::Leased;
                }
                Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {
                    let text = "another program has it open for writing; end it, or wait for it";
                    return Err(Error::new(Kind::InUse, text).on(file.name()));
                }
                // Another's file, or leases are switched off.
                Err(error) => tracing::info!(device = file.name(), %error, "no lease: watched instead"),
            }
        }
        if self.lease.is_none() {
            self.see_mapped_stores(file, &fd);
        }
        if file.is_local() {
            wait_for_the_tick(file);
        }
        self.fd = Some(fd);
        Ok(())
    }

    /// A store through a mapping changes a file's times only where it makes a clean page dirty. So pages that are dirty
    /// now are written out, if a program may have them mapped; in memory none ever gets clean, and nothing is claimed.
    fn see_mapped_stores(&mut self, file: &File, fd: &OwnedFd) {
        if file.leases_tell() && lease::is_open_for_writing(fd).is_ok_and(|is_open| !is_open) {
            return;
        }
        if file.is_in_memory() {
            self.state = SourceState::Unwatched;
        } else if let Err(error) = ioctl::write_back(fd, 0, 0) {
            tracing::info!(device = file.name(), %error, "its dirty pages cannot be written out");
        }
    }

    fn check(&mut self, is_last: bool) -> Result<()> {
        if self.lease.as_ref().is_some_and(|lease| !lease.is_whole()) {
            self.lease = None;
            self.state = self.state.max(SourceState::Watched);
            tracing::info!(device = self.device.name(), "another program asked to write to the source");
        }
        // Under our own locks only we write, which is allowed to move the generation.
        let Some(then) = self.marks.as_ref().filter(|_| self.state != SourceState::Locked) else {
            return Ok(());
        };
        if is_last {
            wait_for_writes(&*self.device);
        }
        let now = Marks::of(&*self.device);
        if !self.changed && !then.differ(&now) {
            if is_last && self.device.as_any().is::<Bdev>() && !then.count_reads(&now) {
                self.state = self.state.max(SourceState::Unwatched);
            }
            return Ok(());
        }
        self.state = SourceState::Changed;
        if self.is_longer() && !self.changed {
            self.grew = true;
            return Ok(());
        }
        self.changed = true;
        let text = if self.fd.is_some() {
            "its size or times changed during the copy: another program wrote to it; copy it again"
        } else {
            "another program wrote to it during the copy; copy it again"
        };
        Err(Error::new(Kind::SourceChanged, text).on(self.device.name()))
    }

    /// True for a file that is longer than it was when it was opened.
    fn is_longer(&self) -> bool {
        let now = self.fd.as_ref().and_then(|fd| rustix::fs::fstat(&**fd).ok());
        now.and_then(|stat| u64::try_from(stat.st_size).ok()).is_some_and(|len| len > self.device.size())
    }
}

impl Drop for One {
    fn drop(&mut self) {
        if let Some(fd) = &self.fd
            && self.locked
        {
            let _ = rustix::fs::flock(&**fd, FlockOperation::Unlock);
        }
        // Before the file is closed: whoever waits for it goes on.
        drop(self.image.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::{BdevOptions, FileOptions, mem::Mem, testing::Loop};
    use crate::sys::mapped::Mapped;
    use rustix::fs::{Mode, OFlags};
    use std::num::NonZeroU32;

    fn source(bytes: &[u8]) -> (tempfile::NamedTempFile, Arc<dyn Device>) {
        // Closed for writing, so that a lease can be had.
        let file = tempfile::Builder::new().tempfile().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let path = file.path().to_owned();
        let device = File::open(&path, FileOptions::default()).unwrap();
        (file, device)
    }

    const DEST: HoldAs = HoldAs::Dest { force_in_use: false };

    /// Holds it alone, where leases are to be had.
    fn leased(test: &str, device: &Arc<dyn Device>) -> Option<Hold> {
        let held = hold(device, HoldAs::SourceAlone).unwrap();
        if held.state() == SourceState::Leased {
            return Some(held);
        }
        eprintln!("SKIPPED {test}: no leases on this file system");
        None
    }

    //= promise 4
    #[test]
    fn a_lease_is_given_back_when_it_is_asked_for() {
        let (file, device) = source(b"abc");
        let path = file.into_temp_path(); // closes the writer
        let test = "a_lease_is_given_back_when_it_is_asked_for";
        let Some(mut held) = leased(test, &device) else { return };
        assert!(held.check().is_ok());
        // Reading breaks nothing.
        assert!(std::fs::read(&path).is_ok());
        assert!(held.check().is_ok() && held.state() == SourceState::Leased);
        // Opening for writing waits for no look of ours: nobody looks here.
        let writer = std::fs::File::options().write(true).open(&path).unwrap();
        assert!(held.check().is_ok(), "nothing was written yet");
        assert_eq!(held.state(), SourceState::Watched);
        rustix::io::pwrite(&writer, b"xyz", 0).unwrap();
        assert_eq!(held.check().unwrap_err().kind(), Kind::SourceChanged);
        assert_eq!(held.state(), SourceState::Changed);
    }

    #[test]
    fn a_program_that_does_not_wait_for_a_lease_is_refused_once() {
        let (file, device) = source(b"abc");
        let path = file.into_temp_path();
        let test = "a_program_that_does_not_wait_for_a_lease_is_refused_once";
        let Some(mut held) = leased(test, &device) else { return };
        let open = || rustix::fs::open(&*path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
        assert_eq!(open().err(), Some(Errno::WOULDBLOCK));
        let end = Instant::now() + Duration::from_secs(20);
        while open().is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(open().is_ok());
        assert!(held.check_at_end().is_ok() && held.state() == SourceState::Watched);
    }

    //= promise 4
    #[test]
    fn a_source_that_nobody_asked_to_have_alone_hinders_nobody() {
        let (file, device) = source(b"abc");
        let path = file.into_temp_path();
        let mut held = hold(&device, HoldAs::Source).unwrap();
        assert_eq!(held.state(), SourceState::Watched);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let writer = rustix::fs::open(&*path, flags, Mode::empty()).expect("no lease is in the way");
        assert!(rustix::fs::flock(&writer, FlockOperation::NonBlockingLockExclusive).is_ok());
        assert!(held.check_at_end().is_ok() && held.state() == SourceState::Watched);
    }

    //= promise 4
    #[test]
    fn a_source_open_for_writing_elsewhere_is_watched_and_not_to_be_had_alone() {
        let (file, device) = source(b"abc");
        let error = hold(&device, HoldAs::SourceAlone).err();
        let mut held = hold(&device, HoldAs::Source).unwrap();
        if held.state() == SourceState::Watched {
            // Not where leases are not known to tell, as on FUSE.
            assert!(error.is_none_or(|e| e.kind() == Kind::InUse));
        }
        assert!(held.check().is_ok());
        file.as_file().set_len(2).unwrap();
        let error = held.check_at_end().unwrap_err();
        assert_eq!((error.kind(), held.state()), (Kind::SourceChanged, SourceState::Changed));
        assert!(error.to_string().contains("another program wrote to it"), "{error}");
        held.written_by_us();
        assert!(held.check().is_ok() && held.state() == SourceState::Unwatched);
    }

    //= promise 4
    #[test]
    fn stores_through_a_mapping_made_before_are_seen_or_nothing_is_claimed() {
        for dir in [std::env::temp_dir(), "/dev/shm".into()] {
            let Ok(file) = tempfile::Builder::new().tempfile_in(&dir) else {
                eprintln!("SKIPPED stores_through_a_mapping...: no files in {}", dir.display());
                continue;
            };
            file.as_file().set_len(8192).unwrap();
            let device = File::open(file.path(), FileOptions::default()).unwrap();
            let in_memory = device.is_in_memory();
            let device: Arc<dyn Device> = device;
            let mut page = Mapped::new(file.as_file(), 4096).unwrap();
            page.write(0, &[1]); // dirty, and to be stored to without a fault
            let mut held = hold(&device, HoldAs::Source).unwrap();
            page.write(0, &[2]);
            let _ = held.check_at_end();
            let expected = if in_memory { SourceState::Unwatched } else { SourceState::Changed };
            assert_eq!(held.state(), expected, "{}", dir.display());
        }
    }

    #[test]
    fn a_source_that_grows_is_no_error_and_has_changed() {
        let (file, device) = source(b"abc");
        let mut held = hold(&device, HoldAs::Source).unwrap();
        file.as_file().set_len(100).unwrap();
        assert!(held.check_at_end().is_ok() && held.grew());
        assert_eq!((held.state(), device.size()), (SourceState::Changed, 3));
        file.as_file().set_len(1).unwrap();
        assert_eq!(held.check().unwrap_err().kind(), Kind::SourceChanged);
    }

    #[test]
    fn a_locked_destination_is_in_use() {
        let (file, device) = source(b"abc");
        rustix::fs::flock(&file, FlockOperation::LockShared).unwrap();
        assert_eq!(hold(&device, DEST).err().unwrap().kind(), Kind::InUse);
        rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
        let mut held = hold(&device, DEST).unwrap();
        file.as_file().set_len(7).unwrap();
        assert!(held.check().is_ok(), "a destination changes");
        assert_eq!(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
        drop(held);
        assert!(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok());
    }

    //= promise 3
    #[test]
    fn a_destination_that_a_virtual_machine_has_is_in_use_unless_forced() {
        let (file, device) = source(b"abc");
        for byte in [100, 101, 201, 203] {
            ioctl::share_byte(&file, byte).unwrap();
        }
        let error = hold(&device, DEST).err().unwrap();
        assert_eq!(error.kind(), Kind::InUse);
        assert!(error.to_string().contains("another program uses the image and writes to it"), "{error}");
        assert_eq!(hold(&device, HoldAs::SourceAlone).err().map(|e| e.kind()), Some(Kind::InUse));
        assert!(hold(&device, HoldAs::Dest { force_in_use: true }).is_ok());
        assert!(hold(&device, HoldAs::Source).is_ok(), "it is read beside it");
    }

    //= promise 4
    #[test]
    fn memory_is_locked_and_a_block_device_never() {
        let mem: Arc<dyn Device> = Arc::new(Mem::new("mem", 4096, NonZeroU32::new(512).unwrap()).unwrap());
        assert_eq!(hold(&mem, HoldAs::Source).unwrap().state(), SourceState::Locked);
        let test = "memory_is_locked_and_a_block_device_never";
        let Some(on) = Loop::new(test, &std::env::temp_dir(), 1 << 20, &[]) else { return };
        let alone = BdevOptions { alone: true, ..BdevOptions::default() };
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        for (options, is_claimed) in [(BdevOptions::default(), false), (alone, true)] {
            let bdev = Bdev::open(&on.device, options).unwrap();
            assert_eq!(bdev.is_claimed(), is_claimed);
            let device: Arc<dyn Device> = bdev;
            let taken_by_others = rustix::fs::open(&on.device, flags, Mode::empty());
            assert_eq!(taken_by_others.is_ok(), !is_claimed);
            drop(taken_by_others);
            let read = || {
                let mut q = crate::drivers::testing::Driven::new(device.clone());
                assert!(q.read(0, 4096).result.is_ok());
            };
            // Read, and nobody wrote.
            let mut held = hold(&device, HoldAs::Source).unwrap();
            read();
            assert!(held.check_at_end().is_ok());
            assert_eq!(held.state(), SourceState::Watched);
            // Nothing was counted, so nothing is known.
            let mut held = hold(&device, HoldAs::Source).unwrap();
            assert!(held.check_at_end().is_ok());
            assert_eq!(held.state(), SourceState::Unwatched);
            // Written through the device, which no exclusive open prevents; then through the file below.
            for name in [&on.device, &on.file] {
                let mut held = hold(&device, HoldAs::Source).unwrap();
                read();
                let writer = std::fs::File::options().write(true).open(name).unwrap();
                rustix::io::pwrite(&writer, &[7; 512], 512).unwrap();
                writer.sync_all().unwrap();
                assert_eq!(held.check_at_end().err().map(|e| e.kind()), Some(Kind::SourceChanged));
                assert_eq!(held.state(), SourceState::Changed, "{}", name.display());
            }
        }
    }
}

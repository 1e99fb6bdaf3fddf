//! Keeps others from writing to the ends of a copy where the system lets us, and knows how far that went.

use super::{Bdev, File};
use crate::block::device::LeafSpace;
use crate::block::places::places;
use crate::block::receipt::SourceState;
use crate::block::{Access, ByteRange, Device, Error, Identity, Kind, Result};
use crate::sys::ioctl;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is held on one end of a copy; let go when dropped.
pub struct Hold(Vec<One>);

struct One {
    device: Arc<dyn Device>,
    generation: u64,
    state: SourceState,
    /// Compare the generation: a source that this copy does not write to itself.
    compare: bool,
    /// Seen longer than it was when it was opened.
    grew: bool,
    /// Seen changed, and not by growing only: cut and written anew it looks like one that grew.
    changed: bool,
    fd: Option<Arc<OwnedFd>>,
    /// Taken with `flock`, to be given back.
    locked: bool,
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

/// Holds `device` as well as it can be: as the source of a copy, or (`write`) as its destination.
///
/// A source file gets a read lease where granted (another program that opens it for writing waits until
/// [`Hold::check`] or the system's lease-break time lets it go on), else its generation is remembered. A destination
/// file is locked with `flock`. Block devices are held by their exclusive open. A map is held as all its leaves are.
/// Errors: `InUse` for a destination that another program has locked.
pub fn hold(device: &Arc<dyn Device>, write: bool) -> Result<Hold> {
    let mut held = Vec::new();
    let access = if write { Access::Write } else { Access::Read };
    let mut leaves: Vec<Arc<dyn Device>> = Vec::new();
    for run in places(device, ByteRange::to(device.size()), access)? {
        if !leaves.iter().any(|d| d.identity() == run.device.identity()) {
            leaves.push(run.device);
        }
    }
    for leaf in leaves {
        held.push(One::hold(leaf, write)?);
    }
    Ok(Hold(held))
}

impl Hold {
    /// How stable the bytes are, as known now: the weakest of all leaves.
    pub fn state(&self) -> SourceState {
        self.0.iter().map(|one| one.state).max().unwrap_or(SourceState::Unwatched)
    }

    /// Looks whether anything has changed since. A lease that is being broken is given back at once, so that the
    /// program that waits for it goes on, and the state falls to `Watched`.
    ///
    /// A source file that has become longer is not an error: it is copied to the size it had when it was opened.
    /// Nobody can
    /// say what else was written, so the state falls to `Unwatched`; [`Hold::grew`] tells.
    ///
    /// To be asked now and then, and at the end. Errors: `SourceChanged`.
    pub fn check(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(One::check)
    }

    /// True when a check found a source file longer than it was when it was opened.
    pub fn grew(&self) -> bool {
        self.0.iter().any(|one| one.grew)
    }

    /// Tells that the copy itself writes to what is held here (source and destination are one file): a change then says
    /// nothing about others, so the state falls to `Unwatched` unless our locks keep them out.
    pub fn written_by_us(&mut self) {
        for one in &mut self.0 {
            one.compare = false;
            if one.state == SourceState::Watched {
                one.state = SourceState::Unwatched;
            }
        }
    }
}

impl One {
    fn hold(device: Arc<dyn Device>, write: bool) -> Result<Self> {
        let mut one = Self {
            generation: device.generation(),
            state: SourceState::Unwatched,
            compare: !write,
            grew: false,
            changed: false,
            fd: None,
            locked: false,
            device,
        };
        if let Some(file) = one.device.as_any().downcast_ref::<File>() {
            let fd = file.fd().clone();
            one.state = if write { SourceState::Unwatched } else { SourceState::Watched };
            if write {
                match flock_soon(&fd) {
                    Ok(()) => one.locked = true,
                    Err(Errno::WOULDBLOCK) => {
                        let text = "another program has locked the file (flock); end it, or wait for it";
                        return Err(Error::new(Kind::InUse, text).on(one.device.name()));
                    }
                    // No such locks on this file system.
                    Err(_) => {}
                }
            } else if ioctl::take_read_lease(&*fd).is_ok() {
                one.state = SourceState::Leased;
                // What was written between the two looks is no change of what will be read.
                one.generation = one.device.generation();
            }
            one.fd = Some(fd);
        } else if let Some(bdev) = one.device.as_any().downcast_ref::<Bdev>() {
            if bdev.is_claimed() {
                one.state = SourceState::Locked;
            }
        } else if matches!(one.device.identity(), Identity::Leaf { leaf, .. } if leaf.space == LeafSpace::Memory)
        {
            // Lives in this process only: our own locks are all there is.
            one.state = SourceState::Locked;
        }
        Ok(one)
    }

    fn check(&mut self) -> Result<()> {
        if self.state == SourceState::Leased
            && let Some(fd) = &self.fd
            && !ioctl::read_lease_held(&**fd).unwrap_or(false)
        {
            let _ = ioctl::drop_lease(&**fd);
            self.state = SourceState::Watched;
            tracing::info!(device = self.device.name(), "another program opened the source for writing");
        }
        // Under our own locks only we write, which is allowed to move the generation.
        if self.compare && self.state != SourceState::Locked && self.device.generation() != self.generation {
            if self.is_longer() && !self.changed {
                self.grew = true;
                self.state = SourceState::Unwatched;
                return Ok(());
            }
            self.changed = true;
            let text =
                "its size or times changed during the copy: another program wrote to it; copy it again";
            return Err(Error::new(Kind::SourceChanged, text).on(self.device.name()));
        }
        Ok(())
    }

    /// True for a file that is longer than it was when it was opened.
    fn is_longer(&self) -> bool {
        let now = self.fd.as_ref().and_then(|fd| rustix::fs::fstat(&**fd).ok());
        now.and_then(|stat| u64::try_from(stat.st_size).ok()).is_some_and(|len| len > self.device.size())
    }
}

impl Drop for One {
    fn drop(&mut self) {
        let Some(fd) = &self.fd else { return };
        if self.state == SourceState::Leased {
            let _ = ioctl::drop_lease(&**fd);
        }
        if self.locked {
            let _ = rustix::fs::flock(&**fd, FlockOperation::Unlock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::{BdevOptions, FileOptions, mem::Mem, testing::Loop};
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

    //= promise 4
    #[test]
    fn a_lease_ends_when_another_program_opens_for_writing_and_the_process_lives() {
        let (file, device) = source(b"abc");
        let path = file.into_temp_path(); // closes the writer
        let mut held = hold(&device, false).unwrap();
        if held.state() != SourceState::Leased {
            eprintln!("SKIPPED a_lease_ends...: no leases on this file system");
            return;
        }
        assert!(held.check().is_ok());
        // Reading breaks nothing; opening for writing waits, and without waiting is refused.
        assert!(std::fs::read(&path).is_ok());
        assert!(held.check().is_ok() && held.state() == SourceState::Leased);
        let open = || rustix::fs::open(&*path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
        assert_eq!(open().err(), Some(Errno::WOULDBLOCK));
        assert!(held.check().is_ok(), "nothing was written yet");
        assert_eq!(held.state(), SourceState::Watched);
        let writer = open().expect("the broken lease was given back");
        rustix::io::pwrite(&writer, b"xyz", 0).unwrap();
        assert_eq!(held.check().unwrap_err().kind(), Kind::SourceChanged);
    }

    #[test]
    fn a_source_open_for_writing_elsewhere_is_watched() {
        let (file, device) = source(b"abc");
        let mut held = hold(&device, false).unwrap();
        assert_eq!(held.state(), SourceState::Watched);
        assert!(held.check().is_ok());
        file.as_file().set_len(2).unwrap();
        let error = held.check().unwrap_err();
        assert_eq!(error.kind(), Kind::SourceChanged);
        assert!(error.to_string().contains("another program wrote to it"), "{error}");
        held.written_by_us();
        assert!(held.check().is_ok() && held.state() == SourceState::Unwatched);
    }

    #[test]
    fn a_source_that_grows_is_no_error_and_nothing_is_claimed() {
        let (file, device) = source(b"abc");
        let mut held = hold(&device, false).unwrap();
        file.as_file().set_len(100).unwrap();
        assert!(held.check().is_ok() && held.grew());
        assert_eq!((held.state(), device.size()), (SourceState::Unwatched, 3));
        file.as_file().set_len(1).unwrap();
        assert_eq!(held.check().unwrap_err().kind(), Kind::SourceChanged);
    }

    #[test]
    fn a_locked_destination_is_in_use() {
        let (file, device) = source(b"abc");
        rustix::fs::flock(&file, FlockOperation::LockShared).unwrap();
        assert_eq!(hold(&device, true).err().unwrap().kind(), Kind::InUse);
        rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
        let mut held = hold(&device, true).unwrap();
        file.as_file().set_len(7).unwrap();
        assert!(held.check().is_ok(), "a destination changes");
        assert_eq!(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
        drop(held);
        assert!(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok());
    }

    //= promise 4
    #[test]
    fn memory_and_claimed_devices_are_locked() {
        let mem: Arc<dyn Device> = Arc::new(Mem::new("mem", 4096, NonZeroU32::new(512).unwrap()).unwrap());
        assert_eq!(hold(&mem, false).unwrap().state(), SourceState::Locked);
        let test = "memory_and_claimed_devices_are_locked";
        let Some(on) = Loop::new(test, &std::env::temp_dir(), 1 << 20, &[]) else { return };
        let bdev: Arc<dyn Device> = Bdev::open(&on.device, BdevOptions::default()).unwrap();
        assert_eq!(hold(&bdev, false).unwrap().state(), SourceState::Locked);
        let second = Bdev::open(&on.device, BdevOptions::default()).unwrap();
        drop((bdev, second));
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        let _other = rustix::fs::open(&on.device, flags, Mode::empty()).unwrap();
        let bdev: Arc<dyn Device> = Bdev::open(&on.device, BdevOptions::default()).unwrap();
        assert_eq!(hold(&bdev, false).unwrap().state(), SourceState::Unwatched);
    }
}

//! A mount: starts its threads and the session, watches over both, and takes all away at the end.

use super::attach::{self, device_at};
use super::fs::Volumes;
use super::job::{Job, JobInbox};
use super::notify::Notices;
use super::options::{MountOptions, Volume, check};
use super::shared::{IO_WORKER, MountShared, SERVICE, ino_of};
use super::volume::{Files, Vol, nanos};
use super::{refresh, worker};
use crate::block::{ByteRange, Error, Kind, Result};
use crate::reactor::local::Interrupt;
use crate::reactor::{Waker, helpers};
use crate::workers::{Crew, Ending, panicked};
use fuser::{Config, Generation, MountOption, Session, SessionACL};
use rustix::mount::UnmountFlags;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

/// How long open files of a mount that ends are waited for.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// A mount that is served. Dropping it ends it, as [`Mount::stop`] does.
pub struct Mount {
    shared: Arc<MountShared>,
    session: Option<JoinHandle<()>>,
    notifier: Option<JoinHandle<()>>,
    workers: Crew,
    /// Device number of the mount, which nothing else has while it lives.
    place: Option<(u32, u32)>,
}

/// Notifies a mount that its volumes were changed outside it. Clones notify the same mount.
#[derive(Clone)]
pub struct Changed(Arc<MountShared>);

impl Changed {
    /// Bytes of a volume (by its place in the list the mount was started with) have changed: the kernel forgets its
    /// pages of them soon.
    pub fn tell(&self, volume: usize, range: ByteRange) {
        if let Some(vol) = self.0.volumes.get(volume) {
            vol.touch();
            self.0.notices.changed(ino_of(volume), range);
        }
    }
}

impl Mount {
    /// Mounts `volumes` at the folder `dir` and serves them; returns when they can be used.
    ///
    /// Errors: names that cannot be files' or are there twice, a device that is there twice, counts of threads that are
    /// out of range, a folder that cannot be mounted on.
    pub fn start(dir: &Path, volumes: Vec<Volume>, options: MountOptions) -> Result<Self> {
        check(&volumes, &options)?;
        let here = |e: std::io::Error| Error::os("cannot be mounted on", e).on(&dir.display().to_string());
        let dir = dir.canonicalize().map_err(here)?;
        let readers = options.readers;
        let shared = Arc::new(MountShared {
            volumes: volumes.into_iter().map(|v| Vol::new(v, &options)).collect(),
            files: Files::default(),
            free: AtomicUsize::new(readers),
            jobs: (0..=options.workers).map(|_| JobInbox::default()).collect(),
            notices: Notices::default(),
            stop: Interrupt::default(),
            copy_asked: AtomicBool::new(false),
            begun: SystemTime::now(),
            generation: Generation(nanos(SystemTime::now())),
            ending: Ending::default(),
            refresh: Mutex::default(),
            dir: dir.clone(),
            options,
        });
        // What runs on is needed to end the mount well, so a panic stops nothing here.
        let ending = shared.ending.clone();
        let workers = Crew::new(SERVICE, move |why| ending.end(Some(why)));
        let mut mount = Self { shared: shared.clone(), session: None, notifier: None, workers, place: None };
        for index in 0..shared.jobs.len() {
            let shared = shared.clone();
            let work = move |started| worker::run(&shared, index, started);
            mount.workers.start(format!("blkcopy-work-{index}"), work)?;
        }
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("blkcopy".to_owned()),
            MountOption::Subtype("blkcopy".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
        ];
        config.acl = if shared.options.owner.is_some() { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(readers);
        // A descriptor for each reader: measured as 0 to 10 % more at depth 16.
        config.clone_fd = true;
        let volumes = Volumes(shared.clone());
        let session = match attach::attach(&dir, &shared.options).map_err(|e| here(explained(e)))? {
            Some(fd) => {
                let session = Session::from_fd(volumes, fd, config.acl, config);
                session.inspect_err(|_| attach::detach(&dir))
            }
            None => Session::new(volumes, &dir, &config),
        };
        let session = session.map_err(|e| here(explained(e)))?;
        // From here on, whatever ends this early takes the mount away with it.
        mount.place = device_at(&dir);
        let thread = shared.notices.serve(session.notifier());
        if let Some(place) = mount.place {
            let cannot = |e| Error::os("a thread cannot be started", e);
            *shared.refresher() = Some(refresh::serve(dir.clone(), place).map_err(cannot)?);
        }
        mount.notifier = Some(thread.map_err(|e| Error::os("a thread cannot be started", e))?);
        let place = mount.place;
        let serve = move || {
            let why = session.run().err().filter(|error| !is_unmounted(error, &shared.dir, place));
            shared.ending.end(why.map(|error| Error::os("the mount ended", error)));
        };
        let thread = thread::Builder::new().name("blkcopy-mount".into()).spawn(serve);
        mount.session = Some(thread.map_err(|e| Error::os("a thread cannot be started", e))?);
        first_copy(&mount.shared)?;
        helpers::report_stalls();
        Ok(mount)
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// For others who change the devices.
    pub fn changed(&self) -> Changed {
        Changed(self.shared.clone())
    }

    /// Calls `waker` when the mount ends by itself (another process unmounted it, a thread failed), or did already.
    pub fn watch(&self, waker: Waker) {
        self.shared.ending.watch(waker);
    }

    /// True when the mount has ended by itself.
    pub fn is_over(&self) -> bool {
        self.shared.ending.is_over()
    }

    /// True when it ended by itself for a reason of its own: it was not unmounted.
    pub fn has_failed(&self) -> bool {
        self.shared.ending.has_failed()
    }

    /// Why the mount ended unexpectedly, once; none when it was unmounted.
    pub fn failure(&self) -> Option<Error> {
        self.shared.ending.take_failure()
    }

    /// Unmounts (files that are still open are waited for a few seconds, then fail), ends what is in flight and flushes
    /// every volume.
    ///
    /// Errors: that of the flush.
    pub fn stop(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(place) = self.place
            && !self.shared.stop.is_set()
        {
            // Also after a session that ended by itself: one that failed leaves a dead mount.
            unmount(&self.shared, place);
        }
        if let Some(session) = self.session.take() {
            let begun = Instant::now();
            while !session.is_finished() && begun.elapsed() < CLOSE_PATIENCE {
                thread::sleep(CLOSE_PATIENCE / 1000);
            }
            if !session.is_finished() {
                tracing::warn!(
                    files = self.shared.files.count(),
                    "files are still open; they fail from now on"
                );
                abort(&self.shared.dir, self.place);
            }
            while !session.is_finished() && begun.elapsed() < 2 * CLOSE_PATIENCE {
                thread::sleep(CLOSE_PATIENCE / 1000);
            }
            if session.is_finished() && session.join().is_err() {
                tracing::error!("{}", panicked(SERVICE));
            }
        }
        self.shared.notices.end();
        *self.shared.refresher() = None;
        if let Some(notifier) = self.notifier.take() {
            let _ = notifier.join();
        }
        let mut flushed = Ok(());
        // What is in flight ends, and is flushed with the rest.
        let begun = Instant::now();
        while self.workers.is_running(IO_WORKER) && self.shared.jobs.iter().any(|jobs| jobs.load() > 0) {
            if !self.workers.all_run() {
                break;
            }
            // What hangs may never end: the others are flushed meanwhile.
            if begun.elapsed() > CLOSE_PATIENCE && self.shared.volumes.iter().any(Vol::is_stuck) {
                tracing::warn!(
                    "a volume does not answer; the other volumes are flushed without waiting for it"
                );
                break;
            }
            thread::sleep(CLOSE_PATIENCE / 1000);
        }
        if self.workers.is_running(IO_WORKER) && !self.shared.stop.is_set() {
            let (flushed_tx, flushed_rx) = mpsc::channel();
            self.shared.io().leave(Job::FlushAll(flushed_tx));
            let lost = || Error::new(Kind::Aborted, "the worker that flushes ended before the flush did");
            flushed = loop {
                match flushed_rx.recv_timeout(CLOSE_PATIENCE / 50) {
                    Ok(flushed) => break flushed,
                    Err(_) if !self.workers.is_running(IO_WORKER) => {
                        break flushed_rx.try_recv().unwrap_or_else(|_| Err(lost()));
                    }
                    Err(_) => {}
                }
            };
        }
        self.shared.stop.set();
        self.shared.jobs.iter().for_each(JobInbox::close);
        self.workers.join(None);
        flushed
    }
}

/// True when a session ended because its mount is gone: a reader that comes late to a mount that was unmounted lazily
/// is told that the connection was aborted (Linux 6.18), as if that had been done to a mount that is still there.
fn is_unmounted(error: &std::io::Error, dir: &Path, place: Option<(u32, u32)>) -> bool {
    let is_aborted = error.raw_os_error() == Some(rustix::io::Errno::CONNABORTED.raw_os_error());
    is_aborted && device_at(dir).is_some_and(|now| Some(now) != place)
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::error!(?error, "the volumes could not be flushed");
        }
    }
}

/// Makes the first `copy_file_range` of the mount, one that copies nothing, before others make theirs.
///
/// Linux 6.18 tries a newer opcode first, which the FUSE library does not know, and then keeps to the older one. When
/// two first copies meet, the second refusal of the newer opcode is taken for one of the older: from then on the kernel
/// copies by itself for as long as the mount lives, past our locks, without a sign of it (`__fuse_copy_file_range`,
/// measured in half of the mounts that several threads began to use at once).
///
/// Errors: `Unsupported` when the kernel keeps copies to itself, now or because another process's first copy met this
/// one: then nothing here would be offloaded or locked, without a sign of it.
fn first_copy(shared: &MountShared) -> Result<()> {
    // The kernel asks for nothing where the source has no byte.
    let Some(vol) = shared.volumes.iter().find(|v| !v.read_only && v.size() > 0) else { return Ok(()) };
    let path = shared.dir.join(&*vol.name);
    let cannot = |e| Error::os("cannot be opened in its own mount", e).on(&vol.name);
    let file = std::fs::File::options().read(true).write(true).open(&path).map_err(cannot)?;
    // The second shows that no other first copy met ours.
    for _ in 0..2 {
        shared.copy_asked.store(false, Ordering::Relaxed);
        // Past the end of the volume there is no room: ENOSPC, without a byte touched.
        let (mut from, mut to) = (0, vol.capacity);
        let _refused = rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 1);
        if !shared.copy_asked.load(Ordering::Relaxed) {
            let text = "the kernel does not pass copy_file_range to this mount; mount again, and do not use the mount before it is ready";
            return Err(Error::new(Kind::Unsupported, text));
        }
    }
    Ok(())
}

/// The same error; where there is a usual reason, with it.
fn explained(error: std::io::Error) -> std::io::Error {
    let hint = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => {
            "FUSE is not available: does /dev/fuse exist, and is the module fuse loaded?"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "this user may not mount; run blkcopy as root, or install fusermount3"
        }
        Some(libc::ENOTCONN) => "the daemon of an earlier mount there has died: umount -l it first",
        _ => return error,
    };
    std::io::Error::new(error.kind(), format!("{hint} ({error})"))
}

/// False when something else is at the folder by now: what we would take away is not ours.
fn is_still_there(dir: &Path, place: Option<(u32, u32)>) -> bool {
    place.is_none() || device_at(dir) == place
}

/// Takes the mount away; files that are open stay usable until they are closed.
fn unmount(shared: &MountShared, place: (u32, u32)) {
    use rustix::io::Errno;
    let dir = &shared.dir;
    if !is_still_there(dir, Some(place)) {
        tracing::info!(files = shared.files.count(), "unmounted by another process; files are still open");
        return;
    }
    match rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW) {
        Ok(()) => {}
        Err(Errno::BUSY)
            if rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).is_ok() =>
        {
            tracing::info!(
                files = shared.files.count(),
                "files are open; the mount ends once they are closed"
            );
        }
        // Not root: the helper that mounted it takes it away.
        Err(error) => {
            let mut helper = Command::new("fusermount3");
            helper
                .args(["-u", "-z", "--"])
                .arg(dir)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            if !helper.status().is_ok_and(|status| status.success()) {
                tracing::warn!(%error, dir = %dir.display(), "cannot be unmounted");
            }
        }
    }
}

/// Ends the connection: requests that still wait for an answer get an error.
fn abort(dir: &Path, place: Option<(u32, u32)>) {
    // A connection is called by the minor number; this also reaches one whose mount was detached.
    if let Some((_, minor)) = place
        && std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").is_ok()
    {
        return;
    }
    // Forced, the kernel lets go of the connection of a mount that is there; one that was detached ends with this
    // process.
    if is_still_there(dir, place) {
        let _ = rustix::mount::unmount(dir, UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
}

//! A new regular file that gets its name when it is good.
//!
//! Nameless until then where the file system can (`O_TMPFILE`): whatever ends the process, nothing is left. Elsewhere
//! it has a hidden name beside the one it will get. What an ended copy leaves behind:
//! `docs/notes/010-what-an-ended-copy-leaves.md`.

use super::File;
use crate::block::{Error, Kind, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Longest name of a file, in bytes, on every file system of Linux that counts in bytes.
const NAME_MAX: usize = 255;
/// How many hidden names are tried before giving up: each is taken only when another copy made it just now.
const TRIES: u32 = 100;

/// A new file on its way to its name.
pub struct Fresh {
    file: Arc<File>,
    /// The folder it was made in, wherever that is by now.
    folder: OwnedFd,
    name: OsString,
    /// Its name until it is good; `None`: it has none.
    hidden: Option<OsString>,
    published: AtomicBool,
}

impl Fresh {
    /// Makes an empty file that will be `path`, which must not exist. `mode`: its permission bits, less the umask.
    ///
    /// Errors: `InvalidInput` for a path that names a folder; those of the system, such as `Permission`.
    pub fn create(path: &Path, mode: u32) -> Result<Self> {
        let shown = path.display().to_string();
        Self::create_named(path, &shown, mode).map_err(|e| e.on(&shown))
    }

    fn create_named(path: &Path, shown: &str, mode: u32) -> Result<Self> {
        let Some(name) = file_name(path) else {
            return Err(Error::new(
                Kind::InvalidInput,
                "names a folder; leave out the trailing /, or make the folder first",
            ));
        };
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent, flags, Mode::empty())
            .map_err(|e| Error::os(format!("cannot be made in {}", parent.display()), e))?;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let (fd, hidden) = match nameless(&folder, mode) {
            Some(fd) => (fd, None),
            None => {
                let (fd, hidden) = make_hidden(&folder, &name, mode)?;
                (fd, Some(hidden))
            }
        };
        let file = Arc::new(File::just_made(fd, path, shown.to_owned())?);
        Ok(Self { file, folder, name, hidden, published: AtomicBool::new(false) })
    }

    /// The file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Gives it its name, once.
    ///
    /// Errors: `InUse` when something has that name by now; `NotFound` when the folder is gone. The file is lost then,
    /// as it is when this is dropped without a name.
    pub fn publish(&self) -> Result<()> {
        let done = match &self.hidden {
            None => {
                let link = format!("/proc/self/fd/{}", self.file.fd().as_raw_fd());
                rustix::fs::linkat(CWD, link, &self.folder, &*self.name, AtFlags::SYMLINK_FOLLOW)
            }
            Some(hidden) => rename(&self.folder, hidden, &self.name),
        };
        done.map_err(|error| {
            let text = match error {
                Errno::EXIST => {
                    let text =
                        "another program has made a file with this name meanwhile; check it, and copy again";
                    return Error::new(Kind::InUse, text).because(std::io::Error::from(error));
                }
                Errno::NOENT => "the folder for it was removed during the copy, so the copy is lost",
                _ => "the finished copy could not be given its name, so it is lost",
            };
            Error::os(text, error)
        })
        .map_err(|e| e.on(self.file.core.name.as_str()))?;
        self.published.store(true, Ordering::Release);
        Ok(())
    }

    /// True once it has its name.
    pub fn is_published(&self) -> bool {
        self.published.load(Ordering::Acquire)
    }

    /// Makes its name durable: `fsync` of its folder.
    pub fn sync_folder(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.folder, ".", flags, Mode::empty())
            .and_then(rustix::fs::fsync)
            .map_err(|e| Error::os("its folder cannot be synced", e).on(self.file.core.name.as_str()))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let (Some(hidden), false) = (&self.hidden, self.is_published()) {
            // Nobody is left to be told; the name says what it is.
            let _ = rustix::fs::unlinkat(&self.folder, &**hidden, AtFlags::empty());
        }
    }
}

/// The last part of a path that can be a file's name: not of one that ends in `/`, `.` or `..`.
fn file_name(path: &Path) -> Option<OsString> {
    let bytes = path.as_os_str().as_bytes();
    let name = bytes.rsplit(|&b| b == b'/').next()?;
    (!matches!(name, b"" | b"." | b"..")).then(|| OsStr::from_bytes(name).to_owned())
}

/// A nameless file in `folder`, if the file system has them and this process may name it later.
fn nameless(folder: &OwnedFd, mode: Mode) -> Option<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(folder, ".", flags, mode).ok()?;
    // What would be found out after the copy otherwise: that /proc is not there, or that a sandbox forbids links. A
    // name that is always taken is refused as taken only where all else is in order.
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let tried = rustix::fs::linkat(CWD, link, folder, ".", AtFlags::SYMLINK_FOLLOW);
    (tried == Err(Errno::EXIST)).then_some(fd)
}

/// A file called `.NAME.blkcopy-XXXXXXXX`, cut to what a name may be.
fn make_hidden(folder: &OwnedFd, name: &OsStr, mode: Mode) -> Result<(OwnedFd, OsString)> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    for _ in 0..TRIES {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let mark = std::process::id().wrapping_mul(0x9e37_79b9) ^ now.subsec_nanos().rotate_left(7) ^ serial;
        let end = format!(".blkcopy-{mark:08x}");
        let keep = name.len().min(NAME_MAX - 1 - end.len());
        let hidden = [b".", &name.as_bytes()[..keep], end.as_bytes()].concat();
        let hidden = OsString::from_vec(hidden);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let made = rustix::fs::openat(folder, &*hidden, flags | OFlags::RDWR, mode);
        // Some file systems let a file be written and not read.
        let made = match made {
            Err(Errno::ACCESS | Errno::PERM) => {
                rustix::fs::openat(folder, &*hidden, flags | OFlags::WRONLY, mode)
            }
            made => made,
        };
        match made {
            Ok(fd) => return Ok((fd, hidden)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::os("cannot be created", error)),
        }
    }
    Err(Error::new(Kind::InUse, "cannot be created: every temporary name that was tried exists"))
}

/// Renames within `folder` without replacing what is there.
fn rename(folder: &OwnedFd, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
        done => return done,
    }
    // Without that call a link says whether the name is taken; without links a look does, a moment before.
    match rustix::fs::linkat(folder, from, folder, to, AtFlags::empty()) {
        Ok(()) => return rustix::fs::unlinkat(folder, from, AtFlags::empty()),
        Err(Errno::EXIST) => return Err(Errno::EXIST),
        Err(_) => {}
    }
    match rustix::fs::statat(folder, to, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => rustix::fs::renameat(folder, from, folder, to),
        Ok(_) => Err(Errno::EXIST),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        all.sort();
        all
    }

    /// Each way that there is here: as it comes, and with a hidden name.
    fn both(dir: &Path, name: &str) -> [Fresh; 2] {
        let one = Fresh::create(&dir.join(name), 0o640).unwrap();
        let two_name = format!("{name}2");
        let mut two = Fresh::create(&dir.join(&two_name), 0o640).unwrap();
        if two.hidden.is_none() {
            let (fd, hidden) = make_hidden(&two.folder, &two.name, Mode::from_raw_mode(0o640)).unwrap();
            two.file = Arc::new(File::over(fd, &dir.join(&two_name), two_name, true).unwrap());
            two.hidden = Some(hidden);
        }
        [one, two]
    }

    #[test]
    fn a_new_file_has_its_name_only_when_it_is_good() {
        let dir = tempfile::tempdir().unwrap();
        for fresh in both(dir.path(), "x") {
            let shown = |name: &String| !name.starts_with('.');
            assert!(!names(dir.path()).contains(&fresh.name.to_string_lossy().into_owned()));
            assert!(names(dir.path()).iter().filter(|n| !shown(n)).count() <= 1);
            fresh.file().set_len(5).unwrap();
            fresh.publish().unwrap();
            fresh.sync_folder().unwrap();
            let meta = dir.path().join(&fresh.name).metadata().unwrap();
            assert_eq!((meta.len(), meta.permissions().mode() & 0o777 & !0o640), (5, 0));
            drop(fresh);
        }
        assert_eq!(names(dir.path()), ["x", "x2"]);
        both(dir.path(), "gone").into_iter().for_each(drop);
        assert_eq!(names(dir.path()), ["x", "x2"], "what was given up is gone");
    }

    #[test]
    fn a_name_that_is_taken_meanwhile_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for fresh in both(dir.path(), "x") {
            let path = dir.path().join(&fresh.name);
            std::fs::write(&path, b"theirs").unwrap();
            assert_eq!(fresh.publish().unwrap_err().kind(), Kind::InUse);
            drop(fresh);
            assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        }
        assert_eq!(names(dir.path()), ["x", "x2"]);
    }

    #[test]
    fn a_folder_that_vanishes_is_told() {
        for way in 0..2 {
            let dir = tempfile::tempdir().unwrap();
            let inner = dir.path().join("inner");
            std::fs::create_dir(&inner).unwrap();
            let fresh = both(&inner, "x").into_iter().nth(way).unwrap();
            std::fs::remove_dir_all(&inner).unwrap();
            let error = fresh.publish().unwrap_err();
            assert_eq!(error.kind(), Kind::NotFound);
            assert!(error.to_string().contains("the folder for it was removed during the copy"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_a_files_name_is_refused() {
        for path in ["/tmp/", "x/", ".", "..", "x/..", ""] {
            assert_eq!(file_name(Path::new(path)), None, "{path}");
        }
        assert_eq!(file_name(Path::new("a/b")).unwrap(), "b");
        assert_eq!(
            Fresh::create(Path::new("/tmp/nothing/"), 0o600).err().unwrap().kind(),
            Kind::InvalidInput
        );
        // The longest name there is leaves room for no mark: it is cut for as long as it is hidden.
        let dir = tempfile::tempdir().unwrap();
        let fresh = both(dir.path(), &"n".repeat(254));
        fresh.iter().for_each(|fresh| fresh.publish().unwrap());
    }
}

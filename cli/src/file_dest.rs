//! A regular file as destination: made, cut or extended as `cp` would, and put right when the copy ends early.

use crate::fail::Fail;
use crate::output::{Finding, size_exact};
use blkcopy::block::device::LeafSpace;
use blkcopy::block::receipt::{Outcome, Receipt};
use blkcopy::block::{Device, Error, Identity, Kind, LeafId};
use blkcopy::copy::Segment;
use blkcopy::drivers::{File, FileOptions, Hold, hold};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A destination file before anything is done to it.
pub(crate) struct FileDest {
    path: PathBuf,
    /// Open for writing, when it exists.
    pub(crate) existing: Option<Arc<File>>,
    /// Bytes outside the copied ranges stay.
    in_place: bool,
    old_len: u64,
    /// Length it will have, in bytes.
    pub(crate) final_len: u64,
}

/// A destination file that can be written to.
pub(crate) struct Begun {
    pub(crate) device: Arc<dyn Device>,
    /// See [`blkcopy::copy::Policy::dest_zero_from`].
    pub(crate) zero_from: u64,
    pub(crate) made: Made,
    pub(crate) hold: Hold,
}

/// What was done to a destination file.
pub(crate) struct Made {
    file: Arc<File>,
    /// Made by this copy.
    created: bool,
    /// Its length before the copy; 0 when it was cut or made.
    kept_len: u64,
    /// Where the one segment goes; `None` when there are several.
    single: Option<u64>,
}

impl FileDest {
    /// Opens it if it exists; changes nothing. `end`: where the last copied byte ends.
    pub(crate) fn look(path: &Path, exists: bool, in_place: bool, end: u64) -> Result<Self, Fail> {
        let existing = match exists {
            true => Some(File::open(path, FileOptions { write: true, create: false })?),
            false => None,
        };
        if !exists {
            check_place(path)?;
        }
        let old_len = existing.as_ref().map_or(0, |f| f.size());
        let final_len = if in_place { old_len.max(end) } else { end };
        Ok(Self { path: path.to_owned(), existing, in_place, old_len, final_len })
    }

    /// Makes it, holds it, then cuts or extends it. `mode`: permission bits of a file that is made, instead of 0666 less
    /// the umask. An error leaves everything as it was.
    pub(crate) fn begin(self, mode: Option<u32>, segments: &[Segment]) -> Result<Begun, Fail> {
        let file = match &self.existing {
            Some(file) => file.clone(),
            None => create(&self.path, mode)?,
        };
        let single = match segments {
            [one] => Some(one.dest),
            _ => None,
        };
        let kept_len = if self.in_place { self.old_len } else { 0 };
        let made = Made { file: file.clone(), created: file.created(), kept_len, single };
        let device: Arc<dyn Device> = file.clone();
        let begun = hold_dest(&device).and_then(|hold| {
            // What was looked at before the hold decides which bytes are kept and which are known to be zero.
            let len = file.len_now()?;
            if len != self.old_len {
                let text = format!(
                    "another program changed its length from {} to {len} bytes just now",
                    self.old_len
                );
                return Err(Fail::from(Error::new(Kind::InUse, text).on(file.name()))
                    .hint("copy again when it has ended"));
            }
            Ok((hold, self.set_size(&file)?))
        });
        let hold = match begun {
            Ok((hold, ())) => hold,
            Err(fail) => {
                if made.created {
                    made.remove();
                }
                return Err(fail);
            }
        };
        let zero_from = if self.final_len > kept_len || kept_len == 0 { kept_len } else { u64::MAX };
        Ok(Begun { device, zero_from, made, hold })
    }

    fn set_size(&self, file: &File) -> Result<(), Error> {
        if !self.in_place && self.old_len > 0 {
            if self.final_len > self.old_len {
                // A length that cannot be had is refused while the old bytes are still there.
                file.set_len(self.final_len)?;
            }
            file.set_len(0)?;
        }
        if file.size() != self.final_len {
            file.set_len(self.final_len)?;
        }
        Ok(())
    }

    /// A file for the planner to look at, like the destination will be; the destination itself when that stays as it is.
    pub(crate) fn stand_in(&self) -> Result<(Arc<dyn Device>, u64), Finding> {
        if let Some(file) = &self.existing
            && self.in_place
            && self.final_len == self.old_len
        {
            return Ok((file.clone(), u64::MAX));
        }
        let zero_from = if self.in_place { self.old_len } else { 0 };
        match nameless(&self.folder(), self.final_len) {
            Ok(device) => Ok((device, zero_from)),
            Err(error) => Err(Finding::warn(
                format!("the extents cannot be planned without making {}: {error}", self.path.display()),
                "run cp; its receipt has the methods",
            )),
        }
    }

    fn folder(&self) -> PathBuf {
        // An existing file may be reached through a link: its own file system counts.
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        folder_of(&path).to_owned()
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Says clearly why a file cannot be made, before anything is.
fn check_place(path: &Path) -> Result<(), Fail> {
    if path.symlink_metadata().is_ok() {
        let error =
            Error::new(Kind::InvalidInput, "is a symbolic link to nothing").on(&path.display().to_string());
        return Err(Fail::from(error).hint("remove the link, or name the file it should lead to"));
    }
    let folder = folder_of(path);
    let problem = match std::fs::metadata(folder) {
        Ok(meta) if !meta.is_dir() => {
            Error::new(Kind::InvalidInput, format!("{} is no directory", folder.display()))
        }
        Ok(_) => return Ok(()),
        Err(error) => Error::os(format!("cannot be made in {}", folder.display()), error),
    };
    Err(Fail::from(problem.on(&path.display().to_string()))
        .hint("make the directory, or name another destination"))
}

fn create(path: &Path, mode: Option<u32>) -> Result<Arc<File>, Fail> {
    let options = FileOptions { write: true, create: true };
    let Some(mode) = mode else { return made_now(File::open(path, options)?) };
    // Nobody else may open it before it has the source's mode.
    let umask = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let file = File::open(path, options);
    rustix::process::umask(umask);
    let file = made_now(file?)?;
    if let Err(error) = file.set_mode(mode) {
        let _ = std::fs::remove_file(path);
        return Err(error.into());
    }
    Ok(file)
}

/// A file that was not there must have been made by us: another's contents are neither zero nor ours to overwrite.
fn made_now(file: Arc<File>) -> Result<Arc<File>, Fail> {
    if file.created() {
        return Ok(file);
    }
    let error = Error::new(Kind::InUse, "another program made it just now").on(file.name());
    Err(Fail::from(error).hint("look at it, and copy again"))
}

/// Keeps others away from a destination.
pub(crate) fn hold_dest(device: &Arc<dyn Device>) -> Result<Hold, Fail> {
    hold(device, true)
        .map_err(|e| Fail::from(e).hint("wait for the other program, or name another destination"))
}

/// Takes down that only the good prefix is left.
fn cut_off(receipt: &mut Receipt) {
    receipt.cut_off_bytes = receipt.good_bytes - receipt.good_prefix_bytes;
    receipt.good_bytes = receipt.good_prefix_bytes;
}

/// A nameless file of `len` bytes in `folder`: gone when it is closed.
fn nameless(folder: &Path, len: u64) -> Result<Arc<dyn Device>, Error> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| Error::os(format!("{} takes no nameless files", folder.display()), e))?;
    let file =
        File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()), FileOptions { write: true, create: false })?;
    file.set_len(len)?;
    Ok(file)
}

impl Made {
    /// After a copy that went well: the name durable, mode and times as the source's.
    pub(crate) fn finish(&self, sync: bool, preserve: Option<&std::fs::Metadata>) -> Result<(), Error> {
        if let Some(meta) = preserve {
            self.file.set_mode(meta.mode())?;
            let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
            self.file.set_times(&rustix::fs::Timestamps {
                last_access: time(meta.atime(), meta.atime_nsec()),
                last_modification: time(meta.mtime(), meta.mtime_nsec()),
            })?;
            if sync {
                self.file.sync_all()?;
            }
        }
        if sync && self.created {
            self.file.sync_parent()?;
        }
        Ok(())
    }

    /// After a copy that ended early: what is not good is cut off where that can be told, and good bytes behind it too,
    /// which the receipt then says. Returns a note about it.
    pub(crate) fn put_right(&self, receipt: &mut Receipt) -> Option<String> {
        if matches!(receipt.outcome, Outcome::Done | Outcome::Mismatch) {
            return None;
        }
        let name = self.file.name();
        let first_bad = receipt.good_prefix_bytes;
        let useless = receipt.good_bytes == 0 || self.single.is_some() && first_bad == 0;
        if self.created && useless {
            cut_off(receipt);
            return self.remove().then(|| format!("{name}: removed, nothing in it is known to be good"));
        }
        let Some(start) = self.single else {
            return Some(format!("{name}: kept as it is; the receipt says what was done"));
        };
        let len = self.kept_len.max(start.saturating_add(first_bad));
        if len >= self.file.size() {
            return None;
        }
        Some(match self.file.set_len(len) {
            Ok(()) => {
                cut_off(receipt);
                format!("{name}: cut to {}, all of it good", size_exact(len))
            }
            Err(error) => format!("{name}: kept whole, though only the first {len} bytes are good: {error}"),
        })
    }

    /// Removes the file, if its name still leads to it.
    fn remove(&self) -> bool {
        let path = self.file.path();
        let Ok(meta) = path.symlink_metadata() else { return false };
        let leaf = LeafId { space: LeafSpace::File, id: (meta.dev(), meta.ino()) };
        self.file.identity() == Identity::Leaf { leaf, base: 0 } && std::fs::remove_file(path).is_ok()
    }
}

//! A regular file as destination: made, cut or extended as `cp` would, and put right when the copy ends early.
//!
//! A new file gets its name when it is good. What an ended copy leaves behind, and why: `docs/notes/010-what-an-ended-copy-leaves.md`.

use crate::fail::Fail;
use crate::output::{Finding, size_exact};
use crate::preserve::Kept;
use blkcopy::block::receipt::{Outcome, Receipt};
use blkcopy::block::{Device, Error, Kind};
use blkcopy::copy::Segment;
use blkcopy::drivers::{File, FileOptions, Fresh, Hold, hold};
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
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
    /// It could not be given its length first: it is to be written from the front.
    pub(crate) in_order: bool,
    pub(crate) made: Made,
    pub(crate) hold: Hold,
}

/// What was done to a destination file.
pub(crate) struct Made {
    file: Arc<File>,
    /// Made by this copy.
    fresh: Option<Fresh>,
    in_place: bool,
    /// Its length before the copy; 0 when it was cut or made.
    kept_len: u64,
    final_len: u64,
    segments: Vec<Segment>,
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

    /// Makes it, holds it, then cuts or extends it. `mode`: permission bits of a file that is made, less the umask. An error
    /// leaves everything as it was.
    pub(crate) fn begin(self, mode: u32, segments: &[Segment]) -> Result<Begun, Fail> {
        let (file, fresh) = match &self.existing {
            Some(file) => (file.clone(), None),
            None => {
                let fresh = Fresh::create(&self.path, mode)?;
                (fresh.file().clone(), Some(fresh))
            }
        };
        let kept_len = if self.in_place { self.old_len } else { 0 };
        let device: Arc<dyn Device> = file.clone();
        let hold = hold_dest(&device)?;
        // What was looked at before the hold decides which bytes are kept and which are known to be zero.
        let len = file.len_now()?;
        if len != self.old_len {
            let text =
                format!("another program changed its length from {} to {len} bytes just now", self.old_len);
            return Err(Fail::from(Error::new(Kind::InUse, text).on(file.name()))
                .hint("copy again when it has ended"));
        }
        let in_order = !self.set_size(&file)?;
        let zeroed = !in_order && (self.final_len > kept_len || kept_len == 0);
        let zero_from = if zeroed { kept_len } else { u64::MAX };
        let (in_place, final_len) = (self.in_place, self.final_len);
        let made = Made { file, fresh, in_place, kept_len, final_len, segments: segments.to_vec() };
        Ok(Begun { device, zero_from, in_order, made, hold })
    }

    /// False: it could not be made longer first.
    fn set_size(&self, file: &File) -> Result<bool, Error> {
        let mut grown = true;
        if !self.in_place && self.old_len > 0 {
            if self.final_len > self.old_len {
                // A length that cannot be had is refused while the old bytes are still there.
                file.grow(self.final_len)?;
            }
            file.set_len(0)?;
        }
        if self.final_len > file.size() {
            grown = file.grow(self.final_len)?;
        } else if self.final_len < file.size() {
            file.set_len(self.final_len)?;
        }
        Ok(grown)
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
        let made = nameless(&self.folder(), &self.path.display().to_string());
        match made.and_then(|file| file.set_len(self.final_len).map(|()| file)) {
            Ok(device) => Ok((Arc::new(device), zero_from)),
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

pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Says clearly why a file cannot be made, before anything is.
fn check_place(path: &Path) -> Result<(), Fail> {
    let name = path.display().to_string();
    if path.as_os_str().as_bytes().ends_with(b"/") {
        let error = Error::new(Kind::InvalidInput, "names a directory that does not exist").on(&name);
        return Err(Fail::from(error).hint("make the directory, or leave out the / at the end"));
    }
    if path.symlink_metadata().is_ok() {
        let error = Error::new(Kind::InvalidInput, "is a symbolic link to nothing").on(&name);
        return Err(Fail::from(error).hint("remove the link, or name the file it should lead to"));
    }
    let folder = folder_of(path);
    let problem = match std::fs::metadata(folder) {
        Ok(meta) if !meta.is_dir() => {
            Error::new(Kind::InvalidInput, format!("{} is not a directory", folder.display()))
        }
        Ok(meta) if holds_device_nodes(&meta) => {
            let text = format!(
                "no such device, and {} takes device nodes, not files: what is written there stays in memory and is gone after a restart",
                folder.display()
            );
            let error = Error::new(Kind::NotFound, text).on(&name);
            return Err(Fail::from(error).hint("check the name of the device, or name a file elsewhere"));
        }
        Ok(_) => return Ok(()),
        Err(error) => Error::os(format!("cannot be made in {}", folder.display()), error),
    };
    Err(Fail::from(problem.on(&name)).hint("make the directory, or name another destination"))
}

/// True for a folder of the file system that `/dev` is. The kernel's is one, however often it is mounted.
fn holds_device_nodes(folder: &std::fs::Metadata) -> bool {
    let dev = |path: &str| std::fs::metadata(path).ok().map(|m| m.dev());
    dev("/dev") == Some(folder.dev()) && dev("/") != Some(folder.dev())
}

/// Keeps others away from a destination.
pub(crate) fn hold_dest(device: &Arc<dyn Device>) -> Result<Hold, Fail> {
    hold(device, true)
        .map_err(|e| Fail::from(e).hint("wait for the other program, or name another destination"))
}

/// Takes down that only the good prefix is left.
fn cut_off(receipt: &mut Receipt) {
    receipt.cut_off_bytes += receipt.good_bytes - receipt.good_prefix_bytes;
    receipt.good_bytes = receipt.good_prefix_bytes;
}

/// Takes down that nothing is left.
fn cut_off_all(receipt: &mut Receipt) {
    receipt.cut_off_bytes += receipt.good_bytes;
    receipt.good_bytes = 0;
    receipt.good_prefix_bytes = 0;
}

/// True where a call is not to be had, rather than failed at its work.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unsupported | Kind::InvalidInput | Kind::Permission)
}

/// A nameless file in `folder`, called `name` in messages: gone when it is closed.
pub(crate) fn nameless(folder: &Path, name: &str) -> Result<File, Error> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| Error::os(format!("{} takes no nameless files", folder.display()), e))?;
    File::over(fd, Path::new(name), name.to_owned(), true)
}

impl Made {
    /// Whether what was written is there, after all that was asked of the file system: it may answer for a write only when the file
    /// is closed, and another program may have cut the file.
    ///
    /// Errors: no byte is known to be good.
    pub(crate) fn settle(&self) -> Result<(), Error> {
        self.file.close_checked()?;
        let len = self.file.len_now()?;
        if len == self.final_len || (len > self.final_len && self.in_place) {
            return Ok(());
        }
        let text = format!(
            "another program changed its length from {} to {len} bytes while it was copied to; copy again",
            self.final_len
        );
        Err(Error::new(Kind::InUse, text).on(self.file.name()))
    }

    /// After a copy that went well: owner, mode and times as the source's, the name given and durable. Returns what is to be warned of.
    ///
    /// Errors: the copy is not what was asked for; a new file has no name then.
    pub(crate) fn finish(&self, sync: bool, preserve: Option<&Kept>) -> Result<Vec<String>, Error> {
        let mut warnings = Vec::new();
        if let Some(kept) = preserve {
            kept.give(&self.file, self.fresh.is_some(), &mut warnings)?;
        }
        if let Some(fresh) = &self.fresh {
            fresh.publish()?;
        }
        let mut warn = |error: &Error| {
            let cause = std::error::Error::source(error).map_or(String::new(), |c| format!(" ({c})"));
            warnings.push(format!(
                "{error}{cause}: the bytes are durable, the name may be gone after a power cut"
            ));
        };
        if sync && (preserve.is_some() || self.fresh.is_some()) {
            // Some file systems write a new name only with the file.
            match self.file.sync_all() {
                Err(error) if is_refusal(&error) => warn(&error),
                done => done?,
            }
        }
        if sync
            && let Some(fresh) = &self.fresh
            && let Err(error) = fresh.sync_folder()
        {
            warn(&error);
        }
        Ok(warnings)
    }

    /// After a copy that ended early: what is not good is cut off where that can be told, and good bytes past it too,
    /// which the receipt then says. Returns a note about it.
    pub(crate) fn put_right(&self, receipt: &mut Receipt) -> Option<String> {
        if receipt.outcome == Outcome::Done {
            return None;
        }
        let Some(fresh) = &self.fresh else {
            return if receipt.outcome == Outcome::Mismatch { None } else { self.cut(receipt) };
        };
        let name = self.file.name();
        if fresh.is_published() {
            return Some(format!("{name}: kept; the receipt says what was done"));
        }
        if receipt.outcome == Outcome::Mismatch {
            return Some(format!("{name}: not made, because what was copied is not equal to the source"));
        }
        let (good, end) = (receipt.good_prefix_bytes, self.good_end(receipt));
        let whole = good == receipt.requested_bytes;
        if good == 0 || (end >= self.final_len && !whole) {
            cut_off_all(receipt);
            return Some(format!("{name}: not made, nothing in it is known to be good"));
        }
        let kept = self.file.set_len(end.max(if whole { self.final_len } else { 0 }));
        // A partial copy is worth its name: its length says that it is one, and it can be gone on with.
        Some(match kept.and_then(|()| fresh.publish()) {
            Ok(()) if whole => format!("{name}: kept, all of it copied"),
            Ok(()) => {
                cut_off(receipt);
                format!("{name}: cut to {}, all of it good", size_exact(end))
            }
            Err(error) => {
                cut_off_all(receipt);
                format!("{name}: not made, because it could not be cut to what is good: {error}")
            }
        })
    }

    /// Cuts a destination that was there before.
    fn cut(&self, receipt: &mut Receipt) -> Option<String> {
        let name = self.file.name();
        if self.segments.len() != 1 {
            return Some(format!("{name}: kept as it is; the receipt says what was done"));
        }
        let len = self.kept_len.max(self.good_end(receipt));
        if len >= self.file.len_now().unwrap_or(u64::MAX) {
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

    /// Where the good prefix ends in the file; 0 when there is none.
    fn good_end(&self, receipt: &Receipt) -> u64 {
        let (mut left, mut end) = (receipt.good_prefix_bytes, 0);
        for segment in &self.segments {
            let here = segment.len.min(left);
            if here == 0 && left == 0 {
                break;
            }
            end = end.max(segment.dest.saturating_add(here));
            left -= here;
        }
        end
    }
}

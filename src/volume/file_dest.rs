//! A regular file as destination: made, cut or extended as `cp` would, and put right when the copy ends early.
//!
//! A new file gets its name when it is good. What an ended copy leaves behind, and why:
//! `docs/notes/010-what-an-ended-copy-leaves.md`.

use super::findings::{Finding, Left, Obstacle};
use super::preserve::Kept;
use crate::block::receipt::{Outcome, Receipt};
use crate::block::{Device, Error, Kind, Result};
use crate::copy::Segment;
use crate::drivers::{File, FileOptions, Fresh, Hold, HoldAs, hold};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A destination file before anything is done to it.
pub(super) struct FileDest {
    path: PathBuf,
    /// Open for writing, when it exists.
    pub(super) existing: Option<Arc<File>>,
    /// Bytes outside the copied ranges stay.
    in_place: bool,
    old_len: u64,
    /// Length it will have, in bytes.
    pub(super) final_len: u64,
}

/// A destination file that can be written to.
pub(super) struct Begun {
    pub(super) device: Arc<dyn Device>,
    /// See [`crate::copy::Policy::dest_zero_from`].
    pub(super) zero_from: u64,
    /// It could not be given its length first: it is to be written from the front.
    pub(super) in_order: bool,
    pub(super) made: Made,
    pub(super) hold: Hold,
}

/// What was done to a destination file.
pub(super) struct Made {
    file: Arc<File>,
    /// Made by this copy.
    fresh: Option<Fresh>,
    in_place: bool,
    /// Its length before the copy; 0 when it was cut or made.
    kept_len: u64,
    final_len: u64,
    segments: Vec<Segment>,
}

/// A file that was made to try things out on.
pub(super) enum Scratch {
    Nameless(Box<File>),
    Hidden(Fresh),
}

impl Scratch {
    pub(super) fn file(&self) -> &File {
        match self {
            Self::Nameless(file) => file,
            Self::Hidden(fresh) => fresh.file(),
        }
    }
}

impl FileDest {
    /// Opens it if it exists; changes nothing. `end`: where the last copied byte ends. Only what is `to_be_written` is
    /// opened for writing: an overlay copies a file up for that.
    pub(super) fn look(
        path: &Path,
        exists: bool,
        in_place: bool,
        end: u64,
        to_be_written: bool,
    ) -> Result<Self, Obstacle> {
        let existing = match exists {
            true => Some(File::open(path, FileOptions { write: to_be_written, create: false })?),
            false => None,
        };
        if !exists {
            check_place(path)?;
        }
        let old_len = existing.as_ref().map_or(0, |f| f.size());
        let final_len = if in_place { old_len.max(end) } else { end };
        Ok(Self { path: path.to_owned(), existing, in_place, old_len, final_len })
    }

    /// Makes it, holds it, then cuts or extends it. `mode`: permission bits of a file that is made, less the umask. An
    /// error leaves everything as it was.
    ///
    /// `force_in_use`: whoever uses it is known, and it was consented to.
    pub(super) fn begin(
        &self,
        mode: u32,
        segments: &[Segment],
        force_in_use: bool,
    ) -> Result<Begun, Obstacle> {
        let (file, fresh) = match &self.existing {
            Some(file) => (file.clone(), None),
            None => {
                let fresh = Fresh::create(&self.path, mode)?;
                (fresh.file().clone(), Some(fresh))
            }
        };
        let kept_len = if self.in_place { self.old_len } else { 0 };
        let device: Arc<dyn Device> = file.clone();
        let hold = hold_dest(&device, force_in_use)?;
        // What was looked at before the hold decides which bytes are kept and which are known to be zero.
        let len = file.len_now()?;
        if len != self.old_len {
            let dest = file.name().to_owned();
            return Err(Finding::DestLenChanged { dest, from: self.old_len, to: len }.into());
        }
        let in_order = !self.set_size(&file)?;
        let zeroed = !in_order && (self.final_len > kept_len || kept_len == 0);
        let zero_from = if zeroed { kept_len } else { u64::MAX };
        let (in_place, final_len) = (self.in_place, self.final_len);
        let made = Made { file, fresh, in_place, kept_len, final_len, segments: segments.to_vec() };
        Ok(Begun { device, zero_from, in_order, made, hold })
    }

    /// False: it could not be made longer first.
    fn set_size(&self, file: &File) -> Result<bool> {
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

    /// Bytes that can be written before its file system is full, those of a file that is cut first among them. `None`:
    /// not known, or some of it is written over.
    pub(super) fn room(&self) -> Option<u64> {
        let kept = self.existing.as_ref().map(|file| file.allocated_bytes().unwrap_or(0));
        if self.in_place && kept.is_some() {
            return None;
        }
        let fs = rustix::fs::statvfs(self.folder()).ok().filter(|fs| fs.f_blocks > 0)?;
        fs.f_bavail.checked_mul(fs.f_frsize)?.checked_add(kept.unwrap_or(0))
    }

    /// A file for the planner to look at, like the destination will be; the destination itself when that stays as it
    /// is.
    pub(super) fn stand_in(&self) -> Result<(Arc<dyn Device>, u64), Finding> {
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
            Err(error) => Err(Finding::ExtentsNotPlanned { dest: self.path.clone(), error }),
        }
    }

    /// A file in the destination's folder to try things out on: it is like the destination, and goes when it is
    /// dropped.
    ///
    /// Errors: why there is none.
    pub(super) fn scratch(&self, may_name: bool) -> Result<Scratch, String> {
        let shown = self.path.display().to_string();
        let scratch = match nameless(&self.folder(), &shown) {
            Ok(file) => Scratch::Nameless(Box::new(file)),
            Err(error) if !may_name => return Err(error.to_string()),
            Err(_) => Scratch::Hidden(Fresh::create(&self.path, 0o600).map_err(|e| e.to_string())?),
        };
        if let Some(file) = &self.existing {
            scratch.file().be_like(file);
        }
        Ok(scratch)
    }

    fn folder(&self) -> PathBuf {
        // An existing file may be reached through a link: its own file system counts.
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        folder_of(&path).to_owned()
    }
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Says clearly why a file cannot be made, before anything is.
fn check_place(path: &Path) -> Result<(), Obstacle> {
    let dest = path.display().to_string();
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err(Finding::FolderMissing { dest }.into());
    }
    if path.symlink_metadata().is_ok() {
        return Err(Finding::LinkToNothing { dest }.into());
    }
    let folder = folder_of(path);
    let problem = match std::fs::metadata(folder) {
        Ok(meta) if !meta.is_dir() => {
            Error::new(Kind::InvalidInput, format!("{} is not a directory", folder.display()))
        }
        Ok(meta) if holds_device_nodes(&meta) => {
            return Err(Finding::NoSuchDevice { dest, folder: folder.to_owned() }.into());
        }
        Ok(_) => {
            match rustix::fs::accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
                Err(error @ (Errno::ACCESS | Errno::ROFS | Errno::PERM)) => {
                    return Err(Error::os("cannot be created", error).on(&dest).into());
                }
                _ => return Ok(()),
            }
        }
        Err(error) => Error::os(format!("cannot be made in {}", folder.display()), error),
    };
    Err(Finding::NoPlace { error: problem.on(&dest) }.into())
}

/// True for a folder of the file system that `/dev` is. The kernel's is one, however often it is mounted.
fn holds_device_nodes(folder: &std::fs::Metadata) -> bool {
    let dev = |path: &str| std::fs::metadata(path).ok().map(|m| m.dev());
    dev("/dev") == Some(folder.dev()) && dev("/") != Some(folder.dev())
}

/// Keeps others away from a destination; `force_in_use`: beside those who have it.
///
/// Errors: [`Finding::DestHeld`].
pub fn hold_dest(device: &Arc<dyn Device>, force_in_use: bool) -> Result<Hold, Obstacle> {
    hold(device, HoldAs::Dest { force_in_use }).map_err(|error| Finding::DestHeld { error }.into())
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
pub(super) fn nameless(folder: &Path, name: &str) -> Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR).map_err(|e| {
        Error::os(format!("{} does not support temporary files (O_TMPFILE)", folder.display()), e)
    })?;
    File::over(fd, Path::new(name), name.to_owned(), true)
}

impl Made {
    /// Whether what was written is there, after all that was asked of the file system: it may answer for a write only
    /// when the file is closed, and another program may have cut the file.
    ///
    /// Errors: no byte is known to be good.
    pub(super) fn settle(&self) -> Result<()> {
        self.file.close_checked()?;
        let len = self.file.len_now()?;
        if len == self.final_len || (len > self.final_len && self.in_place) {
            return Ok(());
        }
        let text = format!(
            "another program changed its length from {} to {len} bytes during the copy; copy again",
            self.final_len
        );
        Err(Error::new(Kind::InUse, text).on(self.file.name()))
    }

    /// After a copy that went well: owner, mode and times as the source's, the name given and durable. Returns what is
    /// to be warned of.
    ///
    /// Errors: the copy is not what was asked for; a new file has no name then.
    pub(super) fn finish(&self, sync: bool, preserve: Option<&Kept>) -> Result<Vec<Finding>> {
        let mut warnings = Vec::new();
        if let Some(kept) = preserve {
            let mut lost = Vec::new();
            kept.give(&self.file, self.fresh.is_some(), &mut lost)?;
            warnings.extend(lost.into_iter().map(|what| Finding::NotPreserved { what }));
        }
        if let Some(fresh) = &self.fresh {
            fresh.publish()?;
        }
        let mut warn = |error: Error| warnings.push(Finding::NameNotDurable { error });
        if sync && (preserve.is_some() || self.fresh.is_some()) {
            // Some file systems write a new name only with the file.
            match self.file.sync_all() {
                Err(error) if is_refusal(&error) => warn(error),
                done => done?,
            }
        }
        if sync
            && let Some(fresh) = &self.fresh
            && let Err(error) = fresh.sync_folder()
        {
            warn(error);
        }
        Ok(warnings)
    }

    /// After a copy that ended early: what is not good is cut off where that can be told, and good bytes past it too,
    /// which the receipt then says. Returns what is left.
    pub(super) fn put_right(&self, receipt: &mut Receipt) -> Option<Finding> {
        if receipt.outcome == Outcome::Done {
            return None;
        }
        let left = match &self.fresh {
            Some(fresh) => self.leave_fresh(fresh, receipt),
            None if receipt.outcome == Outcome::Mismatch => return None,
            None => self.cut(receipt)?,
        };
        Some(Finding::DestLeft { dest: self.file.name().to_owned(), left })
    }

    /// Names a new file when some of it is good.
    fn leave_fresh(&self, fresh: &Fresh, receipt: &mut Receipt) -> Left {
        if fresh.is_published() {
            return Left::Kept;
        }
        match receipt.outcome {
            Outcome::Mismatch => return Left::NotMadeUnequal,
            Outcome::Unstable => {
                cut_off_all(receipt);
                return Left::NotMadeUnstable;
            }
            _ => {}
        }
        let (good, end) = (receipt.good_prefix_bytes, self.good_end(receipt));
        let whole = good == receipt.requested_bytes;
        if good == 0 || (end >= self.final_len && !whole) {
            cut_off_all(receipt);
            return Left::NotMadeNothingGood;
        }
        let kept = self.file.set_len(end.max(if whole { self.final_len } else { 0 }));
        // A partial copy is worth its name: its length says that it is one, and it can be gone on with.
        match kept.and_then(|()| fresh.publish()) {
            Ok(()) if whole => Left::KeptWhole,
            Ok(()) => {
                cut_off(receipt);
                Left::CutTo(end)
            }
            Err(error) => {
                cut_off_all(receipt);
                Left::NotMadeNotCut(error)
            }
        }
    }

    /// Cuts a destination that was there before.
    fn cut(&self, receipt: &mut Receipt) -> Option<Left> {
        if self.segments.len() != 1 {
            return Some(Left::KeptAsItIs);
        }
        let len = self.kept_len.max(self.good_end(receipt));
        if len >= self.file.len_now().unwrap_or(u64::MAX) {
            return None;
        }
        Some(match self.file.set_len(len) {
            Ok(()) => {
                cut_off(receipt);
                Left::CutTo(len)
            }
            Err(error) => Left::NotCut(len, error),
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

//! The receipt's file: it holds the old receipt or the whole new one, on storage, or the command says that it does not.

use crate::fail::Fail;
use blkcopy::block::Error;
use blkcopy::sys::process::close;
use blkcopy::volume::Ends;
use rustix::fs::{Gid, Uid, fchown};
use std::fs::{File, Metadata, Permissions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Where the receipt will be written. Tried before the copy begins, changed only when it has ended.
pub(crate) struct ReceiptFile {
    name: String,
    how: How,
}

enum How {
    /// Under another name first, then in the old one's place.
    Replace { path: PathBuf, old: Option<Metadata> },
    /// A pipe, a terminal, a file with several names, a folder that takes no new ones.
    InPlace {
        file: File,
        /// Made by us and still empty: goes when there will be no receipt.
        made: Option<PathBuf>,
    },
}

impl ReceiptFile {
    /// Makes sure that it can be written, unless it is one of the ends: it would be cut.
    pub(crate) fn open(path: &Path, ends: &Ends) -> Result<Self, Fail> {
        let name = path.display().to_string();
        let same = |other: &Path| match (path.metadata(), other.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => std::path::absolute(path).ok() == std::path::absolute(other).ok(),
        };
        if [ends.source_name.path(), ends.dest_name.path()].into_iter().flatten().any(same) {
            return Err(Fail::invalid(format!(
                "{name}: the receipt would overwrite the source or the destination"
            ))
            .hint("name another file for --receipt"));
        }
        let cannot = |e| Error::os("the receipt cannot be written", e).on(&name);
        let how = How::of(path).map_err(cannot)?;
        Ok(Self { name, how })
    }

    /// Writes it; `sync`: onto storage.
    ///
    /// Errors: then the old receipt is still there, where there was one in a file of its own.
    pub(crate) fn write(&mut self, text: &str, sync: bool) -> Result<(), Error> {
        let done = match &mut self.how {
            How::Replace { path, old } => replace(path, old.as_ref(), text, sync),
            How::InPlace { file, made } => {
                *made = None;
                overwrite(file, text, sync)
            }
        };
        done.map_err(|e| Error::os("the receipt cannot be written", e).on(&self.name))
    }
}

impl How {
    fn of(path: &Path) -> io::Result<Self> {
        let there = path.symlink_metadata().is_ok();
        // A link leads to the file that is meant; one that leads nowhere is followed as it is opened.
        let place = if there { path.canonicalize().ok() } else { Some(path.to_owned()) };
        let old = path.metadata().ok();
        if let Some(place) = place
            && old.as_ref().is_none_or(|old| old.is_file() && old.nlink() == 1)
        {
            if old.is_some() {
                // What may not be written is not replaced either.
                drop(File::options().write(true).open(&place)?);
            }
            if fresh(&place, old.as_ref()).is_ok() {
                return Ok(Self::Replace { path: place, old });
            }
        }
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        Ok(Self::InPlace { file, made: (!there).then(|| path.to_owned()) })
    }
}

/// A new file beside `path` with the rights of the old one.
fn fresh(path: &Path, old: Option<&Metadata>) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = old.map_or(0o666, |old| old.mode() & 0o777);
    let file = tempfile::Builder::new()
        .prefix(".blkcopy-receipt-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    if let Some(old) = old {
        let made = file.as_file().metadata()?;
        if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
            fchown(file.as_file(), Some(Uid::from_raw(old.uid())), Some(Gid::from_raw(old.gid())))?;
        }
        // The umask has taken some of it.
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(file)
}

fn replace(path: &Path, old: Option<&Metadata>, text: &str, sync: bool) -> io::Result<()> {
    let mut file = fresh(path, old)?;
    file.write_all(text.as_bytes())?;
    if sync {
        file.as_file().sync_all()?;
    }
    let (file, temporary) = file.into_parts();
    close(OwnedFd::from(file))?;
    temporary.persist(path)?;
    Ok(())
}

fn overwrite(file: &mut File, text: &str, sync: bool) -> io::Result<()> {
    let regular = file.metadata().is_ok_and(|m| m.is_file());
    if regular {
        file.set_len(0)?;
    }
    file.write_all(text.as_bytes())?;
    if regular && sync {
        file.sync_all()?;
    }
    close(OwnedFd::from(file.try_clone()?))
}

impl Drop for ReceiptFile {
    fn drop(&mut self) {
        if let How::InPlace { made: Some(path), .. } = &self.how {
            let _ = std::fs::remove_file(path);
        }
    }
}

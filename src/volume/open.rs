//! A name becomes a device: the only place that knows every driver.

use super::name::{Name, Place};
use crate::block::{Device, Error, Kind, Result, Storage};
use crate::drivers::nvme_tcp::Namespace;
use crate::drivers::{self, Bdev, BdevOptions, File, FileOptions, mem::Mem, null::Null};
use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use std::num::NonZeroU32;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Block size of `mem:` and `null:` devices, in bytes: any offset and length may be copied.
const MEMORY_BLOCK: NonZeroU32 = NonZeroU32::new(1).expect("not zero");

/// What a path leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A directory.
    Folder,
    /// A regular file.
    File,
    /// A block device.
    Block,
    /// Something that cannot be copied: a FIFO, a socket, a character device.
    Other,
}

/// What `path` leads to, links followed. Errors: those of the system, such as `Permission` on the way there.
pub fn find(path: &Path) -> Result<Found> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(Error::os("cannot stat", error).on(&path.display().to_string())),
    };
    Ok(match meta.file_type() {
        t if t.is_dir() => Found::Folder,
        t if t.is_file() => Found::File,
        t if t.is_block_device() => Found::Block,
        _ => Found::Other,
    })
}

/// Opens a name to read from it. The range of the name is the caller's to apply ([`Name::range_in`]).
///
/// Errors: `NotFound`, `InvalidInput` for what cannot be copied, and those of the driver.
pub fn open_source(name: &Name) -> Result<Arc<dyn Device>> {
    open_to_read(name, false)
}

/// Opens a name to read from it; `alone`: a block device so that nobody mounts it meanwhile ([`BdevOptions::alone`]).
pub(super) fn open_to_read(name: &Name, alone: bool) -> Result<Arc<dyn Device>> {
    let path = match &name.place {
        Place::Path(path) => path,
        _ => return open_unnamed(name),
    };
    match find(path)? {
        Found::Block => Ok(Bdev::open(path, BdevOptions { alone, ..BdevOptions::default() })?),
        // A missing file, and what is not a file, are refused by the driver in its own words.
        _ => Ok(File::open(path, FileOptions::default())?),
    }
}

/// Opens a block device, a namespace or a device in memory to write to it: nothing is written yet. Regular files are
/// opened by the driver itself ([`File::open`]), because they are made, cut and extended too.
///
/// `force_in_use`: also where others use it. Errors: `InUse`, `ReadOnly`, and those of the driver.
pub fn open_dest(name: &Name, force_in_use: bool) -> Result<Arc<dyn Device>> {
    match &name.place {
        Place::Path(path) => match find(path)? {
            Found::Block => Ok(Bdev::open(path, BdevOptions { write: true, force_in_use, alone: false })?),
            _ => Ok(File::open(path, FileOptions { write: true, create: false })?),
        },
        _ => open_unnamed(name),
    }
}

/// Opens what has no name in the file system.
fn open_unnamed(name: &Name) -> Result<Arc<dyn Device>> {
    Ok(match &name.place {
        Place::NvmeTcp(url) => Namespace::open(url)?,
        Place::Mem(size) => Arc::new(Mem::new(name.device_text(), *size, MEMORY_BLOCK)?),
        Place::Null(size) => Arc::new(Null::new(name.device_text(), *size, MEMORY_BLOCK)?),
        Place::Path(path) => {
            let text = format!("{}: names a file or device node", path.display());
            return Err(Error::new(Kind::InvalidInput, text));
        }
    })
}

/// What the files of a folder are stored in: for a file that is to be made there.
pub fn storage_of_folder(folder: &Path) -> Storage {
    drivers::storage_at(folder)
}

/// The directory in sysfs of the whole disk that a device number belongs to.
fn sysfs_disk(dev: u64) -> PathBuf {
    let dir = format!("/sys/dev/block/{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let dir = std::fs::canonicalize(&dir).unwrap_or_else(|_| PathBuf::from(&dir));
    match dir.parent() {
        Some(disk) if dir.join("partition").exists() => disk.to_owned(),
        _ => dir,
    }
}

/// The model of a block device's disk, as the system names it, or of a namespace's controller, as it names itself.
pub fn model_of(name: &Name, device: &dyn Device) -> Option<String> {
    match name.path() {
        Some(path) => model(path),
        None => device.as_any().downcast_ref::<Namespace>().map(|n| n.model().to_owned()),
    }
}

fn model(path: &Path) -> Option<String> {
    let meta = path.metadata().ok().filter(|m| m.file_type().is_block_device())?;
    let disk = sysfs_disk(meta.rdev());
    let text = std::fs::read_to_string(disk.join("device/model")).ok();
    let backing = || {
        let file = std::fs::read_to_string(disk.join("loop/backing_file")).ok()?;
        Some(format!("loop device over {}", file.trim()))
    };
    text.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).or_else(backing)
}

/// Checks this user's right to write a file without opening it for writing: an overlay would copy it up.
///
/// Errors: `Permission`, in the words that opening it has.
pub fn check_may_write(path: &Path) -> Result<()> {
    let may = rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS);
    match may {
        Err(error @ Errno::ACCESS) => {
            Err(Error::os("cannot be opened", error).on(&path.display().to_string()))
        }
        _ => Ok(()),
    }
}

/// True when `path` cannot be written: by this user's rights, by its mount, or because the block device is set
/// read-only.
pub fn read_only(path: &Path) -> bool {
    // Who may do anything may also open a read-only device for writing; only the first write would tell.
    let set = || {
        let meta = path.metadata().ok().filter(|m| m.file_type().is_block_device())?;
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro")).ok()
    };
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_err()
        || set().is_some_and(|ro| ro.trim() == "1")
}

//! Sources whose size is not what can be read from them: read to their end into a nameless file first, which is then
//! copied.
//!
//! Files of /proc say 0 bytes, those of sysfs 4096, some FUSE servers do not know. `cp` reads on until there is no
//! more.

use super::file_dest::{folder_of, nameless};
use super::name::Name;
use crate::block::{Device, Error, Result};
use crate::drivers::File;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Read and written at once, in bytes.
const PIECE: usize = 1 << 20;
/// Longest file of a kernel file system that is looked at for being shorter than it says, in bytes: more is a device's
/// memory.
const KERNEL_MAX: u64 = 64 << 10;
/// File systems whose files are made up as they are read: procfs, sysfs, debugfs, tracefs, cgroup, cgroup2, securityfs,
/// configfs, efivarfs, pstore (linux/magic.h).
const KERNEL: [u32; 10] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x0027_e0eb,
    0x6367_7270,
    0x7363_6673,
    0x6265_6570,
    0xde5e_81e4,
    0x6165_676c,
];

/// What is copied in place of a source.
pub(super) enum Spooled {
    /// Nothing: its size is right.
    No,
    /// What was read from it.
    Yes(Arc<dyn Device>),
    /// It would be read now if it was to be copied.
    Later,
}

/// Looks whether the size of a source is right, and reads it to its end if not and a copy follows.
pub(super) fn of(source: &Arc<dyn Device>, dest: &Name, is_copied: bool) -> Result<Spooled> {
    let Some(file) = source.as_any().downcast_ref::<File>() else { return Ok(Spooled::No) };
    if !is_wrong(file) {
        return Ok(Spooled::No);
    }
    if !is_copied {
        return Ok(Spooled::Later);
    }
    Ok(Spooled::Yes(Arc::new(read_to_end(file, dest)?)))
}

fn is_wrong(file: &File) -> bool {
    let size = file.size();
    if size > 0 && size <= KERNEL_MAX && is_of_the_kernel(file) {
        return true;
    }
    // One byte past the end; a file that grows meanwhile has another size by now.
    matches!(rustix::io::pread(file, &mut [0u8; 1][..], size), Ok(1))
        && file.len_now().is_ok_and(|len| len == size)
}

fn is_of_the_kernel(file: &File) -> bool {
    let Ok(fs) = rustix::fs::fstatfs(file) else { return false };
    // A 32-bit number in a signed long: cut, not converted.
    let bytes = i128::from(fs.f_type).to_le_bytes();
    KERNEL.contains(&u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn read_to_end(file: &File, dest: &Name) -> Result<File> {
    let spool = spool(file.name(), dest)?;
    let mut buf = vec![0; PIECE];
    let (mut at, mut end) = (0u64, 0u64);
    loop {
        let len = match rustix::io::pread(file, &mut buf[..], at) {
            Ok(0) => break,
            Ok(len) => len,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(Error::os("cannot be read to its end", error).on(file.name())),
        };
        at += len as u64;
        let mut rest = &buf[..len];
        while !rest.is_empty() {
            match rustix::io::pwrite(&spool, rest, end) {
                Ok(n) => {
                    end += n as u64;
                    rest = &rest[n..];
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    let text = "its size is unknown, and there is no room to read it to its end first";
                    return Err(Error::os(text, error).on(file.name()));
                }
            }
        }
    }
    drop(buf);
    // Opened anew, so that the device has the size that it has now.
    let fd: OwnedFd = std::os::fd::AsFd::as_fd(&spool)
        .try_clone_to_owned()
        .map_err(|e| Error::os("cannot be opened again", e).on(file.name()))?;
    File::over(fd, Path::new(file.name()), file.name().to_owned(), false)
}

/// An empty file without a name: beside the destination, in the folder for temporary files, or in memory.
fn spool(name: &str, dest: &Name) -> Result<File> {
    let beside = dest.path().filter(|p| !p.is_dir()).map(|p| folder_of(p).to_owned());
    let inside = dest.path().filter(|p| p.is_dir()).map(PathBuf::from);
    let folders = [beside, inside, Some(std::env::temp_dir())];
    // Nothing is to be left in /dev, not even in passing.
    let folders = folders.into_iter().flatten().filter(|f| !f.starts_with("/dev"));
    for folder in folders {
        if let Ok(file) = nameless(&folder, name) {
            return Ok(file);
        }
    }
    let fd = rustix::fs::memfd_create("blkcopy", MemfdFlags::CLOEXEC)
        .map_err(|e| Error::os("its size is unknown, and there is no room to read it first", e).on(name))?;
    File::over(fd, Path::new(name), name.to_owned(), true)
}

//! Where the file system keeps the bytes of a file: `FS_IOC_FIEMAP`.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `FS_IOC_FIEMAP`, `_IOWR('f', 11, struct fiemap)` (linux/fs.h).
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;

/// `FIEMAP_FLAG_SYNC`: what is cached of the file is written out first.
const FLAG_SYNC: u32 = 0x0001;

/// Most extents that one call asks for.
pub const EXTENTS_A_CALL: usize = 128;

/// `FIEMAP_EXTENT_UNKNOWN`: the place is not known; with [`DELALLOC`] because none has been given out yet.
const UNKNOWN: u32 = 0x0002;
/// `FIEMAP_EXTENT_DELALLOC`.
const DELALLOC: u32 = 0x0004;
/// `FIEMAP_EXTENT_ENCODED`: compressed, say, so that places do not count bytes.
const ENCODED: u32 = 0x0008;
/// `FIEMAP_EXTENT_DATA_INLINE`: among the metadata, with other data.
const DATA_INLINE: u32 = 0x0200;
/// `FIEMAP_EXTENT_UNWRITTEN`: allocated and reads as zero.
const UNWRITTEN: u32 = 0x0800;
/// `FIEMAP_EXTENT_SHARED`: other files, or this one elsewhere, have it too.
const SHARED: u32 = 0x2000;
/// `FIEMAP_EXTENT_LAST`: the last one of the file.
const LAST: u32 = 0x0001;

/// A run of a file's bytes that lies in one piece on the storage of its file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileExtent {
    /// First byte in the file.
    pub logical: u64,
    /// First byte on the storage of the file system; means nothing unless [`FileExtent::has_place`].
    pub physical: u64,
    /// Length in bytes.
    pub len: u64,
    flags: u32,
}

impl FileExtent {
    /// The byte behind it in the file.
    pub fn end(&self) -> u64 {
        self.logical.saturating_add(self.len)
    }

    /// True when `physical` says where the bytes are, and only they are there.
    pub fn has_place(&self) -> bool {
        self.flags & (UNKNOWN | DELALLOC | DATA_INLINE) == 0
    }

    /// True when it is stored where nothing else can be: not yet (it has no place so far), or among the metadata.
    pub fn is_apart(&self) -> bool {
        self.flags & (DELALLOC | DATA_INLINE) != 0
    }

    /// True when the file system stores it in another form (compressed): `physical` is where that form begins, and the
    /// bytes in between cannot be counted.
    pub fn is_encoded(&self) -> bool {
        self.flags & ENCODED != 0
    }

    /// True when something else has the same storage.
    pub fn is_shared(&self) -> bool {
        self.flags & SHARED != 0
    }

    /// True when storage is set aside and it reads as zero, as far as nothing newer is cached.
    pub fn is_unwritten(&self) -> bool {
        self.flags & UNWRITTEN != 0
    }

    fn is_last(&self) -> bool {
        self.flags & LAST != 0
    }
}

/// `struct fiemap` with room for extents (linux/fiemap.h).
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; EXTENTS_A_CALL],
}

/// `struct fiemap_extent`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const _: () = assert!(size_of::<RawExtent>() == 56 && size_of::<Fiemap>() == 32 + 56 * EXTENTS_A_CALL);

/// The extents that hold bytes of `len` bytes from `start`, in order, at most [`EXTENTS_A_CALL`] of them, appended to
/// `out`. True: these are all.
///
/// Nothing is written out first: what is cached and has no place yet says so ([`FileExtent::has_place`]). Errors:
/// `EOPNOTSUPP` where the file system does not tell.
pub fn extents(fd: impl AsFd, start: u64, len: u64, out: &mut Vec<FileExtent>) -> io::Result<bool> {
    ask(fd, start, len, 0, out)
}

/// The same once everything that is cached of the file has been written out: the places of the newest bytes, as far as
/// nothing writes meanwhile.
///
/// Without this a file that was just written to shows the place of its older bytes where the new ones do not go to the
/// same one: XFS and Btrfs put them elsewhere when they are written out, and until then an overwritten clone looks
/// shared.
pub fn extents_written_out(
    fd: impl AsFd,
    start: u64,
    len: u64,
    out: &mut Vec<FileExtent>,
) -> io::Result<bool> {
    ask(fd, start, len, FLAG_SYNC, out)
}

fn ask(fd: impl AsFd, start: u64, len: u64, flags: u32, out: &mut Vec<FileExtent>) -> io::Result<bool> {
    let mut map = Fiemap {
        start,
        length: len,
        flags,
        mapped_extents: 0,
        extent_count: u32::try_from(EXTENTS_A_CALL).expect("a small number"),
        reserved: 0,
        extents: [RawExtent::default(); EXTENTS_A_CALL],
    };
    // SAFETY: FS_IOC_FIEMAP reads the head and writes it and at most `extent_count` extents, for which there is room;
    // all lives across the call.
    if unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let found = map.extents.iter().take(map.mapped_extents as usize);
    let before = out.len();
    out.extend(found.map(|e| FileExtent {
        logical: e.logical,
        physical: e.physical,
        len: e.length,
        flags: e.flags,
    }));
    let end = start.saturating_add(len);
    let is_full = out.len() - before == EXTENTS_A_CALL;
    Ok(!is_full || out.last().is_some_and(|e| e.is_last() || e.end() >= end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn each_written_block_of_a_file_lies_somewhere() {
        let f = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for at in 0..300 {
            f.write_all_at(&[1; 4096], at * 8192).unwrap();
        }
        f.sync_all().unwrap();
        let (mut found, mut at) = (Vec::new(), 0);
        loop {
            match extents(&f, at, 300 * 8192 - at, &mut found) {
                Ok(true) => break,
                Ok(false) => at = found.last().unwrap().end(),
                Err(e) => {
                    return eprintln!("SKIPPED each_written_block_of_a_file_lies_somewhere: FIEMAP: {e}");
                }
            }
        }
        assert_eq!(found.iter().map(|e| e.len).sum::<u64>(), 300 * 4096);
        assert!(found.iter().all(|e| e.has_place() && !e.is_shared()), "{found:?}");
    }
}

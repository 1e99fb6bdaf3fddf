//! Where Btrfs keeps the packed (compressed) bytes of a file: `BTRFS_IOC_TREE_SEARCH_V2`.
//!
//! FIEMAP gives the place of the packed piece alone. A file may hold any part of what is unpacked from it, and two
//! parts of one length look the same there, so that equal places would prove nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `BTRFS_IOC_TREE_SEARCH_V2`, `_IOWR(0x94, 17, struct btrfs_ioctl_search_args_v2)` (linux/btrfs.h).
const TREE_SEARCH: libc::Ioctl = 0xc070_9411_u32 as libc::Ioctl;
/// `BTRFS_EXTENT_DATA_KEY` (linux/btrfs_tree.h).
const EXTENT_DATA: u32 = 108;
/// `BTRFS_FILE_EXTENT_REG`: neither inline nor set aside only.
const REGULAR: u8 = 1;
/// Longest run of a file that lies in one packed piece, in bytes (`BTRFS_MAX_UNCOMPRESSED`).
const PACKED_MAX: u64 = 128 << 10;
/// Bytes of `struct btrfs_ioctl_search_header`.
const HEADER: usize = 32;
/// Bytes of `struct btrfs_file_extent_item`.
const ITEM: usize = 53;
/// Room for answers, in units of 8 bytes.
const ROOM: usize = 2048;

/// A run of a file that is stored packed, all of it in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackedRun {
    /// First byte in the file.
    pub logical: u64,
    /// Length in the file, in bytes.
    pub len: u64,
    /// Where the packed piece begins, in the addresses of the file system.
    pub physical: u64,
    /// Which byte of what is unpacked from it the run begins with.
    pub skip: u64,
}

/// `struct btrfs_ioctl_search_args_v2` with room for answers.
#[repr(C)]
struct Search {
    tree: u64,
    objectid: [u64; 2],
    offset: [u64; 2],
    transid: [u64; 2],
    kind: [u32; 2],
    items: u32,
    unused: u32,
    reserved: [u64; 4],
    buf_size: u64,
    buf: [u64; ROOM],
}

const _: () = assert!(size_of::<Search>() == 112 + 8 * ROOM);

/// The packed runs that hold any of `len` bytes from `start` of the file with this inode number, in order, appended to
/// `out`. Only what has been written out is known.
///
/// Errors: `EPERM` without CAP_SYS_ADMIN; `ENOTTY` on other file systems.
pub fn packed(fd: impl AsFd, inode: u64, start: u64, len: u64, out: &mut Vec<PackedRun>) -> io::Result<()> {
    let end = start.saturating_add(len);
    let mut next = start.saturating_sub(PACKED_MAX);
    while next < end {
        let mut search = Search {
            tree: 0, // the one that holds the file
            objectid: [inode; 2],
            offset: [next, end - 1],
            transid: [0, u64::MAX],
            kind: [EXTENT_DATA; 2],
            items: u32::MAX,
            unused: 0,
            reserved: [0; 4],
            buf_size: 8 * ROOM as u64,
            buf: [0; ROOM],
        };
        // SAFETY: the kernel reads the head of the struct, writes it back and at most `buf_size` bytes after it, for
        // which there is room; all lives across the call.
        if unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TREE_SEARCH, &raw mut search) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes: Vec<u8> = search.buf.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let found = parse(&bytes, search.items, inode);
        let Some(last) = found.last else { return Ok(()) };
        out.extend(found.runs.into_iter().filter(|run| run.logical < end && run.logical + run.len > start));
        next = last.saturating_add(1);
    }
    Ok(())
}

#[derive(Default)]
struct Found {
    runs: Vec<PackedRun>,
    /// Where the last item begins in the file, packed or not.
    last: Option<u64>,
}

/// Takes `items` answers apart; what does not fit is left out, with all after it.
fn parse(bytes: &[u8], items: u32, inode: u64) -> Found {
    let mut found = Found::default();
    let mut rest = bytes;
    for _ in 0..items {
        let Some((header, after)) = rest.split_at_checked(HEADER) else { break };
        let (objectid, offset) = (native(header, 8), native(header, 16));
        let len = u32::from_ne_bytes(header[28..32].try_into().expect("four bytes")) as usize;
        let Some((item, after)) = after.split_at_checked(len) else { break };
        rest = after;
        if objectid != inode {
            continue;
        }
        found.last = Some(offset);
        // Inline items are shorter or hold data there; they and what is not packed are not looked for.
        let is_packed = item.len() == ITEM && item[16] != 0 && item[20] == REGULAR;
        if is_packed {
            let (physical, skip, len) = (little(item, 21), little(item, 37), little(item, 45));
            if let Some(_end) = offset.checked_add(len) {
                found.runs.push(PackedRun { logical: offset, len, physical, skip });
            }
        }
    }
    found
}

/// A number of the call's own head.
fn native(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A number as it stands on storage.
fn little(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with one item.
    fn answer(objectid: u64, offset: u64, item: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [7, objectid, offset] {
            bytes.extend(u64::to_ne_bytes(number));
        }
        bytes.extend(EXTENT_DATA.to_ne_bytes());
        bytes.extend(u32::try_from(item.len()).unwrap().to_ne_bytes());
        bytes.extend(item);
        bytes
    }

    fn item(compression: u8, kind: u8, [physical, skip, len]: [u64; 3]) -> Vec<u8> {
        let mut bytes = vec![0; ITEM];
        (bytes[16], bytes[20]) = (compression, kind);
        for (at, number) in [(21, physical), (37, skip), (45, len)] {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn an_answer_is_taken_apart_and_a_short_one_is_left() {
        let mut bytes = answer(5, 0, &item(3, REGULAR, [1 << 20, 4096, 8192]));
        bytes.extend(answer(5, 8192, &item(0, REGULAR, [2 << 20, 0, 4096])));
        bytes.extend(answer(5, 12288, &item(3, 2, [0, 0, 4096])));
        bytes.extend(answer(6, 0, &item(3, REGULAR, [3 << 20, 0, 4096])));
        let found = parse(&bytes, 4, 5);
        let run = PackedRun { logical: 0, len: 8192, physical: 1 << 20, skip: 4096 };
        assert_eq!((found.runs, found.last), (vec![run], Some(12288)));
        for cut in 0..bytes.len() {
            let found = parse(&bytes[..cut], 4, 5);
            assert!(found.runs.len() <= 1 && found.last <= Some(12288));
        }
        assert!(parse(&answer(5, u64::MAX, &item(1, REGULAR, [0, 0, 1])), 1, 5).runs.is_empty());
    }
}

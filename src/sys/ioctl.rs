//! System calls that no safe wrapper offers: extent sharing, block-device ioctls, page-cache residency, byte locks.
//!
//! Thin and typed: one function a call, errors as the kernel gave them. Request numbers are those of the Linux headers
//! named beside them, equal on x86-64 and arm64.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `FICLONERANGE`, `_IOW(0x94, 13, struct file_clone_range)` (linux/fs.h).
const FICLONERANGE: libc::Ioctl = 0x4020_940d;
/// `BLKROGET`, `_IO(0x12, 94)` (linux/fs.h).
const BLKROGET: libc::Ioctl = 0x125e;
/// `BLKDISCARD`, `_IO(0x12, 119)` (linux/fs.h).
const BLKDISCARD: libc::Ioctl = 0x1277;
/// `BLKGETSIZE64`, `_IOR(0x12, 114, size_t)` (linux/fs.h).
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
/// `LOOP_GET_STATUS64` (linux/loop.h).
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
/// `FS_IOC_GETFSUUID`, `_IOR(0x15, 0, struct fsuuid2)` (linux/fs.h).
const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500_u32 as libc::Ioctl;
/// `FS_IOC_GETVERSION`, `_IOR('v', 1, long)` (linux/fs.h).
const FS_IOC_GETVERSION: libc::Ioctl = 0x8008_7601_u32 as libc::Ioctl;
/// `FS_IOC_FSGETXATTR`, `_IOR('X', 31, struct fsxattr)` (linux/fs.h).
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
/// `cachestat` (Linux 6.5), the same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `struct file_clone_range` (linux/fs.h).
#[repr(C)]
struct FileCloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

/// Shares `len` bytes of `source` at `source_offset` with `dest` at `dest_offset`, without copying.
///
/// `len` 0 means "to the end of the source", so it is refused here as `EINVAL`. All or nothing by its result; on error
/// a front part may be shared already.
pub fn clone_range(
    source: impl AsFd,
    source_offset: u64,
    len: u64,
    dest: impl AsFd,
    dest_offset: u64,
) -> io::Result<()> {
    if len == 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let arg = FileCloneRange {
        src_fd: i64::from(source.as_fd().as_raw_fd()),
        src_offset: source_offset,
        src_length: len,
        dest_offset,
    };
    // SAFETY: the descriptors are open for the call, and the kernel only reads the struct, which lives across it.
    check(unsafe { libc::ioctl(dest.as_fd().as_raw_fd(), FICLONERANGE, &raw const arg) }).map(drop)
}

/// Size of a block device in bytes.
pub fn block_size_bytes(fd: impl AsFd) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64, to a u64 that lives across the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), BLKGETSIZE64, &raw mut bytes) })?;
    Ok(bytes)
}

/// True when a block device is set read-only.
pub fn block_read_only(fd: impl AsFd) -> io::Result<bool> {
    let mut flag: libc::c_int = 0;
    // SAFETY: BLKROGET writes one int, to an int that lives across the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), BLKROGET, &raw mut flag) })?;
    Ok(flag != 0)
}

/// Tells a block device that `len` bytes at `offset` are not needed.
pub fn block_discard(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two u64, which live across the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), BLKDISCARD, &raw const range) }).map(drop)
}

/// What lies behind a loop device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoopBacking {
    /// Device number of the file system (or 0 and more for a device node) that holds the backing file, as `st_dev`.
    pub dev: u64,
    /// Inode of the backing file.
    pub inode: u64,
    /// Device number of the block device behind it, when it is not a file; else 0.
    pub rdev: u64,
    /// First byte of the backing file that the loop device shows.
    pub offset: u64,
    /// Most bytes it shows; 0 for no limit.
    pub size_limit: u64,
}

/// Which file a loop device shows. `ENXIO`: none now.
pub fn loop_backing(fd: impl AsFd) -> io::Result<LoopBacking> {
    // struct loop_info64 is 232 bytes: lo_device, lo_inode, lo_rdevice, lo_offset, lo_sizelimit, ... (linux/loop.h);
    // room to spare.
    let mut info = [0u64; 32];
    // SAFETY: LOOP_GET_STATUS64 writes sizeof(struct loop_info64) = 232 bytes into 256 that live across the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) })?;
    Ok(LoopBacking { dev: info[0], inode: info[1], rdev: info[2], offset: info[3], size_limit: info[4] })
}

/// The UUID of the file system of an open file (Linux 6.9). `ENOTTY` where the kernel or the file system does not tell.
pub fn file_system_uuid(fd: impl AsFd) -> io::Result<[u8; 16]> {
    // struct fsuuid2: a length of one byte, and 16 bytes.
    let mut uuid = [0u8; 17];
    // SAFETY: FS_IOC_GETFSUUID writes struct fsuuid2, 17 bytes without padding, to 17 bytes that live across the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_GETFSUUID, &raw mut uuid) })?;
    let [len, bytes @ ..] = uuid;
    // All zero is no name, and a short one may be shared.
    if len != 16 || bytes == [0; 16] { Err(io::Error::from_raw_os_error(libc::ENOTTY)) } else { Ok(bytes) }
}

/// The generation of an inode: another one each time its number is given out. `ENOTTY` where the file system has none.
pub fn file_generation(fd: impl AsFd) -> io::Result<u32> {
    // Declared as a long; file systems write an int (ext4, Btrfs, XFS) or a long.
    let mut generation = [0u32; 2];
    // SAFETY: FS_IOC_GETVERSION writes at most a long, 8 bytes, to 8 bytes that live across the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_GETVERSION, &raw mut generation) })?;
    let number =
        if cfg!(target_endian = "big") && generation[0] == 0 { generation[1] } else { generation[0] };
    Ok(number)
}

/// The extended flags of a file (`FS_XFLAG_*`). `ENOTTY` where the file system has none.
pub fn file_flags(fd: impl AsFd) -> io::Result<u32> {
    // struct fsxattr: five numbers of 32 bits and 8 bytes of padding (linux/fs.h); the flags come first.
    let mut flags = [0u32; 7];
    // SAFETY: FS_IOC_FSGETXATTR writes struct fsxattr, 28 bytes, to 28 bytes that live across the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut flags) })?;
    Ok(flags[0])
}

/// Pages of a file range in the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct CacheStat {
    /// Pages present.
    pub cached: u64,
    /// Of those, dirty.
    pub dirty: u64,
    /// Of those, being written back.
    pub writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Counts the cached pages that hold `len` bytes from `offset`. `ENOSYS` before Linux 6.5; `EPERM` where the caller may
/// neither write nor own the file.
pub fn cachestat(fd: impl AsFd, offset: u64, len: u64) -> io::Result<CacheStat> {
    let range = [offset, len];
    let mut stat = CacheStat::default();
    // SAFETY: the kernel reads struct cachestat_range (two u64) and writes struct cachestat (five u64, `repr(C)`); both
    // live across the call. Flags must be 0.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            fd.as_fd().as_raw_fd(),
            &raw const range,
            &raw mut stat,
            0 as libc::c_uint,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(stat) }
}

/// Starts writing dirty pages of the whole file to storage, without waiting for it and without making it durable.
pub fn start_writeback(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no pointers; offset and length 0 mean the whole file.
    check(unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) })
        .map(drop)
}

/// Writes dirty pages of `len` bytes from `offset` (`len` 0: to the end) to storage and waits for them, without making
/// them durable.
pub fn write_back(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let too_large = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let (offset, len) = (i64::try_from(offset).map_err(too_large)?, i64::try_from(len).map_err(too_large)?);
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: takes no pointers.
    check(unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), offset, len, flags) }).map(drop)
}

/// True when another open file description holds a byte lock that would stop a write lock on `len` bytes at `offset`.
pub fn byte_lock_by_others(fd: impl AsFd, offset: i64, len: i64) -> io::Result<bool> {
    // SAFETY: `flock` is plain integers, for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(libc::F_WRLCK).unwrap_or(1);
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or(0);
    lock.l_start = offset;
    lock.l_len = len;
    // SAFETY: F_OFD_GETLK reads and writes one struct flock, which lives across the call.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Takes a shared lock of the open file description on the byte at `offset`. Needs a descriptor open for reading.
///
/// `EAGAIN`: another one has an exclusive lock there.
pub fn share_byte(fd: impl AsFd, offset: i64) -> io::Result<()> {
    set_byte(fd, offset, libc::F_RDLCK)
}

/// Gives the lock on the byte at `offset` back.
pub fn release_byte(fd: impl AsFd, offset: i64) -> io::Result<()> {
    set_byte(fd, offset, libc::F_UNLCK)
}

fn set_byte(fd: impl AsFd, offset: i64, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: `flock` is plain integers, for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    lock.l_start = offset;
    lock.l_len = 1;
    // SAFETY: F_OFD_SETLK reads one struct flock, which lives across the call.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_clone_of_nothing_is_refused_and_never_means_the_whole_file() {
        let f = tempfile::tempfile().unwrap();
        let e = clone_range(&f, 0, 0, &f, 0).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn cached_pages_are_counted() {
        let mut f = tempfile::tempfile().unwrap();
        f.write_all(&[1; 8192]).unwrap();
        match cachestat(&f, 0, 8192) {
            Ok(stat) => assert_eq!(stat.cached, 2),
            Err(e) => eprintln!("SKIPPED cached_pages_are_counted: cachestat: {e}"),
        }
    }

    #[test]
    fn block_calls_on_a_file_are_refused_by_the_kernel() {
        let f = tempfile::tempfile().unwrap();
        assert_eq!(block_size_bytes(&f).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(loop_backing(&f).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn byte_locks_of_others_are_seen() {
        let f = tempfile::NamedTempFile::new().unwrap();
        let other = f.reopen().unwrap();
        assert!(!byte_lock_by_others(&other, 100, 200).unwrap());
        share_byte(&f, 101).unwrap();
        assert!(byte_lock_by_others(&other, 100, 200).unwrap());
        assert!(!byte_lock_by_others(&f, 100, 200).unwrap(), "one's own are none of others");
        assert!(!byte_lock_by_others(&other, 300, 10).unwrap());
        release_byte(&f, 101).unwrap();
        assert!(!byte_lock_by_others(&other, 100, 200).unwrap());
    }
}

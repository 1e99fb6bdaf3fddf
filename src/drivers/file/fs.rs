//! What kind of file system a file lies on, and what that means for copies. By magic number: nothing is tried out on
//! the user's files, and a wrong guess costs one refused call.

use crate::drivers::mounts;
use crate::sys::aligned::PAGE;
use rustix::fs::{AtFlags, Stat, StatxFlags};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

/// Whether files can share extents (`FICLONERANGE`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sharing {
    /// Maybe: the file system's kind can.
    Yes,
    /// Never.
    No,
}

/// What is known about the file system of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Facts {
    /// Magic number of its kind.
    pub(super) magic: u32,
    /// Number of the mounted file system: one for all its subvolumes and layers, unlike `st_dev`.
    pub(super) file_system: u64,
    pub(super) sharing: Sharing,
    /// `copy_file_range` is carried out by a server.
    pub(super) copied_by_server: bool,
    /// Its block in bytes: the alignment of shared extents.
    pub(super) block_bytes: u64,
    /// Alignment of direct I/O in bytes, offsets and memory alike; `None`: not offered.
    pub(super) direct_align: Option<NonZeroU32>,
    /// Kept by this kernel alone, not by a server or another program.
    pub(super) is_local: bool,
    /// The kernel copies between two such files by itself, if it does not share: the file system has no way of its own.
    pub(super) copies_here: bool,
    /// A mount of ours: its daemon says what it does, and copies only by offload when asked to.
    pub(super) is_ours: bool,
    /// Its pages are all there is of it.
    pub(super) in_memory: bool,
    /// Who writes to it opens it in this kernel, and a lease is asked then: not so with a server, or with a file system
    /// over another.
    pub(super) leases_tell: bool,
    /// `SEEK_DATA` and `SEEK_HOLE` tell its holes, and one can be punched: a file system of this kernel with holes.
    /// False where that depends on a server or on the layer below, and where files have no holes.
    pub(super) has_holes: bool,
    /// Reads and writes can be asked not to wait; `None`: not known of this kind of file system.
    pub(super) knows_no_wait: Option<bool>,
}

/// (magic number of `statfs`, shares extents, copies on a server, keeps files in memory); linux/magic.h and the file
/// systems' own headers.
const KINDS: [(u32, bool, bool, bool); 15] = [
    (XFS, true, false, false),         // XFS
    (BTRFS, true, false, false),       // Btrfs
    (BCACHEFS, true, false, false),    // bcachefs
    (0x2fc1_2fc1, true, false, false), // ZFS
    (0x7461_636f, true, false, false), // OCFS2
    (0x794c_7630, true, false, false), // overlayfs: as the layer below
    (0x0000_6969, true, true, false),  // NFS
    (0xff53_4d42, true, true, false),  // CIFS
    (0xfe53_4d42, true, true, false),  // SMB2
    (0x00c3_6400, false, true, false), // Ceph
    (FUSE, false, true, false),        // FUSE
    (TMPFS, false, false, true),       // tmpfs
    (RAMFS, false, false, true),       // ramfs
    (0x9584_58f6, false, false, true), // hugetlbfs
    (EXT, false, false, false),        // ext2, ext3, ext4
];

/// File systems of this kernel that offer no `copy_file_range` of their own (Linux 6.18, `struct file_operations`): the
/// kernel shares the extents, where it can, or copies through its page cache. Others may have a server copy, or share
/// without saying so (ZFS).
const COPIES_HERE: [u32; 10] = [
    EXT,
    XFS,
    BTRFS,
    0xca45_1a4e, // bcachefs
    0x794c_7630, // overlayfs, over any of them: what has extents is kept by this kernel
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0xf2f5_2010, // F2FS
    0x0000_4d44, // FAT
    0x2011_bab0, // exFAT
];
/// File systems that answer `SEEK_DATA` from what they have stored and punch holes (fs/ext4, fs/xfs, fs/btrfs,
/// mm/shmem, fs/f2fs, fs/bcachefs, fs/gfs2, fs/ocfs2): elsewhere the kernel's fallback says that all of a file is data.
const WITH_HOLES: [u32; 8] =
    [EXT, XFS, BTRFS, 0x0102_1994, 0xf2f5_2010, 0xca45_1a4e, 0x0116_1970, 0x7461_636f];

/// ext2, ext3 and ext4.
pub(super) const EXT: u32 = 0x0000_ef53;
pub(super) const XFS: u32 = 0x5846_5342;
pub(super) const BTRFS: u32 = 0x9123_683e;
const FUSE: u32 = 0x6573_5546;
const BCACHEFS: u32 = 0xca45_1a4e;
const F2FS: u32 = 0xf2f5_2010;
pub(super) const TMPFS: u32 = 0x0102_1994;
pub(super) const RAMFS: u32 = 0x8584_58f6;

/// True for a file in the format of ext2 and ext3: direct writes into its holes go through the page cache inside the
/// kernel, beside direct ones that do not.
fn lacks_extents(fd: &OwnedFd) -> bool {
    /// `EXT4_EXTENTS_FL` (fs/ext4/ext4.h).
    const EXTENTS: u32 = 0x0008_0000;
    rustix::fs::ioctl_getflags(fd).is_ok_and(|flags| flags.bits() & EXTENTS == 0)
}

impl Facts {
    /// Looks at an open regular file.
    pub(super) fn of(fd: &OwnedFd, stat: &Stat) -> Self {
        let fs = rustix::fs::fstatfs(fd).ok();
        // The magic is a 32-bit number in a signed long: cut, not converted.
        let magic = fs.map_or(0, |f| {
            let b = i128::from(f.f_type).to_le_bytes();
            u32::from_le_bytes([b[0], b[1], b[2], b[3]])
        });
        let (_, shares, served, in_memory) =
            KINDS.into_iter().find(|k| k.0 == magic).unwrap_or((magic, false, false, false));
        let block_bytes = fs.and_then(|f| u64::try_from(f.f_bsize).ok()).filter(|&b| b > 0);
        let mask = StatxFlags::DIOALIGN | StatxFlags::MNT_ID;
        let statx = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask).ok();
        let has = |flag: StatxFlags| statx.filter(|s| s.stx_mask & flag.bits() != 0);
        let mounted =
            has(StatxFlags::MNT_ID).and_then(|s| mounts::mounts().into_iter().find(|m| m.id == s.stx_mnt_id));
        let align = has(StatxFlags::DIOALIGN).map_or(0, |s| {
            if s.stx_dio_mem_align == 0 || s.stx_dio_offset_align == 0 {
                return 0;
            }
            let align = s.stx_dio_mem_align.max(s.stx_dio_offset_align);
            // Once a file shares extents, and any may by tomorrow, XFS makes direct writes of less than a block through
            // the cache.
            if shares {
                align.max(block_bytes.and_then(|b| u32::try_from(b).ok()).unwrap_or(0))
            } else {
                align
            }
        });
        Self {
            magic,
            file_system: mounted.as_ref().map_or(stat.st_dev, |m| m.dev),
            is_ours: mounted.is_some_and(|m| m.kind == "fuse.blkcopy"),
            sharing: if shares { Sharing::Yes } else { Sharing::No },
            copied_by_server: served,
            is_local: !served,
            copies_here: COPIES_HERE.contains(&magic),
            in_memory,
            leases_tell: matches!(magic, EXT | XFS | BTRFS | BCACHEFS | F2FS | TMPFS),
            has_holes: WITH_HOLES.contains(&magic),
            knows_no_wait: match magic {
                EXT | XFS | BTRFS => Some(true),
                FUSE => Some(false),
                _ => None,
            },
            block_bytes: block_bytes.unwrap_or(4096),
            // Buffers begin on a page: a larger demand cannot be met.
            direct_align: NonZeroU32::new(align)
                .filter(|a| a.get() as usize <= PAGE && !in_memory && !(magic == EXT && lacks_extents(fd))),
        }
    }
}

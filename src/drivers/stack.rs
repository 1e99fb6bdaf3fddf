//! What the system says files and block devices are stored in: the one place that asks, for everybody who compares.
//!
//! Loop devices by their driver (device number and inode, so that a name that is gone does not matter), partitions and
//! slaves by sysfs, device mapper by its table where this process may read it, files by their file system, and files of
//! our own mounts by what the mount says of them. A look: what is attached or mounted later is not in it. See
//! `docs/notes/009-one-storage.md`.

use super::in_use::{Disk, entries, sys_dir};
use super::mounts::{self, Mount, dev_of};
use crate::block::device::LeafSpace;
use crate::block::storage::{ALLOCATED, ATTRIBUTE, Decides, Storage, Stored, parse_leaf};
use crate::block::{ByteRange, LEN_MAX, LeafId};
use crate::sys::{dm, ioctl};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use std::cell::{Cell, OnceCell};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `f_type` of FUSE (statfs(2)).
const FUSE: rustix::fs::FsWord = 0x6573_5546;
/// Longest value of an attribute of our mounts that is looked at, in bytes.
const ATTRIBUTE_MAX: usize = 256;
/// Most things below each other that are looked into.
const DEPTH_MAX: u32 = 12;
/// Most things looked into for one question: what is below them counts as not known.
const LOOKS_MAX: u32 = 4096;
/// The unit of sysfs and of device-mapper tables, in bytes.
const SECTOR: u64 = 512;

/// What the file or block device at `path` is stored in; for a folder, what its files are. Nothing for what cannot
/// stat.
pub fn of_path(path: &Path) -> Storage {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) else { return Storage::default() };
    let Ok(stat) = rustix::fs::fstat(&fd) else { return Storage::default() };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => of_block(stat.st_rdev),
        FileType::Directory => {
            let look = Look::default();
            let mount = look.mount_of(&fd, &stat);
            look.file_system(stat.st_dev, mount)
        }
        _ => of_file(&fd, &stat, path),
    }
}

/// What an open regular file is stored in.
pub(crate) fn of_file(fd: &impl AsFd, stat: &Stat, path: &Path) -> Storage {
    let look = Look::default();
    let mount = look.mount_of(fd, stat);
    // The descriptor's own name: what the path means may have changed.
    let real = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()));
    let file = look.file((stat.st_dev, stat.st_ino), mount, &real.unwrap_or_else(|_| path.to_owned()));
    Storage::at(file, 0, LEN_MAX)
}

/// Bytes of storage that an open regular file takes. By its blocks a file of our mounts takes its size, so the mount is
/// asked.
pub(crate) fn allocated_bytes(fd: &impl AsFd) -> Option<u64> {
    let stat = rustix::fs::fstat(fd).ok()?;
    // Blocks of 512 bytes, whatever the file system's are (stat(2)).
    let blocks = u64::try_from(stat.st_blocks).ok()?.checked_mul(512)?;
    let is_less = |bytes: &u64| *bytes < blocks && rustix::fs::fstatfs(fd).is_ok_and(|fs| fs.f_type == FUSE);
    if u64::try_from(stat.st_size).is_ok_and(|size| size > blocks) {
        return Some(blocks);
    }
    let mut value = [0; ATTRIBUTE_MAX];
    let read = rustix::fs::fgetxattr(fd, ALLOCATED, &mut value[..]).ok();
    let text = read.and_then(|len| std::str::from_utf8(value.get(..len)?).ok());
    Some(text.and_then(|text| text.parse().ok()).filter(is_less).unwrap_or(blocks))
}

/// What a block device is stored in.
pub(crate) fn of_block(rdev: u64) -> Storage {
    Look::default().block(rdev)
}

/// True when this file system is mounted and of a kind that never stores bytes of two files, or of two places in one,
/// in one place.
pub fn never_shares(file_system: u64) -> bool {
    let known = mounts::mounts().into_iter().find(|mount| mount.dev == file_system);
    known.is_some_and(|mount| matches!(&*mount.kind, "ext2" | "ext3" | "ext4" | "tmpfs" | "ramfs"))
}

/// One question, with what was found out so far.
#[derive(Default)]
struct Look {
    mounts: OnceCell<Vec<Mount>>,
    depth: Cell<u32>,
    looks: Cell<u32>,
}

impl Look {
    /// Goes one step down; nothing where that is too deep.
    fn down<T: Default>(&self, go: impl FnOnce() -> T) -> T {
        if self.depth.get() >= DEPTH_MAX || self.looks.get() >= LOOKS_MAX {
            tracing::debug!("what lies below was not searched: too many layers or devices");
            return T::default();
        }
        self.depth.set(self.depth.get() + 1);
        self.looks.set(self.looks.get() + 1);
        let found = go();
        self.depth.set(self.depth.get() - 1);
        found
    }

    fn mounts(&self) -> &[Mount] {
        self.mounts.get_or_init(mounts::mounts)
    }

    /// The mount that an open file or folder was reached through.
    fn mount_of(&self, fd: &impl AsFd, stat: &Stat) -> Option<&Mount> {
        let info = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let id = std::fs::read_to_string(info).ok().and_then(|text| {
            text.lines().find_map(|l| l.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse::<u64>().ok())
        });
        let by_id = id.and_then(|id| self.mounts().iter().find(|m| m.id == id));
        by_id.or_else(|| self.mounts().iter().find(|m| m.dev == stat.st_dev))
    }

    /// A block device: its place on its disk.
    fn block(&self, rdev: u64) -> Storage {
        let (disk, range) = self.place(rdev);
        Storage::at(disk, range.offset(), range.len())
    }

    /// The disk of a block device, and its range there.
    fn place(&self, rdev: u64) -> (Arc<Stored>, ByteRange) {
        let place = Disk::of(rdev);
        let size = number(&sys_dir(rdev).join("size")).map(|n| n.saturating_mul(SECTOR));
        let end = size.map_or(LEN_MAX, |len| place.base.saturating_add(len));
        (self.disk(place.whole), ByteRange::between(place.base, end))
    }

    fn disk(&self, rdev: u64) -> Arc<Stored> {
        let leaf = LeafId { space: LeafSpace::Disk, id: (rdev, 0) };
        let dir = std::fs::canonicalize(sys_dir(rdev)).unwrap_or_else(|_| sys_dir(rdev));
        let node = dir.file_name().map_or_else(String::new, |n| n.to_string_lossy().replace('!', "/"));
        let below = self.down(|| self.below(rdev, leaf, &dir, &node));
        Stored::new(leaf, format!("/dev/{node}"), below)
    }

    fn below(&self, rdev: u64, leaf: LeafId, dir: &Path, node: &str) -> Storage {
        if dir.join("loop/backing_file").exists() {
            return self.below_loop(rdev, dir, node);
        }
        if dir.join("dm").exists()
            && let Ok(targets) = dm::table(rdev)
            && let Some(below) = self.below_mapper(leaf, &targets)
        {
            return below;
        }
        let mut below = Storage::default();
        for slave in entries(&dir.join("slaves")) {
            let Some(dev) = dev_at(&dir.join("slaves").join(slave)) else { continue };
            let (disk, range) = self.place(dev);
            below = below.and_within(disk, range, Decides::Device(leaf));
        }
        // Two ways to one unit (paths of a SAN, of an NVMe subsystem) carry one name; two units of a careless maker
        // may, too.
        let name = ["wwid", "device/wwid"].iter().find_map(|f| line(&dir.join(f)));
        if let Some(name) = name {
            let unit =
                Stored::new(unit(&name), format!("the unit with the identifier {name}"), Storage::default());
            below = below.and_within(unit, ByteRange::to(LEN_MAX), Decides::Device(leaf));
        }
        // Two connections to one export of a server: the kernel tells no more than the name it was given.
        if let Some(name) = line(&dir.join("backend")) {
            let name = format!("nbd {name}");
            let unit = Stored::new(unit(&name), format!("the backend {name}"), Storage::default());
            below = below.and_within(unit, ByteRange::to(LEN_MAX), Decides::Device(leaf));
        }
        below
    }

    fn below_loop(&self, rdev: u64, dir: &Path, node: &str) -> Storage {
        let shown = std::fs::read(dir.join("loop/backing_file")).unwrap_or_default();
        let shown = shown.trim_ascii_end();
        let name = {
            use std::os::unix::ffi::OsStrExt;
            let bytes = shown.strip_suffix(b" (deleted)").unwrap_or(shown);
            PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
        };
        let backing = open_block(&PathBuf::from(format!("/dev/{node}")), rdev)
            .and_then(|fd| ioctl::loop_backing(fd).ok());
        let (id, rdev, offset, limit) = match backing {
            Some(b) => ((b.dev, b.inode), b.rdev, b.offset, b.size_limit),
            // Without rights on the node its name must do.
            None => {
                let Ok(stat) = rustix::fs::stat(&name) else { return Storage::default() };
                let offset = number(&dir.join("loop/offset")).unwrap_or(0);
                let limit = number(&dir.join("loop/sizelimit")).unwrap_or(0);
                let block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
                ((stat.st_dev, stat.st_ino), if block { stat.st_rdev } else { 0 }, offset, limit)
            }
        };
        let len = if limit == 0 { LEN_MAX } else { limit };
        if rdev != 0 {
            let (disk, range) = self.place(rdev);
            return Storage::at(disk, range.offset().saturating_add(offset), len);
        }
        // The name is only a help to find the mount: where it means another file now, it is none.
        let named = rustix::fs::open(&name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
        let folder = || {
            let folder = name.parent()?;
            rustix::fs::open(folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        let same = |fd: &OwnedFd| rustix::fs::fstat(fd).is_ok_and(|s| (s.st_dev, s.st_ino) == id);
        let near = |fd: &OwnedFd| rustix::fs::fstat(fd).is_ok_and(|s| s.st_dev == id.0);
        let fd = named.filter(same).or_else(|| folder().filter(near));
        let mount = fd.and_then(|fd| rustix::fs::fstat(&fd).ok().and_then(|s| self.mount_of(&fd, &s)));
        let mount = mount.or_else(|| self.mounts().iter().find(|m| m.dev == id.0));
        Storage::at(self.file(id, mount, &name), offset, len)
    }

    /// By the table of a mapped device. `None`: a line that is not understood; then its slaves count.
    fn below_mapper(&self, leaf: LeafId, targets: &[dm::Target]) -> Option<Storage> {
        let mut below = Storage::default();
        for target in targets {
            let range = sectors(target.start, target.len)?;
            let words: Vec<&str> = target.parameters.split_whitespace().collect();
            let place = |word: &str, offset: &str| -> Option<(Arc<Stored>, u64)> {
                let (disk, range) = self.place(dev_of(word)?);
                let offset = offset.parse::<u64>().ok()?.checked_mul(SECTOR)?;
                Some((disk, range.offset().checked_add(offset)?))
            };
            below = match (&*target.kind, &words[..]) {
                ("linear", [dev, offset, ..]) => {
                    let (disk, offset) = place(dev, offset)?;
                    below.and_at(range, disk, offset)
                }
                ("striped", [count, chunk, stripes @ ..]) => {
                    let count =
                        count.parse::<u64>().ok().filter(|&n| n > 0 && stripes.len() as u64 == 2 * n)?;
                    let chunk = chunk.parse::<u64>().ok().filter(|&n| n > 0)?.checked_mul(SECTOR)?;
                    let mut below = below;
                    for (index, stripe) in (0..).zip(stripes.chunks_exact(2)) {
                        let (disk, offset) = place(stripe[0], stripe[1])?;
                        below = below.and_striped(range, disk, (index, count, chunk), offset);
                    }
                    below
                }
                // Reads as zero, takes no bytes.
                ("zero" | "error", _) => below,
                // The pool puts different volumes in different places, as a file system does with files.
                ("thin", [pool, id, ..]) => {
                    let (pool, id) = (dev_of(pool)?, id.parse::<u64>().ok()?);
                    let (disk, room) = self.place(pool);
                    let leaf = LeafId { space: LeafSpace::Unit, id: (pool, id) };
                    let inside = Storage::within(disk, room, Decides::Device(pool_of(pool)));
                    let name = format!("thin volume {id} of its pool");
                    below.and_at(range, Stored::new(leaf, name, inside), range.offset())
                }
                _ => {
                    let mut below = below;
                    // Names of devices are the only words of this form.
                    for dev in words.iter().filter_map(|w| dev_of(w)) {
                        let (disk, range) = self.place(dev);
                        below = below.and_within(disk, range, Decides::Device(leaf));
                    }
                    below
                }
            };
        }
        Some(below)
    }

    /// A regular file. `path`: what it was called last, which need not be so any more.
    fn file(&self, id: (u64, u64), mount: Option<&Mount>, path: &Path) -> Arc<Stored> {
        let leaf = LeafId { space: LeafSpace::File, id };
        let below = self.down(|| match mount {
            Some(mount) if mount.kind == "fuse.blkcopy" => self.below_our_file(mount, id, path),
            Some(mount) if mount.kind == "overlay" => {
                let real = self.below_overlay(mount, path);
                real.map_or_else(|| self.file_system(id.0, Some(mount)), |file| Storage::at(file, 0, LEN_MAX))
            }
            _ => self.file_system(id.0, mount),
        });
        Stored::new(leaf, path.display().to_string(), below)
    }

    /// What the files of a file system are stored in: somewhere on its devices.
    fn file_system(&self, dev: u64, mount: Option<&Mount>) -> Storage {
        let by = Decides::FileSystem(mount.map_or(dev, |m| m.dev));
        let mut below = Storage::default();
        for dev in devices_of(dev, mount) {
            let (disk, range) = self.place(dev);
            below = below.and_within(disk, range, by);
        }
        below
    }

    /// A file of one of our mounts: its volume. Where the name is not known it is one of those in the mounted folder.
    fn below_our_file(&self, mount: &Mount, id: (u64, u64), path: &Path) -> Storage {
        let is_it = |path: &Path| rustix::fs::stat(path).is_ok_and(|s| (s.st_dev, s.st_ino) == id);
        let point = Path::new(&mount.point);
        let found = || entries(point).into_iter().map(|name| point.join(name)).find(|path| is_it(path));
        let path = if is_it(path) { Some(path.to_owned()) } else { found() };
        let Some(path) = path else { return Storage::default() };
        let mut value = [0; ATTRIBUTE_MAX];
        let read = rustix::fs::getxattr(&path, ATTRIBUTE, &mut value[..]).ok();
        let text = read.and_then(|len| std::str::from_utf8(value.get(..len)?).ok());
        let Some((leaf, base)) = text.and_then(parse_leaf) else { return Storage::default() };
        match leaf.space {
            LeafSpace::Disk => Storage::at(self.disk(leaf.id.0), base, LEN_MAX),
            LeafSpace::File => {
                let mount = self.mounts().iter().find(|m| m.dev == leaf.id.0);
                let name = PathBuf::from(format!("the file that {} shows", path.display()));
                Storage::at(self.file(leaf.id, mount, &name), base, LEN_MAX)
            }
            _ => {
                let name = format!("the volume that {} shows", path.display());
                Storage::at(Stored::new(leaf, name, Storage::default()), base, LEN_MAX)
            }
        }
    }

    /// The file of a lower or the upper folder that a merged one shows.
    fn below_overlay(&self, mount: &Mount, path: &Path) -> Option<Arc<Stored>> {
        let inside = path.strip_prefix(&mount.point).ok()?;
        let root = Path::new(&mount.root);
        let inside = root.strip_prefix("/").unwrap_or(root).join(inside);
        let upper = mount.option("upperdir").into_iter();
        let lower = mount.option("lowerdir").unwrap_or_default();
        let lower_plus =
            mount.options.split(',').filter_map(|o| o.strip_prefix("lowerdir+=").map(mounts::unescape));
        let lower = lower.split(':').filter(|d| !d.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        for layer in upper.chain(lower).chain(lower_plus) {
            let real = Path::new(&layer).join(&inside);
            let Ok(fd) =
                rustix::fs::open(&real, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            else {
                continue;
            };
            let stat = rustix::fs::fstat(&fd).ok()?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return None;
            }
            return Some(self.file((stat.st_dev, stat.st_ino), self.mount_of(&fd, &stat), &real));
        }
        None
    }
}

/// Device numbers of the block devices under a file system.
fn devices_of(dev: u64, mount: Option<&Mount>) -> Vec<u64> {
    let block = |path: &str| {
        let stat = rustix::fs::stat(path).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice).then_some(stat.st_rdev)
    };
    let mut all = Vec::new();
    // A file system on one block device has its number.
    if rustix::fs::major(dev) != 0 {
        all.push(dev);
    }
    if let Some(mount) = mount {
        let source = block(&mount.source);
        if mount.kind == "btrfs" {
            let source = source.and_then(|dev| std::fs::canonicalize(sys_dir(dev)).ok());
            let source = source.as_ref().and_then(|dir| dir.file_name());
            for system in entries(Path::new("/sys/fs/btrfs")) {
                let devices = Path::new("/sys/fs/btrfs").join(system).join("devices");
                if source.is_some_and(|name| devices.join(name).exists()) {
                    all.extend(entries(&devices).iter().filter_map(|name| dev_at(&devices.join(name))));
                }
            }
        }
        if rustix::fs::major(dev) == 0 {
            all.extend(source);
        }
        // A log or a real-time part on a device of its own.
        all.extend(mount.options.split(',').filter_map(|o| block(&mounts::unescape(o.split_once('=')?.1))));
    }
    all.sort_unstable();
    all.dedup();
    all
}

fn sectors(start: u64, len: u64) -> Option<ByteRange> {
    ByteRange::new(start.checked_mul(SECTOR)?, len.checked_mul(SECTOR)?)
}

/// The leaf of what calls itself this.
fn unit(name: &str) -> LeafId {
    let hash = blake3::derive_key("blkcopy name of a unit", name.as_bytes());
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| hash[at + i]));
    LeafId { space: LeafSpace::Unit, id: (word(0) | 1 << 63, word(8)) }
}

/// Who puts the volumes of a thin pool apart.
fn pool_of(pool: u64) -> LeafId {
    LeafId { space: LeafSpace::Unit, id: (pool, u64::MAX) }
}

fn dev_at(dir: &Path) -> Option<u64> {
    dev_of(&std::fs::read_to_string(dir.join("dev")).ok()?)
}

pub(super) fn number(file: &Path) -> Option<u64> {
    line(file)?.parse().ok()
}

pub(super) fn line(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

/// Opens the node of a block device to ask its driver something; `None` when it is another device's.
pub(super) fn open_block(node: &Path, rdev: u64) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(node, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice && stat.st_rdev == rdev).then_some(fd)
}

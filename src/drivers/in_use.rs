//! Who else uses a file or block device: asked before one is overwritten.
//!
//! A look, not a lock: what it finds is a reason to refuse; finding nothing proves nothing about the next moment.

use super::bdev::is_claimed_here;
use super::file::look;
use super::image_locks::{self, ImageUse};
use super::mounts::{self, dev_of};
use super::{locks, stack};
use crate::block::device::LeafSpace;
use crate::block::{Error, LeafId, Overlap, Result, Storage};
use crate::sys::ioctl;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How something is used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum HolderKind {
    /// A mounted file system.
    Mount,
    /// Swap space.
    Swap,
    /// A device built on it (device mapper, RAID).
    Device,
    /// A loop device shows it.
    Loop,
    /// Byte locks in QEMU's places, of a program that writes.
    Lock,
    /// The same, of a program that only reads and lets nobody write.
    Reader,
    /// Opened exclusively by somebody.
    Exclusive,
}

/// One use; prints like "mounted at /mnt/x".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Holder {
    /// How it is used.
    pub kind: HolderKind,
    text: String,
}

impl Holder {
    fn new(kind: HolderKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// "mounted at /mnt/x; used as swap": all of them in one line.
pub(crate) fn list(holders: &[Holder]) -> String {
    holders.iter().map(Holder::to_string).collect::<Vec<_>>().join("; ")
}

/// What is to be done with what is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// To be written: whoever uses it counts.
    Write,
    /// To be read: whoever may write counts, and nothing is tried that could stop anyone.
    Read,
}

/// Everything known to use the file or block device at `path`; empty when nothing is found.
///
/// A whole disk is used when a partition of it is, and a partition when its disk is. To see exclusive users of a block
/// device it is opened exclusively for a moment. Errors: those of looking at `path`.
pub fn in_use(path: impl AsRef<Path>) -> Result<Vec<Holder>> {
    users(path.as_ref(), Asked::Write)
}

/// Everything known that may write to the file or block device at `path`. Nobody is hindered by the question.
///
/// Errors: those of looking at `path`.
pub fn writers(path: impl AsRef<Path>) -> Result<Vec<Holder>> {
    users(path.as_ref(), Asked::Read)
}

fn users(path: &Path, asked: Asked) -> Result<Vec<Holder>> {
    let name = path.display().to_string();
    let stat = look(path).map_err(|e| Error::os("cannot stat", e).on(&name))?;
    let mut holders = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => {
            let mut holders = of_block_device(path, stat.st_rdev, asked);
            // A reader of a read-only device, such as another copy of a golden image, changes nothing.
            let is_read_only = || {
                let fd = stack::open_block(path, stat.st_rdev);
                fd.is_some_and(|fd| ioctl::block_read_only(fd).unwrap_or(false))
            };
            if holders.is_empty()
                && asked == Asked::Write
                && !is_read_only()
                && exclusive_elsewhere(path, stat.st_rdev)
            {
                holders.push(Holder::new(HolderKind::Exclusive, "opened exclusively by another program"));
            }
            holders
        }
        FileType::RegularFile => of_file(path, &stat, asked),
        _ => Vec::new(),
    };
    holders.sort();
    holders.dedup();
    Ok(holders)
}

/// True when another program has the block device open exclusively, or its disk, or a partition of it.
///
/// The system refuses an exclusive open beside our own one of the disk or of a partition too. Then the others of that
/// disk are asked one by one.
pub(crate) fn exclusive_elsewhere(path: &Path, rdev: u64) -> bool {
    let busy = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let refused = || rustix::fs::open(path, flags, Mode::empty()).err() == Some(Errno::BUSY);
        // Another process that asks the same holds it for a moment, as several copies of one source do when they start
        // at once: the pauses differ from process to process.
        let pause = Duration::from_millis(3 + u64::from(std::process::id() % 11));
        (0..8).all(|_| {
            refused() && {
                std::thread::sleep(pause);
                true
            }
        })
    };
    if is_claimed_here(rdev) || !busy(path) {
        return false;
    }
    let disk = Disk::of(rdev);
    let (ours, others): (Vec<u64>, Vec<u64>) =
        disk.related.iter().filter(|&&dev| dev != rdev).partition(|&&dev| is_claimed_here(dev));
    ours.is_empty() || others.into_iter().any(|dev| busy(Path::new(&name_of(dev))))
}

fn of_file(path: &Path, stat: &Stat, asked: Asked) -> Vec<Holder> {
    let mut holders: Vec<Holder> = loops_on(path, stat)
        .into_iter()
        .map(|name| Holder::new(HolderKind::Loop, format!("backs /dev/{name}")))
        .collect();
    holders.extend(of_what_it_shows(path, stat));
    if swaps()
        .iter()
        .any(|s| look(Path::new(s)).is_ok_and(|s| (s.st_dev, s.st_ino) == (stat.st_dev, stat.st_ino)))
    {
        holders.push(Holder::new(HolderKind::Swap, "used as swap"));
    }
    holders.extend(locked_as_qemu_does(path, asked));
    holders
}

/// Who has locks on an image, in the places where QEMU has them.
fn locked_as_qemu_does(path: &Path, asked: Asked) -> Option<Holder> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let others = image_locks::of_others(&fd);
    let kind = if others.may_write() { HolderKind::Lock } else { HolderKind::Reader };
    let counts = match asked {
        Asked::Write => others.collides(ImageUse::DEST),
        Asked::Read => kind == HolderKind::Lock,
    };
    if !counts {
        return None;
    }
    let who = image_locks::holder(&fd).map_or_else(String::new, |who| format!(", held by {who}"));
    Some(Holder::new(kind, format!("locked by another program (QEMU-style byte locks{who})")))
}

/// What uses the block device at `path`, which has this number.
pub(crate) fn of_block_device(path: &Path, rdev: u64, asked: Asked) -> Vec<Holder> {
    let disk = Disk::of(rdev);
    let names = |path: &str| look(Path::new(path)).ok().map(|s| s.st_rdev);
    let part_of = |dev: u64| {
        if dev == rdev { String::new() } else { format!(" ({})", name_of(dev)) }
    };
    let mut holders = Vec::new();
    for mount in mounts::mounts() {
        // A file system on several devices has a number of its own; its source still names one of them.
        let source = names(&mount.source).filter(|&d| d != 0);
        let dev = [Some(mount.dev), source].into_iter().flatten().find(|d| disk.related.contains(d));
        if let Some(dev) = dev {
            holders
                .push(Holder::new(HolderKind::Mount, format!("mounted at {}{}", mount.point, part_of(dev))));
        }
    }
    for swap in swaps() {
        if let Some(dev) = names(&swap).filter(|d| disk.related.contains(d)) {
            holders.push(Holder::new(HolderKind::Swap, format!("used as swap{}", part_of(dev))));
        }
    }
    for &dev in &disk.related {
        for holder in entries(&sys_dir(dev).join("holders")) {
            holders.push(Holder::new(HolderKind::Device, format!("held by {holder}{}", part_of(dev))));
        }
    }
    holders.extend(locked_as_qemu_does(path, asked));
    for &dev in disk.related.iter().filter(|&&dev| dev != rdev) {
        if let Some(holder) = locked_as_qemu_does(Path::new(&name_of(dev)), asked) {
            holders.push(Holder::new(holder.kind, format!("{holder}{}", part_of(dev))));
        }
    }
    holders.extend(of_twins(rdev, &disk, asked));
    holders
}

/// What uses the same bytes under another name: other loop devices over the same file, another mapping of the same
/// disk, and whoever has locked the file below.
fn of_twins(rdev: u64, disk: &Disk, asked: Asked) -> Vec<Holder> {
    // What lies on a file system is not in use because that is mounted.
    let whole = stack::of_block(rdev);
    let mine = whole.above_file_systems();
    let mut holders = Vec::new();
    let files: Vec<_> =
        mine.leaves().iter().map(|s| s.leaf()).filter(|l| l.space == LeafSpace::File).collect();
    let is_listed = |file: &LeafId, (dev, inode): (u64, u64)| {
        // Under the number of the file system, which a file in a subvolume does not have.
        let mut systems =
            whole.leaves().into_iter().filter(|s| s.leaf() == *file).filter_map(|s| s.file_system());
        file.id.1 == inode && (file.id.0 == dev || systems.any(|system| system == dev))
    };
    for lock in if files.is_empty() { Vec::new() } else { locks::all() } {
        if files.iter().any(|file| is_listed(file, lock.file)) {
            let text = format!("the file below is locked by another program ({})", lock.how);
            holders.push(Holder::new(HolderKind::Lock, text));
        }
    }
    holders.extend(uses_of(&mine, &disk.related, asked == Asked::Write));
    holders
}

/// What uses a block device that shares bytes with this storage, but those in `known`; also (`open`) other programs
/// that have one open exclusively.
fn uses_of(mine: &Storage, known: &BTreeSet<u64>, open: bool) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    // A device number, what uses it, and the device that holds it.
    let mut uses: Vec<(u64, Holder, Option<u64>)> = Vec::new();
    // What it stands on is held by it, and by what else stands there: that is no use of these bytes.
    let stands_on: BTreeSet<u64> = mine
        .leaves()
        .iter()
        .map(|s| s.leaf())
        .filter(|l| l.space == LeafSpace::Disk)
        .map(|l| l.id.0)
        .collect();
    let names = |path: &str| look(Path::new(path)).ok().map(|s| s.st_rdev).filter(|&d| d != 0);
    for mount in mounts::mounts() {
        let own = Some(mount.dev).filter(|&d| rustix::fs::major(d) != 0);
        if let Some(dev) = own.or_else(|| names(&mount.source)) {
            uses.push((dev, Holder::new(HolderKind::Mount, format!("mounted at {}", mount.point)), None));
        }
    }
    for dev in swaps().iter().filter_map(|swap| names(swap)) {
        uses.push((dev, Holder::new(HolderKind::Swap, "used as swap"), None));
    }
    for name in entries(Path::new("/sys/class/block")) {
        let dir = Path::new("/sys/class/block").join(&name);
        let Some(dev) = read_dev(&dir) else { continue };
        let held_by = entries(&dir.join("holders"));
        let is_held = !held_by.is_empty();
        let by: Vec<_> = held_by.iter().map(|h| read_dev(&dir.join("holders").join(h))).collect();
        // Stood on by this storage itself: then the others there are its neighbours.
        let is_below = by.iter().flatten().any(|by| stands_on.contains(by));
        for (holder, by) in held_by.into_iter().zip(by).filter(|_| !is_below) {
            uses.push((dev, Holder::new(HolderKind::Device, format!("held by {holder}")), by));
        }
        // Of a disk with partitions these: the disk is busy when one of them is, which may be another part.
        let is_loop = dir.join("loop/backing_file").exists() && Disk::of(dev).related.len() == 1;
        if open
            && !is_held
            && (is_loop || dir.join("partition").exists() && dir.join("../loop/backing_file").exists())
        {
            uses.push((
                dev,
                Holder::new(HolderKind::Exclusive, "opened exclusively by another program"),
                None,
            ));
        }
    }
    uses.retain(|(dev, ..)| !known.contains(dev));
    let mut shares: BTreeMap<u64, bool> = BTreeMap::new();
    for (dev, holder, by) in uses {
        let storage = |dev| stack::of_block(dev).above_file_systems();
        // Only what certainly is the same: what cannot be told may be any two volumes on one disk.
        let ask = || matches!(storage(dev).overlap(mine), Overlap::Yes(_));
        if !*shares.entry(dev).or_insert_with(ask) {
            continue;
        }
        if by.is_some_and(|by| storage(by).overlap(mine).is_no()) {
            continue;
        }
        let name = name_of(dev);
        // Only of a twin: to find out means to hold it for a moment. A mount or the like says it already.
        let moot = holder.kind == HolderKind::Exclusive
            && (holders.iter().any(|h| h.kind != HolderKind::Lock)
                || !exclusive_elsewhere(Path::new(&name), dev));
        if !moot {
            let text = format!("{} ({name}, which holds the same bytes)", holder.text);
            holders.push(Holder::new(holder.kind, text));
        }
    }
    holders
}

/// Paths of active swap, from `/proc/swaps`.
fn swaps() -> Vec<String> {
    std::fs::read_to_string("/proc/swaps").map_or_else(|_| Vec::new(), |text| parse_swaps(&text))
}

/// proc_swaps(5): a heading, then `path type size used priority`, with blanks as `\040`.
fn parse_swaps(text: &str) -> Vec<String> {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split([' ', '\t']).next())
        .filter(|name| !name.is_empty())
        .map(mounts::unescape)
        .collect()
}

/// What uses the file or disk behind a file of our own mounts, or behind one of an overlay. Not who has it open: the
/// mount has.
fn of_what_it_shows(path: &Path, stat: &Stat) -> Vec<Holder> {
    let storage = stack::of_path(path).above_file_systems();
    let leaves = storage.leaves();
    let own = (stat.st_dev, stat.st_ino);
    let mut holders = Vec::new();
    let disks: Vec<u64> =
        leaves.iter().map(|s| s.leaf()).filter(|l| l.space == LeafSpace::Disk).map(|l| l.id.0).collect();
    for stored in leaves.iter().filter(|s| s.leaf().space == LeafSpace::File && s.leaf().id != own) {
        let id = stored.leaf().id;
        let names = loops_of(id, None).into_iter().filter(|(dev, _)| !disks.contains(dev));
        holders.extend(names.map(|(_, name)| {
            Holder::new(HolderKind::Loop, format!("backs /dev/{name}, under another name"))
        }));
    }
    if leaves.len() > 1 {
        let uses = uses_of(&storage, &BTreeSet::new(), false);
        holders.extend(uses);
    }
    holders
}

/// Names of the loop devices that show this file.
fn loops_on(path: &Path, stat: &Stat) -> Vec<String> {
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    loops_of((stat.st_dev, stat.st_ino), Some(&real)).into_iter().map(|(_, name)| name).collect()
}

/// Number and name of each loop device that shows the file of this device number and inode.
fn loops_of(id: (u64, u64), real: Option<&Path>) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    for name in entries(Path::new("/sys/block")) {
        let dir = Path::new("/sys/block").join(&name);
        let Ok(shown) = std::fs::read_to_string(dir.join("loop/backing_file")) else { continue };
        let node = Path::new("/dev").join(&name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let backing = rustix::fs::open(node, flags, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(ioctl::loop_backing);
        let same = match backing {
            Ok(backing) => (backing.dev, backing.inode) == id,
            // Without rights on the node the name must do.
            Err(_) => real.is_some_and(|real| Path::new(shown.trim_end()) == real),
        };
        if same {
            found.push((read_dev(&dir).unwrap_or(0), name));
        }
    }
    found
}

pub(super) fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

pub(super) fn sys_dir(dev: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

fn is_host_managed(dir: &Path) -> bool {
    std::fs::read_to_string(dir.join("queue/zoned")).is_ok_and(|model| model.trim() == "host-managed")
}

fn read_dev(dir: &Path) -> Option<u64> {
    dev_of(&std::fs::read_to_string(dir.join("dev")).ok()?)
}

/// The name of a block device's node, as the kernel has it.
fn name_of(dev: u64) -> String {
    let dir = std::fs::canonicalize(sys_dir(dev)).ok();
    let name = dir.and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()));
    name.map_or_else(|| "a related device".into(), |n| format!("/dev/{n}"))
}

/// Where a block device lies on its disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Disk {
    /// Device number of the whole disk.
    pub(crate) whole: u64,
    /// First byte of the device on the disk.
    pub(crate) base: u64,
    /// The device, the disk it is a partition of, its partitions: what is in use together with it.
    related: BTreeSet<u64>,
}

impl Disk {
    /// True for a disk of zones that can be written from their start on only (`queue/zoned`,
    /// Documentation/ABI/stable/sysfs-block).
    pub(crate) fn is_host_managed(&self) -> bool {
        is_host_managed(&sys_dir(self.whole))
    }

    /// True for a disk that makes zeroes without being sent them (`queue/write_zeroes_max_bytes`, above 0;
    /// Documentation/ABI/stable/sysfs-block). Whether it lets go of their storage is for it to say, and it says nothing
    /// that can be relied on: `queue/discard_zeroes_data` has been 0 for every disk since Linux 4.12.
    pub(crate) fn zeroes_by_itself(&self) -> bool {
        let most = std::fs::read_to_string(sys_dir(self.whole).join("queue/write_zeroes_max_bytes"));
        most.is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0))
    }

    /// From sysfs. A device that is not there is its own disk.
    pub(crate) fn of(rdev: u64) -> Self {
        let mut disk = Self { whole: rdev, base: 0, related: BTreeSet::from([rdev]) };
        let Ok(dir) = std::fs::canonicalize(sys_dir(rdev)) else { return disk };
        if dir.join("partition").exists() {
            if let Some(whole) = dir.parent().and_then(read_dev) {
                disk.whole = whole;
                disk.related.insert(whole);
            }
            // Always in units of 512 bytes, whatever the block size (Documentation/ABI/stable/sysfs-block).
            let start =
                std::fs::read_to_string(dir.join("start")).ok().and_then(|s| s.trim().parse::<u64>().ok());
            disk.base = start.unwrap_or(0).saturating_mul(512);
        } else {
            for name in entries(&dir) {
                let part = dir.join(name);
                if part.join("partition").exists() {
                    disk.related.extend(read_dev(&part));
                }
            }
        }
        disk
    }
}

/// A sparse file behind a loop device, on a file system that cannot hold all of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// The file, as the loop driver names it.
    pub file: PathBuf,
    /// Bytes of it that have no space yet.
    pub missing_bytes: u64,
    /// Bytes its file system has left.
    pub free_bytes: u64,
}

/// What a loop device promises and cannot keep; `None` for other devices and when all is well or cannot be told.
///
/// It matters more than on other thin devices: Linux's loop driver calls a write whole that the full file system cut
/// short (`lo_complete_rq` looks at the length of reads only; seen on 6.18: 1 MiB written by O_DIRECT, 1036288 bytes
/// there, `fsync` fine).
pub fn backing_shortage(device: &Path) -> Option<Shortage> {
    let rdev = rustix::fs::stat(device)
        .ok()
        .filter(|s| FileType::from_raw_mode(s.st_mode) == FileType::BlockDevice)?
        .st_rdev;
    let shown = std::fs::read_to_string(sys_dir(Disk::of(rdev).whole).join("loop/backing_file")).ok()?;
    let file = PathBuf::from(shown.trim_end());
    let stat = rustix::fs::stat(&file).ok()?;
    let space = rustix::fs::statvfs(&file).ok()?;
    let size = u64::try_from(stat.st_size).ok()?;
    // Blocks in stat(2) are of 512 bytes.
    let missing_bytes = size.saturating_sub(u64::try_from(stat.st_blocks).ok()?.saturating_mul(512));
    let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
    (missing_bytes > free_bytes).then_some(Shortage { file, missing_bytes, free_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::testing::{Loop, Mounted, command};

    fn texts(path: &Path) -> Vec<String> {
        in_use(path).unwrap().iter().map(Holder::to_string).collect()
    }

    #[test]
    fn swaps_are_parsed() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /swap\\040file                              file\t\t2097148\t\t0\t\t-2\n\
                    /dev/sda2 partition 1 0 -3\n";
        assert_eq!(parse_swaps(text), ["/swap file", "/dev/sda2"]);
        assert!(parse_swaps("Filename Type\n").is_empty());
    }

    #[test]
    fn only_host_managed_zones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_host_managed(dir.path()), "no such file before Linux 4.10");
        std::fs::create_dir(dir.path().join("queue")).unwrap();
        for (model, refused) in [("none", false), ("host-aware", false), ("host-managed", true)] {
            std::fs::write(dir.path().join("queue/zoned"), format!("{model}\n")).unwrap();
            assert_eq!(is_host_managed(dir.path()), refused, "{model}");
        }
    }

    #[test]
    fn an_exclusive_reader_of_a_read_only_device_is_no_user() {
        let dir = tempfile::tempdir().unwrap();
        let test = "an_exclusive_reader_of_a_read_only_device_is_no_user";
        for (flags, users) in [(&[][..], 1), (&["--read-only"][..], 0)] {
            let Some(disk) = Loop::new(test, dir.path(), 1 << 20, flags) else { return };
            let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
            let _held = rustix::fs::open(&disk.device, flags, Mode::empty()).unwrap();
            assert_eq!(texts(&disk.device).len(), users, "{:?}", texts(&disk.device));
        }
    }

    #[test]
    fn those_who_ask_at_once_do_not_take_each_other_for_users() {
        let dir = tempfile::tempdir().unwrap();
        let Some(disk) = Loop::new("those_who_ask_at_once...", dir.path(), 1 << 20, &[]) else { return };
        let rdev = rustix::fs::stat(&disk.device).unwrap().st_rdev;
        let ask = || {
            (0..200).any(|_| {
                std::thread::sleep(Duration::from_millis(1));
                exclusive_elsewhere(&disk.device, rdev)
            })
        };
        let found =
            std::thread::scope(|scope| [(); 4].map(|()| scope.spawn(ask)).map(|asker| asker.join().unwrap()));
        assert_eq!(found, [false; 4]);
    }

    //= promise 3
    #[test]
    fn a_mounted_loop_device_and_its_backing_file_are_in_use() {
        let Some(fs) = Mounted::new("a_mounted_loop_device...", &["mkfs.ext4", "-q"], 16 << 20) else {
            return;
        };
        assert_eq!(texts(&fs.on.device), [format!("mounted at {}", fs.dir.display())]);
        assert_eq!(texts(&fs.on.file), [format!("backs {}", fs.on.device.display())]);
        // Through another name of the same file.
        let link = fs.on.file.with_file_name("link");
        std::fs::hard_link(&fs.on.file, &link).unwrap();
        assert_eq!(texts(&link), [format!("backs {}", fs.on.device.display())]);
        let other = fs.on.file.with_file_name("other");
        std::fs::write(&other, b"x").unwrap();
        assert!(texts(&other).is_empty());
    }

    #[test]
    fn a_disk_is_in_use_when_its_partition_is() {
        let test = "a_disk_is_in_use_when_its_partition_is";
        let Some(on) = Loop::new(test, &std::env::temp_dir(), 32 << 20, &["-P"]) else { return };
        let disk = on.device.to_str().unwrap();
        let part = PathBuf::from(format!("{disk}p1"));
        let script =
            format!("echo '2048,,L' | sfdisk -q {disk} && partprobe {disk} 2>/dev/null || true; sleep 0.2");
        if command(&["sh", "-c", &script]).is_none() || !part.exists() {
            eprintln!("SKIPPED {test}: partitions on loop devices do not work here");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        assert!(command(&["mkfs.ext4", "-q", part.to_str().unwrap()]).is_some());
        assert!(command(&["mount", part.to_str().unwrap(), at]).is_some());
        let (of_part, of_disk) = (texts(&part), texts(&on.device));
        let seen = Disk::of(look(&part).unwrap().st_rdev);
        assert!(command(&["umount", at]).is_some());
        assert_eq!(of_part, [format!("mounted at {at}")]);
        assert_eq!(of_disk, [format!("mounted at {at} ({})", part.display())]);
        assert_eq!((seen.whole, seen.base), (look(&on.device).unwrap().st_rdev, 1 << 20));
    }

    #[test]
    fn swap_is_in_use() {
        let test = "swap_is_in_use";
        let Some(on) = Loop::new(test, &std::env::temp_dir(), 16 << 20, &[]) else { return };
        let device = on.device.to_str().unwrap();
        if command(&["mkswap", device]).is_none() || command(&["swapon", device]).is_none() {
            eprintln!("SKIPPED {test}: swapon does not work here");
            return;
        }
        let seen = texts(&on.device);
        assert!(command(&["swapoff", device]).is_some());
        assert_eq!(seen, ["used as swap"]);
    }

    //= promise 3
    #[test]
    fn byte_locks_in_qemus_places_are_in_use() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let asked = || {
            let texts = |found: Vec<Holder>| found.iter().map(Holder::to_string).collect::<Vec<_>>();
            (texts(in_use(file.path()).unwrap()), texts(writers(file.path()).unwrap()))
        };
        let told = || vec!["locked by another program (QEMU-style byte locks)".to_owned()];
        for (byte, in_use, writes) in [
            (50, false, false),
            // A reader that lets others write; one that does not; a writer.
            (100, false, false),
            (201, true, false),
            (101, true, true),
        ] {
            ioctl::share_byte(&file, byte).unwrap();
            let expected = |is| if is { told() } else { Vec::new() };
            assert_eq!(asked(), (expected(in_use), expected(writes)), "{byte}");
            ioctl::release_byte(&file, byte).unwrap();
        }
    }

    #[test]
    fn an_exclusive_open_is_in_use() {
        let Some(on) = Loop::new("an_exclusive_open_is_in_use", &std::env::temp_dir(), 1 << 20, &[]) else {
            return;
        };
        assert!(texts(&on.device).is_empty());
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        let _held = rustix::fs::open(&on.device, flags, Mode::empty()).unwrap();
        assert_eq!(texts(&on.device), ["opened exclusively by another program"]);
    }

    #[test]
    fn a_loop_device_that_promises_more_than_there_is_falls_short() {
        let test = "a_loop_device_that_promises_more_than_there_is_falls_short";
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        if command(&["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", at]).is_none() {
            return eprintln!("SKIPPED {test}: no tmpfs can be mounted");
        }
        for (size, falls_short) in [(4 << 20, false), (64 << 20, true)] {
            let Some(on) = Loop::new(test, dir.path(), size, &[]) else { break };
            let found = backing_shortage(&on.device);
            assert_eq!(found.is_some(), falls_short, "{found:?}");
            if let Some(found) = found {
                assert_eq!((found.missing_bytes, found.free_bytes <= 8 << 20), (size, true), "{found:?}");
                assert!(found.file.starts_with(dir.path()), "{found:?}");
            }
        }
        assert!(command(&["umount", at]).is_some());
        assert_eq!(backing_shortage(Path::new("/dev/null")), None);
    }
}

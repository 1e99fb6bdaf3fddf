//! What files and disks are told by from start to start: birth of an inode, names that hardware carries.

use super::in_use::{Disk, sys_dir};
use super::stack::{number, open_block};
use crate::block::Container;
use crate::sys::ioctl;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// A number that nobody has had before.
pub(crate) fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    if got.ok() != Some(bytes.len()) {
        // Only before the kernel has gathered any: the clock and the process must do.
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes = (since.as_nanos() ^ u128::from(std::process::id()) << 96).to_be_bytes();
    }
    bytes
}

/// What holds the bytes of an open regular file: its inode, told from an earlier one of that number by its time of
/// birth and its generation, of which the time alone may be the same for two files made within one tick of the kernel's
/// clock. Where the file system has neither, nothing is known to last.
pub(crate) fn of_file(fd: impl AsFd) -> Container {
    inode(&fd).unwrap_or_else(|| Container::passing("file", random()))
}

fn inode(fd: &impl AsFd) -> Option<Container> {
    let system = match ioctl::file_system_uuid(fd) {
        Ok(uuid) => format!("{:032x}", u128::from_be_bytes(uuid)),
        // Not the device's number: that is another one after the next start of the machine.
        Err(_) => {
            let id = rustix::fs::fstatvfs(fd).ok()?.f_fsid;
            format!("id {id:x}")
        }
    };
    let asked = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, asked).ok()?;
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0 && stat.stx_btime.tv_sec != 0;
    let birth = has_birth.then(|| format!("born {}.{:09}", stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec));
    let generation = ioctl::file_generation(fd).ok().map(|number| format!("generation {number}"));
    let since = match (birth, generation) {
        (Some(birth), Some(generation)) => format!("{birth} {generation}"),
        (birth, generation) => birth.or(generation)?,
    };
    Some(Container::new(format!("file {} of {system} {since}", stat.stx_ino)))
}

/// What holds the bytes of a block device of `len` bytes: what the hardware calls itself, what a loop device shows,
/// what a mapped device is called; else the device as it is since it was attached, until the machine is started again.
pub(crate) fn of_block(rdev: u64, len: u64) -> Container {
    let place = Disk::of(rdev);
    let dir = std::fs::canonicalize(sys_dir(place.whole)).unwrap_or_else(|_| sys_dir(place.whole));
    let disk = shown_by_loop(place.whole, &dir)
        .or_else(|| named(&dir))
        .or_else(|| attached(&dir))
        .unwrap_or_else(|| Container::passing("disk", random()));
    disk.part(place.base, len)
}

fn named(dir: &Path) -> Option<Container> {
    const NAMES: [&str; 6] = ["dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial"];
    let name = NAMES.iter().find_map(|file| Some((file, line(&dir.join(file))?)));
    name.map(|(file, name)| Container::new(format!("disk {file} {name}")))
}

fn shown_by_loop(rdev: u64, dir: &Path) -> Option<Container> {
    use std::os::unix::ffi::OsStringExt;
    let shown = std::fs::read(dir.join("loop/backing_file")).ok()?;
    let name = PathBuf::from(std::ffi::OsString::from_vec(shown.trim_ascii_end().to_vec()));
    let node = Path::new("/dev").join(dir.file_name()?);
    let backing = ioctl::loop_backing(open_block(&node, rdev)?).ok()?;
    let fd =
        rustix::fs::open(name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    // A name that means another file by now says nothing.
    let same = regular && (stat.st_dev, stat.st_ino) == (backing.dev, backing.inode);
    Some(inode(&fd).filter(|_| same)?.part(backing.offset, backing.size_limit))
}

/// The number the kernel gives each disk that comes, and the start of the machine that counts them.
fn attached(dir: &Path) -> Option<Container> {
    let boot = line(Path::new("/proc/sys/kernel/random/boot_id"))?;
    Some(Container::new(format!("disk {} of boot {boot}", number(&dir.join("diskseq"))?)))
}

fn line(file: &Path) -> Option<String> {
    super::stack::line(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::testing::{Loop, Mounted};
    use std::fs::File;

    //= promise 1
    #[test]
    fn a_file_is_itself_under_every_name_and_its_successor_is_not() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap();
        let (path, other) = (dir.path().join("f"), dir.path().join("g"));
        std::fs::write(&path, b"one").unwrap();
        let of = |path: &Path| of_file(File::open(path).unwrap());
        let first = of(&path);
        if first.words().starts_with("file ") && !first.words().contains(" of ") {
            return eprintln!("SKIPPED a_file_is_itself...: no birth times and no generations here");
        }
        std::fs::rename(&path, &other).unwrap();
        std::fs::write(&other, b"two, written in place").unwrap();
        assert_eq!(of(&other), first, "renamed and written to");
        // The inode's number is often given to the next file.
        for _ in 0..20 {
            std::fs::remove_file(&other).unwrap();
            std::fs::write(&other, b"one").unwrap();
            assert_ne!(of(&other), first);
        }
    }

    //= promise 1
    #[test]
    fn inodes_without_a_birth_time_have_a_generation() {
        // Inodes of 128 bytes have no room for the time of birth.
        let mkfs = ["mkfs.ext4", "-q", "-I", "128"];
        let Some(fs) = Mounted::new("inodes_without_a_birth_time_have_a_generation", &mkfs, 16 << 20) else {
            return;
        };
        let path = fs.path("f");
        let mut seen = Vec::new();
        for _ in 0..5 {
            std::fs::write(&path, b"one").unwrap();
            let of = of_file(File::open(&path).unwrap());
            assert_eq!(of, of_file(File::open(&path).unwrap()));
            assert!(of.words().contains("generation"), "{of}");
            assert!(!seen.contains(&of), "{of}");
            seen.push(of);
            std::fs::remove_file(&path).unwrap();
        }
    }

    //= promise 1
    #[test]
    fn a_loop_device_is_what_it_shows_now() {
        let test = "a_loop_device_is_what_it_shows_now";
        let Some(on) = Loop::new(test, &std::env::temp_dir(), 1 << 20, &[]) else { return };
        let rdev = rustix::fs::stat(&on.device).unwrap().st_rdev;
        let first = of_block(rdev, 1 << 20);
        assert_eq!(of_block(rdev, 1 << 20), first);
        assert!(first.words().starts_with("file "), "{first}");
        std::fs::remove_file(&on.file).unwrap();
        std::fs::write(&on.file, b"x").unwrap();
        let nameless = of_block(rdev, 1 << 20);
        assert_ne!(nameless, first, "its name means another file now");
        assert_eq!(nameless, of_block(rdev, 1 << 20));
        assert_ne!(of_block(rdev, 1 << 19), nameless);
    }
}

//! Locks that other programs hold on files, from `/proc`: to see who uses a file that has no name here.

use super::image_locks::{ImageUse, is_ours};
use std::path::Path;

/// Most descriptors that are looked at for the holder of a lock.
const DESCRIPTORS_MAX: usize = 50_000;

/// A lock that means "I write to this" or "nobody may", held by another process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lock {
    /// Device number of the file system and inode.
    pub(crate) file: (u64, u64),
    /// In words.
    pub(crate) how: &'static str,
}

/// All such locks that this process may see; none where the list cannot be read.
pub(crate) fn all() -> Vec<Lock> {
    let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut all = parse(&text, std::process::id());
    // Locks of open file descriptions have no process: what is locked here was compared with others when it was.
    all.retain(|lock| lock.how == FLOCK || !is_ours(lock.file));
    all
}

const FLOCK: &str = "flock";

/// A line of the list.
struct Line<'a> {
    kind: &'a str,
    access: &'a str,
    pid: &'a str,
    file: (u64, u64),
    from: &'a str,
    to: &'a str,
}

impl<'a> Line<'a> {
    /// proc_locks(5): `1: FLOCK ADVISORY WRITE 1234 08:01:567 0 EOF`, the device in hexadecimal. A waiter's line has
    /// `->` behind its number.
    fn parse(line: &'a str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, kind, _, access, pid, place, from, to] = words[..] else { return None };
        let mut place = place.splitn(3, ':');
        let mut hex = || u32::from_str_radix(place.next()?, 16).ok();
        let dev = rustix::fs::makedev(hex()?, hex()?);
        let file = (dev, place.next()?.parse().ok()?);
        Some(Self { kind, access, pid, file, from, to })
    }

    /// What it means for an image, if it is in QEMU's places; whole-file locks of others say less.
    fn image_use(&self) -> ImageUse {
        let range = || Some((self.from.parse::<i64>().ok()?, self.to.parse::<i64>().ok()?));
        match (self.kind, range()) {
            // Neighbours are shown as one; QEMU's lie in two groups.
            ("OFDLCK" | "POSIX", Some((from, to))) if from >= 100 && to < 300 => {
                ImageUse::of(|byte| (from..=to).contains(&byte))
            }
            _ => ImageUse::default(),
        }
    }
}

/// Exclusive `flock`s (ours, and of many daemons) and image locks of programs that write, or let nobody write, count; a
/// lock of `me` does not.
fn parse(text: &str, me: u32) -> Vec<Lock> {
    let one = |line: &str| {
        let line = Line::parse(line)?;
        let how = match (line.kind, line.access) {
            ("FLOCK", "WRITE") if line.pid.parse() != Ok(me) => FLOCK,
            _ if line.image_use().collides(ImageUse::DEST) => "QEMU-style byte locks",
            _ => return None,
        };
        Some(Lock { file: line.file, how })
    };
    let mut all: Vec<Lock> = text.lines().filter_map(one).collect();
    all.dedup();
    all
}

/// Another process with image locks on a file: "qemu-nbd, process 77". `None`: none is seen, as for a process of
/// another user.
///
/// Reads what the kernel tells of descriptors, and asks no file: one on a dead server keeps nobody waiting.
pub(super) fn holder(file: (u64, u64)) -> Option<String> {
    let me = std::process::id();
    let names = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut left = DESCRIPTORS_MAX;
    for process in names(Path::new("/proc")) {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == me {
            continue;
        }
        for descriptor in names(&process.path().join("fdinfo")) {
            left = left.checked_sub(1)?;
            let told = std::fs::read_to_string(descriptor.path()).unwrap_or_default();
            let mut lines = told.lines().filter_map(|line| Line::parse(line.strip_prefix("lock:")?));
            if lines.any(|line| line.file == file && !line.image_use().is_none()) {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("{}, process {pid}", name.trim().escape_debug()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_that_mean_writing_are_told_from_others() {
        let text = "1: FLOCK  ADVISORY  WRITE 1234 08:11:567 0 EOF\n\
                    2: FLOCK  ADVISORY  READ 1234 08:11:568 0 EOF\n\
                    3: FLOCK  ADVISORY  WRITE 77 08:11:569 0 EOF\n\
                    4: OFDLCK ADVISORY  READ -1 00:2a:570 100 101\n\
                    5: POSIX  ADVISORY  WRITE 5 08:11:571 0 EOF\n\
                    5: -> POSIX  ADVISORY  WRITE 6 08:11:571 0 EOF\n\
                    6: LEASE  ACTIVE    READ  5 08:11:572 0 EOF\n\
                    7: OFDLCK ADVISORY  READ -1 00:2a:573 203 203\n\
                    8: OFDLCK ADVISORY  READ -1 00:2a:574 100 100\n\
                    9: nonsense\n";
        let dev = rustix::fs::makedev;
        let seen: Vec<_> = parse(text, 77).into_iter().map(|l| (l.file, l.how)).collect();
        let qemu = "QEMU-style byte locks";
        assert_eq!(
            seen,
            [((dev(8, 17), 567), "flock"), ((dev(0, 42), 570), qemu), ((dev(0, 42), 573), qemu)]
        );
    }
}

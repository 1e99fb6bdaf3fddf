//! Locks that other programs hold on files, from `/proc/locks`: to see who uses a file that has no name here.

/// A lock that means "I write to this", held by another process.
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
    parse(&text, std::process::id())
}

/// proc_locks(5): `1: FLOCK ADVISORY WRITE 1234 08:01:567 0 EOF`, the device in hexadecimal. A waiter's line has `->`
/// behind its number.
///
/// Exclusive `flock`s (ours, and of many daemons) and byte locks at 100 + n and 200 + n (QEMU's) count; a lock of `me`
/// does not.
fn parse(text: &str, me: u32) -> Vec<Lock> {
    let one = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, kind, _, access, pid, place, from, to] = words[..] else { return None };
        let mut place = place.splitn(3, ':');
        let mut hex = || u32::from_str_radix(place.next()?, 16).ok();
        let dev = rustix::fs::makedev(hex()?, hex()?);
        let file = (dev, place.next()?.parse().ok()?);
        let how = match (kind, access) {
            ("FLOCK", "WRITE") if pid.parse() != Ok(me) => "flock",
            ("OFDLCK" | "POSIX", _) => {
                let (from, to) = (from.parse::<u64>().ok()?, to.parse::<u64>().ok()?);
                // QEMU's are single bytes; whole-file locks of others say less.
                (from >= 100 && to < 300).then_some("QEMU-style byte locks")?
            }
            _ => return None,
        };
        Some(Lock { file, how })
    };
    let mut all: Vec<Lock> = text.lines().filter_map(one).collect();
    all.dedup();
    all
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
                    8: nonsense\n";
        let dev = rustix::fs::makedev;
        let seen: Vec<_> = parse(text, 77).into_iter().map(|l| (l.file, l.how)).collect();
        let qemu = "QEMU-style byte locks";
        assert_eq!(
            seen,
            [((dev(8, 17), 567), "flock"), ((dev(0, 42), 570), qemu), ((dev(0, 42), 573), qemu)]
        );
    }
}

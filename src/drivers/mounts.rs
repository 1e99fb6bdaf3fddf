//! The mount table of this process, from `/proc/self/mountinfo`.

/// One mounted file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mount {
    /// The mount's number, as `statx` gives it.
    pub(crate) id: u64,
    /// Device number of the file system: a block device's where it has exactly one.
    pub(crate) dev: u64,
    /// Where it is mounted.
    pub(crate) point: String,
    /// What is mounted: usually the path of a block device.
    pub(crate) source: String,
    /// Which folder of the file system is mounted: `/`, unless it is a bind mount or a subvolume.
    pub(crate) root: String,
    /// Type of the file system.
    pub(crate) kind: String,
    /// Its own options, separated by commas, as the kernel prints them: still escaped.
    pub(crate) options: String,
}

impl Mount {
    /// The value of an option of the file system.
    pub(crate) fn option(&self, name: &str) -> Option<String> {
        let value = |o: &str| o.strip_prefix(name)?.strip_prefix('=').map(unescape);
        self.options.split(',').find_map(value)
    }
}

/// All mounts this process sees; none when the table cannot be read.
pub(crate) fn mounts() -> Vec<Mount> {
    std::fs::read_to_string("/proc/self/mountinfo").map_or_else(|_| Vec::new(), |text| parse(&text))
}

/// proc_pid_mountinfo(5): `id parent major:minor root point options [tags...] - type source options`.
fn parse(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            let mut front = front.split(' ');
            let id = front.next()?.parse().ok()?;
            let dev = dev_of(front.nth(1)?)?;
            let root = unescape(front.next()?);
            let point = unescape(front.next()?);
            let mut back = back.split(' ');
            let kind = back.next()?.to_owned();
            let source = unescape(back.next()?);
            let options = back.next().unwrap_or_default().to_owned();
            Some(Mount { id, dev, point, source, root, kind, options })
        })
        .collect()
}

/// A device number from `major:minor`.
pub(crate) fn dev_of(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Undoes the kernel's `\040` for space, tab, newline and backslash.
pub(crate) fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table() {
        let text = "36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                    40 35 0:33 / /x rw - btrfs /dev/sda\\134b rw\n\
                    broken line\n";
        let dev = rustix::fs::makedev;
        let mount = |id, dev, root: &str, point: &str, kind: &str, source: &str, options: &str| Mount {
            id,
            dev,
            point: point.into(),
            source: source.into(),
            root: root.into(),
            kind: kind.into(),
            options: options.into(),
        };
        let expected = [
            mount(36, dev(98, 0), "/mnt1", "/mnt two", "ext3", "/dev/root", "rw,errors=continue"),
            mount(40, dev(0, 33), "/", "/x", "btrfs", "/dev/sda\\b", "rw"),
        ];
        assert_eq!(parse(text), expected);
        assert_eq!(expected[0].option("errors"), Some("continue".into()));
        assert_eq!((expected[0].option("err"), expected[0].option("rw")), (None, None));
        assert!(mounts().iter().any(|m| m.point == "/"));
    }
}

//! What a user types for a device, taken apart.
//!
//! Names: a path, `mem:SIZE`, `null:SIZE`, `nvme-tcp://host:port/NQN?nsid=N`; each with an optional range
//! `@offset+length` or `@offset` (to the end). After a path, an offset without a length needs a unit: `vm.img@20240101`
//! is a file name, `vm.img@20240101B` is a range.

use super::size::{parse_size, shift_of};
use crate::block::{ByteRange, Error, Kind, LEN_MAX, Result};
use crate::drivers::nvme_tcp::Url;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What the user typed for one end of a copy, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// What is named.
    pub place: Place,
    /// The part of it, when one was given.
    pub range: Option<Part>,
    text: OsString,
}

/// What a name names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// A file or device node.
    Path(PathBuf),
    /// A new memory device of so many bytes, all zero.
    Mem(u64),
    /// A null device of so many bytes.
    Null(u64),
    /// A namespace of an NVMe/TCP target; to be looked at, also a subsystem or a discovery service.
    NvmeTcp(Url),
}

/// A part of a device: `@offset+length`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// First byte.
    pub offset: u64,
    /// Length in bytes; `None`: to the end. `offset + len` never passes [`LEN_MAX`].
    pub len: Option<u64>,
}

impl Name {
    /// Takes a name apart.
    ///
    /// A path that exists is that file, whatever its name ends with; a file called `mem:1GiB` is reached as
    /// `./mem:1GiB`. What follows the last `@` is a range when it is two sizes with a `+` between them, or one size
    /// with a unit. Of a path, a number alone is part of the name (`vm.img@20240101`, a dated copy), and so is
    /// everything else that is not nearly a range. Errors: `InvalidInput` with value, limit and next step.
    pub fn parse(text: impl AsRef<OsStr>) -> Result<Self> {
        let text = text.as_ref();
        if text.is_empty() {
            return Err(invalid(
                "a device name is empty; give a path, mem:SIZE, null:SIZE or nvme-tcp://host:port/NQN?nsid=N"
                    .to_owned(),
            ));
        }
        if text == "-" {
            let text = "- would be standard input or output, which cannot be copied; name a file or device (./- for a file called -)";
            return Err(invalid(text.to_owned()));
        }
        let (head, range) = if exists(Path::new(text)) { (text, None) } else { split_range(text)? };
        let shown = head.to_string_lossy();
        let place = if let Some(size) = shown.strip_prefix("mem:") {
            Place::Mem(sized("mem", size)?)
        } else if let Some(size) = shown.strip_prefix("null:") {
            Place::Null(sized("null", size)?)
        } else if shown.starts_with(Url::SCHEME) {
            Place::NvmeTcp(Url::parse(&shown)?)
        } else if shown.contains("://") || (shown.starts_with("map:") && !exists(Path::new(head))) {
            return Err(invalid(format!(
                "{shown}: unknown kind of device; give a path, mem:SIZE, null:SIZE or an nvme-tcp:// URL"
            )));
        } else {
            Place::Path(PathBuf::from(head))
        };
        Ok(Self { place, range, text: text.to_owned() })
    }

    /// The name as typed.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        self.text.to_string_lossy()
    }

    /// The path, unless it is a device in memory.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Path(path) => Some(path),
            _ => None,
        }
    }

    /// The same range of another path: how a directory destination becomes a file in it.
    #[must_use]
    pub fn at_path(&self, path: PathBuf) -> Self {
        Self { text: path.clone().into_os_string(), place: Place::Path(path), range: self.range }
    }

    /// The named bytes of a device of `size` bytes.
    ///
    /// Errors: `OutOfRange` when they end behind its end.
    pub fn range_in(&self, size: u64) -> Result<ByteRange> {
        let Some(part) = self.range else { return Ok(ByteRange::to(size)) };
        let end = part.len.map_or(size, |len| part.offset.saturating_add(len));
        if part.offset > size || end > size {
            let (what, at) = if part.offset > size { ("begins", part.offset) } else { ("ends", end) };
            let text = format!("the range {part} {what} at byte {at}, past the end ({size} bytes)");
            return Err(Error::new(Kind::OutOfRange, text).on(&self.device_text()));
        }
        Ok(ByteRange::between(part.offset, end))
    }

    /// How to write the range that was perhaps meant by a path that ends in `@` and a number, where the path before it
    /// exists.
    pub fn range_meant(&self) -> Option<String> {
        let bytes = self.path()?.as_os_str().as_bytes();
        let at = bytes.iter().rposition(|&b| b == b'@')?;
        let (head, number) = (Path::new(OsStr::from_bytes(&bytes[..at])), &bytes[at + 1..]);
        let is_number = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
        (self.range.is_none() && is_number && exists(head) && !head.is_dir()).then(|| {
            let number = String::from_utf8_lossy(number);
            let head = head.display();
            format!(
                "{head}@{number}B if you mean the bytes of {head} from {number}: an offset without a length \
                needs a unit"
            )
        })
    }

    /// The name without its range, for messages.
    pub fn device_text(&self) -> String {
        match &self.place {
            Place::Path(path) => path.display().to_string(),
            Place::Mem(size) => format!("mem:{size}"),
            Place::Null(size) => format!("null:{size}"),
            Place::NvmeTcp(url) => url.to_string(),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.len {
            Some(len) => write!(f, "@{}+{len}", self.offset),
            None => write!(f, "@{}B", self.offset),
        }
    }
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn invalid(text: String) -> Error {
    Error::new(Kind::InvalidInput, text)
}

fn sized(scheme: &str, size: &str) -> Result<u64> {
    parse_size(size).map_err(|e| invalid(format!("{scheme}:{size}: {e}")))
}

/// The path before the range, and the range. What does not look like one belongs to the path.
fn split_range(text: &OsStr) -> Result<(&OsStr, Option<Part>)> {
    let bytes = text.as_bytes();
    let Some(at) = bytes.iter().rposition(|&b| b == b'@') else { return Ok((text, None)) };
    let head = OsStr::from_bytes(&bytes[..at]);
    let Ok(tail) = std::str::from_utf8(&bytes[at + 1..]) else { return Ok((text, None)) };
    let is_range = if is_path(head) { is_range_of_path(tail) } else { is_range_like(tail) };
    if !is_range {
        return Ok((text, None));
    }
    let part = parse_part(tail)
        .map_err(|e| invalid(format!("{}: in the range @{tail}: {e}", text.to_string_lossy())))?;
    if head.is_empty() {
        return Err(invalid(format!(
            "@{tail} is a range without a device; put a device or file before the @"
        )));
    }
    Ok((head, Some(part)))
}

/// True for what names a file or device node, not something without a name in the file system.
fn is_path(head: &OsStr) -> bool {
    let schemes: [&[u8]; 3] = [b"mem:", b"null:", Url::SCHEME.as_bytes()];
    !schemes.iter().any(|scheme| head.as_bytes().starts_with(scheme))
}

/// True for what is meant as a range, also when its numbers are bad.
fn is_range_like(tail: &str) -> bool {
    let number_like = |part: &str| {
        let part = part.strip_prefix('-').unwrap_or(part);
        let (whole, fraction) = part.split_once('.').unwrap_or((part, "0"));
        whole.chars().all(|c| c.is_ascii_alphanumeric()) && fraction.starts_with(|c: char| c.is_ascii_digit())
    };
    tail.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+') && tail.split('+').all(number_like)
}

/// True for what is meant as a range of a path: with a length, or with a unit, also when that is not quite one. A
/// number alone is a date, a version or a serial number.
fn is_range_of_path(tail: &str) -> bool {
    if let Some((_, len)) = tail.split_once('+') {
        let begins = |c: char| c.is_ascii_digit() || c == '-';
        return is_range_like(tail) && (len.is_empty() || len.starts_with(begins));
    }
    if tail.starts_with('-') {
        return is_range_like(tail);
    }
    let Some(digits) = tail.find(|c: char| !c.is_ascii_digit()).filter(|&at| at > 0) else { return false };
    let rest = &tail[digits..];
    let unit = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    let hex = |unit: &str| unit.len() > 1 && unit[1..].chars().all(|c| c.is_ascii_hexdigit());
    shift_of(unit).is_some_and(|_| !unit.is_empty())
        || is_nearly_unit(unit)
        || (&tail[..digits] == "0" && rest.starts_with(['x', 'X']) && hex(rest))
}

/// True for what people write where they mean a unit.
fn is_nearly_unit(unit: &str) -> bool {
    let unit = unit.to_ascii_lowercase();
    let unit = unit.trim_start_matches(' ');
    if matches!(unit, "ib" | "byte" | "bytes" | "sector" | "sectors" | "block" | "blocks") {
        return true;
    }
    let mut letters = unit.chars();
    let prefix = letters.next().is_some_and(|c| "kmgtpezy".contains(c));
    prefix
        && matches!(letters.as_str(), "b" | "i" | "bs" | "ibs" | "byte" | "bytes" | "ibyte" | "ibytes" | "ib")
}

fn parse_part(tail: &str) -> Result<Part> {
    let (offset, len) = match tail.split_once('+') {
        Some((offset, len)) => (offset, Some(len)),
        None => (tail, None),
    };
    let offset = parse_size(offset)?;
    let len = len.map(parse_size).transpose()?;
    if ByteRange::new(offset, len.unwrap_or(0)).is_none() {
        return Err(invalid(format!(
            "offset and length together are larger than the largest offset ({LEN_MAX} bytes)"
        )));
    }
    Ok(Part { offset, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> (String, Option<Part>) {
        let name = Name::parse(text).unwrap();
        (name.path().unwrap().display().to_string(), name.range)
    }

    #[test]
    fn a_name_with_and_without_a_range() {
        let part = |offset, len| Some(Part { offset, len });
        assert_eq!(path("disk.img"), ("disk.img".into(), None));
        assert_eq!(path("disk.img@4KiB+1MiB"), ("disk.img".into(), part(4096, Some(1 << 20))));
        assert_eq!(path("/dev/x@5B"), ("/dev/x".into(), part(5, None)));
        assert_eq!(path("a@b@0+0"), ("a@b".into(), part(0, Some(0))));
        assert_eq!(path("user@host.img"), ("user@host.img".into(), None));
        assert_eq!(path("photo@2x.png"), ("photo@2x.png".into(), None));
        assert_eq!(path("odd@"), ("odd@".into(), None));
        assert_eq!(Name::parse("mem:1GiB").unwrap().place, Place::Mem(1 << 30));
        let null = Name::parse("null:8K@1K+2K").unwrap();
        assert_eq!((null.place.clone(), null.range), (Place::Null(8192), part(1024, Some(2048))));
        let far = Name::parse("nvme-tcp://[::1]:4420/nqn.x:y?nsid=3@4K+1M").unwrap();
        assert_eq!((far.path(), far.range), (None, part(4096, Some(1 << 20))));
        assert_eq!(far.device_text(), "nvme-tcp://[::1]:4420/nqn.x:y?nsid=3");
        assert_eq!(null.range_in(8192).unwrap(), ByteRange::between(1024, 3072));
    }

    #[test]
    fn bad_names_are_one_clear_error() {
        for (text, part) in [
            ("", "empty"),
            ("a@-5", "negative"),
            ("a@5+-5", "negative"),
            ("a@1.5GiB", "1536MiB"),
            ("a@5+", "is not a size"),
            ("a@+5", "is not a size"),
            ("a@0x10", "unknown unit"),
            ("a@1MB", "unknown unit"),
            ("a@1mb+5", "unknown unit"),
            ("a@64bytes", "unknown unit"),
            ("a@1Zi", "unknown unit"),
            ("a@18446744073709551616+1", "larger than"),
            ("a@9223372036854775807+1", "together are larger"),
            ("@0+5", "range without a device"),
            ("-", "standard input or output"),
            ("mem:", "is not a size"),
            ("mem:lots", "is not a size"),
            ("null:-1", "negative"),
            ("nvme-rdma://host/nqn?nsid=1", "give a path, mem:SIZE, null:SIZE or an nvme-tcp:// URL"),
            ("nvme-tcp://host/nqn?nsid=0", "not a namespace number"),
        ] {
            let error = Name::parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput, "{text}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_path_that_ends_like_a_range_is_literal_when_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("disk@0+5");
        assert!(Name::parse(&odd).unwrap().range.is_some());
        std::fs::write(&odd, b"x").unwrap();
        let name = Name::parse(&odd).unwrap();
        assert_eq!((name.path(), name.range), (Some(odd.as_path()), None));
        let both = format!("{}@3B", odd.display());
        assert_eq!(Name::parse(both).unwrap().range, Some(Part { offset: 3, len: None }));
    }

    #[test]
    fn a_number_alone_is_part_of_a_path() {
        for text in [
            "vm.img@20240101",
            "vm@7",
            "vm@0",
            "@20240101",
            "vm@20240101T1200",
            "vm@1a2b3c",
            "app@1.5",
            "app@1.5.2",
            "app@2x",
            "app@1.2.3+build5",
            "vm@2024-01-01",
            "vm@12:30",
            "/dev/x@5",
            "@7x",
        ] {
            assert_eq!(path(text), (text.into(), None), "{text}");
        }
        let part = |offset, len| Some(Part { offset, len });
        for (text, range) in [
            ("vm@7B", part(7, None)),
            ("vm@7k", part(7 << 10, None)),
            ("vm@0B", part(0, None)),
            ("vm@20240101+5", part(20_240_101, Some(5))),
            ("vm@0+1E", part(0, Some(1 << 60))),
        ] {
            assert_eq!(path(text), ("vm".into(), range), "{text}");
        }
        // What has no name in the file system has nothing a number could be part of.
        assert_eq!(Name::parse("mem:1K@5").unwrap().range, part(5, None));
        assert_eq!(Name::parse("nvme-tcp://h/nqn?nsid=3@5").unwrap().range, part(5, None));
        let dir = tempfile::tempdir().unwrap();
        let vm = dir.path().join("vm");
        let dated = format!("{}@20240101", vm.display());
        assert_eq!(Name::parse(&dated).unwrap().range_meant(), None);
        std::fs::write(&vm, b"x").unwrap();
        let meant = Name::parse(&dated).unwrap().range_meant().unwrap();
        assert!(meant.starts_with(&format!("{dated}B if you mean the bytes of")), "{meant}");
    }

    #[test]
    fn a_range_must_lie_inside() {
        let at = |text: &str| Name::parse(text).unwrap().range_in(100).map_err(|e| e.kind());
        assert_eq!(at("a"), Ok(ByteRange::to(100)));
        assert_eq!(at("a@100B"), Ok(ByteRange::between(100, 100)));
        assert_eq!(at("a@99+1"), Ok(ByteRange::between(99, 100)));
        assert_eq!(at("a@99+2"), Err(Kind::OutOfRange));
        assert_eq!(at("a@101B"), Err(Kind::OutOfRange));
        assert_eq!(at("a@101+0"), Err(Kind::OutOfRange));
    }
}

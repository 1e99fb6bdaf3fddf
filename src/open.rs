//! A name or URL becomes a device: the only place that knows drivers and maps both.
//!
//! Names: a path, `mem:SIZE`, `null:SIZE`, `nvme-tcp://host:port/NQN?nsid=N`; each with an optional range `@offset+length` or `@offset` (to the end).
//! Of a path, an offset alone needs a unit: `vm.img@20240101` is a file name, `vm.img@20240101B` is a range.

use crate::block::{ByteRange, Device, Error, Kind, LEN_MAX, Result, Storage};
use crate::drivers::nvme_tcp::{Namespace, Url};
use crate::drivers::{self, Bdev, BdevOptions, File, FileOptions, mem::Mem, null::Null};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Block size of `mem:` and `null:` devices, in bytes: any offset and length may be copied.
const MEMORY_BLOCK: NonZeroU32 = NonZeroU32::new(1).expect("not zero");

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
    /// A path that exists is that file, whatever its name ends with; a file called `mem:1GiB` is reached as `./mem:1GiB`.
    /// What follows the last `@` is a range when it is two sizes with a `+` between them, or one size with a unit. Of a path, a number
    /// alone is part of the name (`vm.img@20240101`, a dated copy), and so is everything else that is not nearly a
    /// range. Errors: `InvalidInput` with value, limit and next step.
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
                "{shown}: this version opens paths, mem:SIZE, null:SIZE and nvme-tcp:// URLs only; name one of these"
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
            let text = format!(
                "the range {part} {what} at byte {at}, behind the end ({size} bytes); give a range inside"
            );
            return Err(Error::new(Kind::OutOfRange, text).on(&self.device_text()));
        }
        Ok(ByteRange::between(part.offset, end))
    }

    /// How to write the range that was perhaps meant by a path that ends in `@` and a number, where the path before it exists.
    pub fn range_meant(&self) -> Option<String> {
        let bytes = self.path()?.as_os_str().as_bytes();
        let at = bytes.iter().rposition(|&b| b == b'@')?;
        let (head, number) = (Path::new(OsStr::from_bytes(&bytes[..at])), &bytes[at + 1..]);
        let is_number = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
        (self.range.is_none() && is_number && exists(head) && !head.is_dir()).then(|| {
            let number = String::from_utf8_lossy(number);
            let head = head.display();
            format!("{head}@{number}B if the bytes of {head} from {number} on are meant: an offset alone needs a unit")
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

/// What a path leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A directory.
    Folder,
    /// A regular file.
    File,
    /// A block device.
    Block,
    /// Something that cannot be copied: a FIFO, a socket, a character device.
    Other,
}

/// What `path` leads to, links followed. Errors: those of the system, such as `Permission` on the way there.
pub fn find(path: &Path) -> Result<Found> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(Error::os("cannot be looked at", error).on(&path.display().to_string())),
    };
    Ok(match meta.file_type() {
        t if t.is_dir() => Found::Folder,
        t if t.is_file() => Found::File,
        t if t.is_block_device() => Found::Block,
        _ => Found::Other,
    })
}

/// Opens a name to read from it. The range of the name is the caller's to apply ([`Name::range_in`]).
///
/// Errors: `NotFound`, `InvalidInput` for what cannot be copied, and those of the driver.
pub fn open_source(name: &Name) -> Result<Arc<dyn Device>> {
    let path = match &name.place {
        Place::Path(path) => path,
        _ => return open_unnamed(name),
    };
    match find(path)? {
        Found::Block => Ok(Bdev::open(path, BdevOptions::default())?),
        // A missing file, and what is no file, are refused by the driver in its own words.
        _ => Ok(File::open(path, FileOptions::default())?),
    }
}

/// Opens a block device, a namespace or a device in memory to write to it: nothing is written yet. Regular files are opened by the
/// driver itself ([`File::open`]), because they are made, cut and extended too.
///
/// `force_in_use`: also where others use it. Errors: `InUse`, `ReadOnly`, and those of the driver.
pub fn open_dest(name: &Name, force_in_use: bool) -> Result<Arc<dyn Device>> {
    match &name.place {
        Place::Path(path) => match find(path)? {
            Found::Block => Ok(Bdev::open(path, BdevOptions { write: true, force_in_use })?),
            _ => Ok(File::open(path, FileOptions { write: true, create: false })?),
        },
        _ => open_unnamed(name),
    }
}

/// Opens what has no name in the file system.
fn open_unnamed(name: &Name) -> Result<Arc<dyn Device>> {
    Ok(match &name.place {
        Place::NvmeTcp(url) => Namespace::open(url)?,
        Place::Mem(size) => Arc::new(Mem::new(name.device_text(), *size, MEMORY_BLOCK)?),
        Place::Null(size) => Arc::new(Null::new(name.device_text(), *size, MEMORY_BLOCK)?),
        Place::Path(path) => return Err(invalid(format!("{}: names a file or device node", path.display()))),
    })
}

/// What the files of a folder are stored in: for a file that is to be made there.
pub fn storage_of_folder(folder: &Path) -> Storage {
    drivers::storage_at(folder)
}

/// The directory in sysfs of the whole disk that a device number belongs to.
fn sysfs_disk(dev: u64) -> PathBuf {
    let dir = format!("/sys/dev/block/{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let dir = std::fs::canonicalize(&dir).unwrap_or_else(|_| PathBuf::from(&dir));
    match dir.parent() {
        Some(disk) if dir.join("partition").exists() => disk.to_owned(),
        _ => dir,
    }
}

/// The model of a block device's disk, as the system names it, or of a namespace's controller, as it names itself.
pub fn model_of(name: &Name, device: &dyn Device) -> Option<String> {
    match name.path() {
        Some(path) => model(path),
        None => device.as_any().downcast_ref::<Namespace>().map(|n| n.model().to_owned()),
    }
}

fn model(path: &Path) -> Option<String> {
    let meta = path.metadata().ok().filter(|m| m.file_type().is_block_device())?;
    let disk = sysfs_disk(meta.rdev());
    let text = std::fs::read_to_string(disk.join("device/model")).ok();
    let backing = || {
        let file = std::fs::read_to_string(disk.join("loop/backing_file")).ok()?;
        Some(format!("loop device over {}", file.trim()))
    };
    text.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).or_else(backing)
}

/// True when `path` cannot be written: by this user's rights, by its mount, or because the block device is set read-only.
pub fn read_only(path: &Path) -> bool {
    // Who may do anything may also open a read-only device for writing; only the first write would tell.
    let set = || {
        let meta = path.metadata().ok().filter(|m| m.file_type().is_block_device())?;
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro")).ok()
    };
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_err()
        || set().is_some_and(|ro| ro.trim() == "1")
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
        return Err(invalid(format!("@{tail} is a range of nothing; put a device or file before the @")));
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

/// True for what is meant as a range of a path: with a length, or with a unit, also when that is not quite one. A number
/// alone is a date, a version or a serial number.
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
            "offset and length add up to more than the largest offset ({LEN_MAX} bytes); make it shorter"
        )));
    }
    Ok(Part { offset, len })
}

const UNITS: &str = "B, KiB, MiB, GiB, TiB, PiB or EiB";

/// A size as the command line takes it: bytes, or a whole number with B, K, M, G, T, P, E or KiB to EiB, all binary.
///
/// At most [`LEN_MAX`]. Errors: `InvalidInput` with the value and what would be taken.
///
/// ```
/// # use blkcopy::open::parse_size;
/// assert_eq!(parse_size("64KiB").unwrap(), 65536);
/// assert!(parse_size("1.5GiB").unwrap_err().to_string().contains("1536MiB"));
/// ```
pub fn parse_size(text: &str) -> Result<u64> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if text.starts_with('-') {
        return Err(invalid(format!("the size {text} is negative; give 0 or more bytes")));
    }
    if digits.is_empty() {
        return Err(invalid(format!(
            "{text:?} is not a size; give a whole number of bytes, or one with {UNITS}"
        )));
    }
    if let Some(fraction) = unit.strip_prefix('.') {
        return Err(invalid(format!(
            "the size {text} has a fraction; write it as a whole number of a smaller unit{}",
            smaller(digits, fraction).map_or(String::new(), |s| format!(" ({s})"))
        )));
    }
    let Some(shift) = shift_of(unit) else {
        return Err(invalid(format!("{text:?} has the unknown unit {unit:?}; units are {UNITS}")));
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    bytes.filter(|&n| n <= LEN_MAX).ok_or_else(|| {
        invalid(format!(
            "the size {text} is larger than the largest offset ({LEN_MAX} bytes); make it smaller"
        ))
    })
}

fn shift_of(unit: &str) -> Option<u32> {
    let unit = unit.to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").unwrap_or(&unit);
    match letter {
        "" | "b" if unit == letter => Some(0),
        "k" => Some(10),
        "m" => Some(20),
        "g" => Some(30),
        "t" => Some(40),
        "p" => Some(50),
        "e" => Some(60),
        _ => None,
    }
}

/// "1.5GiB" as "1536MiB", where that is exact.
fn smaller(digits: &str, fraction: &str) -> Option<String> {
    let end = fraction.find(|c: char| !c.is_ascii_digit())?;
    let (fraction, unit) = fraction.split_at(end);
    let (shift, whole) = (shift_of(unit)?, digits.parse::<u64>().ok()?);
    let below =
        ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].get(usize::try_from(shift / 10).ok()?.checked_sub(1)?)?;
    let scale = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = fraction.parse::<u64>().ok()?.checked_mul(1024)?;
    (part % scale == 0).then_some(())?;
    Some(format!("{}{below}", whole.checked_mul(1024)?.checked_add(part / scale)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let ok = [
            ("0", 0),
            ("511", 511),
            ("512B", 512),
            ("4K", 4096),
            ("4KiB", 4096),
            ("1m", 1 << 20),
            ("2G", 2 << 30),
            ("3TiB", 3 << 40),
            ("1PiB", 1 << 50),
            ("7EiB", 7 << 60),
            ("9223372036854775807", LEN_MAX),
        ];
        for (text, bytes) in ok {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        let bad = [
            ("", "is not a size"),
            ("x", "is not a size"),
            ("GiB", "is not a size"),
            ("+5", "is not a size"),
            (" 5", "is not a size"),
            ("-1", "negative"),
            ("-1GiB", "negative"),
            ("1.5GiB", "(1536MiB)"),
            ("0.1GiB", "fraction"),
            ("1.5", "fraction"),
            ("5 GiB", "unknown unit"),
            ("1KB", "unknown unit"),
            ("0x10", "unknown unit"),
            ("1iB", "unknown unit"),
            ("8EiB", "larger than"),
            ("9223372036854775808", "larger than"),
            ("18446744073709551616", "larger than"),
            ("18446744073709551616KiB", "larger than"),
            ("99999999999999999999999", "larger than"),
        ];
        for (text, part) in bad {
            let error = parse_size(text).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

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
            ("a@9223372036854775807+1", "add up to more"),
            ("@0+5", "range of nothing"),
            ("-", "standard input or output"),
            ("mem:", "is not a size"),
            ("mem:lots", "is not a size"),
            ("null:-1", "negative"),
            ("nvme-rdma://host/nqn?nsid=1", "opens paths, mem:SIZE, null:SIZE and nvme-tcp:// URLs only"),
            ("nvme-tcp://host/nqn?nsid=0", "no namespace number"),
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
        assert!(meant.starts_with(&format!("{dated}B if the bytes of")), "{meant}");
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

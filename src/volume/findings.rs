//! What is found out about the ends of a copy, as data: before it, and when it has ended.
//!
//! A [`Finding`] has a stable code, a level and a sentence. The next step is for the program to say: it knows its own
//! flags.

use super::size::size_exact;
use crate::block::{Error, Kind};
use crate::drivers::{Holder, Shortage};
use serde::Serialize;
use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;

/// How good a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// All is well.
    Pass,
    /// A copy may follow; what is said should be known.
    Warn,
    /// No copy follows.
    Fail,
}

/// Why two names may stand for the same bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SharedStorage {
    /// Ranges of one disk.
    OneDisk,
    /// Known from what lies below the devices.
    Known(String),
    /// Nobody can tell.
    Maybe(String),
}

/// What was left of a destination file when a copy ended early.
#[derive(Debug)]
pub enum Left {
    /// All of a new file, under its name.
    Kept,
    /// A new file, whole, though the copy ended badly afterwards.
    KeptWhole,
    /// A file that was there before, with all that was written to it.
    KeptAsItIs,
    /// The good bytes in front, so many; the rest was cut off.
    CutTo(u64),
    /// So many bytes are good, and the rest could not be cut off.
    NotCut(u64, Error),
    /// No new file: it does not equal the source.
    NotMadeUnequal,
    /// No new file: the source is not known to have stayed the same.
    NotMadeUnstable,
    /// No new file: no byte of it is known to be good.
    NotMadeNothingGood,
    /// No new file: it could not be cut to what is good.
    NotMadeNotCut(Error),
}

/// One thing found out. [`Finding::code`] names each for programs.
#[derive(Debug)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence below says what each field is
pub enum Finding {
    /// No other program uses the destination.
    DestNotInUse { dest: PathBuf },
    /// The destination has room for all that is copied.
    DestLargeEnough { dest: String, size_bytes: u64 },

    /// What can be read of the source is not as long as the source says: a copy reads it to its end first.
    SourceSizeUnknown { source: String },
    /// Another program may change the source meanwhile.
    SourceInUse { source: String, holder: Holder },
    /// A device that holds something; a plan warns of it, a copy wants to be told ([`super::EndsOptions::overwrite`]).
    Overwrites { dest: String, planned: bool },
    /// The file under a loop device may run out of space.
    LoopShortage { dest: PathBuf, shortage: Shortage },
    /// Another program uses the destination; `forced`: and the copy was asked for nevertheless.
    DestInUse { dest: PathBuf, holder: Holder, forced: bool },
    /// There is nothing that a plan could be made over.
    ExtentsNotPlanned { dest: PathBuf, error: Error },
    /// Another I/O engine is used than the best one.
    EngineSteppedDown { why: String },

    /// The source does not exist; `meant`: how to write the range that was perhaps meant.
    SourceNotFound { error: Error, meant: String },
    /// A directory was named, and the source gives the file in it no name.
    NoFileName { dest: String },
    /// A directory stands where the file would be made.
    IsFolder { dest: String },
    /// An existing file would be overwritten in the middle, and that was not asked for.
    WritesInto { dest: String, offset: u64 },
    /// The two ends are one namespace, reached in two ways.
    TwoWays { error: Error },
    /// Both names are one file.
    SameFile { source: String, dest: String },
    /// The two ends hold the same bytes, or may.
    SameBytes { source: String, dest: String, how: SharedStorage },
    /// A new file would be made inside what is copied.
    MadeInSource { source: String, dest: PathBuf, why: String },
    /// A segment ends past the end of the device or range `name`.
    SegmentOutside { end: &'static str, name: String, len: u64, offset: u64, limit_bytes: u64 },
    /// The destination's range is shorter than what is copied.
    RangeTooSmall { dest: String, range_bytes: u64, source_bytes: u64, source_offset: u64 },
    /// A byte of a destination that was said to read as zero does not.
    DestNotZero { dest: String, offset: u64 },
    /// The destination is shorter than where the copy would end.
    DestTooSmall { source: String, dest: String, dest_bytes: u64, copied_bytes: u64, end: u64 },
    /// The segments overlap each other.
    SegmentsOverlap { error: Error },
    /// The destination cannot be written; a plan found it out without opening it to write.
    ReadOnly { dest: String, planned: bool },
    /// The target protects the namespace from writes.
    WriteProtected { dest: String },
    /// The name ends in a slash and the directory does not exist.
    FolderMissing { dest: String },
    /// A symbolic link that leads nowhere.
    LinkToNothing { dest: String },
    /// A mistyped device: files of that folder stay in memory.
    NoSuchDevice { dest: String, folder: PathBuf },
    /// No file can be made there.
    NoPlace { error: Error },
    /// Another program holds the destination.
    DestHeld { error: Error },
    /// Another program holds the source, which was to be had alone.
    SourceHeld { error: Error },
    /// Another program changed the destination between the checks and the copy.
    DestLenChanged { dest: String, from: u64, to: u64 },
    /// Bytes would pass this machine, and the copy was to be offloaded or not made.
    OffloadUnmet { error: Error },
    /// Owner and times were to be kept of what has none.
    NothingToPreserve { source: String },
    /// The I/O engine that was asked for is not to be had.
    NoEngine { error: Error },

    /// A range of a device was to be served.
    ServedRange { device: String },
    /// A namespace of another target was to be served.
    ServedRemote { device: String },
    /// A device that cannot be written was to be served for writing.
    ServedIsReadOnly { device: String },
    /// What was to be served does not exist.
    ServedNotFound { device: String },
    /// Another program uses what was to be served.
    ServedInUse { device: String, holder: Holder },
    /// It holds the same bytes as another device that is served.
    ServedTwice { device: String, name: String, other: String, why: String },

    /// The source grew while it was copied.
    SourceGrew { source: String, size_bytes: u64 },
    /// The source changed while it was copied.
    SourceChanged { error: Error },
    /// Something of the source that was to be kept is not.
    NotPreserved { what: String },
    /// The bytes are durable; the new name may not be.
    NameNotDurable { error: Error },
    /// What an early end left of the destination file.
    DestLeft { dest: String, left: Left },
}

/// A failing finding before it is an error.
struct Said<'a> {
    kind: Kind,
    on: Option<&'a str>,
    text: String,
}

impl Finding {
    /// How good it is.
    pub fn level(&self) -> Level {
        match self {
            Self::DestNotInUse { .. } | Self::DestLargeEnough { .. } => Level::Pass,
            Self::Overwrites { planned: true, .. }
            | Self::DestInUse { forced: true, .. }
            | Self::SourceSizeUnknown { .. }
            | Self::SourceInUse { .. }
            | Self::LoopShortage { .. }
            | Self::ExtentsNotPlanned { .. }
            | Self::EngineSteppedDown { .. }
            | Self::SourceGrew { .. }
            | Self::SourceChanged { .. }
            | Self::NotPreserved { .. }
            | Self::NameNotDurable { .. }
            | Self::DestLeft { .. } => Level::Warn,
            _ => Level::Fail,
        }
    }

    /// Its name for programs; never changes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::DestNotInUse { .. } => "dest-not-in-use",
            Self::DestLargeEnough { .. } => "dest-large-enough",
            Self::SourceSizeUnknown { .. } => "source-size-unknown",
            Self::SourceInUse { .. } => "source-in-use",
            Self::Overwrites { .. } => "overwrites",
            Self::LoopShortage { .. } => "loop-shortage",
            Self::DestInUse { .. } => "dest-in-use",
            Self::ExtentsNotPlanned { .. } => "extents-not-planned",
            Self::EngineSteppedDown { .. } => "engine-stepped-down",
            Self::SourceNotFound { .. } => "source-not-found",
            Self::NoFileName { .. } => "no-file-name",
            Self::IsFolder { .. } => "is-folder",
            Self::WritesInto { .. } => "writes-into",
            Self::TwoWays { .. } => "two-ways",
            Self::SameFile { .. } => "same-file",
            Self::SameBytes { how: SharedStorage::Maybe(_), .. } => "maybe-same-bytes",
            Self::SameBytes { .. } => "same-bytes",
            Self::MadeInSource { .. } => "made-in-source",
            Self::SegmentOutside { .. } => "segment-outside",
            Self::RangeTooSmall { .. } => "range-too-small",
            Self::DestNotZero { .. } => "dest-not-zero",
            Self::DestTooSmall { .. } => "dest-too-small",
            Self::SegmentsOverlap { .. } => "segments-overlap",
            Self::ReadOnly { .. } => "read-only",
            Self::WriteProtected { .. } => "write-protected",
            Self::FolderMissing { .. } => "folder-missing",
            Self::LinkToNothing { .. } => "link-to-nothing",
            Self::NoSuchDevice { .. } => "no-such-device",
            Self::NoPlace { .. } => "no-place",
            Self::DestHeld { .. } => "dest-held",
            Self::SourceHeld { .. } => "source-held",
            Self::DestLenChanged { .. } => "dest-len-changed",
            Self::OffloadUnmet { .. } => "offload-unmet",
            Self::NothingToPreserve { .. } => "nothing-to-preserve",
            Self::NoEngine { .. } => "no-engine",
            Self::ServedRange { .. } => "served-range",
            Self::ServedRemote { .. } => "served-remote",
            Self::ServedIsReadOnly { .. } => "served-is-read-only",
            Self::ServedNotFound { .. } => "served-not-found",
            Self::ServedInUse { .. } => "served-in-use",
            Self::ServedTwice { .. } => "served-twice",
            Self::SourceGrew { .. } => "source-grew",
            Self::SourceChanged { .. } => "source-changed",
            Self::NotPreserved { .. } => "not-preserved",
            Self::NameNotDurable { .. } => "name-not-durable",
            Self::DestLeft { .. } => "dest-left",
        }
    }

    /// The error that it is, or holds.
    pub fn into_error(self) -> Error {
        match self {
            Self::SourceNotFound { error, .. }
            | Self::TwoWays { error }
            | Self::SegmentsOverlap { error }
            | Self::NoPlace { error }
            | Self::DestHeld { error }
            | Self::SourceHeld { error }
            | Self::OffloadUnmet { error }
            | Self::NoEngine { error }
            | Self::SourceChanged { error }
            | Self::NameNotDurable { error }
            | Self::ExtentsNotPlanned { error, .. } => error,
            other => {
                let said = other.said();
                let error = Error::new(said.kind, said.text);
                if let Some(name) = said.on { error.on(name) } else { error }
            }
        }
    }

    /// The error that it holds.
    fn error(&self) -> Option<&Error> {
        match self {
            Self::SourceNotFound { error, .. }
            | Self::TwoWays { error }
            | Self::SegmentsOverlap { error }
            | Self::NoPlace { error }
            | Self::DestHeld { error }
            | Self::SourceHeld { error }
            | Self::OffloadUnmet { error }
            | Self::NoEngine { error }
            | Self::SourceChanged { error } => Some(error),
            _ => None,
        }
    }

    #[allow(clippy::too_many_lines)] // a table
    fn said(&self) -> Said<'_> {
        let (kind, on, text) = match self {
            Self::DestNotInUse { dest } => (Kind::Io, None, format!("{}: not in use", dest.display())),
            Self::DestLargeEnough { dest, size_bytes } => {
                (Kind::Io, None, format!("{dest}: large enough ({})", size_exact(*size_bytes)))
            }
            Self::SourceSizeUnknown { source } => {
                (Kind::Io, None, format!("{source}: its reported size differs from what can be read"))
            }
            Self::SourceInUse { source, holder } => {
                (Kind::InUse, None, format!("{source}: {holder}, so it may change while it is copied"))
            }
            Self::Overwrites { dest, planned: true } => {
                (Kind::InvalidInput, None, format!("{dest}: its contents would be overwritten"))
            }
            Self::Overwrites { dest, planned: false } => {
                (Kind::InvalidInput, None, format!("{dest}: would be overwritten"))
            }
            Self::LoopShortage { dest, shortage } => (
                Kind::NoSpace,
                None,
                format!(
                    "{}: its backing file ({}) needs {} more and its file system has {} left: Linux's loop driver \
                     may report bytes as written that found no space",
                    dest.display(),
                    shortage.file.display(),
                    size_exact(shortage.missing_bytes),
                    size_exact(shortage.free_bytes),
                ),
            ),
            Self::DestInUse { dest, holder, .. } => {
                (Kind::InUse, None, format!("{}: in use: {holder}", dest.display()))
            }
            Self::ExtentsNotPlanned { dest, error } => (
                Kind::Io,
                None,
                format!("the extents cannot be planned without creating {}: {error}", dest.display()),
            ),
            Self::EngineSteppedDown { why } => (Kind::Unsupported, None, why.clone()),
            Self::NoFileName { dest } => (
                Kind::InvalidInput,
                None,
                format!("{dest}: is a directory, and the source has no file name to use in it"),
            ),
            Self::IsFolder { dest } => {
                (Kind::InvalidInput, None, format!("{dest}: is a directory; a file cannot take its place"))
            }
            Self::WritesInto { dest, offset } => (
                Kind::InvalidInput,
                Some(dest),
                format!("the file exists and would be overwritten in place from byte {offset}"),
            ),
            Self::SameFile { source, dest } => {
                (Kind::Overlap, None, format!("{source} and {dest} are the same file"))
            }
            Self::SameBytes { source, dest, how } => {
                let text = match how {
                    SharedStorage::OneDisk => format!("{source} and {dest} overlap on one disk"),
                    SharedStorage::Known(how) => format!("{source} and {dest} hold the same bytes: {how}"),
                    SharedStorage::Maybe(why) => {
                        format!("{source} and {dest} may hold the same bytes: {why}")
                    }
                };
                (Kind::Overlap, None, text)
            }
            Self::MadeInSource { source, dest, why } => (
                Kind::Overlap,
                None,
                format!("{} would be created on storage that {source} uses: {why}", dest.display()),
            ),
            Self::SegmentOutside { end, name, len, offset, limit_bytes } => (
                Kind::OutOfRange,
                None,
                format!(
                    "the {end} part of {len} bytes at {offset} ends past the end of {name} ({limit_bytes} bytes)"
                ),
            ),
            Self::RangeTooSmall { dest, range_bytes, source_bytes, .. } => (
                Kind::OutOfRange,
                None,
                format!("{dest}: the range holds {range_bytes} bytes, the source {source_bytes} bytes"),
            ),
            Self::DestNotZero { dest, offset } => (
                Kind::InvalidInput,
                Some(dest),
                format!(
                    "byte {offset} does not read as zero, so zeroes that are not written would be wrong bytes"
                ),
            ),
            Self::DestTooSmall { source, dest, dest_bytes, copied_bytes, end } => (
                Kind::OutOfRange,
                Some(dest),
                format!(
                    "too small: {copied_bytes} bytes of {source} would end at byte {end}, but the destination has \
                     {dest_bytes} bytes"
                ),
            ),
            Self::ReadOnly { dest, planned: true } => (Kind::ReadOnly, Some(dest), "is read-only".to_owned()),
            Self::ReadOnly { dest, planned: false } => {
                (Kind::ReadOnly, Some(dest), "the device is read-only".to_owned())
            }
            Self::WriteProtected { dest } => {
                (Kind::ReadOnly, Some(dest), "is write-protected at the target".to_owned())
            }
            Self::FolderMissing { dest } => {
                (Kind::InvalidInput, Some(dest), "names a directory that does not exist".to_owned())
            }
            Self::LinkToNothing { dest } => {
                (Kind::InvalidInput, Some(dest), "is a dangling symbolic link".to_owned())
            }
            Self::NoSuchDevice { dest, folder } => (
                Kind::NotFound,
                Some(dest),
                format!(
                    "no such device, and {} is for device nodes, not files: a file there is kept in memory and lost \
                     at the next boot",
                    folder.display()
                ),
            ),
            Self::DestLenChanged { dest, from, to } => (
                Kind::InUse,
                Some(dest),
                format!("another program has just changed its length from {from} to {to} bytes"),
            ),
            Self::NothingToPreserve { source } => {
                (Kind::InvalidInput, None, format!("{source}: --preserve needs a regular file as the source"))
            }
            Self::ServedRange { device } => {
                (Kind::InvalidInput, None, format!("{device}: a whole device is served, not a range of one"))
            }
            Self::ServedRemote { device } => (
                Kind::InvalidInput,
                None,
                format!("{device}: namespaces of other targets cannot be served yet"),
            ),
            Self::ServedIsReadOnly { device } => {
                (Kind::ReadOnly, Some(device), "the device is read-only".to_owned())
            }
            Self::ServedNotFound { device } => (Kind::NotFound, Some(device), "does not exist".to_owned()),
            Self::ServedInUse { device, holder } => (Kind::InUse, Some(device), format!("in use: {holder}")),
            Self::ServedTwice { device, name, other, why } => (
                Kind::InUse,
                Some(device),
                format!("{name} and {other} hold the same bytes ({why}); leave one out"),
            ),
            Self::SourceGrew { source, size_bytes } => (
                Kind::SourceChanged,
                None,
                format!(
                    "{source}: grew during the copy, and may have changed: the copy has the length that the source \
                     had when it was opened ({})",
                    size_exact(*size_bytes)
                ),
            ),
            Self::NotPreserved { what } => (Kind::Unsupported, None, what.clone()),
            Self::NameNotDurable { error } => {
                let cause = error.source().map_or(String::new(), |c| format!(" ({c})"));
                let text =
                    format!("{error}{cause}: the data is durable, but a power cut may lose the file's name");
                (Kind::Io, None, text)
            }
            Self::DestLeft { dest, left } => (Kind::Io, None, format!("{dest}: {left}")),
            Self::SourceNotFound { error, .. }
            | Self::TwoWays { error }
            | Self::SegmentsOverlap { error }
            | Self::NoPlace { error }
            | Self::DestHeld { error }
            | Self::SourceHeld { error }
            | Self::OffloadUnmet { error }
            | Self::NoEngine { error }
            | Self::SourceChanged { error } => (error.kind(), None, error.to_string()),
        };
        Said { kind, on: on.map(String::as_str), text }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self.said();
        match said.on {
            Some(name) => write!(f, "{name}: {}", said.text),
            None => f.write_str(&said.text),
        }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => f.write_str("kept; the receipt says what was done"),
            Self::KeptWhole => f.write_str("kept, because all of it was copied"),
            Self::KeptAsItIs => f.write_str("kept as it is; the receipt says what was done"),
            Self::CutTo(0) => f.write_str("truncated to 0 bytes, because none of it is known to be good"),
            Self::CutTo(len) => write!(f, "truncated to {}, all of it good", size_exact(*len)),
            Self::NotCut(len, error) => {
                write!(f, "kept whole, though only the first {len} bytes are good: {error}")
            }
            Self::NotMadeUnequal => f.write_str("not created, because the copy differs from the source"),
            Self::NotMadeUnstable => {
                f.write_str("not created, because the source is not known to have stayed the same")
            }
            Self::NotMadeNothingGood => f.write_str("not created, because none of it is known to be good"),
            Self::NotMadeNotCut(error) => {
                write!(f, "not created, because it could not be truncated to the part that is good: {error}")
            }
        }
    }
}

/// Why no copy follows.
#[derive(Debug)]
pub enum Obstacle {
    /// What was found.
    Found(Box<Finding>),
    /// Something failed that is not a finding: an open, a system call.
    Failed(Error),
}

impl Obstacle {
    /// What kind of error it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Found(finding) => finding.said().kind,
            Self::Failed(error) => error.kind(),
        }
    }

    /// As an error.
    pub fn into_error(self) -> Error {
        match self {
            Self::Found(finding) => finding.into_error(),
            Self::Failed(error) => error,
        }
    }
}

impl From<Finding> for Obstacle {
    fn from(finding: Finding) -> Self {
        Self::Found(Box::new(finding))
    }
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found(finding) => finding.fmt(f),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl StdError for Obstacle {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Found(finding) => finding.error().and_then(StdError::source),
            Self::Failed(error) => error.source(),
        }
    }
}

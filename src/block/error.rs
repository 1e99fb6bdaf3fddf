//! One error: what kind, doing what, where, and the cause underneath.

use super::ByteRange;
use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, small enough to match on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[cfg_attr(test, derive(strum::EnumIter))]
#[non_exhaustive]
pub enum Kind {
    /// This method or operation is not available here. The only kind that lets a copy step down to the next method.
    Unsupported,
    /// The range is longer than the device takes in one request; the device's present maximum in bytes.
    TooLarge {
        /// Longest range the device takes now, in bytes.
        max_bytes: u64,
    },
    /// A value makes no sense (flag, number, name).
    InvalidInput,
    /// An offset or length is not a multiple of the block size or of a required alignment.
    Misaligned,
    /// The range ends past the end of the device.
    OutOfRange,
    /// Source and destination overlap where that is refused.
    Overlap,
    /// The device cannot be written.
    ReadOnly,
    /// Mounted, held or otherwise used by somebody else.
    InUse,
    /// No such file or device.
    NotFound,
    /// The system refused for lack of rights.
    Permission,
    /// No space left on the destination.
    NoSpace,
    /// Memory could not be had.
    NoMemory,
    /// The device failed.
    Io,
    /// The request was dropped by a layer below without an answer: a bug, reported and counted.
    Aborted,
    /// Somebody asked for it to stop.
    Cancelled,
    /// A flush failed earlier: the device answers nothing else until it is reopened.
    Poisoned,
    /// Compared or verified bytes differ.
    Mismatch,
    /// The source changed while it was copied.
    SourceChanged,
}

/// An error with its place and its cause. One pointer wide.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: Cow<'static, str>,
    device: Option<String>,
    range: Option<ByteRange>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind; `message` names value, limit and next step.
    #[cold]
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), device: None, range: None, cause: None }))
    }

    /// An error from the operating system; the kind follows from the error number.
    #[cold]
    pub fn os(doing: impl Into<Cow<'static, str>>, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        Self::new(Kind::of_io(&cause), doing).because(cause)
    }

    /// Names the device it happened on, unless a lower layer has.
    #[must_use]
    pub fn on(mut self, device: &str) -> Self {
        self.0.device.get_or_insert_with(|| device.to_owned());
        self
    }

    /// Names the bytes it happened at, unless a lower layer has.
    #[must_use]
    pub fn at(mut self, range: ByteRange) -> Self {
        self.0.range.get_or_insert(range);
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The bytes it happened at, when known.
    pub fn range(&self) -> Option<ByteRange> {
        self.0.range
    }

    /// The device it happened on, when known.
    pub fn device(&self) -> Option<&str> {
        self.0.device.as_deref()
    }
}

impl Kind {
    /// The kind an operating system error stands for.
    pub fn of_io(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            Some(libc::ENOMEM) => Self::NoMemory,
            Some(libc::EACCES | libc::EPERM) => Self::Permission,
            Some(libc::EROFS) => Self::ReadOnly,
            Some(libc::EBUSY | libc::ETXTBSY) => Self::InUse,
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NotFound,
            Some(libc::EINVAL) => Self::InvalidInput,
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EXDEV) => Self::Unsupported,
            Some(libc::ECANCELED | libc::EINTR) => Self::Cancelled,
            _ => Self::Io,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(device) = &self.0.device {
            write!(f, "{device}")?;
            if let Some(range) = self.0.range {
                write!(f, " {range}")?;
            }
            write!(f, ": ")?;
        }
        f.write_str(&self.0.message)?;
        match self.0.range {
            Some(range) if self.0.device.is_none() => write!(f, " (range {range})"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        if let Some(cause) = &self.0.cause {
            write!(f, " ({cause})")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().map(|c| c as &(dyn StdError + 'static))
    }
}

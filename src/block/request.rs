//! One request, one completion.

use super::fate::{Fates, Must};
use super::{Buf, ByteRange, Counters, Device, Error, Identity, Kind, Method};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is to be done. Offsets and lengths are multiples of the device's block size.
pub enum Op {
    /// Fill `buf` (its length = the range's) from the range.
    Read {
        /// Bytes to read.
        range: ByteRange,
        /// Where they go; comes back with the completion.
        buf: Buf,
    },
    /// Write `buf` to the range; durable on completion when `fua`.
    Write {
        /// Bytes to overwrite.
        range: ByteRange,
        /// Their new contents; comes back with the completion.
        buf: Buf,
        /// Force unit access: durable before completion.
        fua: bool,
    },
    /// Make the range read as zero.
    WriteZeroes {
        /// Bytes to zero.
        range: ByteRange,
        /// True: space may be given back (a hole); false: space stays allocated.
        may_unmap: bool,
        /// True: may complete before the zeroes are on the medium, as long as reads return zero and a flush makes them
        /// durable (see `map::LazyDevice`). A device that cannot be lazy ignores it.
        lazy: bool,
    },
    /// Tell the device that the range is not needed; what it reads as afterwards is undefined.
    Discard {
        /// Bytes no longer needed.
        range: ByteRange,
    },
    /// Compare `buf` with the range: error kind `Mismatch` when they differ, good bytes = equal prefix.
    Compare {
        /// Bytes to compare.
        range: ByteRange,
        /// What is expected there; comes back with the completion.
        buf: Buf,
    },
    /// Make everything completed before this request was submitted durable.
    Flush,
    /// Copy, by the one method named.
    Copy(Box<CopyRequest>),
}

impl Op {
    /// The bytes of this device that are changed or read; `None` for a flush.
    pub fn range(&self) -> Option<ByteRange> {
        match self {
            Self::Read { range, .. }
            | Self::Write { range, .. }
            | Self::WriteZeroes { range, .. }
            | Self::Discard { range }
            | Self::Compare { range, .. } => Some(*range),
            Self::Copy(copy) => Some(copy.dest),
            Self::Flush => None,
        }
    }

    /// True when bytes of this device may change.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteZeroes { .. } | Self::Discard { .. } | Self::Copy(_))
    }

    /// The name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::WriteZeroes { .. } => "write-zeroes",
            Self::Discard { .. } => "discard",
            Self::Compare { .. } => "compare",
            Self::Flush => "flush",
            Self::Copy(_) => "copy",
        }
    }

    fn take_buf(&mut self) -> Buf {
        match self {
            Self::Read { buf, .. } | Self::Write { buf, .. } | Self::Compare { buf, .. } => {
                std::mem::take(buf)
            }
            _ => Buf::default(),
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        self.range().map_or(Ok(()), |r| write!(f, " {r:?}"))
    }
}

/// A copy with both its ends: the sources, in order and end to end, fill `dest`, on the device it is submitted to.
///
/// The lengths of the sources add up to the length of `dest`. Only `method` is tried: stepping down is the caller's.
pub struct CopyRequest {
    /// How; one of the methods that [`Device::copy_paths`] of both ends share.
    pub method: Method,
    /// The device the sources lie on: a leaf (see [`Device::resolve`]), maybe the destination itself.
    pub source: Arc<dyn Device>,
    /// Source ranges in order.
    pub sources: SmallVec<[ByteRange; 1]>,
    /// Destination bytes on the device the request is submitted to.
    pub dest: ByteRange,
    /// Durable before completion.
    pub fua: bool,
    /// What must become of the bytes; `None`: anything. A device that can tell beforehand refuses as `Unsupported`
    /// without having changed anything; one that can tell only afterwards counts what went another way as not copied.
    pub must: Option<Must>,
    /// Set by the caller to end a long copy early, between two system calls; it then completes as `Cancelled`.
    pub cancel: Cancel,
}

impl CopyRequest {
    /// Checks what every driver relies on: the sources add up to the destination, no source overlaps it when both
    /// are stored on the
    /// device `dest`, and what is stored there is what the sources read as.
    ///
    /// Errors: `InvalidInput`, `Overlap`; `Unsupported` when zeroes are owed under a source.
    pub fn check(&self, dest: Identity) -> Result<(), Error> {
        let total = self.sources.iter().try_fold(0u64, |sum, r| sum.checked_add(r.len()));
        if total != Some(self.dest.len()) {
            let text = format!(
                "the source ranges add up to {total:?} bytes, the destination has {}",
                self.dest.len()
            );
            return Err(Error::new(Kind::InvalidInput, text).at(self.dest));
        }
        if self.source.identity() == dest && self.sources.iter().any(|r| r.overlaps(self.dest)) {
            return Err(
                Error::new(Kind::Overlap, "source and destination of one copy request overlap").at(self.dest)
            );
        }
        self.check_stored()
    }

    /// Checks that each source range is stored as it reads: the part of [`CopyRequest::check`] for whoever replaces the
    /// source by what is inside it.
    ///
    /// Errors: `Unsupported`, so that the range is planned again and its zeroes are found.
    pub fn check_stored(&self) -> Result<(), Error> {
        match self.sources.iter().find(|range| !super::lazy::reads_as_stored(&self.source, **range)) {
            None => Ok(()),
            Some(&range) => {
                let text = "the source has lazy zeroes there, which are not stored yet: read it, or zero the destination";
                Err(Error::new(Kind::Unsupported, text).on(self.source.name()).at(range))
            }
        }
    }
}

/// A flag that asks a copy to stop soon. Clones share it.
#[derive(Clone, Default, Debug)]
pub struct Cancel(Arc<std::sync::atomic::AtomicBool>);

impl Cancel {
    /// Asks.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// True once asked.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a copy request adds to its completion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Calls made for this request.
    pub calls: Counters,
    /// What became of the good bytes, as far as the device saw.
    pub fates: Fates,
    /// True when blocks past the good prefix may hold anything (a foreign controller wrote them); false: old or new.
    pub rest_undefined: bool,
}

impl Completion {
    /// What became of the `good` bytes of a copy by `method`: what its device saw, else what the method says by itself.
    pub fn fates(&self, method: Method, good: u64) -> Fates {
        match &self.copy {
            Some(report) if report.fates != Fates::default() => report.fates.clone().of(good),
            _ => Fates::of_method(method, good),
        }
    }
}

/// One operation on its way down. Consumed by [`Request::complete`]; dropped instead, it completes as `Aborted`.
pub struct Request {
    op: Op,
    tag: u64,
    home: Option<Rc<Home>>,
}

impl Request {
    /// The submitter's number for it.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// What is to be done.
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// What is to be done, to take its buffer out while the operation is in flight.
    pub fn op_mut(&mut self) -> &mut Op {
        &mut self.op
    }

    /// Takes the buffer out (the empty buffer when there is none); give it back with [`Request::complete_with`].
    pub fn take_buf(&mut self) -> Buf {
        self.op.take_buf()
    }

    /// Ends the request. `good_bytes`: length of the prefix that is known good, also on error.
    pub fn complete(mut self, good_bytes: u64, result: Result<(), Error>) -> Completion {
        let buf = self.op.take_buf();
        self.complete_with(buf, good_bytes, result)
    }

    /// Ends a request whose buffer was taken out.
    pub fn complete_with(mut self, buf: Buf, good_bytes: u64, result: Result<(), Error>) -> Completion {
        self.home = None;
        Completion { tag: self.tag, result, good_bytes, buf, copy: None }
    }

    /// Ends the request well, all of its bytes good.
    pub fn complete_ok(self) -> Completion {
        let good = self.op.range().map_or(0, ByteRange::len);
        self.complete(good, Ok(()))
    }

    /// Ends the request with an error and no good byte.
    pub fn complete_err(self, error: Error) -> Completion {
        self.complete(0, Err(error))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        DROPPED.fetch_add(1, Ordering::Relaxed);
        let error = Error::new(
            Kind::Aborted,
            "the request was dropped before it completed; please report this as a bug",
        );
        home.aborted.borrow_mut().push(Completion {
            tag: self.tag,
            result: Err(error),
            good_bytes: 0,
            buf: self.op.take_buf(),
            copy: None,
        });
        if cfg!(any(test, feature = "sim")) && !std::thread::panicking() {
            panic!("request {} ({:?}) was dropped without completion", self.tag, self.op);
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {:?}", self.tag, self.op)
    }
}

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Requests of this process that were dropped without an answer. Anything but 0 is a bug.
pub fn dropped_requests() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

#[derive(Default)]
struct Home {
    aborted: RefCell<Vec<Completion>>,
}

/// Makes requests, and learns of those that were dropped. One per user of a queue.
#[derive(Clone, Default)]
pub struct Submitter(Rc<Home>);

impl Submitter {
    /// A request with the submitter's own number.
    pub fn request(&self, tag: u64, op: Op) -> Request {
        Request { op, tag, home: Some(self.0.clone()) }
    }

    /// Moves the completions of dropped requests to `out`.
    pub fn take_aborted(&self, out: &mut Vec<Completion>) {
        let mut aborted = self.0.aborted.borrow_mut();
        if !aborted.is_empty() {
            out.append(&mut aborted);
        }
    }
}

/// The end of a request.
#[derive(Debug)]
#[must_use = "a completion carries the result"]
pub struct Completion {
    /// The submitter's number.
    pub tag: u64,
    /// Done, or why not.
    pub result: Result<(), Error>,
    /// Length of the prefix of the request that is known good, in bytes; the whole on success.
    pub good_bytes: u64,
    /// The request's buffer (empty when it had none).
    pub buf: Buf,
    /// For a copy: its part of the receipt.
    pub copy: Option<Box<CopyReport>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::LEN_MAX;

    #[test]
    fn a_dropped_request_completes_as_aborted_and_is_counted() {
        let submitter = Submitter::default();
        let before = dropped_requests();
        let request = submitter.request(7, Op::Flush);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(request)));
        assert!(caught.is_err(), "in tests a dropped request is a panic");
        let mut out = Vec::new();
        submitter.take_aborted(&mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].tag, 7);
        assert_eq!(out[0].result.as_ref().unwrap_err().kind(), Kind::Aborted);
        assert!(dropped_requests() > before);
    }

    #[test]
    fn completing_consumes_and_keeps_the_buffer() {
        let submitter = Submitter::default();
        let buf = Buf::copy_of(b"abc").unwrap();
        let request = submitter.request(1, Op::Write { range: ByteRange::to(3), buf, fua: false });
        let done = request.complete_ok();
        assert_eq!((&done.buf[..], done.good_bytes), (&b"abc"[..], 3));
        let mut out = Vec::new();
        submitter.take_aborted(&mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn sources_that_add_up_only_when_the_sum_wraps_are_refused() {
        let block = std::num::NonZeroU32::new(1).unwrap();
        let source = Arc::new(crate::drivers::null::Null::new("null", LEN_MAX, block).unwrap());
        let all = ByteRange::to(LEN_MAX);
        let (one, dest) = (source.identity(), ByteRange::to(10));
        let mut copy = CopyRequest {
            method: Method::Null,
            source,
            // 2 * (2^63 - 1) + 12 = 2^64 + 10
            sources: smallvec::smallvec![all, all, ByteRange::to(12)],
            dest,
            fua: false,
            must: None,
            cancel: Cancel::default(),
        };
        assert_eq!(copy.check(one).unwrap_err().kind(), Kind::InvalidInput);
        copy.sources = smallvec::smallvec![ByteRange::between(20, 30)];
        assert!(copy.check(one).is_ok());
        copy.sources = smallvec::smallvec![ByteRange::between(9, 19)];
        assert_eq!(copy.check(one).unwrap_err().kind(), Kind::Overlap);
    }
}

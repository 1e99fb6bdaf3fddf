//! A copy by the kernel: the loop around `FICLONERANGE` and `copy_file_range`, run on a helper thread.

use crate::block::request::Cancel;
use crate::block::{ByteRange, Call, Counters, Error, Kind, Method, Result};
use crate::sys::blkcopy;
use smallvec::SmallVec;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Longest `FICLONERANGE` call, in bytes: extents are shared in constant time each, but there may be many of them, and
/// a copy must stop within a second of being asked.
pub(crate) const CLONE_CALL_MAX: u64 = 1 << 30;
/// Longest `copy_file_range` call, in bytes: the kernel may copy every byte, uninterruptible.
pub(crate) const RANGE_CALL_MAX: u64 = 64 << 20;

/// The calls a copy makes, so that tests can answer in the kernel's place.
pub(crate) trait Kernel {
    /// `ioctl(FICLONERANGE)`.
    fn clone_range(&self, from: u64, len: u64, to: u64) -> io::Result<()>;
    /// `copy_file_range`.
    fn copy_range(&self, from: u64, len: usize, to: u64) -> io::Result<usize>;
    /// Reads one byte of the source: the count, 0 at the end of the file.
    fn probe(&self, from: u64) -> io::Result<usize>;
}

/// The real one.
pub(crate) struct Files {
    pub(crate) source: Arc<OwnedFd>,
    pub(crate) dest: Arc<OwnedFd>,
    /// Both are files of a mount of ours, and its daemon is to copy without reading and writing or not at all.
    pub(crate) offload_only: bool,
}

/// The copy of one piece by the daemon of our own mount, offloaded or not at all.
fn by_our_daemon(files: &Files, from: u64, len: usize, to: u64) -> io::Result<usize> {
    let token = blkcopy::blkcopy_source(&*files.source)?;
    let mut entries = [blkcopy::Entry::new(from, to, len as u64)];
    blkcopy::blkcopy_from(&*files.dest, token, blkcopy::OFFLOAD_ONLY, &mut entries)?;
    Ok(usize::try_from(entries[0].comp_len).unwrap_or(len).min(len))
}

impl Kernel for Files {
    fn clone_range(&self, from: u64, len: u64, to: u64) -> io::Result<()> {
        crate::sys::ioctl::clone_range(&*self.source, from, len, &*self.dest, to)
    }
    fn copy_range(&self, mut from: u64, len: usize, mut to: u64) -> io::Result<usize> {
        if self.offload_only {
            return by_our_daemon(self, from, len, to);
        }
        Ok(rustix::fs::copy_file_range(&*self.source, Some(&mut from), &*self.dest, Some(&mut to), len)?)
    }
    fn probe(&self, from: u64) -> io::Result<usize> {
        Ok(rustix::io::pread(&*self.source, &mut [0u8; 1][..], from)?)
    }
}

/// One copy, by one method.
pub(crate) struct Transfer<K> {
    pub(crate) kernel: K,
    pub(crate) method: Method,
    pub(crate) sources: SmallVec<[ByteRange; 1]>,
    pub(crate) dest: ByteRange,
    pub(crate) cancel: Cancel,
}

impl Transfer<Files> {
    /// Makes sure that what is cached of the sources is stored, for file systems that copy what is stored: not each
    /// looks for what it has not stored yet, and then a hole is copied in its place.
    ///
    /// Errors: `Unsupported` when it cannot be stored, so that the caller reads instead.
    pub(crate) fn store_sources(&self) -> Result<()> {
        for &range in &self.sources {
            super::holes::store(&self.kernel.source, range).map_err(|error| {
                let text =
                    format!("{}: the source's cached data cannot be written out ({error})", self.method);
                Error::new(Kind::Unsupported, text).because(error).at(range)
            })?;
        }
        Ok(())
    }
}

impl<K: Kernel> Transfer<K> {
    /// Runs it to its end: the length of the good prefix of the destination in bytes (exact also beside an error) and
    /// the result. `Unsupported` asks the caller to step down; everything else but `Cancelled` is final.
    pub(crate) fn run(&self, counters: &mut Counters) -> (u64, Result<()>) {
        let (mut dest, mut good) = (self.dest, 0);
        for &source in &self.sources {
            let mut from = source;
            while !from.is_empty() {
                if self.cancel.is_set() {
                    let error = Error::new(Kind::Cancelled, "stopped on request between two system calls");
                    return (good, Err(error.at(dest)));
                }
                match self.step(from, dest, counters) {
                    Ok(n) => {
                        good += n;
                        from = from.after(n);
                        dest = dest.after(n);
                    }
                    Err(error) => return (good, Err(error.at(dest.prefix(from.len())))),
                }
            }
        }
        (good, Ok(()))
    }

    /// One call; the bytes it copied, at least 1 and at most what was asked. An interrupted call is 0 bytes.
    fn step(&self, from: ByteRange, dest: ByteRange, counters: &mut Counters) -> Result<u64> {
        let result = match self.method {
            Method::Reflink => {
                let len = from.len().min(CLONE_CALL_MAX);
                counters.count(Call::Ficlonerange);
                self.kernel.clone_range(from.offset(), len, dest.offset()).map(|()| len)
            }
            Method::CopyFileRange => {
                let len = from.len().min(RANGE_CALL_MAX);
                let asked = usize::try_from(len).expect("at most 64 MiB");
                counters.count(Call::CopyFileRange);
                match self.kernel.copy_range(from.offset(), asked, dest.offset()) {
                    Ok(0) => return Err(self.zero_return(from, counters)),
                    // A count above what was asked was seen from a wrapper once; it is never more than was asked.
                    Ok(n) => Ok(len.min(n as u64)),
                    Err(error) => Err(error),
                }
            }
            other => {
                return Err(Error::new(Kind::Unsupported, format!("a regular file cannot copy by {other}")));
            }
        };
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => Ok(0),
            other => other.map_err(|error| refusal(self.method, error)),
        }
    }

    /// A zero from `copy_file_range` means the end of the file, or that the file system cannot (seen on procfs, CIFS
    /// and overlays): a one-byte read tells which.
    fn zero_return(&self, from: ByteRange, counters: &mut Counters) -> Error {
        counters.count(Call::Pread64);
        match self.kernel.probe(from.offset()) {
            Ok(0) => ended_early(from.offset(), from.end()),
            Ok(_) => Error::new(
                Kind::Unsupported,
                "copy_file_range returned 0 before the end of the source; read+write takes over",
            ),
            Err(error) => {
                Error::os("copy_file_range returned 0, and reading the source there failed too", error)
            }
        }
    }
}

/// The error of a source that is shorter than it was.
pub(crate) fn ended_early(at: u64, expected: u64) -> Error {
    Error::new(
        Kind::SourceChanged,
        format!("the file ended at byte {at}, not {expected}: it shrank while it was read; copy it again"),
    )
}

/// The error of a copy call. Only answers on this list let the caller step down; an I/O error, no space or no memory
/// is final, and so is everything not known to mean "not here".
///
/// EPERM and EACCES are a sandbox's answer to a call it does not know (and a system that lets files be cloned by some
/// only); where they mean the destination, as of an immutable file, the write that comes instead is refused in its own
/// words. So with ETXTBSY, the answer for a file in use as swap.
fn refusal(method: Method, error: io::Error) -> Error {
    let steps_down = matches!(
        error.raw_os_error(),
        Some(
            libc::EOPNOTSUPP
                | libc::ENOSYS
                | libc::EXDEV
                | libc::EINVAL
                | libc::ENOTTY
                | libc::EPERM
                | libc::EACCES
                | libc::ETXTBSY
        )
    );
    if steps_down {
        return Error::new(Kind::Unsupported, format!("{method}: not supported here ({error})"))
            .because(error);
    }
    Error::os(format!("{method} failed"), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::VecDeque;

    /// Answers in order; `Err` holds an error number. Notes the calls as (from, len, to).
    struct Script {
        answers: RefCell<VecDeque<Result<usize, i32>>>,
        probe: Result<usize, i32>,
        asked: RefCell<Vec<(u64, u64, u64)>>,
        cancel_at: Option<(usize, Cancel)>,
    }

    impl Script {
        fn answer(&self, from: u64, len: u64, to: u64) -> io::Result<usize> {
            self.asked.borrow_mut().push((from, len, to));
            if let Some((n, cancel)) = &self.cancel_at
                && self.asked.borrow().len() == *n
            {
                cancel.set();
            }
            let len = usize::try_from(len).unwrap();
            self.answers.borrow_mut().pop_front().unwrap_or(Ok(len)).map_err(io::Error::from_raw_os_error)
        }
    }

    impl Kernel for Script {
        fn clone_range(&self, from: u64, len: u64, to: u64) -> io::Result<()> {
            self.answer(from, len, to).map(drop)
        }
        fn copy_range(&self, from: u64, len: usize, to: u64) -> io::Result<usize> {
            self.answer(from, len as u64, to)
        }
        fn probe(&self, _: u64) -> io::Result<usize> {
            self.probe.map_err(io::Error::from_raw_os_error)
        }
    }

    fn transfer(method: Method, len: u64, answers: &[Result<usize, i32>]) -> Transfer<Script> {
        Transfer {
            kernel: Script {
                answers: RefCell::new(answers.iter().copied().collect()),
                probe: Ok(1),
                asked: RefCell::default(),
                cancel_at: None,
            },
            method,
            sources: smallvec::smallvec![ByteRange::new(4096, len).unwrap()],
            dest: ByteRange::new(1 << 40, len).unwrap(),
            cancel: Cancel::default(),
        }
    }

    fn run<K: Kernel>(t: &Transfer<K>) -> (u64, Option<Kind>) {
        let (good, result) = t.run(&mut Counters::default());
        (good, result.err().map(|e| e.kind()))
    }

    #[test]
    fn short_counts_are_continued_where_they_stopped() {
        let t = transfer(Method::CopyFileRange, 100, &[Ok(60), Err(libc::EINTR), Ok(1), Ok(39)]);
        assert_eq!(run(&t), (100, None));
        let to = 1 << 40;
        assert_eq!(
            *t.kernel.asked.borrow(),
            [(4096, 100, to), (4156, 40, to + 60), (4156, 40, to + 60), (4157, 39, to + 61)]
        );
    }

    #[test]
    fn several_sources_fill_the_destination_end_to_end() {
        let mut t = transfer(Method::CopyFileRange, 30, &[]);
        t.sources = [(50, 10), (0, 20)].map(|(o, l)| ByteRange::new(o, l).unwrap()).into_iter().collect();
        assert_eq!(run(&t), (30, None));
        assert_eq!(*t.kernel.asked.borrow(), [(50, 10, 1 << 40), (0, 20, (1 << 40) + 10)]);
    }

    #[test]
    fn a_count_above_what_was_asked_is_never_believed() {
        let t = transfer(Method::CopyFileRange, RANGE_CALL_MAX + 10, &[Ok(usize::MAX), Ok(10)]);
        assert_eq!(run(&t), (RANGE_CALL_MAX + 10, None));
        assert_eq!(t.kernel.asked.borrow().len(), 2, "the bytes behind the first call were asked for");
    }

    //= promise 2
    #[test]
    fn a_zero_return_before_the_end_steps_down_on_the_first_and_on_a_later_call() {
        for (answers, good) in [(&[Ok(0)][..], 0), (&[Ok(40), Ok(0)][..], 40)] {
            let t = transfer(Method::CopyFileRange, 100, answers);
            assert_eq!(run(&t), (good, Some(Kind::Unsupported)));
        }
    }

    #[test]
    fn a_zero_return_at_the_end_is_a_source_that_shrank() {
        let mut t = transfer(Method::CopyFileRange, 100, &[Ok(40), Ok(0)]);
        t.kernel.probe = Ok(0);
        let (good, result) = t.run(&mut Counters::default());
        let error = result.unwrap_err();
        assert_eq!((good, error.kind()), (40, Kind::SourceChanged));
        assert!(error.to_string().contains("ended at byte 4136, not 4196"), "{error}");
        t.kernel.probe = Err(libc::EIO);
        t.kernel.answers.borrow_mut().push_back(Ok(0));
        assert_eq!(run(&t), (0, Some(Kind::Io)));
    }

    //= promise 2
    #[test]
    fn only_answers_on_the_list_step_down() {
        for method in [Method::Reflink, Method::CopyFileRange] {
            for (errno, kind) in [
                (libc::EOPNOTSUPP, Kind::Unsupported),
                (libc::ENOSYS, Kind::Unsupported),
                (libc::EXDEV, Kind::Unsupported),
                (libc::EINVAL, Kind::Unsupported),
                (libc::ENOTTY, Kind::Unsupported),
                (libc::EPERM, Kind::Unsupported),
                (libc::EACCES, Kind::Unsupported),
                (libc::ETXTBSY, Kind::Unsupported),
                (libc::EIO, Kind::Io),
                (libc::ENOSPC, Kind::NoSpace),
                (libc::EDQUOT, Kind::NoSpace),
                (libc::EFBIG, Kind::NoSpace),
                (libc::ENOMEM, Kind::NoMemory),
                (libc::EROFS, Kind::ReadOnly),
                (libc::EBADF, Kind::Io),
                (libc::ESTALE, Kind::Io),
            ] {
                let t = transfer(method, 100, &[Err(errno)]);
                assert_eq!(run(&t), (0, Some(kind)), "{method} errno {errno}");
            }
        }
    }

    #[test]
    fn an_error_after_some_calls_keeps_the_bytes_that_are_good() {
        let t = transfer(Method::Reflink, 3 * CLONE_CALL_MAX, &[Ok(0), Ok(0), Err(libc::ENOSPC)]);
        assert_eq!(run(&t), (2 * CLONE_CALL_MAX, Some(Kind::NoSpace)));
    }

    //= promise 8
    #[test]
    fn cancelled_between_two_calls() {
        let mut t = transfer(Method::CopyFileRange, 3 * RANGE_CALL_MAX, &[]);
        t.kernel.cancel_at = Some((2, t.cancel.clone()));
        assert_eq!(run(&t), (2 * RANGE_CALL_MAX, Some(Kind::Cancelled)));
        let t = transfer(Method::Reflink, 100, &[]);
        t.cancel.set();
        assert_eq!(run(&t), (0, Some(Kind::Cancelled)));
        assert!(t.kernel.asked.borrow().is_empty(), "nothing is begun once cancelled");
    }
}

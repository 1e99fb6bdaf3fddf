//! The driver's side of [`crate::block::way`]: which leaf has which gate, how its cache is made clean, and direct I/O
//! at any offset.

use crate::block::way::Gate;
use crate::block::{Buf, ByteRange, Call, Counters, LeafId};
use crate::sys::ioctl;
use crate::sys::sync::lock;
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Mutex, Weak};

/// Memory for one step of direct I/O at odd offsets, in bytes.
const BOUNCE: usize = 1 << 20;

static GATES: LazyLock<Mutex<HashMap<LeafId, Weak<Gate>>>> = LazyLock::new(Mutex::default);

/// The gate of a leaf: one in this process, for as long as anybody has it open.
pub(super) fn gate_of(leaf: LeafId) -> Arc<Gate> {
    // An insertion cannot leave the table half changed.
    let mut gates = lock(&GATES);
    if let Some(gate) = gates.get(&leaf).and_then(Weak::upgrade) {
        return gate;
    }
    gates.retain(|_, gate| gate.strong_count() > 0);
    let gate = Arc::new(Gate::new());
    gates.insert(leaf, Arc::downgrade(&gate));
    gate
}

/// Writes out what is cached of a file or device and drops it. For the time in which nothing is in flight and before
/// direct I/O goes on. Errors: of the writing; what was lost is not known.
pub(super) fn make_clean(fd: &OwnedFd) -> io::Result<()> {
    match ioctl::cachestat(fd, 0, 0) {
        Ok(stat) if stat.cached == 0 => return Ok(()),
        Ok(stat) if stat.dirty == 0 && stat.writeback == 0 => {}
        // Not known, or dirty.
        _ => write_out(fd, ByteRange::to(0))?,
    }
    // Best effort: pages that another program has mapped stay, and the kernel looks after them.
    let _ = rustix::fs::fadvise(fd, 0, None, rustix::fs::Advice::DontNeed);
    Ok(())
}

/// Writes out the dirty pages of a range (an empty one: of all) and waits for them. Not made durable by it.
pub(super) fn write_out(fd: &OwnedFd, range: ByteRange) -> io::Result<()> {
    match ioctl::write_back(fd, range.offset(), range.len()) {
        // Where the call is unknown, forbidden, or not for this kind of file.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::ESPIPE | libc::EOPNOTSUPP)
            ) =>
        {
            rustix::fs::fdatasync(fd).map_err(io::Error::from)
        }
        other => other,
    }
}

/// A descriptor of direct I/O, with the alignment it wants of offsets, lengths and memory, in bytes.
#[derive(Clone)]
pub(super) struct Direct {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) align: u64,
}

/// How much of a longer transfer goes with one bounce: from `at` on, out to blocks.
fn step(range: ByteRange, align: u64, most: usize) -> (ByteRange, ByteRange) {
    let start = range.offset() / align * align;
    let end = range.end().min(start.saturating_add(most as u64));
    let whole = ByteRange::between(start, end.div_ceil(align).saturating_mul(align));
    (ByteRange::between(range.offset(), end), whole)
}

fn bounce(range: ByteRange, align: u64) -> Result<Buf, io::Error> {
    let (_, whole) = step(range, align, BOUNCE);
    let none = || io::Error::from_raw_os_error(libc::ENOMEM);
    usize::try_from(whole.len()).ok().and_then(Buf::alloc).ok_or_else(none)
}

fn small(len: u64) -> usize {
    usize::try_from(len).expect("no longer than a bounce buffer")
}

impl Direct {
    /// True when the kernel takes the transfer as it is.
    pub(super) fn takes(&self, range: ByteRange, buf: &Buf) -> bool {
        let (start, _) = buf.shown();
        range.is_aligned(self.align) && (start as u64).is_multiple_of(self.align)
    }

    /// Fills `out` from `offset` on, at any alignment; the bytes read (fewer at the end of the file), and the error
    /// that stopped it.
    pub(super) fn read(
        &self,
        out: &mut [u8],
        offset: u64,
        counters: &mut Counters,
    ) -> (u64, Option<io::Error>) {
        let mut rest = ByteRange::between(offset, offset + out.len() as u64);
        let mut good = 0;
        let mut buf = match bounce(rest, self.align) {
            Ok(buf) => buf,
            Err(error) => return (0, Some(error)),
        };
        while !rest.is_empty() {
            let (part, whole) = step(rest, self.align, buf.len());
            let (n, error) = self.read_blocks(&mut buf[..small(whole.len())], whole.offset(), counters);
            let skip = part.offset() - whole.offset();
            let n = n.saturating_sub(skip).min(part.len());
            let at = small(skip);
            out[good..good + small(n)].copy_from_slice(&buf[at..at + small(n)]);
            good += small(n);
            if error.is_some() || n < part.len() {
                return (good as u64, error);
            }
            rest = rest.after(n);
        }
        (good as u64, None)
    }

    /// Writes `bytes` at `offset`, at any alignment: blocks at ragged ends are read and changed. The caller keeps other
    /// writes of those blocks away. The bytes written, and the error that stopped it.
    pub(super) fn write(
        &self,
        bytes: &[u8],
        offset: u64,
        counters: &mut Counters,
    ) -> (u64, Option<io::Error>) {
        let mut rest = ByteRange::between(offset, offset + bytes.len() as u64);
        let mut good = 0;
        let mut buf = match bounce(rest, self.align) {
            Ok(buf) => buf,
            Err(error) => return (0, Some(error)),
        };
        while !rest.is_empty() {
            let (part, whole) = step(rest, self.align, buf.len());
            let len = small(whole.len());
            let skip = small(part.offset() - whole.offset());
            let block = small(self.align);
            let tail = skip + small(part.len());
            if skip != 0 {
                let (n, error) = self.read_blocks(&mut buf[..block], whole.offset(), counters);
                if error.is_some() {
                    return (good as u64, error);
                }
                // Past the end of a file that another program cut there is nothing, and a write there makes zeroes of
                // it.
                buf[small(n).min(block)..block].fill(0);
            }
            if tail != len && (len > block || skip == 0) {
                let last = len - block;
                let at = whole.offset() + last as u64;
                let (n, error) = self.read_blocks(&mut buf[last..len], at, counters);
                if error.is_some() {
                    return (good as u64, error);
                }
                buf[last + small(n).min(block)..len].fill(0);
            }
            buf[skip..tail].copy_from_slice(&bytes[good..good + small(part.len())]);
            let (n, error) = super::blocking::write_all(&self.fd, &buf[..len], whole.offset(), counters);
            good += small(n.saturating_sub(skip as u64).min(part.len()));
            if error.is_some() {
                return (good as u64, error);
            }
            rest = rest.after(part.len());
        }
        (good as u64, None)
    }

    /// Reads whole blocks until `out` is full or the file ends.
    fn read_blocks(&self, out: &mut [u8], offset: u64, counters: &mut Counters) -> (u64, Option<io::Error>) {
        let mut done = 0;
        while done < out.len() {
            counters.count(Call::Pread64);
            match rustix::io::pread(&self.fd, &mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    if !(done as u64).is_multiple_of(self.align) {
                        // The end of the file lies inside a block.
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return (done as u64, Some(error.into())),
            }
        }
        (done as u64, None)
    }
}

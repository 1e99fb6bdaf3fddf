//! A device whose copies are wrong and called good: bugs to be found by whoever tests a mount, a target or a copy
//! engine.

use super::faults::wrap_device;
use super::through::{Ended, Through};
use crate::block::device::resolve_plain;
use crate::block::{
    Access, Buf, ByteRange, Completion, CopyPath, CopyReport, CopyRequest, Counters, Device, Extent,
    Identity, Limits, LimitsChange, Op, Queue, Request, Resolution, Result,
};
use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Copies longer than this lose the rest with [`CopyBug::LongTail`], in bytes: 127 sectors.
const LONG: u64 = 127 * 512;
/// Which copies lose a byte with [`CopyBug::Rare`].
const RARE: u64 = 997;

/// What is wrong with the copies. Each is a mistake that was made somewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyBug {
    /// The last byte is not copied.
    LastByte,
    /// The source begins one byte late.
    SourceOneOn,
    /// The destination begins one byte late.
    DestOneOn,
    /// One byte more than asked for is copied.
    OneTooMany,
    /// What is left of whole sectors of 512 bytes is not copied.
    TailSector,
    /// Of a copy longer than 65024 bytes the rest is not copied.
    LongTail,
    /// Each 997th copy loses its last byte.
    Rare,
}

impl CopyBug {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::LastByte,
        Self::SourceOneOn,
        Self::DestOneOn,
        Self::OneTooMany,
        Self::TailSector,
        Self::LongTail,
        Self::Rare,
    ];
}

/// A device that copies wrong and says that all went well. Other operations pass through.
///
/// A mistake that the device inside would refuse (behind an end, onto its own source) is not made. The device inside
/// has blocks of one byte, as memory and files have: others would refuse nearly all of them.
pub struct MiscopyDevice {
    inner: Arc<dyn Device>,
    bug: CopyBug,
    copies: AtomicU64,
}

impl MiscopyDevice {
    /// `inner`, copying as `bug` says.
    pub fn new(inner: Arc<dyn Device>, bug: CopyBug) -> Self {
        Self { inner, bug, copies: AtomicU64::new(0) }
    }

    /// Copies onto this device so far.
    pub fn copies(&self) -> u64 {
        self.copies.load(Ordering::Relaxed)
    }

    pub(super) fn inner(&self) -> &Arc<dyn Device> {
        &self.inner
    }

    /// Makes the mistake; false when nothing is left to be copied.
    fn spoil(&self, copy: &mut CopyRequest) -> bool {
        let nth = self.copies.fetch_add(1, Ordering::Relaxed) + 1;
        let len = copy.dest.len();
        let mut other = Other { sources: copy.sources.iter().copied().collect(), dest: copy.dest };
        match self.bug {
            CopyBug::LastByte => return cut(copy, len - 1),
            CopyBug::TailSector => return cut(copy, len - len % 512),
            CopyBug::LongTail => return cut(copy, len.min(LONG)),
            CopyBug::Rare => return cut(copy, len - u64::from(nth.is_multiple_of(RARE))),
            CopyBug::SourceOneOn => {
                other.sources.iter_mut().for_each(|r| *r = ByteRange::between(r.offset() + 1, r.end() + 1));
            }
            CopyBug::DestOneOn => {
                other.dest = ByteRange::between(other.dest.offset() + 1, other.dest.end() + 1);
            }
            CopyBug::OneTooMany => {
                other.dest = ByteRange::between(other.dest.offset(), other.dest.end() + 1);
                if let Some(last) = other.sources.last_mut() {
                    *last = ByteRange::between(last.offset(), last.end() + 1);
                }
            }
        }
        if other.would_be_taken(copy, &*self.inner) {
            copy.sources = other.sources.into();
            copy.dest = other.dest;
        }
        true
    }
}

/// The ranges of a copy with a mistake in them.
struct Other {
    sources: Vec<ByteRange>,
    dest: ByteRange,
}

impl Other {
    fn would_be_taken(&self, copy: &CopyRequest, dest: &dyn Device) -> bool {
        let one = copy.source.identity() == dest.identity();
        self.dest.end() <= dest.size()
            && self.sources.iter().all(|r| r.end() <= copy.source.size() && !(one && r.overlaps(self.dest)))
    }
}

/// Leaves the first `len` bytes of a copy; false when that is nothing.
fn cut(copy: &mut CopyRequest, len: u64) -> bool {
    copy.dest = copy.dest.prefix(len);
    let mut left = len;
    for range in &mut copy.sources {
        *range = range.prefix(left);
        left -= range.len();
    }
    copy.sources.retain(|range: &mut ByteRange| !range.is_empty());
    len > 0
}

impl Device for MiscopyDevice {
    wrap_device!();
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let through = Through::open(&self.inner)?;
        Ok(Box::new(MiscopyQueue { device: self, through, ended: Vec::new(), done: Vec::new() }))
    }
}

struct MiscopyQueue {
    device: Arc<MiscopyDevice>,
    /// Of a copy: the length that was asked for.
    through: Through<Option<u64>>,
    ended: Vec<Ended<Option<u64>>>,
    /// Copies of which nothing was left.
    done: Vec<Completion>,
}

impl Queue for MiscopyQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        for mut request in batch.drain(..) {
            let mut op = Through::<Option<u64>>::take_op(&mut request);
            let asked = match &mut op {
                // An empty one, or one the device will refuse, is for the device to judge.
                Op::Copy(copy) if !copy.dest.is_empty() && copy.check(self.device.identity()).is_ok() => {
                    let asked = copy.dest.len();
                    if !self.device.spoil(copy) {
                        let mut done = request.complete_with(Buf::default(), asked, Ok(()));
                        done.copy = Some(Box::<CopyReport>::default());
                        self.done.push(done);
                        continue;
                    }
                    Some(asked)
                }
                _ => None,
            };
            self.through.send(request, op, None, asked);
        }
        self.through.push();
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
        self.through.poll(&mut self.ended);
        for mut ended in self.ended.drain(..) {
            if let Some(asked) = ended.extra {
                // Here is the lie.
                ended.good_bytes = if ended.result.is_ok() { asked } else { ended.good_bytes.min(asked) };
            }
            done.push(ended.complete());
        }
    }
    fn counters(&self) -> Counters {
        self.through.counters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::request::Cancel;
    use crate::block::{Method, Submitter};
    use crate::drivers::mem::Mem;
    use std::num::NonZeroU32;

    const SIZE: u64 = 200_000;

    fn mem(salt: u8) -> Arc<dyn Device> {
        let mem = Arc::new(Mem::new("mem", SIZE, NonZeroU32::MIN).unwrap());
        let buf = Buf::copy_of(&bytes(salt)).unwrap();
        let write = Op::Write { range: ByteRange::to(SIZE), buf, fua: false };
        run(&(mem.clone() as Arc<dyn Device>), write).result.unwrap();
        mem
    }

    /// Neighbours differ, and so do the two devices.
    fn bytes(salt: u8) -> Vec<u8> {
        (0..SIZE).map(|i| u8::try_from(i % 120).unwrap() + salt).collect()
    }

    fn run(device: &Arc<dyn Device>, op: Op) -> Completion {
        let mut queue = device.clone().open_queue().unwrap();
        let submitter = Submitter::default();
        let mut done = Vec::new();
        queue.submit(&mut VecDeque::from([submitter.request(1, op)]));
        queue.poll(&mut done);
        done.pop().unwrap()
    }

    fn all(device: &Arc<dyn Device>) -> Vec<u8> {
        let buf = Buf::alloc(usize::try_from(SIZE).unwrap()).unwrap();
        run(device, Op::Read { range: ByteRange::to(SIZE), buf }).buf.to_vec()
    }

    fn copy(source: &Arc<dyn Device>, from: u64, to: u64, len: u64) -> Op {
        Op::Copy(Box::new(CopyRequest {
            method: Method::Memory,
            source: source.clone(),
            sources: smallvec::smallvec![ByteRange::new(from, len).unwrap()],
            dest: ByteRange::new(to, len).unwrap(),
            fua: false,
            must: None,
            cancel: Cancel::default(),
        }))
    }

    /// What the destination holds after `len` bytes went from 100 of the source to 1000 of it, as (from, to, len).
    fn expect(bug: CopyBug, len: u64) -> (usize, usize, usize) {
        let n = usize::try_from(len).unwrap();
        match bug {
            CopyBug::LastByte => (100, 1000, n - 1),
            CopyBug::SourceOneOn => (101, 1000, n),
            CopyBug::DestOneOn => (100, 1001, n),
            CopyBug::OneTooMany => (100, 1000, n + 1),
            CopyBug::TailSector => (100, 1000, n / 512 * 512),
            CopyBug::LongTail => (100, 1000, n.min(65_024)),
            CopyBug::Rare => (100, 1000, n),
        }
    }

    #[test]
    fn each_bug_is_just_what_it_says_and_is_called_good() {
        for bug in CopyBug::ALL {
            for len in [1, 511, 512, 1025, 65_024, 65_025, 100_000] {
                let source: Arc<dyn Device> = Arc::new(MiscopyDevice::new(mem(1), bug));
                let dest: Arc<dyn Device> = Arc::new(MiscopyDevice::new(mem(128), bug));
                let done = run(&dest, copy(&source, 100, 1000, len));
                assert_eq!((done.good_bytes, done.result.is_ok(), done.copy.is_some()), (len, true, true));
                let (mut wanted, (from, to, n)) = (bytes(128), expect(bug, len));
                wanted[to..to + n].copy_from_slice(&bytes(1)[from..from + n]);
                assert!(all(&dest) == wanted, "{bug:?}, {len} bytes");
                assert!(all(&source) == bytes(1), "the source stays: {bug:?}");
            }
        }
    }

    #[test]
    fn one_copy_in_997_loses_its_last_byte() {
        let dest: Arc<dyn Device> = Arc::new(MiscopyDevice::new(mem(128), CopyBug::Rare));
        let source = mem(1);
        for nth in 1..=1994u64 {
            run(&dest, copy(&source, 0, nth * 10, 10)).result.unwrap();
        }
        let (seen, mut wanted) = (all(&dest), bytes(128));
        for nth in 1..=1994usize {
            let n = if nth % 997 == 0 { 9 } else { 10 };
            wanted[nth * 10..nth * 10 + n].copy_from_slice(&bytes(1)[..n]);
        }
        assert!(seen == wanted);
    }

    #[test]
    fn a_mistake_that_would_be_refused_is_not_made() {
        for bug in [CopyBug::SourceOneOn, CopyBug::DestOneOn, CopyBug::OneTooMany] {
            let device: Arc<dyn Device> = Arc::new(MiscopyDevice::new(mem(1), bug));
            let mut wanted = bytes(1);
            // To the end of both, and touching its own source.
            for (from, to, len) in
                [(SIZE - 10, SIZE - 20, 10), (SIZE - 20, SIZE - 10, 10), (0, 5, 5), (5, 0, 5)]
            {
                let done = run(&device, copy(&device, from, to, len));
                assert!(done.result.is_ok(), "{bug:?}: {:?}", done.result);
                let at = |n: u64| usize::try_from(n).unwrap();
                let shift = match (bug, from, to) {
                    // Room on the side that moves, and no source there.
                    (CopyBug::SourceOneOn, f, t) if f + len < SIZE && f + len != t => (1, 0, 0),
                    (CopyBug::DestOneOn, f, t) if t + len < SIZE && t + len != f => (0, 1, 0),
                    (CopyBug::OneTooMany, f, t) if f.max(t) + len < SIZE && f.abs_diff(t) > len => (0, 0, 1),
                    _ => (0, 0, 0),
                };
                let n = at(len + shift.2);
                wanted.copy_within(at(from + shift.0)..at(from + shift.0) + n, at(to + shift.1));
                assert!(all(&device) == wanted, "{bug:?} {from} {to}");
            }
        }
    }

    #[test]
    fn other_operations_and_refused_copies_pass_through() {
        let device: Arc<dyn Device> = Arc::new(MiscopyDevice::new(mem(1), CopyBug::LastByte));
        let done = run(&device, copy(&device, 0, 5, 10));
        assert!(done.result.is_err() && done.good_bytes == 0);
        let buf = Buf::copy_of(b"abc").unwrap();
        run(&device, Op::Write { range: ByteRange::new(7, 3).unwrap(), buf, fua: false }).result.unwrap();
        assert_eq!(&all(&device)[7..10], b"abc");
        let range = ByteRange::new(8, 2).unwrap();
        run(&device, Op::WriteZeroes { range, may_unmap: true, lazy: false }).result.unwrap();
        assert_eq!(&all(&device)[7..10], &[b'a', 0, 0]);
    }
}

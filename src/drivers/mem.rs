//! A device in memory: `mem:SIZE`. Serves every operation at once, on the submitting thread.
//!
//! Written to be copied: a new driver starts from this file.

use crate::block::device::{LeafId, check_range, resolve_plain};
use crate::block::limits::LimitsCell;
use crate::block::{
    Access, Buf, ByteRange, Completion, Container, Content, CopyPath, CopyReport, CopyRequest, Counters,
    Device, Error, Extent, Fate, Fates, Identity, Kind, Limits, LimitsChange, Method, Op, Queue, Request,
    Resolution, Result, Scope,
};
use crate::sys::aligned::copy_past_cache;
use crate::sys::sync::held;
use std::any::Any;
use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes per stripe: the unit of locking and of allocation, and one huge page. Absent stripes read as zero.
const STRIPE: u64 = 2 << 20;
/// Longest copy in one request, in bytes; keeps one request near 10 ms at memory speed.
const COPY_MAX: NonZeroU64 = NonZeroU64::new(64 << 20).expect("not zero");
/// Copies from this length on, in bytes, go past the processor's cache: the device is far larger, so what is
/// overwritten is seldom in it.
const PAST_CACHE_MIN: u64 = 128 << 10;
/// Most source ranges in one copy request (what an NVMe Copy command can carry).
const COPY_RANGES: NonZeroU32 = NonZeroU32::new(256).expect("not zero");

/// A device in memory. Stripes are allocated when first written.
pub struct Mem {
    name: String,
    leaf: LeafId,
    container: Container,
    size: u64,
    limits: LimitsCell,
    stripes: Box<[RwLock<Option<Buf>>]>,
    /// Stripes that are there.
    held: AtomicU64,
}

impl Mem {
    /// A zero-filled device of `size` bytes with blocks of `block_size` bytes.
    ///
    /// Errors: `InvalidInput` when `size` is 0, no multiple of the block size, or larger than an index can reach.
    pub fn new(name: impl Into<String>, size: u64, block_size: NonZeroU32) -> Result<Self> {
        let name = name.into();
        if size == 0 || !size.is_multiple_of(u64::from(block_size.get())) {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("a memory device needs a size that is a multiple of its block size ({block_size} bytes), not {size} bytes"),
            )
            .on(&name));
        }
        let count = size.div_ceil(STRIPE);
        // 2^23 stripes of 2 MiB: 16 TiB, far beyond any machine's memory, bounds the table itself.
        if count > 1 << 23 {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("a memory device holds at most 16 TiB, not {size} bytes"),
            )
            .on(&name));
        }
        let limits = Limits::plain(block_size).with_copy(COPY_MAX, COPY_MAX, COPY_RANGES);
        Ok(Self {
            name,
            leaf: LeafId::fresh(),
            // Ends with this process, so that no name made of it means other bytes later.
            container: Container::passing("memory", super::container::random()),
            size,
            limits: LimitsCell::new(limits),
            stripes: (0..count).map(|_| RwLock::new(None)).collect(),
            held: AtomicU64::new(0),
        })
    }

    /// The parts of `range`: (stripe index, offset within it, length).
    fn parts(range: ByteRange) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut rest = range;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (index, at) = (rest.offset() / STRIPE, rest.offset() % STRIPE);
            let len = (STRIPE - at).min(rest.len());
            rest = rest.after(len);
            let fits = "below the stripe size or the stripe count, both checked in `new`";
            Some((
                usize::try_from(index).expect(fits),
                usize::try_from(at).expect(fits),
                usize::try_from(len).expect(fits),
            ))
        })
    }

    fn read_lock(&self, index: usize) -> RwLockReadGuard<'_, Option<Buf>> {
        held(self.stripes[index].read())
    }

    fn write_lock(&self, index: usize) -> RwLockWriteGuard<'_, Option<Buf>> {
        held(self.stripes[index].write())
    }

    /// The bytes of a stripe, made when it is not there; `None`: no memory.
    fn fill<'a>(&self, stripe: &'a mut Option<Buf>) -> Option<&'a mut Buf> {
        if stripe.is_none() {
            *stripe = Some(Buf::alloc(usize::try_from(STRIPE).expect("2 MiB"))?);
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        stripe.as_mut()
    }

    fn drop_stripe(&self, stripe: &mut Option<Buf>) {
        if stripe.take().is_some() {
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn read(&self, range: ByteRange, out: &mut [u8]) {
        let mut done = 0;
        for (index, at, len) in Self::parts(range) {
            let stripe = self.read_lock(index);
            match &*stripe {
                Some(bytes) => out[done..done + len].copy_from_slice(&bytes[at..at + len]),
                None => out[done..done + len].fill(0),
            }
            done += len;
        }
    }

    /// Writes as far as memory can be had; returns the bytes written.
    fn write(&self, range: ByteRange, bytes: &[u8]) -> (u64, Result<()>) {
        let mut done = 0;
        for (index, at, len) in Self::parts(range) {
            let mut stripe = self.write_lock(index);
            let Some(held) = self.fill(&mut stripe) else {
                let error =
                    Error::new(Kind::NoMemory, "no memory for another 2 MiB of the device; make it smaller");
                return (done as u64, Err(error.on(&self.name).at(range)));
            };
            held[at..at + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
        (done as u64, Ok(()))
    }

    fn zero(&self, range: ByteRange) {
        for (index, at, len) in Self::parts(range) {
            let mut stripe = self.write_lock(index);
            if len as u64 == STRIPE {
                self.drop_stripe(&mut stripe);
            } else if let Some(bytes) = &mut *stripe {
                bytes[at..at + len].fill(0);
            }
        }
    }

    fn copy(&self, copy: &CopyRequest) -> (u64, Result<()>) {
        if let Err(error) = copy.check(self.identity()) {
            return (0, Err(error.on(&self.name)));
        }
        let Some(source) = copy.source.as_any().downcast_ref::<Self>() else {
            return (
                0,
                Err(Error::new(Kind::Unsupported, "the source is not a memory device").on(&self.name)),
            );
        };
        let mut dest = copy.dest;
        let mut good = 0;
        for &range in &copy.sources {
            if let Err(e) = source.check(range) {
                return (good, Err(e));
            }
            let (done, result) = self.copy_range(source, range, dest);
            good += done;
            if result.is_err() {
                return (good, result);
            }
            dest = dest.after(range.len());
        }
        (good, Ok(()))
    }

    /// Copies one range stripe by stripe. The two never overlap (checked by the caller of the request).
    fn copy_range(&self, source: &Self, from: ByteRange, to: ByteRange) -> (u64, Result<()>) {
        let whole = from.len();
        let (mut from, mut to, mut good) = (from, to.prefix(from.len()), 0);
        while !from.is_empty() {
            let len = from.len().min(STRIPE - from.offset() % STRIPE).min(STRIPE - to.offset() % STRIPE);
            let (f, t) = (from.prefix(len), to.prefix(len));
            let (fi, fat, n) = Self::parts(f).next().expect("not empty");
            let (ti, tat, _) = Self::parts(t).next().expect("not empty");
            if std::ptr::eq(self, source) && fi == ti {
                let mut stripe = self.write_lock(ti);
                if let Some(bytes) = &mut *stripe {
                    bytes.copy_within(fat..fat + n, tat);
                }
            } else {
                // Two stripes are locked at once, always in one order, so that copies in opposite directions cannot
                // block each other for ever.
                let (held, mut stripe);
                if (source.leaf, fi) < (self.leaf, ti) {
                    held = source.read_lock(fi);
                    stripe = self.write_lock(ti);
                } else {
                    stripe = self.write_lock(ti);
                    held = source.read_lock(fi);
                }
                match &*held {
                    None if len == STRIPE => self.drop_stripe(&mut stripe),
                    None => {
                        if let Some(mine) = &mut *stripe {
                            mine[tat..tat + n].fill(0);
                        }
                    }
                    Some(bytes) => {
                        let Some(mine) = self.fill(&mut stripe) else {
                            let error =
                                Error::new(Kind::NoMemory, "no memory for another 2 MiB of the device");
                            return (good, Err(error.on(&self.name).at(t)));
                        };
                        let (to, from) = (&mut mine[tat..tat + n], &bytes[fat..fat + n]);
                        if whole >= PAST_CACHE_MIN {
                            copy_past_cache(to, from)
                        } else {
                            to.copy_from_slice(from)
                        }
                    }
                }
            }
            good += len;
            from = from.after(len);
            to = to.after(len);
        }
        (good, Ok(()))
    }

    fn check(&self, range: ByteRange) -> Result<()> {
        check_range(range, self.size, self.limits.get().block_size.get()).map_err(|e| e.on(&self.name))
    }

    fn serve(&self, mut request: Request) -> Completion {
        if let Some(range) = request.op().range()
            && let Err(error) = self.check(range)
        {
            return request.complete_err(error);
        }
        match request.op_mut() {
            Op::Read { range, buf } => self.read(*range, buf),
            Op::Write { range, buf, .. } => {
                let (good, result) = self.write(*range, buf);
                return request.complete(good, result);
            }
            Op::WriteZeroes { range, .. } | Op::Discard { range } => self.zero(*range),
            Op::Compare { range, buf } => {
                let (range, mut held) = (*range, vec![0; buf.len()]);
                self.read(range, &mut held);
                if let Some(at) = held.iter().zip(buf.iter()).position(|(a, b)| a != b) {
                    let error = Error::new(Kind::Mismatch, "the bytes differ").on(&self.name).at(range);
                    return request.complete(at as u64, Err(error));
                }
            }
            Op::Flush => {}
            Op::Copy(copy) => {
                let copy_method = copy.method;
                let (good, result) = match copy.method {
                    Method::Memory => self.copy(copy),
                    other => (
                        0,
                        Err(Error::new(Kind::Unsupported, format!("a memory device cannot copy by {other}"))),
                    ),
                };
                let mut done = request.complete(good, result);
                let fates = Fates::of_method(copy_method, good);
                done.copy = Some(Box::new(CopyReport { fates, ..CopyReport::default() }));
                return done;
            }
        }
        request.complete_ok()
    }
}

impl Device for Mem {
    fn name(&self) -> &str {
        &self.name
    }
    fn container(&self) -> Option<Container> {
        Some(self.container.clone())
    }
    fn identity(&self) -> Identity {
        Identity::Leaf { leaf: self.leaf, base: 0 }
    }
    fn size(&self) -> u64 {
        self.size
    }
    fn limits(&self) -> Limits {
        self.limits.get()
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.limits.change(change)
    }
    fn copy_paths(&self) -> Vec<CopyPath> {
        vec![CopyPath {
            method: Method::Memory,
            scope: Scope::Process,
            align: u64::from(self.limits.get().block_size.get()),
            tail_at_eof: false,
            max_bytes: COPY_MAX.get(),
            preferred: true,
            fate: Fate::ReadWrite,
            carries_holes: true,
        }]
    }
    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        self.check(range)?;
        let mut extent: Option<Extent> = None;
        for (index, _, len) in Self::parts(range) {
            let held = self.read_lock(index).is_some();
            let content = if held { Content::Data } else { Content::Hole };
            match &mut extent {
                Some(e) if e.content == content => e.len += len as u64,
                Some(_) => break,
                None => extent = Some(Extent { len: len as u64, content }),
            }
        }
        Ok(extent.unwrap_or(Extent { len: 0, content: Content::Data }))
    }
    fn tells_holes(&self) -> bool {
        true
    }
    fn zeroes_cheaply(&self) -> bool {
        true
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn may_wait(&self) -> bool {
        false
    }
    fn allocated_bytes(&self) -> Option<u64> {
        Some((self.held.load(Ordering::Relaxed) * STRIPE).min(self.size))
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        Ok(Box::new(MemQueue { device: self, done: Vec::new(), counters: Counters::default() }))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct MemQueue {
    device: Arc<Mem>,
    done: Vec<Completion>,
    counters: Counters,
}

impl Queue for MemQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        for request in batch.drain(..) {
            let (read, write) = match request.op() {
                Op::Read { range, .. } | Op::Compare { range, .. } => (range.len(), 0),
                Op::Write { range, .. } => (0, range.len()),
                _ => (0, 0),
            };
            let done = self.device.serve(request);
            if done.result.is_ok() {
                self.counters.requests += 1;
                self.counters.read_bytes += read;
                self.counters.written_bytes += write;
            } else {
                self.counters.errors += 1;
            }
            self.done.push(done);
        }
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }
    fn counters(&self) -> Counters {
        self.counters
    }
}

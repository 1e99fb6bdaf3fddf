//! A disk with a volatile write cache, and the power cut that tests what flush is for.
//!
//! Writes (copies too) are read back at once but survive a power cut only when they were flushed, or written with force
//! unit access. At a cut each block that was written since keeps its durable bytes or takes those of any one of these
//! writes, whatever their order: a cache writes back what it likes, when it likes, one whole block at a time.

use super::Rng;
use super::through::{enter_source, shorten};
use crate::block::device::{check_range, resolve_plain};
use crate::block::{
    Access, ByteRange, Completion, CopyPath, CopyReport, CopyRequest, Counters, Device, Error, Fate,
    Identity, Kind, LeafId, Limits, LimitsCell, LimitsChange, Method, Op, Queue, Request, Resolution, Result,
    Scope,
};
use crate::sys::sync::lock;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::{Arc, Mutex, MutexGuard};

/// Longest copy in one request, in bytes.
const COPY_MAX: NonZeroU64 = NonZeroU64::new(1 << 20).expect("not zero");
/// Most source ranges in one copy request.
const COPY_RANGES: NonZeroU32 = NonZeroU32::new(16).expect("not zero");

/// A small disk in memory with a volatile write cache.
pub struct VolatileDisk {
    name: String,
    leaf: LeafId,
    size: u64,
    block: usize,
    limits: LimitsCell,
    state: Mutex<State>,
}

struct State {
    durable: Vec<u8>,
    /// By block number: everything written there since it was last durable, oldest first.
    cache: BTreeMap<usize, Vec<Box<[u8]>>>,
    /// Counts power cuts: queues of an earlier time are dead.
    power: u64,
}

impl VolatileDisk {
    /// A zero-filled disk of `size` bytes; blocks of `block_size` bytes are written whole or not at all.
    ///
    /// Errors: `InvalidInput` when `size` is 0, no multiple of the block size, or more than memory can address.
    pub fn new(name: impl Into<String>, size: u64, block_size: NonZeroU32) -> Result<Self> {
        let name = name.into();
        let bad = || {
            let message = format!(
                "a volatile disk needs a size that is a multiple of its block size ({block_size} bytes), not {size} bytes"
            );
            Error::new(Kind::InvalidInput, message).on(&name)
        };
        if size == 0 || !size.is_multiple_of(u64::from(block_size.get())) {
            return Err(bad());
        }
        let bytes = usize::try_from(size).map_err(|_| bad())?;
        let block = usize::try_from(block_size.get()).map_err(|_| bad())?;
        let mut limits = Limits::plain(block_size).with_copy(COPY_MAX, COPY_MAX, COPY_RANGES);
        limits.atomic_write_bytes = Some(block_size);
        Ok(Self {
            leaf: LeafId::fresh(),
            size,
            block,
            limits: LimitsCell::new(limits),
            state: Mutex::new(State { durable: vec![0; bytes], cache: BTreeMap::new(), power: 0 }),
            name,
        })
    }

    /// Cuts the power and turns it on again: what was not durable is kept, lost or taken from an earlier write, by
    /// `seed`.
    ///
    /// Queues opened before answer nothing but errors: open new ones.
    pub fn power_cut(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        let mut state = self.lock();
        let state = &mut *state;
        state.power += 1;
        for (block, versions) in std::mem::take(&mut state.cache) {
            let survivor = rng.index(versions.len() + 1);
            if let Some(version) = survivor.checked_sub(1).map(|i| &versions[i]) {
                state.durable[block * self.block..][..self.block].copy_from_slice(version);
            }
        }
    }

    /// What a read of the whole disk would give.
    pub fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.lock().durable.len()];
        self.read(ByteRange::to(self.size), &mut bytes);
        bytes
    }

    /// What is certain to survive a power cut now; blocks written since hold what they held before.
    pub fn durable(&self) -> Vec<u8> {
        self.lock().durable.clone()
    }

    /// Blocks with writes that are not durable.
    pub fn unflushed_blocks(&self) -> usize {
        self.lock().cache.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Block numbers of a checked range.
    fn blocks(&self, range: ByteRange) -> std::ops::Range<usize> {
        let number = |offset| usize::try_from(offset).expect("inside a disk in memory") / self.block;
        number(range.offset())..number(range.end())
    }

    fn read(&self, range: ByteRange, out: &mut [u8]) {
        let state = self.lock();
        for (block, out) in self.blocks(range).zip(out.chunks_exact_mut(self.block)) {
            match state.cache.get(&block).and_then(|versions| versions.last()) {
                Some(bytes) => out.copy_from_slice(bytes),
                None => out.copy_from_slice(&state.durable[block * self.block..][..self.block]),
            }
        }
    }

    fn write(&self, range: ByteRange, bytes: &[u8], fua: bool) {
        let mut state = self.lock();
        for (block, bytes) in self.blocks(range).zip(bytes.chunks_exact(self.block)) {
            if fua {
                state.cache.remove(&block);
                state.durable[block * self.block..][..self.block].copy_from_slice(bytes);
            } else {
                state.cache.entry(block).or_default().push(bytes.into());
            }
        }
    }

    fn flush(&self) {
        let mut state = self.lock();
        for (block, versions) in std::mem::take(&mut state.cache) {
            if let Some(last) = versions.last() {
                state.durable[block * self.block..][..self.block].copy_from_slice(last);
            }
        }
    }

    fn copy(&self, copy: &CopyRequest) -> (u64, Result<()>) {
        if let Err(error) = copy.check(self.identity()) {
            return (0, Err(error.on(&self.name)));
        }
        let Some(source) = copy.source.as_any().downcast_ref::<Self>() else {
            let error = Error::new(Kind::Unsupported, "the source is no volatile-cache disk");
            return (0, Err(error.on(&self.name)));
        };
        let (mut dest, mut good) = (copy.dest, 0);
        for &range in &copy.sources {
            if let Err(error) = source.check(range) {
                return (good, Err(error));
            }
            let mut bytes = vec![0; self.block * self.blocks(dest.prefix(range.len())).len()];
            source.read(range, &mut bytes);
            self.write(dest.prefix(range.len()), &bytes, copy.fua);
            dest = dest.after(range.len());
            good += range.len();
        }
        (good, Ok(()))
    }

    fn check(&self, range: ByteRange) -> Result<()> {
        check_range(range, self.size, self.limits.get().block_size.get()).map_err(|e| e.on(&self.name))
    }

    fn serve(&self, mut request: Request, power: u64) -> Completion {
        if self.lock().power != power {
            let message = "the power was cut since this queue was opened; open the device again";
            return request.complete_err(Error::new(Kind::Io, message).on(&self.name));
        }
        if let Some(range) = request.op().range()
            && let Err(error) = self.check(range)
        {
            return request.complete_err(error);
        }
        match request.op_mut() {
            Op::Read { range, buf } => self.read(*range, buf),
            Op::Write { range, buf, fua } => self.write(*range, buf, *fua),
            Op::WriteZeroes { range, .. } | Op::Discard { range } => {
                let zeroes = vec![0; self.block * self.blocks(*range).len()];
                self.write(*range, &zeroes, false);
            }
            Op::Compare { range, buf } => {
                let (range, mut held) = (*range, vec![0; buf.len()]);
                self.read(range, &mut held);
                if let Some(at) = held.iter().zip(buf.iter()).position(|(a, b)| a != b) {
                    let error = Error::new(Kind::Mismatch, "the bytes differ").on(&self.name).at(range);
                    return request.complete(at as u64, Err(error));
                }
            }
            Op::Flush => self.flush(),
            Op::Copy(copy) => {
                let hit = enter_source(copy);
                if let Some(hit) = &hit {
                    // A copy has no buffer to keep.
                    shorten(request.op_mut(), hit.good_bytes);
                }
                let Op::Copy(copy) = request.op() else { unreachable!("matched above") };
                let (good, mut result) = match copy.method {
                    Method::Memory => self.copy(copy),
                    other => {
                        let message = format!("a volatile-cache disk cannot copy by {other}");
                        (0, Err(Error::new(Kind::Unsupported, message).on(&self.name)))
                    }
                };
                if let (Ok(()), Some(hit)) = (&result, hit) {
                    result = Err(hit.error);
                }
                let mut done = request.complete(good, result);
                done.copy = Some(Box::<CopyReport>::default());
                return done;
            }
        }
        request.complete_ok()
    }
}

impl Device for VolatileDisk {
    fn name(&self) -> &str {
        &self.name
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
            scope: Scope::Volatile,
            align: u64::from(self.limits.get().block_size.get()),
            tail_at_eof: false,
            max_bytes: COPY_MAX.get(),
            preferred: true,
            fate: Fate::ReadWrite,
            carries_holes: false,
        }]
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let power = self.lock().power;
        Ok(Box::new(DiskQueue { device: self, power, done: Vec::new(), counters: Counters::default() }))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct DiskQueue {
    device: Arc<VolatileDisk>,
    power: u64,
    done: Vec<Completion>,
    counters: Counters,
}

impl Queue for DiskQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        for request in batch.drain(..) {
            let done = self.device.serve(request, self.power);
            if done.result.is_ok() {
                self.counters.requests += 1;
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

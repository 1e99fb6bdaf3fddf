//! `null:SIZE`: reads zeroes, forgets writes, serves copies and moves nothing. For measuring what is above it.

use crate::block::device::{LeafId, check_range, resolve_plain};
use crate::block::limits::LimitsCell;
use crate::block::{
    Access, ByteRange, Completion, CopyPath, Counters, Device, Error, Fate, Identity, Kind, Limits,
    LimitsChange, Method, Op, Queue, Request, Resolution, Result, Scope,
};
use std::any::Any;
use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

/// Longest copy in one request, in bytes.
const COPY_MAX: NonZeroU64 = NonZeroU64::new(1 << 30).expect("not zero");
/// Most source ranges in one copy request.
const COPY_RANGES: NonZeroU32 = NonZeroU32::new(256).expect("not zero");

/// The device that does nothing, at once.
pub struct Null {
    name: String,
    leaf: LeafId,
    size: u64,
    /// In bytes; the one limit that never changes, kept where the hot path finds it.
    block_size: u32,
    limits: LimitsCell,
}

impl Null {
    /// A null device of `size` bytes with blocks of `block_size` bytes.
    pub fn new(name: impl Into<String>, size: u64, block_size: NonZeroU32) -> Result<Self> {
        let name = name.into();
        if ByteRange::new(0, size).is_none() || !size.is_multiple_of(u64::from(block_size.get())) {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("a null device needs a size of at most 2^63 - 1 bytes that is a multiple of its block size ({block_size} bytes), not {size} bytes"),
            )
            .on(&name));
        }
        let limits = Limits::plain(block_size).with_copy(COPY_MAX, COPY_MAX, COPY_RANGES);
        let block_size = block_size.get();
        Ok(Self { name, leaf: LeafId::fresh(), size, block_size, limits: LimitsCell::new(limits) })
    }

    fn serve(&self, mut request: Request, block_size: u32) -> Completion {
        if let Some(range) = request.op().range()
            && let Err(error) = check_range(range, self.size, block_size)
        {
            return request.complete_err(error.on(&self.name));
        }
        match request.op_mut() {
            Op::Copy(copy) if copy.method != Method::Null => {
                let error =
                    Error::new(Kind::Unsupported, format!("the null device cannot copy by {}", copy.method));
                return request.complete_err(error);
            }
            Op::Copy(copy) => {
                if let Err(error) = copy.check(Identity::Leaf { leaf: self.leaf, base: 0 }) {
                    return request.complete_err(error.on(&self.name));
                }
            }
            Op::Read { buf, .. } => buf.fill(0),
            _ => {}
        }
        request.complete_ok()
    }
}

impl Device for Null {
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
            method: Method::Null,
            scope: Scope::Null,
            align: 1,
            tail_at_eof: false,
            max_bytes: COPY_MAX.get(),
            preferred: true,
            fate: Fate::NoData,
            carries_holes: true,
        }]
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn may_wait(&self) -> bool {
        false
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        Ok(Box::new(NullQueue { device: self, done: Vec::new(), counters: Counters::default() }))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct NullQueue {
    device: Arc<Null>,
    done: Vec<Completion>,
    counters: Counters,
}

impl Queue for NullQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        let block_size = self.device.block_size;
        while let Some(request) = batch.pop_front() {
            let done = self.device.serve(request, block_size);
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

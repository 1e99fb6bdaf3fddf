//! Reads what lies on the medium, whatever the page cache holds: by an open of its own for direct I/O, which only
//! verification uses.
//!
//! The kernel writes dirty pages of a range out before it reads that range directly, and leaves clean ones where they
//! are: pages that another program has mapped cannot be dropped, and a read through the cache would be answered from
//! them.

use super::core::Core;
use super::transfer::ended_early;
use crate::block::{
    Buf, ByteRange, Call, Completion, Counters, Error, Kind, Medium, Op, Queue, Request, Result,
};
use crate::reactor::{self, CallDone, IoDone, IoOp, Port, Reactor};
use crate::sys::aligned::PAGE;
use crate::sys::ioctl;
use crate::sys::sync::lock;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use slab::Slab;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes read at once where they need a buffer of their own.
const STEP: usize = 1 << 20;
/// Requests in flight at most.
const IN_FLIGHT_MAX: usize = 16;
/// How often pages are dropped before they count as kept by somebody.
const DROPS: usize = 4;
/// Alignment that is tried where the file system does not say one.
const ALIGN: usize = PAGE;
/// File systems whose direct I/O is tried without their saying so (linux/magic.h): ext4, XFS, NFS, and Btrfs.
const TRIED: [u32; 4] = [0x0000_ef53, 0x5846_5342, 0x0000_6969, BTRFS];
/// It answers direct reads of compressed data from the cache, where that has it.
const BTRFS: u32 = 0x9123_683e;

/// The descriptor for direct I/O, and what is known of it.
struct Direct {
    fd: OwnedFd,
    /// Of the page cache's file, to look at what is cached.
    cache: Arc<OwnedFd>,
    /// In bytes.
    align: u64,
    /// The cache may answer: what it holds then counts as read through it.
    is_doubtful: bool,
    /// Bytes that the cache may have answered.
    cached: Arc<AtomicU64>,
}

/// What can be read past the cache here.
pub(crate) fn open(core: &Core) -> Result<Medium> {
    let Some(direct) = open_direct(core)? else { return Ok(Medium::Cached) };
    let Some(reactor) = reactor::current() else {
        let text = "this thread has no reactor; enter one before opening a queue";
        return Err(core.error(Kind::InvalidInput, text));
    };
    let cached = direct.cached.clone();
    let (name, size) = (core.name.clone(), core.size());
    let port = reactor.open_port_of(&core.helpers);
    let (slots, done, finished) = (Slab::new(), Vec::new(), Vec::new());
    let (direct, counters) = (Arc::new(direct), Counters::default());
    let queue = MediumQueue { name, size, direct, reactor, port, slots, done, finished, counters };
    Ok(Medium::Direct { queue: Box::new(queue), cached })
}

fn open_direct(core: &Core) -> Result<Option<Direct>> {
    let magic = rustix::fs::fstatfs(&*core.fd).map_or(0, |f| {
        let b = i128::from(f.f_type).to_le_bytes();
        u32::from_le_bytes([b[0], b[1], b[2], b[3]])
    });
    let is_device = core.backing == super::core::Backing::Block;
    let said = if is_device { core.direct_align.map(u64::from) } else { aligned_to(&core.fd) };
    let align = match said {
        Some(0) => return Ok(None),
        Some(align) if core.direct_align.is_some() => align,
        None if TRIED.contains(&magic) => ALIGN as u64,
        _ => return Ok(None),
    };
    let path = format!("/proc/self/fd/{}", core.fd.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => {
            let (cache, cached) = (core.fd.clone(), Arc::default());
            let is_doubtful = !is_device && magic == BTRFS;
            let direct = Direct { fd, cache, align, is_doubtful, cached };
            if is_doubtful {
                // Once before any read is under way; what stays is counted by each.
                direct.look(ByteRange::to(core.size()));
                direct.cached.store(0, Ordering::Relaxed);
            }
            Ok(Some(direct))
        }
        Err(error) => {
            tracing::info!(device = %core.name, %error, "no direct I/O: verified through the page cache");
            Ok(None)
        }
    }
}

/// What a file says of direct I/O: its alignment, 0 for none; `None` when it says nothing.
fn aligned_to(fd: &OwnedFd) -> Option<u64> {
    let statx = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if statx.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    let (memory, offset) = (statx.stx_dio_mem_align, statx.stx_dio_offset_align);
    Some(if memory == 0 || offset == 0 { 0 } else { memory.max(offset).into() })
}

impl Direct {
    /// Fills `out` from `offset` on; the bytes read.
    fn read(&self, out: &mut [u8], offset: u64, counters: &mut Counters) -> (u64, Result<()>) {
        let whole = ByteRange::between(offset, offset + out.len() as u64);
        if self.is_doubtful {
            self.look(whole);
        }
        if whole.is_aligned(self.align) && (out.as_ptr() as usize as u64).is_multiple_of(self.align) {
            return self.read_blocks(out, offset, counters);
        }
        let no_memory = || Error::new(Kind::NoMemory, "no memory to read past the page cache");
        let Some(mut buf) = Buf::alloc(STEP) else { return (0, Err(no_memory())) };
        let mut good = 0;
        while good < out.len() {
            let at = offset + good as u64;
            let start = at - at % self.align;
            let skip = usize::try_from(at - start).expect("less than a page");
            let wanted = (skip + out.len() - good).next_multiple_of(ALIGN).min(STEP);
            let (n, result) = self.read_blocks(&mut buf[..wanted], start, counters);
            let n = usize::try_from(n).expect("no longer than the buffer").saturating_sub(skip);
            let n = n.min(out.len() - good);
            out[good..good + n].copy_from_slice(&buf[skip..skip + n]);
            good += n;
            if result.is_err() || n == 0 {
                return (good as u64, result);
            }
        }
        (good as u64, Ok(()))
    }

    /// Reads whole blocks until `out` is full or the file ends.
    fn read_blocks(&self, out: &mut [u8], offset: u64, counters: &mut Counters) -> (u64, Result<()>) {
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
                Err(error) => return (done as u64, Err(Error::os("read failed", error))),
            }
        }
        (done as u64, Ok(()))
    }

    /// Drops what can be dropped of all of it, and counts a range of which something stays.
    fn look(&self, range: ByteRange) {
        for _ in 0..DROPS {
            if ioctl::cachestat(&*self.cache, range.offset(), range.len()).is_ok_and(|s| s.cached == 0) {
                return;
            }
            // All of it: pages go by whole folios, and a read beside this one keeps those it lies in for a moment.
            let _ = rustix::fs::fadvise(&self.cache, 0, None, rustix::fs::Advice::DontNeed);
        }
        self.cached.fetch_add(range.len(), Ordering::Relaxed);
    }
}

/// A queue that only reads.
struct MediumQueue {
    name: String,
    /// In bytes.
    size: u64,
    direct: Arc<Direct>,
    reactor: Rc<dyn Reactor>,
    port: Port,
    slots: Slab<(Request, Arc<Mutex<Carried>>)>,
    done: Vec<Completion>,
    finished: Vec<IoDone>,
    counters: Counters,
}

/// What a helper thread takes along and brings back.
struct Carried {
    buf: Buf,
    result: Result<()>,
}

impl MediumQueue {
    fn start(&mut self, mut request: Request) {
        let range = match request.op() {
            Op::Read { range, buf } if buf.len() as u64 == range.len() && range.end() <= self.size => *range,
            _ => {
                let text = "this queue only reads, and only inside the file";
                let error = Error::new(Kind::InvalidInput, text).on(&self.name);
                return self.done.push(request.complete_err(error));
            }
        };
        let carried = Arc::new(Mutex::new(Carried { buf: request.take_buf(), result: Ok(()) }));
        let (direct, shared) = (self.direct.clone(), carried.clone());
        let work = move || {
            let mut counters = Counters::default();
            let mut carried = lock(&shared);
            let (count, result) = direct.read(&mut carried.buf, range.offset(), &mut counters);
            carried.result = match result {
                Ok(()) if count < range.len() => Err(ended_early(range.offset() + count, range.end())),
                other => other,
            };
            drop(carried);
            CallDone { count, error: None, counters }
        };
        let token = self.slots.insert((request, carried));
        self.reactor.submit(self.port, token as u64, IoOp::Call(Box::new(work)));
    }
}

impl Queue for MediumQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        while self.slots.len() < IN_FLIGHT_MAX {
            let Some(request) = batch.pop_front() else { break };
            self.start(request);
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut finished = std::mem::take(&mut self.finished);
        self.reactor.complete(self.port, &mut finished);
        for io in finished.drain(..) {
            self.counters += io.counters;
            let Some((request, carried)) =
                usize::try_from(io.token).ok().and_then(|token| self.slots.try_remove(token))
            else {
                continue;
            };
            let mut carried = lock(&carried);
            let range = request.op().range().unwrap_or_default();
            let result = std::mem::replace(&mut carried.result, Ok(()));
            let result = result.map_err(|e| e.on(&self.name).at(range));
            self.counters.read_bytes += io.count;
            let buf = std::mem::take(&mut carried.buf);
            self.done.push(request.complete_with(buf, io.count, result));
        }
        self.finished = finished;
        done.append(&mut self.done);
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Drop for MediumQueue {
    fn drop(&mut self) {
        self.reactor.close_port(self.port);
    }
}

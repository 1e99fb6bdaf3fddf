//! MountWorker threads: what readers hand over. Each serves many jobs at once, as small tasks over its own queues.

use super::errno::errno;
use super::job::Job;
use super::reader::TRANSFER_MAX;
use super::shared::{IO_WORKER, MountShared, TTL_NONE, ino_of};
use super::volume::{OpenFile, Vol};
use crate::block::lazy;
use crate::block::lock::CoreLocks;
use crate::block::lock::{Claims, CopyTicket, LockedQueue, Mode, claims_of};
use crate::block::{Buf, BufPool, ByteRange, Completion, Error, Kind, Op, Result};
use crate::reactor::away::look;
use crate::reactor::local::{self, Client, Interrupt, Notify};
use crate::workers::{Started, Workbench};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Memory for payload of a worker, in bytes: address space until it is used.
const PAYLOAD: usize = 64 << 20;
/// Requests of one volume that the I/O worker serves at once, each with one buffer, and copies of one volume that a
/// copier runs at once; the rest waits in line.
const IO_MAX: usize = 48;
const COPIES_MAX: usize = 8;
/// How long zeroes that a truncation owes may stay unstored. Long enough that a program which cuts a file writes most
/// of it anew before, short enough that few are lost when this process is killed.
const STORE_AFTER: Duration = Duration::from_secs(5);
/// One buffer: a transfer, and the rest of the blocks its edges lie in.
const BUFFER: usize = TRANSFER_MAX as usize + (64 << 10);

/// A worker's own.
pub(super) struct MountWorker {
    pub(super) shared: Arc<MountShared>,
    pub(super) locks: Rc<CoreLocks>,
    clients: RefCell<Vec<Option<Client>>>,
    /// The losses of each volume's device when its client was opened, and when this worker last reported a loss.
    losses: RefCell<Vec<[Option<u64>; 2]>>,
    /// Queues whose user holds the locks already.
    bare: RefCell<Vec<Option<Client>>>,
    pool: BufPool,
    running: Cell<usize>,
    /// The same by volume.
    busy: RefCell<Vec<usize>>,
    ended: Notify,
}

/// Serves `jobs[index]` of the mount until the mount stops. `started` is used when it can take jobs.
pub(super) fn run(shared: &Arc<MountShared>, index: usize, started: Started) -> Result<()> {
    // It serves all volumes: no call that may wait for one of them is made here.
    let Workbench { local, locks, .. } = Workbench::new(shared.options.engine, false)?;
    let none = || shared.volumes.iter().map(|_| None).collect();
    let worker = Rc::new(MountWorker {
        shared: shared.clone(),
        locks,
        clients: RefCell::new(none()),
        losses: RefCell::new(shared.volumes.iter().map(|v| [v.device.cache_losses(); 2]).collect()),
        bare: RefCell::new(none()),
        pool: BufPool::new(PAYLOAD, BUFFER)
            .filter(|pool| pool.chunk_bytes() >= BUFFER)
            .ok_or_else(|| Error::new(Kind::NoMemory, "no memory for the transfers of a worker"))?,
        running: Cell::new(0),
        busy: RefCell::new(vec![0; shared.volumes.len()]),
        ended: Notify::default(),
    });
    shared.jobs[index].inbox.open(local.waker());
    let (taking, from) = (worker.clone(), shared.clone());
    let most = if index == IO_WORKER { IO_MAX } else { COPIES_MAX };
    local.on_turn(move || {
        let mut busy = false;
        // Jobs of a volume that does not answer keep no other waiting.
        let has_room = |job: &Job| job.volumes().all(|volume| taking.busy.borrow()[volume] < most);
        while let Some(job) = from.jobs[index].inbox.take(has_room) {
            busy = true;
            taking.running.set(taking.running.get() + 1);
            let volumes = job.volumes();
            job.volumes().for_each(|volume| taking.busy.borrow_mut()[volume] += 1);
            let (worker, from) = (taking.clone(), from.clone());
            drop(local::spawn(async move {
                worker.clone().serve(job).await;
                volumes.for_each(|volume| worker.busy.borrow_mut()[volume] -= 1);
                from.jobs[index].ended();
                worker.running.set(worker.running.get() - 1);
                worker.ended.notify_one();
            }));
        }
        busy
    });
    started.ready();
    let stop: Interrupt = shared.stop.clone();
    local.block_on(async {
        stop.wait().await;
        while worker.running.get() > 0 {
            worker.ended.notified().await;
        }
        // Queues are closed while the executor still runs.
        worker.clients.borrow_mut().clear();
        worker.bare.borrow_mut().clear();
    });
    Ok(())
}

fn nothing_done() -> Error {
    Error::new(Kind::Io, "the device did nothing and reported no error")
}

/// The whole of a request was done, or why not.
fn whole(done: Completion, len: u64) -> Result<()> {
    done.result?;
    if done.good_bytes < len {
        return Err(Error::new(Kind::Io, "the device did less than asked and reported no error"));
    }
    Ok(())
}

impl MountWorker {
    pub(super) fn volume(&self, volume: usize) -> &Vol {
        &self.shared.volumes[volume]
    }

    /// This worker's locked queue of a volume.
    pub(super) fn client(&self, volume: usize) -> Result<Client> {
        let mut clients = self.clients.borrow_mut();
        if let Some(client) = &clients[volume] {
            return Ok(client.clone());
        }
        let device = self.volume(volume).device.clone();
        self.losses.borrow_mut()[volume][0] = device.cache_losses();
        let queue = LockedQueue::open(device.clone(), self.locks.clone())?;
        let client = Client::over(device, Box::new(queue));
        clients[volume] = Some(client.clone());
        Ok(client)
    }

    fn bare(&self, volume: usize) -> Result<Client> {
        let mut bare = self.bare.borrow_mut();
        if let Some(client) = &bare[volume] {
            return Ok(client.clone());
        }
        let client = Client::open(self.volume(volume).device.clone())?;
        bare[volume] = Some(client.clone());
        Ok(client)
    }

    fn buffer(&self, len: u64) -> Result<Buf> {
        let none = || Error::new(Kind::NoMemory, "no memory for a transfer");
        let len = usize::try_from(len).map_err(|_| none())?;
        let pooled = if len <= BUFFER { self.pool.take(len) } else { None };
        pooled.or_else(|| Buf::alloc(len)).ok_or_else(none)
    }

    async fn serve(self: Rc<Self>, job: Job) {
        match job {
            Job::Read { volume, range, reply } => match self.read(volume, range).await {
                Ok((buf, skip)) => {
                    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
                    self.volume(volume).was_read(range.len());
                    reply.data(&buf[skip..skip + len]);
                }
                Err(error) => reply.error(self.told("read", volume, &error)),
            },
            Job::Write { volume, range, buf, durable, whole, reply } => {
                match self.write(volume, range, buf, durable).await {
                    Ok(written) if whole && written < range.len() => reply.error(fuser::Errno::EIO),
                    Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
                    Err(error) => reply.error(self.told("write", volume, &error)),
                }
            }
            Job::Flush { volume, file, reply } => match self.flush_for(volume, file.as_deref()).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(self.told("flush", volume, &error)),
            },
            Job::Zero { volume, range, may_unmap, durable, reply } => {
                let mut done = self.zero(volume, range, may_unmap, false).await;
                if done.is_ok() && durable {
                    done = self.flush(volume).await;
                }
                match done {
                    Ok(()) => reply.ok(),
                    Err(error) => reply.error(self.told("zero", volume, &error)),
                }
            }
            Job::Truncate { volume, size, reply } => match self.truncate(volume, size).await {
                Ok(()) => {
                    let (vol, ino) = (self.volume(volume), ino_of(volume));
                    // The kernel drops its pages past the size in the answer, so that is the one that was asked for;
                    // the real one it gets when it asks again.
                    let mut attr = vol.attr(ino);
                    attr.size = size;
                    reply.attr(&TTL_NONE, &attr);
                    if size != vol.size() {
                        self.shared.refresh(vol);
                    }
                }
                Err(error) => reply.error(self.told("truncate", volume, &error)),
            },
            Job::Store { volume } => {
                // Whoever asked for the zeroes has gone; a flush that fails tells the next who asks for one.
                if lazy::any(&*self.volume(volume).device)
                    && let Err(error) = self.flush(volume).await
                {
                    self.told("store the zeroes of", volume, &error);
                }
            }
            Job::Seek { volume, from, data, reply } => match self.seek(volume, from, data).await {
                Ok(Some(at)) => reply.offset(at.cast_signed()),
                Ok(None) => reply.error(fuser::Errno::ENXIO),
                Err(error) => reply.error(self.told("look for holes in", volume, &error)),
            },
            Job::Copy(job) => self.copy(job).await,
            Job::Ioctl(job) => self.ioctl(*job).await,
            Job::FlushAll(done) => {
                // All at once: one that does not answer keeps no other from being flushed.
                let volumes = (0..self.shared.volumes.len()).filter(|&v| !self.volume(v).read_only);
                let flushes: Vec<_> = volumes
                    .map(|volume| {
                        let this = self.clone();
                        let flushed = async move {
                            let flushed = this.flush(volume).await;
                            if let Err(error) = &flushed {
                                this.told("flush", volume, error);
                            }
                            flushed
                        };
                        local::spawn(flushed)
                    })
                    .collect();
                let mut all = Ok(());
                for flushed in flushes {
                    all = all.and(flushed.await);
                }
                // Whoever asked may have stopped waiting.
                let _ = done.send(all);
            }
        }
    }

    /// The error number of an error, which is logged: the caller gets nothing but the number.
    pub(super) fn told(&self, doing: &str, volume: usize, error: &Error) -> fuser::Errno {
        let number = errno(error);
        tracing::warn!(volume = &*self.volume(volume).name, ?error, "cannot {doing}");
        number
    }

    /// Looks for data or a hole. What was stored through a mapping the kernel has not told us of: it is asked to.
    async fn seek(&self, volume: usize, from: u64, data: bool) -> Result<Option<u64>> {
        let vol = self.volume(volume);
        let rest = ByteRange::between(from, vol.size());
        if rest.is_empty() {
            return Ok(None);
        }
        self.shared.notices.forget(vec![(ino_of(volume), rest)]).wait().await;
        let shared = self.shared.clone();
        look(&vol.device, move |_| shared.volumes[volume].seek(from, data)).await?
    }

    /// Reads a range; the buffer, and where in it the range begins.
    async fn read(&self, volume: usize, range: ByteRange) -> Result<(Buf, usize)> {
        let covered = self.volume(volume).cover(range);
        let skip = usize::try_from(range.offset() - covered.offset()).unwrap_or(usize::MAX);
        let op = Op::Read { range: covered, buf: self.buffer(covered.len())? };
        let mut done = self.client(volume)?.submit(op).await;
        let buf = std::mem::take(&mut done.buf);
        whole(done, covered.len())?;
        Ok((buf, skip))
    }

    /// Writes a range; the bytes written, fewer than asked for only when an error follows them.
    async fn write(&self, volume: usize, range: ByteRange, buf: Buf, durable: bool) -> Result<u64> {
        let vol = self.volume(volume);
        let written = if vol.cover(range) == range {
            let done = self.client(volume)?.submit(Op::Write { range, buf, fua: durable }).await;
            let good = done.good_bytes.min(range.len());
            match done.result {
                Err(error) if good == 0 => return Err(error),
                Err(error) => {
                    self.told("write the rest to", volume, &error);
                    good
                }
                Ok(()) if good == 0 => return Err(nothing_done()),
                Ok(()) => good,
            }
        } else {
            self.write_ragged(volume, range, &buf, durable).await?;
            range.len()
        };
        vol.touch();
        if written > 0 {
            vol.reaches(range.offset() + written);
            vol.was_written(written);
        }
        Ok(written)
    }

    /// Writes a range whose edges lie inside blocks: the blocks are read, changed and written under locks that keep all
    /// others off them.
    async fn write_ragged(&self, volume: usize, range: ByteRange, bytes: &[u8], durable: bool) -> Result<()> {
        if lazy::too_many(&*self.volume(volume).device) {
            self.flush(volume).await?;
        }
        let held = self.hold(volume, self.volume(volume).cover(range)).await?;
        let done = self.change(volume, range, Some(bytes), durable).await;
        self.locks.end_copy(held);
        done
    }

    /// Changes the bytes of a range that is held, or zeroes them (`None`), by whole blocks.
    async fn change(
        &self,
        volume: usize,
        range: ByteRange,
        bytes: Option<&[u8]>,
        durable: bool,
    ) -> Result<()> {
        let vol = self.volume(volume);
        let covered = vol.cover(range);
        let client = self.bare(volume)?;
        let mut buf = self.buffer(covered.len())?;
        let block = vol.block;
        let mut edges: smallvec::SmallVec<[ByteRange; 2]> = smallvec::SmallVec::new();
        let first = covered.prefix(block);
        let last = covered.after(covered.len() - block.min(covered.len()));
        if range.offset() != covered.offset() {
            edges.push(first);
        }
        if range.end() != covered.end() && !(edges.len() == 1 && first == last) {
            edges.push(last);
        }
        for edge in edges {
            let mut done = client.submit(Op::Read { range: edge, buf: self.buffer(edge.len())? }).await;
            let old = std::mem::take(&mut done.buf);
            whole(done, edge.len())?;
            let at = usize::try_from(edge.offset() - covered.offset()).unwrap_or(usize::MAX);
            buf[at..at + old.len()].copy_from_slice(&old);
        }
        let at = usize::try_from(range.offset() - covered.offset()).unwrap_or(usize::MAX);
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        match bytes {
            Some(bytes) => buf[at..at + len].copy_from_slice(&bytes[..len]),
            None => buf[at..at + len].fill(0),
        }
        let done = client.submit(Op::Write { range: covered, buf, fua: durable }).await;
        whole(done, covered.len())
    }

    /// Keeps all others off a range.
    async fn hold(&self, volume: usize, range: ByteRange) -> Result<CopyTicket> {
        let mut claims = Claims::new();
        claims_of(&self.volume(volume).device, range, Mode::Exclusive, &mut claims)?;
        let ticket = self.locks.begin_copy(claims);
        poll_fn(|cx| ticket.poll_granted(cx)).await;
        Ok(ticket)
    }

    /// Makes what was written durable, for callers without an open file that errors are reported through.
    pub(super) async fn flush(&self, volume: usize) -> Result<()> {
        self.flush_for(volume, None).await
    }

    /// The same for an open file. When a target was lost with bytes that were not flushed, and came back, every file
    /// that was open then is told once; the volume goes on.
    async fn flush_for(&self, volume: usize, file: Option<&OpenFile>) -> Result<()> {
        let device = &self.volume(volume).device;
        let mut result = self.client(volume)?.submit(Op::Flush).await.result;
        if result.is_err() && device.cache_losses() != self.losses.borrow()[volume][0] {
            // A queue opened before the loss cannot know what is durable.
            self.clients.borrow_mut()[volume] = None;
            result = self.client(volume)?.submit(Op::Flush).await.result;
        }
        result?;
        let now = device.cache_losses();
        let told = &self.volume(volume).told;
        let untold = match file {
            Some(file) => file.is_untold(now),
            None => {
                let before = std::mem::replace(&mut self.losses.borrow_mut()[volume][1], now);
                before != now && now > Some(told.load(Ordering::Acquire))
            }
        };
        if untold {
            told.fetch_max(now.unwrap_or(0), Ordering::AcqRel);
            let text = "the connection to the target was lost with bytes written here and not yet flushed: they may \
                be lost";
            return Err(Error::new(Kind::Io, text).on(device.name()));
        }
        Ok(())
    }

    /// Makes a range read as zero, all of it at once for every reader.
    async fn zero(&self, volume: usize, range: ByteRange, may_unmap: bool, lazy: bool) -> Result<()> {
        let vol = self.volume(volume);
        let held = self.hold(volume, vol.cover(range)).await?;
        let done = self.zero_held(volume, range, may_unmap, lazy).await;
        self.locks.end_copy(held);
        // Of what failed some may be zeroed.
        vol.touch();
        done
    }

    async fn zero_held(&self, volume: usize, range: ByteRange, may_unmap: bool, lazy: bool) -> Result<()> {
        let vol = self.volume(volume);
        let start = range.offset().next_multiple_of(vol.block).min(range.end());
        // The end of the device needs no rest of a block after it.
        let rest = if range.end() == vol.capacity { 0 } else { range.end() % vol.block };
        let end = (range.end() - rest).max(start);
        for edge in [ByteRange::between(range.offset(), start), ByteRange::between(end, range.end())] {
            if !edge.is_empty() {
                self.change(volume, edge, None, false).await?;
            }
        }
        let middle = ByteRange::between(start, end);
        if middle.is_empty() {
            return Ok(());
        }
        let client = self.bare(volume)?;
        let done = client.submit(Op::WriteZeroes { range: middle, may_unmap, lazy }).await;
        if !done.result.as_ref().is_err_and(|e| e.kind() == Kind::Unsupported) {
            return whole(done, middle.len());
        }
        let mut rest = middle;
        while !rest.is_empty() {
            let piece = rest.prefix(u64::from(TRANSFER_MAX));
            self.change(volume, piece, None, false).await?;
            rest = rest.after(piece.len());
        }
        Ok(())
    }

    /// Has what the volume owes stored after a while: until then it is lost when this process is killed.
    fn store_soon(&self, volume: usize) {
        let vol = self.volume(volume);
        if !lazy::any(&*vol.device) || vol.is_storing.swap(true, Ordering::Relaxed) {
            return;
        }
        // It ends with this thread's executor, and a mount that ends stores all.
        let shared = self.shared.clone();
        drop(local::spawn(async move {
            local::sleep(STORE_AFTER).await;
            shared.volumes[volume].is_storing.store(false, Ordering::Relaxed);
            shared.io().leave(Job::Store { volume });
        }));
    }

    /// The bytes from `size` on read as zero.
    async fn truncate(&self, volume: usize, size: u64) -> Result<()> {
        let vol = self.volume(volume);
        if self.shared.options.is_resizable() {
            // From the smaller size on: what lies past the end reads as zero already, and stays so.
            vol.set_size(size.min(vol.size()));
        }
        let rest = ByteRange::between(size, vol.capacity);
        if !rest.is_empty() {
            self.zero(volume, rest, true, true).await?;
            self.store_soon(volume);
        }
        if self.shared.options.is_resizable() {
            vol.set_size(size);
        }
        Ok(())
    }
}

//! One io_uring, with every operation's memory owned by the ring until the kernel is done with it.

use super::aligned::{Chunk, RegionId};
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Longest transfer of one operation in bytes, as in the kernel (MAX_RW_COUNT); longer ones are done short.
const TRANSFER_MAX: usize = 0x7FFF_F000;
/// Submissions that fit into the ring; more wait in a queue of their own.
const ENTRIES: u32 = 128;
/// Mappings that can be registered, and that are watched for it.
const REGIONS: u32 = 16;
/// `user_data` of a cancellation, whose own completion nobody needs.
const CANCEL: u64 = u64::MAX;

/// What the ring is asked to do. Owns what the kernel uses meanwhile.
pub enum Entry {
    /// Read `len` bytes at `offset` into the front of `chunk`.
    Read {
        /// Kept open until completion.
        file: Arc<OwnedFd>,
        /// Bytes from the start of the file.
        offset: u64,
        /// Comes back with the completion.
        chunk: Chunk,
        /// Bytes of it.
        len: usize,
    },
    /// Write the first `len` bytes of `chunk` at `offset`.
    Write {
        /// Kept open until completion.
        file: Arc<OwnedFd>,
        /// Bytes from the start of the file.
        offset: u64,
        /// Comes back with the completion.
        chunk: Chunk,
        /// Bytes of it.
        len: usize,
        /// `RWF_DSYNC`.
        dsync: bool,
    },
    /// Wait until `file` can be read, or written. Completes once.
    Ready {
        /// Kept open until completion.
        file: Arc<OwnedFd>,
        /// True: until it can be written.
        write: bool,
    },
}

/// The end of an [`Entry`].
pub struct Done {
    /// The number it was pushed with.
    pub token: u64,
    /// Bytes done, or the error.
    pub result: io::Result<usize>,
    /// The memory, for a read or write.
    pub chunk: Option<Chunk>,
}

/// What the kernel may use until the completion arrives.
struct Slot {
    generation: u32,
    token: u64,
    chunk: Option<Chunk>,
    poll: bool,
    _file: Arc<OwnedFd>,
}

/// A mapping seen in operations.
struct Region {
    id: RegionId,
    /// Bytes moved through it so far.
    used_bytes: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Watched,
    Registered,
    Refused,
}

/// Most threads that the kernel starts for operations on files and disks.
const WORKERS_MAX: u32 = 2048;

/// One io_uring of one thread.
///
/// Dropping it waits for every operation that the kernel still has.
pub struct Ring {
    ring: IoUring,
    slots: Slab<Slot>,
    generation: u32,
    backlog: VecDeque<squeue::Entry>,
    /// Position = index in the kernel's table of fixed buffers.
    regions: Vec<Region>,
    /// `None`: not asked yet. `Some(false)`: the kernel will not register buffers; plain operations do.
    table: Option<bool>,
    /// Only the thread that made the ring may enter it.
    _thread: PhantomData<*const ()>,
}

/// Asks the kernel whether io_uring may be used here, without making a ring: a set-up of no entries is answered
/// `EINVAL` where it may, `EPERM` or `ENOSYS` where not.
pub fn probe() -> io::Result<()> {
    let mut params = [0u8; 120]; // struct io_uring_params
    // SAFETY: `params` is as large as the kernel's structure and lives across the call; a call with 0 entries makes
    // nothing.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, params.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    if fd == -1 && error.raw_os_error() != Some(libc::EINVAL) {
        return Err(error);
    }
    Ok(())
}

impl Ring {
    /// A ring for the calling thread.
    ///
    /// Errors: those of `io_uring_setup`; `ENOSYS` when the kernel's io_uring is older than 5.11 (no timed waits).
    pub fn new() -> io::Result<Self> {
        let ring = match IoUring::builder()
            .setup_clamp()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES)
        {
            // Linux before 6.1 does not know the flags.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_clamp().build(ENTRIES)?
            }
            other => other?,
        };
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        // What cannot be done at once goes to threads of the kernel. All devices share them, so that a few that hang
        // must not use them up. Linux before 5.15 has a fixed number.
        let _ = ring.submitter().register_iowq_max_workers(&mut [WORKERS_MAX, 0]);
        Ok(Self {
            ring,
            slots: Slab::new(),
            generation: 0,
            backlog: VecDeque::new(),
            regions: Vec::new(),
            table: None,
            _thread: PhantomData,
        })
    }

    /// Operations whose completion has not been reaped, pushed or started.
    pub fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Queues an operation; [`Ring::enter`] starts it. Its completion carries `token`.
    pub fn push(&mut self, token: u64, entry: Entry) {
        self.generation = self.generation.wrapping_add(1) & 0x7FFF_FFFF; // never CANCEL
        let (sqe, chunk, file, poll) = match entry {
            Entry::Read { file, offset, mut chunk, len } => {
                let (fd, len) = (types::Fd(file.as_raw_fd()), transfer(len, &chunk));
                let (index, to) = (self.fixed(&chunk, len), chunk.as_mut_ptr());
                let sqe = match index {
                    Some(i) => opcode::ReadFixed::new(fd, to, len, i).offset(offset).build(),
                    None => opcode::Read::new(fd, to, len).offset(offset).build(),
                };
                (sqe, Some(chunk), file, false)
            }
            Entry::Write { file, offset, mut chunk, len, dsync } => {
                let (fd, len) = (types::Fd(file.as_raw_fd()), transfer(len, &chunk));
                let (index, from) = (self.fixed(&chunk, len), chunk.as_mut_ptr());
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                let sqe = match index {
                    Some(i) => {
                        opcode::WriteFixed::new(fd, from, len, i).offset(offset).rw_flags(flags).build()
                    }
                    None => opcode::Write::new(fd, from, len).offset(offset).rw_flags(flags).build(),
                };
                (sqe, Some(chunk), file, false)
            }
            Entry::Ready { file, write } => {
                let event = if write { libc::POLLOUT } else { libc::POLLIN };
                let events = u32::from(event.unsigned_abs());
                (opcode::PollAdd::new(types::Fd(file.as_raw_fd()), events).build(), None, file, true)
            }
        };
        let generation = self.generation;
        let key = self.slots.insert(Slot { generation, token, chunk, poll, _file: file });
        self.queue(sqe.user_data(user_data(generation, key)));
    }

    /// Ends every [`Entry::Ready`]: they would never end by themselves; everything else does.
    pub fn cancel_polls(&mut self) {
        let polls: Vec<u64> =
            self.slots.iter().filter(|(_, s)| s.poll).map(|(k, s)| user_data(s.generation, k)).collect();
        for poll in polls {
            self.queue(opcode::AsyncCancel::new(poll).build().user_data(CANCEL));
        }
    }

    fn queue(&mut self, sqe: squeue::Entry) {
        self.backlog.push_back(sqe);
        self.fill();
    }

    /// Moves the backlog into the ring as far as it fits.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(sqe) = self.backlog.front() {
            // SAFETY: the memory and the file that the entry names are owned by its slot, which is freed only when the
            // completion has been reaped (or never: see Drop); a chunk's bytes do not move with the `Chunk`.
            if unsafe { queue.push(sqe) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Starts what was pushed; with `wait`, returns when there is a completion to reap or `timeout` has passed (`None`:
    /// no limit) or a signal came.
    pub fn enter(&mut self, wait: bool, timeout: Option<Duration>) -> io::Result<()> {
        loop {
            self.fill();
            let (waiting, wakeful) = {
                let queue = self.ring.submission();
                (queue.len(), queue.taskrun() || queue.cq_overflow())
            };
            // The last entries of a long backlog go with the wait.
            let last = self.backlog.is_empty();
            if !wait && last && waiting == 0 && !wakeful {
                return Ok(());
            }
            let entered = if wait && last { self.enter_and_wait(timeout) } else { self.ring.submit() };
            match entered {
                Ok(_) if last => return Ok(()),
                Ok(_) => {}
                Err(e) => match e.raw_os_error() {
                    Some(libc::ETIME | libc::EINTR) => return Ok(()),
                    // Completions must be reaped before more is taken (EBUSY), or memory is short for now (EAGAIN):
                    // with something to reap, the caller does that and comes again.
                    Some(libc::EBUSY | libc::EAGAIN) if !self.ring.completion().is_empty() => return Ok(()),
                    Some(libc::EBUSY | libc::EAGAIN) if self.ring.submission().len() < self.slots.len() => {
                        self.enter_and_wait(Some(timeout.unwrap_or(RETRY).min(RETRY))).or_else(timed_out)?;
                        return Ok(());
                    }
                    _ => return Err(e),
                },
            }
        }
    }

    fn enter_and_wait(&self, timeout: Option<Duration>) -> io::Result<usize> {
        let submitter = self.ring.submitter();
        match timeout {
            None => submitter.submit_and_wait(1),
            Some(t) => {
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&types::Timespec::from(t)))
            }
        }
    }

    /// Moves what has completed to `out`, without a system call.
    pub fn reap(&mut self, out: &mut Vec<Done>) {
        for cqe in self.ring.completion() {
            if cqe.user_data() == CANCEL {
                continue;
            }
            let key = usize::try_from(cqe.user_data() & 0xFFFF_FFFF).expect("32 bits");
            let known = self.slots.get(key).is_some_and(|s| user_data(s.generation, key) == cqe.user_data());
            assert!(known, "the kernel completed an operation twice");
            let slot = self.slots.remove(key);
            let result =
                usize::try_from(cqe.result()).map_err(|_| io::Error::from_raw_os_error(-cqe.result()));
            out.push(Done { token: slot.token, result, chunk: slot.chunk });
        }
    }

    /// The fixed-buffer index of the mapping behind `chunk`, when it is registered.
    ///
    /// A mapping is registered once operations have moved as many bytes as it is long: registering touches and pins
    /// every page of it, which a short run would pay for nothing.
    fn fixed(&mut self, chunk: &Chunk, len: u32) -> Option<u16> {
        if self.table == Some(false) {
            return None;
        }
        let index = match self.regions.iter().position(|r| r.id.holds(chunk)) {
            Some(index) => index,
            None => {
                let region = Region { id: chunk.region_id(), used_bytes: 0, state: State::Watched };
                match self.regions.iter().position(|r| r.id.is_gone()) {
                    Some(old) => {
                        // Its index may still stand for the pages of the mapping that is gone; it is used
                        // again only after `register` has replaced it.
                        self.regions[old] = region;
                        old
                    }
                    None if self.regions.len() < REGIONS as usize => {
                        self.regions.push(region);
                        self.regions.len() - 1
                    }
                    None => return None,
                }
            }
        };
        let region = &mut self.regions[index];
        region.used_bytes = region.used_bytes.saturating_add(len as usize);
        if region.state == State::Watched && region.used_bytes >= chunk.region().1 {
            let state = if self.register(index, chunk) { State::Registered } else { State::Refused };
            self.regions[index].state = state;
        }
        (self.regions[index].state == State::Registered)
            .then(|| u16::try_from(index).expect("at most REGIONS"))
    }

    fn register(&mut self, index: usize, chunk: &Chunk) -> bool {
        let submitter = self.ring.submitter();
        let table = *self.table.get_or_insert_with(|| submitter.register_buffers_sparse(REGIONS).is_ok());
        if !table {
            return false;
        }
        let (start, len) = chunk.region();
        let whole = [libc::iovec { iov_base: start as *mut libc::c_void, iov_len: len }];
        let index = u32::try_from(index).expect("at most REGIONS");
        // SAFETY: the mapping is alive now (`chunk` is part of it), and the kernel pins its pages. After it is unmapped
        // the index is not used: `RegionId` never takes a later mapping at the same address for this one.
        unsafe { submitter.register_buffers_update(index, &whole, None) }.is_ok()
    }
}

/// How long a full kernel is given before it is asked again.
const RETRY: Duration = Duration::from_millis(10);

fn timed_out(e: io::Error) -> io::Result<usize> {
    match e.raw_os_error() {
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(0),
        _ => Err(e),
    }
}

fn user_data(generation: u32, key: usize) -> u64 {
    u64::from(generation) << 32
        | u64::from(u32::try_from(key).expect("far fewer than 2^32 operations fit in memory"))
}

/// Bytes of one transfer: never beyond the chunk.
fn transfer(len: usize, chunk: &Chunk) -> u32 {
    assert!(len <= chunk.len(), "a transfer of {len} bytes does not fit its memory of {} bytes", chunk.len());
    u32::try_from(len.min(TRANSFER_MAX)).expect("below 2^31")
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.cancel_polls();
        let mut done = Vec::new();
        while !self.slots.is_empty() {
            if self.enter(true, None).is_err() {
                // The kernel may still write into this memory: never free it.
                Box::leak(Box::new(std::mem::take(&mut self.slots)));
                return;
            }
            self.reap(&mut done);
            done.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_mapping_in_use_is_registered_and_a_new_one_is_not_taken_for_it() {
        let Ok(mut ring) = Ring::new() else {
            return eprintln!("SKIPPED registered mappings: no io_uring here");
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let file = Arc::new(OwnedFd::from(file));
        // More rounds than the table has places: those of mappings that are gone are used again.
        for round in 0..2 * REGIONS as usize {
            let mut chunks = Chunk::many(2, 4096).unwrap();
            for turn in 0..4u64 {
                let chunk = chunks.pop().unwrap();
                ring.push(turn, Entry::Read { file: file.clone(), offset: 4096, chunk, len: 4096 });
                let mut done = Vec::new();
                while done.is_empty() {
                    ring.enter(true, None).unwrap();
                    ring.reap(&mut done);
                }
                let done = done.pop().unwrap();
                assert_eq!((done.token, done.result.unwrap()), (turn, 4096));
                let mut chunk = done.chunk.unwrap();
                assert!(chunk.as_slice().iter().all(|&b| b == 7));
                chunk.as_mut_slice().fill(0);
                chunks.insert(0, chunk);
            }
            let states: Vec<_> =
                ring.regions.iter().filter(|r| r.id.holds(&chunks[0])).map(|r| r.state).collect();
            if states == [State::Refused] {
                return eprintln!("SKIPPED registered mappings: the kernel refuses them here");
            }
            assert!(states == [State::Registered], "round {round}: used twice over and not registered");
        }
        assert_eq!(ring.in_flight(), 0);
    }
}

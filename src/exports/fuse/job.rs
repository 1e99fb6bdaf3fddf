//! What readers hand over to workers.

use super::abi::{Asked, Call};
use super::volume::OpenFile;
use crate::block::{Buf, ByteRange, Result};
use crate::workers::Inbox;
use fuser::{ReplyAttr, ReplyData, ReplyEmpty, ReplyIoctl, ReplyLseek, ReplyWrite};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

/// A request that was handed over, with the means to answer it.
pub(super) enum Job {
    Read {
        volume: usize,
        range: ByteRange,
        reply: ReplyData,
    },
    /// `whole`: the kernel ignores the count, so anything less is an error.
    Write {
        volume: usize,
        range: ByteRange,
        buf: Buf,
        durable: bool,
        whole: bool,
        reply: ReplyWrite,
    },
    Flush {
        volume: usize,
        /// Whose bytes.
        file: Option<Arc<OpenFile>>,
        reply: ReplyEmpty,
    },
    Zero {
        volume: usize,
        range: ByteRange,
        may_unmap: bool,
        durable: bool,
        reply: ReplyEmpty,
    },
    Truncate {
        volume: usize,
        size: u64,
        reply: ReplyAttr,
    },
    Seek {
        volume: usize,
        from: u64,
        data: bool,
        reply: ReplyLseek,
    },
    /// Stores what a volume owes.
    Store {
        volume: usize,
    },
    Copy(CopyJob),
    Ioctl(Box<IoctlJob>),
    /// Flushes every volume.
    FlushAll(mpsc::Sender<Result<()>>),
}

impl Job {
    /// The volumes it uses.
    pub(super) fn volumes(&self) -> impl Iterator<Item = usize> + use<> {
        let (one, other) = match self {
            Self::Read { volume, .. }
            | Self::Write { volume, .. }
            | Self::Flush { volume, .. }
            | Self::Zero { volume, .. }
            | Self::Truncate { volume, .. }
            | Self::Seek { volume, .. }
            | Self::Store { volume, .. } => (Some(*volume), None),
            Self::Copy(job) => (Some(job.ends.dest), Some(job.ends.source)),
            Self::Ioctl(job) => (Some(job.dest), Some(job.source)),
            Self::FlushAll(_) => (None, None),
        };
        let other = other.filter(|_| one != other);
        one.into_iter().chain(other)
    }
}

/// Jobs for one worker.
#[derive(Default)]
pub(super) struct JobInbox {
    pub(super) inbox: Inbox<Job>,
    /// Jobs left and not ended.
    load: AtomicUsize,
}

impl JobInbox {
    /// Leaves a job; once the worker has stopped it is dropped, and its caller gets an I/O error.
    pub(super) fn leave(&self, job: Job) {
        self.load.fetch_add(1, Ordering::Relaxed);
        if !self.inbox.send(job) {
            self.load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A job that was taken has ended.
    pub(super) fn ended(&self) {
        self.load.fetch_sub(1, Ordering::Release);
    }

    /// Jobs left and not ended.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Acquire)
    }

    /// Drops the jobs that are left, and all that come later.
    pub(super) fn close(&self) {
        self.inbox.close();
    }
}

/// A range of one volume to a place on another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ends {
    pub(super) source: usize,
    pub(super) from: ByteRange,
    pub(super) dest: usize,
    pub(super) to: u64,
}

impl Ends {
    pub(super) fn dest_range(&self) -> ByteRange {
        ByteRange::between(self.to, self.to + self.from.len())
    }
}

/// A `copy_file_range` that was handed over.
pub(super) struct CopyJob {
    pub(super) ends: Ends,
    /// How much there is to copy from where it begins, in bytes: more than one answer copies.
    pub(super) most: u64,
    pub(super) durable: bool,
    pub(super) reply: ReplyWrite,
}

/// A checked ioctl.
pub(super) struct IoctlJob {
    pub(super) asked: Asked,
    pub(super) argument: Vec<u8>,
    pub(super) call: Call,
    pub(super) source: usize,
    pub(super) dest: usize,
    pub(super) durable: bool,
    pub(super) reply: ReplyIoctl,
}

//! Plain numbers per queue, added up when asked.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// A system call worth counting, under the name `strace -c` prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(usize)]
#[allow(missing_docs)] // each is the call of that name
pub enum Call {
    Preadv2,
    Pread64,
    Pwrite64,
    Pwritev2,
    CopyFileRange,
    /// `ioctl(FICLONERANGE)`.
    Ficlonerange,
    Fallocate,
    Lseek,
    Fsync,
    Fdatasync,
    /// An operation handed to the ring: not a system call of its own.
    RingRead,
    RingWrite,
    RingFsync,
    Recvfrom,
    Recvmsg,
    Sendto,
    Sendmsg,
}

impl Call {
    /// How many kinds there are.
    pub const COUNT: usize = 17;

    /// Every kind, in order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Preadv2,
        Self::Pread64,
        Self::Pwrite64,
        Self::Pwritev2,
        Self::CopyFileRange,
        Self::Ficlonerange,
        Self::Fallocate,
        Self::Lseek,
        Self::Fsync,
        Self::Fdatasync,
        Self::RingRead,
        Self::RingWrite,
        Self::RingFsync,
        Self::Recvfrom,
        Self::Recvmsg,
        Self::Sendto,
        Self::Sendmsg,
    ];

    /// The name in a receipt.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Preadv2 => "preadv2",
            Self::Pread64 => "pread64",
            Self::Pwrite64 => "pwrite64",
            Self::Pwritev2 => "pwritev2",
            Self::CopyFileRange => "copy_file_range",
            Self::Ficlonerange => "ioctl_ficlonerange",
            Self::Fallocate => "fallocate",
            Self::Lseek => "lseek",
            Self::Fsync => "fsync",
            Self::Fdatasync => "fdatasync",
            Self::RingRead => "io_uring_read",
            Self::RingWrite => "io_uring_write",
            Self::RingFsync => "io_uring_fsync",
            Self::Recvfrom => "recvfrom",
            Self::Recvmsg => "recvmsg",
            Self::Sendto => "sendto",
            Self::Sendmsg => "sendmsg",
        }
    }
}

/// What a queue (or a device's slow paths) did since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests completed without error.
    pub requests: u64,
    /// Requests completed with an error.
    pub errors: u64,
    /// Bytes read into buffers of this process.
    pub read_bytes: u64,
    /// Bytes written from buffers of this process.
    pub written_bytes: u64,
    /// Bytes sent to a peer over a network, headers included, opening connections apart.
    pub wire_sent_bytes: u64,
    /// Bytes received from it, likewise.
    pub wire_received_bytes: u64,
    /// System calls made, by [`Call`].
    pub calls: [u64; Call::COUNT],
}

impl Counters {
    /// Counts one call.
    pub fn count(&mut self, call: Call) {
        self.calls[call as usize] += 1;
    }

    /// The calls made at least once, by name: how a receipt lists them.
    pub fn calls_by_name(&self) -> BTreeMap<&'static str, u64> {
        Call::ALL.iter().map(|&c| (c.name(), self.calls[c as usize])).filter(|&(_, n)| n > 0).collect()
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        self.wire_sent_bytes += other.wire_sent_bytes;
        self.wire_received_bytes += other.wire_received_bytes;
        for (mine, theirs) in self.calls.iter_mut().zip(other.calls) {
            *mine += theirs;
        }
    }
}

impl Serialize for Counters {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.calls_by_name().serialize(s)
    }
}

/// From the names and numbers that are written; bytes on the wire stand elsewhere in a receipt.
impl<'de> Deserialize<'de> for Counters {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut counters = Self::default();
        for (name, times) in BTreeMap::<String, u64>::deserialize(d)? {
            let call = Call::ALL.into_iter().find(|call| call.name() == name);
            let call =
                call.ok_or_else(|| serde::de::Error::custom(format!("the call {name} is not known")))?;
            counters.calls[call as usize] = times;
        }
        Ok(counters)
    }
}

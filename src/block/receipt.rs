//! The proof of a copy: which method moved which bytes, why, and what is known about both ends.
//!
//! Serialised as JSON by the command (`--json`, `--receipt`); the schema is described in `docs/receipt.md`.

use super::{ByteRange, Counters, Error, Fate, Fates, Method};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::time::Duration;

/// Version of the JSON schema: changes when a key changes its meaning or goes.
pub const SCHEMA: &str = "blkcopy-receipt/2";

/// Most deviations listed one by one; the rest are only counted.
pub const DEVIATIONS_MAX: usize = 100;

/// Why a method was chosen, or why a better one was not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// The best method both ends share.
    Best,
    /// The source is a hole there and the destination is known to read as zero.
    HoleKept,
    /// The source reads as zero there.
    SourceZero,
    /// The caller forbade offload.
    OffloadNever,
    /// Offload is switched off at one of the devices.
    OffloadOff,
    /// The two ends share no copy method (for files: two file systems, or one without sharing).
    NothingShared,
    /// The range is not aligned for the better method.
    Unaligned,
    /// The better method was measured to be slower here than reading and writing.
    MeasuredSlower,
    /// The caller wants every destination block allocated, so extents may not be shared.
    FullyAllocated,
    /// The caller wants runs of zeroes found and left out, so the bytes must be looked at.
    ZeroSearch,
    /// Source and destination overlap: cut into steps that do not, or moved through buffers.
    Overlap,
    /// The source was a hole when it was planned and held data once it was locked.
    HoleFilled,
    /// The device answered "not supported" when asked.
    Refused,
    /// The device answered "too large" and the step was cut to its present maximum.
    TooLarge,
    /// It must not go through this machine, and the kernel would copy it.
    KernelCopies,
    /// It must not go through this machine, and would be copied in its memory.
    InMemory,
    /// It must be shared, and the method moves it.
    NotShared,
}

impl Reason {
    /// One clause for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Best => "best method both ends share",
            Self::HoleKept => "hole in the source, destination known to be zero",
            Self::SourceZero => "source reads as zero",
            Self::OffloadNever => "offload forbidden by --offload never",
            Self::OffloadOff => "copy_offload is off at a device",
            Self::NothingShared => "the two ends share no copy method",
            Self::Unaligned => "not aligned for the better method",
            Self::MeasuredSlower => "the better method is slower than read+write here",
            Self::FullyAllocated => "every destination block must be allocated",
            Self::ZeroSearch => "the data is searched for zeroes",
            Self::Overlap => "source and destination overlap",
            Self::HoleFilled => "the hole was written to after the plan was made",
            Self::KernelCopies => "this kernel would copy the bytes itself",
            Self::InMemory => "the bytes would be copied in this machine's memory",
            Self::NotShared => "the method moves the bytes instead of sharing them",
            Self::Refused => "the device does not support it after all",
            Self::TooLarge => "shortened to the device's current maximum",
        }
    }
}

/// How stable the source was while it was copied, best first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// Nothing else could write: memory of this process, under our own locks.
    Locked,
    /// A file lease was held to the end: no other program on this machine had the file open for writing.
    Leased,
    /// What tells of writers was compared at the end and had not changed: size and times of a file, the count of what
    /// is written through a block device.
    Watched,
    /// Another program could have written unseen.
    Unwatched,
    /// It was written to: the copy may mix two moments.
    Changed,
}

impl SourceState {
    /// True where something says that the source stayed as it was.
    pub fn is_stable(self) -> bool {
        self <= Self::Watched
    }
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All bytes copied (and verified, when asked).
    Done,
    /// Stopped on request; what was done stands.
    Cancelled,
    /// Ended by an error; what was done stands.
    Failed,
    /// Copied, but verification found a difference.
    Mismatch,
    /// Copied, but the source is not known to have stayed the same, as was asked for.
    Unstable,
    /// Nothing done: refused (`--require` unmet).
    Refused,
}

/// One end of a copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct End {
    /// As the user named it.
    pub name: String,
    /// Its size in bytes when the copy began (for a destination: after it was sized).
    pub size_bytes: u64,
    /// First byte of the copied part.
    pub offset: u64,
    /// Bytes from there to the end of the copied part.
    pub len: u64,
}

/// Bytes by one method for one reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Why {
    /// The method used.
    pub method: Method,
    /// Why this one.
    pub reason: Reason,
    /// Bytes.
    pub bytes: u64,
    /// Steps of the plan.
    pub steps: u64,
    /// They are read, and the zeroes among them are not written.
    #[serde(default)]
    pub zeroes_left_out: bool,
}

/// Where the run left the plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deviation {
    /// Destination offset in bytes.
    pub dest_offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Planned method.
    pub planned: Method,
    /// Method used instead.
    pub used: Method,
    /// Reason code.
    pub reason: Reason,
    /// The device's words.
    pub detail: String,
}

/// The result of verification.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verification {
    /// `digest` or `bytes`.
    pub mode: Cow<'static, str>,
    /// BLAKE3 of the source bytes, in job order, as lower-case hex (mode `digest`).
    pub source_digest: Option<String>,
    /// BLAKE3 of the destination bytes, read back after the flush.
    pub dest_digest: Option<String>,
    /// True when both ends are equal.
    pub equal: bool,
    /// First destination range found to differ, as narrow as known.
    pub first_bad: Option<Span>,
    /// Bytes read for verification, both ends: never part of `host_bytes`.
    pub read_bytes: u64,
    /// How those of the destination were read.
    pub dest_read: DestRead,
}

/// Bytes of the destination that were read back, by how; those of each copy on a mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestRead {
    /// From the medium, past the page cache of this system.
    pub direct: u64,
    /// By the device's own reads, with no cache of this system in between: memory, and what a target answers.
    pub device: u64,
    /// Through the page cache, which may have answered instead of the medium.
    pub cache: u64,
}

/// A run of bytes in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl From<ByteRange> for Span {
    fn from(r: ByteRange) -> Self {
        Self { offset: r.offset(), len: r.len() }
    }
}

/// Bytes that passed through buffers of this process to be copied (verification apart).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostBytes {
    /// Read from the source.
    pub read: u64,
    /// Written to the destination.
    pub written: u64,
}

/// Bytes on the connections of the two ends to copy and to flush (opening them and verification apart), headers
/// included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireBytes {
    /// Sent by this host.
    pub sent: u64,
    /// Received by it.
    pub received: u64,
}

impl WireBytes {
    /// What the two ends counted.
    pub fn of(counters: &Counters) -> Self {
        Self { sent: counters.wire_sent_bytes, received: counters.wire_received_bytes }
    }
}

/// A loss of the connection to one end while it was copied. A copy goes on after it only where the target calls the
/// namespace what it called it before, its generation included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// `source` or `dest`.
    pub end: Cow<'static, str>,
    /// Why.
    pub why: String,
}

/// Seconds spent.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Timings {
    /// Planning and copying.
    pub copy_s: f64,
    /// The final flush.
    pub flush_s: f64,
    /// Verification.
    pub verify_s: f64,
    /// From the first step to the last.
    pub total_s: f64,
}

impl Timings {
    /// Seconds of a duration.
    pub fn seconds(d: Duration) -> f64 {
        d.as_secs_f64()
    }
}

/// What failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// [`super::Kind`] in kebab case.
    pub kind: String,
    /// The message and its causes, outermost first.
    pub chain: Vec<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let mut chain = vec![error.to_string()];
        let mut cause = StdError::source(error);
        while let Some(e) = cause {
            chain.push(e.to_string());
            cause = e.source();
        }
        let mut kind = String::new();
        let debug = format!("{:?}", error.kind());
        for c in debug.split([' ', '{']).next().unwrap_or_default().chars() {
            if c.is_ascii_uppercase() && !kind.is_empty() {
                kind.push('-');
            }
            kind.push(c.to_ascii_lowercase());
        }
        Self { kind, chain }
    }
}

/// What happened, from the first byte to the last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// [`SCHEMA`].
    pub schema: Cow<'static, str>,
    /// The program that wrote it, and its version.
    pub version: Cow<'static, str>,
    /// When the copy began: RFC 3339, in UTC. Empty, as `machine` is, unless the front door ([`crate::copy()`]) made
    /// it.
    pub begun_at: String,
    /// The machine that it ran on.
    pub machine: Machine,
    /// How it ended.
    pub outcome: Outcome,
    /// Where the bytes came from.
    pub source: End,
    /// Where they went.
    pub dest: End,
    /// Bytes the job asked for.
    pub requested_bytes: u64,
    /// Bytes of the job known to be good at the destination.
    pub good_bytes: u64,
    /// Bytes that were good and are gone, or may be: they lay past the good prefix of a destination file that was
    /// cut there
    /// when the copy ended early.
    pub cut_off_bytes: u64,
    /// Length of the job's front, in job order, of which every byte is good.
    pub good_prefix_bytes: u64,
    /// Good bytes by what became of them, those cut off again too; every fate is in it.
    pub bytes: BTreeMap<Fate, u64>,
    /// The same bytes, with how it is known.
    pub evidence: Fates,
    /// Good bytes by method used, those cut off again too. A method says what was asked for, not what became of it.
    pub methods: BTreeMap<Method, u64>,
    /// The plan's methods with their reasons.
    pub reasons: Vec<Why>,
    /// BLAKE3 over the plan's steps, lower-case hex: equal to what `blkcopy plan` prints for the same job. Covers the
    /// steps planned so far when the copy ended early.
    pub plan_digest: String,
    /// Steps planned.
    pub plan_steps: u64,
    /// Where the run left the plan (the first [`DEVIATIONS_MAX`]).
    pub deviations: Vec<Deviation>,
    /// How often it did.
    pub deviations_total: u64,
    /// System calls made on the two ends, and operations handed to the ring.
    pub calls: Counters,
    /// Bytes through this process.
    pub host_bytes: HostBytes,
    /// Bytes over the network.
    pub wire_bytes: WireBytes,
    /// Losses of the connections to the ends, in order for each.
    pub connections_lost: Vec<Loss>,
    /// How stable the source was.
    pub source_state: SourceState,
    /// `request` or `whole`: what was locked together.
    pub consistency: Cow<'static, str>,
    /// True when the destination was flushed at the end.
    pub flushed: bool,
    /// Verification, when asked for.
    pub verification: Option<Verification>,
    /// Destination ranges that may hold anything (a foreign controller failed half-way).
    pub undefined: Vec<Span>,
    /// Bytes copied once more, because a target lost its connection before they were flushed.
    pub copied_again_bytes: u64,
    /// Which engine served the copy.
    pub io_engine: String,
    /// Seconds.
    pub timings: Timings,
    /// Codes of what was found before, during and after the copy and might matter, in order: `volume::Finding`.
    pub findings: Vec<Cow<'static, str>>,
    /// The error, if it ended with one.
    pub error: Option<Failure>,
}

impl Receipt {
    /// Bytes that are known not to have crossed this machine: shared, moved elsewhere, or nothing to move.
    pub fn offloaded_bytes(&self) -> u64 {
        [Fate::Shared, Fate::MovedElsewhere, Fate::NoData].iter().map(|&fate| self.evidence.bytes(fate)).sum()
    }
}

/// Where a copy ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name in the network.
    pub name: String,
    /// Its kernel: name and release.
    pub kernel: String,
    /// Its processor's architecture, as the kernel calls it.
    pub architecture: String,
}

//! The Copy command: where data goes, how many source ranges it has, and the list of them.
//!
//! Layouts: NVM Command Set Specification 1.2, figures 31 to 37. No state and no limits here: what a namespace takes is
//! the target's business, how a copy is cut the planner's.

use super::command::nvm;
use super::count::{Blocks, Count8};
use super::wire::{put, u16_at, u32_at, u64_at};
use super::{Cqe, Sqe, Status};
use std::slice::ChunksExact;

/// Layout of the source range entries (DESFMT).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Format {
    /// 0h: 32 bytes, sources on the destination's namespace.
    F0 = 0,
    /// 1h: 40 bytes, sources on the destination's namespace; made for guards of 32 and 64 bits.
    F1 = 1,
    /// 2h: 32 bytes, each entry names its namespace.
    F2 = 2,
    /// 3h: 40 bytes, each entry names its namespace.
    F3 = 3,
    /// 4h: 32 bytes, sources in memory of the subsystem. Known so that it can be refused by name; its entries are not
    /// read.
    F4 = 4,
}

impl Format {
    /// All of them, by number.
    pub const ALL: [Self; 5] = [Self::F0, Self::F1, Self::F2, Self::F3, Self::F4];

    /// The format of that number; `None` for a reserved one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its number: DESFMT.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its bit in OCFS (what a controller can) and CDFE (what a host has enabled; 0h and 1h need no enabling).
    pub const fn bit(self) -> u16 {
        1 << self as u16
    }

    /// Bytes of one entry.
    pub const fn entry_len(self) -> usize {
        match self {
            Self::F0 | Self::F2 | Self::F4 => 32,
            Self::F1 | Self::F3 => 40,
        }
    }

    /// True when entries name their namespace (SNSID) and may ask for a fast copy only (FCO).
    pub const fn names_namespace(self) -> bool {
        matches!(self, Self::F2 | Self::F3 | Self::F4)
    }
}

/// Longest list of source ranges, in bytes: 256 entries of 40.
pub const LIST_LEN_MAX: usize = 256 * Format::F3.entry_len();

/// A Copy command without its list.
///
/// Directive, key and storage tag fields are not kept: none of them is claimed, and the standard has a controller
/// without them ignore them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyCommand {
    /// Destination namespace.
    pub nsid: u32,
    /// First destination LBA (SDLBA).
    pub sdlba: u64,
    /// Source ranges (NR).
    pub ranges: Count8,
    /// Layout of their entries (DESFMT).
    pub format: Format,
    /// The write portion is durable before completion.
    pub fua: bool,
    /// Limited retry of the write portion.
    pub limited_retry: bool,
    /// PRINFOR, read side: bit 3 PRACT, bits 2:0 PRCHK. Means nothing on namespaces without protection information.
    pub prinfo_read: u8,
    /// PRINFOW, write side, likewise.
    pub prinfo_write: u8,
}

impl CopyCommand {
    /// A copy of `ranges` ranges to `sdlba`, no flag set.
    pub const fn new(nsid: u32, sdlba: u64, ranges: Count8, format: Format) -> Self {
        Self {
            nsid,
            sdlba,
            ranges,
            format,
            fua: false,
            limited_retry: false,
            prinfo_read: 0,
            prinfo_write: 0,
        }
    }

    /// Reads the command from its entry.
    ///
    /// Errors: Invalid Command Opcode for any other command; Invalid Field for a reserved format, a fused command and a
    /// data pointer that is no SGL. Format 4h is read: whether a format is supported and enabled is for the controller
    /// to say, with the same status.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        if sqe.opcode() != nvm::COPY {
            return Err(Status::INVALID_OPCODE);
        }
        sqe.check_flags()?;
        let [ranges, desfmt, _, prinfo_write] = sqe.dword(12).to_le_bytes();
        Ok(Self {
            nsid: sqe.nsid(),
            sdlba: sqe.qword(10),
            ranges: Count8::from_wire(ranges),
            format: Format::from_number(desfmt & 0xf).ok_or(Status::INVALID_FIELD)?,
            fua: sqe.dword(12) & FUA != 0,
            limited_retry: sqe.dword(12) & LR != 0,
            prinfo_read: desfmt >> 4,
            prinfo_write: prinfo_write >> 2 & 0xf,
        })
    }

    /// The entry; command id and data pointer are the caller's.
    pub fn to_sqe(self) -> Sqe {
        let mut dword12 = u32::from(self.ranges.to_wire())
            | u32::from(self.format.number()) << 8
            | u32::from(self.prinfo_read & 0xf) << 12
            | u32::from(self.prinfo_write & 0xf) << 26;
        if self.fua {
            dword12 |= FUA;
        }
        if self.limited_retry {
            dword12 |= LR;
        }
        Sqe::new(nvm::COPY, self.nsid).with_qword(10, self.sdlba).with(12, dword12)
    }

    /// Bytes of the list that belongs to it.
    pub fn list_len(&self) -> usize {
        self.ranges.get() as usize * self.format.entry_len()
    }
}

const FUA: u32 = 1 << 30;
const LR: u32 = 1 << 31;

/// One source range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceRange {
    /// Namespace it lies on, as the host wrote it (SNSID); `None` in formats 0h and 1h: the destination's.
    pub snsid: Option<u32>,
    /// First LBA.
    pub slba: u64,
    /// Length (NLB).
    pub blocks: Blocks,
    /// Fast copy only (FCO): refuse rather than read and write. Formats 2h and 3h; false in others.
    pub fco: bool,
}

impl SourceRange {
    /// First LBA behind it; `None` when that passes 2^64.
    pub fn end(&self) -> Option<u64> {
        self.slba.checked_add(u64::from(self.blocks.get()))
    }

    fn parse(format: Format, entry: &[u8]) -> Self {
        let names = format.names_namespace();
        Self {
            snsid: names.then(|| u32_at(entry, 0)),
            slba: u64_at(entry, 8),
            blocks: Blocks::from_wire(u16_at(entry, 16)),
            fco: names && u16_at(entry, 22) & SOPT_FCO != 0,
        }
    }

    /// Writes the entry: `entry` has [`Format::entry_len`] bytes. Tags of protection information are 0.
    fn write(&self, format: Format, entry: &mut [u8]) {
        assert_eq!(
            format.names_namespace(),
            self.snsid.is_some(),
            "formats 2h and 3h name a namespace, others none"
        );
        entry.fill(0);
        put(entry, 0, &self.snsid.unwrap_or(0).to_le_bytes());
        put(entry, 8, &self.slba.to_le_bytes());
        put(entry, 16, &self.blocks.to_wire().to_le_bytes());
        if self.fco && format.names_namespace() {
            put(entry, 22, &SOPT_FCO.to_le_bytes());
        }
    }
}

const SOPT_FCO: u16 = 1 << 15;

/// The ranges of a list, in order. Clones begin where they were cloned: a check before a check costs no memory.
#[derive(Clone, Debug)]
pub struct SourceRanges<'a> {
    format: Format,
    entries: ChunksExact<'a, u8>,
}

impl SourceRanges<'_> {
    /// Blocks of what is left of the list together: at most 2^24, so that no sum wraps.
    pub fn total_blocks(&self) -> u32 {
        self.clone().map(|r| r.blocks.get()).sum()
    }
}

impl Iterator for SourceRanges<'_> {
    type Item = SourceRange;

    fn next(&mut self) -> Option<SourceRange> {
        self.entries.next().map(|entry| SourceRange::parse(self.format, entry))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.entries.size_hint()
    }
}

impl ExactSizeIterator for SourceRanges<'_> {}

/// Reads the list of a command.
///
/// Errors: Data SGL Length Invalid when the list is not exactly as long as the command says. A longer one is refused
/// too: the standard lets a controller do so that does not report SGLs longer than their data (SGLS bit 18), and every
/// host read so far sends the exact length. Invalid Field for format 4h.
pub fn parse_ranges<'a>(command: &CopyCommand, list: &'a [u8]) -> Result<SourceRanges<'a>, Status> {
    if command.format == Format::F4 {
        return Err(Status::INVALID_FIELD);
    }
    if list.len() != command.list_len() {
        return Err(Status::SGL_LENGTH_INVALID);
    }
    Ok(SourceRanges { format: command.format, entries: list.chunks_exact(command.format.entry_len()) })
}

/// Writes a list to the front of `out`, and says how many bytes it has.
///
/// Panics when `out` is too short, and on ranges that do not suit the format (our own mistakes).
pub fn write_ranges(format: Format, ranges: &[SourceRange], out: &mut [u8]) -> usize {
    let len = ranges.len() * format.entry_len();
    let entries = out[..len].chunks_exact_mut(format.entry_len());
    entries.zip(ranges).for_each(|(entry, range)| range.write(format, entry));
    len
}

/// How many ranges from the front are known to be copied whole after a Copy of `ranges` ranges ended with `cqe`.
///
/// On failure dword 0 is the lowest range that was not; nothing behind it is promised, and a number that names no range
/// promises nothing.
pub fn whole_ranges(ranges: Count8, cqe: &Cqe) -> u32 {
    match cqe.dword0() {
        _ if cqe.status.is_success() => ranges.get(),
        lowest if lowest < ranges.get() => lowest,
        _ => 0,
    }
}

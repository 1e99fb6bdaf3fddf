//! The commands of the NVM command set, read from their entries and written to them.
//!
//! Reserved fields are ignored, as the standard has it, except where it wants a check: opcode, FUSE, PSDT. Fields of
//! what is not claimed (protection information, storage tags, directives, dataset hints) are ignored too: the standard
//! says so for namespaces and controllers without them. Layouts: NVM Command Set Specification 1.2.

use super::command::{Transfer, nvm};
use super::copy::CopyCommand;
use super::count::{Blocks, Count8};
use super::wire::{put, u32_at, u64_at};
use super::{Sqe, Status};
use std::slice::ChunksExact;

/// Blocks a command is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Namespace.
    pub nsid: u32,
    /// First LBA (SLBA).
    pub slba: u64,
    /// Length (NLB).
    pub blocks: Blocks,
    /// Force unit access: durable before completion; for a read and a compare, from durable media.
    pub fua: bool,
}

impl Extent {
    /// `blocks` blocks from `slba`, without force unit access.
    pub const fn new(nsid: u32, slba: u64, blocks: Blocks) -> Self {
        Self { nsid, slba, blocks, fua: false }
    }

    /// First LBA behind it; `None` when that passes 2^64.
    pub fn end(&self) -> Option<u64> {
        self.slba.checked_add(u64::from(self.blocks.get()))
    }

    fn parse(sqe: &Sqe) -> Self {
        let [low, high, ..] = sqe.dword(12).to_le_bytes();
        Self {
            nsid: sqe.nsid(),
            slba: sqe.qword(10),
            blocks: Blocks::from_wire(u16::from_le_bytes([low, high])),
            fua: sqe.dword(12) & FUA != 0,
        }
    }

    fn to_sqe(self, opcode: u8) -> Sqe {
        let fua = if self.fua { FUA } else { 0 };
        Sqe::new(opcode, self.nsid).with_qword(10, self.slba).with(12, u32::from(self.blocks.to_wire()) | fua)
    }
}

const FUA: u32 = 1 << 30;
/// Deallocate, in dword 12 of Write Zeroes.
const DEAC: u32 = 1 << 25;
/// Deallocate, in dword 11 of Dataset Management.
const AD: u32 = 1 << 2;

/// A command of the NVM command set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoCommand {
    /// Makes everything completed before it durable.
    Flush {
        /// Namespace; all of them where the controller takes that.
        nsid: u32,
    },
    /// Writes the data.
    Write(Extent),
    /// Reads the data.
    Read(Extent),
    /// Compares the data with the blocks.
    Compare(Extent),
    /// Makes the blocks read as zero.
    WriteZeroes {
        /// Which.
        extent: Extent,
        /// The host would like them deallocated (DEAC).
        deallocate: bool,
    },
    /// Tells what becomes of the ranges in its list.
    DatasetManagement {
        /// Namespace.
        nsid: u32,
        /// Ranges in the list (NR).
        ranges: Count8,
        /// They are not needed any more (AD). Without it the command is a hint that changes nothing.
        deallocate: bool,
    },
    /// Copies the ranges of its list.
    Copy(CopyCommand),
}

impl IoCommand {
    /// Reads the command from its entry.
    ///
    /// Errors: Invalid Command Opcode for a command that is not here; Invalid Field as [`Sqe::check_flags`] and
    /// [`CopyCommand::parse`] say.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        let opcode = sqe.opcode();
        let known = matches!(
            opcode,
            nvm::FLUSH
                | nvm::WRITE
                | nvm::READ
                | nvm::COMPARE
                | nvm::WRITE_ZEROES
                | nvm::DATASET_MANAGEMENT
                | nvm::COPY
        );
        if !known {
            return Err(Status::INVALID_OPCODE);
        }
        sqe.check_flags()?;
        let extent = Extent::parse(sqe);
        Ok(match opcode {
            nvm::FLUSH => Self::Flush { nsid: sqe.nsid() },
            nvm::WRITE => Self::Write(extent),
            nvm::READ => Self::Read(extent),
            nvm::COMPARE => Self::Compare(extent),
            nvm::WRITE_ZEROES => Self::WriteZeroes { extent, deallocate: sqe.dword(12) & DEAC != 0 },
            nvm::DATASET_MANAGEMENT => Self::DatasetManagement {
                nsid: sqe.nsid(),
                ranges: Count8::from_wire(sqe.dword(10).to_le_bytes()[0]),
                deallocate: sqe.dword(11) & AD != 0,
            },
            _ => Self::Copy(CopyCommand::parse(sqe)?),
        })
    }

    /// The entry; command id and data pointer are the caller's.
    pub fn to_sqe(self) -> Sqe {
        match self {
            Self::Flush { nsid } => Sqe::new(nvm::FLUSH, nsid),
            Self::Write(extent) => extent.to_sqe(nvm::WRITE),
            Self::Read(extent) => extent.to_sqe(nvm::READ),
            Self::Compare(extent) => extent.to_sqe(nvm::COMPARE),
            Self::WriteZeroes { extent, deallocate } => {
                let sqe = extent.to_sqe(nvm::WRITE_ZEROES);
                let deac = if deallocate { DEAC } else { 0 };
                sqe.with(12, sqe.dword(12) | deac)
            }
            Self::DatasetManagement { nsid, ranges, deallocate } => Sqe::new(nvm::DATASET_MANAGEMENT, nsid)
                .with(10, ranges.to_wire().into())
                .with(11, if deallocate { AD } else { 0 }),
            Self::Copy(copy) => copy.to_sqe(),
        }
    }

    /// The namespace the command is sent to.
    pub const fn nsid(&self) -> u32 {
        match self {
            Self::Flush { nsid } | Self::DatasetManagement { nsid, .. } => *nsid,
            Self::Write(extent)
            | Self::Read(extent)
            | Self::Compare(extent)
            | Self::WriteZeroes { extent, .. } => extent.nsid,
            Self::Copy(copy) => copy.nsid,
        }
    }

    /// Bytes of data it moves on a namespace with blocks of `block_bytes`; at most 2^48.
    pub fn data_len(&self, block_bytes: u32) -> u64 {
        match self {
            Self::Flush { .. } | Self::WriteZeroes { .. } => 0,
            Self::Write(extent) | Self::Read(extent) | Self::Compare(extent) => {
                u64::from(extent.blocks.get()) * u64::from(block_bytes)
            }
            Self::DatasetManagement { ranges, .. } => u64::from(ranges.get()) * DsmRange::LEN as u64,
            Self::Copy(copy) => copy.list_len() as u64,
        }
    }

    /// Checks the length the data pointer gives against the data the command moves.
    ///
    /// Equal is asked for, except of Dataset Management, whose list may be longer (Linux always sends 4096 bytes).
    ///
    /// Errors: Data SGL Length Invalid.
    pub fn check_data_len(&self, block_bytes: u32, len: u32) -> Result<(), Status> {
        let (need, have) = (self.data_len(block_bytes), u64::from(len));
        let longer = matches!(self, Self::DatasetManagement { .. }) && have > need;
        // A command without data may say anything in a field it does not have.
        let none = self.transfer() == Transfer::None;
        if none || longer || have == need { Ok(()) } else { Err(Status::SGL_LENGTH_INVALID) }
    }

    /// Which way its data goes.
    pub const fn transfer(&self) -> Transfer {
        match self {
            Self::Flush { .. } | Self::WriteZeroes { .. } => Transfer::None,
            Self::Read(_) => Transfer::ToHost,
            Self::Write(_) | Self::Compare(_) | Self::DatasetManagement { .. } | Self::Copy(_) => {
                Transfer::ToController
            }
        }
    }
}

/// A range of Dataset Management.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DsmRange {
    /// First LBA.
    pub slba: u64,
    /// Length in blocks: a count, not 0's based. 0 is a range of nothing.
    pub blocks: u32,
}

impl DsmRange {
    /// Bytes of one entry.
    pub const LEN: usize = 16;

    /// First LBA behind it; `None` when that passes 2^64.
    pub fn end(&self) -> Option<u64> {
        self.slba.checked_add(self.blocks.into())
    }

    /// The entry, without context attributes (hints on use).
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        put(&mut out, 4, &self.blocks.to_le_bytes());
        put(&mut out, 8, &self.slba.to_le_bytes());
        out
    }
}

/// The ranges of a Dataset Management list, in order.
#[derive(Clone, Debug)]
pub struct DsmRanges<'a>(ChunksExact<'a, u8>);

impl Iterator for DsmRanges<'_> {
    type Item = DsmRange;

    fn next(&mut self) -> Option<DsmRange> {
        self.0.next().map(|entry| DsmRange { slba: u64_at(entry, 8), blocks: u32_at(entry, 4) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for DsmRanges<'_> {}

/// Reads the list of a Dataset Management command with `ranges` ranges. What lies behind them is ignored.
///
/// Errors: Data SGL Length Invalid when the list is too short.
pub fn parse_dsm_ranges(ranges: Count8, list: &[u8]) -> Result<DsmRanges<'_>, Status> {
    let list = list.get(..ranges.get() as usize * DsmRange::LEN).ok_or(Status::SGL_LENGTH_INVALID)?;
    Ok(DsmRanges(list.chunks_exact(DsmRange::LEN)))
}

//! Log pages: what a target reports when asked, and what a host reads of them.
//!
//! Pages are written whole; [`read_page`] cuts out what a command asks for. What is not a field here is written as 0
//! ("not reported") and not read. Layouts: NVM Express Base Specification 2.1, 5.1.12.

use super::identify::{namespace_list, parse_namespace_list};
use super::nqn::Ascii;
use super::wire::{bytes_at, exactly, malformed, put, u16_at, u32_at, u64_at, u128_at};
use super::{Status, command};
use crate::block::Result;

/// Log page identifiers (LID).
#[allow(missing_docs)] // each is the standard's log page of that name
pub mod lid {
    pub const SUPPORTED_LOG_PAGES: u8 = 0x00;
    pub const ERROR_INFORMATION: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE_SLOTS: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const COMMAND_EFFECTS: u8 = 0x05;
    pub const FEATURE_EFFECTS: u8 = 0x12;
    pub const DISCOVERY: u8 = 0x70;
    /// Vendor specific: [`super::CopyOutcomes`].
    pub const COPY_OUTCOMES: u8 = 0xc2;
}

/// What became of the bytes of the copies of one controller (LID C2h, of this target only): what a host compares before
/// and after a copy. `docs/notes/015-what-became-of-the-bytes.md` has the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CopyOutcomes {
    /// Digest of the boot of the machine the target runs on: a host on the same machine has the same.
    pub machine: [u8; 16],
    /// Bytes shared, moved elsewhere, copied by the target's kernel, read and written by the target, unknown, no data.
    pub bytes: [u64; 6],
}

impl CopyOutcomes {
    /// Bytes of the page.
    pub const LEN: usize = 128;
    /// Its first bytes: a name, and the version of the layout.
    const MAGIC: [u8; 8] = *b"blkcopy\x01";

    /// The page.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut page = [0; Self::LEN];
        page[..8].copy_from_slice(&Self::MAGIC);
        page[8..24].copy_from_slice(&self.machine);
        for (bytes, place) in self.bytes.iter().zip(page[24..].chunks_exact_mut(8)) {
            place.copy_from_slice(&bytes.to_le_bytes());
        }
        page
    }

    /// Reads the page; `None` for another vendor's.
    pub fn parse(page: &[u8]) -> Option<Self> {
        let page = page.get(..Self::LEN)?;
        if page[..8] != Self::MAGIC {
            return None;
        }
        let mut outcomes = Self::default();
        outcomes.machine.copy_from_slice(&page[8..24]);
        for (bytes, place) in outcomes.bytes.iter_mut().zip(page[24..].chunks_exact(8)) {
            *bytes = u64_at(place, 0);
        }
        Some(outcomes)
    }
}

/// Fills `out` with the bytes of `page` from `offset` on, and with 0 behind its end.
///
/// Errors: Invalid Field when `offset` lies past the end of the page.
pub fn read_page(page: &[u8], offset: u64, out: &mut [u8]) -> Result<(), Status> {
    let from = usize::try_from(offset).ok().and_then(|offset| page.get(offset..));
    let from = from.ok_or(Status::INVALID_FIELD)?;
    let len = from.len().min(out.len());
    out[..len].copy_from_slice(&from[..len]);
    out[len..].fill(0);
    Ok(())
}

/// An entry of the error log (LID 01h): newest first, 64 bytes each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ErrorEntry {
    /// Number of this error since the controller was made, from 1; 0 marks an entry that is not used.
    pub count: u64,
    /// Submission queue of the command; FFFFh when the error belongs to none.
    pub sqid: u16,
    /// Its command id; FFFFh when the error belongs to none.
    pub cid: u16,
    /// Its status.
    pub status: Status,
    /// First byte (7:0) and bit (10:8) of the entry at fault; FFFFh when there is none.
    pub location: u16,
    /// First LBA at fault.
    pub lba: u64,
    /// Namespace.
    pub nsid: u32,
    /// Transport type, as in the discovery log (TRTYPE).
    pub transport: u8,
    /// Command set of the opcode.
    pub csi: u8,
    /// Opcode of the command; means something when `version` is 1 or more.
    pub opcode: u8,
    /// What the status adds.
    pub command_specific: u64,
    /// Version of the page (LPVER).
    pub version: u8,
}

impl ErrorEntry {
    /// Bytes on the wire.
    pub const LEN: usize = 64;

    /// As on the wire.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let mut at = |at: usize, bytes: &[u8]| put(&mut out, at, bytes);
        at(0, &self.count.to_le_bytes());
        at(8, &self.sqid.to_le_bytes());
        at(10, &self.cid.to_le_bytes());
        at(12, &(self.status.bits() << 1).to_le_bytes());
        at(14, &self.location.to_le_bytes());
        at(16, &self.lba.to_le_bytes());
        at(24, &self.nsid.to_le_bytes());
        at(29, &[self.transport, self.csi, self.opcode]);
        at(32, &self.command_specific.to_le_bytes());
        at(63, &[self.version]);
        out
    }

    /// Reads an entry.
    ///
    /// Errors: `Io` for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; Self::LEN] = exactly(bytes, "error log entry")?;
        Ok(Self {
            count: u64_at(b, 0),
            sqid: u16_at(b, 8),
            cid: u16_at(b, 10),
            status: Status::from_bits(u16_at(b, 12) >> 1),
            location: u16_at(b, 14),
            lba: u64_at(b, 16),
            nsid: u32_at(b, 24),
            transport: b[29],
            csi: b[30],
            opcode: b[31],
            command_specific: u64_at(b, 32),
            version: b[63],
        })
    }
}

/// SMART and health (LID 02h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Smart {
    /// Critical warnings: bit 0 spare space, 1 temperature, 2 reliability, 3 read-only, 4 volatile memory backup.
    pub critical_warning: u8,
    /// Composite temperature in kelvin; 0 not reported.
    pub temperature_k: u16,
    /// Spare space left, in percent.
    pub spare_percent: u8,
    /// Spare space below which there is a warning, in percent.
    pub spare_threshold_percent: u8,
    /// Life used up, in percent; 255 for more than that.
    pub used_percent: u8,
    /// Data read by hosts, in thousands of 512 bytes, rounded up.
    pub data_units_read: u128,
    /// Data written by hosts, in the same units. Copy and Write Zeroes do not count.
    pub data_units_written: u128,
    /// Read and Compare commands completed.
    pub host_reads: u128,
    /// Write commands completed.
    pub host_writes: u128,
    /// Minutes the controller was busy.
    pub busy_minutes: u128,
    /// Power cycles.
    pub power_cycles: u128,
    /// Hours powered on.
    pub power_on_hours: u128,
    /// Shutdowns nobody announced.
    pub unsafe_shutdowns: u128,
    /// Errors of the media that could not be corrected.
    pub media_errors: u128,
    /// Error log entries ever made.
    pub error_log_entries: u128,
}

impl Smart {
    /// Bytes on the wire.
    pub const LEN: usize = 512;

    /// As on the wire.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let [temperature0, temperature1] = self.temperature_k.to_le_bytes();
        let front = [
            self.critical_warning,
            temperature0,
            temperature1,
            self.spare_percent,
            self.spare_threshold_percent,
            self.used_percent,
        ];
        put(&mut out, 0, &front);
        let counters = [
            self.data_units_read,
            self.data_units_written,
            self.host_reads,
            self.host_writes,
            self.busy_minutes,
            self.power_cycles,
            self.power_on_hours,
            self.unsafe_shutdowns,
            self.media_errors,
            self.error_log_entries,
        ];
        for (n, counter) in counters.iter().enumerate() {
            put(&mut out, 32 + 16 * n, &counter.to_le_bytes());
        }
        out
    }

    /// Reads the page.
    ///
    /// Errors: `Io` for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; Self::LEN] = exactly(bytes, "SMART log")?;
        let counter = |n: usize| u128_at(b, 32 + 16 * n);
        Ok(Self {
            critical_warning: b[0],
            temperature_k: u16_at(b, 1),
            spare_percent: b[3],
            spare_threshold_percent: b[4],
            used_percent: b[5],
            data_units_read: counter(0),
            data_units_written: counter(1),
            host_reads: counter(2),
            host_writes: counter(3),
            busy_minutes: counter(4),
            power_cycles: counter(5),
            power_on_hours: counter(6),
            unsafe_shutdowns: counter(7),
            media_errors: counter(8),
            error_log_entries: counter(9),
        })
    }
}

/// Firmware slots (LID 03h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FirmwareSlots {
    /// The slot whose firmware runs: 1 to 7.
    pub active: u8,
    /// The slot that is used after the next reset; 0 when that is not decided.
    pub next: u8,
    /// Firmware of slots 1 to 7.
    pub revisions: [Option<Ascii<8>>; 7],
}

impl FirmwareSlots {
    /// Bytes on the wire.
    pub const LEN: usize = 512;

    /// As on the wire.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = self.active & 7 | (self.next & 7) << 4;
        for (n, revision) in self.revisions.iter().enumerate() {
            put(&mut out, 8 + 8 * n, &revision.map_or([0; 8], |text| text.0));
        }
        out
    }

    /// Reads the page.
    ///
    /// Errors: `Io` for another length, and for firmware that runs from no slot.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; Self::LEN] = exactly(bytes, "firmware slot log")?;
        let active = b[0] & 7;
        if active == 0 {
            return Err(malformed("firmware slot log: no slot is active".to_owned()));
        }
        let revision = |n: usize| super::wire::unless_zero(bytes_at(b, 8 + 8 * n)).map(Ascii);
        Ok(Self { active, next: b[0] >> 4 & 7, revisions: std::array::from_fn(revision) })
    }
}

/// Changed Namespace List (LID 04h): what changed since the page was last read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangedNamespaces {
    /// These, in ascending order: at most 1024.
    These(Vec<u32>),
    /// More than the page has room for.
    TooMany,
}

impl ChangedNamespaces {
    /// The page that names `nsids`, which ascend.
    pub fn page(nsids: &[u32]) -> [u8; super::identify::LEN] {
        if nsids.len() <= super::identify::LEN / 4 {
            return namespace_list(nsids.iter().copied(), 0);
        }
        let mut out = [0; super::identify::LEN];
        put(&mut out, 0, &command::NSID_ALL.to_le_bytes());
        out
    }

    /// Reads the page.
    ///
    /// Errors: `Io` as [`parse_namespace_list`] says.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; super::identify::LEN] = exactly(bytes, "changed namespace list")?;
        let too_many = u32_at(b, 0) == command::NSID_ALL && b[4..].iter().all(|&byte| byte == 0);
        if too_many { Ok(Self::TooMany) } else { parse_namespace_list(bytes, 0).map(Self::These) }
    }
}

/// What a command or feature does besides its work, and whether it is supported: an entry of LID 05h and LID 12h.
pub mod effect {
    /// Supported (CSUPP, FSUPP).
    pub const SUPPORTED: u32 = 1 << 0;
    /// User data may change (LBCC, UDCC).
    pub const CONTENT: u32 = 1 << 1;
    /// Capabilities of a namespace may change (NCC).
    pub const NAMESPACE: u32 = 1 << 2;
    /// The set of namespaces may change (NIC).
    pub const INVENTORY: u32 = 1 << 3;
    /// Capabilities of the controller may change (CCC).
    pub const CONTROLLER: u32 = 1 << 4;
    /// LID 12h and newer LID 05h: it is about one namespace.
    pub const NAMESPACE_SCOPE: u32 = 1 << 20;
    /// LID 12h and newer LID 05h: it is about the controller.
    pub const CONTROLLER_SCOPE: u32 = 1 << 21;
}

/// A table with an entry of 4 bytes for each opcode, log page or feature: bits of [`effect`].
///
/// As a page of its own: Supported Log Pages (LID 00h; bit 0 supported, bit 1 offsets may be indices) and Feature
/// Identifiers Supported and Effects (LID 12h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table(pub [u32; 256]);

impl Table {
    /// Bytes on the wire.
    pub const LEN: usize = 1024;

    /// A table that supports nothing but what is listed: number and bits.
    pub fn of(entries: &[(u8, u32)]) -> Self {
        let mut table = [0; 256];
        entries.iter().for_each(|&(number, bits)| table[usize::from(number)] = bits);
        Self(table)
    }

    /// The bits of a number.
    pub fn get(&self, number: u8) -> u32 {
        self.0[usize::from(number)]
    }

    /// As on the wire.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        self.0.iter().enumerate().for_each(|(n, bits)| put(&mut out, 4 * n, &bits.to_le_bytes()));
        out
    }

    /// Reads the table.
    ///
    /// Errors: `Io` for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; Self::LEN] = exactly(bytes, "log page of 256 entries")?;
        Ok(Self(std::array::from_fn(|n| u32_at(b, 4 * n))))
    }
}

/// Commands Supported and Effects (LID 05h). Linux lets an ordinary user pass an I/O command through only when its
/// entry is there and says nothing beyond [`effect::CONTENT`] and scopes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandEffects {
    /// Admin commands.
    pub admin: Table,
    /// I/O commands.
    pub io: Table,
}

impl CommandEffects {
    /// Bytes on the wire.
    pub const LEN: usize = 4096;

    /// As on the wire.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        put(&mut out, 0, &self.admin.to_bytes());
        put(&mut out, Table::LEN, &self.io.to_bytes());
        out
    }

    /// Reads the page.
    ///
    /// Errors: `Io` for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; Self::LEN] = exactly(bytes, "command effects log")?;
        let (admin, io) = b[..2 * Table::LEN].split_at(Table::LEN);
        Ok(Self { admin: Table::parse(admin)?, io: Table::parse(io)? })
    }
}

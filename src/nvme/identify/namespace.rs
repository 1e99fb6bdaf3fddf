//! Identify Namespace (CNS 00h), what the NVM command set adds (CNS 05h), and what no command set knows of (CNS 08h).

use super::super::count::{Blocks, Count8};
use super::super::wire::{bytes_at, exactly, malformed, put, u16_at, u32_at, u64_at, u128_at, unless_zero};
use super::LEN;
use crate::block::Result;
use smallvec::SmallVec;
use std::num::{NonZeroU16, NonZeroU32};

/// An LBA format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LbaFormat {
    /// Metadata of each block, in bytes (MS).
    pub metadata_bytes: u16,
    /// Data of each block, as a power of two of bytes: 9 or more; 0 for a format that is not available (LBADS).
    pub data_shift: u8,
    /// Relative performance, 2 bits: 0 is best (RP).
    pub relative_performance: u8,
}

/// What one Copy into the namespace may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyLimits {
    /// Longest source range, in blocks (MSSRL).
    pub range_blocks_max: NonZeroU16,
    /// Most blocks of all ranges together (MCL).
    pub blocks_max: NonZeroU32,
    /// Most source ranges (MSRC).
    pub ranges_max: Count8,
}

/// Sizes that perform best, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptimalPerformance {
    /// Granularity of writes (NPWG).
    pub write_granularity: Blocks,
    /// Alignment of writes (NPWA).
    pub write_alignment: Blocks,
    /// Granularity of deallocation (NPDG).
    pub deallocate_granularity: Blocks,
    /// Alignment of deallocation (NPDA).
    pub deallocate_alignment: Blocks,
    /// Size of writes (NOWS).
    pub write_size: Blocks,
}

/// Identify Namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdentifyNamespace {
    /// Size in blocks (NSZE).
    pub size_blocks: u64,
    /// Blocks that may be allocated at a time (NCAP).
    pub capacity_blocks: u64,
    /// Blocks allocated (NUSE).
    pub used_blocks: u64,
    /// Features, bits of [`super::nsfeat`] below bit 4.
    pub nsfeat: u8,
    /// LBA formats, 1 to 64 (NLBAF, LBAF).
    pub formats: SmallVec<[LbaFormat; 1]>,
    /// Which of them is in use (FLBAS).
    pub format: u8,
    /// Metadata comes at the end of each block's data (FLBAS bit 4).
    pub metadata_inline: bool,
    /// Metadata capabilities (MC).
    pub mc: u8,
    /// Protection information it could have (DPC).
    pub dpc: u8,
    /// Protection information it has: bits 2:0 type, 0 for none (DPS).
    pub dps: u8,
    /// May be attached to several controllers at a time (NMIC bit 0).
    pub shared: bool,
    /// Reservations (RESCAP).
    pub rescap: u8,
    /// Deallocated blocks: bits 2:0 read as (0 not reported, 1 zeroes, 2 ones), bit 3 Write Zeroes may deallocate
    /// (DLFEAT).
    pub dlfeat: u8,
    /// Blocks of a write that other commands see whole or not at all; `None`: as many as AWUN (NAWUN).
    pub nawun: Option<Blocks>,
    /// Blocks of a write that a power failure leaves whole or untouched; `None`: as many as AWUPF (NAWUPF).
    pub nawupf: Option<Blocks>,
    /// Blocks between borders no write is atomic across; `None`: no border (NABSN).
    pub nabsn: Option<Blocks>,
    /// LBA of the first such border (NABO).
    pub nabo: u16,
    /// As `nabsn`, for power failures (NABSPF).
    pub nabspf: Option<Blocks>,
    /// Blocks between borders that I/O had better not cross; `None`: not reported (NOIOB).
    pub noiob: Option<NonZeroU16>,
    /// Size of the media it takes, in bytes; 0 not reported (NVMCAP).
    pub nvmcap: u128,
    /// Best sizes; `None`: not reported (NSFEAT bit 4).
    pub optimal: Option<OptimalPerformance>,
    /// What one Copy may be; `None`: the namespace takes none.
    pub copy: Option<CopyLimits>,
    /// ANA group; 0 without ANA.
    pub anagrpid: u32,
    /// Write protected now (NSATTR bit 0).
    pub write_protected: bool,
    /// Endurance group; 0 without.
    pub endgid: u16,
    /// Globally unique id of 16 bytes (NGUID).
    pub nguid: Option<[u8; 16]>,
    /// IEEE extended unique id (EUI64).
    pub eui64: Option<[u8; 8]>,
    /// What the bytes are bound to, of a target that says so in the vendor specific part: another number
    /// means that they may be others than before, whatever the identifiers say.
    pub generation: Option<[u8; 16]>,
}

/// Where the vendor specific part begins (NVM Command Set 1.1, Identify Namespace: bytes 384 to 4095).
const VENDOR_AT: usize = 384;
/// The eight bytes there that say that a generation follows.
const GENERATION_MARK: [u8; 8] = *b"blkcopy1";

/// NSFEAT bit 4: the fields of [`OptimalPerformance`] are there.
const OPTPERF: u8 = 1 << 4;

impl IdentifyNamespace {
    /// A namespace of `size_blocks` blocks of `1 << data_shift` bytes (9 to 31), all of them allocated, nothing
    /// optional; the caller fills in the rest.
    pub fn new(size_blocks: u64, data_shift: u8) -> Self {
        Self {
            size_blocks,
            capacity_blocks: size_blocks,
            used_blocks: size_blocks,
            nsfeat: 0,
            formats: SmallVec::from_buf([LbaFormat { data_shift, ..LbaFormat::default() }]),
            format: 0,
            metadata_inline: false,
            mc: 0,
            dpc: 0,
            dps: 0,
            shared: false,
            rescap: 0,
            dlfeat: 0,
            nawun: None,
            nawupf: None,
            nabsn: None,
            nabo: 0,
            nabspf: None,
            noiob: None,
            nvmcap: 0,
            optimal: None,
            copy: None,
            anagrpid: 0,
            write_protected: false,
            endgid: 0,
            nguid: None,
            eui64: None,
            generation: None,
        }
    }

    /// The LBA format in use.
    pub fn lba_format(&self) -> LbaFormat {
        self.formats[usize::from(self.format)]
    }

    /// Data of one block, in bytes.
    pub fn block_bytes(&self) -> u32 {
        1 << self.lba_format().data_shift
    }

    /// Size in bytes; `None` when that passes 2^64.
    pub fn size_bytes(&self) -> Option<u64> {
        self.size_blocks.checked_mul(self.block_bytes().into())
    }

    /// As on the wire. Only the first 64 formats are written.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        let formats = &self.formats[..self.formats.len().min(FORMATS_MAX)];
        let count = u8::try_from(formats.len()).unwrap_or(1);
        for (n, format) in formats.iter().enumerate() {
            let [ms0, ms1] = format.metadata_bytes.to_le_bytes();
            put(&mut out, 128 + 4 * n, &[ms0, ms1, format.data_shift, format.relative_performance & 3]);
        }
        let inline = if self.metadata_inline { 0x10 } else { 0 };
        let flbas = self.format & 0xf | (self.format & 0x30) << 1 | inline;
        let optperf = if self.optimal.is_some() { OPTPERF } else { 0 };
        let mut at = |at: usize, bytes: &[u8]| put(&mut out, at, bytes);
        at(0, &self.size_blocks.to_le_bytes());
        at(8, &self.capacity_blocks.to_le_bytes());
        at(16, &self.used_blocks.to_le_bytes());
        at(24, &[self.nsfeat & 0xf | optperf, count.saturating_sub(1), flbas, self.mc, self.dpc, self.dps]);
        at(30, &[u8::from(self.shared), self.rescap, 0, self.dlfeat]);
        at(34, &or_zero(self.nawun).to_le_bytes());
        at(36, &or_zero(self.nawupf).to_le_bytes());
        at(40, &or_zero(self.nabsn).to_le_bytes());
        at(42, &self.nabo.to_le_bytes());
        at(44, &or_zero(self.nabspf).to_le_bytes());
        at(46, &self.noiob.map_or(0, NonZeroU16::get).to_le_bytes());
        at(48, &self.nvmcap.to_le_bytes());
        if let Some(o) = self.optimal {
            at(64, &o.write_granularity.to_wire().to_le_bytes());
            at(66, &o.write_alignment.to_wire().to_le_bytes());
            at(68, &o.deallocate_granularity.to_wire().to_le_bytes());
            at(70, &o.deallocate_alignment.to_wire().to_le_bytes());
            at(72, &o.write_size.to_wire().to_le_bytes());
        }
        if let Some(copy) = self.copy {
            at(74, &copy.range_blocks_max.get().to_le_bytes());
            at(76, &copy.blocks_max.get().to_le_bytes());
            at(80, &[copy.ranges_max.to_wire()]);
        }
        at(92, &self.anagrpid.to_le_bytes());
        at(99, &[u8::from(self.write_protected)]);
        at(102, &self.endgid.to_le_bytes());
        at(104, &self.nguid.unwrap_or_default());
        at(120, &self.eui64.unwrap_or_default());
        if let Some(generation) = self.generation {
            at(VENDOR_AT, &GENERATION_MARK);
            at(VENDOR_AT + 8, &generation);
        }
        out
    }

    /// Reads the structure.
    ///
    /// Errors: `Io` for another length; for a namespace that is not there (a controller answers with zeroes for an
    /// inactive one); for more than 64 formats; for a format in use that is not listed or has blocks below 512 bytes or
    /// above 2 GiB.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; LEN] = exactly(bytes, "Identify Namespace")?;
        let wrong = |text: String| Err(malformed(format!("Identify Namespace: {text}")));
        if b[..] == [0; LEN] {
            return wrong("the namespace is not active".to_owned());
        }
        let count = usize::from(b[25]) + 1;
        if count > FORMATS_MAX {
            return wrong(format!("{count} LBA formats; there are {FORMATS_MAX} at most"));
        }
        let formats: SmallVec<[LbaFormat; 1]> = (0..count)
            .map(|n| LbaFormat {
                metadata_bytes: u16_at(b, 128 + 4 * n),
                data_shift: b[130 + 4 * n],
                relative_performance: b[131 + 4 * n] & 3,
            })
            .collect();
        // The upper bits of the index mean something only when there are more than 16 formats.
        let high = if count > 16 { b[26] >> 1 & 0x30 } else { 0 };
        let format = b[26] & 0xf | high;
        match formats.get(usize::from(format)) {
            Some(f) if (9..32).contains(&f.data_shift) => {}
            Some(f) => return wrong(format!("blocks of 2^{} bytes", f.data_shift)),
            None => return wrong(format!("LBA format {format} of {count}")),
        }
        let blocks = |at: usize| Blocks::from_wire(u16_at(b, at));
        let optimal = (b[24] & OPTPERF != 0).then(|| OptimalPerformance {
            write_granularity: blocks(64),
            write_alignment: blocks(66),
            deallocate_granularity: blocks(68),
            deallocate_alignment: blocks(70),
            write_size: blocks(72),
        });
        let copy = NonZeroU16::new(u16_at(b, 74)).zip(NonZeroU32::new(u32_at(b, 76)));
        let ranges_max = Count8::from_wire(b[80]);
        Ok(Self {
            size_blocks: u64_at(b, 0),
            capacity_blocks: u64_at(b, 8),
            used_blocks: u64_at(b, 16),
            nsfeat: b[24] & 0xf,
            formats,
            format,
            metadata_inline: b[26] & 0x10 != 0,
            mc: b[27],
            dpc: b[28],
            dps: b[29],
            shared: b[30] & 1 != 0,
            rescap: b[31],
            dlfeat: b[33],
            nawun: unless_0(u16_at(b, 34)),
            nawupf: unless_0(u16_at(b, 36)),
            nabsn: unless_0(u16_at(b, 40)),
            nabo: u16_at(b, 42),
            nabspf: unless_0(u16_at(b, 44)),
            noiob: NonZeroU16::new(u16_at(b, 46)),
            nvmcap: u128_at(b, 48),
            optimal,
            copy: copy.map(|(range_blocks_max, blocks_max)| CopyLimits {
                range_blocks_max,
                blocks_max,
                ranges_max,
            }),
            anagrpid: u32_at(b, 92),
            write_protected: b[99] & 1 != 0,
            endgid: u16_at(b, 102),
            nguid: unless_zero(bytes_at(b, 104)),
            eui64: unless_zero(bytes_at(b, 120)),
            // Vendors put anything there: only what is marked as ours is read.
            generation: (bytes_at(b, VENDOR_AT) == GENERATION_MARK).then(|| bytes_at(b, VENDOR_AT + 8)),
        })
    }
}

/// Most LBA formats of a namespace.
const FORMATS_MAX: usize = 64;

/// A 0's based field in which 0 means "not reported". One block is then the same as not reported: atomic units of a
/// namespace are never below the controller's, and a border after every block is none.
fn unless_0(field: u16) -> Option<Blocks> {
    (field != 0).then(|| Blocks::from_wire(field))
}

fn or_zero(blocks: Option<Blocks>) -> u16 {
    blocks.map_or(0, Blocks::to_wire)
}

/// What the NVM command set adds (CNS 05h, CSI 00h). All 0 on a namespace without protection information.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NvmNamespace {
    /// Storage tag mask (LBSTM).
    pub lbstm: u64,
    /// Protection information capabilities (PIC).
    pub pic: u8,
    /// For each LBA format: bits 6:0 storage tag size, bits 8:7 guard (0 of 16, 1 of 32, 2 of 64 bits) (ELBAF).
    pub elbaf: [u32; FORMATS_MAX],
}

impl Default for NvmNamespace {
    fn default() -> Self {
        Self { lbstm: 0, pic: 0, elbaf: [0; FORMATS_MAX] }
    }
}

impl NvmNamespace {
    /// As on the wire.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        put(&mut out, 0, &self.lbstm.to_le_bytes());
        out[8] = self.pic;
        for (n, format) in self.elbaf.iter().enumerate() {
            put(&mut out, 12 + 4 * n, &format.to_le_bytes());
        }
        out
    }

    /// Reads the structure.
    ///
    /// Errors: `Io` for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; LEN] = exactly(bytes, "Identify Namespace of the NVM command set")?;
        Ok(Self { lbstm: u64_at(b, 0), pic: b[8], elbaf: std::array::from_fn(|n| u32_at(b, 12 + 4 * n)) })
    }
}

/// Identify Namespace, independent of command sets (CNS 08h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IndependentNamespace {
    /// Features, bits of [`super::nsfeat`] from bit 3 on.
    pub nsfeat: u8,
    /// May be attached to several controllers at a time (NMIC bit 0).
    pub shared: bool,
    /// Reservations (RESCAP).
    pub rescap: u8,
    /// ANA group; 0 without ANA.
    pub anagrpid: u32,
    /// Write protected now (NSATTR bit 0).
    pub write_protected: bool,
    /// Endurance group; 0 without.
    pub endgid: u16,
    /// Takes commands (NSTAT bit 0). Linux leaves out a namespace that does not.
    pub ready: bool,
}

impl IndependentNamespace {
    /// As on the wire.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        put(&mut out, 0, &[self.nsfeat, u8::from(self.shared), self.rescap]);
        put(&mut out, 4, &self.anagrpid.to_le_bytes());
        out[8] = u8::from(self.write_protected);
        put(&mut out, 12, &self.endgid.to_le_bytes());
        out[14] = u8::from(self.ready);
        out
    }

    /// Reads the structure.
    ///
    /// Errors: `Io` for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; LEN] = exactly(bytes, "Identify Namespace independent of command sets")?;
        Ok(Self {
            nsfeat: b[0],
            shared: b[1] & 1 != 0,
            rescap: b[2],
            anagrpid: u32_at(b, 4),
            write_protected: b[8] & 1 != 0,
            endgid: u16_at(b, 12),
            ready: b[14] & 1 != 0,
        })
    }
}

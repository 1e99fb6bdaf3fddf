//! Identify Controller (CNS 01h), and what the NVM command set adds (CNS 06h).

use super::super::copy::Format;
use super::super::count::{Blocks, Count8};
use super::super::nqn::{Ascii, Nqn};
use super::super::property::{Cap, Version};
use super::super::wire::{bytes_at, exactly, malformed, put, u16_at, u32_at, u64_at};
use super::LEN;
use crate::block::Result;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64};

/// What a controller is for (CNTRLTYPE).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ControllerType {
    /// Controllers before 1.4 do not say.
    #[default]
    NotReported = 0,
    /// Has namespaces.
    Io = 1,
    /// Tells where subsystems are.
    Discovery = 2,
    /// Manages only.
    Administrative = 3,
}

/// What a Flush to NSID FFFFFFFFh does (VWC bits 2:1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FlushAll {
    /// Controllers before 1.4 do not say.
    #[default]
    NotReported = 0,
    /// It is refused.
    Refused = 2,
    /// It flushes all namespaces.
    Flushes = 3,
}

/// Identify Controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdentifyController {
    /// PCI vendor (VID); 0 over fabrics.
    pub vid: u16,
    /// PCI subsystem vendor (SSVID); 0 over fabrics.
    pub ssvid: u16,
    /// Serial number (SN).
    pub serial: Ascii<20>,
    /// Model number (MN).
    pub model: Ascii<40>,
    /// Firmware revision (FR).
    pub firmware: Ascii<8>,
    /// Recommended arbitration burst, as a power of two (RAB).
    pub rab: u8,
    /// Vendor's OUI, lowest byte first (IEEE).
    pub ieee: [u8; 3],
    /// Ports, controllers, ANA: bits of [`super::cmic`].
    pub cmic: u8,
    /// Largest data of one command, as a power of two of the smallest memory page; `None`: no limit (MDTS).
    pub mdts: Option<NonZeroU8>,
    /// Controller id.
    pub cntlid: u16,
    /// Version of the standard (VER).
    pub version: Version,
    /// Longest time a shutdown takes, in microseconds; `None`: not reported (RTD3E). Linux waits that long.
    pub shutdown_us: Option<NonZeroU32>,
    /// Asynchronous events, bits of [`super::oaes`].
    pub oaes: u32,
    /// Attributes, bits of [`super::ctratt`].
    pub ctratt: u32,
    /// What the controller is for (CNTRLTYPE).
    pub controller_type: ControllerType,
    /// Delays before a retry, in 100 ms (CRDT1 to 3).
    pub retry_delays: [u16; 3],
    /// Optional admin commands (OACS).
    pub oacs: u16,
    /// Abort commands at a time (ACL).
    pub abort_limit: Count8,
    /// Asynchronous Event Requests at a time (AERL).
    pub async_event_limit: Count8,
    /// Firmware updates: bit 0 slot 1 is read-only, bits 3:1 slots (FRMW).
    pub frmw: u8,
    /// Log pages, bits of [`super::lpa`].
    pub lpa: u8,
    /// Entries of the error log (ELPE).
    pub error_log_entries: Count8,
    /// Granularity of the keep-alive timer in 100 ms; `None`: no keep-alive (KAS). Linux refuses I/O controllers
    /// without.
    pub kas: Option<NonZeroU16>,
    /// Longest time in which the controller ends the commands of a host it has lost, in ms; `None`: not reported (CQT,
    /// Base Specification 2.1).
    pub quiesce_ms: Option<NonZeroU16>,
    /// Size of submission queue entries as powers of two: smallest 3:0, largest 7:4 (SQES).
    pub sqes: u8,
    /// Size of completion queue entries likewise (CQES).
    pub cqes: u8,
    /// Most commands at a time on a queue; `None`: not reported (MAXCMD).
    pub maxcmd: Option<NonZeroU16>,
    /// Highest NSID that can be valid (NN).
    pub nn: u32,
    /// Optional commands, bits of [`super::oncs`].
    pub oncs: u16,
    /// Fused operations (FUSES).
    pub fuses: u16,
    /// Format NVM (FNA).
    pub fna: u8,
    /// There is a volatile write cache: without a Flush, data may be lost (VWC bit 0).
    pub write_cache: bool,
    /// What a Flush to all namespaces does.
    pub flush_all: FlushAll,
    /// Blocks of a write that other commands see whole or not at all (AWUN).
    pub awun: Blocks,
    /// Blocks of a write that a power failure leaves whole or untouched (AWUPF).
    pub awupf: Blocks,
    /// Copy formats, [`Format::bit`] each (OCFS, CDFS).
    pub ocfs: u16,
    /// SGLs, bits of [`super::sgls`].
    pub sgls: u32,
    /// Most namespaces the subsystem allows; `None`: NN of them (MNAN).
    pub mnan: Option<NonZeroU32>,
    /// The subsystem's name (SUBNQN).
    pub subsystem: Nqn,
    /// Command capsules on I/O queues, in 16 bytes (IOCCSZ).
    pub ioccsz: u32,
    /// Response capsules on I/O queues, in 16 bytes (IORCSZ).
    pub iorcsz: u32,
    /// Where in-capsule data begins, in 16 bytes behind the entry (ICDOFF).
    pub icdoff: u16,
    /// Fabrics attributes: bit 0 says that controllers are static (FCATT).
    pub fcatt: u8,
    /// Most SGL descriptors of a command; `None`: no limit (MSDBD).
    pub msdbd: Option<NonZeroU8>,
    /// Optional fabrics commands: bit 0 Disconnect (OFCS).
    pub ofcs: u16,
}

impl IdentifyController {
    /// A controller of `subsystem` with entries of 64 and 16 bytes and nothing optional; the caller fills in the rest.
    pub fn new(subsystem: Nqn, cntlid: u16) -> Self {
        Self {
            vid: 0,
            ssvid: 0,
            serial: Ascii([b' '; 20]),
            model: Ascii([b' '; 40]),
            firmware: Ascii([b' '; 8]),
            rab: 0,
            ieee: [0; 3],
            cmic: 0,
            mdts: None,
            cntlid,
            version: Version::V2_0,
            shutdown_us: None,
            oaes: 0,
            ctratt: 0,
            controller_type: ControllerType::Io,
            retry_delays: [0; 3],
            oacs: 0,
            abort_limit: Count8::ONE,
            async_event_limit: Count8::ONE,
            frmw: 0,
            lpa: 0,
            error_log_entries: Count8::ONE,
            kas: None,
            quiesce_ms: None,
            sqes: 0x66,
            cqes: 0x44,
            maxcmd: None,
            nn: 0,
            oncs: 0,
            fuses: 0,
            fna: 0,
            write_cache: false,
            flush_all: FlushAll::Refused,
            awun: Blocks::ONE,
            awupf: Blocks::ONE,
            ocfs: 0,
            sgls: 0,
            mnan: None,
            subsystem,
            ioccsz: 4,
            iorcsz: 1,
            icdoff: 0,
            fcatt: 0,
            msdbd: None,
            ofcs: 0,
        }
    }

    /// Largest data of one command in bytes, given the controller's capabilities; `None`: no limit.
    pub fn data_bytes_max(&self, cap: Cap) -> Option<u64> {
        let pages = 1u64.checked_shl(self.mdts?.get().into())?;
        pages.checked_mul(cap.page_bytes_min().into())
    }

    /// Most bytes of data in a command capsule on an I/O queue.
    pub fn in_capsule_bytes_max(&self) -> u64 {
        (u64::from(self.ioccsz) * 16).saturating_sub(64)
    }

    /// True when the controller copies in this format (format 2h and 3h once the host has enabled them).
    pub fn copies_in(&self, format: Format) -> bool {
        self.oncs & super::oncs::COPY != 0 && self.ocfs & format.bit() != 0
    }

    /// As on the wire.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        let mut at = |at: usize, bytes: &[u8]| put(&mut out, at, bytes);
        at(0, &self.vid.to_le_bytes());
        at(2, &self.ssvid.to_le_bytes());
        at(4, &self.serial.0);
        at(24, &self.model.0);
        at(64, &self.firmware.0);
        at(72, &[self.rab]);
        at(73, &self.ieee);
        at(76, &[self.cmic, self.mdts.map_or(0, NonZeroU8::get)]);
        at(78, &self.cntlid.to_le_bytes());
        at(80, &self.version.0.to_le_bytes());
        at(88, &self.shutdown_us.map_or(0, NonZeroU32::get).to_le_bytes());
        at(92, &self.oaes.to_le_bytes());
        at(96, &self.ctratt.to_le_bytes());
        at(111, &[self.controller_type as u8]);
        at(128, &self.retry_delays[0].to_le_bytes());
        at(130, &self.retry_delays[1].to_le_bytes());
        at(132, &self.retry_delays[2].to_le_bytes());
        at(256, &self.oacs.to_le_bytes());
        at(258, &[self.abort_limit.to_wire(), self.async_event_limit.to_wire(), self.frmw, self.lpa]);
        at(262, &[self.error_log_entries.to_wire()]);
        at(320, &self.kas.map_or(0, NonZeroU16::get).to_le_bytes());
        at(386, &self.quiesce_ms.map_or(0, NonZeroU16::get).to_le_bytes());
        at(512, &[self.sqes, self.cqes]);
        at(514, &self.maxcmd.map_or(0, NonZeroU16::get).to_le_bytes());
        at(516, &self.nn.to_le_bytes());
        at(520, &self.oncs.to_le_bytes());
        at(522, &self.fuses.to_le_bytes());
        at(524, &[self.fna, u8::from(self.write_cache) | (self.flush_all as u8) << 1]);
        at(526, &self.awun.to_wire().to_le_bytes());
        at(528, &self.awupf.to_wire().to_le_bytes());
        at(534, &self.ocfs.to_le_bytes());
        at(536, &self.sgls.to_le_bytes());
        at(540, &self.mnan.map_or(0, NonZeroU32::get).to_le_bytes());
        at(768, &self.subsystem.to_field());
        at(1792, &self.ioccsz.to_le_bytes());
        at(1796, &self.iorcsz.to_le_bytes());
        at(1800, &self.icdoff.to_le_bytes());
        at(1802, &[self.fcatt, self.msdbd.map_or(0, NonZeroU8::get)]);
        at(1804, &self.ofcs.to_le_bytes());
        out
    }

    /// Reads the structure.
    ///
    /// Errors: `Io` for another length, a reserved controller type or flush behaviour, and a subsystem name that is
    /// none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; LEN] = exactly(bytes, "Identify Controller")?;
        let controller_type = match b[111] {
            0 => ControllerType::NotReported,
            1 => ControllerType::Io,
            2 => ControllerType::Discovery,
            3 => ControllerType::Administrative,
            other => {
                return Err(malformed(format!("Identify Controller: controller type {other} is reserved")));
            }
        };
        let flush_all = match b[525] >> 1 & 3 {
            0 => FlushAll::NotReported,
            2 => FlushAll::Refused,
            3 => FlushAll::Flushes,
            _ => {
                return Err(malformed(
                    "Identify Controller: VWC bits 2:1 are 01b, which is reserved".to_owned(),
                ));
            }
        };
        let subsystem = Nqn::from_field(&bytes_at(b, 768))
            .map_err(|e| malformed("Identify Controller: SUBNQN".to_owned()).because(e))?;
        Ok(Self {
            vid: u16_at(b, 0),
            ssvid: u16_at(b, 2),
            serial: Ascii(bytes_at(b, 4)),
            model: Ascii(bytes_at(b, 24)),
            firmware: Ascii(bytes_at(b, 64)),
            rab: b[72],
            ieee: bytes_at(b, 73),
            cmic: b[76],
            mdts: NonZeroU8::new(b[77]),
            cntlid: u16_at(b, 78),
            version: Version(u32_at(b, 80)),
            shutdown_us: NonZeroU32::new(u32_at(b, 88)),
            oaes: u32_at(b, 92),
            ctratt: u32_at(b, 96),
            controller_type,
            retry_delays: [u16_at(b, 128), u16_at(b, 130), u16_at(b, 132)],
            oacs: u16_at(b, 256),
            abort_limit: Count8::from_wire(b[258]),
            async_event_limit: Count8::from_wire(b[259]),
            frmw: b[260],
            lpa: b[261],
            error_log_entries: Count8::from_wire(b[262]),
            kas: NonZeroU16::new(u16_at(b, 320)),
            quiesce_ms: NonZeroU16::new(u16_at(b, 386)),
            sqes: b[512],
            cqes: b[513],
            maxcmd: NonZeroU16::new(u16_at(b, 514)),
            nn: u32_at(b, 516),
            oncs: u16_at(b, 520),
            fuses: u16_at(b, 522),
            fna: b[524],
            write_cache: b[525] & 1 != 0,
            flush_all,
            awun: Blocks::from_wire(u16_at(b, 526)),
            awupf: Blocks::from_wire(u16_at(b, 528)),
            ocfs: u16_at(b, 534),
            sgls: u32_at(b, 536),
            mnan: NonZeroU32::new(u32_at(b, 540)),
            subsystem,
            ioccsz: u32_at(b, 1792),
            iorcsz: u32_at(b, 1796),
            icdoff: u16_at(b, 1800),
            fcatt: b[1802],
            msdbd: NonZeroU8::new(b[1803]),
            ofcs: u16_at(b, 1804),
        })
    }
}

/// Limits of single commands of the NVM command set (CNS 06h, CSI 00h). `None`: no limit reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NvmController {
    /// Largest Write Zeroes, as a power of two of the smallest memory page (WZSL).
    pub write_zeroes_shift_max: Option<NonZeroU8>,
    /// Most ranges of one Dataset Management (DMRL).
    pub dsm_ranges_max: Option<NonZeroU8>,
    /// Longest single range of a Dataset Management, in blocks (DMRSL).
    pub dsm_range_blocks_max: Option<NonZeroU32>,
    /// Most blocks of one Dataset Management (DMSL).
    pub dsm_blocks_max: Option<NonZeroU64>,
}

impl NvmController {
    /// As on the wire.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[1] = self.write_zeroes_shift_max.map_or(0, NonZeroU8::get);
        out[3] = self.dsm_ranges_max.map_or(0, NonZeroU8::get);
        put(&mut out, 4, &self.dsm_range_blocks_max.map_or(0, NonZeroU32::get).to_le_bytes());
        put(&mut out, 8, &self.dsm_blocks_max.map_or(0, NonZeroU64::get).to_le_bytes());
        out
    }

    /// Reads the structure.
    ///
    /// Errors: `Io` for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; LEN] = exactly(bytes, "Identify Controller of the NVM command set")?;
        Ok(Self {
            write_zeroes_shift_max: NonZeroU8::new(b[1]),
            dsm_ranges_max: NonZeroU8::new(b[3]),
            dsm_range_blocks_max: NonZeroU32::new(u32_at(b, 4)),
            dsm_blocks_max: NonZeroU64::new(u64_at(b, 8)),
        })
    }
}

//! The admin commands, read from their entries and written to them.
//!
//! Reserved fields are ignored, as the standard has it, except where it wants a check: opcode, FUSE, PSDT, a log page's
//! offset. Layouts: NVM Express Base Specification 2.1, chapter 5.

use super::command::admin;
use super::{Sqe, Status};

/// An admin command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminCommand {
    /// Part of a log page.
    GetLogPage(GetLogPage),
    /// A data structure of 4096 bytes about controller, namespace or subsystem.
    Identify(Identify),
    /// Asks for a command to be given up.
    Abort {
        /// Its submission queue (SQID).
        sqid: u16,
        /// Its command id (CID).
        cid: u16,
    },
    /// Changes a feature.
    SetFeatures(SetFeatures),
    /// Asks for a feature.
    GetFeatures(GetFeatures),
    /// Completes when an event happens.
    AsyncEventRequest,
    /// Restarts the keep-alive timer.
    KeepAlive,
}

/// Get Log Page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetLogPage {
    /// Namespace, 0 or FFFFFFFFh for pages of the controller.
    pub nsid: u32,
    /// Which page (LID; see [`super::log::lid`]).
    pub lid: u8,
    /// First byte wanted, a multiple of 4; an index of entries when `offset_is_index` (LPOL, LPOU).
    pub offset: u64,
    /// True when `offset` counts entries (OT): only for pages that say so in Supported Log Pages.
    pub offset_is_index: bool,
    /// Bytes wanted: a multiple of 4, 4 to 2^34 (NUMD, which counts dwords, 0's based).
    pub len: u64,
    /// Retain asynchronous event: reading the page does not clear the event that pointed to it (RAE).
    pub rae: bool,
    /// Log specific parameter, 7 bits (LSP).
    pub lsp: u8,
    /// Log specific identifier (LSI).
    pub lsi: u16,
    /// Command set, for pages that have one each (CSI).
    pub csi: u8,
}

impl GetLogPage {
    /// The whole of page `lid` of the controller, `len` bytes (a multiple of 4, not 0).
    pub const fn new(lid: u8, len: u64) -> Self {
        Self {
            nsid: super::command::NSID_ALL,
            lid,
            offset: 0,
            offset_is_index: false,
            len,
            rae: false,
            lsp: 0,
            lsi: 0,
            csi: 0,
        }
    }

    fn parse(sqe: &Sqe) -> Result<Self, Status> {
        let [lid, lsp_rae, numdl0, numdl1] = sqe.dword(10).to_le_bytes();
        let [numdu0, numdu1, lsi0, lsi1] = sqe.dword(11).to_le_bytes();
        let numd = u32::from_le_bytes([numdl0, numdl1, numdu0, numdu1]);
        let offset_is_index = sqe.dword(14) & OT != 0;
        let offset = sqe.qword(12);
        if !offset_is_index && !offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        Ok(Self {
            nsid: sqe.nsid(),
            lid,
            offset,
            offset_is_index,
            len: (u64::from(numd) + 1) * 4,
            rae: lsp_rae & 0x80 != 0,
            lsp: lsp_rae & 0x7f,
            lsi: u16::from_le_bytes([lsi0, lsi1]),
            csi: sqe.dword(14).to_le_bytes()[3],
        })
    }

    fn to_sqe(self) -> Sqe {
        let dwords = self.len.div_ceil(4).clamp(1, 1 << 32) - 1;
        let [n0, n1, n2, n3, ..] = dwords.to_le_bytes();
        let [i0, i1] = self.lsi.to_le_bytes();
        let rae = if self.rae { 0x80 } else { 0 };
        let ot = if self.offset_is_index { OT } else { 0 };
        Sqe::new(admin::GET_LOG_PAGE, self.nsid)
            .with(10, u32::from_le_bytes([self.lid, self.lsp & 0x7f | rae, n0, n1]))
            .with(11, u32::from_le_bytes([n2, n3, i0, i1]))
            .with_qword(12, self.offset)
            .with(14, ot | u32::from(self.csi) << 24)
    }
}

/// Offset type, in dword 14 of Get Log Page.
const OT: u32 = 1 << 23;

/// Identify.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identify {
    /// Namespace, where the structure has one; the NSID that lists begin behind.
    pub nsid: u32,
    /// Which structure (CNS; see [`super::identify::cns`]).
    pub cns: u8,
    /// Controller, where the structure has one (CNTID).
    pub cntid: u16,
    /// Command set, where the structure has one (CSI).
    pub csi: u8,
    /// CNS specific identifier (CNSSI): an NVM set, a domain or the like.
    pub cnssi: u16,
}

impl Identify {
    /// Structure `cns` of namespace `nsid`, NVM command set.
    pub const fn new(cns: u8, nsid: u32) -> Self {
        Self { nsid, cns, cntid: 0, csi: 0, cnssi: 0 }
    }

    fn parse(sqe: &Sqe) -> Self {
        let [cns, _, cntid0, cntid1] = sqe.dword(10).to_le_bytes();
        let [cnssi0, cnssi1, _, csi] = sqe.dword(11).to_le_bytes();
        Self {
            nsid: sqe.nsid(),
            cns,
            cntid: u16::from_le_bytes([cntid0, cntid1]),
            csi,
            cnssi: u16::from_le_bytes([cnssi0, cnssi1]),
        }
    }

    fn to_sqe(self) -> Sqe {
        Sqe::new(admin::IDENTIFY, self.nsid)
            .with(10, u32::from(self.cns) | u32::from(self.cntid) << 16)
            .with(11, u32::from(self.cnssi) | u32::from(self.csi) << 24)
    }
}

/// Set Features. The values of single features: [`super::feature`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetFeatures {
    /// Namespace, for features that have one each.
    pub nsid: u32,
    /// Which feature (FID; see [`super::feature::fid`]).
    pub fid: u8,
    /// The value outlives a reset (SV).
    pub save: bool,
    /// Feature specific.
    pub cdw11: u32,
    /// Feature specific.
    pub cdw12: u32,
}

impl SetFeatures {
    /// Sets feature `fid` of the controller to `cdw11`, until the next reset.
    pub const fn new(fid: u8, cdw11: u32) -> Self {
        Self { nsid: 0, fid, save: false, cdw11, cdw12: 0 }
    }
}

/// Which of a feature's values (SEL).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Select {
    /// The value in force.
    #[default]
    Current,
    /// The value after a reset, unless one was saved.
    Default,
    /// The saved value.
    Saved,
    /// Whether it can be saved (bit 0), is a namespace's (bit 1), can be changed (bit 2).
    Capabilities,
}

/// Get Features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetFeatures {
    /// Namespace, for features that have one each.
    pub nsid: u32,
    /// Which feature (FID; see [`super::feature::fid`]).
    pub fid: u8,
    /// Which of its values. A controller that does not report "save and select" (ONCS bit 4) ignores it.
    pub select: Select,
    /// Feature specific.
    pub cdw11: u32,
}

impl GetFeatures {
    /// The value in force of feature `fid` of the controller.
    pub const fn new(fid: u8) -> Self {
        Self { nsid: 0, fid, select: Select::Current, cdw11: 0 }
    }
}

impl AdminCommand {
    /// Reads the command from its entry.
    ///
    /// Errors: Invalid Command Opcode for a command that is not here; Invalid Field as [`Sqe::check_flags`] says, for a
    /// log page's offset that is not a multiple of 4, and for a reserved [`Select`].
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        let opcode = sqe.opcode();
        let known = matches!(
            opcode,
            admin::GET_LOG_PAGE
                | admin::IDENTIFY
                | admin::ABORT
                | admin::SET_FEATURES
                | admin::GET_FEATURES
                | admin::ASYNC_EVENT_REQUEST
                | admin::KEEP_ALIVE
        );
        if !known {
            return Err(Status::INVALID_OPCODE);
        }
        sqe.check_flags()?;
        let [low0, low1, high0, high1] = sqe.dword(10).to_le_bytes();
        Ok(match opcode {
            admin::GET_LOG_PAGE => Self::GetLogPage(GetLogPage::parse(sqe)?),
            admin::IDENTIFY => Self::Identify(Identify::parse(sqe)),
            admin::ABORT => Self::Abort {
                sqid: u16::from_le_bytes([low0, low1]),
                cid: u16::from_le_bytes([high0, high1]),
            },
            admin::SET_FEATURES => Self::SetFeatures(SetFeatures {
                nsid: sqe.nsid(),
                fid: low0,
                save: sqe.dword(10) & SV != 0,
                cdw11: sqe.dword(11),
                cdw12: sqe.dword(12),
            }),
            admin::GET_FEATURES => Self::GetFeatures(GetFeatures {
                nsid: sqe.nsid(),
                fid: low0,
                select: match low1 & 7 {
                    0 => Select::Current,
                    1 => Select::Default,
                    2 => Select::Saved,
                    3 => Select::Capabilities,
                    _ => return Err(Status::INVALID_FIELD),
                },
                cdw11: sqe.dword(11),
            }),
            admin::ASYNC_EVENT_REQUEST => Self::AsyncEventRequest,
            _ => Self::KeepAlive,
        })
    }

    /// The entry; command id and data pointer are the caller's.
    pub fn to_sqe(self) -> Sqe {
        match self {
            Self::GetLogPage(command) => command.to_sqe(),
            Self::Identify(command) => command.to_sqe(),
            Self::Abort { sqid, cid } => {
                Sqe::new(admin::ABORT, 0).with(10, u32::from(sqid) | u32::from(cid) << 16)
            }
            Self::SetFeatures(command) => Sqe::new(admin::SET_FEATURES, command.nsid)
                .with(10, u32::from(command.fid) | if command.save { SV } else { 0 })
                .with(11, command.cdw11)
                .with(12, command.cdw12),
            Self::GetFeatures(command) => Sqe::new(admin::GET_FEATURES, command.nsid)
                .with(10, u32::from(command.fid) | (command.select as u32) << 8)
                .with(11, command.cdw11),
            Self::AsyncEventRequest => Sqe::new(admin::ASYNC_EVENT_REQUEST, 0),
            Self::KeepAlive => Sqe::new(admin::KEEP_ALIVE, 0),
        }
    }
}

/// Save, in dword 10 of Set Features.
const SV: u32 = 1 << 31;

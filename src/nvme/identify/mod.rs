//! Identify data structures: what a target reports of itself and its namespaces, and what a host reads of them.
//!
//! Each is written by `to_bytes` and read by a strict `parse`: the exact length, and no value that makes no sense. What
//! is not a field here is written as 0 ("not reported" or "not supported") and not read. A 0 that means "cannot" or "no
//! limit" is `None`, a 0's based field a count. Layouts: NVM Express Base Specification 2.1, 5.1.13; NVM Command Set
//! Specification 1.2, 4.1.5.

mod controller;
mod lists;
mod namespace;

pub use controller::{ControllerType, FlushAll, IdentifyController, NvmController};
pub use lists::{
    NamespaceIds, command_sets, controller_list, namespace_list, parse_command_sets, parse_controller_list,
    parse_namespace_list,
};
pub use namespace::{
    CopyLimits, IdentifyNamespace, IndependentNamespace, LbaFormat, NvmNamespace, OptimalPerformance,
};

/// Bytes of every identify data structure.
pub const LEN: usize = 4096;

/// Which structure (CNS).
#[allow(missing_docs)] // each is the standard's structure of that name
pub mod cns {
    pub const NAMESPACE: u8 = 0x00;
    pub const CONTROLLER: u8 = 0x01;
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// Of the command set CSI.
    pub const CSI_NAMESPACE: u8 = 0x05;
    /// Of the command set CSI.
    pub const CSI_CONTROLLER: u8 = 0x06;
    /// Of the command set CSI.
    pub const CSI_ACTIVE_NAMESPACES: u8 = 0x07;
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controllers a namespace is attached to.
    pub const NAMESPACE_CONTROLLERS: u8 = 0x12;
    pub const CONTROLLERS: u8 = 0x13;
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// Command set identifiers (CSI).
pub mod csi {
    /// The NVM command set: blocks that are read and written.
    pub const NVM: u8 = 0;
}

/// Bits of [`IdentifyController::cmic`].
pub mod cmic {
    /// The subsystem may have several ports.
    pub const MULTI_PORT: u8 = 1 << 0;
    /// The subsystem may have several controllers.
    pub const MULTI_CONTROLLER: u8 = 1 << 1;
    /// Reports asymmetric namespace access.
    pub const ANA: u8 = 1 << 3;
}

/// Bits of [`IdentifyController::oaes`]; the same bits enable the events in feature 0Bh.
pub mod oaes {
    /// The list or an attribute of attached namespaces has changed.
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// New firmware is about to be activated.
    pub const FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// The discovery log has changed.
    pub const DISCOVERY_LOG: u32 = 1 << 31;
}

/// Bits of [`IdentifyController::ctratt`].
pub mod ctratt {
    /// Takes host identifiers of 128 bits; fabrics want it.
    pub const HOST_ID_128: u32 = 1 << 0;
    /// Any command restarts the keep-alive timer (TBKAS).
    pub const TRAFFIC_KEEPS_ALIVE: u32 = 1 << 6;
    /// Extended LBA formats (ELBAS).
    pub const EXTENDED_LBA_FORMATS: u32 = 1 << 15;
}

/// Bits of [`IdentifyController::lpa`].
pub mod lpa {
    /// The SMART log exists for each namespace.
    pub const SMART_BY_NAMESPACE: u8 = 1 << 0;
    /// The log of commands supported and their effects (LID 05h).
    pub const COMMAND_EFFECTS: u8 = 1 << 1;
    /// Extended data: offsets and lengths beyond 12 bits of dwords.
    pub const EXTENDED: u8 = 1 << 2;
    /// Supported log pages (LID 00h), feature effects (LID 12h) and their kin (MLPS).
    pub const SUPPORTED_LOG_PAGES: u8 = 1 << 5;
}

/// Bits of [`IdentifyController::oncs`].
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Features can be saved, and Get Features has SEL.
    pub const SAVE_AND_SELECT: u16 = 1 << 4;
    /// Copy.
    pub const COPY: u16 = 1 << 8;
    /// The whole write portion of a Copy is one write for atomicity (NVMCSA).
    pub const COPY_SINGLE_ATOMICITY: u16 = 1 << 9;
    /// Every Copy is a fast one (NVMAFC).
    pub const COPY_ALWAYS_FAST: u16 = 1 << 10;
}

/// Bits of [`IdentifyController::sgls`].
pub mod sgls {
    /// SGLs, of any alignment and length (01b in bits 1:0).
    pub const SUPPORTED: u32 = 1 << 0;
    /// The same, in multiples of dwords (10b in bits 1:0).
    pub const DWORDS: u32 = 1 << 1;
    /// SGLs longer than their data.
    pub const OVERSIZED: u32 = 1 << 18;
    /// The address field is an offset: data in the capsule.
    pub const OFFSET: u32 = 1 << 20;
    /// The transport SGL data block descriptor.
    pub const TRANSPORT: u32 = 1 << 21;
}

/// Bits of [`IdentifyNamespace::nsfeat`] and, from bit 3 on, [`IndependentNamespace::nsfeat`].
pub mod nsfeat {
    /// Thin: NUSE may be below NCAP.
    pub const THIN: u8 = 1 << 0;
    /// NAWUN, NAWUPF and NACWU are the namespace's own.
    pub const OWN_ATOMICS: u8 = 1 << 1;
    /// Errors on deallocated blocks can be enabled.
    pub const DEALLOCATED_ERROR: u8 = 1 << 2;
    /// NGUID and EUI64 are never used again.
    pub const IDS_NOT_REUSED: u8 = 1 << 3;
    /// [`super::IndependentNamespace`]: media that turn.
    pub const ROTATIONAL: u8 = 1 << 4;
    /// [`super::IndependentNamespace`]: no volatile write cache, whatever the controller has.
    pub const NO_WRITE_CACHE: u8 = 1 << 5;
}

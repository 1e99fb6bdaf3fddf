//! Features: values of Set Features and Get Features, and what an asynchronous event says.
//!
//! Values that fit a dword are read from and written to one (dword 11 of the command, dword 0 of the completion);
//! reserved bits are ignored. Layouts: NVM Express Base Specification 2.1, 5.1.25; NVM Command Set Specification 1.2,
//! 4.1.3.

use super::Status;
use super::count::Count16;
use super::wire::{put, u16_at};
use crate::block::Result;
use std::num::NonZeroU32;

/// Feature identifiers (FID).
#[allow(missing_docs)] // each is the standard's feature of that name
pub mod fid {
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER_MANAGEMENT: u8 = 0x02;
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    pub const ASYNC_EVENTS: u8 = 0x0b;
    pub const KEEP_ALIVE: u8 = 0x0f;
    pub const HOST_BEHAVIOR: u8 = 0x16;
    pub const HOST_ID: u8 = 0x81;
}

/// Capabilities of a feature: the answer to Get Features with [`super::admin::Select::Capabilities`].
pub mod capability {
    /// It can be saved.
    pub const SAVEABLE: u32 = 1 << 0;
    /// Each namespace has its own.
    pub const BY_NAMESPACE: u32 = 1 << 1;
    /// It can be changed.
    pub const CHANGEABLE: u32 = 1 << 2;
}

/// Arbitration (01h). Weights are 0's based and mean nothing to round robin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arbitration {
    /// Commands fetched from a queue at a time, as a power of two; 7 is not a limit (AB).
    pub burst: u8,
    /// Weights of low, medium and high priority as on the wire.
    pub weights: [u8; 3],
}

impl Arbitration {
    /// From the dword.
    pub fn from_dword(dword: u32) -> Self {
        let [burst, weights @ ..] = dword.to_le_bytes();
        Self { burst: burst & 7, weights }
    }

    /// As a dword.
    pub fn to_dword(self) -> u32 {
        let [low, medium, high] = self.weights;
        u32::from_le_bytes([self.burst & 7, low, medium, high])
    }
}

/// Power Management (02h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PowerManagement {
    /// Power state, 0 to 31 (PS).
    pub state: u8,
    /// Hint on the kind of work, 0 to 7 (WH).
    pub workload: u8,
}

impl PowerManagement {
    /// From the dword.
    pub fn from_dword(dword: u32) -> Self {
        let [low, ..] = dword.to_le_bytes();
        Self { state: low & 0x1f, workload: low >> 5 }
    }

    /// As a dword.
    pub fn to_dword(self) -> u32 {
        u32::from(self.state & 0x1f | self.workload << 5)
    }
}

/// Temperature Threshold (04h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TemperatureThreshold {
    /// The threshold in kelvin (TMPTH).
    pub kelvin: u16,
    /// Which sensor, 4 bits: 0 the composite temperature, 15 all of them (TMPSEL).
    pub sensor: u8,
    /// Which threshold, 2 bits: 0 over, 1 under (THSEL).
    pub kind: u8,
}

impl TemperatureThreshold {
    /// From the dword.
    pub fn from_dword(dword: u32) -> Self {
        let [low, high, select, _] = dword.to_le_bytes();
        Self { kelvin: u16::from_le_bytes([low, high]), sensor: select & 0xf, kind: select >> 4 & 3 }
    }

    /// As a dword.
    pub fn to_dword(self) -> u32 {
        let [low, high] = self.kelvin.to_le_bytes();
        u32::from_le_bytes([low, high, self.sensor & 0xf | (self.kind & 3) << 4, 0])
    }
}

/// Error Recovery (05h), of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ErrorRecovery {
    /// Time for retries in 100 ms; 0 for no limit (TLER).
    pub limit_100ms: u16,
    /// Reads of deallocated blocks fail (DULBE).
    pub deallocated_error: bool,
}

impl ErrorRecovery {
    /// From the dword.
    pub fn from_dword(dword: u32) -> Self {
        let [low, high, flags, _] = dword.to_le_bytes();
        Self { limit_100ms: u16::from_le_bytes([low, high]), deallocated_error: flags & 1 != 0 }
    }

    /// As a dword.
    pub fn to_dword(self) -> u32 {
        u32::from(self.limit_100ms) | u32::from(self.deallocated_error) << 16
    }
}

/// Volatile Write Cache (06h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VolatileWriteCache {
    /// It is used (WCE).
    pub enabled: bool,
}

impl VolatileWriteCache {
    /// From the dword.
    pub fn from_dword(dword: u32) -> Self {
        Self { enabled: dword & 1 != 0 }
    }

    /// As a dword.
    pub fn to_dword(self) -> u32 {
        self.enabled.into()
    }
}

/// Number of Queues (07h): asked for by the host, granted by the controller, which may grant less or more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NumberOfQueues {
    /// I/O submission queues: 1 to 65535.
    pub submission: Count16,
    /// I/O completion queues: 1 to 65535. Over fabrics as many as submission queues.
    pub completion: Count16,
}

impl NumberOfQueues {
    /// As many of each.
    pub const fn pairs(queues: Count16) -> Self {
        Self { submission: queues, completion: queues }
    }

    /// From the dword.
    ///
    /// Errors: Invalid Field for 65536, which the standard forbids to ask for.
    pub fn from_dword(dword: u32) -> Result<Self, Status> {
        let [low0, low1, high0, high1] = dword.to_le_bytes();
        let submission = Count16::from_wire(u16::from_le_bytes([low0, low1]));
        let completion = Count16::from_wire(u16::from_le_bytes([high0, high1]));
        if submission == Count16::MAX || completion == Count16::MAX {
            return Err(Status::INVALID_FIELD);
        }
        Ok(Self { submission, completion })
    }

    /// As a dword.
    pub fn to_dword(self) -> u32 {
        u32::from(self.submission.to_wire()) | u32::from(self.completion.to_wire()) << 16
    }
}

/// Write Atomicity Normal (0Ah).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteAtomicity {
    /// The host needs no atomicity beyond that of a power failure: AWUN and NAWUN do not bind (DN).
    pub disable_normal: bool,
}

impl WriteAtomicity {
    /// From the dword.
    pub fn from_dword(dword: u32) -> Self {
        Self { disable_normal: dword & 1 != 0 }
    }

    /// As a dword.
    pub fn to_dword(self) -> u32 {
        self.disable_normal.into()
    }
}

/// Asynchronous Event Configuration (0Bh): bits 7:0 are SMART warnings, the others those of [`super::identify::oaes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AsyncEvents(pub u32);

impl AsyncEvents {
    /// True when all events of `bits` are enabled.
    pub const fn enabled(self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}

/// Keep Alive Timer (0Fh): timeout in milliseconds; `None` turns it off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeepAlive(pub Option<NonZeroU32>);

impl KeepAlive {
    /// From the dword.
    pub fn from_dword(dword: u32) -> Self {
        Self(NonZeroU32::new(dword))
    }

    /// As a dword.
    pub fn to_dword(self) -> u32 {
        self.0.map_or(0, NonZeroU32::get)
    }
}

/// Host Behavior Support (16h): what the host says it can, 512 bytes of data. Lost at a reset of the controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostBehavior {
    /// Understands retry delays (ACRE).
    pub retry_delays: bool,
    /// Understands data area 4 of telemetry (ETDAS).
    pub telemetry_area_4: bool,
    /// Understands extended LBA formats (LBAFEE).
    pub extended_lba_formats: bool,
    /// Understands dispersed namespaces (HDISNS).
    pub dispersed_namespaces: bool,
    /// Copy formats enabled, [`super::copy::Format::bit`] each. Formats 0h and 1h are on without it (CDFE).
    pub copy_formats: u16,
}

impl HostBehavior {
    /// Bytes on the wire.
    pub const LEN: usize = 512;

    /// Reads the data of Set Features, or of the answer to Get Features. A byte that may be 0 or 1 counts when it is 1.
    ///
    /// Errors: Data SGL Length Invalid for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self, Status> {
        let b: &[u8; Self::LEN] = bytes.try_into().map_err(|_| Status::SGL_LENGTH_INVALID)?;
        Ok(Self {
            retry_delays: b[0] == 1,
            telemetry_area_4: b[1] == 1,
            extended_lba_formats: b[2] == 1,
            dispersed_namespaces: b[3] == 1,
            copy_formats: u16_at(b, 4),
        })
    }

    /// As on the wire.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = self.retry_delays.into();
        out[1] = self.telemetry_area_4.into();
        out[2] = self.extended_lba_formats.into();
        out[3] = self.dispersed_namespaces.into();
        put(&mut out, 4, &self.copy_formats.to_le_bytes());
        out
    }
}

/// What an Asynchronous Event Request completes with: dword 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AsyncEvent {
    /// Event type, 3 bits: 0 error, 1 SMART, 2 notice, 6 of the command set, 7 vendor's.
    pub kind: u8,
    /// Which event of that type.
    pub info: u8,
    /// Log page that says more; reading it clears the event.
    pub lid: u8,
}

impl AsyncEvent {
    /// Namespaces or their attributes have changed.
    pub const NAMESPACE_ATTRIBUTE: Self =
        Self { kind: 2, info: 0x00, lid: super::log::lid::CHANGED_NAMESPACES };
    /// The discovery log has changed.
    pub const DISCOVERY_LOG: Self = Self { kind: 2, info: 0xf0, lid: super::log::lid::DISCOVERY };

    /// From the dword.
    pub fn from_dword(dword: u32) -> Self {
        let [kind, info, lid, _] = dword.to_le_bytes();
        Self { kind: kind & 7, info, lid }
    }

    /// As a dword.
    pub fn to_dword(self) -> u32 {
        u32::from_le_bytes([self.kind & 7, self.info, self.lid, 0])
    }
}

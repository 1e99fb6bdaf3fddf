//! Controller properties: the registers that fabrics read and write by command.
//!
//! Offsets and bits: NVM Express Base Specification 2.1, 3.1.4. Each type keeps all bits of the wire; its methods read
//! and set the ones that mean something here.

use super::count::Count16;
use std::fmt;

/// Where a property is, in bytes.
#[allow(missing_docs)] // each is the standard's property of that name
pub mod offset {
    pub const CAP: u32 = 0x00;
    pub const VS: u32 = 0x08;
    pub const CC: u32 = 0x14;
    pub const CSTS: u32 = 0x1c;
    pub const NSSR: u32 = 0x20;
    pub const CRTO: u32 = 0x68;
}

/// Controller capabilities (CAP), 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// [`Cap::command_sets`]: the NVM command set.
    pub const CSS_NVM: u8 = 1 << 0;
    /// [`Cap::command_sets`]: command sets are named by CSI. A namespace then needs a CSI descriptor.
    pub const CSS_CSI: u8 = 1 << 6;

    /// A controller with queues of up to `entries` entries that is ready within `ready_ms` (rounded up to 500 ms, at
    /// most 127.5 s) and takes the command sets `command_sets`; pages of 4096 bytes, contiguous queues (fabrics want
    /// that bit).
    pub fn new(entries: Count16, ready_ms: u32, command_sets: u8) -> Self {
        let timeout = u64::from(ready_ms.div_ceil(500).min(255));
        Self(u64::from(entries.to_wire()) | 1 << 16 | timeout << 24 | u64::from(command_sets) << 37)
    }

    /// Most entries of a queue (MQES).
    pub const fn entries_max(self) -> Count16 {
        Count16::from_wire((self.0 & 0xffff) as u16)
    }

    /// Longest time from enabling to ready and from disabling to not ready, in milliseconds (TO).
    pub const fn ready_ms(self) -> u32 {
        (self.0 >> 24 & 0xff) as u32 * 500
    }

    /// Command sets, a bit each (CSS).
    pub const fn command_sets(self) -> u8 {
        (self.0 >> 37 & 0xff) as u8
    }

    /// Smallest memory page, in bytes: 4096 to 2^27 (MPSMIN).
    pub const fn page_bytes_min(self) -> u32 {
        4096 << (self.0 >> 48 & 0xf)
    }

    /// Largest memory page, in bytes (MPSMAX).
    pub const fn page_bytes_max(self) -> u32 {
        4096 << (self.0 >> 52 & 0xf)
    }

    /// True when the property CRTO says how long the controller needs to be ready (CRMS.CRWMS).
    pub const fn has_crto(self) -> bool {
        self.0 >> 59 & 1 != 0
    }
}

impl fmt::Debug for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CAP {:016x}h", self.0)
    }
}

/// Version (VS), 4 bytes. Ordered as versions are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl Version {
    /// 1.3.
    pub const V1_3: Self = Self::new(1, 3, 0);
    /// 1.4.
    pub const V1_4: Self = Self::new(1, 4, 0);
    /// 2.0.
    pub const V2_0: Self = Self::new(2, 0, 0);
    /// 2.1.
    pub const V2_1: Self = Self::new(2, 1, 0);

    /// Major, minor, tertiary.
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Self((major as u32) << 16 | (minor as u32) << 8 | tertiary as u32)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [tertiary, minor, ..] = self.0.to_le_bytes();
        write!(f, "{}.{minor}.{tertiary}", self.0 >> 16)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A shutdown the host asks for (CC.SHN).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// 01b: finish what is there.
    Normal,
    /// 10b: power goes.
    Abrupt,
}

/// Controller configuration (CC), 4 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Cc(pub u32);

impl Cc {
    /// [`Cc::command_set`]: the NVM command set.
    pub const CSS_NVM: u8 = 0;
    /// [`Cc::command_set`]: all that the controller supports, named by CSI.
    pub const CSS_CSI: u8 = 6;

    /// What a host sets before it enables: pages of 4096 bytes, entries of 64 and 16 bytes, command set `command_set`.
    pub const fn for_host(command_set: u8) -> Self {
        Self((command_set as u32 & 7) << 4 | 6 << 16 | 4 << 20)
    }

    /// Enabled (EN).
    pub const fn enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// The same, enabled or not.
    #[must_use]
    pub const fn with_enabled(self, enabled: bool) -> Self {
        Self(self.0 & !1 | enabled as u32)
    }

    /// The command set selected (CSS).
    pub const fn command_set(self) -> u8 {
        (self.0 >> 4 & 7) as u8
    }

    /// Memory page in bytes (MPS).
    pub const fn page_bytes(self) -> u32 {
        4096 << (self.0 >> 7 & 0xf)
    }

    /// Arbitration (AMS): 0 is round robin.
    pub const fn arbitration(self) -> u8 {
        (self.0 >> 11 & 7) as u8
    }

    /// The shutdown asked for. The reserved value 11b counts as abrupt: whoever writes it wants the controller to stop.
    pub const fn shutdown(self) -> Option<Shutdown> {
        match self.0 >> 14 & 3 {
            0 => None,
            1 => Some(Shutdown::Normal),
            _ => Some(Shutdown::Abrupt),
        }
    }

    /// The same, asking for a shutdown or for none.
    #[must_use]
    pub const fn with_shutdown(self, shutdown: Option<Shutdown>) -> Self {
        let bits = match shutdown {
            None => 0,
            Some(Shutdown::Normal) => 1,
            Some(Shutdown::Abrupt) => 2,
        };
        Self(self.0 & !(3 << 14) | bits << 14)
    }

    /// Size of I/O submission queue entries as a power of two (IOSQES): 6.
    pub const fn sqe_shift(self) -> u8 {
        (self.0 >> 16 & 0xf) as u8
    }

    /// Size of I/O completion queue entries as a power of two (IOCQES): 4.
    pub const fn cqe_shift(self) -> u8 {
        (self.0 >> 20 & 0xf) as u8
    }
}

impl fmt::Debug for Cc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CC {:08x}h", self.0)
    }
}

/// How far a shutdown is (CSTS.SHST).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ShutdownStatus {
    /// 00b: none asked for.
    #[default]
    None,
    /// 01b: under way.
    Occurring,
    /// 10b: complete.
    Complete,
}

/// Controller status (CSTS), 4 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Csts(pub u32);

impl Csts {
    /// Takes commands (RDY).
    pub const fn ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// Broken until it is reset (CFS).
    pub const fn fatal(self) -> bool {
        self.0 & 2 != 0
    }

    /// How far a shutdown is (SHST); `None` for the reserved value.
    pub const fn shutdown(self) -> Option<ShutdownStatus> {
        match self.0 >> 2 & 3 {
            0 => Some(ShutdownStatus::None),
            1 => Some(ShutdownStatus::Occurring),
            2 => Some(ShutdownStatus::Complete),
            _ => None,
        }
    }

    /// The same, ready or not.
    #[must_use]
    pub const fn with_ready(self, ready: bool) -> Self {
        Self(self.0 & !1 | ready as u32)
    }

    /// The same, broken or not.
    #[must_use]
    pub const fn with_fatal(self, fatal: bool) -> Self {
        Self(self.0 & !2 | (fatal as u32) << 1)
    }

    /// The same with another shutdown status.
    #[must_use]
    pub const fn with_shutdown(self, status: ShutdownStatus) -> Self {
        Self(self.0 & !0xc | (status as u32) << 2)
    }
}

impl fmt::Debug for Csts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CSTS {:08x}h", self.0)
    }
}

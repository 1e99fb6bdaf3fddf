//! Submission and completion queue entries, and the commands in them.

use super::Status;
use std::fmt;

/// Opcodes of the admin command set.
#[allow(missing_docs)] // each is the standard's command of that name
pub mod admin {
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    pub const KEEP_ALIVE: u8 = 0x18;
}

/// Opcodes of the NVM command set.
#[allow(missing_docs)] // each is the standard's command of that name
pub mod nvm {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    pub const COPY: u8 = 0x19;
}

/// Opcode of every fabrics command; byte 4 tells which.
pub const FABRICS: u8 = 0x7f;

/// All namespaces, where a command may address them.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// Which way a command's data goes: bits 1:0 of the opcode (of FCTYPE for a fabrics command).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transfer {
    /// No data.
    None,
    /// Host to controller.
    ToController,
    /// Controller to host.
    ToHost,
    /// Both: no command here has it.
    Both,
}

/// A submission queue entry: 64 bytes, little-endian.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sqe(pub [u8; Self::LEN]);

impl Sqe {
    /// Bytes on the wire.
    pub const LEN: usize = 64;

    /// An entry with opcode and namespace, all else 0; PSDT says SGL, as fabrics want it.
    pub fn new(opcode: u8, nsid: u32) -> Self {
        let mut sqe = Self([0; Self::LEN]);
        sqe.0[0] = opcode;
        sqe.0[1] = 0x40;
        sqe.set_dword(1, nsid);
        sqe
    }

    /// The opcode.
    pub const fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// FUSE (1:0) and PSDT (7:6).
    pub const fn flags(&self) -> u8 {
        self.0[1]
    }

    /// Checks FUSE and PSDT, the fields of an admin or I/O command that come before all others.
    ///
    /// Errors: Invalid Field for a fused command (none is supported) and for a data pointer that is not one SGL
    /// descriptor with contiguous metadata (PSDT 01b): fabrics have no PRPs. Fabrics commands are not to be asked:
    /// theirs is a reserved byte.
    pub fn check_flags(&self) -> Result<(), Status> {
        if self.flags() & 0xc3 == 0x40 { Ok(()) } else { Err(Status::INVALID_FIELD) }
    }

    /// Command id: the host's name for the command on its queue.
    pub const fn cid(&self) -> u16 {
        u16::from_le_bytes([self.0[2], self.0[3]])
    }

    /// Sets the command id.
    pub fn set_cid(&mut self, cid: u16) {
        self.0[2..4].copy_from_slice(&cid.to_le_bytes());
    }

    /// Namespace id.
    pub const fn nsid(&self) -> u32 {
        self.dword(1)
    }

    /// Dword `n` (0 to 15).
    pub const fn dword(&self, n: usize) -> u32 {
        let at = n * 4;
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// Sets dword `n`.
    pub fn set_dword(&mut self, n: usize, value: u32) {
        self.0[n * 4..n * 4 + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// The same with dword `n` set.
    #[must_use]
    pub fn with(mut self, n: usize, value: u32) -> Self {
        self.set_dword(n, value);
        self
    }

    /// Dwords `n` and `n + 1` as one number, the lower half first.
    pub const fn qword(&self, n: usize) -> u64 {
        self.dword(n) as u64 | (self.dword(n + 1) as u64) << 32
    }

    /// The same with dwords `n` and `n + 1` set.
    #[must_use]
    pub fn with_qword(mut self, n: usize, value: u64) -> Self {
        self.0[n * 4..n * 4 + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// The data pointer as an SGL descriptor (bytes 24 to 39).
    pub const fn sgl(&self) -> Sgl {
        Sgl { address: self.qword(6), len: self.dword(8), kind: self.0[39] }
    }

    /// The same with the data pointer set.
    #[must_use]
    pub fn with_sgl(mut self, sgl: Sgl) -> Self {
        self = self.with_qword(6, sgl.address).with(8, sgl.len);
        self.0[36..39].fill(0);
        self.0[39] = sgl.kind;
        self
    }

    /// Which way data goes.
    pub const fn transfer(&self) -> Transfer {
        let byte = if self.opcode() == FABRICS { self.0[4] } else { self.opcode() };
        match byte & 3 {
            0 => Transfer::None,
            1 => Transfer::ToController,
            2 => Transfer::ToHost,
            _ => Transfer::Both,
        }
    }
}

impl fmt::Debug for Sqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "opcode {:02x}h cid {} nsid {} sgl {:?}",
            self.opcode(),
            self.cid(),
            self.nsid(),
            self.sgl()
        )?;
        (10..16).try_for_each(|n| write!(f, " {:x}", self.dword(n)))
    }
}

/// An SGL descriptor: where a command's data is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sgl {
    /// Address, or offset into the capsule's data.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Descriptor type (7:4) and sub type (3:0).
    pub kind: u8,
}

impl Sgl {
    /// Data block, sub type offset: the data is in the capsule, `address` bytes behind the SQE.
    pub const IN_CAPSULE: u8 = 0x01;
    /// Transport SGL data block, sub type transport specific: the transport moves the data by R2T or C2HData.
    pub const TRANSPORT: u8 = 0x5a;

    /// Data of `len` bytes inside the capsule.
    pub const fn in_capsule(len: u32) -> Self {
        Self { address: 0, len, kind: Self::IN_CAPSULE }
    }

    /// Data of `len` bytes that the transport moves.
    pub const fn transport(len: u32) -> Self {
        Self { address: 0, len, kind: Self::TRANSPORT }
    }
}

/// A completion queue entry: 16 bytes, little-endian. No phase bit: fabrics have none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cqe {
    /// Command specific result, dwords 0 (lower half) and 1.
    pub result: u64,
    /// Submission queue head, when SQ flow control is on.
    pub sq_head: u16,
    /// Submission queue id (0 over fabrics).
    pub sq_id: u16,
    /// The command this completes.
    pub cid: u16,
    /// How it ended.
    pub status: Status,
}

impl Cqe {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// Dword 0 of the result.
    pub const fn dword0(&self) -> u32 {
        (self.result & 0xffff_ffff) as u32
    }

    /// As on the wire.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.result.to_le_bytes());
        out[8..10].copy_from_slice(&self.sq_head.to_le_bytes());
        out[10..12].copy_from_slice(&self.sq_id.to_le_bytes());
        out[12..14].copy_from_slice(&self.cid.to_le_bytes());
        out[14..].copy_from_slice(&(self.status.bits() << 1).to_le_bytes());
        out
    }

    /// From the wire.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut result = [0; 8];
        result.copy_from_slice(&bytes[..8]);
        Self {
            result: u64::from_le_bytes(result),
            sq_head: word(8),
            sq_id: word(10),
            cid: word(12),
            status: Status::from_bits(word(14) >> 1),
        }
    }
}

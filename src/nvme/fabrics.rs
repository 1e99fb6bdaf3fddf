//! Fabrics commands: connecting queues, properties, and authentication commands as far as to know them.
//!
//! Byte 1 of a fabrics command is reserved and not looked at, by the transport neither. Layouts: NVM Express Base
//! Specification 2.1, chapter 6.

use super::command::FABRICS;
use super::count::Count16;
use super::nqn::Nqn;
use super::wire::{bytes_at, put, u16_at};
use super::{Cqe, Sqe, Status};
use std::num::NonZeroU32;

/// Fabrics command types, byte 4 of the entry.
#[allow(missing_docs)] // each is the standard's command of that name
pub mod fctype {
    pub const PROPERTY_SET: u8 = 0x00;
    pub const CONNECT: u8 = 0x01;
    pub const PROPERTY_GET: u8 = 0x04;
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    pub const DISCONNECT: u8 = 0x08;
}

/// Highest controller id of a real controller; those above mean something else.
pub const CNTLID_MAX: u16 = 0xffef;

/// Controller id in Connect for "give me any" (the dynamic controller model).
pub const CNTLID_DYNAMIC: u16 = 0xffff;

/// A command refused, with what dword 0 of the completion says about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Why.
    pub status: Status,
    /// Result of the completion, dword 0.
    pub dword0: u32,
}

impl Refusal {
    /// Connect Invalid Parameters: the byte at `offset` of the entry.
    pub const fn in_command(offset: u16) -> Self {
        Self { status: Status::CONNECT_INVALID_PARAMETERS, dword0: offset as u32 }
    }

    /// Connect Invalid Parameters: the byte at `offset` of the connect data.
    pub const fn in_data(offset: u16) -> Self {
        Self { status: Status::CONNECT_INVALID_PARAMETERS, dword0: offset as u32 | 1 << 16 }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { status, dword0: 0 }
    }
}

/// Which parameter of a Connect was refused, read by the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidParameter {
    /// Its first byte.
    pub offset: u16,
    /// In the connect data; false: in the command.
    pub in_data: bool,
}

impl InvalidParameter {
    /// From the completion of a Connect that ended with Connect Invalid Parameters; `None` for another end.
    pub fn of(cqe: &Cqe) -> Option<Self> {
        let [low, high, attributes, _] = cqe.dword0().to_le_bytes();
        cqe.status
            .is(Status::CONNECT_INVALID_PARAMETERS)
            .then_some(Self { offset: u16::from_le_bytes([low, high]), in_data: attributes & 1 != 0 })
    }
}

/// A property's width.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
}

/// Connect: makes the connection it comes on a queue of a controller. Its data: [`ConnectData`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connect {
    /// Queue id: 0 is the admin queue.
    pub qid: u16,
    /// Entries of the submission queue (SQSIZE): 2 or more.
    pub entries: Count16,
    /// The host ignores the submission queue head: SQ flow control is off (CATTR bit 2).
    pub no_flow_control: bool,
    /// Keep-alive timeout in milliseconds, `None` for no keep-alive. Means something on the admin queue only (KATO).
    pub keep_alive_ms: Option<NonZeroU32>,
}

/// Authentication Send or Receive, without its message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Authentication {
    /// Security protocol (SECP): E9h is NVMe's.
    pub protocol: u8,
    /// Security protocol specific, SPSP0 and SPSP1.
    pub specific: [u8; 2],
    /// Bytes of the message sent (TL), or most bytes taken (AL).
    pub len: u32,
}

/// A fabrics command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FabricsCommand {
    /// Sets a property.
    PropertySet {
        /// Its width.
        width: Width,
        /// Where it is (see [`super::property::offset`]).
        offset: u32,
        /// The value; upper half 0 when it has 4 bytes.
        value: u64,
    },
    /// Asks for a property: the completion's result is its value.
    PropertyGet {
        /// Its width.
        width: Width,
        /// Where it is (see [`super::property::offset`]).
        offset: u32,
    },
    /// Makes the connection a queue.
    Connect(Connect),
    /// Sends an authentication message.
    AuthenticationSend(Authentication),
    /// Asks for an authentication message.
    AuthenticationReceive(Authentication),
    /// Ends an I/O queue.
    Disconnect,
}

impl FabricsCommand {
    /// Reads the command from its entry (opcode 7Fh).
    ///
    /// Errors: Invalid Command Opcode for an unknown type; Invalid Field for a property of another width; for Connect
    /// Incompatible Format (record format not 0) and Invalid Parameters (a queue of one entry).
    pub fn parse(sqe: &Sqe) -> Result<Self, Refusal> {
        if sqe.opcode() != FABRICS {
            return Err(Status::INVALID_OPCODE.into());
        }
        let width = match sqe.0[40] & 7 {
            0 => Ok(Width::Four),
            1 => Ok(Width::Eight),
            _ => Err(Refusal::from(Status::INVALID_FIELD)),
        };
        let authentication =
            Authentication { protocol: sqe.0[43], specific: [sqe.0[41], sqe.0[42]], len: sqe.dword(11) };
        let format_is_known = u16_at(&sqe.0, 40) == 0;
        match sqe.0[4] {
            fctype::PROPERTY_SET => {
                let (width, value) = (width?, sqe.qword(12));
                let value = if width == Width::Four { value & 0xffff_ffff } else { value };
                Ok(Self::PropertySet { width, offset: sqe.dword(11), value })
            }
            fctype::PROPERTY_GET => Ok(Self::PropertyGet { width: width?, offset: sqe.dword(11) }),
            fctype::CONNECT | fctype::DISCONNECT if !format_is_known => {
                Err(Status::CONNECT_INCOMPATIBLE_FORMAT.into())
            }
            fctype::CONNECT => match u16_at(&sqe.0, SQSIZE_AT.into()) {
                0 => Err(Refusal::in_command(SQSIZE_AT)),
                size => Ok(Self::Connect(Connect {
                    qid: u16_at(&sqe.0, 42),
                    entries: Count16::from_wire(size),
                    no_flow_control: sqe.0[46] & NO_FLOW_CONTROL != 0,
                    keep_alive_ms: NonZeroU32::new(sqe.dword(12)),
                })),
            },
            fctype::AUTHENTICATION_SEND => Ok(Self::AuthenticationSend(authentication)),
            fctype::AUTHENTICATION_RECEIVE => Ok(Self::AuthenticationReceive(authentication)),
            fctype::DISCONNECT => Ok(Self::Disconnect),
            _ => Err(Status::INVALID_OPCODE.into()),
        }
    }

    /// The entry; command id and data pointer are the caller's.
    pub fn to_sqe(self) -> Sqe {
        let property = |kind, width, offset| {
            fabrics(kind).with(10, if width == Width::Eight { 1 } else { 0 }).with(11, offset)
        };
        let authentication = |kind, a: Authentication| {
            fabrics(kind)
                .with(10, u32::from_le_bytes([0, a.specific[0], a.specific[1], a.protocol]))
                .with(11, a.len)
        };
        match self {
            Self::PropertySet { width, offset, value } => {
                property(fctype::PROPERTY_SET, width, offset).with_qword(12, value)
            }
            Self::PropertyGet { width, offset } => property(fctype::PROPERTY_GET, width, offset),
            Self::Connect(connect) => {
                let mut sqe = fabrics(fctype::CONNECT);
                put(&mut sqe.0, 42, &connect.qid.to_le_bytes());
                put(&mut sqe.0, SQSIZE_AT.into(), &connect.entries.to_wire().to_le_bytes());
                sqe.0[46] = if connect.no_flow_control { NO_FLOW_CONTROL } else { 0 };
                sqe.with(12, connect.keep_alive_ms.map_or(0, NonZeroU32::get))
            }
            Self::AuthenticationSend(a) => authentication(fctype::AUTHENTICATION_SEND, a),
            Self::AuthenticationReceive(a) => authentication(fctype::AUTHENTICATION_RECEIVE, a),
            Self::Disconnect => fabrics(fctype::DISCONNECT),
        }
    }
}

const SQSIZE_AT: u16 = 44;
const NO_FLOW_CONTROL: u8 = 1 << 2;

/// An entry of a fabrics command; its type lies where others have the namespace.
fn fabrics(kind: u8) -> Sqe {
    Sqe::new(FABRICS, kind.into())
}

/// The data of a Connect: who connects, to what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectData {
    /// Host identifier: equal for all connections of one host.
    pub host_id: [u8; 16],
    /// On the admin queue [`CNTLID_DYNAMIC`] or the controller wanted; on an I/O queue the admin queue's controller.
    pub cntlid: u16,
    /// Subsystem to connect to.
    pub subsystem: Nqn,
    /// The host's name.
    pub host: Nqn,
}

impl ConnectData {
    /// Bytes on the wire.
    pub const LEN: usize = 1024;
    /// Where [`ConnectData::host_id`] lies, for [`Refusal::in_data`].
    pub const HOST_ID_AT: u16 = 0;
    /// Where [`ConnectData::cntlid`] lies.
    pub const CNTLID_AT: u16 = 16;
    /// Where [`ConnectData::subsystem`] lies.
    pub const SUBSYSTEM_AT: u16 = 256;
    /// Where [`ConnectData::host`] lies.
    pub const HOST_AT: u16 = 512;

    /// Reads the data.
    ///
    /// Errors: Data SGL Length Invalid for another length than 1024; Connect Invalid Parameters for a name that is
    /// none.
    pub fn parse(data: &[u8]) -> Result<Self, Refusal> {
        let data: &[u8; Self::LEN] = data.try_into().map_err(|_| Status::SGL_LENGTH_INVALID)?;
        let subsystem = Nqn::from_field(&bytes_at(data, Self::SUBSYSTEM_AT.into()));
        let host = Nqn::of_host(&bytes_at(data, Self::HOST_AT.into()));
        Ok(Self {
            host_id: bytes_at(data, 0),
            cntlid: u16_at(data, Self::CNTLID_AT.into()),
            subsystem: subsystem.map_err(|_| Refusal::in_data(Self::SUBSYSTEM_AT))?,
            host: host.map_err(|_| Refusal::in_data(Self::HOST_AT))?,
        })
    }

    /// As on the wire.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        put(&mut out, 0, &self.host_id);
        put(&mut out, Self::CNTLID_AT.into(), &self.cntlid.to_le_bytes());
        put(&mut out, Self::SUBSYSTEM_AT.into(), &self.subsystem.to_field());
        put(&mut out, Self::HOST_AT.into(), &self.host.to_field());
        out
    }
}

/// What a Connect that succeeded says: dword 0 of its completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connected {
    /// The controller.
    pub cntlid: u16,
    /// The host has to authenticate before anything else (ATR).
    pub authenticate: bool,
    /// It has to authenticate and then secure the channel with the key that comes of it (ASCR).
    pub authenticate_and_secure: bool,
}

impl Connected {
    /// To controller `cntlid`, nothing else asked.
    pub const fn to(cntlid: u16) -> Self {
        Self { cntlid, authenticate: false, authenticate_and_secure: false }
    }

    /// From the completion's dword 0.
    pub fn from_dword0(dword0: u32) -> Self {
        let [low, high, attributes, _] = dword0.to_le_bytes();
        Self {
            cntlid: u16::from_le_bytes([low, high]),
            authenticate: attributes & 2 != 0,
            authenticate_and_secure: attributes & 4 != 0,
        }
    }

    /// The completion's dword 0.
    pub fn to_dword0(self) -> u32 {
        let bit = |on: bool, bit: u32| if on { 1 << bit } else { 0 };
        u32::from(self.cntlid) | bit(self.authenticate, 17) | bit(self.authenticate_and_secure, 18)
    }
}

//! The discovery log (LID 70h): where subsystems are.
//!
//! A header of 1024 bytes, then entries of 1024. Layout: NVM Express Base Specification 2.1, 5.1.12.3.1; TCP Transport
//! Specification 1.0 for TSAS.

use super::nqn::Nqn;
use super::wire::{bytes_at, exactly, malformed, put, u16_at, u64_at};
use crate::block::Result;
use std::net::IpAddr;

/// Head of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Changes with the log: read before and after the entries, it tells whether they belong together (GENCTR).
    pub generation: u64,
    /// Entries (NUMREC).
    pub entries: u64,
}

impl Header {
    /// Bytes on the wire.
    pub const LEN: usize = 1024;

    /// As on the wire.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        put(&mut out, 0, &self.generation.to_le_bytes());
        put(&mut out, 8, &self.entries.to_le_bytes());
        out
    }

    /// Reads the head: all of it, or what is used of it (the first 18 bytes, and more).
    ///
    /// Errors: `Io` when it is shorter or longer, or has another record format than 0.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if !(18..=Self::LEN).contains(&bytes.len()) {
            return Err(malformed(format!("discovery log: a head of {} bytes", bytes.len())));
        }
        match u16_at(bytes, 16) {
            0 => Ok(Self { generation: u64_at(bytes, 0), entries: u64_at(bytes, 8) }),
            other => Err(malformed(format!("discovery log: record format {other}; known is 0"))),
        }
    }
}

/// What an entry leads to (SUBTYPE).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubsystemType {
    /// Another discovery subsystem.
    Referral = 1,
    /// A subsystem with namespaces.
    Nvm = 2,
    /// The discovery subsystem the log comes from.
    CurrentDiscovery = 3,
}

/// Whether a secure channel is asked for (TREQ bits 1:0).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SecureChannel {
    /// Nothing is said.
    #[default]
    Unspecified = 0,
    /// It is.
    Required = 1,
    /// It is not.
    NotRequired = 2,
}

/// An entry: one way to one subsystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Transport (TRTYPE): 3 is TCP.
    pub transport: u8,
    /// Address family (ADRFAM): 1 IPv4, 2 IPv6.
    pub family: u8,
    /// What it leads to.
    pub subsystem_type: SubsystemType,
    /// Whether a secure channel is asked for.
    pub secure_channel: SecureChannel,
    /// SQ flow control may be turned off (TREQ bit 2).
    pub flow_control_optional: bool,
    /// The subsystem's port (PORTID).
    pub port_id: u16,
    /// Controller to ask for: FFFFh for any (CNTLID).
    pub cntlid: u16,
    /// Most entries of the admin submission queue: 32 or more (ASQSZ).
    pub admin_entries_max: u16,
    /// Entry flags (EFLAGS).
    pub eflags: u16,
    /// Service: for TCP the port number in decimal, at most 32 bytes (TRSVCID).
    pub service: String,
    /// The subsystem's name.
    pub subsystem: Nqn,
    /// Address, at most 256 bytes (TRADDR).
    pub address: String,
    /// TCP security (TSAS byte 0): 0 none, 2 TLS 1.3.
    pub tcp_security: u8,
}

impl Entry {
    /// Bytes on the wire.
    pub const LEN: usize = 1024;
    /// [`Entry::transport`]: TCP.
    pub const TCP: u8 = 3;
    /// Bytes of the service field.
    const SERVICE_LEN: usize = 32;
    /// Bytes of the address field.
    const ADDRESS_LEN: usize = 256;

    /// A TCP entry: any controller of `subsystem` at `address` and `port`, no security.
    pub fn tcp(subsystem_type: SubsystemType, subsystem: Nqn, address: IpAddr, port: u16) -> Self {
        Self {
            transport: Self::TCP,
            family: if address.is_ipv4() { 1 } else { 2 },
            subsystem_type,
            secure_channel: SecureChannel::NotRequired,
            flow_control_optional: true,
            port_id: 0,
            cntlid: super::fabrics::CNTLID_DYNAMIC,
            admin_entries_max: 32,
            eflags: 0,
            service: port.to_string(),
            subsystem,
            address: address.to_string(),
            tcp_security: 0,
        }
    }

    /// As on the wire. Texts longer than their fields are cut.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let treq = self.secure_channel as u8 | u8::from(self.flow_control_optional) << 2;
        let mut at = |at: usize, bytes: &[u8]| put(&mut out, at, bytes);
        at(0, &[self.transport, self.family, self.subsystem_type as u8, treq]);
        at(4, &self.port_id.to_le_bytes());
        at(6, &self.cntlid.to_le_bytes());
        at(8, &self.admin_entries_max.to_le_bytes());
        at(10, &self.eflags.to_le_bytes());
        at(32, cut(&self.service, Self::SERVICE_LEN));
        at(256, &self.subsystem.to_field());
        at(512, cut(&self.address, Self::ADDRESS_LEN));
        at(768, &[self.tcp_security]);
        out
    }

    /// Reads an entry. Texts end at the first NUL or at the end of their field; spaces at the end are padding.
    ///
    /// Errors: `Io` for another length, a reserved subsystem type or secure channel, a name that is none, and texts
    /// that are not printable ASCII.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; Self::LEN] = exactly(bytes, "discovery log entry")?;
        let wrong = |text: String| Err(malformed(format!("discovery log entry: {text}")));
        let subsystem_type = match b[2] {
            1 => SubsystemType::Referral,
            2 => SubsystemType::Nvm,
            3 => SubsystemType::CurrentDiscovery,
            other => return wrong(format!("subsystem type {other} is reserved")),
        };
        let secure_channel = match b[3] & 3 {
            0 => SecureChannel::Unspecified,
            1 => SecureChannel::Required,
            2 => SecureChannel::NotRequired,
            _ => return wrong("secure channel 11b is reserved".to_owned()),
        };
        let subsystem = Nqn::from_field(&bytes_at(b, 256))
            .map_err(|e| malformed("discovery log entry: SUBNQN".to_owned()).because(e))?;
        Ok(Self {
            transport: b[0],
            family: b[1],
            subsystem_type,
            secure_channel,
            flow_control_optional: b[3] & 4 != 0,
            port_id: u16_at(b, 4),
            cntlid: u16_at(b, 6),
            admin_entries_max: u16_at(b, 8),
            eflags: u16_at(b, 10),
            service: text(&b[32..32 + Self::SERVICE_LEN], "TRSVCID")?,
            subsystem,
            address: text(&b[512..512 + Self::ADDRESS_LEN], "TRADDR")?,
            tcp_security: b[768],
        })
    }
}

fn cut(text: &str, len: usize) -> &[u8] {
    &text.as_bytes()[..text.len().min(len)]
}

fn text(field: &[u8], name: &str) -> Result<String> {
    let used = field.split(|&b| b == 0).next().unwrap_or_default();
    match str::from_utf8(used) {
        Ok(text) if text.bytes().all(|b| (0x20..0x7f).contains(&b)) => {
            Ok(text.trim_end_matches(' ').to_owned())
        }
        _ => Err(malformed(format!("discovery log entry: {name} is not printable ASCII"))),
    }
}

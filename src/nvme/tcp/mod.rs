//! The TCP transport: PDUs, and one machine for each end of a connection. Bytes and time in, bytes and events out.

pub mod controller;
pub mod host;
pub mod pdu;

use std::fmt;
use std::io::IoSlice;
use std::ops::Deref;

/// Which digests (CRC32C) a connection carries, or may carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Digests {
    /// Over the header of every PDU but those that open and end the connection.
    pub header: bool,
    /// Over the data of every PDU that has data.
    pub data: bool,
}

/// Why a connection ended. Nothing is processed after it; what was in flight is the owner's to clear away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// The peer broke the protocol; a TermReq that says so is in the output.
    Protocol(Fatal),
    /// The peer says that we broke the protocol (or wants to go).
    ByPeer(Fatal),
    /// The peer was silent where the protocol obliges it to speak.
    Silent,
}

/// What a TermReq says: fatal error status and its information.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fatal {
    /// Fatal error status (FES): [`pdu::fes`].
    pub status: u16,
    /// Fatal error information (FEI): byte offset of the bad field, the received digest, or 0.
    pub information: u32,
}

/// Bytes to send now, in order: what one gather send takes. Short of all there is when there are many pieces.
pub struct Output<'a> {
    slices: [IoSlice<'a>; Output::SLICES],
    count: usize,
}

impl Output<'_> {
    /// Most pieces of one send.
    pub const SLICES: usize = 32;
}

impl<'a> Deref for Output<'a> {
    type Target = [IoSlice<'a>];
    fn deref(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.count]
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(fatal) => write!(f, "the peer broke the protocol: {fatal}"),
            Self::ByPeer(fatal) => write!(f, "the peer ended the connection: {fatal}"),
            Self::Silent => f.write_str("the peer did not answer in time"),
        }
    }
}

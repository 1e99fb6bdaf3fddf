//! The TCP transport: PDUs, and one machine for each end of a connection. Bytes and time in, bytes and events out.

pub mod controller;
#[cfg(test)]
mod controller_tests;
pub mod host;
#[cfg(test)]
mod host_tests;
mod incoming;
mod life;
#[cfg(test)]
mod malformed_tests;
mod outgoing;
pub mod pdu;
#[cfg(test)]
mod pdu_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod wire_tests;

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

impl Fatal {
    /// A header field with an illegal value.
    const fn field(offset: u32) -> Self {
        Self { status: pdu::fes::INVALID_HEADER_FIELD, information: offset }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use pdu::fes;
        let Self { status, information } = self;
        match *status {
            fes::INVALID_HEADER_FIELD => write!(f, "invalid PDU header field at byte {information}"),
            fes::SEQUENCE_ERROR => f.write_str("PDU sequence error"),
            fes::HEADER_DIGEST_ERROR => write!(f, "header digest error (received {information:08x}h)"),
            fes::OUT_OF_RANGE => f.write_str("data transfer out of range"),
            fes::LIMIT_EXCEEDED => f.write_str("data transfer or R2T limit exceeded"),
            fes::UNSUPPORTED_PARAMETER => write!(f, "unsupported parameter at byte {information}"),
            _ => write!(f, "fatal error status {status:04x}h, information {information:x}h"),
        }
    }
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

//! The PDUs of the TCP transport: layouts, strict decoding, encoding, digests. Source: NVMe TCP Transport Specification
//! 1.0.
//!
//! A PDU is: common header (8 bytes), the rest of its header (HLEN bytes in all), header digest, padding up to PDO,
//! data, data digest; PLEN counts them all. A decoder never reads what PLEN and HLEN do not cover and knows all lengths
//! before.

use super::{Digests, Fatal};
use crate::nvme::{Cqe, Sqe};

/// Fatal error statuses (FES) of a TermReq.
pub mod fes {
    /// A header field has an illegal value; the information is its byte offset.
    pub const INVALID_HEADER_FIELD: u16 = 1;
    /// This PDU may not come now.
    pub const SEQUENCE_ERROR: u16 = 2;
    /// The header digest is wrong; the information is the digest received.
    pub const HEADER_DIGEST_ERROR: u16 = 3;
    /// Data outside what was asked for or expected.
    pub const OUT_OF_RANGE: u16 = 4;
    /// To a host: more data than MAXH2CDATA in one PDU. To a controller: more R2Ts than the host takes.
    pub const LIMIT_EXCEEDED: u16 = 5;
    /// A parameter that is not supported; the information is its byte offset.
    pub const UNSUPPORTED_PARAMETER: u16 = 6;
}

/// Flags of the common header.
pub mod flag {
    /// A header digest follows the header.
    pub const HEADER_DIGEST: u8 = 1 << 0;
    /// A data digest follows the data.
    pub const DATA_DIGEST: u8 = 1 << 1;
    /// Last H2CData of an R2T; last C2HData of a command.
    pub const LAST: u8 = 1 << 2;
    /// C2HData: the command has succeeded and no response capsule follows.
    pub const SUCCESS: u8 = 1 << 3;
}

/// Byte offsets of header fields, as a TermReq names them.
pub mod field {
    #![allow(missing_docs)] // each is the field of that name
    pub const TYPE: u32 = 0;
    pub const FLAGS: u32 = 1;
    pub const HLEN: u32 = 2;
    pub const PDO: u32 = 3;
    pub const PLEN: u32 = 4;
    pub const PFV: u32 = 8;
    /// HPDA of ICReq, CPDA of ICResp.
    pub const ALIGNMENT: u32 = 10;
    pub const DIGESTS: u32 = 11;
    pub const MAXH2CDATA: u32 = 12;
    pub const CCCID: u32 = 8;
    pub const TTAG: u32 = 10;
    pub const DATA_OFFSET: u32 = 12;
    /// DATAL of data, R2TL of R2T.
    pub const DATA_LEN: u32 = 16;
    /// The command id inside the CQE of a response capsule.
    pub const RESPONSE_CID: u32 = 20;
}

/// Bytes of the common header.
pub const COMMON_LEN: usize = 8;
/// Bytes of a digest.
pub const DIGEST_LEN: usize = 4;
/// Longest header, which ICReq and ICResp have.
pub const HEADER_MAX: usize = 128;
/// Longest TermReq: its header and the longest offending one.
pub const TERM_MAX: usize = 24 + HEADER_MAX;
/// Largest HPDA or CPDA, 0's based in dwords: 128 bytes.
pub const ALIGNMENT_MAX: u8 = 31;
/// In-capsule data that every admin queue and every fabrics command may have, in bytes.
pub const IN_CAPSULE_ALWAYS: u32 = 8192;
/// Smallest MAXH2CDATA, in bytes.
pub const H2C_DATA_MIN: u32 = 4096;

/// What comes before the data of a PDU, at most: header and digest, aligned to 128 bytes.
pub const LEAD_MAX: usize = 128;

/// PDU types.
#[allow(missing_docs)] // each is the standard's PDU of that name
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    IcReq = 0,
    IcResp = 1,
    H2cTermReq = 2,
    C2hTermReq = 3,
    CapsuleCmd = 4,
    CapsuleResp = 5,
    H2cData = 6,
    C2hData = 7,
    R2t = 9,
}

impl Kind {
    /// Every type there is.
    pub const ALL: [Self; 9] = [
        Self::IcReq,
        Self::IcResp,
        Self::H2cTermReq,
        Self::C2hTermReq,
        Self::CapsuleCmd,
        Self::CapsuleResp,
        Self::H2cData,
        Self::C2hData,
        Self::R2t,
    ];

    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::IcReq,
            1 => Self::IcResp,
            2 => Self::H2cTermReq,
            3 => Self::C2hTermReq,
            4 => Self::CapsuleCmd,
            5 => Self::CapsuleResp,
            6 => Self::H2cData,
            7 => Self::C2hData,
            9 => Self::R2t,
            _ => return None,
        })
    }

    /// HLEN: bytes of the whole header.
    pub const fn header_len(self) -> u8 {
        match self {
            Self::IcReq | Self::IcResp => 128,
            Self::CapsuleCmd => 72,
            _ => 24,
        }
    }

    const fn is_term_req(self) -> bool {
        matches!(self, Self::H2cTermReq | Self::C2hTermReq)
    }

    /// ICReq and ICResp open a connection.
    const fn opens(self) -> bool {
        matches!(self, Self::IcReq | Self::IcResp)
    }

    /// Bytes before the data: header, digest, padding. `align` is in bytes; without data nothing is padded.
    const fn lead_len(self, digests: Digests, align: usize, has_data: bool) -> usize {
        let header = self.header_len() as usize + if digests.header { DIGEST_LEN } else { 0 };
        if has_data { header.next_multiple_of(align) } else { header }
    }
}

/// The end of a connection that receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Takes types with an even number.
    Controller,
    /// Takes types with an odd number.
    Host,
}

/// CRC32C of `bytes`, as digests have it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// HPDA or CPDA as bytes.
pub const fn alignment_bytes(dwords: u8) -> usize {
    (dwords as usize + 1) * 4
}

/// What the common header of a PDU says, checked against all that is known before the rest has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Its type.
    pub kind: Kind,
    /// Its flags.
    pub flags: u8,
    /// Bytes before the data (or of the whole PDU): to be had before it is decoded.
    pub lead_len: usize,
    /// A header digest is after the header.
    pub header_digest: bool,
    /// Bytes of data. 0 for a TermReq, whose data counts as header.
    pub data_len: u32,
    /// A data digest is after the data.
    pub data_digest: bool,
}

/// Checks a common header. `opened`: ICReq (ICResp) has come; `align`: what this side has asked data to be aligned to.
pub fn shape(
    common: [u8; COMMON_LEN],
    side: Side,
    opened: bool,
    digests: Digests,
    align: usize,
) -> Result<Shape, Fatal> {
    let [kind, flags, header_len, data_offset, p0, p1, p2, p3] = common;
    let len = u32::from_le_bytes([p0, p1, p2, p3]);
    let kind = Kind::of(kind).ok_or(Fatal::field(field::TYPE))?;
    if (kind as u8 & 1 == 0) != (side == Side::Controller) {
        return Err(Fatal::field(field::TYPE));
    }
    if kind.opens() == opened && !kind.is_term_req() {
        return Err(Fatal { status: fes::SEQUENCE_ERROR, information: 0 });
    }
    if header_len != kind.header_len() {
        return Err(Fatal::field(field::HLEN));
    }
    let mut shape = Shape { kind, flags, lead_len: 0, header_digest: false, data_len: 0, data_digest: false };
    if kind.opens() || kind.is_term_req() {
        // Never digests. The data of a TermReq is the header at fault.
        let most = if kind.opens() { HEADER_MAX } else { TERM_MAX };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len < usize::from(header_len) || len > most {
            return Err(Fatal::field(field::PLEN));
        }
        return Ok(Shape { lead_len: len, ..shape });
    }
    if (flags & flag::HEADER_DIGEST != 0) != digests.header {
        return Err(Fatal::field(field::FLAGS));
    }
    shape.header_digest = digests.header;
    shape.lead_len = kind.lead_len(digests, 1, false);
    let lead = u32::from(header_len) + if digests.header { 4 } else { 0 };
    let wants_data = matches!(kind, Kind::H2cData | Kind::C2hData);
    let may_have_data = wants_data || kind == Kind::CapsuleCmd;
    if len < lead || (len > lead && !may_have_data) || (len == lead && wants_data) {
        return Err(Fatal::field(field::PLEN));
    }
    if len == lead {
        return Ok(shape);
    }
    if (flags & flag::DATA_DIGEST != 0) != digests.data {
        return Err(Fatal::field(field::FLAGS));
    }
    shape.lead_len = usize::from(data_offset);
    if u32::from(data_offset) < lead || !shape.lead_len.is_multiple_of(align) {
        return Err(Fatal::field(field::PDO));
    }
    shape.data_digest = digests.data;
    let rest = u32::from(data_offset) + if digests.data { 4 } else { 0 };
    match len.checked_sub(rest) {
        None | Some(0) => Err(Fatal::field(field::PLEN)),
        Some(data_len) => Ok(Shape { data_len, ..shape }),
    }
}

/// Checks the header digest of a PDU whose `lead_len` bytes are there.
pub fn check_header_digest(shape: &Shape, lead: &[u8]) -> Result<(), Fatal> {
    if !shape.header_digest {
        return Ok(());
    }
    let at = usize::from(shape.kind.header_len());
    let received = u32_at(lead, at);
    if received == crc32c(&lead[..at]) {
        Ok(())
    } else {
        Err(Fatal { status: fes::HEADER_DIGEST_ERROR, information: received })
    }
}

/// A PDU's header, decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pdu {
    /// The host opens.
    IcReq(IcReq),
    /// The controller answers.
    IcResp(IcResp),
    /// Either end ends the connection.
    TermReq(Fatal),
    /// A command.
    CapsuleCmd(Sqe),
    /// Its completion.
    CapsuleResp(Cqe),
    /// Data, either way; from the controller the tag is 0.
    Data(Place),
    /// The controller asks for data.
    R2t(Place),
}

impl Pdu {
    /// Decodes the header of a checked PDU; `lead` is `shape.lead_len` bytes long.
    pub fn decode(shape: &Shape, lead: &[u8]) -> Result<Self, Fatal> {
        Ok(match shape.kind {
            Kind::CapsuleCmd => {
                let mut sqe = Sqe([0; Sqe::LEN]);
                sqe.0.copy_from_slice(&lead[8..8 + Sqe::LEN]);
                Self::CapsuleCmd(sqe)
            }
            Kind::CapsuleResp => {
                let mut cqe = [0; Cqe::LEN];
                cqe.copy_from_slice(&lead[8..8 + Cqe::LEN]);
                Self::CapsuleResp(Cqe::from_bytes(&cqe))
            }
            Kind::H2cData | Kind::C2hData => {
                let place = Place::decode(lead);
                if place.len != shape.data_len {
                    return Err(Fatal::field(field::DATA_LEN));
                }
                Self::Data(place)
            }
            Kind::R2t => Self::R2t(Place::decode(lead)),
            Kind::IcReq => Self::IcReq(IcReq::decode(lead)?),
            Kind::IcResp => Self::IcResp(IcResp::decode(lead)?),
            Kind::H2cTermReq | Kind::C2hTermReq => {
                Self::TermReq(Fatal { status: u16_at(lead, 8), information: u32_at(lead, 10) })
            }
        })
    }
}

/// ICReq: what the host wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcReq {
    /// Alignment of data to the host (HPDA), 0's based in dwords.
    pub hpda: u8,
    /// Digests the host wants.
    pub digests: Digests,
    /// R2Ts of one command the host takes at a time: a count (MAXR2T + 1), at least 1.
    pub r2t_count_max: u32,
}

impl IcReq {
    fn decode(header: &[u8]) -> Result<Self, Fatal> {
        let (hpda, digests) = open_fields(header)?;
        Ok(Self { hpda, digests, r2t_count_max: u32_at(header, 12).saturating_add(1) })
    }

    /// Writes it to the first [`HEADER_MAX`] bytes of `out`.
    pub fn encode(&self, out: &mut [u8]) {
        encode_open(out, Kind::IcReq, self.hpda, self.digests, self.r2t_count_max - 1);
    }
}

/// ICResp: what the controller grants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcResp {
    /// Alignment of data to the controller (CPDA), 0's based in dwords.
    pub cpda: u8,
    /// Digests in use from now on.
    pub digests: Digests,
    /// Most data of one H2CData, in bytes (MAXH2CDATA): a multiple of 4, at least 4096.
    pub h2c_data_bytes_max: u32,
}

impl IcResp {
    fn decode(header: &[u8]) -> Result<Self, Fatal> {
        let (cpda, digests) = open_fields(header)?;
        let h2c_data_bytes_max = u32_at(header, 12);
        if h2c_data_bytes_max < H2C_DATA_MIN || !h2c_data_bytes_max.is_multiple_of(4) {
            return Err(Fatal::field(field::MAXH2CDATA));
        }
        Ok(Self { cpda, digests, h2c_data_bytes_max })
    }

    /// Writes it to the first [`HEADER_MAX`] bytes of `out`.
    pub fn encode(&self, out: &mut [u8]) {
        encode_open(out, Kind::IcResp, self.cpda, self.digests, self.h2c_data_bytes_max);
    }
}

/// The fields ICReq and ICResp share: alignment and digests. The reserved rest is not looked at.
fn open_fields(header: &[u8]) -> Result<(u8, Digests), Fatal> {
    if u16_at(header, 8) != 0 {
        return Err(Fatal { status: fes::UNSUPPORTED_PARAMETER, information: field::PFV });
    }
    let alignment = header[10];
    if alignment > ALIGNMENT_MAX {
        return Err(Fatal::field(field::ALIGNMENT));
    }
    Ok((alignment, Digests { header: header[11] & 1 != 0, data: header[11] & 2 != 0 }))
}

fn encode_open(out: &mut [u8], kind: Kind, alignment: u8, digests: Digests, last: u32) {
    let out = &mut out[..HEADER_MAX];
    out.fill(0);
    out[10] = alignment;
    out[11] = u8::from(digests.header) | u8::from(digests.data) << 1;
    out[12..16].copy_from_slice(&last.to_le_bytes());
    seal(out, &Form::plain(kind), 0);
}

/// The body of H2CData, C2HData and R2T: which bytes of which command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The command (CCCID).
    pub cid: u16,
    /// The controller's tag (TTAG); 0 in C2HData.
    pub ttag: u16,
    /// First byte (DATAO, R2TO).
    pub offset: u32,
    /// Bytes (DATAL, R2TL).
    pub len: u32,
}

impl Place {
    fn decode(header: &[u8]) -> Self {
        Self {
            cid: u16_at(header, 8),
            ttag: u16_at(header, 10),
            offset: u32_at(header, 12),
            len: u32_at(header, 16),
        }
    }

    /// Writes the body to a header whose first 24 bytes are `out`.
    pub fn encode(&self, out: &mut [u8]) {
        out[8..10].copy_from_slice(&self.cid.to_le_bytes());
        out[10..12].copy_from_slice(&self.ttag.to_le_bytes());
        out[12..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..20].copy_from_slice(&self.len.to_le_bytes());
        out[20..24].fill(0);
    }
}

/// What an outgoing PDU has around its header's body.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Its type.
    pub kind: Kind,
    /// LAST and SUCCESS; those of digests are put in.
    pub flags: u8,
    /// Digests of the connection.
    pub digests: Digests,
    /// What the receiver wants data to be aligned to, in bytes.
    pub align: usize,
}

impl Form {
    /// Without flags and digests.
    pub const fn plain(kind: Kind) -> Self {
        Self { kind, flags: 0, digests: Digests { header: false, data: false }, align: 4 }
    }

    /// Bytes before the data, or of the whole PDU.
    pub const fn lead_len(&self, data_len: u32) -> usize {
        self.kind.lead_len(self.digests, self.align, data_len > 0)
    }

    /// Bytes after the data.
    pub const fn trail_len(&self, data_len: u32) -> usize {
        if self.digests.data && data_len > 0 { DIGEST_LEN } else { 0 }
    }
}

/// Puts the common header, the header digest and the padding around a header whose body stands in `out[8..]` already.
pub fn seal(out: &mut [u8], form: &Form, data_len: u32) {
    let header_len = form.kind.header_len();
    let lead = form.lead_len(data_len);
    let mut flags = form.flags;
    if form.digests.header {
        flags |= flag::HEADER_DIGEST;
    }
    let mut data_offset = 0;
    if data_len > 0 {
        // At most LEAD_MAX.
        data_offset = u8::try_from(lead).unwrap_or(u8::MAX);
        if form.digests.data {
            flags |= flag::DATA_DIGEST;
        }
    }
    let ends = u32::try_from(lead + form.trail_len(data_len)).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&[form.kind as u8, flags, header_len, data_offset]);
    out[4..8].copy_from_slice(&data_len.saturating_add(ends).to_le_bytes());
    let mut at = usize::from(header_len);
    if form.digests.header {
        let digest = crc32c(&out[..at]);
        out[at..at + DIGEST_LEN].copy_from_slice(&digest.to_le_bytes());
        at += DIGEST_LEN;
    }
    out[at..lead].fill(0);
}

/// Writes a TermReq with (the first [`HEADER_MAX`] bytes of) the header at fault; says how long it is, at most
/// [`TERM_MAX`].
pub fn encode_term_req(out: &mut [u8], kind: Kind, fatal: Fatal, at_fault: &[u8]) -> usize {
    let at_fault = &at_fault[..at_fault.len().min(HEADER_MAX)];
    out[..24].fill(0);
    out[8..10].copy_from_slice(&fatal.status.to_le_bytes());
    out[10..14].copy_from_slice(&fatal.information.to_le_bytes());
    seal(out, &Form::plain(kind), 0);
    let len = 24 + at_fault.len();
    out[4..8].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    out[24..len].copy_from_slice(at_fault);
    len
}

/// The little-endian number at `at`; `bytes` reaches that far.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

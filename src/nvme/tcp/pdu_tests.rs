//! Layouts byte for byte, round trips of every PDU, and the known value of the digest.

use super::pdu::{self, Form, IcReq, IcResp, Kind, Pdu, Place, Side, fes, field, flag};
use super::testing::{BOTH, NONE, whole};
use super::{Digests, Fatal};
use crate::nvme::{Cqe, Sgl, Sqe, Status};
use proptest::prelude::*;

fn side(kind: Kind) -> Side {
    if kind as u8 & 1 == 0 { Side::Controller } else { Side::Host }
}

fn decode(bytes: &[u8], digests: Digests, align: usize) -> Result<(pdu::Shape, Pdu), Fatal> {
    let kind = Kind::ALL.into_iter().find(|k| *k as u8 == bytes[0]).unwrap();
    let opened = !matches!(kind, Kind::IcReq | Kind::IcResp);
    let shape = pdu::shape(bytes[..8].try_into().unwrap(), side(kind), opened, digests, align)?;
    pdu::check_header_digest(&shape, &bytes[..shape.lead_len])?;
    Ok((shape, Pdu::decode(&shape, &bytes[..shape.lead_len])?))
}

#[test]
fn the_digest_is_crc32c() {
    assert_eq!(pdu::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(pdu::crc32c(&[0; 32]), 0x8a91_36aa); // RFC 3720, B.4
    assert_eq!(pdu::crc32c(&[0xff; 32]), 0x62a8_ab43);
}

#[test]
fn icreq_and_icresp_byte_for_byte() {
    let mut out = [0xee; 128];
    IcReq { hpda: 3, digests: Digests { header: false, data: true }, r2t_count_max: 0x0102_0305 }
        .encode(&mut out);
    let mut want = [0; 128];
    want[..16].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 3, 2, 4, 3, 2, 1]);
    assert_eq!(out, want);
    IcResp { cpda: 31, digests: BOTH, h2c_data_bytes_max: 0x0002_0000 }.encode(&mut out);
    want[..16].copy_from_slice(&[1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 31, 3, 0, 0, 2, 0]);
    assert_eq!(out, want);
}

#[test]
fn data_and_r2t_byte_for_byte() {
    let place = Place { cid: 0x0102, ttag: 0x0304, offset: 0x0506_0708, len: 0x0a0b_0c0d };
    let form = Form { kind: Kind::R2t, flags: 0, digests: NONE, align: 4 };
    let bytes = whole(form, |out| place.encode(out), &[]);
    let mut want = vec![9, 0, 24, 0, 24, 0, 0, 0, 2, 1, 4, 3, 8, 7, 6, 5, 0x0d, 0x0c, 0x0b, 0x0a, 0, 0, 0, 0];
    assert_eq!(bytes, want);

    // Header 24, digest 4, padding to 32, data 3, digest 4: 39 bytes.
    let form = Form { kind: Kind::C2hData, flags: flag::LAST | flag::SUCCESS, digests: BOTH, align: 16 };
    let place = Place { cid: 1, ttag: 0, offset: 2, len: 3 };
    let bytes = whole(form, |out| place.encode(out), b"abc");
    want = vec![7, 0b1111, 24, 32, 39, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
    want.extend(pdu::crc32c(&want).to_le_bytes());
    want.extend([0; 4]);
    want.extend(b"abc");
    want.extend(pdu::crc32c(b"abc").to_le_bytes());
    assert_eq!(bytes, want);
}

#[test]
fn term_req_byte_for_byte() {
    let mut out = [0xee; pdu::TERM_MAX];
    let fatal = Fatal { status: fes::HEADER_DIGEST_ERROR, information: 0x0102_0304 };
    let len = pdu::encode_term_req(&mut out, Kind::C2hTermReq, fatal, &[9, 8, 7, 6, 5, 4, 3, 2]);
    let mut want = vec![3, 0, 24, 0, 32, 0, 0, 0, 3, 0, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    want.extend([9, 8, 7, 6, 5, 4, 3, 2]);
    assert_eq!(out[..len], want);
    assert_eq!(pdu::encode_term_req(&mut out, Kind::H2cTermReq, fatal, &[1; 300]), pdu::TERM_MAX);
    assert_eq!(decode(&out, NONE, 4).unwrap().1, Pdu::TermReq(fatal));
}

#[test]
fn what_icreq_and_icresp_may_not_say() {
    let request = IcReq { hpda: 0, digests: NONE, r2t_count_max: 1 };
    let mut good = [0; 128];
    request.encode(&mut good);
    let with = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        decode(&bytes, NONE, 4).map(|(_, pdu)| pdu)
    };
    let unsupported = Fatal { status: fes::UNSUPPORTED_PARAMETER, information: 8 };
    assert_eq!(with(8, 1), Err(unsupported));
    assert_eq!(with(9, 1), Err(unsupported));
    assert_eq!(with(10, 31), Ok(Pdu::IcReq(IcReq { hpda: 31, ..request })));
    assert_eq!(with(10, 32), Err(Fatal::field(10)));
    // Reserved digests and bytes are not looked at.
    assert_eq!(with(11, 0xfc), Ok(Pdu::IcReq(request)));
    assert_eq!(with(127, 1), Ok(Pdu::IcReq(request)));
    // MAXR2T is 0's based, and its largest value does not wrap.
    let mut bytes = good;
    bytes[12..16].fill(0xff);
    assert_eq!(decode(&bytes, NONE, 4).unwrap().1, Pdu::IcReq(IcReq { r2t_count_max: u32::MAX, ..request }));

    for (h2c, fine) in
        [(0, false), (4092, false), (4096, true), (4097, false), (4100, true), (u32::MAX - 3, true)]
    {
        let response = IcResp { cpda: 0, digests: NONE, h2c_data_bytes_max: h2c };
        response.encode(&mut bytes);
        let want = if fine { Ok(Pdu::IcResp(response)) } else { Err(Fatal::field(field::MAXH2CDATA)) };
        assert_eq!(decode(&bytes, NONE, 4).map(|(_, pdu)| pdu), want, "{h2c}");
    }
}

#[test]
fn the_first_pdu_opens_and_no_other_does() {
    for kind in Kind::ALL {
        let opens = matches!(kind, Kind::IcReq | Kind::IcResp);
        let ends = matches!(kind, Kind::H2cTermReq | Kind::C2hTermReq);
        let header = kind.header_len();
        let common = [kind as u8, 0, header, header, header + u8::from(!opens && !ends), 0, 0, 0];
        for opened in [false, true] {
            let result = pdu::shape(common, side(kind), opened, NONE, 4);
            let sequence = Err(Fatal { status: fes::SEQUENCE_ERROR, information: 0 });
            assert_eq!(result == sequence, !ends && opens == opened, "{kind:?} {opened}");
            let other = if side(kind) == Side::Host { Side::Controller } else { Side::Host };
            assert_eq!(pdu::shape(common, other, opened, NONE, 4), Err(Fatal::field(field::TYPE)));
        }
    }
    for kind in [8, 10, 0x7f, 0xff] {
        for side in [Side::Controller, Side::Host] {
            let result = pdu::shape([kind, 0, 24, 0, 24, 0, 0, 0], side, true, NONE, 4);
            assert_eq!(result, Err(Fatal::field(field::TYPE)));
        }
    }
}

fn digests() -> impl Strategy<Value = Digests> {
    (any::<bool>(), any::<bool>()).prop_map(|(header, data)| Digests { header, data })
}

proptest! {
    #[test]
    fn every_pdu_survives_a_round_trip(
        digests in digests(),
        alignment in 0..=31u8,
        sqe in any::<[u8; 32]>(),
        (cid, ttag, offset) in any::<(u16, u16, u32)>(),
        (result, head, status) in any::<(u64, u16, u16)>(),
        data in proptest::collection::vec(any::<u8>(), 1..300),
    ) {
        let align = pdu::alignment_bytes(alignment);
        let len = u32::try_from(data.len()).unwrap();
        let form = |kind| Form { kind, flags: 0, digests, align };
        let place = Place { cid, ttag, offset, len };
        for kind in [Kind::H2cData, Kind::C2hData] {
            let bytes = whole(form(kind), |out| place.encode(out), &data);
            let (shape, decoded) = decode(&bytes, digests, align).unwrap();
            prop_assert_eq!(decoded, Pdu::Data(place));
            prop_assert!(shape.lead_len.is_multiple_of(align) && shape.lead_len <= pdu::LEAD_MAX);
            prop_assert_eq!(&bytes[shape.lead_len..shape.lead_len + data.len()], &data[..]);
            prop_assert_eq!((shape.data_len, shape.data_digest), (len, digests.data));
        }
        let bytes = whole(form(Kind::R2t), |out| place.encode(out), &[]);
        prop_assert_eq!(decode(&bytes, digests, align).unwrap().1, Pdu::R2t(place));

        let sqe = Sqe([sqe, sqe].concat().try_into().unwrap()).with_sgl(Sgl::transport(len));
        for data in [&data[..], &[]] {
            let bytes = whole(form(Kind::CapsuleCmd), |out| out[8..72].copy_from_slice(&sqe.0), data);
            let (shape, decoded) = decode(&bytes, digests, align).unwrap();
            prop_assert_eq!(decoded, Pdu::CapsuleCmd(sqe));
            prop_assert_eq!(shape.data_len as usize, data.len());
        }
        let cqe = Cqe { result, sq_head: head, sq_id: 0, cid, status: Status::from_bits(status) };
        let bytes = whole(form(Kind::CapsuleResp), |out| out[8..24].copy_from_slice(&cqe.to_bytes()), &[]);
        prop_assert_eq!(decode(&bytes, digests, align).unwrap().1, Pdu::CapsuleResp(cqe));

        let mut bytes = [0; 128];
        let request = IcReq { hpda: alignment, digests, r2t_count_max: u32::from(cid) + 1 };
        request.encode(&mut bytes);
        prop_assert_eq!(decode(&bytes, NONE, 4).unwrap().1, Pdu::IcReq(request));
        let response = IcResp { cpda: alignment, digests, h2c_data_bytes_max: 4096 + 4 * u32::from(cid) };
        response.encode(&mut bytes);
        prop_assert_eq!(decode(&bytes, NONE, 4).unwrap().1, Pdu::IcResp(response));
    }

    #[test]
    fn any_common_header_gives_lengths_that_add_up(
        common in any::<[u8; 8]>(),
        (kind, sane) in (0..10u8, any::<bool>()),
        digests in digests(),
        alignment in 0..=31u8,
        (opened, controller) in any::<(bool, bool)>(),
    ) {
        let mut common = common;
        if sane {
            // Near what is right, so that more than the first check is reached.
            common[0] = kind;
            common[2] = Kind::ALL.into_iter().find(|k| *k as u8 == kind).map_or(0, Kind::header_len);
            common[6..].fill(0);
        }
        let side = if controller { Side::Controller } else { Side::Host };
        let align = pdu::alignment_bytes(alignment);
        if let Ok(shape) = pdu::shape(common, side, opened, digests, align) {
            let trail = if shape.data_digest { 4 } else { 0 };
            let all = shape.lead_len as u64 + u64::from(shape.data_len) + trail;
            prop_assert_eq!(all, u64::from(pdu::u32_at(&common, 4)));
            let header = usize::from(shape.kind.header_len()) + if shape.header_digest { 4 } else { 0 };
            prop_assert!(shape.lead_len >= header && shape.lead_len <= 255);
        }
    }
}

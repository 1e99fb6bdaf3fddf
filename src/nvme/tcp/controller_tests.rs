//! The controller's end rule by rule: negotiation, R2Ts, SUCCESS, queue heads, errors that cost one command only,
//! memory.

use super::controller::{Config, Connection, Event, QueueFacts};
use super::pdu::{IcReq, Kind, Place, flag, u32_at};
use super::testing::{
    BOTH, NONE, capsule, controller_config, cqe_of, cut, feed, h2c_last, opened, pattern, patterned,
    place_of, placed, read_into, reseal, send_all,
};
use super::{Broken, Digests, Output};
use crate::block::Buf;
use crate::nvme::{Cqe, Sgl, Sqe, Status};
use std::time::Duration;

/// A write of `len` bytes whose data the controller asks for.
fn write(cid: u16, len: u32) -> Sqe {
    let mut sqe = Sqe::new(0x01, 1).with_sgl(Sgl::transport(len));
    sqe.set_cid(cid);
    sqe
}

/// A read of `len` bytes.
fn read(cid: u16, len: u32) -> Sqe {
    let mut sqe = Sqe::new(0x02, 1).with_sgl(Sgl::transport(len));
    sqe.set_cid(cid);
    sqe
}

fn event_request(cid: u16) -> Sqe {
    let mut sqe = Sqe::new(0x0c, 0);
    sqe.set_cid(cid);
    sqe
}

fn flush(cid: u16) -> Sqe {
    let mut sqe = Sqe::new(0x00, 1);
    sqe.set_cid(cid);
    sqe
}

/// The one command that these bytes bring.
fn command(end: &mut Connection, bytes: &[u8]) -> (u16, Sqe, Buf) {
    let mut events = feed(end, bytes, bytes.len());
    let Some(Event::Command { slot, sqe, data }) = events.pop() else { panic!("{events:?}") };
    assert!(events.is_empty(), "{events:?}");
    (slot, sqe, data)
}

/// The slot that wants a buffer.
fn asks(end: &mut Connection, bytes: &[u8]) -> (u16, u32) {
    let events = feed(end, bytes, bytes.len());
    let [Event::NeedBuffer { slot, len }] = events[..] else { panic!("{events:?}") };
    (slot, len)
}

fn buf(len: u32) -> Buf {
    Buf::alloc(len as usize).unwrap()
}

/// The one response that is there to send.
fn answer(end: &mut Connection) -> Cqe {
    let bytes = send_all(end);
    let pdus = cut(&bytes);
    assert_eq!(pdus.len(), 1, "{bytes:02x?}");
    cqe_of(pdus[0])
}

#[test]
fn a_digest_is_used_when_both_want_it() {
    for n in 0..16u8 {
        let digests = |bits: u8| Digests { header: bits & 1 != 0, data: bits & 2 != 0 };
        let (asked, granted) = (digests(n), digests(n >> 2));
        let config = Config { digests: granted, cpda: 5, ..controller_config() };
        let mut end = Connection::new(&config).unwrap();
        let mut request = [0; 128];
        IcReq { hpda: 9, digests: asked, r2t_count_max: 1 }.encode(&mut request);
        assert!(feed(&mut end, &request, 128).is_empty());
        let bytes = send_all(&mut end);
        assert_eq!(bytes[..8], [1, 0, 128, 0, 128, 0, 0, 0]);
        assert_eq!((bytes[10], bytes[11]), (5, n & n >> 2), "CPDA and digests");
        assert_eq!(u32_at(&bytes, 12), config.h2c_data_bytes_max);
        assert!(bytes[16..].iter().all(|b| *b == 0));
        assert_eq!(end.digests(), digests(n & n >> 2));
    }
}

#[test]
fn admin_and_fabrics_commands_may_bring_8192_bytes_whatever_ioccsz_says() {
    let config = Config { in_capsule_bytes_max: 0, ..controller_config() };
    let data = pattern(3, 8192);
    let mut fabrics = Sqe::new(0x7f, 0).with_sgl(Sgl::in_capsule(8192));
    fabrics.0[4] = 0x05;
    let mut admin = opened(&config, NONE, 0);
    let (slot, _, got) = command(&mut admin, &capsule(fabrics, NONE, &data));
    assert!(got[..] == data);
    drop(got);
    admin.connected(QueueFacts { entries: 32, admin: true, flow_control: true });
    admin.complete(slot, Cqe::default(), None);
    let set_features = Sqe::new(0x09, 0).with_sgl(Sgl::in_capsule(8192));
    assert!(command(&mut admin, &capsule(set_features, NONE, &data)).2[..] == data);

    let mut io = opened(&config, NONE, 32);
    assert!(command(&mut io, &capsule(fabrics, NONE, &data)).2[..] == data);
}

#[test]
fn an_in_capsule_offset_leaves_out_what_is_before_it() {
    let mut end = opened(&controller_config(), NONE, 8);
    let sgl = Sgl { address: 512, ..Sgl::in_capsule(1024) };
    let data = pattern(1, 1536);
    let (_, _, got) = command(&mut end, &capsule(write(1, 0).with_sgl(sgl), NONE, &data));
    assert!(got[..] == data[512..]);
    assert!(got.is_at_front(), "aligned for direct I/O");
}

#[test]
fn byte_1_of_a_fabrics_command_is_not_looked_at() {
    for byte in [0x00, 0x40, 0x80, 0xff] {
        let mut end = opened(&controller_config(), NONE, 0);
        let mut sqe = Sqe::new(0x7f, 0);
        sqe.0[1] = byte;
        assert_eq!(command(&mut end, &capsule(sqe, NONE, &[])).1.0[1], byte, "it is carried out");
    }
}

#[test]
fn r2ts_cover_the_data_in_order_and_no_more_are_outstanding_than_both_allow() {
    for (ours, theirs, outstanding) in [(1, 9, 1), (4, 2, 2), (3, 3, 3)] {
        let config = Config { r2t_bytes_max: 4096, r2t_count_max: ours, ..controller_config() };
        let mut end = Connection::new(&config).unwrap();
        let mut request = [0; 128];
        IcReq { hpda: 0, digests: NONE, r2t_count_max: theirs }.encode(&mut request);
        feed(&mut end, &request, 128);
        send_all(&mut end);
        let len = 4 * 4096 + 100;
        let data = pattern(9, len as usize);
        let (slot, wanted) = asks(&mut end, &capsule(write(77, len), NONE, &[]));
        assert_eq!(wanted, len);
        assert!(send_all(&mut end).is_empty(), "no R2T without a buffer");
        end.give(slot, buf(len));
        let mut open: Vec<Place> = Vec::new();
        let (mut asked, mut tags, mut last) = (0, Vec::new(), Vec::new());
        while asked < len || !open.is_empty() {
            for pdu in cut(&send_all(&mut end)) {
                let r2t = place_of(pdu);
                assert_eq!((pdu[0], r2t.cid, r2t.offset), (Kind::R2t as u8, 77, asked));
                assert_eq!(r2t.len, 4096.min(len - asked));
                assert!(!tags.contains(&r2t.ttag), "a tag names one R2T");
                tags.push(r2t.ttag);
                asked += r2t.len;
                open.push(r2t);
            }
            assert!(open.len() <= outstanding);
            assert!(open.len() == outstanding || asked == len, "as many as may be");
            let r2t = open.remove(0);
            let bytes = &data[r2t.offset as usize..][..r2t.len as usize];
            last = feed(&mut end, &h2c_last(r2t, NONE, bytes), 1000);
            assert!(last.is_empty() || open.is_empty());
        }
        let [Event::Command { data: got, .. }] = &last[..] else { panic!("{last:?}") };
        assert!(got[..] == data);
    }
}

#[test]
fn a_command_that_waits_for_a_buffer_holds_up_nothing_else() {
    let mut end = opened(&controller_config(), NONE, 8);
    let (first, _) = asks(&mut end, &capsule(write(1, 50_000), NONE, &[]));
    let (second, _) = asks(&mut end, &capsule(write(2, 4096), NONE, &[]));
    let (slot, sqe, _) = command(&mut end, &capsule(flush(3), NONE, &[]));
    assert_eq!(sqe.cid(), 3);
    end.complete(slot, Cqe::default(), None);
    assert_eq!(answer(&mut end).cid, 3);
    end.give(second, buf(4096));
    let r2t = place_of(&send_all(&mut end));
    let (slot, sqe, data) = command(&mut end, &h2c_last(r2t, NONE, &pattern(2, 4096)));
    assert_eq!((slot, sqe.cid()), (second, 2));
    assert!(data[..] == pattern(2, 4096));
    end.give(first, buf(50_000));
    assert_eq!(place_of(&send_all(&mut end)).cid, 1);
}

#[test]
fn the_rest_of_a_payload_is_read_straight_into_its_buffer() {
    let mut end = opened(&controller_config(), BOTH, 8);
    let (slot, _) = asks(&mut end, &capsule(write(1, 16 << 10), BOTH, &[]));
    let memory = buf(16 << 10);
    let start = memory.as_ptr();
    end.give(slot, memory);
    let r2t = place_of(&send_all(&mut end));
    let data = pattern(4, 16 << 10);
    let pdu = h2c_last(r2t, BOTH, &data);
    // Header and 100 bytes come first; then there is room for the rest of the payload, and for what follows it.
    assert!(feed(&mut end, &pdu[..28 + 100], usize::MAX).is_empty());
    let [rest, staging] = end.space();
    assert_eq!((rest.as_ptr(), rest.len()), (start.wrapping_add(100), (16 << 10) - 100));
    assert!(staging.len() > 4096);
    let tail = &pdu[128..];
    assert_eq!(read_into(&mut end, tail), tail.len(), "one read takes payload and digest");
    let Some(Event::Command { data: got, .. }) = end.next() else { panic!("no command") };
    assert!(got[..] == data && got.as_ptr() == start);
}

#[test]
fn success_stands_in_the_data_only_where_nothing_else_is_to_be_said() {
    let len = 4096;
    let fabrics = |mut sqe: Sqe| {
        (sqe.0[0], sqe.0[4]) = (0x7f, 0x06);
        sqe
    };
    let good = Cqe::default();
    // Flow control, command, completion, data: SUCCESS in the data, a response behind it.
    for (flow_control, sqe, cqe, data, quiet, responds) in [
        (false, read(1, len), good, true, true, false),
        (true, read(1, len), good, true, false, true),
        (false, read(1, len), Cqe { result: 1 << 40, ..good }, true, false, true),
        (false, fabrics(read(1, len)), good, true, false, true),
        (false, read(1, len), Cqe { status: Status::WRITE_FAULT, ..good }, false, false, true),
        (false, read(1, len), good, false, false, true),
        (false, flush(1), good, false, false, true),
    ] {
        let mut end = opened(&controller_config(), NONE, 8);
        end.connected(QueueFacts { entries: 8, admin: false, flow_control });
        let (slot, ..) = command(&mut end, &capsule(sqe, NONE, &[]));
        // Data of a command that failed is not sent either.
        end.complete(slot, cqe, Some(patterned(1, 4096)).filter(|_| data || !cqe.status.is_success()));
        let bytes = send_all(&mut end);
        let pdus = cut(&bytes);
        assert_eq!(pdus.len(), usize::from(data) + usize::from(responds), "{sqe:?} {cqe:?}");
        if data {
            assert_eq!(pdus[0][1], if quiet { flag::LAST | flag::SUCCESS } else { flag::LAST });
            assert_eq!(place_of(pdus[0]), Place { cid: 1, ttag: 0, offset: 0, len });
            assert!(pdus[0][24..] == pattern(1, 4096));
        }
        if responds {
            let got = cqe_of(pdus[pdus.len() - 1]);
            assert_eq!((got.cid, got.status, got.result), (1, cqe.status, cqe.result));
        }
    }
}

#[test]
fn the_queue_head_counts_entries_when_flow_control_is_on() {
    let mut end = opened(&controller_config(), NONE, 0);
    let mut connect = capsule(Sqe::new(0x7f, 0).with_sgl(Sgl::in_capsule(1024)), NONE, &[0; 1024]);
    connect[12] = 1;
    let (slot, ..) = command(&mut end, &connect);
    end.connected(QueueFacts { entries: 3, admin: true, flow_control: true });
    end.complete(slot, Cqe { sq_head: 99, sq_id: 99, cid: 99, ..Cqe::default() }, None);
    let mut heads = vec![answer(&mut end)];
    for cid in 1..6 {
        let (slot, ..) = command(&mut end, &capsule(flush(cid), NONE, &[]));
        end.complete(slot, Cqe::default(), None);
        heads.push(answer(&mut end));
    }
    let got: Vec<_> = heads.iter().map(|cqe| (cqe.cid, cqe.sq_head, cqe.sq_id)).collect();
    assert_eq!(got, [(0, 1, 0), (1, 2, 0), (2, 0, 0), (3, 1, 0), (4, 2, 0), (5, 0, 0)]);
}

#[test]
fn without_flow_control_connect_is_answered_with_head_ffffh_and_the_rest_with_0() {
    let mut end = opened(&controller_config(), NONE, 0);
    let mut connect = capsule(Sqe::new(0x7f, 0).with_sgl(Sgl::in_capsule(1024)), NONE, &[0; 1024]);
    connect[12] = 1;
    let (slot, ..) = command(&mut end, &connect);
    end.connected(QueueFacts { entries: 3, admin: false, flow_control: false });
    end.complete(slot, Cqe::default(), None);
    assert_eq!(answer(&mut end).sq_head, 0xffff);
    let (slot, ..) = command(&mut end, &capsule(flush(1), NONE, &[]));
    end.complete(slot, Cqe { sq_head: 5, ..Cqe::default() }, None);
    assert_eq!(answer(&mut end).sq_head, 0);
}

#[test]
fn a_command_id_in_use_is_a_conflict_for_the_second_command_only() {
    let mut end = opened(&controller_config(), NONE, 8);
    let (slot, ..) = command(&mut end, &capsule(flush(0xffff), NONE, &[]));
    let second = capsule(write(0xffff, 0).with_sgl(Sgl::in_capsule(512)), NONE, &[1; 512]);
    assert!(feed(&mut end, &second, 100).is_empty());
    let cqe = answer(&mut end);
    assert_eq!((cqe.cid, cqe.status), (0xffff, Status::COMMAND_ID_CONFLICT));
    end.complete(slot, Cqe::default(), None);
    assert!(answer(&mut end).status.is_success());
    command(&mut end, &second);
}

#[test]
fn a_host_may_forget_its_requests_for_events_and_use_their_ids() {
    let event = |cid| capsule(event_request(cid), NONE, &[]);
    let mut end = opened(&controller_config(), NONE, 0);
    let (connect, ..) = command(&mut end, &capsule(Sqe::new(0x7f, 0), NONE, &[]));
    end.connected(QueueFacts { entries: 8, admin: true, flow_control: false });
    end.complete(connect, Cqe::default(), None);
    answer(&mut end);
    let (first, ..) = command(&mut end, &event(3));
    let (second, ..) = command(&mut end, &capsule(flush(3), NONE, &[]));
    // The id is the second command's, until that ends.
    assert!(feed(&mut end, &capsule(flush(3), NONE, &[]), 100).is_empty());
    assert_eq!(answer(&mut end).status, Status::COMMAND_ID_CONFLICT);
    end.complete(first, Cqe::default(), None);
    assert!(end.output().is_empty(), "nobody waits for it");
    assert!(feed(&mut end, &capsule(flush(3), NONE, &[]), 100).is_empty());
    assert_eq!(answer(&mut end).status, Status::COMMAND_ID_CONFLICT);
    end.complete(second, Cqe::default(), None);
    assert_eq!(answer(&mut end).cid, 3);
    // Its slot is one like any other again.
    let (third, ..) = command(&mut end, &event(3));
    end.complete(third, Cqe::default(), None);
    assert_eq!(answer(&mut end).cid, 3);
}

#[test]
fn on_an_io_queue_no_command_is_a_request_for_an_event() {
    let mut end = opened(&controller_config(), NONE, 8);
    command(&mut end, &capsule(event_request(3), NONE, &[]));
    assert!(feed(&mut end, &capsule(flush(3), NONE, &[]), 100).is_empty());
    assert_eq!(answer(&mut end).status, Status::COMMAND_ID_CONFLICT);
}

#[test]
fn wrong_sgls_and_lengths_fail_their_command_and_nothing_else() {
    let config = Config { data_bytes_max: 8192, ..controller_config() };
    let ok = Status::SUCCESS;
    let with = |mut sqe: Sqe, kind: u8, address: u64, len: u32| {
        sqe = sqe.with_sgl(Sgl { address, len, kind });
        sqe
    };
    let opcode = |byte: u8| {
        let mut sqe = Sqe::new(byte, 1);
        sqe.set_cid(5);
        sqe
    };
    let flags = |mut sqe: Sqe, byte: u8| {
        sqe.0[1] = byte;
        sqe
    };
    let (w, r, n, b) = (opcode(0x01), opcode(0x02), opcode(0x00), opcode(0x03));
    for (sqe, in_capsule, want) in [
        // Data in the capsule: offset and length must agree with what is there.
        (with(w, 0x01, 0, 512), 512, ok),
        (with(w, 0x01, 0, 511), 512, Status::SGL_LENGTH_INVALID),
        (with(w, 0x01, 0, 513), 512, Status::SGL_LENGTH_INVALID),
        (with(w, 0x01, 0, 512), 0, Status::SGL_LENGTH_INVALID),
        (with(w, 0x01, 512, 0), 512, ok),
        (with(w, 0x01, 513, 0), 512, Status::SGL_OFFSET_INVALID),
        (with(w, 0x01, u64::MAX, 512), 512, Status::SGL_OFFSET_INVALID),
        (with(w, 0x01, 1, u32::MAX), 512, Status::SGL_LENGTH_INVALID),
        // The host cannot be written to in a capsule.
        (with(r, 0x01, 0, 512), 0, Status::SGL_TYPE_INVALID),
        (with(r, 0x5a, 0, 512), 512, Status::SGL_LENGTH_INVALID),
        (with(w, 0x5a, 0, 512), 512, Status::SGL_LENGTH_INVALID),
        (with(n, 0x5a, 0, 0), 512, Status::SGL_LENGTH_INVALID),
        // Types: an address, a keyed block, a segment, a bit bucket.
        (with(w, 0x00, 0, 512), 0, Status::SGL_TYPE_INVALID),
        (with(w, 0x40, 0, 512), 0, Status::SGL_TYPE_INVALID),
        (with(r, 0x20, 0, 512), 0, Status::SGL_TYPE_INVALID),
        (with(r, 0x10, 0, 512), 0, Status::SGL_TYPE_INVALID),
        (with(w, 0x5b, 0, 512), 0, Status::SGL_TYPE_INVALID),
        // Without data the type says nothing.
        (with(w, 0x00, 0, 0), 0, ok),
        (with(r, 0x00, 0, 0), 0, ok),
        (with(n, 0x33, 7, 512), 0, ok),
        // MDTS.
        (with(r, 0x5a, 0, 8192), 0, ok),
        (with(r, 0x5a, 0, 8193), 0, Status::INVALID_FIELD),
        (with(w, 0x5a, 0, 8193), 0, Status::INVALID_FIELD),
        (with(w, 0x5a, 0, u32::MAX), 0, Status::INVALID_FIELD),
        // PSDT: PRPs, and metadata as an SGL.
        (flags(with(r, 0x5a, 0, 512), 0x00), 0, Status::INVALID_FIELD),
        (flags(n, 0x00), 0, Status::INVALID_FIELD),
        (flags(n, 0x80), 0, Status::INVALID_FIELD),
        (flags(n, 0xc0), 0, Status::INVALID_FIELD),
        // Data both ways: the owner refuses the opcode.
        (with(b, 0x5a, 0, 512), 0, ok),
        (with(b, 0x01, 0, 512), 512, ok),
    ] {
        for digests in [NONE, BOTH] {
            let mut end = opened(&config, digests, 8);
            let bytes = capsule(sqe, digests, &vec![1; in_capsule]);
            let events = feed(&mut end, &bytes, 61);
            if want.is_success() {
                assert!(matches!(events[..], [Event::Command { .. }]), "{sqe:?}: {events:?}");
            } else {
                assert!(events.is_empty(), "{sqe:?}: {events:?}");
                let cqe = answer(&mut end);
                assert_eq!((cqe.cid, cqe.status), (5, want), "{sqe:?}");
                // The slot and the id are free, and the stream goes on after the data.
                command(&mut end, &capsule(flush(5), digests, &[]));
            }
        }
    }
}

//= promise 1
#[test]
fn damaged_data_fails_its_command_which_never_runs() {
    let config = Config { r2t_bytes_max: 12 << 10, h2c_data_bytes_max: 4096, ..controller_config() };
    for damaged in 0..3usize {
        let mut end = opened(&config, BOTH, 8);
        let (slot, len) = asks(&mut end, &capsule(write(9, 20 << 10), BOTH, &[]));
        end.give(slot, buf(len));
        let r2t = place_of(&send_all(&mut end));
        assert_eq!((r2t.offset, r2t.len), (0, 12 << 10));
        for part in 0..3usize {
            let place = Place { offset: u32::try_from(part).unwrap() * 4096, ..r2t };
            let flags = if part == 2 { flag::LAST } else { 0 };
            let mut bytes = placed(Kind::H2cData, flags, BOTH, place, &pattern(1, 4096));
            if part == damaged {
                bytes[28 + 4000] ^= 0x10;
            }
            assert!(feed(&mut end, &bytes, 3000).is_empty());
        }
        // What was asked for has come, no more is asked for.
        let cqe = answer(&mut end);
        assert_eq!((cqe.cid, cqe.status), (9, Status::TRANSIENT_TRANSPORT_ERROR.retryable()));
        assert!(!end.is_closing());
        // In the capsule.
        let mut bytes = capsule(write(9, 0).with_sgl(Sgl::in_capsule(512)), BOTH, &[3; 512]);
        command(&mut end, &bytes.clone());
        bytes[2 + 8] = 10;
        reseal(&mut bytes, BOTH);
        *bytes.last_mut().unwrap() ^= 1;
        assert!(feed(&mut end, &bytes, 600).is_empty());
        let cqe = answer(&mut end);
        assert_eq!((cqe.cid, cqe.status), (10, Status::TRANSIENT_TRANSPORT_ERROR.retryable()));
    }
}

#[test]
fn more_data_than_the_host_has_room_for_is_an_error_and_not_sent() {
    let mut end = opened(&controller_config(), NONE, 8);
    for (sqe, len) in [(read(1, 511), 512), (flush(1), 1)] {
        let (slot, ..) = command(&mut end, &capsule(sqe, NONE, &[]));
        assert!(end.complete(slot, Cqe::default(), Some(buf(len))).is_some());
        assert_eq!(answer(&mut end).status, Status::SGL_LENGTH_INVALID);
    }
}

#[test]
fn small_data_is_copied_and_large_data_sent_from_where_it_is() {
    let mut end = opened(&controller_config(), BOTH, 128);
    let mut back = Vec::new();
    for (len, copied) in [(16 << 10, true), ((16 << 10) + 1, false)] {
        let (slot, ..) = command(&mut end, &capsule(read(1, len), BOTH, &[]));
        let data = patterned(7, len as usize);
        let start = data.as_ptr();
        assert_eq!(end.complete(slot, Cqe::default(), Some(data)).is_some(), copied);
        assert_eq!(end.output().iter().any(|slice| slice.as_ptr() == start), !copied);
        // The buffer comes back with its last byte.
        let all: usize = end.output().iter().map(|slice| slice.len()).sum();
        assert_eq!(all, 28 + len as usize + 4);
        end.sent(all - 5, &mut back);
        assert!(back.is_empty());
        end.sent(1, &mut back);
        assert_eq!(back.len(), usize::from(!copied));
        back.clear();
        end.sent(4, &mut back);
        assert!(end.output().is_empty() && back.is_empty());
    }
}

#[test]
fn one_send_has_so_many_pieces_and_the_rest_follows() {
    let mut end = opened(&controller_config(), NONE, 128);
    let len = 20_000u32;
    for cid in 0..100 {
        let (slot, ..) = command(&mut end, &capsule(read(cid, len), NONE, &[]));
        end.complete(slot, Cqe::default(), Some(patterned(cid.into(), len as usize)));
    }
    assert_eq!(end.output().len(), Output::SLICES);
    let bytes = send_all(&mut end);
    for (cid, pdu) in (0u16..).zip(cut(&bytes)) {
        assert_eq!(place_of(pdu), Place { cid, ttag: 0, offset: 0, len });
        assert!(pdu[24..] == pattern(cid.into(), len as usize));
    }
    assert_eq!(bytes.len(), 100 * (24 + len as usize));
}

/// A host that sends for ever and never reads: the machine stops taking in, and goes on when it is read from.
#[test]
fn what_is_staged_is_bounded_whatever_the_host_does() {
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum What {
        Answers,
        Refusals,
        Small,
        Large,
        Asked,
    }
    for what in [What::Answers, What::Refusals, What::Small, What::Large, What::Asked] {
        let mut end = opened(&controller_config(), BOTH, 128);
        let (mut taken, mut cid) = (0, 0u16);
        let held = (what == What::Refusals).then(|| command(&mut end, &capsule(flush(9), BOTH, &[])));
        loop {
            cid = if what == What::Refusals { 9 } else { cid.wrapping_add(1) };
            let sqe = match what {
                What::Small => read(cid, 16 << 10),
                What::Large => read(cid, 64 << 10),
                What::Asked => write(cid, 1 << 20),
                _ => flush(cid),
            };
            let bytes = capsule(sqe, BOTH, &[]);
            let n = read_into(&mut end, &bytes);
            taken += n;
            while let Some(event) = end.next() {
                match event {
                    Event::Command { slot, sqe, .. } => {
                        let len = if sqe.opcode() == 0x02 { sqe.sgl().len } else { 0 };
                        end.complete(slot, Cqe::default(), Some(buf(len)));
                    }
                    Event::NeedBuffer { slot, len } => end.give(slot, buf(len)),
                    // 128 commands wait for data: one more is one too many.
                    Event::Broken(why) => assert!(what == What::Asked && cid == 129, "{why}"),
                }
            }
            if n < bytes.len() || end.is_closing() {
                break;
            }
            assert!(taken < 64 << 20, "{what:?}: it takes in without end");
        }
        drop(held);
        let staged = send_all(&mut end).len();
        // Never more buffers than entries, and what is copied.
        let referred = match what {
            What::Large => 128 * (64 << 10),
            What::Small => 128 * (16 << 10),
            _ => 0,
        };
        let most = referred + (400 << 10);
        assert!(staged > 0 && staged <= most, "{what:?}: {staged} bytes wait to be sent");
        assert!(what == What::Asked || end.next().is_some() || what == What::Refusals, "it goes on");
    }
}

#[test]
fn data_that_was_asked_for_is_taken_while_a_full_queue_of_answers_is_being_sent() {
    let mut end = opened(&controller_config(), NONE, 4);
    let (slot, len) = asks(&mut end, &capsule(write(9, 4096), NONE, &[]));
    end.give(slot, buf(len));
    let r2t = place_of(&send_all(&mut end));
    for cid in 0..3 {
        let (slot, ..) = command(&mut end, &capsule(read(cid, 20_000), NONE, &[]));
        end.complete(slot, Cqe::default(), Some(buf(20_000)));
    }
    let (slot, ..) = command(&mut end, &h2c_last(r2t, NONE, &[1; 4096]));
    end.complete(slot, Cqe::default(), None);
    command(&mut end, &capsule(flush(7), NONE, &[]));
    // A fifth: the host cannot have read an answer yet.
    assert!(feed(&mut end, &capsule(flush(8), NONE, &[]), 72).is_empty() && !end.is_closing());
    end.sent(20_024, &mut Vec::new());
    assert!(matches!(end.next(), Some(Event::Command { .. })));
}

#[test]
fn a_capsule_waits_for_a_buffer_of_the_owner_or_for_the_connections_own_and_does_not_fail() {
    let mut end = opened(&controller_config(), NONE, 4);
    let bytes = |cid| capsule(write(cid, 0).with_sgl(Sgl::in_capsule(512)), NONE, &pattern(cid.into(), 512));
    let first = command(&mut end, &bytes(1));
    // The connection's own buffer is in use: the owner is asked once, and nothing behind is parsed.
    let asked = asks(&mut end, &bytes(2));
    assert_eq!(asked.1, 512);
    assert!(end.capsule_waits() && end.use_own_buffer().is_none());
    assert!(feed(&mut end, &capsule(flush(9), NONE, &[]), 7).is_empty());
    end.give(asked.0, buf(512));
    let Some(Event::Command { data, .. }) = end.next() else { panic!("no command") };
    assert!(data[..] == pattern(2, 512) && !end.capsule_waits());
    assert!(matches!(end.next(), Some(Event::Command { .. })), "the flush behind it");
    // The next one gets the connection's own as soon as its command has ended, whatever the owner has.
    let asked = asks(&mut end, &bytes(3));
    assert!(end.next().is_none());
    drop(first.2);
    end.complete(first.0, Cqe::default(), None);
    assert_eq!(end.use_own_buffer(), Some(asked.0));
    let Some(Event::Command { data, .. }) = end.next() else { panic!("no command") };
    assert!(data[..] == pattern(3, 512));
}

#[test]
fn what_a_host_owes_is_what_it_was_asked_for_and_what_it_does_not_take() {
    let mut end = opened(&controller_config(), NONE, 8);
    // Of its Connect.
    let before = end.payload_bytes();
    assert_eq!(end.owed_bytes(), 0);
    let (slot, len) = asks(&mut end, &capsule(write(1, 0).with_sgl(Sgl::transport(30_000)), NONE, &[]));
    assert_eq!(end.owed_bytes(), 0, "not asked yet");
    end.give(slot, buf(len));
    assert_eq!(end.owed_bytes(), 30_000);
    // In the capsule, by the staging area, half of it.
    let bytes = capsule(write(2, 0).with_sgl(Sgl::in_capsule(4096)), NONE, &pattern(2, 4096));
    let (half, rest) = bytes.split_at(72 + 2000);
    assert!(feed(&mut end, half, 100).is_empty());
    assert_eq!((end.owed_bytes(), end.payload_bytes() - before), (34_096, 2000));
    let (_, _, data) = command(&mut end, rest);
    assert_eq!((data.len(), end.owed_bytes(), end.payload_bytes() - before), (4096, 30_000, 4096));
    // An answer too long to be copied, until it is sent.
    let mut sqe = Sqe::new(0x02, 1).with_sgl(Sgl::transport(20_000));
    sqe.set_cid(3);
    let (slot, _, _) = command(&mut end, &capsule(sqe, NONE, &[]));
    assert!(end.complete(slot, Cqe::default(), Some(buf(20_000))).is_none());
    assert_eq!(end.owed_bytes(), 50_000);
    send_all(&mut end);
    assert_eq!(end.owed_bytes(), 30_000);
}

#[test]
fn silence_ends_a_connection_that_does_not_open() {
    let second = Duration::from_secs;
    let mut end = Connection::new(&controller_config()).unwrap();
    for now in [100, 109] {
        end.tick(second(now));
        assert!(end.next().is_none() && !end.is_closing());
    }
    end.tick(second(110));
    assert!(matches!(end.next(), Some(Event::Broken(Broken::Silent))));
    assert!(end.next().is_none() && end.is_over() && end.output().is_empty());

    let mut end = opened(&controller_config(), NONE, 8);
    for now in [0, 10, 1_000_000] {
        end.tick(second(now));
        assert!(!end.is_closing(), "an open connection may be idle for ever");
    }
    // A peer that was sent a TermReq has 30 seconds to close.
    assert!(matches!(feed(&mut end, &[0xff; 8], 8)[..], [Event::Broken(Broken::Protocol(_))]));
    assert!(end.is_closing() && !end.is_over());
    end.tick(second(1_000_001));
    end.tick(second(1_000_030));
    assert!(!end.is_over());
    end.tick(second(1_000_031));
    assert!(end.is_over() && end.next().is_none());
}

#[test]
fn after_the_end_completions_only_free_their_slots_and_input_is_thrown_away() {
    let mut end = opened(&controller_config(), NONE, 8);
    let (slot, ..) = command(&mut end, &capsule(read(1, 512), NONE, &[]));
    let (waits, len) = asks(&mut end, &capsule(write(2, 5000), NONE, &[]));
    feed(&mut end, &[0xff; 8], 8);
    let bytes = send_all(&mut end);
    assert_eq!((bytes[0], bytes.len()), (Kind::C2hTermReq as u8, 32));
    end.give(waits, buf(len));
    assert!(end.complete(slot, Cqe::default(), Some(buf(512))).is_some());
    for _ in 0..10_000 {
        assert!(feed(&mut end, &capsule(flush(3), NONE, &[]), 72).is_empty());
    }
    assert!(end.output().is_empty());
}

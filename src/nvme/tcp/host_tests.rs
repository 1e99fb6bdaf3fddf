//! The host's end rule by rule: what it sends for a command, what it takes from a controller, and what ends the
//! connection.

use super::host::{Config, Connection, Data, Event, Unfinished};
use super::pdu::{self, IcResp, Kind, Place, fes, flag, u32_at};
use super::testing::{
    BOTH, NONE, capsule, cut, feed_host, host_config, pattern, patterned, place_of, placed, read_into, ready,
    reseal, response, send_all, send_from,
};
use super::{Broken, Digests, Fatal};
use crate::block::Buf;
use crate::nvme::{Cqe, Sgl, Sqe, Status};
use std::time::Duration;

fn granted(digests: Digests) -> IcResp {
    IcResp { cpda: 0, digests, h2c_data_bytes_max: 8192 }
}

/// A machine in use: slot 1 reads 10000 bytes, slot 2 writes 20000 by R2T, slot 3 writes 512 in its capsule, slot 4
/// flushes.
fn machine(digests: Digests) -> Connection {
    let mut end = ready(&Config { digests, ..host_config() }, granted(digests));
    end.submit(1, Sqe::new(0x02, 1), Data::In(buf(10_000)));
    end.submit(2, Sqe::new(0x01, 1), Data::Out(patterned(2, 20_000)));
    end.submit(3, Sqe::new(0x01, 1), Data::Out(patterned(3, 512)));
    end.submit(4, Sqe::new(0x00, 1), Data::None);
    let sent = send_all(&mut end);
    assert_eq!(cut(&sent).len(), 4);
    end
}

fn buf(len: usize) -> Buf {
    Buf::alloc(len).unwrap()
}

fn c2h(flags: u8, digests: Digests, cid: u16, offset: u32, data: &[u8]) -> Vec<u8> {
    placed(Kind::C2hData, flags, digests, Place { cid, offset, ..Place::default() }, data)
}

fn r2t(digests: Digests, cid: u16, ttag: u16, offset: u32, len: u32) -> Vec<u8> {
    placed(Kind::R2t, 0, digests, Place { cid, ttag, offset, len }, &[])
}

fn ok(cid: u16, digests: Digests) -> Vec<u8> {
    response(Cqe { cid, ..Cqe::default() }, digests)
}

/// The one completion that these bytes bring.
fn done(end: &mut Connection, bytes: &[u8]) -> (u16, Cqe, Data, u32) {
    let mut events = feed_host(end, bytes, bytes.len());
    let Some(Event::Done { slot, cqe, data, received }) = events.pop() else { panic!("{events:?}") };
    assert!(events.is_empty(), "{events:?}");
    (slot, cqe, data, received)
}

#[test]
fn a_capsule_says_what_the_command_is_and_where_its_data_is() {
    let mut end = ready(&Config { in_capsule_bytes_max: 512, ..host_config() }, granted(NONE));
    let mut sqe = Sqe::new(0x01, 7).with(10, 0x1234).with(15, 0x5678);
    sqe.0[1] = 0x81;
    for (slot, data, in_capsule, sgl) in [
        (0, Data::None, 0, Sgl::transport(0)),
        (1, Data::In(buf(512)), 0, Sgl::transport(512)),
        (2, Data::Out(patterned(1, 512)), 512, Sgl::in_capsule(512)),
        (31, Data::Out(patterned(1, 513)), 0, Sgl::transport(513)),
        (5, Data::Out(Buf::default()), 0, Sgl::transport(0)),
    ] {
        end.submit(slot, sqe, data);
        let mut want = sqe.with_sgl(sgl);
        want.set_cid(end.cid(slot));
        assert_eq!(end.cid(slot) & 0xfff, slot);
        want.0[1] = 0x41; // SGL; FUSE as it was
        assert_eq!(send_all(&mut end), capsule(want, NONE, &pattern(1, in_capsule)));
    }
    end.set_in_capsule(16 << 10);
    end.submit(6, sqe, Data::Out(patterned(6, 16 << 10)));
    assert_eq!(send_all(&mut end).len(), 72 + (16 << 10));
}

#[test]
fn an_r2t_is_answered_in_pdus_the_controller_takes() {
    for digests in [NONE, BOTH] {
        let mut end = machine(digests);
        let cid = end.cid(2);
        let data = pattern(2, 20_000);
        for (ttag, offset, len, parts) in
            [(9, 0, 16_385, vec![8192, 8192, 1]), (0xffff, 16_385, 3615, vec![3615])]
        {
            assert!(feed_host(&mut end, &r2t(digests, cid, ttag, offset, len), 1).is_empty());
            let bytes = send_all(&mut end);
            let pdus = cut(&bytes);
            let mut at = offset;
            assert_eq!(pdus.len(), parts.len());
            for (n, (pdu, part)) in pdus.iter().zip(&parts).enumerate() {
                let flags = if n + 1 == parts.len() { flag::LAST } else { 0 };
                let place = Place { cid, ttag, offset: at, len: 0 };
                assert_eq!(*pdu, placed(Kind::H2cData, flags, digests, place, &data[at as usize..][..*part]));
                at += u32::try_from(*part).unwrap();
            }
        }
        let (slot, cqe, back, received) = done(&mut end, &ok(cid, digests));
        assert_eq!((slot, cqe.status, received), (2, Status::SUCCESS, 0));
        assert!(matches!(back, Data::Out(buf) if buf[..] == data));
    }
}

#[test]
fn data_goes_straight_into_the_commands_buffer() {
    for digests in [NONE, BOTH] {
        let mut end = ready(&Config { digests, ..host_config() }, granted(digests));
        let memory = buf(10_000);
        let start = memory.as_ptr();
        end.submit(1, Sqe::new(0x02, 1), Data::In(memory));
        send_all(&mut end);
        let cid = end.cid(1);
        let data = pattern(5, 10_000);
        let first = c2h(0, digests, cid, 0, &data[..6000]);
        assert!(feed_host(&mut end, &first[..1000], usize::MAX).is_empty());
        let lead = if digests.header { 28 } else { 24 };
        let [rest, _] = end.space();
        assert_eq!((rest.as_ptr(), rest.len()), (start.wrapping_add(1000 - lead), 6000 + lead - 1000));
        assert_eq!(read_into(&mut end, &first[1000..]), first.len() - 1000);
        assert!(end.next().is_none());
        let last = c2h(flag::LAST | flag::SUCCESS, digests, cid, 6000, &data[6000..]);
        let (slot, cqe, got, received) = done(&mut end, &last);
        assert_eq!((slot, cqe, received), (1, Cqe { cid, ..Cqe::default() }, 10_000));
        assert!(matches!(got, Data::In(got) if got[..] == data && got.as_ptr() == start));
    }
}

#[test]
fn a_read_may_end_with_a_response_and_with_less_than_its_buffer_holds() {
    let mut end = machine(NONE);
    let cid = end.cid(1);
    assert!(feed_host(&mut end, &c2h(flag::LAST, NONE, cid, 0, &[1; 100]), 50).is_empty());
    let cqe = Cqe { cid, result: 5, ..Cqe::default() };
    let (_, got, _, received) = done(&mut end, &response(cqe, NONE));
    assert_eq!((got, received), (cqe, 100));

    // An error may come in the middle of the data.
    let mut end = machine(NONE);
    assert!(feed_host(&mut end, &c2h(0, NONE, cid, 0, &[1; 100]), 50).is_empty());
    let cqe = Cqe { cid, status: Status::UNRECOVERED_READ_ERROR, ..Cqe::default() };
    let (_, got, _, received) = done(&mut end, &response(cqe, NONE));
    assert_eq!((got, received), (cqe, 100));
}

#[test]
fn damaged_data_fails_its_command_and_nothing_else() {
    for part in 0..3u32 {
        for success in [false, true] {
            let mut end = machine(BOTH);
            let cid = end.cid(1);
            let mut bytes = Vec::new();
            for n in 0..3u32 {
                let flags = if n == 2 { flag::LAST | if success { flag::SUCCESS } else { 0 } } else { 0 };
                let mut pdu = c2h(flags, BOTH, cid, n * 100, &[7; 100]);
                pdu[28 + 99] ^= u8::from(n == part);
                bytes.extend(pdu);
            }
            if !success {
                bytes.extend(ok(cid, BOTH));
            }
            let (_, cqe, _, received) = done(&mut end, &bytes);
            assert_eq!((cqe.status, received), (Status::TRANSIENT_TRANSPORT_ERROR.retryable(), 300));
            let cid = end.cid(4);
            assert!(done(&mut end, &ok(cid, BOTH)).1.status.is_success());
        }
    }
}

#[test]
fn a_command_that_ends_early_is_told_when_its_buffer_is_free() {
    let mut end = ready(&host_config(), IcResp { h2c_data_bytes_max: 1 << 20, ..granted(NONE) });
    end.submit(7, Sqe::new(0x01, 1), Data::Out(patterned(1, 100_000)));
    send_all(&mut end);
    let cid = end.cid(7);
    assert!(feed_host(&mut end, &r2t(NONE, cid, 3, 0, 100_000), 99).is_empty());
    // Half of it is sent when the controller gives up.
    assert_eq!(send_from(&mut end, 50_000).len(), 50_000);
    let failed = response(Cqe { cid, status: Status::WRITE_FAULT, ..Cqe::default() }, NONE);
    assert!(feed_host(&mut end, &failed, 99).is_empty());
    let rest = send_from(&mut end, 50_023);
    assert!(rest == pattern(1, 100_000)[49_976..99_999] && end.next().is_none());
    assert_eq!(send_from(&mut end, 1).len(), 1);
    let Some(Event::Done { slot: 7, cqe, data: Data::Out(_), .. }) = end.next() else { panic!("not done") };
    assert_eq!(cqe.status, Status::WRITE_FAULT);
    assert!(end.next().is_none());
}

#[test]
fn an_answer_to_the_command_before_in_the_slot_is_not_taken_for_this_ones() {
    let mut end = machine(NONE);
    let before = end.cid(4);
    done(&mut end, &ok(before, NONE));
    end.submit(4, Sqe::new(0x00, 1), Data::None);
    assert_ne!(end.cid(4), before);
    let events = feed_host(&mut end, &ok(before, NONE), 99);
    assert!(matches!(events[..], [Event::Broken(Broken::Protocol(fatal))] if fatal == Fatal::field(20)));
}

type Make = Box<dyn Fn(&Connection) -> Vec<u8>>;

/// What a controller may not do to [`machine`], and what it is told. The last PDU is the one at fault.
#[allow(clippy::too_many_lines)] // a table
fn rows() -> Vec<(String, Digests, Make, Fatal)> {
    let mut rows: Vec<(String, Digests, Make, Fatal)> = Vec::new();
    let status = |status| Fatal { status, information: 0 };
    for digests in [NONE, Digests { header: true, data: false }, Digests { header: false, data: true }, BOTH]
    {
        let mut row = |name: &str, make: Make, want| rows.push((name.to_owned(), digests, make, want));
        let sequence = status(fes::SEQUENCE_ERROR);
        let range = status(fes::OUT_OF_RANGE);

        // R2Ts: slot, offset, length.
        for (name, slot, offset, len, want) in [
            ("R2T of no bytes", 2, 0, 0, Fatal::field(16)),
            ("R2T beyond the buffer", 2, 0, 20_001, range),
            ("R2T that wraps", 2, 0, u32::MAX, range),
            ("R2T with a gap", 2, 1, 512, range),
            ("R2T for a read", 1, 0, 512, sequence),
            ("R2T for data in the capsule", 3, 0, 512, sequence),
            ("R2T for a flush", 4, 0, 512, sequence),
            ("R2T for no command", 5, 0, 512, Fatal::field(8)),
            ("R2T for no slot", 0xfff, 0, 512, Fatal::field(8)),
        ] {
            let cid = move |end: &Connection| if slot < 32 { end.cid(slot) } else { slot };
            row(name, Box::new(move |end| r2t(digests, cid(end), 1, offset, len)), want);
        }
        let twice = |offset: u32, len: u32| -> Make {
            Box::new(move |end| {
                let mut bytes = r2t(digests, end.cid(2), 1, 0, 4096);
                bytes.extend(r2t(digests, end.cid(2), 2, offset, len));
                bytes
            })
        };
        row("a second R2T", twice(4096, 4096), status(fes::LIMIT_EXCEEDED));
        row("a second R2T for the same", twice(0, 4096), range);
        row("a second R2T beyond the buffer", twice(4096, 15_905), range);
        row("stale id", Box::new(move |end| r2t(digests, end.cid(2) ^ 0x1000, 1, 0, 512)), Fatal::field(8));

        // C2HData: slot, flags, offset, length.
        let (last, success) = (flag::LAST, flag::LAST | flag::SUCCESS);
        for (name, slot, flags, offset, len, want) in [
            ("SUCCESS without LAST", 1, flag::SUCCESS, 0, 512, Fatal::field(1)),
            ("data for a write", 2, last, 0, 512, sequence),
            ("data for a flush", 4, success, 0, 1, sequence),
            ("data for no command", 5, last, 0, 512, Fatal::field(8)),
            ("a gap", 1, 0, 1, 512, range),
            ("too much", 1, last, 0, 10_001, range),
            ("far away", 1, last, u32::MAX, 512, range),
        ] {
            let make = move |end: &Connection| c2h(flags, digests, end.cid(slot), offset, &vec![0; len]);
            row(name, Box::new(make), want);
        }
        let two = |flags: u8, offset: u32, len: usize| -> Make {
            Box::new(move |end| {
                let mut bytes = c2h(flags, digests, end.cid(1), 0, &[0; 6000]);
                bytes.extend(c2h(flag::LAST, digests, end.cid(1), offset, &vec![0; len]));
                bytes
            })
        };
        row("the same data again", two(0, 0, 100), range);
        row("a gap between two", two(0, 6001, 100), range);
        row("too much in two", two(0, 6000, 4001), range);
        row("data after the last", two(last, 6000, 100), sequence);
        let lie = |at: usize, value: u8| -> Make {
            Box::new(move |end| {
                let mut bytes = c2h(flag::LAST, digests, end.cid(1), 0, &[0; 512]);
                bytes[at] = value;
                reseal(&mut bytes, digests);
                bytes
            })
        };
        row("DATAL", lie(16, 1), Fatal::field(16));
        row("HLEN", lie(2, 25), Fatal::field(2));
        row("PDO", lie(3, 23), Fatal::field(3));
        row(
            "flags",
            Box::new(move |end| {
                let mut bytes = c2h(flag::LAST, digests, end.cid(1), 0, &[0; 512]);
                bytes[1] ^= 1;
                bytes
            }),
            Fatal::field(1),
        );

        // Responses.
        row("response to no command", Box::new(move |_| ok(5, digests)), Fatal::field(20));
        row("response to no slot", Box::new(move |_| ok(32, digests)), Fatal::field(20));
        row(
            "success in the middle of the data",
            Box::new(move |end| {
                let mut bytes = c2h(0, digests, end.cid(1), 0, &[0; 512]);
                bytes.extend(ok(end.cid(1), digests));
                bytes
            }),
            sequence,
        );
        row(
            "success for a write whose data nobody asked for",
            Box::new(move |e| ok(e.cid(2), digests)),
            sequence,
        );
        for (name, len) in [("in part", 19_999), ("but it is not sent yet", 20_000)] {
            row(
                &format!("success for a write whose data was asked for {name}"),
                Box::new(move |end| {
                    let mut bytes = r2t(digests, end.cid(2), 1, 0, len);
                    bytes.extend(ok(end.cid(2), digests));
                    bytes
                }),
                sequence,
            );
        }

        // Types.
        row("unknown type", Box::new(move |_| vec![8, 0, 24, 0, 24, 0, 0, 0]), Fatal::field(0));
        for kind in [0, 2, 4, 6] {
            row("a host's type", Box::new(move |_| vec![kind, 0, 24, 0, 24, 0, 0, 0]), Fatal::field(0));
        }
        row("a second ICResp", Box::new(move |_| vec![1, 0, 128, 0, 128, 0, 0, 0]), sequence);
        row("TermReq: PLEN 23", Box::new(move |_| vec![3, 0, 24, 0, 23, 0, 0, 0]), Fatal::field(4));
        row("TermReq: PLEN 153", Box::new(move |_| vec![3, 0, 24, 0, 153, 0, 0, 0]), Fatal::field(4));
    }
    rows
}

#[test]
fn a_controller_that_breaks_the_rules_is_told_which_and_left() {
    for (name, digests, make, want) in rows() {
        for step in [1, usize::MAX] {
            let mut end = machine(digests);
            let bytes = make(&end);
            let events = feed_host(&mut end, &bytes, step);
            let [Event::Broken(Broken::Protocol(got))] = events[..] else { panic!("{name}: {events:?}") };
            assert_eq!(got, want, "{name}, {digests:?}");
            assert!(end.is_closing());
            let sent = send_all(&mut end);
            let term = *cut(&sent).last().unwrap();
            assert_eq!(term[..4], [Kind::H2cTermReq as u8, 0, 24, 0], "{name}");
            assert_eq!(
                (u16::from_le_bytes([term[8], term[9]]), u32_at(term, 10)),
                (want.status, want.information)
            );
            let pdus = if bytes.len() > 8 { cut(&bytes) } else { vec![&bytes[..]] };
            assert_eq!(term[24..], pdus[pdus.len() - 1][..term.len() - 24], "{name}: the header at fault");
            // Nothing is processed any more, and every command is given back.
            let cid = end.cid(4);
            assert!(feed_host(&mut end, &ok(cid, digests), 99).is_empty());
            let slots: Vec<u16> =
                std::iter::from_fn(|| end.drain()).map(|unfinished| unfinished.slot).collect();
            assert_eq!(slots, [1, 2, 3, 4], "{name}");
        }
    }
}

#[test]
fn a_command_that_is_not_wholly_sent_has_no_answer() {
    // Its id is no secret: a slot and a small number.
    for digests in [NONE, BOTH] {
        let answers: [fn(Digests, u16) -> Vec<u8>; 4] = [
            |digests, cid| ok(cid, digests),
            |digests, cid| response(Cqe { cid, status: Status::WRITE_FAULT, ..Cqe::default() }, digests),
            |digests, cid| r2t(digests, cid, 1, 0, 512),
            |digests, cid| c2h(flag::LAST | flag::SUCCESS, digests, cid, 0, &[0; 512]),
        ];
        for (i, answer) in answers.into_iter().enumerate() {
            let data = |len: usize| if i == 3 { Data::In(buf(512)) } else { Data::Out(patterned(1, len)) };
            // In the capsule, beside it, and by R2T; not begun, and all sent but the last byte.
            for len in [512, 8192, 9000] {
                for all_but_one in [false, true] {
                    let mut end = ready(&Config { digests, ..host_config() }, granted(digests));
                    end.submit(3, Sqe::new(0x01, 1), data(len));
                    let whole: usize = end.output().iter().map(|slice| slice.len()).sum();
                    if all_but_one {
                        send_from(&mut end, whole - 1);
                    }
                    let bytes = answer(digests, end.cid(3));
                    let events = feed_host(&mut end, &bytes, usize::MAX);
                    let [Event::Broken(Broken::Protocol(fatal))] = events[..] else {
                        panic!("{i} {len}: {events:?}")
                    };
                    assert_eq!(fatal.status, fes::INVALID_HEADER_FIELD, "{i} {len}");
                    let Some(Unfinished { slot: 3, maybe_executed, .. }) = end.drain() else {
                        panic!("lost")
                    };
                    assert_eq!(maybe_executed, all_but_one, "{i} {len}");
                }
            }
        }
    }
}

#[test]
fn success_where_flow_control_is_on_is_an_error() {
    let mut end = ready(&Config { flow_control: true, ..host_config() }, granted(NONE));
    end.submit(1, Sqe::new(0x02, 1), Data::In(buf(512)));
    send_all(&mut end);
    let bytes = c2h(flag::LAST | flag::SUCCESS, NONE, end.cid(1), 0, &[0; 512]);
    assert!(matches!(feed_host(&mut end, &bytes, 99)[..],
        [Event::Broken(Broken::Protocol(fatal))] if fatal == Fatal::field(1)));
}

#[test]
fn a_damaged_header_ends_the_connection() {
    let mut end = machine(BOTH);
    let good = c2h(flag::LAST, BOTH, end.cid(1), 0, &[0; 512]);
    for bit in 0..28 * 8 {
        let mut end = machine(BOTH);
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let events = feed_host(&mut end, &bytes, 100);
        let [Event::Broken(Broken::Protocol(fatal))] = events[..] else { panic!("bit {bit}: {events:?}") };
        let of_header = fatal.status == fes::HEADER_DIGEST_ERROR && fatal.information == u32_at(&bytes, 24);
        assert!(
            of_header || bit < 64 && [fes::INVALID_HEADER_FIELD, fes::SEQUENCE_ERROR].contains(&fatal.status)
        );
    }
    assert!(end.drain().is_none(), "an open connection gives nothing back");
    assert!(matches!(feed_host(&mut end, &good, 99)[..], []));
}

#[test]
fn what_icresp_may_not_say() {
    let good = IcResp { cpda: 0, digests: NONE, h2c_data_bytes_max: 4096 };
    let bytes = |response: IcResp| {
        let mut bytes = vec![0; 128];
        response.encode(&mut bytes);
        bytes
    };
    let mut version = bytes(good);
    version[8] = 1;
    let only_header = Digests { header: true, data: false };
    for (asked, bytes, want) in [
        (NONE, version, Fatal { status: fes::UNSUPPORTED_PARAMETER, information: 8 }),
        (NONE, bytes(IcResp { cpda: 32, ..good }), Fatal::field(10)),
        (NONE, bytes(IcResp { digests: only_header, ..good }), Fatal::field(11)),
        (only_header, bytes(IcResp { digests: BOTH, ..good }), Fatal::field(11)),
        (NONE, bytes(IcResp { h2c_data_bytes_max: 4095, ..good }), Fatal::field(12)),
        (NONE, ok(0, NONE), Fatal { status: fes::SEQUENCE_ERROR, information: 0 }),
    ] {
        let mut end = Connection::new(&Config { digests: asked, ..host_config() }).unwrap();
        let events = feed_host(&mut end, &bytes, 99);
        assert!(matches!(events[..], [Event::Broken(Broken::Protocol(got))] if got == want), "{events:?}");
    }
    // Digests may be refused.
    let mut end = Connection::new(&Config { digests: BOTH, ..host_config() }).unwrap();
    let events = feed_host(&mut end, &bytes(good), 99);
    assert!(matches!(events[..], [Event::Ready { h2c_data_bytes_max: 4096, digests: NONE }]), "{events:?}");
}

#[test]
fn drained_commands_say_whether_they_may_have_been_executed() {
    let mut end = ready(&host_config(), granted(NONE));
    for slot in 0..4 {
        end.submit(slot, Sqe::new(0x01, 1), Data::Out(patterned(slot.into(), 1000)));
    }
    // Two capsules and the first byte of the third have gone.
    assert_eq!(send_from(&mut end, 2 * 1072 + 1).len(), 2 * 1072 + 1);
    let cid = end.cid(0);
    done(&mut end, &ok(cid, NONE));
    end.close();
    assert!(end.is_closing() && end.is_over() && end.next().is_none() && end.output().is_empty());
    end.submit(0, Sqe::new(0x00, 1), Data::None);
    let mut list = Vec::new();
    while let Some(Unfinished { slot, data, maybe_executed }) = end.drain() {
        assert!(slot == 0 || matches!(data, Data::Out(buf) if buf[..] == pattern(slot.into(), 1000)));
        list.push((slot, maybe_executed));
    }
    assert_eq!(list, [(0, false), (1, true), (2, true), (3, false)]);
    // A command that comes later is given back too.
    end.submit(2, Sqe::new(0x00, 1), Data::None);
    let Some(Unfinished { slot: 2, maybe_executed: false, .. }) = end.drain() else { panic!("lost") };
    assert!(end.drain().is_none());
}

#[test]
fn a_controller_that_leaves_or_is_silent() {
    let fatal = Fatal { status: fes::OUT_OF_RANGE, information: 3 };
    let mut bytes = [0; pdu::TERM_MAX];
    let len = pdu::encode_term_req(&mut bytes, Kind::C2hTermReq, fatal, &[1; 24]);
    for step in [1, 99] {
        let mut end = machine(BOTH);
        let events = feed_host(&mut end, &bytes[..len], step);
        assert!(matches!(events[..], [Event::Broken(Broken::ByPeer(got))] if got == fatal), "{events:?}");
        assert!(end.is_over() && end.output().is_empty());
        assert_eq!(std::iter::from_fn(|| end.drain()).count(), 4);
    }
    let mut end = Connection::new(&host_config()).unwrap();
    for now in [5, 14] {
        end.tick(Duration::from_secs(now));
        assert!(end.next().is_none());
    }
    end.tick(Duration::from_secs(15));
    assert!(matches!(end.next(), Some(Event::Broken(Broken::Silent))) && end.is_over());
}

/// An R2T for everything in the smallest pieces: headers are made as they are sent, not all at once.
#[test]
fn a_long_answer_is_staged_a_part_at_a_time() {
    let config = Config { slots: 64, ..host_config() };
    let mut end = ready(&config, IcResp { h2c_data_bytes_max: 4096, ..granted(NONE) });
    let len = 1u32 << 20;
    for slot in 0..64 {
        end.submit(slot, Sqe::new(0x01, 1), Data::Out(buf(len as usize)));
    }
    send_all(&mut end);
    for slot in 0..64 {
        let bytes = r2t(NONE, end.cid(slot), slot, 0, len);
        assert!(feed_host(&mut end, &bytes, 99).is_empty());
    }
    let (mut sent, mut most) = (0u64, 0);
    loop {
        let pieces = end.output().iter().map(|slice| slice.len()).max().unwrap_or(0);
        most = most.max(pieces);
        let bytes = send_from(&mut end, 100_000);
        if bytes.is_empty() {
            break;
        }
        sent += bytes.len() as u64;
        assert!(feed_host(&mut end, &[], 1).is_empty());
    }
    assert_eq!(sent, 64 * u64::from(len) + 64 * 256 * 24);
    assert!(most <= 512 << 10, "{most} bytes staged");
    let bytes = r2t(NONE, end.cid(9), 0, 0, 4096);
    assert!(matches!(feed_host(&mut end, &bytes, 99)[..], [Event::Broken(_)]), "there is no more to ask for");
    assert_eq!(place_of(&bytes).len, 4096);
}

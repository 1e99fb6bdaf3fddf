//! Malformed PDUs of every kind to the controller's end: the right termination, the header at fault in it, and nothing
//! after it.

use super::controller::{Config, Connection, Event};
use super::pdu::{self, Form, IcReq, Kind, Place, fes, flag, u32_at};
use super::testing::{
    BOTH, NONE, controller_config, cqe_of, cut, feed, opened, pattern, place_of, reseal, send_all, whole,
};
use super::{Broken, Digests, Fatal};
use crate::block::Buf;
use crate::nvme::{Sgl, Sqe, Status};

const HEADER: Digests = Digests { header: true, data: false };
const DATA: Digests = Digests { header: false, data: true };

/// What stands before the malformed PDU.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    Opened,
    /// A write of 20000 bytes waits for its buffer.
    Waits,
    /// 10000 bytes of it are asked for, and so many PDUs of 4096 bytes have come.
    Sent(u32),
    /// All of a write has come.
    Executes,
}
use Before::{Executes, Nothing, Opened, Sent, Waits};

/// Data is to be aligned to 16 bytes.
fn config() -> Config {
    Config {
        in_capsule_bytes_max: 4096,
        h2c_data_bytes_max: 4096,
        r2t_bytes_max: 10_000,
        cpda: 3,
        ..controller_config()
    }
}

fn pdu_of(kind: Kind, flags: u8, digests: Digests, body: &[u8], data: &[u8]) -> Vec<u8> {
    let form = Form { kind, flags, digests, align: 16 };
    whole(form, |out| out[8..8 + body.len()].copy_from_slice(body), data)
}

fn sqe(cid: u16, opcode: u8, sgl: Sgl) -> Sqe {
    let mut sqe = Sqe::new(opcode, 1).with_sgl(sgl);
    sqe.set_cid(cid);
    sqe
}

/// A command with data in its capsule.
fn capsule(digests: Digests, opcode: u8, len: u32) -> Vec<u8> {
    let sqe = sqe(5, opcode, Sgl::in_capsule(len));
    pdu_of(Kind::CapsuleCmd, 0, digests, &sqe.0, &pattern(1, len as usize))
}

fn flush(digests: Digests, cid: u16) -> Vec<u8> {
    pdu_of(Kind::CapsuleCmd, 0, digests, &sqe(cid, 0, Sgl::transport(0)).0, &[])
}

fn data_pdu(flags: u8, digests: Digests, place: Place, len: u32) -> Vec<u8> {
    let mut body = [0; 24];
    Place { len, ..place }.encode(&mut body);
    pdu_of(Kind::H2cData, flags, digests, &body[8..], &pattern(2, len as usize))
}

/// The machine in the state wanted, and the R2T it sent.
fn machine(before: Before, digests: Digests) -> (Connection, Place) {
    if before == Nothing {
        return (Connection::new(&config()).unwrap(), Place::default());
    }
    let mut end = opened(&config(), digests, 8);
    if before == Opened {
        return (end, Place::default());
    }
    let len = if before == Executes { 512 } else { 20_000 };
    let command = pdu_of(Kind::CapsuleCmd, 0, digests, &sqe(6, 1, Sgl::transport(len)).0, &[]);
    let events = feed(&mut end, &command, 9);
    let [Event::NeedBuffer { slot, len: wanted }] = events[..] else { panic!("{events:?}") };
    assert_eq!(wanted, len);
    if before == Waits {
        return (end, Place { cid: 6, ttag: slot, offset: 0, len });
    }
    end.give(slot, Buf::alloc(len as usize).unwrap());
    let r2t = place_of(&send_all(&mut end));
    assert_eq!((r2t.cid, r2t.offset, r2t.len), (6, 0, len.min(10_000)));
    if before == Executes {
        let events = feed(&mut end, &data_pdu(flag::LAST, digests, r2t, 512), 100);
        assert!(matches!(events[..], [Event::Command { .. }]));
    }
    if let Sent(count) = before {
        for n in 0..count {
            let place = Place { offset: n * 4096, ..r2t };
            assert!(feed(&mut end, &data_pdu(0, digests, place, 4096), 1000).is_empty());
        }
    }
    (end, r2t)
}

/// How much of the header at fault a termination shows.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Shown {
    Common,
    Header,
}
use Shown::{Common, Header};

type Make = Box<dyn Fn(Place) -> Vec<u8>>;

struct Row {
    name: String,
    before: Before,
    digests: Digests,
    bytes: Make,
    want: Fatal,
    shown: Shown,
}

fn field(offset: u32) -> Fatal {
    Fatal::field(offset)
}

fn status(status: u16) -> Fatal {
    Fatal { status, information: 0 }
}

/// PDU bytes with some of them changed (and a header digest that is right nevertheless).
fn changed(bytes: Vec<u8>, digests: Digests, changes: &[(usize, u8)]) -> Make {
    let mut bytes = bytes;
    for (at, value) in changes {
        bytes[*at] = *value;
    }
    // A lie about the length of the header is not covered.
    if bytes[2] == 72 || bytes[2] == 24 {
        reseal(&mut bytes, digests);
    }
    Box::new(move |_| bytes.clone())
}

#[allow(clippy::too_many_lines)] // a table
fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |name: &str, before, digests, bytes: Make, want, shown| {
        rows.push(Row { name: name.to_owned(), before, digests, bytes, want, shown });
    };
    let icreq = |at: usize, value: u8| {
        let mut bytes = vec![0; 128];
        IcReq { hpda: 0, digests: NONE, r2t_count_max: 1 }.encode(&mut bytes);
        bytes[at] = value;
        changed(bytes, NONE, &[])
    };
    let term = |plen: u8| {
        let mut bytes = vec![0; 24];
        bytes[..8].copy_from_slice(&[2, 0, 24, 0, plen, 0, 0, 0]);
        bytes.resize(usize::from(plen).max(24), 0);
        changed(bytes, NONE, &[])
    };

    // Type, direction, order.
    for kind in [8, 10, 11, 0x40, 0xff] {
        row("unknown type", Opened, NONE, changed(flush(NONE, 1), NONE, &[(0, kind)]), field(0), Common);
        row(
            "unknown type first",
            Nothing,
            NONE,
            changed(flush(NONE, 1), NONE, &[(0, kind)]),
            field(0),
            Common,
        );
    }
    for kind in [1, 3, 5, 7, 9] {
        row(
            "a controller's type",
            Opened,
            NONE,
            changed(flush(NONE, 1), NONE, &[(0, kind)]),
            field(0),
            Common,
        );
    }
    row("a second ICReq", Opened, NONE, icreq(9, 0), status(fes::SEQUENCE_ERROR), Common);
    row("a second ICReq", Opened, BOTH, icreq(9, 0), status(fes::SEQUENCE_ERROR), Common);
    row(
        "command first",
        Nothing,
        NONE,
        changed(flush(NONE, 1), NONE, &[]),
        status(fes::SEQUENCE_ERROR),
        Common,
    );
    let early = data_pdu(0, NONE, Place::default(), 512);
    row("data first", Nothing, NONE, changed(early, NONE, &[]), status(fes::SEQUENCE_ERROR), Common);
    let nine = || -> Make { Box::new(|_| (0..9).flat_map(|cid| flush(NONE, cid)).collect()) };
    row("nine commands on a queue of eight", Opened, NONE, nine(), status(fes::SEQUENCE_ERROR), Header);

    // ICReq.
    row(
        "ICReq: PFV",
        Nothing,
        NONE,
        icreq(8, 1),
        Fatal { status: fes::UNSUPPORTED_PARAMETER, information: 8 },
        Header,
    );
    row("ICReq: HPDA", Nothing, NONE, icreq(10, 32), field(10), Header);
    row("ICReq: HLEN", Nothing, NONE, icreq(2, 127), field(2), Common);
    row("ICReq: PLEN short", Nothing, NONE, icreq(4, 127), field(4), Common);
    row("ICReq: PLEN long", Nothing, NONE, icreq(4, 129), field(4), Common);
    row("ICReq: PLEN vast", Nothing, NONE, icreq(7, 0xff), field(4), Common);

    // TermReq.
    for before in [Nothing, Opened] {
        row("TermReq: PLEN 23", before, NONE, term(23), field(4), Common);
        row("TermReq: PLEN 153", before, NONE, term(153), field(4), Common);
    }
    row(
        "TermReq: HLEN",
        Opened,
        BOTH,
        changed(term(24)(Place::default()), NONE, &[(2, 23)]),
        field(2),
        Common,
    );

    for digests in [NONE, HEADER, DATA, BOTH] {
        let header_digest = u8::from(digests.header);
        let data_digest = u8::from(digests.data);
        // Lengths.
        let plain = || flush(digests, 1);
        for hlen in [0, 71, 73, 128, 255] {
            row("command: HLEN", Opened, digests, changed(plain(), digests, &[(2, hlen)]), field(2), Common);
        }
        let data = || data_pdu(flag::LAST, digests, Place::default(), 512);
        for hlen in [0, 20, 23, 25, 28] {
            row("data: HLEN", Sent(0), digests, changed(data(), digests, &[(2, hlen)]), field(2), Common);
        }
        for plen in [0, 8, 71, 71 + 4 * header_digest] {
            row(
                "command: PLEN short",
                Opened,
                digests,
                changed(plain(), digests, &[(4, plen)]),
                field(4),
                Common,
            );
        }
        for plen in [0, 8, 23, 24 + 4 * header_digest, 32, 32 + 4 * data_digest] {
            row(
                "data: PLEN without data",
                Sent(0),
                digests,
                changed(data(), digests, &[(4, plen), (5, 0)]),
                field(4),
                Common,
            );
        }
        let full = || capsule(digests, 1, 512);
        row("PLEN vast", Opened, digests, changed(full(), digests, &[(7, 0xff)]), field(4), Header);
        row(
            "PLEN one byte over IOCCSZ",
            Opened,
            digests,
            changed(capsule(digests, 1, 4097), NONE, &[]),
            field(4),
            Header,
        );
        row(
            "8193 bytes with a fabrics command",
            Opened,
            digests,
            changed(capsule(digests, 0x7f, 8193), NONE, &[]),
            field(4),
            Header,
        );

        // Where data begins: 80 is right for a capsule, 32 for data, with and without a header digest.
        for pdo in [0, 1, 64, 71, 72, 79, 81, 88, 255] {
            row("command: PDO", Opened, digests, changed(full(), digests, &[(3, pdo)]), field(3), Common);
        }
        for pdo in [0, 16, 24, 31, 33, 40] {
            row("data: PDO", Sent(0), digests, changed(data(), digests, &[(3, pdo)]), field(3), Common);
        }
        row(
            "PDO past the end",
            Opened,
            digests,
            changed(capsule(digests, 1, 10), digests, &[(3, 96)]),
            field(4),
            Common,
        );

        // Flags that do not say what was agreed.
        let flags = full()[1];
        row(
            "command: HDGSTF",
            Opened,
            digests,
            changed(full(), digests, &[(1, flags ^ 1)]),
            field(1),
            Common,
        );
        row(
            "command: DDGSTF",
            Opened,
            digests,
            changed(full(), digests, &[(1, flags ^ 2)]),
            field(1),
            Common,
        );
        let flags = data()[1];
        row("data: HDGSTF", Sent(0), digests, changed(data(), digests, &[(1, flags ^ 1)]), field(1), Common);
        row("data: DDGSTF", Sent(0), digests, changed(data(), digests, &[(1, flags ^ 2)]), field(1), Common);

        // Data that was not asked for like that.
        let part = |change: fn(&mut Place), flags: u8, len: u32| -> Make {
            Box::new(move |mut r2t| {
                change(&mut r2t);
                data_pdu(flags, digests, r2t, len)
            })
        };
        let last = flag::LAST;
        let range = status(fes::OUT_OF_RANGE);
        row("TTAG of no slot", Sent(0), digests, part(|p| p.ttag += 1, 0, 4096), field(10), Header);
        row(
            "TTAG of no slot at all",
            Sent(0),
            digests,
            part(|p| p.ttag |= 0xfff, 0, 4096),
            field(10),
            Header,
        );
        row("TTAG of another R2T", Sent(0), digests, part(|p| p.ttag += 0x1000, 0, 4096), field(10), Header);
        row("CCCID", Sent(0), digests, part(|p| p.cid += 1, 0, 4096), field(8), Header);
        row("unsolicited", Waits, digests, part(|_| (), 0, 4096), field(10), Header);
        row("unsolicited for nothing", Opened, digests, part(|_| (), 0, 4096), field(10), Header);
        row("after all was sent", Executes, digests, part(|_| (), last, 512), field(10), Header);
        row("a gap", Sent(0), digests, part(|p| p.offset = 4096, 0, 4096), range, Header);
        row("a gap of a byte", Sent(1), digests, part(|p| p.offset = 4097, 0, 4096), range, Header);
        row("again", Sent(1), digests, part(|p| p.offset = 0, 0, 4096), range, Header);
        row("offset past the end", Sent(0), digests, part(|p| p.offset = u32::MAX, 0, 4096), range, Header);
        row("more than asked for", Sent(2), digests, part(|p| p.offset = 8192, last, 1809), range, Header);
        row("over MAXH2CDATA", Sent(0), digests, part(|_| (), 0, 4097), status(fes::LIMIT_EXCEEDED), Header);
        row("LAST too early", Sent(0), digests, part(|_| (), last, 4096), field(1), Header);
        row("LAST missing", Sent(2), digests, part(|p| p.offset = 8192, 0, 1808), field(1), Header);
        let lie = |by: u8| -> Make {
            Box::new(move |r2t| {
                let mut bytes = data_pdu(0, digests, r2t, 512);
                bytes[16] = by;
                reseal(&mut bytes, digests);
                bytes
            })
        };
        row("DATAL less than PLEN says", Sent(0), digests, lie(0xff), field(16), Header);
        row("DATAL more than PLEN says", Sent(0), digests, lie(1), field(16), Header);
    }
    for digests in [HEADER, BOTH] {
        for bytes in [flush(digests, 1), capsule(digests, 1, 512)] {
            let received = u32_at(&bytes, 72) ^ 0x100;
            let want = Fatal { status: fes::HEADER_DIGEST_ERROR, information: received };
            let mut bytes = bytes;
            bytes[73] ^= 1;
            row("header digest", Opened, digests, Box::new(move |_| bytes.clone()), want, Header);
        }
        // In the middle of an R2T.
        let mut bytes = data_pdu(0, digests, Place { cid: 6, ttag: 0, offset: 4096, len: 0 }, 4096);
        bytes[24] ^= 0x80;
        let want = Fatal { status: fes::HEADER_DIGEST_ERROR, information: u32_at(&bytes, 24) };
        row("header digest", Sent(1), digests, Box::new(move |_| bytes.clone()), want, Header);
    }
    rows
}

#[test]
fn every_malformed_pdu_ends_the_connection_as_the_standard_says() {
    let rows = rows();
    assert!(rows.len() > 200);
    for Row { name, before, digests, bytes, want, shown } in rows {
        for step in [1, 7, usize::MAX] {
            let what = format!("{name}, {before:?}, {digests:?}, cut at {step}");
            let (mut end, r2t) = machine(before, digests);
            let bytes = bytes(r2t);
            let mut events = feed(&mut end, &bytes, step);
            assert!(
                matches!(events.pop(), Some(Event::Broken(Broken::Protocol(got))) if got == want),
                "{what}"
            );
            let commands = events.len();
            assert!(commands == 0 || commands == 8 && name.starts_with("nine"), "{what}");
            assert!(end.is_closing());

            let sent = send_all(&mut end);
            let pdus = cut(&sent);
            let term = pdus[pdus.len() - 1];
            assert_eq!(pdus.len(), 1, "{what}");
            let at_fault = &bytes[72 * commands..];
            let len = if shown == Common { 8 } else { usize::from(at_fault[2]) };
            assert_eq!(term[..8], [3, 0, 24, 0, u8::try_from(24 + len).unwrap(), 0, 0, 0], "{what}");
            assert_eq!(u16::from_le_bytes([term[8], term[9]]), want.status, "{what}");
            assert_eq!(u32_at(term, 10), want.information, "{what}");
            assert_eq!(term[14..24], [0; 10]);
            assert_eq!(term[24..], at_fault[..len], "{what}");

            // Nothing is processed any more.
            assert!(
                feed(&mut end, &flush(digests, 3), 100).is_empty() && send_all(&mut end).is_empty(),
                "{what}"
            );
        }
    }
}

#[test]
fn a_host_that_ends_the_connection_gets_no_answer() {
    for (digests, at_fault) in [(NONE, 0), (BOTH, 0), (BOTH, 1), (NONE, 128)] {
        for step in [1, usize::MAX] {
            let (mut end, _) = machine(Sent(1), digests);
            let fatal = Fatal { status: fes::OUT_OF_RANGE, information: 0x0102_0304 };
            let mut bytes = [0; pdu::TERM_MAX];
            let len = pdu::encode_term_req(&mut bytes, Kind::H2cTermReq, fatal, &[0xab; 128][..at_fault]);
            let events = feed(&mut end, &bytes[..len], step);
            assert!(matches!(events[..], [Event::Broken(Broken::ByPeer(got))] if got == fatal), "{events:?}");
            assert!(end.is_closing() && end.is_over() && end.output().is_empty());
        }
    }
}

#[test]
fn a_pdu_cut_short_anywhere_is_waited_for() {
    for digests in [NONE, HEADER, DATA, BOTH] {
        let bytes = capsule(digests, 1, 300);
        for first in 0..bytes.len() {
            let (mut end, _) = machine(Opened, digests);
            assert!(feed(&mut end, &bytes[..first], usize::MAX).is_empty(), "{first}");
            assert!(!end.is_closing() && end.output().is_empty(), "{first}");
            let events = feed(&mut end, &bytes[first..], usize::MAX);
            let [Event::Command { data, .. }] = &events[..] else { panic!("{first}: {events:?}") };
            assert!(data[..] == pattern(1, 300));
        }
    }
}

/// With both digests on, no bit of a command can change on the way and the command still run.
//= promise 1
#[test]
fn a_flipped_bit_is_always_seen() {
    let good = capsule(BOTH, 1, 200);
    // Header 72, digest 4, padding 4, data 200, digest 4.
    assert_eq!(good.len(), 284);
    for bit in 0..good.len() * 8 {
        let (at, mask) = (bit / 8, 1 << (bit % 8));
        let mut bytes = good.clone();
        bytes[at] ^= mask;
        // What follows lets a PDU that claims to be longer than it is go on.
        bytes.extend(flush(BOTH, 1).repeat(2));
        let (mut end, _) = machine(Opened, BOTH);
        let mut events = feed(&mut end, &bytes, usize::MAX);
        if at < 76 {
            let Some(Event::Broken(Broken::Protocol(fatal))) = events.pop() else {
                panic!("bit {bit}: {events:?}")
            };
            assert!(events.is_empty(), "bit {bit}");
            let of_header = fatal.status == fes::HEADER_DIGEST_ERROR;
            assert!(
                of_header
                    || at < 8 && [fes::INVALID_HEADER_FIELD, fes::SEQUENCE_ERROR].contains(&fatal.status)
            );
            continue;
        }
        // Padding is covered by neither digest.
        let Event::Command { sqe, data, .. } = &events[0] else { panic!("bit {bit}: {events:?}") };
        if at < 80 {
            assert!(sqe.cid() == 5 && data[..] == pattern(1, 200), "bit {bit}");
        } else {
            assert_eq!(sqe.opcode(), 0, "bit {bit}: the damaged write runs");
            let cqe = cqe_of(&send_all(&mut end));
            assert_eq!(
                (cqe.cid, cqe.status),
                (5, Status::TRANSIENT_TRANSPORT_ERROR.retryable()),
                "bit {bit}"
            );
        }
    }
}

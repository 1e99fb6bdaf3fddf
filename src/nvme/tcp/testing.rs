//! What the tests of this room share: both machines behind one face, PDUs made by hand, a conversation begun.

use super::pdu::{self, Form, IcReq, IcResp, Kind, Place, flag};
use super::{Digests, Output, controller, host};
use crate::block::Buf;
use crate::nvme::{Cqe, Sgl, Sqe};
use std::io::IoSliceMut;
use std::time::Duration;

pub(super) const NONE: Digests = Digests { header: false, data: false };
pub(super) const BOTH: Digests = Digests { header: true, data: true };

/// Either machine.
pub(super) trait End {
    fn room(&mut self) -> [IoSliceMut<'_>; 2];
    fn had(&mut self, n: usize);
    fn out(&self) -> Output<'_>;
    fn gone(&mut self, n: usize);
}

impl End for controller::Connection {
    fn room(&mut self) -> [IoSliceMut<'_>; 2] {
        self.space()
    }
    fn had(&mut self, n: usize) {
        self.filled(n);
    }
    fn out(&self) -> Output<'_> {
        self.output()
    }
    fn gone(&mut self, n: usize) {
        self.sent(n, &mut Vec::new());
    }
}

impl End for host::Connection {
    fn room(&mut self) -> [IoSliceMut<'_>; 2] {
        self.space()
    }
    fn had(&mut self, n: usize) {
        self.filled(n);
    }
    fn out(&self) -> Output<'_> {
        self.output()
    }
    fn gone(&mut self, n: usize) {
        self.sent(n);
    }
}

/// As one vectored read of at most `bytes`: how many were taken.
pub(super) fn read_into(end: &mut impl End, bytes: &[u8]) -> usize {
    let mut taken = 0;
    for slice in &mut end.room() {
        let n = slice.len().min(bytes.len() - taken);
        slice[..n].copy_from_slice(&bytes[taken..taken + n]);
        taken += n;
    }
    end.had(taken);
    taken
}

/// As one gather send of at most `most` bytes.
pub(super) fn send_from(end: &mut impl End, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for slice in end.out().iter() {
        bytes.extend_from_slice(&slice[..slice.len().min(most - bytes.len())]);
    }
    end.gone(bytes.len());
    bytes
}

/// Everything there is to send.
pub(super) fn send_all(end: &mut impl End) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let part = send_from(end, usize::MAX);
        if part.is_empty() {
            return all;
        }
        all.extend(part);
    }
}

/// Puts all of `bytes` into a controller's end, `cut` at a time, and collects the events.
pub(super) fn feed(end: &mut controller::Connection, bytes: &[u8], cut: usize) -> Vec<controller::Event> {
    let mut events = Vec::new();
    for part in bytes.chunks(cut) {
        let mut at = 0;
        while at < part.len() {
            at += read_into(end, &part[at..]);
            events.extend(std::iter::from_fn(|| end.next()));
        }
    }
    events
}

/// As [`feed`], into a host's end.
pub(super) fn feed_host(end: &mut host::Connection, bytes: &[u8], cut: usize) -> Vec<host::Event> {
    let mut events = Vec::new();
    for part in bytes.chunks(cut) {
        let mut at = 0;
        while at < part.len() {
            at += read_into(end, &part[at..]);
            events.extend(std::iter::from_fn(|| end.next()));
        }
    }
    events
}

pub(super) fn controller_config() -> controller::Config {
    controller::Config {
        data_bytes_max: 1 << 20,
        in_capsule_bytes_max: 16 << 10,
        h2c_data_bytes_max: 16 << 10,
        r2t_bytes_max: 32 << 10,
        r2t_count_max: 1,
        digests: BOTH,
        cpda: 0,
        entries_max: 128,
        icreq_timeout: Duration::from_secs(10),
    }
}

pub(super) fn host_config() -> host::Config {
    host::Config {
        slots: 32,
        digests: NONE,
        hpda: 0,
        r2t_count_max: 1,
        in_capsule_bytes_max: 8192,
        flow_control: false,
        icresp_timeout: Duration::from_secs(10),
    }
}

/// A controller's end after ICReq (asking for `digests`) and, unless `entries` is 0, after Connect to an I/O queue
/// without flow control.
pub(super) fn opened(config: &controller::Config, digests: Digests, entries: u16) -> controller::Connection {
    let mut end = controller::Connection::new(config).unwrap();
    let mut request = [0; 128];
    IcReq { hpda: 0, digests, r2t_count_max: config.r2t_count_max }.encode(&mut request);
    assert!(feed(&mut end, &request, 128).is_empty());
    let response = send_all(&mut end);
    assert_eq!((response.len(), response[0]), (128, Kind::IcResp as u8));
    if entries > 0 {
        let mut sqe = Sqe::new(0x7f, 0).with_sgl(Sgl::in_capsule(1024));
        sqe.0[4] = 1;
        let form =
            Form { kind: Kind::CapsuleCmd, flags: 0, digests, align: pdu::alignment_bytes(config.cpda) };
        let connect = whole(form, |out| out[8..72].copy_from_slice(&sqe.0), &[7; 1024]);
        let events = feed(&mut end, &connect, connect.len());
        let [controller::Event::Command { slot, data, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(data.len(), 1024);
        end.connected(controller::QueueFacts { entries, admin: false, flow_control: false });
        assert!(end.complete(*slot, Cqe::default(), None).is_none());
        send_all(&mut end);
    }
    end
}

/// A host's end after ICResp.
pub(super) fn ready(config: &host::Config, response: IcResp) -> host::Connection {
    let mut end = host::Connection::new(config).unwrap();
    assert_eq!(send_all(&mut end).len(), 128);
    let mut bytes = [0; 128];
    response.encode(&mut bytes);
    let events = feed_host(&mut end, &bytes, 128);
    assert!(matches!(events[..], [host::Event::Ready { .. }]), "{events:?}");
    end
}

/// A whole PDU: `body` writes the header's body; `align` is where data begins, in bytes.
pub(super) fn whole(form: Form, body: impl FnOnce(&mut [u8]), data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    let mut out = vec![0; form.lead_len(len)];
    body(&mut out);
    pdu::seal(&mut out, &form, len);
    out.extend_from_slice(data);
    if form.trail_len(len) > 0 {
        out.extend_from_slice(&pdu::crc32c(data).to_le_bytes());
    }
    out
}

/// A command capsule.
pub(super) fn capsule(sqe: Sqe, digests: Digests, data: &[u8]) -> Vec<u8> {
    let form = Form { kind: Kind::CapsuleCmd, flags: 0, digests, align: 4 };
    whole(form, |out| out[8..72].copy_from_slice(&sqe.0), data)
}

/// A response capsule.
pub(super) fn response(cqe: Cqe, digests: Digests) -> Vec<u8> {
    let form = Form { kind: Kind::CapsuleResp, flags: 0, digests, align: 4 };
    whole(form, |out| out[8..24].copy_from_slice(&cqe.to_bytes()), &[])
}

/// H2CData, C2HData or R2T.
pub(super) fn placed(kind: Kind, flags: u8, digests: Digests, mut place: Place, data: &[u8]) -> Vec<u8> {
    if kind != Kind::R2t {
        place.len = u32::try_from(data.len()).unwrap();
    }
    whole(Form { kind, flags, digests, align: 4 }, |out| place.encode(out), data)
}

/// H2CData that answers an R2T wholly.
pub(super) fn h2c_last(place: Place, digests: Digests, data: &[u8]) -> Vec<u8> {
    placed(Kind::H2cData, flag::LAST, digests, place, data)
}

/// Makes the header digest right again after a header was changed by hand.
pub(super) fn reseal(bytes: &mut [u8], digests: Digests) {
    if digests.header {
        let at = usize::from(bytes[2]);
        let digest = pdu::crc32c(&bytes[..at]);
        bytes[at..at + 4].copy_from_slice(&digest.to_le_bytes());
    }
}

/// The PDUs that `bytes` is made of.
pub(super) fn cut(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let (one, rest) = bytes.split_at(pdu::u32_at(bytes, 4) as usize);
        list.push(one);
        bytes = rest;
    }
    list
}

/// The completion in a response capsule.
pub(super) fn cqe_of(bytes: &[u8]) -> Cqe {
    assert_eq!(bytes[0], Kind::CapsuleResp as u8, "{bytes:02x?}");
    Cqe::from_bytes(bytes[8..24].try_into().unwrap())
}

/// The body of data or an R2T.
pub(super) fn place_of(bytes: &[u8]) -> Place {
    Place {
        cid: u16::from_le_bytes([bytes[8], bytes[9]]),
        ttag: u16::from_le_bytes([bytes[10], bytes[11]]),
        offset: pdu::u32_at(bytes, 12),
        len: pdu::u32_at(bytes, 16),
    }
}

/// Bytes that tell which command they belong to and where they stand.
pub(super) fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| {
            (i as u32).wrapping_mul(0x9e37_79b1).wrapping_add(seed.wrapping_mul(0x85eb_ca6b)).to_le_bytes()[3]
        })
        .collect()
}

/// A buffer with [`pattern`].
pub(super) fn patterned(seed: u32, len: usize) -> Buf {
    Buf::copy_of(&pattern(seed, len)).unwrap()
}

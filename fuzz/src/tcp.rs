//! Both ends of an NVMe/TCP connection: a peer that sends anything at all, an owner that does its duties in any order.

use blkcopy::block::Buf;
use blkcopy::nvme::tcp::controller::{self, QueueFacts};
use blkcopy::nvme::tcp::host::{self, Data};
use blkcopy::nvme::tcp::pdu::{self, Form, IcReq, IcResp, Kind, Pdu, Place, Side};
use blkcopy::nvme::tcp::{Digests, Output};
use blkcopy::nvme::{Cqe, Sgl, Sqe, Status};
use std::collections::{HashMap, HashSet};
use std::io::IoSliceMut;
use std::time::Duration;

/// What the output of one machine may hold: all that is staged, and a payload for each entry.
const STAGED_MAX: usize = 2 << 20;

/// What an input still says; zeroes behind its end.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// One of `list`, or any number at all.
    fn near(&mut self, list: &[u32]) -> u32 {
        let n = usize::from(self.u8());
        list.get(n).copied().unwrap_or_else(|| self.u32())
    }
}

/// Copies as much of `bytes` as there is room for.
fn fill(space: &mut [IoSliceMut<'_>], bytes: &[u8]) -> usize {
    let mut taken = 0;
    for slice in space {
        let n = slice.len().min(bytes.len() - taken);
        slice[..n].copy_from_slice(&bytes[taken..taken + n]);
        taken += n;
    }
    taken
}

fn gather(output: &Output<'_>, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for slice in output.iter() {
        bytes.extend_from_slice(&slice[..slice.len().min(most - bytes.len())]);
    }
    bytes
}

/// What a machine sends, cut into PDUs and checked as its peer would check it.
struct Checker {
    side: Side,
    digests: Digests,
    align: usize,
    opened: bool,
    bytes: Vec<u8>,
    ended: bool,
}

impl Checker {
    /// `side` is the one that receives.
    fn new(side: Side, align: u8) -> Self {
        let align = pdu::alignment_bytes(align);
        Self { side, digests: Digests::default(), align, opened: false, bytes: Vec::new(), ended: false }
    }

    /// The PDUs that are whole by now, with their data.
    fn take(&mut self, bytes: &[u8]) -> Vec<(Pdu, u8, Vec<u8>)> {
        assert!(bytes.is_empty() || !self.ended, "bytes behind a TermReq");
        self.bytes.extend_from_slice(bytes);
        let mut list = Vec::new();
        while self.bytes.len() >= 8 {
            let len = pdu::u32_at(&self.bytes, 4) as usize;
            if self.bytes.len() < len {
                break;
            }
            let rest = self.bytes.split_off(len);
            let one = std::mem::replace(&mut self.bytes, rest);
            let common = one[..8].try_into().expect("8 bytes");
            let shape =
                pdu::shape(common, self.side, self.opened, self.digests, self.align).expect("well formed");
            pdu::check_header_digest(&shape, &one[..shape.lead_len]).expect("a right header digest");
            let decoded = Pdu::decode(&shape, &one[..shape.lead_len]).expect("a header that can be");
            match &decoded {
                Pdu::IcResp(response) => (self.digests, self.opened) = (response.digests, true),
                Pdu::IcReq(_) => self.opened = true,
                Pdu::TermReq(_) => self.ended = true,
                _ => {}
            }
            let data = one[shape.lead_len..shape.lead_len + shape.data_len as usize].to_vec();
            if shape.data_digest {
                assert_eq!(pdu::u32_at(&one, len - 4), pdu::crc32c(&data));
            }
            list.push((decoded, shape.flags, data));
        }
        list
    }
}

/// A PDU made of parts that fit, except where the script says otherwise.
fn made(script: &mut Script<'_>, form: &Form, body: &[u8], data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap_or(0);
    let mut bytes = vec![0; form.lead_len(len)];
    bytes[8..8 + body.len()].copy_from_slice(body);
    pdu::seal(&mut bytes, form, len);
    // A changed header has a right digest, a changed rest a wrong one.
    let change = script.u8();
    if change & 0xc0 == 0xc0 {
        let at = usize::from(script.u8()) % usize::from(form.kind.header_len());
        bytes[at] = script.u8();
        if form.digests.header {
            let at = usize::from(form.kind.header_len());
            let digest = pdu::crc32c(&bytes[..at]);
            bytes[at..at + 4].copy_from_slice(&digest.to_le_bytes());
        }
    }
    bytes.extend_from_slice(data);
    if form.trail_len(len) > 0 {
        bytes.extend_from_slice(&pdu::crc32c(data).to_le_bytes());
    }
    if change & 0xc0 == 0x80 {
        let at = usize::from(script.u16()) % bytes.len();
        bytes[at] ^= 1 << (change & 7);
    }
    bytes
}

fn digests(byte: u8) -> Digests {
    Digests { header: byte & 1 != 0, data: byte & 2 != 0 }
}

fn data_len(script: &mut Script<'_>) -> u32 {
    script.near(&[0, 1, 512, 4096, 8192, 8193, 16_384, 16_385, 65_536, 65_537]) % (128 << 10)
}

struct ControllerWorld {
    end: controller::Connection,
    checker: Checker,
    config: controller::Config,
    executing: Vec<(u16, Sqe)>,
    owed: Vec<(u16, u32)>,
    r2ts: Vec<Place>,
    broken: bool,
    peer: Form,
    /// The connection was opened as the settings say (or not at all): what is sent can be checked.
    known: bool,
}

/// Settings, then what host and owner do: PDUs right and wrong, raw bytes, buffers, completions, aborts, sends.
pub fn pdu_controller(input: &[u8]) {
    let mut script = Script(input);
    let settings = script.u8();
    let (hpda, cpda) = (script.u8() % 33, script.u8() % 32);
    let config = controller::Config {
        data_bytes_max: 64 << 10,
        in_capsule_bytes_max: [0, 4096, 8192, 16 << 10][usize::from(settings >> 4 & 3)],
        h2c_data_bytes_max: [4096, 20_000][usize::from(settings >> 6 & 1)],
        r2t_bytes_max: [5000, 1 << 20][usize::from(settings >> 7)],
        r2t_count_max: 1 + u32::from(script.u8() & 3),
        digests: digests(settings),
        cpda,
        entries_max: 16,
        icreq_timeout: Duration::from_secs(1),
    };
    let asked = digests(settings >> 2);
    let agreed =
        Digests { header: asked.header && config.digests.header, data: asked.data && config.digests.data };
    let mut world = ControllerWorld {
        end: controller::Connection::new(&config).expect("memory"),
        checker: Checker::new(Side::Host, hpda.min(31)),
        peer: Form { kind: Kind::CapsuleCmd, flags: 0, digests: agreed, align: pdu::alignment_bytes(cpda) },
        config,
        executing: Vec::new(),
        owed: Vec::new(),
        r2ts: Vec::new(),
        broken: false,
        known: false,
    };
    if script.u8() & 7 > 0 {
        world.known = true;
        let mut request = [0; pdu::HEADER_MAX];
        IcReq { hpda, digests: asked, r2t_count_max: u32::from(script.u8()) + 1 }.encode(&mut request);
        world.feed(&request);
    }
    while !script.is_over() {
        world.act(&mut script);
    }
    world.drain();
    // The host goes: what runs still ends.
    for (slot, _) in std::mem::take(&mut world.executing) {
        world.end.complete(slot, Cqe::default(), None);
    }
}

impl ControllerWorld {
    fn act(&mut self, script: &mut Script<'_>) {
        match script.u8() % 12 {
            0 => {
                let n = usize::from(script.u8());
                let bytes = script.take(n);
                self.feed(bytes);
            }
            1..=3 => {
                let opcode = [0x00, 0x01, 0x02, 0x7f, 0x03, 0x05][usize::from(script.u8() % 6)];
                let in_capsule = data_len(script) % (20 << 10);
                let len = if script.u8() & 3 > 0 { in_capsule } else { data_len(script) };
                let kind = [Sgl::TRANSPORT, Sgl::IN_CAPSULE, script.u8()][usize::from(script.u8() % 3)];
                let address = u64::from(script.near(&[0, 0, 0, 0, 0, 0, 512]));
                let mut sqe = Sqe::new(opcode, 1).with_sgl(Sgl { address, len, kind });
                sqe.set_cid(script.near(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]) as u16);
                sqe.0[4] = script.u8();
                let in_capsule = if kind == Sgl::IN_CAPSULE || script.u8() > 240 { in_capsule } else { 0 };
                let bytes = made(script, &self.peer, &sqe.0, &vec![0x5a; in_capsule as usize]);
                self.feed(&bytes);
            }
            4..=6 => {
                let at = usize::from(script.u8());
                let r2t = self.r2ts.get(at % self.r2ts.len().max(1)).copied().unwrap_or_default();
                let len = r2t.len.min(self.config.h2c_data_bytes_max);
                let len = if script.u8() & 7 > 0 { len } else { data_len(script) };
                let mut flags = if len == r2t.len { pdu::flag::LAST } else { 0 };
                if script.u8() > 240 {
                    flags ^= pdu::flag::LAST;
                }
                let mut place = Place { len, ..r2t };
                if script.u8() > 240 {
                    place.offset = place.offset.wrapping_add(script.u32());
                }
                let mut body = [0; 24];
                place.encode(&mut body);
                let form = Form { kind: Kind::H2cData, flags, ..self.peer };
                let bytes = made(script, &form, &body[8..], &vec![0xa5; len as usize]);
                self.feed(&bytes);
                if let Some(open) = self.r2ts.iter_mut().find(|open| **open == r2t) {
                    open.offset = open.offset.saturating_add(len);
                    open.len = open.len.saturating_sub(len);
                }
                self.r2ts.retain(|open| open.len > 0);
            }
            7 if !self.owed.is_empty() => {
                let (slot, len) = self.owed.swap_remove(usize::from(script.u8()) % self.owed.len());
                self.end.give(slot, Buf::alloc(len as usize).expect("memory"));
            }
            8 | 9 if !self.executing.is_empty() => {
                let (slot, sqe) = self.executing.swap_remove(usize::from(script.u8()) % self.executing.len());
                if sqe.opcode() == 0x7f && script.u8() & 1 > 0 {
                    let entries = 2 + u16::from(script.u8() % 15);
                    let (admin, flow_control) = (script.u8() & 1 > 0, script.u8() & 1 > 0);
                    self.end.connected(QueueFacts { entries, admin, flow_control });
                }
                let status =
                    if script.u8() & 3 > 0 { Status::SUCCESS } else { Status::from_bits(script.u16()) };
                let len = if script.u8() & 3 > 0 { sqe.sgl().len.min(64 << 10) } else { data_len(script) };
                let data = Buf::alloc(len as usize);
                self.end.complete(slot, Cqe { status, result: script.u8().into(), ..Cqe::default() }, data);
                self.events();
            }
            10 => {
                let most = script.near(&[1, 100, 5000, 1 << 20]) as usize % (1 << 21);
                self.send(most);
            }
            _ => {
                self.end.tick(Duration::from_secs(script.u8().into()));
                self.events();
            }
        }
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        loop {
            let n = fill(&mut self.end.space(), bytes);
            self.end.filled(n);
            self.events();
            bytes = &bytes[n..];
            if bytes.is_empty() {
                return;
            }
            if n == 0 {
                // No room: the host has to read first.
                assert!(!gather(&self.end.output(), usize::MAX).is_empty(), "stuck");
                self.send(usize::MAX);
            }
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.end.next() {
            assert!(!self.broken, "an event after the end");
            match event {
                controller::Event::Command { slot, sqe, data } => {
                    assert!(self.executing.iter().all(|(s, other)| *s != slot && other.cid() != sqe.cid()));
                    assert!(data.is_empty() || data.len() == sqe.sgl().len as usize);
                    assert!(data.iter().all(|b| *b == 0x5a || *b == 0xa5) || self.peer.digests != digests(3));
                    self.executing.push((slot, sqe));
                }
                controller::Event::NeedBuffer { slot, len } => {
                    assert!(len > 0 && len <= self.config.data_bytes_max);
                    self.owed.push((slot, len));
                }
                controller::Event::Broken(why) => {
                    assert!(!why.to_string().is_empty());
                    self.broken = true;
                }
            }
        }
    }

    fn send(&mut self, most: usize) -> usize {
        let bytes = gather(&self.end.output(), most);
        self.end.sent(bytes.len(), &mut Vec::new());
        self.events();
        if !self.known {
            return bytes.len();
        }
        for (pdu, ..) in self.checker.take(&bytes) {
            if let Pdu::R2t(place) = pdu {
                assert!(place.len <= self.config.r2t_bytes_max && place.len > 0);
                self.r2ts.push(place);
            }
        }
        bytes.len()
    }

    fn drain(&mut self) {
        let mut all = 0;
        loop {
            let n = self.send(usize::MAX);
            all += n;
            assert!(all <= STAGED_MAX, "{all} bytes staged");
            if n == 0 {
                return;
            }
        }
    }
}

struct HostWorld {
    end: host::Connection,
    checker: Checker,
    /// Slots in use: the command's id and its data's length.
    slots: HashMap<u16, (u16, usize)>,
    /// What the controller may do next for a command: bytes read, bytes asked for.
    progress: HashMap<u16, (u32, u32)>,
    /// Ids of commands whose capsule was sent whole.
    asked: HashSet<u16>,
    ready: bool,
    broken: bool,
    peer: Form,
    /// As above.
    known: bool,
}

const SLOTS: u16 = 16;

fn byte_of(slot: u16) -> u8 {
    (slot as u8).wrapping_mul(37) ^ 0x5a
}

/// Settings, then what owner and controller do: commands, PDUs right and wrong, raw bytes, sends.
pub fn pdu_host(input: &[u8]) {
    let mut script = Script(input);
    let settings = script.u8();
    let (hpda, cpda) = (script.u8() % 32, script.u8() % 33);
    let config = host::Config {
        slots: SLOTS,
        digests: digests(settings),
        hpda,
        r2t_count_max: 1 + u32::from(settings >> 4 & 3),
        in_capsule_bytes_max: [0, 512, 8192, 64 << 10][usize::from(settings >> 6)],
        flow_control: settings & 0x04 != 0,
        icresp_timeout: Duration::from_secs(1),
    };
    let granted = digests(settings & script.u8());
    let mut world = HostWorld {
        end: host::Connection::new(&config).expect("memory"),
        checker: Checker::new(Side::Controller, cpda.min(31)),
        slots: HashMap::new(),
        progress: HashMap::new(),
        asked: HashSet::new(),
        ready: false,
        broken: false,
        peer: Form { kind: Kind::R2t, flags: 0, digests: granted, align: pdu::alignment_bytes(hpda) },
        known: true,
    };
    world.send(usize::MAX);
    world.known = script.u8() & 7 > 0;
    if world.known {
        let h2c_data_bytes_max = script.near(&[4096, 8192, 1 << 20]);
        let mut response = [0; pdu::HEADER_MAX];
        IcResp { cpda, digests: granted, h2c_data_bytes_max }.encode(&mut response);
        world.feed(&response);
    }
    while !script.is_over() {
        world.act(&mut script);
    }
    world.end.close();
    assert!(world.end.next().is_none());
    while let Some(unfinished) = world.end.drain() {
        let (_, len) = world.slots.remove(&unfinished.slot).expect("one that was there");
        assert_eq!(shown(&unfinished.data), len);
    }
    assert!(world.slots.is_empty(), "every command comes back once");
}

fn shown(data: &Data) -> usize {
    match data {
        Data::None => 0,
        Data::Out(buf) | Data::In(buf) => buf.len(),
    }
}

impl HostWorld {
    fn act(&mut self, script: &mut Script<'_>) {
        let slot = u16::from(script.u8()) % SLOTS;
        let running = self.slots.get(&slot).copied();
        let (cid, len) = running.unwrap_or((u16::from(script.u8()), 0));
        let (read, asked) = self.progress.get(&slot).copied().unwrap_or_default();
        match script.u8() % 12 {
            0 => {
                let n = usize::from(script.u8());
                let bytes = script.take(n);
                self.feed(bytes);
            }
            1..=3 if running.is_none() && (self.ready || self.broken) => {
                let len = data_len(script) as usize;
                let data = match script.u8() % 3 {
                    0 => Data::None,
                    1 => Data::In(Buf::alloc(len).expect("memory")),
                    _ => Data::Out(Buf::copy_of(&vec![byte_of(slot); len]).expect("memory")),
                };
                let len = shown(&data);
                self.end.submit(slot, Sqe::new(0x01, 1), data);
                self.slots.insert(slot, (self.end.cid(slot), len));
                self.progress.insert(slot, (0, 0));
            }
            4 | 5 => {
                let left = (len as u32).saturating_sub(asked);
                let len =
                    if script.u8() & 7 > 0 { left.min(1 + script.u32() % 65_536) } else { script.u32() };
                let offset = if script.u8() > 240 { script.u32() } else { asked };
                self.place(script, Kind::R2t, 0, Place { cid, ttag: script_tag(slot, asked), offset, len });
                self.progress.insert(slot, (read, asked.saturating_add(len)));
            }
            6 | 7 => {
                let left = (len as u32).saturating_sub(read);
                let len = if script.u8() & 7 > 0 { left.min(data_len(script)) } else { data_len(script) };
                let mut flags = if len == left { pdu::flag::LAST } else { 0 };
                flags |= [0, 0, pdu::flag::SUCCESS, pdu::flag::LAST | pdu::flag::SUCCESS]
                    [usize::from(script.u8() & 3)];
                let offset = if script.u8() > 240 { script.u32() } else { read };
                self.place(script, Kind::C2hData, flags, Place { cid, ttag: 0, offset, len });
                self.progress.insert(slot, (read.saturating_add(len), asked));
            }
            8 => {
                let status =
                    if script.u8() & 1 > 0 { Status::SUCCESS } else { Status::from_bits(script.u16()) };
                let cqe = Cqe { cid, status, result: script.u32().into(), ..Cqe::default() };
                let form = Form { kind: Kind::CapsuleResp, ..self.peer };
                let bytes = made(script, &form, &cqe.to_bytes(), &[]);
                self.feed(&bytes);
            }
            9 | 10 => {
                let most = script.near(&[1, 100, 5000, 1 << 20]) as usize % (1 << 21);
                self.send(most);
            }
            _ => {
                self.end.tick(Duration::from_secs(script.u8().into()));
                self.end.set_in_capsule(data_len(script));
                self.events();
            }
        }
    }

    fn place(&mut self, script: &mut Script<'_>, kind: Kind, flags: u8, place: Place) {
        let data = if kind == Kind::C2hData { vec![0xc3; place.len as usize] } else { Vec::new() };
        let mut body = [0; 24];
        place.encode(&mut body);
        let bytes = made(script, &Form { kind, flags, ..self.peer }, &body[8..], &data);
        self.feed(&bytes);
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = fill(&mut self.end.space(), bytes);
            self.end.filled(n);
            self.events();
            assert!(n > 0, "a host always reads");
            bytes = &bytes[n..];
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.end.next() {
            assert!(!self.broken, "an event after the end");
            match event {
                host::Event::Ready { .. } => self.ready = true,
                host::Event::Done { slot, cqe, data, received } => {
                    let (cid, len) = self.slots.remove(&slot).expect("one that was there");
                    assert_eq!((cqe.cid, shown(&data)), (cid, len));
                    assert!(received as usize <= len);
                    assert!(self.asked.remove(&cid) || !self.known, "an answer to what was never sent");
                    match data {
                        Data::Out(buf) => assert!(buf.iter().all(|b| *b == byte_of(slot))),
                        Data::In(buf) => assert!(
                            buf[received as usize..].iter().all(|b| *b == 0) || !cqe.status.is_success()
                        ),
                        Data::None => {}
                    }
                }
                host::Event::Broken(why) => {
                    assert!(!why.to_string().is_empty());
                    self.broken = true;
                }
            }
        }
    }

    fn send(&mut self, most: usize) {
        let bytes = gather(&self.end.output(), most);
        self.end.sent(bytes.len());
        self.events();
        if !self.known {
            return;
        }
        if self.ready {
            self.checker.digests = self.peer.digests;
        }
        for (pdu, _, data) in self.checker.take(&bytes) {
            match pdu {
                Pdu::CapsuleCmd(sqe) => {
                    assert!(data.iter().all(|b| *b == byte_of(sqe.cid() % 4096)));
                    self.asked.insert(sqe.cid());
                }
                Pdu::Data(place) => assert!(data.iter().all(|b| *b == byte_of(place.cid % 4096))),
                _ => {}
            }
        }
    }
}

fn script_tag(slot: u16, asked: u32) -> u16 {
    slot << 8 | asked as u16 & 0xff
}

/// First inputs: short conversations.
pub fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let mut controllers = Vec::new();
    let mut hosts = Vec::new();
    for settings in [0x00, 0x0f, 0xa5, 0xff, 0x35, 0x7a] {
        // Settings; then Connect in a capsule, its completion, and turns of every kind.
        let mut input = vec![settings, 0, 0, 1, 1, 0];
        input.extend([1, 3, 3, 1, 1, 0, 0, 1, 0, 0, 8, 0, 1, 10, 0, 0, 1, 1, 0, 1, 10, 3]);
        for turn in 0..24u8 {
            input.extend([turn % 12, turn, 1, turn % 4, 2, 0, 0, turn, 1, 0, 0, 0]);
        }
        controllers.push(input);
        let mut input = vec![settings, 0, 0, 0xff, 1, 0];
        for turn in 0..48u8 {
            input.extend([turn % 7, 1 + turn % 11, 3, turn % 3, 1, turn, 0, 0]);
        }
        hosts.push(input);
    }
    vec![("pdu_controller", controllers), ("pdu_host", hosts)]
}

//! Both machines on a wire that tears: whatever the cuts, the order of completions and the options, every command ends
//! once, with the right data, and nothing is left behind.

use super::Digests;
use super::controller::{self, Event};
use super::host::{self, Data};
use super::testing::{controller_config, host_config, pattern, patterned, read_into, send_from};
use crate::block::Buf;
use crate::nvme::{Cqe, Sqe, Status};
use proptest::prelude::*;
use std::collections::{HashMap, VecDeque};

/// What a command does; its number stands in dword 10.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Flush,
    Write(usize),
    /// Length, and how much of it the controller has.
    Read(usize, usize),
    /// Get Log Page with this many bytes: data from an opcode of the admin set.
    Log(usize),
    /// Property Get: a result and no data.
    Property(u64),
    /// Authentication Receive: data from a fabrics command, never with SUCCESS.
    Receive(usize),
    /// Fails after its data came.
    BadWrite(usize),
    BadRead(usize),
}

impl Kind {
    fn sqe(self, number: u32) -> Sqe {
        let opcode = match self {
            Self::Flush => 0x00,
            Self::Write(_) | Self::BadWrite(_) => 0x01,
            Self::Read(..) | Self::Log(_) | Self::BadRead(_) => 0x02,
            Self::Property(_) | Self::Receive(_) => 0x7f,
        };
        let mut sqe = Sqe::new(opcode, 1).with(10, number);
        match self {
            Self::Property(_) => sqe.0[4] = 0x04,
            Self::Receive(_) => sqe.0[4] = 0x06,
            _ => {}
        }
        sqe
    }

    fn data(self, number: u32) -> Data {
        match self {
            Self::Write(len) | Self::BadWrite(len) => Data::Out(patterned(number, len)),
            Self::Read(len, _) | Self::Log(len) | Self::Receive(len) | Self::BadRead(len) => {
                Data::In(Buf::alloc(len).unwrap())
            }
            _ => Data::None,
        }
    }

    /// How the controller ends it.
    fn end(self, number: u32) -> (Cqe, Option<Buf>) {
        let good = Cqe::default();
        match self {
            Self::Flush | Self::Write(_) => (good, None),
            Self::Read(_, len) | Self::Log(len) | Self::Receive(len) => (good, Some(patterned(number, len))),
            Self::Property(result) => (Cqe { result, ..good }, None),
            Self::BadWrite(_) => (Cqe { status: Status::WRITE_FAULT, result: 7, ..good }, None),
            // Data of a command that failed stays here.
            Self::BadRead(len) => {
                (Cqe { status: Status::UNRECOVERED_READ_ERROR, ..good }, Some(patterned(number, len)))
            }
        }
    }
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => prop_oneof![Just(1usize), Just(512), Just(4095), Just(4096), Just(8192), Just(8193)],
        3 => 1..20_000usize,
        2 => 20_000..200_000usize,
        1 => prop_oneof![Just(16usize << 10), Just((16 << 10) + 1), Just(128 << 10), Just(256 << 10)],
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        1 => Just(Kind::Flush),
        4 => length().prop_map(Kind::Write),
        4 => (length(), 0..4u8).prop_map(|(len, part)| Kind::Read(len, if part == 0 { len.div_ceil(3) } else { len })),
        1 => length().prop_map(Kind::Log),
        1 => any::<u64>().prop_map(Kind::Property),
        1 => length().prop_map(Kind::Receive),
        1 => length().prop_map(Kind::BadWrite),
        1 => length().prop_map(Kind::BadRead),
    ]
}

#[derive(Clone, Debug)]
struct Options {
    asked: Digests,
    granted: Digests,
    hpda: u8,
    cpda: u8,
    in_capsule: u32,
    h2c_data: u32,
    r2t_bytes: u32,
    r2ts: (u32, u32),
    flow_control: bool,
    slots: u16,
    /// Most bytes that a read or a send moves at a time.
    cut: usize,
    seed: u64,
}

fn options() -> impl Strategy<Value = Options> {
    let digests = || any::<(bool, bool)>().prop_map(|(header, data)| Digests { header, data });
    let align = || prop_oneof![3 => Just(0u8), 1 => 0..=31u8];
    (
        (digests(), digests(), align(), align()),
        prop_oneof![Just(0u32), Just(4096), Just(8192), Just(16 << 10), Just(64 << 10)],
        prop_oneof![Just(4096u32), Just(8192), Just(20_000), Just(128 << 10)],
        prop_oneof![Just(4096u32), Just(10_001), Just(64 << 10), Just(1 << 20)],
        (1..5u32, 1..5u32),
        (any::<bool>(), 2..40u16),
        prop_oneof![1 => Just(1usize), 2 => 2..64usize, 3 => 64..5000usize, 3 => Just(usize::MAX)],
        any::<u64>(),
    )
        .prop_map(
            |(
                (asked, granted, hpda, cpda),
                in_capsule,
                h2c_data,
                r2t_bytes,
                r2ts,
                (flow, slots),
                cut,
                seed,
            )| {
                Options {
                    asked,
                    granted,
                    hpda,
                    cpda,
                    in_capsule,
                    h2c_data,
                    r2t_bytes,
                    r2ts,
                    flow_control: flow,
                    slots,
                    cut,
                    seed,
                }
            },
        )
}

/// Marsaglia's xorshift: the order of things, from the case's seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % sides.max(1)
    }
}

struct World {
    host: host::Connection,
    controller: controller::Connection,
    /// Bytes under way, to the controller and to the host.
    wires: [VecDeque<u8>; 2],
    dice: Dice,
    cut: usize,
    kinds: Vec<Kind>,
    /// Commands the controller's owner has, and buffers it owes.
    in_hand: Vec<(u16, u32)>,
    owed: Vec<(u16, u32)>,
    /// What is in each slot of the host.
    slots: HashMap<u16, u32>,
    ended: Vec<u32>,
    submitted: usize,
    opened: bool,
}

impl World {
    fn new(options: &Options, kinds: Vec<Kind>) -> Self {
        let controller = controller::Config {
            in_capsule_bytes_max: options.in_capsule,
            h2c_data_bytes_max: options.h2c_data,
            r2t_bytes_max: options.r2t_bytes,
            r2t_count_max: options.r2ts.0,
            digests: options.granted,
            cpda: options.cpda,
            ..controller_config()
        };
        let host = host::Config {
            slots: options.slots,
            digests: options.asked,
            hpda: options.hpda,
            r2t_count_max: options.r2ts.1,
            flow_control: options.flow_control,
            ..host_config()
        };
        Self {
            host: host::Connection::new(&host).unwrap(),
            controller: controller::Connection::new(&controller).unwrap(),
            wires: [VecDeque::new(), VecDeque::new()],
            dice: Dice(options.seed | 1),
            cut: options.cut,
            kinds,
            in_hand: Vec::new(),
            owed: Vec::new(),
            slots: HashMap::new(),
            ended: Vec::new(),
            submitted: 0,
            opened: false,
        }
    }

    fn part(&mut self) -> usize {
        if self.cut == usize::MAX { usize::MAX } else { 1 + self.dice.roll(self.cut) }
    }

    /// Lets something happen, if it can.
    fn step(&mut self) {
        let part = self.part();
        match self.dice.roll(7) {
            0 => self.wires[0].extend(send_from(&mut self.host, part)),
            1 => self.wires[1].extend(send_from(&mut self.controller, part)),
            2 => {
                let n = part.min(self.wires[0].len());
                let bytes: Vec<u8> = self.wires[0].iter().take(n).copied().collect();
                let taken = read_into(&mut self.controller, &bytes);
                self.wires[0].drain(..taken);
                self.controller_events();
            }
            3 => {
                let n = part.min(self.wires[1].len());
                let bytes: Vec<u8> = self.wires[1].iter().take(n).copied().collect();
                let taken = read_into(&mut self.host, &bytes);
                self.wires[1].drain(..taken);
                self.host_events();
            }
            4 if !self.owed.is_empty() => {
                let at = self.dice.roll(self.owed.len());
                let (slot, len) = self.owed.swap_remove(at);
                self.controller.give(slot, Buf::alloc(len as usize).unwrap());
            }
            5 if !self.in_hand.is_empty() => {
                let at = self.dice.roll(self.in_hand.len());
                let (slot, number) = self.in_hand.swap_remove(at);
                let (cqe, data) = self.kinds[number as usize].end(number);
                self.controller.complete(slot, cqe, data);
                self.controller_events();
            }
            _ => {}
        }
        self.host_events();
        self.controller_events();
    }

    fn controller_events(&mut self) {
        while let Some(event) = self.controller.next() {
            match event {
                Event::NeedBuffer { slot, len } => self.owed.push((slot, len)),
                Event::Command { slot, sqe, data } => {
                    let number = sqe.dword(10);
                    if let Kind::Write(len) | Kind::BadWrite(len) = self.kinds[number as usize] {
                        assert!(data[..] == pattern(number, len), "data of command {number} ({len} bytes)");
                    } else {
                        assert!(data.is_empty());
                    }
                    self.in_hand.push((slot, number));
                }
                Event::Broken(why) => panic!("controller: {why}"),
            }
        }
    }

    fn host_events(&mut self) {
        while let Some(event) = self.host.next() {
            match event {
                host::Event::Ready { .. } => self.opened = true,
                host::Event::Done { slot, cqe, data, received } => {
                    let number = self.slots.remove(&slot).expect("a command ends once");
                    let kind = self.kinds[number as usize];
                    let (want, sent) = kind.end(number);
                    assert_eq!((cqe.status, cqe.result), (want.status, want.result), "{kind:?}");
                    let len = if want.status.is_success() { sent.map_or(0, |buf| buf.len()) } else { 0 };
                    assert_eq!(received as usize, len, "{kind:?}");
                    if let Data::In(buf) = data {
                        assert!(buf[..len] == pattern(number, len), "data of command {number}: {kind:?}");
                        assert!(buf[len..].iter().all(|b| *b == 0), "nothing is written behind the data");
                    }
                    self.ended.push(number);
                }
                host::Event::Broken(why) => panic!("host: {why}"),
            }
        }
    }

    /// Opens the connection and makes the queue as large as the host's table.
    fn open(&mut self, options: &Options) {
        while !self.opened {
            self.step();
        }
        let digests = Digests {
            header: options.asked.header && options.granted.header,
            data: options.asked.data && options.granted.data,
        };
        assert_eq!(self.controller.digests(), digests);
        let facts = controller::QueueFacts {
            entries: options.slots,
            admin: false,
            flow_control: options.flow_control,
        };
        self.controller.connected(facts);
        self.host.set_in_capsule(options.in_capsule);
    }

    fn run(&mut self, slots: u16) {
        let mut idle = 0;
        while self.ended.len() < self.kinds.len() {
            let next = self.submitted;
            if next < self.kinds.len() && self.slots.len() < usize::from(slots) && self.dice.roll(2) == 0 {
                let free: Vec<u16> = (0..slots).filter(|slot| !self.slots.contains_key(slot)).collect();
                let slot = free[self.dice.roll(free.len())];
                let number = u32::try_from(next).unwrap();
                let kind = self.kinds[next];
                self.slots.insert(slot, number);
                self.host.submit(slot, kind.sqe(number), kind.data(number));
                self.submitted += 1;
            }
            let before = (self.ended.len(), self.wires[0].len(), self.wires[1].len(), self.in_hand.len());
            self.step();
            let after = (self.ended.len(), self.wires[0].len(), self.wires[1].len(), self.in_hand.len());
            idle = if before == after { idle + 1 } else { 0 };
            assert!(idle < 10_000, "nothing happens any more: {after:?}");
        }
        self.ended.sort_unstable();
        assert!(self.ended.iter().copied().eq(0..u32::try_from(self.kinds.len()).unwrap()));
        assert!(self.host.output().is_empty() && self.controller.output().is_empty());
        assert!(self.wires.iter().all(VecDeque::is_empty) && self.in_hand.is_empty() && self.owed.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    //= promise 1
    #[test]
    fn every_command_ends_once_with_its_data(
        options in options(),
        kinds in proptest::collection::vec(kind(), 1..60),
    ) {
        // Byte by byte only what can be had in reasonable time.
        let most = match options.cut { 1 => 3_000, 2..64 => 60_000, _ => usize::MAX };
        let mut sum = 0;
        let kinds: Vec<Kind> = kinds
            .into_iter()
            .take_while(|kind| {
                sum += match kind {
                    Kind::Write(n) | Kind::Read(n, _) | Kind::Log(n) | Kind::Receive(n) => *n,
                    _ => 100,
                };
                sum <= most
            })
            .collect();
        let mut world = World::new(&options, kinds);
        world.open(&options);
        world.run(options.slots);
    }
}

/// One conversation, cut in two at every byte of each direction.
#[test]
fn a_conversation_cut_anywhere_is_the_same() {
    let options = Options {
        asked: super::testing::BOTH,
        granted: super::testing::BOTH,
        hpda: 3,
        cpda: 7,
        in_capsule: 600,
        h2c_data: 4096,
        r2t_bytes: 700,
        r2ts: (2, 2),
        flow_control: false,
        slots: 4,
        cut: usize::MAX,
        seed: 1,
    };
    let kinds = vec![Kind::Write(500), Kind::Write(1500), Kind::Read(333, 333), Kind::Property(5)];
    // Every number is tried as the length of the first part of every transfer; the longest is about 2000 bytes.
    for first in 1..2100 {
        let mut world = World::new(&Options { seed: first, ..options.clone() }, kinds.clone());
        world.open(&options);
        world.torn(usize::try_from(first).unwrap());
        world.run(options.slots);
    }
}

impl World {
    /// Submits all and moves what there is, cut behind the first `first` bytes, once each way.
    fn torn(&mut self, first: usize) {
        for (number, kind) in (0u32..).zip(self.kinds.clone()) {
            let slot = u16::try_from(number).unwrap();
            self.slots.insert(slot, number);
            self.host.submit(slot, kind.sqe(number), kind.data(number));
        }
        let bytes = send_from(&mut self.host, usize::MAX);
        for part in [&bytes[..first.min(bytes.len())], &bytes[first.min(bytes.len())..]] {
            let mut at = 0;
            while at < part.len() {
                at += read_into(&mut self.controller, &part[at..]);
                self.controller_events();
            }
        }
        for (slot, len) in std::mem::take(&mut self.owed) {
            self.controller.give(slot, Buf::alloc(len as usize).unwrap());
        }
        for (slot, number) in std::mem::take(&mut self.in_hand) {
            let (cqe, data) = self.kinds[number as usize].end(number);
            self.controller.complete(slot, cqe, data);
        }
        let bytes = send_from(&mut self.controller, usize::MAX);
        for part in [&bytes[..first.min(bytes.len())], &bytes[first.min(bytes.len())..]] {
            let mut at = 0;
            while at < part.len() {
                at += read_into(&mut self.host, &part[at..]);
                self.host_events();
            }
        }
        self.submitted = self.kinds.len();
    }
}

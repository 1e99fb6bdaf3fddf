//! The budget of one command in the NVMe/TCP machines, held by a counter: once warm, neither end allocates, however
//! data moves.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

#[path = "common/counting.rs"]
mod counting;

use blkcopy::block::{Buf, BufPool};
use blkcopy::nvme::tcp::host::{self, Data};
use blkcopy::nvme::tcp::{Digests, Output, controller};
use blkcopy::nvme::{Cqe, Sqe};
use std::io::IoSliceMut;
use std::time::Duration;

/// Both ends, and what their owners keep.
struct Pair {
    host: host::Connection,
    controller: controller::Connection,
    wire: Vec<u8>,
    pool: BufPool,
    in_hand: Vec<(u16, Option<Buf>)>,
    back: Vec<Buf>,
    done: Vec<Data>,
    ready: bool,
}

const DEPTH: u16 = 16;

/// Copies between the pieces of a send and the room of a read.
fn pour(wire: &[u8], space: &mut [IoSliceMut<'_>; 2]) -> usize {
    let mut taken = 0;
    for slice in space {
        let n = slice.len().min(wire.len() - taken);
        slice[..n].copy_from_slice(&wire[taken..taken + n]);
        taken += n;
    }
    taken
}

fn collect(wire: &mut Vec<u8>, output: &Output<'_>) -> usize {
    wire.clear();
    output.iter().for_each(|slice| wire.extend_from_slice(slice));
    wire.len()
}

impl Pair {
    fn new(digests: Digests) -> Self {
        let controller = controller::Config {
            data_bytes_max: 1 << 20,
            in_capsule_bytes_max: 8192,
            h2c_data_bytes_max: 64 << 10,
            r2t_bytes_max: 128 << 10,
            r2t_count_max: 1,
            digests,
            cpda: 0,
            entries_max: 128,
            icreq_timeout: Duration::from_secs(1),
        };
        let host = host::Config {
            slots: DEPTH,
            digests,
            hpda: 0,
            r2t_count_max: 1,
            in_capsule_bytes_max: 8192,
            flow_control: false,
            icresp_timeout: Duration::from_secs(1),
        };
        let mut pair = Self {
            host: host::Connection::new(&host).unwrap(),
            controller: controller::Connection::new(&controller).unwrap(),
            wire: Vec::with_capacity(8 << 20),
            pool: BufPool::new(64 << 20, 1 << 20).unwrap(),
            in_hand: Vec::with_capacity(DEPTH.into()),
            back: Vec::with_capacity(64),
            done: Vec::with_capacity(DEPTH.into()),
            ready: false,
        };
        while !pair.ready {
            pair.turn();
        }
        let facts = controller::QueueFacts { entries: DEPTH, admin: false, flow_control: false };
        pair.controller.connected(facts);
        pair
    }

    /// One turn of both owners.
    fn turn(&mut self) {
        loop {
            let n = collect(&mut self.wire, &self.host.output());
            self.host.sent(n);
            let mut at = 0;
            while at < n {
                let taken = pour(&self.wire[at..], &mut self.controller.space());
                self.controller.filled(taken);
                at += taken;
                self.serve();
            }
            if n == 0 {
                break;
            }
        }
        while let Some((slot, data)) = self.in_hand.pop() {
            self.back.extend(self.controller.complete(slot, Cqe::default(), data));
        }
        loop {
            let n = collect(&mut self.wire, &self.controller.output());
            self.controller.sent(n, &mut self.back);
            let mut at = 0;
            while at < n {
                let taken = pour(&self.wire[at..], &mut self.host.space());
                self.host.filled(taken);
                at += taken;
                while let Some(event) = self.host.next() {
                    match event {
                        host::Event::Ready { .. } => self.ready = true,
                        host::Event::Done { cqe, data, .. } => {
                            assert!(cqe.status.is_success());
                            self.done.push(data);
                        }
                        host::Event::Broken(why) => panic!("{why}"),
                    }
                }
            }
            if n == 0 {
                break;
            }
        }
        self.back.clear();
    }

    fn serve(&mut self) {
        while let Some(event) = self.controller.next() {
            match event {
                controller::Event::NeedBuffer { slot, len } => {
                    self.controller.give(slot, self.pool.take(len as usize).unwrap());
                }
                controller::Event::Command { slot, sqe, .. } => {
                    let len = if sqe.opcode() == 0x02 { sqe.sgl().len as usize } else { 0 };
                    self.in_hand.push((slot, (len > 0).then(|| self.pool.take(len).unwrap())));
                }
                controller::Event::Broken(why) => panic!("{why}"),
            }
        }
    }

    /// DEPTH commands at once, to their end.
    fn round(&mut self, write: bool, len: usize) {
        for slot in 0..DEPTH {
            let buf = self.pool.take(len).unwrap();
            let (opcode, data) = if write { (0x01, Data::Out(buf)) } else { (0x02, Data::In(buf)) };
            self.host.submit(slot, Sqe::new(opcode, 1), data);
        }
        while self.done.len() < usize::from(DEPTH) {
            self.turn();
        }
        self.done.clear();
    }
}

#[test]
fn a_command_allocates_nothing_at_either_end() {
    for digests in [Digests::default(), Digests { header: true, data: true }] {
        let mut pair = Pair::new(digests);
        // In the capsule, by R2T, copied and from where it is.
        for (write, len) in [(true, 4096), (false, 4096), (true, 12_288), (true, 300_000), (false, 300_000)] {
            (0..4).for_each(|_| pair.round(write, len));
            let before = counting::of_this_thread();
            (0..20).for_each(|_| pair.round(write, len));
            assert_eq!(counting::of_this_thread() - before, 0, "write {write}, {len} bytes, {digests:?}");
        }
    }
    assert!(counting::of_this_thread() > 0, "the allocator counts");
}

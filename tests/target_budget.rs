//! The budget of a small I/O over NVMe/TCP, held by a counter: once warm, a 4 KiB read or write allocates nothing,
//! neither in the target nor in the host driver, whichever thread it runs on.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a failed unwrap is a failed test

#[path = "common/counting.rs"]
mod counting;

use blkcopy::block::{Buf, ByteRange, Device, Op, Submitter};
use blkcopy::drivers::mem::Mem;
use blkcopy::exports::nvme_tcp::{Server, ServerOptions};
use blkcopy::nvme::Nqn;
use blkcopy::nvmet::{NamespaceOptions, Settings, Subsystem, SubsystemOptions, Target};
use blkcopy::reactor::{EngineChoice, choose, enter};
use blkcopy::volume::{Name, open_dest};
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;

const LEN: u64 = 4096;
const SIZE: u64 = 16 << 20;
const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000062756467";

#[test]
fn a_small_io_over_the_wire_allocates_nothing() {
    let target = Target::new(Settings::default()).unwrap();
    let subsystem = Subsystem::new(SubsystemOptions { nqn: Nqn::new(NQN).unwrap(), serial: None });
    let mem = Arc::new(Mem::new("mem", SIZE, NonZeroU32::new(512).unwrap()).unwrap());
    subsystem.add(mem, NamespaceOptions::default()).unwrap();
    target.serve(subsystem).unwrap();
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let server = Server::start(target, ServerOptions { listen, ..ServerOptions::default() }).unwrap();
    let name = Name::parse(format!("nvme-tcp://{}/{NQN}?nsid=1", server.addresses()[0])).unwrap();
    let device: Arc<dyn Device> = open_dest(&name, false).unwrap();
    let (reactor, _) = choose(EngineChoice::Auto, false).unwrap();
    let entered = enter(reactor.clone());
    let mut queue = device.open_queue().unwrap();
    let submitter = Submitter::default();
    let mut batch = VecDeque::with_capacity(64);
    let mut done = Vec::with_capacity(64);
    let mut free: Vec<Buf> = (0..32).map(|_| Buf::alloc(LEN as usize).unwrap()).collect();
    let mut tag = 0;
    let mut run = |ios: u64| {
        let end = tag + ios;
        while tag < end || free.len() < 32 {
            while tag < end
                && let Some(buf) = free.pop()
            {
                let range = ByteRange::new(tag * LEN % SIZE, LEN).unwrap();
                let write = tag.is_multiple_of(4);
                let op = if write { Op::Write { range, buf, fua: false } } else { Op::Read { range, buf } };
                batch.push_back(submitter.request(tag, op));
                tag += 1;
            }
            queue.submit(&mut batch);
            reactor.turn();
            queue.poll(&mut done);
            for done in done.drain(..) {
                done.result.unwrap();
                free.push(done.buf);
            }
        }
    };
    // Warm: every block of the device touched, every table as large as it gets.
    run(3 * SIZE / LEN);
    // The clocks of keep-alive and of the threads tick a few times a second, and may allocate: far fewer than the I/Os.
    let least = (0..5)
        .map(|_| {
            let before = counting::of_the_process();
            run(4000);
            counting::of_the_process() - before
        })
        .min();
    assert_eq!(least, Some(0), "allocations in 4000 reads and writes, at the least of five times");
    drop(queue);
    drop(entered);
    server.stop();
}

//! The host driver against our own target, over a loopback port: every operation, copies between namespaces, a target
//! that is stopped and started again under I/O.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

use blkcopy::block::{Buf, ByteRange, Device, Method, Op};
use blkcopy::copy::run::{Options as CopyOptions, Verify, copy};
use blkcopy::copy::{Job, Segment};
use blkcopy::drivers::mem::Mem;
use blkcopy::drivers::nvme_tcp::{Namespace, Options, Url, discover};
use blkcopy::drivers::{File, FileOptions};
use blkcopy::exports::nvme_tcp::{Server, ServerOptions};
use blkcopy::nvme::Nqn;
use blkcopy::nvmet::{NamespaceOptions, Settings, Subsystem, SubsystemOptions, Target};
use blkcopy::reactor::local::{Client, Local};
use blkcopy::reactor::{EngineChoice, choose};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const NQN: &str = "nqn.2014-08.org.example:tested";
const SIZE: u64 = 8 << 20;

/// A target that serves `devices`, on the same port each time it is started.
struct Served {
    devices: Vec<Arc<dyn Device>>,
    address: SocketAddr,
    server: Option<Server>,
}

impl Served {
    fn new(devices: Vec<Arc<dyn Device>>) -> Self {
        let mut one = Self { devices, address: "127.0.0.1:0".parse().unwrap(), server: None };
        one.start();
        one
    }

    fn start(&mut self) {
        let target = Target::new(Settings::default()).unwrap();
        let subsystem = Subsystem::new(SubsystemOptions { nqn: Nqn::new(NQN).unwrap(), serial: None });
        for (i, device) in self.devices.iter().enumerate() {
            let stable_name = Some(format!("device {i}"));
            subsystem
                .add(device.clone(), NamespaceOptions { stable_name, ..NamespaceOptions::default() })
                .unwrap();
        }
        target.serve(subsystem).unwrap();
        let options = ServerOptions { listen: vec![self.address], ..ServerOptions::default() };
        let server = Server::start(target, options).unwrap();
        self.address = server.addresses()[0];
        self.server = Some(server);
    }

    fn stop(&mut self) {
        self.server.take().unwrap().stop();
    }

    fn open(&self, nsid: u32) -> Arc<Namespace> {
        let url = Url::parse(&format!("nvme-tcp://{}/{NQN}?nsid={nsid}", self.address)).unwrap();
        let options = Options { keep_alive: Duration::from_secs(1), ..Options::default() };
        Namespace::open_with(&url, options).unwrap()
    }
}

fn mem(name: &str) -> Arc<dyn Device> {
    Arc::new(Mem::new(name, SIZE, NonZeroU32::new(512).unwrap()).unwrap())
}

fn local() -> Local {
    Local::new(choose(EngineChoice::Auto, true).unwrap().0)
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

fn write(offset: u64, bytes: &[u8]) -> Op {
    let range = ByteRange::new(offset, bytes.len() as u64).unwrap();
    Op::Write { range, buf: Buf::copy_of(bytes).unwrap(), fua: false }
}

fn read(offset: u64, len: u64) -> Op {
    Op::Read { range: ByteRange::new(offset, len).unwrap(), buf: Buf::alloc(len as usize).unwrap() }
}

#[test]
fn every_operation_does_at_our_target_what_it_says() {
    let target = Served::new(vec![mem("a")]);
    let device = target.open(1);
    assert_eq!((device.size(), device.limits().block_size.get()), (SIZE, 512));
    local().block_on(async {
        let client = Client::open(device.clone()).unwrap();
        // Larger than one command takes.
        let bytes = pattern(1, 3 << 20);
        assert!(client.submit(write(512, &bytes)).await.result.is_ok());
        let range = ByteRange::new(1 << 20, 1 << 20).unwrap();
        assert!(client.submit(Op::WriteZeroes { range, may_unmap: true, lazy: false }).await.result.is_ok());
        let done = client.submit(read(0, SIZE)).await;
        assert!(done.result.is_ok());
        let mut model = vec![0; SIZE as usize];
        model[512..512 + bytes.len()].copy_from_slice(&bytes);
        model[1 << 20..2 << 20].fill(0);
        assert!(done.buf[..] == model[..]);
        let range = ByteRange::to(4096);
        let compare = |bytes: &[u8]| Op::Compare { range, buf: Buf::copy_of(bytes).unwrap() };
        assert!(client.submit(compare(&model[..4096])).await.result.is_ok());
        model[1] ^= 1;
        assert!(client.submit(compare(&model[..4096])).await.result.is_err());
        assert!(client.submit(Op::Discard { range }).await.result.is_ok());
        assert!(client.submit(Op::Flush).await.result.is_ok());
    });
}

//= promise 2, 10
#[test]
fn copies_between_namespaces_move_nothing_over_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, pattern(2, SIZE as usize)).unwrap();
    let file = File::open(&path, FileOptions { write: true, create: false }).unwrap();
    let target = Served::new(vec![mem("a"), file, mem("c")]);
    let namespaces = [target.open(1), target.open(2), target.open(3)];
    let segment = |source, dest, len| Segment { source, dest, len };
    // File to memory, memory to memory, memory to file; whole and scattered.
    let scattered: Vec<Segment> = (0..300).map(|i| segment((i * 7 % 300) * 8192, i * 4096, 4096)).collect();
    for (from, to, segments) in
        [(1, 0, vec![segment(0, 0, SIZE)]), (0, 2, vec![segment(512, 0, SIZE - 512)]), (2, 1, scattered)]
    {
        let (source, dest) = (namespaces[from].clone(), namespaces[to].clone());
        let job = Job::new(&segments, SIZE, SIZE, false).unwrap();
        let options = CopyOptions { verify: Verify::Bytes, ..CopyOptions::default() };
        let ended = local().block_on(async { copy(source, dest, &job, &options, &Rc::default()).await });
        assert!(ended.error.is_none(), "{:?}", ended.error);
        let receipt = ended.receipt;
        assert_eq!(receipt.methods.get(&Method::NvmeCopy), Some(&job.total()), "{:?}", receipt.deviations);
        assert!(receipt.verification.unwrap().equal);
        let ranges = segments.len() as u64;
        assert!(receipt.wire_bytes.sent < 1000 + 40 * ranges && receipt.wire_bytes.received < 1000);
    }
}

#[test]
fn discovery_finds_what_is_served() {
    let target = Served::new(vec![mem("a"), mem("b")]);
    let url = Url::parse(&format!("nvme-tcp://{}", target.address)).unwrap();
    let found = discover(&url).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let numbers: Vec<(u32, u64)> = found[0].namespaces.iter().map(|n| (n.nsid, n.size_bytes)).collect();
    assert_eq!((found[0].nqn.as_str(), numbers), (NQN, vec![(1, SIZE), (2, SIZE)]));
    assert!(found[0].error.is_none() && found[0].copies_across);
}

//= promise 1
#[test]
fn a_target_that_comes_back_finds_its_hosts_and_no_write_is_lost_or_undone() {
    const BLOCKS: u64 = 64;
    let mut target = Served::new(vec![mem("a")]);
    let device = target.open(1);
    // Two threads, each with its own blocks: every write that was acknowledged is the last one of its block.
    let stop = AtomicBool::new(false);
    let written = [AtomicU64::new(0), AtomicU64::new(0)];
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2u64)
            .map(|thread| {
                let (device, stop, written) = (device.clone(), &stop, &written);
                scope.spawn(move || {
                    local().block_on(async {
                        let client = Client::open(device).unwrap();
                        let base = thread * BLOCKS * 4096;
                        let mut last = vec![0; BLOCKS as usize];
                        for round in 1.. {
                            if stop.load(Ordering::SeqCst) {
                                break;
                            }
                            let all: Vec<_> = (0..BLOCKS)
                                .map(|b| {
                                    client.submit(write(base + b * 4096, &pattern(round << 16 | b, 4096)))
                                })
                                .collect();
                            for (block, one) in all.into_iter().enumerate() {
                                let done = one.await;
                                assert!(done.result.is_ok(), "{done:?}");
                                last[block] = round << 16 | block as u64;
                            }
                            written[thread as usize].store(round, Ordering::SeqCst);
                        }
                        for (block, &seed) in last.iter().enumerate() {
                            let done = client.submit(read(base + block as u64 * 4096, 4096)).await;
                            assert!(
                                done.result.is_ok() && done.buf[..] == pattern(seed, 4096)[..],
                                "block {block}"
                            );
                        }
                    });
                })
            })
            .collect();
        let rounds = || written.iter().map(|w| w.load(Ordering::SeqCst)).min().unwrap();
        for _ in 0..3 {
            let before = rounds();
            while rounds() < before + 3 {
                assert!(threads.iter().all(|t| !t.is_finished()), "a thread failed");
                std::thread::sleep(Duration::from_millis(1));
            }
            target.stop();
            target.start();
        }
        let before = rounds();
        while rounds() < before + 3 && threads.iter().all(|t| !t.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::SeqCst);
    });
}

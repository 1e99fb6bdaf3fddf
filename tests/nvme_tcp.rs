//! A whole target on a loopback port: hosts that behave, and peers that do not.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a failed unwrap is a failed test

use blkcopy::block::request::{Cancel, CopyRequest};
use blkcopy::block::{Buf, ByteRange, Device, Method, Op};
use blkcopy::drivers::mem::Mem;
use blkcopy::exports::nvme_tcp::{OnCopy, Server, ServerOptions};
use blkcopy::nvme::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, FabricsCommand, Width};
use blkcopy::nvme::io::Extent;
use blkcopy::nvme::property::{Cc, offset};
use blkcopy::nvme::{AdminCommand, Blocks, Count16, IoCommand, Nqn, Sgl, Sqe};
use blkcopy::nvmet::{Hosts, NamespaceOptions, Settings, Subsystem, SubsystemOptions, Target};
use blkcopy::reactor::local::{Client, Local};
use blkcopy::reactor::{EngineChoice, Waker, choose};
use blkcopy::sim::Rng;
use blkcopy::volume::{Name, open_dest};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const SIZE: u64 = 4 << 20;
const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-00006e766d65";

/// A target with two memory namespaces on `cores` threads.
fn start(cores: usize, engine: EngineChoice) -> Server {
    start_with(ServerOptions { cores, engine, ..ServerOptions::default() })
}

fn start_with(options: ServerOptions) -> Server {
    let target = Target::new(Settings::default()).unwrap();
    let subsystem = Subsystem::new(SubsystemOptions { nqn: Nqn::new(NQN).unwrap(), serial: None });
    for name in ["one", "two"] {
        let mem = Arc::new(Mem::new(name, SIZE, NonZeroU32::new(512).unwrap()).unwrap());
        subsystem.add(mem, NamespaceOptions::default()).unwrap();
    }
    target.serve(subsystem).unwrap();
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    Server::start(target, ServerOptions { listen, ..options }).unwrap()
}

fn open(address: SocketAddr, nsid: u32) -> Arc<dyn Device> {
    open_dest(&Name::parse(format!("nvme-tcp://{address}/{NQN}?nsid={nsid}")).unwrap(), false).unwrap()
}

/// Writes and reads back its own eighth of a namespace until told to stop, and counts the rounds.
fn host(address: SocketAddr, nsid: u32, seed: u64, stop: &AtomicBool, rounds: &AtomicU64) {
    work(open(address, nsid), seed, stop, rounds);
}

fn work(device: Arc<dyn Device>, seed: u64, stop: &AtomicBool, rounds: &AtomicU64) {
    let local = Local::new(choose(EngineChoice::Auto, false).unwrap().0);
    let mut rng = Rng::new(seed);
    local.block_on(async {
        let client = Client::open(device).unwrap();
        while !stop.load(Ordering::Relaxed) {
            let blocks = 1 + rng.below(256);
            let at = seed % 8 * (SIZE / 8) + rng.below(SIZE / 8 / 512 - blocks) * 512;
            let range = ByteRange::new(at, blocks * 512).unwrap();
            let mut bytes = vec![0; range.len() as usize];
            bytes.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.next_u64().to_le_bytes()));
            let write = Op::Write { range, buf: Buf::copy_of(&bytes).unwrap(), fua: false };
            client.submit(write).await.result.unwrap();
            let buf = Buf::alloc(bytes.len()).unwrap();
            let read = client.submit(Op::Read { range, buf }).await;
            read.result.unwrap();
            assert!(read.buf[..] == bytes[..], "{range:?}");
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    });
}

//= promise 1
#[test]
fn hosts_on_several_cores_read_what_they_wrote() {
    for engine in [EngineChoice::Auto, EngineChoice::Pool] {
        let server = start(2, engine);
        let (address, stop) = (server.addresses()[0], AtomicBool::new(false));
        let rounds: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for (n, rounds) in rounds.iter().enumerate() {
                let stop = &stop;
                scope.spawn(move || host(address, 1 + n as u32 % 2, n as u64, stop, rounds));
            }
            while rounds.iter().any(|n| n.load(Ordering::Relaxed) < 200) {
                std::thread::sleep(Duration::from_millis(5));
            }
            stop.store(true, Ordering::Relaxed);
        });
        server.stop();
    }
}

/// An ICReq as Linux sends it.
fn icreq() -> Vec<u8> {
    let mut pdu = vec![0; 128];
    (pdu[2], pdu[4]) = (128, 128); // HLEN, PLEN
    pdu
}

/// A capsule whose command is all zero but for its length fields.
fn capsule(hlen: u8, plen: u32) -> Vec<u8> {
    let mut pdu = vec![0; 72];
    (pdu[0], pdu[2]) = (4, hlen);
    pdu[4..8].copy_from_slice(&plen.to_le_bytes());
    pdu
}

/// A capsule with `data` in it.
fn command(cid: u16, sqe: Sqe, data: &[u8]) -> Vec<u8> {
    let mut sqe = if data.is_empty() { sqe } else { sqe.with_sgl(Sgl::in_capsule(data.len() as u32)) };
    sqe.set_cid(cid);
    let plen = (72 + data.len()) as u32;
    let pdo = if data.is_empty() { 0 } else { 72 };
    let head = [4, 0, 72, pdo];
    [&head[..], &plen.to_le_bytes(), &sqe.0, data].concat()
}

/// A queue of a host that does nothing by itself, and the controller it belongs to.
fn queue(address: SocketAddr, qid: u16, cntlid: u16) -> (TcpStream, u16) {
    queue_with(address, qid, cntlid, None)
}

fn queue_with(
    address: SocketAddr,
    qid: u16,
    cntlid: u16,
    keep_alive_ms: Option<NonZeroU32>,
) -> (TcpStream, u16) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(&icreq()).unwrap();
    stream.read_exact(&mut [0; 128]).unwrap();
    let connect = Connect { qid, entries: Count16::new(128).unwrap(), no_flow_control: true, keep_alive_ms };
    let data = ConnectData {
        host_id: [7; 16],
        cntlid,
        subsystem: Nqn::new(NQN).unwrap(),
        host: Nqn::new("nqn.2014-08.org.nvmexpress:stalled").unwrap(),
    };
    stream.write_all(&command(0, FabricsCommand::Connect(connect).to_sqe(), &data.to_bytes())).unwrap();
    let mut answer = [0; 24];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[22..24], [0, 0], "Connect succeeds");
    (stream, u16::from_le_bytes([answer[8], answer[9]]))
}

/// An enabled controller of a host that takes nothing any more.
fn controller(address: SocketAddr) -> (TcpStream, u16) {
    let (mut admin, cntlid) = queue(address, 0, CNTLID_DYNAMIC);
    let enable = FabricsCommand::PropertySet {
        width: Width::Four,
        offset: offset::CC,
        value: Cc::for_host(Cc::CSS_CSI).with_enabled(true).0.into(),
    };
    admin.write_all(&command(1, enable.to_sqe(), &[])).unwrap();
    admin.read_exact(&mut [0; 24]).unwrap();
    (admin, cntlid)
}

/// A queue that asks for 100 MiB and reads nothing, or announces as much and sends nothing.
fn hoard(address: SocketAddr, qid: u16, cntlid: u16, is_read: bool) -> TcpStream {
    let (mut stream, _) = queue(address, qid, cntlid);
    for cid in 0..100 {
        let extent = Extent::new(1, 0, Blocks::new(2048).unwrap());
        let sqe = if is_read { IoCommand::Read(extent) } else { IoCommand::Write(extent) }.to_sqe();
        stream.write_all(&command(cid, sqe.with_sgl(Sgl::transport(1 << 20)), &[])).unwrap();
    }
    stream
}

#[test]
fn a_host_that_keeps_all_it_gets_leaves_others_their_share() {
    let server = start(1, EngineChoice::Auto);
    let (address, stop, rounds) = (server.addresses()[0], AtomicBool::new(false), AtomicU64::new(0));
    let device = open(address, 2);
    let (admin, cntlid) = controller(address);
    // Its connections together get what is in no share of others, and no more.
    let stalled: Vec<_> = (1..=5).map(|qid| hoard(address, qid, cntlid, qid < 5)).collect();
    std::thread::scope(|scope| {
        let guard = scope.spawn(|| work(device, 0, &stop, &rounds));
        while rounds.load(Ordering::Relaxed) < 10 {
            assert!(!guard.is_finished(), "the other host failed");
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop((admin, stalled));
    server.stop();
}

#[test]
fn hosts_that_stand_still_leave_some_buffers_to_others_and_may_go_on_later() {
    let server = start(1, EngineChoice::Auto);
    let address = server.addresses()[0];
    let (admin, cntlid) = controller(address);
    let mut stalled: Vec<_> =
        [(1, false), (2, true)].map(|(qid, is_read)| hoard(address, qid, cntlid, is_read)).into();
    // Longer than the target is patient with those who keep buffers from others, and nobody is kept waiting here.
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let guard = scope.spawn(|| host(address, 2, 0, &stop, &rounds));
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(12) || rounds.load(Ordering::Relaxed) < 10 {
            assert!(!guard.is_finished(), "the other host failed");
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
    // All 100 reads are answered, with the success in the data.
    let mut all = vec![0; 100 * (24 + (1 << 20))];
    stalled[1].read_exact(&mut all).unwrap();
    assert_eq!(all[0], 7, "C2HData");
    drop((admin, stalled));
    server.stop();
}

#[test]
fn commands_wait_for_the_only_long_buffer_and_none_fails() {
    let server = start_with(ServerOptions { memory_bytes: least_memory(), ..ServerOptions::default() });
    let address = server.addresses()[0];
    let (admin, cntlid) = controller(address);
    let devices = [open(address, 1), open(address, 2)];
    let (stop, rounds) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    // A hundred reads: the first takes the buffer, the others wait for it and are forgotten with their connection.
    let leaves = hoard(address, 1, cntlid, true);
    std::thread::scope(|scope| {
        let start = |(device, rounds)| {
            let stop = &stop;
            scope.spawn(move || work(device, 0, stop, rounds))
        };
        let hosts: Vec<_> = devices.into_iter().zip(&rounds).map(start).collect();
        std::thread::sleep(Duration::from_millis(100));
        drop(leaves);
        while rounds.iter().any(|count| count.load(Ordering::Relaxed) < 10) {
            assert!(!hosts.iter().any(std::thread::ScopedJoinHandle::is_finished), "a host failed");
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(admin);
    server.stop();
}

/// The least memory a server of one thread takes, as it says itself.
fn least_memory() -> usize {
    let target = Target::new(Settings::default()).unwrap();
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let options = ServerOptions { listen, memory_bytes: 1 << 20, ..ServerOptions::default() };
    let error = Server::start(target, options).err().unwrap().to_string();
    let (_, least) = error.split_once("give at least ").unwrap_or_else(|| panic!("{error}"));
    least.trim_end_matches("MiB").parse::<usize>().unwrap() << 20
}

#[test]
fn a_bound_on_memory_is_kept_or_refused_with_the_least() {
    let least = least_memory();
    let server = start_with(ServerOptions { memory_bytes: least, ..ServerOptions::default() });
    assert!(server.memory_bytes() <= least && server.connections_max() >= 8);
    // More connections than it is for are closed, and those that there are go on.
    let address = server.addresses()[0];
    let device = open(address, 1);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let guard = scope.spawn(|| work(device, 0, &stop, &rounds));
        let goes_on = |until: u64| {
            while rounds.load(Ordering::Relaxed) < until {
                assert!(!guard.is_finished(), "the host failed");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        goes_on(1);
        let idle: Vec<_> =
            (0..server.connections_max()).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut last = idle.last().unwrap();
        last.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert!(!matches!(last.read(&mut [0]), Ok(1..)), "closed");
        goes_on(rounds.load(Ordering::Relaxed) + 5);
        stop.store(true, Ordering::Relaxed);
    });
    server.stop();
}

#[test]
fn a_peer_that_misbehaves_harms_nobody_else() {
    let server = start(1, EngineChoice::Auto);
    let (address, stop, rounds) = (server.addresses()[0], AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let guard = scope.spawn(|| host(address, 1, 0, &stop, &rounds));
        let connect = || {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream
        };
        // Those that wait for something that never comes: they hold nothing up while the others are tried.
        let mut idle: Vec<TcpStream> = (0..20).map(|_| connect()).collect();
        for (n, stream) in idle.iter_mut().enumerate() {
            stream.write_all(&icreq()[..6 * n]).unwrap();
        }
        let mut rng = Rng::new(5);
        let noise: Vec<u8> = (0..100_000).map(|_| rng.next_u64() as u8).collect();
        let after = |pdu: Vec<u8>| [icreq(), pdu].concat();
        let bad: [(&str, Vec<u8>); 7] = [
            ("noise", noise),
            ("a second ICReq", after(icreq())),
            ("a header that is too short", after(capsule(71, 72))),
            ("a PDU of 4 GiB", after(capsule(72, u32::MAX))),
            ("a PDU shorter than its header", after(capsule(72, 71))),
            (
                "a PDU that only controllers send",
                after([vec![5, 0, 24, 0, 24, 0, 0, 0], vec![0; 16]].concat()),
            ),
            ("data nobody asked for", after([vec![6, 4, 24, 24, 32, 0, 0, 0], vec![0; 24]].concat())),
        ];
        for (what, bytes) in bad {
            let mut stream = connect();
            let _ = stream.write_all(&bytes); // it may be cut off in the middle of it
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut said = Vec::new();
            // A reset is an end too: the target does not take what comes behind an error.
            if let Err(error) = stream.read_to_end(&mut said) {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}");
            }
            if what != "noise" {
                assert_eq!(said.get(..3), Some(&[1, 0, 128][..]), "{what}: ICResp comes first");
                assert_eq!(said.get(128), Some(&3), "{what}: then C2HTermReq");
            }
            let before = rounds.load(Ordering::Relaxed);
            while rounds.load(Ordering::Relaxed) < before + 10 {
                assert!(!guard.is_finished(), "{what}: the other host failed");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        drop(idle);
        stop.store(true, Ordering::Relaxed);
    });
    server.stop();
}

#[test]
fn peers_that_stay_after_they_were_told_to_go_are_in_nobodys_way() {
    let server = start(1, EngineChoice::Auto);
    let address = server.addresses()[0];
    let mut stay = Vec::new();
    for n in 0..40 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(&[icreq(), icreq()].concat()).unwrap();
        let mut said = [0; 129];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(said[128], 3, "C2HTermReq");
        stay.push(stream);
        // Those who come now work, and those who came before still do.
        let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let guard = scope.spawn(|| host(address, 1, n, &stop, &rounds));
            while rounds.load(Ordering::Relaxed) < 2 {
                assert!(!guard.is_finished(), "the host failed beside {n} that stay");
                std::thread::sleep(Duration::from_millis(1));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
    drop(stay);
    server.stop();
}

/// One Copy command to the target.
fn copy(address: SocketAddr) {
    let device = open(address, 1);
    let local = Local::new(choose(EngineChoice::Auto, false).unwrap().0);
    local.block_on(async {
        let client = Client::open(device.clone()).unwrap();
        let range = |at| ByteRange::new(at, 4096).unwrap();
        let copy = CopyRequest {
            method: Method::NvmeCopy,
            source: device,
            sources: [range(0)].into_iter().collect(),
            dest: range(8192),
            fua: false,
            must: None,
            cancel: Cancel::default(),
        };
        drop(client.submit(Op::Copy(Box::new(copy))).await);
    });
}

#[test]
fn a_thread_that_stood_still_blames_nobody_for_what_it_did_not_hear() {
    // Whoever is told of copies is told on the thread that serves the connections.
    let pause: OnCopy = Arc::new(|_| std::thread::sleep(Duration::from_secs(3)));
    let server = start_with(ServerOptions { on_copy: Some(pause), ..ServerOptions::default() });
    let address = server.addresses()[0];
    let (mut admin, _) = queue_with(address, 0, CNTLID_DYNAMIC, NonZeroU32::new(1000));
    std::thread::scope(|scope| {
        let guard = scope.spawn(|| copy(address));
        // What was read before the sentence may still be answered: some more, past the end.
        let mut more = 5;
        while more > 0 {
            more -= u32::from(guard.is_finished());
            admin.write_all(&command(1, AdminCommand::KeepAlive.to_sqe(), &[])).unwrap();
            admin.read_exact(&mut [0; 24]).expect("the association goes on");
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    server.stop();
}

#[test]
fn a_thread_that_panics_takes_the_server_with_it() {
    let panic: OnCopy = Arc::new(|_| panic!("planted by the test"));
    let server = start_with(ServerOptions { cores: 2, on_copy: Some(panic), ..ServerOptions::default() });
    let address = server.addresses()[0];
    // One connection on each thread: both are closed.
    let mut both = [queue(address, 0, CNTLID_DYNAMIC).0, queue(address, 0, CNTLID_DYNAMIC).0];
    let (told, tells) = std::sync::mpsc::channel();
    server.watch(Waker::new(move || told.send(()).unwrap_or_default()));
    assert!(!server.is_over() && server.failure().is_none());
    std::thread::spawn(move || copy(address)); // its own end is of no interest, and long
    tells.recv().unwrap();
    assert!(server.is_over());
    assert!(server.failure().unwrap().to_string().contains("panicked"));
    for stream in &mut both {
        assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    server.stop();
}

/// A Connect of a host's admin queue: the stream and the status, or nothing where the target closes it.
fn try_connect(address: SocketAddr, host: &str, subsystem: Nqn) -> Option<(TcpStream, [u8; 2])> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(&icreq()).ok()?;
    stream.read_exact(&mut [0; 128]).ok()?;
    let connect =
        Connect { qid: 0, entries: Count16::new(32).unwrap(), no_flow_control: true, keep_alive_ms: None };
    let host = Nqn::new(host).unwrap();
    let data = ConnectData { host_id: [9; 16], cntlid: CNTLID_DYNAMIC, subsystem, host };
    stream.write_all(&command(0, FabricsCommand::Connect(connect).to_sqe(), &data.to_bytes())).ok()?;
    let mut answer = [0; 24];
    stream.read_exact(&mut answer).ok()?;
    Some((stream, [answer[22], answer[23]]))
}

#[test]
fn hosts_that_see_nothing_never_keep_out_those_that_do() {
    let target = Target::new(Settings::default()).unwrap();
    let subsystem = Subsystem::new(SubsystemOptions { nqn: Nqn::new(NQN).unwrap(), serial: None });
    let mem = Arc::new(Mem::new("one", SIZE, NonZeroU32::new(512).unwrap()).unwrap());
    let hosts = Hosts::These(vec!["nqn.one".to_owned(), "nqn.two".to_owned()]);
    subsystem.add(mem, NamespaceOptions { hosts, ..Default::default() }).unwrap();
    target.serve(subsystem).unwrap();
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let options = ServerOptions { listen, cores: 2, connections_max: 48, ..ServerOptions::default() };
    let server = Server::start(target, options).unwrap();
    let address = server.addresses()[0];
    assert_eq!(server.connections_max(), 48);
    let allowed = |host| try_connect(address, host, Nqn::new(NQN).unwrap()).expect(host);
    let mut first = allowed("nqn.one");
    assert_eq!(first.1, [0, 0]);
    // More than there are places: discovery controllers of strangers, those that say nothing, those that stop after
    // ICReq.
    let strangers: Vec<_> =
        (0..60).filter_map(|n| try_connect(address, &format!("nqn.stranger{n}"), Nqn::discovery())).collect();
    assert!(strangers.len() >= 40, "{}", strangers.len());
    assert_eq!(allowed("nqn.two").1, [0, 0], "beside strangers");
    let silent: Vec<_> = (0..60).filter_map(|_| TcpStream::connect(address).ok()).collect();
    assert_eq!(allowed("nqn.two").1, [0, 0], "beside half-open connections");
    let opened: Vec<_> = (0..60)
        .filter_map(|_| {
            let mut stream = TcpStream::connect(address).ok()?;
            stream.write_all(&icreq()).ok().map(|()| stream)
        })
        .collect();
    assert_eq!(allowed("nqn.two").1, [0, 0], "beside those that stop after ICReq");
    // The one that was there first still is.
    let get = FabricsCommand::PropertyGet { width: Width::Four, offset: offset::CSTS };
    first.0.write_all(&command(1, get.to_sqe(), &[])).unwrap();
    first.0.read_exact(&mut [0; 24]).unwrap();
    drop((strangers, silent, opened));
    server.stop();
}

#[test]
fn idle_connections_are_not_walked() {
    let server = start_with(ServerOptions { spin: Duration::ZERO, ..ServerOptions::default() });
    let address = server.addresses()[0];
    let idle: Vec<_> = (0..200)
        .map(|n| try_connect(address, &format!("nqn.idle{n}"), Nqn::discovery()).expect("there are places"))
        .collect();
    let device = open(address, 1);
    let local = Local::new(choose(EngineChoice::Auto, false).unwrap().0);
    let walked = local.block_on(async {
        let client = Client::open(device).unwrap();
        let before = server.walked();
        for n in 0..500 {
            let buf = Buf::alloc(4096).unwrap();
            let range = ByteRange::new(n % 64 * 4096, 4096).unwrap();
            client.submit(Op::Read { range, buf }).await.result.unwrap();
        }
        server.walked() - before
    });
    // A read takes a few turns of its own connection; the clock's turns are few. All of them in every turn would be
    // 200 for each.
    assert!(walked < 500 * 50, "{walked} links walked in 500 reads");
    drop(idle);
    server.stop();
}

//! The host driver against a controller in a thread: what it does, copies, and what the other tests stand on.

use super::testing::{Act, Fake, Setup, copy_limits, disk};
use super::{Namespace, Options};
use crate::block::request::Cancel;
use crate::block::{
    Buf, ByteRange, Completion, CopyRequest, Device, Identity, Kind, LimitsChange, Method, Op,
};
use crate::copy::run::{Options as CopyOptions, copy};
use crate::copy::{Job, Policy, Segment};
use crate::drivers::testing::pattern;
use crate::nvme::copy::Format;
use crate::nvme::{IoCommand, Status};
use crate::reactor::local::{Client, Local};
use crate::reactor::{EngineChoice, choose};
use smallvec::SmallVec;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Time-outs short enough for tests, long enough for a busy machine.
pub(super) fn quick() -> Options {
    Options {
        connect_timeout: Duration::from_secs(5),
        command_timeout: Duration::from_secs(20),
        reconnect_timeout: Duration::from_secs(5),
        keep_alive: Duration::from_secs(2),
        ..Options::default()
    }
}

/// The same, where a test waits for a keep-alive to be missed: for a new association, or for the end of a write in
/// doubt. A thread that gets no core for that long loses its association, so a test that counts associations takes
/// [`quick`].
pub(super) fn keen() -> Options {
    Options { keep_alive: Duration::from_millis(400), ..quick() }
}

pub(super) fn open(fake: &Fake, nsid: u32, options: Options) -> Arc<Namespace> {
    Namespace::open_with(&fake.url(nsid), options).unwrap()
}

/// The message and its causes.
pub(super) fn words(error: &crate::block::Error) -> String {
    super::Why::of(error).to_string()
}

/// Runs `f` on a fresh thread's worth of executor, with a queue of the device.
pub(super) fn with<T>(device: &Arc<Namespace>, f: impl AsyncFnOnce(&Client) -> T) -> T {
    let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
    let device = device.clone();
    local.block_on(async move {
        let client = Client::open(device).unwrap();
        f(&client).await
    })
}

pub(super) fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len).unwrap()
}

pub(super) fn write(offset: u64, bytes: &[u8]) -> Op {
    let buf = Buf::copy_of(bytes).unwrap();
    Op::Write { range: range(offset, bytes.len() as u64), buf, fua: false }
}

pub(super) fn read(offset: u64, len: u64) -> Op {
    Op::Read { range: range(offset, len), buf: Buf::alloc(usize::try_from(len).unwrap()).unwrap() }
}

pub(super) fn copy_op(source: &Arc<Namespace>, sources: &[(u64, u64)], dest: u64) -> Op {
    let sources: SmallVec<[ByteRange; 1]> = sources.iter().map(|&(o, l)| range(o, l)).collect();
    let len = sources.iter().map(|r| r.len()).sum();
    Op::Copy(Box::new(CopyRequest {
        method: Method::NvmeCopy,
        source: source.clone(),
        sources,
        dest: range(dest, len),
        fua: false,
        must: None,
        cancel: Cancel::default(),
    }))
}

pub(super) fn error_of(done: Completion) -> (Kind, String, u64) {
    let error = done.result.unwrap_err();
    (error.kind(), words(&error), done.good_bytes)
}

/// Waits for what another thread does; the limit is only there so that a failure ends.
pub(super) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Small pseudo-random numbers.
pub(super) struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Any mix of operations on two namespaces of one controller equals the same on two arrays.
async fn mix(fake: &Fake, devices: &[Arc<Namespace>; 2], seed: u64) {
    let clients = [Client::open(devices[0].clone()).unwrap(), Client::open(devices[1].clone()).unwrap()];
    let (size, block) = (devices[0].size(), u64::from(devices[0].limits().block_size.get()));
    let mut model = [fake.bytes(1), fake.bytes(2)];
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let at = |r: ByteRange| usize::try_from(r.offset()).unwrap()..usize::try_from(r.end()).unwrap();
    for round in 0..12u64 {
        // Ranges of one round lie apart, so that all of it may be in flight at once.
        let (slots, mut running) = (6, Vec::new());
        let slot_len = size / slots / block * block;
        for slot in 0..slots {
            let which = usize::try_from(dice.below(2)).unwrap();
            let blocks = 1 + dice.below(slot_len / block);
            let len = if dice.below(3) == 0 { blocks * block } else { (1 + dice.below(20)) * block };
            let len = len.min(slot_len);
            let offset = slot * slot_len + dice.below((slot_len - len) / block + 1) * block;
            let r = range(offset, len);
            let bytes = pattern(round << 8 | slot, usize::try_from(len).unwrap());
            let (op, expected) = match dice.below(6) {
                0 | 1 => {
                    model[which][at(r)].copy_from_slice(&bytes);
                    (write(offset, &bytes), None)
                }
                2 => {
                    model[which][at(r)].fill(0);
                    (Op::WriteZeroes { range: r, may_unmap: dice.below(2) == 0, lazy: false }, None)
                }
                3 => {
                    let buf = Buf::copy_of(&model[which][at(r)]).unwrap();
                    (Op::Compare { range: r, buf }, None)
                }
                4 => {
                    // Within the slot, from the other namespace or the upper half of the same.
                    let from = usize::try_from(dice.below(2)).unwrap();
                    let len = (len / 2 / block * block).clamp(block, 16 * block);
                    if from == which && len * 2 > slot_len {
                        continue;
                    }
                    let (s, d) = (slot * slot_len + slot_len - len, slot * slot_len);
                    if s < d + len && from == which {
                        continue;
                    }
                    let bytes = model[from][at(range(s, len))].to_vec();
                    model[which][at(range(d, len))].copy_from_slice(&bytes);
                    (copy_op(&devices[from], &[(s, len)], d), None)
                }
                _ => (read(offset, len), Some(model[which][at(r)].to_vec())),
            };
            running.push((slot, clients[which].submit(op), expected));
        }
        for (slot, one, expected) in running {
            let done = one.await;
            assert!(done.result.is_ok(), "seed {seed} round {round} slot {slot}: {done:?}");
            if let Some(expected) = expected {
                assert!(done.buf[..] == expected[..], "seed {seed} round {round} slot {slot}: wrong bytes");
            }
        }
    }
    for client in &clients {
        assert!(client.submit(Op::Flush).await.result.is_ok());
    }
    assert!(fake.bytes(1) == model[0] && fake.bytes(2) == model[1], "seed {seed}: wrong bytes at the target");
}

//= promise 1
#[test]
fn any_mix_of_operations_equals_two_arrays_whatever_the_connection_is_like() {
    let plain = |_: &mut Setup| {};
    type Edit = fn(&mut Setup);
    let edits: [(Edit, bool, bool); 6] = [
        (plain, false, false),
        (plain, true, true),
        // Everything by R2T, in small pieces; small commands.
        (
            |s| {
                s.controller.ioccsz = 4;
                s.io.in_capsule_bytes_max = 0;
                s.io.r2t_bytes_max = 4096;
                s.io.h2c_data_bytes_max = 4096;
                s.controller.mdts = std::num::NonZeroU8::new(1);
                s.io.data_bytes_max = 8192;
            },
            false,
            true,
        ),
        // Blocks of 4096, padding before data.
        (
            |s| {
                s.disks = [(1, disk(1, 512, 12)), (2, disk(2, 512, 12))].into();
                s.io.cpda = 15;
            },
            true,
            false,
        ),
        // The shortest queue there is; no limits said.
        (
            |s| {
                s.cap = crate::nvme::property::Cap::new(crate::nvme::Count16::new(2).unwrap(), 500, 1);
                s.nvm = None;
                s.controller.mdts = None;
                s.io.data_bytes_max = 4 << 20;
            },
            false,
            false,
        ),
        // Copies only inside a namespace need no format of their own, those across one.
        (|s| s.controller.ocfs = Format::F2.bit(), false, false),
    ];
    for (i, (edit, header_digest, data_digest)) in edits.into_iter().enumerate() {
        let fake = Fake::new(edit);
        let options = Options { header_digest, data_digest, ..quick() };
        for engine in [EngineChoice::Auto, EngineChoice::Pool] {
            let devices = [open(&fake, 1, options), open(&fake, 2, options)];
            let local = Local::new(choose(engine, true).unwrap().0);
            local.block_on(mix(&fake, &devices, i as u64 + 1));
            drop(local);
            let associations = fake.seen().iter().map(|s| s.cntlid).max();
            assert!(associations <= Some(2), "one association for both namespaces, and none was lost");
        }
    }
}

#[test]
fn large_requests_are_split_and_the_good_prefix_is_exact() {
    const PART: u64 = 128 << 10;
    for op in ["read", "write", "compare"] {
        for fails_at in 0..5u64 {
            let fake = Fake::new(|_| {});
            let device = open(&fake, 1, quick());
            let len = 3 * PART + 512;
            let bytes = pattern(7, usize::try_from(len).unwrap());
            let count = Arc::new(AtomicUsize::new(0));
            with(&device, async |client| {
                if op != "write" {
                    assert!(client.submit(write(4096, &bytes)).await.result.is_ok());
                }
                let counted = count.clone();
                fake.rule(move |_| {
                    let n = counted.fetch_add(1, Ordering::SeqCst) as u64;
                    if n == fails_at { Act::Answer(Status::UNRECOVERED_READ_ERROR, 0) } else { Act::Serve }
                });
                let done = client
                    .submit(match op {
                        "read" => read(4096, len),
                        "write" => write(4096, &bytes),
                        _ => Op::Compare { range: range(4096, len), buf: Buf::copy_of(&bytes).unwrap() },
                    })
                    .await;
                if fails_at < 4 {
                    assert_eq!(done.good_bytes, fails_at * PART, "{op} {fails_at}");
                    assert!(
                        words(done.result.as_ref().unwrap_err()).contains("Unrecovered Read Error (2h/81h)")
                    );
                } else {
                    assert!(done.result.is_ok() && done.good_bytes == len, "{op}: {done:?}");
                }
                // The buffer comes back as it was lent.
                assert_eq!(done.buf.len() as u64, len);
                let good = usize::try_from(done.good_bytes).unwrap();
                assert!(done.buf[..good] == bytes[..good], "{op} {fails_at}");
                assert!(fake.bytes(1)[4096..4096 + good] == bytes[..good], "{op} {fails_at}");
            });
            assert_eq!(count.load(Ordering::SeqCst) as u64, (fails_at + 1).min(4), "{op} {fails_at}");
        }
    }
}

#[test]
fn zeroes_and_discards_keep_to_the_controllers_limits() {
    let fake = Fake::new(|s| s.nvm.as_mut().unwrap().write_zeroes_shift_max = std::num::NonZeroU8::new(2));
    let device = open(&fake, 1, quick());
    with(&device, async |client| {
        assert!(client.submit(write(0, &pattern(1, 64 << 10))).await.result.is_ok());
        let op = Op::WriteZeroes { range: range(512, 40 << 10), may_unmap: true, lazy: false };
        assert!(client.submit(op).await.result.is_ok());
        assert!(client.submit(Op::Discard { range: range(48 << 10, 16 << 10) }).await.result.is_ok());
    });
    let bytes = fake.bytes(1);
    let old = pattern(1, 64 << 10);
    assert!(bytes[..512] == old[..512] && bytes[512..512 + (40 << 10)].iter().all(|&b| b == 0));
    assert!(bytes[512 + (40 << 10)..48 << 10] == old[512 + (40 << 10)..48 << 10]);
    let zeroes: Vec<u32> = fake
        .io_seen()
        .iter()
        .filter_map(|c| match c {
            IoCommand::WriteZeroes { extent, deallocate } => {
                assert!(deallocate, "DLFEAT says it may");
                Some(extent.blocks.get())
            }
            _ => None,
        })
        .collect();
    assert_eq!(zeroes, [32, 32, 16], "WZSL is four pages");
    let discards = fake.io_seen().iter().filter(|c| matches!(c, IoCommand::DatasetManagement { .. })).count();
    assert_eq!(discards, 2, "a range of 16 blocks at most");
}

#[test]
fn what_the_controller_lacks_is_unsupported_and_no_cache_needs_no_flush() {
    let fake = Fake::new(|s| {
        s.controller.oncs = 0;
        s.controller.write_cache = false;
    });
    let device = open(&fake, 1, quick());
    assert!(device.copy_paths().is_empty() && !device.limits().can_copy());
    with(&device, async |client| {
        for op in [
            Op::Compare { range: range(0, 512), buf: Buf::alloc(512).unwrap() },
            Op::Discard { range: range(0, 512) },
            Op::WriteZeroes { range: range(0, 512), may_unmap: false, lazy: false },
            copy_op(&device, &[(0, 512)], 4096),
        ] {
            assert_eq!(error_of(client.submit(op).await).0, Kind::Unsupported);
        }
        assert!(client.submit(Op::Flush).await.result.is_ok());
        assert_eq!(error_of(client.submit(read(100, 512)).await).0, Kind::Misaligned);
        assert_eq!(error_of(client.submit(read(4096 * 512, 512)).await).0, Kind::OutOfRange);
    });
    assert!(fake.io_seen().is_empty());
}

#[test]
fn differing_bytes_are_a_mismatch() {
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, quick());
    with(&device, async |client| {
        let op = Op::Compare { range: range(0, 512), buf: Buf::copy_of(&[1; 512]).unwrap() };
        assert_eq!(error_of(client.submit(op).await).0, Kind::Mismatch);
    });
}

//= promise 2
#[test]
fn bytes_on_the_wire_are_counted() {
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, quick());
    with(&device, async |client| {
        assert!(client.submit(read(0, 4096)).await.result.is_ok());
        let counters = client.counters();
        // A command capsule; data with SUCCESS and no response.
        assert_eq!((counters.wire_sent_bytes, counters.wire_received_bytes), (72, 24 + 4096));
        assert!(client.submit(copy_op(&device, &[(0, 4096), (8192, 512)], 65536)).await.result.is_ok());
        let counters = client.counters();
        assert_eq!(counters.wire_sent_bytes, 72 + 72 + 64);
        assert_eq!(counters.wire_received_bytes, 24 + 4096 + 24);
        assert_eq!((counters.requests, counters.read_bytes), (2, 4096));
    });
}

#[test]
fn limits_identity_and_size_are_the_namespaces() {
    let fake = Fake::new(|s| {
        s.disks.insert(3, disk(3, 100, 12));
        s.controller.awupf = crate::nvme::Blocks::new(8).unwrap();
    });
    let one = open(&fake, 1, quick());
    let limits = one.limits();
    assert_eq!((one.size(), limits.block_size.get()), (4096 * 512, 512));
    assert_eq!(limits.atomic_write_bytes.unwrap().get(), 4096);
    assert_eq!(limits.copy_max_range_bytes.get().unwrap().get(), 64 * 512);
    assert_eq!(limits.copy_max_bytes.get().unwrap().get(), 128 * 512);
    assert_eq!(limits.copy_max_nr_ranges.get().unwrap().get(), 8);
    assert_eq!(limits.optimal_io_bytes.get(), 128 << 10);
    // However long one may be, a slow disk has to end it in time.
    let endless =
        Fake::new(|s| s.disks.get_mut(&1).unwrap().page.copy = Some(copy_limits(65535, u32::MAX, 256)));
    let endless = open(&endless, 1, quick());
    assert_eq!(endless.limits().copy_max_bytes.get().unwrap().get(), 64 << 20);
    assert_eq!(endless.copy_paths()[0].max_bytes, 64 << 20);
    let (two, three) = (open(&fake, 2, quick()), open(&fake, 3, quick()));
    // Copies reach namespaces of equal block size.
    assert_eq!(one.copy_paths()[0].scope, two.copy_paths()[0].scope);
    assert_ne!(one.copy_paths()[0].scope, three.copy_paths()[0].scope);
    assert_ne!(one.identity(), two.identity());
    // The same namespace by the same URL is the same device, by another association the same leaf.
    assert!(Arc::ptr_eq(&one, &open(&fake, 1, quick())));
    let mut other = fake.url(1);
    other.host = Some(crate::nvme::Nqn::new("nqn.x:another-host").unwrap());
    let other = Namespace::open_with(&other, quick()).unwrap();
    assert_eq!(one.identity(), other.identity());
    assert_ne!(one.copy_paths()[0].scope, other.copy_paths()[0].scope);
    assert!(matches!(one.identity(), Identity::Leaf { base: 0, .. }));
    let soft = LimitsChange { copy_max_nr_ranges: Some(2), ..LimitsChange::default() };
    assert_eq!(one.change_limits(soft).unwrap().copy_max_nr_ranges.get_hw().unwrap().get(), 8);
}

#[test]
fn the_last_one_out_shuts_the_controller_down() {
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, quick());
    with(&device, async |client| assert!(client.submit(read(0, 512)).await.result.is_ok()));
    drop(device);
    until("the end of the connections", || fake.open() == 0);
}

#[test]
fn there_are_as_many_queues_as_the_controller_allows() {
    let fake = Fake::new(|s| s.queues = 2);
    let device = open(&fake, 1, quick());
    let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
    local.block_on(async {
        let one = Client::open(device.clone()).unwrap();
        let two = Client::open(device.clone()).unwrap();
        // The third has no connection of its own.
        let three = Client::open(device.clone()).unwrap();
        assert_eq!(fake.open(), 3, "the admin queue and two");
        assert!(three.submit(read(0, 512)).await.result.is_ok());
        drop(two);
        crate::reactor::local::yield_now().await;
        let two = Client::open(device.clone()).unwrap();
        assert!(one.submit(read(0, 512)).await.result.is_ok());
        assert!(two.submit(read(0, 512)).await.result.is_ok());
    });
}

fn copies(fake: &Fake) -> Vec<(u8, u32)> {
    let formats = fake.io_seen().into_iter().filter_map(|c| match c {
        IoCommand::Copy(copy) => Some((copy.format.number(), copy.ranges.get())),
        _ => None,
    });
    formats.collect()
}

/// Copies a job between two namespaces by planner and run; what the receipt says.
fn run_job(
    from: &Arc<Namespace>,
    to: &Arc<Namespace>,
    segments: &[Segment],
) -> crate::block::receipt::Receipt {
    let same = from.identity() == to.identity();
    let job = Job::new(segments, from.size(), to.size(), same).unwrap();
    let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
    let (from, to) = (from.clone() as Arc<dyn Device>, to.clone() as Arc<dyn Device>);
    let options = CopyOptions { policy: Policy::default(), ..CopyOptions::default() };
    let ended = local.block_on(async { copy(from, to, &job, &options, &Rc::default()).await });
    assert!(ended.error.is_none(), "{:?}", ended.error);
    ended.receipt
}

#[test]
fn jobs_become_copies_of_many_ranges_within_the_limits() {
    let fake = Fake::new(|s| {
        let bytes = pattern(3, s.disks[&1].bytes.len());
        s.disks.get_mut(&1).unwrap().bytes = bytes;
    });
    let (one, two) = (open(&fake, 1, quick()), open(&fake, 2, quick()));
    let seg =
        |source: u64, dest: u64, len: u64| Segment { source: source * 512, dest: dest * 512, len: len * 512 };
    // Longer than a range (64 blocks) and than a command (128): two ranges each.
    let receipt = run_job(&one, &two, &[seg(8, 1000, 300)]);
    assert_eq!(copies(&fake), [(2, 2), (2, 2), (2, 1)]);
    assert_eq!(receipt.methods.get(&Method::NvmeCopy), Some(&(300 * 512)));
    assert_eq!((receipt.host_bytes.read, receipt.host_bytes.written), (0, 0));
    let bytes = pattern(3, 4096 * 512);
    assert!(fake.bytes(2)[1000 * 512..1300 * 512] == bytes[8 * 512..308 * 512]);
    // 153600 bytes for some hundred: three capsules with their lists, three answers, a flush.
    assert!(receipt.wire_bytes.sent < 1024 && receipt.wire_bytes.received < 1024, "{:?}", receipt.wire_bytes);
    // Scattered sources, one destination: up to 8 ranges a command.
    let before = copies(&fake).len();
    let scattered: Vec<Segment> = (0..20).map(|i| seg(1000 + 3 * i, i, 1)).collect();
    run_job(&one, &two, &scattered);
    assert_eq!(copies(&fake)[before..], [(2, 8), (2, 8), (2, 4)]);
    for i in 0..20 {
        let (d, s) = (i * 512, (1000 + 3 * i) * 512);
        assert!(fake.bytes(2)[d..d + 512] == bytes[s..s + 512], "block {i}");
    }
    // Inside one namespace the first format does.
    let before = copies(&fake).len();
    run_job(&one, &one, &[seg(0, 2000, 10)]);
    assert_eq!(copies(&fake)[before..], [(0, 1)]);
    assert!(fake.bytes(1)[2000 * 512..2010 * 512] == bytes[..10 * 512]);
}

//= promise 2
#[test]
fn where_copies_across_cannot_be_enabled_the_bytes_pass_this_host() {
    let fake = Fake::new(|s| {
        s.refuses_behavior = true;
        s.disks.get_mut(&1).unwrap().bytes.fill(9);
    });
    let (one, two) = (open(&fake, 1, quick()), open(&fake, 2, quick()));
    let job = [Segment { source: 0, dest: 0, len: 4096 }];
    let receipt = run_job(&one, &two, &job);
    assert_eq!(receipt.methods.get(&Method::Emulated), Some(&4096));
    assert!(copies(&fake).is_empty() && fake.bytes(2)[..4096].iter().all(|&b| b == 9));
    let job = [Segment { source: 0, dest: 8192, len: 4096 }];
    assert_eq!(run_job(&two, &two, &job).methods.get(&Method::NvmeCopy), Some(&4096));
}

//= promise 5
#[test]
fn a_failed_copy_is_good_up_to_the_lowest_range_that_failed() {
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, quick());
    let sources = [(0, 512), (1024, 1024), (4096, 512), (8192, 512)];
    with(&device, async |client| {
        // What dword 0 names, and one that names no range.
        for (dword0, good) in [(0, 0), (1, 512), (2, 1536), (3, 2048), (4, 0), (u32::MAX, 0)] {
            fake.rule(move |_| Act::Answer(Status::WRITE_FAULT, dword0));
            let done = client.submit(copy_op(&device, &sources, 65536)).await;
            assert!(done.copy.as_ref().unwrap().rest_undefined);
            assert_eq!(error_of(done), (Kind::Io, fault(&device), good), "{dword0}");
        }
        for (status, kind) in [
            (Status::FAST_COPY_NOT_POSSIBLE, Kind::Unsupported),
            (Status::INCOMPATIBLE_NAMESPACE, Kind::Unsupported),
            (Status::INVALID_OPCODE, Kind::Unsupported),
            (Status::COPY_SIZE_LIMIT_EXCEEDED, Kind::TooLarge { max_bytes: 1024 }),
            (Status::CAPACITY_EXCEEDED, Kind::NoSpace),
            (Status::NAMESPACE_WRITE_PROTECTED, Kind::ReadOnly),
            (Status::OVERLAPPING_IO_RANGE, Kind::Overlap),
        ] {
            fake.rule(move |_| Act::Answer(status, 0));
            let done = client.submit(copy_op(&device, &sources, 65536)).await;
            assert_eq!(error_of(done).0, kind, "{status}");
        }
    });
    fn fault(device: &Arc<Namespace>) -> String {
        format!("{} @65536+2560: copy failed: Write Fault (2h/80h): Write Fault (2h/80h)", device.name())
    }
}

#[test]
fn a_copy_beyond_the_limits_says_how_long_it_may_be() {
    let fake = Fake::new(|s| s.disks.get_mut(&1).unwrap().page.copy = Some(copy_limits(4, 6, 3)));
    let (one, two) = (open(&fake, 1, quick()), open(&fake, 2, quick()));
    let blocks = |list: &[u64]| -> Vec<(u64, u64)> {
        list.iter().enumerate().map(|(i, &n)| (i as u64 * 16384, n * 512)).collect()
    };
    with(&one, async |client| {
        for (list, most) in [
            (&[5][..], Some(4)),
            (&[4], None),
            (&[4, 3], Some(6)),
            (&[4, 2], None),
            (&[1, 1, 1, 1], Some(3)),
            (&[1, 1, 1], None),
            (&[1, 5], Some(5)),
        ] {
            let done = client.submit(copy_op(&one, &blocks(list), 1 << 20)).await;
            let kind = most.map(|n| Kind::TooLarge { max_bytes: n * 512 });
            assert_eq!(done.result.as_ref().err().map(|e| e.kind()), kind, "{list:?} {done:?}");
        }
        // Methods and sources that are not ours to serve; an overlap.
        let other = Arc::new(crate::drivers::mem::Mem::new("m", 4096, one.limits().block_size).unwrap());
        let mut op = copy_op(&two, &[(0, 512)], 0);
        if let Op::Copy(copy) = &mut op {
            copy.source = other;
        }
        assert_eq!(error_of(client.submit(op).await).0, Kind::Unsupported);
        let done = client.submit(copy_op(&one, &[(0, 1024)], 512)).await;
        assert_eq!(error_of(done).0, Kind::Overlap);
        let done = client.submit(copy_op(&two, &[(4096 * 512, 512)], 512)).await;
        assert_eq!(error_of(done).0, Kind::OutOfRange);
    });
}

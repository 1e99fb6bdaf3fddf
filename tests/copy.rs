//! Copies between devices in memory: every method and rule of the runner against a flat byte array.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

use blkcopy::block::Must;
use blkcopy::block::lock::LockDomain;
use blkcopy::block::receipt::{Outcome, Reason};
use blkcopy::block::{Buf, ByteRange, Device, Kind, Method, Op};
use blkcopy::copy::run::{Consistency, Ended, Options, Phase, Progress, Verify, copy};
use blkcopy::copy::{Job, Offload, Policy, Segment, Sparse};
use blkcopy::drivers::mem::Mem;
use blkcopy::map::Mirror;
use blkcopy::reactor::local::{Client, Local};
use blkcopy::reactor::{EngineChoice, choose};
use blkcopy::sim::{DelayDevice, ErrorDevice, Fault, FaultPlan, Ops};
use std::num::{NonZeroU32, NonZeroU64};
use std::rc::Rc;
use std::sync::Arc;

fn mem(size: u64, block: u32) -> Arc<dyn Device> {
    Arc::new(Mem::new("mem", size, NonZeroU32::new(block).unwrap()).unwrap())
}

fn local() -> Local {
    Local::new(choose(EngineChoice::Pool, true).unwrap().0)
}

fn seg(source: u64, dest: u64, len: u64) -> Segment {
    Segment { source, dest, len }
}

async fn write(device: &Arc<dyn Device>, offset: u64, bytes: &[u8]) {
    let client = Client::open(device.clone()).unwrap();
    let range = ByteRange::new(offset, bytes.len() as u64).unwrap();
    let done = client.submit(Op::Write { range, buf: Buf::copy_of(bytes).unwrap(), fua: false }).await;
    done.result.unwrap();
}

async fn read_all(device: &Arc<dyn Device>) -> Vec<u8> {
    let client = Client::open(device.clone()).unwrap();
    let buf = Buf::alloc(usize::try_from(device.size()).unwrap()).unwrap();
    let done = client.submit(Op::Read { range: ByteRange::to(device.size()), buf }).await;
    done.result.unwrap();
    done.buf.to_vec()
}

/// Bytes that name their place, so that a byte from the wrong place shows.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; len];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// What the bytes must be afterwards: each segment moved as through a buffer.
fn expected(source: &[u8], dest: &[u8], same: bool, segments: &[Segment]) -> Vec<u8> {
    let mut out = dest.to_vec();
    for s in segments {
        let (from, to, len) = (s.source as usize, s.dest as usize, s.len as usize);
        let bytes = if same { out[from..from + len].to_vec() } else { source[from..from + len].to_vec() };
        out[to..to + len].copy_from_slice(&bytes);
    }
    out
}

fn options(offload: Offload) -> Options {
    Options { policy: Policy { offload, ..Policy::default() }, ..Options::default() }
}

async fn run(
    source: &Arc<dyn Device>,
    dest: &Arc<dyn Device>,
    segments: &[Segment],
    options: &Options,
) -> Ended {
    let same = Arc::ptr_eq(source, dest);
    let job = Job::new(segments, source.size(), dest.size(), same).unwrap();
    copy(source.clone(), dest.clone(), &job, options, &Rc::new(Progress::default())).await
}

//= promise 1, 10
#[test]
fn memory_copies_by_itself_and_emulation_moves_the_same_bytes() {
    let size = 40 << 20;
    local().block_on(async {
        let source = mem(size, 1);
        let bytes = pattern(3_000_000, 1);
        write(&source, 12_345, &bytes).await;
        write(&source, 33 << 20, &bytes).await;
        for (offload, method) in
            [(Offload::Require(Must::Fast), Method::Memory), (Offload::Never, Method::Emulated)]
        {
            let dest = mem(size, 1);
            write(&dest, 0, &pattern(size as usize, 2)).await;
            let segments = [seg(12_000, 77, 20 << 20), seg(32 << 20, 30 << 20, (8 << 20) - 1)];
            let want = expected(&read_all(&source).await, &read_all(&dest).await, false, &segments);
            let options = Options { verify: Verify::Digest, ..options(offload) };
            let ended = run(&source, &dest, &segments, &options).await;
            assert!(ended.error.is_none(), "{:?}", ended.error);
            assert!(read_all(&dest).await == want, "{method}: a byte is wrong");
            let receipt = ended.receipt;
            let total = segments.iter().map(|s| s.len).sum::<u64>();
            assert_eq!((receipt.good_bytes, receipt.good_prefix_bytes), (total, total));
            assert!(receipt.methods[&method] > 0);
            assert_eq!(receipt.methods.values().sum::<u64>(), total);
            assert_eq!(receipt.host_bytes.read, receipt.methods.get(&Method::Emulated).copied().unwrap_or(0));
            let v = receipt.verification.unwrap();
            assert!(v.equal && v.source_digest == v.dest_digest);
        }
    });
}

//= promise 7
#[test]
fn overlap_is_as_through_a_buffer_at_every_distance() {
    local().block_on(async {
        let size = 3 << 20;
        for distance in [1u64, 511, 4096, 65_535, 65_536, 100_000, 600_000, 1 << 20] {
            for forward in [true, false] {
                for (offload, payload_bytes) in
                    [(Offload::Auto, 64 << 20), (Offload::Never, 64 << 20), (Offload::Never, 4096)]
                {
                    let device = mem(size, 1);
                    write(&device, 0, &pattern(size as usize, distance)).await;
                    let (a, b) = (10_000, 10_000 + distance);
                    let s = if forward { seg(b, a, 1_500_000) } else { seg(a, b, 1_500_000) };
                    let want = expected(&[], &read_all(&device).await, true, &[s]);
                    let options = Options { payload_bytes, ..options(offload) };
                    let ended = run(&device, &device, &[s], &options).await;
                    assert!(ended.error.is_none(), "{:?}", ended.error);
                    let case =
                        format!("distance {distance}, forward {forward}, {offload:?}, {payload_bytes}");
                    assert!(read_all(&device).await == want, "{case}");
                    assert_eq!(ended.receipt.good_prefix_bytes, s.len);
                }
            }
        }
    });
}

//= promise 1, 10
#[test]
fn odd_edges_on_devices_with_blocks_change_nothing_around_them() {
    local().block_on(async {
        for (sb, db) in [(1, 512), (512, 1), (512, 4096), (4096, 512)] {
            for s in [
                seg(0, 0, 1),
                seg(511, 513, 1),
                seg(100, 4000, 9000),
                seg(4096, 8192, 4097),
                seg(1, 1, 1 << 20),
            ] {
                let (source, dest) = (mem(2 << 20, sb), mem(2 << 20, db));
                write(&source, 0, &pattern(2 << 20, 1)).await;
                write(&dest, 0, &pattern(2 << 20, 2)).await;
                let want = expected(&read_all(&source).await, &read_all(&dest).await, false, &[s]);
                for offload in [Offload::Auto, Offload::Never] {
                    let options = Options { verify: Verify::Bytes, ..options(offload) };
                    let ended = run(&source, &dest, &[s], &options).await;
                    assert!(ended.error.is_none(), "{:?}", ended.error);
                    assert!(read_all(&dest).await == want, "blocks {sb} -> {db}, {s:?}");
                }
            }
        }
    });
}

#[test]
fn one_page_of_payload_is_enough() {
    local().block_on(async {
        let (source, dest) = (mem(4 << 20, 1), mem(4 << 20, 512));
        write(&source, 0, &pattern(4 << 20, 5)).await;
        let options = Options { payload_bytes: 4096, ..options(Offload::Never) };
        let s = [seg(1000, 512 * 7 + 3, (3 << 20) + 17)];
        let want = expected(&read_all(&source).await, &read_all(&dest).await, false, &s);
        let ended = run(&source, &dest, &s, &options).await;
        assert!(ended.error.is_none(), "{:?}", ended.error);
        assert!(read_all(&dest).await == want);
    });
}

#[test]
fn zeroes_are_found_only_when_asked() {
    local().block_on(async {
        let source = mem(8 << 20, 1);
        let mut bytes = pattern(8 << 20, 3);
        bytes[10_000..3_000_000].fill(0);
        bytes[(4 << 20)..(4 << 20) + 4096].fill(0);
        write(&source, 0, &bytes).await;
        let dest = mem(8 << 20, 1);
        write(&dest, 0, &pattern(8 << 20, 4)).await;
        let policy = Policy { sparse: Sparse::Always, ..Policy::default() };
        let ended =
            run(&source, &dest, &[seg(0, 0, 8 << 20)], &Options { policy, ..Options::default() }).await;
        assert!(ended.error.is_none(), "{:?}", ended.error);
        assert!(read_all(&dest).await == bytes);
        let r = ended.receipt;
        assert_eq!(r.reasons[0].reason, Reason::ZeroSearch);
        assert!(r.host_bytes.written < (6 << 20), "zeroes were written: {}", r.host_bytes.written);
    });
}

#[test]
fn holes_stay_holes_where_the_destination_is_known_to_be_zero() {
    local().block_on(async {
        let source = mem(64 << 20, 1);
        write(&source, 20 << 20, &pattern(2 << 20, 3)).await;
        for (zero_from, skipped) in [(0, 62 << 20), (32 << 20, 32 << 20), (u64::MAX, 0)] {
            let dest = mem(64 << 20, 1);
            let before = zero_from.min(64 << 20);
            if before > 0 {
                write(&dest, 0, &pattern(before as usize, 9)).await;
            }
            let policy = Policy { offload: Offload::Never, dest_zero_from: zero_from, ..Policy::default() };
            let options = Options { policy, ..Options::default() };
            let ended = run(&source, &dest, &[seg(0, 0, 64 << 20)], &options).await;
            assert!(ended.error.is_none(), "{:?}", ended.error);
            assert!(read_all(&dest).await == read_all(&source).await);
            assert_eq!(ended.receipt.methods.get(&Method::Skip).copied().unwrap_or(0), skipped);
            assert_eq!(ended.receipt.host_bytes.read, 2 << 20);
        }
    });
}

//= promise 2
#[test]
fn require_is_refused_where_bytes_would_pass_through_this_host() {
    local().block_on(async {
        let (source, dest) = (mem(1 << 20, 1), mem(1 << 20, 512));
        write(&source, 0, &pattern(1 << 20, 1)).await;
        write(&dest, 0, &pattern(1 << 20, 2)).await;
        let before = read_all(&dest).await;
        let ended = run(&source, &dest, &[seg(0, 1, 4096)], &options(Offload::Require(Must::Fast))).await;
        assert_eq!(ended.error.unwrap().kind(), Kind::Unsupported);
        assert_eq!(ended.receipt.outcome, Outcome::Refused);
        assert!(read_all(&dest).await == before);
    });
}

//= promise 8
#[test]
fn a_cancelled_copy_says_what_was_done() {
    let local = local();
    local.block_on(async {
        let (source, dest) = (mem(64 << 20, 1), mem(64 << 20, 1));
        write(&source, 0, &pattern(64 << 20, 2)).await;
        let options = Options { limit_rate: NonZeroU64::new(40 << 20), ..options(Offload::Never) };
        let cancel = options.cancel.clone();
        drop(blkcopy::reactor::local::spawn(async move {
            blkcopy::reactor::local::sleep(std::time::Duration::from_millis(300)).await;
            cancel.set();
        }));
        let ended = run(&source, &dest, &[seg(0, 0, 64 << 20)], &options).await;
        assert_eq!(ended.receipt.outcome, Outcome::Cancelled);
        let good = ended.receipt.good_prefix_bytes as usize;
        assert!(good > 0 && good < 64 << 20, "{good}");
        assert!(read_all(&dest).await[..good] == read_all(&source).await[..good]);
    });
}

#[test]
fn locks_of_one_job_do_not_block_each_other() {
    for consistency in [Consistency::Request, Consistency::Whole] {
        let domain = LockDomain::new();
        let local = local();
        let waker = local.waker();
        let locks = Rc::new(domain.attach(move || waker.wake()).unwrap());
        local.serve_locks(&locks);
        local.block_on(async {
            let device = mem(64 << 20, 512);
            write(&device, 0, &pattern(64 << 20, 2)).await;
            let segments: Vec<_> = (0..50).map(|i| seg(i * 5000, (32 << 20) + i * 4099, 4099)).collect();
            let want = expected(&[], &read_all(&device).await, true, &segments);
            let options = Options { locks: Some(locks.clone()), consistency, ..options(Offload::Auto) };
            let ended = run(&device, &device, &segments, &options).await;
            assert!(ended.error.is_none(), "{:?}", ended.error);
            assert!(read_all(&device).await == want);
        });
    }
}

/// A memory device on which the chosen operations fail from the `nth` on.
fn failing(size: u64, ops: Ops, nth: u64, good_bytes: u64) -> Arc<dyn Device> {
    let fault = Fault { ops, nth, forever: true, kind: Kind::Io, good_bytes };
    Arc::new(ErrorDevice::new(mem(size, 512), FaultPlan::new(fault)))
}

#[test]
fn after_a_failed_flush_nothing_is_called_good() {
    local().block_on(async {
        for cancelled in [false, true] {
            let (source, dest) = (mem(4 << 20, 1), failing(4 << 20, Ops::FLUSH, 1, 0));
            write(&source, 0, &pattern(4 << 20, 1)).await;
            let options = options(Offload::Never);
            if cancelled {
                options.cancel.set();
            }
            let ended = run(&source, &dest, &[seg(0, 0, 4 << 20)], &options).await;
            let receipt = ended.receipt;
            assert_eq!(ended.error.unwrap().kind(), Kind::Io, "louder than a request to stop");
            assert_eq!((receipt.outcome, receipt.flushed), (Outcome::Failed, false));
            assert_eq!((receipt.good_bytes, receipt.good_prefix_bytes, receipt.methods.len()), (0, 0, 0));
        }
    });
}

#[test]
fn good_bytes_of_a_failed_zeroing_are_counted_by_method() {
    local().block_on(async {
        // Holes everywhere: the destination is zeroed, and fails half-way.
        let (source, dest) = (mem(1 << 20, 1), failing(1 << 20, Ops::WRITE_ZEROES, 1, 64 << 10));
        write(&dest, 0, &pattern(1 << 20, 1)).await;
        let ended = run(&source, &dest, &[seg(0, 0, 1 << 20)], &options(Offload::Never)).await;
        let receipt = ended.receipt;
        assert_eq!((receipt.outcome, receipt.good_bytes), (Outcome::Failed, 64 << 10));
        assert_eq!(receipt.methods.values().sum::<u64>(), receipt.good_bytes);
    });
}

#[test]
fn progress_is_seen_inside_a_long_step() {
    local().block_on(async {
        let (source, dest) = (mem(4 << 20, 1), mem(4 << 20, 512));
        write(&source, 0, &pattern(4 << 20, 1)).await;
        let job = Job::new(&[seg(0, 0, 4 << 20)], source.size(), dest.size(), false).unwrap();
        let progress = Rc::new(Progress::default());
        let options = Options { limit_rate: NonZeroU64::new(32 << 20), ..options(Offload::Never) };
        let watched = progress.clone();
        let seen = blkcopy::reactor::local::spawn(async move {
            let mut most = 0;
            while watched.good_bytes.get() == 0 {
                most = most.max(watched.moving_bytes.get());
                blkcopy::reactor::local::sleep(std::time::Duration::from_millis(1)).await;
            }
            most
        });
        let ended = copy(source, dest, &job, &options, &progress).await;
        assert!(ended.error.is_none() && progress.method.get() == Some(Method::Emulated));
        assert_eq!((progress.good_bytes.get(), progress.moving_bytes.get()), (4 << 20, 0));
        let most = seen.await;
        assert!((1 << 20..=4 << 20).contains(&most), "{most}");
    });
}

/// The second leg of a mirror is spoiled once all has been written; reads come from the first.
//= promise 10
#[test]
fn every_leg_of_a_mirror_is_verified() {
    local().block_on(async {
        let size = 4 << 20;
        for (spoiled, mode) in [
            (None, Verify::Digest),
            (Some(1), Verify::Digest),
            (Some(0), Verify::Bytes),
            (Some(1), Verify::Bytes),
        ] {
            let source = mem(size, 1);
            write(&source, 0, &pattern(size as usize, 1)).await;
            let legs = [mem(size, 512), mem(size, 512)];
            // Slow, so that there is time to spoil it between the copy and its verification.
            let slow =
                legs.each_ref().map(|leg| Arc::new(DelayDevice::new(leg.clone(), 1, 64)) as Arc<dyn Device>);
            let dest: Arc<dyn Device> =
                Arc::new(Mirror::new("mirror", slow, NonZeroU64::new(1 << 20).unwrap()).unwrap());
            let job = Job::new(&[seg(0, 0, size)], size, size, false).unwrap();
            let options = Options { verify: mode, ..options(Offload::Never) };
            let progress = Rc::new(Progress::default());
            let (watched, leg) = (progress.clone(), spoiled.map(|leg: usize| legs[leg].clone()));
            let spoil = blkcopy::reactor::local::spawn(async move {
                while watched.phase.get() == Phase::Copy {
                    blkcopy::reactor::local::yield_now().await;
                }
                if let Some(leg) = leg {
                    write(&leg, 5860 * 512, &[0xEE; 512]).await;
                }
            });
            let ended = copy(source, dest, &job, &options, &progress).await;
            spoil.await;
            let v = ended.receipt.verification.unwrap();
            assert_eq!(v.equal, spoiled.is_none(), "{spoiled:?}");
            assert_eq!(v.source_digest == v.dest_digest, spoiled.is_none() || mode == Verify::Bytes);
            if spoiled.is_some() {
                assert_eq!(ended.receipt.outcome, Outcome::Mismatch);
                let bad = v.first_bad.unwrap();
                assert!(bad.offset >= 5860 * 512 && bad.offset + bad.len <= 5861 * 512, "{bad:?}");
            } else {
                assert_eq!(v.dest_read.device, 2 * size);
            }
        }
    });
}

/// Programs keep receipts, and read them again.
//= promise 2
#[test]
fn a_receipt_is_read_back_as_it_was_written() {
    let local = local();
    local.block_on(async {
        let (source, faulty) = (mem(1 << 20, 512), failing(1 << 20, Ops::WRITE, 3, 512));
        write(&source, 0, &pattern(1 << 20, 1)).await;
        for (dest, verify) in
            [(mem(1 << 20, 512), Verify::Digest), (mem(1 << 20, 512), Verify::Bytes), (faulty, Verify::None)]
        {
            let options = Options { verify, ..options(Offload::Never) };
            let receipt = run(&source, &dest, &[seg(0, 512, (1 << 20) - 512)], &options).await.receipt;
            let written = serde_json::to_value(&receipt).unwrap();
            let read: blkcopy::block::receipt::Receipt = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), written);
            assert_eq!((read.good_bytes, read.outcome), (receipt.good_bytes, receipt.outcome));
        }
    });
}

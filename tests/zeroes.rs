//! Zeroes that are read and not written: whatever is left out, the bytes are those of the source, and where the
//! destination was not zero after all, verifying says so.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

use blkcopy::block::device::{Queue, resolve_plain};
use blkcopy::block::receipt::{Outcome, Receipt};
use blkcopy::block::{
    Access, Buf, ByteRange, Device, Extent, Identity, Limits, LimitsChange, Method, Op, Resolution, Result,
};
use blkcopy::copy::run::{Ended, Options, Progress, Verify, copy};
use blkcopy::copy::{Job, Offload, Policy, Segment, Sparse};
use blkcopy::drivers::mem::Mem;
use blkcopy::map::{Linear, Mirror};
use blkcopy::reactor::local::{Client, Local};
use blkcopy::reactor::{EngineChoice, choose};
use blkcopy::sim::{ErrorDevice, Fault, FaultPlan, Ops, VolatileDisk};
use proptest::prelude::*;
use std::any::Any;
use std::num::{NonZeroU32, NonZeroU64};
use std::rc::Rc;
use std::sync::Arc;

const SIZE: u64 = 1 << 20;
/// Zeroes are looked for in units of this many bytes, where the destination's blocks are no larger.
const UNIT: u64 = 4096;

/// Memory as a disk shows it: nobody can ask where its holes are, and it copies nothing by itself.
struct Disk(Arc<dyn Device>);

impl Device for Disk {
    fn name(&self) -> &str {
        "disk"
    }
    fn identity(&self) -> Identity {
        self.0.identity()
    }
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn limits(&self) -> Limits {
        Limits::plain(self.0.limits().block_size)
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.0.change_limits(change)
    }
    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        Ok(Extent { len: range.len(), content: blkcopy::block::Content::Data })
    }
    fn zeroes_cheaply(&self) -> bool {
        true
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        self.0.clone().open_queue()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn mem(size: u64, block: u32) -> Arc<dyn Device> {
    Arc::new(Mem::new("mem", size, NonZeroU32::new(block).unwrap()).unwrap())
}

fn disk(block: u32) -> Arc<dyn Device> {
    Arc::new(Disk(mem(SIZE, block)))
}

/// The kinds of destination: how each takes zeroes differs.
fn dest(kind: usize, block: u32) -> Arc<dyn Device> {
    let number = NonZeroU32::new(block).unwrap();
    match kind {
        0 => disk(block),
        1 => mem(SIZE, block),
        2 => Arc::new(VolatileDisk::new("volatile", SIZE, number).unwrap()),
        3 => Arc::new(Linear::new("linear", vec![disk_of(SIZE / 2, block), mem(SIZE / 2, block)]).unwrap()),
        4 => Arc::new(Mirror::new("mirror", vec![disk(block), disk(block)], region()).unwrap()),
        _ => {
            // Zeroing is refused: what was found to be zero is written after all.
            let plan = FaultPlan::new(Fault {
                ops: Ops::WRITE_ZEROES,
                nth: 1,
                forever: true,
                kind: blkcopy::block::Kind::Unsupported,
                good_bytes: 0,
            });
            Arc::new(ErrorDevice::new(disk(block), plan))
        }
    }
}

fn region() -> NonZeroU64 {
    NonZeroU64::new(64 << 10).unwrap()
}

fn disk_of(size: u64, block: u32) -> Arc<dyn Device> {
    Arc::new(Disk(mem(size, block)))
}

fn local() -> Local {
    Local::new(choose(EngineChoice::Pool, true).unwrap().0)
}

async fn write(device: &Arc<dyn Device>, bytes: &[u8]) {
    let client = Client::open(device.clone()).unwrap();
    let range = ByteRange::to(bytes.len() as u64);
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

async fn run(from: &Arc<dyn Device>, to: &Arc<dyn Device>, segments: &[Segment], options: &Options) -> Ended {
    let job = Job::new(segments, from.size(), to.size(), false).unwrap();
    copy(from.clone(), to.clone(), &job, options, &Rc::new(Progress::default())).await
}

/// Bytes of which none is zero.
fn data(len: usize, seed: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; len];
    hasher.finalize_xof().fill(&mut bytes);
    bytes.iter().map(|b| b | 1).collect()
}

#[derive(Clone, Debug)]
struct Case {
    /// Runs of the source: length, and whether it is zero.
    runs: Vec<(u64, bool)>,
    segments: Vec<Segment>,
    blocks: (u32, u32),
    kind: usize,
    sparse: Sparse,
    /// The destination is zero from here on, and known to be.
    zero_from: u64,
    payload_bytes: usize,
    verify: Verify,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let len = prop_oneof![
        3 => (1u64..40).prop_map(|n| n * UNIT),
        2 => 1u64..20_000,
        1 => (1u64..8).prop_map(|n| n * (64 << 10)),
    ];
    let runs = prop::collection::vec((len, any::<bool>()), 1..60);
    let block = || prop::sample::select(vec![1u32, 512, 4096, 16384]);
    // Segments: the gap before each on both sides, and its length.
    let edge = || prop_oneof![Just(0u64), 1u64..5000, (0u64..20).prop_map(|n| n * UNIT)];
    let cut = (edge(), edge(), prop_oneof![1u64..9000, 10_000u64..900_000]);
    let segments = prop::collection::vec(cut, 1..4);
    let zero_from = prop_oneof![Just(0), Just(u64::MAX), 0u64..SIZE];
    let sparse = prop::sample::select(vec![Sparse::Auto, Sparse::Auto, Sparse::Always, Sparse::Never]);
    let verify = prop::sample::select(vec![Verify::None, Verify::Bytes, Verify::Digest]);
    let memory = prop::sample::select(vec![4096usize, 64 << 20]);
    let how = (0usize..6, sparse, zero_from, memory, verify, any::<u64>());
    (runs, segments, block(), block(), how).prop_map(
        |(runs, cuts, from, to, (kind, sparse, zero_from, payload_bytes, verify, seed))| {
            let (mut source, mut dest, mut segments) = (0, 0, Vec::new());
            for (skip_source, skip_dest, len) in cuts {
                (source, dest) = (source + skip_source, dest + skip_dest);
                let len = len.min(SIZE.saturating_sub(source.max(dest)));
                if len == 0 {
                    break;
                }
                segments.push(Segment { source, dest, len });
                (source, dest) = (source + len, dest + len);
            }
            let blocks = (from, to);
            Case { runs, segments, blocks, kind, sparse, zero_from, payload_bytes, verify, seed }
        },
    )
}

fn source_of(case: &Case) -> Vec<u8> {
    let mut bytes = data(SIZE as usize, case.seed);
    let mut at = 0;
    for &(len, zero) in &case.runs {
        let end = (at + len as usize).min(SIZE as usize);
        if zero {
            bytes[at..end].fill(0);
        }
        at = end;
    }
    bytes
}

fn sum(receipt: &Receipt) -> u64 {
    receipt.methods.values().sum()
}

fn check(case: &Case) {
    local().block_on(async {
        let bytes = source_of(case);
        let source = disk(case.blocks.0);
        write(&source, &bytes).await;
        let to = dest(case.kind, case.blocks.1);
        let mut old = data(SIZE as usize, !case.seed);
        old[case.zero_from.min(SIZE) as usize..].fill(0);
        write(&to, &old).await;
        let policy = Policy {
            sparse: case.sparse,
            dest_zero_from: case.zero_from,
            finds_zeroes: true,
            offload: Offload::Auto,
            ..Policy::default()
        };
        let options =
            Options { policy, payload_bytes: case.payload_bytes, verify: case.verify, ..Options::default() };
        let ended = run(&source, &to, &case.segments, &options).await;
        assert!(ended.error.is_none(), "{:?}", ended.error);
        let mut want = old;
        for s in &case.segments {
            let (from, len) = (s.source as usize, s.len as usize);
            want[s.dest as usize..][..len].copy_from_slice(&bytes[from..from + len]);
        }
        let now = read_all(&to).await;
        if now != want {
            let wrong = now.iter().zip(&want).position(|(a, b)| a != b);
            panic!("the byte at {} is wrong", wrong.unwrap());
        }
        let receipt = ended.receipt;
        assert_eq!(sum(&receipt), receipt.good_bytes, "{:?}", receipt.methods);
        assert!(receipt.verification.is_none_or(|v| v.equal));
        let skipped = receipt.methods.get(&Method::Skip).copied().unwrap_or(0);
        assert!(case.sparse != Sparse::Never || skipped == 0);
        if case.sparse != Sparse::Never && case.zero_from == 0 && case.kind < 4 {
            // Whole units of the destination are looked at, but for what a small buffer cuts them into.
            let unit = UNIT.max(case.blocks.1.into());
            let zero = |s: &Segment| {
                let units = (s.dest / unit..s.dest_range().end().div_ceil(unit)).filter(|u| {
                    let part =
                        ByteRange::between(u * unit, (u + 1) * unit).intersection(s.dest_range()).unwrap();
                    want[part.offset() as usize..part.end() as usize].iter().all(|&b| b == 0)
                });
                let inside = |u: u64| {
                    let part = ByteRange::between(u * unit, (u + 1) * unit).intersection(s.dest_range());
                    part.unwrap().len()
                };
                units.map(inside).sum::<u64>()
            };
            let all: u64 = case.segments.iter().map(zero).sum();
            assert!(skipped >= all, "{skipped} of {all} zero bytes were left out");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 300, ..ProptestConfig::with_cases(96) })]

    //= promise 1
    #[test]
    fn whatever_zeroes_are_left_out_the_bytes_are_those_of_the_source(case in case()) {
        check(&case);
    }
}

//= promise 1, 10
#[test]
fn a_destination_that_was_not_zero_after_all_is_found_by_verifying() {
    local().block_on(async {
        let source = disk(512);
        let mut bytes = data(SIZE as usize, 1);
        bytes[100_000..900_000].fill(0);
        write(&source, &bytes).await;
        for (at, verify) in [(150_000, Verify::Bytes), (880_000, Verify::Digest), (500_000, Verify::Bytes)] {
            let to = disk(512);
            let mut old = vec![0; SIZE as usize];
            old[at] = 7;
            write(&to, &old).await;
            let policy = Policy { dest_zero_from: 0, finds_zeroes: true, ..Policy::default() };
            let segment = Segment { source: 0, dest: 0, len: SIZE };
            let ended =
                run(&source, &to, &[segment], &Options { policy, verify, ..Options::default() }).await;
            assert_eq!(ended.receipt.outcome, Outcome::Mismatch);
            let bad = ended.receipt.verification.unwrap().first_bad.unwrap();
            assert_eq!((bad.offset, bad.len), (at as u64, 1));
        }
    });
}

#[test]
fn data_without_zeroes_and_zeroes_of_a_source_that_tells_its_holes_are_written() {
    local().block_on(async {
        let segment = [Segment { source: 0, dest: 0, len: SIZE }];
        let policy =
            Policy { dest_zero_from: 0, finds_zeroes: true, offload: Offload::Never, ..Policy::default() };
        let options = Options { policy, ..Options::default() };
        let mut zeroes = data(SIZE as usize, 1);
        zeroes[4096..512 << 10].fill(0);
        // Stored as data, they stay so: a source that tells its holes is believed.
        for (source, bytes, written) in [
            (disk(512), data(SIZE as usize, 1), SIZE),
            (mem(SIZE, 512), zeroes.clone(), SIZE),
            (disk(512), zeroes, SIZE - (512 << 10) + 4096),
        ] {
            write(&source, &bytes).await;
            let to = disk(512);
            let ended = run(&source, &to, &segment, &options).await;
            assert!(ended.error.is_none(), "{:?}", ended.error);
            assert!(read_all(&to).await == bytes);
            let receipt = ended.receipt;
            assert_eq!(receipt.host_bytes.written, written, "{:?}", receipt.methods);
            assert_eq!(sum(&receipt), SIZE);
            assert_eq!(receipt.reasons.iter().any(|w| w.zeroes_left_out), !source.tells_holes());
        }
    });
}

/// Where one leg of a mirror cannot zero, both are written, and what is counted is what was done.
#[test]
fn a_leg_that_cannot_zero_has_zeroes_written_to_all() {
    local().block_on(async {
        let source = disk(512);
        let mut bytes = data(SIZE as usize, 5);
        bytes[128 << 10..512 << 10].fill(0);
        write(&source, &bytes).await;
        let to: Arc<dyn Device> =
            Arc::new(Mirror::new("mirror", vec![disk(512), dest(5, 512)], region()).unwrap());
        write(&to, &data(SIZE as usize, 6)).await;
        let policy = Policy { finds_zeroes: true, ..Policy::default() };
        let segment = [Segment { source: 0, dest: 0, len: SIZE }];
        let options = Options { policy, verify: Verify::Bytes, ..Options::default() };
        let ended = run(&source, &to, &segment, &options).await;
        assert!(ended.error.is_none(), "{:?}", ended.error);
        assert!(read_all(&to).await == bytes);
        let receipt = ended.receipt;
        assert_eq!(receipt.methods.get(&Method::Emulated), Some(&SIZE), "{:?}", receipt.methods);
        assert_eq!(receipt.host_bytes.written, 2 * SIZE);
    });
}

/// One byte among zeroes, at the edges of everything: of units, of blocks, of pieces and of the range that is copied.
#[test]
fn a_single_byte_among_zeroes_is_copied_wherever_it_is() {
    local().block_on(async {
        for (from, to, block) in
            [(0, 0, 1), (1, 0, 512), (512, 1, 1), (0, 4095, 512), (4097, 511, 512), (100, 8192, 1)]
        {
            for len in [4096 * 3, 4096 * 3 + 1, 4096 * 2 + 511, (512 << 10) + 100] {
                for at in [0, 1, 511, 512, 4095, 4096, 8191, len - 512, len - 2, len - 1] {
                    let (source, dest) = (disk_of(640 << 10, block), disk_of(640 << 10, block));
                    let mut want = vec![0; (to + len) as usize];
                    want[(to + at) as usize] = 1;
                    write_at(&source, from + at).await;
                    let policy = Policy { dest_zero_from: 0, finds_zeroes: true, ..Policy::default() };
                    let segment = Segment { source: from, dest: to, len };
                    let ended =
                        run(&source, &dest, &[segment], &Options { policy, ..Options::default() }).await;
                    assert!(ended.error.is_none(), "{:?}", ended.error);
                    let now = read_all(&dest).await;
                    assert!(now[..want.len()] == want, "the byte at {at} of {len}, from {from} to {to}");
                    assert!(now[want.len()..].iter().step_by(97).all(|&b| b == 0));
                    // Written is no more than the block of the destination that it lies in.
                    let unit = (to + at) / UNIT * UNIT;
                    let around = ByteRange::between(unit, unit + UNIT).intersection(segment.dest_range());
                    assert!(ended.receipt.host_bytes.written <= around.unwrap().len(), "{at} of {len}, {to}");
                }
            }
        }
    });
}

/// Writes one byte, alone in its block.
async fn write_at(device: &Arc<dyn Device>, at: u64) {
    let client = Client::open(device.clone()).unwrap();
    let mut block = [0; 512];
    block[(at % 512) as usize] = 1;
    let range = ByteRange::new(at - at % 512, 512).unwrap();
    let buf = Buf::copy_of(&block).unwrap();
    client.submit(Op::Write { range, buf, fua: false }).await.result.unwrap();
}

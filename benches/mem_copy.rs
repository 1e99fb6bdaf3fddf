//! Memory device to memory device through plan, runner and driver, beside a plain memory copy of the same bytes.
//!
//! `cargo bench -p blkcopy --bench mem_copy`: medians of runs that take turns, after both sides were touched once.

use blkcopy::block::{Buf, ByteRange, Device, Op};
use blkcopy::copy::run::{Options, Progress, copy};
use blkcopy::copy::{Job, Segment};
use blkcopy::drivers::mem::Mem;
use blkcopy::reactor::local::{Client, Local};
use blkcopy::reactor::{EngineChoice, choose};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

const SIZE: u64 = 1 << 30;
const RUNS: usize = 9;

fn mem() -> Arc<dyn Device> {
    let block = NonZeroU32::new(512).expect("not zero");
    Arc::new(Mem::new("mem", SIZE, block).expect("a whole number of blocks"))
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let (reactor, _) = choose(EngineChoice::Pool, true).expect("threads can be had");
    let (source, dest) = (mem(), mem());
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i >> 3 & 0xFF) as u8 | 1).collect();
    let mut plain = vec![1u8; bytes.len()];
    Local::new(reactor).block_on(async {
        let client = Client::open(source.clone()).expect("memory opens");
        for at in (0..SIZE).step_by(1 << 20) {
            let range = ByteRange::between(at, at + (1 << 20));
            let from = usize::try_from(at).expect("1 GiB");
            let buf = Buf::copy_of(&bytes[from..from + (1 << 20)]).expect("memory");
            client.submit(Op::Write { range, buf, fua: false }).await.result.expect("memory is written");
        }
        let job = Job::new(&[Segment { source: 0, dest: 0, len: SIZE }], SIZE, SIZE, false).expect("it fits");
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=RUNS {
            let start = Instant::now();
            let progress = Rc::new(Progress::default());
            let ended = copy(source.clone(), dest.clone(), &job, &Options::default(), &progress).await;
            let took = start.elapsed().as_secs_f64();
            assert_eq!(ended.receipt.good_bytes, SIZE, "{:?}", ended.error);
            let start = Instant::now();
            plain.copy_from_slice(black_box(&bytes));
            black_box(&plain);
            let plain_took = start.elapsed().as_secs_f64();
            // The first round touches the memory.
            if round > 0 {
                ours.push(took);
                theirs.push(plain_took);
            }
        }
        let (ours, theirs) = (median(&mut ours), median(&mut theirs));
        let rate = |s: f64| 1.073_741_824 / s;
        println!(
            "blkcopy {:.2} GB/s, memory copy {:.2} GB/s, ratio {:.3}",
            rate(ours),
            rate(theirs),
            theirs / ours
        );
    });
}

//! Plans a copy of one million scattered segments between two memory devices: time and allocations.
//!
//! `cargo bench -p blkcopy --bench plan_million`

use blkcopy::block::Device;
use blkcopy::copy::{DeviceFacts, Job, Planner, Policy, Segment};
use blkcopy::drivers::mem::Mem;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

const SEGMENTS: u64 = 1_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let size = SEGMENTS * 16384;
    let block = NonZeroU32::new(512).ok_or("512 is not zero")?;
    let source: Arc<dyn Device> = Arc::new(Mem::new("source", size, block)?);
    let dest: Arc<dyn Device> = Arc::new(Mem::new("dest", size, block)?);
    // Blocks of 4 KiB, every fourth one, in an order that jumps about: nothing merges.
    let jump = |i: u64, by: u64| i * by % SEGMENTS * 16384;
    let segments: Vec<Segment> = (0..SEGMENTS)
        .map(|i| Segment { source: jump(i, 999_983), dest: jump(i, 777_767), len: 4096 })
        .collect();
    let start = Instant::now();
    let job = Job::new(&segments, size, size, false)?;
    let checked = start.elapsed();
    let mut planner = Planner::new(&job, DeviceFacts::new(source, dest), Policy::default());
    let mut steps = 0u64;
    for step in planner.by_ref() {
        step?;
        steps += 1;
    }
    let total = start.elapsed();
    println!(
        "{SEGMENTS} segments, {steps} steps: {:.3} s (of it {:.3} s to check the job)",
        total.as_secs_f64(),
        checked.as_secs_f64()
    );
    println!("digest {}", planner.summary().digest);
    Ok(())
}

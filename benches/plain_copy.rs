//! One plain memory copy, the measure of `cargo xtask bench mount`: `plain_copy BYTES` prints how long it took.
//!
//! Both sides are written before, so that no page is touched for the first time while the clock runs.

mod common;

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let bytes: usize = common::args().next().ok_or("usage: plain_copy BYTES")?.parse()?;
    let (source, mut dest) = (vec![1u8; bytes], vec![2u8; bytes]);
    let start = Instant::now();
    dest.copy_from_slice(black_box(&source));
    black_box(&dest);
    println!("ms={:.3}", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

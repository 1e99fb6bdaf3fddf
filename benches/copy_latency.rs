//! Times copy_file_range(2) calls one at a time: the client of `cargo xtask bench mount`.
//!
//! `copy_latency SOURCE DEST BYTES COUNT`: COUNT calls of BYTES each, walking through both files, after a tenth of
//! COUNT that does not count. Prints one line of `key=value`, with `inline` and `handed_over` where DEST is a
//! volume of our mount, which counts them. A short answer is an error: it would make the figures those of another
//! copy.

mod common;

use rustix::fs::{copy_file_range, fgetxattr};
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::time::Instant;

const USAGE: &str = "usage: copy_latency SOURCE DEST BYTES COUNT";

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = common::args().collect();
    let [source, dest, bytes, count] = &args[..] else { return Err(USAGE.into()) };
    let (bytes, count): (usize, usize) = (bytes.parse()?, count.parse()?);
    let source = OpenOptions::new().read(true).open(source)?;
    let dest = OpenOptions::new().read(true).write(true).open(dest)?;
    let len = u64::try_from(bytes)?;
    let places = source.metadata()?.len().min(dest.metadata()?.len()) / len;
    if places == 0 || count == 0 {
        return Err(format!("the files are shorter than {bytes} B, or nothing to count").into());
    }
    let warm_up = count / 10 + 1;
    let mut took: Vec<u32> = Vec::with_capacity(count + warm_up);
    let (mut place, mut before) = (0, None);
    for n in 0..count + warm_up {
        if n == warm_up {
            before = served(&dest);
        }
        let (mut from, mut to) = (place * len, place * len);
        place = (place + 1) % places;
        let begin = Instant::now();
        let copied = copy_file_range(&source, Some(&mut from), &dest, Some(&mut to), bytes)?;
        took.push(u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX));
        if copied != bytes {
            return Err(format!("asked to copy {bytes} B, copied {copied}").into());
        }
    }
    took.drain(..warm_up);
    took.sort_unstable();
    let at = |part: usize| f64::from(took[(count * part / 1000).min(count - 1)]) / 1e3;
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let mean = took.iter().map(|&t| f64::from(t)).sum::<f64>() / count as f64 / 1e3;
    print!(
        "p50_us={:.2} p99_us={:.2} p999_us={:.2} mean_us={mean:.2} ops={count}",
        at(500),
        at(990),
        at(999)
    );
    if let (Some(before), Some(after)) = (before, served(&dest)) {
        print!(" inline={} handed_over={}", after[0] - before[0], after[1] - before[1]);
    }
    println!();
    Ok(())
}

/// Copies onto a volume so far: served inline, and handed over.
fn served(dest: &File) -> Option<[u64; 2]> {
    let mut text = vec![0; 64 << 10];
    let len = fgetxattr(dest, "user.blkcopy.receipt", &mut text[..]).ok()?;
    let receipt: serde_json::Value = serde_json::from_slice(&text[..len]).ok()?;
    Some([receipt["inline"].as_u64()?, receipt["handed_over"].as_u64()?])
}

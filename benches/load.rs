//! Keeps a device busy and says how fast it was: the generator of `cargo xtask bench target`.
//!
//! `load DEV read|write|copy BYTES DEPTH SECONDS [RANGES] [DEST]`: random offsets, one thread that spins. A copy
//! has RANGES scattered sources of BYTES each on DEV and goes to DEST (DEV itself when left out). Prints one line
//! of `key=value`.

mod common;

use blkcopy::block::request::Cancel;
use blkcopy::block::{Buf, ByteRange, CopyRequest, Device, Method, Op, Submitter};
use blkcopy::reactor::{EngineChoice, choose, enter};
use blkcopy::volume::{Name, open_dest};
use rustix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: load DEV read|write|copy BYTES DEPTH SECONDS [RANGES] [DEST]";
/// Not measured: connections warm up, pages are touched.
const WARM_UP: Duration = Duration::from_millis(200);

struct Load {
    source: Arc<dyn Device>,
    dest: Arc<dyn Device>,
    what: String,
    bytes: u64,
    ranges: u64,
    random: u64,
}

impl Load {
    /// A place for `bytes` on a device, `bytes`-aligned, below `end`.
    fn place(&mut self, end: u64) -> Result<ByteRange, Box<dyn Error>> {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let at = self.random % (end / self.bytes) * self.bytes;
        Ok(ByteRange::new(at, self.bytes).ok_or("inside the device")?)
    }

    fn op(&mut self, buf: Buf) -> Result<Op, Box<dyn Error>> {
        let size = self.source.size();
        Ok(match self.what.as_str() {
            "read" => Op::Read { range: self.place(size)?, buf },
            "write" => Op::Write { range: self.place(size)?, buf, fua: false },
            "copy" => {
                // On one device: from its front half to its back half, so that nothing overlaps.
                let same = Arc::ptr_eq(&self.source, &self.dest);
                let (reads, writes) = if same { (size / 2, size / 2) } else { (size, self.dest.size()) };
                let sources = (0..self.ranges).map(|_| self.place(reads)).collect::<Result<_, _>>()?;
                let whole = self.bytes * self.ranges;
                let at = self.random % (writes / whole) * whole + if same { size / 2 } else { 0 };
                Op::Copy(Box::new(CopyRequest {
                    method: Method::NvmeCopy,
                    source: self.source.clone(),
                    sources,
                    dest: ByteRange::new(at, whole).ok_or("inside the device")?,
                    fua: false,
                    must: None,
                    cancel: Cancel::default(),
                }))
            }
            _ => return Err(USAGE.into()),
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = common::args().collect();
    let [device, what, bytes, depth, seconds, rest @ ..] = &args[..] else { return Err(USAGE.into()) };
    let (bytes, depth, seconds): (u64, usize, f64) = (bytes.parse()?, depth.parse()?, seconds.parse()?);
    let source = open_dest(&Name::parse(device)?, false)?;
    let dest = match rest.get(1) {
        Some(name) => open_dest(&Name::parse(name)?, false)?,
        None => source.clone(),
    };
    let ranges = rest.first().map_or(Ok(1), |n| n.parse())?;
    let (reactor, _) = choose(EngineChoice::Auto, false)?;
    let _entered = enter(reactor.clone());
    let mut queue = dest.clone().open_queue()?;
    let mut load = Load { source, dest, what: what.clone(), bytes, ranges, random: 0x9e37_79b9_7f4a_7c15 };
    let submitter = Submitter::default();
    let (mut batch, mut done) = (VecDeque::new(), Vec::new());
    let mut begun = vec![Instant::now(); depth];
    let mut latencies: Vec<u32> = Vec::with_capacity(1 << 24);
    let buffer = if what == "copy" { 0 } else { usize::try_from(bytes)? };
    for tag in 0..depth {
        let op = load.op(Buf::alloc(buffer).ok_or("no memory")?)?;
        batch.push_back(submitter.request(tag as u64, op));
    }
    let start = Instant::now();
    let (mut measured, mut cpu, mut from) = (false, Duration::ZERO, start);
    let end = WARM_UP + Duration::from_secs_f64(seconds);
    let mut in_flight = depth;
    while in_flight > 0 {
        queue.submit(&mut batch);
        reactor.turn();
        queue.poll(&mut done);
        let now = Instant::now();
        if !measured && now - start > WARM_UP {
            (measured, cpu, from) = (true, thread_cpu(), now);
            latencies.clear();
        }
        let over = now - start > end;
        for completion in done.drain(..) {
            completion.result?;
            let slot = usize::try_from(completion.tag)?;
            latencies.push(u32::try_from((now - begun[slot]).as_nanos()).unwrap_or(u32::MAX));
            if over {
                in_flight -= 1;
                continue;
            }
            begun[slot] = now;
            batch.push_back(submitter.request(completion.tag, load.op(completion.buf)?));
        }
    }
    let (wall, cpu) = (from.elapsed().as_secs_f64(), (thread_cpu() - cpu).as_secs_f64());
    let count = latencies.len();
    latencies.sort_unstable();
    let at = |part: usize| f64::from(latencies[(count * part / 1000).min(count - 1)]) / 1e3;
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let (n, moved) = (count as f64, (count as u64 * bytes * ranges) as f64);
    println!(
        "iops={:.0} mb_s={:.1} p50_us={:.2} p99_us={:.2} p999_us={:.2} cpu_us={:.3} ops={count}",
        n / wall,
        moved / wall / 1e6,
        at(500),
        at(990),
        at(999),
        cpu / n * 1e6
    );
    Ok(())
}

fn thread_cpu() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

//! A 4 KiB read through a null device, its counters and the range locks, N times: for an instruction counter
//! (subtract the counts of N and 2N). `cargo bench -p blkcopy --bench hot_path --no-run` prints where the program
//! is; then `valgrind --tool=callgrind PROGRAM 20000 [DEPTH]`.

mod common;

use blkcopy::block::lock::{LockDomain, LockedQueue};
use blkcopy::block::{Buf, ByteRange, Op, Queue, Submitter};
use blkcopy::drivers::null::Null;
use std::collections::VecDeque;
use std::error::Error;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;

const LEN: u64 = 4096;
const SIZE: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = common::args();
    let count: u64 = args.next().ok_or("usage: hot_path COUNT [DEPTH]")?.parse()?;
    let depth: u64 = args.next().map_or(Ok(1), |n| n.parse())?;
    let block = NonZeroU32::new(512).ok_or("not zero")?;
    let locks = Rc::new(LockDomain::new().attach(|| ())?);
    let mut queue = LockedQueue::open(Arc::new(Null::new("null", SIZE, block)?), locks.clone())?;
    let submitter = Submitter::default();
    let (mut batch, mut done, mut free) = (VecDeque::new(), Vec::new(), Vec::new());
    for _ in 0..depth {
        free.push(Buf::alloc(usize::try_from(LEN)?).ok_or("no memory")?);
    }
    let mut tag = 0;
    while tag < count {
        while let Some(buf) = free.pop() {
            let range = ByteRange::new(tag * LEN % SIZE, LEN).ok_or("inside the device")?;
            batch.push_back(submitter.request(tag, Op::Read { range, buf }));
            tag += 1;
        }
        locks.pump();
        queue.submit(&mut batch);
        queue.poll(&mut done);
        for done in done.drain(..) {
            done.result?;
            free.push(done.buf);
        }
    }
    println!("{} reads", queue.counters().requests);
    Ok(())
}

//! The caller's word that a destination reads as zero ([`super::EndsOptions::dest_is_zero`]): checked in samples,
//! before anything is written.
//!
//! No kernel tells whether a device reads as zero, so only reading all of it would prove it. What is read here is where
//! a device that was used before gives itself away: its ends, where partition tables and superblocks lie, and places in
//! between; of a device that tells its holes, the front of what is stored.

use crate::block::{Buf, ByteRange, Content, Device, Error, Kind, Op, Result};
use crate::copy::Segment;
use crate::reactor::local::{Client, Local};
use crate::reactor::{EngineChoice, choose};
use std::sync::Arc;

/// Bytes read at the ends of each range: up to the first superblock of Btrfs at 64 KiB, and backup tables.
const END_BYTES: u64 = 128 << 10;
/// Bytes of a sample in between.
const SAMPLE_BYTES: u64 = 4096;
/// Samples in between, of each kind.
const SAMPLES: u64 = 64;
/// Most samples in all: a copy may have very many segments.
const ALL_MAX: usize = 4096;

/// The first sample that is not zero where the segments will be written, as the offset of its first such byte.
///
/// Makes an executor for this thread and drops it. Errors: those of the reads, and of making it.
pub(super) fn first_not_zero(device: &Arc<dyn Device>, segments: &[Segment]) -> Result<Option<u64>> {
    let ranges: Vec<ByteRange> = samples(device, segments)?;
    let engine = choose(EngineChoice::Pool, false);
    let (reactor, _) = engine.map_err(|e| Error::os("the destination cannot be read", e))?;
    Local::new(reactor).block_on(async {
        let client = Client::open(device.clone())?;
        for range in ranges {
            let buf = usize::try_from(range.len()).ok().and_then(Buf::alloc);
            let buf = buf.ok_or_else(|| Error::new(Kind::NoMemory, "no memory to read the destination"))?;
            let done = client.submit(Op::Read { range, buf }).await;
            done.result?;
            if let Some(at) = done.buf.iter().position(|&byte| byte != 0) {
                return Ok(Some(range.offset() + at as u64));
            }
        }
        Ok(None)
    })
}

/// What is read: whole blocks, inside the device, from front to back.
fn samples(device: &Arc<dyn Device>, segments: &[Segment]) -> Result<Vec<ByteRange>> {
    let block = u64::from(device.limits().block_size.get());
    let size = device.size();
    let targets = segments.iter().map(|s| s.dest_range()).filter_map(|r| r.intersection(ByteRange::to(size)));
    let targets: Vec<ByteRange> = targets.filter(|r| !r.is_empty()).collect();
    // A block that the copy writes in part keeps its other bytes, which may be anything.
    let inner = |from: u64, to: u64| {
        let (start, end) = (from.next_multiple_of(block), to - to % block);
        (start < end).then(|| ByteRange::between(start, end))
    };
    let total: u64 = targets.iter().map(|r| r.len()).sum();
    let each = (total / SAMPLES).max(SAMPLE_BYTES).next_multiple_of(block);
    let mut found: Vec<ByteRange> = Vec::new();
    for target in &targets {
        if found.len() >= ALL_MAX {
            break;
        }
        let (from, to) = (target.offset(), target.end());
        found.extend(inner(from, to.min(from.saturating_add(END_BYTES))));
        found.extend(inner(from.max(to.saturating_sub(END_BYTES)), to));
        let mut at = from.next_multiple_of(block);
        while at < to {
            found.extend(inner(at, to.min(at.saturating_add(SAMPLE_BYTES.max(block)))));
            at = at.saturating_add(each);
        }
        if device.tells_holes() {
            stored(device, *target, block, &mut found)?;
        }
    }
    found.sort_by_key(|r| r.offset());
    found.dedup();
    Ok(found)
}

/// The front of each stretch that is stored, up to a bound.
fn stored(device: &Arc<dyn Device>, target: ByteRange, block: u64, found: &mut Vec<ByteRange>) -> Result<()> {
    let end = target.end() - target.end() % block;
    let mut at = target.offset().next_multiple_of(block);
    for _ in 0..2 * SAMPLES {
        if at >= end {
            break;
        }
        let extent = device.next_extent(ByteRange::between(at, end))?;
        if extent.content == Content::Data {
            let len = extent.len.min(SAMPLE_BYTES.max(block));
            found.push(ByteRange::between(at, at + len.next_multiple_of(block).min(end - at)));
        }
        if extent.len == 0 {
            break;
        }
        at = (at + extent.len).next_multiple_of(block);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::mem::Mem;
    use std::num::NonZeroU32;

    fn seg(dest: u64, len: u64) -> Segment {
        Segment { source: 0, dest, len }
    }

    fn look(written: &[u64], segments: &[Segment]) -> Option<u64> {
        let mem = Mem::new("mem", 64 << 20, NonZeroU32::new(512).unwrap()).unwrap();
        let device: Arc<dyn Device> = Arc::new(mem);
        Local::new(choose(EngineChoice::Pool, false).unwrap().0).block_on(async {
            let client = Client::open(device.clone()).unwrap();
            for &at in written {
                let range = ByteRange::between(at - at % 512, at - at % 512 + 512);
                let mut bytes = [0; 512];
                bytes[usize::try_from(at % 512).unwrap()] = 1;
                let buf = Buf::copy_of(&bytes).unwrap();
                client.submit(Op::Write { range, buf, fua: false }).await.result.unwrap();
            }
        });
        first_not_zero(&device, segments).unwrap()
    }

    //= promise 1
    #[test]
    fn samples_find_the_first_byte_that_is_not_zero_and_look_only_where_it_is_written() {
        assert_eq!(look(&[], &[seg(0, 64 << 20)]), None);
        assert_eq!(look(&[1080, 5000], &[seg(0, 64 << 20)]), Some(1080), "a superblock");
        assert_eq!(look(&[(64 << 20) - 1], &[seg(0, 64 << 20)]), Some((64 << 20) - 1), "a backup table");
        assert_eq!(look(&[40 << 20], &[seg(0, 64 << 20)]), Some(40 << 20), "what is stored in between");
        // Beside what is written, and in blocks of which a part is.
        assert_eq!(look(&[0, 2 << 20], &[seg(1 << 20, 1 << 20)]), None);
        assert_eq!(look(&[100], &[seg(200, 1024)]), None);
        assert_eq!(look(&[4096], &[seg(0, 512), seg(4096, 512)]), Some(4096));
    }
}

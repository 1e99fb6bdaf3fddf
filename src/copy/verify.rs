//! Reads both ends back and compares: by BLAKE3 digests, or byte by byte. The destination is read from the medium where
//! that is possible, on every leg that holds a copy of it.

use super::Job;
use super::back::{Copies, PIECE, ReadBack, no_memory, small};
use super::emulate::read_bytes;
use super::options::Verify;
use super::shared::Shared;
use crate::block::receipt::Verification;
use crate::block::{Buf, ByteRange, Device, Result};
use crate::reactor::local::{self, Client, JoinHandle};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Reads in flight on each end.
const DEPTH: usize = 4;

/// Reads every segment of the job on both ends, in job order: the source as a copy reads it, the destination past the
/// system's cache where there is a way past it.
///
/// Errors: those of the reads, and `Cancelled`.
pub(super) async fn verify(shared: &Rc<Shared>, job: &Job, mode: Verify) -> Result<Verification> {
    let ends = |end: fn(&super::Segment) -> ByteRange| job.segments().iter().map(end).collect::<Vec<_>>();
    let mut source = Source::new(shared.source_client()?, &shared.source, ends(|s| s.source_range()));
    let mut dest = Dest::new(shared, ends(|s| s.dest_range()));
    let digest = mode == Verify::Digest;
    let (mut ours, mut theirs) = (blake3::Hasher::new(), blake3::Hasher::new());
    let (mut read, mut verified, mut first_bad) = (0, 0, None);
    while let (Some((_, a)), Some((at, copies))) = (source.next().await?, dest.next().await?) {
        if shared.stopped() {
            return Err(shared.stop_reason());
        }
        if digest {
            ours.update(&a);
        }
        read += a.len() as u64;
        verified += a.len() as u64;
        shared.progress.verified_bytes.set(verified);
        let mut spoiled: Option<Vec<u8>> = None;
        for (from, copy) in copies {
            read += copy.len() as u64;
            let due = &a[from..from + copy.len()];
            if *due == copy[..] {
                continue;
            }
            if first_bad.is_none() {
                let differ = |(x, y): (&u8, &u8)| x != y;
                let bad = due.iter().zip(copy.iter()).position(differ).unwrap_or(0);
                let end = due.iter().zip(copy.iter()).rposition(differ).unwrap_or(bad);
                let start = at.offset() + from as u64;
                first_bad = Some(ByteRange::between(start + bad as u64, start + end as u64 + 1).into());
            }
            // What the destination holds goes into its digest; of two copies a wrong one.
            spoiled.get_or_insert_with(|| a.to_vec())[from..from + copy.len()].copy_from_slice(&copy);
        }
        if digest {
            theirs.update(spoiled.as_deref().unwrap_or(&a));
        } else if first_bad.is_some() {
            break;
        }
        source.give_back(a);
    }
    let hex = |h: &blake3::Hasher| digest.then(|| h.finalize().to_hex().to_string());
    Ok(Verification {
        mode: if digest { "digest" } else { "bytes" }.into(),
        source_digest: hex(&ours),
        dest_digest: hex(&theirs),
        equal: first_bad.is_none(),
        first_bad,
        read_bytes: read,
        dest_read: dest.below.told(),
    })
}

/// A list of ranges, a piece at a time. Both ends cut theirs alike.
struct Pieces {
    ranges: std::vec::IntoIter<ByteRange>,
    present: ByteRange,
}

impl Pieces {
    fn new(ranges: Vec<ByteRange>) -> Self {
        Self { ranges: ranges.into_iter(), present: ByteRange::default() }
    }
}

impl Iterator for Pieces {
    type Item = ByteRange;

    fn next(&mut self) -> Option<ByteRange> {
        while self.present.is_empty() {
            self.present = self.ranges.next()?;
        }
        let range = self.present.prefix(PIECE);
        self.present = self.present.after(PIECE);
        Some(range)
    }
}

/// One read of the source that was begun.
type Read = JoinHandle<(Buf, Result<()>)>;

/// Reads the source in order, a few pieces ahead.
struct Source {
    client: Client,
    block: u64,
    pieces: Pieces,
    ahead: VecDeque<(ByteRange, Read)>,
    spare: Vec<Buf>,
}

impl Source {
    fn new(client: Client, device: &Arc<dyn Device>, ranges: Vec<ByteRange>) -> Self {
        let block = u64::from(device.limits().block_size.get());
        Self { client, block, pieces: Pieces::new(ranges), ahead: VecDeque::new(), spare: Vec::new() }
    }

    /// The next bytes; `None` at the end of the job.
    async fn next(&mut self) -> Result<Option<(ByteRange, Buf)>> {
        while self.ahead.len() < DEPTH {
            let Some(range) = self.pieces.next() else { break };
            let room = small(PIECE + 2 * self.block);
            let buf = self.spare.pop().or_else(|| Buf::alloc(room)).ok_or_else(no_memory)?;
            let (client, block, len) = (self.client.clone(), self.block, small(range.len()));
            let read =
                local::spawn(async move { read_bytes(&client, block, range.offset(), len, buf).await });
            self.ahead.push_back((range, read));
        }
        let Some((range, read)) = self.ahead.pop_front() else { return Ok(None) };
        let (buf, result) = read.await;
        result?;
        Ok(Some((range, buf)))
    }

    fn give_back(&mut self, buf: Buf) {
        self.spare.push(buf);
    }
}

/// Reads the destination in order, a few pieces ahead.
struct Dest {
    below: Rc<ReadBack>,
    pieces: Pieces,
    ahead: VecDeque<(ByteRange, JoinHandle<Result<Copies>>)>,
}

impl Dest {
    fn new(shared: &Rc<Shared>, ranges: Vec<ByteRange>) -> Self {
        let opener = shared.clone();
        let below = ReadBack::new(shared.dest.clone(), move |device| opener.open(device));
        Self { below: Rc::new(below), pieces: Pieces::new(ranges), ahead: VecDeque::new() }
    }

    /// The next bytes; `None` at the end of the job.
    async fn next(&mut self) -> Result<Option<(ByteRange, Copies)>> {
        while self.ahead.len() < DEPTH {
            let Some(range) = self.pieces.next() else { break };
            let below = self.below.clone();
            self.ahead.push_back((range, local::spawn(async move { below.copies(range).await })));
        }
        let Some((range, read)) = self.ahead.pop_front() else { return Ok(None) };
        Ok(Some((range, read.await?)))
    }
}

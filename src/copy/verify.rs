//! Reads both ends back and compares: by BLAKE3 digests, or byte by byte.

use super::Job;
use super::emulate::read_bytes;
use super::run::Verify;
use super::shared::Shared;
use crate::block::receipt::Verification;
use crate::block::{Buf, ByteRange, Device, Error, Kind, Result};
use crate::reactor::local::{self, Client, JoinHandle};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes compared at a time.
const PIECE: u64 = 1 << 20;
/// Reads in flight on each end.
const DEPTH: usize = 4;

/// Reads every segment of the job on both ends, in job order. The destination's cached pages are let go first, so that
/// the device answers where that is possible.
///
/// Errors: those of the reads, and `Cancelled`.
pub(super) async fn verify(shared: &Rc<Shared>, job: &Job, mode: Verify) -> Result<Verification> {
    shared.dest.drop_cache();
    let mut source = Reader::new(shared.source_client()?, &shared.source, job, |s| s.source_range());
    let mut dest = Reader::new(shared.dest_client()?, &shared.dest, job, |s| s.dest_range());
    let digest = mode == Verify::Digest;
    let (mut ours, mut theirs) = (blake3::Hasher::new(), blake3::Hasher::new());
    let (mut read, mut first_bad) = (0, None);
    while let (Some((_, a)), Some((at, b))) = (source.next().await?, dest.next().await?) {
        if shared.stopped() {
            return Err(shared.stop_reason());
        }
        if digest {
            ours.update(&a);
            theirs.update(&b);
        }
        read += (a.len() + b.len()) as u64;
        shared.progress.verified_bytes.set(read / 2);
        if first_bad.is_none() && a[..] != b[..] {
            let bad = a.iter().zip(b.iter()).position(|(x, y)| x != y).unwrap_or(0) as u64;
            let end = a.iter().zip(b.iter()).rposition(|(x, y)| x != y).map_or(bad, |e| e as u64);
            first_bad = Some(ByteRange::between(at.offset() + bad, at.offset() + end + 1).into());
            if !digest {
                break;
            }
        }
        source.give_back(a);
        dest.give_back(b);
    }
    let hex = |h: &blake3::Hasher| digest.then(|| h.finalize().to_hex().to_string());
    Ok(Verification {
        mode: if digest { "digest" } else { "bytes" },
        source_digest: hex(&ours),
        dest_digest: hex(&theirs),
        equal: first_bad.is_none(),
        first_bad,
        read_bytes: read,
    })
}

type Read = JoinHandle<(Buf, Result<()>)>;

/// Reads ranges of one device in order, a few ahead.
struct Reader {
    client: Client,
    block: u64,
    ranges: std::vec::IntoIter<ByteRange>,
    present: ByteRange,
    ahead: VecDeque<(ByteRange, Read)>,
    spare: Vec<Buf>,
}

impl Reader {
    fn new(
        client: Client,
        device: &Arc<dyn Device>,
        job: &Job,
        end: fn(&super::Segment) -> ByteRange,
    ) -> Self {
        Self {
            client,
            block: u64::from(device.limits().block_size.get()),
            ranges: job.segments().iter().map(end).collect::<Vec<_>>().into_iter(),
            present: ByteRange::default(),
            ahead: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// The next bytes; `None` at the end of the job. Both ends cut their ranges alike.
    async fn next(&mut self) -> Result<Option<(ByteRange, Buf)>> {
        while self.ahead.len() < DEPTH {
            if self.present.is_empty() {
                let Some(range) = self.ranges.next() else { break };
                self.present = range;
            }
            let range = self.present.prefix(PIECE);
            self.present = self.present.after(PIECE);
            let len = usize::try_from(range.len()).expect("at most a piece");
            let room = usize::try_from(PIECE + 2 * self.block).expect("a piece and two blocks");
            let buf = self.spare.pop().or_else(|| Buf::alloc(room));
            let buf = buf.ok_or_else(|| Error::new(Kind::NoMemory, "no memory to verify with"))?;
            let (client, block) = (self.client.clone(), self.block);
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

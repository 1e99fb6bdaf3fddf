//! Source ranges of one or more devices, end to end into one destination range, as one whole: what a Copy command of a
//! front end is when no single request can do it.

use super::facts::{DeviceFacts, leaf_ranges};
use super::options::{Options, Progress};
use super::plan::{Offload, Planner, Policy};
use super::run::copy;
use super::wait::{LOOK_AGAIN, hold, unless};
use super::{Job, Segment};
use crate::block::lock::{Claim, Claims};
use crate::block::places::is_one_device;
use crate::block::receipt::HostBytes;
use crate::block::request::Cancel;
use crate::block::{Access, ByteRange, Device, Error, Fates, Kind, Method, Must, Op, Result};
use crate::reactor::away::look;
use crate::reactor::local::{self, Client};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

/// Ranges that lie on one device.
#[derive(Clone)]
pub struct Part {
    /// The device.
    pub source: Arc<dyn Device>,
    /// The ranges, in order.
    pub ranges: Vec<ByteRange>,
}

/// The end of such a copy.
#[derive(Debug, Default)]
pub struct WholeEnded {
    /// Length of the destination's front that is known to be good, in bytes.
    pub good_prefix_bytes: u64,
    /// Good bytes by method.
    pub methods: BTreeMap<Method, u64>,
    /// What became of them.
    pub fates: Fates,
    /// Bytes that passed through this process.
    pub host_bytes: HostBytes,
    /// How often the run left the plan.
    pub deviations: u64,
    /// The destination was flushed at the end.
    pub flushed: bool,
    /// Reading a source is what failed.
    pub source_failed: bool,
    /// Requests were left in flight ([`Options::abandon`]). Its ranges stay claimed until none of them can change the
    /// destination.
    pub abandoned: bool,
    /// Why it ended early.
    pub error: Option<Error>,
}

/// A job of one part, and the device it reads.
struct Piece {
    source: Arc<dyn Device>,
    job: Job,
    /// Bytes before it that the destination holds already: ranges onto themselves.
    skipped: u64,
}

/// Copies the ranges of `parts`, end to end, to `dest` from byte `at` on.
///
/// All ranges are locked together before the first byte moves and until the flush has ended, when one is asked for:
/// nobody sees half of it. Of the options `consistency` and `verify` are not looked at.
///
/// Ranges may overlap the destination: they are then copied one after the other in the order given, each as through a
/// buffer, so a later one may read what an earlier one wrote. Runs on the thread's executor
/// ([`crate::reactor::local`]).
pub async fn copy_ranges(parts: &[Part], dest: &Arc<dyn Device>, at: u64, options: &Options) -> WholeEnded {
    let mut ended = WholeEnded::default();
    if let Err(error) = run(parts, dest, at, options, &mut ended).await {
        ended.error = Some(error);
    }
    ended
}

/// Makes sure, as far as that can be told beforehand, that of all bytes of such a copy becomes what must. Nothing is
/// written.
///
/// Errors: `Unsupported` when some would; what the devices answer; `Cancelled` when it is stopped while they do not.
pub async fn check_offloaded(
    parts: &[Part],
    dest: &Arc<dyn Device>,
    at: u64,
    must: Must,
    cancel: &Cancel,
) -> Result<()> {
    let (parts, dest) = (parts.to_vec(), dest.clone());
    let Some(source) = parts.iter().map(|part| &part.source).max_by_key(|source| source.may_wait()).cloned()
    else {
        return Ok(());
    };
    let looked = look(&source, move |_| check(&parts, &dest, at, must));
    let stopped = || Error::new(Kind::Cancelled, "stopped on request");
    unless(|| cancel.is_set(), looked).await.ok_or_else(stopped)??
}

fn check(parts: &[Part], dest: &Arc<dyn Device>, at: u64, must: Must) -> Result<()> {
    let policy = Policy { offload: Offload::Require(must), ..Policy::default() };
    for piece in pieces(parts, dest, at)? {
        let facts = DeviceFacts::new(piece.source, dest.clone());
        Planner::new(&piece.job, facts, policy).try_for_each(|step| step.map(drop))?;
    }
    Ok(())
}

async fn run(
    parts: &[Part],
    dest: &Arc<dyn Device>,
    at: u64,
    options: &Options,
    ended: &mut WholeEnded,
) -> Result<()> {
    let pieces = pieces(parts, dest, at)?;
    // The queue that will flush is opened before the first write: see `run::copy`.
    let flusher = if options.flush { Some(Client::open(dest.clone())?) } else { None };
    let held = match &options.locks {
        Some(locks) => {
            let stop = || options.cancel.is_set().then(|| Error::new(Kind::Cancelled, "stopped on request"));
            Some(hold(locks, claims(&pieces, dest)?, stop).await?)
        }
        None => None,
    };
    // What is held here is not to be waited for below.
    let inner = Options { locks: None, flush: false, ..options.clone() };
    for piece in pieces {
        ended.good_prefix_bytes += piece.skipped;
        let progress = Rc::new(Progress::default());
        let one = copy(piece.source, dest.clone(), &piece.job, &inner, &progress).await;
        ended.good_prefix_bytes += one.receipt.good_prefix_bytes;
        for (method, bytes) in one.receipt.methods {
            *ended.methods.entry(method).or_default() += bytes;
        }
        ended.fates.merge(&one.receipt.evidence);
        ended.host_bytes.read += one.receipt.host_bytes.read;
        ended.host_bytes.written += one.receipt.host_bytes.written;
        ended.deviations += one.receipt.deviations_total;
        if one.abandoned {
            ended.abandoned = true;
            let pulse = options.pulse.clone();
            drop(local::spawn(async move {
                pulse.no_changes().await;
                drop(held);
            }));
            return Err(one.error.unwrap_or_else(|| Error::new(Kind::Cancelled, "stopped on request")));
        }
        if let Some(error) = one.error {
            ended.source_failed = progress.source_failed.get();
            return Err(error);
        }
    }
    if let Some(flusher) = flusher {
        if let Err(error) = flush(flusher, options).await {
            // What could not be written may be gone from the cache too.
            ended.good_prefix_bytes = 0;
            ended.methods.clear();
            ended.fates = Fates::default();
            return Err(error);
        }
        ended.flushed = true;
    }
    Ok(())
}

/// Flushes; gives that up when the copy is cancelled and may leave requests in flight.
async fn flush(flusher: Client, options: &Options) -> Result<()> {
    let mut flush = pin!(flusher.submit(Op::Flush));
    loop {
        let mut look_again = pin!(local::sleep(LOOK_AGAIN));
        let done = poll_fn(|cx| match flush.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done.result)),
            Poll::Pending => look_again.as_mut().poll(cx).map(|()| None),
        });
        if let Some(result) = done.await {
            return result;
        }
        if options.abandon && options.cancel.is_set() {
            let text = "stopped on request while the destination was flushed; it may not be durable";
            return Err(Error::new(Kind::Cancelled, text));
        }
    }
}

/// One job a part; where source and destination overlap, one a range.
fn pieces(parts: &[Part], dest: &Arc<dyn Device>, at: u64) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut to = at;
    let mut skipped = 0;
    for part in parts {
        let same = is_one_device(&part.source, dest)?;
        let mut segments = Vec::with_capacity(part.ranges.len());
        for range in &part.ranges {
            segments.push(Segment { source: range.offset(), dest: to, len: range.len() });
            to = to.saturating_add(range.len());
        }
        let job = |segments: &[Segment]| Job::new(segments, part.source.size(), dest.size(), same);
        // A later range may read what an earlier one wrote: joined to one, it would read what was there before.
        let apart = !same || segments.len() < 2 || {
            let written = ByteRange::new(segments[0].dest, to - segments[0].dest);
            written.is_some_and(|written| !part.ranges.iter().any(|range| range.overlaps(written)))
        };
        let whole = if apart { job(&segments) } else { Err(Error::new(Kind::Overlap, "in order")) };
        match whole {
            Ok(job) => {
                pieces.push(Piece {
                    source: part.source.clone(),
                    job,
                    skipped: std::mem::take(&mut skipped),
                });
            }
            Err(error) if same && error.kind() == Kind::Overlap => {
                for segment in segments {
                    if segment.source == segment.dest {
                        skipped += segment.len;
                        continue;
                    }
                    let job = job(&[segment])?;
                    let skipped = std::mem::take(&mut skipped);
                    pieces.push(Piece { source: part.source.clone(), job, skipped });
                }
            }
            Err(error) => return Err(error),
        }
    }
    if skipped > 0 {
        let job = Job::new(&[], dest.size(), dest.size(), false)?;
        pieces.push(Piece { source: dest.clone(), job, skipped });
    }
    Ok(pieces)
}

/// Claims on the leaves of everything that is read and written.
fn claims(pieces: &[Piece], dest: &Arc<dyn Device>) -> Result<Claims> {
    let mut ranges = Vec::new();
    let mut claims = Claims::new();
    for piece in pieces {
        for segment in piece.job.segments() {
            leaf_ranges(&piece.source, segment.source_range(), Access::Read, &mut ranges)?;
            claims.extend(ranges.drain(..).map(|(leaf, range)| Claim::shared(leaf, range)));
            leaf_ranges(dest, segment.dest_range(), Access::Write, &mut ranges)?;
            claims.extend(ranges.drain(..).map(|(leaf, range)| Claim::exclusive(leaf, range)));
        }
    }
    Ok(claims)
}

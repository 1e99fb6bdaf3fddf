//! What a flush does first on a device that owes zeroes: it stores them, each range claimed as a copy would claim it.
//! Where the list of what is owed has grown too long, a write that may make it longer does the same first with some of
//! it.
//!
//! A write in flight must not be overwritten by zeroes that were owed before it, hence the claims. They are taken on
//! the leaves, and the zeroes go to the leaves: what a leg of a mirror owes is no business of the other.

use super::{Claim, Claims, CopyTicket, CoreLocks};
use crate::block::lazy;
use crate::block::{
    Buf, ByteRange, Completion, Counters, Device, Error, Identity, Kind, Op, Queue, Request, Result,
    Submitter,
};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes claimed at once, unless storing them turns out to be quick: what others may have to wait for.
const STEP_BYTES: u64 = 256 << 20;
/// A step that took less makes the next one twice as long; one that took more is followed by a short one. Zeroes of
/// files cost as much as there are extents: an empty PiB is stored as fast as a MiB.
const STEP_TIME: Duration = Duration::from_millis(20);
/// Most ranges claimed at once.
const STEP_RANGES_MAX: usize = 64;
/// Longest write of zeroes, in bytes, where the device cannot zero by itself.
const WRITE_MAX: u64 = 1 << 20;

/// Most requests of a step in flight.
const STEP_OUT_MAX: usize = 64;
/// Ranges that a write stores which found too many of them.
const RELIEF: usize = 256;

/// The requests that wait for zeroes to be stored: the first of them at work, the others behind it.
#[derive(Default)]
pub(super) struct Settler {
    jobs: VecDeque<Job>,
    outlets: Vec<Outlet>,
}

/// One request, and what was owed when it came in and has not been looked at yet.
struct Job {
    request: Request,
    /// Bytes of the next step.
    step_bytes: u64,
    todo: VecDeque<(Arc<dyn Device>, ByteRange)>,
    step: Option<Step>,
}

/// Ranges of one leaf that are claimed, or wait for it.
struct Step {
    ticket: CopyTicket,
    outlet: usize,
    ranges: SmallVec<[ByteRange; 4]>,
    /// Since when all of it is claimed.
    granted: Option<Instant>,
    /// To be stored.
    left: VecDeque<ByteRange>,
    /// Being stored: tag, range, and whether by writing.
    out: Vec<(u64, ByteRange, bool)>,
    error: Option<Error>,
}

/// A queue of a leaf, for zeroes alone.
struct Outlet {
    leaf: Arc<dyn Device>,
    queue: Box<dyn Queue>,
    submitter: Submitter,
    batch: VecDeque<Request>,
    done: Vec<Completion>,
    next_tag: u64,
    /// The device has no zeroing of its own.
    by_writing: bool,
}

/// How far a job got.
enum Went {
    Waits,
    Ends(Result<()>),
}

impl Settler {
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Takes a flush of `device`, with what is owed now; or a write, with some of what is owed on each leaf that owes
    /// too much.
    pub(super) fn add(&mut self, device: &Arc<dyn Device>, request: Request) {
        let mut todo = VecDeque::new();
        let is_write = request.op().is_write();
        let full = |leaf: &Arc<dyn Device>| !is_write || lazy::too_many(&**leaf);
        for leaf in lazy::leaves(device).into_iter().filter(full) {
            let ranges = lazy::within(&*leaf, ByteRange::to(leaf.size())).into_iter();
            let most = if is_write { RELIEF } else { usize::MAX };
            todo.extend(ranges.take(most).map(|range| (leaf.clone(), range)));
        }
        self.jobs.push_back(Job { request, step_bytes: STEP_BYTES, todo, step: None });
    }

    /// Does what can be done now. Requests whose zeroes are stored go to `ready`, those that failed end.
    pub(super) fn advance(
        &mut self,
        locks: &CoreLocks,
        ready: &mut VecDeque<Request>,
        ended: &mut Vec<Completion>,
    ) {
        while let Some(job) = self.jobs.front_mut() {
            let Went::Ends(result) = job.go_on(&mut self.outlets, locks) else { return };
            let request = self.jobs.pop_front().expect("looked at above").request;
            match result {
                Ok(()) => ready.push_back(request),
                Err(error) => ended.push(request.complete_err(error)),
            }
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.outlets.iter().for_each(|outlet| sum += outlet.queue.counters());
        sum
    }
}

impl Job {
    fn go_on(&mut self, outlets: &mut Vec<Outlet>, locks: &CoreLocks) -> Went {
        loop {
            let step = match &mut self.step {
                Some(step) => step,
                none => match next_step(&mut self.todo, self.step_bytes, outlets, locks) {
                    Ok(Some(step)) => none.insert(step),
                    Ok(None) => return Went::Ends(Ok(())),
                    Err(error) => return Went::Ends(Err(error)),
                },
            };
            let outlet = &mut outlets[step.outlet];
            if step.granted.is_none() {
                if !step.ticket.is_granted() {
                    return Went::Waits;
                }
                step.granted = Some(Instant::now());
                // What was written meanwhile is owed no more: only now is it certain what is.
                step.left =
                    step.ranges.iter().flat_map(|&range| lazy::within(&*outlet.leaf, range)).collect();
            }
            let more = outlet.store(step);
            // The claims are held until the device has let go, also after an error.
            if step.out.is_empty() && (step.left.is_empty() || step.error.is_some()) {
                let Some(Step { ticket, error, granted, .. }) = self.step.take() else { continue };
                locks.end_copy(ticket);
                let quick = granted.is_some_and(|at| at.elapsed() < STEP_TIME);
                self.step_bytes = if quick { self.step_bytes.saturating_mul(2) } else { STEP_BYTES };
                if let Some(error) = error {
                    return Went::Ends(Err(error));
                }
            } else if !more {
                return Went::Waits;
            }
        }
    }
}

/// Claims the next ranges that are still owed, all of one leaf, about `most` bytes.
fn next_step(
    todo: &mut VecDeque<(Arc<dyn Device>, ByteRange)>,
    most: u64,
    outlets: &mut Vec<Outlet>,
    locks: &CoreLocks,
) -> Result<Option<Step>> {
    let (mut ranges, mut bytes) = (SmallVec::new(), 0);
    let mut of: Option<Arc<dyn Device>> = None;
    while let Some((leaf, range)) = todo.front() {
        let other = of.as_ref().is_some_and(|of| !is_same(of, leaf));
        if other || ranges.len() == STEP_RANGES_MAX || (bytes > 0 && bytes + range.len() > most) {
            break;
        }
        let Some((leaf, range)) = todo.pop_front() else { break };
        let block = u64::from(leaf.limits().block_size.get());
        let rest = range.after((most - most % block).max(block));
        let range = range.prefix(range.len() - rest.len());
        if !rest.is_empty() {
            todo.push_front((leaf.clone(), rest));
        }
        // LazyList no more: what took its place has completed, and the flush to come covers it.
        if !lazy::within(&*leaf, range).is_empty() {
            bytes += range.len();
            ranges.push(range);
            of = Some(leaf);
        }
    }
    let Some(leaf) = of else { return Ok(None) };
    let mut claims = Claims::new();
    if let Identity::Leaf { leaf, base } = leaf.identity() {
        claims.extend(ranges.iter().map(|&range| Claim::exclusive(leaf, super::queue::shifted(range, base))));
    }
    let outlet = match outlets.iter().position(|outlet| is_same(&outlet.leaf, &leaf)) {
        Some(known) => known,
        None => {
            outlets.push(Outlet::open(leaf)?);
            outlets.len() - 1
        }
    };
    let ticket = locks.begin_copy(claims);
    let (left, out) = (VecDeque::new(), Vec::new());
    Ok(Some(Step { ticket, outlet, ranges, granted: None, left, out, error: None }))
}

fn is_same(a: &Arc<dyn Device>, b: &Arc<dyn Device>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

impl Outlet {
    fn open(leaf: Arc<dyn Device>) -> Result<Self> {
        Ok(Self {
            queue: leaf.clone().open_queue()?,
            leaf,
            submitter: Submitter::default(),
            batch: VecDeque::new(),
            done: Vec::new(),
            next_tag: 0,
            by_writing: false,
        })
    }

    /// Submits what the step has left, and takes in what has completed; false when nothing has.
    fn store(&mut self, step: &mut Step) -> bool {
        while step.error.is_none()
            && step.out.len() < if self.by_writing { 1 } else { STEP_OUT_MAX }
            && let Some(range) = step.left.pop_front()
        {
            if let Err(error) = self.begin(range, step) {
                step.error = Some(error);
            }
        }
        if !self.batch.is_empty() {
            self.queue.submit(&mut self.batch);
        }
        self.queue.poll(&mut self.done);
        self.submitter.take_aborted(&mut self.done);
        let more = !self.done.is_empty();
        for done in self.done.drain(..) {
            let at = step.out.iter().position(|(tag, ..)| *tag == done.tag);
            let (_, range, written) = step.out.swap_remove(at.expect("a request completes once"));
            match done.result {
                Ok(()) if done.good_bytes >= range.len() => {}
                Ok(()) => {
                    let text = format!("the device reported success for {} bytes of zeroes", done.good_bytes);
                    step.error.get_or_insert(Error::new(Kind::Io, text).on(self.leaf.name()).at(range));
                }
                Err(error) if error.kind() == Kind::Unsupported && !written => {
                    if !std::mem::replace(&mut self.by_writing, true) {
                        tracing::info!(device = self.leaf.name(), %error, "lazy zeroes are written");
                    }
                    step.left.push_back(range);
                }
                Err(error) => {
                    step.error.get_or_insert(error);
                }
            }
        }
        more
    }

    fn begin(&mut self, range: ByteRange, step: &mut Step) -> Result<()> {
        let mut now = range;
        let op = if self.by_writing {
            let block = u64::from(self.leaf.limits().block_size.get());
            now = range.prefix((WRITE_MAX - WRITE_MAX % block).max(block));
            if now != range {
                step.left.push_front(range.after(now.len()));
            }
            let Some(buf) = usize::try_from(now.len()).ok().and_then(Buf::alloc) else {
                let text = format!("no memory for {} bytes of zeroes to write", now.len());
                return Err(Error::new(Kind::NoMemory, text).on(self.leaf.name()).at(now));
            };
            Op::Write { range: now, buf, fua: false }
        } else {
            Op::WriteZeroes { range, may_unmap: true, lazy: false }
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        step.out.push((tag, now, self.by_writing));
        self.batch.push_back(self.submitter.request(tag, op));
        Ok(())
    }
}

//! Read and write through this process: many pieces in flight, bounded memory, exact good length.

use super::moved::{Moved, Then};
use super::plan::{Order, Sparse, Step};
use super::shared::{PIECE, Shared};
use crate::block::{Buf, ByteRange, Error, Kind, Method, Op, Result};
use crate::reactor::local;
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Unit in which the data is searched for zeroes, in bytes: the usual file system block. Of the destination's offsets.
const ZERO_UNIT: u64 = 4096;
/// The same where zeroes found have to be made by a request of their own, and that was not asked for: a shorter run is
/// written faster with the data around it.
const ZERO_RUN: u64 = 64 << 10;

/// Where an emulated stretch takes its bytes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bytes {
    /// The step's sources.
    Source,
    /// Zeroes.
    Zero,
}

/// One piece: `at` bytes into the step, from `source` on the source leaf, `len` bytes.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: u64,
    source: u64,
    len: u64,
}

/// What became of one step's bytes on one leg.
#[derive(Default)]
pub(super) struct LegDone {
    /// Good stretches behind the prefix: start to end, as offsets into the step.
    stretches: BTreeMap<u64, u64>,
    /// Zeroes that were found and not written: start, end and what became of them, as offsets into the step.
    zeroes: Vec<(Range<u64>, Method)>,
    /// Where the stretch begins, as an offset into the step.
    from: u64,
    /// Length of the good prefix, in bytes from the start of the step.
    pub(super) good: u64,
    /// What failed on this leg.
    pub(super) error: Option<Error>,
}

impl LegDone {
    fn add(&mut self, at: u64, len: u64) {
        if len == 0 {
            return;
        }
        self.stretches.insert(at, at + len);
        while let Some(entry) = self.stretches.first_entry() {
            if *entry.key() > self.good {
                break;
            }
            // A run noted twice, by zeroing and then by writing, may end before the prefix does.
            self.good = self.good.max(entry.remove());
        }
    }

    /// A run of zeroes is written after all.
    fn take_back(&mut self, run: &Range<u64>) {
        let holds = |(zeroes, _): &(Range<u64>, Method)| zeroes.start <= run.start && run.end <= zeroes.end;
        if let Some(at) = self.zeroes.iter().rposition(holds) {
            let (zeroes, method) = self.zeroes.swap_remove(at);
            let rest = [zeroes.start..run.start, run.end..zeroes.end];
            self.zeroes.extend(rest.into_iter().filter(|r| !r.is_empty()).map(|r| (r, method)));
        }
    }

    /// Good bytes by method: the zeroes apart that were found and not written.
    fn methods(&self) -> [(Method, u64); 3] {
        let of = |method| {
            let runs = self.zeroes.iter().filter(|(_, m)| *m == method);
            runs.map(|(run, _)| run.end.min(self.good).saturating_sub(run.start)).sum::<u64>()
        };
        let (skipped, zeroed) = (of(Method::Skip), of(Method::WriteZeroes));
        let written = (self.good - self.from).saturating_sub(skipped + zeroed);
        [(Method::Emulated, written), (Method::Skip, skipped), (Method::WriteZeroes, zeroed)]
    }
}

/// What became of an emulated step.
pub(super) struct Emulated {
    /// One entry for each leg asked for, in that order.
    pub(super) legs: SmallVec<[LegDone; 1]>,
    /// What ended it for all legs: the source failed, or the copy was stopped.
    pub(super) error: Option<Error>,
}

/// Moves the bytes of a step to some of its legs; one answer each.
pub(super) async fn legs(shared: &Rc<Shared>, step: &Rc<Step>, legs: &[usize]) -> SmallVec<[Moved; 1]> {
    let mut done = emulate(shared, step, legs, 0..step.len, Bytes::Source).await;
    let ends = legs.iter().zip(done.legs).map(|(&leg, one)| {
        shared.read_and_moved(leg, &one.methods());
        let then = match one.error {
            Some(e) => Then::Failed(e),
            None if one.good < step.len => {
                Then::Failed(done.error.take().unwrap_or_else(|| shared.stop_reason()))
            }
            None => Then::Done,
        };
        Moved { good: one.good, touched: 0, then }
    });
    ends.collect()
}

/// Moves the bytes `part` of `step` (offsets into it) to those of its legs named in `legs`, by reading once and writing
/// to each. A leg that fails is left alone from then on; the others go on.
pub(super) async fn emulate(
    shared: &Rc<Shared>,
    step: &Rc<Step>,
    legs: &[usize],
    part: Range<u64>,
    bytes: Bytes,
) -> Emulated {
    let end = part.end;
    let fresh =
        legs.iter().map(|_| LegDone { from: part.start, good: part.start, ..LegDone::default() }).collect();
    let done = Rc::new(RefCell::new(Emulated { legs: fresh, error: None }));
    let in_flight = Rc::new(Cell::new(0usize));
    let idle = Rc::new(local::Notify::default());
    let legs: Rc<[usize]> = legs.into();
    let mut pieces: Box<dyn Iterator<Item = Piece>> = Box::new(Cutter::new(shared, step, &legs).pieces(part));
    if step.order == Order::Backward {
        let backward: Vec<Piece> = pieces.collect();
        pieces = Box::new(backward.into_iter().rev());
    }
    for piece in pieces {
        if shared.stopped() || done.borrow().is_lost() {
            break;
        }
        shared.pace(Method::Emulated, piece.len).await;
        let buf = match shared.buffer().await {
            Ok(buf) => buf,
            Err(error) => {
                done.borrow_mut().error.get_or_insert(error);
                break;
            }
        };
        in_flight.set(in_flight.get() + 1);
        let task = {
            let (shared, step, legs) = (shared.clone(), step.clone(), legs.clone());
            let (done, in_flight, idle) = (done.clone(), in_flight.clone(), idle.clone());
            async move {
                let mover = Mover { shared: &shared, step: &step, legs: &legs, done: &done };
                mover.piece(piece, buf, bytes).await;
                shared.buffer_freed();
                in_flight.set(in_flight.get() - 1);
                idle.notify_one();
            }
        };
        if step.order == Order::Any && !shared.options.in_order {
            drop(local::spawn(task));
        } else {
            task.await;
        }
    }
    while in_flight.get() > 0 {
        idle.notified().await;
    }
    let mut done = done.borrow_mut();
    let unfinished = done.legs.iter().any(|l| l.error.is_none() && l.good < end);
    if unfinished && done.error.is_none() {
        done.error = Some(shared.stop_reason());
    }
    Emulated { legs: std::mem::take(&mut done.legs), error: done.error.take() }
}

impl Emulated {
    /// True when nothing is left to write to.
    fn is_lost(&self) -> bool {
        self.error.is_some() || self.legs.iter().all(|l| l.error.is_some())
    }
}

/// Cuts a step into pieces: at multiples of [`PIECE`] on the first leg, and at block borders, so that all but the
/// ragged edges are aligned for every device.
struct Cutter<'a> {
    step: &'a Step,
    /// Block size in bytes on the first leg, and where on it the step starts.
    block: u64,
    start: u64,
}

impl<'a> Cutter<'a> {
    fn new(shared: &Shared, step: &'a Step, legs: &[usize]) -> Self {
        let source_block = shared.block_size(step.source_leaf);
        let blocks = legs.iter().map(|&l| shared.block_size(step.legs[l].place.leaf));
        let block = blocks.max().unwrap_or(1).max(source_block);
        Self { step, block, start: step.legs[legs[0]].place.offset }
    }

    fn pieces(&self, part: Range<u64>) -> impl Iterator<Item = Piece> + 'static {
        let (block, start) = (self.block, self.start);
        let parts: SmallVec<[(u64, u64, u64); 1]> = {
            let mut at = 0;
            self.step
                .sources
                .iter()
                .map(|p| {
                    at += p.len;
                    (at - p.len, p.leaf_offset, p.len)
                })
                .collect()
        };
        parts.into_iter().flat_map(move |(part_at, source, part_len)| {
            let mut at = part_at.max(part.start);
            let end = (part_at + part_len).min(part.end);
            std::iter::from_fn(move || {
                if at >= end {
                    return None;
                }
                let place = start + at;
                let left = end - at;
                let head = place % block;
                let len = if head != 0 {
                    (block - head).min(left)
                } else {
                    let to_border = PIECE - place % PIECE;
                    let len = left.min(to_border);
                    if len > block { len - len % block } else { len }
                };
                let piece = Piece { at, source: source + (at - part_at), len };
                at += len;
                Some(piece)
            })
        })
    }
}

/// Moves pieces of one step.
struct Mover<'a> {
    shared: &'a Rc<Shared>,
    step: &'a Step,
    legs: &'a [usize],
    done: &'a RefCell<Emulated>,
}

impl Mover<'_> {
    /// Reads one piece and writes it to every leg, in as many turns as the buffer is short: a pool without memory has
    /// buffers of a page.
    async fn piece(&self, piece: Piece, mut buf: Buf, bytes: Bytes) {
        let mut moved = 0;
        while moved < piece.len && !self.done.borrow().is_lost() {
            let len = (piece.len - moved).min(buf.capacity() as u64);
            // Where the destination lies behind its source, the back of a piece goes first too.
            let skip = if self.step.order == Order::Backward { piece.len - moved - len } else { moved };
            let part = Piece { at: piece.at + skip, source: piece.source + skip, len };
            buf = self.part(part, buf, bytes).await;
            moved += len;
        }
    }

    async fn part(&self, part: Piece, mut buf: Buf, bytes: Bytes) -> Buf {
        let len = usize::try_from(part.len).expect("at most a buffer");
        if bytes == Bytes::Zero {
            buf.set_len(len);
            buf.fill(0);
            return self.write(part.at, buf).await;
        }
        let client = self.shared.client(self.step.source_leaf);
        let block = self.shared.block_size(self.step.source_leaf);
        if self.shared.abandoned() {
            return buf;
        }
        let in_flight = self.shared.options.pulse.reads();
        let (buf, result) = read_bytes(&client, block, part.source, len, buf).await;
        drop(in_flight);
        if self.shared.abandoned() {
            // The copy has ended meanwhile: its destination is not its own any more.
            return buf;
        }
        if let Err(error) = result {
            self.shared.progress.source_failed.set(true);
            self.done.borrow_mut().error.get_or_insert(error);
            return buf;
        }
        self.shared.count_read(part.len);
        if self.step.searched && !self.shared.options.in_order {
            self.write_sparse(part.at, buf).await
        } else {
            self.write(part.at, buf).await
        }
    }

    /// Writes the buffer at `at` bytes into the step, to every leg that has not failed.
    async fn write(&self, at: u64, mut buf: Buf) -> Buf {
        for (i, &leg) in self.legs.iter().enumerate() {
            if self.done.borrow().legs[i].error.is_some() {
                continue;
            }
            let place = self.step.legs[leg].place;
            let range = ByteRange::between(place.offset + at, place.offset + at + buf.len() as u64);
            let block = self.shared.block_size(place.leaf);
            let client = self.shared.client(place.leaf);
            let (back, good, result) = if range.is_aligned(block) {
                if self.shared.abandoned() {
                    return buf;
                }
                let _in_flight = self.shared.options.pulse.writes();
                let done = client.submit(Op::Write { range, buf, fua: false }).await;
                (done.buf, done.good_bytes, done.result)
            } else {
                // Neighbouring pieces may share the block at their seam: one at a time.
                let _turn = self.shared.ragged_turn().await;
                if self.shared.abandoned() {
                    return buf;
                }
                let _in_flight = self.shared.options.pulse.writes();
                write_ragged(&client, block, range, buf).await
            };
            buf = back;
            self.shared.count_written(good);
            self.note(i, at, good, result);
        }
        buf
    }

    /// Writes a piece but for its runs of zeroes, which become holes (or stay as they are where the destination is
    /// zero).
    async fn write_sparse(&self, at: u64, mut buf: Buf) -> Buf {
        let unit = self.zero_unit();
        let (mut from, len) = (0, buf.len());
        // Whole units of the destination, so that what is left out are whole blocks of it.
        let start = self.step.legs[self.legs[0]].place.offset + at;
        let unit_end = |from: usize| {
            let left = unit - (start + from as u64) % unit;
            len.min(from.saturating_add(usize::try_from(left).unwrap_or(len)))
        };
        while from < len {
            let mut end = unit_end(from);
            let zero = is_zero(&buf[from..end]);
            while end < len && is_zero(&buf[end..unit_end(end)]) == zero {
                end = unit_end(end);
            }
            let (run_at, run_len) = (at + from as u64, (end - from) as u64);
            if zero && self.step.dest_zero {
                for i in 0..self.legs.len() {
                    self.left_out(i, run_at..run_at + run_len, Method::Skip);
                    self.note(i, run_at, run_len, Ok(()));
                }
            } else if zero && self.zero(run_at, run_len).await {
                // Holes punched on every leg.
            } else {
                buf.narrow(from, end - from);
                buf = self.write(run_at, buf).await;
                buf.narrow(0, len);
            }
            from = end;
        }
        buf
    }

    /// Bytes that are zero or not as one: at least a block of every destination.
    fn zero_unit(&self) -> u64 {
        let asked_for = self.step.dest_zero || self.shared.options.policy.sparse == Sparse::Always;
        let least = if asked_for { ZERO_UNIT } else { ZERO_RUN };
        let blocks = self.legs.iter().map(|&leg| self.shared.block_size(self.step.legs[leg].place.leaf));
        blocks.fold(least, u64::max)
    }

    /// Takes down that a run of zeroes is not written.
    fn left_out(&self, leg: usize, run: Range<u64>, how: Method) {
        let mut done = self.done.borrow_mut();
        let zeroes = &mut done.legs[leg].zeroes;
        match zeroes.last_mut() {
            Some((last, method)) if last.end == run.start && *method == how => last.end = run.end,
            _ => zeroes.push((run, how)),
        }
    }

    /// Zeroes a run on every leg that has not failed. False: some leg cannot, and the zeroes must be written.
    async fn zero(&self, at: u64, len: u64) -> bool {
        let aligned = |&leg: &usize| {
            let place = self.step.legs[leg].place;
            let range = ByteRange::between(place.offset + at, place.offset + at + len);
            range.is_aligned(self.shared.block_size(place.leaf))
        };
        if !self.legs.iter().all(aligned) {
            return false;
        }
        for (i, &leg) in self.legs.iter().enumerate() {
            if self.done.borrow().legs[i].error.is_some() {
                continue;
            }
            let place = self.step.legs[leg].place;
            let range = ByteRange::between(place.offset + at, place.offset + at + len);
            let op = Op::WriteZeroes { range, may_unmap: true, lazy: false };
            if self.shared.abandoned() {
                return true;
            }
            let in_flight = self.shared.options.pulse.writes();
            let done = self.shared.client(place.leaf).submit(op).await;
            drop(in_flight);
            if done.result.as_ref().is_err_and(|e| e.kind() == Kind::Unsupported) {
                // Written after all, on the legs before too.
                let mut done = self.done.borrow_mut();
                done.legs.iter_mut().for_each(|one| one.take_back(&(at..at + len)));
                return false;
            }
            let good = done.good_bytes.min(len);
            self.left_out(i, at..at + good, Method::WriteZeroes);
            self.note(i, at, good, done.result);
        }
        true
    }

    fn note(&self, leg: usize, at: u64, good: u64, result: Result<()>) {
        if leg == 0 {
            self.shared.moving(good);
            self.shared.data(good);
        }
        let mut done = self.done.borrow_mut();
        done.legs[leg].add(at, good);
        if let ([only], dest) = (&*done.legs, self.step.dest) {
            self.shared.good_so_far(dest + only.from, dest + only.good);
        }
        if let Err(error) = result {
            done.legs[leg].error.get_or_insert(error);
        }
    }
}

/// Reads `len` bytes at `offset` of a leaf whose blocks are `block` bytes: where an edge falls inside a block, the
/// whole block is read and the bytes asked for are moved to the front of the buffer.
pub(super) async fn read_bytes(
    client: &local::Client,
    block: u64,
    offset: u64,
    len: usize,
    mut buf: Buf,
) -> (Buf, Result<()>) {
    let skip = offset % block;
    let wide = (skip + len as u64).next_multiple_of(block);
    let size = usize::try_from(wide).expect("a piece and two blocks");
    if size > buf.capacity() {
        match Buf::alloc(size) {
            Some(bigger) => buf = bigger,
            None => return (buf, Err(Error::new(Kind::NoMemory, "no memory for one more block"))),
        }
    }
    buf.set_len(size);
    let range = ByteRange::between(offset - skip, offset - skip + wide);
    let done = client.submit(Op::Read { range, buf }).await;
    let mut buf = done.buf;
    if done.result.is_ok() {
        let skip = usize::try_from(skip).expect("less than a block");
        if skip > 0 {
            buf.copy_within(skip..skip + len, 0);
        }
        buf.set_len(len);
    }
    (buf, done.result)
}

/// Writes bytes whose edges fall inside blocks: reads the blocks, lays the bytes over them, writes them back. The range
/// lock of the step covers the whole blocks.
async fn write_ragged(
    client: &local::Client,
    block: u64,
    range: ByteRange,
    buf: Buf,
) -> (Buf, u64, Result<()>) {
    let skip = range.offset() % block;
    let wide = (skip + range.len()).next_multiple_of(block);
    let around = ByteRange::between(range.offset() - skip, range.offset() - skip + wide);
    let Some(under) = usize::try_from(wide).ok().and_then(Buf::alloc) else {
        return (buf, 0, Err(Error::new(Kind::NoMemory, "no memory for one more block")));
    };
    let done = client.submit(Op::Read { range: around, buf: under }).await;
    if done.result.is_err() {
        return (buf, 0, done.result);
    }
    let mut under = done.buf;
    let skip_at = usize::try_from(skip).expect("less than a block");
    under[skip_at..skip_at + buf.len()].copy_from_slice(&buf);
    let done = client.submit(Op::Write { range: around, buf: under, fua: false }).await;
    let good = done.good_bytes.saturating_sub(skip).min(range.len());
    (buf, good, done.result)
}

fn is_zero(bytes: &[u8]) -> bool {
    // Compared with itself one byte further on: the usual trick, at the speed of a memory compare.
    bytes.is_empty() || bytes[0] == 0 && bytes[1..] == bytes[..bytes.len() - 1]
}

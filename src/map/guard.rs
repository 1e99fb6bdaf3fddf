//! Guards of a map's resolutions: they pin the legs' own, and tell each leg and the layout what was written.

use super::legs::Legs;
use super::mapping::{Mapping, Parts, Written};
use crate::block::{
    Access, ByteRange, Error, Guard, GuardDuty, Kind, Leg, LegResult, Piece, Resolution, Result,
};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;

/// Where `range` is read from.
pub(super) fn resolve_read<M: Mapping>(map: Arc<Legs<M>>, range: ByteRange) -> Result<Resolution> {
    // Read before the parts: a change in between shows as a guard that is not valid.
    let then = map.mapping.generation();
    let mut pieces = SmallVec::new();
    let mut guards: SmallVec<[Guard; 2]> = SmallVec::new();
    for part in map.mapping.sources(range) {
        let from = part.legs[0];
        match map.devices[from.leg].clone().resolve(from.run(part.range.len()), Access::Read) {
            Ok(resolution) => {
                pieces.extend(resolution.pieces);
                guards.push(resolution.guard);
            }
            Err(error) => {
                guards.into_iter().for_each(Guard::release);
                return Err(error);
            }
        }
    }
    Ok(Resolution { pieces, guard: Guard::new(ReadGuard { map, guards, then }) })
}

/// Where `range` is to be written: every leg of each part.
pub(super) fn resolve_write<M: Mapping>(map: Arc<Legs<M>>, range: ByteRange) -> Result<Resolution> {
    let mut pieces = SmallVec::new();
    let mut parts = Vec::new();
    match resolve_parts(&map, map.mapping.parts(range), &mut pieces, &mut parts) {
        Ok(()) => Ok(Resolution { pieces, guard: Guard::new(WriteGuard { map, parts }) }),
        Err(error) => {
            // Nothing was begun on the legs that were resolved before.
            parts.into_iter().flat_map(|part| part.legs).for_each(|leg| leg.guard.release());
            Err(error)
        }
    }
}

fn resolve_parts<M: Mapping>(
    map: &Legs<M>,
    list: Parts,
    pieces: &mut SmallVec<[Piece; 1]>,
    parts: &mut Vec<PartGuard>,
) -> Result<()> {
    for part in list {
        let first = pieces.len();
        parts.push(PartGuard { range: part.range, first, legs: SmallVec::new(), from: Vec::new() });
        let guard = parts.last_mut().expect("pushed just now");
        let mut runs: SmallVec<[SmallVec<[Piece; 1]>; 2]> = SmallVec::new();
        for to in &part.legs {
            let resolution = map.devices[to.leg].clone().resolve(to.run(part.range.len()), Access::Write)?;
            let shape = resolution.pieces.iter().map(|p| (p.len, p.legs.len())).collect();
            guard.legs.push(LegGuard { leg: to.leg, guard: resolution.guard, shape });
            runs.push(resolution.pieces);
        }
        guard.from = join(&runs, pieces);
    }
    Ok(())
}

/// Guard of a resolution for reading: pins, and has nothing to mark.
struct ReadGuard<M> {
    map: Arc<Legs<M>>,
    guards: SmallVec<[Guard; 2]>,
    /// The layout's generation when it chose the legs.
    then: u64,
}

impl<M: Mapping> GuardDuty for ReadGuard<M> {
    fn still_valid(&self) -> bool {
        self.guards.iter().all(Guard::still_valid) && self.map.mapping.generation() == self.then
    }
    fn commit(self: Box<Self>, _: &[LegResult]) -> (u64, Result<()>) {
        self.release();
        (0, Ok(()))
    }
    fn release(self: Box<Self>) {
        self.guards.into_iter().for_each(Guard::release);
    }
}

/// Where a piece of a part's resolution comes from.
struct From {
    /// Number of the leg's own piece, leg by leg.
    piece: SmallVec<[usize; 2]>,
    /// Length in bytes.
    len: u64,
}

/// Lays the resolutions of one range on several legs over each other, and appends the pieces: one ends where a piece of
/// any ends, and has the legs of all.
fn join(runs: &[SmallVec<[Piece; 1]>], pieces: &mut SmallVec<[Piece; 1]>) -> Vec<From> {
    let mut from = Vec::new();
    let mut at: SmallVec<[usize; 2]> = runs.iter().map(|_| 0).collect();
    let mut used: SmallVec<[u64; 2]> = runs.iter().map(|_| 0).collect();
    loop {
        let present =
            runs.iter().zip(&at).map(|(run, &at)| run.get(at)).collect::<Option<SmallVec<[_; 2]>>>();
        let Some(present) = present else { return from };
        let len = present.iter().zip(&used).map(|(piece, used)| piece.len - used).min().unwrap_or(0);
        let moved = |leg: &Leg, used: u64| Leg { device: leg.device.clone(), offset: leg.offset + used };
        let legs =
            present.iter().zip(&used).flat_map(|(p, &used)| p.legs.iter().map(move |leg| moved(leg, used)));
        pieces.push(Piece { len, legs: legs.collect() });
        from.push(From { piece: at.clone(), len });
        for (side, piece) in present.into_iter().enumerate() {
            used[side] += len;
            if used[side] == piece.len {
                at[side] += 1;
                used[side] = 0;
            }
        }
    }
}

/// The shape of one leg's resolution: length and number of legs of each of its pieces.
type Shape = SmallVec<[(u64, usize); 1]>;

struct LegGuard {
    leg: usize,
    guard: Guard,
    shape: Shape,
}

/// One part of a range to write.
struct PartGuard {
    range: ByteRange,
    /// Number of its first piece in the whole resolution.
    first: usize,
    legs: SmallVec<[LegGuard; 2]>,
    from: Vec<From>,
}

impl PartGuard {
    /// What was written on the leg `side` of this part, in the numbers of that leg's own resolution.
    ///
    /// A leg's piece may have been cut into several of ours: its good prefix goes on as long as they are whole.
    fn on_side(&self, side: usize, written: &HashMap<(usize, usize), u64>) -> Vec<LegResult> {
        let mut results: Vec<LegResult> = Vec::new();
        // Bytes of the leg's present piece that lie before ours.
        let mut before = 0;
        for (index, from) in self.from.iter().enumerate() {
            let piece = from.piece[side];
            if index > 0 && self.from[index - 1].piece[side] != piece {
                before = 0;
            }
            let legs_before =
                self.legs[..side].iter().zip(&from.piece).map(|(leg, &piece)| leg.shape[piece].1);
            let first_leg: usize = legs_before.sum();
            for leg in 0..self.legs[side].shape[piece].1 {
                let place = (self.first + index, first_leg + leg);
                let good_bytes = written.get(&place).map_or(0, |&g| g.min(from.len));
                if before == 0 {
                    results.push(LegResult { piece, leg, good_bytes });
                } else if let Some(held) = results.iter_mut().rev().find(|r| r.piece == piece && r.leg == leg)
                    && held.good_bytes == before
                {
                    held.good_bytes += good_bytes;
                }
            }
            before += from.len;
        }
        results
    }
}

/// Tells all legs what was written, in their own numbers, and has the layout settle it as a write through the map would
/// have been.
struct WriteGuard<M> {
    map: Arc<Legs<M>>,
    parts: Vec<PartGuard>,
}

impl<M: Mapping> GuardDuty for WriteGuard<M> {
    fn still_valid(&self) -> bool {
        self.parts.iter().flat_map(|part| &part.legs).all(|leg| leg.guard.still_valid())
    }
    fn commit(self: Box<Self>, written: &[LegResult]) -> (u64, Result<()>) {
        let mut by_leg: HashMap<(usize, usize), u64> = HashMap::new();
        for w in written {
            by_leg.entry((w.piece, w.leg)).and_modify(|g| *g = w.good_bytes.min(*g)).or_insert(w.good_bytes);
        }
        let (mut all, mut results) = (Vec::new(), Vec::new());
        // Each leg hears of its part, also after the first failure.
        for part in self.parts {
            let mine: SmallVec<[_; 2]> =
                (0..part.legs.len()).map(|side| part.on_side(side, &by_leg)).collect();
            let (mut good, mut ends) = (SmallVec::new(), Vec::new());
            for (leg, mine) in part.legs.into_iter().zip(mine) {
                let (here, result) = commit_leg(leg.guard, &leg.shape, &mine);
                good.push((leg.leg, here));
                ends.push((leg.leg, result));
            }
            all.push(Written { range: part.range, good });
            results.push(ends);
        }
        let settled = self.map.mapping.settle(&all);
        let Some((part, leg)) = settled.decided_by else { return (settled.good, Ok(())) };
        let decided = results.swap_remove(part).into_iter().find(|(on, _)| *on == leg);
        (settled.good, decided.map_or(Ok(()), |(_, result)| result))
    }
    fn release(self: Box<Self>) {
        self.parts.into_iter().flat_map(|part| part.legs).for_each(|leg| leg.guard.release());
    }
}

/// Tells one leg what was written, in its own numbers; the good prefix of its part of the range.
fn commit_leg(guard: Guard, shape: &Shape, written: &[LegResult]) -> (u64, Result<()>) {
    if let Some(result) = guard.commit(written) {
        return result;
    }
    // A plain device: its own results stand. Every leg of a piece must hold it.
    let mut good = 0;
    for (piece, &(len, legs)) in shape.iter().enumerate() {
        let on_leg = |leg| {
            let of_it = written.iter().filter(|w| w.piece == piece && w.leg == leg);
            of_it.map(|w| w.good_bytes.min(len)).min().unwrap_or(0)
        };
        let here = (0..legs).map(on_leg).min().unwrap_or(0);
        good += here;
        if here < len {
            let total: u64 = shape.iter().map(|&(len, _)| len).sum();
            let error = Error::new(Kind::Io, format!("{good} of {total} bytes are known to be written"));
            return (good, Err(error));
        }
    }
    (good, Ok(()))
}

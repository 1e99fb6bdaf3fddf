//! The ranges that are owed zeroes, each with the time since when.

use crate::block::ByteRange;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Ranges of one device, in order, apart from each other; touching ones are merged.
pub(super) type Parts = SmallVec<[ByteRange; 2]>;

/// LazyList ranges. Time is counted in additions.
#[derive(Default)]
pub(super) struct LazyList {
    /// By first byte; no two overlap.
    pieces: BTreeMap<u64, Piece>,
    bytes: u64,
    clock: u64,
}

#[derive(Clone, Copy)]
struct Piece {
    end: u64,
    since: u64,
}

impl LazyList {
    /// Bytes owed in all.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Pieces held.
    pub(super) fn count(&self) -> usize {
        self.pieces.len()
    }

    /// Pieces that share bytes with `range`.
    pub(super) fn touched(&self, range: ByteRange) -> usize {
        self.over(range).count()
    }

    /// The time: that of the latest addition.
    pub(super) const fn now(&self) -> u64 {
        self.clock
    }

    /// Owes all of `range`, anew where it was owed before.
    pub(super) fn add(&mut self, range: ByteRange) {
        self.remove(range, u64::MAX);
        self.clock += 1;
        if !range.is_empty() {
            self.pieces.insert(range.offset(), Piece { end: range.end(), since: self.clock });
            self.bytes += range.len();
        }
    }

    /// Owes no more what of `range` was owed at the time `until` and ever since.
    pub(super) fn remove(&mut self, range: ByteRange, until: u64) {
        let hit: SmallVec<[(u64, Piece); 4]> = self.over(range).filter(|(_, p)| p.since <= until).collect();
        for (start, piece) in hit {
            self.pieces.remove(&start);
            if start < range.offset() {
                self.pieces.insert(start, Piece { end: range.offset(), ..piece });
            }
            if piece.end > range.end() {
                self.pieces.insert(range.end(), piece);
            }
            self.bytes -= piece.end.min(range.end()) - start.max(range.offset());
        }
    }

    /// The owed parts of `range`.
    pub(super) fn within(&self, range: ByteRange) -> Parts {
        let mut parts = Parts::new();
        for (start, piece) in self.over(range) {
            let part = ByteRange::between(start.max(range.offset()), piece.end.min(range.end()));
            match parts.last_mut() {
                Some(last) if last.end() == part.offset() => {
                    *last = ByteRange::between(last.offset(), part.end());
                }
                _ => parts.push(part),
            }
        }
        parts
    }

    /// Whether the front of `range` is owed, and for how many bytes that is so.
    pub(super) fn front(&self, range: ByteRange) -> (bool, u64) {
        let mut end = range.offset();
        for (start, piece) in self.over(range) {
            if start > end {
                let owed = end > range.offset();
                return if owed { (true, end - range.offset()) } else { (false, start - range.offset()) };
            }
            end = piece.end.min(range.end());
        }
        let owed = end > range.offset();
        (owed, if owed { end - range.offset() } else { range.len() })
    }

    /// The pieces that share bytes with `range`, in order.
    fn over(&self, range: ByteRange) -> impl Iterator<Item = (u64, Piece)> {
        let before = self.pieces.range(..range.offset()).next_back().filter(|(_, p)| p.end > range.offset());
        let inside = self.pieces.range(range.offset()..range.end());
        let all = before.into_iter().chain(inside).map(|(&start, &piece)| (start, piece));
        all.filter(move |_| !range.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(at: u64, len: u64) -> ByteRange {
        ByteRange::new(at, len).unwrap()
    }

    proptest! {
        #[test]
        fn lazy_ranges_equal_a_flat_array_of_times(
            steps in prop::collection::vec((any::<bool>(), 0u64..24, 0u64..12, 0u64..6), 1..40),
        ) {
            let mut owed = LazyList::default();
            let mut flat = [0u64; 40];
            for (add, at, len, ago) in steps {
                let until = owed.now().saturating_sub(ago);
                let bytes = &mut flat[at as usize..(at + len) as usize];
                if add {
                    owed.add(range(at, len));
                    bytes.fill(owed.now());
                } else {
                    owed.remove(range(at, len), until);
                    bytes.iter_mut().filter(|since| **since <= until).for_each(|since| *since = 0);
                }
                prop_assert_eq!(owed.bytes(), flat.iter().filter(|since| **since > 0).count() as u64);
                let asked = range(at / 2, len + 7);
                let parts = owed.within(asked);
                for byte in asked.offset()..asked.end() {
                    let inside = parts.iter().any(|p| p.contains(range(byte, 1)));
                    prop_assert_eq!(inside, flat[byte as usize] > 0);
                }
                prop_assert!(parts.windows(2).all(|two| two[0].end() < two[1].offset()));
                let (first, len) = owed.front(asked);
                let run = &flat[asked.offset() as usize..asked.end() as usize];
                let expected = run.iter().take_while(|since| (**since > 0) == (run[0] > 0)).count();
                prop_assert_eq!((first, len), (run[0] > 0, expected as u64));
            }
        }
    }

    #[test]
    fn what_was_owed_later_stays() {
        let mut owed = LazyList::default();
        owed.add(range(0, 10));
        let then = owed.now();
        owed.add(range(4, 2));
        owed.remove(range(0, 10), then);
        assert_eq!(owed.within(range(0, 10))[..], [range(4, 2)]);
        owed.remove(range(5, 1), owed.now());
        assert_eq!((owed.bytes(), owed.count(), owed.front(range(0, 4))), (1, 1, (false, 4)));
    }
}

//! What is claimed, and when two claims conflict.

use crate::block::{ByteRange, LeafId};
use smallvec::SmallVec;

/// How a range is claimed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Mode {
    /// The bytes are read: reads, compares, sources of copies.
    Shared,
    /// The bytes change: writes, zeroes, discards, destinations of copies.
    Exclusive,
}

/// A range of one leaf, to read or to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Canonical leaf.
    pub leaf: LeafId,
    /// Bytes of the leaf (not of a device on it: add the device's base).
    pub range: ByteRange,
    /// To read or to change.
    pub mode: Mode,
}

/// The claims of one request; two without allocation (a read or write, a mirrored write, a plain copy).
pub type Claims = SmallVec<[Claim; 2]>;

impl Claim {
    /// A claim to read.
    pub const fn shared(leaf: LeafId, range: ByteRange) -> Self {
        Self { leaf, range, mode: Mode::Shared }
    }

    /// A claim to change.
    pub const fn exclusive(leaf: LeafId, range: ByteRange) -> Self {
        Self { leaf, range, mode: Mode::Exclusive }
    }

    /// True when both share a byte of a leaf and at least one changes it. Empty ranges conflict with nothing.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.range.overlaps(other.range)
            && (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive)
            && self.leaf == other.leaf
    }
}

/// The claims of one copy, ordered by (leaf, mode, offset), merged: ranges of one leaf and mode neither touch nor
/// overlap, so that a look-up is a binary search however many source ranges the copy has.
#[derive(Debug)]
pub(super) struct ClaimSet {
    all: Claims,
    /// Those that change bytes, once more: few, and the only ones that two sets need be compared by.
    exclusive: Claims,
}

impl ClaimSet {
    pub(super) fn new(mut claims: Claims) -> Self {
        claims.retain(|c| !c.range.is_empty());
        claims.sort_unstable_by_key(|c| (c.leaf, c.mode, c.range));
        claims.dedup_by(|next, kept| {
            let merge =
                next.leaf == kept.leaf && next.mode == kept.mode && next.range.offset() <= kept.range.end();
            if merge {
                let end = kept.range.end().max(next.range.end());
                kept.range = ByteRange::between(kept.range.offset(), end);
            }
            merge
        });
        let exclusive = claims.iter().filter(|c| c.mode == Mode::Exclusive).copied().collect();
        Self { all: claims, exclusive }
    }

    /// True when one of the claims is on one of `leaves`, which are in order.
    pub(super) fn touches_any(&self, leaves: &[LeafId]) -> bool {
        let mut last = None;
        self.all.iter().any(|claim| {
            last.replace(claim.leaf) != Some(claim.leaf) && leaves.binary_search(&claim.leaf).is_ok()
        })
    }

    /// True when one of the claims conflicts with `claim`.
    pub(super) fn conflicts_with(&self, claim: &Claim) -> bool {
        self.hits(claim, Mode::Exclusive) || (claim.mode == Mode::Exclusive && self.hits(claim, Mode::Shared))
    }

    /// True when one of the claims conflicts with one of `claims`.
    pub(super) fn conflicts_with_any(&self, claims: &[Claim]) -> bool {
        claims.iter().any(|c| self.conflicts_with(c))
    }

    /// True when both sets hold conflicting claims.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        self.conflicts_with_any(&other.exclusive)
            || self.exclusive.iter().any(|claim| other.hits(claim, Mode::Shared))
    }

    /// True when a claim of this mode shares a byte with `claim`.
    fn hits(&self, claim: &Claim, mode: Mode) -> bool {
        // The first claim of the leaf and mode that ends after the start: those after it begin later still.
        let at = self
            .all
            .partition_point(|c| (c.leaf, c.mode, c.range.end()) <= (claim.leaf, mode, claim.range.offset()));
        self.all
            .get(at)
            .is_some_and(|c| c.leaf == claim.leaf && c.mode == mode && c.range.overlaps(claim.range))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::block::device::LeafSpace;
    use proptest::prelude::*;

    fn leaf(id: u64) -> LeafId {
        LeafId { space: LeafSpace::Memory, id: (id, 0) }
    }

    fn claim() -> impl Strategy<Value = Claim> {
        (0..2u64, 0..24u64, 0..6u64, any::<bool>()).prop_map(|(l, at, len, change)| {
            let range = ByteRange::new(at, len).unwrap();
            if change { Claim::exclusive(leaf(l), range) } else { Claim::shared(leaf(l), range) }
        })
    }

    #[test]
    fn the_edges_of_a_conflict() {
        let at = |from, to| ByteRange::between(from, to);
        let held = Claim::exclusive(leaf(1), at(10, 20));
        for (range, hit) in [
            (at(0, 10), false),
            (at(0, 11), true),
            (at(19, 30), true),
            (at(20, 30), false),
            (at(15, 15), false),
        ] {
            assert_eq!(held.conflicts(&Claim::shared(leaf(1), range)), hit, "{range}");
        }
        assert!(!held.conflicts(&Claim::exclusive(leaf(2), at(10, 20))), "another leaf");
        let read = Claim::shared(leaf(1), at(10, 20));
        assert!(!read.conflicts(&read), "two readers");
    }

    #[test]
    fn a_short_range_inside_a_long_one_does_not_cut_it() {
        let all = [(0, 10), (2, 4), (10, 12)]
            .map(|(from, to)| Claim::shared(leaf(1), ByteRange::between(from, to)));
        let set = ClaimSet::new(all.into_iter().collect());
        for byte in 0..12 {
            assert!(
                set.conflicts_with(&Claim::exclusive(leaf(1), ByteRange::between(byte, byte + 1))),
                "{byte}"
            );
        }
        assert!(!set.conflicts_with(&Claim::exclusive(leaf(1), ByteRange::between(12, 13))));
    }

    proptest! {
        #[test]
        fn a_set_conflicts_exactly_when_two_of_its_claims_do(
            a in prop::collection::vec(claim(), 0..8),
            b in prop::collection::vec(claim(), 0..8),
        ) {
            let plain = a.iter().any(|x| b.iter().any(|y| x.conflicts(y)));
            let (sa, sb) = (ClaimSet::new(a.iter().copied().collect()), ClaimSet::new(b.iter().copied().collect()));
            prop_assert_eq!(sa.conflicts(&sb), plain);
            prop_assert_eq!(sb.conflicts(&sa), plain);
            prop_assert_eq!(sa.conflicts_with_any(&b), plain);
        }
    }
}

//! How a map lays its bytes over its legs, without any I/O: what is new about a kind of map is one of these.

use crate::block::ByteRange;
use smallvec::SmallVec;

/// A place on a leg.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OnLeg {
    /// Number of the leg.
    pub leg: usize,
    /// Offset on it, in bytes.
    pub offset: u64,
}

impl OnLeg {
    /// The run of `len` bytes from there on.
    pub fn run(self, len: u64) -> ByteRange {
        ByteRange::between(self.offset, self.offset + len)
    }
}

/// A run of a map's bytes, and the legs that hold it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// The run, in the map's own offsets.
    pub range: ByteRange,
    /// Where it lies; never empty.
    pub legs: SmallVec<[OnLeg; 2]>,
}

/// Parts of a range, in order and without gaps; of an empty range one empty part.
pub type Parts = SmallVec<[Part; 2]>;

/// What a write left of one part on each of its legs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The part, in the map's own offsets.
    pub range: ByteRange,
    /// The leg, and the length of the good prefix on it, in bytes.
    pub good: SmallVec<[(usize, u64); 2]>,
}

/// What a write amounts to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// Length of the good prefix of the map, in bytes.
    pub good: u64,
    /// Where that is not the whole: the part and the leg whose failure decided it.
    pub decided_by: Option<(usize, usize)>,
}

/// The layout of a map over its legs. The map itself ([`super::Layer`]) makes the requests.
pub trait Mapping: Send + Sync + 'static {
    /// The parts of a range to write: each with every leg that must hold it.
    fn parts(&self, range: ByteRange) -> Parts;

    /// The parts of a range to read, each with the one leg to read it from.
    fn sources(&self, range: ByteRange) -> Parts {
        self.parts(range)
    }

    /// Another leg that holds all of a part that could not be read from the legs `tried`.
    fn another(&self, _part: ByteRange, _tried: &[usize]) -> Option<OnLeg> {
        None
    }

    /// The parts of a range, each with all legs whose bytes are up to date.
    fn copies(&self, range: ByteRange) -> Parts {
        self.parts(range)
    }

    /// Takes down what a write left, part by part in order.
    fn settle(&self, written: &[Written]) -> Settled {
        let mut good = 0;
        for (number, part) in written.iter().enumerate() {
            let (leg, here) = part.good.iter().copied().min_by_key(|&(_, good)| good).unwrap_or_default();
            good += here;
            if here < part.range.len() {
                return Settled { good, decided_by: Some((number, leg)) };
            }
        }
        Settled { good, decided_by: None }
    }

    /// Takes down that these legs could not be flushed. True: the map is durable all the same.
    fn settle_flush(&self, _failed: &[usize]) -> bool {
        false
    }

    /// Bytes of storage it takes, from (what each leg takes, its size); `None`: as many as its size.
    fn allocated(&self, legs: &[(Option<u64>, u64)]) -> Option<u64> {
        let any = legs.iter().any(|(takes, _)| takes.is_some());
        any.then(|| legs.iter().fold(0, |sum: u64, (takes, size)| sum.saturating_add(takes.unwrap_or(*size))))
    }

    /// Differs when the legs to read from are others.
    fn generation(&self) -> u64 {
        0
    }
}

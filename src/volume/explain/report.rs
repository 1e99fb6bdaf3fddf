//! What was found out about two ends: the answer, and the JSON of `blkcopy explain` and `compare`.

use crate::block::ByteRange;
use crate::block::receipt::DestRead;
use serde::Serialize;
use std::collections::BTreeMap;

/// The name of the JSON's form; another one when a key changes its meaning.
pub const SCHEMA: &str = "blkcopy-explain/1";

/// What a run of both ends is to each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sameness {
    /// Stored once for both, so the bytes are equal.
    Shared,
    /// Nothing is stored: both read as zero.
    Zero,
    /// Read, and equal.
    Equal,
    /// Read, and different.
    Different,
    /// Stored in different places, or by one end only, and not read.
    Apart,
    /// Whether it is stored in one place cannot be told; not read.
    Unknown,
}

impl Sameness {
    /// The name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Zero => "zero",
            Self::Equal => "equal",
            Self::Different => "different",
            Self::Apart => "apart",
            Self::Unknown => "unknown",
        }
    }
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// All of it is stored once for both, or reads as zero on both.
    Shared,
    /// The bytes are equal.
    Equal,
    /// Some of it is stored once for both; whether the rest is equal is not known.
    PartlyShared,
    /// None of it is known to be stored once for both; whether it is equal is not known.
    NothingShared,
    /// A byte differs, or one is longer.
    Different,
}

/// How it was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LookBy {
    /// Where it is stored; no byte is read.
    #[default]
    Extents,
    /// What is not known to be equal is read on both ends, and both get a digest.
    Digest,
    /// Every byte that is stored is read on both ends.
    Bytes,
}

/// What it was found out from that bytes are stored once, or are not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KnownBy {
    /// Both names lead to the same range of one file or device.
    OneDevice,
    /// The extents that the file system lists of both files.
    Extents,
    /// What the devices are made of, as the system tells.
    Storage,
}

/// A run of both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct SameRun {
    /// First byte, counted from the start of what is compared.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub is: Sameness,
}

/// One of the two.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ExplainedEnd {
    /// As it was named.
    pub name: String,
    /// The same without a range.
    pub device: String,
    /// Its size when it was opened.
    pub size_bytes: u64,
    /// First byte looked at.
    pub offset: u64,
    /// Bytes named, from there on.
    pub len: u64,
    /// BLAKE3 of the bytes named, in hex; `None` unless asked for.
    pub digest: Option<String>,
    /// Bytes read, by how.
    pub read: DestRead,
    /// Its size or times are others than before. `None`: the device has none.
    pub changed: Option<bool>,
}

/// What was found out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Explained {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// How it was looked at.
    pub by: LookBy,
    /// The answer.
    pub verdict: Verdict,
    /// The first end.
    pub a: ExplainedEnd,
    /// The second.
    pub b: ExplainedEnd,
    /// Bytes that both have: the length of the shorter one.
    pub common_bytes: u64,
    /// Bytes looked at: less than that when it ended at the first difference.
    pub seen_bytes: u64,
    /// Those, by what they are. A different run is counted from its first to its last byte that differs.
    pub bytes: BTreeMap<Sameness, u64>,
    /// The first byte that differs, counted from the start of what is compared.
    pub first_different: Option<u64>,
    /// Bytes that differ, counted one by one.
    pub differing_bytes: u64,
    /// What tells where bytes are stored.
    pub known_by: KnownBy,
    /// Runs, in order; not all when there are more than were asked for.
    pub runs: Vec<SameRun>,
    /// How many there are.
    pub runs_total: u64,
}

impl Explained {
    /// Bytes that are this.
    pub fn bytes_of(&self, is: Sameness) -> u64 {
        self.bytes.get(&is).copied().unwrap_or(0)
    }

    /// The ends that changed meanwhile.
    pub fn changed(&self) -> impl Iterator<Item = &ExplainedEnd> {
        [&self.a, &self.b].into_iter().filter(|end| end.changed == Some(true))
    }

    /// True when both are known to hold the same bytes: all of them, and nothing changed meanwhile.
    pub fn is_same(&self) -> bool {
        matches!(self.verdict, Verdict::Shared | Verdict::Equal) && self.changed().next().is_none()
    }
}

/// Collects runs.
pub(super) struct Tally {
    pub(super) bytes: BTreeMap<Sameness, u64>,
    pub(super) runs: Vec<SameRun>,
    pub(super) runs_total: u64,
    pub(super) first_different: Option<u64>,
    pub(super) differing_bytes: u64,
    /// Most runs kept, and which.
    runs_max: usize,
    only_different: bool,
    present: Option<SameRun>,
}

impl Tally {
    pub(super) fn new(runs_max: usize, only_different: bool) -> Self {
        Self {
            bytes: BTreeMap::new(),
            runs: Vec::new(),
            runs_total: 0,
            first_different: None,
            differing_bytes: 0,
            runs_max,
            only_different,
            present: None,
        }
    }

    /// Takes down the next run. They come in order and without gaps.
    pub(super) fn add(&mut self, offset: u64, len: u64, is: Sameness) {
        if len == 0 {
            return;
        }
        *self.bytes.entry(is).or_default() += len;
        if is == Sameness::Different {
            self.first_different.get_or_insert(offset);
        }
        match &mut self.present {
            Some(run) if run.is == is => run.len += len,
            _ => {
                self.end();
                self.present = Some(SameRun { offset, len, is });
            }
        }
    }

    /// The last run is whole.
    pub(super) fn end(&mut self) {
        let Some(run) = self.present.take() else { return };
        if self.only_different && run.is != Sameness::Different {
            return;
        }
        self.runs_total += 1;
        if self.runs.len() < self.runs_max {
            self.runs.push(run);
        }
    }

    /// Takes down what was read of both ends at `offset`.
    pub(super) fn compare(&mut self, offset: u64, a: &[u8], b: &[u8]) {
        let mut at = 0;
        for bad in differences(a, b) {
            let (start, end) = (bad.range.offset(), bad.range.end());
            self.add(offset + at, start - at, Sameness::Equal);
            self.add(offset + start, end - start, Sameness::Different);
            self.differing_bytes += bad.count;
            at = end;
        }
        self.add(offset + at, a.len() as u64 - at, Sameness::Equal);
    }

    /// The answer, for ends of which one may be longer.
    pub(super) fn verdict(&self, is_longer: bool) -> Verdict {
        let has = |is: Sameness| self.bytes.contains_key(&is);
        if has(Sameness::Different) || is_longer {
            Verdict::Different
        } else if has(Sameness::Apart) || has(Sameness::Unknown) {
            if has(Sameness::Shared) { Verdict::PartlyShared } else { Verdict::NothingShared }
        } else if has(Sameness::Shared) && !has(Sameness::Equal) {
            Verdict::Shared
        } else {
            Verdict::Equal
        }
    }
}

/// Unit in which differences are looked for, in bytes.
const UNIT: usize = 4096;

/// A run of bytes that differ, from the first to the last.
struct Bad {
    range: ByteRange,
    /// How many of them do.
    count: u64,
}

/// Where two buffers of one length differ: units next to each other make one run, which begins and ends with a byte
/// that differs.
fn differences(a: &[u8], b: &[u8]) -> Vec<Bad> {
    let mut list: Vec<Bad> = Vec::new();
    // The unit that would go on with the last run.
    let mut next = None;
    if a == b {
        return list;
    }
    for (unit, (x, y)) in a.chunks(UNIT).zip(b.chunks(UNIT)).enumerate() {
        if x == y {
            continue;
        }
        let differ = |(p, q): (&u8, &u8)| p != q;
        let pairs = || x.iter().zip(y);
        let (Some(first), Some(last)) = (pairs().position(differ), pairs().rposition(differ)) else {
            continue;
        };
        let count = pairs().filter(|&pair| differ(pair)).count() as u64;
        let start = (unit * UNIT) as u64;
        let end = start + last as u64 + 1;
        match list.last_mut().filter(|_| next == Some(unit)) {
            Some(bad) => {
                *bad = Bad { range: ByteRange::between(bad.range.offset(), end), count: bad.count + count };
            }
            None => list.push(Bad { range: ByteRange::between(start + first as u64, end), count }),
        }
        next = Some(unit + 1);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use Sameness::{Apart, Different, Equal, Shared, Unknown, Zero};

    fn runs(a: &[u8], b: &[u8]) -> (Vec<(u64, u64, Sameness)>, u64) {
        let mut tally = Tally::new(usize::MAX, false);
        tally.compare(100, a, b);
        tally.end();
        let found = tally.runs.iter().map(|r| (r.offset, r.len, r.is)).collect();
        (found, tally.differing_bytes)
    }

    #[test]
    fn a_different_run_is_narrowed_to_its_first_and_last_byte() {
        let a = vec![7; 3 * UNIT + 10];
        let unit = UNIT as u64;
        let with = |at: &[usize]| {
            let mut b = a.clone();
            at.iter().for_each(|&i| b[i] = 0);
            b
        };
        assert_eq!(runs(&a, &a), (vec![(100, 3 * unit + 10, Equal)], 0));
        let (found, count) = runs(&a, &with(&[UNIT + 5, UNIT + 9]));
        let expected =
            [(100, unit + 5, Equal), (100 + unit + 5, 5, Different), (100 + unit + 10, 2 * unit, Equal)];
        assert_eq!((found.as_slice(), count), (&expected[..], 2));
        // Units next to each other are one run, others are not.
        let (found, count) = runs(&a, &with(&[1, UNIT, 3 * UNIT + 9]));
        let expected = [
            (100, 1, Equal),
            (101, unit, Different),
            (101 + unit, 2 * unit + 8, Equal),
            (100 + 3 * unit + 9, 1, Different),
        ];
        assert_eq!((found.as_slice(), count), (&expected[..], 3));
        assert_eq!(runs(&[], &[]), (vec![], 0));
        assert_eq!(runs(&[1], &[2]), (vec![(100, 1, Different)], 1));
    }

    #[test]
    fn the_answer_follows_from_the_runs() {
        let answer = |list: &[Sameness], is_longer| {
            let mut tally = Tally::new(9, false);
            list.iter().zip(0..).for_each(|(&is, at)| tally.add(at, 1, is));
            tally.verdict(is_longer)
        };
        assert_eq!(answer(&[], false), Verdict::Equal);
        assert_eq!(answer(&[Zero], false), Verdict::Equal);
        assert_eq!(answer(&[Zero, Shared], false), Verdict::Shared);
        assert_eq!(answer(&[Shared, Equal], false), Verdict::Equal);
        assert_eq!(answer(&[Shared, Apart], false), Verdict::PartlyShared);
        assert_eq!(answer(&[Shared, Unknown], false), Verdict::PartlyShared);
        assert_eq!(answer(&[Zero, Unknown], false), Verdict::NothingShared);
        assert_eq!(answer(&[Zero, Apart], false), Verdict::NothingShared);
        assert_eq!(answer(&[Shared, Different, Equal], false), Verdict::Different);
        assert_eq!(answer(&[Shared], true), Verdict::Different);
    }

    #[test]
    fn runs_are_joined_bounded_and_all_counted() {
        let mut tally = Tally::new(2, false);
        for (at, is) in (0..).zip([Zero, Zero, Shared, Zero, Shared]) {
            tally.add(10 * at, 10, is);
        }
        tally.end();
        let kept: Vec<_> = tally.runs.iter().map(|r| (r.offset, r.len)).collect();
        assert_eq!((kept.as_slice(), tally.runs_total), (&[(0, 20), (20, 10)][..], 4));
        assert_eq!(tally.bytes[&Zero], 30);
        let mut tally = Tally::new(2, true);
        for (at, is) in (0..).zip([Equal, Different, Equal, Different, Equal, Different]) {
            tally.add(at, 1, is);
        }
        tally.end();
        let kept: Vec<_> = tally.runs.iter().map(|r| r.offset).collect();
        assert_eq!((kept.as_slice(), tally.runs_total), (&[1, 3][..], 3));
    }
}

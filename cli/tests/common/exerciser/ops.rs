//! What the exerciser may do, as plain data, and the seeded generator of it.

use blkcopy::sim::Rng;
use serde::{Deserialize, Serialize};

/// Longest write or read, in bytes; a copy may be longer.
pub(crate) const IO_MAX: u64 = 256 << 10;
/// Longest copy, in bytes.
pub(crate) const COPY_MAX: u64 = 1 << 20;

/// What a place can do, and what is asked of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caps {
    /// The copy calls of the note.
    pub(crate) ioctl: bool,
    /// Alignment of direct I/O in bytes, where there is direct I/O.
    pub(crate) direct: Option<u64>,
    /// `copy_file_range` takes descriptors open for direct I/O and ranges of any alignment.
    pub(crate) direct_copy: bool,
    /// `FALLOC_FL_ZERO_RANGE`.
    pub(crate) zero_range: bool,
    /// The size cannot change: what would change it is an error, and truncation only makes the rest read as zero.
    pub(crate) fixed_size: bool,
    /// Sizes change with truncation, writes and copies, as POSIX has it. Else truncation is always followed by one
    /// back.
    pub(crate) growing: bool,
}

/// How bytes go in and out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Way {
    Plain,
    Direct,
    Mapped,
}

/// Bytes of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) volume: usize,
    pub(crate) at: u64,
    pub(crate) len: u64,
}

impl Span {
    pub(crate) const fn end(self) -> u64 {
        self.at + self.len
    }

    const fn overlaps(self, other: Self) -> bool {
        self.volume == other.volume && self.at < other.end() && other.at < self.end()
    }
}

/// Where from and where to; the length is that of both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) source: u64,
    pub(crate) dest: u64,
    pub(crate) len: u64,
}

/// By which call bytes are copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum How {
    Range,
    RangeDirect,
    Ioctl,
    Twin(u32),
}

/// What must be refused, or come out shorter than asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Wrong {
    /// `copy_file_range` onto its own source: EINVAL.
    RangeOverlap,
    /// `copy_file_range` from the end of the source: 0.
    RangeAtEnd,
    /// `copy_file_range` over the end of the destination: short, then ENOSPC.
    RangePastEnd,
    /// A write past the end.
    WritePastEnd,
    /// `BLKCOPY` with...
    NoRange,
    EmptyRange,
    SelfOverlap,
    DestsOverlap,
    SourceIsDest,
    PastEnd,
    SumWraps,
    OtherCount,
    NotForReading,
    NotForWriting,
    /// Its twin with...
    UnknownFlag,
    StrangeToken,
}

impl Wrong {
    const ANY: [Self; 2] = [Self::RangeOverlap, Self::RangeAtEnd];
    const FIXED: [Self; 2] = [Self::RangePastEnd, Self::WritePastEnd];
    const IOCTL: [Self; 12] = [
        Self::NoRange,
        Self::EmptyRange,
        Self::SelfOverlap,
        Self::DestsOverlap,
        Self::SourceIsDest,
        Self::PastEnd,
        Self::SumWraps,
        Self::OtherCount,
        Self::NotForReading,
        Self::NotForWriting,
        Self::UnknownFlag,
        Self::StrangeToken,
    ];
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Op {
    /// Write the bytes that `salt` makes.
    Write { to: Span, way: Way, salt: u64 },
    /// Read and compare.
    Read { from: Span, way: Way },
    /// Copy from volume to volume, and maybe look at once at what is around the destinations.
    Copy { from: usize, to: usize, pairs: Vec<Pair>, how: How, look: Option<Way> },
    /// Make a hole, the size kept.
    Punch(Span),
    /// Make zeroes, the size kept.
    Zero(Span),
    /// `ftruncate` to `len`, and back to the size unless sizes may change.
    Truncate { volume: usize, len: u64 },
    /// `fdatasync` or `fsync`.
    Sync { volume: usize, data_only: bool },
    /// Close all descriptors and mappings, and open again.
    Reopen { volume: usize },
    /// Walk over data and holes: what is told as a hole is zero.
    Seek { volume: usize, at: u64 },
    /// `POSIX_FADV_DONTNEED`.
    Invalidate(Span),
    /// See [`Wrong`].
    Wrong { volume: usize, wrong: Wrong, at: u64, len: u64 },
    /// Compare all volumes whole, by every way.
    Compare,
}

/// What a run is made of; equal plans give equal lists of steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) ops: usize,
    pub(crate) volumes: usize,
    /// Size of each volume in bytes, or the most it grows to.
    pub(crate) size: u64,
    pub(crate) compare_every: usize,
    pub(crate) caps: Caps,
}

impl Plan {
    /// The list of steps.
    pub(crate) fn steps(&self) -> Vec<Op> {
        let sizes = vec![if self.caps.growing { 0 } else { self.size }; self.volumes];
        let mut make = Make { plan: *self, rng: Rng::new(self.seed), sizes };
        let mut steps: Vec<Op> = Vec::with_capacity(self.ops);
        while steps.len() < self.ops {
            let whole = steps.len() % self.compare_every == self.compare_every - 1;
            steps.push(if whole { Op::Compare } else { make.step() });
        }
        steps
    }
}

struct Make {
    plan: Plan,
    rng: Rng,
    /// As they are when every step has been done: good guesses when some were left out.
    sizes: Vec<u64>,
}

impl Make {
    fn step(&mut self) -> Op {
        loop {
            // Weights out of 100.
            let step = match self.rng.below(100) {
                0..22 => self.write(),
                22..39 => self.read(),
                39..69 => self.copy(),
                69..73 => Some(Op::Punch(self.span(IO_MAX))),
                73..77 => self.plan.caps.zero_range.then(|| Op::Zero(self.span(IO_MAX))),
                77..79 => Some(self.truncate()),
                79..83 => Some(Op::Sync { volume: self.volume(), data_only: self.rng.below(2) == 0 }),
                83..85 => Some(Op::Reopen { volume: self.volume() }),
                85..89 => Some(Op::Seek { volume: self.volume(), at: self.edge() }),
                89..93 => Some(Op::Invalidate(self.span(COPY_MAX))),
                _ => Some(self.wrong()),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    fn volume(&mut self) -> usize {
        self.rng.index(self.plan.volumes)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.rng.below(n) == 0
    }

    fn grid(&mut self) -> u64 {
        [1, 512, 4096, 64 << 10, 1 << 20][self.rng.index(5)]
    }

    /// An offset below the size: anywhere, or at or beside an edge that something may round to.
    fn edge(&mut self) -> u64 {
        let (size, grid) = (self.plan.size, self.grid());
        let at = self.rng.below(size);
        let at = (at - at % grid).saturating_add_signed([-1, 0, 0, 0, 1][self.rng.index(5)]);
        at.min(size - 1)
    }

    /// A length from 1 to `most`: small, any, or at or beside a round number.
    fn len(&mut self, most: u64) -> u64 {
        // Most are short: what is wrong with long ones shows in few, and they take the time.
        let grid = match self.rng.below(8) {
            0 => return 1 + self.rng.below(most),
            1 => [64 << 10, 1 << 20][self.rng.index(2)],
            2 | 3 => 1,
            _ => [512, 4096][self.rng.index(2)],
        };
        let len = grid * (self.rng.below(16) + 1);
        let len = len.saturating_add_signed([-1, 0, 0, 0, 1][self.rng.index(5)]);
        len.clamp(1, most)
    }

    fn span(&mut self, most: u64) -> Span {
        let (volume, at) = (self.volume(), self.edge());
        let len = self.len(most).min(self.plan.size - at);
        // One in eight ends at the very end.
        let at = if self.one_in(8) { self.plan.size - len } else { at };
        Span { volume, at, len }
    }

    /// The same rounded outwards, for direct I/O; the sizes of volumes are multiples of all alignments.
    fn aligned(span: Span, align: u64) -> Span {
        let at = span.at - span.at % align;
        Span { at, len: span.end().next_multiple_of(align) - at, ..span }
    }

    fn way(&mut self) -> Way {
        match self.rng.below(5) {
            0 | 1 => Way::Plain,
            2 if self.plan.caps.direct.is_some() => Way::Direct,
            3 | 4 => Way::Mapped,
            _ => Way::Plain,
        }
    }

    fn placed(&mut self) -> (Span, Way) {
        let (span, way) = (self.span(IO_MAX), self.way());
        match (way, self.plan.caps.direct) {
            (Way::Direct, Some(align)) => (Self::aligned(span, align), way),
            _ => (span, way),
        }
    }

    fn write(&mut self) -> Option<Op> {
        let (to, way) = self.placed();
        // A store past the end of a file is a signal.
        if way == Way::Mapped && to.end() > self.sizes[to.volume] {
            return None;
        }
        self.grow(to);
        Some(Op::Write { to, way, salt: self.rng.next_u64() })
    }

    fn read(&mut self) -> Option<Op> {
        let (from, way) = self.placed();
        let inside = from.end() <= self.sizes[from.volume];
        (way != Way::Mapped || inside).then_some(Op::Read { from, way })
    }

    fn grow(&mut self, to: Span) {
        let size = &mut self.sizes[to.volume];
        *size = to.end().max(*size);
    }

    fn copy(&mut self) -> Option<Op> {
        let caps = self.plan.caps;
        let how = match self.rng.below(10) {
            0..3 if caps.ioctl => How::Ioctl,
            3..6 if caps.ioctl => How::Twin(u32::from(self.one_in(8))),
            6 if caps.direct_copy => How::RangeDirect,
            _ => How::Range,
        };
        let from = self.volume();
        let to = if how == How::Ioctl { from } else { self.volume() };
        let wanted = match how {
            How::Range | How::RangeDirect => 1,
            _ => [1, 2, 3, 5, 16][self.rng.index(5)],
        };
        let most = COPY_MAX.min(self.plan.size / 4) / wanted;
        let mut pairs: Vec<Pair> = Vec::new();
        // Few tries: a volume may be too full of the others for one more.
        for _ in 0..wanted * 4 {
            if pairs.len() as u64 == wanted {
                break;
            }
            let source = Span { volume: from, ..self.span(most) };
            let mut at = self.edge().min(self.plan.size - source.len);
            // Half keep what is left of a block: those may be handed on whole.
            if self.one_in(2) {
                let grid = [512, 4096][self.rng.index(2)];
                at = (at - at % grid + source.at % grid).min(self.plan.size - source.len);
            }
            let dest = Span { volume: to, at, len: source.len };
            let clash = |p: &Pair| {
                let (s, d) =
                    (Span { at: p.source, len: p.len, ..source }, Span { at: p.dest, len: p.len, ..dest });
                d.overlaps(source) || d.overlaps(dest) || s.overlaps(dest)
            };
            if source.overlaps(dest) || pairs.iter().any(clash) {
                continue;
            }
            pairs.push(Pair { source: source.at, dest: dest.at, len: source.len });
        }
        if pairs.is_empty() {
            return None;
        }
        for pair in &pairs {
            let len = pair.len.min(self.sizes[from].saturating_sub(pair.source));
            if len > 0 {
                self.grow(Span { volume: to, at: pair.dest, len });
            }
        }
        let look = self.one_in(2).then(|| self.way());
        Some(Op::Copy { from, to, pairs, how, look })
    }

    fn truncate(&mut self) -> Op {
        let volume = self.volume();
        // Mostly near the end, so that something is left.
        let back = if self.one_in(4) { self.plan.size } else { IO_MAX.min(self.plan.size) };
        let len = self.plan.size - self.rng.below(back + 1);
        let len = if self.one_in(2) { len - len % 4096 } else { len };
        if self.plan.caps.growing {
            self.sizes[volume] = len;
        }
        Op::Truncate { volume, len }
    }

    fn wrong(&mut self) -> Op {
        let caps = self.plan.caps;
        let wrong = match self.rng.below(4) {
            0 if caps.fixed_size => Wrong::FIXED[self.rng.index(Wrong::FIXED.len())],
            1 | 2 if caps.ioctl => Wrong::IOCTL[self.rng.index(Wrong::IOCTL.len())],
            _ => Wrong::ANY[self.rng.index(Wrong::ANY.len())],
        };
        let span = self.span(64 << 10);
        // Long enough for two ranges with something in common.
        Op::Wrong { volume: span.volume, wrong, at: span.at.min(self.plan.size - 64), len: span.len.max(4) }
    }
}

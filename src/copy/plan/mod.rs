//! How a copy is cut: a pure function of the job, what both devices say, and the policy.
//!
//! The planner is an iterator: it submits nothing and holds at most one step. `blkcopy plan` prints the same steps that
//! `blkcopy cp` runs; the digest over them stands in both. `docs/notes/004-plan.md` has the rules with examples.

use super::Job;
use crate::block::receipt::{Reason, Why};
use crate::block::{
    ByteRange, Content, CopyPath, Error, Extent, Fate, Identity, Kind, Limits, Method, Must, Result,
};
use serde::Serialize;
use smallvec::{SmallVec, smallvec};

/// Longest emulated step, in bytes: about 10 ms of reading and writing, the unit that is locked together.
pub const EMULATED_STEP: u64 = 16 << 20;
/// Longest step that writes zeroes, in bytes: bounded because some devices can only write them out.
pub const ZERO_STEP: u64 = 64 << 20;
/// Below this distance between overlapping source and destination, in bytes, native copies would be too short: the
/// bytes go through buffers.
pub const OVERLAP_NATIVE_MIN: u64 = 64 << 10;
/// Most source parts in one step, however many a device takes: what an NVMe Copy command can carry, and a bound on the
/// memory of a plan.
pub const PARTS_MAX: usize = 256;

/// Bytes of steps hashed at once: enough for the hasher to work on many blocks side by side.
const HASH_AT: usize = 64 << 10;

/// Whether devices may, must or must not copy by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Offload {
    /// Wherever it is possible and not slower.
    #[default]
    Auto,
    /// Everywhere, and so that this becomes of the bytes, or the copy is refused.
    Require(Must),
    /// Nowhere: every byte is read and written.
    Never,
}

impl Offload {
    /// What must become of the bytes.
    pub fn must(self) -> Option<Must> {
        match self {
            Self::Require(must) => Some(must),
            Self::Auto | Self::Never => None,
        }
    }
}

/// What becomes of runs of zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sparse {
    /// Holes stay holes.
    #[default]
    Auto,
    /// Holes stay holes, and zeroes in data become holes.
    Always,
    /// Every destination block is allocated.
    Never,
}

/// What the caller wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Offload.
    pub offload: Offload,
    /// Zeroes.
    pub sparse: Sparse,
    /// Destination bytes from this offset on are known to read as zero and to be unallocated (a file just made or
    /// extended). `u64::MAX`: nothing is known.
    pub dest_zero_from: u64,
    /// The caller does not wait for the destination to be durable: methods that leave the bytes in the page cache, and
    /// are slower than direct I/O only once the cache is written out, are as good as any.
    pub unsynced: bool,
    /// With [`Sparse::Auto`]: what is read of a source that does not tell its holes is searched for zeroes, where the
    /// destination need not be written with them.
    pub finds_zeroes: bool,
    /// Methods not to be planned: a device refused them.
    pub excluded: MethodSet,
}

/// A set of methods.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MethodSet(u32);

impl MethodSet {
    /// The set with `method` in it.
    #[must_use]
    pub const fn with(self, method: Method) -> Self {
        Self(self.0 | 1 << method as u32)
    }

    /// True when `method` is in it.
    pub const fn has(self, method: Method) -> bool {
        self.0 & 1 << method as u32 != 0
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            offload: Offload::Auto,
            sparse: Sparse::Auto,
            dest_zero_from: u64::MAX,
            unsynced: false,
            finds_zeroes: false,
            excluded: MethodSet::default(),
        }
    }
}

/// Number of a leaf within one plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct LeafNo(u32);

impl LeafNo {
    /// The leaf at this index.
    pub fn new(index: usize) -> Self {
        Self(u32::try_from(index).expect("a plan has fewer than 2^32 leaves: each is an open device"))
    }

    /// Its index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A place on a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Which leaf.
    pub leaf: LeafNo,
    /// Offset on it, in bytes.
    pub offset: u64,
}

/// The front of a range, as far as one mapping holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Length in bytes, never 0.
    pub len: u64,
    /// One leg for a source, every leg for a destination.
    pub legs: SmallVec<[Place; 1]>,
}

impl Run {
    /// The run from `skip` bytes on.
    pub(crate) fn from(&self, skip: u64) -> Self {
        let legs = self.legs.iter().map(|p| Place { leaf: p.leaf, offset: p.offset + skip }).collect();
        Self { len: self.len - skip, legs }
    }

    /// At most the first `len` bytes.
    pub(crate) fn cut(mut self, len: u64) -> Self {
        self.len = self.len.min(len);
        self
    }
}

/// What a leaf says of itself, read once per plan: later changes of its limits do not touch this plan.
#[derive(Clone, Debug)]
pub struct LeafFacts {
    /// Its copy methods, best first.
    pub paths: Vec<CopyPath>,
    /// Its limits.
    pub limits: Limits,
    /// Its size in bytes.
    pub size: u64,
    /// Who it is.
    pub identity: Identity,
}

/// What the planner asks about the two devices.
pub trait Facts {
    /// Where the front of a source range lives.
    fn source_run(&mut self, range: ByteRange) -> Result<Run>;
    /// Where the front of a destination range lives.
    fn dest_run(&mut self, range: ByteRange) -> Result<Run>;
    /// What the front of a source range holds.
    fn source_content(&mut self, range: ByteRange) -> Result<Extent>;
    /// A leaf named by one of the runs.
    fn leaf(&self, leaf: LeafNo) -> &LeafFacts;
    /// [`Device::tells_holes`](crate::block::Device::tells_holes) of a leaf; the same throughout a plan.
    fn tells_holes(&mut self, _leaf: LeafNo) -> bool {
        true
    }
    /// [`Device::zeroes_cheaply`](crate::block::Device::zeroes_cheaply) of a leaf; the same throughout a plan.
    fn zeroes_cheaply(&mut self, _leaf: LeafNo) -> bool {
        false
    }
}

/// A source range of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct SourcePart {
    /// Offset on the source device, in bytes.
    pub offset: u64,
    /// Offset on the source leaf, in bytes.
    pub leaf_offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One destination leg of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepLeg {
    /// Where on the leaf.
    pub place: Place,
    /// How the bytes get there.
    pub method: Method,
    /// Why so.
    pub reason: Reason,
}

/// In which order the pieces of an emulated step must run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Any, many at once.
    Any,
    /// One after the other from the front: the destination lies before the source and they overlap.
    Forward,
    /// One after the other from the back: the destination lies behind the source and they overlap.
    Backward,
}

/// One copy request of a plan: locked, carried out and reported as one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Destination offset on the device, in bytes.
    pub dest: u64,
    /// Length in bytes.
    pub len: u64,
    /// The leaf all source parts lie on.
    pub source_leaf: LeafNo,
    /// Source parts, in destination order; their lengths add up to `len`.
    pub sources: SmallVec<[SourcePart; 1]>,
    /// Destination legs: each gets all the bytes.
    pub legs: SmallVec<[StepLeg; 1]>,
    /// Order within the step.
    pub order: Order,
    /// True when every earlier step must have ended before this one begins.
    pub barrier: bool,
    /// True when the destination is known to read as zero.
    pub dest_zero: bool,
    /// True when the legs that take read+write leave out the zeroes they find.
    pub searched: bool,
}

impl Step {
    /// The destination bytes.
    pub fn dest_range(&self) -> ByteRange {
        ByteRange::between(self.dest, self.dest.saturating_add(self.len))
    }

    /// The method of the step as a whole: that of its first leg.
    pub fn method(&self) -> Method {
        self.legs[0].method
    }
}

/// Totals of a plan, and the digest over its steps.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PlanSummary {
    /// BLAKE3 over the steps, lower-case hex.
    pub digest: String,
    /// Steps.
    pub steps: u64,
    /// Bytes by method and reason, in the order of first use.
    pub reasons: Vec<Why>,
}

/// Cuts one job into steps both devices accept, in an order that is safe to run.
///
/// Covers every byte of the job exactly once. Where source and destination overlap, steps come in the order that reads
/// each byte before it is overwritten, with barriers between them. Lookups on the devices happen as the iterator goes
/// on.
///
/// Errors of an item: what the devices answered; `Unsupported` under [`Offload::Require`] where bytes would not become
/// what they must. After an error the iterator ends.
pub struct Planner<F> {
    job: Job,
    facts: F,
    policy: Policy,
    segment: usize,
    /// The part of the present segment not yet handed out, and where its source starts.
    window: Option<Window>,
    /// What is left of an overlapping segment outside the present window.
    overlap_rest: Option<u64>,
    /// Steps of a stretch that must run from its back, cut from its front: handed out last first.
    backward: Vec<Step>,
    pending: Option<Step>,
    barrier: bool,
    hasher: blake3::Hasher,
    /// Steps in bytes, not hashed yet: many small updates of the hasher cost more than planning the steps.
    unhashed: Vec<u8>,
    steps: u64,
    reasons: Vec<Why>,
    error: Option<Error>,
    ended: bool,
}

#[derive(Clone, Copy)]
struct Window {
    source: u64,
    dest: ByteRange,
    order: Order,
    emulate: bool,
}

impl<F: Facts> Planner<F> {
    /// A planner at the start of `job`.
    pub fn new(job: &Job, facts: F, policy: Policy) -> Self {
        Self {
            job: job.clone(),
            facts,
            policy,
            segment: 0,
            window: None,
            overlap_rest: job.overlaps().then(|| job.total()),
            backward: Vec::new(),
            pending: None,
            barrier: false,
            hasher: blake3::Hasher::new(),
            unhashed: Vec::new(),
            steps: 0,
            reasons: Vec::new(),
            error: None,
            ended: false,
        }
    }

    /// The facts, for the runner to find leaf devices.
    pub fn facts(&self) -> &F {
        &self.facts
    }

    /// Totals of the steps handed out so far.
    pub fn summary(&self) -> PlanSummary {
        PlanSummary {
            digest: self.hasher.clone().update(&self.unhashed).finalize().to_hex().to_string(),
            steps: self.steps,
            reasons: self.reasons.clone(),
        }
    }

    /// The next stretch to cut: a segment, or a stretch of an overlapping one short enough that it does not overlap
    /// itself.
    fn next_window(&mut self) -> Option<Window> {
        let Some(rest) = self.overlap_rest else {
            let s = self.job.segments().get(self.segment)?;
            self.segment += 1;
            return Some(Window {
                source: s.source,
                dest: s.dest_range(),
                order: Order::Any,
                emulate: false,
            });
        };
        if rest == 0 {
            return None;
        }
        let s = self.job.segments()[0];
        let distance = s.source.abs_diff(s.dest);
        let backward = s.dest > s.source;
        let native = distance >= OVERLAP_NATIVE_MIN;
        let most = if native { distance } else { EMULATED_STEP };
        // Worked example: source 0, dest 100, len 250. Windows from the back: 200..250, 100..200, 0..100 of the
        // segment, so that each byte is read before a later window overwrites it. Counted from the front, so that a
        // segment that begins aligned is cut at aligned places.
        let (at, len) = if backward {
            let len = if rest.is_multiple_of(most) { most } else { rest % most };
            (rest - len, len)
        } else {
            (s.len - rest, rest.min(most))
        };
        self.overlap_rest = Some(rest - len);
        self.barrier = true;
        let order = match (native, backward) {
            (true, _) => Order::Any,
            (false, true) => Order::Backward,
            (false, false) => Order::Forward,
        };
        let dest = ByteRange::between(s.dest + at, s.dest + at + len);
        Some(Window { source: s.source + at, dest, order, emulate: !native })
    }

    /// The next step, in the order that is safe to run.
    fn cut(&mut self) -> Result<Option<Step>> {
        if let Some(step) = self.backward.pop() {
            return Ok(Some(step));
        }
        let Some(mut step) = self.cut_front()? else { return Ok(None) };
        if step.order != Order::Any {
            // Source and destination of the stretch overlap: a border or a hole inside it does not make its parts
            // independent.
            step.barrier = true;
        }
        // At most one stretch of `EMULATED_STEP` bytes is held.
        while step.order == Order::Backward && self.window.is_some() {
            self.backward.push(step);
            match self.cut_front()? {
                Some(next) => step = Step { barrier: true, ..next },
                None => return Ok(self.backward.pop()),
            }
        }
        Ok(Some(step))
    }

    /// Cuts the next step off the front of the present window.
    fn cut_front(&mut self) -> Result<Option<Step>> {
        let window = match self.window {
            Some(w) => w,
            None => match self.next_window() {
                Some(w) => w,
                None => return Ok(None),
            },
        };
        let source = ByteRange::between(window.source, window.source + window.dest.len());
        let from = self.facts.source_run(source)?;
        let to = self.facts.dest_run(window.dest.prefix(from.len))?;
        let mapped = from.len.min(to.len);
        if mapped == 0 || from.legs.is_empty() || to.legs.is_empty() {
            return Err(Error::new(Kind::Io, "the device reported a mapping of 0 bytes").at(window.dest));
        }
        let step = self.cut_mapped(window, source.prefix(mapped), &from.cut(mapped), &to.cut(mapped))?;
        let dest = window.dest.after(step.len);
        self.window =
            (!dest.is_empty()).then_some(Window { source: window.source + step.len, dest, ..window });
        self.barrier = false;
        Ok(Some(step))
    }

    /// Cuts one step off a stretch with one mapping.
    fn cut_mapped(&mut self, window: Window, source: ByteRange, from: &Run, to: &Run) -> Result<Step> {
        let dest = window.dest.prefix(source.len());
        // Known-zero destinations begin at one offset: a step lies on one side of it.
        let zero_from = self.policy.dest_zero_from;
        let dest_zero = dest.offset() >= zero_from;
        let most = if dest_zero { source.len() } else { source.len().min(zero_from - dest.offset()) };

        let mut choice: SmallVec<[Choice; 1]> = SmallVec::new();
        for leg in &to.legs {
            choice.push(self.choose(window, from.legs[0], *leg, most));
        }
        let carries = choice.iter().all(|c| c.carries_holes);
        let mut len = most;
        let mut content = Content::Data;
        if carries {
            // A method that carries holes needs no look at them, but for a hole of a step or more it would be asked
            // again and again: work follows data, and a file may be 8 EiB long with nothing in it.
            let step = choice.iter().map(|c| c.len).min().unwrap_or(most);
            if dest_zero && self.policy.sparse != Sparse::Never && step < most {
                let extent = self.facts.source_content(source.prefix(most))?;
                if extent.content != Content::Data && extent.len >= step {
                    (len, content) = (extent.len.min(most), extent.content);
                }
            }
        } else {
            let extent = self.facts.source_content(source.prefix(most))?;
            (len, content) = (extent.len.min(most), extent.content);
            if len == 0 {
                return Err(Error::new(Kind::Io, "the source reported an extent of 0 bytes").at(source));
            }
            choice.clear();
            for leg in &to.legs {
                choice.push(self.choose(window, from.legs[0], *leg, len));
            }
        }
        let mut legs: SmallVec<[StepLeg; 1]> = SmallVec::new();
        if content == Content::Data {
            // Legs whose methods want different lengths are asked again for the shorter one, a few times at most: odd
            // alignments might agree on next to nothing only.
            for _ in 0..4 {
                len = choice.iter().map(|c| c.len).min().unwrap_or(len).min(len);
                if choice.iter().all(|c| c.len == len) {
                    break;
                }
                choice.clear();
                choice.extend(to.legs.iter().map(|leg| self.choose(window, from.legs[0], *leg, len)));
            }
            for (&place, c) in to.legs.iter().zip(&choice) {
                legs.push(if c.len == len {
                    StepLeg { place, method: c.method, reason: c.reason }
                } else {
                    StepLeg { place, method: Method::Emulated, reason: Reason::Unaligned }
                });
            }
        } else {
            let (method, reason) = if dest_zero && self.policy.sparse != Sparse::Never {
                (Method::Skip, Reason::HoleKept)
            } else {
                len = len.min(ZERO_STEP);
                (Method::WriteZeroes, Reason::SourceZero)
            };
            legs.extend(to.legs.iter().map(|&place| StepLeg { place, method, reason }));
        }
        if let Some(must) = self.policy.offload.must()
            && let Some(leg) = legs.iter().find(|l| l.method.is_emulated())
        {
            let text = format!(
                "--require {}: {len} bytes would take read+write ({})",
                must.name(),
                leg.reason.text()
            );
            return Err(Error::new(Kind::Unsupported, text).at(dest.prefix(len)));
        }
        let searched = self.searches(from.legs[0].leaf, &legs, dest_zero);
        Ok(Step {
            dest: dest.offset(),
            len,
            source_leaf: from.legs[0].leaf,
            sources: smallvec![SourcePart { offset: source.offset(), leaf_offset: from.legs[0].offset, len }],
            legs,
            order: window.order,
            barrier: self.barrier,
            dest_zero,
            searched,
        })
    }

    /// Whether what these legs take by read+write is searched for zeroes.
    fn searches(&mut self, source: LeafNo, legs: &[StepLeg], dest_zero: bool) -> bool {
        let mut emulated = legs.iter().filter(|l| l.method.is_emulated()).peekable();
        if emulated.peek().is_none() {
            return false;
        }
        match self.policy.sparse {
            Sparse::Always => true,
            Sparse::Never => false,
            Sparse::Auto => {
                self.policy.finds_zeroes
                    && (dest_zero || emulated.all(|l| self.facts.zeroes_cheaply(l.place.leaf)))
                    && !self.facts.tells_holes(source)
            }
        }
    }

    /// The best method from one place to another for up to `len` bytes, and how many of them.
    fn choose(&self, window: Window, from: Place, to: Place, len: u64) -> Choice {
        let (a, b) = (self.facts.leaf(from.leaf), self.facts.leaf(to.leaf));
        // Why the best shared method was passed over; it stays the reason whatever is chosen instead.
        let mut passed_over: Option<Reason> = None;
        let mut cap = len.min(EMULATED_STEP);
        let usable = match (self.policy.offload, self.policy.sparse) {
            (Offload::Never, _) => Err(Reason::OffloadNever),
            (_, Sparse::Always) => Err(Reason::ZeroSearch),
            _ if window.emulate => Err(Reason::Overlap),
            _ if !a.limits.can_copy() || !b.limits.can_copy() => {
                let able = |l: &Limits| l.copy_max_bytes.get_hw().is_some();
                let off = able(&a.limits) && able(&b.limits);
                Err(if off { Reason::OffloadOff } else { Reason::NothingShared })
            }
            _ => Ok(()),
        };
        if let Err(reason) = usable {
            return Choice { method: Method::Emulated, reason, len: cap, carries_holes: false };
        }
        for path in shared(a, b) {
            if self.policy.excluded.has(path.method) {
                passed_over.get_or_insert(Reason::Refused);
                continue;
            }
            let may_share = matches!(path.method, Method::Reflink | Method::CopyFileRange | Method::NvmeCopy);
            if may_share && self.policy.sparse == Sparse::Never {
                passed_over.get_or_insert(Reason::FullyAllocated);
                continue;
            }
            let must = self.policy.offload.must();
            if let Some(must) = must
                && !must.may_try(path.method, path.fate)
            {
                passed_over.get_or_insert(match path.fate {
                    Fate::ThroughKernel => Reason::KernelCopies,
                    Fate::ReadWrite => Reason::InMemory,
                    _ => Reason::NotShared,
                });
                continue;
            }
            if !path.preferred && must.is_none() && !self.policy.unsynced {
                passed_over.get_or_insert(Reason::MeasuredSlower);
                continue;
            }
            let (f, t) = (from.offset % path.align, to.offset % path.align);
            if f != t {
                passed_over.get_or_insert(Reason::Unaligned);
                continue;
            }
            if f != 0 {
                // A worse method takes the head, up to where this one can begin.
                cap = cap.min(path.align - f);
                passed_over.get_or_insert(Reason::Unaligned);
                continue;
            }
            let stacked = a.limits.stack(b.limits);
            let most =
                [Some(path.max_bytes), soft(stacked.copy_max_bytes), soft(stacked.copy_max_range_bytes)];
            let most = most.into_iter().flatten().min().unwrap_or(path.max_bytes).min(len);
            let to_ends = path.tail_at_eof && from.offset + most == a.size && to.offset + most >= b.size;
            let whole = if to_ends { most } else { most - most % path.align };
            // A shorter cut asked for by a better, misaligned path binds this one too.
            let whole =
                if cap < len.min(EMULATED_STEP) && cap < whole { cap - cap % path.align } else { whole };
            if whole == 0 {
                passed_over.get_or_insert(Reason::Unaligned);
                continue;
            }
            let reason = passed_over.unwrap_or(Reason::Best);
            return Choice { method: path.method, reason, len: whole, carries_holes: path.carries_holes };
        }
        let reason = passed_over.unwrap_or(Reason::NothingShared);
        Choice { method: Method::Emulated, reason, len: cap, carries_holes: false }
    }

    /// Joins `next` to the pending step when one request can carry both.
    fn merge(&self, pending: &mut Step, next: &Step) -> bool {
        let same = pending.source_leaf == next.source_leaf
            && pending.dest + pending.len == next.dest
            && pending.order == next.order
            && !next.barrier
            && pending.dest_zero == next.dest_zero
            && pending.searched == next.searched
            && pending.legs.len() == next.legs.len()
            && pending.legs.iter().zip(&next.legs).all(|(p, n)| {
                p.method == n.method
                    && p.reason == n.reason
                    && p.place.leaf == n.place.leaf
                    && p.place.offset + pending.len == n.place.offset
            });
        if !same {
            return false;
        }
        let Some(len) = pending.len.checked_add(next.len) else { return false };
        if pending.legs.iter().any(|l| len > self.request_max(pending.source_leaf, l)) {
            return false;
        }
        let (last, first) = (pending.sources[pending.sources.len() - 1], next.sources[0]);
        let touching =
            last.leaf_offset + last.len == first.leaf_offset && last.offset + last.len == first.offset;
        if touching && last.len + first.len <= self.range_max(pending) {
            let at = pending.sources.len() - 1;
            pending.sources[at].len += first.len;
        } else if pending.sources.len() < self.ranges_max(pending) {
            pending.sources.push(first);
        } else {
            return false;
        }
        pending.len = len;
        true
    }

    /// Longest request on one leg by its method, in bytes.
    fn request_max(&self, source: LeafNo, leg: &StepLeg) -> u64 {
        let (a, b) = (self.facts.leaf(source), self.facts.leaf(leg.place.leaf));
        match leg.method {
            Method::Skip => u64::MAX,
            Method::WriteZeroes => ZERO_STEP,
            Method::Emulated => EMULATED_STEP,
            method => {
                // A method may be listed with several scopes; the step does not say by which it was chosen.
                let path =
                    shared(a, b).filter(|p| p.method == method).map(|p| p.max_bytes).min().unwrap_or(0);
                soft(a.limits.stack(b.limits).copy_max_bytes).map_or(path, |limit| limit.min(path))
            }
        }
    }

    /// Longest source part, in bytes: the smallest of the legs that copy by themselves.
    fn range_max(&self, step: &Step) -> u64 {
        self.native(step).filter_map(|l| soft(l.copy_max_range_bytes)).min().unwrap_or(u64::MAX)
    }

    /// Most source parts, likewise.
    fn ranges_max(&self, step: &Step) -> usize {
        let most = self.native(step).filter_map(|l| l.copy_max_nr_ranges.get()).min();
        most.map_or(PARTS_MAX, |n| usize::try_from(n.get()).map_or(PARTS_MAX, |n| n.min(PARTS_MAX)))
    }

    /// Limits that bind the legs whose devices see the source parts.
    fn native<'a>(&'a self, step: &'a Step) -> impl Iterator<Item = Limits> + 'a {
        let source = self.facts.leaf(step.source_leaf).limits;
        let legs = step.legs.iter();
        legs.filter(|l| !matches!(l.method, Method::Skip | Method::WriteZeroes | Method::Emulated))
            .map(move |l| self.facts.leaf(l.place.leaf).limits.stack(source))
    }

    fn hand_out(&mut self, step: Step) -> Step {
        self.steps += 1;
        let bytes = &mut self.unhashed;
        let mut put = |n: u64| bytes.extend_from_slice(&n.to_le_bytes());
        put(step.dest);
        put(step.len);
        let flags = u64::from(step.barrier) | u64::from(step.dest_zero) << 1 | u64::from(step.searched) << 4;
        put(flags | (step.order as u64) << 2);
        put(step.source_leaf.index() as u64);
        put(step.sources.len() as u64);
        for part in &step.sources {
            put(part.offset);
            put(part.leaf_offset);
            put(part.len);
        }
        put(step.legs.len() as u64);
        for leg in &step.legs {
            put(leg.place.leaf.index() as u64);
            put(leg.place.offset);
            put(leg.method as u64);
            put(leg.reason as u64);
        }
        if self.unhashed.len() >= HASH_AT {
            self.hasher.update(&self.unhashed);
            self.unhashed.clear();
        }
        let leg = step.legs[0];
        let zeroes_left_out = step.searched && leg.method.is_emulated();
        let is_same = |w: &&mut Why| {
            (w.method, w.reason, w.zeroes_left_out) == (leg.method, leg.reason, zeroes_left_out)
        };
        match self.reasons.iter_mut().find(is_same) {
            Some(why) => {
                why.bytes += step.len;
                why.steps += 1;
            }
            None => {
                let (method, reason, bytes) = (leg.method, leg.reason, step.len);
                self.reasons.push(Why { method, reason, bytes, steps: 1, zeroes_left_out });
            }
        }
        step
    }
}

struct Choice {
    method: Method,
    reason: Reason,
    len: u64,
    carries_holes: bool,
}

fn soft(pair: crate::block::limits::Pair<std::num::NonZeroU64>) -> Option<u64> {
    pair.get().map(std::num::NonZeroU64::get)
}

/// Paths both leaves list, in the destination's order.
fn shared<'a>(a: &'a LeafFacts, b: &'a LeafFacts) -> impl Iterator<Item = CopyPath> + 'a {
    b.paths.iter().filter_map(|mine| a.paths.iter().find_map(|theirs| mine.shared(theirs)))
}

impl<F: Facts> Iterator for Planner<F> {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Result<Step>> {
        if let Some(error) = self.error.take() {
            self.ended = true;
            return Some(Err(error));
        }
        if self.ended {
            return None;
        }
        loop {
            match self.cut() {
                Ok(Some(next)) => {
                    let Some(mut pending) = self.pending.take() else {
                        self.pending = Some(next);
                        continue;
                    };
                    if self.merge(&mut pending, &next) {
                        self.pending = Some(pending);
                        continue;
                    }
                    self.pending = Some(next);
                    return Some(Ok(self.hand_out(pending)));
                }
                Ok(None) => return self.pending.take().map(|step| Ok(self.hand_out(step))),
                Err(error) => {
                    // What was planned before stays runnable; the error comes next.
                    let Some(pending) = self.pending.take() else {
                        self.ended = true;
                        return Some(Err(error));
                    };
                    self.error = Some(error);
                    return Some(Ok(self.hand_out(pending)));
                }
            }
        }
    }
}

#[cfg(test)]
mod huge_tests;
#[cfg(test)]
mod tests;

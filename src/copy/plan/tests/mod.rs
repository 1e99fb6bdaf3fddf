//! Random worlds: leaves with odd alignments and limits, scattered mappings, holes, and jobs of many segments. Every
//! plan is checked step by step against the rules, then carried out on byte arrays and compared with `memmove`.

mod leaves;

use super::*;
use crate::block::limits::Pair;
use crate::block::{LEN_MAX, LeafId, Scope};
use crate::copy::Segment;
use proptest::prelude::*;
use std::num::{NonZeroU32, NonZeroU64};

/// Each thing that can be asked for.
const OFFLOADS: [Offload; 5] = [
    Offload::Auto,
    Offload::Require(Must::Share),
    Offload::Require(Must::Offload),
    Offload::Require(Must::Fast),
    Offload::Never,
];

/// One run of a device: `len` bytes from `start`, on every leg.
#[derive(Clone, Debug)]
struct Mapped {
    start: u64,
    len: u64,
    legs: Vec<Place>,
}

#[derive(Clone, Debug)]
struct World {
    leaves: Vec<LeafFacts>,
    source: Vec<Mapped>,
    dest: Vec<Mapped>,
    /// Extents of the source device, end to end.
    content: Vec<Extent>,
}

impl World {
    fn size(map: &[Mapped]) -> u64 {
        map.last().map_or(0, |m| m.start + m.len)
    }

    fn find(map: &[Mapped], offset: u64) -> &Mapped {
        &map[map.partition_point(|m| m.start + m.len <= offset)]
    }

    fn run(map: &[Mapped], range: ByteRange) -> Run {
        let m = Self::find(map, range.offset());
        let legs = m.legs.iter().copied().collect();
        Run { len: m.len, legs }.from(range.offset() - m.start).cut(range.len())
    }

    fn tells_holes(leaf: LeafNo) -> bool {
        leaf.index() % 2 == 1
    }

    fn zeroes_cheaply(leaf: LeafNo) -> bool {
        leaf.index() % 3 != 1
    }

    fn content_at(&self, range: ByteRange) -> Extent {
        let mut end = 0;
        for e in &self.content {
            end += e.len;
            if end > range.offset() {
                return Extent { len: (end - range.offset()).min(range.len()), content: e.content };
            }
        }
        Extent { len: range.len(), content: Content::Data }
    }

    fn plan(&self, job: &Job, policy: Policy) -> (Vec<Step>, Option<Error>, PlanSummary) {
        let mut planner = Planner::new(job, self, policy);
        let (mut steps, mut error) = (Vec::new(), None);
        for item in planner.by_ref().take(100_000) {
            match item {
                Ok(step) => steps.push(step),
                Err(e) => error = Some(e),
            }
        }
        assert!(planner.next().is_none(), "the plan ends, and stays ended");
        (steps, error, planner.summary())
    }
}

impl Facts for &World {
    fn source_run(&mut self, range: ByteRange) -> Result<Run> {
        Ok(World::run(&self.source, range))
    }
    fn dest_run(&mut self, range: ByteRange) -> Result<Run> {
        Ok(World::run(&self.dest, range))
    }
    fn source_content(&mut self, range: ByteRange) -> Result<Extent> {
        Ok(self.content_at(range))
    }
    fn leaf(&self, leaf: LeafNo) -> &LeafFacts {
        &self.leaves[leaf.index()]
    }
    fn tells_holes(&mut self, leaf: LeafNo) -> bool {
        World::tells_holes(leaf)
    }
    fn zeroes_cheaply(&mut self, leaf: LeafNo) -> bool {
        World::zeroes_cheaply(leaf)
    }
}

fn limits(max: u64, range_max: u64, ranges: u32) -> Limits {
    let bytes = |n| NonZeroU64::new(n).unwrap();
    Limits::plain(NonZeroU32::MIN).with_copy(bytes(max), bytes(range_max), NonZeroU32::new(ranges).unwrap())
}

fn path(method: Method, align: u64) -> CopyPath {
    let scope = match method {
        Method::Memory => Scope::Process,
        Method::Null => Scope::Null,
        _ => Scope::FileSystem(1),
    };
    CopyPath {
        method,
        scope,
        align,
        tail_at_eof: false,
        max_bytes: u64::MAX,
        preferred: true,
        fate: fate_of(method),
        carries_holes: false,
    }
}

/// What these methods do at their best.
fn fate_of(method: Method) -> Fate {
    match method {
        Method::Reflink => Fate::Shared,
        Method::Null => Fate::NoData,
        _ => Fate::MovedElsewhere,
    }
}

fn leaf(size: u64, limits: Limits, paths: &[CopyPath]) -> LeafFacts {
    let identity = Identity::Leaf { leaf: LeafId::fresh(), base: 0 };
    LeafFacts { paths: paths.to_vec(), limits, size, identity }
}

fn place(leaf: usize, offset: u64) -> Place {
    Place { leaf: LeafNo::new(leaf), offset }
}

fn seg(source: u64, dest: u64, len: u64) -> Segment {
    Segment { source, dest, len }
}

/// Two leaves of `size` bytes, each a whole device.
fn pair(size: u64, limits: Limits, paths: &[CopyPath]) -> World {
    let whole = |n| vec![Mapped { start: 0, len: size, legs: vec![place(n, 0)] }];
    World {
        leaves: vec![leaf(size, limits, paths), leaf(size, limits, paths)],
        source: whole(0),
        dest: whole(1),
        content: Vec::new(),
    }
}

/// Shape of a plan in short: (dest, len, method) of each step.
fn shape(steps: &[Step]) -> Vec<(u64, u64, Method)> {
    steps.iter().map(|s| (s.dest, s.len, s.method())).collect()
}

// ---- the rules, one step at a time ----

fn check_step(world: &World, policy: Policy, step: &Step) {
    let context = || format!("{step:?}");
    assert!(step.len > 0 && !step.legs.is_empty(), "{}", context());
    assert_eq!(step.sources.iter().map(|p| p.len).sum::<u64>(), step.len, "{}", context());
    assert!(step.sources.len() <= PARTS_MAX, "{}", context());
    assert_eq!(step.dest_zero, step.dest >= policy.dest_zero_from, "{}", context());
    // Neighbouring runs of a map that also touch on their leaves may be one step.
    for m in spanned(&world.dest, step.dest_range()) {
        let at = |leg: &Place| place(leg.leaf.index(), leg.offset + step.dest - m.start);
        assert_eq!(
            step.legs.iter().map(|l| l.place).collect::<Vec<_>>(),
            m.legs.iter().map(at).collect::<Vec<_>>(),
            "{}",
            context()
        );
    }
    for leg in &step.legs {
        check_leg(world, policy, step, leg);
    }
    let mut emulated = step.legs.iter().filter(|l| l.method.is_emulated());
    let spares = step.dest_zero || emulated.clone().all(|l| World::zeroes_cheaply(l.place.leaf));
    let searched = emulated.next().is_some()
        && match policy.sparse {
            Sparse::Always => true,
            Sparse::Auto => policy.finds_zeroes && spares && !World::tells_holes(step.source_leaf),
            Sparse::Never => false,
        };
    assert_eq!(step.searched, searched, "{}", context());
    for part in &step.sources {
        for m in spanned(&world.source, ByteRange::between(part.offset, part.offset + part.len)) {
            assert_eq!(step.source_leaf, m.legs[0].leaf, "{}", context());
            assert_eq!(part.leaf_offset + m.start, m.legs[0].offset + part.offset, "{}", context());
        }
    }
}

/// The runs of a map that hold bytes of `range`.
fn spanned(map: &[Mapped], range: ByteRange) -> impl Iterator<Item = &Mapped> {
    map.iter().filter(move |m| range.overlaps(ByteRange::between(m.start, m.start + m.len)))
}

fn check_leg(world: &World, policy: Policy, step: &Step, leg: &StepLeg) {
    let context = || format!("{leg:?} of {step:?}");
    match leg.method {
        Method::Emulated => {
            assert_eq!(policy.offload.must(), None, "{}", context());
            assert!(step.len <= EMULATED_STEP, "{}", context());
            return;
        }
        Method::Skip => return assert!(step.dest_zero && policy.sparse != Sparse::Never, "{}", context()),
        Method::WriteZeroes => return assert!(step.len <= ZERO_STEP, "{}", context()),
        _ => assert_ne!(policy.offload, Offload::Never, "{}", context()),
    }
    let (a, b) = (&world.leaves[step.source_leaf.index()], &world.leaves[leg.place.leaf.index()]);
    let fits = |side: &LeafFacts| {
        let l = &side.limits;
        l.can_copy()
            && step.len <= l.copy_max_bytes.get().unwrap().get()
            && step.sources.len() as u64 <= u64::from(l.copy_max_nr_ranges.get().unwrap().get())
            && step.sources.iter().all(|p| p.len <= l.copy_max_range_bytes.get().unwrap().get())
    };
    assert!(fits(a) && fits(b), "beyond a limit: {}", context());
    let allowed = |mine: &CopyPath, theirs: &CopyPath| {
        let ends = step.sources.last().is_some_and(|p| p.leaf_offset + p.len == a.size)
            && leg.place.offset + step.len >= b.size;
        let ragged_tail = ends && mine.tail_at_eof && theirs.tail_at_eof;
        [mine.align, theirs.align].iter().all(|&align| {
            let last = step.sources.len() - 1;
            leg.place.offset.is_multiple_of(align)
                && step.sources.iter().enumerate().all(|(i, p)| {
                    p.leaf_offset.is_multiple_of(align)
                        && (p.len.is_multiple_of(align) || (i == last && ragged_tail))
                })
        }) && step.len <= mine.max_bytes.min(theirs.max_bytes)
            && policy.offload.must().map_or(mine.preferred && theirs.preferred, |must| {
                must.may_try(leg.method, mine.fate.max(theirs.fate))
            })
    };
    let known = b.paths.iter().any(|mine| {
        a.paths.iter().any(|t| {
            (t.method, t.scope) == (leg.method, mine.scope) && mine.method == t.method && allowed(mine, t)
        })
    });
    assert!(known, "no shared path allows it: {}", context());
}

/// Every byte of the job comes from the right place, once.
fn check_cover(job: &Job, steps: &[Step]) {
    let mut got: Vec<Segment> = Vec::new();
    for step in steps {
        let mut dest = step.dest;
        for part in &step.sources {
            got.push(seg(part.offset, dest, part.len));
            dest += part.len;
        }
    }
    let merged = |mut list: Vec<Segment>| {
        list.sort_unstable_by_key(|s| s.dest);
        let mut out: Vec<Segment> = Vec::new();
        for s in list {
            match out.last_mut() {
                Some(m) if m.source + m.len == s.source && m.dest + m.len == s.dest => m.len += s.len,
                _ => out.push(s),
            }
        }
        out
    };
    assert_eq!(merged(got), merged(job.segments().to_vec()));
}

// ---- the world in bytes ----

/// Bytes of every leaf: nothing repeats soon, holes of the source and the known-zero destination are zero.
fn bytes_of(world: &World, zero_from: u64) -> Vec<Vec<u8>> {
    let mut bytes: Vec<Vec<u8>> = Vec::new();
    for (n, l) in world.leaves.iter().enumerate() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(n as u64 + 1);
        bytes.push(
            (0..l.size)
                .map(|_| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                })
                .collect(),
        );
    }
    let mut zero = |map: &[Mapped], range: ByteRange| {
        for m in map {
            let Some(r) = range.intersection(ByteRange::between(m.start, m.start + m.len)) else { continue };
            for leg in &m.legs {
                let at = (leg.offset + r.offset() - m.start) as usize;
                bytes[leg.leaf.index()][at..at + r.len() as usize].fill(0);
            }
        }
    };
    zero(&world.dest, ByteRange::between(zero_from, World::size(&world.dest)));
    let mut at = 0;
    for e in &world.content {
        if e.content != Content::Data {
            zero(&world.source, ByteRange::between(at, at + e.len));
        }
        at += e.len;
    }
    bytes
}

fn each_byte(map: &[Mapped], range: ByteRange, mut tell: impl FnMut(u64, &[Place], u64)) {
    for m in map {
        if let Some(r) = range.intersection(ByteRange::between(m.start, m.start + m.len)) {
            tell(r.offset() - range.offset(), &m.legs, r.offset() - m.start);
            for at in 1..r.len() {
                tell(r.offset() - range.offset() + at, &m.legs, r.offset() - m.start + at);
            }
        }
    }
}

/// What `memmove` of each segment leaves behind.
fn expected(world: &World, job: &Job, before: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut after = before.to_vec();
    for s in job.segments() {
        let mut buf = vec![0; s.len as usize];
        each_byte(&world.source, s.source_range(), |i, legs, at| {
            buf[i as usize] = before[legs[0].leaf.index()][(legs[0].offset + at) as usize];
        });
        each_byte(&world.dest, s.dest_range(), |i, legs, at| {
            for leg in legs {
                after[leg.leaf.index()][(leg.offset + at) as usize] = buf[i as usize];
            }
        });
    }
    after
}

/// Leaf ranges a step reads and writes.
type Touched = Vec<(LeafNo, ByteRange)>;

fn touched(step: &Step) -> (Touched, Touched) {
    let moves = !matches!(step.method(), Method::Skip | Method::WriteZeroes);
    let range = |at, len| ByteRange::between(at, at + len);
    let reads = step.sources.iter().filter(|_| moves);
    let reads = reads.map(|p| (step.source_leaf, range(p.leaf_offset, p.len))).collect();
    let writes = step.legs.iter().map(|l| (l.place.leaf, range(l.place.offset, step.len))).collect();
    (reads, writes)
}

fn conflict(a: &[(LeafNo, ByteRange)], b: &[(LeafNo, ByteRange)]) -> bool {
    a.iter().any(|x| b.iter().any(|y| x.0 == y.0 && x.1.overlaps(y.1)))
}

/// Runs the steps between barriers in a wild order; emulated steps piece by piece in the order they ask for.
fn execute(steps: &[Step], bytes: &mut [Vec<u8>], piece: u64) {
    let mut batch: Vec<&Step> = Vec::new();
    for step in steps {
        if step.barrier {
            run_batch(&mut batch, bytes, piece);
        }
        batch.push(step);
    }
    run_batch(&mut batch, bytes, piece);
}

fn run_batch(batch: &mut Vec<&Step>, bytes: &mut [Vec<u8>], piece: u64) {
    let sets: Vec<_> = batch.iter().map(|s| touched(s)).collect();
    for (i, (reads, writes)) in sets.iter().enumerate() {
        assert!(batch[i].order != Order::Any || !conflict(reads, writes), "overlaps itself: {:?}", batch[i]);
        for (other_reads, other_writes) in &sets[..i] {
            let apart = !conflict(writes, other_writes)
                && !conflict(writes, other_reads)
                && !conflict(reads, other_writes);
            assert!(apart, "no barrier between {:?} and an earlier step", batch[i]);
        }
    }
    // From both ends inwards, so that neither front-first nor back-first is what makes it right.
    let mut front = true;
    while !batch.is_empty() {
        let step = batch.remove(if front { 0 } else { batch.len() - 1 });
        front = !front;
        run_step(step, bytes, piece);
    }
}

fn run_step(step: &Step, bytes: &mut [Vec<u8>], piece: u64) {
    let put = |bytes: &mut [Vec<u8>], at: u64, data: &[u8]| {
        for leg in &step.legs {
            let to = (leg.place.offset + at) as usize;
            bytes[leg.place.leaf.index()][to..to + data.len()].copy_from_slice(data);
        }
    };
    match step.method() {
        Method::Skip => return,
        Method::WriteZeroes => return put(bytes, 0, &vec![0; step.len as usize]),
        _ => {}
    }
    let mut pieces: Vec<(u64, u64, u64)> = Vec::new();
    let mut at = 0;
    for part in &step.sources {
        let mut done = 0;
        while done < part.len {
            let len = piece.min(part.len - done);
            pieces.push((part.leaf_offset + done, at, len));
            at += len;
            done += len;
        }
    }
    if step.order != Order::Forward {
        pieces.reverse();
    }
    for (from, at, len) in pieces {
        let from = from as usize;
        let buf = bytes[step.source_leaf.index()][from..from + len as usize].to_vec();
        put(bytes, at, &buf);
    }
}

// ---- random worlds ----

type PathSpec = (usize, usize, bool, bool, bool, usize);
type LeafSpec = (Vec<PathSpec>, usize, usize, u32, bool);
type RunSpec = (usize, usize, usize);

const ALIGNS: [u64; 5] = [1, 512, 4096, 1536, 16384];
const MAXIMA: [u64; 6] = [u64::MAX, 4096, 10_000, 65_536, 512, 40_960];
const LENGTHS: [u64; 8] = [4096, 65_536, 1, 8192, 511, 100_000, 16_384, 12_345];
const GAPS: [u64; 5] = [0, 4096, 512, 100, 1];

fn leaf_spec() -> impl Strategy<Value = LeafSpec> {
    let path = (
        0usize..4,
        0..ALIGNS.len(),
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.8),
        0..MAXIMA.len(),
    );
    (prop::collection::vec(path, 0..4), 0..MAXIMA.len(), 0..MAXIMA.len(), 1u32..4, prop::bool::weighted(0.9))
}

fn build_leaf(spec: &LeafSpec, size: u64) -> LeafFacts {
    let kinds = [
        (Method::Reflink, Scope::FileSystem(1), Fate::Shared),
        (Method::CopyFileRange, Scope::FileSystem(1), Fate::Unknown),
        (Method::CopyFileRange, Scope::Files, Fate::ThroughKernel),
        (Method::Memory, Scope::Process, Fate::ReadWrite),
    ];
    let paths: Vec<CopyPath> = spec
        .0
        .iter()
        .map(|&(kind, align, tail_at_eof, carries_holes, preferred, max)| CopyPath {
            method: kinds[kind].0,
            scope: kinds[kind].1,
            align: ALIGNS[align],
            tail_at_eof,
            max_bytes: MAXIMA[max],
            preferred,
            fate: kinds[kind].2,
            carries_holes,
        })
        .collect();
    let mut l = limits(MAXIMA[spec.1], MAXIMA[spec.2], spec.3);
    l.copy_offload = spec.4;
    if !spec.4 && spec.3 == 1 {
        l.copy_max_bytes = Pair::NONE;
    }
    leaf(size, l, &paths)
}

#[derive(Clone, Debug)]
struct Case {
    world: World,
    job: Job,
    policy: Policy,
    piece: u64,
}

/// Builds a device map: each run on one leaf (two with `mirror`), gaps between the runs of a leaf.
fn build_map(runs: &[RunSpec], leaves: &[usize], mirror: Option<usize>, used: &mut [u64]) -> Vec<Mapped> {
    let (mut start, mut map) = (0, Vec::new());
    for &(leaf, len, gap) in runs {
        let mut legs = Vec::new();
        for n in std::iter::once(leaves[leaf % leaves.len()]).chain(mirror) {
            used[n] += GAPS[gap % GAPS.len()];
            legs.push(place(n, used[n]));
            used[n] += LENGTHS[len];
        }
        map.push(Mapped { start, len: LENGTHS[len], legs });
        start += LENGTHS[len];
    }
    map
}

fn case() -> impl Strategy<Value = Case> {
    let run = || prop::collection::vec((0usize..2, 0..LENGTHS.len(), 0..GAPS.len()), 1..6);
    let specs = prop::collection::vec(leaf_spec(), 5);
    let extents = prop::collection::vec((0..LENGTHS.len(), 0usize..3), 0..8);
    let segments = prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>()), 1..6);
    let shape = (any::<bool>(), any::<bool>(), any::<bool>(), 1u64..9000);
    let policy = (0..OFFLOADS.len(), 0usize..4, prop::option::of(0u64..200_000));
    (specs, run(), run(), extents, segments, shape, policy).prop_map(
        |(specs, source_runs, dest_runs, extents, segments, (same, mirror, one, piece), policy)| {
            let mut used = [0u64; 5];
            let mut world =
                World { leaves: Vec::new(), source: Vec::new(), dest: Vec::new(), content: Vec::new() };
            if same {
                world.dest = build_map(&source_runs, &[0, 1], mirror.then_some(4), &mut used);
                world.source = world.dest.clone();
                world.source.iter_mut().for_each(|m| m.legs.truncate(1));
            } else {
                world.source = build_map(&source_runs, &[0, 1], None, &mut used);
                world.dest = build_map(&dest_runs, &[2, 3], mirror.then_some(4), &mut used);
            }
            world.leaves = specs.iter().zip(used).map(|(s, size)| build_leaf(s, size.max(1))).collect();
            let kinds = [Content::Data, Content::Hole, Content::Zero];
            world.content = extents
                .iter()
                .map(|&(len, kind)| Extent { len: LENGTHS[len], content: kinds[kind] })
                .collect();
            let (from, to) = (World::size(&world.source), World::size(&world.dest));
            let mut list: Vec<Segment> = Vec::new();
            for &(s, d, len, rounded) in segments.iter().take(if one { 1 } else { 9 }) {
                let unit = if rounded { 4096 } else { 1 };
                let (s, d) = (s % from / unit * unit, d % to / unit * unit);
                list.push(seg(s, d, len % (from - s).min(to - d) + 1));
                // What a job may not hold is left out, as the user would have been told.
                if Job::new(&list, from, to, same).is_err() {
                    list.pop();
                }
            }
            let policy = Policy {
                offload: OFFLOADS[policy.0],
                sparse: [Sparse::Auto, Sparse::Always, Sparse::Never, Sparse::Auto][policy.1],
                finds_zeroes: policy.1 == 3,
                dest_zero_from: policy.2.unwrap_or(u64::MAX),
                ..Policy::default()
            };
            let job = Job::new(&list, from, to, same).unwrap();
            Case { world, job, policy, piece }
        },
    )
}

fn check_case(Case { world, job, policy, piece }: &Case) {
    let (steps, error, summary) = world.plan(job, *policy);
    for step in &steps {
        check_step(world, *policy, step);
    }
    let (again, _, same_summary) = world.plan(job, *policy);
    assert_eq!(steps, again);
    assert_eq!(summary.digest, same_summary.digest, "one plan, one digest");
    assert_eq!(summary.steps, steps.len() as u64);
    assert_eq!(
        summary.reasons.iter().map(|w| w.bytes).sum::<u64>(),
        steps.iter().map(|s| s.len).sum::<u64>()
    );
    if let Some(error) = error {
        assert!(policy.offload.must().is_some() && error.kind() == Kind::Unsupported, "{error}");
        return;
    }
    check_cover(job, &steps);
    let before = bytes_of(world, policy.dest_zero_from);
    let mut after = before.clone();
    execute(&steps, &mut after, *piece);
    assert!(after == expected(world, job, &before), "a wrong byte after {steps:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::with_cases(400) })]

    //= promise 1, 5
    #[test]
    fn any_plan_equals_memmove_within_the_limits(case in case()) {
        check_case(&case);
    }

    /// One segment overlapping itself in either direction, near and far, over borders, holes and mirrors.
    //= promise 7
    #[test]
    fn an_overlapping_copy_equals_memmove(mut case in case(), pick in any::<(u64, u64, u64)>(), back in any::<bool>()) {
        let dest: Vec<Mapped> = case.world.dest.clone();
        let size = World::size(&dest);
        prop_assume!(size > 2);
        case.world.source = dest;
        case.world.source.iter_mut().for_each(|m| m.legs.truncate(1));
        let distance = 1 + [pick.0 % 10, pick.0 % 4096, pick.0 % 100_000, 65_536 + pick.0 % 70_000, 65_535][(pick.1 % 5) as usize] % (size - 1);
        let len = 1 + pick.2 % (size - distance);
        let at = pick.1 % (size - distance - len + 1);
        let s = if back { seg(at, at + distance, len) } else { seg(at + distance, at, len) };
        case.job = Job::new(&[s], size, size, true).unwrap();
        check_case(&case);
    }

    /// Offsets and lengths up to 2^63 - 1: nothing wraps, the front of the plan is right.
    #[test]
    fn lengths_to_the_largest_offset(
        specs in (leaf_spec(), leaf_spec()),
        size in LEN_MAX - 5000..=LEN_MAX,
        s in (0u64..1 << 63, 0u64..1 << 63, 0u64..1 << 63, 0u64..3),
        holes in prop::collection::vec((0u64..1 << 62, any::<bool>()), 0..4),
        same in any::<bool>(),
        zero_from in prop::option::of(0u64..1 << 63),
    ) {
        let mut world = pair(size, limits(1, 1, 1), &[]);
        world.leaves = vec![build_leaf(&specs.0, size), build_leaf(&specs.1, size)];
        if same {
            world.dest = world.source.clone();
        }
        world.content = holes
            .iter()
            .map(|&(len, hole)| Extent { len: len + 1, content: if hole { Content::Hole } else { Content::Data } })
            .collect();
        // Near the front, anywhere, or up to the very end.
        let (from, to) = match s.3 {
            0 => (s.0 % 9000, s.1 % 9000),
            1 => (s.0 % size, s.1 % size),
            _ => (size - 1 - s.0 % 200_000, size - 1 - s.1 % 200_000),
        };
        let len = (size - from.max(to)).min(if s.3 == 0 { LEN_MAX } else { s.2 }).max(1);
        let Ok(job) = Job::new(&[seg(from, to, len)], size, size, same) else { return Ok(()) };
        for offload in [Offload::Auto, Offload::Never] {
            let policy = Policy { offload, dest_zero_from: zero_from.unwrap_or(u64::MAX), ..Policy::default() };
            let mut planner = Planner::new(&job, &world, policy);
            let mut steps = Vec::new();
            for step in planner.by_ref().take(300) {
                let step = step.unwrap();
                check_step(&world, policy, &step);
                steps.push(step);
            }
            let covered: u64 = steps.iter().map(|s| s.len).sum();
            if planner.next().is_none() {
                check_cover(&job, &steps);
            } else if !job.overlaps() {
                check_cover(&Job::new(&[seg(from, to, covered)], size, size, same).unwrap(), &steps);
            }
        }
    }
}

// ---- worked examples, as in docs/notes/004-plan.md ----

//= promise 2
#[test]
fn heads_and_tails_go_to_the_next_method() {
    let mut world = pair(100_000, limits(u64::MAX, u64::MAX, 1), &[path(Method::Reflink, 4096)]);
    let job = Job::new(&[seg(1000, 1000, 10_000)], 100_000, 100_000, false).unwrap();
    let steps = world.plan(&job, Policy::default()).0;
    use Method::{CopyFileRange, Emulated, Reflink};
    let parts = |m| vec![(1000, 3096, m), (4096, 4096, Reflink), (8192, 2808, m)];
    assert_eq!(shape(&steps), parts(Emulated));
    assert!(
        steps
            .iter()
            .all(|s| s.legs[0].reason == if s.len == 4096 { Reason::Best } else { Reason::Unaligned })
    );
    // With a second method in between, the ragged ends are not read and written.
    for l in &mut world.leaves {
        l.paths.push(path(CopyFileRange, 1));
    }
    assert_eq!(shape(&world.plan(&job, Policy::default()).0), parts(CopyFileRange));
    // One byte apart: never alignable, so the whole goes by the second method, uncut.
    let job = Job::new(&[seg(1000, 1001, 10_000)], 100_000, 100_000, false).unwrap();
    assert_eq!(shape(&world.plan(&job, Policy::default()).0), [(1001, 10_000, CopyFileRange)]);
}

#[test]
fn a_ragged_tail_is_allowed_at_the_end_of_both_files_only() {
    let tail = CopyPath { tail_at_eof: true, ..path(Method::Reflink, 4096) };
    let mut world = pair(10_000, limits(u64::MAX, u64::MAX, 1), &[tail]);
    let job = Job::new(&[seg(0, 0, 10_000)], 10_000, 10_000, false).unwrap();
    assert_eq!(shape(&world.plan(&job, Policy::default()).0), [(0, 10_000, Method::Reflink)]);
    let job = Job::new(&[seg(0, 0, 9999)], 10_000, 10_000, false).unwrap();
    let cut = [(0, 8192, Method::Reflink), (8192, 1807, Method::Emulated)];
    assert_eq!(shape(&world.plan(&job, Policy::default()).0), cut);
    world.leaves[1].size = 10_001;
    world.dest[0].len = 10_001;
    let job = Job::new(&[seg(0, 0, 10_000)], 10_000, 10_001, false).unwrap();
    assert_eq!(world.plan(&job, Policy::default()).0.len(), 2, "the destination goes on behind the tail");
}

//= promise 5
#[test]
fn limits_are_kept_at_the_limit_and_one_beyond() {
    // 8 blocks a range, 16 a request, 2 ranges.
    let world = pair(1 << 20, limits(16 << 9, 8 << 9, 2), &[path(Method::Memory, 512)]);
    let plan = |blocks: u64| {
        let job = Job::new(&[seg(0, 0, blocks << 9)], 1 << 20, 1 << 20, false).unwrap();
        let steps = world.plan(&job, Policy::default()).0;
        steps
            .iter()
            .map(|s| (s.len >> 9, s.sources.iter().map(|p| p.len >> 9).collect()))
            .collect::<Vec<(u64, Vec<u64>)>>()
    };
    assert_eq!(plan(8), [(8, vec![8])]);
    assert_eq!(plan(9), [(9, vec![8, 1])]);
    assert_eq!(plan(16), [(16, vec![8, 8])]);
    assert_eq!(plan(17), [(16, vec![8, 8]), (1, vec![1])]);
    // Three scattered sources with one contiguous destination: two ranges a request.
    let job =
        Job::new(&[seg(0, 0, 512), seg(1000 << 9, 512, 512), seg(4096, 1024, 512)], 1 << 20, 1 << 20, false);
    let steps = world.plan(&job.unwrap(), Policy::default()).0;
    assert_eq!(steps.iter().map(|s| s.sources.len()).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn a_step_holds_a_bounded_number_of_parts() {
    let world = pair(1 << 20, limits(u64::MAX, u64::MAX, u32::MAX), &[path(Method::Null, 1)]);
    let segments: Vec<Segment> = (0..1000).map(|i| seg(i * 1000, i * 10, 10)).collect();
    let job = Job::new(&segments, 1 << 20, 1 << 20, false).unwrap();
    let steps = world.plan(&job, Policy::default()).0;
    assert_eq!(steps.iter().map(|s| s.sources.len()).collect::<Vec<_>>(), [256, 256, 256, 232]);
}

//= promise 7
#[test]
fn an_overlap_is_cut_so_that_no_step_overlaps_itself() {
    const K: u64 = 1 << 10;
    let mut world = pair(1 << 20, limits(u64::MAX, u64::MAX, 1), &[path(Method::Memory, 512)]);
    world.dest = world.source.clone();
    let plan = |s| world.plan(&Job::new(&[s], 1 << 20, 1 << 20, true).unwrap(), Policy::default()).0;
    // Towards the end: from the back, whole windows counted from the front so that alignment is kept.
    let steps = plan(seg(0, 100 * K, 250 * K));
    let shape_of =
        |s: &[Step]| s.iter().map(|s| (s.sources[0].offset / K, s.len / K, s.barrier)).collect::<Vec<_>>();
    assert_eq!(shape_of(&steps), [(200, 50, true), (100, 100, true), (0, 100, true)]);
    assert!(steps.iter().all(|s| s.method() == Method::Memory && s.order == Order::Any));
    let steps = plan(seg(100 * K, 0, 250 * K));
    assert_eq!(shape_of(&steps), [(100, 100, true), (200, 100, true), (300, 50, true)]);
    // Too near for native copies: through buffers, from the end that is safe.
    let steps = plan(seg(0, 4 * K, 250 * K));
    assert_eq!((steps.len(), steps[0].order, steps[0].method()), (1, Order::Backward, Method::Emulated));
    assert_eq!(steps[0].legs[0].reason, Reason::Overlap);
    assert_eq!(plan(seg(4 * K, 0, 250 * K))[0].order, Order::Forward);
}

/// Holes cut an overlapping copy into several steps: they too come in the safe order, with barriers.
//= promise 7
#[test]
fn holes_in_a_near_overlap_keep_the_order() {
    let mut world = pair(1000, limits(u64::MAX, u64::MAX, 1), &[]);
    world.dest = world.source.clone();
    world.content = [(300, Content::Data), (50, Content::Hole), (650, Content::Data)]
        .map(|(len, content)| Extent { len, content })
        .to_vec();
    for (s, starts) in [(seg(0, 100, 900), [350, 300, 0]), (seg(100, 0, 900), [100, 300, 350])] {
        let job = Job::new(&[s], 1000, 1000, true).unwrap();
        let steps = world.plan(&job, Policy::default()).0;
        assert_eq!(steps.iter().map(|s| s.sources[0].offset).collect::<Vec<_>>(), starts);
        assert!(steps.iter().all(|s| s.barrier));
    }
}

#[test]
fn holes_are_skipped_where_the_destination_is_known_zero() {
    let mut world = pair(3000, limits(u64::MAX, u64::MAX, 1), &[path(Method::CopyFileRange, 1)]);
    world.content =
        [Content::Data, Content::Hole, Content::Zero].map(|content| Extent { len: 1000, content }).to_vec();
    let job = Job::new(&[seg(0, 0, 3000)], 3000, 3000, false).unwrap();
    use Method::{CopyFileRange, Skip, WriteZeroes};
    let plan = |dest_zero_from, sparse| {
        shape(&world.plan(&job, Policy { dest_zero_from, sparse, ..Policy::default() }).0)
    };
    assert_eq!(plan(u64::MAX, Sparse::Auto), [(0, 1000, CopyFileRange), (1000, 2000, WriteZeroes)]);
    assert_eq!(
        plan(1500, Sparse::Auto),
        [(0, 1000, CopyFileRange), (1000, 500, WriteZeroes), (1500, 1500, Skip)]
    );
    assert_eq!(plan(0, Sparse::Auto), [(0, 1000, CopyFileRange), (1000, 2000, Skip)]);
    assert_eq!(plan(0, Sparse::Never), [(0, 1000, Method::Emulated), (1000, 2000, WriteZeroes)]);
}

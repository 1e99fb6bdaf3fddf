//! Plans of files that are mostly holes: their length follows the data, not the size.

use super::*;
use crate::block::device::LeafSpace;
use crate::block::{LEN_MAX, LeafId, Scope};
use crate::copy::Segment;
use std::num::{NonZeroU32, NonZeroU64};

const GIB: u64 = 1 << 30;

/// Two files of the largest size on one file system that shares extents; the source has some data at `data`.
struct Holey {
    leaf: LeafFacts,
    data: ByteRange,
    looks: u64,
}

impl Holey {
    fn new(data: ByteRange) -> Self {
        let step = NonZeroU64::new(GIB).unwrap();
        let path = CopyPath {
            method: Method::Reflink,
            scope: Scope::FileSystem(1),
            align: 4096,
            tail_at_eof: true,
            max_bytes: GIB,
            fate: Fate::Shared,
            carries_holes: true,
            preferred: true,
        };
        let leaf = LeafFacts {
            paths: vec![path],
            limits: Limits::plain(NonZeroU32::MIN).with_copy(step, step, NonZeroU32::MIN),
            size: LEN_MAX,
            identity: Identity::Leaf { leaf: LeafId { space: LeafSpace::File, id: (1, 1) }, base: 0 },
        };
        Self { leaf, data, looks: 0 }
    }
}

impl Facts for &mut Holey {
    fn source_run(&mut self, range: ByteRange) -> Result<Run> {
        Ok(Run { len: range.len(), legs: smallvec![Place { leaf: LeafNo::new(0), offset: range.offset() }] })
    }
    fn dest_run(&mut self, range: ByteRange) -> Result<Run> {
        self.source_run(range)
    }
    fn source_content(&mut self, range: ByteRange) -> Result<Extent> {
        self.looks += 1;
        let at = range.offset();
        let (content, end) = match (at < self.data.offset(), at < self.data.end()) {
            (true, _) => (Content::Hole, self.data.offset()),
            (false, true) => (Content::Data, self.data.end()),
            _ => (Content::Hole, LEN_MAX),
        };
        Ok(Extent { len: (end - at).min(range.len()), content })
    }
    fn leaf(&self, _: LeafNo) -> &LeafFacts {
        &self.leaf
    }
}

fn plan(world: &mut Holey, len: u64, policy: Policy) -> Vec<(u64, u64, Method)> {
    let job = Job::new(&[Segment { source: 0, dest: 0, len }], len, len, false).unwrap();
    // Far more than there are to be: the test ends also when they are too many.
    Planner::new(&job, world, policy)
        .take(1000)
        .map(|step| step.map(|s| (s.dest, s.len, s.method())).unwrap())
        .collect()
}

#[test]
fn a_hole_of_any_length_is_one_step_of_a_method_that_carries_holes() {
    let data = ByteRange::between(5 * GIB + 4096, 5 * GIB + 8192);
    let zeroed = Policy { dest_zero_from: 0, ..Policy::default() };
    let mut world = Holey::new(data);
    let (skip, clone) = (Method::Skip, Method::Reflink);
    let first = 5 * GIB + 4096;
    assert_eq!(
        plan(&mut world, LEN_MAX, zeroed),
        [(0, first, skip), (first, GIB, clone), (first + GIB, LEN_MAX - first - GIB, skip)]
    );
    assert_eq!(world.looks, 3);
    // What one request takes needs no look, and a destination with old bytes in it takes the source's holes by cloning.
    let mut world = Holey::new(data);
    assert_eq!(plan(&mut world, GIB, zeroed), [(0, GIB, clone)]);
    assert_eq!(plan(&mut world, 2 * GIB, Policy::default()), [(0, GIB, clone), (GIB, GIB, clone)]);
    assert_eq!(world.looks, 0);
    // A hole shorter than a step is not a reason for a step of its own.
    let mut world = Holey::new(ByteRange::between(4096, 100 * GIB));
    let steps = plan(&mut world, 3 * GIB, zeroed);
    assert_eq!(steps, [(0, GIB, clone), (GIB, GIB, clone), (2 * GIB, GIB, clone)]);
}

//! What a plan says of its leaves.

use super::*;

//= promise 2
#[test]
fn the_digest_tells_leaves_apart() {
    let mut world = pair(1000, limits(u64::MAX, u64::MAX, 1), &[path(Method::Memory, 1)]);
    world.leaves.push(world.leaves[1].clone());
    let job = Job::new(&[seg(0, 0, 1000)], 1000, 1000, false).unwrap();
    let first = world.plan(&job, Policy::default()).2.digest;
    world.dest[0].legs[0] = place(2, 0);
    let second = world.plan(&job, Policy::default()).2.digest;
    assert_ne!(first, second);
    let never = Policy { offload: Offload::Never, ..Policy::default() };
    assert_ne!(second, world.plan(&job, never).2.digest);
    let shorter = Job::new(&[seg(0, 0, 999)], 1000, 1000, false).unwrap();
    assert_ne!(second, world.plan(&shorter, Policy::default()).2.digest);
}

#[test]
fn a_device_that_names_an_empty_run_is_an_error_not_a_loop() {
    let world = pair(1000, limits(u64::MAX, u64::MAX, 1), &[path(Method::Memory, 1)]);
    struct Empty(World);
    impl Facts for Empty {
        fn source_run(&mut self, _: ByteRange) -> Result<Run> {
            Ok(Run { len: 0, legs: smallvec![place(0, 0)] })
        }
        fn dest_run(&mut self, range: ByteRange) -> Result<Run> {
            Ok(Run { len: range.len(), legs: smallvec![place(1, 0)] })
        }
        fn source_content(&mut self, range: ByteRange) -> Result<Extent> {
            Ok(Extent { len: range.len(), content: Content::Data })
        }
        fn leaf(&self, leaf: LeafNo) -> &LeafFacts {
            &self.0.leaves[leaf.index()]
        }
    }
    let job = Job::new(&[seg(0, 0, 1000)], 1000, 1000, false).unwrap();
    let mut planner = Planner::new(&job, Empty(world), Policy::default());
    assert!(planner.next().unwrap().is_err());
    assert!(planner.next().is_none());
}

#[test]
fn mirror_legs_share_a_length_both_can_copy() {
    // One leg takes 5000 bytes at once, the other multiples of 4096: both copy 4096 by themselves.
    let mut world = pair(1 << 16, limits(u64::MAX, u64::MAX, 1), &[path(Method::Memory, 1)]);
    world.leaves.push(leaf(1 << 16, limits(u64::MAX, u64::MAX, 1), &[path(Method::Memory, 4096)]));
    world.leaves[1].limits = limits(5000, 5000, 1);
    world.dest[0].legs.push(place(2, 0));
    let job = Job::new(&[seg(0, 0, 8192)], 1 << 16, 1 << 16, false).unwrap();
    let (steps, error, _) =
        world.plan(&job, Policy { offload: Offload::Require(Must::Fast), ..Policy::default() });
    assert!(error.is_none(), "{error:?}");
    assert_eq!(shape(&steps), [(0, 4096, Method::Memory), (4096, 4096, Method::Memory)]);
}

/// A leg without offload beside one with it does not lift the other's limits.
#[test]
fn an_emulated_leg_does_not_lift_the_limits_of_its_neighbour() {
    let mut world = pair(1 << 16, limits(1 << 15, 4096, 2), &[path(Method::Memory, 512)]);
    world.leaves.push(leaf(1 << 16, Limits::plain(NonZeroU32::MIN), &[]));
    world.dest[0].legs.push(place(2, 0));
    let job = Job::new(&[seg(0, 0, 1 << 14)], 1 << 16, 1 << 16, false).unwrap();
    let steps = world.plan(&job, Policy::default()).0;
    assert_eq!(steps.iter().map(|s| s.sources.len()).collect::<Vec<_>>(), [2, 2]);
    steps.iter().for_each(|s| check_step(&world, Policy::default(), s));
}

//= promise 2
#[test]
fn an_excluded_method_is_not_planned() {
    let both = [path(Method::Reflink, 4096), path(Method::CopyFileRange, 1)];
    let world = pair(8192, limits(u64::MAX, u64::MAX, 1), &both);
    let job = Job::new(&[seg(0, 0, 8192)], 8192, 8192, false).unwrap();
    let policy = Policy { excluded: MethodSet::default().with(Method::Reflink), ..Policy::default() };
    let steps = world.plan(&job, policy).0;
    assert_eq!(shape(&steps), [(0, 8192, Method::CopyFileRange)]);
    assert_eq!(steps[0].legs[0].reason, Reason::Refused);
}

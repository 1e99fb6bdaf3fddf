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

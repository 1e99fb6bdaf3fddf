//! Any mix of operations on any stack of devices equals the same on flat arrays of blocks: undisturbed, delayed and
//! reordered, with every I/O failing in turn, and with the power cut after every operation.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod common;

use common::*;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    //= promise 1
    #[test]
    fn any_mix_on_any_stack_equals_a_flat_array(
        shapes in [shape(), shape()],
        blocks in [1u64..40, 1u64..40],
        same in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut leaf = |blocks| mem(blocks) as Dev;
        let first = shapes[0].build(blocks[0], &mut leaf);
        // A copy inside one device may overlap itself; it is then as through a buffer.
        let second = if same { first.clone() } else { shapes[1].build(blocks[1], &mut leaf) };
        let mut rig = Rig::new([first, second], same);
        rig.run(&steps);
        rig.finish();
        rig.all_legs_equal();
    }

    //= promise 5, 6
    #[test]
    fn the_power_may_be_cut_after_any_operation(
        shapes in [shape(), shape()],
        blocks in [1u64..24, 1u64..24],
        steps in prop::collection::vec(step(), 1..14),
        seed in any::<u64>(),
    ) {
        // Discards make blocks undefined, and so prove nothing here.
        let steps: Vec<Step> = steps.into_iter().filter(|s| s.kind != What::Discard).collect();
        for edge in 0..=steps.len() {
            let mut disks = Vec::new();
            let mut leaf = |blocks| {
                let disk = volatile(blocks);
                disks.push(disk.clone());
                disk as Dev
            };
            let devices = [shapes[0].build(blocks[0], &mut leaf), shapes[1].build(blocks[1], &mut leaf)];
            let mut rig = Rig::new(devices, false);
            for step in &steps[..edge] {
                rig.run(std::slice::from_ref(step));
            }
            for (i, disk) in disks.iter().enumerate() {
                disk.power_cut(seed ^ i as u64);
                assert_eq!(disk.unflushed_blocks(), 0);
            }
            rig.after_power_cut();
        }
    }
}

/// Every I/O of a script fails in turn, once and then for ever, with nothing done or one block done before.
//= promise 5
#[test]
fn every_nth_fault_is_reported_truthfully() {
    let mut runs = 0;
    let shapes = [
        "m",
        "L(m,m)",
        "M(m,m)",
        "L(M(m,m),m)",
        "M(L(m,m),L(m,m))",
        "M(d(m),m)",
        "S(m,m)",
        "L(m,m,m)",
        "M(m,m,m)",
        "S(M(m,m),m,L(m,m),m)",
    ];
    for (number, text) in shapes.iter().enumerate() {
        let shapes = [Shape::parse(text), Shape::parse("L(m,m)")];
        let steps = script(number as u64, 24);
        for (forever, good_bytes) in [(false, 0), (false, BLOCK), (true, 0), (true, BLOCK)] {
            for nth in 1.. {
                let plan = plan(nth, forever, good_bytes);
                let mut leaf = |blocks| faulty(mem(blocks), &plan);
                let devices = [shapes[0].build(16, &mut leaf), shapes[1].build(16, &mut leaf)];
                let mut rig = Rig::new(devices, false);
                rig.faults = true;
                rig.run(&steps);
                runs += 1;
                let clean = plan.fired() == 0;
                plan.disarm();
                rig.finish();
                if clean {
                    break;
                }
                assert!(nth < 2000, "faults do not get fewer");
            }
        }
    }
    assert!(runs > 500, "only {runs} runs: the script does next to nothing");
}

/// A mirror is there so that one failure of one leg is nobody's business.
#[test]
fn a_mirror_survives_any_single_fault() {
    for text in ["M(m,m)", "M(L(m,m),L(m,m))", "M(d(m),d(m))", "M(m,d(m),m)", "M(S(m,m),m)"] {
        let shape = Shape::parse(text);
        // No copies: one reads from one leg, and reports when that fails.
        let steps: Vec<Step> = script(77, 40).into_iter().filter(|s| s.kind != What::Copy).collect();
        for nth in 1.. {
            let plan = plan(nth, false, 0);
            let mut leaf = |blocks| faulty(mem(blocks), &plan);
            let device = shape.build(16, &mut leaf);
            let mut rig = Rig::new([device.clone(), device], true);
            rig.run(&steps); // panics on any error
            let fired = plan.fired();
            plan.disarm();
            rig.finish();
            if fired == 0 {
                break;
            }
        }
    }
}

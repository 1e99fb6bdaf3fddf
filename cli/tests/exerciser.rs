//! The exerciser: on plain files first, where it must find nothing, then on mounts; and each of its checks shown to
//! bite.
//!
//! `BLKCOPY_EXERCISE="place=memory+cache,seed=7,ops=5000[,growing=1][,only=3+17]"` and the test `replay` run one again;
//! `BLKCOPY_SOAK=1` runs ten times as many steps.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

#[path = "common/child.rs"]
mod child;
mod common;
#[path = "common/exerciser/mod.rs"]
mod exerciser;
#[path = "common/places.rs"]
mod places;
#[path = "common/sites.rs"]
mod sites;

use blkcopy::sim::{CopyBug, Rng};
use blkcopy::sys::blkcopy::{self as calls, Entry};
use common::{MIB, skip};
use exerciser::crowd::Crowd;
use exerciser::model::{self, judge_entries, judge_error, judge_refusal, judge_step};
use exerciser::ops::{How, Op, Pair, Span, Way, Wrong};
use exerciser::{Copied, Run, exercise, minimise};
use places::{Place, Under};
use std::io;
use std::sync::{Condvar, Mutex};

/// Mounts that may run beside each other: more would share two cores, and a mount that waits long looks like one that
/// hangs.
static FREE: (Mutex<u32>, Condvar) = (Mutex::new(2), Condvar::new());

/// The turn of a mount, given back when dropped.
struct Turn;

/// Waits for the turn of this place. Plain files, which nothing watches, need none.
fn turn(place: Place) -> Option<Turn> {
    if !place.is_mount() {
        return None;
    }
    let free = FREE.0.lock().unwrap();
    *FREE.1.wait_while(free, |free| *free == 0).unwrap() -= 1;
    Some(Turn)
}

impl Drop for Turn {
    fn drop(&mut self) {
        *FREE.0.lock().unwrap() += 1;
        FREE.1.notify_one();
    }
}

/// Not a test: the server process of others.
#[test]
fn mount_child() {
    child::serve_if_asked();
}

fn soak() -> usize {
    if std::env::var_os("BLKCOPY_SOAK").is_some() { 10 } else { 1 }
}

fn on(place: Place, seed: u64, ops: usize, growing: bool) -> Option<Copied> {
    let name = place.name();
    if let Err(why) = place.or_why() {
        skip(&format!("the exerciser on {name}"), &why);
        return None;
    }
    let _turn = turn(place);
    let plan = place.plan(seed, ops * soak(), growing);
    let copied = exercise(&name, &plan, &|| place.ground(plan.volumes, plan.size, growing));
    eprintln!("{name}: {} steps, {copied:?}", plan.ops);
    assert!(copied.here > plan.ops as u64 / 20, "{name}: next to nothing was copied: {copied:?}");
    Some(copied)
}

// --- plain files: the kernel's file systems are right, so what is found is a fault of the exerciser
// ------------------------

#[test]
fn nothing_is_found_on_tmpfs() {
    on(Place::new(Under::Tmpfs, false), 1, 20_000, false);
}

#[test]
fn nothing_is_found_on_tmpfs_in_files_that_grow() {
    on(Place::new(Under::Tmpfs, false), 2, 20_000, true);
}

#[test]
fn nothing_is_found_on_ext4() {
    on(Place::new(Under::Ext4, false), 3, 20_000, false);
}

#[test]
fn nothing_is_found_on_ext4_in_files_that_grow() {
    on(Place::new(Under::Ext4, false), 4, 20_000, true);
}

#[test]
fn nothing_is_found_on_xfs() {
    on(Place::new(Under::Xfs, false), 5, 20_000, false);
}

#[test]
fn nothing_is_found_on_xfs_in_files_that_grow() {
    on(Place::new(Under::Xfs, false), 6, 20_000, true);
}

#[test]
fn a_crowd_on_plain_files_finds_nothing() {
    crowd(Place::new(Under::Ext4, false), 11, 3000);
}

// --- mounts
// ------------------------------------------------------------------------------------------------------------

/// Both ways to mount, 10000 steps each; every copy is in the server's receipts.
fn mounted(under: Under, seed: u64, growing: bool) {
    for cache in [false, true] {
        if let Some(copied) = on(Place::new(under, cache), seed, 10_000, growing) {
            assert_eq!(
                copied.told,
                Some(copied.here),
                "the server has made other copies than were asked for"
            );
        }
    }
}

#[test]
fn a_mount_of_memory() {
    mounted(Under::Memory, 21, false);
}

#[test]
fn a_mount_of_files() {
    mounted(Under::File, 22, false);
}

#[test]
fn a_mount_of_files_that_share_extents() {
    mounted(Under::FileXfs, 23, false);
}

#[test]
fn a_mount_of_a_map_of_two_legs() {
    mounted(Under::Map, 24, false);
}

#[test]
fn a_mount_of_nvme_tcp_namespaces() {
    mounted(Under::NvmeTcp, 25, false);
}

#[test]
fn a_resizable_view() {
    mounted(Under::View, 26, true);
}

/// Threads on two volumes at once.
fn crowd(place: Place, seed: u64, rounds: u64) {
    const THREADS: u64 = 4;
    let name = place.name();
    if let Err(why) = place.or_why() {
        return skip(&format!("a crowd on {name}"), &why);
    }
    let _turn = turn(place);
    let ground = place.ground(2, Crowd::size(THREADS), false);
    let caps = place.caps(false);
    let crowd = Crowd {
        paths: &ground.paths,
        beat: &ground.beat,
        caps,
        seed,
        threads: THREADS,
        rounds: rounds * soak() as u64,
        // Plain files promise less, and so does a page cache in between, to reads.
        whole_copies: caps.ioctl,
        whole_reads: caps.ioctl && !place.cache,
    };
    match crowd.run() {
        Ok(copies) => {
            eprintln!("{name}: {copies} copies by a crowd");
            let told = exerciser::copies_told(&ground.paths);
            assert_eq!(told, caps.ioctl.then_some(copies), "the server has made other copies");
        }
        Err(fault) => panic!("{name}: {}", fault.0),
    }
}

#[test]
fn a_crowd_on_mounts_sees_whole_copies_and_no_old_bytes() {
    for (i, under) in [Under::Memory, Under::File, Under::NvmeTcp].into_iter().enumerate() {
        for cache in [false, true] {
            crowd(Place::new(under, cache), 31 + i as u64, 1000);
        }
    }
}

/// The kernel finds out with the first copy which opcode the server knows, and two first copies at once confused it:
/// from then on it copied by itself, and nothing failed.
//= promise 1
#[test]
fn first_copies_that_meet_all_reach_the_server() {
    const COPIERS: usize = 6;
    let place = Place::new(Under::Memory, false);
    if let Err(why) = place.or_why() {
        return skip("first_copies_that_meet_all_reach_the_server", &why);
    }
    let _turn = turn(place);
    for _ in 0..10 {
        let ground = place.ground(COPIERS, 64 << 10, false);
        let barrier = std::sync::Barrier::new(COPIERS);
        std::thread::scope(|scope| {
            for path in &ground.paths {
                let barrier = &barrier;
                scope.spawn(move || {
                    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
                    barrier.wait();
                    assert_eq!(
                        calls::copy_file_range(&file, &file, Entry::new(0, 4096, 4096)).unwrap(),
                        4096
                    );
                });
            }
        });
        assert_eq!(exerciser::copies_told(&ground.paths), Some(COPIERS as u64));
    }
}

// --- planted bugs
// --------------------------------------------------------------------------------------------------------

/// Each mistake of a copying device is found, in about as many steps as fsx needs.
#[test]
fn every_planted_copy_bug_is_found() {
    for (i, bug) in CopyBug::ALL.into_iter().enumerate() {
        let place = Place::new(Under::Bug(i), i % 2 == 1);
        if let Err(why) = place.or_why() {
            return skip("every_planted_copy_bug_is_found", &why);
        }
        let budget = match bug {
            CopyBug::Rare => 100_000,
            CopyBug::LongTail => 6000,
            _ => 400,
        };
        let _turn = turn(place);
        let plan = place.plan(41, budget, false);
        let make = || place.ground(plan.volumes, plan.size, false);
        let steps = plan.steps();
        let failure = exerciser::run(&plan, &make, &steps).expect_err(&format!("{bug:?} is not found"));
        let what = failure.fault.0.lines().next().unwrap_or_default();
        eprintln!("{bug:?}: found at step {}: {what}", failure.step);
        assert!(what.contains("first wrong byte"), "{bug:?}: {what}");
        if bug == CopyBug::LastByte {
            let text = exerciser::report(&place.name(), &plan, &make, &steps, &failure);
            let short: usize = text
                .lines()
                .find_map(|l| l.strip_suffix(" steps that still fail:"))
                .and_then(|n| n.parse().ok())
                .unwrap();
            assert!(short <= 4, "a write, a copy, and a look: {text}");
            assert!(text.contains("BLKCOPY_EXERCISE=\"place=bug0,seed=41,"), "{text}");
        }
    }
}

// --- the exerciser's own checks
// ------------------------------------------------------------------------------------------

/// A run of `steps` with one byte of the model changed before the step `at`.
fn lied_to(steps: &[Op], at: usize, (volume, byte): (usize, usize), growing: bool) -> Result<(), usize> {
    let place = Place::new(Under::Ext4, false);
    let plan = place.plan(0, 0, growing);
    let ground = place.ground(plan.volumes, plan.size, growing);
    let mut run = Run::new(&plan, &ground).unwrap();
    for (i, step) in steps.iter().enumerate() {
        if i == at {
            run.model.0[volume][byte] ^= 0x40;
        }
        run.step(step).map_err(|_| i)?;
    }
    Ok(())
}

#[test]
fn a_wrong_byte_is_seen_by_every_way_to_look() {
    let span = |at, len| Span { volume: 1, at, len };
    let read = |way| Op::Read { from: span(4096, 8192), way };
    let pairs = vec![Pair { source: 0, dest: 100_000, len: 5000 }];
    let copy = |look| Op::Copy { from: 1, to: 0, pairs: pairs.clone(), how: How::Range, look };
    let write = Op::Write { to: span(0, 65_536), way: Way::Plain, salt: 5 };
    for (look, volume, byte) in [
        (read(Way::Plain), 1, 4096),
        (read(Way::Direct), 1, 4096 + 8191),
        (read(Way::Mapped), 1, 6000),
        (Op::Compare, 2, 2 * MIB as usize - 1),
        // What was beside the destination, and the source.
        (copy(Some(Way::Plain)), 0, 99_999),
        (copy(Some(Way::Mapped)), 0, 105_000),
    ] {
        let steps = [write.clone(), look.clone()];
        assert_eq!(lied_to(&steps, 9, (volume, byte), false), Ok(()), "{look:?}, the truth");
        assert_eq!(lied_to(&steps, 1, (volume, byte), false), Err(1), "{look:?}");
    }
    // One step reads what another left: neither a copy nor zeroes put a lie right.
    let steps = [write, copy(None), read(Way::Plain)];
    assert_eq!(lied_to(&steps, 1, (1, 5000), false), Err(2));
}

#[test]
fn a_hole_over_bytes_is_seen() {
    let steps = [Op::Seek { volume: 0, at: 0 }];
    assert_eq!(lied_to(&steps, 9, (0, 70_000), false), Ok(()));
    assert_eq!(lied_to(&steps, 0, (0, 70_000), false), Err(0));
}

#[test]
fn a_wrong_size_is_seen() {
    let place = Place::new(Under::Ext4, false);
    let plan = place.plan(0, 0, true);
    let ground = place.ground(plan.volumes, plan.size, true);
    let mut run = Run::new(&plan, &ground).unwrap();
    run.step(&Op::Write { to: Span { volume: 0, at: 10, len: 10 }, way: Way::Plain, salt: 1 }).unwrap();
    run.step(&Op::Compare).unwrap();
    // Both ways: the file is longer than it should be, or shorter.
    run.model.0[0].pop();
    let fault = run.step(&Op::Compare).unwrap_err();
    assert!(fault.0.contains("20 bytes, where 19"), "{fault:?}");
    run.model.0[0].extend([0; 5]);
    let past = Op::Read { from: Span { volume: 0, at: 0, len: 100 }, way: Way::Plain };
    assert!(run.step(&past).unwrap_err().0.contains("gives 20 bytes, where 24"));
}

#[test]
fn what_should_be_refused_and_is_taken_is_seen() {
    // A plain file takes a write behind its end, and knows none of the copy calls.
    let place = Place::new(Under::Ext4, false);
    let plan = place.plan(0, 0, false);
    let ground = place.ground(plan.volumes, plan.size, false);
    let mut run = Run::new(&plan, &ground).unwrap();
    for wrong in [Wrong::RangePastEnd, Wrong::WritePastEnd, Wrong::SelfOverlap, Wrong::StrangeToken] {
        let step = Op::Wrong { volume: 0, wrong, at: 4096, len: 1000 };
        assert!(run.step(&step).is_err(), "{wrong:?}");
    }
}

#[test]
fn answers_are_judged() {
    let io = |n: i32| io::Error::from_raw_os_error(n);
    let (inval, nospc) = (22, 28);
    assert!(
        judge_step(Ok(0), 5).is_err() && judge_step(Ok(6), 5).is_err() && judge_step(Err(io(5)), 5).is_err()
    );
    assert_eq!(judge_step(Ok(3), 5), Ok(3));
    assert!(
        judge_error("", Ok(1), &[inval]).is_err() && judge_error::<()>("", Err(io(nospc)), &[inval]).is_err()
    );
    assert!(judge_error::<()>("", Err(io(inval)), &[nospc, inval]).is_ok());
    assert!(judge_refusal("", Err(io(inval)), &[0, 0], &[inval]).is_ok());
    assert!(judge_refusal("", Err(io(inval)), &[0, 1], &[inval]).is_err());
    let mut entry = Entry::new(0, 10, 5);
    assert!(judge_entries(Ok(()), &[entry]).is_err());
    entry.comp_len = 5;
    assert!(judge_entries(Ok(()), &[entry]).is_ok() && judge_entries(Err(io(5)), &[entry]).is_err());
    let held = model::Model::new(1, 100);
    assert!(held.judge_hole(0, 0, 100).is_ok() && held.judge_hole(0, 0, 101).is_err());
    assert!(held.judge_hole(0, 9, 8).is_err());
}

#[test]
fn the_same_seed_makes_the_same_steps_of_every_kind() {
    for (under, growing) in [(Under::Memory, false), (Under::Ext4, true)] {
        let plan = Place::new(under, false).plan(9, 5000, growing);
        let steps = plan.steps();
        assert!(steps == plan.steps() && steps.len() == 5000);
        let line = serde_json::to_string(&steps).unwrap();
        assert!(
            serde_json::from_str::<Vec<Op>>(&line).unwrap() == steps,
            "steps can be written down and read again"
        );
        assert_ne!(Place::new(under, false).plan(10, 5000, growing).steps(), steps);
        let kinds =
            ["Write", "Read", "Copy", "Punch", "Zero", "Truncate", "Sync", "Reopen", "Seek", "Invalidate"];
        for kind in kinds.into_iter().chain(["Wrong", "Compare", "Mapped", "Direct"]) {
            assert!(line.contains(&format!("\"{kind}\"")), "{under:?}: no {kind}");
        }
        let calls = ["Ioctl", "Twin", "RangeDirect", "WritePastEnd", "StrangeToken", "OtherCount"];
        for call in calls.into_iter().filter(|_| !growing) {
            assert!(line.contains(&format!("\"{call}\"")), "{under:?}: no {call}");
        }
    }
}

#[test]
fn the_short_list_still_fails_and_nothing_can_be_left_out() {
    let plan = Place::new(Under::Ext4, false).plan(3, 400, false);
    let steps = plan.steps();
    // Fails when these three are there in this order.
    let needed = [17, 203, 399];
    let is_there = |list: &[Op], at: usize| list.iter().any(|op| *op == steps[at]);
    let mut tries = 0;
    let short = minimise::minimise(&steps, 300, &mut |list| {
        tries += 1;
        needed.iter().all(|&at| is_there(list, at))
    });
    let same = short.len() == 3 && short.iter().zip(needed).all(|(&i, at)| steps[i] == steps[at]);
    assert!(same && tries <= 300, "{short:?} after {tries}");
    // The budget holds.
    tries = 0;
    minimise::minimise(&steps, 10, &mut |_| {
        tries += 1;
        tries % 2 == 0
    });
    assert!(tries <= 10);
}

// --- again
// ---------------------------------------------------------------------------------------------------------------

/// Runs what `BLKCOPY_EXERCISE` says; nothing without it.
#[test]
fn replay() {
    let Ok(what) = std::env::var("BLKCOPY_EXERCISE") else { return };
    let value = |key: &str| what.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
    let number = |key: &str, none: u64| value(key).map_or(none, |v| v.parse().unwrap());
    let place = Place::named(value("place").unwrap_or("memory")).expect("a place of tests/common/places.rs");
    place.or_why().unwrap();
    let growing = number("growing", 0) == 1;
    let fresh = Rng::new(u64::from(std::process::id())).next_u64();
    let plan = place.plan(number("seed", fresh), number("ops", 10_000) as usize, growing);
    let mut steps = plan.steps();
    if let Some(only) = value("only") {
        let only: Vec<usize> = only.split('+').map(|n| n.parse().unwrap()).collect();
        steps = only.iter().map(|&i| steps[i].clone()).collect();
    }
    let make = || place.ground(plan.volumes, plan.size, growing);
    match exerciser::run(&plan, &make, &steps) {
        Ok(copied) => eprintln!("{}, seed {}: {} steps, {copied:?}", place.name(), plan.seed, steps.len()),
        Err(failure) => panic!("{}", exerciser::report(&place.name(), &plan, &make, &steps, &failure)),
    }
}

//! The gate's rules one by one, and any script of requests: one way at a time, no two changes of one block, all get
//! through.

use super::*;
use proptest::prelude::*;
use std::sync::atomic::AtomicUsize;

fn nobody() -> Wake {
    Arc::new(|| ())
}

fn range(from: u64, to: u64) -> ByteRange {
    ByteRange::between(from, to)
}

fn read(need: Need) -> Entry {
    Entry { need, likes: Way::Direct, write: None }
}

fn write(from: u64, to: u64) -> Entry {
    Entry { need: Need::Either, likes: Way::Direct, write: Some(Span::of(range(from, to), 512)) }
}

fn written() -> Arc<Gate> {
    let gate = Arc::new(Gate::new());
    gate.add_writer();
    gate.assume_clean();
    gate
}

fn go(gate: &Arc<Gate>, entry: Entry) -> Pass {
    match gate.enter(entry, None, &nobody()) {
        Entered::Go(pass) => pass,
        Entered::Wait(..) => panic!("has to wait"),
    }
}

fn waits(gate: &Arc<Gate>, entry: Entry) -> Ticket {
    match gate.enter(entry, None, &nobody()) {
        Entered::Go(pass) => panic!("goes {:?}", pass.way()),
        Entered::Wait(ticket, switch) => {
            assert!(switch.is_none());
            ticket
        }
    }
}

fn goes_now(gate: &Arc<Gate>, entry: Entry, ticket: Ticket) -> Pass {
    match gate.enter(entry, Some(ticket), &nobody()) {
        Entered::Go(pass) => pass,
        Entered::Wait(..) => panic!("still has to wait"),
    }
}

#[test]
fn a_span_knows_its_ragged_blocks() {
    for (from, to, whole, first, last) in [
        (0, 512, (0, 512), false, false),
        (1, 512, (0, 512), true, false),
        (0, 511, (0, 512), false, true),
        (511, 513, (0, 1024), true, true),
        (512, 1025, (512, 1536), false, true),
        (600, 700, (512, 1024), true, true),
    ] {
        let span = Span::of(range(from, to), 512);
        assert_eq!((span.whole().offset(), span.whole().end()), whole);
        assert_eq!((!span.first.is_empty(), !span.last.is_empty()), (first, last), "{from}..{to}");
    }
    assert!(!Span::of(range(3, 77), 1).is_ragged());
}

#[test]
fn while_nobody_writes_each_read_goes_as_it_likes() {
    let gate = Arc::new(Gate::new());
    let (a, b) = (go(&gate, read(Need::Either)), go(&gate, read(Need::Cached)));
    assert_eq!((a.way(), b.way()), (Way::Direct, Way::Cached));
    // A writer comes: it waits until both have ended, and then the cache is made clean first.
    gate.add_writer();
    let first = waits(&gate, write(0, 512));
    drop(a);
    let Entered::Go(along) = gate.enter(read(Need::Cached), None, &nobody()) else { panic!("waits") };
    drop((b, along));
    for _ in 0..CACHED_RUN {
        // It is let along with what has to be cached.
        drop(go(&gate, read(Need::Either)));
    }
    let Entered::Wait(first, Some(switch)) = gate.enter(write(0, 512), Some(first), &nobody()) else {
        panic!("the cache is not clean")
    };
    drop(waits(&gate, read(Need::Cached)));
    switch.done();
    assert_eq!(goes_now(&gate, write(0, 512), first).way(), Way::Direct);
}

#[test]
fn the_cache_is_used_only_when_nothing_goes_direct_and_nothing_overtakes() {
    let gate = written();
    let direct = go(&gate, write(0, 512));
    let cached = waits(&gate, read(Need::Cached));
    let late = waits(&gate, write(4096, 4608));
    let hole = waits(&gate, Entry { need: Need::Neutral, ..write(8192, 12288) });
    drop(direct);
    let cached = goes_now(&gate, read(Need::Cached), cached);
    assert_eq!(cached.way(), Way::Cached);
    // Those behind it come along instead of waiting for the way back.
    assert_eq!(goes_now(&gate, write(4096, 4608), late).way(), Way::Cached);
    drop(hole);
    drop(cached);
    assert_eq!(gate.passed(), Passed { direct: 1, cached: 2, switches: 1, waited: 3 });
}

#[test]
fn a_switch_that_fails_or_is_forgotten_leaves_the_way_and_stops_nobody() {
    let gate = Arc::new(Gate::new());
    gate.add_writer();
    let Entered::Wait(ticket, Some(switch)) = gate.enter(write(0, 512), None, &nobody()) else {
        panic!("nothing is known of the cache")
    };
    drop(switch);
    assert_eq!(goes_now(&gate, write(0, 512), ticket).way(), Way::Cached);
    gate.give_up_direct();
    assert!(!gate.may_go_direct());
    for _ in 0..2 * CACHED_RUN {
        assert_eq!(go(&gate, write(0, 512)).way(), Way::Cached);
    }
}

#[test]
fn two_changes_of_one_block_and_a_write_of_it_exclude_each_other() {
    let gate = written();
    let first = go(&gate, write(100, 600));
    // The block at its end, the block at its front as a whole, and the same block from the other side.
    for (from, to) in [(600, 700), (0, 512), (512, 1024), (0, 1), (1000, 2000)] {
        drop(waits(&gate, write(from, to)));
    }
    let apart = go(&gate, write(1024, 1500));
    // Whole blocks never exclude each other.
    let (a, b) = (go(&gate, write(2048, 2560)), go(&gate, write(2048, 4096)));
    // A ragged one waits for whole ones, and what comes after it waits for it.
    let ragged = waits(&gate, write(2100, 2200));
    let later = waits(&gate, write(2048, 2560));
    drop((a, b));
    let ragged = goes_now(&gate, write(2100, 2200), ragged);
    let Entered::Wait(later, None) = gate.enter(write(2048, 2560), Some(later), &nobody()) else {
        panic!("beside the change of its block")
    };
    drop(ragged);
    drop(goes_now(&gate, write(2048, 2560), later));
    drop((first, apart));
}

#[test]
fn whoever_waits_is_woken_when_it_may_go_on_also_by_a_place_given_up() {
    let gate = written();
    let rung = Arc::new(AtomicUsize::new(0));
    let counts = rung.clone();
    let wake: Wake = Arc::new(move || {
        counts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    });
    let heard = || rung.swap(0, std::sync::atomic::Ordering::Relaxed) > 0;
    let direct = go(&gate, write(0, 512));
    let Entered::Wait(cached, None) = gate.enter(read(Need::Cached), None, &wake) else { panic!("goes") };
    let Entered::Wait(behind, None) = gate.enter(write(512, 1024), None, &wake) else { panic!("goes") };
    drop(cached);
    assert!(heard(), "the place before it was given up");
    let pass = goes_now(&gate, write(512, 1024), behind);
    let Entered::Wait(cached, None) = gate.enter(read(Need::Cached), None, &wake) else { panic!("goes") };
    drop(pass);
    drop(direct);
    assert!(heard(), "nothing goes direct any more");
    drop(goes_now(&gate, read(Need::Cached), cached));
    gate.remove_writer();
    assert!(gate.is_free());
}

#[test]
fn a_write_in_flight_keeps_the_cache_out_when_its_handle_has_gone() {
    let gate = written();
    let direct = go(&gate, write(0, 512));
    gate.remove_writer();
    let cached = waits(&gate, read(Need::Cached));
    drop(direct);
    assert_eq!(goes_now(&gate, read(Need::Cached), cached).way(), Way::Cached);
}

/// A request of a script, and where it stands.
struct Scripted {
    entry: Entry,
    place: Place,
}

enum Place {
    Waits(Option<Ticket>),
    Runs(Pass),
    Ended,
}

proptest! {
    //= promise files
    #[test]
    fn any_script_goes_one_way_at_a_time_and_all_get_through(
        script in prop::collection::vec((0u8..40, 0u64..40, 1u64..12, 0u8..8), 1..300),
    ) {
        let gate = Arc::new(Gate::new());
        gate.add_writer();
        let mut all: Vec<Scripted> = Vec::new();
        let mut switch: Option<Switch> = None;
        let mut turn = |all: &mut Vec<Scripted>, end: usize| {
            // One that runs ends, or the switch does.
            if let Some(switch) = switch.take() {
                if end % 5 == 4 { drop(switch) } else { switch.done() }
            } else if !(6..=8).contains(&end) {
                let mut runs: Vec<_> = all.iter_mut().filter(|s| matches!(s.place, Place::Runs(_))).collect();
                if !runs.is_empty() {
                    let at = end % runs.len();
                    runs[at].place = Place::Ended;
                }
            }
            for one in all.iter_mut() {
                let Place::Waits(ticket) = &mut one.place else { continue };
                one.place = match gate.enter(one.entry, ticket.take(), &nobody()) {
                    Entered::Go(pass) => Place::Runs(pass),
                    Entered::Wait(ticket, more) => {
                        assert!(more.is_none() || switch.is_none(), "two switches at once");
                        switch = switch.take().or(more);
                        Place::Waits(Some(ticket))
                    }
                };
            }
            let running: Vec<(&Entry, Way)> = all.iter().filter_map(|s| match &s.place {
                Place::Runs(pass) => Some((&s.entry, pass.way())),
                _ => None,
            }).collect();
            assert!(switch.is_none() || running.is_empty(), "something is in flight during a switch");
            for (i, (a, way)) in running.iter().enumerate() {
                for (b, other) in &running[i + 1..] {
                    assert_eq!(way, other, "both ways at once");
                    if let (Way::Direct, Some(x), Some(y)) = (way, &a.write, &b.write) {
                        assert!(!x.excludes(y), "{x:?} beside {y:?}");
                    }
                }
                assert!(a.need != Need::Cached || *way == Way::Cached);
            }
        };
        for (kind, at, len, end) in script {
            let span = Span::of(range(at * 100, (at + len) * 100), 512);
            let entry = match kind {
                0 => Entry { need: Need::Cached, likes: Way::Cached, write: Some(span) },
                1 => Entry { need: Need::Neutral, likes: Way::Direct, write: Some(Span::of(span.whole(), 1)) },
                2..10 => Entry { need: Need::Either, likes: Way::Direct, write: None },
                _ => Entry { need: Need::Either, likes: Way::Direct, write: Some(span) },
            };
            all.push(Scripted { entry, place: Place::Waits(None) });
            turn(&mut all, usize::from(end));
        }
        for end in 0..10 * all.len() + 20 {
            turn(&mut all, end);
        }
        prop_assert!(all.iter().all(|s| matches!(s.place, Place::Ended)), "not all got through");
        let state = gate.state();
        prop_assert_eq!((state.in_flight, state.ragged, state.writes.len(), state.waiting.len()), ([0; 2], 0, 0, 0));
    }
}

//! One rule and its edges each; then fairness, and threads.

use super::*;
use crate::block::{ByteRange, LeafId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake};

fn at(from: u64, to: u64) -> ByteRange {
    ByteRange::between(from, to)
}

fn core(domain: &LockDomain) -> CoreLocks {
    domain.attach(|| ()).unwrap()
}

/// A core that counts its wake-ups.
fn counted(domain: &LockDomain) -> (CoreLocks, Arc<AtomicUsize>) {
    let wakes = Arc::new(AtomicUsize::new(0));
    let counter = wakes.clone();
    let wake = move || {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    (domain.attach(wake).unwrap(), wakes)
}

fn copy(locks: &CoreLocks, leaf: LeafId, source: ByteRange, dest: ByteRange) -> CopyTicket {
    locks.begin_copy([Claim::shared(leaf, source), Claim::exclusive(leaf, dest)].into_iter().collect())
}

fn held(begun: Begun) -> IoTicket {
    match begun {
        Begun::Held(ticket) => ticket,
        Begun::Waiting(_) => panic!("nothing is in the way"),
    }
}

fn waiting(begun: Begun) -> WaitId {
    match begun {
        Begun::Held(_) => panic!("a copy is in the way"),
        Begun::Waiting(id) => id,
    }
}

fn released(locks: &CoreLocks) -> Vec<Released> {
    let mut out = Vec::new();
    locks.take_released(&mut out);
    out
}

#[test]
fn plain_io_never_waits_for_plain_io() {
    let (locks, leaf) = (core(&LockDomain::new()), LeafId::fresh());
    let a = held(locks.begin_io(&[Claim::exclusive(leaf, at(0, 10))]));
    let b = held(locks.begin_io(&[Claim::exclusive(leaf, at(0, 10))]));
    let c = held(locks.begin_io(&[Claim::shared(leaf, at(5, 6))]));
    for ticket in [a, b, c] {
        locks.end_io(ticket);
    }
    assert_eq!(locks.counters().io_waits, 0);
}

//= promise 4
#[test]
fn reads_wait_for_destinations_and_writes_for_both_ends() {
    let (locks, leaf) = (core(&LockDomain::new()), LeafId::fresh());
    let ticket = copy(&locks, leaf, at(0, 10), at(20, 30));
    assert!(ticket.is_granted());
    let other = LeafId::fresh();
    for (claim, waits) in [
        (Claim::shared(leaf, at(0, 10)), false),
        (Claim::exclusive(leaf, at(9, 12)), true),
        (Claim::exclusive(leaf, at(10, 20)), false),
        (Claim::shared(leaf, at(19, 21)), true),
        (Claim::exclusive(leaf, at(29, 40)), true),
        (Claim::shared(leaf, at(30, 40)), false),
        (Claim::exclusive(other, at(0, 40)), false),
        (Claim::exclusive(leaf, at(25, 25)), false),
    ] {
        match locks.begin_io(&[claim]) {
            Begun::Held(io) => {
                assert!(!waits, "{claim:?}");
                locks.end_io(io);
            }
            Begun::Waiting(id) => {
                assert!(waits, "{claim:?}");
                assert!(locks.cancel_wait(id));
            }
        }
    }
    assert!(!locks.pump(), "cancelled waits are not released");
    locks.end_copy(ticket);
    assert!(released(&locks).is_empty());
}

#[test]
fn the_ends_of_one_copy_may_overlap_and_sources_be_shared() {
    let (locks, leaf) = (core(&LockDomain::new()), LeafId::fresh());
    let a = copy(&locks, leaf, at(0, 10), at(5, 15));
    assert!(a.is_granted());
    locks.end_copy(a);
    let a = copy(&locks, leaf, at(0, 10), at(20, 30));
    let b = copy(&locks, leaf, at(0, 10), at(30, 40));
    assert!(a.is_granted() && b.is_granted());
}

#[test]
fn conflicting_copies_are_granted_in_the_order_they_begin() {
    let (locks, leaf) = (core(&LockDomain::new()), LeafId::fresh());
    locks.open_leaf(leaf);
    let a = copy(&locks, leaf, at(0, 10), at(20, 30));
    let b = copy(&locks, leaf, at(20, 30), at(40, 50));
    // Conflicts with b only, which waits: it must not overtake.
    let c = copy(&locks, leaf, at(60, 70), at(45, 55));
    let d = copy(&locks, leaf, at(80, 90), at(90, 100));
    let granted = |tickets: [&CopyTicket; 4]| tickets.map(CopyTicket::is_granted);
    assert_eq!(granted([&a, &b, &c, &d]), [true, false, false, true]);
    locks.end_copy(a);
    assert!(b.is_granted() && !c.is_granted());
    assert!(locks.pump(), "the home core hears of a grant");
    drop(b);
    assert!(!c.is_granted(), "this core runs and has not pumped");
    assert!(locks.pump() && c.is_granted());
    assert_eq!(locks.counters().copy_waits, 2);
}

#[test]
fn a_copy_that_ends_while_it_waits_lets_later_ones_pass() {
    let (locks, leaf) = (core(&LockDomain::new()), LeafId::fresh());
    let a = copy(&locks, leaf, at(0, 10), at(20, 30));
    let b = copy(&locks, leaf, at(25, 35), at(40, 50));
    let c = copy(&locks, leaf, at(60, 70), at(40, 50));
    assert!(!b.is_granted() && !c.is_granted());
    locks.end_copy(b);
    assert!(c.is_granted());
    drop((a, c));
}

#[test]
fn a_copy_waits_until_what_overlaps_has_drained() {
    let (locks, leaf) = (core(&LockDomain::new()), LeafId::fresh());
    let read = held(locks.begin_io(&[Claim::shared(leaf, at(20, 21))]));
    let write = held(locks.begin_io(&[Claim::exclusive(leaf, at(0, 1))]));
    let harmless = held(locks.begin_io(&[Claim::shared(leaf, at(0, 10))]));
    let ticket = copy(&locks, leaf, at(0, 10), at(20, 30));
    assert!(!ticket.is_granted());
    locks.end_io(read);
    assert!(!ticket.is_granted());
    locks.end_io(write);
    assert!(ticket.is_granted());
    assert!(locks.pump());
    locks.end_io(harmless);
}

#[test]
fn several_claims_are_taken_all_at_once_or_not_at_all() {
    let (locks, x, y) = (core(&LockDomain::new()), LeafId::fresh(), LeafId::fresh());
    let first = copy(&locks, x, at(0, 10), at(10, 20));
    let both = waiting(locks.begin_io(&[Claim::exclusive(x, at(0, 5)), Claim::exclusive(y, at(0, 5))]));
    locks.end_copy(first);
    let mut out = released(&locks);
    assert_eq!(out[0].id, both);
    let second = copy(&locks, y, at(100, 110), at(0, 10));
    assert!(!second.is_granted(), "the second claim is held too");
    locks.end_io(out.remove(0).ticket);
    assert!(second.is_granted());
    let (on_y, on_x) = (Claim::exclusive(y, at(0, 5)), Claim::exclusive(x, at(0, 5)));
    let blocked = waiting(locks.begin_io(&[on_x, on_y]));
    let third = copy(&locks, LeafId::fresh(), at(0, 1), at(1, 2));
    assert!(third.is_granted());
    // Waiting for y it holds nothing of x, but it came first: a copy on x lets it by.
    let fourth = copy(&locks, x, at(0, 10), at(10, 20));
    assert!(!fourth.is_granted());
    assert!(locks.cancel_wait(blocked));
    assert!(fourth.is_granted());
}

#[test]
fn waiting_io_is_released_in_order_and_before_later_copies() {
    let (locks, leaf) = (core(&LockDomain::new()), LeafId::fresh());
    let first = copy(&locks, leaf, at(0, 10), at(20, 30));
    let ids: Vec<_> =
        (0..4).map(|n| waiting(locks.begin_io(&[Claim::exclusive(leaf, at(n, n + 1))]))).collect();
    let second = copy(&locks, leaf, at(40, 50), at(0, 10));
    locks.end_copy(first);
    let out = released(&locks);
    assert_eq!(out.iter().map(|r| r.id).collect::<Vec<_>>(), ids);
    for one in out {
        assert!(!second.is_granted());
        locks.end_io(one.ticket);
    }
    assert!(second.is_granted());
}

//= promise 8
#[test]
fn a_wait_ends_once_by_release_or_by_cancelling() {
    let (locks, leaf) = (core(&LockDomain::new()), LeafId::fresh());
    let ticket = copy(&locks, leaf, at(0, 10), at(20, 30));
    let write = [Claim::exclusive(leaf, at(0, 1))];
    let (a, b) = (waiting(locks.begin_io(&write)), waiting(locks.begin_io(&write)));
    locks.end_copy(ticket);
    assert!(locks.cancel_wait(a), "released, but not taken yet");
    let out = released(&locks);
    assert_eq!(out.len(), 1);
    assert!(!locks.cancel_wait(b) && !locks.cancel_wait(a));
    let next = copy(&locks, leaf, at(0, 10), at(20, 30));
    assert!(!next.is_granted(), "b holds its claim, a does not");
    for one in out {
        locks.end_io(one.ticket);
    }
    assert!(next.is_granted());
}

#[test]
fn other_cores_drain_and_are_kept_away() {
    let (domain, leaf) = (LockDomain::new(), LeafId::fresh());
    let (a, b) = (core(&domain), core(&domain));
    let write = held(b.begin_io(&[Claim::exclusive(leaf, at(0, 1))]));
    let ticket = copy(&a, leaf, at(0, 10), at(20, 30));
    // b has not pumped: it may still begin, and the copy waits for that too.
    let late = held(b.begin_io(&[Claim::shared(leaf, at(20, 21))]));
    b.end_io(write);
    assert!(!b.pump() && !ticket.is_granted());
    let blocked = waiting(b.begin_io(&[Claim::shared(leaf, at(20, 21))]));
    b.end_io(late);
    assert!(ticket.is_granted() && a.pump() && !a.pump());
    a.end_copy(ticket);
    assert!(released(&b).is_empty());
    assert!(b.pump());
    assert_eq!(released(&b)[0].id, blocked);
}

#[test]
fn a_copy_asks_only_cores_that_have_its_leaves_open() {
    let (domain, leaf, other) = (LockDomain::new(), LeafId::fresh(), LeafId::fresh());
    let (a, b) = (core(&domain), core(&domain));
    // b runs, never looks at its mail, and has I/O in flight elsewhere: as if its device hung.
    let hangs = held(b.begin_io(&[Claim::exclusive(other, at(0, 100))]));
    let ticket = copy(&a, leaf, at(0, 10), at(20, 30));
    assert!(ticket.is_granted(), "b has the leaf not open");
    a.end_copy(ticket);
    // Opened and closed again: asked no more. With I/O in flight it stays open.
    b.open_leaf(leaf);
    b.open_leaf(leaf);
    b.close_leaf(leaf);
    let asked = copy(&a, leaf, at(0, 10), at(20, 30));
    assert!(!asked.is_granted());
    b.close_leaf(leaf);
    assert!(!b.pump() && asked.is_granted(), "what was asked before is answered");
    a.end_copy(asked);
    let ticket = copy(&a, leaf, at(0, 10), at(20, 30));
    assert!(ticket.is_granted());
    a.end_copy(ticket);
    b.open_leaf(leaf);
    let write = held(b.begin_io(&[Claim::exclusive(leaf, at(0, 1))]));
    b.close_leaf(leaf);
    let ticket = copy(&a, leaf, at(0, 10), at(20, 30));
    b.end_io(write);
    assert!(!b.pump() && ticket.is_granted());
    a.end_copy(ticket);
    b.pump();
    b.end_io(hangs);
    assert_eq!(b.counters().messages, 4, "both ends of the two copies that asked, and nothing else");
}

#[test]
fn a_core_that_opens_a_leaf_keeps_away_from_copies_that_run_there() {
    let (domain, leaf, other) = (LockDomain::new(), LeafId::fresh(), LeafId::fresh());
    let (a, b) = (core(&domain), core(&domain));
    b.open_leaf(other);
    let claims = [Claim::shared(leaf, at(0, 10)), Claim::exclusive(other, at(0, 10))];
    // One that b has heard of by another leaf, and one that it has not.
    let (heard, unheard) =
        (a.begin_copy(claims.into_iter().collect()), copy(&a, leaf, at(20, 30), at(40, 50)));
    assert!(!b.pump() && heard.is_granted() && unheard.is_granted());
    let first = waiting(b.begin_io(&[Claim::exclusive(leaf, at(0, 1))]));
    let second = waiting(b.begin_io(&[Claim::exclusive(leaf, at(20, 21))]));
    let free = held(b.begin_io(&[Claim::exclusive(leaf, at(10, 20))]));
    b.end_io(free);
    a.end_copy(unheard);
    assert!(b.pump());
    let mut out = released(&b);
    assert_eq!((out.len(), out[0].id), (1, second));
    b.end_io(out.remove(0).ticket);
    a.end_copy(heard);
    assert!(b.pump());
    let mut out = released(&b);
    assert_eq!(out[0].id, first);
    b.end_io(out.remove(0).ticket);
}

#[test]
fn a_parked_core_is_served_by_others_and_woken_only_for_what_it_waits_for() {
    let (domain, leaf) = (LockDomain::new(), LeafId::fresh());
    let (a, a_wakes) = counted(&domain);
    let (b, b_wakes) = counted(&domain);
    b.open_leaf(leaf);
    assert!(b.park());
    let ticket = copy(&a, leaf, at(0, 10), at(20, 30));
    assert!(ticket.is_granted(), "nobody had to wake");
    b.enter();
    let blocked = waiting(b.begin_io(&[Claim::exclusive(leaf, at(0, 1))]));
    assert!(b.park());
    assert_eq!(b_wakes.load(Ordering::SeqCst), 0);
    a.end_copy(ticket);
    assert_eq!(b_wakes.load(Ordering::SeqCst), 1);
    b.enter();
    assert!(b.pump());
    let mut out = released(&b);
    assert_eq!(out[0].id, blocked);
    // A copy of a parked core is granted by the core that drains last, which wakes its home.
    let ticket = copy(&a, leaf, at(0, 10), at(20, 30));
    assert!(!ticket.is_granted() && a.park());
    b.pump();
    b.end_io(out.remove(0).ticket);
    assert!(ticket.is_granted());
    assert_eq!(a_wakes.load(Ordering::SeqCst), 1);
    a.enter();
    assert!(a.pump());
    assert_eq!(b.counters().borrows, 2);
}

#[test]
fn a_core_does_not_park_over_mail_or_news() {
    let (domain, leaf) = (LockDomain::new(), LeafId::fresh());
    let (a, b) = (core(&domain), core(&domain));
    b.open_leaf(leaf);
    let ticket = copy(&a, leaf, at(0, 10), at(20, 30));
    assert!(!ticket.is_granted());
    assert!(b.park(), "it acknowledges on the way to sleep");
    assert!(ticket.is_granted());
    assert!(!a.park(), "there is a granted copy to look at");
    b.enter();
    let _ = waiting(b.begin_io(&[Claim::exclusive(leaf, at(0, 1))]));
    a.end_copy(ticket);
    assert!(!b.park(), "there is released I/O to take");
    assert_eq!(released(&b).len(), 1);
    assert!(b.park());
}

#[test]
fn a_core_that_comes_late_keeps_away_and_one_that_goes_is_not_waited_for() {
    let (domain, leaf) = (LockDomain::new(), LeafId::fresh());
    let a = core(&domain);
    let first = copy(&a, leaf, at(0, 10), at(20, 30));
    let b = core(&domain);
    let blocked = waiting(b.begin_io(&[Claim::shared(leaf, at(20, 21))]));
    a.end_copy(first);
    assert!(b.pump());
    let out = released(&b);
    assert_eq!(out[0].id, blocked);
    let second = copy(&a, leaf, at(0, 10), at(20, 30));
    b.pump();
    assert!(!second.is_granted());
    drop(b);
    assert!(second.is_granted());
    let c = core(&domain);
    c.open_leaf(leaf);
    let third = copy(&a, leaf, at(40, 50), at(60, 70));
    assert!(!third.is_granted());
    drop(c);
    assert!(third.is_granted(), "what was posted to it counts as acknowledged");
}

#[test]
fn the_65th_core_is_refused() {
    let domain = LockDomain::new();
    let mut cores: Vec<_> = (0..CORES_MAX).map(|_| core(&domain)).collect();
    let error = domain.attach(|| ()).unwrap_err();
    assert!(error.to_string().contains("64 threads"), "{error}");
    cores.pop();
    cores.push(core(&domain));
    let leaf = LeafId::fresh();
    let (first, rest) = cores.split_first().unwrap();
    assert!(rest.iter().all(CoreLocks::park));
    assert!(copy(first, leaf, at(0, 1), at(1, 2)).is_granted());
}

#[test]
fn a_task_is_woken_when_its_copy_is_granted() {
    struct Flag(AtomicUsize);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (locks, leaf) = (core(&LockDomain::new()), LeafId::fresh());
    let flag = Arc::new(Flag(AtomicUsize::new(0)));
    let waker = flag.clone().into();
    let mut cx = Context::from_waker(&waker);
    let a = copy(&locks, leaf, at(0, 10), at(20, 30));
    let b = copy(&locks, leaf, at(0, 10), at(20, 30));
    assert_eq!(a.poll_granted(&mut cx), Poll::Ready(()));
    assert_eq!(b.poll_granted(&mut cx), Poll::Pending);
    assert_eq!(b.poll_granted(&mut cx), Poll::Pending);
    locks.end_copy(a);
    assert_eq!(flag.0.load(Ordering::SeqCst), 1);
    assert_eq!(b.poll_granted(&mut cx), Poll::Ready(()));
}

/// At any moment one write is in flight; a copy still gets through, after no more than those that were there.
//= promise 8
#[test]
fn a_stream_of_writes_does_not_starve_a_copy() {
    let (domain, leaf) = (LockDomain::new(), LeafId::fresh());
    let (a, b) = (core(&domain), core(&domain));
    let write = [Claim::exclusive(leaf, at(0, 10))];
    let mut in_flight = vec![held(b.begin_io(&write)), held(b.begin_io(&write))];
    let ticket = copy(&a, leaf, at(0, 10), at(20, 30));
    let mut turns = 0;
    while !ticket.is_granted() {
        b.pump();
        if let Begun::Held(next) = b.begin_io(&write) {
            in_flight.insert(0, next);
        }
        b.end_io(in_flight.pop().expect("the copy waits for nothing else"));
        turns += 1;
    }
    assert_eq!(turns, 2, "it waits for the two writes that came before it");
}

/// At any moment a copy is running and the next one waits; a write still gets through, after the one it found.
//= promise 8
#[test]
fn a_stream_of_copies_does_not_starve_a_write() {
    let (domain, leaf) = (LockDomain::new(), LeafId::fresh());
    let (a, b) = (core(&domain), core(&domain));
    assert!(b.park());
    let next = || copy(&a, leaf, at(0, 10), at(20, 30));
    let (mut running, mut queued) = (next(), next());
    b.enter();
    let id = waiting(b.begin_io(&[Claim::exclusive(leaf, at(0, 1))]));
    let mut copies = 0;
    let out = loop {
        assert!(b.park() || b.pump());
        if running.is_granted() {
            a.end_copy(running);
            (running, queued) = (queued, next());
            copies += 1;
        }
        if !b.is_running() {
            b.enter();
        }
        b.pump();
        let out = released(&b);
        if !out.is_empty() {
            break out;
        }
        assert!(copies < 10, "the write starves");
    };
    assert_eq!((out[0].id, copies), (id, 1));
    assert!(!running.is_granted(), "the next copy waits for the write");
    for one in out {
        b.end_io(one.ticket);
    }
    a.pump();
    assert!(running.is_granted());
    drop(queued);
}

/// Who uses each block now: 16 bits each for reads, writes, copy sources, copy destinations.
struct Shadow(Vec<AtomicU64>);

const READ: u64 = 1;
const WRITE: u64 = 1 << 16;
const SOURCE: u64 = 1 << 32;
const DEST: u64 = 1 << 48;

impl Shadow {
    fn begin(&self, range: ByteRange, what: u64) {
        for block in &self.0[range.offset() as usize..range.end() as usize] {
            let users = block.fetch_add(what, Ordering::SeqCst);
            let has = |who: u64| !(users / who).is_multiple_of(1 << 16);
            let wrong = match what {
                READ => has(DEST),
                WRITE => has(SOURCE) || has(DEST),
                SOURCE => has(WRITE) || has(DEST),
                _ => users != 0,
            };
            assert!(!wrong, "{what:#x} begins beside {users:#x}");
        }
    }
    fn end(&self, range: ByteRange, what: u64) {
        for block in &self.0[range.offset() as usize..range.end() as usize] {
            block.fetch_sub(what, Ordering::SeqCst);
        }
    }
}

/// Threads hammer few blocks, each sleeping now and then; the shadow panics on any forbidden overlap, and a lost
/// wake-up shows as a hang.
//= promise 4
#[test]
fn threads_never_overlap_where_they_must_not_and_all_get_through() {
    const BLOCKS: u64 = 12;
    const TURNS: u64 = 20_000;
    let (domain, leaf) = (LockDomain::new(), LeafId::fresh());
    let shadow = Shadow((0..BLOCKS).map(|_| AtomicU64::new(0)).collect());
    let worker = |seed: u64| {
        let me = std::thread::current();
        let locks = domain.attach(move || me.unpark()).unwrap();
        let mut random = seed;
        let mut roll = move |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        let mut active: Vec<(IoTicket, ByteRange, u64)> = Vec::new();
        let mut waits: Vec<(WaitId, ByteRange, u64)> = Vec::new();
        let mut copies: Vec<(CopyTicket, ByteRange, ByteRange, bool)> = Vec::new();
        let (mut begun, mut out) = (0, Vec::new());
        while begun < TURNS || !active.is_empty() || !waits.is_empty() || !copies.is_empty() {
            locks.pump();
            locks.take_released(&mut out);
            for one in out.drain(..) {
                let at = waits.iter().position(|w| w.0 == one.id).expect("released once");
                let (_, range, what) = waits.swap_remove(at);
                shadow.begin(range, what);
                active.push((one.ticket, range, what));
            }
            for (ticket, source, dest, runs) in &mut copies {
                if !*runs && ticket.is_granted() {
                    *runs = true;
                    shadow.begin(*source, SOURCE);
                    shadow.begin(*dest, DEST);
                }
            }
            if begun < TURNS && active.len() < 4 {
                begun += 1;
                let from = roll(BLOCKS - 2);
                let range = at(from, from + 1 + roll(2));
                if roll(6) == 0 && copies.len() < 2 {
                    let half = BLOCKS / 2;
                    let (s, d) = (roll(half - 2), half + roll(half - 2));
                    let (mut source, mut dest) = (at(s, s + 2), at(d, d + 2));
                    if roll(2) == 0 {
                        std::mem::swap(&mut source, &mut dest);
                    }
                    copies.push((copy(&locks, leaf, source, dest), source, dest, false));
                } else {
                    let what = if roll(2) == 0 { READ } else { WRITE };
                    let claim = if what == READ { Claim::shared } else { Claim::exclusive };
                    match locks.begin_io(&[claim(leaf, range)]) {
                        Begun::Held(ticket) => {
                            shadow.begin(range, what);
                            active.push((ticket, range, what));
                        }
                        Begun::Waiting(id) => waits.push((id, range, what)),
                    }
                }
            }
            if active.len() == 4 || roll(3) == 0 || begun == TURNS {
                if let Some((ticket, range, what)) = active.pop() {
                    shadow.end(range, what);
                    locks.end_io(ticket);
                }
                if let Some(at) = copies.iter().position(|c| c.3) {
                    let (ticket, source, dest, _) = copies.swap_remove(at);
                    shadow.end(source, SOURCE);
                    shadow.end(dest, DEST);
                    locks.end_copy(ticket);
                }
            }
            // With nothing of its own to end, it sleeps until woken: nobody else would find a lost wake-up.
            let idle = active.is_empty() && copies.iter().all(|c| !c.3) && begun == TURNS;
            let must_sleep = idle && !(waits.is_empty() && copies.is_empty());
            if (must_sleep || roll(8) == 0) && locks.park() {
                if must_sleep {
                    std::thread::park();
                } else {
                    std::thread::yield_now();
                }
                locks.enter();
            }
        }
        locks.counters()
    };
    let totals = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=3).map(|seed| scope.spawn(move || worker(seed))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
    });
    let sum = |f: fn(&LockCounters) -> u64| totals.iter().map(f).sum::<u64>();
    assert!(sum(|c| c.io_waits) > 0 && sum(|c| c.copy_waits) > 0 && sum(|c| c.borrows) > 0, "{totals:?}");
}

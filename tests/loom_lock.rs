//! Every interleaving of the hand-over of core tables: `RUSTFLAGS="--cfg loom" cargo test --release --target-dir
//! target/loom --test loom_lock`. Sleeps are real (a core that is not woken sleeps for ever, which loom reports as a
//! deadlock).

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may
#![cfg(loom)]

use blkcopy::block::lock::{Begun, Claim, CoreLocks, LockDomain};
use blkcopy::block::{ByteRange, LeafId};
use blkcopy::sys::owned::Owner;
use loom::sync::Notify;
use loom::thread;
use std::sync::Arc;

fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}

fn leaf() -> LeafId {
    LeafId { space: blkcopy::block::device::LeafSpace::Memory, id: (1, 0) }
}

const RANGE: ByteRange = ByteRange::to(8);

/// A core whose thread sleeps on the notification.
fn core(domain: &LockDomain) -> (CoreLocks, Arc<Notify>) {
    let bell = Arc::new(Notify::new());
    let rung = bell.clone();
    (domain.attach(move || rung.notify()).unwrap(), bell)
}

/// Sleeps until there is something to look at.
fn sleep(locks: &CoreLocks, bell: &Notify) {
    if locks.park() {
        bell.wait();
        locks.enter();
        locks.pump();
    }
}

/// Two blocks of use that must exclude each other.
struct Whole(loom::cell::UnsafeCell<usize>);
// SAFETY: only within a loom model, which runs one thread at a time and fails on any unordered use.
unsafe impl Sync for Whole {}
// SAFETY: as above.
unsafe impl Send for Whole {}

impl Whole {
    /// loom fails the model if another thread is in here, or if its use does not happen before or after this one.
    fn change(&self) {
        // SAFETY: loom checks that nobody else is inside.
        self.0.with_mut(|n| unsafe { *n += 1 });
    }
}

fn write(locks: &CoreLocks, bell: &Notify, data: &Whole) {
    let ticket = match locks.begin_io(&[Claim::exclusive(leaf(), RANGE)]) {
        Begun::Held(ticket) => ticket,
        Begun::Waiting(id) => {
            let mut out = Vec::new();
            loop {
                locks.pump();
                locks.take_released(&mut out);
                if let Some(one) = out.pop() {
                    assert_eq!(one.id, id);
                    break one.ticket;
                }
                sleep(locks, bell);
            }
        }
    };
    data.change();
    locks.end_io(ticket);
}

fn copy(locks: &CoreLocks, bell: &Notify, data: &Whole) {
    let ticket = locks.begin_copy([Claim::exclusive(leaf(), RANGE)].into_iter().collect());
    while !ticket.is_granted() {
        sleep(locks, bell);
    }
    data.change();
    locks.end_copy(ticket);
}

#[test]
fn a_value_is_used_by_one_at_a_time() {
    explore(4, || {
        let owner = Owner::new(0);
        let cell = owner.cell().clone();
        let others: Vec<_> = (0..2)
            .map(|_| {
                let cell = cell.clone();
                thread::spawn(move || {
                    cell.try_borrow().map_or(0, |mut b| {
                        b.with(|v| {
                            *v += 1;
                            1
                        })
                    })
                })
            })
            .collect();
        owner.with(|v| *v += 10);
        owner.park();
        owner.enter();
        owner.with(|v| *v += 10);
        owner.park();
        let borrowed: i32 = others.into_iter().map(|t| t.join().unwrap()).sum();
        owner.enter();
        assert_eq!(owner.with(|v| *v), 20 + borrowed);
    });
}

//= promise 4
#[test]
fn one_write_and_one_copy_exclude_each_other_and_both_end() {
    explore(3, || {
        let domain = LockDomain::new();
        let data = Arc::new(Whole(loom::cell::UnsafeCell::new(0)));
        let (locks, bell) = core(&domain);
        let other = {
            let (domain, data) = (domain.clone(), data.clone());
            thread::spawn(move || {
                let (locks, bell) = core(&domain);
                write(&locks, &bell, &data);
            })
        };
        copy(&locks, &bell, &data);
        // Not before the other is done: then this core is gone.
        assert!(locks.park() || locks.park());
        other.join().unwrap();
        // SAFETY: the other thread was joined.
        data.0.with(|n| assert_eq!(unsafe { *n }, 2));
    });
}

/// The other core is attached when the copy begins, but has its leaf not open: it opens it then, writes, and closes it.
#[test]
fn a_leaf_opened_while_a_copy_begins_is_asked_about() {
    explore(3, || {
        let domain = LockDomain::new();
        let data = Arc::new(Whole(loom::cell::UnsafeCell::new(0)));
        let (locks, bell) = core(&domain);
        let other = {
            let (domain, data) = (domain.clone(), data.clone());
            thread::spawn(move || {
                let (locks, bell) = core(&domain);
                locks.open_leaf(leaf());
                write(&locks, &bell, &data);
                locks.close_leaf(leaf());
            })
        };
        copy(&locks, &bell, &data);
        copy(&locks, &bell, &data);
        assert!(locks.park() || locks.park());
        other.join().unwrap();
        // SAFETY: the other thread was joined.
        data.0.with(|n| assert_eq!(unsafe { *n }, 3));
    });
}

#[test]
fn two_copies_of_two_cores_exclude_each_other_and_both_end() {
    explore(3, || {
        let domain = LockDomain::new();
        let data = Arc::new(Whole(loom::cell::UnsafeCell::new(0)));
        let (locks, bell) = core(&domain);
        let other = {
            let (domain, data) = (domain.clone(), data.clone());
            thread::spawn(move || {
                let (locks, bell) = core(&domain);
                copy(&locks, &bell, &data);
            })
        };
        copy(&locks, &bell, &data);
        assert!(locks.park() || locks.park());
        other.join().unwrap();
        // SAFETY: the other thread was joined.
        data.0.with(|n| assert_eq!(unsafe { *n }, 2));
    });
}

/// The core stays attached and asleep with a write waiting: only the end of the copy can wake it.
#[test]
fn a_write_that_sleeps_behind_a_copy_is_woken() {
    explore(3, || {
        let domain = LockDomain::new();
        let data = Arc::new(Whole(loom::cell::UnsafeCell::new(0)));
        let (locks, bell) = core(&domain);
        let ticket = locks.begin_copy([Claim::exclusive(leaf(), RANGE)].into_iter().collect());
        assert!(ticket.is_granted());
        let other = {
            let (domain, data) = (domain.clone(), data.clone());
            thread::spawn(move || {
                let (locks, bell) = core(&domain);
                write(&locks, &bell, &data);
            })
        };
        data.change();
        locks.end_copy(ticket);
        other.join().unwrap();
        // SAFETY: the other thread was joined.
        data.0.with(|n| assert_eq!(unsafe { *n }, 2));
        drop(bell);
    });
}

/// Two senders at once: a borrower must not leave the other's message to a core that sleeps.
#[test]
fn a_message_posted_during_a_borrow_is_served() {
    explore(2, || {
        let domain = LockDomain::new();
        let (sleeper, _bell) = core(&domain);
        assert!(sleeper.park());
        let threads: Vec<_> = (0..2)
            .map(|n| {
                let domain = domain.clone();
                thread::spawn(move || {
                    let (locks, bell) = core(&domain);
                    let range = ByteRange::between(n * 8, n * 8 + 8);
                    let ticket = locks.begin_copy([Claim::exclusive(leaf(), range)].into_iter().collect());
                    while !ticket.is_granted() {
                        sleep(&locks, &bell);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

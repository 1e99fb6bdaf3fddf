//! Copies that wait for their turn: of several hosts, and for a destination that is slow.

use super::copy_end_tests::{BOTH, OK, copier, gated, scattered};
use super::testing::*;
use super::*;
use crate::nvme::Status;
use std::time::Duration;

//= promise 8
#[test]
fn copies_of_one_host_leave_room_and_turns_to_others() {
    let (gate, world) = gated(512, 512);
    let (_admin, many) = copier(&world.host("nqn.many"), 50, 512);
    let copies: Vec<CommandId> =
        (0..60).map(|i| many.send_copy(&Copy::from_namespaces(1, i, &[(2, i, 1)]))).collect();
    world.until("they run", || gate.held() == ALONE);
    let (few_admin, few) = world.host("nqn.few").both();
    few_admin.enable_formats(BOTH);
    let first = few.send_copy(&Copy::from_namespaces(1, 400, &[(2, 400, 1)]));
    world.until("that one begins at once", || gate.held() == ALONE + 1);
    // Another one of many takes the place of one that ends; each host in turn.
    let more: Vec<CommandId> =
        (401..409).map(|i| few.send_copy(&Copy::from_namespaces(1, i, &[(2, i, 1)]))).collect();
    let done =
        |queue: &Queue<'_>, of: &[CommandId]| of.iter().filter(|copy| queue.taken(**copy).is_some()).count();
    for _ in 0..12 {
        gate.permit(2);
        world.turns(50);
    }
    let (of_many, of_few) = (done(&many, &copies), done(&few, &[&[first], &more[..]].concat()));
    assert!(of_few >= 6, "24 have ended, {of_many} and {of_few}");
    gate.permit(1000);
    world.until("nothing is left", || world.is_idle());
}

//= promise 8
#[test]
fn a_copy_too_long_for_the_speed_that_was_measured_is_told_at_once_and_a_short_one_is_not() {
    let (gate, world) = gated(8192, 8192);
    let (_admin, io) = copier(&world.host("nqn.h"), 51, 64);
    // One range a second, as the destination answers: 100 blocks in 19 seconds are too many.
    let slow = io.send_copy(&Copy::from_namespaces(1, 0, &scattered(2, 100)));
    for _ in 0..10 {
        world.pass(Duration::from_secs(1));
        gate.permit(1);
    }
    let too_long = Status::COPY_SIZE_LIMIT_EXCEEDED.retryable();
    let long = io.send_copy(&Copy::from_namespaces(1, 4096, &scattered(2, 100)));
    world.turns(20);
    assert_eq!(io.taken(long).map(end), Some((too_long, 0)));
    let short = io.send_copy(&Copy::from_namespaces(1, 4096, &[(2, 0, 8)]));
    gate.permit(1000);
    assert_eq!(end(io.wait(short)), (OK, 0));
    assert_eq!(end(io.wait(slow)), (OK, 0));
}

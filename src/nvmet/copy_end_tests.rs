//! How a Copy ends: what failed and how far it got, durability, aborts, closed connections, and that nobody sees half
//! of one. Numbers in comments are the edge cases of `docs/conformance.md`.

use super::testing::*;
use super::*;
use crate::block::Op;
use crate::block::{Kind, Method};
use crate::nvme::admin::AdminCommand;
use crate::nvme::{Blocks, SourceRange, Status};
use crate::sim::{DelayDevice, ErrorDevice, Fault, FaultPlan, Ops, Rng};
use std::sync::Arc;
use std::time::Duration;

pub(super) const OK: Status = Status::SUCCESS;
pub(super) const BOTH: u16 = 0b1100;

/// Ranges of one block each, apart from each other, so that none can be joined.
pub(super) fn scattered(snsid: u32, count: u64) -> Vec<(u32, u64, u32)> {
    (0..count).map(|i| (snsid, i * 2, 1)).collect()
}

/// A disk whose writes wait for permits, namespace 1, and memory, namespace 2; sizes in blocks.
pub(super) fn gated(disk_blocks: u64, mem_blocks: u64) -> (Arc<Gate>, World) {
    let gate = Gate::writes(disk(disk_blocks));
    let world = World::new([gate.clone() as Dev, mem(mem_blocks)]);
    (gate, world)
}

/// The queues of a host that may use every copy format, with a pattern on the first blocks of namespace 2.
pub(super) fn copier<'w>(host: &Host<'w>, seed: u64, blocks: u64) -> (Queue<'w>, Queue<'w>) {
    let (admin, io) = host.both();
    admin.enable_formats(BOTH);
    io.write(2, 0, &pattern(seed, blocks));
    (admin, io)
}

//= promise 5
#[test]
fn dword_0_is_the_lowest_range_that_failed() {
    // 20, 21, 22: (devices, kind of the error, which operations fail, status)
    let cases: [(bool, Kind, Ops, Status); 6] = [
        (true, Kind::Io, Ops::COPY, Status::WRITE_FAULT),
        (true, Kind::NoSpace, Ops::COPY, Status::CAPACITY_EXCEEDED),
        (true, Kind::Io, Ops::READ, Status::UNRECOVERED_READ_ERROR),
        (false, Kind::Io, Ops::WRITE, Status::WRITE_FAULT),
        (false, Kind::NoSpace, Ops::WRITE, Status::CAPACITY_EXCEEDED),
        (false, Kind::Io, Ops::READ, Status::UNRECOVERED_READ_ERROR),
    ];
    for (native, kind, ops, status) in cases {
        for nth in 1..40 {
            let (source_plan, dest_plan) = (FaultPlan::none(), FaultPlan::none());
            let (source, dest) = (mem(66), mem(64));
            let far: Dev = if native { source.clone() } else { disk(66) };
            let far = Arc::new(ErrorDevice::new(far, source_plan.clone()));
            let near = Arc::new(ErrorDevice::new(dest.clone(), dest_plan.clone()));
            let world = World::new([near.clone() as Dev, far.clone()]);
            let (admin, io) = world.host("nqn.h").both();
            admin.enable_formats(BOTH);
            let bytes = pattern(20, 64);
            io.write(2, 0, &bytes);
            let fault = Fault { ops, nth: if native { 1 } else { nth }, forever: false, kind, good_bytes: 0 };
            // A native request fails once, behind so many good blocks.
            let fault = if native { Fault { good_bytes: (nth - 1) * BLOCK, ..fault } } else { fault };
            let plan = if ops == Ops::READ { &source_plan } else { &dest_plan };
            plan.arm(fault);
            let ranges = scattered(2, 24);
            let told = io.copy(&Copy::from_namespaces(1, 8, &ranges));
            let after = contents(&(dest as Dev));
            let good = if plan.fired() == 0 { 24 } else { told.result };
            for (i, &(_, lba, _)) in ranges.iter().enumerate() {
                let now = blocks(&after, 8 + i as u64, 1);
                let is_new = now == blocks(&bytes, lba, 1);
                assert!(is_new || (i as u64 >= good && now.iter().all(|&b| b == 0)), "range {i}: old or new");
            }
            assert!(
                after[..8 * 512].iter().chain(&after[32 * 512..]).all(|&b| b == 0),
                "nothing else changed"
            );
            if plan.fired() == 0 {
                assert_eq!(end(told), (OK, 0));
                assert!(nth > 24);
                break;
            }
            assert_eq!(told.status, status, "native {native}, {ops:?} {nth}");
            assert!(good < 24, "a range that failed");
            if native {
                assert_eq!(good, (nth - 1).min(23));
            }
            let line = world.lines.borrow().last().unwrap().clone();
            assert_eq!(line.good_bytes / BLOCK, good, "the log says the same");
        }
    }
}

//= promise 5
#[test]
fn the_lowest_counts_when_later_ranges_are_done_first() {
    // 21: range 3 fails, those behind it are written
    let gate = Gate::writes(mem(64));
    let plan = FaultPlan::none();
    let source = Arc::new(ErrorDevice::new(disk(64), plan.clone()));
    let world = World::new([gate.clone() as Dev, source.clone()]);
    let (_admin, io) = copier(&world.host("nqn.h"), 21, 16);
    plan.arm(Fault { ops: Ops::READ, nth: 4, forever: false, kind: Kind::Io, good_bytes: 0 });
    let copy = io.send_copy(&Copy::from_namespaces(1, 0, &scattered(2, 8)));
    gate.permit(100);
    assert_eq!(end(io.wait(copy)), (Status::UNRECOVERED_READ_ERROR, 3));
}

//= promise 2
#[test]
fn a_method_the_device_refuses_is_replaced_and_the_log_says_so() {
    // 27: "not supported" from the device is no error of the command
    let plan = FaultPlan::none();
    let device = Arc::new(ErrorDevice::new(mem(64), plan.clone()));
    let world = World::new([device as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    io.write(1, 0, &pattern(22, 16));
    let fault =
        Fault { ops: Ops::COPY, nth: 1, forever: true, kind: Kind::Unsupported, good_bytes: 3 * BLOCK };
    plan.arm(fault);
    assert_eq!(end(io.copy(&Copy::local(1, 32, &[(0, 8), (10, 4)]))), (OK, 0));
    assert_eq!(
        io.read(1, 32, 12).data,
        [blocks(&pattern(22, 16), 0, 8), blocks(&pattern(22, 16), 10, 4)].concat()
    );
    let line = world.lines.borrow()[0].clone();
    assert_eq!(line.methods.keys().copied().collect::<Vec<_>>(), [Method::Emulated]);
    assert_eq!((line.host_bytes.read, line.host_bytes.written), (12 * BLOCK, 12 * BLOCK));
}

//= promise 6, events
#[test]
fn durable_when_asked_and_after_a_flush() {
    // 23, 24: natively on one disk, read and written between two
    let (one, two) = (disk(64), disk(128));
    let hidden = Gate::new(two.clone(), |_| false);
    let world = World::new([one.clone() as Dev, hidden]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    let bytes = pattern(23, 16);
    io.write(1, 0, &bytes);
    io.flush(1);
    let copies =
        [Copy::local(1, 32, &[(0, 8), (12, 2)]), Copy::from_namespaces(2, 32, &[(1, 0, 8), (1, 12, 2)])];
    for (copy, disk) in copies.iter().zip([&one, &two]) {
        assert_eq!(io.copy(copy).status, OK);
        assert!(disk.unflushed_blocks() > 0, "a plain copy is cached");
        assert_eq!(io.flush(copy.nsid).status, OK);
        assert_eq!(disk.unflushed_blocks(), 0);
        io.write(copy.nsid, 32, &pattern(0, 10));
        io.flush(copy.nsid);
        assert_eq!(io.copy(&copy.clone().durable()).status, OK);
        assert_eq!(disk.unflushed_blocks(), 0, "FUA");
        disk.power_cut(1);
        let expected = [blocks(&bytes, 0, 8), blocks(&bytes, 12, 2)].concat();
        assert_eq!(blocks(&disk.contents(), 32, 10), expected);
        // Queues from before the power cut are dead: nothing more is done with this disk.
    }
    assert!(world.lines.borrow().iter().map(|l| l.flushed).eq([false, true, false, true]));
}

//= promise 6, events
#[test]
fn a_flush_that_fails_leaves_nothing_called_good() {
    let plan = FaultPlan::none();
    let dest = Arc::new(ErrorDevice::new(disk(64), plan.clone()));
    let world = World::new([dest as Dev, mem(64)]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    plan.arm(Fault { ops: Ops::FLUSH, nth: 1, forever: false, kind: Kind::Io, good_bytes: 0 });
    let told = io.copy(&Copy::from_namespaces(1, 0, &[(2, 0, 8), (2, 20, 8)]).durable());
    assert_eq!(end(told), (Status::WRITE_FAULT, 0));
}

#[test]
fn holes_are_copied_as_what_they_read_as() {
    // 26
    let (image, _dir) = file(4096);
    let world = World::new([mem(4096) as Dev, image]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    let bytes = pattern(26, 8);
    io.write(2, 1000, &bytes);
    let (sqe, list) = dsm(2, &[(1002, 2)]);
    io.tell(sqe, &list);
    for lba in [0, 1024, 2048] {
        io.write(1, lba, &pattern(1, 1024));
    }
    assert_eq!(end(io.copy(&Copy::from_namespaces(1, 0, &[(2, 0, 2048)]))), (OK, 0));
    let mut expected = vec![0; 2048 * 512];
    expected[1000 * 512..1008 * 512].copy_from_slice(&bytes);
    expected[1002 * 512..1004 * 512].fill(0);
    assert!(io.read(1, 0, 2048).data == expected);
    assert_eq!(end(io.copy(&Copy::from_namespaces(2, 2048, &[(1, 0, 2048)]))), (OK, 0));
    assert!(io.read(2, 2048, 2048).data == expected);
}

//= promise events
#[test]
fn a_file_that_shrinks_under_the_target_is_an_error_and_no_zeroes() {
    // 27
    let (image, dir) = file(256);
    let world = World::new([mem(256) as Dev, image]);
    let (_admin, io) = copier(&world.host("nqn.h"), 27, 256);
    std::fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("image"))
        .unwrap()
        .set_len(100 * BLOCK)
        .unwrap();
    let told = io.copy(&Copy::from_namespaces(1, 0, &[(2, 0, 50), (2, 60, 80)]));
    assert!(!told.status.is_success());
    assert!(told.result <= 1, "the second range failed");
    assert_eq!(io.copy(&Copy::from_namespaces(1, 0, &[(2, 0, 50)])).status, OK);
}

//= promise 4
#[test]
fn nobody_sees_half_a_copy() {
    // 25: one whole across its ranges, natively and in pieces, for readers on another thread
    for native in [true, false] {
        let slow = Arc::new(DelayDevice::new(mem(64), 5, 6));
        let mut make = Make::new([slow as Dev, mem(66), disk(64)]);
        make.workers = 2;
        let world = make.world();
        let (admin, io) = world.host("nqn.h").both();
        admin.enable_formats(BOTH);
        let reader = world.host("nqn.h").on_worker(1).io(&admin, 2);
        // Ranges of two namespaces cannot be one request.
        let second = if native { 2 } else { 3 };
        let ranges = [(2, 0, 4), (second, 4, 4), (2, 12, 4), (second, 8, 4)];
        let mut seen = [0, 0];
        for round in 0..60u64 {
            let bytes = pattern(100 + round, 16);
            io.write(2, 0, &bytes);
            io.write(3, 0, &bytes);
            let before = reader.read(1, 8, 16).data;
            let read =
                || reader.send(read_sqe(1, 8, 16).with_sgl(crate::nvme::Sgl::transport(16 * 512)), &[]);
            let mut reads = vec![read()];
            world.turns((round % 3) as usize);
            let copy = io.send_copy(&Copy::from_namespaces(1, 8, &ranges));
            let after = [blocks(&bytes, 0, 8), blocks(&bytes, 12, 4), blocks(&bytes, 8, 4)].concat();
            world.turns((round % 9) as usize);
            for _ in 0..4 {
                world.turn();
                reads.push(read());
            }
            for read in reads {
                let now = reader.wait(read).data;
                assert!(now == before || now == after, "half a copy was seen");
                seen[usize::from(now == after)] += 1;
            }
            assert_eq!(end(io.wait(copy)), (OK, 0));
            assert!(reader.read(1, 8, 16).data == after);
        }
        assert!(seen[0] > 0 && seen[1] > 0, "reads came before and after: {seen:?}");
    }
}

//= promise 4
#[test]
fn other_commands_on_the_same_blocks_come_before_or_after() {
    // 50
    let (a, b) = (mem(64), disk(64));
    let slow = Arc::new(DelayDevice::new(a, 11, 5));
    let world = World::new([slow as Dev, b]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    let mut rng = Rng::new(50);
    for round in 0..80 {
        let (copied, written) = (pattern(round * 2 + 1, 8), pattern(round * 2 + 2, 8));
        io.write(2, 0, &copied);
        let copy = io.send_copy(&Copy::from_namespaces(1, 0, &[(2, 0, 4), (2, 4, 4)]));
        world.turns(rng.index(6));
        // Block by block one of both, and where a compare says equal, it was.
        let lba = rng.below(8);
        let count = 1 + rng.below(8 - lba);
        let bytes = blocks(&written, lba, count);
        let kind = rng.below(4);
        let other = match kind {
            0 => io.send_data(write_sqe(1, lba, bytes.len()), bytes),
            1 => {
                let extent = extent(1, lba, count as u32);
                let zeroes = crate::nvme::IoCommand::WriteZeroes { extent, deallocate: true };
                io.send(zeroes.to_sqe(), &[])
            }
            2 => {
                let (sqe, list) = dsm(1, &[(lba, count as u32)]);
                io.send_data(sqe, &list)
            }
            _ => {
                let compare = crate::nvme::IoCommand::Compare(extent(1, lba, count as u32));
                io.send_data(compare.to_sqe(), blocks(&copied, lba, count))
            }
        };
        let (told, other) = (io.wait(copy), io.wait(other));
        assert_eq!(end(told), (OK, 0));
        let now = io.read(1, 0, 8).data;
        let mut after = copied.clone();
        let range = (lba * BLOCK) as usize..((lba + count) * BLOCK) as usize;
        match kind {
            0 => after[range].copy_from_slice(bytes),
            1 | 2 => after[range].fill(0),
            _ => assert!(other.status.is_success() || other.status == Status::COMPARE_FAILURE),
        }
        assert!(now == copied || now == after, "round {round}: a mixture");
    }
}

//= promise 8
#[test]
fn a_copy_holds_up_no_other_command() {
    // 36
    let (gate, world) = gated(64, 64);
    let host = world.host("nqn.h");
    let admin = host.connect(2000);
    admin.enable();
    admin.enable_formats(BOTH);
    let queues = [host.io(&admin, 1), host.io(&admin, 2)];
    queues[0].write(2, 0, &pattern(36, 20));
    let copies: Vec<CommandId> = queues
        .iter()
        .flat_map(|queue| (0..20).map(move |i| queue.send_copy(&Copy::from_namespaces(1, i, &[(2, i, 1)]))))
        .collect();
    world.until("copies run", || gate.held() >= ALONE);
    for round in 0..10 {
        assert_eq!(gate.held(), ALONE, "and no more than so many at a time");
        world.pass(Duration::from_millis(900));
        assert_eq!(admin.admin(AdminCommand::KeepAlive).status, OK);
        for queue in &queues {
            assert!(queue.read(2, 0, 8).status.is_success());
            assert!(queue.read(1, 40, 8).status.is_success());
        }
        // Slow, but it answers.
        if round % 2 == 1 && round < 9 {
            gate.permit(ALONE);
            world.until("the next run", || gate.held() == ALONE);
        }
    }
    assert!(world.lost.borrow().is_empty());
    gate.permit(1000);
    for (i, copy) in copies.into_iter().enumerate() {
        assert_eq!(end(queues[i / 20].wait(copy)), (OK, 0));
    }
}

#[test]
fn copies_in_memory_take_turns_with_other_commands() {
    let device = mem(1 << 18);
    let world = World::new([device as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    // 32 MiB each, twice what one turn may copy.
    let copies: Vec<CommandId> =
        (0..3).map(|i| io.send_copy(&Copy::local(1, 1 << 17, &[(i, 32768), (i + 32768, 32768)]))).collect();
    let read = io.send(read_sqe(1, 0, 1).with_sgl(crate::nvme::Sgl::transport(512)), &[]);
    world.poll();
    assert!(io.taken(read).is_some(), "the read is done in the first turn");
    assert!(io.taken(copies[0]).is_some() && io.taken(copies[2]).is_none(), "and not every copy");
    let more = world.workers[0].borrow_mut().poll(&mut Vec::new());
    assert!(more || world.is_idle());
}

//= promise 8
#[test]
fn an_aborted_copy_ends_once_and_the_abort_says_truly_what_became_of_it() {
    // 33, 34
    let gate = Gate::writes(disk(64));
    let mut make = Make::new([gate.clone() as Dev, mem(64)]);
    make.workers = 2;
    let world = make.world();
    let admin = world.host("nqn.h").admin();
    admin.enable_formats(BOTH);
    // The I/O queue lives on another thread than the admin queue.
    let io = world.host("nqn.h").on_worker(1).io(&admin, 1);
    let abort = |sqid, cid| admin.send(AdminCommand::Abort { sqid, cid }.to_sqe(), &[]);
    io.write(2, 0, &pattern(33, 64));

    let copy = io.send_copy(&Copy::from_namespaces(1, 0, &scattered(2, 30)));
    world.until("it runs", || gate.held() > 0);
    let aborted = abort(1, cid(copy));
    world.turns(3);
    assert!(admin.taken(aborted).is_none(), "not answered before it is known");
    gate.permit(1000);
    let told = io.wait(copy);
    assert!(told.status.is(Status::ABORT_REQUESTED), "{}", told.status);
    assert!(told.result < 30, "DW0 names a range that was not copied");
    assert_eq!(end(admin.wait(aborted)), (OK, 0), "aborted");
    world.turns(10);
    assert!(io.taken(copy).is_none(), "once");
}

#[test]
fn an_abort_that_comes_too_late_says_so() {
    // 34: all of it is on its way to the device already
    let (gate, world) = gated(64, 64);
    let (admin, io) = copier(&world.host("nqn.h"), 34, 8);
    let copy = io.send_copy(&Copy::from_namespaces(1, 0, &[(2, 0, 8)]));
    world.until("it runs", || gate.held() == 1);
    let aborts = [(); 2].map(|()| admin.send(AdminCommand::Abort { sqid: 1, cid: cid(copy) }.to_sqe(), &[]));
    world.turns(3);
    assert!(aborts.iter().all(|&abort| admin.taken(abort).is_none()));
    gate.permit(1);
    assert_eq!(end(io.wait(copy)), (OK, 0));
    for abort in aborts {
        assert_eq!(end(admin.wait(abort)), (OK, 1), "not aborted");
    }
}

//= promise 8
#[test]
fn a_copy_that_waits_for_its_turn_is_aborted_at_once_and_one_that_is_over_is_not() {
    // 33, 34
    let (gate, world) = gated(64, 64);
    let (admin, io) = copier(&world.host("nqn.h"), 33, 16);
    let abort = |sqid, cid| end(admin.admin(AdminCommand::Abort { sqid, cid }));
    let copies: Vec<CommandId> =
        (0..10).map(|i| io.send_copy(&Copy::from_namespaces(1, i, &[(2, i, 1)]))).collect();
    world.until("the first run", || gate.held() == ALONE);
    assert_eq!(abort(1, cid(copies[9])), (OK, 0), "the last one waits");
    let told = io.taken(copies[9]).unwrap();
    assert!(told.status.is(Status::ABORT_REQUESTED) && told.result == 0);
    assert_eq!(abort(1, cid(copies[9])), (OK, 1), "a second time there is nothing to abort");
    gate.permit(1000);
    for &copy in &copies[..9] {
        assert_eq!(end(io.wait(copy)), (OK, 0));
        assert_eq!(abort(1, cid(copy)), (OK, 1), "it is over");
    }
    for (sqid, cid) in [(1, 1), (7, cid(copies[0])), (0, 1), (0xffff, 0)] {
        assert_eq!(abort(sqid, cid), (OK, 1), "unknown");
    }
    // A native copy that is told to stop while it waits for its range locks ends by itself, truly reported.
    let held = io.send_copy(&Copy::from_namespaces(1, 0, &[(2, 0, 1)]));
    let native = io.send_copy(&Copy::from_namespaces(2, 8, &[(2, 0, 1)]));
    let aborted = admin.send(AdminCommand::Abort { sqid: 1, cid: cid(native) }.to_sqe(), &[]);
    let (native, aborted) = (io.wait(native), admin.wait(aborted));
    assert_eq!(native.status.is(Status::ABORT_REQUESTED), aborted.result == 0);
    assert_eq!(end(io.wait(held)), (OK, 0));
}

#[test]
fn aborts_are_limited() {
    let (gate, world) = gated(64, 64);
    let (admin, io) = copier(&world.host("nqn.h"), 33, 16);
    let copies: Vec<CommandId> =
        (0..5).map(|i| io.send_copy(&Copy::from_namespaces(1, i, &[(2, i, 1)]))).collect();
    world.until("they run", || gate.held() == ALONE);
    let abort = |copy: CommandId| AdminCommand::Abort { sqid: 1, cid: cid(copy) }.to_sqe();
    let aborts: Vec<CommandId> = copies[..4].iter().map(|&copy| admin.send(abort(copy), &[])).collect();
    assert_eq!(admin.go(abort(copies[4])).status, Status::ABORT_LIMIT_EXCEEDED);
    gate.permit(1000);
    aborts.into_iter().for_each(|a| assert_eq!(admin.wait(a).status, OK));
    copies.into_iter().for_each(|c| drop(io.wait(c)));
    assert_eq!(end(admin.go(abort(CommandId { slot: 3, connection: io.id }))), (OK, 1));
}

//= promise 5, events
#[test]
fn a_closed_connections_copy_is_drained_before_its_host_connects_again() {
    // 35
    let (gate, world) = gated(64, 64);
    let host = world.host("nqn.h");
    let (admin, io) = copier(&host, 35, 64);
    let copy = io.send_copy(&Copy::from_namespaces(1, 0, &scattered(2, 30)));
    world.until("it runs", || gate.held() > 0);
    admin.close();
    world.until("told to close", || !world.lost.borrow().is_empty());
    assert_eq!(*world.lost.borrow(), [(0, io.id)], "the I/O queue goes with its admin queue");
    io.close();
    // The same host connects again: it must not see late writes from before.
    let again = host.open();
    let data = host.data(crate::nvme::fabrics::CNTLID_DYNAMIC).to_bytes();
    let connecting = again.send_data(connect_sqe(connect(0)), &data);
    let (_, stranger) = world.host("nqn.i").both();
    assert!(stranger.read(2, 0, 1).status.is_success(), "another host is not held up");
    world.turns(20);
    assert!(again.taken(connecting).is_none());
    gate.permit(1000);
    assert!(again.wait(connecting).status.is_success());
    assert_eq!(gate.held(), 0, "nothing of before is on its way");
    let settled = contents(&(gate.clone() as Dev));
    world.turns(50);
    assert!(contents(&(gate as Dev)) == settled, "and nothing lands any more");
    assert!(io.taken(copy).is_none(), "no answer to a closed connection");
    assert_eq!(world.free_buffers(), world.pool.count());
    assert!(world.lines.borrow().is_empty());
}

#[test]
fn an_association_that_ended_is_drained_on_threads_that_have_not_heard_of_it() {
    let gate = Gate::writes(disk(64));
    let mut make = Make::new([gate.clone() as Dev]);
    make.workers = 2;
    let world = make.world();
    let host = world.host("nqn.h");
    let admin = host.admin();
    let io = host.clone().on_worker(1).io(&admin, 1);
    let late = io.send_data(write_sqe(1, 0, 512), &pattern(1, 1));
    world.until("it is in the backend", || gate.held() == 1);
    // The admin connection ends; the other thread still has the I/O connection open.
    admin.close();
    let again = host.open();
    let data = host.data(crate::nvme::fabrics::CNTLID_DYNAMIC).to_bytes();
    let connecting = again.send_data(connect_sqe(connect(0)), &data);
    world.turns(20);
    assert!(again.taken(connecting).is_none(), "the I/O connection is open");
    io.close();
    world.turns(20);
    assert!(again.taken(connecting).is_none(), "its write is on the way");
    gate.permit(1000);
    assert!(again.wait(connecting).status.is_success());
    assert_eq!(gate.held(), 0);
    assert!(io.taken(late).is_none());
}

#[test]
fn a_reset_is_over_when_nothing_of_before_is_left_in_the_backend() {
    let gate = Gate::writes(disk(64));
    let world = World::new([gate.clone() as Dev]);
    let host = world.host("nqn.h");
    let (admin, io) = host.both();
    io.send_data(write_sqe(1, 0, 512), &pattern(1, 1));
    world.until("it is in the backend", || gate.held() == 1);
    admin.reset();
    let ready = || {
        let told = admin.get_property(crate::nvme::property::offset::CSTS, crate::nvme::fabrics::Width::Four);
        told.result & 1
    };
    assert_eq!(ready(), 1, "the I/O connection is open");
    io.close();
    assert_eq!(ready(), 1, "its write is on the way");
    gate.permit(1000);
    world.until("it is over", || gate.held() == 0);
    world.turns(5);
    assert_eq!(ready(), 0);
    admin.enable();
    assert!(host.io(&admin, 1).read(1, 0, 1).status.is_success());
}

#[test]
fn a_copy_of_a_namespace_that_is_removed_ends_cleanly() {
    // 30
    let (gate, world) = gated(64, 64);
    let (_admin, io) = copier(&world.host("nqn.h"), 33, 16);
    let copies: Vec<CommandId> =
        (0..10).map(|i| io.send_copy(&Copy::from_namespaces(1, i, &[(2, i, 1)]))).collect();
    let inside = io.send_copy(&Copy::local(2, 0, &[(8, 8)]));
    world.until("they run", || gate.held() == ALONE);
    world.subsystem.remove(1).unwrap();
    world.subsystem.remove(2).unwrap();
    gate.permit(1000);
    for copy in copies.into_iter().chain([inside]) {
        let told = io.wait(copy);
        assert!(told.status == OK || told.status == Status::INVALID_FIELD, "{}", told.status);
    }
    let told = io.copy(&Copy::local(2, 0, &[(8, 8)]));
    assert_eq!(end(told), (Status::INVALID_FIELD, 0));
    assert!(world.is_idle());
}

//= promise 8
#[test]
fn a_copy_that_takes_too_long_says_how_far_it_got() {
    // 49: well before a host's 30 seconds
    let (gate, world) = gated(256, 256);
    let (_admin, io) = copier(&world.host("nqn.h"), 49, 256);
    let began = world.now();
    let copy = io.send_copy(&Copy::from_namespaces(1, 0, &scattered(2, 100)));
    let mut told = None;
    for _ in 0..29 {
        world.pass(Duration::from_secs(1));
        gate.permit(1);
        told = told.or_else(|| io.taken(copy));
        if told.is_some() {
            break;
        }
        if world.now() - began > Duration::from_secs(22) {
            gate.permit(1000);
        }
    }
    let told = told.expect("an answer in time");
    assert_eq!((told.status.code_type(), told.status.code()), (1, 0x83), "too large for this backend");
    assert!(!told.status.do_not_retry());
    assert!((10..60).contains(&told.result), "{} ranges were done", told.result);
    let after = contents(&(gate.clone() as Dev));
    for i in 0..told.result {
        assert_eq!(blocks(&after, i, 1), blocks(&pattern(49, 256), i * 2, 1), "range {i} is good");
    }
    gate.permit(1000);
    world.until("nothing is left", || world.is_idle());
}

#[test]
fn a_copy_that_waits_for_its_turn_has_no_more_time_than_others() {
    // 49
    let (gate, world) = gated(2048, 256);
    let (_admin, io) = copier(&world.host("nqn.h"), 49, 256);
    // The device is slow; so many are tasks at a time. Ranges that others have written go one after the other.
    let chained = |i: u64| (0..100).map(|range| (i * 200 + 50 + range, 1)).collect::<Vec<_>>();
    let copies: Vec<CommandId> =
        (0..10).map(|i| io.send_copy(&Copy::local(1, i * 200, &chained(i)))).collect();
    world.until("they run", || gate.held() >= ALONE);
    for _ in 0..19 {
        assert_eq!(gate.held(), ALONE);
        gate.permit(ALONE);
        world.pass(Duration::from_secs(1));
    }
    assert!(copies.iter().all(|&copy| io.taken(copy).is_none()));
    gate.permit(ALONE);
    // Before 20 seconds are over everybody is told.
    world.pass(Duration::from_millis(900));
    for &copy in &copies[ALONE..] {
        assert_eq!(io.taken(copy).map(end), Some((STALLED, 0)), "those in line are to try again");
    }
    let too_long = Status::COPY_SIZE_LIMIT_EXCEEDED.retryable();
    for &copy in &copies[..ALONE] {
        assert_eq!(io.taken(copy).map(end), Some((too_long, 20)), "of a hundred, one a second");
    }
    gate.permit(1000);
    world.until("nothing is left", || world.is_idle());
}

/// How a copy ends whose device answers nothing.
pub(super) const STALLED: Status = Status::COMMAND_INTERRUPTED.retryable();

#[test]
fn a_copy_whose_source_hangs_ends_and_leaves_its_destination_to_others() {
    let gate = Gate::new(disk(256), |op| matches!(op, Op::Read { .. }));
    let world = World::new([mem(256) as Dev, gate.clone()]);
    let (admin, io) = world.host("nqn.h").both();
    let (_, other) = world.host("nqn.i").both();
    admin.enable_formats(BOTH);
    io.write(2, 0, &pattern(1, 64));
    io.write(1, 0, &pattern(2, 64));
    let copy = io.send_copy(&Copy::from_namespaces(1, 0, &[(2, 0, 64)]));
    world.until("it runs", || gate.held() > 0);
    let write = other.send_data(write_sqe(1, 8, 512), &pattern(3, 1));
    world.pass(Duration::from_secs(2));
    assert!(io.taken(copy).is_none() && other.taken(write).is_none(), "a slow disk gets time");
    world.pass(Duration::from_secs(2));
    assert_eq!(io.taken(copy).map(end), Some((STALLED, 0)));
    assert!(other.taken(write).is_some_and(|told| told.status.is_success()));
    assert!(other.read(1, 0, 64).status.is_success());
    // While what it asked is still there, the next one is told at once; other commands are none of its business.
    assert_eq!(end(io.copy(&Copy::from_namespaces(1, 0, &[(2, 0, 8)]))), (STALLED, 0));
    assert_eq!(end(io.copy(&Copy::local(1, 128, &[(0, 8)]))), (OK, 0));
    // What comes from the source after all goes nowhere.
    let before = contents(&world.subsystem.namespaces()[0].device().clone());
    gate.permit(1000);
    world.turns(100);
    assert!(contents(&world.subsystem.namespaces()[0].device().clone()) == before);
    assert_eq!(end(io.copy(&Copy::from_namespaces(1, 0, &[(2, 0, 64)]))), (OK, 0));
    assert!(io.read(1, 0, 64).data == pattern(1, 64));
    assert!(world.is_idle() && world.free_buffers() == world.pool.count());
}

#[test]
fn a_copy_whose_destination_hangs_ends_and_keeps_what_may_still_land_to_itself() {
    let (gate, world) = gated(256, 256);
    let (_admin, io) = copier(&world.host("nqn.h"), 4, 64);
    let copy = io.send_copy(&Copy::from_namespaces(1, 0, &[(2, 0, 64)]));
    world.until("it runs", || gate.held() > 0);
    world.pass(Duration::from_secs(4));
    assert_eq!(io.taken(copy).map(end), Some((STALLED, 0)));
    let held = io.send(read_sqe(1, 0, 64).with_sgl(crate::nvme::Sgl::transport(64 * 512)), &[]);
    assert!(io.read(1, 64, 8).status.is_success(), "elsewhere in it");
    world.pass(Duration::from_secs(2));
    assert!(io.taken(held).is_none(), "nobody sees half of what may still land");
    gate.permit(1000);
    assert!(io.wait(held).data == pattern(4, 64));
}

#[test]
fn an_abort_is_answered_whatever_the_devices_do() {
    let gate = Gate::new(disk(256), |op| matches!(op, Op::Read { .. }));
    let world = World::new([mem(256) as Dev, gate.clone()]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    let copy = io.send_copy(&Copy::from_namespaces(1, 0, &[(2, 0, 64)]));
    world.until("it runs", || gate.held() > 0);
    let abort = admin.send(AdminCommand::Abort { sqid: 1, cid: cid(copy) }.to_sqe(), &[]);
    world.pass(Duration::from_secs(1));
    assert_eq!(admin.taken(abort).map(end), Some((OK, 0)), "aborted");
    let told = io.taken(copy).expect("an answer");
    assert!(told.status.is(Status::ABORT_REQUESTED));
    assert!(io.read(1, 0, 64).status.is_success());
    gate.permit(1000);
}

#[test]
fn a_host_whose_old_reads_hang_connects_again_at_once() {
    let gate = Gate::new(disk(64), |op| matches!(op, Op::Read { .. }));
    let world = World::new([gate.clone() as Dev, mem(64)]);
    let host = world.host("nqn.h");
    let (admin, io) = host.both();
    for lba in 0..8 {
        io.send(read_sqe(1, lba, 1).with_sgl(crate::nvme::Sgl::transport(512)), &[]);
    }
    world.until("they hang", || gate.held() == 8);
    io.close();
    admin.close();
    let (admin, io) = host.both();
    assert!(io.read(2, 0, 1).status.is_success(), "reads of before change nothing");
    // A reset waits for none of them either.
    io.send(read_sqe(1, 0, 1).with_sgl(crate::nvme::Sgl::transport(512)), &[]);
    world.until("it hangs", || gate.held() == 9);
    admin.reset();
    io.close();
    let csts = admin.get_property(crate::nvme::property::offset::CSTS, crate::nvme::fabrics::Width::Four);
    assert_eq!(csts.result & 1, 0);
    gate.permit(100);
    world.until("they have ended", || world.is_idle());
    assert_eq!(world.free_buffers(), world.pool.count());
}

//= promise 2
#[test]
fn the_log_has_a_line_for_each_copy() {
    let world = World::new([mem(64) as Dev, disk(64)]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    io.copy(&Copy::local(1, 32, &[(0, 4), (8, 4)]));
    io.copy(&Copy::from_namespaces(2, 0, &[(1, 32, 8)]).durable());
    let lines = world.lines.borrow();
    let [native, moved] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((native.host.as_str(), native.queue, native.dest, native.ranges), ("nqn.h", 1, 1, 2));
    assert_eq!(
        native.methods.iter().map(|(m, b)| (*m, *b)).collect::<Vec<_>>(),
        [(Method::Memory, 8 * BLOCK)]
    );
    assert_eq!((native.host_bytes.read, native.flushed), (0, false));
    assert_eq!((moved.sources.as_slice(), moved.dest, moved.flushed), (&[1][..], 2, true));
    assert_eq!(moved.methods.values().sum::<u64>(), 8 * BLOCK);
    let text = native.to_string();
    for part in
        ["copy by nqn.h", "2 ranges", "4096 of 4096 bytes", "namespace 1 to 1", "memory 4096", "Successful"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(moved.to_string().contains("durable"), "{moved}");
}

#[test]
fn neighbours_are_joined_into_one_request() {
    // 64 MiB in 4 ranges are one native request where the device takes that.
    let seen = FaultPlan::none();
    let device = Arc::new(ErrorDevice::new(null(1 << 22), seen.clone()));
    let world = World::new([device as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    let fault = Fault { ops: Ops::ALL, nth: u64::MAX, forever: false, kind: Kind::Io, good_bytes: 0 };
    seen.arm(fault);
    let ranges: Vec<(u64, u32)> = (0..4).map(|i| (i * 32768, 32768)).collect();
    assert_eq!(end(io.copy(&Copy::local(1, 1 << 21, &ranges))), (OK, 0));
    // The copy itself, and the look at its source.
    assert_eq!(seen.seen(), 2);
    let line = world.lines.borrow()[0].clone();
    assert_eq!(line.methods.into_iter().collect::<Vec<_>>(), [(Method::Null, 64 << 20)]);
}

#[test]
fn ranges_that_have_nothing_to_do_with_each_other_are_not_joined() {
    let range =
        |slba, blocks| SourceRange { snsid: None, slba, blocks: Blocks::new(blocks).unwrap(), fco: false };
    let world = World::new([mem(64) as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    io.write(1, 0, &pattern(9, 16));
    let copy =
        Copy { ranges: vec![range(4, 2), range(6, 2), range(0, 1), range(8, 1)], ..Copy::local(1, 32, &[]) };
    assert_eq!(end(io.copy(&copy)), (OK, 0));
    let source = pattern(9, 16);
    let expected = [blocks(&source, 4, 4), blocks(&source, 0, 1), blocks(&source, 8, 1)].concat();
    assert_eq!(io.read(1, 32, 6).data, expected);
}

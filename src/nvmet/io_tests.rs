//! I/O commands: what they do, what they refuse, and what a failing device becomes.

use super::testing::*;
use super::*;
use crate::block::{Kind, Op};
use crate::nvme::command::{NSID_ALL, nvm};
use crate::nvme::feature::fid;
use crate::nvme::{Doing, IoCommand, Sgl, Sqe, Status};
use crate::sim::{ErrorDevice, Fault, FaultPlan, Ops, VolatileDisk};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

fn zeroes_sqe(nsid: u32, lba: u64, blocks: u32) -> Sqe {
    IoCommand::WriteZeroes { extent: extent(nsid, lba, blocks), deallocate: false }.to_sqe()
}

#[test]
fn what_could_not_be_opened_is_tried_again_and_no_flush_leaves_it_out() {
    let gate = Gate::new(mem(64), |_| false);
    gate.refuse(2);
    let world = World::new([mem(64) as Dev, gate.clone()]);
    let (_admin, io) = world.host("nqn.h").both();
    let not_ready = Status::NAMESPACE_NOT_READY.retryable();
    for _ in 0..10 {
        assert_eq!(io.read(2, 0, 1).status, not_ready);
        assert_eq!(io.flush(NSID_ALL).status, not_ready, "it may have been written to by another thread");
        assert_eq!(io.flush(1).status, Status::SUCCESS);
    }
    assert_eq!(gate.refusals(), 1, "it is not tried for each command");
    world.pass(Duration::from_millis(1100));
    assert_eq!(io.flush(NSID_ALL).status, not_ready);
    assert_eq!(gate.refusals(), 0);
    world.pass(Duration::from_millis(1100));
    assert_eq!(io.flush(NSID_ALL).status, Status::SUCCESS);
    assert_eq!(io.read(2, 0, 1).status, Status::SUCCESS);
}

#[test]
fn a_command_of_many_requests_leaves_turns_to_others() {
    let world = World::new([mem(4096) as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    let ranges: Vec<(u64, u32)> = (0..256).map(|i| (i * 16, 8)).collect();
    let (sqe, list) = dsm(1, &ranges);
    let long = io.send_data(sqe, &list);
    let mut turns = 0;
    loop {
        let mut answers = Vec::new();
        let more = world.workers[0].borrow_mut().poll(&mut answers);
        if let [answer] = &answers[..] {
            assert_eq!((answer.id, answer.cqe.status), (long, Status::SUCCESS));
            break;
        }
        assert!(more, "to be called again without a sleep");
        turns += 1;
        assert!(turns < 1000, "it hangs");
    }
    assert!(turns > 10, "in {turns} turns");
}

#[test]
fn blocks_are_written_read_compared_zeroed_and_deallocated() {
    let world = World::new([mem(64) as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    let bytes = pattern(1, 8);
    assert!(io.write(1, 4, &bytes).status.is_success());
    assert_eq!(io.read(1, 4, 8).data, bytes);
    let compare = |data: &[u8]| io.tell(IoCommand::Compare(extent(1, 4, 8)).to_sqe(), data).status;
    assert!(compare(&bytes).is_success());
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    assert_eq!(compare(&other), Status::COMPARE_FAILURE);
    assert!(io.go(zeroes_sqe(1, 5, 2)).status.is_success());
    let (sqe, list) = dsm(1, &[(8, 1), (9, 0), (10, 1)]);
    assert!(io.tell(sqe, &list).status.is_success());
    let mut expected = bytes;
    for block in [1, 2, 4, 6] {
        expected[block * 512..][..512].fill(0);
    }
    assert_eq!(io.read(1, 4, 8).data, expected);
    assert!(io.flush(1).status.is_success());
    assert!(io.flush(NSID_ALL).status.is_success());
    assert!(world.is_idle());
}

#[test]
fn blocks_of_4096_bytes_are_where_they_belong() {
    let device = mem_of(16 * 4096, 1);
    let options = NamespaceOptions { block_bytes: Some(4096), ..Default::default() };
    let mut make = Make::new([]);
    make.devices.push((device.clone(), options));
    let world = make.world();
    let (_admin, io) = world.host("nqn.h").both();
    let bytes = pattern(2, 16);
    assert!(io.tell(IoCommand::Write(extent(1, 3, 2)).to_sqe(), &bytes).status.is_success());
    assert_eq!(contents(&(device as Dev))[3 * 4096..5 * 4096], bytes);
    assert_eq!(io.ask(read_sqe(1, 15, 1), 4096).data, vec![0; 4096]);
    assert_eq!(io.ask(read_sqe(1, 15, 2), 8192).status, Status::LBA_OUT_OF_RANGE);
    assert_eq!(io.ask(read_sqe(1, 0, 2), 1024).status, Status::SGL_LENGTH_INVALID, "counted in these blocks");
}

//= promise 3
#[test]
fn what_is_refused_changes_nothing() {
    let (device, locked, hidden) = (mem(64), mem(64), mem(64));
    let mut make = Make::new([device.clone() as Dev]);
    let options = NamespaceOptions { read_only: true, ..Default::default() };
    make.devices.push((locked.clone(), options));
    let hosts = Hosts::These(vec!["nqn.other".to_owned()]);
    make.devices.push((hidden.clone(), NamespaceOptions { hosts, ..Default::default() }));
    let world = make.world();
    let (_admin, io) = world.host("nqn.h").both();
    let block = pattern(3, 1);
    let fused = {
        let mut sqe = write_sqe(1, 0, 512);
        sqe.0[1] |= 1;
        sqe
    };
    let prp = {
        let mut sqe = write_sqe(1, 0, 512);
        sqe.0[1] = 0;
        sqe
    };
    let refused = [
        (write_sqe(0, 0, 512), Status::INVALID_NAMESPACE),
        (write_sqe(NSID_ALL, 0, 512), Status::INVALID_NAMESPACE),
        (write_sqe(NSID_MAX + 1, 0, 512), Status::INVALID_NAMESPACE),
        (write_sqe(4, 0, 512), Status::INVALID_FIELD),
        (write_sqe(3, 0, 512), Status::INVALID_FIELD),
        (write_sqe(2, 0, 512), Status::NAMESPACE_WRITE_PROTECTED),
        (write_sqe(1, 64, 512), Status::LBA_OUT_OF_RANGE),
        (write_sqe(1, u64::MAX, 512), Status::LBA_OUT_OF_RANGE),
        (write_sqe(1, 0, 1024), Status::SGL_LENGTH_INVALID),
        (IoCommand::Compare(extent(1, 64, 1)).to_sqe(), Status::LBA_OUT_OF_RANGE),
        (fused, Status::INVALID_FIELD),
        (prp, Status::INVALID_FIELD),
        (Sqe::new(0x0d, 1), Status::INVALID_OPCODE),
        (Sqe::new(0x81, 1), Status::INVALID_OPCODE),
    ];
    for (sqe, status) in refused {
        let told = io.tell(sqe, &block);
        assert_eq!((told.status, told.result), (status, 0), "{sqe:?}");
    }
    for (sqe, status) in [
        (zeroes_sqe(1, 63, 2), Status::LBA_OUT_OF_RANGE),
        (zeroes_sqe(2, 0, 1), Status::NAMESPACE_WRITE_PROTECTED),
        (IoCommand::Flush { nsid: 3 }.to_sqe(), Status::INVALID_FIELD),
        (IoCommand::Flush { nsid: 0 }.to_sqe(), Status::INVALID_NAMESPACE),
    ] {
        assert_eq!(io.go(sqe).status, status, "{sqe:?}");
    }
    assert_eq!(io.ask(read_sqe(1, 0, 1), 1024).status, Status::SGL_LENGTH_INVALID);
    assert_eq!(io.ask(read_sqe(3, 0, 1), 512).status, Status::INVALID_FIELD);
    let longest = settings().transfer_bytes;
    assert!(io.ask(read_sqe(1, 0, 64), 64 * 512).status.is_success());
    assert_eq!(
        io.ask(read_sqe(1, 0, longest / 512 + 1), longest + 512).status,
        Status::INVALID_FIELD,
        "MDTS"
    );
    // A bad range behind a good one: nothing is deallocated.
    for (nsid, ranges, status) in [
        (1, vec![(0, 8), (63, 2)], Status::LBA_OUT_OF_RANGE),
        (1, vec![(0, 8), (u64::MAX, 1)], Status::LBA_OUT_OF_RANGE),
        (2, vec![(0, 8)], Status::NAMESPACE_WRITE_PROTECTED),
    ] {
        let (sqe, list) = dsm(nsid, &ranges);
        assert_eq!(io.tell(sqe, &list).status, status);
    }
    let (sqe, list) = dsm(1, &[(0, 8), (8, 8)]);
    assert_eq!(io.tell(sqe, &list[..16]).status, Status::SGL_LENGTH_INVALID);
    for device in [device, locked, hidden] {
        assert!(contents(&(device as Dev)).iter().all(|&b| b == 0));
    }
    assert_eq!(world.free_buffers(), world.pool.count(), "every buffer is back");
}

#[test]
fn a_list_longer_than_its_ranges_is_taken_as_linux_sends_it() {
    let world = World::new([mem(64) as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    io.write(1, 0, &pattern(4, 2));
    let (sqe, mut list) = dsm(1, &[(0, 1)]);
    list.resize(4096, 0xff);
    assert!(io.tell(sqe, &list).status.is_success());
    assert_eq!(io.read(1, 0, 1).data, vec![0; 512]);
}

#[test]
fn a_hint_that_is_no_deallocation_changes_nothing() {
    let world = World::new([mem(64) as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    let bytes = pattern(5, 1);
    io.write(1, 0, &bytes);
    let (mut sqe, list) = dsm(1, &[(0, 1)]);
    sqe.set_dword(11, 0);
    assert!(io.tell(sqe, &list).status.is_success());
    assert_eq!(io.read(1, 0, 1).data, bytes);
}

#[test]
fn errors_of_the_device_have_the_status_of_what_was_done() {
    let plan = FaultPlan::none();
    let device = Arc::new(ErrorDevice::new(mem(64), plan.clone()));
    let world = World::new([device as Dev]);
    let (admin, io) = world.host("nqn.h").both();
    let block = pattern(6, 1);
    for kind in [Kind::Io, Kind::NoSpace, Kind::Poisoned, Kind::NoMemory, Kind::Unsupported] {
        let error = crate::block::Error::new(kind, "");
        let fail = |ops| plan.arm(Fault { ops, nth: 1, forever: false, kind, good_bytes: 0 });
        let of = |doing| Status::of(&error, doing);
        fail(Ops::READ);
        assert_eq!(io.read(1, 0, 1).status, of(Doing::Read));
        fail(Ops::WRITE);
        assert_eq!(io.write(1, 0, &block).status, of(Doing::Write));
        fail(Ops::COMPARE);
        assert_eq!(io.tell(IoCommand::Compare(extent(1, 0, 1)).to_sqe(), &block).status, of(Doing::Compare));
        fail(Ops::WRITE_ZEROES);
        assert_eq!(io.go(zeroes_sqe(1, 0, 1)).status, of(Doing::WriteZeroes));
        fail(Ops::FLUSH);
        assert_eq!(io.flush(1).status, of(Doing::Flush));
        let (sqe, list) = dsm(1, &[(0, 1), (1, 1)]);
        fail(Ops::DISCARD);
        let status = io.tell(sqe, &list).status;
        // Deallocating is a hint: a device that cannot has not failed.
        let expected = if kind == Kind::Unsupported { Status::SUCCESS } else { of(Doing::Deallocate) };
        assert_eq!(status, expected);
    }
    plan.disarm();
    assert!(io.read(1, 0, 1).status.is_success(), "an error does not stay");
    let log = admin.log(crate::nvme::log::lid::ERROR_INFORMATION, 0, 64);
    let last = crate::nvme::log::ErrorEntry::parse(&log.data).unwrap();
    assert_eq!((last.count > 10, last.sqid, last.nsid), (true, 1, 1), "the newest comes first");
}

//= promise 6
#[test]
fn a_flush_of_all_fails_when_one_does() {
    let plan = FaultPlan::none();
    let failing = Arc::new(ErrorDevice::new(mem(64), plan.clone()));
    let world = World::new([mem(64) as Dev, failing, mem(64)]);
    let (_admin, io) = world.host("nqn.h").both();
    plan.arm(Fault { ops: Ops::FLUSH, nth: 1, forever: false, kind: Kind::Io, good_bytes: 0 });
    assert_eq!(io.flush(NSID_ALL).status, Status::WRITE_FAULT);
    assert!(io.flush(NSID_ALL).status.is_success());
}

fn volatile() -> Arc<VolatileDisk> {
    Arc::new(VolatileDisk::new("disk", 64 * BLOCK, NonZeroU32::new(512).unwrap()).unwrap())
}

//= promise 6
#[test]
fn what_is_to_be_durable_is_when_its_answer_comes() {
    let disk = volatile();
    let world = World::new([disk.clone() as Dev]);
    let (admin, io) = world.host("nqn.h").both();
    let bytes = pattern(7, 4);
    io.write(1, 0, &bytes);
    assert_eq!(disk.unflushed_blocks(), 4, "a plain write is cached");
    let mut fua = extent(1, 0, 4);
    fua.fua = true;
    assert!(io.tell(IoCommand::Write(fua).to_sqe(), &bytes).status.is_success());
    assert_eq!(disk.unflushed_blocks(), 0, "FUA");
    io.write(1, 8, &bytes);
    assert!(io.flush(1).status.is_success());
    assert_eq!(disk.unflushed_blocks(), 0, "flush");
    let mut fua = extent(1, 0, 2);
    fua.fua = true;
    io.go(IoCommand::WriteZeroes { extent: fua, deallocate: true }.to_sqe());
    assert_eq!(disk.unflushed_blocks(), 0, "zeroes with FUA");
    io.write(1, 8, &bytes);
    let mut fua = extent(1, 8, 4);
    fua.fua = true;
    assert_eq!(io.ask(IoCommand::Read(fua).to_sqe(), 4 * 512).data, bytes);
    assert_eq!(disk.unflushed_blocks(), 0, "what is read with FUA is durable");
    io.write(1, 8, &bytes);
    assert!(io.tell(IoCommand::Compare(fua).to_sqe(), &bytes).status.is_success());
    assert_eq!(disk.unflushed_blocks(), 0, "what is compared with FUA is durable");

    // With the write cache switched off everything is, until a reset switches it on again.
    assert!(admin.set_feature(fid::VOLATILE_WRITE_CACHE, 0).status.is_success());
    io.write(1, 0, &bytes);
    io.go(zeroes_sqe(1, 2, 1));
    let (sqe, list) = dsm(1, &[(3, 1)]);
    io.tell(sqe, &list);
    assert!(io.copy(&Copy::local(1, 16, &[(0, 4)])).status.is_success());
    assert_eq!(disk.unflushed_blocks(), 0, "write-through");
    let mut expected = bytes.clone();
    expected[2 * 512..].fill(0);
    assert_eq!(disk.durable()[16 * 512..20 * 512], expected);
    admin.reset();
    admin.enable();
    let io = world.host("nqn.h").io(&admin, 2);
    io.write(1, 0, &bytes);
    assert_eq!(disk.unflushed_blocks(), 4, "cached again");
}

#[test]
fn a_later_connection_never_gets_an_old_answer() {
    let gate = Gate::new(mem(64), |op| matches!(op, Op::Read { .. }));
    let world = World::new([gate.clone() as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    io.write(1, 0, &pattern(10, 1));
    let old = io.send(read_sqe(1, 0, 1).with_sgl(Sgl::transport(512)), &[]);
    world.until("the read is in the device", || gate.held() == 1);
    io.close();
    assert!(!world.is_idle(), "the device has it still");
    // Another host: its Connect waits for nobody.
    let (_admin2, other) = world.host("nqn.i").both();
    assert_ne!(other.id.index(), io.id.index(), "the place is not free while something is out");
    gate.permit(1);
    world.until("drained", || world.is_idle());
    assert_eq!(world.free_buffers(), world.pool.count(), "the buffer went back");
    assert!(io.taken(old).is_none(), "and no answer came");
    let again = world.host("nqn.i").open();
    assert_eq!(again.id.index(), io.id.index(), "now it is");
    assert_ne!(again.id, io.id);
}

#[test]
fn two_hosts_and_several_queues_share_one_namespace() {
    let mut make = Make::new([mem(256) as Dev]);
    make.workers = 2;
    let world = make.world();
    let (a, b) = (world.host("nqn.a"), world.host("nqn.b").on_worker(1));
    let ((admin_a, io_a), (_admin_b, io_b)) = (a.both(), b.both());
    let io_a2 = a.clone().on_worker(1).io(&admin_a, 2);
    for (i, queue) in [&io_a, &io_b, &io_a2].into_iter().enumerate() {
        assert!(queue.write(1, i as u64 * 8, &pattern(i as u64, 8)).status.is_success());
    }
    for queue in [&io_b, &io_a2, &io_a] {
        for i in 0..3 {
            assert_eq!(queue.read(1, i * 8, 8).data, pattern(i, 8));
        }
    }
    let copied = io_b.copy(&Copy::local(1, 100, &[(0, 8), (16, 8)]));
    assert!(copied.status.is_success());
    assert_eq!(io_a.read(1, 108, 8).data, pattern(2, 8));
}

#[test]
fn a_namespace_that_is_removed_is_gone_for_every_queue_once_it_is_idle() {
    let gate = Gate::writes(mem(64));
    let weak = Arc::downgrade(&gate);
    let world = World::new([gate.clone() as Dev, mem(64)]);
    let (_admin, io) = world.host("nqn.h").both();
    let write = io.send_data(write_sqe(1, 0, 512), &pattern(1, 1));
    world.until("in the device", || gate.held() == 1);
    world.subsystem.remove(1).unwrap();
    assert_eq!(io.read(1, 0, 1).status, Status::INVALID_FIELD, "nothing new is begun");
    gate.permit(1);
    assert!(io.wait(write).status.is_success(), "what was begun ends");
    drop(gate);
    world.turns(2);
    assert!(weak.upgrade().is_none(), "and the device is let go of");
    assert!(io.read(2, 0, 1).status.is_success());
    assert_eq!(world.subsystem.add(mem(64), NamespaceOptions::default()).unwrap(), 1);
    assert!(io.read(1, 0, 1).status.is_success(), "another may come under its number");
}

#[test]
fn opcodes_that_are_not_claimed_are_refused() {
    let world = World::new([mem(64) as Dev]);
    let (admin, io) = world.host("nqn.h").both();
    let claimed = [
        nvm::FLUSH,
        nvm::WRITE,
        nvm::READ,
        nvm::COMPARE,
        nvm::WRITE_ZEROES,
        nvm::DATASET_MANAGEMENT,
        nvm::COPY,
    ];
    for opcode in (0..=255u8).filter(|o| !claimed.contains(o) && *o != crate::nvme::command::FABRICS) {
        assert_eq!(io.go(Sqe::new(opcode, 1)).status, Status::INVALID_OPCODE, "{opcode:02x}h");
    }
    let claimed = [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18];
    for opcode in (0..=255u8).filter(|o| !claimed.contains(o) && *o != crate::nvme::command::FABRICS) {
        assert_eq!(admin.go(Sqe::new(opcode, 0)).status, Status::INVALID_OPCODE, "{opcode:02x}h");
    }
}

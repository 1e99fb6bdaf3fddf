//! Admin commands: what Identify and the log pages say, features, events, Abort. Numbers in comments are the edge cases
//! of `docs/conformance.md`.

use super::testing::*;
use super::*;
use crate::block::Kind;
use crate::nvme::admin::{AdminCommand, GetFeatures, GetLogPage, Identify, Select, SetFeatures};
use crate::nvme::command::{NSID_ALL, admin, nvm};
use crate::nvme::copy::Format;
use crate::nvme::feature::{AsyncEvent, HostBehavior, fid};
use crate::nvme::identify::{
    ControllerType, FlushAll, IdentifyController, IdentifyNamespace, IndependentNamespace, NamespaceIds,
    NvmController, NvmNamespace, cns, csi, lpa, oaes, oncs, parse_command_sets, parse_controller_list,
    parse_namespace_list,
};
use crate::nvme::log::{
    ChangedNamespaces, CommandEffects, ErrorEntry, FirmwareSlots, Smart, Table, effect, lid,
};
use crate::nvme::{IoCommand, Nqn, Status};
use crate::sim::{ErrorDevice, Fault, FaultPlan, Ops};
use std::sync::Arc;

const OK: Status = Status::SUCCESS;

/// Namespaces 1 and 3 for all, 2 for another host only, 5 read-only with blocks of 4096 bytes.
fn make() -> Make {
    let mut make = Make::new([mem(64) as Dev]);
    let hosts = Hosts::These(vec!["nqn.other".to_owned()]);
    make.devices.push((mem(64), NamespaceOptions { hosts, ..Default::default() }));
    make.devices.push((mem(128), NamespaceOptions::default()));
    let options = NamespaceOptions {
        nsid: Some(5),
        read_only: true,
        block_bytes: Some(4096),
        ..NamespaceOptions::default()
    };
    make.devices.push((mem_of(1 << 20, 1), options));
    make
}

#[test]
fn identify_controller_says_what_there_is() {
    let world = make().world();
    let admin = world.host("nqn.h").admin();
    let id = IdentifyController::parse(&admin.identify(cns::CONTROLLER, 0).data).unwrap();
    assert_eq!((id.cntlid, id.controller_type), (admin.cntlid.get(), ControllerType::Io));
    assert_eq!(id.subsystem, *world.subsystem.nqn());
    assert_eq!(id.serial, world.subsystem.serial());
    assert_eq!(id.mdts.unwrap().get(), 8, "1 MiB in pages of 4096");
    // What Linux refuses a controller without.
    assert!(id.kas.is_some() && id.sgls & 3 != 0 && id.icdoff == 0);
    assert_eq!((id.ioccsz, id.iorcsz), (644, 1), "the list of the longest Copy fits a capsule");
    assert_eq!(id.maxcmd.unwrap().get(), 128);
    assert_eq!(id.nn, NSID_MAX);
    assert_eq!(id.oaes, oaes::NAMESPACE_ATTRIBUTE);
    assert!(id.lpa & lpa::COMMAND_EFFECTS != 0 && id.lpa & lpa::EXTENDED != 0);
    assert!(
        id.oncs & oncs::COPY != 0 && id.oncs & oncs::COPY_SINGLE_ATOMICITY != 0,
        "NVMCSA goes with 2h and 3h"
    );
    assert_eq!(id.oncs & oncs::COPY_ALWAYS_FAST, 0);
    assert!(Format::ALL[..4].iter().all(|&f| id.copies_in(f)) && !id.copies_in(Format::F4));
    assert!(id.write_cache && id.flush_all == FlushAll::Flushes);
    assert_eq!((id.awun.get(), id.awupf.get(), id.fuses), (1, 1, 0));
    assert_eq!((id.abort_limit.get(), id.async_event_limit.get(), id.error_log_entries.get()), (4, 4, 64));
    assert_eq!((id.kas.unwrap().get(), id.sqes, id.cqes), (10, 0x66, 0x44));
    assert_eq!((id.cmic, id.ctratt), (3, 1), "several ports and controllers, host identifiers of 128 bits");
}

//= promise 3
#[test]
fn identify_namespace_says_what_it_is_and_hides_what_the_host_may_not_see() {
    let world = make().world();
    let admin = world.host("nqn.h").admin();
    for structure in [cns::NAMESPACE, cns::ALLOCATED_NAMESPACE] {
        let id = |nsid| IdentifyNamespace::parse(&admin.identify(structure, nsid).data).unwrap();
        let one = id(1);
        assert_eq!(
            (one.size_blocks, one.block_bytes(), one.write_protected, one.shared),
            (64, 512, false, true)
        );
        assert_eq!(one.capacity_blocks, 64);
        assert_eq!(one.dlfeat, 9, "deallocated memory reads as zero");
        let copy = one.copy.unwrap();
        assert_eq!(
            (copy.range_blocks_max.get(), copy.blocks_max.get(), copy.ranges_max.get()),
            (32768, 65536, 256)
        );
        let five = id(5);
        assert_eq!((five.size_blocks, five.block_bytes(), five.write_protected), (256, 4096, true));
        assert_eq!(one.nguid, Some(world.subsystem.namespaces()[0].nguid()));
        assert_eq!(one.generation, Some(world.subsystem.namespaces()[0].generation()));
        assert_ne!(one.generation, five.generation);
        for nsid in [2, 4, NSID_MAX] {
            let told = admin.identify(structure, nsid);
            assert!(told.status == OK && told.data.iter().all(|&b| b == 0), "{nsid} is not active");
        }
    }
    for structure in [cns::CSI_NAMESPACE, cns::INDEPENDENT_NAMESPACE] {
        assert!(admin.identify(structure, 2).data.iter().all(|&b| b == 0));
    }
    let five = IndependentNamespace::parse(&admin.identify(cns::INDEPENDENT_NAMESPACE, 5).data).unwrap();
    assert!(five.ready && five.write_protected && five.shared);
    assert_eq!(
        NvmNamespace::parse(&admin.identify(cns::CSI_NAMESPACE, 1).data).unwrap(),
        NvmNamespace::default()
    );
    assert_eq!(
        NvmController::parse(&admin.identify(cns::CSI_CONTROLLER, 0).data).unwrap(),
        NvmController::default()
    );
    for structure in [
        cns::NAMESPACE,
        cns::NAMESPACE_DESCRIPTORS,
        cns::CSI_NAMESPACE,
        cns::INDEPENDENT_NAMESPACE,
        cns::NAMESPACE_CONTROLLERS,
    ] {
        for nsid in [0, NSID_ALL, NSID_MAX + 1] {
            assert_eq!(
                admin.identify(structure, nsid).status,
                Status::INVALID_NAMESPACE,
                "{structure:02x}h {nsid}"
            );
        }
    }
    for structure in [cns::NAMESPACE_DESCRIPTORS, cns::NAMESPACE_CONTROLLERS] {
        assert_eq!(admin.identify(structure, 2).status, Status::INVALID_FIELD, "as if it were not there");
    }
    let names = NamespaceIds::parse(&admin.identify(cns::NAMESPACE_DESCRIPTORS, 3).data).unwrap();
    let third = &world.subsystem.namespaces()[2];
    assert_eq!(
        (names.nguid, names.uuid, names.csi),
        (Some(third.nguid()), Some(third.uuid()), Some(csi::NVM))
    );
    // The other host sees the second too.
    let other = world.host("nqn.other").admin();
    assert!(IdentifyNamespace::parse(&other.identify(cns::NAMESPACE, 2).data).is_ok());
}

#[test]
fn identify_lists() {
    let world = make().world();
    let (admin, other) = (world.host("nqn.h").admin(), world.host("nqn.other").admin());
    for structure in [cns::ACTIVE_NAMESPACES, cns::CSI_ACTIVE_NAMESPACES, cns::ALLOCATED_NAMESPACES] {
        let list =
            |queue: &Queue<'_>, behind| parse_namespace_list(&queue.identify(structure, behind).data, behind);
        assert_eq!(list(&admin, 0).unwrap(), [1, 3, 5]);
        assert_eq!(list(&other, 0).unwrap(), [1, 2, 3, 5]);
        assert_eq!(list(&admin, 1).unwrap(), [3, 5]);
        assert_eq!(list(&admin, 5).unwrap(), [0u32; 0]);
        assert_eq!(admin.identify(structure, NSID_ALL).status, Status::INVALID_NAMESPACE);
        assert_eq!(admin.identify(structure, NSID_ALL - 1).status, Status::INVALID_NAMESPACE);
    }
    let (a, b) = (admin.cntlid.get(), other.cntlid.get());
    let ids = |queue: &Queue<'_>, structure, nsid, cntid| {
        let command = Identify { cntid, ..Identify::new(structure, nsid) };
        parse_controller_list(&queue.ask(AdminCommand::Identify(command).to_sqe(), 4096).data).unwrap()
    };
    assert_eq!(ids(&admin, cns::CONTROLLERS, 0, 0), [a, b]);
    assert_eq!(ids(&admin, cns::CONTROLLERS, 0, b), [b]);
    assert_eq!(ids(&other, cns::NAMESPACE_CONTROLLERS, 2, 0), [b], "only who sees it");
    assert_eq!(ids(&other, cns::NAMESPACE_CONTROLLERS, 1, 0), [a, b]);
    assert_eq!(parse_command_sets(&admin.identify(cns::COMMAND_SETS, 0).data).unwrap(), [1]);
}

#[test]
fn identify_refuses_what_it_has_not() {
    let world = make().world();
    let admin = world.host("nqn.h").admin();
    let known = [0, 1, 2, 3, 5, 6, 7, 8, 0x10, 0x11, 0x12, 0x13, 0x1c];
    for structure in (0..=255).filter(|c| !known.contains(c)) {
        assert_eq!(admin.identify(structure, 1).status, Status::INVALID_FIELD, "CNS {structure:02x}h");
    }
    for structure in [cns::CSI_NAMESPACE, cns::CSI_CONTROLLER, cns::CSI_ACTIVE_NAMESPACES] {
        let command = Identify { csi: 2, ..Identify::new(structure, 1) };
        let told = admin.ask(AdminCommand::Identify(command).to_sqe(), 4096);
        assert_eq!(told.status, Status::INVALID_FIELD, "zoned namespaces");
    }
    let sqe = AdminCommand::Identify(Identify::new(cns::CONTROLLER, 0)).to_sqe();
    for len in [0, 4, 4092, 8192] {
        assert_eq!(admin.ask(sqe, len).status, Status::SGL_LENGTH_INVALID, "{len} bytes");
    }
}

#[test]
fn log_pages_and_how_much_of_them() {
    let world = make().world();
    let (admin, io) = world.host("nqn.h").both();
    let supported = Table::parse(&admin.log(lid::SUPPORTED_LOG_PAGES, 0, 1024).data).unwrap();
    for page in 0..=255u8 {
        let told = admin.log(page, 0, 4);
        assert_eq!(told.status == OK, supported.get(page) != 0, "page {page:02x}h");
        assert!(told.status == OK || told.status == Status::INVALID_LOG_PAGE);
    }
    let effects = CommandEffects::parse(&admin.log(lid::COMMAND_EFFECTS, 0, 4096).data).unwrap();
    // An ordinary user of the host may pass Copy through when nothing but content changes.
    assert_eq!(effects.io.get(nvm::COPY), effect::SUPPORTED | effect::CONTENT);
    assert_eq!(effects.io.get(nvm::READ), effect::SUPPORTED);
    assert_eq!(effects.admin.get(admin::IDENTIFY), effect::SUPPORTED);
    assert_eq!(effects.io.get(0x0d), 0);
    let features = Table::parse(&admin.log(lid::FEATURE_EFFECTS, 0, 1024).data).unwrap();
    for fid in 0..=255u8 {
        let told = admin.ask(
            AdminCommand::GetFeatures(GetFeatures { nsid: 1, cdw11: 1, ..GetFeatures::new(fid) }).to_sqe(),
            0,
        );
        assert_eq!(told.status == Status::INVALID_FIELD, features.get(fid) == 0, "feature {fid:02x}h");
    }
    let firmware = FirmwareSlots::parse(&admin.log(lid::FIRMWARE_SLOTS, 0, 512).data).unwrap();
    assert_eq!(firmware.active, 1);
    assert!(firmware.revisions[0].is_some());

    let before = Smart::parse(&admin.log(lid::SMART, 0, 512).data).unwrap();
    for i in 0..10 {
        io.write(1, i, &pattern(1, 1));
        io.read(1, i, 8);
    }
    let after = Smart::parse(&admin.log(lid::SMART, 0, 512).data).unwrap();
    assert_eq!((after.host_writes - before.host_writes, after.host_reads - before.host_reads), (10, 10));
    assert_eq!((after.data_units_read, after.critical_warning), (1, 0), "thousands of 512 bytes, rounded up");

    // Offsets, lengths, and what lies past the end.
    let whole = admin.log(lid::COMMAND_EFFECTS, 0, 4096).data;
    assert_eq!(admin.log(lid::COMMAND_EFFECTS, 1024, 16).data, whole[1024..1040]);
    let tail = admin.log(lid::COMMAND_EFFECTS, 4092, 8).data;
    assert_eq!((&tail[..4], &tail[4..]), (&whole[4092..], &[0; 4][..]));
    assert_eq!(admin.log(lid::COMMAND_EFFECTS, 4100, 4).status, Status::INVALID_FIELD);
    assert_eq!(admin.log(lid::COMMAND_EFFECTS, 1 << 40, 4).status, Status::INVALID_FIELD);
    let page = |change: &dyn Fn(&mut GetLogPage)| {
        let mut page = GetLogPage::new(lid::COMMAND_EFFECTS, 16);
        change(&mut page);
        admin.ask(AdminCommand::GetLogPage(page).to_sqe(), 16).status
    };
    assert_eq!(page(&|_| ()), OK);
    assert_eq!(page(&|p| p.nsid = 0), OK);
    assert_eq!(page(&|p| p.offset = 2), Status::INVALID_FIELD);
    assert_eq!(page(&|p| p.offset_is_index = true), Status::INVALID_FIELD);
    assert_eq!(page(&|p| p.nsid = 1), Status::INVALID_FIELD, "no page of a namespace");
    let zoned = GetLogPage { csi: 2, ..GetLogPage::new(lid::COMMAND_EFFECTS, 4096) };
    let zoned = admin.ask(AdminCommand::GetLogPage(zoned).to_sqe(), 4096).data;
    assert_eq!(
        (&zoned[..1024], &zoned[1024..]),
        (&whole[..1024], &[0; 3072][..]),
        "no command of a zoned namespace"
    );
    assert_eq!(page(&|p| p.len = 20), Status::SGL_LENGTH_INVALID);
    assert_eq!(page(&|p| p.len = 1 << 34), Status::SGL_LENGTH_INVALID);
    let mut sqe = AdminCommand::GetLogPage(GetLogPage::new(lid::COMMAND_EFFECTS, 4)).to_sqe();
    assert_eq!(admin.ask(sqe, 8).status, Status::SGL_LENGTH_INVALID);
    sqe.0[1] = 0;
    assert_eq!(admin.ask(sqe, 4).status, Status::INVALID_FIELD, "PRPs");
}

#[test]
fn what_went_well_is_counted_and_a_compare_is_a_read() {
    let plan = FaultPlan::none();
    let world = World::new([Arc::new(ErrorDevice::new(mem(64), plan.clone())) as Dev]);
    let (admin, io) = world.host("nqn.h").both();
    let counted = || {
        let smart = Smart::parse(&admin.log(lid::SMART, 0, 512).data).unwrap();
        (smart.host_reads, smart.host_writes)
    };
    assert_eq!(counted(), (0, 0));
    let bytes = pattern(1, 1);
    let compare = |bytes: &[u8]| io.tell(IoCommand::Compare(extent(1, 0, 1)).to_sqe(), bytes).status;
    assert!(io.write(1, 0, &bytes).status.is_success());
    assert!(io.read(1, 0, 1).status.is_success());
    assert!(compare(&bytes).is_success());
    assert_eq!(counted(), (2, 1));
    assert!(!compare(&pattern(2, 1)).is_success());
    assert!(!io.read(1, 64, 1).status.is_success());
    for ops in [Ops::READ, Ops::WRITE] {
        plan.arm(Fault { ops, nth: 1, forever: true, kind: Kind::Io, good_bytes: 0 });
        assert_eq!(io.read(1, 0, 1).status.is_success(), ops != Ops::READ);
        assert_eq!(io.write(1, 0, &bytes).status.is_success(), ops != Ops::WRITE);
    }
    assert_eq!(counted(), (3, 2), "failed ones are not");
}

#[test]
fn a_request_for_an_event_that_its_host_forgot_takes_no_event() {
    let world = World::new([mem(64) as Dev, mem(64)]);
    let admin = world.host("nqn.h").admin();
    admin.set_feature(fid::ASYNC_EVENTS, 1 << 8);
    let forgotten = admin.send(AdminCommand::AsyncEventRequest.to_sqe(), &[]);
    let kept = admin.send(AdminCommand::AsyncEventRequest.to_sqe(), &[]);
    // A host that uses the id again, in another slot.
    let mut sqe = AdminCommand::KeepAlive.to_sqe();
    sqe.set_cid(cid(forgotten));
    let from = CommandId { slot: 77, ..forgotten };
    world.workers[0].borrow_mut().submit(from, &sqe, crate::block::Buf::default());
    assert!(admin.wait(forgotten).status.is(Status::ABORT_REQUESTED), "which the transport keeps to itself");
    world.subsystem.remove(2).unwrap();
    assert!(admin.wait(kept).status.is_success(), "the event");
}

#[test]
fn the_error_log_begins_with_the_newest_and_keeps_the_last() {
    let world = make().world();
    let (admin, io) = world.host("nqn.h").both();
    let entries = || {
        let page = admin.log(lid::ERROR_INFORMATION, 0, 64 * 64).data;
        page.chunks_exact(64).map(|e| ErrorEntry::parse(e).unwrap()).collect::<Vec<_>>()
    };
    assert!(entries().iter().all(|e| e.count == 0));
    for lba in 0..70 {
        io.read(1, 1000 + lba, 1);
    }
    let log = entries();
    assert_eq!((log[0].count, log[63].count), (70, 7));
    assert_eq!(
        (log[0].sqid, log[0].nsid, log[0].opcode, log[0].status),
        (1, 1, nvm::READ, Status::LBA_OUT_OF_RANGE)
    );
    assert_eq!(Smart::parse(&admin.log(lid::SMART, 0, 512).data).unwrap().error_log_entries, 70);
}

#[test]
fn features_with_data_and_by_command() {
    let world = make().world();
    let host = world.host("nqn.h");
    let admin = host.admin();
    let behavior = AdminCommand::GetFeatures(GetFeatures::new(fid::HOST_BEHAVIOR)).to_sqe();
    assert_eq!(admin.enable_formats(0b1100).status, OK);
    assert_eq!(HostBehavior::parse(&admin.ask(behavior, 512).data).unwrap().copy_formats, 0b1100);
    assert_eq!(admin.ask(behavior, 0).status, Status::SGL_LENGTH_INVALID);
    assert_eq!(admin.ask(behavior, 4096).status, Status::SGL_LENGTH_INVALID);
    let set = AdminCommand::SetFeatures(SetFeatures::new(fid::HOST_BEHAVIOR, 0)).to_sqe();
    assert_eq!(admin.tell(set, &[0; 511]).status, Status::SGL_LENGTH_INVALID);
    let id = GetFeatures { cdw11: 1, ..GetFeatures::new(fid::HOST_ID) };
    assert_eq!(admin.ask(AdminCommand::GetFeatures(id).to_sqe(), 16).data, host.id);
    let get = |fid| admin.admin(AdminCommand::GetFeatures(GetFeatures { nsid: 1, ..GetFeatures::new(fid) }));
    assert_eq!(get(fid::NUMBER_OF_QUEUES).result, 0x0007_0007);
    assert_eq!(get(fid::VOLATILE_WRITE_CACHE).result, 1);
    assert_eq!(get(fid::ERROR_RECOVERY).status, OK);
    let nowhere = GetFeatures { nsid: 2, ..GetFeatures::new(fid::ERROR_RECOVERY) };
    assert_eq!(admin.admin(AdminCommand::GetFeatures(nowhere)).status, Status::INVALID_FIELD);
    let capabilities = GetFeatures { select: Select::Capabilities, ..GetFeatures::new(fid::KEEP_ALIVE) };
    assert_eq!(admin.admin(AdminCommand::GetFeatures(capabilities)).result, 4);
    // The number of queues is settled before the first of them.
    host.io(&admin, 1);
    assert_eq!(admin.set_feature(fid::NUMBER_OF_QUEUES, 0).status, Status::COMMAND_SEQUENCE_ERROR);
}

#[test]
fn changes_of_namespaces_are_told_to_those_who_see_them() {
    let mut make = make();
    make.workers = 2;
    let world = make.world();
    let admin = world.host("nqn.h").admin();
    let far = world.host("nqn.other").on_worker(1).admin();
    for queue in [&admin, &far] {
        assert_eq!(queue.set_feature(fid::ASYNC_EVENTS, oaes::NAMESPACE_ATTRIBUTE).status, OK);
    }
    let ask = |queue: &Queue<'_>| queue.send(AdminCommand::AsyncEventRequest.to_sqe(), &[]);
    let (mine, theirs) = (ask(&admin), ask(&far));
    let changed =
        |queue: &Queue<'_>| match ChangedNamespaces::parse(&queue.log(lid::CHANGED_NAMESPACES, 0, 4096).data)
        {
            Ok(ChangedNamespaces::These(nsids)) => nsids,
            other => panic!("{other:?}"),
        };
    world.turns(3);
    assert!(admin.taken(mine).is_none() && far.taken(theirs).is_none());
    // The second is seen by the other host only.
    world.subsystem.remove(2).unwrap();
    let told = far.wait(theirs);
    assert_eq!((told.status, told.result as u32), (OK, AsyncEvent::NAMESPACE_ATTRIBUTE.to_dword()));
    assert!(admin.taken(mine).is_none());
    assert_eq!(changed(&far), [2]);
    assert_eq!(changed(&admin), [0u32; 0]);
    assert_eq!(world.subsystem.add(mem(64), NamespaceOptions::default()).unwrap(), 2);
    assert_eq!(admin.wait(mine).status, OK);
    // Told once, until the log is read; a request that comes later is told at once.
    let (again, late) = (ask(&admin), ask(&far));
    assert_eq!(far.wait(late).status, OK);
    world.subsystem.remove(3).unwrap();
    world.turns(3);
    assert!(admin.taken(again).is_none());
    let retain = GetLogPage { rae: true, ..GetLogPage::new(lid::CHANGED_NAMESPACES, 4096) };
    let kept = admin.ask(AdminCommand::GetLogPage(retain).to_sqe(), 4096).data;
    assert_eq!(ChangedNamespaces::parse(&kept).unwrap(), ChangedNamespaces::These(vec![2, 3]));
    assert_eq!(changed(&admin), [2, 3]);
    world.subsystem.add(mem(64), NamespaceOptions::default()).unwrap();
    assert_eq!(admin.wait(again).status, OK);
    assert_eq!(changed(&admin), [3]);
}

#[test]
fn events_nobody_asked_for_are_not_told() {
    let world = make().world();
    let admin = world.host("nqn.h").admin();
    let request = admin.send(AdminCommand::AsyncEventRequest.to_sqe(), &[]);
    world.subsystem.remove(3).unwrap();
    world.turns(5);
    assert!(admin.taken(request).is_none());
    let page = admin.log(lid::CHANGED_NAMESPACES, 0, 4096).data;
    assert_eq!(ChangedNamespaces::parse(&page).unwrap(), ChangedNamespaces::These(vec![3]), "the log knows");
}

#[test]
fn requests_for_events_are_limited_and_can_be_aborted() {
    let world = make().world();
    let admin = world.host("nqn.h").admin();
    let ask = || admin.send(AdminCommand::AsyncEventRequest.to_sqe(), &[]);
    let waiting: Vec<CommandId> = (0..4).map(|_| ask()).collect();
    assert_eq!(admin.wait(ask()).status, Status::ASYNC_EVENT_LIMIT_EXCEEDED);
    let abort = AdminCommand::Abort { sqid: 0, cid: cid(waiting[2]) };
    assert_eq!(admin.admin(abort).result, 0);
    assert!(admin.taken(waiting[2]).unwrap().status.is(Status::ABORT_REQUESTED));
    assert_eq!(admin.admin(abort).result, 1, "it is gone");
    let more = ask();
    admin.set_feature(fid::ASYNC_EVENTS, oaes::NAMESPACE_ATTRIBUTE);
    world.subsystem.remove(3).unwrap();
    assert_eq!(admin.wait(waiting[0]).status, OK, "the oldest is answered");
    assert!(admin.taken(more).is_none());
    admin.close();
    world.turns(2);
    assert!(admin.taken(more).is_none() && world.is_idle());
}

#[test]
fn the_names_of_a_subsystem_are_checked() {
    let world = make().world();
    let mut host = world.host("nqn.h");
    host.subsystem = Nqn::new("nqn.2024-01.test:one").unwrap();
    host.admin();
    assert_eq!(world.target.subsystem(&host.subsystem).unwrap().nqn(), world.subsystem.nqn());
    assert!(world.target.subsystem(&Nqn::new("nqn.x").unwrap()).is_none());
    for settings in [
        Settings { io_queues: 0, ..Settings::default() },
        Settings { transfer_bytes: 5000, ..Settings::default() },
        Settings { in_capsule_bytes: 100, ..Settings::default() },
        Settings { queue_entries: crate::nvme::Count16::from_wire(30), ..Settings::default() },
    ] {
        assert_eq!(Target::new(settings).unwrap_err().kind(), crate::block::Kind::InvalidInput);
    }
}

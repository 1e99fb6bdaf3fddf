//! Connect, properties, and how associations end. Numbers in comments are the edge cases of `docs/conformance.md`.

use super::testing::*;
use super::*;
use crate::block::{Kind, Op};
use crate::nvme::admin::{AdminCommand, GetFeatures, Identify};
use crate::nvme::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, FabricsCommand, Width};
use crate::nvme::feature::fid;
use crate::nvme::identify::cns;
use crate::nvme::property::{Cap, Cc, Csts, Shutdown, ShutdownStatus, Version, offset};
use crate::nvme::{Count16, Nqn, Sgl, Sqe, Status};
use crate::sim::{ErrorDevice, Fault, FaultPlan, Ops};
use std::sync::Arc;
use std::time::Duration;

const OK: Status = Status::SUCCESS;

/// Status and dword 0 of a Connect on a fresh connection.
fn try_connect(host: &Host<'_>, connect: Connect, data: &ConnectData) -> (Status, u64) {
    let queue = host.open();
    let told = queue.tell(connect_sqe(connect), &data.to_bytes());
    let is_queue = host.world.workers[host.worker].borrow().queue(queue.id).id().is_some();
    assert_eq!(is_queue, told.status.is_success());
    (told.status, told.result)
}

fn in_command(offset: u64) -> (Status, u64) {
    (Status::CONNECT_INVALID_PARAMETERS, offset)
}

fn in_data(offset: u64) -> (Status, u64) {
    (Status::CONNECT_INVALID_PARAMETERS, offset | 1 << 16)
}

//= promise 3
#[test]
fn connects_that_are_refused_name_what_is_wrong() {
    // 46
    let mut make = Make::new([]);
    let hosts = Hosts::These(vec!["nqn.h".to_owned()]);
    make.devices.push((mem(64), NamespaceOptions { hosts, ..Default::default() }));
    let world = make.world();
    let host = world.host("nqn.h");
    let admin = host.admin();
    let cntlid = admin.cntlid.get();
    let dynamic = host.data(CNTLID_DYNAMIC);
    let mine = host.data(cntlid);

    let entries = |entries| Connect { entries, ..connect(0) };
    assert_eq!(try_connect(&host, entries(Count16::from_wire(128)), &dynamic), in_command(44), "above MQES");
    assert_eq!(try_connect(&host, entries(Count16::from_wire(127)), &dynamic).0, OK);
    assert_eq!(try_connect(&host, entries(Count16::from_wire(1)), &dynamic).0, OK);

    let other = |change: &dyn Fn(&mut ConnectData)| {
        let mut data = dynamic.clone();
        change(&mut data);
        data
    };
    let unknown = other(&|d| d.subsystem = Nqn::new("nqn.2024-01.test:two").unwrap());
    assert_eq!(try_connect(&host, connect(0), &unknown), in_data(256));
    assert_eq!(try_connect(&host, connect(0), &other(&|d| d.cntlid = cntlid)), in_data(16), "by number");
    assert_eq!(try_connect(&host, connect(0), &other(&|d| d.cntlid = 0xfffe)), in_data(16));
    let stranger = other(&|d| d.host = Nqn::new("nqn.i").unwrap());
    assert_eq!(try_connect(&host, connect(0), &stranger), (Status::CONNECT_INVALID_HOST, 0));

    // I/O queues of an association that is not the host's, or not there.
    let of = |change: &dyn Fn(&mut ConnectData)| {
        let mut data = mine.clone();
        change(&mut data);
        data
    };
    assert_eq!(try_connect(&host, connect(1), &of(&|d| d.cntlid = 0x7777)), in_data(16));
    assert_eq!(try_connect(&host, connect(1), &of(&|d| d.cntlid = CNTLID_DYNAMIC)), in_data(16));
    assert_eq!(try_connect(&host, connect(1), &of(&|d| d.host_id = [9; 16])), in_data(0));
    assert_eq!(try_connect(&host, connect(9), &mine), in_command(42), "more than the target has");
    assert_eq!(admin.set_feature(fid::NUMBER_OF_QUEUES, 0x0001_0001).result, 0x0001_0001);
    assert_eq!(try_connect(&host, connect(3), &mine), in_command(42), "more than were granted");
    let above = Connect { entries: Count16::from_wire(128), ..connect(1) };
    assert_eq!(try_connect(&host, above, &mine), in_command(44));
    let io = host.io(&admin, 1);
    assert_eq!(try_connect(&host, connect(1), &mine), (Status::COMMAND_SEQUENCE_ERROR, 0), "in use");
    io.close();
    assert_eq!(try_connect(&host, connect(1), &mine).0, OK, "free again");

    // What the parser refuses.
    let queue = host.open();
    let bytes = dynamic.to_bytes();
    let mut sqe = connect_sqe(connect(0));
    sqe.0[40] = 1;
    let told = queue.tell(sqe, &bytes);
    assert_eq!((told.status, told.result), (Status::CONNECT_INCOMPATIBLE_FORMAT, 0));
    let mut sqe = connect_sqe(connect(0));
    sqe.0[44..46].fill(0);
    let told = queue.tell(sqe, &bytes);
    assert_eq!((told.status, told.result), in_command(44));
    for len in [0, 512, 1023] {
        assert_eq!(queue.tell(connect_sqe(connect(0)), &bytes[..len]).status, Status::SGL_LENGTH_INVALID);
    }
    let mut endless = bytes;
    endless[512..768].fill(b'x');
    let told = queue.tell(connect_sqe(connect(0)), &endless);
    assert_eq!((told.status, told.result), in_data(512), "a name without end");
    let mut nameless = bytes;
    nameless[256..512].fill(0);
    let told = queue.tell(connect_sqe(connect(0)), &nameless);
    assert_eq!((told.status, told.result), in_data(256), "a subsystem without a name");
    // After all that the connection can still become a queue; then not again.
    assert_eq!(queue.tell(connect_sqe(connect(0)), &bytes).status, OK);
    assert_eq!(queue.tell(connect_sqe(connect(0)), &bytes).status, Status::COMMAND_SEQUENCE_ERROR);
}

#[test]
fn a_connection_that_waits_to_be_a_queue_becomes_no_second_one() {
    let gate = Gate::writes(mem(64));
    let world = World::new([gate.clone() as Dev]);
    let host = world.host("nqn.h");
    let (admin, io) = host.both();
    io.send_data(write_sqe(1, 0, 512), &pattern(1, 1));
    world.until("it is in the backend", || gate.held() == 1);
    admin.close();
    io.close();
    let again = host.open();
    let data = host.data(CNTLID_DYNAMIC).to_bytes();
    let [first, second] = [0, 0].map(|qid| again.send_data(connect_sqe(connect(qid)), &data));
    assert_eq!(again.wait(second).status, Status::COMMAND_SEQUENCE_ERROR);
    assert!(again.taken(first).is_none(), "it waits for the write");
    gate.permit(1);
    assert_eq!(again.wait(first).status, OK);
    assert_eq!(world.subsystem.controllers(), 1);
    again.close();
    assert_eq!(world.subsystem.controllers(), 0, "none is left behind");
}

#[test]
fn an_io_queue_is_of_before_a_reset_or_of_behind_it() {
    let world = World::new([mem(64) as Dev]);
    let host = world.host("nqn.h");
    let admin = host.connect(0);
    let controller = world.workers[0].borrow().queue(admin.id).controller().unwrap().clone();
    // A reset on another thread may come between any two looks of the thread that connects: what counts is seen in one.
    let wakeup = Arc::new(super::wakeup::Wakeup::new(crate::reactor::Waker::new(|| ())));
    let join = || controller.connect(1, &wakeup);
    assert_eq!(join(), Err(Status::COMMAND_SEQUENCE_ERROR.into()));
    admin.enable();
    assert_eq!(join(), Ok(controller.epoch()));
    controller.disconnect(1);
    controller.drained(1);
    admin.reset();
    assert_eq!(join(), Err(Status::COMMAND_SEQUENCE_ERROR.into()));
}

#[test]
fn a_host_without_a_name_is_let_in_where_any_host_is() {
    for (hosts, want) in
        [(Hosts::Any, OK), (Hosts::These(vec!["nqn.h".to_owned()]), Status::CONNECT_INVALID_HOST)]
    {
        let mut make = Make::new([]);
        make.devices.push((mem(64), NamespaceOptions { hosts, ..Default::default() }));
        let world = make.world();
        let host = world.host("nqn.h");
        let mut bytes = host.data(CNTLID_DYNAMIC).to_bytes();
        bytes[512..768].fill(0);
        assert_eq!(host.open().tell(connect_sqe(connect(0)), &bytes).status, want);
    }
}

//= promise 3
#[test]
fn another_hosts_association_cannot_be_joined() {
    // 46
    let world = World::new([mem(64) as Dev]);
    let admin = world.host("nqn.h").admin();
    let thief = world.host("nqn.i");
    let mut data = thief.data(admin.cntlid.get());
    assert_eq!(try_connect(&thief, connect(1), &data), in_data(512));
    data.host = Nqn::new("nqn.h").unwrap();
    assert_eq!(try_connect(&thief, connect(1), &data), in_data(0), "the identifier tells them apart");
}

#[test]
fn nothing_is_taken_before_connect() {
    // 46
    let world = World::new([mem(64) as Dev]);
    let queue = world.host("nqn.h").open();
    let refused = Status::COMMAND_SEQUENCE_ERROR;
    assert_eq!(queue.read(1, 0, 1).status, refused);
    assert_eq!(queue.write(1, 0, &pattern(1, 1)).status, refused);
    assert_eq!(queue.identify(cns::CONTROLLER, 0).status, refused);
    assert_eq!(queue.get_property(offset::CAP, Width::Eight).status, refused);
    assert_eq!(queue.set_cc(Cc::for_host(0).with_enabled(true)).status, refused);
    assert_eq!(queue.admin(AdminCommand::KeepAlive).status, refused);
    let state = world.workers[0].borrow();
    let pair = state.queue(queue.id);
    assert_eq!((pair.id(), pair.entries(), pair.flow_control()), (None, 0, false));
}

#[test]
fn a_connected_queue_is_what_was_asked_for() {
    let world = World::new([mem(64) as Dev]);
    let host = world.host("nqn.h");
    let admin = host.admin();
    let io = host.open();
    let asked = Connect { entries: Count16::from_wire(63), no_flow_control: false, ..connect(5) };
    assert_eq!(io.tell(connect_sqe(asked), &host.data(admin.cntlid.get()).to_bytes()).status, OK);
    let state = world.workers[0].borrow();
    let pair = state.queue(io.id);
    assert_eq!((pair.id(), pair.entries(), pair.flow_control()), (Some(5), 64, true));
    assert!(!state.queue(admin.id).flow_control());
    let controller = pair.controller().unwrap();
    assert_eq!((controller.id(), controller.host_nqn().as_str()), (admin.cntlid.get(), "nqn.h"));
    assert!(Arc::ptr_eq(controller, state.queue(admin.id).controller().unwrap()));
}

#[test]
fn nothing_but_properties_before_the_controller_is_enabled() {
    let world = World::new([mem(64) as Dev]);
    let host = world.host("nqn.h");
    let admin = host.connect(0);
    let refused = Status::COMMAND_SEQUENCE_ERROR;
    assert_eq!(admin.identify(cns::CONTROLLER, 0).status, refused);
    assert_eq!(admin.admin(AdminCommand::KeepAlive).status, refused);
    assert_eq!(try_connect(&host, connect(1), &host.data(admin.cntlid.get())), (refused, 0));
    admin.enable();
    assert_eq!(admin.identify(cns::CONTROLLER, 0).status, OK);
    host.io(&admin, 1);
}

#[test]
fn properties_tell_the_state_and_only_the_configuration_can_be_set() {
    let world = World::new([mem(64) as Dev]);
    let host = world.host("nqn.h");
    let admin = host.connect(0);
    let cap = Cap(admin.get_property(offset::CAP, Width::Eight).result);
    assert_eq!((cap.entries_max().get(), cap.page_bytes_min(), cap.has_crto()), (128, 4096, false));
    assert_eq!(cap.command_sets(), Cap::CSS_NVM | Cap::CSS_CSI);
    assert!(cap.ready_ms() >= 1000);
    assert_eq!(admin.get_property(offset::VS, Width::Four).result, u64::from(Version::V2_0.0));
    let csts = || Csts(admin.get_property(offset::CSTS, Width::Four).result as u32);
    assert!(!csts().ready());
    let cc = Cc::for_host(Cc::CSS_NVM).with_enabled(true);
    assert_eq!(admin.set_cc(cc).status, OK);
    assert_eq!(admin.get_property(offset::CC, Width::Four).result, u64::from(cc.0));
    assert!(csts().ready());
    for (offset, width) in [
        (offset::CAP, Width::Four),
        (offset::VS, Width::Eight),
        (offset::CC, Width::Eight),
        (offset::CSTS, Width::Eight),
        (offset::NSSR, Width::Four),
        (offset::CRTO, Width::Four),
        (0x04, Width::Four),
        (u32::MAX, Width::Four),
    ] {
        assert_eq!(admin.get_property(offset, width).status, Status::INVALID_FIELD, "{offset:x}h");
        let set = FabricsCommand::PropertySet { width, offset, value: 0 }.to_sqe();
        assert_eq!(admin.go(set).status, Status::INVALID_FIELD, "{offset:x}h");
    }
    let set = FabricsCommand::PropertySet { width: Width::Four, offset: offset::CSTS, value: 0 }.to_sqe();
    assert_eq!(admin.go(set).status, Status::INVALID_FIELD);
    let io = host.io(&admin, 1);
    assert_eq!(io.get_property(offset::CSTS, Width::Four).status, Status::INVALID_OPCODE);
    assert_eq!(io.set_cc(Cc::for_host(0)).status, Status::INVALID_OPCODE);
    assert!(csts().ready(), "an I/O queue cannot reset the controller");
}

#[test]
fn fabrics_commands_that_are_not_claimed() {
    let world = World::new([mem(64) as Dev]);
    let (admin, io) = world.host("nqn.h").both();
    for queue in [&admin, &io] {
        for kind in [0x05, 0x06, 0x08, 0x02, 0xc1] {
            let told = queue.go(Sqe::new(crate::nvme::command::FABRICS, kind));
            assert_eq!(told.status, Status::INVALID_OPCODE, "{kind:02x}h");
        }
    }
}

#[test]
fn a_configuration_that_cannot_be_is_fatal_until_it_is_taken_back() {
    let world = World::new([mem(64) as Dev]);
    for bad in [1 << 7, 1 << 11, 1 << 4, 1 << 16, 1 << 20] {
        let admin = world.host("nqn.h").connect(0);
        let csts = || Csts(admin.get_property(offset::CSTS, Width::Four).result as u32);
        let cc = Cc::for_host(Cc::CSS_NVM);
        assert_eq!(admin.set_cc(Cc(cc.0 ^ bad).with_enabled(true)).status, OK);
        assert!(csts().fatal() && !csts().ready(), "{bad:x}h");
        assert_eq!(admin.identify(cns::CONTROLLER, 0).status, Status::COMMAND_SEQUENCE_ERROR);
        admin.set_cc(cc);
        assert!(!csts().fatal());
        admin.set_cc(cc.with_enabled(true));
        assert!(csts().ready());
    }
}

#[test]
fn a_reset_ends_io_queues_copies_and_events() {
    let gate = Gate::writes(mem(64));
    let world = World::new([gate.clone() as Dev, mem(64)]);
    let host = world.host("nqn.h");
    let (admin, io) = host.both();
    admin.enable_formats(0b1100);
    admin.set_feature(fid::ASYNC_EVENTS, 1 << 8);
    let event = admin.send(AdminCommand::AsyncEventRequest.to_sqe(), &[]);
    io.write(2, 0, &pattern(1, 64));
    let ranges: Vec<(u32, u64, u32)> = (0..30).map(|i| (2, i * 2, 1)).collect();
    let copy = io.send_copy(&Copy::from_namespaces(1, 0, &ranges));
    world.until("it runs", || gate.held() > 0);
    admin.reset();
    assert!(admin.wait(event).status.is(Status::ABORT_REQUESTED));
    assert_eq!(io.read(2, 0, 1).status, Status::COMMAND_SEQUENCE_ERROR);
    world.turns(2);
    assert_eq!(*world.lost.borrow(), [(0, io.id)], "to be closed, and the admin queue stays");
    gate.permit(100);
    assert!(io.wait(copy).status.is(Status::ABORT_REQUESTED));
    io.close();
    admin.enable();
    assert_eq!(admin.admin(AdminCommand::GetFeatures(GetFeatures::new(fid::ASYNC_EVENTS))).result, 0);
    let io = host.io(&admin, 1);
    assert_eq!(io.read(2, 0, 1).status, OK);
    assert_eq!(world.lost.borrow().len(), 1);
}

#[test]
fn a_queue_of_before_a_reset_stays_dead_when_the_controller_is_enabled_again() {
    let world = World::new([mem(64) as Dev]);
    let (admin, io) = world.host("nqn.h").both();
    admin.reset();
    admin.enable();
    assert_eq!(io.read(1, 0, 1).status, Status::COMMAND_SEQUENCE_ERROR);
}

//= promise 6
#[test]
fn a_normal_shutdown_is_complete_when_everything_is_durable() {
    let gate = Gate::new(mem(64), |op| matches!(op, Op::Flush));
    let world = World::new([gate.clone() as Dev, mem(64)]);
    let (admin, _io) = world.host("nqn.h").both();
    let other = world.host("nqn.h");
    let csts = |queue: &Queue<'_>| Csts(queue.get_property(offset::CSTS, Width::Four).result as u32);
    let cc = Cc::for_host(Cc::CSS_CSI).with_enabled(true);
    let down = cc.with_shutdown(Some(Shutdown::Normal));
    let set = FabricsCommand::PropertySet { width: Width::Four, offset: offset::CC, value: down.0.into() };
    let shutting = admin.send(set.to_sqe(), &[]);
    world.until("the flush", || gate.held() == 1);
    assert_eq!(csts(&admin).shutdown(), Some(ShutdownStatus::Occurring));
    assert!(admin.taken(shutting).is_none());
    gate.permit(1);
    assert_eq!(admin.wait(shutting).status, OK);
    assert_eq!(csts(&admin).shutdown(), Some(ShutdownStatus::Complete));
    assert_eq!(admin.set_cc(down).status, OK, "asked again: nothing more to do");
    assert_eq!(gate.held(), 0);
    // An abrupt one does not wait.
    let (admin, _io) = other.both();
    assert_eq!(admin.set_cc(cc.with_shutdown(Some(Shutdown::Abrupt))).status, OK);
    assert_eq!(csts(&admin).shutdown(), Some(ShutdownStatus::Complete));
}

#[test]
fn a_shutdown_completes_even_when_a_device_cannot_flush() {
    let plan = FaultPlan::none();
    let world = World::new([Arc::new(ErrorDevice::new(mem(64), plan.clone())) as Dev]);
    let (admin, _io) = world.host("nqn.h").both();
    plan.arm(Fault { ops: Ops::FLUSH, nth: 1, forever: true, kind: Kind::Io, good_bytes: 0 });
    let cc = Cc::for_host(Cc::CSS_CSI).with_enabled(true).with_shutdown(Some(Shutdown::Normal));
    assert_eq!(admin.set_cc(cc).status, OK);
    assert_eq!(plan.fired(), 1);
    let csts = Csts(admin.get_property(offset::CSTS, Width::Four).result as u32);
    assert_eq!(csts.shutdown(), Some(ShutdownStatus::Complete));
}

#[test]
fn a_silent_host_loses_its_association_on_every_thread() {
    // 35
    let mut make = Make::new([mem(64) as Dev]);
    make.workers = 2;
    let world = make.world();
    let host = world.host("nqn.h");
    let admin = host.connect(1500);
    admin.enable();
    let (io, far) = (host.io(&admin, 1), host.clone().on_worker(1).io(&admin, 2));
    let quiet = world.host("nqn.i").both();
    for _ in 0..5 {
        world.pass(Duration::from_millis(1900));
        assert_eq!(admin.admin(AdminCommand::KeepAlive).status, OK);
    }
    assert!(world.lost.borrow().is_empty(), "1.5 s are kept as 2");
    world.pass(Duration::from_millis(1900));
    assert_eq!(io.read(1, 0, 1).status, OK);
    world.pass(Duration::from_millis(200));
    let mut lost = world.lost.borrow().clone();
    lost.sort_by_key(|(worker, id)| (*worker, id.index()));
    assert_eq!(lost, [(0, admin.id), (0, io.id), (1, far.id)], "I/O is no keep-alive");
    assert_eq!(world.subsystem.controllers(), 1, "the other host's");
    assert_eq!(quiet.1.read(1, 0, 1).status, OK, "which asked for no time-out");
    for queue in [admin, io, far] {
        queue.close();
    }
    // The time-out can be changed and taken back.
    let admin = host.connect(1000);
    admin.enable();
    admin.set_feature(fid::KEEP_ALIVE, 5000);
    world.pass(Duration::from_millis(4000));
    // It belongs to the association: a reset changes nothing about it.
    admin.reset();
    admin.enable();
    let told = admin.admin(AdminCommand::GetFeatures(GetFeatures::new(fid::KEEP_ALIVE)));
    assert_eq!(told.result, 5000);
    admin.set_feature(fid::KEEP_ALIVE, 0);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.lost.borrow().len(), 3);
}

#[test]
fn tick_says_when_it_wants_to_be_called() {
    let world = World::new([mem(64) as Dev]);
    let tick = || world.workers[0].borrow_mut().tick(world.now(), &mut Vec::new());
    assert_eq!(tick(), None);
    let admin = world.host("nqn.h").connect(3000);
    let due = tick().expect("a time-out is running");
    assert!(due <= world.now() + Duration::from_secs(3) && due > world.now() + Duration::from_secs(2));
    admin.close();
    world.pass(Duration::from_secs(4));
    assert_eq!(tick(), None, "nobody is waited for any more");
}

#[test]
fn controllers_end_with_their_admin_queue_and_numbers_go_round() {
    let world = World::new([mem(64) as Dev]);
    let host = world.host("nqn.h");
    let mut last = 0;
    for _ in 0..10 {
        let admin = host.admin();
        assert!(admin.cntlid.get() > last, "a number is not used again at once");
        last = admin.cntlid.get();
        let id = crate::nvme::identify::IdentifyController::parse(&admin.identify(cns::CONTROLLER, 0).data);
        assert_eq!(id.unwrap().cntlid, last, "Identify and Connect agree");
        admin.close();
        assert_eq!(world.subsystem.controllers(), 0);
    }
}

#[test]
fn controllers_are_bounded() {
    let mut make = Make::new([mem(64) as Dev]);
    make.workers = 2;
    let world = make.world();
    let names: Vec<String> = (0..64).map(|n| format!("nqn.h{n}")).collect();
    let sqe = connect_sqe(connect(0)).with_sgl(Sgl::transport(1024));
    let (mut answers, mut opened) = (Vec::new(), Vec::new());
    for n in 0..CONTROLLERS_MAX {
        let data = world.host(&names[n % 64]).data(CNTLID_DYNAMIC).to_bytes();
        let mut worker = world.workers[n % 2].borrow_mut();
        let connection = worker.open("127.0.0.1:1".parse().unwrap()).unwrap();
        opened.push(connection);
        worker.submit(CommandId { connection, slot: 0 }, &sqe, crate::block::Buf::copy_of(&data).unwrap());
        worker.poll(&mut answers);
    }
    assert!(answers.iter().all(|a| a.cqe.status == OK));
    assert_eq!(world.subsystem.controllers(), CONTROLLERS_MAX);
    let late = world.host("nqn.late");
    let (status, _) = try_connect(&late, connect(0), &late.data(CNTLID_DYNAMIC));
    assert_eq!(status, Status::CONNECT_CONTROLLER_BUSY.retryable());
    world.workers[0].borrow_mut().disconnect(opened[0]);
    assert_eq!(world.subsystem.controllers(), CONTROLLERS_MAX - 1);
    assert_eq!(try_connect(&late, connect(0), &late.data(CNTLID_DYNAMIC)).0, OK);
}

#[test]
fn a_host_with_its_share_of_the_connections_gets_no_more_and_others_do() {
    let world = World::new([mem(64) as Dev]);
    world.workers[0].borrow_mut().limit_connections(64);
    let connects = |host: &Host<'_>| try_connect(host, connect(0), &host.data(CNTLID_DYNAMIC)).0;
    let (many, other) = (world.host("nqn.many"), world.host("nqn.other"));
    let count = (0..64).take_while(|_| connects(&many) == OK).count();
    assert_eq!(count, 42, "three of four of 56; eight are for those that connect");
    assert_eq!(connects(&many), Status::CONNECT_CONTROLLER_BUSY.retryable());
    assert_eq!(connects(&other), OK);
    let mut discovery = world.host("nqn.nobody");
    discovery.subsystem = Nqn::discovery();
    assert_eq!(connects(&discovery), OK);
}

#[test]
fn a_discovery_controller_that_is_silent_ends_and_any_command_keeps_it() {
    let world = World::new([mem(64) as Dev]);
    let mut host = world.host("nqn.h");
    host.subsystem = Nqn::discovery();
    let [silent, talks] = [0, 0].map(|keep_alive_ms| host.connect(keep_alive_ms));
    let asked = host.connect(3_600_000);
    let queue = world.host("nqn.h").connect(0);
    for _ in 0..3 {
        world.pass(Duration::from_secs(50));
        talks.get_property(offset::CSTS, Width::Four);
    }
    let lost: Vec<_> = world.lost.borrow().iter().map(|&(_, id)| id).collect();
    assert_eq!(lost, [silent.id]);
    world.pass(Duration::from_secs(119));
    assert_eq!(world.lost.borrow().len(), 1);
    world.pass(Duration::from_secs(2));
    let lost: Vec<_> = world.lost.borrow().iter().map(|&(_, id)| id).collect();
    assert_eq!(lost, [silent.id, talks.id], "not one with a keep-alive, nor a queue");
    assert!(![asked.id, queue.id].iter().any(|id| lost.contains(id)));
}

#[test]
fn the_discovery_subsystem_has_its_own_kind_of_controller() {
    let mut world = World::new([mem(64) as Dev]);
    let far: std::net::SocketAddr = "203.0.113.9:4421".parse().unwrap();
    world.target.listen(&["0.0.0.0:4420".parse().unwrap(), far, "[2001:db8::1]:4420".parse().unwrap()]);
    let second =
        Subsystem::new(SubsystemOptions { nqn: Nqn::new("nqn.2024-01.test:hidden").unwrap(), serial: None });
    let hosts = Hosts::These(vec!["nqn.other".to_owned()]);
    second.add(mem(64), NamespaceOptions { hosts, ..Default::default() }).unwrap();
    world.target.serve(second.clone()).unwrap();
    assert_eq!(world.target.serve(second).unwrap_err().kind(), Kind::InUse);
    let discovery = |name: &str| {
        let mut host = world.host(name);
        host.subsystem = Nqn::discovery();
        host.admin()
    };
    let admin = discovery("nqn.h");
    let id =
        crate::nvme::identify::IdentifyController::parse(&admin.identify(cns::CONTROLLER, 0).data).unwrap();
    assert_eq!(id.controller_type, crate::nvme::identify::ControllerType::Discovery);
    assert!(id.subsystem.is_discovery());
    for cns in [cns::NAMESPACE, cns::ACTIVE_NAMESPACES, cns::COMMAND_SETS] {
        assert_eq!(admin.identify(cns, 1).status, Status::INVALID_FIELD);
    }
    let mut host = world.host("nqn.h");
    host.subsystem = Nqn::discovery();
    assert_eq!(
        try_connect(&host, connect(1), &host.data(admin.cntlid.get())),
        in_command(42),
        "no I/O queues"
    );

    use crate::nvme::discovery::{Entry, Header, SubsystemType};
    use crate::nvme::log::lid;
    let log = admin.log(lid::DISCOVERY, 0, 1024 * 5).data;
    let header = Header::parse(&log[..1024]).unwrap();
    assert_eq!(header.entries, 3, "of the subsystem this host may connect to");
    let entries: Vec<Entry> = (1..4).map(|i| Entry::parse(&log[i * 1024..][..1024]).unwrap()).collect();
    let shown: Vec<_> = entries.iter().map(|e| (e.address.as_str(), e.service.as_str(), e.family)).collect();
    // Connected through 192.0.2.7 of "any address".
    assert_eq!(shown, [("192.0.2.7", "4420", 1), ("203.0.113.9", "4421", 1), ("2001:db8::1", "4420", 2)]);
    assert!(entries.iter().all(|e| e.subsystem == *world.subsystem.nqn()));
    assert!(entries.iter().all(|e| e.subsystem_type == SubsystemType::Nvm && e.admin_entries_max == 128));
    assert!(log[4 * 1024..].iter().all(|&b| b == 0), "zeroes past the end");
    let other = discovery("nqn.other").log(lid::DISCOVERY, 0, 1024).data;
    assert_eq!(Header::parse(&other).unwrap().entries, 6);
    // In parts, as hosts read it.
    assert_eq!(admin.log(lid::DISCOVERY, 0, 20).data, log[..20]);
    assert_eq!(admin.log(lid::DISCOVERY, 1024, 4096).data, log[1024..5120]);
    assert_eq!(admin.log(lid::DISCOVERY, 4096, 4).data, [0; 4]);
    assert_eq!(admin.log(lid::DISCOVERY, 4100, 4).status, Status::INVALID_FIELD, "past the end");
    world.target.listen(&[far]);
    let after = Header::parse(&admin.log(lid::DISCOVERY, 0, 1024).data).unwrap();
    assert!(after.generation > header.generation && after.entries == 1);

    // Its admin commands are few.
    assert_eq!(admin.log(lid::SMART, 0, 512).status, Status::INVALID_LOG_PAGE);
    assert_eq!(admin.admin(AdminCommand::Abort { sqid: 0, cid: 0 }).status, Status::INVALID_OPCODE);
    assert_eq!(admin.set_feature(fid::NUMBER_OF_QUEUES, 0).status, Status::INVALID_FIELD);
    assert_eq!(admin.set_feature(fid::ASYNC_EVENTS, 0).status, OK);
    assert_eq!(admin.admin(AdminCommand::GetFeatures(GetFeatures::new(fid::KEEP_ALIVE))).status, OK);
    assert_eq!(admin.admin(AdminCommand::KeepAlive).status, OK);
    let waits = admin.send(AdminCommand::AsyncEventRequest.to_sqe(), &[]);
    world.turns(3);
    assert!(admin.taken(waits).is_none());
    world.subsystem = world.subsystem.clone();
}

#[test]
fn any_configuration_of_entries_enables_a_discovery_controller() {
    let world = World::new([mem(64) as Dev]);
    let mut host = world.host("nqn.h");
    host.subsystem = Nqn::discovery();
    let admin = host.connect(0);
    assert_eq!(admin.set_cc(Cc(1)).status, OK, "no I/O queues, so no entry sizes");
    let told = admin.ask(AdminCommand::Identify(Identify::new(cns::CONTROLLER, 0)).to_sqe(), 4096);
    assert_eq!(told.status, OK);
}

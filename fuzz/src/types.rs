//! NVMe types: commands with their data, identify structures, logs.

use blkcopy::nvme::admin::{AdminCommand, GetFeatures, GetLogPage, Identify, SetFeatures};
use blkcopy::nvme::copy::{CopyCommand, Format, SourceRange, parse_ranges, write_ranges};
use blkcopy::nvme::discovery::{Entry, Header, SubsystemType};
use blkcopy::nvme::fabrics::{Connect, ConnectData, FabricsCommand, Width};
use blkcopy::nvme::feature::{
    Arbitration, AsyncEvent, ErrorRecovery, HostBehavior, NumberOfQueues, PowerManagement,
    TemperatureThreshold,
};
use blkcopy::nvme::identify::{
    CopyLimits, IdentifyController, IdentifyNamespace, IndependentNamespace, NamespaceIds, NvmController,
    NvmNamespace, command_sets, controller_list, namespace_list, parse_command_sets, parse_controller_list,
    parse_namespace_list,
};
use blkcopy::nvme::io::{DsmRange, Extent, IoCommand, parse_dsm_ranges};
use blkcopy::nvme::log::{
    ChangedNamespaces, CommandEffects, ErrorEntry, FirmwareSlots, Smart, Table, effect, read_page,
};
use blkcopy::nvme::{Blocks, Count8, Count16, Cqe, Doing, Nqn, Sgl, Sqe, Status};
use std::fmt::Debug;
use std::num::{NonZeroU16, NonZeroU32};

/// NR, DESFMT, then a list, cut or filled up with zeroes to the length the command gives when the third byte is odd.
pub fn range_list(input: &[u8]) {
    let [nr, format, exact, list @ ..] = input else { return };
    let Some(format) = Format::from_number(format % 5) else { return };
    let command = CopyCommand::new(1, 0, Count8::from_wire(*nr), format);
    let mut list = list.to_vec();
    if exact % 2 == 1 {
        list.resize(command.list_len(), 0);
    }
    if let Ok(ranges) = parse_ranges(&command, &list) {
        assert_eq!(list.len(), command.list_len());
        assert_eq!(ranges.len(), command.ranges.get() as usize);
        let sum: u64 = ranges.clone().map(|r| u64::from(r.blocks.get())).sum();
        assert_eq!(u64::from(ranges.total_blocks()), sum);
        ranges.clone().for_each(|r| assert!(r.end().is_none_or(|end| end > r.slba)));
        let ranges: Vec<SourceRange> = ranges.collect();
        let mut again = vec![0xee; list.len()];
        assert_eq!(write_ranges(format, &ranges, &mut again), list.len());
        assert!(parse_ranges(&command, &again).is_ok_and(|read| read.eq(ranges)));
    }
    if let Ok(ranges) = parse_dsm_ranges(command.ranges, &list) {
        assert_eq!(ranges.len(), command.ranges.get() as usize);
        let bytes: Vec<u8> = ranges.clone().flat_map(|r| r.to_bytes()).collect();
        assert!(parse_dsm_ranges(command.ranges, &bytes).is_ok_and(|read| read.eq(ranges)));
    }
}

/// An entry of 64 bytes, then the data of its command.
pub fn capsule(input: &[u8]) {
    let Some((entry, data)) = input.split_first_chunk::<64>() else { return };
    let sqe = Sqe(*entry);
    let len = sqe.sgl().len;
    let _ = (sqe.transfer(), format!("{sqe:?}"));
    if let Ok(command) = IoCommand::parse(&sqe) {
        assert_eq!(IoCommand::parse(&command.to_sqe()), Ok(command));
        assert_eq!((command.nsid(), command.transfer()), (sqe.nsid(), sqe.transfer()));
        for block_bytes in [512, 4096, 1 << 31] {
            let exact = command.check_data_len(block_bytes, len).is_ok();
            assert!(
                !exact
                    || command.data_len(block_bytes) <= u64::from(len)
                    || command.data_len(block_bytes) == 0
            );
        }
        match command {
            IoCommand::Copy(copy) => {
                if let Ok(ranges) = parse_ranges(&copy, data) {
                    assert!(ranges.total_blocks() >= copy.ranges.get());
                }
            }
            IoCommand::DatasetManagement { ranges, .. } => {
                if let Ok(list) = parse_dsm_ranges(ranges, data) {
                    list.for_each(|r| assert!(r.end().is_none_or(|end| end >= r.slba)));
                }
            }
            IoCommand::Read(e) | IoCommand::Write(e) => assert!(e.end().is_none_or(|end| end > e.slba)),
            _ => {}
        }
    }
    if let Ok(command) = AdminCommand::parse(&sqe) {
        assert_eq!(AdminCommand::parse(&command.to_sqe()), Ok(command));
        match command {
            AdminCommand::GetLogPage(page) => {
                let mut out = [0xee; 64];
                if read_page(data, page.offset, &mut out).is_ok() {
                    assert!(page.offset <= data.len() as u64);
                }
            }
            AdminCommand::SetFeatures(_) => {
                if let Ok(behavior) = HostBehavior::parse(data) {
                    assert_eq!(HostBehavior::parse(&behavior.to_bytes()), Ok(behavior));
                }
            }
            _ => {}
        }
    }
    if let Ok(command) = FabricsCommand::parse(&sqe) {
        assert_eq!(FabricsCommand::parse(&command.to_sqe()), Ok(command));
    }
    let mut connect = data.to_vec();
    connect.resize(ConnectData::LEN, 0);
    if let Ok(connect) = ConnectData::parse(&connect) {
        assert_eq!(ConnectData::parse(&connect.to_bytes()), Ok(connect));
    }
}

/// Reads the input as it is and filled up with zeroes to the length of the structure; what is read has to survive the
/// wire.
fn survives<T: PartialEq + Debug, const N: usize>(
    input: &[u8],
    parse: impl Fn(&[u8]) -> blkcopy::block::Result<T>,
    write: impl Fn(&T) -> [u8; N],
) {
    assert!(parse(input).is_err() || input.len() == N);
    let mut page = input.to_vec();
    page.resize(N, 0);
    match parse(&page) {
        Ok(value) => assert_eq!(parse(&write(&value)).expect("what was written is read"), value),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A number for the structure, then its bytes.
pub fn identify(input: &[u8]) {
    let [which, page @ ..] = input else { return };
    match which % 9 {
        0 => survives(page, IdentifyController::parse, IdentifyController::to_bytes),
        1 => {
            survives(page, IdentifyNamespace::parse, IdentifyNamespace::to_bytes);
            if let Ok(namespace) = IdentifyNamespace::parse(page) {
                assert!(namespace.block_bytes() >= 512);
                assert!(namespace.size_bytes().is_none_or(|bytes| bytes >= namespace.size_blocks));
            }
        }
        2 => survives(page, NvmController::parse, NvmController::to_bytes),
        3 => survives(page, NvmNamespace::parse, NvmNamespace::to_bytes),
        4 => survives(page, IndependentNamespace::parse, IndependentNamespace::to_bytes),
        5 => survives(page, NamespaceIds::parse, NamespaceIds::to_bytes),
        6 => survives(page, |b| parse_namespace_list(b, 0), |ids| namespace_list(ids.iter().copied(), 0)),
        7 => survives(page, parse_controller_list, |ids| controller_list(ids.iter().copied(), 0)),
        _ => survives(page, parse_command_sets, |sets| command_sets(sets)),
    }
}

/// A number for the page, then its bytes.
pub fn log(input: &[u8]) {
    let [which, page @ ..] = input else { return };
    match which % 7 {
        0 => survives(page, ErrorEntry::parse, ErrorEntry::to_bytes),
        1 => survives(page, Smart::parse, Smart::to_bytes),
        2 => survives(page, FirmwareSlots::parse, FirmwareSlots::to_bytes),
        3 => survives(page, ChangedNamespaces::parse, |changed| match changed {
            ChangedNamespaces::These(ids) => ChangedNamespaces::page(ids),
            ChangedNamespaces::TooMany => ChangedNamespaces::page(&[1; 1025]),
        }),
        4 => survives(page, Table::parse, Table::to_bytes),
        5 => survives(page, CommandEffects::parse, CommandEffects::to_bytes),
        _ => features(page),
    }
}

fn features(page: &[u8]) {
    let Some((bytes, rest)) = page.split_first_chunk::<16>() else { return };
    let cqe = Cqe::from_bytes(bytes);
    assert_eq!(Cqe::from_bytes(&cqe.to_bytes()), cqe);
    let _ = (cqe.status.to_string(), AsyncEvent::from_dword(cqe.dword0()));
    let doing = [Doing::Read, Doing::Write, Doing::Copy, Doing::Admin];
    for doing in doing {
        let error = cqe.status.to_error(doing, None);
        assert!(!Status::of(&error, doing).is_success());
    }
    let dword = cqe.dword0();
    if let Ok(queues) = NumberOfQueues::from_dword(dword) {
        assert_eq!(queues.to_dword(), dword);
    }
    let threshold = TemperatureThreshold::from_dword(dword);
    assert_eq!(TemperatureThreshold::from_dword(threshold.to_dword()), threshold);
    let recovery = ErrorRecovery::from_dword(dword);
    assert_eq!(ErrorRecovery::from_dword(recovery.to_dword()), recovery);
    let arbitration = Arbitration::from_dword(dword);
    assert_eq!(Arbitration::from_dword(arbitration.to_dword()), arbitration);
    let power = PowerManagement::from_dword(dword);
    assert_eq!(PowerManagement::from_dword(power.to_dword()), power);
    let mut behavior = rest.to_vec();
    behavior.resize(HostBehavior::LEN, 0);
    let behavior = HostBehavior::parse(&behavior).expect("the length is right");
    assert_eq!(HostBehavior::parse(&behavior.to_bytes()), Ok(behavior));
}

/// A number for head or entry, then its bytes.
pub fn discovery(input: &[u8]) {
    match input {
        [which, page @ ..] if which % 2 == 1 => survives(page, Entry::parse, Entry::to_bytes),
        [_, page @ ..] => {
            if let Ok(header) = Header::parse(page) {
                assert_eq!(Header::parse(&header.to_bytes()).expect("written by us"), header);
            }
        }
        [] => {}
    }
}

/// First inputs: valid ones of every form.
pub fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let name = Nqn::new("nqn.2014-08.org.example:one").expect("a valid name");
    let with = |which: u8, page: &[u8]| [&[which], page].concat();
    let mut controller = IdentifyController::new(name.clone(), 1);
    controller.oncs = 0x30d;
    controller.ocfs = 0xf;
    let mut namespace = IdentifyNamespace::new(1 << 20, 12);
    namespace.nguid = Some([1; 16]);
    namespace.copy = Some(CopyLimits {
        range_blocks_max: NonZeroU16::MAX,
        blocks_max: NonZeroU32::MAX,
        ranges_max: Count8::MAX,
    });
    let ids = NamespaceIds { eui64: Some([1; 8]), nguid: Some([2; 16]), uuid: Some([3; 16]), csi: Some(0) };
    let identify = vec![
        with(0, &controller.to_bytes()),
        with(1, &namespace.to_bytes()),
        with(2, &NvmController::default().to_bytes()),
        with(3, &NvmNamespace::default().to_bytes()),
        with(4, &IndependentNamespace { ready: true, ..Default::default() }.to_bytes()),
        with(5, &ids.to_bytes()),
        with(6, &namespace_list(1..=1024, 0)),
        with(7, &controller_list(1..=20, 0)),
        with(8, &command_sets(&[1, 5])),
    ];
    let effects = Table::of(&[(0x19, effect::SUPPORTED | effect::CONTENT)]);
    let behavior = HostBehavior { copy_formats: 0xc, ..HostBehavior::default() };
    let end = Cqe { result: 0x0003_0003, status: Status::COPY_SIZE_LIMIT_EXCEEDED, ..Cqe::default() };
    let log = vec![
        with(0, &ErrorEntry { count: 1, opcode: 0x19, ..ErrorEntry::default() }.to_bytes()),
        with(1, &Smart { temperature_k: 300, ..Smart::default() }.to_bytes()),
        with(2, &FirmwareSlots { active: 1, ..FirmwareSlots::default() }.to_bytes()),
        with(3, &ChangedNamespaces::page(&[1, 2, 3])),
        with(3, &ChangedNamespaces::page(&[1; 1025])),
        with(4, &effects.to_bytes()),
        with(5, &CommandEffects { admin: effects, io: effects }.to_bytes()),
        with(6, &[&end.to_bytes()[..], &behavior.to_bytes()].concat()),
    ];
    let address = "192.0.2.7".parse().expect("an address");
    let entry = Entry::tcp(SubsystemType::Nvm, name.clone(), address, 4420);
    let discovery = vec![
        with(0, &Header { generation: 1, entries: 2 }.to_bytes()),
        with(0, &Header { generation: 1, entries: 2 }.to_bytes()[..20]),
        with(1, &entry.to_bytes()),
    ];
    let mut range_list = Vec::new();
    let mut capsule = Vec::new();
    for format in [Format::F0, Format::F1, Format::F2, Format::F3] {
        for count in [1u8, 3] {
            let range = |n: u8| SourceRange {
                snsid: format.names_namespace().then_some(1),
                slba: u64::from(n) * 64,
                blocks: Blocks::from_wire(63),
                fco: format.names_namespace(),
            };
            let ranges: Vec<SourceRange> = (0..count).map(range).collect();
            let mut list = vec![0; ranges.len() * format.entry_len()];
            write_ranges(format, &ranges, &mut list);
            range_list.push([&[count - 1, format.number(), 0], &list[..]].concat());
            let copy = CopyCommand::new(1, 4096, Count8::from_wire(count - 1), format);
            let len = u32::try_from(list.len()).expect("a short list");
            let sqe = IoCommand::Copy(copy).to_sqe().with_sgl(Sgl::in_capsule(len));
            capsule.push([&sqe.0[..], &list].concat());
        }
    }
    let extent = Extent::new(1, 8, Blocks::from_wire(7));
    let dsm = IoCommand::DatasetManagement { nsid: 1, ranges: Count8::ONE, deallocate: true };
    let io = [
        IoCommand::Flush { nsid: 1 },
        IoCommand::Read(extent),
        IoCommand::Write(extent),
        IoCommand::Compare(extent),
        IoCommand::WriteZeroes { extent, deallocate: true },
    ];
    let admin = [
        AdminCommand::GetLogPage(GetLogPage::new(0x05, 4096)),
        AdminCommand::Identify(Identify::new(0x01, 0)),
        AdminCommand::Abort { sqid: 1, cid: 2 },
        AdminCommand::GetFeatures(GetFeatures::new(0x07)),
        AdminCommand::AsyncEventRequest,
        AdminCommand::KeepAlive,
    ];
    let fabrics = [
        FabricsCommand::PropertyGet { width: Width::Eight, offset: 0 },
        FabricsCommand::PropertySet { width: Width::Four, offset: 0x14, value: 0x0046_0001 },
        FabricsCommand::Disconnect,
    ];
    capsule.extend(io.map(|c| c.to_sqe().0.to_vec()));
    capsule.extend(admin.map(|c| c.to_sqe().0.to_vec()));
    capsule.extend(fabrics.map(|c| c.to_sqe().0.to_vec()));
    let deallocated = DsmRange { slba: 8, blocks: 8 };
    capsule.push([&dsm.to_sqe().with_sgl(Sgl::in_capsule(16)).0[..], &deallocated.to_bytes()].concat());
    let set = AdminCommand::SetFeatures(SetFeatures::new(0x16, 0));
    capsule.push([&set.to_sqe().with_sgl(Sgl::in_capsule(512)).0[..], &behavior.to_bytes()].concat());
    let connect = FabricsCommand::Connect(Connect {
        qid: 0,
        entries: Count16::from_wire(31),
        no_flow_control: true,
        keep_alive_ms: NonZeroU32::new(5000),
    });
    let data = ConnectData { host_id: [1; 16], cntlid: 0xffff, subsystem: name, host: Nqn::discovery() };
    capsule.push([&connect.to_sqe().with_sgl(Sgl::in_capsule(1024)).0[..], &data.to_bytes()].concat());
    vec![
        ("range_list", range_list),
        ("capsule", capsule),
        ("identify", identify),
        ("log", log),
        ("discovery", discovery),
    ]
}

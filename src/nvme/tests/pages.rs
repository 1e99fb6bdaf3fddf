//! Identify pages, logs, features and the discovery log: their bytes, and what they mean.

use super::layouts;
use crate::block::Kind;
use crate::nvme::copy::Format;
use crate::nvme::discovery::{Entry, Header, SecureChannel, SubsystemType};
use crate::nvme::feature::{
    Arbitration, AsyncEvent, AsyncEvents, ErrorRecovery, HostBehavior, KeepAlive, NumberOfQueues,
    PowerManagement, TemperatureThreshold, VolatileWriteCache, WriteAtomicity,
};
use crate::nvme::identify::{
    self, ControllerType, CopyLimits, FlushAll, IdentifyController, IdentifyNamespace, IndependentNamespace,
    LbaFormat, NamespaceIds, NvmController, NvmNamespace, OptimalPerformance, cmic, command_sets,
    controller_list, ctratt, lpa, namespace_list, nsfeat, oaes, oncs, parse_command_sets,
    parse_controller_list, parse_namespace_list, sgls,
};
use crate::nvme::log::{
    ChangedNamespaces, CommandEffects, ErrorEntry, FirmwareSlots, Smart, Table, effect, read_page,
};
use crate::nvme::property::{Cap, Version};
use crate::nvme::{Ascii, Blocks, Count8, Count16, Nqn, Status};
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64};

fn blocks(count: u32) -> Blocks {
    Blocks::new(count).unwrap()
}

/// The kind and the words of an error.
fn why<T>(result: crate::block::Result<T>) -> (Kind, String) {
    let error = result.err().unwrap();
    (error.kind(), error.to_string())
}

fn controller() -> IdentifyController {
    IdentifyController {
        vid: 0x1b36,
        ssvid: 0x1af4,
        serial: Ascii::new("S1").unwrap(),
        model: Ascii::new("a model").unwrap(),
        firmware: Ascii::new("0.1").unwrap(),
        rab: 6,
        ieee: [0x00, 0x54, 0x52],
        cmic: cmic::MULTI_PORT | cmic::MULTI_CONTROLLER,
        mdts: NonZeroU8::new(8),
        version: Version::V2_0,
        shutdown_us: NonZeroU32::new(10_000_000),
        oaes: oaes::NAMESPACE_ATTRIBUTE,
        ctratt: ctratt::HOST_ID_128 | ctratt::TRAFFIC_KEEPS_ALIVE,
        controller_type: ControllerType::Io,
        retry_delays: [1, 2, 3],
        oacs: 0x0100,
        abort_limit: Count8::new(4).unwrap(),
        async_event_limit: Count8::new(4).unwrap(),
        frmw: 0x03,
        lpa: lpa::COMMAND_EFFECTS | lpa::EXTENDED,
        error_log_entries: Count8::new(128).unwrap(),
        kas: NonZeroU16::new(10),
        quiesce_ms: NonZeroU16::new(300),
        maxcmd: NonZeroU16::new(128),
        nn: 1024,
        oncs: oncs::COMPARE
            | oncs::DATASET_MANAGEMENT
            | oncs::WRITE_ZEROES
            | oncs::COPY
            | oncs::COPY_SINGLE_ATOMICITY,
        fuses: 1,
        fna: 4,
        write_cache: true,
        flush_all: FlushAll::Flushes,
        awun: blocks(65536),
        awupf: blocks(8),
        ocfs: 0xf,
        sgls: sgls::SUPPORTED | sgls::OFFSET,
        mnan: NonZeroU32::new(256),
        ioccsz: 644,
        iorcsz: 1,
        icdoff: 2,
        fcatt: 1,
        msdbd: NonZeroU8::new(1),
        ofcs: 1,
        ..IdentifyController::new(Nqn::new("nqn.2014-08.org.example:sub").unwrap(), 0x0201)
    }
}

#[test]
fn identify_controller_is_as_other_programs_read_it() {
    let bytes = layouts::CONTROLLER.bytes(&[
        ("vid", &[0x36, 0x1b]),
        ("ssvid", &[0xf4, 0x1a]),
        ("sn", b"S1                  "),
        ("mn", b"a model                                 "),
        ("fr", b"0.1     "),
        ("rab", &[6]),
        ("ieee", &[0x00, 0x54, 0x52]),
        ("cmic", &[3]),
        ("mdts", &[8]),
        ("cntlid", &[1, 2]),
        ("ver", &[0, 0, 2]),
        ("rtd3e", &10_000_000u32.to_le_bytes()),
        ("oaes", &[0, 1]),
        ("ctratt", &[0x41]),
        ("cntrltype", &[1]),
        ("crdt1", &[1]),
        ("crdt2", &[2]),
        ("crdt3", &[3]),
        ("oacs", &[0, 1]),
        ("acl", &[3]),
        ("aerl", &[3]),
        ("frmw", &[3]),
        ("lpa", &[6]),
        ("elpe", &[127]),
        ("kas", &[10]),
        ("cqt", &[0x2c, 1]),
        ("sqes", &[0x66]),
        ("cqes", &[0x44]),
        ("maxcmd", &[128]),
        ("nn", &[0, 4]),
        ("oncs", &[0x0d, 0x03]),
        ("fuses", &[1]),
        ("fna", &[4]),
        ("vwc", &[7]),
        ("awun", &[0xff, 0xff]),
        ("awupf", &[7]),
        ("ocfs", &[0xf]),
        ("sgls", &[1, 0, 0x10]),
        ("mnan", &[0, 1]),
        ("subnqn", b"nqn.2014-08.org.example:sub"),
        ("ioccsz", &644u32.to_le_bytes()),
        ("iorcsz", &[1]),
        ("icdoff", &[2]),
        ("fcatt", &[1]),
        ("msdbd", &[1]),
        ("ofcs", &[1]),
    ]);
    assert_eq!(controller().to_bytes()[..], bytes);
    assert_eq!(IdentifyController::parse(&bytes).unwrap(), controller());
}

#[test]
fn what_a_controller_can() {
    let c = controller();
    let cap = Cap::new(Count16::MAX, 0, Cap::CSS_NVM);
    assert_eq!(c.data_bytes_max(cap), Some(1 << 20));
    assert_eq!(c.data_bytes_max(Cap(cap.0 | 1 << 48)), Some(1 << 21), "in pages of 8 KiB");
    let with_mdts =
        |mdts| IdentifyController { mdts: NonZeroU8::new(mdts), ..controller() }.data_bytes_max(cap);
    assert_eq!([0, 51, 52, 64, 255].map(with_mdts), [None, Some(1 << 63), None, None, None]);
    assert_eq!(c.in_capsule_bytes_max(), 10240, "256 entries of 40 bytes");
    assert_eq!(IdentifyController { ioccsz: 3, ..controller() }.in_capsule_bytes_max(), 0);
    let copies = |oncs, ocfs| {
        let c = IdentifyController { oncs, ocfs, ..controller() };
        Format::ALL.map(|format| c.copies_in(format))
    };
    assert_eq!(copies(oncs::COPY, 0b0_0101), [true, false, true, false, false]);
    assert_eq!(copies(!oncs::COPY, 0xffff), [false; 5]);
    assert_eq!(Ascii::<8>::new("123456789"), None);
    assert_eq!(Ascii::<8>::new("\u{7f}"), None);
    assert_eq!(Ascii(*b"a b \x01\xff \0").to_string(), "a b ??");
}

#[test]
fn an_identify_controller_that_makes_no_sense_is_refused() {
    let with = |at: usize, byte: u8| {
        let mut bytes = controller().to_bytes();
        bytes[at] = byte;
        IdentifyController::parse(&bytes)
    };
    assert!(why(with(111, 4)).1.contains("type 4"));
    assert!(why(with(525, 2)).1.contains("01b"));
    assert_eq!(why(with(768, 0)), (Kind::Io, "Identify Controller: SUBNQN".to_owned()));
    assert_eq!(with(525, 0).unwrap().flush_all, FlushAll::NotReported);
}

fn namespace() -> IdentifyNamespace {
    IdentifyNamespace {
        capacity_blocks: 0x0900,
        used_blocks: 0x0800,
        nsfeat: nsfeat::THIN | nsfeat::OWN_ATOMICS | nsfeat::IDS_NOT_REUSED,
        mc: 1,
        dpc: 2,
        dps: 3,
        shared: true,
        rescap: 4,
        dlfeat: 9,
        nawun: Some(blocks(256)),
        nawupf: Some(blocks(8)),
        nabsn: Some(blocks(16)),
        nabo: 5,
        nabspf: Some(blocks(32)),
        noiob: NonZeroU16::new(2048),
        nvmcap: 1 << 80,
        optimal: Some(OptimalPerformance {
            write_granularity: blocks(1),
            write_alignment: blocks(2),
            deallocate_granularity: blocks(3),
            deallocate_alignment: blocks(4),
            write_size: blocks(65536),
        }),
        copy: Some(CopyLimits {
            range_blocks_max: NonZeroU16::MAX,
            blocks_max: NonZeroU32::new(0x0100_0000).unwrap(),
            ranges_max: Count8::MAX,
        }),
        anagrpid: 6,
        write_protected: true,
        endgid: 7,
        nguid: Some([0x11; 16]),
        eui64: Some([0x22; 8]),
        ..IdentifyNamespace::new(0x1000, 12)
    }
}

#[test]
fn identify_namespace_is_as_other_programs_read_it() {
    let bytes = layouts::NAMESPACE.bytes(&[
        ("nsze", &[0, 0x10]),
        ("ncap", &[0, 9]),
        ("nuse", &[0, 8]),
        ("nsfeat", &[0x1b]),
        ("mc", &[1]),
        ("dpc", &[2]),
        ("dps", &[3]),
        ("nmic", &[1]),
        ("rescap", &[4]),
        ("dlfeat", &[9]),
        ("nawun", &[255]),
        ("nawupf", &[7]),
        ("nabsn", &[15]),
        ("nabo", &[5]),
        ("nabspf", &[31]),
        ("noiob", &[0, 8]),
        ("nvmcap", &(1u128 << 80).to_le_bytes()),
        ("npwa", &[1]),
        ("npdg", &[2]),
        ("npda", &[3]),
        ("nows", &[0xff, 0xff]),
        ("mssrl", &[0xff, 0xff]),
        ("mcl", &[0, 0, 0, 1]),
        ("msrc", &[255]),
        ("anagrpid", &[6]),
        ("nsattr", &[1]),
        ("endgid", &[7]),
        ("nguid", &[0x11; 16]),
        ("eui64", &[0x22; 8]),
        ("lbaf", &[0, 0, 12]),
    ]);
    assert_eq!(namespace().to_bytes()[..], bytes);
    let read = IdentifyNamespace::parse(&bytes).unwrap();
    assert_eq!(read, namespace());
    assert_eq!((read.block_bytes(), read.size_bytes()), (4096, Some(0x100_0000)));
    assert_eq!(IdentifyNamespace::new(1 << 55, 9).size_bytes(), None);
}

#[test]
fn a_namespace_that_reports_no_copy_limit_takes_no_copy() {
    let limits = |mssrl: u8, mcl: u8, msrc: u8| {
        let mut bytes = IdentifyNamespace::new(8, 9).to_bytes();
        (bytes[74], bytes[76], bytes[80]) = (mssrl, mcl, msrc);
        IdentifyNamespace::parse(&bytes)
            .unwrap()
            .copy
            .map(|c| (c.range_blocks_max.get(), c.blocks_max.get(), c.ranges_max.get()))
    };
    assert_eq!([limits(0, 0, 0), limits(1, 0, 0), limits(0, 1, 255)], [None; 3]);
    assert_eq!(limits(128, 128, 127), Some((128, 128, 128)), "MSRC is 0's based, the others are not");
    assert_eq!(limits(1, 1, 0), Some((1, 1, 1)));
}

#[test]
fn the_lba_format_is_found_among_64() {
    let with = |count: usize, index: u8| {
        let formats = (0..count).map(|n| LbaFormat { data_shift: 9 + (n % 4) as u8, ..LbaFormat::default() });
        let namespace =
            IdentifyNamespace { formats: formats.collect(), format: index, ..IdentifyNamespace::new(8, 9) };
        IdentifyNamespace::parse(&namespace.to_bytes())
    };
    for (count, index) in [(1, 0), (16, 15), (17, 16), (64, 63), (64, 37)] {
        let read = with(count, index).unwrap();
        assert_eq!((read.formats.len(), read.format, read.block_bytes()), (count, index, 512 << (index % 4)));
    }
    assert!(why(with(4, 4)).1.contains("LBA format 4 of 4"));
    // FLBAS 6:5 are the upper bits of the index only when there are more than 16 formats.
    let mut bytes = with(16, 3).unwrap().to_bytes();
    bytes[26] |= 0x60;
    assert_eq!(IdentifyNamespace::parse(&bytes).unwrap().format, 3);
    bytes[25] = 64;
    assert!(why(IdentifyNamespace::parse(&bytes)).1.contains("65 LBA formats"));
}

#[test]
fn an_identify_namespace_that_makes_no_sense_is_refused() {
    assert!(why(IdentifyNamespace::parse(&[0; 4096])).1.contains("not active"));
    for (shift, good) in [(0, false), (8, false), (9, true), (31, true), (32, false), (255, false)] {
        let read = IdentifyNamespace::parse(&IdentifyNamespace::new(8, shift).to_bytes());
        assert_eq!(read.is_ok(), good, "2^{shift}");
    }
}

#[test]
fn pages_of_the_command_sets_are_as_other_programs_read_them() {
    let limits = NvmController {
        write_zeroes_shift_max: NonZeroU8::new(5),
        dsm_ranges_max: NonZeroU8::new(255),
        dsm_range_blocks_max: NonZeroU32::new(0x0102_0304),
        dsm_blocks_max: NonZeroU64::new(0x0506),
    };
    let values: [(&str, &[u8]); 4] =
        [("wzsl", &[5]), ("dmrl", &[255]), ("dmrsl", &[4, 3, 2, 1]), ("dmsl", &[6, 5])];
    let bytes = layouts::NVM_CONTROLLER.bytes(&values);
    assert_eq!(limits.to_bytes()[..], bytes);
    assert_eq!(NvmController::parse(&bytes).unwrap(), limits);

    let mut pi = NvmNamespace { lbstm: 1, pic: 2, ..NvmNamespace::default() };
    (pi.elbaf[0], pi.elbaf[63]) = (0x110, 0x80);
    let mut elbaf = [0; 256];
    (elbaf[0], elbaf[1], elbaf[252]) = (0x10, 1, 0x80);
    let bytes = layouts::NVM_NAMESPACE.bytes(&[("lbstm", &[1]), ("pic", &[2]), ("elbaf", &elbaf)]);
    assert_eq!(pi.to_bytes()[..], bytes);
    assert_eq!(NvmNamespace::parse(&bytes).unwrap(), pi);

    let independent = IndependentNamespace {
        nsfeat: nsfeat::NO_WRITE_CACHE,
        shared: true,
        rescap: 3,
        anagrpid: 4,
        write_protected: true,
        endgid: 5,
        ready: true,
    };
    let bytes = layouts::INDEPENDENT_NAMESPACE.bytes(&[
        ("nsfeat", &[0x20]),
        ("nmic", &[1]),
        ("rescap", &[3]),
        ("anagrpid", &[4]),
        ("nsattr", &[1]),
        ("endgid", &[5]),
        ("nstat", &[1]),
    ]);
    assert_eq!(independent.to_bytes()[..], bytes);
    assert_eq!(IndependentNamespace::parse(&bytes).unwrap(), independent);
}

#[test]
fn namespace_lists_ascend_and_end() {
    let list = namespace_list(1..=2000, 500);
    let read = parse_namespace_list(&list, 500).unwrap();
    assert_eq!(read, (501..=1524).collect::<Vec<_>>(), "1024 at a time");
    assert_eq!(parse_namespace_list(&namespace_list([], 0), 0).unwrap(), [0u32; 0]);
    assert_eq!(namespace_list([3, 5], 3)[..8], [5, 0, 0, 0, 0, 0, 0, 0]);
    let raw = |nsids: &[u32]| {
        let mut bytes = [0; 4096];
        nsids
            .iter()
            .enumerate()
            .for_each(|(n, id)| bytes[4 * n..4 * n + 4].copy_from_slice(&id.to_le_bytes()));
        bytes
    };
    assert!(
        why(parse_namespace_list(&list, 501)).1.contains("0x1f5"),
        "does not go on: a host would never end"
    );
    for wrong in [&[2, 1][..], &[2, 2], &[1, 0, 2], &[u32::MAX], &[0xffff_fffe]] {
        assert_eq!(why(parse_namespace_list(&raw(wrong), 0)).0, Kind::Io, "{wrong:?}");
    }
    assert_eq!(parse_namespace_list(&raw(&[1, 0xffff_fffd]), 0).unwrap(), [1, 0xffff_fffd]);

    let changed = |nsids: &[u32]| ChangedNamespaces::parse(&ChangedNamespaces::page(nsids)).unwrap();
    let many: Vec<u32> = (1..=1025).collect();
    assert_eq!(changed(&many[..1024]), ChangedNamespaces::These(many[..1024].to_vec()));
    assert_eq!(changed(&many), ChangedNamespaces::TooMany);
    assert_eq!(ChangedNamespaces::page(&many)[..8], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert!(ChangedNamespaces::parse(&raw(&[u32::MAX, 1])).is_err());
}

#[test]
fn controller_lists_ascend_and_are_counted() {
    let list = controller_list([1, 2, 0x1234], 2);
    assert_eq!(list[..8], [2, 0, 2, 0, 0x34, 0x12, 0, 0]);
    assert_eq!(parse_controller_list(&list).unwrap(), [2, 0x1234]);
    assert_eq!(parse_controller_list(&controller_list([], 0)).unwrap(), [0u16; 0]);
    let most: Vec<u16> = (1..=2048).collect();
    assert_eq!(parse_controller_list(&controller_list(most.iter().copied(), 0)).unwrap(), most[..2047]);
    let mut wrong = [0; 4096];
    wrong[..2].copy_from_slice(&2048u16.to_le_bytes());
    assert!(why(parse_controller_list(&wrong)).1.contains("2048 entries"));
    wrong[..6].copy_from_slice(&[2, 0, 7, 0, 7, 0]);
    assert!(why(parse_controller_list(&wrong)).1.contains("0x7"));
}

#[test]
fn namespace_descriptors_follow_each_other() {
    let ids = NamespaceIds { eui64: Some([1; 8]), nguid: Some([2; 16]), uuid: Some([3; 16]), csi: Some(0) };
    let mut bytes = vec![1, 8, 0, 0];
    bytes.extend([1; 8]);
    bytes.extend([2, 16, 0, 0]);
    bytes.extend([2; 16]);
    bytes.extend([3, 16, 0, 0]);
    bytes.extend([3; 16]);
    bytes.extend([4, 1, 0, 0, 0]);
    bytes.resize(4096, 0);
    assert_eq!(ids.to_bytes()[..], bytes);
    assert_eq!(NamespaceIds::parse(&bytes).unwrap(), ids);
    assert_eq!(NamespaceIds::parse(&[0; 4096]).unwrap(), NamespaceIds::default());

    let raw = |descriptors: &[(u8, u8)]| {
        let mut bytes: Vec<u8> = Vec::new();
        for &(kind, len) in descriptors {
            bytes.extend([kind, len, 0, 0]);
            bytes.extend(vec![9; len.into()]);
        }
        bytes.resize(4096, 0);
        NamespaceIds::parse(&bytes)
    };
    let csi = NamespaceIds { csi: Some(9), ..NamespaceIds::default() };
    assert_eq!(raw(&[(77, 200), (4, 1)]).unwrap(), csi, "unknown types are passed over");
    assert_eq!(raw(&[(1, 0), (4, 1)]).unwrap(), NamespaceIds::default(), "length 0 ends the list");
    assert!(why(raw(&[(3, 15)])).1.contains("type 3 with 15 bytes"));
    assert!(why(raw(&[(4, 1), (4, 1)])).1.contains("type 4 twice"));
    // 16 descriptors of 252 bytes of text leave 64 bytes: one of 60 fills the list, one of 61 passes its end.
    let long: Vec<(u8, u8)> = vec![(77, 248); 16];
    assert!(raw(&[&long[..], &[(77, 60)]].concat()).is_ok());
    let mut bytes = vec![0; 4096];
    let mut at = 0;
    for len in [248; 16].into_iter().chain([61]) {
        (bytes[at], bytes[at + 1]) = (77, len);
        at += 4 + usize::from(len);
    }
    assert!(why(NamespaceIds::parse(&bytes)).1.contains("pass the end"));
    assert_eq!(parse_command_sets(&command_sets(&[1, 5])).unwrap(), [1, 5]);
    assert_eq!(command_sets(&[1])[..9], [1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(parse_command_sets(&command_sets(&[3; 600])).unwrap().len(), 512);
}

#[test]
fn logs_are_as_other_programs_read_them() {
    let error = ErrorEntry {
        count: 0x0102,
        sqid: 3,
        cid: 0xffff,
        status: Status::LBA_OUT_OF_RANGE,
        location: 0x0728,
        lba: 9,
        nsid: 0xffff_ffff,
        transport: 3,
        csi: 1,
        opcode: 0x19,
        command_specific: 5,
        version: 1,
    };
    let bytes = layouts::ERROR_ENTRY.bytes(&[
        ("error_count", &[2, 1]),
        ("sqid", &[3]),
        ("cmdid", &[0xff, 0xff]),
        // 4080h, and the phase bit below it.
        ("status_field", &[0x00, 0x81]),
        ("parm_error_location", &[0x28, 7]),
        ("lba", &[9]),
        ("nsid", &[0xff; 4]),
        ("trtype", &[3]),
        ("csi", &[1]),
        ("opcode", &[0x19]),
        ("cs", &[5]),
        ("log_page_version", &[1]),
    ]);
    assert_eq!(error.to_bytes()[..], bytes);
    assert_eq!(ErrorEntry::parse(&bytes).unwrap(), error);

    let smart = Smart {
        critical_warning: 1,
        temperature_k: 0x0139,
        spare_percent: 100,
        spare_threshold_percent: 10,
        used_percent: 3,
        data_units_read: 1 << 100,
        data_units_written: 2,
        host_reads: 3,
        host_writes: 4,
        busy_minutes: 5,
        power_cycles: 6,
        power_on_hours: 7,
        unsafe_shutdowns: 8,
        media_errors: 9,
        error_log_entries: 10,
    };
    let bytes = layouts::SMART.bytes(&[
        ("critical_warning", &[1]),
        ("temperature", &[0x39, 1]),
        ("avail_spare", &[100]),
        ("spare_thresh", &[10]),
        ("percent_used", &[3]),
        ("data_units_read", &(1u128 << 100).to_le_bytes()),
        ("data_units_written", &[2]),
        ("host_reads", &[3]),
        ("host_writes", &[4]),
        ("ctrl_busy_time", &[5]),
        ("power_cycles", &[6]),
        ("power_on_hours", &[7]),
        ("unsafe_shutdowns", &[8]),
        ("media_errors", &[9]),
        ("num_err_log_entries", &[10]),
    ]);
    assert_eq!(smart.to_bytes()[..], bytes);
    assert_eq!(Smart::parse(&bytes).unwrap(), smart);

    let mut slots = FirmwareSlots { active: 1, next: 2, ..FirmwareSlots::default() };
    slots.revisions[1] = Ascii::new("0.1");
    let bytes = layouts::FIRMWARE_SLOTS.bytes(&[("afi", &[0x21]), ("frs2", b"0.1     ")]);
    assert_eq!(slots.to_bytes()[..], bytes);
    assert_eq!(FirmwareSlots::parse(&bytes).unwrap(), slots);
    assert!(why(FirmwareSlots::parse(&[0; 512])).1.contains("no slot"));

    // What lets an ordinary user of a Linux host pass a Copy through: CSUPP and LBCC.
    let copy = (0x19, effect::SUPPORTED | effect::CONTENT);
    let effects = CommandEffects { admin: Table::of(&[(0, effect::SUPPORTED)]), io: Table::of(&[copy]) };
    let bytes = layouts::EFFECTS.bytes(&[("acs", &[1]), ("iocs_19", &[3])]);
    assert_eq!(effects.to_bytes()[..], bytes);
    let read = CommandEffects::parse(&bytes).unwrap();
    assert_eq!((read, read.io.get(0x19), read.io.get(0x18), read.admin.get(0)), (effects, 3, 0, 1));
    assert_eq!(Table::parse(&effects.io.to_bytes()).unwrap(), effects.io);
}

#[test]
fn any_window_of_a_page_can_be_read_and_none_behind_it() {
    let page: Vec<u8> = (1..=10).collect();
    let mut out = [0xee; 4];
    for (offset, expected) in [(0, [1, 2, 3, 4]), (6, [7, 8, 9, 10]), (8, [9, 10, 0, 0]), (10, [0; 4])] {
        out.fill(0xee);
        assert_eq!((read_page(&page, offset, &mut out), out), (Ok(()), expected));
    }
    for behind in [11, 12, u64::MAX] {
        assert_eq!(read_page(&page, behind, &mut out), Err(Status::INVALID_FIELD));
    }
}

#[test]
fn features_have_their_bits_where_other_programs_have_them() {
    let queues = NumberOfQueues::pairs(Count16::new(4).unwrap());
    assert_eq!((queues.to_dword(), NumberOfQueues::from_dword(0x0003_0003)), (0x0003_0003, Ok(queues)));
    assert_eq!(NumberOfQueues::from_dword(0x0001_0002).unwrap().submission.get(), 3);
    for forbidden in [0xffff, 0xffff_0000, 0xffff_ffff] {
        assert_eq!(NumberOfQueues::from_dword(forbidden), Err(Status::INVALID_FIELD));
    }
    assert_eq!(NumberOfQueues::from_dword(0xfffe_fffe).unwrap().completion.get(), 65535);
    let threshold = TemperatureThreshold { kelvin: 0x0157, sensor: 15, kind: 1 };
    assert_eq!(
        (threshold.to_dword(), TemperatureThreshold::from_dword(0x001f_0157)),
        (0x001f_0157, threshold)
    );
    let recovery = ErrorRecovery { limit_100ms: 7, deallocated_error: true };
    assert_eq!((recovery.to_dword(), ErrorRecovery::from_dword(0x0001_0007)), (0x0001_0007, recovery));
    let arbitration = Arbitration { burst: 7, weights: [1, 2, 3] };
    assert_eq!((arbitration.to_dword(), Arbitration::from_dword(0x0302_01ff)), (0x0302_0107, arbitration));
    let power = PowerManagement { state: 31, workload: 2 };
    assert_eq!((power.to_dword(), PowerManagement::from_dword(0x5f)), (0x5f, power));
    assert_eq!(
        (VolatileWriteCache { enabled: true }.to_dword(), WriteAtomicity::default().to_dword()),
        (1, 0)
    );
    assert!(!VolatileWriteCache::from_dword(2).enabled && WriteAtomicity::from_dword(3).disable_normal);
    assert_eq!((KeepAlive::from_dword(0).0, KeepAlive::from_dword(15000).to_dword()), (None, 15000));
    let events = AsyncEvents(oaes::NAMESPACE_ATTRIBUTE);
    assert!(events.enabled(0x100) && !events.enabled(0x8000_0100));
    // NVME_AER_NOTICE is 2; the notice of changed namespaces is 0 with log 04h, that of discovery F0h with log 70h.
    assert_eq!(AsyncEvent::NAMESPACE_ATTRIBUTE.to_dword(), 0x0004_0002);
    assert_eq!(AsyncEvent::DISCOVERY_LOG.to_dword(), 0x0070_f002);
    assert_eq!(AsyncEvent::from_dword(0xff70_f0fa), AsyncEvent::DISCOVERY_LOG);

    let behavior = HostBehavior {
        extended_lba_formats: true,
        copy_formats: Format::F2.bit() | Format::F3.bit(),
        ..HostBehavior::default()
    };
    let bytes = layouts::HOST_BEHAVIOR.bytes(&[("lbafee", &[1]), ("cdfe", &[0xc])]);
    assert_eq!(behavior.to_bytes()[..], bytes);
    assert_eq!(HostBehavior::parse(&bytes), Ok(behavior));
    let all = HostBehavior::parse(&[1; 512]).unwrap();
    assert!(all.retry_delays && all.telemetry_area_4 && all.dispersed_namespaces);
    assert_eq!(
        HostBehavior::parse(&[2; 512]).unwrap(),
        HostBehavior { copy_formats: 0x202, ..HostBehavior::default() }
    );
    assert_eq!(HostBehavior::parse(&[0; 511]), Err(Status::SGL_LENGTH_INVALID));
    assert_eq!(HostBehavior::parse(&[0; 513]), Err(Status::SGL_LENGTH_INVALID));
}

#[test]
fn the_discovery_log_is_as_other_programs_read_it() {
    let header = Header { generation: 0x0102, entries: 3 };
    let bytes = layouts::DISCOVERY_HEADER.bytes(&[("genctr", &[2, 1]), ("numrec", &[3])]);
    assert_eq!(header.to_bytes()[..], bytes);
    // Some hosts ask for 20 bytes first.
    for len in [18, 20, 1024] {
        assert_eq!(Header::parse(&bytes[..len]).unwrap(), header);
    }
    assert!(Header::parse(&bytes[..17]).is_err() && Header::parse(&[0; 1025]).is_err());
    let mut unknown = bytes.clone();
    unknown[17] = 1;
    assert!(why(Header::parse(&unknown)).1.contains("format 256"));

    let name = Nqn::new("nqn.2014-08.org.example:sub").unwrap();
    let entry = Entry {
        secure_channel: SecureChannel::Required,
        port_id: 0x0102,
        eflags: 2,
        tcp_security: 2,
        ..Entry::tcp(SubsystemType::Nvm, name.clone(), "192.0.2.7".parse().unwrap(), 4420)
    };
    let bytes = layouts::DISCOVERY_ENTRY.bytes(&[
        ("trtype", &[3]),
        ("adrfam", &[1]),
        ("subtype", &[2]),
        ("treq", &[5]),
        ("portid", &[2, 1]),
        ("cntlid", &[0xff, 0xff]),
        ("asqsz", &[32]),
        ("eflags", &[2]),
        ("trsvcid", b"4420"),
        ("subnqn", b"nqn.2014-08.org.example:sub"),
        ("traddr", b"192.0.2.7"),
        ("sectype", &[2]),
    ]);
    assert_eq!(entry.to_bytes()[..], bytes);
    assert_eq!(Entry::parse(&bytes).unwrap(), entry);
    let v6 = Entry::tcp(SubsystemType::CurrentDiscovery, name, "::1".parse().unwrap(), 8009);
    assert_eq!((v6.family, v6.address.as_str(), v6.service.as_str()), (2, "::1", "8009"));
    // Padded with spaces, and filled to the last byte.
    let mut padded = bytes.clone();
    padded[32..64].copy_from_slice(b"4420                            ");
    padded[512..768].fill(b'1');
    let read = Entry::parse(&padded).unwrap();
    assert_eq!((read.service.as_str(), read.address.len()), ("4420", 256));
    assert_eq!(Entry { address: "1".repeat(300), ..read.clone() }.to_bytes(), read.to_bytes());
    for (at, wrong) in [(2, 0), (2, 4), (3, 3), (32, 7), (512, 0xc3), (256, 0), (260, 7)] {
        let mut bytes = bytes.clone();
        bytes[at] = wrong;
        assert_eq!(why(Entry::parse(&bytes)).0, Kind::Io, "{wrong:02x} at {at}");
    }
    assert_eq!(identify::LEN, 4096);
}

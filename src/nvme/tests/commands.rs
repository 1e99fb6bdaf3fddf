//! Commands: their bytes, what is refused, and round trips.

use super::layouts;
use crate::nvme::admin::{AdminCommand, GetFeatures, GetLogPage, Identify, Select, SetFeatures};
use crate::nvme::command::{Transfer, admin, nvm};
use crate::nvme::copy::{CopyCommand, Format, SourceRange, parse_ranges, whole_ranges, write_ranges};
use crate::nvme::fabrics::{
    Authentication, Connect, ConnectData, Connected, FabricsCommand, InvalidParameter, Refusal, Width,
};
use crate::nvme::io::{DsmRange, Extent, IoCommand, parse_dsm_ranges};
use crate::nvme::property::{Cap, Cc, Csts, Shutdown, ShutdownStatus, Version};
use crate::nvme::{Blocks, Count8, Count16, Cqe, Nqn, Sgl, Sqe, Status};
use proptest::prelude::*;
use std::num::NonZeroU32;

fn blocks(count: u32) -> Blocks {
    Blocks::new(count).unwrap()
}

fn ranges(count: u32) -> Count8 {
    Count8::new(count).unwrap()
}

/// Bytes of an SGL descriptor: what the transport moves.
const TRANSPORT_8: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0x5a];

#[test]
fn entries_are_as_other_programs_lay_them_out() {
    let mut sqe = Sqe::new(nvm::READ, 0x0403_0201).with_sgl(Sgl::transport(8));
    sqe.set_cid(0xbeef);
    let common: [(&str, &[u8]); 4] =
        [("opcode", &[2]), ("flags", &[0x40]), ("command_id", &[0xef, 0xbe]), ("nsid", &[1, 2, 3, 4])];
    let mut values = common.to_vec();
    values.push(("dptr", &TRANSPORT_8));
    assert_eq!(sqe.0[..], layouts::RW.bytes(&values));
    assert_eq!((sqe.cid(), sqe.nsid(), sqe.sgl()), (0xbeef, 0x0403_0201, Sgl::transport(8)));

    // Status 1h/83h with do-not-retry is 4183h; the wire has the phase bit below it.
    let cqe = Cqe { result: 3, sq_head: 7, sq_id: 0, cid: 9, status: Status::COPY_SIZE_LIMIT_EXCEEDED };
    assert_eq!(cqe.to_bytes(), [3, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0x06, 0x83]);
    assert_eq!(Cqe::from_bytes(&cqe.to_bytes()), cqe);
}

#[test]
fn io_commands_are_as_other_programs_lay_them_out() {
    let extent = Extent { nsid: 5, slba: 0x0807_0605_0403_0201, blocks: blocks(0x1235), fua: true };
    let rw = |opcode: u8, control: u16| {
        layouts::RW.bytes(&[
            ("opcode", &[opcode]),
            ("flags", &[0x40]),
            ("nsid", &[5]),
            ("slba", &[1, 2, 3, 4, 5, 6, 7, 8]),
            ("length", &[0x34, 0x12]),
            ("control", &control.to_le_bytes()),
        ])
    };
    // NVME_RW_FUA is bit 14 of the control word, NVME_WZ_DEAC bit 9.
    assert_eq!(IoCommand::Write(extent).to_sqe().0[..], rw(0x01, 1 << 14));
    assert_eq!(IoCommand::Read(extent).to_sqe().0[..], rw(0x02, 1 << 14));
    assert_eq!(IoCommand::Compare(extent).to_sqe().0[..], rw(0x05, 1 << 14));
    let zeroes = IoCommand::WriteZeroes { extent: Extent { fua: false, ..extent }, deallocate: true };
    assert_eq!(zeroes.to_sqe().0[..], rw(0x08, 1 << 9));
    let dsm = IoCommand::DatasetManagement { nsid: 5, ranges: ranges(3), deallocate: true };
    let values: [(&str, &[u8]); 5] =
        [("opcode", &[9]), ("flags", &[0x40]), ("nsid", &[5]), ("nr", &[2]), ("attributes", &[4])];
    assert_eq!(dsm.to_sqe().0[..], layouts::DSM.bytes(&values));
    assert_eq!(IoCommand::Flush { nsid: 1 }.to_sqe(), Sqe::new(0, 1));
}

#[test]
fn a_copy_is_laid_out_as_the_standard_has_it() {
    let copy = CopyCommand {
        fua: true,
        limited_retry: true,
        prinfo_read: 0x9,
        prinfo_write: 0x6,
        ..CopyCommand::new(1, 0x1122_3344_5566_7788, ranges(256), Format::F2)
    };
    let sqe = copy.to_sqe();
    assert_eq!((sqe.opcode(), sqe.transfer(), sqe.qword(10)), (0x19, Transfer::ToController, copy.sdlba));
    // NR 7:0, DESFMT 11:8, PRINFOR 15:12, PRINFOW 29:26, FUA 30, LR 31.
    assert_eq!(sqe.dword(12), 255 | 2 << 8 | 9 << 12 | 6 << 26 | 1 << 30 | 1 << 31);
    assert_eq!(IoCommand::parse(&sqe), Ok(IoCommand::Copy(copy)));
}

#[test]
fn range_entries_are_laid_out_as_the_standard_has_it() {
    let range = |snsid, fco| SourceRange { snsid, slba: 0x0102_0304_0506_0708, blocks: blocks(0xabce), fco };
    let cases = [
        (Format::F0, &layouts::RANGE_32, range(None, false)),
        (Format::F1, &layouts::RANGE_40, range(None, false)),
        (Format::F2, &layouts::RANGE_32, range(Some(0x99), true)),
        (Format::F3, &layouts::RANGE_40, range(Some(0x99), true)),
    ];
    for (format, layout, range) in cases {
        let snsid = range.snsid.map_or(0, |_| 0x99);
        let sopt = if range.fco { 0x80 } else { 0 };
        let values: [(&str, &[u8]); 4] = [
            ("snsid", &[snsid]),
            ("slba", &[8, 7, 6, 5, 4, 3, 2, 1]),
            ("nlb", &[0xcd, 0xab]),
            ("sopt", &[0, sopt]),
        ];
        let mut list = [0xff; 40];
        let len = write_ranges(format, &[range], &mut list);
        assert_eq!(list[..len], layout.bytes(&values), "{format:?}");
        let command = CopyCommand::new(1, 0, Count8::ONE, format);
        assert_eq!(parse_ranges(&command, &list[..len]).unwrap().collect::<Vec<_>>(), [range]);
    }
}

#[test]
fn what_a_format_does_not_have_is_not_read() {
    let mut list = [0xff; 40];
    for format in [Format::F0, Format::F1] {
        let command = CopyCommand::new(1, 0, Count8::ONE, format);
        let range = parse_ranges(&command, &list[..format.entry_len()]).unwrap().next().unwrap();
        assert_eq!((range.snsid, range.fco, range.blocks), (None, false, Blocks::MAX));
    }
    // FCO is bit 15 of the options and no other.
    list[22..24].copy_from_slice(&0x7fffu16.to_le_bytes());
    let command = CopyCommand::new(1, 0, Count8::ONE, Format::F3);
    assert!(!parse_ranges(&command, &list).unwrap().next().unwrap().fco);
}

#[test]
fn a_range_list_is_exactly_as_long_as_the_command_says() {
    let bytes = [0; 256 * 40 + 40];
    for format in [Format::F0, Format::F1, Format::F2, Format::F3] {
        for count in [1, 2, 255, 256] {
            let command = CopyCommand::new(1, 0, ranges(count), format);
            let len = count as usize * format.entry_len();
            assert_eq!(command.list_len(), len);
            assert_eq!(parse_ranges(&command, &bytes[..len]).unwrap().len(), count as usize);
            for wrong in [0, len - format.entry_len(), len - 1, len + 1, len + format.entry_len()] {
                let refused = parse_ranges(&command, &bytes[..wrong]).err();
                assert_eq!(refused, Some(Status::SGL_LENGTH_INVALID), "{format:?} {count} {wrong}");
            }
        }
    }
    let memory = CopyCommand::new(1, 0, Count8::ONE, Format::F4);
    assert_eq!(parse_ranges(&memory, &bytes[..32]).err(), Some(Status::INVALID_FIELD));
}

#[test]
fn the_longest_list_of_the_longest_ranges_adds_up_without_wrapping() {
    let command = CopyCommand::new(1, 0, ranges(256), Format::F1);
    let mut all = parse_ranges(&command, &[0xff; 256 * 40]).unwrap();
    assert_eq!(all.total_blocks(), 256 * 65536);
    assert_eq!(all.next().unwrap().end(), None, "from the last LBA there is no end");
    assert_eq!(all.total_blocks(), 255 * 65536);
    let near = SourceRange { snsid: None, slba: u64::MAX - 65536, blocks: Blocks::MAX, fco: false };
    assert_eq!(near.end(), Some(u64::MAX));
}

#[test]
fn reserved_copy_formats_are_refused() {
    for number in 0..16 {
        let sqe = CopyCommand::new(1, 0, Count8::ONE, Format::F0).to_sqe().with(12, number << 8);
        let parsed = CopyCommand::parse(&sqe).map(|c| u32::from(c.format.number()));
        assert_eq!(parsed, if number < 5 { Ok(number) } else { Err(Status::INVALID_FIELD) });
    }
    assert_eq!(Format::ALL.map(Format::bit), [1, 2, 4, 8, 16]);
    assert_eq!(CopyCommand::parse(&Sqe::new(nvm::WRITE, 1)), Err(Status::INVALID_OPCODE));
}

//= promise 5
#[test]
fn what_a_failed_copy_promises() {
    let end = |status, result| Cqe { status, result, ..Cqe::default() };
    let whole = |status, result| whole_ranges(ranges(4), &end(status, result));
    assert_eq!(whole(Status::SUCCESS, 0), 4);
    assert_eq!(whole(Status::SUCCESS, 2), 4, "on success the dword means nothing");
    assert_eq!([0, 1, 3].map(|n| whole(Status::WRITE_FAULT, n)), [0, 1, 3]);
    assert_eq!([4, 5, 0xffff_ffff].map(|n| whole(Status::WRITE_FAULT, n)), [0, 0, 0], "names no range");
    assert_eq!(whole(Status::WRITE_FAULT, 7 << 32 | 2), 2, "dword 1 is not part of it");
}

#[test]
fn the_length_of_the_data_is_checked() {
    let extent = Extent::new(1, 0, blocks(8));
    for command in [IoCommand::Read(extent), IoCommand::Write(extent), IoCommand::Compare(extent)] {
        assert_eq!(command.data_len(512), 4096);
        assert_eq!(command.check_data_len(512, 4096), Ok(()));
        for wrong in [0, 4095, 4097, 32768] {
            assert_eq!(command.check_data_len(512, wrong), Err(Status::SGL_LENGTH_INVALID));
        }
        assert_eq!(command.check_data_len(4096, 32768), Ok(()));
    }
    // 65536 blocks of 64 KiB are 2^32 bytes: a length of 0 is not that.
    let huge = IoCommand::Read(Extent::new(1, 0, Blocks::MAX));
    assert_eq!(huge.data_len(65536), 1 << 32);
    assert_eq!(huge.check_data_len(65536, 0), Err(Status::SGL_LENGTH_INVALID));
    let dsm = IoCommand::DatasetManagement { nsid: 1, ranges: ranges(2), deallocate: true };
    assert_eq!([32, 33, 4096].map(|len| dsm.check_data_len(512, len)), [Ok(()); 3], "Linux sends 4096");
    assert_eq!(dsm.check_data_len(512, 31), Err(Status::SGL_LENGTH_INVALID));
    let copy = IoCommand::Copy(CopyCommand::new(1, 0, ranges(2), Format::F3));
    assert_eq!(copy.check_data_len(512, 80), Ok(()));
    assert_eq!(
        [64, 79, 81, 120].map(|len| copy.check_data_len(512, len)),
        [Err(Status::SGL_LENGTH_INVALID); 4]
    );
    assert_eq!(IoCommand::Flush { nsid: 1 }.check_data_len(512, 0), Ok(()));
    assert_eq!(IoCommand::WriteZeroes { extent, deallocate: false }.check_data_len(512, 0), Ok(()));
}

#[test]
fn deallocation_lists_may_be_longer_and_not_shorter() {
    let range = DsmRange { slba: 0x1_0000_0002, blocks: 0 };
    assert_eq!(range.to_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
    let mut list = [0xff; 4096];
    list[..16].copy_from_slice(&range.to_bytes());
    list[16..32].copy_from_slice(&DsmRange { slba: 7, blocks: u32::MAX }.to_bytes());
    let two: Vec<_> = parse_dsm_ranges(ranges(2), &list).unwrap().collect();
    assert_eq!(two, [range, DsmRange { slba: 7, blocks: u32::MAX }]);
    assert_eq!(two[1].end(), Some(7 + u64::from(u32::MAX)));
    assert_eq!(parse_dsm_ranges(ranges(2), &list[..31]).err(), Some(Status::SGL_LENGTH_INVALID));
    assert_eq!(parse_dsm_ranges(ranges(256), &list).unwrap().count(), 256);
}

#[test]
fn fused_commands_and_prps_are_refused() {
    for base in [Sqe::new(nvm::READ, 1), Sqe::new(nvm::COPY, 1), Sqe::new(admin::IDENTIFY, 0)] {
        let is_io = base.opcode() != admin::IDENTIFY;
        let parse = |sqe: &Sqe| match is_io {
            true => IoCommand::parse(sqe).map(|_| ()),
            false => AdminCommand::parse(sqe).map(|_| ()),
        };
        for flags in 0..=255u8 {
            let mut sqe = base;
            sqe.0[1] = flags;
            // FUSE 1:0 none, PSDT 7:6 = 01b; bits 5:2 are reserved and ignored.
            let good = flags & 3 == 0 && flags >> 6 == 1;
            assert_eq!(parse(&sqe), if good { Ok(()) } else { Err(Status::INVALID_FIELD) }, "{flags:02x}");
        }
    }
}

#[test]
fn opcodes_that_are_not_here_are_invalid() {
    let io: Vec<u8> = (0..=255).filter(|&o| IoCommand::parse(&Sqe::new(o, 1)).is_ok()).collect();
    assert_eq!(io, [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x19]);
    let admin: Vec<u8> = (0..=255).filter(|&o| AdminCommand::parse(&Sqe::new(o, 1)).is_ok()).collect();
    assert_eq!(admin, [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18]);
    let refused = (0..=255u8).filter(|o| !io.contains(o));
    assert!(refused.map(|o| IoCommand::parse(&Sqe::new(o, 1))).all(|r| r == Err(Status::INVALID_OPCODE)));
    let refused = (0..=255u8).filter(|o| !admin.contains(o));
    assert!(refused.map(|o| AdminCommand::parse(&Sqe::new(o, 1))).all(|r| r == Err(Status::INVALID_OPCODE)));
    let fabrics = |kind: u8| FabricsCommand::parse(&Sqe::new(0x7f, kind.into()).with(11, 31));
    let known: Vec<u8> = (0..=255).filter(|&kind| fabrics(kind).is_ok()).collect();
    assert_eq!(known, [0x00, 0x01, 0x04, 0x05, 0x06, 0x08]);
    assert_eq!(fabrics(0x02), Err(Status::INVALID_OPCODE.into()));
    assert_eq!(FabricsCommand::parse(&Sqe::new(0x06, 1)), Err(Status::INVALID_OPCODE.into()));
}

#[test]
fn admin_commands_are_as_other_programs_lay_them_out() {
    let page = GetLogPage {
        offset: 0x0000_0002_0000_0400,
        rae: true,
        lsp: 0x35,
        lsi: 0x7788,
        csi: 0x99,
        // 12345678h dwords: the field has one less.
        len: 0x1234_5678 * 4,
        ..GetLogPage::new(0x70, 4)
    };
    let values: [(&str, &[u8]); 11] = [
        ("opcode", &[2]),
        ("flags", &[0x40]),
        ("nsid", &[0xff; 4]),
        ("lid", &[0x70]),
        ("lsp", &[0xb5]),
        ("numdl", &[0x77, 0x56]),
        ("numdu", &[0x34, 0x12]),
        ("lsi", &[0x88, 0x77]),
        ("lpol", &[0, 4]),
        ("lpou", &[2]),
        ("csi", &[0x99]),
    ];
    assert_eq!(AdminCommand::GetLogPage(page).to_sqe().0[..], layouts::LOG_PAGE.bytes(&values));
    let identify = Identify { cntid: 0x1122, csi: 2, cnssi: 0x3344, ..Identify::new(0x06, 5) };
    let values: [(&str, &[u8]); 7] = [
        ("opcode", &[6]),
        ("flags", &[0x40]),
        ("nsid", &[5]),
        ("cns", &[6]),
        ("ctrlid", &[0x22, 0x11]),
        ("cnssid", &[0x44, 0x33]),
        ("csi", &[2]),
    ];
    assert_eq!(AdminCommand::Identify(identify).to_sqe().0[..], layouts::IDENTIFY.bytes(&values));
    let set = AdminCommand::SetFeatures(SetFeatures { save: true, ..SetFeatures::new(7, 0x0003_0003) });
    assert_eq!((set.to_sqe().dword(10), set.to_sqe().dword(11)), (0x8000_0007, 0x0003_0003));
    let get = AdminCommand::GetFeatures(GetFeatures { select: Select::Capabilities, ..GetFeatures::new(7) });
    assert_eq!(get.to_sqe().dword(10), 0x307);
    assert_eq!(AdminCommand::Abort { sqid: 1, cid: 0xabcd }.to_sqe().dword(10), 0xabcd_0001);
}

#[test]
fn a_log_page_is_as_long_and_begins_where_the_command_says() {
    let parse = |sqe: Sqe| match AdminCommand::parse(&sqe) {
        Ok(AdminCommand::GetLogPage(page)) => Ok(page),
        other => Err(other),
    };
    let sqe = Sqe::new(admin::GET_LOG_PAGE, 0);
    assert_eq!(parse(sqe).unwrap().len, 4, "0 dwords asked for are one");
    let most = parse(sqe.with(10, 0xffff_0000).with(11, 0xffff)).unwrap();
    assert_eq!(most.len, 1 << 34);
    assert_eq!(AdminCommand::GetLogPage(most).to_sqe(), sqe.with(10, 0xffff_0000).with(11, 0xffff));
    for odd in 1..4 {
        assert_eq!(parse(sqe.with(12, odd)), Err(Err(Status::INVALID_FIELD)));
        let index = parse(sqe.with(12, odd).with(14, 1 << 23)).unwrap();
        assert_eq!((index.offset, index.offset_is_index), (odd.into(), true));
    }
    assert_eq!(parse(sqe.with(12, 4).with(13, 1)).unwrap().offset, 0x1_0000_0004);
    for reserved in 4..8 {
        let sqe = Sqe::new(admin::GET_FEATURES, 0).with(10, reserved << 8);
        assert_eq!(AdminCommand::parse(&sqe), Err(Status::INVALID_FIELD));
    }
}

#[test]
fn fabrics_commands_are_as_other_programs_lay_them_out() {
    let connect = Connect {
        qid: 0x0102,
        entries: Count16::new(128).unwrap(),
        no_flow_control: true,
        keep_alive_ms: NonZeroU32::new(15000),
    };
    let front: [(&str, &[u8]); 2] = [("opcode", &[0x7f]), ("flags", &[0x40])];
    let with = |fields: &[(&'static str, &'static [u8])]| [&front[..], fields].concat();
    let values = with(&[
        ("fctype", &[1]),
        ("qid", &[2, 1]),
        ("sqsize", &[127]),
        ("cattr", &[4]),
        ("kato", &[0x98, 0x3a]),
    ]);
    assert_eq!(FabricsCommand::Connect(connect).to_sqe().0[..], layouts::CONNECT.bytes(&values));
    let get = FabricsCommand::PropertyGet { width: Width::Eight, offset: 0 };
    assert_eq!(get.to_sqe().0[..], layouts::PROPERTY.bytes(&with(&[("fctype", &[4]), ("attrib", &[1])])));
    let set = FabricsCommand::PropertySet { width: Width::Four, offset: 0x14, value: 0x0046_0001 };
    let values = with(&[("offset", &[0x14]), ("value", &[1, 0, 0x46])]);
    assert_eq!(set.to_sqe().0[..], layouts::PROPERTY.bytes(&values));
    let a = Authentication { protocol: 0xe9, specific: [1, 2], len: 0x304 };
    let message: &[(&'static str, &'static [u8])] =
        &[("spsp0", &[1]), ("spsp1", &[2]), ("secp", &[0xe9]), ("al_tl", &[4, 3])];
    let messages: [(FabricsCommand, &'static [u8]); 2] =
        [(FabricsCommand::AuthenticationSend(a), &[5]), (FabricsCommand::AuthenticationReceive(a), &[6])];
    for (command, kind) in messages {
        let values = with(&[message, &[("fctype", kind)]].concat());
        assert_eq!(command.to_sqe().0[..], layouts::AUTHENTICATION.bytes(&values));
    }
    assert_eq!(FabricsCommand::Disconnect.to_sqe(), Sqe::new(0x7f, 8));
}

#[test]
fn a_connect_is_refused_with_the_byte_at_fault() {
    let connect = |sqsize: u16, recfmt: u8| {
        let mut sqe = Sqe::new(0x7f, 1).with(11, sqsize.into());
        sqe.0[41] = recfmt;
        FabricsCommand::parse(&sqe)
    };
    let refused = connect(0, 0).unwrap_err();
    assert_eq!((refused.status, refused.dword0), (Status::CONNECT_INVALID_PARAMETERS, 44));
    assert_eq!(connect(1, 1), Err(Status::CONNECT_INCOMPATIBLE_FORMAT.into()));
    for (sqsize, entries) in [(1, 2), (0xffff, 65536)] {
        let Ok(FabricsCommand::Connect(c)) = connect(sqsize, 0) else { panic!("refused") };
        assert_eq!((c.entries.get(), c.keep_alive_ms), (entries, None));
    }
    let end =
        |refusal: Refusal| Cqe { status: refusal.status, result: refusal.dword0.into(), ..Cqe::default() };
    let in_data = InvalidParameter::of(&end(Refusal::in_data(512)));
    assert_eq!(in_data, Some(InvalidParameter { offset: 512, in_data: true }));
    assert_eq!(InvalidParameter::of(&end(refused)), Some(InvalidParameter { offset: 44, in_data: false }));
    assert_eq!(InvalidParameter::of(&end(Status::CONNECT_CONTROLLER_BUSY.into())), None);
}

#[test]
fn a_property_has_4_bytes_or_8() {
    for attrib in 0..=255u8 {
        for kind in [0, 4] {
            let mut sqe = Sqe::new(0x7f, kind).with_qword(12, 0x1_0000_0002);
            sqe.0[40] = attrib;
            let expected = match (attrib & 7, kind) {
                (0, 0) => Ok(FabricsCommand::PropertySet { width: Width::Four, offset: 0, value: 2 }),
                (1, 0) => {
                    Ok(FabricsCommand::PropertySet { width: Width::Eight, offset: 0, value: 0x1_0000_0002 })
                }
                (0, _) => Ok(FabricsCommand::PropertyGet { width: Width::Four, offset: 0 }),
                (1, _) => Ok(FabricsCommand::PropertyGet { width: Width::Eight, offset: 0 }),
                _ => Err(Status::INVALID_FIELD.into()),
            };
            assert_eq!(FabricsCommand::parse(&sqe), expected);
        }
    }
}

#[test]
fn connect_data_is_as_other_programs_lay_it_out() {
    let data = ConnectData {
        host_id: [7; 16],
        cntlid: 0xffff,
        subsystem: Nqn::new("nqn.2014-08.org.example:one").unwrap(),
        host: Nqn::new("nqn.2014-08.org.nvmexpress:uuid:0").unwrap(),
    };
    let values: [(&str, &[u8]); 4] = [
        ("hostid", &[7; 16]),
        ("cntlid", &[0xff, 0xff]),
        ("subsysnqn", b"nqn.2014-08.org.example:one"),
        ("hostnqn", b"nqn.2014-08.org.nvmexpress:uuid:0"),
    ];
    let bytes = layouts::CONNECT_DATA.bytes(&values);
    assert_eq!(data.to_bytes()[..], bytes);
    assert_eq!(ConnectData::parse(&bytes), Ok(data));
    let mut nameless = bytes.clone();
    nameless[512] = 0;
    assert_eq!(ConnectData::parse(&nameless).unwrap().host.as_str(), "", "a host may have no name");
    for (at, wrong) in [(256, 0), (256, 0xff), (512, 0x1f)] {
        let mut bytes = bytes.clone();
        bytes[at] = wrong;
        let refused = Refusal::in_data(u16::try_from(at).unwrap());
        assert_eq!(ConnectData::parse(&bytes), Err(refused), "byte {wrong:02x} at {at}");
    }
    for wrong in [0, 1, 1023] {
        assert_eq!(ConnectData::parse(&bytes[..wrong]), Err(Status::SGL_LENGTH_INVALID.into()));
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(ConnectData::parse(&longer), Err(Status::SGL_LENGTH_INVALID.into()));
    let connected = Connected { authenticate: true, authenticate_and_secure: true, ..Connected::to(0xffef) };
    assert_eq!(connected.to_dword0(), 0x0006_ffef);
    assert_eq!(Connected::from_dword0(0x0006_ffef), connected);
    assert_eq!(Connected::from_dword0(0xfff9_0001), Connected::to(1));
}

#[test]
fn names_end_within_their_field() {
    let longest = "n".repeat(Nqn::LEN_MAX);
    assert_eq!(Nqn::from_field(&Nqn::new(&longest).unwrap().to_field()).unwrap().as_str(), longest);
    for wrong in ["", &"n".repeat(Nqn::LEN_MAX + 1), "nqn.\n", "nqn.\u{7f}", "nqn.\u{9b}31m"] {
        assert!(Nqn::new(wrong).is_err(), "{wrong:?}");
    }
    assert!(Nqn::from_field(&[b'n'; 256]).is_err(), "no NUL");
    let mut field = Nqn::new("nqn.ü").unwrap().to_field();
    assert_eq!(Nqn::from_field(&field).unwrap().as_str(), "nqn.ü");
    field[100] = 0xff;
    assert_eq!(Nqn::from_field(&field).unwrap().as_str(), "nqn.ü", "behind the NUL nothing counts");
    field[5] = 0;
    assert!(Nqn::from_field(&field).is_err(), "half a character");
    assert!(
        Nqn::discovery().is_discovery()
            && !Nqn::new("nqn.2014-08.org.nvmexpress.discovery2").unwrap().is_discovery()
    );
}

#[test]
fn properties_have_their_bits_where_other_programs_have_them() {
    // What Linux writes: entry sizes, then enable, then an ordered shutdown; CSS 110b where CAP says so.
    let cc = Cc::for_host(Cc::CSS_NVM);
    assert_eq!((cc.0, cc.with_enabled(true).0), (0x0046_0000, 0x0046_0001));
    assert_eq!(Cc::for_host(Cc::CSS_CSI).with_enabled(true).0, 0x0046_0061);
    let down = cc.with_enabled(true).with_shutdown(Some(Shutdown::Normal));
    assert_eq!((down.0, down.shutdown()), (0x0046_4001, Some(Shutdown::Normal)));
    assert_eq!(down.with_shutdown(Some(Shutdown::Abrupt)).0, 0x0046_8001);
    assert_eq!(Cc(0xc000).shutdown(), Some(Shutdown::Abrupt));
    assert_eq!(down.with_shutdown(None).with_enabled(false), cc);
    assert_eq!((cc.sqe_shift(), cc.cqe_shift(), cc.page_bytes(), cc.arbitration()), (6, 4, 4096, 0));
    assert_eq!((Cc(0x3980).page_bytes(), Cc(0x3980).arbitration()), (4096 << 3, 7));

    // 128 entries, contiguous, 7.5 s, NVM command set.
    let cap = Cap::new(Count16::new(128).unwrap(), 7500, Cap::CSS_NVM);
    assert_eq!(cap.0, 127 | 1 << 16 | 15 << 24 | 1 << 37);
    assert_eq!((cap.entries_max().get(), cap.ready_ms(), cap.command_sets()), (128, 7500, 1));
    assert_eq!((cap.page_bytes_min(), cap.page_bytes_max(), cap.has_crto()), (4096, 4096, false));
    assert_eq!(Cap::new(Count16::MAX, 1, 0).ready_ms(), 500);
    assert_eq!(Cap::new(Count16::MAX, u32::MAX, 0).ready_ms(), 127_500);
    let all = Cap(u64::MAX);
    assert_eq!((all.page_bytes_min(), all.page_bytes_max(), all.has_crto()), (1 << 27, 1 << 27, true));

    let csts = Csts::default().with_ready(true).with_shutdown(ShutdownStatus::Complete);
    assert_eq!(
        (csts.0, csts.ready(), csts.fatal(), csts.shutdown()),
        (9, true, false, Some(ShutdownStatus::Complete))
    );
    assert_eq!(csts.with_shutdown(ShutdownStatus::Occurring).with_fatal(true).0, 7);
    assert_eq!((Csts(0xc).shutdown(), Csts(2).fatal()), (None, true));
    assert_eq!((Version::V1_4.0, Version::V2_1.0, Version::new(1, 2, 1).0), (0x1_0400, 0x2_0100, 0x1_0201));
    assert!(Version::V1_3 < Version::V1_4 && Version::V1_4 < Version::V2_0);
    assert_eq!(Version::new(1, 2, 1).to_string(), "1.2.1");
}

fn any_extent() -> impl Strategy<Value = Extent> {
    (any::<u32>(), any::<u64>(), any::<u16>(), any::<bool>()).prop_map(|(nsid, slba, nlb, fua)| Extent {
        nsid,
        slba,
        blocks: Blocks::from_wire(nlb),
        fua,
    })
}

fn any_copy() -> impl Strategy<Value = CopyCommand> {
    (any_extent(), any::<u8>(), 0u8..5, any::<bool>(), 0u8..16, 0u8..16).prop_map(
        |(e, nr, format, limited_retry, prinfo_read, prinfo_write)| CopyCommand {
            fua: e.fua,
            limited_retry,
            prinfo_read,
            prinfo_write,
            ..CopyCommand::new(e.nsid, e.slba, Count8::from_wire(nr), Format::from_number(format).unwrap())
        },
    )
}

fn any_io() -> impl Strategy<Value = IoCommand> {
    let nr = any::<u8>().prop_map(Count8::from_wire);
    prop_oneof![
        any::<u32>().prop_map(|nsid| IoCommand::Flush { nsid }),
        any_extent().prop_map(IoCommand::Write),
        any_extent().prop_map(IoCommand::Read),
        any_extent().prop_map(IoCommand::Compare),
        (any_extent(), any::<bool>())
            .prop_map(|(extent, deallocate)| IoCommand::WriteZeroes { extent, deallocate }),
        (any::<u32>(), nr, any::<bool>())
            .prop_map(|(nsid, ranges, deallocate)| IoCommand::DatasetManagement { nsid, ranges, deallocate }),
        any_copy().prop_map(IoCommand::Copy),
    ]
}

fn any_admin() -> impl Strategy<Value = AdminCommand> {
    let page = (any::<[u32; 2]>(), any::<[u8; 3]>(), any::<u64>(), any::<[bool; 2]>(), any::<u16>());
    let select = prop_oneof![
        Just(Select::Current),
        Just(Select::Default),
        Just(Select::Saved),
        Just(Select::Capabilities)
    ];
    prop_oneof![
        page.prop_map(|([nsid, numd], [lid, lsp, csi], offset, [offset_is_index, rae], lsi)| {
            let offset = if offset_is_index { offset } else { offset & !3 };
            let len = (u64::from(numd) + 1) * 4;
            let lsp = lsp & 0x7f;
            AdminCommand::GetLogPage(GetLogPage {
                nsid,
                lid,
                offset,
                offset_is_index,
                len,
                rae,
                lsp,
                lsi,
                csi,
            })
        }),
        (any::<u32>(), any::<[u8; 2]>(), any::<[u16; 2]>()).prop_map(|(nsid, [cns, csi], [cntid, cnssi])| {
            AdminCommand::Identify(Identify { nsid, cns, cntid, csi, cnssi })
        }),
        any::<[u16; 2]>().prop_map(|[sqid, cid]| AdminCommand::Abort { sqid, cid }),
        (any::<[u32; 3]>(), any::<u8>(), any::<bool>()).prop_map(|([nsid, cdw11, cdw12], fid, save)| {
            AdminCommand::SetFeatures(SetFeatures { nsid, fid, save, cdw11, cdw12 })
        }),
        (any::<[u32; 2]>(), any::<u8>(), select).prop_map(|([nsid, cdw11], fid, select)| {
            AdminCommand::GetFeatures(GetFeatures { nsid, fid, select, cdw11 })
        }),
        Just(AdminCommand::AsyncEventRequest),
        Just(AdminCommand::KeepAlive),
    ]
}

fn any_fabrics() -> impl Strategy<Value = FabricsCommand> {
    let auth =
        || {
            (any::<u8>(), any::<[u8; 2]>(), any::<u32>())
                .prop_map(|(protocol, specific, len)| Authentication { protocol, specific, len })
        };
    let width = || prop_oneof![Just(Width::Four), Just(Width::Eight)];
    prop_oneof![
        (width(), any::<u32>(), any::<u64>()).prop_map(|(width, offset, value)| {
            let value = if width == Width::Four { value & 0xffff_ffff } else { value };
            FabricsCommand::PropertySet { width, offset, value }
        }),
        (width(), any::<u32>()).prop_map(|(width, offset)| FabricsCommand::PropertyGet { width, offset }),
        (any::<u16>(), 1u16.., any::<bool>(), any::<u32>()).prop_map(|(qid, size, no_flow_control, kato)| {
            FabricsCommand::Connect(Connect {
                qid,
                entries: Count16::from_wire(size),
                no_flow_control,
                keep_alive_ms: NonZeroU32::new(kato),
            })
        }),
        auth().prop_map(FabricsCommand::AuthenticationSend),
        auth().prop_map(FabricsCommand::AuthenticationReceive),
        Just(FabricsCommand::Disconnect),
    ]
}

proptest! {
    #[test]
    fn commands_survive_the_wire(io in any_io(), admin in any_admin(), fabrics in any_fabrics()) {
        prop_assert_eq!(IoCommand::parse(&io.to_sqe()), Ok(io));
        prop_assert_eq!((io.nsid(), io.transfer()), (io.to_sqe().nsid(), io.to_sqe().transfer()));
        prop_assert_eq!(AdminCommand::parse(&admin.to_sqe()), Ok(admin));
        prop_assert_eq!(FabricsCommand::parse(&fabrics.to_sqe()), Ok(fabrics));
    }

    #[test]
    fn range_lists_survive_the_wire(
        format in 0u8..4,
        raw in prop::collection::vec((any::<u32>(), any::<u64>(), any::<u16>(), any::<bool>()), 1..=256),
    ) {
        let format = Format::from_number(format).unwrap();
        let names = format.names_namespace();
        let list: Vec<SourceRange> = raw
            .into_iter()
            .map(|(snsid, slba, nlb, fco)| SourceRange {
                snsid: names.then_some(snsid),
                slba,
                blocks: Blocks::from_wire(nlb),
                fco: fco && names,
            })
            .collect();
        let mut bytes = vec![0xee; list.len() * format.entry_len() + 1];
        let len = write_ranges(format, &list, &mut bytes);
        prop_assert_eq!(&bytes[len..], &[0xee]);
        let command = CopyCommand::new(1, 0, ranges(list.len() as u32), format);
        let read = parse_ranges(&command, &bytes[..len]).unwrap();
        prop_assert_eq!(u64::from(read.total_blocks()), list.iter().map(|r| u64::from(r.blocks.get())).sum::<u64>());
        prop_assert_eq!(read.collect::<Vec<_>>(), list);
    }

    #[test]
    fn dataset_management_lists_survive_the_wire(raw in prop::collection::vec(any::<(u64, u32)>(), 1..=256)) {
        let list: Vec<DsmRange> = raw.into_iter().map(|(slba, blocks)| DsmRange { slba, blocks }).collect();
        let bytes: Vec<u8> = list.iter().flat_map(|r| r.to_bytes()).collect();
        let read = parse_dsm_ranges(ranges(list.len() as u32), &bytes).unwrap();
        prop_assert_eq!(read.collect::<Vec<_>>(), list);
    }

    #[test]
    fn connect_data_survives_the_wire(
        host_id in any::<[u8; 16]>(),
        cntlid in any::<u16>(),
        subsystem in "[ -~ü]{1,110}",
        host in "nqn\\.[a-z0-9.:-]{0,219}",
    ) {
        let data = ConnectData {
            host_id,
            cntlid,
            subsystem: Nqn::new(&subsystem).unwrap(),
            host: Nqn::new(&host).unwrap(),
        };
        prop_assert_eq!(ConnectData::parse(&data.to_bytes()), Ok(data));
    }

    #[test]
    fn any_entry_is_read_or_refused(bytes in any::<[[u8; 32]; 2]>(), opcode in 0u8..0x20, psdt in any::<bool>()) {
        let mut sqe = Sqe([0; 64]);
        sqe.0.copy_from_slice(&bytes.concat());
        // Mostly commands that exist, mostly with an SGL.
        sqe.0[0] = if opcode == 0x1f { 0x7f } else { opcode };
        if psdt {
            sqe.0[1] = 0x40;
        }
        if let Ok(io) = IoCommand::parse(&sqe) {
            prop_assert_eq!(IoCommand::parse(&io.to_sqe()), Ok(io));
        }
        if let Ok(admin) = AdminCommand::parse(&sqe) {
            prop_assert_eq!(AdminCommand::parse(&admin.to_sqe()), Ok(admin));
        }
        if let Ok(fabrics) = FabricsCommand::parse(&sqe) {
            prop_assert_eq!(FabricsCommand::parse(&fabrics.to_sqe()), Ok(fabrics));
        }
    }
}

//! Copy: every check, every end, and that nobody sees half of one. Numbers in comments are the edge cases of
//! `docs/conformance.md`.

use super::testing::*;
use super::*;
use crate::block::{Device, LimitsChange};
use crate::nvme::Status;
use crate::nvme::copy::Format;

const OK: Status = Status::SUCCESS;
const BOTH: u16 = 0b1100;

#[test]
fn one_range_many_ranges_and_the_shortest() {
    // 1, 2, 11
    let world = World::new([mem(2048) as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    let bytes = pattern(1, 512);
    io.write(1, 0, &bytes);
    assert_eq!(end(io.copy(&Copy::local(1, 1000, &[(7, 1)]))), (OK, 0));
    assert_eq!(io.read(1, 1000, 1).data, blocks(&bytes, 7, 1));
    assert_eq!(io.read(1, 1001, 1).data, vec![0; 512], "one block, not two");
    // 256 ranges, backwards and with repeats.
    let ranges: Vec<(u64, u32)> = (0..256).map(|i| (511 - i / 2, 1)).collect();
    assert_eq!(end(io.copy(&Copy::local(1, 1024, &ranges))), (OK, 0));
    let expected: Vec<u8> = ranges.iter().flat_map(|&(lba, _)| blocks(&bytes, lba, 1)).copied().collect();
    assert_eq!(io.read(1, 1024, 256).data, expected);
    assert_eq!(io.read(1, 1280, 1).data, vec![0; 512]);
    // Ranges that share blocks with each other.
    assert_eq!(end(io.copy(&Copy::local(1, 1500, &[(0, 4), (2, 4), (2, 4)]))), (OK, 0));
    let expected = [blocks(&bytes, 0, 4), blocks(&bytes, 2, 4), blocks(&bytes, 2, 4)].concat();
    assert_eq!(io.read(1, 1500, 12).data, expected);
}

#[test]
fn limits_hold_at_the_limit_and_one_beyond() {
    // 3, 4, 5
    let small = mem(1024);
    let change = LimitsChange {
        copy_max_range_bytes: Some(8 * BLOCK),
        copy_max_bytes: Some(20 * BLOCK),
        ..Default::default()
    };
    small.change_limits(change).unwrap();
    let world = World::new([small as Dev, null(1 << 30)]);
    let (_admin, io) = world.host("nqn.h").both();
    let too_large = (Status::COPY_SIZE_LIMIT_EXCEEDED, 0);
    for (ranges, expected) in [
        (vec![(0, 8)], (OK, 0)),
        (vec![(0, 9)], too_large),
        (vec![(0, 8), (0, 8), (0, 4)], (OK, 0)),
        (vec![(0, 8), (0, 8), (0, 5)], too_large),
        (vec![(0, 1), (0, 1), (0, 9)], too_large),
    ] {
        assert_eq!(end(io.copy(&Copy::local(1, 100, &ranges))), expected, "{ranges:?}");
    }
    let far = 1 << 29;
    for (ranges, expected) in [
        (vec![(0, 32768)], (OK, 0)),
        (vec![(0, 32769)], too_large),
        (vec![(0, 65535)], too_large),
        (vec![(0, 65536)], too_large),
        // 4 * 32768 is 2^17 blocks, the limit.
        (vec![(0, 32768); 4], (OK, 0)),
        ([vec![(0, 32768); 4], vec![(0, 1)]].concat(), too_large),
        (vec![(0, 32768); 256], too_large),
        (vec![(0, 65536); 256], too_large),
    ] {
        assert_eq!(end(io.copy(&Copy::local(2, far, &ranges))), expected, "{} ranges", ranges.len());
    }
    assert_eq!(world.lines.borrow().len(), 4, "what was refused is no copy");
}

#[test]
fn the_smaller_limit_of_both_ends_binds_a_range() {
    let small = mem(1024);
    small
        .change_limits(LimitsChange { copy_max_range_bytes: Some(4 * BLOCK), ..Default::default() })
        .unwrap();
    let world = World::new([small as Dev, mem(1024)]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    for (dest, source) in [(1, 2), (2, 1)] {
        assert_eq!(io.copy(&Copy::from_namespaces(dest, 0, &[(source, 0, 4)])).status, OK);
        let told = io.copy(&Copy::from_namespaces(dest, 0, &[(source, 0, 5)]));
        assert_eq!(end(told), (Status::COPY_SIZE_LIMIT_EXCEEDED, 0), "{source} to {dest}");
    }
}

//= promise 5
#[test]
fn both_ends_are_checked_before_anything_is_written() {
    // 6, 7
    let device = mem(64);
    let world = World::new([device.clone() as Dev, mem(128)]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    io.write(1, 0, &pattern(2, 16));
    let out = (Status::LBA_OUT_OF_RANGE, 0);
    for (sdlba, ranges, expected) in [
        (60, vec![(0, 4)], (OK, 0)),
        (60, vec![(0, 2), (0, 2)], (OK, 0)),
        (60, vec![(0, 2), (0, 3)], out),
        (64, vec![(0, 1)], out),
        (u64::MAX, vec![(0, 1)], out),
        (u64::MAX - 1, vec![(0, 4)], out),
        (1 << 55, vec![(0, 1)], out),
        (20, vec![(60, 4)], (OK, 0)),
        (20, vec![(60, 5)], out),
        (20, vec![(64, 1)], out),
        (20, vec![(u64::MAX, 1)], out),
        (20, vec![(u64::MAX - 3, 8)], out),
        (30, vec![(0, 4), (8, 4), (63, 2)], out),
    ] {
        let before = contents(&(device.clone() as Dev));
        let told = end(io.copy(&Copy::local(1, sdlba, &ranges)));
        assert_eq!(told, expected, "{ranges:?} to {sdlba}");
        if told.0 != OK {
            assert_eq!(contents(&(device.clone() as Dev)), before, "nothing is written");
        }
    }
    // Each range is checked against the namespace it names.
    assert_eq!(end(io.copy(&Copy::from_namespaces(1, 0, &[(2, 100, 8)]))), (OK, 0));
    assert_eq!(end(io.copy(&Copy::from_namespaces(2, 0, &[(1, 100, 8)]))), out);
}

/// What copying range by range, each as through a buffer, makes of an array of blocks.
fn one_by_one(bytes: &mut [u8], sdlba: u64, ranges: &[(u64, u32)]) {
    let mut to = (sdlba * BLOCK) as usize;
    for &(lba, count) in ranges {
        let (from, len) = ((lba * BLOCK) as usize, count as usize * BLOCK as usize);
        bytes.copy_within(from..from + len, to);
        to += len;
    }
}

//= promise 7
#[test]
fn formats_0_and_1_may_overlap_and_no_block_is_lost() {
    // 8, 29
    let (image, _dir) = file(256);
    for device in [mem(256) as Dev, disk(256), image] {
        let world = World::new([device.clone()]);
        let (_admin, io) = world.host("nqn.h").both();
        let mut expected = pattern(3, 256);
        io.write(1, 0, &expected);
        for (sdlba, ranges) in [
            (10, vec![(8, 20)]),
            (8, vec![(10, 20)]),
            (11, vec![(10, 1)]),
            (40, vec![(40, 16)]),
            (40, vec![(40, 8), (60, 4), (52, 4)]),
            (100, vec![(90, 20), (100, 20), (130, 4)]),
            (100, vec![(120, 20), (100, 20), (110, 20)]),
            (0, vec![(1, 100), (0, 50)]),
            (7, vec![(7, 1), (8, 1), (9, 1)]),
            (200, vec![(180, 21), (199, 2), (30, 1)]),
            // The second range reads what the first has written.
            (8, vec![(0, 8), (8, 8)]),
            (120, vec![(112, 8), (120, 8), (128, 8)]),
            (60, vec![(52, 4), (56, 4), (60, 8)]),
        ] {
            for format in [Format::F0, Format::F1] {
                let told = io.copy(&Copy::local(1, sdlba, &ranges).in_format(format));
                assert_eq!(end(told), (OK, 0), "{ranges:?} to {sdlba} on {}", device.name());
                one_by_one(&mut expected, sdlba, &ranges);
                assert!(contents(&device) == expected, "{ranges:?} to {sdlba} on {}", device.name());
            }
        }
    }
}

//= promise 7
#[test]
fn formats_2_and_3_may_not_overlap() {
    // 9, 10
    let device = mem(256);
    let world = World::new([device.clone() as Dev, mem(256)]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    io.write(1, 0, &pattern(4, 256));
    let overlap = (Status::OVERLAPPING_IO_RANGE, 0);
    // The destination is blocks 100 to 107.
    for (ranges, expected) in [
        (vec![(1, 92, 8)], (OK, 0)),
        (vec![(1, 93, 8)], overlap),
        (vec![(1, 108, 8)], (OK, 0)),
        (vec![(1, 107, 8)], overlap),
        (vec![(1, 100, 8)], overlap),
        (vec![(2, 100, 8)], (OK, 0)),
        (vec![(1, 0, 4), (1, 102, 4)], overlap),
        (vec![(1, 107, 1), (1, 0, 7)], overlap),
        (vec![(1, 0, 7), (1, 100, 1)], overlap),
        (vec![(2, 100, 7), (1, 100, 1)], overlap),
        (vec![(2, 0, 7), (1, 108, 1)], (OK, 0)),
        (vec![(1, 90, 1), (1, 91, 1), (1, 92, 6)], (OK, 0)),
    ] {
        for format in [Format::F2, Format::F3] {
            let before = contents(&(device.clone() as Dev));
            let told = end(io.copy(&Copy::from_namespaces(1, 100, &ranges).in_format(format)));
            assert_eq!(told, expected, "{ranges:?}");
            assert!(told.0 == OK || contents(&(device.clone() as Dev)) == before);
        }
    }
    // A range longer than the destination's part before it, and one that holds all of the destination.
    assert_eq!(end(io.copy(&Copy::from_namespaces(1, 50, &[(2, 0, 1), (1, 40, 60)]))), overlap);
}

#[test]
fn formats_are_refused_until_they_are_enabled_and_by_each_controller_apart() {
    // 12, 13, 18
    let world = World::new([mem(64) as Dev]);
    let host = world.host("nqn.h");
    let (admin, io) = host.both();
    let (admin2, io2) = host.both();
    let across = |format| Copy::from_namespaces(1, 32, &[(1, 0, 1)]).in_format(format);
    let local = |format| Copy::local(1, 32, &[(0, 1)]).in_format(format);
    let off = (Status::INVALID_FIELD, 0);
    for queue in [&io, &io2] {
        assert_eq!(queue.copy(&local(Format::F0)).status, OK);
        assert_eq!(queue.copy(&local(Format::F1)).status, OK);
        assert_eq!(end(queue.copy(&across(Format::F2))), off);
        assert_eq!(end(queue.copy(&across(Format::F3))), off);
    }
    assert_eq!(admin.enable_formats(Format::F2.bit()).status, OK);
    assert_eq!(io.copy(&across(Format::F2)).status, OK);
    assert_eq!(end(io.copy(&across(Format::F3))), off);
    assert_eq!(end(io2.copy(&across(Format::F2))), off, "of the other controller");
    assert_eq!(admin.enable_formats(BOTH).status, OK);
    assert_eq!(io.copy(&across(Format::F3)).status, OK);
    admin.reset();
    admin.enable();
    let io = host.io(&admin, 2);
    assert_eq!(io.copy(&local(Format::F0)).status, OK, "this one is always on");
    assert_eq!(io.copy(&local(Format::F1)).status, OK);
    assert_eq!(end(io.copy(&across(Format::F2))), off, "lost at a reset");
    assert_eq!(end(io.copy(&across(Format::F3))), off);
    // Formats 4h to Fh, enabled or not.
    admin2.enable_formats(0xffff);
    for number in 4..16 {
        let (mut sqe, list) = across(Format::F2).command();
        sqe.set_dword(12, sqe.dword(12) & !0xf00 | number << 8);
        assert_eq!(end(io2.tell(sqe, &list)), off, "format {number}");
    }
}

//= promise 3
#[test]
fn every_source_namespace_is_one_the_host_may_read() {
    // 14: rights are those of the host, not of the subsystem
    let mut make = Make::new([mem(64) as Dev, mem(64)]);
    let hosts = Hosts::These(vec!["nqn.other".to_owned()]);
    make.devices.push((mem(64), NamespaceOptions { hosts, ..Default::default() }));
    let world = make.world();
    let (other_admin, other_io) = world.host("nqn.other").both();
    other_admin.enable_formats(BOTH);
    let secret = pattern(5, 64);
    other_io.write(3, 0, &secret);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    let copy = |ranges: &[(u32, u64, u32)]| end(io.copy(&Copy::from_namespaces(1, 0, ranges)));
    for (snsid, status) in [
        (0, Status::INVALID_NAMESPACE),
        (u32::MAX, Status::INVALID_NAMESPACE),
        (NSID_MAX + 1, Status::INVALID_NAMESPACE),
        (4, Status::INVALID_FIELD),
        (NSID_MAX, Status::INVALID_FIELD),
        (3, Status::INVALID_FIELD),
    ] {
        assert_eq!(copy(&[(snsid, 0, 1)]), (status, 0), "{snsid}");
        assert_eq!(copy(&[(2, 0, 1), (2, 1, 1), (snsid, 0, 1)]), (status, 0), "behind good ones");
    }
    assert_eq!(end(io.copy(&Copy::from_namespaces(3, 0, &[(1, 0, 1)]))), (Status::INVALID_FIELD, 0));
    assert!(io.read(1, 0, 64).data.iter().all(|&b| b == 0), "nothing came over");
    assert_eq!(end(other_io.copy(&Copy::from_namespaces(1, 0, &[(3, 0, 64)]))), (OK, 0), "whoever may, can");
    assert_eq!(io.read(1, 0, 64).data, secret);
}

#[test]
fn ranges_of_several_namespaces_in_any_order() {
    // 15: QEMU went on reading the foreign namespace
    let world = World::new([mem(64) as Dev, mem(64), disk(64)]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    let sources: Vec<Vec<u8>> = (1..=3).map(|n| pattern(10 + n, 32)).collect();
    for (n, bytes) in sources.iter().enumerate() {
        io.write(n as u32 + 1, 0, bytes);
    }
    let ranges = [(2, 3, 2), (1, 3, 2), (3, 3, 2), (3, 9, 1), (1, 10, 1), (2, 0, 1), (1, 0, 1)];
    for format in [Format::F2, Format::F3] {
        let dest = if format == Format::F2 { 32 } else { 48 };
        assert_eq!(end(io.copy(&Copy::from_namespaces(1, dest, &ranges).in_format(format))), (OK, 0));
        let expected: Vec<u8> = ranges
            .iter()
            .flat_map(|&(n, lba, count)| blocks(&sources[n as usize - 1], lba, count.into()))
            .copied()
            .collect();
        assert_eq!(io.read(1, dest, 10).data, expected);
    }
    let lines = world.lines.borrow();
    assert_eq!(lines[0].sources, [2, 1, 3, 1, 2, 1], "one for each run of ranges");
}

#[test]
fn namespaces_with_other_blocks_are_incompatible() {
    // 16, 51
    let mut make = Make::new([mem(64) as Dev]);
    let options = NamespaceOptions { block_bytes: Some(4096), ..Default::default() };
    make.devices.push((mem_of(64 * 4096, 1), options));
    let world = make.world();
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    let incompatible = (Status::INCOMPATIBLE_NAMESPACE, 0);
    assert_eq!(end(io.copy(&Copy::from_namespaces(1, 0, &[(2, 0, 1)]))), incompatible);
    assert_eq!(end(io.copy(&Copy::from_namespaces(1, 0, &[(1, 9, 1), (2, 0, 1)]))), incompatible);
    assert_eq!(end(io.copy(&Copy::from_namespaces(2, 0, &[(1, 0, 1)]))), incompatible);
    assert_eq!(end(io.copy(&Copy::from_namespaces(2, 8, &[(2, 0, 8)]))), (OK, 0));
    let line = world.lines.borrow().last().unwrap().clone();
    assert_eq!((line.bytes, line.good_bytes), (8 * 4096, 8 * 4096));
}

//= promise 2
#[test]
fn fast_only_is_refused_where_the_target_would_read_and_write() {
    // 17
    let gate = Gate::writes(mem(64));
    let world = World::new([mem(64) as Dev, mem(64), gate.clone(), disk(64)]);
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    let copy = |dest, ranges: &[(u32, u64, u32)]| Copy::from_namespaces(dest, 0, ranges).fast_only();
    io.write(2, 0, &pattern(17, 8));
    assert_eq!(end(io.copy(&copy(1, &[(2, 0, 8)]))), (OK, 0), "memory to memory");
    let slow = (Status::FAST_COPY_NOT_POSSIBLE, 0);
    assert_eq!(end(io.copy(&copy(3, &[(2, 0, 8)]))), slow);
    assert_eq!(end(io.copy(&copy(1, &[(2, 0, 8), (4, 0, 1)]))), slow, "one of them is enough");
    assert!(io.copy(&copy(3, &[(2, 0, 8)])).status.do_not_retry(), "read and write instead");
    assert_eq!(gate.held(), 0, "nothing was tried");
    // Without the flag the same goes; in formats 0h and 1h the field is reserved.
    gate.permit(100);
    assert_eq!(end(io.copy(&Copy::from_namespaces(3, 0, &[(2, 0, 8)]))), (OK, 0));
    let (sqe, mut list) = Copy::local(3, 20, &[(0, 8)]).command();
    list[22..24].copy_from_slice(&0x8000u16.to_le_bytes());
    assert_eq!(end(io.tell(sqe, &list)), (OK, 0));
}

#[test]
fn fields_of_what_is_not_there_are_ignored() {
    // 19: protection information, storage tags, directives, limited retry
    let world = World::new([mem(64) as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    io.write(1, 0, &pattern(6, 4));
    let (mut sqe, mut list) = Copy::local(1, 8, &[(0, 4)]).command();
    sqe.set_dword(12, sqe.dword(12) | 0xf << 12 | 0xf << 26 | 3 << 24 | 1 << 31);
    sqe.set_dword(14, 0x1234_5678);
    list[24..32].fill(0xff);
    assert_eq!(end(io.tell(sqe, &list)), (OK, 0));
    assert_eq!(io.read(1, 8, 4).data, pattern(6, 4));
}

#[test]
fn a_list_of_another_length_is_refused() {
    // 38
    let world = World::new([mem(64) as Dev]);
    let (_admin, io) = world.host("nqn.h").both();
    let (sqe, list) = Copy::local(1, 8, &[(0, 1), (1, 1)]).command();
    for len in [0, 32, 63, 65, 80, 4096] {
        let mut other = list.clone();
        other.resize(len, 0);
        assert_eq!(end(io.tell(sqe, &other)), (Status::SGL_LENGTH_INVALID, 0), "{len} bytes");
    }
    let (sqe, list) = Copy::local(1, 8, &[(0, 1)]).in_format(Format::F1).command();
    assert_eq!(list.len(), 40);
    assert_eq!(end(io.tell(sqe, &list[..32])), (Status::SGL_LENGTH_INVALID, 0), "entries of 40 bytes");
}

#[test]
fn a_read_only_destination_is_refused_and_a_read_only_source_read() {
    // 31
    let mut make = Make::new([mem(64) as Dev]);
    make.devices.push((mem(64), NamespaceOptions { read_only: true, ..Default::default() }));
    let world = make.world();
    let (admin, io) = world.host("nqn.h").both();
    admin.enable_formats(BOTH);
    assert_eq!(end(io.copy(&Copy::from_namespaces(1, 0, &[(2, 0, 8)]))), (OK, 0));
    let told = io.copy(&Copy::from_namespaces(2, 0, &[(1, 0, 8)]));
    assert_eq!(end(told), (Status::NAMESPACE_WRITE_PROTECTED, 0));
}

#[test]
fn the_first_check_that_fails_decides() {
    let mut make = Make::new([mem(64) as Dev]);
    make.devices.push((mem(64), NamespaceOptions { read_only: true, ..Default::default() }));
    let big = NamespaceOptions { block_bytes: Some(4096), ..Default::default() };
    make.devices.push((mem_of(1 << 20, 1), big));
    let world = make.world();
    let (admin, io) = world.host("nqn.h").both();
    // Each is wrong in all that follows too.
    let worst = [(1, 64, 65536), (3, 0, 1), (9, 0, 1)];
    let wrong = |dest, ranges: &[(u32, u64, u32)]| end(io.copy(&Copy::from_namespaces(dest, 60, ranges)));
    assert_eq!(wrong(2, &worst), (Status::NAMESPACE_WRITE_PROTECTED, 0));
    let (sqe, list) = Copy::from_namespaces(2, 60, &worst).command();
    assert_eq!(end(io.tell(sqe, &list[..32])), (Status::NAMESPACE_WRITE_PROTECTED, 0), "a short list too");
    assert_eq!(wrong(1, &worst), (Status::INVALID_FIELD, 0), "the format");
    admin.enable_formats(BOTH);
    let (sqe, list) = Copy::from_namespaces(1, 60, &worst).command();
    assert_eq!(end(io.tell(sqe, &list[..32])), (Status::SGL_LENGTH_INVALID, 0));
    assert_eq!(wrong(1, &worst), (Status::INVALID_FIELD, 0), "a namespace that is not there");
    assert_eq!(wrong(1, &worst[..2]), (Status::INCOMPATIBLE_NAMESPACE, 0));
    assert_eq!(wrong(1, &worst[..1]), (Status::COPY_SIZE_LIMIT_EXCEEDED, 0));
    assert_eq!(wrong(1, &[(1, 58, 8)]), (Status::LBA_OUT_OF_RANGE, 0));
    assert_eq!(wrong(1, &[(1, 58, 4)]), (Status::OVERLAPPING_IO_RANGE, 0));
    assert_eq!(wrong(1, &[(1, 56, 4)]), (OK, 0));
}

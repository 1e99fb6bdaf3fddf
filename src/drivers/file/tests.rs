//! Tests of the file driver on real file systems: ext4 or whatever holds the temporary folder, tmpfs, XFS, Btrfs.

#![allow(clippy::cast_possible_truncation)] // offsets and sizes of a few MiB

use super::*;
use crate::block::request::Cancel;
use crate::block::{Buf, CopyRequest, Op};
use crate::drivers::testing::{Driven, Meddled, Mounted, command, pattern};
use crate::reactor::IoOp;
use std::os::unix::fs::FileExt;

pub(super) const WRITE: FileOptions = FileOptions { write: true, create: true };
const XFS: &[&str] = &["mkfs.xfs", "-q", "-m", "reflink=1"];
const BTRFS: &[&str] = &["mkfs.btrfs", "-q"];
pub(super) const MIB: usize = 1 << 20;

/// A fresh file of `len` bytes, in the temporary folder.
pub(super) fn fresh(len: u64) -> (tempfile::TempDir, Arc<File>) {
    fresh_in(&std::env::temp_dir(), len)
}

fn fresh_in(dir: &Path, len: u64) -> (tempfile::TempDir, Arc<File>) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let file = File::open(dir.path().join("f"), WRITE).unwrap();
    file.set_len(len).unwrap();
    (dir, file)
}

pub(super) fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len).unwrap()
}

fn open_err(path: impl AsRef<Path>) -> (Kind, String) {
    let error = File::open(path, FileOptions::default()).err().expect("refused");
    (error.kind(), error.to_string())
}

//= promise 3
#[test]
fn only_regular_files_are_opened_and_a_fifo_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(command(&["mkfifo", fifo.to_str().unwrap()]).is_some());
    let (kind, text) = open_err(&fifo);
    assert_eq!(kind, Kind::InvalidInput);
    assert!(text.contains("is a FIFO"), "{text}");
    assert!(open_err(dir.path()).1.contains("is a folder"));
    assert_eq!(
        open_err("/dev/zero").1,
        "/dev/zero: is a character device (e.g. a terminal or /dev/zero); blkcopy copies regular files and block devices"
    );
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(open_err(&socket).1.contains("is a socket"));
    assert_eq!(open_err(dir.path().join("none")).0, Kind::NotFound);
    std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
    let error = File::open(dir.path().join("dangling"), WRITE).err().unwrap();
    assert!(error.to_string().contains("dangling symbolic link"), "{error}");
}

#[test]
fn identity_is_the_inode_and_generation_sees_every_change() {
    let (dir, file) = fresh(8192);
    assert!(file.created());
    std::fs::hard_link(file.path(), dir.path().join("other")).unwrap();
    let other = File::open(dir.path().join("other"), FileOptions::default()).unwrap();
    assert_eq!(file.identity(), other.identity());
    assert!(!other.created() && other.read_only());
    let before = other.generation();
    assert_eq!(before, other.generation());
    file.set_len(8193).unwrap();
    assert_ne!(before, other.generation());
    assert_eq!((other.size(), file.size()), (8192, 8193), "a source keeps the size seen at open");
    file.sync_parent().unwrap();
    assert_eq!(other.set_len(1).unwrap_err().kind(), Kind::ReadOnly);
    assert_eq!(file.set_len(u64::MAX).unwrap_err().kind(), Kind::InvalidInput);
}

//= promise 3
#[test]
fn a_path_that_is_replaced_keeps_meaning_the_file_that_was_opened() {
    let (_dir, file) = fresh(MIB as u64);
    std::fs::rename(file.path(), file.path().with_extension("old")).unwrap();
    std::fs::write(file.path(), b"another").unwrap();
    let mut q = Driven::new(file.clone());
    let bytes = pattern(1, MIB);
    assert!(q.write(0, &bytes).result.is_ok());
    assert_eq!(std::fs::read(file.path().with_extension("old")).unwrap(), bytes);
    assert_eq!(std::fs::read(file.path()).unwrap(), b"another");
}

/// Any mix of operations equals the same on a flat array, at aligned and ragged offsets, on each file system.
fn oracle(dir: &Path, seed: u64) {
    let len = 3 * MIB + 777;
    let (_keep, file) = fresh_in(dir, len as u64);
    let mut q = Driven::new(file.clone());
    let mut model = vec![0u8; len];
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..300u64 {
        let unit = [1, 512, 4096][random(3) as usize];
        let offset = random(len as u64) / unit * unit;
        let n = (random(600 << 10) / unit * unit).min(len as u64 - offset);
        let (r, at) = (range(offset, n), offset as usize..(offset + n) as usize);
        match random(8) {
            0..3 => {
                let bytes = pattern(step, n as usize);
                let buf = Buf::copy_of(&bytes).unwrap();
                let done = q.run(Op::Write { range: r, buf, fua: random(10) == 0 });
                assert!(done.result.is_ok() && done.good_bytes == n, "{done:?}");
                model[at].copy_from_slice(&bytes);
            }
            3 => {
                let done = q.run(Op::WriteZeroes { range: r, may_unmap: random(2) == 0, lazy: false });
                assert!(done.result.is_ok() && done.good_bytes == n, "{done:?}");
                model[at].fill(0);
            }
            4 => {
                let mut expected = model[at.clone()].to_vec();
                let wrong = if n > 0 && random(2) == 0 { Some(random(n)) } else { None };
                if let Some(w) = wrong {
                    expected[w as usize] ^= 1;
                }
                let done = q.run(Op::Compare { range: r, buf: Buf::copy_of(&expected).unwrap() });
                assert_eq!(done.good_bytes, wrong.unwrap_or(n));
                assert_eq!(done.result.err().map(|e| e.kind()), wrong.map(|_| Kind::Mismatch));
            }
            5 => file.core.drop_pages(ByteRange::to(len as u64)),
            6 if n > 0 && offset > 0 => {
                // Inside the file: from the front to here, as far as both fit without touching.
                let n = n.min(offset);
                let from = random(offset - n + 1);
                let done = q.copy(Method::CopyFileRange, file.clone(), from, offset, n);
                assert!(done.result.is_ok() && done.good_bytes == n, "{done:?}");
                assert!(done.copy.unwrap().calls.calls[Call::CopyFileRange as usize] >= 1);
                model.copy_within(from as usize..(from + n) as usize, offset as usize);
            }
            _ => {
                let done = q.read(offset, n as usize);
                assert!(done.result.is_ok() && done.good_bytes == n, "{done:?}");
                assert!(done.buf[..] == model[at], "step {step}: read {r} differs");
            }
        }
    }
    assert!(q.run(Op::Flush).result.is_ok());
    assert!(std::fs::read(file.path()).unwrap() == model, "the file differs from the model");
    // The extents cover the file, and holes are zero.
    let mut at = 0;
    while at < len as u64 {
        let e = file.next_extent(range(at, len as u64 - at)).unwrap();
        assert!(e.len > 0);
        let end = at + e.len;
        assert!(e.content == Content::Data || model[at as usize..end as usize].iter().all(|&b| b == 0));
        at = end;
    }
}

//= promise 1
#[test]
fn any_mix_of_operations_equals_a_flat_array() {
    oracle(&std::env::temp_dir(), 1);
    if Path::new("/dev/shm").is_dir() {
        oracle(Path::new("/dev/shm"), 2);
    } else {
        eprintln!("SKIPPED any_mix_of_operations_equals_a_flat_array: no /dev/shm");
    }
}

//= promise 1
#[test]
fn any_mix_of_operations_on_xfs_and_btrfs() {
    for mkfs in [XFS, BTRFS] {
        if let Some(fs) = Mounted::new("any_mix_of_operations_on_xfs_and_btrfs", mkfs, 400 << 20) {
            oracle(&fs.dir, 3);
        }
    }
}

/// Pages of a file that are cached; `None`, said aloud, where that or direct I/O cannot be had.
pub(super) fn cached_pages(test: &str, file: &File) -> Option<impl Fn(usize, usize) -> u64 + use<>> {
    let fd = file.fd().clone();
    if file.limits().direct_io_align.is_none() || crate::sys::ioctl::cachestat(&*fd, 0, 1).is_err() {
        eprintln!("SKIPPED {test}: no O_DIRECT or no cachestat");
        return None;
    }
    Some(move |from: usize, len: usize| {
        crate::sys::ioctl::cachestat(&*fd, from as u64, len as u64).unwrap().cached
    })
}

#[test]
fn while_nothing_here_writes_the_way_follows_the_page_cache_and_leaves_it_as_it_was() {
    let (_dir, writer) = fresh(4 * MIB as u64);
    assert!(Driven::new(writer.clone()).write(0, &pattern(1, 4 * MIB)).result.is_ok());
    let path = writer.path().to_owned();
    drop(writer);
    let file = File::open(&path, FileOptions::default()).unwrap();
    let Some(cached) = cached_pages("while_nothing_here_writes...", &file) else { return };
    let mut q = Driven::new(file.clone());
    assert!(q.read(0, 2 * MIB).result.is_ok());
    assert_eq!(q.reactor.log(), ["read direct 0+2097152"]);
    assert_eq!(cached(0, 4 * MIB), 0);
    // Ragged: through the cache as a whole, which is empty again afterwards.
    assert!(q.read(100, MIB).result.is_ok());
    assert_eq!(q.reactor.log(), ["read buffered 100+1048576", "call"]);
    assert!(cached(4096, MIB - 4096) == 0, "pages that were not there before are dropped");
    // Small: buffered, and then resident; a resident range is used through the cache and stays.
    std::fs::File::open(&path).unwrap().read_exact_at(&mut [0; 65536], MIB as u64).unwrap();
    let there = cached(MIB, 65536);
    assert_eq!(there, 16);
    assert_eq!(q.read(MIB as u64, 65536).buf[..], pattern(1, 4 * MIB)[MIB..][..65536]);
    assert_eq!(q.reactor.log(), ["read buffered 1048576+65536"]);
    // Partly resident and ragged: buffered, nothing dropped.
    assert!(q.read(MIB as u64 - 100, 2 * 65536).result.is_ok());
    assert_eq!(cached(MIB, 65536), there);
}

#[test]
fn short_reads_and_writes_are_continued_until_whole() {
    let (_dir, file) = fresh(MIB as u64);
    let mut q = Driven::new(file.clone());
    for most in [0, 1, 4096, 5000] {
        q.reactor.meddle(move |_| Meddled::AtMost(most.max(1)));
        let bytes = pattern(most as u64, 300_000);
        let done = q.write(8192, &bytes);
        assert!(done.result.is_ok() && done.good_bytes == 300_000, "{done:?}");
        let done = q.read(8192, 300_000);
        assert!(done.result.is_ok() && done.buf[..] == bytes, "at most {most}");
    }
    assert_eq!(q.queue.counters().written_bytes, 4 * 300_000);
}

#[test]
fn a_direct_request_that_is_refused_goes_through_the_cache_for_good() {
    let (_dir, file) = fresh(MIB as u64);
    if file.limits().direct_io_align.is_none() {
        eprintln!("SKIPPED a_direct_request_that_is_refused_goes_through_the_cache_for_good: no O_DIRECT");
        return;
    }
    let mut q = Driven::new(file.clone());
    q.reactor.meddle(|op| match op {
        IoOp::Read { direct: true, .. } | IoOp::Write { direct: true, .. } => Meddled::Fail(libc::EINVAL),
        _ => Meddled::Nothing,
    });
    let bytes = pattern(9, MIB);
    assert!(q.write(0, &bytes).result.is_ok());
    assert!(q.read(0, MIB).buf[..] == bytes);
    assert_eq!(
        q.reactor.log(),
        ["write direct 0+1048576", "write buffered 0+1048576", "read buffered 0+1048576"]
    );
}

#[test]
fn a_buffer_that_begins_anywhere_does_not_end_direct_requests() {
    let (_dir, file) = fresh(MIB as u64);
    if file.limits().direct_io_align.is_none() {
        eprintln!("SKIPPED a_buffer_that_begins_anywhere_does_not_end_direct_requests: no O_DIRECT");
        return;
    }
    let mut q = Driven::new(file.clone());
    // As devices that take any offset in the file, but not in memory.
    q.reactor.meddle(|op| match op {
        IoOp::Write { direct: true, buf, .. } if !buf.is_at_front() => Meddled::Fail(libc::EINVAL),
        _ => Meddled::Nothing,
    });
    let bytes = pattern(9, MIB);
    let mut buf = Buf::copy_of(&[&bytes[..4], &bytes].concat()).unwrap();
    buf.narrow(4, MIB);
    assert!(q.run(Op::Write { range: range(0, MIB as u64), buf, fua: false }).result.is_ok());
    assert!(q.run(Op::Flush).result.is_ok());
    file.core.drop_pages(ByteRange::to(MIB as u64));
    assert!(q.read(0, MIB).buf[..] == bytes);
    let log = q.reactor.log();
    assert_eq!(log, ["call", "sync", "read direct 0+1048576"]);
}

#[test]
fn a_source_that_shrank_is_told_from_zeroes() {
    let (_dir, writer) = fresh(MIB as u64);
    assert!(Driven::new(writer.clone()).write(0, &pattern(1, MIB)).result.is_ok());
    let file = File::open(writer.path(), FileOptions::default()).unwrap();
    writer.set_len(300_000).unwrap();
    let mut q = Driven::new(file.clone());
    for (offset, good) in [(0, 300_000), (200_000, 100_000), (299_999, 1), (300_000, 0), (524_288, 0)] {
        let done = q.read(offset, MIB - offset as usize);
        let error = done.result.unwrap_err();
        assert_eq!((error.kind(), done.good_bytes), (Kind::SourceChanged, good));
        let at = offset.max(300_000);
        assert!(error.to_string().contains(&format!("ended at byte {at}, not 1048576")), "{error}");
    }
    // And a hole is never made of the missing end.
    let error = file.next_extent(range(400_000, 1000)).unwrap_err();
    assert_eq!(error.kind(), Kind::SourceChanged);
    let (_d, dest) = fresh(MIB as u64);
    let done = Driven::new(dest).copy(Method::CopyFileRange, file, 200_000, 0, 200_000);
    assert_eq!((done.good_bytes, done.result.unwrap_err().kind()), (100_000, Kind::SourceChanged));
}

//= promise 6
#[test]
fn a_failed_flush_poisons_every_handle_until_it_is_reopened() {
    let (_dir, file) = fresh(8192);
    let (mut a, mut b) = (Driven::new(file.clone()), Driven::new(file.clone()));
    a.reactor.meddle(|op| match op {
        IoOp::Sync { .. } => Meddled::Fail(libc::EIO),
        _ => Meddled::Nothing,
    });
    assert!(a.write(0, &[1; 4096]).result.is_ok());
    assert_eq!(a.run(Op::Flush).result.unwrap_err().kind(), Kind::Io);
    for q in [&mut a, &mut b] {
        assert_eq!(q.run(Op::Flush).result.unwrap_err().kind(), Kind::Poisoned);
        assert_eq!(q.read(0, 10).result.unwrap_err().kind(), Kind::Poisoned);
        assert_eq!(q.write(0, &[1; 10]).result.unwrap_err().kind(), Kind::Poisoned);
    }
    let again = File::open(file.path(), WRITE).unwrap();
    assert!(Driven::new(again).run(Op::Flush).result.is_ok());
}

//= promise files
#[test]
fn each_queue_flushes_through_an_open_of_its_own() {
    let (_dir, file) = fresh(8192);
    let flushed = || {
        let (mut q, fds) = (Driven::new(file.clone()), Arc::new(std::sync::Mutex::new(Vec::new())));
        let seen = fds.clone();
        q.reactor.meddle(move |op| {
            if let IoOp::Sync { file, .. } = op {
                seen.lock().unwrap().push(file.clone());
            }
            Meddled::Nothing
        });
        assert!(q.run(Op::Flush).result.is_ok());
        fds.lock().unwrap().pop().unwrap()
    };
    // Two descriptors of one open share their position: these do not.
    let (a, b) = (flushed(), flushed());
    rustix::fs::seek(&*a, rustix::fs::SeekFrom::Start(77)).unwrap();
    assert_eq!(rustix::fs::seek(&*b, rustix::fs::SeekFrom::Current(0)).unwrap(), 0);
    assert_eq!(rustix::fs::seek(&**file.fd(), rustix::fs::SeekFrom::Current(0)).unwrap(), 0);
}

/// A durable write at `offset` while the sync, or the durable write itself, fails with `errno`; then the kind of a
/// flush's error.
fn flush_behind_a_durable_write(offset: u64, len: usize, errno: i32, sync: bool) -> Option<Kind> {
    let (_dir, file) = fresh(MIB as u64 + 1);
    let mut q = Driven::new(file);
    q.reactor.meddle(move |op| match op {
        IoOp::Sync { .. } if sync => Meddled::Fail(errno),
        IoOp::Write { dsync, .. } if *dsync || !sync => Meddled::Fail(errno),
        _ => Meddled::Nothing,
    });
    let buf = Buf::copy_of(&pattern(1, len)).unwrap();
    let done = q.run(Op::Write { range: range(offset, len as u64), buf, fua: true });
    assert!(done.result.is_err() && done.good_bytes == 0, "{done:?}");
    q.reactor.meddle(|_| Meddled::Nothing);
    q.run(Op::Flush).result.err().map(|e| e.kind())
}

#[test]
fn a_durable_write_that_fails_may_have_taken_another_writes_error_away() {
    for errno in [libc::EIO, libc::ENOSPC, libc::ENODATA, libc::EDQUOT, libc::ETIMEDOUT, libc::ENOLINK] {
        let kind = flush_behind_a_durable_write(MIB as u64 - 4999, 5000, errno, true);
        assert_eq!(kind, Some(Kind::Poisoned), "{errno}");
    }
    // The write itself does not fit: nothing else is lost.
    assert_eq!(flush_behind_a_durable_write(MIB as u64 - 4999, 5000, libc::ENOSPC, false), None);
    if fresh(MIB as u64).1.limits().direct_io_align.is_none() {
        eprintln!("SKIPPED a_durable_write_that_fails... (direct): no O_DIRECT");
        return;
    }
    for (errno, kind) in [
        (libc::EIO, Some(Kind::Poisoned)),
        (libc::ENODATA, Some(Kind::Poisoned)),
        (libc::ETIMEDOUT, Some(Kind::Poisoned)),
        (libc::ENOSPC, None),
    ] {
        assert_eq!(flush_behind_a_durable_write(0, MIB, errno, false), kind, "{errno}");
    }
}

#[test]
fn a_durable_write_through_the_cache_is_synced_behind_it() {
    let (_dir, file) = fresh(MIB as u64 + 1);
    let mut q = Driven::new(file);
    let at = MIB as u64 - 4999;
    let buf = Buf::copy_of(&pattern(1, 5000)).unwrap();
    let done = q.run(Op::Write { range: range(at, 5000), buf, fua: true });
    assert!(done.result.is_ok() && done.good_bytes == 5000, "{done:?}");
    assert_eq!(done.buf[..], pattern(1, 5000), "the buffer comes back");
    assert_eq!(q.reactor.log(), [format!("write buffered {at}+5000"), "sync".into()]);
}

#[test]
fn what_cannot_be_served_is_refused_before_anything_is_done() {
    let (_dir, file) = fresh(8192);
    let source = File::open(file.path(), FileOptions::default()).unwrap();
    let mut q = Driven::new(source.clone());
    assert_eq!(q.write(0, &[1]).result.unwrap_err().kind(), Kind::ReadOnly);
    assert_eq!(q.read(8000, 193).result.unwrap_err().kind(), Kind::OutOfRange);
    let mut q = Driven::new(file.clone());
    let kind = |done: crate::block::Completion| done.result.unwrap_err().kind();
    assert_eq!(kind(q.copy(Method::CopyFileRange, source.clone(), 0, 4000, 4096)), Kind::Overlap);
    assert_eq!(kind(q.copy(Method::Memory, source.clone(), 0, 4096, 4096)), Kind::Unsupported);
    assert_eq!(kind(q.copy(Method::CopyFileRange, source.clone(), 8000, 0, 193)), Kind::OutOfRange);
    let mem = crate::drivers::mem::Mem::new("mem", 8192, NonZeroU32::new(512).unwrap()).unwrap();
    assert_eq!(kind(q.copy(Method::CopyFileRange, Arc::new(mem), 0, 0, 512)), Kind::Unsupported);
    let (_big_dir, big) = fresh(1 << 40);
    let done =
        Driven::new(big.clone()).copy(Method::CopyFileRange, big.clone(), 0, 1 << 39, RANGE_CALL_MAX + 1);
    assert_eq!(kind(done), Kind::TooLarge { max_bytes: RANGE_CALL_MAX });
    let read = Op::Read { range: range(0, 100), buf: Buf::alloc(99).unwrap() };
    assert_eq!(kind(q.run(read)), Kind::InvalidInput);
    assert!(q.reactor.log().is_empty());
    assert!(q.read(8192, 0).result.is_ok(), "nothing at the very end is fine");
}

#[test]
fn holes_are_found_with_one_pair_of_seeks_an_extent() {
    let (_dir, file) = fresh(8 * MIB as u64);
    let writer = std::fs::File::options().write(true).open(file.path()).unwrap();
    for at in [1, 3, 5] {
        writer.write_all_at(&pattern(at, MIB), at * MIB as u64).unwrap();
    }
    let (mut at, mut seen) = (0, Vec::new());
    while at < 8 * MIB as u64 {
        // Asked in small steps, as a planner does.
        let e = file.next_extent(range(at, (256 << 10).min(8 * MIB as u64 - at))).unwrap();
        at += e.len;
        match seen.last_mut() {
            Some((content, len)) if *content == e.content => *len += e.len,
            _ => seen.push((e.content, e.len)),
        }
    }
    if seen.len() == 1 {
        eprintln!("SKIPPED holes_are_found_with_one_pair_of_seeks_an_extent: no SEEK_HOLE here");
        return;
    }
    let (hole, data, mib) = (Content::Hole, Content::Data, MIB as u64);
    assert_eq!(
        seen,
        [(hole, mib), (data, mib), (hole, mib), (data, mib), (hole, mib), (data, mib), (hole, 2 * mib)]
    );
    // 20 pieces of hole take one seek each; 3 runs of data one more seek each, however many pieces they are asked in.
    let seeks = file.counters().calls[Call::Lseek as usize];
    assert!(seeks <= 20 + 2 * 3, "{seeks} seeks");
}

//= promise 1
#[test]
fn data_written_into_a_known_hole_is_never_taken_for_a_hole() {
    let (_dir, file) = fresh(4 * MIB as u64);
    let mut q = Driven::new(file.clone());
    for at in [3u64, 1, 2, 0] {
        let all = ByteRange::to(4 * MIB as u64);
        let before = file.next_extent(all).unwrap();
        assert!(q.write(at * MIB as u64, &pattern(at, MIB)).result.is_ok());
        let e = file.next_extent(range(at * MIB as u64, MIB as u64)).unwrap();
        assert_eq!(e.content, Content::Data, "before: {before:?}");
    }
}

#[test]
fn a_full_file_system_is_never_silent() {
    let Some(fs) = Mounted::new("a_full_file_system_is_never_silent", &["mkfs.ext4", "-q"], 32 << 20) else {
        return;
    };
    let file = File::open(fs.path("f"), WRITE).unwrap();
    file.set_len(1 << 30).unwrap();
    // A write without space fails at once or at the flush.
    let mut q = Driven::new(file.clone());
    let mut failed = None;
    for i in 0..64u64 {
        let done = q.write(i * MIB as u64, &pattern(i, MIB));
        if let Err(e) = done.result {
            assert!(done.good_bytes < MIB as u64);
            failed = Some(e.kind());
            break;
        }
    }
    let failed = failed.or_else(|| q.run(Op::Flush).result.err().map(|e| e.kind()));
    assert_eq!(failed, Some(Kind::NoSpace));
}

//= promise 3
#[test]
fn a_read_only_mount_refuses_writers_in_words() {
    let Some(fs) = Mounted::new("a_read_only_mount...", &["mkfs.ext4", "-q"], 16 << 20) else { return };
    std::fs::write(fs.path("f"), b"x").unwrap();
    assert!(command(&["mount", "-o", "remount,ro", fs.dir.to_str().unwrap()]).is_some());
    assert_eq!(File::open(fs.path("f"), WRITE).err().unwrap().kind(), Kind::ReadOnly);
    assert_eq!(File::open(fs.path("new"), WRITE).err().unwrap().kind(), Kind::ReadOnly);
    assert!(File::open(fs.path("f"), FileOptions::default()).is_ok());
}

#[test]
fn extents_are_shared_where_the_file_system_can_and_refused_with_the_right_word() {
    for mkfs in [XFS, BTRFS] {
        let Some(fs) = Mounted::new("extents_are_shared...", mkfs, 400 << 20) else { continue };
        let (source, dest) =
            (File::open(fs.path("a"), WRITE).unwrap(), File::open(fs.path("b"), WRITE).unwrap());
        let len = 8 * MIB as u64 + 1000;
        source.set_len(len).unwrap();
        dest.set_len(len).unwrap();
        let bytes = pattern(5, 4 * MIB);
        assert!(Driven::new(source.clone()).write(0, &bytes).result.is_ok());
        let paths = source.copy_paths();
        assert_eq!(paths, dest.copy_paths());
        let methods: Vec<_> = paths.iter().map(|p| (p.method, p.preferred)).collect();
        assert_eq!(methods, [(Method::Reflink, true), (Method::CopyFileRange, false)]);
        assert_eq!(paths[0].align, 4096);
        let mut q = Driven::new(dest.clone());
        let done = q.copy(Method::Reflink, source.clone(), 0, 0, len);
        assert!(done.result.is_ok() && done.good_bytes == len, "{:?}", done.result);
        assert_eq!(done.copy.unwrap().calls.calls[Call::Ficlonerange as usize], 1);
        assert_eq!(q.queue.counters().read_bytes + q.queue.counters().written_bytes, 0);
        let copied = std::fs::read(fs.path("b")).unwrap();
        assert!(copied.len() as u64 == len && copied[..4 * MIB] == bytes[..]);
        assert!(copied[4 * MIB..].iter().all(|&b| b == 0));
        let map = command(&["filefrag", "-v", fs.path("b").to_str().unwrap()]).unwrap_or("shared".into());
        assert!(map.contains("shared"), "{map}");
        // Ragged: refused as "not supported", nothing changed, so the caller may step down.
        let done = q.copy(Method::Reflink, source.clone(), 512, 4096, 4096);
        assert_eq!((done.good_bytes, done.result.unwrap_err().kind()), (0, Kind::Unsupported));
        // Another file system: the same word.
        let (_d, elsewhere) = fresh(len);
        let done = Driven::new(elsewhere.clone()).copy(Method::Reflink, source.clone(), 0, 0, 4096);
        assert_eq!(done.result.unwrap_err().kind(), Kind::Unsupported);
        assert_ne!(elsewhere.copy_paths().last().unwrap().scope, paths[0].scope);
    }
}

#[test]
fn plain_file_systems_list_copy_file_range_but_do_not_prefer_it() {
    for (dir, methods) in [(std::env::temp_dir(), 1), (PathBuf::from("/dev/shm"), 1)] {
        if !dir.is_dir() {
            continue;
        }
        let (_d, file) = fresh_in(&dir, 10);
        let paths = file.copy_paths();
        if paths[0].method == Method::Reflink {
            continue; // the temporary folder shares extents on this machine
        }
        assert_eq!(paths.len(), methods);
        assert!(!paths[0].preferred && paths[0].method == Method::CopyFileRange);
        let done = Driven::new(file.clone()).copy(Method::Reflink, file.clone(), 0, 5, 5);
        assert_eq!(done.result.unwrap_err().kind(), Kind::Unsupported);
    }
}

#[test]
fn subvolumes_of_one_file_system_share_a_scope() {
    let Some(fs) = Mounted::new("subvolumes_of_one_file_system_share_a_scope", BTRFS, 200 << 20) else {
        return;
    };
    if command(&["btrfs", "-q", "subvolume", "create", fs.path("sub").to_str().unwrap()]).is_none() {
        eprintln!("SKIPPED subvolumes_of_one_file_system_share_a_scope: no btrfs command");
        return;
    }
    let (a, b) = (File::open(fs.path("a"), WRITE).unwrap(), File::open(fs.path("sub/b"), WRITE).unwrap());
    assert_eq!(a.copy_paths(), b.copy_paths());
    assert_ne!(a.identity(), b.identity());
    a.set_len(MIB as u64).unwrap();
    b.set_len(MIB as u64).unwrap();
    assert!(Driven::new(a.clone()).write(0, &pattern(1, MIB)).result.is_ok());
    assert!(Driven::new(b.clone()).copy(Method::Reflink, a, 0, 0, MIB as u64).result.is_ok());
    assert!(std::fs::read(b.path()).unwrap() == pattern(1, MIB));
}

//= promise 6
#[test]
fn a_cancelled_copy_says_what_was_done_and_force_unit_access_syncs() {
    let (_dir, source) = fresh(MIB as u64);
    let (_d, dest) = fresh(MIB as u64);
    let mut q = Driven::new(dest.clone());
    let copy = |cancel: Cancel| {
        Op::Copy(Box::new(CopyRequest {
            method: Method::CopyFileRange,
            source: source.clone(),
            sources: smallvec::smallvec![range(0, 4096), range(8192, 4096)],
            dest: range(100, 8192),
            fua: true,
            must: None,
            cancel,
        }))
    };
    let done = q.run(copy(Cancel::default()));
    assert!(done.result.is_ok());
    let calls = done.copy.unwrap().calls.calls;
    assert_eq!((calls[Call::CopyFileRange as usize], calls[Call::Fdatasync as usize]), (2, 1));
    let cancel = Cancel::default();
    cancel.set();
    let done = q.run(copy(cancel));
    assert_eq!((done.good_bytes, done.result.unwrap_err().kind()), (0, Kind::Cancelled));
}

#[test]
fn a_queue_needs_a_reactor() {
    let (_dir, file) = fresh(1);
    let error = file.open_queue().err().unwrap();
    assert!(error.to_string().contains("no reactor"), "{error}");
}

#[test]
fn every_engine_serves_files() {
    use crate::reactor::local::{Client, Local};
    use crate::reactor::{EngineChoice, choose};
    for engine in [EngineChoice::Pool, EngineChoice::Uring] {
        let reactor = match choose(engine, false) {
            Ok((reactor, _)) => reactor,
            Err(error) => {
                eprintln!("SKIPPED every_engine_serves_files on {engine:?}: {error}");
                continue;
            }
        };
        let len = 6 * MIB + 777;
        let (_a, source) = fresh(len as u64);
        let (_b, dest) = fresh(len as u64);
        let bytes = pattern(6, len);
        let piece = 300 << 10; // every direct piece has a neighbour in its folio; the last one is ragged
        let pieces =
            || (0..len.div_ceil(piece)).map(|i| range((i * piece) as u64, piece.min(len - i * piece) as u64));
        let local = Local::new(reactor);
        local.block_on(async {
            let (from, to) = (Client::open(source.clone()).unwrap(), Client::open(dest.clone()).unwrap());
            let writes: Vec<_> = pieces()
                .map(|range| {
                    let buf = Buf::copy_of(&bytes[range.offset() as usize..range.end() as usize]).unwrap();
                    from.submit(Op::Write { range, buf, fua: range.offset() == 0 })
                })
                .collect();
            for write in writes {
                assert!(write.await.result.is_ok());
            }
            assert!(from.submit(Op::Flush).await.result.is_ok());
            let done = to
                .submit(Op::Copy(Box::new(CopyRequest {
                    method: Method::CopyFileRange,
                    source: source.clone(),
                    sources: smallvec::smallvec![range(0, len as u64)],
                    dest: range(0, len as u64),
                    fua: true,
                    must: None,
                    cancel: Cancel::default(),
                })))
                .await;
            assert!(done.result.is_ok() && done.good_bytes == len as u64, "{done:?}");
            let zeroes = Op::WriteZeroes { range: range(4096, 8192), may_unmap: true, lazy: false };
            assert!(to.submit(zeroes).await.result.is_ok());
            for client in [&from, &to] {
                let reads: Vec<_> = pieces()
                    .map(|range| {
                        let buf = Buf::alloc(range.len() as usize).unwrap();
                        (range, client.submit(Op::Read { range, buf }))
                    })
                    .collect();
                for (range, read) in reads {
                    let done = read.await;
                    assert!(done.result.is_ok(), "{done:?}");
                    let mut expected = bytes[range.offset() as usize..range.end() as usize].to_vec();
                    if range.offset() == 0 && std::ptr::eq(client, &to) {
                        expected[4096..12288].fill(0);
                    }
                    assert!(done.buf[..] == expected, "{engine:?} {range}");
                }
            }
        });
    }
}

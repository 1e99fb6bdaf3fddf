//! Tests of the one way of I/O: what goes direct, what waits for what.

#![allow(clippy::cast_possible_truncation)] // offsets and sizes of a few MiB

use super::tests::{MIB, WRITE, cached_pages, fresh, range};
use super::*;
use crate::block::{Buf, Op};
use crate::drivers::testing::{Driven, Mounted, pattern};
use crate::reactor::IoOp;

//= promise files
#[test]
fn a_file_that_may_be_written_goes_direct_at_every_offset_by_every_handle() {
    let len = 4 * MIB + 100;
    let (_dir, file) = fresh(len as u64);
    let Some(cached) = cached_pages("a_file_that_may_be_written_goes_direct...", &file) else { return };
    let reader = File::open(file.path(), FileOptions::default()).unwrap();
    let (mut q, mut r) = (Driven::new(file.clone()), Driven::new(reader));
    let mut model = vec![0; len];
    for (i, (offset, n)) in
        [(0, MIB), (MIB, 100), (MIB - 1, 2), (3, 4093), (77, 2 * MIB + 5), (4096, 4096)].iter().enumerate()
    {
        let bytes = pattern(i as u64, *n);
        let done = q.write(*offset as u64, &bytes);
        assert!(done.result.is_ok() && done.good_bytes == *n as u64, "{done:?}");
        model[*offset..offset + n].copy_from_slice(&bytes);
        // All around it, and by a handle that only reads.
        let (from, to) = (offset.saturating_sub(5000), (offset + n + 5000).min(4 * MIB));
        assert!(q.read(from as u64, to - from).buf[..] == model[from..to]);
        assert!(r.read(from as u64, to - from).buf[..] == model[from..to]);
    }
    assert_eq!(cached(0, len), 0);
    for q in [&q, &r] {
        assert!(q.reactor.log().iter().all(|l| !l.contains("buffered")));
    }
    assert_eq!(file.core.gate.passed().switches, 0);
    // The last bytes of a file that ends inside a block go through the cache, and what comes then goes along for a
    // while.
    assert!(q.write(4 * MIB as u64 - 10, &pattern(9, 110)).result.is_ok());
    model[4 * MIB - 10..].copy_from_slice(&pattern(9, 110));
    assert!(q.write(0, &pattern(10, 8192)).result.is_ok());
    model[..8192].copy_from_slice(&pattern(10, 8192));
    assert_eq!(q.reactor.log(), ["write buffered 4194294+110", "write buffered 0+8192"]);
    for i in 0..2 * u64::from(crate::block::way::CACHED_RUN) {
        let at = (i * 8192) as usize;
        assert!(q.write(i * 8192, &pattern(i, 4096)).result.is_ok());
        model[at..at + 4096].copy_from_slice(&pattern(i, 4096));
        assert!(r.read(0, len).buf[..] == model);
    }
    let passed = file.core.gate.passed();
    assert_eq!((passed.switches, cached(0, 4 * MIB)), (2, 0), "{passed:?}");
    assert!(q.run(Op::Flush).result.is_ok());
    assert!(std::fs::read(file.path()).unwrap() == model);
}

//= promise files
#[test]
fn both_ways_are_never_in_flight_together_whatever_handle_they_come_by() {
    let (_dir, file) = fresh(8 * MIB as u64 + 1);
    if file.limits().direct_io_align.is_none() {
        eprintln!("SKIPPED both_ways_are_never_in_flight_together...: no O_DIRECT");
        return;
    }
    let other = File::open(file.path(), WRITE).unwrap();
    let (mut a, mut b) = (Driven::new(file.clone()), Driven::new(other));
    let write = |offset: u64, len: usize| Op::Write {
        range: range(offset, len as u64),
        buf: Buf::copy_of(&pattern(offset, len)).unwrap(),
        fua: false,
    };
    let tail = 8 * MIB as u64;
    a.reactor.hold();
    b.reactor.hold();
    a.submit(1, write(0, MIB));
    b.submit(2, write(tail, 1)); // through the cache: waits
    b.submit(3, write(4 * MIB as u64, 4096)); // after it in line: waits too
    a.submit(4, Op::Read { range: range(6 * MIB as u64, 4096), buf: Buf::alloc(4096).unwrap() });
    assert_eq!((a.reactor.log(), b.reactor.log()), (vec!["write direct 0+1048576".to_owned()], vec![]));
    a.reactor.release();
    assert_eq!(a.poll().iter().map(|d| d.tag).collect::<Vec<_>>(), [1]);
    assert!(b.poll().is_empty());
    assert_eq!(b.reactor.log(), [format!("write buffered {tail}+1"), "write buffered 4194304+4096".into()]);
    b.reactor.release();
    let mut tags: Vec<u64> = b.poll().iter().chain(&a.poll()).map(|d| d.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, [2, 3, 4]);
}

//= promise files
#[test]
fn two_writes_that_share_a_block_wait_for_each_other_and_both_are_there() {
    let (_dir, file) = fresh(MIB as u64);
    if file.limits().direct_io_align.is_none() {
        eprintln!("SKIPPED two_writes_that_share_a_block...: no O_DIRECT");
        return;
    }
    let (mut a, mut b) = (Driven::new(file.clone()), Driven::new(file.clone()));
    let write = |offset: u64, len: usize| Op::Write {
        range: range(offset, len as u64),
        buf: Buf::copy_of(&pattern(offset, len)).unwrap(),
        fua: false,
    };
    a.reactor.hold();
    b.reactor.hold();
    a.submit(1, write(1000, 100));
    b.submit(2, write(1100, 5000));
    b.submit(3, write(8192, 4096));
    assert_eq!((a.reactor.log().len(), b.reactor.log()), (1, vec!["write direct 8192+4096".to_owned()]));
    a.reactor.release();
    assert_eq!(a.poll().len(), 1);
    b.reactor.release();
    assert_eq!(b.poll().len(), 2);
    assert!(a.read(1000, 100).buf[..] == pattern(1000, 100));
    assert!(a.read(1100, 5000).buf[..] == pattern(1100, 5000));
}

//= promise files
#[test]
fn a_queue_that_goes_with_requests_in_flight_keeps_the_other_way_out() {
    use crate::reactor::{Reactor as _, pool::Pool};
    let (_dir, file) = fresh(MIB as u64 + 1);
    if file.limits().direct_io_align.is_none() {
        eprintln!("SKIPPED a_queue_that_goes_with_requests_in_flight...: no O_DIRECT");
        return;
    }
    let pass = |gate: &Arc<crate::block::way::Gate>| {
        let entry = crate::block::way::Entry {
            need: crate::block::way::Need::Either,
            likes: crate::block::way::Way::Direct,
            write: None,
        };
        match gate.enter(entry, None, &(Arc::new(|| ()) as crate::block::way::Wake)) {
            crate::block::way::Entered::Go(pass) => pass,
            crate::block::way::Entered::Wait(..) => panic!("waits"),
        }
    };
    let pool = Pool::new(false).unwrap();
    let port = pool.open_port();
    let (hold, held) = std::sync::mpsc::channel::<()>();
    pool.submit(
        port,
        1,
        IoOp::Call(Box::new(move || {
            let _ = held.recv();
            crate::reactor::CallDone::default()
        })),
    );
    pool.close_port_keeping(port, Box::new(pass(&file.core.gate)));
    let mut q = Driven::new(file.clone());
    q.submit(1, Op::Write { range: range(MIB as u64, 1), buf: Buf::copy_of(b"x").unwrap(), fua: false });
    assert!(q.poll().is_empty(), "what the closed queue began is still in flight");
    hold.send(()).unwrap();
    while q.poll().is_empty() {
        pool.turn();
        std::thread::yield_now();
    }
}

//= promise files
#[test]
fn a_file_that_shares_extents_is_written_by_whole_blocks_and_caches_nothing() {
    let test = "a_file_that_shares_extents_is_written_by_whole_blocks_and_caches_nothing";
    let Some(fs) = Mounted::new(test, &["mkfs.xfs", "-q", "-m", "reflink=1"], 400 << 20) else { return };
    let (a, b) = (File::open(fs.path("a"), WRITE).unwrap(), File::open(fs.path("b"), WRITE).unwrap());
    let Some(cached) = cached_pages(test, &b) else { return };
    a.set_len(MIB as u64).unwrap();
    b.set_len(MIB as u64).unwrap();
    assert!(Driven::new(a.clone()).write(0, &pattern(1, MIB)).result.is_ok());
    let mut q = Driven::new(b.clone());
    assert!(q.copy(Method::Reflink, a.clone(), 0, 0, MIB as u64).result.is_ok());
    let mut model = pattern(1, MIB);
    for (at, len) in [(512, 512), (8192, 1024), (20_000, 20_000), (1 << 19, 4096)] {
        assert!(q.write(at as u64, &pattern(at as u64, len)).result.is_ok());
        model[at..at + len].copy_from_slice(&pattern(at as u64, len));
    }
    assert!(q.read(0, MIB).buf[..] == model);
    assert_eq!(cached(0, MIB), 0);
    assert!(Driven::new(a).read(0, MIB).buf[..] == pattern(1, MIB));
}

//! One suite over every engine.

use super::inline::Inline;
use super::pool::Pool;
use super::sim::Sim;
use super::uring::Uring;
use super::*;
use crate::block::BufPool;
use crate::sys::seccomp::forbid_io_uring;
use proptest::prelude::*;
use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every engine that can be had here, with writes on the calling thread and not.
fn engines() -> Vec<(&'static str, Rc<dyn Reactor>)> {
    let mut all: Vec<(&'static str, Rc<dyn Reactor>)> = Vec::new();
    for (name, inline) in [("uring, inline writes", true), ("uring", false)] {
        match Uring::new(inline) {
            Ok(engine) => all.push((name, Rc::new(engine))),
            Err(e) => eprintln!("SKIPPED {name}: {e}"),
        }
    }
    all.push(("pool, inline writes", Rc::new(Pool::new(true).unwrap())));
    all.push(("pool", Rc::new(Pool::new(false).unwrap())));
    all.push(("inline", Rc::new(Inline::new().unwrap())));
    all.push(("sim", Rc::new(Sim::new(7))));
    all
}

fn temp() -> Arc<OwnedFd> {
    Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()))
}

fn file_of(bytes: &[u8]) -> Arc<OwnedFd> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(OwnedFd::from(file))
}

/// Waits until `count` operations of `port` have ended.
fn collect(reactor: &dyn Reactor, port: Port, count: usize) -> Vec<IoDone> {
    let mut out = Vec::new();
    loop {
        reactor.complete(port, &mut out);
        if out.len() >= count {
            assert_eq!(out.len(), count, "more completions than operations");
            return out;
        }
        reactor.wait(None);
    }
}

fn one_op(reactor: &dyn Reactor, port: Port, op: IoOp) -> IoDone {
    reactor.submit(port, 42, op);
    let done = collect(reactor, port, 1).pop().unwrap();
    assert_eq!(done.token, 42);
    done
}

fn read(file: &Arc<OwnedFd>, offset: u64, buf: Buf) -> IoOp {
    IoOp::Read { file: file.clone(), offset, buf, direct: false }
}

fn write(file: &Arc<OwnedFd>, offset: u64, buf: Buf, dsync: bool) -> IoOp {
    IoOp::Write { file: file.clone(), offset, buf, direct: false, dsync }
}

/// Carries a transfer to its end as a driver would: goes on behind short ones.
fn write_all(reactor: &dyn Reactor, port: Port, file: &Arc<OwnedFd>, offset: u64, bytes: &[u8], dsync: bool) {
    let mut at = 0;
    while at < bytes.len() {
        let buf = Buf::copy_of(&bytes[at..]).unwrap();
        let done = one_op(reactor, port, write(file, offset + at as u64, buf, dsync));
        assert!(done.error.is_none(), "{:?}", done.error);
        assert!(done.count > 0);
        at += usize::try_from(done.count).unwrap();
    }
}

fn read_all(reactor: &dyn Reactor, port: Port, file: &Arc<OwnedFd>, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let buf = Buf::alloc(len - bytes.len()).unwrap();
        let done = one_op(reactor, port, read(file, offset + bytes.len() as u64, buf));
        assert!(done.error.is_none(), "{:?}", done.error);
        let n = usize::try_from(done.count).unwrap();
        if n == 0 {
            break;
        }
        bytes.extend_from_slice(&done.buf[..n]);
    }
    bytes
}

/// Puts the file's bytes out of the page cache, so that the inline read misses.
fn drop_cache(file: &OwnedFd) {
    rustix::fs::fdatasync(file).unwrap();
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251 + seed) % 256).unwrap()).collect()
}

/// A socket completes its wait when bytes come, when it is shut down, and not before.
#[test]
fn a_socket_is_waited_for_until_it_is_ready() {
    for (name, reactor) in engines().into_iter().filter(|(name, _)| *name != "sim") {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let file = Arc::new(OwnedFd::from(ours));
        let port = reactor.open_port();
        let ready = |write| IoOp::Ready { file: file.clone(), write };
        assert!(one_op(&*reactor, port, ready(true)).error.is_none(), "{name}: there is room to write");
        reactor.submit(port, 7, ready(false));
        reactor.wait(Some(reactor.now() + Duration::from_millis(20)));
        reactor.turn();
        let mut out = Vec::new();
        reactor.complete(port, &mut out);
        assert!(out.is_empty(), "{name}: nothing has come");
        let writer = std::thread::spawn(move || {
            theirs.write_all(b"x").unwrap();
            theirs
        });
        assert_eq!(collect(&*reactor, port, 1)[0].token, 7, "{name}");
        let theirs = writer.join().unwrap();
        assert_eq!(rustix::io::read(&*file, &mut [0u8; 8]).unwrap(), 1);
        reactor.submit(port, 8, ready(false));
        rustix::net::shutdown(&*file, rustix::net::Shutdown::Both).unwrap();
        assert_eq!(collect(&*reactor, port, 1)[0].token, 8, "{name}");
        drop(theirs);
        // One that never becomes ready does not keep the reactor.
        let (quiet, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        reactor.submit(port, 9, IoOp::Ready { file: Arc::new(quiet.into()), write: false });
        reactor.turn();
        drop(reactor);
    }
}

//= promise 1
#[test]
fn what_is_written_is_read_back_cached_or_not() {
    let bytes = pattern(300_000, 1);
    for (name, reactor) in engines() {
        let port = reactor.open_port();
        for dsync in [false, true] {
            let file = temp();
            write_all(&*reactor, port, &file, 4096, &bytes, dsync);
            assert_eq!(read_all(&*reactor, port, &file, 4096, bytes.len()), bytes, "{name}");
            drop_cache(&file);
            assert_eq!(read_all(&*reactor, port, &file, 4096, bytes.len()), bytes, "{name}, cold");
        }
    }
}

#[test]
fn a_read_is_short_at_the_end_and_zero_behind_it() {
    for (name, reactor) in engines() {
        let port = reactor.open_port();
        let file = file_of(b"0123456789");
        assert_eq!(read_all(&*reactor, port, &file, 4, 100), b"456789", "{name}");
        for offset in [10, 11, 1 << 40] {
            let done = one_op(&*reactor, port, read(&file, offset, Buf::alloc(8).unwrap()));
            assert_eq!((done.count, done.error.is_none(), done.buf.len()), (0, true, 8), "{name}");
        }
    }
}

#[test]
fn an_offset_no_file_can_have_is_an_error() {
    for (name, reactor) in engines() {
        let port = reactor.open_port();
        let file = file_of(b"0123456789");
        for offset in [u64::MAX, 1 << 63] {
            let done = one_op(&*reactor, port, read(&file, offset, Buf::alloc(8).unwrap()));
            assert_eq!(done.error.unwrap().raw_os_error(), Some(libc::EINVAL), "{name}");
            let done = one_op(&*reactor, port, write(&file, offset, Buf::copy_of(b"x").unwrap(), true));
            assert_eq!(done.error.unwrap().raw_os_error(), Some(libc::EINVAL), "{name}");
        }
    }
}

#[test]
fn errors_come_raw_and_bring_the_buffer() {
    let read_only: Arc<OwnedFd> = Arc::new(std::fs::File::open("/proc/self/exe").unwrap().into());
    let write_only = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let write_only: Arc<OwnedFd> = Arc::new(write_only.into());
    let (pipe, _other) = std::io::pipe().unwrap();
    let pipe: Arc<OwnedFd> = Arc::new(pipe.into());
    for (name, reactor) in engines() {
        let port = reactor.open_port();
        for dsync in [false, true] {
            let done = one_op(&*reactor, port, write(&read_only, 0, Buf::copy_of(b"abc").unwrap(), dsync));
            assert_eq!(done.error.unwrap().raw_os_error(), Some(libc::EBADF), "{name}");
            assert_eq!((done.count, &done.buf[..]), (0, &b"abc"[..]), "{name}");
        }
        let done = one_op(&*reactor, port, read(&write_only, 0, Buf::alloc(10).unwrap()));
        assert_eq!(done.error.unwrap().raw_os_error(), Some(libc::EBADF), "{name}");
        assert_eq!(done.buf.len(), 10);
        let done = one_op(&*reactor, port, IoOp::Sync { file: pipe.clone(), data_only: true });
        assert_eq!(done.error.unwrap().raw_os_error(), Some(libc::EINVAL), "{name}");
    }
}

//= promise 6
#[test]
fn sync_call_and_the_empty_buffer_complete() {
    for (name, reactor) in engines() {
        let port = reactor.open_port();
        let file = file_of(b"abc");
        for data_only in [true, false] {
            let done = one_op(&*reactor, port, IoOp::Sync { file: file.clone(), data_only });
            assert!(done.error.is_none() && done.count == 0, "{name}");
        }
        let call = || CallDone {
            count: 5,
            error: Some(io::Error::from_raw_os_error(libc::EIO)),
            ..CallDone::default()
        };
        let done = one_op(&*reactor, port, IoOp::Call(Box::new(call)));
        assert_eq!((done.count, done.error.unwrap().raw_os_error()), (5, Some(libc::EIO)), "{name}");
        let done = one_op(&*reactor, port, read(&file, 0, Buf::default()));
        assert_eq!((done.count, done.error.is_none()), (0, true), "{name}");
        let done = one_op(&*reactor, port, write(&file, 0, Buf::default(), true));
        assert_eq!((done.count, done.error.is_none()), (0, true), "{name}");
    }
}

#[test]
fn a_call_that_panics_completes_with_an_error() {
    for (name, reactor) in engines() {
        let port = reactor.open_port();
        let done = one_op(&*reactor, port, IoOp::Call(Box::new(|| panic!("planned by a test"))));
        assert!(done.error.unwrap().to_string().contains("panicked"), "{name}");
    }
}

#[test]
fn many_in_flight_complete_once_each_and_return_their_buffers() {
    const COUNT: usize = 500; // more than fit into the ring at once
    let bytes = pattern(COUNT * 4096, 3);
    for (name, reactor) in engines() {
        let port = reactor.open_port();
        let file = file_of(&bytes);
        let pool = BufPool::new(COUNT * 4096, 4096).unwrap();
        for round in 0..3 {
            drop_cache(&file);
            for i in 0..COUNT {
                // Marked O_DIRECT: no inline attempt, so that every engine has them in flight.
                let op = IoOp::Read {
                    file: file.clone(),
                    offset: (i * 4096) as u64,
                    buf: pool.take(4096).unwrap(),
                    direct: true,
                };
                reactor.submit(port, i as u64, op);
            }
            assert!(pool.take(1).is_none());
            let done = collect(&*reactor, port, COUNT);
            let mut seen = vec![false; COUNT];
            for d in &done {
                let i = usize::try_from(d.token).unwrap();
                assert!(!std::mem::replace(&mut seen[i], true), "{name}: {i} completed twice");
                let n = usize::try_from(d.count).unwrap();
                assert!(n > 0 && d.error.is_none(), "{name}, round {round}: {:?}", d.error);
                assert_eq!(d.buf[..n], bytes[i * 4096..i * 4096 + n], "{name}, round {round}: block {i}");
            }
            drop(done);
            let all: Vec<_> = std::iter::from_fn(|| pool.take(1)).collect();
            assert_eq!(all.len(), COUNT, "{name}: a buffer was lost");
        }
    }
}

#[test]
fn memory_of_a_new_mapping_is_never_taken_for_an_old_one() {
    // Each round maps anew, often at the same address, and uses it enough to be registered.
    let bytes = pattern(64 << 10, 5);
    for (name, reactor) in engines() {
        let port = reactor.open_port();
        let file = file_of(&bytes);
        for _ in 0..40 {
            let pool = BufPool::new(4 * 4096, 4096).unwrap();
            for i in 0..16u64 {
                let op = IoOp::Read {
                    file: file.clone(),
                    offset: i * 4096,
                    buf: pool.take(4096).unwrap(),
                    direct: true,
                };
                let done = one_op(&*reactor, port, op);
                let (at, n) = (usize::try_from(i).unwrap() * 4096, usize::try_from(done.count).unwrap());
                assert_eq!(done.buf[..n], bytes[at..at + n], "{name}");
            }
        }
    }
}

#[test]
fn a_reactor_dropped_in_the_middle_returns_buffers() {
    for (name, reactor) in engines() {
        let port = reactor.open_port();
        let file = file_of(&pattern(1 << 20, 0));
        let pool = BufPool::new(64 * 4096, 4096).unwrap();
        for i in 0..64u64 {
            let op = IoOp::Read {
                file: file.clone(),
                offset: i * 4096,
                buf: pool.take(4096).unwrap(),
                direct: true,
            };
            reactor.submit(port, i, op);
            if i == 32 {
                reactor.turn();
            }
        }
        drop(reactor);
        // Helper threads end what they have after the reactor is gone.
        let mut held = Vec::new();
        while held.len() < 64 {
            match pool.take(1) {
                Some(buf) => held.push(buf),
                None => std::thread::yield_now(),
            }
        }
        assert!(pool.take(1).is_none(), "{name}");
    }
}

#[test]
fn a_closed_port_drops_its_completions_and_keeps_others_apart() {
    for (name, reactor) in engines() {
        let file = file_of(b"abcdefgh");
        let (first, second) = (reactor.open_port(), reactor.open_port());
        reactor.submit(first, 1, IoOp::Sync { file: file.clone(), data_only: true });
        reactor.submit(second, 2, IoOp::Sync { file: file.clone(), data_only: true });
        reactor.close_port(first);
        let third = reactor.open_port();
        assert_ne!(third, first, "{name}: the number is taken while an operation is in flight under it");
        assert_eq!(collect(&*reactor, second, 1)[0].token, 2, "{name}");
        reactor.submit(third, 3, read(&file, 0, Buf::alloc(1).unwrap()));
        assert_eq!(collect(&*reactor, third, 1)[0].token, 3, "{name}");
    }
}

#[test]
fn a_waker_ends_the_wait_that_is_and_the_one_to_come() {
    for (name, reactor) in engines() {
        let waker = reactor.waker();
        waker.wake();
        reactor.wait(None);
        // The wake was used up: this one ends by its deadline.
        let deadline = reactor.now() + Duration::from_millis(2);
        while reactor.now() < deadline {
            reactor.wait(Some(deadline));
        }
        for _ in 0..20 {
            let waker = reactor.waker();
            let thread = std::thread::spawn(move || waker.wake());
            reactor.wait(None);
            thread.join().unwrap();
        }
        // Also once there is a ring, and between turns.
        let port = reactor.open_port();
        let _ = one_op(&*reactor, port, IoOp::Sync { file: temp(), data_only: true });
        for _ in 0..20 {
            reactor.turn();
            reactor.waker().wake();
            reactor.turn();
            reactor.wait(None);
            let waker = reactor.waker();
            let thread = std::thread::spawn(move || waker.wake());
            reactor.wait(None);
            thread.join().unwrap();
        }
        eprintln!("{name}: woken");
    }
}

#[test]
fn a_wait_ends_at_its_deadline_and_not_before_without_cause() {
    for (name, reactor) in engines() {
        let port = reactor.open_port();
        for _ in 0..2 {
            let deadline = reactor.now() + Duration::from_millis(5);
            let mut turns = 0;
            while reactor.now() < deadline {
                reactor.wait(Some(deadline));
                turns += 1;
            }
            assert!(turns < 20, "{name}: {turns} turns are a spin, not a wait");
            let _ = one_op(&*reactor, port, IoOp::Sync { file: temp(), data_only: true });
        }
    }
}

#[test]
fn calls_do_not_hold_up_the_thread_that_makes_them() {
    for (name, reactor) in engines().into_iter().filter(|(_, r)| r.engine() != Engine::Sim) {
        let port = reactor.open_port();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let call = move || {
            wait.recv().unwrap();
            CallDone::default()
        };
        reactor.submit(port, 1, IoOp::Call(Box::new(call)));
        let file = file_of(b"abc");
        reactor.submit(port, 2, read(&file, 0, Buf::alloc(3).unwrap()));
        assert_eq!(collect(&*reactor, port, 1)[0].token, 2, "{name}");
        go.send(()).unwrap();
        assert_eq!(collect(&*reactor, port, 1)[0].token, 1, "{name}");
    }
}

#[test]
fn completions_left_lying_do_not_keep_sockets_from_being_watched() {
    for (name, reactor) in engines().into_iter().filter(|(_, r)| r.engine() != Engine::Sim) {
        let (left, watched) = (reactor.open_port(), reactor.open_port());
        reactor.submit(left, 1, read(&file_of(b"abc"), 0, Buf::alloc(3).unwrap()));
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = Arc::new(OwnedFd::from(ours));
        reactor.submit(watched, 2, IoOp::Ready { file: file.clone(), write: false });
        rustix::io::write(&theirs, b"x").unwrap();
        let mut done = Vec::new();
        // Each wait may return at once, since there is something to take.
        for _ in 0..1000 {
            reactor.wait(None);
            reactor.complete(watched, &mut done);
        }
        assert_eq!(done.len(), 1, "{name}");
        assert_eq!(collect(&*reactor, left, 1)[0].token, 1, "{name}");
    }
}

#[test]
fn buffered_operations_are_made_inline_and_say_so() {
    let has = |done: &IoDone, call: Call| done.counters.calls[call as usize];
    for (name, reactor) in engines().into_iter().filter(|(_, r)| r.engine() != Engine::Sim) {
        let port = reactor.open_port();
        let file = file_of(b"abc");
        let done = one_op(&*reactor, port, read(&file, 0, Buf::alloc(3).unwrap()));
        assert_eq!(has(&done, Call::Preadv2), 1, "{name}");
        assert_eq!(
            has(&done, Call::RingRead) + has(&done, Call::Pread64),
            0,
            "{name}: the bytes were cached"
        );
        let done = one_op(&*reactor, port, write(&file, 0, Buf::alloc(3).unwrap(), false));
        // Never in a ring: the kernel's threads for it are shared by all devices.
        assert_eq!(has(&done, Call::Pwrite64), 1, "{name}");
        let done = one_op(&*reactor, port, write(&file, 0, Buf::alloc(3).unwrap(), true));
        assert_eq!(has(&done, Call::Pwritev2), 1, "{name}");
    }
}

#[test]
fn the_simulation_is_the_same_again_for_the_same_seed() {
    let order = |seed| {
        let sim = Sim::new(seed);
        let (port, file, mut seen) = (sim.open_port(), file_of(&pattern(1 << 16, 0)), Vec::new());
        for i in 0..50u64 {
            sim.submit(port, i, read(&file, i * 100, Buf::alloc(1000).unwrap()));
        }
        let mut out = Vec::new();
        while seen.len() < 50 {
            sim.wait(None);
            sim.complete(port, &mut out);
            seen.extend(out.drain(..).map(|d| (d.token, d.count, sim.now())));
        }
        seen
    };
    let (one, two, other) = (order(1), order(1), order(2));
    assert_eq!(one, two);
    assert_ne!(one, other);
    assert!(one.iter().any(|&(_, count, _)| count < 1000), "no short transfer in 50");
    assert!(one.windows(2).any(|w| w[0].0 > w[1].0), "never out of order");
}

/// What a user would do, on whatever engine there is; the bytes must come out the same.
fn a_small_job(reactor: &dyn Reactor) -> Vec<u8> {
    let (port, file) = (reactor.open_port(), temp());
    write_all(reactor, port, &file, 0, &pattern(100_000, 9), true);
    drop_cache(&file);
    read_all(reactor, port, &file, 0, 100_000)
}

#[test]
fn where_io_uring_is_forbidden_threads_take_over_and_say_why() {
    for (errno, word) in [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS")] {
        let run = move || {
            if let Err(e) = forbid_io_uring(errno) {
                eprintln!("SKIPPED io_uring forbidden with {word}: no seccomp filter here: {e}");
                return;
            }
            let (reactor, why) = choose(EngineChoice::Auto, false).unwrap();
            assert_eq!(reactor.engine(), Engine::Pool);
            assert!(why.contains("threads") && why.contains(word), "{why}");
            assert_eq!(a_small_job(&*reactor), pattern(100_000, 9));
            let refused = choose(EngineChoice::Uring, false).err().unwrap();
            assert!(refused.to_string().contains("pool"), "{refused}");
        };
        std::thread::spawn(run).join().unwrap();
    }
}

#[test]
fn io_uring_forbidden_after_the_choice_is_survived() {
    let run = || {
        let Ok(reactor) = Uring::new(false) else {
            return eprintln!("SKIPPED io_uring forbidden late: it is forbidden already");
        };
        if let Err(e) = forbid_io_uring(libc::EPERM) {
            return eprintln!("SKIPPED io_uring forbidden late: no seccomp filter here: {e}");
        }
        assert_eq!(a_small_job(&reactor), pattern(100_000, 9));
    };
    std::thread::spawn(run).join().unwrap();
}

#[test]
fn the_choice_is_obeyed_and_named() {
    let (reactor, why) = choose(EngineChoice::Pool, true).unwrap();
    assert_eq!((reactor.engine(), &why[..]), (Engine::Pool, "I/O engine: threads (as asked)"));
    match choose(EngineChoice::Uring, true) {
        Ok((reactor, _)) => {
            assert_eq!(reactor.engine(), Engine::Uring);
            let (auto, why) = choose(EngineChoice::Auto, true).unwrap();
            assert_eq!((auto.engine(), &why[..]), (Engine::Uring, "I/O engine: io_uring"));
        }
        Err(e) => eprintln!("SKIPPED choosing io_uring: {e}"),
    }
}

#[derive(Clone, Debug)]
enum Act {
    Read { block: u8, direct: bool },
    Write { block: u8, fill: u8, dsync: bool },
    Sync,
    Call,
    Turn,
    Take,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..16u8, any::<bool>()).prop_map(|(block, direct)| Act::Read { block, direct }),
        4 => (0..16u8, any::<u8>(), any::<bool>()).prop_map(|(block, fill, dsync)| Act::Write { block, fill, dsync }),
        1 => Just(Act::Sync),
        2 => Just(Act::Call),
        2 => Just(Act::Turn),
        2 => Just(Act::Take),
    ];
    prop::collection::vec(act, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any mix: each operation completes exactly once, no buffer is lost, reads see old or new bytes of each block.
    #[test]
    fn any_mix_completes_exactly_once(acts in acts(), seed in any::<u64>()) {
        const BLOCK: usize = 4096;
        for (name, reactor) in engines().into_iter().filter(|(_, r)| r.engine() != Engine::Sim)
            .chain([("seeded sim", Rc::new(Sim::new(seed)) as Rc<dyn Reactor>)])
        {
            let (port, file, calls) = (reactor.open_port(), file_of(&[0; 16 * BLOCK]), Arc::new(AtomicU64::new(0)));
            let pool = BufPool::new(acts.len() * BLOCK, BLOCK).unwrap();
            let mut open: HashMap<u64, bool> = HashMap::new(); // token -> is a transfer
            let mut expected_calls = 0;
            let mut written = vec![vec![0u8]; 16];
            let mut out = Vec::new();
            let check = |out: &mut Vec<IoDone>, open: &mut HashMap<u64, bool>, written: &[Vec<u8>]| {
                for d in out.drain(..) {
                    let transfer = open.remove(&d.token).expect("completes once, and only what was submitted");
                    assert!(d.error.is_none(), "{name}: {:?}", d.error);
                    assert_eq!(d.buf.len(), if transfer { BLOCK } else { 0 }, "{name}");
                    if transfer {
                        let n = usize::try_from(d.count).unwrap();
                        assert!(n > 0);
                        let block = usize::try_from(d.token % 16).unwrap();
                        assert!(d.buf[..n].iter().all(|b| written[block].contains(b)), "{name}: a byte nobody wrote");
                    }
                }
            };
            for (i, act) in acts.iter().enumerate() {
                let token = |block: u8| i as u64 * 16 + u64::from(block);
                match *act {
                    Act::Read { block, direct } => {
                        let (file, buf) = (file.clone(), pool.take(BLOCK).unwrap());
                        open.insert(token(block), true);
                        let offset = u64::from(block) * BLOCK as u64;
                        reactor.submit(port, token(block), IoOp::Read { file, offset, buf, direct });
                    }
                    Act::Write { block, fill, dsync } => {
                        let mut buf = pool.take(BLOCK).unwrap();
                        buf.fill(fill);
                        written[usize::from(block)].push(fill);
                        open.insert(token(block), true);
                        reactor.submit(port, token(block), write(&file, u64::from(block) * BLOCK as u64, buf, dsync));
                    }
                    Act::Sync => {
                        open.insert(token(0), false);
                        reactor.submit(port, token(0), IoOp::Sync { file: file.clone(), data_only: i % 2 == 0 });
                    }
                    Act::Call => {
                        open.insert(token(0), false);
                        expected_calls += 1;
                        let calls = calls.clone();
                        reactor.submit(port, token(0), IoOp::Call(Box::new(move || {
                            calls.fetch_add(1, Ordering::Relaxed);
                            CallDone::default()
                        })));
                    }
                    Act::Turn => reactor.turn(),
                    Act::Take => {
                        reactor.complete(port, &mut out);
                        check(&mut out, &mut open, &written);
                    }
                }
            }
            while !open.is_empty() {
                reactor.wait(None);
                reactor.complete(port, &mut out);
                check(&mut out, &mut open, &written);
            }
            reactor.turn();
            reactor.complete(port, &mut out);
            prop_assert!(out.is_empty(), "{}: something completed twice", name);
            prop_assert_eq!(calls.load(Ordering::Relaxed), expected_calls);
            let all: Vec<_> = std::iter::from_fn(|| pool.take(1)).collect();
            prop_assert_eq!(all.len(), pool.count(), "{}: a buffer was lost", name);
        }
    }
}

//! What the host driver makes of a controller that comes back, or looks again, and is not what it was.

use super::testing::{Act, Disk, Fake, disk};
use super::tests::*;
use super::{Namespace, Options};
use crate::block::receipt::Receipt;
use crate::block::{Device, Kind, Op};
use crate::copy::run::{Options as CopyOptions, copy};
use crate::copy::{Job, Segment};
use crate::drivers::testing::pattern;
use crate::nvme::feature::AsyncEvent;
use crate::nvme::identify::{NamespaceIds, cns};
use crate::nvme::{AdminCommand, Ascii, IoCommand, Status};
use crate::reactor::local::{Client, Local};
use crate::reactor::{EngineChoice, choose};
use std::num::NonZeroU8;
use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

fn flushes(fake: &Fake) -> usize {
    fake.io_seen().iter().filter(|c| matches!(c, IoCommand::Flush { .. })).count()
}

fn keep_alives(fake: &Fake) -> usize {
    fake.seen().iter().filter(|s| matches!(s.admin(), Some(AdminCommand::KeepAlive))).count()
}

//= promise 6
#[test]
fn a_write_cache_that_appears_is_flushed() {
    let fake = Fake::new(|s| s.controller.write_cache = false);
    let device = open(&fake, 1, quick());
    with(&device, async |client| {
        assert!(client.submit(write(0, &[1; 512])).await.result.is_ok());
        assert!(client.submit(Op::Flush).await.result.is_ok());
        assert_eq!(flushes(&fake), 0, "there is nothing to flush");
        fake.change(|s| s.controller.write_cache = true);
        fake.cut(true);
        assert!(client.submit(write(0, &[2; 512])).await.result.is_ok());
        assert!(client.submit(Op::Flush).await.result.is_ok());
        assert_eq!(flushes(&fake), 1);
        // And one that goes leaves what was written before as it is.
        fake.change(|s| s.controller.write_cache = false);
        fake.cut(true);
        assert!(client.submit(read(0, 512)).await.result.is_ok());
        assert!(client.submit(Op::Flush).await.result.is_ok());
        assert_eq!(flushes(&fake), 2);
    });
}

//= promise 6
#[test]
fn what_a_failed_command_did_may_be_lost_too() {
    for copies in [false, true] {
        let fake = Fake::new(|_| {});
        let device = open(&fake, 1, quick());
        with(&device, async |client| {
            fake.rule(|_| Act::Answer(Status::WRITE_FAULT, 1));
            let op =
                if copies { copy_op(&device, &[(0, 512), (1024, 512)], 65536) } else { write(0, &[1; 512]) };
            let done = client.submit(op).await;
            assert_eq!(done.good_bytes, if copies { 512 } else { 0 });
            fake.rule(|_| Act::Serve);
            fake.cut(true);
            assert!(client.submit(read(0, 512)).await.result.is_ok());
            let (kind, text, _) = error_of(client.submit(Op::Flush).await);
            assert!(kind == Kind::Io && text.contains("open a new queue and write them again"), "{text}");
        });
    }
}

#[test]
fn a_namespace_without_identifiers_is_known_by_its_subsystem() {
    let fake = Fake::new(|s| s.disks.get_mut(&1).unwrap().ids = NamespaceIds::default());
    let device = open(&fake, 1, quick());
    with(&device, async |client| {
        fake.cut(true);
        assert!(client.submit(read(0, 512)).await.result.is_ok(), "it is the same");
        fake.change(|s| s.controller.serial = Ascii::new("ANOTHER").unwrap());
        fake.cut(true);
        let (_, text, _) = error_of(client.submit(read(0, 512)).await);
        assert!(text.contains("another namespace in its place"), "{text}");
    });
}

//= promise 1
#[test]
fn bytes_that_may_be_others_end_everything_whatever_they_are_called() {
    // From one generation to another, and to none: other software, which knows nothing of it.
    for (before, after) in [(Some([1; 16]), Some([2; 16])), (Some([1; 16]), None), (None, Some([2; 16]))] {
        let fake = Fake::new(|s| s.disks.get_mut(&1).unwrap().page.generation = before);
        let device = open(&fake, 1, quick());
        with(&device, async |client| {
            fake.cut(true);
            assert!(client.submit(read(0, 512)).await.result.is_ok(), "the same bytes");
            assert_eq!(device.losses().len(), 1);
            fake.change(|s| s.disks.get_mut(&1).unwrap().page.generation = after);
            fake.cut(true);
            for op in [read(0, 512), write(0, &[1; 512]), copy_op(&device, &[(0, 512)], 65536), Op::Flush] {
                let (kind, text, _) = error_of(client.submit(op).await);
                assert!(kind == Kind::Io && text.contains("contents changed"), "{text}");
            }
            assert_eq!(device.losses().len(), 2);
        });
        assert!(fake.bytes(1)[..512] == [0; 512], "nothing was written to what is there now");
        // Opened anew it is what it is.
        let device = open(&fake, 1, quick());
        with(&device, async |client| assert!(client.submit(read(0, 512)).await.result.is_ok()));
    }
}

#[test]
fn a_part_in_doubt_is_cut_anew_where_commands_may_be_longer() {
    let fake = Fake::new(|s| s.controller.mdts = NonZeroU8::new(1));
    let device = open(&fake, 1, keen());
    let bytes = pattern(5, 32 << 10);
    for compare in [false, true] {
        with(&device, async |client| {
            fake.change(|s| s.controller.mdts = NonZeroU8::new(1));
            fake.cut(true);
            assert!(client.submit(read(0, 512)).await.result.is_ok());
            let mut left = 1;
            fake.rule(move |seen| {
                let hit = matches!(seen.io(), Some(IoCommand::Write(_) | IoCommand::Compare(_)));
                left -= i32::from(hit);
                if hit && left == 0 { Act::Cut { served: false, all: true } } else { Act::Serve }
            });
            fake.change(|s| s.controller.mdts = NonZeroU8::new(5));
            let buf = crate::block::Buf::copy_of(&bytes).unwrap();
            let op = if compare { Op::Compare { range: range(0, 32 << 10), buf } } else { write(0, &bytes) };
            let done = client.submit(op).await;
            assert!(done.result.is_ok() && done.buf[..] == bytes[..], "{done:?}");
            assert!(fake.bytes(1)[..32 << 10] == bytes[..]);
        });
    }
    let longest = fake.io_seen().into_iter().map(|c| match c {
        IoCommand::Write(e) | IoCommand::Compare(e) => e.blocks.get(),
        _ => 0,
    });
    assert_eq!(longest.max(), Some(64), "in one piece");
}

#[test]
fn a_command_is_not_late_because_nobody_looked() {
    let options = Options { command_timeout: Duration::from_millis(1000), ..quick() };
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, options);
    with(&device, async |client| {
        assert!(client.submit(read(0, 512)).await.result.is_ok());
        std::thread::sleep(Duration::from_millis(1500));
        assert!(client.submit(read(0, 512)).await.result.is_ok(), "it was sent just now");
        // Answered long ago.
        let sent = client.submit(read(0, 512));
        crate::reactor::local::yield_now().await;
        std::thread::sleep(Duration::from_millis(1500));
        assert!(sent.await.result.is_ok());
    });
    assert!(fake.seen().iter().all(|s| s.cntlid == 1), "and nothing was reset");
}

#[test]
fn keep_alives_go_out_from_the_first_moment_and_between_questions() {
    // None is due by the clock during this test.
    let fake = Fake::new(|_| {});
    let options = Options { keep_alive: Duration::from_mins(2), ..quick() };
    let (one, two) = (open(&fake, 1, options), open(&fake, 2, options));
    until("the first keep-alive", || keep_alives(&fake) == 1);
    fake.change(|s| s.disks.get_mut(&1).unwrap().page.size_blocks = 8);
    fake.change(|s| s.disks.get_mut(&2).unwrap().page.size_blocks = 8);
    fake.event(AsyncEvent::NAMESPACE_ATTRIBUTE);
    until("the new sizes", || one.size() == 4096 && two.size() == 4096);
    until("a keep-alive before each look", || keep_alives(&fake) >= 4);
}

#[test]
fn an_event_whose_page_does_not_come_ends_the_association() {
    let fake = Fake::new(|_| {});
    let options = Options { keep_alive: Duration::from_millis(600), ..quick() };
    let device = open(&fake, 1, options);
    // One that no namespace has to be looked at for.
    let event = AsyncEvent { info: 1, ..AsyncEvent::NAMESPACE_ATTRIBUTE };
    let mut first = true;
    fake.rule(move |seen| match seen.admin() {
        Some(AdminCommand::GetLogPage(_)) if std::mem::take(&mut first) => Act::Swallow,
        _ => Act::Serve,
    });
    fake.event(event);
    until("the next association", || fake.seen().iter().any(|s| s.cntlid == 2));
    with(&device, async |client| assert!(client.submit(read(0, 512)).await.result.is_ok()));
    // Questions can be asked again.
    open(&fake, 2, options);
}

#[test]
fn opening_anew_tells_what_has_changed() {
    let fake = Fake::new(|s| s.controller.oaes = 0);
    let one = open(&fake, 1, quick());
    let larger = Disk { ids: disk(1, 8, 9).ids, ..disk(1, 8192, 9) };
    fake.change(|s| drop(s.disks.insert(1, larger)));
    assert!(Arc::ptr_eq(&one, &open(&fake, 1, quick())) && one.size() == 8192 * 512);
    fake.change(|s| s.disks.get_mut(&1).unwrap().ids.uuid = Some([9; 16]));
    let other = open(&fake, 1, quick());
    assert!(!Arc::ptr_eq(&one, &other) && other.is_there() && !one.is_there());
}

#[test]
fn a_copy_that_waits_for_a_connection_can_be_cancelled() {
    let options = Options { reconnect_timeout: Duration::from_secs(30), ..quick() };
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, options);
    with(&device, async |client| {
        assert!(client.submit(read(0, 512)).await.result.is_ok());
        fake.change(|s| s.deaf = true);
        fake.cut(true);
        // What is submitted before the loss is known may be sent, and be in doubt.
        until("the loss", || {
            device.controller().wait_up(Instant::now(), super::controller::Patience::WhileDown).is_err()
        });
        let op = copy_op(&device, &[(0, 512)], 65536);
        let Op::Copy(request) = &op else { panic!("a copy") };
        let cancel = request.cancel.clone();
        let waits = client.submit(op);
        crate::reactor::local::sleep(Duration::from_millis(50)).await;
        cancel.set();
        let done = waits.await;
        assert!(done.copy.as_ref().is_none_or(|report| !report.rest_undefined), "it was never sent");
        let (kind, text, _) = error_of(done);
        assert!(kind == Kind::Cancelled, "{text}");
    });
}

#[test]
fn only_what_does_not_know_a_page_is_taken_not_to_have_it() {
    for page in [cns::CSI_CONTROLLER, cns::NAMESPACE_DESCRIPTORS] {
        for (status, fine) in [(Status::INVALID_FIELD, true), (Status::INTERNAL_ERROR, false)] {
            let fake = Fake::new(|_| {});
            fake.rule(move |seen| match seen.admin() {
                Some(AdminCommand::Identify(identify)) if identify.cns == page => Act::Answer(status, 0),
                _ => Act::Serve,
            });
            let opened = Namespace::open_with(&fake.url(1), quick());
            assert_eq!(opened.is_ok(), fine, "page {page:#x} {status}: {:?}", opened.err());
        }
    }
}

#[test]
fn with_fewer_queues_on_return_the_first_go_on() {
    let fake = Fake::new(|s| s.queues = 3);
    let device = open(&fake, 1, quick());
    let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
    local.block_on(async {
        let first = Client::open(device.clone()).unwrap();
        let second = Client::open(device.clone()).unwrap();
        let third = Client::open(device.clone()).unwrap();
        drop(first);
        crate::reactor::local::yield_now().await;
        fake.change(|s| s.queues = 1);
        fake.cut(true);
        // Queue ids 2 and 3 are none any more: both queues go on over one connection.
        let both = [second.submit(read(0, 512)), third.submit(read(512, 512))];
        for one in both {
            assert!(one.await.result.is_ok());
        }
        let fourth = Client::open(device.clone()).unwrap();
        drop(second);
        crate::reactor::local::yield_now().await;
        fake.cut(true);
        until("the third association", || fake.seen().iter().any(|s| s.cntlid == 3));
        for _ in 0..3 {
            assert!(third.submit(read(0, 512)).await.result.is_ok());
            assert!(fourth.submit(read(0, 512)).await.result.is_ok());
        }
        assert!(fake.seen().iter().all(|s| s.cntlid == 1 || s.qid <= 1));
        assert_eq!(fake.seen().iter().map(|s| s.cntlid).max(), Some(3));
    });
}

#[test]
fn queues_of_many_threads_share_the_one_connection_there_is() {
    for depth in [1, 3] {
        let fake = Fake::new(|s| {
            s.queues = 1;
            s.controller.maxcmd = std::num::NonZeroU16::new(depth);
        });
        let devices = [open(&fake, 1, quick()), open(&fake, 2, quick())];
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for n in 0..4u64 {
                let (device, start) = (&devices[usize::from(n % 2 == 1)], &start);
                scope.spawn(move || {
                    let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
                    local.block_on(async {
                        start.wait();
                        let client = Client::open(device.clone()).unwrap();
                        // Longer than one command takes, and more than there are places.
                        let bytes = pattern(n, 160 << 10);
                        // Each thread keeps to its own quarter.
                        let beside = |i: u64| (n << 18) + ((192 + 16 * i) << 10);
                        let writes: Vec<_> =
                            (0..3).map(|i| client.submit(write(beside(i), &bytes[..16 << 10]))).collect();
                        for one in writes {
                            let done = one.await;
                            assert!(done.result.is_ok(), "{done:?}");
                        }
                        assert!(client.submit(write(n << 18, &bytes)).await.result.is_ok());
                        let done = client.submit(read(n << 18, 160 << 10)).await;
                        assert!(done.buf[..] == bytes[..], "thread {n}, depth {depth}");
                    });
                });
            }
        });
        assert!(fake.seen().iter().all(|s| s.qid <= 1 && s.cntlid == 1));
    }
}

#[test]
fn a_controller_with_one_queue_copies_between_its_namespaces() {
    for (depth, offload) in [(1, false), (1, true), (128, false), (128, true)] {
        let fake = Fake::new(|s| {
            s.queues = 1;
            s.controller.maxcmd = std::num::NonZeroU16::new(depth);
            if !offload {
                s.controller.oncs &= !crate::nvme::identify::oncs::COPY;
            }
            s.disks.get_mut(&1).unwrap().bytes = pattern(9, 4096 * 512);
        });
        let (one, two) = (open(&fake, 1, quick()), open(&fake, 2, quick()));
        let segments = [Segment { source: 0, dest: 0, len: one.size() }];
        let job = Job::new(&segments, one.size(), two.size(), false).unwrap();
        let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
        let (from, to) = (one as Arc<dyn Device>, two as Arc<dyn Device>);
        let ended =
            local.block_on(async { copy(from, to, &job, &CopyOptions::default(), &Rc::default()).await });
        assert!(ended.error.is_none(), "depth {depth}, offload {offload}: {:?}", ended.error);
        assert!(fake.bytes(2) == fake.bytes(1), "depth {depth}, offload {offload}");
    }
}

#[test]
fn a_namespace_that_is_not_ready_gets_time() {
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, Options { command_timeout: Duration::from_secs(2), ..quick() });
    with(&device, async |client| {
        let mut since = None;
        fake.rule(move |_| {
            let first = *since.get_or_insert_with(Instant::now);
            if first.elapsed() < Duration::from_millis(120) {
                Act::Answer(Status::NAMESPACE_NOT_READY.retryable(), 0)
            } else {
                Act::Serve
            }
        });
        let done = client.submit(write(0, &[1; 512])).await;
        assert!(done.result.is_ok(), "{done:?}");
    });
}

/// What the receipt of a copy of 4096 bytes between two namespaces says when each Copy ends with `status`.
fn receipt(status: Status, dword0: u32) -> Receipt {
    // No more queues than namespaces.
    let fake = Fake::new(|s| s.queues = 2);
    let (one, two) = (open(&fake, 1, quick()), open(&fake, 2, quick()));
    fake.rule(move |seen| match seen.io() {
        Some(IoCommand::Copy(_)) => Act::Answer(status, dword0),
        _ => Act::Serve,
    });
    let segments =
        [Segment { source: 0, dest: 8192, len: 512 }, Segment { source: 1024, dest: 8704, len: 512 }];
    let job = Job::new(&segments, one.size(), two.size(), false).unwrap();
    let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
    let (from, to) = (one as Arc<dyn Device>, two as Arc<dyn Device>);
    local.block_on(async { copy(from, to, &job, &CopyOptions::default(), &Rc::default()).await }).receipt
}

//= promise 5
#[test]
fn only_what_stays_undefined_is_called_so() {
    let spans = |receipt: &Receipt| receipt.undefined.iter().map(|s| (s.offset, s.len)).collect::<Vec<_>>();
    let refused = receipt(Status::FAST_COPY_NOT_POSSIBLE, 0);
    assert_eq!((refused.good_bytes, spans(&refused)), (1024, vec![]), "done by other means");
    let failed = receipt(Status::WRITE_FAULT, 1);
    assert_eq!((failed.good_bytes, spans(&failed)), (512, vec![(8704, 512)]));
}

/// A copy of 2 MiB from namespace 1 to namespace 2 of a target that forgets what was not flushed, cut at the commands
/// `cuts`, counted from 0 over all I/O.
fn forgetful(
    cuts: &'static [usize],
    offload: bool,
    overlap: bool,
) -> (Fake, crate::copy::run::Ended, Vec<u8>) {
    let bytes = pattern(3, 4096 * 512);
    let fake = Fake::new(|s| {
        s.forgets = true;
        if !offload {
            s.controller.oncs &= !crate::nvme::identify::oncs::COPY;
        }
        s.disks.get_mut(&1).unwrap().bytes.clone_from(&bytes);
        s.stable = [(1, bytes.clone()), (2, vec![0; bytes.len()])].into();
    });
    let (one, two) = (open(&fake, 1, keen()), open(&fake, 2, keen()));
    let mut seen_io = 0;
    fake.rule(move |seen| {
        let now = seen_io;
        seen_io += usize::from(seen.qid > 0);
        if seen.qid > 0 && cuts.contains(&now) { Act::Cut { served: true, all: true } } else { Act::Serve }
    });
    let size = one.size();
    let segment = Segment { source: 0, dest: if overlap { 65536 } else { 0 }, len: size - 65536 };
    let job = Job::new(&[segment], size, size, overlap).unwrap();
    let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
    let to = if overlap { one.clone() } else { two };
    let (from, to) = (one as Arc<dyn Device>, to as Arc<dyn Device>);
    let ended = local.block_on(async { copy(from, to, &job, &CopyOptions::default(), &Rc::default()).await });
    (fake, ended, bytes)
}

//= promise 6
#[test]
fn what_a_target_forgets_with_a_connection_is_copied_again() {
    for offload in [false, true] {
        for cuts in [&[0][..], &[1], &[9], &[20], &[31], &[3, 12], &[33], &[34], &[7, 30, 40]] {
            let (fake, ended, bytes) = forgetful(cuts, offload, false);
            let what = format!("cut at {cuts:?}, offload {offload}");
            assert!(ended.error.is_none(), "{what}: {:?}", ended.error);
            let len = bytes.len() - 65536;
            assert!(fake.bytes(2)[..len] == bytes[..len], "{what}");
            assert!(fake.bytes(2)[len..].iter().all(|&b| b == 0), "{what}");
            let receipt = ended.receipt;
            assert!(receipt.flushed && receipt.good_prefix_bytes == len as u64, "{what}: {receipt:?}");
            assert_eq!(receipt.methods.values().sum::<u64>(), len as u64, "{what}: each byte once");
            // A flush after each MiB keeps the rework short: a MiB, and what was under way beside it.
            let most = if offload { 3 << 19 } else { len as u64 };
            assert!(receipt.copied_again_bytes <= cuts.len() as u64 * most, "{what}: {receipt:?}");
            assert!(!offload || flushes(&fake) >= 2, "{what}");
        }
    }
}

//= promise 6
#[test]
fn a_copy_onto_itself_whose_bytes_are_forgotten_stops_at_once_with_what_lasts() {
    // The source may be gone: nothing is copied again.
    let (_, ended, _) = forgetful(&[20], true, true);
    let error = words(&ended.error.unwrap());
    assert!(error.contains("cannot be copied again"), "{error}");
    let receipt = ended.receipt;
    // The first MiB was flushed, with a step that ran beside it: back to front, that is not a prefix.
    assert!((1 << 20..2 << 20).contains(&receipt.good_bytes), "{receipt:?}");
    assert_eq!((receipt.good_prefix_bytes, receipt.copied_again_bytes), (0, 0));
}

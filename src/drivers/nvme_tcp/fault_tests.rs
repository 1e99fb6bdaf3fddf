//! What becomes of commands when connections are cut, answers stay away or are malformed.

use super::testing::{Act, Disk, Fake, Seen, disk};
use super::tests::*;
use super::{Namespace, Options};
use crate::block::{Completion, Device, Kind, Op};
use crate::drivers::testing::pattern;
use crate::nvme::feature::AsyncEvent;
use crate::nvme::{AdminCommand, IoCommand, Status};
use crate::reactor::local::{Client, Local};
use crate::reactor::{EngineChoice, choose};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a script of operations, one after the other, is to leave on both namespaces.
async fn script(devices: &[Arc<Namespace>; 2], clients: &[Client; 2]) -> Vec<Completion> {
    let long = pattern(1, 300 << 10);
    let mut done = Vec::new();
    done.push(clients[0].submit(write(0, &long)).await);
    done.push(clients[0].submit(write(512, &pattern(2, 512))).await);
    done.push(clients[0].submit(read(0, 300 << 10)).await);
    done.push(clients[1].submit(copy_op(&devices[0], &[(0, 512), (1024, 1024)], 4096)).await);
    done.push(
        clients[1].submit(Op::WriteZeroes { range: range(4096, 512), may_unmap: false, lazy: false }).await,
    );
    let three = [
        clients[1].submit(write(8192, &pattern(3, 4096))),
        clients[1].submit(write(16384, &pattern(4, 16384))),
        clients[1].submit(read(4096, 512)),
    ];
    for one in three {
        done.push(one.await);
    }
    done.push(clients[1].submit(Op::Flush).await);
    done
}

fn check_script(done: &[Completion], fake: &Fake, flush_may_fail: bool, what: &str) {
    let flush = done.len() - 1;
    for (i, one) in done.iter().enumerate() {
        if i == flush && flush_may_fail {
            let told = one.result.as_ref().err().is_none_or(|e| e.to_string().contains("not yet flushed"));
            assert!(told, "{what}: {one:?}");
        } else {
            assert!(one.result.is_ok(), "{what}: operation {i}: {one:?}");
        }
    }
    let mut model = pattern(1, 300 << 10);
    model[512..1024].copy_from_slice(&pattern(2, 512));
    assert!(done[2].buf[..] == model[..], "{what}: read");
    assert!(done[7].buf.iter().all(|&b| b == 0), "{what}: read of zeroes");
    let (one, two) = (fake.bytes(1), fake.bytes(2));
    assert!(one[..300 << 10] == model[..], "{what}");
    assert!(two[4096..4608].iter().all(|&b| b == 0) && two[4608..5632] == model[1024..2048], "{what}");
    assert!(two[8192..12288] == pattern(3, 4096) && two[16384..32768] == pattern(4, 16384), "{what}");
}

//= promise 5, events
#[test]
fn a_connection_cut_at_any_command_loses_and_doubles_nothing() {
    for (served, all) in [(false, false), (true, false), (true, true)] {
        for n in 0.. {
            let what = format!("cut at {n}, served {served}, all {all}");
            let fake = Fake::new(|_| {});
            let devices = [open(&fake, 1, keen()), open(&fake, 2, keen())];
            let count = Arc::new(AtomicUsize::new(0));
            let counted = count.clone();
            fake.rule(move |seen: &Seen| {
                let hit = seen.qid > 0 && counted.fetch_add(1, Ordering::SeqCst) == n;
                if hit { Act::Cut { served, all } } else { Act::Serve }
            });
            let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
            let done = local.block_on(async {
                let clients =
                    [Client::open(devices[0].clone()).unwrap(), Client::open(devices[1].clone()).unwrap()];
                script(&devices, &clients).await
            });
            drop(local);
            check_script(&done, &fake, all, &what);
            // What had an answer was not sent again: each of the sequence was seen once before the cut.
            let io: Vec<[u8; 62]> = fake.seen().iter().filter(|s| s.qid > 0).map(identity_of).collect();
            let commands = count.load(Ordering::SeqCst);
            if commands <= n {
                assert_eq!(commands, 13, "{what}: the script is that long without a cut");
                break;
            }
            for (i, early) in io[..n.min(9)].iter().enumerate() {
                let times = io.iter().filter(|c| *c == early).count();
                assert_eq!(times, 1, "{what}: command {i} had its answer and was sent {times} times");
            }
        }
    }
}

/// A command without its id.
fn identity_of(seen: &Seen) -> [u8; 62] {
    let mut out = [0; 62];
    out[..2].copy_from_slice(&seen.sqe.0[..2]);
    out[2..].copy_from_slice(&seen.sqe.0[4..]);
    out
}

//= promise 5
#[test]
fn a_write_that_may_still_happen_is_not_sent_again() {
    // The target notices late that we are gone: the first write would land after what we write later.
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, keen());
    let mut first = true;
    fake.rule(move |seen| {
        let write = matches!(seen.io(), Some(IoCommand::Write(_)));
        if write && std::mem::take(&mut first) { Act::Ghost(Duration::from_millis(150)) } else { Act::Serve }
    });
    with(&device, async |client| {
        assert!(client.submit(write(0, &pattern(1, 4096))).await.result.is_ok());
        assert!(client.submit(write(0, &pattern(2, 4096))).await.result.is_ok());
        until("the end of the first write", || fake.ghosts_left() == 0);
        assert!(client.submit(read(0, 4096)).await.buf[..] == pattern(2, 4096)[..]);
    });
}

//= promise 5
#[test]
fn a_reset_controller_may_still_write_what_it_had_begun() {
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, keen());
    let mut first = true;
    fake.rule(move |seen| {
        let write = matches!(seen.io(), Some(IoCommand::Write(_)));
        if write && std::mem::take(&mut first) { Act::Late(Duration::from_millis(150)) } else { Act::Serve }
    });
    with(&device, async |client| {
        assert!(client.submit(write(0, &pattern(1, 4096))).await.result.is_ok());
        assert!(client.submit(write(0, &pattern(2, 4096))).await.result.is_ok());
        until("the end of the first write", || fake.ghosts_left() == 0);
        assert!(client.submit(read(0, 4096)).await.buf[..] == pattern(2, 4096)[..]);
        assert!(client.submit(Op::Flush).await.result.is_ok(), "the controller was there all the time");
    });
}

#[test]
fn reads_go_on_while_a_write_is_in_doubt() {
    let fake = Fake::new(|_| {});
    // The doubt lasts two keep-alive time-outs; the rest is done long before.
    let device = open(&fake, 1, Options { keep_alive: Duration::from_secs(3), ..quick() });
    let mut first = true;
    fake.rule(move |seen| {
        let write = matches!(seen.io(), Some(IoCommand::Write(_)));
        if write && std::mem::take(&mut first) { Act::Cut { served: false, all: true } } else { Act::Serve }
    });
    with(&device, async |client| {
        let doubtful = client.submit(write(0, &pattern(1, 4096)));
        assert!(client.submit(read(8192, 4096)).await.result.is_ok());
        assert!(
            client.submit(write(16384, &pattern(2, 512))).await.result.is_ok(),
            "it was never sent before"
        );
        assert!(doubtful.await.result.is_ok());
    });
    let order: Vec<u64> = fake
        .io_seen()
        .iter()
        .filter_map(|c| match c {
            IoCommand::Read(e) | IoCommand::Write(e) => Some(e.slba),
            _ => None,
        })
        .collect();
    assert_eq!(order, [0, 16, 32, 0], "the doubtful one went again last");
}

//= promise 6
#[test]
fn a_flush_after_a_lost_association_does_not_call_durable_what_may_be_gone() {
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, quick());
    with(&device, async |client| {
        assert!(client.submit(write(0, &[1; 512])).await.result.is_ok());
        assert!(client.submit(Op::Flush).await.result.is_ok());
        // Nothing unflushed: nothing to lose.
        fake.cut(true);
        assert!(client.submit(Op::Flush).await.result.is_ok());
        assert!(client.submit(write(0, &[2; 512])).await.result.is_ok());
        // Only the I/O queue: the controller is there, and with it what it was given.
        fake.cut(false);
        assert!(client.submit(read(0, 512)).await.result.is_ok());
        assert!(client.submit(Op::Flush).await.result.is_ok());
        assert!(client.submit(write(0, &[3; 512])).await.result.is_ok());
        fake.cut(true);
        assert!(client.submit(read(0, 512)).await.result.is_ok());
        let (kind, text, _) = error_of(client.submit(Op::Flush).await);
        assert!(kind == Kind::Io && text.contains("not yet flushed"), "{text}");
        assert_eq!(error_of(client.submit(Op::Flush).await).0, Kind::Io, "nor later");
        let fresh = Client::open(device.clone()).unwrap();
        assert!(fresh.submit(write(0, &[4; 512])).await.result.is_ok());
        assert!(fresh.submit(Op::Flush).await.result.is_ok());
    });
}

#[test]
fn a_missed_keep_alive_ends_the_association_and_another_takes_its_place() {
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, keen());
    fake.rule(|seen| match seen.admin() {
        Some(AdminCommand::KeepAlive) if seen.cntlid == 1 => Act::Swallow,
        _ => Act::Serve,
    });
    with(&device, async |client| {
        until("another association", || fake.seen().iter().any(|s| s.cntlid == 2));
        assert!(client.submit(write(0, &[7; 512])).await.result.is_ok());
        // Formats 2h and 3h were enabled again.
        let two = open(&fake, 2, keen());
        assert!(client.submit(copy_op(&two, &[(0, 512)], 4096)).await.result.is_ok());
    });
    assert_eq!(fake.bytes(1)[..512], [7; 512]);
}

//= promise 8
#[test]
fn a_command_without_an_answer_fails_and_the_rest_goes_on() {
    let options = Options { command_timeout: Duration::from_secs(1), ..keen() };
    for swallow_write in [false, true] {
        let fake = Fake::new(|_| {});
        let device = open(&fake, 1, options);
        fake.rule(move |seen| match seen.io() {
            Some(IoCommand::Write(e)) if swallow_write && e.slba == 8 => Act::Swallow,
            Some(IoCommand::Read(e)) if !swallow_write && e.slba == 8 => Act::Swallow,
            _ => Act::Serve,
        });
        with(&device, async |client| {
            let op = if swallow_write { write(4096, &[1; 512]) } else { read(4096, 512) };
            let late = client.submit(op);
            let beside = client.submit(write(0, &[2; 512]));
            let (kind, text, good) = error_of(late.await);
            assert!(kind == Kind::Io && good == 0 && text.contains("did not answer in time"), "{text}");
            assert!(beside.await.result.is_ok());
            assert!(client.submit(read(0, 512)).await.buf[..] == [2; 512]);
        });
        assert!(fake.seen().iter().any(|s| s.cntlid == 2), "the controller was reset");
    }
}

//= promise 8, events
#[test]
fn a_target_that_stays_away_fails_requests_in_the_end() {
    let options = Options { reconnect_timeout: Duration::from_secs(1), ..quick() };
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, options);
    with(&device, async |client| {
        assert!(client.submit(write(0, &[1; 512])).await.result.is_ok());
        fake.change(|s| s.deaf = true);
        fake.cut(true);
        let both = [client.submit(write(0, &[2; 512])), client.submit(read(0, 512))];
        for one in both {
            let (kind, text, good) = error_of(one.await);
            assert_eq!((kind, good), (Kind::Io, 0));
            assert!(text.contains("could not be made again within 1s"), "{text}");
        }
        // And at once from now on, also for new queues.
        assert_eq!(error_of(client.submit(read(0, 512)).await).0, Kind::Io);
        assert!(Client::open(device.clone()).is_err());
        // But the target is looked for all the time, and what is open works again when it is back.
        fake.change(|s| s.deaf = false);
        until("the connection", || Client::open(device.clone()).is_ok());
        assert!(client.submit(read(0, 512)).await.buf[..] == [1; 512]);
        assert!(client.submit(write(0, &[2; 512])).await.result.is_ok());
        let again = open(&fake, 1, options);
        assert!(Arc::ptr_eq(&again, &device));
    });
}

#[test]
fn malformed_answers_end_the_connection_and_the_error_names_them() {
    // A response to nobody; an unknown type; a length that lies; a header alone.
    let response = |cid: u16| {
        let mut pdu = vec![5, 0, 24, 0, 24, 0, 0, 0];
        pdu.resize(24, 0);
        pdu[20..22].copy_from_slice(&cid.to_le_bytes());
        pdu
    };
    let mut r2t = vec![9, 0, 24, 0, 24, 0, 0, 0];
    r2t.resize(24, 0);
    let mut data = vec![7, 4, 24, 24, 255, 255, 255, 255];
    data.resize(24, 0);
    for bytes in [response(77), vec![0x55; 24], r2t, data, vec![5, 0, 24, 0, 1, 0, 0, 0]] {
        // Once: the command goes again. Always: it is given up.
        for always in [false, true] {
            let fake = Fake::new(|_| {});
            let device = open(&fake, 1, quick());
            let (bytes, mut sent) = (bytes.clone(), false);
            let shown = format!("{bytes:02x?} always {always}");
            fake.rule(move |seen| {
                let hit = seen.qid > 0 && (always || !sent);
                sent |= hit;
                if hit { Act::Raw(bytes.clone()) } else { Act::Serve }
            });
            with(&device, async |client| {
                let done = client.submit(read(0, 4096)).await;
                if always {
                    let (kind, text, good) = error_of(done);
                    assert_eq!((kind, good), (Kind::Io, 0), "{shown}");
                    assert!(text.contains("broke the protocol"), "{shown}: {text}");
                } else {
                    assert!(done.result.is_ok(), "{shown}: {done:?}");
                }
            });
        }
    }
}

#[test]
fn a_short_read_is_no_success() {
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, quick());
    fake.rule(|_| Act::Short(512));
    with(&device, async |client| {
        let (kind, text, good) = error_of(client.submit(read(0, 4096)).await);
        assert_eq!((kind, good), (Kind::Io, 0));
        assert!(text.contains("sent 512 bytes of 4096 and reported success"), "{text}");
    });
}

#[test]
fn what_the_controller_says_may_be_tried_again_is_until_it_passes() {
    let passes = [
        Status::TRANSIENT_TRANSPORT_ERROR,
        Status::COMMAND_INTERRUPTED,
        Status::NAMESPACE_NOT_READY,
        Status::INTERNAL_PATH_ERROR,
        Status::ANA_INACCESSIBLE,
        Status::ANA_TRANSITION,
        Status::CONTROLLER_PATH_ERROR,
        Status::INSUFFICIENT_RESOURCES,
    ];
    for status in passes {
        // Longer than any small number of attempts.
        let fake = Fake::new(|_| {});
        let (device, other) = (open(&fake, 1, quick()), open(&fake, 2, quick()));
        let mut left = 7;
        fake.rule(move |_| {
            left -= 1;
            if left >= 0 { Act::Answer(status.retryable(), 0) } else { Act::Serve }
        });
        with(&device, async |client| {
            let done = client.submit(copy_op(&other, &[(0, 512)], 4096)).await;
            assert!(done.result.is_ok(), "{status}: {done:?}");
        });
        // For ever: until the time is over.
        let fake = Fake::new(|_| {});
        let options = Options { reconnect_timeout: Duration::from_millis(300), ..quick() };
        let device = open(&fake, 1, options);
        fake.rule(move |_| Act::Answer(status.retryable(), 0));
        with(&device, async |client| {
            let (_, text, good) = error_of(client.submit(write(0, &[1; 512])).await);
            assert!(text.contains("tried ") && text.contains(&status.to_string()) && good == 0, "{text}");
        });
        // Do not retry means it.
        let fake = Fake::new(|_| {});
        let device = open(&fake, 1, quick());
        fake.rule(move |_| Act::Answer(status, 0));
        with(&device, async |client| {
            assert!(client.submit(write(0, &[1; 512])).await.result.is_err());
        });
        assert_eq!(fake.io_seen().len(), 1, "{status}");
    }
    // What may have been an accident: a few times.
    let fake = Fake::new(|_| {});
    let device = open(&fake, 1, quick());
    fake.rule(|_| Act::Answer(Status::WRITE_FAULT.retryable(), 0));
    with(&device, async |client| {
        assert!(client.submit(write(0, &[1; 512])).await.result.is_err());
        assert_eq!(fake.io_seen().len(), 6);
        assert!(client.submit(Op::Flush).await.result.is_err());
        assert_eq!(fake.io_seen().len(), 7, "a flush that failed is not tried again");
    });
}

#[test]
fn a_delay_that_the_controller_asks_for_is_kept_and_bounded() {
    for (units, least, timeout) in [(2u16, 200, 20_000), (u16::MAX, 250, 300)] {
        let fake = Fake::new(|s| s.controller.retry_delays = [0, units, 0]);
        let options = Options { reconnect_timeout: Duration::from_millis(timeout), ..quick() };
        let device = open(&fake, 1, options);
        assert!(fake.behavior().retry_delays, "the controller was told that this host knows delays");
        let mut left = 1;
        fake.rule(move |_| {
            left -= 1;
            let delayed = Status::from_bits(Status::COMMAND_INTERRUPTED.retryable().bits() | 2 << 11);
            if left >= 0 { Act::Answer(delayed, 0) } else { Act::Serve }
        });
        with(&device, async |client| {
            let start = std::time::Instant::now();
            assert!(client.submit(write(0, &[1; 512])).await.result.is_ok());
            assert!(start.elapsed() >= Duration::from_millis(least), "{units}: {:?}", start.elapsed());
        });
    }
}

#[test]
fn a_write_in_doubt_for_longer_than_there_is_patience_fails_and_no_other_follows_it() {
    // The controller's timer runs in steps of 6553 s.
    let fake = Fake::new(|s| s.controller.kas = std::num::NonZeroU16::new(u16::MAX));
    let options = Options {
        reconnect_timeout: Duration::from_millis(1500),
        command_timeout: Duration::from_secs(2),
        ..keen()
    };
    let device = open(&fake, 1, options);
    fake.rule(|seen| match seen.io() {
        Some(IoCommand::Write(e)) if e.slba == 0 => Act::Cut { served: false, all: true },
        _ => Act::Serve,
    });
    with(&device, async |client| {
        let (kind, text, good) = error_of(client.submit(write(0, &[1; 512])).await);
        assert!(kind == Kind::Io && good == 0 && text.contains("the bytes may change until then"), "{text}");
        assert!(client.submit(read(0, 512)).await.result.is_ok(), "reads go on");
        let (_, text, _) = error_of(client.submit(write(4096, &[1; 512])).await);
        assert!(text.contains("could overwrite this one"), "{text}");
        let fresh = Client::open(device.clone()).unwrap();
        assert!(fresh.submit(write(4096, &[1; 512])).await.result.is_err(), "on any queue");
    });
}

#[test]
fn a_namespace_that_changes_is_followed_and_another_in_its_place_is_not() {
    let fake = Fake::new(|_| {});
    let (one, two) = (open(&fake, 1, quick()), open(&fake, 2, quick()));
    let larger = Disk { ids: disk(1, 8, 9).ids, ..disk(1, 8192, 9) };
    fake.change(|s| drop(s.disks.insert(1, larger)));
    fake.event(AsyncEvent::NAMESPACE_ATTRIBUTE);
    until("the new size", || one.size() == 8192 * 512);
    // After a new connection the same is asked.
    fake.change(|s| s.disks.get_mut(&1).unwrap().ids.uuid = Some([9; 16]));
    fake.cut(true);
    with(&two, async |client| assert!(client.submit(read(0, 512)).await.result.is_ok()));
    with(&one, async |client| {
        let (kind, text, _) = error_of(client.submit(read(0, 512)).await);
        assert!(kind == Kind::Io && text.contains("another namespace in its place"), "{text}");
    });
    fake.change(|s| drop(s.disks.remove(&2)));
    fake.event(AsyncEvent::NAMESPACE_ATTRIBUTE);
    with(&two, async |client| {
        until("the end of the namespace", || !two.is_there());
        let (kind, text, _) = error_of(client.submit(read(0, 512)).await);
        assert!(kind == Kind::NotFound && text.contains("there is no namespace 2; there are 1"), "{text}");
    });
    let again = open(&fake, 1, quick());
    assert!(!Arc::ptr_eq(&again, &one) && again.identity() != one.identity());
}

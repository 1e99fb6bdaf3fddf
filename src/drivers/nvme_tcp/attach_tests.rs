//! What the host driver says of whom it meets: attaching, refusals, discovery.

use super::testing::{Fake, NQN, Setup, disk, log_of};
use super::tests::*;
use super::{Namespace, Options, Url, discover};
use crate::block::places::is_one_device;
use crate::block::{Device, Kind};
use crate::copy::run::{Options as CopyOptions, copy};
use crate::copy::{Job, Segment};
use crate::nvme::Status;
use crate::nvme::fabrics::{ConnectData, Refusal};
use crate::reactor::local::{Client, Local};
use crate::reactor::{EngineChoice, choose};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What opening namespace 1 of a fake says.
fn refusal(edit: impl FnOnce(&mut Setup)) -> (Kind, String) {
    let fake = Fake::new(edit);
    let error = Namespace::open_with(&fake.url(1), quick()).err().unwrap();
    (error.kind(), words(&error))
}

#[test]
fn what_stands_in_the_way_is_said_in_words() {
    let zoned = |s: &mut Setup| s.disks.get_mut(&1).unwrap().ids.csi = Some(2);
    let metadata = |s: &mut Setup| s.disks.get_mut(&1).unwrap().page.formats[0].metadata_bytes = 8;
    let pi = |s: &mut Setup| s.disks.get_mut(&1).unwrap().page.dps = 1;
    let endless = |s: &mut Setup| s.disks.get_mut(&1).unwrap().page.size_blocks = u64::MAX;
    let missing = |s: &mut Setup| s.disks = [(2, disk(2, 8, 9)), (7, disk(7, 8, 9))].into();
    let none = |s: &mut Setup| s.disks.clear();
    let nqn = |s: &mut Setup| s.refuse = Some(Refusal::in_data(ConnectData::SUBSYSTEM_AT));
    let host = |s: &mut Setup| s.refuse = Some(Refusal::in_data(ConnectData::HOST_AT));
    let invalid = |s: &mut Setup| s.refuse = Some(Status::CONNECT_INVALID_HOST.into());
    let auth = |s: &mut Setup| s.refuse = Some(Status::AUTHENTICATION_REQUIRED.into());
    let busy = |s: &mut Setup| s.refuse = Some(Status::CONNECT_CONTROLLER_BUSY.into());
    let other = |s: &mut Setup| s.controller.cntlid = 1;
    let pages = |s: &mut Setup| s.cap.0 |= 1 << 48;
    let capsules = |s: &mut Setup| s.controller.ioccsz = 3;
    let no_beats = |s: &mut Setup| s.controller.kas = None;
    let no_sgl = |s: &mut Setup| s.controller.sgls = 0;
    for (name, found, kind, part) in [
        ("missing", refusal(missing), Kind::NotFound, "there is no namespace 1; there are 2, 7"),
        ("none", refusal(none), Kind::NotFound, "the subsystem shows none to this host"),
        ("zoned", refusal(zoned), Kind::Unsupported, "namespace 1 is zoned"),
        ("metadata", refusal(metadata), Kind::Unsupported, "8 bytes of metadata"),
        ("pi", refusal(pi), Kind::Unsupported, "protection information (type 1)"),
        ("endless", refusal(endless), Kind::Unsupported, "more than 2^63 - 1 bytes"),
        ("nqn", refusal(nqn), Kind::NotFound, "no subsystem of that name there; blkcopy info nvme-tcp://127"),
        ("host", refusal(host), Kind::Permission, "does not admit this host (nqn."),
        ("invalid", refusal(invalid), Kind::Permission, "does not admit this host (nqn."),
        ("auth", refusal(auth), Kind::Permission, "requires authentication"),
        ("atr", refusal(|s| s.authenticate = true), Kind::Permission, "requires authentication"),
        ("busy", refusal(busy), Kind::Io, "no free controller or queue"),
        ("other", refusal(other), Kind::Io, "reports id 2, but Connect reported 1"),
        ("pages", refusal(pages), Kind::Unsupported, "memory pages of at least 8192 bytes"),
        ("capsules", refusal(capsules), Kind::Unsupported, "IOCCSZ 3"),
        ("beats", refusal(no_beats), Kind::Unsupported, "no keep-alive (KAS 0)"),
        ("sgls", refusal(no_sgl), Kind::Unsupported, "does not support SGLs"),
    ] {
        assert_eq!(found.0, kind, "{name}: {}", found.1);
        assert!(found.1.contains(part), "{name}: {}", found.1);
        assert!(found.1.contains("nvme-tcp://127.0.0.1:"), "{name}: {}", found.1);
    }
    for (text, part) in [
        ("nvme-tcp://127.0.0.1:1", "does not name a subsystem; blkcopy info"),
        ("nvme-tcp://127.0.0.1:1/nqn", "does not name a namespace; add ?nsid=N"),
        ("nvme-tcp://127.0.0.1:1/nqn.2014-08.org.nvmexpress.discovery?nsid=1", "has no namespaces"),
    ] {
        let error = Namespace::open(&Url::parse(text).unwrap()).err().unwrap();
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(words(&error).contains(part), "{error}");
    }
}

#[test]
fn an_io_queue_of_another_controller_is_refused() {
    let fake = Fake::new(|s| s.io_cntlid_off = 3);
    let device = open(&fake, 1, quick());
    let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
    local.block_on(async {
        let error = Client::open(device.clone()).err().unwrap();
        assert!(words(&error).contains("was connected to controller 4, not 1"), "{error}");
    });
}

/// Listens, and does `f` to whoever connects, until the port is asked no more.
fn service(f: impl Fn(std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            f(stream);
        }
    });
    format!("nvme-tcp://{address}/{NQN}?nsid=1")
}

#[test]
fn no_service_and_a_wrong_one_are_told_apart() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = format!("nvme-tcp://127.0.0.1:{port}/{NQN}?nsid=1");
    let closes = service(drop);
    let talks = service(|mut s| {
        let _ = s.write_all(b"220 mail.example ESMTP ready, and a few more words to fill a header\r\n");
        let _ = s.read(&mut [0; 512]);
        std::thread::sleep(Duration::from_millis(50));
    });
    let silent = service(|s| {
        std::thread::sleep(Duration::from_secs(3));
        drop(s);
    });
    for (url, part) in [
        (nobody, "nothing listens there"),
        (closes, "closes the connection at once"),
        (talks, "does not speak NVMe/TCP"),
        (silent, "does not speak NVMe/TCP (the peer did not answer in time)"),
    ] {
        let options = Options { connect_timeout: Duration::from_millis(500), ..quick() };
        let error = Namespace::open_with(&Url::parse(&url).unwrap(), options).err().unwrap();
        assert_eq!(error.kind(), Kind::Io);
        assert!(words(&error).contains(part), "{}", words(&error));
    }
    let name = Url::parse("nvme-tcp://no-such-host.invalid/nqn?nsid=1").unwrap();
    assert_eq!(Namespace::open(&name).err().unwrap().kind(), Kind::NotFound);
}

#[test]
fn digests_are_as_asked_or_refused() {
    let fake = Fake::new(|s| s.io.digests.data = false);
    let options = Options { data_digest: true, ..quick() };
    let error = Namespace::open_with(&fake.url(1), options).err().unwrap();
    assert!(words(&error).contains("leave out hdgst and ddgst"), "{error}");
    let held = open(&fake, 1, quick());
    let options = Options { header_digest: true, ..quick() };
    let error = Namespace::open_with(&fake.url(1), options).err().unwrap();
    assert!(words(&error).contains("already attached with other digests"), "{error}");
    drop(held);
}

#[test]
fn discovery_lists_subsystems_and_their_namespaces() {
    let fake = Fake::new(|s| {
        s.disks.get_mut(&2).unwrap().ids.csi = Some(2);
        s.disks.get_mut(&1).unwrap().ids.nguid = Some([0xab; 16]);
    });
    let address = fake.address;
    fake.change(|s| s.log = log_of(address));
    let url = Url::parse(&format!("nvme-tcp://{address}")).unwrap();
    let found = discover(&url).unwrap();
    assert_eq!(found.len(), 2);
    let here = &found[0];
    assert_eq!((here.nqn.as_str(), here.model.as_deref()), (NQN, Some("fake controller")));
    assert!(here.copies_across && here.error.is_none());
    let one = &here.namespaces[0];
    assert_eq!((one.nsid, one.size_bytes, one.block_size), (1, 4096 * 512, 512));
    assert_eq!(one.uuid.as_deref(), Some("42424242-4242-4242-4242-424200000001"));
    assert_eq!(one.nguid.as_deref(), Some("abababababababababababababababab"));
    let copies = one.copy.as_ref().unwrap();
    assert_eq!((copies.max_bytes, copies.max_range_bytes, copies.max_nr_ranges), (65536, 32768, 8));
    assert_eq!(copies.formats, [0, 2]);
    assert!(Namespace::open_with(&Url::parse(&one.url).unwrap(), quick()).is_ok());
    assert!(here.namespaces[1].error.as_ref().unwrap().contains("is zoned"));
    assert!(found[1].error.as_ref().unwrap().contains("nothing listens there"));
    fake.change(|s| s.log.clear());
    let error = discover(&url).unwrap_err();
    assert!(words(&error).contains("no discovery service there; name a subsystem"), "{error}");
}

//= promise 5
#[test]
fn two_controllers_that_show_one_namespace_are_not_taken_for_one_device() {
    let filled = |byte: u8| Fake::new(move |s| s.disks.get_mut(&1).unwrap().bytes.fill(byte));
    // Clones: another disk behind every name alike. The way to the copy must not be found by those names.
    let (a, b) = (filled(1), filled(2));
    let (one, clone) = (open(&a, 1, quick()), open(&b, 1, quick()));
    // And one namespace by two ways.
    let mut url = a.url(1);
    url.host = Some(crate::nvme::Nqn::new("nqn.x:another-host").unwrap());
    let again = Namespace::open_with(&url, quick()).unwrap();
    let dyned = |n: &Arc<Namespace>| n.clone() as Arc<dyn Device>;
    let local = Local::new(choose(EngineChoice::Auto, true).unwrap().0);
    for other in [&clone, &again] {
        assert_eq!(one.identity(), other.identity());
        assert_eq!(is_one_device(&dyned(&one), &dyned(other)).unwrap_err().kind(), Kind::Overlap);
        // Also where nothing overlaps.
        let job = Job::new(&[Segment { source: 0, dest: 65536, len: 4096 }], one.size(), one.size(), false);
        let (from, to, options) = (dyned(&one), dyned(other), CopyOptions::default());
        let ended = local.block_on(async { copy(from, to, &job.unwrap(), &options, &Rc::default()).await });
        let error = ended.error.unwrap();
        assert!(error.kind() == Kind::Overlap && words(&error).contains("clones of each other"), "{error}");
    }
    assert!(b.bytes(1).iter().all(|&byte| byte == 2) && a.bytes(1).iter().all(|&byte| byte == 1));
    assert!(is_one_device(&dyned(&one), &dyned(&open(&a, 1, quick()))).unwrap());
    assert!(!is_one_device(&dyned(&one), &dyned(&open(&a, 2, quick()))).unwrap());
}

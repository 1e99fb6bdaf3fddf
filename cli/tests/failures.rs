//! Copies that end badly half-way: a full destination, a source that cannot be read, a limit. The receipt calls nothing
//! good that is not.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{
    MIB, Ran, Undo, attach, blkcopy, bytes, folder, front_is_equal, loops_or_why, mount_loop, mount_tmpfs,
    must, sh, skip,
};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Exit code 2, an outcome that says so, sums that agree; the receipt.
fn failed(ran: &Ran, kinds: &[&str]) -> serde_json::Value {
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let receipt = ran.json();
    assert_eq!(receipt["outcome"], "failed", "{receipt:#}");
    assert!(kinds.contains(&receipt["error"]["kind"].as_str().unwrap()), "{receipt:#}");
    let moved: u64 =
        receipt["methods"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum();
    let number = |key: &str| receipt[key].as_u64().unwrap();
    assert_eq!(number("good_bytes") + number("cut_off_bytes"), moved, "{receipt:#}");
    assert!(receipt["good_prefix_bytes"].as_u64() <= receipt["good_bytes"].as_u64());
    assert!(ran.err.contains("blkcopy: ") && ran.err.contains("cause: "), "{}", ran.err);
    receipt
}

fn good_prefix(receipt: &serde_json::Value) -> u64 {
    receipt["good_prefix_bytes"].as_u64().unwrap()
}

//= promise 5
#[test]
fn a_full_file_system_keeps_what_is_good_and_says_how_much() {
    let test = "a_full_file_system_keeps_what_is_good_and_says_how_much";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    let source = base.path().join("a");
    std::fs::write(&source, bytes(24 << 20, 1)).unwrap();
    let places = [
        ("tmpfs", mount_tmpfs(&mut undo, base.path(), "small", "8m")),
        ("ext4", mount_loop(&mut undo, base.path(), "ext4", "mkfs.ext4 -q", "16M")),
        ("btrfs", mount_loop(&mut undo, base.path(), "btrfs", "mkfs.btrfs -q", "120M")),
    ];
    for (name, place) in places {
        let place = match place {
            Ok(place) => place,
            Err(why) => {
                skip(&format!("{test} on {name}"), &why);
                continue;
            }
        };
        if name == "btrfs" {
            // Smaller than that it cannot be made: filled up first.
            must(&format!(
                "dd if=/dev/urandom of={}/fill bs=1M status=none || true; truncate -s -4M {0}/fill; sync",
                place.display()
            ));
        }
        let dest = place.join("b");
        for existing in [false, true] {
            must(&format!("rm -f {0}", dest.display()));
            if existing {
                std::fs::write(&dest, b"old").unwrap();
            }
            let ran = blkcopy(base.path(), &["cp", "--json", "a", dest.to_str().unwrap()]);
            let receipt = failed(&ran, &["no-space"]);
            let good = good_prefix(&receipt);
            eprintln!("{name}: {good} bytes are good; {}", ran.err.trim_end());
            assert!(ran.err.contains("try: free space at the destination"), "{}", ran.err);
            if !existing && good == 0 {
                assert!(!dest.exists());
                continue;
            }
            assert_eq!(receipt["good_bytes"], good, "{name}: what was cut off is not called good");
            assert_eq!(dest.metadata().unwrap().len(), good, "{name}: what is not good is cut off");
            front_is_equal(&source, &dest, good);
        }
        must(&format!("rm -f {}", dest.display()));
    }
}

/// Length of the equal prefix of a file and of a device from `offset` on, `len` bytes at most.
fn equal_front(file: &Path, device: &Path, offset: u64, len: u64) -> u64 {
    let ran = Ran::of(
        std::process::Command::new("cmp")
            .args(["-n", &len.to_string(), "-i", &format!("0:{offset}")])
            .args([file, device])
            .env("LC_ALL", "C")
            .output()
            .unwrap(),
    );
    // "a b differ: char 123, line 4": counted from 1.
    let differs = ran.out.split("char ").nth(1).and_then(|t| t.split(',').next());
    match ran.code {
        Some(0) => len,
        _ => differs.and_then(|n| n.parse::<u64>().ok()).unwrap() - 1,
    }
}

/// Asks the kernel, without blkcopy: a write that its full file system cuts short, is it an error?
fn loop_calls_short_writes_whole(base: &Path) -> bool {
    let mut undo = Undo::default();
    let small = mount_tmpfs(&mut undo, base, "probe", "8m").unwrap();
    // Space ends 12 KiB before a MiB does, in the middle of the request.
    must(&format!("head -c 12288 /dev/zero > {0}/pre; truncate -s 64M {0}/back", small.display()));
    let device = attach(&mut undo, &small.join("back")).unwrap();
    let fill = format!("tr '\\0' x < /dev/zero | head -c 8M > {}/x", base.display());
    let write = |skip: u64, count: u64| {
        sh(&format!(
            "dd if={}/x of={} bs=1M seek={skip} count={count} oflag=direct conv=notrunc,fsync status=none",
            base.display(),
            device.display()
        ))
    };
    must(&fill);
    write(0, 7).unwrap();
    write(7, 1).is_ok() && small.join("back").metadata().unwrap().blocks() * 512 < 8 << 20
}

//= promise 5, events
#[test]
fn a_loop_device_that_runs_full_or_dry() {
    let test = "a_loop_device_that_runs_full_or_dry";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    let source = base.path().join("a");
    std::fs::write(&source, bytes(24 << 20, 2)).unwrap();
    // Full: the device promises 64 MiB, the file system under it has 8.
    let small = mount_tmpfs(&mut undo, base.path(), "small", "8m").unwrap();
    must(&format!("truncate -s 64M {}/back", small.display()));
    let device = attach(&mut undo, &small.join("back")).unwrap();
    for offset in [0, 100] {
        let dest = format!("{}@{offset}B", device.display());
        let ran = blkcopy(base.path(), &["cp", "--json", "--yes", "a", &dest]);
        let receipt = failed(&ran, &["io", "no-space"]);
        let good = good_prefix(&receipt);
        eprintln!("full: {good} bytes are good; {}", ran.err.trim_end());
        assert!(good < 24 * MIB);
        let thin = format!("blkcopy: warning: {}: its backing file (", device.display());
        assert!(ran.err.contains(&thin), "{}", ran.err);
        let equal = equal_front(&source, &device, offset, good);
        if equal < good {
            // Only what the kernel itself calls written may be missing, and only in the request that met the end.
            assert!(good - equal <= MIB, "{good} bytes are called good, {equal} are");
            assert!(loop_calls_short_writes_whole(base.path()), "{good} bytes are called good, {equal} are");
            eprintln!("full: the loop driver called {} bytes written that are not there", good - equal);
        }
    }
    // Dry: the second half of the source's backing file goes.
    let back = base.path().join("back");
    std::fs::write(&back, bytes(16 << 20, 3)).unwrap();
    let device = attach(&mut undo, &back).unwrap();
    std::fs::File::options().write(true).open(&back).unwrap().set_len(8 << 20).unwrap();
    let device = device.to_str().unwrap();
    let probe = sh(&format!("dd if={device} of=/dev/null bs=4k skip=3000 count=1 iflag=direct status=none"));
    if probe.is_ok() {
        return skip(test, "this loop driver reads zeroes where its file has ended");
    }
    let dest = base.path().join("b");
    let ran = blkcopy(base.path(), &["cp", "--json", device, "b"]);
    let receipt = failed(&ran, &["io"]);
    let good = good_prefix(&receipt);
    eprintln!("dry: {good} bytes are good; {}", ran.err.trim_end());
    assert!(good <= 8 * MIB && ran.err.contains(device), "{}", ran.err);
    if good > 0 {
        assert_eq!(dest.metadata().unwrap().len(), good);
        front_is_equal(&back, &dest, good);
    } else {
        assert!(!dest.exists());
    }
}

//= promise 6, events
#[test]
fn a_flush_that_fails_leaves_nothing_that_is_called_good() {
    let test = "a_flush_that_fails_leaves_nothing_that_is_called_good";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    // ext4 believes in 64 MiB; its device has 16 to give: what the cache took is lost when it is written out.
    let small = mount_tmpfs(&mut undo, base.path(), "small", "16m").unwrap();
    must(&format!("truncate -s 64M {}/back", small.display()));
    let device = attach(&mut undo, &small.join("back")).unwrap();
    let at = base.path().join("fs");
    let made = sh(&format!(
        "mkfs.ext4 -q -O ^has_journal {0} && mkdir {1} && mount -o errors=continue {0} {1}",
        device.display(),
        at.display()
    ));
    if let Err(why) = made {
        return skip(test, &why);
    }
    undo.later(format!("umount {}", at.display()));
    let source = base.path().join("a");
    std::fs::write(&source, bytes(32 << 20, 4)).unwrap();
    let dest = at.join("b");
    // An odd offset goes through the page cache, so that only the flush can notice.
    let ran = blkcopy(base.path(), &["cp", "--json", "a", &format!("{}@1B", dest.display())]);
    let receipt = failed(&ran, &["io", "no-space"]);
    eprintln!("{}", ran.err.trim_end());
    if receipt["flushed"] == true {
        return skip(test, "an error came before the flush");
    }
    assert_eq!(
        (&receipt["good_bytes"], &receipt["good_prefix_bytes"]),
        (&0.into(), &0.into()),
        "{receipt:#}"
    );
    assert!(!dest.exists(), "made by this copy, and nothing in it is known to be good");
}

#[test]
fn a_file_size_limit_is_an_error_and_the_old_file_stays() {
    let dir = folder();
    std::fs::write(dir.path().join("a"), bytes(100_000, 1)).unwrap();
    std::fs::write(dir.path().join("b"), b"old").unwrap();
    for dest in ["b", "new"] {
        let script = format!("cd {}; ulimit -f 8; exec {} cp a {dest}", dir.path().display(), common::BIN);
        let ran = Ran::of(std::process::Command::new("sh").args(["-c", &script]).output().unwrap());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.err.contains("cannot be made 100000 bytes long"), "{}", ran.err);
    }
    assert_eq!(std::fs::read(dir.path().join("b")).unwrap(), b"old");
    assert!(!dir.path().join("new").exists());
}

#[test]
fn the_old_receipt_stays_until_there_is_a_new_one() {
    let dir = folder();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name));
    std::fs::write(dir.path().join("a"), bytes(1000, 1)).unwrap();
    std::fs::write(dir.path().join("old"), "x".repeat(10_000)).unwrap();
    std::fs::write(dir.path().join("b"), "old").unwrap();
    let lock = std::fs::File::open(dir.path().join("b")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    for receipt in ["old", "new"] {
        let ran = blkcopy(dir.path(), &["cp", "--receipt", receipt, "a", "b"]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.err.contains("another program has locked the file (flock)"), "{}", ran.err);
    }
    let plan = blkcopy(dir.path(), &["plan", "a", "b"]);
    let says_no = plan.out.contains("FAIL  b: another program has locked the file (flock)");
    assert!(plan.code == Some(1) && says_no, "a plan asks what cp asks: {plan:?}");
    assert_eq!((read("old").unwrap().len(), read("b").unwrap().as_str()), (10_000, "old"));
    assert!(read("new").is_err(), "an empty receipt says nothing");
    drop(lock);
    for receipt in ["old", "new"] {
        let ran = blkcopy(dir.path(), &["cp", "--json", "--receipt", receipt, "a", "b"]);
        assert_eq!((ran.code, &read(receipt).unwrap()), (Some(0), &ran.out));
    }
    let ran = blkcopy(dir.path(), &["cp", "--receipt", "no/r", "a", "c"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(!Path::new(&dir.path().join("c")).exists());
}

//= promise printed
#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let dir = folder();
    std::fs::write(dir.path().join("a"), bytes(100_000, 1)).unwrap();
    for args in [
        vec!["cp", "a", "b"],
        vec!["cp", "--json", "a", "b"],
        vec!["plan", "a", "b"],
        vec!["info", "--json", "a"],
        vec!["--help"],
        vec!["cp", "--help"],
        vec!["--version"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let ran = common::command(dir.path(), &args).stdout(full).output().unwrap();
        let err = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{args:?}: {err}");
        assert!(
            err.contains("cannot be written to standard output") && err.contains("No space left"),
            "{args:?}: {err}"
        );
        if args[0] == "cp" && args[1] != "--help" {
            assert!(err.contains("the work is done"), "{err}");
            common::front_is_equal(&dir.path().join("a"), &dir.path().join("b"), 100_000);
        }
    }
    // Status is no result.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = common::command(dir.path(), &["cp", "a", "b"]).stderr(full).output().unwrap();
    assert_eq!(ran.status.code(), Some(0));
}

//= promise printed
#[test]
fn what_is_printed_never_lands_in_an_end() {
    let dir = folder();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let (old, new) = (bytes(100_000, 1), bytes(100_000, 2));
    for (args, stream) in [
        (vec!["cp", "--json", "a", "b"], "1>>b"),
        (vec!["cp", "--json", "a", "b"], "1>>a"),
        (vec!["cp", "a", "b"], "2>>b"),
        (vec!["cp", "a", "b"], "2>>a"),
        (vec!["cp", "-q", "--receipt", "/dev/stdout", "a", "b"], "1<>b"),
        (vec!["serve", "--listen", "127.0.0.1:0", "--nqn", "nqn.2014-08.org.example:x", "b"], "1>>b"),
        (vec!["mount", ".", "b"], "2>>b"),
    ] {
        std::fs::write(&a, &new).unwrap();
        std::fs::write(&b, &old).unwrap();
        let script =
            format!("cd {}; timeout 60 {} {} {stream}", dir.path().display(), common::BIN, args.join(" "));
        let ran = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(ran.status.code(), Some(2), "{script}: {ran:?}");
        assert!(std::fs::read(&b).unwrap() == old && std::fs::read(&a).unwrap() == new, "{script}");
        let (out, err) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
        assert!((out + &err).contains("the output would overwrite it"), "{script}: {err}");
    }
}

//= promise printed
#[test]
fn a_receipt_takes_the_old_ones_place_or_the_old_one_stays() {
    let test = "a_receipt_takes_the_old_ones_place_or_the_old_one_stays";
    if let Err(why) = common::loops_or_why() {
        return common::skip(test, &why);
    }
    let (dir, mut undo) = (folder(), common::Undo::default());
    std::fs::write(dir.path().join("a"), bytes(100_000, 1)).unwrap();
    let full = common::mount_tmpfs(&mut undo, dir.path(), "t", "64k").unwrap();
    std::fs::write(full.join("r"), "the old one").unwrap();
    std::fs::write(full.join("ballast"), vec![1; 56 << 10]).unwrap();
    // Its last page may go to the new file, not to what stands in it.
    common::must(&format!("dd if=/dev/zero of={}/rest bs=4k 2>/dev/null || true", full.display()));
    let ran = blkcopy(dir.path(), &["cp", "--receipt", "t/r", "a", "b"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.err.contains("the copy is done, but its receipt was not written") && ran.err.contains("No space"),
        "{ran:?}"
    );
    assert_eq!(std::fs::read_to_string(full.join("r")).unwrap(), "the old one");
    common::front_is_equal(&dir.path().join("a"), &dir.path().join("b"), 100_000);
    // Rights and links stay; a pipe is written as it is.
    std::fs::remove_file(full.join("ballast")).unwrap();
    common::must(&format!(
        "cd {0} && rm rest && chmod 0640 r && chown 1:1 r && ln -s r link",
        full.display()
    ));
    let ran = blkcopy(dir.path(), &["cp", "--json", "--receipt", "t/link", "a", "b"]);
    assert_eq!((ran.code, &std::fs::read_to_string(full.join("r")).unwrap()), (Some(0), &ran.out), "{ran:?}");
    assert_eq!(
        common::must(&format!("cd {} && stat -c '%a %u %g' r && readlink link", full.display())),
        "640 1 1\nr"
    );
    let ran = blkcopy(dir.path(), &["cp", "-q", "--receipt", "/dev/stdout", "a", "b"]);
    assert_eq!(ran.json()["outcome"], "done");
    let names = common::mounted::names(&full);
    assert_eq!(names, ["link", "r"], "nothing is left behind");
}

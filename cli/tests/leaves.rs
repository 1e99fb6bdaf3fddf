//! What an ended copy leaves behind: nothing that looks complete, and a way to go on.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::mounted::{Mounted, attribute, mounts_or_why, run};
use common::{
    BIN, MIB, Ran, Undo, blkcopy, bytes, command, folder, loops_or_why, mount_loop, mount_tmpfs, must, sh,
    skip,
};
use std::io::{BufRead, BufReader, Read as _};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Longest time to wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

/// Starts a slow copy, and waits until `begun` says that it has moved something.
fn slow(dir: &Path, args: &[&str]) -> Child {
    let mut all = vec!["cp", "--offload", "never", "--limit-rate", "4MiB"];
    all.extend(args);
    let child = command(dir, &all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let io = format!("/proc/{}/io", child.id());
    let begun = Instant::now();
    let written = || {
        let text = std::fs::read_to_string(&io).unwrap_or_default();
        text.lines().find_map(|l| l.strip_prefix("write_bytes: ")?.parse::<u64>().ok()).unwrap_or(0)
    };
    while written() < MIB {
        assert!(begun.elapsed() < PATIENCE, "the copy does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

fn signalled(child: Child, signal: &str) -> Ran {
    must(&format!("kill -{signal} {}", child.id()));
    Ran::of(child.wait_with_output().unwrap())
}

/// The command that the last line of stderr names.
fn go_on(ran: &Ran) -> &str {
    let (_, command) = ran.err.split_once("to resume from there:\n").unwrap_or_else(|| panic!("{ran:?}"));
    command.trim().strip_prefix("blkcopy ").unwrap()
}

fn run_in(dir: &Path, arguments: &str) -> Ran {
    let script = format!("exec {BIN} {arguments}");
    Ran::of(std::process::Command::new("bash").args(["-c", &script]).current_dir(dir).output().unwrap())
}

//= promise 5, events
#[test]
fn a_killed_copy_to_a_new_file_leaves_nothing_that_looks_complete() {
    let dir = folder();
    std::fs::write(dir.path().join("a"), bytes(32 << 20, 1)).unwrap();
    let ran = signalled(slow(dir.path(), &["a", "b"]), "KILL");
    assert_eq!(ran.code, None, "{ran:?}");
    assert_eq!(names(dir.path()), ["a"]);
    // An old one is written over in place, as with cp: it has its new length, and what was not copied reads as zero.
    std::fs::write(dir.path().join("old"), b"old").unwrap();
    let inode = dir.path().join("old").metadata().unwrap().ino();
    signalled(slow(dir.path(), &["a", "old"]), "KILL");
    assert_eq!(dir.path().join("old").metadata().unwrap().ino(), inode);
}

//= promise 5, events
#[test]
fn a_killed_copy_where_files_need_a_name_leaves_a_hidden_one() {
    let test = "a_killed_copy_where_files_need_a_name_leaves_a_hidden_one";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    let at = match mount_loop(&mut undo, base.path(), "fat", "mkfs.vfat", "64M") {
        Ok(at) => at,
        Err(why) => return skip(test, &why),
    };
    std::fs::write(at.join("a"), bytes(24 << 20, 1)).unwrap();
    signalled(slow(&at, &["a", "b"]), "KILL");
    let left = names(&at);
    assert!(left.len() == 2 && left[0].starts_with(".b.blkcopy-"), "{left:?}");
    must(&format!("rm {}/.b.blkcopy-*", at.display()));
    // One that ends by itself, well or not, leaves none.
    assert_eq!(blkcopy(&at, &["cp", "-q", "a", "b"]).code, Some(0));
    assert_eq!(names(&at), ["a", "b"]);
    assert!(std::fs::read(at.join("a")).unwrap() == std::fs::read(at.join("b")).unwrap());
    std::fs::remove_file(at.join("b")).unwrap();
    let ran = signalled(slow(&at, &["a", "b"]), "INT");
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert_eq!(names(&at), ["a", "b"]);
    assert!(at.join("b").metadata().unwrap().len() < 24 * MIB);
}

//= promise 5, events
#[test]
fn an_interrupted_copy_says_how_to_go_on_and_that_ends_it() {
    let dir = folder();
    let (data, old) = (bytes(24 << 20, 1), bytes(40 << 20, 2));
    std::fs::create_dir(dir.path().join("it's odd")).unwrap();
    let source = dir.path().join("it's odd/a b");
    std::fs::write(&source, &data).unwrap();
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    std::fs::write(dir.path().join("old"), &old).unwrap();
    let mut in_place = old.clone();
    in_place[5 << 20..29 << 20].copy_from_slice(&data);
    let mut swapped = old.clone();
    swapped[30 << 20..38 << 20].copy_from_slice(&data[..8 << 20]);
    swapped[..8 << 20].copy_from_slice(&data[16 << 20..]);
    for (args, dest, want) in [
        (&["it's odd/a b", "new $x"][..], "new $x", &data),
        (&["--quiet", "it's odd/a b", "cut"], "cut", &data),
        (&["--in-place", "--no-sync", "it's odd/a b", "old@5MiB"], "old", &in_place),
        (&["--segment", "0:30MiB:8MiB", "--segment", "16MiB:0:8MiB", "it's odd/a b", "seg"], "seg", &swapped),
    ] {
        for name in ["cut", "seg"] {
            std::fs::write(dir.path().join(name), &old).unwrap();
        }
        let ran = signalled(slow(dir.path(), args), "INT");
        assert_eq!(ran.code, Some(130), "{ran:?}");
        let command = go_on(&ran);
        eprintln!("{command}");
        assert!(read(dest) != *want && (dest == "seg" || read(dest).len() != data.len()), "{dest}");
        let good = ran.err.split_once(" bytes) of the copy are good").unwrap_or_else(|| panic!("{ran:?}")).0;
        let good: u64 = good.rsplit('(').next().unwrap().parse().unwrap();
        assert!(good >= MIB / 2 && good < data.len() as u64, "{good}");
        let ran = run_in(dir.path(), &command.replace("--limit-rate 4194304 ", ""));
        assert_eq!(ran.code, Some(0), "{command}: {ran:?}");
        assert!(read(dest) == *want, "{command}: a byte is wrong");
    }
    assert_eq!(names(dir.path()), ["cut", "it's odd", "new $x", "old", "seg"]);
}

//= promise 5, events
#[test]
fn a_full_file_system_keeps_the_good_part_and_says_how_to_go_on() {
    let test = "a_full_file_system_keeps_the_good_part_and_says_how_to_go_on";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    let small = mount_tmpfs(&mut undo, base.path(), "small", "16m").unwrap();
    let data = bytes(24 << 20, 3);
    std::fs::write(base.path().join("a"), &data).unwrap();
    let ran = blkcopy(base.path(), &["cp", "a", "small/b"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let len = small.join("b").metadata().unwrap().len();
    assert!(len > 0 && len <= 16 * MIB, "{len}");
    assert_eq!(names(&small), ["b"]);
    must(&format!("mount -o remount,size=64m {}", small.display()));
    let ran = run_in(base.path(), go_on(&ran));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(std::fs::read(small.join("b")).unwrap() == data);
}

#[test]
fn a_name_that_is_taken_or_a_folder_that_goes_meanwhile_is_an_error() {
    let dir = folder();
    std::fs::write(dir.path().join("a"), bytes(8 << 20, 1)).unwrap();
    let child = slow(dir.path(), &["a", "b"]);
    std::fs::write(dir.path().join("b"), b"theirs").unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("b: another program has made a file with this name meanwhile"), "{}", ran.err);
    assert!(ran.out.starts_with("failed after 0 B of 8.0 MiB"), "{}", ran.out);
    assert_eq!(std::fs::read(dir.path().join("b")).unwrap(), b"theirs");
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let child = slow(dir.path(), &["a", "d/b"]);
    std::fs::remove_dir_all(dir.path().join("d")).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("d/b: the folder for it was removed during the copy"), "{}", ran.err);
    assert_eq!(names(dir.path()), ["a", "b"]);
}

//= promise 5, events
#[test]
fn a_destination_that_is_cut_meanwhile_is_an_error() {
    let dir = folder();
    std::fs::write(dir.path().join("a"), bytes(12 << 20, 1)).unwrap();
    // Cut for good, and cut where later writes make it as long as before.
    for to in [0, 1000] {
        std::fs::write(dir.path().join("b"), b"old").unwrap();
        let child = slow(dir.path(), &["--json", "a", "b"]);
        std::fs::File::options().write(true).open(dir.path().join("b")).unwrap().set_len(to).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.err.contains("b: another program c"), "{}", ran.err);
        let receipt = ran.json();
        assert_eq!((&receipt["outcome"], &receipt["good_bytes"]), (&"failed".into(), &0.into()));
    }
}

#[test]
fn where_a_file_may_be_made_and_where_not() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a"), bytes(10_000, 1)).unwrap();
    for (dest, words) in [
        ("new/", "new/: names a directory that does not exist"),
        ("a/", "a/: cannot stat"),
        (
            "/dev/blkcopy-test-no-such-disk",
            "/dev/blkcopy-test-no-such-disk: no such device, and /dev is for device nodes",
        ),
    ] {
        let ran = blkcopy(dir.path(), &["cp", "--yes", "a", dest]);
        assert_eq!(ran.code, Some(2), "{dest}: {ran:?}");
        assert!(ran.err.contains(words), "{dest}: {}", ran.err);
        assert!(dest == "a/" || !at(dest).exists(), "{dest}");
    }
    // What cannot be copied to is said before anything is asked for.
    must(&format!(
        "mkfifo {0}/fifo; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"{0}/sock\")' || true",
        dir.path().display()
    ));
    for (end, words) in
        [("fifo", "is a FIFO"), ("sock", "is a socket"), ("/dev/zero", "is a character device")]
    {
        if !at(end).exists() {
            continue;
        }
        for args in [["cp", "a", end], ["cp", end, "x"]] {
            let ran = blkcopy(dir.path(), &args);
            assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
            assert!(ran.err.contains(words) && !ran.err.contains("--yes"), "{args:?}: {}", ran.err);
        }
    }
    // Links are followed to what exists, hard links stay links: the file is written over, not replaced.
    std::fs::write(at("old"), b"old").unwrap();
    std::fs::hard_link(at("old"), at("hard")).unwrap();
    std::os::unix::fs::symlink("old", at("soft")).unwrap();
    assert_eq!(blkcopy(dir.path(), &["cp", "-q", "a", "soft"]).code, Some(0));
    assert!(at("soft").symlink_metadata().unwrap().is_symlink());
    for name in ["old", "hard"] {
        assert!(std::fs::read(at(name)).unwrap() == bytes(10_000, 1), "{name}");
    }
    // The name may be as long as a name can be.
    let long = "n".repeat(255);
    assert_eq!(blkcopy(dir.path(), &["cp", "-q", "a", &long]).code, Some(0));
    assert!(at(&long).exists());
}

#[test]
fn a_folder_that_may_not_be_written_keeps_its_files_writable() {
    let test = "a_folder_that_may_not_be_written_keeps_its_files_writable";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().display();
    must(&format!(
        "chmod 755 {base}; cp {BIN} {base}/blkcopy; mkdir {base}/d; head -c 100000 /dev/urandom > {base}/a; chmod 644 {base}/a
         for f in full blind; do echo old > {base}/d/$f; chown 65534 {base}/d/$f; done; chmod 200 {base}/d/blind; chmod 555 {base}/d"
    ));
    let nobody = |args: &str| {
        let script =
            format!("cd {base}; setpriv --reuid=65534 --regid=65534 --clear-groups ./blkcopy cp {args}");
        Ran::of(std::process::Command::new("sh").args(["-c", &script]).output().unwrap())
    };
    if nobody("--help").code != Some(0) {
        return skip(test, "nobody may not run the command here");
    }
    // One of them may be written and not read.
    for dest in ["d/full", "d/blind"] {
        let ran = nobody(&format!("a {dest}"));
        assert_eq!(ran.code, Some(0), "{dest}: {ran:?}");
        assert!(
            std::fs::read(dir.path().join(dest)).unwrap() == std::fs::read(dir.path().join("a")).unwrap()
        );
    }
    let ran = nobody("a d/new");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("d/new: cannot be created\n  cause: Permission denied"), "{}", ran.err);
}

//= promise 3
#[test]
fn a_new_file_has_the_sources_rights_less_the_umask() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a"), b"x").unwrap();
    for (mode, umask, want) in
        [(0o600, "022", 0o600), (0o666, "022", 0o644), (0o6755, "027", 0o750), (0o400, "000", 0o400)]
    {
        std::fs::set_permissions(at("a"), std::fs::Permissions::from_mode(mode)).unwrap();
        must(&format!("cd {}; rm -f b; umask {umask}; {BIN} cp -q a b", dir.path().display()));
        assert_eq!(at("b").metadata().unwrap().mode() & 0o7777, want, "{mode:o} {umask}");
    }
}

/// Tells of a file what `--preserve` keeps.
fn kept(path: &Path) -> String {
    let path = path.display();
    must(&format!(
        "stat -c '%u:%g %a %Y %x' {path}; getfacl -cpn {path} 2>/dev/null || true; getfattr -d -m '^(user|trusted|security.cap)' {path} 2>/dev/null | grep -v '^#' | sort"
    ))
}

//= promise 3
#[test]
fn preserve_keeps_owner_rights_and_attributes() {
    let test = "preserve_keeps_owner_rights_and_attributes";
    if let Err(why) =
        loops_or_why().and_then(|()| sh("command -v setfacl getfacl setfattr getfattr").map(drop))
    {
        return skip(test, &why);
    }
    let dir = folder();
    let base = dir.path().display();
    let made = sh(&format!(
        "cd {base}; echo hello > a; chown 1234:2345 a; chmod 6750 a; setfacl -m u:77:rw a; setfattr -n user.colour -v red a; setfattr -n trusted.t -v 1 a
         touch -m -d @1000000000 a; touch -a -d @1100000000 a; echo old > old; chmod 666 old; setfacl -m u:5:rwx old
         mkdir d; setfacl -d -m u:99:rwx d; echo x > bare; chmod 640 bare"
    ));
    if let Err(why) = made {
        return skip(test, &why);
    }
    let want = kept(&dir.path().join("a"));
    assert!(want.contains("user.colour") && want.contains("user:77:rw-"), "{want}");
    for dest in ["new", "old", "d/new"] {
        let ran = blkcopy(dir.path(), &["cp", "--preserve", "a", dest]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
        assert_eq!(kept(&dir.path().join(dest)), want, "{dest}");
        assert_eq!(must(&format!("touch -a -d @1100000000 {base}/a; cat {base}/{dest}")), "hello");
        must(&format!("touch -a -d @1100000000 {base}/a"));
    }
    // What a folder gives to its files is not what the source had.
    assert_eq!(blkcopy(dir.path(), &["cp", "-q", "--preserve", "bare", "d/bare"]).code, Some(0));
    let acl = must(&format!("getfacl -cpn {base}/d/bare"));
    assert!(!acl.contains("user:99"), "{acl}");
    // Who may not give files away keeps neither the owner nor what a program may do with the owner's rights.
    must(&format!(
        "chmod 755 {base}/a; chmod 4755 {base}/a; mkdir {base}/open; chmod 777 {base}/open; cp {BIN} {base}/open/blkcopy; chmod 755 {base}"
    ));
    let script = format!(
        "cd {base}; setpriv --reuid=65534 --regid=65534 --clear-groups open/blkcopy cp --preserve a open/mine"
    );
    let ran = Ran::of(std::process::Command::new("sh").args(["-c", &script]).output().unwrap());
    if ran.err.contains("cannot be opened") || ran.code == Some(126) {
        return skip(test, "nobody may not run the command here");
    }
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.err.contains("open/mine: owner 1234:2345 is not kept, and neither are set-user-ID"),
        "{}",
        ran.err
    );
    let meta = dir.path().join("open/mine").metadata().unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o6000), (65534, 0));
}

//= promise 1
#[test]
fn files_that_say_less_or_more_than_they_have() {
    let dir = folder();
    for (file, verify) in [
        ("/proc/version", "digest"),
        ("/proc/filesystems", "none"),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "bytes"),
    ] {
        let Ok(want) = std::fs::read(file) else { continue };
        let ran = blkcopy(dir.path(), &["cp", "--json", "--verify", verify, file, "copy"]);
        assert_eq!(ran.code, Some(0), "{file}: {ran:?}");
        assert!(std::fs::read(dir.path().join("copy")).unwrap() == want && !want.is_empty(), "{file}");
        assert_eq!(ran.json()["source_state"], "unwatched", "{file}");
        std::fs::remove_file(dir.path().join("copy")).unwrap();
        let plan = blkcopy(dir.path(), &["plan", file, "copy"]);
        assert!(plan.out.contains("its reported size differs from what can be read"), "{}", plan.out);
    }
    // An empty file is empty.
    std::fs::write(dir.path().join("empty"), b"").unwrap();
    assert_eq!(blkcopy(dir.path(), &["cp", "-q", "empty", "copy"]).code, Some(0));
    assert_eq!(dir.path().join("copy").metadata().unwrap().len(), 0);
    assert_eq!(names(dir.path()), ["copy", "empty"]);
}

#[test]
fn a_file_of_an_exbibyte_with_some_data_is_copied_at_once() {
    let test = "a_file_of_an_exbibyte_with_some_data_is_copied_at_once";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    let at = match mount_loop(&mut undo, base.path(), "xfs", "mkfs.xfs -q -m reflink=1", "400M") {
        Ok(at) => at,
        Err(why) => return skip(test, &why),
    };
    let file = std::fs::File::create(at.join("a")).unwrap();
    file.set_len(1 << 60).unwrap();
    let data = bytes(5000, 1);
    let places = [4096 * 1000, (1 << 59) + 77, (1 << 60) - 5000];
    places.iter().for_each(|&place| file.write_all_at(&data, place).unwrap());
    for args in
        [&["a", "clone"][..], &["--offload", "never", "a", "copy"], &["--sparse", "always", "a", "found"]]
    {
        for word in ["plan", "cp"] {
            let mut all = vec![word];
            all.extend(args);
            // Bounded in memory too.
            let script =
                format!("ulimit -v 8000000; cd {}; timeout 60 {BIN} {}", at.display(), all.join(" "));
            let ran = Ran::of(std::process::Command::new("sh").args(["-c", &script]).output().unwrap());
            assert_eq!(ran.code, Some(0), "{all:?}: {ran:?}");
        }
        let copy = std::fs::File::open(at.join(args[args.len() - 1])).unwrap();
        assert_eq!(copy.metadata().unwrap().len(), 1 << 60);
        for place in places {
            let mut back = vec![0; data.len()];
            copy.read_exact_at(&mut back, place).unwrap();
            assert!(back == data, "{args:?} {place}");
        }
    }
    assert_eq!(blkcopy(&at, &["info", "a"]).code, Some(0));
}

#[test]
fn a_served_files_last_odd_bytes_are_told() {
    let dir = folder();
    std::fs::write(dir.path().join("odd"), bytes(1_000_001, 1)).unwrap();
    let args = ["serve", "--listen", "127.0.0.1:0", "--nqn", "nqn.2014-08.org.example:odd", "odd"];
    let mut child = command(dir.path(), &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("listening on")));
    must(&format!("kill -TERM {}", child.id()));
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    child.wait().unwrap();
    assert!(err.contains("warning: odd: the last 65 bytes are not served"), "{err}");
}

#[test]
fn the_mounts_own_attributes_are_read_and_not_listed() {
    let test = "the_mounts_own_attributes_are_read_and_not_listed";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let dir = folder();
    let paths = ["a", "b"].map(|name| {
        std::fs::write(dir.path().join(name), bytes(1 << 20, 1)).unwrap();
        dir.path().join(name).display().to_string()
    });
    let mounted = Mounted::start(&[&paths[0], &paths[1]]);
    let (a, b) = (mounted.at_name("a"), mounted.at_name("b"));
    let mut names = [0u8; 256];
    for file in [&a, &b, &mounted.dir().to_owned()] {
        assert_eq!(rustix::fs::listxattr(file, &mut names[..]), Ok(0), "{file:?}");
    }
    assert!(attribute(&a, "user.blkcopy.limits").is_object());
    // Programs that keep all attributes find none to carry along, and none that they cannot set.
    let copy = dir.path().join("copy");
    run(&format!(
        "cp --preserve=all {} {}; cp --preserve=xattr {0} {}",
        a.display(),
        copy.display(),
        b.display()
    ));
    assert_eq!(rustix::fs::listxattr(&copy, &mut names[..]), Ok(0));
    mounted.stop();
}

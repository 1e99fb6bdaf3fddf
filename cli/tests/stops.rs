//! Daemons and copies that are asked to end, whatever hangs: what is owed is stored, what cannot end is named, and
//! streams that nobody reads stop nobody.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::mounted::{Mounted, holds, is_mounted, mounts_or_why, put};
use common::{BIN, MIB, Ran, Undo, bytes, command, folder, must, skip};
use rustix::io::Errno;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A guard against hanging, not a promise.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that does not outlive its test.
struct Program(Option<Child>);

impl Program {
    fn spawn(command: &mut Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    fn kill(&self, name: &str) {
        must(&format!("kill -{name} {}", self.0.as_ref().unwrap().id()));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How a program ended, and how long that took; one that does not end is killed.
fn ended(mut program: Program, what: &str) -> (Ran, Duration) {
    let begun = Instant::now();
    while program.child().try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < PATIENCE, "{what}: does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = begun.elapsed();
    (Ran::of(program.0.take().unwrap().wait_with_output().unwrap()), took)
}

fn kill(name: &str, pid: u32) {
    must(&format!("kill -{name} {pid}"));
}

fn start(dir: &Path, args: &[&str]) -> Program {
    Program::spawn(command(dir, args).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// A pipe whose reader reads nothing, full already.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reads, writes) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    rustix::io::ioctl_fionbio(&writes, true).unwrap();
    while rustix::io::write(&writes, &[b'x'; 4096]) != Err(Errno::AGAIN) {}
    while rustix::io::write(&writes, b"x") != Err(Errno::AGAIN) {}
    rustix::io::ioctl_fionbio(&writes, false).unwrap();
    (reads, writes)
}

/// `blkcopy serve` with these streams, on a port that was free a moment ago.
fn serve(device: &str, out: Stdio, err: Stdio) -> (Program, SocketAddr, String) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nqn = "nqn.2014-08.org.example:stops";
    let mut command = Command::new(BIN);
    command.args(["serve", "--nqn", nqn, "--listen", &address.to_string(), device]);
    command.env_remove("BLKCOPY_LOG").stdin(Stdio::null()).stdout(out).stderr(err);
    let child = Program::spawn(&mut command);
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < PATIENCE, "it does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    (child, address, format!("nvme-tcp://{address}/{nqn}?nsid=1"))
}

/// Says something that is no NVMe/TCP, and waits until that was noticed.
fn garbage(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[0xff; 8]).unwrap();
    // Cut off or answered, but not left alone.
    let read = stream.read(&mut [0; 256]);
    let alone = |e: std::io::Error| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    assert!(!read.is_err_and(alone), "nobody listens any more");
}

//= promise signals, events
#[test]
fn every_signal_that_ends_a_mount_stores_what_it_owes() {
    let test = "every_signal_that_ends_a_mount_stores_what_it_owes";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let dir = folder();
    let image = dir.path().join("a.img");
    for name in ["HUP", "INT", "TERM", "QUIT", "XCPU"] {
        std::fs::write(&image, bytes(16 << 20, 3)).unwrap();
        let mut mount = Mounted::start(&[&format!("a={}", image.display())]);
        // Cut and begun anew, as `dd` and `cp` do: all behind the new bytes reads as zero, and is owed.
        let file = std::fs::File::options().write(true).truncate(true).open(mount.at_name("a")).unwrap();
        drop(file);
        put(&mount.at_name("a"), 0, b"new");
        kill("USR1", mount.pid());
        kill("USR2", mount.pid());
        kill(name, mount.pid());
        assert_eq!(mount.wait(), Some(0), "SIG{name}");
        assert!(!is_mounted(mount.dir()), "SIG{name} leaves a dead mount");
        let mut want = vec![0; 16 << 20];
        want[..3].copy_from_slice(b"new");
        holds(&image, &want);
    }
}

//= promise printed
#[test]
fn streams_that_nobody_reads_stop_no_target() {
    for stuck in ["stdout", "stderr"] {
        let (reads, writes) = full_pipe();
        let (out, err) = match stuck {
            "stdout" => (Stdio::from(writes), Stdio::null()),
            _ => (Stdio::null(), Stdio::from(writes)),
        };
        let (child, address, url) = serve("mem:1MiB", out, err);
        (0..50).for_each(|_| garbage(address));
        let (ran, _) = ended(start(Path::new("/"), &["info", &url]), stuck);
        assert_eq!(ran.code, Some(0), "{stuck}: {ran:?}");
        child.kill("TERM");
        let (ran, took) = ended(child, stuck);
        assert!(ran.code == Some(0) && took < Duration::from_secs(15), "{stuck}: {ran:?} {took:?}");
        drop(reads);
    }
}

//= promise printed
#[test]
fn a_peer_cannot_fill_the_log() {
    let (mut child, address, _) = serve("mem:1MiB", Stdio::null(), Stdio::piped());
    let errors = BufReader::new(child.child().stderr.take().unwrap());
    let lines = std::thread::spawn(move || errors.lines().map_while(Result::ok).collect::<Vec<_>>());
    let begun = Instant::now();
    (0..2000).for_each(|_| garbage(address));
    // Twenty a second of a kind, and a line for those left out; a period may begin late.
    let most = usize::try_from(22 * (begun.elapsed().as_secs() + 2)).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    child.kill("TERM");
    let (ran, _) = ended(child, "serve");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines = lines.join().unwrap();
    assert!(lines.len() <= most.max(200), "{} lines, {most} expected at most", lines.len());
    let left_out = lines.iter().filter(|l| l.contains(" more lines dropped within ")).count();
    assert!(left_out > 0, "{lines:?}");
}

//= promise 8
#[test]
fn a_copy_from_a_peer_that_says_nothing_is_stopped_within_a_second() {
    let dir = folder();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Never accepted from: the kernel does, and nobody answers.
    let url = format!("nvme-tcp://{address}/nqn.2014-08.org.example:silent?nsid=1");
    for args in [vec!["cp", &url, "b"], vec!["info", &url], vec!["mount", ".", &url]] {
        let child = start(dir.path(), &args);
        std::thread::sleep(Duration::from_millis(500));
        child.kill("TERM");
        let (ran, took) = ended(child, args[0]);
        eprintln!("{}: {took:?}", args[0]);
        assert_eq!(ran.code, Some(130), "{args:?}: {ran:?}");
        assert!(took < Duration::from_secs(5), "{args:?}: {took:?}");
        assert!(ran.err.contains("blkcopy: stopped while opening nvme-tcp://"), "{args:?}: {ran:?}");
    }
    drop(listener);
}

//= promise 8
#[test]
fn a_copy_from_a_target_that_fell_silent_says_what_was_done() {
    let dir = folder();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&a, bytes(32 << 20, 4)).unwrap();
    let (target, _, url) = serve(a.to_str().unwrap(), Stdio::null(), Stdio::null());
    let args = ["cp", "--json", "--receipt", "r", "--limit-rate", "8MiB", &url, "b"];
    let child = start(dir.path(), &args);
    common::under_way(&b);
    target.kill("STOP");
    std::thread::sleep(Duration::from_millis(700));
    child.kill("TERM");
    let (ran, took) = ended(child, "cp");
    drop(target);
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let receipt = ran.json();
    assert_eq!(receipt["outcome"], "cancelled", "{receipt:#}");
    assert_eq!(std::fs::read_to_string(dir.path().join("r")).unwrap(), ran.out);
    let good = receipt["good_prefix_bytes"].as_u64().unwrap();
    assert!(good < 32 * MIB, "{receipt:#}");
    if good > 0 {
        common::front_is_equal(&a, &b, good);
    }
}

//= promise 8
#[test]
fn a_copy_of_a_file_whose_file_system_hangs_names_the_call() {
    let test = "a_copy_of_a_file_whose_file_system_hangs_names_the_call";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let dir = folder();
    std::fs::write(dir.path().join("a.img"), bytes(1 << 20, 3)).unwrap();
    let mount = Mounted::start(&[&format!("a={}", dir.path().join("a.img").display())]);
    let hung = mount.text("a");
    // Whatever happens here, the server goes on in the end.
    let mut undo = Undo::default();
    undo.later(format!("kill -CONT {}", mount.pid()));
    kill("STOP", mount.pid());
    let child = start(dir.path(), &["cp", &hung, "b"]);
    std::thread::sleep(Duration::from_millis(500));
    child.kill("INT");
    let (ran, took) = ended(child, "cp");
    drop(undo);
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let named = ran.err.contains("waiting for ") && ran.err.contains(&format!(" of {hung}"));
    assert!(ran.err.starts_with("blkcopy: stopped while opening ") && named, "{ran:?}");
    mount.stop();
}

/// Waits until something is mounted at a folder.
fn mounted(dir: &Path) {
    let begun = Instant::now();
    while !is_mounted(dir) {
        assert!(begun.elapsed() < PATIENCE, "it does not mount");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
}

//= promise signals
#[test]
fn a_mount_whose_disk_hangs_says_so_and_leaves_in_the_end() {
    let test = "a_mount_whose_disk_hangs_says_so_and_leaves_in_the_end";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let dir = folder();
    std::fs::write(dir.path().join("a.img"), bytes(4 << 20, 3)).unwrap();
    let disk = Mounted::start(&[&format!("a={}", dir.path().join("a.img").display())]);
    let over = dir.path().join("over");
    std::fs::create_dir(&over).unwrap();
    let mut undo = Undo::default();
    undo.later(format!("umount -l {0} 2>/dev/null || true", over.display()));
    undo.later(format!("kill -CONT {}", disk.pid()));
    let mount = start(dir.path(), &["mount", "over", &format!("b={}", disk.text("a"))]);
    mounted(&over);
    put(&over.join("b"), 0, b"new");
    kill("STOP", disk.pid());
    mount.kill("TERM");
    let (ran, took) = ended(mount, "mount");
    drop(undo);
    eprintln!("ended after {took:?}: {}", ran.err);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("blkcopy: stopping; unmounting: ") && ran.err.contains(" of "), "{ran:?}");
    assert!(ran.err.contains("exits now; data that was not flushed may be lost"), "{ran:?}");
    assert!(!is_mounted(&over), "the mount is left");
    disk.stop();
}

//= promise signals
#[test]
fn a_mount_in_the_background_is_not_stopped_by_its_terminal() {
    let test = "a_mount_in_the_background_is_not_stopped_by_its_terminal";
    if let Err(why) = mounts_or_why().and_then(|()| common::sh("script -qc true /dev/null").map(drop)) {
        return skip(test, &why);
    }
    let dir = folder();
    std::fs::write(dir.path().join("a.img"), bytes(1 << 20, 3)).unwrap();
    std::fs::create_dir(dir.path().join("m")).unwrap();
    let mut undo = Undo::default();
    undo.later(format!("umount -l {}/m 2>/dev/null || true", dir.path().display()));
    // With -m each job is a group of its own, and this one is not the terminal's.
    let script = format!(
        "cd {}; stty tostop; {BIN} mount m a=a.img & sleep 2; kill -USR1 $!; sleep 1; \
         ps -o stat= -p $! >state; timeout 20 wc -c <m/a >size; kill -TERM $!; kill -CONT $!; wait $!; echo $? >code",
        dir.path().display()
    );
    std::fs::write(dir.path().join("script"), script).unwrap();
    let run = format!(
        "timeout 60 script -qc 'bash -m {}/script' /dev/null </dev/null >/dev/null",
        dir.path().display()
    );
    let ran = common::sh(&run);
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    assert!(!read("state").contains('T') && !read("state").is_empty(), "{ran:?}: {}", read("state"));
    assert_eq!((read("size").trim(), read("code").trim()), ("1048576", "0"), "{ran:?}");
}

#[test]
fn a_reader_that_does_not_read_is_not_waited_for_by_what_is_told_to_end() {
    let dir = folder();
    std::fs::write(dir.path().join("a"), bytes(1000, 3)).unwrap();
    for (args, stuck) in [
        (vec!["info", "--json", "a"], "stdout"),
        (vec!["info", "is-not-there"], "stderr"),
        (vec!["cp", "--json", "a", "b"], "stdout"),
        (vec!["cp", "a", "a"], "stderr"),
    ] {
        let (reads, writes) = full_pipe();
        let mut command = command(dir.path(), &args);
        match stuck {
            "stdout" => command.stdout(writes).stderr(Stdio::piped()),
            _ => command.stdout(Stdio::null()).stderr(writes),
        };
        let mut child = Program::spawn(&mut command);
        std::thread::sleep(Duration::from_millis(500));
        assert!(
            child.child().try_wait().unwrap().is_none(),
            "{args:?}: waits for its reader, who may only be slow"
        );
        child.kill("TERM");
        let (ran, took) = ended(child, stuck);
        assert!(ran.code == Some(130) && took < Duration::from_secs(5), "{args:?}: {ran:?} {took:?}");
        assert!(stuck == "stderr" || ran.err.contains("waiting for write of pipe:"), "{args:?}: {ran:?}");
        drop(reads);
    }
}

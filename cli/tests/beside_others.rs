//! What other programs may do to the two ends of a copy meanwhile, and what is said of it: QEMU's image locks, leases,
//! exclusive opens, and a source that changes.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{Ran, Undo, attach, blkcopy, bytes, command, folder, loops_or_why, sh, skip};
use std::io::{BufRead, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A copy to `b` that was stopped once its first MiB had arrived: others do what they do in its middle, however slow
/// the machine is.
struct Stopped(Option<Child>);

impl Stopped {
    fn copy(dir: &Path, flags: &[&str], source: &str) -> Self {
        // It is there before: a new file has no name until it is good.
        std::fs::write(dir.join("b"), b"").unwrap();
        Self::onto(dir, flags, source, "b", &dir.join("b"))
    }

    /// `seen`: where the bytes arrive.
    fn onto(dir: &Path, flags: &[&str], source: &str, dest: &str, seen: &Path) -> Self {
        let mut args = vec!["cp", "--json", "--offload", "never", "--limit-rate", "1MiB"];
        args.extend(flags);
        args.extend([source, dest]);
        let child = command(dir, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let this = Self(Some(child));
        let mut last = [0];
        let begun = Instant::now();
        while last == [0] {
            assert!(begun.elapsed() < PATIENCE, "the copy does not begin");
            std::thread::sleep(Duration::from_millis(5));
            let _ = std::fs::File::open(seen).map(|f| f.read_exact_at(&mut last, (1 << 20) - 1));
        }
        this.signal(rustix::process::Signal::STOP);
        this
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.0.as_ref().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    }

    fn end(mut self) -> Ran {
        self.signal(rustix::process::Signal::CONT);
        Ran::of(self.0.take().unwrap().wait_with_output().unwrap())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A source of 3 MiB called `a`; the last byte of its first MiB is no zero.
fn source(dir: &Path) -> Vec<u8> {
    let mut data = bytes(3 << 20, 1);
    data[(1 << 20) - 1] = 1;
    std::fs::write(dir.join("a"), &data).unwrap();
    data
}

fn poke(file: &Path) {
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.write_all_at(b"another program's", 77).unwrap();
    file.sync_all().unwrap();
}

fn state(ran: &Ran) -> String {
    ran.json()["source_state"].as_str().unwrap().to_owned()
}

/// What a tool of QEMU's prints, and whether it is content.
fn qemu(script: &str) -> (bool, String) {
    let out = Command::new("sh").args(["-c", &format!("exec 2>&1; {script}")]).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
}

fn no_qemu(test: &str) -> bool {
    let is_missing = sh("command -v qemu-io qemu-img qemu-nbd").is_err();
    if is_missing {
        skip(test, "no qemu-io, qemu-img and qemu-nbd");
    }
    is_missing
}

/// qemu-nbd with an image: the locks of a virtual machine's disk. Ended when dropped.
struct Nbd(Child);

impl Nbd {
    fn on(dir: &Path, flags: &[&str], image: &str) -> Self {
        let socket = dir.join("nbd");
        let _ = std::fs::remove_file(&socket);
        let mut nbd = Command::new("qemu-nbd");
        nbd.args(["-t", "-f", "raw", "-k"]).arg(&socket).args(flags).arg(image).current_dir(dir);
        let this = Self(nbd.spawn().unwrap());
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < PATIENCE, "qemu-nbd does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        this
    }

    fn told(&self) -> String {
        format!("QEMU-style byte locks, held by qemu-nbd, process {}", self.0.id())
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//= promise 4
#[test]
fn qemu_is_kept_from_a_destination_and_from_no_source() {
    let test = "qemu_is_kept_from_a_destination_and_from_no_source";
    if no_qemu(test) {
        return;
    }
    let dir = folder();
    let at = dir.path().display();
    source(dir.path());
    let stopped = Stopped::copy(dir.path(), &[], "a");
    let (done, told) = qemu(&format!("qemu-io -f raw -c 'write 0 512' {at}/b"));
    assert!(!done && told.contains("Failed to get \"write\" lock"), "{told}");
    let (done, told) = qemu(&format!("qemu-img convert -f raw -O raw {at}/b {at}/c"));
    assert!(!done && told.contains("Failed to get shared \"write\" lock"), "{told}");
    for reads in ["qemu-img info -U", "qemu-img info", "qemu-io -r -f raw -c 'read 0 512'"] {
        let (done, told) = qemu(&format!("{reads} {at}/b"));
        assert!(done, "{reads}: {told}");
    }
    // The source: a virtual machine starts on it (it lets nobody else write), and writes.
    let (done, told) = qemu(&format!("qemu-img convert -f raw -O raw {at}/a {at}/c"));
    assert!(done, "{told}");
    let nbd = Nbd::on(dir.path(), &[], "a");
    let (done, told) = qemu(&format!("qemu-io -f raw -c 'write 0 512' nbd+unix:///?socket={at}/nbd"));
    assert!(done, "{told}");
    drop(nbd);
    let ran = stopped.end();
    assert_eq!((ran.code, state(&ran).as_str()), (Some(0), "changed"), "{ran:?}");
    // The locks are gone with the copy.
    let (done, told) = qemu(&format!("qemu-io -f raw -c 'write 0 512' {at}/b"));
    assert!(done, "{told}");
    // Alone: what would write is refused. Not stopped, as it gives its lease back itself; long enough for that.
    source(dir.path());
    std::fs::File::options()
        .append(true)
        .open(dir.path().join("a"))
        .unwrap()
        .write_all(&bytes(20 << 20, 3))
        .unwrap();
    let stopped = Stopped::copy(dir.path(), &["--exclusive-source"], "a");
    let (done, told) = qemu(&format!("qemu-img convert -f raw -O raw {at}/a {at}/c"));
    assert!(done, "another reader: {told}");
    stopped.signal(rustix::process::Signal::CONT);
    let (done, told) = qemu(&format!("qemu-nbd -t -f raw -k {at}/nbd {at}/a --pid-file {at}/pid"));
    assert!(!done && told.contains("Failed to get \"write\" lock"), "{told}");
    drop(stopped);
}

//= promise 3
#[test]
fn an_image_that_qemu_has_is_refused_and_who_has_it_is_named() {
    let test = "an_image_that_qemu_has_is_refused_and_who_has_it_is_named";
    if no_qemu(test) {
        return;
    }
    let dir = folder();
    source(dir.path());
    let old = bytes(3 << 20, 2);
    std::fs::write(dir.path().join("image"), &old).unwrap();
    let mut undo = Undo::default();
    let mut images = vec!["image".to_owned()];
    std::fs::write(dir.path().join("back"), &old).unwrap();
    match loops_or_why().and_then(|()| attach(&mut undo, &dir.path().join("back"))) {
        Ok(device) => images.push(device.display().to_string()),
        Err(why) => skip(test, &why),
    }
    for image in images {
        for flags in [&[][..], &["-r"]] {
            let nbd = Nbd::on(dir.path(), flags, &image);
            let ran = blkcopy(dir.path(), &["cp", "--yes", "a", &image]);
            let told = format!("blkcopy: {image}: in use: locked by another program ({})\n", nbd.told());
            assert!(ran.code == Some(2) && ran.err.starts_with(&told), "{ran:?}");
            // As a source it is copied; a warning where it may be written to.
            let writes = flags.is_empty();
            let ran = blkcopy(dir.path(), &["cp", &image, "c"]);
            assert_eq!((ran.code, ran.err.contains(&nbd.told())), (Some(0), writes), "{ran:?}");
            assert!(std::fs::read(dir.path().join("c")).unwrap() == old);
            let ran = blkcopy(dir.path(), &["cp", "--exclusive-source", &image, "c"]);
            assert_eq!((ran.code, ran.err.contains(&nbd.told())), (Some(if writes { 2 } else { 0 }), writes));
        }
    }
    drop(undo);
    assert!(std::fs::read(dir.path().join("back")).unwrap() == old);
    assert!(std::fs::read(dir.path().join("image")).unwrap() == old);
}

//= promise 4
#[test]
fn a_volume_that_is_served_is_locked_for_qemu() {
    let test = "a_volume_that_is_served_is_locked_for_qemu";
    if no_qemu(test) {
        return;
    }
    let dir = folder();
    let at = dir.path().display();
    source(dir.path());
    for (flags, writes) in [(&[][..], true), (&["--read-only"][..], false)] {
        let mut args = vec!["serve", "--listen", "127.0.0.1:0", "a"];
        args.extend(flags);
        let mut daemon =
            command(dir.path(), &args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = std::io::BufReader::new(daemon.stdout.take().unwrap()).lines();
        let serves = lines.map_while(Result::ok).any(|line| line.contains("listening"));
        let (done, told) = qemu(&format!("qemu-io -f raw -c 'write 0 512' {at}/a"));
        // A volume that is only read stops nobody, not even one that does not wait.
        let opened = std::fs::File::options()
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(dir.path().join("a"));
        let _ = daemon.kill();
        let _ = daemon.wait();
        assert!(serves);
        assert_eq!((done, told.contains("Failed to get \"write\" lock")), (!writes, writes), "{told}");
        assert!(opened.is_ok(), "{opened:?}");
    }
}

//= promise 4
#[test]
fn a_stable_source_is_required() {
    let dir = folder();
    let len = |name: &str| std::fs::metadata(dir.path().join(name)).map(|m| m.len()).ok();
    let data = source(dir.path());
    let ran = blkcopy(dir.path(), &["cp", "--json", "--require-stable", "a", "c"]);
    assert_eq!((ran.code, state(&ran).as_str()), (Some(0), "watched"), "{ran:?}");
    // A file that was there is cut as after a copy that failed; written in place, it keeps the length that it had.
    for (flags, left) in [(&["--require-stable"][..], 0), (&["--require-stable", "--in-place"], 2 << 20)] {
        source(dir.path());
        std::fs::write(dir.path().join("b"), vec![0; 2 << 20]).unwrap();
        let stopped = Stopped::onto(dir.path(), flags, "a", "b", &dir.path().join("b"));
        poke(&dir.path().join("a"));
        let ran = stopped.end();
        assert_eq!((ran.code, state(&ran).as_str()), (Some(1), "changed"), "{ran:?}");
        let receipt = ran.json();
        assert_eq!(
            (&receipt["outcome"], &receipt["good_bytes"], &receipt["error"]["kind"]),
            (&"unstable".into(), &0.into(), &"source-changed".into())
        );
        assert!(ran.err.contains("the source changed during the copy, and a stable one was asked for"));
        assert_eq!(len("b"), Some(left), "{flags:?}");
    }
    // A new file is not made. It has no name meanwhile: the copy is slow enough to be met.
    let mut args = vec!["cp", "--json", "--offload", "never", "--limit-rate", "1MiB"];
    args.extend(["--require-stable", "a", "new"]);
    let child = command(dir.path(), &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    poke(&dir.path().join("a"));
    let ran = Ran::of(child.wait_with_output().unwrap());
    // On a machine so busy that it had not begun, the source was stable.
    assert_eq!(
        (ran.code == Some(0), len("new").is_some()),
        (state(&ran) == "watched", state(&ran) == "watched")
    );
    // Nothing tells of a file that has to be read to be known.
    let ran = blkcopy(dir.path(), &["cp", "--json", "--require-stable", "/proc/version", "version"]);
    assert_eq!((ran.code, state(&ran).as_str(), len("version")), (Some(1), "unwatched", None), "{ran:?}");
    assert_eq!(blkcopy(dir.path(), &["cp", "/proc/version", "version"]).code, Some(0));
    assert_eq!(data.len(), 3 << 20);
}

//= promise 4
#[test]
fn a_device_is_copied_twice_and_mounted_meanwhile() {
    let test = "a_device_is_copied_twice_and_mounted_meanwhile";
    let dir = folder();
    let mut undo = Undo::default();
    let image = dir.path().join("image");
    // Data in its first MiB, so that it can be seen to arrive.
    let attached = loops_or_why().and_then(|()| {
        sh(&format!("truncate -s 16M {0}; mkfs.ext4 -q -F {0}", image.display()))?;
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        file.write_all_at(&[7], (1 << 20) - 1).unwrap();
        attach(&mut undo, &image)
    });
    let device = match attached {
        Ok(device) => device.display().to_string(),
        Err(why) => return skip(test, &why),
    };
    let at = dir.path().join("mnt");
    std::fs::create_dir(&at).unwrap();
    let mount = |flags: &str| sh(&format!("mount {flags} {device} {0} && umount {0}", at.display()));
    let part = format!("{device}@0+3MiB");
    let stopped = Stopped::copy(dir.path(), &[], &part);
    let second = blkcopy(dir.path(), &["cp", "--json", &part, "c"]);
    assert_eq!((second.code, state(&second).as_str()), (Some(0), "watched"), "{second:?}");
    mount("-o ro,noload").unwrap();
    let ran = stopped.end();
    assert_eq!((ran.code, state(&ran).as_str()), (Some(0), "watched"), "{ran:?}");
    // Mounted to be written to, it is; also what is written plainly is told.
    for written in [None, Some(&device), Some(&image.display().to_string())] {
        let stopped = Stopped::copy(dir.path(), &[], &part);
        match written {
            None => mount("").map(drop).unwrap(),
            Some(name) => poke(Path::new(name)),
        }
        let ran = stopped.end();
        assert_eq!((ran.code, state(&ran).as_str()), (Some(0), "changed"), "{written:?} {ran:?}");
        assert!(ran.err.contains("another program wrote to it during the copy"), "{}", ran.err);
    }
    // Alone, on request.
    let stopped = Stopped::copy(dir.path(), &["--exclusive-source"], &part);
    assert!(mount("").is_err());
    let second = blkcopy(dir.path(), &["cp", "--exclusive-source", &part, "c"]);
    assert_eq!(second.code, Some(2), "{second:?}");
    assert!(second.err.contains("so it cannot be had alone"), "{}", second.err);
    // Who asks for nothing is not kept out, and no more is claimed than that.
    poke(Path::new(&device));
    let ran = stopped.end();
    assert_eq!((ran.code, state(&ran).as_str()), (Some(0), "changed"), "{ran:?}");
}

//! A destination that somebody uses is refused, and who uses it is said; `--force-in-use` goes on. Partitions of one
//! disk.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{MIB, Undo, attach, attach_with, blkcopy, bytes, folder, loops_or_why, must, sh, skip};
use std::io::BufRead;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A process of its own that holds byte locks as QEMU does; ended when dropped.
struct Locker(Child);

impl Locker {
    /// `bytes`: which of QEMU's places.
    fn on(file: &Path, bytes: &str) -> Option<Self> {
        // F_OFD_SETLK is 37; struct flock is type, whence, start, length, process.
        let script = format!(
            "import fcntl,struct,sys,time\nf=open('{}','r+b')\nfor b in ({bytes},):\n fcntl.fcntl(f,37,struct.pack('hhqqi4x',fcntl.F_RDLCK,0,b,1,0))\nprint('held',flush=True)\ntime.sleep(600)",
            file.display()
        );
        let mut python = Command::new("python3");
        let child = python.args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.ok()?;
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
        let this = Self(child);
        (line == "held\n").then_some(this)
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Refused with exit code 2 naming the user, nothing written.
fn refused(dir: &Path, dest: &str, who: &str, old: &[u8]) {
    let new = std::fs::read(dir.join("a")).unwrap();
    let place = format!("{dest}@0+{}", new.len());
    let now = || must(&format!("head -c {} {dest} | cksum", old.len()));
    let before = now();
    let ran = blkcopy(dir, &["cp", "--yes", "a", &place]);
    let expected = format!(
        "blkcopy: {dest}: in use: {who}\n  try: unmount it or stop what uses it, or give --force-in-use if that is \
         safe\n"
    );
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(2), "", expected.as_str()));
    let plan = blkcopy(dir, &["plan", "a", &place]);
    assert_eq!(plan.code, Some(1), "{plan:?}");
    assert!(plan.out.contains(&format!("FAIL  {dest}: in use: {who}\n")), "{}", plan.out);
    let info = blkcopy(dir, &["info", dest]);
    assert!(info.out.contains(&format!("WARN  in use: {who}\n")), "{}", info.out);
    assert_eq!(now(), before, "{who}: it was changed");
}

/// Refused; then forced, warned of and written.
fn refused_then_forced(dir: &Path, dest: &str, who: &str, old: &[u8]) {
    refused(dir, dest, who, old);
    let new = std::fs::read(dir.join("a")).unwrap();
    let place = format!("{dest}@0+{}", new.len());
    let ran = blkcopy(dir, &["cp", "--yes", "--force-in-use", "--verify", "bytes", "a", &place]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains(&format!("blkcopy: warning: {dest}: in use: {who}\n")), "{}", ran.err);
    must(&format!("cmp -n {} {} {dest}", new.len(), dir.join("a").display()));
}

//= promise 3
#[test]
fn each_use_is_named_and_refused_unless_forced() {
    let test = "each_use_is_named_and_refused_unless_forced";
    let base = folder();
    let at = |name: &str| base.path().join(name);
    let old = bytes(4 << 20, 1);
    std::fs::write(at("a"), bytes(8192, 2)).unwrap();
    std::fs::write(at("qemu"), &old).unwrap();
    for places in ["100,101,103", "201"] {
        match Locker::on(&at("qemu"), places) {
            Some(held) => {
                let process = format!("python3, process {}", held.0.id());
                let who = format!("locked by another program (QEMU-style byte locks, held by {process})");
                refused_then_forced(base.path(), at("qemu").to_str().unwrap(), &who, &old);
            }
            None => skip(test, "no python3 to hold byte locks"),
        }
    }
    let ran = blkcopy(base.path(), &["cp", "a", "qemu"]);
    assert_eq!(ran.code, Some(0), "the locks are gone: {ran:?}");
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let mut undo = Undo::default();
    std::fs::write(at("back"), &old).unwrap();
    let device = attach(&mut undo, &at("back")).unwrap();
    let device = device.to_str().unwrap();
    refused_then_forced(base.path(), at("back").to_str().unwrap(), &format!("backs {device}"), &old);
    // Mounted: the copy goes into the unused first KiB of the file system.
    std::fs::write(at("a"), bytes(1024, 3)).unwrap();
    let dir = at("mounted");
    must(&format!("mkfs.ext4 -q {device}; mkdir {0}; mount {device} {0}", dir.display()));
    let mounted = format!("mounted at {}", dir.display());
    refused_then_forced(base.path(), device, &mounted, &old);
    // As a source it is only warned of.
    let ran = blkcopy(base.path(), &["cp", device, "image"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let warning = format!("blkcopy: warning: {device}: {mounted}, so it may change while it is copied\n");
    assert!(ran.err.starts_with(&warning), "{}", ran.err);
    must(&format!("umount {}", dir.display()));
    // Swap: a whole device, and a file.
    std::fs::write(at("a"), bytes(512, 4)).unwrap();
    if let Err(why) = sh(&format!("mkswap -q {device} && swapon {device}")) {
        return skip(test, &why);
    }
    undo.later(format!("swapoff {device}"));
    refused(base.path(), device, "used as swap", &old);
    // The system itself keeps writers out of swap: forcing ends in its answer, and nothing is called good.
    let ran = blkcopy(base.path(), &["cp", "--json", "--yes", "--force-in-use", "a", device]);
    assert_eq!((ran.code, &ran.json()["good_bytes"]), (Some(2), &0.into()), "{ran:?}");
    assert!(ran.err.contains("Text file busy"), "{}", ran.err);
}

//= promise 3
#[test]
fn a_swap_file_is_refused() {
    let test = "a_swap_file_is_refused";
    let base = folder();
    let swap = base.path().join("swap");
    let mut undo = Undo::default();
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    std::fs::write(&swap, vec![1; 4 << 20]).unwrap();
    if let Err(why) = sh(&format!("chmod 600 {0}; mkswap -q {0} && swapon {0}", swap.display())) {
        return skip(test, &why);
    }
    undo.later(format!("swapoff {}", swap.display()));
    std::fs::write(base.path().join("a"), b"x").unwrap();
    let ran = blkcopy(base.path(), &["cp", "a", "swap"]);
    // The system itself lets nobody open it for writing; either way it is said why.
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("used as swap") || ran.err.contains("Text file busy"), "{}", ran.err);
}

/// A loop device with two partitions of 8 MiB from 1 MiB and 9 MiB on.
fn partitioned(undo: &mut Undo, base: &Path) -> Result<String, String> {
    let image = base.join("disk");
    sh(&format!(
        "truncate -s 20M {0}; printf 'label: gpt\\nstart=2048, size=16384\\nstart=18432, size=16384\\n' | sfdisk -q {0}",
        image.display()
    ))?;
    let disk = attach_with(undo, &image, "-P")?;
    let disk = disk.display().to_string();
    let name = disk.trim_start_matches("/dev/").to_owned();
    if !Path::new(&format!("/sys/block/{name}/{name}p2")).exists() {
        sh(&format!("partx -a {disk}"))?;
    }
    for _ in 0..50 {
        if Path::new(&format!("{disk}p2")).exists() {
            return Ok(disk);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // Nobody makes the nodes here: they are made by hand.
    for part in ["p1", "p2"] {
        sh(&format!("mknod {disk}{part} b $(tr : ' ' < /sys/block/{name}/{name}{part}/dev)"))?;
        undo.later(format!("rm -f {disk}{part}"));
    }
    Ok(disk)
}

//= promise 7
#[test]
fn partitions_and_their_disk() {
    let test = "partitions_and_their_disk";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    let disk = match partitioned(&mut undo, base.path()) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &why),
    };
    let (one, two) = (format!("{disk}p1"), format!("{disk}p2"));
    must(&format!("dd if=/dev/urandom of={one} bs=1M count=8 oflag=direct status=none"));
    must(&format!("dd if=/dev/urandom of={two} bs=1M count=8 oflag=direct status=none"));
    let sum = || must(&format!("sync; cksum < {}", base.path().join("disk").display()));
    let before = sum();
    // Partition 1 begins at 1 MiB of the disk.
    for (source, dest) in [
        (one.clone(), format!("{disk}@{}B", 2 * MIB)),
        (one.clone(), format!("{disk}@{}B", MIB)),
        (one.clone(), format!("{disk}@{}B", 9 * MIB - 512)),
        (format!("{disk}@{}+{}", 8 * MIB, 2 * MIB), two.clone()),
    ] {
        let ran = blkcopy(base.path(), &["cp", "--yes", &source, &dest]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{source} {dest}: {ran:?}");
        assert!(ran.err.contains("overlap on one disk"), "{source} {dest}: {}", ran.err);
    }
    assert_eq!(sum(), before, "refused, and changed all the same");
    let ran =
        blkcopy(base.path(), &["cp", "--yes", "--verify", "bytes", &one, &format!("{disk}@{}B", 9 * MIB)]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    // Disk and partitions have page caches of their own.
    let forget = || must(&format!("blockdev --flushbufs {disk} {one} {two}"));
    forget();
    must(&format!("cmp -n {} {one} {two}", 8 * MIB));
    let ran = blkcopy(
        base.path(),
        &["cp", "--yes", "--verify", "bytes", &format!("{two}@0+{MIB}"), &format!("{one}@{MIB}B")],
    );
    assert_eq!(ran.code, Some(0), "{ran:?}");
    forget();
    must(&format!("cmp -n {MIB} -i 0:{MIB} {two} {one}"));
    // The other way round: the disk is the source, a partition elsewhere on it the destination.
    let ran =
        blkcopy(base.path(), &["cp", "--yes", "--verify", "bytes", &format!("{disk}@{MIB}+{MIB}"), &two]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    forget();
    must(&format!("cmp -n {MIB} {one} {two}"));
    // A mounted partition makes its disk a disk in use, and says which.
    let dir = base.path().join("mnt");
    must(&format!("mkfs.ext4 -q -F {one}; mkdir {0}; mount {one} {0}", dir.display()));
    undo.later(format!("umount {}", dir.display()));
    let before = sum();
    std::fs::write(base.path().join("a"), b"x").unwrap();
    for (dest, who) in [
        (disk.clone(), format!("mounted at {} ({one})", dir.display())),
        (one.clone(), format!("mounted at {}", dir.display())),
    ] {
        let ran = blkcopy(base.path(), &["cp", "--yes", "a", &dest]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.err.starts_with(&format!("blkcopy: {dest}: in use: {who}\n")), "{}", ran.err);
    }
    assert_eq!(sum(), before, "refused, and changed all the same");
    // The other partition is free.
    assert_eq!(blkcopy(base.path(), &["cp", "--yes", "a", &two]).code, Some(0));
}

//! Two names of one storage: overlapping copies between them are refused, what is used under another name is in use,
//! and where nobody can tell the command says so and takes the user's word.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::mounted::{Mounted, attribute, mounts_or_why};
use common::{
    MIB, Undo, attach, attach_with, blkcopy, bytes, folder, loops_or_why, mount_loop, must, sh, skip,
};
use std::path::Path;

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Refused with exit code 2, these words, and `holds` as it was.
#[track_caller]
fn refused(dir: &Path, source: &str, dest: &str, words: &str, holds: &Path) {
    let sum = || must(&format!("sync; cksum < {}", holds.display()));
    let before = sum();
    // A range of a file that exists is written only when that is said.
    let place: &[&str] = if dest.contains('@') { &["--in-place"] } else { &[] };
    let ran = blkcopy(dir, &[&["cp", "--yes", source, dest], place].concat());
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{source} {dest}: {ran:?}");
    assert!(ran.err.contains(words), "{source} {dest}: {}", ran.err);
    let plan = blkcopy(dir, &[&["plan", source, dest], place].concat());
    assert_eq!(plan.code, Some(1), "{source} {dest}: {plan:?}");
    assert!(plan.out.contains("FAIL") && plan.out.contains(words), "{source} {dest}: {}", plan.out);
    assert_eq!(sum(), before, "{source} {dest}: refused, and changed all the same");
}

#[track_caller]
fn copied(dir: &Path, args: &[&str]) {
    let place: &[&str] = if args.last().unwrap().contains('@') { &["--in-place"] } else { &[] };
    let ran = blkcopy(dir, &[&["cp", "--yes", "--verify", "bytes"], args, place].concat());
    assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
}

const SAME: &str = "hold the same bytes";
const MAY: &str = "may hold the same bytes";

//= promise 7
#[test]
fn loop_devices_over_a_file_whose_name_is_gone_are_one_storage() {
    let test = "loop_devices_over_a_file_whose_name_is_gone_are_one_storage";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let (base, mut undo) = (folder(), Undo::default());
    let (image, link) = (base.path().join("image"), base.path().join("link"));
    std::fs::write(&image, bytes(8 << 20, 1)).unwrap();
    std::fs::hard_link(&image, &link).unwrap();
    let (a, b) = (attach(&mut undo, &image).unwrap(), attach(&mut undo, &image).unwrap());
    let late = attach_with(&mut undo, &image, "--offset 4194304").unwrap();
    let early = attach_with(&mut undo, &image, "--sizelimit 4194304").unwrap();
    std::fs::remove_file(&image).unwrap();
    let (a, b, file) = (shown(&a), shown(&b), shown(&link));
    for (source, dest) in [(&a, &b), (&a, &file), (&file, &b)] {
        let (from, to) = (format!("{source}@0+4MiB"), format!("{dest}@1MiB+4MiB"));
        refused(base.path(), &from, &to, SAME, &link);
        refused(base.path(), &to, &from, SAME, &link);
    }
    refused(base.path(), &a, &b, SAME, &link);
    // The file would be cut: all of it counts, whatever the source's range is.
    let ran = blkcopy(base.path(), &["cp", "--force-in-use", &format!("{a}@4MiB+1MiB"), &file]);
    assert!(ran.code == Some(2) && ran.err.contains(SAME), "{ran:?}");
    assert_eq!(std::fs::metadata(&link).unwrap().len(), 8 << 20);
    // Where they show different bytes of it, they are two.
    copied(base.path(), &[&shown(&early), &shown(&late)]);
    let now = std::fs::read(&link).unwrap();
    assert!(now[..4 << 20] == now[4 << 20..] && now[..4 << 20] == bytes(8 << 20, 1)[..4 << 20]);
    copied(base.path(), &[&format!("{a}@0+1MiB"), &format!("{b}@6MiB+1MiB")]);
    let last = format!("{}@4KiB", shown(&late));
    refused(base.path(), &format!("{a}@{}+1MiB", 4 * MIB), &last, SAME, &link);
}

//= promise 7
#[test]
fn partitions_files_and_loops_on_loops_are_followed_down() {
    let test = "partitions_files_and_loops_on_loops_are_followed_down";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let (base, mut undo) = (folder(), Undo::default());
    let image = base.path().join("disk");
    let made = sh(&format!(
        "truncate -s 20M {0}; printf 'label: gpt\\nstart=2048, size=16384\\nstart=20480, size=16384\\n' | sfdisk -q {0}",
        shown(&image)
    ));
    let disk = match made.and_then(|_| attach_with(&mut undo, &image, "-P")) {
        Ok(disk) => shown(&disk),
        Err(why) => return skip(test, &why),
    };
    let (one, two) = (format!("{disk}p1"), format!("{disk}p2"));
    let _ = sh(&format!("test -e {one} || partx -a {disk}"));
    let name = disk.trim_start_matches("/dev/");
    for part in ["p1", "p2"] {
        let _ = sh(&format!(
            "test -e {disk}{part} || mknod {disk}{part} b $(tr : ' ' < /sys/block/{name}/{name}{part}/dev)"
        ));
    }
    if !Path::new(&two).exists() {
        return skip(test, "loop devices here have no partitions");
    }
    // Partition 1 is 1 MiB to 9 MiB of the disk and of its file, partition 2 is 10 MiB to 18 MiB.
    let file = shown(&image);
    refused(base.path(), &format!("{one}@0+1MiB"), &format!("{file}@1536KiB+1MiB"), SAME, &image);
    refused(base.path(), &format!("{file}@1MiB+4KiB"), &format!("{one}@0+4KiB"), SAME, &image);
    let above = shown(&attach(&mut undo, Path::new(&one)).unwrap());
    refused(base.path(), &format!("{above}@0+1MiB"), &format!("{disk}@1MiB+1MiB"), SAME, &image);
    refused(base.path(), &format!("{above}@4096+1MiB"), &format!("{file}@1MiB+1MiB"), SAME, &image);
    refused(base.path(), &one, &above, SAME, &image);
    let script = format!("dd if=/dev/urandom of={one} bs=1M count=8 oflag=direct status=none");
    must(&script);
    copied(base.path(), &[&one, &two]);
    copied(base.path(), &[&above, &two]);
    // A file system on the second one: its files are somewhere on the partition, the disk and the image, nowhere else.
    let at = base.path().join("mnt");
    must(&format!("mkfs.ext4 -q {two} && mkdir {0} && mount {two} {0}", shown(&at)));
    undo.later(format!("umount {}", shown(&at)));
    let inside = at.join("f");
    std::fs::write(&inside, bytes(1 << 20, 3)).unwrap();
    let inside = shown(&inside);
    for source in [format!("{two}@0+64KiB"), format!("{disk}@10MiB+64KiB"), format!("{file}@17MiB+64KiB")] {
        refused(base.path(), &source, &format!("{inside}@0+64KiB"), MAY, Path::new(&inside));
        let new = at.join("new");
        refused(base.path(), &source, &shown(&new), "would be created on storage that", Path::new(&inside));
        assert!(!new.exists());
    }
    copied(base.path(), &[&format!("{one}@0+64KiB"), &inside]);
    copied(base.path(), &[&format!("{disk}@1MiB+64KiB"), &shown(&at.join("other"))]);
    copied(base.path(), &[&inside, &shown(&at.join("third"))]);
    // What is mounted changes while it is copied, so nothing is compared.
    let word = ["cp", "--assume-distinct", &format!("{two}@0+4KiB"), &shown(&at.join("fourth"))];
    let ran = blkcopy(base.path(), &word);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    // Certain is certain: nobody's word counts.
    let ran = blkcopy(base.path(), &["cp", "--yes", "--assume-distinct", &one, &above]);
    assert!(ran.code == Some(2) && ran.err.contains(SAME), "{ran:?}");
}

//= promise 3
#[test]
fn a_device_whose_twin_is_used_is_in_use() {
    let test = "a_device_whose_twin_is_used_is_in_use";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let (base, mut undo) = (folder(), Undo::default());
    let image = base.path().join("image");
    must(&format!("truncate -s 16M {0} && mkfs.ext4 -q -F {0}", shown(&image)));
    let a = shown(&attach(&mut undo, &image).unwrap());
    let b = shown(&attach(&mut undo, &image).unwrap());
    let at = base.path().join("mnt");
    must(&format!("mkdir {0} && mount {a} {0}", shown(&at)));
    undo.later(format!("umount {}", shown(&at)));
    std::fs::remove_file(&image).unwrap();
    std::fs::write(base.path().join("s"), bytes(1024, 2)).unwrap();
    let who = format!("in use: mounted at {} ({a}, which holds the same bytes)", shown(&at));
    let ran = blkcopy(base.path(), &["cp", "--yes", "s", &b]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{ran:?}");
    assert!(ran.err.contains(&format!("{b}: {who}\n")), "{}", ran.err);
    let info = blkcopy(base.path(), &["info", &b]);
    assert!(info.out.contains(&format!("WARN  {who}\n")), "{}", info.out);
    let ran = blkcopy(base.path(), &["cp", "--yes", "--force-in-use", "s", &b]);
    assert!(ran.code == Some(0) && ran.err.contains(&format!("warning: {b}: {who}\n")), "{ran:?}");
    // Opened exclusively only.
    let image = base.path().join("image2");
    std::fs::write(&image, bytes(1 << 20, 4)).unwrap();
    let a = shown(&attach(&mut undo, &image).unwrap());
    let b = shown(&attach(&mut undo, &image).unwrap());
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL | rustix::fs::OFlags::CLOEXEC;
    let held = rustix::fs::open(&a, flags, rustix::fs::Mode::empty()).unwrap();
    let ran = blkcopy(base.path(), &["cp", "--yes", "s", &b]);
    let who = format!("opened exclusively by another program ({a}, which holds the same bytes)");
    assert!(ran.code == Some(2) && ran.err.contains(&who), "{ran:?}");
    drop(held);
    copied(base.path(), &["s", &format!("{b}@0+1KiB")]);
    // A daemon has the image; also on a file system whose files have numbers of a subvolume.
    let mut folders = vec![base.path().to_owned()];
    match mount_loop(&mut undo, base.path(), "btrfs", "mkfs.btrfs -q -f", "300M") {
        Ok(at) => {
            must(&format!("btrfs subvolume create {0}/sub >/dev/null 2>&1 || mkdir {0}/sub", shown(&at)));
            folders.push(at.join("sub"));
        }
        Err(why) => skip(test, &why),
    }
    for folder in folders {
        let image = folder.join("locked");
        std::fs::write(&image, bytes(1 << 20, 5)).unwrap();
        let device = shown(&attach(&mut undo, &image).unwrap());
        let locker = std::process::Command::new("flock")
            .args(["--no-fork", "-x", &shown(&image), "sh", "-c", "echo held; exec sleep 100"])
            .stdout(std::process::Stdio::piped())
            .spawn();
        let Ok(mut locker) = locker else { return skip(test, "no flock(1)") };
        let mut line = String::new();
        let out = locker.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        let ran = blkcopy(base.path(), &["cp", "--yes", "s", &device]);
        locker.kill().unwrap();
        locker.wait().unwrap();
        let who = format!("{device}: in use: the file below is locked by another program (flock)");
        assert!(ran.code == Some(2) && ran.err.contains(&who), "{}: {ran:?}", shown(&image));
        let ran = blkcopy(base.path(), &["cp", "--yes", "s", &device]);
        assert_eq!(ran.code, Some(0), "{}: {ran:?}", shown(&image));
    }
}

//= promise 7
#[test]
fn a_file_of_our_mount_and_its_image_are_one_storage() {
    let test = "a_file_of_our_mount_and_its_image_are_one_storage";
    if let Err(why) = mounts_or_why().and_then(|()| loops_or_why()) {
        return skip(test, &why);
    }
    let (base, mut undo) = (folder(), Undo::default());
    let at = |name: &str| base.path().join(name);
    for (name, seed) in [("a", 1), ("b", 2), ("d", 3)] {
        std::fs::write(at(name), bytes(4 << 20, seed)).unwrap();
    }
    let disk = shown(&attach(&mut undo, &at("d")).unwrap());
    let twin = shown(&attach(&mut undo, &at("a")).unwrap());
    let args = [format!("a={}", shown(&at("a"))), format!("b={}", shown(&at("b"))), format!("d={disk}")];
    let args: Vec<&str> =
        args.iter().map(String::as_str).chain(["scratch=mem:1MiB", "--force-in-use"]).collect();
    let mount = Mounted::start(&args);
    let on = |name: &str| shown(&mount.at_name(name));
    let (image, file) = (shown(&at("a")), on("a"));
    refused(base.path(), &image, &file, SAME, &at("a"));
    refused(base.path(), &format!("{image}@0+1MiB"), &format!("{file}@64KiB+1MiB"), SAME, &at("a"));
    refused(base.path(), &format!("{file}@0+1MiB"), &format!("{image}@64KiB+1MiB"), SAME, &at("a"));
    refused(base.path(), &format!("{twin}@0+1MiB"), &format!("{file}@64KiB+1MiB"), SAME, &at("a"));
    refused(base.path(), &format!("{file}@0+1MiB"), &format!("{twin}@64KiB+1MiB"), "in use", &at("a"));
    refused(
        base.path(),
        &format!("{}@0+1MiB", shown(&at("d"))),
        &format!("{}@4KiB+1MiB", on("d")),
        SAME,
        &at("d"),
    );
    refused(base.path(), &disk, &on("d"), SAME, &at("d"));
    copied(base.path(), &[&file, &on("b")]);
    copied(base.path(), &[&image, &format!("{}@0+4MiB", on("b"))]);
    copied(base.path(), &[&format!("{file}@0+1MiB"), &on("scratch")]);
    copied(base.path(), &[&file, &shown(&at("new"))]);
    // A loop device over the mount's file, and a file of another mount over that.
    if let Ok(above) = attach(&mut undo, &mount.at_name("b")) {
        let above = shown(&above);
        refused(
            base.path(),
            &format!("{}@0+1MiB", shown(&at("b"))),
            &format!("{above}@4KiB+1MiB"),
            "",
            &at("b"),
        );
        must(&format!("losetup -d {above}"));
        undo.0.retain(|line| !line.ends_with(&above));
    }
    // No tool that copies attributes carries it along.
    let listed = must(&format!("getfattr -d -m - {file} 2>/dev/null || true"));
    assert!(!listed.contains("storage"), "{listed}");
    let value = sh(&format!("getfattr --only-values -n user.blkcopy.storage {file}"));
    if let Ok(value) = value {
        assert!(value.starts_with("file "), "{value}");
    }
    let _ = attribute;
    mount.stop();
}

//= promise 7
#[test]
fn mounts_over_mounts_are_looked_through_and_what_is_behind_them_is_in_use() {
    let test = "mounts_over_mounts_are_looked_through_and_what_is_behind_them_is_in_use";
    if let Err(why) = mounts_or_why().and_then(|()| loops_or_why()) {
        return skip(test, &why);
    }
    let (base, mut undo) = (folder(), Undo::default());
    let image = base.path().join("a");
    must(&format!("truncate -s 16M {0} && mkfs.ext4 -q -F {0}", shown(&image)));
    std::fs::write(base.path().join("s"), bytes(1024, 1)).unwrap();
    let inner = Mounted::start(&[&format!("a={}", shown(&image))]);
    // A mount takes hold of its images, but not of the files of another mount: both show the image.
    let outer = Mounted::start(&[&format!("b={}", shown(&inner.at_name("a")))]);
    let (a, b) = (shown(&inner.at_name("a")), shown(&outer.at_name("b")));
    let file = shown(&image);
    refused(base.path(), &format!("{file}@0+1MiB"), &format!("{b}@4KiB+1MiB"), SAME, &image);
    refused(base.path(), &format!("{b}@0+1MiB"), &format!("{a}@4KiB+1MiB"), SAME, &image);
    std::fs::create_dir(base.path().join("mnt")).unwrap();
    copied(base.path(), &["s", &format!("{b}@0+1KiB")]);
    // Mounted under its own name, which neither mount can see.
    let device = shown(&attach(&mut undo, &image).unwrap());
    must(&format!("mount {device} {}/mnt", shown(base.path())));
    undo.later(format!("umount {}/mnt", shown(base.path())));
    for dest in [&a, &b] {
        let ran = blkcopy(base.path(), &["cp", "--in-place", "s", &format!("{dest}@0+1KiB")]);
        let who = format!("{dest}: in use: mounted at ");
        assert!(ran.code == Some(2) && ran.err.contains(&who), "{ran:?}");
    }
    outer.stop();
    inner.stop();
}

/// Prints a file's handle, or opens one in a mounted folder while its only file is open, and prints what it reads.
const HANDLES: &str = "
import ctypes,os,sys
libc=ctypes.CDLL(None,use_errno=True)
class H(ctypes.Structure): _fields_=[('n',ctypes.c_uint),('t',ctypes.c_int),('d',ctypes.c_ubyte*128)]
h=H(); h.n=128
if sys.argv[1]=='take':
    m=ctypes.c_int()
    if libc.name_to_handle_at(-100,sys.argv[2].encode(),ctypes.byref(h),ctypes.byref(m),0): sys.exit('no handles')
    print(bytes(h).hex())
else:
    k=[open(os.path.join(sys.argv[2],n),'rb') for n in os.listdir(sys.argv[2])]
    ctypes.memmove(ctypes.byref(h),bytes.fromhex(sys.argv[3]),ctypes.sizeof(h))
    d=os.open(sys.argv[2],os.O_RDONLY); f=libc.open_by_handle_at(d,ctypes.byref(h),os.O_RDONLY)
    print(os.read(f,4).hex() if f>=0 else os.strerror(ctypes.get_errno()))
";

#[test]
fn a_file_handle_of_an_earlier_mount_leads_to_no_volume_of_a_later_one() {
    let test = "a_file_handle_of_an_earlier_mount_leads_to_no_volume_of_a_later_one";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let at = |name: &str| base.path().join(name);
    std::fs::write(at("handles.py"), HANDLES).unwrap();
    std::fs::write(at("a"), bytes(4096, 1)).unwrap();
    std::fs::write(at("b"), bytes(4096, 2)).unwrap();
    let python = |rest: &str| sh(&format!("python3 {} {rest}", shown(&at("handles.py"))));
    let first = Mounted::start(&[&format!("x={}", shown(&at("a")))]);
    let handle = match python(&format!("take {}", shown(&first.at_name("x")))) {
        Ok(handle) => handle,
        Err(why) => return skip(test, &why),
    };
    let front: String = bytes(4, 1).iter().map(|b| format!("{b:02x}")).collect();
    match python(&format!("open {} {handle}", shown(first.dir()))) {
        Ok(read) if read == front => {}
        other => return skip(test, &format!("file handles cannot be opened here: {other:?}")),
    }
    first.stop();
    let second = Mounted::start(&[&format!("y={}", shown(&at("b")))]);
    let read = python(&format!("open {} {handle}", shown(second.dir()))).unwrap();
    assert_eq!(read, "Stale file handle");
    second.stop();
}

//= promise 7
#[test]
fn what_a_target_of_this_machine_serves_is_known_by_its_generation() {
    let (base, _undo) = (folder(), Undo::default());
    let at = |name: &str| base.path().join(name);
    for (name, seed) in [("disk.img", 1), ("other.img", 2)] {
        std::fs::write(at(name), bytes(4 << 20, seed)).unwrap();
    }
    let mut served = std::process::Command::new(common::BIN)
        .args(["serve", "--listen", "127.0.0.1:0", "--nqn", "nqn.2026-01.org.example:alias", "disk.img"])
        .current_dir(base.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(served.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("listening on ") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut out, &mut line).unwrap() > 0, "serve ended");
    }
    let address = line["listening on ".len()..].split(": ").next().unwrap();
    let url = format!("nvme-tcp://{address}/nqn.2026-01.org.example:alias?nsid=1");
    let ran = blkcopy(base.path(), &["cp", "--yes", "disk.img@0+1MiB", &format!("{url}@64KiB")]);
    let copy = blkcopy(base.path(), &["cp", "--yes", "--verify", "bytes", "other.img@0+1MiB", &url]);
    let out = blkcopy(base.path(), &["cp", &url, "new.img"]);
    served.kill().unwrap();
    served.wait().unwrap();
    assert!(ran.code == Some(2) && ran.err.contains(MAY), "{ran:?}");
    assert!(ran.err.contains("a target reports that it serves the same file or disk"), "{}", ran.err);
    assert_eq!((copy.code, out.code), (Some(0), Some(0)), "{copy:?} {out:?}");
    must(&format!("cmp {} {}", shown(&at("disk.img")), shown(&at("new.img"))));
}

//= promise 7
#[test]
fn two_names_of_one_storage_are_not_served_side_by_side() {
    let test = "two_names_of_one_storage_are_not_served_side_by_side";
    if let Err(why) = mounts_or_why().and_then(|()| loops_or_why()) {
        return skip(test, &why);
    }
    let (base, mut undo) = (folder(), Undo::default());
    let image = base.path().join("image");
    std::fs::write(&image, bytes(1 << 20, 1)).unwrap();
    let a = shown(&attach(&mut undo, &image).unwrap());
    let b = shown(&attach(&mut undo, &image).unwrap());
    std::fs::remove_file(&image).unwrap();
    std::fs::create_dir(base.path().join("mnt")).unwrap();
    for front in [&["mount", "mnt"][..], &["serve", "--listen", "127.0.0.1:0"]] {
        let ran = blkcopy(base.path(), &[front, &[&a, &b]].concat());
        assert!(ran.code == Some(2) && ran.err.contains(SAME), "{front:?}: {ran:?}");
    }
}

//= promise 7
#[test]
fn a_merged_file_of_an_overlay_is_the_one_below() {
    let test = "a_merged_file_of_an_overlay_is_the_one_below";
    if let Err(why) = mounts_or_why().and_then(|()| loops_or_why()) {
        return skip(test, &why);
    }
    let (base, mut undo) = (folder(), Undo::default());
    let root = shown(base.path());
    // The upper folder on a file system of its own: numbers of files differ then.
    let made = mount_loop(&mut undo, base.path(), "up", "mkfs.ext4 -q", "32M").and_then(|_| {
        sh(&format!(
            "cd {root}; mkdir low up/dir up/work merged; \
             mount -t overlay overlay -o lowerdir={root}/low,upperdir={root}/up/dir,workdir={root}/up/work {root}/merged"
        ))
    });
    if let Err(why) = made {
        return skip(test, &why);
    }
    undo.later(format!("umount {root}/merged"));
    let merged = base.path().join("merged");
    let below = base.path().join("up/dir/f");
    std::fs::write(merged.join("f"), bytes(1 << 20, 1)).unwrap();
    let (m, u) = (shown(&merged.join("f")), shown(&below));
    refused(base.path(), &m, &u, SAME, &below);
    refused(base.path(), &format!("{u}@0+64KiB"), &format!("{m}@4KiB+64KiB"), SAME, &below);
    let looped = shown(&attach(&mut undo, &below).unwrap());
    refused(base.path(), &format!("{m}@0+64KiB"), &format!("{looped}@4KiB+64KiB"), SAME, &below);
    copied(base.path(), &[&m, &shown(&merged.join("g"))]);
    copied(base.path(), &[&m, &shown(&base.path().join("elsewhere"))]);
}

//= promise 7
#[test]
fn mapped_devices_are_looked_through() {
    let test = "mapped_devices_are_looked_through";
    if let Err(why) =
        loops_or_why().and_then(|()| sh("dmsetup version >/dev/null && dmsetup targets | grep -q linear"))
    {
        return skip(test, &format!("no device mapper: {why}"));
    }
    let (base, mut undo) = (folder(), Undo::default());
    let image = base.path().join("image");
    std::fs::write(&image, bytes(16 << 20, 1)).unwrap();
    let disk = shown(&attach(&mut undo, &image).unwrap());
    let mut map = |name: &str, table: &str| {
        let name = format!("blkcopy-{}-{name}", std::process::id());
        must(&format!("dmsetup create {name} --table '{table}'"));
        undo.later(format!("dmsetup remove {name}"));
        // By number: nobody may have made the names.
        let node = must(&format!("echo /dev/dm-$(dmsetup info -c --noheadings -o minor {name} | tr -d ' ')"));
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !Path::new(&node).exists() {
            assert!(std::time::Instant::now() < end, "no {node}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        node
    };
    // Sectors of 512 bytes: two views of the first half, one of the second, and chunks of 64 KiB by turns from both.
    let (a, b) =
        (map("a", &format!("0 16384 linear {disk} 0")), map("b", &format!("0 16384 linear {disk} 0")));
    let c = map("c", &format!("0 16384 linear {disk} 16384"));
    let turns = map("d", &format!("0 16384 striped 2 128 {disk} 0 {disk} 16384"));
    refused(base.path(), &format!("{a}@0+4MiB"), &format!("{b}@4KiB+4MiB"), SAME, &image);
    refused(base.path(), &format!("{a}@0+4MiB"), &format!("{}@1MiB+4MiB", shown(&image)), SAME, &image);
    // Neighbours on one disk are no use of each other.
    copied(base.path(), &[&a, &c]);
    copied(base.path(), &[&format!("{a}@0+1MiB"), &format!("{b}@4MiB+1MiB")]);
    // Chunk 16 of the turns is chunk 8 of the first half: 512 KiB.
    refused(base.path(), &format!("{turns}@1MiB+64KiB"), &format!("{a}@512KiB+64KiB"), SAME, &image);
    copied(base.path(), &[&format!("{turns}@1MiB+64KiB"), &format!("{a}@640KiB+64KiB")]);
    refused(base.path(), &format!("{turns}@1088KiB+64KiB"), &format!("{c}@512KiB+64KiB"), SAME, &image);
    // What is mounted through one view is in use through the other.
    let at = base.path().join("mnt");
    must(&format!("mkfs.ext4 -q {a} && mkdir {0} && mount {a} {0}", shown(&at)));
    let ran = blkcopy(base.path(), &["cp", "--yes", &format!("{c}@0+4KiB"), &format!("{b}@0+4KiB")]);
    must(&format!("umount {}", shown(&at)));
    let who = format!("in use: mounted at {} ({a}, which holds the same bytes)", shown(&at));
    assert!(ran.code == Some(2) && ran.err.contains(&who), "{ran:?}");
}

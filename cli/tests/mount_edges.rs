//! Edges of the mount where something was, or could be, lost without a word.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod common;

use blkcopy::sys::blkcopy::{Entry, blkcopy_from, blkcopy_source};
use blkcopy::sys::mapped::Mapped;
use common::mounted::{Mounted, bounded, mounts_or_why};
use common::{MIB, Undo, attach_with, folder, loops_or_why, mount_tmpfs, must, sh, skip};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::path::Path;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Makes the image 4 MiB of hole.
fn empty(image: &Path) {
    File::create(image).unwrap().set_len(4 * MIB).unwrap();
}

/// The image as the volume `v`.
fn shown(image: &Path, cache: bool) -> Mounted {
    let name = format!("v={}", image.display());
    let args: Vec<&str> = cache.then_some("--cache").into_iter().chain([name.as_str()]).collect();
    Mounted::start(&args)
}

//= promise 6
#[test]
fn a_page_that_cannot_be_written_back_is_an_error_of_msync() {
    let test = "a_page_that_cannot_be_written_back_is_an_error_of_msync";
    let (base, mut undo) = (folder(), Undo::default());
    if let Err(why) = mounts_or_why().and_then(|()| loops_or_why()) {
        return skip(test, &why);
    }
    let small = match mount_tmpfs(&mut undo, base.path(), "small", "512K") {
        Ok(small) => small,
        Err(why) => return skip(test, &why),
    };
    let image = small.join("image");
    empty(&image);
    for cache in [false, true] {
        let mounted = shown(&image, cache);
        let file = open(&mounted.at_name("v"));
        let mut map = Mapped::new(&file, 4 << 20).unwrap();
        map.write(0, &vec![7; 1 << 20]);
        let synced = map.sync(0..4 << 20).and_then(|()| file.sync_all());
        assert!(synced.is_err(), "half a MiB is lost and nobody is told");
        drop((map, file));
        // What could not be written could not be flushed either, or was told already.
        drop(mounted);
        empty(&image);
    }
}

//= promise 1
#[test]
fn a_search_for_holes_sees_what_was_stored_through_a_mapping() {
    let test = "a_search_for_holes_sees_what_was_stored_through_a_mapping";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let image = base.path().join("sparse");
    empty(&image);
    for cache in [false, true] {
        let mounted = shown(&image, cache);
        let file = open(&mounted.at_name("v"));
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Err(rustix::io::Errno::NXIO));
        let mut map = Mapped::new(&file, 4 << 20).unwrap();
        map.write(1 << 20, b"stored");
        let data = rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap();
        assert!(data <= MIB && data + 65_536 > MIB, "data is told at {data}");
        drop((map, file));
        mounted.stop();
        empty(&image);
    }
}

//= promise 8
#[test]
fn a_mount_that_is_aborted_beside_an_ioctl_ends() {
    let test = "a_mount_that_is_aborted_beside_an_ioctl_ends";
    if let Err(why) = mounts_or_why().and_then(|()| loops_or_why()) {
        return skip(test, &why);
    }
    let base = folder();
    for name in ["a", "b"] {
        std::fs::write(base.path().join(name), common::bytes(32 << 20, 1)).unwrap();
    }
    let at = |name: &str| format!("{name}={}", base.path().join(name).display());
    for _ in 0..3 {
        let mut mounted = Mounted::start(&[&at("a"), &at("b")]);
        let (a, b) = (open(&mounted.at_name("a")), open(&mounted.at_name("b")));
        let token = blkcopy_source(&a).unwrap();
        let copying = std::thread::spawn(move || {
            let mut calls = 0;
            loop {
                let mut entries: Vec<Entry> = (0..32).map(|n| Entry::new(n * MIB, n * MIB, MIB)).collect();
                if let Err(error) = blkcopy_from(&b, token, 0, &mut entries) {
                    return (calls, error);
                }
                calls += 1;
            }
        });
        // While a call is being served: its next invalidation finds nobody any more.
        while mounted.receipt("b")["copies"].as_u64() < Some(40) {
            std::thread::yield_now();
        }
        drop(a);
        // Forced, the connection goes at once, also when the files are in use and the mount cannot go.
        let _busy = sh(&format!("umount -f {}", mounted.dir().display()));
        let (_, error) = copying.join().unwrap();
        assert!(error.raw_os_error().is_some(), "{error}");
        assert!(mounted.wait().is_some(), "the server does not end");
    }
}

//= promise 1
#[test]
fn one_byte_is_shown_by_one_volume_only() {
    let test = "one_byte_is_shown_by_one_volume_only";
    let (base, mut undo) = (folder(), Undo::default());
    if let Err(why) = mounts_or_why().and_then(|()| loops_or_why()) {
        return skip(test, &why);
    }
    let image = base.path().join("disk");
    let made = sh(&format!(
        "truncate -s 20M {0}; printf 'label: gpt\\nstart=2048, size=16384\\n' | sfdisk -q {0}",
        image.display()
    ));
    let disk = match made.and_then(|_| attach_with(&mut undo, &image, "-P")) {
        Ok(disk) => disk.display().to_string(),
        Err(why) => return skip(test, &why),
    };
    let part = format!("{disk}p1");
    let _ = sh(&format!("test -e {part} || partx -a {disk}"));
    if !Path::new(&part).exists() {
        return skip(test, "loop devices here have no partitions");
    }
    let dir = base.path().join("mnt");
    std::fs::create_dir(&dir).unwrap();
    let (dir, image) = (dir.display().to_string(), image.display().to_string());
    let (d, p, f) = (format!("d={disk}"), format!("p={part}"), format!("f={image}"));
    for args in [[&d, &p], [&p, &d]] {
        let ran = bounded(&format!("{} mount {dir} {} {}", common::BIN, args[0], args[1]));
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.err.contains("hold the same bytes"), "{ran:?}");
    }
    let ran = bounded(&format!("{} mount {dir} {d} --ro {f}", common::BIN));
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("hold the same bytes"), "{ran:?}");
}

//= promise 3
#[test]
fn files_belong_to_their_owner_and_to_nobody_else() {
    let test = "files_belong_to_their_owner_and_to_nobody_else";
    let as_user = |id: u32, script: &str| {
        let user = format!("setpriv --reuid={id} --regid={id} --clear-groups");
        bounded(&format!("export LC_ALL=C; {user} sh -c '{script}'"))
    };
    if let Err(why) = mounts_or_why().and_then(|()| loops_or_why()) {
        return skip(test, &why);
    }
    if sh("command -v setpriv").is_err() {
        return skip(test, "no setpriv");
    }
    let scratch = tempfile::tempdir().unwrap();
    must(&format!("chmod 755 {}", scratch.path().display()));
    let dir = scratch.path().join("mnt");
    std::fs::create_dir(&dir).unwrap();
    let front = ["mount", "--owner", "65534:65534", &dir.display().to_string()].map(str::to_owned);
    let mounted = Mounted::at(scratch, dir, &front, &["a=mem:1MiB", "b=mem:1MiB"]);
    let (a, b) = (mounted.text("a"), mounted.text("b"));
    let ran = as_user(65534, &format!("head -c 1M /dev/zero | tr \\0 x >{a}; cp {a} {b}; cmp {a} {b}"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran = as_user(1234, &format!("cat {a}"));
    assert!(ran.code != Some(0) && ran.err.contains("Permission denied"), "{ran:?}");
    mounted.stop();
}

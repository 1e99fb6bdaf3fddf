//! Zeroes that are not written: by what the destination takes of storage, and by its bytes. Needs loop devices; skips
//! aloud without them.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{
    KIB, MIB, Ran, Undo, attach, blkcopy, bytes, loops_or_why, mount_loop, mount_tmpfs, must, skip,
};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const SIZE: u64 = 32 * MIB;

/// Where the source holds data: odd places and lengths, the first and the last byte among them.
const DATA: [(u64, usize); 6] = [
    (0, 1),
    (MIB - 1, 5000),
    (3 * MIB, 128 << 10),
    (7 * MIB + 4096, 4096),
    (20 * MIB + 511, 70_001),
    (SIZE - 513, 513),
];

struct World {
    dir: tempfile::TempDir,
    image: PathBuf,
    device: PathBuf,
    undo: Undo,
}

/// A loop device over a file of [`DATA`] and zeroes.
fn world(test: &str) -> Option<World> {
    if let Err(why) = loops_or_why() {
        skip(test, &why);
        return None;
    }
    let (dir, mut undo) = (common::folder(), Undo::default());
    let image = dir.path().join("image");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(SIZE).unwrap();
    for (at, len) in DATA {
        file.write_all_at(&bytes(len, at + 1), at).unwrap();
    }
    drop(file);
    let device = attach(&mut undo, &image).unwrap();
    Some(World { dir, image, device, undo })
}

impl World {
    fn cp(&self, args: &[&str], dest: &Path) -> Ran {
        let mut all = vec!["cp", "--json"];
        all.extend(args);
        all.extend([self.device.to_str().unwrap(), dest.to_str().unwrap()]);
        blkcopy(self.dir.path(), &all)
    }

    /// Nothing but the bytes of the source, says another program, in its first bytes.
    fn is_equal(&self, dest: &Path, case: &str) {
        let (image, dest) = (self.image.display(), dest.display());
        let cmp = common::sh(&format!("cmp -n {SIZE} {image} {dest}"));
        assert!(cmp.is_ok(), "{case}: {}", cmp.unwrap_err());
    }
}

fn stored(file: &Path) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

fn number(ran: &Ran, key: &str) -> u64 {
    ran.json().pointer(key).and_then(serde_json::Value::as_u64).unwrap_or(0)
}

//= promise 1
#[test]
fn zeroes_of_a_device_are_zero_in_every_kind_of_file_and_take_no_space_where_there_are_holes() {
    let test = "zeroes_of_a_device_are_zero_in_every_kind_of_file_and_take_no_space_where_there_are_holes";
    let Some(mut world) = world(test) else { return };
    let base = world.dir.path().to_owned();
    let mut folders = vec![("the test's own", base.clone())];
    folders.push(("tmpfs", mount_tmpfs(&mut world.undo, &base, "tmpfs", "200M").unwrap()));
    for (name, mkfs) in [("vfat", "mkfs.vfat"), ("xfs", "mkfs.xfs -q"), ("ext3", "mkfs.ext3 -q")] {
        match mount_loop(&mut world.undo, &base, name, mkfs, "400M") {
            Ok(at) => folders.push((name, at)),
            Err(why) => skip(&format!("{test} on {name}"), &why),
        }
    }
    let old = bytes(usize::try_from(SIZE).unwrap() + 12_345, 77);
    for (name, folder) in &folders {
        let holes = *name != "vfat";
        let dest = folder.join("dest");
        for sparse in ["auto", "always", "never"] {
            for (before, flags) in [
                (None, &[][..]),
                (None, &["--dest-is-zero"][..]),
                (Some(old.len()), &[][..]),
                (Some(old.len()), &["--in-place"][..]),
                (Some(5_000_777), &["--in-place"][..]),
            ] {
                let case = format!("{name}, {sparse}, {before:?} bytes before, {flags:?}");
                match before {
                    Some(len) => std::fs::write(&dest, &old[..len]).unwrap(),
                    None => drop(std::fs::remove_file(&dest)),
                }
                let mut args = vec!["--sparse", sparse, "--verify", "bytes"];
                args.extend(flags);
                let ran = world.cp(&args, &dest);
                assert_eq!(ran.code, Some(0), "{case}: {ran:?}");
                world.is_equal(&dest, &case);
                let len = dest.metadata().unwrap().len();
                let kept = flags.contains(&"--in-place") && before == Some(old.len());
                assert_eq!(len, if kept { old.len() as u64 } else { SIZE }, "{case}");
                if kept {
                    let mut tail = vec![0; 12_345];
                    std::fs::File::open(&dest).unwrap().read_exact_at(&mut tail, SIZE).unwrap();
                    assert!(tail == old[old.len() - 12_345..], "{case}: what is not copied stays");
                }
                let stored = stored(&dest);
                match sparse {
                    "never" => assert!(stored >= SIZE || !holes, "{case}: {stored} bytes are stored"),
                    // What is written in place of old bytes is zeroed in longer runs.
                    _ if holes => assert!(stored <= 2 * MIB, "{case}: {stored} bytes are stored"),
                    _ => {}
                }
                if sparse == "auto" && before.is_none() {
                    let written = number(&ran, "/host_bytes/written");
                    assert!(written <= 256 * KIB, "{case}: {written} bytes were written");
                }
                let json = ran.json();
                let methods = json["methods"].as_object().unwrap();
                let sum: u64 = methods.values().filter_map(serde_json::Value::as_u64).sum();
                assert_eq!(sum, SIZE, "{case}");
            }
        }
        std::fs::remove_file(&dest).unwrap();
    }
}

//= promise 1, 10
#[test]
fn the_word_that_a_destination_is_zero_is_checked_in_samples_and_by_verifying() {
    let test = "the_word_that_a_destination_is_zero_is_checked_in_samples_and_by_verifying";
    let Some(mut world) = world(test) else { return };
    let back = world.dir.path().join("back");
    std::fs::File::create(&back).unwrap().set_len(SIZE).unwrap();
    let dest = attach(&mut world.undo, &back).unwrap();
    let put = |at: u64, what: &str| {
        let format =
            format!("printf '{what}' | dd of={} bs=1 seek={at} conv=notrunc status=none", dest.display());
        must(&format!("{format}; sync {}", dest.display()));
    };
    let ran = world.cp(&["--yes", "--dest-is-zero", "--verify", "digest"], &dest);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    world.is_equal(&dest, "zero");
    assert!(number(&ran, "/host_bytes/written") <= 256 * KIB, "{ran:?}");
    assert!(stored(&back) <= 2 * MIB, "{} bytes are stored", stored(&back));
    // What it holds now is not zero, and is found before anything is written.
    let (source, name) = (world.device.to_str().unwrap(), dest.to_str().unwrap());
    let clear = || must(&format!("blkdiscard -z {name}"));
    clear();
    for at in [1080, SIZE - 1, 16 * MIB] {
        put(at, "\\001");
        let ran = blkcopy(world.dir.path(), &["cp", "--yes", "--dest-is-zero", source, name]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{ran:?}");
        let said = format!(
            "blkcopy: {name}: byte {at} does not read as zero, so zeroes that are not written would be wrong bytes\n  \
             try: leave out --dest-is-zero, or zero the destination first (blkdiscard --zeroout)\n"
        );
        assert_eq!(ran.err, said);
        let ran = blkcopy(world.dir.path(), &["plan", "--yes", "--dest-is-zero", source, name]);
        assert!(
            ran.code == Some(1) && ran.out.contains(&format!("byte {at} does not read as zero")),
            "{ran:?}"
        );
        put(at, "\\000");
    }
    // Between two samples it is not found, and a wrong word is a wrong byte: verifying says where.
    let hidden = 10 * MIB + 300_001;
    put(hidden, "x");
    let ran = world.cp(&["--yes", "--dest-is-zero", "--verify", "bytes"], &dest);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(ran.json()["outcome"], "mismatch");
    assert_eq!(number(&ran, "/verification/first_bad/offset"), hidden, "{ran:?}");
    // Without the word it is overwritten.
    let ran = world.cp(&["--yes"], &dest);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    world.is_equal(&dest, "no word");
    assert!(number(&ran, "/methods/write-zeroes") > 28 * MIB, "{ran:?}");
}

/// A rate tells of bytes that were moved.
#[test]
fn holes_have_no_rate() {
    let dir = common::folder();
    std::fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 40).unwrap();
    let ran = blkcopy(dir.path(), &["cp", "--offload", "never", "hole", "copy"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.starts_with("copied 1.0 TiB in ") && !ran.out.contains("/s)"), "{ran:?}");
    std::fs::write(dir.path().join("data"), bytes(1 << 20, 1)).unwrap();
    let ran = blkcopy(dir.path(), &["cp", "--offload", "never", "data", "copy2"]);
    assert!(ran.out.contains("/s): 1.0 MiB by read+write"), "{ran:?}");
}

//! What a receipt says became of the bytes, on every kind of storage to be had here, beside what an observer sees that
//! is not ours: the space that the file system says is used. No claim is wider than what was seen, and `--require` that
//! is unmet leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod common;

use blkcopy::block::{ByteRange, Evidence, Fate, Fates, Method};
use blkcopy::drivers::{File, FileOptions};
use common::mounted::{Mounted, mounts_or_why};
use common::{MIB, Ran, Undo, blkcopy, bytes, folder, loops_or_why, mount_loop, mount_tmpfs, must, sh, skip};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const LEN: u64 = 16 * MIB;
/// What a file system takes for its own books beside such a file, at most.
const BOOKS: u64 = 4 * MIB;

/// A folder on some storage.
struct Cell {
    name: &'static str,
    dir: PathBuf,
    /// Where the bytes end up: the folder whose file system is asked for the space that is used.
    below: PathBuf,
}

/// Space used, after everything is written out.
fn used(dir: &Path) -> u64 {
    must(&format!("sync -f {}", dir.display()));
    let said = must(&format!("df --output=used -B1 {}", dir.display()));
    said.lines().nth(1).unwrap().trim().parse().unwrap()
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entry = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name().to_string_lossy().into_owned();
    std::fs::read_dir(dir).unwrap().map(entry).collect()
}

fn count(receipt: &serde_json::Value, fate: &str) -> u64 {
    receipt["bytes"][fate].as_u64().unwrap()
}

/// The storage of this machine.
fn cells(undo: &mut Undo, base: &Path) -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut add = |name: &'static str, made: Result<PathBuf, String>| match made {
        Ok(dir) => cells.push(Cell { name, below: dir.clone(), dir }),
        Err(why) => skip(&format!("what_is_claimed_is_what_is_seen: {name}"), &why),
    };
    add("tmpfs", mount_tmpfs(undo, base, "tmpfs", "200M"));
    match loops_or_why() {
        Err(why) => skip("what_is_claimed_is_what_is_seen: loop devices", &why),
        Ok(()) => {
            for (name, file, mkfs) in [
                ("ext4", "ext4", "mkfs.ext4 -q -F"),
                ("ext3 format", "ext3", "mkfs.ext3 -q -F"),
                ("XFS", "xfs", "mkfs.xfs -q -m reflink=1"),
                ("XFS without reflink", "xfs0", "mkfs.xfs -q -m reflink=0"),
                ("Btrfs", "btrfs", "mkfs.btrfs -q"),
                ("FAT", "fat", "mkfs.vfat -F 32"),
            ] {
                add(name, mount_loop(undo, base, file, mkfs, "400M"));
            }
        }
    }
    let at = |cells: &[Cell], name: &str| cells.iter().find(|c| c.name == name).map(|c| c.dir.clone());
    if let Some(btrfs) = at(&cells, "Btrfs") {
        let dir = btrfs.join("nocow");
        std::fs::create_dir(&dir).unwrap();
        if sh(&format!("chattr +C {}", dir.display())).is_ok() {
            cells.push(Cell { name: "Btrfs, nodatacow", below: btrfs, dir });
        }
    }
    for (name, under) in [("overlay on ext4", "ext4"), ("overlay on XFS", "XFS")] {
        let Some(below) = at(&cells, under) else { continue };
        let [lower, upper, work] = ["lower", "upper", "work"].map(|n| below.join(n).display().to_string());
        let dir = base.join(name.replace(' ', "-"));
        must(&format!("mkdir {lower} {upper} {work} {}", dir.display()));
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        match sh(&format!("mount -t overlay o -o {options} {}", dir.display())) {
            Ok(_) => {
                undo.later(format!("umount -l {}", dir.display()));
                cells.push(Cell { name, dir, below });
            }
            Err(why) => skip(&format!("what_is_claimed_is_what_is_seen: {name}"), &why),
        }
    }
    cells
}

/// The words a row of the table has for the bytes of a receipt.
fn words(receipt: &serde_json::Value) -> String {
    let evidence = receipt["evidence"].as_array().unwrap();
    let parts = evidence.iter().map(|one| {
        // How much was sampled depends on the machine's speed.
        let how = one["how"].as_str().unwrap().replace("extents-sampled", "extents");
        format!("{} ({how})", one["fate"].as_str().unwrap())
    });
    parts.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

/// Checks one receipt against the space that was used; what the table says of it.
fn check(what: &str, ran: &Ran, grew: u64) -> String {
    assert_eq!(ran.code, Some(0), "{what}: {ran:?}");
    let receipt = ran.json();
    let sum: u64 = receipt["bytes"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum();
    assert_eq!(sum, LEN, "{what}: {receipt:#}");
    // All of it happens on this machine: nothing can have been moved elsewhere.
    assert_eq!(count(&receipt, "moved-elsewhere"), 0, "{what}: {receipt:#}");
    let shared = count(&receipt, "shared") + count(&receipt, "no-data");
    let seen = LEN.saturating_sub(grew.saturating_sub(BOOKS.min(grew)));
    assert!(
        shared == 0 || shared <= seen,
        "{what}: {shared} bytes are called shared, and {grew} were used: {receipt:#}"
    );
    words(&receipt)
}

/// `--require` says yes only where no data is stored anew, and its no changes nothing.
fn require(cell: &Cell, must_be: &str, dest: &str) -> &'static str {
    let what = format!("{}: --require {must_be} {dest}", cell.name);
    let before = (names(&cell.dir), std::fs::read(cell.dir.join(dest)).ok());
    let space = used(&cell.below);
    let ran = blkcopy(&cell.dir, &["cp", "--json", "--require", must_be, "a", dest]);
    let grew = used(&cell.below).saturating_sub(space);
    let plan = blkcopy(&cell.dir, &["plan", "--require", must_be, "a", dest]);
    match ran.code {
        Some(0) => {
            assert!(grew < BOOKS, "{what}: {grew} bytes were used: {ran:?}");
            assert_eq!(count(&ran.json(), "shared") + count(&ran.json(), "no-data"), LEN, "{what}: {ran:?}");
            assert_eq!(plan.code, Some(0), "{what}: {plan:?}");
            "yes"
        }
        Some(1) => {
            let after = (names(&cell.dir), std::fs::read(cell.dir.join(dest)).ok());
            assert!(before == after, "{what}: something was changed: {ran:?}");
            assert_eq!(plan.code, Some(1), "{what}: {plan:?}");
            "no"
        }
        _ => panic!("{what}: {ran:?}"),
    }
}

//= promise 2
#[test]
fn what_is_claimed_is_what_is_seen() {
    let base = folder();
    let mut undo = Undo::default();
    let mut table = String::new();
    for cell in cells(&mut undo, base.path()) {
        std::fs::write(cell.dir.join("a"), bytes(LEN as usize, 7)).unwrap();
        std::fs::write(cell.dir.join("old"), b"an old file").unwrap();
        let mut row = format!("| {} |", cell.name);
        for (at, how) in
            [&["--offload=auto"][..], &["--no-sync"], &["--offload=never"]].into_iter().enumerate()
        {
            let dest = format!("d{at}");
            let space = used(&cell.below);
            let ran = blkcopy(&cell.dir, &[&["cp", "--json", "a", &dest], how].concat());
            let grew = used(&cell.below).saturating_sub(space);
            let said = check(&format!("{} {how:?}", cell.name), &ran, grew);
            assert!(std::fs::read(cell.dir.join(&dest)).unwrap() == bytes(LEN as usize, 7), "{}", cell.name);
            std::fs::remove_file(cell.dir.join(&dest)).unwrap();
            let _ = write!(row, " {said} |");
        }
        let answers = [("shared", "n1"), ("offload", "n2"), ("shared", "old"), ("offload", "old")];
        let answers = answers.map(|(must_be, dest)| require(&cell, must_be, dest));
        assert_eq!(
            (answers[0], answers[1]),
            (answers[2], answers[3]),
            "{}: a new and an old file",
            cell.name
        );
        let _ = writeln!(table, "{row} {} | {} |", answers[0], answers[1]);
        for name in names(&cell.dir).iter().filter(|n| n.as_str() != "a" && n.starts_with(['n', 'o'])) {
            let _ = std::fs::remove_file(cell.dir.join(name));
        }
    }
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/offload.md")).unwrap();
    for row in table.lines() {
        assert!(page.contains(row), "docs/offload.md does not have this row; the table is now\n{table}");
    }
}

//= promise 2
#[test]
fn our_own_daemons_say_what_they_did() {
    let test = "our_own_daemons_say_what_they_did";
    if let Err(why) = loops_or_why().and_then(|()| mounts_or_why()) {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    for (name, mkfs, shares) in
        [("ext4", "mkfs.ext4 -q -F", false), ("xfs", "mkfs.xfs -q -m reflink=1", true)]
    {
        let dir = match mount_loop(&mut undo, base.path(), name, mkfs, "400M") {
            Ok(dir) => dir,
            Err(why) => {
                skip(test, &why);
                continue;
            }
        };
        std::fs::write(dir.join("a"), bytes(LEN as usize, 7)).unwrap();
        std::fs::write(dir.join("b"), bytes(LEN as usize, 8)).unwrap();
        let at = |file: &str| dir.join(file).display().to_string();
        let mounted =
            Mounted::serve(&[&format!("a={}", at("a")), &format!("b={}", at("b")), "mem=mem:16MiB"]);
        let (a, b, mem) = (mounted.text("a"), mounted.text("b"), mounted.text("mem"));
        let cp = |more: &[&str]| blkcopy(&dir, &[&["cp", "--json", "--in-place"], more].concat());
        // What must not be is refused by the daemon before anything is written.
        let ran = cp(&["--require", "offload", &a, &b]);
        let same = std::fs::read(dir.join("b")).unwrap() == bytes(LEN as usize, 8);
        assert_eq!((ran.code, same), (Some(i32::from(!shares)), !shares), "{name}: {ran:?}");
        let ran = cp(&[&a, &b]);
        assert_eq!(ran.code, Some(0), "{name}: {ran:?}");
        let (receipt, daemon) = (ran.json(), mounted.receipt("b"));
        let fate = if shares { "shared" } else { "through-kernel" };
        assert_eq!(count(&receipt, fate), LEN, "{name}: {receipt:#}\n{daemon:#}");
        assert_eq!(receipt["evidence"][0]["how"], "statement", "{receipt:#}");
        // It made them all, so both receipts agree.
        let copies = if shares { 2 } else { 1 };
        assert_eq!(count(&daemon, fate), copies * LEN, "{name}: {daemon:#}");
        let ran = cp(&["--require", "offload", &a, &mem]);
        assert_eq!(ran.code, Some(1), "the daemon would read and write: {ran:?}");
        let ran = cp(&[&a, &mem]);
        assert_eq!(count(&ran.json(), "read-write"), LEN, "{ran:?}");
    }
}

//= promise 2
#[test]
fn one_call_that_shares_once_and_copies_once_is_told_apart() {
    let test = "one_call_that_shares_once_and_copies_once_is_told_apart";
    let base = folder();
    let mut undo = Undo::default();
    let made = loops_or_why()
        .and_then(|()| mount_loop(&mut undo, base.path(), "xfs", "mkfs.xfs -q -m reflink=1", "400M"));
    let dir = match made {
        Ok(dir) => dir,
        Err(why) => return skip(test, &why),
    };
    std::fs::write(dir.join("a"), bytes(LEN as usize, 7)).unwrap();
    let open = |name: &str| File::open(dir.join(name), FileOptions { write: true, create: true }).unwrap();
    let source = open("a");
    // The same call on the same file: at a block's border XFS shares, elsewhere it copies, and it answers the same.
    for (from, fate) in [(4096, Fate::Shared), (4097, Fate::ThroughKernel), (8192, Fate::Shared)] {
        let piece = ByteRange::between(from, from + MIB);
        let fates = open(&format!("d{from}")).try_copy(&source, piece, Method::CopyFileRange).unwrap();
        assert_eq!(fates, Fates::all(fate, Evidence::Extents, MIB), "from byte {from}");
    }
    // Within blocks that are shared already: until it is written out, the file system still shows the old places.
    must(&format!("cp --reflink=always {0}/a {0}/clone && sync -f {0}", dir.display()));
    let ran =
        blkcopy(&dir, &["cp", "--json", "--in-place", "--no-sync", "--segment", "1:1:4000", "a", "clone"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(
        count(&ran.json(), "through-kernel"),
        4000,
        "bytes written into a clone are not shared: {ran:?}"
    );
}

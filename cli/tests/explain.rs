//! `explain` and `compare` on real file systems: what is called shared is equal, and nothing different is called equal.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // in a test a panic is the message

mod common;

use common::{Ran, Undo, attach, blkcopy, bytes, folder, loops_or_why, mount_loop, must, skip};
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: usize = 4096;

fn explain(dir: &Path, more: &[&str]) -> Ran {
    blkcopy(dir, &[&["explain", "--json", "--all"], more].concat())
}

/// The answer, which must have this verdict and exit code.
fn is(ran: &Ran, verdict: &str, code: i32) -> serde_json::Value {
    let answer = ran.json();
    assert!(answer["verdict"] == verdict && ran.code == Some(code), "{verdict} {code}: {ran:?}");
    answer
}

/// Runs that are known to be equal are equal, those read as different differ, and what was read is all told.
fn holds(dir: &Path, a: &str, b: &str, answer: &serde_json::Value) {
    let (x, y) = (std::fs::read(dir.join(a)).unwrap(), std::fs::read(dir.join(b)).unwrap());
    let mut at = 0;
    for run in answer["runs"].as_array().unwrap() {
        let (offset, len) = (run["offset"].as_u64().unwrap() as usize, run["len"].as_u64().unwrap() as usize);
        assert_eq!(offset, at, "{answer}");
        at += len;
        let (p, q) = (&x[offset..at], &y[offset..at]);
        match run["is"].as_str().unwrap() {
            "shared" | "equal" => assert!(p == q, "{a} {b} at {offset}: {answer}"),
            "zero" => assert!(p == q && p.iter().all(|&byte| byte == 0), "{a} {b} at {offset}: {answer}"),
            "different" => assert!(p[0] != q[0] && p[len - 1] != q[len - 1], "{a} {b} at {offset}"),
            _ => {}
        }
    }
    assert_eq!(at as u64, answer["common_bytes"].as_u64().unwrap());
    let first = x.iter().zip(&y).position(|(p, q)| p != q);
    if answer["by"] == "digest" {
        assert_eq!(answer["first_different"].as_u64(), first.map(|n| n as u64), "{a} {b}: {answer}");
        assert_eq!(answer["verdict"] == "different", x != y);
    }
}

fn fill(path: &Path, seed: u64, blocks: usize) {
    std::fs::write(path, bytes(blocks * BLOCK, seed)).unwrap();
}

/// What holds on every file system that shares extents.
fn on(dir: &Path, compressed: bool) {
    let at = |name: &str| dir.join(name);
    // On a compressing file system: words that pack well, and no two blocks of which are alike.
    if compressed {
        let text: String = (0..60_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(at("a"), &text.as_bytes()[..128 * BLOCK]).unwrap();
    } else {
        fill(&at("a"), 1, 128);
    }
    must(&format!("cd {}; sync; cp --reflink=always a clone; cp --reflink=always a half", dir.display()));
    is(&explain(dir, &["a", "clone"]), "shared", 0);
    is(&blkcopy(dir, &["compare", "--json", "a", "clone"]), "equal", 0);
    // Not stored yet: the file system still lists the old places.
    let half = std::fs::File::options().write(true).open(at("half")).unwrap();
    half.write_all_at(&bytes(8 * BLOCK, 2), 16 * BLOCK as u64).unwrap();
    let answer = is(&explain(dir, &["a", "half"]), "partly-shared", 1);
    holds(dir, "a", "half", &answer);
    let answer = is(&explain(dir, &["--digest", "a", "half"]), "different", 1);
    holds(dir, "a", "half", &answer);
    let ran = blkcopy(dir, &["compare", "a", "half"]);
    let first = 16 * BLOCK;
    assert_eq!(ran.out, format!("different: the first different byte is {first}\n"), "{ran:?}");
    // The same bytes elsewhere, by ranges.
    must(&format!("cd {}; xfs_io -f -c 'reflink a 0 65536 65536' shifted; sync", dir.display()));
    is(&explain(dir, &["a@0+65536", "shifted@65536+65536"]), "shared", 0);
    // Parts of one length of one packed piece.
    must(&format!("cd {}; xfs_io -f -c 'reflink a 4096 0 4096' one; sync", dir.display()));
    is(&explain(dir, &["a@4096+4096", "one"]), "shared", 0);
    is(&explain(dir, &["a@0+4096", "one"]), "nothing-shared", 1);
    // Copied, not shared; and of another length.
    must(&format!("cd {}; cp --reflink=never a copy; sync", dir.display()));
    is(&explain(dir, &["a", "copy"]), "nothing-shared", 1);
    let answer = is(&explain(dir, &["--digest", "a", "copy"]), "equal", 0);
    assert_eq!(answer["a"]["digest"], answer["b"]["digest"]);
    let whole = blake3::hash(&std::fs::read(at("a")).unwrap());
    assert_eq!(answer["a"]["digest"], whole.to_hex().as_str());
    must(&format!("cd {}; cp --reflink=always a longer; printf x >>longer", dir.display()));
    let answer = is(&explain(dir, &["--digest", "a", "longer"]), "different", 1);
    let whole = blake3::hash(&std::fs::read(at("longer")).unwrap());
    assert_eq!(answer["b"]["digest"], whole.to_hex().as_str());
    assert!(blkcopy(dir, &["explain", "a", "longer"]).out.contains("longer is 1 byte longer"));
    // A hole beside zeroes that are stored, and holes on both.
    must(&format!(
        "cd {}; truncate -s 1M h1 h2 h3; dd if=/dev/zero of=h2 bs=64k count=1 conv=notrunc status=none; \
         fallocate -l 64k h3",
        dir.display()
    ));
    std::fs::File::options().write(true).open(at("h3")).unwrap().write_all_at(b"new", 8192).unwrap();
    is(&explain(dir, &["--digest", "h1", "h2"]), "equal", 0);
    // A page that is newer than storage set aside and not written.
    let answer = is(&explain(dir, &["h1", "h3"]), "nothing-shared", 1);
    holds(dir, "h1", "h3", &answer);
    is(&explain(dir, &["--digest", "h1", "h3"]), "different", 1);
}

/// Files of clones, shifted clones and overwrites, compared with their bytes.
fn any_files(dir: &Path, seeds: std::ops::Range<u64>) {
    const BLOCKS: u64 = 48;
    fill(&dir.join("f0"), 7, BLOCKS as usize);
    must(&format!("cd {}; sync; cp --reflink=always f0 f1; cp --reflink=always f0 f2", dir.display()));
    for seed in seeds {
        let random: Vec<u64> = bytes(8 * 64, seed + 1000)
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        let mut script = format!("cd {}", dir.display());
        for ops in random.chunks_exact(8).take(3) {
            let (from, to) = (ops[0] % 3, ops[1] % 3);
            let len = 1 + ops[2] % 16;
            let (at, target) = (ops[3] % (BLOCKS - len), ops[4] % (BLOCKS - len));
            let (at, target, bytes) = (at * 4096, target * 4096, len * 4096);
            script += &match ops[5] % 4 {
                0 => format!("; xfs_io -c 'pwrite -S {} {target} {bytes}' f{to}", ops[6] % 256),
                1 => format!("; xfs_io -c 'fpunch {target} {bytes}' f{to}"),
                _ if from != to => format!("; xfs_io -c 'reflink f{from} {at} {target} {bytes}' f{to}"),
                _ => format!("; xfs_io -c 'pwrite -S 3 {} 5' f{to}", target + 77),
            };
        }
        must(&script);
        for (a, b) in [("f0", "f1"), ("f1", "f2"), ("f0", "f2")] {
            for more in [&["--digest", a, b][..], &[a, b][..]] {
                let ran = explain(dir, more);
                let answer = ran.json();
                holds(dir, a, b, &answer);
                assert!(ran.code == Some(0) || ran.code == Some(1), "{ran:?}");
                let equal = std::fs::read(dir.join(a)).unwrap() == std::fs::read(dir.join(b)).unwrap();
                assert!(ran.code == Some(1) || equal, "seed {seed}: {ran:?}");
            }
        }
    }
}

#[test]
fn clones_and_their_overwrites_are_told_apart_on_xfs_and_btrfs() {
    let test = "clones_and_their_overwrites_are_told_apart_on_xfs_and_btrfs";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let (dir, mut undo) = (folder(), Undo::default());
    for (name, mkfs) in [("x", "mkfs.xfs -q"), ("b", "mkfs.btrfs -q"), ("z", "mkfs.btrfs -q")] {
        let at = match mount_loop(&mut undo, dir.path(), name, mkfs, "400M") {
            Ok(at) => at,
            Err(why) => return skip(test, &why),
        };
        if name == "z" {
            must(&format!("mount -o remount,compress-force=zstd {}", at.display()));
        }
        on(&at, name == "z");
        any_files(&at, 0..12);
    }
}

#[test]
fn devices_over_one_file_are_one_storage() {
    if let Err(why) = loops_or_why() {
        return skip("devices_over_one_file_are_one_storage", &why);
    }
    let (dir, mut undo) = (folder(), Undo::default());
    fill(&dir.path().join("p"), 3, 256);
    must(&format!("cd {}; cp --reflink=never p q; sync", dir.path().display()));
    let device =
        |undo: &mut Undo, file: &str| attach(undo, &dir.path().join(file)).unwrap().display().to_string();
    let (one, two) = (device(&mut undo, "p"), device(&mut undo, "p"));
    let other = device(&mut undo, "q");
    is(&explain(dir.path(), &[&one, &two]), "shared", 0);
    is(&explain(dir.path(), &[&one, "p"]), "shared", 0);
    is(&explain(dir.path(), &[&format!("{one}@0+4096"), &format!("{two}@4096+4096")]), "nothing-shared", 1);
    is(&explain(dir.path(), &[&one, &other]), "nothing-shared", 1);
    is(&explain(dir.path(), &["--digest", &one, &other]), "equal", 0);
    assert_eq!(blkcopy(dir.path(), &["compare", "--quiet", &one, "mem:1MiB"]).code, Some(1));
    assert_eq!(blkcopy(dir.path(), &["compare", &one, "missing"]).code, Some(2));
    assert_eq!(blkcopy(dir.path(), &["compare", "mem:1GiB", "mem:1GiB"]).code, Some(0));
}

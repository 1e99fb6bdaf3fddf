//! The README's table of programs: each that is here copies one volume of a mount onto another, and the server counts
//! what went by copies and what by reads and writes.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // in a test a panic is the message

mod common;

use common::mounted::{Mounted, holds, mounts_or_why, put, run, through_host};
use common::{MIB, bytes, folder, sh, skip};
use serde_json::Value;
use std::path::Path;

const SIZE: u64 = 8 * MIB;
/// What two volumes are made of: a file with holes, a full one, memory with holes.
const KINDS: [&str; 3] = ["sparse", "full", "memory"];
/// Further copies of GNU's cp to try, separated by colons.
const MORE_CPS: &str = "BLKCOPY_TEST_CPS";

const GO: &str = r#"package main
import ("io"; "os")
func main() {
	i, e := os.Open(os.Args[1]); if e != nil { panic(e) }
	o, e := os.Create(os.Args[2]); if e != nil { panic(e) }
	if _, e = io.Copy(o, i); e != nil { panic(e) }
}
"#;

/// What the table says of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Says {
    /// No byte is read or written.
    Offloaded,
    /// Every byte is read and written.
    ReadsAll,
    /// It reads and writes; how much is its own affair.
    Reads,
}

/// A program, how it is asked for its version, and a script that copies `$A` onto `$B`.
struct Row {
    name: String,
    version: String,
    script: String,
    says: Says,
}

/// The rows whose programs are here; the others are skipped aloud.
fn rows(test: &str, scratch: &Path) -> Vec<Row> {
    use Says::{Offloaded, Reads, ReadsAll};
    let mut rows = Vec::new();
    let mut row = |name: &str, version: &str, script: &str, says: Says| match sh(version) {
        Ok(version) => {
            let version = version.lines().next().unwrap_or_default().to_owned();
            rows.push(Row { name: name.to_owned(), version, script: script.to_owned(), says });
        }
        Err(_) => skip(&format!("{test}: {name}"), "it is not here"),
    };
    // Another cp and cat than GNU's are other programs, and not in this test.
    let gnu = |program: &str| format!("{program} --version | head -n 1 | grep coreutils | grep -v uutils");
    row("cp", &gnu("cp"), "cp $A $B", Offloaded);
    row("cp -a", &gnu("cp"), "cp -a $A $B", Offloaded);
    row("cp --sparse=never", &gnu("cp"), "cp --sparse=never $A $B", Offloaded);
    row("cp --sparse=always", &gnu("cp"), "cp --sparse=always $A $B", Reads);
    row("cat", &gnu("cat"), "cat $A >$B", Offloaded);
    row("dd", &gnu("dd"), "dd if=$A of=$B bs=1M status=none", ReadsAll);
    for cp in std::env::var(MORE_CPS).unwrap_or_default().split(':').filter(|cp| !cp.is_empty()) {
        row(cp, &gnu(cp), &format!("{cp} $A $B"), Offloaded);
    }
    let raw = "-f raw -O raw $A $B";
    row("qemu-img convert -C", "qemu-img --version", &format!("qemu-img convert -C {raw}"), Offloaded);
    row("qemu-img convert -n -C", "qemu-img --version", &format!("qemu-img convert -n -C {raw}"), Offloaded);
    row("qemu-img convert", "qemu-img --version", &format!("qemu-img convert {raw}"), Reads);
    row("rsync --inplace", "rsync --version", "rsync --inplace -I $A $B", Reads);
    row("busybox cp", "busybox | head -n 1 | grep BusyBox", "busybox cp $A $B", Reads);
    let node = "require(\"fs\").copyFileSync(process.argv[1], process.argv[2])";
    row("Node.js copyFileSync", "node --version", &format!("node -e '{node}' $A $B"), Offloaded);
    for python in ["python3", "python3.11", "python3.12", "python3.13", "python3.14", "python3.15"] {
        let copy = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])";
        let script = format!("{python} -c '{copy}' $A $B");
        let is_new = format!("{python} -c 'import sys; assert sys.version_info >= (3, 14)'");
        let says = if sh(&is_new).is_ok() { Offloaded } else { ReadsAll };
        row(&format!("{python} shutil.copyfile"), &format!("{python} --version"), &script, says);
    }
    let here = scratch.display();
    std::fs::write(scratch.join("copy.go"), GO).unwrap();
    let build = format!("CGO_ENABLED=0 GOTOOLCHAIN=local go build -o {here}/copy {here}/copy.go");
    let go = format!("GOCACHE={here}/cache {build} >&2 && go version");
    row("Go io.Copy", &go, &format!("{here}/copy $A $B"), Offloaded);
    rows
}

/// Two volumes of each kind, and what the first of them holds.
struct World {
    mounted: Mounted,
    wants: Vec<Vec<u8>>,
    old: Vec<u8>,
}

impl World {
    fn new(scratch: &Path) -> Self {
        let data = bytes(SIZE as usize, 1);
        let mut sparse = vec![0; SIZE as usize];
        let mut args = vec!["memory-a=mem:8MiB".to_owned(), "memory-b=mem:8MiB".to_owned()];
        for kind in ["sparse", "full"] {
            for end in ["a", "b"] {
                let image = scratch.join(format!("{kind}-{end}"));
                std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
                args.push(image.to_str().unwrap().to_owned());
            }
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mounted = Mounted::start(&args);
        for (at, len) in [(0, 1 << 20), (3 << 20, 4096), ((5 << 20) + 8192, 1 << 20)] {
            sparse[at..at + len].copy_from_slice(&data[at..at + len]);
            for name in ["sparse-a", "memory-a"] {
                put(&mounted.at_name(name), at as u64, &data[at..at + len]);
            }
        }
        put(&mounted.at_name("full-a"), 0, &data);
        Self { mounted, wants: vec![sparse.clone(), data, sparse], old: bytes(SIZE as usize, 77) }
    }

    /// Makes one copy of each kind by `copy`, and holds the counters of both volumes against what the table says.
    fn check(&self, name: &str, says: Says, copy: impl Fn(&Path, &Path)) {
        for (kind, want) in KINDS.iter().zip(&self.wants) {
            let (a, b) = (format!("{kind}-a"), format!("{kind}-b"));
            put(&self.mounted.at_name(&b), 0, &self.old);
            let before = [&a, &b].map(|name| self.mounted.receipt(name));
            copy(&self.mounted.at_name(&a), &self.mounted.at_name(&b));
            let after = [&a, &b].map(|name| self.mounted.receipt(name));
            holds(&self.mounted.at_name(&b), want);
            let more = |at: usize, key: &str| number(&after[at], key) - number(&before[at], key);
            let plain =
                [more(0, "reads"), more(0, "read_bytes"), more(1, "writes"), more(1, "written_bytes")];
            let through_host = through_host(&after[1]) - through_host(&before[1]);
            let copies = more(1, "copies");
            let what =
                format!("{name}, {kind}: {copies} copies, {through_host} bytes through the host, {plain:?}");
            eprintln!("{what}");
            match says {
                Says::Offloaded => assert!(copies > 0 && through_host == 0 && plain == [0; 4], "{what}"),
                Says::ReadsAll => {
                    assert!(copies == 0 && plain[0] > 0 && plain[2] > 0, "{what}");
                    assert_eq!((plain[1], plain[3]), (SIZE, SIZE), "{what}");
                }
                Says::Reads => assert!(copies == 0 && plain.iter().all(|&count| count > 0), "{what}"),
            }
        }
    }
}

fn number(receipt: &Value, key: &str) -> u64 {
    receipt[key].as_u64().unwrap()
}

#[test]
fn programs_are_offloaded_as_the_table_says() {
    let test = "programs_are_offloaded_as_the_table_says";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let scratch = folder();
    let world = World::new(scratch.path());
    for Row { name, version, script, says } in rows(test, scratch.path()) {
        eprintln!("{name}: {version}");
        world.check(&name, says, |a, b| {
            run(&format!("A={}; B={}; {script}", a.display(), b.display()));
        });
    }
    world.check("Rust std::fs::copy", Says::Offloaded, |a, b| {
        assert_eq!(std::fs::copy(a, b).unwrap(), SIZE);
    });
    world.check("Rust std::io::copy", Says::Offloaded, |a, b| {
        let (mut a, mut b) = (std::fs::File::open(a).unwrap(), std::fs::File::create(b).unwrap());
        assert_eq!(std::io::copy(&mut a, &mut b).unwrap(), SIZE);
    });
    world.mounted.stop();
}

#[test]
fn answers_are_longer_through_holes_and_nowhere_else() {
    let test = "answers_are_longer_through_holes_and_nowhere_else";
    if let Err(why) = mounts_or_why() {
        return skip(test, &why);
    }
    let scratch = folder();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    // 128 MiB of data that is contiguous, between holes that are not of whole answers.
    let size = 3 << 30;
    let data = bytes(8 << 20, 5);
    let islands: Vec<u64> = (0..16).map(|i| (1 << 30) + 12_345 + (i << 23)).collect();
    for image in [&a, &b] {
        std::fs::File::create(image).unwrap().set_len(size).unwrap();
    }
    islands.iter().for_each(|&at| put(&a, at, &data));
    // Old bytes in what is a hole of the source, past its first answers.
    put(&b, 2 << 30, &data);
    let mounted = Mounted::start(&[a.to_str().unwrap(), b.to_str().unwrap()]);
    let ask = "import os, sys; i, o = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY)\n\
               while n := os.copy_file_range(i, o, 1 << 40): print(n)";
    if sh("python3 --version").is_err() {
        return skip(test, "python3 is missing");
    }
    let answers = run(&format!("python3 -c '{ask}' {} {}", mounted.text("a"), mounted.text("b")));
    let answers: Vec<u64> = answers.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(answers.iter().sum::<u64>(), size);
    let mut at = 0;
    for &len in &answers {
        let holds_data = at < (1 << 30) + 12_345 + (128 << 20) && at + len > (1 << 30) + 12_345;
        assert!(!holds_data || len <= 64 << 20, "an answer of {len} bytes from {at} on holds data");
        at += len;
    }
    eprintln!("{} answers, the longest of {:?} bytes", answers.len(), answers.iter().max());
    run(&format!("cmp {} {}", a.display(), b.display()));
    let kept: u64 = run(&format!("du --block-size=1 {} | cut -f1", b.display())).parse().unwrap();
    assert!(kept < 256 << 20, "holes were filled: {kept} bytes");
    mounted.stop();
}

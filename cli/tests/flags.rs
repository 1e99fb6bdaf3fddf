//! Each flag of `blkcopy cp` does what it says; the receipt has the keys that `docs/receipt.md` documents, and no
//! others.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{KIB, MIB, Ran, Undo, blkcopy, bytes, command, folder, loops_or_why, mount_loop, must, skip};
use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Bytes allocated, as du sees them.
fn allocated(file: &Path) -> u64 {
    must(&format!("sync {0}; du --block-size=1 {0} | cut -f1", file.display())).parse().unwrap()
}

#[test]
fn the_last_line_word_for_word() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a"), bytes(100 << 10, 1)).unwrap();
    let empty = std::fs::File::create(at("holes")).unwrap();
    empty.set_len(3 << 20).unwrap();
    std::fs::write(at("nothing"), b"").unwrap();
    let by_host = "100.0 KiB by read+write";
    for (args, line) in [
        (&["--offload", "never", "a", "b"][..], format!("copied 100.0 KiB in TIME: {by_host}\n")),
        (
            &["--offload", "never", "--no-sync", "a", "b"],
            format!("copied 100.0 KiB in TIME: {by_host}, not flushed\n"),
        ),
        (
            &["--offload", "never", "--verify", "digest", "a", "b"],
            format!("copied 100.0 KiB in TIME: {by_host}, verified by digest\n"),
        ),
        (
            &["--offload", "never", "--verify", "bytes", "a", "b"],
            format!("copied 100.0 KiB in TIME: {by_host}, verified by bytes\n"),
        ),
        (&["holes", "b"], "copied 3.0 MiB in TIME: 3.0 MiB left as holes\n".into()),
        (&["nothing", "b"], "copied 0 B in TIME: nothing to copy\n".into()),
        (&["null:1MiB", "null:1MiB"], "copied 1.0 MiB in TIME: 1.0 MiB by the null device\n".into()),
    ] {
        let mut all = vec!["cp"];
        all.extend(args);
        let ran = blkcopy(dir.path(), &all);
        assert_eq!((ran.code, ran.timeless(), ran.err.as_str()), (Some(0), line, ""), "{args:?}");
    }
}

#[test]
fn sparse_decides_what_is_allocated() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let (zeroes, hole, data) = (2 << 20, 4 << 20, 1 << 20);
    let mut image = vec![0; zeroes];
    image.resize(zeroes + hole, 0);
    image.extend(bytes(data, 1));
    let file = std::fs::File::create(at("a")).unwrap();
    file.set_len(image.len() as u64).unwrap();
    file.write_all_at(&image[..zeroes], 0).unwrap();
    file.write_all_at(&image[zeroes + hole..], (zeroes + hole) as u64).unwrap();
    let source = allocated(&at("a"));
    if !(3 * MIB..7 * MIB).contains(&source) {
        return skip("sparse_decides_what_is_allocated", "no holes on this file system");
    }
    for (sparse, range) in [
        ("auto", 3 * MIB..3 * MIB + 64 * KIB),
        ("always", MIB..MIB + 64 * KIB),
        ("never", 7 * MIB..7 * MIB + 64 * KIB),
    ] {
        for old in [false, true] {
            let _ = std::fs::remove_file(at("b"));
            if old {
                std::fs::write(at("b"), bytes(9 << 20, 2)).unwrap();
            }
            // "b@0B" keeps the old bytes' places: holes have to be made there.
            for dest in if old { &["b", "b@0B"][..] } else { &["b"] } {
                let ran = blkcopy(dir.path(), &["cp", "--sparse", sparse, "--verify", "bytes", "a", dest]);
                assert_eq!(ran.code, Some(0), "{ran:?}");
                must(&format!("cmp -n {} {} {}", image.len(), at("a").display(), at("b").display()));
                let got = allocated(&at("b"));
                assert!(range.contains(&got), "--sparse {sparse}, {dest}, old {old}: {got} bytes allocated");
                if old {
                    std::fs::write(at("b"), bytes(7 << 20, 3)).unwrap();
                }
            }
        }
    }
}

#[test]
fn preserve_keeps_mode_and_times_and_without_it_the_umask_counts() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a"), b"x").unwrap();
    std::fs::set_permissions(at("a"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    must(&format!(
        "touch -d 2001-09-09T01:46:40.123456789Z {0}; touch -a -d 2000-01-01T00:00:00.5Z {0}",
        at("a").display()
    ));
    std::fs::write(at("old"), b"longer").unwrap();
    for dest in ["new", "old"] {
        let ran = blkcopy(dir.path(), &["cp", "--preserve", "a", dest]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let (a, b) = (at("a").metadata().unwrap(), at(dest).metadata().unwrap());
        assert_eq!(b.mode(), a.mode(), "{dest}");
        assert_eq!((b.mtime(), b.mtime_nsec()), (1_000_000_000, 123_456_789), "{dest}");
    }
    let script =
        format!("cd {}; umask 027; {} cp -q a plain; stat -c %a plain", dir.path().display(), common::BIN);
    assert_eq!(must(&script), "750", "the source's, less the umask");
    std::fs::set_permissions(at("plain"), std::fs::Permissions::from_mode(0o604)).unwrap();
    assert_eq!(blkcopy(dir.path(), &["cp", "-q", "a", "plain"]).code, Some(0));
    assert_eq!(at("plain").metadata().unwrap().mode() & 0o777, 0o604, "an existing file keeps its mode");
}

#[test]
fn limit_rate_is_kept() {
    let dir = folder();
    std::fs::write(dir.path().join("a"), bytes(5 << 20, 1)).unwrap();
    // Not synced, the kernel may copy.
    for how in [&["--offload", "never"][..], &["--no-sync"]] {
        let args = [&["cp", "--json", "--limit-rate", "4MiB", "a", "b"], how].concat();
        let ran = blkcopy(dir.path(), &args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let receipt = ran.json();
        if receipt["methods"]["reflink"].as_u64().unwrap_or(0) > 0 {
            continue; // moves no bytes, so there is no rate to keep
        }
        // 5 MiB at 4 MiB/s: the last MiB may not begin before 1 s. Never faster; how much slower is the machine's
        // affair.
        let took = receipt["timings"]["copy_s"].as_f64().unwrap();
        assert!(took >= 0.9, "{how:?}: {took} s");
    }
}

#[test]
fn consistency_whole_is_told_and_copies_the_same() {
    let dir = folder();
    let data = bytes(3 << 20, 1);
    std::fs::write(dir.path().join("a"), &data).unwrap();
    for (args, dest, want) in [
        (&["a", "b"][..], "b", data.clone()),
        (
            &["--segment", "0:1MiB:1MiB", "--segment", "2MiB:0:1MiB", "a", "c"],
            "c",
            [&data[2 << 20..], &data[..1 << 20]].concat(),
        ),
        (&["--in-place", "a@0+2MiB", "a@1MiB"], "a", [&data[..1 << 20], &data[..2 << 20]].concat()),
    ] {
        let mut all = vec!["cp", "--json", "--consistency", "whole"];
        all.extend(args);
        let ran = blkcopy(dir.path(), &all);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(ran.json()["consistency"], "whole");
        assert!(std::fs::read(dir.path().join(dest)).unwrap() == want, "{args:?}");
    }
}

/// Runs a slow copy, changes a file once its first MiB has arrived, and waits for the end.
fn meddle(dir: &Path, flags: &[&str], change: impl FnOnce()) -> Ran {
    let mut args = vec!["cp", "--json", "--offload", "never"];
    if !flags.contains(&"--limit-rate") {
        args.extend(["--limit-rate", "1MiB"]);
    }
    args.extend(flags);
    args.extend(["a", "b"]);
    // It is there before: a new file has no name until it is good.
    std::fs::write(dir.join("b"), b"").unwrap();
    let child = command(dir, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut last = [0];
    let begun = Instant::now();
    while last == [0] {
        assert!(begun.elapsed() < Duration::from_secs(60), "the copy does not begin");
        std::thread::sleep(Duration::from_millis(5));
        let _ = std::fs::File::open(dir.join("b")).map(|f| f.read_exact_at(&mut last, (1 << 20) - 1));
    }
    change();
    Ran::of(child.wait_with_output().unwrap())
}

fn source(dir: &Path) -> Vec<u8> {
    source_of(dir, 3)
}

fn source_of(dir: &Path, mebibytes: usize) -> Vec<u8> {
    let mut data = bytes(mebibytes << 20, 1);
    data[(1 << 20) - 1] = 1; // what `meddle` waits for is no zero
    std::fs::write(dir.join("a"), &data).unwrap();
    data
}

fn poke(file: &Path, at: u64) {
    let file = std::fs::File::options().write(true).read(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

//= promise 10
#[test]
fn a_spoiled_destination_is_found_with_the_first_bad_range() {
    let dir = folder();
    for verify in ["bytes", "digest"] {
        source(dir.path());
        let ran = meddle(dir.path(), &["--verify", verify], || poke(&dir.path().join("b"), 1234));
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let receipt = ran.json();
        assert_eq!(
            (&receipt["outcome"], &receipt["error"]["kind"]),
            (&"mismatch".into(), &"mismatch".into())
        );
        let v = &receipt["verification"];
        assert_eq!((&v["equal"], &v["mode"]), (&false.into(), &verify.into()));
        assert_eq!((&v["first_bad"]["offset"], &v["first_bad"]["len"]), (&1234.into(), &1.into()));
        assert_eq!(v["source_digest"] == v["dest_digest"], verify == "bytes", "{v}");
        assert!(
            ran.err
                .contains("blkcopy: b @1234+1: the bytes read back after the copy differ from the source\n"),
            "{}",
            ran.err
        );
    }
}

//= promise 4, events
#[test]
fn a_source_that_changes_is_told() {
    let dir = folder();
    // Verified: the answer is no, and the blame is the source's.
    source(dir.path());
    let ran = meddle(dir.path(), &["--verify", "bytes"], || poke(&dir.path().join("a"), 77));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(
        (&ran.json()["outcome"], &ran.json()["error"]["kind"]),
        (&"mismatch".into(), &"source-changed".into())
    );
    // Not verified: done, with a warning that --quiet does not hide, and nothing claimed.
    for quiet in [&[][..], &["--quiet"]] {
        source(dir.path());
        let ran = meddle(dir.path(), quiet, || poke(&dir.path().join("a"), 77));
        assert_eq!((ran.code, &ran.json()["source_state"]), (Some(0), &"changed".into()), "{ran:?}");
        let warning = "blkcopy: warning: a: its size or times changed during the copy: another program wrote to it; \
            copy it again\n";
        assert!(ran.err.contains(warning), "{}", ran.err);
    }
    // Shorter than the copy needs: an error, and what is good is said. Larger than all that can be in flight
    // (--buffer-memory), so that the end cannot have been read when the first MiB has arrived.
    let data = source_of(dir.path(), 24);
    let ran = meddle(dir.path(), &["--buffer-memory", "4MiB", "--limit-rate", "4MiB"], || {
        std::fs::File::options().write(true).open(dir.path().join("a")).unwrap().set_len(2 << 20).unwrap();
    });
    assert_eq!((ran.code, &ran.json()["error"]["kind"]), (Some(2), &"source-changed".into()), "{ran:?}");
    let good = ran.json()["good_prefix_bytes"].as_u64().unwrap();
    let left = std::fs::read(dir.path().join("b")).unwrap();
    assert!(good <= 2 * MIB && left.len() as u64 == good && data.starts_with(&left), "{good}");
    assert_eq!(ran.err.matches("changed").count(), 0, "said once, as the error: {}", ran.err);
}

//= promise 4
#[test]
fn a_source_that_grows_is_copied_to_the_size_it_had() {
    let dir = folder();
    for verify in ["none", "digest"] {
        let data = source(dir.path());
        let ran = meddle(dir.path(), &["--verify", verify], || {
            use std::io::Write;
            let mut log = std::fs::File::options().append(true).open(dir.path().join("a")).unwrap();
            log.write_all(&bytes(100_000, 9)).unwrap();
        });
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let receipt = ran.json();
        assert_eq!((&receipt["outcome"], &receipt["source_state"]), (&"done".into(), &"changed".into()));
        assert_eq!(receipt["good_bytes"], 3 * MIB);
        let note = "blkcopy: warning: a: grew during the copy, and may have changed: the copy has the length that \
            the source had when it was opened (3.0 MiB (3145728 bytes))\n";
        assert!(ran.err.contains(note), "{}", ran.err);
        assert!(std::fs::read(dir.path().join("b")).unwrap() == data);
    }
}

//= promise 4
#[test]
fn source_states_are_told_truly() {
    let dir = folder();
    let data = source(dir.path());
    let state = |ran: &Ran| ran.json()["source_state"].as_str().unwrap().to_owned();
    assert_eq!(state(&blkcopy(dir.path(), &["cp", "--json", "a", "b"])), "watched");
    let alone = ["cp", "--json", "--exclusive-source", "a", "b"];
    let ran = blkcopy(dir.path(), &alone);
    let has_leases = state(&ran) == "leased";
    assert!(has_leases || state(&ran) == "watched", "{ran:?}");
    let writer = std::fs::File::options().write(true).open(dir.path().join("a")).unwrap();
    assert_eq!(state(&blkcopy(dir.path(), &["cp", "--json", "a", "b"])), "watched");
    let ran = blkcopy(dir.path(), &alone);
    assert_eq!(ran.code == Some(2), has_leases, "{ran:?}");
    assert_eq!(ran.err.contains("another program has it open for writing"), has_leases, "{ran:?}");
    drop(writer);
    assert_eq!(
        state(&blkcopy(dir.path(), &["cp", "--json", "--in-place", "a@0+1000", "a@5000B"])),
        "unwatched"
    );
    assert_eq!(state(&blkcopy(dir.path(), &["cp", "--json", "mem:1MiB", "c"])), "locked");
    assert_eq!(data.len() as u64, 3 * MIB);
}

/// Every key in a receipt: top-level ones by name, those inside as `key.inner`.
fn keys(receipt: &serde_json::Value) -> BTreeSet<String> {
    // Their keys are methods and calls: documented as such, not one by one.
    let open = ["methods", "calls", "bytes"];
    let mut all = BTreeSet::new();
    for (key, value) in receipt.as_object().unwrap() {
        all.insert(key.clone());
        let inside = value.as_array().map_or_else(|| vec![value], |list| list.iter().collect());
        for object in
            inside.into_iter().filter_map(|v| v.as_object()).filter(|_| !open.contains(&key.as_str()))
        {
            for (inner, value) in object {
                all.insert(format!("{key}.{inner}"));
                if let Some(deep) = value.as_object() {
                    all.extend(deep.keys().map(|k| format!("{key}.{inner}.{k}")));
                }
            }
        }
    }
    all
}

/// What stands between backticks.
fn words(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

//= promise 2
#[test]
fn every_key_is_documented_and_every_documented_key_is_there() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/receipt.md")).unwrap();
    // Rows: | `key` | type | meaning with `words` |
    let rows: Vec<(Vec<&str>, BTreeSet<&str>)> = text
        .lines()
        .filter(|l| l.starts_with("| `"))
        .map(|l| {
            let mut cells = l.trim_matches('|').splitn(3, '|');
            let names = words(cells.next().unwrap_or(""));
            (names, words(cells.nth(1).unwrap_or("")).into_iter().collect())
        })
        .collect();
    let documented: BTreeSet<&str> = rows.iter().flat_map(|(names, _)| names.iter().copied()).collect();
    let dir = folder();
    source(dir.path());
    let mut seen = BTreeSet::new();
    for args in [
        &["cp", "--json", "--verify", "digest", "--offload", "never", "a", "b"][..],
        &["cp", "--json", "--sparse", "always", "a", "b"],
    ] {
        let ran = blkcopy(dir.path(), args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        seen.extend(keys(&ran.json()));
    }
    // An error and a bad range, from a spoiled copy.
    let ran = meddle(dir.path(), &["--verify", "bytes"], || poke(&dir.path().join("b"), 0));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    seen.extend(keys(&ran.json()));
    for key in &seen {
        let (top, inner) = key.split_once('.').unwrap_or((key, ""));
        let row = rows.iter().find(|(names, _)| names.contains(&top));
        let Some((_, words)) = row else { panic!("{top} is not in docs/receipt.md") };
        for part in inner.split('.').filter(|p| !p.is_empty()) {
            assert!(words.contains(part), "{key}: {part} is not in the row of {top} in docs/receipt.md");
        }
    }
    for key in documented {
        assert!(seen.contains(key), "docs/receipt.md has {key}, the receipt does not");
    }
    // Words for methods and reasons that are used are all listed.
    let listed: BTreeSet<&str> = words(&text).into_iter().collect();
    for reason in std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../src/block/receipt.rs"))
        .unwrap()
        .split_once("pub enum Reason {")
        .unwrap()
        .1
        .split_once('}')
        .unwrap()
        .0
        .lines()
        .map(str::trim)
        .filter(|l| l.ends_with(',') && !l.starts_with("//"))
    {
        let mut kebab = String::new();
        for c in reason.trim_end_matches(',').chars() {
            if c.is_ascii_uppercase() && !kebab.is_empty() {
                kebab.push('-');
            }
            kebab.push(c.to_ascii_lowercase());
        }
        assert!(listed.contains(kebab.as_str()), "{kebab} is not in docs/receipt.md");
    }
}

#[test]
fn require_is_a_clone_where_extents_are_shared() {
    let test = "require_is_a_clone_where_extents_are_shared";
    if let Err(why) = loops_or_why() {
        return skip(test, &why);
    }
    let base = folder();
    let mut undo = Undo::default();
    let xfs = match mount_loop(&mut undo, base.path(), "xfs", "mkfs.xfs -q -m reflink=1", "400M") {
        Ok(at) => at,
        Err(why) => return skip(test, &why),
    };
    std::fs::write(xfs.join("a"), bytes((8 << 20) + 5, 1)).unwrap();
    let ran = blkcopy(&xfs, &["cp", "--require", "shared", "--verify", "digest", "a", "b"]);
    assert_eq!(
        (ran.code, ran.timeless(), ran.err.as_str()),
        (Some(0), "copied 8.0 MiB in TIME: 8.0 MiB shared (reflink), verified by digest\n".into(), "")
    );
    let plan = blkcopy(&xfs, &["plan", "--require", "shared", "a", "c"]);
    assert_eq!(plan.code, Some(0), "{plan:?}");
    assert!(plan.out.contains("would copy 8.0 MiB: 8.0 MiB shared (reflink)\n"), "{}", plan.out);
    assert!(plan.out.contains("PASS  nothing by read+write (reflink)\n"), "{}", plan.out);
    // Across file systems nothing is shared: the answer is no, and nothing is made.
    let ran = blkcopy(&xfs, &["cp", "--offload", "require", "a", base.path().join("c").to_str().unwrap()]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.err.contains("try: leave out --require, or run blkcopy plan to see why"), "{}", ran.err);
    assert!(!base.path().join("c").exists());
}

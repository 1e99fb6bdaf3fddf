//! Bad input: one clear error, exit code 2 (1 where the answer is no), and nothing changed.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{blkcopy, bytes};
use std::collections::BTreeMap;
use std::path::Path;

/// Every name in a directory with its contents.
fn snapshot(dir: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|e| {
            let regular = e.file_type().unwrap().is_file();
            (e.file_name().into_string().unwrap(), regular.then(|| std::fs::read(e.path()).unwrap()))
        })
        .collect()
}

fn setup() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), bytes(10_000, 1)).unwrap();
    std::fs::write(dir.path().join("b"), bytes(20_000, 2)).unwrap();
    std::fs::hard_link(dir.path().join("a"), dir.path().join("hard")).unwrap();
    std::os::unix::fs::symlink("a", dir.path().join("soft")).unwrap();
    std::os::unix::fs::symlink("nothing", dir.path().join("dangling")).unwrap();
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    std::fs::create_dir_all(dir.path().join("full/a")).unwrap();
    dir
}

//= promise 5
#[test]
fn bad_input_is_one_clear_error_and_changes_nothing() {
    let dir = setup();
    let before = snapshot(dir.path());
    let same =
        "are the same file\n  try: name another destination, or give a range @offset+length on both sides\n";
    for (args, err) in [
        (
            &["missing", "x"][..],
            "blkcopy: missing: cannot be opened\n  cause: No such file or directory (os error 2)\n",
        ),
        (&["dir", "x"], "blkcopy: dir: is a folder; blkcopy copies regular files and block devices\n"),
        (
            &["/dev/zero", "x"],
            "blkcopy: /dev/zero: is a character device (e.g. a terminal or /dev/zero); blkcopy copies regular files and block devices\n",
        ),
        (
            &["a@9999+2", "x"],
            "blkcopy: a: the range @9999+2 ends at byte 10001, past the end (10000 bytes)\n",
        ),
        (
            &["a@10001B", "x"],
            "blkcopy: a: the range @10001B begins at byte 10001, past the end (10000 bytes)\n",
        ),
        (&["a", "a"], &format!("blkcopy: a and a {same}")),
        (&["a", "hard"], &format!("blkcopy: a and hard {same}")),
        (&["soft", "a"], &format!("blkcopy: soft and a {same}")),
        (&["a@0+100", "a"], &format!("blkcopy: a@0+100 and a {same}")),
        (&["a", "."], &format!("blkcopy: a and ./a {same}")),
        (
            &["a@0+5000", "a@0+5000"],
            "blkcopy: source and destination are the same bytes\n  try: give ranges that do not overlap\n",
        ),
        (
            &["--segment", "0:5000:100", "--segment", "5050:9000:10", "a", "a"],
            "blkcopy: one segment reads @5050+10 where another writes @5000+100; copy them one after the other\n  \
             try: give ranges that do not overlap\n",
        ),
        (
            &["--segment", "0:0:100", "--segment", "500:99:100", "a", "b"],
            "blkcopy: two segments write the same bytes (@0+100 and @99+100)\n  try: give ranges that do not overlap\n",
        ),
        (
            &["a", "b@5B"],
            "blkcopy: b: the file exists and would be overwritten in place from byte 5\n  try: give --in-place if \
             that is meant, or name another destination\n",
        ),
        (
            &["a@7", "x"],
            "blkcopy: a@7: cannot be opened\n  cause: No such file or directory (os error 2)\n  try: a@7B if you \
             mean the bytes of a from 7: an offset without a length needs a unit\n",
        ),
        (
            &["a@1MB", "x"],
            "blkcopy: a@1MB: in the range @1MB: \"1MB\" has the unknown unit \"MB\"; units are B, KiB, MiB, GiB, TiB, PiB or EiB\n",
        ),
        (
            &["a", "b@5+100"],
            "blkcopy: b@5+100: the range holds 100 bytes, the source 10000 bytes\n  try: copy less of the source (@0+100), or give a longer range\n",
        ),
        (
            &["--segment", "9999:0:2", "a", "b"],
            "blkcopy: the source part of 2 bytes at 9999 ends past the end of a (10000 bytes)\n  try: shorten it, or \
             give a longer range\n",
        ),
        (
            &["a", "mem:9999"],
            "blkcopy: mem:9999: too small: 10000 bytes of a would end at byte 10000, but the destination has 9999 \
             bytes\n  try: extend the destination, or copy less with a range @offset+length on the source\n",
        ),
        (&["a@-5", "x"], "blkcopy: a@-5: in the range @-5: the size -5 is negative; give 0 or more bytes\n"),
        (
            &["a@1.5KiB", "x"],
            "blkcopy: a@1.5KiB: in the range @1.5KiB: the size 1.5KiB has a fraction; write it as a whole number of a smaller unit (1536B)\n",
        ),
        (
            &["a@0+18446744073709551616", "x"],
            "blkcopy: a@0+18446744073709551616: in the range @0+18446744073709551616: the size 18446744073709551616 \
             is larger than the largest offset (9223372036854775807 bytes)\n",
        ),
        (
            &["mem:many", "x"],
            "blkcopy: mem:many: \"many\" is not a size; give a whole number of bytes, or one with B, KiB, MiB, GiB, TiB, PiB or EiB\n",
        ),
        (
            &["a", "dangling"],
            "blkcopy: dangling: is a dangling symbolic link\n  try: remove the link, or name the file it should \
             point to\n",
        ),
        (
            &["a", "no/x"],
            "blkcopy: no/x: cannot be made in no\n  cause: No such file or directory (os error 2)\n  try: make the directory, or name another destination\n",
        ),
        (
            &["a", "full"],
            "blkcopy: full/a: is a directory; a file cannot take its place\n  try: name another destination\n",
        ),
        (
            &["mem:4KiB", "dir"],
            "blkcopy: dir: is a directory, and the source has no file name to use in it\n  try: name the file to \
             create in it\n",
        ),
        (
            &["--receipt", "a", "a", "x"],
            "blkcopy: a: the receipt would overwrite the source or the destination\n  try: name another file for \
             --receipt\n",
        ),
        (
            &["--receipt", "x", "a", "./x"],
            "blkcopy: x: the receipt would overwrite the source or the destination\n  try: name another file for \
             --receipt\n",
        ),
        (
            &["--preserve", "mem:4KiB", "x"],
            "blkcopy: mem:4096: --preserve needs a regular file as the source\n  try: leave out --preserve\n",
        ),
    ] {
        let mut all = vec!["cp"];
        all.extend(args);
        let ran = blkcopy(dir.path(), &all);
        assert_eq!((ran.code, ran.err.as_str(), ran.out.as_str()), (Some(2), err, ""), "{args:?}");
        assert_eq!(snapshot(dir.path()), before, "{args:?}");
    }
}

#[test]
fn bad_flags_are_usage_errors() {
    let dir = setup();
    let before = snapshot(dir.path());
    for (args, part) in [
        (&["cp", "a"][..], "<DST>"),
        (&["cp", "--offload", "maybe", "a", "x"], "[possible values: auto, require, never]"),
        (
            &["cp", "--limit-rate", "0", "a", "x"],
            "at 0 bytes per second the copy would never end; give 1 or more",
        ),
        (&["cp", "--limit-rate=-1", "a", "x"], "the size -1 is negative"),
        (&["cp", "--limit-rate", "18446744073709551616", "a", "x"], "larger than the largest offset"),
        (&["cp", "--buffer-memory", "4095", "a", "x"], "less than one page (4096 bytes); give 4KiB or more"),
        (&["cp", "--segment", "1:2", "a", "x"], "a segment has three parts, not 2"),
        (&["cp", "--segment", "0:0:1.5K", "a", "x"], "(1536B)"),
    ] {
        let ran = blkcopy(dir.path(), args);
        assert_eq!(ran.code, Some(2), "{args:?}");
        assert!(ran.err.contains(part), "{args:?}: {}", ran.err);
        assert_eq!(ran.out, "", "{args:?}");
        assert_eq!(snapshot(dir.path()), before, "{args:?}");
    }
}

//= promise 2
#[test]
fn an_unmet_require_leaves_the_old_destination_alone() {
    let dir = setup();
    let before = snapshot(dir.path());
    for dest in ["b", "new"] {
        let ran = blkcopy(dir.path(), &["cp", "--offload", "require", "mem:4KiB", dest]);
        // A hole needs no offload: only data can be refused.
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    std::fs::remove_file(dir.path().join("new")).unwrap();
    std::fs::write(dir.path().join("b"), bytes(20_000, 2)).unwrap();
    assert_eq!(snapshot(dir.path()), before);
    // Zeroes are to be searched for, so the bytes must pass this process.
    for dest in ["b", "new"] {
        let ran = blkcopy(dir.path(), &["cp", "--offload", "require", "--sparse", "always", "a", dest]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains("--require offload: 10000 bytes would take read+write"), "{}", ran.err);
        assert_eq!(snapshot(dir.path()), before, "{dest}");
    }
}

/// Runs it as nobody, who may run a copy of the command in `dir`.
fn as_nobody(dir: &Path, args: &[&str]) -> common::Ran {
    let mut setpriv = std::process::Command::new("setpriv");
    setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups", "./blkcopy"]).args(args);
    common::Ran::of(setpriv.current_dir(dir).output().unwrap())
}

//= promise 3
#[test]
fn without_the_right_to_it_is_refused() {
    let test = "without_the_right_to_it_is_refused";
    if let Err(why) = common::loops_or_why() {
        return common::skip(test, &why);
    }
    let dir = setup();
    let base = dir.path();
    common::must(&format!(
        "chmod 755 {0}; cp {1} {0}/blkcopy; chmod 755 {0}/blkcopy",
        base.display(),
        common::BIN
    ));
    if as_nobody(base, &["--version"]).code != Some(0) {
        return common::skip(test, "nobody may not run the command here");
    }
    std::fs::write(base.join("secret"), b"x").unwrap();
    common::must(&format!("chmod 600 {}/secret; mkdir -m 1777 {0}/open", base.display()));
    let mut undo = common::Undo::default();
    let device = common::attach(&mut undo, &base.join("b")).unwrap();
    common::must(&format!("chmod 600 {}", device.display()));
    let device = device.to_str().unwrap();
    let before = snapshot(base);
    let denied = "  cause: Permission denied (os error 13)\n  try: run blkcopy as a user who may open it\n";
    for (args, err) in [
        (&["cp", "secret", "open/x"][..], "blkcopy: secret: cannot be opened\n".to_owned()),
        (&["cp", "a", "b"], "blkcopy: b: cannot be opened\n".to_owned()),
        (&["cp", "a", "new"], "blkcopy: new: cannot be created\n".to_owned()),
        (&["cp", "--receipt", "r", "a", "open/x"], "blkcopy: r: the receipt cannot be written\n".to_owned()),
        (&["cp", "--yes", "a@0+512", device], format!("blkcopy: {device}: cannot be opened\n")),
        (&["cp", device, "open/x"], format!("blkcopy: {device}: cannot be opened\n")),
        (&["plan", "a", "b"], "blkcopy: b: cannot be opened\n".to_owned()),
        (&["info", "secret"], "blkcopy: secret: cannot be opened\n".to_owned()),
    ] {
        let ran = as_nobody(base, args);
        let expected = err + denied;
        assert_eq!(
            (ran.code, ran.err.as_str(), ran.out.as_str()),
            (Some(2), expected.as_str(), ""),
            "{args:?}"
        );
        assert_eq!(snapshot(base), before, "{args:?}");
        assert_eq!(std::fs::read_dir(base.join("open")).unwrap().count(), 0, "{args:?}");
    }
    assert_eq!(as_nobody(base, &["cp", "-q", "a", "open/x"]).code, Some(0));
}

//= promise 3
#[test]
fn a_read_only_destination_is_refused() {
    let test = "a_read_only_destination_is_refused";
    if let Err(why) = common::loops_or_why() {
        return common::skip(test, &why);
    }
    let dir = setup();
    let base = dir.path();
    let mut undo = common::Undo::default();
    let tmpfs = common::mount_tmpfs(&mut undo, base, "ro", "1m").unwrap();
    std::fs::write(tmpfs.join("old"), b"old").unwrap();
    common::must(&format!("mount -o remount,ro {}", tmpfs.display()));
    std::fs::write(base.join("back"), bytes(1 << 20, 5)).unwrap();
    let device = common::attach_with(&mut undo, &base.join("back"), "--read-only").unwrap();
    let device = device.to_str().unwrap();
    let cause = "  cause: Read-only file system (os error 30)\n";
    let before = (snapshot(base), snapshot(&tmpfs));
    for (args, err) in [
        (&["cp", "a", "ro/old"][..], format!("blkcopy: ro/old: cannot be opened\n{cause}")),
        (&["cp", "a", "ro/new"], format!("blkcopy: ro/new: cannot be created\n{cause}")),
        (
            &["cp", "--yes", "a", device],
            format!("blkcopy: {device}: is set read-only; blockdev --setrw makes it writable\n"),
        ),
    ] {
        let ran = blkcopy(base, args);
        assert_eq!((ran.code, ran.err.as_str(), ran.out.as_str()), (Some(2), err.as_str(), ""), "{args:?}");
        assert_eq!((snapshot(base), snapshot(&tmpfs)), before, "{args:?}");
    }
    let plan = blkcopy(base, &["plan", "a", device]);
    assert_eq!(plan.code, Some(1), "{plan:?}");
    assert!(plan.out.contains(&format!("FAIL  {device}: is read-only\n")), "{}", plan.out);
    let info = blkcopy(base, &["info", device]);
    assert!(info.out.contains("WARN  read-only: it can be a source only\n"), "{}", info.out);
    assert_eq!(blkcopy(base, &["cp", "-q", device, "from-ro"]).code, Some(0));
}

#[test]
fn plan_and_info_refuse_in_the_same_words() {
    let dir = setup();
    let before = snapshot(dir.path());
    let missing = "blkcopy: missing: cannot be opened\n  cause: No such file or directory (os error 2)\n";
    for args in [&["plan", "missing", "x"][..], &["info", "missing"]] {
        let ran = blkcopy(dir.path(), args);
        assert_eq!((ran.code, ran.err.as_str(), ran.out.as_str()), (Some(2), missing, ""), "{args:?}");
    }
    // What a copy would refuse is a FAIL of the plan, with the fix, and exit code 1.
    let ran = blkcopy(dir.path(), &["plan", "a", "hard"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.out.starts_with(
        "FAIL  a and hard are the same file\n      fix: name another destination, or give a range @offset+length on both sides\n"
    ), "{}", ran.out);
    let ran = blkcopy(dir.path(), &["plan", "a", "mem:9999"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains("FAIL  mem:9999: too small: "), "{}", ran.out);
    let ran = blkcopy(dir.path(), &["info", "a@10001B"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert_eq!(snapshot(dir.path()), before);
}

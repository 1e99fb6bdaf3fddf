//! The public fsx tool on mounted volumes: another hand's exerciser, which knows nothing of ours.
//!
//! `cargo xtask test` installs it from the crates registry into `target/tools`. It is run as a program and never linked: its
//! licence is the APSL.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

#[path = "common/child.rs"]
mod child;
mod common;

use child::{Kind, Mounted};
use common::{MIB, sh, skip};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const SIZE: u64 = MIB;
const STEPS: u64 = 20_000;

/// One at a time: two cores, and a mount that waits for its turn looks like one that hangs.
static ONE: Mutex<()> = Mutex::new(());

/// Not a test: the server process of others.
#[test]
fn mount_child() {
    child::serve_if_asked();
}

/// The tool, or why it cannot be used here.
fn tool() -> Result<PathBuf, String> {
    child::mounts_or_why()?;
    let installed = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/bin/fsx");
    if installed.is_file() {
        return Ok(installed);
    }
    let hint = "cargo install fsx --version 0.3.2 --locked --root target/tools";
    sh("command -v fsx").map(PathBuf::from).map_err(|_| format!("no fsx: {hint}"))
}

/// What fsx does, in shares. `flags`: lines before the weights.
fn settings(flags: &str, whole_files: bool) -> String {
    // These change sizes or close files, which fsx does not do to what it takes for a block device.
    let (rare, truncate) = if whole_files { (1, 4) } else { (0, 0) };
    format!(
        "flen = {SIZE}\n{flags}\n[opsize]\nmin = 1\nmax = 65536\nalign = 1\n[weights]\nclose_open = {rare}\ntruncate = {truncate}\n\
         posix_fallocate = {rare}\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\ninvalidate = 1\nfsync = 1\nfdatasync = 1\n\
         punch_hole = 4\nsendfile = 2\nposix_fadvise = 1\ncopy_file_range = 15\n"
    )
}

/// Runs fsx on the first volume; whether it found everything right, what it said, and the copies the server made for it.
fn fsx(tool: &Path, mount: &Mounted, settings: &str, seed: u64) -> (bool, String, u64) {
    let folder = common::folder();
    let file = folder.path().join("fsx.toml");
    std::fs::write(&file, settings).unwrap();
    let volume = mount.dir.join("vol0");
    let said = std::fs::File::create(folder.path().join("said")).unwrap();
    let mut child = Command::new(tool)
        .args(["-f".as_ref(), file.as_os_str(), "-P".as_ref(), folder.path().as_os_str()])
        .args(["-S", &seed.to_string(), "-N", &STEPS.to_string()])
        .arg(&volume)
        .stdin(Stdio::null())
        .stdout(said.try_clone().unwrap())
        .stderr(said)
        .spawn()
        .unwrap();
    let mut copies = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(50));
        // It makes copies all the time, so as long as they become more it goes on.
        let now = told(&volume);
        if now > copies {
            mount.step();
            copies = now;
        }
    };
    let text = std::fs::read_to_string(folder.path().join("said")).unwrap();
    (status.success() && text.contains("All operations completed A-OK!"), text, told(&volume))
}

/// The copies onto a volume, as its server tells them.
fn told(volume: &Path) -> u64 {
    let mut text = vec![0; 1 << 16];
    let len = rustix::fs::getxattr(volume, "user.blkcopy.receipt", &mut text[..]).unwrap_or(0);
    let receipt: serde_json::Value = serde_json::from_slice(&text[..len]).unwrap_or_default();
    receipt["copies"].as_u64().unwrap_or(0)
}

/// Copies are about a quarter of the steps; some are skipped as empty. An fsx that copies nothing would find nothing.
fn finds_nothing(what: &str, (good, text, copies): (bool, String, u64)) {
    assert!(good, "{what}:\n{text}");
    assert!(copies > STEPS / 10, "{what}: {copies} copies only in {STEPS} steps:\n{text}");
    eprintln!("{what}: {copies} copies");
}

#[test]
fn fsx_finds_nothing_on_volumes_of_fixed_size() {
    let tool = match tool() {
        Ok(tool) => tool,
        Err(why) => return skip("fsx_finds_nothing_on_volumes_of_fixed_size", &why),
    };
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for cache in [false, true] {
        for seed in 1..=3 {
            let mount = child::by_command(&[format!("vol0=mem:{SIZE}")], cache);
            let ran = fsx(&tool, &mount, &settings("blockmode = true", false), seed);
            finds_nothing(&format!("fixed size, cache {cache}, seed {seed}"), ran);
        }
    }
}

#[test]
fn fsx_finds_nothing_on_a_resizable_view() {
    let tool = match tool() {
        Ok(tool) => tool,
        Err(why) => return skip("fsx_finds_nothing_on_a_resizable_view", &why),
    };
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for cache in [false, true] {
        let mount = child::own(SIZE, &[Kind::Memory], cache, true);
        finds_nothing(&format!("resizable, cache {cache}"), fsx(&tool, &mount, &settings("", true), 4));
    }
}

/// fsx looks at what our copies do: of a device that copies wrong it complains.
#[test]
fn fsx_finds_a_planted_bug() {
    let tool = match tool() {
        Ok(tool) => tool,
        Err(why) => return skip("fsx_finds_a_planted_bug", &why),
    };
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mount = child::own(SIZE, &[Kind::Miscopying(0)], false, false);
    let (good, text, _) = fsx(&tool, &mount, &settings("blockmode = true", false), 5);
    assert!(!good && text.contains("miscompare"), "{text}");
}

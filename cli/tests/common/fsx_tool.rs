//! Runs the public fsx tool: another hand's exerciser, which knows nothing of ours.
//!
//! `cargo xtask test` installs it from the crates registry into `target/tools`. It is run as a program and never
//! linked: its licence is the APSL.

#![allow(dead_code)] // each test file uses a part of it

use crate::child::{self, Mounted};
use crate::common::{self, MIB, sh};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Size of the volumes it is run on, in bytes.
pub(crate) const SIZE: u64 = MIB;

/// The tool, or why it cannot be used here.
pub(crate) fn tool() -> Result<PathBuf, String> {
    child::mounts_or_why()?;
    let installed = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/bin/fsx");
    if installed.is_file() {
        return Ok(installed);
    }
    let hint = "cargo install fsx --version 0.3.2 --locked --root target/tools";
    sh("command -v fsx").map(PathBuf::from).map_err(|_| format!("no fsx: {hint}"))
}

/// What fsx does, in shares. `flags`: lines before the weights.
pub(crate) fn settings(flags: &str, whole_files: bool) -> String {
    // These change sizes or close files, which fsx does not do to what it takes for a block device.
    let (rare, truncate) = if whole_files { (1, 4) } else { (0, 0) };
    format!(
        "flen = {SIZE}\n{flags}\n[opsize]\nmin = 1\nmax = 65536\nalign = 1\n[weights]\nclose_open = {rare}\ntruncate = {truncate}\n\
         posix_fallocate = {rare}\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\ninvalidate = 1\nfsync = 1\nfdatasync = 1\n\
         punch_hole = 4\nsendfile = 2\nposix_fadvise = 1\ncopy_file_range = 15\n"
    )
}

/// What a run of fsx came to.
pub(crate) struct Found {
    /// It found everything right.
    pub(crate) good: bool,
    /// What it said.
    pub(crate) text: String,
    /// Copies the server made for it.
    pub(crate) copies: u64,
}

/// Runs `steps` of fsx on the first volume.
pub(crate) fn fsx(tool: &Path, mount: &Mounted, settings: &str, seed: u64, steps: u64) -> Found {
    let folder = common::folder();
    let file = folder.path().join("fsx.toml");
    std::fs::write(&file, settings).expect("a file of the test");
    let volume = mount.dir.join("vol0");
    let said = std::fs::File::create(folder.path().join("said")).expect("a file of the test");
    let mut child = Command::new(tool)
        .args(["-f".as_ref(), file.as_os_str(), "-P".as_ref(), folder.path().as_os_str()])
        .args(["-S", &seed.to_string(), "-N", &steps.to_string()])
        .arg(&volume)
        .stdin(Stdio::null())
        .stdout(said.try_clone().expect("a descriptor"))
        .stderr(said)
        .spawn()
        .expect("it starts");
    let mut copies = 0;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
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
    let text = std::fs::read_to_string(folder.path().join("said")).expect("written above");
    let good = status.success() && text.contains("All operations completed A-OK!");
    Found { good, text, copies: told(&volume) }
}

/// The copies onto a volume, as its server tells them.
fn told(volume: &Path) -> u64 {
    let mut text = vec![0; 1 << 16];
    let len = rustix::fs::getxattr(volume, "user.blkcopy.receipt", &mut text[..]).unwrap_or(0);
    let receipt: serde_json::Value = serde_json::from_slice(&text[..len]).unwrap_or_default();
    receipt["copies"].as_u64().unwrap_or(0)
}

/// Copies are about a quarter of the steps; some are skipped as empty. An fsx that copies nothing would find nothing.
pub(crate) fn finds_nothing(what: &str, steps: u64, found: &Found) {
    assert!(found.good, "{what}:\n{}", found.text);
    assert!(
        found.copies > steps / 10,
        "{what}: {} copies only in {steps} steps:\n{}",
        found.copies,
        found.text
    );
    eprintln!("{what}: {} copies", found.copies);
}

//! Runs the built command and looks at everything it leaves behind.
#![allow(dead_code)] // each test file uses a part of it

pub(crate) mod mounted;
#[path = "../../../tests/common/skip.rs"]
mod skip;

#[allow(unused_imports)] // not every test can be skipped
pub(crate) use skip::skip;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
/// The built command.
pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_blkcopy");

/// What a run printed, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(out: Output) -> Self {
        Self {
            code: out.status.code(),
            out: String::from_utf8(out.stdout).unwrap(),
            err: String::from_utf8(out.stderr).unwrap(),
        }
    }

    /// The receipt or other JSON it printed.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The last line with its times and rates taken out: they differ from run to run.
    pub(crate) fn timeless(&self) -> String {
        let Some((front, rest)) = self.out.split_once(" in ") else { return self.out.clone() };
        // The rate is left out where the time was too short to tell one.
        let (time, methods) = rest.split_once(": ").unwrap();
        let but = time.split_once(", ").map_or(String::new(), |(_, but)| format!(", {but}"));
        format!("{front} in TIME{but}: {methods}")
    }
}

/// The command with these arguments in `dir`, not started yet.
pub(crate) fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(BIN);
    command.args(args).current_dir(dir).env_remove("BLKCOPY_LOG").stdin(Stdio::null());
    command
}

/// Runs `blkcopy` with these arguments in `dir`.
pub(crate) fn blkcopy(dir: &Path, args: &[&str]) -> Ran {
    Ran::of(command(dir, args).output().unwrap())
}

/// `len` bytes that are never twice the same run.
pub(crate) fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut all: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    all.truncate(len);
    all
}

pub(crate) fn sh(script: &str) -> Result<String, String> {
    let out = Command::new("sh").args(["-ec", script]).output().expect("sh runs");
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned());
    }
    Err(format!("{script}: {}", String::from_utf8_lossy(&out.stderr).trim()))
}

pub(crate) fn must(script: &str) -> String {
    sh(script).unwrap()
}

/// Loop devices and mounts, taken apart in reverse order.
#[derive(Default)]
pub(crate) struct Undo(pub(crate) Vec<String>);

impl Undo {
    pub(crate) fn later(&mut self, script: impl Into<String>) {
        self.0.push(script.into());
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for script in self.0.iter().rev() {
            if let Err(why) = sh(script) {
                eprintln!("could not be taken apart: {why}");
            }
        }
    }
}

/// A folder for this test that is not in memory.
pub(crate) fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A reason why loop devices and mounts cannot be had.
pub(crate) fn loops_or_why() -> Result<(), String> {
    if sh("id -u")? != "0" {
        return Err("not root: no loop devices, no mounts".to_owned());
    }
    sh("losetup -f").map(|_| ())
}

/// A loop device over `file`; `flags` for losetup.
pub(crate) fn attach_with(undo: &mut Undo, file: &Path, flags: &str) -> Result<PathBuf, String> {
    let device = sh(&format!("losetup {flags} --find --show {}", file.display()))?;
    undo.later(format!("losetup -d {device}"));
    Ok(PathBuf::from(device))
}

pub(crate) fn attach(undo: &mut Undo, file: &Path) -> Result<PathBuf, String> {
    attach_with(undo, file, "")
}

/// A new file system of `size` in `base`, mounted at `base/name`.
pub(crate) fn mount_loop(
    undo: &mut Undo,
    base: &Path,
    name: &str,
    mkfs: &str,
    size: &str,
) -> Result<PathBuf, String> {
    let (image, at) = (base.join(format!("{name}.fs")), base.join(name));
    sh(&format!("truncate -s {size} {}; mkdir {}", image.display(), at.display()))?;
    let device = attach(undo, &image)?;
    sh(&format!("{mkfs} {} && mount {} {}", device.display(), device.display(), at.display()))?;
    undo.later(format!("umount {}", at.display()));
    Ok(at)
}

/// A file system in memory of `size` at `base/name`.
pub(crate) fn mount_tmpfs(undo: &mut Undo, base: &Path, name: &str, size: &str) -> Result<PathBuf, String> {
    let at = base.join(name);
    sh(&format!("mkdir {0} && mount -t tmpfs -o size={size} tmpfs {0}", at.display()))?;
    undo.later(format!("umount {}", at.display()));
    Ok(at)
}

/// Waits until the copy to `file`, which has no name before it is good, has bytes on storage or in the cache.
pub(crate) fn under_way(file: &Path) {
    let begun = Instant::now();
    while !nameless_beside(file) && file.metadata().map_or(0, |m| m.blocks()) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the copy does not begin");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// True when a process has a file with bytes in it open that lies beside `file` and has no name, or a hidden one.
fn nameless_beside(file: &Path) -> bool {
    let folder = file.parent().unwrap().to_str().unwrap();
    let marks =
        [format!("{folder}/#"), format!("{folder}/.{}.blkcopy-", file.file_name().unwrap().display())];
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let files = processes.filter_map(|p| std::fs::read_dir(p.path().join("fd")).ok()).flatten().flatten();
    files.map(|fd| fd.path()).any(|fd| {
        let link = std::fs::read_link(&fd).unwrap_or_default();
        marks.iter().any(|mark| link.to_string_lossy().starts_with(mark.as_str()))
            && fd.metadata().is_ok_and(|m| m.blocks() > 0)
    })
}

/// The first bytes of two files or devices are equal, says another program.
pub(crate) fn front_is_equal(a: &Path, b: &Path, len: u64) {
    must(&format!("cmp -n {len} {} {}", a.display(), b.display()));
}

//! `cargo xtask test` and `cargo xtask soak`.

use crate::tool::{Done, cannot, cargo, have, is_root, root, run, watch, words};
use crate::{evidence, lab, messages};
use std::process::Command;

/// Programs the tests use as independent judges, and the Debian packages they come in.
const PROGRAMS: [(&str, &str); 9] = [
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("sfdisk", "fdisk"),
    ("qemu-img", "qemu-utils"),
    ("strace", "strace"),
    ("losetup", "mount"),
    ("rsync", "rsync"),
    ("mkfs.vfat", "dosfstools"),
];

/// Version of the fsx tool: the one whose settings `cli/tests/fsx.rs` writes.
const FSX: &str = "0.3.2";

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    steps_failed: Vec<String>,
    skipped: Vec<String>,
}

impl Tally {
    fn line(&mut self, line: &str) {
        let Some(rest) = line.trim().strip_prefix("test result: ") else { return };
        let count = |word: &str| {
            let part = rest.split(['.', ';']).map(str::trim).find_map(|p| p.strip_suffix(word));
            part.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        self.passed += count(" passed");
        self.failed += count(" failed");
        let ignored = count(" ignored");
        if ignored > 0 {
            self.skipped.push(format!("SKIPPED {ignored} tests marked #[ignore]"));
        }
    }

    fn step(&mut self, name: &str, mut command: Command) -> Result<(), String> {
        println!("==> {name}");
        if !watch(&mut command, |line| self.line(line))? {
            self.steps_failed.push(name.to_owned());
        }
        Ok(())
    }

    /// A check of this program itself.
    fn check(&mut self, name: &str, done: Done) {
        println!("==> {name}");
        if let Err(why) = done {
            println!("{why}");
            self.steps_failed.push(name.to_owned());
        }
    }

    /// The lab's short pass: its checks count as tests.
    fn lab(&mut self) {
        println!("==> lab, short pass");
        match lab::short() {
            Ok(counts) => {
                self.passed += counts.passed;
                self.failed += counts.failed;
                self.skipped.extend(counts.skipped);
            }
            Err(why) => {
                println!("{why}");
                self.steps_failed.push("lab".to_owned());
            }
        }
    }

    fn end(mut self) -> Done {
        // A step that failed before it could count (a compile error) is a failure too.
        if self.failed == 0 {
            self.failed = self.steps_failed.len() as u64;
        }
        for skipped in &self.skipped {
            println!("{skipped}");
        }
        for step in &self.steps_failed {
            println!("FAILED step: {step}");
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len());
        Ok(self.failed == 0 && self.steps_failed.is_empty())
    }
}

/// All that CI runs.
pub(crate) fn test() -> Done {
    install_programs();
    install_fsx();
    let mut tally = Tally::default();
    let log = tempfile::NamedTempFile::new().map_err(|e| cannot("a temporary file", &e))?;
    tally.step("format", cargo(&["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    tally.step("clippy", cargo(&clippy))?;
    // One after the other: both are called blkcopy, and write to one folder.
    for what in [["--workspace", "--exclude=blkcopy-cli"], ["--package", "blkcopy-cli"]] {
        let mut doc = cargo(&["doc", "--quiet", "--no-deps", "--document-private-items"]);
        doc.args(what).env("RUSTDOCFLAGS", "--deny warnings");
        tally.step("documentation", doc)?;
    }
    tally.check("messages", messages::messages(false));
    tally.check("evidence", evidence::evidence(false));
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    tests.env("BLKCOPY_SKIP_LOG", log.path());
    tally.step("tests", tests)?;
    tally.step("interleavings (loom)", loom(log.path()))?;
    tally.step("demo, release build", cargo(&["run", "--quiet", "--release", "--", "demo"]))?;
    tally.lab();
    let skipped = std::fs::read_to_string(log.path()).map_err(|e| cannot(log.path(), &e))?;
    tally.skipped.extend(skipped.lines().map(str::to_owned));
    tally.end()
}

fn loom(log: &std::path::Path) -> Command {
    // Its own target directory: other flags, so everything else would be built again each time.
    let mut loom = cargo(&["test", "--release", "--package", "blkcopy", "--test", "loom_*"]);
    loom.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", root().join("target/loom"));
    loom.env("BLKCOPY_SKIP_LOG", log);
    loom
}

/// The long set: hours rather than minutes. `BLKCOPY_SOAK_ROUNDS` (default 20) repeats the stress tests;
/// `BLKCOPY_MATRIX_STEPS` (default 1000000) and `BLKCOPY_MATRIX` are the matrix test's own.
pub(crate) fn soak() -> Done {
    install_programs();
    install_fsx();
    let rounds = std::env::var("BLKCOPY_SOAK_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let mut tally = Tally::default();
    let log = tempfile::NamedTempFile::new().map_err(|e| cannot("a temporary file", &e))?;
    let all = |cases: &str| {
        let mut command = cargo(&["test", "--release", "--workspace", "--no-fail-fast"]);
        command.env("PROPTEST_CASES", cases).env("BLKCOPY_SOAK", "1").env("BLKCOPY_SKIP_LOG", log.path());
        command.env_remove("BLKCOPY_MATRIX_STEPS");
        command
    };
    tally.step("property tests, 100000 cases each", all("100000"))?;
    for round in 1..=rounds {
        tally.step(&format!("everything again, round {round} of {rounds}"), all("1000"))?;
    }
    // Last: it takes hours by itself.
    let mut matrix =
        cargo(&["test", "--release", "--package", "blkcopy-cli", "--test", "matrix", "--", "--nocapture"]);
    let steps = std::env::var("BLKCOPY_MATRIX_STEPS").unwrap_or_else(|_| "1000000".to_owned());
    matrix.env("BLKCOPY_MATRIX_STEPS", &steps).env("BLKCOPY_SKIP_LOG", log.path());
    tally.step(&format!("every kind of storage, {steps} steps each"), matrix)?;
    let skipped = std::fs::read_to_string(log.path()).map_err(|e| cannot(log.path(), &e))?;
    let mut lines: Vec<&str> = skipped.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    tally.skipped.extend(lines.into_iter().map(str::to_owned));
    tally.end()
}

/// Installs what is missing where that is allowed; what stays missing makes tests skip, aloud.
fn install_programs() {
    let missing: Vec<_> = PROGRAMS.iter().filter(|(program, _)| !have(program)).collect();
    if missing.is_empty() {
        return;
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    if !is_root() || !have("apt-get") {
        println!("==> missing: {}; tests that need them are skipped", packages.join(" "));
        return;
    }
    println!("==> installing {}", packages.join(" "));
    let mut update = words("apt-get update -qq");
    let mut install = words("apt-get install -y -qq --no-install-recommends");
    install.args(&packages).env("DEBIAN_FRONTEND", "noninteractive");
    let done = run(&mut update).is_ok_and(|ok| ok) && run(&mut install).is_ok_and(|ok| ok);
    if !done {
        println!("==> could not be installed: {}; tests that need them are skipped", packages.join(" "));
    }
}

/// Installs the fsx tool of the crates registry into `target/tools`, once. It is run, never linked: its licence is the
/// APSL.
fn install_fsx() {
    let tools = root().join("target/tools");
    if tools.join("bin/fsx").is_file() {
        return;
    }
    println!("==> installing fsx {FSX}");
    let mut install = cargo(&["install", "fsx", "--quiet", "--version", FSX, "--locked", "--root"]);
    install.arg(&tools);
    if !run(&mut install).is_ok_and(|ok| ok) {
        println!("==> fsx {FSX} could not be installed; tests that need it are skipped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up() {
        let mut tally = Tally::default();
        tally.line(
            "test result: ok. 14 passed; 0 failed; 2 ignored; 0 measured; 8 filtered out; finished in 4.6s",
        );
        tally.line("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.line("running 3 tests");
        assert_eq!((tally.passed, tally.failed, tally.skipped.len()), (17, 1, 1));
    }
}

//! Programs that benches run: how they are built, where they are, and on which core they are held.

use crate::tool::{Done, blkcopy, build_blkcopy, cannot, cargo, have, output, root, words};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Builds `blkcopy` and these programs of `benches/`, optimised.
pub(crate) fn build(benches: &[&str]) -> Done {
    Ok(build_blkcopy()? && (benches.is_empty() || build_benches(benches)?))
}

fn build_benches(names: &[&str]) -> Done {
    let mut build = cargo(&["bench", "--quiet", "--no-run", "--package", "blkcopy"]);
    build.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    for name in names {
        build.args(["--bench", name]);
    }
    let out = build.output().map_err(|e| cannot(&build, &e))?;
    if !out.status.success() {
        return Ok(false);
    }
    fs::create_dir_all(folder()).map_err(|e| cannot(folder(), &e))?;
    let said = String::from_utf8_lossy(&out.stdout);
    for name in names {
        let built = said.lines().find_map(|line| executable(line, name));
        let built = built.ok_or_else(|| format!("cargo did not say where it built {name}"))?;
        // Cargo adds a hash to the name, which changes from build to build.
        fs::copy(&built, bench(name)).map_err(|e| cannot(&built, &e))?;
    }
    Ok(true)
}

/// The program in a message of cargo's that it built this bench.
fn executable(line: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let target = message.get("target")?;
    let is_it = target["name"] == name && target["kind"][0] == "bench";
    message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
}

fn folder() -> PathBuf {
    root().join("target/benches")
}

/// A program of `benches/`, after [`build`].
pub(crate) fn bench(name: &str) -> PathBuf {
    folder().join(name)
}

/// `blkcopy`, held on this core.
pub(crate) fn pinned_blkcopy(core: Option<usize>) -> Command {
    pinned(core, &blkcopy())
}

/// A program, held on this core where taskset can be had.
pub(crate) fn pinned(core: Option<usize>, program: &Path) -> Command {
    let Some(core) = core.filter(|_| have("taskset")) else { return Command::new(program) };
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

/// The last core: interrupts are served on the first one as a rule.
pub(crate) fn last_core() -> usize {
    std::thread::available_parallelism().map_or(0, |n| n.get() - 1)
}

/// The kernel and its load now, for the first line of a report.
pub(crate) fn kernel_and_load() -> String {
    format!("{}; load before: {}", said("uname -sr"), said("cat /proc/loadavg"))
}

/// [`kernel_and_load`] after the count of CPUs.
pub(crate) fn machine() -> String {
    format!("{} CPUs, {}", said("nproc"), kernel_and_load())
}

fn said(command: &str) -> String {
    output(&mut words(command)).unwrap_or_default().trim().to_owned()
}

/// A folder for one run, on a disk: the temporary folder is often memory.
pub(crate) fn scratch() -> Result<tempfile::TempDir, String> {
    scratch_in(&root().join("target"))
}

/// A folder for one run, here.
pub(crate) fn scratch_in(base: &Path) -> Result<tempfile::TempDir, String> {
    tempfile::Builder::new().prefix("bench-").tempdir_in(base).map_err(|e| cannot(base, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_is_found_by_its_name_and_kind() {
        let line = |kind: &str, name: &str, at: &str| {
            format!(r#"{{"reason":"x","target":{{"kind":["{kind}"],"name":"{name}"}},"executable":{at}}}"#)
        };
        let found = executable(&line("bench", "load", r#""/t/load-1f""#), "load");
        assert_eq!(found, Some(PathBuf::from("/t/load-1f")));
        assert_eq!(executable(&line("bench", "lock", r#""/t/lock-1f""#), "load"), None);
        assert_eq!(executable(&line("lib", "load", "null"), "load"), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#, "load"), None);
    }
}

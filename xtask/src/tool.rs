//! Running commands.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A task ends well, badly, or could not be run.
pub(crate) type Done = Result<bool, String>;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// The Rust files in these folders of the repository, by their paths from its root, in order.
pub(crate) fn rust_files(folders: &[&str]) -> Result<Vec<String>, String> {
    let mut list = Vec::new();
    for folder in folders {
        add_rust_files(&root().join(folder), &mut list)?;
    }
    let short = |path: &PathBuf| path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned();
    let mut list: Vec<String> = list.iter().map(short).collect();
    list.sort_unstable();
    Ok(list)
}

fn add_rust_files(folder: &Path, list: &mut Vec<PathBuf>) -> Result<(), String> {
    for entry in std::fs::read_dir(folder).map_err(|e| cannot(folder, &e))? {
        let path = entry.map_err(|e| cannot(folder, &e))?.path();
        if path.is_dir() {
            add_rust_files(&path, list)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            list.push(path);
        }
    }
    Ok(())
}

/// cargo, the one that runs this.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// The command of the release build, after [`build_blkcopy`].
pub(crate) fn blkcopy() -> PathBuf {
    root().join("target/release/blkcopy")
}

/// Builds the command, optimised.
pub(crate) fn build_blkcopy() -> Done {
    println!("==> release build");
    run(&mut cargo(&["build", "--quiet", "--release", "--package", "blkcopy-cli", "--bin", "blkcopy"]))
}

/// Runs a command, its output untouched; true when it exits with 0.
pub(crate) fn run(command: &mut Command) -> Done {
    Ok(command.status().map_err(|e| cannot(&*command, &e))?.success())
}

/// Runs a command, shows its stdout line by line and gives each line to `tell`.
pub(crate) fn watch(command: &mut Command, mut tell: impl FnMut(&str)) -> Done {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| cannot(&*command, &e))?;
    let out = child.stdout.take().expect("piped above");
    for line in BufReader::new(out).lines() {
        let line = line.map_err(|e| cannot(&*command, &e))?;
        println!("{line}");
        tell(&line);
    }
    Ok(child.wait().map_err(|e| cannot(&*command, &e))?.success())
}

/// Runs a command quietly: its stdout on success, an error holding its stderr otherwise.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let out = command.output().map_err(|e| cannot(&*command, &e))?;
    if !out.status.success() {
        return Err(format!("{command:?}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A program with its arguments, the words of `line`.
pub(crate) fn words(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a command line has a first word"));
    command.args(words);
    command
}

/// True when `program` is on the search path.
pub(crate) fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(program).is_file())
}

/// True when this process is root.
pub(crate) fn is_root() -> bool {
    output(&mut words("id -u")).is_ok_and(|id| id.trim() == "0")
}

/// A port of this host that nobody listens on.
pub(crate) fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| cannot("a free port", &e))?;
    Ok(listener.local_addr().map_err(|e| cannot("a free port", &e))?.port())
}

/// An error of the system as a task's error.
pub(crate) fn cannot(what: impl std::fmt::Debug, error: &dyn std::fmt::Display) -> String {
    format!("{what:?}: {error}")
}

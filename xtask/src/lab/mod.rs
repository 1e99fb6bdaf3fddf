//! `cargo xtask lab`: a stock Linux under QEMU's emulation against our target, and our host driver against its target.
//!
//! `lab/README.md` has the picture. The guest's scripts tell the story, every check prints a line, and here those lines
//! are counted and the guest's wishes done.

mod cpio;
mod host;
mod vm;

use crate::tool::{Done, blkcopy, cannot, cargo, free_port, have, root, run};
use host::{Answer, Host};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use vm::{Parts, Said, Vm};

/// How long a guest may be silent: an administrative command may take 60 s before Linux gives it up.
const SILENCE: Duration = Duration::from_secs(240);
/// How long until its init speaks.
const BOOT_PATIENCE: Duration = Duration::from_secs(150);
/// Seconds the downloads may take.
const PREPARE_SECONDS: &str = "400";
/// What `cargo xtask test` runs, in one boot.
const SHORT: [&str; 3] = ["attach", "data", "copy"];

/// The script that runs the command itself in the guest.
const MOUNT: &str = "mount";

/// The command without what debuggers read, if that can be had: the guest unpacks it slowly.
fn stripped(folder: &Path) -> Result<PathBuf, String> {
    let (from, to) = (blkcopy(), folder.join("blkcopy"));
    if have("strip") && run(Command::new("strip").arg("-o").arg(&to).arg(&from))? { Ok(to) } else { Ok(from) }
}

/// What came out of the checks.
#[derive(Default)]
pub(crate) struct Counts {
    /// Checks that held.
    pub(crate) passed: u64,
    /// Checks that did not.
    pub(crate) failed: u64,
    /// A line for each that could not be made.
    pub(crate) skipped: Vec<String>,
}

impl Counts {
    fn total(&self) -> u64 {
        self.passed + self.failed + self.skipped.len() as u64
    }
}

/// Runs the scripts of these names (all without names), each in a machine of its own.
pub(crate) fn lab(names: &[String]) -> Done {
    let all = scripts()?;
    if let Some(unknown) = names.iter().find(|n| !all.contains(n)) {
        return Err(format!("no script {unknown} in lab/guest; there are {}", all.join(" ")));
    }
    let groups: Vec<Vec<String>> =
        all.into_iter().filter(|s| names.is_empty() || names.contains(s)).map(|s| vec![s]).collect();
    let counts = run_groups(&groups)?;
    for line in &counts.skipped {
        println!("{line}");
    }
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped.len());
    Ok(counts.failed == 0)
}

/// The short pass: attach, data and copy in one boot.
pub(crate) fn short() -> Result<Counts, String> {
    run_groups(&[SHORT.map(str::to_owned).to_vec()])
}

/// The scripts there are: all of `lab/guest` but what they share.
fn scripts() -> Result<Vec<String>, String> {
    let folder = root().join("lab/guest");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).map_err(|e| cannot(&folder, &e))? {
        let name = entry.map_err(|e| cannot(&folder, &e))?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".sh").filter(|n| *n != "lib").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn run_groups(groups: &[Vec<String>]) -> Result<Counts, String> {
    let mut counts = Counts::default();
    let prepared = match prepare()? {
        Ok(folder) => folder,
        Err(why) => {
            counts.skipped = groups.iter().flatten().map(|s| format!("SKIPPED lab {s}: {why}")).collect();
            return Ok(counts);
        }
    };
    println!("==> release build");
    let build = ["build", "--quiet", "--release", "--package", "blkcopy-cli", "--package", "blkcopy-lab"];
    if !run(&mut cargo(&build))? {
        return Err("the release build failed".to_owned());
    }
    for group in groups {
        println!("==> lab: {}", group.join(" "));
        Session::new(group, &prepared)?.run(&mut counts)?;
    }
    Ok(counts)
}

/// The folder with kernel, root and QEMU; the inner error says why they cannot be had.
fn prepare() -> Result<Result<PathBuf, String>, String> {
    let suite = std::env::var("BLKCOPY_LAB_SUITE").unwrap_or_else(|_| "trixie".to_owned());
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let cache = cache.map_or_else(|| root().join("target/lab"), |cache| cache.join("blkcopy-lab"));
    let folder = std::env::var_os("BLKCOPY_LAB_CACHE").map_or(cache, PathBuf::from).join(suite);
    let mut prepare = Command::new("timeout");
    let done = prepare.arg(PREPARE_SECONDS).arg(root().join("lab/prepare.sh")).arg(&folder);
    let done = done.output().map_err(|e| cannot("timeout lab/prepare.sh", &e))?;
    let said = String::from_utf8_lossy(&done.stderr);
    match done.status.code() {
        Some(0) => Ok(Ok(folder)),
        Some(3) => Ok(Err(said.trim().lines().last().unwrap_or_default().to_owned())),
        Some(124) => Ok(Err(format!("the downloads took longer than {PREPARE_SECONDS} s"))),
        _ => Err(format!("lab/prepare.sh: {}: {}", done.status, said.trim())),
    }
}

/// What becomes of the machine after a word of the guest.
enum Next {
    /// It is answered and goes on.
    Say(Answer),
    /// Its plug is pulled and it boots again.
    Cut,
    /// It has done all it was to do.
    Over,
}

/// One machine and what it is to do.
struct Session<'a> {
    scripts: &'a [String],
    prepared: &'a Path,
    folder: PathBuf,
    host: Host,
    forward_port: u16,
    /// The script that runs, as an index; those before it are done.
    current: usize,
    boots: u32,
    boot_meant: bool,
    /// The checks counted when the script that runs began.
    counted_before: u64,
}

impl<'a> Session<'a> {
    fn new(scripts: &'a [String], prepared: &'a Path) -> Result<Self, String> {
        let folder = root().join("target/lab").join(scripts.join("-"));
        let host = Host::new(folder.clone(), &root().join("target/release"))?;
        let mut archive = cpio::Archive::create(&folder.join("initrd"))?;
        archive.add_tree(&prepared.join("root"), "")?;
        archive.add_tree(&root().join("lab/guest"), "lab")?;
        archive.add_file(&root().join("lab/guest/init"), "init")?;
        archive.add_file(&root().join("target/release/blkcopy-lab"), "usr/bin/blkcopy-lab")?;
        if scripts.iter().any(|script| script == MOUNT) {
            archive.add_file(&stripped(&folder)?, "usr/bin/blkcopy")?;
        }
        archive.finish()?;
        let forward_port = free_port()?;
        Ok(Self {
            scripts,
            prepared,
            folder,
            host,
            forward_port,
            current: 0,
            boots: 0,
            boot_meant: true,
            counted_before: 0,
        })
    }

    fn boot(&self) -> Result<Vm, String> {
        Vm::boot(&Parts {
            prepared: self.prepared,
            root: &self.folder.join("initrd"),
            console: self.folder.join("console"),
            forward_port: self.forward_port,
        })
    }

    fn run(mut self, counts: &mut Counts) -> Result<(), String> {
        let (failed_before, mut vm) = (counts.failed, self.boot()?);
        loop {
            let patience = if self.boot_meant { BOOT_PATIENCE } else { SILENCE };
            let line = match vm.listen(patience) {
                Said::Line(line) => line,
                Said::Nothing => return self.died(counts, "it said nothing for too long"),
                Said::Gone => return self.died(counts, "QEMU ended"),
            };
            if let Some(words) = line.strip_prefix("@host ") {
                match self.answer(words, counts)? {
                    Some(Next::Say(answer)) => vm.say(&answer.wire())?,
                    Some(Next::Cut) => {
                        drop(vm);
                        vm = self.boot()?;
                    }
                    Some(Next::Over) => break,
                    None => return self.died(counts, &format!("unasked: {words}")),
                }
            } else if line.starts_with("@flushed ") {
                self.host.note_flushed(&line)?;
            } else {
                println!("{line}");
                self.count(&line, counts);
            }
        }
        drop(vm);
        if counts.failed == failed_before {
            // Nothing left to look into.
            fs::remove_dir_all(&self.folder).map_err(|e| cannot(&self.folder, &e))?;
        }
        Ok(())
    }

    fn count(&self, line: &str, counts: &mut Counts) {
        counts.passed += u64::from(line.starts_with("ok - "));
        counts.failed += u64::from(line.starts_with("NOT OK - "));
        if let Some(what) = line.strip_prefix("skip - ") {
            counts.skipped.push(format!("SKIPPED lab {}: {what}", self.script()));
        }
    }

    fn script(&self) -> &str {
        self.scripts.get(self.current).map_or("(end)", String::as_str)
    }

    /// Does what the guest asks; `None`: a boot nobody meant, or words nobody knows.
    fn answer(&mut self, words: &str, counts: &mut Counts) -> Result<Option<Next>, String> {
        let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
        Ok(Some(Next::Say(match verb {
            "boot" => {
                if !std::mem::take(&mut self.boot_meant) {
                    return Ok(None);
                }
                self.boots += 1;
                let left = self.scripts.get(self.current..).unwrap_or_default().join(" ");
                let (boots, port) = (self.boots, self.forward_port);
                Answer::done(format!("BOOT={boots}\nFWD={port}\nSCRIPTS='{left}'"))
            }
            "start" => {
                self.counted_before = counts.total();
                Answer::done("")
            }
            "ended" => {
                let target = self.host.tidy()?;
                let silent = counts.total() == self.counted_before;
                for (bad, what) in [
                    (rest != "0", format!("the script ended with {rest}")),
                    (silent, "the script checked nothing".to_owned()),
                    (target.status != 0, format!("the target ended badly: {}", target.text.trim())),
                ] {
                    if bad {
                        println!("NOT OK - {}: {what}", self.script());
                        counts.failed += 1;
                    }
                }
                self.current += 1;
                Answer::done("")
            }
            "reset" => {
                self.boot_meant = true;
                Answer::done("")
            }
            "cut" => {
                self.boot_meant = true;
                return Ok(Some(Next::Cut));
            }
            "poweroff" => return Ok(Some(Next::Over)),
            _ => return Ok(self.host.ask(words)?.map(Next::Say)),
        })))
    }

    /// The machine can do no more: a failed check, with what its console said last.
    fn died(&self, counts: &mut Counts, why: &str) -> Result<(), String> {
        counts.failed += 1;
        println!("NOT OK - {}: the guest did not finish: {why}; its console ends with:", self.script());
        let console = self.folder.join("console");
        let said = fs::read(&console).map_err(|e| cannot(&console, &e))?;
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        for line in &lines[lines.len().saturating_sub(40)..] {
            println!("    {line}");
        }
        Ok(())
    }
}

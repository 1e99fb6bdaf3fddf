//! What the guest may ask the host to do: run a target, kill it, stop it, run a command, pull the plug.
//!
//! The words (`host WORDS..` in a guest script), each answered with a status and lines of text:
//!
//! | words | what is done |
//! |---|---|
//! | `serve ARGS..` | `blkcopy serve ARGS` on the last port; `disk:NAME:MIB`: a sparse file there. Answer: the port |
//! | `kill`, `term`, `stop`, `cont` | SIGKILL, SIGTERM (answer: its exit status), SIGSTOP, SIGCONT to the target |
//! | `port` | the port of the target, for a guest that boots anew |
//! | `run PROGRAM ARGS..` | runs it in the run's folder, `blkcopy` and `blkcopy-lab` on PATH. Answer: what it printed |
//! | `reset` | the next boot is meant: the guest resets itself |
//! | `cut` | QEMU is killed and started again; never answered |
//! | `boot`, `start NAME`, `ended STATUS`, `poweroff` | the guest's init says where it is |

use crate::tool::{cannot, output, words};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Most lines of an answer: the guest reads them byte by byte.
const ANSWER_LINES_MAX: usize = 300;
/// How long a target may take to listen or to end, and a command to run: several times what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

/// An answer to the guest.
pub(super) struct Answer {
    /// 0: done; otherwise the exit status of what was run.
    pub(super) status: i32,
    /// Lines of text.
    pub(super) text: String,
}

impl Answer {
    /// Done, with `text` to say.
    pub(super) fn done(text: impl Into<String>) -> Self {
        Self { status: 0, text: text.into() }
    }

    fn failed(text: impl Into<String>) -> Self {
        Self { status: 1, text: text.into() }
    }

    /// The form `host` of `lib.sh` reads: status and number of lines, then the lines.
    pub(super) fn wire(&self) -> String {
        let lines: Vec<&str> = self.text.lines().take(ANSWER_LINES_MAX).collect();
        let body: String = lines.iter().flat_map(|line| [*line, "\n"]).collect();
        format!("{} {}\n{body}", self.status, lines.len())
    }
}

/// The host's side of one machine: a folder, and a target that may run.
pub(super) struct Host {
    folder: PathBuf,
    /// Folders with `blkcopy` and `blkcopy-lab`, then the usual search path.
    search: std::ffi::OsString,
    target: Option<Child>,
    port: u16,
}

impl Host {
    /// A host whose files lie in `folder` (emptied) and whose programs lie in `programs`.
    pub(super) fn new(folder: PathBuf, programs: &Path) -> Result<Self, String> {
        let _ = fs::remove_dir_all(&folder); // what an earlier run left, if anything
        fs::create_dir_all(&folder).map_err(|e| cannot(&folder, &e))?;
        File::create(folder.join("flushed")).map_err(|e| cannot(&folder, &e))?;
        let usual = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(programs.to_owned()).chain(std::env::split_paths(&usual));
        let search = std::env::join_paths(all).map_err(|e| cannot(programs, &e))?;
        Ok(Self { folder, search, target: None, port: 0 })
    }

    /// Does what `text` asks; `None`: these words are not for the host.
    pub(super) fn ask(&mut self, text: &str) -> Result<Option<Answer>, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        Ok(Some(match words.as_slice() {
            ["serve", args @ ..] => self.serve(args)?,
            ["kill"] => match self.target.take() {
                Some(mut target) => {
                    target.kill().map_err(|e| cannot("the target", &e))?;
                    target.wait().map_err(|e| cannot("the target", &e))?;
                    Answer::done("")
                }
                None => Answer::failed("no target runs"),
            },
            ["port"] => Answer::done(self.port.to_string()),
            ["stop"] => self.signal("STOP")?,
            ["cont"] => self.signal("CONT")?,
            ["term"] => self.end_target()?,
            ["run", program, args @ ..] => self.run(program, args)?,
            _ => return Ok(None),
        }))
    }

    /// Ends the target, if one runs: true when that went as it should, with the reason where not.
    pub(super) fn tidy(&mut self) -> Result<Answer, String> {
        if self.target.is_none() {
            return Ok(Answer::done(""));
        }
        self.signal("CONT")?;
        let answer = self.end_target()?;
        self.port = 0;
        Ok(answer)
    }

    /// What a guest says of its flushes is kept here, for `blkcopy-lab check`.
    pub(super) fn note_flushed(&self, line: &str) -> Result<(), String> {
        let path = self.folder.join("flushed");
        let file = OpenOptions::new().append(true).open(&path);
        file.and_then(|mut f| writeln!(f, "{line}")).map_err(|e| cannot(&path, &e))
    }

    fn serve(&mut self, args: &[&str]) -> Result<Answer, String> {
        if self.target.is_some() {
            return Ok(Answer::failed("a target runs already"));
        }
        let mut serve = Command::new("blkcopy");
        serve.env("PATH", &self.search).current_dir(&self.folder).arg("serve");
        serve.arg("--listen").arg(format!("127.0.0.1:{}", self.port));
        for word in args {
            match word.strip_prefix("disk:").and_then(|rest| rest.split_once(':')) {
                Some((name, mib)) => serve.arg(self.disk(name, mib)?),
                None => serve.arg(word),
            };
        }
        let (out, err) = (self.folder.join("target.out"), self.folder.join("target.err"));
        let open = |path: &Path| File::create(path).map_err(|e| cannot(path, &e));
        serve.stdin(Stdio::null()).stdout(open(&out)?).stderr(open(&err)?);
        let mut target = serve.spawn().map_err(|e| cannot("blkcopy serve", &e))?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let said = fs::read_to_string(&out).map_err(|e| cannot(&out, &e))?;
            if let Some(port) = said.lines().find_map(listening) {
                (self.target, self.port) = (Some(target), port);
                return Ok(Answer::done(port.to_string()));
            }
            if let Some(status) = target.try_wait().map_err(|e| cannot("blkcopy serve", &e))? {
                let why = fs::read_to_string(&err).unwrap_or_default();
                return Ok(Answer::failed(format!("{status}\n{why}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.target = Some(target);
        Ok(Answer::failed("it does not say that it listens"))
    }

    fn disk(&self, name: &str, mib: &str) -> Result<PathBuf, String> {
        let path = self.folder.join(name);
        let mib: u64 = mib.parse().map_err(|e| cannot(mib, &e))?;
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|f| f.set_len(mib << 20)).map_err(|e| cannot(&path, &e))?;
        Ok(path)
    }

    fn signal(&mut self, name: &str) -> Result<Answer, String> {
        let Some(target) = &self.target else { return Ok(Answer::failed("no target runs")) };
        output(words(&format!("kill -{name}")).arg(target.id().to_string())).map(Answer::done)
    }

    /// SIGTERM and the wait for it; killed when it does not end.
    fn end_target(&mut self) -> Result<Answer, String> {
        self.signal("TERM")?;
        let Some(mut target) = self.target.take() else { return Ok(Answer::failed("no target runs")) };
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = target.try_wait().map_err(|e| cannot("the target", &e))? {
                let said = fs::read_to_string(self.folder.join("target.err")).unwrap_or_default();
                return Ok(Answer { status: code(status), text: format!("{status}\n{said}") });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        target.kill().and_then(|()| target.wait()).map_err(|e| cannot("the target", &e))?;
        Ok(Answer::failed("the target did not end on SIGTERM and was killed"))
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Answer, String> {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string()).arg(program).args(args);
        command.env("PATH", &self.search).current_dir(&self.folder).stdin(Stdio::null());
        let done = command.output().map_err(|e| cannot(program, &e))?;
        let text =
            [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        Ok(Answer { status: code(done.status), text })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(target) = &mut self.target {
            // Either may fail only because the target is gone already.
            let _ = target.kill();
            let _ = target.wait();
        }
    }
}

/// The port in "listening on 127.0.0.1:PORT: ..."
fn listening(line: &str) -> Option<u16> {
    line.strip_prefix("listening on 127.0.0.1:")?.split(':').next()?.parse().ok()
}

/// The exit status, or 128 for a process that a signal ended.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_how_many_lines_follow() {
        assert_eq!(Answer::done("").wire(), "0 0\n");
        assert_eq!(Answer::done("4420").wire(), "0 1\n4420\n");
        assert_eq!(Answer::failed("a\nb\n").wire(), "1 2\na\nb\n");
        let long = Answer::done("x\n".repeat(ANSWER_LINES_MAX + 1)).wire();
        assert_eq!(long.lines().count(), ANSWER_LINES_MAX + 1);
        assert!(long.starts_with(&format!("0 {ANSWER_LINES_MAX}\n")));
    }

    #[test]
    fn the_port_is_found() {
        assert_eq!(listening("listening on 127.0.0.1:4420: nvme connect -t tcp"), Some(4420));
        assert_eq!(listening("namespace 1: a, 4 MiB"), None);
    }
}

//! A mount that is served by the built command, and that leaves nothing behind: no process, no mount, no hung program.

use super::{BIN, Ran, folder, must, sh};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest life of a mount. A server that hangs also hangs whoever looks at its files, so somebody must end it from
/// outside.
const LIFE_MAX: Duration = Duration::from_secs(240);
/// Longest wait for a server to end: it waits for open files and for its copies itself, each with a bound.
const END_MAX: Duration = Duration::from_secs(60);

/// A reason why nothing can be mounted here.
pub(crate) fn mounts_or_why() -> Result<(), String> {
    if !Path::new("/dev/fuse").exists() {
        return Err("no /dev/fuse".to_owned());
    }
    if sh("id -u")? != "0" && sh("fusermount3 -V && test -w /dev/fuse").is_err() {
        return Err("not root, and no fusermount3 or no right to /dev/fuse".to_owned());
    }
    Ok(())
}

/// `blkcopy mount` (or `serve --mount`) and where it is.
pub(crate) struct Mounted {
    child: Child,
    dir: PathBuf,
    /// What the server wrote to stderr, once it has ended.
    said: Option<JoinHandle<String>>,
    alive: Option<mpsc::Sender<()>>,
    _scratch: TempDir,
}

impl Mounted {
    /// Mounts with these arguments behind the folder.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::with(args, |dir| vec!["mount".to_owned(), dir.to_owned()])
    }

    /// Serves these arguments over the network too.
    pub(crate) fn serve(args: &[&str]) -> Self {
        let front =
            ["serve", "--nqn", "nqn.2014-08.org.example:mounted", "--listen", "127.0.0.1:0", "--mount"];
        Self::with(args, |dir| front.into_iter().chain([dir]).map(str::to_owned).collect())
    }

    fn with(args: &[&str], front: impl Fn(&str) -> Vec<String>) -> Self {
        let scratch = folder();
        let dir = scratch.path().join("mnt");
        std::fs::create_dir(&dir).unwrap();
        Self::at(scratch, dir.clone(), &front(dir.to_str().unwrap()), args)
    }

    /// Runs `front args` that mounts on `dir`, in `scratch`.
    pub(crate) fn at(scratch: TempDir, dir: PathBuf, front: &[String], args: &[&str]) -> Self {
        let mut command = Command::new(BIN);
        command.args(front).args(args).env_remove("BLKCOPY_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut errors = child.stderr.take().unwrap();
        let said = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let out = BufReader::new(child.stdout.take().unwrap());
        let (alive, died) = mpsc::channel::<()>();
        let mut mounted = Self { child, dir, said: Some(said), alive: Some(alive), _scratch: scratch };
        // Never by looking at the folder: that hangs with a server that hangs.
        let (ready, readies) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if line.starts_with("mounted on ") {
                    let _ = ready.send(());
                }
            }
        });
        if readies.recv_timeout(END_MAX).is_err() {
            let _ = mounted.child.kill();
            panic!("it does not mount: {}", mounted.said());
        }
        let (pid, connection) = (mounted.child.id(), connection(&mounted.dir));
        std::thread::spawn(move || {
            if died.recv_timeout(LIFE_MAX) == Err(RecvTimeoutError::Timeout) {
                eprintln!("a mount lives for {LIFE_MAX:?}: ended from outside");
                end_connection(connection);
                let _ = sh(&format!("kill -9 {pid}"));
            }
        });
        mounted
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of a volume.
    pub(crate) fn at_name(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The file of a volume, for scripts.
    pub(crate) fn text(&self, name: &str) -> String {
        self.at_name(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn receipt(&self, name: &str) -> Value {
        attribute(&self.at_name(name), "user.blkcopy.receipt")
    }

    /// What was said on stderr.
    fn said(&mut self) -> String {
        self.said.take().map(|thread| thread.join().unwrap()).unwrap_or_default()
    }

    /// Sends SIGTERM and waits; checks that it ended well and left no mount. How long it took.
    pub(crate) fn stop(mut self) -> Duration {
        let begun = Instant::now();
        must(&format!("kill -TERM {}", self.child.id()));
        let code = self.wait();
        let took = begun.elapsed();
        let said = self.said();
        assert_eq!(code, Some(0), "it does not end well: {said}");
        assert!(!is_mounted(&self.dir), "the mount is left: {said}");
        took
    }

    /// Waits for the server to end by itself; its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < END_MAX, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL: the process has no say in it. The dead mount stays until this is dropped.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.alive = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
        // More than once where a test mounted over it.
        while is_mounted(&self.dir) {
            let dir = self.dir.display();
            if sh(&format!("umount -l {dir} || fusermount3 -uz {dir}")).is_err() {
                break;
            }
        }
    }
}

/// True when something is mounted at the folder: from the kernel's list, which no server can hang.
pub(crate) fn is_mounted(dir: &Path) -> bool {
    mount_line(dir).is_some()
}

fn mount_line(dir: &Path) -> Option<String> {
    let list = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let here = dir.to_str().unwrap();
    list.lines().rfind(|line| line.split(' ').nth(4) == Some(here)).map(str::to_owned)
}

/// The kernel's number for the connection of a mount.
fn connection(dir: &Path) -> Option<String> {
    let line = mount_line(dir)?;
    Some(line.split(' ').nth(2)?.split_once(':')?.1.to_owned())
}

fn end_connection(number: Option<String>) {
    let Some(number) = number else { return };
    let list = "/sys/fs/fuse/connections";
    let _ = sh(&format!(
        "test -e {list}/{number} || mount -t fusectl fusectl {list}; echo 1 >{list}/{number}/abort"
    ));
}

/// An attribute of a file, as JSON.
pub(crate) fn attribute(file: &Path, name: &str) -> Value {
    let mut value = vec![0; 64 << 10];
    let len = rustix::fs::getxattr(file, name, &mut *value).unwrap();
    serde_json::from_slice(&value[..len]).unwrap()
}

/// Bytes moved onto a volume by `method` so far.
pub(crate) fn moved(receipt: &Value, method: &str) -> u64 {
    receipt["methods"][method].as_u64().unwrap_or(0)
}

/// Bytes that copies onto a volume carried through the server.
pub(crate) fn through_host(receipt: &Value) -> u64 {
    receipt["host_bytes"]["written"].as_u64().unwrap()
}

/// Runs a program that must end: one that is stuck in a mount does not take the test with it. How it ended.
pub(crate) fn bounded(script: &str) -> Ran {
    let child = Command::new("timeout")
        .args(["-k", "5", "120", "sh", "-c", script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let ran = Ran::of(child);
    assert!(!matches!(ran.code, Some(124 | 137)), "{script}: does not end: {ran:?}");
    ran
}

/// The same, and it must end well; what it printed.
pub(crate) fn run(script: &str) -> String {
    let ran = bounded(script);
    assert_eq!(ran.code, Some(0), "{script}: {}", ran.err);
    ran.out.trim().to_owned()
}

/// All bytes of a file are these; the first that differs is named.
pub(crate) fn holds(file: &Path, want: &[u8]) {
    let got = std::fs::read(file).unwrap();
    assert_eq!(got.len(), want.len(), "{}", file.display());
    if got != want {
        let at = got.iter().zip(want).position(|(a, b)| a != b).unwrap();
        panic!("{}: byte {at} is {:#04x}, not {:#04x}", file.display(), got[at], want[at]);
    }
}

/// Writes bytes into a volume as it is: no truncation first.
pub(crate) fn put(file: &Path, offset: u64, what: &[u8]) {
    use std::os::unix::fs::FileExt;
    std::fs::File::options().write(true).open(file).unwrap().write_all_at(what, offset).unwrap();
}

/// A name that is not UTF-8 is none of ours.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut list: Vec<_> =
        entries.map(|e| String::from_utf8(e.unwrap().file_name().as_bytes().to_vec()).unwrap()).collect();
    list.sort();
    list
}

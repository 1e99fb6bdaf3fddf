//! Servers that show files under a folder, and file systems on a loop device: made for a benchmark, taken apart when dropped.

use super::programs::scratch;
use crate::tool::{cannot, is_root, output, run, words};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a server may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with the files a server shows.
pub(crate) struct Mounted {
    dir: PathBuf,
    server: Option<(Child, Option<BufReader<ChildStdout>>)>,
    _folder: Option<tempfile::TempDir>,
}

impl Mounted {
    /// Starts a server that prints a line beginning with `ready` or `mounted on` when it shows its files under the folder
    /// that `command` is given.
    pub(crate) fn start(command: impl FnOnce(&Path) -> Result<Command, String>) -> Result<Self, String> {
        let folder = scratch()?;
        let dir = folder.path().join("mnt");
        std::fs::create_dir(&dir).map_err(|e| cannot(&dir, &e))?;
        let mut command = command(&dir)?;
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| cannot(&command, &e))?;
        let mut out = BufReader::new(child.stdout.take().expect("piped above"));
        let mut line = String::new();
        let mut ready = false;
        while !ready && out.read_line(&mut line).map_err(|e| cannot(&command, &e))? > 0 {
            ready = line.starts_with("ready") || line.starts_with("mounted on ");
            line.clear();
        }
        // The pipe stays open: a server that says more must not find it closed.
        let this = Self { dir, server: Some((child, Some(out))), _folder: Some(folder) };
        if ready { Ok(this) } else { Err(format!("{command:?} ended before it was ready")) }
    }

    /// nbdfuse over nbdkit's memory, its file called `a`.
    pub(crate) fn nbdfuse(bytes: u64) -> Result<Self, String> {
        let folder = scratch()?;
        let (dir, pid) = (folder.path().join("mnt"), folder.path().join("pid"));
        std::fs::create_dir(&dir).map_err(|e| cannot(&dir, &e))?;
        let mut command = words("nbdfuse -P");
        command.arg(&pid).arg(dir.join("a")).args(["--command", "nbdkit", "-s", "memory"]);
        let child = command.arg(bytes.to_string()).spawn().map_err(|e| cannot(&command, &e))?;
        let mut this = Self { dir, server: Some((child, None)), _folder: Some(folder) };
        let begun = Instant::now();
        // It says so by a file and no otherwise. Its folder is not looked at before: that could hang.
        while !pid.exists() {
            if this.ended()? || begun.elapsed() > PATIENCE {
                return Err(format!("{command:?} did not begin"));
            }
            sleep(Duration::from_millis(10));
        }
        Ok(this)
    }

    /// A plain folder, to measure what is below a mount.
    pub(crate) fn nothing(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), server: None, _folder: None }
    }

    /// The file of this name.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn ended(&mut self) -> Result<bool, String> {
        let Some((child, _)) = &mut self.server else { return Ok(true) };
        Ok(child.try_wait().map_err(|e| cannot("a server", &e))?.is_some())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.server.is_none() {
            return;
        }
        // A server ends when it is unmounted from outside.
        let plain = if is_root() { "umount" } else { "fusermount3 -u" };
        let _ = output(words(plain).arg(&self.dir));
        let begun = Instant::now();
        while self.ended() == Ok(false) && begun.elapsed() < PATIENCE {
            sleep(Duration::from_millis(10));
        }
        if self.ended() == Ok(true) {
            return;
        }
        eprintln!("{}: the server did not end; killed", self.dir.display());
        if let Some((child, _)) = &mut self.server {
            // It has nothing to lose here.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = output(words(plain).arg("-l").arg(&self.dir));
    }
}

/// An XFS file system that can share extents, on a loop device.
pub(crate) struct Xfs {
    device: Option<String>,
    mounted: bool,
    folder: tempfile::TempDir,
}

impl Xfs {
    /// Makes one of so many bytes, sparse.
    pub(crate) fn make(bytes: u64) -> Result<Self, String> {
        let mut this = Self { device: None, mounted: false, folder: scratch()? };
        let image = this.folder.path().join("fs.img");
        output(words("truncate -s").arg(bytes.to_string()).arg(&image))?;
        let attach = output(words("losetup --find --show --direct-io=on").arg(&image))?;
        let device = attach.trim().to_owned();
        this.device = Some(device.clone());
        output(words("mkfs.xfs -q -m reflink=1").arg(&device))?;
        std::fs::create_dir(this.path()).map_err(|e| cannot(this.path(), &e))?;
        output(words("mount").arg(&device).arg(this.path()))?;
        this.mounted = true;
        Ok(this)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let mut steps = Vec::new();
        if self.mounted {
            steps.push(run(words("umount").arg(self.path())));
        }
        if let Some(device) = &self.device {
            steps.push(run(words("losetup -d").arg(device)));
        }
        for step in steps.iter().filter(|step| **step != Ok(true)) {
            eprintln!("could not be taken apart: {step:?}");
        }
    }
}

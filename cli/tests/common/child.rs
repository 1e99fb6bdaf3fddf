//! Servers of mounts: the command, or this test binary again with devices that the command has no name for.
//!
//! A mount is never served by the process that uses it: a page fault that waits for its own process waits for ever. And
//! it is watched: when nothing goes on for a while, the connection is aborted and the server killed, so that a hang is
//! a failure.

#![allow(dead_code)] // each test file uses a part of it

use crate::common::{BIN, sh};
use blkcopy::block::{Device, Kind as ErrorKind};
use blkcopy::drivers::mem::Mem;
use blkcopy::exports::fuse::{Mount, MountOptions, Serve, Volume};
use blkcopy::map::{LazyDevice, Linear};
use blkcopy::sim::{CopyBug, DelayDevice, ErrorDevice, Fault, FaultPlan, MiscopyDevice, Ops, VolatileDisk};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write as _};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Without a step for so long, a mount is taken to hang.
const PATIENCE: Duration = Duration::from_secs(120);
/// Names the variable that makes `mount_child` a server.
const SPEC: &str = "BLKCOPY_TEST_SERVER";

/// What a server of our own serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) dir: PathBuf,
    /// Size of each volume in bytes.
    pub(crate) size: u64,
    pub(crate) devices: Vec<Kind>,
    pub(crate) cache: bool,
    pub(crate) resizable: bool,
    /// Two readers and two copiers, however many cores there are.
    pub(crate) few: bool,
}

/// Sectors of the disks, in bytes.
pub(crate) const SECTOR: u64 = 512;
/// Shortest zeroes that are owed by test devices, in bytes: volumes are small.
const LAZY_MIN: u64 = 64 << 10;

/// A test device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Kind {
    Memory,
    /// Two memory devices in a row.
    Map,
    /// Memory with the bug of this place in `CopyBug::ALL`.
    Miscopying(usize),
    /// Memory that fails when told to; zeroes are owed.
    Failing,
    /// A disk with a volatile cache and sectors, that fails when told to; zeroes are owed.
    Disk,
    /// Memory, and as its second half memory that fails when told to.
    HalfFailing,
    /// Memory, and as its second half memory that takes requests and never answers.
    HalfStuck,
}

/// What a server can be told to do to its devices.
#[derive(Default)]
struct World {
    plan: Arc<FaultPlan>,
    fault: Option<Fault>,
    /// Operations counted and failed so far.
    seen: u64,
    fired: u64,
    disks: Vec<Arc<VolatileDisk>>,
    /// What the queues held is gone: the mount cannot end well.
    is_cut: bool,
}

impl World {
    /// Carries out a line; the answer.
    fn told(&mut self, mount: &mut Option<Mount>, line: &str) -> String {
        match *line.split(' ').collect::<Vec<_>>() {
            ["arm", op, nth, forever, good] => {
                let ops = match op {
                    "READ" => Ops::READ,
                    "WRITE" => Ops::WRITE,
                    "WRITE_ZEROES" => Ops::WRITE_ZEROES,
                    "FLUSH" => Ops::FLUSH,
                    "COPY" => Ops::COPY,
                    _ => Ops::ALL,
                };
                let number = |word: &str| word.parse().expect("a number");
                let (nth, good_bytes, forever) = (number(nth), number(good), forever == "true");
                self.fault = Some(Fault { ops, nth, forever, kind: ErrorKind::Io, good_bytes });
                (self.seen, self.fired) = (0, 0);
                self.resume();
                String::new()
            }
            ["pause"] => {
                self.seen += self.plan.seen();
                self.fired += self.plan.fired();
                self.hold();
                self.fired.to_string()
            }
            ["resume"] => {
                self.resume();
                String::new()
            }
            ["durable", file] => self.dump(file, VolatileDisk::durable),
            ["cut", seed, file] => {
                self.disks.iter().for_each(|disk| disk.power_cut(seed.parse().expect("a number")));
                self.is_cut = true;
                self.dump(file, VolatileDisk::contents)
            }
            ["stop", file] => {
                let stopped = mount.take().expect("it is stopped once").stop();
                self.dump(file, VolatileDisk::durable);
                format!("{stopped:?}")
            }
            _ => panic!("not a thing to do: {line}"),
        }
    }

    fn resume(&self) {
        match self.fault {
            Some(fault) if self.fired == 0 => {
                self.plan.arm(Fault { nth: fault.nth.saturating_sub(self.seen), ..fault });
            }
            Some(fault) if fault.forever => self.plan.arm(Fault { nth: 1, ..fault }),
            _ => self.hold(),
        }
    }

    /// Fails nothing, and begins its numbers anew.
    fn hold(&self) {
        self.plan.arm(Fault::nth(u64::MAX));
        self.plan.disarm();
    }

    fn dump(&self, file: &str, what: impl Fn(&VolatileDisk) -> Vec<u8>) -> String {
        for (i, disk) in self.disks.iter().enumerate() {
            std::fs::write(format!("{file}.{i}"), what(disk)).expect("a file of the test");
        }
        String::new()
    }
}

impl Kind {
    fn open(self, name: &str, size: u64, world: &mut World) -> Arc<dyn Device> {
        let mem = |name: &str, size| -> Arc<dyn Device> {
            Arc::new(Mem::new(name, size, NonZeroU32::MIN).expect("a size of a test"))
        };
        // As the command has it: every leaf may owe zeroes.
        let blank = |leaf| -> Arc<dyn Device> { LazyDevice::with_lazy_min(leaf, LAZY_MIN).expect("a leaf") };
        let halves = |second| -> Arc<dyn Device> {
            let legs = [blank(mem("first", size / 2)), blank(second)];
            Arc::new(Linear::new(name, legs).expect("two legs of memory"))
        };
        match self {
            Self::Memory => mem(name, size),
            Self::Map => {
                // The border lies inside a block of the page cache.
                let first = size / 2 + 512;
                let legs = [mem("first", first), mem("second", size - first)];
                Arc::new(Linear::new(name, legs).expect("two legs of memory"))
            }
            Self::Miscopying(bug) => Arc::new(MiscopyDevice::new(mem(name, size), CopyBug::ALL[bug])),
            Self::Failing => blank(Arc::new(ErrorDevice::new(mem(name, size), world.plan.clone()))),
            Self::Disk => {
                let sector = NonZeroU32::new(512).expect("not zero");
                let disk = Arc::new(VolatileDisk::new(name, size, sector).expect("whole sectors"));
                world.disks.push(disk.clone());
                blank(Arc::new(ErrorDevice::new(disk, world.plan.clone())))
            }
            Self::HalfFailing => {
                halves(Arc::new(ErrorDevice::new(mem("second", size / 2), world.plan.clone())))
            }
            Self::HalfStuck => halves(Arc::new(DelayDevice::new(mem("second", size / 2), 1, u64::MAX - 1))),
        }
    }

    fn serve(self) -> Serve {
        if self == Self::HalfStuck { Serve::MayBlock } else { Serve::AtOnce }
    }
}

/// Serves what the variable says until standard input ends; at once back without the variable.
pub(crate) fn serve_if_asked() {
    let Some(spec) = std::env::var_os(SPEC) else { return };
    let spec: Spec = serde_json::from_slice(spec.as_encoded_bytes()).expect("written by `own`");
    let mut world = World::default();
    let volume = |(i, kind): (usize, &Kind)| {
        let name = format!("vol{i}");
        let device = kind.open(&name, spec.size, &mut world);
        Volume { name, device, read_only: false, serve: kind.serve() }
    };
    let volumes = spec.devices.iter().enumerate().map(volume).collect();
    let mut options =
        MountOptions { cache: spec.cache, resizable: spec.resizable, ..MountOptions::default() };
    if spec.few {
        (options.readers, options.workers) = (2, 2);
    }
    let mut mount = Some(Mount::start(&spec.dir, volumes, options).expect("the mount begins"));
    println!("\nmounted on {}", spec.dir.display());
    std::io::stdout().flush().expect("the parent reads");
    // It ends with the parent, however that ends.
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let answer = world.told(&mut mount, &line);
        println!("answer {answer}");
        std::io::stdout().flush().expect("the parent reads");
    }
    if let Some(stopped) = mount.map(Mount::stop) {
        assert!(stopped.is_ok() || world.is_cut, "the volumes are not flushed: {stopped:?}");
    }
}

/// A server in another process.
pub(crate) struct Server {
    child: Child,
    tells: Mutex<mpsc::Receiver<String>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.end() {
            eprintln!("the server {} does not end; killed", self.child.id());
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Server {
    /// Starts it; the lines it prints up to one that begins with `ready`.
    fn start(mut command: Command, ready: &str) -> (Self, Vec<String>) {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let (told, tells) = mpsc::channel();
        let mut this = Self { child: command.spawn().expect("a server starts"), tells: Mutex::new(tells) };
        let out = this.child.stdout.take().expect("piped above");
        // Reads on to the end, so that the server never waits for a reader.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        let mut lines = Vec::new();
        loop {
            let told = this.tells.lock().expect("nobody panics with it").recv_timeout(PATIENCE);
            match told {
                Ok(line) => lines.push(line),
                Err(e) => panic!("{command:?} is not ready: {e}; it said {lines:#?}"),
            }
            if lines.last().is_some_and(|l| l.starts_with(ready)) {
                return (this, lines);
            }
        }
    }

    /// Has a server of our own do something (`World::told`); what it answers.
    fn ask(&self, line: &str) -> String {
        let tells = self.tells.lock().expect("nobody panics with it");
        let mut to = self.child.stdin.as_ref().expect("it is not asked to end yet");
        writeln!(to, "{line}").expect("the server lives");
        loop {
            match tells.recv_timeout(PATIENCE) {
                Ok(said) => match said.strip_prefix("answer ") {
                    Some(answer) => return answer.to_owned(),
                    None => eprintln!("{said}"),
                },
                Err(e) => panic!("{line}: no answer: {e}"),
            }
        }
    }

    /// Asks it to end; true when it has.
    fn end(&mut self) -> bool {
        drop(self.child.stdin.take());
        let _ = sh(&format!("kill -TERM {} 2>/dev/null", self.child.id()));
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                _ => return true,
            }
        }
        false
    }
}

/// A mount, its server, and who watches both.
pub(crate) struct Mounted {
    pub(crate) dir: PathBuf,
    pub(crate) beat: Arc<AtomicU64>,
    /// Of the same volumes as namespaces, when they are.
    pub(crate) urls: Vec<String>,
    said: Vec<String>,
    over: Arc<AtomicBool>,
    watch: Option<std::thread::JoinHandle<()>>,
    server: Option<Server>,
    _folder: TempDir,
}

impl Mounted {
    /// Says that the test goes on.
    pub(crate) fn step(&self) {
        self.beat.fetch_add(1, Ordering::Relaxed);
    }

    /// Has a server of our own do something; what it answers.
    pub(crate) fn ask(&self, line: &str) -> String {
        self.step();
        self.server.as_ref().expect("there until it is dropped").ask(line)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.as_ref().expect("there until it is dropped").child.id()
    }

    /// Ends the server as it stands: whoever waits for it gets an error.
    pub(crate) fn kill(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.child.kill();
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The watch stays until the server has ended: unmounting may hang too.
        drop(self.server.take());
        self.over.store(true, Ordering::Relaxed);
        if let Some(watch) = self.watch.take() {
            watch.thread().unpark();
            let _ = watch.join();
        }
        let _ = sh(&format!("mountpoint -q {0} && umount -l {0}", self.dir.display()));
    }
}

/// Mounts by the command: `NAME=DEV` words.
pub(crate) fn by_command(devices: &[String], cache: bool) -> Mounted {
    by_engine(devices, cache, "auto")
}

/// The same with an engine of one's choice.
pub(crate) fn by_engine(devices: &[String], cache: bool, engine: &str) -> Mounted {
    let folder = crate::common::folder();
    let dir = folder.path().join("m");
    std::fs::create_dir(&dir).expect("a new folder");
    let mut command = Command::new(BIN);
    command.arg("mount").args(cache.then_some("--cache")).args(["--io-engine", engine]);
    command.arg(&dir).args(devices);
    watched(folder, dir, command, "mounted on ")
}

/// Mounts by `serve`, so that NVMe hosts have the same volumes: `NAME=DEV` words.
pub(crate) fn by_serve(devices: &[String], cache: bool) -> Mounted {
    let folder = crate::common::folder();
    let dir = folder.path().join("m");
    std::fs::create_dir(&dir).expect("a new folder");
    let mut command = Command::new(BIN);
    command.args(["serve", "--listen", "127.0.0.1:0", "--nqn", NQN, "--mount"]).arg(&dir);
    command.args(cache.then_some("--cache")).args(devices);
    let mut mounted = watched(folder, dir, command, "listening on ");
    mounted.urls = urls(&mounted.said, devices.len());
    mounted
}

/// Mounts by this binary, whose test `mount_child` calls [`serve_if_asked`].
pub(crate) fn own(size: u64, devices: &[Kind], cache: bool, resizable: bool) -> Mounted {
    started(Spec { dir: PathBuf::new(), size, devices: devices.to_vec(), cache, resizable, few: false })
}

/// The same with the fewest readers, and two copiers.
pub(crate) fn own_few(size: u64, devices: &[Kind]) -> Mounted {
    let devices = devices.to_vec();
    started(Spec { dir: PathBuf::new(), size, devices, cache: false, resizable: false, few: true })
}

fn started(mut spec: Spec) -> Mounted {
    let folder = crate::common::folder();
    let dir = folder.path().join("m");
    std::fs::create_dir(&dir).expect("a new folder");
    spec.dir.clone_from(&dir);
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["mount_child", "--exact", "--nocapture"]);
    command.env(SPEC, serde_json::to_string(&spec).expect("plain data"));
    watched(folder, dir, command, "mounted on ")
}

fn watched(folder: TempDir, dir: PathBuf, command: Command, ready: &str) -> Mounted {
    let (server, said) = Server::start(command, ready);
    let connection = connection(&dir);
    let (beat, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (pid, seen, ends) = (server.child.id(), beat.clone(), over.clone());
    let watch = std::thread::spawn(move || {
        let (mut last, mut since) = (0, Instant::now());
        while !ends.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_secs(1));
            let now = seen.load(Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > PATIENCE {
                eprintln!("nothing goes on at step {now}: the mount is aborted, its server killed");
                let _ = sh(&format!("echo 1 > {connection}/abort; kill -KILL {pid}"));
                return;
            }
        }
    });
    Mounted {
        dir,
        beat,
        said,
        urls: Vec::new(),
        over,
        watch: Some(watch),
        server: Some(server),
        _folder: folder,
    }
}

/// Where the kernel lets a mount's connection be aborted; found without asking the mount.
fn connection(dir: &Path) -> String {
    let control = "/sys/fs/fuse/connections";
    let _ = sh(&format!("mountpoint -q {control} || mount -t fusectl none {control}"));
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("there is a /proc");
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    // Fields: number, parent, major:minor, root, mount point (proc_pid_mountinfo(5)).
    let line = table.lines().find(|l| l.split(' ').nth(4) == dir.to_str());
    let device = line.and_then(|l| l.split(' ').nth(2)).unwrap_or_default();
    format!("{control}/{}", device.split(':').nth(1).unwrap_or("none"))
}

/// A target over NVMe/TCP with `count` namespaces of memory, and their names.
pub(crate) fn target(count: usize, size: u64) -> (Server, Vec<String>) {
    let mut command = Command::new(BIN);
    command.args(["serve", "--listen", "127.0.0.1:0", "--nqn", NQN]);
    command.args((0..count).map(|_| format!("mem:{size}")));
    let (server, lines) = Server::start(command, "listening on ");
    let urls = urls(&lines, count);
    (server, urls)
}

const NQN: &str = "nqn.2014-08.org.example:exerciser";

/// The names of the first namespaces of a target, from what it said last.
fn urls(said: &[String], count: usize) -> Vec<String> {
    let line = said.last().expect("one at least");
    let address = line.strip_prefix("listening on ").and_then(|l| l.split_once(": ")).expect("an address").0;
    (1..=count).map(|nsid| format!("nvme-tcp://{address}/{NQN}?nsid={nsid}")).collect()
}

/// Why nothing can be mounted here.
pub(crate) fn mounts_or_why() -> Result<(), String> {
    if let Err(e) = std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        return Err(format!("/dev/fuse: {e}"));
    }
    if sh("id -u")? != "0" && sh("command -v fusermount3").is_err() {
        return Err("not root, and no fusermount3".to_owned());
    }
    Ok(())
}

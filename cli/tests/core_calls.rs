//! A thread that serves several devices makes no system call that may wait for one of them: a daemon is traced while it
//! does everything it can, and every call of such a thread must stand on a list.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod common;

use blkcopy::sys::blkcopy::{Entry, blkcopy as blkcopy_ioctl};
use common::{BIN, KIB, MIB, Undo, attach, blkcopy, bytes, folder, loops_or_why, sh, skip};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2014-08.org.example:calls";
/// `O_DSYNC` of Linux.
const DSYNC: i32 = 0o10000;
/// A hang guard.
const PATIENCE: Duration = Duration::from_secs(120);

/// Threads that serve several devices, by how their names begin.
const CORES: [&str; 2] = ["blkcopy-core-", "blkcopy-work-"];

/// Calls that wait for nothing but what such a thread may wait for: its events, its sockets, memory, other threads'
/// short work.
const MAY: [&str; 48] = [
    "io_uring_enter",
    "io_uring_setup",
    "io_uring_register",
    "futex",
    "poll",
    "ppoll",
    "epoll_wait",
    "epoll_pwait",
    "clock_nanosleep",
    "nanosleep",
    "restart_syscall",
    "sched_yield",
    "clock_gettime",
    "gettimeofday",
    "eventfd2",
    "mmap",
    "munmap",
    "mremap",
    "madvise",
    "mprotect",
    "brk",
    "rt_sigprocmask",
    "rt_sigaction",
    "rt_sigreturn",
    "sigaltstack",
    "prctl",
    "clone",
    "clone3",
    "rseq",
    "set_robust_list",
    "gettid",
    "getpid",
    "sched_getaffinity",
    "getrandom",
    "exit",
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "accept4",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "getsockname",
    "getpeername",
    "socket",
    "cachestat",
    "syscall_0x1c3",
];

/// Whether a thread that serves several devices may make the call. The arguments are as strace prints them with `-y`
/// (`-yy` asks the mount about its files, and waits).
fn may(call: &str, arguments: &str) -> bool {
    let first = arguments.split(',').next().unwrap_or_default();
    let waits_for_no_device = ["anon_inode:", "socket:", "/dev/fuse"].iter().any(|k| first.contains(k));
    match call {
        // Only what lies in the page cache.
        "preadv2" => arguments.contains("RWF_NOWAIT"),
        // A file of a local file system, open already: its inode is in memory. Queues flush through an open of their
        // own.
        "open" | "openat" => arguments.contains("\"/proc/self/fd/"),
        // Whether a descriptor is open: the standard library asks before it closes one, in debug builds.
        "fcntl" => waits_for_no_device || arguments.contains("F_GETFD"),
        "read" | "write" | "readv" | "writev" | "close" | "ioctl" => waits_for_no_device,
        call => MAY.contains(&call),
    }
}

/// Calls of threads that serve several devices which they may not make, with how often and an example; and how many
/// calls of such threads there were, by thread.
fn look(trace: &str) -> (BTreeMap<String, (usize, String)>, BTreeMap<String, usize>) {
    let mut names: HashMap<&str, String> = HashMap::new();
    let (mut wrong, mut seen) = (BTreeMap::new(), BTreeMap::new());
    // By thread: a call that had not ended when another thread's was printed.
    let mut begun: HashMap<&str, String> = HashMap::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ').map(|(thread, rest)| (thread, rest.trim_start()))
        else {
            continue;
        };
        if call.starts_with("+++") || call.starts_with("---") {
            continue;
        }
        if let Some(front) = call.strip_suffix("<unfinished ...>") {
            begun.insert(thread, front.to_owned());
            continue;
        }
        let resumed = call.strip_prefix("<... ").and_then(|rest| rest.split_once("resumed>"));
        let whole = match resumed {
            Some((_, rest)) => begun.remove(thread).unwrap_or_default() + rest,
            None => call.to_owned(),
        };
        let Some((name, arguments)) = whole.split_once('(') else { continue };
        if let Some(named) = arguments.strip_prefix("PR_SET_NAME, \"") {
            names.insert(thread, named.split('"').next().unwrap_or_default().to_owned());
        }
        let Some(of) = names.get(thread).filter(|n| CORES.iter().any(|core| n.starts_with(core))) else {
            continue;
        };
        *seen.entry(of.clone()).or_insert(0) += 1;
        if !may(name, arguments) {
            let entry = wrong.entry(format!("{of}: {name}")).or_insert((0, whole.clone()));
            entry.0 += 1;
        }
    }
    (wrong, seen)
}

#[test]
fn the_list_tells_calls_on_devices_from_others() {
    let trace = "\
10 prctl(PR_SET_NAME, \"blkcopy-core-0\") = 0
11 prctl(PR_SET_NAME, \"blkcopy-helper\") = 0
11 pread64(7</tmp/a>, \"x\", 1, 0) = 1
10 preadv2(7</tmp/a>, [{iov_base=\"x\", iov_len=1}], 1, 0, RWF_NOWAIT) = 1
10 read(5<anon_inode:[eventfd]>, \"x\", 8) = 8
10 futex(0x7f, FUTEX_WAIT <unfinished ...>
10 <... futex resumed>) = 0
10 preadv2(7</tmp/a>,  <unfinished ...>
10 <... preadv2 resumed>[{iov_base=\"x\", iov_len=1}], 1, 0, RWF_NOWAIT) = 1
10 preadv2(7</tmp/a>, [{iov_base=\"x\", iov_len=1}], 1, 0, 0) = 1
10 close(7</tmp/a>) = 0
10 fstat(7</tmp/a>, {st_mode=S_IFREG|0644, st_size=1, ...}) = 0
";
    let (wrong, seen) = look(trace);
    let calls: Vec<&str> = wrong.keys().map(String::as_str).collect();
    assert_eq!(calls, ["blkcopy-core-0: close", "blkcopy-core-0: fstat", "blkcopy-core-0: preadv2"]);
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [("blkcopy-core-0".to_owned(), 8)]);
}

/// A daemon under strace, which is its parent's child no more: its own process is this one's.
struct Traced {
    child: Child,
    dir: PathBuf,
    address: String,
}

impl Traced {
    fn start(trace: &Path, dir: &Path, engine: &str, devices: &[String]) -> Self {
        let mut command = Command::new("strace");
        command.args(["-D", "-f", "-qq", "-y", "-s", "32", "-o"]).arg(trace).arg(BIN);
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--nqn",
            NQN,
            "--cores",
            "2",
            "--io-engine",
            engine,
            "--mount",
        ]);
        command.arg(dir).args(devices).stdout(Stdio::piped()).stdin(Stdio::null()).env_remove("BLKCOPY_LOG");
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = lines
            .map_while(Result::ok)
            .find_map(|line| Some(line.strip_prefix("listening on ")?.split_once(": ")?.0.to_owned()));
        let mut traced = Self { child, dir: dir.to_owned(), address: String::new() };
        traced.address = listening.expect("it listens");
        traced
    }

    fn stop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if begun.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = sh(&format!("mountpoint -q {0} && umount -l {0}", self.dir.display()));
    }
}

/// One client of the mount: each kind of call, on two volumes.
fn use_mount(dir: &Path, one: &str, other: &str, seed: u64) {
    let open = |name: &str, flags| {
        File::options().read(true).write(true).custom_flags(flags).open(dir.join(name)).unwrap()
    };
    let (a, b, durable) = (open(one, 0), open(other, 0), open(one, DSYNC));
    let at = seed * 2 * MIB;
    for (offset, len) in [(0, 64 * KIB), (MIB, 4 * KIB), (MIB + 4 * KIB, MIB / 2), (100, 700)] {
        let bytes = bytes(len as usize, seed);
        a.write_all_at(&bytes, at + offset).unwrap();
        let mut seen = vec![0; bytes.len()];
        a.read_exact_at(&mut seen, at + offset).unwrap();
        assert!(seen == bytes);
    }
    durable.write_all_at(&bytes(8192, 1), at + MIB).unwrap();
    a.metadata().unwrap();
    fallocate(&a, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at + MIB, 64 * KIB).unwrap();
    let _ = fallocate(&a, FallocateFlags::empty(), at, 4096);
    for len in [4 * KIB, MIB, MIB + 1000] {
        let (mut from, mut to) = (at, at);
        rustix::fs::copy_file_range(&a, Some(&mut from), &b, Some(&mut to), len as usize).unwrap();
    }
    let entries = [Entry::new(at, at + MIB + MIB / 2, 64 * KIB)];
    let _ = blkcopy_ioctl(&a, &mut entries.to_vec());
    let _ = seek(&a, SeekFrom::Hole(at));
    let _ = seek(&b, SeekFrom::Data(at));
    a.sync_all().unwrap();
    b.sync_data().unwrap();
    rustix::fs::statvfs(dir).unwrap();
    // The second volume is cut and is as long again, its zeroes owed; then they are stored.
    b.set_len(30 * MIB).unwrap();
    b.sync_all().unwrap();
}

#[test]
fn threads_that_serve_several_devices_make_no_call_that_may_wait_for_one() {
    let test = "threads_that_serve_several_devices_make_no_call_that_may_wait_for_one";
    if let Err(why) = sh("command -v strace").map_err(|_| "no strace".to_owned()).and_then(|_| loops_or_why())
    {
        return skip(test, &why);
    }
    if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return skip(test, "no /dev/fuse");
    }
    for engine in ["auto", "pool"] {
        let folder = folder();
        let here = folder.path();
        let mut undo = Undo::default();
        for name in ["a", "b", "disk"] {
            File::create(here.join(name)).unwrap().set_len(32 * MIB).unwrap();
        }
        let disk = match attach(&mut undo, &here.join("disk")) {
            Ok(disk) => disk,
            Err(why) => return skip(test, &why),
        };
        let dir = here.join("m");
        std::fs::create_dir(&dir).unwrap();
        let devices = [
            format!("a={}", here.join("a").display()),
            format!("b={}", here.join("b").display()),
            format!("disk={}", disk.display()),
            "mem=mem:32MiB".to_owned(),
        ];
        let trace = here.join("trace");
        let mut daemon = Traced::start(&trace, &dir, engine, &devices);
        std::thread::scope(|scope| {
            for (seed, (one, other)) in
                (0..).zip([("a", "b"), ("b", "disk"), ("disk", "mem"), ("mem", "a"), ("a", "b")])
            {
                let dir = &dir;
                scope.spawn(move || use_mount(dir, one, other, seed));
            }
        });
        // Each namespace onto the next, twice as many connections as cores, and back out.
        let url = |nsid: u32| format!("nvme-tcp://{}/{NQN}?nsid={nsid}", daemon.address);
        for (from, to) in [(1, 2), (2, 3), (3, 4), (4, 1)] {
            for more in [&[][..], &["--offload", "never"][..]] {
                let (from, to) = (url(from), url(to));
                let ran = blkcopy(here, &[&["cp", "--yes", &from, &to][..], more].concat());
                assert_eq!(ran.code, Some(0), "{ran:?}");
            }
        }
        let ran = blkcopy(here, &["cp", "--yes", &url(1), "out"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        daemon.stop();
        let trace = std::fs::read_to_string(&trace).unwrap();
        let (wrong, seen) = look(&trace);
        assert!(wrong.is_empty(), "{engine}: {wrong:#?}");
        for core in ["blkcopy-core-0", "blkcopy-core-1", "blkcopy-work-0", "blkcopy-work-1"] {
            assert!(
                seen.get(core).is_some_and(|&n| n > 20),
                "{engine}: {core} was not seen at work: {seen:?}"
            );
        }
        drop(undo);
    }
}

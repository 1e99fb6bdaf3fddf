//! Which system calls the threads of this process are waiting in, for the words that are said when something does not
//! end.

use crate::lines;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How far apart two looks are that must see the same call: what goes on in between is not stuck.
const LOOK_APART: Duration = Duration::from_millis(40);
/// How long looking may take.
const LOOK_PATIENCE: Duration = Duration::from_millis(250);
/// Calls named in one message.
const NAMED_MAX: usize = 4;
/// Longest path read from our own memory, in bytes.
const PATH_BYTES_MAX: usize = 256;

/// A call that a thread is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    thread: u32,
    name: String,
    /// As in `/proc/PID/stat`: D is uninterruptible.
    state: char,
    number: Option<i64>,
    args: [u64; 3],
    /// Where in the kernel, where that may be seen.
    place: String,
}

macro_rules! names {
    ($($name:ident),+ $(,)?) => {
        [$((libc::$name, stringify!($name))),+]
    };
}

/// The calls that touch files, devices, sockets and mounts; their names begin with `SYS_`.
const NAMES: [(libc::c_long, &str); 47] = names![
    SYS_read,
    SYS_write,
    SYS_pread64,
    SYS_pwrite64,
    SYS_readv,
    SYS_writev,
    SYS_preadv,
    SYS_pwritev,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_openat,
    SYS_close,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_lseek,
    SYS_fsync,
    SYS_fdatasync,
    SYS_sync_file_range,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_copy_file_range,
    SYS_ioctl,
    SYS_flock,
    SYS_fcntl,
    SYS_fadvise64,
    SYS_renameat2,
    SYS_unlinkat,
    SYS_umount2,
    SYS_mount,
    SYS_getdents64,
    SYS_readlinkat,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_connect,
    SYS_sendto,
    SYS_sendmsg,
    SYS_wait4,
    SYS_waitid,
    SYS_munmap,
    SYS_exit_group,
    SYS_statfs,
    SYS_fstatfs,
    SYS_getxattr,
    SYS_fgetxattr,
    SYS_linkat,
    SYS_fchmod,
];
/// The same, on machines that have the older forms too.
#[cfg(target_arch = "x86_64")]
const OLD_NAMES: [(libc::c_long, &str); 11] = names![
    SYS_open,
    SYS_stat,
    SYS_lstat,
    SYS_access,
    SYS_rename,
    SYS_unlink,
    SYS_readlink,
    SYS_mkdir,
    SYS_rmdir,
    SYS_link,
    SYS_chmod,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_NAMES: [(libc::c_long, &str); 0] = [];
/// Calls in which a thread waits for another thread, the clock or a peer: not stuck.
const IDLE: [libc::c_long; 12] = [
    libc::SYS_futex,
    libc::SYS_ppoll,
    libc::SYS_epoll_pwait,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_io_uring_enter,
    libc::SYS_restart_syscall,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_epoll_pwait2,
];
/// The older forms of two of them.
#[cfg(target_arch = "x86_64")]
const OLD_IDLE: [libc::c_long; 4] = [libc::SYS_poll, libc::SYS_epoll_wait, libc::SYS_select, libc::SYS_pause];
#[cfg(not(target_arch = "x86_64"))]
const OLD_IDLE: [libc::c_long; 0] = [];
/// Calls whose first argument is a path, and those whose second is.
const PATH_FIRST: [libc::c_long; 4] =
    [libc::SYS_umount2, libc::SYS_statfs, libc::SYS_getxattr, libc::SYS_mount];
const PATH_SECOND: [libc::c_long; 10] = [
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_linkat,
    libc::SYS_fchmodat,
];

/// The calls that other threads of this process are in now and were in a moment ago, stuck ones first; none when even
/// that takes long: a thread may hang with what looking at others needs.
pub(crate) fn calls() -> Vec<Call> {
    let (told, tells) = std::sync::mpsc::channel();
    let looks = move || drop(told.send(look_twice()));
    if std::thread::Builder::new().name("blkcopy-std-looks".into()).spawn(looks).is_err() {
        return Vec::new();
    }
    tells.recv_timeout(LOOK_PATIENCE).unwrap_or_default()
}

fn look_twice() -> Vec<Call> {
    let before = look();
    std::thread::sleep(LOOK_APART);
    let mut now = look();
    now.retain(|call| before.contains(call));
    now.sort_by_key(|call| call.state != 'D');
    now
}

/// Those calls in words: "fsync of /mnt/a.img (uninterruptible, in folio_wait_writeback)".
pub(crate) fn words(calls: &[Call]) -> String {
    let mut words: Vec<String> = Vec::new();
    for call in calls {
        let text = call.words();
        if !words.contains(&text) {
            words.push(text);
        }
    }
    let more = words.len().saturating_sub(NAMED_MAX);
    words.truncate(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    words.join(", ") + &more
}

/// System calls that write and bytes given to storage by this process so far, those of its own lines apart.
pub(crate) fn written() -> (u64, u64) {
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let number =
        |key: &str| io.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0);
    (number("syscw:").saturating_sub(lines::WRITES.load(Ordering::Relaxed)), number("write_bytes:"))
}

fn look() -> Vec<Call> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let own = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    let numbers = threads.flatten().filter_map(|t| t.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|&thread| thread != own).filter_map(Call::of).filter(|call| !call.is_idle()).collect()
}

impl Call {
    fn of(thread: u32) -> Option<Self> {
        let read = |what: &str| fs::read_to_string(format!("/proc/self/task/{thread}/{what}")).ok();
        let stat = read("stat")?;
        // The name stands in parentheses and may hold some itself.
        let (front, rest) = stat.rsplit_once(')')?;
        let name = front.split_once('(')?.1.to_owned();
        let state = rest.trim_start().chars().next()?;
        let syscall = read("syscall").unwrap_or_default();
        let mut words = syscall.split_ascii_whitespace();
        let number = words.next().and_then(|n| n.parse().ok()).filter(|&n| n >= 0);
        let mut arg = || words.next().and_then(|w| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok());
        let args = [arg(), arg(), arg()].map(Option::unwrap_or_default);
        let place = read("wchan").unwrap_or_default().trim().to_owned();
        Some(Self { thread, name, state, number, args, place })
    }

    /// True for a thread that runs, or waits where threads wait that have nothing to do.
    fn is_idle(&self) -> bool {
        if self.state == 'D' {
            return false;
        }
        // Not asleep; a worker of the kernel's rings without work; our own two that write lines.
        if self.state != 'S' || self.name.starts_with("iou-") || self.name.starts_with("blkcopy-std") {
            return true;
        }
        let Some(number) = self.number else { return true };
        if IDLE.contains(&number) || OLD_IDLE.contains(&number) {
            return true;
        }
        // Whoever reads the next request or signal has nothing to do.
        let waits = |link: String| {
            ["/dev/fuse", "anon_inode:", "socket:", "pipe:"].iter().any(|w| link.starts_with(w))
        };
        number == libc::SYS_read && self.file(0).is_some_and(waits)
    }

    /// What the descriptor in an argument leads to. Asks no file system.
    fn file(&self, arg: usize) -> Option<String> {
        let fd = i32::try_from(self.args[arg]).ok()?;
        let link = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        Some(link.to_string_lossy().into_owned())
    }

    /// The path in an argument; the thread is in the call, so it is still there.
    fn path(&self, arg: usize) -> Option<String> {
        let memory = fs::File::open("/proc/self/mem").ok()?;
        let mut bytes = [0; PATH_BYTES_MAX];
        let len = memory.read_at(&mut bytes, self.args[arg]).ok()?;
        let path = bytes[..len].split(|&b| b == 0).next()?;
        (!path.is_empty()).then(|| String::from_utf8_lossy(path).into_owned())
    }

    fn words(&self) -> String {
        let all = || NAMES.iter().chain(&OLD_NAMES);
        let known = self.number.and_then(|n| all().find(|(number, _)| *number == n));
        let name = match (known, self.number) {
            _ if self.name.starts_with("iou-") => "an io_uring request".to_owned(),
            (Some((_, name)), _) => name.trim_start_matches("SYS_").to_owned(),
            (None, Some(number)) => format!("system call {number}"),
            (None, None) => "a system call".to_owned(),
        };
        let number = self.number.filter(|_| !self.name.starts_with("iou-"));
        let what = match number {
            Some(n) if PATH_FIRST.contains(&n) || OLD_NAMES.iter().any(|(old, _)| *old == n) => self.path(0),
            Some(n) if PATH_SECOND.contains(&n) => self.path(1).or_else(|| self.file(0)),
            Some(n) if n == libc::SYS_copy_file_range => self.file(2),
            Some(_) => self.file(0),
            None => None,
        };
        let mut text = name;
        if let Some(what) = what {
            text += &format!(" of {}", what.escape_debug());
        }
        let place = if self.place.is_empty() || self.place == "0" {
            String::new()
        } else {
            format!("in {}", self.place)
        };
        match (self.state, place.is_empty()) {
            ('D', true) => text + " (uninterruptible)",
            ('D', false) => text + &format!(" (uninterruptible, {place})"),
            (_, true) => text,
            (_, false) => text + &format!(" ({place})"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed unwrap is a failed test
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    //= promise signals
    #[test]
    fn a_thread_that_waits_for_a_file_is_named_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        let theirs = fifo.clone();
        let waits = std::thread::spawn(move || fs::read(theirs));
        let named = format!(" of {}", fifo.display());
        let begun = std::time::Instant::now();
        let words = loop {
            let words = words(&calls());
            if words.contains(&named) || begun.elapsed() > Duration::from_secs(20) {
                break words;
            }
        };
        // A reader is there, so this does not wait; closed again, the reader ends.
        drop(rustix::fs::open(&fifo, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).unwrap());
        waits.join().unwrap().unwrap();
        assert!(words.contains(&named), "{words}");
    }

    #[test]
    fn a_thread_that_waits_for_another_is_not_stuck() {
        let (told, tells) = std::sync::mpsc::channel::<()>();
        let waits =
            std::thread::Builder::new().name("only-waits".into()).spawn(move || tells.recv()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(calls().iter().all(|call| call.name != "only-waits"));
        drop(told);
        let _ended = waits.join().unwrap();
    }
}

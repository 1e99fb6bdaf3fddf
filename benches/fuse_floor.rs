//! The FUSE servers that `cargo xtask bench mount` compares with: what a request costs when the server does next to
//! nothing.
//!
//! `fuse_floor empty|minimal DIR THREADS SIZE [WORD,..]`: mounts files `a` and `b` of SIZE bytes, prints `ready`
//! and serves until it is unmounted. `empty` answers every request at once and moves nothing. `minimal` keeps both
//! files in memory and moves bytes once. Words: `clone` (a descriptor of /dev/fuse for each thread), `nokillpriv`
//! (the kernel, not the server, looks after set-user-id and capabilities), `xattr` (answers "no such attribute"
//! rather than "no attributes here", as a server that has some must; the kernel remembers only the second), `cache`
//! (through the page cache).

mod common;

use fuser::{
    BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, Session, TimeOrNow, WriteFlags,
};
use std::error::Error;
use std::ffi::OsStr;
use std::io;
use std::sync::RwLock;
use std::time::{Duration, SystemTime};

const USAGE: &str = "usage: fuse_floor empty|minimal DIR THREADS SIZE [WORD,..]";
/// The kernel asks once.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);
/// Bytes under one lock. A request of a benchmark lies within one, and two rarely meet there.
const STRIPE: usize = 64 << 10;

struct Floor {
    size: u64,
    /// By inode, 2 and 3; without stripes when the server is empty.
    files: [Vec<RwLock<Box<[u8]>>>; 2],
    /// What an empty server says it read.
    zeroes: Vec<u8>,
    kill_priv: bool,
    xattr: bool,
    cache: bool,
}

impl Floor {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o755, 0),
            _ => (FileType::RegularFile, 0o600, self.size),
        };
        let epoch = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The stripes of a file; none when this server is empty or has no such file.
    fn stripes(&self, ino: INodeNo) -> &[RwLock<Box<[u8]>>] {
        usize::try_from(ino.0).ok().and_then(|n| self.files.get(n.wrapping_sub(2))).map_or(&[], |f| f)
    }
}

/// Stripe, and place in it, of an offset.
fn place(offset: u64) -> (usize, usize) {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    (offset / STRIPE, offset % STRIPE)
}

impl Filesystem for Floor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        if self.kill_priv {
            wanted |= InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        }
        // An older kernel has fewer; the benchmark goes on with those it has.
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = match name.to_str() {
            Some("a") if parent == INodeNo::ROOT => 2,
            Some("b") if parent == INodeNo::ROOT => 3,
            _ => return reply.error(Errno::ENOENT),
        };
        reply.entry(&FOR_EVER, &self.attr(INodeNo(ino)), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &self.attr(ino));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&FOR_EVER, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        let flags = if self.cache { FopenFlags::empty() } else { direct };
        reply.opened(FileHandle(0), flags | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.size.saturating_sub(offset));
        let len = usize::try_from(len).unwrap_or(0);
        let (stripe, within) = place(offset);
        let stripes = self.stripes(ino);
        match stripes.get(stripe) {
            None => reply.data(&self.zeroes[..len]),
            // The kernel takes the bytes from where they are: not even a copy in this process.
            Some(bytes) if within + len <= STRIPE => {
                let bytes = bytes.read().unwrap_or_else(|e| e.into_inner());
                reply.data(&bytes[within..within + len]);
            }
            Some(_) => {
                let mut all = Vec::with_capacity(len);
                for (n, bytes) in stripes[stripe..].iter().enumerate() {
                    let bytes = bytes.read().unwrap_or_else(|e| e.into_inner());
                    let from = if n == 0 { within } else { 0 };
                    let take = (STRIPE - from).min(len - all.len());
                    all.extend_from_slice(&bytes[from..from + take]);
                    if all.len() == len {
                        break;
                    }
                }
                reply.data(&all);
            }
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (first, within) = place(offset);
        let mut left = data;
        for (n, bytes) in self.stripes(ino).iter().skip(first).enumerate() {
            let to = if n == 0 { within } else { 0 };
            let take = (STRIPE - to).min(left.len());
            if take == 0 {
                break;
            }
            bytes.write().unwrap_or_else(|e| e.into_inner())[to..to + take].copy_from_slice(&left[..take]);
            left = &left[take..];
        }
        reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.written(u32::try_from(len).unwrap_or(u32::MAX));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(if self.xattr { Errno::NO_XATTR } else { Errno::ENOSYS });
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = common::args().collect();
    let [mode, dir, threads, size, rest @ ..] = &args[..] else { return Err(USAGE.into()) };
    let words: Vec<&str> = rest.iter().flat_map(|w| w.split(',')).collect();
    if let Some(word) = words.iter().find(|w| !["clone", "nokillpriv", "xattr", "cache"].contains(w)) {
        return Err(format!("{word}: {USAGE}").into());
    }
    let (threads, size): (usize, u64) = (threads.parse()?, size.parse()?);
    let stripes = match mode.as_str() {
        "empty" => 0,
        "minimal" => usize::try_from(size)?.div_ceil(STRIPE),
        _ => return Err(USAGE.into()),
    };
    // Written, not only allocated: the first use of a page must not fall into a measurement.
    let file = || (0..stripes).map(|_| RwLock::new(vec![1; STRIPE].into_boxed_slice())).collect();
    let floor = Floor {
        size,
        files: [file(), file()],
        zeroes: vec![0; 1 << 20],
        kill_priv: !words.contains(&"nokillpriv"),
        xattr: words.contains(&"xattr"),
        cache: words.contains(&"cache"),
    };
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("fuse_floor".to_owned())];
    config.n_threads = Some(threads);
    config.clone_fd = words.contains(&"clone");
    let session = Session::new(floor, dir, &config)?;
    println!("ready");
    Ok(session.run()?)
}

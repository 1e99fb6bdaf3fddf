//! The file system: requests of the kernel, checked, then served by this reader or handed over.

use super::abi::{self, Asked, TOKEN};
use super::copying;
use super::errno::errno;
use super::job::{Ends, IoctlJob, Job};
use super::options::Serve;
use super::reader::{self, TRANSFER_MAX, Tried};
use super::shared::{MountShared, SERVICE, TTL, TTL_NONE, ino_of};
use super::volume::{Vol, syncs};
use crate::block::{Buf, ByteRange, Op, storage};
use crate::workers::{PanicGuard, panicked};
use fuser::{
    CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

/// Requests the kernel sends before a program waits for them (read-ahead, asynchronous direct I/O), at most.
const BACKGROUND_MAX: u16 = 256;
/// Unit of `statfs`, in bytes.
const STATFS_UNIT: u32 = 4096;
const LIMITS: &str = "user.blkcopy.limits";
const RECEIPT: &str = "user.blkcopy.receipt";

/// The file system that the FUSE library drives.
pub(super) struct Volumes(pub(super) Arc<MountShared>);

/// A reader that serves a request which may block it. Dropped before the answer: the program that gets it asks again at
/// once, and another reader would think itself the last.
struct Busy<'a> {
    shared: &'a MountShared,
    /// Another reader waits for requests meanwhile.
    is_joined: bool,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.shared.free.fetch_add(1, Ordering::Relaxed);
    }
}

impl Volumes {
    fn watch(&self) -> PanicGuard<impl FnMut()> {
        PanicGuard::new(|| self.0.ending.end(Some(panicked(SERVICE))))
    }

    fn occupy(&self) -> Busy<'_> {
        let before = self.0.free.fetch_sub(1, Ordering::Relaxed);
        Busy { shared: &self.0, is_joined: before > 1 }
    }

    fn find(&self, ino: INodeNo) -> Option<(usize, &Vol)> {
        let at = usize::try_from(ino.0.checked_sub(2)?).ok()?;
        Some((at, self.0.volumes.get(at)?))
    }

    fn folder(&self) -> FileAttr {
        let time = self.0.begun;
        FileAttr {
            ino: INodeNo::ROOT,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::Directory,
            perm: 0o555,
            nlink: 2,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            blksize: STATFS_UNIT,
            flags: 0,
        }
    }

    /// Hands the attributes of a volume to `answer`: at once, unless they tell the storage it takes.
    fn with_attr(&self, volume: usize, answer: impl FnOnce(&MountShared, FileAttr) + Send + 'static) {
        let attr = move |shared: &MountShared| answer(shared, shared.volumes[volume].attr(ino_of(volume)));
        if self.0.options.show_allocated { self.with_allocated(volume, attr) } else { attr(&self.0) }
    }

    /// Calls `answer` when it is known how much storage a volume takes. This reader looks while that keeps nobody else
    /// waiting, otherwise the helpers of the device do. Of a device that does not answer it is as it was known last.
    fn with_allocated(&self, volume: usize, answer: impl FnOnce(&MountShared) + Send + 'static) {
        let vol = &self.0.volumes[volume];
        let Some(helpers) = &vol.helpers else {
            vol.look_at_allocated();
            return answer(&self.0);
        };
        if helpers.is_stuck() {
            return answer(&self.0);
        }
        let busy = self.occupy();
        if busy.is_joined {
            helpers.own(|| vol.look_at_allocated());
            drop(busy);
            return answer(&self.0);
        }
        let shared = self.0.clone();
        helpers.run(move || {
            shared.volumes[volume].look_at_allocated();
            answer(&shared);
        });
    }

    /// The value of an attribute to look at.
    fn attribute(vol: &Vol, name: &OsStr) -> Option<Vec<u8>> {
        let value = match name.to_str()? {
            LIMITS => vol.limits(),
            RECEIPT => vol.receipt(),
            // Not listed: it says where this file's bytes are, and would lie on any other.
            storage::ATTRIBUTE => return storage::leaf_words(vol.device.identity()).map(String::into_bytes),
            _ => return None,
        };
        Some(value.to_string().into_bytes())
    }
}

impl Busy<'_> {
    /// True when this reader may serve I/O of a volume itself.
    fn serves(&self, vol: &Vol) -> bool {
        match vol.serve {
            Serve::AtOnce => true,
            Serve::MayBlock => self.is_joined && !vol.is_stuck(),
            Serve::Elsewhere => false,
        }
    }
}

fn sized(value: &[u8], size: u32, reply: ReplyXattr) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    match size {
        0 => reply.size(len),
        _ if len > size => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

/// A name or link cannot be made, changed or taken away here.
macro_rules! fixed {
    ($($name:ident($($arg:ty),*) -> $reply:ty;)*) => {
        $(fn $name(&self, _: &Request, _: INodeNo, $(_: $arg,)* reply: $reply) {
            reply.error(Errno::EPERM);
        })*
    };
}

impl Filesystem for Volumes {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let options = &self.0.options;
        // By name, each if the kernel has it. All there are would hold FUSE_OVER_IO_URING, and nothing here reads that
        // ring.
        let mut wanted = vec![
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Else each write asks for an attribute that would hold file capabilities.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        if options.cache {
            wanted.push(InitFlags::FUSE_AUTO_INVAL_DATA);
        }
        if options.is_writeback() {
            wanted.push(InitFlags::FUSE_WRITEBACK_CACHE);
        }
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel does not offer this");
            }
        }
        let bounded = config
            .set_max_write(TRANSFER_MAX)
            .and_then(|_| config.set_max_background(BACKGROUND_MAX).map(u32::from).map_err(u32::from));
        bounded
            .map(drop)
            .map_err(|nearest| io::Error::other(format!("the FUSE library allows at most {nearest}")))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _watch = self.watch();
        let found =
            self.0.volumes.iter().position(|v| parent == INodeNo::ROOT && OsStr::new(&*v.name) == name);
        match found {
            Some(at) => {
                self.with_attr(at, move |shared, attr| reply.entry(&shared.ttl(), &attr, shared.generation));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _watch = self.watch();
        match self.find(ino) {
            _ if ino == INodeNo::ROOT => reply.attr(&TTL, &self.folder()),
            Some((volume, _)) => {
                self.with_attr(volume, move |shared, attr| reply.attr(&shared.ttl(), &attr));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _watch = self.watch();
        let Some((volume, vol)) = self.find(ino) else { return reply.error(Errno::EPERM) };
        let now = vol.attr(ino);
        let changes = mode.is_some_and(|m| m & 0o7777 != u32::from(now.perm))
            || uid.is_some_and(|u| u != now.uid)
            || gid.is_some_and(|g| g != now.gid);
        if changes {
            return reply.error(Errno::EPERM);
        }
        let time = |t: Option<TimeOrNow>| {
            t.map(|t| match t {
                TimeOrNow::SpecificTime(time) => time,
                TimeOrNow::Now => SystemTime::now(),
            })
        };
        if vol.read_only && (size.is_some() || atime.is_some() || mtime.is_some()) {
            return reply.error(Errno::EROFS);
        }
        if size.is_some_and(|size| size > vol.capacity) {
            return reply.error(Errno::EFBIG);
        }
        vol.set_times(time(atime), time(mtime));
        match size {
            None => self.with_attr(volume, move |_, attr| reply.attr(&TTL_NONE, &attr)),
            Some(size) => self.0.io().leave(Job::Truncate { volume, size, reply }),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _watch = self.watch();
        let Some((volume, vol)) = self.find(ino) else { return reply.error(Errno::ENOENT) };
        if vol.read_only && flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let mut how = FopenFlags::empty();
        if !self.0.options.cache {
            how |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        }
        match self.0.files.open(volume, flags.0, vol.device.cache_losses()) {
            Some(handle) => reply.opened(FileHandle(handle), how),
            None => reply.error(Errno::ENFILE),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _watch = self.watch();
        self.0.files.close(handle.0);
        reply.ok();
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
        let _watch = self.watch();
        let Some((volume, vol)) = self.find(ino) else { return reply.error(Errno::ENOENT) };
        let range = ByteRange::between(offset, offset.saturating_add(size.into()).min(vol.size()));
        if range.is_empty() {
            return reply.data(&[]);
        }
        let busy = self.occupy();
        if busy.serves(vol) && vol.cover(range) == range {
            let tried = reader::with(&self.0, |reader| {
                let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
                let buf = reader.buffer(len)?;
                Some(reader.run(&self.0, volume, Op::Read { range, buf }))
            });
            drop(busy);
            match tried {
                Ok(Some(Ok(Tried::Done(done)))) => {
                    match &done.result {
                        Ok(()) if done.good_bytes == range.len() => {
                            vol.was_read(range.len());
                            reply.data(&done.buf);
                        }
                        Ok(()) => reply.error(Errno::EIO),
                        Err(error) => {
                            tracing::warn!(volume = &*vol.name, ?error, "cannot read");
                            reply.error(errno(error));
                        }
                    }
                    return reader::give_back(done.buf);
                }
                Ok(Some(Ok(Tried::InTheWay(buf)))) => reader::give_back(buf),
                // A worker finds out what the matter is, and says so.
                Ok(Some(Err(_)) | None) | Err(_) => {}
            }
        }
        self.0.io().leave(Job::Read { volume, range, reply });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        how: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _watch = self.watch();
        let Some((volume, vol)) = self.find(ino) else { return reply.error(Errno::ENOENT) };
        let range = ByteRange::between(offset, offset.saturating_add(data.len() as u64).min(vol.capacity));
        if range.is_empty() {
            return if data.is_empty() { reply.written(0) } else { reply.error(Errno::ENOSPC) };
        }
        // As a full device would: what fits is written, and the next write says why no more.
        let data = &data[..usize::try_from(range.len()).unwrap_or(usize::MAX)];
        let durable = syncs(flags.0);
        // A page that is written back: the kernel checks the error only, and would take the rest for written.
        let whole = how.contains(WriteFlags::FUSE_WRITE_CACHE);
        let mut taken = None;
        let busy = self.occupy();
        if busy.serves(vol) && !durable && vol.cover(range) == range {
            let tried = reader::with(&self.0, |reader| {
                let mut buf = reader.buffer(data.len())?;
                buf.copy_from_slice(data);
                Some(reader.run(&self.0, volume, Op::Write { range, buf, fua: false }))
            });
            drop(busy);
            match tried {
                Ok(Some(Ok(Tried::Done(done)))) => {
                    let good = done.good_bytes.min(range.len());
                    vol.touch();
                    if good > 0 {
                        vol.reaches(range.offset() + good);
                        vol.was_written(good);
                    }
                    if let Err(error) = &done.result {
                        tracing::warn!(volume = &*vol.name, ?error, good, "cannot write");
                    }
                    match &done.result {
                        Err(error) if good == 0 || whole => reply.error(errno(error)),
                        Ok(()) if good == 0 || (whole && good < range.len()) => reply.error(Errno::EIO),
                        _ => reply.written(u32::try_from(good).unwrap_or(u32::MAX)),
                    }
                    return reader::give_back(done.buf);
                }
                Ok(Some(Ok(Tried::InTheWay(buf)))) => taken = Some(buf),
                Ok(Some(Err(_)) | None) | Err(_) => {}
            }
        }
        match taken.or_else(|| Buf::copy_of(data)) {
            Some(buf) => self.0.io().leave(Job::Write { volume, range, buf, durable, whole, reply }),
            None => reply.error(Errno::ENOMEM),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing is kept back for a file's close, so the kernel need not report each: this answer makes it stop.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let _watch = self.watch();
        let file = self.0.files.get(handle.0);
        match self.find(ino) {
            Some((volume, vol)) if !vol.read_only => self.0.io().leave(Job::Flush { volume, file, reply }),
            Some(_) => reply.ok(),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _watch = self.watch();
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let fixed = [".", ".."].map(|name| (INodeNo::ROOT, FileType::Directory, name));
        let names =
            self.0.volumes.iter().enumerate().map(|(at, v)| (ino_of(at), FileType::RegularFile, &*v.name));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (ino, kind, name)) in fixed.into_iter().chain(names).enumerate().skip(skip) {
            if reply.add(ino, at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let _watch = self.watch();
        let unit = u64::from(STATFS_UNIT);
        let (mut blocks, mut used) = (0u64, 0u64);
        for (at, vol) in self.0.volumes.iter().enumerate() {
            blocks = blocks.saturating_add(vol.capacity.div_ceil(unit));
            // As it was known last: asking all of them would wait for the slowest.
            match &vol.helpers {
                None => vol.look_at_allocated(),
                Some(helpers) if !helpers.is_stuck() => {
                    let shared = self.0.clone();
                    helpers.run(move || shared.volumes[at].look_at_allocated());
                }
                Some(_) => {}
            }
            used = used.saturating_add(vol.allocated().div_ceil(unit));
        }
        let free = blocks.saturating_sub(used);
        let files = self.0.volumes.len() as u64;
        reply.statfs(blocks, free, free, files, 0, STATFS_UNIT, 255, STATFS_UNIT);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _watch = self.watch();
        let found = self.find(ino);
        match found.and_then(|(_, vol)| Self::attribute(vol, name)) {
            Some(value) => sized(&value, size, reply),
            None => match found {
                Some((volume, _)) if name == storage::ALLOCATED => {
                    self.with_allocated(volume, move |shared| {
                        sized(shared.volumes[volume].allocated().to_string().as_bytes(), size, reply);
                    })
                }
                _ => reply.error(Errno::ENODATA),
            },
        }
    }

    fn listxattr(&self, _: &Request, _: INodeNo, size: u32, reply: ReplyXattr) {
        let _watch = self.watch();
        // What a program lists it copies along (`cp --preserve=all`, `rsync -X`): a receipt is nothing of the file's
        // own. Who knows the names can read them.
        sized(b"", size, reply);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _watch = self.watch();
        let Some((volume, vol)) = self.find(ino) else { return reply.error(Errno::ENOENT) };
        let keeps = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let what = mode & !libc::FALLOC_FL_KEEP_SIZE;
        let end = offset.saturating_add(length);
        if what != libc::FALLOC_FL_PUNCH_HOLE && !keeps && end > vol.capacity {
            return reply.error(Errno::ENOSPC);
        }
        // Without KEEP_SIZE the file grows, which only a resizable view can; past its size there is nothing to punch or
        // to zero.
        if what != libc::FALLOC_FL_PUNCH_HOLE && !keeps {
            vol.reaches(end);
        }
        let range = ByteRange::between(offset, end.min(vol.size()));
        let durable = self.0.files.get(handle.0).is_some_and(|file| file.syncs());
        match what {
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE if range.is_empty() => reply.ok(),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {
                let may_unmap = what == libc::FALLOC_FL_PUNCH_HOLE;
                self.0.io().leave(Job::Zero { volume, range, may_unmap, durable, reply });
            }
            // Space is promised only where all of it is taken already.
            0 if self.0.options.is_resizable() => reply.ok(),
            0 => self.with_allocated(volume, move |shared| {
                let vol = &shared.volumes[volume];
                if vol.allocated() >= vol.capacity {
                    reply.ok();
                } else {
                    reply.error(Errno::EOPNOTSUPP);
                }
            }),
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let _watch = self.watch();
        let Some((volume, _)) = self.find(ino) else { return reply.error(Errno::ENOENT) };
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.0.copier().leave(Job::Seek { volume, from, data, reply });
    }

    fn ioctl(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: IoctlFlags,
        cmd: u32,
        argument: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let _watch = self.watch();
        let asked = Asked::of(cmd);
        let (Some((dest, vol)), Some(file)) = (self.find(ino), self.0.files.get(handle.0)) else {
            return reply.error(Errno::ENOTTY);
        };
        match asked {
            Asked::Unknown => reply.error(Errno::ENOTTY),
            Asked::Size => reply.ioctl(0, &vol.size().to_ne_bytes()),
            Asked::Token if !file.reads() => reply.ioctl(-libc::EBADF, &[0; TOKEN]),
            Asked::Token => match self.0.files.token(handle.0) {
                Some(token) => reply.ioctl(0, &token),
                None => reply.ioctl(-libc::EIO, &[0; TOKEN]),
            },
            Asked::Copy(_) | Asked::CopyFrom(_) => {
                let mut argument = argument.to_vec();
                let refusal = match self.check(asked, &argument, dest, &file) {
                    Ok((call, source)) => {
                        let durable = call.flags.durable || file.syncs();
                        let job = IoctlJob { asked, argument, call, source, dest, durable, reply };
                        return self.0.copier().leave(Job::Ioctl(Box::new(job)));
                    }
                    Err(number) => number,
                };
                abi::complete(asked, &mut argument, &[]);
                reply.ioctl(-refusal, &argument);
            }
        }
    }

    fn copy_file_range(
        &self,
        _: &Request,
        ino_in: INodeNo,
        _: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        handle_out: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.0.copy_asked.store(true, Ordering::Relaxed);
        let _watch = self.watch();
        let (Some((source, _)), Some((dest, vol))) = (self.find(ino_in), self.find(ino_out)) else {
            return reply.error(Errno::EINVAL);
        };
        if vol.read_only {
            return reply.error(Errno::EROFS);
        }
        let mut ends = Ends { source, from: ByteRange::between(offset_in, offset_in), dest, to: offset_out };
        let most = match copying::most_of(&self.0, &ends, len) {
            Ok(0) => return reply.written(0),
            Ok(most) => most,
            Err(number) => return reply.error(number),
        };
        ends.from = ByteRange::between(offset_in, offset_in + copying::answer_len(&self.0, &ends, most));
        let durable = self.0.files.get(handle_out.0).is_some_and(|file| file.syncs());
        // Short, and in memory: no request waits for this reader for long, not even for the last one.
        let busy = self.occupy();
        let serves = |at: usize| busy.serves(&self.0.volumes[at]);
        if !durable && let Some(method) = copying::is_brief(&self.0, &ends, serves(source) && serves(dest)) {
            let ended = copying::inline(&self.0, &ends, method);
            drop(busy);
            match ended {
                Some(Ok(good)) => return reply.written(u32::try_from(good).unwrap_or(u32::MAX)),
                Some(Err(number)) => return reply.error(number),
                None => {}
            }
        }
        copying::hand_over(&self.0, ends, most, durable, reply);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EPERM);
    }

    fixed! {
        mkdir(&OsStr, u32, u32) -> ReplyEntry;
        unlink(&OsStr) -> ReplyEmpty;
        rmdir(&OsStr) -> ReplyEmpty;
        symlink(&OsStr, &Path) -> ReplyEntry;
        rename(&OsStr, INodeNo, &OsStr, RenameFlags) -> ReplyEmpty;
        link(INodeNo, &OsStr) -> ReplyEntry;
    }
}

impl Volumes {
    /// Everything that is checked before a copying ioctl changes anything; the call and the volume of its source.
    fn check(
        &self,
        asked: Asked,
        argument: &[u8],
        dest: usize,
        file: &super::volume::OpenFile,
    ) -> Result<(abi::Call, usize), i32> {
        let vol = &self.0.volumes[dest];
        if vol.read_only {
            return Err(libc::EPERM);
        }
        if !file.writes() || (matches!(asked, Asked::Copy(_)) && !file.reads()) {
            return Err(libc::EBADF);
        }
        let call = abi::parse(asked, argument).ok_or(libc::EINVAL)?;
        let source = match &call.token {
            None => dest,
            Some(token) => self.0.files.of_token(token).ok_or(libc::ESTALE)?.volume,
        };
        let (readable, writable) = (self.0.volumes[source].size(), vol.size());
        let outside = |e: &abi::Entry| e.source.end() > readable || e.dest.end() > writable;
        if call.entries.iter().any(outside) || abi::overlap(&call.entries, source == dest) {
            return Err(libc::EINVAL);
        }
        Ok((call, source))
    }
}

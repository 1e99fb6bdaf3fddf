//! A volume as the mount sees it: one file, its attributes, its open files, and what was copied onto it.

use super::abi::TOKEN;
use super::options::{MountOptions, Serve, Volume};
use super::pace::Pace;
use crate::block::receipt::HostBytes;
use crate::block::{ByteRange, Content, Device, Error, Fates, Identity, Kind, Method, Result};
use crate::reactor::helpers::{self, Helpers};
use crate::sys::sync::lock;
use fuser::{FileAttr, FileType, INodeNo};
use serde_json::{Value, json};
use slab::Slab;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Copies a volume remembers.
const LAST_MAX: usize = 16;
/// Open files at once.
const FILES_MAX: usize = 1 << 16;

/// One volume.
pub(super) struct Vol {
    pub(super) name: Arc<str>,
    pub(super) device: Arc<dyn Device>,
    pub(super) read_only: bool,
    pub(super) serve: Serve,
    /// Logical block of the device, in bytes.
    pub(super) block: u64,
    pub(super) capacity: u64,
    /// Size shown. The capacity, but in a resizable test view.
    size: AtomicU64,
    /// Nanoseconds since 1970 of the last change of contents, and of the last access that was set.
    modified: AtomicU64,
    accessed: AtomicU64,
    /// The last loss of the device ([`Device::cache_losses`]) that was reported through an open file.
    pub(super) told: AtomicU64,
    owner: (u32, u32),
    pub(super) pace: Pace,
    pub(super) hole_pace: Pace,
    /// What it owes is going to be stored soon.
    pub(super) is_storing: AtomicBool,
    /// Who makes the calls to the device that may wait; none where it answers at once.
    pub(super) helpers: Option<Arc<Helpers>>,
    /// Bytes of storage it took when that was last asked for.
    allocated: AtomicU64,
    /// `st_blocks` tells that, and not the size.
    shows_allocated: bool,
    plain: Plain,
    copies: Mutex<Copies>,
}

pub(super) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn time_of(nanos: &AtomicU64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos.load(Ordering::Relaxed))
}

impl Vol {
    pub(super) fn new(volume: Volume, options: &MountOptions) -> Self {
        let now = nanos(SystemTime::now());
        let capacity = volume.device.size();
        Self {
            read_only: volume.read_only || volume.device.read_only(),
            block: u64::from(volume.device.limits().block_size.get()),
            // A resizable view is empty at first, and as long as it is made.
            size: AtomicU64::new(if options.is_resizable() { 0 } else { capacity }),
            modified: AtomicU64::new(now),
            accessed: AtomicU64::new(now),
            told: AtomicU64::new(0),
            owner: options
                .owner
                .unwrap_or_else(|| (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())),
            pace: Pace::of_copies(),
            hole_pace: Pace::of_holes(),
            is_storing: AtomicBool::new(false),
            helpers: (volume.serve != Serve::AtOnce && volume.device.may_wait())
                .then(|| helpers::of(volume.device.identity(), volume.device.name())),
            allocated: AtomicU64::new(volume.device.allocated_bytes().unwrap_or(u64::MAX)),
            shows_allocated: options.show_allocated,
            plain: Plain::default(),
            copies: Mutex::default(),
            capacity,
            name: volume.name.into(),
            device: volume.device,
            serve: volume.serve,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Shows another size: of a resizable view.
    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size.min(self.capacity), Ordering::Release);
    }

    /// Shows at least so many bytes: something was written up to there.
    pub(super) fn reaches(&self, end: u64) {
        if end > self.size() {
            self.size.fetch_max(end.min(self.capacity), Ordering::AcqRel);
        }
    }

    /// Contents have changed.
    pub(super) fn touch(&self) {
        self.modified.store(nanos(SystemTime::now()), Ordering::Relaxed);
    }

    pub(super) fn set_times(&self, accessed: Option<SystemTime>, modified: Option<SystemTime>) {
        for (cell, time) in [(&self.accessed, accessed), (&self.modified, modified)] {
            if let Some(time) = time {
                cell.store(nanos(time), Ordering::Relaxed);
            }
        }
    }

    /// Permission bits shown.
    pub(super) fn mode(&self) -> u16 {
        if self.read_only { 0o400 } else { 0o600 }
    }

    /// True when a call to the device takes unusually long now: no thread that serves others makes one.
    pub(super) fn is_stuck(&self) -> bool {
        self.helpers.as_ref().is_some_and(|helpers| helpers.is_stuck())
    }

    /// Looks how much storage it takes. May wait.
    pub(super) fn look_at_allocated(&self) {
        self.allocated.store(self.device.allocated_bytes().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Bytes of storage it took when that was last looked at ([`Vol::look_at_allocated`]); the size where the device
    /// does not tell.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed).min(self.size())
    }

    /// Attributes.
    ///
    /// By `st_blocks` no volume is sparse: a program that takes a file for sparse copies it by reading and writing
    /// (cp of coreutils 9.1). Where holes are is for `SEEK_HOLE` to tell, which stays true.
    pub(super) fn attr(&self, ino: INodeNo) -> FileAttr {
        let size = self.size();
        let modified = time_of(&self.modified);
        let shown = if self.shows_allocated { self.allocated() } else { size };
        FileAttr {
            ino,
            size,
            blocks: shown.div_ceil(512),
            atime: time_of(&self.accessed),
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind: FileType::RegularFile,
            perm: self.mode(),
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The range out to the device's block borders.
    pub(super) fn cover(&self, range: ByteRange) -> ByteRange {
        let end = range.end().next_multiple_of(self.block).min(self.capacity.max(range.end()));
        ByteRange::between(range.offset() - range.offset() % self.block, end)
    }

    /// The first offset from `from` on that is a hole (or, `data`, is none), as `lseek` tells it. `None`: there is
    /// none.
    pub(super) fn seek(&self, from: u64, data: bool) -> Result<Option<u64>> {
        let size = self.size();
        if from >= size {
            return Ok(None);
        }
        let mut at = from;
        while at < size {
            let rest = self.cover(ByteRange::between(at, size));
            let extent = self.device.next_extent(rest)?;
            if (extent.content == Content::Data) == data {
                return Ok(Some(at));
            }
            let end = rest.offset() + extent.len;
            if end <= at {
                let text = "the device does not report what is stored there";
                return Err(Error::new(Kind::Io, text).on(&self.name).at(rest));
            }
            at = end;
        }
        // Behind the last byte there is a hole, and no data.
        Ok((!data).then_some(size))
    }

    // --- plain I/O, counted ------------------------------------------------------------------------------------------

    /// So many bytes answered a read.
    pub(super) fn was_read(&self, bytes: u64) {
        self.plain.reads.fetch_add(1, Ordering::Relaxed);
        self.plain.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes of a write were written.
    pub(super) fn was_written(&self, bytes: u64) {
        self.plain.writes.fetch_add(1, Ordering::Relaxed);
        self.plain.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    // --- copies ------------------------------------------------------------------------------------------------------

    /// Takes down a copy onto this volume.
    pub(super) fn copied(&self, copied: Copied, inline: bool) {
        let mut copies = lock(&self.copies);
        copies.count += 1;
        *(if inline { &mut copies.inline } else { &mut copies.handed_over }) += 1;
        for &(method, bytes) in &copied.methods {
            *copies.methods.entry(method).or_default() += bytes;
        }
        copies.fates.merge(&copied.fates);
        copies.host.read += copied.host.read;
        copies.host.written += copied.host.written;
        if copies.last.len() == LAST_MAX {
            copies.last.pop_front();
        }
        copies.last.push_back(copied);
    }

    /// `user.blkcopy.receipt`.
    pub(super) fn receipt(&self) -> Value {
        let copies = lock(&self.copies);
        let host = |host: &HostBytes| json!({"read": host.read, "written": host.written});
        let methods = |list: &mut dyn Iterator<Item = (Method, u64)>| -> Value {
            list.map(|(method, bytes)| (method.name().to_owned(), json!(bytes)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let last = copies.last.iter().map(|c| {
            json!({
                "call": c.call,
                "source": &*c.source,
                "source_offset": c.from.offset(),
                "dest_offset": c.to,
                "requested_bytes": c.from.len(),
                "good_bytes": c.good,
                "bytes": c.fates.by_fate(),
                "evidence": c.fates,
                "methods": methods(&mut c.methods.iter().copied()),
                "host_bytes": host(&c.host),
                "flushed": c.flushed,
                "seconds": c.time.as_secs_f64(),
                "error": c.error,
            })
        });
        json!({
            "schema": "blkcopy-mount-receipt/2",
            "copies": copies.count,
            "inline": copies.inline,
            "handed_over": copies.handed_over,
            "bytes": copies.fates.by_fate(),
            "evidence": copies.fates,
            "methods": methods(&mut copies.methods.iter().map(|(&m, &b)| (m, b))),
            "host_bytes": host(&copies.host),
            "reads": self.plain.reads.load(Ordering::Relaxed),
            "read_bytes": self.plain.read_bytes.load(Ordering::Relaxed),
            "writes": self.plain.writes.load(Ordering::Relaxed),
            "written_bytes": self.plain.written_bytes.load(Ordering::Relaxed),
            "last": last.collect::<Vec<_>>(),
        })
    }

    /// `user.blkcopy.limits`.
    pub(super) fn limits(&self) -> Value {
        let limits = self.device.limits();
        let identity = match self.device.identity() {
            Identity::Leaf { .. } => "leaf",
            Identity::Map(_) => "map",
        };
        let paths = self.device.copy_paths();
        let paths = paths.iter().map(|p| {
            json!({"method": p.method.name(), "align": p.align, "max_bytes": p.max_bytes, "preferred": p.preferred})
        });
        json!({
            "device": self.device.name(),
            "kind": identity,
            "size_bytes": self.capacity,
            "read_only": self.read_only,
            "block_size": limits.block_size,
            "copy_offload": limits.copy_offload,
            "copy_max_bytes": limits.copy_max_bytes.get(),
            "copy_max_hw_bytes": limits.copy_max_bytes.get_hw(),
            "copy_max_range_bytes": limits.copy_max_range_bytes.get(),
            "copy_max_range_hw_bytes": limits.copy_max_range_bytes.get_hw(),
            "copy_max_nr_ranges": limits.copy_max_nr_ranges.get(),
            "copy_max_nr_ranges_hw": limits.copy_max_nr_ranges.get_hw(),
            "copy_paths": paths.collect::<Vec<_>>(),
        })
    }
}

/// Reads and writes of the file that reached this process and were carried out, at least in part.
#[derive(Default)]
struct Plain {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
}

#[derive(Default)]
struct Copies {
    count: u64,
    inline: u64,
    handed_over: u64,
    methods: BTreeMap<Method, u64>,
    fates: Fates,
    host: HostBytes,
    last: VecDeque<Copied>,
}

/// One copy that has ended.
pub(super) struct Copied {
    /// `copy_file_range` or the ioctl's name.
    pub(super) call: &'static str,
    /// Name of the source's volume.
    pub(super) source: Arc<str>,
    pub(super) from: ByteRange,
    /// Offset on the destination.
    pub(super) to: u64,
    pub(super) good: u64,
    pub(super) methods: smallvec::SmallVec<[(Method, u64); 2]>,
    pub(super) fates: Fates,
    pub(super) host: HostBytes,
    pub(super) flushed: bool,
    pub(super) time: Duration,
    pub(super) error: Option<String>,
}

/// One open file.
pub(super) struct OpenFile {
    /// Index of the volume.
    pub(super) volume: usize,
    /// Flags it was opened with.
    pub(super) flags: i32,
    token: Mutex<Option<[u8; TOKEN]>>,
    /// The device's losses that its user knows of.
    losses: Mutex<Option<u64>>,
}

impl OpenFile {
    pub(super) fn reads(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    pub(super) fn writes(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// True once for each loss of the device while the file was open.
    pub(super) fn is_untold(&self, losses: Option<u64>) -> bool {
        std::mem::replace(&mut *lock(&self.losses), losses) != losses
    }

    /// True when every write is to be durable before it returns.
    pub(super) fn syncs(&self) -> bool {
        syncs(self.flags)
    }
}

/// True when flags of an open file ask for writes that are durable before they return.
pub(super) fn syncs(flags: i32) -> bool {
    // O_SYNC holds the bit of O_DSYNC.
    flags & libc::O_DSYNC != 0
}

/// The open files, and the tokens handed out for some of them.
#[derive(Default)]
pub(super) struct Files(Mutex<Table>);

#[derive(Default)]
struct Table {
    open: Slab<Arc<OpenFile>>,
    tokens: HashMap<[u8; TOKEN], usize>,
}

impl Files {
    /// A handle for a newly opened file; none when too many are open.
    pub(super) fn open(&self, volume: usize, flags: i32, losses: Option<u64>) -> Option<u64> {
        let mut table = lock(&self.0);
        if table.open.len() >= FILES_MAX {
            return None;
        }
        Some(table.open.insert(Arc::new(OpenFile {
            volume,
            flags,
            token: Mutex::default(),
            losses: Mutex::new(losses),
        })) as u64)
    }

    pub(super) fn get(&self, handle: u64) -> Option<Arc<OpenFile>> {
        lock(&self.0).open.get(usize::try_from(handle).ok()?).cloned()
    }

    /// The last descriptor was closed: its token ends with it.
    pub(super) fn close(&self, handle: u64) {
        let Ok(key) = usize::try_from(handle) else { return };
        let mut table = lock(&self.0);
        let Some(file) = table.open.try_remove(key) else { return };
        if let Some(token) = *lock(&file.token) {
            table.tokens.remove(&token);
        }
    }

    /// The token of an open file, the same each time it is asked for.
    pub(super) fn token(&self, handle: u64) -> Option<[u8; TOKEN]> {
        let key = usize::try_from(handle).ok()?;
        let mut table = lock(&self.0);
        let file = table.open.get(key)?.clone();
        let mut held = lock(&file.token);
        if held.is_none() {
            let mut fresh = [0; TOKEN];
            // 16 bytes come whole or not at all.
            let got = rustix::rand::getrandom(&mut fresh, rustix::rand::GetRandomFlags::empty()).ok()?;
            *held = (got == TOKEN).then_some(fresh);
            table.tokens.insert((*held)?, key);
        }
        *held
    }

    /// The open file a token stands for.
    pub(super) fn of_token(&self, token: &[u8; TOKEN]) -> Option<Arc<OpenFile>> {
        let table = lock(&self.0);
        table.open.get(*table.tokens.get(token)?).cloned()
    }

    /// Files that are open.
    pub(super) fn count(&self) -> usize {
        lock(&self.0).open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stands_for_its_open_file_until_that_is_closed() {
        let files = Files::default();
        let (a, b) = (
            files.open(0, libc::O_RDONLY, None).unwrap(),
            files.open(1, libc::O_RDWR | libc::O_SYNC, Some(3)).unwrap(),
        );
        let (ta, tb) = (files.token(a).unwrap(), files.token(b).unwrap());
        assert!(ta != tb && files.token(a) == Some(ta));
        assert_eq!(files.of_token(&ta).unwrap().volume, 0);
        assert!(files.get(b).unwrap().syncs() && !files.get(a).unwrap().writes());
        let told = [Some(3), Some(5), Some(5)].map(|losses| files.get(b).unwrap().is_untold(losses));
        assert_eq!(told, [false, true, false], "each loss is told once");
        files.close(a);
        assert!(files.of_token(&ta).is_none() && files.of_token(&tb).is_some());
        // The number is used again, the token is not.
        let again = files.open(2, libc::O_RDONLY, None).unwrap();
        assert_eq!(again, a);
        assert!(files.of_token(&ta).is_none() && files.token(again) != Some(ta));
        assert_eq!(files.count(), 2);
    }
}

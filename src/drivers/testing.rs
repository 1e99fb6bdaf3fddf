//! For tests of real files and devices: a reactor that does everything at once, a device driven to completion, and
//! mounts and loop devices that clean up after themselves.

use crate::block::request::Cancel;
use crate::block::{Buf, ByteRange, Call, Completion, CopyRequest, Device, Method, Op, Queue, Submitter};
use crate::reactor::{self, Engine, IoDone, IoOp, Port, Reactor, Waker};
use rustix::io::ReadWriteFlags;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What a test changes about an operation before it is done: the longest transfer, or an error instead.
pub(crate) type Meddle = Box<dyn FnMut(&IoOp) -> Meddled>;

pub(crate) enum Meddled {
    Nothing,
    AtMost(usize),
    Fail(i32),
}

/// Does every operation at once on the calling thread (unless held back); keeps a log of what was asked.
#[derive(Default)]
pub(crate) struct AtOnce {
    done: RefCell<Vec<IoDone>>,
    meddle: RefCell<Option<Meddle>>,
    log: RefCell<Vec<String>>,
    held: RefCell<Option<Vec<(u64, IoOp)>>>,
}

impl AtOnce {
    pub(crate) fn meddle(&self, f: impl FnMut(&IoOp) -> Meddled + 'static) {
        *self.meddle.borrow_mut() = Some(Box::new(f));
    }
    /// What was asked since the last call: `read direct 0+4096` and the like.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.borrow_mut())
    }
    /// Keeps operations back until [`AtOnce::release`].
    pub(crate) fn hold(&self) {
        *self.held.borrow_mut() = Some(Vec::new());
    }
    pub(crate) fn release(&self) {
        for (token, op) in self.held.borrow_mut().take().unwrap_or_default() {
            self.run(token, op);
        }
    }

    fn run(&self, token: u64, op: IoOp) {
        let meddled = self.meddle.borrow_mut().as_mut().map_or(Meddled::Nothing, |m| m(&op));
        let most = match meddled {
            Meddled::Nothing => usize::MAX,
            Meddled::AtMost(n) => n,
            Meddled::Fail(errno) => {
                let buf = match op {
                    IoOp::Read { buf, .. } | IoOp::Write { buf, .. } => buf,
                    _ => Buf::default(),
                };
                let error = Some(io::Error::from_raw_os_error(errno));
                let done = IoDone { token, count: 0, error, buf, counters: Default::default() };
                return self.done.borrow_mut().push(done);
            }
        };
        let done = |result: rustix::io::Result<usize>, buf, call| {
            let (count, error) = match result {
                Ok(n) => (n as u64, None),
                Err(e) => (0, Some(e.into())),
            };
            IoDone { token, count, error, buf, counters: reactor::one(call) }
        };
        let done = match op {
            IoOp::Read { file, offset, mut buf, .. } => {
                let n = buf.len().min(most);
                let result = rustix::io::pread(&*file, &mut buf[..n], offset);
                done(result, buf, Call::Pread64)
            }
            IoOp::Write { file, offset, buf, dsync, .. } => {
                let n = buf.len().min(most);
                let flags = if dsync { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
                let result = rustix::io::pwritev2(&*file, &[IoSlice::new(&buf[..n])], offset, flags);
                done(result, buf, Call::Pwrite64)
            }
            IoOp::Sync { file, .. } => {
                done(rustix::fs::fdatasync(&*file).map(|()| 0), Buf::default(), Call::Fdatasync)
            }
            IoOp::Call(f) | IoOp::Brief(f) => {
                let r = f();
                IoDone { token, count: r.count, error: r.error, buf: Buf::default(), counters: r.counters }
            }
            IoOp::Ready { .. } => unreachable!("files are not waited for"),
        };
        self.done.borrow_mut().push(done);
    }
}

impl Reactor for AtOnce {
    fn engine(&self) -> Engine {
        Engine::Pool
    }
    fn open_port(&self) -> Port {
        Port(0)
    }
    fn close_port(&self, _: Port) {}
    fn submit(&self, _: Port, token: u64, op: IoOp) {
        self.log.borrow_mut().push(match &op {
            IoOp::Read { offset, buf, direct, .. } => {
                format!("read {} {offset}+{}", way(*direct), buf.len())
            }
            IoOp::Write { offset, buf, direct, .. } => {
                format!("write {} {offset}+{}", way(*direct), buf.len())
            }
            IoOp::Sync { .. } => "sync".into(),
            IoOp::Call(_) | IoOp::Brief(_) => "call".into(),
            IoOp::Ready { .. } => "ready".into(),
        });
        if let Some(held) = &mut *self.held.borrow_mut() {
            return held.push((token, op));
        }
        self.run(token, op);
    }
    fn complete(&self, _: Port, out: &mut Vec<IoDone>) {
        out.append(&mut self.done.borrow_mut());
    }
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    fn wait(&self, _: Option<Duration>) {}
    fn turn(&self) {}
    fn waker(&self) -> Waker {
        Waker::new(|| {})
    }
}

fn way(direct: bool) -> &'static str {
    if direct { "direct" } else { "buffered" }
}

/// A device with its queue, and a reactor of its own.
pub(crate) struct Driven {
    pub(crate) queue: Box<dyn Queue>,
    pub(crate) reactor: Rc<AtOnce>,
    submitter: Submitter,
}

impl Driven {
    pub(crate) fn new(device: Arc<dyn Device>) -> Self {
        let reactor = Rc::new(AtOnce::default());
        let entered = reactor::enter(reactor.clone());
        let queue = device.open_queue().unwrap();
        // The queue has found its reactor: another device may have one on this thread.
        drop(entered);
        Self { queue, reactor, submitter: Submitter::default() }
    }

    /// Submits without waiting.
    pub(crate) fn submit(&mut self, tag: u64, op: Op) {
        let mut batch = VecDeque::from([self.submitter.request(tag, op)]);
        self.queue.submit(&mut batch);
        assert!(batch.is_empty());
    }

    /// What has completed, after at most a few rounds.
    pub(crate) fn poll(&mut self) -> Vec<Completion> {
        let mut out = Vec::new();
        for _ in 0..8 {
            self.queue.poll(&mut out);
        }
        out
    }

    pub(crate) fn run(&mut self, op: Op) -> Completion {
        self.submit(1, op);
        let mut done = self.poll();
        assert_eq!(done.len(), 1);
        done.pop().unwrap()
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Completion {
        let range = ByteRange::new(offset, bytes.len() as u64).unwrap();
        self.run(Op::Write { range, buf: Buf::copy_of(bytes).unwrap(), fua: false })
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Completion {
        let range = ByteRange::new(offset, len as u64).unwrap();
        self.run(Op::Read { range, buf: Buf::alloc(len).unwrap() })
    }

    pub(crate) fn copy(
        &mut self,
        method: Method,
        source: Arc<dyn Device>,
        from: u64,
        to: u64,
        len: u64,
    ) -> Completion {
        self.run(Op::Copy(Box::new(CopyRequest {
            method,
            source,
            sources: smallvec::smallvec![ByteRange::new(from, len).unwrap()],
            dest: ByteRange::new(to, len).unwrap(),
            fua: false,
            must: None,
            cancel: Cancel::default(),
        })))
    }
}

/// Bytes that differ at every 8-byte word, by seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).flat_map(|i| {
        (i ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd).to_le_bytes()
    });
    words.take(len).collect()
}

/// Runs a command; its output, or `None` with a note when it is not there or fails.
pub(crate) fn command(line: &[&str]) -> Option<String> {
    let out = Command::new(line[0]).args(&line[1..]).output().ok()?;
    if !out.status.success() {
        eprintln!("{line:?}: {}", String::from_utf8_lossy(&out.stderr));
        return None;
    }
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// A loop device over a fresh file; detached when dropped.
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    pub(crate) file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Loop {
    /// `None`, said aloud, where that cannot be had.
    pub(crate) fn new(test: &str, dir: &Path, len: u64, more: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED {test}: loop devices need root");
            return None;
        }
        let dir = tempfile::tempdir_in(dir).unwrap();
        let file = dir.path().join("backing");
        std::fs::File::create(&file).unwrap().set_len(len).unwrap();
        let mut line = vec!["losetup", "-f", "--show"];
        line.extend(more);
        line.push(file.to_str().unwrap());
        // Another test may take the free device first: asked again.
        let device = (0..10).find_map(|_| command(&line));
        let Some(device) = device else {
            eprintln!("SKIPPED {test}: no loop device");
            return None;
        };
        Some(Self { device: device.into(), file, _dir: dir })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = command(&["losetup", "-d", self.device.to_str().unwrap()]);
    }
}

/// A fresh file system on a loop device; unmounted when dropped.
pub(crate) struct Mounted {
    pub(crate) dir: PathBuf,
    pub(crate) on: Loop,
}

impl Mounted {
    /// `mkfs` is the whole command but for the device.
    pub(crate) fn new(test: &str, mkfs: &[&str], len: u64) -> Option<Self> {
        let on = Loop::new(test, &std::env::temp_dir(), len, &[])?;
        let device = on.device.to_str().unwrap().to_owned();
        let dir = on.file.with_file_name("mnt");
        std::fs::create_dir(&dir).unwrap();
        let mkfs: Vec<&str> = mkfs.iter().copied().chain([device.as_str()]).collect();
        if command(&mkfs).is_none() || command(&["mount", &device, dir.to_str().unwrap()]).is_none() {
            eprintln!("SKIPPED {test}: {} or mounting it does not work here", mkfs[0]);
            return None;
        }
        Some(Self { dir, on })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = command(&["umount", self.dir.to_str().unwrap()]);
    }
}

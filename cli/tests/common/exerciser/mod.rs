//! The exerciser: seeded steps on a few volumes, each compared with byte vectors in memory; on a failure it says how to
//! run the same again and finds a short list of steps that still fails.
//!
//! The same steps run on plain files, where the kernel's file systems are trusted, and on mounted volumes: what goes
//! wrong on the former is a fault of the exerciser.

#![allow(dead_code)] // each test file uses a part of it

pub(crate) mod crowd;
pub(crate) mod minimise;
pub(crate) mod model;
pub(crate) mod neighbours;
pub(crate) mod ops;
pub(crate) mod refused;

use blkcopy::block::Buf;
use blkcopy::sys::blkcopy::{self as calls, Entry, Token};
use blkcopy::sys::mapped::Mapped;
use model::{Fault, Judged, Model, index, judge_entries, judge_step, wrong};
use ops::{COPY_MAX, Caps, How, IO_MAX, Op, Pair, Plan, Span, Way};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use std::any::Any;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Fresh volumes, all zero, and what keeps them there.
pub(crate) struct Ground {
    pub(crate) paths: Vec<PathBuf>,
    /// Counts steps, for whoever watches that it goes on.
    pub(crate) beat: Arc<AtomicU64>,
    #[allow(dead_code)] // held for what its drop takes apart
    pub(crate) keep: Box<dyn Any>,
}

/// A step that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) step: usize,
    pub(crate) fault: Fault,
}

/// One volume, opened.
struct Open {
    path: PathBuf,
    plain: File,
    direct: Option<File>,
    map: Option<Mapped>,
    token: Option<Token>,
}

impl Open {
    fn new(path: &Path, caps: &Caps) -> io::Result<Self> {
        let plain = File::options().read(true).write(true).open(path)?;
        let direct = match caps.direct {
            None => None,
            Some(_) => {
                let flags = i32::try_from(OFlags::DIRECT.bits()).expect("a flag of open");
                Some(File::options().read(true).write(true).custom_flags(flags).open(path)?)
            }
        };
        Ok(Self { path: path.to_owned(), plain, direct, map: None, token: None })
    }

    /// The mapping of the whole, made anew when the size has changed.
    fn map(&mut self, size: u64) -> io::Result<&mut Mapped> {
        if self.map.as_ref().is_none_or(|m| m.len() as u64 != size) {
            self.map = None;
            self.map = Some(Mapped::new(&self.plain, index(size))?);
        }
        Ok(self.map.as_mut().expect("made above"))
    }

    fn file(&self, way: Way) -> &File {
        if way == Way::Direct { self.direct.as_ref().unwrap_or(&self.plain) } else { &self.plain }
    }
}

/// The volumes and the model beside them.
pub(crate) struct Run<'a> {
    plan: &'a Plan,
    ground: &'a Ground,
    pub(crate) model: Model,
    open: Vec<Open>,
    scratch: Buf,
    /// Copies that went well, one for each range.
    pub(crate) copied: u64,
}

impl<'a> Run<'a> {
    /// Opens the volumes.
    pub(crate) fn new(plan: &'a Plan, ground: &'a Ground) -> Judged<Self> {
        let open: io::Result<Vec<Open>> =
            ground.paths.iter().take(plan.volumes).map(|p| Open::new(p, &plan.caps)).collect();
        let open = said("opening the volumes", open)?;
        let size = if plan.caps.growing { 0 } else { plan.size };
        // Room for a whole step, rounded outwards.
        let scratch = Buf::alloc(index(IO_MAX.max(COPY_MAX)) + 8192).expect("memory for a test");
        Ok(Self { plan, ground, model: Model::new(plan.volumes, size), open, scratch, copied: 0 })
    }

    /// Does the steps; the first that fails, by its position (their number: the comparison at the end).
    pub(crate) fn all(&mut self, steps: &[Op]) -> Result<(), Failure> {
        for (step, op) in steps.iter().enumerate() {
            self.step(op).map_err(|fault| Failure { step, fault })?;
            self.ground.beat.fetch_add(1, Ordering::Relaxed);
        }
        self.compare().map_err(|fault| Failure { step: steps.len(), fault })
    }

    /// Does one step.
    pub(crate) fn step(&mut self, op: &Op) -> Judged {
        match op {
            Op::Write { to, way, salt } => self.write(*to, *way, *salt),
            Op::Read { from, way } => self.read(*from, *way),
            Op::Copy { from, to, pairs, how, look } => {
                self.copy(*from, *to, pairs, *how)?;
                look.map_or(Ok(()), |way| self.look(*from, *to, pairs, way))
            }
            Op::Punch(span) => self.fallocate(*span, FallocateFlags::PUNCH_HOLE),
            Op::Zero(span) => self.fallocate(*span, FallocateFlags::ZERO_RANGE),
            Op::Truncate { volume, len } => self.truncate(*volume, *len),
            Op::Sync { volume, data_only } => {
                let file = &self.open[*volume].plain;
                said("fsync", if *data_only { file.sync_data() } else { file.sync_all() })?;
                Ok(())
            }
            Op::Reopen { volume } => {
                let path = self.open[*volume].path.clone();
                self.open[*volume].map = None;
                let again = Open::new(&path, &self.plan.caps);
                self.open[*volume] = said("opening a volume again", again)?;
                Ok(())
            }
            Op::Seek { volume, at } => self.seek(*volume, *at),
            Op::Invalidate(span) => {
                let (file, len) = (&self.open[span.volume].plain, NonZeroU64::new(span.len));
                let advice = rustix::fs::Advice::DontNeed;
                said("fadvise", rustix::fs::fadvise(file, span.at, len, advice).map_err(Into::into))
            }
            Op::Wrong { volume, wrong, at, len } => self.refused(*volume, *wrong, *at, *len),
            Op::Compare => self.compare(),
        }
    }

    fn write(&mut self, to: Span, way: Way, salt: u64) -> Judged {
        let size = self.model.size(to.volume);
        let bytes = &mut self.scratch[..index(to.len)];
        model::fill(bytes, salt);
        let open = &mut self.open[to.volume];
        if way == Way::Mapped {
            // Steps left out before it may have left the file too short.
            let len = to.len.min(size.saturating_sub(to.at));
            if len > 0 {
                said("mmap", open.map(size))?.write(index(to.at), &bytes[..index(len)]);
                self.model.write(to.volume, to.at, &bytes[..index(len)]);
            }
            return Ok(());
        }
        let (mut done, file) = (0, open.file(way));
        while done < bytes.len() {
            match said("write", file.write_at(&bytes[done..], to.at + done as u64))? {
                0 => return wrong(format!("a write of {} bytes answers 0", bytes.len() - done)),
                n => done += n,
            }
        }
        self.model.write(to.volume, to.at, bytes);
        Ok(())
    }

    fn read(&mut self, from: Span, way: Way) -> Judged {
        let size = self.model.size(from.volume);
        let due = from.len.min(size.saturating_sub(from.at));
        let open = &mut self.open[from.volume];
        let buf = &mut self.scratch[..index(from.len)];
        let got = match way {
            Way::Mapped if due == 0 => return Ok(()),
            Way::Mapped => {
                said("mmap", open.map(size))?.read(index(from.at), &mut buf[..index(due)]);
                due
            }
            _ => said("read", read_to_end(open.file(way), from.at, buf, way == Way::Direct))?,
        };
        if got != due {
            return wrong(format!("a {way:?} read of {from:x?} gives {got} bytes, where {due} are there"));
        }
        let name = format!("{way:?}").to_lowercase();
        self.model.judge_bytes(from.volume, from.at, &buf[..index(due)], &name)
    }

    fn copy(&mut self, from: usize, to: usize, pairs: &[Pair], how: How) -> Judged {
        let mut entries: Vec<Entry> = pairs.iter().map(|p| Entry::new(p.source, p.dest, p.len)).collect();
        match how {
            How::Range | How::RangeDirect => {
                for entry in entries {
                    self.copy_range(from, to, entry, how)?;
                }
                return Ok(());
            }
            How::Ioctl => {
                let answer = calls::blkcopy(&self.open[to].plain, &mut entries);
                judge_entries(answer, &entries)?;
            }
            How::Twin(flags) => {
                let token = self.token(from)?;
                let answer = calls::blkcopy_from(&self.open[to].plain, token, flags, &mut entries);
                judge_entries(answer, &entries)?;
            }
        }
        for entry in entries {
            self.model.copy((from, entry.source), (to, entry.dest), entry.len);
            self.copied += 1;
        }
        Ok(())
    }

    fn token(&mut self, volume: usize) -> Judged<Token> {
        if let Some(token) = self.open[volume].token {
            return Ok(token);
        }
        let token = said("BLKCOPY_SOURCE", calls::blkcopy_source(&self.open[volume].plain))?;
        self.open[volume].token = Some(token);
        Ok(token)
    }

    fn copy_range(&mut self, from: usize, to: usize, entry: Entry, how: How) -> Judged {
        let way = if how == How::RangeDirect { Way::Direct } else { Way::Plain };
        let mut left = entry.len.min(self.model.size(from).saturating_sub(entry.source));
        let (mut source, mut dest) = (entry.source, entry.dest);
        while left > 0 {
            let (a, b) = (self.open[from].file(way), self.open[to].file(way));
            let n = judge_step(calls::copy_file_range(a, b, Entry::new(source, dest, left)), left)?;
            self.model.copy((from, source), (to, dest), n);
            (source, dest, left) = (source + n, dest + n, left - n);
            self.copied += 1;
        }
        Ok(())
    }

    /// Reads the destinations with two bytes around them, and the source.
    fn look(&mut self, from: usize, to: usize, pairs: &[Pair], way: Way) -> Judged {
        for pair in pairs {
            for (volume, at) in [(to, pair.dest), (from, pair.source)] {
                let (start, end) = (at.saturating_sub(2), (at + pair.len + 2).min(self.plan.size));
                let (start, end) = match (way, self.plan.caps.direct) {
                    (Way::Direct, Some(align)) => (start - start % align, end.next_multiple_of(align)),
                    _ => (start, end),
                };
                self.read(Span { volume, at: start, len: end - start }, way)?;
            }
        }
        Ok(())
    }

    fn fallocate(&mut self, span: Span, mode: FallocateFlags) -> Judged {
        let file = &self.open[span.volume].plain;
        let done = rustix::fs::fallocate(file, mode | FallocateFlags::KEEP_SIZE, span.at, span.len);
        said("fallocate", done.map_err(Into::into))?;
        self.model.zero(span.volume, span.at, span.len);
        Ok(())
    }

    fn truncate(&mut self, volume: usize, len: u64) -> Judged {
        let file = &self.open[volume].plain;
        said("ftruncate", file.set_len(len))?;
        let size = if self.plan.caps.growing { len } else { self.plan.size };
        if !self.plan.caps.growing {
            said("ftruncate back", file.set_len(size))?;
        }
        self.model.resize(volume, len, size);
        self.size_is(volume)
    }

    fn size_is(&self, volume: usize) -> Judged {
        let (told, due) = (said("fstat", self.open[volume].plain.metadata())?.len(), self.model.size(volume));
        if told != due {
            return wrong(format!("volume {volume} is told to have {told} bytes, where {due} are due"));
        }
        Ok(())
    }

    fn seek(&mut self, volume: usize, at: u64) -> Judged {
        let (size, mut at) = (self.model.size(volume), at);
        let file = &self.open[volume].plain;
        while at < size {
            let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(rustix::io::Errno::NXIO) => return self.model.judge_hole(volume, at, size),
                Err(e) => return wrong(format!("SEEK_DATA at {at:#x}: {e}")),
            };
            self.model.judge_hole(volume, at, data)?;
            let hole = said("SEEK_HOLE", rustix::fs::seek(file, SeekFrom::Hole(data)).map_err(Into::into))?;
            if hole <= data || hole > size {
                return wrong(format!("data begins at {data:#x}, and the next hole is told at {hole:#x}"));
            }
            at = hole;
        }
        Ok(())
    }

    fn compare(&mut self) -> Judged {
        for volume in 0..self.plan.volumes {
            self.size_is(volume)?;
            let size = self.model.size(volume);
            let ways = [Some(Way::Plain), self.plan.caps.direct.map(|_| Way::Direct), Some(Way::Mapped)];
            for way in ways.into_iter().flatten() {
                for at in (0..size).step_by(index(COPY_MAX)) {
                    // Whole blocks, for direct I/O: the end of the file cuts it.
                    self.read(Span { volume, at, len: COPY_MAX }, way)?;
                }
            }
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends.
fn read_to_end(file: &File, at: u64, buf: &mut [u8], direct: bool) -> io::Result<u64> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], at + done as u64)? {
            0 => break,
            n => done += n,
        }
        if direct && !done.is_multiple_of(512) {
            break; // only the end of the file cuts a direct read there
        }
    }
    Ok(done as u64)
}

/// An error of the system, where none is due.
fn said<T>(what: &str, answer: io::Result<T>) -> Judged<T> {
    answer.map_err(|e| Fault(format!("{what}: {e}")))
}

/// Fresh ground, again and again.
pub(crate) type Make<'a> = &'a dyn Fn() -> Ground;

/// Copies of a run that went well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Copied {
    /// Answers of `copy_file_range` and entries of the copy calls, as counted here.
    pub(crate) here: u64,
    /// As the server's receipts tell them; none where there is no server.
    pub(crate) told: Option<u64>,
}

/// Runs `steps` on fresh ground.
pub(crate) fn run(plan: &Plan, make: Make<'_>, steps: &[Op]) -> Result<Copied, Failure> {
    let ground = make();
    let mut run = Run::new(plan, &ground).map_err(|fault| Failure { step: 0, fault })?;
    run.all(steps)?;
    Ok(Copied { here: run.copied, told: copies_told(&ground.paths) })
}

/// The copies that the server of these volumes has made, by its receipts.
pub(crate) fn copies_told(paths: &[PathBuf]) -> Option<u64> {
    paths.iter().map(|path| receipt(path)?["copies"].as_u64()).sum()
}

/// The receipt of a mounted volume.
pub(crate) fn receipt(path: &Path) -> Option<serde_json::Value> {
    let mut text = vec![0; 1 << 16];
    let len = rustix::fs::getxattr(path, "user.blkcopy.receipt", &mut text[..]).ok()?;
    serde_json::from_slice(&text[..len]).ok()
}

/// Runs a plan on the place `name`; what was copied. A failure is a panic that tells all.
pub(crate) fn exercise(name: &str, plan: &Plan, make: Make<'_>) -> Copied {
    let steps = plan.steps();
    match run(plan, make, &steps) {
        Ok(copied) => copied,
        Err(failure) => panic!("{}", report(name, plan, make, &steps, &failure)),
    }
}

/// What is said of a failure, the short list of steps included.
pub(crate) fn report(name: &str, plan: &Plan, make: Make<'_>, steps: &[Op], failure: &Failure) -> String {
    let mut text = String::new();
    let mut put = |line: String| writeln!(text, "{line}").expect("writing into a String cannot fail");
    let json = |op: &Op| serde_json::to_string(op).expect("plain data");
    put(format!("\n{name}: seed {}, step {} of {}", plan.seed, failure.step, steps.len()));
    put(failure.fault.0.clone());
    put("the last steps:".to_owned());
    let end = (failure.step + 1).min(steps.len());
    for (i, step) in steps[..end].iter().enumerate().skip(end.saturating_sub(20)) {
        put(format!("  {i} {}", json(step)));
    }
    let short = minimise::minimise(&steps[..end], 60, &mut |list| run(plan, make, list).is_err());
    put(format!("{} steps that still fail:", short.len()));
    for &i in short.iter().take(40) {
        put(format!("  {i} {}", json(&steps[i])));
    }
    let replay = "cargo test -p blkcopy-cli --test exerciser replay -- --nocapture";
    let what =
        format!("place={name},seed={},ops={},growing={}", plan.seed, plan.ops, u8::from(plan.caps.growing));
    put(format!("again: BLKCOPY_EXERCISE=\"{what}\" {replay}"));
    let only: Vec<String> = short.iter().map(ToString::to_string).collect();
    put(format!("short: BLKCOPY_EXERCISE=\"{what},only={}\" {replay}", only.join("+")));
    text
}

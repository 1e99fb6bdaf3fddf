//! Threads side by side in one volume: each has segments of its own, of many lengths, that lie between those of the
//! others, and a model of them alone. They write all sizes at once, so that blocks and pages are shared at every
//! border.
//!
//! What one thread leaves in its segments no other may change: neither a write of a whole block or page round a
//! neighbour's bytes, nor two ways to the same page below.

use super::model::{self, Fault, Judged, Model, index, judge_step, wrong};
use super::ops::{Caps, Way};
use super::{Open, read_to_end, said};
use blkcopy::block::Buf;
use blkcopy::sim::Rng;
use blkcopy::sys::blkcopy::{self as calls, Entry};
use rustix::fs::{FallocateFlags, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Lengths of segments, in bytes: what programs write, and what fits no block.
const LENGTHS: [u64; 8] = [512, 4096, 64 << 10, 1000, 12 << 10, 66_048, 4096 + 512, 128 << 10];
/// Longest segment.
const SEGMENT_MAX: u64 = 128 << 10;

/// What is run.
pub(crate) struct Neighbours<'a> {
    pub(crate) path: &'a Path,
    pub(crate) beat: &'a AtomicU64,
    pub(crate) caps: Caps,
    /// The volume is opened through the page cache: segments are whole pages, since the kernel keeps two ways of one
    /// page no more apart than a file system does.
    pub(crate) cache: bool,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
    /// Steps of each thread.
    pub(crate) rounds: u64,
}

/// A thread's bytes.
#[derive(Clone, Copy)]
struct Segment {
    at: u64,
    len: u64,
}

impl Neighbours<'_> {
    /// Runs the threads; what the volume must hold at the end. The first that is wrong ends all.
    pub(crate) fn run(&self) -> Judged<Vec<u8>> {
        let size = said("stat", std::fs::metadata(self.path))?.len();
        let mut rng = Rng::new(self.seed);
        let mut owned: Vec<Vec<Segment>> = vec![Vec::new(); self.threads];
        let (mut at, mut next) = (0, 0);
        while at < size {
            let len = LENGTHS[rng.index(LENGTHS.len())];
            let len = if self.cache { len.next_multiple_of(4096) } else { len }.min(size - at);
            owned[next % self.threads].push(Segment { at, len });
            (at, next) = (at + len, next + 1);
        }
        let (failed, first) = (AtomicBool::new(false), Mutex::new(None));
        let models: Vec<Model> = std::thread::scope(|scope| {
            let (failed, first) = (&failed, &first);
            let start = |(number, segments): (usize, &Vec<Segment>)| {
                let rng = Rng::new(self.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let segments = segments.clone();
                scope.spawn(move || {
                    let mut one = One::new(self, size, segments, rng);
                    let done = one.as_mut().map_err(|f| f.clone()).and_then(|one| one.run(failed));
                    if let Err(Fault(text)) = done {
                        failed.store(true, Ordering::Relaxed);
                        let text = format!("thread {number}, seed {}: {text}", self.seed);
                        first.lock().expect("no thread panics with it").get_or_insert(text);
                    }
                    one.map_or_else(|_| Model::new(1, size), |one| one.model)
                })
            };
            let threads: Vec<_> = owned.iter().enumerate().map(start).collect();
            threads.into_iter().map(|t| t.join().expect("a thread that fails says so")).collect()
        });
        if let Some(text) = first.lock().expect("no thread panicked").take() {
            return wrong(text);
        }
        let mut whole = Model::new(1, size);
        for (segments, model) in owned.iter().zip(&models) {
            for segment in segments {
                let here = index(segment.at)..index(segment.at + segment.len);
                whole.write(0, segment.at, &model.0[0][here]);
            }
        }
        self.at_the_end(&whole)?;
        Ok(whole.0.remove(0))
    }

    /// The whole volume, by every way to read.
    fn at_the_end(&self, whole: &Model) -> Judged {
        let mut open = said("opening", Open::new(self.path, &self.caps))?;
        let size = whole.size(0);
        for way in [Way::Plain, Way::Direct, Way::Mapped] {
            let mut held = Buf::alloc(index(size)).expect("memory for a test");
            match way {
                Way::Mapped => {
                    let advice = rustix::fs::Advice::DontNeed;
                    said("fadvise", rustix::fs::fadvise(&open.plain, 0, None, advice).map_err(Into::into))?;
                    said("mmap", open.map(size))?.read(0, &mut held);
                }
                _ => said("read", open.file(way).read_exact_at(&mut held, 0))?,
            }
            let name = format!("{way:?} at the end");
            whole.judge_bytes(0, 0, &held, &name.to_lowercase())?;
        }
        Ok(())
    }
}

/// One of the threads.
struct One<'a> {
    all: &'a Neighbours<'a>,
    segments: Vec<Segment>,
    open: Open,
    /// Of the whole volume, true in this thread's segments only.
    model: Model,
    rng: Rng,
    buf: Buf,
}

impl<'a> One<'a> {
    fn new(all: &'a Neighbours<'a>, size: u64, segments: Vec<Segment>, rng: Rng) -> Judged<Self> {
        let open = said("opening", Open::new(all.path, &all.caps))?;
        let buf = Buf::alloc(index(SEGMENT_MAX)).expect("memory for a test");
        Ok(Self { all, segments, open, model: Model::new(1, size), rng, buf })
    }

    fn run(&mut self, failed: &AtomicBool) -> Judged {
        for _ in 0..self.all.rounds {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let segment = self.segments[self.rng.index(self.segments.len())];
            let part = self.part(segment);
            match self.rng.below(20) {
                0..8 => self.write(part)?,
                8..13 => self.read(part)?,
                13 => self.zero(part, FallocateFlags::PUNCH_HOLE)?,
                14 => self.zero(part, FallocateFlags::ZERO_RANGE)?,
                15 => self.holes(segment)?,
                16 => said("fdatasync", self.open.plain.sync_data())?,
                _ => self.copy(part)?,
            }
            self.all.beat.fetch_add(1, Ordering::Relaxed);
        }
        for segment in self.segments.clone() {
            self.read(segment)?;
        }
        Ok(())
    }

    /// All of a segment, half of the time; else some of it, or a whole block.
    fn part(&mut self, segment: Segment) -> Segment {
        let Segment { at, len } = segment;
        match self.rng.below(4) {
            0 | 1 => segment,
            2 if len > 4096 => {
                let from = (at + self.rng.below(len - 4096)).next_multiple_of(512);
                Segment { at: from, len: 4096.min(at + len - from) }
            }
            _ => {
                let from = self.rng.below(len);
                Segment { at: at + from, len: 1 + self.rng.below(len - from) }
            }
        }
    }

    fn way(&mut self, part: Segment) -> Way {
        let whole = part.at.is_multiple_of(512) && part.len.is_multiple_of(512);
        if whole && !self.all.cache && self.rng.below(2) == 0 { Way::Direct } else { Way::Plain }
    }

    fn write(&mut self, part: Segment) -> Judged {
        let (way, salt) = (self.way(part), self.rng.next_u64());
        let bytes = &mut self.buf[..index(part.len)];
        model::fill(bytes, salt);
        said("write", self.open.file(way).write_all_at(bytes, part.at))?;
        self.model.write(0, part.at, bytes);
        Ok(())
    }

    fn read(&mut self, part: Segment) -> Judged {
        let way = self.way(part);
        let bytes = &mut self.buf[..index(part.len)];
        let got = said("read", read_to_end(self.open.file(way), part.at, bytes, way == Way::Direct))?;
        if got != part.len {
            return wrong(format!("a read of {:#x}+{:#x} gives {got} bytes", part.at, part.len));
        }
        self.model.judge_bytes(0, part.at, bytes, &format!("{way:?}").to_lowercase())
    }

    fn zero(&mut self, part: Segment, mode: FallocateFlags) -> Judged {
        let mode = mode | FallocateFlags::KEEP_SIZE;
        let done = rustix::fs::fallocate(&self.open.plain, mode, part.at, part.len);
        said("fallocate", done.map_err(Into::into))?;
        self.model.zero(0, part.at, part.len);
        Ok(())
    }

    /// What of the segment is told as a hole is zero.
    fn holes(&mut self, segment: Segment) -> Judged {
        let end = segment.at + segment.len;
        let data = match rustix::fs::seek(&self.open.plain, SeekFrom::Data(segment.at)) {
            Ok(data) => data.min(end),
            Err(rustix::io::Errno::NXIO) => end,
            Err(e) => return wrong(format!("SEEK_DATA at {:#x}: {e}", segment.at)),
        };
        self.model.judge_hole(0, segment.at, data)
    }

    /// From one segment of this thread to another.
    fn copy(&mut self, from: Segment) -> Judged {
        let to = self.segments[self.rng.index(self.segments.len())];
        let len = from.len.min(to.len);
        if from.at < to.at + to.len && to.at < from.at + from.len {
            return Ok(());
        }
        if self.rng.below(2) == 0 {
            let mut entries = [Entry::new(from.at, to.at, len)];
            let answer = calls::blkcopy(&self.open.plain, &mut entries);
            model::judge_entries(answer, &entries)?;
        } else {
            let mut done = 0;
            while done < len {
                let range = Entry::new(from.at + done, to.at + done, len - done);
                let file = &self.open.plain;
                done += judge_step(calls::copy_file_range(file, file, range), len - done)?;
            }
        }
        self.model.copy((0, from.at), (0, to.at), len);
        Ok(())
    }
}

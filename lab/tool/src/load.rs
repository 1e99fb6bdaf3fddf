//! The load and its check: every block old or new, and what a flush covered is there.

use crate::model::{Model, Op, PART_BLOCKS, Value};
use crate::passthrough::{Copy, Range};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// Operations past the last known flush that may have been done: those before the next one, and as many as its
/// announcement may have been under way. More would hide nothing, each value has a name of its own.
const UNKNOWN_OPS: u64 = 8192;
/// A copy by pass-through that fails because the connection was lost is sent again this often, this far apart.
const COPY_TRIES: u32 = 600;
const COPY_PAUSE: Duration = Duration::from_millis(200);

/// A load of some threads, each with its own part of the device.
pub(crate) struct Load {
    /// Bytes of a block: what the device writes whole.
    unit: usize,
    seed: u64,
    threads: u64,
    /// Some of the writes are Copy commands.
    copies: bool,
}

impl Load {
    pub(crate) fn new([unit, seed, threads]: [&str; 3], rest: &[&str]) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
        let unit = usize::try_from(number(unit)?).map_err(|e| format!("{unit}: {e}"))?;
        let copies = match rest {
            [] => false,
            ["copy"] => true,
            _ => return Err(format!("{}: only \"copy\" may stand here", rest.join(" "))),
        };
        Ok(Self { unit, seed: number(seed)?, threads: number(threads)?, copies })
    }

    /// Runs until `stop` is there, then compares all with what was written.
    pub(crate) fn run(&self, device: &str, stop: &str) -> Result<String, String> {
        let results: Vec<_> = std::thread::scope(|scope| {
            let thread = |t| scope.spawn(move || self.thread(t, device, Path::new(stop)));
            let all: Vec<_> = (0..self.threads).map(thread).collect();
            all.into_iter()
                .map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
                .collect()
        });
        let operations = results.into_iter().sum::<Result<u64, String>>()?;
        Ok(format!("{operations} operations in {} threads, all there", self.threads))
    }

    fn thread(&self, thread: u64, device: &str, stop: &Path) -> Result<u64, String> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(device);
        let file = file.map_err(|e| format!("{device}: {e}"))?;
        let mut model = Model::new(self.seed, thread, self.copies);
        let mut page = Aligned::new(64 * self.unit);
        while !stop.exists() {
            let what = |e: io::Error| format!("thread {thread}, operation {}: {e}", model.done + 1);
            match model.next() {
                Op::Write { at, len } => {
                    let buf = &mut page.bytes()[..len * self.unit];
                    for (block, value) in buf.chunks_exact_mut(self.unit).zip(model.outcome().1) {
                        model.bytes(value, block);
                    }
                    file.write_all_at(buf, self.offset(thread, at)).map_err(what)?;
                }
                Op::Copy { from, at, len } => self.copy(&file, thread, [from, at, len]).map_err(what)?,
                Op::Flush => {
                    file.sync_data().map_err(what)?;
                    println!("@flushed {} {thread} {}", self.seed, model.done + 1);
                }
            }
            model.advance();
        }
        file.sync_data().map_err(|e| format!("the last flush: {e}"))?;
        let mut expected = vec![0; self.unit];
        for (at, value) in model.blocks.iter().enumerate() {
            let block = &mut page.bytes()[..self.unit];
            file.read_exact_at(block, self.offset(thread, at)).map_err(|e| format!("reading back: {e}"))?;
            model.bytes(*value, &mut expected);
            if block != expected {
                let found = Model::claim(block);
                return Err(format!(
                    "thread {thread}, block {at} after {} operations: {found:?}, not {value:?}",
                    model.done
                ));
            }
        }
        Ok(model.done)
    }

    fn copy(&self, file: &File, thread: u64, [from, at, len]: [usize; 3]) -> io::Result<()> {
        let lba = |block| self.offset(thread, block) / self.unit as u64;
        let range =
            Range { slba: lba(from), nlb: u16::try_from(len - 1).expect("a short copy"), ..Range::default() };
        let copy = Copy { dest: lba(at), ranges: vec![range], ..Copy::default() };
        for _ in 1..COPY_TRIES {
            match copy.send(file) {
                Ok(done) if done.status == 0 => return Ok(()),
                // Path related (3h): the connection was lost. Only these, and the errors of a device that is being
                // reset, are worth another try; the same copy done twice is the copy.
                Ok(done) if done.status >> 8 & 7 == 3 => {}
                Ok(done) => return Err(io::Error::other(done.to_string())),
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Err(e),
                Err(_) => {}
            }
            std::thread::sleep(COPY_PAUSE);
        }
        Err(io::Error::other("Copy fails again and again"))
    }

    fn offset(&self, thread: u64, block: usize) -> u64 {
        (thread * PART_BLOCKS as u64 + block as u64) * self.unit as u64
    }

    /// Reads `file` and checks each block against what may be there after the flushes that `flushed` tells of.
    pub(crate) fn check(&self, file: &str, flushed: &str) -> Result<String, String> {
        let floor = self.floor(&fs::read_to_string(flushed).map_err(|e| format!("{flushed}: {e}"))?);
        let image = File::open(file).map_err(|e| format!("{file}: {e}"))?;
        let mut newer = 0;
        for thread in 0..self.threads {
            let mut part = vec![0; PART_BLOCKS * self.unit];
            image.read_exact_at(&mut part, self.offset(thread, 0)).map_err(|e| format!("{file}: {e}"))?;
            let last = floor.get(&thread).copied().unwrap_or(0);
            newer += self.check_part(thread, last, &part)?;
        }
        let covered: u64 = floor.values().sum();
        if covered == 0 {
            return Err("no flush was announced: this check shows nothing".to_owned());
        }
        Ok(format!("{covered} operations flushed and there, {newer} blocks newer"))
    }

    /// The last operation of each thread that a flush covered.
    fn floor(&self, text: &str) -> HashMap<u64, u64> {
        let mut floor = HashMap::new();
        for line in text.lines() {
            let words: Vec<u64> = line.split(' ').filter_map(|w| w.parse().ok()).collect();
            if let [seed, thread, op] = words[..]
                && seed == self.seed
            {
                floor.insert(thread, op);
            }
        }
        floor
    }

    /// Number of blocks that hold something newer than the flush; the text of the first block that is wrong.
    fn check_part(&self, thread: u64, last: u64, part: &[u8]) -> Result<u64, String> {
        let mut model = Model::new(self.seed, thread, self.copies);
        while model.done < last {
            model.advance();
        }
        let mut may_hold: Vec<Vec<Value>> = model.blocks.iter().map(|v| vec![*v]).collect();
        while model.done < last + UNKNOWN_OPS {
            let (at, values) = model.outcome();
            for (i, value) in values.into_iter().enumerate() {
                may_hold[at + i].push(value);
            }
            model.advance();
        }
        let (mut newer, mut expected) = (0, vec![0; self.unit]);
        for (at, (block, may)) in part.chunks_exact(self.unit).zip(&may_hold).enumerate() {
            let found = Model::claim(block);
            let Some(place) = may.iter().position(|v| *v == found) else {
                return Err(format!(
                    "thread {thread}, block {at}: holds {found:?}; flushed up to operation {last} with {:?}",
                    may[0]
                ));
            };
            model.bytes(found, &mut expected);
            if block != expected {
                return Err(format!("thread {thread}, block {at}: torn, it begins as {found:?}"));
            }
            newer += u64::from(place > 0);
        }
        Ok(newer)
    }
}

/// Memory that begins on a page, as direct I/O wants it.
struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
    len: usize,
}

impl Aligned {
    const PAGE: usize = 4096;

    fn new(len: usize) -> Self {
        let bytes = vec![0; len + Self::PAGE];
        let begin = bytes.as_ptr().align_offset(Self::PAGE);
        Self { bytes, begin, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.begin + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn load(copies: bool) -> Load {
        Load { unit: 512, seed: 7, threads: 1, copies }
    }

    /// The part as it stands after `ops` operations.
    fn part(ops: u64, copies: bool) -> Vec<u8> {
        let mut model = Model::new(7, 0, copies);
        (0..ops).for_each(|_| model.advance());
        let mut bytes = vec![0; PART_BLOCKS * 512];
        for (block, value) in bytes.chunks_exact_mut(512).zip(&model.blocks) {
            model.bytes(*value, block);
        }
        bytes
    }

    #[test]
    fn what_was_flushed_and_what_is_newer_passes() {
        for copies in [false, true] {
            assert_eq!(load(copies).check_part(0, 320, &part(320, copies)), Ok(0));
            assert!(load(copies).check_part(0, 320, &part(325, copies)).unwrap() > 0);
        }
    }

    #[test]
    fn a_lost_flushed_write_is_found() {
        assert!(load(false).check_part(0, 320, &part(300, false)).is_err());
        assert!(load(true).check_part(0, 320, &part(300, true)).is_err());
    }

    #[test]
    fn a_torn_block_is_found() {
        let mut bytes = part(320, false);
        let block = bytes.chunks_exact_mut(512).find(|b| b[16] != 0).unwrap();
        block[256..].fill(0);
        assert!(load(false).check_part(0, 320, &bytes).unwrap_err().contains("torn"));
    }

    #[test]
    fn a_block_at_the_wrong_place_is_found() {
        let mut bytes = part(320, false);
        let at = bytes.chunks_exact(512).position(|b| b[16] != 0).unwrap();
        let block = bytes[at * 512..][..512].to_vec();
        let other = (at + 1000) % PART_BLOCKS;
        bytes[other * 512..][..512].copy_from_slice(&block);
        assert!(load(false).check_part(0, 320, &bytes).is_err());
    }

    #[test]
    fn only_flushes_of_this_seed_count() {
        let floor = load(false)
            .floor("@flushed 7 0 16\n@flushed 8 0 64\n@flushed 7 0 32\n@flushed 7 1 48\n@flushed 7");
        assert_eq!((floor[&0], floor[&1], floor.len()), (32, 48, 2));
    }
}

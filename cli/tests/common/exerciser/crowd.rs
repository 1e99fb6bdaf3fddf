//! Many threads on the same volumes at once: blocks carry stamps, and each stamp read must be one that some order
//! allows.
//!
//! Each volume is cut into groups of 16 KiB. A thread writes only groups of its own home and copies only to groups of
//! its own den, from any home. A write fills its group with one word: where it is at home, and the writer's next
//! number. So:
//!
//! - a read of a home group finds a number between the last one known done before it and the last one begun after it;
//! - so does what a copy has made of it, looked at by the thread that copied;
//! - where copies are whole, all groups of one copy are as they were at one moment: with `m` the highest number among
//!   them, each holds the last number up to `m` that its writer, who does one thing after the other, gave it;
//! - after all threads have ended every way to read agrees with what was written and copied last.

use super::model::{Fault, Judged, wrong};
use super::ops::{Caps, Way};
use super::{Open, said};
use blkcopy::block::Buf;
use blkcopy::sim::Rng;
use blkcopy::sys::blkcopy::{self as calls, Entry, Token};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};

/// Bytes of a group.
const GROUP: u64 = 16 << 10;
/// Groups of one thread's home, and of its den, in each volume.
const HOME: u64 = 8;
const VOLUMES: u64 = 2;

/// What is run.
pub(crate) struct Crowd<'a> {
    pub(crate) paths: &'a [PathBuf],
    pub(crate) beat: &'a AtomicU64,
    pub(crate) caps: Caps,
    pub(crate) seed: u64,
    pub(crate) threads: u64,
    pub(crate) rounds: u64,
    /// Copies are whole: no torn group, all groups of one answer from one moment.
    pub(crate) whole_copies: bool,
    /// So are reads, of one group.
    pub(crate) whole_reads: bool,
}

/// A group of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    volume: u64,
    group: u64,
}

impl Place {
    const fn at(self) -> u64 {
        self.group * GROUP
    }

    const fn plus(self, groups: u64) -> Self {
        Self { group: self.group + groups, ..self }
    }

    const fn word(self, number: u64) -> u64 {
        self.volume << 56 | self.group << 40 | number
    }

    const fn of(word: u64) -> (Self, u64) {
        (Self { volume: word >> 56, group: word >> 40 & 0xFFFF }, word & ((1 << 40) - 1))
    }
}

/// The groups of one answer and their numbers, all of one writer.
struct Snapshot {
    /// By which call, and where to.
    how: String,
    groups: Vec<(Place, u64)>,
}

/// What threads know of each other.
struct Known {
    /// Of each home group: the last number begun, the last one done.
    begun: Vec<AtomicU64>,
    done: Vec<AtomicU64>,
    failed: AtomicBool,
    first: Mutex<Option<String>>,
    barrier: Barrier,
}

/// What a thread brings back.
struct Told {
    /// Which group each number went to; number 1 stands first.
    log: Vec<Place>,
    snapshots: Vec<Snapshot>,
    den: BTreeMap<Place, Vec<u64>>,
    copies: u64,
}

impl Crowd<'_> {
    /// Bytes a volume needs.
    pub(crate) const fn size(threads: u64) -> u64 {
        2 * threads * HOME * GROUP
    }

    fn index(&self, place: Place) -> usize {
        let at = place.volume * self.threads * HOME + place.group;
        usize::try_from(at).expect("few groups")
    }

    fn home(&self, thread: u64, volume: u64) -> Place {
        Place { volume, group: thread * HOME }
    }

    fn den(&self, thread: u64, volume: u64) -> Place {
        Place { volume, group: (self.threads + thread) * HOME }
    }

    /// Runs the threads; the copies made, by answer or entry. The first that is wrong ends all.
    pub(crate) fn run(&self) -> Judged<u64> {
        let homes = usize::try_from(VOLUMES * self.threads * HOME).expect("few groups");
        let zeroes = || (0..homes).map(|_| AtomicU64::new(0)).collect();
        let known = Known {
            begun: zeroes(),
            done: zeroes(),
            failed: AtomicBool::new(false),
            first: Mutex::default(),
            barrier: Barrier::new(usize::try_from(self.threads).expect("few threads")),
        };
        // All are made before one starts: they wait for each other.
        let made: Judged<Vec<One<'_>>> = (0..self.threads).map(|t| One::new(self, &known, t)).collect();
        let made = made?;
        let told: Vec<Option<Told>> = std::thread::scope(|scope| {
            let start = |mut one: One<'_>| one.run().is_ok().then_some(one.told);
            let threads: Vec<_> = made.into_iter().map(|one| scope.spawn(move || start(one))).collect();
            threads.into_iter().map(|t| t.join().expect("a thread that fails says so")).collect()
        });
        if let Some(first) = known.first.lock().expect("no thread panicked").take() {
            return wrong(first);
        }
        let told: Vec<Told> = told.into_iter().flatten().collect();
        self.snapshots(&told)?;
        self.at_the_end(&told)?;
        Ok(told.iter().map(|t| t.copies).sum())
    }

    /// Each copy is of one moment.
    fn snapshots(&self, told: &[Told]) -> Judged {
        if !self.whole_copies {
            return Ok(());
        }
        for snapshot in told.iter().flat_map(|t| &t.snapshots) {
            let writer = snapshot.groups[0].0.group / HOME;
            let log = &told[usize::try_from(writer).expect("few threads")].log;
            judge_snapshot(&snapshot.groups, log).map_err(|e| Fault(format!("{}: {}", snapshot.how, e.0)))?;
        }
        Ok(())
    }

    /// Everything as the threads left it, by every way to read.
    fn at_the_end(&self, told: &[Told]) -> Judged {
        let mut due: BTreeMap<Place, Vec<u64>> = BTreeMap::new();
        for one in told {
            for (i, place) in one.log.iter().enumerate() {
                due.insert(*place, vec![place.word(i as u64 + 1)]);
            }
            due.extend(one.den.clone());
        }
        let ways = [Some(Way::Plain), self.caps.direct.map(|_| Way::Direct), Some(Way::Mapped)];
        for (volume, path) in (0..VOLUMES).zip(self.paths) {
            let mut open = said("opening", Open::new(path, &self.caps))?;
            let size = said("fstat", open.plain.metadata())?.len();
            for way in ways.into_iter().flatten() {
                for (place, words) in due.iter().filter(|(p, _)| p.volume == volume) {
                    let mut buf =
                        Buf::alloc(usize::try_from(GROUP).expect("16 KiB")).expect("memory for a test");
                    match way {
                        Way::Mapped => said("mmap", open.map(size))?
                            .read(usize::try_from(place.at()).expect("small"), &mut buf),
                        _ => said("read", open.file(way).read_exact_at(&mut buf, place.at()))?,
                    }
                    let held = words_of(&buf);
                    let same = held.iter().enumerate().all(|(i, w)| *w == words[i % words.len()]);
                    if !same {
                        return wrong(format!(
                            "at the end, read {way:?}: {place:?} holds {}, where {} is due",
                            shown(&held),
                            shown(words)
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// All groups are as they were at one moment, by the writer's log.
fn judge_snapshot(snapshot: &[(Place, u64)], log: &[Place]) -> Judged {
    let newest = snapshot.iter().map(|(_, n)| *n).max().unwrap_or(0);
    for (place, number) in snapshot {
        let upto = usize::try_from(newest).expect("few numbers");
        let due = log[..upto].iter().rposition(|p| p == place).map_or(0, |i| i as u64 + 1);
        if due != *number {
            return wrong(format!(
                "a copy is of no one moment: it holds number {newest}, and {place:?} as of number {number}, which was \
                 {due} by then; all of it: {snapshot:?}"
            ));
        }
    }
    Ok(())
}

fn words_of(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect()
}

fn shown(words: &[u64]) -> String {
    let mut runs: Vec<(u64, usize)> = Vec::new();
    for &word in words {
        match runs.last_mut() {
            Some((last, n)) if *last == word => *n += 1,
            _ => runs.push((word, 1)),
        }
    }
    let shown: Vec<String> = runs.iter().take(6).map(|(w, n)| format!("{n} x {:?}", Place::of(*w))).collect();
    shown.join(", ")
}

/// Every word is `home`'s with a number from `least` to `most`; and they are all one where groups are whole. The
/// number.
fn judge_group(
    what: &str,
    words: &[u64],
    home: Place,
    (least, most): (u64, u64),
    whole: bool,
) -> Judged<u64> {
    if whole && words.iter().any(|w| *w != words[0]) {
        return wrong(format!("{what} {home:?}: a torn group: {}", shown(words)));
    }
    for word in words {
        let (place, number) = Place::of(*word);
        if place != home || number < least || number > most {
            return wrong(format!(
                "{what} {home:?}, numbers {least} to {most} are possible: {}",
                shown(words)
            ));
        }
    }
    Ok(Place::of(words[0]).1)
}

/// One of the threads.
struct One<'a> {
    crowd: &'a Crowd<'a>,
    known: &'a Known,
    thread: u64,
    rng: Rng,
    open: Vec<Open>,
    tokens: Vec<Option<Token>>,
    buf: Buf,
    told: Told,
}

impl<'a> One<'a> {
    fn new(crowd: &'a Crowd<'a>, known: &'a Known, thread: u64) -> Judged<Self> {
        let open = crowd.paths[..2].iter().map(|p| Open::new(p, &crowd.caps)).collect();
        let open: Vec<Open> = said("opening", open)?;
        let token = |o: &Open| crowd.caps.ioctl.then(|| calls::blkcopy_source(&o.plain)).transpose();
        let tokens = said("BLKCOPY_SOURCE", open.iter().map(token).collect())?;
        let told = Told { log: Vec::new(), snapshots: Vec::new(), den: BTreeMap::new(), copies: 0 };
        let rng = Rng::new(crowd.seed ^ thread.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let buf = Buf::alloc(usize::try_from(HOME * GROUP).expect("128 KiB")).expect("memory for a test");
        Ok(Self { crowd, known, thread, rng, open, tokens, buf, told })
    }

    fn run(&mut self) -> Judged {
        let mut done = self.begin();
        // All come here, also who failed: the others wait.
        self.known.barrier.wait();
        for _ in 0..self.crowd.rounds {
            if done.is_err() || self.known.failed.load(Ordering::Relaxed) {
                break;
            }
            done = match self.rng.below(10) {
                0..3 => self.write_one(),
                3..5 => self.read_home(),
                5 => self.read_den(),
                _ => self.copy(),
            };
            self.crowd.beat.fetch_add(1, Ordering::Relaxed);
        }
        if let Err(fault) = &done {
            self.known.failed.store(true, Ordering::Relaxed);
            let text = format!("thread {}, seed {}: {}", self.thread, self.crowd.seed, fault.0);
            self.known.first.lock().expect("no thread panicked").get_or_insert(text);
        }
        done
    }

    /// Gives every home group its first number.
    fn begin(&mut self) -> Judged {
        for volume in 0..VOLUMES {
            for group in 0..HOME {
                self.write(self.crowd.home(self.thread, volume).plus(group))?;
            }
        }
        Ok(())
    }

    fn volume(&mut self) -> u64 {
        self.rng.below(VOLUMES)
    }

    fn open(&self, volume: u64) -> &Open {
        &self.open[usize::try_from(volume).expect("two volumes")]
    }

    fn write_one(&mut self) -> Judged {
        let volume = self.volume();
        let place = self.crowd.home(self.thread, volume).plus(self.rng.below(HOME));
        self.write(place)
    }

    fn write(&mut self, place: Place) -> Judged {
        self.told.log.push(place);
        let number = self.told.log.len() as u64;
        let at = self.crowd.index(place);
        let bytes: Vec<u8> = (0..GROUP / 8).flat_map(|_| place.word(number).to_le_bytes()).collect();
        self.known.begun[at].store(number, Ordering::SeqCst);
        let wrote = said("write", self.open(place.volume).plain.write_at(&bytes, place.at()))?;
        if wrote != bytes.len() {
            return wrong(format!("a write of {GROUP} bytes answers {wrote}"));
        }
        self.known.done[at].store(number, Ordering::SeqCst);
        Ok(())
    }

    fn words(&mut self, place: Place, groups: u64) -> Judged<Vec<u64>> {
        self.words_by(Way::Plain, place, groups)
    }

    fn words_by(&mut self, way: Way, place: Place, groups: u64) -> Judged<Vec<u64>> {
        let mut buf = std::mem::take(&mut self.buf);
        let part = &mut buf[..usize::try_from(groups * GROUP).expect("small")];
        let got = self.open(place.volume).file(way).read_exact_at(part, place.at());
        let words = words_of(part);
        self.buf = buf;
        said("read", got)?;
        Ok(words)
    }

    fn read_home(&mut self) -> Judged {
        let (thread, volume) = (self.rng.below(self.crowd.threads), self.volume());
        let place = self.crowd.home(thread, volume).plus(self.rng.below(HOME));
        let at = self.crowd.index(place);
        let least = self.known.done[at].load(Ordering::SeqCst);
        let words = self.words(place, 1)?;
        let most = self.known.begun[at].load(Ordering::SeqCst);
        judge_group("a read of", &words, place, (least, most), self.crowd.whole_reads).map(drop)
    }

    /// What others copy to is whole, and was written some time.
    fn read_den(&mut self) -> Judged {
        let (thread, volume) = (self.rng.below(self.crowd.threads), self.volume());
        let place = self.crowd.den(thread, volume).plus(self.rng.below(HOME));
        let words = self.words(place, 1)?;
        if words.iter().all(|w| *w == 0) {
            return Ok(());
        }
        if self.crowd.whole_reads && words.iter().any(|w| *w != words[0]) {
            return wrong(format!("a copy at {place:?} is seen half: {}", shown(&words)));
        }
        for word in words.iter().filter(|w| **w != 0) {
            let (home, number) = Place::of(*word);
            let strange = home.volume >= VOLUMES || home.group >= self.crowd.threads * HOME;
            if strange || number > self.known.begun[self.crowd.index(home)].load(Ordering::SeqCst) {
                return wrong(format!("{place:?} holds what was never written: {}", shown(&words)));
            }
        }
        Ok(())
    }

    fn copy(&mut self) -> Judged {
        let (writer, from, to) = (self.rng.below(self.crowd.threads), self.volume(), self.volume());
        let groups = self.rng.below(HOME) + 1;
        let source = self.crowd.home(writer, from).plus(self.rng.below(HOME - groups + 1));
        let dest = self.crowd.den(self.thread, to).plus(self.rng.below(HOME - groups + 1));
        let least = self.numbers(&self.known.done, source, groups);
        // Groups of one answer or entry, which is whole.
        let mut parts = Vec::new();
        let by_ioctl = self.crowd.caps.ioctl && self.rng.below(2) == 0;
        let call = if by_ioctl { "BLKCOPY" } else { "copy_file_range" };
        if by_ioctl {
            let mut entries = Vec::new();
            let mut left = groups;
            while left > 0 {
                let n = self.rng.below(left) + 1;
                let at = groups - left;
                entries.push(Entry::new(source.plus(at).at(), dest.plus(at).at(), n * GROUP));
                parts.push(n);
                left -= n;
            }
            let file = &self.open(to).plain;
            let answer = match self.tokens[usize::try_from(from).expect("two volumes")] {
                Some(token) if from != to => calls::blkcopy_from(file, token, 0, &mut entries),
                _ => calls::blkcopy(file, &mut entries),
            };
            super::judge_entries(answer, &entries)?;
        } else {
            let mut done = 0;
            while done < groups * GROUP {
                let range = Entry::new(source.at() + done, dest.at() + done, groups * GROUP - done);
                let answer = calls::copy_file_range(&self.open(from).plain, &self.open(to).plain, range);
                let n = super::judge_step(answer, range.len)?;
                // A group that two answers share is of neither's moment.
                if n % GROUP != 0 || done % GROUP != 0 {
                    return wrong(format!("copy_file_range of whole blocks answers {n}"));
                }
                parts.push(n / GROUP);
                done += n;
            }
        }
        let most = self.numbers(&self.known.begun, source, groups);
        self.told.copies += parts.len() as u64;
        self.look(call, source, dest, &parts, &least, &most)
    }

    fn numbers(&self, of: &[AtomicU64], first: Place, groups: u64) -> Vec<u64> {
        (0..groups).map(|i| of[self.crowd.index(first.plus(i))].load(Ordering::SeqCst)).collect()
    }

    /// Reads back what was just copied: nobody else copies there.
    fn look(
        &mut self,
        call: &str,
        source: Place,
        dest: Place,
        parts: &[u64],
        least: &[u64],
        most: &[u64],
    ) -> Judged {
        let groups: u64 = parts.iter().sum();
        let words = self.words(dest, groups)?;
        // Round the page cache: what the server holds. Nobody else writes here, so both are the same.
        let held = self.words_by(Way::Direct, dest, groups)?;
        if let Some(at) = words.iter().zip(&held).position(|(a, b)| a != b) {
            return wrong(format!(
                "after {call}, byte {:#x} of volume {}: the page cache holds {:?}, the volume {:?}",
                dest.at() + at as u64 * 8,
                dest.volume,
                Place::of(words[at]),
                Place::of(held[at])
            ));
        }
        let each = usize::try_from(GROUP / 8).expect("2048");
        let mut numbers = Vec::new();
        for (i, words) in words.chunks(each).enumerate() {
            let home = source.plus(i as u64);
            let bounds = (least[i], most[i]);
            let number = judge_group("a copy of", words, home, bounds, self.crowd.whole_copies)?;
            numbers.push((home, number));
            let held = if self.crowd.whole_copies { vec![words[0]] } else { words.to_vec() };
            self.told.den.insert(dest.plus(i as u64), held);
        }
        let mut rest = &numbers[..];
        for &n in parts {
            let (part, behind) = rest.split_at(usize::try_from(n).expect("few groups"));
            let how = format!("{call} of {groups} groups to {dest:?}");
            self.told.snapshots.push(Snapshot { how, groups: part.to_vec() });
            rest = behind;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(group: u64) -> Place {
        Place { volume: 0, group }
    }

    #[test]
    fn a_copy_of_two_moments_is_told_from_one_of_one() {
        let log = [place(0), place(1), place(0), place(1)];
        for (a, b) in [(1, 2), (3, 2), (3, 4)] {
            judge_snapshot(&[(place(0), a), (place(1), b)], &log).unwrap();
        }
        // Group 1 as of its second number, group 0 as it was before its second: that came first.
        assert!(judge_snapshot(&[(place(0), 1), (place(1), 4)], &log).is_err());
        // Group 0 as of number 1, before group 1 had any, and group 1 with one.
        assert!(judge_snapshot(&[(place(0), 3), (place(1), 0)], &log).is_err());
    }

    #[test]
    fn torn_stale_early_and_foreign_groups_are_seen() {
        let word = |n| place(3).word(n);
        let judge = |words: &[u64], whole| judge_group("", words, place(3), (4, 6), whole);
        assert_eq!(judge(&[word(5), word(5)], true), Ok(5));
        assert!(judge(&[word(5), word(6)], true).is_err() && judge(&[word(5), word(6)], false).is_ok());
        assert!(judge(&[word(3)], true).is_err() && judge(&[word(7)], true).is_err());
        assert!(judge(&[place(4).word(5)], false).is_err());
    }
}

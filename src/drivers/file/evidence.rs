//! What became of the bytes that a copy call of the kernel reported as copied: the file system is asked where they are.
//!
//! `copy_file_range` on XFS shares when it can and copies when it cannot, and answers the same. FIEMAP tells them
//! apart: bytes that are shared have one place at both ends and the shared flag. Looking costs system calls, so it is
//! held to [`SHARE_OF_TIME`] of the time of the copies themselves; beyond that it is sampled, and says so.

use super::core::Core;
use super::statement::Said;
use crate::block::{ByteRange, Evidence, Fate, Fates, Method};
use crate::sys::fiemap::{self, FileExtent};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Looking takes at most one part in so many of the time of the copies.
const SHARE_OF_TIME: u32 = 50;
/// Calls of FIEMAP on one end in one look, at most; each answers up to [`fiemap::EXTENTS_A_CALL`] extents.
const CALLS_MAX: u32 = 64;

/// What is known of copies onto one file so far.
#[derive(Default)]
pub(crate) struct Looks {
    /// Nanoseconds that copies took, and that looking took.
    copied: AtomicU64,
    looked: AtomicU64,
    /// What all bytes looked at so far have become; none: not all the same, or nothing was looked at.
    alike: AtomicU64,
    /// This file system does not say where bytes are.
    is_off: AtomicBool,
}

/// Values of [`Looks::alike`]: nothing looked at, not all the same, and each fate from here on.
const NONE: u64 = 0;
const MIXED: u64 = 1;
const FATES: [(u64, Fate); 4] =
    [(2, Fate::Shared), (3, Fate::ThroughKernel), (4, Fate::Unknown), (5, Fate::NoData)];

impl Looks {
    /// The fate of all bytes looked at, if they had one.
    fn alike(&self) -> Option<Fate> {
        let value = self.alike.load(Ordering::Relaxed);
        FATES.iter().find(|(number, _)| *number == value).map(|(_, fate)| *fate)
    }

    fn take_down(&self, fates: &Fates) {
        let mut seen = fates.iter().map(|one| one.fate);
        let Some(first) = seen.next() else { return };
        let number = match FATES.iter().find(|(_, fate)| *fate == first) {
            Some((number, _)) if seen.all(|fate| fate == first) => *number,
            _ => MIXED,
        };
        let before = self.alike.load(Ordering::Relaxed);
        let now = if before == NONE || before == number { number } else { MIXED };
        self.alike.store(now, Ordering::Relaxed);
    }

    /// True when another look is within its share of the time.
    fn is_affordable(&self) -> bool {
        let looked = self.looked.load(Ordering::Relaxed);
        looked == 0 || looked.saturating_mul(SHARE_OF_TIME.into()) <= self.copied.load(Ordering::Relaxed)
    }
}

/// A copy that the kernel has reported as done.
pub(super) struct Reported<'a> {
    pub(super) method: Method,
    pub(super) source: &'a Core,
    pub(super) dest: &'a Core,
    /// Source ranges, end to end.
    pub(super) sources: &'a [ByteRange],
    /// Where they went.
    pub(super) to: ByteRange,
    /// How long the calls took.
    pub(super) took: Duration,
    /// What the daemon of our own mount had said before, where the destination is one of its files.
    pub(super) before: Option<Said>,
}

impl Reported<'_> {
    /// What became of the first `good` bytes.
    pub(super) fn fates(&self, good: u64) -> Fates {
        let looks = &self.dest.looks;
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        looks.copied.fetch_add(nanos(self.took), Ordering::Relaxed);
        if good == 0 {
            return Fates::default();
        }
        if let Some(before) = &self.before {
            let begun = Instant::now();
            let said = Said::of(&*self.dest.fd).and_then(|after| after.since(before, good));
            looks.looked.fetch_add(nanos(begun.elapsed()).max(1), Ordering::Relaxed);
            return said.unwrap_or_else(|| Fates::all(Fate::Unknown, Evidence::Nothing, good));
        }
        if looks.is_off.load(Ordering::Relaxed) {
            return self.without_looking(good);
        }
        if !looks.is_affordable() {
            return match (self.method, looks.alike()) {
                (Method::Reflink, _) => Fates::all(Fate::Shared, Evidence::CloneCall, good),
                (_, Some(fate)) => Fates::all(fate, Evidence::ExtentsSampled, good),
                (_, None) => Fates::all(Fate::Unknown, Evidence::Nothing, good),
            };
        }
        let begun = Instant::now();
        let seen = self.look(good, self.took / SHARE_OF_TIME);
        looks.looked.fetch_add(nanos(begun.elapsed()).max(1), Ordering::Relaxed);
        match seen {
            Some(fates) => {
                looks.take_down(&fates);
                fates
            }
            None => {
                looks.is_off.store(true, Ordering::Relaxed);
                self.without_looking(good)
            }
        }
    }

    /// What is known on a file system that does not say where bytes are.
    fn without_looking(&self, good: u64) -> Fates {
        match self.method {
            Method::Reflink => Fates::all(Fate::Shared, Evidence::CloneCall, good),
            _ if self.source.copies_here && self.dest.copies_here => {
                Fates::all(Fate::ThroughKernel, Evidence::FileSystemKind, good)
            }
            _ => Fates::all(Fate::Unknown, Evidence::Nothing, good),
        }
    }

    /// Looks where the first `good` bytes are, for about this long. `None`: the file system does not say.
    fn look(&self, good: u64, patience: Duration) -> Option<Fates> {
        let (mut fates, mut done) = (Fates::default(), 0);
        let end = Instant::now() + patience;
        let mut calls = 0;
        for &source in self.sources {
            let mut from = source.prefix(good - done);
            while !from.is_empty() {
                calls += 1;
                if calls > CALLS_MAX || (calls > 1 && Instant::now() > end) {
                    self.guess_rest(&mut fates, good - done);
                    return Some(fates);
                }
                let to = ByteRange::between(self.to.offset() + done, self.to.offset() + done + from.len());
                let seen = self.look_at(from, to, &mut fates)?;
                done += seen;
                from = from.after(seen);
            }
            if done == good {
                break;
            }
        }
        Some(fates)
    }

    /// The bytes that were not looked at are taken to be like the others only if those were all alike.
    fn guess_rest(&self, fates: &mut Fates, rest: u64) {
        let first = fates.iter().next().map(|one| one.fate);
        let one = first.filter(|first| fates.iter().all(|other| other.fate == *first));
        match one {
            Some(fate) => fates.add(fate, Evidence::ExtentsSampled, rest),
            None => fates.add(Fate::Unknown, Evidence::Nothing, rest),
        }
    }

    /// Counts what became of the front of one pair of ranges: as much as one call on each end shows. Its length, above
    /// 0.
    fn look_at(&self, from: ByteRange, to: ByteRange, fates: &mut Fates) -> Option<u64> {
        let mut there = Extents::of(&self.dest.fd, to, false)?;
        if self.method != Method::Reflink && there.found.iter().any(FileExtent::is_shared) {
            // They may be those of before, with what was copied still in the cache: such a copy wrote into a clone.
            there = Extents::of(&self.dest.fd, to, true)?;
        }
        let comparable = self.source.file_system == self.dest.file_system;
        let here = if comparable { Extents::of(&self.source.fd, from, false)? } else { Extents::default() };
        let mut len = there.covered.min(to.len());
        if comparable {
            len = len.min(here.covered);
        }
        let moved = if self.source.copies_here && self.dest.copies_here {
            Fate::ThroughKernel
        } else {
            // Maybe a server.
            Fate::Unknown
        };
        let mut at = 0;
        while at < len {
            let (dest, end) = there.at(to.offset() + at);
            let mut stretch = (end - (to.offset() + at)).min(len - at);
            let fate = match dest {
                None => Fate::NoData,
                // Equal places of compressed extents prove nothing: the bytes inside have none. A clone shares or
                // fails.
                Some(dest) if dest.is_encoded() => {
                    if self.method == Method::Reflink {
                        fates.add(Fate::Shared, Evidence::CloneCall, stretch);
                        at += stretch;
                        continue;
                    }
                    if dest.is_shared() { Fate::Unknown } else { moved }
                }
                Some(dest) if dest.is_shared() && dest.has_place() && comparable => {
                    let (source, end) = here.at(from.offset() + at);
                    stretch = stretch.min(end - (from.offset() + at));
                    let same =
                        source.is_some_and(|s| is_same_place(s, from.offset() + at, dest, to.offset() + at));
                    if same { Fate::Shared } else { moved }
                }
                Some(_) => moved,
            };
            let how = if fate == Fate::Unknown { Evidence::Nothing } else { Evidence::Extents };
            fates.add(fate, how, stretch);
            at += stretch;
        }
        Some(len)
    }
}

/// True when both bytes are one on storage.
fn is_same_place(source: FileExtent, from: u64, dest: FileExtent, to: u64) -> bool {
    if !source.is_shared() || !source.has_place() || source.is_encoded() {
        return false;
    }
    source.physical.wrapping_add(from - source.logical) == dest.physical.wrapping_add(to - dest.logical)
}

/// The extents of the front of a range.
#[derive(Default)]
struct Extents {
    found: Vec<FileExtent>,
    /// End of the range.
    end: u64,
    /// So many bytes from its front are covered by what was found.
    covered: u64,
}

impl Extents {
    /// `written_out`: what is cached is stored first.
    fn of(fd: &OwnedFd, range: ByteRange, written_out: bool) -> Option<Self> {
        let mut found = Vec::new();
        let ask = if written_out { fiemap::extents_written_out } else { fiemap::extents };
        let all = ask(fd, range.offset(), range.len(), &mut found).ok()?;
        let end = match found.last() {
            Some(last) if !all => last.end().min(range.end()),
            _ => range.end(),
        };
        Some(Self {
            found,
            end: range.end(),
            covered: end.saturating_sub(range.offset()).max(1).min(range.len()),
        })
    }

    /// The extent that holds the byte at `offset`, if one does, and up to where that holds.
    fn at(&self, offset: u64) -> (Option<FileExtent>, u64) {
        let next = self.found.partition_point(|extent| extent.end() <= offset);
        match self.found.get(next) {
            Some(extent) if extent.logical <= offset => (Some(*extent), extent.end().max(offset + 1)),
            Some(extent) => (None, extent.logical),
            None => (None, self.end.max(offset + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_differ_tell_nothing_of_what_was_not_looked_at() {
        let looks = Looks::default();
        assert!(looks.is_affordable() && looks.alike().is_none());
        let shared = Fates::all(Fate::Shared, Evidence::Extents, 10);
        looks.take_down(&shared);
        looks.take_down(&shared);
        assert_eq!(looks.alike(), Some(Fate::Shared));
        looks.take_down(&Fates::all(Fate::ThroughKernel, Evidence::Extents, 10));
        assert_eq!(looks.alike(), None);
        looks.take_down(&shared);
        assert_eq!(looks.alike(), None, "it has been both");
    }

    #[test]
    fn looking_is_held_to_its_share_of_the_time() {
        let looks = Looks::default();
        looks.looked.store(20, Ordering::Relaxed);
        looks.copied.store(999, Ordering::Relaxed);
        assert!(!looks.is_affordable());
        looks.copied.store(1000, Ordering::Relaxed);
        assert!(looks.is_affordable());
    }
}

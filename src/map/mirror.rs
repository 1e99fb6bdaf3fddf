//! Devices with the same bytes: writes go to all, reads to one that is up to date.
//!
//! The device is cut into regions, and for each is known which legs are current: a leg that missed a write, zero,
//! discard or copy there is not, from then on. Reads go to a current leg, and where all of them fail the request fails:
//! a stale leg never answers. A write that fails on every current leg leaves each block old or new on each, maybe not
//! the same way, so one leg is made the current one (the one with most good bytes, else the first of them), and reads
//! stay the same from then on. The same rule holds for a guard dropped without commit, of which nothing is known.
//!
//! The record lives in memory: a mirror that is put together again starts in sync, so its owner must have copied a
//! current leg over the others first.

use super::layer::{Layer, Ready};
use super::mapping::{Mapping, OnLeg, Part, Parts, Settled, Written};
use crate::block::{ByteRange, Device, Result};
use crate::sys::sync::lock;
use smallvec::{SmallVec, smallvec};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Most regions: bounds the record (one byte each) to 16 MiB.
const REGIONS_MAX: u64 = 1 << 24;
/// Most legs: each has a bit of a region's byte.
const LEGS_MAX: usize = 8;

/// Devices with the same bytes.
pub type Mirror = Layer<SameBytes>;

impl Layer<SameBytes> {
    /// A mirror of `legs`, in sync, keeping its record by regions of `region_bytes`.
    ///
    /// Errors: `InvalidInput` without a leg or with more than 8, when they differ in size, when the size is not a
    /// multiple of the largest block size, or when `region_bytes` is not a multiple of it or gives more than 16 Mi
    /// regions; `Overlap` when legs share blocks.
    pub fn new(
        name: impl Into<String>,
        legs: impl Into<Vec<Arc<dyn Device>>>,
        region_bytes: NonZeroU64,
    ) -> Result<Self> {
        let ready = Ready::new(name, legs)?;
        let size = ready.legs[0].size();
        if ready.legs.len() > LEGS_MAX {
            return Err(ready.invalid(format!(
                "{} legs are more than the {LEGS_MAX} allowed; use fewer",
                ready.legs.len()
            )));
        }
        if let Some(other) = ready.legs.iter().map(|leg| leg.size()).find(|&s| s != size) {
            let text = format!("the legs have {size} and {other} bytes; use a range of the longer one");
            return Err(ready.invalid(text));
        }
        ready.check_whole("a leg", size)?;
        ready.check_whole("a region", region_bytes.get())?;
        let count = size.div_ceil(region_bytes.get());
        let all = u8::MAX >> (LEGS_MAX - ready.legs.len());
        let regions = match usize::try_from(count) {
            Ok(n) if count <= REGIONS_MAX => Mutex::new(vec![all; n]),
            _ => {
                let text =
                    format!("{count} regions are more than the {REGIONS_MAX} allowed; use longer regions");
                return Err(ready.invalid(text));
            }
        };
        let (dirty, generation) = (AtomicU64::new(0), AtomicU64::new(0));
        ready.layer(size, SameBytes { region_bytes, all, regions, dirty, generation })
    }

    /// Numbers of the regions where `leg` is out of sync, in order. Region n begins at byte n times the region size.
    pub fn dirty_regions(&self, leg: usize) -> Vec<u64> {
        let regions = self.mapping().lock();
        regions.iter().zip(0..).filter(|&(&current, _)| !has(current, leg)).map(|(_, n)| n).collect()
    }

    /// Size of a region in bytes.
    pub fn region_bytes(&self) -> u64 {
        self.mapping().region_bytes.get()
    }
}

/// The layout of [`Mirror`].
pub struct SameBytes {
    region_bytes: NonZeroU64,
    /// A bit for each leg.
    all: u8,
    /// The legs that are current, never none, region by region.
    regions: Mutex<Vec<u8>>,
    /// Regions that are not current on all legs: 0 lets reads pass without the lock.
    dirty: AtomicU64,
    generation: AtomicU64,
}

const fn bit(leg: usize) -> u8 {
    1 << leg
}

const fn has(current: u8, leg: usize) -> bool {
    leg < LEGS_MAX && current & bit(leg) != 0
}

/// The legs of a set, in order.
fn legs(set: u8) -> impl Iterator<Item = usize> {
    (0..LEGS_MAX).filter(move |&leg| has(set, leg))
}

impl SameBytes {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // Regions change one at a time, each to a valid state.
        lock(&self.regions)
    }

    /// The regions under `range`: (index, the part of `range` in it), in order.
    fn regions_of(&self, range: ByteRange) -> impl Iterator<Item = (usize, ByteRange)> {
        let unit = self.region_bytes.get();
        let mut rest = range;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let index = rest.offset() / unit;
            let part = rest.prefix(unit - rest.offset() % unit);
            rest = rest.after(part.len());
            Some((usize::try_from(index).expect("below the region count, which is a usize"), part))
        })
    }

    /// The legs that are current on all of `range`.
    fn current(&self, range: ByteRange) -> u8 {
        let regions = self.lock();
        self.regions_of(range).fold(self.all, |set, (index, _)| set & regions[index])
    }

    /// Sets which legs are current in a region, under the lock.
    fn set(&self, region: &mut u8, current: u8) {
        if *region == current {
            return;
        }
        if *region == self.all {
            self.dirty.fetch_add(1, Ordering::Release);
        }
        *region = current;
        // Last: who sees it new sees the count new too.
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// A part on these legs, at the same place on each.
    fn part(range: ByteRange, set: u8) -> Part {
        Part { range, legs: legs(set).map(|leg| OnLeg { leg, offset: range.offset() }).collect() }
    }
}

impl Mapping for SameBytes {
    // Whatever their state: a stale leg is not made worse, and need not be looked up.
    fn parts(&self, range: ByteRange) -> Parts {
        smallvec![Self::part(range, self.all)]
    }

    fn sources(&self, range: ByteRange) -> Parts {
        let first = |set: u8| bit(legs(set).next().unwrap_or(0));
        if self.dirty.load(Ordering::Acquire) == 0 || range.is_empty() {
            return smallvec![Self::part(range, first(self.all))];
        }
        let mut runs: SmallVec<[(ByteRange, u8); 2]> = SmallVec::new();
        let regions = self.lock();
        for (index, part) in self.regions_of(range) {
            let leg = first(regions[index]);
            match runs.last_mut() {
                Some((run, on)) if *on == leg => *run = ByteRange::between(run.offset(), part.end()),
                _ => runs.push((part, leg)),
            }
        }
        runs.into_iter().map(|(run, leg)| Self::part(run, leg)).collect()
    }

    fn another(&self, part: ByteRange, tried: &[usize]) -> Option<OnLeg> {
        let leg = legs(self.current(part)).find(|leg| !tried.contains(leg))?;
        Some(OnLeg { leg, offset: part.offset() })
    }

    fn copies(&self, range: ByteRange) -> Parts {
        self.regions_of(range).map(|(_, part)| Self::part(part, self.current(part))).collect()
    }

    fn settle(&self, written: &[Written]) -> Settled {
        let (mut total, mut decided_by) = (0, None);
        for (number, write) in written.iter().enumerate() {
            if decided_by.is_none() && write.good.iter().all(|&(_, good)| good >= write.range.len()) {
                total += write.range.len();
                continue;
            }
            let mut regions = self.lock();
            for (index, part) in self.regions_of(write.range) {
                let start = part.offset() - write.range.offset();
                let here = |leg: usize| {
                    let good = write.good.iter().find(|&&(on, _)| on == leg).map_or(0, |&(_, good)| good);
                    good.saturating_sub(start).min(part.len())
                };
                let region = &mut regions[index];
                let best = legs(*region).map(here).max().unwrap_or(0);
                let with_best = legs(*region).filter(|&leg| here(leg) == best);
                // Whole on some, those stay; else the legs may differ in what is new, and one of them decides.
                let now = if best == part.len() {
                    with_best.fold(0, |set, leg| set | bit(leg))
                } else {
                    bit(with_best.min().unwrap_or(0))
                };
                self.set(region, now);
                if decided_by.is_none() {
                    total += best;
                    decided_by = (best < part.len()).then(|| (number, legs(now).next().unwrap_or(0)));
                }
            }
        }
        Settled { good: total, decided_by }
    }

    /// What was written there before may be lost, wherever it was.
    fn settle_flush(&self, failed: &[usize]) -> bool {
        let failed = failed.iter().fold(0, |set, &leg| set | bit(leg));
        let mut durable = true;
        for region in &mut *self.lock() {
            let left = *region & !failed;
            durable &= left != 0;
            if left != 0 {
                self.set(region, left);
            }
        }
        durable
    }

    /// Of the leg that takes most: a mirror is as large as one of them.
    fn allocated(&self, legs: &[(Option<u64>, u64)]) -> Option<u64> {
        legs.iter().map(|(takes, _)| *takes).reduce(|a, b| a.zip(b).map(|(a, b)| a.max(b))).flatten()
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

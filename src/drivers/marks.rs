//! What tells that another program wrote to a source: size and times of a file, and what the system counts of writes
//! through a block device.

use super::file::{generation_of, look};
use super::in_use::{Disk, sys_dir};
use super::{Bdev, File};
use crate::block::Device;
use crate::sys::ioctl;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Everything that would differ, and can be asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Marks {
    /// The device's own number: size and times of a file, the container of a namespace.
    generation: u64,
    /// Of a block device.
    counted: Option<Counted>,
    /// Size and times of the file behind a loop device.
    backing: Option<u64>,
}

/// What the system has counted for a block device, in sectors of 512 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counted {
    read: u64,
    /// Written or discarded.
    changed: u64,
}

impl Marks {
    /// As they are now.
    pub(super) fn of(device: &dyn Device) -> Self {
        let bdev = device.as_any().downcast_ref::<Bdev>();
        Self {
            generation: device.generation(),
            counted: bdev.and_then(|bdev| counted(bdev.rdev())),
            backing: bdev.and_then(backing),
        }
    }

    /// True when something was written between the two.
    pub(super) fn differ(&self, now: &Self) -> bool {
        let changed = |marks: &Self| marks.counted.map(|counted| counted.changed);
        self.generation != now.generation || changed(self) != changed(now) || self.backing != now.backing
    }

    /// False where a block device was read between the two and the system counted nothing: it would not count writes
    /// either.
    pub(super) fn count_reads(&self, now: &Self) -> bool {
        matches!((self.counted, now.counted), (Some(then), Some(now)) if then.read != now.read)
    }
}

/// The counters of a block device; `None` where they are switched off or unknown.
fn counted(rdev: u64) -> Option<Counted> {
    let queue = sys_dir(Disk::of(rdev).whole).join("queue/iostats");
    if std::fs::read_to_string(queue).is_ok_and(|on| on.trim() == "0") {
        return None;
    }
    parse(&std::fs::read_to_string(sys_dir(rdev).join("stat")).ok()?)
}

/// Waits a moment for writes to a block device that are under way: they are counted when they end.
pub(super) fn wait_for_writes(device: &dyn Device) {
    let Some(bdev) = device.as_any().downcast_ref::<Bdev>() else { return };
    let file = sys_dir(bdev.rdev()).join("inflight");
    for _ in 0..50 {
        // Documentation/ABI/stable/sysfs-block: reads and writes.
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if text.split_whitespace().nth(1).is_none_or(|writes| writes == "0") {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Documentation/block/stat.rst: for reads, writes, and (since Linux 4.18) discards each requests, merges, sectors and
/// time, with three other numbers before the discards.
fn parse(text: &str) -> Option<Counted> {
    let numbers: Option<Vec<u64>> = text.split_whitespace().map(|n| n.parse().ok()).collect();
    let numbers = numbers?;
    let discarded = numbers.get(13).copied().unwrap_or(0);
    Some(Counted { read: *numbers.get(2)?, changed: numbers.get(6)?.wrapping_add(discarded) })
}

/// Size and times of the file that a loop device, or the disk of a partition on one, shows: it may be written to past
/// the device.
fn backing(bdev: &Bdev) -> Option<u64> {
    let disk = sys_dir(Disk::of(bdev.rdev()).whole);
    let shown = std::fs::read_to_string(disk.join("loop/backing_file")).ok()?;
    let stat = look(&PathBuf::from(shown.trim_end())).ok()?;
    // A partition's descriptor answers for its disk.
    let backing = ioctl::loop_backing(bdev.fd()).ok()?;
    ((backing.dev, backing.inode) == (stat.st_dev, stat.st_ino)).then(|| generation_of(&stat))
}

/// Waits until a change of a file kept by this kernel gets another time than the last one: times are those of the
/// system's clock tick (4 ms, 10 ms at most), so a change in the tick of the one before leaves no trace.
pub(super) fn wait_for_the_tick(file: &File) {
    for _ in 0..20 {
        let Ok(stat) = rustix::fs::fstat(file) else { return };
        let tick = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        let changed = (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0));
        if changed < (tick.tv_sec, tick.tv_nsec) || is_far_ahead(changed.0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// True for a time that the clock reaches in a minute or later: it was set back since.
fn is_far_ahead(seconds: i64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    u64::try_from(seconds).is_ok_and(|at| at > now.saturating_add(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_parsed() {
        let old = "  10 1 800 5 20 2 1600 9 0 12 14\n";
        assert_eq!(parse(old), Some(Counted { read: 800, changed: 1600 }));
        let new = "10 1 800 5 20 2 1600 9 0 12 14 3 0 24 1 7 1\n";
        assert_eq!(parse(new), Some(Counted { read: 800, changed: 1624 }));
        for bad in ["", "1 2 3", "1 2 x 4 5 6 7 8 9 10 11"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

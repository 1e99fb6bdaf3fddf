//! Limits that hold for every subsystem of a target.

use super::features::COPY_FORMATS;
use crate::block::{Error, Kind, Result};
use crate::nvme::Count16;

/// Limits that hold for every subsystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Entries of the largest queue (MQES): 32 to 4096, so that a host's usual admin queue fits.
    pub queue_entries: Count16,
    /// Most I/O queues of one controller: 1 to 1024.
    pub io_queues: u16,
    /// Longest data of one command in bytes: a power of two, 4096 to 2^30 (MDTS).
    pub transfer_bytes: u32,
    /// Most data in a capsule of an I/O queue in bytes: a multiple of 16 (IOCCSZ). From 10240 on every Copy's list
    /// fits.
    pub in_capsule_bytes: u32,
    /// Formats of Copy that are always on, a bit each, whatever a host sets in Host Behavior Support: for hosts that
    /// cannot set it. 0h and 1h are on anyway.
    pub copy_formats: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_entries: Count16::from_wire(127),
            io_queues: 64,
            transfer_bytes: 1 << 20,
            in_capsule_bytes: 10240,
            copy_formats: 0,
        }
    }
}

impl Settings {
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::new(Kind::InvalidInput, text));
        if !(32..=4096).contains(&self.queue_entries.get()) {
            return wrong(format!(
                "queues of {} entries are not possible; give 32 to 4096",
                self.queue_entries
            ));
        }
        if !(1..=1024).contains(&self.io_queues) {
            return wrong(format!(
                "{} I/O queues a controller are not possible; give 1 to 1024",
                self.io_queues
            ));
        }
        if !self.transfer_bytes.is_power_of_two() || !(4096..=1 << 30).contains(&self.transfer_bytes) {
            let text = format!(
                "transfers of {} bytes are not possible; give a power of two from 4096 to 2^30",
                self.transfer_bytes
            );
            return wrong(text);
        }
        if !self.in_capsule_bytes.is_multiple_of(16) || self.in_capsule_bytes > self.transfer_bytes {
            let text = format!(
                "{} bytes in a capsule are not possible; give a multiple of 16 up to {}",
                self.in_capsule_bytes, self.transfer_bytes
            );
            return wrong(text);
        }
        if self.copy_formats & !COPY_FORMATS != 0 {
            let text = format!(
                "Copy formats {:#06b} cannot be switched on: there are those of {COPY_FORMATS:#06b}",
                self.copy_formats
            );
            return wrong(text);
        }
        Ok(())
    }
}

//! What a copy has done so far.

use crate::block::receipt::{Deviation, HostBytes, Span};
use crate::block::{Fates, Method};
use std::collections::BTreeMap;

/// What was done so far.
#[derive(Default)]
pub(super) struct Tally {
    /// Good bytes in all.
    pub(super) good: u64,
    /// Good bytes from the front of the job without a gap.
    pub(super) prefix: u64,
    stretches: BTreeMap<u64, u64>,
    pub(super) methods: BTreeMap<Method, u64>,
    pub(super) fates: Fates,
    pub(super) host: HostBytes,
    pub(super) deviations: Vec<Deviation>,
    pub(super) deviations_total: u64,
    pub(super) undefined: Vec<Span>,
    /// Bytes copied once more, because they may have been lost.
    pub(super) copied_again: u64,
}

impl Tally {
    /// Counts bytes moved by a method, and what became of them.
    pub(super) fn by(&mut self, method: Method, bytes: u64, fates: &Fates) {
        if bytes > 0 {
            *self.methods.entry(method).or_default() += bytes;
            self.fates.merge(fates);
        }
    }

    /// How far the copy is, without what it cost.
    pub(super) fn progress(&self) -> Self {
        Self {
            good: self.good,
            prefix: self.prefix,
            stretches: self.stretches.clone(),
            methods: self.methods.clone(),
            fates: self.fates.clone(),
            ..Self::default()
        }
    }

    /// No more than this is known to be good.
    pub(super) fn back_to(&mut self, before: Self) {
        (self.good, self.prefix) = (before.good, before.prefix);
        (self.stretches, self.methods, self.fates) = (before.stretches, before.methods, before.fates);
    }

    pub(super) fn good_at(&mut self, position: u64, len: u64) {
        if len == 0 {
            return;
        }
        self.good += len;
        self.stretches.insert(position, position + len);
        while let Some(entry) = self.stretches.first_entry() {
            if *entry.key() != self.prefix {
                break;
            }
            self.prefix = entry.remove();
        }
    }
}

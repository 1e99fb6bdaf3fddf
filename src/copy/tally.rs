//! What a copy has done so far.

use crate::block::Method;
use crate::block::receipt::{Deviation, HostBytes, Span};
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
    pub(super) host: HostBytes,
    pub(super) deviations: Vec<Deviation>,
    pub(super) deviations_total: u64,
    pub(super) undefined: Vec<Span>,
    /// Bytes copied once more, because they may have been lost.
    pub(super) copied_again: u64,
}

impl Tally {
    /// Counts bytes moved by a method.
    pub(super) fn by(&mut self, method: Method, bytes: u64) {
        if bytes > 0 {
            *self.methods.entry(method).or_default() += bytes;
        }
    }

    /// How far the copy is, without what it cost.
    pub(super) fn progress(&self) -> Self {
        Self {
            good: self.good,
            prefix: self.prefix,
            stretches: self.stretches.clone(),
            methods: self.methods.clone(),
            ..Self::default()
        }
    }

    /// No more than this is known to be good.
    pub(super) fn back_to(&mut self, before: Self) {
        (self.good, self.prefix) = (before.good, before.prefix);
        (self.stretches, self.methods) = (before.stretches, before.methods);
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

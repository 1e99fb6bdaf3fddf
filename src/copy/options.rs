//! How a copy is to be run, and how far it is.

use super::{Policy, Pulse};
use crate::block::Method;
use crate::block::lock::CoreLocks;
use crate::block::request::Cancel;
use std::cell::Cell;
use std::num::NonZeroU64;
use std::rc::Rc;

/// What is locked together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Consistency {
    /// Each request of the plan by itself: no reader sees half a request.
    #[default]
    Request,
    /// The whole job: no reader sees half a copy, no writer gets in between.
    Whole,
}

impl Consistency {
    /// The word in receipts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Whole => "whole",
        }
    }
}

/// How the result is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// Not at all.
    #[default]
    None,
    /// BLAKE3 of both ends, the destination read back after the flush.
    Digest,
    /// Byte by byte, the destination read back after the flush.
    Bytes,
}

/// How a copy is to be run.
#[derive(Clone)]
pub struct Options {
    /// What the planner is told.
    pub policy: Policy,
    /// What is locked together.
    pub consistency: Consistency,
    /// Check at the end.
    pub verify: Verify,
    /// Highest rate in bytes per second, for all methods together; `None`: no limit.
    pub limit_rate: Option<NonZeroU64>,
    /// Flush the destination at the end.
    pub flush: bool,
    /// Most memory for payload in flight, in bytes.
    pub payload_bytes: usize,
    /// Ends the copy early; what was done stands.
    pub cancel: Cancel,
    /// Once cancelled, requests that do not end soon are left in flight: for a caller whose process ends next, since
    /// they may still write to the destination, and the executor that is dropped waits for them.
    pub abandon: bool,
    /// Counts what is in flight.
    pub pulse: Rc<Pulse>,
    /// How the receipt names the engine.
    pub io_engine: String,
    /// This thread's range locks; `None`: nobody else uses these devices through this process.
    pub locks: Option<Rc<CoreLocks>>,
    /// Every byte is written, one piece after the other from the front: for a file that cannot be made longer before.
    pub in_order: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            consistency: Consistency::default(),
            verify: Verify::default(),
            limit_rate: None,
            flush: true,
            payload_bytes: 64 << 20,
            cancel: Cancel::default(),
            abandon: false,
            pulse: Rc::default(),
            io_engine: String::new(),
            locks: None,
            in_order: false,
        }
    }
}

/// What a copy is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    /// Copying.
    #[default]
    Copy,
    /// Flushing the destination.
    Flush,
    /// Reading both ends back.
    Verify,
    /// Comparing two ends of which none is a copy of ours.
    Compare,
}

/// How far a copy is, for whoever watches on the same thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Present phase.
    pub phase: Cell<Phase>,
    /// Bytes of the job known to be good.
    pub good_bytes: Cell<u64>,
    /// Those of them that lie in front of the job's first byte that is not.
    pub good_prefix_bytes: Cell<u64>,
    /// Bytes that steps still running have moved so far.
    pub moving_bytes: Cell<u64>,
    /// Bytes that were moved so far: read (and written, or found to be zero), or copied by a device. Not those of
    /// holes, of zeroes made by a device, and of extents that are shared.
    pub data_bytes: Cell<u64>,
    /// Bytes verified on both ends.
    pub verified_bytes: Cell<u64>,
    /// True once a read of the source has failed: an error of the device does not say which end it was about.
    pub source_failed: Cell<bool>,
    /// Method of the last step that began or ended; skipping is not worth a mention while others move bytes.
    pub method: Cell<Option<Method>>,
}

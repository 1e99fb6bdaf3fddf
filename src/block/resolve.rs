//! Where blocks live: leaves, and the guard that pins a mapping while they are used.

use super::{ByteRange, Device, Result};
use smallvec::{SmallVec, smallvec};
use std::fmt;
use std::sync::Arc;

/// What a range is resolved for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Access {
    /// Bytes will be read: each piece has one leg.
    Read,
    /// Bytes will be written: each piece lists every leg that must be.
    Write,
}

/// A place on a leaf device.
#[derive(Clone)]
pub struct Leg {
    /// A leaf: a device that resolves to itself.
    pub device: Arc<dyn Device>,
    /// Offset on it, in bytes.
    pub offset: u64,
}

impl fmt::Debug for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.device.name(), self.offset)
    }
}

/// A range of a device, and where one copy of it lies.
#[derive(Clone, Debug)]
pub struct CopyAt {
    /// Of the device that was asked.
    pub range: ByteRange,
    /// Where its first byte is.
    pub leg: Leg,
}

/// A run of the resolved range with one mapping.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Length in bytes, never 0.
    pub len: u64,
    /// Where it lives: one leg for reading, all legs for writing.
    pub legs: SmallVec<[Leg; 1]>,
}

impl Piece {
    /// A piece on one leg.
    pub fn new(len: u64, leg: Leg) -> Self {
        Self { len, legs: smallvec![leg] }
    }
}

/// The answer of [`Device::resolve`]: pieces that cover the range end to end, and the guard.
#[derive(Debug)]
pub struct Resolution {
    /// Runs, in order; their lengths add up to the range's.
    pub pieces: SmallVec<[Piece; 1]>,
    /// Pins the mapping; carries the map's duties.
    pub guard: Guard,
}

/// What happened on one leg of one piece of a written resolution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LegResult {
    /// Index of the piece.
    pub piece: usize,
    /// Index of the leg within it.
    pub leg: usize,
    /// Length of the good prefix of the piece on this leg, in bytes.
    pub good_bytes: u64,
}

/// What a map does when a resolution of it ends.
pub trait GuardDuty: Send {
    /// True while the mapping is the one that was resolved. Asked again after the range locks are held.
    fn still_valid(&self) -> bool;

    /// Told what was written, exactly as a write through the map would have been: marks dirty regions and the like.
    /// Legs that are not listed count as not written at all. Returns the good prefix of the whole resolved range, in
    /// bytes, as a write through the map would have reported it; an error when that write would have failed.
    fn commit(self: Box<Self>, written: &[LegResult]) -> (u64, Result<()>);

    /// Told that nothing was begun: the pin is let go and nothing marked.
    fn release(self: Box<Self>);
}

/// Pins a mapping. Dropped without [`Guard::commit`] or [`Guard::release`] it commits "nothing known to be written".
#[derive(Default)]
pub struct Guard(Option<Box<dyn GuardDuty>>);

impl Guard {
    /// The guard of a plain device: no pin, no duties.
    pub const fn none() -> Self {
        Self(None)
    }

    /// A guard with duties.
    pub fn new(duty: impl GuardDuty + 'static) -> Self {
        Self(Some(Box::new(duty)))
    }

    /// True while the mapping is the one that was resolved.
    pub fn still_valid(&self) -> bool {
        self.0.as_ref().is_none_or(|g| g.still_valid())
    }

    /// True when no map is involved.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Reports what was written; see [`GuardDuty::commit`]. `None` for a plain device, whose own result stands.
    pub fn commit(mut self, written: &[LegResult]) -> Option<(u64, Result<()>)> {
        self.0.take().map(|g| g.commit(written))
    }

    /// Lets go without having written anything.
    pub fn release(mut self) {
        if let Some(g) = self.0.take() {
            g.release();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(g) = self.0.take() {
            let _ = g.commit(&[]);
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Guard(map)" } else { "Guard(plain)" })
    }
}

//! What a copy has written since the last flush that succeeded, and may still be lost.

use super::Segment;
use super::plan::Step;
use super::tally::Tally;

/// Bytes that may be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unsure {
    /// Where they stand in the job.
    pub(super) position: u64,
    pub(super) segment: Segment,
}

/// What is not known to last.
#[derive(Default)]
pub(super) struct Lasting {
    /// [`Device::cache_losses`](crate::block::Device::cache_losses) when `ranges` was empty; `None`: nothing is lost
    /// so.
    pub(super) seen: Option<u64>,
    pub(super) ranges: Vec<Unsure>,
    pub(super) bytes: u64,
    /// The tally at that time.
    before: Tally,
}

impl Lasting {
    /// Nothing written yet.
    pub(super) fn new(losses: Option<u64>) -> Self {
        Self { seen: losses, ..Self::default() }
    }

    /// Takes down the front of a step that was written: `good` bytes.
    pub(super) fn written(&mut self, position: u64, good: u64, step: &Step) {
        if self.seen.is_none() {
            return;
        }
        let mut at = 0;
        for part in &step.sources {
            let len = part.len.min(good - at);
            if len == 0 {
                break;
            }
            let segment = Segment { source: part.offset, dest: step.dest + at, len };
            self.bytes += len;
            match self.ranges.last_mut() {
                Some(last) if follows(last, position + at, segment) => last.segment.len += len,
                _ => self.ranges.push(Unsure { position: position + at, segment }),
            }
            at += len;
        }
    }

    /// All that was written lasts.
    pub(super) fn settled(&mut self, tally: &Tally) {
        self.ranges.clear();
        self.bytes = 0;
        self.before = tally.progress();
    }

    /// True when what was written may be lost without an error of the device.
    pub(super) fn is_watched(&self) -> bool {
        self.seen.is_some()
    }

    /// What is known to last.
    pub(super) fn durable(&self) -> Tally {
        self.before.progress()
    }
}

/// True when a stretch goes on where another ends, in the job and on both ends.
fn follows(last: &Unsure, position: u64, segment: Segment) -> bool {
    let Segment { source, dest, len } = last.segment;
    last.position + len == position && source + len == segment.source && dest + len == segment.dest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_where_the_last_ended_is_one_stretch() {
        let one = Unsure { position: 10, segment: Segment { source: 100, dest: 1000, len: 5 } };
        let next = |source, dest| Segment { source, dest, len: 1 };
        assert!(follows(&one, 15, next(105, 1005)));
        assert!(!follows(&one, 16, next(105, 1005)), "a step between them is still running");
        assert!(!follows(&one, 15, next(106, 1005)) && !follows(&one, 15, next(105, 1006)));
    }
}

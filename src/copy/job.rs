//! What the user asks for: segments, checked once.

use crate::block::{ByteRange, Error, Kind, LEN_MAX, Result};

/// One run to copy: `len` bytes from `source` on the source device to `dest` on the destination device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Segment {
    /// Offset on the source, in bytes.
    pub source: u64,
    /// Offset on the destination, in bytes.
    pub dest: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Segment {
    /// The source bytes.
    pub const fn source_range(&self) -> ByteRange {
        // `Job::new` checked the end; a segment outside a job is cut at the largest offset.
        ByteRange::between(self.source, self.source.saturating_add(self.len))
    }

    /// The destination bytes.
    pub const fn dest_range(&self) -> ByteRange {
        ByteRange::between(self.dest, self.dest.saturating_add(self.len))
    }
}

/// Segments in the user's order, checked: inside both devices, destinations apart from each other, nothing wraps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    segments: Vec<Segment>,
    total: u64,
    overlap: bool,
}

impl Job {
    /// Checks `segments` against both sizes in bytes and merges neighbours. `same_device`: both ends are one device, so
    /// that source and destination may overlap.
    ///
    /// A single segment may overlap itself; it is then copied as through a buffer. Errors: `OutOfRange`, `Overlap` (two
    /// destinations, or a source of one segment with a destination of another), `InvalidInput` (the sum passes 2^63 -
    /// 1).
    pub fn new(segments: &[Segment], source_size: u64, dest_size: u64, same_device: bool) -> Result<Self> {
        let mut merged: Vec<Segment> = Vec::new();
        let mut total = 0u64;
        for &s in segments {
            inside("source", s.source, s.len, source_size)?;
            inside("destination", s.dest, s.len, dest_size)?;
            total = total.checked_add(s.len).filter(|&t| t <= LEN_MAX).ok_or_else(|| {
                Error::new(
                    Kind::InvalidInput,
                    "the segments add up to more than 2^63 - 1 bytes; split the job",
                )
            })?;
            match merged.last_mut() {
                _ if s.len == 0 => {}
                Some(m) if m.source + m.len == s.source && m.dest + m.len == s.dest => m.len += s.len,
                _ => merged.push(s),
            }
        }
        let mut dests: Vec<ByteRange> = merged.iter().map(Segment::dest_range).collect();
        dests.sort_unstable();
        if let Some(pair) = dests.windows(2).find(|w| w[0].overlaps(w[1])) {
            return Err(overlap(format!("two segments write the same bytes ({} and {})", pair[0], pair[1])));
        }
        let mut overlaps = false;
        if same_device && let Some((s, d)) = find_overlap(merged.iter().map(Segment::source_range), &dests) {
            if merged.len() > 1 {
                let text =
                    format!("one segment reads {s} where another writes {d}; copy them one after the other");
                return Err(overlap(text));
            }
            if merged[0].source == merged[0].dest {
                return Err(overlap("source and destination are the same bytes".to_owned()));
            }
            overlaps = true;
        }
        Ok(Self { segments: merged, total, overlap: overlaps })
    }

    /// The job of part of a planned step, checked when the step was planned. `overlap`: its one segment overlaps
    /// itself.
    pub(super) fn of_step(segments: Vec<Segment>, overlap: bool) -> Self {
        let total = segments.iter().map(|s| s.len).sum();
        Self { segments, total, overlap }
    }

    /// Segments in order, none empty, neighbours merged.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes in all segments.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// True when the one segment overlaps itself.
    pub fn overlaps(&self) -> bool {
        self.overlap
    }

    /// The destination ranges from first to last byte, as (start, end); `None` for an empty job.
    pub fn dest_span(&self) -> Option<ByteRange> {
        span(self.segments.iter().map(Segment::dest_range))
    }

    /// The source ranges from first to last byte; `None` for an empty job.
    pub fn source_span(&self) -> Option<ByteRange> {
        span(self.segments.iter().map(Segment::source_range))
    }
}

fn span(ranges: impl Iterator<Item = ByteRange>) -> Option<ByteRange> {
    ranges.fold(None, |all: Option<ByteRange>, r| {
        Some(all.map_or(r, |a| ByteRange::between(a.offset().min(r.offset()), a.end().max(r.end()))))
    })
}

fn inside(what: &str, offset: u64, len: u64, size: u64) -> Result<()> {
    let range = ByteRange::new(offset, len).ok_or_else(|| {
        Error::new(Kind::OutOfRange, format!("the {what} range {offset}+{len} ends past 2^63 - 1 bytes"))
    })?;
    if range.end() > size {
        let text = format!(
            "the {what} range {range} ends at byte {}, past the end of the {what} ({size} bytes)",
            range.end()
        );
        return Err(Error::new(Kind::OutOfRange, text));
    }
    Ok(())
}

fn overlap(text: String) -> Error {
    Error::new(Kind::Overlap, text)
}

/// The first range of `sources` that shares a byte with one of `dests` (sorted, apart from each other).
fn find_overlap(
    sources: impl Iterator<Item = ByteRange>,
    dests: &[ByteRange],
) -> Option<(ByteRange, ByteRange)> {
    for s in sources {
        // The first destination that ends after the start of `s` is the only one that can be first to share a byte.
        let at = dests.partition_point(|d| d.end() <= s.offset());
        if let Some(&d) = dests.get(at)
            && d.overlaps(s)
        {
            return Some((s, d));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(source: u64, dest: u64, len: u64) -> Segment {
        Segment { source, dest, len }
    }

    #[test]
    fn neighbours_merge_and_empty_segments_vanish() {
        let job =
            Job::new(&[seg(0, 10, 5), seg(5, 15, 5), seg(3, 3, 0), seg(50, 20, 1)], 100, 100, false).unwrap();
        assert_eq!(job.segments(), [seg(0, 10, 10), seg(50, 20, 1)]);
        assert_eq!(job.total(), 11);
    }

    #[test]
    fn lengths_that_add_up_to_too_much_are_refused_and_do_not_wrap() {
        let all = seg(0, 0, LEN_MAX);
        for count in [2, 3, 4, 5] {
            // Three of them wrap a sum of 64 bits to less than one.
            let error = Job::new(&vec![all; count], LEN_MAX, LEN_MAX, false).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput, "{count} times all there can be");
        }
        assert!(Job::new(&[all], LEN_MAX, LEN_MAX, false).is_ok());
    }

    //= promise 7
    #[test]
    fn what_is_refused() {
        let kind = |s: &[Segment], same| Job::new(s, 100, 100, same).unwrap_err().kind();
        assert_eq!(kind(&[seg(96, 0, 5)], false), Kind::OutOfRange);
        assert_eq!(kind(&[seg(0, 96, 5)], false), Kind::OutOfRange);
        assert_eq!(kind(&[seg(u64::MAX, 0, 5)], false), Kind::OutOfRange);
        assert_eq!(kind(&[seg(0, u64::MAX, u64::MAX)], false), Kind::OutOfRange);
        assert_eq!(kind(&[seg(0, 10, 10), seg(30, 19, 5)], false), Kind::Overlap);
        assert_eq!(kind(&[seg(0, 50, 10), seg(40, 20, 11)], true), Kind::Overlap);
        assert_eq!(kind(&[seg(7, 7, 10)], true), Kind::Overlap);
        assert!(Job::new(&[seg(0, 50, 10), seg(40, 20, 10)], 100, 100, true).is_ok());
        assert!(Job::new(&[seg(0, 5, 10)], 100, 100, true).unwrap().overlaps());
        assert!(!Job::new(&[seg(0, 5, 10)], 100, 100, false).unwrap().overlaps());
    }
}

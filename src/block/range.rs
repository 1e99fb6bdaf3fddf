//! Byte ranges that cannot wrap.

use std::fmt;

/// Largest offset, length or end of a range, in bytes: 2^63 - 1, the largest Linux file offset.
pub const LEN_MAX: u64 = i64::MAX as u64;

/// A run of bytes: `offset` and `len` in bytes, `offset + len <= LEN_MAX` always.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ByteRange {
    offset: u64,
    len: u64,
}

impl ByteRange {
    /// The range of `len` bytes from `offset`, or `None` if its end would pass [`LEN_MAX`].
    pub const fn new(offset: u64, len: u64) -> Option<Self> {
        match offset.checked_add(len) {
            Some(end) if end <= LEN_MAX => Some(Self { offset, len }),
            _ => None,
        }
    }

    /// The range from 0 to `len`, cut at [`LEN_MAX`].
    pub const fn to(len: u64) -> Self {
        Self { offset: 0, len: if len > LEN_MAX { LEN_MAX } else { len } }
    }

    /// The range between two offsets; empty at `start` when `end` lies before it. Both are cut at [`LEN_MAX`].
    pub const fn between(start: u64, end: u64) -> Self {
        let start = if start > LEN_MAX { LEN_MAX } else { start };
        let end = if end > LEN_MAX { LEN_MAX } else { end };
        Self { offset: start, len: end.saturating_sub(start) }
    }

    /// First byte.
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// First byte after the range.
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// True when the range holds no byte.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// True when both share at least one byte. An empty range overlaps nothing.
    pub const fn overlaps(self, other: Self) -> bool {
        self.len != 0 && other.len != 0 && self.offset < other.end() && other.offset < self.end()
    }

    /// The shared bytes, or `None` when there are none.
    pub fn intersection(self, other: Self) -> Option<Self> {
        self.overlaps(other)
            .then(|| Self::between(self.offset.max(other.offset), self.end().min(other.end())))
    }

    /// True when every byte of `other` lies inside. An empty range is inside when its offset is.
    pub const fn contains(self, other: Self) -> bool {
        other.offset >= self.offset && other.end() <= self.end()
    }

    /// The first `len` bytes (all of it when `len` is longer).
    pub const fn prefix(self, len: u64) -> Self {
        Self { offset: self.offset, len: if len < self.len { len } else { self.len } }
    }

    /// What is left after the first `len` bytes (empty at the end when `len` is longer).
    pub const fn after(self, len: u64) -> Self {
        let cut = if len < self.len { len } else { self.len };
        Self { offset: self.offset + cut, len: self.len - cut }
    }

    /// True when offset and length are multiples of `unit` bytes (a power of two is not required).
    pub const fn is_aligned(self, unit: u64) -> bool {
        unit != 0 && self.offset.is_multiple_of(unit) && self.len.is_multiple_of(unit)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}+{}", self.offset, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_a_range() {
        assert!(ByteRange::new(LEN_MAX, 0).is_some());
        assert!(ByteRange::new(LEN_MAX, 1).is_none());
        assert!(ByteRange::new(u64::MAX, u64::MAX).is_none());
        let r = ByteRange::new(10, 5).unwrap();
        assert_eq!((r.prefix(9), r.after(9)), (r, ByteRange::between(15, 15)));
        assert_eq!((r.prefix(2), r.after(2)), (ByteRange::between(10, 12), ByteRange::between(12, 15)));
    }

    #[test]
    fn touching_and_empty_ranges_do_not_overlap() {
        let a = ByteRange::between(0, 10);
        assert!(!a.overlaps(ByteRange::between(10, 20)));
        assert!(!a.overlaps(ByteRange::between(5, 5)));
        assert_eq!(a.intersection(ByteRange::between(9, 20)), Some(ByteRange::between(9, 10)));
    }
}

//! Direct or through the page cache, decided read by read while nothing here writes: a pure table. The measurements
//! behind it are in `docs/notes/003-file-and-block-drivers.md`.

/// Shorter requests go through the page cache unasked: a look at the cache would cost more than it saves.
pub(crate) const SMALL_BYTES: u64 = 64 << 10;

/// How much of a range lies in the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Residency {
    /// Not asked, or the kernel cannot say.
    Unknown,
    /// No page.
    None,
    /// Some pages.
    Some,
    /// Every page.
    All,
}

impl Residency {
    /// From a count of cached pages among `pages`.
    pub(crate) fn of(cached: u64, pages: u64) -> Self {
        match cached {
            0 => Self::None,
            n if n >= pages => Self::All,
            _ => Self::Some,
        }
    }
}

/// What is known about a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ask {
    /// Length in bytes.
    pub(crate) len: u64,
    /// Direct I/O is there, and offset and length are aligned to it and to whole pages.
    pub(crate) direct_fits: bool,
    /// What the page cache holds of it.
    pub(crate) residency: Residency,
}

/// What is left to do with the page cache after a buffered request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum After {
    /// Nothing.
    Nothing,
    /// Drop the pages: none of them was there before.
    Drop,
    /// Count the pages as dirtied by us; past a bound their writeback is started.
    Grew,
}

/// The way a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Choice {
    /// Through the O_DIRECT descriptor.
    pub(crate) direct: bool,
    /// What follows.
    pub(crate) after: After,
}

/// True for a read of which the page cache should be asked before choosing, and a write that counts as growth of the
/// cache.
pub(crate) fn wants_residency(len: u64) -> bool {
    len >= SMALL_BYTES
}

/// Chooses. Whole residency wins (memory speed, and nothing new is cached); else direct where it fits; else buffered,
/// leaving the cache as it was found.
pub(crate) fn choose(ask: Ask) -> Choice {
    let buffered = |after| Choice { direct: false, after };
    if ask.len < SMALL_BYTES || ask.residency == Residency::All {
        return buffered(After::Nothing);
    }
    if ask.direct_fits {
        return Choice { direct: true, after: After::Nothing };
    }
    match ask.residency {
        // Only when nothing was there may everything go: the cache is shared with every other program.
        Residency::None => buffered(After::Drop),
        _ => buffered(After::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        use After::*;
        use Residency::{All, None, Some, Unknown};
        let small = SMALL_BYTES - 1;
        // (length, direct fits, residency) -> (direct, after)
        for (len, direct_fits, residency, direct, after) in [
            (small, true, Unknown, false, Nothing),
            (SMALL_BYTES, true, All, false, Nothing),
            (SMALL_BYTES, true, Some, true, Nothing),
            (SMALL_BYTES, true, None, true, Nothing),
            (SMALL_BYTES, true, Unknown, true, Nothing),
            (SMALL_BYTES, false, All, false, Nothing),
            (SMALL_BYTES, false, Some, false, Nothing),
            (SMALL_BYTES, false, None, false, Drop),
            (SMALL_BYTES, false, Unknown, false, Nothing),
        ] {
            let ask = Ask { len, direct_fits, residency };
            assert_eq!(choose(ask), Choice { direct, after }, "{ask:?}");
        }
    }

    #[test]
    fn residency_is_whole_only_when_every_page_is_there() {
        assert_eq!(Residency::of(0, 16), Residency::None);
        assert_eq!(Residency::of(1, 16), Residency::Some);
        assert_eq!(Residency::of(15, 16), Residency::Some);
        assert_eq!(Residency::of(16, 16), Residency::All);
    }
}

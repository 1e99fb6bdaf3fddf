//! The ioctls of a volume: numbers, layouts, and every check that needs no device.
//!
//! `docs/notes/006-mount.md` has the tables, `include/blkcopy.h` says the same in C. Numbers are native-endian, as an
//! ioctl's argument is. The size bits of a command carry the whole argument: that is what makes it reach a FUSE server.

use crate::block::ByteRange;
use crate::sys::blkcopy::{ARG_MAX, Call as Number, DURABLE, ENTRY, FROM_HEADER, HEADER, OFFLOAD_ONLY};

/// Bytes of a token.
pub(super) const TOKEN: usize = 16;
/// Most bytes one call copies, all entries together (the series' bound from its fourth version on).
pub(super) const TOTAL_MAX: u64 = 128 << 20;

/// `BLKGETSIZE64`, which programs ask of files too.
const BLKGETSIZE64: u32 = 0x8008_1272;

/// What a command asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// `BLKCOPY`, so many entries.
    Copy(usize),
    /// `BLKCOPY_SOURCE`: a token for this open file.
    Token,
    /// `BLKCOPY_FROM`, so many entries.
    CopyFrom(usize),
    /// `BLKGETSIZE64`.
    Size,
    /// Not ours.
    Unknown,
}

impl Asked {
    /// Reads a command number.
    pub(super) fn of(cmd: u32) -> Self {
        let size = (cmd >> 16) as usize & ARG_MAX;
        let is = |number: Number| number.request(size) == Some(cmd);
        let entries =
            |head: usize| size.checked_sub(head).filter(|rest| rest % ENTRY == 0).map(|rest| rest / ENTRY);
        match cmd {
            BLKGETSIZE64 => Self::Size,
            _ if is(Number::Copy) => entries(HEADER).map_or(Self::Unknown, Self::Copy),
            _ if is(Number::From) => entries(FROM_HEADER).map_or(Self::Unknown, Self::CopyFrom),
            _ if is(Number::Source) && size == TOKEN => Self::Token,
            _ => Self::Unknown,
        }
    }

    /// Bytes before the entries.
    pub(super) const fn head(self) -> usize {
        match self {
            Self::CopyFrom(_) => FROM_HEADER,
            _ => HEADER,
        }
    }
}

/// Flags of the twin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Flags {
    /// Flushed before it returns.
    pub(super) durable: bool,
    /// No byte may pass through the daemon.
    pub(super) offload_only: bool,
}

/// One entry: bytes, on the source and on the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) source: ByteRange,
    pub(super) dest: ByteRange,
}

/// An argument taken apart.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Call {
    pub(super) flags: Flags,
    /// Of the twin only.
    pub(super) token: Option<[u8; TOKEN]>,
    pub(super) entries: Vec<Entry>,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

/// Takes an argument apart. `None`: EINVAL, for a count that the size bits do not tell, an unknown flag or a reserved
/// field set, a length of 0, a range that passes 2^63 - 1, or more than [`TOTAL_MAX`] bytes in all.
pub(super) fn parse(asked: Asked, bytes: &[u8]) -> Option<Call> {
    let (Asked::Copy(count) | Asked::CopyFrom(count)) = asked else { return None };
    let head = asked.head();
    if count == 0 || bytes.len() != head + count * ENTRY || word(bytes, 0) != count as u64 {
        return None;
    }
    let (flags, token) = if matches!(asked, Asked::CopyFrom(_)) {
        let flags = u32::from_ne_bytes(bytes[8..12].try_into().ok()?);
        let reserved = u32::from_ne_bytes(bytes[12..16].try_into().ok()?);
        if flags & !(DURABLE | OFFLOAD_ONLY) != 0 || reserved != 0 {
            return None;
        }
        let flags = Flags { durable: flags & DURABLE != 0, offload_only: flags & OFFLOAD_ONLY != 0 };
        (flags, Some(bytes[16..32].try_into().ok()?))
    } else {
        if word(bytes, 8) != 0 {
            return None;
        }
        (Flags::default(), None)
    };
    let mut total = 0u64;
    let mut entries = Vec::with_capacity(count);
    for entry in bytes[head..].chunks_exact(ENTRY) {
        let len = word(entry, 16);
        let (source, dest) = (ByteRange::new(word(entry, 0), len)?, ByteRange::new(word(entry, 8), len)?);
        total = total.checked_add(len).filter(|&total| len > 0 && total <= TOTAL_MAX)?;
        entries.push(Entry { source, dest });
    }
    Some(Call { flags, token, entries })
}

/// True when two destinations share a byte or, on one volume, a source and any destination do.
pub(super) fn overlap(entries: &[Entry], one_volume: bool) -> bool {
    let mut dests: Vec<ByteRange> = entries.iter().map(|e| e.dest).collect();
    dests.sort_unstable();
    let among_dests = dests.windows(2).any(|pair| pair[0].overlaps(pair[1]));
    let hit = |source: &ByteRange| {
        // Destinations lie apart, so the first that ends after the start is the only one that can be the first to
        // share a byte.
        let at = dests.partition_point(|d| d.end() <= source.offset());
        dests.get(at).is_some_and(|d| d.overlaps(*source))
    };
    among_dests || (one_volume && entries.iter().any(|e| hit(&e.source)))
}

/// Writes what each entry completed into the argument, to be handed back.
pub(super) fn complete(asked: Asked, bytes: &mut [u8], completed: &[u64]) {
    let entries = bytes.get_mut(asked.head()..).unwrap_or_default().chunks_exact_mut(ENTRY);
    for (n, entry) in entries.enumerate() {
        let len = completed.get(n).copied().unwrap_or(0);
        entry[24..].copy_from_slice(&len.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argument(head: &[u64], entries: &[[u64; 4]]) -> Vec<u8> {
        head.iter().chain(entries.iter().flatten()).flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[test]
    fn numbers_are_those_of_the_note() {
        assert_eq!(Asked::of(0xC030_1281), Asked::Copy(1));
        assert_eq!(Asked::of(0xFFF0_1281), Asked::Copy(511), "16 + 32 * 511 = 16368 bytes");
        // The number of the series tells the header only: it is ours with no entry, and refused.
        assert_eq!(Asked::of(0xC010_1281), Asked::Copy(0));
        assert_eq!(Asked::of(0xC031_1281), Asked::Unknown, "no whole entries");
        assert_eq!(Asked::of(0x8010_12C8), Asked::Token);
        assert_eq!(Asked::of(0xC040_12C9), Asked::CopyFrom(1));
        assert_eq!(Asked::of(0xFFE0_12C9), Asked::CopyFrom(510), "32 + 32 * 510 = 16352 bytes");
        assert_eq!(Asked::of(0x8008_1272), Asked::Size);
        assert_eq!(Asked::of(0x1277), Asked::Unknown, "BLKDISCARD carries no range here");
    }

    #[test]
    fn what_is_refused_before_any_device_is_asked() {
        let asked = Asked::Copy(1);
        let good = argument(&[1, 0], &[[0, 8192, 4096, 7]]);
        let call = parse(asked, &good).unwrap();
        assert_eq!(
            (call.entries[0].source, call.entries[0].dest),
            (ByteRange::to(4096), ByteRange::between(8192, 12288))
        );
        for (what, bad) in [
            ("a count that is not told by the size", argument(&[2, 0], &[[0, 8192, 4096, 0]])),
            ("a reserved field", argument(&[1, 1], &[[0, 8192, 4096, 0]])),
            ("no bytes", argument(&[1, 0], &[[0, 8192, 0, 0]])),
            ("more than there can be", argument(&[1, 0], &[[0, u64::MAX, 4096, 0]])),
            ("a sum above the bound", argument(&[1, 0], &[[0, 1 << 40, TOTAL_MAX + 1, 0]])),
            ("a cut argument", good[..47].to_vec()),
        ] {
            assert_eq!(parse(asked, &bad), None, "{what}");
        }
        assert!(parse(asked, &argument(&[1, 0], &[[0, 1 << 40, TOTAL_MAX, 0]])).is_some());
        // Lengths that add up to little only because the sum wraps.
        let wraps = argument(&[2, 0], &[[0, 0, 1 << 62, 0], [0, 0, u64::MAX - (1 << 62) + 2, 0]]);
        assert_eq!(parse(Asked::Copy(2), &wraps), None);
        assert_eq!(parse(Asked::Copy(0), &argument(&[0, 0], &[])), None);
        let twin = |flags: u64| argument(&[1, flags, 5, 6], &[[0, 8192, 4096, 0]]);
        let call = parse(Asked::CopyFrom(1), &twin(3)).unwrap();
        assert_eq!((call.flags, call.token.unwrap()[0]), (Flags { durable: true, offload_only: true }, 5));
        assert_eq!(parse(Asked::CopyFrom(1), &twin(4)), None);
        assert_eq!(parse(Asked::CopyFrom(1), &twin(1 << 32)), None);
    }

    #[test]
    fn overlaps_are_found_in_any_order() {
        let entry = |source: u64, dest: u64, len| Entry {
            source: ByteRange::new(source, len).unwrap(),
            dest: ByteRange::new(dest, len).unwrap(),
        };
        assert!(overlap(&[entry(0, 50, 51)], true) && !overlap(&[entry(0, 50, 50)], true));
        assert!(overlap(&[entry(0, 100, 10), entry(20, 109, 10)], false), "two destinations");
        assert!(
            overlap(&[entry(200, 100, 10), entry(105, 300, 1)], true),
            "one entry's source, another's destination"
        );
        assert!(!overlap(&[entry(200, 100, 10), entry(105, 300, 1)], false));
    }

    #[test]
    fn every_entry_is_told_what_it_completed() {
        let mut bytes = argument(&[2, 0], &[[0, 10, 5, 99], [20, 30, 5, 99]]);
        complete(Asked::Copy(2), &mut bytes, &[5]);
        assert_eq!(bytes, argument(&[2, 0], &[[0, 10, 5, 5], [20, 30, 5, 0]]));
    }
}

//! What became of the bytes of a copy, apart from the method that was asked for: five words, each with how it is known.
//!
//! The same call may share once and copy the next time (`copy_file_range` on XFS does), so what a method is called says
//! nothing about where the bytes went. Each driver says what it saw; nothing is claimed that was not seen. The rules
//! are in `docs/notes/015-what-became-of-the-bytes.md`.

use super::Method;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::fmt;

/// What became of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// No data was moved: both ends use the same storage now.
    Shared,
    /// A device or a server moved them; they did not cross this machine.
    MovedElsewhere,
    /// The kernel of this machine copied them (`copy_file_range` that did not share).
    ThroughKernel,
    /// They were read and written: buffers of this process, or of a daemon on this machine.
    ReadWrite,
    /// Copied, and nothing says how.
    Unknown,
    /// There was nothing to move: holes, zeroes that a device made, the null device.
    NoData,
}

impl Fate {
    /// Every one, best first.
    pub const ALL: [Self; 6] = [
        Self::Shared,
        Self::MovedElsewhere,
        Self::ThroughKernel,
        Self::ReadWrite,
        Self::Unknown,
        Self::NoData,
    ];

    /// The word in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::MovedElsewhere => "moved-elsewhere",
            Self::ThroughKernel => "through-kernel",
            Self::ReadWrite => "read-write",
            Self::Unknown => "unknown",
            Self::NoData => "no-data",
        }
    }

    /// As people read it, after a number of bytes.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::MovedElsewhere => "moved elsewhere",
            Self::ThroughKernel => "through this kernel",
            Self::ReadWrite => "read+write",
            Self::Unknown => "unknown how",
            Self::NoData => "no data to move",
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// How a fate is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// The bytes were in buffers of this process, or its processor moved them.
    OwnBuffers,
    /// Nothing was there to be moved, by the plan and by a look under the locks.
    NothingThere,
    /// FIEMAP after the call: each byte at both ends has the same place and the shared flag, or it has not.
    Extents,
    /// The same for some of the calls or extents; the others are taken to be like them, because all of those were
    /// alike.
    ExtentsSampled,
    /// `FICLONERANGE` succeeded, which shares or fails; this file system does not say where the bytes are.
    CloneCall,
    /// This kind of file system has no way of its own to copy, and cannot share.
    FileSystemKind,
    /// A Copy command completed; its format does not say that the copy was fast.
    CopyCommand,
    /// A Copy command with Fast Copy Only set completed.
    FastCopyOnly,
    /// The daemon that made the copy, another blkcopy, said so.
    Statement,
    /// The operations that the kernel counted for this mount: a server's copy or clone, and no reads or writes.
    OperationCounts,
    /// Nothing shows it.
    Nothing,
}

impl Evidence {
    /// A clause for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::OwnBuffers => "this process moved them",
            Self::NothingThere => "nothing there to move",
            Self::Extents => "by their extents",
            Self::ExtentsSampled => "by some of their extents",
            Self::CloneCall => "by the answer to FICLONERANGE",
            Self::FileSystemKind => "this file system copies in no other way",
            Self::CopyCommand => "by the Copy command's completion, not known to be fast",
            Self::FastCopyOnly => "by Fast Copy Only",
            Self::Statement => "the daemon's statement",
            Self::OperationCounts => "by the operations counted for the mount",
            Self::Nothing => "nothing shows it",
        }
    }
}

/// Bytes with one fate, known in one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FateBytes {
    /// What became of them.
    pub fate: Fate,
    /// How that is known.
    pub how: Evidence,
    /// How many.
    pub bytes: u64,
}

/// What became of all bytes of a copy, or of a part of one. Each fate and evidence stands in it at most once.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fates(SmallVec<[FateBytes; 2]>);

impl Fates {
    /// All bytes with one fate.
    pub fn all(fate: Fate, how: Evidence, bytes: u64) -> Self {
        let mut fates = Self::default();
        fates.add(fate, how, bytes);
        fates
    }

    /// What a method says by itself of the bytes it moved.
    pub fn of_method(method: Method, bytes: u64) -> Self {
        let (fate, how) = match method {
            Method::Emulated | Method::Memory => (Fate::ReadWrite, Evidence::OwnBuffers),
            Method::Skip | Method::WriteZeroes | Method::Null => (Fate::NoData, Evidence::NothingThere),
            _ => (Fate::Unknown, Evidence::Nothing),
        };
        Self::all(fate, how, bytes)
    }

    /// Counts bytes.
    pub fn add(&mut self, fate: Fate, how: Evidence, bytes: u64) {
        if bytes == 0 {
            return;
        }
        match self.0.iter_mut().find(|one| one.fate == fate && one.how == how) {
            Some(one) => one.bytes = one.bytes.saturating_add(bytes),
            None => self.0.push(FateBytes { fate, how, bytes }),
        }
    }

    /// Counts the bytes of another one.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|one| self.add(one.fate, one.how, one.bytes));
    }

    /// Each fate and evidence with its bytes.
    pub fn iter(&self) -> impl Iterator<Item = FateBytes> {
        self.0.iter().copied()
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        self.iter().fold(0, |sum, one| sum.saturating_add(one.bytes))
    }

    /// Bytes with this fate.
    pub fn bytes(&self, fate: Fate) -> u64 {
        self.iter().filter(|one| one.fate == fate).fold(0, |sum, one| sum.saturating_add(one.bytes))
    }

    /// Bytes of each fate; all fates are in it.
    pub fn by_fate(&self) -> BTreeMap<Fate, u64> {
        Fate::ALL.into_iter().map(|fate| (fate, self.bytes(fate))).collect()
    }

    /// The same, for exactly so many bytes: what is said of more is not known to be about these, and of what is missing
    /// nothing is known.
    #[must_use]
    pub fn of(self, bytes: u64) -> Self {
        match self.total() {
            total if total == bytes => self,
            total if total < bytes => {
                let mut fates = self;
                fates.add(Fate::Unknown, Evidence::Nothing, bytes - total);
                fates
            }
            _ => match &self.0[..] {
                [one] => Self::all(one.fate, one.how, bytes),
                _ => Self::all(Fate::Unknown, Evidence::Nothing, bytes),
            },
        }
    }
}

/// What must become of the bytes, or they are not to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Must {
    /// Shared; holes stay holes.
    Share,
    /// Shared, or moved elsewhere.
    Offload,
    /// Not read and written, nor copied by the kernel: what an NVMe controller promises with Fast Copy Only. It may
    /// copy in its own memory.
    Fast,
}

impl Must {
    /// The word of the flag.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Share => "shared",
            Self::Offload => "offload",
            Self::Fast => "fast",
        }
    }

    /// True when a method that is expected to have this fate may be tried.
    pub fn may_try(self, method: Method, expected: Fate) -> bool {
        match expected {
            Fate::Shared | Fate::NoData => true,
            Fate::MovedElsewhere | Fate::Unknown => self != Self::Share,
            Fate::ThroughKernel => false,
            Fate::ReadWrite => self == Self::Fast && method == Method::Memory,
        }
    }

    /// True when this fate meets it.
    pub fn is_met_by(self, fate: Fate) -> bool {
        match fate {
            Fate::Shared | Fate::NoData => true,
            Fate::MovedElsewhere => self != Self::Share,
            Fate::ThroughKernel | Fate::ReadWrite | Fate::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_add_up_and_no_claim_grows() {
        let mut fates = Fates::all(Fate::Shared, Evidence::Extents, 10);
        fates.add(Fate::Shared, Evidence::Extents, 5);
        fates.add(Fate::ThroughKernel, Evidence::Extents, 7);
        fates.add(Fate::Unknown, Evidence::Nothing, 0);
        assert_eq!((fates.iter().count(), fates.total(), fates.bytes(Fate::Shared)), (2, 22, 15));
        assert_eq!(fates.by_fate().len(), Fate::ALL.len());
        let more = fates.clone().of(30);
        assert_eq!((more.bytes(Fate::Shared), more.bytes(Fate::Unknown)), (15, 8));
        // Of which 20 of the 22 is not known.
        assert_eq!(fates.of(20), Fates::all(Fate::Unknown, Evidence::Nothing, 20));
        assert_eq!(Fates::all(Fate::Shared, Evidence::Extents, 9).of(4).bytes(Fate::Shared), 4);
    }

    #[test]
    fn what_is_unknown_meets_no_demand() {
        for must in [Must::Share, Must::Offload, Must::Fast] {
            for fate in [Fate::ThroughKernel, Fate::ReadWrite, Fate::Unknown] {
                assert!(!must.is_met_by(fate), "{must:?} {fate:?}");
            }
            assert!(must.is_met_by(Fate::Shared) && must.is_met_by(Fate::NoData));
        }
        assert!(
            Must::Offload.is_met_by(Fate::MovedElsewhere) && !Must::Share.is_met_by(Fate::MovedElsewhere)
        );
    }

    #[test]
    fn words_survive_json() {
        for fate in Fate::ALL {
            assert_eq!(serde_json::to_value(fate).unwrap(), fate.name());
        }
        let fates = Fates::all(Fate::MovedElsewhere, Evidence::FastCopyOnly, 3);
        let text = serde_json::to_string(&fates).unwrap();
        assert_eq!(text, r#"[{"fate":"moved-elsewhere","how":"fast-copy-only","bytes":3}]"#);
        assert_eq!(serde_json::from_str::<Fates>(&text).unwrap(), fates);
    }
}

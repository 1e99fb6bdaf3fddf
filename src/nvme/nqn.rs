//! NVMe qualified names, and padded ASCII fields.

use crate::block::{Error, Kind, Result};
use std::fmt;
use std::sync::Arc;

/// An NVMe qualified name: 1 to 223 bytes of UTF-8 without control characters ([`Nqn::of_host`]: or none). Clones share
/// the text.
///
/// A peer's name need not begin with `nqn.`: names only have to be equal or not, and Linux takes any.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(Arc<str>);

impl Nqn {
    /// Longest name, in bytes.
    pub const LEN_MAX: usize = 223;
    /// Bytes of the field that holds a name and at least one NUL.
    pub const FIELD_LEN: usize = 256;
    /// The well-known name of a discovery subsystem.
    pub const DISCOVERY: &'static str = "nqn.2014-08.org.nvmexpress.discovery";

    /// The name, checked.
    ///
    /// Errors: `InvalidInput`.
    pub fn new(name: &str) -> Result<Self> {
        let wrong = |text: String| Err(Error::new(Kind::InvalidInput, text));
        if name.is_empty() {
            return wrong("an NQN is not empty".to_owned());
        }
        if name.len() > Self::LEN_MAX {
            return wrong(format!("an NQN of {} bytes; it has {} at most", name.len(), Self::LEN_MAX));
        }
        if name.contains(char::is_control) {
            return wrong(format!("the NQN {name:?} has a control character"));
        }
        Ok(Self(name.into()))
    }

    /// The well-known name of a discovery subsystem.
    pub fn discovery() -> Self {
        Self(Self::DISCOVERY.into())
    }

    /// True for the well-known name of a discovery subsystem.
    pub fn is_discovery(&self) -> bool {
        &*self.0 == Self::DISCOVERY
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// From a field of a data structure: the bytes before the first NUL. What follows is ignored.
    ///
    /// Errors: `InvalidInput` for no NUL, no UTF-8, and what [`Nqn::new`] refuses.
    pub fn from_field(field: &[u8; Self::FIELD_LEN]) -> Result<Self> {
        let wrong = |text| Error::new(Kind::InvalidInput, text);
        let end = field.iter().position(|&b| b == 0).ok_or_else(|| wrong("an NQN field without NUL"))?;
        let name = str::from_utf8(&field[..end]).map_err(|_| wrong("an NQN that is not UTF-8"))?;
        Self::new(name)
    }

    /// A host's name in its Connect: as [`Nqn::from_field`], but a host may have none. SPDK's `spdk_nvme_perf` has none
    /// unless it is given one, and the targets of Linux and SPDK take it.
    ///
    /// Errors: `InvalidInput`, as there.
    pub fn of_host(field: &[u8; Self::FIELD_LEN]) -> Result<Self> {
        if field[0] == 0 { Ok(Self("".into())) } else { Self::from_field(field) }
    }

    /// As a field of a data structure: the name, then NULs.
    pub fn to_field(&self) -> [u8; Self::FIELD_LEN] {
        let mut field = [0; Self::FIELD_LEN];
        field[..self.0.len()].copy_from_slice(self.0.as_bytes());
        field
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An ASCII field of `N` bytes, padded with spaces on the right (serial number, model number, firmware revision).
///
/// Holds the bytes of the wire. Shown without padding (NULs count as padding), and with `?` for what is not printable.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ascii<const N: usize>(pub [u8; N]);

impl<const N: usize> Ascii<N> {
    /// The text, padded; `None` when it is longer than the field or not printable ASCII.
    pub fn new(text: &str) -> Option<Self> {
        let fits = text.len() <= N && text.bytes().all(|b| (0x20..0x7f).contains(&b));
        let mut field = [b' '; N];
        if fits {
            field[..text.len()].copy_from_slice(text.as_bytes());
        }
        fits.then_some(Self(field))
    }
}

impl<const N: usize> fmt::Display for Ascii<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.0.iter().rposition(|b| !matches!(b, 0 | b' ')).map_or(0, |last| last + 1);
        let shown =
            self.0[..len].iter().map(|&b| if (0x20..0x7f).contains(&b) { char::from(b) } else { '?' });
        f.pad(&shown.collect::<String>())
    }
}

impl<const N: usize> fmt::Debug for Ascii<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

//! What one of our own mounts says it did with the copies onto one of its files: the daemon knows, the kernel does not
//! say.

use crate::block::device::CopyStatement;
use crate::block::{Evidence, Fate, Fates};
use std::collections::BTreeMap;
use std::os::fd::AsFd;

/// The attribute that a mounted volume tells it in (`docs/mount-receipt.md`).
const RECEIPT: &str = "user.blkcopy.receipt";
/// Longest receipt that is read, in bytes: a few times the longest that is written.
const LEN_MAX: usize = 64 << 10;

/// Bytes by what became of them, of all copies onto one file since its mount began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said(BTreeMap<Fate, u64>);

#[derive(serde::Deserialize)]
struct MountReceipt {
    schema: String,
    bytes: BTreeMap<Fate, u64>,
}

impl Said {
    /// Asks the mount. `None`: it says nothing that is understood here.
    pub(super) fn of(file: impl AsFd) -> Option<Self> {
        let mut text = vec![0; LEN_MAX];
        let len = rustix::fs::fgetxattr(file, RECEIPT, &mut text[..]).ok()?;
        Self::parse(text.get(..len)?)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let receipt: MountReceipt = serde_json::from_slice(text).ok()?;
        (receipt.schema == "blkcopy-mount-receipt/2").then_some(Self(receipt.bytes))
    }

    /// What became of all these bytes.
    pub(super) fn fates(&self) -> Fates {
        let mut fates = Fates::default();
        self.0.iter().for_each(|(&fate, &bytes)| fates.add(fate, Evidence::Statement, bytes));
        fates
    }

    /// What became of `good` bytes that were copied between `before` and this. `None`: others copied onto the file in
    /// the meantime, so that it cannot be told.
    pub(super) fn since(&self, before: &Self, good: u64) -> Option<Fates> {
        let said = |said: &Self| CopyStatement { fates: said.fates(), is_here: true };
        said(self).since(&said(before), good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(shared: u64, read_write: u64) -> Said {
        let text = format!(
            r#"{{"schema": "blkcopy-mount-receipt/2", "more": 1, "bytes": {{"shared": {shared}, "read-write": {read_write}}}}}"#
        );
        Said::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn only_a_statement_about_these_bytes_counts() {
        let (before, after) = (said(10, 5), said(30, 6));
        let fates = after.since(&before, 21).unwrap();
        assert_eq!((fates.bytes(Fate::Shared), fates.bytes(Fate::ReadWrite)), (20, 1));
        assert_eq!(after.since(&before, 20), None, "somebody else copied a byte");
        assert_eq!(before.since(&after, 21), None, "another mount");
        for bad in ["", "{}", r#"{"schema": "blkcopy-mount-receipt/1", "bytes": {"shared": 1}}"#, "[]"] {
            assert_eq!(Said::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}

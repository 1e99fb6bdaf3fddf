//! Identify lists: namespaces (CNS 02h and its kin), controllers (12h, 13h), a namespace's names (03h), command sets
//! (1Ch).

use super::super::wire::{bytes_at, exactly, malformed, put, u16_at, u32_at, u64_at};
use super::LEN;
use crate::block::Result;

/// Most entries of a namespace list.
const NAMESPACES_MAX: usize = LEN / 4;
/// Highest NSID that can be a namespace's own; those above mean all of them, or are reserved.
const NSID_MAX: u32 = 0xffff_fffd;

/// A namespace list of the first 1024 of `nsids` that are above `behind` (the NSID of the command). They come in
/// ascending order; 0 ends the list.
///
/// Also the layout of the log Changed Namespace List (LID 04h, `behind` 0).
pub fn namespace_list(nsids: impl IntoIterator<Item = u32>, behind: u32) -> [u8; LEN] {
    let mut out = [0; LEN];
    let wanted = nsids.into_iter().filter(|&nsid| nsid > behind).take(NAMESPACES_MAX);
    wanted.enumerate().for_each(|(n, nsid)| put(&mut out, 4 * n, &nsid.to_le_bytes()));
    out
}

/// Reads a namespace list asked for behind NSID `behind`: at most 1024 NSIDs.
///
/// Errors: `Io` for another length, and for NSIDs that do not ascend, do not begin above `behind` (a host that asks on
/// from the last one would never end), are none, or come past the end.
pub fn parse_namespace_list(bytes: &[u8], behind: u32) -> Result<Vec<u32>> {
    let b: &[u8; LEN] = exactly(bytes, "namespace list")?;
    let all = (0..NAMESPACES_MAX).map(|n| u32_at(b, 4 * n));
    let nsids: Vec<u32> = all.clone().take_while(|&nsid| nsid != 0).collect();
    let mut last = behind;
    for &nsid in &nsids {
        if nsid <= last || nsid > NSID_MAX {
            return Err(malformed(format!(
                "namespace list: NSID {nsid:#x} follows {last:#x}; they must ascend"
            )));
        }
        last = nsid;
    }
    match all.skip(nsids.len()).find(|&nsid| nsid != 0) {
        Some(nsid) => Err(malformed(format!("namespace list: NSID {nsid:#x} follows the end of the list"))),
        None => Ok(nsids),
    }
}

/// Most entries of a controller list.
const CONTROLLERS_MAX: usize = LEN / 2 - 1;

/// A controller list of the first 2047 of `ids` that are `from` (CNTID of the command) or above. They come in ascending
/// order.
pub fn controller_list(ids: impl IntoIterator<Item = u16>, from: u16) -> [u8; LEN] {
    let mut out = [0; LEN];
    let mut count = 0u16;
    for (n, id) in ids.into_iter().filter(|&id| id >= from).take(CONTROLLERS_MAX).enumerate() {
        put(&mut out, 2 + 2 * n, &id.to_le_bytes());
        count += 1;
    }
    put(&mut out, 0, &count.to_le_bytes());
    out
}

/// Reads a controller list: at most 2047 ids.
///
/// Errors: `Io` for another length, for more ids than the list has room for, and for ids that do not ascend.
pub fn parse_controller_list(bytes: &[u8]) -> Result<Vec<u16>> {
    let b: &[u8; LEN] = exactly(bytes, "controller list")?;
    let count = usize::from(u16_at(b, 0));
    if count > CONTROLLERS_MAX {
        return Err(malformed(format!(
            "controller list: {count} entries; there is room for {CONTROLLERS_MAX}"
        )));
    }
    let ids: Vec<u16> = (0..count).map(|n| u16_at(b, 2 + 2 * n)).collect();
    match ids.iter().zip(&ids[count.min(1)..]).find(|(a, b)| a >= b) {
        Some((a, b)) => {
            Err(malformed(format!("controller list: id {b:#x} follows {a:#x}; they must ascend")))
        }
        None => Ok(ids),
    }
}

/// The names of a namespace: its identification descriptor list (CNS 03h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NamespaceIds {
    /// IEEE extended unique id (type 1).
    pub eui64: Option<[u8; 8]>,
    /// Globally unique id of 16 bytes (type 2).
    pub nguid: Option<[u8; 16]>,
    /// UUID, its bytes in the order they are written (type 3).
    pub uuid: Option<[u8; 16]>,
    /// Command set (type 4). Linux leaves out a namespace without one when CAP names command sets by CSI.
    pub csi: Option<u8>,
}

impl NamespaceIds {
    /// As on the wire: a descriptor for each name there is.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        let mut at = 0;
        let mut descriptor = |kind: u8, len: u8, id: &[u8]| {
            put(&mut out, at, &[kind, len]);
            put(&mut out, at + 4, id);
            at += 4 + id.len();
        };
        if let Some(id) = self.eui64 {
            descriptor(1, 8, &id);
        }
        if let Some(id) = self.nguid {
            descriptor(2, 16, &id);
        }
        if let Some(id) = self.uuid {
            descriptor(3, 16, &id);
        }
        if let Some(csi) = self.csi {
            descriptor(4, 1, &[csi]);
        }
        out
    }

    /// Reads the list. It ends at a descriptor of length 0 or where no descriptor fits any more; unknown types are
    /// passed over.
    ///
    /// Errors: `Io` for another length, a name of the wrong length or that passes the end, and a second name of one
    /// type.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let b: &[u8; LEN] = exactly(bytes, "namespace descriptors")?;
        let wrong = |text: String| Err(malformed(format!("namespace descriptors: {text}")));
        let (mut ids, mut at) = (Self::default(), 0);
        while at + 4 <= LEN && b[at + 1] != 0 {
            let (kind, len) = (b[at], usize::from(b[at + 1]));
            let id = at + 4;
            if id + len > LEN {
                return wrong(format!("type {kind}: {len} bytes at {id} pass the end"));
            }
            let known = match (kind, len) {
                (1, 8) => ids.eui64.replace(bytes_at(b, id)).is_some(),
                (2, 16) => ids.nguid.replace(bytes_at(b, id)).is_some(),
                (3, 16) => ids.uuid.replace(bytes_at(b, id)).is_some(),
                (4, 1) => ids.csi.replace(b[id]).is_some(),
                (1..=4, _) => return wrong(format!("type {kind} with {len} bytes")),
                _ => false,
            };
            if known {
                return wrong(format!("type {kind} twice"));
            }
            at = id + len;
        }
        Ok(ids)
    }
}

/// The combinations of command sets that can be enabled together (CNS 1Ch): a bit for each CSI. At most 512 are
/// written.
pub fn command_sets(combinations: &[u64]) -> [u8; LEN] {
    let mut out = [0; LEN];
    let combinations = combinations.iter().take(LEN / 8).enumerate();
    combinations.for_each(|(n, bits)| put(&mut out, 8 * n, &bits.to_le_bytes()));
    out
}

/// Reads combinations of command sets: those before the first that is 0.
///
/// Errors: `Io` for another length.
pub fn parse_command_sets(bytes: &[u8]) -> Result<Vec<u64>> {
    let b: &[u8; LEN] = exactly(bytes, "command sets")?;
    Ok((0..LEN / 8).map(|n| u64_at(b, 8 * n)).take_while(|&bits| bits != 0).collect())
}

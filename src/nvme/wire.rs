//! Numbers and texts in byte arrays, little-endian, for the layouts of this room.

use crate::block::{Error, Kind, Result};

/// `N` bytes from `at`. The caller has checked the length.
pub(super) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// A number of 16 bits.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

/// A number of 32 bits.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

/// A number of 64 bits.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

/// A number of 128 bits.
pub(super) fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(bytes_at(bytes, at))
}

/// Puts bytes at a place.
pub(super) fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The bytes as an array of exactly `N`; what a peer sent shorter or longer is no such structure.
///
/// Errors: `Io`, with both lengths.
pub(super) fn exactly<'a, const N: usize>(bytes: &'a [u8], what: &str) -> Result<&'a [u8; N]> {
    bytes.try_into().map_err(|_| malformed(format!("{what}: {} bytes, it has {N}", bytes.len())))
}

/// What a peer sent makes no sense.
#[cold]
pub(super) fn malformed(text: String) -> Error {
    Error::new(Kind::Io, text)
}

/// The value unless all its bytes are zero: the standard's "not reported" for identifiers.
pub(super) fn unless_zero<const N: usize>(bytes: [u8; N]) -> Option<[u8; N]> {
    (bytes != [0; N]).then_some(bytes)
}

//! Sizes, as people write them and read them.

use crate::block::{Error, Kind, LEN_MAX, Result};

fn invalid(text: String) -> Error {
    Error::new(Kind::InvalidInput, text)
}

/// A size for people: `511 B`, `64.0 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths are cut, not rounded: a size is never shown larger than it is.
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 2)) > 0 {
        unit += 1;
    }
    let shift = 10 * (unit + 1);
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A size that is also given exactly where it is not one number of bytes already.
pub fn size_exact(bytes: u64) -> String {
    if bytes < 1024 { size(bytes) } else { format!("{} ({bytes} bytes)", size(bytes)) }
}

const UNITS: &str = "B, KiB, MiB, GiB, TiB, PiB or EiB";

/// A size as the command line takes it: bytes, or a whole number with B, K, M, G, T, P, E or KiB to EiB, all binary.
///
/// At most [`LEN_MAX`]. Errors: `InvalidInput` with the value and what would be taken.
///
/// ```
/// # use blkcopy::volume::parse_size;
/// assert_eq!(parse_size("64KiB").unwrap(), 65536);
/// assert!(parse_size("1.5GiB").unwrap_err().to_string().contains("1536MiB"));
/// ```
pub fn parse_size(text: &str) -> Result<u64> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if text.starts_with('-') {
        return Err(invalid(format!("the size {text} is negative; give 0 or more bytes")));
    }
    if digits.is_empty() {
        return Err(invalid(format!(
            "{text:?} is not a size; give a whole number of bytes, or one with {UNITS}"
        )));
    }
    if let Some(fraction) = unit.strip_prefix('.') {
        return Err(invalid(format!(
            "the size {text} has a fraction; write it as a whole number of a smaller unit{}",
            smaller(digits, fraction).map_or(String::new(), |s| format!(" ({s})"))
        )));
    }
    let Some(shift) = shift_of(unit) else {
        return Err(invalid(format!("{text:?} has the unknown unit {unit:?}; units are {UNITS}")));
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    bytes.filter(|&n| n <= LEN_MAX).ok_or_else(|| {
        invalid(format!("the size {text} is larger than the largest offset ({LEN_MAX} bytes)"))
    })
}

pub(super) fn shift_of(unit: &str) -> Option<u32> {
    let unit = unit.to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").unwrap_or(&unit);
    match letter {
        "" | "b" if unit == letter => Some(0),
        "k" => Some(10),
        "m" => Some(20),
        "g" => Some(30),
        "t" => Some(40),
        "p" => Some(50),
        "e" => Some(60),
        _ => None,
    }
}

/// "1.5GiB" as "1536MiB", where that is exact.
fn smaller(digits: &str, fraction: &str) -> Option<String> {
    let end = fraction.find(|c: char| !c.is_ascii_digit())?;
    let (fraction, unit) = fraction.split_at(end);
    let (shift, whole) = (shift_of(unit)?, digits.parse::<u64>().ok()?);
    let below =
        ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].get(usize::try_from(shift / 10).ok()?.checked_sub(1)?)?;
    let scale = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = fraction.parse::<u64>().ok()?.checked_mul(1024)?;
    (part % scale == 0).then_some(())?;
    Some(format!("{}{below}", whole.checked_mul(1024)?.checked_add(part / scale)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_are_never_rounded_up() {
        for (bytes, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1535, "1.4 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (1 << 20, "1.0 MiB"),
            (64 << 30, "64.0 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn sizes() {
        let ok = [
            ("0", 0),
            ("511", 511),
            ("512B", 512),
            ("4K", 4096),
            ("4KiB", 4096),
            ("1m", 1 << 20),
            ("2G", 2 << 30),
            ("3TiB", 3 << 40),
            ("1PiB", 1 << 50),
            ("7EiB", 7 << 60),
            ("9223372036854775807", LEN_MAX),
        ];
        for (text, bytes) in ok {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        let bad = [
            ("", "is not a size"),
            ("x", "is not a size"),
            ("GiB", "is not a size"),
            ("+5", "is not a size"),
            (" 5", "is not a size"),
            ("-1", "negative"),
            ("-1GiB", "negative"),
            ("1.5GiB", "(1536MiB)"),
            ("0.1GiB", "fraction"),
            ("1.5", "fraction"),
            ("5 GiB", "unknown unit"),
            ("1KB", "unknown unit"),
            ("0x10", "unknown unit"),
            ("1iB", "unknown unit"),
            ("8EiB", "larger than"),
            ("9223372036854775808", "larger than"),
            ("18446744073709551616", "larger than"),
            ("18446744073709551616KiB", "larger than"),
            ("99999999999999999999999", "larger than"),
        ];
        for (text, part) in bad {
            let error = parse_size(text).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }
}

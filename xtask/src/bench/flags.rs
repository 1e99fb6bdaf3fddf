//! Flags that benches share.

use crate::tool::cannot;
use clap::Args;
use std::path::PathBuf;

/// Which rows are measured, how often, and where the tables go.
#[derive(Args)]
pub(crate) struct Common {
    /// Measured runs of each row, after one that warms up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
    /// Only rows whose name contains one of these parts.
    #[arg(long, value_name = "PART,PART", value_delimiter = ',')]
    pub(crate) rows: Vec<String>,
    /// Write the tables to this file too.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

impl Common {
    /// True when the row of this name is measured.
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| row.contains(part.as_str()))
    }

    /// Writes `text` where `--out` says.
    pub(crate) fn save(&self, text: &str) -> Result<(), String> {
        let Some(out) = &self.out else { return Ok(()) };
        std::fs::write(out, text).map_err(|e| cannot(out, &e))
    }
}

/// Flags of a bench whose rows each take a given time.
#[derive(Args)]
pub(crate) struct Timed {
    /// Seconds that each row is measured in each run, less than an hour.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) common: Common,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|e| format!("{e}"))?;
    let fits = seconds > 0.0 && seconds < 3600.0;
    if fits { Ok(seconds) } else { Err("give more than 0 and less than 3600 seconds".to_owned()) }
}

/// A size in bytes, or with a unit: `2GiB`. At least 1 MiB.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("", 0)];
    let found = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (number, shift) = found.expect("every text ends with the empty unit");
    let number: u64 = number.parse().map_err(|e| format!("{e}"))?;
    let bytes = number.checked_mul(1 << shift).ok_or("too large")?;
    if bytes < 1 << 20 { Err("give at least 1MiB".to_owned()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_a_least() {
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("1048576"), Ok(1 << 20));
        assert!(size("1048575").is_err());
        assert!(size("2GB").is_err());
        assert!(size("99999999999GiB").is_err());
    }
}

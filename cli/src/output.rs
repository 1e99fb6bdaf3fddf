//! What is printed: sizes with units, the last line, tables. A closed pipe is not an error.

use crate::lines;
use crate::visible;
use blkcopy::block::receipt::{Outcome, Receipt, SourceState, Verification};
use blkcopy::block::{Fate, Method};
use blkcopy::sys::process;
use blkcopy::volume::{Level, size};
use serde::Serialize;
use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What went wrong with stdout so far.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);
/// How long lines for stderr are waited for, so that they stand before the result.
const ORDER_PATIENCE: Duration = Duration::from_millis(500);

/// Writes results to stdout, as a command does that ends soon after. A failure is kept for [`finish`]; a closed pipe
/// is not an error.
pub(crate) fn out(text: &str) {
    lines::stderr().drain(ORDER_PATIENCE);
    let mut failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    if failed.is_none()
        && let Err(error) = lines::write_all(io::stdout(), visible::lines(text).as_bytes())
    {
        *failed = Some(error);
    }
}

/// Writes a line of a daemon to stdout, soon: a stdout that nobody reads holds up no device.
pub(crate) fn say(text: &str) {
    lines::stdout().say(text.to_owned());
}

/// At the end of a command: what became of what was written to stdout.
///
/// Errors: the first failure of [`out`], or what the file system has to say only now; not that the reader has gone.
pub(crate) fn finish() -> io::Result<()> {
    if let Some(error) = FAILED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) };
    }
    // Network file systems answer a write that had no space when a descriptor is closed; any descriptor does.
    let copy = io::stdout().as_fd().try_clone_to_owned()?;
    process::close(copy)
}

/// Writes to stderr, soon.
pub(crate) fn err(text: &str) {
    lines::stderr().say(text.to_owned());
}

/// A note on stderr: one line.
pub(crate) fn note(text: &str) {
    err(&format!("blkcopy: {}\n", visible::line(text)));
}

/// A value as JSON for people and programs, with a line end.
pub(crate) fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value);
    visible::json(&text.expect("plain structs with string keys always serialise")).into_owned() + "\n"
}

/// A duration for people.
pub(crate) fn seconds(s: f64) -> String {
    if s >= 1.0 { format!("{s:.1} s") } else { format!("{:.1} ms", s * 1000.0) }
}

/// Bytes per second over a time; `None` when it was too short to say.
pub(crate) fn rate(bytes: u64, s: f64) -> Option<String> {
    if s < 1e-6 || bytes == 0 {
        return None;
    }
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // for people: three digits are shown
    let per_second = (bytes as f64 / s) as u64;
    Some(format!("{}/s", size(per_second)))
}

/// How a method is called in the last line, after its bytes.
pub(crate) fn by(method: Method) -> &'static str {
    match method {
        Method::Skip => "left as holes",
        Method::WriteZeroes => "zeroed",
        Method::Reflink => "by reflink",
        Method::CopyFileRange => "by copy_file_range",
        Method::NvmeCopy => "by NVMe Copy",
        Method::Memory => "in memory",
        Method::Null => "by the null device",
        Method::Emulated => "by read+write",
        _ => "by another method",
    }
}

/// "64.0 GiB shared (reflink), 1.0 GiB left as holes": what became of the bytes, most of them first.
pub(crate) fn became(receipt: &Receipt) -> String {
    let moved = |fate| receipt.evidence.bytes(fate);
    let fates = Fate::ALL.iter().filter(|&&fate| fate != Fate::NoData);
    let mut parts: Vec<(u64, String)> = fates
        .map(|&fate| {
            (moved(fate), format!("{} {}{}", size(moved(fate)), word(fate), method_of(fate, receipt)))
        })
        .collect();
    // Of what was no data, the method says what the destination has now.
    let nothing = [Method::Skip, Method::WriteZeroes, Method::Null];
    parts.extend(nothing.iter().filter_map(|method| {
        let bytes = *receipt.methods.get(method)?;
        Some((bytes, format!("{} {}", size(bytes), by(*method))))
    }));
    let skipped: u64 = nothing.iter().filter_map(|method| receipt.methods.get(method)).sum();
    let left_out = moved(Fate::NoData).saturating_sub(skipped);
    parts.push((left_out, format!("{} without data{}", size(left_out), method_of(Fate::NoData, receipt))));
    parts.retain(|(bytes, _)| *bytes > 0);
    parts.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    if parts.is_empty() {
        return "nothing to copy".to_owned();
    }
    parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", ")
}

/// What is planned for bytes, after them.
pub(crate) fn planned(fate: Fate, method: Method) -> String {
    match fate {
        Fate::NoData => by(method).to_owned(),
        Fate::ReadWrite if method.is_emulated() => word(fate).to_owned(),
        _ => format!("{} ({})", word(fate), called(method)),
    }
}

/// A fate after its bytes.
pub(crate) fn word(fate: Fate) -> &'static str {
    match fate {
        Fate::ReadWrite => "by read+write",
        other => other.text(),
    }
}

/// The method behind a fate, in parentheses, where it was one.
fn method_of(fate: Fate, receipt: &Receipt) -> String {
    let could_be = |method: &Method| match method {
        Method::Reflink | Method::CopyFileRange => true,
        Method::NvmeCopy => true,
        Method::Memory => fate == Fate::ReadWrite,
        _ => false,
    };
    let mut methods = receipt.methods.iter().filter(|(m, b)| **b > 0 && could_be(m)).map(|(m, _)| *m);
    let emulated = receipt.methods.get(&Method::Emulated).is_some_and(|bytes| *bytes > 0);
    match (methods.next(), methods.next()) {
        (Some(method), None) if fate != Fate::ReadWrite || !emulated => format!(" ({})", called(method)),
        _ => String::new(),
    }
}

/// What a method is called in the last line.
fn called(method: Method) -> &'static str {
    match method {
        Method::CopyFileRange => "copy_file_range",
        Method::NvmeCopy => "NVMe Copy",
        Method::Memory => "in memory",
        other => other.name(),
    }
}

/// Bytes that a rate tells of: those that were read, or copied by a device. Not holes, zeroes made by a device, and
/// extents that are shared.
fn moved(receipt: &Receipt) -> u64 {
    let by = |m: Method| receipt.methods.get(&m).copied().unwrap_or(0);
    // Zeroes that were found by reading took reading.
    let here = by(Method::Emulated).max(receipt.host_bytes.read);
    let there: u64 = [Method::CopyFileRange, Method::NvmeCopy, Method::Memory].into_iter().map(by).sum();
    (here + there).min(receipt.good_bytes)
}

/// The last line of a copy, without the line end.
pub(crate) fn last_line(receipt: &Receipt) -> String {
    let good = receipt.good_bytes;
    let whole = receipt.requested_bytes;
    let time = receipt.timings.total_s;
    let rate = rate(moved(receipt), time).map_or(String::new(), |r| format!(" ({r})"));
    let mut line = match receipt.outcome {
        Outcome::Done => format!("copied {} in {}{rate}: {}", size(good), seconds(time), became(receipt)),
        Outcome::Mismatch => {
            let changed = receipt.error.as_ref().is_some_and(|e| e.kind == "source-changed");
            let what = if changed { "the source changed during the copy" } else { "the copy is wrong" };
            format!("copied {} in {}{rate}, but {what}: {}", size(good), seconds(time), became(receipt))
        }
        Outcome::Unstable => {
            let copied = size(good.saturating_add(receipt.cut_off_bytes));
            let what = match receipt.source_state {
                SourceState::Changed => "changed during the copy",
                _ => "is not known to have stayed the same",
            };
            format!("copied {copied} in {}, but the source {what}: {}", seconds(time), became(receipt))
        }
        Outcome::Refused => format!("refused: nothing of {} copied", size(whole)),
        Outcome::Cancelled | Outcome::Failed => {
            let verb = if receipt.outcome == Outcome::Cancelled { "cancelled" } else { "failed" };
            format!(
                "{verb} after {} of {} in {}{rate}: {}",
                size(good),
                size(whole),
                seconds(time),
                became(receipt)
            )
        }
    };
    match &receipt.verification {
        Some(v) if v.equal && receipt.outcome == Outcome::Done => {
            let _ = write!(line, ", verified by {}", v.mode);
            if v.dest_read.cache > 0 {
                let _ = write!(line, " ({} of it through the page cache only)", size(v.dest_read.cache));
            }
        }
        Some(v) if receipt.outcome == Outcome::Mismatch => line += &mismatch(v),
        _ => {}
    }
    if receipt.cut_off_bytes > 0 && receipt.outcome != Outcome::Unstable {
        let _ = write!(line, ", {} of it truncated again", size(receipt.cut_off_bytes));
    }
    if !receipt.flushed && receipt.outcome != Outcome::Refused {
        line += ", not flushed";
    }
    line
}

fn mismatch(v: &Verification) -> String {
    v.first_bad.map_or(String::new(), |bad| format!(", first difference at @{}+{}", bad.offset, bad.len))
}

/// Columns padded to their widest cell, two spaces apart; the last column is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let shown = |row: &Vec<String>| row.iter().map(|cell| visible::line(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(shown).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// One line of a check-up, with the fix.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) level: Level,
    pub(crate) text: String,
    pub(crate) fix: Option<String>,
}

impl Shown {
    pub(crate) fn new(level: Level, text: impl Into<String>, fix: Option<&str>) -> Self {
        Self { level, text: text.into(), fix: fix.map(str::to_owned) }
    }
    pub(crate) fn pass(text: impl Into<String>) -> Self {
        Self::new(Level::Pass, text, None)
    }
    pub(crate) fn warn(text: impl Into<String>, fix: &str) -> Self {
        Self::new(Level::Warn, text, Some(fix))
    }
}

/// Findings as lines.
pub(crate) fn findings(all: &[Shown]) -> String {
    let mut text = String::new();
    for f in all {
        let level = match f.level {
            Level::Pass => "PASS",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        let _ = writeln!(text, "{level}  {}", visible::line(&f.text));
        if let Some(fix) = &f.fix {
            let _ = writeln!(text, "      fix: {}", visible::line(fix));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_have_units() {
        assert_eq!(seconds(3.24), "3.2 s");
        assert_eq!(seconds(0.0123), "12.3 ms");
        assert_eq!(rate(64 << 30, 3.2).unwrap(), "20.0 GiB/s");
        assert_eq!(rate(5, 0.0), None);
    }

    #[test]
    fn tables_line_up() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(table(&[row("a", "b"), row("long", "c")]), "a     b\nlong  c\n");
    }
}

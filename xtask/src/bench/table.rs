//! A report in Markdown, made line by line.

use std::fmt::{Display, Write as _};

/// The text so far.
#[derive(Default)]
pub(crate) struct Report(String);

impl Report {
    /// The text so far.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, line: impl Display) {
        // Writing into a String cannot fail, here and below.
        let _ = writeln!(self.0, "{line}");
    }

    /// Begins a table.
    pub(crate) fn head(&mut self, cells: &[&str]) {
        self.line(format_args!("| {} |", cells.join(" | ")));
        self.line(format_args!("|{}", "---|".repeat(cells.len())));
    }

    /// Adds a row to the table.
    pub(crate) fn row(&mut self, cells: &[&dyn Display]) {
        self.0.push('|');
        for cell in cells {
            let cell = cell.to_string();
            let _ = if cell.is_empty() { write!(self.0, " |") } else { write!(self.0, " {cell} |") };
        }
        self.0.push('\n');
    }

    /// Adds another report.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_as_many_rules_as_columns() {
        let mut report = Report::default();
        report.line("words");
        report.head(&["load", "ms", "note"]);
        report.row(&[&"read", &format_args!("{:.1}", 2.25), &""]);
        assert_eq!(report.text(), "words\n| load | ms | note |\n|---|---|---|\n| read | 2.2 | |\n");
    }
}

//! Text that peers, files and users have named, as a terminal may have it: what it would obey is shown instead.

use std::borrow::Cow;
use std::fmt::Write as _;

/// True for what moves, hides or reorders what stands around it: control characters, those of bidirectional writing,
/// separators other than the space, and what is not seen at all.
fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{a0}' | '\u{ad}' | '\u{61c}' | '\u{1680}' | '\u{180e}' | '\u{2000}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// One line: every such character is shown as an escape, line ends and tabs too.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_odd, |out, c| match c {
        '\n' | '\r' | '\t' => out.extend(c.escape_default()),
        _ => named(out, c),
    })
}

/// Whole lines: the same, and line ends and tabs stay.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    let is_odd = |c| is_odd(c) && !matches!(c, '\n' | '\t');
    escaped(text, is_odd, named)
}

/// JSON: the same value, in escapes that JSON knows.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    escaped(
        text,
        |c| is_odd(c) && c != '\n',
        |out, c| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        },
    )
}

fn named(out: &mut String, c: char) {
    let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
}

fn escaped(text: &str, is_odd: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    let Some(at) = text.find(&is_odd) else { return Cow::Borrowed(text) };
    let mut out = text[..at].to_owned();
    for c in text[at..].chars() {
        if is_odd(c) {
            escape(&mut out, c);
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed unwrap is a failed test
mod tests {
    use super::*;

    //= promise printed
    #[test]
    fn what_a_terminal_obeys_is_shown() {
        for (text, shown) in [
            ("plain, \u{e9}\u{4e2d} too", "plain, \u{e9}\u{4e2d} too"),
            ("a\x1b[31mred", "a\\u{1b}[31mred"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("a\u{2066}b\u{2069}\u{200f}", "a\\u{2066}b\\u{2069}\\u{200f}"),
            ("one\ntwo\r\tthree", "one\\ntwo\\r\\tthree"),
            ("a\u{2028}b\u{2029}c\u{85}d\u{9b}1m", "a\\u{2028}b\\u{2029}c\\u{85}d\\u{9b}1m"),
            ("no\u{200b}thing\u{feff}", "no\\u{200b}thing\\u{feff}"),
        ] {
            assert_eq!(line(text), shown);
        }
        assert_eq!(lines("a\tb\n\x1b\u{202e}\n"), "a\tb\n\\u{1b}\\u{202e}\n");
        let value = serde_json::json!({ "name": "\u{202e}a\x1b\u{7f}\u{e0041}\n" });
        let text = serde_json::to_string_pretty(&value).unwrap();
        let shown = json(&text);
        assert!(shown.is_ascii() && !shown.contains('\x7f'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}

//! `cargo xtask evidence`: docs/evidence.md lists the tests that hold each promise of docs/semantics.md, by the marks
//! above them.
//!
//! A mark is `//= promise 1, 5` above a test, `#= promise 1` in a script of the lab. The numbers are those of the ten
//! promises; the words are those of [`TOPICS`].

use crate::tool::{Done, cannot, root, rust_files};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

/// Parts of docs/semantics.md that are no numbered promise: the word in marks, and the heading.
const TOPICS: [(&str, &str); 5] = [
    ("files", "Files beside other programs"),
    ("mount", "A mount beside other access"),
    ("signals", "Signals"),
    ("events", "What an event leaves behind"),
    ("printed", "What is printed"),
];
/// Fewest tests of a promise.
const TESTS_MIN: usize = 2;
/// Most lines from a mark to the name of its test: attributes and no more.
const TO_NAME_MAX: usize = 8;

/// A test that holds a promise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Held {
    file: String,
    test: String,
}

/// Tests by promise.
type Marks = BTreeMap<String, Vec<Held>>;

/// Checks docs/evidence.md, or writes it.
pub(crate) fn evidence(write: bool) -> Done {
    let mut marks = Marks::new();
    for file in rust_files(&["src", "tests", "cli/src", "cli/tests", "xtask/src"])? {
        let text = fs::read_to_string(root().join(&file)).map_err(|e| cannot(&file, &e))?;
        collect(&file, &text, "//= promise ", &mut marks)?;
    }
    let guest = root().join("lab/guest");
    let entries = fs::read_dir(&guest).map_err(|e| cannot(&guest, &e))?;
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".sh") {
            let text = fs::read_to_string(entry.path()).map_err(|e| cannot(entry.path(), &e))?;
            collect(&format!("lab/guest/{name}"), &text, "#= promise ", &mut marks)?;
        }
    }
    marks.values_mut().for_each(|held| held.sort());
    let semantics = root().join("docs/semantics.md");
    let text = fs::read_to_string(&semantics).map_err(|e| cannot(&semantics, &e))?;
    let page = page(&promises(&text)?, &mut marks)?;
    let path = root().join("docs/evidence.md");
    if write {
        fs::write(&path, page).map_err(|e| cannot(&path, &e))?;
        return Ok(true);
    }
    if fs::read_to_string(&path).is_ok_and(|now| now == page) {
        return Ok(true);
    }
    Err("docs/evidence.md does not list what the marks say; run `cargo xtask evidence --write`".to_owned())
}

/// Takes the marks of one file.
fn collect(file: &str, text: &str, mark: &str, marks: &mut Marks) -> Result<(), String> {
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        let Some(words) = line.trim_start().strip_prefix(mark) else { continue };
        let test = if file.ends_with(".sh") {
            file.rsplit('/').next().unwrap_or(file)
        } else {
            let after = &lines[i + 1..];
            let name = after.iter().take(TO_NAME_MAX).find_map(|l| name_of_function(l));
            name.ok_or_else(|| format!("{file}:{}: no test follows the mark", i + 1))?
        };
        for word in words.split(", ") {
            let held = Held { file: file.to_owned(), test: test.to_owned() };
            marks.entry(word.to_owned()).or_default().push(held);
        }
    }
    Ok(())
}

fn name_of_function(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("fn ")?.split('(').next()
}

/// The promises in order: the word in marks, the heading, and whether it is one that nothing holds yet.
fn promises(semantics: &str) -> Result<Vec<(String, String, bool)>, String> {
    let mut list: Vec<(String, String, bool)> = Vec::new();
    for line in semantics.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let (number, _) =
                heading.split_once('.').ok_or(format!("a promise without a number: {heading}"))?;
            list.push((number.to_owned(), heading.to_owned(), false));
        } else if let Some(heading) = line.strip_prefix("# ") {
            if let Some((word, _)) = TOPICS.iter().find(|(_, h)| *h == heading) {
                list.push(((*word).to_owned(), heading.to_owned(), false));
            }
        } else if line.starts_with("- not yet tested: comes with")
            && let Some(last) = list.last_mut()
        {
            last.2 = true;
        }
    }
    let known = |word: &str| list.iter().any(|(w, ..)| w == word);
    match TOPICS.iter().find(|(word, _)| !known(word)) {
        Some((_, heading)) => Err(format!("docs/semantics.md has no part \"{heading}\"")),
        None => Ok(list),
    }
}

fn page(promises: &[(String, String, bool)], marks: &mut Marks) -> Result<String, String> {
    let mut out = String::from(
        "# Evidence\n\nThe tests that would fail if a promise of [semantics.md](semantics.md) were broken. \
         Generated from the marks\nabove them by `cargo xtask evidence --write`; do not edit.\n",
    );
    for (word, heading, is_to_come) in promises {
        let held = marks.remove(word).unwrap_or_default();
        if held.len() < TESTS_MIN && !is_to_come {
            return Err(format!("\"{heading}\" has {} tests; at least {TESTS_MIN}", held.len()));
        }
        let _ = write!(out, "\n## {heading}\n\n");
        if held.is_empty() {
            out.push_str("Nothing yet.\n");
            continue;
        }
        out.push_str("| test | in |\n|---|---|\n");
        for Held { file, test } in held {
            let _ = writeln!(out, "| `{test}` | `{file}` |");
        }
    }
    match marks.iter().next() {
        Some((word, held)) => Err(format!("{}: the mark \"promise {word}\" names no promise", held[0].file)),
        None => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_belongs_to_the_test_below_it() {
        let mut marks = Marks::new();
        let text =
            "    //= promise 1, mount\n    #[test]\n    fn a() {}\n//= promise 1\n#[test]\nfn b() {}\n";
        collect("src/x.rs", text, "//= promise ", &mut marks).unwrap();
        collect("lab/guest/c.sh", "# C.\n#= promise mount\n", "#= promise ", &mut marks).unwrap();
        let tests = |word: &str| marks[word].iter().map(|h| h.test.as_str()).collect::<Vec<_>>();
        assert_eq!((tests("1"), tests("mount")), (vec!["a", "b"], vec!["a", "c.sh"]));
        assert!(collect("src/x.rs", "//= promise 1\n", "//= promise ", &mut marks).is_err());
    }

    #[test]
    fn a_promise_with_one_test_and_a_mark_without_a_promise_are_refused() {
        let one = |n: &str| Held { file: "f".to_owned(), test: n.to_owned() };
        let promises = [("1".to_owned(), "1. First".to_owned(), false)];
        let of = |word: &str, tests: &[&str]| {
            Marks::from([(word.to_owned(), tests.iter().map(|n| one(n)).collect())])
        };
        assert!(page(&promises, &mut of("1", &["a"])).is_err());
        assert!(page(&promises, &mut of("1", &["a", "b"])).is_ok());
        let mut more = of("1", &["a", "b"]);
        more.extend(of("11", &["a"]));
        assert!(page(&promises, &mut more).unwrap_err().contains("promise 11"));
    }
}

//! Circles between files: two that need each other are one, and nobody can read either first.

use super::code::{Code, module_of};
use std::collections::{BTreeMap, BTreeSet};

/// Files by the path of their module.
type Files = BTreeMap<Vec<String>, (String, Code)>;

/// Which files each file uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// The circles among `sources`, (name, text), of one crate: each the files that reach each other, in order of name.
pub(crate) fn circles(sources: &[(String, String)]) -> Vec<Vec<String>> {
    let files: Files = sources
        .iter()
        .map(|(name, text)| (module_of(name), (name.clone(), Code::read(name, text))))
        .collect();
    let uses: Uses = files
        .values()
        .map(|(name, code)| {
            let all = code.paths.iter().filter_map(|path| file_of(&files, path));
            (name.clone(), all.filter(|to| to != name).collect())
        })
        .collect();
    let reach: BTreeMap<&String, BTreeSet<&String>> = uses.keys().map(|f| (f, reached(&uses, f))).collect();
    let mut found = BTreeSet::new();
    for (from, to) in &reach {
        if to.contains(from) {
            let circle: Vec<String> =
                to.iter().filter(|f| reach[*f].contains(from)).map(|f| (*f).clone()).collect();
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

fn reached<'a>(uses: &'a Uses, from: &'a String) -> BTreeSet<&'a String> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(file) = next.pop() {
        next.extend(uses[file].iter().filter(|to| seen.insert(*to)));
    }
    seen
}

/// The file that defines what `path` names: that of the longest module in front of it, or the one that it is handed on
/// from.
fn file_of(files: &Files, path: &[String]) -> Option<String> {
    let mut path = path.to_vec();
    // Each hand-on leads to another file; a circle of them does not compile.
    for _ in 0..files.len() {
        let len = (0..=path.len()).rev().find(|&len| files.contains_key(&path[..len]))?;
        let (name, code) = &files[&path[..len]];
        let Some(to) = path.get(len).and_then(|item| code.handed_on.get(item)) else {
            return Some(name.clone());
        };
        let rest = path.split_off(len + 1);
        path = to.iter().cloned().chain(rest).collect();
    }
    None
}

#[test]
fn a_circle_is_seen_through_what_is_handed_on() {
    let source = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let room = "pub mod one;\nmod two;\npub use two::Two;\nfn f() { one::g() }";
    let two = |uses: &str| source("src/room/two.rs", &format!("{uses}\npub struct Two;"));
    let tree = |uses: &str| {
        [
            source("src/lib.rs", "pub mod room;"),
            source("src/room/mod.rs", room),
            source("src/room/one.rs", "use super::Two;\npub struct One;"),
            two(uses),
        ]
    };
    assert_eq!(circles(&tree("#[cfg(test)]\nuse super::one::One;")), Vec::<Vec<String>>::new());
    for uses in ["use crate::room::one::One;", "use super::one::One;", "fn f() { super::one::h() }"] {
        assert_eq!(circles(&tree(uses)), [["src/room/one.rs", "src/room/two.rs"]], "{uses}");
    }
}

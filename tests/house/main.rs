//! The house holds its own rules: arrows between rooms point down, unsafe stays in `sys`, files stay readable, and the
//! documents name what there is.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test may

mod circles;
mod code;

use code::Code;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Room, and what it may use (docs/design.md draws it; change both together). `room::module` allows one module only.
const MAY_USE: [(&str, &[&str]); 13] = [
    ("sys", &[]),
    ("block", &["sys::aligned", "sys::owned", "sys::sync"]),
    ("reactor", &["block", "sys"]),
    ("net", &["block"]),
    ("copy", &["block", "reactor"]),
    ("nvme", &["block"]),
    ("drivers", &["block", "net", "nvme", "reactor", "sys"]),
    ("map", &["block", "sys::sync"]),
    ("volume", &["block", "copy", "drivers", "map", "reactor", "workers", "sys::sync"]),
    ("nvmet", &["block", "copy", "nvme", "reactor", "sys::process", "sys::sync"]),
    ("workers", &["block", "reactor", "sys::sync"]),
    ("exports", &["nvmet", "workers", "copy", "net", "nvme", "block", "reactor", "sys"]),
    ("sim", &["block", "reactor", "sys::sync"]),
];

/// Longest source file, in lines.
const LINES_MAX: usize = 800;

/// Longest comment line, in characters.
const COLUMNS_MAX: usize = 120;

/// Rooms that still have circles between their files.
const CIRCLES_LEFT: [&str; 6] =
    ["src/block/", "src/drivers/", "src/nvme/", "src/reactor/", "src/sim/", "cli/src/"];

/// Public type names that still stand for two things.
const NAMES_LEFT: [&str; 18] = [
    "Call",
    "Config",
    "Connection",
    "Entered",
    "Entry",
    "Event",
    "Extent",
    "Kind",
    "Mount",
    "Namespace",
    "Options",
    "Part",
    "Place",
    "Refusal",
    "Span",
    "Subsystem",
    "Target",
    "Transfer",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, ending: &str, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // What cargo builds lies in folders that say so.
        let is_built = path.join("CACHEDIR.TAG").exists();
        if path.is_dir() && !is_built && !name.starts_with('.') {
            files(&path, ending, out);
        } else if name.ends_with(ending) {
            out.push(path);
        }
    }
    out.sort();
}

fn sources(folders: &[&str]) -> Vec<(String, String)> {
    let mut list = Vec::new();
    folders.iter().for_each(|f| files(&root().join(f), ".rs", &mut list));
    assert!(!list.is_empty());
    let short = |p: &Path| p.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    list.iter().map(|p| (short(p), fs::read_to_string(p).unwrap())).collect()
}

fn room_of(file: &str) -> String {
    let inside = file.strip_prefix("src/").unwrap();
    inside.split('/').next().unwrap().trim_end_matches(".rs").to_owned()
}

/// Whether a file is built for tests only, which may use any room.
fn is_for_tests(file: &str) -> bool {
    file.ends_with("tests.rs") || file.ends_with("/testing.rs") || file.contains("/tests/")
}

#[test]
fn arrows_point_down() {
    let mut wrong = Vec::new();
    for (file, text) in sources(&["src"]) {
        let room = room_of(&file);
        if room == "lib" || is_for_tests(&file) {
            continue;
        }
        let row = MAY_USE.iter().find(|(name, _)| *name == room);
        let (_, may) =
            row.unwrap_or_else(|| panic!("{file}: the room {room} is not in the table of this test"));
        for used in Code::read(&file, &text).rooms() {
            let used_room = used.split("::").next().unwrap();
            let known = MAY_USE.iter().any(|(name, _)| *name == used_room);
            let allowed = used_room == room || may.contains(&used_room) || may.contains(&used.as_str());
            if known && !allowed {
                wrong.push(format!("{file} uses {used}; {room} may use {may:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A permission that nothing uses is an arrow somebody may draw unseen.
#[test]
fn every_permitted_arrow_is_used() {
    let mut used = BTreeSet::new();
    for (file, text) in sources(&["src"]).into_iter().filter(|(file, _)| !is_for_tests(file)) {
        let rooms = Code::read(&file, &text).rooms();
        let pairs = rooms.iter().flat_map(|r| [r.as_str(), r.split("::").next().unwrap()]);
        used.extend(pairs.map(|to| (room_of(&file), to.to_owned())));
    }
    let permitted = MAY_USE.iter().flat_map(|(room, may)| may.iter().map(move |to| (*room, *to)));
    let idle: Vec<_> =
        permitted.filter(|(room, to)| !used.contains(&((*room).to_owned(), (*to).to_owned()))).collect();
    assert!(idle.is_empty(), "permitted and not used: {idle:?}; take them out of the table");
}

#[test]
fn the_arrow_test_sees_every_way_to_name_a_room() {
    let text = "#[cfg(test)]\nmod tests;\n\
                #[cfg(test)]\nuse crate::drivers::Mem;\n\
                use crate::block::{A, B};\nuse crate::{copy::plan, map as m};\n\
                fn f() { let s = \"// not a comment\"; crate::sys::ring::x() }\n\
                use crate::sys::{owned::Owner, aligned};\n// crate::volume\n\
                use super::super::nvme::Status;\nuse super::beside::Thing;\n\
                fn g() { println!(\"{}\", crate::nvmet::NAME) }\n\
                mod inner { use super::super::super::exports::Server; }\n\
                macro_rules! m { () => { $crate::sim::Disk } }\n\
                impl T { #[cfg(test)] fn t() { crate::volume::open() } }\n";
    let found: Vec<String> = Code::read("src/reactor/local.rs", text).rooms().into_iter().collect();
    let rooms = ["block", "copy", "exports", "map", "nvme", "nvmet", "reactor", "sim"];
    let modules = ["sys::aligned", "sys::owned", "sys::ring"];
    assert_eq!(found, [rooms.as_slice(), &modules].concat());
}

#[test]
fn no_two_files_need_each_other() {
    let is_code = |(file, _): &(String, String)| !is_for_tests(file);
    let (mut wrong, mut with) = (Vec::new(), BTreeSet::new());
    for folder in ["src", "cli/src", "xtask/src"] {
        let list: Vec<_> = sources(&[folder]).into_iter().filter(is_code).collect();
        for circle in circles::circles(&list) {
            match CIRCLES_LEFT.iter().find(|left| circle.iter().all(|file| file.starts_with(**left))) {
                Some(left) => drop(with.insert(left)),
                None => wrong.push(circle.join(" ")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} circles:\n{}", wrong.len(), wrong.join("\n"));
    let idle: Vec<_> = CIRCLES_LEFT.iter().filter(|left| !with.contains(*left)).collect();
    assert!(idle.is_empty(), "without a circle, so take them out of CIRCLES_LEFT: {idle:?}");
}

#[test]
fn a_public_type_has_its_name_to_itself() {
    let mut places: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    for (file, text) in sources(&["src"]).into_iter().filter(|(file, _)| !is_for_tests(file)) {
        for name in Code::read(&file, &text).public_types {
            places.entry(name).or_default().push(file.clone());
        }
    }
    places.retain(|_, files| files.len() > 1);
    let idle: Vec<_> = NAMES_LEFT.iter().filter(|name| !places.contains_key(**name)).collect();
    assert!(idle.is_empty(), "they name one thing each, so take them out of NAMES_LEFT: {idle:?}");
    places.retain(|name, _| !NAMES_LEFT.contains(&name.as_str()));
    let list: Vec<_> = places.iter().map(|(name, files)| format!("{name}: {}", files.join(" "))).collect();
    assert!(list.is_empty(), "{} names:\n{}", list.len(), list.join("\n"));
}

#[test]
fn unsafe_lives_in_sys_only() {
    for (file, text) in sources(&["src", "cli/src", "xtask/src"]) {
        let has = Code::read(&file, &text).has_unsafe;
        assert!(!has || file.starts_with("src/sys/"), "{file} holds unsafe code; only src/sys may");
    }
}

#[test]
fn files_stay_readable() {
    for (file, text) in sources(&["src", "cli/src", "xtask/src", "tests", "cli/tests"]) {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{file} has {lines} lines; split it (at most {LINES_MAX})");
        let long = text.lines().find(|l| l.trim_start().starts_with("//") && l.chars().count() > COLUMNS_MAX);
        assert!(long.is_none(), "{file}: a comment is longer than {COLUMNS_MAX} characters: {long:?}");
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//!"), "{file}: the first line says what the file is for (//! ...)");
    }
}

#[test]
fn documents_name_every_room_and_their_links_lead_somewhere() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let (design, front) = (read("docs/design.md"), read("src/lib.rs"));
    for (room, _) in MAY_USE {
        assert!(design.contains(&format!("`{room}`")), "docs/design.md does not name the room {room}");
        // `sim` stands there without a link: the documentation is built without its feature too.
        assert!(front.contains(&format!("`{room}`")), "src/lib.rs does not name the room {room}");
    }
    let mut pages = Vec::new();
    files(&root(), ".md", &mut pages);
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|t| t.split(')').next()) {
            let file = link.split('#').next().unwrap();
            let outside = link.contains("://") || file.is_empty();
            let to = page.parent().unwrap().join(file);
            assert!(outside || to.exists(), "{}: the link {link} leads nowhere", page.display());
        }
    }
}

/// Names that `text` sets in backticks and that are neither a test function nor a script of the lab nor a path of this
/// folder.
fn names_of_nothing(text: &str) -> Vec<String> {
    let all: String =
        sources(&["src", "tests", "cli/src", "cli/tests"]).into_iter().map(|(_, t)| t).collect();
    let is_there = |name: &str| {
        let script = root().join("lab/guest").join(name);
        let path = root().join(name);
        let function = name.rsplit("::").next().unwrap();
        script.is_file() || (name.contains('/') && path.exists()) || all.contains(&format!("fn {function}("))
    };
    text.split('`').skip(1).step_by(2).filter(|&name| !is_there(name)).map(str::to_owned).collect()
}

/// Each promise names tests, and those tests exist.
#[test]
fn the_tests_that_promises_name_exist() {
    let text = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    assert_eq!(text.lines().filter(|l| l.starts_with("## ")).count(), 10, "ten promises");
    let tests: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("- tests: ")).collect();
    let missing = names_of_nothing(&tests.join("\n"));
    assert!(missing.is_empty(), "docs/semantics.md names what is not there: {missing:?}");
}

/// So does each claim of a standard; and each of the 55 edge cases has its row, with a test or the reason why there is
/// none.
#[test]
fn the_tests_that_hold_claims_exist_and_every_edge_case_has_a_row() {
    let text = fs::read_to_string(root().join("docs/conformance.md")).unwrap();
    let missing = names_of_nothing(&text);
    assert!(missing.is_empty(), "docs/conformance.md names what is not there: {missing:?}");
    let (_, cases) = text.split_once("\n## The 55 edge cases\n").unwrap();
    let mut numbers = Vec::new();
    for row in cases.lines().filter(|l| l.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let Ok(number) = cells[0].parse::<usize>() else { continue };
        assert_eq!(cells.len(), 4, "case {number}: number, case, what we do, held by");
        assert!(
            cells[3].contains('`') || cells[2].contains("not claimed"),
            "case {number} is held by nothing"
        );
        numbers.push(number);
    }
    assert_eq!(numbers, (1..=55).collect::<Vec<_>>());
}

#[test]
fn planted_bugs_say_what_they_are_and_what_catches_them() {
    let mut patches = Vec::new();
    files(&root().join("tests/planted"), ".patch", &mut patches);
    assert!(!patches.is_empty());
    for patch in patches {
        let text = fs::read_to_string(&patch).unwrap();
        for key in ["# bug: ", "# caught-by: "] {
            assert!(text.lines().take(4).any(|l| l.starts_with(key)), "{}: no line {key}", patch.display());
        }
    }
}

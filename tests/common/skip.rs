//! Tests that cannot run here say so aloud and are counted: `SKIPPED name: why` on stderr, and one line in the file
//! named by `BLKCOPY_SKIP_LOG` when `cargo xtask test` asks for it (the test harness captures stderr of tests that
//! pass).

use std::io::Write;

/// Reports that the test `name` is skipped, and why.
pub(crate) fn skip(name: &str, why: &str) {
    eprintln!("SKIPPED {name}: {why}");
    let Some(path) = std::env::var_os("BLKCOPY_SKIP_LOG") else { return };
    let mut log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .expect("BLKCOPY_SKIP_LOG names a file that can be written");
    // One write: tests run in parallel and append to one file.
    log.write_all(format!("SKIPPED {name}: {why}\n").as_bytes()).expect("the skip log can be written");
}

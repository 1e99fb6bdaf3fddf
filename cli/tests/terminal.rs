//! What a terminal shows of `blkcopy cp`: a bar while it copies, and nothing of it once anything else is said.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{BIN, bytes, must, skip, under_way};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A command on a terminal of its own, made by script(1).
struct Terminal {
    child: Child,
    written: Arc<Mutex<Vec<u8>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Terminal {
    /// `None`, said aloud: script(1) is missing.
    fn start(test: &str, dir: &Path, args: &str) -> Option<Self> {
        let command = format!("stty cols 100; exec {BIN} {args}");
        let started = Command::new("script")
            .args(["-qefc", &command, "/dev/null"])
            .current_dir(dir)
            .env_remove("BLKCOPY_LOG")
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = started else {
            skip(test, "script(1) is missing");
            return None;
        };
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (mut out, theirs) = (child.stdout.take().unwrap(), written.clone());
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut piece) {
                theirs.lock().unwrap().extend_from_slice(&piece[..n]);
            }
        });
        Some(Self { child, written, reader: Some(reader) })
    }

    fn types(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    /// Waits until the terminal was sent this.
    fn shows(&self, part: &str) {
        let begun = Instant::now();
        while !self.text().contains(part) {
            assert!(begun.elapsed() < Duration::from_secs(120), "never {part:?}: {}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// How it ended, and what is left on its screen.
    fn ends(mut self) -> (Option<i32>, Vec<String>) {
        let code = self.child.wait().unwrap().code();
        self.reader.take().unwrap().join().unwrap();
        (code, screen(&self.text()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that a terminal shows after `text`: it knows line ends and what indicatif sends.
fn screen(text: &str) -> Vec<String> {
    let (mut lines, mut row, mut column) = (vec![Vec::new()], 0usize, 0usize);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\x08' => column -= usize::from(column > 0),
            '\x1b' if rest.peek() == Some(&'[') => {
                rest.next();
                let mut number = String::new();
                let how = loop {
                    match rest.next() {
                        Some(digit) if digit.is_ascii_digit() || digit == ';' || digit == '?' => {
                            number.push(digit)
                        }
                        other => break other,
                    }
                };
                let count = number.parse().unwrap_or(1);
                match how {
                    Some('A') => row = row.saturating_sub(count),
                    Some('B') => row += count,
                    Some('K') if number == "2" => lines[row].clear(),
                    Some('K') => lines[row].truncate(column),
                    _ => {}
                }
            }
            c => {
                let line: &mut Vec<char> = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                column += 1;
            }
        }
        lines.resize_with(lines.len().max(row + 1), Vec::new);
    }
    let text = |line: Vec<char>| line.into_iter().collect::<String>().trim_end().to_owned();
    lines.into_iter().map(text).filter(|line| !line.is_empty()).collect()
}

fn has_bar(lines: &[String]) -> bool {
    lines.iter().any(|line| line.contains('\u{2588}') || line.contains('\u{2591}'))
}

#[test]
fn a_screen_is_what_a_terminal_would_show() {
    assert_eq!(screen("one\r\ntwo\rT\x1b[1A!\r\n"), ["o!e", "Two"]);
    assert_eq!(screen("abc\x1b[2K\rd"), ["d"]);
}

//= promise printed
#[test]
fn after_an_interrupt_nothing_is_left_of_the_bar() {
    let dir = common::folder();
    std::fs::write(dir.path().join("a"), bytes(64 << 20, 5)).unwrap();
    let args = "cp --offload never --limit-rate 4MiB a b";
    let test = "after_an_interrupt_nothing_is_left_of_the_bar";
    let Some(mut terminal) = Terminal::start(test, dir.path(), args) else { return };
    terminal.shows("emulated");
    terminal.types(b"\x03");
    let (code, lines) = terminal.ends();
    assert_eq!(code, Some(130), "{lines:#?}");
    assert!(!has_bar(&lines), "{lines:#?}");
    assert!(lines.iter().any(|l| l.starts_with("cancelled after ")), "{lines:#?}");
    assert!(
        lines.iter().any(|l| l == "blkcopy: stopped on request; what was copied so far is kept"),
        "{lines:#?}"
    );
}

//= promise printed
#[test]
fn a_line_that_is_said_while_the_bar_is_drawn_has_a_line_of_its_own() {
    let dir = common::folder();
    std::fs::write(dir.path().join("a"), bytes(12 << 20, 5)).unwrap();
    let args = "cp --offload never --limit-rate 4MiB a b";
    let test = "a_line_that_is_said_while_the_bar_is_drawn_has_a_line_of_its_own";
    let Some(terminal) = Terminal::start(test, dir.path(), args) else { return };
    terminal.shows("emulated");
    under_way(&dir.path().join("b"));
    let ours = dir.path().display();
    let pids = format!(
        "for p in /proc/[0-9]*; do [ \"$(readlink $p/cwd)\" = {ours} ] && [ \"$(readlink $p/exe)\" = {BIN} ] \
         && echo ${{p#/proc/}}; done || true"
    );
    must(&format!("kill -USR1 {}", must(&pids)));
    let (code, lines) = terminal.ends();
    assert_eq!(code, Some(0), "{lines:#?}");
    assert!(!has_bar(&lines), "{lines:#?}");
    let said = lines.iter().find(|l| l.contains("copying: ")).unwrap_or_else(|| panic!("{lines:#?}"));
    // With what was moved so far, and how long the rest takes.
    assert!(said.starts_with("blkcopy: copying: ") && said.contains(" of 12.0 MiB ("), "{said}");
    assert!(said.contains(" MiB/s, ") && said.ends_with(" s left, emulated"), "{said}");
    assert!(lines.iter().any(|l| l.starts_with("copied 12.0 MiB in ")), "{lines:#?}");
}

//! Lines on their way to stderr or stdout: whoever has one to say never waits for whoever reads them.
//!
//! One thread for each stream writes; what it cannot write is kept up to a bound, then counted and left out. A stream
//! that is closed, full or not read (an unread pipe, a stopped terminal) holds up that one thread and nobody else.

use crate::bar;
use crate::visible;
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tracing::Metadata;
use tracing::callsite::Identifier;
use tracing_subscriber::fmt::MakeWriter;

/// Texts that may wait to be written, and bytes of them.
const TEXTS_MAX: usize = 1024;
const BYTES_MAX: usize = 256 << 10;
/// Longest single text, in bytes; a longer one is cut.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// Lines of one kind within [`KIND_TIME`]; peers can cause many of one kind, and never more kinds than the program has.
const KIND_MAX: u32 = 20;
const KIND_TIME: Duration = Duration::from_secs(1);
/// Bytes shown of the line that stands for those of its kind that were left out.
const SAMPLE_BYTES: usize = 160;

/// Takes lines; clones share it.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There is something to write, or an end.
    come: Condvar,
    /// Something was written.
    gone: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<String>,
    bytes: usize,
    /// Taken out and not written yet.
    writing: bool,
    dropped: u64,
    kinds: HashMap<Identifier, Of>,
}

/// The lines of one kind.
struct Of {
    since: Instant,
    count: u32,
    left_out: u64,
    sample: String,
}

impl Lines {
    /// Writes with `write`, on a thread of its own that lives as long as the process.
    pub(crate) fn start(name: &str, mut write: impl FnMut(&str) + Send + 'static) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), come: Condvar::new(), gone: Condvar::new() });
        let theirs = shared.clone();
        let thread = thread::Builder::new().name(name.to_owned());
        // Without a thread nothing is written, and nobody waits either.
        let _ = thread.spawn(move || theirs.run(&mut write));
        Self(shared)
    }

    /// Writes `text`, whole lines, soon; counts it as left out when too much waits already. Never waits.
    pub(crate) fn say(&self, text: String) {
        self.0.lock().push(text);
        self.0.come.notify_one();
    }

    /// The same for a line of a kind that others can cause: at most [`KIND_MAX`] of it a second, the rest is counted.
    fn say_of(&self, kind: &Identifier, text: String) {
        let mut state = self.0.lock();
        let now = Instant::now();
        let fresh = || Of { since: now, count: 0, left_out: 0, sample: String::new() };
        let of = state.kinds.entry(kind.clone()).or_insert_with(fresh);
        if now.duration_since(of.since) >= KIND_TIME && of.left_out == 0 {
            (of.since, of.count) = (now, 0);
        }
        of.count = of.count.saturating_add(1);
        if of.count > KIND_MAX {
            if of.left_out == 0 {
                of.sample = visible::line(cut(&text, SAMPLE_BYTES).trim()).into_owned();
            }
            of.left_out += 1;
        } else {
            state.push(text);
        }
        drop(state);
        self.0.come.notify_one();
    }

    /// Waits until all that was said is written, at most this long; true when it is.
    pub(crate) fn drain(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut state = self.0.lock();
        while state.writing || !state.waiting.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.gone.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl State {
    fn push(&mut self, text: String) {
        let mut text = match visible::lines(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(shown) => shown,
        };
        if text.len() > TEXT_BYTES_MAX {
            text = cut(&text, TEXT_BYTES_MAX) + "... (cut)\n";
        }
        if self.waiting.len() >= TEXTS_MAX || self.bytes + text.len() > BYTES_MAX {
            self.dropped += 1;
            return;
        }
        self.bytes += text.len();
        self.waiting.push_back(text);
    }

    /// What was left out and is not told yet; `now`: of kinds only whose time is over.
    fn told(&mut self, now: Instant) -> String {
        let mut text = String::new();
        if self.dropped > 0 {
            let n = std::mem::take(&mut self.dropped);
            let _ = writeln!(text, "blkcopy: {n} lines dropped: they came faster than they were read");
        }
        for of in self.kinds.values_mut() {
            let time = now.duration_since(of.since);
            if of.left_out > 0 && time >= KIND_TIME {
                let (n, sample) = (std::mem::take(&mut of.left_out), std::mem::take(&mut of.sample));
                let _ = writeln!(
                    text,
                    "blkcopy: {n} more lines dropped within {:.1} s, such as: {sample}",
                    time.as_secs_f64()
                );
                (of.since, of.count) = (now, 0);
            }
        }
        text
    }

    fn owes_a_word(&self) -> bool {
        self.kinds.values().any(|of| of.left_out > 0)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is held under this lock cannot be left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, write: &mut dyn FnMut(&str)) {
        let mut state = self.lock();
        loop {
            let mut text = state.waiting.pop_front().unwrap_or_default();
            state.bytes -= text.len();
            text += &state.told(Instant::now());
            if !text.is_empty() {
                state.writing = true;
                drop(state);
                write(&text);
                state = self.lock();
                state.writing = false;
                self.gone.notify_all();
                continue;
            }
            state = if state.owes_a_word() {
                self.come.wait_timeout(state, KIND_TIME / 4).unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.come.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }
}

/// The front of a text, at most `bytes` long.
fn cut(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Writes made to streams so far.
pub(crate) static WRITES: AtomicU64 = AtomicU64::new(0);

/// Writes all of it to a stream, past the locks of the standard library: a panic must not wait for them.
///
/// Errors: those of the stream; what is left is given up.
pub(crate) fn write_all(fd: impl std::os::fd::AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        WRITES.fetch_add(1, Ordering::Relaxed);
        match rustix::io::write(&fd, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            // A descriptor that somebody else made non-blocking.
            Err(rustix::io::Errno::AGAIN) => thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Where lines for stderr go since [`divert`] was called: 0 stderr, 1 stdout, 2 nowhere.
static DIVERTED: AtomicU8 = AtomicU8::new(0);

/// Lines for stderr go to stdout from now on, or nowhere: stderr leads where nothing may be printed.
pub(crate) fn divert(to_stdout: bool) {
    DIVERTED.store(if to_stdout { 1 } else { 2 }, Ordering::Release);
}

/// The lines of stderr.
pub(crate) fn stderr() -> &'static Lines {
    static LINES: OnceLock<Lines> = OnceLock::new();
    // A stderr that cannot be written is a stderr that nobody reads.
    LINES.get_or_init(|| {
        Lines::start("blkcopy-stderr", |text| {
            bar::apart(|| {
                let _ = match DIVERTED.load(Ordering::Acquire) {
                    0 => write_all(io::stderr(), text.as_bytes()),
                    1 => write_all(io::stdout(), text.as_bytes()),
                    _ => Ok(()),
                };
            });
        })
    })
}

/// The lines of a daemon's stdout. Once it cannot be written, stderr says so, once.
pub(crate) fn stdout() -> &'static Lines {
    static LINES: OnceLock<Lines> = OnceLock::new();
    LINES.get_or_init(|| {
        let mut failed = false;
        Lines::start("blkcopy-stdout", move |text| {
            if let Err(error) = write_all(io::stdout(), text.as_bytes())
                && error.kind() != io::ErrorKind::BrokenPipe
                && !std::mem::replace(&mut failed, true)
            {
                stderr().say(format!(
                    "blkcopy: warning: standard output cannot be written to: {error}; its lines are lost\n"
                ));
            }
        })
    })
}

/// Where events of the library go: stderr's lines, each kind limited.
pub(crate) struct Events;

/// One event, said when it is dropped.
pub(crate) struct Event {
    kind: Option<Identifier>,
    text: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Events {
    type Writer = Event;

    fn make_writer(&'a self) -> Event {
        Event { kind: None, text: Vec::new() }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Event {
        Event { kind: Some(meta.callsite()), text: Vec::new() }
    }
}

impl io::Write for Event {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        // An event is one line, whatever the names in it hold.
        let text = visible::line(text.trim_end_matches('\n')).into_owned() + "\n";
        match &self.kind {
            Some(kind) => stderr().say_of(kind, text),
            None => stderr().say(text),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed unwrap is a failed test
mod tests {
    use super::*;

    /// Lines into a string, behind a gate that a test may hold shut.
    fn gated() -> (Lines, Arc<Mutex<()>>, Arc<Mutex<String>>) {
        let (gate, written) = (Arc::new(Mutex::new(())), Arc::new(Mutex::new(String::new())));
        let (theirs, text) = (gate.clone(), written.clone());
        let lines = Lines::start("test", move |line| {
            let _opened = theirs.lock().unwrap();
            *text.lock().unwrap() += line;
        });
        (lines, gate, written)
    }

    fn left_out(text: &str) -> u64 {
        let number = |l: &str| l.strip_prefix("blkcopy: ")?.split(' ').next()?.parse::<u64>().ok();
        text.lines().filter(|l| l.contains("lines dropped")).filter_map(number).sum()
    }

    //= promise printed
    #[test]
    fn a_reader_that_is_stuck_holds_nobody_up_and_hears_what_it_missed() {
        let (lines, gate, written) = gated();
        let stuck = gate.lock().unwrap();
        let all = TEXTS_MAX as u64 + 100;
        (0..all).for_each(|n| lines.say(format!("{n}\n")));
        assert!(!lines.drain(Duration::from_millis(10)), "it is stuck");
        drop(stuck);
        assert!(lines.drain(Duration::from_secs(60)));
        let text = written.lock().unwrap();
        let shown = text.lines().filter(|l| l.parse::<u64>().is_ok()).count() as u64;
        assert!(shown >= TEXTS_MAX as u64 && left_out(&text) > 0, "{shown}, {text}");
        assert_eq!(shown + left_out(&text), all);
    }

    #[test]
    fn long_texts_are_cut_and_few_of_them_wait() {
        let (lines, gate, written) = gated();
        let stuck = gate.lock().unwrap();
        (0..100).for_each(|_| lines.say("\u{e9}".repeat(TEXT_BYTES_MAX)));
        assert!(lines.0.lock().bytes <= BYTES_MAX);
        drop(stuck);
        assert!(lines.drain(Duration::from_secs(60)));
        let text = written.lock().unwrap();
        assert!(text.len() <= BYTES_MAX + 2 * TEXT_BYTES_MAX && left_out(&text) > 0);
    }

    //= promise printed
    #[test]
    fn of_one_kind_only_so_many_are_said_and_the_rest_is_counted() {
        let (lines, _gate, written) = gated();
        let site = tracing::callsite!(name: "a test", kind: tracing::metadata::Kind::EVENT, fields: message);
        let kind = tracing::callsite::Callsite::metadata(site).callsite();
        (0..1000).for_each(|n| lines.say_of(&kind, format!("peer {n}\n")));
        let begun = Instant::now();
        while left_out(&written.lock().unwrap()) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody says what was left out");
            thread::sleep(Duration::from_millis(10));
        }
        let text = written.lock().unwrap();
        let said = text.lines().filter(|l| l.starts_with("peer ")).count() as u64;
        // A slow machine may need more than one period.
        assert!(said >= u64::from(KIND_MAX) && said + left_out(&text) <= 1000, "{text}");
        assert!(text.contains(", such as: peer 20\n"), "{text}");
    }
}

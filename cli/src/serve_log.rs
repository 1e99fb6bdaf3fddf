//! Lines of a server's threads on their way to a terminal: whoever has one to say never waits for whoever reads them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Lines that may wait to be written.
const LINES_MAX: usize = 1024;
/// How long lines that wait are waited for at the end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes lines; clones share it.
#[derive(Clone)]
pub(crate) struct Log(Arc<Shared>);

struct Shared {
    lines: Mutex<Option<SyncSender<String>>>,
    dropped: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Log {
    /// Writes with `write`, on a thread of its own.
    pub(crate) fn start(write: impl Fn(&str) + Send + 'static) -> Self {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        let thread = thread::spawn(move || run(&waiting, &counted, write));
        Self(Arc::new(Shared { lines: Mutex::new(Some(lines)), dropped, thread: Mutex::new(Some(thread)) }))
    }

    /// Writes `line`, which ends with a line end, soon; counts it as left out when too many wait.
    pub(crate) fn say(&self, line: String) {
        let lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.as_ref().is_none_or(|lines| lines.try_send(line).is_err()) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// No more lines: waits a moment for those that are left.
    pub(crate) fn end(&self) {
        drop(self.0.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let begun = Instant::now();
        while thread.as_ref().is_some_and(|t| !t.is_finished()) && begun.elapsed() < PATIENCE {
            thread::sleep(PATIENCE / 1000);
        }
    }
}

fn run(waiting: &Receiver<String>, dropped: &AtomicU64, write: impl Fn(&str)) {
    let tell_dropped = || {
        let count = dropped.swap(0, Ordering::Relaxed);
        if count > 0 {
            write(&format!("{count} lines left out: they came faster than they were read\n"));
        }
    };
    for line in waiting {
        write(&line);
        tell_dropped();
    }
    tell_dropped();
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed unwrap is a failed test
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_is_stuck_holds_nobody_up_and_hears_what_it_missed() {
        let (gate, written) = (Arc::new(Mutex::new(())), Arc::new(Mutex::new(String::new())));
        let stuck = gate.lock().unwrap();
        let (theirs, text) = (gate.clone(), written.clone());
        let log = Log::start(move |line| {
            let _opened = theirs.lock().unwrap();
            *text.lock().unwrap() += line;
        });
        let all = LINES_MAX as u64 + 100;
        (0..all).for_each(|n| log.say(format!("{n}\n")));
        drop(stuck);
        log.end();
        let text = written.lock().unwrap();
        let shown = text.lines().filter(|l| l.parse::<u64>().is_ok()).count() as u64;
        let missed: u64 =
            text.lines().filter_map(|l| l.split_once(" lines left out")?.0.parse::<u64>().ok()).sum();
        assert!(shown >= LINES_MAX as u64 && missed > 0, "{shown}, {missed}");
        assert_eq!(shown + missed, all);
    }
}

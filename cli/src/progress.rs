//! How far a copy is: a bar on a terminal, a line every few seconds elsewhere. Drawn by a thread of its own: a terminal
//! that is stopped stops no copy.

use crate::bar;
use crate::output::err;
use blkcopy::block::Method;
use blkcopy::copy::run::Phase;
use blkcopy::volume::{CopyWatch, HowFar, size};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// How often a bar is drawn.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// How long the end of a bar is waited for; a terminal that is stopped keeps it.
const END_PATIENCE: Duration = Duration::from_millis(200);

/// Where progress goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Show {
    Nothing,
    Bar,
    Lines,
}

impl Show {
    /// By what stderr is.
    pub(crate) fn choose(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Nothing,
            (false, true) => Self::Bar,
            (false, false) => Self::Lines,
        }
    }
}

/// What is known of the destination of a copy that is left where it is; empty when no copy runs.
pub(crate) fn last_words(watch: &CopyWatch) -> String {
    let is_copied = |at: &HowFar| at.phase != Phase::Compare;
    watch.how_far().filter(is_copied).map_or(String::new(), |at| {
        format!(
            "  the destination is incomplete: the first {} of its {} bytes are copied and may not be durable\n",
            at.good_prefix_bytes, at.total_bytes
        )
    })
}

/// How far a copy is, as a line without its end; none when no copy runs.
pub(crate) fn line(watch: &CopyWatch) -> Option<String> {
    watch.how_far().map(|at| line_at(&at, at.begun.elapsed()))
}

/// Shows how far a copy is until it is finished: dropped, it ends the thread that draws; that ends the channel.
pub(crate) struct Meter(Option<(Sender<()>, Receiver<()>)>);

impl Meter {
    /// Starts a thread that shows what `watch` shows, while it shows something.
    pub(crate) fn start(show: Show, watch: &Arc<CopyWatch>) -> Self {
        if show == Show::Nothing {
            return Self(None);
        }
        let (stop, stops) = channel();
        let (ends, ended) = channel();
        let watch = watch.clone();
        let body = move || {
            let _ends: Sender<()> = ends;
            match show {
                Show::Bar => draw(&watch, &stops),
                _ => write(&watch, &stops),
            }
        };
        // Without a thread nothing is shown, and the copy goes on.
        let thread = thread::Builder::new().name("blkcopy-meter".into()).spawn(body);
        Self(thread.is_ok().then_some((stop, ended)))
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        if let Some((stop, stopped)) = self.0.take() {
            drop(stop);
            let _ends = stopped.recv_timeout(END_PATIENCE);
        }
    }
}

fn goes_on(stops: &Receiver<()>, every: Duration) -> bool {
    matches!(stops.recv_timeout(every), Err(RecvTimeoutError::Timeout))
}

fn write(watch: &CopyWatch, stops: &Receiver<()>) {
    while goes_on(stops, LINE_EVERY) {
        if let Some(line) = line(watch) {
            err(&format!("blkcopy: {line}\n"));
        }
    }
}

fn draw(watch: &CopyWatch, stops: &Receiver<()>) {
    while goes_on(stops, BAR_EVERY) {
        let Some(at) = watch.how_far() else { continue };
        if !is_in_front() {
            continue;
        }
        let done = if at.phase == Phase::Verify { at.verified_bytes } else { at.moved_bytes() };
        bar::draw(done, at.total_bytes, parts(&at, at.begun.elapsed()).join(", "));
    }
    bar::clear();
}

/// True while the terminal is ours: what runs in the background does not draw over others, nor is stopped for it.
fn is_in_front() -> bool {
    tcgetpgrp(std::io::stderr()).is_ok_and(|group| group == getpgrp())
}

/// What a copy is doing, and how fast.
fn parts(at: &HowFar, time: Duration) -> Vec<String> {
    let doing = match at.phase {
        Phase::Copy => at.method.map_or("", Method::name),
        Phase::Flush => "flushing",
        Phase::Verify => "verifying",
        Phase::Compare => "comparing",
    };
    let mut parts: Vec<String> = at.rate(time).map(|rate| format!("{}/s", size(rate))).into_iter().collect();
    parts.extend(at.seconds_left(time).map(|left| format!("{left} s left")));
    parts.extend((!doing.is_empty()).then(|| doing.to_owned()));
    parts
}

/// "1.2 GiB of 5.0 GiB (24%), 400.0 MiB/s, 9 s left, emulated"
fn line_at(at: &HowFar, time: Duration) -> String {
    let total = at.total_bytes;
    let good = at.moved_bytes().min(total);
    let percent = (u128::from(good) * 100).checked_div(u128::from(total)).unwrap_or(100);
    let mut text = format!("{} of {} ({percent}%)", size(good), size(total));
    if at.phase == Phase::Verify {
        text += &format!(", {} verified", size(at.verified_bytes));
    }
    for part in parts(at, time) {
        text += &format!(", {part}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_line_tells_rate_time_left_and_method() {
        let line = |at: &HowFar, secs: u64| line_at(at, Duration::from_secs(secs));
        let mut at = HowFar {
            begun: Instant::now(),
            total_bytes: 4 << 30,
            good_bytes: 1 << 30,
            good_prefix_bytes: 0,
            moving_bytes: 0,
            data_bytes: 1 << 30,
            data_total_bytes: Some(4 << 30),
            verified_bytes: 0,
            phase: Phase::Copy,
            method: Some(Method::Emulated),
        };
        assert_eq!(line(&at, 2), "1.0 GiB of 4.0 GiB (25%), 512.0 MiB/s, 6 s left, emulated");
        // Of the 3 GiB left 1.5 GiB are data; of the GiB done, half was.
        (at.data_bytes, at.data_total_bytes) = (512 << 20, Some(2 << 30));
        assert_eq!(line(&at, 2), "1.0 GiB of 4.0 GiB (25%), 256.0 MiB/s, 6 s left, emulated");
        at.data_total_bytes = None;
        assert_eq!(line(&at, 2), "1.0 GiB of 4.0 GiB (25%), 256.0 MiB/s, emulated");
        at.phase = Phase::Flush;
        assert_eq!(line(&at, 2), "1.0 GiB of 4.0 GiB (25%), flushing");
        let nothing = HowFar { total_bytes: 0, good_bytes: 0, phase: Phase::Copy, method: None, ..at };
        assert_eq!(line(&nothing, 0), "0 B of 0 B (100%)");
    }

    #[test]
    fn holes_and_clones_have_no_rate_and_less_data_than_thought_has_no_time_left() {
        let mut at = HowFar {
            begun: Instant::now(),
            total_bytes: 8 << 60,
            good_bytes: 4 << 60,
            good_prefix_bytes: 0,
            moving_bytes: 0,
            data_bytes: 1 << 20,
            data_total_bytes: Some(2 << 20),
            verified_bytes: 0,
            phase: Phase::Copy,
            method: None,
        };
        for method in [Method::Skip, Method::WriteZeroes, Method::Reflink, Method::Null] {
            at.method = Some(method);
            let text = line_at(&at, Duration::from_millis(10));
            assert_eq!(text, format!("4.0 EiB of 8.0 EiB (50%), {}", method.name()));
        }
        for method in [Method::Emulated, Method::CopyFileRange, Method::NvmeCopy, Method::Memory] {
            at.method = Some(method);
            let text = line_at(&at, Duration::from_secs(1));
            assert_eq!(text, format!("4.0 EiB of 8.0 EiB (50%), 1.0 MiB/s, 1 s left, {}", method.name()));
        }
        // What is stored was counted wrong, or has grown.
        at.data_bytes = 3 << 20;
        assert_eq!(
            (at.rate(Duration::from_secs(1)), at.seconds_left(Duration::from_secs(1))),
            (Some(3 << 20), None)
        );
    }
}

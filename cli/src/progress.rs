//! How far a copy is: a bar on a terminal, a line every few seconds elsewhere. Drawn by a thread of its own: a terminal that is
//! stopped stops no copy.

use crate::output::{err, rate, size};
use blkcopy::block::Method;
use blkcopy::copy::run::{Phase, Progress};
use blkcopy::reactor::local::{Local, sleep};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;
use std::cell::Cell;
use std::io::IsTerminal;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often the copying thread says where it is, and a bar is drawn.
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

/// Where a copy is, as its thread last said, for all threads.
#[derive(Default)]
pub(crate) struct Board(Mutex<Option<At>>);

/// How far a copy is.
#[derive(Clone, Debug)]
struct At {
    begun: Instant,
    total: u64,
    good: u64,
    prefix: u64,
    moving: u64,
    verified: u64,
    phase: Phase,
    method: Option<Method>,
}

impl Board {
    fn at(&self) -> MutexGuard<'_, Option<At>> {
        // A whole value is put there at once.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is, as a line without its end; none when no copy runs.
    pub(crate) fn line(&self) -> Option<String> {
        self.at().as_ref().map(|at| at.line(at.begun.elapsed()))
    }

    /// What is known of the destination of a copy that is left where it is; empty when no copy runs.
    pub(crate) fn last_words(&self) -> String {
        let at = self.at().clone();
        at.map_or(String::new(), |at| {
            format!(
                "  the destination is incomplete: its first {} of {} bytes are copied and may not be durable\n",
                at.prefix, at.total
            )
        })
    }

    fn put(&self, begun: Instant, total: u64, progress: &Progress) {
        *self.at() = Some(At {
            begun,
            total,
            good: progress.good_bytes.get(),
            prefix: progress.good_prefix_bytes.get(),
            moving: progress.moving_bytes.get(),
            verified: progress.verified_bytes.get(),
            phase: progress.phase.get(),
            method: progress.method.get(),
        });
    }
}

/// Watches a copy until it is finished.
pub(crate) struct Meter {
    board: Arc<Board>,
    over: Rc<Cell<bool>>,
    /// Dropped, it ends the thread that draws; that ends the channel.
    draws: Option<(Sender<()>, Receiver<()>)>,
}

/// Starts a task on the executor that puts `progress` out of `total` bytes on the board, and a thread that shows it.
pub(crate) fn start(
    local: &Local,
    show: Show,
    board: &Arc<Board>,
    progress: &Rc<Progress>,
    total: u64,
) -> Meter {
    let over = Rc::new(Cell::new(false));
    let begun = Instant::now();
    board.put(begun, total, progress);
    let (progress, ended, theirs) = (progress.clone(), over.clone(), board.clone());
    let _runs_on = local.spawn(async move {
        while !ended.get() {
            theirs.put(begun, total, &progress);
            sleep(BAR_EVERY).await;
        }
    });
    Meter { board: board.clone(), over, draws: draw_on(show, board) }
}

impl Meter {
    /// Takes the bar away.
    pub(crate) fn finish(self) {
        self.over.set(true);
        *self.board.at() = None;
        if let Some((stop, stopped)) = self.draws {
            drop(stop);
            let _ends = stopped.recv_timeout(END_PATIENCE);
        }
    }
}

/// A thread that shows what stands on the board; `None` when nothing is to be shown.
fn draw_on(show: Show, board: &Arc<Board>) -> Option<(Sender<()>, Receiver<()>)> {
    if show == Show::Nothing {
        return None;
    }
    let (stop, stops) = channel();
    let (ends, ended) = channel();
    let board = board.clone();
    let body = move || {
        let _ends: Sender<()> = ends;
        match show {
            Show::Bar => draw(&board, &stops),
            _ => write(&board, &stops),
        }
    };
    // Without a thread nothing is shown, and the copy goes on.
    thread::Builder::new().name("blkcopy-meter".into()).spawn(body).ok()?;
    Some((stop, ended))
}

fn goes_on(stops: &Receiver<()>, every: Duration) -> bool {
    matches!(stops.recv_timeout(every), Err(RecvTimeoutError::Timeout))
}

fn write(board: &Board, stops: &Receiver<()>) {
    while goes_on(stops, LINE_EVERY) {
        if let Some(line) = board.line() {
            err(&format!("blkcopy: {line}\n"));
        }
    }
}

fn draw(board: &Board, stops: &Receiver<()>) {
    let mut drawn = None;
    while goes_on(stops, BAR_EVERY) {
        let Some(at) = board.at().clone() else { continue };
        if !is_in_front() {
            continue;
        }
        let bar = drawn.get_or_insert_with(|| bar(at.total));
        bar.set_position(if at.phase == Phase::Verify { at.verified } else { at.moved() });
        bar.set_message(at.doing());
    }
    if let Some(bar) = drawn {
        bar.finish_and_clear();
    }
}

/// True while the terminal is ours: what runs in the background does not draw over others, nor is stopped for it.
fn is_in_front() -> bool {
    tcgetpgrp(std::io::stderr()).is_ok_and(|group| group == getpgrp())
}

fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let template =
        "{bar:30} {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta} {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

impl At {
    /// Bytes moved so far, those of steps still running too.
    fn moved(&self) -> u64 {
        self.good.saturating_add(self.moving)
    }

    fn doing(&self) -> &'static str {
        match self.phase {
            Phase::Copy => self.method.map_or("", Method::name),
            Phase::Flush => "flushing",
            Phase::Verify => "verifying",
        }
    }

    /// "1.2 GiB of 5.0 GiB (24%), 400.0 MiB/s, 9 s left, emulated"
    fn line(&self, time: Duration) -> String {
        let total = self.total;
        let good = self.moved().min(total);
        let percent = (u128::from(good) * 100).checked_div(u128::from(total)).unwrap_or(100);
        let mut text = format!("{} of {} ({percent}%)", size(good), size(total));
        match self.phase {
            Phase::Copy => {
                if let Some(rate) = rate(good, time.as_secs_f64()) {
                    text += &format!(", {rate}");
                }
                let left = u128::from(total.saturating_sub(good)) * time.as_millis();
                if let Some(left_ms) = left.checked_div(u128::from(good)) {
                    text += &format!(", {} s left", left_ms.div_ceil(1000));
                }
            }
            Phase::Flush => {}
            Phase::Verify => text += &format!(", {} verified", size(self.verified)),
        }
        let doing = self.doing();
        if !doing.is_empty() {
            text += &format!(", {doing}");
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a failed unwrap is a failed test
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_time_left_and_method() {
        let (p, board) = (Progress::default(), Board::default());
        let line = |p: &Progress, total: u64, secs: u64| {
            board.put(Instant::now(), total, p);
            board.at().as_ref().unwrap().line(Duration::from_secs(secs))
        };
        p.good_bytes.set(1 << 30);
        p.method.set(Some(Method::Emulated));
        assert_eq!(line(&p, 4 << 30, 2), "1.0 GiB of 4.0 GiB (25%), 512.0 MiB/s, 6 s left, emulated");
        p.phase.set(Phase::Flush);
        assert_eq!(line(&p, 4 << 30, 2), "1.0 GiB of 4.0 GiB (25%), flushing");
        assert_eq!(line(&Progress::default(), 0, 0), "0 B of 0 B (100%)");
    }
}

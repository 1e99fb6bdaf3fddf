//! How far a copy is: a bar on a terminal, a line every few seconds elsewhere.

use crate::output::{err, rate, size};
use blkcopy::block::Method;
use blkcopy::copy::run::{Phase, Progress};
use blkcopy::reactor::local::{Local, now, sleep};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::Cell;
use std::io::IsTerminal;
use std::rc::Rc;
use std::time::Duration;

/// How often a bar is drawn.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

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

/// Watches a copy until it is finished.
pub(crate) struct Meter {
    bar: Option<ProgressBar>,
    over: Rc<Cell<bool>>,
}

/// Starts a task on the executor that shows `progress` out of `total` bytes.
pub(crate) fn start(local: &Local, show: Show, progress: &Rc<Progress>, total: u64) -> Meter {
    let over = Rc::new(Cell::new(false));
    let bar = (show == Show::Bar).then(|| bar(total));
    let (progress, drawn, ended) = (progress.clone(), bar.clone(), over.clone());
    let every = match show {
        Show::Nothing => return Meter { bar, over },
        Show::Bar => BAR_EVERY,
        Show::Lines => LINE_EVERY,
    };
    let _runs_on = local.spawn(async move {
        let begun = now();
        loop {
            sleep(every).await;
            if ended.get() {
                return;
            }
            match &drawn {
                Some(bar) => draw(bar, &progress),
                None => err(&line(&progress, total, now().saturating_sub(begun))),
            }
        }
    });
    Meter { bar, over }
}

impl Meter {
    /// Takes the bar away.
    pub(crate) fn finish(self) {
        self.over.set(true);
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
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

fn draw(bar: &ProgressBar, progress: &Progress) {
    let done = match progress.phase.get() {
        Phase::Verify => progress.verified_bytes.get(),
        _ => moved(progress),
    };
    bar.set_position(done);
    bar.set_message(doing(progress));
}

/// Bytes moved so far, those of steps still running too.
fn moved(progress: &Progress) -> u64 {
    progress.good_bytes.get().saturating_add(progress.moving_bytes.get())
}

fn doing(progress: &Progress) -> &'static str {
    match progress.phase.get() {
        Phase::Copy => progress.method.get().map_or("", Method::name),
        Phase::Flush => "flushing",
        Phase::Verify => "verifying",
    }
}

/// "blkcopy: 1.2 GiB of 5.0 GiB (24%), 400.0 MiB/s, 9 s left, emulated"
fn line(progress: &Progress, total: u64, time: Duration) -> String {
    let good = moved(progress).min(total);
    let percent = (u128::from(good) * 100).checked_div(u128::from(total)).unwrap_or(100);
    let mut text = format!("blkcopy: {} of {} ({percent}%)", size(good), size(total));
    match progress.phase.get() {
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
        Phase::Verify => text += &format!(", {} verified", size(progress.verified_bytes.get())),
    }
    let doing = doing(progress);
    if !doing.is_empty() {
        text += &format!(", {doing}");
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_time_left_and_method() {
        let p = Progress::default();
        p.good_bytes.set(1 << 30);
        p.method.set(Some(Method::Emulated));
        assert_eq!(
            line(&p, 4 << 30, Duration::from_secs(2)),
            "blkcopy: 1.0 GiB of 4.0 GiB (25%), 512.0 MiB/s, 6 s left, emulated\n"
        );
        p.phase.set(Phase::Flush);
        assert_eq!(
            line(&p, 4 << 30, Duration::from_secs(2)),
            "blkcopy: 1.0 GiB of 4.0 GiB (25%), flushing\n"
        );
        assert_eq!(line(&Progress::default(), 0, Duration::ZERO), "blkcopy: 0 B of 0 B (100%)\n");
    }
}

//! The bar on the terminal, and lines beside it: whoever writes to stderr takes it away first.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The bar that is on the screen.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);
/// No bar is drawn any more: the process ends without waiting for whoever draws.
static IS_OVER: AtomicBool = AtomicBool::new(false);

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Draws the bar, `at` out of `total` bytes, with a text after it.
pub(crate) fn draw(at: u64, total: u64, text: String) {
    let mut shown = shown();
    if IS_OVER.load(Ordering::Acquire) {
        return;
    }
    let bar = shown.get_or_insert_with(|| make(total));
    bar.set_position(at);
    bar.set_message(text);
}

/// Takes the bar away.
pub(crate) fn clear() {
    if let Some(bar) = shown().take() {
        bar.finish_and_clear();
    }
}

/// Has the next line that is written take the bar away for good. Waits for nothing: the terminal may be stopped.
pub(crate) fn ends() {
    IS_OVER.store(true, Ordering::Release);
}

/// Writes beside the bar: it goes before, and comes back when it is drawn next.
pub(crate) fn apart(write: impl FnOnce()) {
    let mut shown = shown();
    if let Some(bar) = shown.take() {
        bar.finish_and_clear();
    }
    write();
}

fn make(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let template = "{bar:20} {percent:>3}% {binary_bytes}/{binary_total_bytes} {wide_msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

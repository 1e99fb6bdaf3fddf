//! Runs one copy: engine, progress.

use crate::fail::Fail;
use crate::output::{note, size_exact};
use crate::progress::{self, Show};
pub(crate) use crate::signals::Interrupts;
use blkcopy::block::receipt::{Outcome, Receipt};
use blkcopy::block::{ByteRange, Device, Error, Kind};
use blkcopy::copy::Job;
use blkcopy::copy::run::{Ended, Options, Progress, copy};
use blkcopy::drivers::{File, Hold};
use blkcopy::reactor::EngineChoice;
use blkcopy::reactor::local::sleep;
use blkcopy::workers::Workbench;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How often a watched or leased source is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// Buffered writes are made by the submitting thread: cheapest, and this thread serves nobody else.
const INLINE_WRITES: bool = true;

/// Starts the engine. One line on stderr when it is not the one that was hoped for.
pub(crate) fn engine(choice: EngineChoice, quiet: bool) -> Result<Workbench, Fail> {
    let bench = Workbench::new(choice, INLINE_WRITES).map_err(|e| Fail::from(e).hint("--io-engine auto"))?;
    if choice == EngineChoice::Auto && bench.engine.contains("because") && !quiet {
        note(&format!("io engine: {}", bench.engine));
    }
    Ok(bench)
}

/// What is copied.
pub(crate) struct What<'a> {
    pub(crate) source: Arc<dyn Device>,
    pub(crate) dest: Arc<dyn Device>,
    pub(crate) job: &'a Job,
    /// What is held on the source.
    pub(crate) hold: Option<Hold>,
}

/// Copies, showing how far it is. The receipt's source state is the hold's; a source that changed is told in a note.
pub(crate) fn run(
    bench: &Workbench,
    interrupts: &Interrupts,
    what: What<'_>,
    options: &Options,
    show: Show,
) -> Ended {
    let What { source, dest, job, hold } = what;
    interrupts.wakes(bench.local.waker());
    let (source_name, source_size) = (source.name().to_owned(), source.size());
    let in_order = options.in_order;
    let progress = Rc::new(Progress::default());
    let meter = progress::start(&bench.local, show, interrupts.board(), &progress, job.total());
    let hold = Rc::new(RefCell::new(hold));
    let watched = Rc::downgrade(&hold);
    let was_cut = Rc::new(Cell::new(None));
    let (cut, file) = (was_cut.clone(), dest.clone());
    let _looks = bench.local.spawn(async move {
        let Some(file) = file.as_any().downcast_ref::<File>().filter(|_| !in_order) else { return };
        // It has its whole length from the start: what is shorter was cut by another program, and what is written to it then makes it
        // as long as before.
        while cut.get().is_none() {
            cut.set(file.len_now().ok().filter(|&len| len < file.size()));
            sleep(WATCH_EVERY).await;
        }
    });
    let _runs_on = bench.local.spawn(async move {
        // A program that wants to write waits for our lease: it is given back soon after it is asked for.
        while let Some(hold) = watched.upgrade() {
            if hold.borrow_mut().as_mut().is_some_and(|h| h.check().is_err()) {
                return;
            }
            drop(hold);
            sleep(WATCH_EVERY).await;
        }
    });
    let dest_name = dest.name().to_owned();
    let mut ended = bench.local.block_on(copy(source, dest, job, options, &progress));
    meter.finish();
    if let Some(len) = was_cut.get() {
        let text = format!("another program cut it to {len} bytes while it was copied to; copy again");
        let error = fail_after_all(&mut ended.receipt, Error::new(Kind::InUse, text).on(&dest_name));
        ended.error = Some(error);
    }
    let mut changed = None;
    if let Some(hold) = &mut *hold.borrow_mut() {
        match hold.check() {
            Ok(()) => ended.receipt.source_state = hold.state(),
            Err(error) => changed = Some(error),
        }
        if hold.grew() && changed.is_none() {
            // Said with --quiet too, as below: a file that was cut and written anew has grown as well.
            let text = "grew while it was copied, and may have changed: the copy ends where the source ended when it was opened";
            note(&format!("warning: {}: {text} ({})", source_name, size_exact(source_size)));
        }
    }
    if ended.receipt.outcome == Outcome::Mismatch {
        let error = changed.unwrap_or_else(|| wrong(&ended.receipt));
        ended.receipt.error = Some((&error).into());
        ended.error = Some(error);
    } else if let Some(changed) = changed
        && ended.error.as_ref().is_none_or(|e| e.kind() != Kind::SourceChanged)
    {
        // Said with --quiet too: the copy may be of no moment that ever was.
        note(&format!("warning: {changed}"));
    }
    ended
}

/// Takes down that a copy which ended well is not good after all: nothing of it is known to be there. Returns the error.
pub(crate) fn fail_after_all(receipt: &mut Receipt, error: Error) -> Error {
    receipt.outcome = Outcome::Failed;
    receipt.cut_off_bytes += receipt.good_bytes;
    (receipt.good_bytes, receipt.good_prefix_bytes) = (0, 0);
    receipt.flushed = false;
    receipt.error = Some((&error).into());
    error
}

/// The error of a destination that does not hold what was copied to it.
fn wrong(receipt: &Receipt) -> Error {
    let error = Error::new(Kind::Mismatch, "read back after the copy, it differs from the source");
    let error = error.on(&receipt.dest.name);
    match receipt.verification.as_ref().and_then(|v| v.first_bad) {
        Some(bad) => error.at(ByteRange::new(bad.offset, bad.len).unwrap_or_default()),
        None => error,
    }
}

/// Names the two ends in the receipt as the user did.
pub(crate) fn name_ends(receipt: &mut Receipt, source: &str, dest: &str) {
    source.clone_into(&mut receipt.source.name);
    dest.clone_into(&mut receipt.dest.name);
}

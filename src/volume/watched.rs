//! A copy during which both ends are looked at: another program may cut the destination or change the source.

use super::findings::Finding;
use super::watch::{CopyWatch, Totals, show};
use crate::block::receipt::{Outcome, Receipt, SourceState};
use crate::block::{ByteRange, Device, Error, Kind};
use crate::copy::Job;
use crate::copy::run::{Ended, Options, Progress, copy};
use crate::drivers::{File, Hold};
use crate::reactor::local::sleep;
use crate::workers::Workbench;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How often both ends are looked at.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// What is copied.
pub(super) struct What<'a> {
    pub(super) source: Arc<dyn Device>,
    pub(super) dest: Arc<dyn Device>,
    pub(super) job: &'a Job,
    /// What is held on the source.
    pub(super) hold: Option<Hold>,
    /// Shows how far it is.
    pub(super) watch: &'a Arc<CopyWatch>,
}

/// Copies. The receipt's source state is the hold's; that the source grew or changed is told.
pub(super) fn run(
    bench: &Workbench,
    what: What<'_>,
    options: &Options,
    tell: &mut dyn FnMut(&Finding),
) -> Ended {
    let What { source, dest, job, hold, watch } = what;
    let (source_name, source_size) = (source.name().to_owned(), source.size());
    let in_order = options.in_order;
    let hold = Rc::new(RefCell::new(hold));
    let watched = Rc::downgrade(&hold);
    let was_cut = Rc::new(Cell::new(None));
    let (cut, file) = (was_cut.clone(), dest.clone());
    let _looks = bench.local.spawn(async move {
        let Some(file) = file.as_any().downcast_ref::<File>().filter(|_| !in_order) else { return };
        // It has its whole length from the start: what is shorter was cut by another program, and what is written to it
        // then makes it as long as before.
        while cut.get().is_none() {
            cut.set(file.len_now().ok().filter(|&len| len < file.size()));
            sleep(WATCH_EVERY).await;
        }
    });
    let _runs_on = bench.local.spawn(async move {
        // One that is cut and written anew between two looks is seen as one that grew.
        while let Some(hold) = watched.upgrade() {
            if hold.borrow_mut().as_mut().is_some_and(|h| h.check().is_err()) {
                return;
            }
            drop(hold);
            sleep(WATCH_EVERY).await;
        }
    });
    let dest_name = dest.name().to_owned();
    let progress = Rc::new(Progress::default());
    let showing = show(&bench.local, watch, &progress, Totals::of(job, &source));
    let mut ended = bench.local.block_on(copy(source, dest, job, options, &progress));
    drop(showing);
    if let Some(len) = was_cut.get() {
        let text = format!("another program cut it to {len} bytes during the copy; copy again");
        let error = fail_after_all(&mut ended.receipt, Error::new(Kind::InUse, text).on(&dest_name));
        ended.error = Some(error);
    }
    let mut changed = None;
    if let Some(hold) = &mut *hold.borrow_mut() {
        changed = hold.check_at_end().err();
        ended.receipt.source_state = hold.state();
        if hold.grew() && changed.is_none() {
            // A file that was cut and written anew has grown as well.
            tell(&Finding::SourceGrew { source: source_name, size_bytes: source_size });
        }
    }
    if ended.receipt.outcome == Outcome::Mismatch {
        let error = changed.unwrap_or_else(|| wrong(&ended.receipt));
        ended.receipt.error = Some((&error).into());
        ended.error = Some(error);
    } else if let Some(error) = changed
        && ended.error.as_ref().is_none_or(|e| e.kind() != Kind::SourceChanged)
    {
        // The copy may be of no moment that ever was.
        tell(&Finding::SourceChanged { error });
    }
    ended
}

/// Takes down that a copy of a source that was to stay the same is none, if that is not known of it. Returns the error.
pub(super) fn fail_if_unstable(receipt: &mut Receipt) -> Option<Error> {
    let state = receipt.source_state;
    if receipt.outcome != Outcome::Done || state.is_stable() {
        return None;
    }
    let error = match state {
        SourceState::Changed => {
            let text = "the source changed during the copy, and a stable one was asked for";
            Error::new(Kind::SourceChanged, text)
        }
        _ => {
            let text = "nothing tells whether the source stayed the same during the copy, and a stable one was asked \
                        for; copy a snapshot, or leave out --require-stable";
            Error::new(Kind::Unsupported, text)
        }
    };
    let flushed = receipt.flushed;
    let error = fail_after_all(receipt, error.on(&receipt.source.name.clone()));
    receipt.flushed = flushed;
    receipt.outcome = Outcome::Unstable;
    Some(error)
}

/// Takes down that a copy which ended well is not good after all: nothing of it is known to be there. Returns the
/// error.
pub(super) fn fail_after_all(receipt: &mut Receipt, error: Error) -> Error {
    receipt.outcome = Outcome::Failed;
    receipt.cut_off_bytes += receipt.good_bytes;
    (receipt.good_bytes, receipt.good_prefix_bytes) = (0, 0);
    receipt.flushed = false;
    receipt.error = Some((&error).into());
    error
}

/// The error of a destination that does not hold what was copied to it.
fn wrong(receipt: &Receipt) -> Error {
    let error = Error::new(Kind::Mismatch, "the bytes read back after the copy differ from the source");
    let error = error.on(&receipt.dest.name);
    match receipt.verification.as_ref().and_then(|v| v.first_bad) {
        Some(bad) => error.at(ByteRange::new(bad.offset, bad.len).unwrap_or_default()),
        None => error,
    }
}

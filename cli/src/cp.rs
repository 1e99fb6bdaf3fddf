//! `blkcopy cp`: check, copy, receipt.

use crate::args::CpArgs;
use crate::fail::{Code, Fail, print_error};
use crate::go_on::GoOn;
use crate::output::{self, note};
use crate::progress::{Meter, Show};
use crate::receipt_file::ReceiptFile;
use crate::signals::Interrupts;
use crate::streams;
use crate::visible;
use blkcopy::block::receipt::Outcome;
use blkcopy::block::{Error, Kind};
use blkcopy::volume::{CopyBuilder, CopyError, EndsOptions, Finding, size_exact};
use std::cell::RefCell;

/// Runs the command.
pub(crate) fn run(args: &CpArgs) -> Result<Code, Fail> {
    let interrupts = Interrupts::listen()?;
    let shown = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
    interrupts.doing(format!("opening {} and {}", shown(&args.ends.source), shown(&args.ends.dest)));
    let meter = RefCell::new(None);
    let tell = |finding: &Finding| tell(finding, args.quiet, &meter);
    let mut copy = CopyBuilder::new(EndsOptions::from(&args.ends))
        .consistency(args.consistency.into())
        .verify(args.verify.into())
        .limit_rate(args.limit_rate)
        .buffer_memory(args.buffer_memory)
        .preserve(args.preserve)
        .require_stable(args.require_stable)
        .io_engine(args.io_engine.into())
        .abandon(true)
        .cancel(&interrupts.cancel)
        .progress(interrupts.board())
        .on_finding(tell)
        .look()?;
    for path in [copy.ends().source_name.path(), copy.ends().dest_name.path()].into_iter().flatten() {
        streams::check_apart(path)?;
    }
    let receipt_file = args.receipt.as_ref().map(|path| ReceiptFile::open(path, copy.ends())).transpose()?;
    interrupts.doing("copying");
    let go_on = GoOn::new(copy.ends());
    meter.replace(Some(Meter::start(Show::choose(args.quiet), interrupts.board())));
    let copied = copy.run();
    finish(&meter);
    let (receipt, error, abandoned) = match copied {
        Ok(receipt) => (receipt, None, false),
        Err(CopyError { obstacle, receipt: Some(receipt), abandoned }) => {
            (*receipt, Some(obstacle.into_error()), abandoned)
        }
        Err(error) => return Err(error.into()),
    };

    let mut late = None;
    let mut code = code_of(receipt.outcome);
    let unmet = |error: &Error| {
        error.kind() == Kind::Unsupported && EndsOptions::from(&args.ends).offload.must().is_some()
    };
    if code == Code::Error && error.as_ref().is_some_and(unmet) {
        // Only trying could tell, and the answer is no.
        code = Code::No;
    }
    let text = output::json(&receipt);
    if let Some(mut file) = receipt_file
        && let Err(error) = file.write(&text, !args.ends.no_sync)
    {
        if code == Code::Done {
            note("the copy is done, but its receipt was not written:");
        }
        late = Some(error);
    }
    if args.json {
        output::out(&text);
    } else if !args.quiet {
        output::out(&(output::last_line(&receipt) + "\n"));
    }
    if let Some(error) = &error {
        print_error(error, hint(error));
    }
    if let Some(command) = go_on.command(args, &receipt) {
        let good = size_exact(receipt.good_prefix_bytes);
        note(&format!("the first {good} of the copy are good; to resume from there:"));
        output::err(&format!("  {}\n", visible::line(&command)));
    }
    if let Some(error) = &late {
        print_error(error, None);
        code = Code::Error;
    }
    copy.clean_up();
    if abandoned {
        // The engine would wait for what a device has not answered.
        interrupts.leave(code);
    }
    Ok(code)
}

/// Takes the bar away before anything else is printed.
fn finish(meter: &RefCell<Option<Meter>>) {
    if let Some(mut meter) = meter.take() {
        meter.finish();
    }
}

/// Prints what is found: before the copy, and when it has ended.
fn tell(finding: &Finding, quiet: bool, meter: &RefCell<Option<Meter>>) {
    match finding {
        // Said with --quiet too: the copy may be of no moment that ever was, or is not all that was asked for.
        Finding::SourceGrew { .. }
        | Finding::SourceChanged { .. }
        | Finding::NotPreserved { .. }
        | Finding::NameNotDurable { .. } => {
            finish(meter);
            note(&format!("warning: {finding}"));
        }
        Finding::DestLeft { .. } => {
            finish(meter);
            if !quiet {
                note(&finding.to_string());
            }
        }
        _ if quiet => {}
        Finding::EngineSteppedDown { .. } => note(&finding.to_string()),
        _ => note(&format!("warning: {finding}")),
    }
}

fn code_of(outcome: Outcome) -> Code {
    match outcome {
        Outcome::Done => Code::Done,
        Outcome::Mismatch | Outcome::Unstable | Outcome::Refused => Code::No,
        Outcome::Cancelled => Code::Cancelled,
        Outcome::Failed => Code::Error,
    }
}

/// The next step after an error in the middle of a copy.
fn hint(error: &Error) -> Option<&'static str> {
    match error.kind() {
        Kind::NoSpace => Some("free space at the destination, or name another destination"),
        Kind::Mismatch => Some("copy again; if it happens again, test the destination's hardware"),
        Kind::SourceChanged => Some("copy again while nothing writes to the source"),
        Kind::NoMemory => Some("give a smaller --buffer-memory"),
        _ => None,
    }
}

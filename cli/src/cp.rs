//! `blkcopy cp`: check, copy, receipt.

use crate::args::CpArgs;
use crate::ends::{self, Ends, Purpose};
use crate::fail::{Code, Fail, print_error};
use crate::go_on::GoOn;
use crate::output::{self, Level, note};
use crate::preserve::Kept;
use crate::progress::Show;
use crate::receipt_file::ReceiptFile;
use crate::run::{self, Interrupts, What};
use crate::streams;
use blkcopy::block::receipt::Outcome;
use blkcopy::block::{Error, Kind};
use blkcopy::copy::run::Options;
use blkcopy::copy::{DeviceFacts, Offload, Planner};
use std::os::unix::fs::MetadataExt;

/// Runs the command.
pub(crate) fn run(args: &CpArgs) -> Result<Code, Fail> {
    let interrupts = Interrupts::listen()?;
    let shown = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
    interrupts.doing(format!("opening {} and {}", shown(&args.ends.source), shown(&args.ends.dest)));
    let ends = ends::look(&args.ends, Purpose::Copy)?;
    for path in [ends.source_name.path(), ends.dest_name.path()].into_iter().flatten() {
        streams::check_apart(path)?;
    }
    let preserve = if args.preserve { Some(kept(&ends)?) } else { None };
    // What is preserved is given at the end: until then the file is nobody else's.
    let mode = if args.preserve { 0o600 } else { mode_of_new(&ends) };
    if !args.quiet {
        for finding in ends.findings.iter().filter(|f| f.level == Level::Warn) {
            note(&format!("warning: {}", finding.text));
        }
    }
    if Offload::from(args.ends.offload) == Offload::Require {
        require_offload(args, &ends)?;
    }
    let bench = run::engine(args.io_engine.into(), args.quiet)?;
    let receipt_file = args.receipt.as_ref().map(|path| ReceiptFile::open(path, &ends)).transpose()?;
    interrupts.doing("copying");
    let go_on = GoOn::new(&ends);
    let ready = ends.begin(mode)?;
    let options = Options {
        policy: ends::policy(&args.ends, ready.dest_zero_from),
        consistency: args.consistency.into(),
        verify: args.verify.into(),
        limit_rate: args.limit_rate,
        flush: !args.ends.no_sync,
        payload_bytes: args.buffer_memory,
        cancel: interrupts.cancel.clone(),
        abandon: true,
        pulse: std::rc::Rc::default(),
        io_engine: bench.engine.clone(),
        locks: Some(bench.locks.clone()),
        in_order: ready.in_order,
    };
    let show = Show::choose(args.quiet);
    let what = What { source: ready.source, dest: ready.dest, job: &ready.job, hold: ready.source_hold };
    let ended = run::run(&bench, &interrupts, what, &options, show);
    let mut receipt = ended.receipt;
    run::name_ends(&mut receipt, &shown(&args.ends.source), &shown(&args.ends.dest));

    let mut error = ended.error;
    let mut late = Vec::new();
    if let Some(made) = &ready.made {
        let settled = if receipt.outcome == Outcome::Done { made.settle() } else { Ok(()) };
        let finished = settled.and_then(|()| match receipt.outcome {
            Outcome::Done => made.finish(!args.ends.no_sync, preserve.as_ref()),
            _ => Ok(Vec::new()),
        });
        match finished {
            Ok(warnings) => warnings.iter().for_each(|text| note(&format!("warning: {text}"))),
            Err(failed) => error = Some(run::fail_after_all(&mut receipt, failed)),
        }
        if let Some(text) = made.put_right(&mut receipt)
            && !args.quiet
        {
            note(&text);
        }
    }
    let mut code = code_of(receipt.outcome);
    drop(ready.dest_hold);
    let text = output::json(&receipt);
    if let Some(mut file) = receipt_file
        && let Err(error) = file.write(&text, !args.ends.no_sync)
    {
        if code == Code::Done {
            note("the copy is done, but its receipt is not written:");
        }
        late.push(error);
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
        let good = output::size_exact(receipt.good_prefix_bytes);
        note(&format!("the first {good} of the copy are good; to go on from there:\n  {command}"));
    }
    for error in &late {
        print_error(error, None);
        code = Code::Error;
    }
    // A file that has got no name goes.
    drop(ready.made);
    if ended.abandoned {
        // The engine would wait for what a device has not answered.
        interrupts.leave(code);
    }
    Ok(code)
}

fn code_of(outcome: Outcome) -> Code {
    match outcome {
        Outcome::Done => Code::Done,
        Outcome::Mismatch | Outcome::Refused => Code::No,
        Outcome::Cancelled => Code::Cancelled,
        Outcome::Failed => Code::Error,
    }
}

/// The next step after an error in the middle of a copy.
fn hint(error: &Error) -> Option<&'static str> {
    match error.kind() {
        Kind::NoSpace => Some("free space on the destination, or name another"),
        Kind::Mismatch => Some("copy again, and test the destination's hardware if it happens again"),
        Kind::SourceChanged => Some("copy again while nothing writes to the source"),
        Kind::NoMemory => Some("--buffer-memory with less"),
        _ => None,
    }
}

/// Makes sure, before anything is cut or written, that no byte would pass this host.
fn require_offload(args: &CpArgs, ends: &Ends) -> Result<(), Fail> {
    // Where there is no stand-in the copy itself finds out; it refuses at the first such byte.
    let Ok(ready) = ends.rehearse()? else { return Ok(()) };
    let facts = DeviceFacts::new(ready.source, ready.dest);
    let policy = ends::policy(&args.ends, ready.dest_zero_from);
    for step in Planner::new(&ready.job, facts, policy) {
        if let Err(error) = step {
            let unmet = error.kind() == Kind::Unsupported;
            let fail = Fail::from(error);
            return Err(if unmet { fail.hint("--offload auto, or look at blkcopy plan").no() } else { fail });
        }
    }
    Ok(())
}

/// What `--preserve` keeps of the source.
fn kept(ends: &Ends) -> Result<Kept, Fail> {
    match ends.named.as_any().downcast_ref::<blkcopy::drivers::File>() {
        Some(file) => Ok(Kept::of(file)?),
        None => Err(Fail::invalid(format!(
            "{}: --preserve needs a regular file as source",
            ends.source_name.device_text()
        ))
        .hint("leave --preserve out")),
    }
}

/// Permission bits of a file that is made, less the umask: the source's, as with `cp`.
fn mode_of_new(ends: &Ends) -> u32 {
    let meta = ends.source_name.path().and_then(|path| path.metadata().ok());
    meta.map_or(0o666, |meta| meta.mode() & 0o777)
}

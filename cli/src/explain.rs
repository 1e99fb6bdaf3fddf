//! `blkcopy explain` and `blkcopy compare`: what two ends are to each other, whoever copied them.

use crate::args::{CompareArgs, ExplainArgs, LookArgs};
use crate::fail::{Code, Fail};
use crate::output::{self, note, table};
use crate::progress::{Meter, Show};
use crate::signals::Interrupts;
use blkcopy::block::Kind;
use blkcopy::volume::explain::report::{Explained, ExplainedEnd, LookBy, Sameness, Verdict};
use blkcopy::volume::{Explain, size};

/// Most runs of `explain` without `--all`.
const RUNS_MAX: usize = 40;
/// Most differences of `compare --all`.
const DIFFERENCES_MAX: usize = 100;

/// Runs `explain`.
pub(crate) fn explain(args: &ExplainArgs) -> Result<Code, Fail> {
    let by = if args.digest { LookBy::Digest } else { LookBy::Extents };
    let runs_max = if args.all { usize::MAX } else { RUNS_MAX };
    run(&args.look, Explain { by, runs_max, ..Explain::default() })
}

/// Runs `compare`.
pub(crate) fn compare(args: &CompareArgs) -> Result<Code, Fail> {
    let (by, all, only_different) = (LookBy::Bytes, args.all, true);
    run(&args.look, Explain { by, all, only_different, runs_max: DIFFERENCES_MAX, ..Explain::default() })
}

fn run(args: &LookArgs, ask: Explain) -> Result<Code, Fail> {
    let interrupts = Interrupts::listen()?;
    interrupts.doing(format!("comparing {} and {}", args.a.to_string_lossy(), args.b.to_string_lossy()));
    let ask = Explain {
        a: args.a.clone(),
        b: args.b.clone(),
        engine: args.io_engine.into(),
        cancel: interrupts.cancel.clone(),
        watch: interrupts.board().clone(),
        ..ask
    };
    let mut meter = Meter::start(Show::choose(args.quiet), interrupts.board());
    let answer = ask.run();
    meter.finish();
    let answer = answer.map_err(|error| {
        let is_cancelled = error.kind() == Kind::Cancelled;
        let fail = Fail::from(error);
        if is_cancelled { fail.cancelled() } else { fail }
    })?;
    if args.json {
        output::out(&output::json(&answer));
    } else if !args.quiet {
        output::out(&text(&answer, ask.all || ask.by != LookBy::Bytes));
    }
    for end in answer.changed() {
        note(&format!(
            "warning: {} changed while it was looked at, so the answer may be of no single moment; repeat it while \
             nothing writes there",
            end.name
        ));
    }
    Ok(if answer.is_same() { Code::Done } else { Code::No })
}

/// `lists`: with the runs, unless all is one.
fn text(answer: &Explained, lists: bool) -> String {
    let mut text = first_line(answer) + "\n";
    let is_one = answer.runs.first().is_none_or(|run| run.len == answer.common_bytes);
    if lists && !is_one {
        let head = [&*answer.a.name, &*answer.b.name, "length", "what"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(answer.runs.iter().map(|run| {
            vec![
                format!("@{} B", answer.a.offset + run.offset),
                format!("@{} B", answer.b.offset + run.offset),
                size(run.len),
                run.is.name().to_owned(),
            ]
        }));
        text += &table(&rows);
        let more = answer.runs_total - answer.runs.len() as u64;
        if more > 0 {
            let lists = if answer.by == LookBy::Bytes { "" } else { " (--all lists them)" };
            text += &format!("... and {more} more runs{lists}\n");
        }
    }
    for end in [&answer.a, &answer.b] {
        if let Some(digest) = &end.digest {
            text += &format!("BLAKE3 {digest}  {}\n", end.name);
        }
    }
    text
}

/// `compare` without `--all` ends at the first difference.
fn ended_early(answer: &Explained) -> bool {
    answer.seen_bytes < answer.common_bytes
}

/// The result, in one line.
fn first_line(answer: &Explained) -> String {
    let unknown = answer.bytes_of(Sameness::Unknown);
    let head = match answer.verdict {
        Verdict::Shared => "shared",
        Verdict::Equal => "equal",
        Verdict::PartlyShared => "partly shared",
        Verdict::NothingShared if unknown > 0 => "nothing known to be shared",
        Verdict::NothingShared => "nothing shared",
        Verdict::Different => "different",
    };
    let mut parts = Vec::new();
    if let Some(at) = answer.first_different {
        parts.push(format!("the first different byte is {}", place(answer, at)));
    }
    parts.extend(longer(answer));
    let counts: Vec<String> = [
        (Sameness::Shared, "shared"),
        (Sameness::Zero, "zero on both"),
        (Sameness::Equal, "equal"),
        (Sameness::Apart, "apart"),
        (Sameness::Unknown, "unknown"),
    ]
    .into_iter()
    .filter_map(|(is, words)| {
        let bytes = answer.bytes_of(is);
        (bytes > 0).then(|| format!("{} {words}", size(bytes)))
    })
    .chain((answer.differing_bytes > 0 && !ended_early(answer)).then(|| {
        let bytes = answer.differing_bytes;
        format!("{bytes} {} different", if bytes == 1 { "byte" } else { "bytes" })
    }))
    .collect();
    if !counts.is_empty() && !ended_early(answer) {
        parts.push(counts.join(", "));
    }
    if answer.common_bytes == 0 && parts.is_empty() {
        parts.push("both are empty".to_owned());
    }
    let open = match answer.verdict {
        Verdict::PartlyShared => "whether the rest is equal is not known without --digest",
        Verdict::NothingShared => "equal or not is not known without --digest",
        _ => "",
    };
    parts.extend((!open.is_empty()).then(|| open.to_owned()));
    format!("{head}: {}", parts.join("; "))
}

/// Where byte `at` of what is compared lies: one number when both ends begin at their first byte.
fn place(answer: &Explained, at: u64) -> String {
    if answer.a.offset == 0 && answer.b.offset == 0 {
        return at.to_string();
    }
    let on = |end: &ExplainedEnd| format!("{} of {}", end.offset + at, end.device);
    format!("{}, {}", on(&answer.a), on(&answer.b))
}

/// Which end is longer, and by how much.
fn longer(answer: &Explained) -> Option<String> {
    let (a, b) = (&answer.a, &answer.b);
    let (longer, more) = match a.len.cmp(&b.len) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Greater => (a, a.len - b.len),
        std::cmp::Ordering::Less => (b, b.len - a.len),
    };
    Some(format!("{} is {more} {} longer", longer.name, if more == 1 { "byte" } else { "bytes" }))
}

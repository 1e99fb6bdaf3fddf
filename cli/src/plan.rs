//! `blkcopy plan`: what `cp` would do, by the same planner. Changes nothing.

use crate::args::PlanArgs;
use crate::fail::{Code, Fail};
use crate::output::{self, Shown, table};
use crate::signals::Interrupts;
use blkcopy::block::receipt::{Reason, Why};
use blkcopy::block::{CopyPath, Evidence, Fate, Fates, Kind, Method};
use blkcopy::copy::{DeviceFacts, Offload, PlanSummary, Planner, Step};
use blkcopy::volume::{EndsOptions, Level, Purpose, Rehearsal, TrialResult, Trials, look, size};
use serde::Serialize;
use std::collections::BTreeMap;

/// Most lines of the table without `--all`.
const LINES_MAX: usize = 40;

/// Steps next to each other that do the same.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
struct Run {
    source_offset: u64,
    dest_offset: u64,
    len: u64,
    method: Method,
    reason: Reason,
    steps: u64,
    zeroes_left_out: bool,
}

/// What a method is expected to do.
#[derive(Serialize)]
struct Expected {
    method: Method,
    fate: Fate,
    bytes: u64,
    /// False: only the copy itself tells.
    certain: bool,
    how: String,
}

/// The plan, as `--json` prints it.
#[derive(Serialize)]
struct Plan {
    schema: &'static str,
    source: String,
    dest: String,
    bytes: u64,
    /// `None`: no plan could be made; the findings say why.
    #[serde(flatten)]
    summary: Option<PlanSummary>,
    methods: BTreeMap<Method, u64>,
    /// What is to become of the bytes.
    bytes_by_fate: BTreeMap<Fate, u64>,
    /// The same by method, and whether it is certain.
    expected: Vec<Expected>,
    extents: Vec<Run>,
    extents_total: u64,
    findings: Vec<Shown>,
}

/// Runs the command.
pub(crate) fn run(args: &PlanArgs) -> Result<Code, Fail> {
    let (source, dest) = (args.ends.source.to_string_lossy(), args.ends.dest.to_string_lossy());
    Interrupts::listen()?.doing(format!("planning a copy of {source} to {dest}"));
    let options = EndsOptions::from(&args.ends);
    let looked = look(&options, Purpose::Plan)?;
    let mut plan = Plan {
        schema: "blkcopy-plan/2",
        source: source.into_owned(),
        dest: dest.into_owned(),
        bytes: looked.segments.iter().fold(0, |sum, s| sum.saturating_add(s.len)),
        summary: None,
        methods: BTreeMap::new(),
        bytes_by_fate: BTreeMap::new(),
        expected: Vec::new(),
        extents: Vec::new(),
        extents_total: 0,
        findings: looked.findings.iter().map(Shown::from).collect(),
    };
    if plan.findings.iter().all(|f| f.level != Level::Fail) {
        match looked.rehearse()? {
            Ok(rehearsal) => {
                let trials = looked.trials(false)?;
                plan.make(&options, args.all, rehearsal, &trials)?;
                plan.check_room(looked.room());
            }
            Err(finding) => plan.findings.push(Shown::from(&finding)),
        }
    }
    if args.json {
        output::out(&output::json(&plan));
    } else {
        output::out(&plan.text());
    }
    let no = plan.findings.iter().any(|f| f.level == Level::Fail);
    Ok(if no { Code::No } else { Code::Done })
}

impl Plan {
    fn make(
        &mut self,
        options: &EndsOptions,
        all: bool,
        ready: Rehearsal,
        trials: &Trials,
    ) -> Result<(), Fail> {
        let most = if all { usize::MAX } else { LINES_MAX };
        let paths = ready.source.copy_paths();
        let facts = DeviceFacts::new(ready.source, ready.dest);
        let policy = trials.limit(options.policy(ready.dest_zero_from));
        let mut planner = Planner::new(&ready.job, facts, policy);
        let mut last: Option<Run> = None;
        let mut unmet = None;
        for step in planner.by_ref() {
            let step = match step {
                Ok(step) => step,
                Err(error) if error.kind() == Kind::Unsupported => {
                    unmet = Some(error.to_string());
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            *self.methods.entry(step.method()).or_default() += step.len;
            let run = Run::of(&step);
            match &mut last {
                Some(held) if held.goes_on(&run) => {
                    held.len += run.len;
                    held.steps += 1;
                }
                held => {
                    let before = held.replace(run);
                    self.keep(before, most);
                }
            }
        }
        self.keep(last, most);
        let summary = planner.summary();
        let met = unmet.is_none();
        self.judge(&summary.reasons, unmet, options.offload);
        if met {
            self.expect(&paths, trials);
        }
        // A plan that cannot be carried out has no totals.
        self.summary = Some(summary).filter(|_| met);
        Ok(())
    }

    /// What is to become of the bytes, and whether that is certain.
    fn expect(&mut self, paths: &[CopyPath], trials: &Trials) {
        for (&method, &bytes) in &self.methods {
            let by_itself = Fates::of_method(method, bytes);
            let listed = || paths.iter().find(|path| path.method == method).map_or(Fate::Unknown, |p| p.fate);
            let (fate, certain, how) = match (by_itself.iter().next(), trials.of(method)) {
                (Some(one), _) if one.fate != Fate::Unknown => {
                    (one.fate, true, "nothing else can happen".to_owned())
                }
                (_, Some(TrialResult::Fate(fate, how))) => {
                    let text = format!("tried on a scratch file in the destination's folder: {}", how.text());
                    (*fate, *fate != Fate::Unknown, text)
                }
                (_, Some(TrialResult::NotTried(why))) => (listed(), false, format!("not tried: {why}")),
                // This kernel's own way, or what a controller says of itself.
                (_, _) if listed() == Fate::ThroughKernel => {
                    (Fate::ThroughKernel, true, Evidence::FileSystemKind.text().to_owned())
                }
                _ => (listed(), false, "only the copy itself tells".to_owned()),
            };
            *self.bytes_by_fate.entry(fate).or_default() += bytes;
            if fate != Fate::NoData && fate != Fate::ReadWrite {
                let word = if certain {
                    "certain"
                } else if fate == Fate::Unknown {
                    "unknown"
                } else {
                    "expected"
                };
                let text = format!("{word}: {} {} by {method} ({how})", size(bytes), fate.text());
                self.findings.push(Shown::new(
                    if certain || fate != Fate::Unknown { Level::Pass } else { Level::Warn },
                    text,
                    (!certain).then_some("give --require to copy only if it turns out so"),
                ));
            }
            self.expected.push(Expected { method, fate, bytes, certain, how });
        }
    }

    /// Says no where the bytes that take room have none.
    fn check_room(&mut self, room: Option<u64>) {
        let Some(room) = room else { return };
        let takes = |fate: &Fate| !matches!(fate, Fate::Shared | Fate::NoData);
        let need: u64 =
            self.bytes_by_fate.iter().filter(|(fate, _)| takes(fate)).map(|(_, bytes)| bytes).sum();
        if need > room {
            self.findings.push(Shown::new(
                Level::Fail,
                format!(
                    "the destination's file system has {} free, and the copy takes {}",
                    size(room),
                    size(need)
                ),
                Some("free space there, or name another destination"),
            ));
        }
    }

    fn keep(&mut self, run: Option<Run>, most: usize) {
        let Some(run) = run else { return };
        self.extents_total += 1;
        if self.extents.len() < most {
            self.extents.push(run);
        }
    }

    fn judge(&mut self, reasons: &[Why], unmet: Option<String>, offload: Offload) {
        if let Some(text) = unmet {
            self.findings.push(Shown::new(
                Level::Fail,
                text,
                Some("leave out --require; the plan without it shows what can be offloaded"),
            ));
            return;
        }
        let host: u64 = reasons.iter().filter(|w| w.method.is_emulated()).map(|w| w.bytes).sum();
        if host == 0 {
            let how: Vec<&str> = self.methods.keys().map(|m| m.name()).collect();
            let text = if how.is_empty() {
                "nothing to copy".to_owned()
            } else {
                format!("nothing by read+write ({})", how.join(", "))
            };
            self.findings.push(Shown::pass(text));
        }
        for why in reasons.iter().filter(|w| w.method.is_emulated()) {
            let left_out = if why.zeroes_left_out { ", zeroes left out" } else { "" };
            let (bytes, all, reason) = (size(why.bytes), size(self.bytes), why.reason.text());
            let text = format!("{bytes} of {all} by read+write{left_out}: {reason}");
            let level = match (why.reason, offload) {
                (Reason::MeasuredSlower, _) | (_, Offload::Never) => Level::Pass,
                _ => Level::Warn,
            };
            self.findings.push(Shown::new(level, text, Some(fix(why.reason))));
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if !self.extents.is_empty() {
            let head = ["source", "destination", "length", "steps", "method", "why"];
            let mut rows = vec![head.iter().map(|&s| s.to_owned()).collect::<Vec<_>>()];
            rows.extend(self.extents.iter().map(|r| {
                vec![
                    format!("@{} B", r.source_offset),
                    format!("@{} B", r.dest_offset),
                    size(r.len),
                    r.steps.to_string(),
                    match (r.method.is_emulated(), r.zeroes_left_out) {
                        (true, true) => "read+write, zeroes left out",
                        (true, false) => "read+write",
                        (false, _) => r.method.name(),
                    }
                    .to_owned(),
                    r.reason.text().to_owned(),
                ]
            }));
            text += &table(&rows);
            let more = self.extents_total - self.extents.len() as u64;
            if more > 0 {
                text += &format!("... and {more} more extents (--all lists them)\n");
            }
        }
        if let Some(summary) = &self.summary {
            let mut parts: Vec<String> = self
                .expected
                .iter()
                .map(|one| format!("{} {}", size(one.bytes), output::planned(one.fate, one.method)))
                .collect();
            if parts.is_empty() {
                parts.push("nothing to copy".to_owned());
            }
            text += &format!("would copy {}: {}\n", size(self.bytes), parts.join(", "));
            let steps = if summary.steps == 1 { "step" } else { "steps" };
            text += &format!("plan digest {} ({} {steps})\n", summary.digest, summary.steps);
        }
        text + &output::findings(&self.findings)
    }
}

/// What to do about bytes that pass this process.
fn fix(reason: Reason) -> &'static str {
    match reason {
        Reason::OffloadNever => "leave out --offload never",
        Reason::OffloadOff => "turn copy_offload on at both devices",
        Reason::NothingShared => {
            "put both ends on one file system that shares extents (XFS, Btrfs) or on one NVMe controller, or accept \
             read+write"
        }
        Reason::Unaligned => "give ranges with the alignment that blkcopy info prints for the method",
        Reason::MeasuredSlower => "none needed; --require uses it where it offloads",
        Reason::FullyAllocated | Reason::ZeroSearch => {
            "--sparse auto lets the file system share or copy the extents"
        }
        Reason::Overlap => "none, unless source and destination can be further apart",
        _ => "none known",
    }
}

impl Run {
    fn of(step: &Step) -> Self {
        Self {
            source_offset: step.sources[0].offset,
            dest_offset: step.dest,
            len: step.len,
            method: step.method(),
            reason: step.legs[0].reason,
            steps: 1,
            zeroes_left_out: step.searched && step.method().is_emulated(),
        }
    }

    /// True when `next` continues it on both sides in the same way.
    fn goes_on(&self, next: &Self) -> bool {
        self.method == next.method
            && self.reason == next.reason
            && self.zeroes_left_out == next.zeroes_left_out
            && self.dest_offset + self.len == next.dest_offset
            && self.source_offset + self.len == next.source_offset
    }
}

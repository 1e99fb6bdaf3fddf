//! One step of a plan from its locks to its end: pinned, locked, moved leg by leg, committed. All decisions about a
//! step are made here; the movers (`offload`, `zero`, `emulate`) move bytes by one method and answer how far they came.

use super::emulate;
use super::facts::{DeviceFacts, is_leaf};
use super::moved::{Moved, Then};
use super::offload::offload;
use super::pins::{Pins, Results};
use super::plan::{Order, Planner, Policy, Step};
use super::shared::Shared;
use super::zero;
use super::{Job, Segment};
use crate::block::receipt::Reason;
use crate::block::{ByteRange, Error, Fates, Kind, Method, Result};
use smallvec::SmallVec;
use std::cell::Cell;
use std::rc::Rc;

/// How often a step is planned anew because its mapping changed under it before the copy gives up.
const REMAPS_MAX: u32 = 8;

/// A plan that is being followed; taken out while its next step is looked for.
type Plan = Box<Option<Planner<DeviceFacts>>>;

/// A step that is still to be run, or the plan of one whose mapping changed.
enum Todo {
    Step(Rc<Step>),
    Plan(Plan),
}

/// Runs one step to its end. `position`: where its bytes stand in the job; `locked`: the whole job is locked already.
pub(super) async fn run_step(shared: &Rc<Shared>, step: Rc<Step>, position: u64, locked: bool) -> Result<()> {
    let begin = step.dest;
    let mut todo = vec![(Todo::Step(step), 0)];
    while let Some((next, remaps)) = todo.pop() {
        match next {
            Todo::Step(step) => {
                if run_pinned(shared, &step, position + (step.dest - begin), locked).await? {
                    continue;
                }
                // Planned again on what is true now.
                if remaps == REMAPS_MAX {
                    let text = "the mapping kept changing while this range was copied; stop what changes it";
                    return Err(Error::new(Kind::Io, text).on(shared.dest.name()).at(step.dest_range()));
                }
                let plan = plan_rest(shared, &step, 0, shared.options.policy);
                todo.push((Todo::Plan(plan), remaps + 1));
            }
            Todo::Plan(mut planner) => {
                let Some(step) = next_of(shared, &mut planner).await? else { continue };
                todo.extend([(Todo::Plan(planner), remaps), (Todo::Step(step), remaps)]);
            }
        }
    }
    Ok(())
}

/// Locks, moves and commits a step. False: nothing was done, because the map changed since the plan was made.
async fn run_pinned(shared: &Rc<Shared>, step: &Rc<Step>, position: u64, locked: bool) -> Result<bool> {
    // What it wrote through a map is told the map when it ends: until then nobody else is to have the range.
    let _mapped = (!is_leaf(&shared.dest)).then(|| shared.options.pulse.holds());
    let pins = Pins::take(&shared.source, &shared.dest, step, |leaf| shared.leaf(leaf))?;
    let ticket = match if locked { Ok(None) } else { shared.lock(step).await } {
        Ok(ticket) => ticket,
        Err(e) => {
            pins.into_iter().for_each(Pins::release);
            return Err(e);
        }
    };
    let pins = match pins {
        Some(pins) if pins.still_valid() => pins,
        changed => {
            changed.into_iter().for_each(Pins::release);
            return Ok(false);
        }
    };
    shared.shows(step.method());
    let results = move_step(shared, step).await;
    let committed = pins.commit(step, results, shared.dest.name());
    if let Some((method, bytes)) = committed.more {
        shared.tally.borrow_mut().by(method, bytes, &Fates::of_method(method, bytes));
    }
    drop(ticket);
    shared.step_done(position, committed.good, step);
    committed.result.map(|()| true)
}

/// Moves the bytes of a locked step to each of its legs; one result a leg.
async fn move_step(shared: &Rc<Shared>, step: &Rc<Step>) -> Results {
    let mut results: Results = step.legs.iter().map(|_| (0, Ok(()))).collect();
    let mut emulated: SmallVec<[usize; 2]> = SmallVec::new();
    for (leg, to) in step.legs.iter().enumerate() {
        if to.method.is_emulated() {
            emulated.push(leg);
        } else {
            results[leg] = move_leg(shared, step, leg).await;
        }
    }
    if !emulated.is_empty() {
        // One read serves all of them, so that they cannot differ.
        for (&leg, moved) in emulated.iter().zip(emulate::legs(shared, step, &emulated).await) {
            results[leg] = match moved.then {
                Then::Failed(e) => (moved.good, Err(e)),
                _ => (moved.good, Ok(())),
            };
        }
    }
    results
}

/// Why the rest of a step goes by another method.
struct Down {
    planned: Method,
    reason: Reason,
    error: Error,
    /// The method that was noted last: each change is noted once.
    noted: Cell<Option<Method>>,
}

/// A part of a leg's bytes that is still to be moved, or the plan of a rest.
enum Rest {
    Part(Rc<Step>),
    Plan(Plan),
}

/// A rest, under which policy it goes, and why not as planned.
struct Work {
    rest: Rest,
    policy: Policy,
    down: Option<Rc<Down>>,
}

/// Moves the bytes of a step to one leg: by the method planned for it, and from where that is refused by the next. The
/// step's locks cover all of it.
async fn move_leg(shared: &Rc<Shared>, step: &Rc<Step>, leg: usize) -> (u64, Result<()>) {
    let mut work = vec![Work { rest: Rest::Part(step.clone()), policy: shared.options.policy, down: None }];
    let (mut good, mut touched) = (0, 0);
    // Back to front, what is moved after a step down is not a prefix.
    let mut floor = None;
    let result = loop {
        let Some(Work { rest, policy, down }) = work.pop() else { break Ok(()) };
        let part = match rest {
            Rest::Part(part) => part,
            Rest::Plan(mut planner) => match next_of(shared, &mut planner).await {
                Ok(None) => continue,
                Ok(Some(part)) => {
                    work.push(Work { rest: Rest::Plan(planner), policy, down: down.clone() });
                    part
                }
                Err(e) => break Err(e),
            },
        };
        if let Some(down) = &down {
            let now = part.legs[leg].method;
            if down.noted.replace(Some(now)) != Some(now) {
                shared.deviation(&part, down.planned, now, down.reason, &down.error);
            }
        }
        let moved = by_method(shared, &part, leg, down.is_some()).await;
        good += moved.good;
        touched = touched.max(part.dest - step.dest + moved.touched);
        let method = part.legs[leg].method;
        // What a request that failed may have written to is not known to be zero any more.
        let kept = if moved.touched > moved.good { u64::MAX } else { policy.dest_zero_from };
        let policy = Policy { dest_zero_from: kept, ..policy };
        let without = Policy { excluded: policy.excluded.with(method), ..policy };
        let (reason, error, policy) = match moved.then {
            Then::Done => continue,
            Then::Failed(error) => break Err(error),
            Then::Cut { error, .. } => (Reason::TooLarge, error, without),
            Then::Refused(error) => (Reason::Refused, error, without),
            Then::HoleFilled(error) => (Reason::HoleFilled, error, policy),
        };
        if part.order == Order::Backward {
            floor.get_or_insert(good);
        }
        let plan = plan_rest(shared, &part, moved.good, policy);
        let down = Some(Rc::new(Down { planned: method, reason, error, noted: Cell::new(None) }));
        work.push(Work { rest: Rest::Plan(plan), policy, down });
    };
    let good = if result.is_err() { floor.unwrap_or(good) } else { good };
    if good < touched {
        let rest = ByteRange::between(step.dest + good, step.dest + touched);
        shared.tally.borrow_mut().undefined.push(rest.into());
    }
    (good, result)
}

/// Moves a part by its own method, in shorter requests where the device asks for that.
async fn by_method(shared: &Rc<Shared>, part: &Rc<Step>, leg: usize, is_looked_at: bool) -> Moved {
    let method = part.legs[leg].method;
    if matches!(method, Method::Skip | Method::WriteZeroes) && !is_looked_at {
        // Under the locks, for the plan looked before they were taken.
        match shared.is_still_zero(part).await {
            Ok(true) => {}
            Ok(false) => {
                let now = Error::new(Kind::SourceChanged, "the source is no longer a hole there");
                return Moved { good: 0, touched: 0, then: Then::HoleFilled(now) };
            }
            Err(e) => return Moved::failed(0, e),
        }
    }
    match method {
        Method::Emulated => emulate::legs(shared, part, &[leg]).await.swap_remove(0),
        Method::Skip => {
            shared.moved(leg, Method::Skip, part.len);
            Moved::all(part.len)
        }
        Method::WriteZeroes => {
            let moved = zero::by_device(shared, part, leg).await;
            let Then::Refused(error) = &moved.then else { return moved };
            shared.deviation(part, method, Method::Emulated, Reason::Refused, error);
            zero::by_writing(shared, part, leg, moved.good..part.len).await
        }
        _ => {
            let (mut from, mut touched, mut most) = (0, 0, u64::MAX);
            loop {
                let moved = offload(shared, part, leg, from, most).await;
                touched = touched.max(moved.touched);
                if let Then::Cut { most: shorter, error } = &moved.then {
                    shared.deviation(part, method, method, Reason::TooLarge, error);
                    (from, most) = (moved.good, *shorter);
                    if most > 0 {
                        continue;
                    }
                }
                return Moved { touched, ..moved };
            }
        }
    }
}

/// The plan of a step's bytes from `from` on.
fn plan_rest(shared: &Shared, step: &Step, from: u64, policy: Policy) -> Plan {
    let facts = DeviceFacts::new(shared.source.clone(), shared.dest.clone());
    Box::new(Some(Planner::new(&job_of(step, from), facts, policy)))
}

/// The next step of a plan, ready to run. `None`: it is at its end.
///
/// Errors: the planner's; `Cancelled` when the copy was stopped while it was looked what comes next.
async fn next_of(shared: &Shared, planner: &mut Option<Planner<DeviceFacts>>) -> Result<Option<Rc<Step>>> {
    let step = shared.next_step(planner).await;
    let Some(facts) = planner.as_ref().map(Planner::facts) else { return Err(shared.stop_reason()) };
    step.map(|step| step.and_then(|step| shared.adopt(facts, step)).map(Rc::new)).transpose()
}

/// The job of the bytes of a step from `from` on.
fn job_of(step: &Step, from: u64) -> Job {
    let mut at = 0;
    let mut segments = Vec::new();
    for part in &step.sources {
        let skip = from.saturating_sub(at).min(part.len);
        if skip < part.len {
            segments.push(Segment {
                source: part.offset + skip,
                dest: step.dest + at + skip,
                len: part.len - skip,
            });
        }
        at += part.len;
    }
    Job::of_step(segments, step.order != Order::Any)
}

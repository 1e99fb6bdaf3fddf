//! What two files, devices or ranges are to each other, whoever copied them: stored once for both, equal, different,
//! and where first.
//!
//! One engine answers `blkcopy explain`, which looks where bytes are stored and reads only when asked to, and `blkcopy
//! compare`, which reads. [`report`] is the answer, `basis` what tells that bytes are stored once, `walk` goes along
//! both ends in step, and `read` reads and compares.

mod basis;
mod read;
pub mod report;
mod walk;

use self::basis::End;
use self::read::{Look, reader};
use self::report::{Explained, ExplainedEnd, LookBy, SCHEMA, Tally};
use self::walk::Walk;
use super::name::Name;
use super::open::open_source;
use super::watch::{CancelHandle, CopyWatch, HowFar};
use crate::block::{Device, Result};
use crate::copy::run::Phase;
use crate::drivers::File;
use crate::reactor::EngineChoice;
use crate::reactor::away::look;
use crate::workers::Workbench;
use std::cell::RefCell;
use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// What is asked of two ends.
#[derive(Clone, Debug, Default)]
pub struct Explain {
    /// The first, named as [`Name::parse`] takes it.
    pub a: OsString,
    /// The second.
    pub b: OsString,
    /// How they are looked at.
    pub by: LookBy,
    /// By [`LookBy::Bytes`]: goes on after the first difference. Otherwise all is looked at anyway.
    pub all: bool,
    /// Keeps runs that differ only.
    pub only_different: bool,
    /// Most runs kept for the answer.
    pub runs_max: usize,
    /// The engine for reads.
    pub engine: EngineChoice,
    /// Ends it early, from any thread.
    pub cancel: CancelHandle,
    /// Shows other threads how far it is.
    pub watch: Arc<CopyWatch>,
}

impl Explain {
    /// Finds it out, on this thread. Nothing is changed; what is cached of files and not stored yet may be written out.
    ///
    /// Errors: names that cannot be opened, ranges past an end, failed reads; `Cancelled`.
    ///
    /// # Panics
    /// When the thread has an executor of this library already.
    pub fn run(&self) -> Result<Explained> {
        let (name_a, name_b) = (Name::parse(&self.a)?, Name::parse(&self.b)?);
        let (a, b) = (end_of(&name_a)?, end_of(&name_b)?);
        let bench = Workbench::new(self.engine, true)?;
        self.cancel.wakes(bench.local.waker());
        let explained = bench.local.block_on(self.look(a, b));
        self.watch.put(None);
        let mut explained = explained?;
        for (end, name) in [(&mut explained.a, &name_a), (&mut explained.b, &name_b)] {
            (end.name, end.device) = (name.text().into_owned(), name.device_text());
        }
        Ok(explained)
    }

    async fn look(&self, a: End, b: End) -> Result<Explained> {
        // Before anything else is asked, so that whatever changes later is seen.
        let before = [state_of(&a.device).await?, state_of(&b.device).await?];
        let (end_a, end_b) = (a.clone(), b.clone());
        let walk = look(&a.device, move |_| Walk::new(end_a, end_b)).await??;
        let (common_bytes, known_by) = (walk.len(), walk.known_by());
        let begun = Instant::now();
        let seen = |bytes| self.show(begun, common_bytes, bytes);
        seen(0);
        let clients = Rc::new(RefCell::default());
        let looks = Look {
            a: reader(&a.device, &clients),
            b: reader(&b.device, &clients),
            ends: [a.clone(), b.clone()],
            by: self.by,
            all: self.all || self.by != LookBy::Bytes,
            cancel: &self.cancel,
            seen: &seen,
        };
        let mut tally = Tally::new(self.runs_max, self.only_different);
        let digests = looks.run(walk, &mut tally).await?;
        let after = [state_of(&a.device).await?, state_of(&b.device).await?];
        let [digest_a, digest_b] = digests.map_or([None, None], |pair| pair.map(Some));
        let told =
            |end: &End, digest, reader: &Rc<crate::copy::back::ReadBack>, number: usize| ExplainedEnd {
                name: String::new(),
                device: String::new(),
                size_bytes: end.device.size(),
                offset: end.range.offset(),
                len: end.range.len(),
                digest,
                read: reader.told(),
                changed: before[number].zip(after[number]).map(|(then, now)| then != now || !now.is_whole),
            };
        let is_longer = a.range.len() != b.range.len();
        Ok(Explained {
            schema: SCHEMA,
            by: self.by,
            verdict: tally.verdict(is_longer),
            a: told(&a, digest_a, &looks.a, 0),
            b: told(&b, digest_b, &looks.b, 1),
            common_bytes,
            seen_bytes: tally.bytes.values().sum(),
            bytes: tally.bytes,
            first_different: tally.first_different,
            differing_bytes: tally.differing_bytes,
            known_by,
            runs: tally.runs,
            runs_total: tally.runs_total,
        })
    }

    fn show(&self, begun: Instant, total_bytes: u64, seen: u64) {
        self.watch.put(Some(HowFar {
            begun,
            total_bytes,
            good_bytes: seen,
            good_prefix_bytes: seen,
            moving_bytes: 0,
            data_bytes: seen,
            data_total_bytes: Some(total_bytes),
            verified_bytes: seen,
            phase: Phase::Compare,
            method: None,
        }));
    }
}

/// Opens what is named, to read it.
fn end_of(name: &Name) -> Result<End> {
    let device = open_source(name)?;
    let range = name.range_in(device.size())?;
    Ok(End { device, range })
}

/// What a file is like at a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    generation: u64,
    /// It is as long as when it was opened.
    is_whole: bool,
}

/// What differs when a file has changed since; `None`: not of this kind of device.
async fn state_of(device: &Arc<dyn Device>) -> Result<Option<State>> {
    let state = |file: &File| State {
        generation: file.generation(),
        is_whole: file.len_now().is_ok_and(|len| len == file.size()),
    };
    look(device, move |device| device.as_any().downcast_ref::<File>().map(state)).await
}

//! Two ends in step, from the front: what each run is before anything is read.

use super::basis::{Basis, End};
use super::report::{KnownBy, SameRun, Sameness};
use crate::block::{Content, Result};
use crate::copy::facts::content;

/// Most runs of one look.
const RUNS_A_LOOK: usize = 256;

/// Where the walk is.
pub(super) struct Walk {
    a: End,
    b: End,
    basis: Basis,
    /// Bytes of both that are walked.
    len: u64,
    at: u64,
}

impl Walk {
    /// The common front of two ends. May wait for storage, as does [`Walk::next_runs`].
    pub(super) fn new(mut a: End, mut b: End) -> Result<Self> {
        let len = a.range.len().min(b.range.len());
        (a.range, b.range) = (a.range.prefix(len), b.range.prefix(len));
        let basis = Basis::of(&a, &b)?;
        Ok(Self { a, b, basis, len, at: 0 })
    }

    /// Bytes that are walked.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn known_by(&self) -> KnownBy {
        self.basis.known_by()
    }

    /// The next runs, a bounded number of them; none at the end.
    pub(super) fn next_runs(&mut self) -> Result<Vec<SameRun>> {
        let mut runs: Vec<SameRun> = Vec::new();
        while self.at < self.len && runs.len() < RUNS_A_LOOK {
            let run = self.next_run()?;
            self.at += run.len;
            match runs.last_mut() {
                Some(last) if last.is == run.is => last.len += run.len,
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }

    fn next_run(&mut self) -> Result<SameRun> {
        let (offset, rest) = (self.at, self.len - self.at);
        let x = content(&self.a.device, self.a.part(offset, rest))?;
        let y = content(&self.b.device, self.b.part(offset, rest))?;
        // Never nothing, so that the walk ends.
        let len = x.len.min(y.len).clamp(1, rest);
        if x.content != Content::Data && y.content != Content::Data {
            return Ok(SameRun { offset, len, is: Sameness::Zero });
        }
        let (is, front) = self.basis.front(offset, len)?;
        Ok(SameRun { offset, len: front.clamp(1, len), is })
    }
}

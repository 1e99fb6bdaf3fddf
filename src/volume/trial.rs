//! What the two files of a copy can do together, found by trying it on a scratch file in the destination's folder.
//!
//! Nothing of the destination is touched: the scratch file has no name where the file system can make one without, and
//! is gone when the trial is over.

use super::file_dest::{FileDest, Scratch, folder_of, nameless};
use crate::block::{ByteRange, CopyPath, Device, Evidence, Fate, Kind, Method};
use crate::copy::{Job, Policy};
use crate::drivers::File;
use std::sync::Arc;

/// What trying showed of one method.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The method.
    pub method: Method,
    /// What became of the bytes, or why nothing is known.
    pub result: TrialResult,
}

/// How a trial ended.
#[derive(Clone, Debug)]
pub enum TrialResult {
    /// It worked.
    Fate(Fate, Evidence),
    /// The method is not to be had between these two files.
    Refused(String),
    /// It was not tried, or trying failed for another reason.
    NotTried(String),
}

/// What was tried for a copy.
#[derive(Clone, Debug, Default)]
pub struct Trials(Vec<Trial>);

impl Trials {
    /// Each trial.
    pub fn iter(&self) -> impl Iterator<Item = &Trial> {
        self.0.iter()
    }

    /// What is known of a method.
    pub fn of(&self, method: Method) -> Option<&TrialResult> {
        self.0.iter().find(|trial| trial.method == method).map(|trial| &trial.result)
    }

    /// The policy without the methods that were refused, or that would not make of the bytes what must become of them.
    #[must_use]
    pub fn limit(&self, mut policy: Policy) -> Policy {
        let must = policy.offload.must();
        let ruled_out = |result: &TrialResult| match result {
            TrialResult::Refused(_) => true,
            TrialResult::Fate(fate, _) => must.is_some_and(|must| !must.is_met_by(*fate)),
            // Only trying would have told, and what cannot be known is not promised.
            TrialResult::NotTried(_) => must.is_some(),
        };
        for trial in self.iter().filter(|trial| ruled_out(&trial.result)) {
            policy.excluded = policy.excluded.with(trial.method);
        }
        policy
    }
}

/// Tries the methods of two files of which trying alone tells. `may_name`: the scratch file may have a hidden name for
/// a moment, where it cannot be without.
pub(super) fn try_out(source: &Arc<dyn Device>, dest: &FileDest, job: &Job, may_name: bool) -> Trials {
    let Some(from) = source.as_any().downcast_ref::<File>() else { return Trials::default() };
    let mut pieces = job.segments().iter().map(|s| from.piece_to_try(s.source_range()).ok().flatten());
    pieces
        .find_map(|piece| piece)
        .map_or_else(Trials::default, |piece| try_piece(from, piece, || dest.scratch(may_name)))
}

/// What a file and another one in its folder can do, found by trying. Nothing for other devices.
pub fn try_beside(device: &Arc<dyn Device>) -> Trials {
    let Some(file) = device.as_any().downcast_ref::<File>() else { return Trials::default() };
    let Ok(Some(piece)) = file.piece_to_try(ByteRange::to(file.size())) else { return Trials::default() };
    let folder = folder_of(file.path()).to_owned();
    try_piece(file, piece, || {
        nameless(&folder, file.name())
            .map(|file| Scratch::Nameless(Box::new(file)))
            .map_err(|e| e.to_string())
    })
}

fn try_piece(from: &File, piece: ByteRange, scratch: impl FnOnce() -> Result<Scratch, String>) -> Trials {
    let of_interest = |path: &CopyPath| match path.fate {
        Fate::Shared => true,
        Fate::Unknown => !from.refuses_by_itself(),
        _ => false,
    };
    let paths: Vec<CopyPath> = from.copy_paths().into_iter().filter(of_interest).collect();
    if paths.is_empty() {
        return Trials::default();
    }
    let made = scratch();
    let mut trials: Vec<Trial> = Vec::new();
    for path in paths {
        if trials.iter().any(|trial| trial.method == path.method) {
            continue;
        }
        let result = match &made {
            Err(why) => TrialResult::NotTried(why.clone()),
            // The planner finds out by itself, and says why.
            Ok(file) if !shares(from, file.file(), path.method) => continue,
            Ok(file) => match file.file().try_copy(from, piece, path.method) {
                Ok(fates) => match fates.iter().max_by_key(|one| one.fate) {
                    Some(worst) => TrialResult::Fate(worst.fate, worst.how),
                    None => TrialResult::NotTried("nothing was copied".to_owned()),
                },
                Err(error) if error.kind() == Kind::Unsupported => TrialResult::Refused(error.to_string()),
                Err(error) => TrialResult::NotTried(error.to_string()),
            },
        };
        trials.push(Trial { method: path.method, result });
    }
    Trials(trials)
}

/// True when both files list the method with one scope.
fn shares(a: &File, b: &File, method: Method) -> bool {
    let theirs = b.copy_paths();
    a.copy_paths()
        .iter()
        .any(|mine| mine.method == method && theirs.iter().any(|path| mine.shared(path).is_some()))
}

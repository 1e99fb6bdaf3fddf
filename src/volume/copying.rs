//! The front door: one call does all that `blkcopy cp` does.
//!
//! [`CopyBuilder::look`] opens and checks and changes nothing; [`ReadyCopy::run`] takes hold of both ends, makes or
//! cuts a destination file, copies, checks, puts right what an early end left, and answers with the receipt.

use super::ends::{self, Ends, EndsOptions, Purpose, Ready};
use super::file_dest::Made;
use super::findings::{Finding, Level, Obstacle};
use super::preserve::Kept;
use super::trial::Trials;
use super::watch::{CancelHandle, CopyWatch};
use super::watched::{self, What, fail_after_all, fail_if_unstable};
use crate::block::device::CopyStatement;
#[cfg(doc)]
use crate::block::receipt::SourceState;
use crate::block::receipt::{Machine, Outcome, Receipt};
use crate::block::{Error, Evidence, FateBytes, Fates, Kind};
use crate::copy::run::{Consistency, Options, Verify};
use crate::copy::{DeviceFacts, Offload, Planner, Segment, Sparse};
use crate::drivers::File;
use crate::reactor::EngineChoice;
use crate::workers::Workbench;
use std::borrow::Cow;
use std::error::Error as StdError;
use std::ffi::OsStr;
use std::fmt;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::sync::Arc;

/// Buffered writes are made by the submitting thread: cheapest, and this thread serves nobody else.
const INLINE_WRITES: bool = true;

/// A copy that is being described; [`crate::copy()`] begins one.
///
/// What destroys data, or may, wants consent first: [`overwrite`](Self::overwrite), [`in_place`](Self::in_place),
/// [`force_in_use`](Self::force_in_use), [`assume_distinct`](Self::assume_distinct).
#[must_use = "a copy is made by `run`"]
pub struct CopyBuilder<'a> {
    ends: EndsOptions,
    consistency: Consistency,
    verify: Verify,
    limit_rate: Option<NonZeroU64>,
    payload_bytes: usize,
    preserve: bool,
    require_stable: bool,
    engine: EngineChoice,
    abandon: bool,
    cancel: CancelHandle,
    watch: Arc<CopyWatch>,
    tell: Box<dyn FnMut(&Finding) + 'a>,
}

/// Begins to describe a copy of `source` to `dest`: paths, `mem:SIZE`, `null:SIZE` or `nvme-tcp://` URLs, each with an
/// optional range ([`super::name`]).
pub fn copy<'a>(source: impl AsRef<OsStr>, dest: impl AsRef<OsStr>) -> CopyBuilder<'a> {
    let (source, dest) = (source.as_ref().to_owned(), dest.as_ref().to_owned());
    CopyBuilder::new(EndsOptions { source, dest, ..EndsOptions::default() })
}

impl<'a> CopyBuilder<'a> {
    /// A copy between these ends.
    pub fn new(ends: EndsOptions) -> Self {
        let defaults = Options::default();
        Self {
            ends,
            consistency: defaults.consistency,
            verify: defaults.verify,
            limit_rate: None,
            payload_bytes: defaults.payload_bytes,
            preserve: false,
            require_stable: false,
            engine: EngineChoice::Auto,
            abandon: false,
            cancel: CancelHandle::default(),
            watch: Arc::default(),
            tell: Box::new(|_| ()),
        }
    }

    /// Copies only these parts, in place; offsets count from the named ranges.
    pub fn segments(mut self, segments: impl Into<Vec<Segment>>) -> Self {
        self.ends.segments = segments.into();
        self
    }

    /// Whether devices and file systems make the copy themselves.
    pub fn offload(mut self, offload: Offload) -> Self {
        self.ends.offload = offload;
        self
    }

    /// What becomes of holes and zeroes.
    pub fn sparse(mut self, sparse: Sparse) -> Self {
        self.ends.sparse = sparse;
        self
    }

    /// Whether the destination is flushed at the end, so that the copy survives a power cut: true unless said
    /// otherwise.
    pub fn flush(mut self, flush: bool) -> Self {
        self.ends.no_sync = !flush;
        self
    }

    /// Consents to write into an existing file, keeping its other bytes and its length.
    pub fn in_place(mut self, consent: bool) -> Self {
        self.ends.in_place = consent;
        self
    }

    /// Consents to overwrite a block device or a namespace.
    pub fn overwrite(mut self, consent: bool) -> Self {
        self.ends.overwrite = consent;
        self
    }

    /// Consents to write to what is mounted, held or otherwise in use.
    pub fn force_in_use(mut self, consent: bool) -> Self {
        self.ends.force_in_use = consent;
        self
    }

    /// Consents to copy where nobody can tell whether both ends are stored in one place.
    pub fn assume_distinct(mut self, consent: bool) -> Self {
        self.ends.assume_distinct = consent;
        self
    }

    /// The caller's word that the destination reads as zero wherever it is written to, so that zeroes are not written
    /// there. Where it is wrong, old bytes stay in place of zeroes; [`verify`](Self::verify) finds that.
    pub fn dest_is_zero(mut self, word: bool) -> Self {
        self.ends.dest_is_zero = word;
        self
    }

    /// How the result is checked: both ends are read back after the flush.
    pub fn verify(mut self, verify: Verify) -> Self {
        self.verify = verify;
        self
    }

    /// What is locked together.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Highest rate in bytes per second, for all methods together.
    pub fn limit_rate(mut self, bytes_per_second: impl Into<Option<NonZeroU64>>) -> Self {
        self.limit_rate = bytes_per_second.into();
        self
    }

    /// Most memory for data in flight, in bytes.
    pub fn buffer_memory(mut self, bytes: usize) -> Self {
        self.payload_bytes = bytes;
        self
    }

    /// Keeps the source's owner, mode, access control list, extended attributes and times.
    pub fn preserve(mut self, preserve: bool) -> Self {
        self.preserve = preserve;
        self
    }

    /// The copy fails when the source is not known to have stayed the same ([`SourceState::is_stable`]): outcome
    /// `Unstable`, and a new file is not made.
    pub fn require_stable(mut self, required: bool) -> Self {
        self.require_stable = required;
        self
    }

    /// Wants the source alone: refused where another program may write to it, and claimed as far as the system lets us.
    pub fn exclusive_source(mut self, wanted: bool) -> Self {
        self.ends.exclusive_source = wanted;
        self
    }

    /// The engine for reads and writes.
    pub fn io_engine(mut self, engine: EngineChoice) -> Self {
        self.engine = engine;
        self
    }

    /// Lets this handle end the copy early, from any thread.
    pub fn cancel(mut self, handle: &CancelHandle) -> Self {
        self.cancel = handle.clone();
        self
    }

    /// Shows other threads how far the copy is.
    pub fn progress(mut self, watch: &Arc<CopyWatch>) -> Self {
        self.watch = watch.clone();
        self
    }

    /// Calls this with each warning, as it is found, on the copying thread.
    pub fn on_finding(mut self, tell: impl FnMut(&Finding) + 'a) -> Self {
        self.tell = Box::new(tell);
        self
    }

    /// Once cancelled, requests that devices do not answer are left in flight ([`Options::abandon`]): for a program
    /// that ends next.
    /// [`CopyError::abandoned`] says whether there are some; then dropping the [`ReadyCopy`] waits for them.
    pub fn abandon(mut self, abandon: bool) -> Self {
        self.abandon = abandon;
        self
    }

    /// Opens both ends and checks everything that can be checked without changing anything.
    pub fn look(self) -> Result<ReadyCopy<'a>, CopyError> {
        let ends = ends::look(&self.ends, Purpose::Copy).map_err(CopyError::before)?;
        Ok(ReadyCopy { builder: self, ends, bench: None, made: None, codes: Vec::new() })
    }

    /// Copies, on this thread. `Ok` when all was copied (and found equal, when asked).
    ///
    /// # Panics
    /// When the thread has an executor of this library already.
    pub fn run(self) -> Result<Receipt, CopyError> {
        self.look()?.run()
    }
}

/// A copy whose ends are open and checked. Nothing has been changed yet.
pub struct ReadyCopy<'a> {
    builder: CopyBuilder<'a>,
    ends: Ends,
    /// Kept for what is left in flight.
    bench: Option<Workbench>,
    /// A new file that has no name goes when this is dropped.
    made: Option<Made>,
    /// Codes of what was found before the copy.
    codes: Vec<Cow<'static, str>>,
}

impl ReadyCopy<'_> {
    /// The two ends, and what was found out about them.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Copies, once; see [`CopyBuilder::run`].
    ///
    /// # Panics
    /// When the thread has an executor of this library already.
    pub fn run(&mut self) -> Result<Receipt, CopyError> {
        let (ready, preserve, trials) = self.begin().map_err(CopyError::before)?;
        let Some(bench) = &self.bench else { return Err(CopyError::before(again().into())) };
        let builder = &mut self.builder;
        let options = Options {
            policy: trials.limit(builder.ends.policy(ready.dest_zero_from)),
            consistency: builder.consistency,
            verify: builder.verify,
            limit_rate: builder.limit_rate,
            flush: !builder.ends.no_sync,
            payload_bytes: builder.payload_bytes,
            cancel: builder.cancel.flag().clone(),
            abandon: builder.abandon,
            pulse: Rc::default(),
            io_engine: bench.engine.clone(),
            locks: Some(bench.locks.clone()),
            in_order: ready.in_order,
        };
        builder.cancel.wakes(bench.local.waker());
        let what = What {
            source: ready.source,
            dest: ready.dest,
            job: &ready.job,
            hold: ready.source_hold,
            watch: &builder.watch,
        };
        let mut codes = std::mem::take(&mut self.codes);
        let mut tell = |finding: &Finding| {
            codes.push(finding.code().into());
            (builder.tell)(finding);
        };
        let dest = what.dest.clone();
        let begun = jiff::Timestamp::now();
        let before = dest.copy_statement();
        let ended = watched::run(bench, what, &options, &mut tell);
        let (mut receipt, mut error) = (ended.receipt, ended.error);
        receipt.begun_at = begun.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
        receipt.machine = this_machine();
        if let Some(before) = before
            && !builder.cancel.flag().is_set()
        {
            state(&mut receipt, &before, || dest.copy_statement());
        }
        let shown = |name: &OsStr| name.to_string_lossy().into_owned();
        receipt.source.name = shown(&builder.ends.source);
        receipt.dest.name = shown(&builder.ends.dest);
        if builder.require_stable
            && let Some(unstable) = fail_if_unstable(&mut receipt)
        {
            error = Some(unstable);
        }
        if let Some(made) = &ready.made
            && let Err(failed) =
                finish(made, preserve.as_ref(), !builder.ends.no_sync, &mut tell, &mut receipt)
        {
            error = Some(failed);
        }
        receipt.findings = codes;
        self.made = ready.made;
        drop(ready.dest_hold);
        match error {
            None => Ok(receipt),
            Some(error) => Err(CopyError {
                obstacle: Obstacle::Failed(error),
                receipt: Some(Box::new(receipt)),
                abandoned: ended.abandoned,
            }),
        }
    }

    /// Removes a new file that has got no name, as dropping this does: for whoever does not drop it
    /// ([`CopyBuilder::abandon`]).
    pub fn clean_up(&mut self) {
        self.made = None;
    }

    /// All that can fail before anything is changed, and then the first change.
    fn begin(&mut self) -> Result<(Ready, Option<Kept>, Trials), Obstacle> {
        if self.bench.is_some() {
            return Err(again().into());
        }
        let (builder, ends) = (&mut self.builder, &self.ends);
        let preserve = if builder.preserve { Some(kept(ends)?) } else { None };
        // What is preserved is given at the end: until then the file is nobody else's.
        let mode = if builder.preserve { 0o600 } else { mode_of_new(ends) };
        for finding in ends.findings.iter().filter(|f| f.level() == Level::Warn) {
            self.codes.push(finding.code().into());
            (builder.tell)(finding);
        }
        let must = builder.ends.offload.must();
        let trials = match builder.ends.offload {
            Offload::Never => Trials::default(),
            _ => ends.trials(must.is_some())?,
        };
        if must.is_some() {
            require(&builder.ends, ends, &trials)?;
        }
        self.bench = Some(bench(builder.engine, &mut builder.tell)?);
        Ok((ends.begin(mode)?, preserve, trials))
    }
}

/// What this thread works with. Tells when the engine is not the one that was hoped for.
fn bench(choice: EngineChoice, tell: &mut dyn FnMut(&Finding)) -> Result<Workbench, Obstacle> {
    let bench = Workbench::new(choice, INLINE_WRITES).map_err(|error| Finding::NoEngine { error })?;
    if choice == EngineChoice::Auto && bench.engine.contains("because") {
        tell(&Finding::EngineSteppedDown { why: format!("I/O engine: {}", bench.engine) });
    }
    Ok(bench)
}

fn again() -> Error {
    Error::new(Kind::InvalidInput, "this copy has already run; build a new one to copy again")
}

/// Gives a destination file its name after a copy that went well, and puts it right after one that did not.
///
/// Errors: the copy is not good after all; the receipt says so.
fn finish(
    made: &Made,
    preserve: Option<&Kept>,
    sync: bool,
    tell: &mut dyn FnMut(&Finding),
    receipt: &mut Receipt,
) -> Result<(), Error> {
    let mut failed = Ok(());
    if receipt.outcome == Outcome::Done {
        match made.settle().and_then(|()| made.finish(sync, preserve)) {
            Ok(warnings) => warnings.iter().for_each(&mut *tell),
            Err(error) => failed = Err(fail_after_all(receipt, error)),
        }
    }
    if let Some(left) = made.put_right(receipt) {
        tell(&left);
    }
    failed
}

/// What the kernel says of this machine.
fn this_machine() -> Machine {
    let uname = rustix::system::uname();
    let text = |field: &std::ffi::CStr| field.to_string_lossy().into_owned();
    Machine {
        name: text(uname.nodename()),
        kernel: format!("{} {}", text(uname.sysname()), text(uname.release())),
        architecture: text(uname.machine()),
    }
}

/// Puts what the target says of its copies into the receipt, if it is about the bytes of this copy.
fn state(receipt: &mut Receipt, before: &CopyStatement, ask: impl FnOnce() -> Option<CopyStatement>) {
    let is_command = |one: &FateBytes| {
        matches!(one.how, Evidence::CopyCommand | Evidence::FastCopyOnly | Evidence::Nothing)
    };
    let copied: u64 = receipt.evidence.iter().filter(is_command).map(|one| one.bytes).sum();
    if copied == 0 {
        return;
    }
    let Some(stated) = ask().and_then(|after| after.since(before, copied)) else { return };
    let mut evidence = Fates::default();
    for one in receipt.evidence.iter().filter(|one| !is_command(one)) {
        evidence.add(one.fate, one.how, one.bytes);
    }
    evidence.merge(&stated);
    receipt.bytes = evidence.by_fate();
    receipt.evidence = evidence;
}

/// Makes sure, before anything is cut or written, that what must become of the bytes can.
fn require(options: &EndsOptions, ends: &Ends, trials: &Trials) -> Result<(), Obstacle> {
    // Where there is no stand-in the copy itself finds out; it refuses at the first such byte.
    let Ok(rehearsal) = ends.rehearse()? else { return Ok(()) };
    let facts = DeviceFacts::new(rehearsal.source, rehearsal.dest);
    let policy = trials.limit(options.policy(rehearsal.dest_zero_from));
    for step in Planner::new(&rehearsal.job, facts, policy) {
        if let Err(error) = step {
            let unmet = error.kind() == Kind::Unsupported;
            return Err(if unmet { Finding::OffloadUnmet { error }.into() } else { error.into() });
        }
    }
    Ok(())
}

/// What is kept of the source.
fn kept(ends: &Ends) -> Result<Kept, Obstacle> {
    match ends.named.as_any().downcast_ref::<File>() {
        Some(file) => Ok(Kept::of(file)?),
        None => Err(Finding::NothingToPreserve { source: ends.source_name.device_text() }.into()),
    }
}

/// Permission bits of a file that is made, less the umask: the source's, as with `cp`.
fn mode_of_new(ends: &Ends) -> u32 {
    let meta = ends.source_name.path().and_then(|path| path.metadata().ok());
    meta.map_or(0o666, |meta| meta.mode() & 0o777)
}

/// Why there is no whole and good copy.
#[derive(Debug)]
pub struct CopyError {
    /// What was in the way.
    pub obstacle: Obstacle,
    /// What was done; `None` when nothing was changed.
    pub receipt: Option<Box<Receipt>>,
    /// Requests were left in flight: see [`CopyBuilder::abandon`].
    pub abandoned: bool,
}

impl CopyError {
    fn before(obstacle: Obstacle) -> Self {
        Self { obstacle, receipt: None, abandoned: false }
    }

    /// What kind of error it is.
    pub fn kind(&self) -> Kind {
        self.obstacle.kind()
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.obstacle.fmt(f)
    }
}

impl StdError for CopyError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.obstacle.source()
    }
}

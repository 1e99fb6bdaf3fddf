//! Both ends of a copy: opened, checked against each other, and only then changed.
//!
//! [`look`] changes nothing: for a copy it stops at the first [`Level::Fail`], for a plan it collects them all. `begin`
//! makes, cuts or extends a destination file; [`Ends::rehearse`] gives the planner a stand-in instead.

use super::aliases::{Sides, check_aliases, check_new_file};
use super::file_dest::{Begun, FileDest, Made, hold_dest};
use super::findings::{Finding, Level, Obstacle};
use super::name::{Name, Place};
use super::open::{self, Found};
use super::size::size_exact;
use super::spool::{self, Spooled};
use super::trial::{self, Trials};
use super::zero_word::first_not_zero;
use crate::block::places::{is_one_device, share_bytes};
use crate::block::{Device, Kind, LEN_MAX};
use crate::copy::{Job, Offload, Policy, Segment, Sparse};
use crate::drivers::{Hold, HoldAs, backing_shortage, hold, in_use, writers};
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

/// What is asked of the two ends of a copy.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // each is one consent
pub struct EndsOptions {
    /// Source, named as [`Name::parse`] takes it.
    pub source: OsString,
    /// Destination; a directory means the source's name in it.
    pub dest: OsString,
    /// Parts that are copied, in place; offsets count from the named ranges. Empty: all of the source.
    pub segments: Vec<Segment>,
    /// Whether devices and file systems make the copy themselves.
    pub offload: Offload,
    /// What becomes of holes and zeroes.
    pub sparse: Sparse,
    /// The destination is not flushed at the end.
    pub no_sync: bool,
    /// Consent to write into an existing file, keeping its other bytes and its length.
    pub in_place: bool,
    /// Consent to overwrite a block device or a namespace.
    pub overwrite: bool,
    /// Consent to write to what is mounted, held or otherwise in use.
    pub force_in_use: bool,
    /// Consent to copy where nobody can tell whether both ends are stored in one place.
    pub assume_distinct: bool,
    /// The source is to be had alone: refused where another program may write to it, and claimed as far as the system
    /// lets us. Else nobody is hindered by a copy.
    pub exclusive_source: bool,
    /// The caller's word that the destination reads as zero wherever it is written to: zeroes are not written there.
    /// Only samples are read before; where the word is wrong, old bytes stay in place of zeroes.
    pub dest_is_zero: bool,
}

impl EndsOptions {
    /// The policy that these options and the destination make. `dest_zero_from`: [`Policy::dest_zero_from`].
    pub fn policy(&self, dest_zero_from: u64) -> Policy {
        let (offload, sparse) = (self.offload, self.sparse);
        let unsynced = self.no_sync;
        Policy { offload, sparse, dest_zero_from, unsynced, finds_zeroes: true, ..Policy::default() }
    }
}

/// What the checks are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A copy follows: the first problem ends it.
    Copy,
    /// Nothing follows: problems are collected.
    Plan,
}

/// Two ends that fit each other. Nothing has been changed yet.
pub struct Ends {
    /// The source as it was named.
    pub source_name: Name,
    /// The destination as it was named; a file in the directory, where a directory was named.
    pub dest_name: Name,
    /// What is copied, with offsets on the whole devices.
    pub segments: Vec<Segment>,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Both ends are one file or device.
    pub same: bool,
    /// See [`EndsOptions::dest_is_zero`].
    dest_is_zero: bool,
    /// What was named as the source.
    pub(super) named: Arc<dyn Device>,
    /// What is read: `named`, or a spool of it.
    source: Arc<dyn Device>,
    /// There is nothing of a spool to be held or watched.
    spooled: bool,
    dest: Dest,
    /// See [`EndsOptions::force_in_use`].
    force_in_use: bool,
    /// See [`EndsOptions::exclusive_source`].
    exclusive_source: bool,
}

/// The destination before it is changed.
enum Dest {
    /// A block device or a device in memory, opened.
    Device(Arc<dyn Device>),
    /// A regular file, made already or not.
    File(FileDest),
}

/// What the planner can be run over.
pub struct Rehearsal {
    /// What would be read.
    pub source: Arc<dyn Device>,
    /// What would be written, or something like it.
    pub dest: Arc<dyn Device>,
    /// What would be copied.
    pub job: Job,
    /// Where the destination would read as zero: see [`Policy::dest_zero_from`].
    pub dest_zero_from: u64,
}

/// Two ends ready to be copied between.
pub(super) struct Ready {
    pub(super) source: Arc<dyn Device>,
    pub(super) dest: Arc<dyn Device>,
    pub(super) job: Job,
    /// See [`Policy::dest_zero_from`].
    pub(super) dest_zero_from: u64,
    /// See [`crate::copy::run::Options::in_order`].
    pub(super) in_order: bool,
    /// What was done to a destination file so far.
    pub(super) made: Option<Made>,
    /// Keeps writers away from the source, or watches it.
    pub(super) source_hold: Option<Hold>,
    /// Keeps others away from the destination until this is dropped.
    pub(super) dest_hold: Hold,
}

/// Collects what is found, or stops at the first FAIL.
struct Checks {
    purpose: Purpose,
    findings: Vec<Finding>,
}

impl Checks {
    fn found(&mut self, finding: Finding) -> Result<(), Obstacle> {
        if self.purpose == Purpose::Copy && finding.level() == Level::Fail {
            return Err(finding.into());
        }
        self.findings.push(finding);
        Ok(())
    }
}

/// Opens both ends and checks everything that can be checked without changing anything.
///
/// # Panics
/// With [`EndsOptions::dest_is_zero`], when the thread has an executor of this library.
pub fn look(args: &EndsOptions, purpose: Purpose) -> Result<Ends, Obstacle> {
    let mut checks = Checks { purpose, findings: Vec::new() };
    let source_name = Name::parse(&args.source)?;
    let mut dest_name = Name::parse(&args.dest)?;
    let source = open::open_to_read(&source_name, args.exclusive_source).map_err(|error| {
        let meant = source_name.range_meant().filter(|_| error.kind() == Kind::NotFound);
        match meant {
            Some(meant) => Finding::SourceNotFound { error, meant }.into(),
            None if args.exclusive_source && error.kind() == Kind::InUse => {
                Finding::SourceHeld { error }.into()
            }
            None => Obstacle::Failed(error),
        }
    })?;
    if let Some(path) = dest_name.path()
        && open::find(path)? == Found::Folder
    {
        let Some(file) = source_name.path().and_then(Path::file_name) else {
            return Err(Finding::NoFileName { dest: dest_name.text().into_owned() }.into());
        };
        dest_name = dest_name.at_path(path.join(file));
    }
    let named = source.clone();
    let (source, spooled) = match spool::of(&source, &dest_name, purpose == Purpose::Copy)? {
        Spooled::No => (source, false),
        Spooled::Yes(spool) => (spool, true),
        Spooled::Later => {
            checks.found(Finding::SourceSizeUnknown { source: source_name.text().into_owned() })?;
            (source, false)
        }
    };
    let segments = place_segments(args, &source_name, &dest_name, source.size())?;
    let end = segments.iter().map(|s| s.dest_range().end()).max().unwrap_or(0);
    let in_place = args.in_place || dest_name.range.is_some() || !args.segments.is_empty();
    note_source_use(&source_name, &mut checks)?;
    let found = dest_name.path().map(open::find).transpose()?;
    let dest = match (dest_name.path(), found) {
        (Some(_), Some(Found::Folder)) => {
            return Err(Finding::IsFolder { dest: dest_name.text().into_owned() }.into());
        }
        (Some(path), Some(Found::File | Found::Nothing)) => {
            let exists = found == Some(Found::File);
            let at = dest_name.range.map_or(0, |part| part.offset);
            if exists && at > 0 && !args.in_place && args.segments.is_empty() {
                checks.found(Finding::WritesInto { dest: dest_name.device_text(), offset: at })?;
            }
            let dest = FileDest::look(path, exists, in_place, end, purpose == Purpose::Copy)?;
            if exists && purpose == Purpose::Plan {
                open::check_may_write(path)?;
            }
            if exists && purpose == Purpose::Plan && open::read_only(path) {
                checks.found(Finding::ReadOnly { dest: dest_name.device_text(), planned: true })?;
            }
            Dest::File(dest)
        }
        _ => Dest::Device(open_device(&dest_name, args, purpose, &mut checks)?),
    };
    let dest_device = match &dest {
        Dest::Device(device) => Some(device.clone()),
        Dest::File(file) => file.existing.clone().map(|f| f as Arc<dyn Device>),
    };
    let sides = Sides {
        source: &source,
        source_name: &source_name,
        dest_name: &dest_name,
        segments: &segments,
        distinct: args.assume_distinct,
    };
    let mut same = false;
    if let Some(device) = &dest_device {
        match is_one_device(&source, device) {
            Ok(one) => same = one,
            Err(error) => checks.found(Finding::TwoWays { error })?,
        }
        let cut = matches!(dest, Dest::File(_)) && !in_place;
        if !same && let Some(finding) = check_aliases(&sides, device, cut)? {
            checks.found(finding)?;
        }
    } else if let Some(path) = dest_name.path()
        && let Some(finding) = check_new_file(&sides, path)?
    {
        checks.found(finding)?;
    }
    if same && !in_place && matches!(dest, Dest::File(_)) {
        let (source, dest) = (source_name.text().into_owned(), dest_name.text().into_owned());
        checks.found(Finding::SameFile { source, dest })?;
    }
    if let Some(path) = dest_name.path()
        && matches!(&dest, Dest::File(f) if f.existing.is_some())
    {
        check_use(path, args.force_in_use, &mut checks)?;
    }
    if purpose == Purpose::Plan
        && matches!(&dest, Dest::File(f) if f.existing.is_some())
        && let Some(device) = &dest_device
        && let Err(obstacle) = hold_dest(device, args.force_in_use)
    {
        // What a copy takes hold of, for a moment only.
        match obstacle {
            Obstacle::Found(finding) => checks.found(*finding)?,
            failed => return Err(failed),
        }
    }
    if let Some(path) = dest_name.path() {
        note_shortage(path, &segments, &mut checks)?;
    }
    if let Dest::Device(device) = &dest {
        check_fit(device, &source_name, &segments, end, &mut checks)?;
    }
    if args.dest_is_zero
        && let Some(device) = &dest_device
        && (in_place || matches!(dest, Dest::Device(_)))
        && let Some(offset) = first_not_zero(device, &segments)?
    {
        checks.found(Finding::DestNotZero { dest: dest_name.device_text(), offset })?;
    }
    let ends = Ends {
        dest_is_zero: args.dest_is_zero,
        source,
        source_name,
        dest_name,
        dest,
        segments,
        findings: checks.findings,
        same,
        spooled,
        named,
        force_in_use: args.force_in_use,
        exclusive_source: args.exclusive_source,
    };
    if purpose == Purpose::Copy || ends.findings.iter().all(|f| f.level() != Level::Fail) {
        // What segments do to each other: the same check that the copy itself makes.
        ends.job(ends.dest_size())?;
    }
    Ok(ends)
}

/// The segments with offsets on the whole devices, inside the named ranges.
fn place_segments(
    args: &EndsOptions,
    source: &Name,
    dest: &Name,
    source_size: u64,
) -> Result<Vec<Segment>, Obstacle> {
    let from = source.range_in(source_size)?;
    let (to_offset, to_len) = dest.range.map_or((0, None), |part| (part.offset, part.len));
    let whole = [Segment { source: 0, dest: 0, len: from.len() }];
    let asked: &[Segment] = if args.segments.is_empty() { &whole } else { &args.segments };
    let mut placed = Vec::with_capacity(asked.len());
    for s in asked {
        let out = |end, name: &Name, offset, limit_bytes| {
            let name = name.text().into_owned();
            Obstacle::from(Finding::SegmentOutside { end, name, len: s.len, offset, limit_bytes })
        };
        if s.source.checked_add(s.len).is_none_or(|end| end > from.len()) {
            return Err(out("source", source, s.source, from.len()));
        }
        let limit = to_len.unwrap_or(LEN_MAX - to_offset);
        if s.dest.checked_add(s.len).is_none_or(|end| end > limit) {
            if args.segments.is_empty() && to_len.is_some() {
                return Err(Finding::RangeTooSmall {
                    dest: dest.text().into_owned(),
                    range_bytes: limit,
                    source_bytes: s.len,
                    source_offset: from.offset(),
                }
                .into());
            }
            return Err(out("destination", dest, s.dest, limit));
        }
        // Both sums were just checked against ends that themselves fit 2^63 - 1.
        placed.push(Segment { source: from.offset() + s.source, dest: to_offset + s.dest, len: s.len });
    }
    Ok(placed)
}

/// A destination that is not a regular file, with the safety words.
fn open_device(
    name: &Name,
    args: &EndsOptions,
    purpose: Purpose,
    checks: &mut Checks,
) -> Result<Arc<dyn Device>, Obstacle> {
    let Some(path) = name.path() else { return open_elsewhere(name, args, purpose, checks) };
    if open::find(path)? == Found::Other {
        // In the driver's words, before anything is asked for.
        open::open_source(name)?;
    }
    if purpose == Purpose::Plan {
        check_use(path, args.force_in_use, checks)?;
        if open::read_only(path) {
            checks.found(Finding::ReadOnly { dest: name.device_text(), planned: true })?;
        }
        if !args.overwrite {
            checks.found(Finding::Overwrites { dest: describe(name), planned: true })?;
        }
        return Ok(open::open_source(name)?);
    }
    if !args.overwrite {
        return Err(Finding::Overwrites { dest: describe(name), planned: false }.into());
    }
    check_use(path, args.force_in_use, checks)?;
    let device = open::open_dest(name, args.force_in_use)?;
    if device.read_only() {
        return Err(Finding::ReadOnly { dest: name.device_text(), planned: false }.into());
    }
    Ok(device)
}

/// A destination that is not a path: devices in memory are made for the copy, namespaces hold what somebody put there.
fn open_elsewhere(
    name: &Name,
    args: &EndsOptions,
    purpose: Purpose,
    checks: &mut Checks,
) -> Result<Arc<dyn Device>, Obstacle> {
    let destroys = matches!(name.place, Place::NvmeTcp(_)) && !args.overwrite;
    if destroys && purpose == Purpose::Copy {
        return Err(Finding::Overwrites { dest: describe(name), planned: false }.into());
    }
    let device = open::open_dest(name, args.force_in_use)?;
    if device.read_only() {
        checks.found(Finding::WriteProtected { dest: name.device_text() })?;
    }
    if destroys {
        checks.found(Finding::Overwrites { dest: described(name, &device), planned: true })?;
    }
    Ok(device)
}

/// A block device or namespace in words: name, model, size.
fn describe(name: &Name) -> String {
    let text = name.device_text();
    let Ok(device) = open::open_source(name) else { return text };
    described(name, &device)
}

fn described(name: &Name, device: &Arc<dyn Device>) -> String {
    let model = open::model_of(name, &**device).map_or(String::new(), |m| format!("{m}, "));
    format!("{} ({model}{})", name.device_text(), size_exact(device.size()))
}

fn note_source_use(name: &Name, checks: &mut Checks) -> Result<(), Obstacle> {
    let Some(path) = name.path() else { return Ok(()) };
    for holder in writers(path).unwrap_or_default() {
        checks.found(Finding::SourceInUse { source: name.device_text(), holder })?;
    }
    Ok(())
}

/// A loop device whose file may run out of space under the copy: its driver does not always say so.
fn note_shortage(path: &Path, segments: &[Segment], checks: &mut Checks) -> Result<(), Obstacle> {
    let Some(shortage) = backing_shortage(path) else { return Ok(()) };
    let bytes: u64 = segments.iter().map(|s| s.len).sum();
    if bytes > shortage.free_bytes {
        checks.found(Finding::LoopShortage { dest: path.to_owned(), shortage })?;
    }
    Ok(())
}

fn check_use(path: &Path, forced: bool, checks: &mut Checks) -> Result<(), Obstacle> {
    let holders = in_use(path)?;
    let is_used = !holders.is_empty();
    for holder in holders {
        checks.found(Finding::DestInUse { dest: path.to_owned(), holder, forced })?;
    }
    if !is_used {
        checks.found(Finding::DestNotInUse { dest: path.to_owned() })?;
    }
    Ok(())
}

fn check_fit(
    dest: &Arc<dyn Device>,
    source: &Name,
    segments: &[Segment],
    end: u64,
    checks: &mut Checks,
) -> Result<(), Obstacle> {
    let (dest, dest_bytes) = (dest.name().to_owned(), dest.size());
    if end <= dest_bytes {
        return checks.found(Finding::DestLargeEnough { dest, size_bytes: dest_bytes });
    }
    let copied_bytes = segments.iter().map(|s| s.len).sum();
    let source = source.text().into_owned();
    checks.found(Finding::DestTooSmall { source, dest, dest_bytes, copied_bytes, end })
}

/// Whether writes to the destination may count as writes to the source's disk.
fn shares(source: &Arc<dyn Device>, dest: &Arc<dyn Device>) -> bool {
    share_bytes(source, dest).map_or(true, |overlap| overlap.reason().is_some())
}

impl Ends {
    fn dest_size(&self) -> u64 {
        match &self.dest {
            Dest::Device(device) => device.size(),
            Dest::File(file) => file.final_len,
        }
    }

    fn job(&self, dest_size: u64) -> Result<Job, Obstacle> {
        Job::new(&self.segments, self.source.size(), dest_size, self.same).map_err(|e| {
            if e.kind() == Kind::Overlap {
                Finding::SegmentsOverlap { error: e }.into()
            } else {
                Obstacle::Failed(e)
            }
        })
    }

    /// True for a regular file as destination, there already or not.
    pub fn dest_is_file(&self) -> bool {
        matches!(self.dest, Dest::File(_))
    }

    fn hold_source(&self) -> Result<Hold, Obstacle> {
        // What is also the destination is written by this copy itself, which no lease allows.
        if !self.exclusive_source || self.same {
            return Ok(hold(&self.source, HoldAs::Source)?);
        }
        hold(&self.source, HoldAs::SourceAlone).map_err(|error| match error.kind() {
            Kind::InUse => Finding::SourceHeld { error }.into(),
            _ => error.into(),
        })
    }

    /// Takes hold of both ends, then makes, cuts or extends a destination file: the first change of anything, after all
    /// that can fail.
    ///
    /// `mode`: permission bits of a file that is made, less the umask.
    pub(super) fn begin(&self, mode: u32) -> Result<Ready, Obstacle> {
        let job = self.job(self.dest_size())?;
        // A destination that exists is open since `look`: our own opening breaks no lease taken now.
        let mut source_hold = if self.spooled { None } else { Some(self.hold_source()?) };
        let (dest, dest_zero_from, in_order, made, dest_hold) = match &self.dest {
            Dest::Device(device) => {
                let hold = hold_dest(device, self.force_in_use)?;
                (device.clone(), u64::MAX, false, None, hold)
            }
            Dest::File(file) => {
                let Begun { device, zero_from, in_order, made, hold } =
                    file.begin(mode, &self.segments, self.force_in_use)?;
                (device, zero_from, in_order, Some(made), hold)
            }
        };
        if let Some(hold) = &mut source_hold
            && (self.same || hold.counts_writes() && shares(&self.source, &dest))
        {
            hold.written_by_us();
        }
        let dest_zero_from = self.zero_from(&job, dest_zero_from);
        // One device on both ends is one handle.
        let source = if self.same { dest.clone() } else { self.source.clone() };
        Ok(Ready { source, dest, job, dest_zero_from, in_order, made, source_hold, dest_hold })
    }

    /// What the planner can be run over without changing anything. The finding says why there is nothing.
    pub fn rehearse(&self) -> Result<Result<Rehearsal, Finding>, Obstacle> {
        let job = self.job(self.dest_size())?;
        let (dest, dest_zero_from) = match &self.dest {
            Dest::Device(device) => (device.clone(), u64::MAX),
            Dest::File(file) => match file.stand_in() {
                Ok(stand_in) => stand_in,
                Err(finding) => return Ok(Err(finding)),
            },
        };
        let dest_zero_from = self.zero_from(&job, dest_zero_from);
        Ok(Ok(Rehearsal { source: self.source.clone(), dest, job, dest_zero_from }))
    }

    /// Bytes that a destination file has room for; `None`: not known, or it is not a file.
    pub fn room(&self) -> Option<u64> {
        match &self.dest {
            Dest::File(dest) => dest.room(),
            Dest::Device(_) => None,
        }
    }

    /// What the two ends can do together where only trying tells. `may_name`: the file that is made for that may have a
    /// hidden name for a moment, where it cannot be without; a plan makes no names.
    pub fn trials(&self, may_name: bool) -> Result<Trials, Obstacle> {
        match &self.dest {
            Dest::File(dest) if !self.same => {
                Ok(trial::try_out(&self.source, dest, &self.job(self.dest_size())?, may_name))
            }
            _ => Ok(Trials::default()),
        }
    }

    /// From where on the destination reads as zero, by what is known and by the caller's word. Nobody means the bytes
    /// that the copy also reads.
    fn zero_from(&self, job: &Job, known: u64) -> u64 {
        if self.dest_is_zero && !job.overlaps() { 0 } else { known }
    }
}

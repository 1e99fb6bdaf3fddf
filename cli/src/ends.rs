//! Both ends of a copy: opened, checked against each other, and only then changed.
//!
//! [`look`] changes nothing: `cp` stops at its first FAIL, `plan` prints them all. [`Ends::begin`] makes, cuts or extends a
//! destination file; [`Ends::rehearse`] gives the planner a stand-in instead.

use crate::args::EndsArgs;
use crate::fail::Fail;
use crate::file_dest::{Begun, FileDest, Made, hold_dest};
use crate::output::{Finding, Level, size_exact};
use crate::spool::{self, Spooled};

use blkcopy::block::places::{is_one_device, storage_of};
use blkcopy::block::{ByteRange, Device, Error, Identity, Kind, LEN_MAX, Overlap};
use blkcopy::copy::{Job, Policy, Segment};
use blkcopy::drivers::{Hold, backing_shortage, hold, in_use};
use blkcopy::open::{self, Found, Name, Place};
use std::sync::Arc;

/// What the checks are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A copy follows: the first problem ends it.
    Copy,
    /// Nothing follows: problems are collected.
    Plan,
}

/// Two ends that fit each other. Nothing has been changed yet.
pub(crate) struct Ends {
    pub(crate) source: Arc<dyn Device>,
    pub(crate) source_name: Name,
    /// A file in the directory, where a directory was named.
    pub(crate) dest_name: Name,
    pub(crate) dest: Dest,
    /// Offsets on the whole devices.
    pub(crate) segments: Vec<Segment>,
    pub(crate) findings: Vec<Finding>,
    /// Both ends are one file or device.
    pub(crate) same: bool,
    /// What is read is a spool of the source: nothing is to be held or watched.
    spooled: bool,
    /// What was named as the source.
    pub(crate) named: Arc<dyn Device>,
}

/// The destination before it is changed.
pub(crate) enum Dest {
    /// A block device or a device in memory, opened.
    Device(Arc<dyn Device>),
    /// A regular file, made already or not.
    File(FileDest),
}

/// Two ends ready to be copied between.
pub(crate) struct Ready {
    pub(crate) source: Arc<dyn Device>,
    pub(crate) dest: Arc<dyn Device>,
    pub(crate) job: Job,
    /// See [`Policy::dest_zero_from`].
    pub(crate) dest_zero_from: u64,
    /// See [`blkcopy::copy::run::Options::in_order`].
    pub(crate) in_order: bool,
    /// What was done to a destination file so far.
    pub(crate) made: Option<Made>,
    /// Keeps writers away from the source, or watches it.
    pub(crate) source_hold: Option<Hold>,
    /// Keeps others away from the destination until this is dropped.
    pub(crate) dest_hold: Option<Hold>,
}

/// Collects what is found, or stops at the first FAIL.
struct Checks {
    purpose: Purpose,
    findings: Vec<Finding>,
}

impl Checks {
    fn fail(&mut self, error: Error, fix: &str) -> Result<(), Fail> {
        match self.purpose {
            Purpose::Copy => Err(Fail::from(error).hint(fix)),
            Purpose::Plan => {
                self.findings.push(Finding::new(Level::Fail, error.to_string(), Some(fix)));
                Ok(())
            }
        }
    }
}

/// Opens both ends and checks everything that can be checked without changing anything.
pub(crate) fn look(args: &EndsArgs, purpose: Purpose) -> Result<Ends, Fail> {
    let mut checks = Checks { purpose, findings: Vec::new() };
    let source_name = Name::parse(&args.source)?;
    let mut dest_name = Name::parse(&args.dest)?;
    let source = open::open_source(&source_name).map_err(|error| {
        let meant = source_name.range_meant().filter(|_| error.kind() == Kind::NotFound);
        let fail = Fail::from(error);
        if let Some(meant) = meant { fail.hint(meant) } else { fail }
    })?;
    if let Some(path) = dest_name.path()
        && open::find(path)? == Found::Folder
    {
        let Some(file) = source_name.path().and_then(std::path::Path::file_name) else {
            let text =
                format!("{}: is a directory, and the source has no file name to use in it", dest_name.text());
            return Err(Fail::invalid(text).hint("name the file to be made in it"));
        };
        dest_name = dest_name.at_path(path.join(file));
    }
    let named = source.clone();
    let (source, spooled) = match spool::of(&source, &dest_name, purpose)? {
        Spooled::No => (source, false),
        Spooled::Yes(spool) => (spool, true),
        Spooled::Later => {
            let text = format!("{}: its size is not what can be read from it", source_name.text());
            checks.findings.push(Finding::warn(text, "none: cp reads it to its end"));
            (source, false)
        }
    };
    let segments = place_segments(args, &source_name, &dest_name, source.size())?;
    let end = segments.iter().map(|s| s.dest_range().end()).max().unwrap_or(0);
    let in_place = args.in_place || dest_name.range.is_some() || !args.segments.is_empty();
    note_source_use(&source_name, &mut checks);
    let found = dest_name.path().map(open::find).transpose()?;
    let dest = match (dest_name.path(), found) {
        (Some(_), Some(Found::Folder)) => {
            let text = format!("{}: is a directory; a file cannot take its place", dest_name.text());
            return Err(Fail::invalid(text).hint("name another destination"));
        }
        (Some(path), Some(Found::File | Found::Nothing)) => {
            let exists = found == Some(Found::File);
            let at = dest_name.range.map_or(0, |part| part.offset);
            if exists && at > 0 && !args.in_place && args.segments.is_empty() {
                let text = format!("the file exists, and would be overwritten in place from byte {at} on");
                let error = Error::new(Kind::InvalidInput, text).on(&dest_name.device_text());
                checks.fail(error, "give --in-place if that is meant, or name another destination")?;
            }
            let dest = FileDest::look(path, exists, in_place, end)?;
            Dest::File(dest)
        }
        _ => Dest::Device(open_device(&dest_name, args, purpose, &mut checks)?),
    };
    let dest_device = match &dest {
        Dest::Device(device) => Some(device.clone()),
        Dest::File(file) => file.existing.clone().map(|f| f as Arc<dyn Device>),
    };
    let mut same = false;
    if let Some(device) = &dest_device {
        match is_one_device(&source, device) {
            Ok(one) => same = one,
            Err(error) => checks.fail(error, "one URL on both sides, or another destination")?,
        }
        let cut = matches!(dest, Dest::File(_)) && !in_place;
        let names = (&source_name, &dest_name);
        let how = (args.assume_distinct, &mut checks);
        if !same {
            check_aliases(&source, device, names, &segments, cut, how)?;
        }
    } else if let Some(path) = dest_name.path() {
        check_new_file(&source, (&source_name, path), &segments, (args.assume_distinct, &mut checks))?;
    }
    if same && !in_place && matches!(dest, Dest::File(_)) {
        let text = format!("{} and {} are the same file", source_name.text(), dest_name.text());
        checks.fail(
            Error::new(Kind::Overlap, text),
            "name another destination, or give a range @offset+length on both sides",
        )?;
    }
    if let Some(path) = dest_name.path()
        && matches!(&dest, Dest::File(f) if f.existing.is_some())
    {
        check_use(path, args.force_in_use, &mut checks)?;
    }
    if let Some(path) = dest_name.path() {
        note_shortage(path, &segments, &mut checks);
    }
    if let Dest::Device(device) = &dest {
        check_fit(device, &source_name, &segments, end, &mut checks)?;
    }
    let ends = Ends {
        source,
        source_name,
        dest_name,
        dest,
        segments,
        findings: checks.findings,
        same,
        spooled,
        named,
    };
    if purpose == Purpose::Copy || ends.findings.iter().all(|f| f.level != Level::Fail) {
        // What segments do to each other: the same check that the copy itself makes.
        ends.job(ends.dest_size())?;
    }
    Ok(ends)
}

/// The segments with offsets on the whole devices, inside the named ranges.
fn place_segments(
    args: &EndsArgs,
    source: &Name,
    dest: &Name,
    source_size: u64,
) -> Result<Vec<Segment>, Fail> {
    let from = source.range_in(source_size)?;
    let (to_offset, to_len) = dest.range.map_or((0, None), |part| (part.offset, part.len));
    let whole = [Segment { source: 0, dest: 0, len: from.len() }];
    let asked: &[Segment] = if args.segments.is_empty() { &whole } else { &args.segments };
    let mut placed = Vec::with_capacity(asked.len());
    for s in asked {
        let out = |what: &str, name: &Name, offset: u64, limit: u64| {
            let text = format!(
                "the {what} part of {} bytes at {offset} ends behind the end of {} ({limit} bytes)",
                s.len,
                name.text()
            );
            Fail::from(Error::new(Kind::OutOfRange, text)).hint("shorten it, or give a longer range")
        };
        if s.source.checked_add(s.len).is_none_or(|end| end > from.len()) {
            return Err(out("source", source, s.source, from.len()));
        }
        let limit = to_len.unwrap_or(LEN_MAX - to_offset);
        if s.dest.checked_add(s.len).is_none_or(|end| end > limit) {
            if args.segments.is_empty() && to_len.is_some() {
                let text =
                    format!("{}: the range holds {limit} bytes, the source {} bytes", dest.text(), s.len);
                let fix =
                    format!("copy less of the source (@{}+{limit}), or give a longer range", from.offset());
                return Err(Fail::from(Error::new(Kind::OutOfRange, text)).hint(fix));
            }
            return Err(out("destination", dest, s.dest, limit));
        }
        // Both sums were just checked against ends that themselves fit 2^63 - 1.
        placed.push(Segment { source: from.offset() + s.source, dest: to_offset + s.dest, len: s.len });
    }
    Ok(placed)
}

/// A destination that is no regular file, with the safety words.
fn open_device(
    name: &Name,
    args: &EndsArgs,
    purpose: Purpose,
    checks: &mut Checks,
) -> Result<Arc<dyn Device>, Fail> {
    let Some(path) = name.path() else { return open_elsewhere(name, args, purpose, checks) };
    if open::find(path)? == Found::Other {
        // In the driver's words, before anything is asked for.
        open::open_source(name)?;
    }
    if purpose == Purpose::Plan {
        check_use(path, args.force_in_use, checks)?;
        if open::read_only(path) {
            let error = Error::new(Kind::ReadOnly, "is read-only").on(&name.device_text());
            checks.fail(error, "make it writable (blockdev --setrw), or name another destination")?;
        }
        if !args.yes {
            let text = format!("{}: what is on it would be overwritten", describe(name));
            checks.findings.push(Finding::warn(text, "cp wants --yes"));
        }
        return Ok(open::open_source(name)?);
    }
    if !args.yes {
        let text = format!("{}: would be overwritten", describe(name));
        return Err(Fail::invalid(text).hint("give --yes if what is on it may be lost"));
    }
    check_use(path, args.force_in_use, checks)?;
    let device = open::open_dest(name, args.force_in_use)?;
    if device.read_only() {
        return Err(Error::new(Kind::ReadOnly, "the device is read-only").on(&name.device_text()).into());
    }
    Ok(device)
}

/// A destination that is no path: devices in memory are made for the copy, namespaces hold what somebody put there.
fn open_elsewhere(
    name: &Name,
    args: &EndsArgs,
    purpose: Purpose,
    checks: &mut Checks,
) -> Result<Arc<dyn Device>, Fail> {
    let destroys = matches!(name.place, Place::NvmeTcp(_)) && !args.yes;
    if destroys && purpose == Purpose::Copy {
        let text = format!("{}: would be overwritten", describe(name));
        return Err(Fail::invalid(text).hint("give --yes if what is on it may be lost"));
    }
    let device = open::open_dest(name, args.force_in_use)?;
    if device.read_only() {
        let error = Error::new(Kind::ReadOnly, "is write-protected at the target").on(&name.device_text());
        checks.fail(error, "lift that at the target, or name another destination")?;
    }
    if destroys {
        let text = format!("{}: what is on it would be overwritten", described(name, &device));
        checks.findings.push(Finding::warn(text, "cp wants --yes"));
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

fn note_source_use(name: &Name, checks: &mut Checks) {
    let Some(path) = name.path() else { return };
    for holder in in_use(path).unwrap_or_default() {
        let text = format!("{}: {holder}: it may change while it is copied", name.device_text());
        checks.findings.push(Finding::warn(text, "unmount or stop what uses it, or copy a snapshot"));
    }
}

/// A loop device whose file may run out of space under the copy: its driver does not always say so.
fn note_shortage(path: &std::path::Path, segments: &[Segment], checks: &mut Checks) {
    let Some(short) = backing_shortage(path) else { return };
    let bytes: u64 = segments.iter().map(|s| s.len).sum();
    if bytes > short.free_bytes {
        let text = format!(
            "{}: the file behind it ({}) lacks {} and its file system has {} left: Linux's loop driver may call bytes written \
             that had no space",
            path.display(),
            short.file.display(),
            size_exact(short.missing_bytes),
            size_exact(short.free_bytes),
        );
        checks.findings.push(Finding::warn(text, "free space there, or copy with --verify digest"));
    }
}

fn check_use(path: &std::path::Path, force: bool, checks: &mut Checks) -> Result<(), Fail> {
    let holders = in_use(path)?;
    for holder in &holders {
        let text = format!("{}: in use: {holder}", path.display());
        if force {
            checks.findings.push(Finding::warn(text, "none: --force-in-use was given"));
        } else {
            let fix = "unmount or stop what uses it, or give --force-in-use if that is safe";
            checks.fail(Error::new(Kind::InUse, text), fix)?;
        }
    }
    if holders.is_empty() {
        checks.findings.push(Finding::pass(format!("{}: not in use by others", path.display())));
    }
    Ok(())
}

/// Copies between devices whose storage lies closer than this are taken to overlap, in bytes: what is cached of one holds whole
/// pages, neighbours included.
const CACHED_BYTES: u64 = 4096;

/// Two names for the same bytes: of one disk, or of what lies below the devices.
fn check_aliases(
    source: &Arc<dyn Device>,
    dest: &Arc<dyn Device>,
    (source_name, dest_name): (&Name, &Name),
    segments: &[Segment],
    cut: bool,
    (distinct, checks): (bool, &mut Checks),
) -> Result<(), Fail> {
    let out = |range: ByteRange| {
        let end = range.end().checked_next_multiple_of(CACHED_BYTES).unwrap_or(LEN_MAX);
        ByteRange::between(range.offset() - range.offset() % CACHED_BYTES, end)
    };
    let one_leaf = match (source.identity(), dest.identity()) {
        (Identity::Leaf { leaf: a, base: from }, Identity::Leaf { leaf: b, base: to }) => {
            if a == b && from == to {
                return Ok(());
            }
            a == b
        }
        _ => false,
    };
    // One cache, and locks that know both: to the byte.
    let near = |range: ByteRange| if one_leaf { range } else { out(range) };
    let reads: Vec<_> = segments.iter().map(|s| near(s.source_range())).collect();
    // What is cut off of a file is gone, copied onto or not.
    let writes: Vec<_> = match cut {
        true => vec![ByteRange::to(LEN_MAX)],
        false => segments.iter().map(|s| near(s.dest_range())).collect(),
    };
    let overlap = storage_of(source)?.overlap_in(&reads, &storage_of(dest)?, &writes);
    let (source, dest) = (source_name.text(), dest_name.text());
    let (text, fix) = match overlap {
        Overlap::Yes(_) if one_leaf => (
            format!("{source} and {dest} overlap on one disk"),
            "name the whole disk with ranges on both sides",
        ),
        Overlap::Yes(how) => (
            format!("{source} and {dest} hold the same bytes: {how}"),
            "name the same one on both sides, with ranges",
        ),
        Overlap::Maybe(_) if distinct => return Ok(()),
        Overlap::Maybe(why) => (
            format!("{source} and {dest} may hold the same bytes: {why}"),
            "name another destination, or give --assume-distinct if they certainly do not",
        ),
        Overlap::No => return Ok(()),
    };
    checks.fail(Error::new(Kind::Overlap, text), fix)
}

/// A file that is to be made on the file system that is copied.
fn check_new_file(
    source: &Arc<dyn Device>,
    (source_name, path): (&Name, &std::path::Path),
    segments: &[Segment],
    (distinct, checks): (bool, &mut Checks),
) -> Result<(), Fail> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let reads: Vec<_> = segments.iter().map(Segment::source_range).collect();
    let all = [ByteRange::to(LEN_MAX)];
    let overlap = storage_of(source)?.overlap_in(&reads, &open::storage_of_folder(folder), &all);
    match overlap.reason() {
        Some(why) if !distinct => {
            let text =
                format!("{} would be made on what {} holds: {why}", path.display(), source_name.text());
            let fix = "name a destination elsewhere, or give --assume-distinct if it certainly is";
            checks.fail(Error::new(Kind::Overlap, text), fix)
        }
        _ => Ok(()),
    }
}

fn check_fit(
    dest: &Arc<dyn Device>,
    source: &Name,
    segments: &[Segment],
    end: u64,
    checks: &mut Checks,
) -> Result<(), Fail> {
    let size = dest.size();
    if end <= size {
        checks.findings.push(Finding::pass(format!("{}: large enough ({})", dest.name(), size_exact(size))));
        return Ok(());
    }
    let bytes: u64 = segments.iter().map(|s| s.len).sum();
    let text = format!(
        "too small: {} bytes of {} would end at byte {end}, the destination holds {size} bytes",
        bytes,
        source.text()
    );
    checks.fail(
        Error::new(Kind::OutOfRange, text).on(dest.name()),
        "extend the destination, or copy less with a range @offset+length on the source",
    )
}

impl Ends {
    fn dest_size(&self) -> u64 {
        match &self.dest {
            Dest::Device(device) => device.size(),
            Dest::File(file) => file.final_len,
        }
    }

    fn job(&self, dest_size: u64) -> Result<Job, Fail> {
        Job::new(&self.segments, self.source.size(), dest_size, self.same).map_err(|e| {
            let overlap = e.kind() == Kind::Overlap;
            let fail = Fail::from(e);
            if overlap { fail.hint("choose ranges that do not overlap") } else { fail }
        })
    }

    /// Takes hold of both ends, then makes, cuts or extends a destination file: the first change of anything, after all
    /// that can fail.
    ///
    /// `mode`: permission bits of a file that is made, less the umask.
    pub(crate) fn begin(self, mode: u32) -> Result<Ready, Fail> {
        let job = self.job(self.dest_size())?;
        // A destination that exists is open since `look`: our own opening breaks no lease taken now.
        let mut source_hold = if self.spooled { None } else { Some(hold(&self.source, false)?) };
        if self.same
            && let Some(hold) = &mut source_hold
        {
            hold.written_by_us();
        }
        let (dest, dest_zero_from, in_order, made, dest_hold) = match self.dest {
            Dest::Device(device) => {
                let hold = hold_dest(&device)?;
                (device, u64::MAX, false, None, hold)
            }
            Dest::File(file) => {
                let Begun { device, zero_from, in_order, made, hold } = file.begin(mode, &self.segments)?;
                (device, zero_from, in_order, Some(made), hold)
            }
        };
        let dest_hold = Some(dest_hold);
        // One device on both ends is one handle.
        let source = if self.same { dest.clone() } else { self.source };
        Ok(Ready { source, dest, job, dest_zero_from, in_order, made, source_hold, dest_hold })
    }

    /// What the planner can be run over without changing anything. The finding says why there is nothing.
    pub(crate) fn rehearse(&self) -> Result<Result<Ready, Finding>, Fail> {
        let job = self.job(self.dest_size())?;
        let (dest, dest_zero_from) = match &self.dest {
            Dest::Device(device) => (device.clone(), u64::MAX),
            Dest::File(file) => match file.stand_in() {
                Ok(stand_in) => stand_in,
                Err(finding) => return Ok(Err(finding)),
            },
        };
        let source = self.source.clone();
        Ok(Ok(Ready {
            source,
            dest,
            job,
            dest_zero_from,
            in_order: false,
            made: None,
            source_hold: None,
            dest_hold: None,
        }))
    }
}

/// The policy that the flags and the destination make.
pub(crate) fn policy(args: &EndsArgs, dest_zero_from: u64) -> Policy {
    let (offload, sparse) = (args.offload.into(), args.sparse.into());
    Policy { offload, sparse, dest_zero_from, unsynced: args.no_sync, ..Policy::default() }
}

//! `blkcopy info`: what a device is and what it can offload.

use crate::args::InfoArgs;
use crate::fail::{Code, Fail};
use crate::output::{self, Shown, table};
use crate::signals::Interrupts;
use blkcopy::block::device::LeafSpace;
use blkcopy::block::{ByteRange, Content, CopyPath, Device, Identity, Limits, Scope};
use blkcopy::drivers::in_use;
use blkcopy::volume::{self, Found, Level, Name, Place, TrialResult, Trials, size, size_exact};
use serde::Serialize;
use std::sync::Arc;

/// Most extents looked at for the summary of holes.
const EXTENTS_MAX: u64 = 1_000_000;

/// A device, as `--json` prints it.
#[derive(Serialize)]
struct Info {
    schema: &'static str,
    name: String,
    kind: &'static str,
    model: Option<String>,
    identity: String,
    size_bytes: u64,
    /// `None`: unknown.
    allocated_bytes: Option<u64>,
    block_size: u32,
    read_only: bool,
    direct_io_align: Option<u32>,
    optimal_io_bytes: u32,
    atomic_write_bytes: Option<u32>,
    limits: SeriesLimits,
    copy_paths: Vec<PathInfo>,
    in_use: Vec<String>,
    /// `None`: could not be found out.
    holes: Option<Holes>,
    findings: Vec<Shown>,
}

/// The limits by the names of the copy-offload series; `None`: cannot.
#[derive(Serialize)]
struct SeriesLimits {
    copy_offload: bool,
    copy_max_bytes: Option<u64>,
    copy_max_hw_bytes: Option<u64>,
    copy_max_range_bytes: Option<u64>,
    copy_max_range_hw_bytes: Option<u64>,
    copy_max_nr_ranges: Option<u32>,
    copy_max_nr_ranges_hw: Option<u32>,
}

#[derive(Serialize)]
struct PathInfo {
    method: &'static str,
    with: String,
    align_bytes: u64,
    tail_at_eof: bool,
    max_bytes: u64,
    preferred: bool,
}

/// What the device holds, by `SEEK_DATA`.
#[derive(Serialize)]
struct Holes {
    data_bytes: u64,
    hole_bytes: u64,
    extents: u64,
    /// False when there are more extents than were looked at.
    complete: bool,
}

/// Runs the command.
pub(crate) fn run(args: &InfoArgs) -> Result<Code, Fail> {
    let name = Name::parse(&args.device)?;
    Interrupts::listen()?.doing(format!("opening {}", name.text()));
    if let Place::NvmeTcp(url) = &name.place
        && url.nsid.is_none()
    {
        return crate::target_info::run(url, args.json);
    }
    let device = volume::open_source(&name)?;
    let range = name.range_in(device.size())?;
    let info = Info::of(&name, &device, range)?;
    if args.json {
        output::out(&output::json(&info));
    } else {
        output::out(&info.text());
    }
    let no = info.findings.iter().any(|f| f.level == Level::Fail);
    Ok(if no { Code::No } else { Code::Done })
}

impl Info {
    fn of(name: &Name, device: &Arc<dyn Device>, range: ByteRange) -> Result<Self, Fail> {
        let limits = device.limits();
        let kind = match &name.place {
            Place::Mem(_) => "memory device",
            Place::Null(_) => "null device",
            Place::NvmeTcp(_) => "NVMe/TCP namespace",
            Place::Path(path) if volume::find(path)? == Found::Block => "block device",
            Place::Path(_) => "regular file",
        };
        let path = name.path();
        let mut info = Self {
            schema: "blkcopy-info/1",
            name: name.device_text(),
            kind,
            model: volume::model_of(name, &**device),
            identity: identity(device.identity()),
            size_bytes: device.size(),
            allocated_bytes: device.allocated_bytes(),
            block_size: limits.block_size.get(),
            // It was opened for reading only and may still be writable.
            read_only: path.map_or_else(|| device.read_only(), volume::read_only),
            direct_io_align: limits.direct_io_align.map(std::num::NonZeroU32::get),
            optimal_io_bytes: limits.optimal_io_bytes.get(),
            atomic_write_bytes: limits.atomic_write_bytes.map(std::num::NonZeroU32::get),
            limits: SeriesLimits::of(&limits),
            copy_paths: device.copy_paths().iter().map(PathInfo::of).collect(),
            in_use: path
                .map(in_use)
                .transpose()?
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string)
                .collect(),
            // Nobody can ask a namespace where its holes are.
            holes: holes(device, range).ok().filter(|_| !matches!(name.place, Place::NvmeTcp(_))),
            findings: Vec::new(),
        };
        info.findings = info.judge(&volume::try_beside(device));
        Ok(info)
    }

    fn judge(&self, trials: &Trials) -> Vec<Shown> {
        let mut all = Vec::new();
        let tried =
            |method: &str| trials.iter().find(|trial| trial.method.name() == method).map(|t| &t.result);
        let native: Vec<String> = self
            .copy_paths
            .iter()
            .filter(|p| p.preferred)
            .filter_map(|p| match tried(p.method) {
                None => Some(p.method.to_owned()),
                Some(TrialResult::Refused(_)) => None,
                Some(TrialResult::Fate(fate, _)) => Some(format!("{} (tried here: {fate})", p.method)),
                Some(TrialResult::NotTried(why)) => {
                    Some(format!("{} (expected, not tried: {why})", p.method))
                }
            })
            .collect();
        all.push(match (native.is_empty(), self.limits.copy_offload) {
            (false, true) => Shown::pass(format!("can copy without read+write: {}", native.join(", "))),
            (false, false) => Shown::warn("copy_offload is off", "turn copy_offload on"),
            (true, _) => Shown::warn(
                "copies from and to it take read+write",
                "none here; files on XFS or Btrfs share extents instead",
            ),
        });
        for holder in &self.in_use {
            all.push(Shown::warn(
                format!("in use: {holder}"),
                "unmount it or stop what uses it before copying to it",
            ));
        }
        if self.read_only {
            all.push(Shown::warn(
                "read-only: it can be a source only",
                "make it writable before copying to it",
            ));
        }
        all
    }

    fn text(&self) -> String {
        let row = |a: &str, b: String| vec![a.to_owned(), b];
        let optional = |v: Option<String>| v.unwrap_or_else(|| "cannot".to_owned());
        let bytes = |v: Option<u64>| optional(v.map(size_exact));
        let number = |v: Option<u32>| optional(v.map(|n| n.to_string()));
        let l = &self.limits;
        let mut rows = vec![row("name", self.name.clone()), row("kind", self.kind.to_owned())];
        rows.extend(self.model.iter().map(|m| row("model", m.clone())));
        rows.extend([
            row("identity", self.identity.clone()),
            row("size", size_exact(self.size_bytes)),
            row("allocated", self.allocated_bytes.map_or("unknown".into(), size_exact)),
            row("block size", size(self.block_size.into())),
            row(
                "direct I/O",
                optional(self.direct_io_align.map(|a| format!("aligned to {}", size(a.into())))),
            ),
            row("optimal I/O", size(self.optimal_io_bytes.into())),
            row("atomic write", self.atomic_write_bytes.map_or("unknown".into(), |a| size(a.into()))),
            row("copy_offload", if l.copy_offload { "on" } else { "off" }.to_owned()),
            row("copy_max_bytes", bytes(l.copy_max_bytes)),
            row("copy_max_hw_bytes", bytes(l.copy_max_hw_bytes)),
            row("copy_max_range_bytes", bytes(l.copy_max_range_bytes)),
            row("copy_max_range_hw_bytes", bytes(l.copy_max_range_hw_bytes)),
            row("copy_max_nr_ranges", number(l.copy_max_nr_ranges)),
            row("copy_max_nr_ranges_hw", number(l.copy_max_nr_ranges_hw)),
        ]);
        for path in &self.copy_paths {
            let slower = if path.preferred { "" } else { ", only if required: slower than read+write" };
            let text = format!(
                "{} with {}, aligned to {}, at most {} a request{slower}",
                path.method,
                path.with,
                size(path.align_bytes),
                size(path.max_bytes)
            );
            rows.push(row("copies by", text));
        }
        rows.push(row(
            "in use",
            if self.in_use.is_empty() { "no".to_owned() } else { self.in_use.join("; ") },
        ));
        let contents = self.holes.as_ref().map(|h| {
            let more = if h.complete { "" } else { ", not all scanned" };
            let extents = if h.extents == 1 { "extent" } else { "extents" };
            format!(
                "{} data, {} holes, in {} {extents}{more}",
                size(h.data_bytes),
                size(h.hole_bytes),
                h.extents
            )
        });
        rows.push(row("contents", contents.unwrap_or_else(|| "unknown".to_owned())));
        table(&rows) + &output::findings(&self.findings)
    }
}

impl SeriesLimits {
    fn of(l: &Limits) -> Self {
        let bytes = |v: Option<std::num::NonZeroU64>| v.map(std::num::NonZeroU64::get);
        let number = |v: Option<std::num::NonZeroU32>| v.map(std::num::NonZeroU32::get);
        Self {
            copy_offload: l.copy_offload,
            copy_max_bytes: bytes(l.copy_max_bytes.get()),
            copy_max_hw_bytes: bytes(l.copy_max_bytes.get_hw()),
            copy_max_range_bytes: bytes(l.copy_max_range_bytes.get()),
            copy_max_range_hw_bytes: bytes(l.copy_max_range_bytes.get_hw()),
            copy_max_nr_ranges: number(l.copy_max_nr_ranges.get()),
            copy_max_nr_ranges_hw: number(l.copy_max_nr_ranges.get_hw()),
        }
    }
}

impl PathInfo {
    fn of(path: &CopyPath) -> Self {
        let with = match path.scope {
            Scope::FileSystem(dev) => {
                format!("files of file system {}:{}", rustix::fs::major(dev), rustix::fs::minor(dev))
            }
            Scope::Files => "any regular file".to_owned(),
            Scope::Controller(_) => "the namespaces its controller copies between".to_owned(),
            Scope::Process => "memory devices".to_owned(),
            Scope::Null => "null devices".to_owned(),
            #[allow(unreachable_patterns)] // scopes of test devices, which have no name a user could type
            _ => "test devices".to_owned(),
        };
        Self {
            method: path.method.name(),
            with,
            align_bytes: path.align,
            tail_at_eof: path.tail_at_eof,
            max_bytes: path.max_bytes,
            preferred: path.preferred,
        }
    }
}

fn identity(identity: Identity) -> String {
    let Identity::Leaf { leaf, base } = identity else { return "a map over other devices".to_owned() };
    let (major, minor) = (rustix::fs::major(leaf.id.0), rustix::fs::minor(leaf.id.0));
    match leaf.space {
        LeafSpace::File => format!("inode {} of file system {major}:{minor}", leaf.id.1),
        LeafSpace::Disk if base > 0 => format!("disk {major}:{minor} from byte {base}"),
        LeafSpace::Disk => format!("disk {major}:{minor}"),
        LeafSpace::Memory => "memory of this process".to_owned(),
        LeafSpace::Namespace => format!("namespace {:016x}{:016x}", leaf.id.0, leaf.id.1),
        LeafSpace::Unit => format!("unit {:016x}{:016x}", leaf.id.0, leaf.id.1),
    }
}

fn holes(device: &Arc<dyn Device>, range: ByteRange) -> blkcopy::block::Result<Holes> {
    let mut found = Holes { data_bytes: 0, hole_bytes: 0, extents: 0, complete: true };
    let mut rest = range;
    while !rest.is_empty() {
        if found.extents == EXTENTS_MAX {
            found.complete = false;
            break;
        }
        let extent = device.next_extent(rest)?;
        match extent.content {
            Content::Data => found.data_bytes += extent.len,
            Content::Hole | Content::Zero => found.hole_bytes += extent.len,
        }
        found.extents += 1;
        rest = rest.after(extent.len.max(1));
    }
    Ok(found)
}

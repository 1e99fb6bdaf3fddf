//! `cargo xtask bench copy`: against the tools a user would take instead, alternating A B A B in one run.
//!
//! Only ratios within one run mean much. Every run has a fresh destination, removed and synced outside the timed part;
//! a first round, not timed, warms memory up and compares the bytes with `cmp`.

use super::flags::{Common, size};
use super::programs::{build, machine, scratch};
use super::stats::{median, spread};
use super::table::Report;
use crate::tool::{Done, blkcopy, cannot, have, is_root, output, run, words};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Flags of `bench copy`.
#[derive(Args)]
pub(crate) struct Flags {
    /// How much is copied; at least 1MiB.
    #[arg(long = "size", value_name = "SIZE", default_value = "2GiB", value_parser = size)]
    size_bytes: u64,
    #[command(flatten)]
    common: Common,
}

/// One way to copy; `{s}` and `{d}` stand for source and destination.
struct Method {
    name: &'static str,
    program: &'static str,
    plain: &'static str,
    /// Instead of `plain` when the destination is a device.
    to_device: Option<&'static str>,
    ours: bool,
}

const fn peer(name: &'static str, program: &'static str, plain: &'static str) -> Method {
    Method { name, program, plain, to_device: None, ours: false }
}

const fn qemu(name: &'static str, plain: &'static str, to_device: &'static str) -> Method {
    Method { name, program: "qemu-img", plain, to_device: Some(to_device), ours: false }
}

const METHODS: [Method; 9] = [
    Method { name: "blkcopy", program: "", plain: "cp --quiet --yes {s} {d}", to_device: None, ours: true },
    peer("cp", "cp", "cp {s} {d}"),
    peer("cp --reflink=never", "cp", "cp --reflink=never {s} {d}"),
    peer("dd bs=1M", "dd", "dd if={s} of={d} bs=1M status=none"),
    peer("dd bs=1M direct", "dd", "dd if={s} of={d} bs=1M iflag=direct oflag=direct status=none"),
    qemu(
        "qemu-img convert",
        "qemu-img convert -f raw -O raw {s} {d}",
        "qemu-img convert -n -f raw -O raw {s} {d}",
    ),
    qemu(
        "qemu-img convert -C",
        "qemu-img convert -C -f raw -O raw {s} {d}",
        "qemu-img convert -n -C -f raw -O raw {s} {d}",
    ),
    qemu(
        "qemu-img convert -m 16 -W",
        "qemu-img convert -m 16 -W -f raw -O raw {s} {d}",
        "qemu-img convert -n -m 16 -W -f raw -O raw {s} {d}",
    ),
    peer("nbdcopy", "nbdcopy", "nbdcopy {s} {d}"),
];

#[derive(Default)]
struct Samples {
    wall_ms: Vec<f64>,
    cpu_s: Vec<f64>,
    source_cached: Option<u64>,
    dest_cached: Option<u64>,
}

/// Runs the rows and prints (and, with `--out`, writes) a table in Markdown.
pub(crate) fn copy(flags: &Flags) -> Done {
    if !build(&[])? {
        return Ok(false);
    }
    let mut report = Report::default();
    report.line(format_args!(
        "Copies of {} MiB of random data, {} runs, methods alternating; machine: {}",
        flags.size_bytes >> 20,
        flags.common.runs,
        machine(),
    ));
    for place in places(flags)? {
        for warm in [true, false] {
            for synced in [false, true] {
                let name = format!(
                    "{} {} {}",
                    place.name,
                    if warm { "warm" } else { "cold" },
                    if synced { "synced" } else { "not-synced" }
                );
                if flags.common.wants(&name) {
                    println!("==> {name}");
                    let measured = row(&name, &place, flags, warm, synced)?;
                    // As it goes: a run of all rows takes an hour, and may be stopped.
                    println!("{}", measured.text());
                    report.add(&measured);
                }
            }
        }
    }
    flags.common.save(report.text())?;
    Ok(true)
}

/// Where a row copies: prepared, and taken apart when dropped.
struct Place {
    name: &'static str,
    source: PathBuf,
    dest: PathBuf,
    device: bool,
    mounted: Option<PathBuf>,
    loops: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mounted) = &self.mounted {
            report(run(Command::new("umount").arg(mounted)));
        }
        for device in &self.loops {
            report(run(words("losetup -d").arg(device)));
        }
    }
}

fn report(done: Done) {
    if !done.as_ref().is_ok_and(|&ok| ok) {
        eprintln!("could not be taken apart: {done:?}");
    }
}

fn places(flags: &Flags) -> Result<Vec<Place>, String> {
    let mut list = Vec::new();
    for (name, mkfs) in [
        ("here", None),
        ("xfs", Some("mkfs.xfs -q -m reflink=1")),
        ("btrfs", Some("mkfs.btrfs -q")),
        ("loop", None),
    ] {
        // A part may begin with the place, and name no more than that.
        if !(flags.common.wants(name) || flags.common.rows.iter().any(|part| part.contains(name))) {
            continue;
        }
        let needs_root = name != "here";
        if needs_root && !(is_root() && have("losetup")) {
            println!("SKIPPED rows on {name}: loop devices need root");
            continue;
        }
        if let Some(mkfs) = mkfs
            && !have(mkfs.split(' ').next().unwrap_or_default())
        {
            println!("SKIPPED rows on {name}: no {mkfs}");
            continue;
        }
        println!("==> preparing {name}");
        list.push(prepare(name, mkfs, flags.size_bytes)?);
    }
    Ok(list)
}

fn prepare(name: &'static str, mkfs: Option<&str>, size: u64) -> Result<Place, String> {
    let folder = scratch()?;
    let at = |file: &str| folder.path().join(file);
    let (source, dest) = (at("source.img"), at("dest.img"));
    let mut place =
        Place { name, source, dest, device: false, mounted: None, loops: Vec::new(), _folder: folder };
    let within = |p: &Place| p._folder.path().to_owned();
    if let Some(mkfs) = mkfs {
        let (image, mounted) = (within(&place).join("fs.img"), within(&place).join("mnt"));
        output(words("truncate -s").arg((3 * size + (2 << 30)).to_string()).arg(&image))?;
        let device = attach(&mut place, &image)?;
        output(words(mkfs).arg(&device))?;
        fs::create_dir(&mounted).map_err(|e| cannot(&mounted, &e))?;
        output(Command::new("mount").arg(&device).arg(&mounted))?;
        place.source = mounted.join("source.img");
        place.dest = mounted.join("dest.img");
        place.mounted = Some(mounted);
    }
    let mut fill = words("dd if=/dev/urandom bs=1M iflag=fullblock,count_bytes conv=fsync status=none");
    output(fill.arg(format!("of={}", place.source.display())).arg(format!("count={size}")))?;
    if name == "loop" {
        output(words("fallocate -l").arg(size.to_string()).arg(&place.dest))?;
        let (s, d) = (place.source.clone(), place.dest.clone());
        place.source = PathBuf::from(attach(&mut place, &s)?);
        place.dest = PathBuf::from(attach(&mut place, &d)?);
        place.device = true;
    }
    Ok(place)
}

fn attach(place: &mut Place, file: &Path) -> Result<String, String> {
    let device = output(words("losetup --find --show --direct-io=on").arg(file))?.trim().to_owned();
    place.loops.push(device.clone());
    Ok(device)
}

fn row(name: &str, place: &Place, flags: &Flags, warm: bool, synced: bool) -> Result<Report, String> {
    let mut methods: Vec<(&Method, Samples, Option<String>)> = Vec::new();
    for m in METHODS.iter().filter(|m| m.ours || have(m.program)) {
        methods.push((m, Samples::default(), None));
    }
    for round in 0..=flags.common.runs {
        for (method, samples, failed) in methods.iter_mut().filter(|m| m.2.is_none()) {
            fresh(place, warm)?;
            match timed(method, place, synced) {
                Err(why) => *failed = Some(why),
                Ok(_) if round == 0 => {
                    // Bytes are compared once per method and row; the row's first round warms the memory up.
                    if !run(Command::new("cmp").arg(&place.source).arg(&place.dest))? {
                        *failed = Some("WRONG BYTES".to_owned());
                    }
                }
                Ok((wall_ms, cpu_s)) => {
                    samples.wall_ms.push(wall_ms);
                    samples.cpu_s.push(cpu_s);
                    samples.source_cached = cached(&place.source);
                    samples.dest_cached = cached(&place.dest);
                }
            }
        }
    }
    Ok(table(name, flags, &methods))
}

fn fresh(place: &Place, warm: bool) -> Result<(), String> {
    if !place.device && place.dest.exists() {
        fs::remove_file(&place.dest).map_err(|e| cannot(&place.dest, &e))?;
    }
    output(Command::new("sync").arg("--file-system").arg(&place.source))?;
    let drop = |path: &Path| {
        output(words("dd count=0 iflag=nocache status=none").arg(format!("if={}", path.display())))
    };
    drop(&place.source)?;
    if place.device {
        output(Command::new("sync").arg(&place.dest))?;
        drop(&place.dest)?;
    }
    if warm {
        output(words("dd of=/dev/null bs=1M status=none").arg(format!("if={}", place.source.display())))?;
    }
    Ok(())
}

/// Wall milliseconds and CPU seconds (user and system, of the command and its children) of one copy.
fn timed(method: &Method, place: &Place, synced: bool) -> Result<(f64, f64), String> {
    let line = if place.device { method.to_device.unwrap_or(method.plain) } else { method.plain };
    let line = line
        .replace("{s}", &place.source.display().to_string())
        .replace("{d}", &place.dest.display().to_string());
    let line = match (method.ours, synced) {
        (true, true) => format!("{} {line}", blkcopy().display()),
        (true, false) => format!("{} {line} --no-sync", blkcopy().display()),
        (false, true) => format!("{line} && sync {}", place.dest.display()),
        (false, false) => line,
    };
    // bash counts its children with getrusage; the clock runs around nothing but the command.
    let script = format!(
        "exec 8>&2 9>&1 >/dev/null; TIMEFORMAT='%3U %3S'; a=$EPOCHREALTIME\n\
         {{ time {{ {{ {line}; }} 2>&8; rc=$?; }}; }} 2>&9\n\
         b=$EPOCHREALTIME; echo $a $b $rc >&9"
    );
    let out = output(Command::new("bash").args(["-c", &script]).env("LC_ALL", "C"))?;
    let numbers: Vec<f64> = out.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    match numbers[..] {
        [user, system, begin, end, 0.0] => Ok(((end - begin) * 1e3, user + system)),
        [.., rc] => Err(format!("exit code {rc}")),
        [] => Err("no result".to_owned()),
    }
}

/// Bytes of a file in the page cache; `None` where fincore does not look (devices).
fn cached(path: &Path) -> Option<u64> {
    output(words("fincore --bytes --noheadings --output RES").arg(path)).ok()?.trim().parse().ok()
}

fn table(name: &str, flags: &Flags, methods: &[(&Method, Samples, Option<String>)]) -> Report {
    let gigabytes = Some(flags.size_bytes)
        .map_or(f64::NAN, |b| f64::from(u32::try_from(b >> 20).unwrap_or(u32::MAX)) / 953.674);
    let wall = |s: &Samples| median(&s.wall_ms);
    let best = methods
        .iter()
        .filter(|(m, s, _)| !m.ours && !s.wall_ms.is_empty())
        .min_by(|a, b| wall(&a.1).total_cmp(&wall(&b.1)));
    let ours = methods.iter().find(|(m, s, _)| m.ours && !s.wall_ms.is_empty());
    let mut report = Report::default();
    report.line(format_args!("\n### {name}\n"));
    let heads =
        ["method", "wall ms: median [min-max]", "CPU s/GB", "source cached MiB", "destination cached MiB"];
    report.head(&heads);
    for (method, s, failed) in methods {
        if let Some(why) = failed {
            let why = why.replace(['\n', '|'], " ");
            report.row(&[&method.name, &format_args!("failed: {why}"), &"", &"", &""]);
            continue;
        }
        let mib = |n: Option<u64>| n.map_or("-".to_owned(), |n| (n >> 20).to_string());
        let cpu = median(&s.cpu_s) / gigabytes;
        report.row(&[
            &method.name,
            &spread(&s.wall_ms, 1),
            &format_args!("{cpu:.3}"),
            &mib(s.source_cached),
            &mib(s.dest_cached),
        ]);
    }
    if let (Some(best), Some(ours)) = (best, ours) {
        let ratio = wall(&best.1) / wall(&ours.1);
        report.line(format_args!("\nbest peer ({}) / blkcopy: {ratio:.2}", best.0.name));
    }
    report
}

//! `cargo xtask bench mount`: the mount beside servers that do less, and beside `nbdfuse`, alternating A B A B in one run.
//!
//! A request is answered by another thread than the one that asks, so where the scheduler puts the two decides more than
//! either does: rows "on one core" hold client and server there, the others leave them alone. Servers run all the time and
//! sleep while it is not their turn.

use super::flags::Timed;
use super::mounted::{Mounted, Xfs};
use super::programs::{bench, build, last_core, machine, pinned, pinned_blkcopy, scratch_in};
use super::stats::{median, spread};
use super::table::Report;
use crate::tool::{Done, cannot, have, is_root, output, root, words};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What `cp` copies.
const CP_BYTES: u64 = 2 << 30;
/// Files that random reads and writes go to.
const RANDOM_MIB: u64 = 256;
/// Reader threads, of our mount and of the servers it is compared with.
const READERS: &str = "2";

/// One figure of one run, with what stands beside it.
struct Sample {
    figure: f64,
    p99: Option<f64>,
    /// Copies served inline and handed over, where the server counts them.
    inline: Option<(f64, f64)>,
}

impl Sample {
    const fn of(figure: f64) -> Self {
        Self { figure, p99: None, inline: None }
    }
}

/// How one method of a row is run once.
type Measure<'a> = Box<dyn Fn() -> Result<Sample, String> + 'a>;

/// Methods that take turns.
struct Row<'a> {
    name: String,
    unit: &'static str,
    methods: Vec<(&'static str, Measure<'a>)>,
    bars: Vec<Bar>,
    /// Not timed, after the round that warms up: an error names what is wrong.
    check: Option<Box<dyn Fn() -> Result<(), String> + 'a>>,
}

/// What a row should reach: the first method's figure over another's, or by itself.
struct Bar {
    what: &'static str,
    /// The method divided by, or dividing ours when `inverse`; `None`: the figure itself.
    against: Option<&'static str>,
    inverse: bool,
    limit: Option<Limit>,
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    fn text(self, reached: f64) -> String {
        let (word, bar, met) = match self {
            Self::AtMost(bar) => ("at most", bar, reached <= bar),
            Self::AtLeast(bar) => ("at least", bar, reached >= bar),
        };
        format!("{word} {bar}: {}", if met { "met" } else { "**missed**" })
    }
}

/// Runs the rows and prints (and, with `--out`, writes) tables in Markdown.
pub(crate) fn mount(flags: &Timed) -> Done {
    if !Path::new("/dev/fuse").exists() || !(is_root() || have("fusermount3")) {
        println!("SKIPPED bench mount: no /dev/fuse, or neither root nor fusermount3");
        return Ok(true);
    }
    if !build(&["fuse_floor", "copy_latency", "plain_copy"])? {
        return Ok(false);
    }
    let mut report = Report::default();
    let runs = flags.common.runs;
    report
        .line(format_args!("{runs} runs, methods alternating, {READERS} readers; machine: {}\n", machine()));
    let mut tables = Tables::default();
    for core in [true, false] {
        round_trips(flags, core, &mut tables)?;
    }
    clone(flags, &mut tables)?;
    memory(flags, &mut tables)?;
    for core in [true, false] {
        random(flags, core, &mut tables)?;
    }
    report.head(&["row", "method", "figure: median [min-max]", "p99 us", "inline", "handed over"]);
    report.add(&tables.figures);
    report.line("");
    report.head(&["row", "ratio", "median [min-max] of the rounds", "bar"]);
    report.add(&tables.ratios);
    println!("{}", report.text());
    flags.common.save(report.text())?;
    Ok(true)
}

#[derive(Default)]
struct Tables {
    figures: Report,
    ratios: Report,
}

/// Runs rows: round by round, row by row, method by method; the first round warms up.
fn measure(flags: &Timed, rows: &[Row<'_>], tables: &mut Tables) -> Result<(), String> {
    let mut all: Vec<Vec<Vec<Sample>>> =
        rows.iter().map(|row| row.methods.iter().map(|_| Vec::new()).collect()).collect();
    for round in 0..=flags.common.runs {
        for (row, samples) in rows.iter().zip(&mut all) {
            println!("==> {} (round {round})", row.name);
            for ((name, method), samples) in row.methods.iter().zip(samples) {
                let sample = method().map_err(|e| format!("{}, {name}: {e}", row.name))?;
                // As it goes: a run of all rows takes long, and may be stopped.
                println!("    {name}: {:.1} {}", sample.figure, row.unit);
                if round > 0 {
                    samples.push(sample);
                }
            }
            if round == 0
                && let Some(check) = &row.check
            {
                check().map_err(|e| format!("{}: {e}", row.name))?;
            }
        }
    }
    for (row, samples) in rows.iter().zip(&all) {
        figures(row, samples, &mut tables.figures);
        ratios(row, samples, &mut tables.ratios);
    }
    Ok(())
}

fn figures(row: &Row<'_>, all: &[Vec<Sample>], table: &mut Report) {
    for ((name, _), samples) in row.methods.iter().zip(all) {
        let median_of = |f: &dyn Fn(&Sample) -> Option<f64>, digits: usize| {
            let list: Vec<f64> = samples.iter().filter_map(f).collect();
            if list.is_empty() { "-".to_owned() } else { format!("{:.digits$}", median(&list)) }
        };
        let of = |f: fn(&Sample) -> f64| samples.iter().map(f).collect::<Vec<f64>>();
        table.row(&[
            &row.name,
            name,
            &format_args!("{} {}", spread(&of(|s| s.figure), 1), row.unit),
            &median_of(&|s| s.p99, 1),
            &median_of(&|s| s.inline.map(|i| i.0), 0),
            &median_of(&|s| s.inline.map(|i| i.1), 0),
        ]);
    }
}

fn ratios(row: &Row<'_>, all: &[Vec<Sample>], table: &mut Report) {
    for bar in &row.bars {
        let ours = all.first().map_or(&[][..], |s| s);
        let list: Vec<f64> = match bar.against {
            None => ours.iter().map(|s| s.figure).collect(),
            Some(name) => {
                let Some(at) = row.methods.iter().position(|(n, _)| *n == name) else { continue };
                let ratio = |a: f64, b: f64| if bar.inverse { b / a } else { a / b };
                ours.iter().zip(&all[at]).map(|(a, b)| ratio(a.figure, b.figure)).collect()
            }
        };
        let limit = bar.limit.map_or("-".to_owned(), |limit| limit.text(median(&list)));
        table.row(&[&row.name, &bar.what, &spread(&list, 2), &limit]);
    }
}

/// The core a row "on one core" is held on. Not the first one.
fn held(core: bool) -> Option<usize> {
    core.then(last_core)
}

fn floor(mode: &str, size: u64, core: bool) -> Result<Mounted, String> {
    let mut command = pinned(held(core), &bench("fuse_floor"));
    Mounted::start(|dir| {
        command.arg(mode).arg(dir).args([READERS, &size.to_string(), "clone,xattr"]);
        Ok(command)
    })
}

fn ours(volumes: &[String], core: bool) -> Result<Mounted, String> {
    let mut command = pinned_blkcopy(held(core));
    Mounted::start(|dir| {
        command.args(["mount", "--threads", READERS]).arg(dir).args(volumes);
        Ok(command)
    })
}

/// Both volumes of a mount from one kind of device.
fn pair(device: &str) -> Vec<String> {
    vec![format!("a={device}"), format!("b={device}")]
}

const fn where_(core: bool) -> &'static str {
    if core { ", on one core" } else { "" }
}

/// copy_file_range from `a` to `b`, one at a time.
fn copies<'a>(at: &'a Mounted, bytes: u64, flags: &Timed, core: bool) -> Measure<'a> {
    // About as many as a second holds, fewer where a copy takes long.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // between 100 and 10^9: seconds are bounded
    let count = (flags.seconds * if bytes > 1 << 20 { 5e3 } else { 5e4 }).clamp(100.0, 1e9) as u64;
    Box::new(move || {
        let mut command = pinned(held(core), &bench("copy_latency"));
        command.args([at.file("a"), at.file("b")]).args([bytes.to_string(), count.to_string()]);
        let out = output(&mut command)?;
        let inline = value(&out, "inline").zip(value(&out, "handed_over"));
        let p50 = value(&out, "p50_us").ok_or("copy_latency speaks otherwise")?;
        Ok(Sample { figure: p50, p99: value(&out, "p99_us"), inline })
    })
}

fn round_trips(flags: &Timed, core: bool, tables: &mut Tables) -> Result<(), String> {
    let name = |what: &str| format!("copy_file_range {what}{}", where_(core));
    let sizes = [("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("8 MiB", 8 << 20)];
    let handed = name("4 KiB between files, handed over");
    if !sizes.iter().any(|(size, _)| flags.common.wants(&name(&format!("{size}, null"))))
        && !flags.common.wants(&handed)
    {
        return Ok(());
    }
    let empty = floor("empty", 1 << 30, core)?;
    let null = ours(&pair("null:1GiB"), core)?;
    let folder = scratch_in(&fast_place())?;
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    for file in [&a, &b] {
        let mut fill = words("dd if=/dev/urandom bs=1M count=64 status=none");
        output(fill.arg(format!("of={}", file.display())))?;
    }
    let files = ours(&[format!("a={}", a.display()), format!("b={}", b.display())], core)?;
    let kernel = Mounted::nothing(folder.path());
    let mut rows = Vec::new();
    for (size, bytes) in sizes {
        rows.push(Row {
            name: name(&format!("{size}, null")),
            unit: "us",
            methods: vec![
                ("blkcopy mount", copies(&null, bytes, flags, core)),
                ("empty server", copies(&empty, bytes, flags, core)),
            ],
            bars: vec![Bar {
                what: "p50, blkcopy / empty server",
                against: Some("empty server"),
                inverse: false,
                limit: Some(Limit::AtMost(1.3)),
            }],
            check: None,
        });
    }
    rows.push(Row {
        name: handed,
        unit: "us",
        methods: vec![
            ("blkcopy mount", copies(&files, 4096, flags, core)),
            ("empty server", copies(&empty, 4096, flags, core)),
            ("the files, without a mount", copies(&kernel, 4096, flags, core)),
        ],
        bars: vec![
            Bar { what: "p50 us", against: None, inverse: false, limit: Some(Limit::AtMost(60.0)) },
            Bar {
                what: "p50, blkcopy / empty server",
                against: Some("empty server"),
                inverse: false,
                limit: None,
            },
        ],
        check: None,
    });
    rows.retain(|row| flags.common.wants(&row.name));
    measure(flags, &rows, tables)
}

/// Memory where there is some to mount, so that a copy handed over costs little itself.
fn fast_place() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() { shm } else { root().join("target") }
}

/// Milliseconds of `cp SOURCE DEST`, from start to exit.
fn cp<'a>(source: PathBuf, dest: PathBuf) -> Measure<'a> {
    Box::new(move || {
        let start = Instant::now();
        output(Command::new("cp").args([&source, &dest]))?;
        Ok(Sample::of(start.elapsed().as_secs_f64() * 1e3))
    })
}

/// An error when the files differ.
fn same(source: &Path, dest: &Path) -> Result<(), String> {
    output(Command::new("cmp").args([source, dest])).map(drop)
}

fn fill(file: &Path, bytes: u64) -> Result<(), String> {
    let mut fill = words("dd if=/dev/urandom bs=1M iflag=fullblock,count_bytes conv=notrunc status=none");
    output(fill.arg(format!("of={}", file.display())).arg(format!("count={bytes}"))).map(drop)
}

fn clone(flags: &Timed, tables: &mut Tables) -> Result<(), String> {
    let name = "cp 2 GiB, files that share extents (XFS)";
    if !flags.common.wants(name) {
        return Ok(());
    }
    if let Some(missing) = ["losetup", "mkfs.xfs", "cp", "cmp", "dd"].into_iter().find(|p| !have(p)) {
        println!("SKIPPED {name}: no {missing}");
        return Ok(());
    }
    if !is_root() {
        println!("SKIPPED {name}: loop devices need root");
        return Ok(());
    }
    println!("==> preparing {name}");
    let xfs = Xfs::make(3 * CP_BYTES + (2 << 30))?;
    let (a, b) = (xfs.path().join("a.img"), xfs.path().join("b.img"));
    for file in [&a, &b] {
        fill(file, CP_BYTES)?;
    }
    output(Command::new("sync").arg("--file-system").arg(&a))?;
    let mount = ours(&[format!("a={}", a.display()), format!("b={}", b.display())], false)?;
    let row = Row {
        name: name.to_owned(),
        unit: "ms",
        methods: vec![
            ("blkcopy mount", cp(mount.file("a"), mount.file("b"))),
            ("the file system itself", cp(a.clone(), xfs.path().join("c.img"))),
        ],
        bars: vec![
            Bar { what: "ms", against: None, inverse: false, limit: Some(Limit::AtMost(50.0)) },
            Bar {
                what: "time, blkcopy / the file system itself",
                against: Some("the file system itself"),
                inverse: false,
                limit: None,
            },
        ],
        check: Some(Box::new(|| same(&mount.file("a"), &mount.file("b")))),
    };
    measure(flags, &[row], tables)
}

fn memory(flags: &Timed, tables: &mut Tables) -> Result<(), String> {
    let name = "cp 2 GiB, memory";
    if !flags.common.wants(name) {
        return Ok(());
    }
    // Two volumes, two of nbdkit's, and two buffers of the plain copy.
    let need = 6 * (CP_BYTES >> 10) + (2 << 20);
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:")).unwrap_or_default();
    let free: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    if free < need {
        println!("SKIPPED {name}: needs {} MiB of free memory, has {}", need >> 10, free >> 10);
        return Ok(());
    }
    println!("==> preparing {name}");
    let mount = ours(&pair("mem:2GiB"), false)?;
    let nbd = nbdfuse(name, CP_BYTES).transpose()?.zip(nbdfuse(name, CP_BYTES).transpose()?);
    fill(&mount.file("a"), CP_BYTES)?;
    let mut methods: Vec<(&str, Measure<'_>)> = vec![
        ("blkcopy mount", cp(mount.file("a"), mount.file("b"))),
        (
            "plain memory copy",
            Box::new(|| {
                let out = output(Command::new(bench("plain_copy")).arg(CP_BYTES.to_string()))?;
                Ok(Sample::of(value(&out, "ms").ok_or("plain_copy speaks otherwise")?))
            }),
        ),
    ];
    if let Some((a, b)) = &nbd {
        fill(&a.file("a"), CP_BYTES)?;
        methods.push(("nbdfuse, nbdkit memory", cp(a.file("a"), b.file("a"))));
    }
    let row = Row {
        name: name.to_owned(),
        unit: "ms",
        methods,
        bars: vec![
            Bar {
                what: "bytes/s, blkcopy / plain memory copy",
                against: Some("plain memory copy"),
                inverse: true,
                limit: Some(Limit::AtLeast(0.8)),
            },
            Bar {
                what: "bytes/s, blkcopy / nbdfuse",
                against: Some("nbdfuse, nbdkit memory"),
                inverse: true,
                limit: Some(Limit::AtLeast(10.0)),
            },
        ],
        check: Some(Box::new(|| {
            if let Some((a, b)) = &nbd {
                same(&a.file("a"), &b.file("a"))?;
            }
            same(&mount.file("a"), &mount.file("b"))
        })),
    };
    measure(flags, &[row], tables)
}

/// nbdfuse over nbdkit's memory, its file called `a`. `None`, aloud: a program is missing.
fn nbdfuse(row: &str, bytes: u64) -> Option<Result<Mounted, String>> {
    if let Some(missing) = ["nbdfuse", "nbdkit"].into_iter().find(|p| !have(p)) {
        println!("SKIPPED nbdfuse in {row}: no {missing}");
        return None;
    }
    Some(Mounted::nbdfuse(bytes))
}

/// Thousands of random 4 KiB operations a second, by fio.
fn fio<'a>(file: PathBuf, rw: &'static str, engine: &'static str, flags: &Timed, core: bool) -> Measure<'a> {
    let runtime = format!("--runtime={:.0}ms", flags.seconds * 1e3);
    Box::new(move || {
        let mut command = pinned(held(core), Path::new("fio"));
        command.args(["--name=x", "--bs=4k", "--time_based", "--norandommap", "--randrepeat=0"]);
        command.args(["--fallocate=none", "--output-format=json", &runtime]);
        command.args([format!("--size={RANDOM_MIB}m"), format!("--rw={rw}")]);
        command.arg(format!("--filename={}", file.display())).args(words(engine).get_args());
        let out = output(&mut command)?;
        // Warnings may stand before the report.
        let at = out.find('{').ok_or("fio printed no report")?;
        let report: serde_json::Value = serde_json::from_str(&out[at..]).map_err(|e| cannot("fio", &e))?;
        let side = &report["jobs"][0][rw.trim_start_matches("rand")];
        let iops = side["iops"].as_f64().filter(|iops| *iops > 0.0).ok_or("fio did nothing")?;
        let p99 = side["clat_ns"]["percentile"]["99.000000"].as_f64();
        Ok(Sample { figure: iops / 1e3, p99: p99.map(|ns| ns / 1e3), inline: None })
    })
}

fn random(flags: &Timed, core: bool, tables: &mut Tables) -> Result<(), String> {
    let loads = [
        ("read", "randread", "one at a time", "fio --ioengine=psync"),
        ("write", "randwrite", "one at a time", "fio --ioengine=psync"),
        ("read", "randread", "depth 16", "fio --ioengine=io_uring --iodepth=16 --direct=1"),
        ("write", "randwrite", "depth 16", "fio --ioengine=io_uring --iodepth=16 --direct=1"),
    ];
    let name = |what: &str, depth: &str| format!("4 KiB random {what}, {depth}{}", where_(core));
    // Depth is for many: held on one core it would say nothing.
    let loads: Vec<_> = loads
        .into_iter()
        .filter(|(what, _, depth, _)| {
            (*depth != "depth 16" || !core) && flags.common.wants(&name(what, depth))
        })
        .collect();
    let Some((first, ..)) = loads.first() else { return Ok(()) };
    if !have("fio") {
        println!("SKIPPED {}: no fio", name(first, "any depth"));
        return Ok(());
    }
    let bytes = RANDOM_MIB << 20;
    let mount = ours(&pair(&format!("mem:{RANDOM_MIB}MiB")), core)?;
    let minimal = floor("minimal", bytes, core)?;
    // Where the system puts it: three processes on one core would not be how anybody runs it.
    let nbd = if core { None } else { nbdfuse("4 KiB random", bytes).transpose()? };
    fill(&mount.file("a"), bytes)?;
    if let Some(nbd) = &nbd {
        fill(&nbd.file("a"), bytes)?;
    }
    let mut rows = Vec::new();
    for (what, rw, depth, engine) in loads {
        let mut methods = vec![
            ("blkcopy mount", fio(mount.file("a"), rw, engine, flags, core)),
            ("minimal server", fio(minimal.file("a"), rw, engine, flags, core)),
        ];
        if let Some(nbd) = &nbd {
            methods.push(("nbdfuse, nbdkit memory", fio(nbd.file("a"), rw, engine, flags, core)));
        }
        let bar = |what, against, limit| Bar {
            what,
            against: Some(against),
            inverse: false,
            limit: Some(Limit::AtLeast(limit)),
        };
        rows.push(Row {
            name: name(what, depth),
            unit: "k/s",
            methods,
            bars: vec![
                bar("operations/s, blkcopy / minimal server", "minimal server", 0.9),
                bar("operations/s, blkcopy / nbdfuse", "nbdfuse, nbdkit memory", 2.0),
            ],
            check: None,
        });
    }
    measure(flags, &rows, tables)
}

/// The number of `key=` in a line of `key=value`.
fn value(line: &str, key: &str) -> Option<f64> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_read_the_way_they_say() {
        assert_eq!(Limit::AtMost(1.3).text(1.3), "at most 1.3: met");
        assert_eq!(Limit::AtMost(50.0).text(50.1), "at most 50: **missed**");
        assert_eq!(Limit::AtLeast(0.9).text(0.9), "at least 0.9: met");
        assert_eq!(Limit::AtLeast(2.0).text(1.99), "at least 2: **missed**");
        // No figure is not a bar met.
        assert_eq!(Limit::AtLeast(2.0).text(f64::NAN), "at least 2: **missed**");
    }

    #[test]
    fn ratios_are_of_each_round_and_of_speeds_where_times_were_taken() {
        let never = || -> Measure<'static> { Box::new(|| Ok(Sample::of(0.0))) };
        let bar = |inverse, against, limit| Bar { what: "it", against, inverse, limit };
        let row = Row {
            name: "row".to_owned(),
            unit: "ms",
            methods: vec![("ours", never()), ("theirs", never())],
            bars: vec![
                bar(false, Some("theirs"), Some(Limit::AtMost(1.0))),
                bar(true, Some("theirs"), Some(Limit::AtLeast(3.0))),
                bar(false, None, None),
                bar(false, Some("absent"), None),
            ],
            check: None,
        };
        let list = |numbers: [f64; 3]| numbers.map(Sample::of).into_iter().collect::<Vec<_>>();
        let mut table = Report::default();
        ratios(&row, &[list([1.0, 2.0, 4.0]), list([2.0, 8.0, 4.0])], &mut table);
        let expected = "| row | it | 0.50 [0.25-1.00] | at most 1: met |\n\
                        | row | it | 2.00 [1.00-4.00] | at least 3: **missed** |\n\
                        | row | it | 2.00 [1.00-4.00] | - |\n";
        assert_eq!(table.text(), expected);
    }

    #[test]
    fn lines_of_values_are_read() {
        assert_eq!(value("p50_us=1.5 p99_us=2", "p50_us"), Some(1.5));
        assert_eq!(value("p50_us=1.5", "p50"), None);
    }
}

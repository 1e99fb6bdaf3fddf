//! `cargo xtask bench target`: the NVMe/TCP target and host driver over loopback, one core for each, beside what else is here.
//!
//! The generator is `benches/load.rs` (our host driver) for every row, so that targets are compared by one hand; nbdkit, which
//! speaks another protocol, is driven by fio. CPU of the target's process stands beside the speed: where the generator's core is
//! the limit, that is the figure that counts. When SPDK's programs are on PATH, its target takes the same loads in turn with
//! ours, and `spdk_nvme_perf` drives both. The target whose turn it is not is stopped: SPDK's keeps its core busy always.

use super::flags::Timed;
use super::programs::{bench, build, kernel_and_load, pinned, pinned_blkcopy, scratch};
use super::stats::{median, spread};
use super::table::Report;
use crate::spdk::{Bdev, NQN, Theirs, huge_pages, transport};
use crate::tool::{Done, cannot, have, is_root, output, words};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds that `benches/load.rs` works before it measures.
const WARM_UP: f64 = 0.2;
/// The same of `spdk_nvme_perf`, which counts whole seconds.
const PERF_WARM_UP: f64 = 1.0;
/// What SPDK's programs take at most, two namespaces of 256 MiB among it, and what they take for two of 1 GiB.
const HUGE_MIB: u64 = 1536;
const HUGE_MIB_CLONE: u64 = 2560;

const TARGET_CORE: usize = 0;
const GENERATOR_CORE: usize = 1;

/// One kind of load: operation, bytes, depth, ranges of a copy, and the namespaces it goes from and to.
struct Row {
    name: &'static str,
    load: &'static str,
    /// What SPDK's target is asked for instead, where it cannot do the same: one range of its own namespace is all it copies.
    theirs: Option<&'static str>,
    ranges: &'static str,
    from: u32,
    to: u32,
}

const fn io(name: &'static str, load: &'static str) -> Row {
    Row { name, load, theirs: Some(load), ranges: "1", from: 1, to: 1 }
}

const ROWS: [Row; 12] = [
    io("4 KiB random read, depth 1", "read 4096 1"),
    io("4 KiB random read, depth 32", "read 4096 32"),
    io("4 KiB random read, depth 128", "read 4096 128"),
    io("4 KiB random write, depth 1", "write 4096 1"),
    io("4 KiB random write, depth 32", "write 4096 32"),
    io("4 KiB random write, depth 128", "write 4096 128"),
    io("128 KiB random read, depth 8", "read 131072 8"),
    io("128 KiB random write, depth 8", "write 131072 8"),
    io("Copy in one namespace, 128 KiB, depth 8", "copy 131072 8"),
    io("Copy in one namespace, 16 MiB, depth 1", "copy 16777216 1"),
    Row {
        ranges: "128",
        theirs: Some("copy 4096 32"),
        ..io(
            "Copy, scattered ranges of 4 KiB (128 a command, depth 8; SPDK: 1 a command, depth 32)",
            "copy 4096 8",
        )
    },
    Row { to: 2, theirs: None, ..io("Copy to another namespace, 128 KiB, depth 8", "copy 131072 8") },
];

/// Who drives whom.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pair {
    LoadOurs,
    LoadTheirs,
    PerfOurs,
    PerfTheirs,
}

impl Pair {
    const ALL: [Self; 4] = [Self::LoadOurs, Self::LoadTheirs, Self::PerfOurs, Self::PerfTheirs];

    const fn name(self) -> &'static str {
        match self {
            Self::LoadOurs => "blkcopy -> blkcopy",
            Self::LoadTheirs => "blkcopy -> SPDK",
            Self::PerfOurs => "SPDK -> blkcopy",
            Self::PerfTheirs => "SPDK -> SPDK",
        }
    }

    const fn perf(self) -> bool {
        matches!(self, Self::PerfOurs | Self::PerfTheirs)
    }

    const fn theirs(self) -> bool {
        matches!(self, Self::LoadTheirs | Self::PerfTheirs)
    }
}

/// What one run of the generator said.
#[derive(Default)]
struct Samples {
    iops: Vec<f64>,
    mb_s: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    generator_us: Vec<f64>,
    target_us: Vec<f64>,
}

/// Runs the rows and prints (and, with `--out`, writes) tables in Markdown.
pub(crate) fn target(flags: &Timed) -> Done {
    if !build(&["load"])? {
        return Ok(false);
    }
    let mut report = Report::default();
    report.line(format_args!(
        "Target on core {TARGET_CORE}, generator on core {GENERATOR_CORE}, {} runs of {} s; {}\n",
        flags.common.runs,
        flags.seconds,
        kernel_and_load(),
    ));
    let chosen = &flags.common.rows;
    rows(&mut report, flags)?;
    if chosen.is_empty() {
        idle(&mut report)?;
    }
    if chosen.is_empty() || chosen.iter().any(|row| row == "clones") {
        clones(&mut report, flags)?;
    }
    println!("{}", report.text());
    flags.common.save(report.text())?;
    Ok(true)
}

/// A target of ours, pinned to core 0.
struct Target {
    child: Child,
    base: String,
}

impl Target {
    fn start(devices: &[&str]) -> Result<Self, String> {
        let mut command = pinned_blkcopy(Some(TARGET_CORE));
        command.args(["serve", "--listen", "127.0.0.1:0", "--nqn", NQN]).args(devices).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| cannot(&command, &e))?;
        let out = child.stdout.take().expect("piped above");
        let mut this = Self { child, base: String::new() };
        for line in BufReader::new(out).lines() {
            let line = line.map_err(|e| cannot("blkcopy serve", &e))?;
            let Some(rest) = line.strip_prefix("listening on ") else { continue };
            let (address, rest) = rest.split_once(": ").ok_or("blkcopy serve speaks otherwise")?;
            let nqn = rest.rsplit(' ').next().unwrap_or_default();
            this.base = format!("nvme-tcp://{address}/{nqn}?nsid=");
            return Ok(this);
        }
        Err("blkcopy serve ended before it listened".to_owned())
    }

    fn url(&self, nsid: u32) -> String {
        format!("{}{nsid}", self.base)
    }

    fn port(&self) -> u16 {
        let authority = self.base.split('/').nth(2).unwrap_or_default();
        authority.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default()
    }

    fn cpu(&self) -> f64 {
        cpu_seconds(self.child.id())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It has nothing to lose here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU seconds a process has used, user and system. 0 when it is gone.
fn cpu_seconds(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in brackets, may hold blanks: what follows it is fields 3 and on; 14 and 15 are ticks of 10 ms.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// SPDK's target with `namespaces` of `mib` each, in huge pages, which takes `need` MiB of them in all; stopped. `None`, aloud:
/// it cannot be had.
fn spdk_target(namespaces: usize, mib: u64, need: u64) -> Result<Option<Theirs>, String> {
    if let Some(missing) = ["nvmf_tgt", "spdk_nvme_perf"].into_iter().find(|p| !have(p)) {
        println!("SKIPPED SPDK beside ours: no {missing} on PATH");
        return Ok(None);
    }
    if !huge_pages(need) {
        let pages = need / 2;
        println!(
            "SKIPPED SPDK beside ours: too few free huge pages: echo {pages} > /proc/sys/vm/nr_hugepages"
        );
        return Ok(None);
    }
    let bdevs: Vec<Bdev> = (0..namespaces).map(|_| Bdev::Malloc(mib, 512)).collect();
    let theirs = Theirs::start(&bdevs, true)?;
    theirs.pause()?;
    Ok(Some(theirs))
}

fn rows(report: &mut Report, flags: &Timed) -> Result<(), String> {
    let wanted: Vec<&Row> = ROWS.iter().filter(|r| flags.common.wants(r.name)).collect();
    let ours = Target::start(&["mem:256MiB", "mem:256MiB"])?;
    let theirs = spdk_target(2, 256, HUGE_MIB)?;
    let mut all: Vec<[Samples; 4]> = wanted.iter().map(|_| Default::default()).collect();
    let mut nbd = Samples::default();
    let nbdkit = have("nbdkit") && have("fio") && flags.common.rows.is_empty();
    for round in 0..=flags.common.runs {
        for (row, samples) in wanted.iter().zip(&mut all) {
            for (pair, samples) in Pair::ALL.into_iter().zip(samples) {
                let Some(said) = measure(pair, &ours, theirs.as_ref(), row, flags.seconds)? else { continue };
                println!("==> {}, {} (round {round})", row.name, pair.name());
                // The first round touches all memory and is not counted.
                if round > 0 {
                    samples.take(&said);
                }
            }
        }
        if nbdkit && round > 0 {
            println!("==> nbdkit (round {round})");
            nbd.iops.push(nbdkit_iops(flags.seconds)?);
        }
    }
    report.head(&[
        "load",
        "host -> target",
        "operations/s: median [min-max]",
        "MB/s",
        "p50 us",
        "p99 us",
        "target CPU us/op",
        "generator CPU us/op",
    ]);
    for (row, samples) in wanted.iter().zip(&all) {
        for (pair, s) in Pair::ALL.into_iter().zip(samples).filter(|(_, s)| !s.iops.is_empty()) {
            report.row(&[
                &row.name,
                &pair.name(),
                &spread(&s.iops, 0),
                &format_args!("{:.0}", median(&s.mb_s)),
                &format_args!("{:.1}", median(&s.p50_us)),
                &format_args!("{:.1}", median(&s.p99_us)),
                &format_args!("{:.2}", median(&s.target_us)),
                &format_args!("{:.2}", median(&s.generator_us)),
            ]);
        }
    }
    if nbdkit {
        let iops = median(&nbd.iops);
        report.row(&[
            &"4 KiB random read, depth 32",
            &"fio -> nbdkit memory",
            &format_args!("{iops:.0}"),
            &"",
            &"",
            &"",
            &"",
            &"",
        ]);
    } else {
        println!("SKIPPED nbdkit: it and fio are not both here, or rows were chosen");
    }
    if theirs.is_some() {
        ratios(report, &wanted, &all);
    }
    theirs.map_or(Ok(()), Theirs::end)
}

/// Ours over theirs, each round for itself.
fn ratios(report: &mut Report, rows: &[&Row], all: &[[Samples; 4]]) {
    report.line("");
    report.head(&[
        "blkcopy / SPDK",
        "targets, our host: bytes/s",
        "targets, SPDK's host: bytes/s",
        "p50",
        "p99",
        "hosts, our target: bytes/s",
        "hosts, SPDK's target: bytes/s",
    ]);
    for (row, [load_ours, load_theirs, perf_ours, perf_theirs]) in rows.iter().zip(all) {
        let Some(theirs) = row.theirs else { continue };
        let speed = |a: &Samples, b: &Samples| spread(&quotients(&a.mb_s, &b.mb_s), 2);
        // Latencies by SPDK's host, where it takes part; those of different commands say nothing.
        let (a, b) = match perf_ours.iops.is_empty() {
            false => (perf_ours, perf_theirs),
            true => (load_ours, load_theirs),
        };
        let latency = |a: &[f64], b: &[f64]| match theirs == row.load {
            true => spread(&quotients(a, b), 2),
            false => "-".to_owned(),
        };
        report.row(&[
            &row.name,
            &speed(load_ours, load_theirs),
            &speed(perf_ours, perf_theirs),
            &latency(&a.p50_us, &b.p50_us),
            &latency(&a.p99_us, &b.p99_us),
            &speed(load_ours, perf_ours),
            &speed(load_theirs, perf_theirs),
        ]);
    }
}

fn quotients(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

/// One run: the generator's `key=value` words and the target's CPU microseconds for each operation. `None`: this pair does not
/// have that row.
fn measure(
    pair: Pair,
    ours: &Target,
    theirs: Option<&Theirs>,
    row: &Row,
    seconds: f64,
) -> Result<Option<Vec<(String, f64)>>, String> {
    let load = if pair.theirs() { row.theirs } else { Some(row.load) };
    let Some(load) = load.filter(|l| !(pair.perf() && l.starts_with("copy"))) else { return Ok(None) };
    let busy = if pair.perf() { seconds.ceil() + PERF_WARM_UP } else { seconds + WARM_UP };
    let generator = |port, url: &dyn Fn(u32) -> String, ranges| match pair.perf() {
        true => perf(load, seconds, port),
        false => generate(load, row, ranges, seconds, url),
    };
    if !pair.theirs() {
        if pair.perf() && theirs.is_none() {
            return Ok(None);
        }
        let before = ours.cpu();
        let said = generator(ours.port(), &|nsid| ours.url(nsid), row.ranges)?;
        // It has worked while the generator did, warm-up too, at the measured pace.
        return Ok(Some(with_target(said, (ours.cpu() - before) / busy)));
    }
    let Some(theirs) = theirs else { return Ok(None) };
    theirs.resume()?;
    let (before, begun) = (cpu_seconds(theirs.id()), Instant::now());
    let said = generator(theirs.port(), &|nsid| theirs.url(nsid), "1");
    // It is as busy when there is nothing to do.
    let share = (cpu_seconds(theirs.id()) - before) / begun.elapsed().as_secs_f64();
    theirs.pause()?;
    Ok(Some(with_target(said?, share)))
}

/// One run of our generator.
fn generate(
    load: &str,
    row: &Row,
    ranges: &str,
    seconds: f64,
    url: &dyn Fn(u32) -> String,
) -> Result<Vec<(String, f64)>, String> {
    let mut command = pinned(Some(GENERATOR_CORE), &bench("load"));
    command.arg(url(row.from)).args(load.split(' ')).arg(seconds.to_string()).arg(ranges);
    if row.to != row.from {
        command.arg(url(row.to));
    }
    let out = output(&mut command)?;
    let pairs = out.split_whitespace().filter_map(|word| word.split_once('='));
    Ok(pairs.filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect())
}

/// One run of `spdk_nvme_perf` on namespace 1 of a target.
fn perf(load: &str, seconds: f64, port: u16) -> Result<Vec<(String, f64)>, String> {
    let [what, bytes, depth] = load.split(' ').collect::<Vec<_>>()[..] else {
        return Err(format!("no load: {load}"));
    };
    let times = format!("-t {} -a {PERF_WARM_UP}", seconds.ceil());
    let mut command =
        words(&format!("spdk_nvme_perf -c 0x2 -L -w rand{what} -o {bytes} -q {depth} {times} -r"));
    command.arg(format!("{} subnqn:{NQN} ns:1", transport(port)));
    let out = output(&mut command)?;
    perf_said(&out).ok_or_else(|| format!("spdk_nvme_perf said {out}"))
}

/// The figures in what `spdk_nvme_perf -L` prints about one namespace.
fn perf_said(out: &str) -> Option<Vec<(String, f64)>> {
    let total = out.lines().find_map(|line| line.strip_prefix("Total")?.split_once(':'))?.1;
    let mut numbers = total.split_whitespace().map(|n| n.parse::<f64>().ok());
    let (iops, mib_s) = (numbers.next()??, numbers.next()??);
    let at = |part: &str| -> Option<f64> {
        let line = out.lines().find_map(|line| line.trim().strip_prefix(part)?.split_once(':'))?;
        line.1.trim().strip_suffix("us")?.parse().ok()
    };
    let said = [
        ("iops", iops),
        ("mb_s", mib_s * 1.048_576),
        ("p50_us", at("50.00000%")?),
        ("p99_us", at("99.00000%")?),
        // It looks for completions without a pause.
        ("cpu_us", 1e6 / iops),
    ];
    Some(said.map(|(key, value)| (key.to_owned(), value)).to_vec())
}

/// Adds the target's CPU microseconds for each operation. `share`: CPU seconds it uses in a second.
fn with_target(mut said: Vec<(String, f64)>, share: f64) -> Vec<(String, f64)> {
    let iops = said.iter().find(|(key, _)| key == "iops").map_or(f64::NAN, |(_, n)| *n);
    said.push(("target_us".to_owned(), share / iops * 1e6));
    said
}

impl Samples {
    fn take(&mut self, said: &[(String, f64)]) {
        for (key, value) in said {
            match key.as_str() {
                "iops" => self.iops.push(*value),
                "mb_s" => self.mb_s.push(*value),
                "p50_us" => self.p50_us.push(*value),
                "p99_us" => self.p99_us.push(*value),
                "cpu_us" => self.generator_us.push(*value),
                "target_us" => self.target_us.push(*value),
                _ => {}
            }
        }
    }
}

fn nbdkit_iops(seconds: f64) -> Result<f64, String> {
    let socket = std::env::temp_dir().join(format!("blkcopy-bench-{}.nbd", std::process::id()));
    let mut command = pinned(Some(TARGET_CORE), Path::new("nbdkit"));
    command.args(["--foreground", "--unix"]).arg(&socket).args(["memory", "256M"]);
    let mut server = command.spawn().map_err(|e| cannot(&command, &e))?;
    let begun = Instant::now();
    while !socket.exists() && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut fio = pinned(Some(GENERATOR_CORE), Path::new("fio"));
    fio.args(["--name=x", "--ioengine=nbd", "--rw=randread", "--bs=4k", "--iodepth=32", "--time_based"]);
    fio.args(["--size=256M", "--minimal", &format!("--runtime={}", seconds.ceil())]);
    fio.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
    let out = output(&mut fio);
    let _ = server.kill();
    let _ = server.wait();
    let _ = std::fs::remove_file(&socket);
    // fio(1), terse output 3: field 8 is the IOPS of reads.
    let out = out?;
    out.split(';').nth(7).and_then(|n| n.parse().ok()).ok_or_else(|| format!("fio said {out}"))
}

/// CPU of a target with a host attached that asks nothing.
fn idle(report: &mut Report) -> Result<(), String> {
    println!("==> idle");
    let target = Target::start(&["mem:256MiB"])?;
    let mut host = Command::new(bench("load"));
    host.arg(target.url(1)).args(["read", "4096", "1", "0.1"]);
    output(&mut host)?;
    let before = target.cpu();
    std::thread::sleep(Duration::from_secs(5));
    report.line(format_args!("\nIdle for 5 s: {:.2} s of CPU.", target.cpu() - before));
    let Some(theirs) = spdk_target(1, 256, HUGE_MIB)? else { return Ok(()) };
    theirs.resume()?;
    let before = cpu_seconds(theirs.id());
    std::thread::sleep(Duration::from_secs(5));
    report.line(format_args!("SPDK's: {:.2} s.", cpu_seconds(theirs.id()) - before));
    theirs.end()
}

/// Makes 1 GiB that nothing can compress or share; takes `of=`.
const RANDOM_GIB: &str = "dd if=/dev/urandom bs=1M count=1024 iflag=fullblock conv=fsync status=none";

/// Clones of 1 GiB from one namespace to another: by Copy, by read and write through the host, and a local `cp` beside them.
fn clones(report: &mut Report, flags: &Timed) -> Result<(), String> {
    report.line("");
    report.head(&[
        "clone of 1 GiB between two namespaces",
        "by Copy, ms",
        "sent + received, bytes",
        "read and write, ms",
        "local cp, ms",
    ]);
    let folder = scratch()?;
    clone_row(report, flags, "memory", &["mem:1GiB", "mem:1GiB"], None)?;
    clone_row(report, flags, "files", &[], Some(folder.path()))?;
    if !(is_root() && have("mkfs.xfs") && have("losetup")) {
        println!("SKIPPED files that share extents: needs root, mkfs.xfs and loop devices");
        return Ok(());
    }
    let (image, mounted) = (folder.path().join("fs.img"), folder.path().join("mnt"));
    output(words("truncate -s 6G").arg(&image))?;
    output(words("mkfs.xfs -q -m reflink=1").arg(&image))?;
    std::fs::create_dir(&mounted).map_err(|e| cannot(&mounted, &e))?;
    output(words("mount -o loop").arg(&image).arg(&mounted))?;
    let done = clone_row(report, flags, "files that share extents (XFS)", &[], Some(&mounted));
    output(words("umount").arg(&mounted))?;
    done
}

fn clone_row(
    report: &mut Report,
    flags: &Timed,
    name: &str,
    devices: &[&str],
    folder: Option<&Path>,
) -> Result<(), String> {
    println!("==> clone, {name}");
    let files = folder.map(|f| ["a", "b"].map(|n| f.join(n).display().to_string()));
    if let Some([a, b]) = &files {
        output(words(RANDOM_GIB).arg(format!("of={a}")))?;
        output(words("truncate -s 1G").arg(b))?;
    }
    let named: Vec<&str> = match &files {
        Some(files) => files.iter().map(String::as_str).collect(),
        None => devices.to_vec(),
    };
    let target = Target::start(&named)?;
    let theirs = if name == "memory" { spdk_target(2, 1024, HUGE_MIB_CLONE)? } else { None };
    if files.is_none() {
        // Memory that was never written is a hole, and a hole is copied in no time.
        let full = scratch()?;
        let full = full.path().join("full").display().to_string();
        output(words(RANDOM_GIB).arg(format!("of={full}")))?;
        clone("never", &full, &target.url(1))?;
        clone("never", &full, &target.url(2))?;
        if let Some(theirs) = &theirs {
            theirs.resume()?;
            let done = clone("never", &full, &theirs.url(1));
            theirs.pause()?;
            done?;
        }
    }
    let (mut copy, mut hand, mut local, mut wire) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
    let mut their_hand = Vec::new();
    for round in 0..=flags.common.runs {
        for (offload, times) in [("require", &mut copy), ("never", &mut hand)] {
            let receipt = clone(offload, &target.url(1), &target.url(2))?;
            if round > 0 {
                times.push(number(&receipt, "/timings/copy_s") * 1e3);
            }
            if offload == "require" {
                wire = number(&receipt, "/wire_bytes/sent") + number(&receipt, "/wire_bytes/received");
            }
        }
        if let Some(theirs) = &theirs {
            theirs.resume()?;
            let receipt = clone("never", &theirs.url(1), &theirs.url(2));
            theirs.pause()?;
            if round > 0 {
                their_hand.push(number(&receipt?, "/timings/copy_s") * 1e3);
            }
        }
        if let Some([a, b]) = &files {
            let begun = Instant::now();
            output(words("cp --reflink=never").arg(a).arg(format!("{b}.local")))?;
            if round > 0 {
                local.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            std::fs::remove_file(format!("{b}.local")).map_err(|e| cannot(b, &e))?;
        }
    }
    let local = if local.is_empty() { "-".to_owned() } else { format!("{:.0}", median(&local)) };
    let copy = median(&copy);
    report.row(&[
        &name,
        &format_args!("{copy:.1}"),
        &format_args!("{wire:.0}"),
        &format_args!("{:.0}", median(&hand)),
        &local,
    ]);
    if let Some(theirs) = theirs {
        // It does not copy from one namespace to another.
        let their_hand = median(&their_hand);
        report.row(&[&"SPDK's target, memory", &"-", &"-", &format_args!("{their_hand:.0}"), &"-"]);
        theirs.end()?;
    }
    Ok(())
}

/// `blkcopy cp` from one namespace to another: its receipt.
fn clone(offload: &str, from: &str, to: &str) -> Result<serde_json::Value, String> {
    let mut cp = pinned_blkcopy(Some(GENERATOR_CORE));
    let out = output(cp.args(["cp", "--json", "--yes", "--no-sync", "--offload", offload, from, to]))?;
    serde_json::from_str(&out).map_err(|e| cannot(&out, &e))
}

fn number(receipt: &serde_json::Value, pointer: &str) -> f64 {
    receipt.pointer(pointer).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_prints_is_understood() {
        let out = "\
Initialization complete. Launching workers.
========================================================
                                                                 Latency(us)
Device Information                      :       IOPS      MiB/s    Average        min        max
TCP (addr:127.0.0.1 subnqn:x) NSID 1 from core  1:   49664.00     194.00     644.48      93.46   16056.77
========================================================
Total                                   :   49664.00     194.00     644.48      93.46   16056.77

Summary latency data for TCP (addr:127.0.0.1 subnqn:x) NSID 1 from core  1:
=================================================================================
  1.00000% :    52.364us
 50.00000% :   630.154us
 99.00000% :   890.003us
 99.99000% : 16056.770us
";
        let said = perf_said(out).unwrap();
        let of = |key: &str| said.iter().find(|(k, _)| k == key).unwrap().1;
        assert_eq!((of("iops"), of("p50_us"), of("p99_us")), (49664.0, 630.154, 890.003));
        assert!((of("mb_s") - 203.424).abs() < 0.001);
        assert!(perf_said("No valid NVMe controllers found").is_none());
    }
}

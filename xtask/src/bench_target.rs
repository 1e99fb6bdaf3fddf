//! `cargo xtask bench target`: the NVMe/TCP target and host driver over loopback, one core for each, beside what else is here.
//!
//! The generator is `examples/load.rs` (our host driver) for every row, so that targets are compared by one hand; nbdkit, which
//! speaks another protocol, is driven by fio. CPU of the target's process stands beside the speed: where the generator's core is
//! the limit, that is the figure that counts. SPDK's programs take part when they are on PATH.

use crate::tool::{Done, cannot, cargo, have, is_root, output, root, run, words};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// One kind of load: operation, bytes, depth, ranges of a copy, and the namespaces it goes from and to.
struct Row {
    name: &'static str,
    load: &'static str,
    ranges: &'static str,
    from: u32,
    to: u32,
}

const fn io(name: &'static str, load: &'static str) -> Row {
    Row { name, load, ranges: "1", from: 1, to: 1 }
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
    io("Copy in one namespace, 32 MiB, depth 1", "copy 16777216 1"),
    Row { ranges: "128", ..io("Copy, 128 scattered ranges of 4 KiB, depth 8", "copy 4096 8") },
    Row { to: 2, ..io("Copy to another namespace, 128 KiB, depth 8", "copy 131072 8") },
];

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

struct Flags {
    seconds: f64,
    runs: usize,
    rows: Vec<String>,
    out: Option<PathBuf>,
}

/// Runs the rows and prints (and, with `--out`, writes) tables in Markdown.
pub(crate) fn target(flags: &[&str]) -> Done {
    let flags = parse(flags)?;
    println!("==> release build");
    let build = ["build", "--quiet", "--release", "--package", "blkcopy-cli", "--bin", "blkcopy"];
    let generator = ["build", "--quiet", "--release", "--package", "blkcopy", "--example", "load"];
    if !run(&mut cargo(&build))? || !run(&mut cargo(&generator))? {
        return Ok(false);
    }
    let line = |command: &str| output(&mut words(command)).unwrap_or_default().trim().to_owned();
    let mut text = format!(
        "Target on core 0, generator on core 1, {} runs of {} s; {}; load before: {}\n\n",
        flags.runs,
        flags.seconds,
        line("uname -sr"),
        line("cat /proc/loadavg"),
    );
    rows(&mut text, &flags)?;
    idle(&mut text)?;
    clones(&mut text, &flags)?;
    for missing in ["nvmf_tgt", "spdk_nvme_perf"].into_iter().filter(|p| !have(p)) {
        println!("SKIPPED the rows with SPDK: no {missing} on PATH");
    }
    println!("{text}");
    if let Some(out) = &flags.out {
        std::fs::write(out, &text).map_err(|e| cannot(out, &e))?;
    }
    Ok(true)
}

fn parse(words: &[&str]) -> Result<Flags, String> {
    let mut flags = Flags { seconds: 2.0, runs: 5, rows: Vec::new(), out: None };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match *word {
            "--seconds" => flags.seconds = value.parse().map_err(|e| cannot(value, &e))?,
            "--runs" => flags.runs = value.parse().map_err(|e| cannot(value, &e))?,
            "--rows" => flags.rows = value.split(',').map(str::to_owned).collect(),
            "--out" => flags.out = Some(PathBuf::from(value)),
            _ => return Err(format!("bench target knows --seconds, --runs, --rows and --out, not {word}")),
        }
    }
    if flags.runs == 0 || flags.seconds.is_nan() || flags.seconds <= 0.0 {
        return Err("bench target needs at least one run of more than 0 seconds".to_owned());
    }
    Ok(flags)
}

/// A target of ours, pinned to core 0.
struct Target {
    child: Child,
    base: String,
}

impl Target {
    fn start(devices: &[&str]) -> Result<Self, String> {
        let mut command = pinned("0", &root().join("target/release/blkcopy"));
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(devices).stdout(Stdio::piped());
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

fn pinned(core: &str, program: &Path) -> Command {
    if !have("taskset") {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(program);
    command
}

/// CPU seconds a process has used, user and system. 0 when it is gone.
fn cpu_seconds(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in brackets, may hold blanks: what follows it is fields 3 and on; 14 and 15 are ticks of 10 ms.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn rows(text: &mut String, flags: &Flags) -> Result<(), String> {
    let wanted: Vec<&Row> = ROWS
        .iter()
        .filter(|r| flags.rows.is_empty() || flags.rows.iter().any(|part| r.name.contains(part.as_str())))
        .collect();
    let target = Target::start(&["mem:256MiB", "mem:256MiB"])?;
    let mut all: Vec<Samples> = wanted.iter().map(|_| Samples::default()).collect();
    let mut nbd = Samples::default();
    let nbdkit = have("nbdkit") && have("fio") && flags.rows.is_empty();
    for round in 0..=flags.runs {
        for (row, samples) in wanted.iter().zip(&mut all) {
            println!("==> {} (round {round})", row.name);
            let said = generate(&target, row, flags.seconds)?;
            // The first round touches all memory and is not counted.
            if round > 0 {
                samples.take(&said);
            }
        }
        if nbdkit && round > 0 {
            println!("==> nbdkit (round {round})");
            nbd.iops.push(nbdkit_iops(flags.seconds)?);
        }
    }
    put(
        text,
        "| load | operations/s: median [min-max] | MB/s | p50 us | p99 us | target CPU us/op | generator CPU us/op |",
    );
    put(text, "|---|---|---|---|---|---|---|");
    for (row, s) in wanted.iter().zip(&all) {
        let least = s.iops.iter().copied().fold(f64::NAN, f64::min);
        let most = s.iops.iter().copied().fold(f64::NAN, f64::max);
        put(
            text,
            &format!(
                "| {} | {:.0} [{least:.0}-{most:.0}] | {:.0} | {:.1} | {:.1} | {:.2} | {:.2} |",
                row.name,
                median(&s.iops),
                median(&s.mb_s),
                median(&s.p50_us),
                median(&s.p99_us),
                median(&s.target_us),
                median(&s.generator_us),
            ),
        );
    }
    if nbdkit {
        let line = format!(
            "| nbdkit memory, 4 KiB random read, depth 32 (fio) | {:.0} | | | | | |",
            median(&nbd.iops)
        );
        put(text, &line);
    } else {
        println!("SKIPPED nbdkit: it and fio are not both here, or rows were chosen");
    }
    Ok(())
}

/// One run of the generator: its `key=value` words and the target's CPU microseconds for each operation.
fn generate(target: &Target, row: &Row, seconds: f64) -> Result<Vec<(String, f64)>, String> {
    let mut command = pinned("1", &root().join("target/release/examples/load"));
    command.arg(target.url(row.from)).args(row.load.split(' ')).arg(seconds.to_string()).arg(row.ranges);
    if row.to != row.from {
        command.arg(target.url(row.to));
    }
    let (before, begun) = (target.cpu(), Instant::now());
    let out = output(&mut command)?;
    let (cpu, wall) = (target.cpu() - before, begun.elapsed().as_secs_f64());
    let mut said: Vec<(String, f64)> = out
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?)))
        .collect();
    // The CPU of the whole run, warm-up too, over the operations of the whole run at the measured pace.
    let iops = said.iter().find(|(key, _)| key == "iops").map_or(f64::NAN, |(_, n)| *n);
    said.push(("target_us".to_owned(), cpu / (iops * wall) * 1e6));
    Ok(said)
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
    let mut command = pinned("0", Path::new("nbdkit"));
    command.args(["--foreground", "--unix"]).arg(&socket).args(["memory", "256M"]);
    let mut server = command.spawn().map_err(|e| cannot(&command, &e))?;
    let begun = Instant::now();
    while !socket.exists() && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut fio = pinned("1", Path::new("fio"));
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
fn idle(text: &mut String) -> Result<(), String> {
    println!("==> idle");
    let target = Target::start(&["mem:256MiB"])?;
    let mut host = Command::new(root().join("target/release/examples/load"));
    host.arg(target.url(1)).args(["read", "4096", "1", "0.1"]);
    output(&mut host)?;
    let before = target.cpu();
    std::thread::sleep(Duration::from_secs(5));
    put(text, &format!("\nIdle for 5 s: {:.2} s of CPU.", target.cpu() - before));
    Ok(())
}

/// Clones of 1 GiB from one namespace to another: by Copy, by read and write through the host, and a local `cp` beside them.
fn clones(text: &mut String, flags: &Flags) -> Result<(), String> {
    put(
        text,
        "\n| clone of 1 GiB between two namespaces | by Copy, ms | sent + received, bytes | read and write, ms | local cp, ms |",
    );
    put(text, "|---|---|---|---|---|");
    let base = root().join("target");
    let folder =
        tempfile::Builder::new().prefix("bench-").tempdir_in(&base).map_err(|e| cannot(&base, &e))?;
    clone_row(text, flags, "memory", &["mem:1GiB", "mem:1GiB"], None)?;
    clone_row(text, flags, "files", &[], Some(folder.path()))?;
    if !(is_root() && have("mkfs.xfs") && have("losetup")) {
        println!("SKIPPED files that share extents: needs root, mkfs.xfs and loop devices");
        return Ok(());
    }
    let (image, mounted) = (folder.path().join("fs.img"), folder.path().join("mnt"));
    output(words("truncate -s 6G").arg(&image))?;
    output(words("mkfs.xfs -q -m reflink=1").arg(&image))?;
    std::fs::create_dir(&mounted).map_err(|e| cannot(&mounted, &e))?;
    output(words("mount -o loop").arg(&image).arg(&mounted))?;
    let done = clone_row(text, flags, "files that share extents (XFS)", &[], Some(&mounted));
    output(words("umount").arg(&mounted))?;
    done
}

fn clone_row(
    text: &mut String,
    flags: &Flags,
    name: &str,
    devices: &[&str],
    folder: Option<&Path>,
) -> Result<(), String> {
    println!("==> clone, {name}");
    let files = folder.map(|f| ["a", "b"].map(|n| f.join(n).display().to_string()));
    if let Some([a, b]) = &files {
        output(
            words("dd if=/dev/urandom bs=1M count=1024 iflag=fullblock conv=fsync status=none")
                .arg(format!("of={a}")),
        )?;
        output(words("truncate -s 1G").arg(b))?;
    }
    let named: Vec<&str> = match &files {
        Some(files) => files.iter().map(String::as_str).collect(),
        None => devices.to_vec(),
    };
    let target = Target::start(&named)?;
    let (mut copy, mut hand, mut local, mut wire) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
    for round in 0..=flags.runs {
        for (offload, times) in [("require", &mut copy), ("never", &mut hand)] {
            let mut cp = pinned("1", &root().join("target/release/blkcopy"));
            cp.args([
                "cp",
                "--json",
                "--yes",
                "--no-sync",
                "--offload",
                offload,
                &target.url(1),
                &target.url(2),
            ]);
            let out = output(&mut cp)?;
            let receipt: serde_json::Value = serde_json::from_str(&out).map_err(|e| cannot(&out, &e))?;
            let number = |pointer: &str| {
                receipt.pointer(pointer).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN)
            };
            if round > 0 {
                times.push(number("/timings/copy_s") * 1e3);
            }
            if offload == "require" {
                wire = number("/wire_bytes/sent") + number("/wire_bytes/received");
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
    let mut line = format!("| {name} ");
    // Writing into a String cannot fail.
    let _ = write!(line, "| {:.1} | {wire:.0} | {:.0} | {local} |", median(&copy), median(&hand));
    put(text, &line);
    Ok(())
}

fn put(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn median(list: &[f64]) -> f64 {
    let mut list = list.to_vec();
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied().unwrap_or(f64::NAN)
}

//! `cargo xtask spdk`: SPDK as a second opinion, with its programs found on PATH.
//!
//! Three passes: SPDK's hosts attach to our target; our host driver attaches to SPDK's target; and SPDK's target re-exports a
//! namespace of ours, so that SPDK's host driver sends ours what our host driver sent it, Copy included. Data is compared by
//! `cmp`. Everything runs in ordinary memory: no huge pages, no privileges.

mod running;

pub(crate) use running::{Bdev, NQN, Theirs, huge_pages, transport};

use crate::lab::Counts;
use crate::tool::{Done, blkcopy, build_blkcopy, cannot, have, output, words};
use running::{Ours, lossy};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// SPDK's programs: its target and two hosts.
const PROGRAMS: [&str; 3] = ["nvmf_tgt", "spdk_nvme_identify", "spdk_nvme_perf"];
const WHERE_FROM: &str = "SPDK 22.05 or later (https://spdk.io), its build/bin on PATH";

/// Most bytes our host asks for in one Copy, whatever a controller allows.
const COPY_BYTES_MAX: u64 = 64 << 20;
/// Size of a namespace, and of what is copied within one: more than SPDK takes in one command (65535 blocks of 512 bytes).
const MIB: u64 = 1 << 20;
const SIZE: u64 = 96 * MIB;
const WITHIN: u64 = 40 * MIB;
/// Where a copy within a namespace goes.
const WITHIN_AT: u64 = 48 * MIB;

/// What the load of `spdk_nvme_perf` is, beside time and address; `true`: needs blocks of 512 bytes.
const LOADS: [(&str, bool); 12] = [
    ("-q 32 -o 4096 -w read", false),
    ("-q 32 -o 4096 -w randwrite", false),
    ("-q 64 -o 4096 -w randrw -M 50 -H", false),
    ("-q 64 -o 4096 -w randrw -M 50 -I", false),
    ("-q 16 -o 65536 -w randrw -M 50 -H -I", false),
    ("-q 8 -o 131072 -w write --fua", false),
    // As long as a transfer may be, and longer: the host cuts it.
    ("-q 4 -o 1048576 -w randrw -M 50 -H -I", false),
    ("-q 4 -o 4194304 -w randrw -M 50", false),
    // More than the queue holds, several queues, no flow control.
    ("-q 300 -o 4096 -w randrw -M 50 -P 4", false),
    ("-q 32 -o 16384 -w randrw -M 50 --disable-sq-flow-control -I", false),
    ("-q 32 -o 512 -w randrw -M 50 -H -I", true),
    ("-q 8 -o 10752 -w randrw -M 50", true),
];

/// Runs all of it.
pub(crate) fn spdk() -> Done {
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|p| !have(p)).collect();
    if !missing.is_empty() {
        println!("SKIPPED spdk: no {} on PATH; wanted: {WHERE_FROM}", missing.join(", "));
        println!("0 passed, 0 failed, 1 skipped");
        return Ok(true);
    }
    if !build_blkcopy()? {
        return Err("the release build failed".to_owned());
    }
    let folder = tempfile::tempdir().map_err(|e| cannot("a temporary folder", &e))?;
    let mut checks = Checks::default();
    for (name, pass) in PASSES {
        println!("==> {name}");
        // What stops a pass is a failed check of it; the next one stands for itself.
        if let Err(why) = pass(folder.path(), &mut checks) {
            checks.check(name, Err(why));
        }
    }
    let Counts { passed, failed, skipped } = checks.0;
    println!("{passed} passed, {failed} failed, {} skipped", skipped.len());
    Ok(failed == 0)
}

type Pass = fn(&Path, &mut Checks) -> Result<(), String>;
const PASSES: [(&str, Pass); 5] = [
    ("SPDK's hosts, our target: a file, blocks of 512 bytes", |folder, checks| {
        their_hosts(checks, 512, "file", &["--block-size", "512", &text(&disk(folder, "ours512")?)])
    }),
    ("SPDK's hosts, our target: a file, blocks of 4096 bytes", |folder, checks| {
        their_hosts(checks, 4096, "file", &["--block-size", "4096", &text(&disk(folder, "ours4096")?)])
    }),
    ("SPDK's hosts, our target: memory", |_, checks| {
        their_hosts(checks, 512, "memory", &["--cores", "2", "mem:96MiB", "mem:96MiB"])
    }),
    ("our host driver, SPDK's target", our_host),
    ("our host driver, SPDK's target and host driver, our target", both),
];

#[derive(Default)]
struct Checks(Counts);

impl Checks {
    fn check(&mut self, what: &str, held: Result<(), String>) {
        match held {
            Ok(()) => {
                self.0.passed += 1;
                println!("ok - {what}");
            }
            Err(why) => {
                self.0.failed += 1;
                println!("NOT OK - {what}: {}", why.trim());
            }
        }
    }
}

// --- SPDK's hosts, our target ----------------------------------------------------------------------------------------------

fn their_hosts(checks: &mut Checks, block: u64, backend: &str, args: &[&str]) -> Result<(), String> {
    let ours = Ours::start(args)?;
    let transport = ours.transport();
    let subsystem = format!("{transport} subnqn:{NQN}");
    checks.check(&format!("{backend}: identify tells what is served"), {
        host("spdk_nvme_identify", "", &subsystem).and_then(|said| {
            has(&said, "Subsystem NQN", NQN)?;
            has(&said, "Copy", "Supported")?;
            has(&said, "Namespace ID", "1")?;
            has(&said, "Size (in LBAs)", &(SIZE / block).to_string())?;
            has(&said, "Maximum Source Range Count", "256")?;
            has(&said, "LBA Format #00", &format!("Data Size: {block} Metadata Size: 0"))
        })
    });
    checks.check(&format!("{backend}: the discovery log names the subsystem and where it is"), {
        host("spdk_nvme_identify", "", &transport).and_then(|said| {
            has(&said, "Number of Records", "1")?;
            has(&said, "Transport Type", "3 (TCP)")?;
            has(&said, "Transport Service Identifier", &ours.port().to_string())?;
            has(&said, "NVM Subsystem Qualified Name", NQN)
        })
    });
    let found_by = |load: &str| format!("{backend}: perf {load}, found by discovery");
    let load = "-q 8 -o 4096 -w randread";
    checks.check(&found_by(load), perf(load, &transport));
    for (load, _) in LOADS.iter().filter(|(_, small)| !small || block == 512) {
        checks.check(&format!("{backend}: perf {load}"), perf(load, &subsystem));
    }
    checks.check(&format!("{backend}: two hosts with names of their own at once"), {
        let load = "-q 16 -o 8192 -w randrw -M 50";
        let named = |name: &str| format!("{subsystem} hostnqn:nqn.2024-01.test.blkcopy:{name}");
        std::thread::scope(|scope| {
            let other = scope.spawn(|| perf(load, &named("a")));
            let mine = perf(load, &named("b"));
            other.join().unwrap_or_else(|_| Err("the other host's thread panicked".to_owned())).and(mine)
        })
    });
    checks.check(&format!("{backend}: the target had nothing to complain of"), ours.end());
    Ok(())
}

/// A host of SPDK's: what it says, on either stream. Errors: it does not exit with 0 or complains.
fn host(program: &str, args: &str, transport: &str) -> Result<String, String> {
    let mut command = words(&format!("timeout 120 {program} --no-huge -s 512 {args}"));
    let done = command.arg("-r").arg(transport).output().map_err(|e| cannot(program, &e))?;
    let said = lossy(&done.stdout) + &lossy(&done.stderr);
    // The perf of SPDK 26.09 looks at queues it has just left itself, and says so.
    let parted = |line: &str| line.contains("DISCONNECTED] CQ transport error -6");
    let complaint = said.lines().find(|l| {
        let bad = ["*ERROR*", "completed with error", "starting I/O failed", "No valid NVMe controllers"];
        bad.iter().any(|b| l.contains(b)) && !parted(l)
    });
    match complaint {
        Some(line) => Err(line.to_owned()),
        None if !done.status.success() => Err(format!("{program} {args}: {}: {said}", done.status)),
        None => Ok(said),
    }
}

/// A second of `spdk_nvme_perf`. Errors: what [`host`] finds, or nothing was done.
fn perf(load: &str, transport: &str) -> Result<(), String> {
    let said = host("spdk_nvme_perf", &format!("{load} -t 1"), transport)?;
    let total = said.lines().find_map(|l| l.strip_prefix("Total")?.split_once(':')).map(|(_, rest)| rest);
    match total.and_then(|t| t.split_whitespace().next()?.parse::<f64>().ok()) {
        Some(iops) if iops > 0.0 => Ok(()),
        _ => Err(format!("nothing was done: {said}")),
    }
}

/// One of the lines `key: value` says so, whatever it says behind a blank; the number of blanks does not count.
fn has(said: &str, key: &str, value: &str) -> Result<(), String> {
    let values = values(said, key);
    if values
        .iter()
        .any(|v| v.strip_prefix(value).is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')))
    {
        return Ok(());
    }
    Err(format!("{key} should be {value}, not {}", values.join(" or ")))
}

/// What lines `key: value` say.
fn values(said: &str, key: &str) -> Vec<String> {
    let values = said.lines().filter_map(|l| l.trim().strip_prefix(key)?.trim_start().strip_prefix(':'));
    values.map(|v| v.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

// --- our host driver, SPDK's target ----------------------------------------------------------------------------------------

fn our_host(folder: &Path, checks: &mut Checks) -> Result<(), String> {
    let (data, backing) = (random(folder, "data")?, disk(folder, "theirs")?);
    let bdevs =
        [Bdev::Malloc(SIZE / MIB, 512), Bdev::Malloc(SIZE / MIB, 4096), Bdev::Aio(backing.clone(), 512)];
    let theirs = Theirs::start(&bdevs, false)?;
    checks.check("discovery through their discovery service", {
        told(&["info", "--json", &theirs.address()]).and_then(|said| {
            is(&said, "/subsystems/0/nqn", NQN)?;
            is(&said, "/subsystems/0/copies_across", false)?;
            is(&said, "/subsystems/0/namespaces/2/size_bytes", SIZE)?;
            is(&said, "/subsystems/0/namespaces/1/block_size", 4096)?;
            is(&said, "/subsystems/0/namespaces/1/copy/formats", vec![0])
        })
    });
    let limits = their_limits(&theirs)?;
    for ((nsid, block, name), limit) in
        [(1, 512, "memory"), (2, 4096, "memory"), (3, 512, "a file")].into_iter().zip(limits)
    {
        let name = format!("{name}, blocks of {block} bytes");
        let (plain, digests) = (theirs.url(nsid), theirs.url(nsid) + "&hdgst&ddgst");
        checks.check(&format!("{name}: their limits are ours, up to what our host sends in one command"), {
            told(&["info", "--json", &plain]).and_then(|said| {
                is(&said, "/limits/copy_max_range_bytes", (limit.range * block).min(COPY_BYTES_MAX))?;
                is(&said, "/limits/copy_max_bytes", (limit.copy * block).min(COPY_BYTES_MAX))?;
                is(&said, "/limits/copy_max_nr_ranges", limit.ranges)
            })
        });
        checks.check(
            &format!("{name}: a file goes there and comes back"),
            there_and_back(folder, &data, &plain),
        );
        checks.check(&format!("{name}: with digests too"), there_and_back(folder, &data, &digests));
        let commands = WITHIN.div_ceil((limit.range.min(limit.copy) * block).min(COPY_BYTES_MAX));
        checks.check(&format!("{name}: {commands} Copy commands within the namespace"), {
            within(&plain).and_then(|receipt| {
                is(&receipt, "/plan_steps", commands)?;
                same(&fetch(folder, &plain)?, &copied_within(folder, &data)?)
            })
        });
        checks.check(&format!("{name}: single blocks and ranges here and there"), {
            let segments = [(0, 90, block), (5, 91, 7 * block), (47, 92, 64 << 10)];
            scattered(folder, &plain, &copied_within(folder, &data)?, &segments)
        });
    }
    checks.check("what their file holds", same(&backing, &fetch(folder, &theirs.url(3))?));
    between(folder, &theirs, &backing, checks)?;
    checks.check("their target had nothing to complain of", theirs.end());
    Ok(())
}

/// What one Copy command may be at most: a source range and all of them, in blocks, and their number.
struct Limit {
    range: u64,
    copy: u64,
    ranges: u64,
}

/// What SPDK's host reads of the namespaces of SPDK's target.
fn their_limits(theirs: &Theirs) -> Result<Vec<Limit>, String> {
    let subsystem = format!("{} subnqn:{NQN}", theirs.transport());
    let said = host("spdk_nvme_identify", "", &subsystem)?;
    let numbers = |what: &str| -> Vec<u64> {
        values(&said, &format!("Maximum {what}")).iter().filter_map(|v| v.parse().ok()).collect()
    };
    let (ranges, copies) = (numbers("Single Source Range Length"), numbers("Copy Length"));
    let limits: Vec<Limit> = ranges
        .into_iter()
        .zip(copies)
        .zip(numbers("Source Range Count"))
        .map(|((range, copy), ranges)| Limit { range, copy, ranges })
        .collect();
    if limits.len() == 3 { Ok(limits) } else { Err(format!("three namespaces should have limits: {said}")) }
}

/// To another namespace SPDK does not copy: `require` says no and writes nothing, otherwise this host reads and writes.
fn between(folder: &Path, theirs: &Theirs, backing: &Path, checks: &mut Checks) -> Result<(), String> {
    let (data, before) = (random(folder, "data")?, folder.join("before"));
    copy(&["--offload", "auto", &text(&data), &theirs.url(1)])?;
    fs::copy(backing, &before).map_err(|e| cannot(backing, &e))?;
    let (from, to) = (theirs.url(1), theirs.url(3));
    checks.check("to another namespace: --offload require says no, and nothing is written", {
        let mut cp = Command::new(blkcopy());
        let done = cp.args(["cp", "--yes", "--offload", "require", &from, &to]).output();
        let done = done.map_err(|e| cannot("blkcopy cp", &e))?;
        if done.status.code() == Some(1) { same(backing, &before) } else { Err(lossy(&done.stderr)) }
    });
    checks.check("to another namespace: read and written, and the receipt says so", {
        copy(&["--verify", "digest", &from, &to]).and_then(|receipt| {
            is(&receipt, "/methods/emulated", SIZE)?;
            is(&receipt, "/host_bytes/read", SIZE)?;
            is(&receipt, "/host_bytes/written", SIZE)?;
            is(&receipt, "/verification/equal", true)?;
            same(backing, &data)
        })
    });
    Ok(())
}

// --- our host driver, SPDK's target and host driver, our target ------------------------------------------------------------

fn both(folder: &Path, checks: &mut Checks) -> Result<(), String> {
    let (data, disk) = (random(folder, "data")?, disk(folder, "relayed")?);
    let ours = Ours::start(&[&text(&disk)])?;
    let theirs = Theirs::start(&[Bdev::Ours(ours.port())], false)?;
    let url = theirs.url(1);
    checks.check("a file goes through both targets and comes back", there_and_back(folder, &data, &url));
    checks.check("what our target's file holds", same(&disk, &data));
    checks.check("a Copy to theirs is a Copy to ours", {
        within(&url).and_then(|_| {
            same(&disk, &copied_within(folder, &data)?)?;
            let said = ours.said();
            let lines = said.lines().filter_map(|l| l.split_once(" ranges, ")).map(|(_, rest)| rest);
            let good = lines.filter_map(|l| l.split(' ').next()?.parse::<u64>().ok()).sum::<u64>();
            if good == WITHIN { Ok(()) } else { Err(format!("our target copied {good} bytes: {said}")) }
        })
    });
    checks.check("single blocks and ranges here and there, by Copy", {
        let segments = [(0, 90, 512), (5, 91, 7 * 512), (47, 92, 64 << 10)];
        let want = copied_within(folder, &data)?;
        scattered(folder, &url, &want, &segments).and_then(|()| same(&disk, &want))
    });
    checks.check("their target had nothing to complain of", theirs.end());
    checks.check("our target had nothing to complain of", ours.end());
    Ok(())
}

// --- copies and files ------------------------------------------------------------------------------------------------------

/// `blkcopy` with these arguments: the JSON it prints.
fn told(args: &[&str]) -> Result<Value, String> {
    let said = output(words("timeout 120").arg(blkcopy()).args(args))?;
    serde_json::from_str(&said).map_err(|e| cannot(&said, &e))
}

/// `blkcopy cp`: its receipt.
fn copy(args: &[&str]) -> Result<Value, String> {
    told(&[&["cp", "--json", "--yes"], args].concat())
}

/// The value at a JSON pointer is this one.
fn is(said: &Value, pointer: &str, want: impl Into<Value>) -> Result<(), String> {
    let (found, want) = (said.pointer(pointer).unwrap_or(&Value::Null), want.into());
    if *found == want { Ok(()) } else { Err(format!("{pointer} should be {want}, not {found}")) }
}

fn there_and_back(folder: &Path, data: &Path, url: &str) -> Result<(), String> {
    let receipt = copy(&["--verify", "digest", &text(data), url])?;
    is(&receipt, "/verification/equal", true)?;
    same(&fetch(folder, url)?, data)
}

/// The namespace as a file.
fn fetch(folder: &Path, url: &str) -> Result<PathBuf, String> {
    let path = folder.join("fetched");
    copy(&["--verify", "digest", url, &text(&path)])?;
    Ok(path)
}

/// [`WITHIN`] bytes of the namespace to [`WITHIN_AT`], by Copy only: the receipt.
fn within(url: &str) -> Result<Value, String> {
    let (from, to) = (format!("{url}@0+{WITHIN}"), format!("{url}@{WITHIN_AT}"));
    let receipt = copy(&["--offload", "require", "--verify", "digest", &from, &to])?;
    is(&receipt, "/methods/nvme-copy", WITHIN)?;
    is(&receipt, "/host_bytes/read", 0)?;
    is(&receipt, "/host_bytes/written", 0)?;
    Ok(receipt)
}

/// What [`within`] makes of `data`, as a file.
fn copied_within(folder: &Path, data: &Path) -> Result<PathBuf, String> {
    let mut bytes = fs::read(data).map_err(|e| cannot(data, &e))?;
    move_bytes(&mut bytes, 0, WITHIN_AT, WITHIN);
    write(folder, "within", &bytes)
}

/// Copies of each `(from MiB, to MiB, bytes)` by Copy only; `want` is the namespace's content before, and afterwards after.
fn scattered(folder: &Path, url: &str, want: &Path, segments: &[(u64, u64, u64)]) -> Result<(), String> {
    let mut bytes = fs::read(want).map_err(|e| cannot(want, &e))?;
    let mut cp = vec!["--offload".to_owned(), "require".to_owned()];
    for &(from, to, len) in segments {
        cp.extend(["--segment".to_owned(), format!("{}:{}:{len}", from * MIB, to * MIB)]);
        move_bytes(&mut bytes, from * MIB, to * MIB, len);
    }
    cp.extend([url.to_owned(), url.to_owned()]);
    let receipt = copy(&cp.iter().map(String::as_str).collect::<Vec<_>>())?;
    is(&receipt, "/methods/nvme-copy", segments.iter().map(|s| s.2).sum::<u64>())?;
    fs::write(want, &bytes).map_err(|e| cannot(want, &e))?;
    same(&fetch(folder, url)?, want)
}

fn move_bytes(bytes: &mut [u8], from: u64, to: u64, len: u64) {
    let at = |n: u64| usize::try_from(n).expect("files of some MiB");
    bytes.copy_within(at(from)..at(from + len), at(to));
}

/// `cmp` finds no difference.
fn same(a: &Path, b: &Path) -> Result<(), String> {
    let done = Command::new("cmp").args([a, b]).output().map_err(|e| cannot("cmp", &e))?;
    if done.status.success() { Ok(()) } else { Err(lossy(&done.stdout) + &lossy(&done.stderr)) }
}

/// A file of zeroes of the size of a namespace.
fn disk(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let path = folder.join(name);
    fs::File::create(&path).and_then(|file| file.set_len(SIZE)).map_err(|e| cannot(&path, &e))?;
    Ok(path)
}

/// A file of random bytes, of the size of a namespace.
fn random(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let path = folder.join(name);
    let dd = format!("dd if=/dev/urandom bs=1M count={} iflag=fullblock status=none", SIZE / MIB);
    output(words(&dd).arg(format!("of={}", path.display())))?;
    Ok(path)
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf, String> {
    let path = folder.join(name);
    fs::write(&path, bytes).map_err(|e| cannot(&path, &e))?;
    Ok(path)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_identify_are_compared_up_to_a_blank() {
        let said =
            "Size (in LBAs):          24576 (0GiB)\n  Copy:      Supported\nMaximum Copy Length:   65535\n";
        assert!(has(said, "Size (in LBAs)", "24576").is_ok());
        assert!(has(said, "Size (in LBAs)", "2457").is_err());
        assert!(has(said, "Copy", "Supported").is_ok());
        assert!(has(said, "Copy", "Not Supported").is_err());
        assert!(has(said, "Compare", "Supported").is_err());
        assert_eq!(values(said, "Maximum Copy Length"), ["65535"]);
    }
}

//! `blkcopy demo`: two made-up images, copied by every method, receipts side by side. Needs no rights and no set-up.

use crate::args::DemoArgs;
use crate::fail::{Code, Fail};
use crate::file_dest::FileDest;
use crate::output::{self, by, seconds, size, table};
use crate::progress::Show;
use crate::run::{self, Engine, Interrupts, What};
use blkcopy::block::receipt::{Outcome, Receipt};
use blkcopy::block::{Error, Kind, Method};
use blkcopy::copy::run::{Options, Verify};
use blkcopy::copy::{DeviceFacts, Job, Offload, Planner, Policy, Segment, Sparse};
use blkcopy::open::{Name, open_source};
use blkcopy::reactor::EngineChoice;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An image to make: name, size in bytes, and where its hole is.
struct Image {
    name: &'static str,
    len: u64,
    hole: std::ops::Range<u64>,
}

const MIB: u64 = 1 << 20;
const IMAGES: [Image; 2] = [
    Image { name: "golden.img", len: 256 * MIB, hole: 128 * MIB..192 * MIB },
    // An odd size: no method but reading and writing takes its last bytes everywhere.
    Image { name: "odd.img", len: 16 * MIB + 4097, hole: 4 * MIB..8 * MIB },
];

/// A way to copy: what the row is called and the flags behind it.
const WAYS: [(&str, Offload, Sparse); 4] = [
    ("--offload auto", Offload::Auto, Sparse::Auto),
    ("--offload require", Offload::Require, Sparse::Auto),
    ("--offload never", Offload::Never, Sparse::Auto),
    ("--offload never --sparse never", Offload::Never, Sparse::Never),
];

/// Runs the command.
pub(crate) fn run(args: &DemoArgs) -> Result<Code, Fail> {
    let interrupts = Interrupts::listen()?;
    let mut builder = tempfile::Builder::new();
    builder.prefix("blkcopy-demo-");
    let dir = match &args.dir {
        Some(dir) => builder.tempdir_in(dir),
        None => builder.tempdir(),
    };
    let dir =
        dir.map_err(|e| Fail::from(Error::os("the demo's folder cannot be made", e)).hint("--dir DIR"))?;
    let engine = run::engine(EngineChoice::Auto, false)?;
    let mut code = Code::Done;
    let mut shared = false;
    output::out(&format!("two images in {}, copied by each method\n", dir.path().display()));
    for image in &IMAGES {
        if interrupts.cancel.is_set() {
            return Ok(Code::Cancelled);
        }
        let path = dir.path().join(image.name);
        make(&path, image).map_err(|e| Error::os("the image cannot be made", e).on(image.name))?;
        let holes = image.hole.end - image.hole.start;
        output::out(&format!("\n{}: {}, of which {} are a hole\n", image.name, size(image.len), size(holes)));
        let head = ["flags", "time", "method", "read", "written", "digest", "outcome"];
        let mut rows = vec![head.iter().map(|&s| s.to_owned()).collect::<Vec<_>>()];
        for (n, &(flags, offload, sparse)) in WAYS.iter().enumerate() {
            let dest = dir.path().join(format!("{}.copy{n}", image.name));
            let policy = Policy { offload, sparse, dest_zero_from: 0, ..Policy::default() };
            let end = copy(&engine, &interrupts, &path, &dest, image.len, policy)?;
            if let End::Copied(receipt) = &end {
                code = worst(code, receipt.outcome);
                shared |= receipt.methods.contains_key(&Method::Reflink);
            }
            rows.push(row(flags, &end));
            let _ = std::fs::remove_file(&dest);
        }
        output::out(&table(&rows));
    }
    if !shared && code == Code::Done {
        output::out(
            "\nThis file system shares no extents between files; one that does (XFS, Btrfs) copies either image without\nmoving a byte: blkcopy demo --dir DIR\n",
        );
    }
    Ok(code)
}

/// How one copy of the demo ended.
enum End {
    Copied(Box<Receipt>),
    /// `--offload require` is unmet here: nothing was copied.
    Refused,
}

fn worst(code: Code, outcome: Outcome) -> Code {
    match outcome {
        Outcome::Done | Outcome::Refused => code,
        Outcome::Cancelled => Code::Cancelled,
        Outcome::Mismatch if code == Code::Done => Code::No,
        Outcome::Mismatch => code,
        Outcome::Failed => Code::Error,
    }
}

fn copy(
    engine: &Engine,
    interrupts: &Interrupts,
    source: &Path,
    dest: &Path,
    len: u64,
    policy: Policy,
) -> Result<End, Fail> {
    let source = open_source(&Name::parse(source)?)?;
    let segments = [Segment { source: 0, dest: 0, len }];
    let begun = FileDest::look(dest, false, false, len)?.begin(None, &segments)?;
    let (dest, made) = (begun.device, begun.made);
    let job = Job::new(&segments, len, len, false)?;
    if policy.offload == Offload::Require {
        let facts = DeviceFacts::new(source.clone(), dest.clone());
        let unmet = Planner::new(&job, facts, policy).find_map(Result::err);
        match unmet {
            Some(error) if error.kind() == Kind::Unsupported => return Ok(End::Refused),
            Some(error) => return Err(error.into()),
            None => {}
        }
    }
    let options = Options {
        policy,
        verify: Verify::Digest,
        cancel: interrupts.cancel.clone(),
        io_engine: engine.name.clone(),
        locks: Some(engine.locks.clone()),
        ..Options::default()
    };
    let what = What { source, dest, job: &job, hold: None };
    let mut ended = run::run(engine, interrupts, what, &options, Show::Nothing);
    if let Some(error) = ended.error.filter(|e| e.kind() != Kind::Cancelled) {
        made.put_right(&mut ended.receipt);
        return Err(error.into());
    }
    Ok(End::Copied(Box::new(ended.receipt)))
}

fn row(flags: &str, end: &End) -> Vec<String> {
    let End::Copied(receipt) = end else {
        let mut row = vec![flags.to_owned()];
        row.extend(
            ["-", "-", "-", "-", "-", "refused: some bytes cannot be offloaded here"].map(str::to_owned),
        );
        return row;
    };
    let mut methods: Vec<_> = receipt.methods.iter().filter(|m| *m.1 > 0).collect();
    methods.sort_by_key(|&(_, &bytes)| std::cmp::Reverse(bytes));
    let methods: Vec<String> = methods.iter().map(|&(&m, &b)| format!("{} {}", size(b), by(m))).collect();
    let digest = receipt.verification.as_ref().map_or("none".to_owned(), |v| {
        let short: String = v.dest_digest.iter().flat_map(|d| d.chars()).take(8).collect();
        format!("{short} {}", if v.equal { "equal" } else { "DIFFERENT" })
    });
    let outcome = serde_json::to_value(receipt.outcome).ok();
    vec![
        flags.to_owned(),
        seconds(receipt.timings.copy_s + receipt.timings.flush_s),
        methods.join(", "),
        size(receipt.host_bytes.read),
        size(receipt.host_bytes.written),
        digest,
        outcome.as_ref().and_then(|o| o.as_str()).unwrap_or("unknown").to_owned(),
    ]
}

/// Fills an image with bytes that do not compress, except for its hole.
fn make(path: &Path, image: &Image) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(image.len)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ image.len;
    let mut block = vec![0; usize::try_from(MIB).unwrap_or(1 << 20)];
    let mut at = 0;
    while at < image.len {
        for word in block.chunks_exact_mut(8) {
            // xorshift64: any odd-looking bytes will do.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let len = usize::try_from((image.len - at).min(MIB)).unwrap_or(block.len());
        if !image.hole.contains(&at) {
            file.write_all_at(&block[..len], at)?;
        }
        at += MIB;
    }
    Ok(())
}

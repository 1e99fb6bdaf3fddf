//! `blkcopy demo`: a target with three namespaces and a host in one process; one clone by Copy, the same by read and
//! write. Needs no rights and no set-up.

use crate::args::DemoArgs;
use crate::fail::{Code, Fail};
use crate::output::{self, became, note, seconds, table};
use crate::signals::Interrupts;
use blkcopy::block::receipt::{Outcome, Receipt};
use blkcopy::block::{Error, Kind};
use blkcopy::copy::Offload;
use blkcopy::copy::run::Verify;
use blkcopy::drivers::{File as FileDevice, FileOptions};
use blkcopy::exports::nvme_tcp::{Server, ServerOptions};
use blkcopy::nvme::Nqn;
use blkcopy::nvmet::{NamespaceOptions, Settings, Subsystem, SubsystemOptions, Target};
use blkcopy::volume::{CopyError, size};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: u64 = 1 << 20;
/// The image that is cloned: its size, and where it has a hole.
const IMAGE_LEN: u64 = 256 * MIB;
const IMAGE_HOLE: std::ops::Range<u64> = 128 * MIB..192 * MIB;

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:6f6d6564-2d79-8f70-836b-6c622d6f6d65";
const GOLDEN: &str = "golden.img";
/// A clone: what the row is called, its policy, its file; the namespaces are numbered in this order from 2.
const CLONES: [(&str, Offload, &str); 2] = [
    ("NVMe Copy: the target moves the bytes", Offload::Auto, "clone-by-copy.img"),
    ("read+write: this process moves them", Offload::Never, "clone-by-hand.img"),
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
    make(&dir.path().join(GOLDEN)).map_err(|e| Error::os("the image cannot be made", e).on(GOLDEN))?;
    let server = serve(dir.path())?;
    let address = server.addresses()[0];
    let holes = IMAGE_HOLE.end - IMAGE_HOLE.start;
    output::out(&format!(
        "namespace 1, {GOLDEN}: {}, of which {} are a hole; namespaces 2 and 3, of the same size, are empty\n\
         target and host are this process; between them is the TCP connection {address}\n\n",
        size(IMAGE_LEN),
        size(holes),
    ));
    let head = ["clone", "time", "sent", "received", "method", "digest", "outcome"];
    let mut rows = vec![head.iter().map(|&s| s.to_owned()).collect::<Vec<_>>()];
    let mut receipts = Vec::new();
    let mut code = Code::Done;
    for (nsid, &(what, offload, _)) in (2..).zip(&CLONES) {
        if interrupts.cancel.is_set() {
            return Ok(Code::Cancelled);
        }
        let receipt = clone(&interrupts, address, nsid, offload)?;
        code = worst(code, receipt.outcome);
        rows.push(row(what, &receipt));
        receipts.push(receipt);
    }
    output::out(&table(&rows));
    if let [copied, read_and_written] = &receipts[..] {
        let over_the_wire = |receipt: &Receipt| size(receipt.wire_bytes.sent + receipt.wire_bytes.received);
        output::out(&format!(
            "\nThe target made the first clone by itself: {} went over the connection.\n\
             This process read and wrote the second one: {} went over it.\n",
            over_the_wire(copied),
            over_the_wire(read_and_written),
        ));
    }
    if args.json {
        receipts.iter().for_each(|receipt| output::out(&output::json(receipt)));
    }
    server.stop();
    Ok(code)
}

/// Starts a target over the image and an empty file for each clone.
fn serve(dir: &Path) -> Result<Server, Fail> {
    let target = Target::new(Settings::default())?;
    let subsystem = Subsystem::new(SubsystemOptions { nqn: Nqn::new(NQN)?, serial: None });
    for (n, file) in [GOLDEN].into_iter().chain(CLONES.map(|c| c.2)).enumerate() {
        let path = dir.join(file);
        if n > 0 {
            let empty = File::create(&path).and_then(|f| f.set_len(IMAGE_LEN));
            empty.map_err(|e| Error::os("an empty image cannot be made", e).on(file))?;
        }
        let device = FileDevice::open(&path, FileOptions { write: true, create: false })?;
        subsystem.add(device, NamespaceOptions::default())?;
    }
    target.serve(subsystem)?;
    let options = ServerOptions { listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))], ..Default::default() };
    Ok(Server::start(target, options)?)
}

/// Clones namespace 1 to namespace `nsid` over the network, and reads both back.
fn clone(interrupts: &Interrupts, address: SocketAddr, nsid: u32, offload: Offload) -> Result<Receipt, Fail> {
    let url = |nsid: u32| format!("nvme-tcp://{address}/{NQN}?nsid={nsid}");
    let copied = blkcopy::copy(url(1), url(nsid))
        .overwrite(true)
        .offload(offload)
        .verify(Verify::Digest)
        .cancel(&interrupts.cancel)
        .progress(interrupts.board())
        .on_finding(|finding| note(&finding.to_string()))
        .run();
    match copied {
        Ok(receipt) => Ok(receipt),
        Err(CopyError { obstacle, receipt: Some(receipt), .. }) if obstacle.kind() == Kind::Cancelled => {
            Ok(*receipt)
        }
        Err(error) => Err(error.into()),
    }
}

fn worst(code: Code, outcome: Outcome) -> Code {
    match outcome {
        Outcome::Done | Outcome::Refused => code,
        Outcome::Cancelled => Code::Cancelled,
        Outcome::Mismatch | Outcome::Unstable if code == Code::Done => Code::No,
        Outcome::Mismatch | Outcome::Unstable => code,
        Outcome::Failed => Code::Error,
    }
}

fn row(what: &str, receipt: &Receipt) -> Vec<String> {
    let digest = receipt.verification.as_ref().map_or("none".to_owned(), |v| {
        let short: String = v.dest_digest.iter().flat_map(|d| d.chars()).take(8).collect();
        format!("{short} {}", if v.equal { "equal" } else { "DIFFERENT" })
    });
    let outcome = serde_json::to_value(receipt.outcome).ok();
    vec![
        what.to_owned(),
        seconds(receipt.timings.copy_s + receipt.timings.flush_s),
        size(receipt.wire_bytes.sent),
        size(receipt.wire_bytes.received),
        became(receipt),
        digest,
        outcome.as_ref().and_then(|o| o.as_str()).unwrap_or("unknown").to_owned(),
    ]
}

/// Fills the image with bytes that do not compress, except for its hole.
fn make(path: &Path) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(IMAGE_LEN)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0; usize::try_from(MIB).unwrap_or(1 << 20)];
    for at in (0..IMAGE_LEN / MIB).map(|n| n * MIB) {
        for word in block.chunks_exact_mut(8) {
            // xorshift64: any odd-looking bytes will do.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        if !IMAGE_HOLE.contains(&at) {
            file.write_all_at(&block, at)?;
        }
    }
    Ok(())
}

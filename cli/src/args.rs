//! Every flag, defined once.

use crate::visible;
use blkcopy::block::Must;
use blkcopy::copy::run::{Consistency, Verify};
use blkcopy::copy::{Offload, Segment, Sparse};
use blkcopy::nvme::Nqn;
use blkcopy::nvme::copy::Format;
use blkcopy::reactor::EngineChoice;
use blkcopy::volume::{EndsOptions, parse_size};
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::PathBuf;

/// What is copied, and under which rules: the same for `cp` and `plan`.
#[derive(Args)]
pub(crate) struct EndsArgs {
    /// Source: a path, mem:SIZE, null:SIZE or nvme-tcp://host:port/NQN?nsid=N, with an optional range @offset+length
    #[arg(value_name = "SRC")]
    pub(crate) source: OsString,
    /// Destination, named the same way; in a directory the file keeps SRC's name
    #[arg(value_name = "DST")]
    pub(crate) dest: OsString,
    /// Whether devices and file systems make the copy themselves
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    pub(crate) offload: OffloadArg,
    /// What must become of every byte; if that is impossible, nothing is copied and the exit code is 1
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "offload")]
    pub(crate) require: Option<RequireArg>,
    /// Holes: kept (auto), also made of zeroes (always), or all blocks allocated (never)
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    pub(crate) sparse: SparseArg,
    /// Write into an existing file, keeping its other bytes and its length; needed for an offset above 0
    #[arg(long)]
    pub(crate) in_place: bool,
    /// Copy only this part, in place (repeatable); offsets count from the start of the ranges given
    #[arg(long = "segment", value_name = "SRC:DST:LEN", value_parser = parse_segment)]
    pub(crate) segments: Vec<Segment>,
    /// Do not flush the destination at the end; the bytes may still be in the page cache only
    #[arg(long)]
    pub(crate) no_sync: bool,
    /// Overwrite a block device or an NVMe namespace
    #[arg(long)]
    pub(crate) yes: bool,
    /// Write to a destination that is mounted, held or otherwise in use
    #[arg(long)]
    pub(crate) force_in_use: bool,
    /// Copy even if it cannot be determined whether source and destination share storage
    #[arg(long)]
    pub(crate) assume_distinct: bool,
    /// Refuse a source that another program may write to, and claim it during the copy as far as the system allows
    #[arg(long)]
    pub(crate) exclusive_source: bool,
    /// The destination reads as zero, so zeroes are not written to it; only samples are checked, and where it is not
    /// true the copy is wrong (--verify finds that)
    #[arg(long)]
    pub(crate) dest_is_zero: bool,
}

impl From<&EndsArgs> for EndsOptions {
    fn from(args: &EndsArgs) -> Self {
        Self {
            source: args.source.clone(),
            dest: args.dest.clone(),
            segments: args.segments.clone(),
            offload: args.require.map_or(args.offload.into(), |must| Offload::Require(must.into())),
            sparse: args.sparse.into(),
            no_sync: args.no_sync,
            in_place: args.in_place,
            overwrite: args.yes,
            force_in_use: args.force_in_use,
            assume_distinct: args.assume_distinct,
            exclusive_source: args.exclusive_source,
            dest_is_zero: args.dest_is_zero,
        }
    }
}

/// Copy a file, a block device, or ranges of them
#[derive(Args)]
#[command(after_help = "\
Examples:
  blkcopy cp golden.img vm7.img
  blkcopy cp --yes golden.img /dev/vg0/vm7
  blkcopy cp --yes --verify digest /dev/nvme0n1@0+64GiB /dev/nvme0n1@64GiB
  blkcopy cp --segment 0:1MiB:64KiB --segment 1GiB:0:64KiB a.img b.img
  blkcopy cp --require shared --json golden.img clone.img")]
pub(crate) struct CpArgs {
    #[command(flatten)]
    pub(crate) ends: EndsArgs,
    /// Read both ends back after the flush and compare
    #[arg(long, value_enum, default_value = "none", value_name = "HOW")]
    pub(crate) verify: VerifyArg,
    /// Highest rate in bytes per second, for all methods together
    #[arg(long, value_name = "BYTES/s", value_parser = parse_rate)]
    pub(crate) limit_rate: Option<NonZeroU64>,
    /// What is locked at a time: each request of the plan, or the whole copy
    #[arg(long, value_enum, default_value = "request", value_name = "WHAT")]
    pub(crate) consistency: ConsistencyArg,
    /// Keep the source's owner, mode, access control list, extended attributes and times (regular files)
    #[arg(long)]
    pub(crate) preserve: bool,
    /// Fail with exit code 1 if the source is not known to have stayed the same during the copy
    #[arg(long)]
    pub(crate) require_stable: bool,
    /// Print the receipt as JSON instead of the summary line
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the receipt as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt: Option<PathBuf>,
    /// Print errors only: no progress, notes or summary line
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Engine for reads and writes
    #[arg(long, value_enum, default_value = "auto", value_name = "ENGINE")]
    pub(crate) io_engine: EngineArg,
    /// Memory for data in flight, at least 4KiB
    #[arg(long, default_value = "64MiB", value_name = "BYTES", value_parser = parse_memory)]
    pub(crate) buffer_memory: usize,
}

/// Show what cp would do with each extent, and why; changes nothing
#[derive(Args)]
#[command(after_help = "\
Examples:
  blkcopy plan golden.img vm7.img
  blkcopy plan --require offload --json golden.img /dev/vg0/vm7

Exit code 1 when a line says FAIL.")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) ends: EndsArgs,
    /// Print the plan as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print every extent, however many there are
    #[arg(long)]
    pub(crate) all: bool,
}

/// What is compared: the same for `explain` and `compare`.
#[derive(Args)]
pub(crate) struct LookArgs {
    /// A path, mem:SIZE, null:SIZE or nvme-tcp://host:port/NQN?nsid=N, with an optional range @offset+length
    #[arg(value_name = "A")]
    pub(crate) a: OsString,
    /// The other one, named the same way
    #[arg(value_name = "B")]
    pub(crate) b: OsString,
    /// Print the answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print errors and warnings only; the exit code is the answer
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Engine for reads
    #[arg(long, value_enum, default_value = "auto", value_name = "ENGINE")]
    pub(crate) io_engine: EngineArg,
}

/// Show what two files, devices or ranges share, whoever copied them; reads nothing without --digest
#[derive(Args)]
#[command(after_help = "\
Examples:
  blkcopy explain golden.img vm7.img
  blkcopy explain --digest golden.img vm7.img
  blkcopy explain --json disk.img@0+1GiB disk.img@1GiB+1GiB

Exit code 0 when both are known to hold the same bytes, 1 when they differ or that is not known.")]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) look: LookArgs,
    /// Read on both ends what is not known to be equal, and print the BLAKE3 digests of both
    #[arg(long)]
    pub(crate) digest: bool,
    /// Print every run, however many there are
    #[arg(long)]
    pub(crate) all: bool,
}

/// Compare two files, devices or ranges byte by byte; holes on both ends are not read
#[derive(Args)]
#[command(after_help = "\
Examples:
  blkcopy compare golden.img /dev/vg0/vm7@0+10GiB
  blkcopy compare --all --json a.img b.img

Exit code 0 when they are equal, 1 when they differ.")]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) look: LookArgs,
    /// Go on after the first difference: list the first 100 and count all
    #[arg(long)]
    pub(crate) all: bool,
}

/// Show what a device is and what it can offload
#[derive(Args)]
#[command(after_help = "\
Examples:
  blkcopy info disk.img
  blkcopy info --json /dev/nvme0n1
  blkcopy info nvme-tcp://192.0.2.7:4420          # the subsystems of a target and their namespaces")]
pub(crate) struct InfoArgs {
    /// A path, mem:SIZE, null:SIZE or nvme-tcp://host:port[/NQN[?nsid=N]]
    #[arg(value_name = "DEV")]
    pub(crate) device: OsString,
    /// Print it as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Clone an image between two namespaces of a target in this process, once by NVMe Copy and once by read+write, and
/// compare them
#[derive(Args)]
#[command(after_help = "\
Examples:
  blkcopy demo
  blkcopy demo --dir /mnt/xfs")]
pub(crate) struct DemoArgs {
    /// Make the temporary folder here (the file system decides which methods are available)
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Print the receipts too
    #[arg(long)]
    pub(crate) json: bool,
}

/// Serve devices to NVMe/TCP hosts, Copy included
#[derive(Args)]
#[command(after_help = "\
Examples:
  blkcopy serve disk1.img /dev/vg0/vm7 mem:1GiB
  blkcopy serve --listen 192.0.2.7:4420 --allow nqn.2014-08.org.nvmexpress:uuid:... disk1.img

Namespaces are numbered from 1 in the order given. A host attaches with the line that is printed.")]
pub(crate) struct ServeArgs {
    /// A path, mem:SIZE or null:SIZE; each becomes a namespace (and, with --mount, a file called NAME)
    #[arg(value_name = "[NAME=]DEV", required = true)]
    pub(crate) devices: Vec<OsString>,
    /// Address and port to listen on (repeatable)
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:4420")]
    pub(crate) listen: Vec<String>,
    /// Name of the subsystem; by default made from the machine's id
    #[arg(long, value_name = "NQN", value_parser = parse_nqn)]
    pub(crate) nqn: Option<Nqn>,
    /// Allow this host to attach the namespaces, and only hosts named this way (repeatable)
    #[arg(long, value_name = "HOSTNQN", value_parser = parse_nqn)]
    pub(crate) allow: Vec<Nqn>,
    /// Most connections at once; by default as many as there is memory for
    #[arg(long, value_name = "N")]
    pub(crate) connections: Option<usize>,
    /// Copy formats that are on from the start, for hosts whose kernel cannot enable them (a departure from NVMe)
    #[arg(long, value_enum, value_name = "FORMATS", value_delimiter = ',')]
    pub(crate) copy_formats: Vec<CopyFormatArg>,
    /// Size of a logical block: 512, 1024, 2048 or 4096
    #[arg(long, value_name = "BYTES")]
    pub(crate) block_size: Option<u32>,
    /// Refuse every write
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Serve devices even if they are mounted, held or otherwise in use
    #[arg(long)]
    pub(crate) force_in_use: bool,
    /// Number of threads; each uses one core
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) cores: usize,
    /// Time that a thread polls for work before it sleeps, in microseconds
    #[arg(long, value_name = "US", default_value = "50")]
    pub(crate) spin_us: u64,
    /// Most memory for connections, data in flight and copies, for all threads together
    #[arg(long, default_value = "640MiB", value_name = "SIZE", value_parser = parse_memory)]
    pub(crate) memory: usize,
    /// Print a line for each of these
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) log: Vec<LogArg>,
    /// Also mount the same devices on this folder, as files
    #[arg(long, value_name = "DIR")]
    pub(crate) mount: Option<PathBuf>,
    /// Mount through the page cache
    #[arg(long, requires = "mount")]
    pub(crate) cache: bool,
    /// Let du and stat of a mounted volume show the storage it takes, not its size
    #[arg(long, requires = "mount")]
    pub(crate) show_allocated: bool,
    /// Engine for reads and writes
    #[arg(long, value_enum, default_value = "auto", value_name = "ENGINE")]
    pub(crate) io_engine: EngineArg,
}

/// Show devices as files of a folder: copies between them are block copies, for any program
#[derive(Args)]
#[command(after_help = "\
Examples:
  blkcopy mount /mnt/vols golden=golden.img vm01=nvme-tcp://192.0.2.7:4420/NQN?nsid=1 scratch=mem:1GiB
  blkcopy mount /mnt/vols --ro golden.img vm01.img &
  cp /mnt/vols/golden.img /mnt/vols/vm01.img             # a block copy, offloaded where it can be
  getfattr --only-values -n user.blkcopy.receipt /mnt/vols/vm01.img    # how

A volume keeps its size: when truncated, it reads as zeroes from there on. SIGHUP, SIGINT and SIGTERM unmount.")]
pub(crate) struct MountArgs {
    /// Folder to mount on
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// A path, mem:SIZE, null:SIZE or nvme-tcp://host:port/NQN?nsid=N; called NAME, or by the last part of its path
    #[arg(value_name = "[NAME=]DEV")]
    pub(crate) devices: Vec<OsString>,
    /// A volume that programs can only read (repeatable)
    #[arg(long = "ro", value_name = "[NAME=]DEV")]
    pub(crate) read_only: Vec<OsString>,
    /// Through the page cache: repeated reads are faster, and writes through other exports are seen a little later
    #[arg(long)]
    pub(crate) cache: bool,
    /// Let du and stat show the storage a volume takes, not its size: a sparse volume is copied to other file systems
    /// with its holes, but cp 9.1 then reads and writes it between volumes
    #[arg(long)]
    pub(crate) show_allocated: bool,
    /// Threads that read requests, 2 to 16; by default one for each core
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Numeric owner of the files, who may use the mount; by default the user who mounts
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner)]
    pub(crate) owner: Option<(u32, u32)>,
    /// Mount devices even if they are mounted, held or otherwise in use
    #[arg(long)]
    pub(crate) force_in_use: bool,
    /// Engine for reads and writes
    #[arg(long, value_enum, default_value = "auto", value_name = "ENGINE")]
    pub(crate) io_engine: EngineArg,
}

/// Formats of Copy that a host has to enable.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CopyFormatArg {
    /// Across namespaces
    #[value(name = "2h")]
    F2,
    /// Across namespaces, as for those with 64-bit guards
    #[value(name = "3h")]
    F3,
}

impl CopyFormatArg {
    /// Its bit in CDFE.
    pub(crate) fn bit(self) -> u16 {
        match self {
            Self::F2 => Format::F2.bit(),
            Self::F3 => Format::F3.bit(),
        }
    }
}

/// The name of a subsystem or host, as the standard has it (Base Specification 2.1, 4.7).
fn parse_nqn(text: &str) -> Result<Nqn, String> {
    let name = Nqn::new(text).map_err(|e| e.to_string())?;
    if text.contains(char::is_whitespace) || visible::line(text) != text {
        return Err("an NQN has no spaces, and no characters that are not seen".to_owned());
    }
    if !text.starts_with("nqn.") {
        return Err("an NQN begins with nqn., such as nqn.2014-08.org.example:NAME".to_owned());
    }
    Ok(name)
}

/// What `serve` reports.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogArg {
    /// Each Copy command: ranges, bytes, method, time
    Copies,
}

macro_rules! choices {
    ($(#[$doc:meta])* $name:ident => $to:ident { $($(#[$help:meta])* $variant:ident => $value:ident $(($with:expr))?),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, ValueEnum)]
        pub(crate) enum $name { $($(#[$help])* $variant),+ }
        impl From<$name> for $to {
            fn from(arg: $name) -> Self {
                match arg { $($name::$variant => Self::$value $(($with))?),+ }
            }
        }
    };
}

choices!(OffloadArg => Offload {
    /// Wherever it is possible and not slower
    Auto => Auto,
    /// Everywhere: another spelling of --require offload
    Require => Require(Must::Offload),
    /// Nowhere: always read+write
    Never => Never,
});
choices!(RequireArg => Must {
    /// No data is moved: source and destination share storage afterwards
    Shared => Share,
    /// Shared, or moved by a device or server: no data crosses this machine
    Offload => Offload,
});
choices!(SparseArg => Sparse {
    /// Holes stay holes; zeroes read from a source that cannot tell its holes become holes
    Auto => Auto,
    /// Zeroes in data become holes too
    Always => Always,
    /// Every destination block is allocated
    Never => Never,
});
choices!(VerifyArg => Verify {
    /// Not at all
    None => None,
    /// BLAKE3 of both ends
    Digest => Digest,
    /// Byte by byte
    Bytes => Bytes,
});
choices!(ConsistencyArg => Consistency {
    /// A reader never sees half of a request
    Request => Request,
    /// No other writer can write during the whole copy
    Whole => Whole,
});
choices!(EngineArg => EngineChoice {
    /// io_uring where it is allowed, else threads
    Auto => Auto,
    /// io_uring or an error
    Uring => Uring,
    /// Threads
    Pool => Pool,
});

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| e.to_string())
}

fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let rate = text.strip_suffix("/s").unwrap_or(text);
    NonZeroU64::new(size(rate)?)
        .ok_or_else(|| "at 0 bytes per second the copy would never end; give 1 or more".to_owned())
}

/// Least memory for data in flight: one page.
const MEMORY_MIN: u64 = 4096;

fn parse_memory(text: &str) -> Result<usize, String> {
    let bytes = size(text)?;
    if bytes < MEMORY_MIN {
        return Err(format!("{bytes} bytes is less than one page ({MEMORY_MIN} bytes); give 4KiB or more"));
    }
    usize::try_from(bytes)
        .map_err(|_| format!("{bytes} bytes is more than this machine can address; give less"))
}

fn parse_owner(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    parsed.ok_or_else(|| {
        format!("{text} is not UID:GID; write two numbers, such as 107:107 (id -u NAME, id -g NAME)")
    })
}

fn parse_segment(text: &str) -> Result<Segment, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let [source, dest, len] = parts[..] else {
        return Err(format!(
            "a segment has three parts, not {}; write source:destination:length, such as 0:1MiB:64KiB",
            parts.len()
        ));
    };
    Ok(Segment { source: size(source)?, dest: size(dest)?, len: size(len)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_rates_and_memory() {
        assert_eq!(parse_segment("0:1MiB:4K"), Ok(Segment { source: 0, dest: 1 << 20, len: 4096 }));
        for bad in ["", "1:2", "1:2:3:4", "a:0:1", "0:-1:1", "0:0:1.5K", "0:0:18446744073709551616"] {
            assert!(parse_segment(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_rate("10MiB/s").map(NonZeroU64::get), Ok(10 << 20));
        assert!(parse_rate("0").is_err());
        assert_eq!(parse_memory("4KiB"), Ok(4096));
        assert!(parse_memory("4095").is_err());
    }
}

//! Copy by `NVME_IOCTL_IO64_CMD`, with its status and result told: `nvme copy` prints neither whole.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `NVME_IOCTL_ID` (linux/nvme_ioctl.h).
const NVME_IOCTL_ID: libc::Ioctl = 0x4e40;
/// `NVME_IOCTL_IO64_CMD` (linux/nvme_ioctl.h).
const NVME_IOCTL_IO64_CMD: libc::Ioctl = 0xc050_4e48;
/// The I/O opcode of Copy.
const COPY: u8 = 0x19;
/// Force Unit Access in CDW12.
const FUA: u32 = 1 << 30;

/// `struct nvme_passthru_cmd64` (linux/nvme_ioctl.h).
#[repr(C)]
#[derive(Default)]
struct PassthruCmd64 {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    rsvd2: u32,
    result: u64,
}

const _: () = assert!(size_of::<PassthruCmd64>() == 80);

/// One source range.
#[derive(Default, Clone)]
pub(crate) struct Range {
    pub(crate) slba: u64,
    /// Number of logical blocks, 0's based as in the entry.
    pub(crate) nlb: u16,
    pub(crate) snsid: u32,
    pub(crate) options: u16,
}

/// One Copy command.
#[derive(Default)]
pub(crate) struct Copy {
    pub(crate) dest: u64,
    pub(crate) ranges: Vec<Range>,
    pub(crate) format: u32,
    pub(crate) fua: bool,
    /// The number of ranges the command names, where that is not the length of the list.
    pub(crate) count: Option<u32>,
    /// The bytes of the list that are sent, where those are not all.
    pub(crate) bytes: Option<u32>,
}

/// How a command ended.
pub(crate) struct Done {
    /// Status code type and code with More (13) and Do Not Retry (14), as Linux gives it.
    pub(crate) status: u32,
    result: u64,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = (self.status >> 8 & 7, self.status & 0xff);
        let dnr = if self.status & 0x4000 == 0 { "" } else { " dnr" };
        write!(f, "{kind:x}h/{code:02x}h{dnr} result {}", self.result)
    }
}

impl Copy {
    /// The list as it is sent: 32 bytes a range, 40 in formats 1 and 3.
    fn list(&self) -> Vec<u8> {
        let entry_len = if matches!(self.format, 1 | 3) { 40 } else { 32 };
        let mut list = Vec::with_capacity(self.ranges.len() * entry_len);
        for range in &self.ranges {
            let mut entry = [0; 40];
            entry[0..4].copy_from_slice(&range.snsid.to_le_bytes());
            entry[8..16].copy_from_slice(&range.slba.to_le_bytes());
            entry[16..18].copy_from_slice(&range.nlb.to_le_bytes());
            entry[22..24].copy_from_slice(&range.options.to_le_bytes());
            list.extend_from_slice(&entry[..entry_len]);
        }
        list
    }

    /// Sends the command to the namespace that `device` is; an error is the system's, not the controller's.
    pub(crate) fn send(&self, device: impl AsFd) -> io::Result<Done> {
        let fd = device.as_fd().as_raw_fd();
        // SAFETY: the descriptor is open for the call, and this request takes no argument.
        let nsid = unsafe { libc::ioctl(fd, NVME_IOCTL_ID) };
        let nsid = u32::try_from(nsid).map_err(|_| io::Error::last_os_error())?;
        let mut list = self.list();
        let count = self.count.unwrap_or(u32::try_from(self.ranges.len()).unwrap_or(u32::MAX));
        let data_len = self.bytes.unwrap_or(u32::try_from(list.len()).unwrap_or(u32::MAX));
        // What is sent is what is there, whatever the command line says.
        list.resize(list.len().max(data_len as usize), 0);
        let dest = [self.dest, self.dest >> 32]
            .map(|half| u32::try_from(half & u64::from(u32::MAX)).expect("masked to 32 bits"));
        let fua = if self.fua { FUA } else { 0 };
        let mut command = PassthruCmd64 {
            opcode: COPY,
            nsid,
            addr: list.as_mut_ptr() as u64,
            data_len,
            cdw10: dest[0],
            cdw11: dest[1],
            cdw12: count.wrapping_sub(1) & 0xff | self.format << 8 | fua,
            ..PassthruCmd64::default()
        };
        // SAFETY: the descriptor is open for the call; the kernel reads and writes the struct, and reads `data_len`
        // bytes at `addr`; both live across the call and are at least that long.
        let status = unsafe { libc::ioctl(fd, NVME_IOCTL_IO64_CMD, &raw mut command) };
        let status = u32::try_from(status).map_err(|_| io::Error::last_os_error())?;
        Ok(Done { status, result: command.result })
    }
}

/// `blkcopy-lab copy`: an error unless the command was done; with `uid=N`, done by a process of that user from the
/// start.
pub(crate) fn command(device: &str, dest: &str, words: &[&str], args: &[String]) -> Result<String, String> {
    let bad = |word: &str| format!("{word}: not a word of blkcopy-lab copy");
    let mut copy = Copy { dest: number(dest)?, ..Copy::default() };
    let mut writable = true;
    for word in words {
        let small = |text: &str| number(text)?.try_into().map_err(|_| bad(word));
        match word.split_once('=') {
            Some(("format", n)) => copy.format = small(n)?,
            Some(("count", n)) => copy.count = Some(small(n)?),
            Some(("bytes", n)) => copy.bytes = Some(small(n)?),
            Some(("uid", n)) => {
                let rest: Vec<&String> = args.iter().filter(|a| *a != word).collect();
                let error = Command::new("/proc/self/exe").args(rest).uid(small(n)?).exec();
                return Err(format!("becoming user {n}: {error}"));
            }
            None if *word == "fua" => copy.fua = true,
            None if *word == "read-only" => writable = false,
            None => copy.ranges.push(range(word)?),
            Some(_) => return Err(bad(word)),
        }
    }
    let file =
        OpenOptions::new().read(true).write(writable).open(device).map_err(|e| format!("{device}: {e}"))?;
    let done = copy.send(&file).map_err(|e| format!("{device}: Copy: {e}"))?;
    if done.status == 0 { Ok(done.to_string()) } else { Err(done.to_string()) }
}

fn range(text: &str) -> Result<Range, String> {
    let mut parts = text.split(':');
    let place = parts.next().and_then(|p| p.split_once('+'));
    let (slba, blocks) = place.ok_or_else(|| format!("{text}: a range is SLBA+BLOCKS"))?;
    let (snsid, options) = (parts.next().unwrap_or("0"), parts.next().unwrap_or("0"));
    let too_large = |_| format!("{text}: too large");
    let blocks = number(blocks)?.checked_sub(1).ok_or_else(|| format!("{text}: no blocks"))?;
    Ok(Range {
        slba: number(slba)?,
        nlb: blocks.try_into().map_err(too_large)?,
        snsid: number(snsid)?.try_into().map_err(too_large)?,
        options: number(options)?.try_into().map_err(too_large)?,
    })
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    parsed.map_err(|e| format!("{text}: {e}"))
}

//! The table of a device-mapper device, as the kernel prints it (`DM_TABLE_STATUS`, linux/dm-ioctl.h).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `DM_TABLE_STATUS`, `_IOWR(0xfd, 12, struct dm_ioctl)`, with the 312 bytes of that struct.
const DM_TABLE_STATUS: libc::Ioctl = 0xc138_fd0c_u32 as libc::Ioctl;
/// Bytes of `struct dm_ioctl`.
const HEADER: usize = 312;
/// The table, not the state of its targets.
const STATUS_TABLE: u32 = 1 << 4;
/// The answer does not fit.
const BUFFER_FULL: u32 = 1 << 8;
/// Do not flush the targets before answering.
const NO_FLUSH: u32 = 1 << 11;
/// Longest answer taken, in bytes.
const TABLE_MAX: usize = 4 << 20;

/// One target of a table. Lengths and offsets in units of 512 bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// First sector of the device.
    pub start: u64,
    /// Length in sectors.
    pub len: u64,
    /// Its type: `linear`, `striped`, ...
    pub kind: String,
    /// What follows the type in the table.
    pub parameters: String,
}

/// The table of the device with this number. Needs CAP_SYS_ADMIN: `EACCES` without.
pub fn table(dev: u64) -> io::Result<Vec<Target>> {
    let control = File::options().read(true).write(true).open("/dev/mapper/control")?;
    let mut len = 16 << 10;
    loop {
        let mut buf = vec![0u8; len];
        put(&mut buf, 0, 4);
        put(&mut buf, 12, u32::try_from(len).unwrap_or(u32::MAX));
        put(&mut buf, 16, u32::try_from(HEADER).unwrap_or(0));
        put(&mut buf, 28, STATUS_TABLE | NO_FLUSH);
        buf[40..48].copy_from_slice(&huge(dev).to_ne_bytes());
        call(&control, &mut buf)?;
        if get(&buf, 28) & BUFFER_FULL == 0 {
            return parse(&buf).ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO));
        }
        len *= 4;
        if len > TABLE_MAX {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
    }
}

fn call(control: impl AsFd, buf: &mut [u8]) -> io::Result<()> {
    assert!(buf.len() >= HEADER, "the header comes first");
    // SAFETY: the kernel reads and writes as many bytes as the header's data_size says (`table` puts the length of
    // `buf` there, no other caller does), all of them inside `buf`, which lives across the call.
    let result = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), DM_TABLE_STATUS, buf.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `huge_encode_dev` of the kernel.
fn huge(dev: u64) -> u64 {
    let (major, minor) = (u64::from(rustix::fs::major(dev)), u64::from(rustix::fs::minor(dev)));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

fn put(buf: &mut [u8], at: usize, value: u32) {
    buf[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

fn get(buf: &[u8], at: usize) -> u32 {
    buf.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// `struct dm_target_spec` (sector_start, length, status, next, `target_type` of 16 bytes) and its string, as many as
/// the header says. `next` counts from the front of the data.
fn parse(buf: &[u8]) -> Option<Vec<Target>> {
    let (from, count) = (get(buf, 16) as usize, get(buf, 20) as usize);
    let data = buf.get(from..)?;
    let (mut at, mut all) = (0usize, Vec::new());
    for _ in 0..count {
        let spec = data.get(at..at.checked_add(40)?)?;
        let long = |at: usize| spec[at..at + 8].try_into().ok().map(u64::from_ne_bytes);
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        all.push(Target {
            start: long(0)?,
            len: long(8)?,
            kind: text(&spec[24..40]),
            parameters: text(data.get(at + 40..)?),
        });
        let next = get(spec, 20) as usize;
        // Goes on, so that the count of a foreign answer bounds nothing but itself.
        if next <= at && all.len() < count {
            return None;
        }
        at = next;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(targets: &[(u64, u64, &str, &str)]) -> Vec<u8> {
        let mut buf = vec![0; HEADER];
        put(&mut buf, 16, 312);
        put(&mut buf, 20, targets.len() as u32);
        for (start, len, kind, parameters) in targets {
            let mut spec = vec![0; 40];
            spec[..8].copy_from_slice(&start.to_ne_bytes());
            spec[8..16].copy_from_slice(&len.to_ne_bytes());
            spec[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
            spec.extend(parameters.as_bytes());
            spec.push(0);
            spec.resize(spec.len().next_multiple_of(8), 0);
            let next = (buf.len() - HEADER + spec.len()) as u32;
            put(&mut spec, 20, next);
            buf.extend(spec);
        }
        buf
    }

    #[test]
    fn tables_are_read_and_foreign_numbers_lead_nowhere() {
        let targets = [(0, 100, "linear", "8:1 2048"), (100, 50, "striped", "2 128 8:1 0 8:2 64")];
        let buf = answer(&targets);
        let read = parse(&buf).unwrap();
        let plain: Vec<_> = read.iter().map(|t| (t.start, t.len, &*t.kind, &*t.parameters)).collect();
        assert_eq!(plain, targets);
        assert_eq!(parse(&answer(&[])), Some(Vec::new()));
        for cut in 0..buf.len() {
            let _ = parse(&buf[..cut]);
        }
        let mut many = buf.clone();
        put(&mut many, 20, u32::MAX);
        assert_eq!(parse(&many), None);
        let mut back = buf;
        put(&mut back, HEADER + 20, 0);
        assert_eq!(parse(&back), None);
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(huge(rustix::fs::makedev(253, 3)), 253 << 8 | 3);
        assert_eq!(huge(rustix::fs::makedev(8, 256)), 8 << 8 | 1 << 20);
    }
}

//! Standard output and standard error must not lead into what is copied or served: what is printed would overwrite it.

use crate::fail::Fail;
use crate::lines;
use rustix::fs::{FileType, Stat, fstat, stat};
use std::io;
use std::path::Path;

/// Errors: `path` is the regular file or block device that one of the two leads to. Nothing is printed there any more.
pub(crate) fn check_apart(path: &Path) -> Result<(), Fail> {
    let Ok(end) = stat(path) else { return Ok(()) };
    let leads = |stream: rustix::io::Result<Stat>| stream.is_ok_and(|stream| is_one(&stream, &end));
    let (out, err) = (leads(fstat(io::stdout())), leads(fstat(io::stderr())));
    if err {
        lines::divert(!out);
    }
    if out || err {
        let name = if out { "standard output" } else { "standard error" };
        let text =
            format!("{}: {name} is redirected to it, so the output would overwrite it", path.display());
        return Err(Fail::invalid(text).hint("redirect the output to another file"));
    }
    Ok(())
}

fn is_one(a: &Stat, b: &Stat) -> bool {
    match (FileType::from_raw_mode(a.st_mode), FileType::from_raw_mode(b.st_mode)) {
        (FileType::RegularFile, FileType::RegularFile) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        // Two device files may stand for one device.
        (FileType::BlockDevice, FileType::BlockDevice) => a.st_rdev == b.st_rdev,
        _ => false,
    }
}

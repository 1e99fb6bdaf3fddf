//! Devices that a daemon serves: opened, held, and named.

use crate::fail::Fail;
use crate::streams;
use blkcopy::block::places::share_bytes;
use blkcopy::block::{Error, Kind};
use blkcopy::drivers::{Hold, hold, in_use};
use blkcopy::exports::fuse::Serve;
use blkcopy::map::LazyDevice;
use blkcopy::volume::{self, Found, Name, Place, hold_dest};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// A device that is served, and what keeps other programs off it meanwhile.
pub(crate) struct Served {
    pub(crate) name: String,
    /// What was opened, under its list of zeroes that are owed: all front ends use it through that.
    pub(crate) device: Arc<LazyDevice>,
    pub(crate) read_only: bool,
    pub(crate) serve: Serve,
    _hold: Hold,
}

/// How devices are to be served.
#[derive(Clone, Copy)]
pub(crate) struct How {
    pub(crate) read_only: bool,
    pub(crate) force_in_use: bool,
    /// Devices on other machines too.
    pub(crate) remote: bool,
}

/// Opens `[NAME=]DEV`, behind those that are open already; its number names it where it has no name of its own.
pub(crate) fn open(text: &OsStr, before: &[Served], how: How) -> Result<Served, Fail> {
    let (name, text) = split_name(text);
    let place = Name::parse(text)?;
    if place.range.is_some() {
        let text = format!("{}: a whole device is served, not a range of one", place.text());
        return Err(Fail::invalid(text).hint("leave @offset+length out"));
    }
    if matches!(place.place, Place::NvmeTcp(_)) && !how.remote {
        let text = format!("{}: a namespace of another target cannot be served yet", place.text());
        return Err(Fail::invalid(text).hint("serve the device itself on the machine that has it"));
    }
    if let Some(path) = place.path() {
        streams::check_apart(path)?;
        look(path, how)?;
    }
    let device = if how.read_only {
        volume::open_source(&place)?
    } else {
        volume::open_dest(&place, how.force_in_use)?
    };
    if device.read_only() && !how.read_only {
        let error = Error::new(Kind::ReadOnly, "the device is read-only").on(&place.device_text());
        return Err(Fail::from(error).hint("serve it read-only"));
    }
    let own = || place.path().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    let name = name.or_else(own).unwrap_or_else(|| format!("vol{}", before.len() + 1));
    // Before it is held: the hold would say that another program has it.
    for other in before {
        if let Some(why) = share_bytes(&device, other.device.inner())?.reason() {
            let text = format!("{name} and {} hold the same bytes ({why}); leave one out", other.name);
            return Err(Error::new(Kind::InUse, text).on(&place.device_text()).into());
        }
    }
    let hold = if how.read_only { hold(&device, false)? } else { hold_dest(&device)? };
    let device = LazyDevice::new(device)?;
    let serve = match place.place {
        Place::Mem(_) | Place::Null(_) => Serve::AtOnce,
        Place::Path(_) => Serve::MayBlock,
        Place::NvmeTcp(_) => Serve::Elsewhere,
    };
    Ok(Served { name, device, read_only: how.read_only, serve, _hold: hold })
}

fn look(path: &Path, how: How) -> Result<(), Fail> {
    let shown = path.display().to_string();
    if volume::find(path)? == Found::Nothing {
        let error = Error::new(Kind::NotFound, "is not there").on(&shown);
        return Err(Fail::from(error).hint("make it first: truncate -s 10G disk.img"));
    }
    let holders = in_use(path)?;
    if let Some(holder) = holders.first().filter(|_| !how.force_in_use && !how.read_only) {
        let error = Error::new(Kind::InUse, format!("in use: {holder}")).on(&shown);
        let hint =
            "unmount or stop what uses it, or serve it read-only, or give --force-in-use if that is safe";
        return Err(Fail::from(error).hint(hint));
    }
    Ok(())
}

/// `NAME=DEV` taken apart. A path that exists is a path, and what stands before the `=` of a URL or path is no name.
fn split_name(text: &OsStr) -> (Option<String>, OsString) {
    let whole = || (None, text.to_owned());
    if Path::new(text).symlink_metadata().is_ok() {
        return whole();
    }
    let bytes = text.as_bytes();
    let Some(at) = bytes.iter().position(|&b| b == b'=') else { return whole() };
    match std::str::from_utf8(&bytes[..at]) {
        Ok(name) if !name.is_empty() && !name.contains(['/', ':', '@']) => {
            (Some(name.to_owned()), OsStr::from_bytes(&bytes[at + 1..]).to_owned())
        }
        _ => whole(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_before_devices() {
        let split = |text: &str| {
            let (name, rest) = split_name(OsStr::new(text));
            (name, rest.to_string_lossy().into_owned())
        };
        assert_eq!(split("golden=golden.img"), (Some("golden".into()), "golden.img".into()));
        assert_eq!(
            split("vm=nvme-tcp://h:1/nqn?nsid=1"),
            (Some("vm".into()), "nvme-tcp://h:1/nqn?nsid=1".into())
        );
        for whole in ["nvme-tcp://h:1/nqn?nsid=1", "dir/a=b", "mem:1GiB", "=x"] {
            assert_eq!(split(whole), (None, whole.into()));
        }
    }
}

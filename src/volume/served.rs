//! Devices that a daemon serves: named, opened safely, and held.

use super::file_dest::hold_dest;
use super::findings::{Finding, Obstacle};
use super::name::{Name, Place};
use super::open::{self, Found};
use crate::block::Result;
use crate::block::places::share_bytes;
use crate::drivers::{Hold, HoldAs, hold, in_use};
use crate::map::LazyDevice;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// How a device is to be served.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServeOptions {
    /// Nothing is written to it.
    pub read_only: bool,
    /// Consent to serve what is mounted, held or otherwise in use.
    pub force_in_use: bool,
    /// Whether devices on other machines may be served too.
    pub remote: bool,
}

/// `[NAME=]DEV`, taken apart.
pub struct ServedName {
    /// What it is to be called, if that was said.
    pub name: Option<String>,
    /// The device.
    pub device: Name,
}

/// A device that is served, and what keeps other programs off it meanwhile.
pub struct Served {
    /// What it is called.
    pub name: String,
    /// What was named.
    pub place: Place,
    /// What was opened, under its list of lazy zeroes: all front ends use it through that.
    pub device: Arc<LazyDevice>,
    /// Nothing is written to it.
    pub read_only: bool,
    _hold: Hold,
}

impl ServedName {
    /// Takes it apart.
    ///
    /// Errors: those of [`Name::parse`]; [`Finding::ServedRange`], as a whole device is served.
    pub fn parse(text: &OsStr) -> Result<Self, Obstacle> {
        let (name, text) = split_name(text);
        let device = Name::parse(text)?;
        if device.range.is_some() {
            return Err(Finding::ServedRange { device: device.text().into_owned() }.into());
        }
        Ok(Self { name, device })
    }

    /// Opens it, after those that are open already; its number names it where it has no name of its own.
    pub fn open(self, before: &[Served], options: ServeOptions) -> Result<Served, Obstacle> {
        let Self { name, device: place } = self;
        let read_only = options.read_only;
        if matches!(place.place, Place::NvmeTcp(_)) && !options.remote {
            return Err(Finding::ServedRemote { device: place.text().into_owned() }.into());
        }
        if let Some(path) = place.path() {
            look(path, options)?;
        }
        let device = match read_only {
            true => open::open_source(&place)?,
            false => open::open_dest(&place, options.force_in_use)?,
        };
        if device.read_only() && !read_only {
            return Err(Finding::ServedIsReadOnly { device: place.device_text() }.into());
        }
        let own = || place.path().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
        let name = name.or_else(own).unwrap_or_else(|| format!("vol{}", before.len() + 1));
        // Before it is held: the hold would say that another program has it.
        for other in before {
            if let Some(why) = share_bytes(&device, other.device.inner())?.reason() {
                let (other, why) = (other.name.clone(), why.to_string());
                return Err(Finding::ServedTwice { device: place.device_text(), name, other, why }.into());
            }
        }
        let hold = match read_only {
            true => hold(&device, HoldAs::Source)?,
            false => hold_dest(&device, options.force_in_use)?,
        };
        let device = LazyDevice::new(device)?;
        Ok(Served { name, place: place.place, device, read_only, _hold: hold })
    }
}

fn look(path: &Path, options: ServeOptions) -> Result<(), Obstacle> {
    let device = path.display().to_string();
    if open::find(path)? == Found::Nothing {
        return Err(Finding::ServedNotFound { device }.into());
    }
    if options.force_in_use || options.read_only {
        return Ok(());
    }
    match in_use(path)?.into_iter().next() {
        Some(holder) => Err(Finding::ServedInUse { device, holder }.into()),
        None => Ok(()),
    }
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

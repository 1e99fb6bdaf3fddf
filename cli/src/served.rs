//! Devices that a daemon serves: apart from what it prints.

use crate::fail::Fail;
use crate::streams;
use blkcopy::volume::{ServeOptions, Served, ServedName};
use std::ffi::OsStr;

/// Opens `[NAME=]DEV`, after those that are open already.
pub(crate) fn open(text: &OsStr, before: &[Served], options: ServeOptions) -> Result<Served, Fail> {
    let name = ServedName::parse(text)?;
    if let Some(path) = name.device.path() {
        streams::check_apart(path)?;
    }
    Ok(name.open(before, options)?)
}

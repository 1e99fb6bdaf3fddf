//! Owner, mode, access control list, extended attributes and times of the source, kept as `cp -p` keeps them.

use crate::block::{Device, Error};
use crate::drivers::File;
use rustix::fs::{Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::CString;

/// Set-user-ID, set-group-ID and sticky bit.
const SPECIAL: u32 = 0o7000;
/// The access control list: a part of the mode.
const ACL: &[u8] = b"system.posix_acl_access";
/// What a program may do beyond its caller's rights: worth nothing when the file belongs to another user than the
/// source.
const CAPABILITY: &[u8] = b"security.capability";

/// What is kept of a source.
pub(super) struct Kept {
    stat: Stat,
    attributes: Vec<(CString, Vec<u8>)>,
}

impl Kept {
    /// Reads it.
    pub(super) fn of(file: &File) -> Result<Self, Error> {
        let attributes = attributes(file)
            .map_err(|e| Error::os("its extended attributes cannot be read", e).on(file.name()))?;
        Ok(Self { stat: *file.stat_at_open(), attributes })
    }

    /// Gives it to a finished copy. `new`: the copy was made with no rights for others.
    ///
    /// The order matters: a new owner clears the special bits, which must not be there while the file belongs to
    /// another user than the source; the list of rights comes with the mode; times last, because all else changes them.
    /// What this user or the destination's file system cannot keep is a warning. Errors: everything else, such as a
    /// full disk.
    pub(super) fn give(&self, file: &File, new: bool, warnings: &mut Vec<String>) -> Result<(), Error> {
        let failed = |what: &'static str| move |e: Errno| Error::os(what, e).on(file.name());
        let old = rustix::fs::fstat(file).map_err(failed("cannot stat"))?;
        let mode = self.stat.st_mode & 0o7777;
        if !new {
            // The new owner is not to find rights open that neither the old nor the new mode gives.
            let least = old.st_mode & mode & 0o700;
            rustix::fs::fchmod(file, Mode::from_raw_mode(least)).map_err(failed("its mode cannot be set"))?;
        }
        let is_owned = self.give_owner(file, &old, warnings);
        let mode = if is_owned { mode } else { mode & !SPECIAL };
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(failed("its mode cannot be set"))?;
        self.give_attributes(file, mode, is_owned, warnings)?;
        let time = |tv_sec, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec.cast_signed() };
        let times = Timestamps {
            last_access: time(self.stat.st_atime, self.stat.st_atime_nsec),
            last_modification: time(self.stat.st_mtime, self.stat.st_mtime_nsec),
        };
        rustix::fs::futimens(file, &times).map_err(failed("its times cannot be set"))
    }

    /// True when the copy belongs to the source's user and group.
    fn give_owner(&self, file: &File, old: &Stat, warnings: &mut Vec<String>) -> bool {
        let (uid, gid) = (self.stat.st_uid, self.stat.st_gid);
        if (old.st_uid, old.st_gid) == (uid, gid) {
            return true;
        }
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let Err(error) = rustix::fs::fchown(file, Some(user), Some(group)) else { return true };
        // Who may not give files away may still give them to a group of one's own.
        let grouped = rustix::fs::fchown(file, None, Some(group)).is_ok();
        let what = if grouped { format!("owner {uid}") } else { format!("owner {uid}:{gid}") };
        let special = if self.stat.st_mode & 0o6000 == 0 {
            ""
        } else {
            ", and neither are set-user-ID and set-group-ID"
        };
        warnings.push(format!("{}: {what} is not kept{special} ({error})", file.name()));
        false
    }

    fn give_attributes(
        &self,
        file: &File,
        mode: u32,
        is_owned: bool,
        warnings: &mut Vec<String>,
    ) -> Result<(), Error> {
        let is_here = |error| matches!(error, Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL);
        let has_list = self.attributes.iter().any(|(name, _)| name.to_bytes() == ACL);
        if !has_list && let Err(error) = rustix::fs::fremovexattr(file, "system.posix_acl_access") {
            // A folder may give its files a list that the source has not.
            if !is_here(error) {
                warnings.push(format!(
                    "{}: keeps the access control list inherited from its folder ({error})",
                    file.name()
                ));
            }
        }
        for (name, value) in &self.attributes {
            if name.to_bytes() == CAPABILITY && !is_owned {
                continue;
            }
            let Err(error) = rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()) else { continue };
            let shown = name.to_string_lossy();
            if !matches!(error, Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::INVAL)
            {
                return Err(Error::os(format!("its attribute {shown} cannot be set"), error).on(file.name()));
            }
            warnings.push(format!("{}: attribute {shown} is not kept ({error})", file.name()));
            if name.to_bytes() == ACL {
                // The mode's group bits are what the list gives to anybody named in it: too much for the group.
                let mode = Mode::from_raw_mode(mode & !0o070);
                rustix::fs::fchmod(file, mode)
                    .map_err(|e| Error::os("its mode cannot be set", e).on(file.name()))?;
            }
        }
        Ok(())
    }
}

/// True for an attribute that says something of the file's own, not of where it lies.
fn is_kept(name: &[u8]) -> bool {
    let is_user = name.starts_with(b"user.") && !name.starts_with(b"user.blkcopy.");
    let is_rights =
        name == ACL || name == CAPABILITY || name == b"system.nfs4_acl" || name == b"system.richacl";
    is_user || is_rights || name.starts_with(b"trusted.") && !name.starts_with(b"trusted.overlay.")
}

/// What `call` puts into a buffer that is large enough.
fn read(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    // Linux takes no longer list and no longer value through its usual calls; some file systems have longer ones.
    let mut buf = vec![0; 64 << 10];
    loop {
        match call(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            Err(Errno::RANGE) if buf.len() < 16 << 20 => buf.resize(buf.len() * 2, 0),
            Err(error) => return Err(error),
        }
    }
}

fn attributes(file: &File) -> Result<Vec<(CString, Vec<u8>)>, Errno> {
    let names = match read(|buf| rustix::fs::flistxattr(file, buf)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut all = Vec::new();
    for name in names.split(|&b| b == 0).filter(|name| is_kept(name)) {
        let Ok(name) = CString::new(name) else { continue };
        match read(|buf| rustix::fs::fgetxattr(file, &name, buf)) {
            Ok(value) => all.push((name, value)),
            // Gone since, or not ours to read.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

//! Kinds of local storage that volumes lie on: file systems and loop devices of many formats, made fresh and taken
//! apart.

#![allow(dead_code)] // each test file uses a part of it

use crate::common::{self, Undo};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// One kind of storage, by a name that `BLKCOPY_MATRIX` and `BLKCOPY_EXERCISE` take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Site(usize);

/// How a site is made.
enum Make {
    /// A file system on a loop device: the command that makes it, options to mount it with, size.
    Fs(&'static str, &'static str, &'static str),
    Tmpfs,
    /// An overlay over the folder's own file system.
    Overlay,
    /// Each volume is a loop device with sectors of so many bytes.
    Loop(u32),
}

const SITES: [(&str, Make); 13] = [
    ("on-ext4-1k", Make::Fs("mkfs.ext4 -q -F -b 1024", "", "120M")),
    ("on-ext4-4k", Make::Fs("mkfs.ext4 -q -F -b 4096", "", "120M")),
    ("on-ext4-no-delalloc", Make::Fs("mkfs.ext4 -q -F -b 4096", "-o nodelalloc", "120M")),
    ("on-ext3", Make::Fs("mkfs.ext3 -q -F", "-t ext3", "120M")),
    ("on-ext2-1k", Make::Fs("mkfs.ext2 -q -F -b 1024", "-t ext2", "120M")),
    ("on-xfs", Make::Fs("mkfs.xfs -q -f", "", "400M")),
    ("on-xfs-noreflink", Make::Fs("mkfs.xfs -q -f -m reflink=0", "", "400M")),
    ("on-btrfs", Make::Fs("mkfs.btrfs -q -f", "", "400M")),
    ("on-btrfs-zstd", Make::Fs("mkfs.btrfs -q -f", "-o compress-force=zstd", "400M")),
    ("on-tmpfs", Make::Tmpfs),
    ("on-overlay", Make::Overlay),
    ("on-loop-512", Make::Loop(512)),
    ("on-loop-4096", Make::Loop(4096)),
];

/// A site that was made. Dropped, it is gone.
pub(crate) struct Base {
    site: Site,
    dir: PathBuf,
    // In this order they are dropped.
    _undo: Undo,
    _folder: TempDir,
}

/// Volumes of a base. Dropped, their loop devices are gone.
pub(crate) struct Volumes {
    /// What is served.
    pub(crate) devices: Vec<PathBuf>,
    _undo: Undo,
    _folder: TempDir,
}

impl Site {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..SITES.len()).map(Self)
    }

    pub(crate) fn name(self) -> &'static str {
        SITES[self.0].0
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::all().find(|site| site.name() == name)
    }

    /// Makes it, or says why it cannot be had here.
    pub(crate) fn make(self) -> Result<Base, String> {
        common::loops_or_why()?;
        let folder = common::folder();
        let (mut undo, base) = (Undo::default(), folder.path().to_owned());
        let dir = match &SITES[self.0].1 {
            Make::Fs(mkfs, options, size) => fs(&mut undo, &base, mkfs, options, size)?,
            Make::Tmpfs => common::mount_tmpfs(&mut undo, &base, "fs", "120M")?,
            Make::Overlay => overlay(&mut undo, &base)?,
            Make::Loop(_) => base,
        };
        Ok(Base { site: self, dir, _undo: undo, _folder: folder })
    }
}

impl Base {
    /// Fresh volumes that read as zero: sparse ones, and every second with all its blocks written.
    pub(crate) fn volumes(&self, count: usize, size: u64) -> Volumes {
        let folder = TempDir::new_in(&self.dir).expect("a folder of the site");
        let mut undo = Undo::default();
        let devices = (0..count).map(|i| {
            let path = folder.path().join(format!("file{i}"));
            let file = std::fs::File::create(&path).expect("a new file");
            file.set_len(size).expect("a length");
            if i % 2 == 1 {
                let zeroes = vec![0; usize::try_from(size).expect("a small volume")];
                std::fs::write(&path, zeroes).and_then(|()| file.sync_all()).expect("a full file");
            }
            match SITES[self.site.0].1 {
                Make::Loop(sector) => {
                    let flags = format!("--sector-size {sector}");
                    common::attach_with(&mut undo, &path, &flags).expect("a loop device")
                }
                _ => path,
            }
        });
        let devices = devices.collect();
        Volumes { devices, _undo: undo, _folder: folder }
    }
}

fn fs(undo: &mut Undo, base: &Path, mkfs: &str, options: &str, size: &str) -> Result<PathBuf, String> {
    let (image, at) = (base.join("fs.image"), base.join("fs"));
    common::sh(&format!("truncate -s {size} {}; mkdir {}", image.display(), at.display()))?;
    let device = common::attach(undo, &image)?;
    let (device, at_text) = (device.display(), at.display());
    common::sh(&format!("{mkfs} {device} && mount {options} {device} {at_text}"))?;
    undo.later(format!("umount {at_text}"));
    Ok(at)
}

fn overlay(undo: &mut Undo, base: &Path) -> Result<PathBuf, String> {
    let (b, at) = (base.display(), base.join("fs"));
    common::sh(&format!(
        "cd {b}; mkdir lower upper work fs; mount -t overlay -o lowerdir={b}/lower,upperdir={b}/upper,workdir={b}/work overlay {b}/fs"
    ))?;
    undo.later(format!("umount {}", at.display()));
    Ok(at)
}

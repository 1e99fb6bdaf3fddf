//! Where the exerciser runs: plain files on the kernel's file systems, and mounts over every kind of device.

#![allow(dead_code)] // each test file uses a part of it

use crate::child::{self, Kind};
use crate::common::{self, MIB, Undo};
use crate::exerciser::Ground;
use crate::exerciser::ops::{Caps, Plan};
use crate::sites::{Base, Site, Volumes};
use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is under the volumes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Under {
    Tmpfs,
    Ext4,
    Xfs,
    /// Mounts, from here on.
    Memory,
    File,
    FileXfs,
    Map,
    NvmeTcp,
    /// A resizable view of memory.
    View,
    Bug(usize),
    /// A mount of files or loop devices on storage of some kind, by one of the two engines.
    On(Site, Engine),
}

/// Engine of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Engine {
    Uring,
    Pool,
}

impl Engine {
    /// As the command calls it.
    pub(crate) const fn name(self) -> &'static str {
        if matches!(self, Self::Uring) { "uring" } else { "pool" }
    }
}

/// One place, by a name that `BLKCOPY_EXERCISE` takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) under: Under,
    pub(crate) cache: bool,
}

const NAMES: [(&str, Under); 9] = [
    ("tmpfs", Under::Tmpfs),
    ("ext4", Under::Ext4),
    ("xfs", Under::Xfs),
    ("memory", Under::Memory),
    ("file", Under::File),
    ("file-xfs", Under::FileXfs),
    ("map", Under::Map),
    ("nvme-tcp", Under::NvmeTcp),
    ("view", Under::View),
];

impl Place {
    pub(crate) fn new(under: Under, cache: bool) -> Self {
        Self { under, cache }
    }

    pub(crate) fn name(self) -> String {
        let cache = if self.cache { "+cache" } else { "" };
        match self.under {
            Under::Bug(bug) => format!("bug{bug}{cache}"),
            Under::On(site, engine) => format!("{}+{}{cache}", site.name(), engine.name()),
            under => {
                let known = NAMES.iter().find(|(_, u)| *u == under);
                format!("{}{cache}", known.map_or("?", |(name, _)| name))
            }
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        let (name, cache) = name.strip_suffix("+cache").map_or((name, false), |name| (name, true));
        let bug = name.strip_prefix("bug").and_then(|n| n.parse().ok()).map(Under::Bug);
        let on = |engine: Engine| {
            let site = name.strip_suffix(engine.name())?.strip_suffix('+')?;
            Some(Under::On(Site::named(site)?, engine))
        };
        let bug = bug.or_else(|| on(Engine::Uring)).or_else(|| on(Engine::Pool));
        let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, under)| *under);
        Some(Self { under: bug.or(known)?, cache })
    }

    /// False for plain files.
    pub(crate) fn is_mount(self) -> bool {
        !matches!(self.under, Under::Tmpfs | Under::Ext4 | Under::Xfs)
    }

    /// Why it cannot be had here.
    pub(crate) fn or_why(self) -> Result<(), String> {
        if self.is_mount() {
            child::mounts_or_why()?;
        }
        match self.under {
            Under::Tmpfs | Under::Xfs | Under::FileXfs => common::loops_or_why(),
            Under::On(site, _) => site.make().map(drop),
            _ => Ok(()),
        }
    }

    pub(crate) fn caps(self, growing: bool) -> Caps {
        let mount = self.is_mount();
        Caps {
            ioctl: mount && !growing,
            direct: Some(512),
            direct_copy: mount,
            zero_range: self.under != Under::Tmpfs,
            fixed_size: mount && self.under != Under::View,
            growing,
        }
    }

    pub(crate) fn plan(self, seed: u64, ops: usize, growing: bool) -> Plan {
        let volumes = if self.under == Under::NvmeTcp { 2 } else { 3 };
        Plan { seed, ops, volumes, size: 2 * MIB, compare_every: 250, caps: self.caps(growing) }
    }

    /// Fresh volumes.
    pub(crate) fn ground(self, volumes: usize, size: u64, growing: bool) -> Ground {
        let len = if growing { 0 } else { size };
        match self.under {
            Under::Tmpfs | Under::Ext4 | Under::Xfs => {
                let (keep, dir) = self.folder();
                Ground { paths: files(&dir, volumes, len), beat: Arc::default(), keep }
            }
            Under::Memory => {
                let devices: Vec<String> = (0..volumes).map(|i| format!("vol{i}=mem:{size}")).collect();
                ground(child::by_command(&devices, self.cache), volumes, Box::new(()))
            }
            Under::File | Under::FileXfs => {
                let (keep, dir) = self.folder();
                let files = files(&dir, volumes, size);
                let device = |(i, file): (usize, &PathBuf)| format!("vol{i}={}", file.display());
                let devices: Vec<String> = files.iter().enumerate().map(device).collect();
                ground(child::by_command(&devices, self.cache), volumes, keep)
            }
            Under::On(site, _) => {
                let base = site.make().expect("asked before whether it can be had");
                let mut on = self.ground_on(&base, volumes, size);
                // Volumes first, then what they lie on.
                on.keep = Box::new((on.keep, base));
                on
            }
            Under::NvmeTcp => {
                let (server, names) = child::target(volumes, size);
                let devices: Vec<String> =
                    names.iter().enumerate().map(|(i, n)| format!("vol{i}={n}")).collect();
                ground(child::by_command(&devices, self.cache), volumes, Box::new(server))
            }
            Under::Map | Under::View | Under::Bug(_) => {
                let kind = match self.under {
                    Under::Map => Kind::Map,
                    Under::Bug(bug) => Kind::Miscopying(bug),
                    _ => Kind::Memory,
                };
                let mount = child::own(size, &vec![kind; volumes], self.cache, self.under == Under::View);
                ground(mount, volumes, Box::new(()))
            }
        }
    }

    /// A mount of fresh volumes on a site that was made before.
    pub(crate) fn ground_on(self, base: &Base, volumes: usize, size: u64) -> Ground {
        let (mount, below) = self.mounted_on(base, volumes, size);
        ground(mount, volumes, Box::new(below))
    }

    /// The same, the mount apart from the volumes, which must be dropped after it.
    pub(crate) fn mounted_on(self, base: &Base, volumes: usize, size: u64) -> (child::Mounted, Volumes) {
        let Under::On(_, engine) = self.under else { panic!("{} is not on a site", self.name()) };
        let below = base.volumes(volumes, size);
        let device = |(i, at): (usize, &PathBuf)| format!("vol{i}={}", at.display());
        let devices: Vec<String> = below.devices.iter().enumerate().map(device).collect();
        (child::by_engine(&devices, self.cache, engine.name()), below)
    }

    /// A fresh folder of the file system, and what must be kept for it.
    fn folder(self) -> (Box<dyn Any>, PathBuf) {
        let folder = common::folder();
        let (mut undo, base) = (Undo::default(), folder.path().to_owned());
        let dir = match self.under {
            Under::Tmpfs => common::mount_tmpfs(&mut undo, &base, "t", "64M"),
            Under::Xfs | Under::FileXfs => common::mount_loop(&mut undo, &base, "x", "mkfs.xfs -q", "400M"),
            _ => Ok(base),
        };
        // In this order they are dropped.
        (Box::new((undo, folder)), dir.expect("asked before whether it can be had"))
    }
}

fn files(dir: &Path, count: usize, len: u64) -> Vec<PathBuf> {
    (0..count)
        .map(|i| {
            let path = dir.join(format!("file{i}"));
            std::fs::File::create(&path).and_then(|f| f.set_len(len)).expect("a new file");
            path
        })
        .collect()
}

fn ground(mount: child::Mounted, volumes: usize, keep: Box<dyn Any>) -> Ground {
    let paths = (0..volumes).map(|i| mount.dir.join(format!("vol{i}"))).collect();
    // The mount is dropped first: what is under it goes after it.
    Ground { paths, beat: mount.beat.clone(), keep: Box::new((mount, keep)) }
}

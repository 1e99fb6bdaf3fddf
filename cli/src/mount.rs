//! `blkcopy mount`: devices as files of one mount, whose copies are block copies.

use crate::args::MountArgs;
use crate::fail::{Code, Fail};
use crate::output::{self, note};
use crate::served;
use crate::signals::Interrupts;
use crate::visible;
use blkcopy::block::{Device as _, Error, Kind};
use blkcopy::exports::fuse::{Mount, MountOptions, Serve, Volume};
use blkcopy::reactor::Waker;
use blkcopy::volume::{Place, ServeOptions, Served, size};
use std::path::Path;

/// Runs the command: until a signal or somebody's `umount` ends it.
pub(crate) fn run(args: &MountArgs) -> Result<Code, Fail> {
    let interrupts = Interrupts::listen()?;
    interrupts.writes_from_behind();
    crate::serve::raise_file_limit();
    let mut all = Vec::new();
    for (texts, read_only) in [(&args.devices, false), (&args.read_only, true)] {
        for text in texts {
            let how = ServeOptions { read_only, force_in_use: args.force_in_use, remote: true };
            interrupts.doing(format!("opening {}", text.to_string_lossy()));
            let served = served::open(text, &all, how)?;
            all.push(served);
        }
    }
    if all.is_empty() {
        return Err(Fail::invalid("no volume is given").hint("blkcopy mount DIR NAME=DEV..."));
    }
    let mut options = MountOptions {
        cache: args.cache,
        owner: args.owner,
        show_allocated: args.show_allocated,
        engine: args.io_engine.into(),
        ..MountOptions::default()
    };
    if let Some(threads) = args.threads {
        options.readers = threads;
    }
    interrupts.doing(format!("mounting on {}", args.dir.display()));
    let mount = start(&args.dir, &all, options)?;
    interrupts.doing(format!("serving {}", volumes(all.len())));
    let thread = std::thread::current();
    mount.watch(Waker::new(move || thread.unpark()));
    interrupts.wait_unless(|| mount.is_over());
    interrupts.doing("unmounting: stores lazy zeroes and flushes the volumes");
    finish(mount)
}

/// Who serves requests of a volume, by what it is.
fn how_to_serve(place: &Place) -> Serve {
    match place {
        Place::Mem(_) | Place::Null(_) => Serve::AtOnce,
        Place::Path(_) => Serve::MayBlock,
        Place::NvmeTcp(_) => Serve::Elsewhere,
    }
}

/// Mounts what is served, and says so.
pub(crate) fn start(dir: &Path, all: &[Served], options: MountOptions) -> Result<Mount, Fail> {
    // A dead mount cannot even be looked at; the mount itself says so, and what to do.
    let dead = |e: std::io::Error| e.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error());
    if !dir.is_dir() && !dir.metadata().is_err_and(dead) {
        let error = Error::new(Kind::NotFound, "is not a folder, so it cannot be mounted on")
            .on(&dir.display().to_string());
        return Err(Fail::from(error).hint("make it first: mkdir DIR"));
    }
    let volumes = all.iter().map(|s| Volume {
        name: s.name.clone(),
        device: s.device.clone(),
        read_only: s.read_only,
        serve: how_to_serve(&s.place),
    });
    // From here on whatever ends this has to take the mount away.
    Interrupts::listen()?.serves();
    let mount = Mount::start(dir, volumes.collect(), options)?;
    for s in all {
        let how = if s.read_only { ", read-only" } else { "" };
        let (name, device) = (visible::line(&s.name), visible::line(s.device.name()));
        output::say(&format!("volume {name}: {device}, {}{how}\n", size(s.device.size())));
    }
    output::say(&format!("mounted on {}\n", visible::line(&mount.dir().display().to_string())));
    Ok(mount)
}

/// "1 volume", "7 volumes".
pub(crate) fn volumes(count: usize) -> String {
    if count == 1 { "1 volume".to_owned() } else { format!("{count} volumes") }
}

/// Unmounts; a mount that ended by itself because somebody unmounted it ended well.
pub(crate) fn finish(mount: Mount) -> Result<Code, Fail> {
    let failure = mount.failure();
    let flushed = mount.stop().map_err(Fail::from);
    if let Some(error) = failure {
        note("the mount ended unexpectedly");
        if let Err(lost) = flushed {
            lost.print();
        }
        return Err(error.into());
    }
    flushed.map(|()| Code::Done)
}

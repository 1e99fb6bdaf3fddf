//! `blkcopy serve`: devices as namespaces of an NVMe/TCP target.

use crate::args::{LogArg, ServeArgs};
use crate::fail::{Code, Fail};
use crate::mount;
use crate::output::{self, note};
use crate::served;
use crate::signals::Interrupts;
use crate::visible;
use blkcopy::block::{Device, Error, Kind};
use blkcopy::exports::fuse::{Mount, MountOptions};
use blkcopy::exports::nvme_tcp::{OnCopy, Server, ServerOptions};
use blkcopy::nvme::Nqn;
use blkcopy::nvmet::{Hosts, NamespaceOptions, Settings, Subsystem, SubsystemOptions, Target};
use blkcopy::reactor::Waker;
use blkcopy::volume::{ServeOptions, Served, size};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// Runs the command: until a signal ends it.
pub(crate) fn run(args: &ServeArgs) -> Result<Code, Fail> {
    let interrupts = Interrupts::listen()?;
    interrupts.writes_from_behind();
    raise_file_limit();
    let how = ServeOptions { read_only: args.read_only, force_in_use: args.force_in_use, remote: false };
    let mut served: Vec<Served> = Vec::new();
    for text in &args.devices {
        interrupts.doing(format!("opening {}", text.to_string_lossy()));
        let one = served::open(text, &served, how)?;
        served.push(one);
    }
    let mount = match &args.mount {
        Some(dir) => {
            let engine = args.io_engine.into();
            let options = MountOptions {
                cache: args.cache,
                shared: true,
                show_allocated: args.show_allocated,
                engine,
                ..MountOptions::default()
            };
            Some(mount::start(dir, &served, options)?)
        }
        None => None,
    };
    let copy_formats = args.copy_formats.iter().fold(0, |all, format| all | format.bit());
    let target = Target::new(Settings { copy_formats, ..Settings::default() })?;
    let nqn = match &args.nqn {
        Some(nqn) => nqn.clone(),
        None => Nqn::new(&machine_nqn()?)?,
    };
    let subsystem = Subsystem::new(SubsystemOptions { nqn: nqn.clone(), serial: None });
    let allowed = args.allow.iter().map(|nqn| nqn.as_str().to_owned());
    let hosts = if args.allow.is_empty() { Hosts::Any } else { Hosts::These(allowed.collect()) };
    for (at, Served { device, .. }) in served.iter().enumerate() {
        let device: Arc<dyn Device> = match &mount {
            // The kernel keeps pages of what is mapped, and must hear of what hosts write.
            Some(mount) => {
                let changed = mount.changed();
                device.told(move |range| changed.tell(at, range))
            }
            None => device.clone(),
        };
        let options = NamespaceOptions {
            block_bytes: args.block_size,
            read_only: args.read_only,
            hosts: hosts.clone(),
            ..NamespaceOptions::default()
        };
        let nsid = subsystem.add(device.clone(), options)?;
        let block = u64::from(args.block_size.unwrap_or(512).max(device.limits().block_size.get()));
        let odd = device.size() % block;
        if odd > 0 {
            let name = device.name();
            note(&format!(
                "warning: {name}: the last {odd} bytes are not served: its size is not a multiple of {block}"
            ));
        }
        let name = visible::line(device.name());
        output::say(&format!("namespace {nsid}: {name}, {}\n", size(device.size())));
    }
    target.serve(subsystem)?;
    let on_copy = args.log.contains(&LogArg::Copies).then(|| -> OnCopy {
        Arc::new(|line| output::say(&format!("{}\n", visible::line(&line.to_string()))))
    });
    interrupts.doing("looking up the addresses to listen on");
    let listen = resolve(&args.listen)?;
    for open in listen.iter().filter(|a| !a.ip().is_loopback()) {
        note(&format!(
            "warning: {open}: anyone who can reach this address can read and write the namespaces: there is no \
             authentication yet"
        ));
    }
    let options = ServerOptions {
        listen,
        cores: args.cores,
        spin: Duration::from_micros(args.spin_us),
        engine: args.io_engine.into(),
        connections_max: args.connections.unwrap_or(ServerOptions::default().connections_max),
        on_copy,
        memory_bytes: args.memory,
    };
    let server = Server::start(target, options)?;
    if let Some(asked) = args.connections
        && server.connections_max() < asked / args.cores * args.cores
    {
        note(&format!(
            "warning: at most {} connections at once, not {asked}: there is no memory for more, or this process may not have \
             more files open; give more --memory, raise the limit of open files (ulimit -n), or ask for fewer",
            server.connections_max(),
        ));
    }
    output::say(&format!(
        "memory: at most {} for {} connections, data in flight and copies\n",
        size(server.memory_bytes() as u64),
        server.connections_max()
    ));
    interrupts.serves();
    interrupts.doing(format!("serving {}", mount::volumes(served.len())));
    for address in server.addresses() {
        output::say(&format!(
            "listening on {address}: nvme connect -t tcp -a {} -s {} -n {nqn}\n",
            address.ip(),
            address.port()
        ));
    }
    let thread = std::thread::current();
    let waker = Waker::new(move || thread.unpark());
    server.watch(waker.clone());
    if let Some(mount) = &mount {
        mount.watch(waker);
    }
    // A mount that somebody took away is over, and hosts are served on; one that failed ends all.
    let failed = |mount: &Mount| mount.is_over() && mount.has_failed();
    interrupts.wait_unless(|| server.is_over() || mount.as_ref().is_some_and(failed));
    let failure = server.failure();
    if failure.is_none() {
        output::say("stopping\n");
    }
    interrupts.doing("stopping: flushes the writes of hosts");
    // Hosts first: what they have written is flushed with the volumes.
    server.stop();
    let unmounted = mount.map_or(Ok(Code::Done), mount::finish);
    match (failure, unmounted) {
        (Some(error), unmounted) => {
            if let Err(lost) = unmounted {
                lost.print();
            }
            Err(error.into())
        }
        (None, unmounted) => unmounted,
    }
}

/// Every connection takes a descriptor, and the usual soft limit is lower than what the kernel would give.
pub(crate) fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it is forbidden the server takes as many connections as it may.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The addresses that `HOST:PORT` texts name.
fn resolve(texts: &[String]) -> Result<Vec<SocketAddr>, Fail> {
    let mut all = Vec::new();
    for text in texts {
        let found = text.to_socket_addrs().map_err(|e| {
            let error = Error::new(Kind::InvalidInput, "is not an address to listen on").on(text).because(e);
            Fail::from(error).hint("ADDRESS:PORT, such as 127.0.0.1:4420 or [::1]:4420")
        })?;
        all.extend(found);
    }
    Ok(all)
}

/// A subsystem name that stays the same on this machine: the UUID form, made from the machine's id.
///
/// Errors: the machine has none. A name all such machines share would make their namespaces one to every host.
fn machine_nqn() -> Result<String, Fail> {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    nqn_of(id.trim()).ok_or_else(|| {
        Fail::invalid("this machine has no id (/etc/machine-id) to name the subsystem after")
            .hint("name the subsystem: --nqn nqn.2014-08.org.example:NAME")
    })
}

/// `None` for a machine id that names no machine: images are shipped with an empty one, or this word.
fn nqn_of(machine_id: &str) -> Option<String> {
    if machine_id.is_empty() || machine_id == "uninitialized" {
        return None;
    }
    let hash = blake3::derive_key("blkcopy NVMe subsystem of a machine", machine_id.as_bytes());
    let hex =
        |range: std::ops::Range<usize>| hash[range].iter().map(|b| format!("{b:02x}")).collect::<String>();
    // Version 8 (made by a rule of one's own) and the RFC 9562 variant.
    let (version, variant) = (hash[6] & 0x0f | 0x80, hash[8] & 0x3f | 0x80);
    Some(format!(
        "nqn.2014-08.org.nvmexpress:uuid:{}-{}-{version:02x}{}-{variant:02x}{}-{}",
        hex(0..4),
        hex(4..6),
        hex(7..8),
        hex(9..10),
        hex(10..16)
    ))
}

#[cfg(test)]
mod tests {
    use super::nqn_of;

    #[test]
    fn machines_without_an_id_do_not_share_a_name() {
        assert!(nqn_of("").is_none() && nqn_of("uninitialized").is_none());
        let (a, b) = (nqn_of("0123456789abcdef0123456789abcdef"), nqn_of("1123456789abcdef0123456789abcdef"));
        assert!(a.is_some() && a != b);
    }
}

//! A server: listens, starts its threads, and ends them.

use super::memory::{MemoryNeeds, MemorySlice};
use super::server_thread;
use super::shared::{ServerOptions, ServerShared};
use crate::block::{Error, Kind, Result};
use crate::nvme::tcp::Digests;
use crate::nvme::tcp::controller::{Config, Connection};
use crate::nvmet::{CONNECTIONS_MAX, Target};
use crate::reactor::local::Interrupt;
use crate::reactor::{Waker, helpers};
use crate::workers::{Crew, Ending, Inbox};
use rustix::process::{Resource, getrlimit};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Most threads of one server.
pub const CORES_MAX: usize = 32;

/// How long an address that is taken is waited for: the kernel lets go of a killed server's port a moment after its
/// end.
const TAKEN_PATIENCE: Duration = Duration::from_millis(500);

/// How long the threads of a server that failed are waited for.
const END_PATIENCE: Duration = Duration::from_secs(8);

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < TAKEN_PATIENCE => {
                thread::sleep(TAKEN_PATIENCE / 50);
            }
            done => return done,
        }
    }
}

/// Descriptors that are left for what else this process opens, and those that a thread of the server has.
const FILES_SPARED: usize = 16;
const FILES_OF_THREAD: usize = 4;

/// How many connections this process may have open, beside the files it has.
fn files_left(cores: usize) -> usize {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return usize::MAX };
    let open = std::fs::read_dir("/proc/self/fd").map_or(64, Iterator::count);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    limit.saturating_sub(open + FILES_SPARED + FILES_OF_THREAD * cores)
}

/// Divides the bound on memory.
///
/// Errors: `InvalidInput` when it is too small, with the least that is not.
fn divide(options: &ServerOptions, machine: &Config) -> Result<MemorySlice> {
    let needs = MemoryNeeds {
        cores: options.cores,
        machine_bytes: Connection::memory_bytes(machine).unwrap_or(usize::MAX),
        transfer_bytes: machine.data_bytes_max as usize,
    };
    let too_small = || {
        let (given, cores, least) = (options.memory_bytes, options.cores, MemorySlice::least(needs) >> 20);
        let text =
            format!("{given} bytes of memory are not enough for {cores} threads; give at least {least}MiB");
        Error::new(Kind::InvalidInput, text)
    };
    MemorySlice::new(options.memory_bytes, needs).ok_or_else(too_small)
}

/// A running server. Dropping it stops it, as [`Server::stop`] does.
///
/// When one of its threads panics the whole of it stops: half a server would take connections and leave them.
pub struct Server {
    addresses: Vec<SocketAddr>,
    shared: Arc<ServerShared>,
    crew: Crew,
}

impl Server {
    /// Listens and starts the threads; returns when hosts can connect.
    ///
    /// Errors: an address that cannot be listened on, no threads, no memory, or a bound on memory that is too small;
    /// those of the engine.
    pub fn start(target: Arc<Target>, options: ServerOptions) -> Result<Self> {
        if options.cores == 0 || options.cores > CORES_MAX {
            let text = format!("{} cores: a server runs on 1 to {CORES_MAX}", options.cores);
            return Err(Error::new(Kind::InvalidInput, text));
        }
        let asked = options.connections_max;
        if asked == 0 || asked > CONNECTIONS_MAX {
            let text = format!("{asked} connections: a server holds 1 to {CONNECTIONS_MAX}");
            return Err(Error::new(Kind::InvalidInput, text));
        }
        let settings = target.settings();
        let machine = Config {
            entries_max: u16::try_from(settings.queue_entries.get()).expect("4096 at most"),
            data_bytes_max: settings.transfer_bytes,
            in_capsule_bytes_max: settings.in_capsule_bytes,
            h2c_data_bytes_max: settings.transfer_bytes,
            r2t_bytes_max: settings.transfer_bytes,
            r2t_count_max: 1,
            digests: Digests { header: true, data: true },
            cpda: 0,
            icreq_timeout: Duration::from_secs(10),
        };
        let memory = divide(&options, &machine)?;
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in &options.listen {
            let cannot = |e| Error::os("cannot be listened on", e).on(&address.to_string());
            let listener = bind(*address).map_err(cannot)?;
            listener.set_nonblocking(true).map_err(cannot)?;
            addresses.push(listener.local_addr().map_err(cannot)?);
            listeners.push(listener);
        }
        target.listen(&addresses);
        let connections = options.connections_max.min(files_left(options.cores));
        let places = (connections / options.cores).clamp(1, memory.connections);
        let inboxes = (0..options.cores).map(|_| Inbox::default()).collect();
        let counts = (0..options.cores).map(|_| AtomicUsize::new(0)).collect();
        let (stop, ending) = (Interrupt::default(), Ending::default());
        let (stops, ends) = (stop.clone(), ending.clone());
        let crew = Crew::new("server", move |why| {
            ends.end(Some(why));
            stops.set();
        });
        let shared = Arc::new(ServerShared {
            target,
            options,
            machine,
            memory,
            stop,
            places,
            inboxes,
            counts,
            walked: AtomicU64::new(0),
            ending,
        });
        let mut server = Self { addresses, shared: shared.clone(), crew };
        for index in 0..shared.options.cores {
            let shared = shared.clone();
            let listeners = std::mem::take(&mut listeners); // the first thread's
            let work = move |started| server_thread::run(&shared, index, listeners, started);
            server.crew.start(format!("blkcopy-core-{index}"), work)?;
        }
        helpers::report_stalls();
        Ok(server)
    }

    /// The addresses listened on, with their real ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Most connections it holds at once: as many as asked, or as many as there is memory for and this process may have
    /// files open.
    pub fn connections_max(&self) -> usize {
        self.shared.places * self.shared.options.cores
    }

    /// Connections that its threads have looked at so far, once for each turn in which one had something to do.
    pub fn walked(&self) -> u64 {
        self.shared.walked.load(Ordering::Relaxed)
    }

    /// Most memory that connections, payload in flight and copies take, all threads together, in bytes: within the
    /// bound that was given.
    pub fn memory_bytes(&self) -> usize {
        self.shared.memory.bytes() * self.shared.options.cores
    }

    /// Calls `waker` when the server stops by itself, or did already: [`Server::failure`] says why.
    pub fn watch(&self, waker: Waker) {
        self.shared.ending.watch(waker);
    }

    /// True when the server has stopped by itself.
    pub fn is_over(&self) -> bool {
        self.shared.ending.is_over()
    }

    /// Why the server stopped by itself, once.
    pub fn failure(&self) -> Option<Error> {
        self.shared.ending.take_failure()
    }

    /// Accepts nothing more, lets what is in flight end (a few seconds at most), closes every connection and waits for
    /// the threads.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.set();
        // A thread that panicked leaves work for the others undone: they are waited for no longer than that may take.
        self.crew.join(self.is_over().then_some(END_PATIENCE));
    }
}

//! NVMe/TCP: listeners, sockets and threads around [`crate::nvme::tcp::controller`] and [`crate::nvmet`].
//!
//! One thread per core, each with reactor, executor, range locks and a [`Core`](crate::nvmet::Core). The first accepts and
//! deals the connections round; a connection stays where it was dealt. `worker` is what each thread does,
//! `link` one of its connections.

mod link;
mod worker;

use crate::block::{Error, Kind, Result};
use crate::nvme::tcp::Digests;
use crate::nvme::tcp::controller::Config;
use crate::nvmet::{CopyLine, Target};
use crate::reactor::local::Interrupt;
use crate::reactor::{EngineChoice, Waker, helpers};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Most threads of one server.
pub const CORES_MAX: usize = 32;

/// Is told of every Copy that ended, on the thread that ran it.
pub type OnCopy = Arc<dyn Fn(&CopyLine) + Send + Sync>;

/// How a server runs.
#[derive(Clone)]
pub struct Options {
    /// Addresses to listen on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Threads: 1 to [`CORES_MAX`].
    pub cores: usize,
    /// How long a thread looks again and again before it sleeps.
    pub spin: Duration,
    /// Engine for files and block devices.
    pub engine: EngineChoice,
    /// Most memory for payload in flight, for each thread, in bytes.
    pub payload_bytes: usize,
    /// Is told of every Copy.
    pub on_copy: Option<OnCopy>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 4420))],
            cores: 1,
            spin: Duration::from_micros(50),
            engine: EngineChoice::Auto,
            payload_bytes: 64 << 20,
            on_copy: None,
        }
    }
}

/// How long an address that is taken is waited for: the kernel lets go of a killed server's port a moment after its end.
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

/// A running server. Dropping it stops it, as [`Server::stop`] does.
///
/// When one of its threads panics the whole of it stops: half a server would take connections and leave them.
pub struct Server {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads of a server share.
struct Shared {
    target: Arc<Target>,
    options: Options,
    machine: Config,
    stop: Interrupt,
    doors: Vec<Door>,
    failure: Mutex<Failure>,
}

/// Why a server stopped by itself, and who is told.
#[derive(Default)]
struct Failure {
    why: Option<Error>,
    is_over: bool,
    waker: Option<Waker>,
}

impl Shared {
    /// A thread ended that had not been told to: the others end too.
    fn fail(&self, why: Error) {
        let mut failure = lock(&self.failure);
        failure.why.get_or_insert(why);
        failure.is_over = true;
        self.stop.set();
        if let Some(waker) = &failure.waker {
            waker.wake();
        }
    }
}

/// Held by each thread while it runs.
struct Watch<'a>(&'a Shared);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let text = "a thread of the server panicked; please report this as a bug";
            self.0.fail(Error::new(Kind::Aborted, text));
        }
    }
}

/// Where a thread finds the connections dealt to it.
#[derive(Default)]
struct Door {
    dealt: Mutex<Vec<(TcpStream, SocketAddr)>>,
    waker: Mutex<Option<Waker>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is held under these locks cannot be left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Door {
    fn deal(&self, stream: TcpStream, peer: SocketAddr) {
        lock(&self.dealt).push((stream, peer));
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake();
        }
    }
}

impl Server {
    /// Listens and starts the threads; returns when hosts can connect.
    ///
    /// Errors: an address that cannot be listened on, no threads, no memory; those of the engine.
    pub fn start(target: Arc<Target>, options: Options) -> Result<Self> {
        if options.cores == 0 || options.cores > CORES_MAX {
            let text = format!("{} cores: a server runs on 1 to {CORES_MAX}", options.cores);
            return Err(Error::new(Kind::InvalidInput, text));
        }
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
        let doors = (0..options.cores).map(|_| Door::default()).collect();
        let failure = Mutex::default();
        let stop = Interrupt::default();
        let shared = Arc::new(Shared { target, options, machine, stop, doors, failure });
        let (started, starts) = mpsc::channel();
        let mut server = Self { addresses, shared: shared.clone(), threads: Vec::new() };
        for index in 0..shared.options.cores {
            let (shared, started) = (shared.clone(), started.clone());
            let listeners = std::mem::take(&mut listeners); // the first thread's
            let run = move || {
                let _watch = Watch(&shared);
                let begun = worker::run(&shared, index, listeners, || drop(started.send(Ok(()))));
                if let Err(error) = begun {
                    drop(started.send(Err(error)));
                }
            };
            let thread = thread::Builder::new().name(format!("blkcopy-core-{index}")).spawn(run);
            server.threads.push(thread.map_err(|e| Error::os("a thread cannot be started", e))?);
        }
        drop(started);
        for _ in 0..server.threads.len() {
            let begun = starts.recv();
            begun.map_err(|_| Error::new(Kind::Aborted, "a thread of the server ended while it began"))??;
        }
        helpers::report_stalls();
        Ok(server)
    }

    /// The addresses listened on, with their real ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Calls `waker` when the server stops by itself, or did already: [`Server::failure`] says why.
    pub fn watch(&self, waker: Waker) {
        let mut failure = lock(&self.shared.failure);
        if failure.is_over {
            waker.wake();
        }
        failure.waker = Some(waker);
    }

    /// True when the server has stopped by itself.
    pub fn is_over(&self) -> bool {
        lock(&self.shared.failure).is_over
    }

    /// Why the server stopped by itself, once.
    pub fn failure(&self) -> Option<Error> {
        lock(&self.shared.failure).why.take()
    }

    /// Accepts nothing more, lets what is in flight end (a few seconds at most), closes every connection and waits for the
    /// threads.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.set();
        let (begun, is_over) = (Instant::now(), self.is_over());
        for thread in self.threads.drain(..) {
            // What a thread that panicked was to do for the others is not done: they are waited for no longer than they may take.
            while is_over && !thread.is_finished() && begun.elapsed() < END_PATIENCE {
                thread::sleep(END_PATIENCE / 1000);
            }
            if is_over && !thread.is_finished() {
                tracing::error!("a thread of the server does not end");
            } else if thread.join().is_err() {
                tracing::error!("a thread of the server panicked; please report this as a bug");
            }
        }
    }
}

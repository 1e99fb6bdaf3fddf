//! The two targets: SPDK's `nvmf_tgt` and ours, started for a while.

use crate::tool::{blkcopy, cannot, free_port, output, words};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a target may take to listen or to end: several times what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);
/// The subsystem of either target.
pub(crate) const NQN: &str = "nqn.2024-01.test.blkcopy:spdk";

/// What stands behind a namespace of SPDK's target.
pub(crate) enum Bdev {
    /// Memory, of this many MiB in blocks of this many bytes.
    Malloc(u64, u32),
    /// A file, in blocks of this many bytes.
    Aio(PathBuf, u32),
    /// Namespace 1 of our target on this port, through SPDK's own host driver.
    Ours(u16),
}

impl Bdev {
    /// The call that makes it, and its name.
    fn create(&self, nsid: usize) -> (Value, String) {
        let name = format!("b{nsid}");
        let (method, params) = match self {
            Self::Malloc(mib, block) => {
                let blocks = (mib << 20) / u64::from(*block);
                ("bdev_malloc_create", json!({ "name": name, "num_blocks": blocks, "block_size": block }))
            }
            Self::Aio(path, block) => {
                ("bdev_aio_create", json!({ "name": name, "filename": path, "block_size": block }))
            }
            Self::Ours(port) => {
                let params = json!({
                    "name": name, "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
                    "trsvcid": port.to_string(), "subnqn": NQN, "hdgst": true, "ddgst": true,
                });
                return (json!({ "method": "bdev_nvme_attach_controller", "params": params }), name + "n1");
            }
        };
        (json!({ "method": method, "params": params }), name)
    }
}

/// A target that runs; killed when dropped.
struct Running {
    child: Child,
    /// Its files.
    folder: TempDir,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|e| cannot("a temporary folder", &e))?;
        Self::start_in(folder, command)
    }

    fn start_in(folder: TempDir, command: &mut Command) -> Result<Self, String> {
        let open = |name| File::create(folder.path().join(name)).map_err(|e| cannot(name, &e));
        command.stdin(Stdio::null()).stdout(open("out")?).stderr(open("err")?);
        let child = command.spawn().map_err(|e| cannot(&*command, &e))?;
        Ok(Self { child, folder })
    }

    /// What it has said so far, on stdout or on stderr.
    fn said(&self, stream: &str) -> String {
        fs::read(self.folder.path().join(stream)).map_or_else(|e| e.to_string(), |said| lossy(&said))
    }

    /// Asks `ready` until it has an answer.
    fn wait<T>(&mut self, ready: impl Fn(&Self) -> Option<T>) -> Result<T, String> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(answer) = ready(self) {
                return Ok(answer);
            }
            if let Some(status) = self.child.try_wait().map_err(|e| cannot("a target", &e))? {
                return Err(format!("the target ended, {status}: {}{}", self.said("out"), self.said("err")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("the target does not listen: {}{}", self.said("out"), self.said("err")))
    }

    /// SIGTERM and the wait for it. An error for any exit but 0.
    fn end(&mut self) -> Result<(), String> {
        output(words("kill -TERM").arg(self.child.id().to_string()))?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            match self.child.try_wait().map_err(|e| cannot("a target", &e))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("the target ended, {status}: {}", self.said("err"))),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Err("the target did not end on SIGTERM".to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Either may fail only because the target is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// SPDK's target, with one namespace for each bdev.
pub(crate) struct Theirs {
    running: Running,
    port: u16,
}

impl Theirs {
    /// Starts it on core 0. `huge`: in pages of 2 MiB, as it is meant to be run, which the machine must have set aside; ordinary
    /// memory otherwise.
    pub(crate) fn start(bdevs: &[Bdev], huge: bool) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|e| cannot("a temporary folder", &e))?;
        let port = free_port()?;
        let call = |method: &str, params: Value| json!({ "method": method, "params": params });
        let (made, names): (Vec<Value>, Vec<String>) =
            bdevs.iter().zip(1..).map(|(b, n)| b.create(n)).unzip();
        let subsystem = json!({ "nqn": NQN, "allow_any_host": true, "serial_number": "1" });
        let mut calls = vec![
            call("nvmf_create_transport", json!({ "trtype": "TCP" })),
            call("nvmf_create_subsystem", subsystem),
        ];
        for (name, nsid) in names.iter().zip(1..) {
            let namespace = json!({ "nsid": nsid, "bdev_name": name });
            calls.push(call("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": namespace })));
        }
        let address =
            json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string() });
        calls.push(call("nvmf_subsystem_add_listener", json!({ "nqn": NQN, "listen_address": address })));
        let config = json!({ "subsystems": [
            { "subsystem": "bdev", "config": made },
            { "subsystem": "nvmf", "config": calls },
        ] });
        let path = folder.path().join("config.json");
        fs::write(&path, config.to_string()).map_err(|e| cannot(&path, &e))?;
        let mut command = words("nvmf_tgt -m 0x1 --disable-cpumask-locks");
        if !huge {
            command.args(["--no-huge", "-s", "1024"]);
        }
        command.arg("-c").arg(&path).arg("-r").arg(folder.path().join("rpc.sock"));
        let mut running = Running::start_in(folder, &mut command)?;
        running.wait(|_| TcpStream::connect(("127.0.0.1", port)).ok())?;
        Ok(Self { running, port })
    }

    /// How our driver names one of its namespaces.
    pub(crate) fn url(&self, nsid: u32) -> String {
        url(self.port, nsid)
    }

    /// How our driver names it.
    pub(crate) fn address(&self) -> String {
        format!("nvme-tcp://127.0.0.1:{}", self.port)
    }

    /// How SPDK's hosts name it.
    pub(crate) fn transport(&self) -> String {
        transport(self.port)
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Stops it where it stands: until [`Theirs::resume`] it uses no CPU.
    pub(crate) fn pause(&self) -> Result<(), String> {
        output(words("kill -STOP").arg(self.id().to_string())).map(drop)
    }

    /// It goes on.
    pub(crate) fn resume(&self) -> Result<(), String> {
        output(words("kill -CONT").arg(self.id().to_string())).map(drop)
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.running.child.id()
    }

    /// Ends it: an error unless that goes well and it has had nothing to complain of.
    pub(crate) fn end(mut self) -> Result<(), String> {
        self.resume()?;
        self.running.end()?;
        let said = self.running.said("out") + &self.running.said("err");
        match said.lines().find(|line| line.contains("*ERROR*")) {
            Some(line) => Err(line.to_owned()),
            None => Ok(()),
        }
    }
}

/// Our target.
pub(crate) struct Ours {
    running: Running,
    port: u16,
}

impl Ours {
    /// `blkcopy serve` with these words.
    pub(crate) fn start(args: &[&str]) -> Result<Self, String> {
        let mut command = Command::new(blkcopy());
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "copies", "--nqn", NQN]).args(args);
        let mut running = Running::start(&mut command)?;
        let port = running.wait(|r| {
            let said = r.said("out");
            let line = said.lines().find_map(|line| line.strip_prefix("listening on 127.0.0.1:"))?;
            line.split(':').next()?.parse().ok()
        })?;
        Ok(Self { running, port })
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How SPDK's hosts name it.
    pub(crate) fn transport(&self) -> String {
        transport(self.port)
    }

    /// What it has told so far: a line for each Copy among other things.
    pub(crate) fn said(&self) -> String {
        self.running.said("out")
    }

    /// Ends it: an error unless that goes well and it has had nothing to complain of.
    pub(crate) fn end(mut self) -> Result<(), String> {
        self.running.end()?;
        let complaints = self.running.said("err");
        if complaints.is_empty() { Ok(()) } else { Err(complaints) }
    }
}

fn url(port: u16, nsid: u32) -> String {
    format!("nvme-tcp://127.0.0.1:{port}/{NQN}?nsid={nsid}")
}

/// How SPDK's hosts name a target on this port.
pub(crate) fn transport(port: u16) -> String {
    format!("trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port}")
}

/// The bytes as text.
pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// True when the machine has pages of 2 MiB set aside: `mib` of them.
pub(crate) fn huge_pages(mib: u64) -> bool {
    let free = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    fs::read_to_string(free).ok().and_then(|n| n.trim().parse::<u64>().ok()).is_some_and(|n| n * 2 >= mib)
}

//! The machine: QEMU with a stock kernel, its words on a pipe, its console in a file.

use crate::tool::cannot;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// What a machine is made of.
pub(super) struct Parts<'a> {
    /// The folder `lab/prepare.sh` made.
    pub(super) prepared: &'a Path,
    /// The archive with the guest's root.
    pub(super) root: &'a Path,
    /// Where the kernel's console goes.
    pub(super) console: PathBuf,
    /// The port of this host that leads to the guest's of the same number.
    pub(super) forward_port: u16,
}

/// A running machine; killed when dropped.
pub(super) struct Vm {
    qemu: Child,
    words: ChildStdin,
    lines: Receiver<String>,
}

/// What the guest says next.
pub(super) enum Said {
    /// A line, without its end.
    Line(String),
    /// Nothing for as long as was waited.
    Nothing,
    /// The machine is gone.
    Gone,
}

impl Vm {
    /// Starts a machine.
    pub(super) fn boot(parts: &Parts<'_>) -> Result<Self, String> {
        // panic=-1: a panic becomes a reboot, which the host sees at once as a boot nobody meant.
        let kernel = "console=ttyS0,115200 quiet loglevel=4 panic=-1 mitigations=off nokaslr \
                      no_timer_check audit=0 apparmor=0 rdinit=/init";
        let mut qemu = Command::new(parts.prepared.join("qemu"));
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"]);
        qemu.args(["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"]);
        qemu.args(["-smp", "2", "-m", "1024", "-append", kernel]);
        qemu.arg("-kernel").arg(parts.prepared.join("vmlinuz")).arg("-initrd").arg(parts.root);
        qemu.arg("-serial").arg(format!("file:{}", parts.console.display())).args(["-serial", "stdio"]);
        let net = format!("user,id=net,hostfwd=tcp:127.0.0.1:{0}-:{0}", parts.forward_port);
        qemu.args(["-netdev", &net, "-device", "virtio-net-pci,netdev=net,romfile="]);
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut qemu = qemu.spawn().map_err(|e| cannot("QEMU", &e))?;
        let words = qemu.stdin.take().expect("piped above");
        let mut out = BufReader::new(qemu.stdout.take().expect("piped above"));
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if tell.send(text).is_err() {
                    break;
                }
            }
        });
        Ok(Self { qemu, words, lines })
    }

    /// The next line the guest says within `patience`.
    pub(super) fn listen(&self, patience: Duration) -> Said {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Said::Line(line),
            Err(RecvTimeoutError::Timeout) => Said::Nothing,
            Err(RecvTimeoutError::Disconnected) => Said::Gone,
        }
    }

    /// Says something to the guest.
    pub(super) fn say(&mut self, text: &str) -> Result<(), String> {
        self.words.write_all(text.as_bytes()).map_err(|e| cannot("words to the guest", &e))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Either may fail only because the machine is gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

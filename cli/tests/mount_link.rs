//! A mounted namespace of a target whose connections are lost and made again.

#![allow(clippy::unwrap_used)] // a test may

mod common;

use common::mounted::{Mounted, mounts_or_why};
use common::{BIN, folder, skip};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

const NQN: &str = "nqn.2014-08.org.example:link";

/// `blkcopy serve` of one file.
struct Served(Child, String);

impl Served {
    fn start(image: &Path) -> Self {
        let mut command = Command::new(BIN);
        command.args(["serve", "--listen", "127.0.0.1:0", "--nqn", NQN]).arg(image);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.find_map(|line| {
            let line = line.unwrap();
            let rest = line.strip_prefix("listening on ")?;
            Some(rest.split(": ").next().unwrap().to_owned())
        });
        // Its later lines go nowhere, and it is not stopped by that.
        std::thread::spawn(move || lines.for_each(drop));
        Self(child, address.unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Passes connections on until they are cut.
struct Relay {
    port: u16,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn to(address: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let sockets: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let held = sockets.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(&address)) else { return };
                held.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                for (mut from, mut to) in [
                    (near.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far.try_clone().unwrap(), near.try_clone().unwrap()),
                ] {
                    std::thread::spawn(move || {
                        let mut bytes = vec![0; 65536];
                        while let Ok(n) = from.read(&mut bytes) {
                            if n == 0 || to.write_all(&bytes[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { port, sockets }
    }

    fn cut(&self) {
        self.sockets.lock().unwrap().drain(..).for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
    }
}

//= promise 6, events
#[test]
fn each_open_file_is_told_once_of_a_loss_and_the_volume_goes_on() {
    if let Err(why) = mounts_or_why() {
        return skip("each_open_file_is_told_once_of_a_loss_and_the_volume_goes_on", &why);
    }
    let dir = folder();
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let served = Served::start(&image);
    let relay = Relay::to(served.1.clone());
    let mounted = Mounted::start(&[&format!("v=nvme-tcp://127.0.0.1:{}/{NQN}?nsid=1", relay.port)]);
    let open = || File::options().read(true).write(true).open(mounted.at_name("v")).unwrap();
    let (one, two) = (open(), open());
    for round in 1..=2u8 {
        one.write_all_at(&[round; 4096], 0).unwrap();
        relay.cut();
        let mut bytes = [0; 4096];
        two.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [round; 4096], "this target has kept it");
        for file in [&one, &two] {
            let error = file.sync_all().expect_err("nobody can know that it has");
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "round {round}");
        }
        for file in [&one, &two, &open()] {
            file.sync_all().unwrap();
            file.write_all_at(&[round + 10; 4096], 8192).unwrap();
            file.sync_all().unwrap();
        }
    }
    drop((one, two));
    mounted.stop();
}

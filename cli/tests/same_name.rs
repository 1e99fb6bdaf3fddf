//! A target that comes back: with the same bytes a copy goes on and its receipt says so, with others under the same
//! name it ends.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{BIN, Ran, bytes, command, folder};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2026-01.org.example:same-name";

/// `blkcopy serve` of one device; killed when dropped.
struct Target(Child);

impl Target {
    /// `port` 0: any; the one it has.
    fn start(dir: &Path, device: &str, port: u16) -> (Self, u16) {
        let listen = format!("127.0.0.1:{port}");
        let mut child = Command::new(BIN)
            .args(["serve", "--listen", &listen, "--nqn", NQN, device])
            .current_dir(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let target = Self(child);
        for line in out.lines().map_while(Result::ok) {
            if let Some(rest) = line.strip_prefix("listening on 127.0.0.1:") {
                return (target, rest.split(':').next().unwrap().parse().unwrap());
            }
        }
        panic!("serve {device} ended");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const LEN: usize = 24 << 20;

/// Copies the namespace slowly; the target is killed in the middle, `meanwhile` happens, and it comes back.
fn across_a_restart(dir: &Path, device: &str, meanwhile: impl FnOnce()) -> Ran {
    let (target, port) = Target::start(dir, device, 0);
    let url = format!("nvme-tcp://127.0.0.1:{port}/{NQN}?nsid=1");
    let args =
        ["cp", "--json", "--offload", "never", "--sparse", "never", "--limit-rate", "8MiB", &url, "out"];
    let copy = command(dir, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Something has arrived, whatever the file is called meanwhile, and more is to come. A hang guard, no more.
    let end = Instant::now() + Duration::from_secs(60);
    let open = format!("/proc/{}/fd", copy.id());
    let arrived = || {
        let files = std::fs::read_dir(&open).ok()?.flatten();
        let mut blocks = files.filter_map(|f| std::fs::metadata(f.path()).ok()).filter(|m| m.is_file());
        blocks.find(|m| m.blocks() >= 4096)
    };
    while arrived().is_none() {
        assert!(Instant::now() < end, "nothing is copied");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(target);
    meanwhile();
    let (_target, _) = Target::start(dir, device, port);
    Ran::of(copy.wait_with_output().unwrap())
}

//= promise 1, events
#[test]
fn a_target_that_comes_back_with_other_bytes_ends_the_copy() {
    let base = folder();
    let dir = base.path();
    let image = dir.join("disk.img");
    std::fs::write(&image, bytes(LEN, 1)).unwrap();
    let ran = across_a_restart(dir, "disk.img", || {
        std::fs::write(dir.join("new"), bytes(LEN, 2)).unwrap();
        std::fs::rename(dir.join("new"), &image).unwrap();
    });
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("another namespace in its place"), "{}", ran.err);
    assert!(ran.err.contains("begin again"), "{}", ran.err);
    let receipt = ran.json();
    assert_eq!(receipt["outcome"], "failed");
    let lost = receipt["connections_lost"].as_array().unwrap();
    assert!(!lost.is_empty() && lost.iter().all(|l| l["end"] == "source"), "{receipt}");
    let _ = std::fs::remove_file(dir.join("out"));
    // Memory goes with its process. It is zero, and so is what comes back: but nobody can know that.
    let ran = across_a_restart(dir, &format!("mem:{LEN}"), || ());
    assert_eq!(ran.code, Some(2), "{ran:?}");
}

//= promise 1, events
#[test]
fn a_target_that_comes_back_with_the_same_bytes_is_gone_on_with() {
    let base = folder();
    let dir = base.path();
    let old = bytes(LEN, 3);
    std::fs::write(dir.join("disk.img"), &old).unwrap();
    let ran = across_a_restart(dir, "disk.img", || ());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let receipt = ran.json();
    let lost = receipt["connections_lost"].as_array().unwrap();
    assert!(
        !lost.is_empty() && lost.iter().all(|l| l["end"] == "source" && l["why"].is_string()),
        "{receipt}"
    );
    assert!(std::fs::read(dir.join("out")).unwrap() == old);
    let ran = common::blkcopy(dir, &["cp", "--json", "disk.img", "again"]);
    assert_eq!(ran.json()["connections_lost"], serde_json::json!([]));
}

//! Two targets that are clones of each other: nothing is copied between them by their names, which are the same.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{BIN, bytes, command, folder};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-0000636c6f6e";

/// A target that serves `disk.img` in `dir`: the names it tells follow from its NQN and that name.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(BIN)
            .args(["serve", "--nqn", NQN, "--listen", "127.0.0.1:0", "disk.img"])
            .current_dir(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.map(Result::unwrap).find(|line| line.starts_with("listening on")).unwrap();
        let address = line.split_whitespace().nth(2).unwrap().trim_end_matches(':');
        Self { url: format!("nvme-tcp://{address}/{NQN}?nsid=1"), child }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn a_clone_is_not_copied_onto_itself_and_called_equal() {
    let dir = folder();
    let images = ["a", "b"].map(|name| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        let image = dir.path().join(name).join("disk.img");
        std::fs::write(&image, bytes(1 << 20, name.len() as u64 + u64::from(name.as_bytes()[0]))).unwrap();
        image
    });
    let before = images.each_ref().map(|image| std::fs::read(image).unwrap());
    let [a, b] = images.each_ref().map(|image| Served::start(image.parent().unwrap()));
    for ranges in ["", "@0+65536"] {
        let from = format!("{}{ranges}", a.url);
        let to = format!("{}{ranges}", b.url);
        let ran = command(dir.path(), &["cp", "--yes", "--verify", "digest", &from, &to]).output().unwrap();
        let err = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && err.contains("clones of each other"), "{ranges}: {ran:?}");
        let plan = command(dir.path(), &["plan", &from, &to]).output().unwrap();
        let out = String::from_utf8_lossy(&plan.stdout).into_owned();
        assert!(!plan.status.success() && out.contains("clones of each other"), "{ranges}: {plan:?}");
    }
    assert!(images.each_ref().map(|image| std::fs::read(image).unwrap()) == before);
    // One URL on both sides is one namespace.
    let (from, to) = (format!("{}@0+65536", a.url), format!("{}@65536+65536", a.url));
    let ran = command(dir.path(), &["cp", "--yes", "--verify", "digest", &from, &to]).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
}

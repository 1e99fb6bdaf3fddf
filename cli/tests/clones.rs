//! Two targets that are clones of each other: nothing is copied between them by their names, which are the same.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

mod common;

use common::{BIN, Undo, bytes, command, folder, loops_or_why, must, skip};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-0000636c6f6e";

/// A target that serves `disk.img` in `dir`: the names it tells follow from its NQN and from the file's inode and file
/// system.
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

//= promise 5
#[test]
fn a_clone_is_not_copied_onto_itself_and_called_equal() {
    if let Err(why) = loops_or_why() {
        return skip("a_clone_is_not_copied_onto_itself_and_called_equal", &why);
    }
    let (dir, mut undo) = (folder(), Undo::default());
    // Two machines of one image: the same file system, the same inode, and other bytes by now.
    let base = dir.path().display();
    must(&format!("cd {base}; truncate -s 16M a.fs; mkfs.ext4 -q a.fs; mkdir a b; mount -o loop a.fs a"));
    undo.later(format!("umount {base}/a"));
    std::fs::write(dir.path().join("a/disk.img"), bytes(1 << 20, 98)).unwrap();
    must(&format!("cd {base}; umount a; cp a.fs b.fs; mount -o loop a.fs a; mount -o loop b.fs b"));
    undo.later(format!("umount {base}/b"));
    let images = ["a", "b"].map(|name| dir.path().join(name).join("disk.img"));
    std::fs::write(&images[1], bytes(1 << 20, 99)).unwrap();
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

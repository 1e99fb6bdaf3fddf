//! Development tasks: `cargo xtask test | planted | soak | lab | spdk | messages | evidence | bench copy | bench target |
//! bench mount`.

mod bench;
mod bench_mount;
mod bench_target;
mod evidence;
mod lab;
mod messages;
mod mounted;
mod planted;
mod spdk;
mod suite;
mod tool;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask test              all that CI runs
cargo xtask planted [NAME..]  applies each bug in tests/planted and checks that its test fails
cargo xtask soak              the long set: many more property-test cases, stress tests again and again
cargo xtask lab [NAME..]      a stock Linux under QEMU against the target, and our host driver against its target: lab/README.md
cargo xtask spdk              SPDK's hosts against our target, our host driver against SPDK's target, and both in a row
cargo xtask messages          checks that docs/messages.txt lists every sentence users can see [--write]
cargo xtask evidence          checks that docs/evidence.md lists the tests of each promise [--write]
cargo xtask bench copy        against cp, dd, qemu-img and nbdcopy [--size 2GiB] [--runs 5] [--rows PART,PART] [--out FILE]
cargo xtask bench target      NVMe/TCP over loopback, one core each side [--seconds 2] [--runs 5] [--rows PART,PART] [--out FILE]
cargo xtask bench mount       the mount beside an empty and a minimal FUSE server, and nbdfuse [--seconds 1] [--runs 5] [--rows PART,PART] [--out FILE]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["test"] => suite::test(),
        ["planted", names @ ..] => planted::planted(names),
        ["soak"] => suite::soak(),
        ["lab", names @ ..] => lab::lab(names),
        ["spdk"] => spdk::spdk(),
        ["messages"] => messages::messages(false),
        ["messages", "--write"] => messages::messages(true),
        ["evidence"] => evidence::evidence(false),
        ["evidence", "--write"] => evidence::evidence(true),
        ["bench", "copy", flags @ ..] => bench::copy(flags),
        ["bench", "mount", flags @ ..] => bench_mount::mount(flags),
        ["bench", "target", flags @ ..] => bench_target::target(flags),
        ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(true)
        }
        _ => Err(format!("no such task: {}\n{HELP}", words.join(" "))),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(text) => {
            eprintln!("xtask: {text}");
            ExitCode::from(2)
        }
    }
}

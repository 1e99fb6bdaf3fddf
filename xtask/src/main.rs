//! Development tasks: `cargo xtask --help` lists them.

mod bench;
mod evidence;
mod lab;
mod messages;
mod planted;
mod spdk;
mod suite;
mod tool;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Development tasks.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run all that CI runs.
    Test,
    /// Apply each bug in tests/planted and check that its test fails.
    Planted {
        /// Only bugs whose name contains one of these.
        names: Vec<String>,
    },
    /// Run the long set: many more property-test cases, stress tests again and again.
    Soak,
    /// Run a stock Linux under QEMU against the target, and our host driver against its target: see lab/README.md.
    Lab {
        /// Only these scripts of lab/guest, without `.sh`.
        names: Vec<String>,
    },
    /// Run SPDK's hosts against our target, our host driver against SPDK's target, and both in a row.
    Spdk,
    /// Check that docs/messages.txt lists every sentence that users can see.
    Messages {
        /// Write the list instead.
        #[arg(long)]
        write: bool,
    },
    /// Check that docs/evidence.md lists the tests of each promise.
    Evidence {
        /// Write the list instead.
        #[arg(long)]
        write: bool,
    },
    /// Measure, and print tables in Markdown.
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Test => suite::test(),
        Task::Planted { names } => planted::planted(&names),
        Task::Soak => suite::soak(),
        Task::Lab { names } => lab::lab(&names),
        Task::Spdk => spdk::spdk(),
        Task::Messages { write } => messages::messages(write),
        Task::Evidence { write } => evidence::evidence(write),
        Task::Bench(bench) => bench.run(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_task_and_bench_has_help() {
        Args::command().debug_assert();
        for task in ["test", "planted", "soak", "lab", "spdk", "messages", "evidence", "bench"] {
            assert_help(&[task]);
        }
        for bench in ["copy", "target", "mount"] {
            assert_help(&["bench", bench]);
        }
    }

    fn assert_help(words: &[&str]) {
        let line = ["xtask"].iter().chain(words).chain(&["--help"]);
        let Err(help) = Args::try_parse_from(line) else { panic!("{words:?}: no help") };
        assert_eq!(help.kind(), clap::error::ErrorKind::DisplayHelp, "{words:?}");
    }

    #[test]
    fn benches_refuse_what_they_cannot_measure() {
        let parse = |line: &str| Args::try_parse_from(line.split(' ')).is_ok();
        assert!(parse("xtask bench copy --size 1MiB --runs 1 --rows here,xfs --out table.md"));
        assert!(!parse("xtask bench copy --size 1023KiB") && !parse("xtask bench copy --runs 0"));
        for bench in ["target", "mount"] {
            let with = |flags: &str| parse(&format!("xtask bench {bench} {flags}"));
            assert!(with("--seconds 0.3 --runs 3"));
            assert!(!with("--seconds 0") && !with("--seconds nan") && !with("--seconds 3600"));
            assert!(!with("--size 1GiB") && !with("--runs 0") && !with("--runs"));
        }
    }
}

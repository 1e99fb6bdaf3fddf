//! `blkcopy`: copies block data where it lives, and says how.

mod args;
mod bar;
mod cp;
mod demo;
mod explain;
mod fail;
mod fixes;
mod go_on;
mod info;
mod lines;
mod mount;
mod output;
mod plan;
mod progress;
mod receipt_file;
mod serve;
mod served;
mod signals;
mod streams;
mod stuck;
mod target_info;
mod visible;

use blkcopy::block::Error;
use clap::{Parser, Subcommand};
use std::io::Write as _;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Devices: a path, mem:SIZE, null:SIZE or nvme-tcp://host:port/NQN?nsid=N, each with an optional range @offset+length or @offset.
After a path, an offset without a length needs a unit: vm.img@20240101 is a file name, vm.img@4096B a range.
A path that exists is that file.
Sizes: whole numbers of bytes, or with KiB, MiB, GiB, TiB, PiB, EiB (K, M, G, ... mean the same).
Exit codes: 0 done, 1 refused or the ends differ, 2 error, 130 cancelled.";

/// Copies block data where it is stored instead of through this machine, and reports how each byte moved.
#[derive(Parser)]
#[command(name = "blkcopy", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Cp(args::CpArgs),
    Plan(args::PlanArgs),
    Explain(args::ExplainArgs),
    Compare(args::CompareArgs),
    Info(args::InfoArgs),
    Serve(args::ServeArgs),
    Mount(args::MountArgs),
    Demo(args::DemoArgs),
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        lines::stderr().say(format!("\nthread '{}' {panic}\n", thread.name().unwrap_or("unnamed")));
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(said) => return tell(&said),
    };
    let filter = EnvFilter::try_from_env("BLKCOPY_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines::Events)
        .without_time()
        .with_target(false)
        .init();
    signals::supervise(move || match cli.command {
        Command::Cp(args) => cp::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Compare(args) => explain::compare(&args),
        Command::Info(args) => info::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Mount(args) => mount::run(&args),
        Command::Demo(args) => demo::run(&args),
    })
}

/// Prints help, or what is wrong with the arguments.
fn tell(said: &clap::Error) -> ExitCode {
    let printed = said.print().and_then(|()| std::io::stdout().flush()).and_then(|()| output::finish());
    match printed {
        Err(error) if !said.use_stderr() && error.kind() != std::io::ErrorKind::BrokenPipe => {
            let error = Error::os("the help cannot be written to standard output", error);
            let code = fail::Fail::from(error).print();
            lines::stderr().drain(signals::LINES_PATIENCE);
            code.into()
        }
        _ => ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(2)),
    }
}

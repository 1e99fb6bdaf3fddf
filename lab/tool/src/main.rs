//! What the lab's guest runs besides stock programs: a checked load, Copy by pass-through, a relay.

mod load;
mod model;
mod passthrough;
mod relay;

use load::Load;
use std::process::ExitCode;

const HELP: &str = "\
blkcopy-lab load DEVICE UNIT SEED THREADS STOP [copy]
    writes, copies and flushes until the file STOP appears, then reads all back; UNIT is the size of a block in bytes
blkcopy-lab check FILE UNIT SEED THREADS FLUSHED [copy]
    every block of FILE is old or new, and nothing is lost that the lines \"@flushed SEED THREAD OPERATION\" in FLUSHED name
blkcopy-lab copy DEVICE DEST RANGE.. [format=N] [count=N] [bytes=N] [uid=N] [read-only] [fua]
    one Copy command, its status and result; RANGE is SLBA+BLOCKS[:SNSID[:OPTIONS]]; count and bytes lie about the list
blkcopy-lab relay LISTEN TO [FEATURE]
    carries connections on; Set Features of FEATURE becomes one of Host Behavior Support
blkcopy-lab attribute FILE NAME
    an extended attribute";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["load", device, unit, seed, threads, stop, rest @ ..] => {
            Load::new([unit, seed, threads], rest).and_then(|load| load.run(device, stop))
        }
        ["check", file, unit, seed, threads, flushed, rest @ ..] => {
            Load::new([unit, seed, threads], rest).and_then(|load| load.check(file, flushed))
        }
        ["copy", device, dest, rest @ ..] => passthrough::command(device, dest, rest, &args),
        ["relay", listen, to] => relay::run(listen, to, None),
        ["relay", listen, to, feature] => match feature.parse() {
            Ok(feature) => relay::run(listen, to, Some(feature)),
            Err(e) => Err(format!("{feature}: {e}")),
        },
        ["attribute", file, name] => attribute(file, name),
        _ => Err(HELP.to_owned()),
    };
    match done {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn attribute(file: &str, name: &str) -> Result<String, String> {
    let mut value = vec![0; 64 << 10];
    let len = rustix::fs::getxattr(file, name, &mut value).map_err(|e| format!("{file}: {name}: {e}"))?;
    Ok(String::from_utf8_lossy(&value[..len]).into_owned())
}

//! How to go on with a copy that ended early: the command, to be pasted into a shell.

use crate::args::CpArgs;
use blkcopy::block::receipt::{Outcome, Receipt};
use blkcopy::copy::Segment;
use blkcopy::volume::{Ends, Name, Place};
use clap::ValueEnum;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Most segments left that a command is printed for.
const SEGMENTS_MAX: usize = 100;

/// What the command is made of, taken before the copy begins.
pub(crate) struct GoOn {
    /// Names without ranges.
    source: OsString,
    dest: OsString,
    /// On the whole devices.
    segments: Vec<Segment>,
    dest_is_file: bool,
    /// The copy overwrites its own source, or the destination ends with this process.
    never: bool,
}

impl GoOn {
    pub(crate) fn new(ends: &Ends) -> Self {
        let text = |name: &Name| match name.path() {
            Some(path) => path.as_os_str().to_owned(),
            None => name.device_text().into(),
        };
        Self {
            source: text(&ends.source_name),
            dest: text(&ends.dest_name),
            segments: ends.segments.clone(),
            dest_is_file: ends.dest_is_file(),
            never: ends.same || matches!(ends.dest_name.place, Place::Mem(_) | Place::Null(_)),
        }
    }

    /// The command that copies what is left after the good prefix; `None` when there is nothing to go on from.
    pub(crate) fn command(&self, args: &CpArgs, receipt: &Receipt) -> Option<String> {
        let good = receipt.good_prefix_bytes;
        let early = matches!(receipt.outcome, Outcome::Cancelled | Outcome::Failed);
        if self.never || !early || good == 0 || good >= receipt.requested_bytes {
            return None;
        }
        let mut words = vec!["blkcopy cp".to_owned()];
        words.extend(flags(args));
        if self.dest_is_file {
            words.push("--in-place".to_owned());
        }
        let rest = rest(&self.segments, good);
        let (mut source, mut dest) = (self.source.clone(), self.dest.clone());
        match rest[..] {
            [one] => {
                source.push(format!("@{}+{}", one.source, one.len));
                dest.push(format!("@{}+{}", one.dest, one.len));
            }
            _ if rest.len() > SEGMENTS_MAX => return None,
            _ => words.extend(rest.iter().map(|s| format!("--segment {}:{}:{}", s.source, s.dest, s.len))),
        }
        if source.as_bytes().starts_with(b"-") || dest.as_bytes().starts_with(b"-") {
            words.push("--".to_owned());
        }
        words.extend([quote(&source), quote(&dest)]);
        Some(words.join(" "))
    }
}

/// What is left of segments after `good` bytes, in order.
fn rest(segments: &[Segment], mut good: u64) -> Vec<Segment> {
    let mut rest = Vec::new();
    for s in segments {
        let skip = s.len.min(good);
        good -= skip;
        if skip < s.len {
            rest.push(Segment { source: s.source + skip, dest: s.dest + skip, len: s.len - skip });
        }
    }
    rest
}

/// The flags that decide how the rest is copied, as they were given.
fn flags(args: &CpArgs) -> Vec<String> {
    fn choice(flag: &str, value: &impl ValueEnum, default: &str, out: &mut Vec<String>) {
        let name = value.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned());
        if name != default {
            out.push(format!("--{flag} {name}"));
        }
    }
    let mut out = Vec::new();
    let ends = &args.ends;
    choice("offload", &ends.offload, "auto", &mut out);
    choice("sparse", &ends.sparse, "auto", &mut out);
    choice("verify", &args.verify, "none", &mut out);
    choice("consistency", &args.consistency, "request", &mut out);
    choice("io-engine", &args.io_engine, "auto", &mut out);
    if let Some(rate) = args.limit_rate {
        out.push(format!("--limit-rate {rate}"));
    }
    for (flag, is_set) in [
        ("--no-sync", ends.no_sync),
        ("--yes", ends.yes),
        ("--force-in-use", ends.force_in_use),
        ("--preserve", args.preserve),
        ("--exclusive-source", ends.exclusive_source),
        ("--require-stable", args.require_stable),
    ] {
        if is_set {
            out.push(flag.to_owned());
        }
    }
    out
}

/// A word as a shell takes it back: as it is where every byte is harmless, else in single quotes, or with escapes where
/// it is no text of one line.
fn quote(word: &OsStr) -> String {
    let harmless = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+@:=,%".contains(b);
    let bytes = word.as_bytes();
    if !bytes.is_empty() && bytes.iter().all(harmless) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    match word.to_str() {
        Some(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let escaped: String = bytes
                .iter()
                .map(|&b| match b {
                    b'\'' | b'\\' => format!("\\{}", char::from(b)),
                    b' '..=b'~' => char::from(b).to_string(),
                    _ => format!("\\x{b:02x}"),
                })
                .collect();
            format!("$'{escaped}'")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_they_were() {
        for (word, want) in [
            (&b"/a/b-c_1.img@5+7"[..], "/a/b-c_1.img@5+7"),
            (b"a b", "'a b'"),
            (b"it's", r"'it'\''s'"),
            (b"$HOME", "'$HOME'"),
            (b"what?", "'what?'"),
            (b"nvme-tcp://h/nqn?nsid=1", "'nvme-tcp://h/nqn?nsid=1'"),
            (b"", "''"),
            (b"a\nb\xff'", r"$'a\x0ab\xff\''"),
        ] {
            let quoted = quote(OsStr::from_bytes(word));
            assert_eq!(quoted, want);
            let out =
                std::process::Command::new("bash").args(["-c", &format!("printf %s {quoted}")]).output();
            if let Ok(out) = out {
                assert_eq!(out.stdout, word, "{quoted}");
            }
        }
    }

    #[test]
    fn what_is_left_of_segments() {
        let seg = |source, dest, len| Segment { source, dest, len };
        let all = [seg(0, 100, 10), seg(50, 0, 10)];
        assert_eq!(rest(&all, 0), all);
        assert_eq!(rest(&all, 4), [seg(4, 104, 6), all[1]]);
        assert_eq!(rest(&all, 10), [all[1]]);
        assert_eq!(rest(&all, 13), [seg(53, 3, 7)]);
        assert_eq!(rest(&all, 20), []);
    }
}

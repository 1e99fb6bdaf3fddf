//! `include/blkcopy.h` and the programs written against it: they compile without a warning in C99 and C++, and mean the
//! numbers and places that note 006 promises.

#![allow(clippy::unwrap_used)] // a test may

#[path = "common/child.rs"]
mod child;
mod common;

use common::{MIB, bytes, skip};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the ABI is, spelled out: nothing here may ever change.
const ABI: [(&str, u64); 32] = [
    ("BLKCOPY(1)", 0xC030_1281),
    ("BLKCOPY(2)", 0xC050_1281),
    ("BLKCOPY(511)", 0xFFF0_1281),
    ("BLKCOPY_SOURCE", 0x8010_12C8),
    ("BLKCOPY_FROM(1)", 0xC040_12C9),
    ("BLKCOPY_FROM(2)", 0xC060_12C9),
    ("BLKCOPY_FROM(510)", 0xFFE0_12C9),
    ("BLKCOPY_SIZE(511)", 16368),
    ("BLKCOPY_FROM_SIZE(510)", 16352),
    ("BLKCOPY_RANGES_MAX", 511),
    ("BLKCOPY_FROM_RANGES_MAX", 510),
    ("BLKCOPY_BYTES_MAX", 134_217_728),
    ("BLKCOPY_DURABLE", 1),
    ("BLKCOPY_OFFLOAD_ONLY", 2),
    ("sizeof(struct blkcopy_range)", 32),
    ("offsetof(struct blkcopy_range, src)", 0),
    ("offsetof(struct blkcopy_range, dst)", 8),
    ("offsetof(struct blkcopy_range, len)", 16),
    ("offsetof(struct blkcopy_range, comp_len)", 24),
    ("sizeof(struct blkcopy_ranges)", 16),
    ("offsetof(struct blkcopy_ranges, nr_range)", 0),
    ("offsetof(struct blkcopy_ranges, reserved)", 8),
    ("sizeof(struct blkcopy_token)", 16),
    ("sizeof(struct blkcopy_from)", 32),
    ("offsetof(struct blkcopy_from, nr_range)", 0),
    ("offsetof(struct blkcopy_from, flags)", 8),
    ("offsetof(struct blkcopy_from, reserved)", 12),
    ("offsetof(struct blkcopy_from, token)", 16),
    ("sizeof(((struct blkcopy_from *)0)->flags)", 4),
    ("sizeof(((struct blkcopy_from *)0)->reserved)", 4),
    ("(char *)blkcopy_ranges(&within) - (char *)&within", 16),
    ("(char *)blkcopy_from_ranges(&between) - (char *)&between", 32),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// True when the program runs at all.
fn have(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success())
}

/// Compiles with every warning an error; what the compiler said when it would not.
fn compile(compiler: &str, standard: &str, source: &Path, program: &Path) {
    let mut command = Command::new(compiler);
    command.args([standard, "-Wall", "-Wextra", "-pedantic", "-Werror", "-D_DEFAULT_SOURCE", "-I"]);
    let out = command.arg(root().join("include")).arg(source).arg("-o").arg(program).output().unwrap();
    assert!(out.status.success(), "{compiler} {standard}: {}", String::from_utf8_lossy(&out.stderr));
}

/// The compilers of this machine with their standards and the ending their sources have; those missing are named aloud.
fn compilers(test: &str) -> Vec<(&'static str, &'static str, &'static str)> {
    let all = [("cc", "-std=c99", "c"), ("cc", "-std=c11", "c"), ("c++", "-std=c++11", "cc")];
    all.into_iter()
        .filter(|(compiler, standard, _)| {
            let here = have(compiler);
            if !here {
                skip(test, &format!("no {compiler} ({standard})"));
            }
            here
        })
        .collect()
}

#[test]
fn the_header_means_what_the_note_says() {
    let dir = tempfile::tempdir().unwrap();
    for (compiler, standard, ending) in compilers("the_header_means_what_the_note_says") {
        let mut text = "#include <blkcopy.h>\n#include <blkcopy.h>\n#include <stdio.h>\nint main(void)\n{\n\
                        struct blkcopy_ranges within;\nstruct blkcopy_from between;\n"
            .to_owned();
        for (what, _) in ABI {
            text.push_str(&format!("printf(\"%llu\\n\", (unsigned long long)({what}));\n"));
        }
        text.push_str("return 0;\n}\n");
        let (source, program) = (dir.path().join(format!("abi.{ending}")), dir.path().join("abi"));
        std::fs::write(&source, text).unwrap();
        compile(compiler, standard, &source, &program);
        let out = Command::new(&program).output().unwrap();
        let numbers: Vec<u64> =
            String::from_utf8(out.stdout).unwrap().lines().map(|l| l.parse().unwrap()).collect();
        let expected: Vec<u64> = ABI.iter().map(|(_, n)| *n).collect();
        for ((what, want), got) in ABI.iter().zip(&numbers) {
            assert_eq!(got, want, "{what} with {compiler} {standard}");
        }
        assert_eq!(numbers, expected);
    }
}

#[test]
fn the_server_has_the_same_numbers() {
    use blkcopy::sys::blkcopy::{self as calls, Call};
    let number = |what: &str| ABI.iter().find(|(name, _)| *name == what).unwrap().1;
    for n in [1, 2, 511] {
        let ours = Call::Copy.request(calls::HEADER + calls::ENTRY * n).map_or(0, u64::from);
        assert_eq!(ours, number(&format!("BLKCOPY({n})")));
    }
    for n in [1, 2, 510] {
        let ours = Call::From.request(calls::FROM_HEADER + calls::ENTRY * n).map_or(0, u64::from);
        assert_eq!(ours, number(&format!("BLKCOPY_FROM({n})")));
    }
    assert_eq!(Call::Source.request(16).map_or(0, u64::from), number("BLKCOPY_SOURCE"));
    assert_eq!(calls::ENTRIES_MAX as u64, number("BLKCOPY_RANGES_MAX"));
    assert_eq!(calls::FROM_ENTRIES_MAX as u64, number("BLKCOPY_FROM_RANGES_MAX"));
    assert_eq!(u64::from(calls::DURABLE), number("BLKCOPY_DURABLE"));
    assert_eq!(u64::from(calls::OFFLOAD_ONLY), number("BLKCOPY_OFFLOAD_ONLY"));
}

#[test]
fn the_example_in_c_compiles_and_knows_its_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("file"), dir.path().join("copy"));
    std::fs::write(&file, [7; 8192]).unwrap();
    let file = file.to_str().unwrap();
    for (compiler, standard, _) in
        compilers("the_example_in_c_compiles_and_knows_its_arguments").into_iter().filter(|c| c.0 == "cc")
    {
        compile(compiler, standard, &root().join("examples/blkcopy.c"), &program);
        knows_its_arguments(&[program.to_str().unwrap()], file);
    }
}

#[test]
fn the_example_in_python_has_the_same_numbers() {
    if !have("python3") {
        return skip("the_example_in_python_has_the_same_numbers", "no python3");
    }
    // Expressions of the header whose Python spelling differs only in the names of types.
    let python = |what: &str| {
        Some(match what {
            "sizeof(struct blkcopy_range)" => "m.ctypes.sizeof(m.Range)".to_owned(),
            "sizeof(struct blkcopy_ranges)" => "m.ctypes.sizeof(m.Ranges)".to_owned(),
            "sizeof(struct blkcopy_from)" => "m.ctypes.sizeof(m.From)".to_owned(),
            "offsetof(struct blkcopy_range, comp_len)" => "m.Range.comp_len.offset".to_owned(),
            "offsetof(struct blkcopy_from, flags)" => "m.From.flags.offset".to_owned(),
            "offsetof(struct blkcopy_from, token)" => "m.From.token.offset".to_owned(),
            "BLKCOPY_RANGES_MAX" => "m.RANGES_MAX".to_owned(),
            "BLKCOPY_FROM_RANGES_MAX" => "m.FROM_RANGES_MAX".to_owned(),
            "BLKCOPY_DURABLE" => "m.DURABLE".to_owned(),
            "BLKCOPY_OFFLOAD_ONLY" => "m.OFFLOAD_ONLY".to_owned(),
            _ if what.starts_with("BLKCOPY(") || what.starts_with("BLKCOPY_FROM(") => format!("m.{what}"),
            "BLKCOPY_SOURCE" => "m.BLKCOPY_SOURCE".to_owned(),
            _ => return None,
        })
    };
    let (asked, expected): (Vec<String>, Vec<u64>) =
        ABI.iter().filter_map(|(what, n)| Some((python(what)?, *n))).unzip();
    assert_eq!(asked.len(), 17);
    let script = format!("import blkcopy_ioctl as m\nfor n in ({}): print(n)", asked.join(", "));
    let examples = root().join("examples");
    let out = Command::new("python3").args(["-B", "-c", &script]).current_dir(&examples).output().unwrap();
    let numbers: Vec<u64> =
        String::from_utf8(out.stdout).unwrap().lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(numbers, expected, "{}", String::from_utf8_lossy(&out.stderr));

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, [7; 8192]).unwrap();
    let script = examples.join("blkcopy_ioctl.py");
    knows_its_arguments(&["python3", "-B", script.to_str().unwrap()], file.to_str().unwrap());
}

#[test]
fn both_programs_copy_on_a_mount() {
    let name = "both_programs_copy_on_a_mount";
    if let Err(why) = child::mounts_or_why() {
        return skip(name, &why);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut programs = Vec::new();
    for (compiler, standard, _) in compilers(name).into_iter().filter(|c| c.1 == "-std=c99") {
        let program = dir.path().join("copy");
        compile(compiler, standard, &root().join("examples/blkcopy.c"), &program);
        programs.push(vec![program.to_str().unwrap().to_owned()]);
    }
    if have("python3") {
        let script = root().join("examples/blkcopy_ioctl.py");
        programs.push(vec!["python3".to_owned(), "-B".to_owned(), script.to_str().unwrap().to_owned()]);
    }
    for program in programs {
        let mounted = child::by_command(&["a=mem:1MiB".to_owned(), "b=mem:1MiB".to_owned()], false);
        let (a, b) = (mounted.dir.join("a"), mounted.dir.join("b"));
        let mut was = bytes(usize::try_from(MIB).unwrap(), 5);
        std::fs::File::options().write(true).open(&a).unwrap().write_all_at(&was, 0).unwrap();
        let run = |args: &[&str]| {
            let out = Command::new(&program[0]).args(&program[1..]).args(args).output().unwrap();
            (out.status.code(), String::from_utf8(out.stdout).unwrap())
        };
        let (a_text, b_text) = (a.to_str().unwrap(), b.to_str().unwrap());
        // Within one file, ragged, and to the other; a refusal copies nothing and says so of every entry.
        let said = run(&[a_text, "0:600000:1000", "3:700001:5"]);
        assert_eq!(said, (Some(0), "0:600000:1000 1000\n3:700001:5 5\n".to_owned()), "{program:?}");
        was.copy_within(0..1000, 600_000);
        was.copy_within(3..8, 700_001);
        // Memory is copied by the daemon itself: that is not offloaded, and it says so before anything is written.
        let said = run(&["--from", a_text, "--offload-only", b_text, "0:0:1048576"]);
        assert_eq!(said, (Some(1), "0:0:1048576 0\n".to_owned()), "{program:?}");
        let said = run(&["--from", a_text, "--durable", b_text, "0:0:1048576"]);
        assert_eq!(said, (Some(0), "0:0:1048576 1048576\n".to_owned()), "{program:?}");
        let said = run(&["--from", a_text, b_text, "0:0:100", "500:99:1"]);
        assert_eq!(said, (Some(1), "0:0:100 0\n500:99:1 0\n".to_owned()), "{program:?}");
        assert!(std::fs::read(&a).unwrap() == was && std::fs::read(&b).unwrap() == was, "{program:?}");
        mounted.step();
    }
}

/// A file that no mount of ours shows: the call is refused, every `comp_len` is 0, and a bad command line is not begun.
fn knows_its_arguments(program: &[&str], file: &str) {
    let run = |args: &[&str]| {
        let out = Command::new(program[0]).args(&program[1..]).args(args).output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, out, err) = run(&[file, "0:4096:512", "512:5000:1"]);
    assert_eq!((code, out.as_str()), (Some(1), "0:4096:512 0\n512:5000:1 0\n"), "{err}");
    assert!(err.contains("Inappropriate ioctl for device"), "{err}");
    for args in [
        &[file][..],
        &[file, "0:1"],
        &[file, "0:1:x"],
        &["--durable", file, "0:1:1"],
        &["--from", file, file, "0:1:1"],
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert!(!err.is_empty(), "{args:?}");
    }
}

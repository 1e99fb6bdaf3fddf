//! `cargo xtask planted`: tests that no planted bug can fail are decoration.

use crate::tool::{Done, cannot, cargo, have, output, root, words};
use std::fs;
use std::path::{Path, PathBuf};

struct Bug {
    name: String,
    patch: PathBuf,
    what: String,
    caught_by: Vec<String>,
}

enum Verdict {
    Caught,
    Missed,
    Broken(String),
}

/// Applies each patch of `tests/planted` whose name holds one of `names` (all without names) to a copy of the tree and
/// runs the test it names. True when every one of those tests fails.
pub(crate) fn planted(names: &[String]) -> Done {
    let bugs: Vec<Bug> = load()?
        .into_iter()
        .filter(|b| names.is_empty() || names.iter().any(|n| b.name.contains(n.as_str())))
        .collect();
    if bugs.is_empty() {
        return Err(format!("no patch in tests/planted has a name with {}", names.join(" or ")));
    }
    let tree = tempfile::tempdir().map_err(|e| cannot("a temporary folder", &e))?;
    copy_tree(tree.path())?;
    let mut missed = 0;
    for (n, bug) in bugs.iter().enumerate() {
        println!("==> {} of {}: {}: {}", n + 1, bugs.len(), bug.name, bug.what);
        let verdict = try_bug(bug, tree.path())?;
        let text = match &verdict {
            Verdict::Caught => "caught".to_owned(),
            Verdict::Missed => "MISSED: the test passed".to_owned(),
            Verdict::Broken(why) => format!("BROKEN: {why}"),
        };
        println!("    {text} ({})", bug.caught_by.join(" "));
        missed += usize::from(!matches!(verdict, Verdict::Caught));
    }
    println!("{} planted, {} caught, {missed} not", bugs.len(), bugs.len() - missed);
    Ok(missed == 0)
}

fn load() -> Result<Vec<Bug>, String> {
    let folder = root().join("tests/planted");
    let entries = fs::read_dir(&folder).map_err(|e| cannot(&folder, &e))?;
    let mut bugs = Vec::new();
    for entry in entries {
        let patch = entry.map_err(|e| cannot(&folder, &e))?.path();
        if patch.extension().is_none_or(|e| e != "patch") {
            continue;
        }
        let text = fs::read_to_string(&patch).map_err(|e| cannot(&patch, &e))?;
        let field = |key: &str| {
            let line = text.lines().take_while(|l| l.starts_with('#')).find_map(|l| l.strip_prefix(key));
            line.map(|l| l.trim().to_owned()).ok_or_else(|| format!("{}: no line \"{key}\"", patch.display()))
        };
        let caught_by = field("# caught-by:")?.split_whitespace().map(str::to_owned).collect();
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        bugs.push(Bug { what: field("# bug:")?, caught_by, name, patch });
    }
    bugs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(bugs)
}

/// Copies what git tracks, as it stands in the working tree.
fn copy_tree(to: &Path) -> Result<(), String> {
    let list = output(words("git ls-files -z").current_dir(root()))?;
    for name in list.split('\0').filter(|n| !n.is_empty()) {
        let (from, to) = (root().join(name), to.join(name));
        if !from.is_file() {
            continue;
        }
        let folder = to.parent().expect("a file lies in a folder");
        fs::create_dir_all(folder).map_err(|e| cannot(folder, &e))?;
        fs::copy(&from, &to).map_err(|e| cannot(&from, &e))?;
    }
    Ok(())
}

fn try_bug(bug: &Bug, tree: &Path) -> Result<Verdict, String> {
    // A repository of its own around the copy, or `git apply` would look for one further up and skip files.
    let apply = |extra: &[&str]| {
        let mut git = words("git apply --whitespace=nowarn");
        output(git.args(extra).arg(&bug.patch).current_dir(tree).env("GIT_CEILING_DIRECTORIES", tree))
    };
    if let Err(why) = apply(&[]) {
        return Ok(Verdict::Broken(format!("the patch does not apply: {why}")));
    }
    let verdict = test(bug, tree);
    apply(&["--reverse"])?;
    verdict
}

/// Seconds after which a test that still runs has failed: a bug may well be a hang.
const PATIENCE: &str = "300";

fn test(bug: &Bug, tree: &Path) -> Result<Verdict, String> {
    let command = |extra: &[&str]| {
        let mut test = cargo(&["test", "--quiet"]);
        test.args(extra).args(&bug.caught_by).current_dir(tree);
        // One target directory for all bugs; a regression file written by a failing property test stays in the copy.
        test.env("CARGO_TARGET_DIR", root().join("target/planted"));
        // Each bug is compiled once and run once: compiling fast matters more than running fast.
        test.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0").env("CARGO_PROFILE_DEV_DEBUG", "0");
        test.env("RUST_BACKTRACE", "0");
        test
    };
    if let Err(why) = output(&mut command(&["--no-run"])) {
        return Ok(Verdict::Broken(format!("does not compile: {why}")));
    }
    let mut run = command(&[]);
    if have("timeout") {
        let mut timed = words("timeout --signal=KILL");
        timed.arg(PATIENCE).arg(run.get_program()).args(run.get_args()).current_dir(tree);
        timed.envs(run.get_envs().filter_map(|(k, v)| Some((k, v?))));
        run = timed;
    }
    let out = run.output().map_err(|e| cannot("cargo test", &e))?;
    let text = String::from_utf8_lossy(&out.stdout);
    if out.status.success() {
        let ran = text.lines().any(|l| l.contains("test result: ok.") && !l.contains(" 0 passed"));
        return Ok(if ran { Verdict::Missed } else { Verdict::Broken("names no test".to_owned()) });
    }
    // A test that fails says so; anything else (a crash of cargo, no such target) proves nothing.
    let hangs = matches!(out.status.code(), None | Some(137));
    let failed = hangs
        || text.contains("test result: FAILED")
        || text.contains("panicked")
        || out.status.code() == Some(101);
    Ok(if failed {
        Verdict::Caught
    } else {
        Verdict::Broken(String::from_utf8_lossy(&out.stderr).into_owned())
    })
}

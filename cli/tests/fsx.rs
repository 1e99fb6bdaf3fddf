//! The public fsx tool on mounted volumes.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

#[path = "common/child.rs"]
mod child;
mod common;
#[path = "common/fsx_tool.rs"]
mod fsx_tool;

use child::Kind;
use common::skip;
use fsx_tool::{SIZE, finds_nothing, fsx, settings, tool};
use std::sync::{Mutex, PoisonError};

const STEPS: u64 = 20_000;

/// One at a time: two cores, and a mount that waits for its turn looks like one that hangs.
static ONE: Mutex<()> = Mutex::new(());

/// Not a test: the server process of others.
#[test]
fn mount_child() {
    child::serve_if_asked();
}

#[test]
fn fsx_finds_nothing_on_volumes_of_fixed_size() {
    let tool = match tool() {
        Ok(tool) => tool,
        Err(why) => return skip("fsx_finds_nothing_on_volumes_of_fixed_size", &why),
    };
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for cache in [false, true] {
        for seed in 1..=3 {
            let mount = child::by_command(&[format!("vol0=mem:{SIZE}")], cache);
            let found = fsx(&tool, &mount, &settings("blockmode = true", false), seed, STEPS);
            finds_nothing(&format!("fixed size, cache {cache}, seed {seed}"), STEPS, &found);
        }
    }
}

#[test]
fn fsx_finds_nothing_on_a_resizable_view() {
    let tool = match tool() {
        Ok(tool) => tool,
        Err(why) => return skip("fsx_finds_nothing_on_a_resizable_view", &why),
    };
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for cache in [false, true] {
        let mount = child::own(SIZE, &[Kind::Memory], cache, true);
        let found = fsx(&tool, &mount, &settings("", true), 4, STEPS);
        finds_nothing(&format!("resizable, cache {cache}"), STEPS, &found);
    }
}

/// fsx looks at what our copies do: of a device that copies wrong it complains.
#[test]
fn fsx_finds_a_planted_bug() {
    let tool = match tool() {
        Ok(tool) => tool,
        Err(why) => return skip("fsx_finds_a_planted_bug", &why),
    };
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mount = child::own(SIZE, &[Kind::Miscopying(0)], false, false);
    let found = fsx(&tool, &mount, &settings("blockmode = true", false), 5, STEPS);
    assert!(!found.good && found.text.contains("miscompare"), "{}", found.text);
}

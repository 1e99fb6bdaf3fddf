//! The exerciser, threads side by side and fsx on mounts of volumes that lie on many kinds of local storage, by both
//! engines.
//!
//! `BLKCOPY_MATRIX_STEPS` sets the steps of each run (400; a soak takes 1000000), `BLKCOPY_MATRIX=on-ext3` or
//! `BLKCOPY_MATRIX=on-ext3+pool` picks some, `BLKCOPY_MATRIX_SEED` makes other steps of the same kinds. A fault of the
//! exerciser is run again as its last lines say.

#![allow(clippy::unwrap_used)] // in a test a panic is the message

#[path = "common/child.rs"]
mod child;
mod common;
#[path = "common/exerciser/mod.rs"]
mod exerciser;
#[path = "common/fsx_tool.rs"]
mod fsx_tool;
#[path = "common/places.rs"]
mod places;
#[path = "common/sites.rs"]
mod sites;

use common::{MIB, skip};
use exerciser::neighbours::Neighbours;
use places::{Engine, Place, Under};
use sites::{Base, Site};
use std::path::Path;
use std::time::Instant;

/// Not a test: the server process of others.
#[test]
fn mount_child() {
    child::serve_if_asked();
}

/// Steps of one list: a longer one would take too long to be made short when it fails.
const LIST_MAX: u64 = 20_000;
/// Threads of a crowd.
const THREADS: usize = 4;

fn number(name: &str, none: u64) -> u64 {
    std::env::var(name).map_or(none, |text| text.parse().unwrap())
}

//= promise 1
#[test]
fn every_kind_of_storage_keeps_what_was_written_whoever_writes_beside_it() {
    if let Err(why) = child::mounts_or_why().and_then(|()| common::loops_or_why()) {
        return skip("every_kind_of_storage_keeps_what_was_written_whoever_writes_beside_it", &why);
    }
    let fsx = fsx_tool::tool();
    if let Err(why) = &fsx {
        skip("fsx on every kind of storage", why);
    }
    let picked = std::env::var("BLKCOPY_MATRIX").unwrap_or_default();
    let (mut ran, mut operations) = (0, 0);
    for site in Site::all() {
        let rows = [Engine::Uring, Engine::Pool].map(|engine| Place::new(Under::On(site, engine), false));
        let rows: Vec<Place> = rows
            .into_iter()
            .filter(|row| {
                picked.is_empty()
                    || picked == site.name()
                    || row.name().starts_with(&format!("{picked}+"))
                    || row.name() == picked
            })
            .collect();
        if rows.is_empty() {
            continue;
        }
        let base = match site.make() {
            Ok(base) => base,
            Err(why) => {
                skip(&format!("the matrix {}", site.name()), &why);
                continue;
            }
        };
        for row in rows {
            operations += run(row, &base, fsx.as_deref().ok());
            ran += 1;
        }
    }
    assert!(ran > 0, "BLKCOPY_MATRIX={picked} picks nothing of cli/tests/common/sites.rs");
    eprintln!("{ran} rows, {operations} operations, none wrong");
}

/// All of one row; the operations made.
fn run(row: Place, base: &Base, fsx: Option<&Path>) -> u64 {
    let (steps, seed) = (number("BLKCOPY_MATRIX_STEPS", 400), number("BLKCOPY_MATRIX_SEED", 1));
    let (begun, mut operations) = (Instant::now(), 0);
    let mut left = steps;
    let mut list = seed;
    while left > 0 {
        let now = left.min(LIST_MAX);
        for cache in [false, true] {
            let place = Place { cache, ..row };
            let plan = place.plan(list, usize::try_from(now / 2).unwrap(), false);
            let make = || place.ground_on(base, plan.volumes, plan.size);
            let copied = exerciser::exercise(&place.name(), &plan, &make);
            assert_eq!(
                copied.told,
                Some(copied.here),
                "{}: not the copies that were asked for",
                place.name()
            );
            side_by_side(place, base, list, now / 4);
            operations += now / 2 + now / 4 * THREADS as u64;
        }
        if let Some(tool) = fsx {
            let ground = row.mounted_on(base, 1, fsx_tool::SIZE);
            let settings = fsx_tool::settings("blockmode = true", false);
            let found = fsx_tool::fsx(tool, &ground.0, &settings, list, now);
            fsx_tool::finds_nothing(&row.name(), now, &found);
            operations += now;
        }
        left -= now;
        list += 1;
    }
    eprintln!("{}: {operations} operations in {:.1?}", row.name(), begun.elapsed());
    operations
}

/// Threads in one volume; what they left is on the storage when the mount has ended.
fn side_by_side(place: Place, base: &Base, seed: u64, rounds: u64) {
    for volume in 0..2 {
        let (mount, below) = place.mounted_on(base, 2, 2 * MIB);
        let path = mount.dir.join(format!("vol{volume}"));
        let neighbours = Neighbours {
            path: &path,
            beat: &mount.beat,
            caps: place.caps(false),
            cache: place.cache,
            seed,
            threads: THREADS,
            rounds: rounds / 2,
        };
        let again =
            format!("BLKCOPY_MATRIX={} BLKCOPY_MATRIX_SEED={seed}", place.name().replace("+cache", ""));
        let name = format!("{}, threads side by side on volume {volume} ({again})", place.name());
        let due = neighbours.run().unwrap_or_else(|fault| panic!("{name}: {}", fault.0));
        drop(mount);
        let held = std::fs::read(&below.devices[volume]).unwrap();
        let wrong = held.iter().zip(&due).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{name}: the storage below differs from there on once the mount has ended");
        assert_eq!(held.len(), due.len(), "{name}");
    }
}

//! Makes a failing list of steps short.

use super::ops::Op;

/// The positions of a short list of steps that still fails, found in at most `runs` tries of `fails`.
///
/// `fails` runs the steps on fresh ground. Leaves out ever smaller parts (the ddmin algorithm, complements only). A
/// failure that comes and goes ends with a list longer than need be, never with one that was not seen to fail.
pub(crate) fn minimise(steps: &[Op], mut runs: usize, fails: &mut dyn FnMut(&[Op]) -> bool) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..steps.len()).collect();
    let mut parts = 2;
    while kept.len() > 1 && runs > 0 {
        let part = kept.len().div_ceil(parts);
        // From the front: what stands early is seldom what matters.
        let shorter = (0..kept.len()).step_by(part).find_map(|at| {
            runs = runs.checked_sub(1)?;
            let end = (at + part).min(kept.len());
            let rest: Vec<usize> = kept[..at].iter().chain(&kept[end..]).copied().collect();
            let list: Vec<Op> = rest.iter().map(|&i| steps[i].clone()).collect();
            (!rest.is_empty() && fails(&list)).then_some(rest)
        });
        match shorter {
            Some(rest) => {
                kept = rest;
                parts = (parts - 1).max(2);
            }
            None if part == 1 => break,
            None => parts = (parts * 2).min(kept.len()),
        }
    }
    kept
}

//! Copies that the device makes by itself: one request after the other, until it is done or says why not.

use super::moved::{Moved, Then};
use super::plan::Step;
use super::shared::Shared;
use crate::block::{ByteRange, CopyRequest, Error, Kind, Op};
use smallvec::SmallVec;
use std::rc::Rc;

/// Has the device copy a step's bytes from `from` on to one leg, at most `most` bytes at a time.
pub(super) async fn offload(shared: &Rc<Shared>, step: &Rc<Step>, leg: usize, from: u64, most: u64) -> Moved {
    let method = step.legs[leg].method;
    let place = step.legs[leg].place;
    // How far bytes may have been changed by a request that failed; tried again, they are defined again.
    let mut touched = 0;
    let mut good = from;
    let align =
        shared.leaf(place.leaf).copy_paths().iter().find(|p| p.method == method).map_or(1, |p| p.align);
    let then = loop {
        if good == step.len {
            break Then::Done;
        }
        if shared.stopped() {
            break Then::Failed(shared.stop_reason());
        }
        let len = (step.len - good).min(most).min(shared.paced_len(method));
        shared.pace(method, len).await;
        let request = CopyRequest {
            method,
            source: shared.leaf(step.source_leaf),
            sources: sources_of(step, good, len),
            dest: ByteRange::between(place.offset + good, place.offset + good + len),
            fua: false,
            must: shared.options.policy.offload.must(),
            cancel: shared.options.cancel.clone(),
        };
        // The rate may have made it wait.
        if shared.abandoned() {
            break Then::Failed(shared.stop_reason());
        }
        let in_flight = shared.options.pulse.writes();
        let done = shared.client(place.leaf).submit(Op::Copy(Box::new(request))).await;
        drop(in_flight);
        let moved = done.good_bytes.min(len);
        if done.copy.as_ref().is_some_and(|report| report.rest_undefined) && done.result.is_err() {
            touched = touched.max(good + len);
        }
        shared.moved_as(leg, method, moved, &done.fates(method, moved));
        shared.good_so_far(step.dest + good, step.dest + good + moved);
        good += moved;
        break match done.result {
            // A short answer without an error is no lie: ask for the rest, unless nothing moves any more.
            Ok(()) if moved > 0 => continue,
            Ok(()) => {
                let text = "the device copied nothing and reported no error";
                Then::Failed(Error::new(Kind::Io, text).on(shared.dest.name()))
            }
            Err(error) => match error.kind() {
                // Each time less, so this ends.
                Kind::TooLarge { max_bytes } if max_bytes < len => {
                    Then::Cut { most: max_bytes - max_bytes % align.max(1), error }
                }
                Kind::Unsupported => Then::Refused(error),
                _ => Then::Failed(error),
            },
        };
    };
    Moved { good, touched, then }
}

/// The source ranges of `len` bytes of a step from `from` on.
fn sources_of(step: &Step, from: u64, len: u64) -> SmallVec<[ByteRange; 1]> {
    let mut at = 0;
    let mut ranges = SmallVec::new();
    for part in &step.sources {
        let (start, end) = (at.max(from), (at + part.len).min(from + len));
        if start < end {
            let offset = part.leaf_offset + (start - at);
            ranges.push(ByteRange::between(offset, offset + (end - start)));
        }
        at += part.len;
    }
    ranges
}

//! Steps that make zeroes: by the device where it can, by writing where it cannot.

use super::emulate::{self, Bytes};
use super::moved::{Moved, Then};
use super::plan::{Sparse, Step};
use super::shared::Shared;
use crate::block::{ByteRange, Kind, Method, Op};
use std::ops::Range;
use std::rc::Rc;

/// Zeroes one leg: whole blocks by the device, ragged edges by writing. `Refused` where the device does not know how
/// and writing is allowed.
pub(super) async fn by_device(shared: &Rc<Shared>, step: &Rc<Step>, leg: usize) -> Moved {
    let place = step.legs[leg].place;
    let block = shared.block_size(place.leaf);
    let end = place.offset + step.len;
    let first = place.offset.next_multiple_of(block).min(end);
    let last = (end - end % block).max(first);
    let (head, tail) = (first - place.offset, last - place.offset);
    if shared.stopped() {
        return Moved::failed(0, shared.stop_reason());
    }
    if head > 0 {
        let moved = by_writing(shared, step, leg, 0..head).await;
        if !matches!(moved.then, Then::Done) {
            return moved;
        }
    }
    if head < tail && shared.options.in_order {
        // Zeroing makes no file longer.
        return by_writing(shared, step, leg, head..step.len).await;
    }
    if head < tail {
        let may_unmap = shared.options.policy.sparse != Sparse::Never;
        let op = Op::WriteZeroes { range: ByteRange::between(first, last), may_unmap, lazy: false };
        if shared.abandoned() {
            return Moved::failed(head, shared.stop_reason());
        }
        let in_flight = shared.options.pulse.writes();
        let done = shared.client(place.leaf).submit(op).await;
        drop(in_flight);
        match done.result {
            Ok(()) => {
                shared.moved(leg, Method::WriteZeroes, tail - head);
                shared.good_so_far(step.dest + head, step.dest + tail);
            }
            Err(e) if e.kind() == Kind::Unsupported && !shared.requires_offload() => {
                return Moved { good: head, touched: 0, then: Then::Refused(e) };
            }
            Err(e) => {
                let good = done.good_bytes.min(tail - head);
                shared.moved(leg, Method::WriteZeroes, good);
                return Moved::failed(head + good, e);
            }
        }
    }
    if tail < step.len { by_writing(shared, step, leg, tail..step.len).await } else { Moved::all(step.len) }
}

/// Writes zeroes to a part of a step's leg.
pub(super) async fn by_writing(shared: &Rc<Shared>, step: &Rc<Step>, leg: usize, part: Range<u64>) -> Moved {
    let from = part.start;
    let mut done = emulate::emulate(shared, step, &[leg], part, Bytes::Zero).await;
    let one = done.legs.swap_remove(0);
    shared.moved(leg, Method::Emulated, one.good - from);
    match one.error.or(done.error) {
        Some(e) => Moved::failed(one.good, e),
        None => Moved { good: one.good, touched: 0, then: Then::Done },
    }
}

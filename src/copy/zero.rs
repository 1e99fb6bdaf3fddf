//! Steps that make zeroes: by the device where it can, by writing where it cannot.

use super::emulate::{self, Bytes};
use super::plan::{Sparse, Step};
use super::shared::Shared;
use crate::block::receipt::Reason;
use crate::block::{ByteRange, Kind, Method, Op, Result};
use std::rc::Rc;

/// Zeroes one leg: whole blocks by the device where it can, ragged edges and the rest by writing.
pub(super) async fn zero_leg(shared: &Rc<Shared>, step: &Rc<Step>, leg: usize) -> (u64, Result<()>) {
    let place = step.legs[leg].place;
    let block = shared.block_size(place.leaf);
    let end = place.offset + step.len;
    let first = place.offset.next_multiple_of(block).min(end);
    let last = (end - end % block).max(first);
    let (head, tail) = (first - place.offset, last - place.offset);

    if shared.stopped() {
        return (0, Err(shared.stop_reason()));
    }
    if head > 0 {
        let (good, result) = write_zeroes(shared, step, leg, 0, head).await;
        if result.is_err() {
            return (good, result);
        }
    }
    if head < tail && shared.options.in_order {
        // Zeroing makes no file longer.
        return write_zeroes(shared, step, leg, head, step.len).await;
    }
    if head < tail {
        let may_unmap = shared.options.policy.sparse != Sparse::Never;
        let op = Op::WriteZeroes { range: ByteRange::between(first, last), may_unmap, lazy: false };
        if shared.abandoned() {
            return (head, Err(shared.stop_reason()));
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
                shared.deviation(step, Method::WriteZeroes, Method::Emulated, Reason::Refused, &e);
                return write_zeroes(shared, step, leg, head, step.len).await;
            }
            Err(e) => {
                let good = done.good_bytes.min(tail - head);
                shared.moved(leg, Method::WriteZeroes, good);
                return (head + good, Err(e));
            }
        }
    }
    if tail < step.len { write_zeroes(shared, step, leg, tail, step.len).await } else { (step.len, Ok(())) }
}

async fn write_zeroes(
    shared: &Rc<Shared>,
    step: &Rc<Step>,
    leg: usize,
    from: u64,
    to: u64,
) -> (u64, Result<()>) {
    let mut done = emulate::emulate(shared, step, &[leg], from..to, Bytes::Zero).await;
    let one = done.legs.swap_remove(0);
    shared.moved(leg, Method::Emulated, one.good - from);
    match one.error.or(done.error) {
        Some(e) => (one.good, Err(e)),
        None => (one.good, Ok(())),
    }
}

//! I/O commands become requests, completions become answers.

use super::context::Context;
use super::copy;
use super::outcome::Outcome;
use crate::block::{Buf, Completion, Kind, Op};
use crate::nvme::command::NSID_ALL;
use crate::nvme::io::{Extent, parse_dsm_ranges};
use crate::nvme::{Doing, IoCommand, Sqe, Status};
use crate::nvmet::backends::Backend;
use crate::nvmet::connections::QueuePair;
use crate::nvmet::namespace::Namespace;
use crate::nvmet::namespace_set::bump;
use crate::nvmet::pending::{Deallocate, Pending};

/// Begins an I/O command. `data`: what the host sent, or the buffer for what goes to it.
#[inline]
pub(in crate::nvmet) fn begin(cx: &mut Context<'_>, sqe: &Sqe, data: Buf) -> Outcome {
    try_begin(cx, sqe, data).unwrap_or_else(Outcome::fail)
}

#[inline]
fn try_begin(cx: &mut Context<'_>, sqe: &Sqe, data: Buf) -> Result<Outcome, Status> {
    let controller = cx.connection.queue.ready()?;
    let through = controller.writes_through();
    if controller.namespaces().is_discovery() {
        return Err(Status::INVALID_OPCODE);
    }
    let command = IoCommand::parse(sqe)?;
    if command == (IoCommand::Flush { nsid: NSID_ALL }) {
        return Ok(flush_all(cx, false));
    }
    let at = cx.find(command.nsid())?;
    let namespace = &cx.backends.get(at).namespace;
    // A Copy has its list checked when its turn in the order of checks comes.
    if !matches!(command, IoCommand::Copy(_)) {
        command.check_data_len(namespace.block_bytes(), sqe.sgl().len)?;
    }
    let bytes = |extent: &Extent| namespace.extent(extent.slba, extent.blocks);
    let may_write = || if namespace.read_only() { Err(Status::NAMESPACE_WRITE_PROTECTED) } else { Ok(()) };
    let (pending, op) = match command {
        IoCommand::Read(extent) => {
            let range = bytes(&extent)?;
            (Pending::Read { flush: extent.fua }, Op::Read { range, buf: data })
        }
        IoCommand::Write(extent) => {
            let range = bytes(&extent)?;
            may_write()?;
            (Pending::Plain(Doing::Write), Op::Write { range, buf: data, fua: extent.fua || through })
        }
        IoCommand::Compare(extent) => {
            let pending = Pending::Then { doing: Doing::Compare, flush: extent.fua };
            (pending, Op::Compare { range: bytes(&extent)?, buf: data })
        }
        IoCommand::WriteZeroes { extent, deallocate } => {
            let range = bytes(&extent)?;
            may_write()?;
            let flush = extent.fua || through;
            (
                Pending::Then { doing: Doing::WriteZeroes, flush },
                Op::WriteZeroes { range, may_unmap: deallocate, lazy: false },
            )
        }
        IoCommand::Flush { .. } => (Pending::Plain(Doing::Flush), Op::Flush),
        IoCommand::DatasetManagement { ranges, deallocate, .. } => {
            for range in parse_dsm_ranges(ranges, &data)? {
                namespace.bytes(range.slba, range.blocks.into())?;
            }
            may_write()?;
            if !deallocate {
                // Hints on future use: taken, and nothing is done with them.
                return Ok(Outcome::done());
            }
            let work = Deallocate { list: data, ranges, done: 0, flush: through };
            return Ok(next_range(Box::new(work), namespace, at));
        }
        IoCommand::Copy(copy) => return copy::begin(cx, at, &copy, &data, through),
    };
    Ok(Outcome::Request { pending, backend: at, op })
}

/// Goes on with a command, other than a Copy, one of whose requests came back.
#[inline]
pub(in crate::nvmet) fn on_completion(cx: &mut Context<'_>, done: Completion) -> Outcome {
    let slot = &mut cx.connection.slots[usize::from(cx.id.slot)];
    let at = slot.backend;
    let backend = cx.backends.get(at);
    match &mut slot.pending {
        Pending::Read { flush } => match &done.result {
            Ok(()) if *flush => {
                Outcome::Request { pending: Pending::Durable(done.buf), backend: at, op: Op::Flush }
            }
            Ok(()) => has_read(backend, done.buf),
            Err(error) => Outcome::fail(Status::of(error, Doing::Read)),
        },
        Pending::Plain(doing) => {
            let doing = *doing;
            if doing == Doing::Write && done.result.is_ok() {
                count_write(backend, done.good_bytes);
            }
            Outcome::of(done.result.map_err(|e| Status::of(&e, doing)))
        }
        Pending::Durable(buf) => match done.result {
            Ok(()) => has_read(backend, std::mem::take(buf)),
            Err(error) => Outcome::fail(Status::of(&error, Doing::Flush)),
        },
        Pending::Then { doing, flush } => {
            if *doing == Doing::Compare && done.result.is_ok() {
                count_read(backend, done.good_bytes);
            }
            match done.result {
                Ok(()) if *flush => then_flush(at),
                result => Outcome::of(result.map_err(|e| Status::of(&e, *doing))),
            }
        }
        Pending::Flushes { left, status, shutdown } => {
            *left -= 1;
            if let (true, Err(error)) = (status.is_success(), &done.result) {
                *status = Status::of(error, Doing::Flush);
            }
            let (is_over, status, shutdown) = (*left == 0, *status, *shutdown);
            if is_over { flushes_end(&cx.connection.queue, status, shutdown) } else { Outcome::Wait }
        }
        Pending::Deallocate(_) => {
            let Pending::Deallocate(mut work) = std::mem::take(&mut slot.pending) else {
                return Outcome::Wait;
            };
            work.done += 1;
            match done.result {
                // A device that cannot give space back keeps it: deallocating is a hint.
                Err(error) if error.kind() != Kind::Unsupported => {
                    Outcome::fail(Status::of(&error, Doing::Deallocate))
                }
                _ => next_range(work, &backend.namespace, at),
            }
        }
        Pending::Free | Pending::Other | Pending::Copy(_) => {
            debug_assert!(false, "a request of no command of this family came back");
            Outcome::Wait
        }
    }
}

#[inline]
fn has_read(backend: &Backend, buf: Buf) -> Outcome {
    count_read(backend, buf.len() as u64);
    Outcome::data(buf)
}

/// Counts a Read or Compare that went well, for the SMART log.
#[inline]
fn count_read(backend: &Backend, bytes: u64) {
    bump(&backend.counts.reads, 1);
    bump(&backend.counts.read_bytes, bytes);
}

/// Counts a Write that went well, for the SMART log.
#[inline]
fn count_write(backend: &Backend, bytes: u64) {
    bump(&backend.counts.writes, 1);
    bump(&backend.counts.written_bytes, bytes);
}

fn then_flush(backend: u16) -> Outcome {
    Outcome::Request { pending: Pending::Plain(Doing::Flush), backend, op: Op::Flush }
}

/// Discards the next range that is not empty; ends the command after the last.
fn next_range(mut work: Box<Deallocate>, namespace: &Namespace, backend: u16) -> Outcome {
    let mut ranges = parse_dsm_ranges(work.ranges, &work.list).into_iter().flatten().skip(work.done);
    let skipped = ranges.clone().take_while(|r| r.blocks == 0).count();
    let next = ranges.nth(skipped);
    work.done += skipped;
    let Some(range) = next else {
        return if work.flush { then_flush(backend) } else { Outcome::done() };
    };
    // Checked when the command began; the namespace does not change.
    match namespace.bytes(range.slba, range.blocks.into()) {
        Ok(range) => {
            Outcome::Request { pending: Pending::Deallocate(work), backend, op: Op::Discard { range } }
        }
        Err(status) => Outcome::fail(status),
    }
}

/// Flushes what the command's host sees, then ends the command, or the shutdown it is the last word of.
pub(super) fn flush_all(cx: &mut Context<'_>, shutdown: bool) -> Outcome {
    // What this thread cannot open another may have written to.
    let (backends, all) = cx.all();
    let status = all.err().unwrap_or(Status::SUCCESS);
    if backends.is_empty() {
        return flushes_end(&cx.connection.queue, status, shutdown);
    }
    Outcome::FlushAll { backends, status, shutdown }
}

fn flushes_end(queue: &QueuePair, mut status: Status, shutdown: bool) -> Outcome {
    if shutdown && let Some(controller) = &queue.controller {
        controller.shutdown_complete();
        if !std::mem::take(&mut status).is_success() {
            tracing::error!(?controller, "shut down, but not all data could be made durable");
        }
    }
    Outcome::of(if status.is_success() { Ok(()) } else { Err(status) })
}

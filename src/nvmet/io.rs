//! I/O commands become requests, completions become answers.

use super::core::{Core, From, State};
use super::subsystem::bump;
use crate::block::{Buf, Completion, Kind, Op};
use crate::nvme::command::NSID_ALL;
use crate::nvme::io::{Extent, parse_dsm_ranges};
use crate::nvme::{Count8, Doing, IoCommand, Sqe, Status};

/// A Dataset Management command under way.
pub(super) struct Deallocate {
    list: Buf,
    ranges: Count8,
    /// Ranges from the front that are done with.
    done: usize,
    /// What is deallocated is to be durable.
    flush: bool,
}

impl Core {
    #[inline]
    pub(super) fn io(&mut self, from: From, sqe: &Sqe, data: Buf) {
        if let Err(status) = self.begin_io(from, sqe, data) {
            self.fail(from, status);
        }
    }

    fn begin_io(&mut self, from: From, sqe: &Sqe, data: Buf) -> Result<(), Status> {
        let controller = self.at(from).queue.ready()?;
        let through = controller.writes_through();
        if controller.subsystem().is_discovery() {
            return Err(Status::INVALID_OPCODE);
        }
        let command = IoCommand::parse(sqe)?;
        if command == (IoCommand::Flush { nsid: NSID_ALL }) {
            return self.flush_all(from);
        }
        let at = self.find(from, command.nsid())?;
        let served = self.served(at);
        let namespace = &served.namespace;
        // A Copy looks at its list when its turn in the order of checks comes.
        if !matches!(command, IoCommand::Copy(_)) {
            command.check_data_len(namespace.block_bytes(), sqe.sgl().len)?;
        }
        let bytes = |extent: &Extent| namespace.extent(extent.slba, extent.blocks);
        let may_write =
            || if namespace.read_only() { Err(Status::NAMESPACE_WRITE_PROTECTED) } else { Ok(()) };
        let (state, op) = match command {
            IoCommand::Read(extent) => {
                let range = bytes(&extent)?;
                (State::Read { flush: extent.fua }, Op::Read { range, buf: data })
            }
            IoCommand::Write(extent) => {
                let range = bytes(&extent)?;
                may_write()?;
                (State::Plain(Doing::Write), Op::Write { range, buf: data, fua: extent.fua || through })
            }
            IoCommand::Compare(extent) => {
                let state = State::Then { doing: Doing::Compare, flush: extent.fua };
                (state, Op::Compare { range: bytes(&extent)?, buf: data })
            }
            IoCommand::WriteZeroes { extent, deallocate } => {
                let range = bytes(&extent)?;
                may_write()?;
                let flush = extent.fua || through;
                (
                    State::Then { doing: Doing::WriteZeroes, flush },
                    Op::WriteZeroes { range, may_unmap: deallocate, lazy: false },
                )
            }
            IoCommand::Flush { .. } => (State::Plain(Doing::Flush), Op::Flush),
            IoCommand::DatasetManagement { ranges, deallocate, .. } => {
                for range in parse_dsm_ranges(ranges, &data)? {
                    namespace.bytes(range.slba, range.blocks.into())?;
                }
                may_write()?;
                if !deallocate {
                    // Hints on future use: taken, and nothing is done with them.
                    self.succeed(from);
                    return Ok(());
                }
                let work = Deallocate { list: data, ranges, done: 0, flush: through };
                let slot = self.slot(from);
                (slot.state, slot.served) = (State::Deallocate(Box::new(work)), at);
                self.deallocate_next(from);
                return Ok(());
            }
            IoCommand::Copy(copy) => return self.begin_copy(from, at, &copy, &data, through),
        };
        self.slot(from).state = state;
        self.request(from, at, op);
        Ok(())
    }

    /// A request came back, and its command is still wanted.
    #[inline]
    pub(super) fn go_on(&mut self, from: From, done: Completion) {
        match &mut self.slot(from).state {
            State::Read { flush } => match &done.result {
                Ok(()) if *flush => {
                    let slot = self.slot(from);
                    slot.state = State::Durable(done.buf);
                    let at = slot.served;
                    self.request(from, at, Op::Flush);
                }
                Ok(()) => {
                    self.count_read(from, done.buf.len() as u64);
                    self.answer(from, Status::SUCCESS, 0, Some(done.buf));
                }
                Err(error) => self.fail(from, Status::of(error, Doing::Read)),
            },
            State::Plain(doing) => {
                let doing = *doing;
                if doing == Doing::Write && done.result.is_ok() {
                    self.count_write(from, done.good_bytes);
                }
                self.finish(from, done.result.map_err(|e| Status::of(&e, doing)));
            }
            State::Durable(buf) => {
                let buf = std::mem::take(buf);
                match done.result {
                    Ok(()) => {
                        self.count_read(from, buf.len() as u64);
                        self.answer(from, Status::SUCCESS, 0, Some(buf));
                    }
                    Err(error) => self.fail(from, Status::of(&error, Doing::Flush)),
                }
            }
            State::Then { doing, flush } => {
                let (doing, flush) = (*doing, *flush);
                if doing == Doing::Compare && done.result.is_ok() {
                    self.count_read(from, done.good_bytes);
                }
                match done.result {
                    Ok(()) if flush => self.then_flush(from),
                    result => self.finish(from, result.map_err(|e| Status::of(&e, doing))),
                }
            }
            State::Flushes { left, status, shutdown } => {
                *left -= 1;
                if let (true, Err(error)) = (status.is_success(), &done.result) {
                    *status = Status::of(error, Doing::Flush);
                }
                if *left == 0 {
                    let (status, shutdown) = (*status, *shutdown);
                    self.flushes_end(from, status, shutdown);
                }
            }
            State::Deallocate(work) => {
                work.done += 1;
                match done.result {
                    // A device that cannot give space back keeps it: deallocating is a hint.
                    Err(error) if error.kind() != Kind::Unsupported => {
                        self.fail(from, Status::of(&error, Doing::Deallocate));
                    }
                    _ => self.deallocate_next(from),
                }
            }
            State::Copy(_) => self.copy_came_back(from, done),
            State::Free | State::Waits => debug_assert!(false, "a request of no command came back"),
        }
    }

    /// Counts a Read or Compare that went well, for the SMART log.
    #[inline]
    fn count_read(&mut self, from: From, bytes: u64) {
        let at = self.slot(from).served;
        let counts = &self.served(at).counts;
        bump(&counts.reads, 1);
        bump(&counts.read_bytes, bytes);
    }

    /// Counts a Write that went well, for the SMART log.
    #[inline]
    fn count_write(&mut self, from: From, bytes: u64) {
        let at = self.slot(from).served;
        let counts = &self.served(at).counts;
        bump(&counts.writes, 1);
        bump(&counts.written_bytes, bytes);
    }

    fn then_flush(&mut self, from: From) {
        let slot = self.slot(from);
        slot.state = State::Plain(Doing::Flush);
        let at = slot.served;
        self.request(from, at, Op::Flush);
    }

    /// Submits the next range that is not empty; ends the command behind the last.
    fn deallocate_next(&mut self, from: From) {
        let slot = self.slot(from);
        let (at, State::Deallocate(work)) = (slot.served, &mut slot.state) else { return };
        let mut ranges = parse_dsm_ranges(work.ranges, &work.list).into_iter().flatten().skip(work.done);
        let skipped = ranges.clone().take_while(|r| r.blocks == 0).count();
        let next = ranges.nth(skipped);
        work.done += skipped;
        let flush = work.flush;
        let Some(range) = next else {
            return if flush { self.then_flush(from) } else { self.succeed(from) };
        };
        // Looked at when the command began; the namespace does not change.
        match self.served(at).namespace.bytes(range.slba, range.blocks.into()) {
            Ok(range) => self.request(from, at, Op::Discard { range }),
            Err(status) => self.fail(from, status),
        }
    }

    /// Flush to NSID FFFFFFFFh: every namespace the host sees.
    fn flush_all(&mut self, from: From) -> Result<(), Status> {
        self.flush_seen(from, false);
        Ok(())
    }

    /// Flushes what the command's host sees, then ends the command, or the shutdown it is the last word of.
    pub(super) fn flush_seen(&mut self, from: From, shutdown: bool) {
        // What this thread cannot open another may have written to.
        let (seen, all) = self.seen(from);
        let status = all.err().unwrap_or(Status::SUCCESS);
        let left = u32::try_from(seen.len()).expect("at most NSID_MAX");
        if left == 0 {
            return self.flushes_end(from, status, shutdown);
        }
        self.slot(from).state = State::Flushes { left, status, shutdown };
        seen.into_iter().for_each(|at| self.request(from, at, Op::Flush));
    }

    fn flushes_end(&mut self, from: From, mut status: Status, shutdown: bool) {
        if shutdown && let Some(controller) = &self.at(from).queue.controller {
            controller.shutdown_complete();
            if !std::mem::take(&mut status).is_success() {
                tracing::error!(?controller, "shut down, and not everything could be made durable");
            }
        }
        self.answer(from, status, 0, None);
    }
}

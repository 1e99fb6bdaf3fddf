//! Copies: what one answer of `copy_file_range` or one entry of an ioctl becomes.

use super::abi;
use super::errno::copy_errno;
use super::job::{CopyJob, Ends, IoctlJob, Job};
use super::reader::{self, Tried};
use super::shared::{MountShared, ino_of};
use super::volume::Copied;
use super::worker::MountWorker;
use crate::block::receipt::HostBytes;
use crate::block::request::Cancel;
use crate::block::{
    ByteRange, Completion, Content, CopyRequest, Device, Error, Fates, Kind, Method, Must, Op, Result,
};
use crate::copy::one_request::one_request;
use crate::copy::ranges::{Part, check_offloaded, copy_ranges};
use crate::copy::run::Options;
use crate::copy::{Offload, Policy};
use crate::reactor::away::look;
use fuser::{INodeNo, ReplyWrite};
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest copy in memory that a reader makes itself, in bytes: about 50 microseconds.
const INLINE_MAX: u64 = 256 << 10;
/// Longest `copy_file_range` of the kernel that a reader makes itself, in bytes: as long as the longest write.
const CALL_MAX: u64 = 1 << 20;
/// Memory for payload of one copy, in bytes.
const PAYLOAD: usize = 8 << 20;
/// How many invalidations a call asks for by range; with more entries, one range around all.
const PAGES_MAX: usize = 16;

/// What became of a copy.
#[derive(Default)]
struct End {
    good: u64,
    methods: SmallVec<[(Method, u64); 2]>,
    fates: Fates,
    host: HostBytes,
    error: Option<Error>,
}

/// How much of what is asked for there is, and room for: `Ok(0)` only at the end of the source.
///
/// Errors: ENOSPC at or past the end of the destination; EINVAL where both overlap (the kernel looks too, at its own
/// sizes).
pub(super) fn most_of(shared: &MountShared, ends: &Ends, asked: u64) -> Result<u64, fuser::Errno> {
    let (source, dest) = (&shared.volumes[ends.source], &shared.volumes[ends.dest]);
    let left = source.size().saturating_sub(ends.from.offset()).min(asked);
    let room = dest.capacity.saturating_sub(ends.to);
    if left == 0 {
        return Ok(0);
    }
    if room == 0 {
        return Err(fuser::Errno::ENOSPC);
    }
    let len = left.min(room);
    let overlaps = |len| {
        let at = |offset: u64| ByteRange::between(offset, offset.saturating_add(len));
        ends.source == ends.dest && at(ends.from.offset()).overlaps(at(ends.to))
    };
    if overlaps(len) {
        return Err(fuser::Errno::EINVAL);
    }
    Ok(len)
}

/// How much one answer copies of what there is.
pub(super) fn answer_len(shared: &MountShared, ends: &Ends, most: u64) -> u64 {
    most.min(shared.volumes[ends.dest].pace.answer_max())
}

/// A copy in one request, and so short that a reader makes it itself.
pub(super) type Brief = (Method, SmallVec<[ByteRange; 1]>);

/// How a reader would make the copy itself, if it is short enough. `may_wait`: this reader may make calls that wait.
pub(super) fn is_brief(shared: &MountShared, ends: &Ends, may_wait: bool) -> Option<Brief> {
    let (source, dest) = (&shared.volumes[ends.source], &shared.volumes[ends.dest]);
    let (method, sources) = one_request(&source.device, &[ends.from], &dest.device, ends.dest_range())?;
    let is_short = match method {
        Method::Null => true,
        Method::Memory => ends.from.len() <= INLINE_MAX,
        // A hop to a worker and one from there to a helper would take longer than the call.
        Method::Reflink => may_wait,
        Method::CopyFileRange => may_wait && ends.from.len() <= CALL_MAX,
        _ => false,
    };
    is_short.then_some((method, sources))
}

/// Makes the copy on this reader if nothing is in its way; else says no, and nothing was begun.
pub(super) fn inline(
    shared: &MountShared,
    ends: &Ends,
    (method, sources): Brief,
) -> Option<Result<u64, fuser::Errno>> {
    let source = &shared.volumes[ends.source];
    let request = CopyRequest {
        method,
        source: source.device.clone(),
        sources,
        dest: ends.dest_range(),
        fua: false,
        must: None,
        cancel: Cancel::default(),
    };
    let begun = Instant::now();
    let tried = reader::with(shared, |reader| reader.run(shared, ends.dest, Op::Copy(Box::new(request))));
    let done = match tried {
        Ok(Ok(Tried::Done(done))) => done,
        // Whoever it is handed to finds out what the matter is.
        Ok(Ok(Tried::InTheWay(_)) | Err(_)) | Err(_) => return None,
    };
    let end = one_request_ended(method, ends, done)?;
    let answer = answer_of(&end);
    ended(shared, "copy_file_range", ends, end, false, begun.elapsed(), true);
    Some(answer)
}

/// What became of a copy in one request; `None`: it was not what it looked like a moment ago, and is to be planned,
/// from the front.
fn one_request_ended(method: Method, ends: &Ends, done: Completion) -> Option<End> {
    let good = done.good_bytes.min(ends.from.len());
    let fates = done.fates(method, good);
    let error = match done.result {
        Err(error) if matches!(error.kind(), Kind::Unsupported | Kind::TooLarge { .. }) => return None,
        Ok(()) if good == 0 => return None,
        // Short without a reason: an answer may be that, and whoever wants the rest asks for it.
        other => other.err(),
    };
    Some(End { good, methods: smallvec![(method, good)], fates, error, ..End::default() })
}

/// What `copy_file_range` answers: never 0, which would be the end of the file.
fn answer_of(end: &End) -> Result<u64, fuser::Errno> {
    match &end.error {
        _ if end.good > 0 => Ok(end.good),
        Some(error) => Err(copy_errno(error)),
        None => Err(fuser::Errno::EIO),
    }
}

/// Takes down what became of a copy.
fn ended(
    shared: &MountShared,
    call: &'static str,
    ends: &Ends,
    end: End,
    flushed: bool,
    time: Duration,
    inline: bool,
) {
    let dest = &shared.volumes[ends.dest];
    dest.touch();
    if end.good > 0 {
        dest.reaches(ends.to + end.good);
    }
    let copied = Copied {
        call,
        source: shared.volumes[ends.source].name.clone(),
        from: ends.from,
        to: ends.to,
        good: end.good,
        methods: end.methods,
        fates: end.fates,
        host: end.host,
        flushed,
        time,
        error: end.error.map(|e| format!("{e:?}")),
    };
    dest.copied(copied, inline);
}

impl MountWorker {
    /// One copy, whole under the range locks.
    async fn copy_one(&self, ends: &Ends, offload: Offload, durable: bool) -> End {
        let source = self.volume(ends.source).device.clone();
        let dest = self.volume(ends.dest).device.clone();
        let parts = [Part { source, ranges: vec![ends.from] }];
        if let Some(must) = offload.must()
            && let Err(error) = check_offloaded(&parts, &dest, ends.to, must, &Cancel::default()).await
        {
            return End { error: Some(error), ..End::default() };
        }
        if offload == Offload::Auto
            && let Some(end) = self.in_one_request(ends, &parts[0].source, &dest).await
        {
            return end;
        }
        let options = Options {
            policy: Policy { offload, unsynced: !durable, ..Policy::default() },
            flush: false,
            payload_bytes: PAYLOAD,
            locks: Some(self.locks.clone()),
            ..Options::default()
        };
        let ended = copy_ranges(&parts, &dest, ends.to, &options).await;
        End {
            good: ended.good_prefix_bytes,
            methods: ended.methods.into_iter().collect(),
            fates: ended.fates,
            host: ended.host_bytes,
            error: ended.error,
        }
    }

    /// A copy that is one request of the device; `None`: the planner has to look at it.
    async fn in_one_request(
        &self,
        ends: &Ends,
        source: &Arc<dyn Device>,
        dest: &Arc<dyn Device>,
    ) -> Option<End> {
        let (method, sources) = one_request(source, &[ends.from], dest, ends.dest_range())?;
        let request = CopyRequest {
            method,
            source: source.clone(),
            sources,
            dest: ends.dest_range(),
            fua: false,
            must: None,
            cancel: Cancel::default(),
        };
        let done = self.client(ends.dest).ok()?.submit(Op::Copy(Box::new(request))).await;
        one_request_ended(method, ends, done)
    }

    /// How long the hole is that a copy begins with, if it is longer than the copy: as far as one answer may copy it.
    ///
    /// Only a length: whoever makes the copy looks anew at what is there.
    async fn longer_hole(&self, ends: &Ends, most: u64) -> Option<u64> {
        let longest = most.min(self.volume(ends.dest).hole_pace.answer_max());
        if longest <= ends.from.len() {
            return None;
        }
        let from = ends.from.offset();
        let source = self.volume(ends.source);
        let all = source.cover(ByteRange::between(from, from + longest));
        let extent = look(&source.device, move |device| device.next_extent(all)).await.ok()?.ok()?;
        let end = (all.offset() + extent.len).min(from + longest);
        (extent.content != Content::Data && end > ends.from.end()).then(|| end - from)
    }

    pub(super) async fn copy(&self, job: CopyJob) {
        let CopyJob { mut ends, most, durable, reply } = job;
        let dest = self.volume(ends.dest);
        let mut pace = &dest.pace;
        // A sparse image is mostly holes, and programs ask for all of it at once.
        if let Some(len) = self.longer_hole(&ends, most).await {
            ends.from = ByteRange::between(ends.from.offset(), ends.from.offset() + len);
            pace = &dest.hole_pace;
        }
        let begun = Instant::now();
        let mut end = self.copy_one(&ends, Offload::Auto, durable).await;
        let time = begun.elapsed();
        pace.learn(end.good, time);
        let mut flushed = false;
        if durable && end.good > 0 {
            match self.flush(ends.dest).await {
                Ok(()) => flushed = true,
                // Not durable is as good as not done, for whoever asked for both.
                Err(error) => {
                    end.good = 0;
                    end.error = Some(error);
                }
            }
        }
        let answer = answer_of(&end);
        if let Some(error) = &end.error {
            self.told("copy onto", ends.dest, error);
        }
        ended(&self.shared, "copy_file_range", &ends, end, flushed, time, false);
        match answer {
            Ok(good) => reply.written(u32::try_from(good).unwrap_or(u32::MAX)),
            Err(number) => reply.error(number),
        }
    }

    pub(super) async fn ioctl(&self, job: IoctlJob) {
        let IoctlJob { asked, mut argument, call, source, dest, durable, reply } = job;
        let (source_ino, dest_ino) = (ino_of(source), ino_of(dest));
        let dests = pages(dest_ino, call.entries.iter().map(|e| e.dest));
        let mut before = pages(source_ino, call.entries.iter().map(|e| e.source));
        before.extend(&dests);
        self.shared.notices.forget(before).wait().await;
        let offload = if call.flags.offload_only { Offload::Require(Must::Offload) } else { Offload::Auto };
        let name = if source == dest && call.token.is_none() { "BLKCOPY" } else { "BLKCOPY_FROM" };
        let mut done: Vec<(Ends, End, Duration)> = Vec::with_capacity(call.entries.len());
        let mut failed = None;
        for entry in &call.entries {
            let ends = Ends { source, from: entry.source, dest, to: entry.dest.offset() };
            let begun = Instant::now();
            let mut end = self.copy_one(&ends, offload, durable).await;
            if end.good < entry.source.len() && end.error.is_none() {
                end.error =
                    Some(Error::new(Kind::Io, "the device copied less than asked and reported no error"));
            }
            failed = end.error.as_ref().map(|error| self.told("copy onto", dest, error));
            done.push((ends, end, begun.elapsed()));
            if failed.is_some() {
                break;
            }
        }
        let mut flushed = false;
        if durable && done.iter().any(|(_, end, _)| end.good > 0) {
            match self.flush(dest).await {
                Ok(()) => flushed = true,
                // Not durable is as good as not done, for whoever asked for both.
                Err(error) => {
                    failed = Some(self.told("flush", dest, &error));
                    done.iter_mut().for_each(|(_, end, _)| end.good = 0);
                }
            }
        }
        let completed: Vec<u64> = done.iter().map(|(_, end, _)| end.good).collect();
        for (ends, end, time) in done {
            ended(&self.shared, name, &ends, end, flushed, time, false);
        }
        self.shared.notices.forget(dests).wait().await;
        abi::complete(asked, &mut argument, &completed);
        reply.ioctl(failed.map_or(0, |number| -number.code()), &argument);
    }
}

/// Pages to be forgotten.
fn pages(ino: INodeNo, ranges: impl ExactSizeIterator<Item = ByteRange>) -> Vec<(INodeNo, ByteRange)> {
    if ranges.len() <= PAGES_MAX {
        return ranges.map(|range| (ino, range)).collect();
    }
    let around = ranges.reduce(|a, b| ByteRange::between(a.offset().min(b.offset()), a.end().max(b.end())));
    around.map(|range| (ino, range)).into_iter().collect()
}

/// Hands a copy over. `most`: how much there is to copy, beyond one answer too.
pub(super) fn hand_over(shared: &Arc<MountShared>, ends: Ends, most: u64, durable: bool, reply: ReplyWrite) {
    shared.copier().leave(Job::Copy(CopyJob { ends, most, durable, reply }));
}

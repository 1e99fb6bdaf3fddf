//! A request on its way, and the commands it becomes.

use super::admin::Facts;
use super::device::Namespace;
use crate::block::{Buf, ByteRange, CopyRequest, Error, Op, Request};
use crate::nvme::copy::{Format, SourceRange, write_ranges};
use crate::nvme::io::{DsmRange, Extent};
use crate::nvme::tcp::host::Data;
use crate::nvme::{Blocks, CopyCommand, Count8, IoCommand, Sqe};
use smallvec::SmallVec;
use std::time::Instant;

/// What one command may be, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Most {
    data: u64,
    zeroes: u64,
    discard: u64,
}

impl Most {
    /// As the controller says.
    pub(super) fn of(facts: &Facts, block: u32) -> Self {
        let block = u64::from(block);
        // NLB counts up to 65536 blocks; a limit below one block would be no limit one can keep.
        let whole = |bytes: u64| (bytes - bytes % block).clamp(block, block << 16);
        Self {
            data: whole(facts.data_bytes_max()),
            zeroes: whole(facts.zeroes_bytes_max()),
            discard: facts.discard_blocks_max().max(1).saturating_mul(block),
        }
    }
}

/// A request on its way.
pub(super) struct Work {
    pub(super) request: Request,
    /// The request's buffer, or the list of a copy; with the connection while a command is out.
    pub(super) buf: Buf,
    /// What the request's buffer showed.
    pub(super) shown: (usize, usize),
    /// Bytes of the request's front that are done.
    pub(super) done: u64,
    /// Bytes of the command that is out.
    pub(super) part: u64,
    /// Number of a flush.
    pub(super) flush: u64,
    /// `scans` when the command was sent.
    pub(super) sent: u32,
    pub(super) losses: u8,
    pub(super) retries: u32,
    /// Since when the controller has answered that trying again may help.
    pub(super) refused_since: Option<Instant>,
    /// A command of it was sent and has not ended well: what it was to change may hold anything.
    pub(super) begun: bool,
    /// The association on which the command may still be executed, and leave its mark.
    pub(super) doubt: Option<u64>,
    /// When the doubt began.
    pub(super) doubt_since: Option<Instant>,
    /// When it may be sent again.
    pub(super) not_before: Option<Instant>,
    /// Why it is not to be sent again.
    pub(super) failed: Option<Error>,
}

impl Work {
    /// A request that is still to be sent, with its buffer or the list that goes in its place.
    pub(super) fn new(request: Request, buf: Buf, flush: u64) -> Self {
        Self {
            shown: buf.shown(),
            request,
            buf,
            done: 0,
            part: 0,
            flush,
            sent: 0,
            losses: 0,
            retries: 0,
            refused_since: None,
            begun: false,
            doubt: None,
            doubt_since: None,
            not_before: None,
            failed: None,
        }
    }

    /// The command for the next part of it, and its data.
    pub(super) fn command(&mut self, namespace: &Namespace, most: &Most) -> (Sqe, Data) {
        let nsid = namespace.nsid();
        let block = u64::from(namespace.block());
        let most = match self.request.op() {
            Op::WriteZeroes { .. } => most.zeroes,
            Op::Discard { .. } => most.discard,
            Op::Copy(_) => u64::MAX,
            _ => most.data,
        };
        let rest = self.request.op().range().map_or(ByteRange::default(), |r| r.after(self.done));
        self.part = rest.len().min(most);
        let slba = rest.offset() / block;
        let blocks = self.part / block;
        let extent = |fua| {
            let blocks = u32::try_from(blocks).ok().and_then(Blocks::new);
            let blocks = blocks.expect("1 to 65536: not empty, and within `Most`");
            Extent { fua, ..Extent::new(nsid, slba, blocks) }
        };
        let command = match self.request.op() {
            Op::Read { .. } => {
                let command = IoCommand::Read(extent(false));
                return (command.to_sqe(), Data::In(self.take_part()));
            }
            Op::Write { fua, .. } => IoCommand::Write(extent(*fua)),
            Op::Compare { .. } => IoCommand::Compare(extent(false)),
            Op::WriteZeroes { may_unmap, .. } => {
                let deallocate = *may_unmap && namespace.abilities.zeroes_may_unmap;
                let command = IoCommand::WriteZeroes { extent: extent(false), deallocate };
                return (command.to_sqe(), Data::None);
            }
            Op::Flush => return (IoCommand::Flush { nsid }.to_sqe(), Data::None),
            Op::Discard { .. } => {
                let range = DsmRange { slba, blocks: u32::try_from(blocks).unwrap_or(u32::MAX) };
                let command = IoCommand::DatasetManagement { nsid, ranges: Count8::ONE, deallocate: true };
                let mut list = std::mem::take(&mut self.buf);
                list.set_len(DsmRange::LEN);
                list.copy_from_slice(&range.to_bytes());
                return (command.to_sqe(), Data::Out(list));
            }
            Op::Copy(copy) => {
                let source =
                    copy.source.as_any().downcast_ref::<Namespace>().expect("checked by `check_copy`");
                let fast = asks_for_fast(copy, namespace);
                let inside = source.nsid() == nsid && namespace.abilities.copies_inside && !fast;
                let format = if inside { Format::F0 } else { Format::F2 };
                let ranges: SmallVec<[SourceRange; 8]> = copy
                    .sources
                    .iter()
                    .map(|r| SourceRange {
                        snsid: (!inside).then(|| source.nsid()),
                        slba: r.offset() / block,
                        blocks: u32::try_from(r.len() / block)
                            .ok()
                            .and_then(Blocks::new)
                            .expect("1 to MSSRL, checked by `check_copy`"),
                        fco: fast,
                    })
                    .collect();
                let count = u32::try_from(ranges.len()).ok().and_then(Count8::new);
                let count = count.expect("1 to 256, checked by `check_copy`");
                let command = CopyCommand { fua: copy.fua, ..CopyCommand::new(nsid, slba, count, format) };
                let mut list = std::mem::take(&mut self.buf);
                list.set_len(command.list_len());
                write_ranges(format, &ranges, &mut list);
                return (command.to_sqe(), Data::Out(list));
            }
        };
        (command.to_sqe(), Data::Out(self.take_part()))
    }

    /// The buffer for the present part of a read, write or compare.
    fn take_part(&mut self) -> Buf {
        let mut buf = std::mem::take(&mut self.buf);
        let fits = "within a buffer";
        let (done, part) = (usize::try_from(self.done).expect(fits), usize::try_from(self.part).expect(fits));
        // Always: it may have been narrowed to another length before its connection was lost.
        buf.narrow(self.shown.0 + done, part);
        buf
    }
}

/// True for a copy that is sent with Fast Copy Only: something must become of its bytes, and the controller has a
/// format that says so.
pub(super) fn asks_for_fast(copy: &CopyRequest, namespace: &Namespace) -> bool {
    copy.must.is_some() && namespace.abilities.copies_across
}

/// The data of the command is a list of ranges.
pub(super) fn uses_list(op: &Op) -> bool {
    matches!(op, Op::Copy(_) | Op::Discard { .. })
}

/// What it changes is durable when it completes.
pub(super) fn is_durable(op: &Op) -> bool {
    match op {
        Op::Write { fua, .. } => *fua,
        Op::Copy(copy) => copy.fua,
        _ => false,
    }
}

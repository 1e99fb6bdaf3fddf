//! Trying a copy method out on a file that was made for it: what a file system can do is not read off its kind.

use super::evidence::Reported;
use super::transfer::{Files, Transfer};
use super::{File, Sharing};
use crate::block::request::Cancel;
use crate::block::{ByteRange, Counters, Device, Error, Fates, Kind, Method, Result};
use rustix::fs::IFlags;
use std::time::Instant;

impl File {
    /// Copies the piece `range` of `source` to the front of this file, which was made for that, by one method: what
    /// became of the bytes.
    ///
    /// Errors: `Unsupported` when the method is not to be had between these two; those of the system.
    pub fn try_copy(&self, source: &Self, range: ByteRange, method: Method) -> Result<Fates> {
        self.need_write()?;
        let transfer = Transfer {
            kernel: Files { source: source.core.fd.clone(), dest: self.core.fd.clone(), offload_only: false },
            method,
            sources: smallvec::smallvec![range],
            dest: ByteRange::to(range.len()),
            cancel: Cancel::default(),
        };
        if self.core.copies_what_is_stored {
            transfer.store_sources()?;
        }
        let begun = Instant::now();
        let (good, result) = transfer.run(&mut Counters::default());
        result.map_err(|e| e.on(&self.core.name))?;
        if good < range.len() {
            let text = format!("{method} copied {good} of {} bytes and reported no error", range.len());
            return Err(Error::new(Kind::Io, text).on(&self.core.name));
        }
        let reported = Reported {
            method,
            source: &source.core,
            dest: &self.core,
            sources: &transfer.sources,
            to: transfer.dest,
            took: begun.elapsed(),
            before: None,
        };
        Ok(reported.fates(good))
    }

    /// True for a file of a mount of ours, whose daemon refuses by itself, and before anything is written, what must
    /// not be.
    pub fn refuses_by_itself(&self) -> bool {
        self.facts.is_ours
    }

    /// Makes this file, empty and new, like `other` in what decides whether extents can be shared: on Btrfs, a file
    /// whose bytes are not checksummed shares with its kind only.
    pub fn be_like(&self, other: &Self) {
        let Ok(theirs) = rustix::fs::ioctl_getflags(&*other.core.fd) else { return };
        if let Ok(ours) = rustix::fs::ioctl_getflags(&*self.core.fd)
            && (theirs ^ ours).contains(IFlags::NOCOW)
        {
            // Where it cannot be had, the trial shows what a new file can do.
            let _ = rustix::fs::ioctl_setflags(&*self.core.fd, ours ^ IFlags::NOCOW);
        }
    }

    /// The piece to try a method with: the first bytes from `range` that are data, as much as one block.
    ///
    /// Errors: those of looking for data. `None`: there is none.
    pub fn piece_to_try(&self, range: ByteRange) -> Result<Option<ByteRange>> {
        let block = if self.facts.sharing == Sharing::Yes { self.facts.block_bytes } else { 1 };
        let most = self.facts.block_bytes.max(4096);
        let mut rest = range;
        while !rest.is_empty() {
            let extent = self.next_extent(rest)?;
            if extent.content == crate::block::Content::Data {
                let start = rest.offset() / block * block;
                let end = start.saturating_add(most).min(self.size());
                return Ok((start < end).then(|| ByteRange::between(start, end)));
            }
            rest = rest.after(extent.len.max(1));
        }
        Ok(None)
    }
}

//! The exerciser's steps that must be refused, or come out shorter than asked for; nothing but what is told may change.

use super::model::{Judged, judge_error, judge_refusal, judge_step, wrong as at_fault};
use super::ops::Wrong;
use super::{Run, said};
use blkcopy::sys::blkcopy::{self as calls, Call, Entry};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What stands in `comp_len` before the call: a refusal must set it to 0.
const UNTOLD: u64 = 0x55AA;

impl Run<'_> {
    pub(super) fn refused(&mut self, volume: usize, wrong: Wrong, at: u64, len: u64) -> Judged {
        match wrong {
            Wrong::RangeOverlap => self.range_overlap(volume, at, len),
            Wrong::RangeAtEnd => {
                let (file, size) = (&self.open[volume].plain, self.model.size(volume));
                let other = &self.open[(volume + 1) % self.open.len()].plain;
                match calls::copy_file_range(file, other, Entry::new(size, at, len)) {
                    Ok(0) => Ok(()),
                    answer => at_fault(format!("copy_file_range from the end of the source: {answer:?}")),
                }
            }
            Wrong::RangePastEnd => self.range_past_end(volume, len),
            Wrong::WritePastEnd => {
                let answer =
                    self.open[volume].plain.write_at(&[0xEE; 16], self.model.size(volume) + at % 4096);
                judge_error("a write past the end", answer, &[errno(Errno::NOSPC), errno(Errno::FBIG)])
            }
            _ => self.ioctl(volume, wrong, len),
        }
    }

    fn range_overlap(&mut self, volume: usize, at: u64, len: u64) -> Judged {
        let size = self.model.size(volume);
        let n = len.min(size.saturating_sub(at));
        if n < 2 {
            return Ok(());
        }
        let by = 1 + at % (n - 1);
        let file = &self.open[volume].plain;
        for (source, dest) in [(at, at + by), (at + by, at)] {
            // The kernel cuts the length to the end of the source before it looks.
            if n.min(size - source) > by {
                let answer = calls::copy_file_range(file, file, Entry::new(source, dest, n));
                judge_error("copy_file_range onto its own source", answer, &[errno(Errno::INVAL)])?;
            }
        }
        Ok(())
    }

    fn range_past_end(&mut self, volume: usize, len: u64) -> Judged {
        let (from, size) = ((volume + 1) % self.open.len(), self.model.size(volume));
        let (mut source, mut dest) = (0, size - len / 2);
        while dest < size {
            let (a, b) = (&self.open[from].plain, &self.open[volume].plain);
            let n = judge_step(
                calls::copy_file_range(a, b, Entry::new(source, dest, len - source)),
                size - dest,
            )?;
            self.model.copy((from, source), (volume, dest), n);
            (source, dest) = (source + n, dest + n);
            self.copied += 1;
        }
        let answer = calls::copy_file_range(
            &self.open[from].plain,
            &self.open[volume].plain,
            Entry::new(source, dest, len - source),
        );
        judge_error("copy_file_range past the end of the destination", answer, &[errno(Errno::NOSPC)])
    }

    fn ioctl(&mut self, volume: usize, wrong: Wrong, len: u64) -> Judged {
        let (size, quarter) = (self.model.size(volume), self.plan.size / 4);
        let len = len.min(quarter);
        let good = Entry::new(0, 2 * quarter, len);
        let (mut entries, mut count) = (vec![good], None);
        match wrong {
            Wrong::EmptyRange => entries.push(Entry::new(quarter, 3 * quarter, 0)),
            Wrong::SelfOverlap => entries.push(Entry::new(quarter, quarter + len - 1, len)),
            Wrong::DestsOverlap => entries.push(Entry::new(quarter, 2 * quarter + len - 1, len)),
            Wrong::SourceIsDest => entries.push(Entry::new(2 * quarter + len - 1, 3 * quarter, len)),
            Wrong::PastEnd => entries.push(Entry::new(quarter, size - len + 1, len)),
            Wrong::SumWraps => entries.push(Entry::new(quarter, 3 * quarter, u64::MAX - len)),
            Wrong::NoRange => count = Some(0),
            Wrong::OtherCount => count = Some(2),
            _ => {}
        }
        let twin = matches!(wrong, Wrong::UnknownFlag | Wrong::StrangeToken);
        let mut token = [0x5C; 16];
        if wrong == Wrong::UnknownFlag {
            token = self.token(volume)?.0;
        }
        let flags: u32 = if wrong == Wrong::UnknownFlag { 4 } else { 0 };
        let mut arg = count.unwrap_or(entries.len() as u64).to_ne_bytes().to_vec();
        if twin {
            arg.extend(flags.to_ne_bytes());
            arg.extend([0; 4]);
            arg.extend(token);
        } else {
            arg.extend([0; 8]);
        }
        let header = arg.len();
        for entry in &entries {
            for number in [entry.source, entry.dest, entry.len, UNTOLD] {
                arg.extend(number.to_ne_bytes());
            }
        }
        let path = &self.open[volume].path;
        let (other, errnos): (Option<File>, &[i32]) = match wrong {
            Wrong::NotForReading => {
                let file = said("opening for writing", File::options().write(true).open(path))?;
                (Some(file), &[errno(Errno::BADF)])
            }
            Wrong::NotForWriting => {
                let file = said("opening for reading", File::open(path))?;
                (Some(file), &[errno(Errno::BADF), errno(Errno::PERM)])
            }
            Wrong::StrangeToken => (None, &[errno(Errno::STALE)]),
            _ => (None, &[errno(Errno::INVAL)]),
        };
        let fd = other.as_ref().unwrap_or(&self.open[volume].plain);
        let answer = calls::call(fd, if twin { Call::From } else { Call::Copy }, &mut arg);
        let told: Vec<u64> = arg[header..]
            .as_chunks::<32>()
            .0
            .iter()
            .map(|e| u64::from_ne_bytes(e[24..].try_into().expect("8 bytes")))
            .collect();
        judge_refusal(&format!("{wrong:?}"), answer, &told, errnos)
    }
}

const fn errno(errno: Errno) -> i32 {
    errno.raw_os_error()
}

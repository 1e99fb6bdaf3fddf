//! What the volumes must hold, and the judgements on what the system answered: nothing here makes a system call.

use blkcopy::sim::Rng;
use blkcopy::sys::blkcopy::Entry;
use std::io;

/// Why a run is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault(pub(crate) String);

pub(crate) type Judged<T = ()> = Result<T, Fault>;

/// A judgement.
pub(crate) fn wrong<T>(text: impl Into<String>) -> Judged<T> {
    Err(Fault(text.into()))
}

/// One byte vector a volume.
#[derive(Clone)]
pub(crate) struct Model(pub(crate) Vec<Vec<u8>>);

/// A file offset in memory. Volumes of tests are small.
pub(crate) fn index(at: u64) -> usize {
    usize::try_from(at).expect("a volume of a test fits memory")
}

/// The bytes that `salt` makes; no two salts make bytes that are alike.
pub(crate) fn fill(out: &mut [u8], salt: u64) {
    let mut rng = Rng::new(salt);
    for chunk in out.chunks_mut(8) {
        let word = rng.next_u64().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

impl Model {
    /// Volumes of `size` bytes, all zero.
    pub(crate) fn new(volumes: usize, size: u64) -> Self {
        Self(vec![vec![0; index(size)]; volumes])
    }

    pub(crate) fn size(&self, volume: usize) -> u64 {
        self.0[volume].len() as u64
    }

    /// Writes, over the end too.
    pub(crate) fn write(&mut self, volume: usize, at: u64, bytes: &[u8]) {
        let (held, at) = (&mut self.0[volume], index(at));
        if held.len() < at + bytes.len() {
            held.resize(at + bytes.len(), 0);
        }
        held[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Copies `len` bytes that lie inside the source, over the end of the destination too.
    pub(crate) fn copy(&mut self, from: (usize, u64), to: (usize, u64), len: u64) {
        let bytes = self.0[from.0][index(from.1)..index(from.1 + len)].to_vec();
        self.write(to.0, to.1, &bytes);
    }

    /// Zeroes what of the range lies inside.
    pub(crate) fn zero(&mut self, volume: usize, at: u64, len: u64) {
        let end = (at + len).min(self.size(volume));
        if at < end {
            self.0[volume][index(at)..index(end)].fill(0);
        }
    }

    /// Cuts and lengthens to `keep` and then to `size`.
    pub(crate) fn resize(&mut self, volume: usize, keep: u64, size: u64) {
        self.0[volume].resize(index(keep), 0);
        self.0[volume].resize(index(size), 0);
    }

    /// What was read by `way` at `at` is what must be there.
    pub(crate) fn judge_bytes(&self, volume: usize, at: u64, got: &[u8], way: &str) -> Judged {
        // Behind the end nothing is read, and nothing is there to be compared.
        let held = if got.is_empty() { &[] } else { &self.0[volume][index(at)..index(at) + got.len()] };
        if held == got {
            return Ok(());
        }
        let first = held.iter().zip(got).position(|(a, b)| a != b).unwrap_or_default();
        let bad = held.iter().zip(got).filter(|(a, b)| a != b).count();
        let near = |bytes: &[u8]| {
            let end = (first + 16).min(bytes.len());
            bytes[first..end].iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
        };
        wrong(format!(
            "volume {volume}, read {way} {at:#x}+{:#x}: first wrong byte {:#x} ({bad} wrong in all)\n  expected {}\n  got      {}{}",
            got.len(),
            at + first as u64,
            near(held),
            near(got),
            self.told_where(&got[first..(first + 16).min(got.len())]),
        ))
    }

    /// Where else the wrong bytes stand: tells a shifted copy from lost or torn bytes.
    fn told_where(&self, got: &[u8]) -> String {
        if got.len() < 8 || got.iter().all(|&b| b == 0) {
            return String::new();
        }
        for (volume, held) in self.0.iter().enumerate() {
            if let Some(at) = held.windows(got.len()).position(|w| w == got) {
                return format!("\n  which stand in volume {volume} at {at:#x}");
            }
        }
        String::new()
    }

    /// What is told as a hole is zero.
    pub(crate) fn judge_hole(&self, volume: usize, from: u64, to: u64) -> Judged {
        if to < from || to > self.size(volume) {
            return wrong(format!(
                "volume {volume}: a hole is told from {from:#x} to {to:#x}, which cannot be"
            ));
        }
        match self.0[volume][index(from)..index(to)].iter().position(|&b| b != 0) {
            None => Ok(()),
            Some(at) => wrong(format!(
                "volume {volume}: told as a hole from {from:#x} to {to:#x}, but byte {:#x} is not zero",
                from + at as u64
            )),
        }
    }
}

/// The answer of one `copy_file_range` that had `left` bytes to copy.
pub(crate) fn judge_step(answer: io::Result<u64>, left: u64) -> Judged<u64> {
    match answer {
        Ok(0) if left > 0 => {
            wrong(format!("copy_file_range answers 0, {left} bytes before the end of the source"))
        }
        Ok(n) if n > left => wrong(format!("copy_file_range answers {n}, where {left} bytes were left")),
        Ok(n) => Ok(n),
        Err(e) => wrong(format!("copy_file_range with {left} bytes left: {e}")),
    }
}

/// A call that fails with one of `errnos`.
pub(crate) fn judge_error<T>(what: &str, answer: io::Result<T>, errnos: &[i32]) -> Judged {
    match answer {
        Ok(_) => wrong(format!("{what}: taken")),
        Err(e) if e.raw_os_error().is_some_and(|n| errnos.contains(&n)) => Ok(()),
        Err(e) => wrong(format!("{what}: {e}, where one of {errnos:?} is due")),
    }
}

/// A refusal of a copy call: one of `errnos`, nothing called good.
pub(crate) fn judge_refusal(what: &str, answer: io::Result<()>, comp_lens: &[u64], errnos: &[i32]) -> Judged {
    judge_error(what, answer, errnos)?;
    match comp_lens.iter().find(|&&n| n != 0) {
        None => Ok(()),
        Some(n) => wrong(format!("{what}: refused, and yet comp_len says {n}: {comp_lens:?}")),
    }
}

/// A copy call that went well has said so of each entry.
pub(crate) fn judge_entries(answer: io::Result<()>, entries: &[Entry]) -> Judged {
    if let Err(e) = answer {
        return wrong(format!("the copy call fails: {e}; {entries:?}"));
    }
    match entries.iter().find(|e| e.comp_len != e.len) {
        None => Ok(()),
        Some(entry) => wrong(format!("the copy call went well, and yet {entry:?}")),
    }
}

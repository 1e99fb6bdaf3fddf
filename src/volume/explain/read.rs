//! Carries a look out: walks two ends in step, reads what has to be read, a few pieces ahead, and takes down what it
//! is.

use super::basis::End;
use super::report::{LookBy, SameRun, Sameness, Tally};
use super::walk::Walk;
use crate::block::{Buf, ByteRange, Content, Device, Error, Kind, Result};
use crate::copy::back::{PIECE, ReadBack};
use crate::copy::facts::content;
use crate::copy::wait::unless;
use crate::reactor::away::look;
use crate::reactor::local::{self, Client, JoinHandle};
use crate::volume::watch::CancelHandle;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Pieces that are read at a time, on each end.
const DEPTH: usize = 4;
/// Most pieces cut ahead, those that need no reading too.
const AHEAD_MAX: usize = 64;
/// Bytes of a hole that go into a digest between two looks whether to stop.
const ZEROES: u64 = 64 << 20;

/// A read that was begun.
type Reading = JoinHandle<Result<Buf>>;

/// What a piece waits for.
enum Due {
    Nothing,
    /// Of the first end, whose bytes are those of both.
    One(Reading),
    Both(Reading, Reading),
}

struct Piece {
    run: SameRun,
    due: Due,
}

/// A look that runs.
pub(super) struct Look<'a> {
    pub(super) a: Rc<ReadBack>,
    pub(super) b: Rc<ReadBack>,
    pub(super) ends: [End; 2],
    pub(super) by: LookBy,
    /// Go on after the first difference.
    pub(super) all: bool,
    pub(super) cancel: &'a CancelHandle,
    /// Told how many bytes have been seen.
    pub(super) seen: &'a dyn Fn(u64),
}

/// The digests of both ends, made as one for as long as they are equal.
struct Digests {
    ours: blake3::Hasher,
    theirs: Option<blake3::Hasher>,
}

impl Digests {
    fn same(&mut self, bytes: &[u8]) {
        self.ours.update(bytes);
        if let Some(theirs) = &mut self.theirs {
            theirs.update(bytes);
        }
    }

    fn each(&mut self, a: &[u8], b: &[u8]) {
        if self.theirs.is_none() && a == b {
            self.ours.update(a);
            return;
        }
        self.apart().update(b);
        self.ours.update(a);
    }

    /// That of the second end, from here on its own.
    fn apart(&mut self) -> &mut blake3::Hasher {
        self.theirs.get_or_insert_with(|| self.ours.clone())
    }

    fn zeroes(hasher: &mut blake3::Hasher, mut len: u64) {
        let zeroes = [0; 64 << 10];
        while len > 0 {
            let part = len.min(zeroes.len() as u64);
            hasher.update(&zeroes[..usize::try_from(part).expect("a small part")]);
            len -= part;
        }
    }

    fn both_zero(&mut self, len: u64) {
        Self::zeroes(&mut self.ours, len);
        if let Some(theirs) = &mut self.theirs {
            Self::zeroes(theirs, len);
        }
    }

    fn hex(mut self) -> [String; 2] {
        let theirs = self.apart().finalize();
        [self.ours.finalize(), theirs].map(|hash| hash.to_hex().to_string())
    }
}

fn stopped() -> Error {
    Error::new(Kind::Cancelled, "stopped on request before all of it was compared")
}

/// One end's reader. Queues are opened once for each device.
pub(super) fn reader(device: &Arc<dyn Device>, open: &Rc<RefCell<Vec<Client>>>) -> Rc<ReadBack> {
    let open = open.clone();
    Rc::new(ReadBack::new(device.clone(), move |leaf| {
        let known = open.borrow().iter().find(|client| Arc::ptr_eq(client.device(), leaf)).cloned();
        if let Some(client) = known {
            return Ok(client);
        }
        let client = Client::open(leaf.clone())?;
        open.borrow_mut().push(client.clone());
        Ok(client)
    }))
}

impl Look<'_> {
    /// Looks at everything; the digests, where they were asked for.
    ///
    /// Errors: those of the devices; `Cancelled`.
    pub(super) async fn run(&self, walk: Walk, tally: &mut Tally) -> Result<Option<[String; 2]>> {
        let common = walk.len();
        let mut digests =
            (self.by == LookBy::Digest).then(|| Digests { ours: blake3::Hasher::new(), theirs: None });
        let mut walk = Some(walk);
        let (mut runs, mut ahead) = (VecDeque::new(), VecDeque::<Piece>::new());
        loop {
            if self.cancel.is_set() {
                return Err(stopped());
            }
            let reads = ahead.iter().filter(|piece| !matches!(piece.due, Due::Nothing)).count();
            if reads < DEPTH && ahead.len() < AHEAD_MAX {
                if runs.is_empty()
                    && let Some(taken) = walk.take()
                {
                    let (back, found) = self.walk_on(taken).await?;
                    // Without any it is at its end.
                    walk = Some(back).filter(|_| !found.is_empty());
                    runs.extend(found);
                }
                if let Some(run) = runs.pop_front() {
                    let (piece, rest) = self.begin(run);
                    ahead.push_back(piece);
                    if rest.len > 0 {
                        runs.push_front(rest);
                    }
                    continue;
                }
            }
            let Some(piece) = ahead.pop_front() else { break };
            self.finish(piece, tally, digests.as_mut()).await?;
            if tally.first_different.is_some() && !self.all {
                break;
            }
        }
        tally.end();
        let Some(mut digests) = digests else { return Ok(None) };
        let [a, b] = &self.ends;
        let (rest_a, rest_b) = (a.range.after(common), b.range.after(common));
        let theirs = digests.apart();
        self.digest_rest(b, &self.b, rest_b, theirs).await?;
        self.digest_rest(a, &self.a, rest_a, &mut digests.ours).await?;
        Ok(Some(digests.hex()))
    }

    async fn walk_on(&self, mut walk: Walk) -> Result<(Walk, Vec<SameRun>)> {
        let looked = look(&self.ends[0].device, move |_| {
            let found = walk.next_runs();
            (walk, found)
        });
        let (walk, found) = self.unless_stopped(looked).await??;
        Ok((walk, found?))
    }

    /// Begins with the front of a run; that piece, and the rest.
    fn begin(&self, run: SameRun) -> (Piece, SameRun) {
        let both = match (self.by, run.is) {
            (_, Sameness::Zero) | (LookBy::Extents, _) => None,
            (LookBy::Digest, Sameness::Shared) => Some(false),
            _ => Some(true),
        };
        let len = run.len.min(match (both, self.by) {
            (Some(_), _) => PIECE,
            (None, LookBy::Digest) => ZEROES,
            _ => u64::MAX,
        });
        let read = |reader: &Rc<ReadBack>, end: &End| {
            let (reader, range) = (reader.clone(), end.part(run.offset, len));
            local::spawn(async move { reader.read(range).await })
        };
        let [a, b] = &self.ends;
        let due = match both {
            None => Due::Nothing,
            Some(false) => Due::One(read(&self.a, a)),
            Some(true) => Due::Both(read(&self.a, a), read(&self.b, b)),
        };
        let rest = SameRun { offset: run.offset + len, len: run.len - len, is: run.is };
        (Piece { run: SameRun { len, ..run }, due }, rest)
    }

    async fn finish(&self, piece: Piece, tally: &mut Tally, digests: Option<&mut Digests>) -> Result<()> {
        let SameRun { offset, len, is } = piece.run;
        match piece.due {
            Due::Nothing => {
                if let Some(digests) = digests {
                    digests.both_zero(len);
                }
                tally.add(offset, len, is);
            }
            Due::One(read) => {
                let bytes = self.unless_stopped(read).await??;
                if let Some(digests) = digests {
                    digests.same(&bytes);
                }
                tally.add(offset, len, is);
                self.a.give_back(bytes);
            }
            Due::Both(a, b) => {
                let (a, b) = (self.unless_stopped(a).await??, self.unless_stopped(b).await??);
                if let Some(digests) = digests {
                    digests.each(&a, &b);
                }
                tally.compare(offset, &a, &b);
                self.a.give_back(a);
                self.b.give_back(b);
            }
        }
        (self.seen)(offset + len);
        Ok(())
    }

    /// What only one end has goes into its digest.
    async fn digest_rest(
        &self,
        end: &End,
        reader: &ReadBack,
        mut rest: ByteRange,
        hasher: &mut blake3::Hasher,
    ) -> Result<()> {
        while !rest.is_empty() {
            let asked = look(&end.device, move |device| content(device, rest));
            let extent = self.unless_stopped(asked).await???;
            let part = rest.prefix(extent.len.max(1));
            let part = if extent.content == Content::Data { part.prefix(PIECE) } else { part.prefix(ZEROES) };
            if extent.content == Content::Data {
                let bytes = self.unless_stopped(reader.read(part)).await??;
                hasher.update(&bytes);
                reader.give_back(bytes);
            } else {
                Digests::zeroes(hasher, part.len());
            }
            rest = rest.after(part.len());
        }
        Ok(())
    }

    /// What `work` gives, unless it is to stop before.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        unless(|| self.cancel.is_set(), work).await.ok_or_else(stopped)
    }
}

//! The sending half of a machine: small things are staged in a ring, large payloads sent from where they are.

use super::Output;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Payloads up to this many bytes are copied to the staging ring: one copy costs less than one more piece in a send.
pub(super) const COPY_MAX: u32 = 16 << 10;

/// Bytes staged before payloads are no longer copied.
const STAGED_MAX: usize = 128 << 10;

/// Most bytes staged in one go: a copied payload with all that is around it.
const STAGE_MAX: usize = COPY_MAX as usize + 512;

enum Piece<P> {
    Staged { start: usize, len: usize },
    Payload { of: P, start: usize, len: usize },
}

/// Bytes on their way out, in order. `P` names (or is) a buffer that is sent from where it is.
///
/// The bound: copies stop at [`STAGED_MAX`]; whoever stages small things stops taking work when [`Outgoing::is_full`],
/// and what its commands in hand may then still stage is within the reserve given at the start.
pub(super) struct Outgoing<P> {
    /// A ring: staged bytes are `head..tail`, or, wrapped, `head..wrapped` and `..tail`.
    ring: Box<[u8]>,
    head: usize,
    tail: usize,
    wrapped: Option<usize>,
    used: usize,
    full_at: usize,
    pieces: VecDeque<Piece<P>>,
    /// Pieces that are in buffers, and their bytes that are still to be sent.
    referred: usize,
    referred_bytes: usize,
    /// Bytes ever put in, and ever sent.
    put: u64,
    gone: u64,
}

impl<P> Outgoing<P> {
    /// `reserve`: bytes that commands in hand may stage after no more work is taken.
    pub(super) fn new(reserve: usize, pieces: usize) -> Self {
        // With two of STAGE_MAX to spare, one of the two free parts always holds what is staged, whatever the wrap left
        // unused.
        let len = Self::bytes(reserve).expect("a reserve fits memory");
        Self {
            ring: vec![0; len].into_boxed_slice(),
            head: 0,
            tail: 0,
            wrapped: None,
            used: 0,
            full_at: STAGED_MAX + reserve,
            pieces: VecDeque::with_capacity(pieces),
            referred: 0,
            referred_bytes: 0,
            put: 0,
            gone: 0,
        }
    }

    /// Bytes of the ring. `None`: more than memory has.
    pub(super) fn bytes(reserve: usize) -> Option<usize> {
        reserve.checked_mul(2)?.checked_add(STAGED_MAX + 2 * STAGE_MAX)
    }

    /// Take no more work before some of this is sent.
    pub(super) fn is_full(&self) -> bool {
        self.used > self.full_at
    }

    /// A payload of `len` bytes is better copied than referred to.
    pub(super) fn copies(&self, len: u32) -> bool {
        len <= COPY_MAX && self.used + STAGE_MAX <= STAGED_MAX
    }

    /// Position behind all that was put in; [`Outgoing::gone`] reaches it when all that has been sent.
    pub(super) fn put(&self) -> u64 {
        self.put
    }

    /// Bytes sent since the beginning.
    pub(super) fn gone(&self) -> u64 {
        self.gone
    }

    /// `len` bytes more (at most [`STAGE_MAX`]), to be written by the caller.
    #[inline]
    pub(super) fn stage(&mut self, len: usize) -> &mut [u8] {
        if self.used == 0 {
            (self.head, self.tail, self.wrapped) = (0, 0, None);
        }
        let room = if self.wrapped.is_some() { self.head - self.tail } else { self.ring.len() - self.tail };
        if room < len {
            assert!(self.wrapped.is_none() && self.head >= len, "staged bytes are bounded by the reserve");
            self.wrapped = Some(self.tail);
            self.tail = 0;
        }
        let start = self.tail;
        match self.pieces.back_mut() {
            Some(Piece::Staged { start: s, len: l }) if *s + *l == start => *l += len,
            _ => self.pieces.push_back(Piece::Staged { start, len }),
        }
        self.tail += len;
        self.used += len;
        self.put += len as u64;
        &mut self.ring[start..start + len]
    }

    /// Takes back the last `n` bytes of what was staged last.
    pub(super) fn unstage(&mut self, n: usize) {
        if let Some(Piece::Staged { len, .. }) = self.pieces.back_mut() {
            *len -= n;
            self.tail -= n;
            self.used -= n;
            self.put -= n as u64;
        }
    }

    /// `len` bytes more, from `start` of the buffer `of`.
    pub(super) fn refer(&mut self, of: P, start: usize, len: usize) {
        self.put += len as u64;
        self.referred += 1;
        self.referred_bytes += len;
        self.pieces.push_back(Piece::Payload { of, start, len });
    }

    /// What to send now; `bytes` finds the buffer of a piece.
    pub(super) fn output<'a>(&'a self, bytes: impl Fn(&'a P) -> &'a [u8]) -> Output<'a> {
        let mut output = Output { slices: std::array::from_fn(|_| IoSlice::new(&[])), count: 0 };
        for (slice, piece) in output.slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(match piece {
                Piece::Staged { start, len } => &self.ring[*start..start + len],
                Piece::Payload { of, start, len } => &bytes(of)[*start..start + len],
            });
            output.count += 1;
        }
        output
    }

    /// The first `n` bytes are sent; `done` gets each buffer that is wholly sent.
    pub(super) fn sent(&mut self, mut n: usize, mut done: impl FnMut(P)) {
        self.gone += n as u64;
        while n > 0 {
            let piece = self.pieces.front_mut().expect("no more is sent than there was");
            let (Piece::Staged { start, len } | Piece::Payload { start, len, .. }) = piece;
            let part = n.min(*len);
            *start += part;
            *len -= part;
            n -= part;
            let finished = *len == 0;
            if !matches!(piece, Piece::Staged { .. }) {
                self.referred_bytes -= part;
            } else if let Piece::Staged { start, .. } = piece {
                self.head = *start;
                self.used -= part;
                if self.wrapped == Some(self.head) {
                    (self.head, self.wrapped) = (0, None);
                }
            }
            if finished && let Some(Piece::Payload { of, .. }) = self.pieces.pop_front() {
                self.referred -= 1;
                done(of);
            }
        }
    }

    /// Forgets what is left to send.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        (self.used, self.referred, self.referred_bytes) = (0, 0, 0);
    }

    /// How many bytes of what is left to send are in buffers.
    pub(super) fn referred_bytes(&self) -> u64 {
        self.referred_bytes as u64
    }

    /// How many pieces of what is left to send are in buffers.
    pub(super) fn referred(&self) -> usize {
        self.referred
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Act {
        Copy(usize),
        Small(usize),
        Refer(usize),
        Send(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (1..=STAGE_MAX).prop_map(Act::Copy),
            4 => (1..300usize).prop_map(Act::Small),
            1 => (1..40_000usize).prop_map(Act::Refer),
            2 => (1..200_000usize).prop_map(Act::Send),
            1 => Just(Act::Send(usize::MAX)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn what_comes_out_is_what_was_put_in(acts in proptest::collection::vec(act(), 1..600)) {
            let mut outgoing = Outgoing::new(4000, 4);
            let mut want = VecDeque::new();
            let (mut next, mut back, mut referred) = (0u8, 0, 0);
            let mut fresh = |n: usize| -> Vec<u8> {
                next = next.wrapping_add(101);
                (0..n).map(|i| next.wrapping_add(i.to_le_bytes()[0])).collect()
            };
            for act in acts {
                match act {
                    Act::Copy(n) | Act::Small(n) => {
                        let small = matches!(act, Act::Small(_));
                        // One more small thing after the last look is what the reserve is for.
                        if if small { !outgoing.is_full() } else { outgoing.copies(1) } {
                            let bytes = fresh(n);
                            outgoing.stage(n + 3).copy_from_slice(&[&bytes[..], &[1, 2, 3]].concat());
                            outgoing.unstage(3);
                            want.extend(bytes);
                        }
                    }
                    Act::Refer(n) => {
                        let bytes = fresh(n);
                        want.extend(&bytes[1..]);
                        outgoing.refer(bytes, 1, n - 1);
                        referred += 1;
                    }
                    Act::Send(most) => {
                        let mut sent = 0;
                        for slice in outgoing.output(|bytes: &Vec<u8>| bytes).iter() {
                            let n = slice.len().min(most - sent);
                            prop_assert!(slice[..n].iter().copied().eq(want.drain(..n)));
                            sent += n;
                        }
                        outgoing.sent(sent, |_| back += 1);
                        prop_assert_eq!(outgoing.put() - outgoing.gone(), want.len() as u64);
                    }
                }
                prop_assert_eq!(outgoing.referred(), referred - back);
            }
        }
    }
}

//! The receiving half of a machine: bytes into PDUs, payloads into their buffers, digests checked.

use super::pdu::{self, COMMON_LEN, DIGEST_LEN, Kind, Pdu, Shape, Side};
use super::{Digests, Fatal};
use std::io::IoSliceMut;
use std::ops::Range;

/// Bytes read from the socket at once, apart from payloads that have a buffer.
const STAGING_BYTES: usize = 64 << 10;

/// The data of one PDU on its way in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arriving {
    /// Whose buffer it goes to; `None`: it is thrown away.
    pub(super) slot: Option<u16>,
    /// Where in the buffer the next byte goes, and where the first one went.
    at: usize,
    start: usize,
    end: usize,
    digest: bool,
}

/// The data of one PDU, wholly there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    /// Whose it is.
    pub(super) slot: Option<u16>,
    /// Bytes.
    pub(super) len: u32,
    /// False when the digest says that they are not what was sent.
    pub(super) intact: bool,
}

/// Bytes on their way in.
pub(super) struct Incoming {
    /// Bytes not looked at yet are `head..tail`.
    staging: Box<[u8]>,
    head: usize,
    tail: usize,
    side: Side,
    opened: bool,
    digests: Digests,
    align: usize,
    /// The common header of the PDU at `head`, once checked.
    shape: Option<Shape>,
    /// The header looked at last.
    looked_at: Range<usize>,
    arriving: Option<Arriving>,
    /// How many bytes of the last `space` belong to a payload.
    direct: usize,
    /// Bytes of payload that have reached a buffer.
    payload_bytes: u64,
    /// The connection has ended: whatever comes is thrown away.
    closed: bool,
}

impl Incoming {
    /// Memory of each, in bytes, apart from payloads.
    pub(super) const BYTES: usize = STAGING_BYTES;

    /// For an end that waits for ICReq (ICResp).
    pub(super) fn new(side: Side) -> Self {
        Self {
            staging: vec![0; STAGING_BYTES].into_boxed_slice(),
            head: 0,
            tail: 0,
            side,
            opened: false,
            digests: Digests::default(),
            align: 4,
            shape: None,
            looked_at: 0..0,
            arriving: None,
            direct: 0,
            payload_bytes: 0,
            closed: false,
        }
    }

    /// ICReq (ICResp) has come: these digests are in use and data is to begin at multiples of `align` bytes.
    pub(super) fn open(&mut self, digests: Digests, align: usize) {
        self.opened = true;
        self.digests = digests;
        self.align = align;
    }

    /// Bytes of payload that have reached a buffer.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    pub(super) fn digests(&self) -> Digests {
        self.digests
    }

    /// Throws away what is here and what comes.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.arriving = None;
    }

    /// Where bytes from the socket go. `payload` is the buffer of the slot that [`Incoming::arriving`] names, if it has
    /// one.
    pub(super) fn space<'a>(&'a mut self, payload: &'a mut [u8]) -> [IoSliceMut<'a>; 2] {
        if self.head == self.tail || self.closed {
            (self.head, self.tail) = (0, 0);
        } else if self.staging.len() - self.tail < self.staging.len() / 4 {
            self.staging.copy_within(self.head..self.tail, 0);
            (self.head, self.tail) = (0, self.tail - self.head);
        }
        let staging = IoSliceMut::new(&mut self.staging[self.tail..]);
        self.direct = 0;
        if let Some(arriving) = &self.arriving
            && self.tail == 0
            && arriving.slot.is_some()
            && let Some(rest) = payload.get_mut(arriving.at..arriving.end)
            && !rest.is_empty()
        {
            self.direct = rest.len();
            return [IoSliceMut::new(rest), staging];
        }
        [staging, IoSliceMut::new(&mut [])]
    }

    /// The first `n` bytes of the last `space` are there.
    pub(super) fn filled(&mut self, n: usize) {
        let direct = n.min(self.direct);
        self.direct -= direct;
        self.payload_bytes += direct as u64;
        if let Some(arriving) = &mut self.arriving {
            arriving.at += direct;
        }
        self.tail += n - direct;
        assert!(self.tail <= self.staging.len(), "more bytes were filled in than there was space for");
    }

    /// The PDU that comes next is a command, as far as is known.
    pub(super) fn brings_command(&self) -> bool {
        self.head < self.tail && self.staging[self.head] == Kind::CapsuleCmd as u8
    }

    /// The next header, when it is wholly there; what [`Incoming::arriving`] says has to be pulled first.
    #[inline]
    pub(super) fn header(&mut self) -> Result<Option<(Shape, Pdu)>, Fatal> {
        let there = self.tail - self.head;
        let shape = if let Some(shape) = self.shape {
            shape
        } else {
            if there < COMMON_LEN {
                return Ok(None);
            }
            self.looked_at = self.head..self.head + COMMON_LEN;
            let mut common = [0; COMMON_LEN];
            common.copy_from_slice(&self.staging[self.looked_at.clone()]);
            pdu::shape(common, self.side, self.opened, self.digests, self.align)?
        };
        if there < shape.lead_len {
            self.shape = Some(shape);
            return Ok(None);
        }
        self.shape = None;
        let lead = &self.staging[self.head..self.head + shape.lead_len];
        self.looked_at = self.head..self.head + usize::from(shape.kind.header_len());
        pdu::check_header_digest(&shape, lead)?;
        let decoded = Pdu::decode(&shape, lead)?;
        self.head += shape.lead_len;
        Ok(Some((shape, decoded)))
    }

    /// The header that [`Incoming::header`] gave or refused last, as far as it was looked at.
    pub(super) fn at_fault(&self) -> &[u8] {
        &self.staging[self.looked_at.clone()]
    }

    /// The data of the PDU whose header was given last goes to `slot`'s buffer from `at` on.
    pub(super) fn expect(&mut self, shape: &Shape, slot: Option<u16>, at: u32) {
        // u32 fits usize on every machine this is built for.
        let (at, len) = (at as usize, shape.data_len as usize);
        self.arriving = Some(Arriving { slot, at, start: at, end: at + len, digest: shape.data_digest });
    }

    /// The data that is on its way in.
    pub(super) fn arriving(&self) -> Option<Arriving> {
        self.arriving
    }

    /// Moves what is there of the arriving data to `payload`, the buffer of its slot. `None`: there is more to come.
    pub(super) fn pull(&mut self, payload: &mut [u8]) -> Option<Arrived> {
        let arriving = self.arriving.as_mut()?;
        let n = (self.tail - self.head).min(arriving.end - arriving.at);
        if n > 0 {
            if arriving.slot.is_some() {
                payload[arriving.at..arriving.at + n]
                    .copy_from_slice(&self.staging[self.head..self.head + n]);
                self.payload_bytes += n as u64;
            }
            self.head += n;
            arriving.at += n;
        }
        if arriving.at < arriving.end {
            return None;
        }
        let Arriving { slot, start, end, digest, .. } = *arriving;
        let mut intact = true;
        if digest {
            if self.tail - self.head < DIGEST_LEN {
                return None;
            }
            let received = pdu::u32_at(&self.staging, self.head);
            self.head += DIGEST_LEN;
            intact = slot.is_none() || pdu::crc32c(&payload[start..end]) == received;
        }
        self.arriving = None;
        // The difference came from a u32.
        Some(Arrived { slot, len: u32::try_from(end - start).unwrap_or(u32::MAX), intact })
    }
}

//! The host's end of a connection: capsules out, responses in, and the data of both.

use super::{Broken, Digests, Output};
use crate::block::Buf;
use crate::nvme::{Cqe, Sqe};
use std::io::IoSliceMut;
use std::time::Duration;

/// What a connection asks for and how large it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Places for commands: 1 to 4096. At most the entries of the queue.
    pub slots: u16,
    /// Digests to ask for; the controller may refuse ([`Event::Ready`] says).
    pub digests: Digests,
    /// Alignment of data from the controller (HPDA), 0's based in dwords. Linux targets take 0 only.
    pub hpda: u8,
    /// R2Ts of one command that may be outstanding: a count, at least 1.
    pub r2t_count_max: u32,
    /// Most data inside a capsule, in bytes, until [`Connection::set_in_capsule`]: 8192 for admin queues and Connect.
    pub in_capsule_bytes_max: u32,
    /// SQ flow control is on (the Connect will not disable it): a controller that uses SUCCESS then is in error.
    pub flow_control: bool,
    /// How long the controller may take to answer ICReq.
    pub icresp_timeout: Duration,
}

/// The data of a command.
#[derive(Debug, Default)]
pub enum Data {
    /// None.
    #[default]
    None,
    /// All the bytes shown go to the controller.
    Out(Buf),
    /// The bytes shown are filled by the controller.
    In(Buf),
}

/// What the owner has to do something about.
#[derive(Debug)]
pub enum Event {
    /// The connection is open: commands may be submitted.
    Ready {
        /// Most bytes of one H2CData PDU.
        h2c_data_bytes_max: u32,
        /// Digests in use.
        digests: Digests,
    },
    /// A command has ended.
    Done {
        /// Where it was; free again.
        slot: u16,
        /// How it ended. A success by the SUCCESS flag has result 0.
        cqe: Cqe,
        /// Its data as submitted.
        data: Data,
        /// Bytes from the controller: the first of `Data::In`. May be fewer than wanted; what that means is the command's affair.
        received: u32,
    },
    /// The connection has ended; no event follows. [`Connection::drain`] gives the commands back.
    Broken(Broken),
}

/// A command that got no answer.
#[derive(Debug)]
pub struct Unfinished {
    /// Where it was; free again.
    pub slot: u16,
    /// Its data as submitted.
    pub data: Data,
    /// A byte of it was handed to the socket: the controller may have executed it.
    pub maybe_executed: bool,
}

/// One connection: one submission and completion queue pair.
pub struct Connection {}

impl Connection {
    /// A fresh connection with its ICReq in the output. `None`: no memory.
    pub fn new(config: &Config) -> Option<Self> {
        unimplemented!()
    }

    /// Capsules may hold this many bytes of data from now on (IOCCSZ * 16 - 64 of the controller).
    pub fn set_in_capsule(&mut self, bytes_max: u32) {
        unimplemented!()
    }

    /// Sends a command from a free slot, after [`Event::Ready`]. Command id and SGL of `sqe` are filled in here. On a connection
    /// that is closing it is kept for [`Connection::drain`].
    ///
    /// # Panics
    /// When the slot is taken.
    pub fn submit(&mut self, slot: u16, sqe: Sqe, data: Data) {
        unimplemented!()
    }

    /// The command id that the command in `slot` has on the wire: what an Abort names.
    pub fn cid(&self, slot: u16) -> u16 {
        unimplemented!()
    }

    /// As for the controller's end.
    pub fn space(&mut self) -> [IoSliceMut<'_>; 2] {
        unimplemented!()
    }

    /// The first `n` bytes of [`Connection::space`] are there.
    pub fn filled(&mut self, n: usize) {
        unimplemented!()
    }

    /// Parses what is there up to the next event. Call until `None` after `filled` and after `sent`.
    pub fn next(&mut self) -> Option<Event> {
        unimplemented!()
    }

    /// What to send now; empty: nothing.
    pub fn output(&self) -> Output<'_> {
        unimplemented!()
    }

    /// The socket took the first `n` bytes of [`Connection::output`].
    pub fn sent(&mut self, n: usize) {
        unimplemented!()
    }

    /// Time has come to `now` (any clock that only goes forward): silence may end the connection.
    pub fn tick(&mut self, now: Duration) {
        unimplemented!()
    }

    /// The owner ends the connection (a command timed out, the socket failed): nothing is processed any more, no TermReq is sent.
    pub fn close(&mut self) {
        unimplemented!()
    }

    /// The connection has ended: send what there is (a TermReq), then close.
    pub fn is_closing(&self) -> bool {
        unimplemented!()
    }

    /// The socket may be closed: nothing to send is left and the controller had its time.
    pub fn is_over(&self) -> bool {
        unimplemented!()
    }

    /// Takes every command without an answer out of a connection that has ended, slot by slot; `None`: no more.
    pub fn drain(&mut self) -> Option<Unfinished> {
        unimplemented!()
    }
}

//! The controller's end of a connection: capsules in, responses out, and the data of both.

use super::{Broken, Digests, Output};
use crate::block::Buf;
use crate::nvme::{Cqe, Sqe};
use std::io::IoSliceMut;
use std::time::Duration;

/// What a connection is allowed; the same for every connection of a target.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most data of one command, in bytes (what MDTS says). More fails the command with Invalid Field in Command.
    pub data_bytes_max: u32,
    /// Most data inside an I/O command's capsule, in bytes (IOCCSZ * 16 - 64). Admin and fabrics commands always have 8192.
    pub in_capsule_bytes_max: u32,
    /// Most data of one H2CData PDU, in bytes (MAXH2CDATA): a multiple of 4, at least 4096.
    pub h2c_data_bytes_max: u32,
    /// Most data asked for with one R2T, in bytes.
    pub r2t_bytes_max: u32,
    /// Most R2Ts of one command at a time, if the host takes as many.
    pub r2t_count_max: u32,
    /// Digests granted to a host that asks for them.
    pub digests: Digests,
    /// Alignment of data from the host (CPDA), 0's based in dwords. Linux takes 0 only.
    pub cpda: u8,
    /// How long a new connection may take to send its ICReq.
    pub icreq_timeout: Duration,
}

/// What a Connect command decided about the queue of this connection.
#[derive(Clone, Copy, Debug)]
pub struct QueueFacts {
    /// Entries of the submission queue: a count (SQSIZE + 1), 2 to 4096.
    pub entries: u16,
    /// The admin queue.
    pub admin: bool,
    /// SQ flow control is on: the host did not disable it in CATTR.
    pub flow_control: bool,
}

/// What the owner has to do something about.
#[derive(Debug)]
pub enum Event {
    /// A command with all its data: `data` is empty for one without data and for one that wants data.
    Command {
        /// Its place here, until [`Connection::complete`].
        slot: u16,
        /// The entry, its SGL checked.
        sqe: Sqe,
        /// What the host sent with it: exactly as long as the SGL says.
        data: Buf,
    },
    /// A command whose data is to be asked for by R2T wants a buffer: [`Connection::give`], now or when there is one.
    NeedBuffer {
        /// Its place here.
        slot: u16,
        /// Bytes: at most `data_bytes_max`.
        len: u32,
    },
    /// The connection has ended; no event follows.
    Broken(Broken),
}

/// What [`Connection::abort`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aborted {
    /// No such command here.
    NotFound,
    /// The owner has it, in this slot.
    Executing(u16),
    /// It still waits for its data and never reaches the owner: the machine completes it with Command Abort Requested.
    Here,
}

/// One connection: one submission and completion queue pair.
pub struct Connection {}

impl Connection {
    /// A fresh connection that waits for ICReq. `None`: no memory.
    pub fn new(config: &Config) -> Option<Self> {
        unimplemented!()
    }

    /// Where the next bytes from the socket go, in this order: the rest of a payload, if one is being received, and the
    /// staging area. Take events with [`Connection::next`] until there are none before. Both empty: do not read now;
    /// the host does not take what there is to send.
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

    /// The buffer for [`Event::NeedBuffer`]: shows at least `len` bytes.
    pub fn give(&mut self, slot: u16, buf: Buf) {
        unimplemented!()
    }

    /// The command in hand is a Connect that will succeed: the queue has these properties from now on. Call before its
    /// [`Connection::complete`]. False: no memory for as many; let the Connect fail.
    pub fn connected(&mut self, queue: QueueFacts) -> bool {
        unimplemented!()
    }

    /// Ends a command: exactly once for each [`Event::Command`]. `data` goes to the host when `cqe` says success; id, head
    /// and queue of `cqe` are filled in here. Gives `data` back when it was copied.
    pub fn complete(&mut self, slot: u16, cqe: Cqe, data: Option<Buf>) -> Option<Buf> {
        unimplemented!()
    }

    /// Looks for the command `cid` for an Abort command.
    pub fn abort(&mut self, cid: u16) -> Aborted {
        unimplemented!()
    }

    /// What to send now; empty: nothing.
    pub fn output(&self) -> Output<'_> {
        unimplemented!()
    }

    /// The socket took the first `n` bytes of [`Connection::output`]. Buffers wholly sent are appended to `back`.
    pub fn sent(&mut self, n: usize, back: &mut Vec<Buf>) {
        unimplemented!()
    }

    /// Time has come to `now` (any clock that only goes forward): silence may end the connection.
    pub fn tick(&mut self, now: Duration) {
        unimplemented!()
    }

    /// The connection has ended: send what there is, then shut the sending side; go on reading (bytes are thrown away) until
    /// the host closes or [`Connection::is_over`].
    pub fn is_closing(&self) -> bool {
        unimplemented!()
    }

    /// The socket may be closed: nothing to send is left and the host had its time.
    pub fn is_over(&self) -> bool {
        unimplemented!()
    }

    /// The digests agreed upon; none before ICReq.
    pub fn digests(&self) -> Digests {
        unimplemented!()
    }
}

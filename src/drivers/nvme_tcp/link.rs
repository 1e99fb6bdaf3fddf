//! One connection: a socket that never blocks, and the machine that speaks NVMe/TCP over it.

use super::url::Address;
use crate::block::{Buf, Counters, Error, Kind, Result};
use crate::net::Stream;
use crate::nvme::status::Doing;
use crate::nvme::tcp::host::{Config, Connection, Data, Event};
use crate::nvme::tcp::{Broken, Digests};
use crate::nvme::{Cqe, Sqe, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most data inside a capsule of an admin or fabrics command, in bytes: what every controller must take (TCP Transport
/// Specification, 3.3.2.1).
const ADMIN_IN_CAPSULE: u32 = 8192;

/// A connection to a controller.
pub(super) struct Link {
    stream: Stream,
    at: SocketAddr,
    machine: Connection,
    start: Instant,
    /// A command got no answer here: its slot stays taken, and nothing more is asked.
    failed: bool,
}

/// What came of an attempt to receive.
pub(super) enum Received {
    /// Bytes came; there may be more.
    More,
    /// Bytes came, and no more are there now.
    Last,
    /// None are there now.
    Nothing,
}

/// The end of one command.
pub(super) struct Answer {
    /// How it ended.
    pub(super) cqe: Cqe,
    /// Its buffer (the empty one when it had none).
    pub(super) buf: Buf,
    /// Bytes the controller sent.
    pub(super) received: u32,
}

impl Link {
    /// Connects and agrees on the transport's parameters: commands may be submitted. `slots`: most commands in flight.
    ///
    /// Tries every address of the host, all within the deadline. Errors name `address`.
    pub(super) fn open(address: &Address, slots: u16, digests: Digests, deadline: Instant) -> Result<Self> {
        let opened = address.resolve().and_then(|all| Self::try_open(&all, slots, digests, deadline));
        opened.map_err(|e| e.on(&address.to_string()))
    }

    /// The same at the one address that another connection leads to: a name may lead to several targets.
    pub(super) fn open_at(at: SocketAddr, slots: u16, digests: Digests, deadline: Instant) -> Result<Self> {
        Self::try_open(&[at], slots, digests, deadline).map_err(|e| e.on(&at.to_string()))
    }

    fn try_open(addresses: &[SocketAddr], slots: u16, digests: Digests, deadline: Instant) -> Result<Self> {
        let mut refused = None;
        for (i, addr) in addresses.iter().enumerate() {
            // Each gets its share of the time that is left.
            let share = u32::try_from(addresses.len() - i).unwrap_or(u32::MAX);
            let wait = left(deadline) / share;
            if wait.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(addr, wait) {
                // A port of this machine that nobody listens on, and that the system picked for us too, connects to
                // itself: the target's restart would then find its port taken.
                Ok(stream) if stream.local_addr().ok() == Some(*addr) => {
                    refused = Some(io::ErrorKind::ConnectionRefused.into());
                }
                Ok(stream) => return Self::over(stream, *addr, slots, digests, deadline),
                Err(e) => refused = Some(e),
            }
        }
        Err(match refused {
            Some(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                Error::new(Kind::Io, "nothing listens there; is the target running, and is the port right?")
                    .because(e)
            }
            Some(e) if e.kind() == io::ErrorKind::TimedOut => Error::new(
                Kind::Io,
                "does not answer; is the machine up, and is a firewall dropping the connection?",
            )
            .because(e),
            Some(e) => Error::new(Kind::Io, "cannot be connected to").because(e),
            None => Error::new(Kind::Io, "could not be connected to in time"),
        })
    }

    fn over(
        stream: TcpStream,
        at: SocketAddr,
        slots: u16,
        digests: Digests,
        deadline: Instant,
    ) -> Result<Self> {
        let os = |e: io::Error| Error::new(Kind::Io, "the connection cannot be set up").because(e);
        let stream = Stream::new(stream).map_err(os)?;
        let config = Config {
            slots,
            digests,
            hpda: 0,
            r2t_count_max: 1,
            in_capsule_bytes_max: ADMIN_IN_CAPSULE,
            flow_control: false,
            icresp_timeout: left(deadline),
        };
        let machine = Connection::new(&config)
            .ok_or_else(|| Error::new(Kind::NoMemory, "no memory for another connection"))?;
        let mut link = Self { stream, at, machine, start: Instant::now(), failed: false };
        loop {
            match link.machine.next() {
                Some(Event::Ready { digests: agreed, .. }) => {
                    if agreed != digests {
                        let text =
                            "the target does not support the digests asked for; leave out hdgst and ddgst";
                        return Err(Error::new(Kind::Unsupported, text));
                    }
                    return Ok(link);
                }
                Some(Event::Broken(why)) => return Err(no_service(&why)),
                Some(Event::Done { .. }) | None => {}
            }
            if left(deadline).is_zero() {
                return Err(no_service(&Broken::Silent));
            }
            let no_more = |e: Error| {
                let text = "the server there closes the connection at once: it is not an NVMe/TCP target, or it is \
                    full";
                Error::new(Kind::Io, text).because(e)
            };
            link.send().map_err(no_more)?;
            link.wait(deadline)?;
            link.receive().map_err(no_more)?;
        }
    }

    /// The socket, to wait for with [`crate::reactor::IoOp::Ready`].
    pub(super) fn socket(&self) -> &Arc<OwnedFd> {
        self.stream.socket()
    }

    /// Where it leads.
    pub(super) fn at(&self) -> SocketAddr {
        self.at
    }

    /// The machine.
    pub(super) fn machine(&mut self) -> &mut Connection {
        &mut self.machine
    }

    /// What went over the socket since the connection was opened, or the counters were taken.
    pub(super) fn counters(&self) -> Counters {
        self.stream.counters()
    }

    /// Takes the counters of what went over the socket since the last call.
    pub(super) fn take_counters(&mut self) -> Counters {
        self.stream.take_counters()
    }

    /// Sends what the machine has, as much as the socket takes. True: all of it.
    ///
    /// Errors: the connection is gone.
    pub(super) fn send(&mut self) -> Result<bool> {
        loop {
            let output = self.machine.output();
            if output.is_empty() {
                return Ok(true);
            }
            match self.stream.send(&output).map_err(gone)? {
                Some(n) => self.machine.sent(n),
                None => return Ok(false),
            }
        }
    }

    /// Receives once into the machine; its events are there afterwards.
    ///
    /// Errors: the connection is gone.
    pub(super) fn receive(&mut self) -> Result<Received> {
        let mut space = self.machine.space();
        let room = space[0].len() + space[1].len();
        if room == 0 {
            return Ok(Received::Nothing);
        }
        match self.stream.receive(&mut space).map_err(gone)? {
            Some(0) => Err(Error::new(Kind::Io, "the target closed the connection")),
            Some(n) => {
                self.machine.filled(n);
                Ok(if n < room { Received::Last } else { Received::More })
            }
            None => Ok(Received::Nothing),
        }
    }

    /// Waits until the socket is ready for what the machine wants next, or the deadline has come.
    fn wait(&mut self, deadline: Instant) -> Result<()> {
        let mut fds = [PollFd::new(&**self.stream.socket(), self.interest())];
        let timeout = timespec(left(deadline));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(gone(e.into())),
        }
        self.machine.tick(self.start.elapsed());
        Ok(())
    }

    /// What to wait for on the socket.
    pub(super) fn interest(&self) -> PollFlags {
        if self.machine.output().is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Errors: a command got no answer here, so that nothing more can be asked.
    pub(super) fn check(&self) -> Result<()> {
        if self.failed || self.machine.is_closing() {
            return Err(Error::new(Kind::Io, "the connection is lost"));
        }
        Ok(())
    }

    /// Sends one command in `slot` and waits for its end. Ends of other commands go to `strays`.
    ///
    /// Errors: the connection is gone or broken, or no answer by the deadline. A status is not an error here.
    pub(super) fn command(
        &mut self,
        slot: u16,
        sqe: Sqe,
        data: Data,
        deadline: Instant,
        strays: &mut Vec<(u16, Cqe)>,
    ) -> Result<Answer> {
        self.check()?;
        self.machine.submit(slot, sqe, data);
        let answer = self.wait_for(slot, deadline, strays);
        self.failed = answer.is_err();
        answer
    }

    fn wait_for(&mut self, slot: u16, deadline: Instant, strays: &mut Vec<(u16, Cqe)>) -> Result<Answer> {
        loop {
            while let Some(event) = self.machine.next() {
                match event {
                    Event::Done { slot: done, cqe, data, received } if done == slot => {
                        return Ok(Answer { cqe, buf: buf_of(data), received });
                    }
                    Event::Done { slot, cqe, .. } => strays.push((slot, cqe)),
                    Event::Broken(why) => return Err(broken(&why)),
                    Event::Ready { .. } => {}
                }
            }
            self.send()?;
            if left(deadline).is_zero() {
                return Err(Error::new(Kind::Io, "the target does not answer"));
            }
            self.wait(deadline)?;
            self.receive()?;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // What the machine still has to say (why it ended the connection), as far as the socket takes it now.
        let _ = self.send();
    }
}

/// The buffer of a command's data.
pub(super) fn buf_of(data: Data) -> Buf {
    match data {
        Data::Out(buf) | Data::In(buf) => buf,
        Data::None => Buf::default(),
    }
}

/// Time until a deadline.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// For `poll`.
pub(super) fn timespec(time: Duration) -> Timespec {
    let secs = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec: secs, tv_nsec: time.subsec_nanos().into() }
}

/// The socket failed.
#[cold]
fn gone(cause: io::Error) -> Error {
    Error::new(Kind::Io, "the connection is lost").because(cause)
}

/// The machine ended the connection.
#[cold]
pub(super) fn broken(why: &Broken) -> Error {
    Error::new(Kind::Io, format!("the connection was ended: {why}"))
}

/// The machine ended the connection before it was open.
#[cold]
fn no_service(why: &Broken) -> Error {
    Error::new(Kind::Io, format!("the server there does not speak NVMe/TCP ({why}); is the port right?"))
}

/// An admin command ended with a status that is no success.
#[cold]
pub(super) fn refused(doing: &str, status: Status) -> Error {
    let error = status.to_error(Doing::Admin, None);
    Error::new(error.kind(), format!("{doing}: the target answered {status}"))
}

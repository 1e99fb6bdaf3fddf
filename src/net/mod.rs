//! One end of a TCP connection, under both ends of NVMe/TCP: it never blocks, and counts its bytes and calls.

use crate::block::Counters;
use crate::block::counters::Call;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use rustix::net::{recv, recvmsg, send, sendmsg, shutdown};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A connection; ended for both directions when it is dropped.
#[derive(Debug)]
pub struct Stream {
    socket: Arc<OwnedFd>,
    counters: Counters,
}

impl Stream {
    /// Takes a connected socket over: what is sent leaves at once, and no call waits.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { socket: Arc::new(stream.into()), counters: Counters::default() })
    }

    /// The socket, to wait for with [`crate::reactor::IoOp::Ready`].
    pub fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// Bytes and calls since the connection was opened, or the counters were taken.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes the counters of what went over the socket since the last call.
    pub fn take_counters(&mut self) -> Counters {
        std::mem::take(&mut self.counters)
    }

    /// Sends as many bytes of `pieces` as the socket takes now, and returns their number. `None`: it takes none.
    ///
    /// Errors: the connection is gone. The process gets no signal.
    pub fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        // One piece, as the capsules of reads are, goes cheaper.
        let sent = if let [only] = pieces {
            again(|| {
                self.counters.count(Call::Sendto);
                send(&self.socket, only, SendFlags::NOSIGNAL)
            })
        } else {
            again(|| {
                self.counters.count(Call::Sendmsg);
                sendmsg(&self.socket, pieces, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
            })
        };
        self.counters.wire_sent_bytes += sent.as_ref().map_or(0, |n| n.unwrap_or(0) as u64);
        sent
    }

    /// Receives once, into the two pieces of `space` in order, and returns the number of bytes: 0 when the peer has
    /// ended the connection. `None`: there are none now.
    ///
    /// Errors: the connection is gone.
    pub fn receive(&mut self, space: &mut [IoSliceMut<'_>; 2]) -> io::Result<Option<usize>> {
        let got = match space {
            [first, second] if first.is_empty() || second.is_empty() => {
                let only = if first.is_empty() { second } else { first };
                again(|| {
                    self.counters.count(Call::Recvfrom);
                    recv(&self.socket, &mut **only, RecvFlags::empty()).map(|(n, _)| n)
                })
            }
            both => again(|| {
                self.counters.count(Call::Recvmsg);
                let mut none = RecvAncillaryBuffer::default();
                recvmsg(&self.socket, both, &mut none, RecvFlags::empty()).map(|got| got.bytes)
            }),
        };
        self.counters.wire_received_bytes += got.as_ref().map_or(0, |n| n.unwrap_or(0) as u64);
        got
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Others may hold the descriptor: the connection ends all the same.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

/// Calls until no signal interrupts; `None` where the call would wait.
fn again(mut call: impl FnMut() -> Result<usize, Errno>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(n) => return Ok(Some(n)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (Stream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Stream::new(one).unwrap(), Stream::new(listener.accept().unwrap().0).unwrap())
    }

    /// Receives into pieces of these lengths until `len` bytes have come.
    fn all(stream: &mut Stream, lens: [usize; 2], len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < len {
            let (mut first, mut second) = (vec![0; lens[0]], vec![0; lens[1]]);
            let mut space = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
            let Some(n) = stream.receive(&mut space).unwrap() else { continue };
            out.extend(first.into_iter().chain(second).take(n));
        }
        out
    }

    #[test]
    fn pieces_arrive_in_order_and_are_counted() {
        let (mut one, mut two) = pair();
        let mut space = [0; 4];
        assert_eq!(two.receive(&mut [IoSliceMut::new(&mut space), IoSliceMut::new(&mut [])]).unwrap(), None);
        assert_eq!(
            one.send(&[IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")]).unwrap(),
            Some(5)
        );
        assert_eq!(one.send(&[IoSlice::new(b"fg")]).unwrap(), Some(2));
        assert_eq!(all(&mut two, [2, 5], 7), b"abcdefg");
        assert_eq!(one.counters().wire_sent_bytes, 7);
        assert_eq!(two.take_counters().wire_received_bytes, 7);
        assert_eq!(two.counters().wire_received_bytes, 0);
    }

    #[test]
    fn a_full_socket_takes_nothing_and_an_ended_one_says_so() {
        let (mut one, mut two) = pair();
        let bytes = vec![7; 1 << 20];
        let mut sent = 0;
        while let Some(n) = one.send(&[IoSlice::new(&bytes)]).unwrap() {
            sent += n;
        }
        assert!(all(&mut two, [0, 65536], sent).iter().all(|&b| b == 7));
        drop(one);
        let mut space = [0; 4];
        let end = loop {
            let mut space = [IoSliceMut::new(&mut space), IoSliceMut::new(&mut [])];
            if let Some(n) = two.receive(&mut space).unwrap() {
                break n;
            }
        };
        assert_eq!(end, 0);
        // The peer is gone: an error in the end, and no signal.
        while two.send(&[IoSlice::new(&bytes)]).is_ok() {}
    }
}

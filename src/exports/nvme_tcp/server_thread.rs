//! One thread of a server: reads sockets, feeds the machines and the target's worker, sends what they answer.

use super::link::{Buffers, Link, Seat};
use super::shared::ServerShared;
use super::shares::HostName;
use crate::block::{Buf, Error, Kind, Result};
use crate::net::Stream;
use crate::nvme::Status;
use crate::nvme::tcp::controller::{Connection, QueueFacts};
use crate::nvmet::{Answer, ConnectionId, Worker};
use crate::reactor::local::sleep;
use crate::reactor::{IoDone, IoOp, Port, Reactor};
use crate::workers::{Started, Workbench};
use rustix::net::sockopt;
use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Longest time between two checks of the timers on a thread with connections.
const TICK: Duration = Duration::from_millis(500);
/// How long a server that stops waits for what is in flight.
const GRACE: Duration = Duration::from_secs(5);
/// How long a connection may take until its Connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// How long a host may keep more buffers than its share, taking and sending next to nothing of what it owes, while
/// another waits for one of its own share.
const STALL_PATIENCE: Duration = Duration::from_secs(10);
/// Rest of a listener after an error, and least time between two messages about one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// When the kernel probes an idle connection: silence until the first probe, time between probes, and how long what was
/// sent may stay unacknowledged. Hosts with a keep-alive of their own are missed sooner.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const SILENCE_MAX_MS: u32 = 60_000;

struct ServerThread {
    shared: Arc<ServerShared>,
    index: usize,
    reactor: Rc<dyn Reactor>,
    port: Port,
    worker: Worker,
    buffers: Buffers,
    listeners: Vec<Listening>,
    /// Places of their own: a link may outlive its connection of the worker, whose index is then another's.
    links: Vec<Option<Link>>,
    /// For each index of the worker, the place of the link that had it last.
    places: Vec<usize>,
    live: usize,
    serial: u32,
    next_inbox: usize,
    stopping: bool,
    /// When stalled connections are checked next.
    check_at: Duration,
    /// When the worker's next time-out may be due.
    deadline: Option<Duration>,
    /// The last turn.
    turned: Duration,
    /// The task that keeps time, while there is nothing to keep it for.
    clock: Option<Waker>,
    /// When a failed accept was last reported.
    reported: Option<Duration>,
    ready: Vec<IoDone>,
    answers: Vec<Answer>,
    lost: Vec<ConnectionId>,
    back: Vec<Buf>,
}

struct Listening {
    listener: TcpListener,
    file: Arc<OwnedFd>,
    watched: bool,
    /// Not asked again before that.
    rests_until: Duration,
}

/// Token of the readiness of listener `n`: `LISTENER + n`. Others are `serial << 32 | place << 1 | write`.
const LISTENER: u64 = 1 << 63;

/// Runs until the server stops. `started` is used when connections can be taken.
pub(super) fn run(
    shared: &Arc<ServerShared>,
    index: usize,
    listeners: Vec<TcpListener>,
    started: Started,
) -> Result<()> {
    let Workbench { local, locks, reactor, .. } = Workbench::new(shared.options.engine, false)?;
    let waker = local.waker();
    let no_memory = || Error::new(Kind::NoMemory, "no memory for the payload of a thread");
    let buffers = Buffers::new(&shared.memory.payload).ok_or_else(no_memory)?;
    let mut worker = Worker::new(shared.target.clone(), locks, waker.clone());
    worker.bound_copies(shared.memory.copies, shared.memory.copy_bytes);
    if let Some(on_copy) = shared.options.on_copy.clone() {
        worker.on_copy(move |line| on_copy(line));
    }
    let mut listening = Vec::new();
    for listener in listeners {
        let file = listener.try_clone().map_err(|e| Error::os("a listener cannot be watched", e))?;
        listening.push(Listening {
            listener,
            file: Arc::new(file.into()),
            watched: false,
            rests_until: Duration::ZERO,
        });
    }
    let thread = ServerThread {
        shared: shared.clone(),
        index,
        port: reactor.open_port(),
        reactor,
        worker,
        buffers,
        listeners: listening,
        links: Vec::new(),
        places: Vec::new(),
        live: 0,
        serial: 0,
        next_inbox: 0,
        stopping: false,
        check_at: Duration::ZERO,
        deadline: None,
        turned: Duration::ZERO,
        clock: None,
        reported: None,
        ready: Vec::new(),
        answers: Vec::new(),
        lost: Vec::new(),
        back: Vec::new(),
    };
    shared.inboxes[index].open(waker);
    let thread = Rc::new(RefCell::new(thread));
    let turning = thread.clone();
    local.on_turn(move || turning.borrow_mut().turn());
    started.ready();
    let stop = shared.stop.clone();
    local.block_on(async {
        let ticking = thread.clone();
        let _clock = crate::reactor::local::spawn(async move {
            loop {
                let at = poll_fn(|cx| ticking.borrow_mut().next_check(cx.waker())).await;
                if ticking.borrow().stopping {
                    return;
                }
                // At least a moment: the turn that checks comes between.
                let time = at.saturating_sub(crate::reactor::local::now()).max(Duration::from_millis(1));
                sleep(time).await;
            }
        });
        stop.wait().await;
        thread.borrow_mut().begin_stop();
        let end = crate::reactor::local::now() + GRACE;
        while crate::reactor::local::now() < end && !thread.borrow().is_drained() {
            sleep(Duration::from_millis(2)).await;
        }
        thread.borrow_mut().close_all();
        while crate::reactor::local::now() < end && !thread.borrow().worker.is_idle() {
            sleep(Duration::from_millis(2)).await;
        }
    });
    Ok(())
}

/// The link of a connection that the worker still has.
fn link_of<'a>(links: &'a mut [Option<Link>], places: &[usize], id: ConnectionId) -> Option<&'a mut Link> {
    let link = links.get_mut(*places.get(id.index())?)?.as_mut()?;
    (link.id == id && !link.left).then_some(link)
}

/// Has the kernel notice a host that is gone without a word.
fn watch_over(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_user_timeout(stream, SILENCE_MAX_MS)
}

impl ServerThread {
    /// True when it got anything done, or spins.
    fn turn(&mut self) -> bool {
        let now = self.reactor.now();
        // A gap that no sleep explains: this thread did not run, and has read nothing of what its hosts sent meanwhile.
        let gap = now.saturating_sub(self.turned);
        let was_paused = self.live > 0 && gap > 2 * TICK;
        self.turned = now;
        self.worker.set_time(now);
        let mut busy = self.poll_reactor(now);
        busy |= self.open_dealt();
        // Pending input is read before anything expires.
        let expires = now >= self.check_at || self.deadline.is_some_and(|at| now >= at);
        if !self.stopping {
            for link in self.links.iter_mut().flatten() {
                busy |= link.read(&mut self.worker, &mut self.buffers, now, expires || was_paused);
            }
        }
        if was_paused {
            self.worker.restart_timers();
            self.links.iter_mut().flatten().for_each(|link| link.stood_still(gap));
            busy = true;
        }
        // After a pause too: a thread that stands still again and again would expire nothing.
        self.deadline = self.worker.tick(now, &mut self.lost);
        for id in self.lost.drain(..) {
            if let Some(link) = link_of(&mut self.links, &self.places, id) {
                link.over = true;
            }
        }
        if now >= self.check_at {
            self.check_at = now + TICK;
            self.close_stalled(now);
        }
        busy |= self.buffers.hand_out(&mut self.links, &mut self.worker, now);
        busy |= self.answer();
        for place in 0..self.links.len() {
            busy |= self.finish_turn(place, now);
        }
        // Those that came back meanwhile, of connections that are gone too.
        busy | self.buffers.hand_out(&mut self.links, &mut self.worker, now)
    }

    /// When a turn is to check the timers next; without a connection never, until `waker` is woken.
    fn next_check(&mut self, waker: &Waker) -> Poll<Duration> {
        let resting = self.listeners.iter().filter(|l| !l.watched).map(|l| l.rests_until).min();
        let check = (self.live > 0).then_some(self.check_at);
        match [check, self.deadline.filter(|_| self.live > 0), resting].into_iter().flatten().min() {
            Some(at) => Poll::Ready(at),
            None => {
                self.clock = Some(waker.clone());
                Poll::Pending
            }
        }
    }

    /// Closes connections that never become a queue; and, when a host cannot have its share, stalled ones of hosts that
    /// have more than theirs.
    fn close_stalled(&mut self, now: Duration) {
        let shares = &self.buffers.shares;
        let is_short = self.links.iter().flatten().any(|l| l.is_starved(now, STALL_PATIENCE, shares));
        for link in self.links.iter_mut().flatten() {
            if !link.announced && !link.connects && now.saturating_sub(link.opened) >= CONNECT_PATIENCE {
                tracing::warn!(peer = %link.peer, "no Connect in {CONNECT_PATIENCE:?}; the connection is closed");
                link.over = true;
            }
            // Asked each time: progress is counted from one time to the next.
            let stalled = link.is_stalled(now, STALL_PATIENCE);
            if is_short && stalled && shares.is_beyond_share(link.host) {
                tracing::warn!(peer = %link.peer, "stalled for {STALL_PATIENCE:?} with buffers that another host waits for; the connection is closed");
                link.over = true;
            }
        }
    }

    fn poll_reactor(&mut self, now: Duration) -> bool {
        let mut ready = std::mem::take(&mut self.ready);
        self.reactor.complete(self.port, &mut ready);
        let busy = !ready.is_empty();
        for done in ready.drain(..) {
            if done.token >= LISTENER {
                self.accept(usize::try_from(done.token - LISTENER).unwrap_or(usize::MAX), now);
                continue;
            }
            let (serial, place, write) = (done.token >> 32, done.token >> 1 & 0x7fff_ffff, done.token & 1);
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            let link = self.links.get_mut(place).and_then(Option::as_mut);
            if let Some(link) = link.filter(|l| u64::from(l.serial) == serial) {
                link.watched[usize::from(write == 1)] = false;
                if write == 1 {
                    link.full = false;
                } else {
                    link.readable = true;
                }
            }
        }
        self.ready = ready;
        for (n, listening) in self.listeners.iter_mut().enumerate().filter(|_| !self.stopping) {
            if now >= listening.rests_until && !std::mem::replace(&mut listening.watched, true) {
                let op = IoOp::Ready { file: listening.file.clone(), write: false };
                self.reactor.submit(self.port, LISTENER + n as u64, op);
            }
        }
        busy
    }

    fn accept(&mut self, n: usize, now: Duration) {
        let Some(listening) = self.listeners.get_mut(n) else { return };
        listening.watched = false;
        while !self.stopping {
            match listening.listener.accept() {
                Ok((stream, peer)) => {
                    let inboxes = &self.shared.inboxes;
                    inboxes[self.next_inbox % inboxes.len()].send((stream, peer));
                    self.next_inbox += 1;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of descriptors, say: the connection stays in line, and the listener is ready all the time.
                    listening.rests_until = now + ACCEPT_PAUSE;
                    if self.reported.is_none_or(|at| now >= at + REPORT_EVERY) {
                        self.reported = Some(now);
                        tracing::warn!(%error, "connections cannot be accepted");
                    }
                    if let Some(clock) = self.clock.take() {
                        clock.wake();
                    }
                    return;
                }
            }
        }
    }

    fn open_dealt(&mut self) -> bool {
        let mut busy = false;
        while let Some((stream, peer)) = self.shared.inboxes[self.index].take(|_| true) {
            busy = true;
            if let Err(error) = self.open(stream, peer) {
                tracing::warn!(%peer, %error, "the new connection is closed");
            }
        }
        busy
    }

    fn open(&mut self, stream: TcpStream, peer: SocketAddr) -> Result<()> {
        let most = self.shared.memory.connections;
        if self.stopping || self.live >= most {
            let text = format!(
                "{} connections are open, as many as the memory of a thread is for ({most})",
                self.live
            );
            return Err(Error::new(Kind::InUse, text));
        }
        let cannot = |e| Error::os("the socket cannot be set up", e);
        watch_over(&stream).map_err(|e| cannot(e.into()))?;
        let local = stream.local_addr().map_err(cannot)?;
        let stream = Stream::new(stream).map_err(cannot)?;
        let machine = Connection::new(&self.shared.machine)
            .ok_or_else(|| Error::new(Kind::NoMemory, "no memory for another connection"))?;
        let id = self
            .worker
            .open(local)
            .ok_or_else(|| Error::new(Kind::InUse, "closed connections still have commands in progress"))?;
        self.serial = self.serial.wrapping_add(1) & 0x7fff_ffff;
        let place = self.links.iter().position(Option::is_none).unwrap_or(self.links.len());
        if place == self.links.len() {
            self.links.push(None);
        }
        let seat = Seat { serial: self.serial, place, member: self.buffers.shares.enter() };
        let link = Link::new(id, seat, peer, stream, machine, self.reactor.now());
        self.links[place] = Some(link);
        self.places.resize(self.places.len().max(id.index() + 1), usize::MAX);
        self.places[id.index()] = place;
        self.live += 1;
        if let Some(clock) = self.clock.take() {
            clock.wake();
        }
        tracing::debug!(%peer, "connected");
        Ok(())
    }

    fn answer(&mut self) -> bool {
        let mut answers = std::mem::take(&mut self.answers);
        let busy = self.worker.poll(&mut answers) || !answers.is_empty();
        for Answer { id, mut cqe, data } in answers.drain(..) {
            let Some(link) = link_of(&mut self.links, &self.places, id.connection) else { continue };
            if !link.announced {
                let queue = self.worker.queue(id.connection);
                if queue.entries() > 0 {
                    link.announced = true;
                    let facts = QueueFacts {
                        entries: u16::try_from(queue.entries()).expect("4096 at most"),
                        admin: queue.id() == Some(0),
                        flow_control: queue.flow_control(),
                    };
                    link.machine.connected(facts);
                    let controller = queue.controller().filter(|controller| !controller.is_discovery());
                    let host = controller
                        .map(|c| HostName { nqn: c.host_nqn().as_str().to_owned(), id: c.host_id() });
                    if host.is_some_and(|host| !link.belongs_to(&host, &mut self.buffers)) {
                        tracing::warn!(peer = %link.peer, "no memory for the share of another host; give more");
                        cqe.status = Status::CONNECT_CONTROLLER_BUSY.retryable();
                        link.parting = true;
                    }
                }
            }
            link.complete(id.slot, cqe, data);
        }
        self.answers = answers;
        busy
    }

    /// Sends, closes, or puts a link to sleep. True when it got anything done, or spins.
    fn finish_turn(&mut self, place: usize, now: Duration) -> bool {
        let Some(link) = self.links.get_mut(place).and_then(Option::as_mut) else { return false };
        let busy = link.send(&mut self.back, now);
        self.back.clear();
        link.over |= link.parting && link.machine.output().is_empty();
        // What was sent or answered may let the machine go on with what it has read.
        link.take_events(&mut self.worker, &mut self.buffers, now);
        link.machine.tick(now);
        if (link.machine.is_closing() || link.over) && !std::mem::replace(&mut link.left, true) {
            link.wants.clear();
            self.worker.disconnect(link.id);
        }
        if link.over || link.machine.is_over() {
            self.close(place);
            return true;
        }
        let spins = now.saturating_sub(link.last) < self.shared.options.spin;
        if busy || spins {
            return true;
        }
        for write in [false, true] {
            let wanted = if write { link.full } else { !link.machine_is_full() && !self.stopping };
            if wanted && !std::mem::replace(&mut link.watched[usize::from(write)], true) {
                if !write {
                    link.readable = false;
                }
                let token = u64::from(link.serial) << 32 | (place as u64) << 1 | u64::from(write);
                let op = IoOp::Ready { file: link.stream.socket().clone(), write };
                self.reactor.submit(self.port, token, op);
            }
        }
        false
    }

    fn close(&mut self, place: usize) {
        let Some(link) = self.links.get_mut(place).and_then(Option::take) else { return };
        self.buffers.shares.leave(link.member, place);
        self.live -= 1;
        if !link.left {
            self.worker.disconnect(link.id);
        }
        tracing::debug!(peer = %link.peer, "disconnected");
        // Its stream is ended with it, and thereby what the reactor still waits for on that.
    }

    fn begin_stop(&mut self) {
        self.stopping = true;
        self.listeners.clear();
        self.shared.inboxes[self.index].close();
    }

    /// True when nothing is in flight and everything has been sent.
    fn is_drained(&self) -> bool {
        self.worker.is_idle()
            && self.links.iter().flatten().all(|l| l.machine.output().is_empty() && l.wants.is_empty())
    }

    fn close_all(&mut self) {
        for place in 0..self.links.len() {
            self.close(place);
        }
    }
}

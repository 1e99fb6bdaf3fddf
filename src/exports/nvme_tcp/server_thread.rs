//! One thread of a server: reads sockets, feeds the machines and the target's worker, sends what they answer.

use super::link::{Buffers, Link, Seat};
use super::places::{Claim, HANDSHAKE_TIME, Places, Reason};
use super::shared::ServerShared;
use super::shares::HostName;
use crate::block::{Buf, Error, Kind, Result};
use crate::net::Stream;
use crate::nvme::Status;
use crate::nvme::tcp::controller::{Connection, QueueFacts};
use crate::nvmet::{Answer, ConnectionId, Standing, Worker};
use crate::reactor::local::sleep;
use crate::reactor::{IoDone, IoOp, Port, Reactor};
use crate::workers::{Started, Workbench};
use rustix::net::sockopt;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
/// Its rest when a connection is closed to make room: until the descriptor is free.
const ROOM_PAUSE: Duration = Duration::from_millis(5);
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// When the kernel probes an idle connection: silence until the first probe, time between probes, and how long what was
/// sent may stay unacknowledged. Hosts with a keep-alive of their own are missed sooner.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const SILENCE_MAX_MS: u32 = 60_000;
/// Connections that are accepted, opened and closed in one turn, so that storms of them do not hold up I/O.
const ACCEPTS_A_TURN: usize = 4;
const OPENS_A_TURN: usize = 4;
const CLOSES_A_TURN: usize = 16;
/// Connections that may be on their way to a thread beyond what it has places for.
const DEALT_MAX: usize = 64;

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
    place_of: Vec<usize>,
    /// Places without a link.
    free: Vec<usize>,
    /// Places of links with something to do, each once: the others cost a turn nothing.
    active: Vec<usize>,
    /// Who has the places.
    places: Places,
    /// When silence ends connections, with their places.
    timers: BTreeSet<(Duration, usize)>,
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

/// What becomes of a link at the end of a turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It has something to do in the next turn, or spins.
    Stay,
    /// It waits for its host, for the worker, or for a buffer.
    Sleep,
    /// It is to be closed.
    Close,
}

struct Listening {
    listener: TcpListener,
    file: Arc<OwnedFd>,
    watched: bool,
    /// There may be connections to accept.
    has_some: bool,
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
    worker.limit_connections(shared.places);
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
            has_some: false,
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
        place_of: Vec::new(),
        free: Vec::new(),
        active: Vec::new(),
        places: Places::new(shared.places),
        timers: BTreeSet::new(),
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
        busy |= self.accept(now);
        busy |= self.open_dealt();
        if !self.stopping {
            for &place in &self.active {
                if let Some(link) = self.links[place].as_mut() {
                    busy |= link.read(&mut self.worker, &mut self.buffers, now, false);
                }
            }
        }
        if was_paused {
            (0..self.links.len()).for_each(|place| busy |= self.hear(place, now));
            self.worker.restart_timers();
            self.links.iter_mut().flatten().for_each(|link| link.stood_still(gap));
            busy = true;
        }
        // After a pause too: a thread that stands still again and again would expire nothing.
        self.check_worker(now);
        if now >= self.check_at {
            self.check_at = now + TICK;
            self.check_timers(now);
            self.close_stalled(now);
        }
        busy |= self.hand_out(now);
        busy |= self.answer(now);
        busy |= self.finish_turn(now);
        // Those that came back meanwhile, of connections that are gone too.
        busy | self.hand_out(now)
    }

    /// The link at this place has something to do, this turn or the next.
    fn list(&mut self, place: usize) {
        if let Some(link) = self.links.get_mut(place).and_then(Option::as_mut)
            && !std::mem::replace(&mut link.is_listed, true)
        {
            self.active.push(place);
        }
    }

    /// Reads what a link's host has sent, also where nothing says that there is any: before it is judged.
    fn hear(&mut self, place: usize, now: Duration) -> bool {
        let Some(link) = self.links.get_mut(place).and_then(Option::as_mut) else { return false };
        let heard = !self.stopping && link.read(&mut self.worker, &mut self.buffers, now, true);
        if heard {
            self.list(place);
        }
        heard
    }

    /// Has the worker check its time-outs. What its hosts have sent is read before they expire.
    fn check_worker(&mut self, now: Duration) {
        let mut ids = std::mem::take(&mut self.lost);
        self.worker.overdue(now, &mut ids);
        for id in ids.drain(..) {
            if let Some(&place) = self.place_of.get(id.index()) {
                self.hear(place, now);
            }
        }
        self.deadline = self.worker.tick(now, &mut ids);
        for id in ids.drain(..) {
            if let Some(link) = link_of(&mut self.links, &self.place_of, id) {
                link.over = true;
                let place = link.place();
                self.list(place);
            }
        }
        self.lost = ids;
    }

    /// Lists the links whose time to open or to close is over: the end of the turn closes them.
    fn check_timers(&mut self, now: Duration) {
        while let Some(&(at, place)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            self.hear(place, now);
            if let Some(link) = self.links.get_mut(place).and_then(Option::as_mut) {
                link.timer = None;
                self.list(place);
            }
        }
    }

    fn hand_out(&mut self, now: Duration) -> bool {
        let any = self.buffers.hand_out(&mut self.links, &mut self.worker, now);
        while let Some(place) = self.buffers.served.pop() {
            self.list(place);
        }
        any
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

    /// When a host cannot have its share, closes stalled connections of hosts that have more than theirs.
    fn close_stalled(&mut self, now: Duration) {
        let shares = &self.buffers.shares;
        let is_short = self.links.iter().flatten().any(|l| l.is_starved(now, STALL_PATIENCE, shares));
        // Asked each time: progress is counted from one time to the next.
        let stalled: Vec<usize> = (0..self.links.len())
            .filter(|&place| self.links[place].as_mut().is_some_and(|l| l.is_stalled(now, STALL_PATIENCE)))
            .collect();
        for place in stalled.into_iter().filter(|_| is_short) {
            self.hear(place, now);
            let shares = &self.buffers.shares;
            let Some(link) = self.links[place].as_mut() else { continue };
            if link.is_stalled(now, STALL_PATIENCE) && shares.is_beyond_share(link.host) {
                tracing::warn!(peer = %link.peer, "stalled for {STALL_PATIENCE:?} with buffers that another host waits for; the connection is closed");
                link.over = true;
                self.list(place);
            }
        }
    }

    fn poll_reactor(&mut self, now: Duration) -> bool {
        let mut ready = std::mem::take(&mut self.ready);
        self.reactor.complete(self.port, &mut ready);
        let busy = !ready.is_empty();
        for done in ready.drain(..) {
            if done.token >= LISTENER {
                let n = usize::try_from(done.token - LISTENER).unwrap_or(usize::MAX);
                if let Some(listening) = self.listeners.get_mut(n) {
                    (listening.watched, listening.has_some) = (false, true);
                }
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
                self.list(place);
            }
        }
        self.ready = ready;
        for (n, listening) in self.listeners.iter_mut().enumerate().filter(|_| !self.stopping) {
            let asks = !listening.has_some && now >= listening.rests_until;
            if asks && !std::mem::replace(&mut listening.watched, true) {
                let op = IoOp::Ready { file: listening.file.clone(), write: false };
                self.reactor.submit(self.port, LISTENER + n as u64, op);
            }
        }
        busy
    }

    /// Accepts a few of the connections that wait, and deals them to the threads. True when there may be more.
    fn accept(&mut self, now: Duration) -> bool {
        let mut left = ACCEPTS_A_TURN;
        let mut listeners = std::mem::take(&mut self.listeners);
        for listening in listeners.iter_mut().filter(|l| l.has_some && now >= l.rests_until) {
            while left > 0 && listening.has_some {
                match listening.listener.accept() {
                    Ok(dealt) => {
                        left -= 1;
                        if !self.deal(dealt) {
                            listening.rests_until = now + ACCEPT_PAUSE;
                            break;
                        }
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        listening.has_some = false
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        // Out of descriptors, say: the connection stays in line, and gets that of another.
                        let pause = if self.make_room(now) { ROOM_PAUSE } else { ACCEPT_PAUSE };
                        listening.rests_until = now + pause;
                        if self.reported.is_none_or(|at| now >= at + REPORT_EVERY) {
                            self.reported = Some(now);
                            tracing::warn!(%error, "connections cannot be accepted");
                        }
                        if let Some(clock) = self.clock.take() {
                            clock.wake();
                        }
                        break;
                    }
                }
            }
        }
        self.listeners = listeners;
        self.listeners.iter().any(|l| l.has_some && now >= l.rests_until)
    }

    /// Gives a connection to the thread with the fewest. False: that thread has as many waiting as it may.
    fn deal(&mut self, dealt: (TcpStream, SocketAddr)) -> bool {
        let counts = &self.shared.counts;
        let after = (0..counts.len()).map(|n| (self.next_inbox + n) % counts.len());
        let Some(index) = after.min_by_key(|&n| counts[n].load(Ordering::Relaxed)) else { return true };
        let before = counts[index].fetch_add(1, Ordering::Relaxed);
        self.next_inbox = index + 1;
        if !self.shared.inboxes[index].send(dealt) {
            counts[index].fetch_sub(1, Ordering::Relaxed);
        }
        before < self.shared.places + DEALT_MAX
    }

    /// Opens a few of the connections dealt to this thread.
    fn open_dealt(&mut self) -> bool {
        let mut left = OPENS_A_TURN;
        while left > 0
            && let Some((stream, peer)) = self.shared.inboxes[self.index].take(|_| true)
        {
            left -= 1;
            if let Err(error) = self.open(stream, peer) {
                self.shared.counts[self.index].fetch_sub(1, Ordering::Relaxed);
                tracing::warn!(%peer, %error, "the new connection is closed");
            }
        }
        left < OPENS_A_TURN
    }

    /// Closes the connection whose place is needed most, where one has to yield: it goes at the end of this turn.
    fn make_room(&mut self, now: Duration) -> bool {
        let links = &self.links;
        let heard = |place: usize| links[place].as_ref().map_or(Duration::ZERO, |link| link.last);
        let Some((place, reason)) = self.places.yield_one(now, heard) else { return false };
        let max = self.places.max();
        if let Some(link) = self.links[place].as_mut() {
            link.over = true;
            let peer = link.peer;
            match reason {
                Reason::Slow => {
                    tracing::warn!(%peer, "no Connect in {HANDSHAKE_TIME:?}, and all {max} places are taken; the connection is closed");
                }
                Reason::OneOfMany => {
                    tracing::warn!(%peer, "no Connect yet, and all {max} places are taken; the connection is closed");
                }
                Reason::Discovery => {
                    tracing::warn!(%peer, "a silent discovery controller, and all {max} places are taken; the connection is closed");
                }
            }
        }
        self.list(place);
        true
    }

    fn open(&mut self, stream: TcpStream, peer: SocketAddr) -> Result<()> {
        let now = self.reactor.now();
        if self.stopping || self.places.is_full() && !self.make_room(now) {
            let (taken, max) = (self.places.taken(), self.places.max());
            let text = format!("{taken} connections are open, the most allowed ({max})");
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
        let place = self.free.pop().unwrap_or(self.links.len());
        if place == self.links.len() {
            self.links.push(None);
        }
        let seat = Seat { serial: self.serial, place, member: self.buffers.shares.enter() };
        self.links[place] = Some(Link::new(id, seat, peer, stream, machine, now));
        self.place_of.resize(self.place_of.len().max(id.index() + 1), usize::MAX);
        self.place_of[id.index()] = place;
        self.places.hold(place, Claim::Opening, now);
        self.live += 1;
        self.list(place);
        if let Some(clock) = self.clock.take() {
            clock.wake();
        }
        tracing::debug!(%peer, "connected");
        Ok(())
    }

    fn answer(&mut self, now: Duration) -> bool {
        let mut answers = std::mem::take(&mut self.answers);
        let busy = self.worker.poll(&mut answers) || !answers.is_empty();
        for Answer { id, mut cqe, data } in answers.drain(..) {
            let Some(link) = link_of(&mut self.links, &self.place_of, id.connection) else { continue };
            if !link.announced {
                let queue = self.worker.queue(id.connection);
                if queue.entries() > 0 {
                    link.announced = true;
                    let claim = match queue.standing() {
                        Some(Standing::Discovery) => Claim::Discovery,
                        Some(Standing::Stranger) => Claim::Stranger,
                        Some(Standing::Host) | None => Claim::Host,
                    };
                    self.places.hold(link.place(), claim, now);
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
            let place = link.place();
            self.list(place);
        }
        self.answers = answers;
        busy
    }

    /// Sends, closes, or puts to sleep the links with something to do. True when any got something done, or spins.
    fn finish_turn(&mut self, now: Duration) -> bool {
        let mut active = std::mem::take(&mut self.active);
        if !active.is_empty() {
            self.shared.walked.fetch_add(active.len() as u64, Ordering::Relaxed);
        }
        let (mut busy, mut closes) = (false, 0);
        active.retain(|&place| {
            let next = self.finish_link(place, now);
            busy |= next != Next::Sleep;
            if next == Next::Close && closes < CLOSES_A_TURN {
                closes += 1;
                self.close(place);
                return false;
            }
            if next == Next::Sleep
                && let Some(link) = self.links[place].as_mut()
            {
                link.is_listed = false;
            }
            next != Next::Sleep
        });
        // None was listed meanwhile: that is only done for what comes from outside.
        self.active = active;
        busy
    }

    fn finish_link(&mut self, place: usize, now: Duration) -> Next {
        let Some(link) = self.links.get_mut(place).and_then(Option::as_mut) else { return Next::Sleep };
        let busy = link.send(&mut self.back, now);
        self.back.clear();
        link.over |= link.parting && link.machine.output().is_empty();
        // What was sent or answered may let the machine go on with what it has read.
        link.take_events(&mut self.worker, &mut self.buffers, now);
        link.machine.tick(now);
        if !link.announced
            && !link.connects
            && now.saturating_sub(link.opened) >= CONNECT_PATIENCE
            && !link.over
        {
            tracing::warn!(peer = %link.peer, "no Connect in {CONNECT_PATIENCE:?}; the connection is closed");
            link.over = true;
        }
        if (link.machine.is_closing() || link.over) && !std::mem::replace(&mut link.left, true) {
            link.wants.clear();
            self.worker.disconnect(link.id);
        }
        if link.over || link.machine.is_over() {
            return Next::Close;
        }
        let spins = now.saturating_sub(link.last) < self.shared.options.spin;
        if busy || spins {
            return Next::Stay;
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
        // Only a link without a queue, or one that ends, has a time.
        if (!link.announced || link.left)
            && let Some(at) = link.time_limit(CONNECT_PATIENCE)
            && link.timer.is_none_or(|timer| at < timer)
        {
            if let Some(before) = link.timer.replace(at) {
                self.timers.remove(&(before, place));
            }
            self.timers.insert((at, place));
        }
        Next::Sleep
    }

    fn close(&mut self, place: usize) {
        let Some(link) = self.links.get_mut(place).and_then(Option::take) else { return };
        self.buffers.shares.leave(link.member, place);
        self.places.leave(place);
        if let Some(at) = link.timer {
            self.timers.remove(&(at, place));
        }
        self.free.push(place);
        self.live -= 1;
        self.shared.counts[self.index].fetch_sub(1, Ordering::Relaxed);
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
        self.active.clear();
        for place in 0..self.links.len() {
            self.close(place);
        }
    }
}

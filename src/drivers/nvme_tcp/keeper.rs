//! The thread of a controller: it owns the admin queue, sends keep-alives, counts the time of commands, and when the
//! association is lost it makes another one and hands every queue its new connection. It goes on trying for as long as
//! somebody uses a namespace.

use super::Why;
use super::admin::{self, Admin, Asking, Purpose};
use super::admin::{SLOT_ASK, SLOT_EVENT, SLOT_KEEP_ALIVE};
use super::channel::Channel;
use super::controller::{GOODBYE, Phase, SCANS, Shared};
use super::device::Namespace;
use super::link::{Answer, Received, broken, buf_of, left, timespec};
use super::wire::{Fresh, Wire};
use crate::block::device::LOSSES_MAX;
use crate::block::{Kind, Result};
use crate::nvme::feature::AsyncEvent;
use crate::nvme::tcp::host::{Data, Event};
use crate::nvme::{AdminCommand, Cqe};
use crate::sys::sync::lock;
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Pauses between attempts to connect again: the first, doubled up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// The pause once requests fail: the target may be away for hours.
const PAUSE_AWAY: Duration = Duration::from_secs(2);

/// How serving an association ended.
enum End {
    Closing,
    Lost(Why),
}

/// The thread.
pub(super) fn run(shared: &Shared) {
    let deadline = Instant::now() + shared.options.connect_timeout;
    let first = Admin::attach(&shared.peer, &shared.options, Purpose::Io, deadline);
    let mut thread = match first {
        Ok(admin) => Thread { shared, admin, unquiet: None, quiet: 0 },
        Err(error) => return shared.die(&Why::of(&error)),
    };
    thread.up(Vec::new());
    loop {
        match thread.serve() {
            End::Closing => {
                let _ = thread.admin.shut_down(Instant::now() + GOODBYE);
                return;
            }
            End::Lost(why) => {
                tracing::warn!(address = %shared.peer.address, "the connection is lost: {why}; connecting again");
                if let Err(why) = thread.recover(&why) {
                    // Nobody uses it any more.
                    tracing::debug!(address = %shared.peer.address, "{why}");
                    return;
                }
            }
        }
    }
}

/// What the thread knows by itself.
struct Thread<'a> {
    shared: &'a Shared,
    admin: Admin,
    /// When the last association is sure to execute nothing any more.
    unquiet: Option<Instant>,
    /// Associations up to this one execute nothing any more.
    quiet: u64,
}

/// What waits for an answer while an association is served.
struct Pending {
    question: Option<(SyncSender<Result<Answer>>, Instant)>,
    keep_alive_sent: Option<Instant>,
    next_beat: Instant,
    event_asked: bool,
    events: Vec<AsyncEvent>,
    lost: Option<Why>,
}

impl Thread<'_> {
    fn association(&self) -> u64 {
        lock(&self.shared.state).association
    }

    /// The association in `admin` is in force; its queues get their connections.
    fn up(&mut self, links: Vec<(Arc<Wire>, Arc<Channel>)>) {
        let mut state = lock(&self.shared.state);
        state.association += 1;
        let association = state.association;
        let facts = self.admin.facts.clone();
        state.facts = Some(facts.clone());
        state.lost = None;
        state.phase = Phase::Up;
        for (wire, channel) in links {
            let quiet = self.quiet;
            wire.post(|mail| {
                mail.fresh = Some(Fresh { channel, facts: facts.clone(), association });
                mail.quiet = quiet;
                mail.away = None;
            });
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Serves until the association is lost or nobody wants it any more.
    fn serve(&mut self) -> End {
        let options = &self.shared.options;
        let association = self.association();
        let quarter = options.command_timeout / SCANS;
        let start = Instant::now();
        let mut next_scan = start + quarter;
        // The first keep-alive at once: attaching took its part of the time-out.
        let mut pending = Pending::new(start);
        loop {
            {
                let mut state = lock(&self.shared.state);
                if state.closing {
                    return End::Closing;
                }
                if let Some((_, why)) = state.lost.take_if(|(number, _)| *number == association) {
                    return End::Lost(why);
                }
                if pending.question.is_none()
                    && let Some(question) = state.questions.pop_front()
                {
                    self.admin.link.machine().submit(SLOT_ASK, question.sqe, question.data);
                    pending.question = Some((question.answer, Instant::now() + options.command_timeout));
                }
            }
            for (slot, cqe) in std::mem::take(&mut self.admin.strays) {
                pending.done(slot, cqe, Data::None, 0);
            }
            let now = Instant::now();
            if self.unquiet.is_some_and(|at| at <= now) {
                self.unquiet = None;
                self.set_quiet(association - 1);
            }
            if next_scan <= now {
                next_scan = now + quarter;
                for wire in self.shared.wires() {
                    wire.count_scan();
                }
            }
            if let Some(at) = pending.question.as_ref().map(|(_, at)| *at)
                && at <= now
            {
                return End::Lost(Why::new(format!(
                    "an admin command was not answered within {:?}",
                    options.command_timeout
                )));
            }
            let timeout = self.admin.keep_alive;
            if pending.keep_alive_sent.is_some_and(|sent| now >= sent + timeout) {
                return End::Lost(Why::new(format!("a keep-alive was not answered within {timeout:?}")));
            }
            pending.beat(&mut self.admin, now);
            if !pending.event_asked && self.admin.facts.identify.oaes != 0 && pending.events.is_empty() {
                let sqe = AdminCommand::AsyncEventRequest.to_sqe();
                self.admin.link.machine().submit(SLOT_EVENT, sqe, Data::None);
                pending.event_asked = true;
            }
            if let Err(error) = self.pump(&mut pending) {
                return End::Lost(Why::of(&error));
            }
            if let Some(why) = pending.lost.take() {
                return End::Lost(why);
            }
            if pending.question.is_none() && !pending.events.is_empty() {
                if let Err(error) = self.heed(&mut pending) {
                    return End::Lost(Why::of(&error));
                }
                continue;
            }
            let ends = [
                Some(next_scan),
                Some(pending.next_beat),
                pending.keep_alive_sent.map(|sent| sent + timeout),
                pending.question.as_ref().map(|(_, at)| *at),
                self.unquiet,
            ];
            let alarm = self.shared.ring_alarms(now);
            let until = ends.into_iter().chain([alarm]).flatten().filter(|&at| at > now).min();
            let until = until.unwrap_or(next_scan);
            self.wait(until);
        }
    }

    /// Sends, receives, and takes what has ended.
    fn pump(&mut self, pending: &mut Pending) -> Result<()> {
        let link = &mut self.admin.link;
        loop {
            link.send()?;
            let received = link.receive()?;
            while let Some(event) = link.machine().next() {
                match event {
                    Event::Done { slot, cqe, data, received } => pending.done(slot, cqe, data, received),
                    Event::Broken(why) => return Err(broken(&why)),
                    Event::Ready { .. } => {}
                }
            }
            if matches!(received, Received::Nothing) {
                return Ok(());
            }
        }
    }

    /// Looks at what an event is about. Only one event request is out at a time, and it goes out again after this:
    /// events come no faster than they are heeded.
    fn heed(&mut self, pending: &mut Pending) -> Result<()> {
        for event in std::mem::take(&mut pending.events) {
            let deadline = self.before_questions(pending);
            let mut ask = self.admin.asking(deadline);
            if let Err(error) = admin::clear_event(&mut ask, event) {
                self.admin.link.check()?;
                tracing::info!(%error, "the log page of an event cannot be read");
            }
            if event == AsyncEvent::NAMESPACE_ATTRIBUTE {
                lock(&self.shared.state).looks += 1;
                for namespace in self.shared.namespaces() {
                    let deadline = self.before_questions(pending);
                    self.look_at(&namespace, deadline)?;
                }
            }
        }
        Ok(())
    }

    /// Sends a keep-alive, and says until when the questions up to the next call may take: long before it runs out.
    fn before_questions(&mut self, pending: &mut Pending) -> Instant {
        for (slot, cqe) in std::mem::take(&mut self.admin.strays) {
            pending.done(slot, cqe, Data::None, 0);
        }
        let now = Instant::now();
        pending.next_beat = now;
        pending.beat(&mut self.admin, now);
        now + self.admin.keep_alive / 2
    }

    /// Asks again what an open namespace is.
    fn look_at(&mut self, namespace: &Namespace, deadline: Instant) -> Result<()> {
        let Admin { link, facts, strays, .. } = &mut self.admin;
        let mut ask = Asking { link, strays, slot: SLOT_ASK, deadline };
        match admin::namespace(&mut ask, facts, namespace.nsid()) {
            Ok(now) => namespace.is_now(facts, &now),
            // Gone from the controller, or something else there now.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unsupported) => {
                namespace.is_gone(&Why::of(&error));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn wait(&mut self, until: Instant) {
        let interest = self.admin.link.interest();
        let socket = self.admin.link.socket().clone();
        let mut fds = [PollFd::new(&*socket, interest), PollFd::new(&self.shared.bell, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&timespec(left(until))));
        if !fds[1].revents().is_empty() {
            self.shared.silence();
        }
    }

    fn set_quiet(&mut self, association: u64) {
        self.quiet = association;
        for wire in self.shared.wires() {
            wire.post(|mail| mail.quiet = association);
        }
    }

    /// The association is lost: ends it as well as it can be ended, and makes another.
    fn recover(&mut self, why: &Why) -> Result<(), Why> {
        let shared = self.shared;
        let options = &shared.options;
        let lost = self.association();
        shared.set_phase(Phase::Down);
        {
            let mut state = lock(&shared.state);
            state.questions.clear();
            if state.losses.len() < LOSSES_MAX {
                state.losses.push(why.to_string());
            }
        }
        for wire in shared.wires() {
            wire.post(|mail| {
                mail.lost = lost;
                mail.fresh = None;
            });
        }
        let channels = std::mem::take(&mut lock(&shared.state).channels);
        channels.iter().filter_map(Weak::upgrade).for_each(|channel| channel.shut_down());
        // While the admin queue lives, a reset shows that the controller has kept what it was given. That nothing is
        // executed any more only time can tell.
        let reset = self.admin.disable(Instant::now() + options.connect_timeout.min(options.keep_alive));
        if let Err(error) = &reset {
            tracing::info!(%error, "the old association cannot be shut down cleanly");
            for namespace in shared.namespaces() {
                namespace.lost_association(lost, why);
            }
        }
        let at = Instant::now() + self.admin.grace();
        self.unquiet = Some(self.unquiet.map_or(at, |before| before.max(at)));
        let end = Instant::now() + options.reconnect_timeout;
        let mut away = false;
        let mut pause = PAUSE_FIRST;
        loop {
            if shared.is_closing() {
                return Err(Why::new("no queue and no namespace is in use any more".to_owned()));
            }
            // Copies that wait may have been cancelled.
            shared.wires().iter().for_each(|wire| wire.waker.wake());
            let error = match self.attach_again() {
                Ok(links) => {
                    tracing::info!(address = %shared.peer.address, "connected again");
                    self.up(links);
                    return Ok(());
                }
                Err(error) => error,
            };
            let now = Instant::now();
            if self.unquiet.is_some_and(|at| at <= now) {
                self.unquiet = None;
                self.set_quiet(lost);
            }
            if !away && left(end).is_zero() {
                away = true;
                shared.go_away(&Why::new(format!(
                    "the connection was lost ({why}) and could not be made again within {:?}: {}",
                    options.reconnect_timeout,
                    Why::of(&error)
                )));
            }
            let next = if away { now + PAUSE_AWAY } else { (now + pause).min(end) };
            while !left(next).is_zero() && !shared.is_closing() {
                shared.ring_alarms(Instant::now());
                shared.doze(next);
            }
            pause = (2 * pause).min(PAUSE_LONGEST);
        }
    }

    /// A new admin queue, the namespaces looked at, and a connection for every queue.
    fn attach_again(&mut self) -> Result<Vec<(Arc<Wire>, Arc<Channel>)>> {
        let shared = self.shared;
        let options = &shared.options;
        // The keep-alive of the new association runs from here: nobody serves it until all is done.
        let most = options.connect_timeout.min(options.keep_alive);
        let deadline = Instant::now() + most;
        self.admin = Admin::attach(&shared.peer, options, Purpose::Io, deadline)?;
        lock(&shared.state).looks += 1;
        for namespace in shared.namespaces() {
            self.look_at(&namespace, deadline)?;
        }
        let facts = &self.admin.facts;
        let wires: Vec<_> = shared.wires().into_iter().filter(|wire| !wire.is_dead()).collect();
        let mut channels = Vec::new();
        for (_, qid) in wires.iter().zip(1..=facts.queues) {
            let channel = Channel::new(qid);
            channel.open(admin::open_queue(&shared.peer, options, facts, qid, deadline)?, facts);
            channels.push(channel);
        }
        {
            let mut state = lock(&shared.state);
            state.last_qid = u16::try_from(channels.len()).unwrap_or(u16::MAX);
            state.channels = channels.iter().map(Arc::downgrade).collect();
        }
        // With fewer connections than before, queues share them.
        let pairs: Vec<_> = wires.into_iter().zip(channels.into_iter().cycle()).collect();
        pairs.iter().for_each(|(wire, channel)| channel.join(wire));
        Ok(pairs)
    }
}

impl Pending {
    fn new(now: Instant) -> Self {
        Self {
            question: None,
            keep_alive_sent: None,
            next_beat: now,
            event_asked: false,
            events: Vec::new(),
            lost: None,
        }
    }

    /// Puts a keep-alive into the output when one is due.
    fn beat(&mut self, admin: &mut Admin, now: Instant) {
        if self.keep_alive_sent.is_none() && now >= self.next_beat {
            admin.link.machine().submit(SLOT_KEEP_ALIVE, AdminCommand::KeepAlive.to_sqe(), Data::None);
            self.keep_alive_sent = Some(now);
            self.next_beat = now + admin.keep_alive / 2;
        }
    }

    fn done(&mut self, slot: u16, cqe: Cqe, data: Data, received: u32) {
        match slot {
            SLOT_ASK => {
                if let Some((answer, _)) = self.question.take() {
                    // Nobody there to hear it: the asker was dropped.
                    let _ = answer.send(Ok(Answer { cqe, buf: buf_of(data), received }));
                }
            }
            SLOT_KEEP_ALIVE => {
                self.keep_alive_sent = None;
                if !cqe.status.is_success() {
                    self.lost =
                        Some(Why::new(format!("the controller answered a keep-alive with {}", cqe.status)));
                }
            }
            // A controller that takes no event request is not asked again.
            _ if !cqe.status.is_success() => {}
            _ => {
                self.event_asked = false;
                self.events.push(AsyncEvent::from_dword(cqe.dword0()));
            }
        }
    }
}

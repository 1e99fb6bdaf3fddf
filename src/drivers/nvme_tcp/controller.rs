//! A controller as this process knows it: one association at a time, the queues and namespaces that live on it, and the
//! thread that keeps it alive (`keeper`). Queues never wait for that thread.

use super::admin::{self, Ask, Facts, NamespaceFacts, Peer};
use super::channel::Channel;
use super::device::Namespace;
use super::keeper;
use super::link::{Answer, left, timespec};
use super::wire::{Fresh, Wire};
use super::{Options, Why};
use crate::block::{Error, Kind, Result};
use crate::nvme::Sqe;
use crate::nvme::log::{CopyOutcomes, lid};
use crate::nvme::tcp::host::Data;
use crate::sys::sync::{held, lock};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Parts a command's time-out is counted in.
pub(super) const SCANS: u32 = 4;
/// Pause before another attempt to open a queue.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
/// How long the controller may take to answer when we go.
pub(super) const GOODBYE: Duration = Duration::from_secs(1);
/// How long a queue id that was in use before may still be in use at the controller.
const QUEUE_LINGERS: Duration = Duration::from_secs(1);
/// How long a target is waited for that is asked what became of its copies.
const OUTCOMES_PATIENCE: Duration = Duration::from_millis(500);

/// Controllers of this process that somebody uses.
static CONTROLLERS: Mutex<Vec<Weak<Controller>>> = Mutex::new(Vec::new());
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// What namespaces and queues hold on to. When the last of them goes, the association ends.
pub(super) struct Controller {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

pub(super) struct Shared {
    pub(super) number: u64,
    pub(super) peer: Peer,
    pub(super) options: Options,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    /// Ends the thread's wait.
    pub(super) bell: OwnedFd,
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// Number of the present or last association; 0 before the first.
    pub(super) association: u64,
    pub(super) facts: Option<Arc<Facts>>,
    pub(super) wires: Vec<Weak<Wire>>,
    /// Connections of the present association, those too that are being made.
    pub(super) channels: Vec<Weak<Channel>>,
    pub(super) namespaces: Vec<Weak<Namespace>>,
    pub(super) questions: VecDeque<Question>,
    /// How often the thread began to ask again what the open namespaces are.
    pub(super) looks: u64,
    /// Why associations were lost, the first `LOSSES_MAX`.
    pub(super) losses: Vec<String>,
    /// A queue says that this association is lost.
    pub(super) lost: Option<(u64, Why)>,
    pub(super) closing: bool,
    /// The thread has ended.
    pub(super) ended: bool,
    /// Queue ids count up and come round, so that one just given back is not used at once.
    pub(super) last_qid: u16,
}

pub(super) enum Phase {
    /// Making the first association.
    Opening,
    Up,
    /// Lost; making another one.
    Down,
    /// Lost for so long that requests fail; making another one.
    Away(Why),
    /// Given up for good.
    Dead(Why),
}

/// An admin command from another thread.
pub(super) struct Question {
    pub(super) sqe: Sqe,
    pub(super) data: Data,
    pub(super) answer: SyncSender<Result<Answer>>,
}

impl Controller {
    /// The controller that `peer` names: the one this process has, or a new association.
    ///
    /// Errors: those of attaching; `InvalidInput` when it is attached already with other digests.
    pub(super) fn attach(peer: Peer, options: Options) -> Result<Arc<Self>> {
        let controller = Self::find_or_start(peer, options)?;
        controller.wait_up(Instant::now() + options.connect_timeout, Patience::AlsoWhileAway)?;
        Ok(controller)
    }

    fn find_or_start(peer: Peer, options: Options) -> Result<Arc<Self>> {
        let mut all = lock(&CONTROLLERS);
        all.retain(|c| c.strong_count() > 0);
        let mut held: Vec<Arc<Self>> = all.iter().filter_map(Weak::upgrade).collect();
        held.retain(|c| c.shared.peer == peer && !matches!(lock(&c.shared.state).phase, Phase::Dead(_)));
        if let Some(known) = held.pop() {
            if known.shared.options.digests() != options.digests() {
                let text = "is already attached with other digests; give the same hdgst and ddgst in each of its URLs";
                return Err(Error::new(Kind::InvalidInput, text).on(&peer.subsystem.to_string()));
            }
            return Ok(known);
        }
        let os = |e: Errno| Error::os("cannot create an event to wake the controller's thread", e);
        let shared = Arc::new(Shared {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            peer,
            options,
            state: Mutex::new(State {
                phase: Phase::Opening,
                association: 0,
                facts: None,
                wires: Vec::new(),
                channels: Vec::new(),
                namespaces: Vec::new(),
                questions: VecDeque::new(),
                looks: 0,
                losses: Vec::new(),
                lost: None,
                closing: false,
                ended: false,
                last_qid: 0,
            }),
            changed: Condvar::new(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(os)?,
        });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("nvme-tcp".to_owned()).spawn(move || {
            keeper::run(&theirs);
            lock(&theirs.state).ended = true;
            theirs.changed.notify_all();
        });
        let thread = thread.map_err(|e| Error::os("cannot start a thread for the controller", e))?;
        let controller = Arc::new(Self { shared, thread: Mutex::new(Some(thread)) });
        all.push(Arc::downgrade(&controller));
        Ok(controller)
    }

    /// Why associations were lost, each time.
    pub(super) fn losses(&self) -> Vec<String> {
        lock(&self.shared.state).losses.clone()
    }

    /// A number of its own among the controllers this process ever had.
    pub(super) fn number(&self) -> u64 {
        self.shared.number
    }

    /// The facts of the present association, as soon as there is one.
    ///
    /// Errors: why there is none and will be none; none by the deadline.
    pub(super) fn wait_up(&self, deadline: Instant, patience: Patience) -> Result<(u64, Arc<Facts>)> {
        let mut state = lock(&self.shared.state);
        loop {
            let over = patience == Patience::WhileDown || left(deadline).is_zero();
            match (&state.phase, &state.facts) {
                (Phase::Dead(why), _) => return Err(why.error()),
                (Phase::Away(why), _) if over => return Err(why.error()),
                (Phase::Up, Some(facts)) => return Ok((state.association, facts.clone())),
                _ => {}
            }
            // The thread itself keeps to the time-outs: this one only guards against waiting for ever.
            let away = matches!(state.phase, Phase::Away(_));
            let wait = left(if away { deadline } else { deadline + GOODBYE });
            if wait.is_zero() && !away {
                let text = format!("no connection to {} in time", self.shared.peer.address);
                return Err(Error::new(Kind::Io, text));
            }
            state = held(self.shared.changed.wait_timeout(state, wait)).0;
        }
    }

    /// Asks what a namespace is, and has its changes followed: the one that is open already, as it is now, or the one
    /// that `make` makes.
    pub(super) fn namespace(
        &self,
        nsid: u32,
        make: impl FnOnce(&Facts, NamespaceFacts) -> Arc<Namespace>,
    ) -> Result<Arc<Namespace>> {
        let (_, facts) =
            self.wait_up(Instant::now() + self.shared.options.reconnect_timeout, Patience::AlsoWhileAway)?;
        let looks = lock(&self.shared.state).looks;
        let mut remote = Remote { shared: &self.shared, patience: None };
        let now = admin::namespace(&mut remote, &facts, nsid)?;
        now.check_plain()?;
        // Outside the lock: the last user of a controller may end here.
        let open = self.shared.namespaces();
        let mut state = lock(&self.shared.state);
        let known = open.iter().find(|n| n.nsid() == nsid && n.is_there());
        if let Some(known) = known {
            // Unless the thread has asked since, and knows better.
            if state.looks == looks {
                known.is_now(&facts, &now);
            }
            if known.is_there() {
                return Ok(known.clone());
            }
        }
        let made = make(&facts, now);
        state.namespaces.retain(|n| n.strong_count() > 0);
        state.namespaces.push(Arc::downgrade(&made));
        drop(state);
        Ok(made)
    }

    /// What the target says became of the bytes of this controller's copies so far. `None`: it is not a target of ours,
    /// or does not answer soon.
    pub(super) fn copy_outcomes(&self) -> Option<CopyOutcomes> {
        // Others are not asked for what they do not have: they would take the error down.
        self.last()?.1.identify.model.to_string().starts_with("blkcopy").then_some(())?;
        let mut remote = Remote { shared: &self.shared, patience: Some(OUTCOMES_PATIENCE) };
        let page = admin::log_page(&mut remote, lid::COPY_OUTCOMES, 0, CopyOutcomes::LEN).ok()?;
        CopyOutcomes::parse(&page)
    }

    /// The present or last association, and what was found out on it. `None` before the first.
    pub(super) fn last(&self) -> Option<(u64, Arc<Facts>)> {
        let state = lock(&self.shared.state);
        state.facts.clone().map(|facts| (state.association, facts))
    }

    /// Opens an I/O queue of whom `wire` reaches: on a connection of its own, or, where the controller grants no
    /// more, on one that others use.
    ///
    /// Waits for the target.
    pub(super) fn open_queue(&self, wire: &Arc<Wire>) -> Result<Fresh> {
        let shared = &*self.shared;
        let options = &shared.options;
        let end = Instant::now() + options.connect_timeout.max(options.reconnect_timeout);
        loop {
            let (association, facts) = self.wait_up(end, Patience::WhileDown)?;
            let opened = match self.place(association, &facts) {
                Place::Own(channel, used_before) => {
                    let deadline = Instant::now() + options.connect_timeout;
                    let patience = Instant::now() + if used_before { QUEUE_LINGERS } else { Duration::ZERO };
                    let opened = loop {
                        match admin::open_queue(&shared.peer, options, &facts, channel.qid, deadline) {
                            Err(_) if !left(patience).is_zero() => std::thread::sleep(PAUSE_FIRST),
                            other => break other,
                        }
                    };
                    opened.map(|link| {
                        channel.open(link, &facts);
                        channel
                    })
                }
                Place::Shared(channel) => Ok(channel),
                Place::Wait => {
                    if left(end).is_zero() {
                        let text = format!(
                            "the controller allows {} I/O queues, and all are still being opened",
                            facts.queues
                        );
                        return Err(Error::new(Kind::InUse, text));
                    }
                    std::thread::sleep(PAUSE_FIRST);
                    continue;
                }
            };
            let mut state = lock(&shared.state);
            let current = state.association == association && matches!(state.phase, Phase::Up);
            match opened {
                Ok(channel) if current && channel.lost().is_none() => {
                    channel.join(wire);
                    state.wires.push(Arc::downgrade(wire));
                    return Ok(Fresh { channel, facts, association });
                }
                Err(error) if current => return Err(error),
                // The association went meanwhile: on the next one, all over again.
                _ if left(end).is_zero() => {
                    return Err(Error::new(Kind::Io, "the connection was lost repeatedly"));
                }
                _ => {
                    drop(state);
                    std::thread::sleep(PAUSE_FIRST);
                }
            }
        }
    }

    /// Where a new queue goes.
    fn place(&self, association: u64, facts: &Facts) -> Place {
        let mut state = lock(&self.shared.state);
        if state.association != association {
            return Place::Wait;
        }
        state.channels.retain(|c| c.strong_count() > 0);
        let channels: Vec<Arc<Channel>> = state.channels.iter().filter_map(Weak::upgrade).collect();
        let after = state.last_qid;
        let mut ids = (after.saturating_add(1)..=facts.queues).chain(1..=after.min(facts.queues));
        if let Some(qid) = ids.find(|qid| channels.iter().all(|c| c.qid != *qid)) {
            // Not told from an id used by an earlier association, which costs a moment's patience at most.
            let used_before = qid <= after;
            state.last_qid = qid;
            let channel = Channel::new(qid);
            // Two threads that open at once get two ids.
            state.channels.push(Arc::downgrade(&channel));
            return Place::Own(channel, used_before);
        }
        drop(state);
        let open = channels.iter().filter_map(|c| c.load().map(|load| (load, c)));
        open.min_by_key(|(load, _)| *load).map_or(Place::Wait, |(_, channel)| Place::Shared(channel.clone()))
    }

    /// How long a command whose fate is not known is waited for, and one that may be tried again is tried.
    pub(super) fn patience(&self) -> Patiences {
        let options = &self.shared.options;
        // By our own numbers alone: a controller may give itself hours.
        Patiences {
            retry: options.reconnect_timeout,
            doubt: options.reconnect_timeout.max(4 * options.keep_alive),
        }
    }

    /// Has a queue woken at the time it has set.
    pub(super) fn look_at_alarms(&self) {
        self.shared.ring();
    }

    /// A queue has lost its connection, or gives the association up.
    pub(super) fn report_lost(&self, association: u64, why: Why) {
        let mut state = lock(&self.shared.state);
        if state.association == association && matches!(state.phase, Phase::Up) && state.lost.is_none() {
            state.lost = Some((association, why));
            drop(state);
            self.shared.ring();
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        lock(&self.shared.state).closing = true;
        self.shared.ring();
        let thread = lock(&self.thread).take();
        // The thread itself may hold the last namespace for a moment.
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            // In the middle of connecting to a silent target it takes longer: it ends by itself then.
            let state = lock(&self.shared.state);
            let most = 2 * GOODBYE;
            let ended = self.shared.changed.wait_timeout_while(state, most, |state| !state.ended);
            if !held(ended).1.timed_out() {
                let _ = thread.join();
            }
        }
    }
}

/// Where a new queue goes.
enum Place {
    /// To a connection of its own, still to be opened; whether its id was used before.
    Own(Arc<Channel>, bool),
    /// To one that others use.
    Shared(Arc<Channel>),
    /// All are being opened just now.
    Wait,
}

/// How long to wait for an association.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Patience {
    /// Until requests fail.
    WhileDown,
    /// Until the deadline, whatever others are told.
    AlsoWhileAway,
}

/// Times after which a command is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patiences {
    /// Since the controller first said that trying again may help.
    pub(super) retry: Duration,
    /// Since its connection was lost.
    pub(super) doubt: Duration,
}

/// Asks through the controller's thread.
struct Remote<'a> {
    shared: &'a Shared,
    /// How long an answer is waited for; `None`: until there is one, or the connection is lost.
    patience: Option<Duration>,
}

impl Ask for Remote<'_> {
    fn ask(&mut self, doing: &'static str, sqe: Sqe, data: Data) -> Result<Answer> {
        let (answer, wait): (_, Receiver<Result<Answer>>) = sync_channel(1);
        {
            let mut state = lock(&self.shared.state);
            // Under the lock: nobody looks at questions any more.
            if let Phase::Dead(why) | Phase::Away(why) = &state.phase {
                return Err(why.error());
            }
            state.questions.push_back(Question { sqe, data, answer });
        }
        self.shared.ring();
        // The thread drops the question or answers it within the command time-out.
        let lost = || Err(Error::new(Kind::Io, "the connection was lost"));
        let answer = match self.patience {
            None => wait.recv().unwrap_or_else(|_| lost()),
            Some(patience) => wait.recv_timeout(patience).unwrap_or_else(|_| lost()),
        };
        answer.map_err(|e| Error::new(e.kind(), doing).because(e).on(&self.shared.peer.address.to_string()))
    }
}

impl Shared {
    pub(super) fn ring(&self) {
        // It can only fail when it has rung 2^64 times unheard.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    pub(super) fn silence(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// Every queue there is.
    pub(super) fn wires(&self) -> Vec<Arc<Wire>> {
        let mut state = lock(&self.state);
        state.wires.retain(|w| w.strong_count() > 0);
        state.wires.iter().filter_map(Weak::upgrade).collect()
    }

    /// Wakes the queues whose time has come; when the next one's does.
    pub(super) fn ring_alarms(&self, now: Instant) -> Option<Instant> {
        self.wires().iter().filter_map(|wire| wire.ring_alarm(now)).min()
    }

    pub(super) fn namespaces(&self) -> Vec<Arc<Namespace>> {
        lock(&self.state).namespaces.iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn is_closing(&self) -> bool {
        lock(&self.state).closing
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        lock(&self.state).phase = phase;
        self.changed.notify_all();
    }

    /// Gives up for good.
    pub(super) fn die(&self, why: &Why) {
        tracing::warn!(address = %self.peer.address, "given up: {why}");
        {
            let mut state = lock(&self.state);
            state.phase = Phase::Dead(why.clone());
            state.questions.clear();
        }
        self.changed.notify_all();
        for wire in self.wires() {
            wire.post(|mail| mail.dead = Some(why.clone()));
        }
    }

    /// No connection for so long that requests fail; the attempts go on.
    pub(super) fn go_away(&self, why: &Why) {
        tracing::warn!(address = %self.peer.address, "requests fail from now on; connecting is still tried: {why}");
        {
            let mut state = lock(&self.state);
            state.phase = Phase::Away(why.clone());
            state.questions.clear();
        }
        self.changed.notify_all();
        for wire in self.wires() {
            wire.post(|mail| mail.away = Some(why.clone()));
        }
    }

    /// Waits for the bell, at most until `until`.
    pub(super) fn doze(&self, until: Instant) {
        let mut fds = [PollFd::new(&self.bell, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&timespec(left(until))));
        self.silence();
    }
}

//! Random scripts over several cores, driven by one thread, held against the rules themselves.

use super::*;
use crate::block::device::LeafSpace;
use crate::block::{ByteRange, LeafId};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CORES: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    BeginIo(usize, Vec<Claim>),
    EndIo(usize, usize),
    Cancel(usize, usize),
    BeginCopy(usize, Vec<Claim>),
    EndCopy(usize),
    Look(usize),
    Park(usize),
    Enter(usize),
    /// The core goes (if it has nothing in flight) and a new one takes its place.
    Replace(usize),
}

fn claim(change: bool) -> impl Strategy<Value = Claim> {
    (0..2u64, 0..10u64, 0..4u64).prop_map(move |(l, at, len)| {
        let leaf = LeafId { space: LeafSpace::Memory, id: (l, 0) };
        let range = ByteRange::new(at, len).unwrap();
        if change { Claim::exclusive(leaf, range) } else { Claim::shared(leaf, range) }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let io = prop_oneof![
        prop::collection::vec(claim(false), 1..2),
        prop::collection::vec(claim(true), 1..4) // a write through a mirror
    ];
    let copied = (prop::collection::vec(claim(false), 1..3), claim(true)).prop_map(|(mut all, dest)| {
        all.push(dest);
        all
    });
    prop_oneof![
        6 => (0..CORES, io).prop_map(|(c, claims)| Step::BeginIo(c, claims)),
        4 => (0..CORES, any::<usize>()).prop_map(|(c, n)| Step::EndIo(c, n)),
        1 => (0..CORES, any::<usize>()).prop_map(|(c, n)| Step::Cancel(c, n)),
        4 => (0..CORES, copied).prop_map(|(c, claims)| Step::BeginCopy(c, claims)),
        3 => any::<usize>().prop_map(Step::EndCopy),
        4 => (0..CORES).prop_map(Step::Look),
        2 => (0..CORES).prop_map(Step::Park),
        2 => (0..CORES).prop_map(Step::Enter),
        1 => (0..CORES).prop_map(Step::Replace),
    ]
}

struct Io {
    begun: usize,
    claims: Vec<Claim>,
}

struct ModelCopy {
    begun: usize,
    claims: Vec<Claim>,
    home: usize,
    ticket: CopyTicket,
    /// The home core has seen the grant (or the home is gone and somebody else looks after the copy).
    seen: bool,
}

struct ModelCore {
    locks: CoreLocks,
    woken: Arc<AtomicBool>,
    held: Vec<(Io, IoTicket)>,
    waiting: Vec<(Io, WaitId)>,
    /// Claims of copies that ended since this core looked: it may not know yet.
    stale: Vec<Vec<Claim>>,
}

fn conflict(a: &[Claim], b: &[Claim]) -> bool {
    a.iter().any(|x| b.iter().any(|y| x.conflicts(y)))
}

struct World {
    domain: LockDomain,
    cores: Vec<ModelCore>,
    copies: Vec<ModelCopy>,
    clock: usize,
}

impl World {
    fn new() -> Self {
        let domain = LockDomain::new();
        let cores = (0..CORES).map(|_| Self::core(&domain)).collect();
        Self { domain, cores, copies: Vec::new(), clock: 0 }
    }

    fn core(domain: &LockDomain) -> ModelCore {
        let woken = Arc::new(AtomicBool::new(false));
        let flag = woken.clone();
        let locks = domain.attach(move || flag.store(true, Ordering::SeqCst)).unwrap();
        ModelCore { locks, woken, held: Vec::new(), waiting: Vec::new(), stale: Vec::new() }
    }

    fn run(&mut self, step: Step) {
        self.clock += 1;
        let begun = self.clock;
        match step {
            Step::BeginIo(c, claims) if self.cores[c].locks.is_running() => {
                match self.cores[c].locks.begin_io(&claims) {
                    Begun::Held(ticket) => self.cores[c].held.push((Io { begun, claims }, ticket)),
                    Begun::Waiting(id) => {
                        let live = self.copies.iter().map(|x| &x.claims);
                        let why = live.chain(&self.cores[c].stale).any(|x| conflict(x, &claims));
                        assert!(why, "{claims:?} waits for no copy");
                        self.cores[c].waiting.push((Io { begun, claims }, id));
                    }
                }
            }
            Step::EndIo(c, n) if self.cores[c].locks.is_running() && !self.cores[c].held.is_empty() => {
                let n = n % self.cores[c].held.len();
                let (_, ticket) = self.cores[c].held.swap_remove(n);
                self.cores[c].locks.end_io(ticket);
            }
            Step::Cancel(c, n) if self.cores[c].locks.is_running() && !self.cores[c].waiting.is_empty() => {
                let n = n % self.cores[c].waiting.len();
                let (_, id) = self.cores[c].waiting.remove(n);
                assert!(self.cores[c].locks.cancel_wait(id), "it was not taken yet");
            }
            Step::BeginCopy(c, claims) if self.cores[c].locks.is_running() => {
                let earlier = self.copies.iter().any(|x| conflict(&x.claims, &claims));
                let io = |k: &ModelCore| {
                    let held = k.held.iter().map(|x| &x.0).chain(k.waiting.iter().map(|x| &x.0));
                    held.into_iter().any(|x| conflict(&x.claims, &claims))
                };
                let others_run = (0..CORES).any(|k| k != c && self.cores[k].locks.is_running());
                let free = !earlier && !others_run && !self.cores.iter().any(io);
                let ticket = self.cores[c].locks.begin_copy(claims.iter().copied().collect());
                assert!(ticket.is_granted() || !free, "nothing is in the way of {claims:?}");
                let seen = ticket.is_granted();
                self.copies.push(ModelCopy { begun, claims, home: c, ticket, seen });
            }
            Step::EndCopy(n) if !self.copies.is_empty() => {
                let n = n % self.copies.len();
                self.end_copy(n);
            }
            Step::Look(c) => self.look(c),
            Step::Park(c) if self.cores[c].locks.is_running() => self.park(c),
            Step::Enter(c) if !self.cores[c].locks.is_running() => self.enter(c),
            Step::Replace(c) if self.cores[c].held.is_empty() => {
                self.cores[c] = Self::core(&self.domain);
                self.copies.iter_mut().filter(|x| x.home == c).for_each(|x| x.seen = true);
            }
            _ => {}
        }
        self.check();
    }

    fn end_copy(&mut self, n: usize) {
        let ended = self.copies.remove(n);
        self.cores.iter_mut().for_each(|k| k.stale.push(ended.claims.clone()));
        if self.cores[ended.home].locks.is_running() {
            self.cores[ended.home].locks.end_copy(ended.ticket);
        }
    }

    fn enter(&mut self, c: usize) {
        self.cores[c].woken.store(false, Ordering::SeqCst);
        self.cores[c].locks.enter();
        self.look(c);
    }

    fn park(&mut self, c: usize) {
        while !self.cores[c].locks.park() {
            self.look(c);
        }
        for copy in self.copies.iter().filter(|x| x.home == c && x.ticket.is_granted()) {
            assert!(copy.seen, "core {c} parks over a copy granted without its knowing");
        }
    }

    /// What a core does each turn. Afterwards its waits are exactly those that the rules ask for.
    fn look(&mut self, c: usize) {
        let core = &mut self.cores[c];
        if !core.locks.is_running() {
            return;
        }
        core.locks.pump();
        let mut out = Vec::new();
        core.locks.take_released(&mut out);
        for one in out {
            let at = core
                .waiting
                .iter()
                .position(|w| w.1 == one.id)
                .expect("released once, and not after cancelling");
            core.held.push((core.waiting.remove(at).0, one.ticket));
        }
        core.stale.clear();
        self.copies.iter_mut().filter(|x| x.home == c).for_each(|x| x.seen |= x.ticket.is_granted());
        for (io, _) in &core.waiting {
            let why = self.copies.iter().any(|x| x.begun < io.begun && conflict(&x.claims, &io.claims));
            assert!(why, "core {c}: {:?} waits for no earlier live copy", io.claims);
        }
    }

    /// Nothing is held beside something it conflicts with, and copies keep their order.
    fn check(&self) {
        for (n, copy) in self.copies.iter().enumerate().filter(|(_, x)| x.ticket.is_granted()) {
            for earlier in &self.copies[..n] {
                assert!(
                    !conflict(&earlier.claims, &copy.claims),
                    "{:?} overtook {:?}",
                    copy.claims,
                    earlier.claims
                );
            }
            for (io, _) in self.cores.iter().flat_map(|k| &k.held) {
                assert!(!conflict(&io.claims, &copy.claims), "{:?} beside {:?}", io.claims, copy.claims);
            }
        }
    }

    /// Lets everything end by itself. A parked core gets up only for its waker or for something of its own that ends,
    /// so that a lost wake-up shows as a world at a standstill.
    fn finish(&mut self) {
        loop {
            let mut progress = false;
            for c in 0..CORES {
                let own = !self.cores[c].held.is_empty() || self.copies.iter().any(|x| x.home == c && x.seen);
                if !self.cores[c].locks.is_running() {
                    if !own && !self.cores[c].woken.load(Ordering::SeqCst) {
                        continue;
                    }
                    self.enter(c);
                }
                self.look(c);
                self.check();
                while let Some((_, ticket)) = self.cores[c].held.pop() {
                    self.cores[c].locks.end_io(ticket);
                    progress = true;
                }
                while let Some(n) = self.copies.iter().position(|x| x.home == c && x.ticket.is_granted()) {
                    self.end_copy(n);
                    self.check();
                    progress = true;
                }
                self.park(c);
                progress |= !self.cores[c].held.is_empty();
            }
            if self.copies.is_empty() && self.cores.iter().all(|k| k.held.is_empty() && k.waiting.is_empty())
            {
                return;
            }
            progress |= self.cores.iter().any(|k| k.woken.load(Ordering::SeqCst));
            // A copy begun by a core that was replaced since wakes nobody; its owner looks by itself.
            progress |= self.copies.iter().any(|x| x.seen && x.ticket.is_granted());
            assert!(progress, "standstill: a wake-up was lost, or something waits in a circle");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
    //= promise 4
    #[test]
    fn any_script_keeps_the_rules_and_ends(steps in prop::collection::vec(step(), 0..80)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        world.finish();
    }
}

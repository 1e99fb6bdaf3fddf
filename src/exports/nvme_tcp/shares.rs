//! Who may have which payload buffer of a thread: counts, shares and turns. No memory, no I/O, no clock.
//!
//! Buffers come in sizes; of each size a *host* (all its connections on this thread together) has a share of its own:
//! buffers that nobody else gets, however many it has or asks for. What is in no share is lent further, to each host as
//! many as would still be left after it. Within a host the same holds for its connections, called *members* here: one
//! that keeps what it gets leaves a quarter to the others. Hosts without a share of their own (discovery, connections
//! before their Connect) are one host together.

use std::collections::VecDeque;

/// Of the buffers of a size, those that hosts without a share of their own have together: one in so many.
const OTHERS_PART: usize = 16;

/// A host, or those without a share of their own.
pub(super) type HostIndex = u32;

/// A connection, as long as it is there or has buffers.
pub(super) type MemberIndex = u32;

/// A member gets no more while it has so many times what its host may still get.
const MEMBER_PART: usize = 3;

/// Those without a share of their own.
pub(super) const OTHERS: HostIndex = 0;

/// Name and identifier of a host: what its associations have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HostName {
    pub(super) nqn: String,
    pub(super) id: [u8; 16],
}

/// The buffers of one size.
#[derive(Debug)]
struct Size {
    bytes: usize,
    count: usize,
    free: usize,
}

#[derive(Debug, Default)]
struct HostShare {
    /// `None`: those without a share of their own, or nobody any more.
    name: Option<HostName>,
    /// Its connections.
    links: usize,
    /// Buffers it has, of each size.
    held: Vec<usize>,
    /// Its connections that wait for a buffer, each once.
    waiting: VecDeque<usize>,
}

/// A connection.
#[derive(Debug)]
struct Member {
    host: HostIndex,
    is_there: bool,
    /// Buffers it has, of each size.
    held: Vec<usize>,
}

impl HostShare {
    fn is_present(&self) -> bool {
        self.links > 0
    }
}

/// Shares and turns of one thread.
#[derive(Debug)]
pub(super) struct Shares {
    /// Ascending.
    sizes: Vec<Size>,
    hosts: Vec<HostShare>,
    members: Vec<Member>,
    /// Members that are free to be others.
    unused: Vec<MemberIndex>,
    /// Hosts with a share of their own.
    present: usize,
    /// Hosts with connections that wait, each once.
    line: VecDeque<HostIndex>,
    /// Something came back or a share has changed since the line was last gone through.
    changed: bool,
}

impl Shares {
    /// Of buffers of these sizes, ascending: bytes and count.
    pub(super) fn new(sizes: &[(usize, usize)]) -> Self {
        let size = |&(bytes, count): &(usize, usize)| Size { bytes, count, free: count };
        let others = HostShare { held: vec![0; sizes.len()], ..HostShare::default() };
        Self {
            sizes: sizes.iter().map(size).collect(),
            hosts: vec![others],
            members: Vec::new(),
            unused: Vec::new(),
            present: 0,
            line: VecDeque::new(),
            changed: false,
        }
    }

    /// A connection, of those without a share of their own.
    pub(super) fn enter(&mut self) -> MemberIndex {
        self.member_of(OTHERS)
    }

    fn member_of(&mut self, host: HostIndex) -> MemberIndex {
        let at = self.unused.pop().unwrap_or_else(|| {
            self.members.push(Member { host, is_there: false, held: vec![0; self.sizes.len()] });
            u32::try_from(self.members.len() - 1).expect("fewer connections and buffers")
        });
        let member = &mut self.members[at as usize];
        (member.host, member.is_there) = (host, true);
        at
    }

    /// The host of a member.
    pub(super) fn host_of(&self, member: MemberIndex) -> HostIndex {
        self.members[member as usize].host
    }

    /// A connection is this host's from now on, as another member. `None`: there are as many hosts as buffers of a
    /// size, so that it could have no share.
    pub(super) fn join(&mut self, member: MemberIndex, name: &HostName) -> Option<MemberIndex> {
        // One that has left may still have buffers: it is the same host when it comes back.
        let known = self.hosts.iter().position(|host| host.name.as_ref() == Some(name));
        let most = self.sizes.iter().map(|size| size.count - others_share(size)).min().unwrap_or(0);
        if known.is_none_or(|at| !self.hosts[at].is_present()) {
            if self.present >= most {
                return None;
            }
            self.present += 1;
            self.changed = true;
        }
        let at = known.unwrap_or_else(|| {
            let free = |host: &HostShare| host.name.is_none();
            let at = 1 + self.hosts[1..].iter().position(free).unwrap_or(self.hosts.len() - 1);
            if at == self.hosts.len() {
                self.hosts.push(HostShare { held: vec![0; self.sizes.len()], ..HostShare::default() });
            }
            self.hosts[at].name = Some(name.clone());
            at
        });
        self.hosts[at].links += 1;
        self.leaves(member);
        Some(self.member_of(u32::try_from(at).expect("fewer hosts than buffers")))
    }

    fn leaves(&mut self, member: MemberIndex) {
        self.members[member as usize].is_there = false;
        self.forget_absent_member(member);
    }

    fn forget_absent_member(&mut self, member: MemberIndex) {
        let Member { is_there, held, .. } = &self.members[member as usize];
        if !is_there && held.iter().all(|held| *held == 0) {
            self.unused.push(member);
        }
    }

    /// A connection is gone, and waits no more.
    pub(super) fn leave(&mut self, member: MemberIndex, place: usize) {
        let host = self.host_of(member);
        self.stop_waiting(host, place);
        self.leaves(member);
        if host == OTHERS {
            return;
        }
        let share = &mut self.hosts[host as usize];
        share.links -= 1;
        if share.links == 0 {
            self.present -= 1;
            self.changed = true;
            self.forget_absent(host);
        }
    }

    /// A host without connections is forgotten when it has nothing.
    fn forget_absent(&mut self, host: HostIndex) {
        let share = &mut self.hosts[host as usize];
        if !share.is_present() && share.held.iter().all(|held| *held == 0) {
            share.name = None;
        }
    }

    /// A buffer of at least `len` bytes for a connection: its size number. `None`: it has to wait.
    ///
    /// # Panics
    /// When no size is as long.
    pub(super) fn grant(&mut self, member: MemberIndex, len: usize) -> Option<usize> {
        let fits = self.sizes.iter().position(|size| size.bytes >= len).expect("no transfer is longer");
        // The next longer one too: what hosts have of that is counted by itself.
        let class = (fits..self.sizes.len()).take(2).find(|class| self.may_take(member, *class))?;
        let host = self.host_of(member);
        self.sizes[class].free -= 1;
        self.hosts[host as usize].held[class] += 1;
        self.members[member as usize].held[class] += 1;
        Some(class)
    }

    fn may_take(&self, member: MemberIndex, class: usize) -> bool {
        let Member { host, held: of_member, .. } = &self.members[member as usize];
        let free = self.sizes[class].free;
        let (held, own) = (self.hosts[*host as usize].held[class], self.share_of(*host, class));
        let is_alone = self.hosts[*host as usize].links == 1;
        let leaves_some = |room: usize| room > 0 && (is_alone || of_member[class] < MEMBER_PART * room);
        let left = own.saturating_sub(held);
        if free == 0 || leaves_some(left) {
            return free > 0;
        }
        // Beyond its share it may have as many as are then left, those in shares not counted: one more for each two.
        let common = free.saturating_sub(self.reserved(*host, class) + left);
        leaves_some(left + common.saturating_sub(held.saturating_sub(own)).div_ceil(2))
    }

    /// Buffers of a size that nobody but this host gets.
    fn share_of(&self, host: HostIndex, class: usize) -> usize {
        let size = &self.sizes[class];
        if host == OTHERS {
            others_share(size)
        } else if self.hosts[host as usize].is_present() {
            // Half of them are in shares, one each at least: `join` sees to it that there are as many.
            ((size.count - others_share(size)) / 2 / self.present).max(1)
        } else {
            0
        }
    }

    /// Buffers of a size in the shares of others that those do not have now.
    fn reserved(&self, host: HostIndex, class: usize) -> usize {
        let of = |(at, share): (usize, &HostShare)| {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            if at == host { 0 } else { self.share_of(at, class).saturating_sub(share.held[class]) }
        };
        self.hosts.iter().enumerate().map(of).sum()
    }

    /// A buffer has come back.
    pub(super) fn give_back(&mut self, member: MemberIndex, class: usize) {
        let host = self.host_of(member);
        self.sizes[class].free += 1;
        self.hosts[host as usize].held[class] -= 1;
        self.members[member as usize].held[class] -= 1;
        self.changed = true;
        self.forget_absent_member(member);
        if host != OTHERS {
            self.forget_absent(host);
        }
    }

    /// True when a host has more than its share of any size.
    pub(super) fn is_beyond_share(&self, host: HostIndex) -> bool {
        let held = &self.hosts[host as usize].held;
        held.iter().enumerate().any(|(class, held)| *held > self.share_of(host, class))
    }

    /// True when a host has less than its share of the buffers that `len` bytes fit.
    pub(super) fn is_below_share(&self, host: HostIndex, len: usize) -> bool {
        let fits = self.sizes.iter().position(|size| size.bytes >= len);
        fits.is_some_and(|class| self.hosts[host as usize].held[class] < self.share_of(host, class))
    }

    // --- turns -------------------------------------------------------------------------------------------------------

    /// True when connections of this host wait: another one gets in line behind them.
    pub(super) fn is_waiting(&self, host: HostIndex) -> bool {
        !self.hosts[host as usize].waiting.is_empty()
    }

    /// The connection at this place waits for a buffer.
    pub(super) fn wait(&mut self, host: HostIndex, place: usize) {
        let waiting = &mut self.hosts[host as usize].waiting;
        if waiting.is_empty() {
            self.line.push_back(host);
        }
        if !waiting.contains(&place) {
            waiting.push_back(place);
        }
    }

    /// It waits no more.
    pub(super) fn stop_waiting(&mut self, host: HostIndex, place: usize) {
        let waiting = &mut self.hosts[host as usize].waiting;
        let before = waiting.len();
        waiting.retain(|waits| *waits != place);
        if before > 0 && waiting.is_empty() {
            self.line.retain(|waits| *waits != host);
        }
    }

    /// True, once, when it is worth going through the line: what could not be granted before still cannot be else.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed) && !self.line.is_empty()
    }

    /// Turns until each connection that waits has had one.
    pub(super) fn round(&self) -> usize {
        let most = self.line.iter().map(|host| self.hosts[*host as usize].waiting.len()).max();
        self.line.len() * most.unwrap_or(0)
    }

    /// The host whose turn it is, and its connection whose turn it is: each is then the last in its line.
    pub(super) fn next_turn(&mut self) -> Option<(HostIndex, usize)> {
        let host = self.line.pop_front()?;
        self.line.push_back(host);
        let waiting = &mut self.hosts[host as usize].waiting;
        waiting.rotate_left(usize::from(!waiting.is_empty()));
        Some((host, *waiting.back()?))
    }
}

/// Buffers of a size that hosts without a share of their own have together.
fn others_share(size: &Size) -> usize {
    (size.count / OTHERS_PART).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZES: [(usize, usize); 3] = [(4096, 64), (65536, 16), (1 << 20, 8)];

    fn name(n: u8) -> HostName {
        HostName { nqn: format!("nqn.h{n}"), id: [n; 16] }
    }

    /// Takes all that a host can get of a length.
    fn hoard(shares: &mut Shares, member: MemberIndex, len: usize) -> usize {
        std::iter::from_fn(|| shares.grant(member, len)).count()
    }

    fn joined(shares: &mut Shares, n: u8) -> Option<MemberIndex> {
        let member = shares.enter();
        shares.join(member, &name(n))
    }

    /// Takes all that a host can get by any number of connections; how much that is.
    fn hoard_all(shares: &mut Shares, n: u8, len: usize) -> usize {
        (0..64)
            .filter_map(|_| joined(shares, n))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|m| hoard(shares, m, len))
            .sum()
    }

    #[test]
    fn whoever_hoards_leaves_each_host_its_share_at_once() {
        let mut shares = Shares::new(&SIZES);
        let hosts: Vec<_> = (1..=7).map(|n| joined(&mut shares, n).unwrap()).collect();
        assert_eq!(joined(&mut shares, 8), None, "one long buffer is nobody's own");
        for n in 1..=6 {
            for len in [512, 60_000, 1 << 20] {
                hoard_all(&mut shares, n, len);
            }
        }
        // 60 of 64 in shares by half: 4 each; 15 of 16: 1 each; 7 of 8: 1 each.
        let last = hosts[6];
        assert!(shares.is_below_share(shares.host_of(last), 1));
        assert!([0; 4].iter().all(|_| shares.grant(last, 4096).is_some()));
        assert!(shares.grant(last, 1 << 16).is_some() || shares.hosts[7].held[1] > 0);
        assert_eq!(shares.grant(last, 1 << 20), Some(2));
        // Those without a share of their own have theirs together.
        let other = shares.enter();
        assert!(hoard(&mut shares, other, 1 << 20) == 1);
        assert!(hoard(&mut shares, other, 100) >= 3);
    }

    #[test]
    fn a_host_alone_gets_most_and_one_that_comes_later_finds_its_share() {
        let mut shares = Shares::new(&[(1 << 20, 64)]);
        assert_eq!(hoard_all(&mut shares, 1, 1 << 20), 45, "30 of 60, and half of the rest");
        assert!(shares.is_beyond_share(1));
        assert!(hoard_all(&mut shares, 2, 1 << 20) >= 15);
        // Two associations of one host are one host; two of one name with other identifiers are two.
        let again = joined(&mut shares, 1).unwrap();
        assert_eq!(shares.host_of(again), 1);
        let member = shares.enter();
        let other = shares.join(member, &HostName { id: [9; 16], ..name(1) }).unwrap();
        assert_ne!(shares.host_of(other), 1);
    }

    #[test]
    fn a_connection_that_keeps_what_it_gets_leaves_some_to_others_of_its_host() {
        let mut shares = Shares::new(&[(1 << 20, 64)]);
        let members: Vec<_> = (0..3).map(|_| joined(&mut shares, 1).unwrap()).collect();
        let got: Vec<_> = members.iter().map(|m| hoard(&mut shares, *m, 1 << 20)).collect();
        assert!(got[0] > 30 && got[1] > 5 && got[2] > 0, "{got:?}");
    }

    #[test]
    fn tiny_transfers_take_small_buffers_and_never_all_of_them() {
        let mut shares = Shares::new(&SIZES);
        let good = joined(&mut shares, 2).unwrap();
        hoard_all(&mut shares, 1, 512);
        assert_eq!(shares.hosts[2].held[2], 0, "no long buffer for 512 bytes");
        assert!(hoard(&mut shares, good, 4096) >= 12);
    }

    #[test]
    fn hosts_take_turns_and_so_do_connections_of_each() {
        let mut shares = Shares::new(&[(4096, 64)]);
        let [a, b] = [1, 2].map(|n| joined(&mut shares, n).unwrap());
        let [host_a, host_b] = [a, b].map(|member| shares.host_of(member));
        for place in [10, 11, 12, 10] {
            shares.wait(host_a, place);
        }
        shares.wait(host_b, 20);
        assert_eq!(shares.round(), 6);
        let turns = [0; 5].map(|_| shares.next_turn().unwrap().1);
        assert_eq!(turns, [10, 20, 11, 20, 12]);
        shares.leave(b, 20);
        assert_eq!((shares.round(), shares.next_turn()), (3, Some((host_a, 10))));
        for place in [10, 11, 12] {
            shares.stop_waiting(host_a, place);
        }
        assert_eq!((shares.round(), shares.next_turn()), (0, None));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Join(u8),
        Leave(usize),
        Grant(usize, usize),
        Back(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            2 => (0u8..12).prop_map(Act::Join),
            1 => any::<usize>().prop_map(Act::Leave),
            8 => (any::<usize>(), 1usize..=1 << 20).prop_map(|(at, len)| Act::Grant(at, len)),
            5 => any::<usize>().prop_map(Act::Back),
        ]
    }

    proptest! {
        /// Whatever hosts do, come and go: no more is out than there is, what came back is all there again, and a host
        /// within its share waits only for what others had before it came.
        #[test]
        fn nothing_leaks_and_no_more_is_lent_than_there_is(acts in proptest::collection::vec(act(), 1..400)) {
            let mut shares = Shares::new(&SIZES);
            let (mut links, mut out) = (vec![(shares.enter(), None)], Vec::new());
            for act in acts {
                match act {
                    Act::Join(n) => {
                        let member = shares.enter();
                        let joined = shares.join(member, &name(n));
                        links.push((joined.unwrap_or(member), joined.map(|_| n)));
                    }
                    Act::Leave(at) => {
                        let at = at % links.len();
                        if links.len() > 1 {
                            shares.leave(links.swap_remove(at).0, at);
                        }
                    }
                    Act::Grant(at, len) => {
                        let host = links[at % links.len()].0;
                        if let Some(class) = shares.grant(host, len) {
                            prop_assert!(SIZES[class].0 >= len);
                            out.push((host, class));
                        }
                    }
                    Act::Back(at) if !out.is_empty() => {
                        let (host, class) = out.swap_remove(at % out.len());
                        shares.give_back(host, class);
                    }
                    Act::Back(_) => {}
                }
                for (class, &(_, count)) in SIZES.iter().enumerate() {
                    let lent = out.iter().filter(|o| o.1 == class).count();
                    prop_assert_eq!(shares.sizes[class].free, count - lent);
                    let own: usize = (0..shares.hosts.len())
                        .map(|at| shares.share_of(u32::try_from(at).unwrap(), class))
                        .sum();
                    prop_assert!(own <= count, "no more is promised than there is: {}", own);
                }
                // One name, one host, for as long as it is there.
                for (member, n) in &links {
                    let host = shares.host_of(*member);
                    prop_assert_eq!(&shares.hosts[host as usize].name, &n.map(name));
                }
            }
            for (host, class) in out {
                shares.give_back(host, class);
            }
            for (host, _) in links {
                shares.leave(host, usize::MAX);
            }
            prop_assert_eq!(shares.present, 0);
            prop_assert!(shares.hosts.iter().all(|h| h.name.is_none() && h.held.iter().all(|held| *held == 0)));
            prop_assert!(shares.sizes.iter().all(|size| size.free == size.count));
            prop_assert_eq!(shares.unused.len(), shares.members.len());
        }
    }
}

//! How many of a thread's connections a host may have as queues, so that no host has them all.

use super::connections::{CONNECTIONS_MAX, Standing};
use crate::nvme::Nqn;
use std::collections::HashMap;

/// A host may have one more while it has fewer than so many times those that are left: alone it gets three of four,
/// the next three of four of what is left, and there is always one for a host that has none.
const SHARE: usize = 3;

/// Queues that a host has: for namespaces, and for discovery.
#[derive(Clone, Copy, Default)]
struct Held {
    queues: usize,
    discoveries: usize,
}

/// The queues of one thread, by host.
pub(super) struct Shares {
    connections_max: usize,
    all: Held,
    hosts: HashMap<Nqn, Held>,
}

impl Default for Shares {
    fn default() -> Self {
        Self { connections_max: CONNECTIONS_MAX, all: Held::default(), hosts: HashMap::new() }
    }
}

impl Shares {
    /// The thread has so many connections at most.
    pub(super) fn limit(&mut self, connections_max: usize) {
        self.connections_max = connections_max;
    }

    /// True when this host may have one more queue. Discovery controllers leave room for queues: theirs are closed
    /// when places run short, and an eighth of all is for those that have not sent their Connect yet.
    pub(super) fn may_take(&self, host: &Nqn, standing: Standing) -> bool {
        let held = self.hosts.get(host).copied().unwrap_or_default();
        let (held, left) = match standing {
            Standing::Host => {
                let most = self.connections_max - self.connections_max / 8;
                (held.queues, most.saturating_sub(self.all.queues))
            }
            Standing::Discovery | Standing::Stranger => {
                let used = self.all.queues + self.all.discoveries;
                (held.discoveries, self.connections_max.saturating_sub(used))
            }
        };
        left > 0 && (held == 0 || held < SHARE * left)
    }

    /// It has one more.
    pub(super) fn take(&mut self, host: &Nqn, standing: Standing) {
        for held in [&mut self.all, self.hosts.entry(host.clone()).or_default()] {
            *held.of(standing) += 1;
        }
    }

    /// It has one less.
    pub(super) fn give_back(&mut self, host: &Nqn, standing: Standing) {
        *self.all.of(standing) -= 1;
        let Some(held) = self.hosts.get_mut(host) else { return };
        *held.of(standing) -= 1;
        if held.queues + held.discoveries == 0 {
            self.hosts.remove(host);
        }
    }
}

impl Held {
    fn of(&mut self, standing: Standing) -> &mut usize {
        match standing {
            Standing::Host => &mut self.queues,
            Standing::Discovery | Standing::Stranger => &mut self.discoveries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_host_has_all_and_discovery_takes_nothing_from_queues() {
        let names = ["nqn.a", "nqn.b", "nqn.c"].map(|name| Nqn::new(name).unwrap());
        let mut shares = Shares::default();
        shares.limit(64);
        let mut fill = |host: &Nqn, standing| {
            let mut count = 0;
            while shares.may_take(host, standing) {
                shares.take(host, standing);
                count += 1;
            }
            count
        };
        assert_eq!(fill(&names[2], Standing::Stranger), 48, "three of four");
        let each: Vec<usize> = names.iter().map(|n| fill(n, Standing::Host)).collect();
        assert_eq!(each, [42, 11, 3], "of 56, though a stranger has 48 places");
        assert_eq!(
            fill(&Nqn::new("nqn.late").unwrap(), Standing::Host),
            0,
            "56 hosts of one queue would fill it"
        );
        for _ in 0..42 {
            shares.give_back(&names[0], Standing::Host);
        }
        assert_eq!(shares.hosts.len(), 2);
        assert!(shares.may_take(&names[0], Standing::Host));
    }
}

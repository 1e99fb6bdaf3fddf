//! Who has the places of a thread, and whose place goes to a newcomer when all are taken.
//!
//! A queue of a host that sees namespaces keeps its place. The others hold theirs as long as no one needs them more
//! (`docs/notes/013-places.md`).

use std::collections::BTreeSet;
use std::time::Duration;

/// How long a connection may take until its Connect while places are short. With TLS, 10 seconds.
pub(super) const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// What a connection is, to those that want its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// It has sent no Connect that was answered with success.
    Opening,
    /// A discovery controller of a host that sees no namespace.
    Stranger,
    /// A discovery controller of a host that sees some.
    Discovery,
    /// A queue of a host that sees namespaces: not to be taken away.
    Host,
}

/// Why a connection loses its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// It has not sent its Connect in [`HANDSHAKE_TIME`].
    Slow,
    /// It is the oldest of very many without a Connect.
    OneOfMany,
    /// It is a discovery controller, silent for longest.
    Discovery,
}

/// The places of one thread.
pub(super) struct Places {
    max: usize,
    taken: usize,
    /// For each place, what has it, and its key in the line.
    held: Vec<Option<(Claim, Duration)>>,
    /// Those whose place may be taken, the first to go first: by the time they came (`Opening`), or were heard last.
    lines: [BTreeSet<(Duration, usize)>; 3],
}

impl Places {
    pub(super) fn new(max: usize) -> Self {
        Self { max, taken: 0, held: Vec::new(), lines: Default::default() }
    }

    /// Places there are.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Connections that have one.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// True when a newcomer needs the place of another.
    pub(super) fn is_full(&self) -> bool {
        self.taken >= self.max
    }

    /// A connection has come, or has become something else.
    pub(super) fn hold(&mut self, place: usize, claim: Claim, now: Duration) {
        self.leave(place);
        if self.held.len() <= place {
            self.held.resize(place + 1, None);
        }
        self.held[place] = Some((claim, now));
        self.taken += 1;
        if let Some(line) = self.line(claim) {
            line.insert((now, place));
        }
    }

    /// The connection is gone, or is to go; nothing for one that left before.
    pub(super) fn leave(&mut self, place: usize) {
        let Some((claim, since)) = self.held.get_mut(place).and_then(Option::take) else { return };
        self.taken -= 1;
        if let Some(line) = self.line(claim) {
            line.remove(&(since, place));
        }
    }

    /// The connection whose place a newcomer gets; its place is free from here on. `heard`: when a connection was last
    /// heard. `None`: none has to yield.
    pub(super) fn yield_one(
        &mut self,
        now: Duration,
        heard: impl Fn(usize) -> Duration,
    ) -> Option<(usize, Reason)> {
        let oldest = self.lines[0].first().copied();
        let (place, reason) = match oldest {
            Some((since, place)) if now.saturating_sub(since) >= HANDSHAKE_TIME => (place, Reason::Slow),
            _ => {
                let many = self.lines[0].len() > self.max / 8;
                let slow = |(_, place)| (place, Reason::OneOfMany);
                let silent = |place| (place, Reason::Discovery);
                let stranger = self.silent(Claim::Stranger, &heard).map(silent);
                let crowd = || oldest.filter(|_| many).map(slow);
                // The last that may go first: a host that is about to send its Connect.
                stranger
                    .or_else(crowd)
                    .or_else(|| self.silent(Claim::Discovery, &heard).map(silent))
                    .or_else(|| oldest.map(slow))?
            }
        };
        self.leave(place);
        Some((place, reason))
    }

    /// The one of these that has been silent for longest.
    fn silent(&mut self, claim: Claim, heard: &impl Fn(usize) -> Duration) -> Option<usize> {
        loop {
            let line = self.line(claim)?;
            let &(since, place) = line.first()?;
            let last = heard(place);
            if last <= since {
                return Some(place);
            }
            // Heard since it was put in line: back to where it belongs. Each time it has cost its host a message.
            line.pop_first();
            line.insert((last, place));
            self.held[place] = Some((claim, last));
        }
    }

    fn line(&mut self, claim: Claim) -> Option<&mut BTreeSet<(Duration, usize)>> {
        match claim {
            Claim::Opening => Some(&mut self.lines[0]),
            Claim::Stranger => Some(&mut self.lines[1]),
            Claim::Discovery => Some(&mut self.lines[2]),
            Claim::Host => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn full(claims: &[Claim]) -> Places {
        let mut places = Places::new(claims.len());
        for (place, &claim) in claims.iter().enumerate() {
            places.hold(place, claim, S * u32::try_from(place).unwrap());
        }
        assert!(places.is_full());
        places
    }

    #[test]
    fn who_yields_a_place_and_in_which_order() {
        use Claim::*;
        let mut places = full(&[Host, Discovery, Discovery, Stranger, Stranger, Opening, Host]);
        let now = S * 7;
        // The discovery controllers at 1 and 3 were heard after those at 2 and 4.
        let heard = |place: usize| S * [0, 6, 2, 6, 4, 5, 6][place];
        let mut order = Vec::new();
        while let Some((place, reason)) = places.yield_one(now, heard) {
            order.push((place, reason));
        }
        let (d, m) = (Reason::Discovery, Reason::OneOfMany);
        // One that is opening counts as one of many here, where there are few places at all.
        assert_eq!(order, [(4, d), (3, d), (5, m), (2, d), (1, d)]);
        assert_eq!(places.taken(), 2, "hosts keep theirs");
        let mut places = full(&[Discovery, Stranger, Opening]);
        assert_eq!(places.yield_one(S * 7, |_| S), Some((2, Reason::Slow)), "5 seconds are over");
    }

    #[test]
    fn a_few_that_are_opening_stay_and_of_many_the_oldest_goes() {
        let mut claims = vec![Claim::Discovery; 32];
        claims[..4].fill(Claim::Opening);
        let mut places = full(&claims);
        let now = S * 4;
        assert_eq!(places.yield_one(now, |place| S * place as u32), Some((4, Reason::Discovery)));
        places.hold(4, Claim::Opening, now);
        assert_eq!(places.yield_one(now, |_| now), Some((0, Reason::OneOfMany)));
    }

    #[test]
    fn a_place_is_counted_once_whatever_its_connection_becomes() {
        let mut places = Places::new(2);
        places.hold(0, Claim::Opening, S);
        places.hold(0, Claim::Stranger, S * 2);
        places.hold(0, Claim::Host, S * 3);
        assert_eq!((places.taken(), places.yield_one(S * 99, |_| S)), (1, None));
        places.leave(0);
        places.leave(0);
        assert_eq!(places.taken(), 0);
        assert!(places.lines.iter().all(BTreeSet::is_empty));
    }
}

//! Whose copy is next: each host in turn, and of one destination no more at once than it writes in time. No clock, no
//! I/O.

use std::collections::VecDeque;
use std::time::Duration;

/// Copies of a host that are looked at in one turn: those behind them wait for their turn as the others do.
const LOOKED_AT_MAX: usize = 32;

/// What a destination is given at once, in the time that it takes by its measured speed.
const AT_ONCE: Duration = Duration::from_secs(10);
/// Time of one copy where others wait too, shared by the hosts that do: a host with a few of them in flight then gets
/// each done in time. Shorter copies than [`SHORT_BYTES`] are never too long.
const WHERE_OTHERS_WAIT: Duration = Duration::from_secs(4);
const SHORT_BYTES: u64 = 1 << 20;

/// Bytes that a destination is given at once when its speed is not known: what is longer goes alone.
const UNKNOWN_BYTES: u64 = 8 << 20;
/// A speed is known from this time of work on, or from this many bytes: before, it is the time of the first answer.
const MEASURED_TIME: Duration = Duration::from_secs(1);
const MEASURED_BYTES: u64 = 8 << 20;

/// Items that wait: those of each host in the order they came, and the hosts take turns.
pub(super) struct TurnLine<H, T> {
    hosts: VecDeque<(H, VecDeque<T>)>,
}

impl<H, T> Default for TurnLine<H, T> {
    fn default() -> Self {
        Self { hosts: VecDeque::new() }
    }
}

impl<H, T> TurnLine<H, T> {
    pub(super) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Hosts that wait.
    pub(super) fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Behind the others of its host; a host that had none is the last whose turn it is.
    pub(super) fn push(&mut self, host: H, item: T, is_same: impl Fn(&H, &H) -> bool) {
        match self.hosts.iter_mut().find(|(known, _)| is_same(known, &host)) {
            Some((_, items)) => items.push_back(item),
            None => self.hosts.push_back((host, VecDeque::from([item]))),
        }
    }

    /// The next item that may begin, by host in turn. Its host is then the last whose turn it is.
    pub(super) fn take(&mut self, may: impl Fn(&H, &T) -> bool) -> Option<T> {
        let found = self.hosts.iter().enumerate().find_map(|(at, (host, items))| {
            let item = items.iter().take(LOOKED_AT_MAX).position(|item| may(host, item))?;
            Some((at, item))
        });
        let (at, item) = found?;
        let (host, mut items) = self.hosts.remove(at)?;
        let item = items.remove(item);
        if !items.is_empty() {
            self.hosts.push_back((host, items));
        }
        item
    }

    /// Keeps the items that `keep` says, in their order.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.hosts.iter_mut().for_each(|(_, items)| items.retain(&mut keep));
        self.hosts.retain(|(_, items)| !items.is_empty());
    }
}

/// True when a host with `running` of `most` tasks may have another: what it leaves is for others.
pub(super) fn may_run(of_host: usize, running: usize, most: usize) -> bool {
    let free = most.saturating_sub(running);
    free > 0 && of_host < 2 * free - 1
}

/// What copies do to one destination.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Pace {
    /// Bytes of the copies that run.
    pub(super) outstanding: u64,
    /// Bytes in a second, when last measured.
    speed: Option<u64>,
}

impl Pace {
    /// A copy has moved so many bytes in this time.
    pub(super) fn measured(&mut self, bytes: u64, time: Duration) {
        if time >= MEASURED_TIME || bytes >= MEASURED_BYTES {
            let speed = u128::from(bytes) * 1000 / time.as_millis().max(1);
            self.speed = Some(u64::try_from(speed).unwrap_or(u64::MAX).max(1));
        }
    }

    /// The same, while none runs.
    pub(super) fn alone(self) -> Self {
        Self { outstanding: 0, ..self }
    }

    /// True when a copy is too long where copies of so many hosts wait.
    pub(super) fn is_too_long(&self, bytes: u64, hosts: usize) -> bool {
        let most = WHERE_OTHERS_WAIT / u32::try_from(hosts.max(1)).unwrap_or(u32::MAX);
        bytes > SHORT_BYTES && self.alone().time_of(bytes).is_some_and(|time| time > most)
    }

    /// True when a copy of so many bytes may run beside those that do.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let at_once = self.speed.map_or(UNKNOWN_BYTES, |speed| speed.saturating_mul(AT_ONCE.as_secs()));
        self.outstanding == 0 || self.outstanding.saturating_add(bytes) <= at_once
    }

    /// How long a copy of so many bytes takes beside those that run; `None` when that is not known.
    pub(super) fn time_of(&self, bytes: u64) -> Option<Duration> {
        let millis = (self.outstanding.saturating_add(bytes)).saturating_mul(1000) / self.speed?;
        Some(Duration::from_millis(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(items: &[(char, u32)]) -> TurnLine<char, u32> {
        let mut line = TurnLine::default();
        items.iter().for_each(|&(host, item)| line.push(host, item, |a, b| a == b));
        line
    }

    #[test]
    fn a_host_with_many_copies_waits_its_turn_as_one_with_a_single_one() {
        let many = (0..960).map(|n| ('a', n));
        let mut line = line(&many.chain([('b', 1000), ('c', 1001), ('b', 1002)]).collect::<Vec<_>>());
        let order: Vec<_> = (0..6).map(|_| line.take(|_, _| true).unwrap()).collect();
        assert_eq!(order, [0, 1000, 1001, 1, 1002, 2]);
    }

    #[test]
    fn what_may_not_begin_holds_up_neither_its_host_nor_others() {
        let mut line = line(&[('a', 1), ('a', 2), ('a', 3), ('b', 4)]);
        assert_eq!(line.take(|host, item| *host == 'a' && *item == 3), Some(3));
        assert_eq!(line.take(|_, item| *item > 1), Some(4), "the turn of the other");
        line.retain(|item| *item != 1);
        assert_eq!((line.take(|_, _| true), line.take(|_, _| true)), (Some(2), None));
        assert!(line.is_empty());
    }

    #[test]
    fn no_host_takes_the_last_task_while_it_has_one() {
        let alone = |most| {
            let mut running = 0;
            while may_run(running, running, most) {
                running += 1;
            }
            running
        };
        assert_eq!([1, 2, 3, 8].map(alone), [1, 1, 2, 5]);
        for most in 1..20 {
            assert!(most == 1 || may_run(0, alone(most), most), "another finds one free of {most}");
        }
    }

    #[test]
    fn a_destination_gets_what_it_writes_in_time() {
        let mut pace = Pace::default();
        assert!(pace.has_room(64 << 20), "alone");
        pace.outstanding = 64 << 20;
        assert!(!pace.has_room(1), "not known yet");
        pace.outstanding = 4 << 20;
        assert!(pace.has_room(4 << 20) && !pace.has_room((4 << 20) + 1));
        pace.measured(1 << 16, Duration::from_millis(30));
        assert_eq!(pace.time_of(1), None, "a short one says nothing about speed");
        pace.measured(10 << 20, Duration::from_secs(1));
        pace.outstanding = 64 << 20;
        assert!(pace.has_room(36 << 20) && !pace.has_room(37 << 20));
        assert_eq!(pace.time_of(36 << 20), Some(Duration::from_secs(10)));
        assert!(pace.is_too_long(41 << 20, 1) && !pace.is_too_long(40 << 20, 1));
        assert!(pace.is_too_long(40 << 20, 2) && !pace.is_too_long(1 << 20, 1000));
    }
}

//! Asynchronous events of one controller: which happened, which were reported, and the list of changed namespaces.
//!
//! One event is claimed: a change of the attached namespaces. Reported once, it is masked until the host reads the log
//! page (Base Specification 2.1, 5.2.2: "clear the event").

use super::namespace_set::NSID_MAX;
use std::collections::BTreeSet;

/// Events of one controller.
#[derive(Default, Debug)]
pub(super) struct Events {
    changed: BTreeSet<u32>,
    /// To be reported with the next request for events.
    pending: bool,
    /// Reported; nothing more until the host has read the list.
    masked: bool,
}

// The list has room for 1024 namespaces; there are no more, so it cannot run over.
const _: () = assert!(NSID_MAX <= 1024);

impl Events {
    /// A namespace has come, gone or changed. `wanted`: the host has asked for such events.
    pub(super) fn namespace_changed(&mut self, nsid: u32, wanted: bool) {
        self.changed.insert(nsid);
        self.pending |= wanted && !self.masked;
    }

    /// True once for each event to be reported.
    pub(super) fn take(&mut self) -> bool {
        let report = std::mem::take(&mut self.pending);
        self.masked |= report;
        report
    }

    /// The namespaces that changed since the list was last read, in order. With `retain` all stays as it is; else the
    /// list starts over and the next change is reported again.
    pub(super) fn read(&mut self, retain: bool) -> Vec<u32> {
        if retain {
            return self.changed.iter().copied().collect();
        }
        (self.pending, self.masked) = (false, false);
        std::mem::take(&mut self.changed).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_until_the_list_is_read() {
        let mut events = Events::default();
        assert!(!events.take(), "nothing happened");
        events.namespace_changed(3, true);
        events.namespace_changed(1, true);
        assert!(events.take() && !events.take(), "told once");
        events.namespace_changed(2, true);
        assert!(!events.take(), "masked");
        assert_eq!(events.read(true), [1, 2, 3]);
        events.namespace_changed(2, true);
        assert!(!events.take(), "retained: still masked");
        assert_eq!(events.read(false), [1, 2, 3]);
        assert!(!events.take(), "what the list held needs no telling");
        assert_eq!(events.read(false), [0u32; 0]);
        events.namespace_changed(2, true);
        assert!(events.take(), "told again");
    }

    #[test]
    fn what_nobody_asked_for_is_listed_and_not_told() {
        let mut events = Events::default();
        events.namespace_changed(5, false);
        assert!(!events.take());
        assert_eq!(events.read(false), [5]);
    }
}

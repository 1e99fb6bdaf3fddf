//! How a connection opens and ends, the same for both ends: who is waited for, how long, and who has been told.

use super::Broken;
use std::time::Duration;

/// How long a peer has to close the connection after a TermReq. Source: TCP Transport 1.0, section 3.5.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// ICReq or ICResp is waited for.
    Opening,
    Open,
    /// Our TermReq is on its way; the peer is to close.
    Ending,
    /// Nobody is waited for.
    Over,
}

/// A connection's life.
pub(super) struct Life {
    state: State,
    patience: Duration,
    /// When `tick` first saw the state.
    since: Option<Duration>,
    broken: Option<Broken>,
}

impl Life {
    pub(super) fn new(open_timeout: Duration) -> Self {
        Self { state: State::Opening, patience: open_timeout, since: None, broken: None }
    }

    pub(super) fn open(&mut self) {
        self.state = State::Open;
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Ends with a TermReq of ours: the peer has its time to close.
    pub(super) fn end(&mut self, why: Broken) {
        (self.state, self.patience, self.since) = (State::Ending, CLOSE_TIMEOUT, None);
        self.broken = Some(why);
    }

    /// Ends here and now; `why` is `None` when the owner itself ends it.
    pub(super) fn finish(&mut self, why: Option<Broken>) {
        self.state = State::Over;
        self.broken = why;
    }

    /// What the owner has not been told yet.
    pub(super) fn news(&mut self) -> Option<Broken> {
        self.broken.take()
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.state, State::Ending | State::Over)
    }

    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// When silence ends it, as far as [`Life::tick`] has seen; `None`: never, as it stands now.
    pub(super) fn limit(&self) -> Option<Duration> {
        let waits = matches!(self.state, State::Opening | State::Ending);
        self.since.filter(|_| waits).map(|since| since.saturating_add(self.patience))
    }

    /// Time has come to `now`. True when a peer that had to open the connection did not.
    pub(super) fn tick(&mut self, now: Duration) -> bool {
        let since = *self.since.get_or_insert(now);
        let late = now.saturating_sub(since) >= self.patience;
        match self.state {
            State::Ending if late => {
                self.state = State::Over;
                false
            }
            state => state == State::Opening && late,
        }
    }
}

//! Waiting that ends when a copy is stopped.

use crate::block::lock::{Claims, CopyTicket, CoreLocks};
use crate::block::{Error, Result};
use crate::reactor::local;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// Longest sleep before a copy looks again whether it is to stop: well inside the second that is promised.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Waits for `work`, or until `stopped` says so and it is still not done.
pub(crate) async fn unless<T>(stopped: impl Fn() -> bool, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    loop {
        let mut look_again = pin!(local::sleep(LOOK_AGAIN));
        let done = poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => look_again.as_mut().poll(cx).map(|()| None),
        });
        match done.await {
            None if !stopped() => {}
            done => return done,
        }
    }
}

/// Waits until the claims are held, or `stop` says why not to.
pub(super) async fn hold(
    locks: &CoreLocks,
    claims: Claims,
    stop: impl Fn() -> Option<Error>,
) -> Result<CopyTicket> {
    let ticket = locks.begin_copy(claims);
    while !ticket.is_granted() {
        if let Some(reason) = stop() {
            return Err(reason);
        }
        let mut look_again = pin!(local::sleep(LOOK_AGAIN));
        poll_fn(|cx| match ticket.poll_granted(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => look_again.as_mut().poll(cx),
        })
        .await;
    }
    Ok(ticket)
}

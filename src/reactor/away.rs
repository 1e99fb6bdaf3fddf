//! Looks at devices that may wait (holes, sizes): made by the device's helpers while a task of this thread awaits the
//! answer.

use super::helpers::{self, Helpers};
use super::{CallDone, IoOp, Waker as ReactorWaker, current};
use crate::block::{Device, Error, Kind, Result};
use crate::sys::sync::lock;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

struct Answer<T> {
    value: Option<Result<T>>,
    waiter: Option<Waker>,
}

/// The side of the call. Dropped without having told anything, it tells that the call was not made, or panicked.
struct Teller<T> {
    answer: Arc<Mutex<Answer<T>>>,
    bell: ReactorWaker,
}

impl<T> Teller<T> {
    fn tell(&self, value: Result<T>) {
        let mut answer = lock(&self.answer);
        answer.value.get_or_insert(value);
        let waiter = answer.waiter.take();
        drop(answer);
        if let Some(waiter) = waiter {
            waiter.wake();
            // It may be this very thread that makes the call while it waits; its task is not seen otherwise.
            self.bell.wake();
        }
    }
}

impl<T> Drop for Teller<T> {
    fn drop(&mut self) {
        let text = "a call on a helper thread did not return; please report this as a bug";
        self.tell(Err(Error::new(Kind::Aborted, text)));
    }
}

/// Makes `call` on a thread of `helpers`, or here where this thread serves nobody else (`inline_writes`), and waits for
/// it. Dropping the future does not stop the call.
///
/// Errors: `Aborted` when the call panicked; `InvalidInput` when this thread has no reactor.
pub async fn on_helpers<T: Send + 'static>(
    helpers: &Arc<Helpers>,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let Some(reactor) = current() else {
        return Err(Error::new(Kind::InvalidInput, "this thread has no reactor; enter one first"));
    };
    let answer = Arc::new(Mutex::new(Answer { value: None, waiter: None }));
    let teller = Teller { answer: answer.clone(), bell: reactor.waker() };
    // Its completion is nobody's: what it brings goes another way.
    let port = reactor.open_port_of(helpers);
    let call = move || {
        teller.tell(Ok(call()));
        CallDone::default()
    };
    reactor.submit(port, 0, IoOp::Brief(Box::new(call)));
    reactor.close_port(port);
    poll_fn(|cx| {
        let mut answer = lock(&answer);
        match answer.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                answer.waiter = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}

/// Makes a look at `device`: here where it answers at once, else on its helpers.
///
/// Errors: as of [`on_helpers`].
pub async fn look<T: Send + 'static>(
    device: &Arc<dyn Device>,
    call: impl FnOnce(&Arc<dyn Device>) -> T + Send + 'static,
) -> Result<T> {
    if !device.may_wait() {
        return Ok(call(device));
    }
    let looked_at = device.clone();
    on_helpers(&helpers::of(device.identity(), device.name()), move || call(&looked_at)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::local::{Local, now, sleep};
    use crate::reactor::pool::Pool;
    use crate::reactor::sim::Sim;
    use std::rc::Rc;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn the_answer_comes_from_a_helper_or_from_here_where_nobody_else_is_served() {
        for (own, reactor) in [(true, Pool::new(true).unwrap()), (false, Pool::new(false).unwrap())] {
            let local = Local::new(Rc::new(reactor));
            let by = local.block_on(on_helpers(&helpers::of_nobody(), || thread::current().id())).unwrap();
            assert_eq!(by == thread::current().id(), own);
        }
    }

    #[test]
    fn other_tasks_go_on_while_a_look_hangs() {
        let local = Local::new(Rc::new(Pool::new(false).unwrap()));
        let (go, held) = mpsc::channel::<()>();
        let mut hangs = local.spawn(async move {
            on_helpers(&helpers::of_nobody(), move || held.recv_timeout(Duration::from_secs(60))).await
        });
        local.block_on(async {
            sleep(Duration::from_millis(1)).await;
            let soon = poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut hangs).poll(cx).is_pending())).await;
            assert!(soon);
            go.send(()).unwrap();
            assert!(hangs.await.unwrap().is_ok());
        });
    }

    #[test]
    fn a_look_that_panics_is_an_error() {
        let local = Local::new(Rc::new(Pool::new(false).unwrap()));
        let done = local.block_on(on_helpers(&helpers::of_nobody(), || panic!("planned by a test")));
        assert_eq!(done.unwrap_err().kind(), Kind::Aborted);
    }

    #[test]
    fn a_look_takes_virtual_time() {
        let local = Local::new(Rc::new(Sim::new(3)));
        let (answer, time) = local.block_on(async {
            let answer = on_helpers(&helpers::of_nobody(), || 7).await.unwrap();
            (answer, now())
        });
        assert!(answer == 7 && !time.is_zero());
    }
}

//! The threads of one service: each has started before the next begins, a panic is noticed, and all are joined.

use crate::block::{Error, Kind, Result};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Time between two checks of a thread that is waited for.
const JOIN_POLL: Duration = Duration::from_millis(8);

/// Called with the reason when a thread panics, on that thread.
type OnPanic = dyn Fn(Error) + Send + Sync;

/// Threads that serve one thing.
pub struct Crew {
    /// What they serve, as messages name it: "server".
    service: &'static str,
    on_panic: Arc<OnPanic>,
    threads: Vec<JoinHandle<()>>,
}

/// A new thread's way of saying that it can take work.
pub struct Started(mpsc::Sender<Result<()>>);

impl Started {
    /// The thread can take work.
    pub fn ready(self) {
        // Its starter waits for it.
        let _ = self.0.send(Ok(()));
    }
}

impl Crew {
    /// No threads yet. `on_panic` is called with the reason when one panics, on that thread.
    pub fn new(service: &'static str, on_panic: impl Fn(Error) + Send + Sync + 'static) -> Self {
        Self { service, on_panic: Arc::new(on_panic), threads: Vec::new() }
    }

    /// Starts a thread that runs `work`; returns when it is ready.
    ///
    /// Errors: no thread can be had; that with which `work` ends before it is ready. The crew is then as before.
    pub fn start(
        &mut self,
        name: String,
        work: impl FnOnce(Started) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (started, starts) = mpsc::channel();
        let (service, on_panic) = (self.service, self.on_panic.clone());
        let run = move || {
            let _guard = PanicGuard::new(|| on_panic(panicked(service)));
            let failed = started.clone();
            if let Err(error) = work(Started(started)) {
                drop(failed.send(Err(error)));
            }
        };
        let thread = thread::Builder::new().name(name).spawn(run);
        let thread = thread.map_err(|e| Error::os("a thread cannot be started", e))?;
        let ended = || Error::new(Kind::Aborted, format!("a thread of the {service} ended while it started"));
        match starts.recv().map_err(|_| ended()).flatten() {
            Ok(()) => self.threads.push(thread),
            Err(error) => {
                // It has nothing left to do; its panic has been reported.
                let _ = thread.join();
                return Err(error);
            }
        }
        Ok(())
    }

    /// True when the thread that was started as number `index` runs.
    pub fn is_running(&self, index: usize) -> bool {
        self.threads.get(index).is_some_and(|thread| !thread.is_finished())
    }

    /// True when every thread that was started runs.
    pub fn all_run(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits for the threads, which were asked to end; with `patience` no longer than that for all of them.
    pub fn join(&mut self, patience: Option<Duration>) {
        let (begun, service) = (Instant::now(), self.service);
        for thread in self.threads.drain(..) {
            if let Some(patience) = patience {
                while !thread.is_finished() && begun.elapsed() < patience {
                    thread::sleep(JOIN_POLL);
                }
                if !thread.is_finished() {
                    tracing::error!("a thread of the {service} does not end");
                    continue;
                }
            }
            if thread.join().is_err() {
                tracing::error!("{}", panicked(service));
            }
        }
    }
}

/// The error of a service one of whose threads panicked.
pub fn panicked(service: &str) -> Error {
    let text = format!("a thread of the {service} panicked; please report this as a bug");
    Error::new(Kind::Aborted, text)
}

/// Calls a hook when it is dropped by a panic.
pub struct PanicGuard<F: FnMut()>(F);

impl<F: FnMut()> PanicGuard<F> {
    /// Watches over the calling thread until it is dropped.
    pub fn new(on_panic: F) -> Self {
        Self(on_panic)
    }
}

impl<F: FnMut()> Drop for PanicGuard<F> {
    fn drop(&mut self) {
        if thread::panicking() {
            (self.0)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::Ending;

    fn crew() -> (Crew, Ending) {
        let ending = Ending::default();
        let end = ending.clone();
        (Crew::new("test", move |why| end.end(Some(why))), ending)
    }

    /// Work that lasts until the other end is dropped.
    fn waits(stops: mpsc::Receiver<()>) -> impl FnOnce(Started) -> Result<()> {
        move |started| {
            started.ready();
            let _ = stops.recv();
            Ok(())
        }
    }

    #[test]
    fn a_thread_that_cannot_start_says_why_and_is_not_of_the_crew() {
        let (mut crew, ending) = crew();
        let error = crew.start("a".into(), |_| Err(Error::new(Kind::NoMemory, "none left"))).unwrap_err();
        assert_eq!(error.kind(), Kind::NoMemory);
        let error = crew.start("b".into(), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("a thread of the test ended while it started"), "{error}");
        assert!(!crew.is_running(0) && !ending.is_over());
        let (stop, stops) = mpsc::channel();
        crew.start("c".into(), waits(stops)).unwrap();
        assert!(crew.is_running(0) && crew.all_run(), "the first that has started");
        drop(stop);
        crew.join(None);
    }

    #[test]
    fn a_panic_ends_the_service_and_the_others_are_joined() {
        let (mut crew, ending) = crew();
        let (stop, stops) = mpsc::channel();
        crew.start("waits".into(), waits(stops)).unwrap();
        let panics = |started: Started| {
            started.ready();
            panic!("as the test wants")
        };
        crew.start("panics".into(), panics).unwrap();
        while crew.is_running(1) {
            thread::yield_now();
        }
        assert!(crew.is_running(0) && !crew.all_run());
        let why = ending.take_failure().unwrap();
        assert!(why.to_string().contains("a thread of the test panicked"), "{why}");
        drop(stop);
        crew.join(None);
    }

    #[test]
    fn a_thread_that_does_not_end_is_waited_for_no_longer_than_patience() {
        let (mut crew, _) = crew();
        let (stop, stops) = mpsc::channel();
        crew.start("hangs".into(), waits(stops)).unwrap();
        crew.join(Some(Duration::from_millis(20)));
        assert!(!crew.is_running(0));
        drop(stop);
    }
}

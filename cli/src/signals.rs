//! What signals do, for all commands, and how the process ends: nothing that hangs keeps it longer than it said.
//!
//! The command runs on a thread of its own. The main thread waits for its end and for signals, so that it can say
//! within a second what the command waits for, whatever that is, and leave.

use crate::bar;
use crate::fail::{Code, Fail, print_error};
use crate::lines;
use crate::output::{self, err, note};
use crate::progress;
use crate::stuck;
use blkcopy::block::{Error, Kind};
use blkcopy::reactor::Waker;
use blkcopy::sys::process::{exit_now, ignore, is_ignored};
use blkcopy::volume::{CancelHandle, CopyWatch};
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGPROF, SIGQUIT, SIGTERM, SIGTTOU, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU,
    SIGXFSZ,
};
use signal_hook::iterator::Signals;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a signal does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Does {
    /// Ends the command well; again: says what is being waited for.
    End,
    /// Says how far it is.
    Tell,
    /// Nothing, where the system's default would end the process.
    Nothing,
}

/// The table; docs/semantics.md shows it. What does not stand here does what the system has it do.
const TABLE: [(i32, &str, Does); 11] = [
    (SIGHUP, "SIGHUP", Does::End),
    (SIGINT, "SIGINT", Does::End),
    (SIGTERM, "SIGTERM", Does::End),
    (SIGQUIT, "SIGQUIT", Does::End),
    (SIGXCPU, "SIGXCPU", Does::End),
    (SIGUSR1, "SIGUSR1", Does::Tell),
    (SIGUSR2, "SIGUSR2", Does::Nothing),
    (SIGALRM, "SIGALRM", Does::Nothing),
    (SIGVTALRM, "SIGVTALRM", Does::Nothing),
    (SIGPROF, "SIGPROF", Does::Nothing),
    // Past RLIMIT_FSIZE: the write that caused it answers EFBIG, which is told like a full disk.
    (SIGXFSZ, "SIGXFSZ", Does::Nothing),
];

/// How long a command that was asked to end is waited for before it is left where it is.
const LEAVE_AFTER: Duration = Duration::from_millis(850);
/// The same for a daemon, whose volumes may owe writes; while it gets on it is waited for longer.
const GRACE: Duration = Duration::from_secs(20);
/// When a daemon that ends first says what it waits for, and how often after that.
const SAY_AFTER: Duration = Duration::from_millis(850);
const SAY_EVERY: Duration = Duration::from_secs(5);
/// How long last lines are waited for by a command, and by whoever was told to end.
pub(crate) const LINES_PATIENCE: Duration = Duration::from_secs(3600);
const LAST_LINES_PATIENCE: Duration = Duration::from_millis(100);
/// Stack of the command's thread: as much as a main thread has.
const STACK_BYTES: usize = 8 << 20;

/// The command's side: whether it is to end, and what it is doing. Clones are of one process.
#[derive(Clone)]
pub(crate) struct Interrupts {
    pub(crate) cancel: CancelHandle,
    hub: Arc<Hub>,
}

struct Hub {
    doing: Mutex<String>,
    board: Arc<CopyWatch>,
    serves: AtomicBool,
    events: Mutex<Sender<Event>>,
}

enum Event {
    Signal(i32),
    /// Over, and all is said.
    Ended(Code),
    /// All is said; what still hangs is left behind.
    Leave(Code),
    /// The command panicked; the hook has said why.
    Panicked,
}

/// Tells of a command's thread that panicked.
struct Gone(Sender<Event>);

impl Drop for Gone {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.send(Event::Panicked);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is held under these locks cannot be left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those of this process, from the first moment on.
static PROCESS: OnceLock<Interrupts> = OnceLock::new();

impl Interrupts {
    /// Those of this process.
    ///
    /// Errors: nobody listens, in a program that does not run under [`supervise`].
    pub(crate) fn listen() -> Result<Self, Fail> {
        PROCESS.get().cloned().ok_or_else(|| Error::new(Kind::Aborted, "cannot wait for signals").into())
    }

    /// Says what the command does from now on, in words that follow "while": "opening a.img".
    pub(crate) fn doing(&self, what: impl Into<String>) {
        *lock(&self.hub.doing) = what.into();
    }

    /// From here on there may be writes that only a good end stores.
    pub(crate) fn serves(&self) {
        self.hub.serves.store(true, Ordering::Release);
    }

    /// Lets a daemon in the background write to its terminal: it would be stopped (`stty tostop`), and all who use its
    /// volumes.
    pub(crate) fn writes_from_behind(&self) {
        let _ = ignore(SIGTTOU);
    }

    /// How far a copy is, for whoever asks.
    pub(crate) fn board(&self) -> &Arc<CopyWatch> {
        &self.hub.board
    }

    /// Waits on this thread until the first signal, or until it is unparked and `is_over`.
    pub(crate) fn wait_unless(&self, is_over: impl Fn() -> bool) {
        let thread = thread::current();
        self.cancel.wakes(Waker::new(move || thread.unpark()));
        while !self.cancel.is_set() && !is_over() {
            thread::park();
        }
    }

    /// Everything is said and done but what hangs: ends the process without waiting for that.
    pub(crate) fn leave(&self, code: Code) -> ! {
        let code = self.say_last(Ok(code));
        let _ = lock(&self.hub.events).send(Event::Leave(code));
        loop {
            thread::park();
        }
    }

    /// The last words of a command that ended: its error, and that of a stdout that did not take the result. Waits for
    /// readers of lines, unless it was told to end or is a daemon; on the command's thread, so that a signal can still
    /// end it.
    fn say_last(&self, result: Result<Code, Fail>) -> Code {
        let mut code = match result {
            Ok(code) => code,
            Err(fail) => fail.print(),
        };
        if let Err(error) = output::finish() {
            let what = match code {
                Code::Done => "the work is done, but the result cannot be written to standard output",
                _ => "the result cannot be written to standard output",
            };
            print_error(&Error::os(what, error), None);
            if code != Code::Cancelled {
                code = Code::Error;
            }
        }
        let hurried = self.cancel.is_set() || self.hub.serves.load(Ordering::Acquire);
        let patience = if hurried { LAST_LINES_PATIENCE } else { LINES_PATIENCE };
        lines::stdout().drain(LAST_LINES_PATIENCE);
        lines::stderr().drain(patience);
        code
    }

    /// What is being done, in words.
    fn now(&self) -> String {
        let doing = lock(&self.hub.doing).clone();
        progress::line(&self.hub.board)
            .map_or(doing.clone(), |line| if doing.is_empty() { line } else { format!("{doing}: {line}") })
    }
}

/// Runs a command on a thread of its own and ends as it does, or as signals ask.
pub(crate) fn supervise(run: impl FnOnce() -> Result<Code, Fail> + Send + 'static) -> ExitCode {
    let (events, heard) = channel();
    let board = Arc::new(CopyWatch::default());
    let hub = Hub {
        doing: Mutex::default(),
        board,
        serves: AtomicBool::new(false),
        events: Mutex::new(events.clone()),
    };
    let interrupts = Interrupts { cancel: CancelHandle::default(), hub: Arc::new(hub) };
    let _ = PROCESS.set(interrupts.clone());
    if let Err(error) = hear(&events) {
        return interrupts.say_last(Err(Error::os("cannot wait for signals", error).into())).into();
    }
    let theirs = interrupts.clone();
    let body = move || {
        let gone = Gone(events);
        let code = theirs.say_last(run());
        let _ = gone.0.send(Event::Ended(code));
    };
    let thread = thread::Builder::new().name("blkcopy-command".into()).stack_size(STACK_BYTES).spawn(body);
    match thread {
        Ok(thread) => {
            Watch { interrupts, asked: None, said: None, before: Trace::default() }.watch(&heard, thread)
        }
        Err(e) => interrupts.say_last(Err(Error::os("a thread cannot be started", e).into())).into(),
    }
}

/// Hands the signals of the table on, from now on.
fn hear(events: &Sender<Event>) -> std::io::Result<()> {
    // Started with `nohup`, a hang-up is none of ours.
    let heard = TABLE.iter().filter(|(signal, ..)| *signal != SIGHUP || !is_ignored(SIGHUP));
    let mut signals = Signals::new(heard.map(|(signal, ..)| *signal))?;
    let events = events.clone();
    let forward = move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("blkcopy-signals".into()).spawn(forward).map(drop)
}

/// The main thread's side.
struct Watch {
    interrupts: Interrupts,
    /// When the command was first asked to end.
    asked: Option<Instant>,
    /// When it was last said what it waits for.
    said: Option<Instant>,
    /// What its threads had done by then.
    before: Trace,
}

/// What shows that a process gets on: another call, or more bytes written. What is the same for a while hangs.
#[derive(Default, PartialEq, Eq)]
struct Trace {
    calls: Vec<stuck::Call>,
    written: (u64, u64),
}

impl Watch {
    fn watch(mut self, heard: &Receiver<Event>, thread: thread::JoinHandle<()>) -> ExitCode {
        loop {
            let event = match self.next() {
                Some(at) => heard.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Signal(signal)) => self.signal(signal),
                Ok(Event::Ended(code)) => {
                    drop(thread.join());
                    return code.into();
                }
                Ok(Event::Leave(code)) => exit_now(code.number().into()),
                Err(RecvTimeoutError::Timeout) => self.late(),
                Ok(Event::Panicked) | Err(RecvTimeoutError::Disconnected) => {
                    lines::stderr().drain(LAST_LINES_PATIENCE);
                    return ExitCode::from(101);
                }
            }
        }
    }

    /// When it is time to look whether the command has ended.
    fn next(&self) -> Option<Instant> {
        let asked = self.asked?;
        if !self.interrupts.hub.serves.load(Ordering::Acquire) {
            return Some(asked + LEAVE_AFTER);
        }
        Some(self.said.map_or(asked + SAY_AFTER, |said| said + SAY_EVERY))
    }

    fn signal(&mut self, signal: i32) {
        let Some((_, name, does)) = TABLE.iter().find(|(number, ..)| *number == signal) else { return };
        match does {
            Does::Nothing => {}
            Does::Tell => {
                let now = self.interrupts.now();
                note(if now.is_empty() { "nothing has started yet" } else { &now });
            }
            Does::End if self.asked.is_none() => {
                self.asked = Some(Instant::now());
                self.interrupts.cancel.cancel();
            }
            Does::End => note(&format!("{name}: already stopping; {}", self.waits_for(&stuck::calls()))),
        }
    }

    /// What the command waits for, in words.
    fn waits_for(&self, calls: &[stuck::Call]) -> String {
        let (now, calls) = (self.interrupts.now(), stuck::words(calls));
        match (now.is_empty(), calls.is_empty()) {
            (false, false) => format!("{now}; waiting for {calls}"),
            (false, true) => now,
            (true, false) => format!("waiting for {calls}"),
            (true, true) => "ending".to_owned(),
        }
    }

    /// Leaves; nothing here may wait for what the command waits for.
    fn go(code: Code) -> ! {
        lines::stderr().drain(LAST_LINES_PATIENCE);
        exit_now(code.number().into())
    }

    /// The command was asked to end and has not.
    fn late(&mut self) {
        let calls = stuck::calls();
        if !self.interrupts.hub.serves.load(Ordering::Acquire) {
            let mut text = format!("blkcopy: stopped while {}\n", self.waits_for(&calls));
            text += &progress::last_words(&self.interrupts.hub.board);
            bar::ends();
            err(&text);
            Self::go(Code::Cancelled);
        }
        note(&format!("stopping; {}", self.waits_for(&calls)));
        self.said = Some(Instant::now());
        let trace = Trace { calls, written: stuck::written() };
        let gets_on = trace != self.before;
        let late = self.asked.is_some_and(|asked| asked.elapsed() >= GRACE);
        if late && !gets_on {
            note(&format!(
                "no progress for {} s: exits now; data that was not flushed may be lost, and lazy zeroes that were \
                 not stored",
                GRACE.as_secs()
            ));
            Self::go(Code::Error);
        }
        self.before = trace;
    }
}

//! The executor over every engine, with a device whose answers come late and by the reactor.

use super::local::*;
use super::pool::Pool;
use super::sim::Sim;
use super::uring::Uring;
use super::*;
use crate::block::{
    Access, BufPool, ByteRange, Completion, Counters, Device, Identity, Limits, LimitsChange, Op, Queue,
    Request, Resolution, Result,
};
use crate::drivers::mem::Mem;
use std::any::Any;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;

fn each_engine(test: impl Fn(&'static str, Local)) {
    match Uring::new(true) {
        Ok(engine) => test("uring", Local::new(Rc::new(engine))),
        Err(e) => eprintln!("SKIPPED uring: {e}"),
    }
    test("pool", Local::new(Rc::new(Pool::new(true).unwrap())));
    test("sim", Local::new(Rc::new(Sim::new(11))));
}

/// A memory device that serves each request after a call on a helper thread; takes at most 4 at a time.
struct Late(Arc<Mem>);

struct LateQueue {
    reactor: Rc<dyn Reactor>,
    port: Port,
    held: HashMap<u64, Request>,
    inner: Box<dyn Queue>,
}

impl Device for Late {
    fn name(&self) -> &str {
        "late"
    }
    fn identity(&self) -> Identity {
        self.0.identity()
    }
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.0.change_limits(change)
    }
    fn resolve(self: Arc<Self>, range: ByteRange, access: Access) -> Result<Resolution> {
        self.0.clone().resolve(range, access)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let reactor = current().expect("a Local is there");
        let port = reactor.open_port();
        Ok(Box::new(LateQueue { reactor, port, held: HashMap::new(), inner: self.0.clone().open_queue()? }))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Queue for LateQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        while self.held.len() < 4
            && let Some(request) = batch.pop_front()
        {
            let tag = request.tag();
            self.held.insert(tag, request);
            self.reactor.submit(self.port, tag, IoOp::Call(Box::new(CallDone::default)));
        }
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut ready = Vec::new();
        self.reactor.complete(self.port, &mut ready);
        let mut batch = ready.iter().filter_map(|d| self.held.remove(&d.token)).collect();
        self.inner.submit(&mut batch);
        self.inner.poll(done);
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

impl Drop for LateQueue {
    fn drop(&mut self) {
        self.reactor.close_port(self.port);
    }
}

fn late() -> Arc<Late> {
    Arc::new(Late(Arc::new(Mem::new("mem", 1 << 20, NonZeroU32::new(512).unwrap()).unwrap())))
}

fn block(i: u64) -> ByteRange {
    ByteRange::new(i * 512, 512).unwrap()
}

fn write(i: u64, mut buf: crate::block::Buf) -> Op {
    buf.fill(u8::try_from(i % 251).unwrap());
    Op::Write { range: block(i), buf, fua: false }
}

#[test]
fn many_requests_of_many_tasks_complete_and_return_their_buffers() {
    each_engine(|name, local| {
        let pool = Rc::new(BufPool::new(100 * 4096, 4096).unwrap());
        let total = local.block_on(async {
            let client = Client::open(late()).unwrap();
            let mut tasks = Vec::new();
            for t in 0..5u64 {
                let (client, pool) = (client.clone(), pool.clone());
                tasks.push(spawn(async move {
                    let all: Vec<_> =
                        (0..20).map(|i| client.submit(write(t * 20 + i, pool.take(512).unwrap()))).collect();
                    for submitted in all {
                        submitted.await.result.unwrap();
                    }
                    for i in 0..20 {
                        let range = block(t * 20 + i);
                        let done = client.submit(Op::Read { range, buf: pool.take(512).unwrap() }).await;
                        done.result.unwrap();
                        assert!(done.buf.iter().all(|&b| u64::from(b) == (t * 20 + i) % 251));
                    }
                    20
                }));
            }
            let mut total = 0;
            for task in tasks {
                total += task.await;
            }
            assert_eq!(client.counters().requests, 200);
            total
        });
        assert_eq!(total, 100, "{name}");
        let all: Vec<_> = (0..100).map(|_| pool.take(1)).collect();
        assert!(all.iter().all(Option::is_some), "{name}: a buffer was lost");
    });
}

#[test]
fn a_dropped_future_lets_the_request_finish() {
    each_engine(|name, local| {
        let (device, pool) = (late(), BufPool::new(8 * 4096, 4096).unwrap());
        local.block_on(async {
            let client = Client::open(device.clone()).unwrap();
            for i in 0..8 {
                drop(client.submit(write(i + 1, pool.take(512).unwrap())));
            }
        });
        drop(local); // waits for them
        let all: Vec<_> = (0..8).map(|_| pool.take(1)).collect();
        assert!(all.iter().all(Option::is_some), "{name}: a buffer was lost");
        let again = Local::new(Rc::new(Pool::new(true).unwrap()));
        again.block_on(async {
            let client = Client::open(device.clone()).unwrap();
            for i in 0..8 {
                let buf = pool_buf();
                let done = client.submit(Op::Read { range: block(i + 1), buf }).await;
                assert!(done.buf.iter().all(|&b| u64::from(b) == i + 1), "{name}: write {i} was not made");
            }
        });
    });
}

fn pool_buf() -> crate::block::Buf {
    crate::block::Buf::alloc(512).unwrap()
}

#[test]
fn timers_fire_in_order_and_on_the_reactors_clock() {
    each_engine(|name, local| {
        let order = Rc::new(RefCell::new(Vec::new()));
        local.block_on(async {
            let start = now();
            let mut tasks = Vec::new();
            for ms in [7u64, 1, 4] {
                let order = order.clone();
                tasks.push(spawn(async move {
                    sleep(Duration::from_millis(ms)).await;
                    order.borrow_mut().push(ms);
                }));
            }
            for task in tasks {
                task.await;
            }
            assert!(now() - start >= Duration::from_millis(7), "{name}");
        });
        assert_eq!(*order.borrow(), [1, 4, 7], "{name}");
    });
}

#[test]
fn virtual_hours_pass_at_once() {
    let local = Local::new(Rc::new(Sim::new(1)));
    local.block_on(sleep(Duration::from_secs(3600 * 24 * 365)));
    assert_eq!(local.block_on(async { now() }), Duration::from_secs(3600 * 24 * 365));
}

#[test]
fn yielding_lets_others_run() {
    each_engine(|name, local| {
        let seen = Rc::new(RefCell::new(String::new()));
        local.block_on(async {
            let mut tasks = Vec::new();
            for letter in ['a', 'b'] {
                let seen = seen.clone();
                tasks.push(spawn(async move {
                    for _ in 0..3 {
                        seen.borrow_mut().push(letter);
                        yield_now().await;
                    }
                }));
            }
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(*seen.borrow(), "ababab", "{name}");
    });
}

#[test]
fn an_interrupt_from_another_thread_ends_the_sleep() {
    each_engine(|name, local| {
        for _ in 0..20 {
            let interrupt = Interrupt::default();
            let other = interrupt.clone();
            let thread = std::thread::spawn(move || other.set());
            local.block_on(interrupt.wait());
            assert!(interrupt.is_set(), "{name}");
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_task_woken_when_block_on_returns_runs_in_the_next() {
    each_engine(|name, local| {
        let count = Rc::new(Cell::new(0));
        let (notify, counted) = (Notify::default(), count.clone());
        let line = notify.clone();
        let task = local.spawn(async move {
            line.notified().await;
            counted.set(counted.get() + 1);
        });
        local.block_on(yield_now());
        local.block_on(async { notify.notify_one() });
        assert_eq!(count.get(), 0, "{name}");
        local.block_on(task);
        assert_eq!(count.get(), 1, "{name}");
    });
}

#[test]
fn the_line_is_first_come_first_served() {
    each_engine(|name, local| {
        let (notify, order) = (Notify::default(), Rc::new(RefCell::new(Vec::new())));
        local.block_on(async {
            notify.notify_one(); // nobody waits: forgotten
            assert!(!notify.has_waiters());
            let mut places: Vec<_> = (0..5).map(|_| Some(notify.notified())).collect();
            // The second leaves the line; the first is notified, does not look, and hands it on to the third.
            places[1] = None;
            notify.notify_one();
            places[0] = None;
            let mut tasks = Vec::new();
            for i in [4, 2, 3] {
                let (place, order) = (places[i].take().unwrap(), order.clone());
                tasks.push(spawn(async move {
                    place.await;
                    order.borrow_mut().push(i);
                }));
            }
            yield_now().await;
            yield_now().await;
            assert_eq!(*order.borrow(), [2], "{name}");
            notify.notify_one();
            yield_now().await;
            yield_now().await;
            assert_eq!(*order.borrow(), [2, 3], "{name}");
            notify.notify_all();
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(*order.borrow(), [2, 3, 4], "{name}");
        assert!(!notify.has_waiters());
    });
}

#[test]
fn hooks_run_each_turn_and_around_each_sleep() {
    each_engine(|name, local| {
        let log = Rc::new(RefCell::new(Vec::new()));
        let (turns, left) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(3)));
        let (t, l) = (turns.clone(), left.clone());
        local.on_turn(move || {
            t.set(t.get() + 1);
            let more = l.get() > 0;
            l.set(l.get().max(1) - 1);
            more
        });
        let (a, b) = (log.clone(), log.clone());
        let mut refuse = true;
        local.before_wait(move || {
            a.borrow_mut().push("before");
            std::mem::replace(&mut refuse, false)
        });
        local.after_wait(move || b.borrow_mut().push("after"));
        local.block_on(sleep(Duration::from_millis(2)));
        assert!(turns.get() >= 5, "{name}: {} turns", turns.get());
        let log = log.borrow();
        assert!(log.len() >= 4 && log.chunks(2).all(|c| c == ["before", "after"]), "{name}: {log:?}");
    });
}

#[test]
fn a_client_without_users_closes_its_queue_when_the_last_request_is_done() {
    each_engine(|name, local| {
        let device = late();
        local.block_on(async {
            let client = Client::open(device.clone()).unwrap();
            let submitted = client.submit(Op::Flush);
            drop(client);
            submitted.await.result.unwrap();
            assert!(Arc::strong_count(&device) > 1);
            yield_now().await;
            assert_eq!(Arc::strong_count(&device), 1, "{name}: the queue is still open");
        });
    });
}

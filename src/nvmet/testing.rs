//! For tests of the target: a world on one thread with virtual time, hosts in it, and a device that waits to be told.

use super::*;
use crate::block::device::resolve_plain;
use crate::block::lock::{CoreLocks, LockDomain};
use crate::block::{
    Access, Buf, BufPool, Completion, CopyPath, Counters, Device, Extent, Identity, Limits, LimitsChange, Op,
    Request, Resolution, Result,
};
use crate::block::{ByteRange, Queue as BlockQueue};
use crate::drivers::mem::Mem;
use crate::drivers::null::Null;
use crate::drivers::{File, FileOptions};
use crate::nvme::admin::{GetLogPage, Identify, SetFeatures};
use crate::nvme::command::Transfer;
use crate::nvme::copy::{Format, write_ranges};
use crate::nvme::fabrics::{CNTLID_DYNAMIC, Connect, ConnectData, FabricsCommand, Width};
use crate::nvme::feature::{HostBehavior, fid};
use crate::nvme::io::{DsmRange, Extent as Blocks_};
use crate::nvme::property::{Cc, offset};
use crate::nvme::{
    AdminCommand, Blocks, CopyCommand, Count8, Count16, IoCommand, Nqn, Sgl, SourceRange, Sqe, Status,
};
use crate::reactor::Reactor;
use crate::reactor::local::{self, Local};
use crate::reactor::sim::Sim;
use crate::sim::VolatileDisk;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub(super) const BLOCK: u64 = 512;
/// Turns after which something hangs.
const PATIENCE: usize = 50_000;
/// Virtual time between two turns.
const TURN: Duration = Duration::from_micros(200);

pub(super) type Dev = Arc<dyn Device>;

pub(super) fn mem(blocks: u64) -> Arc<Mem> {
    mem_of(blocks * BLOCK, 512)
}

pub(super) fn mem_of(bytes: u64, block: u32) -> Arc<Mem> {
    Arc::new(Mem::new(format!("mem:{bytes}"), bytes, NonZeroU32::new(block).unwrap()).unwrap())
}

pub(super) fn disk(blocks: u64) -> Arc<VolatileDisk> {
    Arc::new(
        VolatileDisk::new(format!("disk {blocks}"), blocks * BLOCK, NonZeroU32::new(512).unwrap()).unwrap(),
    )
}

pub(super) fn null(blocks: u64) -> Dev {
    Arc::new(Null::new("null", blocks * BLOCK, NonZeroU32::new(512).unwrap()).unwrap())
}

/// A file on this machine's temporary file system, and what keeps it there.
pub(super) fn file(blocks: u64) -> (Arc<File>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let options = FileOptions { write: true, create: true };
    let file = File::open(dir.path().join("image"), options).unwrap();
    file.set_len(blocks * BLOCK).unwrap();
    (file, dir)
}

pub(super) fn blocks(bytes: &[u8], lba: u64, count: u64) -> &[u8] {
    &bytes[(lba * BLOCK) as usize..((lba + count) * BLOCK) as usize]
}

/// Status and dword 0.
pub(super) fn end(told: Told) -> (Status, u64) {
    (told.status, told.result)
}

pub(super) fn settings() -> Settings {
    Settings {
        queue_entries: Count16::from_wire(127),
        io_queues: 8,
        transfer_bytes: 1 << 20,
        in_capsule_bytes: 10240,
        copy_formats: 0,
    }
}

/// A target on one thread: several workers, polled in turn.
pub(super) struct World {
    pub(super) workers: Vec<RefCell<Worker>>,
    pub(super) lines: Rc<RefCell<Vec<CopyLine>>>,
    pub(super) target: Arc<Target>,
    pub(super) subsystem: Arc<Subsystem>,
    pub(super) pool: Rc<BufPool>,
    answers: RefCell<HashMap<(usize, CommandId), Answer>>,
    pub(super) lost: RefCell<Vec<(usize, ConnectionId)>>,
    pub(super) reactor: Rc<Sim>,
    pub(super) local: Local,
}

/// What a test makes a world of.
pub(super) struct Make {
    pub(super) devices: Vec<(Dev, NamespaceOptions)>,
    pub(super) workers: usize,
    /// Buffers of the pool.
    pub(super) buffers: usize,
    pub(super) settings: Settings,
}

impl Make {
    pub(super) fn new(devices: impl IntoIterator<Item = Dev>) -> Self {
        let devices = devices.into_iter().map(|d| (d, NamespaceOptions::default())).collect();
        Self { devices, workers: 1, buffers: 64, settings: settings() }
    }

    pub(super) fn world(self) -> World {
        let reactor = Rc::new(Sim::new(7));
        let local = Local::new(reactor.clone());
        let target = Target::new(self.settings).unwrap();
        let nqn = Nqn::new("nqn.2024-01.test:one").unwrap();
        let subsystem = Subsystem::new(SubsystemOptions { nqn, serial: None });
        for (device, options) in self.devices {
            subsystem.add(device, options).unwrap();
        }
        target.serve(subsystem.clone()).unwrap();
        let chunk = self.settings.transfer_bytes as usize;
        let pool = Rc::new(BufPool::new(self.buffers * chunk, chunk).unwrap());
        assert_eq!(pool.count(), self.buffers);
        let domain = LockDomain::new();
        let lines = Rc::new(RefCell::new(Vec::new()));
        let workers = (0..self.workers).map(|_| {
            let locks: Rc<CoreLocks> = Rc::new(domain.attach(|| ()).unwrap());
            let mut worker = Worker::new(target.clone(), locks, reactor.waker());
            let kept = lines.clone();
            worker.on_copy(move |line| kept.borrow_mut().push(line.clone()));
            RefCell::new(worker)
        });
        World {
            workers: workers.collect(),
            lines: lines.clone(),
            target,
            subsystem,
            pool,
            answers: RefCell::default(),
            lost: RefCell::default(),
            reactor,
            local,
        }
    }
}

impl World {
    pub(super) fn new(devices: impl IntoIterator<Item = Dev>) -> Self {
        Make::new(devices).world()
    }

    pub(super) fn now(&self) -> Duration {
        self.reactor.now()
    }

    /// One turn of every worker, without time going by.
    pub(super) fn poll(&self) {
        for (at, worker) in self.workers.iter().enumerate() {
            let (mut answers, mut lost) = (Vec::new(), Vec::new());
            worker.borrow_mut().tick(self.now(), &mut lost);
            worker.borrow_mut().poll(&mut answers);
            self.lost.borrow_mut().extend(lost.into_iter().map(|id| (at, id)));
            for answer in answers {
                let twice = self.answers.borrow_mut().insert((at, answer.id), answer);
                assert!(twice.is_none(), "a command is answered once");
            }
        }
    }

    /// One turn of every worker, and a little time.
    pub(super) fn turn(&self) {
        self.poll();
        self.step(TURN);
    }

    /// Lets tasks run and, when there is nothing to do, some time go by.
    fn step(&self, time: Duration) {
        self.local.block_on(local::yield_now());
        self.reactor.wait(Some(self.now() + time));
    }

    pub(super) fn turns(&self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    /// Turns until `done`.
    pub(super) fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..PATIENCE {
            if done() {
                return;
            }
            self.turn();
        }
        panic!("{what}: it hangs");
    }

    /// Lets so much time go by, with turns in between.
    pub(super) fn pass(&self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            self.poll();
            self.step(Duration::from_millis(50));
        }
        self.poll();
    }

    pub(super) fn host(&self, name: &str) -> Host<'_> {
        let mut id = [0; 16];
        id[..name.len().min(16)].copy_from_slice(&name.as_bytes()[..name.len().min(16)]);
        let subsystem = self.subsystem.nqn().clone();
        Host { world: self, worker: 0, nqn: Nqn::new(name).unwrap(), id, subsystem }
    }

    /// Buffers that can be taken now.
    pub(super) fn free_buffers(&self) -> usize {
        let all: Vec<Buf> = std::iter::from_fn(|| self.pool.take(1)).collect();
        all.len()
    }

    /// True when no worker has anything in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.workers.iter().all(|worker| worker.borrow().is_idle())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.answers.get_mut().clear();
        }
    }
}

/// A host that connects.
#[derive(Clone)]
pub(super) struct Host<'w> {
    pub(super) world: &'w World,
    pub(super) worker: usize,
    pub(super) nqn: Nqn,
    pub(super) id: [u8; 16],
    pub(super) subsystem: Nqn,
}

impl<'w> Host<'w> {
    pub(super) fn on_worker(mut self, worker: usize) -> Self {
        self.worker = worker;
        self
    }

    pub(super) fn open(&self) -> Queue<'w> {
        let local = "192.0.2.7:4420".parse().unwrap();
        let id = self.world.workers[self.worker].borrow_mut().open(local).unwrap();
        Queue { world: self.world, worker: self.worker, id, cntlid: Cell::new(0), next: Cell::new(0) }
    }

    pub(super) fn data(&self, cntlid: u16) -> ConnectData {
        ConnectData { host_id: self.id, cntlid, subsystem: self.subsystem.clone(), host: self.nqn.clone() }
    }

    /// An admin queue of a controller that is not enabled yet.
    pub(super) fn connect(&self, keep_alive_ms: u32) -> Queue<'w> {
        let queue = self.open();
        let connect = Connect { keep_alive_ms: NonZeroU32::new(keep_alive_ms), ..connect(0) };
        let answer = queue.tell(connect_sqe(connect), &self.data(CNTLID_DYNAMIC).to_bytes());
        assert!(answer.status.is_success(), "{}", answer.status);
        queue.cntlid.set(u16::try_from(answer.result & 0xffff).unwrap());
        queue
    }

    /// An admin queue of an enabled controller.
    pub(super) fn admin(&self) -> Queue<'w> {
        let queue = self.connect(0);
        queue.enable();
        queue
    }

    /// An I/O queue of the admin queue's controller.
    pub(super) fn io(&self, admin: &Queue<'w>, qid: u16) -> Queue<'w> {
        let queue = self.open();
        let answer = queue.tell(connect_sqe(connect(qid)), &self.data(admin.cntlid.get()).to_bytes());
        assert!(answer.status.is_success(), "{}", answer.status);
        queue.cntlid.set(admin.cntlid.get());
        queue
    }

    /// Both.
    pub(super) fn both(&self) -> (Queue<'w>, Queue<'w>) {
        let admin = self.admin();
        let io = self.io(&admin, 1);
        (admin, io)
    }
}

pub(super) fn connect(qid: u16) -> Connect {
    Connect { qid, entries: Count16::from_wire(31), no_flow_control: true, keep_alive_ms: None }
}

pub(super) fn connect_sqe(connect: Connect) -> Sqe {
    FabricsCommand::Connect(connect).to_sqe()
}

/// The end of a command as the host sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Told {
    pub(super) status: Status,
    pub(super) result: u64,
    pub(super) data: Vec<u8>,
}

/// A connection, from the host's side.
pub(super) struct Queue<'w> {
    pub(super) world: &'w World,
    pub(super) worker: usize,
    pub(super) id: ConnectionId,
    pub(super) cntlid: Cell<u16>,
    next: Cell<u16>,
}

impl Queue<'_> {
    /// Sends a command and does not wait.
    pub(super) fn send(&self, mut sqe: Sqe, data: &[u8]) -> CommandId {
        let slot = self.next.get();
        self.next.set(slot + 1);
        sqe.set_cid(cid_of(slot));
        let from = CommandId { connection: self.id, slot };
        let (len, pool) = (sqe.sgl().len as usize, &self.world.pool);
        let data = match sqe.transfer() {
            // No pool has a buffer for what is longer than any transfer.
            Transfer::ToHost if len > pool.chunk_bytes() => Buf::default(),
            Transfer::ToHost if len > 0 => pool.take(len).unwrap(),
            _ => Buf::copy_of(data).unwrap(),
        };
        self.world.workers[self.worker].borrow_mut().submit(from, &sqe, data);
        from
    }

    /// The answer, if it is there; once.
    pub(super) fn taken(&self, from: CommandId) -> Option<Told> {
        let answer = self.world.answers.borrow_mut().remove(&(self.worker, from))?;
        assert_eq!(answer.cqe.cid, cid_of(from.slot), "the command id comes back");
        let data = answer.data.map(|d| d.to_vec()).unwrap_or_default();
        Some(Told { status: answer.cqe.status, result: answer.cqe.result, data })
    }

    pub(super) fn wait(&self, from: CommandId) -> Told {
        let mut told = None;
        self.world.until("a command", || {
            told = self.taken(from);
            told.is_some()
        });
        told.unwrap()
    }

    /// Sends data.
    pub(super) fn tell(&self, sqe: Sqe, data: &[u8]) -> Told {
        let from = self.send_data(sqe, data);
        self.wait(from)
    }

    pub(super) fn send_data(&self, sqe: Sqe, data: &[u8]) -> CommandId {
        self.send(sqe.with_sgl(Sgl::transport(u32::try_from(data.len()).unwrap())), data)
    }

    /// Asks for data.
    pub(super) fn ask(&self, sqe: Sqe, len: u32) -> Told {
        let from = self.send(sqe.with_sgl(Sgl::transport(len)), &[]);
        self.wait(from)
    }

    /// A command without data.
    pub(super) fn go(&self, sqe: Sqe) -> Told {
        let from = self.send(sqe, &[]);
        self.wait(from)
    }

    pub(super) fn close(&self) {
        self.world.workers[self.worker].borrow_mut().disconnect(self.id);
    }

    // --- properties and admin ----------------------------------------------------------------------------------------

    pub(super) fn get_property(&self, offset: u32, width: Width) -> Told {
        self.go(FabricsCommand::PropertyGet { width, offset }.to_sqe())
    }

    pub(super) fn set_cc(&self, cc: Cc) -> Told {
        let command =
            FabricsCommand::PropertySet { width: Width::Four, offset: offset::CC, value: cc.0.into() };
        self.go(command.to_sqe())
    }

    pub(super) fn enable(&self) {
        let told = self.set_cc(Cc::for_host(Cc::CSS_CSI).with_enabled(true));
        assert!(told.status.is_success(), "{}", told.status);
    }

    pub(super) fn reset(&self) {
        let told = self.set_cc(Cc::for_host(Cc::CSS_CSI));
        assert!(told.status.is_success(), "{}", told.status);
    }

    pub(super) fn admin(&self, command: AdminCommand) -> Told {
        self.go(command.to_sqe())
    }

    pub(super) fn identify(&self, cns: u8, nsid: u32) -> Told {
        self.ask(AdminCommand::Identify(Identify::new(cns, nsid)).to_sqe(), 4096)
    }

    pub(super) fn log(&self, lid: u8, offset: u64, len: u32) -> Told {
        let page = GetLogPage { offset, ..GetLogPage::new(lid, len.into()) };
        self.ask(AdminCommand::GetLogPage(page).to_sqe(), len)
    }

    pub(super) fn set_feature(&self, fid: u8, value: u32) -> Told {
        self.admin(AdminCommand::SetFeatures(SetFeatures::new(fid, value)))
    }

    /// Says which copy formats the host understands.
    pub(super) fn enable_formats(&self, copy_formats: u16) -> Told {
        let data = HostBehavior { copy_formats, ..Default::default() }.to_bytes();
        self.tell(AdminCommand::SetFeatures(SetFeatures::new(fid::HOST_BEHAVIOR, 0)).to_sqe(), &data)
    }

    // --- I/O ---------------------------------------------------------------------------------------------------------

    pub(super) fn write(&self, nsid: u32, lba: u64, data: &[u8]) -> Told {
        self.tell(write_sqe(nsid, lba, data.len()), data)
    }

    pub(super) fn read(&self, nsid: u32, lba: u64, blocks: u32) -> Told {
        self.ask(read_sqe(nsid, lba, blocks), blocks * u32::try_from(BLOCK).unwrap())
    }

    pub(super) fn flush(&self, nsid: u32) -> Told {
        self.go(IoCommand::Flush { nsid }.to_sqe())
    }

    pub(super) fn copy(&self, copy: &Copy) -> Told {
        let from = self.send_copy(copy);
        self.wait(from)
    }

    pub(super) fn send_copy(&self, copy: &Copy) -> CommandId {
        let (sqe, list) = copy.command();
        self.send_data(sqe, &list)
    }
}

fn cid_of(slot: u16) -> u16 {
    slot.wrapping_mul(3).wrapping_add(1000)
}

/// The command id a command of this slot has.
pub(super) fn cid(from: CommandId) -> u16 {
    cid_of(from.slot)
}

pub(super) fn extent(nsid: u32, lba: u64, blocks: u32) -> Blocks_ {
    Blocks_::new(nsid, lba, Blocks::new(blocks).unwrap())
}

pub(super) fn read_sqe(nsid: u32, lba: u64, blocks: u32) -> Sqe {
    IoCommand::Read(extent(nsid, lba, blocks)).to_sqe()
}

pub(super) fn write_sqe(nsid: u32, lba: u64, bytes: usize) -> Sqe {
    let blocks = u32::try_from(bytes as u64 / BLOCK).unwrap();
    IoCommand::Write(extent(nsid, lba, blocks)).to_sqe()
}

pub(super) fn dsm(nsid: u32, ranges: &[(u64, u32)]) -> (Sqe, Vec<u8>) {
    let count = Count8::new(u32::try_from(ranges.len()).unwrap()).unwrap();
    let sqe = IoCommand::DatasetManagement { nsid, ranges: count, deallocate: true }.to_sqe();
    let list = ranges.iter().flat_map(|&(slba, blocks)| DsmRange { slba, blocks }.to_bytes()).collect();
    (sqe, list)
}

/// A Copy command to be.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) nsid: u32,
    pub(super) sdlba: u64,
    pub(super) format: Format,
    pub(super) ranges: Vec<SourceRange>,
    pub(super) fua: bool,
}

impl Copy {
    /// Format 0h: ranges of (LBA, blocks) on the destination's namespace.
    pub(super) fn local(nsid: u32, sdlba: u64, ranges: &[(u64, u32)]) -> Self {
        let range = |&(slba, blocks): &(u64, u32)| SourceRange {
            snsid: None,
            slba,
            blocks: Blocks::new(blocks).unwrap(),
            fco: false,
        };
        Self { nsid, sdlba, format: Format::F0, ranges: ranges.iter().map(range).collect(), fua: false }
    }

    /// Format 2h: ranges of (namespace, LBA, blocks).
    pub(super) fn from_namespaces(nsid: u32, sdlba: u64, ranges: &[(u32, u64, u32)]) -> Self {
        let range = |&(snsid, slba, blocks): &(u32, u64, u32)| SourceRange {
            snsid: Some(snsid),
            slba,
            blocks: Blocks::new(blocks).unwrap(),
            fco: false,
        };
        Self { nsid, sdlba, format: Format::F2, ranges: ranges.iter().map(range).collect(), fua: false }
    }

    /// Fast copy only.
    pub(super) fn fast_only(mut self) -> Self {
        self.ranges.iter_mut().for_each(|r| r.fco = true);
        self
    }

    pub(super) fn durable(mut self) -> Self {
        self.fua = true;
        self
    }

    pub(super) fn in_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    pub(super) fn command(&self) -> (Sqe, Vec<u8>) {
        let count = Count8::new(u32::try_from(self.ranges.len()).unwrap()).unwrap();
        let mut command = CopyCommand::new(self.nsid, self.sdlba, count, self.format);
        command.fua = self.fua;
        let mut list = vec![0; command.list_len()];
        write_ranges(self.format, &self.ranges, &mut list);
        (command.to_sqe(), list)
    }
}

/// Bytes of blocks that tell their number and a seed in every word.
pub(super) fn pattern(seed: u64, blocks: u64) -> Vec<u8> {
    let words = (0..blocks * BLOCK / 8).map(|i| i ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// What a device holds, read by a queue of its own.
pub(super) fn contents(device: &Dev) -> Vec<u8> {
    let mut queue = device.clone().open_queue().unwrap();
    let submitter = crate::block::Submitter::default();
    let (mut out, mut done) = (Vec::new(), Vec::new());
    let mut rest = ByteRange::to(device.size());
    while !rest.is_empty() {
        let range = rest.prefix(1 << 20);
        let buf = Buf::alloc(usize::try_from(range.len()).unwrap()).unwrap();
        queue.submit(&mut VecDeque::from([submitter.request(0, Op::Read { range, buf })]));
        while done.is_empty() {
            if let Some(reactor) = crate::reactor::current() {
                reactor.wait(Some(reactor.now() + TURN));
            }
            queue.poll(&mut done);
        }
        let one: Completion = done.pop().unwrap();
        one.result.unwrap();
        out.extend_from_slice(&one.buf);
        rest = rest.after(range.len());
    }
    out
}

/// Lets operations of one kind through one by one, for permits.
pub(super) struct Gate {
    inner: Dev,
    gated: fn(&Op) -> bool,
    permits: AtomicUsize,
    held: AtomicUsize,
    /// It cannot be opened so many more times.
    refusals: AtomicUsize,
}

impl Gate {
    /// `inner`, holding back the operations that `gated` names.
    pub(super) fn new(inner: Dev, gated: fn(&Op) -> bool) -> Arc<Self> {
        Arc::new(Self {
            inner,
            gated,
            permits: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
        })
    }

    /// Refuses to be opened the next `times` times.
    pub(super) fn refuse(&self, times: usize) {
        self.refusals.store(times, Ordering::Relaxed);
    }

    /// How many more times it refuses to be opened.
    pub(super) fn refusals(&self) -> usize {
        self.refusals.load(Ordering::Relaxed)
    }

    pub(super) fn writes(inner: Dev) -> Arc<Self> {
        Self::new(inner, |op| matches!(op, Op::Write { .. }))
    }

    pub(super) fn permit(&self, more: usize) {
        self.permits.fetch_add(more, Ordering::Relaxed);
    }

    /// Operations held back now.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Device for Gate {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn identity(&self) -> Identity {
        self.inner.identity()
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn limits(&self) -> Limits {
        Limits::plain(self.inner.limits().block_size)
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.inner.change_limits(change)
    }
    fn copy_paths(&self) -> Vec<CopyPath> {
        Vec::new()
    }
    fn next_extent(&self, range: ByteRange) -> Result<Extent> {
        self.inner.next_extent(range)
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn BlockQueue>> {
        if self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            return Err(crate::block::Error::new(crate::block::Kind::NoMemory, "not now"));
        }
        let inner = self.inner.clone().open_queue()?;
        Ok(Box::new(GateQueue { device: self, inner, held: VecDeque::new() }))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct GateQueue {
    device: Arc<Gate>,
    inner: Box<dyn BlockQueue>,
    held: VecDeque<Request>,
}

impl BlockQueue for GateQueue {
    fn submit(&mut self, batch: &mut VecDeque<Request>) {
        let mut through = VecDeque::new();
        for request in batch.drain(..) {
            if (self.device.gated)(request.op()) {
                self.device.held.fetch_add(1, Ordering::Relaxed);
                self.held.push_back(request);
            } else {
                through.push_back(request);
            }
        }
        self.inner.submit(&mut through);
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        let mut through = VecDeque::new();
        while !self.held.is_empty() {
            let one =
                self.device.permits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            if one.is_err() {
                break;
            }
            self.device.held.fetch_sub(1, Ordering::Relaxed);
            through.extend(self.held.pop_front());
        }
        self.inner.submit(&mut through);
        self.inner.poll(done);
    }
    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

/// Copies of one host that run at a time, when no other host has any: the rest is kept for those.
pub(super) const ALONE: usize = 5;

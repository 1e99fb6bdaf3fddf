//! A namespace of an attached controller, as a device.

use super::admin::{self, Facts, NamespaceFacts, Peer};
use super::controller::Controller;
use super::identity::Host;
use super::queue::NvmeQueue;
use super::{Options, Url, Why};
use crate::block::device::CopyStatement;
use crate::block::device::{LeafSpace, resolve_plain};
use crate::block::limits::LimitsCell;
use crate::block::storage::Stored;
use crate::block::{
    Access, ByteRange, CopyPath, Device, Error, Evidence, Fate, Fates, Identity, Kind, LEN_MAX, LeafId,
    Limits, LimitsChange, Method, Queue, Resolution, Result, Scope, Storage,
};
use crate::nvme::identify::oncs;
use crate::sys::process::boot_digest;
use crate::sys::sync::lock;
use std::any::Any;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The size of one read or write that serves best, in bytes, where the controller takes as much.
const OPTIMAL_IO_BYTES: u64 = 256 << 10;

/// Longest Copy asked for, in bytes, whatever the controller takes: a slow disk has to be done with it well within the
/// command time-out, at whose end the controller is reset.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// A namespace. Its size follows the controller's; everything else is as it was when it was opened.
pub struct Namespace {
    name: String,
    model: String,
    controller: Arc<Controller>,
    first: NamespaceFacts,
    leaf: LeafId,
    block: NonZeroU32,
    size: AtomicU64,
    limits: LimitsCell,
    copy_paths: Vec<CopyPath>,
    pub(super) abilities: Abilities,
    pub(super) cache: WriteCache,
    /// The last association of which a command that changes bytes was given up while it could still be carried out.
    doubtful: AtomicU64,
    /// Why it can be used no more; looked at when `there` is false.
    gone: Mutex<Option<Why>>,
    there: AtomicBool,
}

/// What the namespace's commands can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    pub(super) compare: bool,
    pub(super) discard: bool,
    pub(super) write_zeroes: bool,
    /// Write Zeroes may deallocate.
    pub(super) zeroes_may_unmap: bool,
    /// Copies inside the namespace need no format that names it.
    pub(super) copies_inside: bool,
    /// Copies reach the other namespaces of the controller.
    pub(super) copies_across: bool,
    pub(super) copy: Option<CopyMost>,
}

/// What one Copy may be, in blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyMost {
    pub(super) range_blocks: u64,
    pub(super) blocks: u64,
    pub(super) ranges: usize,
}

/// What may be in the controller's volatile write cache, and be lost with it.
///
/// Writes dirty the present generation; a flush ends it, and cleans all up to it once it has succeeded.
pub(super) struct WriteCache {
    /// There is such a cache, or was once: a controller may come back with one.
    volatile: AtomicBool,
    generation: AtomicU64,
    dirty: AtomicU64,
    clean: AtomicU64,
    /// The last association that was lost without its end being seen.
    ended: AtomicU64,
    /// The last association that was lost while there was something to lose.
    lost: AtomicU64,
    why: Mutex<Option<Why>>,
}

impl WriteCache {
    fn new(volatile: bool) -> Self {
        Self {
            volatile: AtomicBool::new(volatile),
            generation: AtomicU64::new(1),
            dirty: AtomicU64::new(0),
            clean: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            why: Mutex::new(None),
        }
    }

    /// True when only a flush makes writes durable.
    pub(super) fn is_volatile(&self) -> bool {
        self.volatile.load(Ordering::Acquire)
    }

    /// A write has completed on this association, well or in part.
    pub(super) fn written(&self, association: u64) {
        if !self.is_volatile() {
            return;
        }
        let now = self.generation.load(Ordering::Acquire);
        // Read first: the line stays shared among threads that write.
        if self.dirty.load(Ordering::SeqCst) < now {
            self.dirty.fetch_max(now, Ordering::SeqCst);
        }
        // Either this sees that the association is lost, or who loses it sees that there is something to lose: the
        // answer may have been read from the socket long after.
        if self.ended.load(Ordering::SeqCst) >= association {
            self.lost.fetch_max(association, Ordering::AcqRel);
        }
    }

    /// This association is lost, and with it maybe what was written and not flushed.
    fn association_ended(&self, association: u64, why: &Why) {
        *lock(&self.why) = Some(why.clone());
        self.ended.fetch_max(association, Ordering::SeqCst);
        if self.is_volatile() && self.dirty.load(Ordering::SeqCst) > self.clean.load(Ordering::Acquire) {
            self.lost.fetch_max(association, Ordering::AcqRel);
        }
    }

    /// A flush begins; its number.
    pub(super) fn flush_begins(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::AcqRel)
    }

    /// A flush has succeeded: what was written before it began is durable.
    pub(super) fn flushed(&self, number: u64) {
        self.clean.fetch_max(number, Ordering::AcqRel);
    }

    /// The last association that was lost while there was something to lose; 0: none.
    fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }

    /// Whether a queue that was opened on this association may be told that all it wrote is durable.
    pub(super) fn check(&self, opened: u64) -> Result<()> {
        if self.lost.load(Ordering::Acquire) < opened {
            return Ok(());
        }
        let why = lock(&self.why);
        let why = why.as_ref().map_or(String::new(), |w| format!(" ({w})"));
        let text = format!(
            "the connection was lost{why} while bytes were written but not yet flushed, and it is unknown whether \
             the target kept them; open a new queue and write them again"
        );
        Err(Error::new(Kind::Io, text))
    }
}

impl Namespace {
    /// Opens the namespace that `url` names, on the controller this process has already or on a new association.
    ///
    /// Errors: `InvalidInput` for a URL without NQN or NSID; `NotFound` for a subsystem or namespace that is not there
    /// (the message says which are); `Permission`; `Unsupported` for metadata, protection information and zones; `Io`
    /// for a target that cannot be reached or does not answer as it should.
    pub fn open(url: &Url) -> Result<Arc<Self>> {
        Self::open_with(url, Options::of(url))
    }

    /// The same with other time-outs.
    pub fn open_with(url: &Url, options: Options) -> Result<Arc<Self>> {
        let name = url.to_string();
        Self::try_open(url, &name, options).map_err(|e| e.on(&name))
    }

    fn try_open(url: &Url, name: &str, options: Options) -> Result<Arc<Self>> {
        let missing = |what: &str, fix: &str| Err(Error::new(Kind::InvalidInput, format!("{what}; {fix}")));
        let Some(subsystem) = url.subsystem.clone() else {
            let fix = format!("blkcopy info {name} lists what exists");
            return missing("does not name a subsystem", &fix);
        };
        if subsystem.is_discovery() {
            return missing("a discovery service has no namespaces", "name one of the subsystems it lists");
        }
        let Some(nsid) = url.nsid else {
            let fix = format!("add ?nsid=N; blkcopy info {name} lists them");
            return missing("does not name a namespace", &fix);
        };
        let host = Host::new(url.host.clone())?;
        let peer = Peer { address: url.address.clone(), subsystem, host };
        let controller = Controller::attach(peer, options)?;
        let held = controller.clone();
        controller.namespace(nsid, |facts, now| Arc::new(Self::new(name.to_owned(), held, facts, now)))
    }

    fn new(name: String, controller: Arc<Controller>, facts: &Facts, namespace: NamespaceFacts) -> Self {
        let page = &namespace.identify;
        let block = NonZeroU32::new(page.block_bytes()).expect("a power of two");
        let size = page.size_bytes().expect("checked by `check_plain`");
        let copy = page.copy.filter(|_| admin::copies(facts)).map(|most| CopyMost {
            range_blocks: most.range_blocks_max.get().into(),
            blocks: u64::from(most.blocks_max.get()).min((COPY_BYTES_MAX / u64::from(block.get())).max(1)),
            // What a list has room for; one range more than a u8 holds.
            ranges: most.ranges_max.get() as usize,
        });
        let abilities = Abilities {
            compare: facts.has(oncs::COMPARE),
            discard: facts.has(oncs::DATASET_MANAGEMENT),
            write_zeroes: facts.has(oncs::WRITE_ZEROES),
            zeroes_may_unmap: page.dlfeat & 8 != 0,
            copies_inside: facts.identify.copies_in(crate::nvme::copy::Format::F0),
            copies_across: facts.copies_across,
            copy,
        };
        let limits = limits(facts, &namespace, block, copy);
        let copy_paths = copy_paths(controller.number(), &namespace, &limits, abilities);
        Self {
            name,
            model: facts.identify.model.to_string(),
            leaf: leaf(facts, &namespace),
            block,
            size: AtomicU64::new(size),
            limits: LimitsCell::new(limits),
            copy_paths,
            abilities,
            cache: WriteCache::new(facts.identify.write_cache),
            doubtful: AtomicU64::new(0),
            gone: Mutex::new(None),
            there: AtomicBool::new(true),
            first: namespace,
            controller,
        }
    }

    /// What the controller calls its model.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Its number within the controller.
    pub fn nsid(&self) -> u32 {
        self.first.nsid
    }

    pub(super) fn controller(&self) -> &Arc<Controller> {
        &self.controller
    }

    pub(super) fn block(&self) -> u32 {
        self.block.get()
    }

    /// False once it can be used no more.
    pub(super) fn is_there(&self) -> bool {
        self.there.load(Ordering::Acquire)
    }

    /// Errors: why it can be used no more.
    pub(super) fn check_there(&self) -> Result<()> {
        if self.is_there() {
            return Ok(());
        }
        let gone = lock(&self.gone);
        Err(gone.as_ref().map_or_else(|| Error::new(Kind::Io, "is gone"), Why::error))
    }

    /// A command that changes bytes is given up although the controller may still carry it out.
    #[cold]
    pub(super) fn give_up_in_doubt(&self, association: u64, waited: Duration) -> Error {
        self.doubtful.fetch_max(association, Ordering::AcqRel);
        let text = format!(
            "the connection was lost during this request, and the target reserves more than {waited:?} to carry it \
             out or drop it: the bytes may change until then"
        );
        Error::new(Kind::Io, text)
    }

    /// Whether bytes may be changed by a queue that knows associations up to `quiet` to carry out nothing any more.
    ///
    /// Errors: a command given up earlier could still land on what is written now.
    pub(super) fn check_doubt(&self, quiet: u64) -> Result<()> {
        if self.doubtful.load(Ordering::Acquire) <= quiet {
            return Ok(());
        }
        let text = "the target may still carry out a write of a lost connection, which could overwrite this one; write \
                    again when the target's keep-alive time has passed";
        Err(Error::new(Kind::Io, text))
    }

    /// The controller says it is this now.
    pub(super) fn is_now(&self, facts: &Facts, now: &NamespaceFacts) {
        let plain = now.check_plain().map_err(|e| Why::of(&e));
        // Without any identifier the names of the subsystem have to do.
        let same = self.first.is_same(now) && (now.has_id() || leaf(facts, now) == self.leaf);
        // What was written while there was no cache is durable; from now on a flush is needed.
        self.cache.volatile.fetch_or(facts.identify.write_cache, Ordering::AcqRel);
        match (plain, now.identify.size_bytes()) {
            (Err(why), _) => self.is_gone(&why),
            (Ok(()), _) if same && !self.first.has_same_bytes(now) => self.is_gone(&Why::new(
                "the target reports that the namespace's contents changed (it lost them, or now serves another file \
                 or disk); what was copied so far mixes two contents: begin again"
                    .to_owned(),
            )),
            (Ok(()), Some(size)) if same && now.identify.block_bytes() == self.block() => {
                self.size.store(size, Ordering::Release);
            }
            _ => self.is_gone(&Why::new(
                "the target now has another namespace in its place (its identifier differs); what was copied so far \
                 may mix two contents: begin again if this namespace is the one meant"
                    .to_owned(),
            )),
        }
    }

    /// It can be used no more.
    pub(super) fn is_gone(&self, why: &Why) {
        *lock(&self.gone) = Some(why.clone());
        self.there.store(false, Ordering::Release);
    }

    /// An association is lost, and with it maybe what was written and not flushed.
    pub(super) fn lost_association(&self, association: u64, why: &Why) {
        self.cache.association_ended(association, why);
    }
}

/// A number that is the same through every address: a digest of the names of subsystem and namespace. The subsystem is
/// in it because two careless targets may give their namespaces equal names.
fn leaf(facts: &Facts, namespace: &NamespaceFacts) -> LeafId {
    let mut hasher = blake3::Hasher::new_derive_key("blkcopy nvme namespace");
    let mut put = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    put(facts.identify.subsystem.as_str().as_bytes());
    put(&facts.identify.serial.0);
    put(&facts.identify.model.0);
    put(&namespace.nsid.to_le_bytes());
    put(namespace.ids.uuid.as_ref().map_or(&[], |id| &id[..]));
    put(namespace.ids.nguid.as_ref().map_or(&[], |id| &id[..]));
    put(namespace.ids.eui64.as_ref().map_or(&[], |id| &id[..]));
    let digest = hasher.finalize();
    let word = |at: usize| u64::from_le_bytes(digest.as_bytes()[at..at + 8].try_into().expect("8 bytes"));
    LeafId { space: LeafSpace::Namespace, id: (word(0), word(8)) }
}

fn limits(facts: &Facts, namespace: &NamespaceFacts, block: NonZeroU32, copy: Option<CopyMost>) -> Limits {
    let bytes = u64::from(block.get());
    let page = &namespace.identify;
    let mut limits = Limits::plain(block);
    let optimal = facts.data_bytes_max().min(OPTIMAL_IO_BYTES).max(bytes);
    limits.optimal_io_bytes = u32::try_from(optimal).ok().and_then(NonZeroU32::new).unwrap_or(block);
    // With borders that no write is atomic across, nothing is promised for a write just anywhere.
    if page.nabspf.is_none() {
        let blocks = page.nawupf.unwrap_or(facts.identify.awupf).get();
        limits.atomic_write_bytes = blocks.checked_mul(block.get()).and_then(NonZeroU32::new);
    }
    let most = copy.and_then(|most| {
        let total = NonZeroU64::new(most.blocks.checked_mul(bytes)?)?;
        let range = NonZeroU64::new(most.range_blocks * bytes)?;
        Some((total, range.min(total), NonZeroU32::new(u32::try_from(most.ranges).ok()?)?))
    });
    match most {
        Some((total, range, ranges)) => limits.with_copy(total, range, ranges),
        None => limits,
    }
}

fn copy_paths(
    controller: u64,
    namespace: &NamespaceFacts,
    limits: &Limits,
    abilities: Abilities,
) -> Vec<CopyPath> {
    let Some(max) = limits.copy_max_bytes.get_hw() else { return Vec::new() };
    // Copies across namespaces want equal block sizes (Incompatible Namespace or Format otherwise). Controllers are
    // few, and a block size is a power of two below 2^21: the numbers never meet.
    let reach = if abilities.copies_across {
        1 << 32 | u64::from(namespace.identify.lba_format().data_shift)
    } else {
        namespace.nsid.into()
    };
    vec![CopyPath {
        method: Method::NvmeCopy,
        scope: Scope::Controller(controller << 33 | reach),
        align: u64::from(limits.block_size.get()),
        tail_at_eof: false,
        max_bytes: max.get(),
        preferred: true,
        // Nobody can ask a namespace where its holes are, so that there is nothing to look for.
        fate: Fate::MovedElsewhere,
        carries_holes: true,
    }]
}

impl Device for Namespace {
    fn name(&self) -> &str {
        &self.name
    }
    fn identity(&self) -> Identity {
        Identity::Leaf { leaf: self.leaf, base: 0 }
    }
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }
    fn read_only(&self) -> bool {
        self.first.identify.write_protected
    }
    fn limits(&self) -> Limits {
        self.limits.get()
    }
    fn change_limits(&self, change: LimitsChange) -> Result<Limits> {
        self.limits.change(change).map_err(|e| e.on(&self.name))
    }
    fn storage(&self) -> Storage {
        let own = Storage::at(Stored::new(self.leaf, &*self.name, Storage::default()), 0, LEN_MAX);
        match self.first.identify.generation {
            Some(generation) => own.and_known_as(Some(self.leaf), generation),
            None => own,
        }
    }
    fn copy_statement(&self) -> Option<CopyStatement> {
        let said = self.controller.copy_outcomes()?;
        let mut fates = Fates::default();
        for (fate, bytes) in Fate::ALL.into_iter().zip(said.bytes) {
            fates.add(fate, Evidence::Statement, bytes);
        }
        Some(CopyStatement { fates, is_here: said.machine == boot_digest() && said.machine != [0; 16] })
    }

    fn losses(&self) -> Vec<String> {
        self.controller.losses()
    }
    fn copy_paths(&self) -> Vec<CopyPath> {
        self.copy_paths.clone()
    }
    fn zeroes_cheaply(&self) -> bool {
        self.abilities.write_zeroes
    }
    /// Nothing is looked up at the target: it has no holes to tell of.
    fn may_wait(&self) -> bool {
        false
    }
    fn resolve(self: Arc<Self>, range: ByteRange, _: Access) -> Result<Resolution> {
        resolve_plain(self, range)
    }
    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>> {
        let name = self.name.clone();
        Ok(Box::new(NvmeQueue::open(self).map_err(|e| e.on(&name))?))
    }
    fn cache_losses(&self) -> Option<u64> {
        self.cache.is_volatile().then(|| self.cache.lost())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    //= promise 6
    #[test]
    fn a_write_whose_answer_is_read_after_its_association_was_lost_is_lost_with_it() {
        let why = Why::new("cut".to_owned());
        let cache = WriteCache::new(true);
        cache.association_ended(1, &why);
        assert!(cache.check(1).is_ok(), "there was nothing to lose");
        cache.written(1);
        assert!(cache.check(1).is_err() && cache.check(2).is_ok());
        // The other way round.
        let cache = WriteCache::new(true);
        cache.written(1);
        cache.association_ended(1, &why);
        assert!(cache.check(1).is_err());
        // Flushed in between, or written on the next one.
        let cache = WriteCache::new(true);
        cache.written(1);
        let number = cache.flush_begins();
        cache.flushed(number);
        cache.association_ended(1, &why);
        cache.written(2);
        assert!(cache.check(1).is_ok());
        // There is no cache.
        let cache = WriteCache::new(false);
        cache.written(1);
        cache.association_ended(1, &why);
        cache.written(1);
        assert!(cache.check(1).is_ok());
    }
}

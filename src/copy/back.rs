//! Reads what a device holds, past the system's cache where there is a way past it, and counts how it was read.

use super::emulate::read_bytes;
use crate::block::device::copies_of;
use crate::block::receipt::DestRead;
use crate::block::{Buf, ByteRange, Device, Error, Kind, Medium, Result};
use crate::reactor::local::Client;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes compared at a time.
pub(crate) const PIECE: u64 = 1 << 20;

/// What lies at a range of a device: where in it, and the bytes; on a mirror more than one of each place.
pub(super) type Copies = Vec<(usize, Buf)>;

/// Opens a queue of a device on this thread.
type Open = Box<dyn Fn(&Arc<dyn Device>) -> Result<Client>>;

/// One device, read where its bytes are stored.
pub(crate) struct ReadBack {
    device: Arc<dyn Device>,
    open: Open,
    leaves: RefCell<Vec<Rc<Leaf>>>,
    spare: RefCell<Vec<Buf>>,
}

struct Leaf {
    device: Arc<dyn Device>,
    client: Client,
    block: u64,
    way: Way,
    read_bytes: Cell<u64>,
}

/// How a leaf is read.
enum Way {
    Own,
    /// What the cache may have answered.
    Direct(Arc<AtomicU64>),
    Cached,
}

pub(super) fn small(len: u64) -> usize {
    usize::try_from(len).expect("at most a piece")
}

pub(super) fn no_memory() -> Error {
    Error::new(Kind::NoMemory, "no memory to verify with")
}

impl ReadBack {
    /// `open`: for leaves that have no way past a cache, or need none.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        open: impl Fn(&Arc<dyn Device>) -> Result<Client> + 'static,
    ) -> Self {
        Self { device, open: Box::new(open), leaves: RefCell::default(), spare: RefCell::default() }
    }

    /// The bytes of a range of at most [`PIECE`]; of a mirror those of one leg.
    pub(crate) async fn read(&self, range: ByteRange) -> Result<Buf> {
        let mut copies = self.copies(range).await?;
        if let [(0, only)] = &copies[..]
            && only.len() as u64 == range.len()
        {
            return Ok(copies.swap_remove(0).1);
        }
        let mut whole = Buf::alloc(small(range.len())).ok_or_else(no_memory)?;
        for (at, copy) in copies.iter().rev() {
            whole[*at..*at + copy.len()].copy_from_slice(copy);
        }
        Ok(whole)
    }

    /// All copies of the bytes of a range of at most [`PIECE`].
    pub(super) async fn copies(&self, range: ByteRange) -> Result<Copies> {
        let mut copies = Copies::new();
        let mut covered = 0;
        for stored in copies_of(&self.device, range) {
            let leaf = self.leaf(&stored.leg.device)?;
            let len = small(stored.range.len());
            let spare = self.spare.borrow_mut().pop();
            let buf = spare.or_else(|| Buf::alloc(small(PIECE + 2 * leaf.block))).ok_or_else(no_memory)?;
            let (buf, result) = read_bytes(&leaf.client, leaf.block, stored.leg.offset, len, buf).await;
            result?;
            leaf.read_bytes.set(leaf.read_bytes.get() + stored.range.len());
            covered += stored.range.len();
            copies.push((small(stored.range.offset() - range.offset()), buf));
        }
        if covered < range.len() {
            let text = "the device does not report where all of it is stored, so it cannot be verified";
            return Err(Error::new(Kind::Io, text).on(self.device.name()).at(range));
        }
        Ok(copies)
    }

    /// Takes back what [`ReadBack::read`] gave, to be used again.
    pub(crate) fn give_back(&self, buf: Buf) {
        self.spare.borrow_mut().push(buf);
    }

    fn leaf(&self, device: &Arc<dyn Device>) -> Result<Rc<Leaf>> {
        let mut leaves = self.leaves.borrow_mut();
        if let Some(leaf) = leaves.iter().find(|l| Arc::ptr_eq(&l.device, device)) {
            return Ok(leaf.clone());
        }
        let (client, way) = match device.clone().open_medium()? {
            Medium::Direct { queue, cached } => (Client::over(device.clone(), queue), Way::Direct(cached)),
            Medium::Own => ((self.open)(device)?, Way::Own),
            Medium::Cached => {
                // Pages that nobody has mapped are read anew.
                device.drop_cache();
                ((self.open)(device)?, Way::Cached)
            }
        };
        let block = u64::from(device.limits().block_size.get());
        let leaf = Rc::new(Leaf { device: device.clone(), client, block, way, read_bytes: Cell::new(0) });
        leaves.push(leaf.clone());
        Ok(leaf)
    }

    /// How much was read how.
    pub(crate) fn told(&self) -> DestRead {
        let mut told = DestRead::default();
        for leaf in &*self.leaves.borrow() {
            let bytes = leaf.read_bytes.get();
            match &leaf.way {
                Way::Own => told.device += bytes,
                Way::Cached => told.cache += bytes,
                Way::Direct(cached) => {
                    let cached = cached.load(Ordering::Relaxed).min(bytes);
                    told.direct += bytes - cached;
                    told.cache += cached;
                }
            }
        }
        told
    }
}

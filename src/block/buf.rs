//! Owned, page-aligned buffers and the bounded pool they come from.

use crate::sys::aligned::{Chunk, PAGE};
use crate::sys::sync::lock;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};

/// A buffer with one owner: `len` visible bytes, page-aligned at the start unless narrowed. Goes back to its pool when
/// dropped.
///
/// [`Buf::default`] is the empty buffer, used where an operation carries no bytes; it owns no memory.
#[derive(Default)]
pub struct Buf {
    chunk: Option<Chunk>,
    start: usize,
    len: usize,
    pool: Option<Arc<Free>>,
    /// Whom a [`LendingPool`] has lent it to.
    owner: u32,
}

impl Buf {
    /// A zero-filled buffer of `len` bytes outside any pool. `None`: no memory.
    pub fn alloc(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self::default());
        }
        Some(Self { chunk: Some(Chunk::one(len)?), start: 0, len, pool: None, owner: 0 })
    }

    /// A buffer outside any pool holding a copy of `bytes`. `None`: no memory.
    pub fn copy_of(bytes: &[u8]) -> Option<Self> {
        let mut buf = Self::alloc(bytes.len())?;
        buf.copy_from_slice(bytes);
        Some(buf)
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.chunk.as_ref().map_or(0, Chunk::len)
    }

    /// Shows the first `len` bytes (at most [`Buf::capacity`]); their contents are whatever was last written there.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "buffer of {} bytes cannot show {len}", self.capacity());
        self.start = 0;
        self.len = len;
    }

    /// Shows `len` bytes from `start` on (within [`Buf::capacity`]), whatever was shown before.
    pub fn narrow(&mut self, start: usize, len: usize) {
        assert!(
            start <= self.capacity() && len <= self.capacity() - start,
            "{start}+{len} of {}",
            self.capacity()
        );
        self.start = start;
        self.len = len;
    }

    /// Where in its memory the bytes shown begin, and how many they are: what [`Buf::narrow`] takes.
    pub fn shown(&self) -> (usize, usize) {
        (self.start, self.len)
    }

    /// True when the bytes shown are the first of its memory, as a ring expects them.
    pub fn is_at_front(&self) -> bool {
        self.start == 0
    }

    /// Takes the memory out, for a ring that owns it while the kernel uses it. The buffer shows nothing until
    /// [`Buf::put_chunk`]; `None` for a buffer without memory.
    pub fn take_chunk(&mut self) -> Option<Chunk> {
        self.chunk.take()
    }

    /// Puts back what [`Buf::take_chunk`] took; the same bytes show again.
    pub fn put_chunk(&mut self, chunk: Chunk) {
        assert!(self.chunk.is_none() && self.len <= chunk.len(), "this is not the memory that was taken out");
        self.chunk = Some(chunk);
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.chunk.as_ref().map_or(&[], |c| &c.as_slice()[self.start..self.start + self.len])
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.start, self.start + self.len);
        self.chunk.as_mut().map_or(&mut [], |c| &mut c.as_mut_slice()[start..end])
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let (Some(chunk), Some(pool)) = (self.chunk.take(), &self.pool) {
            pool.lock().push((chunk, self.owner));
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {})", self.len, self.capacity())
    }
}

/// Memory that is not in use, and who had it last.
#[derive(Default)]
struct Free(Mutex<Vec<(Chunk, u32)>>);

impl Free {
    fn lock(&self) -> MutexGuard<'_, Vec<(Chunk, u32)>> {
        // A push or pop cannot leave the list half changed.
        lock(&self.0)
    }
}

/// A fixed number of equal buffers in one mapping; the bound on payload memory.
///
/// Untouched buffers cost address space only; the last one returned is the next one taken, so few are touched when
/// few are in flight.
pub struct BufPool {
    free: Arc<Free>,
    chunk_bytes: usize,
    count: usize,
}

impl BufPool {
    /// As many buffers of `chunk_bytes` as fit `budget_bytes`, at least one. Where memory is short both shrink by
    /// halves down to a single page; `None` when not even a page can be had.
    pub fn new(budget_bytes: usize, chunk_bytes: usize) -> Option<Self> {
        Self::from_source(budget_bytes, chunk_bytes, &mut Chunk::many)
    }

    /// As [`BufPool::new`], with memory from `source(count, chunk_bytes)`: how a test makes memory short.
    pub fn from_source(
        budget_bytes: usize,
        chunk_bytes: usize,
        source: &mut dyn FnMut(usize, usize) -> Option<Vec<Chunk>>,
    ) -> Option<Self> {
        let mut chunk_bytes = chunk_bytes.max(PAGE).next_multiple_of(PAGE);
        let mut count = (budget_bytes / chunk_bytes).max(1);
        loop {
            if let Some(chunks) = source(count, chunk_bytes) {
                let chunks = chunks.into_iter().map(|chunk| (chunk, 0)).collect();
                return Some(Self { free: Arc::new(Free(Mutex::new(chunks))), chunk_bytes, count });
            }
            if count > 1 {
                count /= 2;
            } else if chunk_bytes > PAGE {
                chunk_bytes = (chunk_bytes / 2).next_multiple_of(PAGE);
            } else {
                return None;
            }
        }
    }

    /// A buffer showing `len` bytes (at most [`BufPool::chunk_bytes`]), or `None` while all are out.
    pub fn take(&self, len: usize) -> Option<Buf> {
        assert!(len <= self.chunk_bytes, "pool buffers hold {} bytes, not {len}", self.chunk_bytes);
        let (chunk, _) = self.free.lock().pop()?;
        Some(Buf { chunk: Some(chunk), start: 0, len, pool: Some(self.free.clone()), owner: 0 })
    }

    /// Size of each buffer in bytes.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// Number of buffers that can be taken now.
    pub fn free(&self) -> usize {
        self.free.lock().len()
    }

    /// Number of buffers, in use or not.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Buffers of several sizes, lent to owners: what an owner has is known until the memory itself is back, whoever drops
/// it, on whatever thread, and whatever became of the command it was for.
pub struct LendingPool {
    home: Arc<Free>,
    /// Ascending.
    sizes: Vec<SizeClass>,
    /// Swapped with what has come home, so that taking it in allocates nothing.
    back: Vec<(Chunk, u32)>,
}

/// The buffers of one size that are here.
struct SizeClass {
    bytes: usize,
    free: Vec<Chunk>,
}

impl LendingPool {
    /// So many buffers of each size: pairs of bytes (whole pages, ascending) and count. `None`: no memory.
    pub fn new(sizes: &[(usize, usize)]) -> Option<Self> {
        let make = |&(bytes, count): &(usize, usize)| {
            debug_assert!(bytes.is_multiple_of(PAGE) && count > 0);
            Some(SizeClass { bytes, free: Chunk::many(count, bytes)? })
        };
        let count = sizes.iter().map(|(_, count)| count).sum();
        let home = Arc::new(Free(Mutex::new(Vec::with_capacity(count))));
        Some(Self {
            home,
            sizes: sizes.iter().map(make).collect::<Option<_>>()?,
            back: Vec::with_capacity(count),
        })
    }

    /// Lends a buffer of size number `class`, showing `len` bytes. `None` while all of that size are out.
    ///
    /// # Panics
    /// When it is shorter than `len`, or there is no such size.
    pub fn lend(&mut self, class: usize, len: usize, owner: u32) -> Option<Buf> {
        let size = &mut self.sizes[class];
        assert!(len <= size.bytes, "buffers of {} bytes hold no {len}", size.bytes);
        let chunk = size.free.pop()?;
        Some(Buf { chunk: Some(chunk), start: 0, len, pool: Some(self.home.clone()), owner })
    }

    /// Takes in what has come back since the last call: `returned` gets size number and owner of each.
    pub fn take_back(&mut self, mut returned: impl FnMut(usize, u32)) {
        std::mem::swap(&mut *self.home.lock(), &mut self.back);
        for (chunk, owner) in self.back.drain(..) {
            let class = self.sizes.iter().position(|size| size.bytes == chunk.len());
            let class = class.expect("only what was lent comes back");
            self.sizes[class].free.push(chunk);
            returned(class, owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lent_is_the_owners_until_it_is_dropped_wherever() {
        let mut pool = LendingPool::new(&[(PAGE, 2), (4 * PAGE, 1)]).unwrap();
        let small = pool.lend(0, 100, 7).unwrap();
        let large = pool.lend(1, 4 * PAGE, 8).unwrap();
        assert!(pool.lend(1, 1, 9).is_none() && pool.lend(0, 1, 9).is_some());
        let back = |pool: &mut LendingPool| {
            let mut back = Vec::new();
            pool.take_back(|class, owner| back.push((class, owner)));
            back
        };
        assert_eq!(back(&mut pool), [(0, 9)], "the one that was not kept");
        std::thread::spawn(move || drop(large)).join().unwrap();
        assert_eq!(back(&mut pool), [(1, 8)]);
        drop(small);
        assert_eq!(back(&mut pool), [(0, 7)]);
        assert!(pool.lend(1, 1, 1).is_some() && back(&mut pool) == [(1, 1)]);
    }

    #[test]
    fn a_pool_that_cannot_have_its_budget_shrinks_to_one_page() {
        let mut asked = Vec::new();
        let pool = BufPool::from_source(64 << 20, 1 << 20, &mut |count, len| {
            asked.push((count, len));
            if count * len > PAGE { None } else { Chunk::many(count, len) }
        })
        .unwrap();
        assert_eq!((pool.count(), pool.chunk_bytes()), (1, PAGE));
        assert_eq!(asked[0], (64, 1 << 20));
        let held = pool.take(100).unwrap();
        assert!(pool.take(1).is_none() && pool.free() == 0);
        drop(held);
        assert_eq!(pool.free(), 1);
        assert!(pool.take(PAGE).is_some());
    }

    #[test]
    fn no_memory_at_all_is_no_pool() {
        assert!(BufPool::from_source(1, 1, &mut |_, _| None).is_none());
    }
}

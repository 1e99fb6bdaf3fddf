//! Page-aligned memory from `mmap`, for direct I/O and registered buffers.

use std::ptr::NonNull;
use std::sync::{Arc, Weak};

/// Page size assumed for alignment, in bytes. Linux on x86-64 and most arm64 kernels.
pub const PAGE: usize = 4096;

/// Mappings from this length on, in bytes, ask for huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// One anonymous mapping, zero-filled, unmapped when dropped.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory owned by this value; nothing in it is tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared `Mapping` gives no access to its bytes; only `Chunk`, which owns its part alone, does.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize) -> Option<Self> {
        // SAFETY: a fresh anonymous private mapping aliases nothing; the arguments are valid for any `len` > 0.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return None;
        }
        if len >= HUGE_PAGE {
            // Only a hint: long copies spend much of their time on page table walks otherwise.
            // SAFETY: the range is the mapping made above; the advice changes no contents.
            unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) };
        }
        NonNull::new(start.cast()).map(|start| Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and len are those of the mapping made in `new`; every `Chunk` of it holds an `Arc`, so none is
        // left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A page-aligned piece of memory with one owner.
pub struct Chunk {
    start: NonNull<u8>,
    len: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: a chunk is the only handle to its bytes (chunks of one mapping do not overlap), so it may move between
// threads.
unsafe impl Send for Chunk {}
// SAFETY: `&Chunk` only gives `&[u8]`.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// Maps `count` chunks of `len` bytes side by side; `len` is rounded up to whole pages. `None`: no memory.
    pub fn many(count: usize, len: usize) -> Option<Vec<Self>> {
        let len = len.max(1).checked_next_multiple_of(PAGE)?;
        let total = len.checked_mul(count.max(1))?;
        let mapping = Arc::new(Mapping::new(total)?);
        Some(
            (0..count)
                .map(|i| Self {
                    // SAFETY: i < count, so the offset lies inside the mapping of `total` = len * count bytes.
                    start: unsafe { mapping.start.add(i * len) },
                    len,
                    mapping: mapping.clone(),
                })
                .collect(),
        )
    }

    /// Maps one chunk of at least `len` bytes.
    pub fn one(len: usize) -> Option<Self> {
        Self::many(1, len)?.pop()
    }

    /// Length in bytes: a multiple of [`PAGE`].
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a chunk of no bytes (there is none).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The mapping this chunk is cut from, as (address, length in bytes): what a ring registers once for all chunks.
    pub fn region(&self) -> (usize, usize) {
        (self.mapping.start.as_ptr() as usize, self.mapping.len)
    }

    /// Which mapping this chunk is cut from: what [`Chunk::region`] cannot tell, since addresses are used again.
    pub fn region_id(&self) -> RegionId {
        RegionId(Arc::downgrade(&self.mapping))
    }

    /// Address of the first byte.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the chunk owns `len` mapped, initialised (zero-filled) bytes at `start`; the borrow holds `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Names one mapping for as long as this value lives: never equal to a later mapping, even one at the same address.
///
/// Does not keep the mapping alive.
pub struct RegionId(Weak<Mapping>);

impl RegionId {
    /// True when `chunk` is cut from this mapping.
    pub fn holds(&self, chunk: &Chunk) -> bool {
        // The weak count keeps the allocation behind the `Arc` from being used again, so equal means the same.
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&chunk.mapping))
    }

    /// True once the mapping is gone; no chunk of it is left anywhere.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Copies `from` to `to` past the processor's cache: about twice the speed of an ordinary copy where the whole is far
/// larger than the cache, because the old contents of `to` are not read first.
///
/// # Panics
/// When the lengths differ.
pub fn copy_past_cache(to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len(), "both ends of a copy have one length");
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_sfence, _mm_stream_si128,
        };
        const LINE: usize = 64;
        // The processor looks ahead within a page only; measured best between 512 and 1024 bytes.
        const AHEAD: usize = 512;
        let head = to.as_ptr().align_offset(LINE).min(to.len());
        let (to_head, to) = to.split_at_mut(head);
        let (from_head, from) = from.split_at(head);
        to_head.copy_from_slice(from_head);
        let (mut to_lines, mut from_lines) = (to.chunks_exact_mut(LINE), from.chunks_exact(LINE));
        for (t, f) in to_lines.by_ref().zip(from_lines.by_ref()) {
            let (t, f) = (t.as_mut_ptr().cast::<__m128i>(), f.as_ptr().cast::<__m128i>());
            // SAFETY: both point to LINE = 4 * 16 readable (writable) bytes; the loads need no alignment, and the
            // stores have theirs, 16, because `to` was cut at a multiple of 64. SSE2 is part of every x86-64. A
            // prefetch may name any address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(f.cast::<i8>().wrapping_add(AHEAD));
                let line = [
                    _mm_loadu_si128(f),
                    _mm_loadu_si128(f.add(1)),
                    _mm_loadu_si128(f.add(2)),
                    _mm_loadu_si128(f.add(3)),
                ];
                _mm_stream_si128(t, line[0]);
                _mm_stream_si128(t.add(1), line[1]);
                _mm_stream_si128(t.add(2), line[2]);
                _mm_stream_si128(t.add(3), line[3]);
            }
        }
        to_lines.into_remainder().copy_from_slice(from_lines.remainder());
        // SAFETY: a fence has no operands; it orders the stores above before whatever hands the bytes to another
        // thread.
        unsafe { _mm_sfence() };
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_told_from_a_later_one_at_its_address() {
        let first = Chunk::one(PAGE).unwrap();
        let (id, region) = (first.region_id(), first.region());
        assert!(id.holds(&first) && !id.is_gone());
        drop(first);
        assert!(id.is_gone());
        let mut later = Vec::new();
        for _ in 0..64 {
            let chunk = Chunk::one(PAGE).unwrap();
            assert!(!id.holds(&chunk));
            if chunk.region() == region {
                return;
            }
            later.push(chunk);
        }
        eprintln!("SKIPPED the same address: the kernel gave other ones");
    }

    #[test]
    fn a_copy_past_the_cache_moves_just_its_bytes() {
        let from: Vec<u8> = (0..1000u32).map(|i| i.to_le_bytes()[0] ^ 0x5A).collect();
        for (start, len) in [(0, 0), (0, 1), (3, 63), (1, 64), (7, 200), (64, 128), (5, 900)] {
            let mut to = vec![0xEE; 1000];
            copy_past_cache(&mut to[start..start + len], &from[..len]);
            assert_eq!(&to[start..start + len], &from[..len]);
            assert!(to[..start].iter().chain(&to[start + len..]).all(|&b| b == 0xEE), "{start}+{len}");
        }
    }
}

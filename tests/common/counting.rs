//! The system's allocator, counting: what the budget tests look at. A test that names this module runs with it.

#![allow(dead_code)] // each budget looks at one of the two counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

static PROCESS: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn count() {
    THREAD.with(|n| n.set(n.get() + 1));
    PROCESS.fetch_add(1, Ordering::Relaxed);
}

// SAFETY: every call is handed to the system's allocator as it came; the counters are plain numbers without a
// destructor, so touching them allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from `System` with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the memory came from `System` with this layout.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations this thread has asked for.
pub(crate) fn of_this_thread() -> u64 {
    THREAD.with(Cell::get)
}

/// Allocations any thread has asked for.
pub(crate) fn of_the_process() -> u64 {
    PROCESS.load(Ordering::Relaxed)
}

//! The plugin's heap: the crate dlmalloc, for the C library's own is a tenth of an ADD.
//!
//! musl's allocator makes small groups of blocks by mmap(2) and gives them back as they fall free: for a daemon's months that is
//! right, and the shim has it; a process of 3 ms pays for it with a fifth more page faults. The crate's own global allocator takes
//! a lock of the C library, which costs as much as the allocation.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::Dlmalloc;

/// For a `#[global_allocator]`.
pub struct Heap(Mutex<Dlmalloc>);

impl Heap {
    /// An empty heap, which has asked the kernel for nothing yet.
    #[must_use]
    pub const fn new() -> Heap {
        Heap(Mutex::new(Dlmalloc::new()))
    }

    /// The standard library's lock is a number that is swapped where there is one thread, and allocates nothing.
    fn lock(&self) -> MutexGuard<'_, Dlmalloc> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Heap {
    fn default() -> Heap {
        Heap::new()
    }
}

// SAFETY: dlmalloc keeps to the contract, and the lock makes its calls follow one another. Nothing in it unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise: the size is not 0.
        unsafe { self.lock().malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { self.lock().calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise: the block is of this heap and this layout.
        unsafe { self.lock().free(block, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above, and the new size is not 0.
        unsafe { self.lock().realloc(block, layout.size(), layout.align(), size) }
    }
}

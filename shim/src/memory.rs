//! What a call needed goes back to the node after it.
//!
//! A daemon works for some milliseconds and then waits for hours. Of the memory that a container's life takes, a parsed
//! `config.json` above all, glibc keeps everything: a quarter of a megabyte, of which 70 kB are in use. musl gives back what falls free
//! by itself. The stack stays as deep as it has ever been: 64 kB, of which 8 are in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// For the environment of a daemon that was made with glibc (the GNU C Library manual, "Tunables"; mallopt(3) has no such
/// parameters). A longer text takes a page of its own, for the C library keeps a copy.
///
/// Without per-thread caches: up to seven freed blocks of each size count as used, and those at the end of the heap keep all below
/// from being given back. The stack of a thread that has ended goes too: one that is kept for the next has two dirty pages.
pub(crate) const TUNABLES: &[(&str, &str)] = match cfg!(target_env = "gnu") {
    true => &[("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0:glibc.pthread.stack_cache_size=0")],
    false => &[],
};

/// The threads that live for one call would each have an arena of their own, which stays. To be called before there is one.
#[cfg(target_env = "gnu")]
pub(crate) fn keep_one_arena() {
    // SAFETY: the call changes a number of the allocator's.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Other C libraries have no arenas.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_one_arena() {}

/// How long a call's aftermath may take: events, the end of output, the client's farewell.
const QUIET: Duration = Duration::from_secs(1);

/// Whether the stack goes back with the next wait.
static STACK_IS_DUE: AtomicBool = AtomicBool::new(false);

/// Gives free memory back a second from now; more often than once a second it is not done.
pub(crate) fn give_back_soon() {
    static IS_DUE: AtomicBool = AtomicBool::new(false);
    if !IS_DUE.swap(true, Ordering::Relaxed) {
        drop(tokio::spawn(async {
            tokio::time::sleep(QUIET).await;
            IS_DUE.store(false, Ordering::Relaxed);
            give_back();
            give_back_stack_soon();
        }));
    }
}

/// For a call that is made every second, and needs little but a deep stack.
pub(crate) fn give_back_stack_soon() {
    STACK_IS_DUE.store(true, Ordering::Relaxed);
}

/// For the event loop, whenever it is about to wait: never is the stack less deep.
pub(crate) fn before_waiting() {
    if STACK_IS_DUE.swap(false, Ordering::Relaxed) {
        give_back_stack();
    }
}

/// malloc_trim(3): whole free pages, also below the end of the heap.
#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: the call takes the allocator's own locks and touches free memory only.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries return free memory by themselves, or have no call for it.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}

/// In bytes: what is left alone, the frames of `give_back_stack` itself and of the call that it makes.
const MARGIN: usize = 512;
/// As deep as calls go; the kernel keeps the mappings of others farther away (`stack_guard_gap` and `mmap_base`).
const DEPTH: usize = 128 * 1024;

/// The pages of the stack that a deep call has used once and nobody uses now. Never a part of its caller: then the frame that it
/// measures from would be the caller's, which may be large.
#[inline(never)]
pub(crate) fn give_back_stack() {
    let frame = 0_u8;
    let here = std::ptr::from_ref(&frame).cast_mut().cast::<libc::c_void>();
    let end = (here.addr() - MARGIN) & !0xfff;
    // SAFETY: nothing lives on the stack below the frame that runs; what is not mapped there is left out (madvise(2), ENOMEM).
    unsafe { libc::madvise(here.with_addr(end - DEPTH), DEPTH, libc::MADV_DONTNEED) };
}

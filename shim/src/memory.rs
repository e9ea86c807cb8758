//! What a call needed goes back to the node after it.
//!
//! A daemon works for some milliseconds and then waits for hours. Of the memory that a container's life takes, a parsed
//! `config.json` above all, glibc keeps everything: a quarter of a megabyte, of which 70 kB are in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// For the environment of the daemon (the GNU C Library manual, "Memory Allocation Tunables"; mallopt(3) has no such parameter).
///
/// Without per-thread caches: up to seven freed blocks of each size count as used, and those at the end of the heap keep all below
/// from being given back. With one arena: the threads that live for one call would have another, which stays.
pub(crate) const TUNABLES: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1");

/// How long a call's aftermath may take: events, the end of output, the client's farewell.
const QUIET: Duration = Duration::from_secs(1);

/// Gives free memory back a second from now; more often than once a second it is not done.
pub(crate) fn give_back_soon() {
    static IS_DUE: AtomicBool = AtomicBool::new(false);
    if !IS_DUE.swap(true, Ordering::Relaxed) {
        drop(tokio::spawn(async {
            tokio::time::sleep(QUIET).await;
            IS_DUE.store(false, Ordering::Relaxed);
            give_back();
        }));
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

//! Memory that a call needed goes back to the node after it.
//!
//! A shim works for some milliseconds and then waits for hours. What a call had, a parsed `config.json` above all, the
//! allocator keeps for the next one unless it is told otherwise.

/// Gives free memory back, once whoever waits for an answer has it.
pub(crate) fn give_back_soon() {
    drop(tokio::spawn(async {
        tokio::task::yield_now().await;
        give_back();
    }));
}

/// `malloc_trim(3)`: whole free pages, also below the top of the heap.
#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: the call takes the allocator's own locks and touches free memory only.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries return free memory by themselves, or have no call for it.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}

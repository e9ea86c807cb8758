//! Where the processes of a pod begin.
//!
//! Two programs are started for each pod, the shim several times, and each start of Rust's runtime costs what none of them needs: it has
//! the C library read `/proc/self/maps` to find the end of the stack, and keeps a stack for the message of its overflow
//! (`init` in library/std/src/sys/pal/unix/mod.rs): 19 system calls, and pages that stay dirty. So they begin with C's `main`, and what
//! the runtime does that is needed is here.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Runs `program`, and returns the exit code: 2 where there may be nothing left to say a reason to.
pub fn enter(program: fn() -> i32) -> i32 {
    if prepare().is_err() {
        return 2;
    }
    let code = program();
    // Nobody flushes it after C's `main`.
    if std::io::stdout().flush().is_ok() { code } else { code.max(1) }
}

/// Descriptor 0. The standard library's comes with a buffer of 8 kB, which stays.
pub(crate) fn standard_input() -> BorrowedFd<'static> {
    // SAFETY: the descriptor is open as long as the process: `prepare` has seen to it.
    unsafe { BorrowedFd::borrow_raw(0) }
}

fn prepare() -> std::io::Result<()> {
    for fd in 0..=2 {
        // SAFETY: the descriptor is looked at only, and may be none.
        let open = fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_GETFD);
        if open == Err(Errno::EBADF) {
            // Else the next file that is opened, the store perhaps, would be what the answer is written to.
            std::mem::forget(OpenOptions::new().read(true).write(true).open("/dev/null")?);
        }
    }
    // Who reads no more is an error of write(2), and no reason to die.
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
    Ok(())
}

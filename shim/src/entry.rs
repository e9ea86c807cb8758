//! Where the processes of a pod begin.
//!
//! Two programs are started for each pod, the shim several times, and each start of Rust's runtime costs what none of them needs: it has
//! the C library read `/proc/self/maps` to find the end of the stack, and keeps a stack for the message of its overflow
//! (`init` in library/std/src/sys/pal/unix/mod.rs): 19 system calls, and pages that stay dirty. So they begin with C's `main`, and what
//! the runtime does that is needed is here.

use std::ffi::{CStr, c_char, c_int};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};

/// The command line. Without Rust's own start `std::env::args` knows it with the GNU C Library only (`really_init` in
/// library/std/src/sys/args/unix.rs).
static WORDS: OnceLock<Vec<String>> = OnceLock::new();

/// Runs `program`, and returns the exit code: 2 where there may be nothing left to say a reason to.
///
/// # Safety
/// `argc` and `argv` are those of `main`.
pub unsafe fn enter(argc: c_int, argv: *const *const c_char, program: fn() -> i32) -> i32 {
    if prepare().is_err() {
        return 2;
    }
    // SAFETY: the caller's promise.
    WORDS.get_or_init(|| unsafe { read_words(argc, argv) });
    let code = program();
    // Nobody flushes it after C's `main`.
    if std::io::stdout().flush().is_ok() { code } else { code.max(1) }
}

/// The command line, the program's name first; nothing in a process that did not begin here. What is not UTF-8 has U+FFFD in its
/// place, and so names nothing that is there.
pub fn words() -> impl Iterator<Item = String> {
    WORDS.get().into_iter().flatten().cloned()
}

/// # Safety
/// As of [`enter`].
unsafe fn read_words(argc: c_int, argv: *const *const c_char) -> Vec<String> {
    // SAFETY: `argv` has `argc` pointers.
    let words = unsafe { std::slice::from_raw_parts(argv, usize::try_from(argc).unwrap_or(0)) };
    // SAFETY: each leads to a string that ends with a zero (execve(2)).
    let word = |word: &*const c_char| unsafe { CStr::from_ptr(*word) }.to_string_lossy().into_owned();
    words.iter().map(word).collect()
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

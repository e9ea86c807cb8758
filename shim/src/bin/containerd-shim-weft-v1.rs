//! The containerd shim: one process per pod.

#![no_main]

use std::ffi::{c_char, c_int};

use weft_shim::{daemon, entry};

#[unsafe(no_mangle)]
unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> i32 {
    // SAFETY: they are those of `main`.
    unsafe { entry::enter(argc, argv, || daemon::main(entry::words().skip(1))) }
}

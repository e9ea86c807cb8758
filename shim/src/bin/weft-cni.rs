//! The CNI plugin, installed as `weft` in the directory of the CNI plugins.

#![no_main]

use std::ffi::{c_char, c_int};
use std::io::Write;

use weft_shim::heap::Heap;
use weft_shim::{cni, entry};

#[global_allocator]
static HEAP: Heap = Heap::new();

#[unsafe(no_mangle)]
unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> i32 {
    // SAFETY: they are those of `main`.
    unsafe { entry::enter(argc, argv, plugin) }
}

fn plugin() -> i32 {
    let succeeded = match entry::words().nth(1).as_deref() {
        Some("--version") => writeln!(std::io::stdout(), "{}", cni::version()).is_ok(),
        _ => cni::run(std::io::stdin().lock(), std::io::stdout().lock()),
    };
    i32::from(!succeeded)
}

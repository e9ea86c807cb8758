//! The containerd shim: one process per pod.

#![no_main]

use weft_shim::{daemon, entry};

#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    entry::enter(|| daemon::main(std::env::args().skip(1)))
}

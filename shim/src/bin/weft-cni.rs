//! The CNI plugin, installed as `weft` in the directory of the CNI plugins.

#![no_main]

use std::io::Write;

use weft_shim::{cni, entry};

#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    entry::enter(|| {
        let succeeded = match std::env::args().nth(1).as_deref() {
            Some("--version") => writeln!(std::io::stdout(), "{}", cni::version()).is_ok(),
            _ => cni::run(std::io::stdin().lock(), std::io::stdout().lock()),
        };
        i32::from(!succeeded)
    })
}

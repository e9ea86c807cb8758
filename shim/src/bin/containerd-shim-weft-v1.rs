//! The containerd shim: one process per pod.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_shim::daemon::main(std::env::args().skip(1))
}

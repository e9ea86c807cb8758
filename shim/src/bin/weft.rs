//! The `weft` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_shim::ctl::run(std::env::args_os(), std::io::stdout().lock(), std::io::stderr().lock()).into()
}

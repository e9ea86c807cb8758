//! The CNI plugin, installed as `weft` in the directory of the CNI plugins.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        let printed = writeln!(std::io::stdout(), "{}", weft_shim::cni::version());
        return printed.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    if weft_shim::cni::run(std::io::stdin().lock(), std::io::stdout().lock()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

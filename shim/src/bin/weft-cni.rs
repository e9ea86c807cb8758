//! The CNI plugin, installed as `weft` in the directory of the CNI plugins.

use std::process::ExitCode;

fn main() -> ExitCode {
    if weft_shim::cni::run(std::io::stdin().lock(), std::io::stdout().lock()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

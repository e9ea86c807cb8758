//! weft's programs: each is where its caller looks for it, and of this version.

use std::path::{Path, PathBuf};

use super::Finding;
use super::containerd::ask;

/// What containerd makes of `io.containerd.weft.v1`.
const SHIM: &str = "containerd-shim-weft-v1";
/// The `type` in the CNI configuration.
const PLUGIN: &str = "weft";

pub(super) fn look(plugin_dirs: &[PathBuf]) -> Vec<Finding> {
    vec![of("shim", Path::new(SHIM), "-v", SHIM), plugin(plugin_dirs)]
}

fn plugin(dirs: &[PathBuf]) -> Finding {
    let found = dirs.iter().map(|dir| dir.join(PLUGIN)).find(|path| path.exists());
    let Some(path) = found else {
        let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let remedy = "install weft-cni there, under the name weft";
        return Finding::problem("CNI plugin", format!("no {PLUGIN} in {}", dirs.join(", ")), remedy);
    };
    of("CNI plugin", &path, "--version", "weft-cni")
}

/// Asks the program which version it is: `NAME VERSION`.
fn of(check: &'static str, program: &Path, flag: &str, name: &str) -> Finding {
    let version = env!("CARGO_PKG_VERSION");
    let remedy = format!("install version {version} of all three programs");
    match ask(program, &[flag]) {
        Ok(said) if said.trim() == format!("{name} {version}") => {
            Finding::ok(check, format!("{}, version {version}", program.display()))
        }
        Ok(said) => {
            let said: String = said.trim().chars().take(80).collect();
            Finding::warning(check, format!("{} says {said:?}", program.display()), remedy)
        }
        Err(err) => Finding::problem(check, err, remedy),
    }
}

//! Where the programs under test and the programs that test them are.
//!
//! `WEFT_TOOLS_DIR` names the directory that `conformance/tools/build.sh` filled; without it the script is run, which takes no time
//! once it has built. `WEFT_BIN_DIR` names the directory with `containerd-shim-weft-v1`, `weft-cni` and `weft`; only a node with
//! [`Subject::Weft`](crate::Subject::Weft) needs it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The programs of `conformance/tools`: containerd, runc, crictl, critest, the CNI plugins.
#[derive(Debug)]
pub struct Tools(PathBuf);

impl Tools {
    /// The directory, looked up or built once per process.
    pub fn find() -> &'static Self {
        static TOOLS: OnceLock<Tools> = OnceLock::new();
        TOOLS.get_or_init(|| Self(env::var_os("WEFT_TOOLS_DIR").map_or_else(own, PathBuf::from)))
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The directory of the CNI plugins.
    pub fn cni(&self) -> PathBuf {
        self.0.join("cni")
    }

    /// The path of a program, which must exist.
    pub fn program(&self, name: &str) -> PathBuf {
        present(self.0.join(name))
    }
}

/// The path of one of weft's binaries, which must exist.
pub(crate) fn weft(name: &str) -> PathBuf {
    let dir = env::var_os("WEFT_BIN_DIR")
        .expect("WEFT_BIN_DIR is not set: it names the directory of weft's binaries");
    present(Path::new(&dir).join(name))
}

/// The path, of something that must exist.
pub(crate) fn present(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} does not exist", path.display());
    path
}

fn own() -> PathBuf {
    build(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/build.sh"))
}

/// The directory that the build script fills.
pub(crate) fn build(script: &Path) -> PathBuf {
    let output = Command::new(script).output().expect("run a build script");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}\n{stderr}", script.display(), output.status);
    let stdout = String::from_utf8_lossy(&output.stdout);
    PathBuf::from(stdout.lines().last().expect("build.sh prints the directory"))
}

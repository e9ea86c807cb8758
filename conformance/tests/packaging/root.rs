//! A clean root file system, the packages, and what is run inside.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;
use weft_conformance::run;

use crate::tree::{binaries, checkout, listing};

/// In namespaces of its own, so that whatever a script of a package starts ends with it, and reaches nothing.
const CHROOT: &str = r#"mount -t proc proc "$1/proc" && exec chroot "$@""#;

/// Where the packages are put.
pub(crate) fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Makes the deb and the rpm, and returns them in this order.
pub(crate) fn build_packages(out: &Path) -> [PathBuf; 2] {
    let mut script = Command::new(checkout().join("packaging/packages.sh"));
    let made = run(script.arg(binaries()).arg(out));
    let paths: Vec<PathBuf> = made.lines().map(PathBuf::from).collect();
    paths.try_into().unwrap()
}

/// The same, made once.
pub(crate) fn packages() -> &'static [PathBuf; 2] {
    static PACKAGES: OnceLock<[PathBuf; 2]> = OnceLock::new();
    PACKAGES.get_or_init(|| build_packages(&target().join("packages")))
}

/// Debian's essential packages, systemd and udev.
pub(crate) struct Root(TempDir);

impl Root {
    pub(crate) fn new() -> Root {
        let archive =
            std::env::var_os("WEFT_ROOT").expect("WEFT_ROOT names the archive of a root file system");
        let dir = tempfile::Builder::new().prefix("root-").tempdir_in(target()).unwrap();
        run(Command::new("tar").arg("-xpf").arg(archive).arg("-C").arg(dir.path()));
        Root(dir)
    }

    /// With the deb installed.
    pub(crate) fn with_deb() -> Root {
        let root = Root::new();
        root.install_deb();
        root
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below.trim_start_matches('/'))
    }

    /// A program of the root's.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--net",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            CHROOT,
            "sh",
        ]);
        command.arg(self.dir()).arg(program);
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        command
    }

    /// Runs a program of the root's, whatever becomes of it.
    pub(crate) fn output(&self, program: &str, args: &[&str]) -> Output {
        self.command(program).args(args).output().unwrap()
    }

    pub(crate) fn install_deb(&self) {
        fs::copy(&packages()[0], self.path("/weft.deb")).unwrap();
        run(self.command("dpkg").args(["--install", "/weft.deb"]));
        fs::remove_file(self.path("/weft.deb")).unwrap();
    }

    /// Everything in the root, but for the books of the package managers, logs, what is a tmpfs on a node, and /opt, which no Debian package
    /// owns: dpkg removes it with the last one that has files there.
    pub(crate) fn listing(&self) -> BTreeMap<String, String> {
        let mut all = listing(self.dir());
        let books = ["/var/lib/dpkg", "/var/lib/rpm", "/var/log/", "/var/cache/", "/run/", "/dev/", "/proc/"];
        all.retain(|path, _| path != "/opt" && !books.iter().any(|book| path.starts_with(book)));
        all
    }
}

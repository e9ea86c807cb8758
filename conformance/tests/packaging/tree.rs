//! A folder that weft is installed into, and lists of what is in folders.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The checkout.
pub(crate) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The folder of weft's binaries.
pub(crate) fn binaries() -> PathBuf {
    std::env::var_os("WEFT_BIN_DIR").expect("WEFT_BIN_DIR names the directory of weft's binaries").into()
}

/// Everything below a folder by its path from there: kind, mode and owner, and where a link leads or what a file says.
pub(crate) fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mut what = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
            if meta.is_symlink() {
                what = format!("link to {}", fs::read_link(&path).unwrap().display());
            } else if meta.is_dir() {
                folders.push(path.clone());
            }
            found.insert(format!("/{}", path.strip_prefix(root).unwrap().display()), what);
        }
    }
    found
}

/// What `after` has that `before` has not, or otherwise.
pub(crate) fn changed(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let gone = before.keys().filter(|path| !after.contains_key(*path)).map(|path| format!("gone: {path}"));
    let new = after.iter().filter(|(path, what)| before.get(*path) != Some(what));
    gone.chain(new.map(|(path, what)| format!("new: {path} ({what})"))).collect()
}

/// A root to install into, with what other packages have put there.
pub(crate) struct Tree(TempDir);

impl Tree {
    pub(crate) fn new() -> Tree {
        let tree = Tree(tempfile::Builder::new().prefix("weft-install-").tempdir().unwrap());
        for folder in
            ["etc/cni/net.d", "etc/containerd", "opt/cni/bin", "usr/local/bin", "usr/lib/systemd/system"]
        {
            fs::create_dir_all(tree.path(folder)).unwrap();
        }
        fs::write(tree.path("etc/cni/net.d/20-other.conflist"), "{}").unwrap();
        fs::write(tree.path("opt/cni/bin/bridge"), "").unwrap();
        tree
    }

    pub(crate) fn installed() -> Tree {
        let tree = Tree::new();
        tree.install();
        tree
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below.trim_start_matches('/'))
    }

    pub(crate) fn listing(&self) -> BTreeMap<String, String> {
        listing(self.0.path())
    }

    /// `make TARGET` into this root, as somebody in front of a terminal runs it.
    pub(crate) fn try_make(&self, target: &str) -> Output {
        let mut make = Command::new("make");
        for variable in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
            make.env_remove(variable);
        }
        make.args(["--no-print-directory", "-C"]).arg(checkout()).arg(target);
        make.arg(format!("DESTDIR={}", self.0.path().display())).arg("PREFIX=/usr/local");
        make.arg(format!("BIN_DIR={}", binaries().display())).output().unwrap()
    }

    /// The same, which must succeed; what it said on standard error.
    pub(crate) fn make(&self, target: &str) -> String {
        let output = self.try_make(target);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "make {target}: {}\n{said}", output.status);
        said
    }

    pub(crate) fn install(&self) -> String {
        self.make("install")
    }
}

/// The rows of packaging/files as they are installed: kind, mode, source, destination.
pub(crate) fn table(prefix: &str) -> Vec<[String; 4]> {
    let script = checkout().join("packaging/install.sh");
    let text = weft_conformance::run(
        Command::new(script).arg("list").env("PREFIX", prefix).env("BIN_DIR", binaries()),
    );
    let rows = text.lines().map(|line| {
        let row: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        row.try_into().unwrap()
    });
    rows.collect()
}

//! The cgroups of a node's pods: the harness plays the kubelet, which makes a pod's parent cgroup and removes it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::wait::holds_within;

/// The roots of the hierarchies: one in version 2, one per controller in version 1.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    fs::read_dir(root).expect("list /sys/fs/cgroup").flatten().map(|entry| entry.path()).collect()
}

/// The directories of cgroup `name` in every hierarchy.
fn directories(name: &str) -> Vec<PathBuf> {
    hierarchies().into_iter().map(|hierarchy| hierarchy.join(name)).filter(|dir| dir.is_dir()).collect()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    // A directory that is gone has no children.
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The parent of the cgroups of a node's pods, `/NAME/POD`; removed on drop.
pub(crate) struct PodCgroups(pub(crate) String);

impl PodCgroups {
    /// Cgroups below the pods' own, which the runtime made and should have removed.
    pub(crate) fn left_below(&self) -> Vec<PathBuf> {
        directories(&self.0).iter().flat_map(|dir| children(dir)).flat_map(|pod| children(&pod)).collect()
    }

    /// Makes the parent itself, in every hierarchy, for a kubelet that makes the rest.
    pub(crate) fn make(&self) {
        hierarchies().iter().for_each(|root| fs::create_dir_all(root.join(&self.0)).expect("make a cgroup"));
    }

    /// The cgroups of pods below those that the kubelet keeps for the classes of service (pkg/kubelet/cm/cgroup_manager_linux.go).
    pub(crate) fn kubernetes_pods(&self) -> Vec<PathBuf> {
        let classes = ["kubepods", "kubepods/besteffort", "kubepods/burstable"].iter();
        let all = classes.flat_map(|class| directories(&format!("{}/{class}", self.0)));
        let all = all.flat_map(|dir| children(&dir));
        all.filter(|dir| dir.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"pod")))
            .collect()
    }

    /// Removes what is below the parent.
    pub(crate) fn remove_below(&self) -> Result<(), String> {
        directories(&self.0).iter().flat_map(|dir| children(dir)).try_for_each(|dir| remove_tree(&dir))
    }

    /// Removes them all; an error names the first that cannot be removed, which is one that has processes.
    pub(crate) fn remove(&self) -> Result<(), String> {
        directories(&self.0).iter().try_for_each(|dir| remove_tree(dir))
    }
}

impl Drop for PodCgroups {
    /// Best effort: a test that fails may leave a dying process in one for a moment.
    fn drop(&mut self) {
        holds_within(Duration::from_secs(5), &mut || self.remove().is_ok());
    }
}

fn remove_tree(dir: &Path) -> Result<(), String> {
    children(dir).iter().try_for_each(|child| remove_tree(child))?;
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(format!("remove cgroup {}: {e}", dir.display())),
        _ => Ok(()),
    }
}

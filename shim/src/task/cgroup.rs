//! The cgroup of a container or a pod: where it is, and who is in it.
//!
//! cgroup v1 has one hierarchy for each controller, under `/sys/fs/cgroup/<controller>`; v2 has one for all, at
//! `/sys/fs/cgroup` (cgroups(7)). Everything is read from files; no process is started.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use tokio::time::{Instant, sleep};

const MOUNT: &str = "/sys/fs/cgroup";
/// The controllers of v1 that counters come from; `freezer` is where processes are looked for first, since every
/// runtime makes one of its own there.
const CONTROLLERS: [&str; 7] = ["freezer", "pids", "memory", "cpuacct", "cpu", "blkio", "hugetlb"];
/// Processes are asked again whether they are gone.
const POLL: Duration = Duration::from_millis(2);

/// Where one cgroup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cgroup {
    /// Controller to folder.
    V1(BTreeMap<&'static str, PathBuf>),
    /// The folder.
    V2(PathBuf),
}

impl Cgroup {
    /// The cgroup that a process is in.
    pub(crate) fn of(pid: u32) -> io::Result<Cgroup> {
        Ok(Self::parse(&fs::read_to_string(format!("/proc/{pid}/cgroup"))?, is_v2()))
    }

    /// The cgroup at `path`, as a `cgroup_parent` or an OCI `cgroupsPath` spells it: `/absolute/path`, `name.slice` or
    /// `slice:prefix:name`.
    pub(crate) fn at(path: &str) -> Cgroup {
        Self::join(&hierarchical(path), is_v2())
    }

    pub(super) fn parse(text: &str, v2: bool) -> Cgroup {
        let mut folders = BTreeMap::new();
        for line in text.lines() {
            // hierarchy-ID:controller-list:cgroup-path, see cgroups(7).
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            if v2 && controllers.is_empty() {
                return Cgroup::V2(below(Path::new(MOUNT), path));
            }
            for name in CONTROLLERS.iter().filter(|name| controllers.split(',').any(|c| c == **name)) {
                folders.insert(*name, below(&Path::new(MOUNT).join(name), path));
            }
        }
        Cgroup::V1(folders)
    }

    fn join(path: &str, v2: bool) -> Cgroup {
        if v2 {
            return Cgroup::V2(below(Path::new(MOUNT), path));
        }
        let folder = |name: &&'static str| (*name, below(&Path::new(MOUNT).join(name), path));
        Cgroup::V1(CONTROLLERS.iter().map(folder).collect())
    }

    /// All processes, of the cgroups below too. Empty when the cgroup is gone.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        if let Some(folder) = self.processes() {
            collect(folder, &mut pids);
        }
        pids
    }

    /// Signals all processes, once; `false` if that cannot be done here.
    pub(crate) fn signal(&self, number: i32) -> bool {
        if !self.is_own() {
            log::warn!("{self:?} is not the container's own: only its first process is signalled");
            return false;
        }
        if let Cgroup::V2(folder) = self
            && number == libc::SIGKILL
            && fs::write(folder.join("cgroup.kill"), "1").is_ok()
        {
            return true;
        }
        let pids = self.pids();
        for pid in &pids {
            if let Err(err) = crate::reaper::send_signal(*pid, number) {
                log::debug!("signal {number} to {pid}: {err}");
            }
        }
        !pids.is_empty()
    }

    /// Kills until nobody is left, at most for `limit`.
    pub(crate) async fn kill(&self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.is_own() && !self.pids().is_empty() {
            if Instant::now() > end {
                return log::warn!("processes {:?} outlive SIGKILL", self.pids());
            }
            if !self.signal(libc::SIGKILL) {
                return;
            }
            sleep(POLL).await;
        }
    }

    /// Neither the root nor a cgroup that this process is in: where a runtime has made none (no delegation), a
    /// container stays in its parent's, and must not take the node with it.
    fn is_own(&self) -> bool {
        let Some(folder) = self.processes() else { return false };
        match Cgroup::of(std::process::id()) {
            Ok(ours) => ours.processes().is_none_or(|ours| !ours.starts_with(folder)),
            Err(_) => false,
        }
    }

    fn processes(&self) -> Option<&Path> {
        match self {
            Cgroup::V1(folders) => {
                CONTROLLERS.iter().find_map(|name| folders.get(name)).map(PathBuf::as_path)
            }
            Cgroup::V2(folder) => Some(folder),
        }
    }
}

/// `slice:prefix:name` and `a-b.slice` as systemd lays them out: `a-b.slice` lies in `a.slice` (systemd.slice(5)).
fn hierarchical(path: &str) -> String {
    let mut fields = path.splitn(3, ':');
    if let (Some(slice), Some(prefix), Some(name)) = (fields.next(), fields.next(), fields.next()) {
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        let unit = if name.ends_with(".slice") { name.to_owned() } else { format!("{prefix}-{name}.scope") };
        return format!("{}/{unit}", hierarchical(slice));
    }
    let Some(name) = path.strip_suffix(".slice").filter(|name| !name.contains('/') && *name != "-") else {
        return path.to_owned();
    };
    let mut whole = String::new();
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        if let Some(prefix) = name.get(..end) {
            whole.push_str(&format!("/{prefix}.slice"));
        }
    }
    whole
}

fn collect(folder: &Path, pids: &mut Vec<u32>) {
    let Ok(text) = fs::read_to_string(folder.join("cgroup.procs")) else { return };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids);
        }
    }
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

pub(super) fn is_v2() -> bool {
    statfs(MOUNT).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_has_a_folder_for_each_controller() {
        let text = "9:name=systemd:/x\n8:pids:/k8s.io/a\n4:memory:/k8s.io/a\n2:cpu,cpuacct:/k8s.io/a\n0::/\n";
        let Cgroup::V1(folders) = Cgroup::parse(text, false) else { panic!("not v1") };
        assert_eq!(folders["cpuacct"], Path::new("/sys/fs/cgroup/cpuacct/k8s.io/a"));
        assert_eq!(folders["pids"], Path::new("/sys/fs/cgroup/pids/k8s.io/a"));
        assert_eq!(folders.keys().collect::<Vec<_>>(), [&"cpu", &"cpuacct", &"memory", &"pids"]);
    }

    #[test]
    fn v2_has_one_folder() {
        let cgroup = Cgroup::parse("0::/kubepods.slice/cri-containerd-a.scope\n", true);
        assert_eq!(cgroup, Cgroup::V2("/sys/fs/cgroup/kubepods.slice/cri-containerd-a.scope".into()));
    }

    #[test]
    fn slices_nest() {
        assert_eq!(hierarchical("/k8s.io/a"), "/k8s.io/a");
        assert_eq!(hierarchical("a.slice"), "/a.slice");
        assert_eq!(
            hierarchical("kubepods-besteffort-pod1.slice:cri-containerd:c"),
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-c.scope"
        );
    }

    #[test]
    fn a_cgroup_that_holds_this_process_is_never_ours_to_kill() {
        assert!(!Cgroup::at("/").is_own());
        assert!(!Cgroup::of(std::process::id()).unwrap().is_own());
        assert!(Cgroup::at("/weft-test-nowhere").is_own());
    }
}

//! The sandbox's own cgroup, `<cgroup_parent>/<id>`, in every mounted hierarchy.
//!
//! The shim's process is in it while the pod runs, so that what the sandbox uses counts for the pod, and leaves it
//! when the pod stops, because the kubelet kills whatever is left in a pod's cgroup. No limit is set here: that is
//! the business of whoever made the parent. Like an OCI runtime, this makes missing parents and removes only the leaf.
//! Version 2 counts only where it is alone: beside version 1 it has no controllers, and nobody cleans up there.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Error;

/// How long the kernel may take to release what has ended, and how often it is looked at. An emulated machine with more to do than
/// processors once took more than 300 ms.
const RELEASE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

/// Where version 2 is, if it is alone (file-hierarchy(7)).
const UNIFIED: &str = "/sys/fs/cgroup";
/// In bytes: what a node has mounted before its first pod.
const MOUNTS: usize = 16 << 10;

/// One mounted hierarchy, and where in it this process was when the daemon started.
#[derive(Debug)]
struct Hierarchy {
    mount: PathBuf,
    home: PathBuf,
    unified: bool,
    /// Of version 1: nobody can join a new cgroup of it as it is.
    cpuset: bool,
}

/// The node's hierarchies.
#[derive(Debug)]
pub(super) struct Hierarchies(Vec<Hierarchy>);

/// The pod's cgroup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Cgroup {
    /// As the OCI configuration spells it (`cgroupsPath`).
    pub(super) oci_path: String,
    /// `cgroup_parent`, below the root of each hierarchy: what the whole pod uses.
    pub(super) pod: PathBuf,
    /// The sandbox's own, one per hierarchy.
    leaves: Vec<PathBuf>,
}

impl Hierarchies {
    /// Reads what is mounted, and where this process is.
    pub(super) fn here() -> io::Result<Hierarchies> {
        let member = std::fs::read_to_string("/proc/self/cgroup")?;
        if statfs(UNIFIED).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            // Without the list of all mounts, some for each pod of the node.
            let home = member.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").into();
            return Ok(Hierarchies(vec![Hierarchy {
                mount: UNIFIED.into(),
                home,
                unified: true,
                cpuset: false,
            }]));
        }
        // The kernel goes through the list from its beginning for each read(2), and the standard library's first ones are short.
        let mut mounts = String::with_capacity(MOUNTS);
        File::open("/proc/self/mountinfo")?.read_to_string(&mut mounts)?;
        let mut all: Vec<Hierarchy> = mounts.lines().filter_map(|line| hierarchy(line, &member)).collect();
        if !all.iter().all(|one| one.unified) {
            all.retain(|one| !one.unified);
        }
        Ok(Hierarchies(all))
    }

    /// Puts this process back where it was; all that cannot be done is returned.
    pub(super) fn come_home(&self) -> Vec<Error> {
        let own = std::process::id();
        let join = |hierarchy: &Hierarchy| join(&below(&hierarchy.mount, &hierarchy.home), own).err();
        self.0.iter().filter_map(join).collect()
    }
}

/// A line of proc_pid_mountinfo(5), if it is a hierarchy: `… <root> <mount> <options> … - <type> <source> <super>`.
fn hierarchy(line: &str, member: &str) -> Option<Hierarchy> {
    let (left, right) = line.split_once(" - ")?;
    let mount = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1)?);
    let offered: Vec<&str> = options.split(',').collect();
    // proc_pid_cgroup is `<number>:<controllers>:<path>`; version 2 names no controllers.
    let home = member.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let same = match kind {
            "cgroup2" => controllers.is_empty(),
            "cgroup" => !controllers.is_empty() && controllers.split(',').all(|name| offered.contains(&name)),
            _ => false,
        };
        same.then(|| PathBuf::from(path))
    })?;
    let unified = kind == "cgroup2";
    Some(Hierarchy { mount: mount.into(), home, unified, cpuset: !unified && offered.contains(&"cpuset") })
}

impl Cgroup {
    /// The cgroup of a pod below `parent`; nothing is made yet.
    ///
    /// # Errors
    /// If `parent` leads upwards.
    pub(super) fn plan(hierarchies: &Hierarchies, parent: &str, id: &str) -> Result<Cgroup, Error> {
        if Path::new(parent).components().any(|part| part == std::path::Component::ParentDir) {
            return Err(Error::CgroupParent(parent.into()));
        }
        let slice = parent.rsplit('/').next().filter(|name| name.ends_with(".slice"));
        let (pod, leaf, oci_path) = match slice {
            Some(slice) => {
                (expand(slice), format!("cri-containerd-{id}.scope"), format!("{slice}:cri-containerd:{id}"))
            }
            None => {
                (Path::new("/").join(parent), id.to_owned(), format!("{}/{id}", parent.trim_end_matches('/')))
            }
        };
        let leaf = pod.join(leaf);
        let leaves = hierarchies.0.iter().map(|one| below(&one.mount, &leaf)).collect();
        Ok(Cgroup { oci_path, pod, leaves })
    }

    /// Makes what is missing.
    fn make(&self) -> Result<(), Error> {
        self.leaves.iter().try_for_each(|leaf| make(leaf))
    }

    /// Lets processes in where the kernel would let nobody in; what cannot be done is returned.
    fn open(&self, hierarchies: &Hierarchies) -> Option<Error> {
        let cpusets = self.leaves.iter().zip(&hierarchies.0).filter(|(_, one)| one.cpuset);
        cpusets.map(|(leaf, _)| leaf).find_map(|leaf| inherit_cpuset(leaf).err())
    }

    /// Puts processes in; all that cannot be done is returned.
    fn join(&self, pids: &[u32]) -> Vec<Error> {
        let joins = self.leaves.iter().flat_map(|leaf| pids.iter().map(|pid| join(leaf, *pid)));
        joins.filter_map(Result::err).collect()
    }

    /// Removes the sandbox's own, which may be gone; all that cannot be done is returned. For a thread or a process of its
    /// own: what has just ended, a thread of ours or the pod's process 1, counts as a member until the kernel has released
    /// it, and that is waited for.
    pub(super) fn remove(&self) -> Vec<Error> {
        let deadline = Instant::now() + RELEASE;
        let remove = |dir: &PathBuf| loop {
            match std::fs::remove_dir(dir) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => return None,
                Err(err) if err.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::park_timeout(LOOK);
                }
                Err(source) => return Some(Error::File { op: "remove cgroup", path: dir.clone(), source }),
                Ok(()) => return None,
            }
        };
        self.leaves.iter().filter_map(remove).collect()
    }
}

/// A change of cgroups that is under way. The kernel waits for a grace period before the first process may change
/// (`cgroup_threadgroup_rwsem` in kernel/cgroup/cgroup.c; 5 to 13 ms here), and no pod has to wait for where its sandbox is
/// counted. The thread changes nothing of its own, and ends.
#[derive(Debug)]
pub(super) struct Move {
    thread: Option<JoinHandle<Vec<Error>>>,
    /// Into a cgroup: whether there is one, until it is known that there is.
    made: Option<Receiver<Result<(), Error>>>,
    /// Closed when the thread has nothing left to do.
    ending: Option<oneshot::Receiver<()>>,
    errors: Vec<Error>,
}

/// The processes that are to move into the cgroup, once. Without them nobody is moved.
pub(super) type Entrance = SyncSender<Vec<u32>>;

impl Move {
    /// Into a cgroup, which is made at once, beside all else that a pod needs: version 1 has a dozen hierarchies, of 50 µs each. Nobody
    /// waits for its cpuset, for which the kernel goes through all cpusets of the node: up to a millisecond
    /// (`rebuild_sched_domains_locked` in kernel/cgroup/cpuset.c).
    pub(super) fn into(cgroup: Cgroup, hierarchies: Arc<Hierarchies>) -> Result<(Move, Entrance), Error> {
        let (tell, made) = sync_channel(1);
        let (members, of_pod) = sync_channel::<Vec<u32>>(1);
        let enter = move || {
            let made = cgroup.make();
            let is_made = made.is_ok();
            if tell.send(made).is_err() || !is_made {
                return Vec::new();
            }
            let shut = cgroup.open(&hierarchies);
            let joined = of_pod.recv().map_or_else(|_undone| Vec::new(), |pids| cgroup.join(&pids));
            shut.into_iter().chain(joined).collect()
        };
        Ok((Move { made: Some(made), ..Move::start(enter)? }, members))
    }

    /// Waits until the cgroup is there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn made(&mut self) -> Result<(), Error> {
        let Some(made) = &self.made else { return Ok(()) };
        made.recv().map_err(|err| Error::Io { op: "make the cgroup", source: io::Error::other(err) })??;
        self.made = None;
        Ok(())
    }

    pub(super) fn start(work: impl FnOnce() -> Vec<Error> + Send + 'static) -> Result<Move, Error> {
        let (working, ending) = oneshot::channel::<()>();
        let work = move || {
            let errors = work();
            drop(working);
            errors
        };
        let thread = std::thread::Builder::new().name("cgroup".into()).spawn(work);
        let thread =
            thread.map_err(|source| Error::Io { op: "start a thread to change the cgroup", source })?;
        Ok(Move { thread: Some(thread), made: None, ending: Some(ending), errors: Vec::new() })
    }

    /// Once: what to wait for before [`Move::free_thread`].
    pub(super) fn ending(&mut self) -> Option<oneshot::Receiver<()>> {
        self.ending.take()
    }

    /// Gives the stack of the thread back, if somebody has waited for this one to end.
    pub(super) fn free_thread(&mut self) {
        if self.ending.is_none() {
            self.join();
        }
    }

    fn join(&mut self) {
        let joined = self.thread.take().map(JoinHandle::join);
        self.errors.extend(
            joined.into_iter().flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
        );
    }

    /// Waits for the end; what could not be done.
    pub(super) fn end(mut self) -> Vec<Error> {
        self.join();
        self.errors
    }
}

/// Makes a cgroup and its parents; another pod may be making the same parents.
fn make(dir: &Path) -> Result<(), Error> {
    let made = match (std::fs::create_dir(dir), dir.parent()) {
        (Err(err), Some(parent)) if err.kind() == io::ErrorKind::NotFound => {
            make(parent)?;
            std::fs::create_dir(dir)
        }
        (made, _) => made,
    };
    match made {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::File { op: "create cgroup", path: dir.into(), source })
        }
        _ => Ok(()),
    }
}

/// `path` is absolute within the hierarchy.
fn below(mount: &Path, path: &Path) -> PathBuf {
    mount.join(path.strip_prefix("/").unwrap_or(path))
}

/// A whole process, whichever of its threads writes (cgroups(7)). One that has ended is in no cgroup.
fn join(dir: &Path, pid: u32) -> Result<(), Error> {
    let path = dir.join("cgroup.procs");
    match std::fs::write(&path, pid.to_string()) {
        Err(source) if source.raw_os_error() != Some(libc::ESRCH) => {
            Err(Error::File { op: "join cgroup", path, source })
        }
        _ => Ok(()),
    }
}

/// A new cpuset of version 1 is empty, and nobody can join it (cpuset(7)). That of the parent may be as new: another pod may have made
/// it this moment, and not filled it yet.
fn inherit_cpuset(dir: &Path) -> Result<(), Error> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = dir.join(name);
        let failed = |source| Error::File { op: "set", path: file.clone(), source };
        if !std::fs::read(&file).map_err(failed)?.trim_ascii().is_empty() {
            continue;
        }
        let Some(parent) = dir.parent() else { continue };
        inherit_cpuset(parent)?;
        let value = std::fs::read(parent.join(name)).map_err(failed)?;
        std::fs::write(&file, value).map_err(failed)?;
    }
    Ok(())
}

/// Where systemd puts a slice: `a-b.slice` is `/a.slice/a-b.slice` (systemd.slice(5)).
fn expand(slice: &str) -> PathBuf {
    let name = slice.trim_end_matches(".slice");
    let mut path = PathBuf::from("/");
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        if end > 0 && name != "-" {
            path.push(format!("{}.slice", &name[..end]));
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_expanded_as_systemd_does() {
        assert_eq!(expand("kubepods-pod1.slice"), Path::new("/kubepods.slice/kubepods-pod1.slice"));
        assert_eq!(expand("a.slice"), Path::new("/a.slice"));
        assert_eq!(expand("-.slice"), Path::new("/"));
    }

    /// Another pod has made the parent, and not filled it yet.
    #[test]
    fn a_cpuset_whose_parent_is_empty_can_be_joined() {
        // With version 2 nothing is to be filled.
        let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let v1 = all.lines().find(|line| line.contains(" - cgroup ") && line.ends_with("cpuset"));
        let mount = v1.and_then(|line| line.split(' ').nth(4)).unwrap_or("/sys/fs/cgroup");
        let parent = Path::new(mount).join(format!("weft-cpuset-{}", std::process::id()));
        let pod = parent.join("pod");
        std::fs::create_dir(&parent).unwrap();
        let made = make(&pod).and_then(|()| if v1.is_some() { inherit_cpuset(&pod) } else { Ok(()) });
        let mut sleep = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let joined = std::fs::write(pod.join("cgroup.procs"), sleep.id().to_string());
        sleep.kill().and_then(|()| sleep.wait()).unwrap();
        let gone =
            Cgroup { oci_path: String::new(), pod: PathBuf::new(), leaves: vec![pod, parent] }.remove();
        assert!(made.is_ok() && joined.is_ok() && gone.is_empty(), "{made:?} {joined:?} {gone:?}");
    }

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let member = "4:memory:/x\n3:cpu,cpuacct:/y\n2:name=systemd:/\n0::/z\n";
        let find = |line| hierarchy(line, member).map(|found| (found.mount, found.home));
        let v1 = "33 32 0:30 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpuacct,cpu";
        assert_eq!(find(v1), Some(("/sys/fs/cgroup/cpu".into(), "/y".into())));
        let v2 = "25 20 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(find(v2), Some(("/sys/fs/cgroup".into(), "/z".into())));
        assert_eq!(find("26 20 0:23 / /proc rw - proc proc rw"), None);
    }

    #[test]
    fn the_parent_decides_between_path_and_scope() {
        let one = Hierarchy { mount: "/nowhere".into(), home: "/".into(), unified: false, cpuset: false };
        let hierarchies = Hierarchies(vec![one]);
        let plain = Cgroup::plan(&hierarchies, "/kubepods/pod1", "abc").unwrap();
        assert_eq!(plain.leaves, [PathBuf::from("/nowhere/kubepods/pod1/abc")]);
        assert_eq!(plain.oci_path, "/kubepods/pod1/abc");
        let scope = Cgroup::plan(&hierarchies, "/kubepods.slice/kubepods-pod1.slice", "abc").unwrap();
        let want = "/nowhere/kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope";
        assert_eq!(scope.leaves, [PathBuf::from(want)]);
        assert_eq!(scope.oci_path, "kubepods-pod1.slice:cri-containerd:abc");
        assert!(matches!(Cgroup::plan(&hierarchies, "/a/../..", "abc"), Err(Error::CgroupParent(_))));
    }
}

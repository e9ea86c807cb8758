//! What a later process must know of a task when its shim is gone, and the cleanup that uses it.
//!
//! In the bundle lie `init.pid`, which the OCI runtime writes, and `weft-task.json`: the runtime that made the container
//! (written before it runs) and how its first process ended (written before anybody is told).

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::rootfs;
use crate::config::Config;
use crate::oci::{self, Runtime};
use crate::reaper::Exit;

/// Where the pid of a container's first process is, within its bundle.
pub(super) const PID_FILE: &str = "init.pid";
/// A name of ours: bundles are containerd's folders.
const RECORD_FILE: &str = "weft-task.json";
/// The exit status of a container that died with its shim, as if by `SIGKILL`.
const KILLED: u32 = 128 + 9;

/// What is known of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) binary: PathBuf,
    pub(super) root: PathBuf,
    pub(super) systemd_cgroup: bool,
    /// Status, and nanoseconds since 1970.
    pub(super) exit: Option<(u32, u64)>,
}

/// What is left to tell of a task after [`cleanup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cleaned {
    /// Of the first process; 0 if there never was one.
    pub(crate) pid: u32,
    /// As recorded, else 137.
    pub(crate) exit_status: u32,
    /// As recorded, else now.
    pub(crate) exited_at: SystemTime,
}

impl Record {
    pub(super) fn new(runtime: &Runtime, exit: Option<Exit>) -> Record {
        let nanoseconds = |at: SystemTime| {
            at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().try_into().unwrap_or(u64::MAX)
        };
        Record {
            binary: runtime.binary.clone(),
            root: runtime.root.clone(),
            systemd_cgroup: runtime.systemd_cgroup,
            exit: exit.map(|exit| (exit.status, nanoseconds(exit.at))),
        }
    }

    /// Replaces the record as a whole: a reader sees the old one or the new one.
    pub(super) fn write(&self, bundle: &Path) -> Result<(), Error> {
        let path = bundle.join(RECORD_FILE);
        let failed = |source| Error::Bundle { op: "write", path: path.clone(), source };
        let text = serde_json::to_vec(self).map_err(|err| failed(err.into()))?;
        let new = bundle.join(".weft-task.json");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path)).map_err(failed)
    }

    /// Without one in the bundle, the runtime is the configuration's.
    fn of(config: &Config, namespace: &str, bundle: &Path) -> Record {
        Record::read(bundle).unwrap_or_else(|err| {
            log::debug!("no record in {}: {err}", bundle.display());
            Record::new(&runtime(config, namespace), None)
        })
    }

    fn runtime(&self) -> Runtime {
        Runtime { binary: self.binary.clone(), root: self.root.clone(), systemd_cgroup: self.systemd_cgroup }
    }

    fn read(bundle: &Path) -> io::Result<Record> {
        let text = std::fs::read(bundle.join(RECORD_FILE))?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Whether the OCI runtime still knows the task.
pub(crate) fn is_left(config: &Config, namespace: &str, id: &str, bundle: &Path) -> bool {
    leaves_state(&Record::of(config, namespace, bundle).runtime(), id)
}

/// Removes what a task has left behind, in a process that is not its shim: container, cgroups, mounts. May run again,
/// and with the bundle already gone. A container of a living shim must not be given to it: it is killed.
///
/// # Errors
/// The first thing that could not be removed; the others were tried.
pub(crate) fn cleanup(config: &Config, namespace: &str, id: &str, bundle: &Path) -> Result<Cleaned, Error> {
    let record = Record::of(config, namespace, bundle);
    let runtime = record.runtime();
    let deleted = if leaves_state(&runtime, id) { runtime.delete_blocking(id) } else { Ok(()) };
    let unmounted = rootfs::unmount(&bundle.join("rootfs"));
    deleted?;
    unmounted?;
    let (exit_status, exited_at) = match record.exit {
        Some((status, at)) => (status, UNIX_EPOCH + Duration::from_nanos(at)),
        None => (KILLED, SystemTime::now()),
    };
    // Without a pid file the runtime has never got as far as a process.
    let pid = oci::read_pid(&bundle.join(PID_FILE)).unwrap_or_default();
    Ok(Cleaned { pid, exit_status, exited_at })
}

/// The runtime of the configuration; a request's options may choose another one.
pub(super) fn runtime(config: &Config, namespace: &str) -> Runtime {
    Runtime {
        binary: config.runtime.binary.clone().into(),
        root: config.runtime.root.join(namespace),
        systemd_cgroup: false,
    }
}

/// runc, crun and youki keep a container's state in a folder of its name. After a normal delete it is gone, and a run of
/// the runtime is saved: `delete` comes after every container.
fn leaves_state(runtime: &Runtime, id: &str) -> bool {
    runtime.root.join(id).try_exists().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: &Path) -> Config {
        let mut config = Config::default();
        config.runtime.root = root.into();
        config
    }

    #[test]
    fn a_recorded_exit_is_told() {
        let bundle = tempfile::tempdir().unwrap();
        let config = config(bundle.path());
        let at = UNIX_EPOCH + Duration::from_nanos(1_234_567_890);
        let record = Record::new(&runtime(&config, "ns"), Some(Exit { status: 3, at }));
        record.write(bundle.path()).unwrap();
        std::fs::write(bundle.path().join(PID_FILE), "4242").unwrap();
        let cleaned = cleanup(&config, "ns", "c1", bundle.path()).unwrap();
        assert_eq!(cleaned, Cleaned { pid: 4242, exit_status: 3, exited_at: at });
    }

    #[test]
    fn a_bundle_that_is_gone_was_killed() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        for _ in 0..2 {
            let cleaned = cleanup(&config, "ns", "c1", &root.path().join("nowhere")).unwrap();
            assert_eq!((cleaned.pid, cleaned.exit_status), (0, KILLED));
        }
    }
}

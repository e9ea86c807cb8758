//! Where the shim's process becomes the pod's sandbox, and where it comes back.
//!
//! The only file of the crate that enters or makes namespaces. setns(2) and unshare(2) move the calling thread; the
//! daemon has one thread, so here they move the process, and `/proc/<pid>/ns/*` of the daemon are the pod's.

#![expect(clippy::disallowed_methods, reason = "the file that ARCHITECTURE.md names for this")]

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

/// Open descriptors of the node's own namespaces.
#[derive(Debug)]
pub(super) struct Home {
    net: File,
    ipc: File,
    uts: File,
}

impl Home {
    /// The namespaces that the process is in now.
    pub(super) fn here() -> io::Result<Home> {
        let open = |name: &str| File::open(format!("/proc/thread-self/ns/{name}"));
        Ok(Home { net: open("net")?, ipc: open("ipc")?, uts: open("uts")? })
    }

    /// Goes back to all of them; from then on the process keeps none of the pod's alive.
    pub(super) fn enter(&self) -> Result<(), Errno> {
        setns(&self.net, CloneFlags::CLONE_NEWNET)?;
        setns(&self.ipc, CloneFlags::CLONE_NEWIPC)?;
        setns(&self.uts, CloneFlags::CLONE_NEWUTS)
    }
}

/// Enters the network namespace at `path`; anything else there is refused by the kernel (`EINVAL`).
pub(super) fn enter_net(path: &Path) -> io::Result<()> {
    Ok(setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?)
}

/// Enters a new IPC namespace.
pub(super) fn new_ipc() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWIPC)
}

/// Enters a new UTS namespace and names it.
pub(super) fn new_uts(hostname: &str) -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWUTS)?;
    nix::unistd::sethostname(hostname)
}

/// Runs `spawn`, whose first child is process 1 of a new PID namespace; later children are not in it.
pub(super) fn in_new_pid<T>(spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = File::open("/proc/thread-self/ns/pid")?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let spawned = spawn();
    // Also when it could not be spawned: every later child of the daemon would be in the new namespace.
    setns(own, CloneFlags::CLONE_NEWPID)?;
    spawned
}

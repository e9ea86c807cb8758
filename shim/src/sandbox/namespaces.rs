//! Where the shim's process becomes the pod's sandbox, and where it comes back.
//!
//! The only file of the crate that enters or makes namespaces. setns(2) and unshare(2) move the calling thread; the
//! daemon has one thread, so here they move the process, and `/proc/<pid>/ns/*` of the daemon are the pod's. User
//! namespaces are for children only: the daemon stays the node's root.

#![expect(clippy::disallowed_methods, reason = "the file that ARCHITECTURE.md names for this")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, clone, setns, unshare};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, fork};

/// In bytes, for two system calls.
const CHILD_STACK: usize = 16 << 10;

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

/// Enters namespaces that `pid` is in: `ipc`, `uts`.
pub(super) fn enter_of(pid: u32, names: &[&str]) -> io::Result<()> {
    for name in names {
        // No flag: the name says which kind it is.
        setns(File::open(format!("/proc/{pid}/ns/{name}"))?, CloneFlags::empty())?;
    }
    Ok(())
}

/// Enters a new user namespace, in which nobody is anybody until it is given maps.
pub(super) fn new_user() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWUSER)
}

/// Enters the user namespace that the network namespace of this process belongs to; `EINVAL` if that is its own already.
pub(super) fn enter_user_of_net() -> io::Result<()> {
    let net = File::open("/proc/thread-self/ns/net")?;
    // SAFETY: the request takes no argument, and answers with a new descriptor or an error.
    let user = unsafe { ns_get_userns(net.as_raw_fd()) }?;
    // SAFETY: the kernel has just made the descriptor, for this caller alone.
    let user = unsafe { OwnedFd::from_raw_fd(user) };
    Ok(setns(user, CloneFlags::CLONE_NEWUSER)?)
}

nix::ioctl_none_bad!(
    /// Opens the user namespace that owns a namespace (ioctl_ns(2)).
    ns_get_userns,
    libc::NS_GET_USERNS as libc::c_ulong
);

/// A user namespace with these maps, one range a line (user_namespaces(7)), that nobody is in.
///
/// A child must be in it until it is opened. The child ends when this process closes the pipe, or ends; it sends no signal
/// then, so that whoever waits for any child does not see it (`__WALL` in wait(2)).
pub(crate) fn user_namespace(uids: &str, gids: &str) -> io::Result<OwnedFd> {
    let (end, life) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let mut stack = [0; CHILD_STACK];
    let (wait_at, not_mine) = (end.as_raw_fd(), life.as_raw_fd());
    let child = Box::new(move || {
        // SAFETY: the child has a copy of both descriptors and of all memory; it makes system calls only.
        unsafe { libc::close(not_mine) };
        // SAFETY: the kernel writes the one byte that there is room for.
        unsafe { libc::read(wait_at, [0_u8].as_mut_ptr().cast(), 1) };
        0
    });
    // SAFETY: the child has memory of its own, so nothing here depends on what it does; the stack is large enough for it.
    let pid = unsafe { clone(child, &mut stack, CloneFlags::CLONE_NEWUSER, None) }?;
    let map = |file: &str, lines: &str| std::fs::write(format!("/proc/{pid}/{file}"), lines);
    let user = map("uid_map", uids).and_then(|()| map("gid_map", gids));
    let user = user.and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
    drop(life);
    waitpid(pid, Some(WaitPidFlag::__WCLONE))?;
    Ok(user?.into())
}

/// The next child is process 1 of a new PID namespace.
pub(super) fn new_pid() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWPID)
}

/// Makes a copy of this process, `None` to itself. Without an exec: that would open the process to ptrace(2) from within
/// its user namespace. Only for `sandbox-init`, which has one thread by then and ever.
pub(super) fn fork_alone() -> Result<Option<u32>, Errno> {
    // SAFETY: no other thread can hold a lock that the copy would wait for: there is none.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Some(child.as_raw().unsigned_abs())),
        ForkResult::Child => Ok(None),
    }
}

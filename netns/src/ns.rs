//! Network namespaces: made, opened, pinned at a path, entered. The only file of the crate that enters one.
//!
//! A namespace lives as long as a process or thread is in it, a file of it is open, or a mount of it exists
//! (`namespaces(7)`). A [`NetNs`] is such an open file; [`NetNs::pin`] makes such a mount.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::Error;

/// `/proc/self` would be the main thread's.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    identity: Identity,
}

/// What makes two files the same namespace: device and inode of the namespace file (`namespaces(7)`). Unlike a path or a
/// pid it is not reused while the namespace lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device of the namespace file system.
    pub dev: u64,
    /// The inode on it.
    pub inode: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

impl NetNs {
    /// Opens the namespace that is pinned at `path`, or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`Error::Open`] if the file is absent or cannot be opened, [`Error::NotANamespace`] if it is none, as the file of a pin
    /// that was unmounted is, [`Error::OtherNamespace`] if it is one of another kind.
    pub fn open(path: &Path) -> Result<NetNs, Error> {
        let failed = |source| Error::Open { path: path.into(), source };
        // Opening a FIFO would wait for a writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        if fstatfs(&file).map_err(|err| failed(err.into()))?.filesystem_type() != NSFS_MAGIC {
            return Err(Error::NotANamespace { path: path.into() });
        }
        // SAFETY: the request takes no argument and only reads the kind of the open file.
        let kind = unsafe { ns_get_nstype(file.as_raw_fd()) };
        if kind.map_err(|err| failed(err.into()))? != CloneFlags::CLONE_NEWNET.bits() {
            return Err(Error::OtherNamespace { path: path.into() });
        }
        let metadata = file.metadata().map_err(failed)?;
        let identity = Identity { dev: metadata.dev(), inode: metadata.ino() };
        Ok(NetNs { file, identity })
    }

    /// The calling thread's own.
    ///
    /// # Errors
    /// Only if `/proc` is not what it should be.
    pub fn current() -> Result<NetNs, Error> {
        NetNs::open(Path::new(OWN))
    }

    /// Makes a namespace. It ends with the returned value unless it is pinned or entered.
    ///
    /// # Errors
    /// `EPERM` without the capability, `ENOSPC` at the limit of `/proc/sys/user/max_net_namespaces`.
    pub fn create() -> Result<NetNs, Error> {
        #[expect(clippy::disallowed_methods, reason = "on a thread that ends; this file is the door")]
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|err| failed("make", "(new)", err.into()))?;
            NetNs::current()
        };
        on_a_thread(make)?
    }

    /// Whose identity this is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Keeps the namespace alive at `path`, which must not exist yet.
    ///
    /// # Errors
    /// Nothing is left at `path`.
    pub fn pin(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| failed("pin", path, source);
        OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).map_err(failed)?;
        let own = format!("/proc/thread-self/fd/{}", self.file.as_raw_fd());
        let mounted = mount(Some(own.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        mounted.map_err(|err| {
            // The mount is what failed and what has to be told.
            drop(std::fs::remove_file(path));
            failed(err.into())
        })
    }

    /// Removes the pin at `path`. What is not there is removed already.
    ///
    /// # Errors
    /// `EBUSY` if the file is a mount point in another mount namespace.
    pub fn unpin(path: &Path) -> Result<(), Error> {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {} // EINVAL: not a mount point (umount(2)).
            Err(err) => return Err(failed("unmount", path, err.into())),
        }
        match std::fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(failed("remove the pin of", path, err)),
            _ => Ok(()),
        }
    }

    /// Runs `f` inside, on a thread of its own that ends with it.
    ///
    /// # Errors
    /// If the namespace cannot be entered; `f` has not run then. A panic of `f` goes on in the caller.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_a_thread(|| {
            self.join()?;
            Ok(f())
        })?
    }

    /// Runs `open` inside on the calling thread, which is back when this returns. For the opening of a socket and nothing else:
    /// meanwhile this is the thread's namespace in `/proc` too, and a thread that it started would stay here.
    ///
    /// # Errors
    /// `EPERM` without the capabilities, for here or for the way back; `open` has not run then.
    pub(crate) fn visit<T>(&self, open: impl FnOnce() -> T) -> Result<T, Error> {
        let own = File::open(OWN).map_err(|source| Error::Open { path: OWN.into(), source })?;
        // Before it is left: whoever may enter another's namespace may lack the right to enter its own.
        enter(&own).map_err(|err| failed("enter", OWN, err.into()))?;
        let _way_back = WayBack(own);
        self.join()?;
        Ok(open())
    }

    /// The calling thread enters, and stays.
    ///
    /// # Errors
    /// `EPERM` without the capabilities (`setns(2)`).
    pub fn join(&self) -> Result<(), Error> {
        enter(&self.file).map_err(|err| failed("enter", self.identity.to_string(), err.into()))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The namespace that a thread came from, and is in again when this is dropped, after a panic too.
struct WayBack(File);

impl Drop for WayBack {
    fn drop(&mut self) {
        if enter(&self.0).is_err() {
            // Whatever came next would be done to a foreign namespace's links. What is half done is no worse than after a kill.
            std::process::abort();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this file is the door")]
fn enter(file: &File) -> nix::Result<()> {
    setns(file, CloneFlags::CLONE_NEWNET)
}

fn failed(op: &'static str, object: impl AsRef<Path>, source: io::Error) -> Error {
    Error::Namespace { op, object: object.as_ref().display().to_string(), source }
}

nix::ioctl_none_bad!(
    /// The kind of namespace that a file is, as a `CLONE_NEW*` flag (`ioctl_ns(2)`).
    ns_get_nstype,
    libc::NS_GET_NSTYPE as libc::c_ulong
);

/// The thread's end is the point: whatever it entered is left behind with it.
fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, f);
        let thread = thread.map_err(|source| failed("start a thread for", "(new)", source))?;
        thread.join().map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visit_ends_where_it_began_after_a_panic_too() {
        let (own, there) = (NetNs::current().unwrap(), NetNs::create().unwrap());
        assert_eq!(there.visit(NetNs::current).unwrap().unwrap().identity(), there.identity());
        assert_eq!(NetNs::current().unwrap().identity(), own.identity());
        let visit = || there.visit(|| panic!("inside"));
        let panic = std::panic::catch_unwind(visit).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
        assert_eq!(NetNs::current().unwrap().identity(), own.identity());
    }

    #[test]
    fn a_namespace_that_cannot_be_entered_is_not_visited() {
        let (own, other) = (NetNs::current().unwrap(), NetNs::create().unwrap());
        let no_namespace = NetNs { file: File::open("/dev/null").unwrap(), identity: other.identity() };
        let err = no_namespace.visit(|| panic!("inside")).unwrap_err();
        assert_eq!(err.errno(), Some(libc::EINVAL));
        assert_eq!(NetNs::current().unwrap().identity(), own.identity());
    }
}

//! Idmapped trees: a container's root file system whose files belong, on disk, to the node's root, and in the pod's user
//! namespace to the pod's (mount_setattr(2)).

use std::ffi::{CString, c_int, c_long, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::sandbox::user_namespace;

/// How the ids of files are shown: what mount(8) calls `uidmap=` and `gidmap=`, in lines as user_namespaces(7) has them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Maps {
    pub(super) uids: String,
    pub(super) gids: String,
}

/// `container:host:length[,…]`, as containerd passes it; `None` if it is anything else.
pub(super) fn lines(option: &str) -> Option<String> {
    let mut lines = String::new();
    for range in option.split(',') {
        let ids: Vec<u32> = range.split(':').map(|id| id.parse().ok()).collect::<Option<_>>()?;
        let [container, host, length] = ids[..] else { return None };
        lines.push_str(&format!("{container} {host} {length}\n"));
    }
    Some(lines)
}

/// The user namespace of an idmapped mount, in which nobody is.
pub(super) fn user(maps: &Maps) -> io::Result<OwnedFd> {
    user_namespace(&maps.uids, &maps.gids)
}

/// A copy of the mount at `path` that is mounted nowhere and shows its ids as `user` has them; with `all` of the mounts
/// below too.
pub(super) fn clone(path: &Path, user: &impl AsFd, all: bool) -> Result<OwnedFd, Errno> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_nul| Errno::EINVAL)?;
    let recursive = if all { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | recursive.unsigned_abs();
    // SAFETY: the path is a C string that outlives the call.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags) };
    let tree = owned(tree)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: MsFlags::MS_PRIVATE.bits(),
        userns_fd: u64::from(user.as_fd().as_raw_fd().unsigned_abs()),
    };
    let flags: c_int = libc::AT_EMPTY_PATH | recursive;
    let size = size_of::<libc::mount_attr>();
    let fd = tree.as_raw_fd();
    // SAFETY: an empty C string, and a structure of the size that is given; the kernel reads both during the call.
    let set = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attributes, size)
    };
    Errno::result(set)?;
    Ok(tree)
}

/// Mounts a tree that is mounted nowhere at `target`.
pub(super) fn attach(tree: &OwnedFd, target: &Path) -> Result<(), Errno> {
    let target = CString::new(target.as_os_str().as_bytes()).map_err(|_nul| Errno::EINVAL)?;
    let (from, flags): (c_int, c_uint) = (tree.as_raw_fd(), libc::MOVE_MOUNT_F_EMPTY_PATH);
    // SAFETY: both paths are C strings that outlive the call.
    let moved = unsafe {
        libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), libc::AT_FDCWD, target.as_ptr(), flags)
    };
    Errno::result(moved).map(drop)
}

/// Where trees are mounted for a moment: a file system of its own in `folder`, which one unmount takes away with all of them.
pub(super) struct Attached<'a> {
    folder: &'a Path,
}

impl<'a> Attached<'a> {
    /// Mounts `trees` at `folder/0`, `folder/1`, and so on.
    pub(super) fn at(folder: &'a Path, trees: &[OwnedFd]) -> io::Result<Attached<'a>> {
        std::fs::create_dir_all(folder)?;
        mount(Some("weft"), folder, Some("tmpfs"), MsFlags::empty(), Some("mode=0700"))?;
        let attached = Attached { folder };
        // Else each mount below would be made in every mount namespace that shares the folder's.
        mount(None::<&Path>, folder, None::<&Path>, MsFlags::MS_PRIVATE, None::<&Path>)?;
        for (index, tree) in trees.iter().enumerate() {
            let target: PathBuf = folder.join(index.to_string());
            std::fs::create_dir(&target)?;
            attach(tree, &target)?;
        }
        Ok(attached)
    }
}

impl Drop for Attached<'_> {
    /// What cannot be undone here is undone with the container.
    fn drop(&mut self) {
        let gone = umount2(self.folder, MntFlags::MNT_DETACH).map_err(io::Error::from);
        if let Err(err) = gone.and_then(|()| std::fs::remove_dir(self.folder)) {
            log::warn!("remove {}: {err}", self.folder.display());
        }
    }
}

fn owned(fd: c_long) -> Result<OwnedFd, Errno> {
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_out_of_range| Errno::EBADF)?;
    // SAFETY: the kernel has just made the descriptor, for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_lines_for_the_kernel() {
        assert_eq!(lines("0:100000:65536").unwrap(), "0 100000 65536\n");
        assert_eq!(lines("0:1000:1,1:100000:65535").unwrap(), "0 1000 1\n1 100000 65535\n");
        for bad in ["", "0:1", "0:1:2:3", "a:1:2", "-1:0:1", "0:1:2,", "0:1:4294967296"] {
            assert_eq!(lines(bad), None, "{bad}");
        }
    }
}

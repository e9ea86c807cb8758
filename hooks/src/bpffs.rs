//! The file system that holds pins.
//!
//! systemd mounts one on /sys/fs/bpf; where nobody did, this does the same: a folder for pins that is not on a bpf file system
//! gets one mounted on its parent, if that is an empty folder, as /sys/fs/bpf is. Nothing is ever unmounted here. The mount
//! appears in the caller's mount namespace, which must be the node's for others to find it.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::error::Error;

/// Make `dir` a folder on a bpf file system. Called under the exclusive lock, so that two processes never mount on each other.
pub(crate) fn ensure(dir: &Path) -> Result<(), Error> {
    let Some(parent) = dir.parent() else { return Err(Error::NoBpffs { path: dir.to_owned() }) };
    if !on_bpffs(if dir.exists() { dir } else { parent })? {
        mount_on(parent, dir)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::file("create", dir))
}

fn mount_on(parent: &Path, dir: &Path) -> Result<(), Error> {
    let empty = fs::read_dir(parent).is_ok_and(|mut entries| entries.next().is_none());
    if !empty {
        return Err(Error::NoBpffs { path: dir.to_owned() });
    }
    // The options of systemd's src/shared/mount-setup.c.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount(Some("bpf"), parent, Some("bpf"), flags, Some("mode=700"))
        .map_err(|source| Error::Mount { path: parent.to_owned(), source })
}

fn on_bpffs(path: &Path) -> Result<bool, Error> {
    match statfs(path) {
        Ok(stat) => Ok(stat.filesystem_type() == BPF_FS_MAGIC),
        Err(nix::errno::Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Error::file("look at", path)(errno.into())),
    }
}

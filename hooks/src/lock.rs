//! Locks between processes: `flock(2)` on a file of the lock folder, which the kernel drops with its holder, however that dies.
//!
//! `programs.lock` guards which programs are pinned and hang on links: shared to attach, exclusive to load and replace, so
//! that no link is given a program that is being replaced. `pods.lock` guards read-then-write of one pod's entries.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use nix::fcntl::{Flock, FlockArg};

use crate::error::Error;

pub(crate) const PROGRAMS: &str = "programs.lock";
pub(crate) const PODS: &str = "pods.lock";

/// Wait for the lock `name` in `dir`, which is made if absent. It is held until the value is dropped.
pub(crate) fn take(dir: &Path, name: &str, how: FlockArg) -> Result<Flock<File>, Error> {
    let path = dir.join(name);
    let failed = |source| Error::Lock { path: path.clone(), source };
    let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = open().or_else(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).and_then(|()| open())
        }
        _ => Err(e),
    });
    Flock::lock(file.map_err(failed)?, how).map_err(|(_file, errno)| failed(errno.into()))
}

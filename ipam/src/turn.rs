//! Writers queue at a lock of the kernel, not at LMDB's mutex. That is robust against the death of its owner, but not against
//! the death of a waiter that was just woken, while a third one, who came by, has it: the third one does not know
//! that others wait, and wakes nobody (`handle_futex_death` in kernel/futex/core.c wakes only for a mutex that nobody has). Seen with
//! processes that were killed at random: a writer slept for minutes at a mutex that was free. Whoever has the flock of
//! `writers.lock` finds LMDB's mutex free, or its owner dead.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Error;

/// In the store's folder.
const FILE: &str = "writers.lock";

/// The queue. A flock is that of a file as it was opened, which threads share, so they take turns before.
#[derive(Debug)]
pub(crate) struct Writers {
    path: PathBuf,
    file: Mutex<File>,
}

/// The right to write, until it is dropped.
pub(crate) struct Turn<'s>(MutexGuard<'s, File>);

impl Writers {
    pub(crate) fn open(folder: &Path) -> Result<Writers, Error> {
        let path = folder.join(FILE);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        match options.open(&path) {
            Ok(file) => Ok(Writers { path, file: Mutex::new(file) }),
            Err(source) => Err(Error::Folder { path, source }),
        }
    }

    /// Waits for whoever writes now.
    pub(crate) fn turn(&self) -> Result<Turn<'_>, Error> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match file.lock() {
                Ok(()) => return Ok(Turn(file)),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Folder { path: self.path.clone(), source }),
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let unlocked = self.0.unlock();
        debug_assert!(unlocked.is_ok(), "a lock that is held can be given back (flock(2)): {unlocked:?}");
    }
}

//! Whose turn it is: one process at a time attaches, detaches or reconciles an interface, and no interface waits for
//! another.
//!
//! A turn is an open file description lock (`fcntl(2)`) on one byte of `<run_dir>/turns.lock`, at the hash of the
//! owner. The kernel drops it with its holder, however that dies. So a record that says "attaching" and whose turn
//! is free was left by an attach that was killed, and one whose turn is taken is being worked on right now.
//!
//! Not an age: a process that was stopped for an hour still attaches when it goes on. Not a pid in the record: it
//! would have to be compared with the time at which the process started, and two looks at `/proc` are not one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use weft_ipam::Owner;

use crate::config::Config;
use crate::pod::Error;
use crate::record;

/// In `run_dir`.
pub(crate) const FILE: &str = "turns.lock";

/// Behind the places of all owners.
const RECONCILE: i64 = 1 << 62;

/// The right to change what belongs to one owner; it ends with the value.
#[derive(Debug)]
pub(crate) struct Turn {
    _file: File,
}

impl Turn {
    /// Waits until nobody else has the owner's turn.
    ///
    /// # Errors
    /// [`Error::Turn`].
    pub(crate) async fn take(config: &Config, owner: &Owner) -> Result<Turn, Error> {
        Self::take_place(config, place(owner)).await
    }

    /// `None` if somebody else has the turn.
    ///
    /// # Errors
    /// [`Error::Turn`].
    pub(crate) fn try_take(config: &Config, owner: &Owner) -> Result<Option<Turn>, Error> {
        Self::try_take_place(config, place(owner))
    }

    /// The turn to reconcile for an ADD that finds no address; whoever has it waits for no turn.
    ///
    /// # Errors
    /// [`Error::Turn`].
    pub(crate) async fn to_reconcile(config: &Config) -> Result<Turn, Error> {
        Self::take_place(config, RECONCILE).await
    }

    async fn take_place(config: &Config, at: i64) -> Result<Turn, Error> {
        if let Some(turn) = Self::try_take_place(config, at)? {
            return Ok(turn);
        }
        // Rare. On a thread of its own: what has the turn may be another call to this very thread, a shim's.
        let path = path(config);
        let (tell, told) = tokio::sync::oneshot::channel();
        // Nobody listens any more if the call was given up; the lock goes with the file then.
        let wait = move || drop(tell.send(open(&path).and_then(|file| lock(file, at))));
        let failed = |source| failed(config, source);
        std::thread::Builder::new().name("turn".into()).spawn(wait).map_err(failed)?;
        let locked = told.await.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()));
        Ok(Turn { _file: locked.map_err(failed)? })
    }

    fn try_take_place(config: &Config, at: i64) -> Result<Option<Turn>, Error> {
        let locked = open(&path(config)).and_then(|file| try_lock(file, at));
        Ok(locked.map_err(|source| failed(config, source))?.map(|file| Turn { _file: file }))
    }
}

fn path(config: &Config) -> PathBuf {
    config.run_dir.join(FILE)
}

fn failed(config: &Config, source: io::Error) -> Error {
    Error::Turn { path: path(config), source }
}

/// The folder is there: the store in it is opened first.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

/// Two owners of one place wait for each other, which harms nobody. Offsets are positive.
fn place(owner: &Owner) -> i64 {
    i64::try_from(record::hash(owner) >> 2).unwrap_or_default()
}

/// Locks the byte; `None` if another has it.
fn try_lock(file: File, at: i64) -> io::Result<Option<File>> {
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte(at))) {
        Ok(_) => Ok(Some(file)),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

/// The same, and waits for it.
fn lock(file: File, at: i64) -> io::Result<File> {
    loop {
        match fcntl(&file, FcntlArg::F_OFD_SETLKW(&byte(at))) {
            Ok(_) => return Ok(file),
            Err(Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

fn byte(at: i64) -> libc::flock {
    let (l_type, l_whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
    // Locks of this kind have no pid (fcntl(2)).
    libc::flock { l_type, l_whence, l_start: at, l_len: 1, l_pid: 0 }
}

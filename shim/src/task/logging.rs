//! Logging binaries: programs of the client's that take a process's output, straight from its pipes.
//!
//! The contract is containerd's (core/runtime/v2/logging): descriptors 3 and 4 are the output and the errors, 5 is a pipe
//! on which the program says that it is ready; `CONTAINER_ID` and `CONTAINER_NAMESPACE` are its whole environment. It
//! ends when the output ends. Beside it we hold the reading ends of its pipes, to see what it has yet to read, and only
//! while it lives: a process whose logger has died must get `EPIPE`, not fill a pipe and block.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::TaskContext;
use super::copies::unread;
use super::stdio::register;
use super::target::Binary;
use crate::reaper::{Exit, Reaper};

/// How long a program may take to become ready.
const READY: Duration = Duration::from_secs(30);
/// How long one that has read everything may take to end by itself, and then to end when it is told to; the second is
/// that of containerd's own shim.
const FAREWELL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(12));
/// Between two looks at what is unread: doubled from the first to the second.
const UNREAD: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));
/// The first descriptor that the program gets.
const FIRST: i32 = 3;
/// `PF_EXITING` of include/linux/sched.h, set before a process's files are closed (kernel/exit.c).
const EXITING: u64 = 4;

/// Why a logging binary cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{op}")]
    Pipe { op: &'static str, source: Errno },
    #[error("run logging binary {}", path.display())]
    Spawn { path: PathBuf, source: Errno },
    #[error("wait for logging binary {}", path.display())]
    Wait { path: PathBuf, source: io::Error },
    #[error("logging binary {} ended with {status} before it was ready", path.display())]
    Ended { path: PathBuf, status: u32 },
    #[error("logging binary {} did not say that it is ready", path.display())]
    Silent { path: PathBuf },
    #[error("logging binary {} is not ready after {READY:?}", path.display())]
    Slow { path: PathBuf },
}

/// A program that runs.
#[derive(Debug)]
pub(super) struct Logger {
    reaper: Arc<Reaper>,
    pid: u32,
    /// `None` once it has ended.
    unread: Arc<Mutex<Option<[OwnedFd; 2]>>>,
    ended: JoinHandle<Exit>,
}

/// The ends that a process writes to.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Logger {
    /// Starts `binary` for the process `id` and waits until it is ready.
    pub(super) async fn start(
        binary: &Binary,
        context: &TaskContext,
        id: &str,
    ) -> Result<(Logger, Outputs), Error> {
        let pipe = || {
            let made = pipe2(OFlag::O_CLOEXEC);
            made.map_err(|source| Error::Pipe { op: "make a pipe for a logging binary", source })
        };
        let ((out, stdout), (err, stderr), (ready, is_ready)) = (pipe()?, pipe()?, pipe()?);
        let pid = spawn(binary, [&out, &err, &is_ready], &context.namespace, id)?;
        drop(is_ready);
        let mut child = context.reaper.watch(pid);
        let unread = Arc::new(Mutex::new(Some([out, err])));
        let held = Arc::clone(&unread);
        let ended = tokio::spawn(async move {
            let exit = child.exit().await;
            held.lock().unwrap_or_else(PoisonError::into_inner).take();
            exit
        });
        let mut logger = Logger { reaper: Arc::clone(&context.reaper), pid, unread, ended };
        logger.ready(binary, ready).await?;
        Ok((logger, Outputs { stdout, stderr }))
    }

    async fn ready(&mut self, binary: &Binary, pipe: OwnedFd) -> Result<(), Error> {
        let path = || binary.path.clone();
        let wait = |source| Error::Wait { path: path(), source };
        let pipe = register(pipe, Interest::READABLE).map_err(wait)?;
        let said = async {
            loop {
                let mut ready = pipe.readable().await?;
                let read = |fd: &tokio::io::unix::AsyncFd<OwnedFd>| {
                    nix::unistd::read(fd, &mut [0]).map_err(io::Error::from)
                };
                if let Ok(read) = ready.try_io(read) {
                    return read;
                }
            }
        };
        let said =
            timeout(READY, said).await.map_err(|_elapsed| Error::Slow { path: path() })?.map_err(wait)?;
        if said > 0 || (!binary.must_say_ready && is_alive(self.pid)) {
            return Ok(());
        }
        if is_alive(self.pid) {
            return Err(Error::Silent { path: path() });
        }
        let status = (&mut self.ended).await.map_or(255, |exit| exit.status);
        // One that has left a child behind to do the work.
        if status == 0 && !binary.must_say_ready {
            return Ok(());
        }
        Err(Error::Ended { path: path(), status })
    }

    /// Waits until it has read everything and has ended. Who keeps its pipes open longer than `limit` is not waited for,
    /// and a program that stays is made to end.
    pub(super) async fn end(&mut self, limit: Duration) {
        if self.ended.is_finished() {
            return;
        }
        if timeout(limit, self.until_read()).await.is_err() {
            log::warn!(
                "output is still open or unread {limit:?} after the exit: its logging binary is ended"
            );
        } else if timeout(FAREWELL.0, &mut self.ended).await.is_ok() {
            return;
        }
        self.signal(libc::SIGTERM);
        if timeout(FAREWELL.1, &mut self.ended).await.is_err() {
            log::warn!("logging binary {} ignores SIGTERM and is killed", self.pid);
            self.signal(libc::SIGKILL);
        }
    }

    async fn until_read(&self) {
        let mut pause = UNREAD.0;
        while self.is_behind() {
            sleep(pause).await;
            pause = (pause * 2).min(UNREAD.1);
        }
    }

    /// Somebody may still write, or something is unread.
    fn is_behind(&self) -> bool {
        let ends = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        ends.iter().flatten().any(|end| !is_hung_up(end) || unread(end) > 0)
    }

    fn signal(&self, number: i32) {
        match self.reaper.signal(self.pid, number) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(err) => log::warn!("signal {number} to logging binary {}: {err}", self.pid),
        }
    }
}

/// Of a process that was never made.
impl Drop for Logger {
    fn drop(&mut self) {
        if !self.ended.is_finished() {
            self.signal(libc::SIGKILL);
        }
    }
}

/// Starts the program with `pipes` as its descriptors 3, 4 and 5 and nothing else of ours.
fn spawn(binary: &Binary, pipes: [&OwnedFd; 3], namespace: &str, id: &str) -> Result<u32, Error> {
    let failed = |source| Error::Spawn { path: binary.path.clone(), source };
    let mut actions = PosixSpawnFileActions::init().map_err(failed)?;
    for number in 0..FIRST {
        actions.add_open(number, "/dev/null", OFlag::O_RDWR, Mode::empty()).map_err(failed)?;
    }
    let mut moved = Vec::new();
    for (number, pipe) in (FIRST..).zip(pipes) {
        // Above all of the numbers that are given out: one must not be overwritten before it is copied.
        moved.push(above(pipe).map_err(failed)?);
        let source = moved.last().map_or(-1, AsRawFd::as_raw_fd);
        actions.add_dup2(source, number).map_err(failed)?;
    }
    let mut attributes = PosixSpawnAttr::init().map_err(failed)?;
    // Rust ignores SIGPIPE, and what is ignored stays so over execve(2).
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGPIPE);
    attributes.set_sigdefault(&signals).map_err(failed)?;
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF).map_err(failed)?;
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_nul| failed(Errno::EINVAL));
    let mut args = vec![text(binary.path.as_os_str().as_bytes())?];
    args.extend(binary.args.iter().cloned());
    let environment = [
        text(format!("CONTAINER_ID={id}").as_bytes())?,
        text(format!("CONTAINER_NAMESPACE={namespace}").as_bytes())?,
    ];
    let pid = posix_spawn(&binary.path, &actions, &attributes, &args, &environment).map_err(failed)?;
    Ok(pid.as_raw().unsigned_abs())
}

fn above(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    let lowest = FIRST + 3;
    let number = fcntl(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: fcntl(2) has just made this descriptor for us, and nothing else knows its number.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(number) })
}

fn is_hung_up(end: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(end.as_fd(), PollFlags::empty())];
    let answer = poll(&mut asked, PollTimeout::ZERO).ok().and_then(|_| asked.first()?.revents());
    answer.is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// Neither gone nor going: the pipes of a process that ends are closed before it becomes a zombie.
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // `pid (name) state ppid pgrp session tty tpgid flags …`; the name may hold anything (proc_pid_stat(5)).
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING == 0)
}

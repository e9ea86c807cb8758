//! Every child of the shim, from its birth to its exit status.
//!
//! One `waitpid(-1)` loop reaps for the whole process, so a child may only be started through [`Reaper::spawn`]:
//! `Child::wait` of the standard library would compete with the loop. The shim is a child subreaper, and so also gets
//! containers whose OCI runtime has ended (`PR_SET_CHILD_SUBREAPER` in prctl(2)). Such a process may die before
//! anybody knows its pid; while an [`Adoption`] is open, exits that nobody watches are kept for a later
//! [`Reaper::watch`].
//!
//! A pid is signalled only while it is watched, hence not yet reaped, hence still the same process.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tokio::sync::oneshot;

use crate::signals::Signals;

/// Has the standard library start children by posix_spawn(3), also those with a folder of their own: it looks for this function
/// weakly, finds it in no static binary that does not use it, and then forks, which copies the page tables and has every page
/// that is written to afterwards copied (`posix_spawn` in library/std/src/sys/process/unix/unix.rs).
static WITH_FOLDER: unsafe extern "C" fn(
    *mut libc::posix_spawn_file_actions_t,
    *const libc::c_char,
) -> libc::c_int = libc::posix_spawn_file_actions_addchdir_np;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code, or 128 + the signal that ended the process.
    pub(crate) status: u32,
    /// When the shim learned of it.
    pub(crate) at: SystemTime,
}

/// A process whose exit will be told once.
#[derive(Debug)]
pub(crate) struct Child {
    /// Not reused before [`Child::exit`] has its answer.
    pub(crate) pid: u32,
    exit: oneshot::Receiver<Exit>,
}

/// The one place that reaps.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<u32, oneshot::Sender<Exit>>,
    /// Exits that came while an adoption was open and before anybody asked.
    early: HashMap<u32, Exit>,
    adoptions: usize,
}

/// While it lives, the exits of unknown children are kept.
#[derive(Debug)]
pub(crate) struct Adoption {
    reaper: Arc<Reaper>,
}

/// Makes orphans among the descendants children of this process.
///
/// # Errors
/// What prctl(2) answers.
pub(crate) fn become_subreaper() -> Result<(), Errno> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// Sends any signal, real-time ones too, which [`nix::sys::signal::Signal`] does not know.
///
/// # Errors
/// What kill(2) answers; `ESRCH` if there is no such process.
pub(crate) fn send_signal(pid: u32, number: i32) -> Result<(), Errno> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(Errno::ESRCH)?;
    // SAFETY: kill(2) takes two integers and touches no memory; a positive pid addresses one process, never a group.
    Errno::result(unsafe { libc::kill(pid, number) }).map(drop)
}

impl Reaper {
    /// Begins to reap, in a task of the current runtime.
    ///
    /// # Errors
    /// If `SIGCHLD` cannot be watched for.
    pub(crate) fn start() -> io::Result<Arc<Reaper>> {
        let ended = Signals::of(&[Signal::SIGCHLD])?;
        let reaper = Arc::new(Reaper::default());
        let of_task = Arc::clone(&reaper);
        tokio::spawn(async move {
            loop {
                match ended.next().await {
                    Ok(_) => of_task.reap(),
                    Err(err) => return log::error!("watch for ended children: {err}"),
                }
            }
        });
        Ok(reaper)
    }

    /// Starts a process.
    ///
    /// # Errors
    /// Those of [`Command::spawn`].
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // The child cannot be reaped before it is watched: the loop runs on this thread.
        std::hint::black_box(WITH_FOLDER);
        let child = command.spawn()?;
        Ok(self.watch(child.id()))
    }

    /// Follows a process that an OCI runtime has started, within the [`Adoption`] that covers the runtime's run.
    pub(crate) fn watch(&self, pid: u32) -> Child {
        let (sender, exit) = oneshot::channel();
        let mut state = self.state();
        match state.early.remove(&pid) {
            Some(early) => tell(sender, early),
            None => drop(state.watched.insert(pid, sender)),
        }
        Child { pid, exit }
    }

    /// Keeps the exits of unknown children until the returned value is dropped.
    pub(crate) fn adopt(self: &Arc<Self>) -> Adoption {
        self.state().adoptions += 1;
        Adoption { reaper: Arc::clone(self) }
    }

    /// Signals a watched process.
    ///
    /// # Errors
    /// `ESRCH` if the process has ended, else what kill(2) answers.
    pub(crate) fn signal(&self, pid: u32, number: i32) -> Result<(), Errno> {
        if !self.state().watched.contains_key(&pid) {
            return Err(Errno::ESRCH);
        }
        send_signal(pid, number)
    }

    fn reap(&self) {
        loop {
            match wait_any() {
                Ok(Some((pid, status))) => self.dispatch(pid, Exit { status, at: SystemTime::now() }),
                Ok(None) | Err(Errno::ECHILD) => return,
                Err(Errno::EINTR) => {}
                Err(err) => return log::error!("reap: {err}"),
            }
        }
    }

    fn dispatch(&self, pid: u32, exit: Exit) {
        let mut state = self.state();
        match state.watched.remove(&pid) {
            Some(sender) => tell(sender, exit),
            None if state.adoptions > 0 => drop(state.early.insert(pid, exit)),
            None => log::debug!("process {pid}, which nobody watches, ended with {}", exit.status),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child {
    /// Waits for the end.
    pub(crate) async fn exit(&mut self) -> Exit {
        // The reaper drops a sender only after it has told the exit, or together with the runtime.
        (&mut self.exit).await.unwrap_or_else(|_| Exit { status: 255, at: SystemTime::now() })
    }
}

impl Drop for Adoption {
    fn drop(&mut self) {
        let mut state = self.reaper.state();
        state.adoptions -= 1;
        if state.adoptions == 0 {
            state.early.clear();
        }
    }
}

/// Reaps one child that has ended. [`nix::sys::wait::waitpid`] would lose the pid of a child that a real-time signal
/// killed: it reaps first and then finds no name for the signal.
fn wait_any() -> Result<Option<(u32, u32)>, Errno> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int to the address of a live local.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) })?;
    if pid == 0 {
        return Ok(None);
    }
    let status = ExitStatus::from_raw(status);
    // Without WUNTRACED a child is reported only when it has exited or a signal has ended it.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(Some((pid.unsigned_abs(), code.unsigned_abs())))
}

fn tell(sender: oneshot::Sender<Exit>, exit: Exit) {
    if let Err(exit) = sender.send(exit) {
        log::debug!("nobody waits any more for a process that ended with {}", exit.status);
    }
}

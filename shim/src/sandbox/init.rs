//! `sandbox-init`: process 1 of a pod's shared PID namespace, or the process in a pod's user namespace, or both.
//!
//! It reaps what its pod leaves behind and does nothing else. It ends with its standard input, a socket whose other end
//! only the daemon holds: when the daemon ends it, and when the daemon is killed. The kernel then kills the rest of the
//! namespace (pid_namespaces(7)). Over the socket it says when containers may come, and what went wrong before.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::Error;
use super::confine::{confine, empty_root};
use crate::entry::{self, standard_input};
use crate::error::chain;
use crate::memory;

/// What process 1 says when it can do no harm any more.
pub(super) const READY: &str = "ready";
/// How long the daemon waits for a line; a child takes a millisecond.
const ANSWER: Duration = Duration::from_secs(5);

/// This program, to be run with `verb`, and the daemon's end of the socket that is its standard input. Its environment
/// is empty: containers of the pod may be able to read it.
pub(super) fn command(verb: &str) -> io::Result<(Command, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(ANSWER))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(entry::words().next().unwrap_or_default()).arg(verb).current_dir("/").env_clear();
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    Ok((command, ours))
}

/// Sets sysctls of the namespaces that this process is in.
pub(super) fn set_sysctls(sysctls: &BTreeMap<String, String>) -> Result<(), Error> {
    for (key, value) in sysctls {
        let path = format!("/proc/sys/{}", key.replace('.', "/")).into();
        std::fs::write(&path, value).map_err(|source| Error::File { op: "set", path, source })?;
    }
    Ok(())
}

/// Says one line.
pub(super) fn say(mut to: &UnixStream, line: &str) -> Result<(), Error> {
    let said = to.write_all(format!("{line}\n").as_bytes());
    said.map_err(|source| Error::Io { op: "talk to sandbox-init", source })
}

/// Hears one line; empty if the other end has gone.
pub(super) fn hear(from: &mut impl BufRead) -> Result<String, Error> {
    let mut line = String::new();
    let heard = from.read_line(&mut line);
    heard.map_err(|source| Error::Io { op: "listen to sandbox-init", source })?;
    Ok(line.trim_end_matches('\n').to_owned())
}

/// The socket that is standard input.
pub(super) fn daemon() -> io::Result<UnixStream> {
    Ok(UnixStream::from(standard_input().try_clone_to_owned()?))
}

/// Tells the daemon why there is no `sandbox-init`, and returns it.
pub(super) fn fail(daemon: &UnixStream, err: &dyn std::error::Error) -> io::Error {
    let text = chain(err);
    match say(daemon, &text) {
        Ok(()) => io::Error::other(text),
        Err(unheard) => io::Error::other(unheard),
    }
}

/// Process 1 of a PID namespace in the node's user namespace.
///
/// # Errors
/// The daemon is told too; the namespace ends then.
pub(crate) fn run() -> io::Result<()> {
    let daemon = daemon()?;
    let alone = empty_root().and_then(|root| confine(&root));
    alone.map_err(|errno| fail(&daemon, &Error::System { op: "confine process 1", source: errno }))?;
    say(&daemon, READY).map_err(io::Error::other)?;
    reap_until_end()
}

/// Reaps until standard input ends or SIGTERM comes.
///
/// # Errors
/// What the kernel answers; the namespace ends then too.
pub(super) fn reap_until_end() -> io::Result<()> {
    nix::sys::prctl::set_name(c"sandbox-init")?;
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None)?;
    let watched = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM]);
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    memory::give_back_stack();
    loop {
        let mut fds = [
            PollFd::new(standard_input(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE)?;
        if fds[0].revents().is_some_and(|events| !events.is_empty()) {
            return Ok(());
        }
        while let Some(signal) = signals.read_signal()? {
            if signal.ssi_signo == Signal::SIGTERM as u32 {
                return Ok(());
            }
        }
        reap()?;
    }
}

fn reap() -> io::Result<()> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            // EINVAL: reaped, but killed by a real-time signal, which nix has no name for.
            Ok(_) | Err(Errno::EINTR | Errno::EINVAL) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

//! `sandbox-init`: process 1 of a pod's shared PID namespace, or the process in a pod's user namespace, or both.
//!
//! It reaps what its pod leaves behind and does nothing else. It ends with its standard input, whose other end only the
//! daemon holds: when the daemon ends it, and when the daemon is killed. The kernel then kills the rest of the
//! namespace (pid_namespaces(7)).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::Error;

/// This program, to be run with `verb`.
pub(super) fn command(verb: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::args_os().next().unwrap_or_default()).arg(verb).current_dir("/");
    command
}

/// Sets sysctls of the namespaces that this process is in.
pub(super) fn set_sysctls(sysctls: &BTreeMap<String, String>) -> Result<(), Error> {
    for (key, value) in sysctls {
        let path = format!("/proc/sys/{}", key.replace('.', "/")).into();
        std::fs::write(&path, value).map_err(|source| Error::File { op: "set", path, source })?;
    }
    Ok(())
}

/// Reaps until standard input ends or SIGTERM comes.
///
/// # Errors
/// What the kernel answers; the namespace ends then too.
pub(crate) fn run() -> io::Result<()> {
    nix::sys::prctl::set_name(c"sandbox-init")?;
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None)?;
    let watched = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM]);
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let stdin = io::stdin();
    loop {
        let mut fds =
            [PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
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

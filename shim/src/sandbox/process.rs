//! A process by pid and start time, so that a reused pid is never taken for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

/// How long a killed process may take to end, and how often it is looked at.
const END: Duration = Duration::from_millis(500);
const LOOK: u16 = 1; // Milliseconds.

/// A process, told apart from all others since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// In clock ticks since boot: field 22 of `/proc/<pid>/stat`, proc_pid_stat(5).
    start: u64,
}

impl Process {
    /// The process that has `pid` now.
    pub(super) fn of(pid: u32) -> io::Result<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Field 2, the name, may hold anything, even parentheses; field 3 follows the last one.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let start = after_name.split_whitespace().nth(19).and_then(|field| field.parse().ok());
        start.map(|start| Process { pid, start }).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Kills the process and waits until it has ended, or holds nothing of the pod any more; does nothing to another one
    /// that has its pid. Process 1 of a PID namespace leaves its own namespaces and cgroup first, and then waits until
    /// those who are to reap the others in it have done so (`zap_pid_ns_processes` in kernel/pid_namespace.c), which after
    /// the death of the daemon is the business of the node's process 1.
    pub(super) fn kill(&self) -> io::Result<()> {
        let pidfd = match open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(Errno::ESRCH) => return Ok(()),
            Err(err) => return Err(err.into()),
        };
        // From here on the descriptor means one process, whatever becomes of the pid.
        if !Process::of(self.pid).is_ok_and(|now| now == *self) {
            return Ok(());
        }
        match send(&pidfd, libc::SIGKILL) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return Ok(()),
            Err(err) => return Err(err.into()),
        }
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            // A process that has no namespaces is on its last steps.
            if poll(&mut ended, LOOK)? > 0
                || std::fs::read_link(format!("/proc/{}/ns/net", self.pid)).is_err()
            {
                return Ok(());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// pidfd_open(2).
fn open(pid: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers and touches no memory.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_out_of_range| Errno::EBADF)?;
    // SAFETY: the kernel has just made the descriptor, for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_send_signal(2).
fn send(pidfd: &OwnedFd, signal: i32) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: with a null siginfo the kernel reads no memory and fills it in as kill(2) does.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0)
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_the_process_of_the_record_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        Process { start: process.start + 1, ..process }.kill().unwrap();
        assert!(child.try_wait().unwrap().is_none());
        process.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        process.kill().unwrap();
    }
}

//! A program that runs inside a node while the test goes on: containerd, a server, a capture.

use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sandbox::only_child;
use crate::wait::wait_until;

/// A running program, killed on drop.
pub struct Background {
    /// `nsenter`, which ends with its child.
    process: Child,
    /// The program itself, as the test sees it.
    pid: Pid,
}

impl Background {
    /// Starts a command of [`Node::command`](crate::Node::command) or [`Pod::command`](crate::Pod::command).
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let process = command.spawn().expect("run nsenter(1)");
        let pid = i32::try_from(only_child(process.id())).expect("a pid");
        Self { process, pid: Pid::from_raw(pid) }
    }

    /// The process id, as the test sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// What of the program the command has piped.
    pub fn child(&mut self) -> &mut Child {
        &mut self.process
    }

    /// Whether the program has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().expect("wait for a child").is_some()
    }

    /// Sends `signal` and waits for the end.
    #[track_caller]
    pub fn end(mut self, signal: Signal) {
        if !self.has_ended() {
            kill(self.pid, signal).expect("signal a program");
            wait_until(Duration::from_secs(20), "the end of a program", || self.has_ended());
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if !self.has_ended() && kill(self.pid, Signal::SIGKILL).is_ok() {
            self.process.wait().expect("wait for a child");
        }
    }
}

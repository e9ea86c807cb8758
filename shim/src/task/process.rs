//! One process of a container, from the request that names it to the one that deletes it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::SystemTime;

use tokio::sync::{Mutex, watch};

use super::error::Error;
use super::stdio::{Paths, Stdio};
use crate::reaper::Exit;

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Known, not started. A container's first process exists already and waits.
    Created,
    /// The OCI runtime is at work.
    Starting,
    Running,
    /// Ended, and the end was published.
    Stopped(Exit),
}

/// A container's first process or an exec.
#[derive(Debug)]
pub(super) struct Process {
    /// The exec's id, or the container's for its first process.
    pub(super) id: String,
    pub(super) is_exec: bool,
    /// What the client wants connected.
    pub(super) paths: Paths,
    /// The JSON of an exec's OCI process; empty for the first process.
    pub(super) spec: Vec<u8>,
    /// Held from the start of a process until the start was published: its exit is published after that.
    pub(super) gate: Mutex<()>,
    pid: AtomicU32,
    stdio: OnceLock<Stdio>,
    /// A client may close the input of an exec that has none yet.
    input_closed: AtomicBool,
    phase: watch::Sender<Phase>,
}

impl Process {
    /// The first process of container `id`.
    pub(super) fn first(id: String, paths: Paths) -> Process {
        Process { is_exec: false, ..Process::exec(id, paths, Vec::new()) }
    }

    /// One more process.
    pub(super) fn exec(id: String, paths: Paths, spec: Vec<u8>) -> Process {
        Process {
            id,
            is_exec: true,
            paths,
            spec,
            gate: Mutex::new(()),
            pid: AtomicU32::new(0),
            stdio: OnceLock::new(),
            input_closed: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Created),
        }
    }

    /// 0 before it exists; after its end still its own.
    pub(super) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Called once, when the OCI runtime has made the process.
    pub(super) fn made(&self, pid: u32, stdio: Stdio) {
        self.pid.store(pid, Ordering::Relaxed);
        if self.input_closed.load(Ordering::Relaxed) {
            stdio.close_input();
        }
        if self.stdio.set(stdio).is_err() {
            log::error!("process {pid} was made twice");
        }
    }

    /// Input ends when the last client has closed it.
    pub(super) fn close_input(&self) {
        self.input_closed.store(true, Ordering::Relaxed);
        if let Some(stdio) = self.stdio() {
            stdio.close_input();
        }
    }

    pub(super) fn stdio(&self) -> Option<&Stdio> {
        self.stdio.get()
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// `Created` → `Starting`, for whoever holds the gate.
    pub(super) fn begin_start(&self) -> Result<(), Error> {
        match self.phase() {
            Phase::Created => {
                self.enter(Phase::Starting);
                Ok(())
            }
            other => Err(self.refuse("start", other)),
        }
    }

    /// A process that has not begun or has ended can be deleted.
    pub(super) fn deletable(&self) -> Result<Phase, Error> {
        match self.phase() {
            phase @ (Phase::Starting | Phase::Running) => Err(self.refuse("delete", phase)),
            phase => Ok(phase),
        }
    }

    /// Waits for the end, or answers at once.
    pub(super) async fn stopped(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Stopped(exit) = *phase.borrow_and_update() {
                return exit;
            }
            if phase.changed().await.is_err() {
                // The sender lives as long as `self`.
                return Exit { status: 255, at: SystemTime::now() };
            }
        }
    }

    /// Waits until nothing of it is under way: it has not begun, or has ended.
    pub(super) async fn settled(&self) {
        let mut phase = self.phase.subscribe();
        let settled = |phase: &Phase| !matches!(phase, Phase::Starting | Phase::Running);
        if phase.wait_for(settled).await.is_err() {
            log::error!("exec {:?} is gone while its container waits for it", self.id);
        }
    }

    pub(super) fn refuse(&self, op: &'static str, phase: Phase) -> Error {
        let state = match phase {
            Phase::Created => "not started",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Stopped(_) => "stopped",
        };
        Error::State { op, id: self.id.clone(), state }
    }
}

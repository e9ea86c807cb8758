//! One container: its first process, its execs, and the order in which their lives are told.
//!
//! A start is published before the exit of the same process, and the exit of the first process after those of its
//! execs. In a PID namespace of its own the kernel kills the execs with the first process; in a shared one we do, by
//! cgroup.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::StateResponse;
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::types::task::{ProcessInfo, Status};
use containerd_shim_protos::{events::task as event, topics};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use serde::de::IgnoredAny;
use tokio::time::timeout;

use super::cgroup::Cgroup;
use super::checkpoint::Images;
use super::counters::Meter;
use super::error::Error;
use super::oom::Kills;
use super::process::{Phase, Process};
use super::record::Record;
use super::stdio::Stdio;
use super::{TaskContext, rootfs};
use crate::oci::Runtime;
use crate::reaper::{Child, Exit};
use crate::standalone;

/// How long a deletion waits for output that is still on its way.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// How long a client that asks for the state of an ended container has to read what is left of its output.
const ATTENTION: Duration = Duration::from_millis(100);
/// How long a dead container waits for its execs, and a killed process for its end.
const DEATH: Duration = Duration::from_secs(10);

/// A container that the OCI runtime has made.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) context: Arc<TaskContext>,
    pub(super) runtime: Runtime,
    /// Who owns the pipes.
    pub(super) owner: (Uid, Gid),
    /// The PID namespace is shared: nobody else kills what the first process leaves.
    pub(super) shares_pids: bool,
    /// As its configuration spells it.
    pub(super) cgroups_path: String,
    /// For the OCI runtime: `--no-pivot` and the like.
    pub(super) switches: Vec<&'static str>,
    /// Where its first process comes from, if not from the bundle.
    pub(super) checkpoint: Option<Images>,
    pub(super) init: Process,
    /// What changes after the creation.
    pub(super) life: Life,
}

/// What changes in a container's life, apart from its first process.
#[derive(Debug, Default)]
pub(super) struct Life {
    execs: Mutex<HashMap<String, Arc<Process>>>,
    /// Known once there is a process.
    cgroup: OnceLock<Cgroup>,
    /// Held by what runs the OCI runtime on the container as a whole.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) paused: AtomicBool,
    /// Ended with the first process: systemd removes an empty cgroup at once.
    meter: Meter,
}

impl Life {
    /// Called once, with the first process's.
    pub(super) fn found(&self, cgroup: Option<Cgroup>) {
        if cgroup.is_some_and(|cgroup| self.cgroup.set(cgroup).is_err()) {
            log::error!("a container has got two cgroups");
        }
    }
}

impl Container {
    fn cgroup(&self) -> Option<&Cgroup> {
        self.life.cgroup.get()
    }

    /// Follows the first process to its end.
    pub(super) fn follow(self: &Arc<Self>, mut child: Child) {
        let container = Arc::clone(self);
        let watch = self.cgroup().cloned().map(|cgroup| {
            let (container, kills) = (Arc::clone(self), Arc::new(Kills::of(cgroup)));
            let watched = Arc::clone(&kills);
            (kills, tokio::spawn(async move { watched.watch(|| container.ran_out_of_memory()).await }))
        });
        tokio::spawn(async move {
            let exit = child.exit().await;
            if let Some((kills, watch)) = watch {
                // Its event may be ready, and it is polled before this task goes on.
                tokio::task::yield_now().await;
                watch.abort();
                kills.tell_last(|| container.ran_out_of_memory());
            }
            if let Some(Err(err)) = container.cgroup().map(|cgroup| container.life.meter.end(cgroup)) {
                log::debug!("the last counters of {:?}: {err}", container.id);
            }
            let _gate = container.init.gate.lock().await;
            container.init_ended(exit).await;
        });
    }

    /// Starts the first process.
    pub(super) async fn start(self: &Arc<Self>) -> Result<u32, Error> {
        let _gate = self.init.gate.lock().await;
        self.init.begin_start()?;
        let started = match &self.checkpoint {
            Some(images) => self.restore(images).await,
            None => self.runtime.start(&self.context.reaper, &self.id).await.map_err(Error::from),
        };
        if let Err(err) = started {
            self.init.enter(Phase::Created);
            return Err(err);
        }
        self.init.enter(Phase::Running);
        let pid = self.init.pid();
        let event = event::TaskStart { container_id: self.id.clone(), pid, ..Default::default() };
        self.context.events.publish(topics::TASK_START_EVENT_TOPIC, &event);
        Ok(pid)
    }

    fn ran_out_of_memory(&self) {
        let event = event::TaskOOM { container_id: self.id.clone(), ..Default::default() };
        self.context.events.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
    }

    async fn init_ended(&self, exit: Exit) {
        if self.shares_pids
            && let Some(cgroup) = self.cgroup()
        {
            cgroup.kill(DEATH).await;
        }
        let execs: Vec<_> = self.execs().values().cloned().collect();
        for exec in execs {
            if timeout(DEATH, exec.settled()).await.is_err() {
                log::warn!("exec {:?} outlives container {:?}", exec.id, self.id);
            }
        }
        if let Err(err) = Record::new(&self.runtime, Some(exit)).write(&self.bundle) {
            log::warn!("{}", crate::error::chain(&err));
        }
        self.ended(&self.init, exit);
    }

    pub(super) fn ended(&self, process: &Process, exit: Exit) {
        if let Some(stdio) = process.stdio() {
            stdio.stop_input();
        }
        let event = event::TaskExit {
            container_id: self.id.clone(),
            id: process.id.clone(),
            pid: process.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at.into()),
            ..Default::default()
        };
        self.context.events.publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
        process.enter(Phase::Stopped(exit));
    }

    /// Removes the container, except from the table of tasks. A first process that still waits for its start is killed.
    pub(super) async fn delete(&self) -> Result<Exit, Error> {
        let _changing = self.life.changing.lock().await;
        match self.init.deletable()? {
            Phase::Created if self.init.pid() == 0 => {
                self.init.enter(Phase::Stopped(Exit { status: 0, at: SystemTime::now() }));
            }
            Phase::Created => self.signal_init(libc::SIGKILL)?,
            _ => {}
        }
        let exit = self.init.stopped().await;
        let drained = async {
            if let Some(stdio) = self.init.stdio() {
                stdio.drain(DRAIN).await;
            }
        };
        let ((), deleted) = tokio::join!(drained, self.runtime.delete_dead(&self.context.reaper, &self.id));
        deleted?;
        rootfs::unmount(&self.bundle.join("rootfs"))?;
        standalone::detach(&self.context.config, &self.context.namespace, &self.id).await?;
        Ok(exit)
    }

    /// Tells of the deletion, after the container has left the table of tasks.
    pub(super) fn deleted(&self, exit: Exit) {
        let event = event::TaskDelete {
            container_id: self.id.clone(),
            pid: self.init.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at.into()),
            ..Default::default()
        };
        self.context.events.publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
    }

    /// Signals one process, or all of the container.
    pub(super) async fn signal(&self, exec_id: &str, number: i32, all: bool) -> Result<(), Error> {
        if !exec_id.is_empty() {
            let exec = self.exec(exec_id)?;
            return match exec.phase() {
                phase @ (Phase::Created | Phase::Starting) => Err(exec.refuse("kill", phase)),
                Phase::Running => self.send(exec.pid(), number),
                Phase::Stopped(_) => Err(Error::Finished),
            };
        }
        match self.cgroup() {
            Some(cgroup) if all && self.signal_init(0).is_ok() && cgroup.signal(number) => {}
            _ => self.signal_init(number)?,
        }
        if number == libc::SIGKILL && self.life.paused.load(Ordering::Relaxed) {
            // In a v1 freezer nothing dies.
            self.resume().await?;
        }
        Ok(())
    }

    fn signal_init(&self, number: i32) -> Result<(), Error> {
        if let Phase::Stopped(_) = self.init.phase() {
            return Err(Error::Finished);
        }
        self.send(self.init.pid(), number)
    }

    fn send(&self, pid: u32, number: i32) -> Result<(), Error> {
        match self.context.reaper.signal(pid, number) {
            Err(Errno::ESRCH) => Err(Error::Finished),
            sent => sent.map_err(|errno| self.kernel("kill", errno.into())),
        }
    }

    /// Kills all and waits, at most ten seconds.
    pub(super) async fn kill(&self) {
        match self.signal("", libc::SIGKILL, true).await {
            Ok(()) | Err(Error::Finished) => {}
            Err(err) => log::warn!("{}", crate::error::chain(&err)),
        }
        if timeout(DEATH, self.init.stopped()).await.is_err() {
            log::warn!("container {:?} outlives SIGKILL", self.id);
        }
    }

    /// Freezes all processes.
    pub(super) async fn pause(&self) -> Result<(), Error> {
        let _changing = self.life.changing.lock().await;
        match self.init.phase() {
            Phase::Running if !self.life.paused.load(Ordering::Relaxed) => {}
            Phase::Running => {
                return Err(Error::State { op: "pause", id: self.id.clone(), state: "paused" });
            }
            phase => return Err(self.init.refuse("pause", phase)),
        }
        self.runtime.pause(&self.context.reaper, &self.id).await?;
        self.life.paused.store(true, Ordering::Relaxed);
        let event = event::TaskPaused { container_id: self.id.clone(), ..Default::default() };
        self.context.events.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Thaws all processes.
    pub(super) async fn resume(&self) -> Result<(), Error> {
        let _changing = self.life.changing.lock().await;
        if !self.life.paused.load(Ordering::Relaxed) {
            return Err(self.init.refuse("resume", self.init.phase()));
        }
        self.runtime.resume(&self.context.reaper, &self.id).await?;
        self.life.paused.store(false, Ordering::Relaxed);
        let event = event::TaskResumed { container_id: self.id.clone(), ..Default::default() };
        self.context.events.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Sets resource limits, of which the OCI runtime says what it can.
    pub(super) async fn update(&self, resources: &[u8]) -> Result<(), Error> {
        let decoded: Result<IgnoredAny, _> = serde_json::from_slice(resources);
        decoded.map_err(|err| Error::Decode { field: "resources", source: err.into() })?;
        let _changing = self.life.changing.lock().await;
        if let phase @ Phase::Stopped(_) = self.init.phase() {
            return Err(self.init.refuse("update", phase));
        }
        Ok(self.runtime.update(&self.context.reaper, &self.id, resources).await?)
    }

    /// The counters; after the end those of the end.
    pub(super) fn metrics(&self) -> Result<Any, Error> {
        let cgroup = self.cgroup().ok_or_else(|| std::io::ErrorKind::NotFound.into());
        let counted = cgroup.and_then(|cgroup| self.life.meter.read(cgroup));
        counted.map_err(|err| self.kernel("read the counters of", err))
    }

    /// All processes; those of execs carry the exec's id. Never none: after a restart containerd takes a container without
    /// processes for one that was never made, removes it, and its exit code is lost (`shouldCleanupShim` in
    /// core/runtime/v2/shim_load.go). A container that has ended is still there until it is deleted.
    pub(super) fn processes(&self) -> Vec<ProcessInfo> {
        let mut pids = self.cgroup().map(Cgroup::pids).unwrap_or_default();
        if pids.is_empty() {
            pids.push(self.init.pid());
        }
        let execs: HashMap<u32, String> =
            self.execs().values().map(|exec| (exec.pid(), exec.id.clone())).collect();
        let info = |pid: u32| {
            let details = execs.get(&pid).and_then(|exec_id| {
                let details = ProcessDetails { exec_id: exec_id.clone(), ..Default::default() };
                crate::events::any("containerd.runc.v1", &details)
            });
            ProcessInfo { pid, info: details.into(), ..Default::default() }
        };
        pids.into_iter().map(info).collect()
    }

    /// What a client learns of the first process or an exec. The end of the first is told once its output is read, or
    /// [`ATTENTION`] later: a containerd that has been away opens the fifos, asks, and if all has ended gives up those not
    /// open yet (`Task.Delete` in containerd's client/task.go calls `io.Cancel`). Their output would be lost.
    pub(super) async fn state(&self, exec_id: String) -> Result<StateResponse, Error> {
        if let (true, Phase::Stopped(_), Some(stdio)) =
            (exec_id.is_empty(), self.init.phase(), self.init.stdio())
        {
            stdio.read(ATTENTION).await;
        }
        self.with(&exec_id, |process| {
            let (exit_status, exited_at) = match process.phase() {
                Phase::Stopped(exit) => (exit.status, MessageField::some(exit.at.into())),
                _ => (0, MessageField::none()),
            };
            StateResponse {
                id: self.id.clone(),
                bundle: self.bundle.display().to_string(),
                pid: process.pid(),
                status: self.status(process).into(),
                stdin: process.paths.stdin.clone(),
                stdout: process.paths.stdout.clone(),
                stderr: process.paths.stderr.clone(),
                terminal: process.paths.terminal,
                exit_status,
                exited_at,
                exec_id: exec_id.clone(),
                ..Default::default()
            }
        })
    }

    /// As containerd names it.
    fn status(&self, process: &Process) -> Status {
        match process.phase() {
            Phase::Running if !process.is_exec && self.life.paused.load(Ordering::Relaxed) => Status::PAUSED,
            Phase::Created | Phase::Starting => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Stopped(_) => Status::STOPPED,
        }
    }

    /// Runs `act` on the first process or an exec.
    pub(super) fn with<T>(&self, exec_id: &str, act: impl FnOnce(&Process) -> T) -> Result<T, Error> {
        if exec_id.is_empty() {
            return Ok(act(&self.init));
        }
        Ok(act(self.exec(exec_id)?.as_ref()))
    }

    /// Sets the size of a terminal; a process without one has nothing to resize.
    pub(super) fn resize(&self, exec_id: &str, width: u16, height: u16) -> Result<(), Error> {
        self.with(exec_id, |process| {
            if let phase @ Phase::Stopped(_) = process.phase() {
                return Err(process.refuse("resize", phase));
            }
            match process.stdio().and_then(Stdio::master) {
                Some(master) => super::console::resize(master, width, height)
                    .map_err(|err| self.kernel("resize the terminal of", err)),
                None => Ok(()),
            }
        })?
    }

    fn kernel(&self, op: &'static str, source: std::io::Error) -> Error {
        Error::Kernel { op, id: self.id.clone(), source }
    }

    pub(super) fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.life.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

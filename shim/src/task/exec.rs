//! Processes that join a container: known by an exec, made by a start, gone after a delete. The OCI runtime makes them and
//! ends; they are then children of this shim, and their exits are told before that of the container.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::{events::task as event, topics};
use serde_json::{Map, Value};

use super::container::{Container, DRAIN};
use super::error::Error;
use super::process::{Phase, Process};
use super::streams::Streams;
use crate::oci::Launch;
use crate::reaper::{Child, Exit};

impl Container {
    /// Adds an exec.
    pub(super) fn add_exec(&self, exec: Process) -> Result<(), Error> {
        match self.init.phase() {
            phase @ Phase::Stopped(_) => return Err(self.init.refuse("exec", phase)),
            _ if self.life.paused.load(Ordering::Relaxed) => {
                return Err(Error::State { op: "exec", id: self.id.clone(), state: "paused" });
            }
            _ => {}
        }
        let exec_id = exec.id.clone();
        let mut execs = self.execs();
        if execs.contains_key(&exec_id) {
            return Err(Error::Exists { kind: "exec", id: exec_id });
        }
        execs.insert(exec_id.clone(), Arc::new(exec));
        let event = event::TaskExecAdded { container_id: self.id.clone(), exec_id, ..Default::default() };
        self.context.events.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Starts an exec.
    pub(super) async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<u32, Error> {
        let exec = self.exec(exec_id)?;
        let gate = exec.gate.lock().await;
        if let phase @ Phase::Stopped(_) = self.init.phase() {
            return Err(self.init.refuse("start exec", phase));
        }
        exec.begin_start()?;
        let mut child = match self.launch_exec(&exec).await {
            Ok(child) => child,
            Err(err) => {
                exec.enter(Phase::Created);
                return Err(err);
            }
        };
        exec.enter(Phase::Running);
        let event = event::TaskExecStarted {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            pid: child.pid,
            ..Default::default()
        };
        self.context.events.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        drop(gate);
        let pid = child.pid;
        let container = Arc::clone(self);
        tokio::spawn(async move {
            let exit = child.exit().await;
            container.ended(&exec, exit);
        });
        Ok(pid)
    }

    async fn launch_exec(&self, exec: &Process) -> Result<Child, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let pid_file = self.bundle.join(format!("exec-{}.pid", NEXT.fetch_add(1, Ordering::Relaxed)));
        let streams = Streams::open(exec, &self.context, &self.bundle, self.owner).await?;
        let launch = Launch {
            id: &self.id,
            pid_file: &pid_file,
            console_socket: streams.client.socket(),
            descriptors: streams.descriptors,
        };
        let child = self.runtime.exec(&self.context.reaper, &exec.spec, launch).await;
        if let Err(err) = std::fs::remove_file(&pid_file) {
            log::debug!("remove {}: {err}", pid_file.display());
        }
        let child = child?;
        exec.made(child.pid, streams.client.connect(child.pid).await?);
        Ok(child)
    }

    /// Removes an exec that has ended or never begun.
    pub(super) async fn delete_exec(&self, exec_id: &str) -> Result<(u32, Exit), Error> {
        let exec = self.exec(exec_id)?;
        let exit = match exec.deletable()? {
            Phase::Stopped(exit) => exit,
            _ => {
                let exit = Exit { status: 0, at: SystemTime::now() };
                exec.enter(Phase::Stopped(exit));
                exit
            }
        };
        if let Some(stdio) = exec.stdio() {
            stdio.drain(DRAIN).await;
        }
        self.execs().remove(exec_id);
        Ok((exec.pid(), exit))
    }

    pub(super) fn exec(&self, exec_id: &str) -> Result<Arc<Process>, Error> {
        let exec = self.execs().get(exec_id).cloned();
        exec.ok_or_else(|| Error::NotFound { kind: "exec", id: exec_id.to_owned() })
    }
}

/// The JSON of an OCI process, with the terminal that the request asks for.
pub(super) fn spec(request: &ExecProcessRequest) -> Result<Vec<u8>, Error> {
    let decode = |err: serde_json::Error| Error::Decode { field: "spec", source: err.into() };
    let bytes = request.spec.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
    let mut process: Map<String, Value> = serde_json::from_slice(bytes).map_err(decode)?;
    process.insert("terminal".to_owned(), request.terminal.into());
    serde_json::to_vec(&process).map_err(decode)
}

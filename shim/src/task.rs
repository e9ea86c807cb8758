//! The Task service: containers and the processes in them, for one pod.
//!
//! A request that changes something runs in a task of its own and is awaited: a client that goes away leaves it whole.
//! Nothing here waits for a client, and each request of a connection runs by itself; a `Wait` holds up nobody.
//!
//! [`Tasks`] is what there is; [`services`] is how clients reach it.

mod cgroup;
mod checkpoint;
mod console;
mod container;
mod copies;
mod counters;
mod create;
mod error;
mod exec;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod logging;
mod metrics_v1;
mod metrics_v2;
mod oom;
mod process;
mod record;
mod rootfs;
mod stdio;
mod streams;
mod target;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::{Task, create_task};
use futures_util::future::join_all;
use protobuf::MessageField;
use tokio::sync::Notify;
use ttrpc::asynchronous::TtrpcContext;

use crate::config::Config;
use crate::events::Events;
use crate::memory;
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;

use container::Container;
pub(crate) use counters::Meter;
pub(crate) use create::OPTIONS;
pub(crate) use error::Error;
use process::Process;
pub(crate) use record::{cleanup, is_left};
use stdio::Paths;

/// What the tasks of a shim share with the rest of it.
#[derive(Debug)]
pub(crate) struct TaskContext {
    /// The node's configuration.
    pub(crate) config: Arc<Config>,
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// Where events go.
    pub(crate) events: Arc<Events>,
    /// The parent of every process.
    pub(crate) reaper: Arc<Reaper>,
    /// The pod.
    pub(crate) sandbox: Arc<Sandbox>,
    /// The table that the service fills.
    pub(crate) tasks: Arc<Tasks>,
    /// Told when a client asks to shut down and nothing is left to serve.
    pub(crate) idle: Arc<Notify>,
}

/// The tasks of a shim, by id.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    /// `None` while a container is being made.
    containers: Mutex<HashMap<String, Option<Arc<Container>>>>,
    /// Told when a creation has ended.
    changed: Notify,
}

/// An id that is taken, until its container is there.
struct Reservation {
    tasks: Arc<Tasks>,
    id: String,
}

/// The handlers.
struct Service {
    context: Arc<TaskContext>,
    tasks: Arc<Tasks>,
}

/// The Task service under the names of its versions 2 and 3, whose messages are the same.
pub(crate) fn services(context: TaskContext) -> HashMap<String, ttrpc::asynchronous::Service> {
    let tasks = Arc::clone(&context.tasks);
    let service = Arc::new(Service { context: Arc::new(context), tasks });
    let mut services = create_task(Arc::clone(&service) as _);
    services.extend(create_task(service).into_values().map(|v2| ("containerd.task.v2.Task".to_owned(), v2)));
    services
}

impl Tasks {
    /// Neither is there a container nor is one being made.
    pub(crate) fn is_empty(&self) -> bool {
        self.containers().is_empty()
    }

    /// Whether containerd has removed the bundles of all of them, and none is being made.
    pub(crate) fn are_forgotten(&self) -> bool {
        self.containers().values().all(|one| one.as_ref().is_some_and(|container| !container.bundle.exists()))
    }

    /// Kills all containers and waits until they are dead, each at most ten seconds. They are not deleted.
    pub(crate) async fn kill_all(&self) {
        let all = self.all();
        join_all(all.iter().map(|container| container.kill())).await;
    }

    /// Removes all containers, which are dead. Whatever stays of one is told to the log, and `delete` comes for it.
    pub(crate) async fn delete_all(&self) {
        let delete = async |container: Arc<Container>| {
            let deleted = container.delete().await;
            let taken = self.take(&container);
            match deleted {
                Ok(exit) if taken.is_ok() => container.deleted(exit),
                Ok(_) => {}
                Err(err) => log::warn!("{}", crate::error::chain(&err)),
            }
        };
        join_all(self.all().into_iter().map(delete)).await;
    }

    /// From now on the input of each exec ends when its writers have closed it.
    pub(crate) fn close_input_of_execs(&self) {
        for container in self.all() {
            container.execs().values().for_each(|exec| exec.close_input());
        }
    }

    /// One that is being made is waited for: a containerd that was killed in the middle of a creation asks for the pids when
    /// it is back, and removes the bundle of a task that is not there (`shouldCleanupShim`).
    async fn get(&self, id: &str) -> Result<Arc<Container>, Error> {
        loop {
            let changed = self.changed.notified();
            let found = self.containers().get(id).cloned();
            match found {
                Some(Some(container)) => return Ok(container),
                Some(None) => changed.await,
                None => return Err(Error::NotFound { kind: "task", id: id.to_owned() }),
            }
        }
    }

    fn all(&self) -> Vec<Arc<Container>> {
        self.containers().values().flatten().cloned().collect()
    }

    fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation, Error> {
        let mut containers = self.containers();
        if containers.contains_key(id) {
            return Err(Error::Exists { kind: "task", id: id.to_owned() });
        }
        containers.insert(id.to_owned(), None);
        Ok(Reservation { tasks: Arc::clone(self), id: id.to_owned() })
    }

    /// Whoever takes it out has deleted it.
    fn take(&self, container: &Arc<Container>) -> Result<(), Error> {
        let mut containers = self.containers();
        let found = containers.get(&container.id).and_then(Option::as_ref);
        if !found.is_some_and(|found| Arc::ptr_eq(found, container)) {
            return Err(Error::NotFound { kind: "task", id: container.id.clone() });
        }
        containers.remove(&container.id);
        Ok(())
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Container>>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    fn fill(self, container: Arc<Container>) {
        self.tasks.containers().insert(self.id.clone(), Some(container));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut containers = self.tasks.containers();
        if let Some(None) = containers.get(&self.id) {
            containers.remove(&self.id);
        }
        self.tasks.changed.notify_waiters();
    }
}

#[async_trait]
impl Task for Service {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let reservation = self.tasks.reserve(&request.id)?;
        let context = Arc::clone(&self.context);
        let pid = detached(async move {
            let container = create::create(context, &request).await?;
            let pid = container.init.pid();
            reservation.fill(container);
            Ok(pid)
        })
        .await?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let container = self.tasks.get(&request.id).await?;
        let pid = detached(async move {
            match request.exec_id.as_str() {
                "" => container.start().await,
                exec_id => container.start_exec(exec_id).await,
            }
        })
        .await?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let container = self.tasks.get(&request.id).await?;
        let tasks = Arc::clone(&self.tasks);
        let (pid, exit) = detached(async move {
            if !request.exec_id.is_empty() {
                return container.delete_exec(&request.exec_id).await;
            }
            let exit = container.delete().await?;
            tasks.take(&container)?;
            container.deleted(exit);
            Ok((container.init.pid(), exit))
        })
        .await?;
        let exited_at = MessageField::some(exit.at.into());
        Ok(DeleteResponse { pid, exit_status: exit.status, exited_at, ..Default::default() })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.tasks.get(&request.id).await?;
        let spec = exec::spec(&request)?;
        if request.exec_id.is_empty() {
            return Err(Error::Invalid { field: "exec_id", got: String::new(), want: "a name" }.into());
        }
        let paths = Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        container.add_exec(Process::exec(request.exec_id, paths, spec))?;
        Ok(Empty::default())
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = match self.tasks.get(&request.id).await {
            Ok(container) => container,
            Err(err) => return sandbox_state(self.context.sandbox.pid(&request.id), request, err),
        };
        Ok(container.state(request.exec_id).await?)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let processes = match (self.tasks.get(&request.id).await, self.context.sandbox.pid(&request.id)) {
            (Ok(container), _) => container.processes(),
            (Err(_), Some(pid)) => vec![ProcessInfo { pid, ..Default::default() }],
            (Err(err), None) => return Err(err.into()),
        };
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.tasks.get(&request.id).await?;
        detached(async move { container.pause().await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.tasks.get(&request.id).await?;
        detached(async move { container.resume().await }).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.tasks.get(&request.id).await?;
        detached(async move { container.checkpoint(&request).await }).await?;
        Ok(Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let container = self.tasks.get(&request.id).await?;
        let number = i32::try_from(request.signal).ok().filter(|number| (1..=64).contains(number));
        let Some(number) = number else {
            let got = request.signal.to_string();
            return Err(Error::Invalid { field: "signal", got, want: "1 to 64" }.into());
        };
        detached(async move { container.signal(&request.exec_id, number, request.all).await }).await?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let size = |field, value: u32| {
            u16::try_from(value).map_err(|_out_of_range| Error::Invalid {
                field,
                got: value.to_string(),
                want: "at most 65535",
            })
        };
        let (width, height) = (size("width", request.width)?, size("height", request.height)?);
        self.tasks.get(&request.id).await?.resize(&request.exec_id, width, height)?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        self.tasks.get(&request.id).await?.with(&request.exec_id, |process| {
            if request.stdin {
                process.close_input();
            }
        })?;
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.tasks.get(&request.id).await?;
        let resources = request.resources.into_option().unwrap_or_default().value;
        detached(async move { container.update(&resources).await }).await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let container = self.tasks.get(&request.id).await?;
        let exit = match request.exec_id.as_str() {
            "" => container.init.stopped().await,
            exec_id => container.exec(exec_id)?.stopped().await,
        };
        let exited_at = MessageField::some(exit.at.into());
        Ok(WaitResponse { exit_status: exit.status, exited_at, ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        memory::give_back_stack_soon();
        let stats = self.tasks.get(&request.id).await?.metrics()?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    /// Never fails: after a restart containerd asks so for every bundle, also for a sandbox's.
    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let task_pid = match self.tasks.get(&request.id).await {
            Ok(container) => container.init.pid(),
            Err(_) => self.context.sandbox.pid(&request.id).unwrap_or_default(),
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, version, ..Default::default() })
    }

    /// Answers at once: containerd sends it after each deletion, and takes an error for one of the deletion.
    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        if self.tasks.is_empty() && !self.context.sandbox.is_live() {
            self.context.idle.notify_one();
        }
        Ok(Empty::default())
    }
}

/// Runs `work` to its end even if the request that waits for it is dropped.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> ttrpc::Result<T> {
    let done = tokio::spawn(work).await;
    memory::give_back_soon();
    match done {
        Ok(result) => Ok(result?),
        Err(err) => Err(crate::error::status(ttrpc::Code::INTERNAL, &err)),
    }
}

/// A pod is a process that runs, for a client that asks for it as for a task.
fn sandbox_state(pid: Option<u32>, request: StateRequest, err: Error) -> ttrpc::Result<StateResponse> {
    let Some(pid) = pid else { return Err(err.into()) };
    Ok(StateResponse { id: request.id, pid, status: Status::RUNNING.into(), ..Default::default() })
}

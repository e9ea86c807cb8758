//! A pod's sandbox: this process itself, between [`Sandbox::create`] and [`Sandbox::stop`].
//!
//! There is no pause process. To create the sandbox the daemon enters the pod's network namespace and its own new IPC
//! and UTS namespaces; containers join `/proc/<pid>/ns/*` of the daemon. Only a shared PID namespace needs a child,
//! because a process cannot change its own: `sandbox-init`. So does a user namespace, because the daemon has to stay the
//! node's root; the daemon then enters the namespaces that the child has made there. To stop it the daemon goes back to the node's namespaces,
//! and the pod's die as soon as no container holds them, though the daemon lives on until it is told to shut down.

mod cgroup;
mod confine;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
pub(crate) mod init;
pub(crate) mod inside;
mod instance;
pub(crate) mod leftovers;
mod namespaces;
mod plan;
mod process;
pub(crate) mod service;
mod spec;
mod state;
mod update;
mod user;

pub(crate) use namespaces::user_namespace;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use nix::errno::Errno;
use serde_json::Value;
use tokio::sync::{Notify, oneshot, watch};

use crate::config::Config;
use crate::error::chain;
use crate::pod::{self, DetachError, Links};
use crate::reaper::{Child, Exit, Reaper};
use crate::task::Tasks;

use cgroup::{Hierarchies, Move};
use instance::Instance;

/// Why a sandbox is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("sandbox {0} is not this shim's")]
    Unknown(String),
    #[error("sandbox {0} exists already")]
    Exists(String),
    #[error("sandbox {0} is not running")]
    NotRunning(String),
    #[error("user namespace: got mode {0}, want POD or NODE")]
    UserMode(String),
    #[error("user namespace: mode NODE has no mappings")]
    MapsOfNode,
    #[error("user namespace: got {got} {kind} mappings, want 1")]
    MapCount { kind: &'static str, got: usize },
    #[error("user namespace: {kind} mapping of {length} ids from {first} on has no id 0")]
    NoRoot { kind: &'static str, first: u32, length: u32 },
    #[error("sandbox-init: {0}")]
    Inside(String),
    #[error("sandbox options: got {0:?}, want runtime.v1.PodSandboxConfig")]
    Options(String),
    #[error("decode runtime.v1.PodSandboxConfig")]
    Decode(#[source] protobuf::Error),
    #[error("sysctl {0:?} belongs to no namespace of the pod")]
    NodeSysctl(String),
    #[error("cgroup parent {0:?} leads upwards")]
    CgroupParent(String),
    #[error("state of another version: got {got}, want at most {want}")]
    Version { got: u32, want: u32 },
    #[error("{op} {}", path.display())]
    File { op: &'static str, path: PathBuf, source: io::Error },
    #[error("parse {}", path.display())]
    State { path: PathBuf, source: serde_json::Error },
    #[error("{op}")]
    Io { op: &'static str, source: io::Error },
    #[error("{op}")]
    System { op: &'static str, source: Errno },
    #[error("detach the network")]
    Detach(#[source] DetachError),
    #[error("{}", crate::error::all(.0))]
    Several(Vec<Error>),
}

/// Whose shim this is.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The id of the sandbox, or of the first container of a group.
    pub(crate) id: String,
}

/// The sandbox of this process, if there is one: a shim of plain tasks never has.
#[derive(Debug)]
pub(crate) struct Sandbox {
    config: Arc<Config>,
    owner: Owner,
    reaper: Arc<Reaper>,
    /// Woken when the daemon may have nothing left to do.
    idle: Arc<Notify>,
    /// Read while containerd is about to connect, and not when it waits for an answer: the kernel takes 0.2 ms for the list of mounts.
    /// `None` if they cannot be read.
    hierarchies: Option<Arc<Hierarchies>>,
    /// From `create` to `shutdown`. Never held across an await.
    instance: Mutex<Option<Instance>>,
    /// Held for a whole stop, so that a second one waits for the first and then finds nothing to do.
    stopping: tokio::sync::Mutex<()>,
    /// How the sandbox has ended, for all who wait.
    end: watch::Sender<Option<Exit>>,
}

impl Sandbox {
    pub(crate) fn new(
        config: Arc<Config>,
        owner: Owner,
        reaper: Arc<Reaper>,
        idle: Arc<Notify>,
    ) -> Arc<Sandbox> {
        let (instance, stopping, end) =
            (Mutex::default(), tokio::sync::Mutex::default(), watch::Sender::new(None));
        let hierarchies = Hierarchies::here().ok().map(Arc::new);
        Arc::new(Sandbox { config, owner, reaper, idle, hierarchies, instance, stopping, end })
    }

    /// Whether there is a sandbox that has not been shut down; the daemon lives as long.
    pub(crate) fn is_live(&self) -> bool {
        self.instance().is_some()
    }

    /// Whether containerd has removed the pod's bundle, which it does last of all.
    pub(crate) fn is_forgotten(&self) -> bool {
        let instance = self.instance();
        instance
            .as_ref()
            .is_some_and(|instance| instance.plan.bundle.as_ref().is_some_and(|path| !path.exists()))
    }

    /// The process that has the pod's namespaces, if `id` is the pod's.
    pub(crate) fn pid(&self, id: &str) -> Option<u32> {
        let instance = self.instance();
        instance.as_ref().filter(|_| id == self.owner.id).map(|instance| instance.facts().reported)
    }

    /// Completes the OCI configuration of a container that is to run in the pod: files, shared memory, namespaces.
    /// Leaves it alone where there is no sandbox.
    ///
    /// # Errors
    /// If the sandbox has ended: the container would run in the node's namespaces. If `sandbox-init` is not fit to be
    /// seen by a container.
    pub(crate) fn adapt_spec(&self, spec: &mut Value) -> Result<(), Error> {
        let Some(instance) = &mut *self.instance() else {
            return Ok(());
        };
        if !self.is_running(instance) {
            return Err(Error::NotRunning(self.owner.id.clone()));
        }
        instance.await_init()?;
        instance.facts().adapt(spec);
        Ok(())
    }

    /// Becomes the sandbox. Without an await, so it is never left half done by a client that goes away.
    ///
    /// # Errors
    /// Whatever was made is unmade.
    fn create(self: &Arc<Self>, request: CreateSandboxRequest) -> Result<(), Error> {
        let mut slot = self.instance();
        if slot.is_some() {
            return Err(Error::Exists(self.owner.id.clone()));
        }
        let hierarchies = match &self.hierarchies {
            Some(hierarchies) => Arc::clone(hierarchies),
            None => Hierarchies::here()
                .map(Arc::new)
                .map_err(|source| Error::Io { op: "find the cgroups", source })?,
        };
        let created = Instance::create(&self.config, &self.owner, &self.reaper, hierarchies, request);
        let (mut instance, child) = created?;
        if let (Some(init), Some(child)) = (&mut instance.init, child) {
            init.followed = Some(tokio::spawn(Arc::clone(self).follow(child)));
        }
        if let Some(ending) = instance.moving().and_then(Move::ending) {
            tokio::spawn(Arc::clone(self).free_thread(ending));
        }
        *slot = Some(instance);
        Ok(())
    }

    /// The network is attached, by all plugins of the chain, and nothing of the pod runs. What fails here fails no pod: the next
    /// reconcile does it.
    async fn adopt_network(&self, netns: &str) {
        if netns.is_empty() {
            return;
        }
        if let Err(err) = pod::adopt::before_start(&self.config, &self.owner.id, netns.as_ref()).await {
            log::warn!("look at the pod's network: {}", chain(&err));
        }
    }

    /// Without `sandbox-init` no container can start in its namespaces: the sandbox has ended.
    async fn follow(self: Arc<Self>, mut init: Child) {
        let exit = init.exit().await;
        self.has_ended(exit);
    }

    /// A thread keeps its stack until it is joined: for the life of the pod, if nobody does it.
    async fn free_thread(self: Arc<Self>, ending: oneshot::Receiver<()>) {
        // It says nothing, and is closed.
        drop(ending.await);
        if let Some(moving) = self.instance().as_mut().and_then(Instance::moving) {
            moving.free_thread();
        }
    }

    /// The first end counts.
    fn has_ended(&self, exit: Exit) {
        self.end.send_if_modified(|end| match end {
            Some(_) => false,
            None => {
                *end = Some(exit);
                true
            }
        });
    }

    fn is_running(&self, instance: &Instance) -> bool {
        instance.started && self.end.borrow().is_none()
    }

    /// Ends what still runs in the pod, leaves its namespaces and its cgroup, and detaches its network.
    ///
    /// # Errors
    /// All of them; a step that fails keeps no other from being done, and a repeated stop does all of them again.
    async fn stop(&self, tasks: &Tasks) -> Result<(), Error> {
        let _one_at_a_time = self.stopping.lock().await;
        if self.instance().as_ref().is_none_or(|instance| instance.stopped) {
            return Ok(());
        }
        // From here on no container can join.
        let init = self.instance().as_mut().and_then(|instance| {
            instance.started = false;
            instance.init.take()
        });
        tasks.kill_all().await;
        let mut errors = Vec::new();
        // It ends while the network is detached.
        let ending = init.map(|init| init.end());
        let left = self.instance().as_mut().map(|instance| instance.leave());
        let is_home = left.as_ref().is_none_or(|left| left.is_home);
        errors.extend(left.into_iter().flat_map(|left| left.errors));
        if is_home
            && let Err(err) = pod::detach_all(&self.config, &self.owner.id, Links::DieWithNamespace)
                .await
                .or_else(DetachError::unless_kept)
        {
            errors.push(Error::Detach(err));
        }
        if let Some(ending) = ending {
            errors.extend(ending.await.err());
        }
        errors.extend(self.instance().as_mut().and_then(|instance| instance.leave_cgroup().err()));
        self.has_ended(Exit { status: 0, at: SystemTime::now() });
        if !errors.is_empty() {
            return Err(Error::Several(errors));
        }
        if let Some(instance) = &mut *self.instance() {
            instance.stopped = true;
        }
        Ok(())
    }

    /// Stops the sandbox if need be, removes its containers and its files, and lets the daemon end. containerd has removed the
    /// containers before, all but those that it has lost sight of, and nobody else would.
    ///
    /// # Errors
    /// All of them. The daemon ends nevertheless; the files stay then, and `delete`, which containerd runs next, tries
    /// once more with what they say.
    pub(crate) async fn shutdown(&self, tasks: &Tasks) -> Result<(), Error> {
        let stopped = self.stop(tasks).await;
        if self.is_live() {
            tasks.delete_all().await;
        }
        let instance = self.instance().take();
        self.idle.notify_one();
        stopped?;
        instance.map_or(Ok(()), |mut instance| instance.remove())
    }

    fn instance(&self) -> MutexGuard<'_, Option<Instance>> {
        self.instance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Makes a container: configuration, root file system, streams, OCI runtime. What was done is undone on failure.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::topics;
use nix::unistd::{Gid, Uid};
use protobuf::{Message, MessageField};
use serde_json::{Map, Value};

use super::TaskContext;
use super::cgroup::Cgroup;
use super::checkpoint::{Images, default_work};
use super::container::{Container, Life};
use super::error::Error;
use super::process::Process;
use super::record::{self, PID_FILE, Record};
use super::rootfs;
use super::stdio::Paths;
use super::streams::Streams;
use crate::oci::{Launch, Runtime};
use crate::reaper::Child;
use crate::standalone;

/// The one type of options that is read. Others come from a client that configures another runtime, and say nothing.
pub(crate) const OPTIONS: &str = "containerd.runc.v1.Options";

/// For a root file system on a ramdisk; restoring knows it too.
const NO_PIVOT: &str = "--no-pivot";

/// What a container's configuration says that concerns its shim.
struct Spec {
    shares_pids: bool,
    cgroups_path: String,
}

/// Creates the container of `request`; its first process waits for a start.
pub(super) async fn create(
    context: Arc<TaskContext>,
    request: &CreateTaskRequest,
) -> Result<Arc<Container>, Error> {
    if !is_name(&request.id) {
        return Err(Error::Invalid { field: "id", got: request.id.clone(), want: "the name of a folder" });
    }
    let options = options(request)?;
    let bundle = PathBuf::from(&request.bundle);
    let spec = prepare_spec(&context, &request.id, &bundle).await?;
    match make(Arc::clone(&context), request, &options, bundle, spec).await {
        Ok(container) => Ok(container),
        Err(err) => {
            if let Err(left) = standalone::detach(&context.config, &context.namespace, &request.id).await {
                log::warn!("undo the creation of {:?}: {left}", request.id);
            }
            Err(err)
        }
    }
}

/// From the configuration on.
async fn make(
    context: Arc<TaskContext>,
    request: &CreateTaskRequest,
    options: &Options,
    bundle: PathBuf,
    spec: Spec,
) -> Result<Arc<Container>, Error> {
    let runtime = runtime(&context, options, &spec);
    Record::new(&runtime, None).write(&bundle)?;
    remove_stale(&bundle.join(PID_FILE))?;
    let rootfs = bundle.join("rootfs");
    rootfs::mount_all(&request.rootfs, &rootfs)?;
    let container = Arc::new(Container {
        id: request.id.clone(),
        context,
        runtime,
        owner: (Uid::from_raw(options.io_uid), Gid::from_raw(options.io_gid)),
        switches: switches(options),
        checkpoint: images(request, options, &bundle),
        bundle,
        shares_pids: spec.shares_pids,
        cgroups_path: spec.cgroups_path,
        init: Process::first(request.id.clone(), paths(request)),
        life: Life::default(),
    });
    let made = match &container.checkpoint {
        Some(_) => None,
        None => match container.launch().await {
            Ok(child) => Some(child),
            Err(err) => {
                undo(&container, &rootfs).await;
                return Err(err);
            }
        },
    };
    publish(&container, request);
    if let Some(child) = made {
        container.follow(child);
    }
    Ok(container)
}

impl Container {
    /// Has the OCI runtime make the first process, from the bundle or from a checkpoint, and connects it.
    pub(super) async fn launch(&self) -> Result<Child, Error> {
        let streams = Streams::open(&self.init, &self.context, &self.bundle, self.owner).await?;
        let launch = Launch {
            id: &self.id,
            pid_file: &self.bundle.join(PID_FILE),
            console_socket: streams.client.socket(),
            descriptors: streams.descriptors,
        };
        let (runtime, reaper) = (&self.runtime, &self.context.reaper);
        let child = match &self.checkpoint {
            None => runtime.create(reaper, &self.bundle, &self.switches, launch).await?,
            Some(images) => {
                let mut args: Vec<OsString> = vec!["--image-path".into(), images.folder.clone().into()];
                args.extend(["--work-path".into(), images.work.clone().into()]);
                if !images.parent.is_empty() {
                    args.extend(["--parent-path".into(), images.parent.clone().into()]);
                }
                args.extend(self.switches.iter().filter(|name| **name == NO_PIVOT).map(OsString::from));
                runtime.restore(reaper, &self.bundle, args, launch).await?
            }
        };
        let stdio = streams.client.connect(child.pid).await?;
        self.init.made(child.pid, stdio);
        self.life.found(cgroup(child.pid, &self.cgroups_path));
        Ok(child)
    }
}

pub(super) fn switches(options: &Options) -> Vec<&'static str> {
    let all = [(options.no_pivot_root, NO_PIVOT), (options.no_new_keyring, "--no-new-keyring")];
    all.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect()
}

fn images(request: &CreateTaskRequest, options: &Options, bundle: &Path) -> Option<Images> {
    let work = match options.criu_work_path.as_str() {
        "" => default_work(bundle),
        path => path.into(),
    };
    (!request.checkpoint.is_empty()).then(|| Images {
        folder: request.checkpoint.clone().into(),
        parent: request.parent_checkpoint.clone(),
        work,
    })
}

async fn undo(container: &Container, rootfs: &Path) {
    let id = &container.id;
    if let Err(err) = container.runtime.delete(&container.context.reaper, id).await {
        log::warn!("undo the creation of {id:?}: {}", crate::error::chain(&err));
    }
    if let Err(err) = rootfs::unmount(rootfs) {
        log::warn!("undo the creation of {id:?}: {}", crate::error::chain(&err));
    }
}

fn publish(container: &Container, request: &CreateTaskRequest) {
    let io = TaskIO {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
        ..Default::default()
    };
    let event = TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(io),
        checkpoint: request.checkpoint.clone(),
        pid: container.init.pid(),
        ..Default::default()
    };
    container.context.events.publish(topics::TASK_CREATE_EVENT_TOPIC, &event);
}

pub(super) fn options(request: &CreateTaskRequest) -> Result<Options, Error> {
    match request.options.as_ref().filter(|any| any.type_url.trim_start_matches('/') == OPTIONS) {
        None => Ok(Options::default()),
        Some(any) => Options::parse_from_bytes(&any.value)
            .map_err(|err| Error::Decode { field: "options", source: err.into() }),
    }
}

/// A request's options win over the node's configuration.
fn runtime(context: &TaskContext, options: &Options, spec: &Spec) -> Runtime {
    let mut runtime = record::runtime(&context.config, &context.namespace);
    if !options.binary_name.is_empty() {
        runtime.binary = options.binary_name.clone().into();
    }
    if !options.root.is_empty() {
        runtime.root = Path::new(&options.root).join(&context.namespace);
    }
    // `slice:prefix:name` makes sense to systemd only.
    runtime.systemd_cgroup = options.systemd_cgroup || spec.cgroups_path.split(':').count() == 3;
    runtime
}

/// Reads `config.json`, fits it into the pod, and writes it back if that has changed it.
async fn prepare_spec(context: &TaskContext, id: &str, bundle: &Path) -> Result<Spec, Error> {
    let path = bundle.join("config.json");
    let failed = |op| move |source: io::Error| Error::Bundle { op, path: bundle.join("config.json"), source };
    let text = std::fs::read(&path).map_err(failed("read"))?;
    let before: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|err| failed("parse")(err.into()))?;
    let before = Value::Object(before);
    let mut spec = before.clone();
    let adapt = |source: Box<dyn std::error::Error + Send + Sync>| Error::Adapt { id: id.to_owned(), source };
    context.sandbox.adapt_spec(&mut spec).map_err(|err| adapt(err.into()))?;
    let attached = standalone::attach(&context.config, &context.namespace, id, &mut spec).await;
    attached.map_err(|err| adapt(err.into()))?;
    if spec != before {
        std::fs::write(&path, spec.to_string()).map_err(failed("write"))?;
    }
    let namespaces = spec["linux"]["namespaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own_pids = |namespace: &Value| {
        namespace["type"] == "pid" && namespace["path"].as_str().is_none_or(str::is_empty)
    };
    Ok(Spec {
        shares_pids: !namespaces.iter().any(own_pids),
        cgroups_path: spec["linux"]["cgroupsPath"].as_str().unwrap_or_default().to_owned(),
    })
}

/// From the process, or, if that is dead already, from the configuration.
fn cgroup(pid: u32, cgroups_path: &str) -> Option<Cgroup> {
    match Cgroup::of(pid) {
        Ok(cgroup) => Some(cgroup),
        Err(_) if !cgroups_path.is_empty() => Some(Cgroup::at(cgroups_path)),
        Err(err) => {
            log::warn!("cgroup of process {pid}: {err}");
            None
        }
    }
}

fn paths(request: &CreateTaskRequest) -> Paths {
    Paths {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    }
}

/// A pid file of an earlier life of the bundle must not be taken for the new process's.
fn remove_stale(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(Error::Bundle { op: "remove", path: path.to_owned(), source: err })
        }
        _ => Ok(()),
    }
}

/// An id becomes the name of a folder of the OCI runtime.
pub(super) fn is_name(id: &str) -> bool {
    !id.is_empty() && id != "." && id != ".." && !id.contains(['/', '\0']) && !id.starts_with('-')
}

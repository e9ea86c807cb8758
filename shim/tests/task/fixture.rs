//! A shim of its own for each test, spoken to as containerd does, with bundles made of busybox.
//!
//! [`Shim::start`] alone knows how a shim process is started.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::*;
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::{JoinHandle, spawn_blocking};
use ttrpc::asynchronous::{Server, TtrpcContext};

pub(crate) type Failure = (ttrpc::Code, String);

/// A running shim, a recorder of its events, and a folder for bundles.
pub(crate) struct Shim {
    pub(crate) dir: TempDir,
    pub(crate) process: Child,
    pub(crate) task: TaskClient,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
    _events: Option<Server>,
}

struct Recorder(Arc<Mutex<Vec<String>>>);

#[async_trait::async_trait]
impl Events for Recorder {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap();
        assert_eq!(envelope.namespace, "weft-test");
        self.0.lock().unwrap().push(describe(&envelope.topic, &envelope.event.value));
        Ok(Empty::default())
    }
}

/// `topic id [exec]`.
fn describe(topic: &str, value: &[u8]) -> String {
    use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted, TaskExit};
    use protobuf::Message;
    let words = match topic {
        "/tasks/exit" => TaskExit::parse_from_bytes(value).map(|e| format!("{} {}", e.id, e.exit_status)),
        "/tasks/exec-added" => TaskExecAdded::parse_from_bytes(value).map(|e| e.exec_id),
        "/tasks/exec-started" => TaskExecStarted::parse_from_bytes(value).map(|e| e.exec_id),
        // In all others the container's id is field 1.
        _ => containerd_shim_protos::events::task::TaskStart::parse_from_bytes(value).map(|e| e.container_id),
    };
    format!("{} {}", topic.trim_start_matches("/tasks/"), words.unwrap_or_else(|_| "?".into()))
}

/// What deadlines are multiplied by: `WEFT_TEST_SLOWNESS`, 1 if it is not set. An emulated machine is 20 times slower.
pub(crate) fn slowness() -> u32 {
    std::env::var("WEFT_TEST_SLOWNESS").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(30) * slowness())
}

/// Answers of the shim, with the code of a refusal.
pub(crate) fn refusal<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> Failure {
    match answer.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        err => panic!("not a refusal: {err}"),
    }
}

/// The OCI runtime under test, by the node's configuration file: `WEFT_TEST_RUNTIME`, a name in `PATH` or a path.
pub(crate) fn oci_runtime() -> String {
    std::env::var("WEFT_TEST_RUNTIME").unwrap_or_else(|_| "runc".into())
}

/// Runs a program, which must succeed.
pub(crate) fn run(program: &str, args: &[&OsStr]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
}

/// Polls until `state` holds.
pub(crate) async fn until(what: &str, state: impl FnMut() -> bool) {
    until_within(Duration::from_secs(10), what, state).await;
}

/// The same, for what takes longer: `limit` is multiplied by [`slowness`].
pub(crate) async fn until_within(limit: Duration, what: &str, mut state: impl FnMut() -> bool) {
    let end = Instant::now() + limit * slowness();
    while !state() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Shim {
    pub(crate) async fn new() -> Shim {
        let mut shim = Shim::without_containerd().await;
        shim.listen().await;
        shim
    }

    /// Nobody takes its events, until [`Shim::listen`].
    pub(crate) async fn without_containerd() -> Shim {
        Shim::with_addresses("/nowhere", Some("events.sock")).await
    }

    /// Nobody ever takes its events: it is given no address.
    pub(crate) async fn without_addresses() -> Shim {
        Shim::with_addresses("", None).await
    }

    async fn with_addresses(address: &str, events: Option<&str>) -> Shim {
        assert!(nix::unistd::geteuid().is_root(), "needs root");
        let dir = tempfile::Builder::new().prefix("weft-task-").tempdir().unwrap();
        let image = dir.path().join("image/bin");
        std::fs::create_dir_all(&image).unwrap();
        for folder in ["proc", "dev", "tmp"] {
            std::fs::create_dir(dir.path().join("image").join(folder)).unwrap();
        }
        std::fs::copy("/bin/busybox", image.join("busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", image.join("sh")).unwrap();
        let config = format!("[runtime]\nbinary = {:?}\n", oci_runtime());
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let (process, task) = Shim::start(dir.path(), address, events).await;
        Shim { dir, process, task, seen: Arc::default(), _events: None }
    }

    async fn start(dir: &Path, address: &str, events: Option<&str>) -> (Child, TaskClient) {
        let socket = dir.join("shim.sock");
        // The daemon without `start`: its listener is its standard input, and it is a child that a test can kill.
        let listener = UnixListener::bind(&socket).unwrap();
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_containerd-shim-weft-v1"));
        if let Some(events) = events {
            daemon.env("TTRPC_ADDRESS", dir.join(events));
        }
        let process = daemon
            .args(["-namespace", "weft-test", "-id", "weft-test-shim", "-address", address])
            .env("WEFT_RUN_DIR", dir.join("run"))
            .env("WEFT_RUNTIME_ROOT", dir.join("runtime"))
            .env("WEFT_CONFIG", dir.join("config.toml"))
            .current_dir(dir)
            .stdin(OwnedFd::from(listener))
            .spawn()
            .unwrap();
        let task = connect(&socket).await;
        // An answer proves that the connection is accepted: descriptors can be counted from here on.
        task.connect(context(), &ConnectRequest::default()).await.unwrap();
        (process, task)
    }

    /// What `delete` says of a dead shim's container: pid and exit status.
    pub(crate) fn cleanup(&self, bundle: &Bundle) -> String {
        use protobuf::Message;
        let output = Command::new(env!("CARGO_BIN_EXE_containerd-shim-weft-v1"))
            .args(["-namespace", "weft-test", "-id", &bundle.id, "-address", "/nowhere", "-bundle"])
            .arg(&bundle.path)
            .arg("delete")
            .env("WEFT_RUN_DIR", self.dir.path().join("run"))
            .env("WEFT_RUNTIME_ROOT", self.dir.path().join("runtime"))
            .env("WEFT_CONFIG", self.dir.path().join("config.toml"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let response = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
        format!("{} {}", response.pid, response.exit_status)
    }

    /// Begins to take events, as containerd when it is back.
    pub(crate) async fn listen(&mut self) {
        let recorder = Arc::new(Recorder(Arc::clone(&self.seen)));
        let address = format!("unix://{}", self.dir.path().join("events.sock").display());
        let mut server = Server::new().bind(&address).unwrap().register_service(create_events(recorder));
        server.start().await.unwrap();
        self._events = Some(server);
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("shim.sock")
    }

    /// All events so far, once `last` is among them.
    pub(crate) async fn events_until(&self, last: &str) -> Vec<String> {
        until(last, || self.seen.lock().unwrap().iter().any(|event| event == last)).await;
        self.seen.lock().unwrap().clone()
    }

    /// A bundle that runs `script` in a shell.
    pub(crate) fn bundle(&self, name: &str, script: &str) -> Bundle {
        let id = format!("{name}-{}", self.process.id());
        let path = self.dir.path().join(&id);
        std::fs::create_dir(&path).unwrap();
        let bundle = Bundle { id, path };
        bundle.configure(script, |_| {});
        bundle
    }

    /// The request that creates `bundle`, without streams.
    pub(crate) fn create_request(&self, bundle: &Bundle) -> CreateTaskRequest {
        CreateTaskRequest {
            id: bundle.id.clone(),
            bundle: bundle.path.display().to_string(),
            rootfs: vec![containerd_shim_protos::types::mount::Mount {
                type_: "bind".into(),
                source: self.dir.path().join("image").display().to_string(),
                options: vec!["rbind".into(), "ro".into()],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    /// Creates and starts `bundle`; its output comes from the returned reader after the deletion.
    pub(crate) async fn run(&self, bundle: &Bundle) -> JoinHandle<Vec<u8>> {
        let (path, output) = bundle.output("stdout");
        let request = CreateTaskRequest { stdout: path, ..self.create_request(bundle) };
        self.task.create(context(), &request).await.unwrap();
        self.start_task(bundle, "").await.unwrap();
        output
    }

    pub(crate) async fn start_task(&self, bundle: &Bundle, exec_id: &str) -> ttrpc::Result<StartResponse> {
        let request = StartRequest { id: bundle.id.clone(), exec_id: exec_id.into(), ..Default::default() };
        self.task.start(context(), &request).await
    }

    pub(crate) async fn wait(&self, bundle: &Bundle, exec_id: &str) -> ttrpc::Result<u32> {
        let request = WaitRequest { id: bundle.id.clone(), exec_id: exec_id.into(), ..Default::default() };
        Ok(self.task.wait(context(), &request).await?.exit_status)
    }

    pub(crate) async fn delete(&self, bundle: &Bundle, exec_id: &str) -> ttrpc::Result<DeleteResponse> {
        let request = DeleteRequest { id: bundle.id.clone(), exec_id: exec_id.into(), ..Default::default() };
        self.task.delete(context(), &request).await
    }

    pub(crate) async fn kill(
        &self,
        bundle: &Bundle,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> ttrpc::Result<Empty> {
        let id = bundle.id.clone();
        let request = KillRequest { id, exec_id: exec_id.into(), signal, all, ..Default::default() };
        self.task.kill(context(), &request).await
    }

    /// Kills what the container runs, and deletes it.
    pub(crate) async fn end(&self, bundle: &Bundle) {
        self.kill(bundle, "", 9, false).await.unwrap();
        assert_eq!(self.wait(bundle, "").await.unwrap(), 137);
        self.delete(bundle, "").await.unwrap();
    }

    pub(crate) async fn state(&self, bundle: &Bundle, exec_id: &str) -> ttrpc::Result<StateResponse> {
        let request = StateRequest { id: bundle.id.clone(), exec_id: exec_id.into(), ..Default::default() };
        self.task.state(context(), &request).await
    }

    pub(crate) async fn status(&self, bundle: &Bundle, exec_id: &str) -> Status {
        self.state(bundle, exec_id).await.unwrap().status.unwrap()
    }

    pub(crate) async fn pids(&self, bundle: &Bundle) -> Vec<ProcessInfo> {
        let request = PidsRequest { id: bundle.id.clone(), ..Default::default() };
        self.task.pids(context(), &request).await.unwrap().processes
    }

    /// Adds an exec that runs `script`.
    pub(crate) async fn exec(&self, bundle: &Bundle, exec_id: &str, script: &str) -> ttrpc::Result<Empty> {
        self.task.exec(context(), &exec_request(bundle, exec_id, script)).await
    }

    /// Open descriptors, children, and mounts below the test's folder.
    pub(crate) fn holdings(&self) -> (usize, usize, usize) {
        let pid = self.process.id();
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = self.dir.path().to_str().unwrap();
        (fds, children.split_whitespace().count(), mounts.lines().filter(|line| line.contains(ours)).count())
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // A failed test leaves containers; a passed one leaves nothing to do here.
        for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            if entry.path().join("config.json").exists() {
                let id = entry.file_name().into_string().unwrap();
                self.cleanup(&Bundle { id, path: entry.path() });
            }
        }
    }
}

/// Connects once the shim listens.
pub(crate) async fn connect(socket: &Path) -> TaskClient {
    let address = format!("unix://{}", socket.display());
    let end = Instant::now() + Duration::from_secs(10) * slowness();
    loop {
        match Client::connect(&address).await {
            Ok(client) => return TaskClient::new(client),
            Err(err) => assert!(Instant::now() < end, "{err}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn exec_request(bundle: &Bundle, exec_id: &str, script: &str) -> ExecProcessRequest {
    let spec = protobuf::well_known_types::any::Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: process(script).to_string().into_bytes(),
        ..Default::default()
    };
    ExecProcessRequest {
        id: bundle.id.clone(),
        exec_id: exec_id.into(),
        spec: protobuf::MessageField::some(spec),
        ..Default::default()
    }
}

fn process(script: &str) -> Value {
    json!({
        "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/busybox", "sh", "-c", script],
        "env": ["PATH=/bin"], "noNewPrivileges": true,
    })
}

/// An OCI bundle.
pub(crate) struct Bundle {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
}

impl Bundle {
    /// Writes `config.json`, changed by `change`.
    pub(crate) fn configure(&self, script: &str, change: impl FnOnce(&mut Value)) {
        let mut config = json!({
            "ociVersion": "1.0.2", "process": process(script), "root": { "path": "rootfs", "readonly": true },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
            ],
            "linux": {
                "cgroupsPath": format!("/{}", self.id),
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                    { "type": "network" },
                ],
            },
        });
        change(&mut config);
        std::fs::write(self.path.join("config.json"), config.to_string()).unwrap();
    }

    /// Of either version.
    pub(crate) fn has_cgroup(&self) -> bool {
        ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].iter().any(|root| Path::new(root).join(&self.id).exists())
    }

    /// A new fifo in the bundle.
    pub(crate) fn fifo(&self, name: &str) -> String {
        let path = self.path.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    /// A new fifo, and all that will have been written to it.
    pub(crate) fn output(&self, name: &str) -> (String, JoinHandle<Vec<u8>>) {
        let path = self.fifo(name);
        let reader = path.clone();
        let output = spawn_blocking(move || {
            let mut bytes = Vec::new();
            File::open(reader).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        });
        (path, output)
    }
}

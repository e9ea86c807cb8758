//! A shim with a pod and containers of busybox, spoken to as containerd does. The witnesses are `/proc/<pid>/ns`, `lsns` and files.

use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::*;
use containerd_shim_protos::sandbox_api as sandbox;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::TaskClient;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use tempfile::TempDir;
use ttrpc::asynchronous::Client;
use ttrpc::context::Context;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-weft-v1");
const NAMESPACE: &str = "k8s.io";

/// Modes of CRI's namespaces.
pub(crate) const POD: u64 = 0;
pub(crate) const CONTAINER: u64 = 1;
pub(crate) const NODE: u64 = 2;
pub(crate) const TARGET: u64 = 3;

/// Where the ids of a pod with a user namespace begin on the node.
pub(crate) const ROOT: u32 = 100_000;
pub(crate) const IDS: u32 = 65_536;

pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so after 30 s: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The namespace of a process.
pub(crate) fn ns(pid: u32, name: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/{name}")).unwrap().ino()
}

/// The node's, where the test is.
pub(crate) fn of_node(name: &str) -> u64 {
    ns(std::process::id(), name)
}

/// The user namespace that owns the namespace of a process, by lsns(8), which looks at all processes and fails when one
/// of another test ends meanwhile.
pub(crate) fn owner(pid: u32, kind: &str) -> u64 {
    let mut all = Value::Null;
    until("lsns tells", || {
        let output = Command::new("lsns").args(["-J", "-p", &pid.to_string(), "-o", "TYPE,ONS"]).output();
        all = serde_json::from_slice(&output.unwrap().stdout).unwrap_or_default();
        all["namespaces"].is_array()
    });
    let all = all["namespaces"].as_array().unwrap();
    all.iter().find(|one| one["type"] == kind).unwrap()["ons"].as_u64().unwrap()
}

/// A zombie has no namespaces any more.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/ns/net")).is_ok()
}

pub(crate) fn ctx() -> Context {
    ttrpc::context::with_duration(Duration::from_secs(20))
}

/// First id inside, first id on the node, and how many.
pub(crate) type Maps = Vec<[u32; 3]>;

/// What is asked of CRI. The numbers are those of its protocol, written here a second time.
pub(crate) struct Want {
    pub(crate) network: u64,
    pub(crate) pid: u64,
    pub(crate) ipc: u64,
    /// Mode, and mappings of users and of groups.
    pub(crate) user: Option<(u64, Maps, Maps)>,
}

impl Want {
    pub(crate) fn own() -> Want {
        Want { network: POD, pid: CONTAINER, ipc: POD, user: None }
    }

    pub(crate) fn user() -> Want {
        let map = vec![[0, ROOT, IDS]];
        Want { user: Some((POD, map.clone(), map)), ..Want::own() }
    }

    fn config(&self, cgroup_parent: &str) -> Vec<u8> {
        let mut modes = [number(1, self.network), number(2, self.pid), number(3, self.ipc)].concat();
        if let Some((mode, uids, gids)) = &self.user {
            let map = |field_of: u64, [inside, host, length]: &[u32; 3]| {
                let map =
                    [number(1, (*host).into()), number(2, (*inside).into()), number(3, (*length).into())];
                field(field_of, &map.concat())
            };
            let mut user = number(1, *mode);
            user.extend(uids.iter().flat_map(|one| map(2, one)));
            user.extend(gids.iter().flat_map(|one| map(3, one)));
            modes.extend(field(5, &user));
        }
        let mut linux = [field(1, cgroup_parent.as_bytes()), field(2, &field(1, &modes))].concat();
        if self.ipc != NODE {
            linux.extend(field(3, &[field(1, b"kernel.shm_rmid_forced"), field(2, b"1")].concat()));
        }
        [field(2, b"pod-host"), field(8, &linux)].concat()
    }
}

fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn number(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A shim for one pod, and all that it may leave behind.
pub(crate) struct Pod {
    pub(crate) root: TempDir,
    pub(crate) id: String,
    pub(crate) daemon: Child,
    pub(crate) sandbox: SandboxClient,
    pub(crate) task: TaskClient,
    pub(crate) netns: PathBuf,
}

/// A container of a pod, or about to be.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    /// What it writes to its standard output.
    pub(crate) output: PathBuf,
    pub(crate) pid: u32,
}

impl Pod {
    /// With a network namespace in the node's user namespace.
    pub(crate) async fn new() -> Pod {
        let root = folder();
        let netns = root.path().join("netns");
        fs::write(&netns, "").unwrap();
        run("unshare", &[&format!("--net={}", netns.display()), "true"]);
        Pod::start(root, netns).await
    }

    /// With a network namespace in a user namespace that is kept by nothing else, as CRI makes it.
    pub(crate) async fn with_user_namespace() -> Pod {
        let root = folder();
        let netns = root.path().join("netns");
        fs::write(&netns, "").unwrap();
        let mut inside = Command::new("unshare").args(["--user", "--net", "sleep", "1000"]).spawn().unwrap();
        let pid = inside.id();
        until("the network namespace is made", || ns(pid, "net") != of_node("net"));
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{file}"), format!("0 {ROOT} {IDS}")).unwrap();
        }
        run("mount", &["--bind", &format!("/proc/{pid}/ns/net"), netns.to_str().unwrap()]);
        inside.kill().unwrap();
        inside.wait().unwrap();
        Pod::start(root, netns).await
    }

    async fn start(root: TempDir, netns: PathBuf) -> Pod {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("weft-ns-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let socket = root.path().join("shim.sock");
        // The daemon without `start`: its listener is its standard input, and it is a child that a test can kill.
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = command(root.path(), &id).stdin(OwnedFd::from(listener)).spawn().unwrap();
        let client = connect(&socket).await;
        let (sandbox, task) = (SandboxClient::new(client.clone()), TaskClient::new(client));
        Pod { root, id, daemon, sandbox, task, netns }
    }

    pub(crate) fn request(&self, want: &Want) -> sandbox::CreateSandboxRequest {
        let options = Any {
            type_url: "runtime.v1.PodSandboxConfig".into(),
            value: want.config(&format!("/{}", self.id)),
            ..Default::default()
        };
        let netns = if want.network == NODE { String::new() } else { self.netns.display().to_string() };
        sandbox::CreateSandboxRequest {
            sandbox_id: self.id.clone(),
            options: Some(options).into(),
            netns_path: netns,
            ..Default::default()
        }
    }

    /// Makes the sandbox, and returns the pid that containers are to join.
    pub(crate) async fn up(&self, want: &Want) -> u32 {
        self.sandbox.create_sandbox(ctx(), &self.request(want)).await.unwrap();
        let request = sandbox::StartSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        let pid = self.sandbox.start_sandbox(ctx(), &request).await.unwrap().pid;
        assert_eq!(self.status().await, ("SANDBOX_READY".to_owned(), pid));
        pid
    }

    pub(crate) async fn refused(&self, want: &Want) -> (ttrpc::Code, String) {
        match self.sandbox.create_sandbox(ctx(), &self.request(want)).await.unwrap_err() {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
            err => panic!("not a refusal: {err}"),
        }
    }

    pub(crate) async fn status(&self) -> (String, u32) {
        let request = sandbox::SandboxStatusRequest { sandbox_id: self.id.clone(), ..Default::default() };
        let status = self.sandbox.sandbox_status(ctx(), &request).await.unwrap();
        (status.state, status.pid)
    }

    /// Stops the sandbox, and after that nothing of it but its files is left.
    pub(crate) async fn stop(&self) {
        let request = sandbox::StopSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.sandbox.stop_sandbox(ctx(), &request).await.unwrap();
        assert_eq!(self.members(), Vec::<u32>::new());
        assert!(!self.is_mounted("shm"));
    }

    /// Stops, shuts down, and looks for what is left.
    pub(crate) async fn down(mut self) {
        self.stop().await;
        let request = sandbox::ShutdownSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.sandbox.shutdown_sandbox(ctx(), &request).await.unwrap();
        until("the daemon ends", || self.daemon.try_wait().unwrap().is_some());
        self.assert_gone();
    }

    pub(crate) fn assert_gone(&self) {
        assert_eq!(self.members(), Vec::<u32>::new());
        assert!(!self.dir().exists(), "the pod's files are left");
        assert!(!self.is_mounted("shm"));
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.root.path().join("run/pods").join(NAMESPACE).join(&self.id)
    }

    pub(crate) fn is_mounted(&self, name: &str) -> bool {
        let path = self.root.path().join(name);
        let path = if name == "shm" { self.dir().join(name) } else { path };
        fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {} ", path.display()))
    }

    /// The sandbox's own cgroups, and those of its containers.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let parents = hierarchies.map(|root| root.join(&self.id)).filter(|dir| dir.exists());
        let below = parents.flat_map(|dir| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()));
        below.filter(|path| path.is_dir()).collect()
    }

    /// The processes in the pod's network namespace.
    pub(crate) fn members(&self) -> Vec<u32> {
        let inode = fs::metadata(&self.netns).unwrap().ino();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_str()?.parse().ok();
        let pids = fs::read_dir("/proc").unwrap().filter_map(name);
        pids.filter(|pid: &u32| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns.ino() == inode))
            .collect()
    }

    /// A bundle as CRI makes it for a member of a pod with these modes; `pid` is the sandbox's.
    pub(crate) fn bundle(&self, name: &str, pid: u32, want: &Want, script: &str) -> Container {
        let namespace =
            |kind: &str, name: &str| json!({ "type": kind, "path": format!("/proc/{pid}/ns/{name}") });
        let mut namespaces =
            vec![json!({ "type": "mount" }), namespace("network", "net"), namespace("ipc", "ipc")];
        namespaces.push(namespace("uts", "uts"));
        namespaces.push(match want.pid {
            CONTAINER => json!({ "type": "pid" }),
            _ => namespace("pid", "pid"),
        });
        let mut linux = json!({});
        if want.user.is_some() {
            namespaces.push(namespace("user", "user"));
            let map = json!([{ "containerID": 0, "hostID": ROOT, "size": IDS }]);
            (linux["uidMappings"], linux["gidMappings"]) = (map.clone(), map);
        }
        linux["namespaces"] = namespaces.into();
        self.bundle_of(name, linux, script)
    }

    pub(crate) fn bundle_of(&self, name: &str, mut linux: Value, script: &str) -> Container {
        let id = format!("{}-{name}", self.id);
        let bundle = self.root.path().join(&id);
        fs::create_dir(&bundle).unwrap();
        // As containerd's (core/runtime/v2/bundle_linux.go).
        std::os::unix::fs::chown(&bundle, None, Some(ROOT)).unwrap();
        fs::set_permissions(&bundle, Permissions::from_mode(0o710)).unwrap();
        linux["cgroupsPath"] = format!("/{}/{name}", self.id).into();
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/busybox", "sh", "-c", script],
                "env": ["PATH=/bin"],
                "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
            },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm" },
            ],
            "linux": linux,
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let output = bundle.join("stdout");
        File::create(&output).unwrap();
        Container { id, bundle, output, pid: 0 }
    }

    pub(crate) async fn launch(&self, mut container: Container) -> Container {
        let bind = containerd_shim_protos::types::mount::Mount {
            type_: "bind".into(),
            source: self.root.path().join("image").display().to_string(),
            options: vec!["rbind".into(), "ro".into()],
            ..Default::default()
        };
        let request = CreateTaskRequest {
            id: container.id.clone(),
            bundle: container.bundle.display().to_string(),
            rootfs: vec![bind],
            stdout: container.output.display().to_string(),
            stderr: container.output.display().to_string(),
            ..Default::default()
        };
        container.pid = self.task.create(ctx(), &request).await.unwrap().pid;
        let request = StartRequest { id: container.id.clone(), ..Default::default() };
        self.task.start(ctx(), &request).await.unwrap();
        container
    }

    pub(crate) async fn kill(&self, container: &Container, all: bool) {
        let request = KillRequest { id: container.id.clone(), signal: 9, all, ..Default::default() };
        self.task.kill(ctx(), &request).await.unwrap();
    }

    pub(crate) async fn wait(&self, container: &Container) -> u32 {
        let request = WaitRequest { id: container.id.clone(), ..Default::default() };
        self.task.wait(ctx(), &request).await.unwrap().exit_status
    }

    pub(crate) async fn delete(&self, container: &Container) {
        let request = DeleteRequest { id: container.id.clone(), ..Default::default() };
        self.task.delete(ctx(), &request).await.unwrap();
    }

    /// The verb `delete` for the sandbox, or for a container.
    pub(crate) fn clean_up(&self, container: Option<&Container>) {
        let output = match container {
            Some(container) => self.delete_verb(&container.id, &container.bundle),
            None => self.delete_verb(&self.id, self.root.path()),
        };
        assert!(output.as_ref().is_ok_and(|output| output.status.success()), "{output:?}");
    }

    fn delete_verb(&self, id: &str, bundle: &Path) -> std::io::Result<Output> {
        // Where containerd has put down the address of the pod's shim.
        let address = format!("unix://{}", self.root.path().join("shim.sock").display());
        fs::write(bundle.join("address"), address)?;
        let mut command = command(self.root.path(), id);
        command.arg("-bundle").arg(bundle).arg("delete").stdin(Stdio::null()).output()
    }
}

impl Drop for Pod {
    /// A passed test leaves nothing to do here but the netns and the parents of cgroups.
    fn drop(&mut self) {
        drop(self.daemon.kill().and_then(|()| self.daemon.wait()));
        if std::thread::panicking() {
            let entries = fs::read_dir(self.root.path()).into_iter().flatten().flatten();
            let bundles: Vec<_> = entries.filter(|entry| entry.path().join("config.json").exists()).collect();
            for bundle in bundles {
                drop(self.delete_verb(&bundle.file_name().into_string().unwrap_or_default(), &bundle.path()));
            }
            drop(self.delete_verb(&self.id, self.root.path()));
        }
        drop(Command::new("umount").arg(&self.netns).status());
        for root in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // The parents, which the shim leaves to whoever chose them; most hierarchies have none.
            drop(fs::remove_dir(root.path().join(&self.id)));
        }
    }
}

/// More than a container has by default, and less than the sandbox.
const CAPABILITIES: [&str; 5] =
    ["CAP_SYS_PTRACE", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_SYS_CHROOT"];

/// A folder that a root of any user namespace can walk through, with busybox as an image.
fn folder() -> TempDir {
    assert!(nix::unistd::geteuid().is_root(), "needs root");
    let root = tempfile::Builder::new().prefix("weft-ns-").tempdir().unwrap();
    fs::set_permissions(root.path(), Permissions::from_mode(0o711)).unwrap();
    let image = root.path().join("image");
    for folder in ["bin", "proc", "dev", "etc"] {
        fs::create_dir_all(image.join(folder)).unwrap();
    }
    for file in ["hostname", "hosts", "resolv.conf"] {
        File::create(image.join("etc").join(file)).unwrap();
    }
    fs::copy("/bin/busybox", image.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "cat", "hostname", "stat", "setsid", "ls"] {
        std::os::unix::fs::symlink("busybox", image.join("bin").join(applet)).unwrap();
    }
    root
}

fn command(root: &Path, id: &str) -> Command {
    let mut command = Command::new(SHIM);
    command.args(["-namespace", NAMESPACE, "-id", id, "-address", "/nowhere"]);
    command.env("WEFT_RUN_DIR", root.join("run")).env("WEFT_RUNTIME_ROOT", root.join("runtime"));
    command.env("WEFT_CONFIG", "").current_dir("/");
    command
}

async fn connect(socket: &Path) -> Client {
    let address = format!("unix://{}", socket.display());
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match Client::connect(&address).await {
            Ok(client) => return client,
            Err(err) => assert!(Instant::now() < end, "{err}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

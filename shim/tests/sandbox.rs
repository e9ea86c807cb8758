//! The shim as containerd uses it: the built binary, its command line, its socket and the Sandbox service, on the real
//! kernel. The witnesses are `/proc`, `nsenter` and the files. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, UnknownValueRef};
use serde_json::Value;
use tempfile::TempDir;
use ttrpc::Code;
use ttrpc::asynchronous::Client;
use ttrpc::context::Context;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-weft-v1");
const NAMESPACE: &str = "k8s.io";
const GRPC: &str = "/run/containerd/containerd.sock";

/// Modes of CRI's namespaces.
const POD: u64 = 0;
const NODE: u64 = 2;

/// What deadlines are multiplied by: `WEFT_TEST_SLOWNESS`, 1 if it is not set. An emulated machine is 20 times slower.
fn slowness() -> u32 {
    std::env::var("WEFT_TEST_SLOWNESS").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10) * slowness();
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A zombie has no namespaces any more; who reaps it is not the shim's business once the shim is dead.
fn is_alive(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/ns/net")).is_ok()
}

fn namespace_of(pid: u32, name: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/{name}")).unwrap().ino()
}

/// A pod and all that its shim may leave behind.
struct Pod {
    root: TempDir,
    id: String,
    netns: PathBuf,
    cgroup: String,
}

impl Pod {
    fn new() -> Pod {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("weft-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = tempfile::tempdir().unwrap();
        let netns = root.path().join("netns");
        fs::write(&netns, "").unwrap();
        run("unshare", &[&format!("--net={}", netns.display()), "true"]);
        fs::create_dir_all(root.path().join("bundle")).unwrap();
        Pod { cgroup: format!("/{id}"), id, netns, root }
    }

    fn bundle(&self) -> PathBuf {
        self.root.path().join("bundle")
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("run/pods").join(NAMESPACE).join(&self.id)
    }

    fn command(&self, bundle: &Path) -> Command {
        let mut command = Command::new(SHIM);
        command.args([
            "-namespace",
            NAMESPACE,
            "-address",
            GRPC,
            "-publish-binary",
            "/bin/true",
            "-id",
            &self.id,
        ]);
        command.current_dir(bundle).env("WEFT_RUN_DIR", self.root.path().join("run"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// As containerd 2.3 and later do.
    fn start_in(&self, bundle: &Path) -> Output {
        let params = BootstrapParams {
            instance_id: self.id.clone(),
            namespace: NAMESPACE.into(),
            socket_dir: Some(self.root.path().join("s").display().to_string()),
            ..Default::default()
        };
        feed(self.command(bundle).arg("start"), &params.write_to_bytes().unwrap())
    }

    fn start(&self) -> String {
        let output = self.start_in(&self.bundle());
        assert!(output.stderr.is_empty() && output.status.success(), "{output:?}");
        self.started();
        BootstrapResult::parse_from_bytes(&output.stdout).unwrap().address
    }

    fn delete(&self) -> DeleteResponse {
        let bundle = self.bundle().display().to_string();
        let output = feed(self.command(Path::new("/")).args(["-bundle", &bundle, "delete"]), b"");
        assert!(output.status.success(), "{output:?}");
        DeleteResponse::parse_from_bytes(&output.stdout).unwrap()
    }

    /// The daemon's pid. `start` may return before the daemon's command line can be read: the kernel wakes the parent
    /// of a vfork(2) before it has set up the new one's arguments.
    fn started(&self) -> u32 {
        until("the daemon runs", || self.daemon().is_some());
        self.daemon().unwrap()
    }

    /// The daemon's pid, by its command line.
    fn daemon(&self) -> Option<u32> {
        fs::read_dir("/proc").unwrap().find_map(|entry| {
            let pid = entry.unwrap().file_name().to_str()?.parse().ok()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let mut words = line.split(|byte| *byte == 0);
            (words.any(|word| word == b"-id") && words.next()? == self.id.as_bytes()).then_some(pid)
        })
    }

    fn create(&self, netns: &str, network: u64, pid: u64, user: Option<u64>) -> api::CreateSandboxRequest {
        let options = Any {
            type_url: "runtime.v1.PodSandboxConfig".into(),
            value: pod_config(&self.cgroup, network, pid, user),
            ..Default::default()
        };
        api::CreateSandboxRequest {
            sandbox_id: self.id.clone(),
            bundle_path: self.bundle().display().to_string(),
            options: Some(options).into(),
            netns_path: netns.into(),
            ..Default::default()
        }
    }

    fn create_own_net(&self, pid: u64) -> api::CreateSandboxRequest {
        self.create(self.netns.to_str().unwrap(), POD, pid, None)
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let roots = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
        roots.map(|root| root.join(&self.id).join(&self.id)).filter(|dir| dir.exists()).collect()
    }

    fn is_mounted(&self) -> bool {
        fs::read_to_string("/proc/self/mountinfo").unwrap().contains(self.dir().join("shm").to_str().unwrap())
    }

    fn in_netns(&self) -> Vec<u32> {
        let inode = fs::metadata(&self.netns).unwrap().ino();
        let pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        pids.filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns.ino() == inode))
            .collect()
    }

    /// Nothing of the pod is left but what the test itself made.
    fn assert_gone(&self) {
        until("the daemon has ended", || self.daemon().is_none());
        assert_eq!(self.in_netns(), Vec::<u32>::new());
        assert!(!self.dir().exists(), "the pod's files are left");
        assert!(!self.is_mounted(), "the shared memory is left");
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(self.root.path().join("s")).unwrap().count(), 0, "a socket is left");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(pid) = self.daemon() {
            run("kill", &["-9", &pid.to_string()]);
            until("the daemon is dead", || self.daemon().is_none());
            if !std::thread::panicking() {
                self.delete();
            }
        }
        run("umount", &[self.netns.to_str().unwrap()]);
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        for root in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            // The parents, which the shim leaves to whoever chose them; most hierarchies have none.
            drop(fs::remove_dir(root.join(&self.id)));
        }
    }
}

fn feed(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

// A second, independent writer of protobuf's wire format: the numbers are CRI's, not our .proto file's.
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

fn pod_config(cgroup_parent: &str, network: u64, pid: u64, user: Option<u64>) -> Vec<u8> {
    let mut modes = [number(1, network), number(2, pid)].concat();
    modes.extend(user.into_iter().flat_map(|mode| field(5, &number(1, mode))));
    let sysctl = [field(1, b"kernel.shm_rmid_forced"), field(2, b"1")].concat();
    let linux = [field(1, cgroup_parent.as_bytes()), field(2, &field(1, &modes)), field(3, &sysctl)].concat();
    let metadata = [field(1, b"web"), field(2, b"uid-1"), field(3, b"default")].concat();
    let dns = [field(1, b"10.0.0.10"), field(2, b"svc.local"), field(3, b"ndots:5")].concat();
    let port = field(5, &number(2, 80)); // A field that weft does not read.
    [field(1, &metadata), field(2, b"pod-host"), field(4, &dns), port, field(8, &linux)].concat()
}

async fn connect(address: &str) -> SandboxClient {
    SandboxClient::new(Client::connect(address).await.unwrap())
}

fn ctx() -> Context {
    ttrpc::context::with_timeout(20_000_000_000 * i64::from(slowness()))
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code.enum_value().unwrap(), status.message),
        other => panic!("not a status: {other}"),
    }
}

async fn created_and_started(
    client: &SandboxClient,
    request: &api::CreateSandboxRequest,
) -> api::StartSandboxResponse {
    client.create_sandbox(ctx(), request).await.unwrap();
    let id = request.sandbox_id.clone();
    client
        .start_sandbox(ctx(), &api::StartSandboxRequest { sandbox_id: id, ..Default::default() })
        .await
        .unwrap()
}

async fn status(client: &SandboxClient, pod: &Pod) -> api::SandboxStatusResponse {
    let request =
        api::SandboxStatusRequest { sandbox_id: pod.id.clone(), verbose: true, ..Default::default() };
    client.sandbox_status(ctx(), &request).await.unwrap()
}

async fn stop(client: &SandboxClient, pod: &Pod) {
    let request = api::StopSandboxRequest { sandbox_id: pod.id.clone(), ..Default::default() };
    client.stop_sandbox(ctx(), &request).await.unwrap();
}

async fn shutdown(client: &SandboxClient, pod: &Pod) {
    let request = api::ShutdownSandboxRequest { sandbox_id: pod.id.clone(), ..Default::default() };
    client.shutdown_sandbox(ctx(), &request).await.unwrap();
}

async fn wait(address: String, id: String) -> api::WaitSandboxResponse {
    let request = api::WaitSandboxRequest { sandbox_id: id, ..Default::default() };
    connect(&address).await.wait_sandbox(ctx(), &request).await.unwrap()
}

#[test]
fn start_answers_with_protobuf_and_nothing_else() {
    let pod = Pod::new();
    let output = pod.start_in(&pod.bundle());
    assert!(output.stderr.is_empty(), "{output:?}");
    pod.started();
    let result = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    let capabilities = result.special_fields.unknown_fields().get(6).unwrap();
    let UnknownValueRef::LengthDelimited(bytes) = capabilities else { panic!("{capabilities:?}") };
    assert!(String::from_utf8_lossy(bytes).ends_with("containerd.types.MountCapabilities"));

    let socket = Path::new(result.address.strip_prefix("unix://").unwrap());
    assert!(socket.as_os_str().len() <= 107);
    assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(socket.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_to_string(pod.bundle().join("address")).unwrap(), result.address);
}

#[test]
fn the_daemon_holds_nothing_of_its_launcher() {
    let pod = Pod::new();
    let mut shell = Command::new("sh");
    // Descriptor 9 is left open by a careless launcher.
    let left_open = "/etc/hostname";
    shell.args([
        "-c",
        "exec 9</etc/hostname; exec \"$@\"",
        "sh",
        SHIM,
        "-namespace",
        NAMESPACE,
        "-id",
        &pod.id,
        "start",
    ]);
    shell.current_dir(pod.bundle()).env("WEFT_RUN_DIR", pod.root.path().join("run"));
    let params = BootstrapParams {
        instance_id: pod.id.clone(),
        namespace: NAMESPACE.into(),
        socket_dir: Some(pod.root.path().join("s").display().to_string()),
        ..Default::default()
    };
    assert!(feed(&mut shell, &params.write_to_bytes().unwrap()).status.success());
    let pid = pod.started();
    until("the daemon has taken its listener", || {
        fs::read_link(format!("/proc/{pid}/fd/0")).is_ok_and(|target| target == Path::new("/dev/null"))
    });
    until("the daemon has its name", || {
        fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "containerd-shim\n"
    });
    for fd in [1, 2] {
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap(), Path::new("/dev/null"));
    }
    // What the daemon has open for a moment may be closed before its link is read.
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut targets = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    assert!(targets.all(|target| target != Path::new(left_open)));
    assert_eq!(fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(), 1, "one thread");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert_eq!(
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap(),
        pid.to_string(),
        "own session"
    );
}

#[test]
fn an_older_containerd_gets_json_or_an_address() {
    let pod = Pod::new();
    for (bundle, want) in [("io.containerd.sandbox.controller.v1.shim/k8s.io/x", true), ("plain", false)] {
        let bundle = pod.root.path().join(bundle);
        fs::create_dir_all(&bundle).unwrap();
        // The options that containerd 1.7 sends happen to be no parameters of ours.
        let options = Any { type_url: "containerd.runc.v1.Options".into(), ..Default::default() };
        let output = feed(pod.command(&bundle).arg("start"), &options.write_to_bytes().unwrap());
        assert!(output.stderr.is_empty() && output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let json = serde_json::from_str::<Value>(&text);
        assert_eq!(json.is_ok(), want, "{text}");
        let address = json.map_or(text, |json| {
            assert_eq!((&json["version"], &json["protocol"]), (&3.into(), &"ttrpc".into()));
            json["address"].as_str().unwrap().to_owned()
        });
        assert!(address.starts_with("unix:///run/containerd/s/"), "{address}");
    }
    run("kill", &["-9", &pod.started().to_string()]);
    until("the daemon is dead", || pod.daemon().is_none());
    fs::copy(pod.root.path().join("plain/address"), pod.bundle().join("address")).unwrap();
    pod.delete();
    let address = fs::read_to_string(pod.bundle().join("address")).unwrap();
    assert!(!Path::new(address.strip_prefix("unix://").unwrap()).exists());
}

#[test]
fn containers_of_one_group_share_a_daemon() {
    let (pod, member) = (Pod::new(), Pod::new());
    let address = pod.start();
    let bundle = pod.root.path().join("member");
    fs::create_dir(&bundle).unwrap();
    let spec = format!(r#"{{"annotations":{{"io.kubernetes.cri.sandbox-id":"{}"}}}}"#, pod.id);
    fs::write(bundle.join("config.json"), spec).unwrap();
    let params = BootstrapParams {
        instance_id: member.id.clone(),
        namespace: NAMESPACE.into(),
        socket_dir: Some(pod.root.path().join("s").display().to_string()),
        ..Default::default()
    };
    let output = feed(member.command(&bundle).arg("start"), &params.write_to_bytes().unwrap());
    assert_eq!(BootstrapResult::parse_from_bytes(&output.stdout).unwrap().address, address);
    assert!(member.daemon().is_none());
}

#[test]
fn a_dead_daemons_socket_is_replaced() {
    let pod = Pod::new();
    let address = pod.start();
    let first = pod.daemon().unwrap();
    run("kill", &["-9", &first.to_string()]);
    until("the daemon is dead", || pod.daemon().is_none());
    assert_eq!(pod.start(), address);
    assert_ne!(pod.daemon().unwrap(), first);
}

#[test]
fn a_failing_start_says_why() {
    let pod = Pod::new();
    let output = feed(pod.command(&pod.bundle()).env("WEFT_FAST_PATH", "maybe").arg("start"), b"");
    assert!(!output.status.success() && output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("environment variable WEFT_FAST_PATH: got \"maybe\""), "{text}");
}

#[tokio::test]
async fn a_pod_from_create_to_shutdown() {
    let pod = Pod::new();
    let address = pod.start();
    let client = connect(&address).await;
    assert_eq!(status(&client, &pod).await.state, "SANDBOX_NOTREADY");

    let started = created_and_started(&client, &pod.create_own_net(1)).await;
    let pid = started.pid;
    assert_eq!(Some(pid), pod.daemon());
    assert_eq!(namespace_of(pid, "net"), fs::metadata(&pod.netns).unwrap().ino());
    for name in ["ipc", "uts"] {
        assert_ne!(namespace_of(pid, name), namespace_of(std::process::id(), name), "{name}");
    }
    let target = pid.to_string();
    assert_eq!(run("nsenter", &["-t", &target, "-u", "hostname"]), "pod-host\n");
    let sysctl = |name| run("nsenter", &["-t", &target, "-n", "-i", "cat", &format!("/proc/sys/{name}")]);
    assert_eq!(sysctl("net/ipv4/ip_unprivileged_port_start"), "0\n");
    assert_eq!(sysctl("net/ipv4/ping_group_range"), "0\t2147483647\n");
    assert_eq!(sysctl("kernel/shm_rmid_forced"), "1\n");
    assert_eq!(fs::read_to_string(pod.dir().join("hostname")).unwrap(), "pod-host\n");
    assert_eq!(fs::read(pod.dir().join("hosts")).unwrap(), fs::read("/etc/hosts").unwrap());
    let resolv = fs::read_to_string(pod.dir().join("resolv.conf")).unwrap();
    assert_eq!(resolv, "search svc.local\nnameserver 10.0.0.10\noptions ndots:5\n");
    let shm = fs::read_to_string("/proc/self/mounts").unwrap();
    let shm = shm.lines().find(|line| line.contains(pod.dir().join("shm").to_str().unwrap())).unwrap();
    assert!(shm.contains("nosuid,nodev,noexec") && shm.contains("size=65536k"), "{shm}");
    assert!(!pod.cgroups().is_empty());
    for cgroup in pod.cgroups() {
        let members = || fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        until("the sandbox is in its cgroup", || members() == format!("{pid}\n"));
    }
    let spec: Value = serde_json::from_slice(&started.spec.value).unwrap();
    assert_eq!(started.spec.type_url, "types.containerd.io/opencontainers/runtime-spec/1/Spec");
    assert_eq!(spec["linux"]["cgroupsPath"], format!("{}/{}", pod.cgroup, pod.id));

    let ready = status(&client, &pod).await;
    assert_eq!((ready.state.as_str(), ready.pid), ("SANDBOX_READY", pid));
    assert_eq!(ready.created_at, started.created_at);
    assert_eq!(ready.info["networkSandboxPath"], pod.netns.display().to_string());
    let info: Value = serde_json::from_str(&ready.info["info"]).unwrap();
    assert_eq!((&info["pid"], &info["config"]["metadata"]["name"]), (&pid.into(), &"web".into()));
    let again = code(client.create_sandbox(ctx(), &pod.create_own_net(1)).await);
    assert_eq!(again.0, Code::ALREADY_EXISTS);

    let waiters =
        [tokio::spawn(wait(address.clone(), pod.id.clone())), tokio::spawn(wait(address, pod.id.clone()))];
    stop(&client, &pod).await;
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().exit_status, 0);
    }
    assert_eq!(pod.in_netns(), Vec::<u32>::new());
    for name in ["net", "ipc", "uts"] {
        assert_eq!(namespace_of(pid, name), namespace_of(std::process::id(), name), "{name}");
    }
    until("the cgroup is gone", || pod.cgroups().is_empty());
    assert!(!pod.is_mounted());
    let stopped = status(&client, &pod).await;
    assert_eq!((stopped.state.as_str(), stopped.pid), ("SANDBOX_NOTREADY", 0));
    assert!(stopped.exited_at.is_some());
    stop(&client, &pod).await;

    shutdown(&client, &pod).await;
    pod.assert_gone();
    // containerd runs it after every normal end.
    pod.delete();
}

/// As below a kubelet's cgroup. In version 2 a cgroup that passes controllers on cannot hold processes (cgroups(7)), and one
/// that holds processes cannot pass them on: the sandbox must be in a leaf.
#[tokio::test]
async fn the_parent_of_the_sandboxs_cgroup_holds_no_process() {
    use containerd_shim_protos::{cgroups, cgroups_v2};
    let pod = Pod::new();
    let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let parent = Path::new("/sys/fs/cgroup").join(if is_v2 { "" } else { "pids" }).join(&pod.id);
    fs::create_dir(&parent).unwrap();
    if is_v2 {
        fs::write(parent.join("cgroup.subtree_control"), "+pids +memory +cpu").unwrap();
    }
    let client = connect(&pod.start()).await;
    let pid = created_and_started(&client, &pod.create_own_net(1)).await.pid;
    let members = |folder: &Path| fs::read_to_string(folder.join("cgroup.procs")).unwrap();
    until("the sandbox is in its cgroup", || members(&parent.join(&pod.id)) == format!("{pid}\n"));
    assert_eq!(members(&parent), "");

    let request = api::SandboxMetricsRequest { sandbox_id: pod.id.clone(), ..Default::default() };
    let data = client.sandbox_metrics(ctx(), &request).await.unwrap().metrics.data.clone().unwrap();
    let (kind, processes) = if is_v2 {
        let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&data.value).unwrap();
        assert!(metrics.cpu.usage_usec > 0, "{metrics}");
        ("io.containerd.cgroups.v2.Metrics", metrics.pids.current)
    } else {
        let metrics = cgroups::metrics::Metrics::parse_from_bytes(&data.value).unwrap();
        ("io.containerd.cgroups.v1.Metrics", metrics.pids.current)
    };
    assert_eq!(data.type_url, kind);
    assert!(processes >= 1);

    stop(&client, &pod).await;
    until("the cgroup is gone", || pod.cgroups().is_empty());
    assert!(parent.exists(), "it is the kubelet's");
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

/// CreateSandbox does not wait for it.
#[tokio::test]
async fn a_cgroup_that_cannot_be_made_is_told_at_the_start() {
    let mut pod = Pod::new();
    // A line of /proc/PID/cgroup has to stay one (`cgroup_mkdir` in kernel/cgroup/cgroup.c).
    pod.cgroup.push_str("/two\nlines");
    let client = connect(&pod.start()).await;
    client.create_sandbox(ctx(), &pod.create_own_net(1)).await.unwrap();
    let request = api::StartSandboxRequest { sandbox_id: pod.id.clone(), ..Default::default() };
    let (_, message) = code(client.start_sandbox(ctx(), &request).await);
    assert!(message.contains("create cgroup") && message.contains("os error 22"), "{message}");
    code(client.start_sandbox(ctx(), &request).await);
    // As containerd does then.
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

#[tokio::test]
async fn the_simple_questions_are_answered() {
    let pod = Pod::new();
    let client = connect(&pod.start()).await;
    let request = api::PlatformRequest { sandbox_id: pod.id.clone(), ..Default::default() };
    assert_eq!(client.platform(ctx(), &request).await.unwrap().platform.os, "linux");
    let request = api::PingRequest { sandbox_id: pod.id.clone(), ..Default::default() };
    client.ping_sandbox(ctx(), &request).await.unwrap();
    let request = api::PingRequest { sandbox_id: "another".into(), ..Default::default() };
    assert_eq!(code(client.ping_sandbox(ctx(), &request).await).0, Code::NOT_FOUND);
    // One error would fail containerd's list of all pods.
    let request = api::SandboxMetricsRequest { sandbox_id: pod.id.clone(), ..Default::default() };
    let metrics = client.sandbox_metrics(ctx(), &request).await.unwrap().metrics;
    assert_eq!((metrics.id.as_str(), metrics.data.value.len()), (pod.id.as_str(), 0));
    assert_eq!(metrics.data.type_url, "io.containerd.cgroups.v2.Metrics");
    let request = api::StartSandboxRequest { sandbox_id: pod.id.clone(), ..Default::default() };
    assert_eq!(code(client.start_sandbox(ctx(), &request).await).0, Code::FAILED_PRECONDITION);
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

async fn call(
    address: &str,
    service: &str,
    method: &str,
    payload: Vec<u8>,
) -> ttrpc::Result<ttrpc::Response> {
    let client = Client::connect(address).await.unwrap();
    let (service, method) = (service.to_owned(), method.to_owned());
    client.request(ttrpc::Request { service, method, payload, ..Default::default() }).await
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented() {
    let pod = Pod::new();
    let address = pod.start();
    for (service, method) in [
        ("containerd.task.v3.Task", "Dance"),
        ("containerd.task.v2.Task", "Dance"),
        ("containerd.runtime.sandbox.v1.Sandbox", "Dance"),
        ("weft.network.v1.PodNetwork", "Dance"),
        ("containerd.task.v4.Task", "Create"),
        ("containerd.runtime.sandbox.v2.Sandbox", "CreateSandbox"),
        ("containerd.services.streaming.v1.Streaming", "Stream"),
        ("containerd.services.transfer.v1.Transfer", "Transfer"),
    ] {
        let (got, message) = code(call(&address, service, method, Vec::new()).await);
        assert_eq!(got, Code::UNIMPLEMENTED, "{service}: {message}");
    }
    shutdown(&connect(&address).await, &pod).await;
    pod.assert_gone();
}

/// In the words of containerd 2.4 when the kubelet resizes a pod (`Update` in plugins/sandbox/controller.go).
#[tokio::test]
async fn an_update_of_the_pods_resources_is_accepted_and_changes_nothing() {
    let pod = Pod::new();
    let address = pod.start();
    let client = connect(&address).await;
    created_and_started(&client, &pod.create_own_net(1)).await;
    // Of version 1 of cgroups, and of version 2.
    let files =
        format!("cat /sys/fs/cgroup/*/{0}/*limit_in_bytes || cat /sys/fs/cgroup/{0}/memory.max", pod.id);
    let limits = || run("sh", &["-c", &files]);
    let before = limits();
    let resources = br#"{"Overhead":null,"Resources":{"memory_limit_in_bytes":33554432}}"#;
    let update = |id: &str| {
        let any = [field(1, b"io.containerd.cri.v1/UpdatedResources"), field(2, resources)].concat();
        let extension = field(7, &[field(1, b"updated-resources"), field(2, &any)].concat());
        [field(1, id.as_bytes()), field(4, &extension), field(5, b"extensions")].concat()
    };
    let service = "containerd.runtime.sandbox.v1.Sandbox";
    call(&address, service, "UpdateSandbox", update(&pod.id)).await.unwrap();
    assert_eq!(limits(), before);
    let other = code(call(&address, service, "UpdateSandbox", update("another")).await);
    assert_eq!(other, (Code::NOT_FOUND, "sandbox another is not this shim's".into()));
    stop(&client, &pod).await;
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

/// Asked each second by containerd.
#[tokio::test]
async fn the_pods_counters_come_from_files_that_stay_open() {
    let pod = Pod::new();
    let client = connect(&pod.start()).await;
    let daemon = created_and_started(&client, &pod.create_own_net(1)).await.pid;
    let files = || {
        let links = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().flatten();
        let mut files: Vec<_> = links
            .filter_map(|link| Some((link.file_name(), fs::read_link(link.path()).ok()?)))
            .filter(|(_, target)| target.starts_with("/sys/fs/cgroup"))
            .collect();
        files.sort();
        files
    };
    let metrics = async || {
        let request = api::SandboxMetricsRequest { sandbox_id: pod.id.clone(), ..Default::default() };
        client.sandbox_metrics(ctx(), &request).await.unwrap().metrics
    };
    // The files that the move itself writes to come and go.
    let moved =
        |folder: &PathBuf| fs::read_to_string(folder.join("cgroup.procs")).unwrap() == format!("{daemon}\n");
    until("the sandbox is in its cgroups", || pod.cgroups().iter().all(moved) && files().is_empty());
    assert!(!metrics().await.data.value.is_empty());
    let open = files();
    assert!((10..=48).contains(&open.len()), "{open:?}");
    for _ in 0..20 {
        assert!(!metrics().await.data.value.is_empty());
    }
    assert_eq!(files(), open, "the same, under the same numbers");
    stop(&client, &pod).await;
    until("the cgroup is gone", || pod.cgroups().is_empty());
    // The kubelet removes what the whole pod used.
    for folder in open.iter().filter_map(|(_, file)| file.parent()) {
        until("it is removed", || fs::remove_dir(folder).is_ok() || !folder.exists());
    }
    assert!(metrics().await.data.value.is_empty());
    assert_eq!(files(), []);
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

#[tokio::test]
async fn a_pod_on_the_nodes_network_stays_there() {
    let pod = Pod::new();
    let client = connect(&pod.start()).await;
    // A sysctl of the IPC namespace is the pod's own all the same.
    let pid = created_and_started(&client, &pod.create("", NODE, NODE, None)).await.pid;
    for name in ["net", "uts", "pid"] {
        assert_eq!(namespace_of(pid, name), namespace_of(std::process::id(), name), "{name}");
    }
    assert_ne!(namespace_of(pid, "ipc"), namespace_of(std::process::id(), "ipc"));
    stop(&client, &pod).await;
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

#[tokio::test]
async fn a_shared_pid_namespace_has_a_process_1_that_reaps() {
    let pod = Pod::new();
    let client = connect(&pod.start()).await;
    let pid = created_and_started(&client, &pod.create_own_net(POD)).await.pid;
    let daemon = pod.daemon().unwrap();
    assert_ne!(pid, daemon);
    assert_ne!(namespace_of(pid, "pid"), namespace_of(daemon, "pid"));
    assert_eq!(namespace_of(daemon, "pid_for_children"), namespace_of(daemon, "pid"));
    for name in ["net", "ipc", "uts"] {
        assert_eq!(namespace_of(pid, name), namespace_of(daemon, name), "{name}");
    }
    let status_of = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let in_both = status_of.lines().find(|line| line.starts_with("NSpid:")).unwrap();
    assert_eq!(in_both.split_whitespace().last(), Some("1"));
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.is_empty(), "what containerd knows is not for the pod: {environment:?}");

    let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let orphan =
        run("nsenter", &["-t", &pid.to_string(), "-p", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]);
    until("the orphan has a new parent", || !children().is_empty());
    let orphan_outside = children();
    assert_ne!(orphan.trim(), orphan_outside.trim());
    run("kill", &["-9", orphan_outside.trim()]);
    until("the orphan is reaped", || children().is_empty());

    run("nsenter", &["-t", &pid.to_string(), "-p", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]);
    until("the second orphan has a new parent", || !children().is_empty());
    let left_behind = children().trim().to_owned();
    stop(&client, &pod).await;
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!Path::new(&format!("/proc/{left_behind}")).exists());
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

#[tokio::test]
async fn the_sandbox_ends_with_its_process_1() {
    let pod = Pod::new();
    let address = pod.start();
    let client = connect(&address).await;
    let pid = created_and_started(&client, &pod.create_own_net(POD)).await.pid;
    let waiter = tokio::spawn(wait(address, pod.id.clone()));
    run("kill", &["-9", &pid.to_string()]);
    assert_eq!(waiter.await.unwrap().exit_status, 137);
    assert_eq!(status(&client, &pod).await.state, "SANDBOX_NOTREADY");
    stop(&client, &pod).await;
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

#[tokio::test]
async fn after_a_killed_daemon_delete_leaves_nothing() {
    let pod = Pod::new();
    let address = pod.start();
    let client = connect(&address).await;
    let init = created_and_started(&client, &pod.create_own_net(POD)).await.pid;
    run("kill", &["-9", &pod.daemon().unwrap().to_string()]);
    // containerd runs `delete` when its connection closes, and so do all descriptors of a dead process at once.
    let socket = address.strip_prefix("unix://").unwrap().to_owned();
    until("the daemon is dead", || std::os::unix::net::UnixStream::connect(&socket).is_err());
    assert!(pod.dir().exists() && pod.is_mounted() && !pod.cgroups().is_empty());
    let begin = Instant::now();
    let response = pod.delete();
    assert!(begin.elapsed() < Duration::from_secs(1) * slowness());
    assert_eq!(response.exit_status, 137);
    assert!(response.exited_at.seconds > 0);
    until("process 1 has been reaped", || !is_alive(init));
    pod.assert_gone();
    pod.delete();
    // containerd may have removed the bundle under the feet of `delete`.
    fs::remove_dir_all(pod.bundle()).unwrap();
    pod.delete();
}

/// Whoever removes the pod's folder may be killed when the state has gone and the rest has not.
#[test]
fn delete_after_a_killed_delete_leaves_nothing() {
    let pod = Pod::new();
    fs::create_dir_all(pod.dir().join("shm")).unwrap();
    for name in ["hosts", ".hostname"] {
        fs::write(pod.dir().join(name), "").unwrap();
    }
    pod.delete();
    assert!(!pod.dir().exists());
}

/// containerd runs `delete` after the end of every container too, and the pod lives on.
#[tokio::test]
async fn delete_of_a_container_does_not_hurt_the_pod() {
    let pod = Pod::new();
    let client = connect(&pod.start()).await;
    let pid = created_and_started(&client, &pod.create_own_net(POD)).await.pid;
    // A member's bundle knows the address from containerd; it may have lost its configuration.
    let member = pod.root.path().join("member");
    fs::create_dir(&member).unwrap();
    let address = fs::read_to_string(pod.bundle().join("address")).unwrap();
    let json = serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" });
    fs::write(member.join("bootstrap.json"), json.to_string()).unwrap();
    for config in [None, Some("{}")] {
        if let Some(config) = config {
            fs::write(member.join("config.json"), config).unwrap();
        }
        let bundle = member.display().to_string();
        let mut delete = pod.command(&member);
        let output = feed(delete.args(["-id", "member", "-bundle", &bundle, "delete"]), b"");
        assert!(output.status.success(), "{output:?}");
        assert!(is_alive(pid));
        assert_eq!(status(&client, &pod).await.state, "SANDBOX_READY");
    }
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

/// As when the client of RunPodSandbox goes away: containerd hangs up, runs `delete`, and forgets the pod.
#[tokio::test]
async fn delete_ends_a_pod_that_containerd_gave_up() {
    let pod = Pod::new();
    let client = connect(&pod.start()).await;
    let init = created_and_started(&client, &pod.create_own_net(POD)).await.pid;
    drop(client);
    assert_eq!(pod.delete().exit_status, 137);
    assert!(!is_alive(init));
    pod.assert_gone();
    pod.delete();
}

/// As when containerd's client goes away during `start`, after which no `delete` comes.
#[test]
fn a_daemon_that_nobody_connects_to_ends() {
    let pod = Pod::new();
    pod.start();
    let deadline = Instant::now() + Duration::from_secs(60);
    while pod.daemon().is_some() {
        assert!(Instant::now() < deadline, "it waits for ever");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    pod.assert_gone();
}

/// As when containerd 2.0 starts again, which removes the bundles of its sandboxes and connects to none.
#[tokio::test]
async fn a_pod_whose_bundle_has_gone_ends_when_nobody_is_connected() {
    let pod = Pod::new();
    let client = connect(&pod.start()).await;
    let init = created_and_started(&client, &pod.create_own_net(POD)).await.pid;
    std::fs::remove_dir_all(pod.bundle()).unwrap();
    drop(client);
    let deadline = Instant::now() + Duration::from_secs(60);
    while pod.daemon().is_some() {
        assert!(Instant::now() < deadline, "it waits for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!is_alive(init));
    std::fs::create_dir(pod.bundle()).unwrap();
    pod.assert_gone();
}

/// As when a shim does not answer a restarted containerd in five seconds.
#[tokio::test]
async fn delete_ends_a_daemon_that_hangs() {
    let pod = Pod::new();
    let client = connect(&pod.start()).await;
    let init = created_and_started(&client, &pod.create_own_net(POD)).await.pid;
    drop(client);
    run("kill", &["-STOP", &pod.daemon().unwrap().to_string()]);
    assert_eq!(pod.delete().exit_status, 137);
    until("process 1 has been reaped", || !is_alive(init));
    pod.assert_gone();
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_made_leaves_nothing() {
    let pod = Pod::new();
    let client = connect(&pod.start()).await;
    let daemon = pod.daemon().unwrap();
    let user = code(client.create_sandbox(ctx(), &pod.create("", POD, 1, Some(POD))).await);
    assert_eq!(user, (Code::INVALID_ARGUMENT, "user namespace: got 0 uid mappings, want 1".into()));
    // A path that is no network namespace: found out after files, shared memory and cgroup are made.
    let wrong = code(client.create_sandbox(ctx(), &pod.create("/proc/self/ns/uts", POD, 1, None)).await);
    assert_eq!(wrong.0, Code::INTERNAL);
    assert!(wrong.1.starts_with("enter network namespace /proc/self/ns/uts: "), "{}", wrong.1);
    assert!(!pod.dir().exists() && !pod.is_mounted());
    until("the cgroup is gone", || pod.cgroups().is_empty());
    for name in ["net", "ipc", "uts"] {
        assert_eq!(namespace_of(daemon, name), namespace_of(std::process::id(), name), "{name}");
    }
    created_and_started(&client, &pod.create_own_net(1)).await;
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

#[tokio::test]
async fn signals_do_not_end_a_pod() {
    let pod = Pod::new();
    let client = connect(&pod.start()).await;
    created_and_started(&client, &pod.create_own_net(1)).await;
    for signal in ["-TERM", "-INT", "-PIPE"] {
        run("kill", &[signal, &pod.daemon().unwrap().to_string()]);
        assert_eq!(status(&client, &pod).await.state, "SANDBOX_READY", "{signal}");
    }
    shutdown(&client, &pod).await;
    pod.assert_gone();
}

#[test]
fn the_program_says_what_it_is() {
    assert!(run(SHIM, &["-v"]).starts_with("containerd-shim-weft-v1 0."));
    let output = feed(Command::new(SHIM).arg("-info"), b"");
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.weft.v1");
    let features: Value = serde_json::from_slice(&info.features.value).unwrap();
    assert_eq!(features, serde_json::from_str::<Value>(&run("runc", &["features"])).unwrap());
    assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&"user".into()));
}

#[test]
fn the_features_are_those_of_the_runtime_that_is_asked_for() {
    // Debian 12's crun does not know the word.
    let of = |binary: &str| {
        let output = Command::new(binary).arg("features").output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    assert_ne!(of("runc"), of("crun"));
    for (configured, named, asked) in
        [("runc", "", "runc"), ("runc", "crun", "crun"), ("crun", "runc", "runc")]
    {
        let options = Options { binary_name: named.into(), ..Default::default() };
        let value = options.write_to_bytes().unwrap();
        let options = Any { type_url: "containerd.runc.v1.Options".into(), value, ..Default::default() };
        let mut command = Command::new(SHIM);
        command.arg("-info").env("WEFT_RUNTIME", configured);
        let output = feed(&mut command, &options.write_to_bytes().unwrap());
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
        let features =
            info.features.as_ref().map(|features| String::from_utf8(features.value.clone()).unwrap());
        assert_eq!(features, of(asked), "{configured:?} {named:?}");
    }
}

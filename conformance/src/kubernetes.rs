//! A Kubernetes cluster of one node: etcd, API server, controllers, scheduler and kubelet, all inside a [`Node`].
//!
//! The programs are those of `conformance/tools/kubernetes`: `WEFT_KUBERNETES_DIR` names the directory that its `build.sh` filled;
//! without it the script is run.

mod config;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::background::Background;
use crate::image::{self, Entry, Image, Layer};
use crate::node::{Node, NodeSpec};
use crate::tools;
use crate::wait::{holds_within, run, try_run, wait_until};

/// How long anything of Kubernetes' may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// The image of Kubernetes' own end-to-end tests: servers and clients in one program, `/agnhost`.
pub const AGNHOST: &str = "weft.test/agnhost:latest";

/// Directories of the kubelet's with fixed names, and what of the cluster's directory stands there: a part of the machine's file
/// system, for the kubelet refuses to tell how full any other is.
const MOUNTS: [(&str, &str); 2] = [("lib", "/var/lib/kubelet"), ("log", "/var/log")];

/// `$@` is the kubelet. It sets six variables of the kernel (setupKernelTunables in pkg/kubelet/cm), which are the machine's, so it
/// runs in a mount namespace where files stand in their places. Its own mounts below /var/lib/kubelet are shared with containerd;
/// containers get an untouched /proc, without which the kernel would refuse them one in a user namespace (mount_too_revealing).
const KUBELET: &str = r#"
set -eu
mount --make-private /proc
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    stand_in=$(mktemp -p /run)
    cat /proc/sys/$name >"$stand_in"
    mount --bind "$stand_in" /proc/sys/$name
    rm "$stand_in"
done
exec "$@"
"#;

/// A running cluster; one that is dropped without [`Cluster::finish`] is taken down all the same.
pub struct Cluster {
    // Fields are dropped in this order: who makes pods ends before the node.
    programs: Programs,
    node: Node,
}

/// Kubernetes' programs; what they complained about is printed when the test fails.
struct Programs {
    kubelet: Mutex<Option<Background>>,
    control: Vec<Background>,
    dir: PathBuf,
}

impl Cluster {
    /// Starts a node, and on it the cluster with the kubelet's `features` (`featureGates`) and a RuntimeClass for each of `classes`,
    /// which are runtime handlers; returns when the node takes pods.
    #[track_caller]
    pub fn start(spec: NodeSpec, classes: &[&str], features: &Value) -> Self {
        let node = Node::start_with(spec);
        node.import(agnhost());
        // Where the kubelet's cAdvisor asks what the containers are (container/containerd/factory.go).
        let socket = node.dir().join("containerd.sock");
        run(node.command("mkdir").arg("/run/containerd"));
        run(node.command("ln").arg("-s").arg(&socket).arg("/run/containerd/containerd.sock"));
        node.cgroups().make();
        let dir = node.dir().join("kubernetes");
        let mut cluster =
            Self { programs: Programs { kubelet: Mutex::new(None), control: Vec::new(), dir }, node };
        cluster.make_directories();
        let cgroup = format!("/{}", cluster.node.cgroups().0);
        for (name, text) in config::files(cluster.dir(), &socket, &cgroup, features) {
            fs::write(cluster.dir().join(name), text).expect("write a file of the cluster");
        }
        cluster.start_control();
        cluster.start_kubelet();
        for class in classes {
            cluster.apply(&json!({
                "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": { "name": class }, "handler": class,
            }));
        }
        cluster.wait_for("the node to take pods", || {
            let node = cluster.try_get("node", config::NODE).unwrap_or_default();
            is_true(&node, "Ready") && node["spec"]["taints"].is_null()
        });
        cluster
    }

    fn make_directories(&self) {
        for (name, place) in MOUNTS {
            let own = self.dir().join(name);
            fs::create_dir_all(&own).expect("make a directory of the cluster");
            let script = "mkdir -p $2; mount --bind $1 $2; mount --make-rshared $2";
            run(self.node.command("sh").args(["-ec", script, "mount"]).arg(own).arg(place));
        }
    }

    fn start_control(&mut self) {
        let dir = self.dir().to_owned();
        let program = self.launch(&mut self.program("etcd"), "etcd", &config::etcd(&dir));
        self.programs.control.push(program);
        let name = "kube-apiserver";
        let program = self.launch(&mut self.program(name), name, &config::api_server(&dir));
        self.programs.control.push(program);
        self.wait_for("the API server", || self.try_kubectl(&["get", "--raw", "/readyz"]).is_ok());
        let name = "kube-controller-manager";
        let program = self.launch(&mut self.program(name), name, &config::controller_manager(&dir));
        self.programs.control.push(program);
        let name = "kube-scheduler";
        let program = self.launch(&mut self.program(name), name, &config::scheduler(&dir));
        self.programs.control.push(program);
    }

    /// The node that the cluster runs on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// A file of the node's that pods may have as a hostPath.
    pub fn host_path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// `kubectl` with `args`, not yet run.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = self.program("kubectl");
        command.args(args);
        command
    }

    /// `kubectl` with `args`, which must succeed; what it printed.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        run(&mut self.kubectl_command(args))
    }

    /// `kubectl` with `args`; the error is what it said.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        try_run(&mut self.kubectl_command(args))
    }

    /// Creates the object, or makes it what it should be. What it needs, such as the service account of a new namespace, may be on
    /// its way.
    #[track_caller]
    pub fn apply(&self, object: &Value) {
        static FILES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = FILES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = self.dir().join(format!("object-{number}.json"));
        fs::write(&file, object.to_string()).expect("write a file of the cluster");
        let mut said = String::new();
        let applied = holds_within(DEADLINE, &mut || {
            let result = self.try_kubectl(&["apply", "-f", &file.to_string_lossy()]);
            said = result.as_ref().err().cloned().unwrap_or_default();
            result.is_ok()
        });
        assert!(applied, "{said}");
    }

    /// An object of the whole cluster's, as kubectl shows it.
    pub fn try_get(&self, kind: &str, name: &str) -> Option<Value> {
        let shown = self.try_kubectl(&["get", kind, name, "-o", "json"]).ok()?;
        serde_json::from_str(&shown).ok()
    }

    /// What `path` of the API answers.
    #[track_caller]
    pub fn raw(&self, path: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", "--raw", path])).expect("the API answers in JSON")
    }

    /// Ends the kubelet by `signal` and starts it again; pods live on.
    #[track_caller]
    pub fn restart_kubelet(&self, signal: Signal) {
        self.kubelet().take().expect("the kubelet was started").end(signal);
        self.start_kubelet();
    }

    fn start_kubelet(&self) {
        let mut command = self.node.command("unshare");
        command.args(["--mount", "--propagation=unchanged", "sh", "-c", KUBELET, "kubelet"]);
        command.arg(program("kubelet"));
        *self.kubelet() = Some(self.launch(&mut command, "kubelet", &config::kubelet(self.dir())));
        self.wait_for("the kubelet to be healthy", || {
            let mut fetch = self.node.command("busybox");
            try_run(fetch.args(["wget", "-q", "-O-", "http://127.0.0.1:10248/healthz"])).is_ok()
        });
    }

    /// Deletes all pods, checks that the kubelet and the node have nothing of them, ends the cluster and finishes the node.
    #[track_caller]
    pub fn finish(mut self) {
        let pods = self.raw("/api/v1/pods");
        pods["items"].as_array().expect("a list of pods").iter().for_each(|pod| self.leaves_nothing_of(pod));
        for kinds in ["deployments", "pods"] {
            self.kubectl(&["delete", kinds, "--all", "--all-namespaces", "--wait=false"]);
        }
        wait_until(DEADLINE, "no pod stays", || {
            self.kubectl(&["get", "pods", "-A", "-o", "name"]).is_empty()
        });
        wait_until(DEADLINE, "the kubelet keeps nothing of pods", || {
            let kept = self.node.path("/var/lib/kubelet/pods");
            fs::read_dir(kept).is_ok_and(|mut pods| pods.next().is_none())
                && self.node.cgroups().kubernetes_pods().is_empty()
        });
        self.kubelet().take().expect("the kubelet was started").end(Signal::SIGTERM);
        // In the reverse order of their start: each can still say goodbye to those that it needs.
        while let Some(program) = self.programs.control.pop() {
            program.end(Signal::SIGTERM);
        }
        self.leave_no_ids();
        MOUNTS.iter().for_each(|(_, dir)| drop(run(self.node.command("umount").args(["--recursive", dir]))));
        self.node.cgroups().remove_below().expect("remove the cgroups of the kubelet");
        self.node.finish();
    }

    /// The pod's name for the kubelet and its addresses must not be found when the node is finished.
    pub fn leaves_nothing_of(&self, pod: &Value) {
        let ips = pod["status"]["podIPs"].as_array().into_iter().flatten().map(|ip| &ip["ip"]);
        let ips = ips.filter(|_| pod["spec"]["hostNetwork"] != true);
        let names = ips.chain([&pod["metadata"]["uid"]]).filter_map(Value::as_str);
        names.for_each(|name| self.node.leaves_no(name));
    }

    /// Nor may any sandbox or container of which containerd has spoken.
    fn leave_no_ids(&self) {
        let log = self.node.containerd_log();
        let words = log.split(|c: char| !c.is_ascii_hexdigit());
        words.filter(|word| word.len() == 64).for_each(|id| self.node.leaves_no(id));
    }

    fn dir(&self) -> &Path {
        &self.programs.dir
    }

    fn kubelet(&self) -> MutexGuard<'_, Option<Background>> {
        self.programs.kubelet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of Kubernetes' programs on the node.
    fn program(&self, name: &str) -> Command {
        let mut command = self.node.command(program(name));
        command.env("HOME", self.dir()).env("KUBECONFIG", config::kubeconfig(self.dir()));
        command
    }

    fn launch(&self, command: &mut Command, name: &str, args: &[String]) -> Background {
        let log = File::options().create(true).append(true).open(self.programs.log(name));
        let log = log.expect("open a log of the cluster");
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate a file"))
            .stderr(log);
        Background::start(command)
    }

    #[track_caller]
    fn wait_for(&self, what: &str, condition: impl Fn() -> bool) {
        wait_until(DEADLINE, what, condition);
    }
}

impl Programs {
    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["kube-apiserver", "kube-controller-manager", "kubelet"] {
                let log = fs::read(self.log(name)).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                // klog begins a line with its severity.
                let bad: Vec<&str> =
                    log.lines().filter(|line| line.starts_with(['E', 'F', 'e', 'p'])).collect();
                #[expect(clippy::print_stderr, reason = "the test has failed: this says why")]
                {
                    eprintln!(
                        "the last errors of {name}:\n{}",
                        bad[bad.len().saturating_sub(15)..].join("\n")
                    );
                }
            }
        }
    }
}

/// Whether the object's condition `kind` is true.
pub fn is_true(object: &Value, kind: &str) -> bool {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// The path of one of Kubernetes' programs.
fn program(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let build = || tools::build(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/kubernetes/build.sh"));
    let dir = DIR.get_or_init(|| env::var_os("WEFT_KUBERNETES_DIR").map_or_else(build, PathBuf::from));
    tools::present(dir.join(name))
}

/// An archive of [`AGNHOST`].
fn agnhost() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let file = fs::read(program("agnhost")).expect("read agnhost");
        let layer = Layer::new(&[Entry::Dir("tmp", 0o1777), Entry::File("agnhost", 0o755, &file)]);
        let layer = layer.expect("pack agnhost");
        let image = Image { name: AGNHOST, layers: vec![&layer], command: &["/agnhost", "pause"], user: "" };
        image::archive(&[image]).expect("make the image of agnhost")
    })
}

//! A throwaway node: its own namespaces, directory, containerd and CNI configuration.
//!
//! Nodes share nothing, so tests run in parallel. A node that is dropped without [`Node::finish`], as by a panic, is taken down all
//! the same, and the end of containerd's log is printed.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid};
use serde_json::Value;
use tempfile::TempDir;

use crate::background::Background;
use crate::cgroup::PodCgroups;
use crate::config::{self, Subject};
use crate::daemon::Daemon;
use crate::image;
use crate::leaks::{self, Baseline};
use crate::pod::{Pod, PodSpec};
use crate::sandbox::Sandbox;
use crate::tools::{self, Tools};
use crate::wait::{holds_within, run, slowness, try_run};

/// How long anything of containerd's may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a node is to be like.
pub struct NodeSpec {
    /// Who runs pods and network.
    pub subject: Subject,
    /// Added to the environment of containerd, and so of shims and CNI plugins.
    pub env: Vec<(String, String)>,
    /// weft's configuration file.
    pub weft_config: String,
    /// In place of the subject's own network.
    pub conflist: Option<Value>,
    /// The runtime handler of pods that name none; containerd's own default is `runc`.
    pub default_handler: &'static str,
    /// Which containerd; the newest unless a test says otherwise.
    pub daemon: Daemon,
}

impl NodeSpec {
    /// A node of the subject with nothing special.
    pub fn new(subject: Subject) -> Self {
        Self {
            subject,
            env: Vec::new(),
            weft_config: String::new(),
            conflist: None,
            default_handler: "runc",
            daemon: Daemon::NEWEST,
        }
    }
}

/// A node with a running containerd.
pub struct Node {
    // Fields are dropped in this order: processes first, then their files.
    containerd: Mutex<Option<Background>>,
    sandbox: Sandbox,
    cgroups: PodCgroups,
    dir: TempDir,
    spec: NodeSpec,
    baseline: Baseline,
    /// Identifiers and addresses that must not be found anywhere when the node is finished.
    traces: Mutex<Vec<String>>,
}

impl Node {
    /// A node of the subject with nothing special.
    #[track_caller]
    pub fn start(subject: Subject) -> Self {
        Self::start_with(NodeSpec::new(subject))
    }

    /// Makes the namespaces, starts containerd, imports the images and waits until CRI is ready.
    #[track_caller]
    pub fn start_with(spec: NodeSpec) -> Self {
        assert!(Uid::effective().is_root(), "a node needs root");
        // A short path: the socket of a shim is `<dir>/s/<64 hex digits>`, and 107 bytes is all that fits (unix(7)).
        let dir = tempfile::Builder::new()
            .prefix("weft-")
            // The root of a pod with a user namespace of its own must reach its root file system.
            .permissions(Permissions::from_mode(0o711))
            .tempdir_in("/tmp")
            .expect("make the directory of the node");
        for below in ["bpf", "bin", "cni/bin", "cni/net.d", "logs", "pods", "s"] {
            fs::create_dir_all(dir.path().join(below)).expect("make a directory of the node");
        }
        let sandbox = Sandbox::start(dir.path());
        let baseline = Baseline::of(&sandbox);
        let name = dir.path().file_name().and_then(OsStr::to_str).expect("tempfile names it in ASCII");
        let node = Self {
            containerd: Mutex::new(None),
            sandbox,
            cgroups: PodCgroups(name.to_owned()),
            dir,
            spec,
            baseline,
            traces: Mutex::new(Vec::new()),
        };
        node.write_files();
        node.start_containerd();
        node.import(image::standard());
        node.wait_for("the images", || {
            image::STANDARD.iter().all(|name| node.crictl_succeeds(&["inspecti", "-q", name]))
        });
        node
    }

    /// Imports an archive of images, see [`image::archive`].
    #[track_caller]
    pub fn import(&self, archive: &[u8]) {
        let path = self.dir().join("images.tar");
        fs::write(&path, archive).expect("write the archive of the images");
        // By the client itself: the older daemons' own import is not as able.
        run(self.ctr(&["images", "import", "--local"]).arg(&path));
        fs::remove_file(&path).expect("remove the archive of the images");
    }

    /// Takes the pause image out of the store: a pod that starts now has not asked for it.
    #[track_caller]
    pub fn remove_pause_image(&self) {
        self.crictl(&["rmi", image::PAUSE]);
    }

    /// The directory of the node, which the test and the node see under one name. Mounts below it are seen by the node only.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the test finds a file of the node's that is on a mount of the node's: /run, the bpf file system.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.sandbox.path(inside)
    }

    /// Who is tested.
    pub fn subject(&self) -> Subject {
        self.spec.subject
    }

    /// A command in the node's namespaces, with the environment that containerd has.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.sandbox.command(program);
        let dir = self.dir();
        let tools = Tools::find().dir().display();
        command.env_clear();
        command.env(
            "PATH",
            format!("{}/bin:{tools}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", dir.display()),
        );
        command.env("WEFT_CONFIG", dir.join("weft.toml"));
        command.env("WEFT_RUN_DIR", dir.join("weft"));
        command.env("WEFT_BPF_DIR", dir.join("bpf/weft"));
        command.env("WEFT_RUNTIME_ROOT", dir.join("runtime"));
        command.envs(self.spec.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A command in the network beyond the uplink, 192.0.2.1 and 2001:db8::1, which knows no route to the pods.
    pub fn world(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command("nsenter");
        command.arg("--net=/run/netns/world").arg(program);
        command
    }

    /// `crictl` with `args`, which must succeed; what it printed.
    #[track_caller]
    pub fn crictl(&self, args: &[&str]) -> String {
        run(&mut self.crictl_command(args))
    }

    /// `crictl` with `args`, not yet run.
    pub fn crictl_command(&self, args: &[&str]) -> Command {
        let mut command = self.command("crictl");
        command.arg("--config").arg(self.dir().join("crictl.yaml")).args(args);
        command
    }

    /// `ctr` in CRI's namespace, not yet run.
    pub fn ctr(&self, args: &[&str]) -> Command {
        let mut command = self.command("ctr");
        command
            .arg("--address")
            .arg(self.dir().join("containerd.sock"))
            .args(["--namespace", "k8s.io"])
            .args(args);
        command
    }

    /// Runs a pod.
    #[track_caller]
    pub fn run_pod(&self, spec: &PodSpec) -> Pod<'_> {
        match self.try_run_pod(spec) {
            Ok(pod) => pod,
            Err(why) => panic!("{why}"),
        }
    }

    /// Runs a pod; the error is what crictl said.
    pub fn try_run_pod(&self, spec: &PodSpec) -> Result<Pod<'_>, String> {
        Pod::run_on(self, spec)
    }

    /// Asks for a pod and nothing more: what CRI says of it afterwards may be asked of [`Pod::try_inspect`].
    pub fn request_pod(&self, spec: &PodSpec) -> Result<Pod<'_>, String> {
        Pod::request(self, spec)
    }

    /// Ends containerd by `signal` and starts it again; shims and pods live on.
    pub fn restart_containerd(&self, signal: Signal) {
        self.stop_containerd(signal);
        self.start_containerd();
    }

    /// Ends containerd by `signal`, until [`Node::start_containerd`].
    pub fn stop_containerd(&self, signal: Signal) {
        self.containerd().take().expect("containerd was started").end(signal);
    }

    /// The process id of containerd, as the test sees it.
    pub fn containerd_pid(&self) -> Pid {
        self.containerd().as_ref().expect("containerd was started").pid()
    }

    /// Sends `signal` to all processes of the node's whose command line has every one of `words`; how many there were.
    #[track_caller]
    pub fn signal(&self, signal: Signal, words: &[&str]) -> usize {
        let all = self.sandbox.processes().into_iter();
        let meant: Vec<String> = all
            .filter(|(_, line)| words.iter().all(|word| line.contains(word)))
            .map(|(pid, _)| pid.to_string())
            .collect();
        if !meant.is_empty() {
            run(self.command("kill").arg(format!("-{}", signal as i32)).args(&meant));
        }
        meant.len()
    }

    /// The processes of the node as the test sees them, with their command lines.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        self.sandbox.processes_outside()
    }

    /// All that containerd, the shims and the CNI plugins have logged.
    pub fn containerd_log(&self) -> String {
        // A node that could not start has no log yet, and a panic must not meet another one here.
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// What is left of pods on the node, of which none should be: processes, mounts, namespaces, links, rules, routes, addresses,
    /// sockets, files and cgroups. Some of it may be on its way out: look again.
    pub fn leaks(&self) -> Vec<String> {
        leaks::of_pods(self)
    }

    /// Removes all pods, checks that nothing of them is left, ends containerd, removes weft's programs and state, and checks again.
    #[track_caller]
    pub fn finish(self) {
        // Those that a test made without the help of this crate must be gone too.
        for list in [["pods", "--quiet", "--no-trunc"], ["ps", "--all", "--quiet"]] {
            self.crictl(&list).lines().for_each(|id| self.leaves_no(id));
        }
        self.crictl(&["rmp", "--all", "--force"]);
        self.must_be_clean("after the last pod", || self.leaks());
        self.containerd().take().expect("containerd was started").end(Signal::SIGTERM);
        if self.spec.subject == Subject::Weft {
            run(self.command("weft").arg("cleanup"));
        }
        self.must_be_clean("after containerd", || leaks::of_node(&self));
        self.cgroups.remove().expect("remove the pods' own cgroups");
    }

    /// `trace`, an identifier or an address, must not be found on the node when it is finished.
    pub fn leaves_no(&self, trace: &str) {
        let mut traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        if !traces.iter().any(|known| known == trace) {
            traces.push(trace.to_owned());
        }
    }

    /// Where CRI keeps the pods' network namespaces.
    pub fn pod_namespaces(&self) -> PathBuf {
        self.dir().join("state/io.containerd.grpc.v1.cri/netns")
    }

    pub(crate) fn traces(&self) -> Vec<String> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    pub(crate) fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    pub(crate) fn cgroups(&self) -> &PodCgroups {
        &self.cgroups
    }

    fn must_be_clean(&self, when: &str, leaks: impl Fn() -> Vec<String>) {
        let mut found = Vec::new();
        let clean = holds_within(DEADLINE, &mut || {
            found = leaks();
            found.is_empty()
        });
        assert!(clean, "left behind {when}:\n  {}", found.join("\n  "));
    }

    fn containerd(&self) -> MutexGuard<'_, Option<Background>> {
        self.containerd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_files(&self) {
        let dir = self.dir();
        let write =
            |name: &str, text: &str| fs::write(dir.join(name), text).expect("write a file of the node");
        write(
            "containerd.toml",
            &self.spec.daemon.configuration(dir, self.spec.subject, self.spec.default_handler),
        );
        write("weft.toml", &self.spec.weft_config);
        let socket = format!("unix://{}/containerd.sock", dir.display());
        let timeout = 60 * slowness();
        write(
            "crictl.yaml",
            &format!("runtime-endpoint: {socket}\nimage-endpoint: {socket}\ntimeout: {timeout}\n"),
        );
        let own = || match self.spec.subject {
            Subject::Reference => config::reference_conflist(dir),
            Subject::Weft => config::weft_conflist(),
        };
        write("cni/net.d/10-pods.conflist", &self.spec.conflist.clone().unwrap_or_else(own).to_string());
        for plugin in fs::read_dir(Tools::find().cni()).expect("list the CNI plugins").flatten() {
            symlink(plugin.path(), dir.join("cni/bin").join(plugin.file_name())).expect("link a CNI plugin");
        }
        if let Some(daemon) = self.spec.daemon.program() {
            symlink(daemon, dir.join("bin/containerd")).expect("link another containerd");
        }
        if self.spec.subject == Subject::Weft {
            for (binary, link) in [
                ("containerd-shim-weft-v1", "bin/containerd-shim-weft-v1"),
                ("weft", "bin/weft"),
                ("weft-cni", "cni/bin/weft"),
            ] {
                symlink(tools::weft(binary), dir.join(link)).expect("link a binary of weft's");
            }
        }
    }

    fn log_file(&self) -> PathBuf {
        self.dir().join("containerd.log")
    }

    /// Starts containerd, on what it knew when it ended.
    pub fn start_containerd(&self) {
        let mut command = self.command("containerd");
        command.arg("--config").arg(self.dir().join("containerd.toml"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("open the log of containerd");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("duplicate a file")).stderr(log);
        *self.containerd() = Some(Background::start(&mut command));
        self.wait_for("CRI to be ready", || {
            let info = try_run(&mut self.crictl_command(&["info"])).unwrap_or_default();
            let info: Value = serde_json::from_str(&info).unwrap_or_default();
            let conditions = info["status"]["conditions"].as_array().into_iter().flatten();
            let ready = conditions.filter(|condition| condition["status"] == true);
            let ready: Vec<&Value> = ready.map(|condition| &condition["type"]).collect();
            ["RuntimeReady", "NetworkReady"].iter().all(|kind| ready.iter().any(|ready| *ready == kind))
        });
    }

    /// Waits as long as containerd lives.
    #[track_caller]
    fn wait_for(&self, what: &str, condition: impl Fn() -> bool) {
        crate::wait_until(DEADLINE, what, || {
            let ended = self.containerd().as_mut().is_none_or(Background::has_ended);
            assert!(!ended, "containerd ended while waiting for {what}:\n{}", self.containerd_log());
            condition()
        });
    }

    fn crictl_succeeds(&self, args: &[&str]) -> bool {
        try_run(&mut self.crictl_command(args)).is_ok()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.containerd_log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(40)..];
            #[expect(clippy::print_stderr, reason = "the test has failed: this says why")]
            {
                eprintln!("the end of the log of containerd on {}:\n{}", self.cgroups.0, end.join("\n"));
            }
        }
    }
}

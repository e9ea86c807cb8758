//! Pods and containers by way of crictl: what a test asks of CRI, in few words.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::Node;
use crate::wait::{holds_within, slowness, try_run};

/// A transport protocol, numbered as in CRI.
#[derive(Debug, Clone, Copy)]
pub enum Protocol {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
    /// SCTP.
    Sctp = 2,
}

/// A pod to be: CRI's PodSandboxConfig and the handler.
pub struct PodSpec {
    handler: Option<String>,
    config: Value,
}

impl PodSpec {
    /// A pod in namespace `default` whose hostname is its name, which is unique on the node.
    pub fn new(name: &str) -> Self {
        let config = json!({
            "metadata": { "name": name, "namespace": "default", "uid": format!("{name}-uid") },
            "hostname": name,
            "linux": {},
        });
        Self { handler: None, config }
    }

    /// In place of [`Subject::handler`](crate::Subject::handler).
    pub fn handler(mut self, handler: &str) -> Self {
        self.handler = Some(handler.to_owned());
        self
    }

    /// In the node's network.
    pub fn host_network(self) -> Self {
        self.with(json!({ "linux": { "security_context": { "namespace_options": { "network": 2 } } } }))
    }

    /// An annotation, such as `kubernetes.io/ingress-bandwidth`.
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.with(json!({ "annotations": { key: value } }))
    }

    /// One more port of the node that leads to the pod.
    pub fn host_port(mut self, protocol: Protocol, host: u16, container: u16) -> Self {
        let ports = self.config["port_mappings"].as_array().into_iter().flatten();
        let mut ports: Vec<Value> = ports.cloned().collect();
        ports.push(json!({ "protocol": protocol as u8, "host_port": host, "container_port": container }));
        self.config["port_mappings"] = ports.into();
        self
    }

    /// Anything else of PodSandboxConfig, in its own JSON; objects are merged, all else replaced.
    pub fn with(mut self, part: Value) -> Self {
        merge(&mut self.config, part);
        self
    }

    fn name(&self) -> &str {
        self.config["metadata"]["name"].as_str().expect("a pod has a name")
    }
}

/// A container to be: CRI's ContainerConfig.
pub struct ContainerSpec(Value);

impl ContainerSpec {
    /// A container that runs the image's own command; the name is unique in the pod.
    pub fn new(name: &str, image: &str) -> Self {
        Self(json!({
            "metadata": { "name": name },
            "image": { "image": image },
            "log_path": format!("{name}.log"),
            "linux": {},
        }))
    }

    /// In place of the image's command.
    pub fn command(self, command: &[&str]) -> Self {
        self.with(json!({ "command": command }))
    }

    /// `sh -c script`.
    pub fn shell(self, script: &str) -> Self {
        self.command(&["sh", "-c", script])
    }

    /// One more environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        let envs = self.0["envs"].as_array().into_iter().flatten();
        let mut envs: Vec<Value> = envs.cloned().collect();
        envs.push(json!({ "key": key, "value": value }));
        self.0["envs"] = envs.into();
        self
    }

    /// With an open stdin.
    pub fn stdin(self) -> Self {
        self.with(json!({ "stdin": true }))
    }

    /// With a terminal, and so with an open stdin.
    pub fn tty(self) -> Self {
        self.with(json!({ "stdin": true, "tty": true }))
    }

    /// Anything else of ContainerConfig, in its own JSON; objects are merged, all else replaced.
    pub fn with(mut self, part: Value) -> Self {
        merge(&mut self.0, part);
        self
    }
}

/// A pod that runs, or ran.
pub struct Pod<'n> {
    node: &'n Node,
    id: String,
    config: PathBuf,
    netns: OnceLock<PathBuf>,
}

impl<'n> Pod<'n> {
    pub(crate) fn run_on(node: &'n Node, spec: &PodSpec) -> Result<Self, String> {
        let pod = Self::request(node, spec)?;
        pod.ips().iter().for_each(|ip| node.leaves_no(&ip.to_string()));
        Ok(pod)
    }

    pub(crate) fn request(node: &'n Node, spec: &PodSpec) -> Result<Self, String> {
        let name = spec.name();
        let logs = node.dir().join("logs").join(name);
        fs::create_dir_all(&logs).expect("make the log directory of the pod");
        let mut config = spec.config.clone();
        config["log_directory"] = json!(logs);
        merge(&mut config, json!({ "linux": { "cgroup_parent": format!("/{}/{name}", node.cgroups().0) } }));
        let file = node.dir().join("pods").join(format!("{name}.json"));
        write_json(&file, &config);
        let handler = spec.handler.as_deref().unwrap_or(node.subject().handler());
        let id = try_run(node.crictl_command(&["runp", "--runtime", handler]).arg(&file))?;
        let pod = Self { node, id: id.trim().to_owned(), config: file, netns: OnceLock::new() };
        node.leaves_no(&pod.id);
        Ok(pod)
    }

    /// CRI's identifier of the sandbox.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The addresses that CRI reports, the first is the pod's main one; none on the node's network.
    #[track_caller]
    pub fn ips(&self) -> Vec<IpAddr> {
        Self::ips_of(&self.inspect())
    }

    /// The addresses in what [`Pod::try_inspect`] has told.
    pub fn ips_of(told: &Value) -> Vec<IpAddr> {
        let network = &told["status"]["network"];
        let more = network["additionalIps"].as_array().into_iter().flatten();
        let all = std::iter::once(&network["ip"]).chain(more.map(|ip| &ip["ip"]));
        let all = all.filter_map(Value::as_str).filter(|ip| !ip.is_empty());
        all.map(|ip| ip.parse().expect("an address")).collect()
    }

    /// The pod's address of IP version 4.
    #[track_caller]
    pub fn ipv4(&self) -> IpAddr {
        self.ips().into_iter().find(IpAddr::is_ipv4).expect("the pod has an IPv4 address")
    }

    /// The pod's address of IP version 6.
    #[track_caller]
    pub fn ipv6(&self) -> IpAddr {
        self.ips().into_iter().find(IpAddr::is_ipv6).expect("the pod has an IPv6 address")
    }

    /// What `crictl inspectp` says.
    #[track_caller]
    pub fn inspect(&self) -> Value {
        match self.try_inspect() {
            Ok(told) => told,
            Err(why) => panic!("{why}"),
        }
    }

    /// What `crictl inspectp` says, or the error.
    pub fn try_inspect(&self) -> Result<Value, String> {
        let told = try_run(&mut self.node.crictl_command(&["inspectp", "--output", "json", &self.id]))?;
        Ok(serde_json::from_str(&told).expect("crictl prints JSON"))
    }

    /// `SANDBOX_READY` or `SANDBOX_NOTREADY`.
    #[track_caller]
    pub fn state(&self) -> String {
        self.inspect()["status"]["state"].as_str().expect("a pod has a state").to_owned()
    }

    /// The network namespace as a path on the node: found by the pod's address, so not on the node's network.
    #[track_caller]
    pub fn netns(&self) -> &Path {
        self.netns.get_or_init(|| {
            let address = self.ips().first().expect("the pod has an address").to_string();
            let namespaces = fs::read_dir(self.node.pod_namespaces()).expect("list the pods' namespaces");
            let mut paths = namespaces.flatten().map(|entry| entry.path());
            let path = paths.find(|path| {
                let shown =
                    try_run(self.node.command("nsenter").arg(net(path)).args(["ip", "-oneline", "addr"]));
                shown.is_ok_and(|text| text.split([' ', '/']).any(|word| word == address))
            });
            path.expect("one of the namespaces has the pod's address")
        })
    }

    /// A program of the machine's in the network namespace of the pod.
    #[track_caller]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.node.command("nsenter");
        command.arg(net(self.netns())).arg(program);
        command
    }

    /// Creates and starts a container.
    #[track_caller]
    pub fn run(&self, spec: &ContainerSpec) -> Container<'n> {
        let container = self.create(spec);
        container.start();
        container
    }

    /// Creates a container.
    #[track_caller]
    pub fn create(&self, spec: &ContainerSpec) -> Container<'n> {
        match self.try_create(spec) {
            Ok(container) => container,
            Err(why) => panic!("{why}"),
        }
    }

    /// Creates a container; the error is what crictl said.
    pub fn try_create(&self, spec: &ContainerSpec) -> Result<Container<'n>, String> {
        let name = spec.0["metadata"]["name"].as_str().expect("a container has a name");
        let file = self.config.with_extension(format!("{name}.json"));
        write_json(&file, &spec.0);
        let id = try_run(self.node.crictl_command(&["create", &self.id]).arg(file).arg(&self.config))?;
        let container = Container { node: self.node, id: id.trim().to_owned() };
        self.node.leaves_no(&container.id);
        Ok(container)
    }

    /// StopPodSandbox.
    #[track_caller]
    pub fn stop(&self) {
        self.node.crictl(&["stopp", &self.id]);
    }

    /// RemovePodSandbox, of a pod that is stopped.
    #[track_caller]
    pub fn remove(self) {
        self.node.crictl(&["rmp", &self.id]);
    }
}

/// A container, running or not.
pub struct Container<'n> {
    node: &'n Node,
    id: String,
}

impl Container<'_> {
    /// CRI's identifier.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts it.
    #[track_caller]
    pub fn start(&self) {
        self.node.crictl(&["start", &self.id]);
    }

    /// ExecSync of `command`, which must succeed; what it wrote to stdout, and to stderr after it.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> String {
        match self.try_exec(command) {
            Ok(stdout) => stdout,
            Err(why) => panic!("{why}"),
        }
    }

    /// ExecSync of `command`; the error is what crictl and the command said.
    pub fn try_exec(&self, command: &[&str]) -> Result<String, String> {
        let output = try_run(self.node.crictl_command(&["exec", "--sync", &self.id]).args(command))?;
        // crictl prints stdout, a line break, stderr, a line break.
        Ok(output.strip_suffix("\n\n").unwrap_or(&output).to_owned())
    }

    /// The page `/` of a web server, which may need a moment until it listens.
    #[track_caller]
    pub fn fetch(&self, server: SocketAddr) -> String {
        let mut page = Err(String::new());
        holds_within(Duration::from_secs(10), &mut || {
            page = self.try_fetch(server);
            page.is_ok()
        });
        match page {
            Ok(page) => page,
            Err(why) => panic!("{why}"),
        }
    }

    /// One attempt of at most 5 seconds, times [`slowness`](crate::wait::slowness), to get the page `/` of a web server.
    pub fn try_fetch(&self, server: SocketAddr) -> Result<String, String> {
        // Debian's busybox 1.35 crashes on `wget -T`.
        let seconds = (5 * slowness()).to_string();
        self.try_exec(&["timeout", &seconds, "wget", "-q", "-O", "-", &format!("http://{server}/")])
    }

    /// What it has written to stdout and stderr.
    #[track_caller]
    pub fn logs(&self) -> String {
        let output = self.node.crictl_command(&["logs", &self.id]).output().expect("run crictl");
        assert!(output.status.success(), "crictl logs: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// What `crictl inspect` says.
    #[track_caller]
    pub fn inspect(&self) -> Value {
        serde_json::from_str(&self.node.crictl(&["inspect", "--output", "json", &self.id]))
            .expect("crictl prints JSON")
    }

    /// A file in the container's root, as processes of the node see it.
    #[track_caller]
    pub fn path(&self, inside: &str) -> PathBuf {
        let pid = self.inspect()["info"]["pid"].as_u64().expect("the container runs");
        PathBuf::from(format!("/proc/{pid}/root{inside}"))
    }

    /// `CONTAINER_CREATED`, `CONTAINER_RUNNING`, `CONTAINER_EXITED` or `CONTAINER_UNKNOWN`.
    #[track_caller]
    pub fn state(&self) -> String {
        self.inspect()["status"]["state"].as_str().expect("a container has a state").to_owned()
    }

    /// How it ended; `None` while it has not.
    #[track_caller]
    pub fn exit_code(&self) -> Option<i64> {
        let status = &self.inspect()["status"];
        // CRI leaves out what is zero, so the state says whether there is a code.
        (status["state"] == "CONTAINER_EXITED").then(|| status["exitCode"].as_i64().unwrap_or_default())
    }

    /// StopContainer: SIGTERM, and SIGKILL after `seconds`.
    #[track_caller]
    pub fn stop(&self, seconds: u32) {
        self.node.crictl(&["stop", "--timeout", &seconds.to_string(), &self.id]);
    }

    /// RemoveContainer, of one that has ended.
    #[track_caller]
    pub fn remove(self) {
        self.node.crictl(&["rm", &self.id]);
    }
}

fn net(path: &Path) -> String {
    format!("--net={}", path.display())
}

fn write_json(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).expect("write a file of the node");
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

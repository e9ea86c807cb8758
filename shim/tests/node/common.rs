//! A node for the tests of the CNI plugin: a namespace that plays the host, a bpffs and a folder of its own, and the
//! built binaries run inside it. Dropping it looks for what is left.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_netns::NetNs;

/// What every namespace that plays a host has besides `lo`.
pub(crate) const UPLINK: &str = "uplink";
/// The other end of the uplink.
pub(crate) const OUTSIDE: &str = "outside";

/// The configuration that most tests use.
pub(crate) fn conf() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "test", "type": "weft", "mtu": 1450,
        "ranges": [{ "subnet": "10.88.0.0/24" }, { "subnet": "fd00:88::/64" }],
    })
}

/// A node.
pub(crate) struct Node {
    pub(crate) dir: TempDir,
    pub(crate) host: NetNs,
    pods: RefCell<BTreeMap<String, PathBuf>>,
}

impl Node {
    pub(crate) fn new() -> Node {
        let dir = tempfile::Builder::new().prefix("weft-cni-").tempdir().unwrap();
        let host = NetNs::create().unwrap();
        let node = Node { dir, host, pods: RefCell::default() };
        std::fs::create_dir(node.bpf()).unwrap();
        mount(Some("bpf"), &node.bpf(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        for args in [
            "link set lo up",
            "link add uplink type veth peer name outside",
            "link set outside up",
            "addr add 192.0.2.10/24 dev uplink",
            "addr add 2001:db8::10/64 dev uplink nodad",
            "link set uplink up",
            "route add default via 192.0.2.1",
        ] {
            node.ip(&args.split(' ').collect::<Vec<_>>());
        }
        node
    }

    pub(crate) fn bpf(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A command with weft's configuration in its environment.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("WEFT_RUN_DIR", self.run_dir())
            .env("WEFT_BPF_DIR", self.bpf().join("weft"));
        command
    }

    /// Runs in the namespace that plays the host.
    pub(crate) fn run(&self, command: &mut Command, input: &str) -> Output {
        run_in(&self.host, command, input)
    }

    pub(crate) fn ip(&self, args: &[&str]) -> Value {
        ip_in(&self.host, args)
    }

    /// A namespace for a pod, pinned as containerd pins it.
    pub(crate) fn pod(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(format!("netns-{name}"));
        NetNs::create().unwrap().pin(&path).unwrap();
        self.pods.borrow_mut().insert(name.to_owned(), path.clone());
        path
    }

    pub(crate) fn pod_ns(&self, name: &str) -> NetNs {
        NetNs::open(&self.pods.borrow()[name]).unwrap()
    }

    pub(crate) fn ip_in_pod(&self, name: &str, args: &[&str]) -> Value {
        ip_in(&self.pod_ns(name), args)
    }

    pub(crate) fn remove_pod(&self, name: &str) {
        NetNs::unpin(&self.pods.borrow_mut().remove(name).unwrap()).unwrap();
    }

    /// Calls the plugin for the pod `name` as containerd does.
    pub(crate) fn cni(&self, verb: &str, name: &str, conf: &Value) -> Answer {
        let netns = self.pods.borrow().get(name).cloned().unwrap_or_default();
        self.cni_with(verb, name, &conf.to_string(), |command| {
            command.env("CNI_NETNS", netns);
        })
    }

    /// The same, with the environment changed by `change`.
    pub(crate) fn cni_with(
        &self,
        verb: &str,
        name: &str,
        conf: &str,
        change: impl FnOnce(&mut Command),
    ) -> Answer {
        let mut command = self.command(env!("CARGO_BIN_EXE_weft-cni"));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", name)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/");
        change(&mut command);
        let output = self.run(&mut command, conf);
        let text = String::from_utf8(output.stdout).unwrap();
        let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{verb} {name} wrote to standard error");
        Answer { status: output.status, json }
    }

    /// Attaches a new pod.
    pub(crate) fn add(&self, name: &str) -> Answer {
        self.pod(name);
        let answer = self.cni("ADD", name, &conf());
        assert!(answer.status.success(), "ADD {name}: {}", answer.json);
        answer
    }

    /// The `weft` command's answer in JSON.
    pub(crate) fn weft(&self, args: &[&str]) -> Value {
        let output = self.run(self.command(env!("CARGO_BIN_EXE_weft")).args(args), "");
        assert!(output.status.success(), "weft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// What `weft reconcile` did, and its exit code.
    pub(crate) fn reconcile(&self, args: &[&str]) -> (Value, i32) {
        let mut command = self.command(env!("CARGO_BIN_EXE_weft"));
        let output = self.run(command.args(["reconcile", "-o", "json"]).args(args), "");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = serde_json::from_slice(&output.stdout);
        (report.unwrap_or_else(|_| panic!("weft reconcile: {err}")), output.status.code().unwrap())
    }

    /// Names of the links of the host, without `lo` and the uplink.
    pub(crate) fn links(&self) -> Vec<String> {
        let links = self.ip(&["link", "show"]);
        let names = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
        names.filter(|name| !["lo", UPLINK, OUTSIDE].contains(&name.as_str())).collect()
    }

    /// Routes of the host to the test's ranges.
    pub(crate) fn routes(&self) -> Vec<String> {
        let both = [self.ip(&["-4", "route"]), self.ip(&["-6", "route"])];
        let routes = both.iter().flat_map(|routes| routes.as_array().unwrap());
        let destinations = routes.map(|route| route["dst"].as_str().unwrap().to_owned());
        destinations.filter(|dst| dst.starts_with("10.88.") || dst.starts_with("fd00:88:")).collect()
    }

    /// Entries of the pinned map, as another program sees them.
    pub(crate) fn map_entries(&self) -> usize {
        self.map_dump("pods").len()
    }

    /// A pinned map, with the names that it was compiled with; nothing if it is not there.
    pub(crate) fn map_dump(&self, name: &str) -> Vec<Value> {
        let map = self.bpf().join("weft").join(name);
        if !map.exists() {
            return Vec::new();
        }
        let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(map).output().unwrap();
        let Value::Array(entries) = serde_json::from_slice(&output.stdout).unwrap() else { panic!() };
        entries.into_iter().map(|mut entry| entry["formatted"].take()).collect()
    }

    /// Nothing of any pod is there any more; links may take the kernel a moment.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.weft(&["pods", "-o", "json"]), json!([]), "records");
        assert_eq!(self.routes(), [""; 0], "routes");
        assert_eq!(self.map_entries(), 0, "map entries");
        assert_eq!(self.map_dump("pod_counters"), [Value::Null; 0], "counters of pods");
        wait_until("the links are gone", || self.links().is_empty());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for path in self.pods.take().into_values() {
            NetNs::unpin(&path).unwrap();
        }
        umount2(&self.bpf(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// What the plugin answered.
pub(crate) struct Answer {
    pub(crate) status: ExitStatus,
    pub(crate) json: Value,
}

impl Answer {
    /// The pod's addresses without their prefix lengths, IPv4 first.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let ips = self.json["ips"].as_array().unwrap();
        ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
    }

    /// The code and the whole text of an error object.
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.status.success(), "got success: {}", self.json);
        let text = |key: &str| self.json[key].as_str().unwrap().to_owned();
        (self.json["code"].as_u64().unwrap(), format!("{}: {}", text("msg"), text("details")))
    }
}

pub(crate) fn run_in(netns: &NetNs, command: &mut Command, input: &str) -> Output {
    let run = || {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A program that does not read its input closes it early; what it says then is what the test looks at.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        child.wait_with_output().unwrap()
    };
    netns.run(run).unwrap()
}

/// `ip -j`, in a namespace.
pub(crate) fn ip_in(netns: &NetNs, args: &[&str]) -> Value {
    let output = run_in(netns, Command::new("ip").arg("-j").args(args), "");
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(json!([]))
}

/// One echo request from a namespace, answered within two seconds.
pub(crate) fn pings(netns: &NetNs, address: &str) -> bool {
    run_in(
        netns,
        Command::new("ping").args(["-c", "1", "-W", &(2 * slowness()).to_string(), "-n", address]),
        "",
    )
    .status
    .success()
}

/// Echo requests that go on beside the test: 200, a hundredth of a second apart.
pub(crate) struct Pinging(std::process::Child);

impl Pinging {
    pub(crate) fn start(netns: &NetNs, address: &str) -> Pinging {
        let mut command = Command::new("ping");
        command.args(["-n", "-i", "0.01", "-c", "200", "-W", &(2 * slowness()).to_string(), address]);
        Pinging(netns.run(|| command.stdout(Stdio::piped()).spawn().unwrap()).unwrap())
    }

    /// Each one was answered.
    pub(crate) fn assert_no_loss(self) {
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("200 packets transmitted, 200 received"), "{text}");
    }
}

/// What deadlines are multiplied by: `WEFT_TEST_SLOWNESS`, 1 if it is not set. An emulated machine is 20 times slower.
pub(crate) fn slowness() -> u32 {
    std::env::var("WEFT_TEST_SLOWNESS").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Polls until `done`, at most ten seconds times [`slowness`].
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10) * slowness();
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

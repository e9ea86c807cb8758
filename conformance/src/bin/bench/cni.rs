//! CNI ADD and DEL: from the start to the exit of every plugin, as libcni runs them.
//!
//! `nsenter(1)` must not be in the figures, so the program runs itself on each node and starts the plugins from there; the two nodes
//! take turns, pod by pod, and either has another pod, which stays. A pod here is a namespace made by `ip netns`, outside of the time that counts.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write, stdin};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_conformance::{Node, run};

use crate::report::{Samples, Table};
use crate::{Nodes, end};

/// The word that tells the program that it runs on a node; the directory of the node follows.
pub(crate) const ON_NODE: &str = "cni-on-node";
/// Pods per arm, after one that is not counted.
const PODS: usize = 50;
/// What is measured of every pod.
const OPERATIONS: [(&str, Option<f64>); 4] = [
    ("ADD", Some(14.0)),
    ("DEL", Some(40.0)),
    ("ADD, portmap not counted", None),
    ("DEL, portmap not counted", None),
];

type Times = [f64; OPERATIONS.len()];

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let mut arms = [&nodes.weft, &nodes.reference].map(OnNode::start);
    let [first, _] = arms.each_mut().map(OnNode::cycle);
    let residents = nodes.residents();
    let mut samples: [[Samples; 2]; OPERATIONS.len()] = Default::default();
    for pod in 0..PODS {
        for turn in 0..2 {
            let arm = (pod + turn) % 2;
            for (samples, time) in samples.iter_mut().zip(arms[arm].cycle()) {
                samples[arm].push(time);
            }
        }
    }
    arms.into_iter().for_each(OnNode::end);
    residents.into_iter().for_each(end);
    let text = format!(
        "From the start of a plugin to its exit, of {PODS} pods without host ports on a node with one other pod. weft is one plugin; the \
         reference is bridge, which runs host-local, and portmap (nftables), one after the other as libcni runs them. bridge looks \
         whether its link is up, and if not yet, again after 50 ms: its ADD has two modes, so see the mean too. The first pod of \
         each is not counted; weft's first ADD on a node, which loads its programs, took {:.0} ms.",
        first[0]
    );
    let mut table = Table::of_durations("CNI", text);
    for ((operation, least), samples) in OPERATIONS.iter().zip(&samples) {
        table.durations(operation, samples, *least);
    }
    table
}

/// This program on a node: for every line it attaches and detaches a pod and answers how long that took.
struct OnNode {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl OnNode {
    fn start(node: &Node) -> Self {
        let program = env::current_exe().expect("the path of this program");
        let mut command = node.command(program);
        command.arg(ON_NODE).arg(node.dir()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("run nsenter(1)");
        let ask = process.stdin.take().expect("stdin is piped");
        let answers = BufReader::new(process.stdout.take().expect("stdout is piped"));
        Self { process, ask, answers }
    }

    /// The times of a new pod, in ms.
    fn cycle(&mut self) -> Times {
        writeln!(self.ask).expect("ask for a pod");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("read how long it took");
        serde_json::from_str(&answer).expect("a list of times; if there is none, the other side has said why")
    }

    fn end(mut self) {
        drop(self.ask);
        assert!(self.process.wait().expect("wait for a child").success(), "measured to the end");
    }
}

/// The other side of [`OnNode`]: serves until stdin ends.
pub(crate) fn serve(node: &Path) {
    let network = fs::read_to_string(node.join("cni/net.d/10-pods.conflist")).expect("read the network");
    let network: Value = serde_json::from_str(&network).expect("the network is JSON");
    let plugins = node.join("cni/bin");
    for (number, line) in stdin().lines().enumerate() {
        line.expect("read from stdin");
        let pod = CniPod {
            network: &network,
            plugins: &plugins,
            name: format!("bench{number}"),
            id: format!("{number:064x}"),
        };
        run(Command::new("ip").args(["netns", "add", &pod.name]));
        let times = pod.cycle().map(|time| time.as_secs_f64() * 1e3);
        run(Command::new("ip").args(["netns", "del", &pod.name]));
        println!("{}", json!(times));
    }
}

struct CniPod<'a> {
    network: &'a Value,
    plugins: &'a Path,
    name: String,
    id: String,
}

impl CniPod<'_> {
    fn cycle(&self) -> [Duration; OPERATIONS.len()] {
        let chain = self.network["plugins"].as_array().expect("a network is a list of plugins");
        let (mut result, mut adds, mut dels) = (Value::Null, Vec::new(), Vec::new());
        for plugin in chain {
            let (took, output) = self.exec("ADD", plugin, &result);
            adds.push(took);
            result = serde_json::from_slice(&output).expect("a plugin answers in JSON");
        }
        assert_eq!(result["ips"].as_array().map(Vec::len), Some(2), "an address of either version: {result}");
        for plugin in chain.iter().rev() {
            dels.push(self.exec("DEL", plugin, &result).0);
        }
        // portmap is the last of the chain, and so the first to detach.
        [adds.iter().sum(), dels.iter().sum(), adds[0], dels[dels.len() - 1]]
    }

    /// What libcni writes to a plugin's stdin.
    fn config(&self, plugin: &Value, previous: &Value) -> Vec<u8> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.network["cniVersion"].clone();
        config["name"] = self.network["name"].clone();
        if plugin["capabilities"]["portMappings"] == true {
            // What containerd passes for a pod that has none.
            config["runtimeConfig"] = json!({ "portMappings": null });
        }
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        config.to_string().into_bytes()
    }

    /// Runs a plugin with the environment that containerd gives it.
    fn exec(&self, verb: &str, plugin: &Value, previous: &Value) -> (Duration, Vec<u8>) {
        let (name, id) = (&self.name, &self.id);
        let config = self.config(plugin, previous);
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={name}-uid"
        );
        let mut command =
            Command::new(self.plugins.join(plugin["type"].as_str().expect("a plugin has a type")));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", format!("/run/netns/{name}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", arguments)
            .env("CNI_PATH", self.plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let start = Instant::now();
        let mut process = command.spawn().expect("run a plugin");
        process.stdin.take().expect("stdin is piped").write_all(&config).expect("write to a plugin");
        let output = process.wait_with_output().expect("wait for a plugin");
        let took = start.elapsed();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{verb} of {}: {}\n{said}", plugin["type"], output.status);
        (took, output.stdout)
    }
}

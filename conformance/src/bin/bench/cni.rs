//! CNI ADD and DEL: from the start to the exit of every plugin, as libcni runs them.
//!
//! The program runs itself on each node ([`OnNode`]) and starts the plugins from there; the two nodes take turns, pod by pod,
//! and either has another pod, which stays. A pod here is a namespace made by `ip netns`, outside of the time that counts.

use std::env;
use std::fs;
use std::io::{Write, stdin};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::{Value, json};
use weft_conformance::run;

use crate::on_node::OnNode;
use crate::report::{Estimate, Samples, Table};
use crate::{Nodes, end};

/// The word that tells the program that it runs on a node; the directory of the node follows.
pub(crate) const ON_NODE: &str = "cni-on-node";
/// Programs that attach and do no more, asked for instead of a pod: their names, how they are told, and how many times as long as one
/// an ADD may take.
const FLOORS: [(&str, &str, Option<f64>); 3] = [
    ("floor-glibc", "ADD, and the floor by rtnetlink as the reference", Some(1.4)),
    ("floor", "ADD, and the same floor with weft's C library", None),
    ("attach", "ADD, and the floor by weft's own netlink", None),
];
pub(crate) const FIRST_PORT: u16 = 20_000;
/// Pods per arm that come and go while the programs stay where they are in memory, and how often they do.
const BLOCK: usize = 6;
const BLOCKS: usize = 12;
/// Pods with host ports: how many ports, how many blocks of pods, and what is expected of ADD and of DEL.
const WITH_PORTS: [(u16, usize, [Option<f64>; 2]); 2] =
    [(1, 4, [Some(30.0), Some(60.0)]), (200, 2, [Some(200.0), None])];
/// What is measured of every pod.
const OPERATIONS: [(&str, Option<f64>); 4] = [
    ("ADD", Some(18.0)),
    ("DEL", Some(60.0)),
    ("ADD, portmap not counted", None),
    ("DEL, portmap not counted", None),
];

type Times = [f64; OPERATIONS.len()];
/// Of weft and of the reference.
type Both = [[Samples; 2]; OPERATIONS.len()];

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let mut arms = [&nodes.weft, &nodes.reference].map(|node| OnNode::start(node, ON_NODE, &[]));
    let [first, _] = arms.each_mut().map(|arm| cycle(arm, 0));
    let residents = nodes.residents();
    let (mut bare, mut floors) = (Both::default(), Default::default());
    for _ in 0..BLOCKS {
        block(nodes, &mut arms, 0, &mut bare);
        block_of_floors(&mut arms[0], &mut floors);
    }
    let with_ports = WITH_PORTS.map(|(ports, blocks, least)| {
        let mut both = Both::default();
        (0..blocks).for_each(|_| block(nodes, &mut arms, ports, &mut both));
        (ports, both, least)
    });
    arms.into_iter().for_each(OnNode::end);
    residents.into_iter().for_each(end);
    let text = format!(
        "From the start of a plugin to its exit, of {} pods without host ports on a node with one other pod. weft is one plugin; the \
         reference is bridge with masquerade, which runs host-local, and portmap, one after the other as libcni runs them, both \
         with nftables. bridge looks \
         whether its link is up, and if not yet, again after 50 ms: its ADD has two modes, so see the mean too. After every {BLOCK} pods \
         all programs are read from the disk anew, and run once uncounted: where their pages lie in memory makes a difference of a tenth. weft's first ADD on a node, which loads its programs, took {:.0} ms. The floors are static programs \
         that make the same links, addresses, routes and neighbours, and nothing else: no lease, no record, no eBPF, no nftables. One \
         does it by rtnetlink on tokio's runtime of one thread, made with glibc as most programs are, and once more with weft's C library \
         (musl, if it could be had); the other by the crate that weft does it by.",
        BLOCKS * BLOCK,
        nodes.first_add.get_or_init(|| first[0])
    );
    let mut table = Table::of_durations("CNI", text);
    for ((operation, least), samples) in OPERATIONS.iter().zip(&bare) {
        table.durations(operation, samples, *least);
    }
    for (ports, samples, least) in &with_ports {
        let [add, del, ..] = samples;
        let ports = format!("{ports} host port{}", if *ports == 1 { "" } else { "s" });
        table.durations(&format!("ADD, {ports}"), add, least[0]);
        table.durations(&format!("DEL, {ports}"), del, least[1]);
    }
    for ((_, what, most), floor) in FLOORS.iter().zip(&floors) {
        let add = &bare[0][0];
        let ratio = Estimate::ratio(add, floor);
        let [add, floor] = [add, floor].map(|samples| format!("{:.2}", samples.median()));
        let cells = vec![(*what).to_owned(), add, floor, "–".to_owned()];
        match most {
            Some(most) => table.bounded(cells, ratio, ratio, *most),
            None => table.row(cells, ratio, None),
        }
    }
    table
}

/// Some pods of each arm, with so many host ports each.
fn block(nodes: &Nodes, arms: &mut [OnNode; 2], ports: u16, both: &mut Both) {
    move_plugins(nodes);
    for arm in arms.iter_mut() {
        cycle(arm, 0);
    }
    (0..BLOCK).for_each(|pod| in_turn(arms, ports, pod, both));
}

/// As many of each floor, apart from the pods: the kernel takes a pod away while the next one comes, and either would feel the other's.
fn block_of_floors(arm: &mut OnNode, floors: &mut [Samples; FLOORS.len()]) {
    for (samples, (program, ..)) in floors.iter_mut().zip(FLOORS) {
        read_anew(&floor_program(program));
        arm.ask::<[f64; 1]>(program);
        (0..BLOCK).for_each(|_| samples.push(arm.ask::<[f64; 1]>(program)[0]));
    }
}

/// Has the plugins of both nodes lie elsewhere in memory.
fn move_plugins(nodes: &Nodes) {
    for node in [&nodes.weft, &nodes.reference] {
        let plugins = fs::read_dir(node.dir().join("cni/bin")).expect("list the plugins").flatten();
        plugins.for_each(|plugin| read_anew(&plugin.path()));
    }
}

/// Drops the pages of a program that does not run: whoever runs it next reads it from the disk.
fn read_anew(program: &Path) {
    let file = fs::File::open(program).expect("open a program");
    // What has not been written yet is not dropped (posix_fadvise(2)).
    file.sync_all().expect("write a program to the disk");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("drop the pages of a program");
}

/// Adds the times of a pod of each arm, with so many host ports; the number of the pod tells whose turn is first.
fn in_turn(arms: &mut [OnNode; 2], ports: u16, pod: usize, both: &mut Both) {
    for turn in 0..2 {
        let arm = (pod + turn) % 2;
        for (samples, time) in both.iter_mut().zip(cycle(&mut arms[arm], ports)) {
            samples[arm].push(time);
        }
    }
}

/// The times of a new pod with so many host ports, in ms.
fn cycle(arm: &mut OnNode, ports: u16) -> Times {
    arm.ask(&ports.to_string())
}

/// The other side of [`OnNode`]: for every line it attaches and detaches a pod and answers how long that took, until stdin ends.
pub(crate) fn serve(node: &Path) {
    let home = Home::of(node);
    for (number, line) in stdin().lines().enumerate() {
        let asked = line.expect("read from stdin");
        let ports: u16 = asked.parse().unwrap_or(0);
        let pod = home.pod(number, FIRST_PORT..FIRST_PORT + ports);
        run(Command::new("ip").args(["netns", "add", &pod.name]));
        let is_floor = FLOORS.iter().any(|(program, ..)| *program == asked);
        let times = if is_floor { vec![floor(&asked, &pod.name)] } else { pod.cycle().to_vec() };
        run(Command::new("ip").args(["netns", "del", &pod.name]));
        println!("{}", json!(times.iter().map(|time| time.as_secs_f64() * 1e3).collect::<Vec<_>>()));
    }
}

/// A node's network and plugins.
pub(crate) struct Home {
    network: Value,
    plugins: PathBuf,
}

impl Home {
    pub(crate) fn of(node: &Path) -> Self {
        let network = fs::read_to_string(node.join("cni/net.d/10-pods.conflist")).expect("read the network");
        let network = serde_json::from_str(&network).expect("the network is JSON");
        Self { network, plugins: node.join("cni/bin") }
    }

    /// Each pod wants a number of its own: the kernel ends the links of a namespace a moment after it, and their names are made of the pod's.
    pub(crate) fn pod(&self, number: usize, ports: Range<u16>) -> CniPod<'_> {
        let (network, plugins) = (&self.network, self.plugins.as_path());
        CniPod { network, plugins, name: format!("bench{number}"), id: format!("{number:064x}"), ports }
    }

    /// The same, with a namespace and attached.
    pub(crate) fn run(&self, number: usize, ports: Range<u16>) -> Running<'_> {
        let pod = self.pod(number, ports);
        run(Command::new("ip").args(["netns", "add", &pod.name]));
        let (took, result) = pod.add();
        Running { pod, result, add: millis(&took) }
    }
}

/// An attached pod.
pub(crate) struct Running<'a> {
    pod: CniPod<'a>,
    result: Value,
    /// How long ADD took, in ms.
    pub(crate) add: f64,
}

impl Running<'_> {
    /// Detaches it and ends its namespace; how long DEL took, in ms.
    pub(crate) fn end(self) -> f64 {
        let del = millis(&self.pod.del(&self.result));
        run(Command::new("ip").args(["netns", "del", &self.pod.name]));
        del
    }
}

fn millis(times: &[Duration]) -> f64 {
    times.iter().sum::<Duration>().as_secs_f64() * 1e3
}

/// Runs a program beside this one that attaches and does no more.
fn floor(program: &str, namespace: &str) -> Duration {
    let mut command = Command::new(floor_program(program));
    let start = Instant::now();
    run(command.arg(format!("/run/netns/{namespace}")));
    start.elapsed()
}

fn floor_program(name: &str) -> PathBuf {
    env::current_exe().expect("the path of this program").with_file_name("examples").join(name)
}

/// A pod that the plugins of a network attach and detach.
pub(crate) struct CniPod<'a> {
    network: &'a Value,
    plugins: &'a Path,
    pub(crate) name: String,
    id: String,
    /// On the host.
    ports: Range<u16>,
}

impl<'a> CniPod<'a> {
    fn cycle(&self) -> [Duration; OPERATIONS.len()] {
        let (adds, result) = self.add();
        let dels = self.del(&result);
        // portmap is the last of the chain, and so the first to detach.
        [adds.iter().sum(), dels.iter().sum(), adds[0], dels[dels.len() - 1]]
    }

    fn chain(&self) -> &'a Vec<Value> {
        self.network["plugins"].as_array().expect("a network is a list of plugins")
    }

    /// How long each plugin took, and the result of the last.
    pub(crate) fn add(&self) -> (Vec<Duration>, Value) {
        let (mut result, mut took) = (Value::Null, Vec::new());
        for plugin in self.chain() {
            let (time, output) = self.exec("ADD", plugin, &result);
            took.push(time);
            result = serde_json::from_slice(&output).expect("a plugin answers in JSON");
        }
        assert_eq!(result["ips"].as_array().map(Vec::len), Some(2), "an address of either version: {result}");
        (took, result)
    }

    /// How long each plugin took, the last of the chain first.
    pub(crate) fn del(&self, result: &Value) -> Vec<Duration> {
        self.chain().iter().rev().map(|plugin| self.exec("DEL", plugin, result).0).collect()
    }

    /// What libcni writes to a plugin's stdin.
    fn config(&self, plugin: &Value, previous: &Value) -> Vec<u8> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.network["cniVersion"].clone();
        config["name"] = self.network["name"].clone();
        if plugin["capabilities"]["portMappings"] == true {
            let ports = self.ports.clone();
            let ports = ports.map(|port| json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp" }));
            // What containerd passes for a pod that has none.
            let ports = if self.ports.is_empty() { Value::Null } else { ports.collect() };
            config["runtimeConfig"] = json!({ "portMappings": ports });
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

//! A node of 1,000 pods beside one of ten: what one more pod costs on either, and how fast two pods talk. The node is first small, then
//! full, then small again, so that a machine that gets slower is not taken for a node that does.
//!
//! As in [`crate::cni`], the program runs itself on the node and calls the plugin from there; its pods are namespaces.

use std::fs;
use std::io::{Write, stdin};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_conformance::{run, wait_until};

use crate::Nodes;
use crate::cni::{CniPod, Home};
use crate::on_node::OnNode;
use crate::report::{Estimate, Samples, Table};
use crate::traffic::netbench;
use crate::weft_node;

/// The word that tells the program that it runs on a node; the directory of the node follows.
pub(crate) const ON_NODE: &str = "scale-on-node";
const FEW: usize = 10;
const MANY: usize = 1000;
/// Pods that come and go at each size, after three that are not counted.
const PODS: usize = 40;
const WARM_UP: usize = 3;
/// Seconds of request/response at each size.
const ROUNDS: usize = 5;
const PORT: &str = "7000";

/// What is measured at one size.
#[derive(Default)]
struct Size {
    add: Samples,
    del: Samples,
    per_second: Samples,
}

/// A node of its own: the pods of other measurements are not among these.
pub(crate) fn measure(_: &Nodes) -> Table {
    let node = weft_node(&[]);
    let mut there = OnNode::start(&node, ON_NODE, &[]);
    let (mut few, mut many) = (Size::default(), Size::default());
    fill(&mut there, FEW);
    look(&mut there, &mut few);
    fill(&mut there, MANY);
    look(&mut there, &mut many);
    let [reclaimed]: [f64; 1] = there.ask(&format!("empty {FEW}"));
    look(&mut there, &mut few);
    let one_by_one: Samples = (0..20).map(|_| there.ask::<[f64; 1]>("link")[0]).collect();
    there.ask::<[f64; 1]>("empty 0");
    there.end();
    node.finish();
    table(&few, &many, reclaimed, &one_by_one)
}

fn table(few: &Size, many: &Size, reclaimed: f64, one_by_one: &Samples) -> Table {
    let text = format!(
        "{PODS} pods that come and go by CNI ADD and DEL at each size, and request/response between two pods, server and client on a \
         processor each. Reclaimed: from the removal of the first of {} namespaces to the end of the last link, beside as many times \
         the deletion of one pair of links that is waited for.",
        MANY - FEW
    );
    let header = ["median (90th percentile)", "10 pods", "1,000 pods", "ratio", "expected", "reached"];
    let mut table = Table::new("Scale", text, &header);
    let cells =
        |what: &str, few: &Samples, many: &Samples| vec![what.to_owned(), few.with_p90(2), many.with_p90(2)];
    for (what, few, many) in [("ADD (ms)", &few.add, &many.add), ("DEL (ms)", &few.del, &many.del)] {
        let ratio = Estimate::ratio(many, few);
        table.bounded(cells(what, few, many), ratio, ratio, 1.15);
    }
    let (few, many) = (&few.per_second, &many.per_second);
    table.row(cells("request/response (1/s)", few, many), Estimate::ratio(many, few), Some(0.97));
    let singly = one_by_one.median() * (MANY - FEW) as f64;
    let reclaim = vec![
        "reclaimed one by one, and together (ms)".to_owned(),
        format!("{singly:.0}"),
        format!("{reclaimed:.0}"),
    ];
    table.bounded(reclaim, reclaimed / singly, reclaimed / singly, 0.5);
    table
}

fn fill(there: &mut OnNode, pods: usize) {
    there.ask::<[f64; 1]>(&format!("fill {pods}"));
}

fn look(there: &mut OnNode, size: &mut Size) {
    for pod in 0..WARM_UP + PODS {
        let [add, del]: [f64; 2] = there.ask("pod");
        if pod >= WARM_UP {
            size.add.push(add);
            size.del.push(del);
        }
    }
    for _ in 0..ROUNDS {
        let [per_second] = there.ask("talk");
        size.per_second.push(per_second);
    }
}

/// The other side of [`OnNode`]: serves until stdin ends.
pub(crate) fn serve(node: &Path) {
    let home = Home::of(node);
    let mut crowd = Crowd { home: &home, residents: Vec::new(), next: 0, server: None };
    for line in stdin().lines() {
        let line = line.expect("read from stdin");
        let mut words = line.split(' ');
        let figures = match (words.next(), words.next().map(|number| number.parse().expect("a number"))) {
            (Some("fill"), Some(pods)) => crowd.fill(pods),
            (Some("empty"), Some(pods)) => crowd.empty(pods),
            (Some("pod"), None) => crowd.pod(),
            (Some("talk"), None) => crowd.talk(),
            (Some("link"), None) => link(),
            _ => panic!("{line}: want fill N, empty N, pod, talk or link"),
        };
        println!("{}", json!(figures));
    }
}

/// The node's pods.
struct Crowd<'a> {
    home: &'a Home,
    residents: Vec<(CniPod<'a>, Value)>,
    next: usize,
    /// In the first resident.
    server: Option<Child>,
}

impl<'a> Crowd<'a> {
    fn new_pod(&mut self) -> CniPod<'a> {
        self.next += 1;
        self.home.pod(self.next, 0..0)
    }

    fn fill(&mut self, pods: usize) -> Vec<f64> {
        let new: Vec<CniPod<'a>> = (self.residents.len()..pods).map(|_| self.new_pod()).collect();
        batch(new.iter().map(|pod| format!("netns add {}", pod.name)));
        for pod in new {
            let (_, result) = pod.add();
            self.residents.push((pod, result));
        }
        vec![pods as f64]
    }

    /// The milliseconds until the links of all but so many pods are gone.
    fn empty(&mut self, pods: usize) -> Vec<f64> {
        if let Some(mut server) = self.server.take_if(|_| pods == 0) {
            server.kill().and_then(|()| server.wait()).expect("end the server");
        }
        let gone = self.residents.split_off(pods);
        for (pod, result) in &gone {
            pod.del(result);
        }
        let start = Instant::now();
        batch(gone.iter().map(|(pod, _)| format!("netns del {}", pod.name)));
        wait_until(Duration::from_secs(120), "the links are gone", || links() == pods);
        vec![millis(start)]
    }

    fn pod(&mut self) -> Vec<f64> {
        let pod = self.new_pod();
        run(Command::new("ip").args(["netns", "add", &pod.name]));
        let (add, result) = pod.add();
        let del = pod.del(&result);
        run(Command::new("ip").args(["netns", "del", &pod.name]));
        [add, del].map(|times| times.iter().sum::<Duration>().as_secs_f64() * 1e3).to_vec()
    }

    fn talk(&mut self) -> Vec<f64> {
        let [(server, result), (client, _), ..] = self.residents.as_slice() else { panic!("two pods talk") };
        let address =
            result["ips"][0]["address"].as_str().expect("an address").split('/').next().expect("text");
        let inside = |pod: &CniPod<'_>, arguments: &[&str]| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &pod.name]).arg(netbench()).args(arguments);
            command
        };
        if self.server.is_none() {
            let mut command = inside(server, &["server", "--addr", address, "--port", PORT, "--cpu", "1"]);
            self.server =
                Some(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("run ip(8)"));
            wait_until(Duration::from_secs(10), "the server listens", || {
                let mut command = Command::new("ip");
                run(command.args(["netns", "exec", &server.name, "ss", "-ltnH"])).contains(PORT)
            });
        }
        let asked = ["client", "rr", "--seconds", "1", "--addr", address, "--port", PORT, "--cpu", "0"];
        let answer: Value =
            serde_json::from_str(&run(&mut inside(client, &asked))).expect("netbench prints JSON");
        vec![answer["per_second"].as_f64().expect("netbench prints the figure")]
    }
}

/// The milliseconds that the deletion of one pair of links takes.
fn link() -> Vec<f64> {
    run(Command::new("ip").args(["link", "add", "single0", "type", "veth", "peer", "name", "single1"]));
    let start = Instant::now();
    run(Command::new("ip").args(["link", "del", "single0"]));
    vec![millis(start)]
}

/// Many commands of ip(8) in one process.
fn batch(lines: impl Iterator<Item = String>) {
    let mut child =
        Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("run ip(8)");
    let mut input = child.stdin.take().expect("stdin is piped");
    lines.for_each(|line| writeln!(input, "{line}").expect("write to ip(8)"));
    drop(input);
    assert!(child.wait().expect("wait for ip(8)").success(), "ip -batch");
}

/// Host ends of pods.
fn links() -> usize {
    let listed = fs::read_dir("/proc/sys/net/ipv4/conf").expect("list the links").flatten();
    listed.filter(|entry| entry.file_name().to_string_lossy().starts_with("weft")).count()
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

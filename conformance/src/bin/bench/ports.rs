//! A pod with a host port on a node where other pods have 10,000, beside one where none has any: whether one more costs the same.
//! What 200 ports in one pod cost beside portmap is in [`crate::cni`].
//!
//! As there, the program runs itself on the nodes and calls the plugin from there; a pod is a namespace.

use std::io::stdin;
use std::path::Path;

use serde_json::json;

use crate::cni::{FIRST_PORT, Home, Running};
use crate::on_node::OnNode;
use crate::report::{Estimate, Samples, Table};
use crate::{Nodes, weft_node};

/// The word that tells the program that it runs on a node; the directory of the node follows.
pub(crate) const ON_NODE: &str = "ports-on-node";
/// Other pods on either node, and the ports of each on one of them: 10,000.
const POPULATION: u16 = 50;
const EACH: u16 = 200;
/// Pods with one port that come and go on each node, taking turns, after three that are not counted.
const PODS: usize = 100;
const WARM_UP: usize = 3;

/// Two nodes of their own, with as many pods: ports are all that tells them apart.
pub(crate) fn measure(_: &Nodes) -> Table {
    let nodes = [0, 1].map(|_| weft_node(&[]));
    let mut arms = nodes.each_ref().map(|node| OnNode::start(node, ON_NODE, &[]));
    for (arm, ports) in arms.iter_mut().zip([0, EACH]) {
        arm.ask::<Vec<f64>>(&format!("fill {ports}"));
    }
    let (mut add, mut del) = (<[Samples; 2]>::default(), <[Samples; 2]>::default());
    for pod in 0..WARM_UP + PODS {
        for turn in 0..2 {
            let arm = (pod + turn) % 2;
            let times: [f64; 2] = arms[arm].ask("pod");
            if pod >= WARM_UP {
                add[arm].push(times[0]);
                del[arm].push(times[1]);
            }
        }
    }
    for mut arm in arms {
        arm.ask::<Vec<f64>>("empty");
        arm.end();
    }
    for node in nodes {
        node.finish();
    }
    let text = format!(
        "CNI ADD and DEL of {PODS} pods with a host port of their own each, on a node of {POPULATION} other pods with {EACH} host ports each, and on \
         one whose {POPULATION} other pods have none, taking turns. {EACH} ports in one pod, beside portmap, are in the table CNI."
    );
    let header =
        ["median (90th percentile)", "none present", "10,000 present", "ratio", "expected", "reached"];
    let mut table = Table::new("Host ports", text, &header);
    for (what, samples) in [("ADD (ms)", &add), ("DEL (ms)", &del)] {
        let [none, full] = samples;
        let ratio = Estimate::ratio(full, none);
        let cells = vec![what.to_owned(), none.with_p90(2), full.with_p90(2)];
        table.bounded(cells, ratio, ratio, 1.1);
    }
    table
}

/// The other side of [`OnNode`]: serves until stdin ends.
pub(crate) fn serve(node: &Path) {
    let (home, mut numbers, mut residents) = (Home::of(node), 0.., Vec::new());
    // Not one port again and again: those that have been withdrawn stay in the kernel's table for up to a second, and with more than 16
    // of one key it makes the table anew (`RHT_ELASTICITY` in lib/rhashtable.c).
    let mut ports = (1..FIRST_PORT).rev();
    let mut run = |ports| home.run(numbers.next().expect("numbers do not end"), ports);
    for line in stdin().lines() {
        let line = line.expect("read from stdin");
        let times = match (line.as_str(), line.strip_prefix("fill ")) {
            (_, Some(ports)) => {
                let ports: u16 = ports.parse().expect("a number of ports");
                let first = |pod| FIRST_PORT + pod * ports;
                residents.extend((0..POPULATION).map(|pod| run(first(pod)..first(pod + 1))));
                vec![]
            }
            ("pod", None) => {
                let port = ports.next().expect("fewer pods than ports");
                let pod = run(port..port + 1);
                vec![pod.add, pod.end()]
            }
            ("empty", None) => residents.drain(..).map(Running::end).collect(),
            _ => panic!("{line}: want fill PORTS, pod or empty"),
        };
        println!("{}", json!(times));
    }
}

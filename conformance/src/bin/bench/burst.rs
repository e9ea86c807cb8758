//! Pods in a burst: 200, eight at a time, each through its whole life, by critest's own benchmark, which speaks CRI without a process
//! per call.

use std::fs;
use std::process::Stdio;

use serde_json::Value;
use weft_conformance::{Node, Subject, Tools, run};

use crate::Nodes;
use crate::report::{Estimate, Samples, Table};

/// Per arm, in rounds that take turns.
const ROUNDS: usize = 12;
const PODS: usize = 50;
const PARALLEL: usize = 8;

/// Of one arm, all rounds.
#[derive(Default)]
struct Arm {
    pods_per_second: Samples,
    whole: Samples,
    operations: Vec<(String, Samples)>,
}

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let mut arms = [Arm::default(), Arm::default()];
    for round in 0..ROUNDS {
        for turn in 0..2 {
            let arm = (round + turn) % 2;
            arms[arm].add(&life_of_many([&nodes.weft, &nodes.reference][arm]));
        }
    }
    let text = format!(
        "{} pods without containers, {PARALLEL} at a time, from RunPodSandbox over PodSandboxStatus and StopPodSandbox to the end of \
         RemovePodSandbox, by critest's benchmark, in {ROUNDS} rounds that take turns. Every call succeeded, or there would be no table.",
        ROUNDS * PODS
    );
    let [weft, reference] = &arms;
    let header = ["8 at a time", "weft", "reference", "ratio", "expected", "reached"];
    let mut table = Table::new("Burst", text, &header);
    let pair = |what: &str, values: [f64; 2]| {
        vec![what.to_owned(), format!("{:.1}", values[0]), format!("{:.1}", values[1])]
    };
    let rates = [&weft.pods_per_second, &reference.pods_per_second];
    let ratio = Estimate::ratio(rates[0], rates[1]);
    table.row(pair("whole life (pods/s)", rates.map(Samples::median)), ratio, Some(12.0));
    let mut times = |what: &str, weft: &Samples, reference: &Samples| {
        let halves = [weft, reference].map(Samples::median);
        table.row(pair(&format!("{what}, median (ms)"), halves), halves[1] / halves[0], None);
        let tails = [weft, reference].map(Samples::p99);
        table.row(pair(&format!("{what}, 99th percentile (ms)"), tails), tails[1] / tails[0], None);
    };
    times("whole life", &weft.whole, &reference.whole);
    for ((name, weft), (_, reference)) in weft.operations.iter().zip(&reference.operations) {
        times(name, weft, reference);
    }
    let spread = |whole: &Samples| whole.p99() / whole.median();
    let cells = pair("whole life, 99th percentile / median", [&weft.whole, &reference.whole].map(spread));
    let ratio = Estimate::of([&weft.whole], |[whole]| spread(whole));
    table.bounded(cells, ratio, ratio, 2.0);
    table
}

impl Arm {
    /// `{"operationsNames": […], "datapoints": [{"startTime", "endTime", "operationsDurationsNs": […]}]}`, all times in nanoseconds.
    fn add(&mut self, results: &Value) {
        let lives = list(&results["datapoints"]);
        assert_eq!(lives.len(), PODS, "every pod lived its whole life");
        let first = lives.iter().map(|life| number(&life["startTime"])).fold(f64::INFINITY, f64::min);
        let last = lives.iter().map(|life| number(&life["endTime"])).fold(0.0, f64::max);
        self.pods_per_second.push(PODS as f64 / ((last - first) / 1e9));
        let names = list(&results["operationsNames"]);
        self.operations.resize_with(names.len(), Default::default);
        for life in lives {
            self.whole.push((number(&life["endTime"]) - number(&life["startTime"])) / 1e6);
            let times = list(&life["operationsDurationsNs"]).iter().map(number);
            for ((operation, name), took) in self.operations.iter_mut().zip(names).zip(times) {
                name.as_str().expect("an operation has a name").clone_into(&mut operation.0);
                operation.1.push(took / 1e6);
            }
        }
    }
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().expect("critest writes a list")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("critest writes a number")
}

/// Runs critest's benchmark of pods on the node.
fn life_of_many(node: &Node) -> Value {
    let (dir, parameters) = (node.dir().join("burst"), node.dir().join("burst.yaml"));
    fs::create_dir_all(&dir).expect("make a folder for critest");
    fs::write(&parameters, format!("podsNumber: {PODS}\npodsNumberParallel: {PARALLEL}\n"))
        .expect("write critest's parameters");
    let mut command = node.command(Tools::find().program("critest"));
    command.env("HOME", &dir).env("TMPDIR", &dir).current_dir(&dir).stdin(Stdio::null());
    let socket = format!("unix://{}/containerd.sock", node.dir().display());
    command.args(["--runtime-endpoint", &socket, "--image-endpoint", &socket, "--benchmark"]);
    command.arg("--benchmarking-params-file").arg(&parameters);
    command.arg("--benchmarking-output-dir").arg(&dir);
    if node.subject() == Subject::Weft {
        command.arg("--runtime-handler=weft");
    }
    run(command.args(["--ginkgo.no-color", "--ginkgo.skip=Container|Image|from scratch"]));
    let results = fs::read(dir.join("pod_benchmark_data.json")).expect("critest has measured");
    serde_json::from_slice(&results).expect("critest writes JSON")
}

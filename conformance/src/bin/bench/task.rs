//! The Task service: a container's life, call by call, spoken to both shims over ttrpc, and the same by runc alone.
//!
//! A shim is started and asked as containerd does it, on its node, where the program runs itself; the arms take turns. Containers
//! have bundles on a tmpfs, fifos for their output, a bind mount for a root file system, and no network namespace of their own.
//! What runc takes is the same for all, so what a shim adds to it is its share.

use std::io::stdin;
use std::path::Path;

use serde_json::json;

use crate::Nodes;
use crate::alone::Alone;
use crate::on_node::OnNode;
use crate::report::{Estimate, Samples, Table, Verdict, none};
use crate::shim::Shim;

/// The word that tells the program that it runs on a node; the directory of the node and the arm follow.
pub(crate) const ON_NODE: &str = "task-on-node";
/// Containers per arm, after one that is not counted.
const CONTAINERS: usize = 40;
/// One container's life in each.
const ARMS: [&str; 3] = ["containerd-shim-weft-v1", "containerd-shim-runc-v2", "runc"];

/// How a row is judged.
enum Expected {
    Nothing,
    /// At least so many times faster than the reference.
    Faster(f64),
    /// At most so many ms more than runc alone.
    Share(f64),
}

/// In the order of a container's life; the last is another container's.
const CALLS: [(&str, Expected); 8] = [
    ("start of a shim, until it answers", Expected::Faster(3.0)),
    ("Create", Expected::Share(2.0)),
    ("Start", Expected::Share(2.0)),
    ("Exec and its Start", Expected::Nothing),
    ("Exec of true, Start, Wait, Delete", Expected::Nothing),
    ("Kill and Wait", Expected::Nothing),
    ("Delete", Expected::Nothing),
    ("`delete` after kill -9 of a shim", Expected::Nothing),
];

/// In ms; none where an arm has nothing of the kind.
pub(crate) type Times = [Option<f64>; CALLS.len()];

pub(crate) fn measure(nodes: &Nodes) -> Table {
    // runc alone runs where weft runs.
    let homes = [&nodes.weft, &nodes.reference, &nodes.weft];
    let mut arms: Vec<OnNode> =
        homes.iter().zip(ARMS).map(|(node, arm)| OnNode::start(node, ON_NODE, &[arm])).collect();
    for arm in &mut arms {
        arm.ask::<Times>("");
    }
    let mut samples: [[Samples; ARMS.len()]; CALLS.len()] = Default::default();
    for container in 0..CONTAINERS {
        for turn in 0..ARMS.len() {
            let arm = (container + turn) % ARMS.len();
            for (samples, time) in samples.iter_mut().zip(arms[arm].ask::<Times>("")) {
                time.into_iter().for_each(|time| samples[arm].push(time));
            }
        }
    }
    arms.into_iter().for_each(OnNode::end);
    table(&samples)
}

fn table(samples: &[[Samples; ARMS.len()]; CALLS.len()]) -> Table {
    let text = format!(
        "From a request over ttrpc to its answer, of {CONTAINERS} containers, one at a time, each with a shim of its own; runc alone: from \
         the start of the same command to its exit. weft's share is what its median has over runc's. `delete` is run on a \
         container whose shim was killed."
    );
    let header = [
        "ms: median (90th percentile)",
        "weft",
        "reference",
        "runc alone",
        "weft's share",
        "reference's share",
        "reference / weft",
        "expected",
        "reached",
    ];
    let mut table = Table::new("Task", text, &header);
    for ((call, expected), samples) in CALLS.iter().zip(samples) {
        let medians = samples.each_ref().map(|times| times.median_if_any());
        let [weft, reference, runc] = medians;
        let (weft, reference) = (weft.expect("weft has every call"), reference.expect("the reference too"));
        let cell = |times: &Samples| times.median_if_any().map(|m| format!("{m:.2} ({:.2})", times.p90()));
        let share = |of: f64| runc.map(|runc| of - runc);
        let mut cells = vec![Some((*call).to_owned())];
        cells.extend(samples.iter().map(cell));
        cells.extend([weft, reference].map(|of| share(of).map(|share| format!("{share:.2}"))));
        cells.push(Some(format!("{:.2}", reference / weft)));
        let verdict = match expected {
            Expected::Nothing => None,
            Expected::Faster(least) => {
                let ratio = Estimate::ratio(&samples[1], &samples[0]);
                Some(Verdict::of(ratio, format!("≥ {least} times faster"), ratio.least(*least)))
            }
            Expected::Share(most) => {
                let share =
                    Estimate::of([&samples[0], &samples[2]], |[weft, runc]| weft.median() - runc.median());
                Some(Verdict::of(share, format!("share ≤ {most}"), share.most(*most)))
            }
        };
        table.judged(cells.into_iter().map(|cell| cell.unwrap_or_else(none)).collect(), verdict);
    }
    table
}

/// The other side of [`OnNode`]: for every line it lives a container's life and answers how long each step took, until stdin ends.
pub(crate) fn serve(node: &Path, arm: &str) {
    for (number, line) in stdin().lines().enumerate() {
        line.expect("read from stdin");
        let id = format!("bench-{arm}-{number}");
        let times = if arm == ARMS[2] {
            Alone::new(node, &id).live()
        } else {
            let mut times = Shim::new(node, arm, &id).live();
            times[CALLS.len() - 1] = Some(Shim::new(node, arm, &format!("{id}-killed")).die());
            times
        };
        println!("{}", json!(times));
    }
}

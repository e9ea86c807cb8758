//! What a node full of pods costs while nothing happens but that everybody is asked for counters: containerd's collector asks for
//! those of each container and each pod once a second (`defaultCollectionInterval` in internal/cri/server/stats_collector.go).
//!
//! Both nodes are full at the same time and measured over the same time.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use weft_conformance::{ContainerSpec, Node, Pod, PodSpec, image};

use crate::report::Table;
use crate::{Nodes, end, in_parallel};

const PODS: usize = 100;
/// The collector has its rounds, so many of them.
const WINDOW: Duration = Duration::from_secs(20);
/// Those that are counted, by the name of the process, and what they are called.
const KINDS: [(&str, &[&str]); 2] =
    [("shims and pause", &["containerd-shim", "sandbox-init", "pause"]), ("containerd", &["containerd"])];

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let both = [&nodes.weft, &nodes.reference];
    let pods: Vec<Pod<'_>> = both.into_iter().flat_map(fill).collect();
    let before = both.map(spent);
    let begin = Instant::now();
    // The threads that filled the nodes have left a token, which ends one pause at once (`std::thread::park`).
    while begin.elapsed() < WINDOW {
        thread::park_timeout(WINDOW.saturating_sub(begin.elapsed()));
    }
    let after = both.map(spent);
    let seconds = begin.elapsed().as_secs_f64();
    in_parallel(pods, end);
    let text = format!(
        "Processor time of {PODS} pods with one sleeping container each, in ms per second, over {:.0} seconds in which containerd asks for \
         the counters of each pod and container every second.",
        WINDOW.as_secs_f64()
    );
    let header = ["ms per second", "weft", "reference", "reference / weft", "expected", "reached"];
    let mut table = Table::new("Idle", text, &header);
    for (kind, (name, _)) in KINDS.iter().enumerate() {
        let [weft, reference] = [0, 1].map(|node| (after[node][kind] - before[node][kind]) / 1e6 / seconds);
        let cells = [weft, reference].map(|value| format!("{value:.2}"));
        table.row([vec![(*name).to_owned()], cells.into()].concat(), reference / weft, None);
    }
    table
}

fn fill(node: &Node) -> Vec<Pod<'_>> {
    let run = |number: usize| {
        let pod = node.run_pod(&PodSpec::new(&format!("idle{number}")));
        pod.run(&ContainerSpec::new("main", image::BUSYBOX).command(&["sleep", "3600"]));
        pod
    };
    in_parallel((0..PODS).collect(), run)
}

/// Nanoseconds that the node's processes of each kind have had so far.
fn spent(node: &Node) -> [f64; KINDS.len()] {
    let mut spent = [0.0; KINDS.len()];
    for entry in fs::read_dir(node.path("/proc")).expect("list the node's /proc").flatten() {
        let process = entry.path();
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        for (spent, (_, names)) in spent.iter_mut().zip(KINDS) {
            if names.contains(&name.trim()) {
                *spent += on_processor(&process);
            }
        }
    }
    spent
}

/// The first field of schedstat, of all threads (Documentation/scheduler/sched-stats.rst).
fn on_processor(process: &Path) -> f64 {
    let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    let times = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    times.sum()
}

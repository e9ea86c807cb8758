//! What a running pod holds in processes: those of the node that are neither containerd nor a container's own.
//!
//! Kernel memory (namespaces, links, map entries, cgroups) is not in it. Pages that shims share count by their share (PSS), so the
//! figures are those of a node with this many pods, not of one pod alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use weft_conformance::{ContainerSpec, Node, Pod, PodSpec, image};

use crate::report::Table;
use crate::{Nodes, end};

const PODS: u32 = 10;
/// In each container: left out, for it is the same for all.
const PAYLOAD: &str = "sleep";

/// The sum over all processes.
#[derive(Default)]
struct Held {
    /// By name.
    processes: BTreeMap<String, u32>,
    threads: u64,
    pss_kb: u64,
    private_dirty_kb: u64,
}

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let (weft, reference) = (Held::by(&nodes.weft), Held::by(&nodes.reference));
    let text = format!(
        "The mean over {PODS} pods on a node, in kB, of /proc/PID/smaps_rollup. The processes are: {}; with a container, whose own \
         process is left out: {}. Expected of PSS is a fifth of the reference's.",
        names(&weft[0], &reference[0]),
        names(&weft[1], &reference[1])
    );
    let header = ["per pod", "weft", "reference", "reference / weft", "expected", "reached"];
    let mut table = Table::new("Memory", text, &header);
    let kinds = ["pod without a container", "pod with one container"];
    for (kind, (weft, reference)) in kinds.iter().zip(weft.iter().zip(&reference)) {
        let mut row = |what: &str, decimals: usize, least: Option<f64>, of: &dyn Fn(&Held) -> u64| {
            let [weft, reference] = [weft, reference].map(|held| of(held) as f64 / f64::from(PODS));
            let cells = [weft, reference].map(|value| format!("{value:.decimals$}"));
            table.row([vec![format!("{kind}: {what}")], cells.into()].concat(), reference / weft, least);
        };
        row("PSS", 0, (*kind == kinds[0]).then_some(5.0), &|held| held.pss_kb);
        row("private dirty", 0, None, &|held| held.private_dirty_kb);
        row("processes", 1, None, &|held| held.processes.values().map(|count| u64::from(*count)).sum());
        row("threads", 1, None, &|held| held.threads);
    }
    table
}

fn names(weft: &Held, reference: &Held) -> String {
    let list = |held: &Held| {
        let list = held.processes.iter().map(|(name, count)| format!("{count} × {name}"));
        list.collect::<Vec<_>>().join(", ")
    };
    format!("weft {}, reference {}", list(weft), list(reference))
}

impl Held {
    /// All pods of the node, before and after each has a container.
    fn by(node: &Node) -> [Self; 2] {
        let pods: Vec<Pod<'_>> =
            (0..PODS).map(|pod| node.run_pod(&PodSpec::new(&format!("memory{pod}")))).collect();
        let bare = Self::now(node);
        for pod in &pods {
            pod.run(&ContainerSpec::new("main", image::BUSYBOX).command(&[PAYLOAD, "3600"]));
        }
        let full = Self::now(node);
        pods.into_iter().for_each(end);
        [bare, full]
    }

    fn now(node: &Node) -> Self {
        let mut held = Self::default();
        for entry in fs::read_dir(node.path("/proc")).expect("list the node's /proc").flatten() {
            // Process 1 holds the node's namespaces.
            if entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
                .is_some_and(|pid| pid != 1)
            {
                held.count(&entry.path());
            }
        }
        held
    }

    /// Counts a process, unless it ends meanwhile: a process that did so was not the pod's.
    fn count(&mut self, process: &Path) {
        let read = |name: &str| fs::read_to_string(process.join(name)).ok();
        let (Some(name), Some(status), Some(smaps)) = (read("comm"), read("status"), read("smaps_rollup"))
        else {
            return;
        };
        let name = name.trim();
        if ["containerd", PAYLOAD].contains(&name) {
            return;
        }
        *self.processes.entry(name.to_owned()).or_default() += 1;
        self.threads += field(&status, "Threads:");
        self.pss_kb += field(&smaps, "Pss:");
        self.private_dirty_kb += field(&smaps, "Private_Dirty:");
    }
}

fn field(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let value =
        lines.next().and_then(|rest| rest.split_whitespace().next()).expect("a file of /proc has the field");
    value.parse().expect("a number")
}

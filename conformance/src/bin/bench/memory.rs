//! What a running pod holds in processes: those of the node that are neither containerd nor a container's own.
//!
//! Kernel memory (namespaces, links, map entries, cgroups) is not in it. Pages that shims share count by their share (PSS), so the
//! figures are those of a node with this many pods, not of one pod alone.

use weft_conformance::{ContainerSpec, Held, Node, Pod, PodSpec, image};

use crate::report::Table;
use crate::{Nodes, end};

const PODS: u32 = 50;
/// In each container: left out, for it is the same for all.
const PAYLOAD: &str = "sleep";

const KINDS: [&str; 3] =
    ["pod without a container", "pod whose container has come and gone", "pod with its second container"];

/// In kB, for a pod that has run a container.
const PSS: f64 = 400.0;
const PRIVATE_DIRTY: f64 = 250.0;

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let (weft, reference) = (states(&nodes.weft), states(&nodes.reference));
    let text = format!(
        "The mean over {PODS} pods on a node, in kB, of /proc/PID/smaps_rollup, once nothing has changed for two seconds. The \
         processes are: {}; a container's own process is left out.",
        names(&weft[2], &reference[2])
    );
    let header = ["per pod", "weft", "reference", "reference / weft", "expected", "reached"];
    let mut table = Table::new("Memory", text, &header);
    for (kind, (weft, reference)) in KINDS.iter().zip(weft.iter().zip(&reference)) {
        let has_run = *kind != KINDS[0];
        let mut row = |what: &str, decimals: usize, most: Option<f64>, of: &dyn Fn(&Held) -> u64| {
            let [weft, reference] = [weft, reference].map(|held| of(held) as f64 / f64::from(PODS));
            let cells = [weft, reference].map(|value| format!("{value:.decimals$}"));
            let cells = [vec![format!("{kind}: {what}")], cells.into()].concat();
            match most {
                Some(most) => table.bounded(cells, reference / weft, weft, most),
                None => table.row(cells, reference / weft, (what == "PSS").then_some(5.0)),
            }
        };
        let processes = |held: &Held| held.processes.values().map(|count| u64::from(*count)).sum();
        row("PSS", 0, has_run.then_some(PSS), &|held| held.pss_kb);
        row("private dirty", 0, has_run.then_some(PRIVATE_DIRTY), &|held| held.private_dirty_kb);
        row("processes", 1, None, &processes);
        let one_each = processes(weft) as f64 / f64::from(PODS);
        row("threads", 1, has_run.then_some(one_each), &|held| held.threads);
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

/// All pods of the node: before each has a container, after one, and with a second.
fn states(node: &Node) -> [Held; 3] {
    let pods: Vec<Pod<'_>> =
        (0..PODS).map(|pod| node.run_pod(&PodSpec::new(&format!("memory{pod}")))).collect();
    let bare = Held::settled(node, PAYLOAD);
    for pod in &pods {
        let first = pod.run(&ContainerSpec::new("first", image::BUSYBOX).command(&[PAYLOAD, "3600"]));
        first.stop(0);
        first.remove();
    }
    let after = Held::settled(node, PAYLOAD);
    for pod in &pods {
        pod.run(&ContainerSpec::new("main", image::BUSYBOX).command(&[PAYLOAD, "3600"]));
    }
    let full = Held::settled(node, PAYLOAD);
    pods.into_iter().for_each(end);
    [bare, after, full]
}

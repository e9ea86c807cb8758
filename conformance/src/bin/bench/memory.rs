//! What one more pod holds in processes: those of the node that are neither containerd nor a container's own.
//!
//! Kernel memory (namespaces, links, map entries, cgroups) is not in it. Pages that shims share count by their share (PSS), so a pod
//! alone looks dear and the hundredth cheap: told is the slope, from a node of a few pods to a full one.

use weft_conformance::{ContainerSpec, Held, Node, Pod, PodSpec, image};

use crate::report::Table;
use crate::{Nodes, end, in_parallel};

/// From so many pods to so many.
const FEW: usize = 10;
const MANY: usize = 200;
/// In each container: left out, for it is the same for all.
const PAYLOAD: &str = "sleep";

const KINDS: [&str; 3] =
    ["pod without a container", "pod whose container has come and gone", "pod with its second container"];

/// The reference's PSS, at least so many times weft's.
const PSS: f64 = 16.0;
/// weft's, in kB, at most.
const PRIVATE_DIRTY: f64 = 200.0;

/// How a row is judged.
enum Expected {
    Nothing,
    Ratio(f64),
    AtMost(f64),
}

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let (weft, reference) = (States::of(&nodes.weft), States::of(&nodes.reference));
    let text = format!(
        "The slope from {FEW} to {MANY} pods on a node, which is what {} more pods hold together, divided by their number. The sums are \
         of /proc/PID/smaps_rollup, in kB, once nothing has changed for two seconds. The processes are: {}; a container's own \
         process is left out.",
        MANY - FEW,
        names(&weft.many[2], &reference.many[2])
    );
    let header = ["per pod", "weft", "reference", "reference / weft", "expected", "reached"];
    let mut table = Table::new("Memory", text, &header);
    for (kind, name) in KINDS.iter().enumerate() {
        let mut row = |what: &str, decimals: usize, expected: Expected, of: &dyn Fn(&Held) -> u64| {
            let [weft, reference] = [&weft, &reference].map(|states| states.slope(kind, of));
            let cells = [weft, reference].map(|value| format!("{value:.decimals$}"));
            let cells = [vec![format!("{name}: {what}")], cells.into()].concat();
            match expected {
                Expected::Nothing => table.row(cells, reference / weft, None),
                Expected::Ratio(least) => table.row(cells, reference / weft, Some(least)),
                Expected::AtMost(most) => table.bounded(cells, reference / weft, weft, most),
            }
        };
        let processes = |held: &Held| held.processes.values().map(|count| u64::from(*count)).sum();
        row("PSS (kB)", 0, Expected::Ratio(PSS), &|held| held.pss_kb);
        row("private dirty (kB)", 0, Expected::AtMost(PRIVATE_DIRTY), &|held| held.private_dirty_kb);
        row("processes", 1, Expected::Nothing, &processes);
        let one_each = Expected::AtMost(weft.slope(kind, processes));
        row("threads", 1, one_each, &|held| held.threads);
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

/// What a node's pods hold, in each of the [`KINDS`].
struct States {
    /// With few pods, which stay as they are in the end.
    few: Held,
    /// With many; the few are as before, the others of each kind.
    many: [Held; KINDS.len()],
}

impl States {
    fn of(node: &Node) -> Self {
        let mut pods = run(node, 0..FEW);
        bring_first(&pods);
        bring_second(&pods);
        let few = Held::settled(node, PAYLOAD);
        let more = run(node, FEW..MANY);
        let bare = Held::settled(node, PAYLOAD);
        bring_first(&more);
        let after = Held::settled(node, PAYLOAD);
        bring_second(&more);
        let full = Held::settled(node, PAYLOAD);
        pods.extend(more);
        in_parallel(pods, end);
        Self { few, many: [bare, after, full] }
    }

    /// Per pod.
    fn slope(&self, kind: usize, of: impl Fn(&Held) -> u64) -> f64 {
        (of(&self.many[kind]) as f64 - of(&self.few) as f64) / (MANY - FEW) as f64
    }
}

fn run(node: &Node, numbers: std::ops::Range<usize>) -> Vec<Pod<'_>> {
    in_parallel(numbers.collect(), |number| node.run_pod(&PodSpec::new(&format!("memory{number}"))))
}

/// A container that comes and goes, in each pod.
fn bring_first(pods: &[Pod<'_>]) {
    in_parallel(pods.iter().collect(), |pod| {
        let first = pod.run(&ContainerSpec::new("first", image::BUSYBOX).command(&[PAYLOAD, "3600"]));
        first.stop(0);
        first.remove();
    });
}

/// Another, which stays.
fn bring_second(pods: &[Pod<'_>]) {
    in_parallel(pods.iter().collect(), |pod| {
        drop(pod.run(&ContainerSpec::new("main", image::BUSYBOX).command(&[PAYLOAD, "3600"])));
    });
}

//! `make bench`: weft beside the reference in one run, the two taking turns, so that a busy or slow machine is the same for both.
//!
//! The measurements: the CNI plugins alone ([`cni`]), what they wait for ([`waits`]), a pod's life as CRI tells it ([`cri`]), many at once ([`burst`]), a
//! container's life call by call ([`task`]), what a running pod holds ([`memory`]), what a full node costs while nothing happens ([`idle`]),
//! a full node beside an empty one ([`scale`]), the store of addresses alone ([`ipam`]), many host ports ([`ports`]), TCP between two pods ([`tcp`]) and out
//! of the node ([`uplink`]), and what their traffic loses when programs are replaced ([`replace`]). The tables are printed and written to docs/benchmarks.md,
//! with a chart of each ([`chart`]), the figure that is expected and whether it was reached; before them stand the goals, one line each ([`goals`]).
//! A figure that is not reached is no error: the machine may be to blame.
//!
//! `bench tcp uplink`, or other names of [`MEASUREMENTS`], measures what is named, and writes no file.

#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measurement that tells its steps and ends at the first that fails"
)]

mod alone;
mod bundle;
mod burst;
mod chart;
mod cni;
mod cri;
mod goals;
mod idle;
mod ipam;
mod machine;
mod memory;
mod on_node;
mod ports;
mod replace;
mod report;
mod scale;
mod shim;
mod task;
mod tcp;
mod traffic;
mod uplink;
mod waits;

use std::cell::OnceCell;
use std::env;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use weft_conformance::{Node, NodeSpec, Pod, PodSpec, Subject};

use crate::report::Table;

const INTRODUCTION: &str = "# Benchmarks

Written by `make bench`, which measures weft and the reference in one run, taking turns. The reference is containerd-shim-runc-v2 with
runc and a pause container, and the CNI project's bridge, host-local and portmap. Both run below the same containerd, in network, mount
and pid namespaces of their own, with an address of either IP version per pod.

Of each figure that is judged 400 are made of samples drawn anew from those of the run, and 95 of 100 lie between its bounds, which are
printed behind a ratio where the table names no other spread. A goal between them is open: the run does not tell whether it is reached. What
the machine does to a whole table is not in them. So each waits until the hypervisor leaves the processors alone, and is measured anew when it
did not meanwhile; what it kept of their time is below the table.
";

/// What a run may take longer for a hypervisor that gives the processors to others.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// Calls at a time while pods come and go that are not timed.
const PARALLEL: usize = 8;
/// Where charts are, as seen from the page.
const CHARTS: &str = "benchmarks";

/// A node of each.
struct Nodes {
    weft: Node,
    reference: Node,
    /// Of weft's first ADD, which loads its programs, in ms: a table that is measured again finds them loaded.
    first_add: OnceCell<f64>,
}

impl Nodes {
    /// Both, and the other way round every second time: neither always follows the other.
    fn in_turn(&self, round: usize) -> [&Node; 2] {
        if round.is_multiple_of(2) { [&self.weft, &self.reference] } else { [&self.reference, &self.weft] }
    }

    /// A pod on each that stays while others come and go: an empty node is not what anybody waits for.
    fn residents(&self) -> [Pod<'_>; 2] {
        self.in_turn(0).map(|node| node.run_pod(&PodSpec::new("resident")))
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // How the program runs itself on a node.
        [cni::ON_NODE, directory] => cni::serve(Path::new(directory)),
        [ports::ON_NODE, directory] => ports::serve(Path::new(directory)),
        [scale::ON_NODE, directory] => scale::serve(Path::new(directory)),
        [waits::ON_NODE, directory] => waits::serve(Path::new(directory)),
        [task::ON_NODE, directory, arm] => task::serve(Path::new(directory), arm),
        [] => write(&measure(&MEASUREMENTS.map(|(name, _)| name))),
        some => drop(measure(some)),
    }
}

type Measurement = fn(&Nodes) -> Table;

const MEASUREMENTS: [(&str, Measurement); 13] = [
    ("cni", cni::measure),
    ("waits", waits::measure),
    ("cri", cri::measure),
    ("burst", burst::measure),
    ("task", task::measure),
    ("memory", memory::measure),
    ("idle", idle::measure),
    ("scale", scale::measure),
    ("ipam", ipam::measure),
    ("ports", ports::measure),
    ("tcp", tcp::measure),
    ("uplink", uplink::measure),
    ("replace", replace::measure),
];

/// What `make bench` leaves in docs/.
struct Page {
    text: String,
    /// Of each table, by the name of its measurement.
    charts: Vec<(&'static str, String)>,
}

/// Prints the page while it comes to be, and returns it.
fn measure(wanted: &[&str]) -> Page {
    for name in wanted {
        assert!(
            MEASUREMENTS.iter().any(|(known, _)| known == name),
            "{name}: want one of {:?}",
            MEASUREMENTS.map(|(known, _)| known)
        );
    }
    let (head, begin) = (format!("{INTRODUCTION}\n{}", machine::describe()), machine::Time::now());
    println!("{head}");
    let nodes = Nodes {
        weft: weft_node(&[]),
        reference: Node::start(Subject::Reference),
        first_add: OnceCell::new(),
    };
    let (mut text, mut tables) = (String::new(), Vec::new());
    let mut patience = PATIENCE;
    for (name, measure) in MEASUREMENTS.iter().filter(|(name, _)| wanted.contains(name)) {
        let (table, stolen) = quietest(*measure, &nodes, &mut patience);
        let stolen = format!("The hypervisor kept {:.1} % of the time.\n", stolen * 100.0);
        println!("{table}\n{stolen}");
        text += &format!("\n{table}\n{stolen}\n![The table as a chart]({CHARTS}/{name}.svg)\n");
        tables.push((*name, table));
    }
    nodes.reference.finish();
    nodes.weft.finish();
    let taken = begin.describe_since();
    let goals = goals::table(&tables);
    println!("{goals}\n{taken}");
    let charts = tables.iter().map(|(name, table)| (*name, chart::svg(table))).collect();
    Page { text: format!("{head}{taken}\n{goals}{text}"), charts }
}

/// The table, and the hypervisor's part of the processors' time. Of several, the one of which it kept least: what a table says is no
/// reason to measure it again.
fn quietest(measure: Measurement, nodes: &Nodes, patience: &mut Duration) -> (Table, f64) {
    let attempt = |patience: &mut Duration| {
        machine::await_quiet(patience);
        let begin = machine::Time::now();
        let table = measure(nodes);
        (begin.stolen_since(), table, begin.at.elapsed())
    };
    let (mut least, mut best, mut took) = attempt(patience);
    while least > machine::QUIET
        && let Some(left) = patience.checked_sub(took)
    {
        *patience = left;
        let (stolen, table, again) = attempt(patience);
        took = again;
        if stolen < least {
            (least, best) = (stolen, table);
        }
    }
    (best, least)
}

/// weft's state is on /run, as by default: leases are synced, which a disk makes slow. runc's and the reference's are there as well.
fn weft_node(env: &[(&str, &str)]) -> Node {
    start_weft(NodeSpec::new(Subject::Weft), env)
}

fn start_weft(mut spec: NodeSpec, env: &[(&str, &str)]) -> Node {
    let state = [("WEFT_RUN_DIR", "/run/weft"), ("WEFT_RUNTIME_ROOT", "/run/weft/runtime")];
    spec.env.extend(state.iter().chain(env).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Node::start_with(spec)
}

/// StopPodSandbox and RemovePodSandbox.
fn end(pod: Pod<'_>) {
    pod.stop();
    pod.remove();
}

/// The same for each, several at a time, for what is not timed. The results are in any order.
fn in_parallel<T: Send, R: Send>(mut all: Vec<T>, each: impl Fn(T) -> R + Sync) -> Vec<R> {
    let share = all.len().div_ceil(PARALLEL).max(1);
    thread::scope(|scope| {
        let each = &each;
        let mut threads = Vec::new();
        while !all.is_empty() {
            let part = all.split_off(all.len().saturating_sub(share));
            threads.push(scope.spawn(move || part.into_iter().map(each).collect::<Vec<R>>()));
        }
        threads.into_iter().flat_map(|thread| thread.join().expect("a part is done")).collect()
    })
}

fn write(page: &Page) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    fs::create_dir_all(docs.join(CHARTS)).expect("make docs");
    fs::write(docs.join("benchmarks.md"), &page.text).expect("write docs/benchmarks.md");
    for (name, chart) in &page.charts {
        fs::write(docs.join(CHARTS).join(name).with_extension("svg"), chart).expect("write a chart");
    }
    println!("written to docs/benchmarks.md and docs/{CHARTS}");
}

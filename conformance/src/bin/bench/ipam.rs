//! IPAM: an address of either IP version leased and released, in weft's store and in host-local's, by a program for each that calls the
//! store and nothing else: ipam/examples/lease.rs, conformance/tools/leases. Their requests are told there.
//!
//! Both stores are on a tmpfs, and both lose nothing when a process is killed and everything when the node is.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weft_conformance::{Node, Subject, Tools};

use crate::Nodes;
use crate::on_node::OnNode;
use crate::report::{Estimate, Samples, Table};

/// On the tmpfs of each node.
const FOLDER: &str = "/run/bench-ipam";
/// Pods with addresses meanwhile, and what is expected then. kubelet's default is 110 (`maxPods`).
const PRESENT: [(u64, Option<f64>); 3] = [(10, None), (FULL, Some(100.0)), (1000, None)];
const FULL: u64 = 110;
/// The arms take turns, so often.
const ROUNDS: usize = 9;
/// Pairs in a turn, of weft and of the reference: both then take some 10 to 100 ms.
const PAIRS: [u64; 2] = [500, 5];
const PROCESSES: usize = 8;
/// How long they lease and release in a turn.
const TURN: Duration = Duration::from_millis(300);
/// The stores that weft must be as fast in.
const FEW: u64 = 10;
const MANY: u64 = 60_000;
/// As many of either, one pair after the other.
const STORES: usize = 11;
/// How often all processes open the store at the same time, and the time from one to the next, in which all are done.
const OPENINGS: [(u64, Duration); 2] = [(250, Duration::from_millis(8)), (20, Duration::from_millis(400))];

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let both = [&nodes.weft, &nodes.reference];
    let mut table = table();
    for (pods, least) in PRESENT {
        let arms = both.map(|node| filled(node, &format!("pods{pods}"), pods));
        let samples = in_turn(arms, "pairs", PAIRS);
        durations(&mut table, &format!("alone, {pods} pods present (µs)"), &samples, least);
    }
    let opened = in_turn(both.map(|node| filled(node, "opened", FULL)), "opened", PAIRS);
    durations(&mut table, &format!("alone, opened for each, {FULL} present (µs)"), &opened, None);
    together(&mut table, both);
    flat(&mut table, &nodes.weft);
    for node in both {
        fs::remove_dir_all(node.path(FOLDER)).expect("remove the stores");
    }
    table
}

fn table() -> Table {
    let text = format!(
        "An address of either version leased, and both released, in the store alone: no process is started for it and no configuration read. \
         The reference is host-local's own allocator and store. Both stores are on a tmpfs. weft commits a transaction for \
         the leases and one for their release, and syncs each (fdatasync); host-local writes a file for each address, and syncs nothing. {FULL} pods \
         are what kubelet allows by default."
    );
    Table::new(
        "IPAM",
        text,
        &["median (90th percentile)", "weft", "reference", "ratio", "expected", "reached"],
    )
}

fn durations(table: &mut Table, what: &str, samples: &[Samples; 2], least: Option<f64>) {
    let [weft, reference] = samples;
    table.row(cells(what, samples), Estimate::ratio(reference, weft), least);
}

fn cells(what: &str, samples: &[Samples; 2]) -> Vec<String> {
    let [weft, reference] = samples.each_ref().map(|times| times.with_p90(1));
    vec![what.to_owned(), weft, reference]
}

/// What eight processes do at once in one store.
fn together(table: &mut Table, both: [&Node; 2]) {
    let mut arms = both.map(|node| crowd(node, FULL));
    let mut per_second = <[Samples; 2]>::default();
    for arm in turns() {
        let pairs = all(&mut arms[arm], &format!("during {}", TURN.as_millis()));
        per_second[arm].push(pairs.iter().sum::<f64>() / TURN.as_secs_f64());
    }
    let mut openings = <[Samples; 2]>::default();
    for (arm, (times, every)) in OPENINGS.iter().enumerate() {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") + *every;
        let asked = format!("openings {times} {} {}", start.as_nanos(), every.as_nanos());
        openings[arm] = all(&mut arms[arm], &asked).into_iter().collect();
    }
    arms.into_iter().flatten().for_each(OnNode::end);
    let [weft, reference] = &per_second;
    let what = format!("{PROCESSES} processes, {FULL} pods present (1/s)");
    table.row(cells(&what, &per_second), Estimate::ratio(weft, reference), Some(100.0));
    let at = |what: &str| format!("opened and leased, {PROCESSES} at once, {what} (µs)");
    durations(table, &at("median"), &openings, None);
    let [weft, reference] = openings.each_ref().map(Samples::p99);
    let tails = [at("99th percentile"), format!("{weft:.1}"), format!("{reference:.1}")];
    let tail = Estimate::of([&openings[0]], |[times]| times.p99());
    table.bounded(tails.to_vec(), reference / weft, tail, 1000.0);
}

/// weft with few leases in the store and with many. Of several stores each the medians are compared: where the pages of a store and of its
/// process lie in memory makes up to a half of such a figure, and does not change while they live.
fn flat(table: &mut Table, node: &Node) {
    let (mut medians, mut ratios) = (<[Samples; 2]>::default(), Samples::default());
    for store in 0..STORES {
        let sizes = [("few", FEW), ("many", MANY)];
        let arms = sizes.map(|(name, pods)| filled(node, &format!("{name}{store}"), pods));
        let [few, many] = in_turn(arms, "pairs", [PAIRS[0]; 2]).map(|times| times.median());
        medians[0].push(many);
        medians[1].push(few);
        ratios.push(many / few);
    }
    let ratio = Estimate::of([&ratios], |[ratios]| ratios.median());
    let what = format!("weft alone, {MANY} pods present, and {FEW} as the reference (µs)");
    table.bounded(cells(&what, &medians), ratio, ratio, 1.2);
}

/// Which of two has its turn.
fn turns() -> impl Iterator<Item = usize> {
    (0..ROUNDS).flat_map(|round| [round % 2, 1 - round % 2])
}

/// How long each of so many took, of either, taking turns.
fn in_turn(mut arms: [OnNode; 2], verb: &str, times: [u64; 2]) -> [Samples; 2] {
    let mut samples = <[Samples; 2]>::default();
    for arm in turns() {
        samples[arm].extend(arms[arm].ask::<Vec<f64>>(&format!("{verb} {}", times[arm])));
    }
    arms.into_iter().for_each(OnNode::end);
    samples
}

/// A process with a store in which so many pods have addresses.
fn filled(node: &Node, store: &str, pods: u64) -> OnNode {
    let mut process = start(node, store);
    process.ask::<[f64; 1]>(&format!("fill {pods}"));
    process
}

/// Eight processes on one store, in which so many pods have addresses.
fn crowd(node: &Node, pods: u64) -> Vec<OnNode> {
    let others = (1..PROCESSES).map(|_| start(node, "crowd"));
    others.chain([filled(node, "crowd", pods)]).collect()
}

/// Asks all of them at once; all that they answer.
fn all(crowd: &mut [OnNode], what: &str) -> Vec<f64> {
    crowd.iter_mut().for_each(|process| process.begin(what));
    crowd.iter_mut().flat_map(OnNode::answer::<Vec<f64>>).collect()
}

/// The program for the node's store, on a store of this name.
fn start(node: &Node, store: &str) -> OnNode {
    let mut command = node.command(program(node.subject()));
    command.arg(format!("{FOLDER}/{store}"));
    OnNode::run(command)
}

fn program(subject: Subject) -> PathBuf {
    match subject {
        Subject::Weft => {
            env::current_exe().expect("the path of this program").with_file_name("examples/lease")
        }
        Subject::Reference => Tools::find().program("leases"),
    }
}

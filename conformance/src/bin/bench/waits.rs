//! Grace periods (RCU) that a CNI call waits for: how often one of its processes sleeps in a function of the kernel that waits for one. Counted by the
//! tracer of the scheduler, not timed. `neither_add_nor_del_waits_for_a_grace_period` of weft-shim's tests does so for weft in `make test`.
//!
//! As in [`crate::cni`], the program runs itself on the nodes and calls the plugins from there; what it and ip(8) do for it does not count.

use std::collections::BTreeSet;
use std::io::stdin;
use std::path::Path;

use serde_json::json;
use weft_conformance::Tracer;

use crate::Nodes;
use crate::cni::{FIRST_PORT, Home, Running};
use crate::on_node::OnNode;
use crate::report::{Samples, Table, Verdict};

/// The word that tells the program that it runs on a node; the directory of the node follows.
pub(crate) const ON_NODE: &str = "waits-on-node";
/// Pods per arm and number of host ports, after one that stays and is not counted.
const PODS: usize = 5;
/// What is counted: a verb, and how many host ports the pod has. Of ADD, weft is expected to wait for none.
const CALLS: [(&str, u16); 4] = [("ADD", 0), ("DEL", 0), ("ADD", 1), ("DEL", 1)];

/// Functions of the kernel in which a process waits for a grace period (RCU, also "Sleepable RCU"), or for others' to end.
const GRACE_PERIODS: [&str; 7] = [
    // What a worker is waited for in may be one: nftables frees what was deleted after one.
    "__flush_work",
    "synchronize_rcu",
    "synchronize_rcu_expedited",
    "synchronize_rcu_normal",
    "__wait_rcu_gp",
    "__synchronize_srcu",
    "rcu_barrier",
];
/// No plugins: this program, and what it makes and ends namespaces with.
const NOT_COUNTED: [&str; 2] = ["bench", "ip"];

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let tracer = tracer();
    let mut arms = [&nodes.weft, &nodes.reference].map(|node| OnNode::start(node, ON_NODE, &[]));
    for arm in &mut arms {
        arm.ask::<[f64; 0]>("ADD 0");
    }
    let mut counts: [[Samples; 2]; CALLS.len()] = Default::default();
    for pod in 0..PODS {
        for turn in 0..2 {
            let arm = (pod + turn) % 2;
            for ((verb, ports), counts) in CALLS.iter().zip(&mut counts) {
                counts[arm].push(waits(&tracer, &mut arms[arm], &format!("{verb} {ports}")) as f64);
            }
        }
    }
    for mut arm in arms {
        arm.ask::<[f64; 0]>("DEL 0");
        arm.end();
    }
    let text = format!(
        "How often the processes of a call sleep until a grace period of the kernel has passed; the mean of {PODS} pods. Counted by the tracer of the \
         scheduler, by the functions in the stack of each sleep."
    );
    let header = ["grace periods waited for", "weft", "reference", "expected", "reached"];
    let mut table = Table::new("Waits", text, &header);
    for ((verb, ports), counts) in CALLS.iter().zip(&counts) {
        let [weft, reference] = counts.each_ref().map(Samples::mean);
        // The bridge plugin deletes the pair and waits for its end, so a tracer that sees nothing there is blind.
        assert!(
            *verb == "ADD" || reference >= 1.0,
            "the end of a link is seen to be waited for: {reference}"
        );
        let verdict = || Verdict::of(weft.into(), "weft = 0".to_owned(), (weft == 0.0).into());
        let name = match ports {
            0 => (*verb).to_owned(),
            _ => format!("{verb}, {ports} host port"),
        };
        let cells = [weft, reference].map(|count| format!("{count:.1}"));
        table.judged([vec![name], cells.into()].concat(), (*verb == "ADD").then(verdict));
    }
    table
}

/// The other side of [`OnNode`]: for `ADD PORTS` a new pod, for `DEL PORTS` its end, until stdin ends.
pub(crate) fn serve(node: &Path) {
    let (home, mut pods): (Home, Vec<Running<'_>>) = (Home::of(node), Vec::new());
    for (number, line) in stdin().lines().enumerate() {
        let line = line.expect("read from stdin");
        match line.split_once(' ') {
            Some(("ADD", ports)) => {
                let ports: u16 = ports.parse().expect("a number of ports");
                pods.push(home.run(number, FIRST_PORT..FIRST_PORT + ports));
            }
            Some(("DEL", _)) => {
                pods.pop().expect("a pod is there").end();
            }
            _ => panic!("{line}: want ADD PORTS or DEL PORTS"),
        }
        println!("{}", json!([]));
    }
}

/// Of every sleep of every process the tracer tells the stack. `set_event_pid` would tell of some processes only, but forgets a process
/// that begins to exit: before its sockets are closed, which is when one may wait.
fn tracer() -> Tracer {
    let tracer = Tracer::new();
    tracer.write("events/sched/sched_process_fork/enable", "1");
    tracer.write("events/sched/sched_switch/trigger", "stacktrace if prev_state & 3");
    tracer.write("events/sched/sched_switch/enable", "1");
    tracer
}

/// How often what the arm runs to do what it is asked waits for a grace period.
fn waits(tracer: &Tracer, arm: &mut OnNode, asked: &str) -> usize {
    let pid = arm.pid();
    let (trace, []) = tracer.trace(|| arm.ask::<[f64; 0]>(asked));
    let is_wait = |stack: &&Vec<&str>| stack.iter().any(|name| GRACE_PERIODS.contains(name));
    stacks_of(&trace, pid).iter().filter(is_wait).count()
}

/// Of a trace, the stacks in which the children of a process sleep, but for those that are not counted. A stack is a head, `COMM-PID [CPU] … <stack trace>`,
/// and lines ` => FUNCTION`; a child is told of by `COMM-PID … sched_process_fork: … child_pid=PID`.
fn stacks_of(trace: &str, pid: u32) -> Vec<Vec<&str>> {
    let (mut own, mut stacks, mut counted) = (BTreeSet::from([pid]), Vec::<Vec<&str>>::new(), false);
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        if let Some(function) = line.trim_start().strip_prefix("=> ") {
            if let Some(stack) = stacks.last_mut().filter(|_| counted) {
                stack.push(function.trim());
            }
            continue;
        }
        let task = line.split(" [").next().and_then(|task| task.trim().rsplit_once('-'));
        let Some((name, Ok(task))) = task.map(|(name, pid)| (name, pid.parse())) else { continue };
        if let Some((_, child)) = line.split_once("child_pid=").filter(|_| own.contains(&task)) {
            own.insert(child.trim().parse().expect("a pid"));
        }
        counted = line.ends_with("<stack trace>") && own.contains(&task) && !NOT_COUNTED.contains(&name);
        if counted {
            stacks.push(Vec::new());
        }
    }
    stacks
}

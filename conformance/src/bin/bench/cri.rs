//! RunPodSandbox, StopPodSandbox and RemovePodSandbox, one pod after the other.
//!
//! The times are containerd's own: it logs when a call comes in and when it returns. crictl's start, some 20 ms, is not in them.

use weft_conformance::PodSpec;

use crate::report::{Samples, Table};
use crate::{Nodes, end};

/// Pods per arm, after two that are not counted.
const PODS: usize = 60;

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let residents = nodes.residents();
    for round in 0..=PODS {
        for node in nodes.in_turn(round) {
            end(node.run_pod(&PodSpec::new(&format!("cri{round}"))));
        }
    }
    let text = format!(
        "From the call to its return as containerd's log tells, of {PODS} pods, one at a time, on a node with one other pod. The reference \
         is containerd-shim-runc-v2 with runc and a pause container, and the chain of the table above."
    );
    let logs = [nodes.weft.containerd_log(), nodes.reference.containerd_log()];
    residents.into_iter().for_each(end);
    let mut table = Table::of_durations("CRI", text);
    for (call, least) in
        [("RunPodSandbox", Some(12.0)), ("StopPodSandbox", Some(50.0)), ("RemovePodSandbox", None)]
    {
        table.durations(call, &logs.each_ref().map(|log| durations(log, call)), least);
    }
    table
}

/// How long each of the last calls took, in ms.
fn durations(log: &str, call: &str) -> Samples {
    let (mut called, mut durations) = (None, Vec::new());
    for line in log.lines().filter(|line| line.contains(&format!("msg=\"{call} "))) {
        if line.contains(" returns ") {
            let called: f64 = called.take().expect("a call comes in before it returns");
            // Midnight may come between.
            durations.push((millis(line) - called).rem_euclid(86_400_000.0));
        } else {
            called = Some(millis(line));
        }
    }
    assert!(durations.len() > PODS, "containerd logs every {call}");
    durations.split_off(durations.len() - PODS).into_iter().collect()
}

/// Since midnight, of a line that starts with `time="2030-12-31T23:59:59.999999999Z"`.
fn millis(line: &str) -> f64 {
    let time = line.split_once('T').and_then(|(_, rest)| rest.split_once('"')).expect("a time is in front").0;
    let parts = time.trim_end_matches('Z').split(':').map(|part| part.parse::<f64>().expect("a number"));
    parts.fold(0.0, |sum, part| sum * 60.0 + part) * 1e3
}

//! How many programs a pod starts: a budget without room, for each costs a process's start and end. Counted by the kernel's tracer.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::fs;

use weft_conformance::{Node, PodSpec, Subject, Tracer};

/// The names of the programs in a trace of `sched_process_exec`, whose lines end with `filename=PATH pid=… old_pid=…`.
fn programs(trace: &str) -> BTreeMap<&str, usize> {
    let paths = trace.lines().filter_map(|line| line.split_once("filename=")?.1.split_once(" pid="));
    let names = paths.filter_map(|(path, _)| path.rsplit('/').next());
    names.fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name).or_default() += 1;
        counts
    })
}

/// The numbers of containerd's threads, a line each.
fn threads(node: &Node) -> String {
    let threads = fs::read_dir(format!("/proc/{}/task", node.containerd_pid())).expect("containerd runs");
    let names = threads.map(|thread| thread.expect("a thread").file_name().into_string().expect("a number"));
    names.collect::<Vec<_>>().join("\n")
}

/// A tracer of what containerd starts, and what that starts.
fn tracer(node: &Node) -> Tracer {
    let tracer = Tracer::new();
    tracer.write("options/event-fork", "1");
    tracer.write("events/sched/sched_process_exec/enable", "1");
    // A thread of one that is traced is traced too, but one may have come before that was.
    let mut traced = String::new();
    while traced != threads(node) {
        traced = threads(node);
        tracer.write("set_event_pid", &traced);
    }
    tracer
}

/// The plugin, `start`, the daemon and process 1 of the pod; the plugin; the plugin once more, for containerd asks for a DEL whenever it
/// removes a pod, and `delete`, when the daemon has gone.
#[test]
fn a_pods_life_starts_seven_programs() {
    let node = Node::start(Subject::Weft);
    // What the first pod of a node loads and asks for does not count.
    let first = node.run_pod(&PodSpec::new("first"));
    first.stop();
    first.remove();
    let tracer = tracer(&node);
    let (run, pod) = tracer.trace(|| node.run_pod(&PodSpec::new("a")));
    let (stop, ()) = tracer.trace(|| pod.stop());
    let (remove, ()) = tracer.trace(|| pod.remove());
    let (plugin, shim) = ("weft", "containerd-shim-weft-v1");
    assert_eq!(programs(&run), BTreeMap::from([(plugin, 1), (shim, 1), ("exe", 2)]), "RunPodSandbox");
    assert_eq!(programs(&stop), BTreeMap::from([(plugin, 1)]), "StopPodSandbox");
    assert_eq!(programs(&remove), BTreeMap::from([(plugin, 1), (shim, 1)]), "RemovePodSandbox");
    drop(tracer);
    node.finish();
}

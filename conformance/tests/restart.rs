//! A restart of containerd on a full node.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use weft_conformance::{ContainerSpec, Node, Pod, PodSpec, Subject, image};

const PODS: usize = 200;
const AT_A_TIME: usize = 10;

/// containerd gives each shim five seconds (`io.containerd.timeout.shim.load`), asks two at a time, and forgets the pod of one that
/// does not answer: none may be forgotten.
#[test]
fn containerd_finds_two_hundred_pods_again() {
    let node = Node::start(Subject::Weft);
    let names: Vec<String> = (0..PODS).map(|number| format!("p{number}")).collect();
    let mut pods: Vec<Pod<'_>> = Vec::new();
    for some in names.chunks(AT_A_TIME) {
        std::thread::scope(|scope| {
            let started: Vec<_> =
                some.iter().map(|name| scope.spawn(|| node.run_pod(&PodSpec::new(name)))).collect();
            pods.extend(started.into_iter().map(|thread| thread.join().expect("a pod started")));
        });
    }
    // Every tenth has a container, whose task is found by a connection of its own.
    let spec = ContainerSpec::new("main", image::BUSYBOX);
    let containers: Vec<_> = pods.iter().step_by(10).map(|pod| pod.run(&spec)).collect();
    let ids = |pods: String| pods.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let ready = || ids(node.crictl(&["pods", "--quiet", "--no-trunc", "--state", "ready"]));
    let before = ready();
    assert_eq!(before.len(), PODS);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let known = node.containerd_log().len();
        node.restart_containerd(signal);
        assert_eq!(ready(), before, "all are there and ready after {signal}");
        let log = node.containerd_log().split_off(known);
        for complaint in ["failed to load shim", "cleaning up dead shim", "cleaning leaked shim"] {
            assert!(!log.contains(complaint), "{complaint} after {signal}:\n{log}");
        }
        let names = names.iter().step_by(10);
        for (container, name) in containers.iter().zip(names) {
            assert_eq!(container.exec(&["hostname"]), format!("{name}\n"), "after {signal}");
        }
    }
    node.finish();
}

//! What a pod costs in memory: a budget with little room, so that growth is noticed when it comes. Of the built release.

use weft_conformance::{ContainerSpec, Held, Node, Pod, PodSpec, Subject, image};

const PODS: u64 = 4;
/// In the containers; its own memory does not count.
const PAYLOAD: &str = "sleep";

/// In kB, for all processes of a pod: dirty pages that are its own.
#[track_caller]
fn assert_at_most(budget: u64, node: &Node, when: &str) {
    let held = Held::settled(node, PAYLOAD);
    let each = held.private_dirty_kb / PODS;
    assert!(each <= budget, "{when}: {each} kB per pod, want at most {budget}: {held:?}");
    let processes: u64 = held.processes.values().map(|count| u64::from(*count)).sum();
    assert_eq!((processes, held.threads), (2 * PODS, 2 * PODS), "{when}: {held:?}");
}

fn run_and_remove(pod: &Pod<'_>, name: &str, script: &str) {
    let container = pod.run(&ContainerSpec::new(name, image::BUSYBOX).shell(script));
    container.stop(0);
    container.remove();
}

#[test]
fn a_pod_is_small_and_small_again_after_work() {
    let node = Node::start(Subject::Weft);
    let pods: Vec<Pod<'_>> = (0..PODS).map(|n| node.run_pod(&PodSpec::new(&format!("p{n}")))).collect();
    assert_at_most(200, &node, "without a container");
    pods.iter().for_each(|pod| run_and_remove(pod, "first", "echo first"));
    assert_at_most(230, &node, "after a container");
    for pod in &pods {
        let main = pod.run(&ContainerSpec::new("main", image::BUSYBOX).command(&[PAYLOAD, "3600"]));
        for _ in 0..5 {
            assert_eq!(main.exec(&["sh", "-c", "head -c 1000000 /dev/zero | wc -c"]), "1000000\n");
        }
        run_and_remove(pod, "noise", "head -c 8000000 /dev/zero");
    }
    assert_at_most(260, &node, "after execs and output, with a container");
    drop(pods);
    node.finish();
}

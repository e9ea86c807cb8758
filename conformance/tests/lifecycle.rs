//! The life of a pod, from RunPodSandbox to nothing left.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;
use std::time::Duration;

use weft_conformance::{ContainerSpec, Node, PodSpec, Subject, image, wait_until};

/// Two pods, a page fetched from one to the other over both families, exec, logs, exit codes, and everything removed.
fn pod_life(subject: Subject, handler: &str) {
    let node = Node::start(subject);
    let pod = |name| node.run_pod(&PodSpec::new(name).handler(handler));
    let (a, b) = (pod("a"), pod("b"));
    b.run(&ContainerSpec::new("web", image::WEB));
    let client = a.run(&ContainerSpec::new("client", image::BUSYBOX).env("GREETING", "hello"));

    assert_eq!(a.state(), "SANDBOX_READY");
    assert_eq!(client.exec(&["hostname"]), "a\n");
    assert_eq!(client.exec(&["sh", "-c", "echo $GREETING"]), "hello\n");
    let failed = client.try_exec(&["sh", "-c", "echo broken >&2; exit 3"]).expect_err("it fails");
    assert!(failed.contains("broken") && failed.contains("exited with 3"), "{failed}");
    for ip in [b.ipv4(), b.ipv6()] {
        assert_eq!(client.fetch(SocketAddr::new(ip, 80)), image::WEB_PAGE);
    }

    let task = a.run(&ContainerSpec::new("task", image::BUSYBOX).shell("echo out; echo err >&2; exit 7"));
    wait_until(Duration::from_secs(10), "the task ends", || task.exit_code().is_some());
    assert_eq!(task.exit_code(), Some(7));
    let logs = task.logs();
    assert!(logs.contains("out\n") && logs.contains("err\n"), "{logs}");
    task.remove();

    client.stop(10);
    assert_eq!(client.exit_code(), Some(0), "the shell ends on SIGTERM");
    a.stop();
    assert_eq!(a.state(), "SANDBOX_NOTREADY");
    a.remove();
    node.finish();
}

#[test]
fn pod_life_reference() {
    pod_life(Subject::Reference, "runc");
}

#[test]
fn pod_life_weft_network_under_runc() {
    pod_life(Subject::Weft, "runc");
}

#[test]
fn pod_life_weft() {
    pod_life(Subject::Weft, "weft");
}

#[test]
fn pod_life_weft_under_the_default_sandboxer() {
    pod_life(Subject::Weft, "weft-podsandbox");
}

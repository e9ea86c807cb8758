//! The harness itself: a check that never finds anything would let every test pass.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use weft_conformance::{ContainerSpec, Node, PodSpec, Subject, image, run, wait_until};

#[test]
fn every_kind_of_leak_is_found() {
    let node = Node::start(Subject::Reference);
    assert_eq!(node.leaks(), [""; 0], "a new node is clean");
    let pod = node.run_pod(&PodSpec::new("a"));
    let (id, ip) = (pod.id().to_owned(), pod.ipv4().to_string());
    let found = node.leaks().join("\n");
    for kind in
        ["process", "mount", "link veth", "cgroup", "/s/", "cri/netns/cni-", "/ipam/", "/var/lib/cni/"]
    {
        assert!(found.contains(kind), "a running pod shows in {kind}:\n{found}");
    }
    pod.stop();
    pod.remove();
    wait_until(Duration::from_secs(10), "nothing is left of the pod", || node.leaks().is_empty());

    run(node.command("ip").args(["netns", "add", "left"]));
    run(node.command("ip").args(["link", "add", "left0", "type", "veth", "peer", "name", "left1"]));
    run(node.command("ip").args(["route", "add", &ip, "via", "192.0.2.1"]));
    run(node.command("nft").args(["add", "table", "inet", &format!("left-{id}")]));
    run(node.command("sh").args(["-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 0"]));
    run(node.command("mkdir").args(["-p", &format!("/run/left/{id}")]));
    run(node.command("touch").arg(format!("/run/left/{id}/file")));
    let found = node.leaks().join("\n");
    for kind in [
        "mount /run/netns/left",
        "link left0",
        "link left1",
        "route ",
        "rule table",
        "sleep 1000",
        "/run/left/",
    ] {
        assert!(found.contains(kind), "{kind} is found in:\n{found}");
    }
}

#[test]
fn a_dropped_node_leaves_nothing() {
    let node = Node::start(Subject::Reference);
    let dir = node.dir().to_owned();
    node.run_pod(&PodSpec::new("a")).run(&ContainerSpec::new("main", image::BUSYBOX));
    let name = dir.file_name().expect("a name").to_owned();
    assert!(processes_of(&dir) > 0);
    drop(node);
    assert!(!dir.exists());
    assert_eq!(processes_of(&dir), 0);
    let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("list the hierarchies").flatten();
    assert!(
        hierarchies
            .map(|entry| entry.path())
            .all(|path| path.file_name() != Some(&name) && !path.join(&name).exists())
    );
}

/// How many processes of the machine have the directory in their command line or environment.
fn processes_of(dir: &Path) -> usize {
    let dir = dir.to_string_lossy();
    let entries = fs::read_dir("/proc").expect("list /proc").flatten();
    let mentions =
        |file| fs::read(file).is_ok_and(|text| String::from_utf8_lossy(&text).contains(dir.as_ref()));
    entries
        .filter(|entry| mentions(entry.path().join("cmdline")) || mentions(entry.path().join("environ")))
        .count()
}

#[test]
fn pods_live_through_a_restart_of_containerd() {
    let node = Node::start(Subject::Reference);
    let pod = node.run_pod(&PodSpec::new("a"));
    let main = pod.run(&ContainerSpec::new("main", image::BUSYBOX));
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        node.restart_containerd(signal);
        assert_eq!(pod.state(), "SANDBOX_READY");
        assert_eq!(main.exec(&["echo", "still here"]), "still here\n");
    }
    node.finish();
}

#[test]
fn the_world_reaches_the_node_and_the_pod_its_namespace() {
    let node = Node::start(Subject::Reference);
    for address in ["192.0.2.10", "2001:db8::10"] {
        run(node.world("ping").args(["-c", "1", "-W", "5", address]));
    }
    let pod = node.run_pod(&PodSpec::new("a"));
    let shown = run(pod.command("ip").args(["-oneline", "addr", "show", "eth0"]));
    assert!(shown.contains(&pod.ipv4().to_string()) && shown.contains(&pod.ipv6().to_string()), "{shown}");
    node.finish();
}

//! Pods with a user namespace, through containerd and crictl: whom the pod's root is on the node, network, files, and the end.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_conformance::{Container, ContainerSpec, Node, PodSpec, Subject, image, run, wait_until};

const ROOT: u32 = 100_000;
const IDS: u32 = 65_536;

/// For a pod and for each of its containers, which have to say the same.
fn options(pid_mode: u8, more: Value) -> Value {
    let map = json!([{ "container_id": 0, "host_id": ROOT, "length": IDS }]);
    let mut options =
        json!({ "pid": pid_mode, "userns_options": { "mode": 0, "uids": map.clone(), "gids": map } });
    for (key, value) in more.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    json!({ "linux": { "security_context": { "namespace_options": options } } })
}

fn pid(container: &Container<'_>) -> u64 {
    container.inspect()["info"]["pid"].as_u64().expect("the container runs")
}

/// What `command` prints on the node.
fn on_node(node: &Node, command: &[&str]) -> String {
    run(node.command(command[0]).args(&command[1..]))
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn pod_life(subject: Subject) {
    let node = Node::start(subject);
    for (name, pid_mode) in [("shared", 0), ("own", 1)] {
        let pod = node.run_pod(&PodSpec::new(name).with(options(pid_mode, json!({}))));
        let plain_name = format!("plain-{name}");
        let plain = node.run_pod(&PodSpec::new(&plain_name));
        let spec = |name, image| ContainerSpec::new(name, image).with(options(pid_mode, json!({})));
        let main = pod.run(&spec("main", image::BUSYBOX));
        pod.run(&spec("web", image::WEB));
        plain.run(&ContainerSpec::new("web", image::WEB));
        let client = plain.run(&ContainerSpec::new("client", image::BUSYBOX));

        let map = ["0", "100000", "65536"];
        assert_eq!(words(&main.exec(&["cat", "/proc/self/uid_map"])), map);
        let of_main = format!("/proc/{}", pid(&main));
        for kind in ["uid", "gid"] {
            assert_eq!(words(&on_node(&node, &["cat", &format!("{of_main}/{kind}_map")])), map);
        }
        assert_eq!(on_node(&node, &["stat", "--format=%u:%g", &of_main]), "100000:100000\n");
        assert_ne!(
            on_node(&node, &["readlink", &format!("{of_main}/ns/user")]),
            on_node(&node, &["readlink", "/proc/self/ns/user"])
        );

        // The image's files and new ones are the pod's root's, here and there.
        let script = "touch /new /dev/shm/new; echo 192.0.2.7 seven >> /etc/hosts; \
                      stat -c %u:%g /bin /new /dev/shm/new; hostname";
        assert_eq!(words(&main.exec(&["sh", "-c", script])), ["0:0", "0:0", "0:0", name]);
        let new = format!("{of_main}/root/new");
        assert_eq!(on_node(&node, &["stat", "--format=%u:%g", &new]), "100000:100000\n");

        for (client, server) in [(&client, &pod), (&main, &plain)] {
            for ip in [server.ipv4(), server.ipv6()] {
                assert_eq!(client.fetch(SocketAddr::new(ip, 80)), image::WEB_PAGE);
            }
        }
        pod.stop();
        assert_eq!(pod.state(), "SANDBOX_NOTREADY");
        pod.remove();
    }
    node.finish();
}

#[test]
fn a_pod_with_a_user_namespace_reference() {
    pod_life(Subject::Reference);
}

#[test]
fn a_pod_with_a_user_namespace_weft() {
    pod_life(Subject::Weft);
}

#[test]
fn a_pod_with_a_user_namespace_on_the_nodes_network() {
    let node = Node::start(Subject::Weft);
    let options = options(0, json!({ "network": 2 }));
    let pod = node.run_pod(&PodSpec::new("host").with(options.clone()));
    let main = pod.run(&ContainerSpec::new("main", image::BUSYBOX).with(options));
    assert_eq!(words(&main.exec(&["cat", "/proc/self/uid_map"])), ["0", "100000", "65536"]);
    assert_eq!(
        main.exec(&["readlink", "/proc/self/ns/net"]),
        on_node(&node, &["readlink", "/proc/self/ns/net"])
    );
    node.finish();
}

#[test]
fn a_killed_shim_leaves_nothing_of_a_pod_with_a_user_namespace() {
    let node = Node::start(Subject::Weft);
    for (name, pid_mode) in [("shared", 0), ("own", 1)] {
        let options = options(pid_mode, json!({}));
        let pod = node.run_pod(&PodSpec::new(name).with(options.clone()));
        let main = pod.run(&ContainerSpec::new("main", image::BUSYBOX).with(options));
        assert_eq!(node.signal(Signal::SIGKILL, &["containerd-shim-weft-v1", "-id", pod.id()]), 1);
        let soon = Duration::from_secs(20);
        // Until containerd has noticed, a question about this pod is answered by an error.
        let gone =
            || node.crictl(&["pods", "--quiet", "--no-trunc", "--state", "notready"]).contains(pod.id());
        wait_until(soon, "containerd sees that the sandbox has gone", gone);
        wait_until(soon, "the container is seen to have ended", || main.state() == "CONTAINER_EXITED");
        node.crictl(&["rmp", "--force", pod.id()]);
    }
    node.finish();
}

#[test]
fn mappings_that_make_no_pod_are_refused_in_words() {
    let node = Node::start(Subject::Weft);
    let map = |inside: u32, length: u32| json!({ "container_id": inside, "host_id": ROOT, "length": length });
    let cases = [
        (0, json!([map(0, 10), map(10, 10)]), "required only one uid mapping, but got 2"),
        (0, json!([map(1, 10)]), "uid mapping of 10 ids from 1 on has no id 0"),
        (1, json!([map(0, 10)]), "got mode CONTAINER, want POD or NODE"),
        (3, json!([map(0, 10)]), "got mode TARGET, want POD or NODE"),
        (2, json!([map(0, 10)]), "mode NODE has no mappings"),
    ];
    for (n, (mode, maps, message)) in cases.into_iter().enumerate() {
        let user = json!({ "mode": mode, "uids": maps.clone(), "gids": maps });
        let options =
            json!({ "linux": { "security_context": { "namespace_options": { "userns_options": user } } } });
        let name = format!("refused{n}");
        let refused = node.try_run_pod(&PodSpec::new(&name).with(options)).err().expect("it is refused");
        assert!(refused.contains(message), "{refused}");
    }
    assert_eq!(node.crictl(&["pods", "--quiet"]), "");
    node.finish();
}

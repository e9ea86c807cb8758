//! `make demo`: the main job, told step by step. Two pods under weft on a real containerd; a page fetched from one to the other over
//! both families, and the counter of the fast path grown by those packets; everything removed, and nothing left.

#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a demonstration that tells its steps and ends at the first that fails"
)]

use std::net::SocketAddr;

use serde_json::Value;
use weft_conformance::{ContainerSpec, Node, Pod, PodSpec, Subject, image, run};

fn main() {
    step("start a node of its own: namespaces, containerd 2.4, the handler weft");
    let node = Node::start(Subject::Weft);
    node.remove_pause_image();
    let images = run(&mut node.ctr(&["images", "list", "--quiet"]));
    assert!(!images.contains("pause"), "no pause image is in the store: {images}");

    step("run two pods, without a pause image");
    let (a, b) = (node.run_pod(&PodSpec::new("a")), node.run_pod(&PodSpec::new("b")));
    b.run(&ContainerSpec::new("web", image::WEB));
    let client = a.run(&ContainerSpec::new("client", image::BUSYBOX));
    for pod in [&a, &b] {
        println!(
            "   {} {}",
            pod.id(),
            pod.ips().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        );
    }
    witnesses_agree(&node, &[&a, &b]);

    step("fetch a page from b in a, over IPv4 and IPv6");
    for ip in [b.ipv4(), b.ipv6()] {
        let before = redirected(&node);
        assert_eq!(client.fetch(SocketAddr::new(ip, 80)), image::WEB_PAGE);
        let packets = redirected(&node) - before;
        println!("   http://{}/ : {packets} packets redirected", SocketAddr::new(ip, 80));
        // A connection of three packets and one of two to end it, a request and an answer, at the least.
        assert!(packets >= 7, "all packets of the connection took the fast path");
    }

    step("host to pod, and pod to host");
    for ip in b.ips() {
        run(node.command("ping").args(["-c", "1", "-W", "5", "-n", &ip.to_string()]));
    }
    for host in ["192.0.2.10", "2001:db8::10"] {
        run(a.command("ping").args(["-c", "1", "-W", "5", "-n", host]));
    }

    step("remove everything, and look for what is left");
    node.finish();
    println!("nothing is left: no namespace, link, lease, mount, pin, process or socket");
}

fn step(what: &str) {
    println!("== {what}");
}

/// crictl, weft and the kernel name the same pods and addresses.
fn witnesses_agree(node: &Node, pods: &[&Pod<'_>]) {
    print!("{}", run(node.command("weft").arg("pods")));
    let of_weft: Value = serde_json::from_str(&run(node.command("weft").args(["pods", "-o", "json"])))
        .expect("weft prints JSON");
    let of_crictl = node.crictl(&["pods", "--quiet", "--no-trunc", "--state", "ready"]);
    for pod in pods {
        assert!(of_crictl.contains(pod.id()), "crictl pods lists {}", pod.id());
        let record =
            of_weft.as_array().expect("a list").iter().find(|record| record["container"] == pod.id());
        let record = record.expect("weft pods lists the pod");
        let addresses: Vec<String> = pod.ips().iter().map(ToString::to_string).collect();
        assert_eq!(record["addresses"], serde_json::json!(addresses), "weft and crictl inspectp agree");
        let inside = run(pod.command("ip").args(["-oneline", "addr", "show", "eth0"]));
        for address in &addresses {
            assert!(inside.contains(&format!(" {address}/")), "{address} is in the pod: {inside}");
            let route = run(node.command("ip").args(["route", "get", address]));
            assert!(
                route.contains(record["host_link"].as_str().expect("a name")),
                "{address} leads to the pod: {route}"
            );
        }
    }
}

/// Packets that went straight from one pod into another.
fn redirected(node: &Node) -> u64 {
    let status = run(node.command("weft").args(["status", "-o", "json"]));
    let status: Value = serde_json::from_str(&status).expect("weft prints JSON");
    status["counters"]["redirected"]["packets"].as_u64().expect("a number")
}

//! The steps of the data path, each forced: the same packets arrive, and the same do not.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use weft_netns::NetNs;

use crate::common::{Node, Pinging, ip_in, pings, slowness};
use crate::ports::{BEYOND, HOST, at, del, outside, port, tcp, with_ports};

/// A step: what forces it, and what `weft status` says of it.
struct Step {
    name: &'static str,
    variable: Option<(&'static str, &'static str)>,
    why: Option<&'static str>,
}

const PEER: Step = Step { name: "redirect_peer", variable: None, why: None };
const REDIRECT: Step = Step {
    name: "redirect",
    variable: Some(("WEFT_REDIRECT_PEER", "false")),
    why: Some("redirect_peer = false"),
};
const ROUTING: Step =
    Step { name: "routing", variable: Some(("WEFT_FAST_PATH", "false")), why: Some("fast_path = false") };

impl Step {
    fn weft(&self, node: &Node, args: &[&str]) -> Value {
        let mut command = node.command(env!("CARGO_BIN_EXE_weft"));
        let output = node.run(command.envs(self.variable).args(args), "");
        assert!(output.status.success(), "weft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn add(&self, node: &Node, name: &str, conf: &Value) -> Vec<String> {
        let netns = node.pod(name);
        let answer = node.cni_with("ADD", name, &conf.to_string(), |command| {
            command.env("CNI_NETNS", netns).envs(self.variable);
        });
        assert!(answer.status.success(), "{}: ADD {name}: {}", self.name, answer.json);
        answer.addresses()
    }

    /// `weft status` names the step, and why it is not a better one.
    fn assert_told(&self, node: &Node) {
        let told = self.weft(node, &["status", "-o", "json"]);
        assert_eq!(told["data_path"], self.name);
        assert_eq!(told["data_path_reason"].as_str(), self.why);
        let record = if self.name == "routing" { "routing" } else { "redirect" };
        for pod in self.weft(node, &["pods", "-o", "json"]).as_array().unwrap() {
            assert_eq!(pod["data_path"], record, "{pod}");
            assert_eq!(pod["data_path_reason"].as_str(), self.why.filter(|_| record == "routing"), "{pod}");
        }
    }
}

/// Whether a datagram from a socket bound to `source` in one namespace arrives in the other.
fn arrives(from: &NetNs, source: &str, to: &NetNs, target: &str) -> bool {
    let listener = to.run(|| UdpSocket::bind(at(target, 0)).unwrap()).unwrap();
    listener.set_read_timeout(Some(Duration::from_millis(300) * slowness())).unwrap();
    let target = listener.local_addr().unwrap();
    let sender = from.run(|| UdpSocket::bind(at(source, 0)).unwrap()).unwrap();
    sender.send_to(b"x", target).unwrap();
    let arrived = listener.recv_from(&mut [0; 8]);
    arrived.is_ok_and(|(_, seen)| seen.ip() == source.parse::<IpAddr>().unwrap())
}

fn add_address(pod: &NetNs, address: &str) {
    ip_in(pod, &["addr", "add", address, "dev", "eth0", "nodad"]);
}

fn carries(step: &Step, masquerade: bool) {
    let node = Node::new();
    let beyond = outside(&node);
    let mut conf = with_ports(if masquerade { json!([port("tcp", 8080, 80)]) } else { json!([]) });
    conf["masquerade"] = masquerade.into();
    let own = step.add(&node, "a", &conf);
    conf["runtimeConfig"] = json!({});
    let other = step.add(&node, "b", &conf);
    step.assert_told(&node);
    let (a, b) = (node.pod_ns("a"), node.pod_ns("b"));
    for family in [0, 1] {
        let what = format!("{} {}", step.name, own[family]);
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert!(pings(&a, &other[family]) && pings(&b, &own[family]), "{what}: pod to pod");
        assert_eq!(tcp(&b, at(&own[family], 81), &a, 81), ip(&other[family]), "{what}: pod to pod");
        let seen = if masquerade { HOST[family] } else { &own[family] };
        assert_eq!(tcp(&a, at(BEYOND[family], 82), &beyond, 82), ip(seen), "{what}: pod to outside");
        assert_eq!(tcp(&beyond, at(&own[family], 83), &a, 83), ip(BEYOND[family]), "{what}: outside to pod");
        assert!(tcp(&node.host, at(&own[family], 84), &a, 84).is_some(), "{what}: host to pod");
        if masquerade {
            // The answer has to be translated back, so it must not take the short way.
            let by_port = tcp(&b, at(HOST[family], 8080), &a, 80);
            assert_eq!(by_port, ip(&other[family]), "{what}: by a host port from a pod");
        }
        let spoofed = ["10.99.0.1", "fd99::1"][family];
        add_address(&a, spoofed);
        // The way back is there: what does not arrive was dropped for its source.
        ip_in(&beyond, &["route", "add", &format!("{spoofed}/{}", [32, 128][family]), "via", HOST[family]]);
        assert!(arrives(&a, &own[family], &b, &other[family]), "{what}: the own source, to a pod");
        let arrived = arrives(&a, &own[family], &beyond, BEYOND[family]);
        assert_eq!(arrived, !masquerade, "{what}: the own source, or the node's, to outside");
        assert!(!arrives(&a, spoofed, &b, &other[family]), "{what}: a foreign source to a pod");
        assert!(!arrives(&a, spoofed, &beyond, BEYOND[family]), "{what}: a foreign source to outside");
        add_address(&a, &other[family]);
        assert!(!arrives(&a, &other[family], &beyond, BEYOND[family]), "{what}: another pod's source");
    }
    del(&node, &["a", "b"]);
}

#[test]
fn redirect_peer_carries() {
    carries(&PEER, true);
}

#[test]
fn redirect_carries() {
    carries(&REDIRECT, true);
}

#[test]
fn routing_carries() {
    carries(&ROUTING, true);
}

/// Neither ports nor masquerade need the table then; the check of sources does.
#[test]
fn routing_checks_sources_of_pods_that_need_no_translation() {
    carries(&ROUTING, false);
}

/// The step is the node's, and changes with the configuration while packets flow. Who only takes a pod away leaves it as it is.
#[test]
fn the_step_changes_under_live_traffic() {
    let node = Node::new();
    let conf = with_ports(json!([]));
    for pod in ["a", "b", "c"] {
        PEER.add(&node, pod, &conf);
    }
    let pinging = Pinging::start(&node.pod_ns("a"), "10.88.0.3");
    for step in [&REDIRECT, &PEER, &REDIRECT] {
        step.weft(&node, &["init"]);
        step.assert_told(&node);
    }
    pinging.assert_no_loss();
    assert!(node.cni("DEL", "c", &conf).status.success());
    REDIRECT.assert_told(&node);
    let returns = Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned"])
        .arg(node.bpf().join("weft/returns"))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&returns.stdout).trim(),
        "[]",
        "no packet was taken for one of the stack's"
    );
    del(&node, &["a", "b"]);
}

//! Several addresses of one family on one interface: one of each set of ranges. `ip -j` and packets are the witnesses.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::json;

use crate::common::{Node, conf, pings, run_in};
use crate::ports::{HOST, add, at, del, outside, port, tcp};

/// `ping` that sends from the address.
fn pings_from(node: &Node, pod: &str, from: &str, to: &str) -> bool {
    let mut ping = Command::new("ping");
    ping.args(["-n", "-c", "1", "-W", "2", "-I", from, to]);
    run_in(&node.pod_ns(pod), &mut ping, "").status.success()
}

#[test]
fn each_set_gives_an_address_and_all_of_them_carry() {
    let node = Node::new();
    let outside = outside(&node);
    let mut two = conf();
    two["ranges"] = json!([
        [{ "subnet": "10.88.0.0/25" }, { "subnet": "10.88.0.192/26" }],
        [{ "subnet": "10.88.0.128/26" }],
        [{ "subnet": "fd00:88::/80" }],
        [{ "subnet": "fd00:88::1:0:0:0/80" }],
    ]);
    two["runtimeConfig"] = json!({ "portMappings": [port("tcp", 8080, 80)] });
    let answer = add(&node, "a", &two);
    let addresses = answer.addresses();
    assert_eq!(addresses, ["10.88.0.2", "10.88.0.130", "fd00:88::2", "fd00:88::1:0:0:2"]);
    let routes = answer.json["routes"].as_array().unwrap();
    assert_eq!(routes.len(), 2, "a default route of each family, once: {routes:?}");
    let inside = node.ip_in_pod("a", &["addr", "show", "eth0"]);
    let known = inside[0]["addr_info"].as_array().unwrap().iter();
    // The kernel lists those of IPv6 in an order of its own.
    let known: BTreeSet<&str> = known.map(|one| one["local"].as_str().unwrap()).collect();
    assert_eq!(known, addresses.iter().map(String::as_str).collect());
    two["prevResult"] = answer.json.clone();
    let check = node.cni("CHECK", "a", &two);
    assert!(check.status.success(), "{}", check.json);

    let (a, b) = (node.pod_ns("a"), add(&node, "b", &conf()).addresses());
    for address in &addresses {
        let other = if address.contains(':') { &b[1] } else { &b[0] };
        for from in [&node.host, &outside, &node.pod_ns("b")] {
            assert!(pings(from, address), "{address}");
        }
        assert!(pings_from(&node, "a", address, other), "from {address} to {other}");
        assert!(pings_from(&node, "a", address, HOST[usize::from(address.contains(':'))]), "from {address}");
    }
    for host in HOST {
        for from in [&outside, &node.pod_ns("b"), &a] {
            assert!(tcp(from, at(host, 8080), &a, 80).is_some(), "port 8080 of {host}");
        }
    }
    del(&node, &["a", "b"]);
}

#[test]
fn one_of_each_set_can_be_asked_for() {
    let node = Node::new();
    let mut two = conf();
    two["ranges"] = json!([[{ "subnet": "10.88.0.0/25" }], [{ "subnet": "10.88.0.128/25" }]]);
    two["runtimeConfig"] = json!({ "ips": ["10.88.0.200", "10.88.0.7"] });
    assert_eq!(add(&node, "a", &two).addresses(), ["10.88.0.7", "10.88.0.200"]);
    two["runtimeConfig"] = json!({ "ips": ["10.88.0.8", "10.88.0.9"] });
    node.pod("b");
    let (code, text) = node.cni("ADD", "b", &two).error();
    assert_eq!(code, 7);
    let why =
        "addresses 10.88.0.8 and 10.88.0.9 are both IPv4, and of ranges that give an interface one address";
    assert!(text.contains(why), "{text}");
    two["ranges"] = (0..17).map(|third| json!([{ "subnet": format!("10.89.{third}.0/24") }])).collect();
    two["runtimeConfig"] = json!({});
    let (code, text) = node.cni("ADD", "b", &two).error();
    assert_eq!(code, 7);
    assert!(text.contains("the ranges give an interface 17 addresses, and it may have 16"), "{text}");
    del(&node, &["a"]);
}

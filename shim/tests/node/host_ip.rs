//! Host ports at one address of the host: which there can be, and what passes by.

use serde_json::json;

use crate::common::Node;
use crate::ports::{BEYOND, add, at, del, elements, outside, tcp, with_ports};

#[test]
fn a_port_at_an_address_of_a_family_that_the_pod_lacks_is_refused() {
    let node = Node::new();
    let mapping =
        |at: &str| json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": at }]);
    for (subnet, address, host_ip, shown, family) in [
        ("fd00:88::/64", "fd00:88::2", "192.0.2.10", "192.0.2.10:8080", "IPv4"),
        ("fd00:88::/64", "fd00:88::2", "::ffff:192.0.2.10", "192.0.2.10:8080", "IPv4"),
        ("fd00:88::/64", "fd00:88::2", "0.0.0.0", "0.0.0.0:8080", "IPv4"),
        ("10.88.0.0/24", "10.88.0.2", "2001:db8::10", "[2001:db8::10]:8080", "IPv6"),
        ("10.88.0.0/24", "10.88.0.2", "::", "[::]:8080", "IPv6"),
    ] {
        let mut conf = with_ports(mapping(host_ip));
        conf["ranges"] = json!([{ "subnet": subnet }]);
        let name = format!("{family}-{}", host_ip.replace(':', "."));
        node.pod(&name);
        let (code, text) = node.cni("ADD", &name, &conf).error();
        let wanted = format!(
            "attach the pod: host port {shown}/tcp is at an {family} address, and the pod has none to lead it to: its \
             addresses are {address}"
        );
        assert_eq!((code, text), (7, wanted), "{host_ip} and {subnet}");
        assert_eq!(node.weft(&["ipam", "show", "-o", "json"]), json!({ "ranges": [] }), "nothing was leased");
    }
    // A port at all addresses is served by whatever the pod has, and by each family where it is said so.
    let mut v6 = with_ports(mapping(""));
    v6["ranges"] = json!([{ "subnet": "fd00:88::/64" }]);
    add(&node, "a", &v6);
    add(&node, "b", &with_ports(mapping("0.0.0.0")));
    assert_eq!((elements(&node, "ports4"), elements(&node, "ports6")), (1, 1));
    del(&node, &["a", "b"]);
}

/// A pod's manifest may name any address. Of `portmap`'s two backends, that for iptables does the same, and that for nftables draws
/// what passes through the host.
#[test]
fn a_port_at_an_address_that_the_host_lacks_draws_nothing_until_the_host_has_it() {
    let node = Node::new();
    let beyond = outside(&node);
    node.ip_in_pod("outside", &["addr", "add", "198.51.100.7/32", "dev", "lo"]);
    node.ip(&["route", "add", "198.51.100.7/32", "via", BEYOND[0]]);
    let mapping =
        json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "198.51.100.7" }]);
    add(&node, "thief", &with_ports(mapping));
    let other = node.add("other").addresses();
    let (thief, other_ns) = (node.pod_ns("thief"), node.pod_ns("other"));
    let target = at("198.51.100.7", 8080);
    assert_eq!(tcp(&other_ns, target, &thief, 80), None, "what another pod sends to the outside");
    assert_eq!(tcp(&node.host, target, &thief, 80), None, "what the host sends");
    assert!(tcp(&other_ns, target, &beyond, 8080).is_some(), "it arrives where it was sent");
    // An address that moves to the host later, as keepalived's does.
    node.ip(&["route", "del", "198.51.100.7/32"]);
    node.ip(&["addr", "add", "198.51.100.7/32", "dev", "lo"]);
    let from = Some(other[0].parse().unwrap());
    assert_eq!(tcp(&other_ns, target, &thief, 80), from);
    del(&node, &["thief", "other"]);
}

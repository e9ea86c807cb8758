//! An address that comes back before it has cooled down, because there is no other: what the node remembers of its last pod
//! leads nowhere.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use serde_json::{Value, json};
use weft_netns::NetNs;

use crate::common::{Node, conf};
use crate::killed::killed_with;
use crate::ports::{BEYOND, HOST, add, any, at, bound, outside, patience, socket};

/// One address of each family.
fn tiny() -> Value {
    let mut conf = conf();
    conf["ranges"] = json!([
        { "subnet": "10.88.0.0/30" },
        { "subnet": "fd00:88::/64", "rangeStart": "fd00:88::2", "rangeEnd": "fd00:88::2" },
    ]);
    conf
}

const OWN: [&str; 2] = ["10.88.0.2", "fd00:88::2"];

/// Where a pod answers to a virtual address, and where it asks from.
const SERVED: u16 = 53;
const ASKED_FROM: u16 = 5000;

/// As kube-proxy does it: the rule goes, and the connection that it has translated stays.
fn translate(node: &Node, on: bool) {
    let rules = format!(
        "table inet services {{
            chain pre {{
                type nat hook prerouting priority dstnat - 1;
                ip daddr {} udp dport 8053 dnat ip to {}:{SERVED}
                ip6 daddr {} udp dport 8053 dnat ip6 to [{}]:{SERVED}
            }}
        }}",
        HOST[0], OWN[0], HOST[1], OWN[1]
    );
    let input = if on { rules.as_str() } else { "delete table inet services" };
    let output = node.run(Command::new("nft").args(["-f", "-"]), input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn received(socket: &UdpSocket) -> (String, SocketAddr) {
    socket.set_read_timeout(Some(patience())).unwrap();
    let mut bytes = [0; 16];
    let (length, from) = socket.recv_from(&mut bytes).unwrap();
    (String::from_utf8_lossy(&bytes[..length]).into_owned(), from)
}

/// A question from the pod to the world, masqueraded, and one from the world to the virtual address, both answered.
struct Remembered {
    world: UdpSocket,
    client: UdpSocket,
    /// The pod as the world sees it.
    pod: SocketAddr,
    service: SocketAddr,
}

fn remember(node: &Node, pod: &NetNs, beyond: &NetNs, family: usize) -> Remembered {
    let (world, client) = (socket(beyond, family == 0), socket(beyond, family == 0));
    let asking = bound(pod, any(family == 0, ASKED_FROM), UdpSocket::bind::<SocketAddr>);
    let serving = bound(pod, any(family == 0, SERVED), UdpSocket::bind::<SocketAddr>);
    asking.send_to(b"question", at(BEYOND[family], world.local_addr().unwrap().port())).unwrap();
    let (_, seen) = received(&world);
    assert_eq!(seen.ip(), at(HOST[family], 0).ip(), "the pod is masqueraded");
    world.send_to(b"answer", seen).unwrap();
    assert_eq!(received(&asking).0, "answer");
    let service = at(HOST[family], 8053);
    client.send_to(b"question", service).unwrap();
    let (_, from) = received(&serving);
    serving.send_to(b"answer", from).unwrap();
    assert_eq!(received(&client), ("answer".into(), service));
    assert!(!node.links().is_empty());
    Remembered { world, client, pod: seen, service }
}

/// What was sent to the last pod does not reach this one; what is sent to this one does.
fn assert_forgotten(remembered: &[Remembered], pod: &NetNs, family: usize) {
    let asking = bound(pod, any(family == 0, ASKED_FROM), UdpSocket::bind::<SocketAddr>);
    let serving = bound(pod, any(family == 0, SERVED), UdpSocket::bind::<SocketAddr>);
    let Remembered { world, client, pod: seen, service } = &remembered[family];
    world.send_to(b"stale", seen).unwrap();
    client.send_to(b"stale", service).unwrap();
    // One way, in order: whatever of the above comes at all comes before these.
    world.send_to(b"fresh", at(OWN[family], ASKED_FROM)).unwrap();
    client.send_to(b"fresh", at(OWN[family], SERVED)).unwrap();
    for socket in [&asking, &serving] {
        assert_eq!(received(socket).0, "fresh", "family {family}");
    }
}

#[test]
fn connections_of_an_addresss_last_pod_do_not_reach_the_next_one() {
    let node = Node::new();
    let beyond = outside(&node);
    assert_eq!(add(&node, "a", &tiny()).addresses(), OWN);
    translate(&node, true);
    let remembered = [0, 1].map(|family| remember(&node, &node.pod_ns("a"), &beyond, family));
    assert!(node.cni("DEL", "a", &tiny()).status.success());
    translate(&node, false);
    assert_eq!(add(&node, "b", &tiny()).addresses(), OWN);
    for family in [0, 1] {
        assert_forgotten(&remembered, &node.pod_ns("b"), family);
    }
    assert!(node.cni("DEL", "b", &tiny()).status.success());
    node.assert_empty();
}

/// The first attach is killed before it has forgotten them, and the second one finds its leases made.
#[test]
fn they_do_not_after_a_kill_either() {
    let node = Node::new();
    let beyond = outside(&node);
    add(&node, "b", &tiny());
    translate(&node, true);
    let remembered = [0, 1].map(|family| remember(&node, &node.pod_ns("b"), &beyond, family));
    assert!(node.cni("DEL", "b", &tiny()).status.success());
    translate(&node, false);
    killed_with(&node, "leased", &tiny());
    let again = node.cni("ADD", "a", &tiny());
    assert!(again.status.success(), "{}", again.json);
    for family in [0, 1] {
        assert_forgotten(&remembered, &node.pod_ns("a"), family);
    }
    assert!(node.cni("DEL", "a", &tiny()).status.success());
    node.assert_empty();
}

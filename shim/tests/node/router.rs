//! A pod that plays the router.

use std::io::IoSlice;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendmsg, socket,
};
use serde_json::{Value, json};

use crate::common::{Node, wait_until};

/// A router advertisement (RFC 4861, section 4.2): type 134, a lifetime of 1800 s. The kernel adds the checksum.
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// To all on the link, from the namespace of the caller. Hosts take no advertisement that came over a router: the hop limit is 255.
fn advertise(interface: &str) {
    let socket =
        socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6).unwrap();
    let to = SockaddrIn6::from(SocketAddrV6::new(ALL_NODES, 0, 0, if_nametoindex(interface).unwrap()));
    let (hops, data) = ([ControlMessage::Ipv6HopLimit(&255)], [IoSlice::new(&ADVERTISEMENT)]);
    sendmsg(socket.as_raw_fd(), &data, &hops, MsgFlags::empty(), Some(&to)).unwrap();
}

fn default_routes(node: &Node) -> usize {
    node.ip(&["-6", "route", "show", "default"]).as_array().map_or(0, Vec::len)
}

/// Where no eBPF program stands before the pod, and the node forwards no IPv6.
#[test]
fn a_pod_that_says_it_is_a_router_gives_the_node_no_route() {
    let node = Node::new();
    node.pod("a");
    let conf = json!({ "cniVersion": "1.1.0", "name": "test", "type": "weft", "ranges": [{ "subnet": "10.88.0.0/24" }] });
    let answer = node.cni_with("ADD", "a", &conf.to_string(), |command| {
        command.env("CNI_NETNS", node.dir.path().join("netns-a")).env("WEFT_FAST_PATH", "false");
    });
    assert!(answer.status.success(), "{}", answer.json);
    let pod = node.pod_ns("a");
    node.ip_in_pod("a", &["addr", "add", "fe80::66/64", "dev", "eth0", "nodad"]);
    // The uplink's other end says the same, and is believed: the node listens.
    node.ip(&["addr", "add", "fe80::67/64", "dev", "outside", "nodad"]);
    for _ in 0..3 {
        pod.run(|| advertise("eth0")).unwrap();
    }
    node.host.run(|| advertise("outside")).unwrap();
    wait_until("the uplink's router is known", || default_routes(&node) > 0);
    let routes = node.ip(&["-6", "route", "show", "default"]);
    let over = |route: &Value| route["dev"].as_str().unwrap().to_owned();
    assert_eq!(routes.as_array().unwrap().iter().map(over).collect::<Vec<_>>(), ["uplink"], "{routes}");
    node.remove_pod("a");
}

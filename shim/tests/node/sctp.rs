//! Host ports of SCTP by packets made by hand: the kernel tracks SCTP connections where it has no sockets of them.

#[path = "../../../conformance/tests/reference/sctp.rs"]
mod packet;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use weft_netns::NetNs;

use crate::common::{Node, conf, slowness};
use crate::ports::{BEYOND, HOST, at, del, outside, with_ports};
use packet::{Ear, Heard, INIT, INIT_ACK, send};

/// What `to` hears of a packet sent in `from`.
fn heard(
    from: &NetNs,
    (source, target, chunk): (SocketAddr, SocketAddr, u8),
    to: &NetNs,
    at: SocketAddr,
) -> Option<Heard> {
    let ear = to.run(Ear::open).unwrap();
    from.run(|| send(source, target, chunk)).unwrap();
    ear.hears(at, Duration::from_secs(1) * slowness())
}

#[test]
fn an_sctp_association_reaches_its_pod_and_its_answer_comes_back() {
    let node = Node::new();
    let beyond = outside(&node);
    node.pod("a");
    let port = json!([{ "hostPort": 9999, "containerPort": 38412, "protocol": "SCTP" }]);
    let answer = node.cni("ADD", "a", &with_ports(port));
    assert!(answer.status.success(), "{}", answer.json);
    let pod = node.pod_ns("a");
    for family in [0, 1] {
        let (client, published) = (at(BEYOND[family], 5000), at(HOST[family], 9999));
        let server = at(&answer.addresses()[family], 38412);
        let init = heard(&beyond, (client, published, INIT), &pod, server);
        assert_eq!(init, Some(Heard { from: client, to: server, chunk: INIT, intact: true }));
        let ack = heard(&pod, (server, client, INIT_ACK), &beyond, client);
        assert_eq!(ack, Some(Heard { from: published, to: client, chunk: INIT_ACK, intact: true }));
        let other = (at(BEYOND[family], 5001), at(HOST[family], 9998), INIT);
        assert_eq!(heard(&beyond, other, &pod, server), None, "a port that is not published");
    }
    del(&node, &["a"]);
    let late = (at(BEYOND[0], 5002), at(HOST[0], 9999), INIT);
    let server = at(&answer.addresses()[0], 38412);
    assert_eq!(heard(&beyond, late, &pod, server), None, "a port that was published");
    assert!(node.cni("DEL", "a", &conf()).status.success());
}

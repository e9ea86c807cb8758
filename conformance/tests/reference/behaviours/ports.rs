//! Host ports.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::site::{BEYOND, HOST, Pod, Site};
use crate::traffic::{at, socket, tcp, udp};
use crate::wish::Wish;

pub(crate) fn mapping(protocol: &str, host: u16, pod: u16, at: &str) -> Value {
    json!({ "hostPort": host, "containerPort": pod, "protocol": protocol, "hostIP": at })
}

pub(crate) fn with(mappings: Value) -> Wish {
    Wish { runtime: json!({ "portMappings": mappings }), ..Wish::default() }
}

fn published(site: &Site) -> Pod<'_> {
    site.add(&with(json!([mapping("tcp", 8080, 80, ""), mapping("udp", 8053, 53, "")])))
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

pub(crate) fn tcp_from_outside(site: &Site) {
    let pod = published(site);
    for family in [0, 1] {
        let from = tcp(&site.outside, at(HOST[family], 8080), &pod.space, 80);
        assert_eq!(from, ip(BEYOND[family]), "the client's own address");
    }
    assert_eq!(tcp(&site.outside, at(HOST[0], 8081), &pod.space, 8081), None, "a port that is not published");
    pod.del();
    assert_eq!(tcp(&site.outside, at(HOST[0], 8080), &pod.space, 80), None, "after DEL");
}

pub(crate) fn udp_from_outside(site: &Site) {
    let pod = published(site);
    for family in [0, 1] {
        let client = socket(&site.outside, family == 0);
        assert_eq!(udp(&client, at(HOST[family], 8053), &pod.space, 53), ip(BEYOND[family]));
    }
    pod.del();
}

pub(crate) fn from_the_host(site: &Site) {
    let pod = published(site);
    for family in [0, 1] {
        assert!(tcp(&site.host, at(HOST[family], 8080), &pod.space, 80).is_some());
        assert!(udp(&socket(&site.host, family == 0), at(HOST[family], 8053), &pod.space, 53).is_some());
    }
    pod.del();
}

pub(crate) fn from_localhost(site: &Site) {
    let pod = published(site);
    assert!(tcp(&site.host, at("127.0.0.1", 8080), &pod.space, 80).is_some());
    assert!(udp(&socket(&site.host, true), at("127.0.0.1", 8053), &pod.space, 53).is_some());
    pod.del();
}

/// All of 127.0.0.0/8 is localhost.
pub(crate) fn from_another_localhost(site: &Site) {
    let pod = published(site);
    let from = tcp(&site.host, at("127.1.2.3", 8080), &pod.space, 80);
    pod.del();
    assert!(from.is_some());
}

pub(crate) fn from_another_pod(site: &Site) {
    let (pod, other) = (published(site), site.add(&Wish::default()));
    for family in [0, 1] {
        assert!(tcp(&other.space, at(HOST[family], 8080), &pod.space, 80).is_some());
        assert!(udp(&socket(&other.space, family == 0), at(HOST[family], 8053), &pod.space, 53).is_some());
    }
    pod.del();
    other.del();
}

/// A pod that reaches itself by its host port.
pub(crate) fn hairpin(site: &Site) {
    let pod = published(site);
    for family in [0, 1] {
        assert!(tcp(&pod.space, at(HOST[family], 8080), &pod.space, 80).is_some());
        assert!(udp(&socket(&pod.space, family == 0), at(HOST[family], 8053), &pod.space, 53).is_some());
    }
    pod.del();
}

pub(crate) fn at_one_address(site: &Site) {
    site.host.must("ip addr add 192.0.2.11/24 dev uplink");
    let first = site.add(&with(json!([mapping("tcp", 8080, 80, "192.0.2.10")])));
    let second = site.add(&with(json!([mapping("tcp", 8080, 80, "192.0.2.11")])));
    let from = ip(BEYOND[0]);
    assert_eq!(tcp(&site.outside, at("192.0.2.10", 8080), &first.space, 80), from);
    assert_eq!(tcp(&site.outside, at("192.0.2.11", 8080), &second.space, 80), from);
    assert_eq!(tcp(&site.outside, at(HOST[1], 8080), &first.space, 80), None, "no other");
    first.del();
    second.del();
}

/// `0.0.0.0` and `::` are every address of their family, and of it only.
pub(crate) fn at_any_address_of_a_family(site: &Site) {
    let v4 = site.add(&with(json!([mapping("tcp", 8084, 80, "0.0.0.0")])));
    let v6 = site.add(&with(json!([mapping("tcp", 8086, 80, "::")])));
    assert_eq!(tcp(&site.outside, at(HOST[0], 8084), &v4.space, 80), ip(BEYOND[0]));
    assert_eq!(tcp(&site.outside, at(HOST[1], 8086), &v6.space, 80), ip(BEYOND[1]));
    assert_eq!(tcp(&site.outside, at(HOST[1], 8084), &v4.space, 80), None);
    assert_eq!(tcp(&site.outside, at(HOST[0], 8086), &v6.space, 80), None);
    v4.del();
    v6.del();
}

/// A port at an address is at no other, nor at localhost.
pub(crate) fn at_one_address_is_not_at_localhost(site: &Site) {
    let pod = site.add(&with(json!([mapping("tcp", 8080, 80, "192.0.2.10")])));
    assert_eq!(tcp(&site.host, at("127.0.0.1", 8080), &pod.space, 80), None);
    pod.del();
}

pub(crate) fn datagrams_sent_before_do_not_stick(site: &Site) {
    // Something that makes the kernel track connections.
    let first = site.add(&with(json!([mapping("tcp", 1, 1, "")])));
    let client = socket(&site.outside, true);
    let target = at(HOST[0], 8053);
    client.send_to(b"early", target).unwrap();
    let pod = site.add(&with(json!([mapping("udp", 8053, 53, "")])));
    // That nobody listened may have come back.
    drop(client.take_error());
    assert_eq!(udp(&client, target, &pod.space, 53), ip(BEYOND[0]));
    pod.del();
    first.del();
}

/// Datagrams of a client that goes on sending reach the pod that has the port now.
pub(crate) fn datagrams_follow_the_port(site: &Site) {
    let client = socket(&site.outside, true);
    let target = at(HOST[0], 8053);
    let wish = with(json!([mapping("udp", 8053, 53, "")]));
    for _ in 0..2 {
        let pod = site.add(&wish);
        assert_eq!(udp(&client, target, &pod.space, 53), ip(BEYOND[0]));
        pod.del();
        drop(client.take_error());
    }
}

pub(crate) fn a_taken_port_is_refused(site: &Site) {
    let wish = with(json!([mapping("tcp", 8080, 80, "")]));
    let pod = site.add(&wish);
    let second = site.pod(&wish);
    let answer = second.again();
    second.del();
    pod.del();
    assert!(answer.is_err(), "two pods have one port");
}

/// What listens on the node loses nothing but the published port.
pub(crate) fn other_ports_stay_the_nodes(site: &Site) {
    let pod = published(site);
    assert!(tcp(&site.outside, at(HOST[0], 8079), &site.host, 8079).is_some());
    pod.del();
    assert!(tcp(&site.outside, at(HOST[0], 8080), &site.host, 8080).is_some(), "after DEL");
}

/// Somebody flushes all rules; the next pod needs some.
pub(crate) fn flushed_rules_come_back(site: &Site) {
    let pod = published(site);
    site.host.must("nft flush ruleset");
    let next = site.add(&with(json!([mapping("tcp", 9090, 80, "")])));
    let from = tcp(&site.outside, at(HOST[0], 8080), &pod.space, 80);
    next.del();
    pod.del();
    assert!(from.is_some());
}

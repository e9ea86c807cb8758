//! What packets of pods do.

use std::net::IpAddr;

use serde_json::json;

use crate::site::{BEYOND, HOST, Site};
use crate::space::Space;
use crate::traffic::{at, pings, socket, tcp, udp};
use crate::wish::Wish;

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

/// Host, other pod, outside, in all directions and both families.
pub(crate) fn everybody_reaches_everybody(site: &Site) {
    let (a, b) = (site.add(&Wish::default()), site.add(&Wish::default()));
    for family in [0, 1] {
        let (of_a, of_b) = (&a.addresses()[family], &b.addresses()[family]);
        assert!(tcp(&a.space, at(of_b, 80), &b.space, 80).is_some(), "pod to pod");
        assert!(tcp(&site.host, at(of_a, 80), &a.space, 80).is_some(), "host to pod");
        assert!(tcp(&a.space, at(HOST[family], 80), &site.host, 80).is_some(), "pod to host");
        assert!(tcp(&site.outside, at(of_a, 80), &a.space, 80).is_some(), "outside to pod");
        assert!(tcp(&a.space, at(BEYOND[family], 80), &site.outside, 80).is_some(), "pod to outside");
        assert!(tcp(&a.space, at(of_a, 80), &a.space, 80).is_some(), "pod to itself");
        assert!(udp(&socket(&a.space, family == 0), at(of_b, 53), &b.space, 53).is_some(), "udp");
        assert!(pings(&a.space, of_b) && pings(&a.space, BEYOND[family]), "icmp");
    }
    a.del();
    b.del();
}

pub(crate) fn masquerade_hides_the_pod(site: &Site) {
    let pod = site.add(&Wish::default());
    for family in [0, 1] {
        assert_eq!(tcp(&pod.space, at(BEYOND[family], 80), &site.outside, 80), ip(HOST[family]));
    }
    pod.del();
}

pub(crate) fn without_masquerade_the_pod_is_seen(site: &Site) {
    let pod = site.add(&Wish { masquerade: false, ..Wish::default() });
    for family in [0, 1] {
        assert_eq!(tcp(&pod.space, at(BEYOND[family], 80), &site.outside, 80), ip(&pod.addresses()[family]));
    }
    pod.del();
}

pub(crate) fn pods_see_each_other_as_they_are(site: &Site) {
    let (a, b) = (site.add(&Wish::default()), site.add(&Wish::default()));
    for family in [0, 1] {
        let from = tcp(&a.space, at(&b.addresses()[family], 80), &b.space, 80);
        assert_eq!(from, ip(&a.addresses()[family]));
    }
    a.del();
    b.del();
}

/// Pods of two networks of the node, each masqueraded.
pub(crate) fn pods_of_two_networks_see_each_other_as_they_are(site: &Site) {
    let sets = json!([[{ "subnet": "10.88.9.0/24" }]]);
    let other = Wish { network: "second", sets, bridge: json!({ "bridge": "cni1" }), ..Wish::default() };
    let (a, b) = (site.add(&Wish::default()), site.add(&other));
    let from = tcp(&a.space, at(&b.address(), 80), &b.space, 80);
    a.del();
    b.del();
    assert_eq!(from, ip(&a.address()));
}

/// A frame with another source MAC address than the pod's goes nowhere; with its own it arrives.
pub(crate) fn a_spoofed_mac_is_dropped(site: &Site) {
    let spoof = Wish { bridge: json!({ "macspoofchk": true }), ..Wish::default() };
    let (a, b) = (site.add(&spoof), site.add(&spoof));
    let address = b.address();
    assert!(pings(&a.space, &address));
    let own = a.link()["address"].as_str().unwrap().to_owned();
    // Whom the pod sends its frames to. A change of the link's address makes the kernel forget it.
    let hop =
        a.space.ip(&format!("route get {address}"))[0]["gateway"].as_str().unwrap_or(&address).to_owned();
    let next = a.space.ip(&format!("neigh show {hop}"))[0]["lladdr"].as_str().unwrap().to_owned();
    let arrives_from = |mac: &str| {
        a.space.must(&format!("ip link set eth0 address {mac}"));
        a.space.must(&format!("ip neigh replace {hop} lladdr {next} dev eth0 nud permanent"));
        let before = echoes(&b.space);
        // Its answer may go astray; what counts is whether it arrives.
        pings(&a.space, &address);
        echoes(&b.space) > before
    };
    assert!(!arrives_from("02:00:00:00:0b:ad"));
    assert!(arrives_from(&own));
    a.del();
    b.del();
}

/// Echo requests that a namespace has taken.
fn echoes(space: &Space) -> u64 {
    let text = space.must("cat /proc/net/snmp");
    let [names, values] =
        [0, 1].map(|line| text.lines().filter(|line| line.starts_with("Icmp:")).nth(line).unwrap());
    let mut columns = names.split(' ').zip(values.split(' '));
    columns.find(|(name, _)| *name == "InEchos").unwrap().1.parse().unwrap()
}

/// A pod that takes an address which is not its own reaches nobody by it.
pub(crate) fn a_spoofed_address_is_dropped(site: &Site) {
    let pod = site.add(&Wish { masquerade: false, ..Wish::default() });
    pod.space.must("ip addr add 10.88.0.99/32 dev eth0");
    assert!(pings(&pod.space, BEYOND[0]));
    let arrives_from = |address: &str| {
        let before = echoes(&site.outside);
        let mut ping = std::process::Command::new("ping");
        pod.space.exec(ping.args(["-n", "-c", "1", "-W", "2", "-I", address, BEYOND[0]]), b"");
        echoes(&site.outside) > before
    };
    assert!(arrives_from(&pod.address()));
    assert!(!arrives_from("10.88.0.99"), "the outside has seen it");
    pod.del();
}

/// What a pod says about routes is no business of the node (RFC 4861).
pub(crate) fn nothing_of_the_node_is_changed_by_del(site: &Site) {
    let before = (site.host.ip("route show"), site.host.ip("-6 route show default"));
    let pod = site.add(&Wish::default());
    pod.del();
    let links = site.host.ip("link show type veth");
    let names: Vec<&str> =
        links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap()).collect();
    assert_eq!(names, ["uplink"]);
    let kept = site.host.ip("route show");
    let kept: Vec<_> =
        kept.as_array().unwrap().iter().filter(|route| route["dev"] != "cni0").cloned().collect();
    assert_eq!(kept, *before.0.as_array().unwrap());
    assert_eq!(site.host.ip("-6 route show default"), before.1);
    let left = site.host.must("nft list ruleset");
    assert!(!left.contains("10.88.0.2"), "{left}");
}
